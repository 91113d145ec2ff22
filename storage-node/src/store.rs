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
//!
//! What is beyond the capacity that the node offers is refused in the same way; room for what is known
//! here already, good or damaged, has been counted before.
//!
//! A chunk that nothing needs here is forgotten by the writer, between flushes: what it has promised by
//! then counts, and what comes later is taken as something new.
//!
//! A shard that cannot be read back as it was written is quarantined: its row stays, with the promise
//! that was given for it, but it counts as absent and as missing until it is written anew and the new
//! record has been read back. **Rows are changed by the writer, and quarantined by whoever reads; both
//! under the lock `quarantines`, so that neither undoes what the other did.**

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::thread;

use bytes::Bytes;
use coffer_model::chunk::{SEALED_BYTES_MAX, SealedChunk, ShardKey};
use coffer_model::encoding::encode;
use coffer_model::id::{ChunkId, ClusterId, NodeId};
use coffer_model::merkle::Tree;
use coffer_model::receipt::{Flush, Held, RECEIPT_LEAVES_MAX, Receipt};
use coffer_model::signing::Signer;
use coffer_model::time::LogTime;
use coffer_service::telemetry::spawn_thread;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use crate::disk::{Disk, Segment, is_damage};
use crate::index::{Index, IndexBatch, IndexError, Location, Notes, Totals};
use crate::record::{
    Header, Kind, RECORD_ALIGNMENT, RECORD_HEADER_BYTES, Record, SEGMENT_HEADER_BYTES,
    segment_header,
};

mod chain;

pub(crate) use chain::Borne;

/// What may wait for the disk.
const QUEUE_BYTES: usize = 32 << 20;
/// Jobs that may wait, however small.
const QUEUE_JOBS: usize = 4096;
/// What one flush takes at most; the next one waits no longer than this takes to write.
const FLUSH_BYTES: usize = 8 << 20;
/// Records that a start indexes at once.
const RECOVERED_PER_BATCH: usize = 16_384;
/// Segments that a start sets aside. More of them are no bad sector, but a volume that somebody should
/// look at before anything on it is changed.
const ASIDE_PER_START_MAX: usize = 16;
/// What is looked through at a time for the next record that can be read.
const LOOK_BYTES: usize = 64 << 10;
/// Missing chunks that are looked at in one piece.
const MISSING_PER_LOOK: usize = if cfg!(test) { 4 } else { 4096 };
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
    /// The chunks that are kept take up what the node offers.
    #[error("this storage node's capacity is used up")]
    CapacityFull,
    /// What was written and synced is not what was read afterwards.
    #[error("this storage node's disk did not give back what was written to it")]
    NotReadBack,
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
    /// A shard is written anew, if it still stands where it was found. Nothing is promised.
    Move(SealedChunk<Bytes>, Location),
    /// What a shard is promised for is written anew. Nothing more is promised.
    Promise(ShardKey),
}

impl Item {
    fn key(&self) -> ShardKey {
        match self {
            Self::Put(chunk) | Self::Move(chunk, _) => ShardKey::replica(chunk.id()),
            Self::Extend(key) | Self::Promise(key) => *key,
        }
    }
}

type Receipts = Vec<Option<Vec<u8>>>;

struct Job {
    items: Vec<Item>,
    keep_until: LogTime,
    reply: oneshot::Sender<Result<Receipts, StoreError>>,
    room: OwnedSemaphorePermit,
}

/// What the writer is asked to do.
enum Order {
    Hold(Job),
    /// Forgets chunks that are surplus and promised no longer than until the time beside each.
    Forget(Vec<(ChunkId, LogTime)>, oneshot::Sender<Result<u64, StoreError>>),
    /// Removes a segment that holds nothing any more.
    GiveBack(u64, oneshot::Sender<Result<(), StoreError>>),
}

impl Job {
    /// Gives back the room the job took up, and then answers. A caller that went away does not want
    /// to know.
    fn answer(self, answer: Result<Receipts, StoreError>) {
        let Self { items, reply, room, .. } = self;
        drop((items, room));
        let _ = reply.send(answer);
    }
}

/// The store. Clones share it.
pub(crate) struct Store<D: Disk> {
    shared: Arc<Shared<D>>,
    orders: mpsc::Sender<Order>,
    room: Arc<Semaphore>,
}

impl<D: Disk> Clone for Store<D> {
    fn clone(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
            orders: self.orders.clone(),
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
    /// How many bytes of shards the node offers to keep.
    capacity_bytes: u64,
    totals: Mutex<Totals>,
    /// How many shards were found damaged. Whoever changes the row of a shard holds it.
    quarantines: Mutex<u64>,
    /// Reads for others that are under way.
    reading: AtomicUsize,
    /// Segments before this one are not written to any more, and all that stands in them is indexed.
    sealed_before: AtomicU64,
}

impl<D: Disk> Shared<D> {
    fn segment(&self, number: u64) -> Option<Arc<D::Segment>> {
        let segments = self.segments.read().unwrap_or_else(PoisonError::into_inner);
        segments.get(&number).cloned()
    }

