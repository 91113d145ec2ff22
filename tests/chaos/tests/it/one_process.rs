//! `coffer dev` as it comes: all parts in one process.

use std::fs;

use coffer_chaos::{Cluster, wait_for};

/// Goal: a cluster in one process is a whole cluster, and its folder is one that separate processes take
/// up, and the other way round. Method: a file is put and read back, the cluster is stopped and started
/// again, in one process and then in many, and the file is read back each time.
#[test]
fn a_cluster_in_one_process_keeps_everything() {
    let mut cluster = Cluster::start_in_one_process().unwrap();
    let work = cluster.work_dir().unwrap();
    let (file, copy) = (work.join("file"), work.join("copy"));
    let content: Vec<u8> = (0..5_000_000_u32).map(|at| (at % 251) as u8).collect();
    fs::write(&file, &content).unwrap();
    cluster.coffer("alice", &["register", "alice"]).unwrap();
    cluster.coffer("alice", &["put", file.to_str().unwrap(), "/alice/file"]).unwrap();
    for name in cluster.processes().unwrap() {
        assert!(cluster.pid(&name).is_err(), "{name} has a process of its own");
        let log = cluster.cluster_dir().join(&name).join("log");
        assert!(fs::metadata(&log).unwrap().len() > 0, "{name} logs where it always does");
    }
    for processes in [false, true, false] {
        cluster.stop().unwrap();
        cluster.in_processes(processes);
        cluster.start_again().unwrap();
        let _ = fs::remove_file(&copy);
        // The session may have ended with the processes that knew it.
        cluster.coffer("alice", &["login", "alice"]).unwrap();
        cluster.coffer("alice", &["get", "/alice/file", copy.to_str().unwrap()]).unwrap();
        assert!(fs::read(&copy).unwrap() == content);
    }
    wait_for("everything to be well", || {
        Ok(cluster.coffer("alice", &["status"])?.starts_with("everything is well").then_some(()))
    })
    .unwrap();
}

/// Goal: who cannot keep a session is told before the name is taken. Method: a registration with a place for
/// sessions on a disk, then one as it should be, of the same name.
#[test]
fn nobody_is_registered_who_cannot_keep_a_session() {
    let cluster = Cluster::start_in_one_process().unwrap();
    let on_disk = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let mut command = cluster.command("alice", &["register", "alice"]).unwrap();
    let refused = command.env("XDG_RUNTIME_DIR", on_disk.path()).output().unwrap();
    assert!(!refused.status.success());
    let told = String::from_utf8(refused.stderr).unwrap();
    assert!(told.contains("memory file system"), "{told}");
    cluster.coffer("alice", &["register", "alice"]).unwrap();
}
