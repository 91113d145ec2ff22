//! Where the state lives: ordered tables of bytes. RocksDB in production, a `BTreeMap` in tests. The
//! state is never whole in memory.

use std::collections::BTreeMap;

/// The tables. The numbers are part of the on-disk format.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
#[repr(u8)]
pub enum Table {
    /// Single values: cluster, descriptor, layout, time, frontier, counters.
    Meta = 0,
    /// inode → [`crate::state::InodeState`].
    Inodes = 1,
    /// directory ‖ tag → row of an entry, with its sealed name.
    Entries = 2,
    /// directory ‖ inode → row of the entry that last pointed at a replaced inode.
    Trash = 3,
    /// inode → row of the current version, with its payload.
    Heads = 4,
    /// inode ‖ version (big-endian) → row of a former version.
    Versions = 5,
    /// inode → row of the attributes.
    Attrs = 6,
    /// inode → row of a vault.
    Vaults = 7,
    /// current vault leaf hash → inode.
    VaultHashes = 8,
    /// user name → row of a user.
    Users = 9,
    /// principal → user name.
    Principals = 10,
    /// certificate hash → row of a session.
    Sessions = 11,
    /// inode ‖ write → row of a partial version.
    Staged = 12,
    /// inode ‖ page hash → manifest page.
    Pages = 13,
    /// chunk ‖ position (big-endian) → the row that a commit made for it. The first bits of a chunk
    /// id are its partition, so a partition is one range.
    Rows = 14,
    /// position (big-endian) → the same row, in order of commit.
    Feed = 15,
    /// sequence (big-endian) → log entry.
    Log = 16,
    /// sequence ‖ op number (big-endian) → op bytes and path.
    LogOps = 17,
    /// principal ‖ request → what became of it.
    Repeats = 18,
    /// not-after (big-endian) ‖ principal ‖ request → nothing.
    RepeatsByTime = 19,
    /// home → usage.
    Usage = 20,
    /// storage node → its last report.
    Nodes = 21,
    /// certificate hash → row of a session's sealed keys.
    SealedSessions = 22,
    /// number (big-endian) → a signed descriptor after the first.
    Descriptors = 23,
    /// storage node → the last proof of its share.
    Proofs = 24,
    /// home → its own quota in bytes.
    Quotas = 25,
    /// invite → until when it counts.
    Invites = 26,
    /// log time (big-endian) ‖ inode → nothing: what waits for its purge, in that order.
    Deleted = 27,
    /// inode ‖ home → what the inode has charged the home.
    InodeUsage = 28,
    /// inode → [`crate::state::Gone`]: since when it has no name.
    Gone = 29,
}

impl Table {
    /// All tables, in the order of their numbers.
    pub const ALL: [Self; 30] = [
        Self::Meta,
        Self::Inodes,
        Self::Entries,
        Self::Trash,
        Self::Heads,
        Self::Versions,
        Self::Attrs,
        Self::Vaults,
        Self::VaultHashes,
        Self::Users,
        Self::Principals,
        Self::Sessions,
        Self::Staged,
        Self::Pages,
        Self::Rows,
        Self::Feed,
        Self::Log,
        Self::LogOps,
        Self::Repeats,
        Self::RepeatsByTime,
        Self::Usage,
        Self::Nodes,
        Self::SealedSessions,
        Self::Descriptors,
        Self::Proofs,
        Self::Quotas,
        Self::Invites,
        Self::Deleted,
        Self::InodeUsage,
        Self::Gone,
    ];

    /// The table's name on disk.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Meta => "meta",
            Self::Inodes => "inodes",
            Self::Entries => "entries",
            Self::Trash => "trash",
            Self::Heads => "heads",
            Self::Versions => "versions",
            Self::Attrs => "attrs",
            Self::Vaults => "vaults",
            Self::VaultHashes => "vault_hashes",
            Self::Users => "users",
            Self::Principals => "principals",
            Self::Sessions => "sessions",
            Self::Staged => "staged",
            Self::Pages => "pages",
            Self::Rows => "rows",
            Self::Feed => "feed",
            Self::Log => "log",
            Self::LogOps => "log_ops",
            Self::Repeats => "repeats",
            Self::RepeatsByTime => "repeats_by_time",
            Self::Usage => "usage",
            Self::Nodes => "nodes",
            Self::SealedSessions => "sealed_sessions",
            Self::Descriptors => "descriptors",
            Self::Proofs => "proofs",
            Self::Quotas => "quotas",
            Self::Invites => "invites",
            Self::Deleted => "deleted",
            Self::InodeUsage => "inode_usage",
            Self::Gone => "gone",
        }
    }
}

