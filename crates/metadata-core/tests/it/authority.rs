//! Who may do what (A44, A45): every role tries every op on every kind of object of a home, and every
//! question. There is no op yet that gives somebody a role, so these tests write it into the tables.

use std::collections::BTreeMap;

use coffer_metadata_core::query::{self, QueryError, Want};
use coffer_metadata_core::state::{Row, load, store};
use coffer_metadata_core::{Overlay, Reply, Table};
use coffer_model::id::{InodeId, PrincipalId};
use coffer_model::object::{
    EntryLeaf, EntryState, Kind, Object, Role, StagedKey, VaultLeaf, VaultMember,
};
use coffer_model::op::{Change, Op, Rejection};

use crate::kit::{Cluster, Draft, User, applied, chunk, inode, key, write};

fn grant(cluster: &mut Cluster, home: InodeId, principal: PrincipalId, role: Role) {
    let mut row: Row<VaultLeaf> =
        load(&cluster.tables, Table::Vaults, home.as_bytes()).unwrap().unwrap();
    row.leaf.members.push(VaultMember { principal, role, sealed_key: vec![1] });
    row.leaf.members.sort_by_key(|member| member.principal);
    let mut overlay = Overlay::new(&cluster.tables);
    overlay.put(Table::Vaults, home.as_bytes(), store(&row));
    let changes = overlay.into_changes();
    cluster.tables.write(changes);
}

/// Alice's home with a directory, files and something deleted; and what Bob is there.
fn scene(role: Option<Role>) -> (Cluster, User, User) {
    let mut cluster = Cluster::new();
    let mut alice = User::join(&mut cluster, "alice");
    let bob = User::join(&mut cluster, "bob");
    let mut draft = Draft::new();
    draft.create_directory(&cluster, key(alice.home, "docs"), inode("docs"));
    draft.create_file(&cluster, key(inode("docs"), "a"), inode("a"), &[1, 2]);
    draft.create_file(&cluster, key(alice.home, "gone"), inode("gone"), &[3]);
    alice.act(&mut cluster, &draft);
    let mut draft = Draft::new();
    draft.remove(&cluster, key(alice.home, "gone"), false);
    let at = StagedKey { inode: inode("a"), write: write("part") };
    draft.stage(inode("docs"), at, &[(0, chunk(7))].into(), 1);
    alice.act(&mut cluster, &draft);
    if let Some(role) = role {
        grant(&mut cluster, alice.home, bob.principal, role);
    }
    (cluster, alice, bob)
}

const ROLES: [Option<Role>; 4] = [None, Some(Role::Reader), Some(Role::Writer), Some(Role::Admin)];

#[test]
fn writing_takes_a_writer() {
    type Make = fn(&Cluster, &User, &mut Draft);
    let ops: [(&str, Make); 12] = [
        ("create a directory", |c, alice, d| {
            d.create_directory(c, key(alice.home, "x"), inode("x"));
        }),
        ("create a file", |c, _, d| {
            d.create_file(c, key(inode("docs"), "x"), inode("x"), &[9]);
        }),
        ("commit", |c, _, d| {
            d.commit(c, inode("a"), &[8]);
        }),
        ("set attributes", |c, _, d| {
            d.set_attrs(c, inode("a"), "x");
        }),
        ("set the home's attributes", |c, alice, d| {
            d.set_attrs(c, alice.home, "x");
        }),
        ("rename", |c, alice, d| {
            d.rename(c, key(inode("docs"), "a"), key(alice.home, "a"));
        }),
        ("rename over a tombstone", |c, alice, d| {
            d.rename(c, key(inode("docs"), "a"), key(alice.home, "gone"));
        }),
        ("remove a file", |c, _, d| {
            d.remove(c, key(inode("docs"), "a"), false);
        }),
        ("remove a directory", |c, alice, d| {
            d.remove(c, key(alice.home, "docs"), false);
        }),
        ("undelete", |c, alice, d| {
            d.undelete(c, key(alice.home, "gone"), inode("gone"), Kind::File);
        }),
        ("stage for a file", |_, _, d| {
            let at = StagedKey { inode: inode("a"), write: write("w") };
            d.stage(inode("docs"), at, &[(0, chunk(1))].into(), 1);
        }),
        ("stage for what is to come", |_, alice, d| {
            let at = StagedKey { inode: inode("new"), write: write("w") };
            d.stage(alice.home, at, &BTreeMap::new(), 0);
        }),
    ];
    for role in ROLES {
        for (what, make) in &ops {
            let (mut cluster, alice, mut bob) = scene(role);
            let mut draft = Draft::new();
            make(&cluster, &alice, &mut draft);
            let before = query::totals(&cluster.tables).unwrap();
            let reply = cluster.submit(&bob.sign(&cluster, &draft));
            if role >= Some(Role::Writer) {
                assert_eq!(applied(&reply), 1, "{what} as {role:?}");
                // Whoever writes, the home pays.
                assert_eq!(query::usage(&cluster.tables, &bob.home).unwrap().inodes, 1);
            } else {
                let Reply::Bundle { outcomes, .. } = reply else { panic!("{what}: {reply:?}") };
                assert_eq!(outcomes, [Err(Rejection::Denied)], "{what} as {role:?}");
                assert_eq!(query::totals(&cluster.tables).unwrap(), before);
            }
        }
    }
}

