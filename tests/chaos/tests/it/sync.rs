//! `coffer sync` on a real cluster.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use coffer_chaos::Cluster;

/// Proves S25 of docs/semantics.md.
#[test]
fn trees_are_made_the_same_in_both_directions() {
    let cluster = Cluster::start().unwrap();
    let work = cluster.work_dir().unwrap();
    cluster.coffer("alice", &["register", "alice"]).unwrap();
    let (tree, copy) = (work.join("tree"), work.join("copy"));
    fs::create_dir_all(tree.join("docs/empty")).unwrap();
    fs::write(tree.join("docs/note"), "a note").unwrap();
    fs::write(tree.join("docs/large"), vec![7; 3_000_000]).unwrap();
    fs::write(tree.join("gone"), "soon").unwrap();
    symlink("docs/note", tree.join("link")).unwrap();
    let (local, back) = (tree.to_str().unwrap(), copy.to_str().unwrap());
    let lines = |args: &[&str]| -> Vec<String> {
        let out = cluster.coffer("alice", args).unwrap();
        let mut lines: Vec<_> = out.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };

    let everything =
        ["+ ./", "+ docs/", "+ docs/empty/", "+ docs/large", "+ docs/note", "+ gone", "+ link@"];
    assert_eq!(lines(&["sync", local, "/alice/tree"]), everything);
    assert_eq!(cluster.run("alice", &["ls", "/alice/tree"]).unwrap().status.code(), Some(3));
    assert_eq!(lines(&["sync", "--yes", local, "/alice/tree"]), everything);
    assert!(lines(&["sync", "--delete", local, "/alice/tree"]).is_empty());
    assert_eq!(lines(&["sync", "/alice/tree", back]), everything);
    assert!(!copy.exists());
    assert_eq!(lines(&["sync", "--yes", "/alice/tree", back]), everything);
    assert!(lines(&["sync", "--delete", "--checksum", "/alice/tree", back]).is_empty());

    // Every kind of difference.
    fs::write(tree.join("docs/note"), "another note").unwrap();
    fs::set_permissions(tree.join("docs/large"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::remove_file(tree.join("gone")).unwrap();
    fs::remove_file(tree.join("link")).unwrap();
    symlink("docs", tree.join("link")).unwrap();
    fs::remove_dir(tree.join("docs/empty")).unwrap();
    fs::write(tree.join("docs/empty"), "a file now").unwrap();
    let kept = cluster.run("alice", &["sync", local, "/alice/tree"]).unwrap();
    assert_eq!(kept.status.code(), Some(14), "{kept:?}");
    let differences = [
        "+ docs/empty",
        "- docs/empty/",
        "- gone",
        "~ ./ (time)",
        "~ docs/ (time)",
        "~ docs/large (mode)",
        "~ docs/note (size)",
        "~ link@ (target)",
    ];
    assert_eq!(lines(&["sync", "--delete", local, "/alice/tree"]), differences);
    assert_eq!(lines(&["sync", "--delete", "--yes", local, "/alice/tree"]), differences);
    assert_eq!(lines(&["sync", "--delete", "/alice/tree", back]), differences);
    assert_eq!(lines(&["sync", "--delete", "--yes", "/alice/tree", back]), differences);
    for delete in
        [["sync", "--delete", local, "/alice/tree"], ["sync", "--delete", "/alice/tree", back]]
    {
        assert!(lines(&delete).is_empty());
    }
    same(&tree, &copy);

    // What was deleted there can be brought back.
    cluster.coffer("alice", &["restore", "/alice/tree/gone"]).unwrap();
    assert_eq!(cluster.coffer("alice", &["cat", "/alice/tree/gone"]).unwrap(), "soon");
    let both = cluster.run("alice", &["sync", "/alice/a", "/alice/b"]).unwrap();
    assert_eq!(both.status.code(), Some(11), "{both:?}");
}

fn same(one: &Path, other: &Path) {
    for name in ["docs", "docs/note", "docs/large", "docs/empty"] {
        let (old, new) = (one.join(name), other.join(name));
        if old.is_file() {
            assert_eq!(fs::read(&old).unwrap(), fs::read(&new).unwrap(), "{name}");
        }
        let (old, new) = (old.metadata().unwrap(), new.metadata().unwrap());
        assert_eq!(old.permissions().mode(), new.permissions().mode(), "{name}");
        assert_eq!(old.modified().unwrap(), new.modified().unwrap(), "{name}");
    }
    assert_eq!(
        fs::read_link(one.join("link")).unwrap(),
        fs::read_link(other.join("link")).unwrap()
    );
}
