//! What holds of the tables after every command, whatever the commands were.

use std::collections::{BTreeMap, BTreeSet};

use borsh::BorshDeserialize;
use coffer_metadata_core::query::{self, op_proof};
use coffer_metadata_core::state::{Gone, InodeState, LoggedOp, OpRef, Repeat, Row, Usage, meta};
use coffer_metadata_core::{MemoryTables, Table};
use coffer_model::encoding::decode;
use coffer_model::hash::{Hash, payload_hash};
use coffer_model::id::{ClusterId, InodeId, NameTag, WriteId};
use coffer_model::log::{ChunkRow, LogBody, LogEntry, NodeReport};
use coffer_model::manifest::{self, Page};
use coffer_model::merkle::{Frontier, Tree, TreeHash, leaf_hash, root};
use coffer_model::name::{PATH_DEPTH_MAX, UserName};
use coffer_model::object::{
    AttrsLeaf, EntryKey, EntryLeaf, EntryState, HeadLeaf, Kind, Leaf, Object, SealedSessionLeaf,
    SessionLeaf, StagedKey, StagedLeaf, UserLeaf, VaultLeaf,
};
use coffer_model::session::CertificateHash;

/// Checks tables again and again; remembers which bundle signatures it has seen to be good.
pub(crate) struct Checker {
    cluster: ClusterId,
    known: BTreeSet<Vec<u8>>,
}

/// The tables, decoded.
struct State {
    inodes: BTreeMap<InodeId, InodeState>,
    entries: BTreeMap<EntryKey, Row<EntryLeaf>>,
    trash: BTreeMap<(InodeId, InodeId), Row<EntryLeaf>>,
    heads: BTreeMap<InodeId, Row<HeadLeaf>>,
    versions: BTreeMap<(InodeId, u64), Row<HeadLeaf>>,
    attrs: BTreeMap<InodeId, Row<AttrsLeaf>>,
    vaults: BTreeMap<InodeId, Row<VaultLeaf>>,
    users: BTreeMap<UserName, Row<UserLeaf>>,
    sessions: BTreeMap<CertificateHash, Row<SessionLeaf>>,
    sealed: BTreeMap<CertificateHash, Row<SealedSessionLeaf>>,
    staged: BTreeMap<StagedKey, Row<StagedLeaf>>,
    pages: BTreeMap<(InodeId, Hash), Vec<u8>>,
    rows: BTreeMap<u64, ChunkRow>,
    feed: BTreeMap<u64, ChunkRow>,
    usage: BTreeMap<InodeId, Usage>,
    inode_usage: BTreeMap<(InodeId, InodeId), Usage>,
    gone: BTreeMap<InodeId, Gone>,
    log: Vec<LogEntry>,
}

fn value<V: BorshDeserialize>(table: Table, bytes: &[u8]) -> V {
    decode(table.name(), bytes).unwrap()
}

fn table<K: Ord, V: BorshDeserialize>(
    tables: &MemoryTables,
    wanted: Table,
    key: impl Fn(&[u8]) -> K,
) -> BTreeMap<K, V> {
    let rows = tables.rows().filter(|(table, ..)| *table == wanted);
    rows.map(|(table, bytes, row)| (key(bytes), value(table, row))).collect()
}

fn inode(bytes: &[u8]) -> InodeId {
    bytes.try_into().unwrap()
}

fn number(bytes: &[u8]) -> u64 {
    u64::from_be_bytes(bytes.try_into().unwrap())
}

fn hash(bytes: &[u8]) -> Hash {
    Hash::from_bytes(bytes.try_into().unwrap())
}

