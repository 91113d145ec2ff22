//! The state machine, for openraft: prepares the commands of committed entries on many threads,
//! applies them one after the other, and writes the changes with the position in one go.
//!
//! A snapshot is a view of the store, so making one costs nothing but what the store then has to keep;
//! it is gone when the process ends, and openraft makes another at the next start.

// openraft's errors are large, and rare.
#![allow(clippy::result_large_err)]

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use coffer_metadata_core::{Command, CoreError, Overlay, Prepared, Reply, apply};
#[cfg(test)]
use coffer_metadata_core::{Table, Tables};
use coffer_model::bundle::submission_hash;
use coffer_model::hash::Hash;
use coffer_model::id::ClusterId;
use openraft::storage::RaftStateMachine;
use openraft::{AnyError, EntryPayload, OptionalSend, RaftSnapshotBuilder, StorageIOError};
use rocksdb::WriteBatch;

use crate::codec::{decode_log_id, decode_membership, encode_log_id, encode_membership};
use crate::log::{blocking, read_error, write_error};
#[cfg(test)]
use crate::member::simulation::{Flaw, flawed};
use crate::raft::{
    Entry, LogId, Replies, Snapshot, SnapshotMeta, StorageError, StoredMembership, TypeConfig,
};
use crate::snapshot::SnapshotData;
use crate::store::{Meta, Store, StoreError, Sync, View};

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
    current: CurrentSnapshot,
}

impl Machine {
    pub(crate) fn new(store: Arc<Store>, cluster: ClusterId, prepared: Arc<PreparedCache>) -> Self {
        Self { store, cluster, prepared, current: CurrentSnapshot::default() }
    }
}

/// The last snapshot. Clones are the same one.
#[derive(Clone, Debug, Default)]
struct CurrentSnapshot(Arc<Mutex<Option<Current>>>);

#[derive(Debug)]
struct Current {
    meta: SnapshotMeta,
    view: Arc<View>,
}

impl CurrentSnapshot {
    /// Makes a snapshot of the state as it is now the current one, unless there is a later one.
    fn renew(&self, store: &Arc<Store>) -> Result<Snapshot, StoreError> {
        let view = View::of(store);
        let last_log_id = view.meta(Meta::Applied, decode_log_id)?.flatten();
        let membership = view.meta(Meta::Membership, decode_membership)?;
        let meta = SnapshotMeta {
            last_log_id,
            last_membership: membership.unwrap_or_default(),
            snapshot_id: last_log_id.map_or_else(String::new, |id| id.to_string()),
        };
        let mut current = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if current.as_ref().is_none_or(|current| current.meta.last_log_id <= last_log_id) {
            *current = Some(Current { meta, view: Arc::new(view) });
        }
        drop(current);
        self.get().ok_or(StoreError::Read { what: "the snapshot", reason: "it is gone".to_owned() })
    }

    fn get(&self) -> Option<Snapshot> {
        let current = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let current = current.as_ref()?;
        let snapshot = Box::new(SnapshotData::Own(Arc::clone(&current.view)));
        Some(Snapshot { meta: current.meta.clone(), snapshot })
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
        #[cfg(test)]
        forget_repeats(&mut tables);
        let reply = apply(&mut tables, command).map_err(|error| {
            // The store is well where it is the program that is too old.
            if !matches!(error, CoreError::LaterVersion { .. }) {
                store.poison().strike(error.to_string());
            }
            StorageError::from(StorageIOError::apply(last, AnyError::new(&error)))
        })?;
        replies.push_back(reply);
    }
    store.put_changes(&mut batch, tables.into_changes());
    store.put_meta(&mut batch, Meta::Applied, &encode_log_id(Some(&last)));
    // The commit point: from here on the entries are applied, and never are again.
    store.write(batch, Sync::Later).map_err(write_error)?;
    store.note_applied(last.index);
    Ok(counts.into_iter().map(|count| Replies(replies.drain(..count).collect())).collect())
}

/// The flaw of a state machine that forgets what it has answered.
#[cfg(test)]
fn forget_repeats(tables: &mut Overlay<&Store>) {
    if flawed(Flaw::ForgetsRepeats) {
        let rows = tables.scan(Table::Repeats, &[], &[u8::MAX; 33], usize::MAX);
        for (key, _) in rows.expect("the store can be read") {
            tables.delete(Table::Repeats, &key);
        }
    }
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
    type SnapshotBuilder = SnapshotBuilder;

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

    async fn get_snapshot_builder(&mut self) -> SnapshotBuilder {
        SnapshotBuilder { store: Arc::clone(&self.store), current: self.current.clone() }
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<SnapshotData>, StorageError> {
        let reason = "snapshots are received outside of Raft, which is handed whole ones";
        Err(StorageIOError::write_snapshot(None, AnyError::error(reason)).into())
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: Box<SnapshotData>,
    ) -> Result<(), StorageError> {
        let failed = |error: &StoreError| {
            StorageIOError::write_snapshot(Some(meta.signature()), AnyError::new(error)).into()
        };
        let received = match *snapshot {
            SnapshotData::Received(received) => received,
            SnapshotData::Own(_) => {
                let reason = "this member's own snapshot is its state already".to_owned();
                return Err(failed(&StoreError::Read { what: "the snapshot", reason }));
            }
        };
        let (store, current) = (Arc::clone(&self.store), self.current.clone());
        let installed = blocking(move || {
            Ok(received.swap_in().and_then(|()| {
                // What was replaced is still there, for views that were taken of it.
                store.drop_other_generations()?;
                current.renew(&store)
            }))
        });
        installed.await?.map(|_| ()).map_err(|error| failed(&error))
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, StorageError> {
        Ok(self.current.get())
    }
}

/// Makes a snapshot of the state as it is when it is asked to.
#[derive(Debug)]
pub(crate) struct SnapshotBuilder {
    store: Arc<Store>,
    current: CurrentSnapshot,
}

impl RaftSnapshotBuilder<TypeConfig> for SnapshotBuilder {
    async fn build_snapshot(&mut self) -> Result<Snapshot, StorageError> {
        let (store, current) = (Arc::clone(&self.store), self.current.clone());
        blocking(move || current.renew(&store).map_err(read_error)).await
    }
}
