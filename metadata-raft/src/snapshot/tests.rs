//! A stream from one store to another, whole and broken.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::path::Path;

use coffer_metadata_core::Tables;
use coffer_metadata_core::tables::Changes;
use coffer_model::id::MemberId;
use openraft::CommittedLeaderId;
use rocksdb::WriteBatch;
use tempfile::TempDir;
use tokio::sync::Semaphore;

use super::*;
use crate::codec::{decode_log_id, decode_membership, encode_log_id};
use crate::member::copy_dir;
use crate::raft::Membership;
use crate::store::{Meta, Sync, WriteFault, all_rows};

const CLUSTER: ClusterId = ClusterId::from_bytes([1; 32]);
const SENDER: MemberId = MemberId::from_u64(7);
const RECEIVER: MemberId = MemberId::from_u64(8);

fn log_id(index: u64) -> LogId {
    LogId::new(CommittedLeaderId::new(2, 7), index)
}

fn header() -> Header {
    let voters = BTreeSet::from([7, 8, 9]);
    Header {
        cluster: CLUSTER,
        vote: Vote::new_committed(2, 7),
        last: log_id(100),
        membership: StoredMembership::new(Some(log_id(1)), Membership::new(vec![voters], ())),
    }
}

fn write(store: &Store, changes: Changes, applied: u64) {
    let mut batch = WriteBatch::default();
    store.put_changes(&mut batch, changes);
    store.put_meta(&mut batch, Meta::Applied, &encode_log_id(Some(&log_id(applied))));
    store.write(batch, Sync::Now).unwrap();
}

/// A store with rows in many tables: small ones, more than fit into a piece, one that is longer than
/// three pieces, an empty key and an empty value.
fn sender(dir: &Path) -> Arc<Store> {
    let store = Store::open(dir, &CLUSTER, SENDER).unwrap();
    let mut changes = Changes::new();
    for number in 0..3000u32 {
        let value = vec![u8::try_from(number % 251).unwrap(); 500];
        changes.insert((Table::Heads, number.to_be_bytes().to_vec()), Some(value));
    }
    changes.insert((Table::Meta, Vec::new()), Some(b"under the empty key".to_vec()));
    changes.insert((Table::RepeatsByTime, b"time".to_vec()), Some(Vec::new()));
    changes.insert((Table::LogOps, b"long".to_vec()), Some(vec![5; 3 * PIECE_BYTES + 17]));
    changes.insert((Table::Nodes, b"last".to_vec()), Some(b"row".to_vec()));
    write(&store, changes, 100);
    store
}

fn messages(store: &Arc<Store>) -> Vec<Vec<u8>> {
    let mut messages = Vec::new();
    let take = |message| {
        messages.push(message);
        true
    };
    stream(&header(), &View::of(store), take).unwrap();
    messages
}

/// Goal: a member that does not have the version of the state machine a snapshot is of leaves it. Method: one
/// row of the sender's says a later one; the receiver stays as it was.
#[test]
fn a_state_of_a_later_version_is_not_taken() {
    let dir = tempfile::tempdir().unwrap();
    let store = sender(dir.path());
    let mut changes = Changes::new();
    let row = (Table::Meta, meta::CORE_VERSION.to_vec());
    changes.insert(row.clone(), Some(encode(&CORE_VERSION_MAX)));
    write(&store, changes.clone(), 100);
    let receiver = Receiver::new();
    receiver.receive(&messages(&store)).unwrap();

    changes.insert(row, Some(encode(&(CORE_VERSION_MAX + 1))));
    write(&store, changes, 100);
    let refused = receiver.receive(&messages(&store)).unwrap_err();
    assert!(matches!(refused, SnapshotError::LaterState(found) if found == CORE_VERSION_MAX + 1));
    assert_eq!(all_rows(&View::of(&receiver.store)), receiver.rows);
}

/// A store with another state and a log, which is to receive.
struct Receiver {
    dir: TempDir,
    store: Arc<Store>,
    rows: Vec<(Table, Vec<u8>, Vec<u8>)>,
}

