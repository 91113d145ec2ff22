//! Random bundles by two users against the plain tree of [`crate::tree`]: after every step the outcomes
//! are the expected ones, the visible tree is the same, and the invariants hold.

use std::collections::BTreeMap;

use coffer_metadata_core::query::{self, FoundEntry, QueryError, Want};
use coffer_metadata_core::state::meta;
use coffer_metadata_core::{MemoryTables, Overlay, Prepared, Reply, Table, Tables, apply};
use coffer_model::bundle::{BundleRejection, Submission};
use coffer_model::chunk::ChunkClass;
use coffer_model::encoding::decode;
use coffer_model::hash::{Hash, payload_hash};
use coffer_model::id::{InodeId, PrincipalId};
use coffer_model::log::{ChunkRow, SystemOp};
use coffer_model::manifest::{self, Slot};
use coffer_model::object::{
    EntryKey, EntryLeaf, EntryState, HeadLeaf, Kind, Leaf, LeafHash, Object,
};
use coffer_model::object::{StagedKey, StagedLeaf};
use coffer_model::op::{Base, Change, HeadChange, Op, Rejection};
use coffer_model::order::Decision;
use coffer_model::time::LogTime;
use proptest::prelude::*;

use crate::invariants::Checker;
use crate::kit::{Cluster, Draft, User, chunk, inode, key, manifest_of, submission, write};
use crate::system::{check_ignored, check_logged};
use crate::tree::{Case, Content, World, same};

/// Short, so that much is due.
const RETENTION_MS: u64 = 20_000;

// -- what is tried --------------------------------------------------------------------------------

/// A free choice; what it chooses from is known when it is made.
type Pick = u16;

#[derive(Clone, Debug)]
enum Action {
    Create { directory: Pick, name: u8, kind: Kind, edit: Edit },
    Commit { file: Pick, edit: Edit, base: Pick, attrs: bool },
    Restore { file: Pick, version: Pick },
    Stage { partial: Pick, file: Pick, directory: Pick, edit: Edit, base: Pick },
    TakeUp { partial: Pick, directory: Pick, name: u8, edit: Edit },
    SetAttrs { thing: Pick, same: bool },
    Rename { from: Pick, directory: Pick, name: u8 },
    Remove { name: Pick, only_empty: bool },
    Undelete { thing: Pick, directory: Pick, name: u8, own: bool },
}

/// A change of content.
#[derive(Clone, Debug)]
struct Edit {
    slots: u16,
    changes: BTreeMap<u16, Option<u8>>,
    small: bool,
    /// Says again what is in some slots already.
    repeat: bool,
}

/// What is wrong with an op.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    Stale(u8),
    NeverSeen(u8),
    NoPayload,
    LargePayload,
    WrongRoot,
    NoReceipts,
    LateReceipts,
    WrongVersion,
    WrongKind,
    WrongState,
    WrongInode,
    Adopted,
    LongWrap,
    SlotsTwice,
    SlotBeyond,
}

/// What is wrong with a bundle, or done before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Around {
    Nothing,
    Tick(u32),
    Report(u8),
    Purge(Pick),
    Quota(Option<u16>),
    OtherSession,
    OtherPrincipal,
    Late,
    Early,
    Again,
}

#[derive(Clone, Debug)]
struct Step {
    user: bool,
    around: Around,
    /// What is done, what is wrong with it, and whether the next op takes it for applied all the same.
    actions: Vec<(Action, Fault)>,
}

fn edit() -> impl Strategy<Value = Edit> {
    let slots = prop_oneof![6 => 0u16..6, 2 => 60u16..70, 1 => 4090u16..4100];
    (slots, any::<u64>(), any::<bool>(), 0u8..8).prop_flat_map(|(slots, seed, small, repeat)| {
        let at = 0..slots.max(1);
        let content = prop::option::weighted(0.8, 0u8..6);
        prop::collection::btree_map(at, content, 0..5).prop_map(move |mut changes| {
            changes.retain(|slot, _| *slot < slots);
            let small = small && seed % 4 == 0;
            Edit { slots, changes, small, repeat: repeat == 0 }
        })
    })
}

fn action() -> impl Strategy<Value = Action> {
    let p = any::<Pick>;
    let name = 0u8..4;
    let kind =
        prop_oneof![5 => Just(Kind::File), 4 => Just(Kind::Directory), 1 => Just(Kind::Symlink)];
    prop_oneof![
        8 => (p(), name.clone(), kind, edit())
            .prop_map(|(directory, name, kind, edit)| Action::Create { directory, name, kind, edit }),
        5 => (p(), edit(), p(), any::<bool>())
            .prop_map(|(file, edit, base, attrs)| Action::Commit { file, edit, base, attrs }),
        1 => (p(), p()).prop_map(|(file, version)| Action::Restore { file, version }),
        3 => (p(), p(), p(), edit(), p()).prop_map(|(partial, file, directory, edit, base)| {
            Action::Stage { partial, file, directory, edit, base }
        }),
        3 => (p(), p(), name.clone(), edit())
            .prop_map(|(partial, directory, name, edit)| Action::TakeUp { partial, directory, name, edit }),
        2 => (p(), any::<bool>()).prop_map(|(thing, same)| Action::SetAttrs { thing, same }),
        6 => (p(), p(), name.clone())
            .prop_map(|(from, directory, name)| Action::Rename { from, directory, name }),
        5 => (p(), any::<bool>()).prop_map(|(name, only_empty)| Action::Remove { name, only_empty }),
        5 => (p(), p(), name, any::<bool>())
            .prop_map(|(thing, directory, name, own)| Action::Undelete { thing, directory, name, own }),
    ]
}