#[test]
fn seeing_takes_a_reader() {
    for role in ROLES {
        let (cluster, alice, bob) = scene(role);
        let tables = &cluster.tables;
        let (who, docs, a) = (bob.principal, inode("docs"), inode("a"));
        let want = Want { attrs: true, head: true, from_slot: 0, to_slot: 9 };
        let tags = [key(alice.home, "docs").tag, key(docs, "a").tag];
        let part = StagedKey { inode: a, write: write("part") };
        let answers: Vec<(&str, Result<(), QueryError>)> = vec![
            ("walk", query::walk(tables, who, &alice.home, &tags, &want).map(drop)),
            ("list", query::list(tables, who, &docs, None, 5, &want, true).map(drop)),
            ("list home", query::list(tables, who, &alice.home, None, 5, &want, true).map(drop)),
            ("content", query::content(tables, who, &a, 0, 0, 9).map(drop)),
            (
                "content of what is gone",
                query::content(tables, who, &inode("gone"), 1, 0, 9).map(drop),
            ),
            ("versions", query::versions(tables, who, &a, None, 9).map(drop)),
            ("entry", query::object(tables, who, &Object::Entry(key(docs, "a"))).map(drop)),
            ("no entry", query::object(tables, who, &Object::Entry(key(docs, "b"))).map(drop)),
            ("head", query::object(tables, who, &Object::Head(a)).map(drop)),
            ("attributes", query::object(tables, who, &Object::Attrs(a)).map(drop)),
            ("vault", query::object(tables, who, &Object::Vault(alice.home)).map(drop)),
            ("partial version", query::object(tables, who, &Object::Staged(part)).map(drop)),
        ];
        for (what, answer) in answers {
            match answer {
                Ok(()) if role.is_some() => {}
                Err(QueryError::Denied) if role.is_none() => {}
                other => panic!("{what} as {role:?}: {other:?}"),
            }
        }
        let paying = query::write_home(tables, who, &docs);
        match paying {
            Ok(home) if role >= Some(Role::Writer) => assert_eq!(home, alice.home),
            Err(QueryError::Denied) if role < Some(Role::Writer) => {}
            other => panic!("write ticket as {role:?}: {other:?}"),
        }
        let gone = query::write_home(tables, alice.principal, &inode("gone"));
        assert!(matches!(gone, Err(QueryError::NotFound)), "{gone:?}");
        // Whoever checks signatures needs users and sessions; nobody gets a keyring that way.
        let user = query::object(tables, who, &Object::User(alice.name.clone())).unwrap().unwrap();
        assert_eq!(user.payload, b"");
        assert!(query::object(tables, who, &Object::Session(alice.certificate)).unwrap().is_some());
    }
}

/// Somebody who may write in two homes can still not move anything from one to the other.
#[test]
fn nothing_leaves_its_home() {
    type Make = fn(&Cluster, &User, &mut Draft);
    let ops: [(&str, Make); 3] = [
        ("rename", |c, bob, d| {
            d.rename(c, key(inode("docs"), "a"), key(bob.home, "a"));
        }),
        ("undelete", |c, bob, d| {
            d.undelete(c, key(bob.home, "gone"), inode("gone"), Kind::File);
        }),
        ("have one home pay for a partial version in the other", |_, bob, d| {
            let at = StagedKey { inode: inode("a"), write: write("w") };
            d.stage(bob.home, at, &[(0, chunk(1))].into(), 1);
        }),
    ];
    for (what, make) in ops {
        let (mut cluster, _, mut bob) = scene(Some(Role::Admin));
        let mut draft = Draft::new();
        make(&cluster, &bob, &mut draft);
        let reply = cluster.submit(&bob.sign(&cluster, &draft));
        let Reply::Bundle { outcomes, .. } = reply else { panic!("{what}: {reply:?}") };
        assert_eq!(outcomes, [Err(Rejection::CrossHome)], "{what}");
    }
}

/// A29, A44: an inode's id is not a way in. Bob names Alice's inode in a place of his own.
#[test]
fn an_id_that_is_known_opens_nothing() {
    let (mut cluster, alice, mut bob) = scene(None);
    let mut draft = Draft::new();
    // A name of Bob's that points at Alice's file.
    draft.create_file(&cluster, key(bob.home, "mine"), inode("mine"), &[]);
    bob.act(&mut cluster, &draft);
    let row = cluster.entry(&key(bob.home, "mine")).unwrap();
    let mut draft = Draft::new();
    let to = draft.entry(key(bob.home, "x"), None, inode("a"), Kind::File);
    let moved = EntryState::Moved { to: to.key };
    let leaf = EntryLeaf { state: moved, ..row.leaf };
    let from = Change { key: key(bob.home, "mine"), expected: Some(row.hash), leaf };
    draft.push(Op::Rename { from, to });
    let reply = cluster.submit(&bob.sign(&cluster, &draft));
    let Reply::Bundle { outcomes, .. } = reply else { panic!("{reply:?}") };
    assert!(matches!(outcomes[..], [Err(Rejection::Invalid(_))]), "{outcomes:?}");
    // Walking down from Bob's home, by the tags of Alice's names.
    let tags = [key(alice.home, "docs").tag];
    let steps = query::walk(&cluster.tables, bob.principal, &bob.home, &tags, &Want::default());
    assert_eq!(steps.unwrap(), []);
}
