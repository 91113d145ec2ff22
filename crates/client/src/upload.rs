//! Putting one file: cut into slots, sealed, stored on two nodes, and then named by one signed op. The
//! version exists from the moment that op is applied; before it there are only chunks that nobody
//! names, and after some time nobody keeps.
//!
//! [`Session::put_content`] is the story; what it calls is below it in the order of the calls.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use coffer_crypto::chunk::{ChunkContext, seal_chunk, sealed_len};
use coffer_crypto::content::{Attrs, INLINE_BYTES_MAX, Mode, VersionInfo, Xattrs};
use coffer_crypto::keys::{ChildSecret, FileKey, ObjectKey};
use coffer_crypto::padding::{Padding, padded_len};
use coffer_crypto::plaintext::Plaintext;
use coffer_crypto::random::{random_bytes, write_id};
use coffer_model::chunk::{ChunkClass, Redundancy};
use coffer_model::hash::payload_hash;
use coffer_model::id::{ClusterId, InodeId, WriteId};
use coffer_model::manifest::{CHANGES_MAX, Slot, SlotChunk};
use coffer_model::name::{FileName, RemotePath};
use coffer_model::object::{
    AttrsLeaf, EntryKey, EntryLeaf, EntryState, HeadLeaf, Kind, Leaf, LeafHash, Object, StagedKey,
    StagedLeaf,
};
use coffer_model::op::{Base, Change, HeadChange, Op, Rejection};
use coffer_model::time::LogTime;
use coffer_proto::v1::answer::Answer;
use futures_util::stream::{self, StreamExt, TryStreamExt};
use tokio::sync::OwnedSemaphorePermit;

use crate::account::now_ns;
use crate::change::{PlannedOp, SLOT_CHANGE_BYTES};
use crate::chunks::Sealed;
use crate::error::ClientError;
use crate::journal::{JOURNALED_BYTES_MIN, Stamp};
use crate::manifest::Manifest;
use crate::node::{
    Directory, Found, GENERATION, Home, open_attributes, seal_attributes, seal_entry,
    seal_version_info,
};
use crate::options::PutOptions;
use crate::progress::{Progress, Report, Silent, Tally};
use crate::promise::{Promise, due};
use crate::read::{object_query, walk_query};
use crate::resolve::attrs_and_head;
use crate::session::Session;
use crate::source::{PieceStream, Source, is_zero};

/// Slots of one file under way at a time; their bytes are bounded by the session's budget.
const SLOTS_IN_FLIGHT: usize = 256;
/// A part of a large file: what one op changes at most.
const PART_SLOTS: u64 = CHANGES_MAX as u64;
/// Permission bits of a new file where nothing else is known.
const FILE_MODE: u32 = 0o644;

/// Where a file is put, and what stands there now.
pub(crate) struct Target<'a> {
    pub(crate) parent: &'a Arc<Directory>,
    pub(crate) name: &'a FileName,
    /// What stands under the name, live or not.
    pub(crate) found: Option<Found>,
    /// The path, for messages.
    pub(crate) path: &'a str,
}

/// What is put.
pub(crate) struct Content<'a> {
    pub(crate) kind: Kind,
    pub(crate) source: Source,
    pub(crate) mode: Option<u32>,
    pub(crate) mtime_ns: i64,
    /// Whether the caller said the time, so that another one is another content.
    pub(crate) mtime_given: bool,
    pub(crate) class: Option<ChunkClass>,
    pub(crate) if_version: Option<u64>,
    pub(crate) write: WriteId,
    /// Whether chunks of this write may be stored already.
    pub(crate) resumed: bool,
    pub(crate) tally: &'a Tally,
    pub(crate) progress: &'a dyn Progress,
}

/// A file that was put.
#[derive(Clone, Copy)]
pub(crate) struct Committed {
    pub(crate) version: u64,
    pub(crate) length: u64,
}

