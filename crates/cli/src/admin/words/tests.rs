#![allow(clippy::unwrap_used)]

use coffer_model::SUITE;
use coffer_model::hash::Hash;
use coffer_model::id::{InodeId, MemberId, NodeId};
use coffer_model::time::LogTime;

use super::*;

fn key(fill: u8) -> PublicKey {
    PublicKey::from_bytes([fill; 32])
}

fn descriptor() -> Descriptor {
    let member = |id, address: &str| Member {
        id: MemberId::from_u64(id),
        key: key(9),
        address: address.into(),
    };
    let node = |id| StorageNode {
        id: NodeId::from_bytes([id; 16]),
        key: key(8),
        zone: String::new(),
        weight: 1,
    };
    Descriptor {
        suite: SUITE,
        number: 3,
        former: None,
        nonce: [0; 16],
        authority: vec![1],
        administrators: vec![key(1), key(2)],
        quorum: 1,
        members: vec![member(1, "one:1"), member(2, "two:2")],
        nodes: vec![node(1), node(2)],
        cosigners: vec![key(5)],
        replacement: None,
        open_registration: true,
    }
}

/// Goal: nothing can be changed without a line that says so. Method: each field of a descriptor is changed
/// alone, and the line is looked for; what changes nothing gives the one line that says that.
#[test]
fn every_change_of_a_descriptor_has_its_line() {
    let now = descriptor();
    let check = |change: &dyn Fn(&mut Descriptor), wanted: &[&str]| {
        let mut next = now.clone();
        change(&mut next);
        let lines = descriptor_changes(&now, &next);
        assert_eq!(lines.len(), wanted.len(), "{lines:?}");
        for (line, part) in lines.iter().zip(wanted) {
            assert!(line.contains(part), "{line} has no {part}");
        }
    };
    check(&|_| {}, &["nothing but its number"]);
    check(&|next| next.suite = 2, &["the suite or the nonce"]);
    check(&|next| next.nonce = [1; 16], &["the suite or the nonce"]);
    check(&|next| next.authority = vec![2], &["the certificate authority is another"]);
    check(
        &|next| next.administrators[0] = key(3),
        &[
            "administrator 0101",
            "0303030303030303030303030303030303030303030303030303030303030303 becomes",
        ],
    );
    check(
        &|next| next.administrators.truncate(1),
        &["administrator 0202", "1 of 1 administrators have to sign (now: 1 of 2)"],
    );
    check(&|next| next.quorum = 2, &["2 of 2 administrators have to sign (now: 1 of 2)"]);
    check(
        &|next| next.members[0].id = MemberId::from_u64(7),
        &["at \"one:1\" is taken out", "at \"one:1\" is taken in"],
    );
    check(&|next| next.members[0].address = "x\ny".into(), &["at \"x\\ny\" (now: \"one:1\")"]);
    check(&|next| next.nodes.truncate(1), &["storage node 0202"]);
    check(
        &|next| {
            next.nodes.push(StorageNode { id: NodeId::from_bytes([3; 16]), ..now.nodes[0].clone() })
        },
        &["is taken in (zone none, weight 1"],
    );
    check(&|next| next.nodes[1].zone = "b".into(), &["is in zone \"b\" (now: none)"]);
    check(&|next| next.nodes[1].weight = 0, &["has weight 0 (now: 1)"]);
    check(&|next| next.cosigners.clear(), &["cosigner 0505"]);
    let policy = ReplacementPolicy { silent_ms_min: 60_000, join_token: Hash::from_bytes([6; 32]) };
    check(
        &|next| next.replacement = Some(policy.clone()),
        &["silent for 1 m, by who has the token with the hash 0606"],
    );
    check(&|next| next.open_registration = false, &["only who has an invite"]);
}

/// Goal: an order is told with what stands now. Method: one of each.
#[test]
fn an_order_is_told_beside_what_stands() {
    let home = InodeId::from_bytes([4; 16]);
    let usage = HomeUsage { home, used_bytes: 10, quota_bytes: None, used_inodes: 1, used_rows: 0 };
    let standing = Standing {
        descriptor: descriptor(),
        retention_ms: 30 * 86_400_000,
        quota_bytes: Some(1 << 30),
        home: Some(usage),
    };
    let told = |what: Decision, user: Option<&str>| {
        standing.order_change(&Order { number: 1, what }, user)
    };
    let text = told(Decision::Retention { ms: 5_400_000 }, None);
    assert!(text.contains("for 90 m") && text.contains("(now: 30 d)"), "{text}");
    let text = told(Decision::Quota { home: Some(home), bytes: Some(5 << 20) }, Some("alice"));
    assert!(text.contains("alice") && text.contains("5 MiB (5242880 bytes)"), "{text}");
    assert!(text.contains("(now: without a limit, 10 bytes used)"), "{text}");
    let text = told(Decision::Quota { home: None, bytes: None }, None);
    assert!(text.contains("use without a limit (now: 1.0 GiB (1073741824 bytes))"), "{text}");
    let expires = LogTime::from_unix_ms(0);
    let text = told(Decision::Invite { invite: Hash::from_bytes([7; 32]), expires }, None);
    assert!(text.contains("0707") && text.contains("1970-01-01"), "{text}");
}
