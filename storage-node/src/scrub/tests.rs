//! Tests of how fast scrubbing goes, and of where it goes on. What it does about damage is tested in
//! `store/tests.rs`, and with whole nodes in `run/tests.rs`.
#![allow(clippy::unwrap_used)]

use bytes::Bytes;
use coffer_model::chunk::SealedChunk;
use coffer_model::id::ChunkId;
use tempfile::TempDir;

use super::*;
use crate::kit::{START, chunk, open};
use crate::record::{RECORD_HEADER_BYTES, SEGMENT_HEADER_BYTES};
use crate::store::platter::{Dice, Platter};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const MIB: u64 = 1 << 20;
/// Payload of the chunks that are scrubbed here, and what reading one back takes.
const LENGTH: usize = 928;
const RECORD: u64 = (LENGTH + RECORD_HEADER_BYTES) as u64;

fn shard(share: u32) -> ShardKey {
    let mut id = [0xff; 32];
    id[..4].copy_from_slice(&share.to_be_bytes());
    ShardKey::replica(ChunkId::from_bytes(id))
}

#[test]
fn a_shard_waits_for_its_time_and_for_the_reads_before_it() {
    let pace = Pace { pass: 8 * DAY, bytes_per_second: 20 * MIB };
    let (none, second) = (Duration::ZERO, Duration::from_secs(1));
    let half = 1 << 31;
    for (share, elapsed, read, since, expected) in [
        // Its time within the pass.
        (0, none, 0, none, none),
        (half, none, 0, none, 4 * DAY),
        (half, DAY, 0, none, 3 * DAY),
        (half, 4 * DAY, 0, none, none),
        // Late, as after a stop: the speed alone counts.
        (half, 9 * DAY, 0, none, none),
        (half, 9 * DAY, 20 * MIB, none, second),
        (half, 9 * DAY, 20 * MIB, second / 4, second * 3 / 4),
        (half, 9 * DAY, 20 * MIB, 2 * second, none),
        // The longer of both.
        (half, DAY, 20 * MIB, none, 3 * DAY),
        (0, DAY, u64::MAX, none, Duration::from_nanos(u64::MAX)),
    ] {
        let pause = pace.pause(&shard(share), elapsed, read, since);
        assert_eq!(pause, expected, "{share} after {elapsed:?}, {read} bytes {since:?} ago");
    }
    let stopped = Pace { pass: DAY, bytes_per_second: 0 };
    assert!(stopped.pause(&shard(0), none, 1, none) >= second, "no speed is no division by it");
}

/// Goal: neither bound is ever broken, whatever is read and however long it takes. Method: passes over
/// random shards on a clock of its own.
#[test]
fn a_pass_is_never_faster_than_it_may_be() {
    for seed in 1..=50_u64 {
        let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let pace = Pace {
            pass: Duration::from_secs(dice.below(5000)),
            bytes_per_second: 1 + dice.below(2 * MIB),
        };
        let mut ids: Vec<u32> =
            (0..200).map(|_| u32::try_from(dice.below(1 << 32)).unwrap()).collect();
        ids.sort_unstable();
        let (mut now, mut last, mut read, mut total) = (Duration::ZERO, Duration::ZERO, 0, 0);
        for id in ids {
            now += pace.pause(&shard(id), now, read, now - last);
            let due = part_of(pace.pass, share(&shard(id)));
            assert!(now >= due, "seed {seed}: at {now:?} instead of {due:?}");
            // All that was read before, and waited for.
            let seconds = now.as_secs_f64() + 1e-3;
            let allowed = seconds * pace.bytes_per_second as f64;
            assert!(total as f64 <= allowed, "seed {seed}: {total} bytes in {now:?}");
            (last, read) = (now, dice.below(MIB));
            total += read;
            now += Duration::from_millis(dice.below(200));
        }
    }
}

struct Bench {
    platter: Platter,
    index: TempDir,
    /// In the order in which they are scrubbed.
    chunks: Vec<SealedChunk<Bytes>>,
}

