//! Two trees that are made the same, in both directions.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::sync::{Arc, Mutex};

use super::trees::{plant, shape};
use super::{World, noise, path};
use crate::error::ClientError;
use crate::options::{GetOptions, PutTreeOptions, SyncOptions};
use crate::progress::{Progress, Silent};
use crate::sync::{Difference, Step, SyncReport};

/// Writes down what was told.
#[derive(Default)]
struct Told(Mutex<Vec<String>>);

impl Progress for Told {
    fn differs(&self, difference: &Difference) {
        let text = match difference.step {
            Step::Add => format!("+ {}", difference.path),
            Step::Change(why) => format!("~ {} ({why})", difference.path),
            Step::Delete => format!("- {}", difference.path),
        };
        self.0.lock().unwrap().push(text);
    }
}

impl Told {
    fn sorted(&self) -> Vec<String> {
        let mut told = std::mem::take(&mut *self.0.lock().unwrap());
        told.sort();
        told
    }
}

const PLAN: SyncOptions = SyncOptions::standard();
const APPLY: SyncOptions = SyncOptions { apply: true, ..PLAN };
const MIRROR: SyncOptions = SyncOptions { delete: true, ..APPLY };

fn numbers(report: &SyncReport) -> [u64; 4] {
    [report.added, report.changed, report.deleted, report.failed]
}

async fn assert_same(world: &World, local: &Path) {
    let copy = world.dir.path().join("compared");
    let options = GetOptions::standard();
    let remote = path("/ada/t");
    world.session.get_tree(&remote, &copy, &options, Arc::new(Silent)).await.unwrap();
    assert_eq!(shape(&copy), shape(local));
    fs::remove_dir_all(&copy).unwrap();
}

