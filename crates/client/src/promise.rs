//! The promises of storage nodes for chunks that no op names yet. They run out, and content may come more
//! slowly than that: from a pipe, or over a thin line. So they are renewed on the way, a good while before
//! their time, and once more if a commit comes too late. Nothing is sent again for it.
//!
//! A promise for many chunks is as good as the earliest one. It only gets later when all of them were
//! renewed: a chunk that nodes gave up must never be named.

use std::time::{Duration, Instant};

use coffer_model::manifest::Slot;
use coffer_model::time::LogTime;
use futures_util::stream::{self, StreamExt, TryStreamExt};

use crate::error::ClientError;
use crate::session::Session;
use crate::upload::earliest;

/// Renewals of one part that are handed in at a time; they go together in calls of many.
const RENEWALS_IN_FLIGHT: usize = 4096;
/// Promises are renewed when this part of their time is left. Nodes extend one once half is left.
const LEFT_PART: u64 = 3;
/// An attempt that did not help is repeated after this part of the time.
const RETRY_PART: u64 = 12;
/// And not sooner than after this, however short the promises are.
const RETRY_AFTER_MIN: Duration = Duration::from_millis(100);

/// Until when all chunks of a part are kept.
#[derive(Default)]
pub(crate) struct Promise {
    until: Option<LogTime>,
    /// For how long nodes promise.
    life_ms: u64,
    not_before: Option<Instant>,
}

impl Promise {
    /// Until when every chunk is kept; none where there is no chunk.
    pub(crate) fn until(&self) -> Option<LogTime> {
        self.until
    }

    /// One more chunk, kept until then.
    pub(crate) fn add(&mut self, now: LogTime, until: Option<LogTime>) {
        let Some(until) = until else { return };
        self.until = earliest(self.until, Some(until));
        self.life_ms = self.life_ms.max(until.unix_ms().saturating_sub(now.unix_ms()));
    }

    /// How long to wait before renewing; none where there is nothing to renew.
    pub(crate) fn due_in(&self, now: LogTime) -> Option<Duration> {
        let left = self.until?.unix_ms().saturating_sub(now.unix_ms());
        let due = Duration::from_millis(left.saturating_sub(self.life_ms / LEFT_PART));
        let held_off = self.not_before.map(|at| at.saturating_duration_since(Instant::now()));
        Some(due.max(held_off.unwrap_or_default()))
    }
}

/// Waits until a renewal is due; for ever where none is.
pub(crate) async fn due(after: Option<Duration>) {
    match after {
        Some(after) => tokio::time::sleep(after).await,
        None => std::future::pending().await,
    }
}

impl Session {
    /// Asks for new receipts of those of the changed slots that lie at `from` or behind. Says whether all of
    /// them are still there; the promise is as it was if not.
    pub(crate) async fn renew(
        &self,
        promise: &mut Promise,
        changes: &[(u64, Slot)],
        from: u64,
    ) -> Result<bool, ClientError> {
        let wait = Duration::from_millis(promise.life_ms / RETRY_PART).max(RETRY_AFTER_MIN);
        promise.not_before = Some(Instant::now() + wait);
        let asked = changes.iter().filter_map(|(slot, content)| match content {
            Slot::Chunk(chunk) if *slot >= from => Some((chunk.chunk, chunk.length)),
            _ => None,
        });
        let answers: Vec<Option<LogTime>> = stream::iter(asked.collect::<Vec<_>>())
            .map(|(chunk, length)| self.chunks().renew(chunk, length))
            .buffer_unordered(RENEWALS_IN_FLIGHT)
            .map_ok(|stored| stored.map(|stored| stored.keep_until))
            .try_collect()
            .await?;
        let Some(kept) = answers.into_iter().collect::<Option<Vec<LogTime>>>() else {
            return Ok(false);
        };
        promise.until = kept.into_iter().min().or(promise.until);
        Ok(true)
    }

    /// As [`Self::renew`], if it is time. What does not work now is tried again later: until the promise has
    /// run out nothing is lost.
    pub(crate) async fn renew_if_due(
        &self,
        promise: &mut Promise,
        changes: &[(u64, Slot)],
        from: u64,
    ) -> Result<(), ClientError> {
        if promise.due_in(self.wire().clock.now()) != Some(Duration::ZERO) {
            return Ok(());
        }
        match self.renew(promise, changes, from).await {
            Err(error) if !error.is_temporary() => Err(error),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: a promise is renewed when a third of its time is left, and an attempt that changed nothing is
    /// not repeated at once. Method: the plan for times that are given.
    #[test]
    fn renewal_is_due_when_a_third_is_left() {
        let at = LogTime::from_unix_ms;
        let mut promise = Promise::default();
        assert_eq!(promise.due_in(at(0)), None);
        promise.add(at(0), None);
        assert_eq!(promise.due_in(at(0)), None);
        promise.add(at(0), Some(at(3000)));
        promise.add(at(1000), Some(at(4000)));
        assert_eq!(promise.until(), Some(at(3000)));
        assert_eq!(promise.due_in(at(500)), Some(Duration::from_millis(1500)));
        assert_eq!(promise.due_in(at(2500)), Some(Duration::ZERO));
        assert_eq!(promise.due_in(at(9000)), Some(Duration::ZERO));
        promise.not_before = Some(Instant::now() + Duration::from_secs(3600));
        assert!(promise.due_in(at(9000)) > Some(Duration::from_secs(1800)));
    }
}
