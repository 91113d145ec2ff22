//! Sealed chunks on their way to and from storage: gathered into calls, paid for with tickets, and
//! believed only with receipts (when written) or their own hash (when read).
//!
//! Bytes under way are bounded by two budgets. A permit is taken before a chunk's bytes exist and is
//! given back when they are gone, whatever happens in between.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use coffer_model::chunk::{SealedChunk, ShardKey};
use coffer_model::descriptor::Descriptor;
use coffer_model::id::{ChunkId, ClusterId};
use coffer_model::layout::REPLICAS_DURABLE;
use coffer_model::receipt::Receipt;
use coffer_model::time::LogTime;
use coffer_proto::v1 as pb;
use coffer_proto::{CHUNK_BYTES_PER_CALL, CHUNKS_PER_CALL, RENEWALS_PER_CALL, TICKET_BYTES_MAX};
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore};
use tonic::Status;

use crate::batch::{Batcher, Limits, Weight};
use crate::error::{ClientError, is_ticket_refused};
use crate::read::id_bytes;
use crate::wire::Wire;

/// Bytes of chunks on their way up, from being read to being stored.
const UPLOAD_BYTES_MAX: usize = 16 << 20;
/// Bytes of chunks on their way down, from being asked for to being written.
const DOWNLOAD_BYTES_MAX: usize = 24 << 20;
/// Calls with chunks to store under way.
const CALLS_MAX: usize = 4;
/// Calls for chunks under way; of small files each has its own.
const GETS_MAX: usize = 16;
/// With a call under way, the next one waits until it would carry this much.
const EAGER_BYTES: usize = 1 << 20;
/// How many bytes a ticket is asked for: enough for seconds of writing, little enough that what is
/// reserved and not used does not hurt.
const TICKET_BYTES: u64 = 256 << 20;
/// A ticket is good for 60 s; one this old is not used any more.
const TICKET_AGE_MAX: Duration = Duration::from_secs(40);
/// How often a call is repeated with a fresh ticket.
const TICKET_ATTEMPTS: u32 = 3;

/// That a chunk is durable on two nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stored {
    /// Until when both nodes keep it, even if no commit names it.
    pub(crate) keep_until: LogTime,
    /// Whether its bytes were sent, or it was there already.
    pub(crate) sent: bool,
}

/// A sealed chunk on its way up. Its id was computed from its bytes when it was sealed.
pub(crate) struct Sealed {
    id: ChunkId,
    bytes: Bytes,
}

impl From<SealedChunk<Vec<u8>>> for Sealed {
    fn from(chunk: SealedChunk<Vec<u8>>) -> Self {
        Self { id: chunk.id(), bytes: Bytes::from(chunk.into_bytes()) }
    }
}

/// The way of chunks.
pub(crate) struct Chunks {
    puts: Batcher<Sealed, Stored>,
    renewals: Batcher<(ChunkId, u32), Option<Stored>>,
    gets: Batcher<ChunkId, Bytes>,
    upload: Arc<Semaphore>,
    download: Arc<Semaphore>,
}

