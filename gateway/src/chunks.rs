//! Chunks: placed by the layout, fanned out, gathered.
//!
//! A put is answered when every chunk is durable on two nodes. The call to the third goes on behind
//! the caller's back; where it fails, or the node is too far behind to be sent anything, the node
//! itself fetches what it lacks. A get asks one holder after the other until every chunk is found.
//! Bytes that are not the chunk count as not found, so that one bad disk, or one node that lies, costs
//! nobody a read; the client hashes them again, for it has no reason to believe this process.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use coffer_model::chunk::{ChunkError, SEALED_BYTES_MAX, SealedChunk};
use coffer_model::id::{ChunkId, NodeId};
use coffer_model::layout::REPLICAS_DURABLE;
use coffer_model::session::PROOF_HEADER;
use coffer_proto::v1 as pb;
use coffer_proto::v1::chunk_service_client::ChunkServiceClient;
use coffer_proto::v1::chunk_service_server::ChunkService;
use coffer_proto::{CHUNK_BYTES_PER_CALL, CHUNKS_PER_CALL, MESSAGE_BYTES_MAX, RENEWALS_PER_CALL};
use coffer_service::audit::note;
use coffer_service::call::contained;
use coffer_service::channel::Channel;
use coffer_service::pace::hold_until_taken;
use coffer_service::shutdown::Shutdown;
use coffer_service::status::{is_retryable, reason_of, relayed, status, status_with_retry};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tonic::metadata::BinaryMetadataValue;
use tonic::{Code, Request, Response, Status};

use crate::cluster::{Cluster, Node, View};
use crate::door::Door;

/// What a caller is told to wait when too much is under way.
const OVERLOAD_PAUSE: Duration = Duration::from_millis(200);
/// Answers that lie here until their callers have taken them may have this many times the bytes that may
/// be under way: slow callers wait for each other, and hold up neither puts nor what is quick.
const UNTAKEN_FACTOR: usize = 4;
/// A call costs at least this much of what may be under way, however little it carries.
const CALL_BYTES_MIN: usize = 4 << 10;

/// The chunk half of the sealed API.
pub(crate) struct Chunks {
    cluster: Arc<Cluster>,
    door: Arc<Door>,
    in_flight: Arc<Semaphore>,
    untaken: Arc<Semaphore>,
    shutdown: Shutdown,
}

/// What one node said to one call.
type Answer<T> = (NodeId, Result<T, Status>);

impl Chunks {
    pub(crate) fn new(
        cluster: Arc<Cluster>,
        door: Arc<Door>,
        in_flight_bytes: u64,
        shutdown: Shutdown,
    ) -> Self {
        let permits = usize::try_from(in_flight_bytes).unwrap_or(Semaphore::MAX_PERMITS);
        let bound = |permits: usize| Arc::new(Semaphore::new(permits.min(Semaphore::MAX_PERMITS)));
        let untaken = bound(permits.saturating_mul(UNTAKEN_FACTOR));
        Self { cluster, door, in_flight: bound(permits), untaken, shutdown }
    }

    /// Learns the layout that nodes know already, and asks the caller to come again.
    async fn moved(&self) -> Status {
        if let Err(error) = self.cluster.refresh().await {
            tracing::debug!(%error, "the cluster did not say where its nodes are");
        }
        let message = "the chunks are placed elsewhere now; try again";
        status_with_retry(Code::Unavailable, "LAYOUT_CHANGED", message, &[], OVERLOAD_PAUSE)
    }

    /// Room for `bytes` under way, or a refusal with a hint.
    fn room(&self, bytes: usize) -> Result<OwnedSemaphorePermit, Status> {
        room_in(&self.in_flight, bytes)
    }
}

/// Whether a node refused a chunk because by a later layout it is not the node's any more.
fn is_moved(failure: &Status) -> bool {
    reason_of(failure).is_some_and(|reason| reason.code == "NOT_A_HOLDER")
}

fn room_in(bound: &Arc<Semaphore>, bytes: usize) -> Result<OwnedSemaphorePermit, Status> {
    let permits = u32::try_from(bytes.max(CALL_BYTES_MIN)).unwrap_or(u32::MAX);
    Arc::clone(bound).try_acquire_many_owned(permits).map_err(|_| {
        let message = "too much is under way here; try again in a moment";
        status_with_retry(Code::ResourceExhausted, "OVERLOADED", message, &[], OVERLOAD_PAUSE)
    })
}

fn invalid(reason: &'static str, message: &str) -> Status {
    status(Code::InvalidArgument, reason, message, &[])
}

fn client(channel: Channel) -> ChunkServiceClient<Channel> {
    ChunkServiceClient::new(channel)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX)
}

