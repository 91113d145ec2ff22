//! One RocksDB per member: the Raft log, Raft's own values, and the tables of the state machine, each
//! in a column family, all behind one write-ahead log.
//!
//! Invariants: a vote and a log entry are durable before anybody is told of them; the changes of an
//! entry and the fact that it was applied are one write. Applied changes are not synced: they stand in
//! the same write-ahead log as the entries, so the next synced append makes them durable, and what a
//! crash loses is applied again from the log.
//!
//! The tables have generations: a state that is received as a snapshot is written into the column
//! families of the next one, which nobody reads, and one synced write makes it the one in force and
//! removes the entries it stands for. A crash before that write leaves the old state, one after it the
//! new; the next start removes the other generation.
//!
//! A write that fails poisons the store: what is on the disk is then not known, so nothing more is
//! written, the member stops, and the next start recovers. The layout of keys and values is specified
//! in `docs/formats/raft-store.md`.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use coffer_metadata_core::state::{CORE_VERSION_MAX, meta as core_meta};
use coffer_metadata_core::tables::{Changes, Rows};
use coffer_metadata_core::{Table, TableError, Tables};
use coffer_model::encoding::{Malformed, decode, encode};
use coffer_model::id::{ClusterId, MemberId};
use coffer_service::memory::cache_bytes;
use rocksdb::{
    BlockBasedOptions, BoundColumnFamily, Cache, ColumnFamilyDescriptor, DBCompressionType,
    DBRecoveryMode, DBWithThreadMode, Direction, FlushOptions, IteratorMode, MultiThreaded,
    Options, ReadOptions, SnapshotWithThreadMode, WriteBatch, WriteOptions,
};
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::codec::{
    decode_generation, decode_log_id, encode_generation, encode_log_id, encode_membership,
};
use crate::raft::{LogId, StoredMembership};

/// The version of the layout of column families, keys and values.
const FORMAT_VERSION: u16 = 2;
/// The oldest version that is read. It knew no generations and removed no entries, so all it takes to
/// go on with such a store is to say that a newer program now writes it.
const FORMAT_VERSION_MIN: u16 = 1;

/// Blocks of all column families share one cache, index and filter blocks included. Less where memory is
/// short, as is the write buffer.
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
/// How long removing entries waits for them to be applied. Raft says what to remove right after it
/// handed a snapshot to the state machine, whose part is one write; who takes longer is stuck.
const APPLIED_TIMEOUT: Duration = Duration::from_secs(30);
/// RocksDB's own text log.
const INFO_LOG_BYTES_MAX: usize = 4 << 20;
const INFO_LOG_FILES: usize = 2;

/// The column family of log entries: index (big-endian) → entry.
const LOG: &str = "raft.log";
/// The column family of Raft's own values.
const META: &str = "raft.meta";
/// What stands before a table's name in the name of its column family.
const CORE: &str = "core.";

/// What RocksDB knows of the size of the log: of its own files, and of those of large values.
const LOG_SIZE_PROPERTIES: [&str; 2] =
    ["rocksdb.estimate-live-data-size", "rocksdb.live-blob-file-size"];

/// Keys of [`META`].
mod key {
    pub(super) const STORE: &[u8] = b"store";
    pub(super) const VOTE: &[u8] = b"vote";
    pub(super) const COMMITTED: &[u8] = b"committed";
    pub(super) const PURGED: &[u8] = b"purged";
    pub(super) const APPLIED: &[u8] = b"applied";
    pub(super) const MEMBERSHIP: &[u8] = b"membership";
    pub(super) const GENERATION: &[u8] = b"generation";
}

/// A value of Raft's own.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Meta {
    Vote,
    Committed,
    Purged,
    Applied,
    Membership,
    Generation,
}

