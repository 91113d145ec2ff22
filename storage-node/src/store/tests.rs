//! Tests of the store: on real files, and on a disk that fails.
#![allow(clippy::unwrap_used)]

mod forgetting;
pub(crate) mod platter;
mod quarantine;
mod recovery;

use std::path::Path;

use tempfile::TempDir;

use super::*;
use crate::disk::Folder;
use crate::kit::{CLUSTER, Key, NODE, Opened, START, checked, chunk, ids, open, open_as, wait};
use platter::{Dice, Fault, Platter};

const HOUR: u64 = HOLD_MS;
/// Small segments, so that a few chunks fill several.
const SMALL: u64 = 16 << 10;

/// A volume of real files.
struct Volume(TempDir);

impl Volume {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn index(&self) -> std::path::PathBuf {
        self.0.path().join("index")
    }

    fn segments(&self) -> std::path::PathBuf {
        self.0.path().join("segments")
    }

    fn segment(&self, number: u64) -> std::path::PathBuf {
        self.segments().join(format!("{number:016}.seg"))
    }

    fn open(&self) -> Opened<Folder> {
        open(Folder::open(&self.segments()).unwrap(), &self.index(), SMALL)
    }

    fn open_as(&self, node: NodeId) -> Result<Opened<Folder>, StoreError> {
        open_as(node, Folder::open(&self.segments()).unwrap(), &self.index(), SMALL)
    }
}

/// The same for every kind of disk: what is put is read, also after a restart, and numbers add up.
fn check_round_trip<D: Disk>(disk: impl Fn() -> D) {
    let index = tempfile::tempdir().unwrap();
    let chunks: Vec<_> =
        (0..40).map(|at| chunk(at, 100 * usize::try_from(at).unwrap() + 1)).collect();
    let bytes: usize = chunks.iter().map(|chunk| chunk.bytes().len()).sum();
    let totals = Totals { shards: 40, bytes: bytes as u64 };
    let keep_until = START.plus_ms(HOUR);

    let opened = open(disk(), index.path(), SMALL);
    assert_eq!(opened.store.read(&chunks[0].id()).unwrap(), None);
    for some in chunks.chunks(7) {
        for (chunk, receipt) in some.iter().zip(opened.put(some, keep_until).unwrap()) {
            assert_eq!(receipt.held.shard, ShardKey::replica(chunk.id()));
            assert_eq!(receipt.held.length as usize, chunk.bytes().len());
            assert_eq!(receipt.held.keep_until, keep_until);
            assert_eq!(receipt.flush.node, NODE);
        }
    }
    opened.assert_has(&chunks);
    assert_eq!(opened.store.totals(), totals);
    opened.close();

    let opened = open(disk(), index.path(), SMALL);
    opened.assert_has(&chunks);
    assert_eq!(opened.store.totals(), totals);
    // It is not written again, and none of it is counted twice.
    opened.put(&chunks, keep_until).unwrap();
    assert_eq!(opened.store.totals(), totals);
    opened.close();
    assert!(disk().segments().unwrap().len() > 3, "the chunks fill several segments");
}

#[test]
fn what_is_put_is_read_from_files() {
    let volume = Volume::new();
    check_round_trip(|| Folder::open(&volume.segments()).unwrap());
}

#[test]
fn what_is_put_is_read_from_memory() {
    let platter = Platter::default();
    check_round_trip(|| platter.clone());
}

#[test]
fn the_largest_chunk_fits_even_where_segments_are_smaller() {
    let volume = Volume::new();
    let opened = volume.open();
    let chunks = [chunk(1, SEALED_BYTES_MAX), chunk(2, SEALED_BYTES_MAX), chunk(3, 1)];
    opened.put(&chunks, START).unwrap();
    opened.close();
    volume.open().assert_has(&chunks);
}

