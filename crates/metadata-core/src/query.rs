//! Reading the state: what each question of the API comes down to. Nothing here changes anything,
//! and who may not see gets [`QueryError::Denied`].

use std::cell::RefCell;

use coffer_model::authorize::authorize;
use coffer_model::bundle::OpProof;
use coffer_model::hash::Hash;
use coffer_model::id::{ChunkId, InodeId, NameTag, PrincipalId};
use coffer_model::log::{LogBody, LogEntry, NodeReport};
use coffer_model::manifest::{self, ManifestError, Page, Pages};
use coffer_model::merkle::Frontier;
use coffer_model::name::UserName;
use coffer_model::object::{
    AttrsLeaf, EntryKey, EntryLeaf, EntryState, HeadLeaf, Object, Role, SealedSessionLeaf,
    SessionLeaf, StagedLeaf, UserLeaf, VaultLeaf,
};
use coffer_model::op::Rejection;
use coffer_model::session::CertificateHash;
use coffer_model::signing::PublicKey;
use coffer_model::time::LogTime;

use crate::apply::tree::{any_place, live_place};
use crate::apply::{Stop, open_session};
use crate::state::{
    LoggedOp, OpRef, Row, Usage, after_prefix, entry_key, load, meta, op_key, page_key, parse,
    staged_key, version_key,
};
use crate::tables::{Table, TableError, Tables};

mod placement;
mod policy;

pub use placement::{feed, feed_position, layouts, proofs, releasable, rows_of};
pub use policy::{Policy, deleted_inodes, next_purge, policy, purgeable, quota};

/// The most successors of a descriptor in one answer.
pub const SUCCESSORS_MAX: usize = 64;

/// Why a question was not answered.
#[derive(Debug, thiserror::Error)]
pub enum QueryError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] TableError),
    /// The principal may not see it.
    #[error("not allowed")]
    Denied,
    /// It does not exist.
    #[error("not found")]
    NotFound,
    /// It is not a directory.
    #[error("not a directory")]
    NotADirectory,
    /// The question makes no sense.
    #[error("{0}")]
    Invalid(&'static str),
}

impl From<Stop> for QueryError {
    fn from(stop: Stop) -> Self {
        match stop {
            Stop::Store(error) => Self::Store(error),
            Stop::Refused(Rejection::NotADirectory) => Self::NotADirectory,
            Stop::Refused(Rejection::Denied) => Self::Denied,
            Stop::Refused(_) => Self::NotFound,
        }
    }
}

impl From<Rejection> for QueryError {
    fn from(rejection: Rejection) -> Self {
        Stop::Refused(rejection).into()
    }
}

/// A leaf: which op set it, and the payload it names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundLeaf {
    /// The op.
    pub at: OpRef,
    /// The detached payload.
    pub payload: Vec<u8>,
    /// Log time when it was set.
    pub time: LogTime,
}

/// What is wanted of an inode beyond its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Want {
    /// Mode, times and attributes.
    pub attrs: bool,
    /// The current version.
    pub head: bool,
    /// Manifest pages from this slot.
    pub from_slot: u64,
    /// To this one, exclusive.
    pub to_slot: u64,
}

/// A name with what was wanted of its inode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundEntry {
    /// The name's key.
    pub key: EntryKey,
    /// The name.
    pub entry: FoundLeaf,
    /// Attributes.
    pub attrs: Option<FoundLeaf>,
    /// The current version.
    pub head: Option<FoundLeaf>,
    /// Manifest pages, parents first.
    pub pages: Vec<Vec<u8>>,
    /// The chunks they name in the wanted range.
    pub chunks: Vec<ChunkId>,
}

/// A version with manifest pages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundContent {
    /// The version.
    pub head: FoundLeaf,
    /// Manifest pages, parents first.
    pub pages: Vec<Vec<u8>>,
    /// The chunks they name in the wanted range.
    pub chunks: Vec<ChunkId>,
}

/// What a login needs of a user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoginUser {
    /// The op that set the record.
    pub at: OpRef,
    /// The user's id.
    pub principal: PrincipalId,
    /// The sealed keyring.
    pub keyring: Vec<u8>,
    /// The OPAQUE login record.
    pub login_record: Vec<u8>,
}

