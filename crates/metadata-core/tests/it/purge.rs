//! Purge: what is due, what goes with it, and what it leaves alone.

use std::collections::BTreeMap;

use coffer_metadata_core::state::Usage;
use coffer_metadata_core::{Reply, Table, Tables, query};
use coffer_model::id::InodeId;
use coffer_model::log::SystemOp;
use coffer_model::manifest::Slot;
use coffer_model::object::{Kind, StagedKey};
use coffer_model::op::{Base, Op, Rejection};
use coffer_model::order::{Decision, RETENTION_MS};

use crate::kit::{Cluster, Draft, User, chunk, inode, key, write};
use crate::random::check_replay;
use crate::system::{check_ignored, check_logged};

fn purge(inode: InodeId) -> SystemOp {
    SystemOp::Purge { inode }
}

fn due(cluster: &Cluster) -> Vec<InodeId> {
    query::purgeable(&cluster.tables, 1000).unwrap()
}

fn used(cluster: &Cluster, user: &User) -> Usage {
    query::usage(&cluster.tables, &user.home).unwrap()
}

/// Purges to the end, checking what must hold after every step, and counts the steps.
fn purge_all(cluster: &mut Cluster, inode: InodeId) -> usize {
    let mut steps = 0;
    while due(cluster).contains(&inode) {
        check_logged(cluster, purge(inode));
        steps += 1;
    }
    check_ignored("purged", cluster, purge(inode));
    assert!(steps > 0, "it is due");
    steps
}

fn alone() -> (Cluster, User) {
    let mut cluster = Cluster::new();
    let alice = User::join(&mut cluster, "alice");
    (cluster, alice)
}

fn put_file(cluster: &mut Cluster, user: &mut User, name: &str, chunks: std::ops::Range<u64>) {
    let mut draft = Draft::new();
    let chunks: Vec<u64> = chunks.collect();
    draft.create_file(cluster, key(user.home, name), inode(name), &chunks);
    user.act(cluster, &draft);
}

fn remove(cluster: &mut Cluster, user: &mut User, name: &str) {
    let mut draft = Draft::new();
    draft.remove(cluster, key(user.home, name), false);
    user.act(cluster, &draft);
}

/// The one op of the draft, signed by the user's session, is refused for this.
fn check_refused(what: &str, cluster: &Cluster, user: &User, draft: &Draft, why: &Rejection) {
    let (mut cluster, mut user) = (cluster.clone(), user.clone());
    let reply = cluster.submit(&user.sign(&cluster, draft));
    let Reply::Bundle { outcomes, .. } = reply else { panic!("{what}: {reply:?}") };
    assert_eq!(outcomes.last(), Some(&Err(why.clone())), "{what}");
}

// -- when -----------------------------------------------------------------------------------------

#[test]
fn a_removed_file_goes_when_retention_has_passed() {
    let (mut cluster, mut alice) = alone();
    let before = used(&cluster, &alice);
    put_file(&mut cluster, &mut alice, "a", 0..3);
    let mut draft = Draft::new();
    draft.commit(&cluster, inode("a"), &[7]);
    draft.set_attrs(&cluster, inode("a"), "other");
    alice.act(&mut cluster, &draft);
    check_ignored("it has a name", &mut cluster, purge(inode("a")));
    remove(&mut cluster, &mut alice, "a");
    assert_eq!(query::deleted_inodes(&cluster.tables).unwrap(), 1);
    cluster.tick_by(RETENTION_MS);
    assert_eq!(due(&cluster), []);
    check_ignored("not quite due", &mut cluster, purge(inode("a")));
    cluster.tick_by(1);
    assert_eq!(due(&cluster), [inode("a")]);
    assert_eq!(purge_all(&mut cluster, inode("a")), 1);
    assert_eq!(used(&cluster, &alice), before, "the home has its bytes back");
    assert_eq!(query::deleted_inodes(&cluster.tables).unwrap(), 0);
    for table in [Table::Rows, Table::Feed, Table::Pages, Table::Versions, Table::Heads] {
        let left = cluster.tables.scan(table, &[], &[u8::MAX; 80], 9).unwrap();
        assert!(left.is_empty(), "{}", table.name());
    }
    assert!(cluster.entry(&key(alice.home, "a")).is_none(), "the tombstone went too");
    // A position means one row for ever.
    assert_eq!(query::feed_position(&cluster.tables).unwrap(), 4);
    let mut alice = relogged(&mut cluster, alice);
    put_file(&mut cluster, &mut alice, "b", 0..1);
    assert_eq!(query::feed_position(&cluster.tables).unwrap(), 5);
}

