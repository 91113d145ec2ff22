//! The index: where each shard lies, how far each segment is indexed, and what is missing. It can be
//! lost without loss: segments are the truth, and what they say after the indexed offset is read
//! again at the start. So its writes are atomic but not synced.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use borsh::{BorshDeserialize, BorshSerialize};
use coffer_model::chunk::ShardKey;
use coffer_model::encoding::{decode, encode};
use coffer_model::id::ChunkId;
use coffer_model::time::LogTime;
use coffer_service::memory::cache_bytes;
use rocksdb::{
    BlockBasedOptions, Cache, ColumnFamilyDescriptor, DB, IteratorMode, Options, WriteBatch,
};

use crate::record::{RECORD_ALIGNMENT, RECORD_HEADER_BYTES};

const SHARDS: &str = "shards";
const META: &str = "meta";
const MISSING: &str = "missing";
const SURPLUS: &str = "surplus";
const CURSOR: &[u8] = b"cursor";
const TOTALS: &[u8] = b"totals";
const OWNER: &[u8] = b"owner";
/// Not `scrub`: what begins with `s` is a segment's.
const PASS: &[u8] = b"pass";
const PROVEN: &[u8] = b"proven";
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
    /// Whether this is the record that `other` is.
    pub(crate) fn is_record_of(&self, other: &Self) -> bool {
        (self.segment, self.offset) == (other.segment, other.offset)
    }

    /// Where the shard ends in its segment.
    pub(crate) fn end(&self) -> u64 {
        let header = RECORD_HEADER_BYTES as u64;
        self.offset.saturating_add(header).saturating_add(u64::from(self.length))
    }
}

/// How far a pass of scrubbing has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub(crate) struct Pass {
    /// When it began, ms since the Unix epoch.
    pub(crate) began_unix_ms: u64,
    /// The last shard that was looked at; none at the beginning.
    pub(crate) after: Option<ShardKey>,
}

/// How many chunks are missing, and how many of them because they were found damaged here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Missing {
    pub(crate) chunks: u64,
    pub(crate) quarantined: u64,
}

/// The time at which a quarantined chunk was noticed, as its row of missing chunks says it: it was
/// here, so nobody need wait until it arrives.
pub(crate) const QUARANTINED: u64 = 0;

/// What the node has proven last: that it holds its share of a layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub(crate) struct Proven {
    pub(crate) layout: u64,
    pub(crate) position: u64,
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

/// Shards that were found in the index, in the order of their keys.
pub(crate) struct Listed {
    pub(crate) shards: Vec<(ShardKey, Location)>,
    /// The last one that was looked at; none at the end of the index.
    pub(crate) last: Option<ShardKey>,
}

/// What was found out about chunks.
#[derive(Clone, Copy, Default)]
pub(crate) struct Notes<'a> {
    /// They belong here and are not.
    pub(crate) missing: &'a [ChunkId],
    pub(crate) noticed_unix_ms: u64,
    /// They belong here, and so are not surplus.
    pub(crate) expected: &'a [ChunkId],
    /// They are here, and nothing says that they belong.
    pub(crate) surplus: &'a [ChunkId],
    /// Up to where the feed was followed.
    pub(crate) cursor: Option<u64>,
}

/// A change of the index, all or nothing.
#[derive(Default)]
pub(crate) struct IndexBatch {
    /// Chunks of those that are quarantined are missing from now on.
    pub(crate) shards: Vec<(ShardKey, Location)>,
    /// Chunks of which there is a good copy again: they are not missing any more.
    pub(crate) mended: Vec<ChunkId>,
    /// They are not here any more, nor missing, nor surplus.
    pub(crate) forgotten: Vec<ShardKey>,
    pub(crate) totals: Option<Totals>,
    /// Segment and the offset up to which it is indexed.
    pub(crate) indexed: Vec<(u64, u64)>,
}

