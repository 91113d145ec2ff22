//! What administrators order: who may, and what it means for whom.

use coffer_metadata_core::Reply;
use coffer_metadata_core::query::{self, Policy};
use coffer_model::hash::payload_hash;
use coffer_model::id::ClusterId;
use coffer_model::log::SystemOp;
use coffer_model::op::{Base, Op, Rejection};
use coffer_model::order::{Decision, Order, RETENTION_MS};
use coffer_model::signing::{Domain, Signer};
use coffer_model::time::LogTime;

use crate::invariants::Checker;
use crate::kit::{Cluster, ClusterOptions, Draft, Key, User, inode, key};
use crate::random::check_replay;
use crate::system::{check_ignored, check_logged};

fn outcome(cluster: &mut Cluster, user: &mut User, draft: &Draft) -> Result<u64, Rejection> {
    let reply = cluster.submit(&user.sign(cluster, draft));
    let Reply::Bundle { outcomes, .. } = reply else { panic!("{reply:?}") };
    outcomes.last().unwrap().clone().map(|outcome| outcome.charged_bytes)
}

#[test]
fn orders_count_up_and_the_last_of_a_kind_counts() {
    let mut cluster = Cluster::new();
    let policy = |cluster: &Cluster| query::policy(&cluster.tables).unwrap();
    let nothing = Policy { order_number: 0, retention_ms: RETENTION_MS, default_quota: None };
    assert_eq!(policy(&cluster), nothing);
    cluster.give(Decision::Retention { ms: 5 });
    cluster.give(Decision::Retention { ms: 7 });
    cluster.give(Decision::Quota { home: None, bytes: Some(1000) });
    let ordered = Policy { order_number: 3, retention_ms: 7, default_quota: Some(1000) };
    assert_eq!(policy(&cluster), ordered);
    cluster.give(Decision::Quota { home: None, bytes: None });
    assert_eq!(policy(&cluster).default_quota, None);
    Checker::new(cluster.id).check(&cluster.tables);
}

#[test]
fn an_order_that_does_not_count_is_ignored() {
    let mut cluster = Cluster::new();
    let alice = User::join(&mut cluster, "alice");
    let mut draft = Draft::new();
    let mut user = alice.clone();
    draft.create_directory(&cluster, key(alice.home, "docs"), inode("docs"));
    user.act(&mut cluster, &draft);
    let second = Key::of("second");
    cluster.change_descriptor(|next| {
        next.administrators.push(second.public_key());
        next.quorum = 2;
    });
    let mallory = Key::of("mallory");
    let first = Order { number: 1, what: Decision::Retention { ms: 5 } };
    let sign = |order: &Order, cluster: &ClusterId, by: &[&dyn Signer]| {
        let (order, signatures) = order.sign(cluster, by);
        SystemOp::Order { order, signatures }
    };
    let (id, admin) = (cluster.id, cluster.admin.clone());
    let both: [&dyn Signer; 2] = [&admin, &second];
    let good = sign(&first, &id, &both);
    let SystemOp::Order { order: bytes, .. } = &good else { panic!() };
    let purpose = both.map(|by| (by.public_key(), by.sign(Domain::Layout, &id, bytes)));
    let mut long = bytes.clone();
    long.push(0);
    let of_long = both.map(|by| (by.public_key(), by.sign(Domain::Order, &id, &long)));
    let number = |number| Order { number, ..first.clone() };
    let quota = |home| Order { number: 1, what: Decision::Quota { home, bytes: Some(1) } };
    let rows = [
        ("one of two", sign(&first, &id, &[&admin])),
        ("one twice", sign(&first, &id, &[&admin, &admin])),
        ("a stranger", sign(&first, &id, &[&admin, &mallory])),
        ("nobody", sign(&first, &id, &[])),
        ("another cluster", sign(&first, &ClusterId::from_bytes([1; 32]), &both)),
        ("another purpose", SystemOp::Order { order: bytes.clone(), signatures: purpose.to_vec() }),
        ("trailing bytes", SystemOp::Order { order: long.clone(), signatures: of_long.to_vec() }),
        ("number 0", sign(&number(0), &id, &both)),
        ("number 2", sign(&number(2), &id, &both)),
        ("the last number", sign(&number(u64::MAX), &id, &both)),
        ("a quota of nothing", sign(&quota(Some(inode("nothing"))), &id, &both)),
        ("a quota of no home", sign(&quota(Some(inode("docs"))), &id, &both)),
    ];
    for (what, op) in rows {
        check_ignored(what, &mut cluster, op);
    }
    check_ignored("version 1", &mut cluster.clone().of_version_1(), good.clone());
    check_logged(&mut cluster, good.clone());
    check_ignored("the same again", &mut cluster, good);
}

