//! The login service: the server half of OPAQUE. Passwords never come here.
//!
//! Each first step, of a registration, a login or a recovery, is one guess for whoever makes it: with its answer an
//! attacker can try one password against a record. So it is the first steps that are counted for each
//! name, and a login that ends well is taken out of the count again.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use coffer_metadata_core::query;
use coffer_metadata_core::state::OpRef;
use coffer_model::encoding::encode;
use coffer_model::hash::Hash;
use coffer_model::id::MemberId;
use coffer_model::name::UserName;
use coffer_model::session::CertificateHash;
use coffer_proto::MESSAGE_BYTES_MAX;
use coffer_proto::v1 as pb;
use coffer_proto::v1::login_service_client::LoginServiceClient;
use coffer_proto::v1::login_service_server::LoginService;
use coffer_service::channel::Channel;
use coffer_service::status::{status, status_with_retry};
use tonic::{Code, Request, Response, Status};

use crate::access::{Door, Route, invalid, reading, store_failed};
use crate::batch::Proposer;
use crate::opaque::{Attempt, Opaque};
use crate::reads::Reads;

/// Logins between their two steps. One is a few hundred bytes.
const ATTEMPTS_MAX: usize = 10_000;
/// How long the second step may take after the first.
const ATTEMPT_AGE_MAX: Duration = Duration::from_secs(60);
/// First steps for one name within [`GUESSES_EVERY`].
const GUESSES_MAX: u32 = 10;
/// The time over which first steps are counted.
const GUESSES_EVERY: Duration = Duration::from_secs(60);
/// Counters. Names share them by a keyed hash, so however many names are tried, no count is ever
/// forgotten before its time; two busy names that share one only have to wait for each other.
const COUNTERS: usize = 1 << 16;

/// The login service of one member.
#[derive(Clone)]
pub(crate) struct Login {
    pub(crate) door: Door,
    pub(crate) reads: Reads,
    pub(crate) proposer: Proposer,
    pub(crate) opaque: Arc<Opaque>,
    pub(crate) attempts: Arc<Attempts>,
    pub(crate) guesses: Arc<Guesses>,
}

fn client(channel: Channel) -> LoginServiceClient<Channel> {
    LoginServiceClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX)
}

#[tonic::async_trait]
impl LoginService for Login {
    async fn start_registration(
        &self,
        request: Request<pb::StartRegistrationRequest>,
    ) -> Result<Response<pb::StartRegistrationResponse>, Status> {
        if let Route::At(leader) = self.door.to_leader(&request)? {
            let call = |to, request| async move { client(to).start_registration(request).await };
            return self.door.forward(leader, request, call).await;
        }
        let request = request.into_inner();
        let name = user_name(&request.name)?;
        self.guesses.count(&name, Instant::now())?;
        // What comes next is signed for a time near log time, so that had better be now.
        self.tick().await?;
        let confirmed = self.reads.view().await.map_err(|error| self.door.read_refused(error))?;
        let log_time = reading(move || query::log_time(&confirmed.view).map_err(store_failed));
        let log_time_ms = log_time.await?.unix_ms();
        let message = self.opaque.registration(&name, &request.message);
        Ok(Response::new(pb::StartRegistrationResponse {
            message: message.map_err(|_| malformed())?.into(),
            open_registration: self.door.group.descriptor().open_registration,
            log_time_ms,
        }))
    }

    async fn get_keyring(
        &self,
        request: Request<pb::GetKeyringRequest>,
    ) -> Result<Response<pb::GetKeyringResponse>, Status> {
        if let Route::At(leader) = self.door.to_leader(&request)? {
            let call = |to, request| async move { client(to).get_keyring(request).await };
            return self.door.forward(leader, request, call).await;
        }
        let name = user_name(&request.get_ref().name)?;
        // It opens only with the recovery code, or with a password that was guessed by a first step;
        // counting it as one more keeps anybody from fetching it all day.
        self.guesses.count(&name, Instant::now())?;
        let confirmed = self.reads.view().await.map_err(|error| self.door.read_refused(error))?;
        let answer = reading(move || {
            let view = &confirmed.view;
            let user = query::login_user(view, &name).map_err(store_failed)?;
            let text = "there is no such user";
            let user = user.ok_or_else(|| status(Code::NotFound, "USER_UNKNOWN", text, &[]))?;
            let proof = query::op_proof(view, user.at).map_err(store_failed)?;
            Ok(pb::GetKeyringResponse {
                user_proof: encode(&proof).into(),
                keyring: user.keyring.into(),
                log_time_ms: query::log_time(view).map_err(store_failed)?.unix_ms(),
            })
        });
        Ok(Response::new(answer.await?))
    }

