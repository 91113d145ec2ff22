//! Changing part of a file, its attributes, or which version is current. Only the slots that change are
//! sealed and sent; the rest of the version is the one before.

use std::collections::BTreeSet;
use std::sync::Arc;

use coffer_crypto::content::{Attrs, INLINE_BYTES_MAX, Mode, VersionInfo};
use coffer_crypto::keys::ObjectKey;
use coffer_crypto::plaintext::Plaintext;
use coffer_crypto::random::write_id;
use coffer_model::hash::payload_hash;
use coffer_model::id::{InodeId, WriteId};
use coffer_model::manifest::{CHANGES_MAX, Slot};
use coffer_model::name::RemotePath;
use coffer_model::object::{AttrsLeaf, HeadLeaf, Kind};
use coffer_model::op::{Base, Change, HeadChange, Op, Rejection};
use coffer_model::time::LogTime;
use coffer_proto::SLOTS_PER_QUERY;
use futures_util::stream::{self, StreamExt, TryStreamExt};

use crate::account::now_ns;
use crate::change::{PlannedOp, SLOT_CHANGE_BYTES};
use crate::content::{Content, FileReader};
use crate::error::ClientError;
use crate::manifest::Manifest;
use crate::names::Listing;
use crate::node::{Found, GENERATION, open_attributes, seal_attributes, seal_version_info};
use crate::options::{PutOptions, WriteOptions};
use crate::progress::{Progress, Report, Silent, Tally};
use crate::resolve::{Place, all_of_a_small_file, attrs_and_head};
use crate::session::Session;
use crate::source::Source;
use crate::upload::{Seal, earliest};
use crate::verify::Checked;

/// Slots that are read, sealed and stored at a time.
const SLOTS_IN_FLIGHT: usize = 64;
/// Names asked for at a time while a tree is copied.
const COPY_PAGE: u32 = 200;

/// A change of content, in terms of what is there.
#[derive(Clone, Copy)]
enum Edit<'a> {
    /// Bytes at an offset; the file grows where they go beyond its end.
    Write { offset: u64, bytes: &'a [u8] },
    /// Bytes at the end.
    Append { bytes: &'a [u8] },
    /// Another length; what is added is zeros.
    Resize { length: u64 },
}

/// An edit of a file of known length: which length it gets, and which bytes go where.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Plan<'a> {
    old_length: u64,
    length: u64,
    offset: u64,
    bytes: &'a [u8],
}

impl<'a> Edit<'a> {
    fn plan(self, old_length: u64) -> Result<Plan<'a>, ClientError> {
        let (offset, bytes, length) = match self {
            Self::Write { offset, bytes } => (offset, bytes, None),
            Self::Append { bytes } => (old_length, bytes, None),
            Self::Resize { length } => (0, &[] as &[u8], Some(length)),
        };
        let too_long = || ClientError::Invalid { what: "the file would be too long".to_owned() };
        let count = u64::try_from(bytes.len()).map_err(|_| too_long())?;
        let end = offset.checked_add(count).ok_or_else(too_long)?;
        let length = length.unwrap_or(if count == 0 { old_length } else { end.max(old_length) });
        Ok(Plan { old_length, length, offset, bytes })
    }
}

impl Plan<'_> {
    /// The slots whose content changes, or whose length does: those that are written to, and the
    /// partly filled one at the old or the new end. What is added beyond is holes.
    fn slots(&self, class: u64) -> BTreeSet<u64> {
        let mut slots = BTreeSet::new();
        let count = u64::try_from(self.bytes.len()).unwrap_or(u64::MAX);
        if count > 0 {
            slots.extend(self.offset / class..=(self.offset + count - 1) / class);
        }
        let edge = self.old_length.min(self.length);
        if self.old_length != self.length && !edge.is_multiple_of(class) {
            slots.insert(edge / class);
        }
        slots
    }

    /// Whether no byte of the old content of a slot is left in the new one.
    fn covers(&self, slot: u64, class: u64) -> bool {
        let start = slot * class;
        let end = (start + class).min(self.old_length).min(self.length);
        let count = u64::try_from(self.bytes.len()).unwrap_or(u64::MAX);
        end <= start || (self.offset <= start && end <= self.offset + count)
    }

    /// The new content of a slot, from its old one.
    fn content(&self, slot: u64, class: u64, old: &[u8]) -> Vec<u8> {
        let start = slot * class;
        let size = index(self.length.saturating_sub(start).min(class));
        let mut content = vec![0; size];
        let kept = old.len().min(size);
        content[..kept].copy_from_slice(&old[..kept]);
        let end = start + class;
        let bytes_end = self.offset + u64::try_from(self.bytes.len()).unwrap_or(u64::MAX);
        let (from, to) = (self.offset.max(start), bytes_end.min(end));
        if from < to {
            let bytes = &self.bytes[index(from - self.offset)..index(to - self.offset)];
            content[index(from - start)..index(to - start)].copy_from_slice(bytes);
        }
        content
    }
}