impl Session {
    /// Puts a local file, and takes up an earlier attempt that was interrupted. Its content is read
    /// once; a file that is written to meanwhile is put as it was read.
    pub async fn put_file(
        &self,
        local: &Path,
        remote: &RemotePath,
        options: &PutOptions,
        progress: &dyn Progress,
    ) -> Result<Report, ClientError> {
        let file = File::open(local).map_err(|error| ClientError::local("open", local, error))?;
        let found = file.metadata().map_err(|error| ClientError::local("look at", local, error))?;
        if !found.is_file() {
            let mut options = options.clone();
            options.mode = options.mode.or(Some(FILE_MODE));
            return self.put(Box::new(file), local, remote, &options, progress).await;
        }
        let stamp = Stamp { length: found.len(), mtime_ns: mtime_ns(&found) };
        let options = PutOptions {
            mode: options.mode.or(Some(found.mode())),
            mtime_ns: options.mtime_ns.or(Some(stamp.mtime_ns)),
            ..options.clone()
        };
        let source = Source::file(file, local)?;
        if stamp.length < JOURNALED_BYTES_MIN || options.write_id.is_some() {
            return self.put_source(source, remote, &options, false, progress).await;
        }

        let (journal, path, to) = (self.journal().clone(), local.to_owned(), remote.clone());
        let mut upload = blocking(move || journal.begin(&path, &to, stamp)).await?;
        let put = |write: WriteId, resumed: bool, source: Source| {
            let options = PutOptions { write_id: Some(write), ..options.clone() };
            async move { self.put_source(source, remote, &options, resumed, progress).await }
        };
        let mut done = put(upload.write, upload.resumed, source.clone()).await;
        if upload.resumed && matches!(done, Err(ClientError::SourceChanged { .. })) {
            // What was staged is not a part of this content, whatever its length and time say.
            upload = blocking(move || upload.renew(stamp).map(|()| upload)).await?;
            done = put(upload.write, false, source).await;
        }
        let report = done?;
        blocking(move || upload.finish()).await?;
        Ok(report)
    }

    /// Puts what a reader gives. `name` is what it is called in messages.
    pub async fn put(
        &self,
        reader: Box<dyn Read + Send>,
        name: &Path,
        remote: &RemotePath,
        options: &PutOptions,
        progress: &dyn Progress,
    ) -> Result<Report, ClientError> {
        let source = Source::stream(reader, name);
        self.put_source(source, remote, options, options.write_id.is_some(), progress).await
    }

    /// Puts bytes that are there already. With a write id the same put is made once: again, it is
    /// answered with the version it made, as long as that is the current one.
    pub async fn put_bytes(
        &self,
        bytes: &[u8],
        remote: &RemotePath,
        options: &PutOptions,
    ) -> Result<Report, ClientError> {
        let source = Source::Memory(bytes.into());
        self.put_source(source, remote, options, options.write_id.is_some(), &Silent).await
    }

    /// Puts pieces as they come. The file is there once the stream has ended well; if it fails, nothing
    /// has happened.
    pub async fn put_pieces(
        &self,
        pieces: PieceStream,
        remote: &RemotePath,
        options: &PutOptions,
    ) -> Result<Report, ClientError> {
        self.put_source(Source::pieces(pieces), remote, options, false, &Silent).await
    }

    async fn put_source(
        &self,
        source: Source,
        remote: &RemotePath,
        options: &PutOptions,
        resumed: bool,
        progress: &dyn Progress,
    ) -> Result<Report, ClientError> {
        self.put_source_as(Kind::File, source, remote, options, resumed, progress).await
    }

    /// Puts content as a file or symlink.
    pub(crate) async fn put_source_as(
        &self,
        kind: Kind,
        source: Source,
        remote: &RemotePath,
        options: &PutOptions,
        resumed: bool,
        progress: &dyn Progress,
    ) -> Result<Report, ClientError> {
        let located = self.locate(remote, attrs_and_head()).await?;
        let tally = Tally::default();
        let path = remote.to_string();
        progress.found(1, source.length().unwrap_or(0));
        let content = Content {
            kind,
            source,
            mode: options.mode,
            mtime_ns: options.mtime_ns.unwrap_or_else(now_ns),
            mtime_given: options.mtime_ns.is_some(),
            class: options.class,
            if_version: options.if_version,
            write: options.write_id.unwrap_or_else(write_id),
            resumed: resumed || options.write_id.is_some(),
            tally: &tally,
            progress,
        };
        let target = Target {
            parent: &located.parent,
            name: &located.name,
            found: located.found,
            path: &path,
        };
        let committed = self.put_content(target, content).await?;
        progress.done(&path);
        self.save_marks_if_due().await?;
        let Committed { version, length } = committed;
        Ok(Report { version, length, transfer: tally.transfer() })
    }

