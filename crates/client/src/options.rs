//! What a caller may choose. Each set of choices starts from
//! `standard`, which chooses nothing.

use coffer_model::chunk::ChunkClass;
use coffer_model::id::WriteId;

/// How a file is put.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub struct PutOptions {
    /// How many bytes a slot covers; 1 MiB where this is none. Random writers want 64 KiB.
    pub class: Option<ChunkClass>,
    /// Permission bits; those of the local file, of the version before, or 0644.
    pub mode: Option<u32>,
    /// Time of the last change in nanoseconds since the Unix epoch; that of the local file, or now.
    pub mtime_ns: Option<i64>,
    /// Put only if this is the current version; 0: only if there is no such file. Without it, a put
    /// that meets another one becomes the version after it.
    pub if_version: Option<u64>,
    /// The id of an upload that is to be resumed. Uploads of local files remember theirs by themselves.
    pub write_id: Option<WriteId>,
}

impl PutOptions {
    /// No choices.
    pub const fn standard() -> Self {
        Self { class: None, mode: None, mtime_ns: None, if_version: None, write_id: None }
    }
}

/// How part of a file is written.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub struct WriteOptions {
    /// Write only if this is the current version.
    pub if_version: Option<u64>,
    /// Time of the change in nanoseconds since the Unix epoch; now, where this is none.
    pub mtime_ns: Option<i64>,
}

impl WriteOptions {
    /// No choices.
    pub const fn standard() -> Self {
        Self { if_version: None, mtime_ns: None }
    }
}

/// How files are fetched.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub struct GetOptions {
    /// The version; the current one where this is none.
    pub version: Option<u64>,
    /// Whether local files that exist are replaced.
    pub overwrite: bool,
}

impl GetOptions {
    /// The current version, and nothing local is replaced.
    pub const fn standard() -> Self {
        Self { version: None, overwrite: false }
    }
}

/// How a tree is put.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub struct PutTreeOptions {
    /// How many bytes a slot of each file covers.
    pub class: Option<ChunkClass>,
    /// Whether a file whose length and time are those of the remote one is left alone.
    pub skip_unchanged: bool,
}

impl PutTreeOptions {
    /// Every file becomes a new version.
    pub const fn standard() -> Self {
        Self { class: None, skip_unchanged: false }
    }
}

/// How two trees are made the same.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub struct SyncOptions {
    /// Whether it is done; otherwise it is only told what would be.
    pub apply: bool,
    /// Whether what only the target has is deleted, and what is of another kind there is replaced.
    pub delete: bool,
    /// Whether content is read and compared where length and time are the same, and left alone where
    /// only the time differs.
    pub compare_content: bool,
}

impl SyncOptions {
    /// Nothing is done, only told.
    pub const fn standard() -> Self {
        Self { apply: false, delete: false, compare_content: false }
    }
}
