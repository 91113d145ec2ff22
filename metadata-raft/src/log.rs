//! The Raft log and the vote, for openraft. Nothing is acknowledged before it is synced, and no entry is
//! removed before what it led to is applied and durable.

// openraft's errors are large, and rare.
#![allow(clippy::result_large_err)]

use std::fmt::Debug;
use std::ops::{Bound, RangeBounds};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use openraft::storage::{LogFlushed, RaftLogStorage};
use openraft::{AnyError, LogState, OptionalSend, RaftLogReader, StorageIOError};
use rocksdb::WriteBatch;

use crate::codec::{
    decode_entry, decode_log_id, decode_vote, encode_entry, encode_log_id, encode_vote,
};
#[cfg(test)]
use crate::member::simulation::{Flaw, flawed};
use crate::raft::{Entry, LogId, StorageError, TypeConfig, Vote};
use crate::store::{LogExtent, Meta, Store, StoreError, Sync};
use crate::threads;
use crate::truncation::{LogPolicy, LogSizes};

/// Entries one append carries to a peer: what one message takes, with room for what stands around
/// them.
const APPEND_BYTES_MAX: usize = 4 << 20;

/// The log of one member. Clones are the same log.
#[derive(Clone, Debug)]
pub(crate) struct LogStore {
    store: Arc<Store>,
    sizes: Arc<Mutex<LogSizes>>,
}

impl LogStore {
    pub(crate) fn new(store: Arc<Store>) -> Result<Self, StoreError> {
        let sizes = match store.log_extent()? {
            Some(LogExtent { first, last, bytes }) => LogSizes::estimated(first, last, bytes),
            None => LogSizes::default(),
        };
        Ok(Self { store, sizes: Arc::new(Mutex::new(sizes)) })
    }

    /// Up to where entries are to be removed, if there are too many.
    pub(crate) fn cut(&self, applied: u64, policy: &LogPolicy) -> Option<u64> {
        self.sizes().cut(applied, policy)
    }

    fn sizes(&self) -> MutexGuard<'_, LogSizes> {
        // They are estimates at worst.
        self.sizes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Removes entries from the beginning of the log, whatever of them is applied.
    pub(crate) async fn remove_upto(&self, log_id: LogId) -> Result<(), StorageError> {
        self.write(Sync::Now, move |store, batch| {
            store.put_meta(batch, Meta::Purged, &encode_log_id(Some(&log_id)));
            store.remove_entries(batch, 0, log_id.index.saturating_add(1));
        })
        .await?;
        self.sizes().purged(log_id.index);
        Ok(())
    }

    async fn entries(
        &self,
        from: u64,
        to: u64,
        bytes_max: usize,
    ) -> Result<Vec<Entry>, StorageError> {
        let store = Arc::clone(&self.store);
        let read = move || {
            let entries = store.entries(from, to, bytes_max).map_err(read_error)?;
            entries
                .into_iter()
                .map(|bytes| decode_entry(bytes).map_err(|error| reading(&error)))
                .collect()
        };
        blocking(read).await
    }

    async fn write(
        &self,
        sync: Sync,
        fill: impl FnOnce(&Store, &mut WriteBatch) + Send + 'static,
    ) -> Result<(), StorageError> {
        let store = Arc::clone(&self.store);
        blocking(move || {
            let mut batch = WriteBatch::default();
            fill(&store, &mut batch);
            store.write(batch, sync).map_err(write_error)
        })
        .await
    }
}

/// Runs work that may wait for the disk off the async threads.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StorageError> + Send + 'static,
) -> Result<T, StorageError> {
    match threads::blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(StorageIOError::write(AnyError::new(&error)).into()),
    }
}

pub(crate) fn read_error(error: StoreError) -> StorageError {
    reading(&error)
}

