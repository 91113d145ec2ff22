//! The door: who calls, whether this member can answer, and what a refusal looks like.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use coffer_metadata_core::query::{self, QueryError};
use coffer_metadata_core::{TableError, Tables};
use coffer_model::id::{ClusterId, MemberId, PrincipalId};
use coffer_model::session::{CLOCK_SKEW_MS_MAX, PROOF_HEADER, SessionProof};
use coffer_service::audit::Note;
use coffer_service::cache::BoundedCache;
use coffer_service::call::contained;
use coffer_service::channel::Channel;
use coffer_service::server::peer_of;
use coffer_service::status::{status, status_with_retry};
use tokio::sync::Semaphore;
use tonic::metadata::MetadataMap;
use tonic::{Code, Request, Response, Status};

use crate::batch::ProposeError;
use crate::group::{Group, Process};
use crate::heard::{Heard, Seat};
use crate::peers::Peers;
use crate::raft::Leadership;
use crate::reads::ReadError;
use crate::threads::blocking;

/// Marks a call that one member passed on to another, which then answers or refuses.
const FORWARDED_HEADER: &str = "coffer-forwarded";
/// gRPC's own header for a call's deadline.
const DEADLINE_HEADER: &str = "grpc-timeout";
/// How long a forwarded call may take where its caller set no deadline.
const FORWARD_TIMEOUT: Duration = Duration::from_secs(30);
/// Session proofs whose signature was checked.
const PROOFS_MAX: usize = 16_384;
/// A session proof is a good deal shorter than this.
const PROOF_BYTES_MAX: usize = 512;
/// When to come back where too much waits.
const BUSY_RETRY: Duration = Duration::from_millis(100);
/// When to come back where nobody leads: about an election.
const ELECTION_RETRY: Duration = Duration::from_millis(300);

/// The door of one member. Clones are the same door.
#[derive(Clone)]
pub(crate) struct Door {
    pub(crate) group: Arc<Group>,
    pub(crate) leadership: Leadership,
    pub(crate) peers: Peers,
    /// Whom this member has heard from.
    pub(crate) heard: Arc<Heard>,
    proofs: Arc<BoundedCache<Bytes, SessionProof>>,
    closed: Arc<AtomicBool>,
}

/// Where a call is answered.
pub(crate) enum Route {
    /// By this member.
    Here,
    /// By that one.
    At(MemberId),
}

impl Door {
    pub(crate) fn new(group: Arc<Group>, leadership: Leadership, peers: Peers) -> Self {
        let proofs = Arc::new(BoundedCache::new(PROOFS_MAX, None));
        let (heard, closed) = (Arc::default(), Arc::default());
        Self { group, leadership, peers, heard, proofs, closed }
    }