/// The store could not be read; the replica cannot go on.
#[derive(Debug, thiserror::Error)]
#[error("the metadata store failed: {0}")]
pub struct TableError(pub String);

/// Keys and values, ascending by key.
pub type Rows = Vec<(Vec<u8>, Vec<u8>)>;

/// Reading tables. A snapshot of a database, or a database nobody writes to meanwhile.
pub trait Tables {
    /// The value under `key`.
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, TableError>;

    /// Keys and values from `from` (inclusive) to `to` (exclusive), ascending, at most `limit`.
    fn scan(&self, table: Table, from: &[u8], to: &[u8], limit: usize) -> Result<Rows, TableError>;
}

impl<T: Tables + ?Sized> Tables for &T {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, TableError> {
        (**self).get(table, key)
    }

    fn scan(&self, table: Table, from: &[u8], to: &[u8], limit: usize) -> Result<Rows, TableError> {
        (**self).scan(table, from, to, limit)
    }
}

/// Pending changes: table and key → value, or none for a removal.
pub type Changes = BTreeMap<(Table, Vec<u8>), Option<Vec<u8>>>;

/// Tables with changes on top that are not written yet. What is dropped never happened.
#[derive(Debug)]
pub struct Overlay<T> {
    below: T,
    changes: Changes,
}

impl<T: Tables> Overlay<T> {
    /// Nothing changed yet.
    pub fn new(below: T) -> Self {
        Self { below, changes: Changes::new() }
    }

    /// Sets a value.
    pub fn put(&mut self, table: Table, key: &[u8], value: Vec<u8>) {
        self.changes.insert((table, key.to_vec()), Some(value));
    }

    /// Removes a value.
    pub fn delete(&mut self, table: Table, key: &[u8]) {
        self.changes.insert((table, key.to_vec()), None);
    }

    /// Takes the changes out.
    pub fn into_changes(self) -> Changes {
        self.changes
    }

    /// Takes over the changes of an overlay that was made on this one.
    pub fn merge(&mut self, changes: Changes) {
        self.changes.extend(changes);
    }
}

impl<T: Tables> Tables for Overlay<T> {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, TableError> {
        match self.changes.get(&(table, key.to_vec())) {
            Some(value) => Ok(value.clone()),
            None => self.below.get(table, key),
        }
    }

    fn scan(&self, table: Table, from: &[u8], to: &[u8], limit: usize) -> Result<Rows, TableError> {
        if from >= to {
            return Ok(Vec::new());
        }
        let changed: Vec<_> =
            self.changes.range((table, from.to_vec())..(table, to.to_vec())).collect();
        // Each removal can hide one row below.
        let mut rows: BTreeMap<Vec<u8>, Vec<u8>> = self
            .below
            .scan(table, from, to, limit.saturating_add(changed.len()))?
            .into_iter()
            .collect();
        for ((_, key), value) in changed {
            match value {
                Some(value) => rows.insert(key.clone(), value.clone()),
                None => rows.remove(key),
            };
        }
        Ok(rows.into_iter().take(limit).collect())
    }
}

/// Tables in memory, for tests and simulations.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct MemoryTables(BTreeMap<(Table, Vec<u8>), Vec<u8>>);

impl MemoryTables {
    /// Writes changes.
    pub fn write(&mut self, changes: Changes) {
        for (key, value) in changes {
            match value {
                Some(value) => self.0.insert(key, value),
                None => self.0.remove(&key),
            };
        }
    }

    /// Every row, in order.
    pub fn rows(&self) -> impl Iterator<Item = (Table, &[u8], &[u8])> {
        self.0.iter().map(|((table, key), value)| (*table, key.as_slice(), value.as_slice()))
    }
}

impl Tables for MemoryTables {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, TableError> {
        Ok(self.0.get(&(table, key.to_vec())).cloned())
    }

    fn scan(&self, table: Table, from: &[u8], to: &[u8], limit: usize) -> Result<Rows, TableError> {
        if from >= to {
            return Ok(Vec::new());
        }
        let range = self.0.range((table, from.to_vec())..(table, to.to_vec()));
        Ok(range.take(limit).map(|((_, key), value)| (key.clone(), value.clone())).collect())
    }
}
