//! The store against openraft's own suite, and what the suite does not look at.
#![allow(clippy::unwrap_used, clippy::result_large_err)]

use std::fmt::Debug;
use std::ops::RangeBounds;

use futures_util::FutureExt;
use openraft::storage::{LogFlushed, RaftLogStorage, RaftLogStorageExt, RaftStateMachine};
use openraft::testing::{StoreBuilder, Suite};
use openraft::{
    CommittedLeaderId, EntryPayload, LogState, OptionalSend, RaftLogReader, StorageHelper,
};
use tempfile::TempDir;

use coffer_metadata_core::Command;
use coffer_model::log::SystemOp;

use super::*;
use crate::log::LogStore;
use crate::machine::{Machine, PreparedCache};
use crate::raft::{Entry, LogId, Proposal, StorageError, TypeConfig, Vote};

const CLUSTER: ClusterId = ClusterId::from_bytes([1; 32]);
const ME: MemberId = MemberId::from_u64(7);

struct Builder;

fn stores(dir: &TempDir) -> (Arc<Store>, LogStore, Machine) {
    let store = Store::open(dir.path(), &CLUSTER, ME).unwrap();
    let log = LogStore::new(Arc::clone(&store)).unwrap();
    let machine = Machine::new(Arc::clone(&store), CLUSTER, Arc::new(PreparedCache::default()));
    (store, log, machine)
}

/// The log, but that it removes entries which were never applied: the suite asks for that, and the
/// log itself would wait for ever.
struct ContractLog(LogStore);

impl RaftLogReader<TypeConfig> for ContractLog {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, StorageError> {
        self.0.try_get_log_entries(range).await
    }

    async fn limited_get_log_entries(
        &mut self,
        start: u64,
        end: u64,
    ) -> Result<Vec<Entry>, StorageError> {
        self.0.limited_get_log_entries(start, end).await
    }
}

impl RaftLogStorage<TypeConfig> for ContractLog {
    type LogReader = LogStore;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, StorageError> {
        self.0.get_log_state().await
    }

