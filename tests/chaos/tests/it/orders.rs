//! What administrators order for everybody: who can register, and how much room a user has.

use coffer_chaos::{Cluster, wait_for};
use serde_json::Value;

fn order(cluster: &Cluster, args: &[&str]) -> String {
    let dir = cluster.cluster_dir();
    let args = [&["order"], args, &["--dir", dir.to_str().unwrap()]].concat();
    cluster.coffer("operator", &args).unwrap()
}

/// The exit code and what was said.
fn refused(cluster: &Cluster, user: &str, args: &[&str]) -> (Option<i32>, String) {
    let output = cluster.run(user, args).unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

/// Proves S31, S52 of docs/semantics.md.
#[test]
fn an_invite_lets_one_user_in_and_a_quota_bounds_what_users_store() {
    let cluster = Cluster::start().unwrap();
    cluster.coffer("alice", &["register", "alice"]).unwrap();
    // The administrator's key is needed, and a key that is not the cluster's is refused.
    let (code, said) = refused(&cluster, "mallory", &["order", "retention", "0s"]);
    assert!(code == Some(1) && said.contains("the administrator's key"), "{said}");

    order(&cluster, &["registration", "invited"]);
    let (code, said) = wait_for("registration to be closed", || {
        let (code, said) = refused(&cluster, "bob", &["register", "bob"]);
        Ok((code != Some(0)).then_some((code, said)))
    })
    .unwrap();
    assert!(code == Some(6) && said.contains("invite"), "{code:?} {said}");
    let invite = order(&cluster, &["invite"]);
    let invite = invite.trim();
    let (code, said) = refused(&cluster, "bob", &["register", "bob", "--invite", "zz"]);
    assert!(code == Some(11) && said.contains("hexadecimal"), "{code:?} {said}");
    let other = "00".repeat(24);
    let (code, said) = refused(&cluster, "bob", &["register", "bob", "--invite", &other]);
    assert!(code == Some(6) && said.contains("invite"), "{code:?} {said}");
    cluster.coffer("bob", &["register", "bob", "--invite", invite]).unwrap();
    // One user, once.
    let (code, said) = refused(&cluster, "carol", &["register", "carol", "--invite", invite]);
    assert!(code == Some(6) && said.contains("invite"), "{code:?} {said}");

    let file = |name: &str, bytes: usize| {
        let path = cluster.work_dir().unwrap().join(name);
        std::fs::write(&path, vec![7u8; bytes]).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (small, large) = (file("small", 300_000), file("large", 3 << 20));
    cluster.coffer("alice", &["put", &small, "/alice/small"]).unwrap();
    order(&cluster, &["quota", "--user", "alice", "1M"]);
    let (code, said) = refused(&cluster, "alice", &["put", &large, "/alice/large"]);
    assert!(code == Some(6) && said.contains("quota"), "{code:?} {said}");
    // It names the figures, which are those that can be asked for.
    let table = cluster.coffer("alice", &["quota"]).unwrap();
    assert!(table.contains("1 MiB (1048576 bytes)") && table.contains("30 d"), "{table}");
    let told = cluster.coffer("alice", &["quota", "--json"]).unwrap();
    let told: Value = serde_json::from_str(&told).unwrap();
    assert_eq!(told["quota_bytes"], 1 << 20, "{told}");
    let used = told["used_bytes"].as_u64().unwrap();
    assert!((300_000..400_000).contains(&used), "{told}");
    // The home and the one file in it, of one chunk.
    assert_eq!((&told["used_inodes"], &told["used_rows"]), (&2.into(), &1.into()), "{told}");
    assert!(said.contains(&format!("({used} bytes) of 1 MiB (1048576 bytes)")), "{said}");
    assert!(said.contains("ask an administrator"), "{said}");
    cluster.coffer("alice", &["put", &small, "/alice/again"]).unwrap();
    // Bob has no quota.
    cluster.coffer("bob", &["put", &large, "/bob/large"]).unwrap();
    // With nothing left, all that is there can be read and removed, and nothing added.
    order(&cluster, &["quota", "0"]);
    order(&cluster, &["quota", "--user", "alice", "none"]);
    for (user, args) in [
        ("bob", ["mkdir", "/bob/dir"].as_slice()),
        ("bob", &["put", &small, "/bob/small"]),
        ("alice", &["put", &large, "/alice/large"]),
    ] {
        let (code, said) = refused(&cluster, user, args);
        assert!(code == Some(6) && said.contains("quota"), "{args:?} {code:?} {said}");
    }
    cluster.coffer("bob", &["cat", "/bob/large"]).unwrap();
    cluster.coffer("bob", &["rm", "/bob/large"]).unwrap();
    order(&cluster, &["quota", "none"]);
    cluster.coffer("alice", &["put", &large, "/alice/large"]).unwrap();
}
