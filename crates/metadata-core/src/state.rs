//! The values in the tables, and how keys are built.

use borsh::{BorshDeserialize, BorshSerialize};
use coffer_model::bundle::Outcomes;
use coffer_model::encoding::{decode, encode};
use coffer_model::id::{ChunkId, InodeId, NodeId, PrincipalId, RequestId};
use coffer_model::layout::Layout;
use coffer_model::merkle::TreeHash;
use coffer_model::object::{EntryKey, Kind, LeafHash, StagedKey};
use coffer_model::share::ShareProof;
use coffer_model::time::LogTime;

use crate::tables::{Table, TableError, Tables};

/// The latest version of the state machine that this software understands.
pub const CORE_VERSION_MAX: u32 = 3;
/// The version a new cluster begins with. A later one comes into force by an op, once every member
/// understands it. It never changes: a member that applies the first entry of a log years later has to come
/// to the state that those came to who applied it first.
pub const CORE_VERSION_FIRST: u32 = 2;
/// The version that brought the changes of descriptor and layout, orders, purge and sealed sessions.
pub(crate) const CORE_VERSION_CHANGES: u32 = 2;
/// The version that brought the replacement of a lost volume by the standing policy.
pub const CORE_VERSION_REPLACEMENT: u32 = 3;

/// Which op set a leaf.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, BorshSerialize, BorshDeserialize,
)]
pub struct OpRef {
    /// The bundle's sequence in the log.
    pub sequence: u64,
    /// Which op of the bundle.
    pub index: u16,
}

/// A leaf as it is stored.
#[derive(Clone, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
pub struct Row<L> {
    /// The op that set it.
    pub at: OpRef,
    /// Its hash.
    pub hash: LeafHash,
    /// The leaf.
    pub leaf: L,
    /// The detached payload it names; of a user, the keyring.
    pub payload: Vec<u8>,
    /// A second payload: of a user, the login record.
    pub second: Vec<u8>,
    /// Log time when it was set.
    pub time: LogTime,
}

/// What the server knows about an inode beyond its leaves.
#[derive(Clone, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
pub struct InodeState {
    /// What it is.
    pub kind: Kind,
    /// The root of the home it is charged to; never changes.
    pub home: InodeId,
    /// The entry that points at it, or last did; none for a home's root.
    pub parent: Option<EntryKey>,
    /// Whether that entry is live.
    pub linked: bool,
    /// How many live entries it has.
    pub children: u64,
    /// Whether a vault is carved here.
    pub vault: bool,
}

/// An inode that waits for its purge: it has lost its name; or it never came to exist, and only
/// partial versions for it did.
#[derive(Clone, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
pub struct Gone {
    /// Log time when it lost its name, or when the last part was staged.
    pub since: LogTime,
    /// Present once the purge has begun: the chunk row to go on at, empty for the first. From then on
    /// nothing brings the inode back.
    pub purge: Option<Vec<u8>>,
}

impl Gone {
    /// Where it stands in [`Table::Deleted`]: what has begun comes first, whatever retention becomes.
    pub fn deleted_key(&self, inode: &InodeId) -> Vec<u8> {
        let since = if self.purge.is_some() { LogTime::ZERO } else { self.since };
        [since.unix_ms().to_be_bytes().as_slice(), inode.as_bytes()].concat()
    }
}

/// What a home has used.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, BorshSerialize, BorshDeserialize)]
pub struct Usage {
    /// Sealed chunk bytes, page bytes and payload bytes, all versions.
    pub bytes: u64,
    /// Inodes, deleted ones included.
    pub inodes: u64,
    /// Chunk rows.
    pub rows: u64,
}

/// An op in the log, with its path to the root its bundle's header names.
#[derive(Clone, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
pub struct LoggedOp {
    /// The op bytes.
    pub op: Vec<u8>,
    /// The path.
    pub path: Vec<TreeHash>,
}

/// What became of a request.
#[derive(Clone, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
pub struct Repeat {
    /// The outcomes.
    pub outcomes: Outcomes,
    /// The revision after it.
    pub revision: u64,
}

/// The most layouts before the one in force that can wait to be retired.
pub const FORMER_LAYOUTS_MAX: usize = 8;

/// The layouts by which nodes hold chunks.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Layouts {
    /// As they were proposed: the one in force, then the former ones, newest first.
    pub signed: Vec<Vec<u8>>,
    /// The same, read; never empty.
    pub layouts: Vec<Layout>,
    /// The last feed position given when the first of them came into force.
    pub since: u64,
}

impl Layouts {
    /// Reads them, once there is a cluster.
    pub fn load(tables: &impl Tables) -> Result<Option<Self>, TableError> {
        let Some(current) = tables.get(Table::Meta, meta::LAYOUT)? else { return Ok(None) };
        let former: Vec<Vec<u8>> =
            load(tables, Table::Meta, meta::FORMER_LAYOUTS)?.unwrap_or_default();
        let mut signed = vec![current];
        signed.extend(former);
        let read = |signed: &Vec<u8>| {
            Layout::of_checked(signed).map_err(|error| TableError(error.to_string()))
        };
        let layouts = signed.iter().map(read).collect::<Result<_, _>>()?;
        let since = load(tables, Table::Meta, meta::LAYOUT_SINCE)?.unwrap_or(0);
        Ok(Some(Self { signed, layouts, since }))
    }