impl Chunks {
    pub(crate) fn start(wire: &Arc<Wire>) -> Self {
        let limits = Limits {
            items_max: CHUNKS_PER_CALL,
            bytes_max: CHUNK_BYTES_PER_CALL,
            eager_bytes: EAGER_BYTES,
            calls_max: CALLS_MAX,
        };
        let tickets = Arc::new(Tickets::default());
        let puts = {
            let (wire, tickets) = (Arc::clone(wire), Arc::clone(&tickets));
            Batcher::start(limits, move |_, chunks| {
                let (wire, tickets) = (Arc::clone(&wire), Arc::clone(&tickets));
                async move { put(&wire, &tickets, chunks).await }
            })
        };
        let renewals = {
            let wire = Arc::clone(wire);
            let limits = Limits { items_max: RENEWALS_PER_CALL, bytes_max: usize::MAX, ..limits };
            Batcher::start(limits, move |_, chunks| {
                let (wire, tickets) = (Arc::clone(&wire), Arc::clone(&tickets));
                async move { renew(&wire, &tickets, chunks).await }
            })
        };
        let gets = {
            let wire = Arc::clone(wire);
            // Every file has a ticket of its own, so waiting for more of the same rarely pays.
            let limits = Limits { eager_bytes: 0, calls_max: GETS_MAX, ..limits };
            Batcher::start(limits, move |ticket, chunks| {
                let wire = Arc::clone(&wire);
                async move { get(&wire, ticket, chunks).await }
            })
        };
        let upload = Arc::new(Semaphore::new(UPLOAD_BYTES_MAX));
        let download = Arc::new(Semaphore::new(DOWNLOAD_BYTES_MAX));
        Self { puts, renewals, gets, upload, download }
    }

    /// Room for `bytes` on their way up.
    pub(crate) async fn room_up(&self, bytes: u64) -> Result<OwnedSemaphorePermit, ClientError> {
        room(&self.upload, bytes, UPLOAD_BYTES_MAX).await
    }

    /// Room for `bytes` on their way down.
    pub(crate) async fn room_down(&self, bytes: u64) -> Result<OwnedSemaphorePermit, ClientError> {
        room(&self.download, bytes, DOWNLOAD_BYTES_MAX).await
    }

    /// Stores a chunk. With `ask_first` its bytes are sent only if it is not there already.
    pub(crate) async fn store(
        &self,
        chunk: Sealed,
        ask_first: bool,
    ) -> Result<Stored, ClientError> {
        let bytes = chunk.bytes.len();
        if ask_first {
            let length = u32::try_from(bytes).unwrap_or(u32::MAX);
            if let Some(stored) = self.renew(chunk.id, length).await? {
                return Ok(stored);
            }
        }
        self.puts.answer(Weight { group: Bytes::new(), bytes }, chunk).await
    }

    /// Asks for new receipts; there are none if the chunk is not there, or on too few nodes.
    pub(crate) async fn renew(
        &self,
        chunk: ChunkId,
        length: u32,
    ) -> Result<Option<Stored>, ClientError> {
        self.renewals.answer(Weight { group: Bytes::new(), bytes: 0 }, (chunk, length)).await
    }

    /// Reads the sealed bytes of a chunk. They are not checked yet.
    pub(crate) async fn fetch(
        &self,
        ticket: &Bytes,
        chunk: ChunkId,
        length: u32,
    ) -> Result<Bytes, ClientError> {
        let bytes = usize::try_from(length).unwrap_or(usize::MAX);
        self.gets.answer(Weight { group: ticket.clone(), bytes }, chunk).await
    }
}

async fn room(
    budget: &Arc<Semaphore>,
    bytes: u64,
    bytes_max: usize,
) -> Result<OwnedSemaphorePermit, ClientError> {
    let permits = usize::try_from(bytes).unwrap_or(usize::MAX).clamp(1, bytes_max);
    let permits = u32::try_from(permits).unwrap_or(u32::MAX);
    Arc::clone(budget).acquire_many_owned(permits).await.map_err(|_| ClientError::Stopped)
}

/// The write ticket in use.
#[derive(Default)]
struct Tickets(Mutex<Option<Ticket>>);

struct Ticket {
    signed: Bytes,
    bytes_left: u64,
    issued: Instant,
}