/// The user in a new session: the one before has run out.
fn relogged(cluster: &mut Cluster, mut user: User) -> User {
    let mut draft = Draft::new();
    let number = cluster.revision();
    draft.push(user.login(cluster, number));
    cluster.submit(&user.by_identity(cluster, &draft));
    user
}

#[test]
fn what_comes_back_is_not_due_and_counts_anew() {
    let (mut cluster, mut alice) = alone();
    cluster.give(Decision::Retention { ms: 1000 });
    put_file(&mut cluster, &mut alice, "a", 0..1);
    remove(&mut cluster, &mut alice, "a");
    cluster.tick_by(1001);
    assert_eq!(due(&cluster), [inode("a")]);
    let mut draft = Draft::new();
    draft.undelete(&cluster, key(alice.home, "a"), inode("a"), Kind::File);
    alice.act(&mut cluster, &draft);
    assert_eq!(due(&cluster), []);
    check_ignored("it came back", &mut cluster, purge(inode("a")));
    remove(&mut cluster, &mut alice, "a");
    cluster.tick_by(1000);
    assert_eq!(due(&cluster), []);
    cluster.tick_by(1);
    assert_eq!(due(&cluster), [inode("a")]);
}

#[test]
fn an_order_changes_what_is_due() {
    let (mut cluster, mut alice) = alone();
    put_file(&mut cluster, &mut alice, "a", 0..1);
    remove(&mut cluster, &mut alice, "a");
    cluster.tick_by(1);
    assert_eq!(due(&cluster), []);
    cluster.give(Decision::Retention { ms: 0 });
    assert_eq!(due(&cluster), [inode("a")]);
    cluster.give(Decision::Retention { ms: u64::MAX });
    assert_eq!(due(&cluster), []);
    check_ignored("kept for ever", &mut cluster, purge(inode("a")));
    check_ignored("version 1", &mut cluster.clone().of_version_1(), purge(inode("a")));
    check_ignored("nothing", &mut cluster, purge(inode("nothing")));
    check_ignored("a home", &mut cluster, purge(alice.home));
}

/// Version 1 kept no account of it, so it stays.
#[test]
fn what_version_1_deleted_is_not_purged() {
    let (mut cluster, mut alice) = alone();
    put_file(&mut cluster, &mut alice, "a", 0..1);
    put_file(&mut cluster, &mut alice, "b", 0..1);
    cluster = cluster.of_version_1();
    remove(&mut cluster, &mut alice, "a");
    cluster.system(SystemOp::CoreVersion { version: 2 });
    cluster.give(Decision::Retention { ms: 0 });
    remove(&mut cluster, &mut alice, "b");
    cluster.tick_by(1);
    assert_eq!(due(&cluster), [inode("b")]);
    let mut draft = Draft::new();
    draft.undelete(&cluster, key(alice.home, "a"), inode("a"), Kind::File);
    alice.act(&mut cluster, &draft);
    assert_eq!(query::deleted_inodes(&cluster.tables).unwrap(), 1);
}

// -- what -----------------------------------------------------------------------------------------

#[test]
fn a_large_file_goes_in_steps_and_leaves_others_alone() {
    let (mut cluster, mut alice) = alone();
    let mut bob = User::join(&mut cluster, "bob");
    // Bob names some of the same chunks, again and again.
    put_file(&mut cluster, &mut bob, "of bob", 0..300);
    let of_bob = (
        used(&cluster, &bob),
        query::content(&cluster.tables, bob.principal, &inode("of bob"), 0, 0, 300)
            .unwrap()
            .unwrap(),
    );
    put_file(&mut cluster, &mut alice, "a", 0..900);
    for _ in 0..3 {
        let mut draft = Draft::new();
        draft.commit(&cluster, inode("a"), &[]);
        alice.act(&mut cluster, &draft);
    }
    remove(&mut cluster, &mut alice, "a");
    cluster.give(Decision::Retention { ms: 1000 });
    cluster.tick_by(1001);
    check_logged(&mut cluster, purge(inode("a")));
    assert_eq!(due(&cluster), [inode("a")], "there is more to do");
    // From here on it does not come back, and what has begun ends, whatever is ordered meanwhile.
    let mut draft = Draft::new();
    draft.undelete(&cluster, key(alice.home, "a"), inode("a"), Kind::File);
    check_refused("undelete", &cluster, &alice, &draft, &Rejection::NotFound);
    cluster.give(Decision::Retention { ms: RETENTION_MS });
    assert_eq!(due(&cluster), [inode("a")]);
    let steps = purge_all(&mut cluster, inode("a"));
    assert!((4..9).contains(&steps), "{steps} steps");
    assert_eq!(used(&cluster, &alice), Usage { bytes: 256, inodes: 1, rows: 0 });
    let still = query::content(&cluster.tables, bob.principal, &inode("of bob"), 0, 0, 300);
    assert_eq!((used(&cluster, &bob), still.unwrap().unwrap()), of_bob);
    let layouts = cluster.layouts().layouts;
    let node = cluster.nodes[0].0;
    let (rows, _, _) = query::feed(&cluster.tables, &layouts, node, 0, 9999).unwrap();
    assert_eq!(rows.len(), 300);
    assert!(rows.iter().all(|row| row.inode == inode("of bob")));
    check_replay(&cluster);
}

