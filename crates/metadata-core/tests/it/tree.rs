//! What the directory should be: a plain tree in memory, and every reason there is against an op.
//! Written from the rules (design.md, section 5), not from the code: there are no rows here, no
//! overlays and no order of checks. An op must be applied where no reason stands against it, and
//! refused for one of the reasons otherwise.

use std::collections::{BTreeMap, BTreeSet};

use coffer_model::bundle::PAYLOAD_BYTES_MAX;
use coffer_model::chunk::ChunkClass;
use coffer_model::hash::Hash;
use coffer_model::id::{ChunkId, ClusterId, InodeId, NameTag, PrincipalId};
use coffer_model::manifest::{CHANGES_MAX, SLOTS_MAX, Slot, SlotChunk};
use coffer_model::name::PATH_DEPTH_MAX;
use coffer_model::object::{
    EntryKey, EntryLeaf, EntryState, HeadLeaf, Kind, LeafHash, Object, StagedKey, WRAP_BYTES_MAX,
};
use coffer_model::op::{Base, Change, HeadChange, Op, Rejection, Rule};
use coffer_model::time::LogTime;

use crate::kit::manifest_of;

/// What an entry costs beyond its payloads.
const ENTRY_BYTES: u64 = 256;

/// Which chunk is in which slot, of so many.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Content {
    pub(crate) slots: u64,
    pub(crate) chunks: BTreeMap<u64, SlotChunk>,
}

impl Content {
    /// This content with another length and some slots changed.
    pub(crate) fn changed(&self, slots: u64, changes: &[(u64, Slot)]) -> Self {
        let mut chunks = self.chunks.clone();
        chunks.retain(|slot, _| *slot < slots);
        for (slot, content) in changes {
            match content {
                Slot::Chunk(chunk) => chunks.insert(*slot, *chunk),
                Slot::Hole => chunks.remove(slot),
            };
        }
        Self { slots, chunks }
    }
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Version {
    pub(crate) leaf: HeadLeaf,
    pub(crate) content: Content,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Partial {
    pub(crate) directory: InodeId,
    pub(crate) class: ChunkClass,
    pub(crate) content: Content,
}

/// A name in a directory, gone or not.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Name {
    pub(crate) leaf: EntryLeaf,
}

/// A file, directory or symlink.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Thing {
    pub(crate) kind: Kind,
    pub(crate) home: InodeId,
    /// Its name, or the last it had; none for the root of a home.
    pub(crate) place: Option<EntryKey>,
    pub(crate) named: bool,
    pub(crate) names: BTreeMap<NameTag, Name>,
    pub(crate) versions: Vec<Version>,
    pub(crate) attrs: Hash,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Used {
    pub(crate) bytes: u64,
    pub(crate) inodes: u64,
    pub(crate) rows: u64,
}

/// Everything.
#[derive(Clone)]
pub(crate) struct World {
    pub(crate) cluster: ClusterId,
    pub(crate) owners: BTreeMap<InodeId, PrincipalId>,
    pub(crate) things: BTreeMap<InodeId, Thing>,
    /// The hash of the leaf each object holds.
    pub(crate) held: BTreeMap<Object, LeafHash>,
    pub(crate) partials: BTreeMap<StagedKey, Partial>,
    /// What storage nodes are told to keep, in order.
    pub(crate) feed: Vec<(ChunkId, u32, InodeId)>,
    /// How many rows there ever were.
    pub(crate) rows_made: u64,
    pub(crate) used: BTreeMap<InodeId, Used>,
    /// What each inode has charged which home.
    charged: BTreeMap<(InodeId, InodeId), Used>,
    /// Since when what has no name, or was never more than a partial version, has been so.
    pub(crate) gone: BTreeMap<InodeId, LogTime>,
    pages: BTreeSet<(InodeId, Hash)>,
}

/// An op with what travels beside it, and when and by whom it comes.
pub(crate) struct Case<'a> {
    pub(crate) who: PrincipalId,
    pub(crate) op: &'a Op,
    pub(crate) changes: &'a [(u64, Slot)],
    pub(crate) blobs: &'a BTreeMap<Hash, Vec<u8>>,
    pub(crate) time: LogTime,
    pub(crate) sequence: u64,
}

