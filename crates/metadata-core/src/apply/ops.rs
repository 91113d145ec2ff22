//! Ops, one function each: preconditions first, in the order a reader would ask, then the changes.

use std::cell::RefCell;

use coffer_model::authorize::authorize;
use coffer_model::bundle::Author;
use coffer_model::hash::Hash;
use coffer_model::id::InodeId;
use coffer_model::log::ChunkRow;
use coffer_model::manifest::{
    self, FANOUT, ManifestError, Page, Pages, Root, SLOTS_MAX, Slot, SlotChunk,
};
use coffer_model::name::{PATH_DEPTH_MAX, UserName};
use coffer_model::object::{
    AttrsLeaf, Custody, EntryKey, EntryLeaf, EntryState, HeadLeaf, Kind, Leaf, LeafHash, Object,
    Role, SEALED_SESSION_BYTES_MAX, SealedSessionLeaf, SessionLeaf, StagedLeaf, UserLeaf,
    VAULT_MEMBERS_MAX, VaultLeaf, WRAP_BYTES_MAX,
};
use coffer_model::op::{Base, Change, HeadChange, Op, Rejection, Rule};
use coffer_model::order::{INVITE_SECRET_BYTES_MAX, INVITE_SECRET_BYTES_MIN};
use coffer_model::session::CertificateHash;
use coffer_model::time::LogTime;

use crate::apply::tree::{directory, inode_state, live_place};
use crate::apply::{Context, Stop, add_usage, certificate_times_fit, charge, gone, open_session};
use crate::query;
use crate::state::{
    CORE_VERSION_CHANGES, Gone, InodeState, OpRef, Row, Usage, entry_key, inode_usage_key, load,
    meta, page_key, row_key, staged_key, store, trash_key, version_key,
};
use crate::tables::{Overlay, Table, TableError, Tables};

/// What an entry costs its home beyond its payloads.
const ENTRY_BYTES: u64 = 256;

/// Applies one op and gives the bytes it charged.
pub(crate) fn apply<T: Tables>(
    tables: &mut Overlay<T>,
    context: &Context<'_>,
    at: OpRef,
    op: &Op,
) -> Result<u64, Stop> {
    let mut step = Step { tables, context, at, charged: 0 };
    match op {
        Op::Register { user, vault, attrs } => step.register(user, vault, attrs)?,
        Op::UpdateUser { user } => step.update_user(user)?,
        Op::OpenSession { session } => step.open_session(session)?,
        Op::CloseSession { session } => step.close_session(session)?,
        Op::Create { entry, attrs, head } => step.create(entry, attrs, head.as_ref())?,
        Op::Commit { head, attrs } => step.commit(head, attrs.as_ref())?,
        Op::Stage { staged, base, receipts_until } => {
            step.stage(staged, *base, *receipts_until)?;
        }
        Op::SetAttrs { attrs } => step.set_attrs(attrs)?,
        Op::Rename { from, to } => step.rename(from, to)?,
        Op::Remove { entry, only_empty } => step.remove(entry, *only_empty)?,
        Op::Undelete { entry } => step.undelete(entry)?,
        Op::SealSession { sealed } => step.seal_session(sealed)?,
    }
    Ok(step.charged)
}

struct Step<'a, 'c, T> {
    tables: &'a mut Overlay<T>,
    context: &'a Context<'c>,
    at: OpRef,
    charged: u64,
}

fn invalid(rule: Rule) -> Stop {
    Stop::Refused(Rejection::Invalid(rule))
}

/// Compare-and-swap: the object must hold exactly the expected leaf.
fn expect<L>(
    object: Object,
    current: Option<&Row<L>>,
    expected: Option<LeafHash>,
) -> Result<(), Rejection> {
    let current = current.map(|row| row.hash);
    if current == expected { Ok(()) } else { Err(Rejection::Conflict { object, current }) }
}

/// The pages of one inode. A store that fails cannot be told of through [`Pages`], so it is kept here
/// until [`StoredPages::checked`]: an op refused on one replica for its disk's sake would split the
/// replicas for ever.
struct StoredPages<'a, T> {
    tables: &'a Overlay<T>,
    inode: InodeId,
    failure: RefCell<Option<TableError>>,
}

impl<'a, T: Tables> StoredPages<'a, T> {
    fn new(tables: &'a Overlay<T>, inode: InodeId) -> Self {
        Self { tables, inode, failure: RefCell::new(None) }
    }

    /// What came of a look at the pages: a failure of the store goes before everything else.
    fn checked<V>(&self, result: Result<V, ManifestError>) -> Result<V, Stop> {
        match self.failure.take() {
            Some(failure) => Err(failure.into()),
            None => result.map_err(|_| Rejection::Manifest.into()),
        }
    }
}