#[test]
fn a_directory_lets_go_of_what_is_below_it() {
    let (mut cluster, mut alice) = alone();
    let docs = inode("docs");
    let mut draft = Draft::new();
    draft.create_directory(&cluster, key(alice.home, "docs"), docs);
    draft.create_directory(&cluster, key(docs, "deep"), inode("deep"));
    draft.create_file(&cluster, key(inode("deep"), "f"), inode("f"), &[1]);
    alice.act(&mut cluster, &draft);
    for part in 0..3 {
        let mut draft = Draft::new();
        for number in 0..100 {
            let name = format!("{part} {number}");
            draft.create_directory(&cluster, key(docs, &name), inode(&name));
        }
        alice.act(&mut cluster, &draft);
    }
    // One name more has a story: removed, used again, and removed again.
    for round in ["first", "second"] {
        let mut draft = Draft::new();
        draft.create_file(&cluster, key(docs, "again"), inode(round), &[2]);
        alice.act(&mut cluster, &draft);
        let mut draft = Draft::new();
        draft.remove(&cluster, key(docs, "again"), false);
        alice.act(&mut cluster, &draft);
        cluster.tick_by(10);
    }
    remove(&mut cluster, &mut alice, "docs");
    cluster.give(Decision::Retention { ms: 1000 });
    cluster.tick_by(1001);
    assert_eq!(due(&cluster), [inode("first"), inode("second"), docs]);
    assert!(purge_all(&mut cluster, docs) > 1);
    // All that had its name there waits for a purge of its own, what lay deeper not yet.
    let waiting = due(&cluster);
    assert_eq!(waiting.len(), 303);
    assert!(waiting.contains(&inode("deep")) && !waiting.contains(&inode("f")));
    // What has lost its directory can still be given a name elsewhere.
    let mut draft = Draft::new();
    draft.undelete(&cluster, key(alice.home, "saved"), inode("0 7"), Kind::Directory);
    draft.undelete(&cluster, key(alice.home, "old"), inode("first"), Kind::File);
    alice.act(&mut cluster, &draft);
    for inode in due(&cluster) {
        purge_all(&mut cluster, inode);
    }
    assert_eq!(due(&cluster), [inode("f")]);
    purge_all(&mut cluster, inode("f"));
    let usage = used(&cluster, &alice);
    assert_eq!((usage.inodes, usage.rows), (3, 1), "the home and what was saved");
    check_replay(&cluster);
}

/// What a rename put something else in the place of, under a name that lives on.
#[test]
fn a_replaced_file_goes_and_its_name_stays() {
    let (mut cluster, mut alice) = alone();
    cluster.give(Decision::Retention { ms: 1000 });
    put_file(&mut cluster, &mut alice, "a", 0..1);
    put_file(&mut cluster, &mut alice, "b", 1..2);
    cluster.tick_by(5000);
    let mut draft = Draft::new();
    draft.rename(&cluster, key(alice.home, "a"), key(alice.home, "b"));
    alice.act(&mut cluster, &draft);
    assert_eq!(due(&cluster), [], "its name was old, but it was not without one");
    cluster.tick_by(1001);
    assert_eq!(due(&cluster), [inode("b")]);
    purge_all(&mut cluster, inode("b"));
    assert_eq!(cluster.entry(&key(alice.home, "b")).unwrap().leaf.inode, inode("a"));
}

#[test]
fn a_tombstone_of_what_was_purged_under_another_name_is_not_shown() {
    let (mut cluster, mut alice) = alone();
    cluster.give(Decision::Retention { ms: 1000 });
    put_file(&mut cluster, &mut alice, "a", 0..1);
    remove(&mut cluster, &mut alice, "a");
    let mut draft = Draft::new();
    draft.undelete(&cluster, key(alice.home, "b"), inode("a"), Kind::File);
    alice.act(&mut cluster, &draft);
    remove(&mut cluster, &mut alice, "b");
    let shown = |cluster: &Cluster| {
        let want = query::Want::default();
        let (tables, who) = (&cluster.tables, alice.principal);
        query::list(tables, who, &alice.home, None, 9, &want, true).unwrap().0.len()
    };
    assert_eq!(shown(&cluster), 2);
    cluster.tick_by(1001);
    purge_all(&mut cluster, inode("a"));
    assert_eq!(shown(&cluster), 0);
    // The name is there to be used again, by whoever knows its tombstone.
    put_file(&mut cluster, &mut alice, "a again", 0..1);
    let mut draft = Draft::new();
    draft.create_file(&cluster, key(alice.home, "a"), inode("new"), &[4]);
    alice.act(&mut cluster, &draft);
    crate::invariants::Checker::new(cluster.id).check(&cluster.tables);
}