type Reasons = Vec<Rejection>;

fn invalid() -> Rejection {
    Rejection::Invalid(Rule::TwoNames)
}

/// Whether `given` is the reason `reason`; the text of an invalid change is not part of it.
pub(crate) fn same(reason: &Rejection, given: &Rejection) -> bool {
    matches!((reason, given), (Rejection::Invalid(_), Rejection::Invalid(_))) || reason == given
}

impl World {
    pub(crate) fn new(cluster: ClusterId) -> Self {
        Self {
            cluster,
            owners: BTreeMap::new(),
            things: BTreeMap::new(),
            held: BTreeMap::new(),
            partials: BTreeMap::new(),
            feed: Vec::new(),
            rows_made: 0,
            used: BTreeMap::new(),
            charged: BTreeMap::new(),
            gone: BTreeMap::new(),
            pages: BTreeSet::new(),
        }
    }

    /// A user has come, with an empty home.
    pub(crate) fn register(&mut self, owner: PrincipalId, registration: &Op) {
        let Op::Register { user, attrs, .. } = registration else { panic!("no registration") };
        let home = user.leaf.home;
        self.owners.insert(home, owner);
        self.charge(home, home, Used { bytes: ENTRY_BYTES, inodes: 1, rows: 0 });
        let root = Thing {
            kind: Kind::Directory,
            home,
            place: None,
            named: true,
            names: BTreeMap::new(),
            versions: Vec::new(),
            attrs: attrs.leaf.payload,
        };
        self.things.insert(home, root);
        self.hold(registration);
    }

    fn hold(&mut self, op: &Op) {
        for change in op.changes() {
            let hash = change.leaf_hash(&self.cluster);
            self.held.insert(change.object, hash);
        }
    }

    // -- looking --------------------------------------------------------------------------------

    /// The way up: the thing itself, then everything above it.
    fn up(&self, inode: InodeId) -> Vec<(InodeId, &Thing)> {
        let mut way = Vec::new();
        let mut at = Some(inode);
        while let Some(id) = at {
            let thing = &self.things[&id];
            way.push((id, thing));
            at = thing.place.map(|place| place.directory);
        }
        way
    }

    /// Whether it and everything above it has a name.
    pub(crate) fn alive(&self, inode: InodeId) -> bool {
        self.things.contains_key(&inode) && self.up(inode).iter().all(|(_, thing)| thing.named)
    }

    pub(crate) fn depth(&self, inode: InodeId) -> usize {
        self.up(inode).len() - 1
    }

    fn is_below(&self, inode: InodeId, above: InodeId) -> bool {
        self.up(inode).iter().any(|(id, _)| *id == above)
    }

    fn empty(&self, directory: InodeId) -> bool {
        self.things[&directory].names.values().all(|name| name.leaf.state != EntryState::Live)
    }

    pub(crate) fn name(&self, key: &EntryKey) -> Option<&Name> {
        self.things.get(&key.directory)?.names.get(&key.tag)
    }

    // -- judging --------------------------------------------------------------------------------