/// Makes a tree differ from what it was in every way.
fn change(tree: &Path) {
    fs::write(tree.join("deep/1"), b"other content").unwrap();
    fs::write(tree.join("new"), b"new").unwrap();
    fs::create_dir_all(tree.join("made/within")).unwrap();
    fs::write(tree.join("made/within/file"), noise(70_000, 9)).unwrap();
    fs::set_permissions(tree.join("deep/2"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::remove_file(tree.join("deep/link")).unwrap();
    symlink("somewhere else", tree.join("deep/link")).unwrap();
    fs::remove_dir_all(tree.join("deep/er/and")).unwrap();
    fs::remove_file(tree.join("deep/3")).unwrap();
    // What was a file is a directory, and the other way round.
    fs::remove_file(tree.join("deep/4")).unwrap();
    fs::create_dir(tree.join("deep/4")).unwrap();
    fs::write(tree.join("deep/4/inside"), b"x").unwrap();
    fs::remove_dir(tree.join("empty")).unwrap();
    fs::write(tree.join("empty"), b"a file now").unwrap();
}

/// What is told of [`change`].
const DIFFERENCES: &[&str] = &[
    "+ deep/4",
    "+ deep/4/inside",
    "+ empty",
    "+ made",
    "+ made/within",
    "+ made/within/file",
    "+ new",
    "- deep/3",
    "- deep/4",
    "- deep/er/and",
    "- empty",
    "~ . (time)",
    "~ deep (time)",
    "~ deep/1 (size)",
    "~ deep/2 (mode)",
    "~ deep/er (time)",
    "~ deep/link (target)",
];

#[tokio::test]
async fn a_remote_tree_becomes_like_the_local_one() {
    let world = World::new().await;
    let (session, local, remote) = (&world.session, world.dir.path().join("local"), path("/ada/t"));
    plant(&local);
    let told = Arc::new(Told::default());
    let sync = async |options: SyncOptions| {
        session.sync_to_remote(&local, &remote, &options, told.clone()).await.unwrap()
    };

    // The plan changes nothing; what is done is what it says.
    let planned = sync(PLAN).await;
    assert_eq!(numbers(&planned), [161, 0, 0, 0], "{:?}", planned.failures);
    let plan = told.sorted();
    let missing = session.stat(&remote).await;
    assert!(matches!(missing, Err(ClientError::NotFound { .. })));
    let done = sync(APPLY).await;
    assert_eq!((numbers(&done), done.bytes), (numbers(&planned), planned.bytes));
    assert_eq!(told.sorted(), plan);
    assert_same(&world, &local).await;
    for options in [PLAN, MIRROR, SyncOptions { compare_content: true, ..MIRROR }] {
        let again = sync(options).await;
        assert_eq!((numbers(&again), again.unchanged), ([0; 4], 160), "{:?}", told.sorted());
    }

    // Without leave to delete, what is there stays, and what is of another kind is named.
    change(&local);
    session.mkdir(&path("/ada/t/only/there"), true).await.unwrap();
    let kept = sync(APPLY).await;
    assert_eq!(kept.failed, 2, "{:?}", kept.failures);
    assert!(kept.failures.iter().all(|(_, error)| matches!(error, ClientError::Exists { .. })));
    session.stat(&path("/ada/t/deep/3")).await.unwrap();
    told.sorted();
    assert_eq!(numbers(&sync(MIRROR).await)[3], 0);
    assert!(told.sorted().contains(&"- only".to_owned()));
    assert_same(&world, &local).await;
    assert_eq!(numbers(&sync(MIRROR).await), [0; 4], "{:?}", told.sorted());
    // What was deleted can be brought back.
    session.undelete(&path("/ada/t/only")).await.unwrap();
    session.stat(&path("/ada/t/only/there")).await.unwrap();
    session.undelete(&path("/ada/t/deep/er/and")).await.unwrap();
    assert!(world.get("/ada/t/deep/er/and/medium").await.unwrap() == noise(100_000, 3));
}

#[tokio::test]
async fn a_local_tree_becomes_like_the_remote_one() {
    let world = World::new().await;
    let (session, source) = (&world.session, world.dir.path().join("source"));
    let (local, remote) = (world.dir.path().join("local"), path("/ada/t"));
    plant(&source);
    let options = PutTreeOptions::standard();
    session.put_tree(&source, &remote, &options, Arc::new(Silent)).await.unwrap();
    let told = Arc::new(Told::default());
    let sync = async |options: SyncOptions| {
        session.sync_to_local(&remote, &local, &options, told.clone()).await.unwrap()
    };

    let planned = sync(PLAN).await;
    assert_eq!(numbers(&planned), [161, 0, 0, 0], "{:?}", planned.failures);
    let plan = told.sorted();
    assert!(!local.exists());
    let done = sync(APPLY).await;
    assert_eq!((numbers(&done), done.bytes), (numbers(&planned), planned.bytes));
    assert_eq!(told.sorted(), plan);
    assert_eq!(shape(&local), shape(&source));
    for options in [PLAN, MIRROR, SyncOptions { compare_content: true, ..MIRROR }] {
        let again = sync(options).await;
        assert_eq!((numbers(&again), again.unchanged), ([0; 4], 160), "{:?}", told.sorted());
    }

    // The remote tree changes in every way, and the local one is the older.
    change(&source);
    let mirror = SyncOptions { delete: true, apply: true, compare_content: false };
    session.sync_to_remote(&source, &remote, &mirror, Arc::new(Silent)).await.unwrap();
    let outside = world.dir.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("file"), b"mine").unwrap();
    let kept = sync(APPLY).await;
    assert_eq!(kept.failed, 2, "{:?}", kept.failures);
    assert!(local.join("deep/er/and/medium").exists());
    told.sorted();
    symlink(&outside, local.join("way out")).unwrap();
    let planned = sync(SyncOptions { delete: true, ..PLAN }).await;
    let plan = told.sorted();
    assert!(plan.contains(&"- way out".to_owned()), "{plan:?}");
    assert!(local.join("way out").exists() && local.join("deep/3").exists());
    assert_eq!(numbers(&sync(MIRROR).await), numbers(&planned));
    assert_eq!(told.sorted(), plan);
    assert_eq!(shape(&local), shape(&source));
    assert!(fs::read(outside.join("file")).unwrap() == b"mine", "a link is not followed");
    assert_eq!(numbers(&sync(MIRROR).await), [0; 4], "{:?}", told.sorted());
}

#[tokio::test]
async fn every_difference_is_told_in_both_directions() {
    let world = World::new().await;
    let (session, old) = (&world.session, world.dir.path().join("old"));
    let (new, remote) = (world.dir.path().join("new"), path("/ada/t"));
    plant(&old);
    session.sync_to_remote(&old, &remote, &APPLY, Arc::new(Silent)).await.unwrap();
    session.sync_to_local(&remote, &new, &APPLY, Arc::new(Silent)).await.unwrap();
    change(&new);
    let told = Arc::new(Told::default());
    let planned = SyncOptions { delete: true, ..PLAN };
    session.sync_to_remote(&new, &remote, &planned, told.clone()).await.unwrap();
    assert_eq!(told.sorted(), DIFFERENCES);
    session.sync_to_remote(&new, &remote, &MIRROR, Arc::new(Silent)).await.unwrap();
    session.sync_to_local(&remote, &old, &planned, told.clone()).await.unwrap();
    assert_eq!(told.sorted(), DIFFERENCES);
}

#[tokio::test]
async fn content_is_compared_where_asked_for() {
    let world = World::new().await;
    let (session, local) = (&world.session, world.dir.path().join("local"));
    let remote = path("/ada/t");
    fs::create_dir(&local).unwrap();
    for name in ["sly", "touched"] {
        fs::write(local.join(name), noise(50_000, 1)).unwrap();
    }
    session.sync_to_remote(&local, &remote, &APPLY, Arc::new(Silent)).await.unwrap();
    // Other content under the old time, and a new time over the old content.
    let time = fs::metadata(local.join("sly")).unwrap().modified().unwrap();
    fs::write(local.join("sly"), noise(50_000, 2)).unwrap();
    let file = fs::File::options().write(true).open(local.join("sly")).unwrap();
    file.set_modified(time).unwrap();
    let file = fs::File::options().write(true).open(local.join("touched")).unwrap();
    file.set_modified(time + std::time::Duration::from_secs(5)).unwrap();
    let told = Arc::new(Told::default());
    session.sync_to_remote(&local, &remote, &PLAN, told.clone()).await.unwrap();
    assert_eq!(told.sorted(), ["~ touched (time)"]);
    let options = SyncOptions { compare_content: true, ..APPLY };
    let before = world.cluster.chunk_count();
    session.sync_to_remote(&local, &remote, &options, told.clone()).await.unwrap();
    assert_eq!(told.sorted(), ["~ sly (content)", "~ touched (time)"]);
    assert_eq!(world.cluster.chunk_count(), before + 1, "only one was sent");
    assert!(world.get("/ada/t/sly").await.unwrap() == noise(50_000, 2));
    let again = session.sync_to_remote(&local, &remote, &options, told).await.unwrap();
    assert_eq!(numbers(&again), [0; 4]);
}