impl Session {
    /// Writes bytes at an offset of a file; it grows where they go beyond its end.
    pub async fn overwrite_range(
        &self,
        path: &RemotePath,
        offset: u64,
        bytes: &[u8],
        options: &WriteOptions,
    ) -> Result<Report, ClientError> {
        self.edit(path, Edit::Write { offset, bytes }, options).await
    }

    /// Writes bytes at the end of a file, wherever that is when they arrive.
    pub async fn append(
        &self,
        path: &RemotePath,
        bytes: &[u8],
        options: &WriteOptions,
    ) -> Result<Report, ClientError> {
        self.edit(path, Edit::Append { bytes }, options).await
    }

    /// Gives a file another length; what is added is zeros.
    pub async fn truncate(
        &self,
        path: &RemotePath,
        length: u64,
        options: &WriteOptions,
    ) -> Result<Report, ClientError> {
        self.edit(path, Edit::Resize { length }, options).await
    }

    async fn edit(
        &self,
        path: &RemotePath,
        edit: Edit<'_>,
        options: &WriteOptions,
    ) -> Result<Report, ClientError> {
        let what = path.to_string();
        let tally = Tally::default();
        let mut contest = self.contest(path.to_string());
        loop {
            let (found, content) = self.content(path, None).await?;
            let current = content.head.version;
            if options.if_version.is_some_and(|version| version != current) {
                return Err(ClientError::Conflict { what });
            }
            let plan = edit.plan(content.length)?;
            let write = write_id();
            let made = self.make_version(&content, &plan, write, &tally).await?;
            let mtime_ns = options.mtime_ns.unwrap_or_else(now_ns);
            match self.commit(&found, &content, made, write, mtime_ns).await? {
                Ok(()) => {
                    self.save_marks_if_due().await?;
                    let (version, length) = (current + 1, plan.length);
                    return Ok(Report { version, length, transfer: tally.transfer() });
                }
                Err(Rejection::Conflict { .. }) if options.if_version.is_some() => {
                    return Err(ClientError::Conflict { what });
                }
                // Somebody was faster, or this was too slow: start from what is there now.
                Err(
                    Rejection::Conflict { .. } | Rejection::ReceiptsExpired | Rejection::NotFound,
                ) => {
                    contest.lost().await?;
                }
                Err(rejection) => return Err(ClientError::rejected(rejection, &what)),
            }
        }
    }

    /// Makes a version out of the current one: seals and stores the slots that change.
    async fn make_version(
        &self,
        content: &Content,
        plan: &Plan<'_>,
        write: WriteId,
        tally: &Tally,
    ) -> Result<Made, ClientError> {
        let class = content.head.class;
        if plan.length <= u64::try_from(INLINE_BYTES_MAX).unwrap_or(u64::MAX) {
            let old = self.first_bytes(content, plan.old_length.min(plan.length)).await?;
            let inline = plan.content(0, class.bytes(), &old);
            return Ok(Made { length: plan.length, inline: Some(inline), ..Made::empty() });
        }
        let slots = plan.slots(class.bytes());
        if slots.len() > CHANGES_MAX {
            return Err(ClientError::Invalid {
                what: format!(
                    "one write changes at most {CHANGES_MAX} slots of {} bytes; put the file instead",
                    class.bytes()
                ),
            });
        }
        let seal = Arc::new(Seal {
            cluster: self.wire().cluster,
            inode: content.inode,
            key: Arc::clone(&content.key),
            write,
            class,
            padding: self.home().padding(),
        });
        let mut manifest = self.manifest_for(content, plan, &slots).await?;
        let stored: Vec<(u64, Slot, Option<LogTime>)> = stream::iter(slots)
            .map(|slot| self.edit_slot(content, plan, &seal, slot, tally))
            .buffered(SLOTS_IN_FLIGHT)
            .try_collect()
            .await?;
        let receipts_until = stored.iter().fold(None, |until, (_, _, at)| earliest(until, *at));
        let changes: Vec<(u64, Slot)> =
            stored.into_iter().map(|(slot, entry, _)| (slot, entry)).collect();
        let slot_bytes = changes.len() * SLOT_CHANGE_BYTES;
        tally.slot_changes(u64::try_from(slot_bytes).unwrap_or(u64::MAX));
        manifest.change(plan.length.div_ceil(class.bytes()), &changes)?;
        Ok(Made {
            length: plan.length,
            inline: None,
            base: match content.inline {
                Some(_) => Base::Empty,
                None => Base::Version(content.head.version),
            },
            slots: manifest.slots,
            root: manifest.root,
            changes,
            receipts_until,
            restored: 0,
        })
    }

