//! Listing: whatever the size of a page, the names are the same, and nobody else's are among them.

use std::collections::BTreeSet;

use coffer_metadata_core::query::{self, FoundEntry, QueryError, Want};
use coffer_model::id::{InodeId, NameTag};
use coffer_model::object::{EntryKey, Kind};
use proptest::prelude::*;

use crate::kit::{Cluster, Draft, User, inode};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Lives,
    IsDeleted,
    Moves,
}

/// Tags at both ends of the order, and some in between.
fn tag() -> impl Strategy<Value = NameTag> {
    let byte = || prop::sample::select(&[0u8, 1, 0x7f, 0xfe, 0xff][..]);
    (byte(), byte(), byte()).prop_map(|(first, middle, last)| {
        let mut tag = [middle; 32];
        (tag[0], tag[31]) = (first, last);
        NameTag::from_bytes(tag)
    })
}

fn names() -> impl Strategy<Value = Vec<(NameTag, Fate)>> {
    let fate = prop::sample::select(&[Fate::Lives, Fate::Lives, Fate::IsDeleted, Fate::Moves][..]);
    let map = prop::collection::btree_map(tag(), fate, 0..24);
    map.prop_map(|names| names.into_iter().collect())
}

/// Directories whose keys are neighbours in the table.
fn neighbours() -> [InodeId; 3] {
    let mut before = [0xff; 16];
    before[15] = 0xfe;
    let mut far = [0xff; 16];
    far[0] = 0xfe;
    [far, before, [0xff; 16]].map(InodeId::from_bytes)
}