#[test]
fn a_flush_is_signed_once_for_all_that_waited() {
    let (platter, index) = (Platter::default(), tempfile::tempdir().unwrap());
    let opened = open(platter.clone(), index.path(), 1 << 20);
    let chunks: Vec<_> = (0..30).map(|at| chunk(at, 100)).collect();
    platter.hold_syncs(true);
    let flushes: Vec<Flush> = wait(async {
        let store = &opened.store;
        let put = |chunks: &[SealedChunk<Bytes>]| {
            let (store, chunks) = (store.clone(), chunks.to_vec());
            tokio::spawn(async move { store.put(chunks, START).await.unwrap() })
        };
        let mut puts = vec![put(&chunks[..1])];
        while platter.syncs() == 0 {
            tokio::task::yield_now().await;
        }
        // The first is at the disk. The others queue up behind it, three chunks each.
        puts.extend(chunks[1..].chunks(3).map(put));
        let taken = 30 * (100 + JOB_BYTES);
        while store.room.available_permits() > QUEUE_BYTES - taken {
            tokio::task::yield_now().await;
        }
        platter.hold_syncs(false);
        let mut flushes = Vec::new();
        let mut at = 0;
        for put in puts {
            for receipt in put.await.unwrap() {
                let receipt = checked(&receipt);
                assert_eq!(receipt.held.shard.chunk, chunks[at].id());
                assert_eq!(receipt.index, at.saturating_sub(1) as u64);
                flushes.push(receipt.flush);
                at += 1;
            }
        }
        flushes
    });
    assert_eq!(flushes.len(), 30);
    assert_eq!((flushes[0].size, flushes[1].size), (1, 29));
    assert!(flushes[1..].iter().all(|flush| *flush == flushes[1]));
    assert_eq!(platter.syncs(), 2);
    opened.close();
}

#[test]
fn a_flush_of_more_than_one_signature_covers_is_signed_twice() {
    let (platter, index) = (Platter::default(), tempfile::tempdir().unwrap());
    let opened = open(platter, index.path(), 4 << 20);
    let chunks: Vec<_> = (0..5000).map(|at| chunk(at, 8)).collect();
    let receipts = opened.put(&chunks, START).unwrap();
    for (at, (chunk, receipt)) in chunks.iter().zip(&receipts).enumerate() {
        assert_eq!(receipt.held.shard.chunk, chunk.id());
        assert_eq!(receipt.index, at as u64 % 4096);
        assert_eq!(receipt.flush.size, if at < 4096 { 4096 } else { 5000 - 4096 });
    }
    opened.close();
}

#[test]
fn a_promise_is_extended_and_never_shortened() {
    let volume = Volume::new();
    let (a, b) = (chunk(1, 500), chunk(2, 500));
    let time = |minutes: u64| START.plus_ms(minutes * 60_000);
    let until = |receipts: Vec<Receipt>| receipts[0].held.keep_until;
    let extended = |opened: &Opened<Folder>, minutes| {
        let receipts = opened.extend(&[a.id(), b.id()], time(minutes)).unwrap();
        assert_eq!(receipts[1], None, "it is not here");
        until(receipts.into_iter().flatten().collect())
    };
    let opened = volume.open();
    assert_eq!(until(opened.put(std::slice::from_ref(&a), time(60)).unwrap()), time(60));
    // What holds for half an hour more is as good as new.
    assert_eq!(extended(&opened, 90), time(60));
    assert_eq!(extended(&opened, 91), time(91));
    assert_eq!(until(opened.put(std::slice::from_ref(&a), time(130)).unwrap()), time(130));
    assert_eq!(extended(&opened, 10), time(130));
    let totals = opened.store.totals();
    opened.close();
    // The index knows it, and so do the segments.
    for index_lost in [false, true] {
        if index_lost {
            std::fs::remove_dir_all(volume.index()).unwrap();
        }
        let opened = volume.open();
        assert_eq!(extended(&opened, 10), time(130));
        assert_eq!(opened.store.totals(), totals);
        opened.close();
    }
}

#[test]
fn a_damaged_chunk_that_comes_again_keeps_its_older_promise() {
    let volume = Volume::new();
    let a = chunk(1, 500);
    let opened = volume.open();
    opened.put(std::slice::from_ref(&a), START.plus_ms(10 * HOUR)).unwrap();
    flip(&volume.segment(0), SEGMENT_HEADER_BYTES + 100);
    assert_eq!(opened.store.read(&a.id()).unwrap(), None);
    let again = opened.put(std::slice::from_ref(&a), START.plus_ms(HOUR)).unwrap();
    assert_eq!(again[0].held.keep_until, START.plus_ms(10 * HOUR));
    opened.assert_has(std::slice::from_ref(&a));
    opened.close();
}

fn flip(path: &Path, at: u64) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[usize::try_from(at).unwrap()] ^= 0x10;
    std::fs::write(path, bytes).unwrap();
}

