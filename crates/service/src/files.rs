//! Files that are either whole or absent, and directories nobody else may enter.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// The mode of a file only its owner may read.
pub const PRIVATE_FILE: u32 = 0o600;
/// The mode of a directory only its owner may enter.
const PRIVATE_DIRECTORY: u32 = 0o700;
/// What the name of an unfinished file ends with. Such a file is never read.
const UNFINISHED: &str = ".unfinished";

/// Puts `bytes` into the file `path`, whole and durable, or leaves what was there.
///
/// The bytes go to a new file beside it (created exclusively, with `mode`), are synced, and take the
/// name by a rename: **the rename is the commit point**. The directory is synced after it; if only
/// that fails, the new content is in place but may not outlive a power failure, and the error is
/// returned. A crash can leave an unfinished file behind; [`remove_unfinished`] clears it away.
pub fn write_atomically(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let parent = parent_of(path);
    let unfinished = unfinished_name(path)?;
    let written = write_new(&unfinished, bytes, mode).and_then(|()| fs::rename(&unfinished, path));
    if let Err(error) = written {
        // Best effort: the first error is the one worth telling.
        let _ = fs::remove_file(&unfinished);
        return Err(error);
    }
    sync_directory(parent)
}

/// Removes what crashes left of [`write_atomically`] to `path`. The caller must be the only writer.
pub fn remove_unfinished(path: &Path) -> io::Result<()> {
    let Some(name) = path.file_name().and_then(|name| name.to_str()) else { return Ok(()) };
    let prefix = format!(".{name}.");
    for entry in fs::read_dir(parent_of(path))? {
        let entry = entry?;
        let found = entry.file_name();
        let found = found.to_string_lossy();
        if found.starts_with(&prefix) && found.ends_with(UNFINISHED) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Makes the directory `path` and its missing parents, with mode 0700. A directory that exists is
/// left as it is, for an operator or a volume plugin has chosen its mode.
pub fn create_private_dir(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    DirBuilder::new().recursive(true).mode(PRIVATE_DIRECTORY).create(path)?;
    sync_directory(parent_of(path))
}

/// Makes the names in the directory `path` durable.
pub fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// The directory that holds `path`.
fn parent_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

fn unfinished_name(path: &Path) -> io::Result<PathBuf> {
    let name = path.file_name().and_then(|name| name.to_str()).ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidInput, "the path does not name a file")
    })?;
    let mut random = [0u8; 8];
    getrandom::fill(&mut random).map_err(io::Error::other)?;
    let random = u64::from_le_bytes(random);
    Ok(parent_of(path).join(format!(".{name}.{random:016x}{UNFINISHED}")))
}

fn write_new(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    // The umask may have taken bits away that the caller asked for.
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    file.write_all(bytes)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(dir)
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_write_replaces_the_whole_file_and_sets_its_mode() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        for (bytes, mode) in [(&b"a longer first content"[..], 0o644), (b"short", PRIVATE_FILE)] {
            write_atomically(&path, bytes, mode).unwrap();
            assert_eq!(fs::read(&path).unwrap(), bytes);
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, mode);
        }
        assert_eq!(names(dir.path()), ["state"]);
    }

    #[test]
    fn a_failed_write_leaves_the_old_content_and_no_rubbish() {
        let dir = tempfile::tempdir().unwrap();
        // A directory in the place of the file: the bytes are written, the rename fails.
        let path = dir.path().join("state");
        fs::create_dir(&path).unwrap();
        fs::write(path.join("inside"), b"old").unwrap();
        write_atomically(&path, b"new", PRIVATE_FILE).unwrap_err();
        assert_eq!(fs::read(path.join("inside")).unwrap(), b"old");
        assert_eq!(names(dir.path()), ["state"]);

        write_atomically(&dir.path().join("absent/state"), b"new", PRIVATE_FILE).unwrap_err();
        write_atomically(Path::new("/"), b"new", PRIVATE_FILE).unwrap_err();
    }

    #[test]
    fn only_unfinished_files_of_the_same_name_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        for name in
            [".state.00000000000000aa.unfinished", ".other.00.unfinished", ".state.keep", "state"]
        {
            fs::write(dir.path().join(name), b"x").unwrap();
        }
        remove_unfinished(&dir.path().join("state")).unwrap();
        assert_eq!(names(dir.path()), [".other.00.unfinished", ".state.keep", "state"]);
    }

    #[test]
    fn a_private_directory_is_private_and_an_existing_one_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let made = dir.path().join("a/b");
        create_private_dir(&made).unwrap();
        for path in [dir.path().join("a"), made] {
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
        }
        let given = dir.path().join("given");
        fs::create_dir(&given).unwrap();
        fs::set_permissions(&given, fs::Permissions::from_mode(0o750)).unwrap();
        create_private_dir(&given).unwrap();
        assert_eq!(fs::metadata(&given).unwrap().permissions().mode() & 0o777, 0o750);
    }
}
