//! How the engine reaches a cluster. There is one way so far, through a gateway; another goes straight
//! to the storage nodes and stays behind the same trait.
//!
//! A transport carries messages and knows nothing about them. It bounds every call in time and repeats
//! those whose failure may pass; it may do so because every call of the sealed API can be repeated.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use coffer_crypto::sign::SessionKey;
use coffer_model::id::ClusterId;
use coffer_model::session::{CertificateHash, PROOF_MS_MAX, SessionProof};
use coffer_model::signing::Signer;
use coffer_proto::v1 as pb;
use futures_util::future::BoxFuture;
use tonic::Status;

mod gateway;
mod repeat;

pub use gateway::GatewayTransport;
pub use repeat::Repeats;

/// What a call comes to.
pub type Answer<'a, T> = BoxFuture<'a, Result<T, Status>>;

/// The sealed API of a cluster.
pub trait Transport: Send + Sync + 'static {
    /// Applies a bundle. A submission signed by an identity needs no session.
    fn submit<'a>(
        &'a self,
        session: Option<&'a Credentials>,
        request: pb::SubmitRequest,
    ) -> Answer<'a, pb::SubmitResponse>;
    /// Answers queries.
    fn read<'a>(
        &'a self,
        session: &'a Credentials,
        request: pb::ReadRequest,
    ) -> Answer<'a, pb::ReadResponse>;
    /// Lists a directory.
    fn list<'a>(
        &'a self,
        session: &'a Credentials,
        request: pb::ListRequest,
    ) -> Answer<'a, pb::ListResponse>;
    /// Lists the versions of a file.
    fn list_versions<'a>(
        &'a self,
        session: &'a Credentials,
        request: pb::ListVersionsRequest,
    ) -> Answer<'a, pb::ListVersionsResponse>;
    /// Asks for leave to store chunks.
    fn issue_write_ticket<'a>(
        &'a self,
        session: &'a Credentials,
        request: pb::IssueWriteTicketRequest,
    ) -> Answer<'a, pb::IssueWriteTicketResponse>;
    /// First step of a registration.
    fn start_registration(
        &self,
        request: pb::StartRegistrationRequest,
    ) -> Answer<'_, pb::StartRegistrationResponse>;
    /// First step of a login.
    fn start_login(&self, request: pb::StartLoginRequest) -> Answer<'_, pb::StartLoginResponse>;
    /// Second step of a login.
    fn finish_login(&self, request: pb::FinishLoginRequest) -> Answer<'_, pb::FinishLoginResponse>;
    /// A user's sealed keyring, without a login.
    fn get_keyring(&self, request: pb::GetKeyringRequest) -> Answer<'_, pb::GetKeyringResponse>;
    /// The session of a bearer token, sealed.
    fn get_sealed_session(
        &self,
        request: pb::GetSealedSessionRequest,
    ) -> Answer<'_, pb::GetSealedSessionResponse>;
    /// The signed records of the cluster.
    fn get_descriptor(
        &self,
        request: pb::GetDescriptorRequest,
    ) -> Answer<'_, pb::GetDescriptorResponse>;
    /// The state of the cluster.
    fn get_status(&self) -> Answer<'_, pb::GetStatusResponse>;
    /// A user's home, and what it uses.
    fn find_home(&self, request: pb::FindHomeRequest) -> Answer<'_, pb::FindHomeResponse>;
    /// Stores chunks.
    fn put_chunks<'a>(
        &'a self,
        session: &'a Credentials,
        request: pb::PutChunksRequest,
    ) -> Answer<'a, pb::PutChunksResponse>;
    /// Reads chunks.
    fn get_chunks<'a>(
        &'a self,
        session: &'a Credentials,
        request: pb::GetChunksRequest,
    ) -> Answer<'a, pb::GetChunksResponse>;
    /// Extends the promise for chunks.
    fn renew_receipts<'a>(
        &'a self,
        session: &'a Credentials,
        request: pb::RenewReceiptsRequest,
    ) -> Answer<'a, pb::RenewReceiptsResponse>;
}

/// A proof is made anew when it is this old: well before its 60 seconds are over.
const PROOF_AGE_MAX: Duration = Duration::from_secs(30);

/// What a session proves itself with: its key, and the certificate that vouches for it.
pub struct Credentials {
    cluster: ClusterId,
    certificate: CertificateHash,
    key: SessionKey,
    latest: Mutex<Option<(Instant, Vec<u8>)>>,
}

impl Credentials {
    /// The credentials of a session.
    pub fn new(cluster: ClusterId, certificate: CertificateHash, key: SessionKey) -> Self {
        Self { cluster, certificate, key, latest: Mutex::new(None) }
    }

    /// The value of the session header, at most half a minute old.
    pub fn proof(&self) -> Vec<u8> {
        let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((made, proof)) = latest.as_ref()
            && made.elapsed() < PROOF_AGE_MAX
        {
            return proof.clone();
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now_ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        let proof = SessionProof {
            audience: self.cluster,
            certificate: self.certificate,
            key: self.key.public_key(),
            expires_unix_ms: now_ms.saturating_add(PROOF_MS_MAX),
        }
        .sign(&self.key);
        *latest = Some((Instant::now(), proof.clone()));
        proof
    }

    /// The session's certificate.
    pub fn certificate(&self) -> CertificateHash {
        self.certificate
    }

    /// Takes the session's key out.
    pub(crate) fn into_key(self) -> SessionKey {
        self.key
    }

    /// The session's key.
    pub(crate) fn key(&self) -> &SessionKey {
        &self.key
    }
}
