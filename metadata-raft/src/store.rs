//! One RocksDB per member: the Raft log, Raft's own values, and the tables of the state machine, each
//! in a column family, all behind one write-ahead log.
//!
//! Invariants: a vote and a log entry are durable before anybody is told of them; the changes of an
//! entry and the fact that it was applied are one write. Applied changes are not synced: they stand in
//! the same write-ahead log as the entries, so the next synced append makes them durable, and what a
//! crash loses is applied again from the log.
//!
//! A write that fails poisons the store: what is on the disk is then not known, so nothing more is
//! written, the member stops, and the next start recovers. The layout of keys and values is specified
//! in `docs/formats/raft-store.md`.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use coffer_metadata_core::tables::{Changes, Rows};
use coffer_metadata_core::{Table, TableError, Tables};
use coffer_model::encoding::{decode, encode};
use coffer_model::id::{ClusterId, MemberId};
use rocksdb::{
    BlockBasedOptions, Cache, ColumnFamily, ColumnFamilyDescriptor, DB, DBCompressionType,
    DBRecoveryMode, Direction, IteratorMode, Options, ReadOptions, SnapshotWithThreadMode,
    WriteBatch, WriteOptions,
};
use tokio_util::sync::CancellationToken;

/// The version of the layout of column families, keys and values.
const FORMAT_VERSION: u16 = 1;

/// Blocks of all column families share one cache, index and filter blocks included.
const BLOCK_CACHE_BYTES: usize = 64 << 20;
/// What is written and not yet in files, over all column families.
const WRITE_BUFFER_BYTES: usize = 64 << 20;
/// One column family's share of it before it goes to a file.
const MEMTABLE_BYTES: usize = 16 << 20;
/// Memtables grow in steps of this size; the default would cost each of the many small column
/// families a megabyte.
const ARENA_BLOCK_BYTES: usize = 64 << 10;
/// File descriptors RocksDB may hold.
const OPEN_FILES_MAX: i32 = 512;
/// A write-ahead log longer than this makes the column families that hold it back go to files.
const WAL_BYTES_MAX: u64 = 256 << 20;
/// RocksDB's threads for flushing and compaction.
const BACKGROUND_JOBS: i32 = 2;
/// Values from this size on go to blob files, so that compaction does not copy them again and again.
const BLOB_BYTES_MIN: u64 = 2 << 10;
/// RocksDB's own text log.
const INFO_LOG_BYTES_MAX: usize = 4 << 20;
const INFO_LOG_FILES: usize = 2;

/// The column family of log entries: index (big-endian) → entry.
const LOG: &str = "raft.log";
/// The column family of Raft's own values.
const META: &str = "raft.meta";
/// What stands before a table's name in the name of its column family.
const CORE: &str = "core.";

/// Keys of [`META`].
mod key {
    pub(super) const STORE: &[u8] = b"store";
    pub(super) const VOTE: &[u8] = b"vote";
    pub(super) const COMMITTED: &[u8] = b"committed";
    pub(super) const PURGED: &[u8] = b"purged";
    pub(super) const APPLIED: &[u8] = b"applied";
    pub(super) const MEMBERSHIP: &[u8] = b"membership";
}

/// A value of Raft's own.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Meta {
    Vote,
    Committed,
    Purged,
    Applied,
    Membership,
}

impl Meta {
    const fn key(self) -> &'static [u8] {
        match self {
            Self::Vote => key::VOTE,
            Self::Committed => key::COMMITTED,
            Self::Purged => key::PURGED,
            Self::Applied => key::APPLIED,
            Self::Membership => key::MEMBERSHIP,
        }
    }
}

/// Why the store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// RocksDB cannot open its files.
    #[error("cannot open the metadata store {}", path.display())]
    Open {
        /// The directory.
        path: PathBuf,
        /// What RocksDB said.
        #[source]
        source: rocksdb::Error,
    },
    /// The store was made by another member or for another cluster.
    #[error(
        "the metadata store {} belongs to member {found_member} of cluster {found_cluster}, not to \
         member {member} of {cluster}; mount the right volume",
        path.display()
    )]
    Foreign {
        /// The directory.
        path: PathBuf,
        /// The cluster this process serves.
        cluster: ClusterId,
        /// The member this process is.
        member: MemberId,
        /// The cluster the store was made for.
        found_cluster: ClusterId,
        /// The member that made it.
        found_member: MemberId,
    },
    /// The store was written by a later version of the program.
    #[error(
        "the metadata store {} has format version {found}, this program knows only version \
         {FORMAT_VERSION}; use a newer program",
        path.display()
    )]
    UnknownVersion {
        /// The directory.
        path: PathBuf,
        /// The version it says it has.
        found: u16,
    },
    /// Reading failed, or what was read is not what was written.
    #[error("cannot read {what} from the metadata store: {reason}")]
    Read {
        /// What was being read.
        what: &'static str,
        /// What went wrong.
        reason: String,
    },
    /// A write or a sync failed, now or before; what is on the disk is not known.
    #[error("the metadata store is poisoned: {0}")]
    Poisoned(String),
}

