//! Processes are killed while people work.

use std::fs;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use coffer_chaos::faults::{Failure, Machine, Settings};
use coffer_chaos::{Build, Cluster, wait_for};
use rustix::process::Signal;

/// Writers that each put numbered files, of names that begin with this word, until told to stop, and remember
/// which were acknowledged.
pub(crate) fn with_writers(
    cluster: &Cluster,
    word: &str,
    during: impl FnOnce(&AtomicUsize),
) -> Vec<(String, String)> {
    let stop = AtomicBool::new(false);
    let acknowledged = AtomicUsize::new(0);
    let work = cluster.work_dir().unwrap();
    thread::scope(|scope| {
        let writers: Vec<_> = (0..4)
            .map(|writer| {
                let (stop, acknowledged, work) = (&stop, &acknowledged, &work);
                scope.spawn(move || {
                    let mut done = Vec::new();
                    for number in 0.. {
                        if stop.load(Ordering::Relaxed) {
                            break;
                        }
                        let content = format!("writer {writer} file {number} ").repeat(500);
                        let local = work.join(format!("w{writer}"));
                        fs::write(&local, &content).unwrap();
                        let remote = format!("/alice/{word}-w{writer}-{number}");
                        // No operation may fail: the client rides out what happens.
                        cluster
                            .coffer("alice", &["put", local.to_str().unwrap(), &remote])
                            .unwrap();
                        done.push((remote, content));
                        acknowledged.fetch_add(1, Ordering::Relaxed);
                    }
                    done
                })
            })
            .collect();
        during(&acknowledged);
        stop.store(true, Ordering::Relaxed);
        writers.into_iter().flat_map(|writer| writer.join().unwrap()).collect()
    })
}

/// Waits until `more` further files were acknowledged.
pub(crate) fn progress(acknowledged: &AtomicUsize, more: usize) {
    let wanted = acknowledged.load(Ordering::Relaxed) + more;
    wait_for("writers to go on", || {
        Ok((acknowledged.load(Ordering::Relaxed) >= wanted).then_some(()))
    })
    .unwrap();
}

pub(crate) fn check_all(cluster: &Cluster, files: &[(String, String)]) {
    assert!(!files.is_empty());
    let back = cluster.work_dir().unwrap().join("back");
    let _ = fs::remove_dir_all(&back);
    cluster.coffer("alice", &["get", "-r", "/alice", back.to_str().unwrap()]).unwrap();
    for (remote, content) in files {
        let local = back.join(remote.strip_prefix("/alice/").unwrap());
        assert_eq!(&fs::read_to_string(&local).unwrap(), content, "{remote}");
    }
}

/// Proves S19, S23 of docs/semantics.md.
#[test]
fn the_leader_is_killed_under_load_and_nothing_acknowledged_is_lost() {
    let cluster = Cluster::start().unwrap();
    cluster.coffer("alice", &["register", "alice"]).unwrap();
    let files = with_writers(&cluster, "file", |acknowledged| {
        progress(acknowledged, 8);
        let leader = cluster.leader("alice").unwrap();
        cluster.kill(&leader).unwrap();
        progress(acknowledged, 16);
    });
    check_all(&cluster, &files);
}

/// Proves S18, S21 of docs/semantics.md.
#[test]
fn a_storage_node_is_killed_and_catches_up_when_it_returns() {
    let mut cluster = Cluster::start().unwrap();
    cluster.coffer("alice", &["register", "alice"]).unwrap();
    let files = with_writers(&cluster, "file", |acknowledged| {
        progress(acknowledged, 8);
        cluster.kill("storage-1").unwrap();
        progress(acknowledged, 16);
    });
    check_all(&cluster, &files);

    cluster.kill_everything().unwrap();
    cluster.start_again().unwrap();
    wait_for("storage-1 to have all chunks", || {
        let status = cluster.status("alice")?;
        let nodes = status["nodes"].as_array().cloned().unwrap_or_default();
        let complete = nodes.len() == 3
            && nodes.iter().all(|node| {
                node["reachable"] == true
                    && node["missing_chunks"] == 0
                    && node["chunks"] == nodes[0]["chunks"]
            })
            && nodes[0]["chunks"].as_u64() >= Some(files.len() as u64);
        Ok(complete.then_some(()))
    })
    .unwrap();
    // The two others die; what is left must be enough for every byte.
    cluster.kill("storage-2").unwrap();
    cluster.kill("storage-3").unwrap();
    check_all(&cluster, &files);
}

