//! Names, content and passwords are nowhere in clear in what servers keep.

use std::fs;
use std::path::{Path, PathBuf};

use coffer_chaos::{Cluster, password};

fn files(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { files(&path, found) } else { found.push(path) }
    }
}

fn contains(hay: &[u8], needle: &[u8]) -> bool {
    hay.windows(needle.len()).any(|window| window == needle)
}

#[test]
fn canaries_are_in_no_file_of_any_server() {
    let mut cluster = Cluster::start().unwrap();
    let work = cluster.work_dir().unwrap();
    let tree = work.join("canary-directory-7f3a");
    fs::create_dir(&tree).unwrap();
    let small = "canary-small-content-91c5 ".repeat(20);
    let large = "canary-large-content-e0d2 ".repeat(100_000);
    fs::write(tree.join("canary-name-55ab.txt"), &small).unwrap();
    fs::write(tree.join("canary-other-name-0c1d.bin"), &large).unwrap();
    let tree = tree.to_str().unwrap().to_owned();
    cluster.coffer("alice", &["register", "alice"]).unwrap();
    cluster.coffer("alice", &["put", "-r", &tree, "/alice/canary-directory-7f3a"]).unwrap();
    cluster
        .coffer("alice", &["mv", "/alice/canary-directory-7f3a", "/alice/canary-moved-b7b7"])
        .unwrap();
    cluster.coffer("alice", &["rm", "-r", "/alice/canary-moved-b7b7"]).unwrap();
    cluster.stop().unwrap();

    let mut found = Vec::new();
    files(&cluster.cluster_dir(), &mut found);
    let canaries = [
        "canary-directory-7f3a".to_owned(),
        "canary-moved-b7b7".to_owned(),
        "canary-name-55ab".to_owned(),
        "canary-other-name-0c1d".to_owned(),
        "canary-small-content-91c5".to_owned(),
        "canary-large-content-e0d2".to_owned(),
        password("alice"),
    ];
    let mut bytes_seen = 0;
    for path in found {
        let bytes = fs::read(&path).unwrap();
        bytes_seen += bytes.len();
        // Long runs of zeros are the part of a segment that is not written yet.
        let end = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |at| at + 1);
        for canary in &canaries {
            let hit = contains(&bytes[..end], canary.as_bytes());
            assert!(!hit, "{canary} stands in clear in {}", path.display());
        }
    }
    assert!(bytes_seen > 3 * large.len(), "the servers do not even keep three copies");
}