impl Bench {
    fn new(count: u64) -> Self {
        let mut chunks: Vec<_> = (0..count).map(|name| chunk(name, LENGTH)).collect();
        chunks.sort_unstable_by_key(SealedChunk::id);
        Self { platter: Platter::default(), index: tempfile::tempdir().unwrap(), chunks }
    }

    fn open(&self) -> crate::kit::Opened<Platter> {
        open(self.platter.clone(), self.index.path(), 1 << 20)
    }

    /// Where the bytes of a chunk begin; they were put in this order.
    fn payload(&self, at: u64) -> u64 {
        SEGMENT_HEADER_BYTES + at * RECORD + RECORD_HEADER_BYTES as u64
    }
}

fn clock() -> Arc<LogClock> {
    let clock = LogClock::new(1000);
    clock.learn(START);
    Arc::new(clock)
}

/// Reads one record a second, and passes follow each other at once.
const ONE_A_SECOND: Pace = Pace { pass: Duration::ZERO, bytes_per_second: RECORD };

/// Scrubs until `bytes` were read, with time that passes by itself, and stops.
async fn scrub(store: &Store<Platter>, bytes: u64) -> i64 {
    let metrics = Metrics::new([], []).unwrap();
    let meters = Meters::new(&metrics).unwrap();
    let (read, position) = (meters.read.clone(), meters.position_percent.clone());
    let shutdown = Shutdown::new();
    let scrubber = Scrubber::new(store.clone(), ONE_A_SECOND, meters).unwrap();
    let task = tokio::spawn(scrubber.run(clock(), shutdown.child()));
    let begin = Instant::now();
    while read.get() < bytes {
        assert!(begin.elapsed() < DAY, "{} of {bytes} bytes were read", read.get());
        sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(read.get(), bytes, "no faster than it may be");
    assert!(begin.elapsed() >= Duration::from_secs(bytes / RECORD - 1), "{:?}", begin.elapsed());
    shutdown.request("the test wants it");
    task.await.unwrap();
    position.get()
}

/// Goal: a pass goes on after a restart where it stood, and what is behind it is found by the next
/// one. Method: rot on both sides of where it stands.
#[tokio::test(start_paused = true)]
async fn a_pass_goes_on_where_it_stood_before_a_restart() {
    let bench = Bench::new(40);
    let opened = bench.open();
    opened.store.put(bench.chunks.clone(), START).await.unwrap();
    let position = scrub(&opened.store, 10 * RECORD).await;
    let tenth = ShardKey::replica(bench.chunks[9].id());
    assert_eq!(opened.store.index().pass().unwrap().unwrap().after, Some(tenth));
    let id = u32::from(tenth.chunk.as_bytes()[0]);
    assert_eq!(position, i64::from(id * 100 / 256));
    opened.close();

    bench.platter.rot(0, bench.payload(3));
    bench.platter.rot(0, bench.payload(20));
    let opened = bench.open();
    scrub(&opened.store, 30 * RECORD).await;
    assert_eq!(opened.missing(), [bench.chunks[20].id()]);
    scrub(&opened.store, 4 * RECORD).await;
    assert_eq!(opened.missing(), [bench.chunks[3].id(), bench.chunks[20].id()]);
    assert_eq!(opened.store.corrupt(), 2);
    // What is in quarantine is not read again and again.
    scrub(&opened.store, 72 * RECORD).await;
    assert_eq!(opened.store.corrupt(), 2);
    opened.close();
}

/// A clock that was wrong when the pass began must not hold it up.
#[tokio::test(start_paused = true)]
async fn a_clock_that_goes_back_does_not_stop_scrubbing() {
    let bench = Bench::new(5);
    let opened = bench.open();
    opened.store.put(bench.chunks.clone(), START).await.unwrap();
    let began_unix_ms = now_unix_ms() + 1_000_000_000_000;
    let after = Some(ShardKey::replica(bench.chunks[1].id()));
    opened.store.index().set_pass(&Pass { began_unix_ms, after }).unwrap();
    let meters = Meters::new(&Metrics::new([], []).unwrap()).unwrap();
    let mut scrubber = Scrubber::new(opened.store.clone(), ONE_A_SECOND, meters).unwrap();
    assert!(scrubber.elapsed() < DAY);
    assert!(scrubber.pass.began_unix_ms <= now_unix_ms(), "it counts from now on");
    drop(scrubber);
    scrub(&opened.store, 3 * RECORD).await;
    opened.close();
}

/// Goal: whatever byte of an extension rots, scrubbing finds it and the promise outlasts the loss of the
/// index, which has nothing but records to be made of anew. Method: a chunk is promised for longer; each
/// byte of the extension rots in turn, in a store of its own; once with and once without a pass of scrubbing
/// before the index is lost.
#[tokio::test(start_paused = true)]
async fn a_rotten_extension_is_found_and_its_promise_written_anew() {
    let later = START.plus_ms(3_600_000);
    for (at, is_scrubbed) in
        (0..RECORD_HEADER_BYTES as u64).map(|at| (at, true)).chain([(9, false)])
    {
        let bench = Bench::new(3);
        let opened = bench.open();
        opened.store.put(bench.chunks.clone(), START).await.unwrap();
        let chunk = bench.chunks[1].id();
        opened.store.extend(vec![chunk], later).await.unwrap();
        opened.store.extend(vec![bench.chunks[2].id()], later).await.unwrap();
        bench.platter.rot(0, SEGMENT_HEADER_BYTES + 3 * RECORD + at);
        let gap = SEGMENT_HEADER_BYTES + 3 * RECORD;
        assert_eq!(opened.store.chain(0).unwrap().gaps, [gap], "byte {at}");
        if is_scrubbed {
            let meters = Meters::new(&Metrics::new([], []).unwrap()).unwrap();
            let damaged = meters.damaged_records.clone();
            let mut scrubber = Scrubber::new(opened.store.clone(), ONE_A_SECOND, meters).unwrap();
            scrubber.check_chains(&clock()).await.unwrap();
            assert_eq!(damaged.get(), 1);
            let end = opened.store.index().indexed(0).unwrap();
            // The same gap is mended once.
            scrubber.check_chains(&clock()).await.unwrap();
            assert_eq!((damaged.get(), opened.store.index().indexed(0).unwrap()), (1, end));
        }
        opened.close();
        std::fs::remove_dir_all(bench.index.path()).unwrap();
        let opened = bench.open();
        let row = opened.store.index().location(&ShardKey::replica(chunk)).unwrap().unwrap();
        assert_eq!(row.keep_until, if is_scrubbed { later } else { START }, "byte {at}");
        opened.close();
    }
}

/// Goal: the check is a part of every pass. Method: a whole pass by itself, then a look at what was counted.
#[tokio::test(start_paused = true)]
async fn a_pass_ends_with_a_look_at_all_records() {
    let bench = Bench::new(3);
    let opened = bench.open();
    opened.store.put(bench.chunks.clone(), START).await.unwrap();
    let later = START.plus_ms(3_600_000);
    opened.store.extend(vec![bench.chunks[0].id()], later).await.unwrap();
    bench.platter.rot(0, SEGMENT_HEADER_BYTES + 3 * RECORD + 20);
    let meters = Meters::new(&Metrics::new([], []).unwrap()).unwrap();
    let damaged = meters.damaged_records.clone();
    let shutdown = Shutdown::new();
    let scrubber = Scrubber::new(opened.store.clone(), ONE_A_SECOND, meters).unwrap();
    let task = tokio::spawn(scrubber.run(clock(), shutdown.child()));
    let begin = Instant::now();
    while damaged.get() == 0 {
        assert!(begin.elapsed() < DAY, "it was not found");
        sleep(Duration::from_millis(100)).await;
    }
    shutdown.request("the test wants it");
    task.await.unwrap();
    opened.close();
}
