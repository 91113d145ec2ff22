//! The engine against the real state machine: what it does when all is well, when things fail, and when
//! the servers lie. Each lie must give a typed error and no byte of plaintext.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use coffer_crypto::random::write_id;
use coffer_model::chunk::ChunkClass;
use coffer_model::descriptor::Descriptor;
use coffer_model::name::RemotePath;
use coffer_model::object::Kind;
use tempfile::TempDir;

use crate::contact::StateDir;
use crate::error::ClientError;
use crate::options::{GetOptions, PutOptions, WriteOptions};
use crate::progress::{Report, Silent, Tally};
use crate::resolve::{Located, attrs_and_head};
use crate::session::Session;
use crate::source::Source;
use crate::testing::{FakeCluster, KEEP_MS, START_MS, TestUser};
use crate::upload::{Committed, Content, Target};

mod attacks;
mod syncs;
mod trees;

/// A cluster with one user who is logged in.
pub(crate) struct World {
    cluster: Arc<FakeCluster>,
    user: TestUser,
    session: Session,
    dir: TempDir,
}

impl World {
    async fn new() -> Self {
        let cluster = FakeCluster::start();
        let dir = tempfile::tempdir().unwrap();
        let user = cluster.register("ada").await;
        let session = cluster.login(&user, &StateDir::at(dir.path().join("state"))).await;
        Self { cluster, user, session, dir }
    }

    /// Another session of the same user, with a memory of its own where `apart`.
    async fn again(&self, apart: &str) -> Session {
        self.cluster.login(&self.user, &StateDir::at(self.dir.path().join(apart))).await
    }

    async fn put(&self, to: &str, content: &[u8]) -> Report {
        self.try_put(to, content, &PutOptions::standard()).await.unwrap()
    }

    async fn try_put(
        &self,
        to: &str,
        content: &[u8],
        options: &PutOptions,
    ) -> Result<Report, ClientError> {
        put(&self.session, to, content, options).await
    }

    async fn get(&self, from: &str) -> Result<Vec<u8>, ClientError> {
        read(&self.session, from).await
    }
}

async fn put(
    session: &Session,
    to: &str,
    content: &[u8],
    options: &PutOptions,
) -> Result<Report, ClientError> {
    let reader = Box::new(std::io::Cursor::new(content.to_vec()));
    session.put(reader, Path::new("test"), &path(to), options, &Silent).await
}

async fn read(session: &Session, from: &str) -> Result<Vec<u8>, ClientError> {
    session.read_range(&path(from), None, 0, u64::MAX).await
}

fn path(text: &str) -> RemotePath {
    text.parse().unwrap()
}

/// Bytes that do not repeat and are not zeros.
fn noise(length: usize, seed: u8) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new_keyed(&[seed; 32]).finalize_xof().fill(&mut bytes);
    bytes
}

const MIB: usize = 1 << 20;

#[tokio::test]
async fn files_of_every_length_come_back() {
    let world = World::new().await;
    for length in [0, 1, 4096, 4097, 65_536, MIB - 1, MIB, MIB + 1, 3 * MIB + 17] {
        let content = noise(length, 1);
        let report = world.put("/ada/file", &content).await;
        assert_eq!(report.length, length as u64);
        assert!(world.get("/ada/file").await.unwrap() == content, "{length}");
        let stat = world.session.stat(&path("/ada/file")).await.unwrap();
        assert_eq!((stat.length, stat.version), (length as u64, report.version));
        // Short content lies in the version, and takes no chunk.
        assert_eq!(
            report.transfer.slots_sent,
            if length > 4096 { length.div_ceil(MIB) as u64 } else { 0 }
        );
    }
}

#[tokio::test]
async fn holes_cost_nothing_and_small_slots_work() {
    let world = World::new().await;
    let mut content = vec![0; 5 * MIB];
    content[2 * MIB + 5] = 1;
    let report = world.put("/ada/sparse", &content).await;
    assert_eq!((report.transfer.slots_sent, report.transfer.holes), (1, 4));
    assert!(world.get("/ada/sparse").await.unwrap() == content);

    let options = PutOptions { class: Some(ChunkClass::Small), ..PutOptions::standard() };
    let report = world.try_put("/ada/small", &noise(200_000, 2), &options).await.unwrap();
    assert_eq!(report.transfer.slots_sent, 4);
    assert!(world.get("/ada/small").await.unwrap() == noise(200_000, 2));
    let all_zero = vec![0; 2 * MIB];
    world.put("/ada/zeros", &all_zero).await;
    assert!(world.get("/ada/zeros").await.unwrap() == all_zero);
}

