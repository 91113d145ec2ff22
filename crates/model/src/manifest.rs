//! Manifests: which sealed chunk stands behind which slot of a file, as a hash tree of small pages.
//!
//! Slot i covers the bytes i·class to (i+1)·class. A leaf page lists up to 64 slots, an interior
//! page the hashes of up to 64 pages. There is one tree for one list of slots: no page ends with a
//! hole, no page is empty (its place is left out), and the height follows from the slot count.
//! So a change of one slot touches one page a level, and whoever knows the changed slots and the
//! old pages computes the new root.

use std::collections::{BTreeMap, BTreeSet};

use borsh::{BorshDeserialize, BorshSerialize};

use crate::chunk::Redundancy;
use crate::encoding::{Malformed, decode, encode};
use crate::hash::Hash;
use crate::id::{ChunkId, WriteId};

/// Slots in a leaf page, children in an interior page.
pub const FANOUT: u64 = 64;
/// The largest encoded page.
pub const PAGE_BYTES_MAX: usize = 4096;
/// The most slots a file has: 2^40, an exbibyte at 1 MiB a slot.
pub const SLOTS_MAX: u64 = 1 << 40;
/// The most slots one op changes; larger changes go as partial versions.
pub const CHANGES_MAX: usize = 8192;

/// The chunk behind a slot.
#[derive(Clone, Copy, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
pub struct SlotChunk {
    /// Its id.
    pub chunk: ChunkId,
    /// Its sealed length in bytes.
    pub length: u32,
    /// The write that sealed it; part of the sealing context.
    pub write: WriteId,
    /// The generation of the file key it was sealed under.
    pub generation: u32,
    /// How it is spread over nodes.
    pub scheme: Redundancy,
}

/// One slot of a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
pub enum Slot {
    /// Zeros; nothing is stored.
    Hole,
    /// A sealed chunk.
    Chunk(SlotChunk),
}

/// A page of the tree.
#[derive(Clone, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
pub enum Page {
    /// Up to 64 slots, the last not a hole.
    Leaf(Vec<Slot>),
    /// Up to 64 children, the last present; `None` stands for a subtree of holes.
    Interior(Vec<Option<Hash>>),
}

/// The root of a manifest: nothing at all where every slot is a hole.
pub type Root = Option<Hash>;

/// Why a manifest could not be read or changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// A page that is not in its one canonical form.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// A page that a parent names is not there.
    #[error("manifest page {0} is missing")]
    MissingPage(Hash),
    /// A page of the wrong kind or shape for its place.
    #[error("manifest page {0} does not belong where it is named")]
    Misplaced(Hash),
    /// Changes out of order, twice, beyond the end, or too many.
    #[error("the changed slots are not ascending, or lie beyond the end, or are too many")]
    Changes,
    /// More slots than a file may have.
    #[error("a file has at most {SLOTS_MAX} slots")]
    TooLong,
}

impl Page {
    /// The encoding and its hash.
    pub fn seal(&self) -> (Hash, Vec<u8>) {
        let bytes = encode(self);
        (Self::hash(&bytes), bytes)
    }

    /// The hash of an encoded page.
    pub fn hash(bytes: &[u8]) -> Hash {
        Hash::of("coffer/v1/manifest-page", bytes)
    }

    /// Reads a page, refusing every form but the canonical one.
    pub fn parse(bytes: &[u8]) -> Result<Self, ManifestError> {
        let what = "manifest page";
        let page: Self = decode(what, bytes)?;
        let (length, ends_well) = match &page {
            Self::Leaf(slots) => (slots.len(), !matches!(slots.last(), None | Some(Slot::Hole))),
            Self::Interior(children) => (children.len(), matches!(children.last(), Some(Some(_)))),
        };
        if length > 64 || !ends_well {
            let reason = "empty, too long, or ending in a hole".to_owned();
            return Err(Malformed { what, reason }.into());
        }
        Ok(page)
    }
}

/// Where pages come from.
pub trait Pages {
    /// Gives the page with this hash, if it is there.
    fn page(&self, hash: &Hash) -> Result<Option<Page>, ManifestError>;
}

impl Pages for BTreeMap<Hash, Vec<u8>> {
    fn page(&self, hash: &Hash) -> Result<Option<Page>, ManifestError> {
        self.get(hash).map(|bytes| Page::parse(bytes)).transpose()
    }
}

/// How many levels of pages a file of `slots` slots has; 0 for none.
pub fn height(slots: u64) -> u32 {
    let mut levels = 0;
    let mut pages = slots;
    while pages > 1 || (levels == 0 && pages > 0) {
        pages = pages.div_ceil(FANOUT);
        levels += 1;
    }
    levels
}