impl State {
    fn read(tables: &MemoryTables) -> Self {
        let log: BTreeMap<u64, LogEntry> = table(tables, Table::Log, number);
        let numbers: Vec<u64> = log.keys().copied().collect();
        assert_eq!(numbers, (0..log.len() as u64).collect::<Vec<_>>(), "the log is dense");
        let pages = tables.rows().filter(|(table, ..)| *table == Table::Pages);
        let by_chunk: BTreeMap<([u8; 32], u64), ChunkRow> =
            table(tables, Table::Rows, |key| (*key.first_chunk().unwrap(), number(&key[32..])));
        let rows: BTreeMap<u64, ChunkRow> = by_chunk
            .iter()
            .map(|((chunk, position), row)| {
                assert_eq!(row.chunk.as_bytes(), chunk, "a row stands under its chunk");
                (*position, *row)
            })
            .collect();
        assert_eq!(rows.len(), by_chunk.len(), "a position is used once");
        Self {
            inodes: table(tables, Table::Inodes, inode),
            entries: table(tables, Table::Entries, |key| EntryKey {
                directory: inode(&key[..16]),
                tag: NameTag::try_from(&key[16..]).unwrap(),
            }),
            trash: table(tables, Table::Trash, |key| (inode(&key[..16]), inode(&key[16..]))),
            heads: table(tables, Table::Heads, inode),
            versions: table(tables, Table::Versions, |key| (inode(&key[..16]), number(&key[16..]))),
            attrs: table(tables, Table::Attrs, inode),
            vaults: table(tables, Table::Vaults, inode),
            users: table(tables, Table::Users, |key| {
                std::str::from_utf8(key).unwrap().parse().unwrap()
            }),
            sessions: table(tables, Table::Sessions, |key| CertificateHash::from_hash(hash(key))),
            sealed: table(tables, Table::SealedSessions, |key| {
                CertificateHash::from_hash(hash(key))
            }),
            staged: table(tables, Table::Staged, |key| StagedKey {
                inode: inode(&key[..16]),
                write: WriteId::try_from(&key[16..]).unwrap(),
            }),
            pages: pages
                .map(|(_, key, page)| ((inode(&key[..16]), hash(&key[16..])), page.to_vec()))
                .collect(),
            rows,
            feed: table(tables, Table::Feed, number),
            usage: table(tables, Table::Usage, inode),
            inode_usage: table(tables, Table::InodeUsage, |key| {
                (inode(&key[..16]), inode(&key[16..]))
            }),
            gone: table(tables, Table::Gone, inode),
            log: log.into_values().collect(),
        }
    }

    /// Whether the purge of an inode has begun.
    fn purging(&self, inode: &InodeId) -> bool {
        self.gone.get(inode).is_some_and(|gone| gone.purge.is_some())
    }

    /// The way from an inode up to its home's root.
    fn above(&self, start: InodeId) -> Vec<InodeId> {
        let (mut at, mut above) = (start, Vec::new());
        while let Some(parent) = &self.inodes[&at].parent {
            at = parent.directory;
            above.push(at);
            assert!(above.len() <= 4 * PATH_DEPTH_MAX, "{start} lies below itself");
        }
        above
    }
}

impl Checker {
    pub(crate) fn new(cluster: ClusterId) -> Self {
        Self { cluster, known: BTreeSet::new() }
    }

    /// Checks everything.
    pub(crate) fn check(&mut self, tables: &MemoryTables) {
        let state = State::read(tables);
        check_tree(&state);
        check_content(&state);
        check_usage(tables, &state);
        check_gone(tables, &state);
        check_log(tables, &state);
        check_indices(tables, &state);
        self.check_proofs(tables, &state);
    }

