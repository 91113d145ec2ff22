//! Sessions: a short-lived signing key that a user's identity vouches for, and the proof, sent with
//! every call, that the caller holds it.

use borsh::{BorshDeserialize, BorshSerialize};

use crate::encoding::{Malformed, decode, encode};
use crate::hash::Hash;
use crate::id::{ClusterId, PrincipalId};
use crate::signing::{BadSignature, Domain, PublicKey, Signature, Signer, Verified};
use crate::time::LogTime;

/// The longest a session may last: 12 hours.
pub const SESSION_MS_MAX: u64 = 12 * 3600 * 1000;
/// The longest a proof of a session may be valid: 60 seconds.
pub const PROOF_MS_MAX: u64 = 60 * 1000;
/// How far a process's clock may be ahead of or behind the one that set an expiry.
pub const CLOCK_SKEW_MS_MAX: u64 = 120 * 1000;
/// The name of the header that carries a [`SessionProof`]; `-bin` makes gRPC encode it.
pub const PROOF_HEADER: &str = "coffer-session-bin";

/// What a session may do. One value so far; a narrower scope gets a number of its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
#[borsh(use_discriminant = true)]
#[repr(u8)]
pub enum Scope {
    /// Whatever the principal may.
    Full = 0,
}

/// A user's identity vouches for a session key. The certificate is itself an op in the log.
#[derive(Clone, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
pub struct Certificate {
    /// The suite of the signature over it.
    pub suite: u16,
    /// The cluster it is for.
    pub cluster: ClusterId,
    /// Whose session it is.
    pub principal: PrincipalId,
    /// The session's public key.
    pub key: PublicKey,
    /// What the session may do.
    pub scope: Scope,
    /// From when on it counts.
    pub issued: LogTime,
    /// Until when it counts, at most [`SESSION_MS_MAX`] later.
    pub expires: LogTime,
}

/// A [`Certificate`] with the signature of the user's identity.
#[derive(Clone, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
pub struct SignedCertificate {
    /// What is certified.
    pub certificate: Certificate,
    /// By the identity key, over the certificate's encoding.
    pub signature: Signature,
}

/// What names a certificate: the hash of its encoding.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, BorshSerialize, BorshDeserialize,
)]
pub struct CertificateHash(Hash);

impl CertificateHash {
    /// Takes a hash as the name of a certificate.
    pub const fn from_hash(hash: Hash) -> Self {
        Self(hash)
    }

    /// The hash.
    pub const fn as_hash(&self) -> &Hash {
        &self.0
    }
}

impl Certificate {
    /// The hash that names this certificate.
    pub fn hash(&self) -> CertificateHash {
        CertificateHash(Hash::of("coffer/v1/session-certificate", &encode(self)))
    }

    /// Signs the certificate with the user's identity.
    pub fn sign(self, identity: &impl Signer) -> SignedCertificate {
        let signature = identity.sign(Domain::Session, &self.cluster, &encode(&self));
        SignedCertificate { certificate: self, signature }
    }
}

impl SignedCertificate {
    /// Checks the signature against the identity the user record names.
    pub fn verify(&self, identity: &PublicKey) -> Result<(), BadSignature> {
        let bytes = encode(&self.certificate);
        identity.verify(Domain::Session, &self.certificate.cluster, &bytes, &self.signature)
    }
}

/// What a caller sends with every call: "I hold this session's key, now, for this cluster".
#[derive(Clone, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
pub struct SessionProof {
    /// The cluster the call is meant for.
    pub audience: ClusterId,
    /// The session's certificate.
    pub certificate: CertificateHash,
    /// The session's public key.
    pub key: PublicKey,
    /// Until when the proof counts, by the caller's clock, at most [`PROOF_MS_MAX`] ahead.
    pub expires_unix_ms: u64,
}

/// The reason of a refusal: the proof is not of this time.
pub const PROOF_EXPIRED: &str = "SESSION_PROOF_EXPIRED";
/// The reason of a refusal: the proof is none, or not for this cluster.
pub const PROOF_INVALID: &str = "SESSION_PROOF_INVALID";
/// The fact of such a refusal that says what the server's clock said, in milliseconds since the Unix epoch.
pub const SERVER_TIME: &str = "server_unix_ms";

/// Why a proof was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProofError {
    /// Not a proof at all.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// The signature is not by the key it names.
    #[error(transparent)]
    Signature(#[from] BadSignature),
    /// Meant for another cluster.
    #[error("the session proof is for another cluster")]
    Audience,
    /// Its time is over, or lies too far ahead, by the clock of who checks it.
    #[error(
        "the session proof is not of this time: the clock of the machine that made it, or ours, is wrong"
    )]
    Expired {
        /// What the clock of who checks it says.
        now_unix_ms: u64,
    },
}

impl ProofError {
    /// The reason a server refuses with.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Expired { .. } => PROOF_EXPIRED,
            _ => PROOF_INVALID,
        }
    }

    /// What a server adds to it: how late it is, where that is what is wrong.
    pub fn facts(&self) -> Vec<(&'static str, String)> {
        match self {
            Self::Expired { now_unix_ms } => vec![(SERVER_TIME, now_unix_ms.to_string())],
            _ => Vec::new(),
        }
    }
}

impl SessionProof {
    /// Signs the proof with the session key; the result is the value of [`PROOF_HEADER`].
    pub fn sign(&self, session: &impl Signer) -> Vec<u8> {
        let bytes = encode(self);
        let signature = session.sign(Domain::SessionProof, &self.audience, &bytes);
        encode(&(bytes, signature))
    }

    /// Checks a header's value. Whether the session exists and still counts is for whoever knows
    /// the sessions to say.
    pub fn verify(
        header: &[u8],
        cluster: &ClusterId,
        now_unix_ms: u64,
    ) -> Result<Verified<Self>, ProofError> {
        let (bytes, signature): (Vec<u8>, Signature) = decode("session proof", header)?;
        let proof: Self = decode("session proof", &bytes)?;
        if proof.audience != *cluster {
            return Err(ProofError::Audience);
        }
        let latest = now_unix_ms.saturating_add(PROOF_MS_MAX + CLOCK_SKEW_MS_MAX);
        if proof.expires_unix_ms < now_unix_ms.saturating_sub(CLOCK_SKEW_MS_MAX)
            || proof.expires_unix_ms > latest
        {
            return Err(ProofError::Expired { now_unix_ms });
        }
        proof.key.verify(Domain::SessionProof, cluster, &bytes, &signature)?;
        Ok(Verified::checked(proof))
    }
}
