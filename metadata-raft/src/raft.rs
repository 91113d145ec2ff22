//! The types openraft is made concrete with: what an entry carries and what its proposer gets back.

use std::fmt;
use std::time::Duration;

use borsh::BorshSerialize;
use bytes::Bytes;
use coffer_metadata_core::{Command, Reply};
use coffer_model::encoding::{Malformed, decode};
use coffer_model::id::MemberId;
use serde::de::Error as _;
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::snapshot::SnapshotData;

openraft::declare_raft_types!(
    /// What our Raft is made of. Nodes carry nothing: addresses stand in the descriptor.
    pub(crate) TypeConfig:
        D = Proposal,
        R = Replies,
        NodeId = u64,
        Node = openraft::EmptyNode,
        Entry = openraft::Entry<TypeConfig>,
        SnapshotData = SnapshotData,
        AsyncRuntime = AsyncRuntime,
);

#[cfg(not(test))]
type AsyncRuntime = openraft::TokioRuntime;
/// The same, but that elections are timed by the seed of a simulation where there is one.
#[cfg(test)]
type AsyncRuntime = crate::member::simulation::Runtime;

pub(crate) type Raft = openraft::Raft<TypeConfig>;
pub(crate) type Entry = openraft::Entry<TypeConfig>;
pub(crate) type LogId = openraft::LogId<u64>;
pub(crate) type Vote = openraft::Vote<u64>;
pub(crate) type Membership = openraft::Membership<u64, openraft::EmptyNode>;
pub(crate) type StoredMembership = openraft::StoredMembership<u64, openraft::EmptyNode>;
pub(crate) type SnapshotMeta = openraft::SnapshotMeta<u64, openraft::EmptyNode>;
pub(crate) type Snapshot = openraft::Snapshot<TypeConfig>;
pub(crate) type StorageError = openraft::StorageError<u64>;

/// Who leads, as far as one member knows. It may be wrong; nothing is answered on its word alone.
#[derive(Clone)]
pub(crate) struct Leadership {
    pub(crate) raft: Raft,
    pub(crate) me: MemberId,
    /// A leader that no majority has answered for this long does not count as one: openraft goes on
    /// calling it leader, while the others have long elected another.
    pub(crate) patience: Duration,
}

impl Leadership {
    pub(crate) fn leader(&self) -> Option<MemberId> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow();
        let leader = metrics.current_leader.map(MemberId::from_u64)?;
        let silent = Duration::from_millis(metrics.millis_since_quorum_ack.unwrap_or(0));
        (leader != self.me || silent <= self.patience).then_some(leader)
    }

    pub(crate) fn is_mine(&self) -> bool {
        self.leader() == Some(self.me)
    }
}

/// The version of a proposal's encoding.
const VERSION: u8 = 1;

/// The commands of one entry, encoded: a version byte, then a borsh list of commands.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Proposal(Bytes);

impl Proposal {
    pub(crate) fn new(commands: &Vec<Command>) -> Self {
        let mut bytes = vec![VERSION];
        commands.serialize(&mut bytes).expect("writing to a Vec cannot fail");
        Self(bytes.into())
    }

    /// Takes bytes that came from a disk or a peer; they are looked at when they are applied.
    pub(crate) const fn from_bytes(bytes: Bytes) -> Self {
        Self(bytes)
    }

    pub(crate) const fn bytes(&self) -> &Bytes {
        &self.0
    }

    pub(crate) fn commands(&self) -> Result<Vec<Command>, Malformed> {
        let what = "proposal";
        match self.0.split_first() {
            Some((&VERSION, rest)) => decode(what, rest),
            Some((version, _)) => {
                Err(Malformed { what, reason: format!("version {version} is not known here") })
            }
            None => Err(Malformed { what, reason: "it is empty".to_owned() }),
        }
    }
}

impl fmt::Debug for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Proposal({} bytes)", self.0.len())
    }
}

// openraft asks for serde; our own encodings (`codec`) are what goes to disk and wire.
impl Serialize for Proposal {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Proposal {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Vec::<u8>::deserialize(deserializer).map(|bytes| Self(bytes.into()))
    }
}

/// What became of the commands of one entry, in their order. It is for the waiting proposer only and
/// never leaves the process.
#[derive(Clone, Debug, Default)]
pub(crate) struct Replies(pub(crate) Vec<Reply>);

impl Serialize for Replies {
    fn serialize<S: Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        Err(S::Error::custom("replies stay in the process"))
    }
}

impl<'de> Deserialize<'de> for Replies {
    fn deserialize<D: Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
        Err(D::Error::custom("replies stay in the process"))
    }
}