#[tokio::test]
async fn padding_hides_lengths_within_a_bucket() {
    let world = World::new().await;
    let mut sent = Vec::new();
    for length in [10_001, 10_100] {
        let before = world.cluster.chunk_bytes.load(Ordering::Relaxed);
        world.put("/ada/padded", &noise(length, 1)).await;
        sent.push(world.cluster.chunk_bytes.load(Ordering::Relaxed) - before);
    }
    assert_eq!(sent[0], sent[1]);
}

/// Proves S14, S15 of docs/semantics.md.
#[tokio::test]
async fn names_are_made_listed_moved_removed_and_brought_back() {
    let world = World::new().await;
    let session = &world.session;
    session.mkdir(&path("/ada/a/b/c"), true).await.unwrap();
    session.mkdir(&path("/ada/a/b/c"), true).await.unwrap();
    let exists = session.mkdir(&path("/ada/a"), false).await;
    assert!(matches!(exists, Err(ClientError::Exists { .. })));
    let missing = session.mkdir(&path("/ada/x/y"), false).await;
    assert!(matches!(missing, Err(ClientError::NotFound { .. })));

    world.put("/ada/a/b/one", b"one").await;
    world.put("/ada/a/b/two", b"two").await;
    let list = |deleted| async move {
        let entries = session.list(&path("/ada/a/b"), deleted).await.unwrap();
        entries.into_iter().map(|entry| entry.name.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(list(false).await, ["c", "one", "two"]);
    let top = session.list(&path("/"), false).await.unwrap();
    assert_eq!((top.len(), top[0].name.as_str()), (1, "ada"));

    session.rename(&path("/ada/a/b/one"), &path("/ada/a/moved")).await.unwrap();
    assert!(world.get("/ada/a/moved").await.unwrap() == b"one");
    assert!(matches!(world.get("/ada/a/b/one").await, Err(ClientError::NotFound { .. })));
    session.rename(&path("/ada/a/moved"), &path("/ada/a/b/two")).await.unwrap();
    assert!(world.get("/ada/a/b/two").await.unwrap() == b"one");
    // A directory that was cached under another name, with everything in it.
    session.rename(&path("/ada/a/b"), &path("/ada/z")).await.unwrap();
    assert!(world.get("/ada/z/two").await.unwrap() == b"one");
    assert!(matches!(world.get("/ada/a/b/two").await, Err(ClientError::NotFound { .. })));
    session.mkdir(&path("/ada/a/b"), false).await.unwrap();
    assert!(matches!(world.get("/ada/a/b/two").await, Err(ClientError::NotFound { .. })));

    for (from, to, expected) in [
        ("/ada/z", "/ada/z/inside", "into itself"),
        ("/ada/z", "/bob/z", "another home"),
        ("/ada/z/two", "/ada/a", "is a directory"),
        ("/ada/a", "/ada/z", "not empty"),
        ("/ada/a", "/ada/z/two", "not a directory"),
    ] {
        let error = session.rename(&path(from), &path(to)).await.unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    }

    let refused = session.remove(&path("/ada/z"), false).await;
    assert!(matches!(refused, Err(ClientError::IsADirectory { .. })));
    let refused = session.rmdir(&path("/ada/z")).await;
    assert!(matches!(refused, Err(ClientError::NotEmpty { .. })));
    let refused = session.rmdir(&path("/ada/z/two")).await;
    assert!(matches!(refused, Err(ClientError::NotADirectory { .. })));
    session.remove(&path("/ada/z"), true).await.unwrap();
    assert!(matches!(world.get("/ada/z/two").await, Err(ClientError::NotFound { .. })));
    let gone = session.list(&path("/ada"), true).await.unwrap();
    assert!(gone.iter().any(|entry| entry.deleted && entry.name.as_str() == "z"));
    session.undelete(&path("/ada/z")).await.unwrap();
    assert!(world.get("/ada/z/two").await.unwrap() == b"one");
    session.remove(&path("/ada/z/two"), false).await.unwrap();
    world.put("/ada/z/two", b"again").await;
    assert_eq!(session.stat(&path("/ada/z/two")).await.unwrap().version, 1);

    let other = session.list(&path("/bob"), false).await;
    assert!(matches!(other, Err(ClientError::Denied { .. })));
}

#[tokio::test]
async fn a_warm_path_takes_one_question() {
    let world = World::new().await;
    world.session.mkdir(&path("/ada/a/b/c/d"), true).await.unwrap();
    world.put("/ada/a/b/c/d/file", b"content").await;
    world.get("/ada/a/b/c/d/file").await.unwrap();
    let before = world.cluster.calls("read");
    world.get("/ada/a/b/c/d/file").await.unwrap();
    assert_eq!(world.cluster.calls("read") - before, 1);

    // Another session has replaced a directory on the way: its keys are others.
    let other = world.again("other").await;
    other.rename(&path("/ada/a/b"), &path("/ada/a/old")).await.unwrap();
    other.mkdir(&path("/ada/a/b/c/d"), true).await.unwrap();
    put(&other, "/ada/a/b/c/d/file", b"new", &PutOptions::standard()).await.unwrap();
    assert!(world.get("/ada/a/b/c/d/file").await.unwrap() == b"new");
    assert!(world.get("/ada/a/old/c/d/file").await.unwrap() == b"content");
}

/// Proves S9 of docs/semantics.md.
#[tokio::test]
async fn listings_go_through_all_pages_and_begin_anew_when_their_snapshot_is_gone() {
    let world = World::new().await;
    for number in 0..23 {
        world.put(&format!("/ada/{number:02}"), b"x").await;
    }
    *world.cluster.page_max.lock().unwrap() = 5;
    world.cluster.snapshots_lost.store(3, Ordering::Relaxed);
    let names: Vec<String> = world
        .session
        .list(&path("/ada"), false)
        .await
        .unwrap()
        .into_iter()
        .map(|entry| entry.name.to_string())
        .collect();
    assert_eq!(names, (0..23).map(|number| format!("{number:02}")).collect::<Vec<_>>());
    world.cluster.snapshots_lost.store(100, Ordering::Relaxed);
    let stopped = world.session.list(&path("/ada"), false).await;
    assert!(matches!(stopped, Err(ClientError::Unavailable { .. })));
}

/// Proves S5, S17 of docs/semantics.md.
#[tokio::test]
async fn versions_are_kept_listed_and_restored() {
    let world = World::new().await;
    let contents = [noise(10, 1), noise(2 * MIB, 2), noise(5000, 3)];
    for content in &contents {
        world.put("/ada/file", content).await;
    }
    let session = &world.session;
    *world.cluster.page_max.lock().unwrap() = 2;
    let versions = session.versions(&path("/ada/file")).await.unwrap();
    assert_eq!(versions.iter().map(|it| it.version).collect::<Vec<_>>(), [3, 2, 1]);
    for (number, content) in (1u64..).zip(&contents) {
        let found = session.read_range(&path("/ada/file"), Some(number), 0, u64::MAX).await;
        assert!(found.unwrap() == *content);
    }
    let none = session.read_range(&path("/ada/file"), Some(9), 0, 1).await;
    assert!(matches!(none, Err(ClientError::NotFound { .. })));
    for (version, becomes) in [(2, 4), (1, 5), (3, 6)] {
        let report = session.restore_version(&path("/ada/file"), version).await.unwrap();
        assert_eq!(report.version, becomes);
        let content = &contents[usize::try_from(version).unwrap() - 1];
        assert!(world.get("/ada/file").await.unwrap() == *content);
    }
    let versions = session.versions(&path("/ada/file")).await.unwrap();
    assert_eq!(versions[0].restored, Some(3));
}

#[tokio::test]
async fn parts_of_files_are_changed() {
    let world = World::new().await;
    let (session, file) = (&world.session, path("/ada/file"));
    let options = PutOptions { class: Some(ChunkClass::Small), ..PutOptions::standard() };
    let mut model = noise(300_000, 1);
    world.try_put("/ada/file", &model, &options).await.unwrap();
    let plain = WriteOptions::standard();
    let check = |model: Vec<u8>| {
        let session = session.clone();
        async move { assert!(read(&session, "/ada/file").await.unwrap() == model) }
    };

    let report = session.overwrite_range(&file, 70_000, b"changed", &plain).await.unwrap();
    model[70_000..70_007].copy_from_slice(b"changed");
    assert_eq!(report.transfer.slots_sent, 1);
    check(model.clone()).await;

    // Beyond the end: what lies between is zeros, and holes.
    session.overwrite_range(&file, 1_000_000, b"far", &plain).await.unwrap();
    model.resize(1_000_000, 0);
    model.extend_from_slice(b"far");
    check(model.clone()).await;

    session.append(&file, &noise(100_000, 2), &plain).await.unwrap();
    model.extend_from_slice(&noise(100_000, 2));
    check(model.clone()).await;

    for length in [900_000u64, 131_072, 131_073, 140_000, 5_000, 4_096, 100, 100_000, 0, 10] {
        session.truncate(&file, length, &plain).await.unwrap();
        model.resize(usize::try_from(length).unwrap(), 0);
        check(model.clone()).await;
    }
    session.append(&file, b"tail", &plain).await.unwrap();
    model.extend_from_slice(b"tail");
    check(model.clone()).await;

    // At the end of a full slot: no old slot changes, and yet the pages above them do.
    session.truncate(&file, 2 << 16, &plain).await.unwrap();
    session.append(&file, &noise(1 << 16, 3), &plain).await.unwrap();
    model.resize(2 << 16, 0);
    model.extend_from_slice(&noise(1 << 16, 3));
    check(model.clone()).await;

    let current = session.stat(&file).await.unwrap().version;
    let stale = WriteOptions { if_version: Some(current - 1), mtime_ns: None };
    let refused = session.append(&file, b"x", &stale).await;
    assert!(matches!(refused, Err(ClientError::Conflict { .. })));
}

#[tokio::test]
async fn attributes_change_and_links_keep_their_target() {
    let world = World::new().await;
    let session = &world.session;
    world.put("/ada/file", &noise(MIB + 1, 1)).await;
    session.mkdir(&path("/ada/dir"), false).await.unwrap();
    session.symlink(&path("/ada/link"), b"../elsewhere").await.unwrap();
    for name in ["/ada/file", "/ada/dir", "/ada"] {
        session.set_mode(&path(name), 0o100_640).await.unwrap();
        session.set_mtime(&path(name), -5).await.unwrap();
        let stat = session.stat(&path(name)).await.unwrap();
        assert_eq!((stat.mode, stat.mtime_ns), (0o640, -5), "{name}");
    }
    assert!(world.get("/ada/file").await.unwrap() == noise(MIB + 1, 1));
    let link = session.stat(&path("/ada/link")).await.unwrap();
    assert_eq!((link.kind, link.target.as_deref()), (Kind::Symlink, Some(&b"../elsewhere"[..])));
    let refused = world.try_put("/ada/link", b"x", &PutOptions::standard()).await;
    assert!(matches!(refused, Err(ClientError::NotAFile { .. })));
    let refused = session.symlink(&path("/ada/file"), b"x").await;
    assert!(matches!(refused, Err(ClientError::Exists { .. })));

    session.copy(&path("/ada/file"), &path("/ada/dir/copy"), false, &Silent).await.unwrap();
    session.copy(&path("/ada/link"), &path("/ada/dir/link"), false, &Silent).await.unwrap();
    session.copy(&path("/ada/dir"), &path("/ada/twin"), true, &Silent).await.unwrap();
    assert!(world.get("/ada/twin/copy").await.unwrap() == noise(MIB + 1, 1));
    let link = session.stat(&path("/ada/twin/link")).await.unwrap();
    assert_eq!(link.target.as_deref(), Some(&b"../elsewhere"[..]));
}

/// Puts under a name as it was found before somebody else came.
async fn put_late(
    session: &Session,
    to: &str,
    found: Located,
    source: Source,
    if_version: Option<u64>,
) -> Result<Committed, ClientError> {
    let tally = Tally::default();
    let content = Content {
        kind: Kind::File,
        source,
        mode: None,
        mtime_ns: 0,
        mtime_given: true,
        class: None,
        if_version,
        write: write_id(),
        resumed: false,
        tally: &tally,
        progress: &Silent,
    };
    let target = Target { parent: &found.parent, name: &found.name, found: found.found, path: to };
    session.put_content(target, content).await
}

/// Proves S12, S13 of docs/semantics.md.
#[tokio::test]
async fn a_put_that_loses_its_race_becomes_the_next_version_or_takes_the_name() {
    let world = World::new().await;
    let other = world.again("other").await;
    let big = noise(MIB + 5, 1);
    let from_memory = || Source::Memory(big.clone().into());
    let from_stream = || {
        let reader = Box::new(std::io::Cursor::new(big.clone()));
        Source::stream(reader, Path::new("test"))
    };
    let plain = PutOptions::standard();
    // Both create: what can be sealed again becomes version 2 of the winner's file, a stream takes
    // the name. Both commit: version 3 whatever it is.
    for (to, exists, source, version) in [
        ("/ada/a", false, from_memory(), 2),
        ("/ada/b", false, from_stream(), 1),
        ("/ada/c", true, from_memory(), 3),
        ("/ada/d", true, from_stream(), 3),
    ] {
        if exists {
            put(&other, to, b"first", &plain).await.unwrap();
        }
        let found = world.session.locate(&path(to), attrs_and_head()).await.unwrap();
        put(&other, to, b"winner", &plain).await.unwrap();
        let committed = put_late(&world.session, to, found, source, None).await.unwrap();
        assert_eq!(committed.version, version, "{to}");
        assert!(world.get(to).await.unwrap() == big, "{to}");
    }
    let names = world.session.list(&path("/ada"), false).await.unwrap();
    assert_eq!(names.len(), 4, "the spare name is gone");

    let found = world.session.locate(&path("/ada/a"), attrs_and_head()).await.unwrap();
    put(&other, "/ada/a", b"winner", &plain).await.unwrap();
    let refused = put_late(&world.session, "/ada/a", found, from_memory(), Some(2)).await;
    assert!(matches!(refused, Err(ClientError::Conflict { .. })));
}

/// Proves S12 of docs/semantics.md.
#[tokio::test]
async fn a_put_may_ask_for_a_version() {
    let world = World::new().await;
    let with = |if_version| PutOptions { if_version: Some(if_version), ..PutOptions::standard() };
    let refused = world.try_put("/ada/file", b"x", &with(3)).await;
    assert!(matches!(refused, Err(ClientError::NotFound { .. })));
    world.try_put("/ada/file", b"one", &with(0)).await.unwrap();
    let refused = world.try_put("/ada/file", b"x", &with(0)).await;
    assert!(matches!(refused, Err(ClientError::Exists { .. })));
    let refused = world.try_put("/ada/file", b"x", &with(7)).await;
    assert!(matches!(refused, Err(ClientError::Conflict { .. })));
    world.try_put("/ada/file", b"two", &with(1)).await.unwrap();
}

/// Proves S20 of docs/semantics.md.
#[tokio::test]
async fn receipts_that_ran_out_are_renewed_and_only_what_is_gone_is_sent_again() {
    let world = World::new().await;
    let local = world.dir.path().join("local");
    fs::write(&local, noise(3 * MIB, 1)).unwrap();
    let cluster = Arc::clone(&world.cluster);
    let mut stored = 0;
    *world.cluster.on_put.lock().unwrap() = Some(Box::new(move |answer| {
        stored += answer.stored.len();
        if stored == 3 {
            // The last chunk is stored: time passes, and one is lost before the commit.
            cluster.tick(START_MS + 3 * KEEP_MS);
            let mut lost = false;
            cluster.lose_chunks(|_| !std::mem::replace(&mut lost, true));
        }
    }));
    let target = path("/ada/file");
    let options = PutOptions::standard();
    let report = world.session.put_file(&local, &target, &options, &Silent).await.unwrap();
    assert_eq!((report.transfer.slots_sent, report.transfer.chunks_skipped), (4, 2));
    assert!(world.get("/ada/file").await.unwrap() == noise(3 * MIB, 1));
}

/// A stream that gives its content when it has been let go on.
struct Stalled {
    content: std::io::Cursor<Vec<u8>>,
    after: u64,
    go_on: std::sync::mpsc::Receiver<()>,
}

impl std::io::Read for Stalled {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.content.position() == self.after {
            // Whoever lets it go on may be gone; then the test has failed already.
            let _ = self.go_on.recv();
            self.after = u64::MAX;
        }
        let left = self.after.saturating_sub(self.content.position());
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        self.content.read(&mut buffer[..most])
    }
}

/// Goal: a stream that comes more slowly than nodes promise loses nothing of what was stored before. Method:
/// it gives two of three slots and then nothing until receipts were renewed, which happens while it is
/// waited for.
///
/// Proves S51 of docs/semantics.md.
#[tokio::test(flavor = "multi_thread")]
async fn receipts_are_renewed_while_a_stream_gives_nothing() {
    let world = World::new().await;
    world.cluster.keep_ms.store(300, Ordering::Relaxed);
    let (go_on, waits) = std::sync::mpsc::channel();
    let content = std::io::Cursor::new(noise(3 * MIB, 1));
    let source = Stalled { content, after: 2 * u64::try_from(MIB).unwrap(), go_on: waits };
    let (target, options) = (path("/ada/file"), PutOptions::standard());
    let put = world.session.put(Box::new(source), Path::new("-"), &target, &options, &Silent);
    let renewed = async {
        while world.cluster.calls("renew_receipts") < 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let go_on = async {
        let renewed = tokio::time::timeout(Duration::from_secs(60), renewed).await;
        go_on.send(()).unwrap();
        renewed.expect("receipts were not renewed");
    };
    let (report, ()) = tokio::join!(put, go_on);
    assert_eq!(report.unwrap().transfer.slots_sent, 3);
    assert!(world.get("/ada/file").await.unwrap() == noise(3 * MIB, 1));
}

/// Goal: a stream whose receipts ran out before its commit is committed if everything is still there, and
/// otherwise nothing of it exists. Method: time passes when the last chunk is stored; in the second run a
/// chunk is lost as well.
///
/// Proves S51 of docs/semantics.md.
#[tokio::test]
async fn a_late_commit_of_a_stream_counts_only_if_every_chunk_is_there() {
    for lose in [false, true] {
        let world = World::new().await;
        let cluster = Arc::clone(&world.cluster);
        let mut stored = 0;
        *world.cluster.on_put.lock().unwrap() = Some(Box::new(move |answer| {
            stored += answer.stored.len();
            if stored == 3 {
                cluster.tick(START_MS + 3 * KEEP_MS);
                let mut kept = !lose;
                cluster.lose_chunks(|_| !std::mem::replace(&mut kept, true));
            }
        }));
        let source = Box::new(std::io::Cursor::new(noise(3 * MIB, 1)));
        let (target, options) = (path("/ada/file"), PutOptions::standard());
        let put = world.session.put(source, Path::new("-"), &target, &options, &Silent).await;
        if lose {
            assert!(matches!(put, Err(ClientError::NotDurable { .. })), "{put:?}");
            let found = world.get("/ada/file").await;
            assert!(matches!(found, Err(ClientError::NotFound { .. })));
        } else {
            assert_eq!(put.unwrap().transfer.slots_sent, 3);
            assert!(world.get("/ada/file").await.unwrap() == noise(3 * MIB, 1));
        }
    }
}

/// Proves S4 of docs/semantics.md.
#[tokio::test]
async fn an_interrupted_upload_goes_on_where_it_was() {
    let world = World::new().await;
    let local = world.dir.path().join("local");
    fs::write(&local, noise(8 * MIB, 1)).unwrap();
    let target = path("/ada/file");
    let options = PutOptions::standard();
    let refuse = || Some(tonic::Status::internal("stopped"));
    *world.cluster.on_submit.lock().unwrap() = Some(Box::new(refuse));
    world.session.put_file(&local, &target, &options, &Silent).await.unwrap_err();
    *world.cluster.on_submit.lock().unwrap() = None;
    assert_eq!(world.cluster.chunk_count(), 8);
    let mut lost = false;
    world.cluster.lose_chunks(|_| !std::mem::replace(&mut lost, true));

    // Another process of the same user takes it up.
    let again = world.again("state").await;
    let report = again.put_file(&local, &target, &options, &Silent).await.unwrap();
    assert_eq!((report.transfer.slots_sent, report.transfer.chunks_skipped), (1, 7));
    assert!(world.get("/ada/file").await.unwrap() == noise(8 * MIB, 1));
    // It is done, so the next one is a new write.
    let report = again.put_file(&local, &target, &options, &Silent).await.unwrap();
    assert_eq!((report.version, report.transfer.slots_sent), (2, 8));
}

/// Proves S3 of docs/semantics.md.
#[tokio::test]
async fn a_commit_whose_answer_was_lost_is_not_repeated() {
    let world = World::new().await;
    let write = Some(write_id());
    let options = PutOptions { write_id: write, mtime_ns: Some(7), ..PutOptions::standard() };
    let local = world.dir.path().join("local");
    fs::write(&local, noise(MIB, 1)).unwrap();
    let target = path("/ada/file");
    let first = world.session.put_file(&local, &target, &options, &Silent).await.unwrap();
    let second = world.session.put_file(&local, &target, &options, &Silent).await.unwrap();
    assert_eq!((first.version, second.version), (1, 1));
    fs::write(&local, noise(MIB + 1, 1)).unwrap();
    let refused = world.session.put_file(&local, &target, &options, &Silent).await;
    assert!(matches!(refused, Err(ClientError::Conflict { .. })));
}

#[tokio::test]
async fn a_file_of_many_slots_goes_in_parts_and_is_resumed_between_them() {
    const CLASS: u64 = 64 * 1024;
    let world = World::new().await;
    let local = world.dir.path().join("local");
    let file = fs::File::create(&local).unwrap();
    let slots = 2 * 8192 + 3;
    file.set_len(slots * CLASS - 9).unwrap();
    let marked = [0, 8191, 8192, 8193, 16_383, 16_384, slots - 1];
    for slot in marked {
        file.write_all_at(&noise(100, 1), slot * CLASS).unwrap();
    }
    let target = path("/ada/large");
    let options = PutOptions { class: Some(ChunkClass::Small), ..PutOptions::standard() };
    // The first part is staged, the second is not.
    let mut submitted = 0;
    *world.cluster.on_submit.lock().unwrap() = Some(Box::new(move || {
        submitted += 1;
        (submitted > 1).then(|| tonic::Status::internal("stopped"))
    }));
    world.session.put_file(&local, &target, &options, &Silent).await.unwrap_err();
    *world.cluster.on_submit.lock().unwrap() = None;

    let again = world.again("state").await;
    let before = world.cluster.calls("submit");
    let report = again.put_file(&local, &target, &options, &Silent).await.unwrap();
    assert_eq!(world.cluster.calls("submit") - before, 2, "one more part, and the version");
    assert!(report.transfer.chunks_skipped >= 2, "{report:?}");
    assert_eq!(report.transfer.chunks_skipped + report.transfer.slots_sent, 7);
    let found = path("/ada/large");
    for slot in marked {
        let read = again.read_range(&found, None, slot * CLASS, 100).await.unwrap();
        assert!(read == noise(100, 1), "{slot}");
    }
    let copy = world.dir.path().join("copy");
    again.get_file(&found, &copy, &GetOptions::standard(), &Silent).await.unwrap();
    let (one, other) = (fs::metadata(&local).unwrap(), fs::metadata(&copy).unwrap());
    assert_eq!((one.len(), one.mtime()), (other.len(), other.mtime()));
    assert!(other.blocks() < 10_000, "holes stay holes");
}

#[tokio::test]
async fn time_that_was_guessed_wrong_is_corrected() {
    let world = World::new().await;
    world.put("/ada/file", b"x").await;
    for later_ms in [3600, 7200, 7205] {
        world.cluster.tick(START_MS + later_ms * 1000);
        let name = "dir".parse().unwrap();
        let home = Arc::clone(&world.session.home().root);
        let (_, op) = world.session.new_directory(&home, &name, None, 0o755, 0);
        let outcome = world.session.changes().apply(op.clone()).await.unwrap();
        assert_eq!(outcome.is_ok(), later_ms == 3600, "afterwards the name is in use");
        if later_ms == 3600 {
            // The very same op again: it was applied, and its answer lost.
            assert!(world.session.changes().apply(op).await.unwrap().is_ok());
        }
    }
    world.cluster.tick(START_MS + 13 * 3600 * 1000);
    let over = world.session.stat(&path("/ada")).await;
    assert!(matches!(over, Err(ClientError::SessionExpired)));
}

/// Proves S24 of docs/semantics.md.
#[tokio::test]
async fn a_closed_session_does_nothing_more_but_what_it_wrote_stays_good() {
    let world = World::new().await;
    world.put("/ada/file", b"kept").await;
    world.session.close().await.unwrap();
    assert!(matches!(world.get("/ada/file").await, Err(ClientError::SessionExpired)));
    let again = world.again("other").await;
    assert!(read(&again, "/ada/file").await.unwrap() == b"kept");
}

#[tokio::test]
async fn ops_that_arrive_together_share_bundles() {
    let world = World::new().await;
    let before = world.cluster.calls("submit");
    let puts = (0..300).map(|number| {
        let session = world.session.clone();
        async move {
            put(&session, &format!("/ada/{number}"), b"x", &PutOptions::standard()).await.unwrap();
        }
    });
    futures_util::future::join_all(puts).await;
    let bundles = world.cluster.calls("submit") - before;
    assert!(bundles < 60, "{bundles} bundles for 300 ops");
    assert_eq!(world.session.list(&path("/ada"), false).await.unwrap().len(), 300);
}

#[tokio::test]
async fn a_put_with_a_name_is_made_once() {
    let world = World::new().await;
    let options =
        PutOptions { write_id: Some(write_id()), if_version: Some(0), ..PutOptions::standard() };
    for content in [noise(100, 1), noise(MIB + 1, 2)] {
        let options = PutOptions { write_id: Some(write_id()), ..options.clone() };
        let to = path(&format!("/ada/file-{}", content.len()));
        for _ in 0..2 {
            let put = world.session.put_bytes(&content, &to, &options).await.unwrap();
            assert_eq!((put.version, put.length), (1, content.len() as u64));
        }
        // Over another version it is a put like any other.
        put(&world.session, &to.to_string(), b"other", &PutOptions::standard()).await.unwrap();
        let late = world.session.put_bytes(&content, &to, &options).await;
        assert!(matches!(late, Err(ClientError::Exists { .. })), "{late:?}");
    }
}

#[tokio::test]
async fn pieces_of_any_size_are_one_file_and_a_broken_stream_is_none() {
    let world = World::new().await;
    let content = noise(2 * MIB + 5, 3);
    for size in [17_001, MIB, 3 * MIB] {
        let pieces: Vec<_> =
            content.chunks(size).map(|piece| Ok(bytes::Bytes::copy_from_slice(piece))).collect();
        let mut broken = pieces.clone();
        broken.push(Err(ClientError::Stopped));
        let to = path(&format!("/ada/pieces-{size}"));
        let pieces_of = |pieces| Box::pin(futures_util::stream::iter(pieces));
        let options = PutOptions::standard();
        let failed = world.session.put_pieces(pieces_of(broken), &to, &options).await;
        assert!(matches!(failed, Err(ClientError::Stopped)), "{failed:?}");
        assert!(matches!(world.session.stat(&to).await, Err(ClientError::NotFound { .. })));
        let put = world.session.put_pieces(pieces_of(pieces), &to, &options).await.unwrap();
        assert_eq!((put.version, put.length), (1, content.len() as u64));
        assert!(world.get(&to.to_string()).await.unwrap() == content);
    }
}

#[tokio::test]
async fn pages_go_on_from_their_token_and_from_no_other() {
    let world = World::new().await;
    for number in 0..5 {
        world.put(&format!("/ada/file-{number}"), b"x").await;
        world.put("/ada/versions", &[number]).await;
    }
    world.session.mkdir(&path("/ada/other"), false).await.unwrap();
    let (home, mut names, mut token) = (path("/ada"), Vec::new(), None);
    loop {
        let page = world.session.list_page(&home, false, 3, token.as_deref()).await.unwrap();
        assert!(page.items.len() <= 3);
        names.extend(page.items.into_iter().map(|item| item.name.to_string()));
        let Some(next) = page.next else { break };
        let other = world.session.list_page(&path("/ada/other"), false, 3, Some(&next)).await;
        assert!(matches!(other, Err(ClientError::WrongPageToken)), "{other:?}");
        let deleted = world.session.list_page(&home, true, 3, Some(&next)).await;
        assert!(matches!(deleted, Err(ClientError::WrongPageToken)), "{deleted:?}");
        token = Some(next);
    }
    names.sort();
    assert_eq!(names, ["file-0", "file-1", "file-2", "file-3", "file-4", "other", "versions"]);

    let file = path("/ada/versions");
    let first = world.session.versions_page(&file, 2, None).await.unwrap();
    let token = first.next.unwrap();
    let second = world.session.versions_page(&file, 2, Some(&token)).await.unwrap();
    let numbers =
        |items: &[crate::VersionInfo]| items.iter().map(|it| it.version).collect::<Vec<_>>();
    assert_eq!((numbers(&first.items), numbers(&second.items)), (vec![5, 4], vec![3, 2]));
    for wrong in [
        world.session.versions_page(&path("/ada/file-1"), 2, Some(&token)).await,
        world.session.versions_page(&file, 2, Some("rubbish")).await,
    ] {
        assert!(matches!(wrong, Err(ClientError::WrongPageToken)), "{wrong:?}");
    }
    let listing = world.session.list_page(&home, false, 3, Some(&token)).await;
    assert!(matches!(listing, Err(ClientError::WrongPageToken)), "{listing:?}");
}

/// Goal: of calls that meet a new storage node at once, none takes its receipts for forged because another one
/// has asked for the descriptor first. Method: a session learns of a later descriptor while a call goes by
/// the one before.
#[tokio::test]
async fn a_descriptor_that_another_call_has_learnt_of_counts() {
    let world = World::new().await;
    let wire = world.session.wire();
    let known = wire.descriptor.get();
    assert!(!wire.knows_later(known.number).await.unwrap());
    wire.descriptor.learn(Descriptor { number: known.number + 1, ..Descriptor::clone(&known) });
    assert!(wire.knows_later(known.number).await.unwrap());
}
