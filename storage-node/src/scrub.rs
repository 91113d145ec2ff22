//! Scrubbing: all that is kept is read back from the disk, again and again, so that what has rotted is
//! found while siblings still have good copies. What is done about it is the store's matter.
//!
//! A pass goes through the index in the order of the ids. These are hashes, so that they are spread
//! evenly, and where a shard's id stands among all ids is when its time within the pass has come. So
//! the load is even too, chunks that arrive during a pass belong to it, and a start only has to know
//! when the pass began and which shard was looked at last. Both stand in the index.
//!
//! At the end of a pass the records of each segment are read one after the other, for extensions: no row
//! points to them. Where one is damaged, promises are written anew from the index.
//!
//! [`Pace`] decides how long to wait, from values; the rest carries it out.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use coffer_model::chunk::ShardKey;
use coffer_model::time::LogTime;
use coffer_service::metrics::{IntCounter, IntGauge, Metrics, MetricsError};
use coffer_service::shutdown::Shutdown;
use tokio::time::{Instant, sleep};

use crate::clock::LogClock;
use crate::config::Config;
use crate::disk::Disk;
use crate::door::now_unix_ms;
use crate::index::Pass;
use crate::store::{Borne, Store, StoreError, off_the_async_threads};

/// Shards listed at a time; a crash has so many looked at again.
const SHARDS_PER_STEP: usize = 64;
/// Shards whose promises are looked at in one piece, and written anew in one flush.
const PROMISES_PER_STEP: usize = 1024;
/// Gaps that are remembered, so that one is told and mended once. More than that are mended again in every
/// pass, which does no harm.
const GAPS_KNOWN_MAX: usize = 4096;
/// How long to wait at most before looking again: the clock may be set, and chunks arrive.
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// How long to wait after a failure of the disk or the index.
const FAILURE_PAUSE: Duration = Duration::from_secs(60);
/// How often it is looked whether callers still wait for the disk, and how many times: one that is
/// always busy is scrubbed all the same, a shard a second.
const GIVE_WAY: Duration = Duration::from_millis(20);
const GIVE_WAY_TURNS: u32 = 50;

/// How fast to go.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    /// A whole pass takes no less.
    pub(crate) pass: Duration,
    pub(crate) bytes_per_second: u64,
}

impl Pace {
    pub(crate) fn of(config: &Config) -> Self {
        Self { pass: config.scrub_every, bytes_per_second: config.scrub_bytes_per_second }
    }

    /// How long to wait until `next` is looked at, in a pass that has been going on for `elapsed`, if
    /// `read` bytes were read a time of `since` ago.
    fn pause(&self, next: &ShardKey, elapsed: Duration, read: u64, since: Duration) -> Duration {
        let due = part_of(self.pass, share(next));
        due.saturating_sub(elapsed).max(self.time_for(read).saturating_sub(since))
    }

