//! Sessions that are open at this gateway, found by their bearer tokens. What is not open is taken up
//! from what the cluster keeps of it, so any gateway serves any session and a restart ends none.
//!
//! Open sessions are keys in memory. They are bounded in number, and dropped, which wipes their keys,
//! at logout, when the cluster says that they are over, when nobody has used them for a while, and
//! when they end.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use coffer_client::{BearerToken, ClientError, CustodySession, Engine, Session, TokenCheck};
use coffer_model::session::{CertificateHash, SESSION_MS_MAX};
use coffer_service::audit::note;
use tonic::{Request, Status};

use super::answers::{refusal, unauthenticated};

/// How long a session stays open without a call.
pub(crate) const IDLE_MAX: Duration = Duration::from_secs(15 * 60);
/// How long a session stays open at all; the cluster ends it no later.
const OPEN_MAX: Duration = Duration::from_millis(SESSION_MS_MAX);
/// Sessions open at a time. The one that was not used for longest makes room, and is taken up again
/// with its next call.
const SESSIONS_MAX: usize = 1024;

/// The sessions of this gateway.
pub(crate) struct Sessions {
    engine: Engine,
    open: Mutex<HashMap<CertificateHash, Open>>,
}

struct Open {
    session: Session,
    check: TokenCheck,
    times: Times,
}

/// When a session was opened here, and last used.
#[derive(Clone, Copy)]
struct Times {
    opened: Instant,
    used: Instant,
}

impl Times {
    fn is_stale(self, now: Instant) -> bool {
        now.duration_since(self.used) >= IDLE_MAX || now.duration_since(self.opened) >= OPEN_MAX
    }
}

impl Sessions {
    pub(crate) fn new(engine: Engine) -> Self {
        Self { engine, open: Mutex::new(HashMap::new()) }
    }

    /// What is served to who has no session yet.
    pub(crate) fn engine(&self) -> &Engine {
        &self.engine
    }

    /// The session of a call's token. The audit log says whose it is.
    pub(crate) async fn of<T>(
        &self,
        request: &Request<T>,
    ) -> Result<(CertificateHash, Session), Status> {
        let token = bearer_token(request)?;
        let hash = token.session();
        let session = match self.open_session(&token)? {
            Some(session) => session,
            None => {
                let session = self.engine.take_up(&token).await;
                let session = session.map_err(|error| refusal(&error))?;
                self.keep(&token, session.clone());
                session
            }
        };
        note(request, |subject| {
            subject.session = Some(hash.as_hash().to_string());
            subject.principal = Some(session.principal().to_string());
        });
        Ok((hash, session))
    }

    fn open_session(&self, token: &BearerToken) -> Result<Option<Session>, Status> {
        let now = Instant::now();
        let mut open = self.lock();
        let Some(found) = open.get_mut(&token.session()) else { return Ok(None) };
        if !found.check.is_of(token) {
            return Err(refusal(&ClientError::WrongToken));
        }
        if found.times.is_stale(now) {
            open.remove(&token.session());
            return Ok(None);
        }
        found.times.used = now;
        Ok(Some(found.session.clone()))
    }

    /// Keeps a session open that was begun here.
    pub(crate) fn begun(&self, begun: &CustodySession) {
        self.keep(&begun.token, begun.session.clone());
    }

    fn keep(&self, token: &BearerToken, session: Session) {
        let now = Instant::now();
        let mut open = self.lock();
        if open.len() >= SESSIONS_MAX && !open.contains_key(&token.session()) {
            let oldest = open.iter().min_by_key(|(_, open)| open.times.used).map(|(hash, _)| *hash);
            oldest.map(|hash| open.remove(&hash));
        }
        let kept = Open { session, check: token.check(), times: Times { opened: now, used: now } };
        open.insert(token.session(), kept);
    }

    /// Forgets a session and its keys.
    pub(crate) fn forget(&self, hash: &CertificateHash) {
        self.lock().remove(hash);
    }

    /// Forgets the sessions nobody has used for a while, and those that have ended.
    pub(crate) fn sweep(&self, now: Instant) {
        self.lock().retain(|_, open| !open.times.is_stale(now));
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<CertificateHash, Open>> {
        // Each step on the map is complete or not begun.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn bearer_token<T>(request: &Request<T>) -> Result<BearerToken, Status> {
    let required = || {
        let text = "this call needs the header `authorization: Bearer <token>`; log in first";
        unauthenticated("TOKEN_REQUIRED", text)
    };
    let header = request.metadata().get("authorization").ok_or_else(required)?;
    let (scheme, token) =
        header.to_str().ok().and_then(|text| text.split_once(' ')).ok_or_else(required)?;
    if !scheme.eq_ignore_ascii_case("bearer") {
        return Err(required());
    }
    BearerToken::parse(token.trim())
        .map_err(|_| unauthenticated("TOKEN_MALFORMED", "this is not a token"))
}

#[cfg(test)]
mod tests {
    use coffer_service::status::reason_of;

    use super::*;

    #[test]
    fn a_session_is_wiped_when_nobody_uses_it_and_when_it_ends() {
        let start = Instant::now();
        let at = |minutes: u64| start + Duration::from_secs(60 * minutes);
        let used = |minutes| Times { opened: start, used: at(minutes) };
        for (used, now, stale) in [
            (used(0), at(14), false),
            (used(0), at(15), true),
            (used(100), at(114), false),
            (used(100), at(115), true),
            (used(12 * 60 - 1), at(12 * 60 - 1), false),
            (used(12 * 60 - 1), at(12 * 60), true),
        ] {
            assert_eq!(used.is_stale(now), stale, "after {:?}", now.duration_since(start));
        }
    }

    #[test]
    fn what_is_no_token_is_told_apart_from_no_token_and_never_repeated() {
        let rows = [
            (None, "TOKEN_REQUIRED"),
            (Some("Basic canary-secret"), "TOKEN_REQUIRED"),
            (Some("canary-secret"), "TOKEN_REQUIRED"),
            (Some("Bearer canary-secret"), "TOKEN_MALFORMED"),
        ];
        for (header, expected) in rows {
            let mut request = Request::new(());
            if let Some(value) = header.and_then(|header| header.parse().ok()) {
                request.metadata_mut().insert("authorization", value);
            }
            let refused = bearer_token(&request).err();
            let reason = refused.as_ref().and_then(reason_of).map(|reason| reason.code);
            assert_eq!(reason.as_deref(), Some(expected));
            assert!(!format!("{refused:?}").contains("canary"));
        }
    }
}
