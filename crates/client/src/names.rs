//! Names: looking at them, listing them, and changing what they point at.

use std::sync::Arc;

use borsh::{BorshDeserialize, BorshSerialize};
use coffer_crypto::keys::{ChildSecret, ObjectKey};
use coffer_crypto::random::write_id;
use coffer_crypto::wrap::WrapContext;
use coffer_model::encoding::{decode, encode};
use coffer_model::id::{InodeId, NameTag};
use coffer_model::name::{FileName, RemotePath};
use coffer_model::object::{EntryKey, EntryLeaf, EntryState, Kind, LeafHash, Object};
use coffer_model::op::{Change, Op, Rejection};
use coffer_model::time::LogTime;
use coffer_proto::v1 as pb;

use crate::account::now_ns;
use crate::change::PlannedOp;
use crate::error::{ClientError, is_snapshot_gone};
use crate::node::{
    Directory, Found, Secret, check_generation, open_attributes, open_version_info,
    seal_attributes, seal_entry,
};
use crate::read::{id_bytes, object_query};
use crate::resolve::{Located, Place, attrs_and_head, nothing};
use crate::session::{EntryInfo, Session, Stat, VersionInfo};
use crate::upload::plain_attrs;
use crate::verify::Checked;

/// Permission bits of a new directory where nothing else is known.
const DIRECTORY_MODE: u32 = 0o755;
/// How often a listing begins anew because its snapshot is gone.
const LIST_ATTEMPTS: u32 = 5;
/// Entries asked for at a time.
const LIST_PAGE: u32 = 500;
/// Versions asked for at a time.
const VERSIONS_PAGE: u32 = 500;
/// What a page token begins with; one of another listing is no token.
const LIST_TOKEN: u8 = 1;
const VERSIONS_TOKEN: u8 = 2;

impl Session {
    /// What a path leads to.
    pub async fn stat(&self, path: &RemotePath) -> Result<Stat, ClientError> {
        match self.place(path, attrs_and_head()).await? {
            Place::Top => Ok(top()),
            Place::Home => self.stat_home().await,
            Place::Name(located) => {
                let found = located.live(path)?;
                self.save_marks_if_due().await?;
                self.describe(&found)
            }
        }
    }

    /// The names in a directory, ascending; `deleted` also gives those that were removed. `/` lists the
    /// own home. The stat of something else than a directory is what it would be listed as.
    pub async fn list(
        &self,
        path: &RemotePath,
        deleted: bool,
    ) -> Result<Vec<EntryInfo>, ClientError> {
        if path.home().is_none() {
            let name = self.name().as_str();
            let name = name.parse().map_err(|why| ClientError::invalid_name(name, why))?;
            return Ok(vec![EntryInfo { name, deleted: false, stat: self.stat_home().await? }]);
        }
        let directory = self.directory(path).await?;
        let mut entries = Vec::new();
        let mut attempt = 1;
        let mut listing = Listing::of(directory, attrs_and_head(), deleted, LIST_PAGE);
        loop {
            match listing.next_page(self).await {
                Ok(Some(page)) => {
                    for found in page {
                        entries.push(EntryInfo {
                            name: found.name.clone(),
                            deleted: !found.is_live(),
                            stat: self.describe(&found)?,
                        });
                    }
                }
                Ok(None) => break,
                Err(ListStop::SnapshotGone) if attempt < LIST_ATTEMPTS => {
                    attempt += 1;
                    entries.clear();
                    listing.begin_anew();
                }
                Err(stop) => return Err(stop.into()),
            }
        }
        entries.sort_by(|one, other| one.name.cmp(&other.name));
        self.save_marks_if_due().await?;
        Ok(entries)
    }

