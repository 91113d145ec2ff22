//! Clocks that are an hour off.

use std::time::{SystemTime, UNIX_EPOCH};

use coffer_chaos::faults::{Machine, Settings};
use coffer_chaos::{Build, Cluster};

use crate::faults::{check_all, lead, progress, with_writers};

const HOUR_MS: i64 = 3_600_000;
/// Log time follows the clocks of machines that may be busy.
const NEARLY_MS: u64 = 60_000;

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    u64::try_from(since.as_millis()).unwrap()
}

/// Goal: whoever's clock is an hour off is told that it is the clock, by how much, and what to do; nothing
/// happens. Method: reading and writing with an open session, and a login, on a machine an hour ahead and
/// on one an hour behind; with the clock set right the same session goes on.
/// Proves S48 of docs/semantics.md.
#[test]
fn a_client_an_hour_off_is_told_so() {
    let machine = Machine::new().unwrap();
    let cluster = Cluster::start().unwrap();
    cluster.coffer("alice", &["register", "alice"]).unwrap();
    let file = cluster.work_dir().unwrap().join("file");
    std::fs::write(&file, vec![7u8; 10_000]).unwrap();
    let file = file.to_str().unwrap();
    cluster.coffer("alice", &["put", file, "/alice/before"]).unwrap();
    for (off_ms, direction) in [(HOUR_MS, "ahead of"), (-HOUR_MS, "behind")] {
        let commands: [&[&str]; 4] = [
            &["ls", "/alice"],
            &["cat", "/alice/before"],
            &["put", file, "/alice/during"],
            &["rm", "/alice/before"],
        ];
        for args in commands {
            let output = cluster.run_in("alice", args, &machine.clock(off_ms)).unwrap();
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(13), "{args:?}: {said}");
            // The call took a while, and the minutes are rounded up.
            let told = (58..=62).any(|minutes| {
                said.contains(&format!("this machine's clock is {minutes} minutes {direction}"))
            });
            assert!(told && said.contains("set it right"), "{args:?}: {said}");
        }
        assert_eq!(cluster.coffer("alice", &["ls", "/alice"]).unwrap(), "before\n");
    }
}

/// One member, which leads, has a clock that is off: nobody's call fails for it, log time stays right, and what
/// hangs on it happens neither early nor late.
fn a_member_is_off(off_ms: i64) {
    let machine = Machine::new().unwrap();
    let cluster = Cluster::start().unwrap();
    cluster.coffer("alice", &["register", "alice"]).unwrap();
    let dir = cluster.cluster_dir();
    let retention = ["order", "retention", "30m", "--dir", dir.to_str().unwrap()];
    cluster.coffer("operator", &retention).unwrap();
    let file = cluster.work_dir().unwrap().join("file");
    std::fs::write(&file, vec![7u8; 10_000]).unwrap();
    let remote = "/alice/removed";
    cluster.coffer("alice", &["put", file.to_str().unwrap(), remote]).unwrap();
    cluster.coffer("alice", &["rm", remote]).unwrap();
    let log_time = || cluster.status("alice").unwrap()["log_time_ms"].as_u64().unwrap();
    let before = log_time();

    cluster.stop_process("metadata-2").unwrap();
    let settings = |name: &str| match name {
        "metadata-2" => machine.clock(off_ms),
        _ => Settings::new(),
    };
    cluster.start_process_in("metadata-2", Build::This, &settings("metadata-2")).unwrap();
    cluster.wait_until_whole("alice").unwrap();
    let mut files = Vec::new();
    for leads in [false, true] {
        lead(&cluster, "metadata-2", leads, &settings);
        files.extend(with_writers(&cluster, &format!("led-{leads}"), |acknowledged| {
            progress(acknowledged, 12);
        }));
        let now = log_time();
        assert!(now >= before && now <= now_ms() + NEARLY_MS, "log time is {now}");
        // It has gone on, too: what was done took its time from the clocks that are right.
        assert!(now + NEARLY_MS >= now_ms(), "log time stays behind: {now}");
    }
    let log = cluster.log("metadata-2").unwrap();
    assert!(log.contains("this member's clock is not that of the other members"), "{log}");
    // Half an hour of retention is not over, and the receipts of what was put were good.
    cluster.coffer("alice", &["restore", remote]).unwrap();
    cluster.coffer("alice", &["rm", remote]).unwrap();
    check_all(&cluster, &files);
}

/// Goal: one member whose clock is an hour ahead, leading or not, moves no log time, purges nothing early, and
/// refuses nobody. Method: a file is removed with half an hour's retention, people write, and it is restored.
/// Proves S48 of docs/semantics.md.
#[test]
fn a_member_an_hour_ahead_changes_nothing() {
    a_member_is_off(HOUR_MS);
}

/// Goal and method are those of the test before, with a clock an hour behind.
/// Proves S48 of docs/semantics.md.
#[test]
fn a_member_an_hour_behind_changes_nothing() {
    a_member_is_off(-HOUR_MS);
}
