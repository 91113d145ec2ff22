//! The bytes of a segment file (docs/formats/segments.md).
//!
//! ```text
//! segment = header 64 | record | record | … | zeros
//! header  = "COFFERSG" | version u32 | segment number u64 | node id 16 | zeros 12 | checksum 16
//! record  = magic u32 | kind u8 | version u8 | zeros 2 | length u32 | keep until u64
//!         | chunk id 32 | scheme u8 | shard u8 | zeros 2 | checksum 16 | payload | zeros to 8
//! ```
//!
//! A checksum is the first 16 bytes of BLAKE3 over what stands before it; a record's also over its
//! segment's number and its own offset, so that a record is only valid where it was written.

use coffer_model::chunk::{Redundancy, SEALED_BYTES_MAX, ShardKey};
use coffer_model::id::{ChunkId, NodeId};
use coffer_model::time::LogTime;

pub(crate) const SEGMENT_HEADER_BYTES: u64 = 64;
pub(crate) const RECORD_HEADER_BYTES: usize = 72;
/// Records begin at multiples of it.
pub(crate) const RECORD_ALIGNMENT: usize = 8;
const SEGMENT_MAGIC: &[u8; 8] = b"COFFERSG";
const SEGMENT_VERSION: u32 = 1;
const RECORD_MAGIC: u32 = 0x4345_5231;
const RECORD_VERSION: u8 = 1;

/// What a record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A shard follows.
    Shard,
    /// A shard that is here already is kept longer; nothing follows.
    Extension,
}

/// The header of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) kind: Kind,
    pub(crate) key: ShardKey,
    /// Sealed bytes of the shard, also of an extension.
    pub(crate) length: u32,
    pub(crate) keep_until: LogTime,
}

/// A record with a right checksum and a version, kind or scheme that this software does not know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a later version of this software wrote to it")]
pub(crate) struct UnknownRecord;

fn checksum(parts: &[&[u8]]) -> [u8; 16] {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(part);
    }
    let mut short = [0; 16];
    short.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    short
}

pub(crate) fn segment_header(number: u64, node: &NodeId) -> [u8; 64] {
    let mut header = [0; 64];
    header[..8].copy_from_slice(SEGMENT_MAGIC);
    header[8..12].copy_from_slice(&SEGMENT_VERSION.to_le_bytes());
    header[12..20].copy_from_slice(&number.to_le_bytes());
    header[20..36].copy_from_slice(node.as_bytes());
    let sum = checksum(&[&header[..48]]);
    header[48..].copy_from_slice(&sum);
    header
}

/// Whose a segment is, by its header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Header {
    /// This node's, of this number and version.
    Ours,
    /// Whole, and of another node, number or version.
    Foreign,
    /// Nobody wrote it like this.
    Damaged,
}

impl Header {
    /// What the first bytes of a file say.
    pub(crate) fn of(found: &[u8], number: u64, node: &NodeId) -> Self {
        let Ok(header) = <&[u8; 64]>::try_from(found) else {
            return Self::Damaged;
        };
        if *header == segment_header(number, node) {
            return Self::Ours;
        }
        let is_whole = header[..8] == *SEGMENT_MAGIC && header[48..] == checksum(&[&header[..48]]);
        if is_whole { Self::Foreign } else { Self::Damaged }
    }
}

impl Record {
    /// Bytes of the whole record.
    pub(crate) fn size(&self) -> u64 {
        let payload = match self.kind {
            Kind::Shard => u64::from(self.length),
            Kind::Extension => 0,
        };
        (RECORD_HEADER_BYTES as u64 + payload).next_multiple_of(RECORD_ALIGNMENT as u64)
    }

    pub(crate) fn header(&self, segment: u64, offset: u64) -> [u8; RECORD_HEADER_BYTES] {
        let mut header = [0; RECORD_HEADER_BYTES];
        header[..4].copy_from_slice(&RECORD_MAGIC.to_le_bytes());
        header[4] = match self.kind {
            Kind::Shard => 0,
            Kind::Extension => 1,
        };
        header[5] = RECORD_VERSION;
        header[8..12].copy_from_slice(&self.length.to_le_bytes());
        header[12..20].copy_from_slice(&self.keep_until.unix_ms().to_le_bytes());
        header[20..52].copy_from_slice(self.key.chunk.as_bytes());
        header[52] = match self.key.scheme {
            Redundancy::Replicas => 0,
        };
        header[53] = self.key.shard;
        let sum = checksum(&[&header[..56], &segment.to_le_bytes(), &offset.to_le_bytes()]);
        header[56..].copy_from_slice(&sum);
        header
    }

    /// Reads a header; none if no record stands here. What was written whole, and not by this
    /// software, is an error: taken for the end, it would be written over.
    pub(crate) fn parse(
        bytes: &[u8],
        segment: u64,
        offset: u64,
    ) -> Result<Option<Self>, UnknownRecord> {
        let Ok(header) = <&[u8; RECORD_HEADER_BYTES]>::try_from(bytes) else { return Ok(None) };
        if header[..4] != RECORD_MAGIC.to_le_bytes() {
            return Ok(None);
        }
        let sum = checksum(&[&header[..56], &segment.to_le_bytes(), &offset.to_le_bytes()]);
        if header[56..] != sum {
            return Ok(None);
        }
        Self::parse_fields(header).map(Some).ok_or(UnknownRecord)
    }

    fn parse_fields(header: &[u8; RECORD_HEADER_BYTES]) -> Option<Self> {
        let length = u32::from_le_bytes(header[8..12].try_into().ok()?);
        let readable = header[5] == RECORD_VERSION
            && header[52] == 0
            && usize::try_from(length).is_ok_and(|length| length <= SEALED_BYTES_MAX);
        if !readable {
            return None;
        }
        let kind = match header[4] {
            0 => Kind::Shard,
            1 => Kind::Extension,
            _ => return None,
        };
        let key = ShardKey {
            chunk: ChunkId::try_from(&header[20..52]).ok()?,
            scheme: Redundancy::Replicas,
            shard: header[53],
        };
        let keep_until = LogTime::from_unix_ms(u64::from_le_bytes(header[12..20].try_into().ok()?));
        Some(Self { kind, key, length, keep_until })
    }
}

#[cfg(test)]
mod tests;
