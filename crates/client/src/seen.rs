//! High-water marks: what this user has seen of a cluster, so that no server can take them back.
//!
//! Two marks are kept: the highest revision of the log, which every question sends along, and for each
//! file the highest version, with the revision it was seen at (an answer from an older snapshot may
//! show an older version). The marks outlive the process; several processes merge theirs on saving.
//!
//! ```text
//! file = borsh { format: u8 = 1, revision: u64, heads: Vec<{ inode: [u8; 16], version: u64, revision: u64 }> }
//! ```

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use borsh::{BorshDeserialize, BorshSerialize};
use coffer_model::encoding::{decode, encode};
use coffer_model::id::InodeId;
use coffer_service::files::{PRIVATE_FILE, write_atomically};

use crate::error::ClientError;
use crate::state_dir::{make_parent, read_if_there};

/// How many files are remembered; those seen longest ago are forgotten first.
const HEADS_MAX: usize = 16 * 1024;
/// The marks are not written more often than this, except at the end.
const SAVE_EVERY: Duration = Duration::from_secs(2);
const FORMAT: u8 = 1;

/// The marks of one user in one cluster.
pub(crate) struct Seen {
    path: Option<PathBuf>,
    marks: Mutex<Marks>,
}

#[derive(Clone, Copy)]
struct Head {
    version: u64,
    revision: u64,
    touched: u64,
}

struct Marks {
    revision: u64,
    heads: HashMap<InodeId, Head>,
    touches: u64,
    changed: bool,
    saved: Instant,
}

#[derive(BorshSerialize, BorshDeserialize)]
struct Stored {
    format: u8,
    revision: u64,
    heads: Vec<(InodeId, u64, u64)>,
}

impl Marks {
    fn of(stored: Stored) -> Self {
        let mut marks = Self {
            revision: 0,
            heads: HashMap::new(),
            touches: 0,
            changed: false,
            saved: Instant::now(),
        };
        marks.merge(stored);
        marks.changed = false;
        marks
    }

    fn merge(&mut self, stored: Stored) {
        self.raise(stored.revision);
        for (inode, version, revision) in stored.heads {
            self.note(inode, version, revision);
        }
    }

    fn raise(&mut self, revision: u64) {
        self.changed |= revision > self.revision;
        self.revision = self.revision.max(revision);
    }

    fn note(&mut self, inode: InodeId, version: u64, revision: u64) {
        self.touches += 1;
        let touched = self.touches;
        let head = self.heads.entry(inode).or_insert(Head { version: 0, revision, touched });
        head.touched = touched;
        if version > head.version {
            (head.version, head.revision) = (version, revision);
            self.changed = true;
        }
        if self.heads.len() > 2 * HEADS_MAX {
            let oldest_kept = self.touches - u64::try_from(HEADS_MAX).unwrap_or(u64::MAX);
            self.heads.retain(|_, head| head.touched > oldest_kept);
        }
    }

    fn stored(&self) -> Stored {
        let mut heads: Vec<_> = self.heads.iter().collect();
        // Oldest first, so that reading it back keeps their order.
        heads.sort_by_key(|(_, head)| head.touched);
        let from = heads.len().saturating_sub(HEADS_MAX);
        let heads =
            heads[from..].iter().map(|(inode, head)| (**inode, head.version, head.revision));
        Stored { format: FORMAT, revision: self.revision, heads: heads.collect() }
    }
}

impl Seen {
    /// Reads the marks of a user; none where the user is new here. Without a path the marks last as
    /// long as the process.
    pub(crate) fn load(path: Option<PathBuf>) -> Result<Self, ClientError> {
        let stored = match &path {
            Some(path) => read_if_there(path)?.map(|bytes| parse(path, &bytes)).transpose()?,
            None => None,
        };
        let none = || Stored { format: FORMAT, revision: 0, heads: Vec::new() };
        Ok(Self { path, marks: Mutex::new(Marks::of(stored.unwrap_or_else(none))) })
    }

    /// The highest revision so far.
    pub(crate) fn revision(&self) -> u64 {
        self.lock().revision
    }

    /// Checks the revision of an answer to a question that asked for at least `at_least`.
    pub(crate) fn check_revision(&self, answered: u64, at_least: u64) -> Result<(), ClientError> {
        if answered < at_least {
            return Err(ClientError::RolledBack {
                what: format!("revision {answered} instead of at least {at_least}"),
            });
        }
        self.lock().raise(answered);
        Ok(())
    }