/// Totals over all homes.
pub type Totals = Usage;

fn found<L>(row: Row<L>) -> FoundLeaf {
    FoundLeaf { at: row.at, payload: row.payload, time: row.time }
}

/// Whose session this is, if it is open and has this key.
pub fn session(
    tables: &impl Tables,
    certificate: &CertificateHash,
    key: &PublicKey,
) -> Result<Option<PrincipalId>, TableError> {
    let session = open_session(tables, certificate, log_time(tables)?)?;
    Ok(session
        .map(|session| session.certificate.certificate)
        .filter(|certificate| certificate.key == *key)
        .map(|certificate| certificate.principal))
}

fn readable(
    tables: &impl Tables,
    principal: PrincipalId,
    inode: &InodeId,
) -> Result<(), QueryError> {
    let place = any_place(tables, inode)?;
    Ok(authorize(&place.vault, principal, Role::Reader)?)
}

/// Follows names downwards as far as they exist; the last step may be a tombstone.
pub fn walk(
    tables: &impl Tables,
    principal: PrincipalId,
    directory: &InodeId,
    tags: &[NameTag],
    want: &Want,
) -> Result<Vec<FoundEntry>, QueryError> {
    readable(tables, principal, directory)?;
    let mut steps = Vec::with_capacity(tags.len());
    let mut at = *directory;
    for (number, tag) in tags.iter().enumerate() {
        let key = EntryKey { directory: at, tag: *tag };
        let Some(row) = load::<Row<EntryLeaf>>(tables, Table::Entries, &entry_key(&key))? else {
            break;
        };
        let live = row.leaf.state == EntryState::Live;
        let last = number + 1 == tags.len();
        at = row.leaf.inode;
        let want = if last { *want } else { Want::default() };
        steps.push(entry(tables, key, row, &want)?);
        if !live {
            break;
        }
    }
    Ok(steps)
}

fn entry(
    tables: &impl Tables,
    key: EntryKey,
    row: Row<EntryLeaf>,
    want: &Want,
) -> Result<FoundEntry, QueryError> {
    let inode = row.leaf.inode;
    // A moved inode is somebody else's story: only where it went may tell it.
    let gone = matches!(row.leaf.state, EntryState::Moved { .. });
    let mut found_entry = FoundEntry {
        key,
        entry: found(row),
        attrs: None,
        head: None,
        pages: Vec::new(),
        chunks: Vec::new(),
    };
    if gone {
        return Ok(found_entry);
    }
    if want.attrs {
        let row: Option<Row<AttrsLeaf>> = load(tables, Table::Attrs, inode.as_bytes())?;
        found_entry.attrs = row.map(found);
    }
    if want.head || want.to_slot > want.from_slot {
        let row: Option<Row<HeadLeaf>> = load(tables, Table::Heads, inode.as_bytes())?;
        if let Some(row) = row {
            (found_entry.pages, found_entry.chunks) =
                pages(tables, &inode, &row.leaf, want.from_slot, want.to_slot)?;
            found_entry.head = Some(found(row));
        }
    }
    Ok(found_entry)
}

/// Gives stored pages, and keeps what it gave.
struct GivenPages<'a, T> {
    tables: &'a T,
    inode: &'a InodeId,
    given: RefCell<Vec<Vec<u8>>>,
    failure: RefCell<Option<TableError>>,
}

impl<T: Tables> Pages for GivenPages<'_, T> {
    fn page(&self, hash: &Hash) -> Result<Option<Page>, ManifestError> {
        match self.tables.get(Table::Pages, &page_key(self.inode, hash)) {
            Ok(Some(bytes)) => {
                let page = Page::parse(&bytes)?;
                self.given.borrow_mut().push(bytes);
                Ok(Some(page))
            }
            Ok(None) => Ok(None),
            Err(error) => {
                self.failure.replace(Some(error));
                Ok(None)
            }
        }
    }
}