/// Goal: whatever byte of a record rots, a read gives the right bytes or none. Method: flip each byte
/// of the record between two others, in a store that is running.
#[test]
fn a_flipped_byte_is_never_served() {
    let volume = Volume::new();
    let chunks = [chunk(1, 40), chunk(2, 40), chunk(3, 40)];
    let opened = volume.open();
    opened.put(&chunks, START).unwrap();
    let record = RECORD_HEADER_BYTES as u64 + 40;
    for at in record..2 * record {
        let at_file = SEGMENT_HEADER_BYTES + at;
        flip(&volume.segment(0), at_file);
        let read = opened.store.read(&chunks[1].id()).unwrap();
        if at < record + RECORD_HEADER_BYTES as u64 {
            // The index knows where the bytes are, and they are good.
            assert_eq!(read.as_ref(), Some(chunks[1].bytes()));
            flip(&volume.segment(0), at_file);
            continue;
        }
        assert_eq!(read, None, "byte {at}");
        assert!(!opened.store.has(&chunks[1].id()).unwrap());
        assert_eq!(opened.missing(), [chunks[1].id()], "it is fetched again");
        assert_eq!(opened.extend(&[chunks[1].id()], START).unwrap(), [None], "nor promised");
        opened.assert_has(&[chunks[0].clone(), chunks[2].clone()]);
        // For the next turn: the byte is as it was, and a new start believes it.
        flip(&volume.segment(0), at_file);
        let location = opened.store.index().location(&ShardKey::replica(chunks[1].id())).unwrap();
        let good = Location { quarantined: false, ..location.unwrap() };
        let shards = vec![(ShardKey::replica(chunks[1].id()), good)];
        opened.store.index().write(&IndexBatch { shards, ..IndexBatch::default() }).unwrap();
        opened.store.index().forget_missing(&[chunks[1].id()]).unwrap();
    }
    opened.assert_has(&chunks);
    flip(&volume.segment(0), SEGMENT_HEADER_BYTES + record + RECORD_HEADER_BYTES as u64);
    assert_eq!(opened.store.read(&chunks[1].id()).unwrap(), None);
    // It comes again, as from a sibling, and is good; also where the index is lost.
    opened.put(&chunks[1..2], START).unwrap();
    opened.assert_has(&chunks);
    assert_eq!(opened.store.totals().shards, 3);
    opened.close();
    std::fs::remove_dir_all(volume.index()).unwrap();
    let opened = volume.open();
    opened.assert_has(&chunks);
    assert_eq!(opened.store.totals().shards, 3);
    opened.close();
}

/// Every write to the disk fails in two ways: not done, and done but reported as failed.
#[test]
fn a_failed_write_or_sync_poisons_the_store() {
    for fault in [Fault::Write, Fault::WriteReported, Fault::Sync, Fault::SyncReported] {
        let (platter, index) = (Platter::default(), tempfile::tempdir().unwrap());
        let kept = [chunk(1, 1000), chunk(2, 1000)];
        let (lost, late) = (chunk(3, 1000), chunk(4, 1000));
        let opened = open(platter.clone(), index.path(), SMALL);
        opened.put(&kept, START).unwrap();
        assert_eq!(opened.store.fault(), None);

        platter.fail(Some(fault));
        let refused = opened.put(std::slice::from_ref(&lost), START).unwrap_err();
        assert!(matches!(refused, StoreError::Poisoned(_)), "{fault:?}: {refused}");
        assert_eq!(
            opened.store.read(&lost.id()).unwrap(),
            None,
            "{fault:?}: nobody was told of it"
        );
        // The disk is well again, but what it kept is in doubt until the next start.
        platter.fail(None);
        for chunks in [&[late.clone()][..], &kept, &[]] {
            let refused = opened.put(chunks, START.plus_ms(HOUR)).unwrap_err();
            assert!(matches!(refused, StoreError::Poisoned(_)), "{fault:?}: {refused}");
        }
        assert!(opened.extend(&ids(&kept), START.plus_ms(HOUR)).is_err());
        assert!(opened.store.fault().unwrap().contains("broken"));
        opened.assert_has(&kept);
        opened.close();

        platter.lose_power(&mut Dice(7));
        let opened = open(platter.clone(), index.path(), SMALL);
        assert_eq!(opened.store.fault(), None);
        opened.assert_has(&kept);
        opened.put(&[lost.clone(), late.clone()], START).unwrap();
        opened.assert_has(&[lost, late]);
        opened.close();
    }
}