    async fn get_sealed_session(
        &self,
        request: Request<pb::GetSealedSessionRequest>,
    ) -> Result<Response<pb::GetSealedSessionResponse>, Status> {
        if let Route::At(leader) = self.door.to_leader(&request)? {
            let call = |to, request| async move { client(to).get_sealed_session(request).await };
            return self.door.forward(leader, request, call).await;
        }
        let bytes = <[u8; 32]>::try_from(request.get_ref().certificate_hash.as_ref());
        let text = "a certificate hash has 32 bytes";
        let hash = Hash::from_bytes(bytes.map_err(|_| invalid("HASH_INVALID", text))?);
        let confirmed = self.reads.view().await.map_err(|error| self.door.read_refused(error))?;
        let answer = reading(move || {
            let view = &confirmed.view;
            let session = CertificateHash::from_hash(hash);
            let log_time = query::log_time(view).map_err(store_failed)?;
            let found = query::sealed_session(view, &session).map_err(store_failed)?;
            let text = "no sealed keys are kept for this session; log in again";
            let found =
                found.ok_or_else(|| status(Code::NotFound, "SESSION_UNKNOWN", text, &[]))?;
            Ok(pb::GetSealedSessionResponse {
                name: found.name,
                sealed: found.sealed.into(),
                ended: found.ended,
                log_time_ms: log_time.unix_ms(),
            })
        });
        Ok(Response::new(answer.await?))
    }

    async fn start_login(
        &self,
        request: Request<pb::StartLoginRequest>,
    ) -> Result<Response<pb::StartLoginResponse>, Status> {
        if let Route::At(leader) = self.door.to_leader(&request)? {
            let call = |to, request| async move { client(to).start_login(request).await };
            return self.door.forward(leader, request, call).await;
        }
        let request = request.into_inner();
        let name = user_name(&request.name)?;
        self.guesses.count(&name, Instant::now())?;
        let confirmed = self.reads.view().await.map_err(|error| self.door.read_refused(error))?;
        let (opaque, asked) = (Arc::clone(&self.opaque), name.clone());
        let (attempt, message, record) = reading(move || {
            let user = query::login_user(&confirmed.view, &asked).map_err(store_failed)?;
            let record = user.as_ref().map(|user| user.login_record.as_slice());
            let (attempt, answer) =
                opaque.login(&asked, record, &request.message).map_err(|_| malformed())?;
            Ok((attempt, answer, user.map(|user| user.at)))
        })
        .await?;
        let number = self.attempts.keep(Begun { name, attempt, record }, Instant::now())?;
        let attempt = AttemptName { member: self.door.group.me, number };
        Ok(Response::new(pb::StartLoginResponse {
            message: message.into(),
            attempt: attempt.to_bytes().into(),
        }))
    }