fn fault() -> impl Strategy<Value = Fault> {
    let some = prop_oneof![
        any::<u8>().prop_map(Fault::Stale),
        any::<u8>().prop_map(Fault::NeverSeen),
        Just(Fault::NoPayload),
        Just(Fault::LargePayload),
        Just(Fault::WrongRoot),
        Just(Fault::NoReceipts),
        Just(Fault::LateReceipts),
        Just(Fault::WrongVersion),
        Just(Fault::WrongKind),
        Just(Fault::WrongState),
        Just(Fault::WrongInode),
        Just(Fault::Adopted),
        Just(Fault::LongWrap),
        Just(Fault::SlotsTwice),
        Just(Fault::SlotBeyond),
    ];
    prop_oneof![6 => Just(Fault::None), 1 => some]
}

fn step() -> impl Strategy<Value = Step> {
    let around = prop_oneof![
        12 => Just(Around::Nothing),
        3 => (1u32..40_000).prop_map(Around::Tick),
        1 => any::<u8>().prop_map(Around::Report),
        3 => any::<Pick>().prop_map(Around::Purge),
        1 => prop::option::weighted(0.4, any::<u16>()).prop_map(Around::Quota),
        1 => Just(Around::OtherSession),
        1 => Just(Around::OtherPrincipal),
        1 => Just(Around::Late),
        1 => Just(Around::Early),
        1 => Just(Around::Again),
    ];
    let actions = prop::collection::vec((action(), fault()), 1..6);
    (any::<bool>(), around, actions).prop_map(|(user, around, actions)| Step {
        user,
        around,
        actions,
    })
}

// -- from choices to ops --------------------------------------------------------------------------

fn choose<T: Copy>(pick: Pick, from: &[T]) -> Option<T> {
    (!from.is_empty()).then(|| from[usize::from(pick) % from.len()])
}

/// Makes ops for one user, as of a world.
struct Maker<'a> {
    world: &'a World,
    me: PrincipalId,
    time: LogTime,
    /// Numbers everything that must be new.
    fresh: u64,
    draft: Draft,
}