    /// One page of a directory, for callers that keep nothing between pages. All pages are of one
    /// moment; when that is gone, so is the listing ([`ClientError::ListingGone`]).
    pub async fn list_page(
        &self,
        path: &RemotePath,
        deleted: bool,
        page_size: u32,
        token: Option<&str>,
    ) -> Result<Page<EntryInfo>, ClientError> {
        if path.home().is_none() {
            return Ok(Page { items: self.list(path, deleted).await?, next: None });
        }
        let directory = self.directory(path).await?;
        let inode = directory.inode;
        let mut listing = Listing::of(directory, attrs_and_head(), deleted, page_size);
        if let Some(token) = token {
            let standing = ListToken::decode(token)
                .filter(|standing| standing.directory == inode && standing.deleted == deleted)
                .ok_or(ClientError::WrongPageToken)?;
            listing.page_token = standing.page_token;
            listing.revision = Some(standing.revision);
            listing.last = standing.last;
        }
        let found = match listing.next_page(self).await {
            Ok(page) => page.unwrap_or_default(),
            Err(ListStop::SnapshotGone) => return Err(ClientError::ListingGone),
            Err(ListStop::Failed(error)) => return Err(error),
        };
        let mut items = Vec::with_capacity(found.len());
        for found in found {
            let (name, deleted) = (found.name.clone(), !found.is_live());
            items.push(EntryInfo { name, deleted, stat: self.describe(&found)? });
        }
        items.sort_by(|one, other| one.name.cmp(&other.name));
        let next = listing.revision.filter(|_| !listing.ended).map(|revision| {
            let Listing { last, page_token, .. } = listing;
            ListToken { directory: inode, deleted, revision, last, page_token }.encode()
        });
        Ok(Page { items, next })
    }

    /// The versions of a file, newest first.
    pub async fn versions(&self, path: &RemotePath) -> Result<Vec<VersionInfo>, ClientError> {
        let mut page = self.versions_page(path, VERSIONS_PAGE, None).await?;
        let mut versions = page.items;
        while let Some(token) = page.next {
            page = self.versions_page(path, VERSIONS_PAGE, Some(&token)).await?;
            versions.extend(page.items);
        }
        Ok(versions)
    }

    /// One page of the versions of a file, newest first.
    pub async fn versions_page(
        &self,
        path: &RemotePath,
        page_size: u32,
        token: Option<&str>,
    ) -> Result<Page<VersionInfo>, ClientError> {
        let found = self.locate(path, nothing()).await?.live(path)?;
        let what = || path.to_string();
        let key = found.file_key().ok_or_else(|| ClientError::IsADirectory { what: what() })?;
        let (wire, home, inode) = (self.wire(), self.home(), found.inode());
        let standing = match token {
            Some(token) => Some(
                VersionsToken::decode(token)
                    .filter(|standing| standing.inode == inode)
                    .ok_or(ClientError::WrongPageToken)?,
            ),
            None => None,
        };
        let mut newer = standing.as_ref().map(|standing| standing.last);
        let min_revision = wire.seen.revision();
        let request = pb::ListVersionsRequest {
            inode: id_bytes(inode),
            page_size,
            page_token: standing.map(|standing| standing.page_token).unwrap_or_default(),
            min_revision,
        };
        let answer = wire.transport.list_versions(&wire.credentials, request).await;
        let answer = answer.map_err(|status| ClientError::of_status(&status))?;
        let proven = wire.verifier.prove(&answer.proofs.unwrap_or_default())?;
        wire.admit_authors(&proven).await?;
        wire.seen.check_revision(answer.revision, min_revision)?;
        let mut items = Vec::with_capacity(answer.versions.len());
        for version in answer.versions {
            let leaf =
                version.head.ok_or_else(|| ClientError::tampered("a version without its leaf"))?;
            let head = wire.verifier.head(&proven, &leaf, inode, &home.vault)?;
            let number = head.leaf.version;
            match newer {
                Some(newer) if newer <= number => {
                    return Err(ClientError::tampered("versions out of order"));
                }
                Some(_) => {}
                None => wire.seen.check_head(inode, number, answer.revision)?,
            }
            newer = Some(number);
            let info = open_version_info(&wire.cluster, inode, key, &head)?;
            items.push(VersionInfo {
                version: number,
                length: info.length,
                mtime_ns: info.mtime_ns,
                committed: LogTime::from_unix_ms(version.log_time_ms),
                author: head.author,
                restored: (head.leaf.restored > 0).then_some(head.leaf.restored),
            });
        }
        let page_token = answer.next_page_token;
        let next = newer
            .filter(|_| !page_token.is_empty())
            .map(|last| VersionsToken { inode, last, page_token }.encode());
        Ok(Page { items, next })
    }

