//! Log time, as far as this node knows it: what the metadata group said last, moved on by the
//! node's own monotonic clock.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use coffer_model::time::LogTime;

/// How long a chunk is kept without a commit that names it.
pub(crate) const HOLD_MS: u64 = 60 * 60 * 1000;

#[derive(Default)]
pub(crate) struct LogClock(Mutex<Option<(LogTime, Instant)>>);

impl LogClock {
    /// Takes up what the metadata group said. An older saying changes nothing.
    pub(crate) fn learn(&self, time: LogTime) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if time > LogTime::ZERO && known.is_none_or(|(since, at)| time > moved_on(since, at)) {
            *known = Some((time, Instant::now()));
        }
    }

    /// Log time now; none before it was ever learnt.
    pub(crate) fn now(&self) -> Option<LogTime> {
        let known = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.map(|(since, at)| moved_on(since, at))
    }
}

fn moved_on(since: LogTime, at: Instant) -> LogTime {
    since.plus_ms(u64::try_from(at.elapsed().as_millis()).unwrap_or(u64::MAX))
}