impl Maker<'_> {
    fn mine(&self, id: &InodeId) -> bool {
        self.world.owners[&self.world.things[id].home] == self.me
    }

    /// Mostly a live directory of one's own; now and then another's, a deleted one, a file.
    fn directory(&self, pick: Pick) -> InodeId {
        let things = || self.world.things.iter().map(|(id, thing)| (*id, thing));
        let directory = |kind| kind == Kind::Directory;
        let wanted: Vec<InodeId> = match pick % 16 {
            0 => things()
                .filter(|(id, thing)| directory(thing.kind) && !self.mine(id))
                .map(|(id, _)| id)
                .collect(),
            1 => things()
                .filter(|(id, thing)| directory(thing.kind) && !self.world.alive(*id))
                .map(|(id, _)| id)
                .collect(),
            2 => things().filter(|(_, thing)| !directory(thing.kind)).map(|(id, _)| id).collect(),
            _ => Vec::new(),
        };
        let usual: Vec<InodeId> = things()
            .filter(|(id, thing)| directory(thing.kind) && self.mine(id) && self.world.alive(*id))
            .map(|(id, _)| id)
            .collect();
        choose(pick / 16, &wanted).or_else(|| choose(pick / 16, &usual)).expect("a home's root")
    }

    /// Mostly a live file of one's own.
    fn file(&self, pick: Pick) -> Option<InodeId> {
        let all: Vec<InodeId> = self.world.things.keys().copied().collect();
        let usual: Vec<InodeId> = all
            .iter()
            .copied()
            .filter(|id| {
                let file = self.world.things[id].kind != Kind::Directory;
                file && self.mine(id) && self.world.alive(*id)
            })
            .collect();
        match pick % 12 {
            0 => choose(pick / 12, &all),
            _ => choose(pick / 12, &usual).or_else(|| choose(pick / 12, &all)),
        }
    }

    fn names(&self, wanted: impl Fn(&EntryKey, &EntryLeaf) -> bool) -> Vec<EntryKey> {
        let things = self.world.things.iter();
        things
            .flat_map(|(directory, thing)| {
                let names = thing.names.iter();
                names.map(|(tag, name)| (EntryKey { directory: *directory, tag: *tag }, &name.leaf))
            })
            .filter(|(key, leaf)| wanted(key, leaf))
            .map(|(key, _)| key)
            .collect()
    }

    /// Mostly a live name of one's own.
    fn live_name(&self, pick: Pick) -> Option<EntryKey> {
        let usual = self.names(|key, leaf| {
            leaf.state == EntryState::Live
                && self.mine(&key.directory)
                && self.world.alive(key.directory)
        });
        match pick % 12 {
            0 => choose(pick / 12, &self.names(|_, _| true)),
            _ => choose(pick / 12, &usual),
        }
    }

    fn held(&self, object: &Object) -> Option<LeafHash> {
        self.world.held.get(object).copied()
    }

    fn number(&mut self) -> u64 {
        self.fresh += 1;
        self.fresh
    }

    fn entry(&mut self, at: EntryKey, inode: InodeId, kind: Kind) -> Change<EntryKey, EntryLeaf> {
        let expected = self.held(&Object::Entry(at));
        let mut entry = self.draft.entry(at, expected, inode, kind);
        let number = self.number();
        entry.leaf.name = self.draft.blob(format!("name {number}"));
        entry
    }

    /// The changed slots of the next op, put into `base`; and what comes of it.
    fn edit(&mut self, edit: &Edit, base: &Content) -> Content {
        let slots = u64::from(edit.slots);
        let mut changes: BTreeMap<u64, Slot> = BTreeMap::new();
        if edit.repeat {
            let kept = base.chunks.iter().filter(|(slot, _)| **slot < slots).take(3);
            changes.extend(kept.map(|(slot, chunk)| (*slot, Slot::Chunk(*chunk))));
        }
        for (slot, content) in &edit.changes {
            let content = match content {
                Some(seed) if *seed < 3 => Slot::Chunk(chunk(u64::from(*seed))),
                Some(_) => Slot::Chunk(chunk(1000 + self.number())),
                None => Slot::Hole,
            };
            changes.insert(u64::from(*slot), content);
        }
        let changes: Vec<(u64, Slot)> = changes.into_iter().collect();
        let content = base.changed(slots, &changes);
        if !changes.is_empty() {
            self.draft.slots(changes);
        }
        content
    }

    fn head(
        &mut self,
        inode: InodeId,
        base: Base,
        content: &Content,
        class: ChunkClass,
    ) -> HeadChange {
        let version =
            self.world.things.get(&inode).map_or(0, |thing| thing.versions.len() as u64) + 1;
        let number = self.number();
        let leaf = HeadLeaf {
            version,
            write: write(&format!("{number}")),
            generation: 0,
            class,
            slots: content.slots,
            root: manifest_of(content.slots, &content.chunks).0,
            payload: self.draft.blob(format!("version {number}")),
            restored: 0,
        };
        let change = Change { key: inode, expected: self.held(&Object::Head(inode)), leaf };
        HeadChange { change, base, receipts_until: Some(self.time.plus_ms(version % 3)) }
    }

    fn class(edit: &Edit) -> ChunkClass {
        if edit.small { ChunkClass::Small } else { ChunkClass::Large }
    }

    /// The op for an action; none where there is nothing to do it to.
    fn op(&mut self, action: &Action) -> Option<Op> {
        Some(match action {
            Action::Create { directory, name, kind, edit } => {
                let at = key(self.directory(*directory), &name.to_string());
                let number = self.number();
                let id = inode(&format!("{number}"));
                let entry = self.entry(at, id, *kind);
                let attrs = self.draft.attrs(id, None, &format!("{number}"));
                let head = (*kind != Kind::Directory).then(|| {
                    let content = self.edit(edit, &Content::default());
                    self.head(id, Base::Empty, &content, Self::class(edit))
                });
                Op::Create { entry, attrs, head }
            }
            Action::Commit { file, edit, base, attrs } => {
                let id = self.file(*file)?;
                let versions = &self.world.things[&id].versions;
                let former = choose(*base, &(0..=versions.len()).collect::<Vec<_>>())?;
                let (base, content, class) = match former.checked_sub(1).map(|at| &versions[at]) {
                    Some(version) => {
                        let base = Base::Version(version.leaf.version);
                        (base, version.content.clone(), version.leaf.class)
                    }
                    None => (Base::Empty, Content::default(), Self::class(edit)),
                };
                let content = self.edit(edit, &content);
                let head = self.head(id, base, &content, class);
                let number = self.number();
                let expected = self.held(&Object::Attrs(id));
                let attrs = attrs.then(|| self.draft.attrs(id, expected, &format!("{number}")));
                Op::Commit { head, attrs }
            }
            Action::Restore { file, version } => {
                let id = self.file(*file)?;
                let versions: Vec<_> = self.world.things[&id].versions.iter().collect();
                let version = choose(*version, &versions)?;
                let number = version.leaf.version;
                let mut head =
                    self.head(id, Base::Version(number), &version.content, version.leaf.class);
                head.change.leaf.restored = number;
                head.receipts_until = None;
                Op::Commit { head, attrs: None }
            }
            Action::Stage { partial, file, directory, edit, base } => {
                let partials: Vec<_> = self.world.partials.keys().copied().collect();
                let known = choose(partial / 2, &partials).filter(|_| partial % 2 == 0);
                let number = self.number();
                let (at, directory, base, content, class) = if let Some(at) = known {
                    let partial = &self.world.partials[&at];
                    (at, partial.directory, Base::Staged, partial.content.clone(), partial.class)
                } else {
                    let write = write(&format!("{number}"));
                    let fresh = inode(&format!("{number}"));
                    let id = self.file(*file).filter(|_| base % 2 == 0).unwrap_or(fresh);
                    let at = StagedKey { inode: id, write };
                    let versions = self.world.things.get(&id).map(|thing| &thing.versions);
                    let former = versions.and_then(|versions| versions.last());
                    let directory = self.directory(*directory);
                    match former.filter(|_| base % 4 == 0) {
                        Some(former) => {
                            let base = Base::Version(former.leaf.version);
                            (at, directory, base, former.content.clone(), former.leaf.class)
                        }
                        None => (at, directory, Base::Empty, Content::default(), Self::class(edit)),
                    }
                };
                let content = self.edit(edit, &content);
                let leaf = StagedLeaf {
                    directory,
                    class,
                    slots: content.slots,
                    root: manifest_of(content.slots, &content.chunks).0,
                };
                let expected = self.held(&Object::Staged(at));
                Op::Stage {
                    staged: Change { key: at, expected, leaf },
                    base,
                    receipts_until: Some(self.time),
                }
            }
            Action::TakeUp { partial, directory, name, edit } => {
                let partials: Vec<_> = self.world.partials.keys().copied().collect();
                let at = choose(*partial, &partials)?;
                let partial = self.world.partials[&at].clone();
                let content = if edit.repeat {
                    self.edit(edit, &partial.content)
                } else {
                    partial.content.clone()
                };
                let mut head = self.head(at.inode, Base::Staged, &content, partial.class);
                head.change.leaf.write = at.write;
                if self.world.things.contains_key(&at.inode) {
                    Op::Commit { head, attrs: None }
                } else {
                    let at_name = key(self.directory(*directory), &name.to_string());
                    let entry = self.entry(at_name, at.inode, Kind::File);
                    let attrs = self.draft.attrs(at.inode, None, "taken up");
                    Op::Create { entry, attrs, head: Some(head) }
                }
            }
            Action::SetAttrs { thing, same } => {
                let id =
                    if thing % 3 == 0 { self.directory(thing / 3) } else { self.file(thing / 3)? };
                let expected = self.held(&Object::Attrs(id));
                let number = self.number();
                let mut attrs = self.draft.attrs(id, expected, &format!("{number}"));
                if *same {
                    // The payload that stands need not travel again.
                    attrs.leaf.payload = self.world.things[&id].attrs;
                }
                Op::SetAttrs { attrs }
            }
            Action::Rename { from, directory, name } => {
                let from = self.live_name(*from)?;
                let leaf = self.world.name(&from)?.leaf.clone();
                let to = key(self.directory(*directory), &name.to_string());
                let expected = self.held(&Object::Entry(from));
                let moved = EntryLeaf { state: EntryState::Moved { to }, ..leaf.clone() };
                let to = self.entry(to, leaf.inode, leaf.kind);
                Op::Rename { from: Change { key: from, expected, leaf: moved }, to }
            }
            Action::Remove { name, only_empty } => {
                let at = self.live_name(*name)?;
                let leaf = self.world.name(&at)?.leaf.clone();
                let leaf = EntryLeaf { state: EntryState::Deleted, ..leaf };
                let expected = self.held(&Object::Entry(at));
                let entry = Change { key: at, expected, leaf };
                Op::Remove { entry, only_empty: *only_empty }
            }
            Action::Undelete { thing, directory, name, own } => {
                let gone: Vec<InodeId> = self
                    .world
                    .things
                    .iter()
                    .filter(|(id, thing)| !thing.named && self.mine(id))
                    .map(|(id, _)| *id)
                    .collect();
                let id = choose(*thing, &gone).or_else(|| self.file(*thing))?;
                let thing = &self.world.things[&id];
                let (kind, last) = (thing.kind, thing.place);
                let at = last
                    .filter(|_| *own)
                    .unwrap_or_else(|| key(self.directory(*directory), &name.to_string()));
                let standing = self.world.name(&at).filter(|name| name.leaf.inode == id);
                let standing = standing.map(|name| name.leaf.name);
                let mut entry = self.entry(at, id, kind);
                if let (Some(standing), true) = (standing, *own) {
                    entry.leaf.name = standing;
                }
                Op::Undelete { entry }
            }
        })
    }

    /// The same op with something wrong with it (or nothing, where the fault does not apply).
    fn spoil(&mut self, op: &Op, fault: Fault) -> Op {
        let mut op = op.clone();
        let at = self.draft.ops.len() as u16;
        match fault {
            Fault::None => {}
            Fault::Stale(which) | Fault::NeverSeen(which) => {
                let mut expected = expectations(&mut op);
                let which = usize::from(which) % expected.len();
                let other = LeafHash::from_hash(Hash::from_bytes([which as u8; 32]));
                *expected[which] = match (fault, *expected[which]) {
                    (Fault::Stale(_), Some(_)) => None,
                    _ => Some(other),
                };
            }
            Fault::NoPayload | Fault::LargePayload => {
                let large = vec![7; (64 << 10) + 1];
                let hash = if fault == Fault::NoPayload {
                    Hash::from_bytes([7; 32])
                } else {
                    self.draft.blob(large)
                };
                match &mut op {
                    Op::Create { entry, .. }
                    | Op::Rename { to: entry, .. }
                    | Op::Undelete { entry } => {
                        entry.leaf.name = hash;
                    }
                    Op::Commit { head, .. } => head.change.leaf.payload = hash,
                    Op::SetAttrs { attrs } => attrs.leaf.payload = hash,
                    _ => {}
                }
            }
            Fault::WrongRoot => match &mut op {
                Op::Create { head: Some(head), .. } | Op::Commit { head, .. } => {
                    head.change.leaf.root = Some(Hash::from_bytes([6; 32]));
                }
                Op::Stage { staged, .. } => staged.leaf.slots += 1 << 41,
                _ => {}
            },
            Fault::NoReceipts | Fault::LateReceipts => {
                let late = LogTime::from_unix_ms(self.time.unix_ms() - 1);
                let until = (fault == Fault::LateReceipts).then_some(late);
                match &mut op {
                    Op::Create { head: Some(head), .. } | Op::Commit { head, .. } => {
                        head.receipts_until = until;
                    }
                    Op::Stage { receipts_until, .. } => *receipts_until = until,
                    _ => {}
                }
            }
            Fault::WrongVersion => match &mut op {
                Op::Create { head: Some(head), .. } | Op::Commit { head, .. } => {
                    head.change.leaf.version += 1;
                }
                Op::Stage { base, .. } => *base = Base::Version(77),
                _ => {}
            },
            Fault::WrongKind => match &mut op {
                Op::Create { entry, .. }
                | Op::Rename { to: entry, .. }
                | Op::Undelete { entry } => {
                    entry.leaf.kind = match entry.leaf.kind {
                        Kind::Directory => Kind::File,
                        Kind::File => Kind::Directory,
                        _ => Kind::Fifo,
                    };
                }
                Op::Remove { entry, .. } => entry.leaf.kind = Kind::Device,
                Op::Stage { staged, .. } => {
                    staged.leaf.class = match staged.leaf.class {
                        ChunkClass::Small => ChunkClass::Large,
                        ChunkClass::Large => ChunkClass::Small,
                    };
                }
                _ => {}
            },
            Fault::WrongState => match &mut op {
                Op::Create { entry, .. }
                | Op::Rename { to: entry, .. }
                | Op::Undelete { entry } => {
                    entry.leaf.state = EntryState::Deleted;
                }
                Op::Remove { entry, .. } => entry.leaf.state = EntryState::Live,
                Op::Commit { head, .. } => head.change.leaf.restored = 99,
                _ => {}
            },
            Fault::WrongInode => {
                let other = inode("nobody's");
                match &mut op {
                    Op::Create { attrs, .. } => attrs.key = other,
                    Op::Commit { attrs: Some(attrs), .. } => attrs.key = other,
                    Op::Commit { head, .. } => head.change.key = other,
                    Op::Rename { to: entry, .. }
                    | Op::Remove { entry, .. }
                    | Op::Undelete { entry } => {
                        entry.leaf.inode = other;
                    }
                    Op::SetAttrs { attrs } => attrs.key = other,
                    Op::Stage { staged, .. } => staged.leaf.directory = other,
                    _ => {}
                }
            }
            Fault::Adopted => match &mut op {
                Op::Create { entry, .. }
                | Op::Rename { to: entry, .. }
                | Op::Undelete { entry } => {
                    entry.leaf.adopted_at = u64::MAX;
                }
                _ => {}
            },
            Fault::LongWrap => match &mut op {
                Op::Create { entry, .. }
                | Op::Rename { to: entry, .. }
                | Op::Undelete { entry } => {
                    entry.leaf.wrap = vec![0; 257];
                }
                _ => {}
            },
            Fault::SlotsTwice | Fault::SlotBeyond => {
                if let Some(slots) =
                    self.draft.payloads.slots.iter_mut().find(|slots| slots.op == at)
                {
                    let again = slots.changes[slots.changes.len() - 1];
                    let beyond = (u64::MAX, Slot::Hole);
                    slots.changes.push(if fault == Fault::SlotsTwice { again } else { beyond });
                }
            }
        }
        op
    }
}