    async fn get_log_reader(&mut self) -> LogStore {
        self.0.get_log_reader().await
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), StorageError> {
        self.0.save_vote(vote).await
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, StorageError> {
        self.0.read_vote().await
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), StorageError> {
        self.0.save_committed(committed).await
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, StorageError> {
        self.0.read_committed().await
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
        self.0.append(entries, callback).await
    }

    async fn truncate(&mut self, log_id: LogId) -> Result<(), StorageError> {
        self.0.truncate(log_id).await
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), StorageError> {
        self.0.remove_upto(log_id).await
    }
}

impl StoreBuilder<TypeConfig, ContractLog, Machine, TempDir> for Builder {
    async fn build(&self) -> Result<(TempDir, ContractLog, Machine), StorageError> {
        let dir = tempfile::tempdir().unwrap();
        let (_, log, machine) = stores(&dir);
        Ok((dir, ContractLog(log), machine))
    }
}

type Contract = Suite<TypeConfig, ContractLog, Machine, Builder, TempDir>;

/// Every part of the suite but `transfer_snapshot`, which takes the sender's own handle on a snapshot
/// for one that can be installed elsewhere; `snapshot::tests` does that over the stream.
#[tokio::test]
async fn the_store_keeps_openrafts_contract() {
    macro_rules! check {
        ($($part:ident),* $(,)?) => {
            $({
                let (_dir, log, machine) = Builder.build().await.unwrap();
                let kept = Contract::$part(log, machine).await;
                assert!(kept.is_ok(), "{}: {kept:?}", stringify!($part));
            })*
        };
    }
    check!(
        last_membership_in_log_initial,
        last_membership_in_log,
        last_membership_in_log_multi_step,
        get_membership_initial,
        get_membership_from_log_and_empty_sm,
        get_membership_from_empty_log_and_sm,
        get_membership_from_log_le_sm_last_applied,
        get_membership_from_log_gt_sm_last_applied_1,
        get_membership_from_log_gt_sm_last_applied_2,
        get_initial_state_without_init,
        get_initial_state_with_state,
        get_initial_state_last_log_gt_sm,
        get_initial_state_last_log_lt_sm,
        get_initial_state_log_ids,
        get_initial_state_re_apply_committed,
        get_initial_state_membership_from_log_and_sm,
        snapshot_meta,
        save_vote,
        get_log_entries,
        limited_get_log_entries,
        try_get_log_entry,
        initial_logs,
        get_log_state,
        get_log_id,
        last_id_in_log,
        last_applied_state,
        purge_logs_upto_0,
        purge_logs_upto_5,
        purge_logs_upto_20,
        delete_logs_since_11,
        delete_logs_since_0,
        append_to_log,
        apply_single,
        apply_multiple,
    );
}

fn entry(index: u64, payload: EntryPayload<TypeConfig>) -> Entry {
    Entry { log_id: LogId::new(CommittedLeaderId::new(1, 7), index), payload }
}

fn commands(index: u64, bytes: usize) -> Entry {
    let commands = vec![Command::Submission(vec![0; bytes])];
    entry(index, EntryPayload::Normal(Proposal::new(&commands)))
}

#[tokio::test]
async fn everything_is_there_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let vote = Vote::new_committed(1, 7);
    let entries = || vec![entry(0, EntryPayload::Blank), commands(1, 10), commands(2, 100_000)];
    {
        let (_store, mut log, mut machine) = stores(&dir);
        log.save_vote(&vote).await.unwrap();
        log.blocking_append(entries()).await.unwrap();
        let replies = machine.apply(entries()[..2].to_vec()).await.unwrap();
        // What no replica can apply is answered, not logged.
        assert_eq!(replies.iter().map(|replies| replies.0.len()).collect::<Vec<_>>(), [0, 1]);
    }
    let (_store, mut log, mut machine) = stores(&dir);
    // It has not forgotten whom it voted for, but nobody leads by that any more.
    assert_eq!(log.read_vote().await.unwrap(), Some(Vote::new(1, 7)));
    let state = log.get_log_state().await.unwrap();
    assert_eq!(state.last_log_id.map(|id| id.index), Some(2));
    assert_eq!(machine.applied_state().await.unwrap().0.map(|id| id.index), Some(1));
    let read = log.try_get_log_entries(0..10).await.unwrap();
    for (read, written) in read.iter().zip(entries()) {
        assert_eq!((read.log_id, &read.payload), (written.log_id, &written.payload));
    }
}

/// What a crash took from the state machine is applied again from the log, at the start.
#[tokio::test]
async fn what_was_committed_and_not_applied_is_applied_at_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let (_store, mut log, mut machine) = stores(&dir);
    let entries: Vec<Entry> = (0..100).map(|index| commands(index, 1)).collect();
    log.save_vote(&Vote::new_committed(1, 7)).await.unwrap();
    log.blocking_append(entries.clone()).await.unwrap();
    machine.apply(entries[..10].to_vec()).await.unwrap();
    log.save_committed(Some(entries[90].log_id)).await.unwrap();
    StorageHelper::new(&mut log, &mut machine).get_initial_state().await.unwrap();
    assert_eq!(machine.applied_state().await.unwrap().0, Some(entries[90].log_id));
}

#[tokio::test]
async fn one_message_takes_what_fits_and_at_least_one_entry() {
    let dir = tempfile::tempdir().unwrap();
    let (_store, mut log, _machine) = stores(&dir);
    let entries: Vec<Entry> = (0..6).map(|index| commands(index, 1_500_000)).collect();
    log.blocking_append(entries).await.unwrap();
    assert_eq!(log.limited_get_log_entries(0, 6).await.unwrap().len(), 2);
    log.blocking_append([commands(6, 5_000_000)]).await.unwrap();
    assert_eq!(log.limited_get_log_entries(6, 7).await.unwrap().len(), 1);
    assert_eq!(log.limited_get_log_entries(3, 3).await.unwrap().len(), 0);
}