    async fn finish_login(
        &self,
        request: Request<pb::FinishLoginRequest>,
    ) -> Result<Response<pb::FinishLoginResponse>, Status> {
        let name = AttemptName::parse(&request.get_ref().attempt).ok_or_else(attempt_gone)?;
        // Only the member that began the attempt can finish it, and only while it leads: what it
        // gives out has to be the user's present record.
        let route = if name.member == self.door.group.me {
            self.door.here()?
        } else if self.door.group.member(name.member).is_some() {
            self.door.forward_to(name.member, &request)?
        } else {
            return Err(attempt_gone());
        };
        if let Route::At(member) = route {
            let call = |to, request| async move { client(to).finish_login(request).await };
            return self.door.forward(member, request, call).await;
        }
        let request = request.into_inner();
        let now = Instant::now();
        let begun = self.attempts.take(&name.number, now).ok_or_else(attempt_gone)?;
        let (opaque, message) = (Arc::clone(&self.opaque), request.message);
        let Begun { name, attempt, record } = begun;
        let proven = opaque.finish(&name, attempt, &message);
        let Some(record) = record.filter(|_| proven.is_ok()) else {
            let text = "wrong user name or password";
            return Err(status(Code::Unauthenticated, "WRONG_PASSWORD", text, &[]));
        };
        self.guesses.forgive(&name);
        // A session is opened next, for a time near log time.
        if self.tick().await.is_err() {
            return Err(attempt_gone());
        }
        let confirmed = self.reads.view().await.map_err(|_| attempt_gone())?;
        let answer = reading(move || {
            let view = &confirmed.view;
            let user = query::login_user(view, &name).map_err(store_failed)?;
            // The password was changed in between: the proof is for a record that is gone.
            let user = user.filter(|user| user.at == record).ok_or_else(attempt_gone)?;
            let proof = query::op_proof(view, user.at).map_err(store_failed)?;
            Ok(pb::FinishLoginResponse {
                user_proof: encode(&proof).into(),
                keyring: user.keyring.into(),
                log_time_ms: query::log_time(view).map_err(store_failed)?.unix_ms(),
            })
        });
        Ok(Response::new(answer.await?))
    }
}

impl Login {
    async fn tick(&self) -> Result<(), Status> {
        self.proposer.tick().await.map_err(|error| self.door.propose_refused(error))
    }
}

fn user_name(text: &str) -> Result<UserName, Status> {
    text.parse().map_err(|error: coffer_model::name::NameError| invalid("NAME", &error.to_string()))
}

fn malformed() -> Status {
    invalid("LOGIN_MESSAGE", "the message is not one of the login protocol")
}

/// The attempt is not known here (any more): the login has to begin again.
fn attempt_gone() -> Status {
    let text = "this login took too long, or its server changed: begin it again";
    status(Code::FailedPrecondition, "LOGIN_EXPIRED", text, &[])
}

/// What names an attempt: the member that began it, little-endian, and a random number.
struct AttemptName {
    member: MemberId,
    number: [u8; 16],
}

impl AttemptName {
    fn to_bytes(&self) -> Vec<u8> {
        [self.member.as_u64().to_le_bytes().as_slice(), &self.number].concat()
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let (member, number) = bytes.split_first_chunk::<8>()?;
        let member = MemberId::from_u64(u64::from_le_bytes(*member));
        Some(Self { member, number: number.try_into().ok()? })
    }
}

/// A login after its first step.
pub(crate) struct Begun {
    name: UserName,
    attempt: Attempt,
    /// The op that set the record the answer was made of; none where there is no such user.
    record: Option<OpRef>,
}

/// Logins between their two steps; bounded, in memory only.
#[derive(Default)]
pub(crate) struct Attempts(Mutex<HashMap<[u8; 16], (Begun, Instant)>>);

impl Attempts {
    fn keep(&self, begun: Begun, now: Instant) -> Result<[u8; 16], Status> {
        let mut number = [0; 16];
        if getrandom::fill(&mut number).is_err() {
            let text = "the system gave no random bytes";
            return Err(status(Code::Internal, "NO_RANDOMNESS", text, &[]));
        }
        let mut attempts = self.lock();
        if attempts.len() >= ATTEMPTS_MAX {
            attempts
                .retain(|_, (_, since)| now.saturating_duration_since(*since) < ATTEMPT_AGE_MAX);
        }
        if attempts.len() >= ATTEMPTS_MAX {
            let text = "too many logins are under way; try again shortly";
            let retry = Duration::from_secs(5);
            return Err(status_with_retry(Code::ResourceExhausted, "BUSY", text, &[], retry));
        }
        attempts.insert(number, (begun, now));
        Ok(number)
    }