/// The pages that cover slots from..to, parents first, and the chunks in those slots.
fn pages(
    tables: &impl Tables,
    inode: &InodeId,
    head: &HeadLeaf,
    from: u64,
    to: u64,
) -> Result<(Vec<Vec<u8>>, Vec<ChunkId>), QueryError> {
    let (given, failure) = (RefCell::default(), RefCell::default());
    let pages = GivenPages { tables, inode, given, failure };
    let read = manifest::read(&pages, head.root, head.slots, from, to);
    if let Some(failure) = pages.failure.into_inner() {
        return Err(failure.into());
    }
    let slots = read.map_err(|error| TableError(error.to_string()))?;
    let chunks = slots.into_iter().map(|(_, chunk)| chunk.chunk).collect();
    Ok((pages.given.into_inner(), chunks))
}

/// One object by its key. Users and sessions are there for everybody who is logged in: whoever
/// checks a signature needs them.
pub fn object(
    tables: &impl Tables,
    principal: PrincipalId,
    object: &Object,
) -> Result<Option<FoundLeaf>, QueryError> {
    match object {
        Object::User(name) => {
            let row: Option<Row<UserLeaf>> = load(tables, Table::Users, name.as_str().as_bytes())?;
            // The keyring is for whoever proves the password, not for whoever asks.
            Ok(row.map(|row| FoundLeaf { payload: Vec::new(), ..found(row) }))
        }
        Object::Session(hash) => {
            let key = hash.as_hash().as_bytes();
            let row: Option<Row<SessionLeaf>> = load(tables, Table::Sessions, key)?;
            Ok(row.map(found))
        }
        // Sealed keys are asked for by whoever holds the token, without a session.
        Object::Group(_) | Object::SealedSession(_) => Ok(None),
        Object::Entry(key) => {
            readable(tables, principal, &key.directory)?;
            let row: Option<Row<EntryLeaf>> = load(tables, Table::Entries, &entry_key(key))?;
            Ok(row.map(found))
        }
        Object::Head(inode) => {
            readable(tables, principal, inode)?;
            let row: Option<Row<HeadLeaf>> = load(tables, Table::Heads, inode.as_bytes())?;
            Ok(row.map(found))
        }
        Object::Attrs(inode) => {
            readable(tables, principal, inode)?;
            let row: Option<Row<AttrsLeaf>> = load(tables, Table::Attrs, inode.as_bytes())?;
            Ok(row.map(found))
        }
        Object::Vault(inode) => {
            readable(tables, principal, inode)?;
            let row: Option<Row<VaultLeaf>> = load(tables, Table::Vaults, inode.as_bytes())?;
            Ok(row.map(found))
        }
        Object::Staged(key) => {
            let row: Option<Row<StagedLeaf>> = load(tables, Table::Staged, &staged_key(key))?;
            if let Some(row) = &row {
                readable(tables, principal, &row.leaf.directory)?;
            }
            Ok(row.map(found))
        }
    }
}

/// A session's keys as a gateway sealed them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SealedSession {
    /// The user's name.
    pub name: String,
    /// The sealed keys.
    pub sealed: Vec<u8>,
    /// Whether the session was closed or has run out.
    pub ended: bool,
}

/// The sealed keys of a session. They are for whoever holds the key they are sealed under.
pub fn sealed_session(
    tables: &impl Tables,
    session: &CertificateHash,
) -> Result<Option<SealedSession>, TableError> {
    let key = session.as_hash().as_bytes();
    let sealed: Option<Row<SealedSessionLeaf>> = load(tables, Table::SealedSessions, key)?;
    let row: Option<Row<SessionLeaf>> = load(tables, Table::Sessions, key)?;
    let (Some(sealed), Some(row)) = (sealed, row) else { return Ok(None) };
    let certificate = &row.leaf.certificate.certificate;
    let name = tables.get(Table::Principals, certificate.principal.as_bytes())?.unwrap_or_default();
    let ended = row.leaf.closed || certificate.expires <= log_time(tables)?;
    let name = String::from_utf8_lossy(&name).into_owned();
    Ok(Some(SealedSession { name, sealed: sealed.payload, ended }))
}

