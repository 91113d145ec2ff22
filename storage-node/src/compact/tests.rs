//! Tests of which segments are compacted, and that nothing is lost by it.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use bytes::Bytes;
use coffer_model::chunk::{SealedChunk, ShardKey};
use coffer_model::id::ChunkId;
use tempfile::TempDir;

use super::*;
use crate::disk::{Disk, Folder};
use crate::kit::{Opened, START, chunk, copy, ids, open, wait};
use crate::store::platter::{Dice, Fault, Platter};

const HOUR: u64 = HOLD_MS;
const SMALL: u64 = 16 << 10;
/// More were run while this was written.
const SEEDS: u64 = 12;

#[test]
fn segments_are_chosen_by_what_is_dead_in_them_the_emptiest_first() {
    let usage = |segment, used_bytes, live_bytes| Usage { segment, used_bytes, live_bytes };
    let all = [
        usage(1, 100, 100),
        usage(2, 100, 50),
        usage(3, 100, 51),
        usage(4, 100, 0),
        usage(5, 0, 0),
    ];
    for (percent, expected) in
        [(50, &[2, 4, 5][..]), (49, &[2, 3, 4, 5][..]), (100, &[4, 5][..]), (1, &[2, 3, 4, 5][..])]
    {
        let chosen: Vec<u64> = choose(&all, percent).into_iter().collect();
        assert_eq!(chosen, expected, "{percent} %");
    }
    let many: Vec<_> = (0..600).map(|at| usage(at, 1000, 600 - at)).collect();
    let chosen = choose(&many, 1);
    assert_eq!(chosen.first(), Some(&(600 - SEGMENTS_PER_PASS as u64)));
    assert_eq!(chosen.len(), SEGMENTS_PER_PASS);
}

/// What is moved waits for what was moved before it.
#[test]
fn nothing_is_moved_faster_than_it_may_be() {
    let pace = Pace { every: Duration::ZERO, dead_percent: 50, bytes_per_second: 1 << 20 };
    assert_eq!(pace.time_for(1 << 20), Duration::from_secs(1));
    assert_eq!(pace.time_for(1 << 18), Duration::from_millis(250));
    assert!(Pace { bytes_per_second: 0, ..pace }.time_for(1) > Duration::ZERO);
}

fn compactor<D: Disk>(opened: &Opened<D>) -> Compactor<D> {
    let pace = Pace { every: Duration::ZERO, dead_percent: 50, bytes_per_second: u64::MAX };
    let meters = Meters::new(&Metrics::new([], []).unwrap()).unwrap();
    Compactor::new(opened.store.clone(), Arc::default(), pace, meters)
}

/// Compacts until nothing is left to compact. Says how many segments were given back.
fn compact<D: Disk>(opened: &Opened<D>) -> Result<u64, StoreError> {
    let compactor = compactor(opened);
    let mut given_back = 0;
    loop {
        match wait(compactor.pass())? {
            0 => return Ok(given_back),
            some => given_back += some,
        }
    }
}

/// Forgets chunks, whatever they are promised for.
fn forget<D: Disk>(opened: &Opened<D>, chunks: &[SealedChunk<Bytes>]) -> Result<u64, StoreError> {
    opened.store.take_up(&[], &ids(chunks), 1, None)?;
    let end = LogTime::from_unix_ms(u64::MAX);
    wait(opened.store.forget(ids(chunks).into_iter().map(|id| (id, end)).collect()))
}

fn keep_until<D: Disk>(opened: &Opened<D>, chunk: &SealedChunk<Bytes>) -> LogTime {
    let location = opened.store.index().location(&ShardKey::replica(chunk.id())).unwrap();
    location.unwrap().keep_until
}

