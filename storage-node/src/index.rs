//! The index: where each shard lies, how far each segment is indexed, and what is missing. It can be
//! lost without loss: segments are the truth, and what they say after the indexed offset is read
//! again at the start. So its writes are atomic but not synced.

use std::path::Path;

use borsh::{BorshDeserialize, BorshSerialize};
use coffer_model::chunk::ShardKey;
use coffer_model::encoding::{decode, encode};
use coffer_model::id::ChunkId;
use coffer_model::time::LogTime;
use rocksdb::{
    BlockBasedOptions, Cache, ColumnFamilyDescriptor, DB, IteratorMode, Options, WriteBatch,
};

use crate::record::RECORD_HEADER_BYTES;

const SHARDS: &str = "shards";
const META: &str = "meta";
const MISSING: &str = "missing";
const CURSOR: &[u8] = b"cursor";
const TOTALS: &[u8] = b"totals";
const OWNER: &[u8] = b"owner";
const SEGMENT_PREFIX: u8 = b's';
/// Rows of lost shards that are written at once; a whole segment's would take up much memory.
const LOST_PER_BATCH: usize = 4096;

/// Where a shard lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub(crate) struct Location {
    pub(crate) segment: u64,
    /// Of the record, in the segment.
    pub(crate) offset: u64,
    pub(crate) length: u32,
    pub(crate) keep_until: LogTime,
    /// Found damaged: it counts as absent until it is written anew.
    pub(crate) quarantined: bool,
}

impl Location {
    /// Where the shard ends in its segment.
    pub(crate) fn end(&self) -> u64 {
        let header = RECORD_HEADER_BYTES as u64;
        self.offset.saturating_add(header).saturating_add(u64::from(self.length))
    }
}

/// How much is here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub(crate) struct Totals {
    pub(crate) shards: u64,
    pub(crate) bytes: u64,
}

/// The index could not be read or written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IndexError {
    #[error("the index failed")]
    Rocks(#[from] rocksdb::Error),
    #[error("the index holds bytes this software did not write: {0}")]
    Damaged(String),
}

fn damaged(why: impl std::fmt::Display) -> IndexError {
    IndexError::Damaged(why.to_string())
}

pub(crate) struct Index {
    db: DB,
}

/// A change of the index, all or nothing.
#[derive(Default)]
pub(crate) struct IndexBatch {
    pub(crate) shards: Vec<(ShardKey, Location)>,
    pub(crate) totals: Option<Totals>,
    /// Segment and the offset up to which it is indexed.
    pub(crate) indexed: Vec<(u64, u64)>,
}

impl Index {
    pub(crate) fn open(path: &Path) -> Result<Self, IndexError> {
        let cache = Cache::new_lru_cache(24 << 20);
        let mut block = BlockBasedOptions::default();
        block.set_block_cache(&cache);
        block.set_cache_index_and_filter_blocks(true);
        block.set_bloom_filter(10.0, false);
        let mut options = Options::default();
        options.create_if_missing(true);
        options.create_missing_column_families(true);
        options.set_block_based_table_factory(&block);
        options.set_write_buffer_size(8 << 20);
        options.set_max_write_buffer_number(2);
        options.set_db_write_buffer_size(24 << 20);
        options.set_max_open_files(128);
        options.set_keep_log_file_num(2);
        options.set_max_total_wal_size(32 << 20);
        let families =
            [SHARDS, META, MISSING].map(|name| ColumnFamilyDescriptor::new(name, options.clone()));
        Ok(Self { db: DB::open_cf_descriptors(&options, path, families)? })
    }

    fn family(&self, name: &str) -> &rocksdb::ColumnFamily {
        self.db.cf_handle(name).expect("it was opened with all its families")
    }

    fn load<V: BorshDeserialize>(&self, family: &str, key: &[u8]) -> Result<Option<V>, IndexError> {
        let Some(bytes) = self.db.get_pinned_cf(self.family(family), key)? else { return Ok(None) };
        decode("index value", &bytes).map(Some).map_err(damaged)
    }

    /// Where a shard lies, quarantined or not.
    pub(crate) fn location(&self, key: &ShardKey) -> Result<Option<Location>, IndexError> {
        self.load(SHARDS, &encode(key))
    }

    pub(crate) fn totals(&self) -> Result<Totals, IndexError> {
        Ok(self.load(META, TOTALS)?.unwrap_or_default())
    }

    pub(crate) fn indexed(&self, segment: u64) -> Result<Option<u64>, IndexError> {
        self.load(META, &segment_key(segment))
    }

    /// The segments of which something is indexed, ascending.
    pub(crate) fn segments(&self) -> Result<Vec<u64>, IndexError> {
        let mode = IteratorMode::From(&[SEGMENT_PREFIX], rocksdb::Direction::Forward);
        let mut numbers = Vec::new();
        for row in self.db.iterator_cf(self.family(META), mode) {
            let (key, _) = row?;
            let Some((&SEGMENT_PREFIX, number)) = key.split_first() else { break };
            let number = number.try_into().map_err(|_| damaged("a segment's key has 9 bytes"))?;
            numbers.push(u64::from_be_bytes(number));
        }
        Ok(numbers)
    }

