//! Log time, as far as this node knows it: what the metadata group said last, moved on by the
//! node's own monotonic clock.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use coffer_model::time::LogTime;

/// How long a chunk is kept without a commit that names it, where the configuration says nothing else.
pub(crate) const HOLD_MS: u64 = 60 * 60 * 1000;

pub(crate) struct LogClock {
    known: Mutex<Option<(LogTime, Instant)>>,
    hold_ms: u64,
}

impl LogClock {
    /// A clock for a node that keeps chunks for so long without a commit that names them.
    pub(crate) const fn new(hold_ms: u64) -> Self {
        Self { known: Mutex::new(None), hold_ms }
    }

    /// How long a chunk is kept without a commit that names it.
    pub(crate) const fn hold_ms(&self) -> u64 {
        self.hold_ms
    }

    /// Takes up what the metadata group said. An older saying changes nothing.
    pub(crate) fn learn(&self, time: LogTime) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if time > LogTime::ZERO && known.is_none_or(|(since, at)| time > moved_on(since, at)) {
            *known = Some((time, Instant::now()));
        }
    }

    /// Log time now; none before it was ever learnt.
    pub(crate) fn now(&self) -> Option<LogTime> {
        let known = *self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.map(|(since, at)| moved_on(since, at))
    }
}

fn moved_on(since: LogTime, at: Instant) -> LogTime {
    since.plus_ms(u64::try_from(at.elapsed().as_millis()).unwrap_or(u64::MAX))
}
