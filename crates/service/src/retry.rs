//! Trying again, a bounded number of times, at growing and scattered distances.

use std::future::Future;
use std::time::Duration;

use tonic::Status;

use crate::status::{is_retryable, retry_delay};

/// How often and how slowly something is tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// The longest wait after the first failure; it doubles after each further one.
    pub first: Duration,
    /// The wait never grows past this.
    pub max: Duration,
    /// How many attempts there are in all, the first included.
    pub attempts: u32,
}

impl Backoff {
    /// How long to wait after attempt number `attempt` (the first is 0) has failed, or `None` if it
    /// was the last. The wait is between one half and the whole of the doubled distance, so that
    /// callers who failed together do not come back together.
    pub fn delay(&self, attempt: u32, jitter: &mut Jitter) -> Option<Duration> {
        if attempt.saturating_add(1) >= self.attempts {
            return None;
        }
        let whole =
            self.first.saturating_mul(1u32.checked_shl(attempt).unwrap_or(u32::MAX)).min(self.max);
        let half = whole / 2;
        let spread = u64::try_from((whole - half).as_nanos()).unwrap_or(u64::MAX);
        Some(half + Duration::from_nanos(jitter.below(spread)))
    }
}

/// A source of numbers for scattering waits: the same seed gives the same numbers. Not for secrets.
#[derive(Clone, Debug)]
pub struct Jitter(u64);

impl Jitter {
    /// A source that can be replayed.
    pub const fn seeded(seed: u64) -> Self {
        Self(seed)
    }

    /// A source that differs from process to process.
    pub fn random() -> Self {
        // Without randomness the waits are merely the same everywhere.
        Self(getrandom::u64().unwrap_or(0))
    }

    /// A number from 0 up to `bound`, both possible.
    fn below(&mut self, bound: u64) -> u64 {
        // SplitMix64 (Steele, Lea, Flood 2014): a counter through a mixing function.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        bound.checked_add(1).map_or(mixed, |count| mixed % count)
    }
}

/// What a failure says about another attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Another attempt would fail the same way.
    GiveUp,
    /// Another attempt may succeed.
    TryAgain,
    /// Another attempt may succeed, but not before this much time.
    TryAgainAfter(Duration),
}

impl Verdict {
    /// What a status says, by its code and its retry hint. The caller must know that repeating its
    /// call does no harm.
    pub fn of(status: &Status) -> Self {
        match (is_retryable(status), retry_delay(status)) {
            (false, _) => Self::GiveUp,
            (true, None) => Self::TryAgain,
            (true, Some(delay)) => Self::TryAgainAfter(delay),
        }
    }
}

/// Calls `attempt` until it succeeds, its failure is final, or the attempts are used up; returns the
/// last failure. `attempt` is given its number, from 0.
pub async fn retry<T, E, F: Future<Output = Result<T, E>>>(
    backoff: &Backoff,
    jitter: &mut Jitter,
    judge: impl Fn(&E) -> Verdict,
    mut attempt: impl FnMut(u32) -> F,
) -> Result<T, E> {
    let mut number = 0;
    loop {
        let error = match attempt(number).await {
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        let asked = match judge(&error) {
            Verdict::GiveUp => return Err(error),
            Verdict::TryAgain => Duration::ZERO,
            Verdict::TryAgainAfter(delay) => delay,
        };
        let Some(delay) = backoff.delay(number, jitter) else { return Err(error) };
        tokio::time::sleep(delay.max(asked)).await;
        number += 1;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::cell::Cell;

    use tonic::Code;

    use super::*;
    use crate::status::{status, status_with_retry};

    const BACKOFF: Backoff =
        Backoff { first: Duration::from_millis(100), max: Duration::from_secs(1), attempts: 8 };

    #[test]
    fn waits_double_up_to_the_bound_and_are_replayable() {
        let waits = |seed| {
            let mut jitter = Jitter::seeded(seed);
            (0..9).map(|attempt| BACKOFF.delay(attempt, &mut jitter)).collect::<Vec<_>>()
        };
        for seed in 0..100 {
            let seen = waits(seed);
            assert_eq!(seen, waits(seed));
            for (attempt, whole_ms) in
                [100u64, 200, 400, 800, 1000, 1000, 1000].into_iter().enumerate()
            {
                let wait = seen[attempt].unwrap();
                let whole = Duration::from_millis(whole_ms);
                assert!(
                    wait >= whole / 2 && wait <= whole,
                    "seed {seed}, attempt {attempt}: {wait:?}"
                );
            }
            assert_eq!(seen[7..], [None, None]);
        }
        assert_ne!(waits(1), waits(2));
    }

    #[test]
    fn no_number_of_attempts_overflows() {
        let backoff = Backoff { first: Duration::MAX, max: Duration::MAX, attempts: u32::MAX };
        for attempt in [0, 31, 32, u32::MAX - 2] {
            assert!(backoff.delay(attempt, &mut Jitter::seeded(1)).is_some());
        }
        assert_eq!(backoff.delay(u32::MAX, &mut Jitter::seeded(1)), None);
    }

    #[tokio::test]
    async fn it_ends_with_success_a_final_failure_or_the_last_attempt() {
        let quick =
            Backoff { first: Duration::from_micros(1), max: Duration::from_micros(1), attempts: 4 };
        let busy = || status(Code::Unavailable, "BUSY", "busy", &[]);
        let wrong = || status(Code::InvalidArgument, "WRONG", "wrong", &[]);
        for (answers, calls, code) in [
            (vec![Ok(())], 1, Code::Ok),
            (vec![Err(busy()), Err(busy()), Ok(())], 3, Code::Ok),
            (vec![Err(busy()), Err(wrong()), Ok(())], 2, Code::InvalidArgument),
            (
                vec![Err(busy()), Err(busy()), Err(busy()), Err(busy()), Ok(())],
                4,
                Code::Unavailable,
            ),
        ] {
            let called = Cell::new(0);
            let result = retry(&quick, &mut Jitter::seeded(1), Verdict::of, |number| {
                called.set(called.get() + 1);
                let answer = answers[number as usize].clone();
                async move { answer }
            })
            .await;
            assert_eq!(called.get(), calls);
            assert_eq!(result.err().map_or(Code::Ok, |status| status.code()), code);
        }
    }

    #[test]
    fn a_hint_is_followed_and_never_makes_a_final_failure_retryable() {
        let later = Duration::from_secs(3);
        for (status, verdict) in [
            (status(Code::NotFound, "GONE", "gone", &[]), Verdict::GiveUp),
            (status(Code::ResourceExhausted, "FULL", "full", &[]), Verdict::GiveUp),
            (status(Code::Unavailable, "BUSY", "busy", &[]), Verdict::TryAgain),
            (
                status_with_retry(Code::ResourceExhausted, "BUSY", "busy", &[], later),
                Verdict::TryAgainAfter(later),
            ),
            (
                status_with_retry(Code::InvalidArgument, "WRONG", "wrong", &[], later),
                Verdict::GiveUp,
            ),
        ] {
            assert_eq!(Verdict::of(&status), verdict, "{status:?}");
        }
    }
}