impl Receiver {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), &CLUSTER, RECEIVER).unwrap();
        let mut changes = Changes::new();
        for number in 0..10u32 {
            changes.insert((Table::Heads, number.to_be_bytes().to_vec()), Some(b"old".to_vec()));
            changes.insert((Table::Users, number.to_be_bytes().to_vec()), Some(vec![1; 5000]));
        }
        write(&store, changes, 5);
        let mut batch = WriteBatch::default();
        for index in 0..120 {
            store.put_entry(&mut batch, index, format!("entry {index}").as_bytes());
        }
        store.write(batch, Sync::Now).unwrap();
        let rows = all_rows(&View::of(&store));
        assert_eq!(rows.len(), 20);
        Self { dir, store, rows }
    }

    fn begin(&self, first: &[u8]) -> Result<Receiving, SnapshotError> {
        let turn = Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap();
        Receiving::begin(&self.store, Header::decode(first, &CLUSTER)?, first, Arc::new(turn))
    }

    fn receive(&self, messages: &[Vec<u8>]) -> Result<Received, SnapshotError> {
        let (first, rest) = messages.split_first().ok_or(SnapshotError::Damaged("empty"))?;
        let mut receiving = self.begin(first)?;
        for message in rest {
            receiving.take(message)?;
        }
        receiving.finish()
    }

    /// What is in a store that was closed, or of which this is a copy as a crash leaves it.
    fn found(path: &Path) -> Found {
        let store = Store::open(path, &CLUSTER, RECEIVER).unwrap();
        let found = Found::of(&store);
        drop(store);
        // What was half done is gone: there are the tables of one generation.
        let families = rocksdb::DB::list_cf(&rocksdb::Options::default(), path).unwrap();
        let tables = families.iter().filter(|name| name.starts_with("core")).count();
        assert_eq!(tables, Table::ALL.len(), "{families:?}");
        found
    }

    /// What is in the store, as a crash at this moment would leave it.
    fn after_crash(&self) -> Found {
        let image = tempfile::tempdir().unwrap();
        copy_dir(self.dir.path(), image.path());
        Self::found(image.path())
    }
}

#[derive(PartialEq, Eq, Debug)]
struct Found {
    rows: Vec<(Table, Vec<u8>, Vec<u8>)>,
    applied: Option<u64>,
    purged: Option<u64>,
    entries: usize,
    membership: bool,
}

impl Found {
    fn of(store: &Arc<Store>) -> Self {
        let index = |meta| store.meta(meta, decode_log_id).unwrap().flatten().map(|id| id.index);
        let membership = store.meta(Meta::Membership, decode_membership).unwrap();
        Self {
            rows: all_rows(&View::of(store)),
            applied: index(Meta::Applied),
            purged: index(Meta::Purged),
            entries: store.entries(0, u64::MAX, usize::MAX).unwrap().len(),
            membership: membership.is_some_and(|membership| membership == header().membership),
        }
    }

    fn old(rows: &[(Table, Vec<u8>, Vec<u8>)]) -> Self {
        let rows = rows.to_vec();
        Self { rows, applied: Some(5), purged: None, entries: 120, membership: false }
    }

    fn new(rows: Vec<(Table, Vec<u8>, Vec<u8>)>) -> Self {
        // Entries 0 to 100 are gone.
        Self { rows, applied: Some(100), purged: Some(100), entries: 19, membership: true }
    }
}

/// Goal: after a stream the receiver has, byte for byte, the state of the sender, and again after a
/// restart; pieces are of bounded size, whatever the rows are; later changes of the sender are not in
/// it, and a view that was taken of the receiver before still sees what it saw.
#[test]
fn a_stream_carries_the_whole_state_in_bounded_pieces() {
    let dir = tempfile::tempdir().unwrap();
    let sender = sender(dir.path());
    let (expected, view) = (all_rows(&View::of(&sender)), View::of(&sender));
    write(&sender, Changes::from([((Table::Heads, b"later".to_vec()), Some(vec![1]))]), 101);
    let mut sent = Vec::new();
    let take = |message: Vec<u8>| {
        // The version, the part's number and its length stand before a piece.
        assert!(message.len() <= PIECE_BYTES + 6);
        sent.push(message);
        true
    };
    stream(&header(), &view, take).unwrap();
    // More than four megabytes of rows, a header and an end.
    assert_eq!(sent.len(), 7);

    for round in 0..2 {
        let receiver = Receiver::new();
        let before = View::of(&receiver.store);
        let mut receiving = receiver.begin(&sent[0]).unwrap();
        for message in &sent[1..] {
            receiving.take(message).unwrap();
            assert!(receiving.rest.len() <= ROW_BYTES_MAX + PIECE_BYTES);
        }
        receiving.finish().unwrap().swap_in().unwrap();
        assert_eq!(Found::of(&receiver.store), Found::new(expected.clone()));
        receiver.store.drop_other_generations().unwrap();
        assert_eq!(before.get(Table::Heads, &[0; 4]).unwrap().unwrap(), b"old");
        assert_eq!(before.scan(Table::Users, &[], &[0xff], 100).unwrap().len(), 10);
        drop(before);
        if round == 1 {
            // A second one on top of it.
            receiver.receive(&sent).unwrap().swap_in().unwrap();
            assert_eq!(Found::of(&receiver.store), Found::new(expected.clone()));
        }
        // The new tables take changes as the old did.
        let change = Changes::from([((Table::Heads, b"new".to_vec()), Some(vec![1]))]);
        write(&receiver.store, change, 100);
        assert_eq!(receiver.store.get(Table::Heads, b"new").unwrap(), Some(vec![1]));
        let change = Changes::from([((Table::Heads, b"new".to_vec()), None)]);
        write(&receiver.store, change, 100);
        let Receiver { dir, store, .. } = receiver;
        drop(store);
        assert_eq!(Receiver::found(dir.path()), Found::new(expected.clone()));
    }
    // Nobody wants more: it ends.
    let mut count = 0;
    let stop = |_| {
        count += 1;
        count < 3
    };
    stream(&header(), &view, stop).unwrap();
    assert_eq!(count, 3);
}