    /// Puts content under a name: a new file, or a new version of the one that is there.
    pub(crate) async fn put_content(
        &self,
        mut target: Target<'_>,
        mut content: Content<'_>,
    ) -> Result<Committed, ClientError> {
        let home = self.home();
        let mut uploaded: Option<Uploaded> = None;
        let mut contest = self.contest(target.path);
        loop {
            if let Some(done) = self.is_done(&target, &content)? {
                return Ok(done);
            }
            let aim = Aim::at(&target, &content)?;
            let mut current = match uploaded.take() {
                Some(current) if current.inode == aim.inode() => current,
                // Nothing of it is sealed yet.
                Some(current) if current.inline.is_some() => {
                    Uploaded { inode: aim.inode(), ..current }
                }
                Some(mut lost) if !content.source.is_repeatable() => {
                    // The winner's file has another key, and the source cannot be sealed again.
                    lost.keep(self).await?;
                    return self.take_name(&home, &target, &content, lost).await;
                }
                _ => self.upload(&home, &target, &aim, &content).await?,
            };
            current.keep(self).await?;
            let op = aim.op(self.wire().cluster, &home, &target, &content, &current)?;
            let slot_bytes = op.slots.len() * SLOT_CHANGE_BYTES;
            let outcome = self.changes().apply(op).await?;
            content.tally.slot_changes(u64::try_from(slot_bytes).unwrap_or(u64::MAX));
            match outcome {
                Ok(_) => {
                    return Ok(Committed { version: aim.version(), length: current.length });
                }
                Err(Rejection::Conflict { .. }) if content.if_version.is_some() => {
                    return Err(ClientError::Conflict { what: target.path.to_owned() });
                }
                // Somebody was faster: look again. What is stored is still good for the same inode.
                Err(Rejection::Conflict { .. }) => uploaded = Some(current),
                // The file is gone, though perhaps another one has its name.
                Err(Rejection::NotFound) if matches!(aim, Aim::Existing(_)) => {
                    uploaded = Some(current);
                }
                // The inode id of this write is in use: the same upload went elsewhere meanwhile.
                Err(Rejection::InodeExists) if content.source.is_repeatable() => {
                    content.write = write_id();
                    content.resumed = false;
                }
                // Too slow: ask for new receipts, and send again only what is gone.
                Err(rejection @ Rejection::ReceiptsExpired) => {
                    if current.renew(self).await? {
                        uploaded = Some(current);
                    } else if content.source.is_repeatable() {
                        content.resumed = true;
                    } else {
                        return Err(ClientError::rejected(rejection, target.path));
                    }
                }
                Err(rejection) => return Err(ClientError::rejected(rejection, target.path)),
            }
            contest.lost().await?;
            target.found = self.look_up(target.parent, target.name).await?;
        }
    }

    /// A resumed write that was committed after all, its answer lost: the current version is its own.
    fn is_done(
        &self,
        target: &Target<'_>,
        content: &Content<'_>,
    ) -> Result<Option<Committed>, ClientError> {
        let Some(found) = target.found.as_ref().filter(|found| found.is_live()) else {
            return Ok(None);
        };
        let (Some(key), Some(head)) = (found.file_key(), found.head.as_ref()) else {
            return Ok(None);
        };
        if head.leaf.write != content.write || !content.resumed {
            return Ok(None);
        }
        let cluster = &self.wire().cluster;
        let info = crate::node::open_version_info(cluster, found.inode(), key, head)?;
        let same_time = !content.mtime_given || info.mtime_ns == content.mtime_ns;
        if content.source.length() == Some(info.length) && same_time {
            Ok(Some(Committed { version: head.leaf.version, length: info.length }))
        } else {
            Err(ClientError::Conflict { what: "this write was committed already".to_owned() })
        }
    }

    /// Looks a name up in a directory.
    pub(crate) async fn look_up(
        &self,
        parent: &Directory,
        name: &FileName,
    ) -> Result<Option<Found>, ClientError> {
        let mut found = self.look_up_all(parent, std::slice::from_ref(name)).await?;
        found.pop().ok_or(ClientError::Stopped)
    }

    /// Looks up to 64 names up in a directory, with attributes and current versions.
    pub(crate) async fn look_up_all(
        &self,
        parent: &Directory,
        names: &[FileName],
    ) -> Result<Vec<Option<Found>>, ClientError> {
        let home = self.home();
        let tags: Vec<_> = names.iter().map(|name| parent.secret.name_tag(name)).collect();
        let queries =
            tags.iter().map(|tag| walk_query(parent.inode, &[*tag], attrs_and_head())).collect();
        let reading = self.wire().read(queries).await?;
        let mut found = Vec::with_capacity(names.len());
        for (tag, answer) in tags.into_iter().zip(reading.answers) {
            let Answer::Walk(mut answer) = answer else {
                return Err(ClientError::tampered("another answer than was asked for"));
            };
            let step = answer.steps.pop();
            let (proven, revision) = (&reading.proven, reading.revision);
            let opened = step.map(|step| {
                self.wire().open_found(&home, parent, Some(tag), proven, step, revision)
            });
            found.push(opened.transpose()?);
        }
        Ok(found)
    }

