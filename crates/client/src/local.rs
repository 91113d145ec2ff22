//! Local files, written so that nothing a server names can lead anywhere else: every file is made in a
//! directory that is held open, no symbolic link is followed below the target, and a file takes its
//! name only when it is whole.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use coffer_crypto::random::random_bytes;
use coffer_model::object::Kind;
use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, RenameFlags, Timespec, Timestamps, fchmod, fstat,
    futimens, linkat, mkdirat, openat, readlinkat, renameat, renameat_with, statat, symlinkat,
    unlinkat, utimensat,
};
use rustix::io::Errno;

use crate::error::ClientError;
use crate::session::Stat;

/// Permission bits that are taken over. Not setuid and setgid: who gets a file must not lend its
/// rights to whoever runs it.
pub(crate) const MODE_MASK: u32 = 0o1777;
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
        let fresh = match mkdirat(&self.fd, name, Mode::from_raw_mode(PRIVATE_DIRECTORY)) {
            Ok(()) => true,
            Err(Errno::EXIST) => false,
            Err(error) => {
                return Err(ClientError::local("make directory", &self.path.join(name), error));
            }
        };
        Ok((self.enter(name)?, fresh))
    }

    /// Opens a directory in this one. A symbolic link is refused.
    pub(crate) fn enter(&self, name: &OsStr) -> Result<Self, ClientError> {
        let path = self.path.join(name);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = openat(&self.fd, name, flags, Mode::empty())
            .map_err(|error| ClientError::local("open directory", &path, error))?;
        Ok(Self { fd, path })
    }

    /// Opens a regular file in this directory to read it.
    pub(crate) fn open_file(&self, name: &OsStr) -> Result<File, ClientError> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        openat(&self.fd, name, flags, Mode::empty())
            .map(File::from)
            .map_err(|error| ClientError::local("open", &self.path.join(name), error))
    }

    /// Where it is, for messages.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// What has this name; none where nothing has.
    pub(crate) fn look(&self, name: &OsStr) -> Result<Option<Stat>, ClientError> {
        let local = |error| ClientError::local("look at", &self.path.join(name), error);
        let found = match statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(found) => found,
            Err(Errno::NOENT) => return Ok(None),
            Err(error) => return Err(local(error)),
        };
        let kind = kind_of(FileType::from_raw_mode(found.st_mode));
        let target = match kind {
            Kind::Symlink => {
                let target = readlinkat(&self.fd, name, Vec::new()).map_err(local)?;
                Some(target.into_bytes())
            }
            _ => None,
        };
        Ok(Some(Stat {
            inode: None,
            kind,
            mode: Mode::from_raw_mode(found.st_mode).bits(),
            mtime_ns: nanoseconds(&found),
            length: u64::try_from(found.st_size).unwrap_or_default(),
            version: 0,
            class: None,
            target,
        }))
    }

    /// Mode and time of the directory itself.
    pub(crate) fn attributes(&self) -> Result<(u32, i64), ClientError> {
        let found =
            fstat(&self.fd).map_err(|error| ClientError::local("look at", &self.path, error))?;
        Ok((Mode::from_raw_mode(found.st_mode).bits(), nanoseconds(&found)))
    }

    /// The names in this directory, in the order the file system gives them. Files that are not whole
    /// yet are left out.
    pub(crate) fn names(
        &self,
    ) -> Result<impl Iterator<Item = Result<OsString, ClientError>> + use<>, ClientError> {
        let path = self.path.clone();
        let local = move |error| ClientError::local("list", &path, error);
        let names = Dir::read_from(&self.fd).map_err(&local)?;
        Ok(names.filter_map(move |entry| match entry {
            Ok(entry) => {
                let name = OsStr::from_bytes(entry.file_name().to_bytes());
                let left_out = name == "." || name == ".." || is_spare(name);
                (!left_out).then(|| Ok(name.to_owned()))
            }
            Err(error) => Some(Err(local(error))),
        }))
    }

    /// Removes what has this name, a directory with everything in it. No symbolic link is followed.
    pub(crate) fn remove(&self, name: &OsStr) -> Result<(), ClientError> {
        let local = |error| ClientError::local("remove", &self.path.join(name), error);
        match unlinkat(&self.fd, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            Err(Errno::ISDIR) => {}
            Err(error) => return Err(local(error)),
        }
        let below = self.enter(name)?;
        for entry in Dir::read_from(&below.fd).map_err(local)? {
            let entry = entry.map_err(local)?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if name != "." && name != ".." {
                below.remove(name)?;
            }
        }
        unlinkat(&self.fd, name, AtFlags::REMOVEDIR).map_err(local)
    }

    /// Gives a file its mode and time, its content being right.
    pub(crate) fn set_file_attributes(
        &self,
        name: &OsStr,
        mode: u32,
        mtime_ns: i64,
    ) -> Result<(), ClientError> {
        let file = self.open_file(name)?;
        fchmod(&file, Mode::from_raw_mode(mode & MODE_MASK))
            .and_then(|()| futimens(&file, &timestamps(mtime_ns)))
            .map_err(|error| {
                ClientError::local("set mode and time of", &self.path.join(name), error)
            })
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
        if self.attributes()? == (mode & MODE_MASK, mtime_ns) {
            return Ok(());
        }
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

const SPARE_PREFIX: &str = ".coffer-";
const SPARE_SUFFIX: &str = ".part";

fn spare_name() -> String {
    format!("{SPARE_PREFIX}{}{SPARE_SUFFIX}", hex::encode(random_bytes::<8>()))
}

/// Whether a name is one of those [`spare_name`] makes.
fn is_spare(name: &OsStr) -> bool {
    name.to_str()
        .and_then(|name| name.strip_prefix(SPARE_PREFIX)?.strip_suffix(SPARE_SUFFIX))
        .is_some_and(|middle| middle.len() == 16 && middle.bytes().all(|c| c.is_ascii_hexdigit()))
}

fn kind_of(file_type: FileType) -> Kind {
    match file_type {
        FileType::RegularFile => Kind::File,
        FileType::Directory => Kind::Directory,
        FileType::Symlink => Kind::Symlink,
        FileType::Fifo => Kind::Fifo,
        _ => Kind::Device,
    }
}

fn nanoseconds(found: &rustix::fs::Stat) -> i64 {
    let nanoseconds = i64::try_from(found.st_mtime_nsec).unwrap_or_default();
    found.st_mtime.saturating_mul(1_000_000_000).saturating_add(nanoseconds)
}

fn timestamps(mtime_ns: i64) -> Timestamps {
    let time = Timespec {
        tv_sec: mtime_ns.div_euclid(1_000_000_000),
        tv_nsec: mtime_ns.rem_euclid(1_000_000_000),
    };
    Timestamps { last_access: time, last_modification: time }
}