    /// Makes a directory. With `parents`, also those above it, and one that exists is good.
    pub async fn mkdir(&self, path: &RemotePath, parents: bool) -> Result<(), ClientError> {
        if !parents {
            let located = match self.place(path, nothing()).await? {
                Place::Name(located) => located,
                Place::Top | Place::Home => {
                    return Err(ClientError::Exists { what: path.to_string() });
                }
            };
            return self.make_directory(&located, path, false).await.map(|_| ());
        }
        let Some(home) = path.home() else { return Ok(()) };
        let start = format!("/{home}");
        let mut at: RemotePath =
            start.parse().map_err(|why| ClientError::invalid_name(start, why))?;
        // What exists is found with one question; what is missing is made from there on.
        match self.directory(path).await {
            Ok(_) => return Ok(()),
            Err(ClientError::NotFound { .. }) => {}
            Err(error) => return Err(error),
        }
        for name in path.names() {
            at = at
                .join(name.clone())
                .map_err(|why| ClientError::invalid_name(name.as_str(), why))?;
            let located = self.locate(&at, nothing()).await?;
            self.make_directory(&located, &at, true).await?;
        }
        self.save_marks_if_due().await
    }

    /// Makes a directory under a name; one that is there already is an error, unless it is welcome.
    async fn make_directory(
        &self,
        located: &Located,
        path: &RemotePath,
        existing_is_good: bool,
    ) -> Result<Arc<Directory>, ClientError> {
        let what = path.to_string();
        let mut found = located.found.clone();
        let mut contest = self.contest(path.to_string());
        loop {
            let mut former = None;
            if let Some(found) = &found {
                former = Some(found.hash);
                match (found.is_live(), found.directory()) {
                    (true, Some(directory)) if existing_is_good => {
                        return Ok(Arc::clone(directory));
                    }
                    (true, None) if existing_is_good => {
                        return Err(ClientError::NotADirectory { what });
                    }
                    (true, _) => return Err(ClientError::Exists { what }),
                    (false, _) => {}
                }
            }
            let mode = DIRECTORY_MODE;
            let (directory, op) =
                self.new_directory(&located.parent, &located.name, former, mode, now_ns());
            match self.changes().apply(op).await? {
                Ok(_) => return Ok(directory),
                Err(Rejection::Conflict { .. }) => contest.lost().await?,
                Err(rejection) => return Err(ClientError::rejected(rejection, &what)),
            }
            found = self.look_up(&located.parent, &located.name).await?;
        }
    }

    /// A new directory and the op that makes it.
    pub(crate) fn new_directory(
        &self,
        parent: &Directory,
        name: &FileName,
        former: Option<LeafHash>,
        mode: u32,
        mtime_ns: i64,
    ) -> (Arc<Directory>, PlannedOp) {
        let (cluster, padding) = (self.wire().cluster, self.home().padding());
        let write = write_id();
        let inode = parent.secret.inode_for(&write);
        let secret = ChildSecret::Directory(parent.secret.directory_for(&write));
        let (entry, sealed_name) =
            seal_entry(&cluster, parent, name, (inode, Kind::Directory), &secret, 0);
        let attrs = plain_attrs(mode, mtime_ns);
        let (attrs, sealed) =
            seal_attributes(&cluster, inode, secret.object_key(), &attrs, padding);
        let key = EntryKey { directory: parent.inode, tag: parent.secret.name_tag(name) };
        let op = Op::Create {
            entry: Change { key, expected: former, leaf: entry },
            attrs: Change { key: inode, expected: None, leaf: attrs },
            head: None,
        };
        let secret = parent.secret.directory_for(&write);
        (Arc::new(Directory { inode, secret }), PlannedOp::new(op, vec![sealed_name, sealed]))
    }

    /// Moves what `from` names to the name `to`, in the place of a file or an empty directory that has
    /// it, as rename(2) does. Not into another home.
    pub async fn rename(&self, from: &RemotePath, to: &RemotePath) -> Result<(), ClientError> {
        if from == to {
            return self.locate(from, nothing()).await?.live(from).map(|_| ());
        }
        if from.contains(to) {
            return Err(ClientError::IntoItself { what: from.to_string() });
        }
        if from.home() != to.home() && to.home().is_some() {
            return Err(ClientError::CrossHome { what: from.to_string() });
        }
        let mut contest = self.contest(from.to_string());
        loop {
            let source = self.locate(from, nothing()).await?;
            let parent = Arc::clone(&source.parent);
            let moved = source.live(from)?;
            let target = self.locate(to, nothing()).await?;
            let op = self.rename_op(&parent, &moved, &target)?;
            match self.changes().apply(op).await? {
                Ok(_) => return self.save_marks_if_due().await,
                Err(Rejection::Conflict { .. }) => contest.lost().await?,
                Err(
                    rejection @ (Rejection::NotEmpty
                    | Rejection::IsADirectory
                    | Rejection::NotADirectory),
                ) => return Err(ClientError::rejected(rejection, &to.to_string())),
                Err(rejection) => return Err(ClientError::rejected(rejection, &from.to_string())),
            }
        }
    }

