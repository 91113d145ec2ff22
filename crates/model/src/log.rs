//! The log: every applied bundle and every system op, as exact bytes with outcomes, one leaf each
//! of an RFC 6962 tree. Sequence n is leaf n.

use borsh::{BorshDeserialize, BorshSerialize};

use crate::bundle::Outcomes;
use crate::encoding::encode;
use crate::id::MemberId;
use crate::merkle::{TreeHash, leaf_hash};
use crate::signing::Signature;
use crate::time::LogTime;

/// The position in the log; what clients send back so that no replica takes them backwards.
#[derive(
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Debug,
    Default,
    BorshSerialize,
    BorshDeserialize,
)]
pub struct Revision {
    /// The metadata group; there is one, 0.
    pub group: u32,
    /// How many log entries there are.
    pub sequence: u64,
}

/// A member's signed reading of its clock.
#[derive(Clone, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
pub struct ClockReading {
    /// Who read.
    pub member: MemberId,
    /// What the clock said.
    pub time: LogTime,
    /// Over the encoding of (member, time).
    pub signature: Signature,
}

/// An op that no user signed, but that anyone who replays the log can check.
#[derive(Clone, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
pub enum SystemOp {
    /// The first entry: the administrator-signed descriptor and layout.
    Genesis {
        /// Encoding of a [`crate::descriptor::SignedDescriptor`].
        descriptor: Vec<u8>,
        /// A signed layout.
        layout: Vec<u8>,
    },
    /// Log time moves to the lower median of these readings, unless that is in its past.
    Tick {
        /// Of a majority of members, each once.
        readings: Vec<ClockReading>,
    },
    /// A storage node says where it is: the signed bytes of a [`crate::log::NodeReport`].
    NodeReport {
        /// The encoding of the report.
        report: Vec<u8>,
        /// The node's signature over it.
        signature: Signature,
    },
    /// Every member understands this version of the state machine; from here on it is in force. What
    /// stands below was added by version 2, and changes nothing before it is in force.
    CoreVersion {
        /// One more than the version in force.
        version: u32,
    },
    /// The next descriptor of the cluster.
    NextDescriptor {
        /// Encoding of a [`crate::descriptor::SignedDescriptor`].
        descriptor: Vec<u8>,
    },
    /// The next layout. Those before it stay readable until every node of this one has proven its
    /// share.
    NextLayout {
        /// A signed layout.
        layout: Vec<u8>,
    },
    /// A storage node holds its share: the signed bytes of a [`crate::share::ShareProof`].
    ShareProof {
        /// The encoding of the proof.
        proof: Vec<u8>,
        /// The node's signature over it.
        signature: Signature,
    },
    /// An administrator's order: the signed bytes of an [`crate::order::Order`].
    Order {
        /// The encoding of the order.
        order: Vec<u8>,
        /// The administrators' signatures over it.
        signatures: Vec<(crate::signing::PublicKey, Signature)>,
    },
    /// One step of removing an inode for good that was deleted longer ago than retention says.
    Purge {
        /// The inode.
        inode: crate::id::InodeId,
    },
}

/// Where a storage node is and what it has.
#[derive(Clone, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
pub struct NodeReport {
    /// The node.
    pub node: crate::id::NodeId,
    /// Rises with every report, so that an old one cannot come back.
    pub number: u64,
    /// `host:port` of its endpoint.
    pub address: String,
    /// Bytes it offers.
    pub capacity_bytes: u64,
}

/// What one entry of the log is about.
#[derive(Clone, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
pub enum LogBody {
    /// A bundle: header bytes and signature (the header names the root of the ops), and what became
    /// of each op.
    Bundle {
        /// The header bytes.
        header: Vec<u8>,
        /// The author's signature.
        signature: Signature,
        /// The outcomes, in order.
        outcomes: Outcomes,
    },
    /// A system op.
    System(SystemOp),
}

/// One entry of the log.
#[derive(Clone, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
pub struct LogEntry {
    /// Its position, from 0.
    pub sequence: u64,
    /// Log time when it was applied.
    pub time: LogTime,
    /// What it is about.
    pub body: LogBody,
}

impl LogEntry {
    /// The hash of this entry's leaf in the log's tree.
    pub fn leaf(&self) -> TreeHash {
        leaf_hash(&encode(self))
    }
}

/// A chunk that a commit names: what storage nodes follow.
#[derive(Clone, Copy, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
pub struct ChunkRow {
    /// The chunk.
    pub chunk: crate::id::ChunkId,
    /// Its sealed length.
    pub length: u32,
    /// The file that names it.
    pub inode: crate::id::InodeId,
    /// How it is spread.
    pub scheme: crate::chunk::Redundancy,
}
