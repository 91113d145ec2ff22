//! Whole trees, local and remote.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{MIB, World, noise, path};
use crate::error::ClientError;
use crate::local::{LocalDir, Unfinished};
use crate::options::{GetOptions, PutOptions, PutTreeOptions};
use crate::progress::{Progress, Silent, TreeReport};

/// What can be compared of a tree: path, kind and mode, time, content.
pub(super) fn shape(root: &Path) -> Vec<(PathBuf, u32, i64, Vec<u8>)> {
    let mut shape = Vec::new();
    let mut open = vec![root.to_owned()];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let entry = entry.unwrap();
            let (path, found) = (entry.path(), entry.metadata().unwrap());
            let content = if found.is_dir() {
                open.push(path.clone());
                Vec::new()
            } else if found.is_symlink() {
                fs::read_link(&path).unwrap().as_os_str().as_bytes().to_vec()
            } else {
                blake3::hash(&fs::read(&path).unwrap()).as_bytes().to_vec()
            };
            let path = path.strip_prefix(root).unwrap().to_owned();
            shape.push((path, found.mode(), found.mtime(), content));
        }
    }
    shape.sort();
    shape
}

/// A tree with everything a tree may have.
pub(super) fn plant(root: &Path) {
    fs::create_dir_all(root.join("empty")).unwrap();
    fs::create_dir_all(root.join("deep/er/and/deeper")).unwrap();
    for number in 0..150 {
        fs::write(root.join(format!("deep/{number}")), noise(number * 41, 1)).unwrap();
    }
    fs::write(root.join("deep/er/large"), noise(3 * MIB + 7, 2)).unwrap();
    fs::write(root.join("deep/er/and/medium"), noise(100_000, 3)).unwrap();
    let sparse = fs::File::create(root.join("sparse")).unwrap();
    sparse.set_len(10 * MIB as u64).unwrap();
    sparse.write_all_at(b"x", 7 * MIB as u64).unwrap();
    symlink("../nowhere/at all", root.join("deep/link")).unwrap();
    symlink("/etc/passwd", root.join("absolute")).unwrap();
    fs::set_permissions(root.join("deep/7"), fs::Permissions::from_mode(0o400)).unwrap();
    let old = fs::FileTimes::new()
        .set_modified(std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(86_400));
    fs::File::open(root.join("deep/9")).unwrap().set_times(old).unwrap();
    fs::set_permissions(root.join("deep/er"), fs::Permissions::from_mode(0o755)).unwrap();
    for dir in ["deep/er/and", "deep/er", "deep", "empty"] {
        fs::File::open(root.join(dir)).unwrap().set_times(old).unwrap();
    }
}

fn assert_clean(report: &TreeReport) {
    assert_eq!(report.failed, 0, "{:?}", report.failures);
}

#[tokio::test]
async fn a_tree_comes_back_as_it_was() {
    let world = World::new().await;
    let (local, copy) = (world.dir.path().join("local"), world.dir.path().join("copy"));
    plant(&local);
    let remote = path("/ada/backups/one");
    let silent = Arc::new(Silent);
    let options = PutTreeOptions::standard();
    let before = world.cluster.calls("submit");
    let put = world.session.put_tree(&local, &remote, &options, silent.clone()).await.unwrap();
    assert_clean(&put);
    assert_eq!((put.files, put.directories, put.symlinks), (153, 5, 2));
    let bundles = world.cluster.calls("submit") - before;
    assert!(bundles < 60, "{bundles} bundles");

    let options = GetOptions::standard();
    let reader = world.again("reader").await;
    let got = reader.get_tree(&remote, &copy, &options, silent.clone()).await.unwrap();
    assert_clean(&got);
    assert_eq!((got.files, got.directories, got.symlinks), (153, 5, 2));
    assert_eq!(got.bytes, put.bytes);
    assert_eq!(shape(&copy), shape(&local));

    // Nothing is replaced unless it is asked for.
    let again = reader.get_tree(&remote, &copy, &options, silent.clone()).await.unwrap();
    assert_eq!(again.failed, 155, "{:?}", again.failures.first());
    assert!(again.failures.iter().all(|(_, error)| matches!(error, ClientError::Exists { .. })));
    let options = GetOptions { overwrite: true, ..options };
    fs::write(copy.join("deep/1"), b"changed").unwrap();
    assert_clean(&reader.get_tree(&remote, &copy, &options, silent.clone()).await.unwrap());
    assert_eq!(shape(&copy), shape(&local));

    // Put again: only what changed.
    fs::write(local.join("deep/1"), b"changed").unwrap();
    let options = PutTreeOptions { skip_unchanged: true, ..PutTreeOptions::standard() };
    let put = world.session.put_tree(&local, &remote, &options, silent).await.unwrap();
    assert_clean(&put);
    assert_eq!((put.files, put.files_unchanged), (1, 152));
}

