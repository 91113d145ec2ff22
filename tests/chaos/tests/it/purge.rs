//! What is deleted, and what nobody ever finished, gives its room back; what is kept stays.

use std::path::Path;

use coffer_chaos::{Cluster, noise, wait_for};
use coffer_proto::v1::GetStatusResponse;

const MIB: u64 = 1 << 20;

/// Bytes of the segments on a node's disk.
fn segment_bytes(cluster: &Cluster, node: &str) -> u64 {
    fn sum(dir: &Path) -> u64 {
        let Ok(entries) = std::fs::read_dir(dir) else { return 0 };
        let of = |entry: std::io::Result<std::fs::DirEntry>| {
            // A segment may be removed while it is looked at.
            let Ok((entry, Ok(found))) = entry.map(|it| {
                let found = it.metadata();
                (it, found)
            }) else {
                return 0;
            };
            if found.is_dir() { sum(&entry.path()) } else { found.len() }
        };
        entries.map(of).sum()
    }
    sum(&cluster.cluster_dir().join(node).join("data").join("segments"))
}

/// Proves S28 of docs/semantics.md.
#[test]
fn deleted_files_and_abandoned_puts_give_their_room_back() {
    let cluster = Cluster::start_set(
        0,
        &[
            ("COFFER_STORAGE__HOLD", "15s"),
            ("COFFER_STORAGE__REPORT_EVERY", "50ms"),
            ("COFFER_STORAGE__COMPARE_EVERY", "1s"),
            ("COFFER_STORAGE__COMPACT_EVERY", "1s"),
            ("COFFER_STORAGE__SEGMENT_BYTES", "4MiB"),
        ],
    )
    .unwrap();
    cluster.coffer("alice", &["register", "alice"]).unwrap();
    let work = cluster.work_dir().unwrap();
    let file = |name: &str, content: &[u8]| {
        let path = work.join(name);
        std::fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let kept = noise(1, 3 * MIB as usize);
    cluster.coffer("alice", &["put", &file("kept", &kept), "/alice/kept"]).unwrap();
    cluster
        .coffer("alice", &["put", &file("deleted", &noise(2, 16 * MIB as usize)), "/alice/deleted"])
        .unwrap();
    cluster.coffer("alice", &["mkdir", "/alice/dir"]).unwrap();
    cluster
        .coffer("alice", &["put", &file("below", &noise(3, 8 * MIB as usize)), "/alice/dir/below"])
        .unwrap();
    // A put that is killed on its way leaves chunks that no commit names.
    let large = file("abandoned", &noise(4, 256 * MIB as usize));
    let mut put = cluster.spawn("alice", &["put", &large, "/alice/abandoned"]).unwrap();

    let runtime = tokio::runtime::Runtime::new().unwrap();
    let engine = runtime.block_on(cluster.engine("watcher")).unwrap();
    let status = || -> GetStatusResponse { runtime.block_on(engine.status()).unwrap() };
    let used = |status: &GetStatusResponse| status.nodes.iter().map(|node| node.used_bytes).max();
    wait_for("the abandoned put to be on its way", || {
        Ok((used(&status()) > Some(40 * MIB)).then_some(()))
    })
    .unwrap();
    assert!(put.try_wait().unwrap().is_none(), "it was too fast to be killed on its way");
    put.kill().unwrap();
    put.wait().unwrap();

    cluster.coffer("alice", &["rm", "/alice/deleted"]).unwrap();
    cluster.coffer("alice", &["rm", "-r", "/alice/dir"]).unwrap();
    let before = status();
    assert!(before.charged_bytes > 27 * MIB, "{}", before.charged_bytes);
    assert_eq!(before.deleted_inodes, 2);
    let dir = cluster.cluster_dir();
    let dir = dir.to_str().unwrap();
    cluster.coffer("operator", &["order", "retention", "0s", "--dir", dir]).unwrap();

    wait_for("what was deleted to be purged", || {
        let status = status();
        Ok((status.deleted_inodes == 0 && status.charged_bytes < 4 * MIB).then_some(()))
    })
    .unwrap();
    wait_for("the nodes to forget what nothing needs", || {
        Ok((used(&status()) < Some(4 * MIB)).then_some(()))
    })
    .unwrap();
    let nodes = ["storage-1", "storage-2", "storage-3"];
    wait_for("the disks to have their room back", || {
        Ok(nodes.iter().all(|node| segment_bytes(&cluster, node) <= 16 * MIB).then_some(()))
    })
    .unwrap();
    assert_eq!(
        cluster.run("alice", &["restore", "/alice/deleted"]).unwrap().status.code(),
        Some(3)
    );
    let got = work.join("got");
    cluster.coffer("alice", &["get", "/alice/kept", got.to_str().unwrap()]).unwrap();
    assert!(std::fs::read(got).unwrap() == kept);
    assert!(status().nodes.iter().all(|node| node.missing_chunks == 0));
}
