//! Identifiers. Each is a type of its own, so that one cannot be taken for another.

use std::fmt;
use std::str::FromStr;

use borsh::{BorshDeserialize, BorshSerialize};

/// Text that is not an identifier: wrong length, or not lower-case hexadecimal.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a valid id: expected {expected} lower-case hexadecimal digits")]
pub struct InvalidId {
    expected: usize,
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $len:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, BorshSerialize, BorshDeserialize)]
        pub struct $name([u8; $len]);

        impl $name {
            /// Takes the bytes as this kind of id.
            pub const fn from_bytes(bytes: [u8; $len]) -> Self {
                Self(bytes)
            }

            /// The bytes of the id.
            pub const fn as_bytes(&self) -> &[u8; $len] {
                &self.0
            }
        }

        impl TryFrom<&[u8]> for $name {
            type Error = InvalidId;

            fn try_from(bytes: &[u8]) -> Result<Self, InvalidId> {
                bytes.try_into().map(Self).map_err(|_| InvalidId { expected: $len * 2 })
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                for byte in &self.0 {
                    write!(f, "{byte:02x}")?;
                }
                Ok(())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, InvalidId> {
                let invalid = InvalidId { expected: $len * 2 };
                if text.len() != $len * 2 {
                    return Err(invalid);
                }
                let mut bytes = [0u8; $len];
                for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
                    let (Some(high), Some(low)) = (nibble(pair[0]), nibble(pair[1])) else {
                        return Err(invalid);
                    };
                    *byte = high << 4 | low;
                }
                Ok(Self(bytes))
            }
        }
    };
}

fn nibble(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

id!(
    /// The cluster: the hash of its first descriptor.
    ClusterId, 32
);
id!(
    /// A user or a group; random, never reused.
    PrincipalId, 16
);
id!(
    /// A file, directory or symlink. A vault is named by the inode of its root, a home likewise.
    InodeId, 16
);
id!(
    /// A storage node; random, made at its first start, kept on its volume.
    NodeId, 16
);
id!(
    /// One attempt to write content: what an interrupted upload has to remember.
    WriteId, 16
);
id!(
    /// One request of one principal; a repeat of it gets the first answer.
    RequestId, 16
);
id!(
    /// BLAKE3 of a sealed chunk's bytes.
    ChunkId, 32
);
id!(
    /// What a name in a directory is looked up by; keyed, so it tells nothing about the name.
    NameTag, 32
);

/// A metadata member: a random number made at its first start, kept on its volume, never reused.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, BorshSerialize, BorshDeserialize,
)]
pub struct MemberId(u64);

impl MemberId {
    /// Takes a number as a member's id.
    pub const fn from_u64(id: u64) -> Self {
        Self(id)
    }

    /// The id of the member on a volume: the first half of the volume's random id.
    pub const fn of_volume(id: &[u8; 16]) -> Self {
        let [a, b, c, d, e, f, g, h, ..] = *id;
        Self(u64::from_le_bytes([a, b, c, d, e, f, g, h]))
    }

    /// The number.
    pub const fn as_u64(self) -> u64 {
        self.0
    }
}

impl fmt::Display for MemberId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl FromStr for MemberId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let invalid = InvalidId { expected: 16 };
        if text.len() != 16 || !text.bytes().all(|digit| nibble(digit).is_some()) {
            return Err(invalid);
        }
        u64::from_str_radix(text, 16).map(Self).map_err(|_| invalid)
    }
}