    /// How long it takes at least to read so much.
    fn time_for(&self, bytes: u64) -> Duration {
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(self.bytes_per_second.max(1));
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

/// Where a shard stands among all ids, in parts of 2^32.
fn share(key: &ShardKey) -> u64 {
    let [a, b, c, d, ..] = *key.chunk.as_bytes();
    u64::from(u32::from_be_bytes([a, b, c, d]))
}

fn part_of(whole: Duration, share: u64) -> Duration {
    let nanos = (whole.as_nanos() * u128::from(share)) >> 32;
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

/// What scrubbing says of itself.
pub(crate) struct Meters {
    read: IntCounter,
    position_percent: IntGauge,
    damaged_records: IntCounter,
}

impl Meters {
    pub(crate) fn new(metrics: &Metrics) -> Result<Self, MetricsError> {
        Ok(Self {
            read: metrics.counter(
                "coffer_storage_scrubbed_bytes",
                "Bytes of records that were read back from the disk and checked",
            )?,
            position_percent: metrics.gauge(
                "coffer_storage_scrub_position_percent",
                "How much of what is kept the present pass of scrubbing has looked at",
            )?,
            damaged_records: metrics.counter(
                "coffer_storage_damaged_records_total",
                "Places in segments where scrubbing found no record that can be read",
            )?,
        })
    }
}

/// What was read last.
#[derive(Clone, Copy)]
struct LastRead {
    bytes: u64,
    at: Instant,
}

/// The task that scrubs.
pub(crate) struct Scrubber<D: Disk> {
    store: Store<D>,
    pace: Pace,
    meters: Meters,
    pass: Pass,
    last: LastRead,
    /// Whether the segments were read in this pass.
    is_chained: bool,
    /// Gaps that were told and mended: segment and offset.
    known_gaps: BTreeSet<(u64, u64)>,
}

impl<D: Disk> Scrubber<D> {
    /// Goes on where the pass stands that was under way last.
    pub(crate) fn new(store: Store<D>, pace: Pace, meters: Meters) -> Result<Self, StoreError> {
        let pass = store.index().pass()?;
        let pass = pass.unwrap_or(Pass { began_unix_ms: now_unix_ms(), after: None });
        let last = LastRead { bytes: 0, at: Instant::now() };
        let (is_chained, known_gaps) = (false, BTreeSet::new());
        let scrubber = Self { store, pace, meters, pass, last, is_chained, known_gaps };
        scrubber.show();
        Ok(scrubber)
    }

    /// Runs until shutdown.
    pub(crate) async fn run(mut self, clock: Arc<LogClock>, shutdown: Shutdown) {
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = self.go_on(&clock) => {}
        }
        self.save();
    }

    async fn go_on(&mut self, clock: &LogClock) {
        loop {
            if let Err(error) = self.step(clock).await {
                tracing::warn!(%error, "the store cannot be scrubbed for now");
                sleep(FAILURE_PAUSE).await;
            }
        }
    }

    /// Looks at some shards whose time has come, or waits until it comes.
    async fn step(&mut self, clock: &LogClock) -> Result<(), StoreError> {
        let (store, after) = (self.store.clone(), self.pass.after);
        let list = move || store.index().shards_after(after.as_ref(), SHARDS_PER_STEP);
        let shards = off_the_async_threads(list).await??;
        if shards.is_empty() {
            self.meters.position_percent.set(100);
            if !self.is_chained {
                self.check_chains(clock).await?;
                self.is_chained = true;
            }
            let left = self.pace.pass.saturating_sub(self.elapsed());
            sleep(left.min(PAUSE_MAX)).await;
            if self.elapsed() >= self.pace.pass {
                self.pass = Pass { began_unix_ms: now_unix_ms(), after: None };
                self.is_chained = false;
                self.save();
                self.show();
                // Also where the pass was over at once: a store that is empty is not listed in a loop.
                sleep(GIVE_WAY).await;
            }
            return Ok(());
        }
        for shard in shards {
            let LastRead { bytes, at } = self.last;
            let elapsed = self.elapsed();
            let pause = self.pace.pause(&shard, elapsed, bytes, at.elapsed());
            sleep(pause.min(PAUSE_MAX)).await;
            if pause > PAUSE_MAX {
                break;
            }
            give_way(&self.store).await;
            let at = Instant::now();
            let store = self.store.clone();
            let read = off_the_async_threads(move || store.scrub(&shard)).await?;
            // It has had its turn, whatever came of it.
            self.pass.after = Some(shard);
            let bytes = read?;
            self.last = LastRead { bytes, at };
            self.meters.read.inc_by(bytes);
            self.show();
        }
        self.save();
        Ok(())
    }

    /// Reads the records of every segment one after the other. Where one cannot be read that could be before,
    /// promises are written anew.
    async fn check_chains(&mut self, clock: &LogClock) -> Result<(), StoreError> {
        let mut found = Vec::new();
        for segment in self.store.segments() {
            give_way(&self.store).await;
            let begin = Instant::now();
            let store = self.store.clone();
            let chain = off_the_async_threads(move || store.chain(segment)).await??;
            let gaps = chain.gaps.into_iter().map(|offset| (segment, offset));
            found.extend(gaps.filter(|gap| !self.known_gaps.contains(gap)));
            sleep(self.pace.time_for(chain.read_bytes).saturating_sub(begin.elapsed())).await;
        }
        if found.is_empty() {
            return Ok(());
        }
        for (segment, offset) in &found {
            self.meters.damaged_records.inc();
            tracing::warn!(
                segment,
                offset,
                "a record is damaged; what it may have promised is written anew"
            );
        }
        let repeated = self.repeat_promises(clock).await?;
        tracing::warn!(promises = repeated, "promises were written anew");
        let room = GAPS_KNOWN_MAX.saturating_sub(self.known_gaps.len());
        self.known_gaps.extend(found.into_iter().take(room));
        Ok(())
    }

    /// Writes anew what only extensions promise. Says how many promises that were.
    async fn repeat_promises(&self, clock: &LogClock) -> Result<usize, StoreError> {
        // A promise that ran out this long ago binds nobody: every member is later than that.
        let now = clock.now().map_or(0, LogTime::unix_ms).saturating_sub(clock.hold_ms());
        let now = LogTime::from_unix_ms(now);
        let (mut after, mut repeated) = (None, 0);
        loop {
            give_way(&self.store).await;
            let store = self.store.clone();
            let look = move || store.borne_by_extensions(after.as_ref(), PROMISES_PER_STEP, now);
            let Borne { shards, last } = off_the_async_threads(look).await??;
            repeated += shards.len();
            if !shards.is_empty() {
                self.store.repeat_promises(shards).await?;
            }
            after = last;
            if after.is_none() {
                return Ok(repeated);
            }
        }
    }

    /// How long the pass has been going on. A clock that went back does not hold it up.
    fn elapsed(&mut self) -> Duration {
        let now = now_unix_ms();
        self.pass.began_unix_ms = self.pass.began_unix_ms.min(now);
        Duration::from_millis(now - self.pass.began_unix_ms)
    }

    fn show(&self) {
        let share = self.pass.after.as_ref().map_or(0, share);
        self.meters.position_percent.set(i64::try_from((share * 100) >> 32).unwrap_or(0));
    }

    fn save(&self) {
        if let Err(error) = self.store.index().set_pass(&self.pass) {
            tracing::warn!(%error, "where scrubbing stands cannot be noted");
        }
    }
}

/// Lets those go first who wait for the disk.
pub(crate) async fn give_way<D: Disk>(store: &Store<D>) {
    for _ in 0..GIVE_WAY_TURNS {
        if !store.is_busy() {
            return;
        }
        sleep(GIVE_WAY).await;
    }
}

#[cfg(test)]
mod tests;