    /// Takes an attempt out: it is good for one proof.
    fn take(&self, number: &[u8; 16], now: Instant) -> Option<Begun> {
        let (begun, since) = self.lock().remove(number)?;
        (now.saturating_duration_since(since) < ATTEMPT_AGE_MAX).then_some(begun)
    }

    /// Forgets what is too old.
    pub(crate) fn sweep(&self) {
        let now = Instant::now();
        self.lock().retain(|_, (_, since)| now.saturating_duration_since(*since) < ATTEMPT_AGE_MAX);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<[u8; 16], (Begun, Instant)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Counts first steps for each name, in a table of fixed size.
pub(crate) struct Guesses {
    key: RandomState,
    counters: Mutex<Vec<Counter>>,
    start: Instant,
}

#[derive(Clone, Copy, Default)]
struct Counter {
    /// Which span of [`GUESSES_EVERY`] since the start is counted.
    span: u64,
    count: u32,
}

impl Guesses {
    pub(crate) fn new() -> Self {
        let counters = Mutex::new(vec![Counter::default(); COUNTERS]);
        Self { key: RandomState::new(), counters, start: Instant::now() }
    }

    fn count(&self, name: &UserName, now: Instant) -> Result<(), Status> {
        let since = now.saturating_duration_since(self.start);
        let span = since.as_secs() / GUESSES_EVERY.as_secs();
        let mut counters = self.lock();
        let counter = &mut counters[self.place(name)];
        if counter.span != span {
            *counter = Counter { span, count: 0 };
        }
        if counter.count >= GUESSES_MAX {
            let left = GUESSES_EVERY.as_secs() - since.as_secs() % GUESSES_EVERY.as_secs();
            let text = "too many attempts for this name; wait a minute";
            let retry = Duration::from_secs(left);
            return Err(status_with_retry(
                Code::ResourceExhausted,
                "TOO_MANY_ATTEMPTS",
                text,
                &[],
                retry,
            ));
        }
        counter.count += 1;
        Ok(())
    }

    fn forgive(&self, name: &UserName) {
        let mut counters = self.lock();
        let counter = &mut counters[self.place(name)];
        counter.count = counter.count.saturating_sub(1);
    }

    fn place(&self, name: &UserName) -> usize {
        let hash = self.key.hash_one(name.as_str());
        usize::try_from(hash % COUNTERS as u64).expect("it is below the number of counters")
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Counter>> {
        self.counters.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn guesses_are_counted_for_each_name_and_forgiven_after_a_good_one() {
        let guesses = Guesses::new();
        let (alice, bob): (UserName, UserName) = ("alice".parse().unwrap(), "bob".parse().unwrap());
        let at = |secs| guesses.start + Duration::from_secs(secs);
        for _ in 0..100 {
            guesses.count(&alice, at(1)).unwrap();
            guesses.forgive(&alice);
        }
        for _ in 0..GUESSES_MAX {
            guesses.count(&alice, at(2)).unwrap();
        }
        let refused = guesses.count(&alice, at(3)).unwrap_err();
        assert_eq!(refused.code(), Code::ResourceExhausted);
        let hint = coffer_service::status::retry_delay(&refused);
        assert_eq!(hint, Some(Duration::from_secs(57)));
        if guesses.place(&alice) != guesses.place(&bob) {
            guesses.count(&bob, at(3)).unwrap();
        }
        guesses.count(&alice, at(60)).unwrap();
    }

    #[test]
    fn an_attempts_name_is_read_strictly() {
        let name = AttemptName { member: MemberId::from_u64(3), number: [7; 16] };
        let bytes = name.to_bytes();
        let read = AttemptName::parse(&bytes).unwrap();
        assert_eq!((read.member, read.number), (name.member, name.number));
        assert!(AttemptName::parse(&bytes[1..]).is_none());
        assert!(AttemptName::parse(&[bytes.as_slice(), &[0]].concat()).is_none());
        assert!(AttemptName::parse(&[]).is_none());
    }
}