/// Slots below one page of the given level (leaf pages are level 1).
fn span(level: u32) -> u64 {
    FANOUT.pow(level)
}

/// A manifest after a change: its root and the pages that are new.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Changed {
    /// The new root.
    pub root: Root,
    /// The pages along the changed paths, by hash.
    pub pages: Vec<(Hash, Vec<u8>)>,
}

/// Changes a manifest: from `old_slots` slots under `old` to `new_slots`, with `changes` (strictly
/// ascending) put in. Slots beyond the old end that are not named are holes.
pub fn change(
    pages: &impl Pages,
    old: Root,
    old_slots: u64,
    new_slots: u64,
    changes: &[(u64, Slot)],
) -> Result<Changed, ManifestError> {
    if old_slots > SLOTS_MAX || new_slots > SLOTS_MAX {
        return Err(ManifestError::TooLong);
    }
    let ascending = changes.windows(2).all(|pair| pair[0].0 < pair[1].0);
    let inside = changes.last().is_none_or(|(slot, _)| *slot < new_slots);
    if !ascending || !inside || changes.len() > CHANGES_MAX {
        return Err(ManifestError::Changes);
    }
    let mut writer = Writer { pages, written: Vec::new(), places: BTreeMap::new() };
    let (mut root, mut level) = (old, height(old_slots));
    let target = height(new_slots);
    if new_slots < old_slots {
        root = writer.cut(root, level, new_slots)?;
        while level > target {
            root = writer.first_child(root, level)?;
            level -= 1;
        }
    }
    while level < target {
        level += 1;
        if level > 1 {
            root = root.map(|below| writer.write(&Page::Interior(vec![Some(below)])));
        }
    }
    if !changes.is_empty() {
        root = writer.put(root, level, 0, changes)?;
    }
    // A page that a later step replaced is not part of the new tree; keeping it would be garbage.
    let live = writer.reachable(root);
    let written = writer.written;
    Ok(Changed {
        root,
        pages: written.into_iter().filter(|(hash, _)| live.contains(hash)).collect(),
    })
}

struct Writer<'a, P> {
    pages: &'a P,
    written: Vec<(Hash, Vec<u8>)>,
    /// Where each page stands in `written`.
    places: BTreeMap<Hash, usize>,
}

impl<P: Pages> Writer<'_, P> {
    fn write(&mut self, page: &Page) -> Hash {
        let (hash, bytes) = page.seal();
        self.places.entry(hash).or_insert_with(|| {
            self.written.push((hash, bytes));
            self.written.len() - 1
        });
        hash
    }

    fn bytes(&self, hash: &Hash) -> Option<&[u8]> {
        let (_, bytes) = self.written.get(*self.places.get(hash)?)?;
        Some(bytes)
    }

    fn load(&self, hash: &Hash) -> Result<Page, ManifestError> {
        match self.bytes(hash) {
            Some(bytes) => Page::parse(bytes),
            None => self.pages.page(hash)?.ok_or(ManifestError::MissingPage(*hash)),
        }
    }

    /// The written pages that are part of the tree below `root`.
    fn reachable(&self, root: Root) -> BTreeSet<Hash> {
        let mut live = BTreeSet::new();
        let mut open: Vec<Hash> = root.into_iter().collect();
        while let Some(hash) = open.pop() {
            let Some(bytes) = self.bytes(&hash) else { continue };
            if live.insert(hash)
                && let Ok(Page::Interior(children)) = Page::parse(bytes)
            {
                open.extend(children.into_iter().flatten());
            }
        }
        live
    }

    fn slots(&self, node: Root) -> Result<Vec<Slot>, ManifestError> {
        let Some(hash) = node else { return Ok(Vec::new()) };
        match self.load(&hash)? {
            Page::Leaf(slots) => Ok(slots),
            Page::Interior(_) => Err(ManifestError::Misplaced(hash)),
        }
    }

    fn children(&self, node: Root) -> Result<Vec<Option<Hash>>, ManifestError> {
        let Some(hash) = node else { return Ok(Vec::new()) };
        match self.load(&hash)? {
            Page::Interior(children) => Ok(children),
            Page::Leaf(_) => Err(ManifestError::Misplaced(hash)),
        }
    }

    fn leaf(&mut self, mut slots: Vec<Slot>) -> Root {
        while slots.last() == Some(&Slot::Hole) {
            slots.pop();
        }
        if slots.is_empty() { None } else { Some(self.write(&Page::Leaf(slots))) }
    }

    fn interior(&mut self, mut children: Vec<Option<Hash>>) -> Root {
        while children.last() == Some(&None) {
            children.pop();
        }
        if children.is_empty() { None } else { Some(self.write(&Page::Interior(children))) }
    }

    fn first_child(&self, node: Root, level: u32) -> Result<Root, ManifestError> {
        if level < 2 {
            return Ok(None);
        }
        Ok(self.children(node)?.first().copied().flatten())
    }

    /// Drops everything from slot `keep` on below `node`.
    fn cut(&mut self, node: Root, level: u32, keep: u64) -> Result<Root, ManifestError> {
        if node.is_none() || level == 0 || keep == 0 {
            return Ok(None);
        }
        if keep >= span(level) {
            return Ok(node);
        }
        if level == 1 {
            let mut slots = self.slots(node)?;
            slots.truncate(index(keep));
            return Ok(self.leaf(slots));
        }
        let below = span(level - 1);
        let mut children = self.children(node)?;
        children.truncate(index(keep.div_ceil(below)));
        let cut_at = index(keep / below);
        if !keep.is_multiple_of(below)
            && let Some(child) = children.get(cut_at).copied()
        {
            children[cut_at] = self.cut(child, level - 1, keep % below)?;
        }
        Ok(self.interior(children))
    }

    /// Puts `changes` below `node`, whose first slot is `start`.
    fn put(
        &mut self,
        node: Root,
        level: u32,
        start: u64,
        changes: &[(u64, Slot)],
    ) -> Result<Root, ManifestError> {
        if level <= 1 {
            let mut slots = self.slots(node)?;
            for (slot, content) in changes {
                let at = index(slot - start);
                if slots.len() <= at {
                    slots.resize(at + 1, Slot::Hole);
                }
                slots[at] = *content;
            }
            return Ok(self.leaf(slots));
        }
        let below = span(level - 1);
        let mut children = self.children(node)?;
        let mut rest = changes;
        while let Some((slot, _)) = rest.first() {
            let at = (slot - start) / below;
            let end = start + (at + 1) * below;
            let (here, later) = rest.split_at(rest.partition_point(|(slot, _)| *slot < end));
            let at_index = index(at);
            if children.len() <= at_index {
                children.resize(at_index + 1, None);
            }
            children[at_index] =
                self.put(children[at_index], level - 1, start + at * below, here)?;
            rest = later;
        }
        Ok(self.interior(children))
    }
}