    /// Every row was set by an op that is in the log, was applied there, is signed, and gave the
    /// object this very leaf and hash; and the payloads are the ones the leaf names.
    fn check_proofs(&mut self, tables: &MemoryTables, state: &State) {
        for (key, row) in &state.entries {
            self.proven(tables, state, &Object::Entry(*key), row, Leaf::Entry);
            assert_eq!(payload_hash(&row.payload), row.leaf.name);
        }
        for row in state.trash.values() {
            let key = state.inodes[&row.leaf.inode].parent.unwrap();
            self.proven(tables, state, &Object::Entry(key), row, Leaf::Entry);
            assert_eq!(payload_hash(&row.payload), row.leaf.name);
        }
        let versions = state.versions.iter().map(|((inode, _), row)| (inode, row));
        for (inode, row) in state.heads.iter().chain(versions) {
            self.proven(tables, state, &Object::Head(*inode), row, Leaf::Head);
            assert_eq!(payload_hash(&row.payload), row.leaf.payload);
        }
        for (inode, row) in &state.attrs {
            self.proven(tables, state, &Object::Attrs(*inode), row, Leaf::Attrs);
            assert_eq!(payload_hash(&row.payload), row.leaf.payload);
        }
        for (inode, row) in &state.vaults {
            self.proven(tables, state, &Object::Vault(*inode), row, Leaf::Vault);
        }
        for (name, row) in &state.users {
            self.proven(tables, state, &Object::User(name.clone()), row, Leaf::User);
            assert_eq!(payload_hash(&row.payload), row.leaf.keyring);
            assert_eq!(payload_hash(&row.second), row.leaf.login_record);
        }
        for (certificate, row) in &state.sessions {
            self.proven(tables, state, &Object::Session(*certificate), row, Leaf::Session);
            assert_eq!(row.leaf.certificate.certificate.hash(), *certificate);
        }
        for (certificate, row) in &state.sealed {
            let object = Object::SealedSession(*certificate);
            self.proven(tables, state, &object, row, Leaf::SealedSession);
            assert_eq!(payload_hash(&row.payload), row.leaf.payload);
            assert!(!state.sessions[certificate].leaf.closed, "sealed keys of a closed session");
        }
        for (key, row) in &state.staged {
            self.proven(tables, state, &Object::Staged(*key), row, Leaf::Staged);
        }
    }

    fn proven<L: Clone>(
        &mut self,
        tables: &MemoryTables,
        state: &State,
        object: &Object,
        row: &Row<L>,
        wrap: impl Fn(L) -> Leaf,
    ) {
        let OpRef { sequence, index } = row.at;
        let entry = &state.log[sequence as usize];
        let LogBody::Bundle { outcomes, .. } = &entry.body else { panic!("{object:?}: no bundle") };
        assert!(outcomes[usize::from(index)].is_ok(), "{object:?}: set by a refused op");
        assert_eq!(row.time, entry.time, "{object:?}: set at another time");
        let proof = op_proof(tables, row.at).unwrap();
        let proven = proof
            .verify(&self.cluster, |header, _| self.known.contains(header))
            .unwrap_or_else(|error| panic!("{object:?}: {error}"));
        self.known.insert(proof.header.clone());
        let found = proven.leaf(object).unwrap_or_else(|error| panic!("{object:?}: {error}"));
        assert_eq!(found.leaf, wrap(row.leaf.clone()), "{object:?}: another leaf was signed");
        assert_eq!(found.hash, row.hash, "{object:?}: another hash");
    }
}