/// The hashes an op expects.
fn expectations(op: &mut Op) -> Vec<&mut Option<LeafHash>> {
    match op {
        Op::Create { entry, attrs, head } => {
            let mut all = vec![&mut entry.expected, &mut attrs.expected];
            all.extend(head.as_mut().map(|head| &mut head.change.expected));
            all
        }
        Op::Commit { head, attrs } => {
            let mut all = vec![&mut head.change.expected];
            all.extend(attrs.as_mut().map(|attrs| &mut attrs.expected));
            all
        }
        Op::Stage { staged, .. } => vec![&mut staged.expected],
        Op::SetAttrs { attrs } => vec![&mut attrs.expected],
        Op::Rename { from, to } => vec![&mut from.expected, &mut to.expected],
        Op::Remove { entry, .. } | Op::Undelete { entry } => vec![&mut entry.expected],
        _ => Vec::new(),
    }
}

// -- running --------------------------------------------------------------------------------------

struct Run {
    cluster: Cluster,
    users: [User; 2],
    world: World,
    checker: Checker,
    fresh: u64,
    reports: u64,
    /// How many bytes each home may use.
    quota: Option<u64>,
    sent: Vec<(Submission, Reply)>,
    /// How often each outcome was seen.
    seen: BTreeMap<String, u64>,
}