#[tokio::test]
async fn names_that_cannot_be_are_reported_and_the_rest_goes_on() {
    let world = World::new().await;
    let local = world.dir.path().join("local");
    fs::create_dir(&local).unwrap();
    fs::write(local.join("good"), b"good").unwrap();
    fs::write(local.join(OsStr::from_bytes(b"b\xffd")), b"x").unwrap();
    fs::write(local.join("u\u{308}"), b"x").unwrap();
    fs::create_dir(local.join("line\nbreak")).unwrap();
    let pipe = local.join("pipe");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &pipe,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o600),
        0,
    )
    .unwrap();
    let options = PutTreeOptions::standard();
    let report = world
        .session
        .put_tree(&local, &path("/ada/tree"), &options, Arc::new(Silent))
        .await
        .unwrap();
    assert_eq!((report.files, report.failed), (1, 4), "{:?}", report.failures);
    let invalid =
        |(_, error): &&(String, ClientError)| matches!(error, ClientError::InvalidName { .. });
    assert_eq!(report.failures.iter().filter(invalid).count(), 3);
    assert!(world.get("/ada/tree/good").await.unwrap() == b"good");
}

#[tokio::test]
async fn links_below_the_target_are_not_followed() {
    let world = World::new().await;
    let outside = world.dir.path().join("outside");
    let copy = world.dir.path().join("copy");
    fs::create_dir(&outside).unwrap();
    fs::create_dir(&copy).unwrap();
    fs::write(outside.join("file"), b"mine").unwrap();
    world.session.mkdir(&path("/ada/t/dir"), true).await.unwrap();
    world.put("/ada/t/dir/inside", b"theirs").await;
    world.put("/ada/t/file", b"theirs").await;
    symlink(&outside, copy.join("dir")).unwrap();
    symlink(outside.join("file"), copy.join("file")).unwrap();
    let options = GetOptions { overwrite: true, ..GetOptions::standard() };
    let got =
        world.session.get_tree(&path("/ada/t"), &copy, &options, Arc::new(Silent)).await.unwrap();
    // The directory is refused; the file replaces the link, not what it points at.
    assert_eq!((got.files, got.failed), (1, 1), "{:?}", got.failures);
    assert!(fs::read(copy.join("file")).unwrap() == b"theirs");
    assert!(!fs::symlink_metadata(copy.join("file")).unwrap().is_symlink());
    assert!(fs::read(outside.join("file")).unwrap() == b"mine");
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);

    // A link that was fetched is no way out either.
    world.session.mkdir(&path("/ada/u"), false).await.unwrap();
    world.session.symlink(&path("/ada/u/a"), outside.as_os_str().as_bytes()).await.unwrap();
    let two = world.dir.path().join("two");
    let dir = Arc::new(Silent);
    world.session.get_tree(&path("/ada/u"), &two, &options, dir.clone()).await.unwrap();
    world.session.remove(&path("/ada/u/a"), false).await.unwrap();
    world.session.mkdir(&path("/ada/u/a"), false).await.unwrap();
    world.put("/ada/u/a/file", b"theirs").await;
    let got = world.session.get_tree(&path("/ada/u"), &two, &options, dir).await.unwrap();
    assert_eq!(got.failed, 1);
    assert!(fs::read(outside.join("file")).unwrap() == b"mine");
}

#[test]
fn what_is_given_up_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let open = Arc::new(LocalDir::open(dir.path()).unwrap());
    let file = Unfinished::create(Arc::clone(&open)).unwrap();
    file.write_at(5, b"x").unwrap();
    drop(file);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);

    fs::write(dir.path().join("there"), b"old").unwrap();
    let file = Unfinished::create(open).unwrap();
    file.write_at(0, b"new").unwrap();
    let refused = file.finish(Path::new("there"), 3, 0o6755, -1, false);
    assert!(matches!(refused, Err(ClientError::Exists { .. })));
    file.finish(Path::new("there"), 3, 0o6755, -1, true).unwrap();
    let found = fs::metadata(dir.path().join("there")).unwrap();
    assert_eq!((found.mode() & 0o7777, found.mtime()), (0o755, -1), "setuid is not taken over");
    assert!(fs::read(dir.path().join("there")).unwrap() == b"new");
}

/// Proves S10 of docs/semantics.md.
#[tokio::test]
async fn one_file_is_fetched_whole_or_not_at_all() {
    let world = World::new().await;
    world.put("/ada/file", &noise(2 * MIB, 1)).await;
    let local = world.dir.path().join("got");
    let options = GetOptions::standard();
    let file = path("/ada/file");
    world.session.get_file(&file, &local, &options, &Silent).await.unwrap();
    assert!(fs::read(&local).unwrap() == noise(2 * MIB, 1));
    let refused = world.session.get_file(&file, &local, &options, &Silent).await;
    assert!(matches!(refused, Err(ClientError::Exists { .. })));

    world.put("/ada/file", &noise(3 * MIB, 2)).await;
    world.cluster.lose_chunks(|_| true);
    let options = GetOptions { overwrite: true, ..options };
    let failed = world.session.get_file(&file, &local, &options, &Silent).await;
    assert!(matches!(failed, Err(ClientError::DataMissing { .. })), "{failed:?}");
    assert!(fs::read(&local).unwrap() == noise(2 * MIB, 1));
    let names: Vec<_> =
        fs::read_dir(world.dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, ["got"]);
}