/// Remembers that the store can no longer be trusted, and tells the member to stop.
#[derive(Debug, Default)]
pub(crate) struct Poison {
    reason: OnceLock<String>,
    struck: CancellationToken,
}

impl Poison {
    /// Notes the first failure; later ones change nothing.
    pub(crate) fn strike(&self, reason: String) {
        if self.reason.set(reason).is_ok() {
            self.struck.cancel();
        }
    }

    /// Why the store is poisoned, if it is.
    pub(crate) fn reason(&self) -> Option<&str> {
        self.reason.get().map(String::as_str)
    }

    /// Completes once the store is poisoned.
    pub(crate) async fn struck(&self) {
        self.struck.cancelled().await;
    }
}

/// The member's database.
pub(crate) struct Store {
    db: DB,
    /// The name of each table's column family, by the table's number.
    columns: Vec<String>,
    poison: Poison,
    /// Makes the next writes fail, for tests: before anything is written, or after.
    #[cfg(test)]
    pub(crate) fault: std::sync::Mutex<Option<WriteFault>>,
}

/// How a write fails in a test.
#[cfg(test)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum WriteFault {
    /// Nothing was written.
    NotDone,
    /// Everything was written, and reported as failed.
    DoneButReported,
}

impl Store {
    /// Whether there is a store in `path`, made or half made.
    pub(crate) fn exists(path: &Path) -> bool {
        path.join("CURRENT").exists()
    }

    /// Opens the store in `path`, or makes it for this member of this cluster.
    pub(crate) fn open(
        path: &Path,
        cluster: &ClusterId,
        member: MemberId,
    ) -> Result<Arc<Self>, StoreError> {
        let cache = Cache::new_lru_cache(BLOCK_CACHE_BYTES);
        let columns: Vec<String> =
            Table::ALL.iter().map(|table| format!("{CORE}{}", table.name())).collect();
        let mut families = vec![
            ColumnFamilyDescriptor::new(LOG, column_options(&cache, true)),
            ColumnFamilyDescriptor::new(META, column_options(&cache, false)),
        ];
        for (table, name) in Table::ALL.into_iter().zip(&columns) {
            let large = matches!(table, Table::Log | Table::LogOps | Table::Pages);
            families.push(ColumnFamilyDescriptor::new(name, column_options(&cache, large)));
        }
        let db = DB::open_cf_descriptors(&database_options(), path, families)
            .map_err(|source| StoreError::Open { path: path.to_owned(), source })?;
        let store = Self {
            db,
            columns,
            poison: Poison::default(),
            #[cfg(test)]
            fault: std::sync::Mutex::new(None),
        };
        store.claim(path, cluster, member)?;
        Ok(Arc::new(store))
    }

    /// Notes at the first start whose store this is, and checks it at every later one.
    fn claim(&self, path: &Path, cluster: &ClusterId, member: MemberId) -> Result<(), StoreError> {
        let meta = self.family(META);
        let Some(bytes) = self.read("the owner", meta, key::STORE)? else {
            let mut batch = WriteBatch::default();
            batch.put_cf(meta, key::STORE, encode(&(FORMAT_VERSION, *cluster, member)));
            return self.write(batch, Sync::Now);
        };
        let version = bytes.first_chunk::<2>().map_or(0, |version| u16::from_le_bytes(*version));
        if version != FORMAT_VERSION {
            return Err(StoreError::UnknownVersion { path: path.to_owned(), found: version });
        }
        let (_, found_cluster, found_member): (u16, ClusterId, MemberId) =
            decode("owner", &bytes).map_err(|error| damaged("the owner", error))?;
        if (found_cluster, found_member) != (*cluster, member) {
            return Err(StoreError::Foreign {
                path: path.to_owned(),
                cluster: *cluster,
                member,
                found_cluster,
                found_member,
            });
        }
        Ok(())
    }

    pub(crate) const fn poison(&self) -> &Poison {
        &self.poison
    }

    /// One of Raft's own values.
    pub(crate) fn meta<T>(
        &self,
        meta: Meta,
        read: impl FnOnce(&[u8]) -> Result<T, coffer_model::encoding::Malformed>,
    ) -> Result<Option<T>, StoreError> {
        let Some(bytes) = self.read("a Raft value", self.family(META), meta.key())? else {
            return Ok(None);
        };
        read(&bytes).map(Some).map_err(|error| damaged("a Raft value", error))
    }

