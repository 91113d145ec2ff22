//! A storage node's share: the word of a node that it holds what a layout gives it, and the word of a
//! member that a node need not keep what it holds.

use borsh::{BorshDeserialize, BorshSerialize};

use crate::id::{ChunkId, MemberId, NodeId};
use crate::time::LogTime;

/// The most chunks one release names.
pub const RELEASE_CHUNKS_MAX: usize = 4096;

/// A node has compared all its partitions with the rows, and has read back everything it had to fetch.
#[derive(Clone, Copy, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
pub struct ShareProof {
    /// The node.
    pub node: NodeId,
    /// The version of the layout it compared with.
    pub layout: u64,
    /// It holds every chunk of its partitions whose row stands at this feed position or before.
    pub position: u64,
}

/// A member's word: at a log time it knew no commit that needs these chunks at this node. Either no row
/// names them, or no layout that is not retired gives them to the node, and every node that should have
/// them has proven a position behind their rows.
#[derive(Clone, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
pub struct Release {
    /// Who says so.
    pub member: MemberId,
    /// To whom.
    pub node: NodeId,
    /// The member's log time. A node that promised to keep a chunk until a later time keeps it.
    pub time: LogTime,
    /// The chunks, ascending.
    pub chunks: Vec<ChunkId>,
}
