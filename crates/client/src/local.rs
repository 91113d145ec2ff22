//! Local files, written so that nothing a server names can lead anywhere else: every file is made in a
//! directory that is held open, no symbolic link is followed below the target, and a file takes its
//! name only when it is whole.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use coffer_crypto::random::random_bytes;
use rustix::fs::{
    AtFlags, CWD, Mode, OFlags, RenameFlags, Timespec, Timestamps, fchmod, futimens, linkat,
    mkdirat, openat, renameat, renameat_with, statat, symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno;

use crate::error::ClientError;

/// Permission bits that are taken over. Not setuid and setgid: who gets a file must not lend its
/// rights to whoever runs it.
const MODE_MASK: u32 = 0o1777;
/// How an unfinished file or directory is made, before it gets its own mode.
const PRIVATE_FILE: u32 = 0o600;
const PRIVATE_DIRECTORY: u32 = 0o700;

/// A directory that is held open.
pub(crate) struct LocalDir {
    fd: OwnedFd,
    path: PathBuf,
}

impl LocalDir {
    /// Opens a directory the user has named.
    pub(crate) fn open(path: &Path) -> Result<Self, ClientError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = openat(CWD, path, flags, Mode::empty())
            .map_err(|error| ClientError::local("open directory", path, error))?;
        Ok(Self { fd, path: path.to_owned() })
    }

    /// Opens the directory of a file the user has named, and gives the file's name in it.
    pub(crate) fn of_file(path: &Path) -> Result<(Self, PathBuf), ClientError> {
        let name = path.file_name().ok_or_else(|| ClientError::Invalid {
            what: format!("{} does not name a file", path.display()),
        })?;
        let parent = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        Ok((Self::open(parent)?, PathBuf::from(name)))
    }

    /// Makes a directory the user has named, where it is missing, and opens it.
    pub(crate) fn make(path: &Path) -> Result<Self, ClientError> {
        match std::fs::create_dir(path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                Err(ClientError::local("make directory", path, error))
            }
            _ => Self::open(path),
        }
    }

    /// Makes a directory in this one, or opens the one that is there; whether it is new. Anything else
    /// of that name, a symbolic link above all, is refused.
    pub(crate) fn subdirectory(&self, name: &OsStr) -> Result<(Self, bool), ClientError> {
        let path = self.path.join(name);
        let fresh = match mkdirat(&self.fd, name, Mode::from_raw_mode(PRIVATE_DIRECTORY)) {
            Ok(()) => true,
            Err(Errno::EXIST) => false,
            Err(error) => return Err(ClientError::local("make directory", &path, error)),
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = openat(&self.fd, name, flags, Mode::empty())
            .map_err(|error| ClientError::local("open directory", &path, error))?;
        Ok((Self { fd, path }, fresh))
    }

    /// Whether something has this name.
    pub(crate) fn exists(&self, name: &Path) -> Result<bool, ClientError> {
        match statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(error) => Err(ClientError::local("look at", &self.path.join(name), error)),
        }
    }

    /// Whether the file system takes names that differ only in case for one. It is tried out: a file is
    /// made, and looked for under the other name.
    pub(crate) fn folds_case(self: &Arc<Self>) -> Result<bool, ClientError> {
        let probe = Unfinished::create(Arc::clone(self))?;
        self.exists(Path::new(&probe.spare.to_uppercase()))
    }

    /// Makes a symbolic link. It is never followed here, wherever it points.
    pub(crate) fn symlink(
        &self,
        name: &OsStr,
        target: &OsStr,
        mtime_ns: i64,
        overwrite: bool,
    ) -> Result<(), ClientError> {
        let path = self.path.join(name);
        let spare = spare_name();
        let failed = |doing| move |error: Errno| (doing, error);
        let made = symlinkat(target, &self.fd, &spare)
            .map_err(failed("make link"))
            .and_then(|()| {
                let times = timestamps(mtime_ns);
                utimensat(&self.fd, &spare, &times, AtFlags::SYMLINK_NOFOLLOW)
                    .map_err(failed("set the time of"))
            })
            .and_then(|()| take_name(&self.fd, &spare, name, overwrite).map_err(failed("name")));
        made.map_err(|(doing, error)| {
            // Best effort: the first error is the one worth telling.
            let _ = unlinkat(&self.fd, &spare, AtFlags::empty());
            self.refused(doing, &path, error)
        })
    }

    /// Gives the directory its mode and time, when everything in it is done.
    pub(crate) fn set_attributes(&self, mode: u32, mtime_ns: i64) -> Result<(), ClientError> {
        fchmod(&self.fd, Mode::from_raw_mode(mode & MODE_MASK))
            .and_then(|()| futimens(&self.fd, &timestamps(mtime_ns)))
            .map_err(|error| ClientError::local("set mode and time of", &self.path, error))
    }

    fn refused(&self, doing: &'static str, path: &Path, error: Errno) -> ClientError {
        if error == Errno::EXIST {
            ClientError::Exists { what: path.display().to_string() }
        } else {
            ClientError::local(doing, path, error)
        }
    }
}