fn with_proof<M>(message: M, proof: &BinaryMetadataValue) -> Request<M> {
    let mut request = Request::new(message);
    request.metadata_mut().insert_bin(PROOF_HEADER, proof.clone());
    request
}

fn parse_ids(ids: &[Bytes], most: usize) -> Result<Vec<ChunkId>, Status> {
    if ids.len() > most {
        return Err(invalid("TOO_MANY_CHUNKS", &format!("one call names at most {most} chunks")));
    }
    let parsed: Result<Vec<ChunkId>, _> =
        ids.iter().map(|id| ChunkId::try_from(id.as_ref())).collect();
    parsed.map_err(|_| invalid("CHUNK_ID_INVALID", "a chunk id has 32 bytes"))
}

/// A node with the positions (in the request) of the chunks it is to be asked about.
struct Share {
    node: Node,
    positions: Vec<usize>,
}

/// Who holds what: for each node, the positions of the chunks it holds.
fn shares(view: &View, ids: &[ChunkId]) -> Vec<Share> {
    let mut by_node: BTreeMap<NodeId, Share> = BTreeMap::new();
    for (position, id) in ids.iter().enumerate() {
        for node in view.holders(id) {
            let share =
                by_node.entry(node.id).or_insert_with(|| Share { node, positions: Vec::new() });
            share.positions.push(position);
        }
    }
    by_node.into_values().collect()
}

/// Receipts as they come in, until every chunk has enough.
struct Gathered {
    receipts: Vec<Vec<Bytes>>,
    lacking: usize,
}

impl Gathered {
    fn new(chunks: usize) -> Self {
        Self { receipts: vec![Vec::new(); chunks], lacking: chunks }
    }

    fn add(&mut self, positions: &[usize], stored: Vec<pb::Stored>) {
        for (position, stored) in positions.iter().zip(stored) {
            let receipts = &mut self.receipts[*position];
            let before = receipts.len();
            receipts.extend(stored.receipts);
            if before < REPLICAS_DURABLE && receipts.len() >= REPLICAS_DURABLE {
                self.lacking -= 1;
            }
        }
    }
}

/// Takes over what a node gave for the chunks at these positions; gives the number of answers that
/// were something else than the chunk.
fn take(
    found: &mut [Bytes],
    ids: &[ChunkId],
    positions: &[usize],
    fetched: Vec<pb::Fetched>,
) -> usize {
    let mut wrong = 0;
    for (position, fetched) in positions.iter().zip(fetched) {
        if fetched.data.is_empty() {
            continue;
        }
        match SealedChunk::check(ids[*position], fetched.data) {
            Ok(chunk) => found[*position] = chunk.into_bytes(),
            Err(_) => wrong += 1,
        }
    }
    wrong
}

/// The failure to report when too few nodes did their part: a refusal that will not change comes
/// before one that may.
fn worst(failures: Vec<Status>) -> Status {
    let final_refusal =
        failures.iter().find(|failure| !is_retryable(failure) && reason_of(failure).is_some());
    if let Some(refusal) = final_refusal {
        return relayed(refusal);
    }
    let told =
        failures.first().map_or("no storage node can be reached", |failure| failure.message());
    let message = format!("too few storage nodes answered: {told}");
    status(Code::Unavailable, "TOO_FEW_NODES", &message, &[])
}