    /// Every reason against an op.
    pub(crate) fn against(&self, case: &Case<'_>) -> Reasons {
        let mut reasons = Reasons::new();
        let r = &mut reasons;
        match case.op {
            Op::Create { entry, attrs, head } => {
                self.against_directory(case, entry.key.directory, r);
                self.against_entry(case, entry, None, r);
                if entry.leaf.adopted_at != 0 {
                    r.push(invalid());
                }
                self.against_free_name(entry, r);
                if self.things.contains_key(&entry.leaf.inode) {
                    r.push(Rejection::InodeExists);
                }
                if (entry.leaf.kind == Kind::Directory) != head.is_none()
                    || attrs.key != entry.leaf.inode
                    || head.as_ref().is_some_and(|head| head.change.key != entry.leaf.inode)
                {
                    r.push(invalid());
                }
                self.against_stale(Object::Attrs(attrs.key), attrs.expected, r);
                self.against_payload(case, attrs.leaf.payload, None, r);
                if let Some(head) = head {
                    self.against_head(case, head, r);
                }
            }
            Op::Commit { head, attrs } => {
                let inode = head.change.key;
                self.against_thing(case, inode, r);
                if self.things.get(&inode).is_some_and(|thing| thing.kind == Kind::Directory) {
                    r.push(Rejection::IsADirectory);
                }
                self.against_head(case, head, r);
                if let Some(attrs) = attrs {
                    if attrs.key != inode {
                        r.push(invalid());
                    }
                    self.against_stale(Object::Attrs(attrs.key), attrs.expected, r);
                    let standing = self.things.get(&attrs.key).map(|thing| thing.attrs);
                    self.against_payload(case, attrs.leaf.payload, standing, r);
                }
            }
            Op::Stage { staged, base, receipts_until } => {
                let (key, leaf) = (staged.key, &staged.leaf);
                self.against_directory(case, leaf.directory, r);
                if let Some(thing) = self.things.get(&key.inode) {
                    self.against_thing(case, key.inode, r);
                    let home = self.things.get(&leaf.directory).map(|directory| directory.home);
                    if home.is_some_and(|home| home != thing.home) {
                        r.push(Rejection::CrossHome);
                    }
                    if thing.kind == Kind::Directory {
                        r.push(Rejection::IsADirectory);
                    }
                }
                self.against_stale(Object::Staged(key), staged.expected, r);
                let content = match (base, self.partials.get(&key)) {
                    (Base::Staged, Some(partial)) => {
                        if partial.class != leaf.class || partial.directory != leaf.directory {
                            r.push(invalid());
                        }
                        Some(partial.content.clone())
                    }
                    (Base::Empty, None) => Some(Content::default()),
                    (Base::Version(number), None) => self.version(key.inode, *number, leaf.class),
                    _ => {
                        r.push(invalid());
                        None
                    }
                };
                let slots = (leaf.slots, leaf.root);
                self.against_slots(case, content, slots, *receipts_until, r);
            }
            Op::SetAttrs { attrs } => {
                self.against_thing(case, attrs.key, r);
                self.against_stale(Object::Attrs(attrs.key), attrs.expected, r);
                let standing = self.things.get(&attrs.key).map(|thing| thing.attrs);
                self.against_payload(case, attrs.leaf.payload, standing, r);
            }
            Op::Rename { from, to } => self.against_rename(case, from, to, r),
            Op::Remove { entry, only_empty } => {
                self.against_directory(case, entry.key.directory, r);
                self.against_stale(Object::Entry(entry.key), entry.expected, r);
                let Some(name) = self.live_name(&entry.key, r) else { return reasons };
                if entry.leaf != (EntryLeaf { state: EntryState::Deleted, ..name.leaf.clone() }) {
                    r.push(invalid());
                }
                let inode = name.leaf.inode;
                if *only_empty && name.leaf.kind == Kind::Directory && !self.empty(inode) {
                    r.push(Rejection::NotEmpty);
                }
            }
            Op::Undelete { entry } => {
                let leaf = &entry.leaf;
                self.against_directory(case, entry.key.directory, r);
                let own = self.name(&entry.key).filter(|name| name.leaf.inode == leaf.inode);
                self.against_entry(case, entry, own.map(|name| name.leaf.name), r);
                self.against_free_name(entry, r);
                if leaf.adopted_at > case.sequence {
                    r.push(invalid());
                }
                match self.things.get(&leaf.inode) {
                    None => r.push(Rejection::NotFound),
                    Some(thing) => {
                        let directory = self.things.get(&entry.key.directory);
                        if directory.is_some_and(|directory| directory.home != thing.home) {
                            r.push(Rejection::CrossHome);
                        }
                        if thing.named || thing.kind != leaf.kind {
                            r.push(invalid());
                        }
                    }
                }
            }
            other => panic!("not an op of the tree: {}", other.verb()),
        }
        reasons
    }

