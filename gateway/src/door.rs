//! What every call passes first: the proof of a session.

use coffer_model::id::ClusterId;
use coffer_model::session::{PROOF_HEADER, SessionProof};
use coffer_service::cache::BoundedCache;
use coffer_service::status::status;
use tonic::metadata::{BinaryMetadataValue, MetadataMap};
use tonic::{Code, Status};

/// Proofs that were verified and may come again; each is good for a minute.
const PROOFS_REMEMBERED: usize = 16_384;

/// Checks session proofs, each one once.
pub(crate) struct Door {
    cluster: ClusterId,
    verified: BoundedCache<Vec<u8>, u64>,
}

impl Door {
    pub(crate) fn new(cluster: ClusterId) -> Self {
        Self { cluster, verified: BoundedCache::new(PROOFS_REMEMBERED, None) }
    }

    /// The proof's header value, if it verifies. Whether the session is open is for members to say.
    pub(crate) fn admit(&self, metadata: &MetadataMap) -> Result<BinaryMetadataValue, Status> {
        let refused =
            |message: &str| status(Code::Unauthenticated, "SESSION_PROOF_INVALID", message, &[]);
        let value = metadata
            .get_bin(PROOF_HEADER)
            .ok_or_else(|| refused("this call needs a session: log in first"))?;
        let bytes = value.to_bytes().map_err(|_| refused("the session proof is not base64"))?;
        let now = now_unix_ms();
        if self.verified.get(bytes.as_ref()).is_some_and(|expires| now < expires) {
            return Ok(value.clone());
        }
        let proof = SessionProof::verify(&bytes, &self.cluster, now)
            .map_err(|error| refused(&error.to_string()))?;
        self.verified.insert(bytes.to_vec(), proof.expires_unix_ms);
        Ok(value.clone())
    }
}

fn now_unix_ms() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