    /// Reads what is left of a slot, changes it, seals and stores it.
    async fn edit_slot(
        &self,
        content: &Content,
        plan: &Plan<'_>,
        seal: &Arc<Seal>,
        slot: u64,
        tally: &Tally,
    ) -> Result<(u64, Slot, Option<LogTime>), ClientError> {
        let class = seal.class.bytes();
        let old = match &content.inline {
            Some(inline) if slot == 0 => inline.to_vec(),
            Some(_) => Vec::new(),
            None if plan.covers(slot, class) => Vec::new(),
            None => self.old_slot(content, slot).await?,
        };
        let room = self.chunks().room_up(class).await?;
        let (bytes, seal) = (plan.content(slot, class, &old), Arc::clone(seal));
        let Some((chunk, entry)) = self.compute(move || seal.slot(slot, bytes)).await?? else {
            tally.hole();
            return Ok((slot, Slot::Hole, None));
        };
        let stored = self.chunks().store(chunk, false).await?;
        drop(room);
        tally.chunk(stored.sent, u64::from(entry.length));
        Ok((slot, Slot::Chunk(entry), Some(stored.keep_until)))
    }

    async fn old_slot(&self, content: &Content, slot: u64) -> Result<Vec<u8>, ClientError> {
        let class = content.head.class.bytes();
        self.read_part(content, slot * class, (slot + 1) * class).await
    }

    /// The first bytes of a version, from slots or inline.
    async fn first_bytes(&self, content: &Content, count: u64) -> Result<Vec<u8>, ClientError> {
        match &content.inline {
            Some(inline) => Ok(inline.get(..index(count)).unwrap_or_default().to_vec()),
            None => self.read_part(content, 0, count).await,
        }
    }

    async fn read_part(
        &self,
        content: &Content,
        from: u64,
        to: u64,
    ) -> Result<Vec<u8>, ClientError> {
        let mut reader = FileReader::new(self, content.without_inline(), from, to);
        let mut bytes = Vec::new();
        while let Some(piece) = reader.next().await? {
            bytes.extend_from_slice(&piece);
        }
        Ok(bytes)
    }

    /// The manifest of the current version with the pages that the changed slots touch.
    async fn manifest_for(
        &self,
        content: &Content,
        plan: &Plan<'_>,
        slots: &BTreeSet<u64>,
    ) -> Result<Manifest, ClientError> {
        if content.inline.is_some() {
            return Ok(Manifest::default());
        }
        let head = &content.head;
        // A shorter file is cut along the path to its new last slot; new slots hang from the pages
        // above the old last one.
        let last = plan.length.div_ceil(head.class.bytes()).saturating_sub(1);
        let touched: BTreeSet<u64> = match head.slots.checked_sub(1) {
            Some(old_last) => {
                slots.iter().chain([&last]).map(|slot| *slot.min(&old_last)).collect()
            }
            None => BTreeSet::new(),
        };
        let mut pages = Vec::new();
        for (from, to) in ranges(&touched) {
            pages.extend(self.pages(content, from, to).await?.pages);
        }
        Ok(Manifest::of_version(head.root, head.slots, &pages))
    }