    fn against_rename(
        &self,
        case: &Case<'_>,
        from: &Change<EntryKey, EntryLeaf>,
        to: &Change<EntryKey, EntryLeaf>,
        r: &mut Reasons,
    ) {
        self.against_directory(case, from.key.directory, r);
        self.against_directory(case, to.key.directory, r);
        self.against_entry(case, to, None, r);
        self.against_stale(Object::Entry(from.key), from.expected, r);
        self.against_stale(Object::Entry(to.key), to.expected, r);
        if from.key == to.key {
            r.push(invalid());
        }
        if to.leaf.adopted_at > case.sequence {
            r.push(invalid());
        }
        let home = |directory| self.things.get(directory).map(|thing| thing.home);
        if let (Some(source), Some(target)) = (home(&from.key.directory), home(&to.key.directory))
            && source != target
        {
            r.push(Rejection::CrossHome);
        }
        let Some(source) = self.live_name(&from.key, r) else { return };
        let (inode, kind) = (source.leaf.inode, source.leaf.kind);
        let moved = EntryState::Moved { to: to.key };
        if from.leaf != (EntryLeaf { state: moved, ..source.leaf.clone() })
            || to.leaf.inode != inode
            || to.leaf.kind != kind
        {
            r.push(invalid());
        }
        if kind == Kind::Directory
            && self.things.contains_key(&to.key.directory)
            && self.is_below(to.key.directory, inode)
        {
            r.push(Rejection::IntoItself);
        }
        let target = self.name(&to.key).filter(|name| name.leaf.state == EntryState::Live);
        if let Some(target) = target {
            match (kind, target.leaf.kind) {
                (Kind::Directory, Kind::Directory) if !self.empty(target.leaf.inode) => {
                    r.push(Rejection::NotEmpty);
                }
                (Kind::Directory, Kind::Directory) => {}
                (Kind::Directory, _) => r.push(Rejection::NotADirectory),
                (_, Kind::Directory) => r.push(Rejection::IsADirectory),
                _ => {}
            }
        }
    }

    /// Against writing to something that stands.
    fn against_thing(&self, case: &Case<'_>, inode: InodeId, r: &mut Reasons) {
        let Some(thing) = self.things.get(&inode) else { return r.push(Rejection::NotFound) };
        if !self.alive(inode) {
            r.push(Rejection::NotFound);
        }
        if self.owners[&thing.home] != case.who {
            r.push(Rejection::Denied);
        }
        if self.depth(inode) > PATH_DEPTH_MAX {
            r.push(Rejection::TooDeep);
        }
    }

    /// Against changing the names of a directory.
    fn against_directory(&self, case: &Case<'_>, inode: InodeId, r: &mut Reasons) {
        self.against_thing(case, inode, r);
        let Some(thing) = self.things.get(&inode) else { return };
        if thing.kind != Kind::Directory {
            r.push(Rejection::NotADirectory);
        }
        if self.depth(inode) + 1 >= PATH_DEPTH_MAX {
            r.push(Rejection::TooDeep);
        }
    }

    fn against_stale(&self, object: Object, expected: Option<LeafHash>, r: &mut Reasons) {
        let current = self.held.get(&object).copied();
        if current != expected {
            r.push(Rejection::Conflict { object, current });
        }
    }

    /// Against the shape of a new name, and its payload.
    fn against_entry(
        &self,
        case: &Case<'_>,
        entry: &Change<EntryKey, EntryLeaf>,
        standing: Option<Hash>,
        r: &mut Reasons,
    ) {
        let leaf = &entry.leaf;
        let known = matches!(leaf.kind, Kind::Directory | Kind::File | Kind::Symlink);
        let wrapped = (1..=WRAP_BYTES_MAX).contains(&leaf.wrap.len());
        if !known || !wrapped || leaf.state != EntryState::Live {
            r.push(invalid());
        }
        self.against_payload(case, leaf.name, standing, r);
    }

