//! A put that takes longer than storage nodes promise to keep what no commit names.

use coffer_chaos::{Cluster, wait_for};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

const MIB: u64 = 1 << 20;
const CHUNKS: u64 = 384;

/// Proves S35 of docs/semantics.md.
#[test]
fn a_commit_after_its_receipts_have_run_out_sends_nothing_again_that_nodes_still_hold() {
    let settings = [("COFFER_STORAGE__HOLD", "3s"), ("COFFER_STORAGE__REPORT_EVERY", "50ms")];
    let cluster = Cluster::start_set(0, &settings).unwrap();
    cluster.coffer("alice", &["register", "alice"]).unwrap();
    let work = cluster.work_dir().unwrap();
    let (file, got) = (work.join("file"), work.join("got"));
    let content: Vec<u8> = (0..CHUNKS * MIB).map(|at| (at / 7 % 251) as u8).collect();
    std::fs::write(&file, &content).unwrap();
    let args = ["--json", "put", file.to_str().unwrap(), "/alice/slow"];
    let mut put = cluster.spawn_piped("alice", &args).unwrap();
    let pid = Pid::from_raw(i32::try_from(put.id()).unwrap()).unwrap();
    let status = || cluster.status("alice").unwrap();
    let stored = |status: &Value| {
        let nodes = status["nodes"].as_array().unwrap();
        nodes.iter().filter_map(|node| node["chunks"].as_u64()).min()
    };
    wait_for("some chunks to be stored", || Ok((stored(&status()) >= Some(4)).then_some(())))
        .unwrap();
    kill_process(pid, Signal::STOP).unwrap();
    assert!(put.try_wait().unwrap().is_none(), "it was too fast to be stopped on its way");
    let since = status()["log_time_ms"].as_u64();
    let mut turn = 0;
    wait_for("the promises to have run out", || {
        // Log time moves where somebody works.
        turn += 1;
        cluster.coffer("alice", &["mkdir", &format!("/alice/turn-{turn}")])?;
        Ok((status()["log_time_ms"].as_u64() > since.map(|since| since + 5000)).then_some(()))
    })
    .unwrap();
    kill_process(pid, Signal::CONT).unwrap();
    let output = put.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["chunks_sent"], CHUNKS, "{report}");
    cluster.coffer("alice", &["get", "/alice/slow", got.to_str().unwrap()]).unwrap();
    assert!(std::fs::read(got).unwrap() == content);
}
