//! The store: chunks in append-only segments, written by one thread.
//!
//! Writers queue up; the thread takes what waits, appends it, syncs once, indexes it, signs one
//! Merkle root over all of it, and answers everybody with their receipt. **A shard is here from the
//! moment the sync has returned.** A start reads what segments hold beyond their indexed offset and
//! goes on after the last good record: the first start and the one after a crash do the same.
//!
//! A write or sync that failed poisons the store: nobody knows what the disk kept, so it refuses
//! further writes until it is started again. Reads go on.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread;

use bytes::Bytes;
use coffer_model::chunk::{SealedChunk, ShardKey};
use coffer_model::encoding::encode;
use coffer_model::id::{ChunkId, ClusterId, NodeId};
use coffer_model::merkle::Tree;
use coffer_model::receipt::{Flush, Held, RECEIPT_LEAVES_MAX, Receipt};
use coffer_model::signing::Signer;
use coffer_model::time::LogTime;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use crate::clock::HOLD_MS;
use crate::disk::{Disk, Segment};
use crate::index::{Index, IndexBatch, IndexError, Location, Totals};
use crate::record::{Kind, RECORD_HEADER_BYTES, Record, SEGMENT_HEADER_BYTES, segment_header};

/// What may wait for the disk.
const QUEUE_BYTES: usize = 32 << 20;
/// Jobs that may wait, however small.
const QUEUE_JOBS: usize = 4096;
/// What one flush takes at most; the next one waits no longer than this takes to write.
const FLUSH_BYTES: usize = 8 << 20;
/// Room that a job takes up beyond its bytes.
const JOB_BYTES: usize = 256;

/// Why the store did not do what it was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum StoreError {
    /// An earlier write failed.
    #[error("this storage node's disk failed and it takes no writes until it is restarted: {0}")]
    Poisoned(Arc<str>),
    /// The store is stopping.
    #[error("this storage node is stopping")]
    Stopping,
    /// A read failed.
    #[error("cannot read from disk: {0}")]
    Read(Arc<str>),
    /// The folder does not hold what it should.
    #[error("the chunk store is damaged: {0}")]
    Damaged(Arc<str>),
}

fn read_error(error: impl std::fmt::Display) -> StoreError {
    StoreError::Read(error.to_string().into())
}

impl From<IndexError> for StoreError {
    fn from(error: IndexError) -> Self {
        read_error(error)
    }
}

/// What one caller wants.
enum Item {
    Put(SealedChunk<Bytes>),
    Extend(ShardKey),
}

impl Item {
    fn key(&self) -> ShardKey {
        match self {
            Self::Put(chunk) => ShardKey::replica(chunk.id()),
            Self::Extend(key) => *key,
        }
    }
}

type Receipts = Vec<Option<Vec<u8>>>;

struct Job {
    items: Vec<Item>,
    keep_until: LogTime,
    reply: oneshot::Sender<Result<Receipts, StoreError>>,
    _room: OwnedSemaphorePermit,
}

/// The store. Clones share it.
pub(crate) struct Store<D: Disk> {
    shared: Arc<Shared<D>>,
    jobs: mpsc::Sender<Job>,
    room: Arc<Semaphore>,
}

impl<D: Disk> Clone for Store<D> {
    fn clone(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
            jobs: self.jobs.clone(),
            room: Arc::clone(&self.room),
        }
    }
}

struct Shared<D: Disk> {
    index: Index,
    segments: RwLock<BTreeMap<u64, Arc<D::Segment>>>,
    poison: Mutex<Option<Arc<str>>>,
    totals: Mutex<Totals>,
}

/// Who the store belongs to, and signs as.
pub(crate) struct Owner {
    pub(crate) cluster: ClusterId,
    pub(crate) node: NodeId,
    pub(crate) signer: Arc<dyn Signer + Send + Sync>,
}