    fn against_free_name(&self, entry: &Change<EntryKey, EntryLeaf>, r: &mut Reasons) {
        let object = Object::Entry(entry.key);
        self.against_stale(object.clone(), entry.expected, r);
        if self.name(&entry.key).is_some_and(|name| name.leaf.state == EntryState::Live) {
            let current = self.held.get(&object).copied();
            r.push(Rejection::Conflict { object, current });
        }
    }

    fn live_name(&self, key: &EntryKey, r: &mut Reasons) -> Option<&Name> {
        let live = self.name(key).filter(|name| name.leaf.state == EntryState::Live);
        if live.is_none() {
            r.push(Rejection::NotFound);
        }
        live
    }

    fn against_payload(
        &self,
        case: &Case<'_>,
        hash: Hash,
        standing: Option<Hash>,
        r: &mut Reasons,
    ) {
        match case.blobs.get(&hash) {
            Some(blob) if blob.len() <= PAYLOAD_BYTES_MAX => {}
            None if standing == Some(hash) => {}
            _ => r.push(Rejection::Payload),
        }
    }

    fn version(&self, inode: InodeId, number: u64, class: ChunkClass) -> Option<Content> {
        let versions = &self.things.get(&inode)?.versions;
        let version = versions.iter().find(|version| version.leaf.version == number)?;
        (version.leaf.class == class).then(|| version.content.clone())
    }

    /// The content a head's changed slots are put into.
    fn base(&self, head: &HeadChange) -> Option<Content> {
        let (inode, leaf) = (head.change.key, &head.change.leaf);
        match head.base {
            Base::Empty => Some(Content::default()),
            Base::Version(number) => self.version(inode, number, leaf.class),
            Base::Staged => {
                let partial = self.partials.get(&StagedKey { inode, write: leaf.write })?;
                (partial.class == leaf.class).then(|| partial.content.clone())
            }
        }
    }

    fn against_head(&self, case: &Case<'_>, head: &HeadChange, r: &mut Reasons) {
        let (inode, leaf) = (head.change.key, &head.change.leaf);
        self.against_stale(Object::Head(inode), head.change.expected, r);
        let versions = self.things.get(&inode).map_or(0, |thing| thing.versions.len() as u64);
        if leaf.version != versions + 1 {
            r.push(invalid());
        }
        if leaf.restored != 0 && head.base != Base::Version(leaf.restored) {
            r.push(invalid());
        }
        let slots = (leaf.slots, leaf.root);
        self.against_slots(case, self.base(head), slots, head.receipts_until, r);
        self.against_payload(case, leaf.payload, None, r);
    }

    fn against_slots(
        &self,
        case: &Case<'_>,
        base: Option<Content>,
        (slots, root): (u64, Option<Hash>),
        receipts_until: Option<LogTime>,
        r: &mut Reasons,
    ) {
        let ascending = case.changes.windows(2).all(|pair| pair[0].0 < pair[1].0);
        let inside = case.changes.iter().all(|(slot, _)| *slot < slots);
        let few = case.changes.len() <= CHANGES_MAX && slots <= SLOTS_MAX;
        let Some(base) = base.filter(|_| ascending && inside && few) else {
            return r.push(Rejection::Manifest);
        };
        let content = base.changed(slots, case.changes);
        if manifest_of(content.slots, &content.chunks).0 != root {
            r.push(Rejection::Manifest);
        }
        let late = receipts_until.is_none_or(|until| until < case.time);
        if late && !fresh(&base, case.changes).is_empty() {
            r.push(Rejection::ReceiptsExpired);
        }
    }

    // -- doing ----------------------------------------------------------------------------------

