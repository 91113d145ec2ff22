//! Secret signing keys: a user's identity, and the short-lived key of a session that the identity
//! vouches for. Everything is verified by [`coffer_model::signing`].

use coffer_model::id::ClusterId;
use coffer_model::signing::{Domain, PublicKey, Signature, Signer, signed_bytes};
use ed25519_dalek::{Signer as _, SigningKey};
use zeroize::Zeroizing;

use crate::random::random_bytes;

/// A user's identity (Ed25519). It leaves memory only inside a sealed keyring.
pub struct IdentityKey(SigningKey);

/// A session's key (Ed25519).
pub struct SessionKey(SigningKey);

impl IdentityKey {
    /// A new random identity.
    pub fn generate() -> Self {
        Self::from_seed(&Zeroizing::new(random_bytes()))
    }

    pub(crate) fn from_seed(seed: &[u8; 32]) -> Self {
        Self(SigningKey::from_bytes(seed))
    }

    pub(crate) fn as_seed(&self) -> &[u8; 32] {
        self.0.as_bytes()
    }
}

impl SessionKey {
    /// A new random session key.
    pub fn generate() -> Self {
        Self(SigningKey::from_bytes(&Zeroizing::new(random_bytes())))
    }

    /// The secret, for the session file of one user on one machine.
    pub fn to_secret_bytes(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(self.0.to_bytes())
    }

    /// Takes a secret that [`Self::to_secret_bytes`] gave.
    pub fn from_secret_bytes(bytes: &Zeroizing<[u8; 32]>) -> Self {
        Self(SigningKey::from_bytes(bytes))
    }
}

impl Signer for IdentityKey {
    fn public_key(&self) -> PublicKey {
        PublicKey::from_bytes(self.0.verifying_key().to_bytes())
    }

    fn sign(&self, domain: Domain, cluster: &ClusterId, bytes: &[u8]) -> Signature {
        Signature::from_bytes(self.0.sign(&signed_bytes(domain, cluster, bytes)).to_bytes())
    }
}

impl Signer for SessionKey {
    fn public_key(&self) -> PublicKey {
        PublicKey::from_bytes(self.0.verifying_key().to_bytes())
    }

    fn sign(&self, domain: Domain, cluster: &ClusterId, bytes: &[u8]) -> Signature {
        Signature::from_bytes(self.0.sign(&signed_bytes(domain, cluster, bytes)).to_bytes())
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn signatures_verify_for_their_purpose_cluster_and_bytes_only() {
        let (here, there) = (ClusterId::from_bytes([1; 32]), ClusterId::from_bytes([2; 32]));
        let (identity, session) = (IdentityKey::generate(), SessionKey::generate());
        let signature = identity.sign(Domain::Session, &here, b"certificate");
        let key = identity.public_key();
        key.verify(Domain::Session, &here, b"certificate", &signature).unwrap();
        assert!(key.verify(Domain::Bundle, &here, b"certificate", &signature).is_err());
        assert!(key.verify(Domain::Session, &there, b"certificate", &signature).is_err());
        assert!(key.verify(Domain::Session, &here, b"other", &signature).is_err());
        let other = session.public_key();
        assert!(other.verify(Domain::Session, &here, b"certificate", &signature).is_err());

        let again = SessionKey::from_secret_bytes(&session.to_secret_bytes());
        assert_eq!(again.public_key(), other);
        other
            .verify(Domain::Bundle, &here, b"x", &again.sign(Domain::Bundle, &here, b"x"))
            .unwrap();
    }
}