fn index(value: u64) -> usize {
    usize::try_from(value).expect("an index inside a page is small")
}

/// Reads slots `from..to` of a manifest of `slots` slots; holes are left out. Every page is looked
/// up by its hash, so the result is what the root committed to. The hashes of missing pages are
/// reported one at a time.
pub fn read(
    pages: &impl Pages,
    root: Root,
    slots: u64,
    from: u64,
    to: u64,
) -> Result<Vec<(u64, SlotChunk)>, ManifestError> {
    let mut found = Vec::new();
    let mut visit = |hash: &Hash| pages.page(hash)?.ok_or(ManifestError::MissingPage(*hash));
    read_below(&mut visit, root, height(slots), 0, from, to.min(slots), &mut found)?;
    Ok(found)
}

/// Calls `visit` for every page that covers a slot in `from..to`, parents first; `visit` gives the
/// page. Used to collect the pages of a range.
pub fn walk(
    visit: &mut impl FnMut(&Hash) -> Result<Page, ManifestError>,
    root: Root,
    slots: u64,
    from: u64,
    to: u64,
) -> Result<(), ManifestError> {
    let mut found = Vec::new();
    read_below(visit, root, height(slots), 0, from, to.min(slots), &mut found)
}

fn read_below(
    visit: &mut impl FnMut(&Hash) -> Result<Page, ManifestError>,
    node: Root,
    level: u32,
    start: u64,
    from: u64,
    to: u64,
    found: &mut Vec<(u64, SlotChunk)>,
) -> Result<(), ManifestError> {
    let Some(hash) = node else { return Ok(()) };
    if level == 0 || from >= to || start >= to || start + span(level) <= from {
        return Ok(());
    }
    match visit(&hash)? {
        Page::Leaf(slots) if level == 1 => {
            for (slot, content) in (start..).zip(slots) {
                if let (true, Slot::Chunk(chunk)) = ((from..to).contains(&slot), content) {
                    found.push((slot, chunk));
                }
            }
        }
        Page::Interior(children) if level > 1 => {
            let below = span(level - 1);
            for (child, at) in children.into_iter().zip(0u64..) {
                read_below(visit, child, level - 1, start + at * below, from, to, found)?;
            }
        }
        _ => return Err(ManifestError::Misplaced(hash)),
    }
    Ok(())
}

#[cfg(test)]
mod tests;