    /// Does what an op says, and gives the bytes it costs.
    pub(crate) fn apply(&mut self, case: &Case<'_>) -> u64 {
        let mut cost = 0;
        match case.op {
            Op::Create { entry, attrs, head } => {
                let home = self.things[&entry.key.directory].home;
                let thing = Thing {
                    kind: entry.leaf.kind,
                    home,
                    place: Some(entry.key),
                    named: true,
                    names: BTreeMap::new(),
                    versions: Vec::new(),
                    attrs: attrs.leaf.payload,
                };
                self.things.insert(entry.leaf.inode, thing);
                self.put_name(entry);
                if let Some(head) = head {
                    cost += self.put_version(case, head, home);
                }
                cost += ENTRY_BYTES;
                let used = Used { bytes: ENTRY_BYTES, inodes: 1, rows: 0 };
                self.charge(home, entry.leaf.inode, used);
                self.gone.remove(&entry.leaf.inode);
            }
            Op::Commit { head, attrs } => {
                let home = self.things[&head.change.key].home;
                cost += self.put_version(case, head, home);
                if let Some(attrs) = attrs {
                    self.thing_mut(attrs.key).attrs = attrs.leaf.payload;
                }
            }
            Op::Stage { staged, base, .. } => {
                let (key, leaf) = (staged.key, &staged.leaf);
                let home = self.things[&leaf.directory].home;
                let from = match base {
                    Base::Empty => Content::default(),
                    Base::Version(number) => self.version(key.inode, *number, leaf.class).unwrap(),
                    Base::Staged => self.partials[&key].content.clone(),
                };
                let content = from.changed(leaf.slots, case.changes);
                cost += self.put_content(case, key.inode, home, &from, &content);
                let partial = Partial { directory: leaf.directory, class: leaf.class, content };
                self.partials.insert(key, partial);
                if !self.things.contains_key(&key.inode) {
                    self.gone.insert(key.inode, case.time);
                }
            }
            Op::SetAttrs { attrs } => self.thing_mut(attrs.key).attrs = attrs.leaf.payload,
            Op::Rename { from, to } => {
                let replaced = self
                    .name(&to.key)
                    .filter(|name| name.leaf.state == EntryState::Live)
                    .map(|name| name.leaf.inode);
                if let Some(replaced) = replaced {
                    self.thing_mut(replaced).named = false;
                    self.gone.insert(replaced, case.time);
                }
                self.put_name(from);
                self.put_name(to);
                self.thing_mut(to.leaf.inode).place = Some(to.key);
                cost += self.charge_name(to.leaf.inode);
            }
            Op::Remove { entry, .. } => {
                self.put_name(entry);
                self.thing_mut(entry.leaf.inode).named = false;
                self.gone.insert(entry.leaf.inode, case.time);
            }
            Op::Undelete { entry } => {
                let inode = entry.leaf.inode;
                let own = self.name(&entry.key).is_some_and(|name| name.leaf.inode == inode);
                self.put_name(entry);
                let thing = self.thing_mut(inode);
                thing.place = Some(entry.key);
                thing.named = true;
                self.gone.remove(&inode);
                if !own {
                    cost += self.charge_name(inode);
                }
            }
            other => panic!("not an op of the tree: {}", other.verb()),
        }
        self.hold(case.op);
        if let Op::Create { head: Some(head), .. } | Op::Commit { head, .. } = case.op
            && head.base == Base::Staged
        {
            let key = StagedKey { inode: head.change.key, write: head.change.leaf.write };
            self.partials.remove(&key);
            self.held.remove(&Object::Staged(key));
        }
        cost
    }

    fn thing_mut(&mut self, inode: InodeId) -> &mut Thing {
        self.things.get_mut(&inode).unwrap()
    }

    fn charge(&mut self, home: InodeId, inode: InodeId, more: Used) {
        let of_home = self.used.entry(home).or_default();
        let of_inode = self.charged.entry((inode, home)).or_default();
        for used in [of_home, of_inode] {
            used.bytes += more.bytes;
            used.inodes += more.inodes;
            used.rows += more.rows;
        }
    }