fn check_tree(state: &State) {
    let mut live_below: BTreeMap<InodeId, u64> = BTreeMap::new();
    for (key, row) in &state.entries {
        assert!(state.inodes.contains_key(&key.directory), "{key:?}: in what was purged");
        let Some(inode) = state.inodes.get(&row.leaf.inode) else {
            assert_ne!(row.leaf.state, EntryState::Live, "{key:?}: a name of what was purged");
            continue;
        };
        assert_eq!(inode.kind, row.leaf.kind, "{key:?}: a name of another kind");
        assert_eq!(state.inodes[&key.directory].kind, Kind::Directory, "{key:?}: in a file");
        assert_eq!(state.inodes[&key.directory].home, inode.home, "{key:?}: in another home");
        match row.leaf.state {
            EntryState::Live => {
                assert!(inode.linked, "{key:?}: a live name of what is deleted");
                assert_eq!(inode.parent, Some(*key), "{key:?}: not its inode's one name");
                *live_below.entry(key.directory).or_default() += 1;
            }
            EntryState::Deleted => {}
            EntryState::Moved { to } => {
                assert_ne!(to, *key);
                assert_ne!(inode.parent, Some(*key), "{key:?}: moved, but the last name");
            }
        }
    }
    for (id, inode) in &state.inodes {
        let live = live_below.get(id).copied().unwrap_or_default();
        assert_eq!(inode.children, live, "{id}: the number of live names");
        if inode.kind != Kind::Directory {
            assert_eq!(inode.children, 0);
        }
        let above = state.above(*id);
        let top = above.last().copied().unwrap_or(*id);
        // What has lost its directory to a purge has nothing above it.
        if state.inodes[&top].linked {
            assert_eq!(inode.home, top, "{id}: charged to another home");
        }
        let whole = !state.purging(id);
        assert_eq!(state.attrs.contains_key(id), whole, "{id}: attributes");
        let content = whole && inode.kind != Kind::Directory;
        assert_eq!(state.heads.contains_key(id), content, "{id}: content");
        match &inode.parent {
            None if !inode.linked => assert!(state.gone.contains_key(id)),
            None => {
                assert!(inode.linked && inode.vault && inode.home == *id, "{id}: a home's root");
                assert!(state.users.values().any(|user| user.leaf.home == *id));
            }
            Some(parent) => {
                let row = state.entries.get(parent).filter(|row| row.leaf.inode == *id);
                let stands = row.map(|row| row.leaf.state);
                if inode.linked {
                    assert_eq!(stands, Some(EntryState::Live), "{id}: linked");
                } else if stands.is_some() {
                    assert_eq!(stands, Some(EntryState::Deleted), "{id}: deleted");
                } else {
                    // The name was reused; the trash remembers.
                    let trash = &state.trash[&(parent.directory, *id)];
                    assert_eq!(trash.leaf.inode, *id);
                }
            }
        }
    }
    for ((directory, id), row) in &state.trash {
        let inode = &state.inodes[id];
        assert!(!inode.linked, "{id}: in the trash, but alive");
        assert_eq!(row.leaf.inode, *id);
        assert!(!matches!(row.leaf.state, EntryState::Moved { .. }), "{id}: moved to the trash");
        let last = inode.parent.unwrap();
        assert_eq!(last.directory, *directory, "{id}: in another trash");
        let under_its_name = state.entries.get(&last).is_some_and(|row| row.leaf.inode == *id);
        assert!(!under_its_name, "{id}: in the trash and under its name");
    }
    let with_state: BTreeSet<&InodeId> = state.inodes.keys().collect();
    assert!(state.attrs.keys().all(|id| with_state.contains(id)));
    assert!(state.heads.keys().all(|id| with_state.contains(id)));
}

fn check_content(state: &State) {
    assert_eq!(state.rows, state.feed, "the rows by chunk and by position are the same");
    for row in state.rows.values() {
        let known = state.inodes.contains_key(&row.inode) || state.gone.contains_key(&row.inode);
        assert!(known, "a row of what was purged");
    }
    let rows: BTreeSet<(InodeId, [u8; 32], u32)> =
        state.rows.values().map(|row| (row.inode, *row.chunk.as_bytes(), row.length)).collect();
    let mut needed = BTreeSet::new();
    let mut check = |id: &InodeId, slots: u64, root: manifest::Root| {
        let mut visit = |hash: &Hash| {
            let bytes = state.pages.get(&(*id, *hash)).unwrap_or_else(|| panic!("{id}: {hash}"));
            assert_eq!(Page::hash(bytes), *hash, "a page stands under its hash");
            needed.insert((*id, *hash));
            let page = Page::parse(bytes)?;
            if let Page::Leaf(slots) = &page {
                for slot in slots {
                    let manifest::Slot::Chunk(chunk) = slot else { continue };
                    let row = (*id, *chunk.chunk.as_bytes(), chunk.length);
                    assert!(rows.contains(&row), "{id}: a chunk without a row");
                }
            }
            Ok(page)
        };
        manifest::walk(&mut visit, root, slots, 0, u64::MAX).unwrap();
    };
    for (id, row) in &state.heads {
        check(id, row.leaf.slots, row.leaf.root);
        let former: Vec<u64> = state
            .versions
            .range((*id, 0)..=(*id, u64::MAX))
            .map(|((_, number), _)| *number)
            .collect();
        assert_eq!(former, (1..row.leaf.version).collect::<Vec<_>>(), "{id}: versions are dense");
    }
    for ((id, number), row) in &state.versions {
        check(id, row.leaf.slots, row.leaf.root);
        assert_eq!(row.leaf.version, *number);
        let kept = state.heads.contains_key(id) || state.purging(id);
        assert!(kept, "{id}: a former version without a current one");
    }
    for (key, row) in &state.staged {
        check(&key.inode, row.leaf.slots, row.leaf.root);
    }
    for ((id, hash), page) in &state.pages {
        assert_eq!(Page::hash(page), *hash);
        // Pages of a partial version that was taken up with changes stay until a purge.
        assert!(
            needed.contains(&(*id, *hash))
                || state.heads.contains_key(id)
                || staged_for(state, id)
                || state.purging(id),
            "{id}: a page nobody needs"
        );
    }
}

