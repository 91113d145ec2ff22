//! How much is done at a time: for one user, and in all. What is beyond is refused at once, with a hint
//! when to come back, so that nobody waits behind somebody else's work.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use coffer_model::id::PrincipalId;
use coffer_service::status::status_with_retry;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::{Code, Status};

/// Calls under way in all. One holds up to 8 MiB of content, and as much of chunks in the engine.
const CALLS_MAX: usize = 64;
/// Calls of one user under way.
const CALLS_PER_USER_MAX: usize = 16;
/// Logins and registrations under way. Each stretches a password: 64 MiB and half a second of a core.
const LOGINS_MAX: usize = 4;
/// What a caller is told to wait.
const CALL_PAUSE: Duration = Duration::from_millis(250);
const LOGIN_PAUSE: Duration = Duration::from_secs(1);

/// The bounds of this gateway.
pub(crate) struct Limits {
    calls: Arc<Semaphore>,
    logins: Arc<Semaphore>,
    users: Mutex<HashMap<PrincipalId, usize>>,
}

/// Leave to do one call; given back when it is dropped.
pub(crate) struct Admitted {
    limits: Arc<Limits>,
    principal: PrincipalId,
    _call: OwnedSemaphorePermit,
}

impl Limits {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            calls: Arc::new(Semaphore::new(CALLS_MAX)),
            logins: Arc::new(Semaphore::new(LOGINS_MAX)),
            users: Mutex::new(HashMap::new()),
        })
    }

    /// Leave for a login or a registration.
    pub(crate) fn login(&self) -> Result<OwnedSemaphorePermit, Status> {
        Arc::clone(&self.logins)
            .try_acquire_owned()
            .map_err(|_| overloaded("too many logins are under way", LOGIN_PAUSE))
    }

    /// Leave for a call, before it is known whose it is.
    pub(crate) fn call(&self) -> Result<OwnedSemaphorePermit, Status> {
        Arc::clone(&self.calls)
            .try_acquire_owned()
            .map_err(|_| overloaded("too many calls are under way", CALL_PAUSE))
    }

    /// Leave for a call of a user.
    pub(crate) fn of_user(
        self: &Arc<Self>,
        principal: PrincipalId,
        call: OwnedSemaphorePermit,
    ) -> Result<Admitted, Status> {
        let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        let count = users.entry(principal).or_default();
        if *count >= CALLS_PER_USER_MAX {
            return Err(overloaded("too many calls of this user are under way", CALL_PAUSE));
        }
        *count += 1;
        Ok(Admitted { limits: Arc::clone(self), principal, _call: call })
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let mut users = self.limits.users.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = users.get_mut(&self.principal) {
            *count -= 1;
            if *count == 0 {
                users.remove(&self.principal);
            }
        }
    }
}

pub(crate) fn overloaded(message: &str, pause: Duration) -> Status {
    status_with_retry(Code::ResourceExhausted, "OVERLOADED", message, &[], pause)
}

#[cfg(test)]
#[expect(clippy::unwrap_used)]
mod tests {
    use coffer_service::status::{reason_of, retry_delay};

    use super::*;

    #[test]
    fn one_user_does_not_take_everything_and_what_is_given_comes_back() {
        let limits = Limits::new();
        let (alice, bob) = (PrincipalId::from_bytes([1; 16]), PrincipalId::from_bytes([2; 16]));
        let call = |principal| limits.of_user(principal, limits.call()?);
        let held: Vec<_> = (0..CALLS_PER_USER_MAX).map(|_| call(alice).unwrap()).collect();
        let refused = call(alice).err().unwrap();
        assert_eq!(reason_of(&refused).unwrap().code, "OVERLOADED");
        assert_eq!(retry_delay(&refused), Some(CALL_PAUSE));
        drop(call(bob).unwrap());
        drop(held);
        drop(call(alice).unwrap());
        assert!(limits.users.lock().unwrap().is_empty());
        assert_eq!(limits.calls.available_permits(), CALLS_MAX);

        let calls: Vec<_> = (0..CALLS_MAX).map(|_| limits.call().unwrap()).collect();
        assert!(limits.call().is_err());
        drop(calls);
        let logins: Vec<_> = (0..LOGINS_MAX).map(|_| limits.login().unwrap()).collect();
        assert_eq!(retry_delay(&limits.login().unwrap_err()), Some(LOGIN_PAUSE));
        drop(logins);
    }
}