impl Meta {
    const fn key(self) -> &'static [u8] {
        match self {
            Self::Vote => key::VOTE,
            Self::Committed => key::COMMITTED,
            Self::Purged => key::PURGED,
            Self::Applied => key::APPLIED,
            Self::Membership => key::MEMBERSHIP,
            Self::Generation => key::GENERATION,
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
        "the metadata store {} has format version {found}, this program knows only versions \
         {FORMAT_VERSION_MIN} to {FORMAT_VERSION}; use a newer program",
        path.display()
    )]
    UnknownVersion {
        /// The directory.
        path: PathBuf,
        /// The version it says it has.
        found: u16,
    },
    /// The state is of a later version of the state machine than this program has.
    #[error(
        "the state of this cluster is of version {found} of the state machine, and this program knows \
         versions up to {CORE_VERSION_MAX}: start the program that ran here before, or a newer one; \
         nothing was changed"
    )]
    LaterState {
        /// The version in force.
        found: u32,
    },
    /// Reading failed, or what was read is not what was written.
    #[error("cannot read {what} from the metadata store: {reason}")]
    Read {
        /// What was being read.
        what: &'static str,
        /// What went wrong.
        reason: String,
    },
    /// Entries were to be removed that the state does not reflect yet.
    #[error("the Raft log cannot be removed up to entry {index}: it is not applied up to there")]
    NotApplied {
        /// The last entry to be removed.
        index: u64,
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

/// Column families come and go while the store is open.
type Db = DBWithThreadMode<MultiThreaded>;
type Column<'a> = Arc<BoundColumnFamily<'a>>;

/// The member's database.
pub(crate) struct Store {
    db: Db,
    cache: Cache,
    /// The tables in force. Whoever looks up a column family holds the lock, so that it is one of a
    /// generation that is not dropped meanwhile.
    columns: RwLock<Columns>,
    /// The index up to where the tables reflect the log.
    applied: watch::Sender<Option<u64>>,
    poison: Poison,
    /// Makes the next writes fail, for tests: before anything is written, or after.
    #[cfg(test)]
    pub(crate) fault: std::sync::Mutex<Option<WriteFault>>,
}

/// The column families of one generation of the tables.
#[derive(Debug)]
struct Columns {
    generation: u64,
    /// By the table's number.
    names: Vec<String>,
}

impl Columns {
    fn of(generation: u64) -> Self {
        let prefix = match generation {
            0 => CORE.to_owned(),
            later => format!("core@{later}."),
        };
        let names = Table::ALL.iter().map(|table| format!("{prefix}{}", table.name())).collect();
        Self { generation, names }
    }

    fn name(&self, table: Table) -> &str {
        &self.names[usize::from(table as u8)]
    }
}

/// Whether a column family is one of tables, of whatever generation.
fn is_of_tables(name: &str) -> bool {
    name.starts_with(CORE) || name.starts_with("core@")
}

/// How much of the Raft log there is, about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct LogExtent {
    pub(crate) first: u64,
    pub(crate) last: u64,
    /// As it stands on the disk.
    pub(crate) bytes: u64,
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
        let opening = |source| StoreError::Open { path: path.to_owned(), source };
        let (options, cache) =
            (database_options(), Cache::new_lru_cache(cache_bytes(BLOCK_CACHE_BYTES)));
        // RocksDB wants to be told of all column families there are; which generation is in force
        // stands in one of them.
        let found = match Self::exists(path) {
            true => Db::list_cf(&options, path).map_err(opening)?,
            false => Vec::new(),
        };
        let more = found.iter().map(String::as_str);
        let more = more.filter(|name| ![LOG, META, "default"].contains(name));
        let families = [LOG, META].into_iter().chain(more).map(|name| {
            ColumnFamilyDescriptor::new(name, column_options(&cache, has_large_values(name)))
        });
        let db = Db::open_cf_descriptors(&options, path, families).map_err(opening)?;
        let store = Self {
            db,
            cache,
            columns: RwLock::new(Columns::of(0)),
            applied: watch::Sender::new(None),
            poison: Poison::default(),
            #[cfg(test)]
            fault: std::sync::Mutex::new(None),
        };
        store.claim(path, cluster, member)?;
        let generation = store.meta(Meta::Generation, decode_generation)?.unwrap_or(0);
        let columns = Columns::of(generation);
        store.check_core_version(&columns)?;
        // What is not in force was being received when the process ended, or was just replaced.
        let others = found.iter().filter(|name| is_of_tables(name));
        store.drop_columns(others.filter(|name| !columns.names.contains(name)))?;
        store.create_columns(&columns)?;
        *store.columns.write().unwrap_or_else(PoisonError::into_inner) = columns;
        let applied = store.meta(Meta::Applied, decode_log_id)?.flatten();
        store.applied.send_replace(applied.map(|id| id.index));
        Ok(Arc::new(store))
    }

    /// Notes at the first start whose store this is, and checks it at every later one.
    fn claim(&self, path: &Path, cluster: &ClusterId, member: MemberId) -> Result<(), StoreError> {
        let write = || {
            let mut batch = WriteBatch::default();
            let owner = encode(&(FORMAT_VERSION, *cluster, member));
            batch.put_cf(&self.family(META), key::STORE, owner);
            self.write(batch, Sync::Now)
        };
        let Some(bytes) = self.read("the owner", key::STORE)? else { return write() };
        let version = bytes.first_chunk::<2>().map_or(0, |version| u16::from_le_bytes(*version));
        if !(FORMAT_VERSION_MIN..=FORMAT_VERSION).contains(&version) {
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
        if version < FORMAT_VERSION { write() } else { Ok(()) }
    }

    /// A program that does not have the version of the state machine in force must not touch the state.
    fn check_core_version(&self, columns: &Columns) -> Result<(), StoreError> {
        let what = "the version of the state machine";
        let Some(column) = self.db.cf_handle(columns.name(Table::Meta)) else { return Ok(()) };
        let bytes = self.db.get_cf(&column, core_meta::CORE_VERSION);
        let Some(bytes) = bytes.map_err(|error| damaged(what, error))? else { return Ok(()) };
        match decode(what, &bytes).map_err(|error| damaged(what, error))? {
            found if found > CORE_VERSION_MAX => Err(StoreError::LaterState { found }),
            _ => Ok(()),
        }
    }

    pub(crate) const fn poison(&self) -> &Poison {
        &self.poison
    }

    /// One of Raft's own values.
    pub(crate) fn meta<T>(
        &self,
        meta: Meta,
        read: impl FnOnce(&[u8]) -> Result<T, Malformed>,
    ) -> Result<Option<T>, StoreError> {
        let Some(bytes) = self.read("a Raft value", meta.key())? else { return Ok(None) };
        read(&bytes).map(Some).map_err(|error| damaged("a Raft value", error))
    }

    /// Adds one of Raft's own values to a batch.
    pub(crate) fn put_meta(&self, batch: &mut WriteBatch, meta: Meta, value: &[u8]) {
        batch.put_cf(&self.family(META), meta.key(), value);
    }

    /// Adds a log entry to a batch.
    pub(crate) fn put_entry(&self, batch: &mut WriteBatch, index: u64, entry: &[u8]) {
        batch.put_cf(&self.family(LOG), index.to_be_bytes(), entry);
    }

    /// Adds the removal of the log entries from..to to a batch.
    pub(crate) fn remove_entries(&self, batch: &mut WriteBatch, from: u64, to: u64) {
        batch.delete_range_cf(&self.family(LOG), from.to_be_bytes(), to.to_be_bytes());
    }

    /// Adds the changes of the state machine to a batch.
    pub(crate) fn put_changes(&self, batch: &mut WriteBatch, changes: Changes) {
        for ((table, key), value) in changes {
            match value {
                Some(value) => batch.put_cf(&self.column(table), key, value),
                None => batch.delete_cf(&self.column(table), key),
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
        for row in self.db.iterator_cf_opt(&self.family(LOG), options, mode) {
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
        let last = self.db.iterator_cf(&self.family(LOG), IteratorMode::End).next();
        last.transpose()
            .map(|row| row.map(|(_, value)| value.into_vec()))
            .map_err(|error| damaged("the Raft log", error))
    }

    /// How much of the log there is; none if there is nothing.
    pub(crate) fn log_extent(&self) -> Result<Option<LogExtent>, StoreError> {
        let log = self.family(LOG);
        let edge = |mode| -> Result<Option<u64>, StoreError> {
            let row = self.db.iterator_cf(&log, mode).next().transpose();
            let Some((key, _)) = row.map_err(|error| damaged("the Raft log", error))? else {
                return Ok(None);
            };
            let key = <[u8; 8]>::try_from(&key[..]).map_err(|error| damaged("the Raft log", error));
            key.map(|key| Some(u64::from_be_bytes(key)))
        };
        let (Some(first), Some(last)) = (edge(IteratorMode::Start)?, edge(IteratorMode::End)?)
        else {
            return Ok(None);
        };
        let mut bytes = 0u64;
        for property in LOG_SIZE_PROPERTIES {
            let value = self.db.property_int_value_cf(&log, property);
            let value = value.map_err(|error| damaged("the size of the Raft log", error))?;
            bytes = bytes.saturating_add(value.unwrap_or(0));
        }
        Ok(Some(LogExtent { first, last, bytes }))
    }

    /// Tells those who wait that the tables reflect the log up to here.
    pub(crate) fn note_applied(&self, index: u64) {
        self.applied.send_replace(Some(index));
    }

    /// Waits until the tables reflect the log up to here; not for ever.
    pub(crate) async fn applied_upto(&self, index: u64) -> Result<(), StoreError> {
        let mut applied = self.applied.subscribe();
        let reached = timeout(APPLIED_TIMEOUT, applied.wait_for(|at| *at >= Some(index)));
        let reached = tokio::select! {
            () = self.poison.struck() => return self.refuse_if_poisoned(),
            reached = reached => matches!(reached, Ok(Ok(_))),
        };
        if reached { Ok(()) } else { Err(StoreError::NotApplied { index }) }
    }

    /// Makes room for a state that is going to be received. Only one may be received at a time: what
    /// was left of another is removed.
    pub(crate) fn begin_staging(self: &Arc<Self>) -> Result<Staging, StoreError> {
        self.drop_other_generations()?;
        let next = Columns::of(self.generation().wrapping_add(1));
        self.create_columns(&next)?;
        Ok(Staging { store: Arc::clone(self), columns: next })
    }

    /// Removes all tables but those in force: those being received, and those replaced last.
    pub(crate) fn drop_other_generations(&self) -> Result<(), StoreError> {
        // Held, so that what is dropped does not come into force meanwhile.
        let columns = self.columns.read().unwrap_or_else(PoisonError::into_inner);
        let former = Columns::of(columns.generation.wrapping_sub(1));
        let next = Columns::of(columns.generation.wrapping_add(1));
        self.drop_columns(former.names.iter().chain(&next.names))
    }

    fn drop_columns<'a>(&self, names: impl Iterator<Item = &'a String>) -> Result<(), StoreError> {
        self.refuse_if_poisoned()?;
        for name in names.filter(|name| self.db.cf_handle(name).is_some()) {
            self.guarded(|| self.db.drop_cf(name).map_err(|error| error.to_string()))?;
        }
        Ok(())
    }

    fn create_columns(&self, columns: &Columns) -> Result<(), StoreError> {
        self.refuse_if_poisoned()?;
        for name in &columns.names {
            if self.db.cf_handle(name).is_none() {
                let options = column_options(&self.cache, has_large_values(name));
                let create =
                    || self.db.create_cf(name, &options).map_err(|error| error.to_string());
                self.guarded(create)?;
            }
        }
        Ok(())
    }

    fn generation(&self) -> u64 {
        self.columns.read().unwrap_or_else(PoisonError::into_inner).generation
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

    fn read(&self, what: &'static str, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.db.get_cf(&self.family(META), key).map_err(|error| damaged(what, error))
    }

    fn family(&self, name: &str) -> Column<'_> {
        self.db.cf_handle(name).expect("the database was opened with all its column families")
    }

    fn column(&self, table: Table) -> Column<'_> {
        let columns = self.columns.read().unwrap_or_else(PoisonError::into_inner);
        self.family(columns.name(table))
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("path", &self.db.path()).finish_non_exhaustive()
    }
}

/// A state that is being received: tables of the next generation, which nobody reads yet.
#[derive(Debug)]
pub(crate) struct Staging {
    store: Arc<Store>,
    columns: Columns,
}

impl Staging {
    /// Writes rows. They need no write-ahead log: [`Staging::flush`] makes them durable, and what a
    /// crash leaves before it is thrown away.
    pub(crate) fn put<'a>(
        &self,
        rows: impl Iterator<Item = (Table, &'a [u8], &'a [u8])>,
    ) -> Result<(), StoreError> {
        self.store.refuse_if_poisoned()?;
        let mut batch = WriteBatch::default();
        for (table, key, value) in rows {
            batch.put_cf(&self.store.family(self.columns.name(table)), key, value);
        }
        let db = &self.store.db;
        self.store.guarded(|| db.write_without_wal(batch).map_err(|error| error.to_string()))
    }

    /// Makes the rows durable.
    pub(crate) fn flush(&self) -> Result<(), StoreError> {
        self.store.refuse_if_poisoned()?;
        let families: Vec<Column<'_>> =
            self.columns.names.iter().map(|name| self.store.family(name)).collect();
        let families: Vec<&Column<'_>> = families.iter().collect();
        let (db, options) = (&self.store.db, FlushOptions::default());
        let flush = || db.flush_cfs_opt(&families, &options).map_err(|error| error.to_string());
        self.store.guarded(flush)
    }

    /// Makes the received state, which has to be flushed, the member's own, and removes the entries it
    /// stands for. The tables that were in force are still there for views that were taken of them;
    /// [`Store::drop_other_generations`] removes them.
    pub(crate) fn swap_in(
        self,
        last: &LogId,
        membership: &StoredMembership,
    ) -> Result<(), StoreError> {
        let Self { store, columns: next } = self;
        let mut batch = WriteBatch::default();
        store.put_meta(&mut batch, Meta::Generation, &encode_generation(next.generation));
        store.put_meta(&mut batch, Meta::Applied, &encode_log_id(Some(last)));
        store.put_meta(&mut batch, Meta::Membership, &encode_membership(membership));
        store.put_meta(&mut batch, Meta::Purged, &encode_log_id(Some(last)));
        store.remove_entries(&mut batch, 0, last.index.saturating_add(1));
        {
            let mut columns = store.columns.write().unwrap_or_else(PoisonError::into_inner);
            if next.names.iter().any(|name| store.db.cf_handle(name).is_none()) {
                let reason = "it was removed before it came into force".to_owned();
                return Err(StoreError::Read { what: "the received state", reason });
            }
            // The commit point: a crash before it leaves the old state, one after it the new.
            store.write(batch, Sync::Now)?;
            *columns = next;
        }
        store.note_applied(last.index);
        Ok(())
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
        self.db.get_cf(&self.column(table), key).map_err(table_error)
    }

    fn scan(&self, table: Table, from: &[u8], to: &[u8], limit: usize) -> Result<Rows, TableError> {
        let column = self.column(table);
        scan(|options, mode| self.db.iterator_cf_opt(&column, options, mode), from, to, limit)
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

/// One moment, with the column families of the tables that were in force at it: they live for as long
/// as somebody holds them.
struct Pinned<'a> {
    snapshot: SnapshotWithThreadMode<'a, Db>,
    columns: Vec<Column<'a>>,
    meta: Column<'a>,
}

impl<'a> Pinned<'a> {
    fn of(store: &'a Store) -> Self {
        let columns = store.columns.read().unwrap_or_else(PoisonError::into_inner);
        Self {
            // Within the lock, so that moment and generation go together.
            snapshot: store.db.snapshot(),
            columns: columns.names.iter().map(|name| store.family(name)).collect(),
            meta: store.family(META),
        }
    }

    fn column(&self, table: Table) -> &Column<'a> {
        &self.columns[usize::from(table as u8)]
    }
}

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
        Self(PinnedStore::new(Arc::clone(store), |store| Pinned::of(store)))
    }

    /// One of Raft's own values at that moment.
    pub(crate) fn meta<T>(
        &self,
        meta: Meta,
        read: impl FnOnce(&[u8]) -> Result<T, Malformed>,
    ) -> Result<Option<T>, StoreError> {
        let what = "a Raft value";
        let pinned = self.0.borrow_dependent();
        let bytes = pinned.snapshot.get_cf(&pinned.meta, meta.key());
        let Some(bytes) = bytes.map_err(|error| damaged(what, error))? else { return Ok(None) };
        read(&bytes).map(Some).map_err(|error| damaged(what, error))
    }

    /// The rows of a table from `from` on, in order, until `bytes_max` is reached; at least one, if
    /// there is one. They are read once, to be sent away, so they push nothing out of the cache.
    pub(crate) fn rows(
        &self,
        table: Table,
        from: &[u8],
        bytes_max: usize,
    ) -> Result<Rows, StoreError> {
        let pinned = self.0.borrow_dependent();
        let mut options = ReadOptions::default();
        options.fill_cache(false);
        let mode = IteratorMode::From(from, Direction::Forward);
        let (mut rows, mut bytes) = (Rows::new(), 0usize);
        for row in pinned.snapshot.iterator_cf_opt(pinned.column(table), options, mode) {
            let (key, value) = row.map_err(|error| damaged("a table", error))?;
            bytes = bytes.saturating_add(key.len()).saturating_add(value.len());
            rows.push((key.into_vec(), value.into_vec()));
            if bytes >= bytes_max {
                break;
            }
        }
        Ok(rows)
    }
}

