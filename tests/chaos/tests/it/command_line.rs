//! The commands as a person types them.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use coffer_chaos::Cluster;

/// Proves S5, S15, S17 of docs/semantics.md.
#[test]
fn a_day_with_coffer() {
    let mut cluster = Cluster::start().unwrap();
    let work = cluster.work_dir().unwrap();
    let code = cluster.coffer("alice", &["register", "alice"]).unwrap();
    assert!(code.contains("recovery code"), "{code}");
    assert!(cluster.coffer("alice", &["whoami"]).unwrap().contains("alice"));

    // A tree with what trees have.
    let tree = work.join("tree");
    fs::create_dir_all(tree.join("docs/empty")).unwrap();
    fs::write(tree.join("docs/small.txt"), "a small file").unwrap();
    fs::write(tree.join("docs/größe.bin"), vec![7u8; 3_000_000]).unwrap();
    fs::write(tree.join("zero"), "").unwrap();
    fs::set_permissions(tree.join("docs/small.txt"), fs::Permissions::from_mode(0o640)).unwrap();
    fs::set_permissions(tree.join("docs/empty"), fs::Permissions::from_mode(0o711)).unwrap();
    symlink("docs/small.txt", tree.join("link")).unwrap();
    let tree_text = tree.to_str().unwrap();
    cluster.coffer("alice", &["put", "-r", tree_text, "/alice/tree"]).unwrap();
    let listing = cluster.coffer("alice", &["ls", "/alice/tree"]).unwrap();
    assert_eq!(listing.lines().collect::<Vec<_>>(), ["docs/", "link@", "zero"]);

    let back = work.join("back");
    let back_text = back.to_str().unwrap();
    cluster.coffer("alice", &["get", "-r", "/alice/tree", back_text]).unwrap();
    assert_eq!(fs::read(back.join("docs/größe.bin")).unwrap(), vec![7u8; 3_000_000]);
    assert_eq!(fs::read_link(back.join("link")).unwrap().to_str(), Some("docs/small.txt"));
    for name in ["docs/small.txt", "docs/empty", "zero", "docs"] {
        let (old, new) = (tree.join(name).metadata().unwrap(), back.join(name).metadata().unwrap());
        assert_eq!(old.permissions().mode(), new.permissions().mode(), "{name}");
        assert_eq!(old.modified().unwrap(), new.modified().unwrap(), "{name}");
    }

    // Standard input and output, versions, restore.
    let note = work.join("note");
    for text in ["one", "two", "three"] {
        fs::write(&note, text).unwrap();
        let output =
            cluster.run_with_input("alice", &["put", "-", "/alice/note"], Some(&note)).unwrap();
        assert!(output.status.success(), "{output:?}");
    }
    assert_eq!(cluster.coffer("alice", &["cat", "/alice/note"]).unwrap(), "three");
    assert_eq!(
        cluster.coffer("alice", &["get", "/alice/note", "-", "--version", "1"]).unwrap(),
        "one"
    );
    cluster.coffer("alice", &["restore", "--version", "2", "/alice/note"]).unwrap();
    assert_eq!(cluster.coffer("alice", &["cat", "/alice/note"]).unwrap(), "two");
    let versions = cluster.coffer("alice", &["versions", "/alice/note", "--json"]).unwrap();
    let versions: serde_json::Value = serde_json::from_str(&versions).unwrap();
    assert_eq!(versions.as_array().unwrap().len(), 4);

    // Names.
    cluster.coffer("alice", &["mkdir", "-p", "/alice/a/b/c"]).unwrap();
    cluster.coffer("alice", &["mv", "/alice/note", "/alice/a/b/renamed"]).unwrap();
    cluster.coffer("alice", &["cp", "-r", "/alice/a", "/alice/copy"]).unwrap();
    assert_eq!(cluster.coffer("alice", &["cat", "/alice/copy/b/renamed"]).unwrap(), "two");
    cluster.coffer("alice", &["rm", "-r", "/alice/a"]).unwrap();
    assert_eq!(cluster.run("alice", &["ls", "/alice/a"]).unwrap().status.code(), Some(3));
    cluster.coffer("alice", &["restore", "/alice/a"]).unwrap();
    assert_eq!(cluster.coffer("alice", &["cat", "/alice/a/b/renamed"]).unwrap(), "two");
    let stat = cluster.coffer("alice", &["stat", "/alice/a/b/renamed", "--json"]).unwrap();
    let stat: serde_json::Value = serde_json::from_str(&stat).unwrap();
    assert_eq!((&stat["size"], &stat["version"]), (&3.into(), &4.into()));

    // Stopped as Ctrl-C does and started again: everything is there, the session too.
    cluster.stop().unwrap();
    cluster.start_again().unwrap();
    assert_eq!(cluster.coffer("alice", &["cat", "/alice/a/b/renamed"]).unwrap(), "two");
    cluster.coffer("alice", &["logout"]).unwrap();
    assert_eq!(cluster.run("alice", &["ls", "/alice"]).unwrap().status.code(), Some(8));
    cluster.coffer("alice", &["login", "alice"]).unwrap();
    assert_eq!(cluster.coffer("alice", &["cat", "/alice/a/b/renamed"]).unwrap(), "two");
}