/// Goal: an entry that was not acknowledged may or may not be there after a restart, but a failed
/// write is never followed by another, and never acknowledged.
#[tokio::test]
async fn a_failed_write_poisons_the_store() {
    for (fault, there) in [(WriteFault::NotDone, 1), (WriteFault::DoneButReported, 2)] {
        let dir = tempfile::tempdir().unwrap();
        {
            let (store, mut log, mut machine) = stores(&dir);
            log.blocking_append([commands(0, 1)]).await.unwrap();
            *store.fault.lock().unwrap() = Some(fault);
            log.blocking_append([commands(1, 1)]).await.unwrap_err();
            *store.fault.lock().unwrap() = None;
            assert!(store.poison().reason().is_some());
            store.poison().struck().await;
            log.blocking_append([commands(1, 1)]).await.unwrap_err();
            log.save_vote(&Vote::new(9, 7)).await.unwrap_err();
            machine.apply([commands(0, 1)]).await.unwrap_err();
            assert!(matches!(store.sync(), Err(StoreError::Poisoned(_))));
        }
        let (_store, mut log, mut machine) = stores(&dir);
        assert_eq!(log.try_get_log_entries(..).await.unwrap().len(), there, "{fault:?}");
        assert_eq!(log.read_vote().await.unwrap(), None);
        assert_eq!(machine.applied_state().await.unwrap().0, None);
    }
}

#[tokio::test]
async fn an_entry_that_is_not_ours_stops_the_machine() {
    let dir = tempfile::tempdir().unwrap();
    let (_store, _log, mut machine) = stores(&dir);
    let strange = Proposal::from_bytes(bytes::Bytes::from_static(&[9, 9]));
    machine.apply([entry(0, EntryPayload::Normal(strange))]).await.unwrap_err();
    assert_eq!(machine.applied_state().await.unwrap().0, None);
}

/// Goal: no entry is removed that is not applied, even where openraft asks for it, as it does when it
/// has handed over a snapshot that is not installed yet.
#[tokio::test]
async fn entries_are_removed_once_they_are_applied_and_durable() {
    let dir = tempfile::tempdir().unwrap();
    let (store, mut log, mut machine) = stores(&dir);
    let entries: Vec<Entry> = (0..10).map(|index| commands(index, 10)).collect();
    log.blocking_append(entries.clone()).await.unwrap();
    machine.apply(entries[..5].to_vec()).await.unwrap();
    let mut reader = log.clone();
    {
        let mut purge = std::pin::pin!(log.purge(entries[7].log_id));
        assert!(purge.as_mut().now_or_never().is_none(), "it waits");
        assert_eq!(reader.try_get_log_entries(..).await.unwrap().len(), 10);
        machine.apply(entries[5..7].to_vec()).await.unwrap();
        assert!(purge.as_mut().now_or_never().is_none(), "it waits for the last one too");
        machine.apply(entries[7..].to_vec()).await.unwrap();
        purge.await.unwrap();
    }
    assert_eq!(reader.try_get_log_entries(..).await.unwrap().len(), 2);
    // What a crash leaves has what the removed entries led to. The files are copied as they are.
    let image = tempfile::tempdir().unwrap();
    crate::member::copy_dir(dir.path(), image.path());
    let (_copy, mut copied_log, mut copied_machine) = stores(&image);
    let state = copied_log.get_log_state().await.unwrap();
    assert_eq!(state.last_purged_log_id, Some(entries[7].log_id));
    assert!(copied_machine.applied_state().await.unwrap().0 >= state.last_purged_log_id);

    // A store that failed removes nothing, and does not wait.
    store.poison().strike("no more".to_owned());
    log.purge(entries[9].log_id).await.unwrap_err();
    assert_eq!(reader.try_get_log_entries(..).await.unwrap().len(), 2);
}

/// Goal: a store of the first version opens, with all that is in it, and belongs to this version from
/// then on. Method: `testdata/store-v1` was written by that version; a member had ended in it as in a
/// crash, after registering a user who made three files.
#[tokio::test]
async fn a_store_of_the_first_version_opens() {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/store-v1");
    let dir = tempfile::tempdir().unwrap();
    crate::member::copy_dir(&fixture, dir.path());
    let cluster = "5fb2c89e61b689327547a310137e784101ce8d2e512d0cdf30b82d6e2bbb8f35";
    let cluster = ClusterId::from_bytes(hex::decode(cluster).unwrap().try_into().unwrap());
    let member = MemberId::from_u64(1329073796422030518);
    for _ in 0..2 {
        let store = Store::open(dir.path(), &cluster, member).unwrap();
        let (mut all, rows) = (Vec::new(), all_rows(&View::of(&store)));
        for (table, key, value) in &rows {
            all.push(*table as u8);
            for part in [key, value] {
                all.extend_from_slice(&u32::try_from(part.len()).unwrap().to_le_bytes());
                all.extend_from_slice(part);
            }
        }
        let hash = coffer_model::hash::Hash::of("test rows", &all).to_string();
        assert_eq!(
            (rows.len(), hash.as_str()),
            (55, "4ac2b88c16691c795bea39f42f874b87ae346a52603ebc8e185c0aff8c7bbff1")
        );
        let mut log = LogStore::new(Arc::clone(&store)).unwrap();
        let state = log.get_log_state().await.unwrap();
        assert_eq!((state.last_purged_log_id, state.last_log_id.unwrap().index), (None, 6));
        assert_eq!(log.try_get_log_entries(..).await.unwrap().len(), 7);
        assert!(log.read_vote().await.unwrap().is_some());
        let owner = store.read("the owner", key::STORE).unwrap().unwrap();
        assert_eq!(owner[..2], FORMAT_VERSION.to_le_bytes());
    }
}