#[test]
fn an_empty_state_is_a_state() {
    let dir = tempfile::tempdir().unwrap();
    let sent = messages(&Store::open(dir.path(), &CLUSTER, SENDER).unwrap());
    let receiver = Receiver::new();
    receiver.receive(&sent).unwrap().swap_in().unwrap();
    assert_eq!(Found::of(&receiver.store), Found::new(Vec::new()));
}

/// Goal: whatever is wrong with a stream, it is refused, and the old state is whole: in the process,
/// and after a crash right then.
#[test]
fn a_stream_that_is_not_right_leaves_the_old_state() {
    let dir = tempfile::tempdir().unwrap();
    let good = messages(&sender(dir.path()));
    let receiver = Receiver::new();
    let refused = |what: &str, messages: &[Vec<u8>]| -> SnapshotError {
        let error = receiver.receive(messages).expect_err(what);
        assert_eq!(Found::of(&receiver.store), Found::old(&receiver.rows), "{what}");
        error
    };
    let damaged = |what: &str, messages: &[Vec<u8>]| {
        let error = refused(what, messages);
        let expected = matches!(error, SnapshotError::Damaged(_) | SnapshotError::Malformed(_));
        assert!(expected, "{what}: {error}");
    };
    // Each attempt makes and drops a generation of tables, so a few places stand for all.
    let end = good.len() - 1;
    for count in [1, 3, end] {
        damaged(&format!("cut after {count} messages"), &good[..count]);
    }
    let mut later = good.clone();
    later[2][0] = VERSION + 1;
    let error = refused("another version", &later);
    assert!(matches!(error, SnapshotError::Version(2)), "{error}");
    // One bit anywhere: in a piece's number, its length, in a row's head, key and value, in a row that
    // is cut, in the count and the hash of the end.
    let bits = [(0, 1), (0, 12), (0, 40), (1, 1), (1, 3), (1, 6), (1, 20), (1, 700_000), (4, 9)];
    for (number, place) in bits.into_iter().chain([(end, 1), (end, 2), (end, 30)]) {
        let mut flipped = good.clone();
        flipped[number][place] ^= 1;
        let what = format!("a bit of byte {place} of message {number}");
        let error = refused(&what, &flipped);
        let foreign = number == 0 && matches!(error, SnapshotError::Foreign(_));
        let damaged = matches!(error, SnapshotError::Damaged(_) | SnapshotError::Malformed(_));
        assert!(foreign || damaged, "{what}: {error}");
    }
    for number in [1, end] {
        let mut longer = good.clone();
        longer[number].push(0);
        damaged(&format!("message {number} is long"), &longer);
    }
    let mut missing = good.clone();
    missing.remove(2);
    damaged("a piece is missing", &missing);
    let mut twice = good.clone();
    twice.insert(2, good[2].clone());
    damaged("a piece comes twice", &twice);
    let mut ended = good.clone();
    ended.push(good[end].clone());
    damaged("it goes on after its end", &ended);
    let mut headed = good.clone();
    headed.insert(1, good[0].clone());
    damaged("it has two headers", &headed);
    let mut swapped = good.clone();
    swapped.swap(1, 2);
    damaged("two pieces change places", &swapped);
    damaged("nothing", &[]);
    damaged("an empty message", &[vec![]]);
    let mut foreign = good.clone();
    foreign[0] = Header { cluster: ClusterId::from_bytes([2; 32]), ..header() }.encode();
    let error = refused("another cluster", &foreign);
    assert!(matches!(error, SnapshotError::Foreign(_)), "{error}");

    // Streams that are whole, with the right hash, of rows that are not right.
    let row = |table: u8, key: &[u8], value: u32| {
        let mut row = vec![table];
        row.extend_from_slice(&u32::try_from(key.len()).unwrap().to_le_bytes());
        row.extend_from_slice(&value.to_le_bytes());
        [row, key.to_vec(), vec![0; usize::try_from(value.min(10)).unwrap()]].concat()
    };
    let whole = |rows: &[Vec<u8>], count: u64| {
        let mut messages = vec![header().encode(), encode_part(&Part::Rows(rows.concat()))];
        let zero = Hash::from_bytes([0; 32]);
        let hash = messages.iter().fold(zero, |hash, message| chained(&hash, message));
        messages.push(encode_part(&Part::End { rows: count, hash }));
        messages
    };
    let (a, b) = (row(4, b"a", 3), row(4, b"b", 3));
    damaged("one row twice", &whole(&[a.clone(), a.clone()], 2));
    damaged("rows out of order", &whole(&[b.clone(), a.clone()], 2));
    damaged("tables out of order", &whole(&[a.clone(), row(3, b"z", 0)], 2));
    damaged("an unknown table", &whole(&[row(200, b"a", 0)], 1));
    damaged("a row of 4 GiB", &whole(&[row(4, b"a", u32::MAX)], 1));
    damaged("a wrong count", &whole(&[a.clone(), b.clone()], 3));
    damaged("half a row", &whole(&[a.clone(), b[..5].to_vec()], 1));
    let large = vec![vec![0; PIECE_BYTES + 1]];
    damaged("a piece that is too long", &whole(&large, 1));
    assert_eq!(receiver.after_crash(), Found::old(&receiver.rows));
    // After all of this a good one is taken.
    receiver.receive(&whole(&[a, b], 2)).unwrap().swap_in().unwrap();
    assert_eq!(receiver.after_crash().rows.len(), 2);
}