// -- quotas ---------------------------------------------------------------------------------------

#[test]
fn a_home_stays_within_its_quota() {
    let mut cluster = Cluster::new();
    let mut alice = User::join(&mut cluster, "alice");
    let mut bob = User::join(&mut cluster, "bob");
    let used =
        |cluster: &Cluster, user: &User| query::usage(&cluster.tables, &user.home).unwrap().bytes;
    assert_eq!(used(&cluster, &alice), 256);
    cluster.give(Decision::Quota { home: None, bytes: Some(511) });
    cluster.give(Decision::Quota { home: Some(bob.home), bytes: Some(512) });
    assert_eq!(query::quota(&cluster.tables, &alice.home).unwrap(), Some(511));
    assert_eq!(query::quota(&cluster.tables, &bob.home).unwrap(), Some(512));
    let mut draft = Draft::new();
    draft.create_directory(&cluster, key(alice.home, "a"), inode("a"));
    let refused = outcome(&mut cluster, &mut alice, &draft);
    assert_eq!(refused, Err(Rejection::QuotaExceeded));
    assert_eq!(used(&cluster, &alice), 256);
    let mut draft = Draft::new();
    draft.create_directory(&cluster, key(bob.home, "b"), inode("b"));
    assert_eq!(outcome(&mut cluster, &mut bob, &draft), Ok(256));
    // Without one of its own, what counts for all counts again.
    cluster.give(Decision::Quota { home: Some(bob.home), bytes: None });
    assert_eq!(query::quota(&cluster.tables, &bob.home).unwrap(), Some(511));
    cluster.give(Decision::Quota { home: None, bytes: None });
    assert_eq!(query::quota(&cluster.tables, &bob.home).unwrap(), None);
    Checker::new(cluster.id).check(&cluster.tables);
}

/// Every op that charges is refused beyond the quota, and every one that does not goes through.
#[test]
fn what_costs_nothing_goes_through_beyond_the_quota() {
    let mut cluster = Cluster::new();
    let mut alice = User::join(&mut cluster, "alice");
    let mut draft = Draft::new();
    draft.create_directory(&cluster, key(alice.home, "docs"), inode("docs"));
    draft.create_file(&cluster, key(alice.home, "a"), inode("a"), &[1, 2]);
    draft.create_file(&cluster, key(alice.home, "b"), inode("b"), &[3]);
    alice.act(&mut cluster, &draft);
    let mut draft = Draft::new();
    draft.remove(&cluster, key(alice.home, "b"), false);
    alice.act(&mut cluster, &draft);
    cluster.give(Decision::Quota { home: Some(alice.home), bytes: Some(0) });

    let mut costly: Vec<Draft> = Vec::new();
    let mut draft = Draft::new();
    draft.create_file(&cluster, key(alice.home, "c"), inode("c"), &[]);
    costly.push(draft);
    let mut draft = Draft::new();
    draft.commit(&cluster, inode("a"), &[4]);
    costly.push(draft);
    let mut draft = Draft::new();
    let at = coffer_model::object::StagedKey { inode: inode("a"), write: crate::kit::write("w") };
    draft.stage(alice.home, at, &[(0, crate::kit::chunk(9))].into(), 1);
    costly.push(draft);
    let mut draft = Draft::new();
    draft.rename(&cluster, key(alice.home, "a"), key(inode("docs"), "a"));
    costly.push(draft);
    // A version that is brought back costs its payload.
    let mut draft = Draft::new();
    let head = cluster.head(inode("a")).unwrap();
    let content = (0..).zip([1, 2].map(crate::kit::chunk)).collect();
    let mut change = draft.head(inode("a"), Some(head.hash), 2, Base::Version(1), (2, &content));
    change.change.leaf.restored = 1;
    draft.push(Op::Commit { head: change, attrs: None });
    costly.push(draft);
    let kind = coffer_model::object::Kind::File;
    let mut draft = Draft::new();
    draft.undelete(&cluster, key(inode("docs"), "b"), inode("b"), kind);
    costly.push(draft);
    for draft in &costly {
        let verb = draft.ops[0].verb();
        let refused = outcome(&mut cluster, &mut alice, draft);
        assert_eq!(refused, Err(Rejection::QuotaExceeded), "{verb}");
    }

    let mut draft = Draft::new();
    draft.undelete(&cluster, key(alice.home, "b"), inode("b"), kind);
    draft.set_attrs(&cluster, inode("a"), "other");
    draft.remove(&cluster, key(alice.home, "a"), false);
    alice.act(&mut cluster, &draft);
    Checker::new(cluster.id).check(&cluster.tables);

    let mut cluster = cluster.of_version_1();
    let mut draft = Draft::new();
    draft.create_directory(&cluster, key(alice.home, "c"), inode("c"));
    assert_eq!(outcome(&mut cluster, &mut alice, &draft), Ok(256), "version 1 knows no quota");
}

