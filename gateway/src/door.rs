//! What every call passes first: the proof of a session.

use coffer_model::id::ClusterId;
use coffer_model::session::{CertificateHash, PROOF_HEADER, SessionProof};
use coffer_service::audit::note;
use coffer_service::cache::BoundedCache;
use coffer_service::status::status;
use tonic::metadata::BinaryMetadataValue;
use tonic::{Code, Request, Status};

/// Proofs that were verified and may come again; each is good for a minute.
const PROOFS_REMEMBERED: usize = 16_384;

/// Checks session proofs, each one once.
pub(crate) struct Door {
    cluster: ClusterId,
    verified: BoundedCache<Vec<u8>, Verified>,
}

/// Until when a proof counts, and of which session it is.
#[derive(Clone, Copy)]
struct Verified {
    expires_unix_ms: u64,
    certificate: CertificateHash,
}

impl Door {
    pub(crate) fn new(cluster: ClusterId) -> Self {
        Self { cluster, verified: BoundedCache::new(PROOFS_REMEMBERED, None) }
    }

    /// The proof's header value, if it verifies. Whether the session is open is for members to say.
    pub(crate) fn admit<T>(&self, request: &Request<T>) -> Result<BinaryMetadataValue, Status> {
        let refused =
            |message: &str| status(Code::Unauthenticated, "SESSION_PROOF_INVALID", message, &[]);
        let value = request
            .metadata()
            .get_bin(PROOF_HEADER)
            .ok_or_else(|| refused("this call needs a session: log in first"))?;
        let bytes = value.to_bytes().map_err(|_| refused("the session proof is not base64"))?;
        let now = now_unix_ms();
        let known = self.verified.get(bytes.as_ref()).filter(|it| now < it.expires_unix_ms);
        let verified = match known {
            Some(verified) => verified,
            None => {
                let proof = SessionProof::verify(&bytes, &self.cluster, now).map_err(|error| {
                    let (text, facts) = (error.to_string(), error.facts());
                    status(Code::Unauthenticated, error.reason(), &text, &facts)
                })?;
                let verified = Verified {
                    expires_unix_ms: proof.expires_unix_ms,
                    certificate: proof.certificate,
                };
                self.verified.insert(bytes.to_vec(), verified);
                verified
            }
        };
        note(request, |subject| subject.session = Some(verified.certificate.as_hash().to_string()));
        Ok(value.clone())
    }
}

fn now_unix_ms() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