    /// Takes no more work: from now on every call is sent away.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
    }

    /// Where a call that only the leader can answer goes.
    pub(crate) fn to_leader<T>(&self, request: &Request<T>) -> Result<Route, Status> {
        let leader = self.leadership.leader();
        match leader {
            Some(leader) if leader == self.group.me => self.here(),
            Some(leader) => self.forward_to(leader, request),
            None => Err(self.not_leader(None)),
        }
    }

    /// This member, unless it is stopping.
    pub(crate) fn here(&self) -> Result<Route, Status> {
        if self.closed.load(Ordering::Relaxed) { Err(stopping()) } else { Ok(Route::Here) }
    }

    /// That member, unless the call has been passed on once already.
    pub(crate) fn forward_to<T>(
        &self,
        member: MemberId,
        request: &Request<T>,
    ) -> Result<Route, Status> {
        if is_forwarded(request.metadata()) {
            return Err(self.not_leader(Some(member)));
        }
        Ok(Route::At(member))
    }

    /// Passes a call on, with the caller's session and deadline.
    pub(crate) async fn forward<Q, A, F>(
        &self,
        to: MemberId,
        request: Request<Q>,
        call: impl FnOnce(Channel, Request<Q>) -> F,
    ) -> Result<Response<A>, Status>
    where
        F: Future<Output = Result<Response<A>, Status>>,
    {
        let channel = self.peers.calls(to).ok_or_else(|| self.not_leader(None))?;
        let (metadata, _, message) = request.into_parts();
        let mut passed = Request::new(message);
        // The most a caller waits for; a deadline of its own takes its place.
        passed.set_timeout(FORWARD_TIMEOUT);
        if let Some(deadline) = metadata.get(DEADLINE_HEADER) {
            passed.metadata_mut().insert(DEADLINE_HEADER, deadline.clone());
        }
        if let Some(proof) = metadata.get_bin(PROOF_HEADER) {
            passed.metadata_mut().insert_bin(PROOF_HEADER, proof.clone());
        }
        let mark = "1".parse().expect("a digit is a header value");
        passed.metadata_mut().insert(FORWARDED_HEADER, mark);
        match contained(call(channel, passed)).await {
            Ok(answer) => Ok(Response::new(answer.into_inner())),
            Err(error) if std::error::Error::source(&error).is_some() => {
                // The connection failed: that member is not there, and may not lead any more.
                tracing::debug!(member = %to, %error, "a call could not be passed on");
                Err(self.not_leader(None))
            }
            // The other member's headers are not ours to repeat.
            Err(error) => Err(Status::with_details(
                error.code(),
                error.message(),
                Bytes::copy_from_slice(error.details()),
            )),
        }
    }

    /// The refusal of a member that does not lead.
    pub(crate) fn not_leader(&self, leader: Option<MemberId>) -> Status {
        let address = leader.and_then(|leader| self.peers.address(leader)).unwrap_or_default();
        let facts = [("leader", address)];
        let text = "this metadata member does not lead; try again";
        status_with_retry(Code::Unavailable, "NOT_LEADER", text, &facts, ELECTION_RETRY)
    }

    pub(crate) fn read_refused(&self, error: ReadError) -> Status {
        match error {
            ReadError::Busy => busy(),
            ReadError::NotLeader(leader) => self.not_leader(leader),
            ReadError::Unconfirmed => status_with_retry(
                Code::Unavailable,
                "NO_QUORUM",
                "no majority of the metadata members answers",
                &[],
                ELECTION_RETRY,
            ),
            ReadError::Stopped => stopping(),
        }
    }

    pub(crate) fn propose_refused(&self, error: ProposeError) -> Status {
        match error {
            ProposeError::Busy => busy(),
            ProposeError::NotLeader(leader) => self.not_leader(leader),
            ProposeError::Stopped => stopping(),
        }
    }

    /// The caller's proof of a session, checked: the caller holds the key. Whether the session is open
    /// is for [`authorised`] to say.
    pub(crate) fn proof<T>(&self, request: &Request<T>) -> Result<SessionProof, Status> {
        let header = request.metadata().get_bin(PROOF_HEADER).ok_or_else(|| {
            session_refused("SESSION_REQUIRED", "this call needs a session: log in")
        })?;
        let header = header.to_bytes().map_err(|_| malformed_proof())?;
        if header.len() > PROOF_BYTES_MAX {
            return Err(malformed_proof());
        }
        if let Some(proof) = self.proofs.get(&header) {
            return Ok(proof);
        }
        let now = self.group.clock.unix_ms();
        let proof = SessionProof::verify(&header, &self.group.cluster(), now)
            .map_err(|error| {
                let (text, facts) = (error.to_string(), error.facts());
                status(Code::Unauthenticated, error.reason(), &text, &facts)
            })?
            .into_inner();
        let left = proof.expires_unix_ms.saturating_add(CLOCK_SKEW_MS_MAX).saturating_sub(now);
        if let Some(expires) = Instant::now().checked_add(Duration::from_millis(left)) {
            self.proofs.insert_until(header, proof.clone(), expires);
        }
        Ok(proof)
    }

    /// Which process of the cluster calls, by its certificate and the descriptor.
    pub(crate) fn process<T>(&self, request: &Request<T>) -> Result<Process, Status> {
        let peer = peer_of(request);
        // A simulated network says who calls without certificates.
        #[cfg(test)]
        let peer = peer.or_else(|| request.extensions().get());
        let process = peer.and_then(|peer| self.group.process(peer));
        if let Some(process) = process {
            let seat = match process {
                Process::Member(member) => Seat::Member(member),
                Process::Node(node) => Seat::Node(node),
            };
            self.heard.note(seat, Instant::now());
        }
        process.ok_or_else(|| {
            let text = "the descriptor of this cluster does not name the calling process";
            status(Code::PermissionDenied, "NOT_IN_DESCRIPTOR", text, &[])
        })
    }

    /// Which member calls.
    pub(crate) fn member<T>(&self, request: &Request<T>) -> Result<MemberId, Status> {
        match self.process(request)? {
            Process::Member(member) => Ok(member),
            Process::Node(_) => {
                let text = "only metadata members may call this";
                Err(status(Code::PermissionDenied, "NOT_A_MEMBER", text, &[]))
            }
        }
    }

    pub(crate) fn cluster(&self) -> ClusterId {
        self.group.cluster()
    }
}