    fn quarantines(&self) -> MutexGuard<'_, u64> {
        self.quarantines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A read that is under way; dropped when it is done.
struct Reading<'a>(&'a AtomicUsize);

impl<'a> Reading<'a> {
    fn begin(reading: &'a AtomicUsize) -> Self {
        reading.fetch_add(1, Ordering::Relaxed);
        Self(reading)
    }
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Who the store belongs to, and signs as.
pub(crate) struct Owner {
    pub(crate) cluster: ClusterId,
    pub(crate) node: NodeId,
    pub(crate) signer: Arc<dyn Signer + Send + Sync>,
}

/// A shard and the open segment it stands in.
struct Standing<S> {
    location: Location,
    segment: Arc<S>,
}

/// What is known of a segment that is not written to any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Usage {
    pub(crate) segment: u64,
    /// Of its records.
    pub(crate) used_bytes: u64,
    /// Of those that hold good shards.
    pub(crate) live_bytes: u64,
}

impl Usage {
    pub(crate) fn dead_bytes(&self) -> u64 {
        self.used_bytes.saturating_sub(self.live_bytes)
    }
}

/// How large things may become.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    /// Of the files chunks are kept in.
    pub(crate) segment_bytes: u64,
    /// For how long a chunk is promised.
    pub(crate) hold_ms: u64,
    /// All chunks together.
    pub(crate) capacity_bytes: u64,
}