// -- invites --------------------------------------------------------------------------------------

const SECRET: &[u8] = b"a secret of some length";

fn invite(expires: LogTime) -> Decision {
    Decision::Invite { invite: payload_hash(SECRET), expires }
}

/// What becomes of a registration with this secret.
fn register(cluster: &mut Cluster, name: &str, secret: &[u8]) -> Result<u64, Rejection> {
    // A request of its own, or it would be answered as the last one was.
    let requests = cluster.revision();
    let mut user = User { invite: Some(payload_hash(secret)), requests, ..User::newcomer(name) };
    let mut draft = Draft::new();
    let registration = user.registration(&mut draft);
    draft.blob(secret);
    draft.push(registration);
    let reply = cluster.submit(&user.by_identity(cluster, &draft));
    let Reply::Bundle { outcomes, .. } = reply else { panic!("{reply:?}") };
    outcomes[0].clone().map(|outcome| outcome.charged_bytes)
}

fn closed() -> Cluster {
    Cluster::with(&ClusterOptions { open_registration: false, ..ClusterOptions::usual() })
}

#[test]
fn an_invite_lets_one_newcomer_in() {
    let mut cluster = closed();
    let later = cluster.time().plus_ms(1000);
    let refused = Err(Rejection::InviteRequired);
    assert_eq!(register(&mut cluster, "alice", SECRET), refused);
    cluster.give(invite(later));
    assert_eq!(register(&mut cluster, "alice", b"another secret, not ordered"), refused);
    assert_eq!(register(&mut cluster, "alice", SECRET), Ok(256));
    assert_eq!(register(&mut cluster, "bob", SECRET), refused, "it is used up");
    cluster.give(invite(later));
    assert_eq!(register(&mut cluster, "alice", SECRET), Err(Rejection::NameTaken));
    assert_eq!(register(&mut cluster, "bob", SECRET), Ok(256), "a refused op uses nothing up");
    cluster.give(invite(later));
    cluster.tick_to(later.unix_ms());
    assert_eq!(register(&mut cluster, "carol", SECRET), refused, "it has run out");
    Checker::new(cluster.id).check(&cluster.tables);
    check_replay(&cluster);
}

#[test]
fn an_invite_is_shown_by_its_secret() {
    let mut cluster = closed();
    let later = cluster.time().plus_ms(1000);
    for secret in [&[1; 15][..], &[1; 65]] {
        cluster.give(Decision::Invite { invite: payload_hash(secret), expires: later });
        assert_eq!(register(&mut cluster, "alice", secret), Err(Rejection::InviteRequired));
    }
    cluster.give(invite(later));
    let mut user = User { invite: Some(payload_hash(SECRET)), ..User::newcomer("alice") };
    let mut draft = Draft::new();
    let registration = user.registration(&mut draft);
    draft.push(registration);
    let reply = cluster.submit(&user.by_identity(&cluster, &draft));
    let Reply::Bundle { outcomes, .. } = reply else { panic!("{reply:?}") };
    assert_eq!(outcomes, [Err(Rejection::InviteRequired)]);
    let mut old = cluster.clone().of_version_1();
    assert_eq!(register(&mut old, "alice", SECRET), Err(Rejection::InviteRequired));
    assert_eq!(register(&mut cluster, "alice", SECRET), Ok(256));
}

#[test]
fn where_registration_is_open_an_invite_is_used_up_all_the_same() {
    let mut cluster = Cluster::new();
    let later = cluster.time().plus_ms(1000);
    assert_eq!(register(&mut cluster, "alice", SECRET), Ok(256));
    cluster.give(invite(later));
    assert_eq!(register(&mut cluster, "bob", SECRET), Ok(256));
    cluster.change_descriptor(|next| next.open_registration = false);
    assert_eq!(register(&mut cluster, "carol", SECRET), Err(Rejection::InviteRequired));
}