/// Somebody stages parts for what becomes the home of somebody else: the home stands.
#[test]
fn a_home_is_not_purged_for_what_was_staged_before_it() {
    let (mut cluster, mut alice) = alone();
    cluster.give(Decision::Retention { ms: 0 });
    let bob = User::newcomer("bob");
    let at = StagedKey { inode: bob.home, write: write("w") };
    let draft = stage(&cluster, &alice, at, 0..300);
    alice.act(&mut cluster, &draft);
    let mut late = cluster.clone();
    User::join(&mut cluster, "bob");
    cluster.tick_by(1);
    assert_eq!(due(&cluster), []);
    check_ignored("a home", &mut cluster, purge(bob.home));

    late.tick_by(1);
    check_logged(&mut late, purge(bob.home));
    let mut draft = Draft::new();
    let registration = bob.registration(&mut draft);
    draft.push(registration);
    let submission = bob.clone().by_identity(&late, &draft);
    let Reply::Bundle { outcomes, .. } = late.submit(&submission) else { panic!() };
    assert_eq!(outcomes, [Err(Rejection::InodeExists)]);
}

// -- partial versions -----------------------------------------------------------------------------

fn stage(cluster: &Cluster, user: &User, at: StagedKey, chunks: std::ops::Range<u64>) -> Draft {
    let mut draft = Draft::new();
    let content: BTreeMap<_, _> = chunks.clone().map(|number| (number, chunk(number))).collect();
    draft.stage(user.home, at, &content, chunks.end);
    if let (Some(standing), Some(Op::Stage { staged, base, .. })) =
        (cluster.staged(&at), draft.ops.last_mut())
    {
        staged.expected = Some(standing.hash);
        *base = Base::Staged;
    }
    draft
}

#[test]
fn parts_of_a_file_that_never_came_to_be_go() {
    let (mut cluster, mut alice) = alone();
    cluster.give(Decision::Retention { ms: 1000 });
    let before = used(&cluster, &alice);
    let at = StagedKey { inode: inode("big"), write: write("big") };
    let draft = stage(&cluster, &alice, at, 0..300);
    alice.act(&mut cluster, &draft);
    assert_eq!(query::deleted_inodes(&cluster.tables).unwrap(), 0, "it was never there");
    cluster.tick_by(600);
    // A later part is a sign of life.
    let mut draft = stage(&cluster, &alice, at, 0..301);
    draft.payloads.slots[0].changes = vec![(300, Slot::Chunk(chunk(300)))];
    alice.act(&mut cluster, &draft);
    cluster.tick_by(600);
    assert_eq!(due(&cluster), []);
    cluster.tick_by(401);
    assert_eq!(due(&cluster), [inode("big")]);

    let mut taken = cluster.clone();
    let mut other = alice.clone();
    let mut draft = Draft::new();
    let content = (0..301).map(|number| (number, chunk(number))).collect();
    let mut head = draft.head(inode("big"), None, 1, Base::Staged, (301, &content));
    head.change.leaf.write = at.write;
    let entry = draft.entry(key(alice.home, "big"), None, inode("big"), Kind::File);
    let attrs = draft.attrs(inode("big"), None, "new");
    draft.push(Op::Create { entry, attrs, head: Some(head) });
    other.act(&mut taken, &draft);
    assert_eq!(due(&taken), [], "what has become a file is not abandoned");
    check_ignored("a file", &mut taken, purge(inode("big")));

    check_logged(&mut cluster, purge(inode("big")));
    check_refused("too late", &cluster, &alice, &draft, &Rejection::InodeExists);
    let mut part = stage(&cluster, &alice, at, 0..1);
    part.ops.truncate(1);
    check_refused("too late for a part", &cluster, &alice, &part, &Rejection::NotFound);
    purge_all(&mut cluster, inode("big"));
    assert_eq!(used(&cluster, &alice), before);
    // Gone without a trace: the id may be used again.
    let draft = stage(&cluster, &alice, at, 0..1);
    alice.act(&mut cluster, &draft);
}
