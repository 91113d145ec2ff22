//! What somebody who runs a cluster looks at.

use coffer_chaos::{Cluster, wait_for};
use serde_json::Value;

/// The check of `doctor --json` with this name.
fn check<'a>(told: &'a Value, name: &str) -> &'a Value {
    let checks = told["checks"].as_array().unwrap();
    checks.iter().find(|check| check["check"] == name).unwrap()
}

#[test]
fn a_lost_node_is_seen_and_named() {
    let cluster = Cluster::start().unwrap();
    let coffer = |args: &[&str]| cluster.coffer("alice", args).unwrap();
    // Nobody has to be logged in to look.
    let well = coffer(&["doctor"]);
    assert!(well.contains("nothing is wrong"), "{well}");
    coffer(&["register", "alice"]);
    let told: Value = serde_json::from_str(&coffer(&["doctor", "--json"])).unwrap();
    assert_eq!(told["well"], true, "{told}");
    assert!(check(&told, "session")["detail"].as_str().unwrap().starts_with("alice, until"));
    let page = coffer(&["status"]);
    assert!(page.starts_with("everything is well"), "{page}");
    let status = cluster.status("alice").unwrap();
    assert_eq!(status["well"], true, "{status}");
    assert!(status["nodes"][0]["quarantined_chunks"].is_u64(), "{status}");
    for (args, lines) in [(["node", "list"], 3), (["member", "list"], 3), (["layout", "show"], 4)] {
        let text = coffer(&args);
        assert_eq!(text.lines().count(), lines, "{text}");
        let value: Value = serde_json::from_str(&coffer(&[args[0], args[1], "--json"])).unwrap();
        assert!(value.is_array() || value["nodes"].is_array(), "{value}");
    }
    assert!(coffer(&["repair", "status"]).starts_with("nothing to repair"));
    assert!(coffer(&["scrub", "status"]).starts_with("no damaged chunk"));
    let version = coffer(&["version"]);
    assert_eq!(version.lines().count(), 2, "{version}");
    assert!(version.starts_with("coffer ") && version.contains("\ncluster "), "{version}");

    cluster.kill("storage-2").unwrap();
    let told: Value = wait_for("the node to be missed", || {
        let told = cluster.run("alice", &["doctor", "--json"])?;
        let value: Value = serde_json::from_slice(&told.stdout)?;
        Ok((told.status.code() == Some(15)).then_some(value))
    })
    .unwrap();
    assert_eq!(told["well"], false, "{told}");
    let nodes = check(&told, "storage nodes");
    assert_eq!(nodes["state"], "problem", "{told}");
    let problem = &nodes["problems"][0];
    assert!(problem["what"].as_str().unwrap().contains("does not report"), "{told}");
    assert!(problem["fix"].as_str().unwrap().contains("coffer storage"), "{told}");
    assert_eq!(check(&told, "metadata members")["state"], "ok", "{told}");
    let page = coffer(&["status"]);
    assert!(page.starts_with("1 problem\n! storage node "), "{page}");

    // Without a cluster the first cause is named, and what depends on it is left out.
    let lost = cluster.run("bob", &["doctor", "--json", "--server", "127.0.0.1:9"]).unwrap();
    let told: Value = serde_json::from_slice(&lost.stdout).unwrap();
    assert_eq!(lost.status.code(), Some(15), "{told}");
    assert_eq!(check(&told, "connection")["state"], "problem", "{told}");
    assert_eq!(check(&told, "storage nodes")["state"], "skipped", "{told}");
}