impl<D: Disk> Store<D> {
    /// Opens the store and recovers what a crash left behind. The writer thread ends when the last
    /// clone is dropped.
    pub(crate) fn open(
        disk: D,
        index: Index,
        owner: Owner,
        segment_bytes: u64,
    ) -> Result<(Self, thread::JoinHandle<()>), StoreError> {
        match index.owner()? {
            Some(found) if found != *owner.node.as_bytes() => {
                let why = "it belongs to another node; restore this volume's `identity` file";
                return Err(StoreError::Damaged(why.into()));
            }
            Some(_) => {}
            None => index.set_owner(owner.node.as_bytes())?,
        }
        let mut totals = index.totals()?;
        let mut segments = BTreeMap::new();
        let mut end = None;
        for number in disk.segments().map_err(read_error)? {
            let segment = disk.open(number).map_err(read_error)?;
            let at = recover(&index, &segment, number, &owner.node, &mut totals)?;
            segments.insert(number, Arc::new(segment));
            end = Some((number, at));
        }
        let shared = Arc::new(Shared {
            index,
            segments: RwLock::new(segments),
            poison: Mutex::new(None),
            totals: Mutex::new(totals),
        });
        let (jobs, waiting) = mpsc::channel(QUEUE_JOBS);
        let writer =
            Writer { disk, shared: Arc::clone(&shared), owner, segment_bytes, end, totals };
        let thread = thread::Builder::new()
            .name("segment writer".to_owned())
            .spawn(move || writer.run(waiting))
            .map_err(read_error)?;
        let room = Arc::new(Semaphore::new(QUEUE_BYTES));
        Ok((Self { shared, jobs, room }, thread))
    }

    /// Stores chunks and gives their receipts, in order.
    pub(crate) async fn put(
        &self,
        chunks: Vec<SealedChunk<Bytes>>,
        keep_until: LogTime,
    ) -> Result<Vec<Vec<u8>>, StoreError> {
        let receipts = self.submit(chunks.into_iter().map(Item::Put).collect(), keep_until).await?;
        Ok(receipts.into_iter().flatten().collect())
    }

    /// Keeps chunks longer; none where a chunk is not here.
    pub(crate) async fn extend(
        &self,
        chunks: Vec<ChunkId>,
        keep_until: LogTime,
    ) -> Result<Receipts, StoreError> {
        let items = chunks.into_iter().map(|id| Item::Extend(ShardKey::replica(id))).collect();
        self.submit(items, keep_until).await
    }

    async fn submit(&self, items: Vec<Item>, keep_until: LogTime) -> Result<Receipts, StoreError> {
        if let Some(why) = self.poison() {
            return Err(StoreError::Poisoned(why));
        }
        let bytes: usize = items
            .iter()
            .map(|item| match item {
                Item::Put(chunk) => chunk.bytes().len() + JOB_BYTES,
                Item::Extend(_) => JOB_BYTES,
            })
            .sum();
        let permits = u32::try_from(bytes.min(QUEUE_BYTES)).unwrap_or(u32::MAX);
        let room = Arc::clone(&self.room).acquire_many_owned(permits).await;
        let room = room.map_err(|_| StoreError::Stopping)?;
        let (reply, answer) = oneshot::channel();
        let job = Job { items, keep_until, reply, _room: room };
        self.jobs.send(job).await.map_err(|_| StoreError::Stopping)?;
        answer.await.map_err(|_| StoreError::Stopping)?
    }

    /// Reads a chunk and checks it. A damaged one is quarantined and counts as absent.
    pub(crate) fn read(&self, id: &ChunkId) -> Result<Option<Bytes>, StoreError> {
        let key = ShardKey::replica(*id);
        let Some(location) = self.shared.index.location(&key)?.filter(|it| !it.quarantined) else {
            return Ok(None);
        };
        let segments = self.shared.segments.read().unwrap_or_else(PoisonError::into_inner);
        let segment = segments.get(&location.segment).cloned();
        drop(segments);
        let segment = segment.ok_or_else(|| StoreError::Damaged("a segment is missing".into()))?;
        let at = location.offset + RECORD_HEADER_BYTES as u64;
        let length = usize::try_from(location.length).map_err(read_error)?;
        let bytes = segment.read(at, length).map_err(read_error)?;
        match SealedChunk::check(*id, Bytes::from(bytes)) {
            Ok(chunk) => Ok(Some(chunk.into_bytes())),
            Err(_) => {
                tracing::error!(chunk = %id, segment = location.segment, "a stored chunk is damaged");
                self.quarantine(key, location)?;
                Ok(None)
            }
        }
    }