    /// Stores the content under the aim's key, all of it, and stages all but the last part.
    async fn upload(
        &self,
        home: &Home,
        target: &Target<'_>,
        aim: &Aim,
        content: &Content<'_>,
    ) -> Result<Uploaded, ClientError> {
        let inline_max = u64::try_from(INLINE_BYTES_MAX).unwrap_or(u64::MAX);
        let class = aim.class(content);
        let seal = Arc::new(Seal {
            cluster: self.wire().cluster,
            inode: aim.inode(),
            key: aim.file_key(target, content),
            write: content.write,
            class,
            padding: home.padding(),
        });
        // A stream shows whether it is short when its first slot is read.
        let class_bytes = class_bytes(class);
        let first = match content.source.length() {
            Some(length) if length > inline_max => None,
            _ => Some(content.source.read_off(0, class_bytes).await?),
        };
        if let Some(first) = &first
            && first.len() <= INLINE_BYTES_MAX
        {
            let length = u64::try_from(first.len()).unwrap_or(u64::MAX);
            content.progress.bytes(length);
            return Ok(Uploaded::inline(seal.inode, first.clone(), length));
        }
        if content.kind == Kind::Symlink {
            return Err(ClientError::Unsupported {
                what: format!("a symlink target of more than {INLINE_BYTES_MAX} bytes"),
            });
        }

        let mut staging = self.staging(home, target, &seal, content).await?;
        let slots = self.read_slots(content.source.clone(), class, first);
        let staged_slots = staging.found;
        let mut stored = slots
            .map_ok(|part| self.store_slot(&seal, part, staged_slots, content))
            .try_buffered(SLOTS_IN_FLIGHT)
            .boxed();
        loop {
            let due_in = staging.promise.due_in(self.wire().clock.now());
            let next = tokio::select! {
                next = stored.try_next() => next?,
                () = due(due_in) => {
                    let Staging { promise, changes, found, .. } = &mut staging;
                    self.renew_if_due(promise, changes, *found).await?;
                    continue;
                }
            };
            let Some(done) = next else { break };
            if done.slot > 0 && done.slot.is_multiple_of(PART_SLOTS) {
                self.stage(&mut staging, done.slot, &seal, target, content).await?;
            }
            staging.take(done, self.wire().clock.now());
        }
        drop(stored);
        let slots = staging.length.div_ceil(class.bytes());
        staging.manifest.change(slots, &staging.changes)?;
        Ok(Uploaded {
            inode: seal.inode,
            length: staging.length,
            class,
            inline: None,
            base: if staging.standing.is_some() { Base::Staged } else { Base::Empty },
            root: staging.manifest.root,
            slots,
            changes: staging.changes,
            found: staging.found,
            promise: staging.promise,
        })
    }

