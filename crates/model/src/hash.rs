//! BLAKE3 hashes, each under a domain string of its own.

use std::fmt;

use borsh::{BorshDeserialize, BorshSerialize};

/// A 256-bit BLAKE3 hash.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, BorshSerialize, BorshDeserialize)]
pub struct Hash([u8; 32]);

impl Hash {
    /// Takes 32 bytes as a hash that was computed elsewhere.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The bytes of the hash.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// BLAKE3 in key-derivation mode: `domain` separates this use from every other.
    pub fn of(domain: &'static str, bytes: &[u8]) -> Self {
        Self(blake3::derive_key(domain, bytes))
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in &self.0 {
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

/// The hash that names a detached payload (a sealed name, sealed attributes, a version's payload,
/// a keyring, a login record).
pub fn payload_hash(payload: &[u8]) -> Hash {
    Hash::of("coffer/v1/payload", payload)
}
