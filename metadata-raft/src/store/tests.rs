//! The store against openraft's own suite, and what the suite does not look at.
#![allow(clippy::unwrap_used, clippy::result_large_err)]

use openraft::storage::{RaftLogStorage, RaftLogStorageExt, RaftStateMachine};
use openraft::testing::{StoreBuilder, Suite};
use openraft::{
    CommittedLeaderId, EntryPayload, RaftLogReader, RaftSnapshotBuilder, StorageHelper,
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
    let log = LogStore::new(Arc::clone(&store));
    let machine = Machine::new(Arc::clone(&store), CLUSTER, Arc::new(PreparedCache::default()));
    (store, log, machine)
}

impl StoreBuilder<TypeConfig, LogStore, Machine, TempDir> for Builder {
    async fn build(&self) -> Result<(TempDir, LogStore, Machine), StorageError> {
        let dir = tempfile::tempdir().unwrap();
        let (_, log, machine) = stores(&dir);
        Ok((dir, log, machine))
    }
}

type Contract = Suite<TypeConfig, LogStore, Machine, Builder, TempDir>;

/// Every part of the suite but those that make snapshots or need one after a purge
/// (`snapshot_meta`, `transfer_snapshot`, `get_initial_state_last_log_lt_sm`,
/// `get_initial_state_log_ids`, `get_initial_state_re_apply_committed`,
/// `get_initial_state_membership_from_log_and_sm`): this version makes none and purges nothing, and a
/// state that is ahead of its log does not start.
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
    assert_eq!(log.read_vote().await.unwrap(), Some(vote));
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

#[tokio::test]
async fn there_are_no_snapshots() {
    let dir = tempfile::tempdir().unwrap();
    let (_store, _log, mut machine) = stores(&dir);
    assert!(machine.get_current_snapshot().await.unwrap().is_none());
    let mut builder = machine.get_snapshot_builder().await;
    let error = builder.build_snapshot().await.unwrap_err().to_string();
    assert!(error.contains("keeps the whole Raft log"), "{error}");
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
        batch.put_cf(store.family(META), key::STORE, encode(&(2u16, CLUSTER, ME)));
        store.write(batch, Sync::Now).unwrap();
    }
    let refused = Store::open(dir.path(), &CLUSTER, ME).unwrap_err();
    assert!(matches!(refused, StoreError::UnknownVersion { found: 2, .. }), "{refused}");
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
