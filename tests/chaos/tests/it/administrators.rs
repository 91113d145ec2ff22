//! Several administrators, each with a key of their own, change a cluster together.

use std::path::{Path, PathBuf};

use coffer_chaos::{Cluster, wait_for};
use serde_json::Value;

/// A cluster with the first administrator's key in its folder, and keys of others beside it.
struct Desk {
    cluster: Cluster,
    work: PathBuf,
}

impl Desk {
    /// Exit code, output and what was said.
    fn run(&self, args: &[&str]) -> (Option<i32>, String, String) {
        let output = self.cluster.run("operator", args).unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    }

    /// As the administrator with the key in `folder`, in the folder of the cluster.
    fn run_as(&self, folder: &Path, args: &[&str]) -> (Option<i32>, String, String) {
        let (admin, dir) = (folder.to_str().unwrap(), self.cluster.cluster_dir());
        let dir = dir.to_str().unwrap();
        self.run(&[args, &["--admin", admin, "--dir", dir]].concat())
    }

    fn done_as(&self, folder: &Path, args: &[&str]) -> String {
        let (code, out, said) = self.run_as(folder, args);
        assert_eq!(code, Some(0), "{args:?}: {out}{said}");
        out
    }

    /// Without a key.
    fn submit(&self, file: &str) -> (Option<i32>, String, String) {
        let dir = self.cluster.cluster_dir();
        self.run(&["admin", "submit", file, "--dir", dir.to_str().unwrap()])
    }

    /// Somebody's new key, and its public half.
    fn key(&self, name: &str) -> (PathBuf, String) {
        let folder = self.work.join(name);
        let (code, out, said) = self.run(&["admin", "key", folder.to_str().unwrap()]);
        assert_eq!(code, Some(0), "{said}");
        (folder, out.trim().to_owned())
    }

    fn file(&self, name: &str) -> String {
        self.work.join(name).to_str().unwrap().to_owned()
    }

    fn nodes(&self) -> Vec<Value> {
        let status = self.cluster.status("operator").unwrap();
        status["nodes"].as_array().unwrap().clone()
    }
}