impl<T: Tables> Pages for StoredPages<'_, T> {
    fn page(&self, hash: &Hash) -> Result<Option<Page>, ManifestError> {
        let parse = |bytes: Vec<u8>| {
            Page::parse(&bytes).map_err(|error| TableError(format!("page {hash}: {error}")))
        };
        let stored = self.tables.get(Table::Pages, &page_key(&self.inode, hash));
        stored.and_then(|bytes| bytes.map(parse).transpose()).or_else(|failure| {
            self.failure.replace(Some(failure));
            Ok(None)
        })
    }
}

/// The manifest a change starts from.
struct From {
    root: Root,
    slots: u64,
}

impl<'c, T: Tables> Step<'_, 'c, T> {
    // -- users and sessions ---------------------------------------------------------------------

    fn register(
        &mut self,
        user: &Change<UserName, UserLeaf>,
        vault: &Change<InodeId, VaultLeaf>,
        attrs: &Change<InodeId, AttrsLeaf>,
    ) -> Result<(), Stop> {
        let header = self.context.header;
        let leaf = &user.leaf;
        if leaf.principal != header.principal || leaf.identity != header.key {
            return Err(Rejection::Denied.into());
        }
        if !self.use_invite(leaf.invite.as_ref())? && !self.context.open_registration {
            return Err(Rejection::InviteRequired.into());
        }
        let taken = self.tables.get(Table::Users, user.key.as_str().as_bytes())?.is_some()
            || self.tables.get(Table::Principals, leaf.principal.as_bytes())?.is_some();
        if taken {
            return Err(Rejection::NameTaken.into());
        }
        if user.expected.is_some() || vault.expected.is_some() || attrs.expected.is_some() {
            return Err(invalid(Rule::UserIsNew));
        }
        self.claim_inode(&leaf.home)?;
        if leaf.keyring_epoch != 1 {
            return Err(invalid(Rule::FirstEpoch));
        }
        if vault.key != leaf.home || vault.leaf.home != leaf.home || attrs.key != leaf.home {
            return Err(invalid(Rule::HomeRoot));
        }
        check_vault(&vault.leaf)?;
        let alone = vault.leaf.members.len() == 1
            && vault.leaf.role_of(leaf.principal) == Some(Role::Admin);
        if !alone {
            return Err(invalid(Rule::HomeMembers));
        }
        let keyring = self.context.payload(&leaf.keyring, None)?;
        let login_record = self.context.payload(&leaf.login_record, None)?;
        let state = InodeState {
            kind: Kind::Directory,
            home: leaf.home,
            parent: None,
            linked: true,
            children: 0,
            vault: true,
        };
        self.tables.put(Table::Inodes, leaf.home.as_bytes(), store(&state));
        self.tables.put(Table::Principals, leaf.principal.as_bytes(), user.key.as_str().into());
        let row = self.row(
            Object::User(user.key.clone()),
            user.expected,
            leaf,
            Leaf::User,
            keyring,
            login_record,
        );
        self.tables.put(Table::Users, user.key.as_str().as_bytes(), store(&row));
        self.put_vault(vault)?;
        self.put_attrs(attrs, None)?;
        self.charge(&leaf.home, &leaf.home, Usage { bytes: ENTRY_BYTES, inodes: 1, rows: 0 })
    }

    /// Uses the invite up, if it is one that counts and its secret has come along.
    fn use_invite(&mut self, invite: Option<&Hash>) -> Result<bool, Stop> {
        let Some(invite) = invite.filter(|_| self.context.core_version >= CORE_VERSION_CHANGES)
        else {
            return Ok(false);
        };
        let expires: Option<LogTime> = load(self.tables, Table::Invites, invite.as_bytes())?;
        let secret = self.context.blobs.get(invite).map_or(0, |secret| secret.len());
        let counts = expires.is_some_and(|expires| expires > self.context.time)
            && (INVITE_SECRET_BYTES_MIN..=INVITE_SECRET_BYTES_MAX).contains(&secret);
        if counts {
            self.tables.delete(Table::Invites, invite.as_bytes());
        }
        Ok(counts)
    }

    fn update_user(&mut self, user: &Change<UserName, UserLeaf>) -> Result<(), Stop> {
        let key = user.key.as_str().as_bytes();
        let row: Row<UserLeaf> =
            load(self.tables, Table::Users, key)?.ok_or(Rejection::NotFound)?;
        let (old, new) = (&row.leaf, &user.leaf);
        if old.identity != self.context.header.key || old.principal != self.context.header.principal
        {
            return Err(Rejection::Denied.into());
        }
        expect(Object::User(user.key.clone()), Some(&row), user.expected)?;
        let only_keys_change = UserLeaf {
            keyring: new.keyring,
            keyring_epoch: new.keyring_epoch,
            login_record: new.login_record,
            ..old.clone()
        } == *new;
        if !only_keys_change || new.keyring_epoch != old.keyring_epoch + 1 {
            return Err(invalid(Rule::OnlyKeysChange));
        }
        let keyring = self.context.payload(&new.keyring, None)?;
        let login_record = self.context.payload(&new.login_record, Some(&row.second))?;
        let row = self.row(
            Object::User(user.key.clone()),
            user.expected,
            new,
            Leaf::User,
            keyring,
            login_record,
        );
        self.tables.put(Table::Users, key, store(&row));
        Ok(())
    }

    fn open_session(&mut self, session: &Change<CertificateHash, SessionLeaf>) -> Result<(), Stop> {
        let header = self.context.header;
        let certificate = &session.leaf.certificate.certificate;
        let name = self
            .tables
            .get(Table::Principals, header.principal.as_bytes())?
            .ok_or(Rejection::NotFound)?;
        let user: Row<UserLeaf> =
            load(self.tables, Table::Users, &name)?.ok_or(Rejection::NotFound)?;
        let vouched = user.leaf.identity == header.key
            && certificate.principal == header.principal
            && certificate.cluster == self.context.cluster
            && certificate.suite == coffer_model::SUITE
            && session.leaf.certificate.verify(&user.leaf.identity).is_ok();
        if !vouched {
            return Err(Rejection::Denied.into());
        }
        if session.key != certificate.hash() || session.leaf.closed {
            return Err(invalid(Rule::SessionName));
        }
        if session.expected.is_some() {
            return Err(invalid(Rule::SessionOnce));
        }
        if !certificate_times_fit(certificate.issued, certificate.expires, self.context.time) {
            return Err(invalid(Rule::SessionTimes));
        }
        self.put_session(session)
    }

    fn close_session(
        &mut self,
        session: &Change<CertificateHash, SessionLeaf>,
    ) -> Result<(), Stop> {
        let key = session.key.as_hash().as_bytes();
        let row: Row<SessionLeaf> =
            load(self.tables, Table::Sessions, key)?.ok_or(Rejection::NotFound)?;
        if row.leaf.certificate.certificate.principal != self.context.header.principal {
            return Err(Rejection::Denied.into());
        }
        if !session.leaf.closed || session.leaf.certificate != row.leaf.certificate {
            return Err(invalid(Rule::SessionClosing));
        }
        self.put_session(session)?;
        self.tables.delete(Table::SealedSessions, key);
        Ok(())
    }

    fn seal_session(
        &mut self,
        sealed: &Change<CertificateHash, SealedSessionLeaf>,
    ) -> Result<(), Stop> {
        if self.context.core_version < CORE_VERSION_CHANGES {
            return Err(invalid(Rule::LaterVersion));
        }
        let header = self.context.header;
        let name = self
            .tables
            .get(Table::Principals, header.principal.as_bytes())?
            .ok_or(Rejection::NotFound)?;
        let user: Row<UserLeaf> =
            load(self.tables, Table::Users, &name)?.ok_or(Rejection::NotFound)?;
        // An op before this one in the bundle may have closed the session.
        let own = header.author == Author::Session(sealed.key)
            && open_session(self.tables, &sealed.key, self.context.time)?.is_some();
        if !own || user.leaf.custody != Custody::Gateway {
            return Err(invalid(Rule::SealedSession));
        }
        let key = sealed.key.as_hash().as_bytes();
        let current: Option<Row<SealedSessionLeaf>> =
            load(self.tables, Table::SealedSessions, key)?;
        let object = Object::SealedSession(sealed.key);
        expect(object.clone(), current.as_ref(), sealed.expected)?;
        let payload = self.context.payload(&sealed.leaf.payload, None)?;
        if payload.len() > SEALED_SESSION_BYTES_MAX {
            return Err(invalid(Rule::SealedSession));
        }
        let row = self.row(
            object,
            sealed.expected,
            &sealed.leaf,
            Leaf::SealedSession,
            payload,
            Vec::new(),
        );
        self.tables.put(Table::SealedSessions, key, store(&row));
        Ok(())
    }

    fn put_session(&mut self, session: &Change<CertificateHash, SessionLeaf>) -> Result<(), Stop> {
        let key = session.key.as_hash().as_bytes();
        let current: Option<Row<SessionLeaf>> = load(self.tables, Table::Sessions, key)?;
        let object = Object::Session(session.key);
        expect(object.clone(), current.as_ref(), session.expected)?;
        let row = self.row(
            object,
            session.expected,
            &session.leaf,
            Leaf::Session,
            Vec::new(),
            Vec::new(),
        );
        self.tables.put(Table::Sessions, key, store(&row));
        Ok(())
    }

    // -- content --------------------------------------------------------------------------------

    fn create(
        &mut self,
        entry: &Change<EntryKey, EntryLeaf>,
        attrs: &Change<InodeId, AttrsLeaf>,
        head: Option<&HeadChange>,
    ) -> Result<(), Stop> {
        let (key, leaf) = (&entry.key, &entry.leaf);
        let home = self.writable_directory(&key.directory, None)?;
        check_entry(leaf)?;
        if leaf.state != EntryState::Live || leaf.adopted_at != 0 {
            return Err(invalid(Rule::NewEntry));
        }
        match (leaf.kind, head) {
            (Kind::Directory, None) | (Kind::File | Kind::Symlink, Some(_)) => {}
            _ => return Err(invalid(Rule::ContentOfKind)),
        }
        if attrs.key != leaf.inode || head.is_some_and(|head| head.change.key != leaf.inode) {
            return Err(invalid(Rule::OneInode));
        }
        let standing = self.free_name(entry)?;
        self.claim_inode(&leaf.inode)?;
        if let Some(standing) = standing {
            self.keep_in_trash(key, standing)?;
        }
        self.link(entry, None)?;
        let state = InodeState {
            kind: leaf.kind,
            home,
            parent: Some(*key),
            linked: true,
            children: 0,
            vault: false,
        };
        self.tables.put(Table::Inodes, leaf.inode.as_bytes(), store(&state));
        self.count_children(&key.directory, 1)?;
        self.put_attrs(attrs, None)?;
        if let Some(head) = head {
            self.put_head(head, &home)?;
        }
        self.charge(&home, &leaf.inode, Usage { bytes: ENTRY_BYTES, inodes: 1, rows: 0 })
    }

    fn commit(
        &mut self,
        head: &HeadChange,
        attrs: Option<&Change<InodeId, AttrsLeaf>>,
    ) -> Result<(), Stop> {
        let inode = &head.change.key;
        let home = self.writable(inode)?;
        if let Some(Kind::Directory) = inode_state(self.tables, inode)?.map(|state| state.kind) {
            return Err(Rejection::IsADirectory.into());
        }
        if attrs.is_some_and(|attrs| attrs.key != *inode) {
            return Err(invalid(Rule::OneInode));
        }
        self.put_head(head, &home)?;
        if let Some(attrs) = attrs {
            self.replace_attrs(attrs)?;
        }
        Ok(())
    }

    fn stage(
        &mut self,
        staged: &Change<coffer_model::object::StagedKey, StagedLeaf>,
        base: Base,
        receipts_until: Option<LogTime>,
    ) -> Result<(), Stop> {
        let (key, leaf) = (&staged.key, &staged.leaf);
        let home = self.writable_directory(&leaf.directory, None)?;
        if let Some(state) = inode_state(self.tables, &key.inode)? {
            if self.writable(&key.inode)? != home {
                return Err(Rejection::CrossHome.into());
            }
            if state.kind == Kind::Directory {
                return Err(Rejection::IsADirectory.into());
            }
        } else {
            if gone::purge_has_begun(self.tables, &key.inode)? {
                return Err(Rejection::NotFound.into());
            }
            // What nobody makes a file of is purged some day.
            if self.context.core_version >= CORE_VERSION_CHANGES {
                let since = self.context.time;
                gone::put(self.tables, &key.inode, &Gone { since, purge: None })?;
            }
        }
        let stored_key = staged_key(key);
        let current: Option<Row<StagedLeaf>> = load(self.tables, Table::Staged, &stored_key)?;
        let object = Object::Staged(*key);
        expect(object.clone(), current.as_ref(), staged.expected)?;
        let from = match (base, &current) {
            (Base::Staged, Some(row)) => {
                if row.leaf.class != leaf.class || row.leaf.directory != leaf.directory {
                    return Err(invalid(Rule::StagedShape));
                }
                From { root: row.leaf.root, slots: row.leaf.slots }
            }
            (Base::Empty, None) => From { root: None, slots: 0 },
            (Base::Version(version), None) => self.version(&key.inode, version, leaf.class)?,
            _ => return Err(invalid(Rule::StagedBase)),
        };
        self.put_slots(&key.inode, &home, from, leaf.slots, leaf.root, receipts_until)?;
        let row = self.row(object, staged.expected, leaf, Leaf::Staged, Vec::new(), Vec::new());
        self.tables.put(Table::Staged, &stored_key, store(&row));
        Ok(())
    }

    fn set_attrs(&mut self, attrs: &Change<InodeId, AttrsLeaf>) -> Result<(), Stop> {
        self.writable(&attrs.key)?;
        self.replace_attrs(attrs)
    }

    // -- names ----------------------------------------------------------------------------------

    fn rename(
        &mut self,
        from: &Change<EntryKey, EntryLeaf>,
        to: &Change<EntryKey, EntryLeaf>,
    ) -> Result<(), Stop> {
        let source_home = self.writable_directory(&from.key.directory, None)?;
        let source = self.live_row(from)?;
        let inode = source.leaf.inode;
        let moving_directory = source.leaf.kind == Kind::Directory;
        let home =
            self.writable_directory(&to.key.directory, moving_directory.then_some(&inode))?;
        if home != source_home {
            return Err(Rejection::CrossHome.into());
        }
        if from.key == to.key {
            return Err(invalid(Rule::TwoNames));
        }
        let tombstone =
            EntryLeaf { state: EntryState::Moved { to: to.key }, ..source.leaf.clone() };
        if from.leaf != tombstone {
            return Err(invalid(Rule::MovedTombstone));
        }
        check_entry(&to.leaf)?;
        let fits = to.leaf.inode == inode
            && to.leaf.kind == source.leaf.kind
            && to.leaf.state == EntryState::Live
            && to.leaf.adopted_at <= self.at.sequence;
        if !fits {
            return Err(invalid(Rule::MovedEntry));
        }
        let target_key = entry_key(&to.key);
        let target: Option<Row<EntryLeaf>> = load(self.tables, Table::Entries, &target_key)?;
        expect(Object::Entry(to.key), target.as_ref(), to.expected)?;
        let mut replaced_live = false;
        if let Some(target) = target {
            if target.leaf.state == EntryState::Live {
                self.check_replaceable(&target.leaf, moving_directory)?;
                self.unlink(&target.leaf.inode)?;
                replaced_live = true;
            }
            self.keep_in_trash(&to.key, target)?;
        }
        let row = self.row(
            Object::Entry(from.key),
            from.expected,
            &from.leaf,
            Leaf::Entry,
            source.payload,
            Vec::new(),
        );
        self.tables.put(Table::Entries, &entry_key(&from.key), store(&row));
        self.link(to, None)?;
        let mut state = inode_state(self.tables, &inode)?.ok_or(Rejection::NotFound)?;
        state.parent = Some(to.key);
        self.tables.put(Table::Inodes, inode.as_bytes(), store(&state));
        self.count_children(&from.key.directory, -1)?;
        if !replaced_live {
            self.count_children(&to.key.directory, 1)?;
        }
        self.charge(&home, &inode, Usage { bytes: ENTRY_BYTES, inodes: 0, rows: 0 })
    }

    /// Whether a rename may put something in the place of `target`.
    fn check_replaceable(&self, target: &EntryLeaf, by_directory: bool) -> Result<(), Stop> {
        match (target.kind == Kind::Directory, by_directory) {
            (true, false) => Err(Rejection::IsADirectory.into()),
            (false, true) => Err(Rejection::NotADirectory.into()),
            (true, true) if directory(self.tables, &target.inode)?.children > 0 => {
                Err(Rejection::NotEmpty.into())
            }
            _ => Ok(()),
        }
    }

    fn remove(
        &mut self,
        entry: &Change<EntryKey, EntryLeaf>,
        only_empty: bool,
    ) -> Result<(), Stop> {
        self.writable_directory(&entry.key.directory, None)?;
        let row = self.live_row(entry)?;
        if entry.leaf != (EntryLeaf { state: EntryState::Deleted, ..row.leaf.clone() }) {
            return Err(invalid(Rule::Tombstone));
        }
        let inode = row.leaf.inode;
        if only_empty
            && row.leaf.kind == Kind::Directory
            && directory(self.tables, &inode)?.children > 0
        {
            return Err(Rejection::NotEmpty.into());
        }
        self.link(entry, Some(&row.payload))?;
        self.unlink(&inode)?;
        self.count_children(&entry.key.directory, -1)
    }

    fn undelete(&mut self, entry: &Change<EntryKey, EntryLeaf>) -> Result<(), Stop> {
        let (key, leaf) = (&entry.key, &entry.leaf);
        let home = self.writable_directory(&key.directory, None)?;
        check_entry(leaf)?;
        if leaf.state != EntryState::Live {
            return Err(invalid(Rule::RestoredIsLive));
        }
        let mut state = inode_state(self.tables, &leaf.inode)?.ok_or(Rejection::NotFound)?;
        if gone::purge_has_begun(self.tables, &leaf.inode)? {
            return Err(Rejection::NotFound.into());
        }
        if state.home != home {
            return Err(Rejection::CrossHome.into());
        }
        if state.linked || state.kind != leaf.kind || leaf.adopted_at > self.at.sequence {
            return Err(invalid(Rule::RestoredWasDeleted));
        }
        let standing = self.free_name(entry)?;
        let mut payload = None;
        match standing {
            Some(standing) if standing.leaf.inode == leaf.inode => payload = Some(standing.payload),
            Some(standing) => self.keep_in_trash(key, standing)?,
            None => {}
        }
        if payload.is_none() {
            let name = Usage { bytes: ENTRY_BYTES, inodes: 0, rows: 0 };
            self.charge(&home, &leaf.inode, name)?;
        }
        if let Some(parent) = &state.parent {
            self.tables.delete(Table::Trash, &trash_key(&parent.directory, &leaf.inode));
        }
        self.link(entry, payload.as_deref())?;
        state.parent = Some(*key);
        state.linked = true;
        self.tables.put(Table::Inodes, leaf.inode.as_bytes(), store(&state));
        if gone::take(self.tables, &leaf.inode)? {
            gone::count(self.tables, -1)?;
        }
        self.count_children(&key.directory, 1)
    }

    // -- parts ----------------------------------------------------------------------------------

    /// The home of a live inode the author may write to.
    fn writable(&self, inode: &InodeId) -> Result<InodeId, Stop> {
        let place = live_place(self.tables, inode, None)?;
        authorize(&place.vault, self.context.header.principal, Role::Writer)?;
        Ok(place.home)
    }

    /// The home of a live directory the author may write to, with room for one more level.
    fn writable_directory(
        &self,
        inode: &InodeId,
        avoid: Option<&InodeId>,
    ) -> Result<InodeId, Stop> {
        directory(self.tables, inode)?;
        let place = live_place(self.tables, inode, avoid)?;
        authorize(&place.vault, self.context.header.principal, Role::Writer)?;
        if place.depth + 1 >= PATH_DEPTH_MAX {
            return Err(Rejection::TooDeep.into());
        }
        Ok(place.home)
    }

    /// Takes an id for a new inode. Partial versions that were staged for it are its own from now on,
    /// and wait for no purge.
    fn claim_inode(&mut self, inode: &InodeId) -> Result<(), Stop> {
        if inode_state(self.tables, inode)?.is_some() || gone::purge_has_begun(self.tables, inode)?
        {
            return Err(Rejection::InodeExists.into());
        }
        gone::take(self.tables, inode)?;
        Ok(())
    }

    /// The live entry a change starts from.
    fn live_row(&self, change: &Change<EntryKey, EntryLeaf>) -> Result<Row<EntryLeaf>, Stop> {
        let row: Option<Row<EntryLeaf>> =
            load(self.tables, Table::Entries, &entry_key(&change.key))?;
        expect(Object::Entry(change.key), row.as_ref(), change.expected)?;
        row.filter(|row| row.leaf.state == EntryState::Live)
            .ok_or(Stop::Refused(Rejection::NotFound))
    }

    /// What stands under a name that must not be live.
    fn free_name(
        &self,
        change: &Change<EntryKey, EntryLeaf>,
    ) -> Result<Option<Row<EntryLeaf>>, Stop> {
        let row: Option<Row<EntryLeaf>> =
            load(self.tables, Table::Entries, &entry_key(&change.key))?;
        let object = Object::Entry(change.key);
        expect(object.clone(), row.as_ref(), change.expected)?;
        if let Some(row) = row.as_ref().filter(|row| row.leaf.state == EntryState::Live) {
            return Err(Rejection::Conflict { object, current: Some(row.hash) }.into());
        }
        Ok(row)
    }

    fn link(
        &mut self,
        entry: &Change<EntryKey, EntryLeaf>,
        standing: Option<&[u8]>,
    ) -> Result<(), Stop> {
        let name = self.context.payload(&entry.leaf.name, standing)?;
        let object = Object::Entry(entry.key);
        let row = self.row(object, entry.expected, &entry.leaf, Leaf::Entry, name, Vec::new());
        self.tables.put(Table::Entries, &entry_key(&entry.key), store(&row));
        Ok(())
    }

    /// Keeps what a reused name pointed at, if it is gone and this name was its last: what was moved,
    /// or restored under another name, has its story there.
    fn keep_in_trash(&mut self, key: &EntryKey, row: Row<EntryLeaf>) -> Result<(), Stop> {
        let state = inode_state(self.tables, &row.leaf.inode)?;
        if state.is_some_and(|state| !state.linked && state.parent == Some(*key)) {
            let trash = trash_key(&key.directory, &row.leaf.inode);
            self.tables.put(Table::Trash, &trash, store(&row));
        }
        Ok(())
    }

    fn unlink(&mut self, inode: &InodeId) -> Result<(), Stop> {
        let mut state = inode_state(self.tables, inode)?.ok_or(Rejection::NotFound)?;
        state.linked = false;
        self.tables.put(Table::Inodes, inode.as_bytes(), store(&state));
        if self.context.core_version >= CORE_VERSION_CHANGES {
            gone::lost_its_name(self.tables, inode, self.context.time)?;
        }
        Ok(())
    }

    fn count_children(&mut self, inode: &InodeId, by: i64) -> Result<(), Stop> {
        let mut state = directory(self.tables, inode)?;
        state.children = state.children.saturating_add_signed(by);
        self.tables.put(Table::Inodes, inode.as_bytes(), store(&state));
        Ok(())
    }

    fn put_vault(&mut self, vault: &Change<InodeId, VaultLeaf>) -> Result<(), Stop> {
        let row = self.row(
            Object::Vault(vault.key),
            vault.expected,
            &vault.leaf,
            Leaf::Vault,
            Vec::new(),
            Vec::new(),
        );
        self.tables.put(
            Table::VaultHashes,
            row.hash.as_hash().as_bytes(),
            vault.key.as_bytes().to_vec(),
        );
        self.tables.put(Table::Vaults, vault.key.as_bytes(), store(&row));
        Ok(())
    }

    fn replace_attrs(&mut self, attrs: &Change<InodeId, AttrsLeaf>) -> Result<(), Stop> {
        let current: Option<Row<AttrsLeaf>> =
            load(self.tables, Table::Attrs, attrs.key.as_bytes())?;
        expect(Object::Attrs(attrs.key), current.as_ref(), attrs.expected)?;
        self.put_attrs(attrs, current.as_ref().map(|row| row.payload.as_slice()))
    }

    fn put_attrs(
        &mut self,
        attrs: &Change<InodeId, AttrsLeaf>,
        standing: Option<&[u8]>,
    ) -> Result<(), Stop> {
        if standing.is_none() && attrs.expected.is_some() {
            let (object, current) = (Object::Attrs(attrs.key), None);
            return Err(Rejection::Conflict { object, current }.into());
        }
        let payload = self.context.payload(&attrs.leaf.payload, standing)?;
        let row = self.row(
            Object::Attrs(attrs.key),
            attrs.expected,
            &attrs.leaf,
            Leaf::Attrs,
            payload,
            Vec::new(),
        );
        self.tables.put(Table::Attrs, attrs.key.as_bytes(), store(&row));
        Ok(())
    }

    fn put_head(&mut self, head: &HeadChange, home: &InodeId) -> Result<(), Stop> {
        let (inode, leaf) = (&head.change.key, &head.change.leaf);
        let current: Option<Row<HeadLeaf>> = load(self.tables, Table::Heads, inode.as_bytes())?;
        let object = Object::Head(*inode);
        expect(object.clone(), current.as_ref(), head.change.expected)?;
        if leaf.version != current.as_ref().map_or(0, |row| row.leaf.version) + 1 {
            return Err(invalid(Rule::NextVersion));
        }
        let from = match head.base {
            Base::Empty => From { root: None, slots: 0 },
            Base::Version(version) => self.version(inode, version, leaf.class)?,
            Base::Staged => {
                let key = coffer_model::object::StagedKey { inode: *inode, write: leaf.write };
                let row: Row<StagedLeaf> = load(self.tables, Table::Staged, &staged_key(&key))?
                    .ok_or(Rejection::Manifest)?;
                if row.leaf.class != leaf.class {
                    return Err(Rejection::Manifest.into());
                }
                From { root: row.leaf.root, slots: row.leaf.slots }
            }
        };
        let restored = leaf.restored != 0;
        let same = (from.root, from.slots) == (leaf.root, leaf.slots);
        if restored && head.base != Base::Version(leaf.restored) {
            return Err(invalid(Rule::RestoredVersion));
        }
        self.put_slots(inode, home, from, leaf.slots, leaf.root, head.receipts_until)?;
        if restored && !(same && self.changed_slots().is_empty()) {
            return Err(invalid(Rule::RestoredVersion));
        }
        let payload = self.context.payload(&leaf.payload, None)?;
        self.charge(home, inode, Usage { bytes: length(&payload), inodes: 0, rows: 0 })?;
        if head.base == Base::Staged {
            let key = coffer_model::object::StagedKey { inode: *inode, write: leaf.write };
            self.tables.delete(Table::Staged, &staged_key(&key));
        }
        if let Some(former) = current {
            let key = version_key(inode, former.leaf.version);
            self.tables.put(Table::Versions, &key, store(&former));
        }
        let row = self.row(object, head.change.expected, leaf, Leaf::Head, payload, Vec::new());
        self.tables.put(Table::Heads, inode.as_bytes(), store(&row));
        Ok(())
    }

    /// The manifest of a version of the same file and class.
    fn version(
        &self,
        inode: &InodeId,
        version: u64,
        class: coffer_model::chunk::ChunkClass,
    ) -> Result<From, Stop> {
        let head: Option<Row<HeadLeaf>> = load(self.tables, Table::Heads, inode.as_bytes())?;
        let row = match head.filter(|row| row.leaf.version == version) {
            Some(row) => Some(row),
            None => load(self.tables, Table::Versions, &version_key(inode, version))?,
        };
        let leaf = row.ok_or(Rejection::Manifest)?.leaf;
        if leaf.class != class {
            return Err(Rejection::Manifest.into());
        }
        Ok(From { root: leaf.root, slots: leaf.slots })
    }

    /// Puts the op's changed slots into a manifest, checks the signed root, and makes the rows that
    /// storage nodes follow. The chunks are named from here on.
    fn put_slots(
        &mut self,
        inode: &InodeId,
        home: &InodeId,
        from: From,
        slots: u64,
        root: Root,
        receipts_until: Option<LogTime>,
    ) -> Result<(), Stop> {
        if slots > SLOTS_MAX {
            return Err(Rejection::Manifest.into());
        }
        let changes = self.changed_slots();
        let pages = StoredPages::new(&*self.tables, *inode);
        let changed =
            pages.checked(manifest::change(&pages, from.root, from.slots, slots, changes))?;
        if changed.root != root {
            return Err(Rejection::Manifest.into());
        }
        let fresh = pages.checked(fresh_chunks(&pages, &from, changes))?;
        let mut bytes = 0;
        for (hash, page) in changed.pages {
            let key = page_key(inode, &hash);
            if self.tables.get(Table::Pages, &key)?.is_none() {
                bytes += length(&page);
                self.tables.put(Table::Pages, &key, page);
            }
        }
        let mut position: u64 = load(self.tables, Table::Meta, meta::FEED)?.unwrap_or(0);
        let first = position;
        for chunk in fresh {
            position += 1;
            bytes += u64::from(chunk.length);
            let row = ChunkRow {
                chunk: chunk.chunk,
                length: chunk.length,
                inode: *inode,
                scheme: chunk.scheme,
            };
            let stored = store(&row);
            self.tables.put(Table::Rows, &row_key(&row.chunk, position), stored.clone());
            self.tables.put(Table::Feed, &position.to_be_bytes(), stored);
        }
        if position > first {
            // Nodes may have forgotten what no commit named in time.
            match receipts_until {
                Some(until) if until >= self.context.time => {}
                _ => return Err(Rejection::ReceiptsExpired.into()),
            }
            self.tables.put(Table::Meta, meta::FEED, store(&position));
        }
        self.charge(home, inode, Usage { bytes, inodes: 0, rows: position - first })
    }

    /// The changed slots that came with this op.
    fn changed_slots(&self) -> &'c [(u64, Slot)] {
        self.context.slots.get(&self.at.index).copied().unwrap_or_default()
    }

    /// Charges a home for an inode. Nothing is refused for its quota that costs nothing.
    fn charge(&mut self, home: &InodeId, inode: &InodeId, more: Usage) -> Result<(), Stop> {
        self.charged = self.charged.saturating_add(more.bytes);
        charge(self.tables, home, more)?;
        if self.context.core_version < CORE_VERSION_CHANGES {
            return Ok(());
        }
        add_usage(self.tables, Table::InodeUsage, &inode_usage_key(inode, home), more)?;
        if more.bytes > 0 {
            let used = query::usage(self.tables, home)?.bytes;
            if query::quota(self.tables, home)?.is_some_and(|quota| used > quota) {
                return Err(Rejection::QuotaExceeded.into());
            }
        }
        Ok(())
    }

    fn row<L: Clone>(
        &self,
        object: Object,
        expected: Option<LeafHash>,
        leaf: &L,
        wrap: impl Fn(L) -> Leaf,
        payload: Vec<u8>,
        second: Vec<u8>,
    ) -> Row<L> {
        let hash = LeafHash::of(&self.context.cluster, &object, expected, &wrap(leaf.clone()));
        Row { at: self.at, hash, leaf: leaf.clone(), payload, second, time: self.context.time }
    }
}

