//! What an operation does that lost a race for a name: it looks again and repeats itself, after a wait
//! that grows. Those of one session that lost over the same name take turns, so that they contend with
//! newcomers and with other sessions, but not with each other.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use coffer_service::retry::{Backoff, Jitter};
use tokio::sync::{Mutex, OwnedMutexGuard};
use tokio::time::Instant;

use crate::error::ClientError;

/// Names share this many turns; two that share one wait for each other without need.
const TURNS: usize = 64;
/// How long an operation goes on losing before it gives up.
const CONTEST_FOR: Duration = Duration::from_secs(60);
const BACKOFF: Backoff =
    Backoff { first: Duration::from_millis(4), max: Duration::from_millis(250), attempts: 1000 };

/// The turns of a session.
pub(crate) struct Turns {
    hasher: RandomState,
    turns: Vec<Arc<Mutex<()>>>,
}

impl Default for Turns {
    fn default() -> Self {
        Self { hasher: RandomState::new(), turns: (0..TURNS).map(|_| Arc::default()).collect() }
    }
}

impl Turns {
    /// The contest for what `what` names; it costs nothing until it is lost.
    pub(crate) fn contest(&self, what: impl Into<String>) -> Contest {
        let what = what.into();
        let at = self.hasher.hash_one(&what) % TURNS as u64;
        let turn = &self.turns[usize::try_from(at).unwrap_or_default()];
        let (turn, jitter) = (Arc::clone(turn), Jitter::random());
        Contest { what, turn, mine: None, started: Instant::now(), lost: 0, jitter }
    }
}

/// One operation's attempts.
pub(crate) struct Contest {
    what: String,
    turn: Arc<Mutex<()>>,
    mine: Option<OwnedMutexGuard<()>>,
    started: Instant,
    lost: u32,
    jitter: Jitter,
}

impl Contest {
    /// Waits until another attempt is worth it; fails when there were enough.
    pub(crate) async fn lost(&mut self) -> Result<(), ClientError> {
        let conflict = || ClientError::Conflict { what: self.what.clone() };
        if self.started.elapsed() > CONTEST_FOR {
            return Err(conflict());
        }
        let delay = BACKOFF.delay(self.lost, &mut self.jitter).ok_or_else(conflict)?;
        self.lost += 1;
        if self.mine.is_none() {
            // Waiting for one's turn is the longest wait there is.
            self.mine = Some(Arc::clone(&self.turn).lock_owned().await);
            return Ok(());
        }
        tokio::time::sleep(delay).await;
        Ok(())
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn those_who_lost_over_one_name_go_one_by_one() {
        let turns = Turns::default();
        let mut first = turns.contest("name");
        first.lost().await.unwrap();
        let mut second = turns.contest("name");
        let waits = tokio::time::timeout(Duration::from_secs(1), second.lost()).await;
        assert!(waits.is_err());
        first.lost().await.unwrap();
        drop(first);
        second.lost().await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_contest_ends() {
        let mut contest = Turns::default().contest("name");
        let mut lost = 0;
        while contest.lost().await.is_ok() {
            lost += 1;
            assert!(lost <= BACKOFF.attempts);
        }
        assert!(
            matches!(contest.lost().await, Err(ClientError::Conflict { what }) if what == "name")
        );
    }
}