#[test]
fn those_that_wait_behind_a_failed_sync_are_refused() {
    let (platter, index) = (Platter::default(), tempfile::tempdir().unwrap());
    let opened = open(platter.clone(), index.path(), 1 << 20);
    platter.hold_syncs(true);
    wait(async {
        let put = |at| {
            let store = opened.store.clone();
            tokio::spawn(async move { store.put(vec![chunk(at, 100)], START).await })
        };
        let mut puts = vec![put(0)];
        while platter.syncs() == 0 {
            tokio::task::yield_now().await;
        }
        puts.extend((1..50).map(put));
        while opened.store.room.available_permits() > QUEUE_BYTES - 50 * (100 + JOB_BYTES) {
            tokio::task::yield_now().await;
        }
        platter.fail(Some(Fault::Sync));
        platter.hold_syncs(false);
        for put in puts {
            assert!(matches!(put.await.unwrap(), Err(StoreError::Poisoned(_))));
        }
    });
    assert_eq!(opened.store.room.available_permits(), QUEUE_BYTES, "nothing is held for ever");
    opened.close();
}

#[test]
fn a_full_disk_refuses_what_finds_no_room_and_nothing_else() {
    let (platter, index) = (Platter::default(), tempfile::tempdir().unwrap());
    let opened = open(platter.clone(), index.path(), SMALL);
    platter.fail(Some(Fault::Full));
    let refused = opened.put(&[chunk(0, 100)], START).unwrap_err();
    assert!(matches!(refused, StoreError::Full), "not even a first segment: {refused}");
    assert_eq!(opened.store.fault().as_deref(), Some("this storage node's disk is full"));

    platter.fail(None);
    let here = [chunk(1, 8000), chunk(2, 4000)];
    opened.put(&here, START).unwrap();
    assert_eq!(opened.store.fault(), None);
    platter.fail(Some(Fault::Full));
    for _ in 0..3 {
        let refused = opened.put(&[chunk(3, 1000), chunk(4, 8000)], START).unwrap_err();
        assert!(matches!(refused, StoreError::Full), "{refused}");
    }
    assert_eq!(opened.store.read(&chunk(4, 8000).id()).unwrap(), None);
    opened.assert_has(&here);
    assert!(opened.store.fault().is_some());
    assert_eq!(opened.store.poison(), None);
    // What still fits is taken, and so is what needs next to nothing.
    opened.put(&[chunk(5, 500)], START).unwrap();
    let renewed = opened.extend(&ids(&here), START.plus_ms(HOUR)).unwrap();
    assert_eq!(renewed[1].as_ref().unwrap().held.keep_until, START.plus_ms(HOUR));
    opened.close();

    let opened = open(platter.clone(), index.path(), SMALL);
    opened.assert_has(&here);
    platter.fail(None);
    opened.put(&[chunk(3, 1000), chunk(4, 8000)], START).unwrap();
    assert_eq!(opened.store.totals().shards, 5);
    opened.close();
    std::fs::remove_dir_all(index.path()).unwrap();
    let opened = open(platter, index.path(), SMALL);
    opened.assert_has(&[chunk(1, 8000), chunk(3, 1000), chunk(4, 8000), chunk(5, 500)]);
    assert_eq!(opened.store.totals().shards, 5);
    opened.close();
}

