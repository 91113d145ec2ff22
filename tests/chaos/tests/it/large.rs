//! Large files in small memory, and what small changes of them cost.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;

use coffer_chaos::Cluster;

const MIB: u64 = 1 << 20;
/// No process may need more, whatever the size of the file.
const MEMORY_MAX: u64 = 300 * MIB;
/// Large enough to be far more than any buffer, small enough for every test run; `make big` runs
/// 8 GiB.
const FILE_BYTES: u64 = 400 * MIB;

#[test]
fn a_large_file_needs_little_memory_and_a_small_change_costs_little() {
    let cluster = Cluster::start().unwrap();
    let work = cluster.work_dir().unwrap();
    cluster.coffer("alice", &["register", "alice"]).unwrap();
    let path = work.join("file");
    let mut file = File::create(&path).unwrap();
    let mut block = vec![0u8; MIB as usize];
    for number in 0..FILE_BYTES / MIB {
        for (at, byte) in block.iter_mut().enumerate() {
            *byte = (at as u64).wrapping_mul(0x9E37_79B9 + number).to_be_bytes()[4];
        }
        file.write_all(&block).unwrap();
    }
    let text = path.to_str().unwrap();
    cluster.coffer("alice", &["put", text, "/alice/file"]).unwrap();

    // 4 KiB in the middle cost their slot and its path.
    let (patch, tail) = (work.join("patch"), work.join("tail"));
    fs::write(&patch, [0xA5; 4096]).unwrap();
    fs::write(&tail, vec![0x5A; MIB as usize]).unwrap();
    let offset = FILE_BYTES / 2;
    let report = cluster
        .coffer(
            "alice",
            &[
                "put",
                "--offset",
                &offset.to_string(),
                patch.to_str().unwrap(),
                "/alice/file",
                "--json",
            ],
        )
        .unwrap();
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    assert_eq!(report["chunks_sent"], 1, "{report}");
    assert!(report["slot_bytes_sent"].as_u64().unwrap() < 4096, "{report}");

    // 1 MiB at the end likewise.
    let report = cluster
        .coffer("alice", &["put", "--append", tail.to_str().unwrap(), "/alice/file", "--json"])
        .unwrap();
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    assert!(report["chunks_sent"].as_u64().unwrap() <= 2, "{report}");
    assert!(report["slot_bytes_sent"].as_u64().unwrap() < 4096, "{report}");

    file.write_all_at(&[0xA5; 4096], offset).unwrap();
    file.write_all_at(&vec![0x5A; MIB as usize], FILE_BYTES).unwrap();
    let back = work.join("back");
    cluster.coffer("alice", &["get", "/alice/file", back.to_str().unwrap()]).unwrap();
    let same = std::process::Command::new("cmp").arg(&path).arg(&back).status().unwrap();
    assert!(same.success(), "the file that came back differs");
    for name in cluster.processes().unwrap() {
        let peak = cluster.peak_memory(&name).unwrap();
        assert!(peak < MEMORY_MAX, "{name} had {} MiB resident", peak / MIB);
    }
}