impl<D: Disk> Store<D> {
    /// Opens the store and recovers what a crash left behind. The writer thread ends when the last
    /// clone is dropped.
    pub(crate) fn open(
        disk: D,
        index: Index,
        owner: Owner,
        sizes: Sizes,
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
        let numbers = whole_segments(&disk, &index, &owner.node)?;
        for number in index.segments()? {
            if numbers.binary_search(&number).is_err() {
                // None if it was given back and the index has not heard of it.
                let lost = index.lose(number, 0)?;
                if lost > 0 {
                    tracing::error!(segment = number, shards = lost, "a segment is gone");
                }
            }
        }
        for number in &numbers {
            let number = *number;
            let is_last = numbers.last() == Some(&number);
            let segment = disk.open(number).map_err(disk_error)?;
            let at = recover(&index, &segment, number, is_last, &mut totals)?;
            segments.insert(number, Arc::new(segment));
            end = Some((number, at));
        }
        let Sizes { segment_bytes, hold_ms, capacity_bytes } = sizes;
        let shared = Arc::new(Shared {
            index,
            capacity_bytes,
            segments: RwLock::new(segments),
            poison: Mutex::new(None),
            is_full: AtomicBool::new(false),
            totals: Mutex::new(totals),
            quarantines: Mutex::new(0),
            reading: AtomicUsize::new(0),
            sealed_before: AtomicU64::new(end.map_or(0, |(number, _)| number)),
        });
        let (orders, waiting) = mpsc::channel(QUEUE_JOBS);
        let writer = Writer {
            disk,
            shared: Arc::clone(&shared),
            owner,
            segment_bytes,
            hold_ms,
            end,
            totals,
        };
        let thread =
            spawn_thread("segment writer", move || writer.run(waiting)).map_err(disk_error)?;
        let room = Arc::new(Semaphore::new(QUEUE_BYTES));
        Ok((Self { shared, orders, room }, thread))
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
                Item::Put(chunk) | Item::Move(chunk, _) => chunk.bytes().len() + JOB_BYTES,
                Item::Extend(_) | Item::Promise(_) => JOB_BYTES,
            })
            .sum();
        let permits = u32::try_from(bytes.min(QUEUE_BYTES)).unwrap_or(u32::MAX);
        let room = Arc::clone(&self.room).acquire_many_owned(permits).await;
        let room = room.map_err(|_| StoreError::Stopping)?;
        let (reply, answer) = oneshot::channel();
        let job = Job { items, keep_until, reply, room };
        self.orders.send(Order::Hold(job)).await.map_err(|_| StoreError::Stopping)?;
        answer.await.map_err(|_| StoreError::Stopping)?
    }

    /// Forgets those of the chunks that are surplus and promised until before the time beside each; it
    /// is durable when this returns. Says how many they were.
    pub(crate) async fn forget(&self, chunks: Vec<(ChunkId, LogTime)>) -> Result<u64, StoreError> {
        if let Some(why) = self.poison() {
            return Err(StoreError::Poisoned(why));
        }
        let (reply, answer) = oneshot::channel();
        let order = Order::Forget(chunks, reply);
        self.orders.send(order).await.map_err(|_| StoreError::Stopping)?;
        answer.await.map_err(|_| StoreError::Stopping)?
    }

    /// Writes shards anew that still stand where they were found, and have to be read back before the
    /// index points to them.
    pub(crate) async fn relocate(
        &self,
        shards: Vec<(SealedChunk<Bytes>, Location)>,
    ) -> Result<(), StoreError> {
        let items = shards.into_iter().map(|(chunk, found)| Item::Move(chunk, found)).collect();
        self.submit(items, LogTime::ZERO).await.map(drop)
    }

    /// Writes anew until when shards are promised.
    pub(crate) async fn repeat_promises(&self, shards: Vec<ShardKey>) -> Result<(), StoreError> {
        let items = shards.into_iter().map(Item::Promise).collect();
        self.submit(items, LogTime::ZERO).await.map(drop)
    }

    /// Removes a segment in which nothing lies any more that is good.
    pub(crate) async fn give_back(&self, segment: u64) -> Result<(), StoreError> {
        if let Some(why) = self.poison() {
            return Err(StoreError::Poisoned(why));
        }
        let (reply, answer) = oneshot::channel();
        let order = Order::GiveBack(segment, reply);
        self.orders.send(order).await.map_err(|_| StoreError::Stopping)?;
        answer.await.map_err(|_| StoreError::Stopping)?
    }

    /// How much of each segment that is not written to any more is used, and how much of that holds
    /// good shards.
    pub(crate) fn usage(&self) -> Result<Vec<Usage>, StoreError> {
        // In this order: what is indexed later lies in later segments.
        let sealed_before = self.shared.sealed_before.load(Ordering::SeqCst);
        let live = self.index().live_bytes()?;
        let segments = self.shared.segments.read().unwrap_or_else(PoisonError::into_inner);
        let numbers: Vec<u64> = segments.range(..sealed_before).map(|(it, _)| *it).collect();
        drop(segments);
        let usage = |segment| {
            let end = self.index().indexed(segment)?.unwrap_or(SEGMENT_HEADER_BYTES);
            let live_bytes = live.get(&segment).copied().unwrap_or(0);
            Ok(Usage { segment, used_bytes: end.saturating_sub(SEGMENT_HEADER_BYTES), live_bytes })
        };
        numbers.into_iter().map(usage).collect()
    }

    /// The promises that stand in a segment and nowhere else, of shards that stand elsewhere, and that
    /// have not run out before `now`.
    pub(crate) fn promises_in(
        &self,
        segment: u64,
        now: LogTime,
    ) -> Result<Vec<ShardKey>, StoreError> {
        let Some(file) = self.shared.segment(segment) else { return Ok(Vec::new()) };
        let length = file.length().map_err(disk_error)?;
        let end = self.index().indexed(segment)?.unwrap_or(SEGMENT_HEADER_BYTES).min(length);
        let mut at = SEGMENT_HEADER_BYTES;
        let mut found = BTreeSet::new();
        while at + RECORD_HEADER_BYTES as u64 <= end {
            let header = unless_damaged(file.read(at, RECORD_HEADER_BYTES))?.unwrap_or_default();
            let record = Record::parse(&header, segment, at).map_err(|error| {
                StoreError::Damaged(format!("segment {segment}: {error}").into())
            })?;
            let Some(record) = record else {
                let next = next_record(&*file, segment, at, end)?;
                let Some(next) = next else { break };
                at = next;
                continue;
            };
            at += record.size();
            let row = self.index().location(&record.key)?;
            let is_carried = |row: &Location| {
                record.keep_until >= row.keep_until && row.keep_until >= now && !row.quarantined
            };
            if let Some(row) = row.filter(is_carried)
                && self.promise_of(&record.key, &row)? < row.keep_until
            {
                found.insert(record.key);
            }
        }
        Ok(found.into_iter().collect())
    }

    /// What the record says until when its shard is kept; nothing if it cannot be read.
    fn promise_of(&self, key: &ShardKey, location: &Location) -> Result<LogTime, StoreError> {
        let segment = self.segment_of(location)?;
        let header = unless_damaged(segment.read(location.offset, RECORD_HEADER_BYTES))?;
        let record = Record::parse(&header.unwrap_or_default(), location.segment, location.offset);
        let record = record.ok().flatten().filter(|record| record.key == *key);
        Ok(record.map_or(LogTime::ZERO, |record| record.keep_until))
    }

    /// The shard, if it still stands there and is good.
    pub(crate) fn shard_at(
        &self,
        key: &ShardKey,
        found: &Location,
    ) -> Result<Option<SealedChunk<Bytes>>, StoreError> {
        if !self.find(key)?.is_some_and(|location| location.is_record_of(found)) {
            return Ok(None);
        }
        let bytes = self.read(&key.chunk)?;
        Ok(bytes.and_then(|bytes| SealedChunk::check(key.chunk, bytes).ok()))
    }

    /// Reads a chunk and checks it. A damaged one is quarantined and counts as absent.
    pub(crate) fn read(&self, id: &ChunkId) -> Result<Option<Bytes>, StoreError> {
        let _reading = Reading::begin(&self.shared.reading);
        let key = ShardKey::replica(*id);
        let Some(Standing { location, segment }) = self.find_open(&key)? else { return Ok(None) };
        let at = location.offset + RECORD_HEADER_BYTES as u64;
        let length = usize::try_from(location.length).map_err(disk_error)?;
        let read = unless_damaged(segment.read(at, length))?;
        let chunk = read.and_then(|bytes| SealedChunk::check(*id, Bytes::from(bytes)).ok());
        if chunk.is_none() {
            self.quarantine(&key, &location)?;
        }
        Ok(chunk.map(SealedChunk::into_bytes))
    }

    /// Reads a shard back from the disk with its record, and checks both. A damaged one is
    /// quarantined. Gives how many bytes it was; none if no good copy was here before either.
    pub(crate) fn scrub(&self, key: &ShardKey) -> Result<u64, StoreError> {
        let Some(Standing { location, segment }) = self.find_open(key)? else { return Ok(0) };
        if !is_whole(&*segment, key, &location)? {
            self.quarantine(key, &location)?;
        }
        Ok(location.end() - location.offset)
    }

    /// Where a good copy of the shard lies, as far as is known.
    fn find(&self, key: &ShardKey) -> Result<Option<Location>, StoreError> {
        Ok(self.shared.index.location(key)?.filter(|location| !location.quarantined))
    }

    /// The same, with its segment. It may be moved, and its segment given back, in between.
    fn find_open(&self, key: &ShardKey) -> Result<Option<Standing<D::Segment>>, StoreError> {
        let mut before = None;
        loop {
            let Some(location) = self.find(key)? else { return Ok(None) };
            match self.segment_of(&location) {
                Ok(segment) => return Ok(Some(Standing { location, segment })),
                Err(error) if before.is_some_and(|it| location.is_record_of(&it)) => {
                    return Err(error);
                }
                Err(_) => before = Some(location),
            }
        }
    }

    fn segment_of(&self, location: &Location) -> Result<Arc<D::Segment>, StoreError> {
        let segment = self.shared.segment(location.segment);
        segment.ok_or_else(|| StoreError::Damaged("a segment is missing".into()))
    }

    /// The record was found damaged: unless the shard stands elsewhere by now, it counts as absent,
    /// and as missing, so that it is fetched again.
    fn quarantine(&self, key: &ShardKey, found: &Location) -> Result<(), StoreError> {
        let mut quarantines = self.shared.quarantines();
        // Not what was found, but what the row says now: it may promise more since.
        let standing = self.shared.index.location(key)?;
        let standing = standing.filter(|it| !it.quarantined && it.is_record_of(found));
        let Some(standing) = standing else { return Ok(()) };
        let shards = vec![(*key, Location { quarantined: true, ..standing })];
        self.shared.index.write(&IndexBatch { shards, ..IndexBatch::default() })?;
        *quarantines += 1;
        drop(quarantines);
        let (chunk, segment, offset) = (key.chunk, standing.segment, standing.offset);
        tracing::warn!(%chunk, segment, offset, "a stored chunk is damaged; it counts as missing");
        // There are few of them, so each is made to outlast a power failure.
        Ok(self.shared.index.sync()?)
    }

    /// Shards that were found damaged since the start.
    pub(crate) fn corrupt(&self) -> u64 {
        *self.shared.quarantines()
    }

    /// Whether somebody waits for the disk.
    pub(crate) fn is_busy(&self) -> bool {
        self.shared.reading.load(Ordering::Relaxed) > 0
            || self.room.available_permits() < QUEUE_BYTES
    }

    /// Takes up what members say that belongs here, and what is here beside it: what is not here is
    /// noted as missing, what belongs is not surplus, and the feed was followed up to `cursor`. Gives
    /// those that are missing, or count as such.
    pub(crate) fn take_up(
        &self,
        expected: &[ChunkId],
        surplus: &[ChunkId],
        noticed_unix_ms: u64,
        cursor: Option<u64>,
    ) -> Result<Vec<ChunkId>, StoreError> {
        // Otherwise a chunk that is quarantined meanwhile would be noted as one that never came, and
        // one that is forgotten meanwhile would not be noted at all.
        let _unchanged = self.shared.quarantines();
        let (mut absent, mut lacking) = (Vec::new(), Vec::new());
        for chunk in expected {
            if !self.has(chunk)? {
                absent.push(*chunk);
                lacking.push(*chunk);
            } else if self.index().is_missing(chunk)? {
                lacking.push(*chunk);
            }
        }
        let mut beside = Vec::with_capacity(surplus.len());
        for chunk in surplus {
            if self.index().location(&ShardKey::replica(*chunk))?.is_some() {
                beside.push(*chunk);
            }
        }
        let notes = Notes { missing: &absent, noticed_unix_ms, expected, surplus: &beside, cursor };
        self.index().note(&notes)?;
        Ok(lacking)
    }

    /// Of what is noted as missing behind `after` up to `end`, forgets what no row names. Rows made after
    /// `position` are not known to the caller: if the feed was followed beyond it, nothing is forgotten.
    pub(crate) fn need_no_more(
        &self,
        after: Option<&ChunkId>,
        end: Option<&ChunkId>,
        rows: &[ChunkId],
        position: u64,
    ) -> Result<(), StoreError> {
        let index = self.index();
        // Otherwise the feed could be followed, and chunks be quarantined, in between.
        let _unchanged = self.shared.quarantines();
        if index.cursor()? > position {
            return Ok(());
        }
        let mut from = after.copied();
        loop {
            let listed = index.missing(from.as_ref(), MISSING_PER_LOOK)?;
            let next = listed.get(MISSING_PER_LOOK - 1).map(|(chunk, _)| *chunk);
            let mut unneeded = Vec::new();
            for (chunk, _) in listed {
                let is_within =
                    after.is_none_or(|after| *after < chunk) && end.is_none_or(|end| chunk <= *end);
                let is_unneeded = is_within
                    && rows.binary_search(&chunk).is_err()
                    && index.location(&ShardKey::replica(chunk))?.is_none();
                unneeded.extend(is_unneeded.then_some(chunk));
            }
            index.forget_missing(&unneeded)?;
            let is_behind = |next: &ChunkId| end.is_some_and(|end| next >= end);
            if next.is_none_or(|next| is_behind(&next)) {
                return Ok(());
            }
            from = next;
        }
    }

    /// Reads back those of the chunks that came since they were noted as missing. What the disk gives
    /// as it should be is missing no more; says how many.
    pub(crate) fn verify_missing(&self, chunks: &[ChunkId]) -> Result<u64, StoreError> {
        for chunk in chunks {
            self.scrub(&ShardKey::replica(*chunk))?;
        }
        self.forget_missing(chunks)
    }

    /// Those of the chunks that are here are not missing any more.
    fn forget_missing(&self, chunks: &[ChunkId]) -> Result<u64, StoreError> {
        // Otherwise one that is quarantined meanwhile would never be fetched again.
        let _unchanged = self.shared.quarantines();
        let mut here = Vec::with_capacity(chunks.len());
        for chunk in chunks {
            if self.has(chunk)? {
                here.push(*chunk);
            }
        }
        self.shared.index.forget_missing(&here)?;
        Ok(here.len() as u64)
    }

    /// Whether a good copy of the chunk is here, as far as is known.
    pub(crate) fn has(&self, id: &ChunkId) -> Result<bool, StoreError> {
        Ok(self.find(&ShardKey::replica(*id))?.is_some())
    }

    pub(crate) fn index(&self) -> &Index {
        &self.shared.index
    }

    pub(crate) fn totals(&self) -> Totals {
        *self.shared.totals.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether there was no room when a segment was last wanted.
    pub(crate) fn is_full(&self) -> bool {
        self.shared.is_full.load(Ordering::Relaxed)
    }

    /// Why the store takes no writes, or not all, for people to read; none if it does.
    pub(crate) fn fault(&self) -> Option<String> {
        let poison = self.poison().map(|why| why.to_string());
        let is_full =
            || self.shared.is_full.load(Ordering::Relaxed).then(|| StoreError::Full.to_string());
        let is_at_capacity = || self.is_at_capacity().then(|| StoreError::CapacityFull.to_string());
        poison.or_else(is_full).or_else(is_at_capacity)
    }

    /// Whether a new chunk may be refused for its size alone: the largest would be.
    pub(crate) fn is_at_capacity(&self) -> bool {
        let largest = self.totals().bytes.saturating_add(SEALED_BYTES_MAX as u64);
        largest > self.shared.capacity_bytes
    }

    /// Why the store takes no writes at all until it is started again, if it does not.
    pub(crate) fn poison(&self) -> Option<Arc<str>> {
        self.shared.poison.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Runs what waits for the disk where nothing else waits for it.
pub(crate) async fn off_the_async_threads<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, StoreError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|_| StoreError::Disk("a read did not end".into()))
}