    /// Adds one of Raft's own values to a batch.
    pub(crate) fn put_meta(&self, batch: &mut WriteBatch, meta: Meta, value: &[u8]) {
        batch.put_cf(self.family(META), meta.key(), value);
    }

    /// Adds a log entry to a batch.
    pub(crate) fn put_entry(&self, batch: &mut WriteBatch, index: u64, entry: &[u8]) {
        batch.put_cf(self.family(LOG), index.to_be_bytes(), entry);
    }

    /// Adds the removal of the log entries from..to to a batch.
    pub(crate) fn remove_entries(&self, batch: &mut WriteBatch, from: u64, to: u64) {
        batch.delete_range_cf(self.family(LOG), from.to_be_bytes(), to.to_be_bytes());
    }

    /// Adds the changes of the state machine to a batch.
    pub(crate) fn put_changes(&self, batch: &mut WriteBatch, changes: Changes) {
        for ((table, key), value) in changes {
            match value {
                Some(value) => batch.put_cf(self.column(table), key, value),
                None => batch.delete_cf(self.column(table), key),
            }
        }
    }

    /// The entries from..to that are there, in order, until `bytes_max` is reached; at least one, if
    /// there is one.
    pub(crate) fn entries(
        &self,
        from: u64,
        to: u64,
        bytes_max: usize,
    ) -> Result<Vec<Vec<u8>>, StoreError> {
        let mut options = ReadOptions::default();
        options.set_iterate_upper_bound(to.to_be_bytes());
        let start = from.to_be_bytes();
        let mode = IteratorMode::From(&start, Direction::Forward);
        let (mut entries, mut bytes) = (Vec::new(), 0usize);
        if from >= to {
            return Ok(entries);
        }
        for row in self.db.iterator_cf_opt(self.family(LOG), options, mode) {
            let (_, value) = row.map_err(|error| damaged("the Raft log", error))?;
            bytes = bytes.saturating_add(value.len());
            if bytes > bytes_max && !entries.is_empty() {
                break;
            }
            entries.push(value.into_vec());
        }
        Ok(entries)
    }

    /// The entry with the highest index.
    pub(crate) fn last_entry(&self) -> Result<Option<Vec<u8>>, StoreError> {
        let last = self.db.iterator_cf(self.family(LOG), IteratorMode::End).next();
        last.transpose()
            .map(|row| row.map(|(_, value)| value.into_vec()))
            .map_err(|error| damaged("the Raft log", error))
    }

    /// Writes a batch, all or nothing. With [`Sync::Now`] it and everything written before it is
    /// durable afterwards. After a failure nothing more is written.
    pub(crate) fn write(&self, batch: WriteBatch, sync: Sync) -> Result<(), StoreError> {
        self.refuse_if_poisoned()?;
        let mut options = WriteOptions::default();
        options.set_sync(sync == Sync::Now);
        self.guarded(|| self.db.write_opt(batch, &options).map_err(|error| error.to_string()))
    }

    /// Makes everything written so far durable.
    pub(crate) fn sync(&self) -> Result<(), StoreError> {
        self.refuse_if_poisoned()?;
        self.guarded(|| self.db.flush_wal(true).map_err(|error| error.to_string()))
    }

    fn refuse_if_poisoned(&self) -> Result<(), StoreError> {
        match self.poison.reason() {
            Some(reason) => Err(StoreError::Poisoned(reason.to_owned())),
            None => Ok(()),
        }
    }

    /// Runs a write and poisons the store if it fails.
    fn guarded(&self, write: impl FnOnce() -> Result<(), String>) -> Result<(), StoreError> {
        #[cfg(test)]
        let written = match *self.fault.lock().unwrap_or_else(std::sync::PoisonError::into_inner) {
            Some(WriteFault::NotDone) => Err("no space left on the device".to_owned()),
            Some(WriteFault::DoneButReported) => {
                write().and_then(|()| Err("input/output error".to_owned()))
            }
            None => write(),
        };
        #[cfg(not(test))]
        let written = write();
        written.map_err(|reason| {
            self.poison.strike(reason.clone());
            StoreError::Poisoned(reason)
        })
    }

    fn read(
        &self,
        what: &'static str,
        family: &ColumnFamily,
        key: &[u8],
    ) -> Result<Option<Vec<u8>>, StoreError> {
        self.db.get_cf(family, key).map_err(|error| damaged(what, error))
    }

    fn family(&self, name: &str) -> &ColumnFamily {
        self.db.cf_handle(name).expect("the database was opened with all its column families")
    }