/// The chunks that were not in their slots before. A change to what is there already does not show in
/// the signed root, so whoever carries the bundle could have put it in: it makes no row and costs
/// nothing.
fn fresh_chunks(
    pages: &impl Pages,
    from: &From,
    changes: &[(u64, Slot)],
) -> Result<Vec<SlotChunk>, ManifestError> {
    let mut fresh = Vec::new();
    for page in changes.chunk_by(|left, right| left.0 / FANOUT == right.0 / FANOUT) {
        let start = page[0].0 / FANOUT * FANOUT;
        let former = manifest::read(pages, from.root, from.slots, start, start + FANOUT)?;
        for (slot, content) in page {
            match content {
                Slot::Chunk(chunk) if !former.contains(&(*slot, *chunk)) => fresh.push(*chunk),
                _ => {}
            }
        }
    }
    Ok(fresh)
}

fn length(bytes: &[u8]) -> u64 {
    bytes.len() as u64
}

fn check_entry(leaf: &EntryLeaf) -> Result<(), Stop> {
    if leaf.wrap.is_empty() || leaf.wrap.len() > WRAP_BYTES_MAX {
        return Err(invalid(Rule::WrapLength));
    }
    if !matches!(leaf.kind, Kind::Directory | Kind::File | Kind::Symlink) {
        return Err(invalid(Rule::KindKnown));
    }
    Ok(())
}

fn check_vault(leaf: &VaultLeaf) -> Result<(), Stop> {
    let ascending = leaf.members.windows(2).all(|pair| pair[0].principal < pair[1].principal);
    if !ascending || leaf.members.is_empty() || leaf.members.len() > VAULT_MEMBERS_MAX {
        return Err(invalid(Rule::VaultMembers));
    }
    let sealed_keys = leaf.members.iter().map(|member| &member.sealed_key);
    if sealed_keys.chain(&leaf.former_key).any(|key| key.len() > WRAP_BYTES_MAX) {
        return Err(invalid(Rule::SealedKeyLength));
    }
    Ok(())
}