    /// Makes what was prepared the next version.
    async fn commit(
        &self,
        found: &Found,
        current: &Content,
        made: Made,
        write: WriteId,
        mtime_ns: i64,
    ) -> Result<Result<(), Rejection>, ClientError> {
        let (cluster, inode, key) = (self.wire().cluster, current.inode, &current.key);
        let inline = made.inline.map(Plaintext::from);
        let info = VersionInfo { length: made.length, mtime_ns, inline };
        let padding = self.home().padding();
        let payload = seal_version_info(&cluster, inode, write, key, &info, padding)?;
        let expected = found.head.as_ref().map(|head| head.hash);
        let leaf = HeadLeaf {
            version: found.head.as_ref().map_or(0, |head| head.leaf.version) + 1,
            write,
            generation: GENERATION,
            class: current.head.class,
            slots: made.slots,
            root: made.root,
            payload: payload_hash(&payload),
            restored: made.restored,
        };
        let head = HeadChange {
            change: Change { key: inode, expected, leaf },
            base: made.base,
            receipts_until: made.receipts_until,
        };
        let op = Op::Commit { head, attrs: None };
        let op = PlannedOp { op, blobs: vec![payload], slots: made.changes };
        Ok(self.changes().apply(op).await?.map(|_| ()))
    }

    /// Brings an older version back, as a new one with the same content.
    pub async fn restore_version(
        &self,
        path: &RemotePath,
        version: u64,
    ) -> Result<Report, ClientError> {
        let what = path.to_string();
        let mut contest = self.contest(path.to_string());
        loop {
            let (found, old) = self.content(path, Some(version)).await?;
            let (write, mtime_ns) = (write_id(), old.mtime_ns);
            let length = old.length;
            let made = Made { restored: version, ..Made::same_as(&old) };
            let current = found.head.as_ref().map_or(0, |head| head.leaf.version);
            match self.commit(&found, &old, made, write, mtime_ns).await? {
                Ok(()) => {
                    self.save_marks_if_due().await?;
                    let transfer = Tally::default().transfer();
                    return Ok(Report { version: current + 1, length, transfer });
                }
                Err(Rejection::Conflict { .. } | Rejection::NotFound) => contest.lost().await?,
                Err(rejection) => return Err(ClientError::rejected(rejection, &what)),
            }
        }
    }

    /// Sets the permission bits of a file or directory.
    pub async fn set_mode(&self, path: &RemotePath, mode: u32) -> Result<(), ClientError> {
        self.set_attributes(path, |attrs| attrs.mode = Mode::from_bits(mode)).await
    }

    /// Sets the time of the last change. Of a file it is part of its version, so it makes a new one
    /// with the same content.
    pub async fn set_mtime(&self, path: &RemotePath, mtime_ns: i64) -> Result<(), ClientError> {
        if !matches!(self.place(path, attrs_and_head()).await?, Place::Name(located)
            if located.found.as_ref().is_some_and(|found| found.kind() == Kind::File))
        {
            return self.set_attributes(path, |attrs| attrs.mtime_ns = mtime_ns).await;
        }
        let mut contest = self.contest(path.to_string());
        loop {
            let (found, content) = self.content(path, None).await?;
            let made = Made::same_as(&content);
            match self.commit(&found, &content, made, write_id(), mtime_ns).await? {
                Ok(()) => return self.save_marks_if_due().await,
                Err(Rejection::Conflict { .. } | Rejection::NotFound) => contest.lost().await?,
                Err(rejection) => return Err(ClientError::rejected(rejection, &path.to_string())),
            }
        }
    }

    async fn set_attributes(
        &self,
        path: &RemotePath,
        change: impl Fn(&mut Attrs),
    ) -> Result<(), ClientError> {
        let mut contest = self.contest(path.to_string());
        loop {
            let op = match self.place(path, attrs_and_head()).await? {
                Place::Top => {
                    return Err(ClientError::Denied { what: "`/` belongs to nobody".to_owned() });
                }
                Place::Home => {
                    let attrs = self.home_attrs().await?;
                    let home = self.home();
                    let key = ObjectKey::Directory(&home.root.secret);
                    self.attrs_op(self.wire().home, key, &attrs, &change)?
                }
                Place::Name(located) => {
                    let found = located.live(path)?;
                    let attrs = found.attrs.as_ref();
                    let attrs = attrs
                        .ok_or_else(|| ClientError::tampered("an inode without attributes"))?;
                    self.attrs_op(found.inode(), found.secret.object_key(), attrs, &change)?
                }
            };
            match self.changes().apply(op).await? {
                Ok(_) => return self.save_marks_if_due().await,
                Err(Rejection::Conflict { .. } | Rejection::NotFound) => contest.lost().await?,
                Err(rejection) => return Err(ClientError::rejected(rejection, &path.to_string())),
            }
        }
    }