/// What was read; none if it is damaged.
fn unless_damaged(read: io::Result<Vec<u8>>) -> Result<Option<Vec<u8>>, StoreError> {
    match read {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if is_damage(&error) => Ok(None),
        Err(error) => Err(disk_error(error)),
    }
}

/// Whether the disk gives back the shard and its record as they were written.
fn is_whole<S: Segment>(
    segment: &S,
    key: &ShardKey,
    location: &Location,
) -> Result<bool, StoreError> {
    let bytes = location.end() - location.offset;
    segment.uncache(location.offset, bytes);
    let bytes = usize::try_from(bytes).map_err(disk_error)?;
    let Some(bytes) = unless_damaged(segment.read(location.offset, bytes))? else {
        return Ok(false);
    };
    let Some((header, shard)) = bytes.split_at_checked(RECORD_HEADER_BYTES) else {
        return Ok(false);
    };
    let is_record = Record::parse(header, location.segment, location.offset).is_ok_and(|record| {
        record.is_some_and(|record| {
            (record.kind, record.key, record.length) == (Kind::Shard, *key, location.length)
        })
    });
    Ok(is_record && SealedChunk::check(key.chunk, shard).is_ok())
}

/// The segments of this node, ascending. One whose header is damaged says of no record where it
/// stands; it is set aside, and its shards are fetched again.
fn whole_segments<D: Disk>(disk: &D, index: &Index, node: &NodeId) -> Result<Vec<u64>, StoreError> {
    let (mut whole, mut damaged) = (Vec::new(), Vec::new());
    for number in disk.segments().map_err(disk_error)? {
        let segment = disk.open(number).map_err(disk_error)?;
        let found = unless_damaged(segment.read(0, 64))?;
        match Header::of(&found.unwrap_or_default(), number, node) {
            Header::Ours => whole.push(number),
            Header::Damaged => damaged.push(number),
            Header::Foreign => {
                let why = format!("segment {number}: its header is not the one this node wrote");
                return Err(StoreError::Damaged(why.into()));
            }
        }
    }
    if damaged.len() > ASIDE_PER_START_MAX {
        let why = format!("the headers of {} segments are damaged", damaged.len());
        return Err(StoreError::Damaged(why.into()));
    }
    for number in damaged {
        // In this order: a segment that is gone before the index knows it is treated alike.
        let lost = index.lose(number, 0)?;
        disk.set_aside(number).map_err(disk_error)?;
        tracing::error!(
            segment = number,
            shards = lost,
            "the header of a segment is damaged; it is set aside, and its chunks are fetched again"
        );
    }
    Ok(whole)
}

