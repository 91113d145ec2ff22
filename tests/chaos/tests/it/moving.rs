//! Servers come and go while people work: nobody's operation fails, and everything is there at the end.

use std::collections::BTreeMap;
use std::io::Cursor;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use coffer_chaos::{Cluster, noise, wait_for};
use coffer_client::{PutOptions, Session, Silent};
use coffer_model::name::RemotePath;
use coffer_proto::v1::{GetStatusResponse, NodeStatus};

/// Files a worker writes again and again, and reads back.
const FILES: u64 = 20;

/// Somebody who writes and reads all the time.
pub(crate) struct Worker {
    stop: Arc<AtomicBool>,
    done: tokio::task::JoinHandle<Worked>,
}

/// What came of it.
#[derive(Default)]
pub(crate) struct Worked {
    pub(crate) failures: Vec<String>,
    pub(crate) content: BTreeMap<u64, Vec<u8>>,
}

pub(crate) fn path(file: u64) -> RemotePath {
    format!("/alice/file-{file}").parse().unwrap()
}

/// Other bytes for each round; more than fits without a chunk.
pub(crate) fn content_of(round: u64) -> Vec<u8> {
    noise(round, 40_000)
}

/// What a worker does at least, however early it is told to stop.
const ROUNDS_MIN: u64 = 50;