/// A file that has no name yet that anybody would look for.
pub(crate) struct Unfinished {
    dir: Arc<LocalDir>,
    file: File,
    spare: String,
    finished: AtomicBool,
}

impl Unfinished {
    /// Makes a new file in `dir`.
    pub(crate) fn create(dir: Arc<LocalDir>) -> Result<Self, ClientError> {
        let spare = spare_name();
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = openat(&dir.fd, &spare, flags, Mode::from_raw_mode(PRIVATE_FILE))
            .map_err(|error| ClientError::local("make a file in", &dir.path, error))?;
        Ok(Self { dir, file: File::from(fd), spare, finished: AtomicBool::new(false) })
    }

    /// Writes bytes at an offset. What is never written is a hole.
    pub(crate) fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<(), ClientError> {
        self.file
            .write_all_at(bytes, offset)
            .map_err(|error| ClientError::local("write", &self.dir.path.join(&self.spare), error))
    }

    /// The file is whole: it gets length, mode, time, and then its name.
    pub(crate) fn finish(
        &self,
        name: &Path,
        length: u64,
        mode: u32,
        mtime_ns: i64,
        overwrite: bool,
    ) -> Result<(), ClientError> {
        let path = self.dir.path.join(name);
        self.file.set_len(length).map_err(|error| ClientError::local("size", &path, error))?;
        fchmod(self.file.as_fd(), Mode::from_raw_mode(mode & MODE_MASK))
            .and_then(|()| futimens(self.file.as_fd(), &timestamps(mtime_ns)))
            .map_err(|error| ClientError::local("set mode and time of", &path, error))?;
        take_name(&self.dir.fd, &self.spare, name.as_os_str(), overwrite)
            .map_err(|error| self.dir.refused("name", &path, error))?;
        self.finished.store(true, Ordering::Relaxed);
        Ok(())
    }
}

impl Drop for Unfinished {
    /// What is given up leaves nothing behind.
    fn drop(&mut self) {
        if !self.finished.load(Ordering::Relaxed) {
            let _ = unlinkat(&self.dir.fd, &self.spare, AtFlags::empty());
        }
    }
}

/// Renames within a directory; without `overwrite` only to a name that is free.
fn take_name(dir: &OwnedFd, spare: &str, name: &OsStr, overwrite: bool) -> Result<(), Errno> {
    if overwrite {
        return renameat(dir, spare, dir, name);
    }
    match renameat_with(dir, spare, dir, name, RenameFlags::NOREPLACE) {
        // Not every file system knows this; all that matter know links.
        Err(Errno::INVAL | Errno::NOSYS) => linkat(dir, spare, dir, name, AtFlags::empty())
            .and_then(|()| unlinkat(dir, spare, AtFlags::empty())),
        renamed => renamed,
    }
}

fn spare_name() -> String {
    format!(".coffer-{}.part", hex::encode(random_bytes::<8>()))
}

fn timestamps(mtime_ns: i64) -> Timestamps {
    let time = Timespec {
        tv_sec: mtime_ns.div_euclid(1_000_000_000),
        tv_nsec: mtime_ns.rem_euclid(1_000_000_000),
    };
    Timestamps { last_access: time, last_modification: time }
}
