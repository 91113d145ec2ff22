//! The store: chunks in append-only segments, written by one thread.
//!
//! Writers queue up; the thread takes what waits, appends it, syncs once, indexes it, signs one
//! Merkle root over all of it, and answers everybody with their receipt. **A shard is here from the
//! moment the sync has returned.** A start reads what segments hold beyond their indexed offset and
//! goes on after the last good record: the first start and the one after a crash do the same.
//!
//! A write or sync that failed poisons the store: nobody knows what the disk kept, so it refuses
//! further writes until it is started again. Reads go on. A disk that is full is no such failure: what
//! found no room is refused, and nothing is in doubt.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
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
/// Records that a start indexes at once.
const RECOVERED_PER_BATCH: usize = 16_384;
/// Room that a job takes up beyond its bytes.
const JOB_BYTES: usize = 256;

/// Why the store did not do what it was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum StoreError {
    /// An earlier write failed.
    #[error("this storage node's disk failed and it takes no writes until it is restarted: {0}")]
    Poisoned(Arc<str>),
    /// There is no room for another segment.
    #[error("this storage node's disk is full")]
    Full,
    /// The store is stopping.
    #[error("this storage node is stopping")]
    Stopping,
    /// The disk failed, or the index on it, and no write is in doubt.
    #[error("the disk failed: {0}")]
    Disk(Arc<str>),
    /// The folder does not hold what it should.
    #[error("the chunk store is damaged: {0}")]
    Damaged(Arc<str>),
}

fn disk_error(error: impl std::fmt::Display) -> StoreError {
    StoreError::Disk(error.to_string().into())
}