/// A version of a file (0: the current one) with the pages of a range of slots.
pub fn content(
    tables: &impl Tables,
    principal: PrincipalId,
    inode: &InodeId,
    version: u64,
    from: u64,
    to: u64,
) -> Result<Option<FoundContent>, QueryError> {
    readable(tables, principal, inode)?;
    let head: Option<Row<HeadLeaf>> = load(tables, Table::Heads, inode.as_bytes())?;
    let row = match head.filter(|row| version == 0 || row.leaf.version == version) {
        Some(row) => Some(row),
        None => load(tables, Table::Versions, &version_key(inode, version))?,
    };
    let Some(row) = row else { return Ok(None) };
    let (pages, chunks) = pages(tables, inode, &row.leaf, from, to)?;
    Ok(Some(FoundContent { head: found(row), pages, chunks }))
}

/// Names of a directory in the order of their tags, after `after`; with the tag to go on after, if
/// there are more.
pub fn list(
    tables: &impl Tables,
    principal: PrincipalId,
    directory: &InodeId,
    after: Option<&NameTag>,
    limit: usize,
    want: &Want,
    deleted: bool,
) -> Result<(Vec<FoundEntry>, Option<NameTag>), QueryError> {
    readable(tables, principal, directory)?;
    crate::apply::tree::directory(tables, directory)?;
    let end = after_prefix(directory.as_bytes());
    let mut from = directory.as_bytes().to_vec();
    if let Some(after) = after {
        from = after_prefix(&entry_key(&EntryKey { directory: *directory, tag: *after }));
    }
    let mut entries = Vec::new();
    loop {
        let rows = tables.scan(Table::Entries, &from, &end, limit.max(1))?;
        let full = rows.len() == limit.max(1);
        for (key, value) in rows {
            let tag = NameTag::try_from(&key[16..])
                .map_err(|error| TableError(format!("entry key: {error}")))?;
            from = after_prefix(&key);
            let row: Row<EntryLeaf> = parse(Table::Entries, &value)?;
            let shown = match row.leaf.state {
                EntryState::Live => true,
                // What was purged under another name is gone under this one too.
                EntryState::Deleted => {
                    deleted && tables.get(Table::Inodes, row.leaf.inode.as_bytes())?.is_some()
                }
                EntryState::Moved { .. } => false,
            };
            if shown {
                let key = EntryKey { directory: *directory, tag };
                entries.push(entry(tables, key, row, want)?);
                if entries.len() == limit.max(1) {
                    let more = !tables.scan(Table::Entries, &from, &end, 1)?.is_empty();
                    return Ok((entries, more.then_some(tag)));
                }
            }
        }
        if !full {
            return Ok((entries, None));
        }
    }
}

/// Versions of a file, newest first, below `before`; with the version to go on below, if there are
/// more.
pub fn versions(
    tables: &impl Tables,
    principal: PrincipalId,
    inode: &InodeId,
    before: Option<u64>,
    limit: usize,
) -> Result<(Vec<FoundLeaf>, Option<u64>), QueryError> {
    readable(tables, principal, inode)?;
    let head: Option<Row<HeadLeaf>> = load(tables, Table::Heads, inode.as_bytes())?;
    let Some(head) = head else { return Ok((Vec::new(), None)) };
    let mut next =
        before.map_or(head.leaf.version, |before| before.saturating_sub(1).min(head.leaf.version));
    let current = head.leaf.version;
    let mut head = Some(head);
    let mut versions = Vec::new();
    while next > 0 && versions.len() < limit {
        let row = match head.take().filter(|_| next == current) {
            Some(row) => Some(row),
            None => load(tables, Table::Versions, &version_key(inode, next))?,
        };
        versions.extend(row.map(found));
        next -= 1;
    }
    Ok((versions, (next > 0).then_some(next + 1)))
}

/// An op with everything that proves who signed it.
pub fn op_proof(tables: &impl Tables, at: OpRef) -> Result<OpProof, TableError> {
    let missing = || TableError(format!("op {}/{} is not in the log", at.sequence, at.index));
    let entry: LogEntry =
        load(tables, Table::Log, &at.sequence.to_be_bytes())?.ok_or_else(missing)?;
    let logged: LoggedOp = load(tables, Table::LogOps, &op_key(at))?.ok_or_else(missing)?;
    let LogBody::Bundle { header, signature, .. } = entry.body else { return Err(missing()) };
    Ok(OpProof { header, signature, index: at.index, op: logged.op, path: logged.path })
}

