//! Uploads that may be interrupted: which write a file was being put with. A resumed upload seals the
//! same bytes again under the same write id, so it only asks which of them are missing.
//!
//! One small file for each upload, named by the hash of what is put where; removed when it is done.
//!
//! ```text
//! file = borsh { format: u8 = 1, length: u64, mtime_ns: i64, write: [u8; 16] }
//! ```

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use coffer_crypto::random::write_id;
use coffer_model::encoding::{decode, encode};
use coffer_model::hash::Hash;
use coffer_model::id::WriteId;
use coffer_model::name::RemotePath;
use coffer_service::files::{PRIVATE_FILE, write_atomically};

use crate::error::ClientError;
use crate::state_dir::{make_parent, read_if_there};

const FORMAT: u8 = 1;
/// A shorter file is simply put again.
pub(crate) const JOURNALED_BYTES_MIN: u64 = 4 << 20;

/// The journal of one user in one cluster; none is kept where nothing is remembered.
#[derive(Clone)]
pub(crate) struct Journal(Option<PathBuf>);

/// One upload: what is put where, and in which state it was when it was first put.
pub(crate) struct Upload {
    path: Option<PathBuf>,
    /// The write to put it with.
    pub(crate) write: WriteId,
    /// Whether an earlier attempt used it.
    pub(crate) resumed: bool,
}

/// What tells one state of a local file from another.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Stamp {
    pub(crate) length: u64,
    pub(crate) mtime_ns: i64,
}

impl Journal {
    pub(crate) fn at(path: Option<PathBuf>) -> Self {
        Self(path)
    }

    /// Begins an upload, or takes up the one that was interrupted. Blocks.
    pub(crate) fn begin(
        &self,
        local: &Path,
        remote: &RemotePath,
        stamp: Stamp,
    ) -> Result<Upload, ClientError> {
        let Some(dir) = &self.0 else {
            return Ok(Upload { path: None, write: write_id(), resumed: false });
        };
        let absolute =
            std::path::absolute(local).map_err(|error| ClientError::local("name", local, error))?;
        let named = encode(&(remote.to_string(), absolute.as_os_str().as_encoded_bytes()));
        let path = dir.join(Hash::of("coffer/v1/client/upload", &named).to_string());
        // A journal entry that cannot be read stands for an upload that cannot be resumed.
        let standing = read_if_there(&path)?
            .and_then(|bytes| decode::<(u8, u64, i64, WriteId)>("upload", &bytes).ok());
        if let Some((FORMAT, length, mtime_ns, write)) = standing
            && stamp == (Stamp { length, mtime_ns })
        {
            return Ok(Upload { path: Some(path), write, resumed: true });
        }
        let mut upload = Upload { path: Some(path), write: write_id(), resumed: false };
        upload.record(stamp)?;
        Ok(upload)
    }
}

impl Upload {
    /// Starts over with a new write. Blocks.
    pub(crate) fn renew(&mut self, stamp: Stamp) -> Result<(), ClientError> {
        self.write = write_id();
        self.resumed = false;
        self.record(stamp)
    }

    /// The upload is done, or will not be resumed. Blocks.
    pub(crate) fn finish(self) -> Result<(), ClientError> {
        let Some(path) = &self.path else { return Ok(()) };
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(ClientError::local("remove", path, error))
            }
            _ => Ok(()),
        }
    }

    fn record(&mut self, stamp: Stamp) -> Result<(), ClientError> {
        let Some(path) = &self.path else { return Ok(()) };
        make_parent(path)?;
        let bytes = encode(&(FORMAT, stamp.length, stamp.mtime_ns, self.write));
        write_atomically(path, &bytes, PRIVATE_FILE)
            .map_err(|error| ClientError::local("write", path, error))
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn an_interrupted_upload_is_found_again_until_it_is_done_or_the_file_changes() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::at(Some(dir.path().join("uploads")));
        let (local, remote) = (Path::new("some/file"), "/ada/file".parse().unwrap());
        let stamp = Stamp { length: 1 << 30, mtime_ns: 17 };
        let first = journal.begin(local, &remote, stamp).unwrap();
        assert!(!first.resumed);

        let again = journal.begin(local, &remote, stamp).unwrap();
        assert!(again.resumed && again.write == first.write);

        let elsewhere = journal.begin(local, &"/ada/other".parse().unwrap(), stamp).unwrap();
        assert!(!elsewhere.resumed && elsewhere.write != first.write);

        let changed = Stamp { mtime_ns: 18, ..stamp };
        let mut fresh = journal.begin(local, &remote, changed).unwrap();
        assert!(!fresh.resumed && fresh.write != first.write);
        let before = fresh.write;
        fresh.renew(changed).unwrap();
        assert_ne!(fresh.write, before);
        assert_eq!(journal.begin(local, &remote, changed).unwrap().write, fresh.write);

        fresh.finish().unwrap();
        assert!(!journal.begin(local, &remote, changed).unwrap().resumed);
    }

    #[test]
    fn a_damaged_entry_begins_anew() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::at(Some(dir.path().to_owned()));
        let (local, remote) = (Path::new("file"), "/ada/file".parse().unwrap());
        let stamp = Stamp { length: 5 << 20, mtime_ns: 0 };
        let first = journal.begin(local, &remote, stamp).unwrap();
        fs::write(first.path.as_ref().unwrap(), b"?").unwrap();
        assert!(!journal.begin(local, &remote, stamp).unwrap().resumed);
    }
}