/// Indexes what stands after a segment's indexed offset. Gives the end of its last record.
fn recover<S: Segment>(
    index: &Index,
    segment: &S,
    number: u64,
    is_last: bool,
    totals: &mut Totals,
) -> Result<u64, StoreError> {
    let damaged = |why: &str| StoreError::Damaged(format!("segment {number}: {why}").into());
    let length = segment.length().map_err(disk_error)?;
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
    // Then nothing but the records themselves says where the next one begins.
    let is_read_whole = at == SEGMENT_HEADER_BYTES;
    let mut fresh: BTreeMap<ShardKey, Location> = BTreeMap::new();
    while at + RECORD_HEADER_BYTES as u64 <= length {
        let header = unless_damaged(segment.read(at, RECORD_HEADER_BYTES))?;
        let is_unreadable = header.is_none();
        let header = header.unwrap_or_default();
        let record = Record::parse(&header, number, at);
        let record = record.map_err(|error| damaged(&error.to_string()))?;
        let Some(record) = record.filter(|record| at + record.size() <= length) else {
            let is_sought = is_read_whole || is_unreadable;
            let next = if is_sought { next_record(segment, number, at, length)? } else { None };
            let Some(next) = next else {
                if is_unreadable {
                    // What cannot be read is not written over: the segment ends with the file.
                    at = length;
                }
                break;
            };
            tracing::warn!(segment = number, offset = at, next, "damaged records are passed over");
            at = next;
            continue;
        };
        let standing = match fresh.get(&record.key) {
            Some(location) => Some(*location),
            None => index.location(&record.key)?,
        };
        let payload = match record.kind {
            Kind::Shard => payload(segment, &record, at)?,
            Kind::Extension => Payload::Good(Vec::new()),
        };
        let payload = match payload {
            Payload::Good(payload) => payload,
            Payload::Torn => {
                // The tail of a flush that nobody was told of, or bytes that have rotted since.
                tracing::warn!(segment = number, offset = at, "a torn record is skipped");
                at += record.size();
                continue;
            }
            Payload::Unreadable => {
                tracing::warn!(
                    chunk = %record.key.chunk,
                    segment = number,
                    offset = at,
                    "a stored chunk cannot be read; it counts as missing"
                );
                let location = location_of(&record, number, at);
                let is_elsewhere =
                    standing.is_some_and(|it| !it.quarantined && !it.is_record_of(&location));
                if !is_elsewhere {
                    if standing.is_none() {
                        totals.shards += 1;
                        totals.bytes += u64::from(record.length);
                    }
                    let keep_until = standing
                        .map_or(record.keep_until, |it| it.keep_until.max(record.keep_until));
                    let location = Location { quarantined: true, keep_until, ..location };
                    fresh.insert(record.key, location);
                }
                at += record.size();
                continue;
            }
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
            // A start that goes on in the middle would take damage behind it for the end.
            let up_to = if is_read_whole { SEGMENT_HEADER_BYTES } else { at };
            settle(index, segment, number, up_to, std::mem::take(&mut fresh), *totals)?;
        }
    }
    settle(index, segment, number, at, fresh, *totals)?;
    Ok(at)
}