impl Run {
    fn new() -> Self {
        let mut cluster = Cluster::new();
        let users = [User::join(&mut cluster, "alice"), User::join(&mut cluster, "bob")];
        cluster.give(Decision::Retention { ms: RETENTION_MS });
        let mut world = World::new(cluster.id);
        for user in &users {
            world.register(user.principal, &user.registration(&mut Draft::new()));
        }
        let checker = Checker::new(cluster.id);
        let (sent, seen, quota) = (Vec::new(), BTreeMap::new(), None);
        Self { cluster, users, world, checker, fresh: 0, reports: 0, quota, sent, seen }
    }

    fn step(&mut self, step: &Step) {
        match step.around {
            Around::Tick(ms) => self.cluster.tick_by(u64::from(ms)),
            Around::Report(node) => {
                self.reports += u64::from(node % 2);
                let report = self.cluster.report(usize::from(node) % 3, self.reports);
                self.cluster.system(report);
            }
            Around::Purge(pick) => self.purge(pick),
            Around::Quota(bytes) => {
                self.quota = bytes.map(u64::from);
                self.cluster.give(Decision::Quota { home: None, bytes: self.quota });
            }
            _ => {}
        }
        let draft = self.draft(step);
        if draft.ops.is_empty() {
            return;
        }
        let (me, other) = if step.user { (1, 0) } else { (0, 1) };
        let other = self.users[other].clone();
        let user = &mut self.users[me];
        let mut header = user.header(&self.cluster);
        let mut signer = user.session.clone();
        let time = self.cluster.time();
        let refused = match step.around {
            Around::OtherSession => {
                signer = other.session;
                header.key = coffer_model::signing::Signer::public_key(&signer);
                Some(BundleRejection::Session)
            }
            Around::OtherPrincipal => {
                header.principal = other.principal;
                Some(BundleRejection::Session)
            }
            Around::Late => {
                header.not_after = LogTime::from_unix_ms(time.unix_ms() - 1);
                Some(BundleRejection::Expired(time))
            }
            Around::Early => {
                header.not_after = time.plus_ms(120_001);
                Some(BundleRejection::Expired(time))
            }
            _ => None,
        };
        let submission = submission(header.sign(&draft.ops, &signer), &draft);
        let before = refused.is_some().then(|| self.cluster.tables.clone());
        let sequence = self.cluster.revision();
        let reply = self.cluster.submit(&submission);
        if let Some(refused) = refused {
            assert_eq!(reply, Reply::Refused(refused));
            assert_eq!(Some(&self.cluster.tables), before.as_ref());
            return;
        }
        self.judge(step, &draft, &reply, sequence);
        if step.around == Around::Again {
            self.repeat(&submission, &reply);
        }
        self.sent.push((submission, reply));
    }

