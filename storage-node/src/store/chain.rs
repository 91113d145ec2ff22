//! Whether the records of a segment can still be read one after the other. A shard's record is read back
//! because a row points to it; an extension has no row of its own, and is found only on this way.
//!
//! A record that cannot be read leaves a gap, and nothing says what it was. If it was an extension, the row
//! of its shard still knows the promise; so promises that no shard's own record bears are written anew.

use coffer_model::chunk::ShardKey;
use coffer_model::time::LogTime;

use super::{Store, StoreError, next_record, unless_damaged};
use crate::disk::{Disk, Segment};
use crate::record::{RECORD_HEADER_BYTES, Record, SEGMENT_HEADER_BYTES};

/// The gaps of one segment that are told; more are as bad as these.
const GAPS_MAX: usize = 64;

/// What came of reading a segment's records one after the other.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Chain {
    /// Where a record should begin and none can be read.
    pub(crate) gaps: Vec<u64>,
    /// How many bytes were read for it.
    pub(crate) read_bytes: u64,
}

/// Promises that only extensions bear.
pub(crate) struct Borne {
    pub(crate) shards: Vec<ShardKey>,
    /// The last shard that was looked at; none at the end of the index.
    pub(crate) last: Option<ShardKey>,
}

impl<D: Disk> Store<D> {
    /// The numbers of all segments, ascending.
    pub(crate) fn segments(&self) -> Vec<u64> {
        let segments =
            self.shared.segments.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        segments.keys().copied().collect()
    }

    /// Reads the headers of all records of a segment, past the system's cache.
    pub(crate) fn chain(&self, segment: u64) -> Result<Chain, StoreError> {
        let mut chain = Chain::default();
        let Some(file) = self.shared.segment(segment) else { return Ok(chain) };
        let length = file.length().map_err(super::disk_error)?;
        let end = self.index().indexed(segment)?.unwrap_or(SEGMENT_HEADER_BYTES).min(length);
        let header_bytes = RECORD_HEADER_BYTES as u64;
        let mut at = SEGMENT_HEADER_BYTES;
        while at + header_bytes <= end {
            file.uncache(at, header_bytes);
            let header = unless_damaged(file.read(at, RECORD_HEADER_BYTES))?.unwrap_or_default();
            chain.read_bytes += header_bytes;
            let record = Record::parse(&header, segment, at).map_err(|error| {
                StoreError::Damaged(format!("segment {segment}: {error}").into())
            })?;
            if let Some(record) = record {
                at += record.size();
                continue;
            }
            if chain.gaps.len() == GAPS_MAX {
                break;
            }
            chain.gaps.push(at);
            let Some(next) = next_record(&*file, segment, at, end)? else { break };
            chain.read_bytes += next - at;
            at = next;
        }
        Ok(chain)
    }

    /// Of some of the shards behind `after`, those whose promise is not in their own record and has not run
    /// out before `now`.
    pub(crate) fn borne_by_extensions(
        &self,
        after: Option<&ShardKey>,
        limit: usize,
        now: LogTime,
    ) -> Result<Borne, StoreError> {
        let looked_at = self.index().shards_after(after, limit)?;
        let mut shards = Vec::new();
        for key in &looked_at {
            let Some(row) = self.find(key)?.filter(|row| row.keep_until >= now) else { continue };
            if self.promise_of(key, &row)? < row.keep_until {
                shards.push(*key);
            }
        }
        Ok(Borne { shards, last: looked_at.last().copied() })
    }
}