/// Proves S18, S19 of docs/semantics.md.
#[test]
fn everything_is_killed_at_once_and_everything_acknowledged_is_there() {
    let mut cluster = Cluster::start().unwrap();
    cluster.coffer("alice", &["register", "alice"]).unwrap();
    let files = with_writers(&cluster, "file", |acknowledged| progress(acknowledged, 30));
    cluster.kill_everything().unwrap();
    cluster.start_again().unwrap();
    check_all(&cluster, &files);
}

/// Proves S23 of docs/semantics.md.
#[test]
fn a_storage_node_that_hangs_holds_nobody_up() {
    let cluster = Cluster::start().unwrap();
    cluster.coffer("alice", &["register", "alice"]).unwrap();
    let files = with_writers(&cluster, "file", |acknowledged| {
        progress(acknowledged, 4);
        cluster.signal("storage-3", Signal::STOP).unwrap();
        progress(acknowledged, 20);
        cluster.signal("storage-3", Signal::CONT).unwrap();
    });
    check_all(&cluster, &files);
}

/// Proves S4 of docs/semantics.md.
#[test]
fn an_interrupted_put_goes_on_where_it_stopped() {
    let cluster = Cluster::start_set(0, &[("COFFER_STORAGE__REPORT_EVERY", "50ms")]).unwrap();
    let work = cluster.work_dir().unwrap();
    cluster.coffer("alice", &["register", "alice"]).unwrap();
    let file = work.join("file");
    let content: Vec<u8> = (0u32..24 << 20).map(|at| (at >> 10) as u8 ^ (at as u8)).collect();
    let content: Vec<u8> =
        content.iter().zip(0u32..).map(|(byte, at)| byte ^ (at >> 16) as u8).collect();
    fs::write(&file, &content).unwrap();
    let file = file.to_str().unwrap();

    let mut child = cluster.spawn("alice", &["put", file, "/alice/file"]).unwrap();
    let chunks_stored = || -> u64 {
        let status = cluster.status("alice").unwrap();
        let nodes = status["nodes"].as_array().cloned().unwrap_or_default();
        nodes.iter().filter_map(|node| node["chunks"].as_u64()).sum()
    };
    wait_for("some of the file to be stored, or all of it", || {
        Ok((chunks_stored() >= 6 || child.try_wait()?.is_some()).then_some(()))
    })
    .unwrap();
    // Who was done already cannot be killed.
    let _ = child.kill();
    let interrupted = !child.wait().unwrap().success();
    let report = cluster.coffer("alice", &["put", file, "/alice/file", "--json"]).unwrap();
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    let (sent, skipped) =
        (report["chunks_sent"].as_u64().unwrap(), report["chunks_skipped"].as_u64().unwrap());
    assert_eq!(sent + skipped, 24, "{report}");
    if interrupted {
        assert!(skipped > 0, "what was durable was sent again: {report}");
    }
    cluster.coffer("alice", &["get", "/alice/file", work.join("back").to_str().unwrap()]).unwrap();
    assert_eq!(fs::read(work.join("back")).unwrap(), content);
    // A machine that was done before it was interrupted has put the file twice.
    let puts = if interrupted { 1 } else { 2 };
    assert!(chunks_stored() <= puts * 3 * 24);
}

/// Each one is won by the wanted member every second time or so.
const ELECTIONS_MAX: usize = 30;