fn fill(cluster: &mut Cluster, user: &mut User, directories: &[(InodeId, Vec<(NameTag, Fate)>)]) {
    let mut draft = Draft::new();
    for (number, (directory, _)) in directories.iter().enumerate() {
        draft.create_directory(
            cluster,
            crate::kit::key(user.home, &number.to_string()),
            *directory,
        );
    }
    draft.create_directory(cluster, crate::kit::key(user.home, "elsewhere"), inode("elsewhere"));
    user.act(cluster, &draft);
    for (directory, names) in directories {
        let mut made = Draft::new();
        for (tag, _) in names {
            let at = EntryKey { directory: *directory, tag: *tag };
            made.create_directory(cluster, at, inode(&format!("{directory} {tag}")));
        }
        if names.is_empty() {
            continue;
        }
        user.act(cluster, &made);
        let mut ended = Draft::new();
        for (tag, fate) in names {
            let at = EntryKey { directory: *directory, tag: *tag };
            match fate {
                Fate::Lives => {}
                Fate::IsDeleted => {
                    ended.remove(cluster, at, true);
                }
                Fate::Moves => {
                    let word = format!("{directory} {tag}");
                    let to = crate::kit::key(inode("elsewhere"), &word);
                    ended.rename(cluster, at, to);
                }
            }
        }
        if !ended.ops.is_empty() {
            user.act(cluster, &ended);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn pages_of_any_size_give_the_same_names(
        first in names(),
        second in names(),
        third in names(),
        deleted in any::<bool>(),
        from in prop::option::of(tag()),
    ) {
        let mut cluster = Cluster::new();
        let mut user = User::join(&mut cluster, "alice");
        let directories: Vec<_> = neighbours().into_iter().zip([first, second, third]).collect();
        fill(&mut cluster, &mut user, &directories);
        let want = Want { attrs: true, ..Want::default() };
        for (directory, names) in &directories {
            let expected: Vec<NameTag> = names
                .iter()
                .filter(|(tag, _)| from.is_none_or(|from| *tag > from))
                .filter(|(_, fate)| *fate == Fate::Lives || (deleted && *fate == Fate::IsDeleted))
                .map(|(tag, _)| *tag)
                .collect();
            for page in [1, 2, 3, 7, 100, usize::MAX] {
                let (mut found, mut after): (Vec<FoundEntry>, _) = (Vec::new(), from);
                loop {
                    let (some, next) = query::list(
                        &cluster.tables, user.principal, directory, after.as_ref(), page, &want, deleted,
                    ).unwrap();
                    prop_assert!(some.len() <= page);
                    prop_assert!(next.is_none() || some.len() == page, "a short page ends the list");
                    found.extend(some);
                    if next.is_none() {
                        break;
                    }
                    prop_assert_eq!(next, found.last().map(|entry| entry.key.tag));
                    after = next;
                }
                let tags: Vec<NameTag> = found.iter().map(|entry| entry.key.tag).collect();
                prop_assert_eq!(&tags, &expected, "{} at a time", page);
                let here = |entry: &FoundEntry| entry.key.directory == *directory;
                prop_assert!(found.iter().all(here));
                prop_assert!(found.iter().all(|entry| entry.attrs.is_some() && entry.head.is_none()));
            }
        }
    }
}

/// Names that come and go between two pages: what was there all the time is listed exactly once.
#[test]
fn a_list_goes_on_where_it_stopped_whatever_happens_meanwhile() {
    let mut cluster = Cluster::new();
    let mut user = User::join(&mut cluster, "alice");
    let key =
        |number: u8| EntryKey { directory: inode("docs"), tag: NameTag::from_bytes([number; 32]) };
    let mut draft = Draft::new();
    draft.create_directory(&cluster, crate::kit::key(user.home, "docs"), inode("docs"));
    for number in [10, 20, 30, 40, 50, 60] {
        draft.create_directory(&cluster, key(number), inode(&number.to_string()));
    }
    user.act(&mut cluster, &draft);
    let want = Want::default();
    let (first, after) =
        query::list(&cluster.tables, user.principal, &inode("docs"), None, 2, &want, false)
            .unwrap();
    let after = after.unwrap();
    // The very name the next page goes on after is removed; others come before and behind it.
    let mut draft = Draft::new();
    draft.remove(&cluster, key(20), true);
    draft.remove(&cluster, key(40), true);
    draft.create_directory(&cluster, key(5), inode("5"));
    draft.create_directory(&cluster, key(45), inode("45"));
    user.act(&mut cluster, &draft);
    let (second, none) =
        query::list(&cluster.tables, user.principal, &inode("docs"), Some(&after), 9, &want, false)
            .unwrap();
    assert_eq!(none, None);
    let seen: Vec<u8> =
        first.iter().chain(&second).map(|entry| entry.key.tag.as_bytes()[0]).collect();
    assert_eq!(seen, [10, 20, 30, 45, 50, 60]);
}

#[test]
fn only_directories_have_names() {
    let mut cluster = Cluster::new();
    let mut user = User::join(&mut cluster, "alice");
    let mut draft = Draft::new();
    draft.create_file(&cluster, crate::kit::key(user.home, "f"), inode("f"), &[]);
    user.act(&mut cluster, &draft);
    let list = |directory| {
        query::list(&cluster.tables, user.principal, &directory, None, 1, &Want::default(), true)
    };
    assert!(matches!(list(inode("f")), Err(QueryError::NotADirectory)));
    assert!(matches!(list(inode("nowhere")), Err(QueryError::NotFound)));
    assert_eq!(list(user.home).unwrap().0.len(), 1);
}

/// A directory that was deleted whole can still be looked into: that is how one finds what to restore.
#[test]
fn what_was_deleted_whole_can_be_seen() {
    let mut cluster = Cluster::new();
    let mut user = User::join(&mut cluster, "alice");
    let at = crate::kit::key(user.home, "docs");
    let mut draft = Draft::new();
    draft.create_directory(&cluster, at, inode("docs"));
    draft.create_file(&cluster, crate::kit::key(inode("docs"), "a"), inode("a"), &[1, 2]);
    user.act(&mut cluster, &draft);
    let mut draft = Draft::new();
    draft.remove(&cluster, at, false);
    user.act(&mut cluster, &draft);
    let want = Want { attrs: true, head: true, from_slot: 0, to_slot: 9 };
    let tags = [at.tag, crate::kit::key(inode("docs"), "a").tag];
    // A walk ends at the tombstone; from there one goes on by the inode it keeps.
    let steps = query::walk(&cluster.tables, user.principal, &user.home, &tags, &want).unwrap();
    assert_eq!(steps.iter().map(|step| step.key).collect::<Vec<_>>(), [at]);
    let (below, _) =
        query::list(&cluster.tables, user.principal, &inode("docs"), None, 9, &want, false)
            .unwrap();
    let chunks: BTreeSet<_> = below[0].chunks.iter().copied().collect();
    assert_eq!((below.len(), chunks.len()), (1, 2));
    // It is restored by its own name, without the name travelling again.
    let row = cluster.entry(&at).unwrap();
    let mut draft = Draft::new();
    draft.undelete(&cluster, at, inode("docs"), Kind::Directory);
    draft.payloads.blobs.clear();
    let Some(coffer_model::op::Op::Undelete { entry }) = draft.ops.last_mut() else { panic!() };
    entry.leaf.name = row.leaf.name;
    user.act(&mut cluster, &draft);
    let steps = query::walk(&cluster.tables, user.principal, &user.home, &tags, &want).unwrap();
    assert_eq!(steps.len(), 2);
}