/// Proves S10 of docs/semantics.md.
/// Goal: nothing is lost silently where the local file system takes two names for one. Method: the walk
/// is told that its target does; with `overwrite` too, only one of each takes the name, and directories
/// are not mixed.
#[tokio::test]
async fn names_that_differ_only_in_case_are_reported_where_they_are_one() {
    let world = World::new().await;
    for name in ["Readme", "README", "readme", "stra\u{df}e", "STRASSE", "\u{c4}", "\u{e4}", "b"] {
        world.put(&format!("/ada/{name}"), name.as_bytes()).await;
    }
    for (dir, file) in [("Dir", "x"), ("dir", "y")] {
        world.session.mkdir(&path(&format!("/ada/{dir}")), false).await.unwrap();
        world.put(&format!("/ada/{dir}/{file}"), b"z").await;
    }
    for (folds_case, overwrite, got, failed) in
        [(false, false, 10, 0), (true, false, 5, 5), (true, true, 5, 5)]
    {
        let copy = tempfile::tempdir().unwrap();
        let at = copy.path().to_owned();
        let make = move || Ok((Arc::new(LocalDir::open(&at)?), folds_case));
        let options = GetOptions { overwrite, ..GetOptions::standard() };
        let silent = Arc::new(Silent);
        let home = path("/ada");
        let report = world.session.get_tree_into(&home, make, &options, silent).await.unwrap();
        assert_eq!((report.files, report.failed), (got, failed), "{:?}", report.failures);
        for (name, error) in &report.failures {
            assert!(matches!(error, ClientError::Exists { .. }), "{name}: {error}");
            assert!(error.to_string().contains("only in case"), "{error}");
        }
        // Whoever has a name has it with all that is in it.
        for entry in fs::read_dir(copy.path()).unwrap().map(Result::unwrap) {
            if entry.file_type().unwrap().is_dir() {
                assert_eq!(fs::read_dir(entry.path()).unwrap().count(), 1);
            } else {
                assert_eq!(fs::read(entry.path()).unwrap(), entry.file_name().as_bytes());
            }
        }
    }
}

/// The file system of the tests keeps case apart, and trying it out leaves nothing behind.
#[test]
fn whether_case_is_folded_is_tried_out() {
    let dir = tempfile::tempdir().unwrap();
    let open = Arc::new(LocalDir::open(dir.path()).unwrap());
    assert!(!open.folds_case().unwrap());
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

/// Does something to a file once it is open and before it is read.
struct Meddler<F>(F);

impl<F: Fn() + Send + Sync> Progress for Meddler<F> {
    fn found(&self, _files: u64, _bytes: u64) {
        (self.0)();
    }
}

/// Proves S4 of docs/semantics.md.
/// Goal: what becomes of a local file while it is put never makes a version that is neither the old
/// nor the new one. Method: the file is meddled with after it was opened and before its first byte is
/// read. Small files go with the change, large ones as chunks.
#[tokio::test]
async fn a_file_is_meddled_with_while_it_is_put() {
    let world = World::new().await;
    let local = world.dir.path().join("file");
    let other = world.dir.path().join("other");
    for (name, length) in [("small", 1000), ("large", 3 * MIB)] {
        let (old, new) = (noise(length, 1), noise(length, 2));
        let target = path(&format!("/ada/{name}"));
        let try_put = async |meddle: &(dyn Fn() + Send + Sync)| {
            fs::write(&local, &old).unwrap();
            let options = PutOptions::standard();
            world.session.put_file(&local, &target, &options, &Meddler(meddle)).await
        };
        // Another file takes its name: the open one is read to its end.
        let replace = || {
            fs::write(&other, &new).unwrap();
            fs::rename(&other, &local).unwrap();
        };
        assert_eq!(try_put(&replace).await.unwrap().version, 1);
        assert!(world.get(target.to_string().as_str()).await.unwrap() == old);
        // It is removed.
        assert_eq!(try_put(&|| fs::remove_file(&local).unwrap()).await.unwrap().version, 2);
        assert!(world.get(target.to_string().as_str()).await.unwrap() == old);
        // It grows: what was there when it was opened is put.
        let grow = || fs::write(&local, [&old[..], b"more"].concat()).unwrap();
        assert_eq!(try_put(&grow).await.unwrap().version, 3);
        assert!(world.get(target.to_string().as_str()).await.unwrap() == old);
        // It is cut short: there is no version of it.
        let cut = || fs::write(&local, &old[..length / 2]).unwrap();
        let refused = try_put(&cut).await.unwrap_err();
        assert!(matches!(refused, ClientError::SourceChanged { .. }), "{refused:?}");
        assert_eq!(try_put(&|| ()).await.unwrap().version, 4);
    }
}
