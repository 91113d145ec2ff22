//! How long the Raft log may become, and what is removed then.
//!
//! Each member does it for itself: when its log is too long it makes a snapshot, which costs nothing
//! (it is a view of the store), and has openraft remove the entries the snapshot stands for, but for a
//! tail. From the tail a member that was away shortly catches up; one that was away longer is sent the
//! snapshot. The kept log of bundles is a table of the state and loses nothing by this.

use std::collections::VecDeque;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::log::LogStore;
use crate::raft::Raft;

/// How many entries the log may have. At two hundred entries a second, which is busy, it takes eight
/// minutes to have that many.
const LOG_ENTRIES_MAX: u64 = 100_000;
/// How many bytes it may have; an entry has at most some megabytes.
const LOG_BYTES_MAX: u64 = 1 << 30;
/// How many of the entries that could be removed are kept: what a member misses that is away for some
/// minutes, for an upgrade of its machine say.
const KEPT_ENTRIES: u64 = 50_000;
/// How many bytes they may have.
const KEPT_BYTES: u64 = 512 << 20;
/// How often the log is looked at. It grows by some tens of megabytes in that time, at most.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long making a snapshot may take. It is a matter of milliseconds; who takes longer is stuck, and
/// is asked again at the next look.
const SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(10);

/// Sizes are counted for this many entries together,
const SPAN_ENTRIES: u64 = 256;
/// or this many bytes.
const SPAN_BYTES: u64 = 1 << 20;

/// When the log is cut, and how much of it stays.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct LogPolicy {
    pub(crate) entries_max: u64,
    pub(crate) bytes_max: u64,
    pub(crate) kept_entries: u64,
    pub(crate) kept_bytes: u64,
    pub(crate) look_every: Duration,
}

impl LogPolicy {
    pub(crate) const STANDARD: Self = Self {
        entries_max: LOG_ENTRIES_MAX,
        bytes_max: LOG_BYTES_MAX,
        kept_entries: KEPT_ENTRIES,
        kept_bytes: KEPT_BYTES,
        look_every: LOOK_EVERY,
    };
}

/// Entries that stand next to each other, and their bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Span {
    first: u64,
    last: u64,
    bytes: u64,
}

/// Where in the log how many bytes are. Never less than there are, as far as it was told.
#[derive(Debug, Default)]
pub(crate) struct LogSizes {
    spans: VecDeque<Span>,
}

impl LogSizes {
    /// A log that was there already, as if all its entries were of one size.
    pub(crate) fn estimated(first: u64, last: u64, bytes: u64) -> Self {
        let count = last.saturating_sub(first).saturating_add(1);
        let mut spans = VecDeque::new();
        let mut next = first;
        while next <= last {
            let end = last.min(next.saturating_add(SPAN_ENTRIES - 1));
            let share = u128::from(bytes) * u128::from(end - next + 1) / u128::from(count);
            let bytes = u64::try_from(share).unwrap_or(u64::MAX);
            spans.push_back(Span { first: next, last: end, bytes });
            let Some(after) = end.checked_add(1) else { break };
            next = after;
        }
        Self { spans }
    }

    pub(crate) fn appended(&mut self, index: u64, bytes: u64) {
        match self.spans.back_mut() {
            Some(span)
                if span.last.checked_add(1) == Some(index)
                    && index - span.first < SPAN_ENTRIES
                    && span.bytes < SPAN_BYTES =>
            {
                span.last = index;
                span.bytes = span.bytes.saturating_add(bytes);
            }
            _ => self.spans.push_back(Span { first: index, last: index, bytes }),
        }
    }

    /// The entries from `index` on were removed.
    pub(crate) fn truncated(&mut self, index: u64) {
        while self.spans.back().is_some_and(|span| span.first >= index) {
            self.spans.pop_back();
        }
        if let Some(span) = self.spans.back_mut() {
            span.last = span.last.min(index.saturating_sub(1));
        }
    }

    /// The entries up to `index` were removed.
    pub(crate) fn purged(&mut self, index: u64) {
        while self.spans.front().is_some_and(|span| span.last <= index) {
            self.spans.pop_front();
        }
        if let Some(span) = self.spans.front_mut() {
            span.first = span.first.max(index.saturating_add(1));
        }
    }

    /// Up to where entries are to be removed; none if there is no need. Nothing beyond `applied` ever
    /// is.
    pub(crate) fn cut(&self, applied: u64, policy: &LogPolicy) -> Option<u64> {
        let first = self.spans.front()?.first;
        let entries = applied.checked_sub(first)?.saturating_add(1);
        let bytes = self.spans.iter().fold(0u64, |sum, span| sum.saturating_add(span.bytes));
        if entries <= policy.entries_max && bytes <= policy.bytes_max {
            return None;
        }
        let by_entries = applied.checked_sub(policy.kept_entries);
        // From the end of the log back, as long as the bytes fit.
        let mut kept = 0u64;
        let too_many = self.spans.iter().rev().find(|span| {
            kept = kept.saturating_add(span.bytes);
            kept > policy.kept_bytes
        });
        let by_bytes = too_many.map(|span| span.last.min(applied));
        by_entries.max(by_bytes).filter(|upto| *upto >= first)
    }
}

