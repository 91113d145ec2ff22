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

#[test]
fn looking_through_a_tree() {
    let cluster = Cluster::start().unwrap();
    let work = cluster.work_dir().unwrap();
    cluster.coffer("alice", &["register", "alice"]).unwrap();
    let tree = work.join("tree");
    fs::create_dir_all(tree.join("photos/2026")).unwrap();
    fs::write(tree.join("photos/2026/Sea.JPG"), vec![1; 5000]).unwrap();
    fs::write(tree.join("photos/2026/sky.jpg"), vec![2; 70]).unwrap();
    fs::write(tree.join("notes.txt"), "seven b").unwrap();
    symlink("notes.txt", tree.join("zlink")).unwrap();
    cluster.coffer("alice", &["put", "-r", tree.to_str().unwrap(), "/alice/tree"]).unwrap();

    let coffer = |args: &[&str]| cluster.coffer("alice", args).unwrap();
    let lines = |args: &[&str]| -> Vec<String> {
        coffer(args).lines().map(|line| line.trim().to_owned()).collect()
    };
    let drawn = "/alice/tree\n├── notes.txt\n├── photos/\n│   └── 2026/\n│       ├── Sea.JPG\n\
                 │       └── sky.jpg\n└── zlink@\n2 directories, 4 files\n";
    assert_eq!(coffer(&["tree", "/alice/tree"]), drawn);
    let shallow = "/\n└── alice/\n    └── tree/\n2 directories, 0 files\n";
    assert_eq!(coffer(&["tree", "-L", "2"]), shallow);

    assert_eq!(lines(&["find", "--name", "*.jpg"]), ["/alice/tree/photos/2026/sky.jpg"]);
    let both = ["/alice/tree/photos/2026/Sea.JPG", "/alice/tree/photos/2026/sky.jpg"];
    assert_eq!(lines(&["find", "/alice", "-i", "--name", "s*.jpg"]), both);
    assert_eq!(lines(&["find", "--type", "l"]), ["/alice/tree/zlink"]);
    assert_eq!(lines(&["find", "--min-size", "71"]), both[..1]);
    assert_eq!(lines(&["find", "--type", "f", "--max-size", "7"]), ["/alice/tree/notes.txt"]);
    let refused = cluster.run("alice", &["find", "--name", "[a"]).unwrap();
    assert_eq!(refused.status.code(), Some(11), "{refused:?}");

    assert_eq!(lines(&["du", "-s", "/alice/tree"]), ["5086  /alice/tree"]);
    let sums = ["5070  /alice/tree/photos/2026", "5070  /alice/tree/photos", "5086  /alice/tree"];
    assert_eq!(lines(&["du", "/alice/tree"]), sums);
    assert_eq!(lines(&["du", "/alice/tree/notes.txt"]), ["7  /alice/tree/notes.txt"]);
    let room: serde_json::Value = serde_json::from_str(&coffer(&["df", "--json"])).unwrap();
    let nodes = room["nodes"].as_array().unwrap();
    assert_eq!(nodes.len(), 3);
    assert!(nodes.iter().all(|node| node["capacity_bytes"].as_u64() > Some(0)), "{room}");
}

/// Proves S26 of docs/semantics.md.
#[test]
fn a_lost_password_is_replaced_with_the_recovery_code() {
    let cluster = Cluster::start().unwrap();
    let work = cluster.work_dir().unwrap();
    let file = |name: &str, text: &str| {
        let path = work.join(name);
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let code_of = |out: String| {
        let value: serde_json::Value = serde_json::from_str(&out).unwrap();
        value["recovery_code"].as_str().unwrap().to_owned()
    };
    let first = code_of(cluster.coffer("alice", &["register", "alice", "--json"]).unwrap());
    let other = code_of(cluster.coffer("bob", &["register", "bob", "--json"]).unwrap());
    let note = file("note", "kept");
    cluster.coffer("alice", &["put", &note, "/alice/note"]).unwrap();

    let (new, newer) = (file("new", "quite another one\n"), file("newer", "one more"));
    let recover = |user: &str, code: &str, password: &str| {
        let code = file("code", code);
        let args =
            ["recover", user, "--json", "--code-file", &code, "--new-password-file", password];
        cluster.run("elsewhere", &args).unwrap()
    };
    assert_eq!(recover("alice", &other, &new).status.code(), Some(7), "another one's code");
    assert_eq!(recover("alice", &first[1..], &new).status.code(), Some(11), "not a code");
    assert_eq!(recover("nobody", &first, &new).status.code(), Some(3), "no such user");
    // A failed attempt has changed nothing.
    cluster.coffer("alice", &["login", "alice"]).unwrap();

    let done = recover("alice", &first.to_lowercase(), &new);
    assert!(done.status.success(), "{done:?}");
    let second = code_of(String::from_utf8(done.stdout).unwrap());
    assert_ne!(first, second);
    assert_eq!(cluster.coffer("elsewhere", &["cat", "/alice/note"]).unwrap(), "kept");
    assert_eq!(cluster.coffer("alice", &["cat", "/alice/note"]).unwrap(), "kept", "S26");
    assert_eq!(cluster.run("alice", &["login", "alice"]).unwrap().status.code(), Some(7));
    assert_eq!(recover("alice", &first, &newer).status.code(), Some(7), "the code of before");
    cluster.coffer("elsewhere", &["login", "alice", "--password-file", &new]).unwrap();
    assert!(recover("alice", &second, &newer).status.success());
    cluster.coffer("elsewhere", &["login", "alice", "--password-file", &newer]).unwrap();
    assert_eq!(cluster.coffer("elsewhere", &["cat", "/alice/note"]).unwrap(), "kept");
}

#[test]
fn a_password_is_changed_and_the_old_one_opens_nothing() {
    let cluster = Cluster::start().unwrap();
    let work = cluster.work_dir().unwrap();
    cluster.coffer("alice", &["register", "alice"]).unwrap();
    let (new, wrong) = (work.join("new"), work.join("wrong"));
    fs::write(&new, "quite another one\n").unwrap();
    fs::write(&wrong, "not it").unwrap();
    let (new, wrong) = (new.to_str().unwrap(), wrong.to_str().unwrap());
    let note = work.join("note");
    fs::write(&note, "kept").unwrap();
    cluster.coffer("alice", &["put", note.to_str().unwrap(), "/alice/note"]).unwrap();

    let refused = ["passwd", "--password-file", wrong, "--new-password-file", new];
    assert_eq!(cluster.run("alice", &refused).unwrap().status.code(), Some(7));
    cluster.coffer("alice", &["passwd", "--new-password-file", new]).unwrap();
    // The session goes on; a new one takes the new password.
    assert_eq!(cluster.coffer("alice", &["cat", "/alice/note"]).unwrap(), "kept");
    let old = cluster.run("elsewhere", &["login", "alice", "--password-file", wrong]).unwrap();
    assert_eq!(old.status.code(), Some(7));
    assert_eq!(cluster.run("alice", &["login", "alice"]).unwrap().status.code(), Some(7));
    cluster.coffer("elsewhere", &["login", "alice", "--password-file", new]).unwrap();
    assert_eq!(cluster.coffer("elsewhere", &["cat", "/alice/note"]).unwrap(), "kept");
}