    /// Everything of an inode goes, and what had its name in it has none any more.
    pub(crate) fn purge(&mut self, inode: InodeId) {
        let since = self.gone.remove(&inode).unwrap();
        if let Some(thing) = self.things.remove(&inode) {
            assert!(!thing.named, "only what has no name is purged");
            if let Some(place) = thing.place
                && self.name(&place).is_some_and(|name| name.leaf.inode == inode)
            {
                self.thing_mut(place.directory).names.remove(&place.tag);
                self.held.remove(&Object::Entry(place));
            }
            for tag in thing.names.keys() {
                self.held.remove(&Object::Entry(EntryKey { directory: inode, tag: *tag }));
            }
            for (id, child) in &mut self.things {
                if child.place.is_some_and(|place| place.directory == inode) {
                    child.place = None;
                    if std::mem::take(&mut child.named) {
                        self.gone.insert(*id, since);
                    }
                }
            }
        }
        self.held.remove(&Object::Head(inode));
        self.held.remove(&Object::Attrs(inode));
        for key in self.partials.keys().filter(|key| key.inode == inode) {
            self.held.remove(&Object::Staged(*key));
        }
        self.partials.retain(|key, _| key.inode != inode);
        self.feed.retain(|(_, _, of)| *of != inode);
        self.pages.retain(|(of, _)| *of != inode);
        let charged = std::mem::take(&mut self.charged);
        let (back, kept) = charged.into_iter().partition(|((of, _), _)| *of == inode);
        self.charged = kept;
        let back: BTreeMap<(InodeId, InodeId), Used> = back;
        for ((_, home), back) in back {
            let used = self.used.get_mut(&home).unwrap();
            used.bytes -= back.bytes;
            used.inodes -= back.inodes;
            used.rows -= back.rows;
        }
    }

    fn charge_name(&mut self, inode: InodeId) -> u64 {
        let home = self.things[&inode].home;
        self.charge(home, inode, Used { bytes: ENTRY_BYTES, inodes: 0, rows: 0 });
        ENTRY_BYTES
    }

    fn put_name(&mut self, entry: &Change<EntryKey, EntryLeaf>) {
        let name = Name { leaf: entry.leaf.clone() };
        self.thing_mut(entry.key.directory).names.insert(entry.key.tag, name);
    }

    fn put_version(&mut self, case: &Case<'_>, head: &HeadChange, home: InodeId) -> u64 {
        let (inode, leaf) = (head.change.key, &head.change.leaf);
        let from = self.base(head).unwrap();
        let content = from.changed(leaf.slots, case.changes);
        let cost = self.put_content(case, inode, home, &from, &content);
        let payload = case.blobs[&leaf.payload].len() as u64;
        self.charge(home, inode, Used { bytes: payload, inodes: 0, rows: 0 });
        self.thing_mut(inode).versions.push(Version { leaf: leaf.clone(), content });
        cost + payload
    }

    /// New chunks get rows; new chunks and pages cost what they are long.
    fn put_content(
        &mut self,
        case: &Case<'_>,
        inode: InodeId,
        home: InodeId,
        from: &Content,
        content: &Content,
    ) -> u64 {
        let mut cost = 0;
        for (hash, page) in manifest_of(content.slots, &content.chunks).1 {
            if self.pages.insert((inode, hash)) {
                cost += page.len() as u64;
            }
        }
        let fresh = fresh(from, case.changes);
        for chunk in &fresh {
            cost += u64::from(chunk.length);
            self.feed.push((chunk.chunk, chunk.length, inode));
        }
        let rows = fresh.len() as u64;
        self.rows_made += rows;
        self.charge(home, inode, Used { bytes: cost, inodes: 0, rows });
        cost
    }
}

/// The chunks that changes bring to slots that did not hold them.
fn fresh(base: &Content, changes: &[(u64, Slot)]) -> Vec<SlotChunk> {
    changes
        .iter()
        .filter_map(|(slot, content)| match content {
            Slot::Chunk(chunk) if base.chunks.get(slot) != Some(chunk) => Some(*chunk),
            _ => None,
        })
        .collect()
}