    /// The layout in force.
    pub fn in_force(&self) -> &Layout {
        &self.layouts[0]
    }

    /// Those before it that are not retired, newest first.
    pub fn former(&self) -> &[Layout] {
        &self.layouts[1..]
    }

    /// The feed position up to which `node` has proven its share of the layout in force.
    pub fn proven(&self, tables: &impl Tables, node: NodeId) -> Result<Option<u64>, TableError> {
        let proof: Option<ShareProof> = load(tables, Table::Proofs, node.as_bytes())?;
        let of_this = proof.filter(|proof| proof.layout == self.in_force().version());
        Ok(of_this.map(|proof| proof.position))
    }
}

/// Keys of [`Table::Meta`].
pub mod meta {
    /// Cluster id.
    pub const CLUSTER: &[u8] = b"cluster";
    /// Encoding of the first signed descriptor.
    pub const DESCRIPTOR: &[u8] = b"descriptor";
    /// Number of the descriptor in force; absent while that is the first one.
    pub const DESCRIPTOR_NUMBER: &[u8] = b"descriptor_number";
    /// The signed layout in force.
    pub const LAYOUT: &[u8] = b"layout";
    /// The signed layouts before it that are not retired, newest first; absent if there are none.
    pub const FORMER_LAYOUTS: &[u8] = b"former_layouts";
    /// The last feed position given when the layout in force came into force; absent for the first.
    pub const LAYOUT_SINCE: &[u8] = b"layout_since";
    /// Log time.
    pub const TIME: &[u8] = b"time";
    /// Frontier of the log's tree; its size is the sequence.
    pub const FRONTIER: &[u8] = b"frontier";
    /// The last feed position given. It never falls: a position means one row for ever.
    pub const FEED: &[u8] = b"feed";
    /// Totals over all homes.
    pub const TOTAL: &[u8] = b"total";
    /// Number of the last order; absent: none.
    pub const ORDER_NUMBER: &[u8] = b"order_number";
    /// How long what was deleted stays, in ms; absent: as no order has said anything.
    pub const RETENTION: &[u8] = b"retention";
    /// Quota of homes that have none of their own, in bytes; absent: no limit.
    pub const QUOTA: &[u8] = b"quota";
    /// How many inodes exist that have lost their name.
    pub const DELETED: &[u8] = b"deleted";
    /// The core version in force.
    pub const CORE_VERSION: &[u8] = b"core_version";
}

/// inode ‖ home.
pub fn inode_usage_key(inode: &InodeId, home: &InodeId) -> Vec<u8> {
    [inode.as_bytes().as_slice(), home.as_bytes()].concat()
}

/// directory ‖ tag.
pub fn entry_key(key: &EntryKey) -> Vec<u8> {
    [key.directory.as_bytes().as_slice(), key.tag.as_bytes()].concat()
}

/// directory ‖ inode.
pub fn trash_key(directory: &InodeId, inode: &InodeId) -> Vec<u8> {
    [directory.as_bytes().as_slice(), inode.as_bytes()].concat()
}

/// inode ‖ version.
pub fn version_key(inode: &InodeId, version: u64) -> Vec<u8> {
    [inode.as_bytes().as_slice(), &version.to_be_bytes()].concat()
}

/// inode ‖ write.
pub fn staged_key(key: &StagedKey) -> Vec<u8> {
    [key.inode.as_bytes().as_slice(), key.write.as_bytes()].concat()
}

/// inode ‖ page hash.
pub fn page_key(inode: &InodeId, page: &coffer_model::hash::Hash) -> Vec<u8> {
    [inode.as_bytes().as_slice(), page.as_bytes()].concat()
}

/// chunk ‖ position.
pub fn row_key(chunk: &ChunkId, position: u64) -> Vec<u8> {
    [chunk.as_bytes().as_slice(), &position.to_be_bytes()].concat()
}

/// sequence ‖ op number.
pub fn op_key(at: OpRef) -> Vec<u8> {
    [at.sequence.to_be_bytes().as_slice(), &at.index.to_be_bytes()].concat()
}

/// principal ‖ request.
pub fn repeat_key(principal: &PrincipalId, request: &RequestId) -> Vec<u8> {
    [principal.as_bytes().as_slice(), request.as_bytes()].concat()
}

/// The smallest key that is larger than every key starting with `prefix`.
pub fn after_prefix(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return end;
        }
    }
    vec![u8::MAX; prefix.len() + 64]
}

/// Reads a value of ours. Bytes that do not decode were not written by this software: the store is
/// damaged and the replica cannot go on.
pub fn load<V: BorshDeserialize>(
    tables: &impl Tables,
    table: Table,
    key: &[u8],
) -> Result<Option<V>, TableError> {
    let Some(bytes) = tables.get(table, key)? else { return Ok(None) };
    parse(table, &bytes).map(Some)
}

/// Decodes a value of ours.
pub fn parse<V: BorshDeserialize>(table: Table, bytes: &[u8]) -> Result<V, TableError> {
    decode(table.name(), bytes).map_err(|error| TableError(error.to_string()))
}

/// Encodes a value of ours.
pub fn store<V: BorshSerialize>(value: &V) -> Vec<u8> {
    encode(value)
}