/// Where the first record begins behind `at`, where none can be read. Bytes that only look like a
/// record of another version may be a shard's, which anybody can make up; they are none.
fn next_record<S: Segment>(
    segment: &S,
    number: u64,
    at: u64,
    length: u64,
) -> Result<Option<u64>, StoreError> {
    let mut from = at + RECORD_ALIGNMENT as u64;
    while from + RECORD_HEADER_BYTES as u64 <= length {
        let bytes = usize::try_from((length - from).min(LOOK_BYTES as u64)).map_err(disk_error)?;
        let block = unless_damaged(segment.read(from, bytes))?;
        let Some(block) = block else {
            // What stands in it is not here; the feed says what it was.
            from += LOOK_BYTES as u64;
            continue;
        };
        for header in block.windows(RECORD_HEADER_BYTES).step_by(RECORD_ALIGNMENT) {
            if is_record(header, number, from, length) {
                return Ok(Some(from));
            }
            from += RECORD_ALIGNMENT as u64;
        }
    }
    Ok(None)
}

fn is_record(header: &[u8], number: u64, at: u64, length: u64) -> bool {
    let record = Record::parse(header, number, at);
    record.is_ok_and(|record| record.is_some_and(|record| at + record.size() <= length))
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
    let batch = IndexBatch {
        shards,
        totals: Some(totals),
        indexed: vec![(number, at)],
        ..IndexBatch::default()
    };
    Ok(index.write(&batch)?)
}

/// What stands behind a record's header.
enum Payload {
    Good(Vec<u8>),
    /// Not the bytes of its chunk.
    Torn,
    /// The disk does not give it.
    Unreadable,
}

