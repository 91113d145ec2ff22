//! Lost volumes are replaced by the standing policy, while people work and nobody administers.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use coffer_chaos::{Cluster, coffer_binary, wait_for};
use coffer_client::Session;
use coffer_metadata_core::state::CORE_VERSION_REPLACEMENT;
use coffer_service::one_box::OneBoxCa;
use coffer_service::peer::PeerId;
use rustix::process::Signal;
use serde_json::Value;
use tokio::runtime::Runtime;

use crate::moving::{Worked, Worker, content_of, get, is_proven, operate, path};

/// How long a volume has to be silent in these tests.
const SILENT: &str = "5s";

/// A cluster with a policy, whose processes are started again when they die.
fn with_policy() -> Cluster {
    let cluster = Cluster::start_set(1, &[("COFFER_STORAGE__REPORT_EVERY", "500ms")]).unwrap();
    cluster.coffer("alice", &["register", "alice"]).unwrap();
    operate(&cluster, &["join", "policy", "--silent", SILENT]);
    cluster
}

/// What is left of a process whose volume was taken away.
struct Old {
    folder: PathBuf,
    id: String,
}

/// Takes the volume of a process away while it runs, and ends it. Stopped, it does not notice.
fn lose(cluster: &Cluster, name: &str) -> Old {
    let id = id_of(cluster, name);
    let (there, folder) =
        (cluster.cluster_dir().join(name), cluster.work_dir().unwrap().join(name));
    fs::create_dir_all(folder.join("tls")).unwrap();
    for file in fs::read_dir(there.join("tls")).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), folder.join("tls").join(file.file_name())).unwrap();
    }
    cluster.signal(name, Signal::STOP).unwrap();
    fs::rename(there.join("data"), folder.join("data")).unwrap();
    fs::copy(there.join("config.toml"), folder.join("config.toml")).unwrap();
    cluster.kill(name).unwrap();
    Old { folder, id }
}

fn id_of(cluster: &Cluster, name: &str) -> String {
    let founded = fs::read(cluster.cluster_dir().join("cluster.json")).unwrap();
    let founded: Value = serde_json::from_slice(&founded).unwrap();
    let processes = founded["processes"].as_array().unwrap();
    let process = processes.iter().find(|process| process["name"] == name).unwrap();
    process["id"].as_str().unwrap().to_owned()
}

/// A server that `coffer dev` knows nothing of. It ends with the test.
struct Stray(Child);