    fn rename_op(
        &self,
        parent: &Directory,
        moved: &Found,
        target: &Located,
    ) -> Result<PlannedOp, ClientError> {
        let cluster = self.wire().cluster;
        let context = WrapContext {
            cluster,
            directory: parent.inode,
            child: moved.inode(),
            generation: moved.entry.generation,
        };
        check_generation(moved.entry.generation)?;
        let secret = parent.secret.unwrap(&context, &moved.entry.wrap)?;
        let tag = target.parent.secret.name_tag(&target.name);
        let to_key = EntryKey { directory: target.parent.inode, tag };
        // The mover has seen the log up to here and vouches for what lies below.
        let adopted_at = self.wire().seen.revision();
        let inode = (moved.inode(), moved.kind());
        let (leaf, sealed_name) =
            seal_entry(&cluster, &target.parent, &target.name, inode, &secret, adopted_at);
        let tombstone =
            EntryLeaf { state: EntryState::Moved { to: to_key }, ..moved.entry.clone() };
        let expected = target.found.as_ref().map(|found| found.hash);
        let op = Op::Rename {
            from: Change { key: moved.key, expected: Some(moved.hash), leaf: tombstone },
            to: Change { key: to_key, expected, leaf },
        };
        Ok(PlannedOp::new(op, vec![sealed_name]))
    }

    /// Removes a file or symlink; with `recursive` also a directory with everything below it. It can be
    /// brought back until retention has passed.
    pub async fn remove(&self, path: &RemotePath, recursive: bool) -> Result<(), ClientError> {
        let only_files = |found: &Found| {
            if found.kind() == Kind::Directory && !recursive {
                return Err(ClientError::IsADirectory { what: path.to_string() });
            }
            Ok(())
        };
        self.remove_where(path, only_files, false).await
    }

    /// Removes an empty directory.
    pub async fn rmdir(&self, path: &RemotePath) -> Result<(), ClientError> {
        let only_directories = |found: &Found| {
            if found.kind() != Kind::Directory {
                return Err(ClientError::NotADirectory { what: path.to_string() });
            }
            Ok(())
        };
        self.remove_where(path, only_directories, true).await
    }

    async fn remove_where(
        &self,
        path: &RemotePath,
        check: impl Fn(&Found) -> Result<(), ClientError>,
        only_empty: bool,
    ) -> Result<(), ClientError> {
        let mut contest = self.contest(path.to_string());
        loop {
            let found = self.locate(path, nothing()).await?.live(path)?;
            check(&found)?;
            let leaf = EntryLeaf { state: EntryState::Deleted, ..found.entry };
            let entry = Change { key: found.key, expected: Some(found.hash), leaf };
            let op = PlannedOp::new(Op::Remove { entry, only_empty }, Vec::new());
            match self.changes().apply(op).await? {
                Ok(_) => return self.save_marks_if_due().await,
                Err(Rejection::Conflict { .. }) => contest.lost().await?,
                Err(rejection) => return Err(ClientError::rejected(rejection, &path.to_string())),
            }
        }
    }

    /// Brings back what was removed under a name.
    pub async fn undelete(&self, path: &RemotePath) -> Result<(), ClientError> {
        let mut contest = self.contest(path.to_string());
        loop {
            let found = self.locate(path, nothing()).await?.found;
            let found = found.ok_or_else(|| ClientError::not_found(path))?;
            match found.entry.state {
                EntryState::Live => return Err(ClientError::Exists { what: path.to_string() }),
                EntryState::Moved { .. } => return Err(ClientError::not_found(path)),
                EntryState::Deleted => {}
            }
            let leaf = EntryLeaf { state: EntryState::Live, ..found.entry };
            let entry = Change { key: found.key, expected: Some(found.hash), leaf };
            let op = PlannedOp::new(Op::Undelete { entry }, Vec::new());
            match self.changes().apply(op).await? {
                Ok(_) => return self.save_marks_if_due().await,
                Err(Rejection::Conflict { .. }) => contest.lost().await?,
                Err(rejection) => return Err(ClientError::rejected(rejection, &path.to_string())),
            }
        }
    }