fn payload<S: Segment>(segment: &S, record: &Record, at: u64) -> Result<Payload, StoreError> {
    let length = usize::try_from(record.length).map_err(disk_error)?;
    let read = unless_damaged(segment.read(at + RECORD_HEADER_BYTES as u64, length))?;
    Ok(match read.map(|bytes| SealedChunk::check(record.key.chunk, bytes)) {
        Some(Ok(chunk)) => Payload::Good(chunk.into_bytes()),
        Some(Err(_)) => Payload::Torn,
        None => Payload::Unreadable,
    })
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

/// What one flush takes of what waits: jobs up to a size. Something else that comes between them is
/// given back.
fn gather(first: Job, waiting: &mut mpsc::Receiver<Order>) -> (Vec<Job>, Option<Order>) {
    let mut jobs = vec![first];
    let mut bytes = 0;
    while bytes < FLUSH_BYTES {
        match waiting.try_recv() {
            Ok(Order::Hold(job)) => {
                bytes += job.room.num_permits();
                jobs.push(job);
            }
            Ok(other) => return (jobs, Some(other)),
            Err(_) => break,
        }
    }
    (jobs, None)
}

fn refuse(order: Order, why: &Arc<str>) {
    let refusal = StoreError::Poisoned(Arc::clone(why));
    match order {
        Order::Hold(job) => job.answer(Err(refusal)),
        Order::Forget(_, reply) => drop(reply.send(Err(refusal))),
        Order::GiveBack(_, reply) => drop(reply.send(Err(refusal))),
    }
}

struct Writer<D: Disk> {
    disk: D,
    shared: Arc<Shared<D>>,
    owner: Owner,
    segment_bytes: u64,
    hold_ms: u64,
    /// The segment that is written to, and where.
    end: Option<(u64, u64)>,
    totals: Totals,
}

/// Why an item was not taken.
#[derive(Debug)]
enum FlushError {
    /// There is no room for another segment. Nothing is in doubt.
    Full,
    /// The chunk would be more than the node offers. Nothing is in doubt.
    CapacityFull,
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
    /// Those of the batch that are quarantined until now, or stood elsewhere: they count when they were
    /// read back.
    mending: BTreeSet<ShardKey>,
    indexed: Vec<(u64, u64)>,
}

/// What will be held for one job, in the order of its items; or why nothing.
type Taken = Result<Vec<Option<Held>>, StoreError>;

impl<D: Disk> Writer<D> {
    fn run(mut self, mut waiting: mpsc::Receiver<Order>) {
        let mut next = None;
        while let Some(order) = next.take().or_else(|| waiting.blocking_recv()) {
            match order {
                Order::Hold(first) => {
                    let jobs;
                    (jobs, next) = gather(first, &mut waiting);
                    if let Err(why) = self.hold(jobs) {
                        next.into_iter().for_each(|order| refuse(order, &why));
                        waiting.close();
                        while let Some(order) = waiting.blocking_recv() {
                            refuse(order, &why);
                        }
                        break;
                    }
                }
                Order::Forget(chunks, reply) => {
                    // Who went away does not want to know.
                    let _ = reply.send(self.forget(&chunks));
                }
                Order::GiveBack(segment, reply) => {
                    let _ = reply.send(self.give_back(segment));
                }
            }
        }
        if let Err(error) = self.shared.index.sync() {
            tracing::warn!(%error, "the index could not be synced; the next start reads more");
        }
    }

    /// Flushes jobs and answers them; if that fails, the store is poisoned.
    fn hold(&mut self, jobs: Vec<Job>) -> Result<(), Arc<str>> {
        match self.flush(&jobs) {
            Ok(receipts) => {
                for (job, receipts) in jobs.into_iter().zip(receipts) {
                    job.answer(receipts);
                }
                Ok(())
            }
            Err(why) => {
                let why: Arc<str> = why.into();
                tracing::error!(%why, "the disk failed; no writes are taken any more");
                let mut poison = self.shared.poison.lock().unwrap_or_else(PoisonError::into_inner);
                *poison = Some(Arc::clone(&why));
                drop(poison);
                for job in jobs {
                    job.answer(Err(StoreError::Poisoned(Arc::clone(&why))));
                }
                Err(why)
            }
        }
    }

    /// Removes a segment from which everything was moved.
    fn give_back(&self, number: u64) -> Result<(), StoreError> {
        // Only then does the index not point to it after a power failure.
        self.shared.index.sync()?;
        self.disk.remove(number).map_err(disk_error)?;
        let mut segments = self.shared.segments.write().unwrap_or_else(PoisonError::into_inner);
        segments.remove(&number);
        drop(segments);
        // A start that finds it still known finds no shard that should lie there.
        Ok(self.shared.index.remove_segment(number)?)
    }

    /// Forgets chunks. Every receipt was given by this thread, so that none is given meanwhile.
    fn forget(&mut self, chunks: &[(ChunkId, LogTime)]) -> Result<u64, StoreError> {
        let index = &self.shared.index;
        // Otherwise the feed could name one that is counted as here, and is not in a moment.
        let unchanged = self.shared.quarantines();
        let mut totals = self.totals;
        let mut forgotten = Vec::new();
        for (chunk, released) in chunks {
            let key = ShardKey::replica(*chunk);
            let Some(location) = index.location(&key)? else { continue };
            if location.keep_until >= *released || !index.is_surplus(chunk)? {
                continue;
            }
            totals.shards = totals.shards.saturating_sub(1);
            totals.bytes = totals.bytes.saturating_sub(u64::from(location.length));
            forgotten.push(key);
        }
        let count = forgotten.len() as u64;
        index.write(&IndexBatch { forgotten, totals: Some(totals), ..IndexBatch::default() })?;
        drop(unchanged);
        self.totals = totals;
        *self.shared.totals.lock().unwrap_or_else(PoisonError::into_inner) = totals;
        index.sync()?;
        Ok(count)
    }

    /// Appends what is new, makes it durable, indexes it, and only then makes receipts: none for a
    /// job that was refused.
    fn flush(&mut self, jobs: &[Job]) -> Result<Vec<Result<Receipts, StoreError>>, String> {
        let quarantines = *self.shared.quarantines();
        let mut pending = Pending::default();
        let mut taken: Vec<Taken> = Vec::with_capacity(jobs.len());
        let mut totals = self.totals;
        for job in jobs {
            match self.take_all(job, &mut pending, &mut totals) {
                Ok(of_job) => taken.push(Ok(of_job)),
                // What was taken of it before is kept, and nobody is told.
                Err(FlushError::Full) => taken.push(Err(StoreError::Full)),
                Err(FlushError::CapacityFull) => taken.push(Err(StoreError::CapacityFull)),
                Err(FlushError::Failed(why)) => return Err(why),
            }
        }
        self.write_out(&mut pending)?;
        for key in self.not_read_back(&pending) {
            // It stays in quarantine, and where it was.
            pending.batch.remove(&key);
            pending.mending.remove(&key);
            for of_job in &mut taken {
                let is_in = |held: &[Option<Held>]| held.iter().flatten().any(|it| it.shard == key);
                if of_job.as_ref().is_ok_and(|held| is_in(held)) {
                    *of_job = Err(StoreError::NotReadBack);
                }
            }
        }
        if !pending.indexed.is_empty() {
            self.commit(pending, quarantines, totals)?;
        }
        self.totals = totals;
        *self.shared.totals.lock().unwrap_or_else(PoisonError::into_inner) = totals;
        let (end, _) = self.end.unwrap_or_default();
        // Not earlier: what a segment got last is indexed only now.
        self.shared.sealed_before.store(end, Ordering::SeqCst);
        Ok(self.sign(taken))
    }

    /// Of those that are quarantined until now, and were written anew, the ones that the disk does not
    /// give back.
    fn not_read_back(&self, pending: &Pending) -> Vec<ShardKey> {
        let mut damaged = Vec::new();
        for key in &pending.mending {
            let Some(location) = pending.batch.get(key) else { continue };
            let segment = self.shared.segment(location.segment);
            let read_back = segment.map(|segment| is_whole(&*segment, key, location));
            if !matches!(read_back, Some(Ok(true))) {
                tracing::warn!(
                    chunk = %key.chunk,
                    segment = location.segment,
                    offset = location.offset,
                    "a chunk was written anew and cannot be read back; it still counts as missing"
                );
                damaged.push(*key);
            }
        }
        damaged
    }

    /// Indexes what was written. `quarantines` is how many there were when its rows were read.
    fn commit(&self, mut pending: Pending, quarantines: u64, totals: Totals) -> Result<(), String> {
        let current = self.shared.quarantines();
        if *current != quarantines {
            // What was found damaged since, and is only promised for longer here, stays quarantined.
            for (key, location) in &mut pending.batch {
                let standing =
                    self.shared.index.location(key).map_err(|error| error.to_string())?;
                location.quarantined = !pending.mending.contains(key)
                    && standing.is_some_and(|it| it.quarantined && it.is_record_of(location));
            }
        }
        let batch = IndexBatch {
            shards: pending.batch.into_iter().collect(),
            mended: pending.mending.iter().map(|key| key.chunk).collect(),
            totals: Some(totals),
            indexed: pending.indexed,
            ..IndexBatch::default()
        };
        self.shared.index.write(&batch).map_err(|error| error.to_string())
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
            (Some(location), Item::Move(chunk, found)) => {
                if !location.is_record_of(found) {
                    return Ok(None);
                }
                let Location { length, keep_until, .. } = location;
                (Record { kind: Kind::Shard, key, length, keep_until }, chunk.bytes())
            }
            (Some(location), Item::Promise(_)) => {
                let Location { length, keep_until, .. } = location;
                (Record { kind: Kind::Extension, key, length, keep_until }, &[])
            }
            (Some(location), Item::Put(_) | Item::Extend(_)) => {
                // What is promised for a good while longer need not be promised anew.
                if location.keep_until.plus_ms(self.hold_ms / 2) >= keep_until {
                    let (length, keep_until) = (location.length, location.keep_until);
                    return Ok(Some(Held { shard: key, length, keep_until }));
                }
                let length = location.length;
                (Record { kind: Kind::Extension, key, length, keep_until }, &[])
            }
            (None, Item::Put(chunk)) => {
                let length = u32::try_from(chunk.bytes().len()).map_err(failed)?;
                let total = totals.bytes.saturating_add(u64::from(length));
                if standing.is_none() && total > self.shared.capacity_bytes {
                    return Err(FlushError::CapacityFull);
                }
                // What is damaged may have been promised for longer.
                let keep_until = standing.map_or(keep_until, |it| it.keep_until.max(keep_until));
                (Record { kind: Kind::Shard, key, length, keep_until }, chunk.bytes())
            }
            (None, Item::Extend(_) | Item::Move(..) | Item::Promise(_)) => return Ok(None),
        };
        let (segment, offset) = self.append(&record, bytes, pending)?;
        let location = match (good, record.kind) {
            (Some(location), Kind::Extension) => {
                Location { keep_until: record.keep_until, ..location }
            }
            _ => {
                if standing.is_some() {
                    pending.mending.insert(key);
                } else {
                    totals.shards += 1;
                    totals.bytes += u64::from(record.length);
                }
                location_of(&record, segment, offset)
            }
        };
        pending.batch.insert(key, location);
        if matches!(item, Item::Move(..) | Item::Promise(_)) {
            return Ok(None);
        }
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
        let segment = self.shared.segment(number).ok_or("the current segment is not open")?;
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

    /// One signature for all that is held.
    fn sign(&self, taken: Vec<Taken>) -> Vec<Result<Receipts, StoreError>> {
        let all: Vec<&Held> = taken.iter().flatten().flatten().flatten().collect();
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
        taken
            .into_iter()
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
