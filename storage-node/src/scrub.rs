//! Scrubbing: all that is kept is read back from the disk, again and again, so that what has rotted is
//! found while siblings still have good copies. What is done about it is the store's matter.
//!
//! A pass goes through the index in the order of the ids. These are hashes, so that they are spread
//! evenly, and where a shard's id stands among all ids is when its time within the pass has come. So
//! the load is even too, chunks that arrive during a pass belong to it, and a start only has to know
//! when the pass began and which shard was looked at last. Both stand in the index.
//!
//! [`Pace`] decides how long to wait, from values; the rest carries it out.

use std::time::Duration;

use coffer_model::chunk::ShardKey;
use coffer_service::metrics::{IntCounter, IntGauge, Metrics, MetricsError};
use coffer_service::shutdown::Shutdown;
use tokio::time::{Instant, sleep};

use crate::config::Config;
use crate::disk::Disk;
use crate::door::now_unix_ms;
use crate::index::Pass;
use crate::store::{Store, StoreError, off_the_async_threads};

/// Shards listed at a time; a crash has so many looked at again.
const SHARDS_PER_STEP: usize = 64;
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
        let nanos = u128::from(read) * 1_000_000_000 / u128::from(self.bytes_per_second.max(1));
        let busy = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        due.saturating_sub(elapsed).max(busy.saturating_sub(since))
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
}

impl<D: Disk> Scrubber<D> {
    /// Goes on where the pass stands that was under way last.
    pub(crate) fn new(store: Store<D>, pace: Pace, meters: Meters) -> Result<Self, StoreError> {
        let pass = store.index().pass()?;
        let pass = pass.unwrap_or(Pass { began_unix_ms: now_unix_ms(), after: None });
        let scrubber =
            Self { store, pace, meters, pass, last: LastRead { bytes: 0, at: Instant::now() } };
        scrubber.show();
        Ok(scrubber)
    }

    /// Runs until shutdown.
    pub(crate) async fn run(mut self, shutdown: Shutdown) {
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = self.go_on() => {}
        }
        self.save();
    }

    async fn go_on(&mut self) {
        loop {
            if let Err(error) = self.step().await {
                tracing::warn!(%error, "the store cannot be scrubbed for now");
                sleep(FAILURE_PAUSE).await;
            }
        }
    }

    /// Looks at some shards whose time has come, or waits until it comes.
    async fn step(&mut self) -> Result<(), StoreError> {
        let (store, after) = (self.store.clone(), self.pass.after);
        let list = move || store.index().shards_after(after.as_ref(), SHARDS_PER_STEP);
        let shards = off_the_async_threads(list).await??;
        if shards.is_empty() {
            self.meters.position_percent.set(100);
            let left = self.pace.pass.saturating_sub(self.elapsed());
            sleep(left.min(PAUSE_MAX)).await;
            if self.elapsed() >= self.pace.pass {
                self.pass = Pass { began_unix_ms: now_unix_ms(), after: None };
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