fn staged_for(state: &State, id: &InodeId) -> bool {
    state.staged.keys().any(|key| key.inode == *id)
}

fn check_usage(tables: &MemoryTables, state: &State) {
    let mut sum = Usage::default();
    for usage in state.usage.values() {
        sum.bytes += usage.bytes;
        sum.inodes += usage.inodes;
        sum.rows += usage.rows;
    }
    assert_eq!(sum, query::totals(tables).unwrap(), "the totals are the sum of the homes");
    let last = query::feed_position(tables).unwrap();
    assert!(state.feed.keys().all(|position| (1..=last).contains(position)));
    if state.gone.values().all(|gone| gone.purge.is_none()) {
        assert_eq!(sum.rows, state.rows.len() as u64);
    } else {
        assert!(sum.rows >= state.rows.len() as u64, "given back when all is gone");
    }
    assert_eq!(sum.inodes, state.inodes.len() as u64);
    let mut charged: BTreeMap<InodeId, Usage> = BTreeMap::new();
    for ((id, home), usage) in &state.inode_usage {
        let known = state.inodes.contains_key(id) || state.gone.contains_key(id);
        assert!(known, "{id}: charged by what was purged");
        let of_home = charged.entry(*home).or_default();
        of_home.bytes += usage.bytes;
        of_home.inodes += usage.inodes;
        of_home.rows += usage.rows;
    }
    for (home, usage) in &state.usage {
        assert_eq!(charged.get(home), Some(usage), "{home}: what its inodes have charged");
        let inodes = state.inodes.values().filter(|inode| inode.home == *home).count() as u64;
        assert_eq!(usage.inodes, inodes, "{home}");
        let heads = state.heads.iter();
        let versions = state.versions.iter().map(|((id, _), row)| (id, row));
        let stored: u64 = heads
            .chain(versions)
            .filter(|(id, _)| state.inodes[id].home == *home)
            .map(|(_, row)| row.payload.len() as u64)
            .sum();
        assert!(usage.bytes >= stored, "{home}: less charged than there is");
    }
}

/// What waits for its purge is what has no name, each once, in the order of time.
fn check_gone(tables: &MemoryTables, state: &State) {
    let expected: BTreeSet<Vec<u8>> =
        state.gone.iter().map(|(id, gone)| gone.deleted_key(id)).collect();
    let deleted: BTreeSet<Vec<u8>> = raw(tables, Table::Deleted).into_keys().collect();
    assert_eq!(deleted, expected);
    for (id, inode) in &state.inodes {
        assert_eq!(state.gone.contains_key(id), !inode.linked, "{id}: waits, or has a name");
    }
    let known = |id: &&InodeId| state.inodes.contains_key(id);
    for id in state.gone.keys().filter(|id| !known(id)) {
        assert!(staged_for(state, id) || state.purging(id), "{id}: never was, not even in part");
    }
    let deleted = state.gone.keys().filter(known).count() as u64;
    assert_eq!(query::deleted_inodes(tables).unwrap(), deleted);
}