    /// What is due is what has had no name for long enough; one of it is purged, the rest stands.
    fn purge(&mut self, pick: Pick) {
        let time = self.cluster.time();
        let is_due = |since: &LogTime| since.plus_ms(RETENTION_MS) < time;
        let mut due = query::purgeable(&self.cluster.tables, usize::MAX).unwrap();
        due.sort_unstable();
        let gone = self.world.gone.iter().filter(|(_, since)| is_due(since));
        assert_eq!(due, gone.map(|(id, _)| *id).collect::<Vec<_>>());
        let others: Vec<InodeId> =
            self.world.things.keys().filter(|id| !due.contains(id)).copied().collect();
        let inode = choose(pick, &others).expect("the homes stand");
        check_ignored("not due", &mut self.cluster, SystemOp::Purge { inode });
        let Some(inode) = choose(pick, &due) else { return };
        while query::purgeable(&self.cluster.tables, usize::MAX).unwrap().contains(&inode) {
            check_logged(&mut self.cluster, SystemOp::Purge { inode });
        }
        self.world.purge(inode);
        *self.seen.entry("purge applied".to_owned()).or_default() += 1;
    }

    /// The ops of a step. Each is made as if the ones before went through, also where they will not.
    fn draft(&mut self, step: &Step) -> Draft {
        let me = self.users[usize::from(step.user)].principal;
        let (time, sequence) = (self.cluster.time(), self.cluster.revision());
        let mut hoped = self.world.clone();
        let mut draft = Draft::new();
        for (action, fault) in &step.actions {
            let mut maker = Maker { world: &hoped, me, time, fresh: self.fresh, draft };
            let op = maker.op(action);
            let slots = maker.draft.payloads.slots.last().cloned();
            let slots = slots.filter(|slots| usize::from(slots.op) == maker.draft.ops.len());
            let spoilt = op.as_ref().map(|op| maker.spoil(op, *fault));
            self.fresh = maker.fresh;
            draft = maker.draft;
            let (Some(op), Some(spoilt)) = (op, spoilt) else { continue };
            draft.push(spoilt);
            let blobs = by_hash(&draft.payloads.blobs);
            let changes = slots.map(|slots| slots.changes).unwrap_or_default();
            let case = Case { who: me, op: &op, changes: &changes, blobs: &blobs, time, sequence };
            if hoped.against(&case).is_empty() {
                hoped.apply(&case);
            }
        }
        draft
    }

    /// Compares the outcomes with what the plain tree says, op by op.
    fn judge(&mut self, step: &Step, draft: &Draft, reply: &Reply, sequence: u64) {
        let Reply::Bundle { outcomes, revision, repeated: false } = reply else {
            panic!("{reply:?}")
        };
        assert_eq!(*revision, sequence + 1);
        assert_eq!(outcomes.len(), draft.ops.len());
        let who = self.users[usize::from(step.user)].principal;
        let blobs = by_hash(&draft.payloads.blobs);
        let time = self.cluster.time();
        for (index, (op, outcome)) in draft.ops.iter().zip(outcomes).enumerate() {
            let slots = draft.payloads.slots.iter().find(|slots| usize::from(slots.op) == index);
            let changes = slots.map(|slots| slots.changes.as_slice()).unwrap_or_default();
            let case = Case { who, op, changes, blobs: &blobs, time, sequence };
            let against = self.world.against(&case);
            let over = against.is_empty() && self.over_quota(&case);
            let what = match outcome {
                Ok(outcome) => {
                    assert_eq!(against, [], "op {index} was applied: {op:?}");
                    assert!(!over, "op {index} was applied beyond the quota: {op:?}");
                    let cost = self.world.apply(&case);
                    assert_eq!(outcome.charged_bytes, cost, "op {index}: {op:?}");
                    format!("{} applied", op.verb())
                }
                Err(rejection) => {
                    // What an op that is refused anyway would have cost, nobody knows.
                    let quota = *rejection == Rejection::QuotaExceeded
                        && self.quota.is_some()
                        && (over || !against.is_empty());
                    assert!(
                        quota || against.iter().any(|reason| same(reason, rejection)),
                        "op {index} was refused ({rejection:?}), not for {against:?}: {op:?}"
                    );
                    let rejection = format!("{rejection:?}");
                    let word = rejection.split([' ', '(']).next().unwrap_or_default().to_owned();
                    format!("{} {word}", op.verb())
                }
            };
            *self.seen.entry(what).or_default() += 1;
        }
    }

