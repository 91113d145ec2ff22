//! Placement: chunk-id space is cut into partitions, and a versioned table says which storage nodes
//! hold each partition, in order. Where a chunk lies is computed, never stored.

use std::collections::BTreeSet;

use borsh::{BorshDeserialize, BorshSerialize};

use crate::encoding::{Malformed, decode, encode};
use crate::id::{ChunkId, ClusterId, NodeId};
use crate::signing::{Domain, PublicKey, Signature, Signer};

/// The default number of partition bits: 4,096 partitions.
pub const PARTITION_BITS: u8 = 12;
/// How many copies of a chunk there are.
pub const REPLICAS: u8 = 3;
/// How many of them must be durable before a write is acknowledged.
pub const REPLICAS_DURABLE: usize = 2;

/// One slice of chunk-id space.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, BorshSerialize, BorshDeserialize,
)]
pub struct Partition(u16);

impl Partition {
    /// The partition with this number.
    pub const fn from_number(number: u16) -> Self {
        Self(number)
    }

    /// The number.
    pub const fn number(self) -> u16 {
        self.0
    }

    /// The partition of a chunk: the first `bits` bits of its id.
    pub fn of(chunk: &ChunkId, bits: u8) -> Self {
        let [first, second, ..] = *chunk.as_bytes();
        Self(u16::from_be_bytes([first, second]) >> (16 - bits))
    }
}

/// The table partition → ordered storage nodes.
#[derive(Clone, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
pub struct Layout {
    version: u64,
    partition_bits: u8,
    replicas: u8,
    nodes: Vec<NodeId>,
    /// `replicas` indices into `nodes` for each partition.
    table: Vec<u16>,
}

/// A layout that contradicts itself.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// Not a layout at all.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// The signature is not by an administrator.
    #[error("the layout is not signed by an administrator of this cluster")]
    Signature,
    /// Sizes or indices do not fit.
    #[error("the layout contradicts itself: {0}")]
    Inconsistent(&'static str),
}

impl Layout {
    /// Makes a layout from its table: `replicas` node indices for each of 2^`partition_bits`
    /// partitions.
    pub fn new(
        version: u64,
        partition_bits: u8,
        replicas: u8,
        nodes: Vec<NodeId>,
        table: Vec<u16>,
    ) -> Result<Self, LayoutError> {
        let layout = Self { version, partition_bits, replicas, nodes, table };
        layout.check()?;
        Ok(layout)
    }

    fn check(&self) -> Result<(), LayoutError> {
        if !(10..=16).contains(&self.partition_bits) {
            return Err(LayoutError::Inconsistent("partition bits are 10 to 16"));
        }
        if self.replicas == 0 || usize::from(self.replicas) > self.nodes.len() {
            return Err(LayoutError::Inconsistent("more replicas than nodes"));
        }
        let replicas = usize::from(self.replicas);
        if self.table.len() != replicas << self.partition_bits {
            return Err(LayoutError::Inconsistent("the table has the wrong length"));
        }
        for row in self.table.chunks_exact(replicas) {
            for (place, node) in row.iter().enumerate() {
                if usize::from(*node) >= self.nodes.len() || row[..place].contains(node) {
                    return Err(LayoutError::Inconsistent(
                        "a partition names a node twice or none",
                    ));
                }
            }
        }
        Ok(())
    }

    /// The version; a later layout has a higher one.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// How many bits of a chunk id name its partition.
    pub fn partition_bits(&self) -> u8 {
        self.partition_bits
    }

    /// All nodes of the layout.
    pub fn nodes(&self) -> &[NodeId] {
        &self.nodes
    }

    /// The nodes of one partition, in order; none if there is no such partition.
    pub fn holders(&self, partition: Partition) -> impl Iterator<Item = NodeId> + '_ {
        let replicas = usize::from(self.replicas);
        let start = usize::from(partition.number()) * replicas;
        let row = self.table.get(start..start + replicas).unwrap_or_default();
        row.iter().map(|index| self.nodes[usize::from(*index)])
    }

    /// The nodes that hold `chunk`, in order.
    pub fn nodes_of(&self, chunk: &ChunkId) -> impl Iterator<Item = NodeId> + '_ {
        self.holders(Partition::of(chunk, self.partition_bits))
    }

    /// The nodes that hold any partition, ascending.
    pub fn holders_all(&self) -> BTreeSet<NodeId> {
        let used: BTreeSet<u16> = self.table.iter().copied().collect();
        used.into_iter().map(|index| self.nodes[usize::from(index)]).collect()
    }

    /// All partitions, in order.
    pub fn partitions(&self) -> impl Iterator<Item = Partition> + use<> {
        (0..1u32 << self.partition_bits)
            .map(|number| Partition(u16::try_from(number).expect("there are at most 2^16")))
    }

    /// Whether `node` is a holder of `partition`.
    pub fn holds(&self, node: NodeId, partition: Partition) -> bool {
        self.holders(partition).any(|holder| holder == node)
    }

    /// Signs the layout as an administrator.
    pub fn sign(&self, cluster: &ClusterId, administrator: &impl Signer) -> Vec<u8> {
        let bytes = encode(self);
        let signature = administrator.sign(Domain::Layout, cluster, &bytes);
        encode(&(bytes, signature))
    }

    /// Reads and checks a signed layout.
    pub fn verify(
        signed: &[u8],
        cluster: &ClusterId,
        administrators: &[PublicKey],
    ) -> Result<Self, LayoutError> {
        let (bytes, signature): (Vec<u8>, Signature) = decode("layout", signed)?;
        administrators
            .iter()
            .find(|key| key.verify(Domain::Layout, cluster, &bytes, &signature).is_ok())
            .ok_or(LayoutError::Signature)?;
        let layout: Self = decode("layout", &bytes)?;
        layout.check()?;
        Ok(layout)
    }

    /// Reads a signed layout whose signature was checked before it was kept: the administrators of
    /// that time may be others by now.
    pub fn of_checked(signed: &[u8]) -> Result<Self, LayoutError> {
        let (bytes, _): (Vec<u8>, Signature) = decode("layout", signed)?;
        let layout: Self = decode("layout", &bytes)?;
        layout.check()?;
        Ok(layout)
    }
}