#[tonic::async_trait]
impl ChunkService for Chunks {
    async fn put_chunks(
        &self,
        request: Request<pb::PutChunksRequest>,
    ) -> Result<Response<pb::PutChunksResponse>, Status> {
        let proof = self.door.admit(&request)?;
        let count = request.get_ref().chunks.len();
        note(&request, |subject| subject.object = Some(format!("{count} chunks")));
        let pb::PutChunksRequest { ticket, chunks, .. } = request.into_inner();
        let bytes: usize = chunks.iter().map(Bytes::len).sum();
        if chunks.len() > CHUNKS_PER_CALL || bytes > CHUNK_BYTES_PER_CALL + SEALED_BYTES_MAX {
            return Err(invalid("TOO_MANY_CHUNKS", "one call takes at most 256 chunks and 4 MiB"));
        }
        let room = Arc::new(self.room(bytes)?);
        let sealed: Vec<SealedChunk<Bytes>> = chunks
            .into_iter()
            .map(SealedChunk::hash)
            .collect::<Result<_, ChunkError>>()
            .map_err(|error| invalid("CHUNK_TOO_LARGE", &error.to_string()))?;
        let ids: Vec<ChunkId> = sealed.iter().map(SealedChunk::id).collect();
        let view = self.cluster.view()?;

        let shares = shares(&view, &ids);
        let (answers, mut incoming) = mpsc::channel::<Answer<Vec<pb::Stored>>>(shares.len().max(1));
        let mut positions_of = BTreeMap::new();
        for Share { node, positions } in shares {
            let share_bytes: usize = positions.iter().map(|at| sealed[*at].bytes().len()).sum();
            let permits = u32::try_from(share_bytes.max(1)).unwrap_or(u32::MAX);
            // A node with too much under way is left out; the others decide whether that is enough.
            let Ok(node_room) = Arc::clone(&node.in_flight).try_acquire_many_owned(permits) else {
                continue;
            };
            let message = pb::PutChunksRequest {
                ticket: ticket.clone(),
                chunks: positions.iter().map(|at| sealed[*at].bytes().clone()).collect(),
                layout_version: view.layout_version(),
            };
            let request = with_proof(message, &proof);
            positions_of.insert(node.id, positions);
            let (answers, room) = (answers.clone(), Arc::clone(&room));
            self.shutdown.spawn("put to a storage node", async move {
                let stored = contained(client(node.channel).put_chunks(request)).await;
                drop((node_room, room));
                // Nobody listens any more once enough nodes have answered.
                let _ = answers.send((node.id, stored.map(|it| it.into_inner().stored))).await;
            });
        }
        drop(answers);

        let mut gathered = Gathered::new(ids.len());
        let mut failures = Vec::new();
        while gathered.lacking > 0 {
            match incoming.recv().await {
                Some((node, Ok(stored))) => gathered.add(&positions_of[&node], stored),
                Some((node, Err(failure))) => {
                    tracing::debug!(%node, code = ?failure.code(), "a storage node took no chunks");
                    failures.push(failure);
                }
                None if failures.iter().any(is_moved) => return Err(self.moved().await),
                None => return Err(worst(failures)),
            }
        }
        let stored = ids
            .iter()
            .zip(gathered.receipts)
            .map(|(id, receipts)| pb::Stored { chunk_id: id_bytes(id), receipts })
            .collect();
        Ok(Response::new(pb::PutChunksResponse { stored }))
    }

    async fn get_chunks(
        &self,
        request: Request<pb::GetChunksRequest>,
    ) -> Result<Response<pb::GetChunksResponse>, Status> {
        let proof = self.door.admit(&request)?;
        let count = request.get_ref().chunk_ids.len();
        note(&request, |subject| subject.object = Some(format!("{count} chunks")));
        let pb::GetChunksRequest { ticket, chunk_ids } = request.into_inner();
        let ids = parse_ids(&chunk_ids, CHUNKS_PER_CALL)?;
        let bytes = ids.len().saturating_mul(SEALED_BYTES_MAX).min(CHUNK_BYTES_PER_CALL);
        let _room = self.room(bytes)?;
        let untaken = room_in(&self.untaken, bytes)?;
        let view = self.cluster.view()?;
        let holders: Vec<Vec<Node>> = ids.iter().map(|id| view.readers(id)).collect();
        let mut found: Vec<Bytes> = vec![Bytes::new(); ids.len()];
        let mut failures = Vec::new();
        for turn in 0..holders.iter().map(Vec::len).max().unwrap_or(0) {
            let mut round: BTreeMap<NodeId, Share> = BTreeMap::new();
            for (position, nodes) in holders.iter().enumerate() {
                if found[position].is_empty()
                    && let Some(node) = nodes.get(turn)
                {
                    let share = round
                        .entry(node.id)
                        .or_insert_with(|| Share { node: node.clone(), positions: Vec::new() });
                    share.positions.push(position);
                }
            }
            let calls = round.into_values().map(|Share { node, positions }| {
                let message = pb::GetChunksRequest {
                    ticket: ticket.clone(),
                    chunk_ids: positions.iter().map(|at| chunk_ids[*at].clone()).collect(),
                };
                let request = with_proof(message, &proof);
                async move {
                    (node.id, positions, contained(client(node.channel).get_chunks(request)).await)
                }
            });
            for (node, positions, answer) in futures_util::future::join_all(calls).await {
                match answer {
                    Ok(answer) => {
                        let wrong = take(&mut found, &ids, &positions, answer.into_inner().fetched);
                        if wrong > 0 {
                            tracing::warn!(%node, wrong, "a storage node gave bytes that are not the chunk");
                        }
                    }
                    Err(failure) => failures.push(failure),
                }
            }
            if found.iter().all(|bytes| !bytes.is_empty()) {
                break;
            }
        }
        // Chunks that nobody has are reported as such, unless a holder could not be asked.
        if found.iter().any(Bytes::is_empty) && !failures.is_empty() {
            return Err(worst(failures));
        }
        let fetched = chunk_ids
            .into_iter()
            .zip(found)
            .map(|(chunk_id, data)| pb::Fetched { chunk_id, data })
            .collect();
        let mut answer = Response::new(pb::GetChunksResponse { fetched });
        hold_until_taken(answer.extensions_mut(), untaken);
        Ok(answer)
    }