impl fmt::Debug for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("View").finish_non_exhaustive()
    }
}

impl Tables for View {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, TableError> {
        let pinned = self.0.borrow_dependent();
        pinned.snapshot.get_cf(pinned.column(table), key).map_err(table_error)
    }

    fn scan(&self, table: Table, from: &[u8], to: &[u8], limit: usize) -> Result<Rows, TableError> {
        let pinned = self.0.borrow_dependent();
        let column = pinned.column(table);
        scan(
            |options, mode| pinned.snapshot.iterator_cf_opt(column, options, mode),
            from,
            to,
            limit,
        )
    }
}

fn database_options() -> Options {
    let mut options = Options::default();
    options.create_if_missing(true);
    options.create_missing_column_families(true);
    options.set_db_write_buffer_size(cache_bytes(WRITE_BUFFER_BYTES));
    options.set_max_open_files(OPEN_FILES_MAX);
    options.set_max_total_wal_size(WAL_BYTES_MAX);
    options.set_max_background_jobs(BACKGROUND_JOBS);
    options.set_paranoid_checks(true);
    // What is not synced stays out of the files, so that a simulated crash loses it.
    #[cfg(test)]
    options.set_manual_wal_flush(crate::member::simulation::is_on());
    // A torn record at the end was never acknowledged; one before the end was, and must not be
    // dropped in silence with all that follows it.
    options.set_wal_recovery_mode(DBRecoveryMode::TolerateCorruptedTailRecords);
    options.set_max_log_file_size(INFO_LOG_BYTES_MAX);
    options.set_keep_log_file_num(INFO_LOG_FILES);
    options.set_stats_dump_period_sec(0);
    options
}

/// Whether the values of a column family may be large: those of the log, and of three tables.
fn has_large_values(name: &str) -> bool {
    let large = [Table::Log, Table::LogOps, Table::Pages];
    let table = name.rsplit_once('.').map_or(name, |(_, table)| table);
    name == LOG || (is_of_tables(name) && large.iter().any(|large| large.name() == table))
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

/// Every row there is, for tests.
#[cfg(test)]
pub(crate) fn all_rows(view: &View) -> Vec<(Table, Vec<u8>, Vec<u8>)> {
    let rows = |table| view.rows(table, &[], usize::MAX).expect("the store can be read");
    let all = Table::ALL.into_iter();
    all.flat_map(|table| rows(table).into_iter().map(move |(key, value)| (table, key, value)))
        .collect()
}

#[cfg(test)]
mod tests;