impl Tickets {
    /// A ticket good for `bytes` more.
    async fn take(&self, wire: &Wire, bytes: u64) -> Result<Bytes, Status> {
        let mut held = self.0.lock().await;
        if let Some(ticket) = held.as_mut()
            && ticket.bytes_left >= bytes
            && ticket.issued.elapsed() < TICKET_AGE_MAX
        {
            ticket.bytes_left -= bytes;
            return Ok(ticket.signed.clone());
        }
        let asked = TICKET_BYTES.max(bytes).min(TICKET_BYTES_MAX);
        let request = pb::IssueWriteTicketRequest { inode: id_bytes(wire.home), bytes: asked };
        let issued = Instant::now();
        let answer = wire.transport.issue_write_ticket(&wire.credentials, request).await?;
        wire.clock.note(answer.log_time_ms);
        let signed = answer.ticket;
        *held = Some(Ticket {
            signed: signed.clone(),
            bytes_left: asked.saturating_sub(bytes),
            issued,
        });
        Ok(signed)
    }

    async fn forget(&self) {
        *self.0.lock().await = None;
    }
}

async fn put(
    wire: &Arc<Wire>,
    tickets: &Tickets,
    chunks: Vec<Sealed>,
) -> Result<Vec<Result<Stored, ClientError>>, ClientError> {
    let asked: Vec<(ChunkId, u32)> = chunks
        .iter()
        .map(|chunk| (chunk.id, u32::try_from(chunk.bytes.len()).unwrap_or(u32::MAX)))
        .collect();
    let bytes = asked.iter().map(|(_, length)| u64::from(*length)).sum();
    let sealed: Vec<Bytes> = chunks.into_iter().map(|chunk| chunk.bytes).collect();
    let answer = with_ticket(wire, tickets, bytes, |ticket| {
        let request = pb::PutChunksRequest { ticket, chunks: sealed.clone(), layout_version: 0 };
        wire.transport.put_chunks(&wire.credentials, request)
    })
    .await?;
    let judged = judge(wire, asked, answer.stored, true).await?;
    Ok(judged
        .into_iter()
        .map(|stored| {
            stored.and_then(|stored| {
                stored.ok_or_else(|| ClientError::NotDurable { what: "no receipts".to_owned() })
            })
        })
        .collect())
}

async fn renew(
    wire: &Arc<Wire>,
    tickets: &Tickets,
    asked: Vec<(ChunkId, u32)>,
) -> Result<Vec<Result<Option<Stored>, ClientError>>, ClientError> {
    let chunk_ids: Vec<Bytes> = asked.iter().map(|(id, _)| chunk_bytes(id)).collect();
    let answer = with_ticket(wire, tickets, 0, |ticket| {
        let request = pb::RenewReceiptsRequest { ticket, chunk_ids: chunk_ids.clone() };
        wire.transport.renew_receipts(&wire.credentials, request)
    })
    .await?;
    judge(wire, asked, answer.stored, false).await
}

async fn get(
    wire: &Wire,
    ticket: Bytes,
    asked: Vec<ChunkId>,
) -> Result<Vec<Result<Bytes, ClientError>>, ClientError> {
    let request =
        pb::GetChunksRequest { ticket, chunk_ids: asked.iter().map(chunk_bytes).collect() };
    let answer = wire.transport.get_chunks(&wire.credentials, request).await;
    let answer = answer.map_err(|status| {
        if is_ticket_refused(&status) {
            // The reader asks again with a fresh ticket.
            ClientError::DataMissing { what: "the read ticket was refused".to_owned() }
        } else {
            ClientError::of_status(&status)
        }
    })?;
    if answer.fetched.len() != asked.len() {
        return Err(ClientError::tampered("more or fewer chunks than were asked for"));
    }
    Ok(asked
        .iter()
        .zip(answer.fetched)
        .map(|(id, fetched)| {
            if fetched.data.is_empty() {
                return Err(ClientError::DataMissing { what: format!("chunk {id}") });
            }
            Ok(fetched.data)
        })
        .collect())
}

