//! A put from a pipe that gives nothing for longer than storage nodes promise to keep what no commit names.

use std::io::Write;

use coffer_chaos::{Cluster, wait_for};
use serde_json::Value;

const MIB: usize = 1 << 20;

/// Goal: nothing that was stored is given up while the pipe is silent, and nothing is sent twice. Method: two
/// slots come, then none until log time has gone on by several times what nodes promise, with others at
/// work; then the last one comes.
///
/// Proves S51 of docs/semantics.md.
#[test]
fn a_pipe_that_is_silent_for_longer_than_promises_last_becomes_a_file() {
    let settings = [("COFFER_STORAGE__HOLD", "6s"), ("COFFER_STORAGE__REPORT_EVERY", "50ms")];
    let cluster = Cluster::start_set(0, &settings).unwrap();
    cluster.coffer("alice", &["register", "alice"]).unwrap();
    let got = cluster.work_dir().unwrap().join("got");
    let content: Vec<u8> = (0..3 * MIB).map(|at| (at / 7 % 251) as u8).collect();
    let mut put = cluster.spawn_fed("alice", &["--json", "put", "-", "/alice/slow"]).unwrap();
    let mut pipe = put.stdin.take().unwrap();
    pipe.write_all(&content[..2 * MIB]).unwrap();
    let status = || cluster.status("alice").unwrap();
    // Each on two nodes; the third copy of what no commit names may be missing.
    wait_for("two chunks to be stored", || {
        if let Some(ended) = put.try_wait()? {
            anyhow::bail!("the put has ended with {ended}");
        }
        let status = status();
        let nodes = status["nodes"].as_array().unwrap();
        let copies: u64 = nodes.iter().filter_map(|node| node["chunks"].as_u64()).sum();
        Ok((copies >= 4).then_some(()))
    })
    .unwrap_or_else(|error| panic!("{error}: {:#}", status()["nodes"]));
    let since = status()["log_time_ms"].as_u64();
    let mut turn = 0;
    wait_for("the first promises to have run out", || {
        // Log time moves where somebody works.
        turn += 1;
        cluster.coffer("alice", &["mkdir", &format!("/alice/turn-{turn}")])?;
        Ok((status()["log_time_ms"].as_u64() > since.map(|since| since + 15_000)).then_some(()))
    })
    .unwrap();
    pipe.write_all(&content[2 * MIB..]).unwrap();
    drop(pipe);
    let output = put.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["chunks_sent"], 3, "{report}");
    cluster.coffer("alice", &["get", "/alice/slow", got.to_str().unwrap()]).unwrap();
    assert!(std::fs::read(got).unwrap() == content);
}