    /// The chunk counts as absent, and as missing, so that it is fetched again.
    fn quarantine(&self, key: ShardKey, location: Location) -> Result<(), StoreError> {
        let damaged = Location { quarantined: true, ..location };
        let batch = IndexBatch { shards: vec![(key, damaged)], ..IndexBatch::default() };
        self.shared.index.write(&batch)?;
        let cursor = self.shared.index.cursor()?;
        Ok(self.shared.index.note_missing(&[key.chunk], 0, cursor)?)
    }

    /// Whether a good copy of the chunk is here, as far as is known.
    pub(crate) fn has(&self, id: &ChunkId) -> Result<bool, StoreError> {
        let location = self.shared.index.location(&ShardKey::replica(*id))?;
        Ok(location.is_some_and(|location| !location.quarantined))
    }

    pub(crate) fn index(&self) -> &Index {
        &self.shared.index
    }

    pub(crate) fn totals(&self) -> Totals {
        *self.shared.totals.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Why the store takes no writes, if it does not.
    pub(crate) fn poison(&self) -> Option<Arc<str>> {
        self.shared.poison.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Checks a segment's header and indexes what stands after its indexed offset. Gives the end of its
/// last good record.
fn recover<S: Segment>(
    index: &Index,
    segment: &S,
    number: u64,
    node: &NodeId,
    totals: &mut Totals,
) -> Result<u64, StoreError> {
    let length = segment.length().map_err(read_error)?;
    let damaged = |why: String| StoreError::Damaged(format!("segment {number}: {why}").into());
    if length < SEGMENT_HEADER_BYTES {
        return Err(damaged("it is shorter than its header".to_owned()));
    }
    let header = segment.read(0, 64).map_err(read_error)?;
    if header.iter().all(|byte| *byte == 0) {
        // A crash came between making the file and using it.
        segment.write(0, &segment_header(number, node)).map_err(read_error)?;
        segment.sync().map_err(read_error)?;
    } else if header != segment_header(number, node) {
        return Err(damaged("its header is not the one this node wrote".to_owned()));
    }
    let mut at = index.indexed(number)?.unwrap_or(SEGMENT_HEADER_BYTES);
    let mut batch = IndexBatch::default();
    let mut fresh: BTreeMap<ShardKey, Location> = BTreeMap::new();
    while at + RECORD_HEADER_BYTES as u64 <= length {
        let header = segment.read(at, RECORD_HEADER_BYTES).map_err(read_error)?;
        let Some(record) = Record::parse(&header, number, at) else { break };
        if at + record.size() > length {
            break;
        }
        let standing = match fresh.get(&record.key) {
            Some(location) => Some(*location),
            None => index.location(&record.key)?,
        };
        match record.kind {
            Kind::Shard if payload_is_good(segment, &record, at).map_err(read_error)? => {
                if standing.is_none() {
                    totals.shards += 1;
                    totals.bytes += u64::from(record.length);
                }
                fresh.insert(record.key, location_of(&record, number, at));
            }
            // The tail of a flush that nobody was told of, or bytes that have rotted since.
            Kind::Shard => {
                tracing::warn!(segment = number, offset = at, "a torn record is skipped")
            }
            Kind::Extension => {
                if let Some(location) = standing {
                    let keep_until = location.keep_until.max(record.keep_until);
                    fresh.insert(record.key, Location { keep_until, ..location });
                }
            }
        }
        at += record.size();
    }
    batch.shards = fresh.into_iter().collect();
    batch.totals = Some(*totals);
    batch.indexed.push((number, at));
    index.write(&batch)?;
    Ok(at)
}

fn payload_is_good<S: Segment>(segment: &S, record: &Record, at: u64) -> io::Result<bool> {
    let length = usize::try_from(record.length).map_err(io::Error::other)?;
    let bytes = segment.read(at + RECORD_HEADER_BYTES as u64, length)?;
    Ok(SealedChunk::check(record.key.chunk, bytes).is_ok())
}

fn location_of(record: &Record, segment: u64, offset: u64) -> Location {
    Location {
        segment,
        offset,
        length: record.length,
        keep_until: record.keep_until,
        quarantined: false,
    }
}

struct Writer<D: Disk> {
    disk: D,
    shared: Arc<Shared<D>>,
    owner: Owner,
    segment_bytes: u64,
    /// The segment that is written to, and where.
    end: Option<(u64, u64)>,
    totals: Totals,
}

/// What is written but not yet synced.
#[derive(Default)]
struct Pending {
    /// Bytes for the current segment, from `start` on.
    buffer: Vec<u8>,
    start: u64,
    batch: BTreeMap<ShardKey, Location>,
    indexed: Vec<(u64, u64)>,
}

impl<D: Disk> Writer<D> {
    fn run(mut self, mut waiting: mpsc::Receiver<Job>) {
        while let Some(first) = waiting.blocking_recv() {
            let mut jobs = vec![first];
            let mut bytes = 0;
            while bytes < FLUSH_BYTES {
                let Ok(job) = waiting.try_recv() else { break };
                bytes += job._room.num_permits();
                jobs.push(job);
            }
            match self.flush(&jobs) {
                Ok(receipts) => {
                    for (job, receipts) in jobs.into_iter().zip(receipts) {
                        // A caller that went away does not want to know.
                        let _ = job.reply.send(Ok(receipts));
                    }
                }
                Err(why) => {
                    let why: Arc<str> = why.into();
                    tracing::error!(%why, "the disk failed; no writes are taken any more");
                    let mut poison =
                        self.shared.poison.lock().unwrap_or_else(PoisonError::into_inner);
                    *poison = Some(Arc::clone(&why));
                    drop(poison);
                    for job in jobs {
                        let _ = job.reply.send(Err(StoreError::Poisoned(Arc::clone(&why))));
                    }
                    waiting.close();
                    while let Some(job) = waiting.blocking_recv() {
                        let _ = job.reply.send(Err(StoreError::Poisoned(Arc::clone(&why))));
                    }
                }
            }
        }
        if let Err(error) = self.shared.index.sync() {
            tracing::warn!(%error, "the index could not be synced; the next start reads more");
        }
    }

    /// Appends what is new, makes it durable, indexes it, and only then makes receipts.
    fn flush(&mut self, jobs: &[Job]) -> Result<Vec<Receipts>, String> {
        let mut pending = Pending::default();
        let mut held: Vec<Vec<Option<Held>>> = Vec::with_capacity(jobs.len());
        let mut totals = self.totals;
        for job in jobs {
            let mut of_job = Vec::with_capacity(job.items.len());
            for item in &job.items {
                of_job.push(self.take(item, job.keep_until, &mut pending, &mut totals)?);
            }
            held.push(of_job);
        }
        self.write_out(&mut pending)?;
        let batch = IndexBatch {
            shards: pending.batch.into_iter().collect(),
            totals: Some(totals),
            indexed: pending.indexed,
        };
        if !batch.shards.is_empty() {
            self.shared.index.write(&batch).map_err(|error| error.to_string())?;
        }
        self.totals = totals;
        *self.shared.totals.lock().unwrap_or_else(PoisonError::into_inner) = totals;
        Ok(self.sign(held))
    }

    /// Puts one item into what is pending, and says what will be held once that is durable.
    fn take(
        &mut self,
        item: &Item,
        keep_until: LogTime,
        pending: &mut Pending,
        totals: &mut Totals,
    ) -> Result<Option<Held>, String> {
        let key = item.key();
        let standing = match pending.batch.get(&key) {
            Some(location) => Some(*location),
            None => self.shared.index.location(&key).map_err(|error| error.to_string())?,
        };
        let good = standing.filter(|location| !location.quarantined);
        let (record, bytes): (Record, &[u8]) = match (good, item) {
            (Some(location), _) => {
                // What is promised for a good while longer need not be promised anew.
                if location.keep_until.plus_ms(HOLD_MS / 2) >= keep_until {
                    let (length, keep_until) = (location.length, location.keep_until);
                    return Ok(Some(Held { shard: key, length, keep_until }));
                }
                let length = location.length;
                (Record { kind: Kind::Extension, key, length, keep_until }, &[])
            }
            (None, Item::Put(chunk)) => {
                let length =
                    u32::try_from(chunk.bytes().len()).map_err(|error| error.to_string())?;
                (Record { kind: Kind::Shard, key, length, keep_until }, chunk.bytes())
            }
            (None, Item::Extend(_)) => return Ok(None),
        };
        let (segment, offset) = self.append(&record, bytes, pending)?;
        let location = match good {
            Some(location) => Location { keep_until, ..location },
            None => {
                if standing.is_none() {
                    totals.shards += 1;
                    totals.bytes += u64::from(record.length);
                }
                location_of(&record, segment, offset)
            }
        };
        pending.batch.insert(key, location);
        Ok(Some(Held { shard: key, length: record.length, keep_until }))
    }

    fn append(
        &mut self,
        record: &Record,
        bytes: &[u8],
        pending: &mut Pending,
    ) -> Result<(u64, u64), String> {
        let fits = self.end.is_some_and(|(_, at)| at + record.size() <= self.segment_bytes);
        if !fits {
            self.write_out(pending)?;
            self.next_segment()?;
        }
        let (segment, offset) = self.end.ok_or("there is no segment")?;
        if pending.buffer.is_empty() {
            pending.start = offset;
        }
        let begin = pending.buffer.len();
        pending.buffer.extend_from_slice(&record.header(segment, offset));
        pending.buffer.extend_from_slice(bytes);
        let size = usize::try_from(record.size()).map_err(|error| error.to_string())?;
        pending.buffer.resize(begin + size, 0);
        self.end = Some((segment, offset + record.size()));
        Ok((segment, offset))
    }

    /// Writes and syncs what is pending for the current segment.
    fn write_out(&mut self, pending: &mut Pending) -> Result<(), String> {
        let Some((number, end)) = self.end.filter(|_| !pending.buffer.is_empty()) else {
            return Ok(());
        };
        let segment = self.segment(number).ok_or("the current segment is not open")?;
        segment.write(pending.start, &pending.buffer).map_err(|error| error.to_string())?;
        segment.sync().map_err(|error| error.to_string())?;
        pending.buffer.clear();
        pending.indexed.push((number, end));
        Ok(())
    }

    fn next_segment(&mut self) -> Result<(), String> {
        let number = self.end.map_or(0, |(number, _)| number + 1);
        let failed = |error: io::Error| error.to_string();
        let segment = self.disk.create(number, self.segment_bytes).map_err(failed)?;
        segment.write(0, &segment_header(number, &self.owner.node)).map_err(failed)?;
        segment.sync().map_err(failed)?;
        let mut segments = self.shared.segments.write().unwrap_or_else(PoisonError::into_inner);
        segments.insert(number, Arc::new(segment));
        self.end = Some((number, SEGMENT_HEADER_BYTES));
        Ok(())
    }

    fn segment(&self, number: u64) -> Option<Arc<D::Segment>> {
        let segments = self.shared.segments.read().unwrap_or_else(PoisonError::into_inner);
        segments.get(&number).cloned()
    }

    /// One signature for all that is held.
    fn sign(&self, held: Vec<Vec<Option<Held>>>) -> Vec<Receipts> {
        let all: Vec<&Held> = held.iter().flatten().flatten().collect();
        let mut receipts = Vec::with_capacity(all.len());
        for part in all.chunks(RECEIPT_LEAVES_MAX) {
            let leaves: Vec<_> = part.iter().map(|held| held.leaf()).collect();
            let tree = Tree::new(&leaves);
            let size = leaves.len() as u64;
            let flush = Flush { node: self.owner.node, root: tree.root(), size };
            let signature = flush.sign(&self.owner.cluster, &DynSigner(&*self.owner.signer));
            for (index, held) in part.iter().enumerate() {
                receipts.push(encode(&Receipt {
                    held: (*held).clone(),
                    index: index as u64,
                    path: tree.path(index).unwrap_or_default().to_vec(),
                    flush: flush.clone(),
                    signature,
                }));
            }
        }
        let mut receipts = receipts.into_iter();
        held.into_iter()
            .map(|of_job| {
                of_job.into_iter().map(|held| held.and_then(|_| receipts.next())).collect()
            })
            .collect()
    }
}

/// A signer behind a reference, for functions that want a sized one.
struct DynSigner<'a>(&'a (dyn Signer + Send + Sync));

impl Signer for DynSigner<'_> {
    fn public_key(&self) -> coffer_model::signing::PublicKey {
        self.0.public_key()
    }

    fn sign(
        &self,
        domain: coffer_model::signing::Domain,
        cluster: &ClusterId,
        bytes: &[u8],
    ) -> coffer_model::signing::Signature {
        self.0.sign(domain, cluster, bytes)
    }
}

#[cfg(test)]
mod tests;