    pub(crate) fn attrs_op(
        &self,
        inode: InodeId,
        key: ObjectKey<'_>,
        standing: &Checked<AttrsLeaf>,
        change: &impl Fn(&mut Attrs),
    ) -> Result<PlannedOp, ClientError> {
        let (cluster, padding) = (self.wire().cluster, self.home().padding());
        let mut attrs = open_attributes(&cluster, inode, key, standing)?;
        change(&mut attrs);
        let (leaf, sealed) = seal_attributes(&cluster, inode, key, &attrs, padding);
        let attrs = Change { key: inode, expected: Some(standing.hash), leaf };
        Ok(PlannedOp::new(Op::SetAttrs { attrs }, vec![sealed]))
    }

    /// Copies a file or symlink, with `recursive` also a directory and all below it. What is copied is
    /// read and sealed anew, for every file has keys of its own. `to` is the new name itself.
    pub async fn copy(
        &self,
        from: &RemotePath,
        to: &RemotePath,
        recursive: bool,
        progress: &dyn Progress,
    ) -> Result<(), ClientError> {
        let stat = self.stat(from).await?;
        if stat.kind != Kind::Directory {
            return self.copy_one(from, to, progress).await;
        }
        if !recursive {
            return Err(ClientError::IsADirectory { what: from.to_string() });
        }
        if from.contains(to) {
            return Err(ClientError::IntoItself { what: from.to_string() });
        }
        let mut open = vec![(from.clone(), to.clone())];
        while let Some((from, to)) = open.pop() {
            self.mkdir(&to, true).await?;
            let directory = self.directory(&from).await?;
            let mut listing = Listing::of(directory, attrs_and_head(), false, COPY_PAGE);
            while let Some(page) = listing.next_page_of_any(self).await? {
                for found in page {
                    let name = found.name.clone();
                    let join = |path: &RemotePath| {
                        path.join(name.clone())
                            .map_err(|why| ClientError::invalid_name(name.as_str(), why))
                    };
                    let (from, to) = (join(&from)?, join(&to)?);
                    match found.kind() {
                        Kind::Directory => open.push((from, to)),
                        _ => self.copy_one(&from, &to, progress).await?,
                    }
                }
            }
        }
        self.save_marks_if_due().await
    }

    async fn copy_one(
        &self,
        from: &RemotePath,
        to: &RemotePath,
        progress: &dyn Progress,
    ) -> Result<(), ClientError> {
        let found = self.locate(from, all_of_a_small_file()).await?.live(from)?;
        let stat = self.describe(&found)?;
        let content = Content::current(self, &found, &from.to_string())?;
        let (mtime_ns, length) = (content.mtime_ns, content.length);
        let options = PutOptions {
            class: Some(content.head.class),
            mode: Some(stat.mode),
            mtime_ns: Some(mtime_ns),
            ..PutOptions::standard()
        };
        let source = Source::remote(FileReader::new(self, content, 0, length));
        self.put_source_as(found.kind(), source, to, &options, false, progress).await.map(|_| ())
    }

    /// Makes a symbolic link that points at `target`, whatever that is.
    pub async fn symlink(&self, path: &RemotePath, target: &[u8]) -> Result<(), ClientError> {
        let source = Source::Memory(target.into());
        let options =
            PutOptions { mode: Some(0o777), if_version: Some(0), ..PutOptions::standard() };
        let put = self.put_source_as(Kind::Symlink, source, path, &options, false, &Silent).await;
        put.map(|_| ())
    }
}

/// A version that is ready to be committed.
struct Made {
    length: u64,
    inline: Option<Vec<u8>>,
    base: Base,
    slots: u64,
    root: coffer_model::manifest::Root,
    changes: Vec<(u64, Slot)>,
    receipts_until: Option<LogTime>,
    restored: u64,
}

impl Made {
    const fn empty() -> Self {
        Self {
            length: 0,
            inline: None,
            base: Base::Empty,
            slots: 0,
            root: None,
            changes: Vec::new(),
            receipts_until: None,
            restored: 0,
        }
    }

    /// The content of a version that exists; no slot changes.
    fn same_as(content: &Content) -> Self {
        Self {
            length: content.length,
            inline: content.inline.as_ref().map(|inline| inline.to_vec()),
            base: Base::Version(content.head.version),
            slots: content.head.slots,
            root: content.head.root,
            ..Self::empty()
        }
    }
}

