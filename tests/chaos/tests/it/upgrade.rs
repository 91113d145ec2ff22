//! One build takes the place of another, process by process, while people work.

use std::fs;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use coffer_chaos::{Build, Cluster, wait_for};
use coffer_metadata_core::state::CORE_VERSION_MAX;

/// Clients that put, rename and read files until told to stop, each always of one build: what is there at
/// the end. None of their calls may fail.
fn with_clients(
    cluster: &Cluster,
    prefix: &str,
    during: impl FnOnce(&AtomicUsize),
) -> Vec<(String, String)> {
    let stop = AtomicBool::new(false);
    let done = AtomicUsize::new(0);
    let work = cluster.work_dir().unwrap();
    thread::scope(|scope| {
        let clients: Vec<_> = [("old", Build::Previous), ("new", Build::This)]
            .into_iter()
            .map(|(word, build)| {
                let (stop, done, local) = (&stop, &done, work.join(word));
                scope.spawn(move || {
                    let mut files = Vec::new();
                    for number in 0.. {
                        if stop.load(Ordering::Relaxed) {
                            break;
                        }
                        let content = format!("{prefix} {word} {number} ").repeat(800);
                        fs::write(&local, &content).unwrap();
                        let first = format!("/alice/{prefix}-{word}-{number}-first");
                        let path = format!("/alice/{prefix}-{word}-{number}");
                        let coffer = |args: &[&str]| {
                            cluster.coffer_of(build, "alice", args).unwrap_or_else(|error| {
                                stop.store(true, Ordering::Relaxed);
                                panic!("the {word} client: {error}");
                            })
                        };
                        coffer(&["put", local.to_str().unwrap(), &first]);
                        coffer(&["mv", &first, &path]);
                        assert!(coffer(&["cat", &path]) == content, "{path}");
                        files.push((path, content));
                        done.fetch_add(1, Ordering::Relaxed);
                    }
                    files
                })
            })
            .collect();
        during(&done);
        stop.store(true, Ordering::Relaxed);
        clients.into_iter().flat_map(|client| client.join().unwrap()).collect()
    })
}

/// Waits until both clients have gone on for a while.
fn progress(done: &AtomicUsize) {
    let wanted = done.load(Ordering::Relaxed) + 4;
    wait_for("clients to go on", || Ok((done.load(Ordering::Relaxed) >= wanted).then_some(())))
        .unwrap();
}

fn core_version(cluster: &Cluster) -> u64 {
    cluster.status("alice").unwrap()["core_version"].as_u64().unwrap()
}

/// Everything is there, byte for byte, for clients of both builds.
fn check_all(cluster: &Cluster, files: &[(String, String)]) {
    for (word, build) in [("old", Build::Previous), ("new", Build::This)] {
        let back = cluster.work_dir().unwrap().join(format!("back-{word}"));
        cluster
            .coffer_of(build, "alice", &["get", "-r", "/alice", back.to_str().unwrap()])
            .unwrap();
        assert_eq!(fs::read_dir(&back).unwrap().count(), files.len());
        for (path, content) in files {
            let local = back.join(path.strip_prefix("/alice/").unwrap());
            assert!(&fs::read_to_string(local).unwrap() == content, "{path} by the {word} client");
        }
    }
}

/// Takes every process from the previous build to this one, in this order, under load.
fn roll(order: &[&str]) {
    let mut cluster = Cluster::start_of(Build::Previous).unwrap();
    cluster.coffer("alice", &["register", "alice"]).unwrap();
    let mut files = with_clients(&cluster, "before", progress);
    let founded_with = core_version(&cluster);
    files.extend(with_clients(&cluster, "during", |done| {
        let mut old_members = order.iter().filter(|name| name.starts_with("metadata")).count();
        let replace = |name: &str, build| {
            cluster.stop_process(name).unwrap();
            cluster.start_process(name, build).unwrap();
            cluster.wait_until_whole("alice").unwrap();
            progress(done);
        };
        for (place, name) in order.iter().enumerate() {
            replace(name, Build::This);
            if place == 0 {
                // Whoever does not like what he sees goes back.
                replace(name, Build::Previous);
                replace(name, Build::This);
            }
            old_members -= usize::from(name.starts_with("metadata"));
            if old_members > 0 {
                assert_eq!(core_version(&cluster), founded_with, "with {name} replaced");
            }
        }
        wait_for("the state machine's version to be that of the new build", || {
            Ok((core_version(&cluster) == u64::from(CORE_VERSION_MAX)).then_some(()))
        })
        .unwrap();
        progress(done);
    }));
    check_all(&cluster, &files);

    // And all of it once more, from the disks alone.
    cluster.stop().unwrap();
    cluster.set_build(Build::This);
    cluster.start_again().unwrap();
    let work = cluster.work_dir().unwrap();
    for word in ["old", "new"] {
        fs::remove_dir_all(work.join(format!("back-{word}"))).unwrap();
    }
    check_all(&cluster, &files);
}

/// Goal: a cluster goes from one build to the next without a call that fails, whatever runs where meanwhile.
/// Method: members first, then nodes, the gateway last, each stopped and started while clients of both
/// builds put, rename and read; one process goes back in between; every byte is compared.
/// Proves S47 of docs/semantics.md.
#[test]
fn a_cluster_is_upgraded_under_load_members_first() {
    roll(&[
        "metadata-1",
        "metadata-2",
        "metadata-3",
        "storage-1",
        "storage-2",
        "storage-3",
        "gateway",
    ]);
}

/// Goal and method are those of the test before, in the other order.
/// Proves S47 of docs/semantics.md.
#[test]
fn a_cluster_is_upgraded_under_load_gateway_first() {
    roll(&[
        "gateway",
        "storage-3",
        "storage-2",
        "storage-1",
        "metadata-3",
        "metadata-2",
        "metadata-1",
    ]);
}