    /// The slots of a source, front to back, each with room for its bytes.
    fn read_slots(
        &self,
        source: Source,
        class: ChunkClass,
        first: Option<Vec<u8>>,
    ) -> impl futures_util::Stream<Item = Result<Part, ClientError>> + Send + '_ {
        let start = Reader { source, slot: 0, first, ended: false };
        stream::try_unfold(start, move |mut reader| async move {
            let offset = reader.slot * class.bytes();
            let over = reader.source.length().is_some_and(|length| offset >= length);
            if reader.ended || over {
                return Ok(None);
            }
            let left = reader.source.length().map_or(u64::MAX, |length| length - offset);
            let room = self.chunks().room_up(class.bytes().min(left)).await?;
            let bytes = match reader.first.take() {
                Some(first) => first,
                None => reader.source.read_off(offset, class_bytes(class)).await?,
            };
            if bytes.is_empty() {
                return Ok(None);
            }
            reader.ended = bytes.len() < class_bytes(class);
            let part = Part { slot: reader.slot, bytes, room };
            reader.slot += 1;
            Ok(Some((part, reader)))
        })
    }

    /// Seals one slot and stores it.
    async fn store_slot(
        &self,
        seal: &Arc<Seal>,
        part: Part,
        staged_slots: u64,
        content: &Content<'_>,
    ) -> Result<StoredSlot, ClientError> {
        let Part { slot, bytes, room } = part;
        let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        let seal = Arc::clone(seal);
        let sealed = self.compute(move || seal.slot(slot, bytes)).await??;
        let Some((chunk, entry)) = sealed else {
            content.tally.hole();
            content.progress.bytes(length);
            return Ok(StoredSlot { slot, length, entry: None, keep_until: None });
        };
        // What a partial version names is kept; only its id is needed here.
        let keep_until = if slot < staged_slots {
            content.tally.chunk(false, 0);
            None
        } else {
            let stored = self.chunks().store(chunk, content.resumed).await?;
            content.tally.chunk(stored.sent, u64::from(entry.length));
            Some(stored.keep_until)
        };
        drop(room);
        content.progress.bytes(length);
        Ok(StoredSlot { slot, length, entry: Some(entry), keep_until })
    }

    /// What an earlier attempt of a resumed write has staged.
    async fn staging(
        &self,
        home: &Home,
        target: &Target<'_>,
        seal: &Seal,
        content: &Content<'_>,
    ) -> Result<Staging, ClientError> {
        let mut staging = Staging::default();
        let long = content.source.length().is_none_or(|all| all > PART_SLOTS * seal.class.bytes());
        if !content.resumed || !long {
            return Ok(staging);
        }
        let key = StagedKey { inode: seal.inode, write: seal.write };
        let reading = self.wire().read(vec![object_query(&Object::Staged(key))]).await?;
        let (proven, leaf) = reading.into_object()?;
        if let Some(leaf) = leaf {
            let staged = self.wire().verifier.staged(&proven, &leaf, key, &home.vault)?;
            let fits =
                staged.leaf.class == seal.class && staged.leaf.directory == target.parent.inode;
            if !fits || !staged.leaf.slots.is_multiple_of(PART_SLOTS) {
                return Err(source_changed(target.path));
            }
            staging.found = staged.leaf.slots;
            staging.found_root = staged.leaf.root;
            staging.standing = Some(staged.hash);
        }
        Ok(staging)
    }

    /// Ends a part: all slots before `slots` go into the partial version.
    async fn stage(
        &self,
        staging: &mut Staging,
        slots: u64,
        seal: &Seal,
        target: &Target<'_>,
        content: &Content<'_>,
    ) -> Result<(), ClientError> {
        let Staging { promise, changes, found, .. } = staging;
        self.renew_if_due(promise, changes, *found).await?;
        staging.manifest.change(slots, &staging.changes)?;
        staging.manifest.keep_right_edge()?;
        let changes = std::mem::take(&mut staging.changes);
        let mut promise = std::mem::take(&mut staging.promise);
        if slots <= staging.found {
            let differs = slots == staging.found && staging.manifest.root != staging.found_root;
            return if differs { Err(source_changed(target.path)) } else { Ok(()) };
        }
        let key = StagedKey { inode: seal.inode, write: seal.write };
        let leaf = StagedLeaf {
            directory: target.parent.inode,
            class: seal.class,
            slots,
            root: staging.manifest.root,
        };
        let base = if staging.standing.is_some() { Base::Staged } else { Base::Empty };
        let staged = Change { key, expected: staging.standing, leaf };
        let next = LeafHash::of(
            &seal.cluster,
            &Object::Staged(key),
            staged.expected,
            &Leaf::Staged(staged.leaf.clone()),
        );
        let slot_bytes = changes.len() * SLOT_CHANGE_BYTES;
        content.tally.slot_changes(u64::try_from(slot_bytes).unwrap_or(u64::MAX));
        let stage = async |promise: &Promise| {
            let op = Op::Stage { staged: staged.clone(), base, receipts_until: promise.until() };
            let planned = PlannedOp { op, blobs: Vec::new(), slots: changes.clone() };
            self.changes().apply(planned).await
        };
        let mut outcome = stage(&promise).await?;
        if outcome == Err(Rejection::ReceiptsExpired)
            && self.renew(&mut promise, &changes, staging.found).await?
        {
            outcome = stage(&promise).await?;
        }
        outcome.map_err(|rejection| ClientError::rejected(rejection, target.path))?;
        staging.standing = Some(next);
        Ok(())
    }

    /// Gives the name to a file that was made from a stream and lost its race: it is created beside
    /// the winner and takes its place, as a rename over it does.
    async fn take_name(
        &self,
        home: &Home,
        target: &Target<'_>,
        content: &Content<'_>,
        uploaded: Uploaded,
    ) -> Result<Committed, ClientError> {
        let cluster = self.wire().cluster;
        let refused = || ClientError::Conflict { what: target.path.to_owned() };
        let parent = target.parent;
        if uploaded.inode != parent.secret.inode_for(&content.write) {
            return Err(refused());
        }
        let spare: FileName = format!(".coffer-{}", hex::encode(random_bytes::<8>()))
            .parse()
            .map_err(|_| ClientError::Stopped)?;
        let beside = Target { parent, name: &spare, found: None, path: target.path };
        let aim = Aim::New { inode: uploaded.inode, former: None };
        let create = aim.op(cluster, home, &beside, content, &uploaded)?;
        let Op::Create { entry, .. } = &create.op else { return Err(ClientError::Stopped) };
        let from_key = entry.key;
        let created = LeafHash::of(
            &cluster,
            &Object::Entry(from_key),
            None,
            &Leaf::Entry(entry.leaf.clone()),
        );
        let to_key = EntryKey { directory: parent.inode, tag: parent.secret.name_tag(target.name) };
        let moved = EntryLeaf { state: EntryState::Moved { to: to_key }, ..entry.leaf.clone() };
        let secret = ChildSecret::File(parent.secret.file_key_for(&content.write));
        let inode = (uploaded.inode, content.kind);
        let (leaf, sealed_name) = seal_entry(&cluster, parent, target.name, inode, &secret, 0);
        let expected = target.found.as_ref().map(|found| found.hash);
        let rename = Op::Rename {
            from: Change { key: from_key, expected: Some(created), leaf: moved },
            to: Change { key: to_key, expected, leaf },
        };
        let ops = vec![create, PlannedOp::new(rename, vec![sealed_name])];
        for outcome in self.changes().apply_together(ops).await? {
            outcome.map_err(|rejection| ClientError::rejected(rejection, target.path))?;
        }
        Ok(Committed { version: 1, length: uploaded.length })
    }
}

