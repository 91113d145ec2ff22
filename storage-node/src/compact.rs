//! Compaction: the room of what was forgotten, or written anew elsewhere, is given back.
//!
//! Segments are only appended to, so that room is given back a whole segment at a time: what is still
//! good in one of which enough is dead is written anew to the end of the store, read back, and then the
//! index points there; what a shard is promised for, and only a record of that segment says, is written
//! anew too. **A segment is removed when the synced index points to nothing in it**, as a look at the
//! whole index says; until then all of it is where it was, so that a crash at any point loses nothing.
//!
//! [`choose`] decides which ones, from values; the rest carries it out.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use coffer_model::time::LogTime;
use coffer_service::metrics::{IntCounter, IntGauge, Metrics, MetricsError};
use coffer_service::shutdown::Shutdown;
use tokio::time::{Instant, sleep};

use crate::clock::{HOLD_MS, LogClock};
use crate::config::Config;
use crate::disk::Disk;
use crate::index::Listed;
use crate::scrub::give_way;
use crate::store::{Store, StoreError, Usage, off_the_async_threads};

/// Segments that are compacted in one pass: each pass looks through the index three times.
const SEGMENTS_PER_PASS: usize = 256;
/// Shards that are looked at in one piece.
const SHARDS_PER_LOOK: usize = 16_384;
/// What is moved in one flush, if shards are smaller.
const MOVED_BYTES: usize = 1 << 20;
/// Promises that are repeated in one flush.
const PROMISES_PER_FLUSH: usize = 4096;
/// How much of a segment has to be dead where the disk is full. Less is not worth that all else in it is
/// written anew.
const DEAD_PERCENT_TIGHT: u64 = 5;
/// How often it is looked whether the disk is full.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// How long to wait after a failure of the disk or the index, or while the disk has no room at all.
const FAILURE_PAUSE: Duration = Duration::from_secs(60);

/// When and how fast.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    pub(crate) every: Duration,
    pub(crate) dead_percent: u64,
    pub(crate) bytes_per_second: u64,
}

impl Pace {
    pub(crate) fn of(config: &Config) -> Self {
        Self {
            every: config.compact_every,
            dead_percent: config.compact_dead_percent,
            bytes_per_second: config.compact_bytes_per_second,
        }
    }

    /// How long what was moved may take at least.
    fn time_for(&self, bytes: usize) -> Duration {
        let nanos = bytes as u128 * 1_000_000_000 / u128::from(self.bytes_per_second.max(1));
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

/// What compaction says of itself.
pub(crate) struct Meters {
    dead_bytes: IntGauge,
    moved_bytes: IntCounter,
    given_back: IntCounter,
}

impl Meters {
    pub(crate) fn new(metrics: &Metrics) -> Result<Self, MetricsError> {
        Ok(Self {
            dead_bytes: metrics.gauge(
                "coffer_storage_dead_bytes",
                "Bytes of records that hold nothing any more, as of the last look",
            )?,
            moved_bytes: metrics.counter(
                "coffer_storage_compacted_bytes",
                "Bytes of chunks that were written anew to give back the room around them",
            )?,
            given_back: metrics.counter(
                "coffer_storage_segments_given_back_total",
                "Segments that were removed since the start",
            )?,
        })
    }
}

/// The task that compacts.
pub(crate) struct Compactor<D: Disk> {
    store: Store<D>,
    clock: Arc<LogClock>,
    pace: Pace,
    meters: Meters,
}

impl<D: Disk> Compactor<D> {
    pub(crate) fn new(store: Store<D>, clock: Arc<LogClock>, pace: Pace, meters: Meters) -> Self {
        Self { store, clock, pace, meters }
    }

    /// Runs until shutdown. A part of a pass that was not done is done by the next one.
    pub(crate) async fn run(self, shutdown: Shutdown) {
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = self.go_on() => {}
        }
    }

    async fn go_on(&self) {
        loop {
            match self.pass().await {
                // There may be more of them.
                Ok(given_back) if given_back > 0 => continue,
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(%error, "the store cannot be compacted for now");
                    sleep(FAILURE_PAUSE).await;
                }
            }
            let begin = Instant::now();
            let was_full = self.store.is_full();
            while begin.elapsed() < self.pace.every && self.store.is_full() == was_full {
                sleep(LOOK_EVERY.min(self.pace.every.saturating_sub(begin.elapsed()))).await;
            }
        }
    }