fn check_log(tables: &MemoryTables, state: &State) {
    let mut frontier = Frontier::default();
    let mut leaves: Vec<TreeHash> = Vec::new();
    let mut time = coffer_model::time::LogTime::ZERO;
    let mut ops: BTreeMap<(u64, u16), LoggedOp> = table(tables, Table::LogOps, |key| {
        (number(&key[..8]), u16::from_be_bytes(key[8..].try_into().unwrap()))
    });
    for (sequence, entry) in (0..).zip(&state.log) {
        assert_eq!(entry.sequence, sequence);
        assert!(entry.time >= time, "log time went back");
        time = entry.time;
        leaves.push(entry.leaf());
        frontier.append(entry.leaf());
        let LogBody::Bundle { header, outcomes, .. } = &entry.body else { continue };
        let header: coffer_model::bundle::Header = decode("header", header).unwrap();
        assert_eq!(outcomes.len(), usize::from(header.ops));
        let logged: Vec<LoggedOp> =
            (0..header.ops).map(|index| ops.remove(&(sequence, index)).unwrap()).collect();
        let hashes: Vec<TreeHash> = logged.iter().map(|op| leaf_hash(&op.op)).collect();
        let tree = Tree::new(&hashes);
        assert_eq!(tree.root(), header.ops_root, "entry {sequence}: other ops than were signed");
        for (index, op) in logged.iter().enumerate() {
            assert_eq!(tree.path(index).unwrap(), op.path);
        }
    }
    assert!(ops.is_empty(), "ops outside the log");
    assert_eq!(query::log_time(tables).unwrap(), time);
    assert_eq!(query::revision(tables).unwrap(), leaves.len() as u64);
    assert_eq!(query::log_root(tables).unwrap(), root(&leaves));
    let stored =
        tables.rows().find(|(table, key, _)| *table == Table::Meta && *key == meta::FRONTIER);
    let stored: Frontier =
        stored.map_or_else(Frontier::default, |(table, _, bytes)| value(table, bytes));
    assert_eq!(stored, frontier);
}

/// Tables that say again what others say.
fn check_indices(tables: &MemoryTables, state: &State) {
    let principals: BTreeMap<Vec<u8>, Vec<u8>> = raw(tables, Table::Principals);
    let expected: BTreeMap<Vec<u8>, Vec<u8>> = state
        .users
        .iter()
        .map(|(name, row)| (row.leaf.principal.as_bytes().to_vec(), name.as_str().into()))
        .collect();
    assert_eq!(principals, expected);
    let hashes = raw(tables, Table::VaultHashes);
    let expected: BTreeMap<Vec<u8>, Vec<u8>> = state
        .vaults
        .iter()
        .map(|(id, row)| (row.hash.as_hash().as_bytes().to_vec(), id.as_bytes().to_vec()))
        .collect();
    assert_eq!(hashes, expected);
    for id in state.vaults.keys() {
        assert!(state.inodes[id].vault);
    }
    let repeats: BTreeMap<Vec<u8>, Repeat> = table(tables, Table::Repeats, <[u8]>::to_vec);
    let by_time = raw(tables, Table::RepeatsByTime);
    let remembered: BTreeSet<&[u8]> = by_time.keys().map(|key| &key[8..]).collect();
    assert_eq!(remembered.len(), by_time.len(), "a request is remembered once");
    assert_eq!(remembered, repeats.keys().map(Vec::as_slice).collect());
    for repeat in repeats.values() {
        let entry = &state.log[repeat.revision as usize - 1];
        let LogBody::Bundle { outcomes, .. } = &entry.body else { panic!("no bundle") };
        assert_eq!(*outcomes, repeat.outcomes);
    }
    let nodes: BTreeMap<Vec<u8>, NodeReport> = table(tables, Table::Nodes, <[u8]>::to_vec);
    for (id, report) in nodes {
        assert_eq!(id, report.node.as_bytes());
    }
}

fn raw(tables: &MemoryTables, wanted: Table) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let rows = tables.rows().filter(|(table, ..)| *table == wanted);
    rows.map(|(_, key, value)| (key.to_vec(), value.to_vec())).collect()
}
