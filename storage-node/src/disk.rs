//! The few things the store asks of a file system, so that tests can put one under it that fails.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io;
use std::num::NonZeroU64;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use coffer_service::files::{PRIVATE_FILE, create_private_dir, sync_directory};
use rustix::fs::{Advice, FallocateFlags, fadvise, fallocate, statvfs};
use rustix::io::Errno;

/// A folder of segment files.
pub(crate) trait Disk: Send + Sync + 'static {
    /// An open segment.
    type Segment: Segment;
    /// The numbers of all segments, ascending.
    fn segments(&self) -> io::Result<Vec<u64>>;
    /// Makes a segment of `bytes` bytes that begins with `header`, and zeros behind it. All of it is
    /// durable when this returns. If it fails, no segment has the number, or one that is whole.
    fn create(&self, number: u64, bytes: u64, header: &[u8]) -> io::Result<Self::Segment>;
    /// Opens a segment.
    fn open(&self, number: u64) -> io::Result<Self::Segment>;
    /// Gives a segment another name, under which it is not found any more, and keeps all of it.
    fn set_aside(&self, number: u64) -> io::Result<()>;
    /// Removes a segment and gives its room back. Who has it open still reads it.
    fn remove(&self, number: u64) -> io::Result<()>;
}

/// A segment file.
pub(crate) trait Segment: Send + Sync + 'static {
    /// Writes all of `bytes` at `offset`.
    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// Reads exactly `length` bytes at `offset`.
    fn read(&self, offset: u64, length: usize) -> io::Result<Vec<u8>>;
    /// Asks the system to forget what it keeps of these bytes in memory, so that the next read is one
    /// of the disk. It may not heed that; what is not durable yet it does not forget.
    fn uncache(&self, offset: u64, length: u64);
    /// Makes everything written so far durable.
    fn sync(&self) -> io::Result<()>;
    /// The file's length.
    fn length(&self) -> io::Result<u64>;
}

/// A segment that is being made; a crash can leave it behind, the next one is made over it.
const UNFINISHED: &str = "unfinished";
/// How many segments of one number are set aside; each of them takes up room until somebody has looked
/// at it.
const ASIDE_MAX: u32 = 16;
/// What stays free beside a new segment. The index stands on the same volume: without room it fails,
/// and does not open again, and then nothing can be read either.
const SPARE_BYTES: u64 = 64 << 20;

/// Whether a read failed because of the bytes that were asked for, and not of the disk as a whole: a
/// bad sector, a checksum of the file system's own that does not match, or a file that has lost its
/// end.
pub(crate) fn is_damage(error: &io::Error) -> bool {
    let system = error.raw_os_error().map(Errno::from_raw_os_error);
    error.kind() == io::ErrorKind::UnexpectedEof
        || matches!(system, Some(Errno::IO | Errno::BADMSG | Errno::UCLEAN))
}

/// Segments as files `<number>.seg` in a folder.
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        create_private_dir(path)?;
        Ok(Self(path.to_owned()))
    }

    fn path(&self, number: u64) -> PathBuf {
        self.0.join(file_name(number))
    }

    fn has_room(&self, bytes: u64) -> io::Result<bool> {
        let volume = statvfs(&self.0)?;
        let free = volume.f_bavail.saturating_mul(volume.f_frsize);
        Ok(free >= bytes.saturating_add(SPARE_BYTES))
    }
}

fn file_name(number: u64) -> String {
    format!("{number:016}.seg")
}

fn number_of(name: &OsStr) -> Option<u64> {
    let number = name.to_str()?.strip_suffix(".seg")?.parse().ok()?;
    (name == file_name(number).as_str()).then_some(number)
}

fn make(path: &Path, bytes: u64, header: &[u8]) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(true).mode(PRIVATE_FILE);
    let file = options.open(path)?;
    match fallocate(&file, FallocateFlags::empty(), 0, bytes) {
        // Not every file system reserves space; then the file is sparse.
        Err(Errno::OPNOTSUPP) => file.set_len(bytes)?,
        other => other?,
    }
    file.write_all_at(header, 0)?;
    file.sync_all()?;
    Ok(file)
}

impl Disk for Folder {
    type Segment = File;

    fn segments(&self) -> io::Result<Vec<u64>> {
        let mut numbers = Vec::new();
        for entry in std::fs::read_dir(&self.0)? {
            numbers.extend(number_of(&entry?.file_name()));
        }
        numbers.sort_unstable();
        Ok(numbers)
    }

    fn create(&self, number: u64, bytes: u64, header: &[u8]) -> io::Result<File> {
        let (unfinished, path) = (self.0.join(UNFINISHED), self.path(number));
        if path.try_exists()? {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        if !self.has_room(bytes)? {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let made = make(&unfinished, bytes, header).and_then(|file| {
            // The name is the commit point: whatever has it is whole.
            std::fs::rename(&unfinished, path)?;
            Ok(file)
        });
        if made.is_err() {
            // Best effort, to give the room back; the first error is the one worth telling.
            let _ = std::fs::remove_file(&unfinished);
        }
        let file = made?;
        sync_directory(&self.0)?;
        Ok(file)
    }

    fn open(&self, number: u64) -> io::Result<File> {
        OpenOptions::new().read(true).write(true).open(self.path(number))
    }

    fn set_aside(&self, number: u64) -> io::Result<()> {
        for turn in 0..ASIDE_MAX {
            let aside = self.0.join(format!("{number:016}.damaged-{turn}"));
            if !aside.try_exists()? {
                std::fs::rename(self.path(number), aside)?;
                return sync_directory(&self.0);
            }
        }
        Err(io::ErrorKind::AlreadyExists.into())
    }

    fn remove(&self, number: u64) -> io::Result<()> {
        match std::fs::remove_file(self.path(number)) {
            // It was removed before, and that was reported as failed.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => other?,
        }
        sync_directory(&self.0)
    }
}

impl Segment for File {
    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.write_all_at(bytes, offset)
    }

    fn read(&self, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        self.read_exact_at(&mut bytes, offset)?;
        Ok(bytes)
    }

    fn uncache(&self, offset: u64, length: u64) {
        // Advice: where it is not taken, the next read is answered from memory, and is as good as any
        // other read.
        let _ = fadvise(self, offset, NonZeroU64::new(length), Advice::DontNeed);
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }
}
