//! The state machine, for openraft: prepares the commands of committed entries on many threads,
//! applies them one after the other, and writes the changes with the position in one go.

// openraft's errors are large, and rare.
#![allow(clippy::result_large_err)]

use std::collections::{HashMap, VecDeque};
use std::io::Cursor;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use coffer_metadata_core::{Command, Overlay, Prepared, Reply, apply};
use coffer_model::bundle::submission_hash;
use coffer_model::hash::Hash;
use coffer_model::id::ClusterId;
use openraft::storage::{RaftStateMachine, Snapshot};
use openraft::{
    AnyError, EntryPayload, OptionalSend, RaftSnapshotBuilder, SnapshotMeta, StorageIOError,
};
use rocksdb::WriteBatch;

use crate::codec::{decode_log_id, decode_membership, encode_log_id, encode_membership};
use crate::log::{blocking, read_error, write_error};
use crate::raft::{Entry, LogId, Replies, StorageError, StoredMembership, TypeConfig};
use crate::store::{Meta, Store, Sync};

/// Prepared submissions that wait for their entry to be applied, by the bytes they were made of.
const PREPARED_BYTES_MAX: usize = 64 << 20;
/// How many names of submissions that are gone the cache tolerates beyond those of what it holds.
const PREPARED_NAMES_SPARE: usize = 1024;
/// Preparing fewer commands than this on another thread costs more than it saves.
const PREPARED_PER_THREAD_MIN: usize = 4;

/// Submissions that were prepared at the door, so that applying them here does not check the
/// signature again. Bounded; what falls out is merely prepared again.
#[derive(Debug, Default)]
pub(crate) struct PreparedCache(Mutex<CacheState>);

#[derive(Debug, Default)]
struct CacheState {
    prepared: HashMap<Hash, (Prepared, usize)>,
    order: VecDeque<Hash>,
    bytes: usize,
}

impl PreparedCache {
    /// Keeps what the submission with these bytes was prepared to.
    pub(crate) fn insert(&self, submission: &[u8], prepared: Prepared) {
        let hash = submission_hash(submission);
        let mut state = self.lock();
        if state.prepared.contains_key(&hash) {
            return;
        }
        state.bytes += submission.len();
        state.prepared.insert(hash, (prepared, submission.len()));
        state.order.push_back(hash);
        while state.bytes > PREPARED_BYTES_MAX {
            let Some(oldest) = state.order.pop_front() else { return };
            if let Some((_, bytes)) = state.prepared.remove(&oldest) {
                state.bytes -= bytes;
            }
        }
    }