/// A file that a put aims at.
enum Aim {
    /// One that does not exist yet; `former` is the tombstone under its name.
    New { inode: InodeId, former: Option<LeafHash> },
    /// One that does.
    Existing(Box<Existing>),
}

struct Existing {
    inode: InodeId,
    key: Arc<FileKey>,
    head: crate::verify::Checked<HeadLeaf>,
    attrs: Option<crate::verify::Checked<AttrsLeaf>>,
}

impl Aim {
    fn at(target: &Target<'_>, content: &Content<'_>) -> Result<Self, ClientError> {
        let what = || target.path.to_owned();
        let Some(found) = target.found.as_ref().filter(|found| found.is_live()) else {
            if content.if_version.is_some_and(|version| version > 0) {
                return Err(ClientError::NotFound { what: what() });
            }
            let inode = target.parent.secret.inode_for(&content.write);
            let former = target.found.as_ref().map(|found| found.hash);
            return Ok(Self::New { inode, former });
        };
        let key = match (found.kind(), found.file_key()) {
            (Kind::Directory, _) => return Err(ClientError::IsADirectory { what: what() }),
            _ if content.if_version == Some(0) => {
                return Err(ClientError::Exists { what: what() });
            }
            (kind, Some(key)) if kind == content.kind => Arc::clone(key),
            (Kind::File, _) => return Err(ClientError::Exists { what: what() }),
            _ => return Err(ClientError::NotAFile { what: what() }),
        };
        let head = found.head.clone();
        let head = head.ok_or_else(|| ClientError::tampered("a file without a version"))?;
        if content.if_version.is_some_and(|version| version != head.leaf.version) {
            return Err(ClientError::Conflict { what: what() });
        }
        let attrs = found.attrs.clone();
        Ok(Self::Existing(Box::new(Existing { inode: found.inode(), key, head, attrs })))
    }

    fn inode(&self) -> InodeId {
        match self {
            Self::New { inode, .. } => *inode,
            Self::Existing(existing) => existing.inode,
        }
    }

    fn version(&self) -> u64 {
        match self {
            Self::New { .. } => 1,
            Self::Existing(existing) => existing.head.leaf.version + 1,
        }
    }

    fn class(&self, content: &Content<'_>) -> ChunkClass {
        content.class.unwrap_or(match self {
            Self::New { .. } => ChunkClass::Large,
            Self::Existing(existing) => existing.head.leaf.class,
        })
    }

