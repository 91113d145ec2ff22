//! Receipts: a storage node's signed promise that it holds a shard durably, and keeps it at least
//! until a log time. One signature per flush covers the Merkle root of all shards in it.

use borsh::{BorshDeserialize, BorshSerialize};

use crate::chunk::ShardKey;
use crate::encoding::{Malformed, decode, encode};
use crate::id::{ClusterId, NodeId};
use crate::merkle::{TreeHash, leaf_hash, verify_inclusion};
use crate::signing::{Domain, PublicKey, Signature, Signer};
use crate::time::LogTime;

/// The most shards one signature covers.
pub const RECEIPT_LEAVES_MAX: usize = 4096;

/// One shard in a flush.
#[derive(Clone, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
pub struct Held {
    /// Which shard.
    pub shard: ShardKey,
    /// Its sealed length in bytes.
    pub length: u32,
    /// Until when the node keeps it even if no commit names it.
    pub keep_until: LogTime,
}

/// What a node signs once per flush.
#[derive(Clone, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
pub struct Flush {
    /// The node.
    pub node: NodeId,
    /// The root over the encodings of all [`Held`] of the flush.
    pub root: TreeHash,
    /// How many there are.
    pub size: u64,
}

/// The proof that one shard is in a signed flush.
#[derive(Clone, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
pub struct Receipt {
    /// What is promised.
    pub held: Held,
    /// Where its leaf stands.
    pub index: u64,
    /// The path from the leaf to the root.
    pub path: Vec<TreeHash>,
    /// The signed flush.
    pub flush: Flush,
    /// The node's signature over the flush.
    pub signature: Signature,
}

/// Why a receipt was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReceiptError {
    /// Not a receipt at all.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// Not signed by the storage node it names, or not covering this shard.
    #[error("the receipt does not prove that a storage node of this cluster holds the chunk")]
    Forged,
}

impl Flush {
    /// Signs the flush with the node's identity.
    pub fn sign(&self, cluster: &ClusterId, node: &impl Signer) -> Signature {
        node.sign(Domain::Receipt, cluster, &encode(self))
    }
}

impl Held {
    /// The hash of this shard's leaf in its flush.
    pub fn leaf(&self) -> TreeHash {
        leaf_hash(&encode(self))
    }
}

impl Receipt {
    /// Checks a receipt as it travels. `node_key` gives the key of a storage node, if the
    /// descriptor names it.
    pub fn verify(
        bytes: &[u8],
        cluster: &ClusterId,
        node_key: impl Fn(NodeId) -> Option<PublicKey>,
    ) -> Result<Self, ReceiptError> {
        let receipt: Self = decode("receipt", bytes)?;
        let key = node_key(receipt.flush.node).ok_or(ReceiptError::Forged)?;
        let flush = &receipt.flush;
        verify_inclusion(
            receipt.index,
            flush.size,
            &receipt.held.leaf(),
            &receipt.path,
            &flush.root,
        )
        .map_err(|_| ReceiptError::Forged)?;
        key.verify(Domain::Receipt, cluster, &encode(flush), &receipt.signature)
            .map_err(|_| ReceiptError::Forged)?;
        Ok(receipt)
    }
}
