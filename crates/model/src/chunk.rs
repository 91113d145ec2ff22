//! Sealed chunks. The id is the hash of the bytes, so anyone can check a chunk without a key.

use borsh::{BorshDeserialize, BorshSerialize};

use crate::id::ChunkId;

/// How many plaintext bytes one slot of a file covers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, BorshSerialize, BorshDeserialize)]
#[borsh(use_discriminant = true)]
#[repr(u8)]
pub enum ChunkClass {
    /// 64 KiB: files written at random.
    Small = 0,
    /// 1 MiB: the default.
    Large = 1,
}

impl ChunkClass {
    /// Plaintext bytes of a full slot.
    pub const fn bytes(self) -> u64 {
        match self {
            Self::Small => 64 * 1024,
            Self::Large => 1024 * 1024,
        }
    }
}

/// The largest sealed chunk: 1 MiB of plaintext is 64 full frames of 16 KiB and an empty one, each
/// with a 16-byte tag, behind 24 bytes of salt and 32 of commitment.
pub const SEALED_BYTES_MAX: usize = 56 + 64 * (16_384 + 16) + 16;

/// Bytes that are not the chunk they were asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChunkError {
    /// The bytes hash to something else.
    #[error("chunk {expected} does not match its id: the bytes are those of {found}")]
    Mismatch {
        /// The id that was asked for.
        expected: ChunkId,
        /// The id of the bytes that came.
        found: ChunkId,
    },
    /// More bytes than any sealed chunk has.
    #[error("a sealed chunk has at most {SEALED_BYTES_MAX} bytes, this one {0}")]
    TooLarge(usize),
}

/// Sealed bytes together with their id. The only ways to one are to hash the bytes or to check them.
#[derive(Clone, PartialEq, Eq)]
pub struct SealedChunk<B> {
    id: ChunkId,
    bytes: B,
}

impl<B: AsRef<[u8]>> SealedChunk<B> {
    /// Hashes `bytes` to find their id.
    pub fn hash(bytes: B) -> Result<Self, ChunkError> {
        let length = bytes.as_ref().len();
        if length > SEALED_BYTES_MAX {
            return Err(ChunkError::TooLarge(length));
        }
        let id = ChunkId::from_bytes(*blake3::hash(bytes.as_ref()).as_bytes());
        Ok(Self { id, bytes })
    }

    /// Takes `bytes` as chunk `id` if they are that chunk.
    pub fn check(id: ChunkId, bytes: B) -> Result<Self, ChunkError> {
        let chunk = Self::hash(bytes)?;
        if chunk.id != id {
            return Err(ChunkError::Mismatch { expected: id, found: chunk.id });
        }
        Ok(chunk)
    }

    /// The id.
    pub fn id(&self) -> ChunkId {
        self.id
    }

    /// The sealed bytes.
    pub fn bytes(&self) -> &B {
        &self.bytes
    }

    /// Takes the sealed bytes out.
    pub fn into_bytes(self) -> B {
        self.bytes
    }
}

/// How a chunk is spread over nodes. Only whole replicas exist so far.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash, BorshSerialize, BorshDeserialize,
)]
#[borsh(use_discriminant = true)]
#[repr(u8)]
pub enum Redundancy {
    /// Every node of the partition holds the whole chunk.
    Replicas = 0,
}

/// What a storage node keeps under one key: one shard of one chunk under one scheme. A replica is
/// shard 0 of scheme 0, and nothing but the scheme says that it is the whole chunk.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash, BorshSerialize, BorshDeserialize,
)]
pub struct ShardKey {
    /// The chunk the shard belongs to.
    pub chunk: ChunkId,
    /// The scheme.
    pub scheme: Redundancy,
    /// Which shard of the scheme.
    pub shard: u8,
}

impl ShardKey {
    /// The key of a whole replica.
    pub const fn replica(chunk: ChunkId) -> Self {
        Self { chunk, scheme: Redundancy::Replicas, shard: 0 }
    }
}