/// Ranges of pages, each of at most as many slots as one question may ask for, that cover the slots.
fn ranges(slots: &BTreeSet<u64>) -> Vec<(u64, u64)> {
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    for slot in slots {
        match ranges.last_mut() {
            Some((from, to))
                if slot < to || (*slot == *to && to.abs_diff(*from) < SLOTS_PER_QUERY) =>
            {
                *to = slot + 1;
            }
            // A range begins at a page, so that no ticket names more chunks than it may.
            _ => ranges.push((slot - slot % 64, slot + 1)),
        }
    }
    ranges
}

fn index(offset: u64) -> usize {
    usize::try_from(offset).unwrap_or(usize::MAX)
}

#[cfg(test)]
#[expect(clippy::unwrap_used)]
mod tests {
    use super::*;

    const CLASS: u64 = 10;

    /// Applies a plan slot by slot to content that is kept whole, as the engine does.
    fn apply(old: &[u8], edit: Edit<'_>) -> (Vec<u8>, Vec<u64>) {
        let plan = edit.plan(old.len() as u64).unwrap();
        let mut content = old.to_vec();
        content.resize(index(plan.length), 0);
        let slots = plan.slots(CLASS);
        for slot in &slots {
            let (from, to) = (index(slot * CLASS), index((slot + 1) * CLASS));
            let old = if plan.covers(*slot, CLASS) {
                &[] as &[u8]
            } else {
                &old[from.min(old.len())..to.min(old.len())]
            };
            let new = plan.content(*slot, CLASS, old);
            content[from..to.min(index(plan.length))].copy_from_slice(&new);
        }
        (content, slots.into_iter().collect())
    }

    #[test]
    fn an_edit_touches_the_slots_it_must_and_no_others() {
        let old: Vec<u8> = (1..=35).collect();
        let rows: &[(Edit<'_>, &[u64])] = &[
            (Edit::Write { offset: 3, bytes: b"xy" }, &[0]),
            (Edit::Write { offset: 9, bytes: b"xy" }, &[0, 1]),
            (Edit::Write { offset: 10, bytes: b"0123456789" }, &[1]),
            (Edit::Write { offset: 34, bytes: b"xyz" }, &[3]),
            (Edit::Write { offset: 55, bytes: b"x" }, &[3, 5]),
            (Edit::Write { offset: 3, bytes: b"" }, &[]),
            (Edit::Append { bytes: b"123456789" }, &[3, 4]),
            (Edit::Resize { length: 35 }, &[]),
            (Edit::Resize { length: 33 }, &[3]),
            (Edit::Resize { length: 30 }, &[]),
            (Edit::Resize { length: 12 }, &[1]),
            (Edit::Resize { length: 99 }, &[3]),
            (Edit::Resize { length: 0 }, &[]),
        ];
        for (edit, expected) in rows {
            let (content, slots) = apply(&old, *edit);
            assert_eq!(slots, *expected);
            let mut whole = old.clone();
            match *edit {
                Edit::Resize { length } => whole.resize(index(length), 0),
                Edit::Append { bytes } => whole.extend_from_slice(bytes),
                Edit::Write { offset, bytes } => {
                    let end = index(offset) + bytes.len();
                    if !bytes.is_empty() {
                        whole.resize(whole.len().max(end), 0);
                    }
                    whole[index(offset)..end].copy_from_slice(bytes);
                }
            }
            assert_eq!(content, whole);
        }
    }

    #[test]
    fn a_write_beyond_the_end_of_the_world_is_refused() {
        let edit = Edit::Write { offset: u64::MAX, bytes: b"x" };
        assert!(matches!(edit.plan(0), Err(ClientError::Invalid { .. })));
    }

    #[test]
    fn ranges_cover_the_slots_within_the_bounds_of_a_question() {
        type Row<'a> = (&'a [u64], &'a [(u64, u64)]);
        let rows: &[Row<'_>] = &[
            (&[], &[]),
            (&[0], &[(0, 1)]),
            (&[70, 71, 72], &[(64, 73)]),
            (&[5, 130], &[(0, 6), (128, 131)]),
        ];
        for (slots, expected) in rows {
            assert_eq!(ranges(&slots.iter().copied().collect()), *expected);
        }
        let all: BTreeSet<u64> = (100..5000).collect();
        let ranges = ranges(&all);
        assert!(ranges.iter().all(|(from, to)| to - from <= SLOTS_PER_QUERY));
        assert!(all.iter().all(|slot| ranges.iter().any(|(from, to)| (from..to).contains(&slot))));
    }
}