/// The same on every kind of disk: room comes back, and what is kept stays readable, also where the
/// index is lost.
fn check_room_comes_back<D: Disk>(disk: impl Fn() -> D) {
    let dir = tempfile::tempdir().unwrap();
    let index = dir.path().join("index");
    let opened = open(disk(), &index, SMALL);
    let chunks: Vec<_> = (0..60).map(|at| chunk(at, 2000)).collect();
    for (hours, some) in (1..).zip(chunks.chunks(6)) {
        opened.put(some, START.plus_ms(hours * HOUR)).unwrap();
    }
    let before = disk().segments().unwrap().len();
    let (kept, gone): (Vec<_>, Vec<_>) =
        (0..).zip(chunks.clone()).partition::<Vec<(u64, _)>, _>(|(at, _)| at % 5 == 0);
    let [kept, gone] = [kept, gone].map(|some| some.into_iter().map(|it| it.1).collect::<Vec<_>>());
    forget(&opened, &gone).unwrap();
    let promised: Vec<LogTime> = kept.iter().map(|chunk| keep_until(&opened, chunk)).collect();
    assert_eq!(opened.store.totals().bytes, 12 * 2000);
    assert!(compact(&opened).unwrap() >= before as u64 - 1);
    let after = disk().segments().unwrap().len();
    assert!(after <= 3, "{after} of {before} segments are left");
    opened.assert_has(&kept);
    // There is nothing more to do.
    assert_eq!(compact(&opened).unwrap(), 0);
    opened.close();
    for index_lost in [false, true] {
        if index_lost {
            std::fs::remove_dir_all(&index).unwrap();
        }
        let opened = open(disk(), &index, SMALL);
        opened.assert_has(&kept);
        assert!(opened.store.totals().shards >= 12);
        let found: Vec<LogTime> = kept.iter().map(|chunk| keep_until(&opened, chunk)).collect();
        assert_eq!(found, promised, "the index is lost: {index_lost}");
        opened.put(&gone, START).unwrap();
        opened.assert_has(&chunks);
        forget(&opened, &gone).unwrap();
        opened.close();
    }
}

#[test]
fn room_comes_back_on_files() {
    let dir = tempfile::tempdir().unwrap();
    check_room_comes_back(|| Folder::open(&dir.path().join("segments")).unwrap());
}

#[test]
fn room_comes_back_in_memory() {
    let platter = Platter::default();
    check_room_comes_back(|| platter.clone());
}

struct Bench {
    platter: Platter,
    dir: TempDir,
}

impl Bench {
    fn new() -> Self {
        Self { platter: Platter::default(), dir: tempfile::tempdir().unwrap() }
    }

    fn index(&self) -> std::path::PathBuf {
        self.dir.path().join("index")
    }

    fn open(&self) -> Opened<Platter> {
        open(self.platter.clone(), &self.index(), SMALL)
    }

    fn segments(&self) -> Vec<u64> {
        self.platter.segments().unwrap()
    }
}

/// Goal: a receipt holds though the segment with the record that says so is given back, and the index
/// is lost after it. Method: a chunk in a segment that stays, renewed in one that goes.
#[test]
fn a_promise_outlives_the_segment_it_stood_in() {
    let bench = Bench::new();
    let opened = bench.open();
    let stays: Vec<_> = (0..7).map(|at| chunk(at, 2000)).collect();
    let goes: Vec<_> = (10..17).map(|at| chunk(at, 2000)).collect();
    opened.put(&stays, START).unwrap();
    let mut renewed = Vec::new();
    for (hours, some) in (2..).zip([&stays[..2], &stays[2..4]]) {
        // In the segment that goes, among what is forgotten.
        opened.put(&goes[renewed.len()..renewed.len() + 2], START).unwrap();
        opened.extend(&ids(some), START.plus_ms(hours * HOUR)).unwrap();
        renewed.extend(some.iter().map(|chunk| (chunk, START.plus_ms(hours * HOUR))));
    }
    opened.put(&goes[4..], START).unwrap();
    opened.put(&(20..24).map(|at| chunk(at, 2000)).collect::<Vec<_>>(), START).unwrap();
    assert_eq!(bench.segments(), [0, 1, 2]);
    forget(&opened, &goes).unwrap();
    assert_eq!(compact(&opened).unwrap(), 1);
    assert_eq!(bench.segments(), [0, 2]);
    opened.close();
    std::fs::remove_dir_all(bench.index()).unwrap();
    let opened = bench.open();
    for (chunk, until) in renewed {
        assert_eq!(keep_until(&opened, chunk), until);
    }
    assert_eq!(keep_until(&opened, &stays[5]), START);
    opened.close();
}

/// Otherwise compacting would take what rots on the way for good, and remove the good copy.
#[test]
fn what_is_not_read_back_is_not_moved() {
    let bench = Bench::new();
    let opened = bench.open();
    let chunks: Vec<_> = (0..12).map(|at| chunk(at, 2000)).collect();
    opened.put(&chunks, START).unwrap();
    forget(&opened, &chunks[1..6]).unwrap();
    bench.platter.fail(Some(Fault::Rot));
    assert_eq!(compact(&opened).unwrap(), 0);
    opened.assert_has(&chunks[..1]);
    assert!(bench.segments().contains(&0));
    bench.platter.fail(None);
    assert_eq!(compact(&opened).unwrap(), 1);
    opened.assert_has(&chunks[..1]);
    opened.assert_has(&chunks[6..]);
    opened.close();
}