    /// Whether an op costs something, and its home would have used too much then.
    fn over_quota(&self, case: &Case<'_>) -> bool {
        let Some(quota) = self.quota else { return false };
        let mut after = self.world.clone();
        let cost = after.apply(case);
        let grown = |home| after.used[home].bytes > self.world.used[home].bytes;
        cost > 0 && after.used.iter().any(|(home, used)| grown(home) && used.bytes > quota)
    }

    /// A repeat gets the first answer and changes nothing.
    fn repeat(&mut self, submission: &Submission, reply: &Reply) {
        let Reply::Bundle { outcomes, revision, .. } = reply.clone() else { panic!("{reply:?}") };
        let again = self.cluster.submit(submission);
        assert_eq!(again, Reply::Bundle { outcomes, revision, repeated: true });
    }

    fn check(&mut self, page: usize) {
        self.checker.check(&self.cluster.tables);
        check_accounts(&self.cluster.tables, &self.world);
        for at in 0..2 {
            let (owner, stranger) = (&self.users[at], &self.users[1 - at]);
            self.check_directory(owner.principal, owner.home, page);
            let want = Want::default();
            let denied = query::list(
                &self.cluster.tables,
                stranger.principal,
                &owner.home,
                None,
                1,
                &want,
                true,
            );
            assert!(matches!(denied, Err(QueryError::Denied)), "{denied:?}");
        }
    }

    /// What is seen of a directory, and of everything below it, is what the plain tree has.
    fn check_directory(&self, who: PrincipalId, directory: InodeId, page: usize) {
        let thing = &self.world.things[&directory];
        let tables = &self.cluster.tables;
        let want = Want { attrs: true, head: true, from_slot: 0, to_slot: u64::MAX };
        let found = list_all(tables, who, directory, page, &want, true);
        let expected: Vec<EntryKey> = thing
            .names
            .iter()
            .filter(|(_, name)| match name.leaf.state {
                EntryState::Live => true,
                EntryState::Deleted => self.world.things.contains_key(&name.leaf.inode),
                EntryState::Moved { .. } => false,
            })
            .map(|(tag, _)| EntryKey { directory, tag: *tag })
            .collect();
        assert_eq!(found.iter().map(|entry| entry.key).collect::<Vec<_>>(), expected);
        let mut below = Vec::new();
        for entry in &found {
            let name = self.world.name(&entry.key).unwrap();
            assert_eq!(self.leaf(entry), name.leaf);
            assert_eq!(payload_hash(&entry.entry.payload), name.leaf.name);
            self.check_thing(who, name.leaf.inode, entry);
            if name.leaf.kind == Kind::Directory && name.leaf.state == EntryState::Live {
                below.push(name.leaf.inode);
            }
        }
        let live = list_all(tables, who, directory, page, &Want::default(), false);
        let expected: Vec<EntryKey> = found
            .iter()
            .filter(|entry| self.leaf(entry).state == EntryState::Live)
            .map(|entry| entry.key)
            .collect();
        assert_eq!(live.iter().map(|entry| entry.key).collect::<Vec<_>>(), expected);
        for directory in below {
            self.check_directory(who, directory, page);
        }
    }

    fn leaf(&self, entry: &FoundEntry) -> EntryLeaf {
        let proof = query::op_proof(&self.cluster.tables, entry.entry.at).unwrap();
        let proven = proof.verify(&self.cluster.id, |_, _| true).unwrap();
        match proven.leaf(&Object::Entry(entry.key)).unwrap().leaf {
            Leaf::Entry(leaf) => leaf,
            other => panic!("{other:?}"),
        }
    }

    fn check_thing(&self, who: PrincipalId, id: InodeId, entry: &FoundEntry) {
        let thing = &self.world.things[&id];
        let attrs = entry.attrs.as_ref().unwrap();
        assert_eq!(payload_hash(&attrs.payload), thing.attrs);
        assert_eq!(entry.head.is_some(), thing.kind != Kind::Directory);
        let Some(current) = thing.versions.last() else { return };
        let head = entry.head.as_ref().unwrap();
        assert_eq!(payload_hash(&head.payload), current.leaf.payload);
        check_pages(&entry.pages, &current.leaf, &current.content);
        // The versions, newest first, page by page.
        let tables = &self.cluster.tables;
        let (mut before, mut payloads) = (None, Vec::new());
        loop {
            let (found, next) = query::versions(tables, who, &id, before, 2).unwrap();
            payloads.extend(found.iter().map(|version| payload_hash(&version.payload)));
            before = next;
            if before.is_none() {
                break;
            }
        }
        let expected: Vec<Hash> =
            thing.versions.iter().rev().map(|version| version.leaf.payload).collect();
        assert_eq!(payloads, expected);
        for version in &thing.versions {
            let slots = version.content.slots;
            let number = version.leaf.version;
            let found = query::content(tables, who, &id, number, 0, slots).unwrap().unwrap();
            assert_eq!(payload_hash(&found.head.payload), version.leaf.payload);
            check_pages(&found.pages, &version.leaf, &version.content);
            let all: Vec<_> = version.content.chunks.values().map(|chunk| chunk.chunk).collect();
            assert_eq!(found.chunks, all);
            let part = query::content(tables, who, &id, number, 1, 3).unwrap().unwrap();
            let some = version.content.chunks.range(1..3).map(|(_, chunk)| chunk.chunk);
            assert_eq!(part.chunks, some.collect::<Vec<_>>());
        }
    }
}

fn by_hash(blobs: &[Vec<u8>]) -> BTreeMap<Hash, Vec<u8>> {
    blobs.iter().map(|blob| (payload_hash(blob), blob.clone())).collect()
}