    /// The segment ends at `end`, and shards should stand beyond it: they are quarantined and noted
    /// as missing, and nothing of the segment counts as indexed any more. Says how many they were.
    pub(crate) fn lose(&self, segment: u64, end: u64) -> Result<u64, IndexError> {
        let mut lost = 0;
        let mut rows = WriteBatch::default();
        for row in self.db.iterator_cf(self.family(SHARDS), IteratorMode::Start) {
            let (key, value) = row?;
            let shard: ShardKey = decode("shard key", &key).map_err(damaged)?;
            let location: Location = decode("location", &value).map_err(damaged)?;
            if location.segment != segment || location.end() <= end {
                continue;
            }
            lost += 1;
            let location = Location { quarantined: true, ..location };
            rows.put_cf(self.family(SHARDS), key, encode(&location));
            rows.put_cf(self.family(MISSING), shard.chunk.as_bytes(), encode(&0_u64));
            if rows.len() >= LOST_PER_BATCH {
                self.db.write(std::mem::take(&mut rows))?;
            }
        }
        // This comes last: until then, the next start does it all again.
        rows.delete_cf(self.family(META), segment_key(segment));
        self.db.write(rows)?;
        Ok(lost)
    }

    /// Whose index this is; none before the first start.
    pub(crate) fn owner(&self) -> Result<Option<[u8; 16]>, IndexError> {
        self.load(META, OWNER)
    }

    pub(crate) fn set_owner(&self, owner: &[u8; 16]) -> Result<(), IndexError> {
        Ok(self.db.put_cf(self.family(META), OWNER, encode(owner))?)
    }

    pub(crate) fn write(&self, batch: &IndexBatch) -> Result<(), IndexError> {
        let mut rows = WriteBatch::default();
        for (key, location) in &batch.shards {
            rows.put_cf(self.family(SHARDS), encode(key), encode(location));
        }
        if let Some(totals) = &batch.totals {
            rows.put_cf(self.family(META), TOTALS, encode(totals));
        }
        for (segment, offset) in &batch.indexed {
            rows.put_cf(self.family(META), segment_key(*segment), encode(offset));
        }
        Ok(self.db.write(rows)?)
    }

    /// The position in the feed up to which everything expected is here or noted as missing.
    pub(crate) fn cursor(&self) -> Result<u64, IndexError> {
        Ok(self.load(META, CURSOR)?.unwrap_or(0))
    }

    /// Notes missing chunks, with the time they were noticed, and moves the cursor on.
    pub(crate) fn note_missing(
        &self,
        chunks: &[ChunkId],
        noticed_unix_ms: u64,
        cursor: u64,
    ) -> Result<(), IndexError> {
        let mut rows = WriteBatch::default();
        for chunk in chunks {
            rows.put_cf(self.family(MISSING), chunk.as_bytes(), encode(&noticed_unix_ms));
        }
        rows.put_cf(self.family(META), CURSOR, encode(&cursor));
        Ok(self.db.write(rows)?)
    }

    /// Chunks that are not missing any more.
    pub(crate) fn forget_missing(&self, chunks: &[ChunkId]) -> Result<(), IndexError> {
        let mut rows = WriteBatch::default();
        for chunk in chunks {
            rows.delete_cf(self.family(MISSING), chunk.as_bytes());
        }
        Ok(self.db.write(rows)?)
    }

    /// Up to `limit` missing chunks from `from` on, with the time they were noticed.
    pub(crate) fn missing(
        &self,
        from: Option<&ChunkId>,
        limit: usize,
    ) -> Result<Vec<(ChunkId, u64)>, IndexError> {
        let start = from.map_or(&[][..], |chunk| chunk.as_bytes());
        let mode = IteratorMode::From(start, rocksdb::Direction::Forward);
        let mut found = Vec::new();
        for row in self.db.iterator_cf(self.family(MISSING), mode).take(limit) {
            let (key, value) = row?;
            let chunk = ChunkId::try_from(key.as_ref()).map_err(damaged)?;
            found.push((chunk, decode("missing chunk", &value).map_err(damaged)?));
        }
        Ok(found)
    }

    /// How many chunks are missing, counted up to `limit`.
    pub(crate) fn count_missing(&self, limit: usize) -> u64 {
        let rows = self.db.iterator_cf(self.family(MISSING), IteratorMode::Start);
        rows.take(limit).count() as u64
    }

    /// Makes everything durable; for a clean stop.
    pub(crate) fn sync(&self) -> Result<(), IndexError> {
        Ok(self.db.flush_wal(true)?)
    }
}

fn segment_key(segment: u64) -> [u8; 9] {
    let mut key = [SEGMENT_PREFIX; 9];
    key[1..].copy_from_slice(&segment.to_be_bytes());
    key
}