/// Has this member lead, or one of the others: who leads and is not wanted to is stopped, and started again.
pub(crate) fn lead(
    cluster: &Cluster,
    member: &str,
    leads: bool,
    settings: &dyn Fn(&str) -> Settings,
) {
    for _ in 0..ELECTIONS_MAX {
        let leader = cluster.leader("alice").unwrap();
        if (leader == member) == leads {
            return;
        }
        cluster.stop_process(&leader).unwrap();
        cluster.start_process_in(&leader, Build::This, &settings(&leader)).unwrap();
        cluster.wait_until_whole("alice").unwrap();
    }
    panic!("after {ELECTIONS_MAX} elections it is still another one's turn");
}

/// Takes a member's volume away while people write, and gives it back: the member says what failed and ends,
/// nobody's call fails, and afterwards it counts again.
fn a_members_volume_fails(how: Failure, leads: bool, says: &str) {
    let machine = Machine::new().unwrap();
    machine.fail(None).unwrap();
    let mut cluster = Cluster::start().unwrap();
    cluster.coffer("alice", &["register", "alice"]).unwrap();
    // The folder's true name: that is what the system knows the open files by.
    let folder = |name: &str| cluster.cluster_dir().canonicalize().unwrap().join(name).join("data");
    // Only one of them is on the machine that fails.
    let settings = |name: &str| match name {
        "metadata-2" => machine.volume(&folder(name)),
        _ => Settings::new(),
    };
    cluster.stop_process("metadata-2").unwrap();
    cluster.start_process_in("metadata-2", Build::This, &settings("metadata-2")).unwrap();
    cluster.wait_until_whole("alice").unwrap();
    lead(&cluster, "metadata-2", leads, &settings);

    let files = with_writers(&cluster, "file", |acknowledged| {
        progress(acknowledged, 8);
        machine.fail(Some(how)).unwrap();
        let ended = cluster.wait_process("metadata-2").unwrap();
        assert!(!ended.success(), "{ended}");
        let log = cluster.log("metadata-2").unwrap();
        let last: Vec<&str> = log.lines().rev().take(20).collect();
        let told = last.iter().any(|line| line.contains("poisoned") && line.contains(says));
        assert!(told, "it does not say what failed: {last:#?}");
        progress(acknowledged, 16);
        // With nothing mended it does not come back, and harms nobody by trying.
        cluster.start_process_in("metadata-2", Build::This, &settings("metadata-2")).unwrap();
        assert!(!cluster.wait_process("metadata-2").unwrap().success());
        progress(acknowledged, 8);
    });
    check_all(&cluster, &files);

    machine.fail(None).unwrap();
    cluster.start_process("metadata-2", Build::This).unwrap();
    cluster.wait_until_whole("alice").unwrap();
    // It has caught up and counts: with another one gone there is a majority only with it.
    cluster.kill("metadata-1").unwrap();
    let more = with_writers(&cluster, "more", |acknowledged| progress(acknowledged, 8));
    check_all(&cluster, &more);
    cluster.kill_everything().unwrap();
    cluster.start_again().unwrap();
    check_all(&cluster, &files);
}

/// Goal: a member whose volume is full steps aside, loses nothing, and comes back when there is room. Method: one
/// that follows gets no more room while people write; it is started again without room, and then with it.
/// Proves S49 of docs/semantics.md.
#[test]
fn a_member_whose_volume_is_full_steps_aside() {
    a_members_volume_fails(Failure::Full, false, "No space left on device");
}

/// Goal: a leader whose disk fails a sync acknowledges nothing on the strength of it, and lets others lead.
/// Method: every sync of the leader's volume fails while people write; all that was acknowledged is there after
/// everything was killed at once.
/// Proves S49 of docs/semantics.md.
#[test]
fn a_leader_whose_sync_fails_steps_aside() {
    a_members_volume_fails(Failure::Sync, true, "Input/output error");
}
