//! Repeating a call whose failure may pass. A leader or a storage node that dies is replaced within half
//! a minute, so it does not show.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use coffer_service::call::contained;
use coffer_service::retry::{Backoff, Jitter, Verdict};
use tonic::Status;

use crate::error::is_snapshot_gone;

/// How long one attempt of a small call may take. A server that died without a word costs this much.
pub(crate) const CALL_TIMEOUT: Duration = Duration::from_secs(8);
/// How long one attempt of a call with megabytes in it may take.
pub(crate) const CHUNK_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a call is repeated in all. A new leader is found within a few seconds.
const RETRY_FOR: Duration = Duration::from_secs(30);
/// The waits between attempts; the number of attempts is bounded by [`RETRY_FOR`] much earlier.
const BACKOFF: Backoff =
    Backoff { first: Duration::from_millis(100), max: Duration::from_secs(2), attempts: 64 };

/// Repeats the calls of one transport.
pub struct Repeats(Mutex<Jitter>);

impl Default for Repeats {
    fn default() -> Self {
        Self(Mutex::new(Jitter::random()))
    }
}

impl Repeats {
    /// Makes a small call until it is answered, its failure is final, or time is up.
    pub async fn call<R, F>(&self, send: impl Fn() -> F) -> Result<R, Status>
    where
        F: Future<Output = Result<R, Status>>,
    {
        self.within(CALL_TIMEOUT, send).await
    }

    /// As [`Self::call`], for calls with megabytes in them.
    pub async fn call_with_chunks<R, F>(&self, send: impl Fn() -> F) -> Result<R, Status>
    where
        F: Future<Output = Result<R, Status>>,
    {
        self.within(CHUNK_TIMEOUT, send).await
    }

    pub(crate) async fn within<R, F>(
        &self,
        timeout: Duration,
        send: impl Fn() -> F,
    ) -> Result<R, Status>
    where
        F: Future<Output = Result<R, Status>>,
    {
        let started = Instant::now();
        let mut attempt = 0;
        loop {
            let answer = match tokio::time::timeout(timeout, contained(send())).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(status)) => status,
                Err(_) => Status::deadline_exceeded("no answer in time"),
            };
            let asked = match Verdict::of(&answer) {
                _ if is_snapshot_gone(&answer) => return Err(answer),
                Verdict::GiveUp => return Err(answer),
                Verdict::TryAgain => Duration::ZERO,
                Verdict::TryAgainAfter(delay) => delay,
            };
            let delay = {
                let mut jitter = self.0.lock().unwrap_or_else(PoisonError::into_inner);
                BACKOFF.delay(attempt, &mut jitter)
            };
            let Some(delay) = delay.map(|delay| delay.max(asked)) else { return Err(answer) };
            if started.elapsed() + delay > RETRY_FOR {
                return Err(answer);
            }
            tracing::debug!(code = ?answer.code(), attempt, "a call is repeated");
            tokio::time::sleep(delay).await;
            attempt += 1;
        }
    }
}