    fn column(&self, table: Table) -> &ColumnFamily {
        self.family(&self.columns[usize::from(table as u8)])
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("path", &self.db.path()).finish_non_exhaustive()
    }
}

/// When a write is durable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Sync {
    /// When it returns.
    Now,
    /// With the next write that is synced.
    Later,
}

fn damaged(what: &'static str, error: impl fmt::Display) -> StoreError {
    StoreError::Read { what, reason: error.to_string() }
}

fn table_error(error: impl fmt::Display) -> TableError {
    TableError(error.to_string())
}

/// The state as it is now. Only the state machine, which alone changes it, may look at it this way;
/// everybody else takes a [`View`].
impl Tables for Store {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, TableError> {
        self.db.get_cf(self.column(table), key).map_err(table_error)
    }

    fn scan(&self, table: Table, from: &[u8], to: &[u8], limit: usize) -> Result<Rows, TableError> {
        let column = self.column(table);
        scan(|options, mode| self.db.iterator_cf_opt(column, options, mode), from, to, limit)
    }
}

fn scan<'a, D: rocksdb::DBAccess + 'a>(
    rows: impl FnOnce(ReadOptions, IteratorMode<'_>) -> rocksdb::DBIteratorWithThreadMode<'a, D>,
    from: &[u8],
    to: &[u8],
    limit: usize,
) -> Result<Rows, TableError> {
    if from >= to {
        return Ok(Vec::new());
    }
    let mut options = ReadOptions::default();
    options.set_iterate_upper_bound(to);
    rows(options, IteratorMode::From(from, Direction::Forward))
        .take(limit)
        .map(|row| row.map(|(key, value)| (key.into_vec(), value.into_vec())).map_err(table_error))
        .collect()
}

type Pinned<'a> = SnapshotWithThreadMode<'a, DB>;

self_cell::self_cell!(
    struct PinnedStore {
        owner: Arc<Store>,
        #[covariant]
        dependent: Pinned,
    }
);

/// The state as it was at one moment. It keeps the store open for as long as it lives.
pub(crate) struct View(PinnedStore);

impl View {
    /// The state as it is now.
    pub(crate) fn of(store: &Arc<Store>) -> Self {
        Self(PinnedStore::new(Arc::clone(store), |store| store.db.snapshot()))
    }
}

impl fmt::Debug for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("View").finish_non_exhaustive()
    }
}

impl Tables for View {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, TableError> {
        let column = self.0.borrow_owner().column(table);
        self.0.borrow_dependent().get_cf(column, key).map_err(table_error)
    }

    fn scan(&self, table: Table, from: &[u8], to: &[u8], limit: usize) -> Result<Rows, TableError> {
        let column = self.0.borrow_owner().column(table);
        let snapshot = self.0.borrow_dependent();
        scan(|options, mode| snapshot.iterator_cf_opt(column, options, mode), from, to, limit)
    }
}

fn database_options() -> Options {
    let mut options = Options::default();
    options.create_if_missing(true);
    options.create_missing_column_families(true);
    options.set_db_write_buffer_size(WRITE_BUFFER_BYTES);
    options.set_max_open_files(OPEN_FILES_MAX);
    options.set_max_total_wal_size(WAL_BYTES_MAX);
    options.set_max_background_jobs(BACKGROUND_JOBS);
    options.set_paranoid_checks(true);
    // A torn record at the end was never acknowledged; one before the end was, and must not be
    // dropped in silence with all that follows it.
    options.set_wal_recovery_mode(DBRecoveryMode::TolerateCorruptedTailRecords);
    options.set_max_log_file_size(INFO_LOG_BYTES_MAX);
    options.set_keep_log_file_num(INFO_LOG_FILES);
    options.set_stats_dump_period_sec(0);
    options
}

fn column_options(cache: &Cache, large_values: bool) -> Options {
    let mut blocks = BlockBasedOptions::default();
    blocks.set_block_cache(cache);
    blocks.set_cache_index_and_filter_blocks(true);
    blocks.set_pin_l0_filter_and_index_blocks_in_cache(true);
    blocks.set_bloom_filter(10.0, false);
    let mut options = Options::default();
    options.set_block_based_table_factory(&blocks);
    options.set_compression_type(DBCompressionType::Lz4);
    options.set_write_buffer_size(MEMTABLE_BYTES);
    options.set_arena_block_size(ARENA_BLOCK_BYTES);
    if large_values {
        options.set_enable_blob_files(true);
        options.set_min_blob_size(BLOB_BYTES_MIN);
        options.set_blob_compression_type(DBCompressionType::Lz4);
        options.set_enable_blob_gc(true);
    }
    options
}

#[cfg(test)]
mod tests;