impl Index {
    pub(crate) fn open(path: &Path) -> Result<Self, IndexError> {
        let cache = Cache::new_lru_cache(cache_bytes(24 << 20));
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
        options.set_db_write_buffer_size(cache_bytes(24 << 20));
        options.set_max_open_files(128);
        options.set_keep_log_file_num(2);
        options.set_max_total_wal_size(32 << 20);
        let families = [SHARDS, META, MISSING, SURPLUS]
            .map(|name| ColumnFamilyDescriptor::new(name, options.clone()));
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
            rows.put_cf(self.family(MISSING), shard.chunk.as_bytes(), encode(&QUARANTINED));
            if rows.len() >= LOST_PER_BATCH {
                self.db.write(std::mem::take(&mut rows))?;
            }
        }
        // This comes last: until then, the next start does it all again.
        rows.delete_cf(self.family(META), segment_key(segment));
        self.db.write(rows)?;
        // Otherwise, after a power failure, an older index could take what is written to a segment of
        // this number from now on for what was lost.
        self.sync()?;
        Ok(lost)
    }

    /// Nothing is known of the segment any more.
    pub(crate) fn remove_segment(&self, segment: u64) -> Result<(), IndexError> {
        Ok(self.db.delete_cf(self.family(META), segment_key(segment))?)
    }

    /// Bytes of the records in each segment that hold good shards.
    pub(crate) fn live_bytes(&self) -> Result<BTreeMap<u64, u64>, IndexError> {
        let mut live = BTreeMap::new();
        for row in self.db.iterator_cf(self.family(SHARDS), IteratorMode::Start) {
            let (_, value) = row?;
            let location: Location = decode("location", &value).map_err(damaged)?;
            if !location.quarantined {
                let record =
                    (location.end() - location.offset).next_multiple_of(RECORD_ALIGNMENT as u64);
                *live.entry(location.segment).or_insert(0) += record;
            }
        }
        Ok(live)
    }

    /// Of up to `looked_at` shards behind `after`, the good ones that lie in one of `segments`, and the
    /// last one looked at; none at the end.
    pub(crate) fn shards_in(
        &self,
        segments: &BTreeSet<u64>,
        after: Option<&ShardKey>,
        looked_at: usize,
    ) -> Result<Listed, IndexError> {
        let start = after.map(encode).unwrap_or_default();
        let mode = IteratorMode::From(&start, rocksdb::Direction::Forward);
        let (mut shards, mut last) = (Vec::new(), None);
        // The first one is mostly `after` itself.
        for (count, row) in (0..).zip(self.db.iterator_cf(self.family(SHARDS), mode)) {
            if count > looked_at {
                return Ok(Listed { shards, last });
            }
            let (key, value) = row?;
            let key: ShardKey = decode("shard key", &key).map_err(damaged)?;
            let location: Location = decode("location", &value).map_err(damaged)?;
            if Some(&key) != after && !location.quarantined && segments.contains(&location.segment)
            {
                shards.push((key, location));
            }
            last = Some(key);
        }
        Ok(Listed { shards, last: None })
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
            if location.quarantined {
                rows.put_cf(self.family(MISSING), key.chunk.as_bytes(), encode(&QUARANTINED));
            }
        }
        for chunk in &batch.mended {
            rows.delete_cf(self.family(MISSING), chunk.as_bytes());
        }
        for key in &batch.forgotten {
            rows.delete_cf(self.family(SHARDS), encode(key));
            rows.delete_cf(self.family(MISSING), key.chunk.as_bytes());
            rows.delete_cf(self.family(SURPLUS), key.chunk.as_bytes());
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

    /// Up to `limit` shards behind `after`, in the order of their keys.
    pub(crate) fn shards_after(
        &self,
        after: Option<&ShardKey>,
        limit: usize,
    ) -> Result<Vec<ShardKey>, IndexError> {
        let start = after.map(encode).unwrap_or_default();
        let mode = IteratorMode::From(&start, rocksdb::Direction::Forward);
        let mut found = Vec::new();
        for row in self.db.iterator_cf(self.family(SHARDS), mode) {
            let (key, _) = row?;
            let key: ShardKey = decode("shard key", &key).map_err(damaged)?;
            if Some(&key) != after {
                found.push(key);
            }
            if found.len() == limit {
                break;
            }
        }
        Ok(found)
    }

    /// How far the pass has come that was under way last.
    pub(crate) fn pass(&self) -> Result<Option<Pass>, IndexError> {
        self.load(META, PASS)
    }

    pub(crate) fn set_pass(&self, pass: &Pass) -> Result<(), IndexError> {
        Ok(self.db.put_cf(self.family(META), PASS, encode(pass))?)
    }

    /// Notes what was found out about chunks, all or nothing. Of those that are noted as missing
    /// already, the older time stays.
    pub(crate) fn note(&self, notes: &Notes<'_>) -> Result<(), IndexError> {
        let mut rows = WriteBatch::default();
        for chunk in notes.missing {
            if !self.is_missing(chunk)? {
                let noticed = encode(&notes.noticed_unix_ms);
                rows.put_cf(self.family(MISSING), chunk.as_bytes(), noticed);
            }
        }
        for chunk in notes.expected {
            // Mostly there is none, and a row that says so would have to be kept for a while.
            if self.is_surplus(chunk)? {
                rows.delete_cf(self.family(SURPLUS), chunk.as_bytes());
            }
        }
        for chunk in notes.surplus {
            rows.put_cf(self.family(SURPLUS), chunk.as_bytes(), b"");
        }
        if let Some(cursor) = notes.cursor {
            rows.put_cf(self.family(META), CURSOR, encode(&cursor));
        }
        Ok(self.db.write(rows)?)
    }

    pub(crate) fn is_missing(&self, chunk: &ChunkId) -> Result<bool, IndexError> {
        Ok(self.db.get_pinned_cf(self.family(MISSING), chunk.as_bytes())?.is_some())
    }

    pub(crate) fn is_surplus(&self, chunk: &ChunkId) -> Result<bool, IndexError> {
        Ok(self.db.get_pinned_cf(self.family(SURPLUS), chunk.as_bytes())?.is_some())
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

    /// Up to `limit` chunks behind `after` that have a row, quarantined or not.
    pub(crate) fn chunks_after(
        &self,
        after: Option<&ChunkId>,
        limit: usize,
    ) -> Result<Vec<ChunkId>, IndexError> {
        // A chunk is one shard as long as there are only replicas.
        let shards = self.shards_after(after.map(|it| ShardKey::replica(*it)).as_ref(), limit)?;
        Ok(shards.into_iter().map(|shard| shard.chunk).collect())
    }

    /// Up to `limit` surplus chunks behind `after`.
    pub(crate) fn surplus(
        &self,
        after: Option<&ChunkId>,
        limit: usize,
    ) -> Result<Vec<ChunkId>, IndexError> {
        let start = after.map_or(&[][..], |chunk| chunk.as_bytes());
        let mode = IteratorMode::From(start, rocksdb::Direction::Forward);
        let mut found = Vec::new();
        for row in self.db.iterator_cf(self.family(SURPLUS), mode) {
            if found.len() == limit {
                break;
            }
            let (key, _) = row?;
            let chunk = ChunkId::try_from(key.as_ref()).map_err(damaged)?;
            if Some(&chunk) != after {
                found.push(chunk);
            }
        }
        Ok(found)
    }

    /// How many chunks are surplus, counted up to `limit`.
    pub(crate) fn count_surplus(&self, limit: usize) -> u64 {
        let rows = self.db.iterator_cf(self.family(SURPLUS), IteratorMode::Start);
        rows.take(limit).map(|_| 1).sum()
    }

    /// What was proven last; none if nothing was.
    pub(crate) fn proven(&self) -> Result<Option<Proven>, IndexError> {
        self.load(META, PROVEN)
    }

    pub(crate) fn set_proven(&self, proven: &Proven) -> Result<(), IndexError> {
        Ok(self.db.put_cf(self.family(META), PROVEN, encode(proven))?)
    }

    /// How many chunks are missing, counted up to `limit`.
    pub(crate) fn count_missing(&self, limit: usize) -> Missing {
        let mut missing = Missing::default();
        for row in self.db.iterator_cf(self.family(MISSING), IteratorMode::Start).take(limit) {
            missing.chunks += 1;
            let noticed = row.ok().and_then(|(_, noticed)| decode::<u64>("time", &noticed).ok());
            missing.quarantined += u64::from(noticed == Some(QUARANTINED));
        }
        missing
    }

    /// Makes everything written so far durable.
    pub(crate) fn sync(&self) -> Result<(), IndexError> {
        Ok(self.db.flush_wal(true)?)
    }
}

fn segment_key(segment: u64) -> [u8; 9] {
    let mut key = [SEGMENT_PREFIX; 9];
    key[1..].copy_from_slice(&segment.to_be_bytes());
    key
}