    /// Checks that the current version of a file, in an answer of `revision`, is not older than one
    /// seen before it.
    pub(crate) fn check_head(
        &self,
        inode: InodeId,
        version: u64,
        revision: u64,
    ) -> Result<(), ClientError> {
        let mut marks = self.lock();
        if let Some(head) = marks.heads.get(&inode)
            && version < head.version
            && revision >= head.revision
        {
            return Err(ClientError::RolledBack {
                what: format!(
                    "version {version} of a file whose version {} was seen",
                    head.version
                ),
            });
        }
        marks.note(inode, version, revision);
        Ok(())
    }

    /// Whether it is time to save.
    pub(crate) fn is_due(&self) -> bool {
        let marks = self.lock();
        marks.changed && marks.saved.elapsed() >= SAVE_EVERY
    }

    /// Writes the marks, merged with what other processes have written meanwhile. Blocks.
    pub(crate) fn save(&self) -> Result<(), ClientError> {
        let Some(path) = &self.path else { return Ok(()) };
        if !self.lock().changed {
            return Ok(());
        }
        make_parent(path)?;
        let lock_path = path.with_extension("lock");
        let local = |error| ClientError::local("lock", &lock_path, error);
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&lock_path)
            .map_err(local)?;
        lock.lock().map_err(local)?;
        let others = read_if_there(path)?.map(|bytes| parse(path, &bytes)).transpose()?;
        let stored = {
            let mut marks = self.lock();
            if let Some(others) = others {
                marks.merge(others);
            }
            marks.changed = false;
            marks.saved = Instant::now();
            marks.stored()
        };
        write_atomically(path, &encode(&stored), PRIVATE_FILE)
            .map_err(|error| ClientError::local("write", path, error))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Marks> {
        self.marks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn parse(path: &Path, bytes: &[u8]) -> Result<Stored, ClientError> {
    let stored: Stored = decode("marks", bytes).map_err(|error| damaged(path, error))?;
    if stored.format != FORMAT {
        return Err(damaged(path, "written by another version"));
    }
    Ok(stored)
}

/// Marks that cannot be read protect against nothing; whoever removes them should know.
fn damaged(path: &Path, why: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> ClientError {
    let error = std::io::Error::new(std::io::ErrorKind::InvalidData, why);
    ClientError::local("understand (remove it to go on without its protection)", path, error)
}

#[cfg(test)]
#[expect(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn inode(number: u32) -> InodeId {
        let mut bytes = [0; 16];
        bytes[..4].copy_from_slice(&number.to_be_bytes());
        InodeId::from_bytes(bytes)
    }

    #[test]
    fn what_was_seen_is_remembered_merged_and_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/marks");
        let first = Seen::load(Some(path.clone())).unwrap();
        let second = Seen::load(Some(path.clone())).unwrap();
        first.check_revision(7, 0).unwrap();
        first.check_head(inode(1), 3, 7).unwrap();
        second.check_revision(5, 0).unwrap();
        second.check_head(inode(2), 9, 5).unwrap();
        first.save().unwrap();
        second.save().unwrap();

        let third = Seen::load(Some(path)).unwrap();
        assert_eq!(third.revision(), 7);
        let refused = |result| matches!(result, Err(ClientError::RolledBack { .. }));
        assert!(refused(third.check_head(inode(1), 2, 7)));
        assert!(refused(third.check_head(inode(2), 8, 8)));
        assert!(refused(third.check_revision(6, 7)));
        // An older snapshot may show an older version.
        third.check_head(inode(1), 2, 6).unwrap();
        third.check_head(inode(1), 3, 8).unwrap();

        for number in 0..200_000 {
            third.check_head(inode(number), 1_000, 9).unwrap();
        }
        assert!(third.lock().heads.len() <= 2 * HEADS_MAX);
        assert!(third.lock().stored().heads.len() <= HEADS_MAX);
        third.save().unwrap();
    }

    #[test]
    fn damaged_marks_are_reported() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("marks");
        std::fs::write(&path, b"?").unwrap();
        assert!(matches!(Seen::load(Some(path)), Err(ClientError::Local { .. })));
    }
}