/// Goal: a crash at any step leaves the old state or the new one. Method: after each step a copy of
/// the files is opened as the next start would.
#[test]
fn a_crash_at_any_step_leaves_the_old_state_or_the_new() {
    let dir = tempfile::tempdir().unwrap();
    let sender = sender(dir.path());
    let (good, new) = (messages(&sender), Found::new(all_rows(&View::of(&sender))));
    let receiver = Receiver::new();
    let mut receiving = receiver.begin(&good[0]).unwrap();
    assert_eq!(receiver.after_crash(), Found::old(&receiver.rows));
    for message in &good[1..] {
        receiving.take(message).unwrap();
        assert_eq!(receiver.after_crash(), Found::old(&receiver.rows));
    }
    let received = receiving.finish().unwrap();
    assert_eq!(receiver.after_crash(), Found::old(&receiver.rows));
    received.swap_in().unwrap();
    assert_eq!(receiver.after_crash(), new);
    receiver.store.drop_other_generations().unwrap();
    assert_eq!(receiver.after_crash(), new);

    // The swap fails, before anything is written or after all is.
    for fault in [WriteFault::NotDone, WriteFault::DoneButReported] {
        let receiver = Receiver::new();
        let received = receiver.receive(&good).unwrap();
        *receiver.store.fault.lock().unwrap() = Some(fault);
        received.swap_in().unwrap_err();
        assert!(receiver.store.poison().reason().is_some());
        // In the process the old state stays, so that nobody sees what may not be durable.
        assert_eq!(all_rows(&View::of(&receiver.store)), receiver.rows);
        let expected = match fault {
            WriteFault::NotDone => &Found::old(&receiver.rows),
            WriteFault::DoneButReported => &new,
        };
        assert_eq!(&receiver.after_crash(), expected, "{fault:?}");
        let Receiver { dir, store, .. } = receiver;
        drop(store);
        assert_eq!(&Receiver::found(dir.path()), expected, "{fault:?}");
    }
    // Each step before it fails.
    let receiver = Receiver::new();
    let mut receiving = receiver.begin(&good[0]).unwrap();
    receiving.take(&good[1]).unwrap();
    *receiver.store.fault.lock().unwrap() = Some(WriteFault::DoneButReported);
    let error = receiving.take(&good[2]).unwrap_err();
    assert!(matches!(error, SnapshotError::Store(StoreError::Poisoned(_))), "{error}");
    assert_eq!(receiver.after_crash(), Found::old(&receiver.rows));
}

/// A state that was removed meanwhile does not come into force.
#[test]
fn what_was_removed_is_not_swapped_in() {
    let dir = tempfile::tempdir().unwrap();
    let good = messages(&sender(dir.path()));
    let receiver = Receiver::new();
    let received = receiver.receive(&good).unwrap();
    receiver.store.drop_other_generations().unwrap();
    received.swap_in().unwrap_err();
    assert_eq!(Found::of(&receiver.store), Found::old(&receiver.rows));
}