fn reading(error: &(impl std::error::Error + 'static)) -> StorageError {
    StorageIOError::read_logs(AnyError::new(error)).into()
}

pub(crate) fn write_error(error: StoreError) -> StorageError {
    StorageIOError::write_logs(AnyError::new(&error)).into()
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, StorageError> {
        let from = match range.start_bound() {
            Bound::Included(index) => *index,
            Bound::Excluded(index) => index.saturating_add(1),
            Bound::Unbounded => 0,
        };
        let to = match range.end_bound() {
            Bound::Included(index) => index.saturating_add(1),
            Bound::Excluded(index) => *index,
            Bound::Unbounded => u64::MAX,
        };
        self.entries(from, to, usize::MAX).await
    }

    async fn limited_get_log_entries(
        &mut self,
        start: u64,
        end: u64,
    ) -> Result<Vec<Entry>, StorageError> {
        self.entries(start, end, APPEND_BYTES_MAX).await
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, StorageError> {
        let store = Arc::clone(&self.store);
        blocking(move || {
            let purged = store.meta(Meta::Purged, decode_log_id).map_err(read_error)?.flatten();
            let last = store.last_entry().map_err(read_error)?;
            let last = last.map(decode_entry).transpose().map_err(|error| reading(&error))?;
            Ok(LogState {
                last_purged_log_id: purged,
                last_log_id: last.map(|entry| entry.log_id).or(purged),
            })
        })
        .await
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), StorageError> {
        let vote = encode_vote(vote);
        self.write(Sync::Now, move |store, batch| store.put_meta(batch, Meta::Vote, &vote)).await
    }

    /// The vote as it counts after a start: whom this member voted for, and that nobody leads by it.
    ///
    /// openraft has a member that led when it ended lead on at once, in the same term, and takes what
    /// that member knows to be committed for the point up to which reads have to be answered. But how
    /// far it had committed need not have been durable: it would answer reads from before changes that
    /// it had acknowledged. Who is elected again commits an entry of its new term before it answers.
    async fn read_vote(&mut self) -> Result<Option<Vote>, StorageError> {
        let store = Arc::clone(&self.store);
        let vote =
            blocking(move || store.meta(Meta::Vote, decode_vote).map_err(read_error)).await?;
        Ok(vote.map(|vote| Vote { committed: false, ..vote }))
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), StorageError> {
        // Only a hint that saves waiting for a leader after a restart, so it need not be synced.
        let id = encode_log_id(committed.as_ref());
        self.write(Sync::Later, move |store, batch| store.put_meta(batch, Meta::Committed, &id))
            .await
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, StorageError> {
        let store = Arc::clone(&self.store);
        blocking(move || {
            store.meta(Meta::Committed, decode_log_id).map(Option::flatten).map_err(read_error)
        })
        .await
    }

    async fn append<I>(
        &mut self,
        entries: I,
        callback: LogFlushed<TypeConfig>,
    ) -> Result<(), StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<Entry> = entries.into_iter().collect();
        let sizes = Arc::clone(&self.sizes);
        let sync = Sync::Now;
        #[cfg(test)]
        let sync = if flawed(Flaw::AcknowledgesTooEarly) { Sync::Later } else { sync };
        // The commit point of an append is the synced write: only then the callback says so.
        let written = self
            .write(sync, move |store, batch| {
                let mut sizes = sizes.lock().unwrap_or_else(PoisonError::into_inner);
                for entry in &entries {
                    let bytes = encode_entry(entry);
                    store.put_entry(batch, entry.log_id.index, &bytes);
                    sizes.appended(entry.log_id.index, bytes.len() as u64);
                }
            })
            .await;
        match written {
            Ok(()) => {
                callback.log_io_completed(Ok(()));
                Ok(())
            }
            Err(error) => {
                callback.log_io_completed(Err(std::io::Error::other(error.to_string())));
                Err(error)
            }
        }
    }

    async fn truncate(&mut self, log_id: LogId) -> Result<(), StorageError> {
        self.write(Sync::Now, move |store, batch| {
            store.remove_entries(batch, log_id.index, u64::MAX);
        })
        .await?;
        self.sizes().truncated(log_id.index);
        Ok(())
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), StorageError> {
        // openraft says this as soon as it has handed a snapshot to the state machine, which may not
        // have installed it yet. Entries that were gone by then would be lost in a crash, and those
        // that came after them would stand behind a hole.
        self.store.applied_upto(log_id.index).await.map_err(write_error)?;
        // What is applied was written before this removal into the same write-ahead log, or was durable
        // before it: if the removal survives a crash, the state does too.
        self.remove_upto(log_id).await
    }
}
