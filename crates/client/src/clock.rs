//! Log time as this process knows it: what the latest answer said, plus the time since. It decides
//! nothing; it only has to be close enough for a bundle's not-after, and is corrected when it is not.

use std::sync::{Mutex, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use coffer_model::time::LogTime;

/// How long a bundle is good for: long enough for every retry, half of what is allowed.
const NOT_AFTER_MS: u64 = 60 * 1000;

/// The last known log time, and when it was known.
#[derive(Default)]
pub(crate) struct LogClock(Mutex<Option<(LogTime, Instant)>>);

impl LogClock {
    /// Takes the log time an answer carried. Zero is no time: the answer did not say.
    pub(crate) fn note(&self, ms: u64) {
        if ms > 0 {
            self.set(LogTime::from_unix_ms(ms));
        }
    }

    /// Takes the log time a refusal named, whatever it is.
    pub(crate) fn set(&self, time: LogTime) {
        let mut latest = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *latest = Some((time, Instant::now()));
    }

    /// Log time now, as far as known; by this machine's clock before the first answer.
    pub(crate) fn now(&self) -> LogTime {
        match *self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            Some((time, at)) => time.plus_ms(millis(at.elapsed())),
            None => {
                let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                LogTime::from_unix_ms(millis(now))
            }
        }
    }

    /// Until when a bundle that is signed now may be applied.
    pub(crate) fn not_after(&self) -> LogTime {
        self.now().plus_ms(NOT_AFTER_MS)
    }
}

/// How this machine's clock differs from a server's, in words that stand before "the cluster's".
pub(crate) fn differs(server_unix_ms: Option<u64>) -> String {
    let Some(server) = server_unix_ms else { return "far from".to_owned() };
    let own = millis(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default());
    let direction = if own > server { "ahead of" } else { "behind" };
    format!("{} minutes {direction}", own.abs_diff(server).div_ceil(60_000))
}

fn millis(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