impl From<IndexError> for StoreError {
    fn from(error: IndexError) -> Self {
        disk_error(error)
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
    /// There was no room when a segment was last wanted.
    is_full: AtomicBool,
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
        let numbers = disk.segments().map_err(disk_error)?;
        for number in index.segments()? {
            if numbers.binary_search(&number).is_err() {
                let lost = index.lose(number, 0)?;
                tracing::error!(segment = number, shards = lost, "a segment is gone");
            }
        }
        for number in &numbers {
            let number = *number;
            let is_last = numbers.last() == Some(&number);
            let segment = disk.open(number).map_err(disk_error)?;
            let at = recover(&index, &segment, number, is_last, &owner.node, &mut totals)?;
            segments.insert(number, Arc::new(segment));
            end = Some((number, at));
        }
        let shared = Arc::new(Shared {
            index,
            segments: RwLock::new(segments),
            poison: Mutex::new(None),
            is_full: AtomicBool::new(false),
            totals: Mutex::new(totals),
        });
        let (jobs, waiting) = mpsc::channel(QUEUE_JOBS);
        let writer =
            Writer { disk, shared: Arc::clone(&shared), owner, segment_bytes, end, totals };
        let thread = thread::Builder::new()
            .name("segment writer".to_owned())
            .spawn(move || writer.run(waiting))
            .map_err(disk_error)?;
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
        let length = usize::try_from(location.length).map_err(disk_error)?;
        let checked = match segment.read(at, length) {
            Ok(bytes) => SealedChunk::check(*id, Bytes::from(bytes)).ok(),
            // The file has lost its end: that is damage, and not a disk that cannot be read.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => None,
            Err(error) => return Err(disk_error(error)),
        };
        match checked {
            Some(chunk) => Ok(Some(chunk.into_bytes())),
            None => {
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

    /// Why the store takes no writes, or not all, for people to read; none if it does.
    pub(crate) fn fault(&self) -> Option<String> {
        let poison = self.poison().map(|why| why.to_string());
        poison.or_else(|| {
            self.shared.is_full.load(Ordering::Relaxed).then(|| StoreError::Full.to_string())
        })
    }

    /// Why the store takes no writes at all until it is started again, if it does not.
    pub(crate) fn poison(&self) -> Option<Arc<str>> {
        self.shared.poison.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Checks a segment's header and indexes what stands after its indexed offset. Gives the end of its
/// last record.
fn recover<S: Segment>(
    index: &Index,
    segment: &S,
    number: u64,
    is_last: bool,
    node: &NodeId,
    totals: &mut Totals,
) -> Result<u64, StoreError> {
    let damaged = |why: &str| StoreError::Damaged(format!("segment {number}: {why}").into());
    let length = segment.length().map_err(disk_error)?;
    let header = segment_header(number, node);
    if length < SEGMENT_HEADER_BYTES || segment.read(0, 64).map_err(disk_error)? != header {
        return Err(damaged("its header is not the one this node wrote"));
    }
    let mut at = match index.indexed(number)? {
        Some(indexed) if indexed <= length => indexed,
        Some(indexed) => {
            let lost = index.lose(number, length)?;
            tracing::error!(
                segment = number,
                indexed,
                length,
                shards = lost,
                "a segment has lost its end"
            );
            SEGMENT_HEADER_BYTES
        }
        None => SEGMENT_HEADER_BYTES,
    };
    let mut fresh: BTreeMap<ShardKey, Location> = BTreeMap::new();
    while at + RECORD_HEADER_BYTES as u64 <= length {
        let header = segment.read(at, RECORD_HEADER_BYTES).map_err(disk_error)?;
        let record = Record::parse(&header, number, at);
        let record = record.map_err(|error| damaged(&error.to_string()))?;
        let Some(record) = record.filter(|record| at + record.size() <= length) else { break };
        let standing = match fresh.get(&record.key) {
            Some(location) => Some(*location),
            None => index.location(&record.key)?,
        };
        let payload = match record.kind {
            Kind::Shard => good_payload(segment, &record, at).map_err(disk_error)?,
            Kind::Extension => Some(Vec::new()),
        };
        let Some(payload) = payload else {
            // The tail of a flush that nobody was told of, or bytes that have rotted since.
            tracing::warn!(segment = number, offset = at, "a torn record is skipped");
            at += record.size();
            continue;
        };
        if is_last {
            // It may stand in the system's cache only, even after a sync, if that one failed: what
            // is not written again would then not be synced again either.
            segment.write(at, &header).map_err(disk_error)?;
            segment.write(at + RECORD_HEADER_BYTES as u64, &payload).map_err(disk_error)?;
        }
        let keep_until =
            standing.map_or(record.keep_until, |it| it.keep_until.max(record.keep_until));
        match (record.kind, standing) {
            (Kind::Shard, _) => {
                if standing.is_none() {
                    totals.shards += 1;
                    totals.bytes += u64::from(record.length);
                }
                let location = location_of(&record, number, at);
                fresh.insert(record.key, Location { keep_until, ..location });
            }
            (Kind::Extension, Some(location)) => {
                fresh.insert(record.key, Location { keep_until, ..location });
            }
            (Kind::Extension, None) => {}
        }
        at += record.size();
        if fresh.len() >= RECOVERED_PER_BATCH {
            settle(index, segment, number, at, std::mem::take(&mut fresh), *totals)?;
        }
    }
    settle(index, segment, number, at, fresh, *totals)?;
    Ok(at)
}

/// Makes what a start has read durable, and then indexes it.
fn settle<S: Segment>(
    index: &Index,
    segment: &S,
    number: u64,
    at: u64,
    fresh: BTreeMap<ShardKey, Location>,
    totals: Totals,
) -> Result<(), StoreError> {
    if !fresh.is_empty() {
        segment.sync().map_err(disk_error)?;
    }
    let shards = fresh.into_iter().collect();
    let batch = IndexBatch { shards, totals: Some(totals), indexed: vec![(number, at)] };
    Ok(index.write(&batch)?)
}

/// The bytes behind a record's header, if they are those of its chunk.
fn good_payload<S: Segment>(segment: &S, record: &Record, at: u64) -> io::Result<Option<Vec<u8>>> {
    let length = usize::try_from(record.length).map_err(io::Error::other)?;
    let bytes = segment.read(at + RECORD_HEADER_BYTES as u64, length)?;
    Ok(SealedChunk::check(record.key.chunk, bytes).ok().map(SealedChunk::into_bytes))
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

/// Why an item was not taken.
#[derive(Debug)]
enum FlushError {
    /// There is no room for another segment. Nothing is in doubt.
    Full,
    /// The disk failed, and nobody knows what it kept.
    Failed(String),
}

fn failed(error: impl std::fmt::Display) -> FlushError {
    FlushError::Failed(error.to_string())
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
                        let _ = job.reply.send(receipts.ok_or(StoreError::Full));
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

    /// Appends what is new, makes it durable, indexes it, and only then makes receipts: none for a
    /// job that found no room.
    fn flush(&mut self, jobs: &[Job]) -> Result<Vec<Option<Receipts>>, String> {
        let mut pending = Pending::default();
        let mut held: Vec<Option<Vec<Option<Held>>>> = Vec::with_capacity(jobs.len());
        let mut totals = self.totals;
        for job in jobs {
            match self.take_all(job, &mut pending, &mut totals) {
                Ok(of_job) => held.push(Some(of_job)),
                // What was taken of it before is kept, and nobody is told.
                Err(FlushError::Full) => held.push(None),
                Err(FlushError::Failed(why)) => return Err(why),
            }
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

    fn take_all(
        &mut self,
        job: &Job,
        pending: &mut Pending,
        totals: &mut Totals,
    ) -> Result<Vec<Option<Held>>, FlushError> {
        let items = job.items.iter();
        items.map(|item| self.take(item, job.keep_until, pending, totals)).collect()
    }

    /// Puts one item into what is pending, and says what will be held once that is durable.
    fn take(
        &mut self,
        item: &Item,
        keep_until: LogTime,
        pending: &mut Pending,
        totals: &mut Totals,
    ) -> Result<Option<Held>, FlushError> {
        let key = item.key();
        let standing = match pending.batch.get(&key) {
            Some(location) => Some(*location),
            None => self.shared.index.location(&key).map_err(failed)?,
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
                let length = u32::try_from(chunk.bytes().len()).map_err(failed)?;
                // What is damaged may have been promised for longer.
                let keep_until = standing.map_or(keep_until, |it| it.keep_until.max(keep_until));
                (Record { kind: Kind::Shard, key, length, keep_until }, chunk.bytes())
            }
            (None, Item::Extend(_)) => return Ok(None),
        };
        let (segment, offset) = self.append(&record, bytes, pending)?;
        let location = match good {
            Some(location) => Location { keep_until: record.keep_until, ..location },
            None => {
                if standing.is_none() {
                    totals.shards += 1;
                    totals.bytes += u64::from(record.length);
                }
                location_of(&record, segment, offset)
            }
        };
        pending.batch.insert(key, location);
        Ok(Some(Held { shard: key, length: record.length, keep_until: record.keep_until }))
    }

    fn append(
        &mut self,
        record: &Record,
        bytes: &[u8],
        pending: &mut Pending,
    ) -> Result<(u64, u64), FlushError> {
        let fits = self.end.is_some_and(|(_, at)| at + record.size() <= self.segment_bytes);
        if !fits {
            self.write_out(pending).map_err(FlushError::Failed)?;
            self.next_segment()?;
        }
        let (segment, offset) = self.end.ok_or_else(|| failed("there is no segment"))?;
        if pending.buffer.is_empty() {
            pending.start = offset;
        }
        let begin = pending.buffer.len();
        pending.buffer.extend_from_slice(&record.header(segment, offset));
        pending.buffer.extend_from_slice(bytes);
        let size = usize::try_from(record.size()).map_err(failed)?;
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

    fn next_segment(&mut self) -> Result<(), FlushError> {
        let number = self.end.map_or(0, |(number, _)| number + 1);
        let header = segment_header(number, &self.owner.node);
        let made = self.disk.create(number, self.segment_bytes, &header);
        let segment = made.map_err(|error| match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                if !self.shared.is_full.swap(true, Ordering::Relaxed) {
                    tracing::error!("the disk is full; chunks are refused");
                }
                FlushError::Full
            }
            _ => failed(error),
        })?;
        self.shared.is_full.store(false, Ordering::Relaxed);
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
    fn sign(&self, held: Vec<Option<Vec<Option<Held>>>>) -> Vec<Option<Receipts>> {
        let all: Vec<&Held> = held.iter().flatten().flatten().flatten().collect();
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
                let receipt = |held: Option<Held>| held.and_then(|_| receipts.next());
                of_job.map(|of_job| of_job.into_iter().map(receipt).collect())
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
#[cfg(test)]
pub(crate) use tests::platter;