/// Goal: with a quorum of two nobody changes anything alone, two together change everything, and who was
/// taken out does not count. Method: three keys; a node and a quota are proposed by one and submitted
/// before and after another has signed; an order that was signed by an administrator who is taken out
/// meanwhile is submitted with and without a signature more.
///
/// Proves S50 of docs/semantics.md.
#[test]
fn two_of_three_administrators_change_what_none_of_them_can_alone() {
    let cluster = Cluster::start().unwrap();
    cluster.coffer("alice", &["register", "alice"]).unwrap();
    let work = cluster.work_dir().unwrap();
    let desk = Desk { work, cluster };
    let first = desk.cluster.cluster_dir().join("secret");
    let (second, second_key) = desk.key("second");
    let (third, third_key) = desk.key("third");
    assert_eq!(desk.key("third").1, third_key);

    let (code, _, said) = desk.run_as(&second, &["order", "quota", "1M"]);
    assert!(code == Some(1) && said.contains("no administrator's"), "{code:?} {said}");
    desk.done_as(&first, &["admin", "add", &second_key]);
    desk.done_as(&first, &["admin", "add", &third_key, "--quorum", "2"]);
    let (_, list, _) = desk.run(&["admin", "list", "--json"]);
    let list: Value = serde_json::from_str(&list).unwrap();
    assert_eq!(
        (&list["quorum"], &list["administrators"][2]),
        (&2.into(), &third_key.as_str().into())
    );

    // A storage node: proposed by the second, in vain alone, then signed by the third.
    let node = desk.file("node");
    let (code, out, said) = desk.run_as(&second, &["node", "add", "--sign-to", &node]);
    assert!(code == Some(16) && said.contains("1 of 2"), "{code:?} {out}{said}");
    assert_eq!(desk.nodes().len(), 3);
    let (code, _, said) = desk.submit(&node);
    assert!(code == Some(6) && said.contains("1 of 2 administrators"), "{code:?} {said}");
    let (code, _, said) = desk.run_as(&second, &["admin", "sign", &node, "--yes"]);
    assert!(code == Some(6) && said.contains("signed this already"), "{code:?} {said}");
    let (code, out, said) = desk.run_as(&third, &["admin", "sign", &node]);
    assert!(code == Some(1) && out.contains("is taken in"), "not asked: {code:?} {out}{said}");
    let shown = desk.done_as(&third, &["admin", "sign", &node, "--yes"]);
    assert!(shown.contains("storage node") && shown.contains(&second_key), "{shown}");
    let (code, _, said) = desk.submit(&node);
    assert_eq!(code, Some(0), "{said}");
    wait_for("the new storage node to run", || {
        let nodes = desk.nodes();
        Ok((nodes.len() == 4 && nodes.iter().all(|node| node["reachable"] == true)).then_some(()))
    })
    .unwrap();
    let (code, _, said) = desk.submit(&node);
    assert!(code == Some(5) && said.contains("in force already"), "{code:?} {said}");
    // A layout takes one administrator.
    desk.done_as(&third, &["layout", "apply"]);

    // A quota. What is shown is what stands and what would come.
    let quota = desk.file("quota");
    let args = ["order", "quota", "--user", "alice", "1M", "--sign-to", &quota];
    assert_eq!(desk.run_as(&first, &args).0, Some(16));
    let (code, shown, said) = desk.run(&["admin", "show", &quota]);
    assert_eq!(code, Some(0), "{said}");
    assert!(shown.contains("alice") && shown.contains("1 MiB (1048576 bytes)"), "{shown}");
    desk.done_as(&second, &["admin", "sign", &quota, "--yes"]);
    let (code, _, said) = desk.submit(&quota);
    assert_eq!(code, Some(0), "{said}");
    let large = desk.file("large");
    std::fs::write(&large, vec![7u8; 3 << 20]).unwrap();
    let refused = desk.cluster.run("alice", &["put", &large, "/alice/large"]).unwrap();
    assert_eq!(refused.status.code(), Some(6), "{}", String::from_utf8_lossy(&refused.stderr));

    // Bytes that were signed are not those in the file.
    let changed = desk.file("changed");
    let retention = desk.file("retention");
    let args = ["order", "retention", "1d", "--sign-to", &retention];
    assert_eq!(desk.run_as(&first, &args).0, Some(16));
    let mut bytes = std::fs::read(&retention).unwrap();
    let at = bytes.windows(8).position(|it| it == 86_400_000u64.to_le_bytes()).unwrap();
    bytes[at] ^= 1;
    std::fs::write(&changed, bytes).unwrap();
    let (code, _, said) = desk.run_as(&second, &["admin", "sign", &changed, "--yes"]);
    assert!(code == Some(11) && said.contains("other bytes"), "{code:?} {said}");

    // The third signs an order and is taken out before it is submitted.
    desk.done_as(&third, &["admin", "sign", &retention, "--yes"]);
    let removal = desk.file("removal");
    // The third has signed the layout, so another one has to first.
    let args = ["admin", "remove", &third_key[..12], "--sign-to", &removal];
    let (code, _, said) = desk.run_as(&first, &args);
    assert!(code == Some(1) && said.contains("layout apply --anew"), "{code:?} {said}");
    desk.done_as(&second, &["layout", "apply", "--anew", "--wait"]);
    assert_eq!(desk.run_as(&first, &args).0, Some(16));
    desk.done_as(&second, &["admin", "sign", &removal, "--yes"]);
    let stale = desk.file("stale");
    let args = ["admin", "quorum", "1", "--sign-to", &stale];
    assert_eq!(desk.run_as(&second, &args).0, Some(16));
    let (code, _, said) = desk.submit(&removal);
    assert_eq!(code, Some(0), "{said}");
    let (code, _, said) = desk.submit(&retention);
    assert!(code == Some(6) && said.contains("1 of 2 administrators"), "{code:?} {said}");
    let (code, _, said) = desk.run_as(&third, &["admin", "sign", &retention, "--yes"]);
    assert!(code == Some(1) && said.contains("no administrator's"), "{code:?} {said}");
    let (code, _, said) = desk.run_as(&first, &["admin", "sign", &stale, "--yes"]);
    assert!(code == Some(5) && said.contains("make it again"), "{code:?} {said}");
    let shown = desk.done_as(&second, &["admin", "sign", &retention, "--yes"]);
    assert!(shown.contains("does not count"), "{shown}");
    let (code, _, said) = desk.submit(&retention);
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(desk.cluster.status("alice").unwrap()["retention_ms"], 86_400_000);
}