/// Goal: what was changed while it was copied is left as it is. Method: a shard that was moved before,
/// and one that was forgotten.
#[test]
fn a_shard_is_moved_only_from_where_it_stands() {
    let bench = Bench::new();
    let opened = bench.open();
    let a = chunk(1, 500);
    opened.put(std::slice::from_ref(&a), START).unwrap();
    let location = || opened.store.index().location(&ShardKey::replica(a.id())).unwrap();
    let relocate = |found| wait(opened.store.relocate(vec![(a.clone(), found)])).unwrap();
    let first = location().unwrap();
    relocate(first);
    let second = location().unwrap();
    assert!(!second.is_record_of(&first));
    relocate(first);
    assert_eq!(location(), Some(second));
    opened.assert_has(std::slice::from_ref(&a));
    forget(&opened, std::slice::from_ref(&a)).unwrap();
    relocate(second);
    assert_eq!(location(), None);
    assert_eq!(opened.store.totals().shards, 0);
    opened.close();
}

#[test]
fn while_the_disk_fails_nothing_is_removed() {
    let bench = Bench::new();
    let opened = bench.open();
    let chunks: Vec<_> = (0..12).map(|at| chunk(at, 2000)).collect();
    opened.put(&chunks, START).unwrap();
    forget(&opened, &chunks[..7]).unwrap();
    bench.platter.fail(Some(Fault::Sync));
    opened.put(&[chunk(20, 10)], START).unwrap_err();
    bench.platter.fail(None);
    assert_eq!(compact(&opened).unwrap(), 0);
    assert_eq!(bench.segments(), [0, 1]);
    opened.close();
    // It is done after the next start.
    let opened = bench.open();
    assert_eq!(compact(&opened).unwrap(), 1);
    opened.assert_has(&chunks[7..]);
    opened.close();
}

/// Goal: a full disk is helped also where there is no room to move anything to. Method: one segment
/// with nothing good in it, one with a little that is dead.
#[test]
fn on_a_full_disk_what_is_empty_goes_first_and_little_is_enough() {
    let bench = Bench::new();
    let opened = bench.open();
    let chunks: Vec<_> = (0..24).map(|at| chunk(at, 2000)).collect();
    opened.put(&chunks, START).unwrap();
    assert_eq!(bench.segments(), [0, 1, 2, 3]);
    forget(&opened, &chunks[..8]).unwrap();
    let fill: Vec<_> = (30..34).map(|at| chunk(at, 2000)).collect();
    opened.put(&fill, START).unwrap();
    assert_eq!(wait(compactor(&opened).pass()).unwrap(), 1);
    bench.platter.fail(Some(Fault::Full));
    opened.put(&(40..46).map(|at| chunk(at, 2000)).collect::<Vec<_>>(), START).unwrap_err();
    let refused = compact(&opened).unwrap_err();
    assert!(matches!(refused, StoreError::Full), "{refused}");
    opened.assert_has(&chunks[8..]);
    bench.platter.fail(None);
    assert!(compact(&opened).unwrap() >= 1, "a seventh of segment 1 is dead");
    opened.assert_has(&chunks[8..]);
    opened.assert_has(&fill);
    opened.close();
}

/// Goal: readers and writers notice nothing of compaction. Method: threads that read, renew and put all
/// the while.
#[test]
fn what_is_kept_is_there_all_the_time() {
    let bench = Bench::new();
    let opened = bench.open();
    let kept: Vec<_> = (0..30).map(|at| chunk(at, 500)).collect();
    let filler =
        |round: u64| -> Vec<_> { (0..40).map(|at| chunk(1000 + round * 100 + at, 700)).collect() };
    opened.put(&kept, START).unwrap();
    let is_over = AtomicBool::new(false);
    let mut given_back = 0;
    thread::scope(|scope| {
        let (opened, kept, is_over) = (&opened, &kept, &is_over);
        scope.spawn(move || {
            while !is_over.load(Ordering::Relaxed) {
                opened.assert_has(kept);
            }
        });
        scope.spawn(move || {
            let mut until = START;
            while !is_over.load(Ordering::Relaxed) {
                until = until.plus_ms(HOUR);
                for (chunk, receipt) in kept.iter().zip(opened.extend(&ids(kept), until).unwrap()) {
                    let promised = receipt.unwrap().held.keep_until;
                    assert!(keep_until(opened, chunk) >= promised);
                }
            }
        });
        for round in 0..12 {
            let filler = filler(round);
            opened.put(&filler, START).unwrap();
            forget(opened, &filler).unwrap();
            given_back += compact(opened).unwrap();
        }
        is_over.store(true, Ordering::Relaxed);
    });
    assert!(given_back > 20, "{given_back} segments were given back");
    opened.close();
}