    fn take(&self, submission: &[u8]) -> Option<Prepared> {
        if self.lock().prepared.is_empty() {
            return None;
        }
        let hash = submission_hash(submission);
        let mut state = self.lock();
        let (prepared, bytes) = state.prepared.remove(&hash)?;
        state.bytes -= bytes;
        // The list also holds names of what was taken; it is cleaned before they are the most of it.
        if state.order.len() > 2 * state.prepared.len() + PREPARED_NAMES_SPARE {
            let CacheState { prepared, order, .. } = &mut *state;
            order.retain(|hash| prepared.contains_key(hash));
        }
        Some(prepared)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, CacheState> {
        // Losing entries is harmless, so a panic elsewhere does not matter.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The state machine of one member.
#[derive(Debug)]
pub(crate) struct Machine {
    store: Arc<Store>,
    cluster: ClusterId,
    prepared: Arc<PreparedCache>,
}

impl Machine {
    pub(crate) const fn new(
        store: Arc<Store>,
        cluster: ClusterId,
        prepared: Arc<PreparedCache>,
    ) -> Self {
        Self { store, cluster, prepared }
    }
}

/// Applies entries to the store. One entry may hold many commands; all entries go in one write.
fn apply_entries(
    store: &Store,
    cluster: &ClusterId,
    cache: &PreparedCache,
    entries: Vec<Entry>,
) -> Result<Vec<Replies>, StorageError> {
    let mut batch = WriteBatch::default();
    let mut commands: Vec<Command> = Vec::new();
    // How many of the commands belong to each entry.
    let mut counts = Vec::with_capacity(entries.len());
    let mut last = None;
    for entry in entries {
        let Entry { log_id, payload } = entry;
        last = Some(log_id);
        let before = commands.len();
        match payload {
            EntryPayload::Blank => {}
            EntryPayload::Normal(proposal) => match proposal.commands() {
                Ok(more) => commands.extend(more),
                // Every replica meets the same bytes: they were not written by this software.
                Err(error) => {
                    return Err(StorageIOError::apply(log_id, AnyError::new(&error)).into());
                }
            },
            EntryPayload::Membership(membership) => {
                let stored = StoredMembership::new(Some(log_id), membership);
                store.put_meta(&mut batch, Meta::Membership, &encode_membership(&stored));
            }
        }
        counts.push(commands.len() - before);
    }
    let Some(last) = last else { return Ok(Vec::new()) };

    let prepared = prepare(cluster, cache, commands);
    let mut tables = Overlay::new(store);
    let mut replies: VecDeque<Reply> = VecDeque::with_capacity(prepared.len());
    for command in &prepared {
        let reply = apply(&mut tables, command).map_err(|error| {
            store.poison().strike(error.to_string());
            StorageError::from(StorageIOError::apply(last, AnyError::new(&error)))
        })?;
        replies.push_back(reply);
    }
    store.put_changes(&mut batch, tables.into_changes());
    store.put_meta(&mut batch, Meta::Applied, &encode_log_id(Some(&last)));
    // The commit point: from here on the entries are applied, and never are again.
    store.write(batch, Sync::Later).map_err(write_error)?;
    Ok(counts.into_iter().map(|count| Replies(replies.drain(..count).collect())).collect())
}

/// Does the dear part of applying, in parallel.
fn prepare(cluster: &ClusterId, cache: &PreparedCache, commands: Vec<Command>) -> Vec<Prepared> {
    let one = |command: Command| match &command {
        Command::Submission(bytes) => {
            cache.take(bytes).unwrap_or_else(|| Prepared::new(cluster, command))
        }
        Command::System(_) => Prepared::new(cluster, command),
    };
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let share = commands.len().div_ceil(threads).max(PREPARED_PER_THREAD_MIN);
    if commands.len() <= share {
        return commands.into_iter().map(one).collect();
    }
    let mut shares = Vec::new();
    let mut commands = commands.into_iter();
    loop {
        let next: Vec<Command> = commands.by_ref().take(share).collect();
        if next.is_empty() {
            break;
        }
        shares.push(next);
    }
    thread::scope(|scope| {
        let running: Vec<_> = shares
            .into_iter()
            .map(|share| scope.spawn(move || share.into_iter().map(one).collect::<Vec<_>>()))
            .collect();
        running
            .into_iter()
            .flat_map(|thread| match thread.join() {
                Ok(prepared) => prepared,
                Err(panic) => std::panic::resume_unwind(panic),
            })
            .collect()
    })
}

impl RaftStateMachine<TypeConfig> for Machine {
    type SnapshotBuilder = NoSnapshots;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), StorageError> {
        let store = Arc::clone(&self.store);
        blocking(move || {
            let applied = store.meta(Meta::Applied, decode_log_id).map_err(read_error)?.flatten();
            let membership = store.meta(Meta::Membership, decode_membership).map_err(read_error)?;
            Ok((applied, membership.unwrap_or_default()))
        })
        .await
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<Replies>, StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<Entry> = entries.into_iter().collect();
        let (store, cluster) = (Arc::clone(&self.store), self.cluster);
        let prepared = Arc::clone(&self.prepared);
        blocking(move || apply_entries(&store, &cluster, &prepared, entries)).await
    }

    async fn get_snapshot_builder(&mut self) -> NoSnapshots {
        NoSnapshots
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<Cursor<Vec<u8>>>, StorageError> {
        Err(no_snapshots())
    }

    async fn install_snapshot(
        &mut self,
        _: &SnapshotMeta<u64, openraft::EmptyNode>,
        _: Box<Cursor<Vec<u8>>>,
    ) -> Result<(), StorageError> {
        Err(no_snapshots())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot<TypeConfig>>, StorageError> {
        Ok(None)
    }
}

/// There are no snapshots in this version: the log is kept whole.
#[derive(Debug)]
pub(crate) struct NoSnapshots;

impl RaftSnapshotBuilder<TypeConfig> for NoSnapshots {
    async fn build_snapshot(&mut self) -> Result<Snapshot<TypeConfig>, StorageError> {
        Err(no_snapshots())
    }
}

fn no_snapshots() -> StorageError {
    let reason = "this version keeps the whole Raft log and makes no snapshots of it";
    StorageIOError::write_snapshot(None, AnyError::error(reason)).into()
}