/// Goal: the node keeps no more than it offers, and all that needs no room goes on.
#[test]
fn what_is_beyond_the_capacity_is_refused_and_nothing_else() {
    let (platter, index) = (Platter::default(), tempfile::tempdir().unwrap());
    let open_with = |capacity_bytes| {
        let sizes = Sizes { segment_bytes: SMALL, capacity_bytes };
        crate::kit::open_with(NODE, platter.clone(), index.path(), sizes).unwrap()
    };
    let opened = open_with(2000);
    let here = [chunk(1, 1000), chunk(2, 600)];
    opened.put(&here, START).unwrap();
    for _ in 0..2 {
        let refused = opened.put(&[chunk(3, 401)], START).unwrap_err();
        assert!(matches!(refused, StoreError::CapacityFull), "{refused}");
    }
    assert_eq!(opened.store.read(&chunk(3, 401).id()).unwrap(), None);
    assert_eq!(opened.store.totals(), Totals { shards: 2, bytes: 1600 });
    assert_eq!(opened.store.poison(), None);
    // What is here takes up no more room when it comes again, is read, and is promised for longer.
    opened.put(&here, START.plus_ms(HOUR)).unwrap();
    opened.assert_has(&here);
    let renewed = opened.extend(&ids(&here), START.plus_ms(3 * HOUR)).unwrap();
    assert!(renewed.iter().all(|it| it.as_ref().unwrap().held.keep_until > START.plus_ms(HOUR)));
    // Just what is left, and the chunk that was damaged.
    opened.put(&[chunk(4, 400)], START).unwrap();
    let location = opened.store.index().location(&ShardKey::replica(here[0].id())).unwrap();
    platter.rot(0, location.unwrap().end() - 1);
    assert_eq!(opened.store.read(&here[0].id()).unwrap(), None);
    opened.put(&here[..1], START).unwrap();
    opened.assert_has(&here);
    let refused = opened.put(&[chunk(5, 1)], START).unwrap_err();
    assert!(matches!(refused, StoreError::CapacityFull), "{refused}");
    // Of one call a part may be kept; the call is refused all the same.
    opened.close();
    let opened = open_with(2500);
    opened.put(&[chunk(6, 300), chunk(7, 300)], START).unwrap_err();
    assert_eq!(opened.store.totals().bytes, 2300);
    opened.close();

    // A node that offers less than it holds keeps it; one that offers more takes more.
    let opened = open_with(100);
    opened.assert_has(&here);
    opened.put(&[chunk(8, 1)], START).unwrap_err();
    opened.close();
    let capacity = SEALED_BYTES_MAX as u64 + 2300;
    for (offered, fault) in
        [(capacity - 1, Some("this storage node's capacity is used up")), (capacity, None)]
    {
        let opened = open_with(offered);
        assert_eq!(opened.store.fault().as_deref(), fault, "the largest chunk fits, or not");
        opened.close();
    }
    let opened = open_with(capacity);
    opened.put(&[chunk(9, SEALED_BYTES_MAX)], START).unwrap();
    assert!(opened.store.fault().is_some());
    opened.close();
}

#[test]
fn a_folder_reads_its_own_names_only_and_overwrites_nothing() {
    let volume = Volume::new();
    let folder = Folder::open(&volume.segments()).unwrap();
    for name in ["unfinished", "7.seg", "+000000000000007.seg", "x.seg", "0000000000000003.seg.old"]
    {
        std::fs::write(volume.segments().join(name), b"not a segment").unwrap();
    }
    assert!(folder.segments().unwrap().is_empty());
    let header = segment_header(3, &NODE);
    let segment = folder.create(3, SMALL, &header).unwrap();
    assert_eq!(segment.length().unwrap(), SMALL);
    assert_eq!(Segment::read(&segment, 0, 64).unwrap(), header);
    assert_eq!(folder.segments().unwrap(), [3]);
    assert!(!volume.segments().join("unfinished").exists());
    let refused = folder.create(3, SMALL, &header).unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::AlreadyExists);
}

/// A segment that could not be made leaves no trace: the next start would stumble over it.
#[test]
fn a_segment_there_is_no_room_for_leaves_no_file() {
    let volume = Volume::new();
    let folder = Folder::open(&volume.segments()).unwrap();
    let refused = folder.create(0, 1 << 60, &segment_header(0, &NODE)).unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::StorageFull);
    assert_eq!(std::fs::read_dir(volume.segments()).unwrap().count(), 0);
    let opened = open(folder, &volume.index(), 1 << 60);
    assert!(matches!(opened.put(&[chunk(1, 10)], START), Err(StoreError::Full)));
    opened.close();
    let opened = volume.open();
    opened.put(&[chunk(1, 10)], START).unwrap();
    opened.close();
}

#[test]
fn a_store_is_refused_to_any_other_node() {
    let volume = Volume::new();
    let opened = volume.open();
    opened.put(&[chunk(1, 100)], START).unwrap();
    opened.close();
    let other = NodeId::from_bytes([9; 16]);
    // By its index, and where that is lost, by its segments.
    for index_lost in [false, true] {
        if index_lost {
            std::fs::remove_dir_all(volume.index()).unwrap();
        }
        let refused = volume.open_as(other).err().unwrap();
        assert!(matches!(refused, StoreError::Damaged(_)), "{refused}");
    }
}

/// The signature of a receipt counts in its cluster only.
#[test]
fn a_receipt_is_for_one_cluster() {
    let volume = Volume::new();
    let opened = volume.open();
    let receipts = wait(opened.store.put(vec![chunk(1, 100)], START)).unwrap();
    checked(&receipts[0]);
    let key = |_| Some(Key::of_node().public_key());
    Receipt::verify(&receipts[0], &CLUSTER, key).unwrap();
    Receipt::verify(&receipts[0], &ClusterId::from_bytes([7; 32]), key).unwrap_err();
    opened.close();
}