/// Goal: nothing acknowledged is ever lost, wherever compaction is interrupted. Method: puts, renewals,
/// forgetting and compaction on a disk that fails after any number of steps, power failures, and indexes
/// that are older or gone, against a map of what was acknowledged. A failure names the seed.
#[test]
fn nothing_acknowledged_is_lost_wherever_compaction_stops() {
    let mut given_back = 0;
    for seed in 1..=SEEDS {
        let told = std::panic::catch_unwind(|| simulate(seed));
        given_back += told.unwrap_or_else(|_| panic!("seed {seed}"));
    }
    assert!(given_back > 5 * SEEDS, "{given_back} segments were given back");
}

fn simulate(seed: u64) -> u64 {
    let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let bench = Bench::new();
    let (index, older) = (bench.index(), bench.dir.path().join("older"));
    let pool: Vec<_> =
        (0..40).map(|at| chunk(at, usize::try_from(dice.below(3000) + 1).unwrap())).collect();
    let mut acknowledged: BTreeMap<ChunkId, LogTime> = BTreeMap::new();
    let (mut now, mut given_back) = (START, 0);
    for _ in 0..10 {
        let opened = bench.open();
        check(&opened, &pool, &acknowledged);
        let faults = [
            Fault::Write,
            Fault::WriteReported,
            Fault::Sync,
            Fault::SyncReported,
            Fault::Remove,
            Fault::RemoveReported,
            Fault::Full,
        ];
        let fault = faults[usize::try_from(dice.below(7)).unwrap()];
        bench.platter.fail_later(dice.below(60), fault);
        for _ in 0..8 {
            now = now.plus_ms(dice.below(HOUR));
            let one_in = 2 + dice.below(4);
            let some: Vec<_> = pool.iter().filter(|_| dice.below(one_in) == 0).cloned().collect();
            let receipts = match dice.below(4) {
                0 => opened.extend(&ids(&some), now).map(|it| it.into_iter().flatten().collect()),
                1 => {
                    // Whether or not it is told, it may be gone.
                    acknowledged.retain(|id, _| some.iter().all(|chunk| chunk.id() != *id));
                    forget(&opened, &some).map(|_| Vec::new())
                }
                2 => compact(&opened).map(|count| {
                    given_back += count;
                    Vec::new()
                }),
                _ => opened.put(&some, now),
            };
            for receipt in receipts.unwrap_or_default() {
                let until = acknowledged.entry(receipt.held.shard.chunk).or_insert(LogTime::ZERO);
                *until = (*until).max(receipt.held.keep_until);
            }
        }
        bench.platter.fail(None);
        check(&opened, &pool, &acknowledged);
        opened.close();
        if dice.below(2) == 0 {
            bench.platter.lose_power(&mut dice);
        }
        lose_index(&mut dice, &index, &older);
    }
    given_back
}

/// The index is as it was, or an older one, or gone.
fn lose_index(dice: &mut Dice, index: &Path, older: &Path) {
    match dice.below(4) {
        0 => {
            // No crash brings back one from before; and what was forgotten by then is here again, and
            // promised again, where that one has read already.
            std::fs::remove_dir_all(index).unwrap();
            let _ = std::fs::remove_dir_all(older);
        }
        1 if older.exists() => {
            std::fs::remove_dir_all(index).unwrap();
            copy(older, index);
        }
        _ => {
            let _ = std::fs::remove_dir_all(older);
            copy(index, older);
        }
    }
}

fn check(
    opened: &Opened<Platter>,
    pool: &[SealedChunk<Bytes>],
    acknowledged: &BTreeMap<ChunkId, LogTime>,
) {
    for chunk in pool {
        let Some(until) = acknowledged.get(&chunk.id()) else { continue };
        opened.assert_has(std::slice::from_ref(chunk));
        assert!(keep_until(opened, chunk) >= *until, "a promise is shorter than it was");
    }
}