    /// What is known about a verified name.
    pub(crate) fn describe(&self, found: &Found) -> Result<Stat, ClientError> {
        let (cluster, inode) = (&self.wire().cluster, found.inode());
        let mut stat = Stat {
            inode: Some(inode),
            kind: found.kind(),
            mode: 0,
            mtime_ns: 0,
            length: 0,
            version: 0,
            class: None,
            target: None,
        };
        if let Some(attrs) = &found.attrs {
            let attrs = open_attributes(cluster, inode, found.secret.object_key(), attrs)?;
            (stat.mode, stat.mtime_ns) = (attrs.mode.bits(), attrs.mtime_ns);
        }
        if let (Secret::File(key), Some(head)) = (&found.secret, &found.head) {
            let info = open_version_info(cluster, inode, key, head)?;
            (stat.length, stat.version) = (info.length, head.leaf.version);
            if found.kind() == Kind::Symlink {
                stat.target = info.inline.map(|target| target.to_vec());
            } else {
                stat.mtime_ns = info.mtime_ns;
                stat.class = Some(head.leaf.class);
            }
        }
        Ok(stat)
    }

    async fn stat_home(&self) -> Result<Stat, ClientError> {
        let attrs = self.home_attrs().await?;
        let (wire, home) = (self.wire(), self.home());
        let key = ObjectKey::Directory(&home.root.secret);
        let attrs = open_attributes(&wire.cluster, wire.home, key, &attrs)?;
        Ok(Stat {
            inode: Some(wire.home),
            mode: attrs.mode.bits(),
            mtime_ns: attrs.mtime_ns,
            ..top()
        })
    }

    /// The attributes of the home's root, which no entry points at.
    pub(crate) async fn home_attrs(
        &self,
    ) -> Result<Checked<coffer_model::object::AttrsLeaf>, ClientError> {
        let (wire, home) = (self.wire(), self.home());
        let reading = wire.read(vec![object_query(&Object::Attrs(wire.home))]).await?;
        let (proven, leaf) = reading.into_object()?;
        let leaf = leaf.ok_or_else(|| ClientError::tampered("the home has no attributes"))?;
        wire.verifier.attrs(&proven, &leaf, wire.home, &home.vault)
    }
}

/// Part of a listing, and how to go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page<T> {
    /// What is on it.
    pub items: Vec<T>,
    /// For the next one; none on the last.
    pub next: Option<String>,
}

/// How a listing of a directory goes on. It holds nothing that its user may not know, and what is
/// changed in it is noticed as if a server had changed it.
#[derive(BorshSerialize, BorshDeserialize)]
struct ListToken {
    directory: InodeId,
    deleted: bool,
    revision: u64,
    last: Option<NameTag>,
    page_token: String,
}

/// How a listing of versions goes on.
#[derive(BorshSerialize, BorshDeserialize)]
struct VersionsToken {
    inode: InodeId,
    last: u64,
    page_token: String,
}

impl ListToken {
    fn encode(&self) -> String {
        hex::encode(encode(&(LIST_TOKEN, self)))
    }

    fn decode(text: &str) -> Option<Self> {
        let (kind, token): (u8, Self) = decode("page token", &hex::decode(text).ok()?).ok()?;
        Some(token).filter(|_| kind == LIST_TOKEN)
    }
}

impl VersionsToken {
    fn encode(&self) -> String {
        hex::encode(encode(&(VERSIONS_TOKEN, self)))
    }

    fn decode(text: &str) -> Option<Self> {
        let (kind, token): (u8, Self) = decode("page token", &hex::decode(text).ok()?).ok()?;
        Some(token).filter(|_| kind == VERSIONS_TOKEN)
    }
}

/// `/` itself, which is stored nowhere.
fn top() -> Stat {
    Stat {
        inode: None,
        kind: Kind::Directory,
        mode: 0o555,
        mtime_ns: 0,
        length: 0,
        version: 0,
        class: None,
        target: None,
    }
}