impl Stray {
    /// Starts one in a folder like those of `coffer dev`, at other ports and with a join token.
    fn start(cluster: &Cluster, role: &str, folder: &Path, token: &Path) -> Self {
        let name = folder.file_name().unwrap().to_str().unwrap();
        let text = fs::read_to_string(folder.join("config.toml")).unwrap();
        let there = cluster.cluster_dir().join(name);
        let text = text.replace(there.to_str().unwrap(), folder.to_str().unwrap());
        let token = format!("join_token_file = {:?}\n", token.to_str().unwrap());
        let kept = text.lines().filter(|line| {
            !["join_token_file", "listen", "health_listen"].iter().any(|key| line.starts_with(key))
        });
        let lines: Vec<&str> =
            [token.trim(), "listen = \"127.0.0.1:0\""].into_iter().chain(kept).collect();
        fs::write(folder.join("stray.toml"), lines.join("\n")).unwrap();
        let log = fs::File::create(folder.join("log")).unwrap();
        let child = Command::new(coffer_binary().unwrap())
            .args([role, "--config"])
            .arg(folder.join("stray.toml"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn();
        Self(child.unwrap())
    }
}

impl Drop for Stray {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The events in the members' audit logs that tell of a refusal for this reason to this process.
fn refused(cluster: &Cluster, reason: &str, id: &str) -> Vec<Value> {
    let members = (1..=3).map(|number| format!("metadata-{number}"));
    let logs = members.map(|name| cluster.cluster_dir().join(name).join("audit.jsonl"));
    let text: String = logs.filter_map(|log| fs::read_to_string(log).ok()).collect();
    // The last line may be half written.
    let events = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    events
        .filter(|event| {
            event["reason"] == reason
                && event["process"].as_str().is_some_and(|process| process.contains(id))
        })
        .collect()
}

/// The policy's join token, and one that no policy knows.
fn tokens(cluster: &Cluster) -> (PathBuf, PathBuf) {
    let other = cluster.work_dir().unwrap().join("other-token");
    let token = coffer_join::token::JoinToken::random().unwrap();
    fs::write(&other, &*token.to_text()).unwrap();
    (cluster.cluster_dir().join("secret/join-token"), other)
}

/// A new volume with a certificate, and everything else as a process of the cluster has it.
fn newcomer(cluster: &Cluster, role: &str, like: &str) -> (PathBuf, String) {
    let folder = cluster.work_dir().unwrap().join("newcomer").join(like);
    fs::create_dir_all(&folder).unwrap();
    let data = folder.join("data");
    let volume =
        cluster.coffer("operator", &["volume", "--role", role, data.to_str().unwrap(), "--json"]);
    let volume: Value = serde_json::from_str(&volume.unwrap()).unwrap();
    let id = volume["id"].as_str().unwrap().to_owned();
    let peer: PeerId = coffer_service::identity::ProcessIdentity::recorded(&data).unwrap();
    let authority = OneBoxCa::load_or_create(&cluster.cluster_dir().join("secret")).unwrap();
    authority.issue_into(&folder.join("tls"), &[like], &peer).unwrap();
    let config = cluster.cluster_dir().join(like).join("config.toml");
    fs::copy(config, folder.join("config.toml")).unwrap();
    (folder, id)
}

struct Scene {
    cluster: Cluster,
    runtime: Runtime,
    watcher: Session,
    worker: Worker,
}

impl Scene {
    fn set() -> Self {
        let cluster = with_policy();
        // Replacements came with this version, and all members have to be there for it to come into force.
        wait_for("the version of the state machine that has replacements", || {
            let version = cluster.status("alice")?["core_version"].as_u64();
            Ok((version >= Some(u64::from(CORE_VERSION_REPLACEMENT))).then_some(()))
        })
        .unwrap();
        let runtime = Runtime::new().unwrap();
        let session = runtime.block_on(cluster.log_in("alice", "worker")).unwrap();
        let watcher = runtime.block_on(cluster.log_in("alice", "watcher")).unwrap();
        let worker = runtime.block_on(async { Worker::start(session) });
        let file = cluster.work_dir().unwrap().join("file");
        fs::write(&file, content_of(99)).unwrap();
        cluster.coffer("alice", &["put", file.to_str().unwrap(), "/alice/before"]).unwrap();
        Self { cluster, runtime, watcher, worker }
    }

    fn status(&self) -> coffer_proto::v1::GetStatusResponse {
        self.runtime.block_on(self.watcher.status()).unwrap()
    }

    /// Ends the work: nothing failed, and all of it reads back.
    fn check(self) {
        let Self { cluster, runtime, worker, .. } = self;
        let Worked { failures, content } = runtime.block_on(worker.stop());
        assert_eq!(failures, Vec::<String>::new());
        let session = runtime.block_on(cluster.log_in("alice", "reader")).unwrap();
        for (file, expected) in &content {
            let found = runtime.block_on(session.read_range(&path(*file), None, 0, u64::MAX));
            assert_eq!(&found.unwrap(), expected, "file {file}");
        }
        assert_eq!(get(&cluster, "/alice/before"), content_of(99));
    }
}

/// Proves S40 of docs/semantics.md.
/// Proves S42 of docs/semantics.md.
/// Proves S43 of docs/semantics.md.
///
/// Goal: a storage node that comes back without its volume has its place and share again, and no
/// administrator did anything. Method: the volume is taken away under load; `coffer dev` starts the process
/// again on a new one. Then the old one is brought back, and somebody tries with a token of their own.
#[test]
fn a_lost_node_is_replaced_under_load() {
    let scene = Scene::set();
    let cluster = &scene.cluster;
    let (token, other) = tokens(cluster);

    // Whoever does not have the token does not get in, however long the others are silent.
    let (folder, id) = newcomer(cluster, "storage", "storage-2");
    let stranger = Stray::start(cluster, "storage", &folder, &other);
    wait_for("the stranger to be refused", || {
        Ok((!refused(cluster, "WRONG_TOKEN", &id).is_empty()).then_some(()))
    })
    .unwrap();

    let old = lose(cluster, "storage-2");
    wait_for("the new volume to have proven the share of the old one", || {
        let status = scene.status();
        let is_new = status.nodes.iter().all(|node| node.id != old.id);
        Ok((is_new && is_proven(&status)).then_some(()))
    })
    .unwrap();
    let status = scene.status();
    assert_eq!(status.nodes.len(), 3);
    let new = id_of(cluster, "storage-2");
    let node = status.nodes.iter().find(|node| node.id == new).unwrap();
    assert!(node.in_layout && node.chunks > 0, "{node:#?}");
    assert!(status.nodes.iter().all(|node| node.id != id), "the stranger got in");
    drop(stranger);
    let allowed = fs::read_to_string(cluster.cluster_dir().join("storage-2/log")).unwrap();
    assert!(allowed.contains("this process has the place of a lost volume"), "{allowed}");

    let _old = Stray::start(cluster, "storage", &old.folder, &token);
    wait_for("the old volume to be refused", || {
        Ok((!refused(cluster, "NOT_IN_DESCRIPTOR", &old.id).is_empty()).then_some(()))
    })
    .unwrap();
    assert!(scene.status().nodes.iter().all(|node| node.id != old.id));
    scene.check();
}

/// Proves S41 of docs/semantics.md.
///
/// Goal: a metadata member that led and lost its volume is replaced, gets the state, and counts; its old
/// volume is of no use. Method: as above, and then another member is stopped, so that there is a majority
/// only with the new one.
#[test]
fn a_lost_member_that_led_is_replaced_under_load() {
    let scene = Scene::set();
    let cluster = &scene.cluster;
    let (token, _) = tokens(cluster);
    let lost = cluster.leader("alice").unwrap();
    let old = lose(cluster, &lost);
    wait_for("the new member to count", || {
        let Ok(status) = scene.runtime.block_on(scene.watcher.status()) else { return Ok(None) };
        let members = &status.members;
        let there = members.iter().all(|it| it.reachable && it.voter && it.id != old.id);
        Ok((members.len() == 3 && there).then_some(()))
    })
    .unwrap();

    let mut back = Stray::start(cluster, "metadata", &old.folder, &token);
    let ended = wait_for("the old member to end", || Ok(back.0.try_wait()?)).unwrap();
    assert!(!ended.success());

    let processes = cluster.processes().unwrap();
    let other = processes.iter().find(|name| name.starts_with("metadata") && **name != lost);
    let other = other.unwrap();
    cluster.signal(other, Signal::STOP).unwrap();
    let file = cluster.work_dir().unwrap().join("file");
    cluster.coffer("alice", &["put", file.to_str().unwrap(), "/alice/after"]).unwrap();
    cluster.signal(other, Signal::CONT).unwrap();
    assert_eq!(get(cluster, "/alice/after"), content_of(99));
    scene.check();
}