impl Worker {
    pub(crate) fn start(session: Session) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let done = tokio::spawn(async move {
            let mut worked = Worked::default();
            let mut round = 0;
            // A slow machine takes longer, and has worked as much.
            while !stopped.load(Ordering::Relaxed) || round < ROUNDS_MIN {
                round += 1;
                let file = round % FILES;
                let content = content_of(round);
                let (source, options) = (Cursor::new(content.clone()), PutOptions::standard());
                let name = Path::new("content");
                match session.put(Box::new(source), name, &path(file), &options, &Silent).await {
                    Ok(_) => {
                        worked.content.insert(file, content);
                    }
                    Err(error) => worked.failures.push(format!("put in round {round}: {error}")),
                }
                // One that was written some time ago.
                let other = (round * 7) % FILES;
                if let Some(expected) = worked.content.get(&other) {
                    match session.read_range(&path(other), None, 0, u64::MAX).await {
                        Ok(found) if found == *expected => {}
                        Ok(_) => worked.failures.push(format!("round {round}: other content")),
                        Err(error) => {
                            worked.failures.push(format!("get in round {round}: {error}"))
                        }
                    }
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            worked
        });
        Self { stop, done }
    }

    pub(crate) async fn stop(self) -> Worked {
        self.stop.store(true, Ordering::Relaxed);
        self.done.await.unwrap()
    }
}

pub(crate) fn operate(cluster: &Cluster, args: &[&str]) -> String {
    let dir = cluster.cluster_dir();
    let args = [args, &["--dir", dir.to_str().unwrap()]].concat();
    cluster.coffer("operator", &args).unwrap()
}

/// Every node of the layout in force has proven its share of it.
pub(crate) fn is_proven(status: &GetStatusResponse) -> bool {
    let proven = |node: &NodeStatus| node.proven_layout == status.layout_version;
    status.former_layouts == 0 && status.nodes.iter().filter(|node| node.in_layout).all(proven)
}

/// Proves S25 of docs/semantics.md.
#[test]
fn storage_nodes_come_and_go_under_load() {
    let cluster = Cluster::start().unwrap();
    cluster.coffer("alice", &["register", "alice"]).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let session = runtime.block_on(cluster.log_in("alice", "worker")).unwrap();
    let watcher = runtime.block_on(cluster.log_in("alice", "watcher")).unwrap();
    let status = || runtime.block_on(watcher.status()).unwrap();
    let worker = runtime.block_on(async { Worker::start(session) });

    // One more, then one less.
    operate(&cluster, &["node", "add", "--wait"]);
    assert!(is_proven(&status()));
    let refused = cluster.run(
        "operator",
        &["node", "remove", "storage-1", "--dir", cluster.cluster_dir().to_str().unwrap()],
    );
    let refused = String::from_utf8(refused.unwrap().stderr).unwrap();
    assert!(refused.contains("coffer node drain storage-1"), "{refused}");
    operate(&cluster, &["node", "drain", "storage-1", "--wait"]);
    operate(&cluster, &["node", "remove", "storage-1"]);
    // One is lost for good; its share goes to another.
    cluster.kill("storage-2").unwrap();
    operate(&cluster, &["node", "add", "--no-layout"]);
    operate(&cluster, &["node", "drain", "storage-2", "--wait"]);
    operate(&cluster, &["node", "remove", "storage-2"]);

    let now = status();
    assert!(is_proven(&now), "{now:#?}");
    assert_eq!(now.nodes.len(), 3);
    assert!(now.nodes.iter().all(|node| node.reachable), "{now:#?}");
    let worked = runtime.block_on(worker.stop());
    assert_eq!(worked.failures, Vec::<String>::new());
    wait_for("the last third copies", || {
        Ok(status().nodes.iter().all(|node| node.missing_chunks == 0).then_some(()))
    })
    .unwrap();
    // None of the first two has anything to do with it any more.
    let session = runtime.block_on(cluster.log_in("alice", "reader")).unwrap();
    for (file, expected) in &worked.content {
        let found = runtime.block_on(session.read_range(&path(*file), None, 0, u64::MAX)).unwrap();
        assert_eq!(&found, expected, "file {file}");
    }
}

/// Proves S26 of docs/semantics.md.
#[test]
fn a_zone_is_lost_and_nobody_notices() {
    let cluster = Cluster::start().unwrap();
    cluster.coffer("alice", &["register", "alice"]).unwrap();
    for _ in 0..3 {
        operate(&cluster, &["node", "add", "--no-layout"]);
    }
    for (number, zone) in (1..).zip(["a", "a", "b", "b", "c", "c"]) {
        operate(&cluster, &["node", "set", &format!("storage-{number}"), "--zone", zone]);
    }
    operate(&cluster, &["layout", "apply", "--wait"]);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let session = runtime.block_on(cluster.log_in("alice", "worker")).unwrap();
    let watcher = runtime.block_on(cluster.log_in("alice", "watcher")).unwrap();
    let status = || runtime.block_on(watcher.status()).unwrap();
    let worker = runtime.block_on(async { Worker::start(session) });
    let file = cluster.work_dir().unwrap().join("file");
    std::fs::write(&file, content_of(99)).unwrap();
    cluster.coffer("alice", &["put", file.to_str().unwrap(), "/alice/before"]).unwrap();

    cluster.kill("storage-5").unwrap();
    cluster.kill("storage-6").unwrap();
    cluster.coffer("alice", &["put", file.to_str().unwrap(), "/alice/after"]).unwrap();
    wait_for("the members to miss both nodes", || {
        let gone = status().nodes.iter().filter(|node| !node.reachable).count();
        Ok((gone == 2).then_some(()))
    })
    .unwrap();
    for path in ["/alice/before", "/alice/after"] {
        assert_eq!(get(&cluster, path), content_of(99), "{path}");
    }
    let worked = runtime.block_on(worker.stop());
    assert_eq!(worked.failures, Vec::<String>::new());
}

pub(crate) fn get(cluster: &Cluster, path: &str) -> Vec<u8> {
    let target = cluster.work_dir().unwrap().join("got");
    let target = target.to_str().unwrap();
    cluster.coffer("alice", &["get", "--force", path, target]).unwrap();
    std::fs::read(Path::new(target)).unwrap()
}

/// Proves S27 of docs/semantics.md.
#[test]
fn a_member_whose_volume_is_lost_is_replaced() {
    let cluster = Cluster::start().unwrap();
    cluster.coffer("alice", &["register", "alice"]).unwrap();
    let file = cluster.work_dir().unwrap().join("file");
    std::fs::write(&file, content_of(1)).unwrap();
    cluster.coffer("alice", &["put", file.to_str().unwrap(), "/alice/one"]).unwrap();
    let lost = cluster.leader("alice").unwrap();
    cluster.kill(&lost).unwrap();
    std::fs::remove_dir_all(cluster.cluster_dir().join(&lost).join("data")).unwrap();

    operate(&cluster, &["member", "replace", &lost]);
    wait_for("the new member to count", || {
        let status = cluster.status("alice")?;
        let members = status["members"].as_array().unwrap().clone();
        let there = members.iter().all(|it| it["reachable"] == true && it["voter"] == true);
        Ok((members.len() == 3 && there).then_some(()))
    })
    .unwrap();
    cluster.coffer("alice", &["put", file.to_str().unwrap(), "/alice/two"]).unwrap();
    // It counts: with another of the first three gone there is a majority only with it.
    let processes = cluster.processes().unwrap();
    let others: Vec<&String> = processes.iter().filter(|it| it.starts_with("metadata")).collect();
    assert_eq!(others.len(), 3);
    cluster.kill(others[0]).unwrap();
    cluster.coffer("alice", &["put", file.to_str().unwrap(), "/alice/three"]).unwrap();
    for path in ["/alice/one", "/alice/two", "/alice/three"] {
        assert_eq!(get(&cluster, path), content_of(1), "{path}");
    }
    // Two of three are lost: nothing is invented.
    cluster.kill(others[1]).unwrap();
    let refused = cluster.run("alice", &["cat", "/alice/one"]).unwrap();
    assert_eq!(refused.status.code(), Some(9), "{}", String::from_utf8_lossy(&refused.stderr));
    let refused = cluster.run("alice", &["mkdir", "/alice/new"]).unwrap();
    assert_eq!(refused.status.code(), Some(9), "{}", String::from_utf8_lossy(&refused.stderr));
}
