//! The few things the store asks of a file system, so that tests can put one under it that fails.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use coffer_service::files::{PRIVATE_FILE, create_private_dir, sync_directory};
use rustix::fs::{FallocateFlags, fallocate};

/// A folder of segment files.
pub(crate) trait Disk: Send + Sync + 'static {
    /// An open segment.
    type Segment: Segment;
    /// The numbers of all segments, ascending.
    fn segments(&self) -> io::Result<Vec<u64>>;
    /// Makes a segment of `bytes` bytes of zeros; its name is durable when this returns.
    fn create(&self, number: u64, bytes: u64) -> io::Result<Self::Segment>;
    /// Opens a segment.
    fn open(&self, number: u64) -> io::Result<Self::Segment>;
}

/// A segment file.
pub(crate) trait Segment: Send + Sync + 'static {
    /// Writes all of `bytes` at `offset`.
    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// Reads exactly `length` bytes at `offset`.
    fn read(&self, offset: u64, length: usize) -> io::Result<Vec<u8>>;
    /// Makes everything written so far durable.
    fn sync(&self) -> io::Result<()>;
    /// The file's length.
    fn length(&self) -> io::Result<u64>;
}

/// Segments as files `<number>.seg` in a folder.
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        create_private_dir(path)?;
        Ok(Self(path.to_owned()))
    }

    fn path(&self, number: u64) -> PathBuf {
        self.0.join(format!("{number:016}.seg"))
    }
}

impl Disk for Folder {
    type Segment = File;

    fn segments(&self) -> io::Result<Vec<u64>> {
        let mut numbers = Vec::new();
        for entry in std::fs::read_dir(&self.0)? {
            let name = entry?.file_name();
            let number = name.to_str().and_then(|name| name.strip_suffix(".seg"));
            numbers.extend(number.and_then(|number| number.parse::<u64>().ok()));
        }
        numbers.sort_unstable();
        Ok(numbers)
    }

    fn create(&self, number: u64, bytes: u64) -> io::Result<File> {
        let mut options = OpenOptions::new();
        let file = options
            .read(true)
            .write(true)
            .create_new(true)
            .mode(PRIVATE_FILE)
            .open(self.path(number))?;
        match fallocate(&file, FallocateFlags::empty(), 0, bytes) {
            // Not every file system reserves space; then the file is sparse.
            Err(rustix::io::Errno::OPNOTSUPP) => file.set_len(bytes)?,
            other => other?,
        }
        file.sync_all()?;
        sync_directory(&self.0)?;
        Ok(file)
    }

    fn open(&self, number: u64) -> io::Result<File> {
        OpenOptions::new().read(true).write(true).open(self.path(number))
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

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }
}