pub(crate) fn is_forwarded(metadata: &MetadataMap) -> bool {
    metadata.contains_key(FORWARDED_HEADER)
}

/// Whose session the proof is for, if it is open; the audit log gets to know both.
pub(crate) fn authorised(
    tables: &impl Tables,
    proof: &SessionProof,
    note: &Note,
) -> Result<PrincipalId, Status> {
    note.add(|subject| subject.session = Some(proof.certificate.as_hash().to_string()));
    let principal =
        query::session(tables, &proof.certificate, &proof.key).map_err(store_failed)?.ok_or_else(
            || session_refused("SESSION_CLOSED", "the session is not open: log in again"),
        )?;
    note.add(|subject| subject.principal = Some(principal.to_string()));
    Ok(principal)
}

fn session_refused(reason: &'static str, text: &str) -> Status {
    status(Code::Unauthenticated, reason, text, &[])
}

fn malformed_proof() -> Status {
    session_refused("SESSION_PROOF_INVALID", "the session proof is malformed")
}

pub(crate) fn busy() -> Status {
    let text = "the metadata group has more to do than it can take; try again shortly";
    status_with_retry(Code::ResourceExhausted, "BUSY", text, &[], BUSY_RETRY)
}

pub(crate) fn stopping() -> Status {
    let text = "this metadata member is stopping; try again";
    status_with_retry(Code::Unavailable, "STOPPING", text, &[], ELECTION_RETRY)
}

pub(crate) fn invalid(reason: &'static str, text: &str) -> Status {
    status(Code::InvalidArgument, reason, text, &[])
}

/// The store could not be read. It is not the caller's fault, and trying again will not help.
pub(crate) fn store_failed(error: TableError) -> Status {
    tracing::error!(%error, "the metadata store could not be read");
    status(Code::Internal, "STORE_FAILED", "the metadata store could not be read", &[])
}

pub(crate) fn query_refused(error: QueryError) -> Status {
    match error {
        QueryError::Store(error) => store_failed(error),
        QueryError::Denied => status(Code::PermissionDenied, "DENIED", "not allowed", &[]),
        QueryError::NotFound => {
            status(Code::NotFound, "NOT_FOUND", "the file or directory does not exist", &[])
        }
        QueryError::NotADirectory => {
            status(Code::FailedPrecondition, "NOT_A_DIRECTORY", "not a directory", &[])
        }
        QueryError::Invalid(what) => invalid("INVALID", what),
    }
}

/// Reads of the store that run at a time. More threads would not read faster, and each would keep memory of
/// its own.
const READS_AT_ONCE: usize = 16;

static READERS: Semaphore = Semaphore::const_new(READS_AT_ONCE);

/// Runs work that reads the store off the async threads.
pub(crate) async fn reading<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Status> + Send + 'static,
) -> Result<T, Status> {
    // It is never closed.
    let _turn = READERS.acquire().await;
    blocking(work).await.unwrap_or_else(|error| {
        tracing::error!(%error, "a read failed");
        Err(status(Code::Internal, "READ_FAILED", "the read failed", &[]))
    })
}
