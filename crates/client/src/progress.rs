//! What is told while something runs, and what is reported at its end.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::ClientError;
use crate::sync::Difference;

/// Listens to the progress of an operation. Called from several threads; must be quick.
pub trait Progress: Send + Sync {
    /// More files and symlinks were found that are to be done: the totals grow while a tree is walked.
    fn found(&self, files: u64, bytes: u64) {
        let _ = (files, bytes);
    }
    /// Bytes of content are done: stored, or written.
    fn bytes(&self, count: u64) {
        let _ = count;
    }
    /// A file or symlink is done.
    fn done(&self, path: &str) {
        let _ = path;
    }
    /// Two trees differ here; it is about to be put right, if that was asked for.
    fn differs(&self, difference: &Difference) {
        let _ = difference;
    }
    /// One failed; the rest goes on.
    fn failed(&self, path: &str, error: &ClientError) {
        let _ = (path, error);
    }
}

/// Nobody listens.
#[derive(Clone, Copy, Debug)]
pub struct Silent;

impl Progress for Silent {}

/// What was moved over the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Transfer {
    /// Sealed chunk bytes that were sent.
    pub chunk_bytes_sent: u64,
    /// Chunks that were sent.
    pub slots_sent: u64,
    /// Bytes of slot changes that were sent with ops.
    pub slot_change_bytes_sent: u64,
    /// Chunks that were there already.
    pub chunks_skipped: u64,
    /// Slots that are all zeros, for which nothing is stored.
    pub holes: u64,
}

/// What a put led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    /// The version that now exists.
    pub version: u64,
    /// Its length.
    pub length: u64,
    /// What it took.
    pub transfer: Transfer,
}

/// What became of a tree.
#[derive(Clone, Debug, Default)]
pub struct TreeReport {
    /// Files that were put or fetched.
    pub files: u64,
    /// Files that were left alone, because they are the same.
    pub files_unchanged: u64,
    /// Directories.
    pub directories: u64,
    /// Symbolic links.
    pub symlinks: u64,
    /// Bytes of content.
    pub bytes: u64,
    /// What it took.
    pub transfer: Transfer,
    /// What failed: path and reason, the first [`FAILURES_MAX`].
    pub failures: Vec<(String, ClientError)>,
    /// How many failed in all.
    pub failed: u64,
}

/// How many failures a report lists.
pub const FAILURES_MAX: usize = 1000;

impl TreeReport {
    pub(crate) fn fail(&mut self, path: String, error: ClientError) {
        self.failed += 1;
        if self.failures.len() < FAILURES_MAX {
            self.failures.push((path, error));
        }
    }
}

/// Counts what is moved, from several tasks at once.
#[derive(Default)]
pub(crate) struct Tally {
    chunk_bytes_sent: AtomicU64,
    slots_sent: AtomicU64,
    slot_change_bytes_sent: AtomicU64,
    chunks_skipped: AtomicU64,
    holes: AtomicU64,
}

impl Tally {
    pub(crate) fn chunk(&self, sent: bool, bytes: u64) {
        if sent {
            self.slots_sent.fetch_add(1, Ordering::Relaxed);
            self.chunk_bytes_sent.fetch_add(bytes, Ordering::Relaxed);
        } else {
            self.chunks_skipped.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(crate) fn hole(&self) {
        self.holes.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn slot_changes(&self, bytes: u64) {
        self.slot_change_bytes_sent.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn transfer(&self) -> Transfer {
        Transfer {
            chunk_bytes_sent: self.chunk_bytes_sent.load(Ordering::Relaxed),
            slots_sent: self.slots_sent.load(Ordering::Relaxed),
            slot_change_bytes_sent: self.slot_change_bytes_sent.load(Ordering::Relaxed),
            chunks_skipped: self.chunks_skipped.load(Ordering::Relaxed),
            holes: self.holes.load(Ordering::Relaxed),
        }
    }
}