/// Keeps the log of one member short.
pub(crate) struct Truncation {
    pub(crate) raft: Raft,
    pub(crate) log: LogStore,
    pub(crate) policy: LogPolicy,
}

impl Truncation {
    /// Runs until it is told to stop, or Raft has.
    pub(crate) async fn watch(self, stop: CancellationToken) {
        let mut look = tokio::time::interval(self.policy.look_every);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = look.tick() => {}
            }
            if self.raft.metrics().borrow().running_state.is_err() {
                return;
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.look() => {}
            }
        }
    }

    async fn look(&self) {
        let Some(applied) = self.raft.metrics().borrow().last_applied else { return };
        let Some(upto) = self.log.cut(applied.index, &self.policy) else { return };
        // Raft removes nothing that is not in a snapshot.
        if self.raft.trigger().snapshot().await.is_err() {
            return;
        }
        let made = self.raft.wait(Some(SNAPSHOT_TIMEOUT));
        let made = made.metrics(|metrics| metrics.snapshot >= Some(applied), "a snapshot");
        if let Err(error) = made.await {
            tracing::warn!(%error, "the Raft log could not be cut yet");
            return;
        }
        // On a leader that is just sending these entries it is done a little later.
        if self.raft.trigger().purge_log(upto).await.is_ok() {
            tracing::info!(upto, applied = applied.index, "the Raft log is cut");
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const POLICY: LogPolicy = LogPolicy {
        entries_max: 1000,
        bytes_max: 100 << 20,
        kept_entries: 300,
        kept_bytes: 10 << 20,
        look_every: LOOK_EVERY,
    };

    fn log(entries: std::ops::RangeInclusive<u64>, bytes: u64) -> LogSizes {
        let mut sizes = LogSizes::default();
        for index in entries {
            sizes.appended(index, bytes);
        }
        sizes
    }

    #[test]
    fn many_entries_are_cut_and_some_are_kept() {
        for (last, applied, expected) in [
            (999, 999, None),
            (1000, 1000, Some(700)),
            // Not more than what is applied counts, or goes.
            (5000, 999, None),
            (5000, 2000, Some(1700)),
        ] {
            assert_eq!(log(0..=last, 10).cut(applied, &POLICY), expected, "{last} {applied}");
        }
        assert_eq!(LogSizes::default().cut(1 << 40, &POLICY), None);
        // Right after a cut there is nothing to do.
        let mut sizes = log(0..=1000, 10);
        sizes.purged(700);
        assert_eq!(sizes.cut(1000, &POLICY), None);
        // The log begins behind what is applied: a snapshot was installed.
        assert_eq!(log(5000..=5010, 10).cut(4999, &POLICY), None);
    }

    #[test]
    fn many_bytes_are_cut_and_some_are_kept() {
        let megabytes = |count| log(1..=count, 1 << 20);
        assert_eq!(megabytes(100).cut(100, &POLICY), None);
        // Ten of them stay.
        assert_eq!(megabytes(101).cut(101, &POLICY), Some(91));
        // Nothing goes that is not applied, however long the log is.
        assert_eq!(megabytes(500).cut(50, &POLICY), Some(50));
        assert_eq!(megabytes(500).cut(0, &POLICY), None);
        // One entry that is larger than all that may be kept goes too, once it is applied.
        let mut sizes = megabytes(1);
        sizes.appended(2, 200 << 20);
        assert_eq!(sizes.cut(1, &POLICY), Some(1));
        assert_eq!(sizes.cut(2, &POLICY), Some(2));
    }

    #[test]
    fn a_log_that_was_there_is_estimated() {
        let sizes = LogSizes::estimated(100, 100_099, 1 << 30);
        assert_eq!(sizes.spans.front().unwrap().first, 100);
        assert_eq!(sizes.spans.back().unwrap().last, 100_099);
        let upto = sizes.cut(100_099, &LogPolicy { kept_entries: 1 << 40, ..POLICY }).unwrap();
        // A hundredth of the bytes stays.
        assert!((98_500..100_000).contains(&upto), "{upto}");
        assert_eq!(LogSizes::estimated(5, 5, 7).spans, [Span { first: 5, last: 5, bytes: 7 }]);
    }

    #[test]
    fn spans_follow_what_is_removed() {
        let mut sizes = log(0..=999, 1);
        sizes.purged(299);
        sizes.truncated(900);
        let ends = (sizes.spans.front().unwrap().first, sizes.spans.back().unwrap().last);
        assert_eq!(ends, (300, 899));
        // What is appended again goes on there; what goes on elsewhere is a span of its own.
        sizes.appended(900, 1);
        assert_eq!(sizes.spans.back().unwrap().last, 900);
        sizes.purged(5000);
        assert!(sizes.spans.is_empty());
        sizes.appended(5001, 1);
        assert_eq!(sizes.spans, [Span { first: 5001, last: 5001, bytes: 1 }]);
        sizes.truncated(0);
        assert!(sizes.spans.is_empty());
    }
}