#[test]
fn a_store_is_its_members_only() {
    let dir = tempfile::tempdir().unwrap();
    assert!(!Store::exists(dir.path()));
    drop(Store::open(dir.path(), &CLUSTER, ME).unwrap());
    assert!(Store::exists(dir.path()));
    let other = ClusterId::from_bytes([2; 32]);
    for (cluster, member) in [(&other, ME), (&CLUSTER, MemberId::from_u64(8))] {
        let refused = Store::open(dir.path(), cluster, member).unwrap_err();
        assert!(matches!(refused, StoreError::Foreign { .. }), "{refused}");
    }
    {
        let store = Store::open(dir.path(), &CLUSTER, ME).unwrap();
        let mut batch = WriteBatch::default();
        batch.put_cf(&store.family(META), key::STORE, encode(&(3u16, CLUSTER, ME)));
        store.write(batch, Sync::Now).unwrap();
    }
    let refused = Store::open(dir.path(), &CLUSTER, ME).unwrap_err();
    assert!(matches!(refused, StoreError::UnknownVersion { found: 3, .. }), "{refused}");
}

/// Goal: the tables behave as the core's own in memory do. Method: the same changes to both, then
/// every look at both, also through a view taken before later changes.
#[test]
fn tables_and_views_answer_as_tables_in_memory() {
    use coffer_metadata_core::MemoryTables;

    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), &CLUSTER, ME).unwrap();
    let mut memory = MemoryTables::default();
    let mut write = |changes: Changes| {
        let mut batch = WriteBatch::default();
        store.put_changes(&mut batch, changes.clone());
        store.write(batch, Sync::Later).unwrap();
        memory.write(changes);
        memory.clone()
    };
    let mut changes = Changes::new();
    for key in [&b"a"[..], b"a\0", b"b", b"\xff", b"\xff\xff"] {
        changes.insert((Table::Entries, key.to_vec()), Some(key.to_vec()));
        changes.insert((Table::Pages, key.to_vec()), Some(vec![7; 4096]));
    }
    let before = write(changes);
    let view = View::of(&store);
    let after = write(Changes::from([
        ((Table::Entries, b"b".to_vec()), None),
        ((Table::Entries, b"c".to_vec()), Some(b"new".to_vec())),
    ]));
    let looks: [(&dyn Tables, &MemoryTables); 2] = [(&view, &before), (&*store, &after)];
    for (ours, memory) in looks {
        for table in [Table::Entries, Table::Pages, Table::Meta] {
            for key in [&b""[..], b"a", b"b", b"c", b"zz"] {
                assert_eq!(ours.get(table, key).unwrap(), memory.get(table, key).unwrap());
            }
            for (from, to) in
                [(&b""[..], &b"\xff\xff\xff"[..]), (b"a", b"b"), (b"b", b"a"), (b"a\0", b"c")]
            {
                for limit in [0, 1, 2, 100] {
                    let expected = memory.scan(table, from, to, limit).unwrap();
                    assert_eq!(ours.scan(table, from, to, limit).unwrap(), expected);
                }
            }
        }
    }
}

#[test]
fn a_tick_alone_changes_nothing_before_there_is_a_cluster() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), &CLUSTER, ME).unwrap();
    let command = Command::System(SystemOp::Tick { readings: vec![] });
    let prepared = coffer_metadata_core::Prepared::new(&CLUSTER, command);
    let mut tables = coffer_metadata_core::Overlay::new(&*store);
    coffer_metadata_core::apply(&mut tables, &prepared).unwrap();
    assert!(tables.into_changes().is_empty());
}
