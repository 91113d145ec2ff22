//! The one canonical encoding: [borsh](https://borsh.io), little-endian, no maps, no floats.
//!
//! Decoding is strict: a value that decodes has exactly one encoding, so hashing the encoding of a
//! decoded value gives the hash of the bytes it came from.

use borsh::{BorshDeserialize, BorshSerialize};

/// Bytes that are not the canonical encoding of the type asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("malformed {what}: {reason}")]
pub struct Malformed {
    /// The type that was asked for.
    pub what: &'static str,
    /// What the decoder met.
    pub reason: String,
}

/// The canonical bytes of `value`.
pub fn encode<T: BorshSerialize>(value: &T) -> Vec<u8> {
    borsh::to_vec(value).expect("writing to a Vec cannot fail")
}

/// Reads a value from its canonical bytes, all of them.
pub fn decode<T: BorshDeserialize>(what: &'static str, bytes: &[u8]) -> Result<T, Malformed> {
    borsh::from_slice(bytes).map_err(|error| Malformed { what, reason: error.to_string() })
}
