//! Time as the log knows it.

use borsh::{BorshDeserialize, BorshSerialize};

/// Milliseconds since the Unix epoch by the cluster's own clock: the median of what a majority of
/// the metadata members signed, never going back.
#[derive(
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Debug,
    Default,
    BorshSerialize,
    BorshDeserialize,
)]
pub struct LogTime(u64);

impl LogTime {
    /// The beginning of time: before any tick.
    pub const ZERO: Self = Self(0);

    /// Milliseconds since the Unix epoch.
    pub const fn from_unix_ms(ms: u64) -> Self {
        Self(ms)
    }

    /// Milliseconds since the Unix epoch.
    pub const fn unix_ms(self) -> u64 {
        self.0
    }

    /// This time moved forward by `ms`, at most to the end of time.
    pub const fn plus_ms(self, ms: u64) -> Self {
        Self(self.0.saturating_add(ms))
    }
}
