//! Ed25519 signatures with `verify_strict` semantics (no small-order keys, canonical scalars), the
//! same on every replica. A signature covers `domain ‖ 0x00 ‖ cluster id ‖ bytes`.

use std::fmt;

use borsh::{BorshDeserialize, BorshSerialize};
use ed25519_dalek::{Signature as DalekSignature, VerifyingKey};

use crate::id::ClusterId;

/// What a signature is for. A signature for one purpose is never valid for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Domain {
    /// A bundle's header.
    Bundle,
    /// A session certificate, signed by a user's identity.
    Session,
    /// The proof that a caller holds a session key.
    SessionProof,
    /// A member's leave to read or write chunks.
    Ticket,
    /// A storage node's promise to keep chunks.
    Receipt,
    /// A descriptor, signed by administrators.
    Descriptor,
    /// A layout, signed by an administrator.
    Layout,
    /// A member's reading of its clock.
    ClockReading,
    /// A storage node's address and capacity.
    NodeReport,
    /// An administrator's order: quota, retention, invite.
    Order,
    /// A storage node's word that it holds its share of a layout.
    ShareProof,
    /// A member's word that a node need not keep chunks.
    Release,
    /// A message between processes of the cluster, bound to its sender.
    Process,
    /// A descriptor in which a lost volume is replaced, signed by the join token and by members.
    Replacement,
    /// A process's application for a certificate, signed by its own key and by the join token. There may be
    /// no cluster yet: the cluster id is zero.
    Enrolment,
}

impl Domain {
    const fn text(self) -> &'static str {
        match self {
            Self::Bundle => "coffer/v1/sign/bundle",
            Self::Session => "coffer/v1/sign/session",
            Self::SessionProof => "coffer/v1/sign/session-proof",
            Self::Ticket => "coffer/v1/sign/ticket",
            Self::Receipt => "coffer/v1/sign/receipt",
            Self::Descriptor => "coffer/v1/sign/descriptor",
            Self::Layout => "coffer/v1/sign/layout",
            Self::ClockReading => "coffer/v1/sign/clock-reading",
            Self::NodeReport => "coffer/v1/sign/node-report",
            Self::Order => "coffer/v1/sign/order",
            Self::ShareProof => "coffer/v1/sign/share-proof",
            Self::Release => "coffer/v1/sign/release",
            Self::Process => "coffer/v1/sign/process",
            Self::Replacement => "coffer/v1/sign/replacement",
            Self::Enrolment => "coffer/v1/sign/enrolment",
        }
    }
}

/// The exact bytes a signature covers.
pub fn signed_bytes(domain: Domain, cluster: &ClusterId, bytes: &[u8]) -> Vec<u8> {
    let text = domain.text().as_bytes();
    let mut message = Vec::with_capacity(text.len() + 33 + bytes.len());
    message.extend_from_slice(text);
    message.push(0);
    message.extend_from_slice(cluster.as_bytes());
    message.extend_from_slice(bytes);
    message
}

/// A signature that does not belong to these bytes, this key and this purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the signature does not verify")]
pub struct BadSignature;

/// An Ed25519 public key, as 32 bytes; whether it is a point is found out when it is used.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, BorshSerialize, BorshDeserialize)]
pub struct PublicKey([u8; 32]);

impl PublicKey {
    /// Takes 32 bytes as a public key.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The bytes of the key.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Whether any signature at all can verify under this key: a mistyped one is often no key.
    pub fn is_usable(&self) -> bool {
        VerifyingKey::from_bytes(&self.0).is_ok_and(|key| !key.is_weak())
    }

    /// Checks `signature` over `bytes` for one purpose in one cluster.
    pub fn verify(
        &self,
        domain: Domain,
        cluster: &ClusterId,
        bytes: &[u8],
        signature: &Signature,
    ) -> Result<(), BadSignature> {
        self.verify_message(&signed_bytes(domain, cluster, bytes), signature)
    }

    /// The one place where a signature is checked.
    fn verify_message(&self, message: &[u8], signature: &Signature) -> Result<(), BadSignature> {
        let key = VerifyingKey::from_bytes(&self.0).map_err(|_| BadSignature)?;
        let signature = DalekSignature::from_bytes(&signature.0);
        key.verify_strict(message, &signature).map_err(|_| BadSignature)
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in &self.0 {
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

/// An Ed25519 signature.
#[derive(Clone, Copy, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Signature([u8; 64]);

impl Signature {
    /// Takes 64 bytes as a signature.
    pub const fn from_bytes(bytes: [u8; 64]) -> Self {
        Self(bytes)
    }

    /// The bytes of the signature.
    pub const fn as_bytes(&self) -> &[u8; 64] {
        &self.0
    }
}

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Signature(..)")
    }
}

/// Whoever holds a secret key: a session at an edge, or a process's identity. The key itself never
/// comes into this crate.
pub trait Signer {
    /// The public half.
    fn public_key(&self) -> PublicKey;
    /// Signs `bytes` for one purpose in one cluster (see [`signed_bytes`]).
    fn sign(&self, domain: Domain, cluster: &ClusterId, bytes: &[u8]) -> Signature;
}

/// A message whose signature was checked. Only this crate's `verify` functions make one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified<T>(T);

impl<T> Verified<T> {
    pub(crate) const fn checked(message: T) -> Self {
        Self(message)
    }

    /// Takes the message out.
    pub fn into_inner(self) -> T {
        self.0
    }
}

impl<T> std::ops::Deref for Verified<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

#[cfg(test)]
mod tests;