    fn file_key(&self, target: &Target<'_>, content: &Content<'_>) -> Arc<FileKey> {
        match self {
            Self::New { .. } => Arc::new(target.parent.secret.file_key_for(&content.write)),
            Self::Existing(existing) => Arc::clone(&existing.key),
        }
    }

    /// The op that makes what was uploaded the current version.
    fn op(
        &self,
        cluster: ClusterId,
        home: &Home,
        target: &Target<'_>,
        content: &Content<'_>,
        uploaded: &Uploaded,
    ) -> Result<PlannedOp, ClientError> {
        let key = self.file_key(target, content);
        let (inode, padding) = (self.inode(), home.padding());
        let info = VersionInfo {
            length: uploaded.length,
            mtime_ns: content.mtime_ns,
            inline: uploaded.inline.as_ref().map(|bytes| Plaintext::from(bytes.to_vec())),
        };
        let payload = seal_version_info(&cluster, inode, content.write, &key, &info, padding)?;
        let leaf = HeadLeaf {
            version: self.version(),
            write: content.write,
            generation: GENERATION,
            class: uploaded.class,
            slots: uploaded.slots,
            root: uploaded.root,
            payload: payload_hash(&payload),
            restored: 0,
        };
        let expected = match self {
            Self::New { .. } => None,
            Self::Existing(existing) => Some(existing.head.hash),
        };
        let head = HeadChange {
            change: Change { key: inode, expected, leaf },
            base: uploaded.base,
            receipts_until: uploaded.promise.until(),
        };
        let object_key = ObjectKey::File(&key);
        let (op, blobs) = match self {
            Self::New { former, .. } => {
                let mode = content.mode.unwrap_or(FILE_MODE);
                let attrs = plain_attrs(mode, content.mtime_ns);
                let (attrs, sealed) = seal_attributes(&cluster, inode, object_key, &attrs, padding);
                let secret = ChildSecret::File(target.parent.secret.file_key_for(&content.write));
                let (entry, sealed_name) = seal_entry(
                    &cluster,
                    target.parent,
                    target.name,
                    (inode, content.kind),
                    &secret,
                    0,
                );
                let tag = target.parent.secret.name_tag(target.name);
                let name = EntryKey { directory: target.parent.inode, tag };
                let op = Op::Create {
                    entry: Change { key: name, expected: *former, leaf: entry },
                    attrs: Change { key: inode, expected: None, leaf: attrs },
                    head: Some(head),
                };
                (op, vec![payload, sealed, sealed_name])
            }
            Self::Existing(existing) => {
                let changed = existing.changed_attrs(&cluster, object_key, content, padding)?;
                let (attrs, sealed) = changed.unzip();
                let blobs = [payload].into_iter().chain(sealed).collect();
                (Op::Commit { head, attrs }, blobs)
            }
        };
        Ok(PlannedOp { op, blobs, slots: uploaded.changes.clone() })
    }
}

/// A change of attributes, and what is sealed beside it.
type SealedAttrs = (Change<InodeId, AttrsLeaf>, Vec<u8>);

impl Existing {
    /// New attributes, where the mode is to change.
    fn changed_attrs(
        &self,
        cluster: &ClusterId,
        key: ObjectKey<'_>,
        content: &Content<'_>,
        padding: Padding,
    ) -> Result<Option<SealedAttrs>, ClientError> {
        let (Some(mode), Some(standing)) = (content.mode, &self.attrs) else { return Ok(None) };
        let mode = Mode::from_bits(mode);
        let attrs = open_attributes(cluster, self.inode, key, standing)?;
        if attrs.mode == mode {
            return Ok(None);
        }
        let attrs = Attrs { mode, ..attrs };
        let (leaf, sealed) = seal_attributes(cluster, self.inode, key, &attrs, padding);
        Ok(Some((Change { key: self.inode, expected: Some(standing.hash), leaf }, sealed)))
    }
}

/// Content that is stored and waits for the op that names it.
struct Uploaded {
    inode: InodeId,
    length: u64,
    class: ChunkClass,
    inline: Option<Vec<u8>>,
    base: Base,
    root: coffer_model::manifest::Root,
    slots: u64,
    changes: Vec<(u64, Slot)>,
    /// Slots before this one were named by an earlier attempt.
    found: u64,
    promise: Promise,
}