/// Makes a call that needs a write ticket, with a fresh one if the first is refused.
async fn with_ticket<'a, R, F>(
    wire: &Wire,
    tickets: &Tickets,
    bytes: u64,
    call: impl Fn(Bytes) -> F,
) -> Result<R, ClientError>
where
    F: Future<Output = Result<R, Status>> + 'a,
{
    let mut attempt = 1;
    loop {
        let called = async { call(tickets.take(wire, bytes).await?).await };
        match called.await {
            Ok(answer) => return Ok(answer),
            Err(status) if is_ticket_refused(&status) && attempt < TICKET_ATTEMPTS => {
                tickets.forget().await;
                attempt += 1;
            }
            Err(status) => return Err(ClientError::of_status(&status)),
        }
    }
}

/// Checks the receipts of an answer. One that does not hold may be by a storage node that came after the
/// descriptor this session knows, so that is asked for before anybody is blamed.
async fn judge(
    wire: &Arc<Wire>,
    asked: Vec<(ChunkId, u32)>,
    stored: Vec<pb::Stored>,
    sent: bool,
) -> Result<Vec<Result<Option<Stored>, ClientError>>, ClientError> {
    if stored.len() != asked.len() {
        return Err(ClientError::tampered("more or fewer receipts than chunks"));
    }
    let answer: Arc<Vec<_>> = Arc::new(asked.into_iter().zip(stored).collect());
    let judged_by = wire.descriptor.get().number;
    let judged = judge_once(wire, Arc::clone(&answer), sent).await?;
    let is_doubtful =
        |judged: &Result<_, ClientError>| matches!(judged, Err(ClientError::Tampered { .. }));
    if judged.iter().any(is_doubtful) && wire.knows_later(judged_by).await? {
        return judge_once(wire, answer, sent).await;
    }
    Ok(judged)
}

/// Receipts are many signatures, so they are checked off the event loop.
async fn judge_once(
    wire: &Arc<Wire>,
    answer: Arc<Vec<((ChunkId, u32), pb::Stored)>>,
    sent: bool,
) -> Result<Vec<Result<Option<Stored>, ClientError>>, ClientError> {
    let (descriptor, cluster) = (wire.descriptor.get(), wire.cluster);
    let judged = tokio::task::spawn_blocking(move || {
        let judge = |((id, length), stored): &((ChunkId, u32), pb::Stored)| {
            if stored.receipts.is_empty() && !sent {
                return Ok(None);
            }
            let keep_until = durable_until(&descriptor, &cluster, *id, *length, &stored.receipts)?;
            Ok(Some(Stored { keep_until, sent }))
        };
        answer.iter().map(judge).collect()
    });
    judged.await.map_err(|_| ClientError::Stopped)
}

/// Until when two different storage nodes of this cluster promise to keep a chunk of this length. A
/// receipt that does not hold is an attack, or a node that has lost its mind; too few are a failure.
pub(crate) fn durable_until(
    descriptor: &Descriptor,
    cluster: &ClusterId,
    chunk: ChunkId,
    length: u32,
    receipts: &[Bytes],
) -> Result<LogTime, ClientError> {
    let mut nodes = BTreeSet::new();
    let mut keep_until: Option<LogTime> = None;
    for bytes in receipts {
        let receipt = Receipt::verify(bytes, cluster, |node| descriptor.node_key(node))
            .map_err(|error| ClientError::tampered(format!("a receipt: {error}")))?;
        if receipt.held.shard != ShardKey::replica(chunk) || receipt.held.length != length {
            return Err(ClientError::tampered("a receipt for another chunk"));
        }
        nodes.insert(receipt.flush.node);
        let until = receipt.held.keep_until;
        keep_until = Some(keep_until.map_or(until, |earliest| earliest.min(until)));
    }
    match keep_until {
        Some(until) if nodes.len() >= REPLICAS_DURABLE => Ok(until),
        _ => Err(ClientError::NotDurable {
            what: format!("{} of {REPLICAS_DURABLE} nodes have chunk {chunk}", nodes.len()),
        }),
    }
}

fn chunk_bytes(id: &ChunkId) -> Bytes {
    Bytes::copy_from_slice(id.as_bytes())
}