/// A directory that is being listed, page by page, in the order of the tags.
pub(crate) struct Listing {
    directory: Arc<Directory>,
    want: pb::Want,
    deleted: bool,
    page_size: u32,
    page_token: String,
    revision: Option<u64>,
    last: Option<NameTag>,
    /// Names up to this one were given out before the listing began anew.
    given: Option<NameTag>,
    ended: bool,
}

/// Why a listing stopped.
pub(crate) enum ListStop {
    /// Its snapshot is gone; it has to begin anew.
    SnapshotGone,
    /// Anything else.
    Failed(ClientError),
}

impl From<ClientError> for ListStop {
    fn from(error: ClientError) -> Self {
        Self::Failed(error)
    }
}

impl From<ListStop> for ClientError {
    fn from(stop: ListStop) -> Self {
        match stop {
            ListStop::SnapshotGone => {
                Self::Unavailable { detail: "the listing was interrupted too often".to_owned() }
            }
            ListStop::Failed(error) => error,
        }
    }
}

impl Listing {
    pub(crate) fn of(
        directory: Arc<Directory>,
        want: pb::Want,
        deleted: bool,
        page_size: u32,
    ) -> Self {
        Self {
            directory,
            want,
            deleted,
            page_size,
            page_token: String::new(),
            revision: None,
            last: None,
            given: None,
            ended: false,
        }
    }

    /// Begins again, with a new snapshot.
    pub(crate) fn begin_anew(&mut self) {
        (self.revision, self.last, self.given, self.ended) = (None, None, None, false);
        self.page_token.clear();
    }

    /// As [`Self::next_page`], but begins anew by itself and leaves out what was given out before: for
    /// those who need every name once, and no single snapshot.
    pub(crate) async fn next_page_of_any(
        &mut self,
        session: &Session,
    ) -> Result<Option<Vec<Found>>, ClientError> {
        for _ in 0..LIST_ATTEMPTS {
            match self.next_page(session).await {
                Err(ListStop::SnapshotGone) => {
                    let given = self.given.max(self.last);
                    self.begin_anew();
                    self.given = given;
                }
                page => return Ok(page?),
            }
        }
        Err(ListStop::SnapshotGone.into())
    }

    /// The next page; none at the end.
    pub(crate) async fn next_page(
        &mut self,
        session: &Session,
    ) -> Result<Option<Vec<Found>>, ListStop> {
        if self.ended {
            return Ok(None);
        }
        let wire = session.wire();
        // Later pages are of the revision of the first, whatever was seen meanwhile.
        let min_revision = self.revision.unwrap_or_else(|| wire.seen.revision());
        let request = pb::ListRequest {
            directory: id_bytes(self.directory.inode),
            page_size: self.page_size,
            page_token: self.page_token.clone(),
            min_revision,
            want: Some(self.want),
            deleted: self.deleted,
        };
        let answer = match wire.transport.list(&wire.credentials, request).await {
            Ok(answer) => answer,
            Err(status) if is_snapshot_gone(&status) => return Err(ListStop::SnapshotGone),
            Err(status) => return Err(ClientError::of_status(&status).into()),
        };
        let proven = wire.verifier.prove(&answer.proofs.unwrap_or_default())?;
        wire.admit_authors(&proven).await?;
        match self.revision {
            Some(first) if answer.revision != first => {
                return Err(ClientError::tampered("pages of different revisions").into());
            }
            Some(_) => {}
            None => wire.seen.check_revision(answer.revision, min_revision)?,
        }
        self.revision = Some(answer.revision);
        let home = session.home();
        let mut page = Vec::with_capacity(answer.entries.len());
        for entry in answer.entries {
            let directory = &self.directory;
            let found = wire.open_found(&home, directory, None, &proven, entry, answer.revision)?;
            if self.last.is_some_and(|last| found.key.tag <= last) {
                return Err(ClientError::tampered("a listing out of order").into());
            }
            self.last = Some(found.key.tag);
            if !found.is_live() && !self.deleted {
                return Err(ClientError::tampered("a removed name in a listing").into());
            }
            if self.given.is_none_or(|given| found.key.tag > given) {
                page.push(found);
            }
        }
        self.page_token = answer.next_page_token;
        self.ended = self.page_token.is_empty();
        Ok(Some(page))
    }
}