impl Uploaded {
    /// Renews the receipts if it is time.
    async fn keep(&mut self, session: &Session) -> Result<(), ClientError> {
        session.renew_if_due(&mut self.promise, &self.changes, self.found).await
    }

    /// Renews the receipts, and says whether every chunk is still there.
    async fn renew(&mut self, session: &Session) -> Result<bool, ClientError> {
        session.renew(&mut self.promise, &self.changes, self.found).await
    }

    fn inline(inode: InodeId, content: Vec<u8>, length: u64) -> Self {
        Self {
            inode,
            length,
            class: ChunkClass::Large,
            inline: Some(content),
            base: Base::Empty,
            root: None,
            slots: 0,
            changes: Vec::new(),
            found: 0,
            promise: Promise::default(),
        }
    }
}

/// What an upload has gathered of the part it is in.
#[derive(Default)]
struct Staging {
    manifest: Manifest,
    changes: Vec<(u64, Slot)>,
    promise: Promise,
    length: u64,
    /// The partial version's leaf.
    standing: Option<LeafHash>,
    /// How many slots an earlier attempt has staged, and to which root they led.
    found: u64,
    found_root: coffer_model::manifest::Root,
}

impl Staging {
    fn take(&mut self, stored: StoredSlot, now: LogTime) {
        self.length += stored.length;
        self.changes.extend(stored.entry.map(|chunk| (stored.slot, Slot::Chunk(chunk))));
        self.promise.add(now, stored.keep_until);
    }
}

/// The earlier of two times, where there are two.
pub(crate) fn earliest(one: Option<LogTime>, other: Option<LogTime>) -> Option<LogTime> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

struct Reader {
    source: Source,
    slot: u64,
    first: Option<Vec<u8>>,
    ended: bool,
}

/// One slot's plaintext, with room for its bytes.
struct Part {
    slot: u64,
    bytes: Vec<u8>,
    room: OwnedSemaphorePermit,
}

/// One slot that is stored, or is a hole.
struct StoredSlot {
    slot: u64,
    length: u64,
    entry: Option<SlotChunk>,
    keep_until: Option<LogTime>,
}

/// What it takes to seal the slots of one write.
pub(crate) struct Seal {
    pub(crate) cluster: ClusterId,
    pub(crate) inode: InodeId,
    pub(crate) key: Arc<FileKey>,
    pub(crate) write: WriteId,
    pub(crate) class: ChunkClass,
    pub(crate) padding: Padding,
}

impl Seal {
    /// Seals a slot; nothing if it is all zeros. A slot that is not full is the last one, and padded.
    pub(crate) fn slot(
        &self,
        slot: u64,
        bytes: Vec<u8>,
    ) -> Result<Option<(Sealed, SlotChunk)>, ClientError> {
        if is_zero(&bytes) {
            return Ok(None);
        }
        let mut bytes = bytes;
        if self.padding == Padding::Bucket {
            bytes.resize(padded_len(bytes.len(), class_bytes(self.class)), 0);
        }
        let plaintext = Plaintext::from(bytes);
        let context =
            ChunkContext { cluster: self.cluster, inode: self.inode, write: self.write, slot };
        let sealed = seal_chunk(&self.key, &context, &plaintext)?;
        let entry = SlotChunk {
            chunk: sealed.id(),
            length: u32::try_from(sealed.bytes().len()).unwrap_or(u32::MAX),
            write: self.write,
            generation: GENERATION,
            scheme: Redundancy::Replicas,
        };
        debug_assert_eq!(sealed.bytes().len(), sealed_len(plaintext.len()));
        Ok(Some((sealed.into(), entry)))
    }
}

pub(crate) fn plain_attrs(mode: u32, mtime_ns: i64) -> Attrs {
    Attrs { mode: Mode::from_bits(mode), mtime_ns, xattrs: Xattrs::default() }
}

pub(crate) fn class_bytes(class: ChunkClass) -> usize {
    usize::try_from(class.bytes()).unwrap_or(usize::MAX)
}

/// The time of a local file's last change, as files have it.
pub(crate) fn mtime_ns(found: &std::fs::Metadata) -> i64 {
    found.mtime().saturating_mul(1_000_000_000).saturating_add(found.mtime_nsec())
}

fn source_changed(path: &str) -> ClientError {
    ClientError::SourceChanged { path: path.into() }
}

/// Runs file work off the event loop.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ClientError> + Send + 'static,
) -> Result<T, ClientError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| ClientError::Stopped)?
}