    /// Compacts some segments. Says how many were given back.
    async fn pass(&self) -> Result<u64, StoreError> {
        if self.store.poison().is_some() {
            // Nobody knows what the disk keeps; what it holds is left as it is.
            return Ok(0);
        }
        let usage = self.usage().await?;
        let dead: u64 = usage.iter().map(Usage::dead_bytes).sum();
        self.meters.dead_bytes.set(i64::try_from(dead).unwrap_or(i64::MAX));
        let dead_percent = match self.store.is_full() {
            true => self.pace.dead_percent.min(DEAD_PERCENT_TIGHT),
            false => self.pace.dead_percent,
        };
        let chosen = choose(&usage, dead_percent);
        // First those that need no room elsewhere.
        let mut given_back = self.give_back(&usage, &chosen).await?;
        let left: BTreeSet<u64> = with(&usage, &chosen, |it| it.live_bytes > 0).collect();
        if !left.is_empty() {
            self.move_out(&left).await?;
            given_back += self.give_back(&self.usage().await?, &left).await?;
        }
        Ok(given_back)
    }

    async fn usage(&self) -> Result<Vec<Usage>, StoreError> {
        let store = self.store.clone();
        off_the_async_threads(move || store.usage()).await?
    }

    /// Writes anew what is good in the segments.
    async fn move_out(&self, segments: &BTreeSet<u64>) -> Result<(), StoreError> {
        let mut after = None;
        loop {
            let (store, wanted) = (self.store.clone(), segments.clone());
            let look = move || store.index().shards_in(&wanted, after.as_ref(), SHARDS_PER_LOOK);
            let Listed { shards, last } = off_the_async_threads(look).await??;
            let mut shards = shards.into_iter().peekable();
            while shards.peek().is_some() {
                give_way(&self.store).await;
                let begin = Instant::now();
                let mut bytes = 0;
                let some: Vec<_> = std::iter::from_fn(|| {
                    let next = shards.next_if(|_| bytes < MOVED_BYTES)?;
                    bytes += usize::try_from(next.1.length).unwrap_or(usize::MAX);
                    Some(next)
                })
                .collect();
                let store = self.store.clone();
                let read = move || {
                    let mut good = Vec::with_capacity(some.len());
                    for (key, location) in some {
                        good.extend(store.shard_at(&key, &location)?.map(|it| (it, location)));
                    }
                    Ok::<_, StoreError>(good)
                };
                let good = off_the_async_threads(read).await??;
                self.store.relocate(good).await?;
                self.meters.moved_bytes.inc_by(bytes as u64);
                let pause = self.pace.time_for(bytes).saturating_sub(begin.elapsed());
                if !pause.is_zero() {
                    sleep(pause).await;
                }
            }
            after = last;
            if after.is_none() {
                return Ok(());
            }
        }
    }

    /// Removes those of the segments in which nothing lies that is good. Says how many.
    async fn give_back(
        &self,
        usage: &[Usage],
        segments: &BTreeSet<u64>,
    ) -> Result<u64, StoreError> {
        // A promise that ran out this long ago binds nobody: every member is later than that.
        let now = self.clock.now().map_or(0, LogTime::unix_ms).saturating_sub(HOLD_MS);
        let now = LogTime::from_unix_ms(now);
        let mut given_back = 0;
        for segment in with(usage, segments, |it| it.live_bytes == 0) {
            let store = self.store.clone();
            let promises = move || store.promises_in(segment, now);
            let promises = off_the_async_threads(promises).await??;
            for some in promises.chunks(PROMISES_PER_FLUSH) {
                self.store.repeat_promises(some.to_vec()).await?;
            }
            self.store.give_back(segment).await?;
            self.meters.given_back.inc();
            given_back += 1;
            tracing::debug!(segment, "the room of a segment is given back");
        }
        Ok(given_back)
    }
}

/// Those of `segments` of whose usage something is so.
fn with<'a>(
    usage: &'a [Usage],
    segments: &'a BTreeSet<u64>,
    is_so: impl Fn(&Usage) -> bool + 'a,
) -> impl Iterator<Item = u64> + 'a {
    let wanted = move |it: &&Usage| segments.contains(&it.segment) && is_so(it);
    usage.iter().filter(wanted).map(|it| it.segment)
}

/// Which segments to compact: those of which so much is dead, the emptiest first.
fn choose(usage: &[Usage], dead_percent: u64) -> BTreeSet<u64> {
    let is_worth_it = |it: &&Usage| {
        let needed = u128::from(it.used_bytes) * u128::from(dead_percent);
        it.live_bytes == 0 || it.dead_bytes() > 0 && u128::from(it.dead_bytes()) * 100 >= needed
    };
    let mut chosen: Vec<&Usage> = usage.iter().filter(is_worth_it).collect();
    chosen.sort_unstable_by_key(|it| (it.live_bytes, it.segment));
    chosen.iter().take(SEGMENTS_PER_PASS).map(|it| it.segment).collect()
}

#[cfg(test)]
mod tests;