/// The home that pays for what the principal writes at or below `inode`. What does not exist yet
/// cannot be asked for; ask for the directory it will be in.
pub fn write_home(
    tables: &impl Tables,
    principal: PrincipalId,
    inode: &InodeId,
) -> Result<InodeId, QueryError> {
    let place = live_place(tables, inode, None)?;
    authorize(&place.vault, principal, Role::Writer)?;
    Ok(place.home)
}

/// What a login needs of the user with this name.
pub fn login_user(tables: &impl Tables, name: &UserName) -> Result<Option<LoginUser>, TableError> {
    let row: Option<Row<UserLeaf>> = load(tables, Table::Users, name.as_str().as_bytes())?;
    Ok(row.map(|row| LoginUser {
        at: row.at,
        principal: row.leaf.principal,
        keyring: row.payload,
        login_record: row.second,
    }))
}

/// The version of the state machine in force; 0 before there is a cluster.
pub fn core_version(tables: &impl Tables) -> Result<u32, TableError> {
    crate::apply::core_version(tables)
}

/// How many log entries there are.
pub fn revision(tables: &impl Tables) -> Result<u64, TableError> {
    Ok(frontier(tables)?.size())
}

/// The root of the log.
pub fn log_root(tables: &impl Tables) -> Result<[u8; 32], TableError> {
    Ok(frontier(tables)?.root())
}

fn frontier(tables: &impl Tables) -> Result<Frontier, TableError> {
    Ok(load(tables, Table::Meta, meta::FRONTIER)?.unwrap_or_default())
}

/// Log time.
pub fn log_time(tables: &impl Tables) -> Result<LogTime, TableError> {
    Ok(load(tables, Table::Meta, meta::TIME)?.unwrap_or(LogTime::ZERO))
}

/// A signed descriptor and a signed layout.
pub type Genesis = (Vec<u8>, Vec<u8>);

/// The first signed descriptor and the layout in force, once there is a cluster.
pub fn genesis(tables: &impl Tables) -> Result<Option<Genesis>, TableError> {
    let descriptor = tables.get(Table::Meta, meta::DESCRIPTOR)?;
    Ok(descriptor.zip(layout(tables)?))
}

/// The signed descriptor in force.
pub fn descriptor(tables: &impl Tables) -> Result<Option<Vec<u8>>, TableError> {
    crate::apply::descriptor(tables)
}

/// The signed descriptors after the one with this number, in order, at most [`SUCCESSORS_MAX`]; more
/// come after as many.
pub fn successors(tables: &impl Tables, after: u64) -> Result<Vec<Vec<u8>>, TableError> {
    let from = after.saturating_add(1).to_be_bytes();
    let rows = tables.scan(Table::Descriptors, &from, &[u8::MAX; 9], SUCCESSORS_MAX)?;
    Ok(rows.into_iter().map(|(_, signed)| signed).collect())
}

/// The signed layout in force.
pub fn layout(tables: &impl Tables) -> Result<Option<Vec<u8>>, TableError> {
    tables.get(Table::Meta, meta::LAYOUT)
}

/// The last logged report of every storage node.
pub fn nodes(tables: &impl Tables) -> Result<Vec<NodeReport>, TableError> {
    let end = [u8::MAX; 17];
    let rows = tables.scan(Table::Nodes, &[], &end, usize::from(u16::MAX))?;
    rows.iter().map(|(_, value)| parse(Table::Nodes, value)).collect()
}

/// What all homes together have used.
pub fn totals(tables: &impl Tables) -> Result<Totals, TableError> {
    Ok(load(tables, Table::Meta, meta::TOTAL)?.unwrap_or_default())
}

/// What a home has used.
pub fn usage(tables: &impl Tables, home: &InodeId) -> Result<Usage, TableError> {
    Ok(load(tables, Table::Usage, home.as_bytes())?.unwrap_or_default())
}

/// The root of a user's home, if there is that user.
pub fn home_of(tables: &impl Tables, name: &UserName) -> Result<Option<InodeId>, TableError> {
    let row: Option<Row<UserLeaf>> = load(tables, Table::Users, name.as_str().as_bytes())?;
    Ok(row.map(|row| row.leaf.home))
}
