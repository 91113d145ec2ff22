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

/// How many replacements a signed layout may carry; beyond, administrators have to sign it anew.
pub const REPLACEMENTS_MAX: usize = 256;

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
    /// It puts a storage node in the place of another that no descriptor put there.
    #[error("the layout replaces storage node {0}, which the descriptors do not")]
    NotReplaced(NodeId),
}

/// A layout as it travels: the bytes an administrator signed, and whom descriptors have put in whose place
/// since. The list is not there where it is empty.
struct SignedLayout {
    bytes: Vec<u8>,
    signature: Signature,
    replaced: Vec<(NodeId, NodeId)>,
}

impl SignedLayout {
    fn decode(signed: &[u8]) -> Result<Self, LayoutError> {
        if let Ok((bytes, signature)) = decode("layout", signed) {
            return Ok(Self { bytes, signature, replaced: Vec::new() });
        }
        let (bytes, signature, replaced): (_, _, Vec<_>) = decode("layout", signed)?;
        if replaced.is_empty() || replaced.len() > REPLACEMENTS_MAX {
            return Err(LayoutError::Inconsistent("it carries no replacements, or too many"));
        }
        Ok(Self { bytes, signature, replaced })
    }

    fn encode(&self) -> Vec<u8> {
        if self.replaced.is_empty() {
            encode(&(&self.bytes, &self.signature))
        } else {
            encode(&(&self.bytes, &self.signature, &self.replaced))
        }
    }

    fn is_signed_by(&self, cluster: &ClusterId, administrators: &[PublicKey]) -> bool {
        let signed =
            |key: &PublicKey| key.verify(Domain::Layout, cluster, &self.bytes, &self.signature);
        administrators.iter().any(|key| signed(key).is_ok())
    }

    /// The layout, with everybody in the place they have now.
    fn layout(&self) -> Result<Layout, LayoutError> {
        let mut layout: Layout = decode("layout", &self.bytes)?;
        layout.check()?;
        for (lost, new) in &self.replaced {
            layout.replace(*lost, *new)?;
        }
        Ok(layout)
    }
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
        SignedLayout { bytes, signature, replaced: Vec::new() }.encode()
    }

    /// Puts `new` in the place of `lost`, which makes the next version of the layout.
    fn replace(&mut self, lost: NodeId, new: NodeId) -> Result<(), LayoutError> {
        let not_replaced = LayoutError::NotReplaced(lost);
        if self.nodes.contains(&new) {
            return Err(not_replaced);
        }
        let place = self.nodes.iter_mut().find(|node| **node == lost).ok_or(not_replaced)?;
        *place = new;
        self.version = self
            .version
            .checked_add(1)
            .ok_or(LayoutError::Inconsistent("there is no version after it"))?;
        Ok(())
    }

    /// Reads and checks a layout that an administrator has signed as it is: one in which no descriptor has
    /// replaced a storage node since.
    pub fn verify(
        signed: &[u8],
        cluster: &ClusterId,
        administrators: &[PublicKey],
    ) -> Result<Self, LayoutError> {
        Self::verify_replaced(signed, cluster, administrators, &[])
    }

    /// Reads and checks a signed layout. `replaced` are the storage nodes that descriptors have put in the
    /// place of others, as [`crate::descriptor::SignedDescriptor::verify_link`] says.
    pub fn verify_replaced(
        signed: &[u8],
        cluster: &ClusterId,
        administrators: &[PublicKey],
        replaced: &[(NodeId, NodeId)],
    ) -> Result<Self, LayoutError> {
        let signed = SignedLayout::decode(signed)?;
        if !signed.is_signed_by(cluster, administrators) {
            return Err(LayoutError::Signature);
        }
        if let Some((lost, _)) = signed.replaced.iter().find(|pair| !replaced.contains(*pair)) {
            return Err(LayoutError::NotReplaced(*lost));
        }
        signed.layout()
    }

    /// Whether one of these administrators has signed the layout, before any replacement.
    pub fn is_signed_by(signed: &[u8], cluster: &ClusterId, administrators: &[PublicKey]) -> bool {
        SignedLayout::decode(signed).is_ok_and(|it| it.is_signed_by(cluster, administrators))
    }

    /// The signed layout after this one in which `new` has the place of `lost`; none if `lost` has no place
    /// in it. That a descriptor says so is for the caller to know.
    pub fn with_replaced(
        signed: &[u8],
        lost: NodeId,
        new: NodeId,
    ) -> Result<Option<Vec<u8>>, LayoutError> {
        let mut signed = SignedLayout::decode(signed)?;
        let mut layout = signed.layout()?;
        if !layout.nodes.contains(&lost) {
            return Ok(None);
        }
        if signed.replaced.len() >= REPLACEMENTS_MAX {
            return Err(LayoutError::Inconsistent("it carries too many replacements"));
        }
        layout.replace(lost, new)?;
        signed.replaced.push((lost, new));
        Ok(Some(signed.encode()))
    }

    /// Reads a signed layout whose signature was checked before it was kept: the administrators of
    /// that time may be others by now.
    pub fn of_checked(signed: &[u8]) -> Result<Self, LayoutError> {
        SignedLayout::decode(signed)?.layout()
    }
}