    async fn renew_receipts(
        &self,
        request: Request<pb::RenewReceiptsRequest>,
    ) -> Result<Response<pb::RenewReceiptsResponse>, Status> {
        let proof = self.door.admit(&request)?;
        let count = request.get_ref().chunk_ids.len();
        note(&request, |subject| subject.object = Some(format!("{count} chunks")));
        let pb::RenewReceiptsRequest { ticket, chunk_ids } = request.into_inner();
        let ids = parse_ids(&chunk_ids, RENEWALS_PER_CALL)?;
        let _room = self.room(ids.len() * 512)?;
        let view = self.cluster.view()?;
        let calls = shares(&view, &ids).into_iter().map(|Share { node, positions }| {
            let message = pb::RenewReceiptsRequest {
                ticket: ticket.clone(),
                chunk_ids: positions.iter().map(|at| chunk_ids[*at].clone()).collect(),
            };
            let request = with_proof(message, &proof);
            async move { (positions, contained(client(node.channel).renew_receipts(request)).await) }
        });
        let mut gathered = Gathered::new(ids.len());
        let mut failures = Vec::new();
        for (positions, answer) in futures_util::future::join_all(calls).await {
            match answer {
                Ok(answer) => gathered.add(&positions, answer.into_inner().stored),
                Err(failure) => failures.push(failure),
            }
        }
        if gathered.receipts.iter().all(Vec::is_empty) && !failures.is_empty() {
            return Err(worst(failures));
        }
        let stored = ids
            .iter()
            .zip(gathered.receipts)
            .map(|(id, receipts)| {
                let enough = receipts.len() >= REPLICAS_DURABLE;
                pb::Stored {
                    chunk_id: id_bytes(id),
                    receipts: if enough { receipts } else { Vec::new() },
                }
            })
            .collect();
        Ok(Response::new(pb::RenewReceiptsResponse { stored }))
    }
}

fn id_bytes(id: &ChunkId) -> Bytes {
    Bytes::copy_from_slice(id.as_bytes())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn chunk(content: &'static [u8]) -> (ChunkId, Bytes) {
        let chunk = SealedChunk::hash(Bytes::from_static(content)).unwrap();
        (chunk.id(), chunk.into_bytes())
    }

    #[test]
    fn bytes_that_are_not_the_chunk_are_not_taken() {
        let (first, second) = (chunk(b"one"), chunk(b"two"));
        let ids = [first.0, second.0];
        let answer = |data: &[&'static [u8]]| {
            let fetched = |data: &&'static [u8]| pb::Fetched {
                chunk_id: Bytes::new(),
                data: Bytes::from_static(data),
            };
            data.iter().map(fetched).collect::<Vec<_>>()
        };
        let mut found = vec![Bytes::new(); 2];
        assert_eq!(take(&mut found, &ids, &[0, 1], answer(&[b"one", b"twx"])), 1);
        assert_eq!(found, [first.1.clone(), Bytes::new()]);
        // The next holder has it. One that has nothing does no harm, nor do answers too many.
        assert_eq!(take(&mut found, &ids, &[0, 1], answer(&[b""])), 0);
        assert_eq!(take(&mut found, &ids, &[1], answer(&[b"two", b"one"])), 0);
        assert_eq!(found, [first.1, second.1]);
    }

    #[test]
    fn a_chunk_is_durable_with_two_receipts() {
        let stored = |receipts: usize| pb::Stored {
            chunk_id: Bytes::new(),
            receipts: vec![Bytes::from_static(b"r"); receipts],
        };
        let mut gathered = Gathered::new(2);
        gathered.add(&[0, 1], vec![stored(1), stored(1)]);
        assert_eq!(gathered.lacking, 2);
        gathered.add(&[1], vec![stored(1)]);
        assert_eq!(gathered.lacking, 1);
        gathered.add(&[0, 1], vec![stored(1), stored(1)]);
        assert_eq!(gathered.lacking, 0);
    }

    #[test]
    fn a_refusal_is_told_before_what_may_pass() {
        let down = || Status::unavailable("nobody there");
        let refusal =
            status(Code::Unauthenticated, "TICKET_EXPIRED", "the ticket has expired", &[]);
        assert_eq!(worst(vec![down(), refusal]).code(), Code::Unauthenticated);
        assert_eq!(
            worst(vec![down(), Status::from_error("reset".into())]).code(),
            Code::Unavailable
        );
        assert_eq!(worst(Vec::new()).code(), Code::Unavailable);
    }
}