fn check_pages(pages: &[Vec<u8>], leaf: &HeadLeaf, content: &Content) {
    let pages: BTreeMap<Hash, Vec<u8>> =
        pages.iter().map(|page| (manifest::Page::hash(page), page.clone())).collect();
    let read = manifest::read(&pages, leaf.root, leaf.slots, 0, u64::MAX).unwrap();
    let expected: Vec<_> = content.chunks.iter().map(|(slot, chunk)| (*slot, *chunk)).collect();
    assert_eq!((leaf.slots, read), (content.slots, expected));
}

/// All names of a directory, `page` at a time.
fn list_all(
    tables: &MemoryTables,
    who: PrincipalId,
    directory: InodeId,
    page: usize,
    want: &Want,
    deleted: bool,
) -> Vec<FoundEntry> {
    let (mut all, mut after) = (Vec::new(), None);
    loop {
        let (found, next) =
            query::list(tables, who, &directory, after.as_ref(), page, want, deleted).unwrap();
        assert!(found.len() <= page);
        all.extend(found);
        if next.is_none() {
            return all;
        }
        after = next;
    }
}

/// What homes pay, and what storage nodes are told, is what the plain tree says.
fn check_accounts(tables: &MemoryTables, world: &World) {
    for (home, used) in &world.used {
        let usage = query::usage(tables, home).unwrap();
        assert_eq!((usage.bytes, usage.inodes, usage.rows), (used.bytes, used.inodes, used.rows));
    }
    let rows = tables.scan(Table::Feed, &[], &[u8::MAX; 9], usize::MAX).unwrap();
    let rows: Vec<_> = rows
        .iter()
        .map(|(_, row)| {
            let row: ChunkRow = decode("row", row).unwrap();
            (row.chunk, row.length, row.inode)
        })
        .collect();
    assert_eq!(rows, world.feed);
    let position = tables.get(Table::Meta, meta::FEED).unwrap();
    let position: u64 = position.map_or(0, |bytes| decode("position", &bytes).unwrap());
    assert_eq!(position, world.rows_made);
}

/// The same commands, on a replica that starts empty, give the same bytes.
pub(crate) fn check_replay(cluster: &Cluster) {
    let mut tables = MemoryTables::default();
    for command in &cluster.commands {
        let mut overlay = Overlay::new(&tables);
        let command = decode("command", command).unwrap();
        apply(&mut overlay, &Prepared::new(&cluster.id, command)).unwrap();
        let changes = overlay.into_changes();
        tables.write(changes);
    }
    assert!(tables.rows().eq(cluster.tables.rows()));
}

fn run(steps: &[Step], page: usize) -> Run {
    let mut run = Run::new();
    for step in steps {
        run.step(step);
        run.check(page);
    }
    // What was sent long ago is answered as it was then, or not at all; it never happens again.
    let sent = std::mem::take(&mut run.sent);
    let before = run.cluster.tables.clone();
    for (submission, reply) in &sent {
        let again = run.cluster.submit(submission);
        let first = match (reply.clone(), &again) {
            (_, Reply::Refused(BundleRejection::Expired(_))) => continue,
            (Reply::Bundle { outcomes, revision, .. }, _) => {
                Reply::Bundle { outcomes, revision, repeated: true }
            }
            (other, _) => panic!("{other:?}"),
        };
        assert_eq!(again, first);
    }
    assert_eq!(run.cluster.tables, before);
    run
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 250,
        max_shrink_iters: 400,
        ..ProptestConfig::default()
    })]

    #[test]
    fn any_bundles_lead_to_the_tree_they_say(
        steps in prop::collection::vec(step(), 1..40),
        page in 1usize..5,
    ) {
        let run = run(&steps, page);
        check_replay(&run.cluster);
    }
}

/// The random ops are worth something only if most kinds of outcomes are among them.
#[test]
fn random_bundles_meet_most_refusals() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::{RngAlgorithm, TestRng, TestRunner};

    let steps = |seed: u8| -> Vec<Step> {
        let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[seed; 32]);
        let mut runner = TestRunner::new_with_rng(ProptestConfig::default(), rng);
        let strategy = prop::collection::vec(step(), 60);
        strategy.new_tree(&mut runner).unwrap().current()
    };
    let mut seen: BTreeMap<String, u64> = BTreeMap::new();
    for seed in 0..6 {
        let mut once = Run::new();
        for step in steps(seed) {
            once.step(&step);
        }
        once.check(3);
        // The same seed twice gives the same bytes.
        if seed == 0 {
            let mut twice = Run::new();
            for step in steps(seed) {
                twice.step(&step);
            }
            assert!(once.cluster.tables.rows().eq(twice.cluster.tables.rows()));
            check_replay(&once.cluster);
        }
        for (what, times) in once.seen {
            *seen.entry(what).or_default() += times;
        }
    }
    let rejections = [
        "Conflict",
        "NotFound",
        "Denied",
        "NotADirectory",
        "IsADirectory",
        "NotEmpty",
        "IntoItself",
        "CrossHome",
        "ReceiptsExpired",
        "Manifest",
        "Payload",
        "Invalid",
        "QuotaExceeded",
    ];
    for rejection in rejections {
        assert!(seen.keys().any(|what| what.ends_with(rejection)), "never met: {rejection}");
    }
    for verb in ["create", "commit", "stage", "set_attrs", "rename", "remove", "undelete", "purge"]
    {
        assert!(seen.contains_key(&format!("{verb} applied")), "never applied: {verb}");
    }
}
