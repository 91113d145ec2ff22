//! RFC 6962 Merkle trees over SHA-256: the log, the ops of a bundle, the receipts of a flush.
//!
//! Leaves and interior nodes are hashed under different prefixes (0x00, 0x01), a proof must have
//! exactly the length its tree demands, and a tree of size zero proves nothing.

use borsh::{BorshDeserialize, BorshSerialize};
use sha2::{Digest, Sha256};

/// A hash of such a tree.
pub type TreeHash = [u8; 32];

/// A proof that does not lead to the root it was given for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the Merkle proof does not lead to the root")]
pub struct BadProof;

/// The hash of one leaf's content.
pub fn leaf_hash(content: &[u8]) -> TreeHash {
    let mut hasher = Sha256::new();
    hasher.update([0u8]);
    hasher.update(content);
    hasher.finalize().into()
}

fn node_hash(left: &TreeHash, right: &TreeHash) -> TreeHash {
    let mut hasher = Sha256::new();
    hasher.update([1u8]);
    hasher.update(left);
    hasher.update(right);
    hasher.finalize().into()
}

/// The largest power of two that is smaller than `size`, for `size` of two or more.
const fn split(size: usize) -> usize {
    1 << (usize::BITS - 1 - (size - 1).leading_zeros())
}

/// The root over leaf hashes; of no leaves, the hash of the empty string.
pub fn root(leaves: &[TreeHash]) -> TreeHash {
    match leaves {
        [] => Sha256::digest(b"").into(),
        [leaf] => *leaf,
        _ => {
            let (left, right) = leaves.split_at(split(leaves.len()));
            node_hash(&root(left), &root(right))
        }
    }
}

/// Roots and paths of one tree, every interior node computed once.
#[derive(Debug, Clone)]
pub struct Tree {
    root: TreeHash,
    paths: Vec<Vec<TreeHash>>,
}

impl Tree {
    /// Builds the tree over leaf hashes, with the path of every leaf.
    pub fn new(leaves: &[TreeHash]) -> Self {
        let mut paths = vec![Vec::new(); leaves.len()];
        let root = Self::build(leaves, &mut paths);
        Self { root, paths }
    }

    fn build(leaves: &[TreeHash], paths: &mut [Vec<TreeHash>]) -> TreeHash {
        if leaves.len() < 2 {
            return root(leaves);
        }
        let middle = split(leaves.len());
        let (left_leaves, right_leaves) = leaves.split_at(middle);
        let (left_paths, right_paths) = paths.split_at_mut(middle);
        let left = Self::build(left_leaves, left_paths);
        let right = Self::build(right_leaves, right_paths);
        for path in left_paths {
            path.push(right);
        }
        for path in right_paths {
            path.push(left);
        }
        node_hash(&left, &right)
    }

    /// The root.
    pub fn root(&self) -> TreeHash {
        self.root
    }

    /// The inclusion path of leaf `index`, from the leaf upwards.
    pub fn path(&self, index: usize) -> Option<&[TreeHash]> {
        self.paths.get(index).map(Vec::as_slice)
    }
}

/// Checks that `leaf` is leaf `index` of the tree of `size` leaves with this `root`
/// (RFC 9162, section 2.1.3.2).
pub fn verify_inclusion(
    index: u64,
    size: u64,
    leaf: &TreeHash,
    path: &[TreeHash],
    root: &TreeHash,
) -> Result<(), BadProof> {
    if index >= size {
        return Err(BadProof);
    }
    let (mut position, mut last) = (index, size - 1);
    let mut hash = *leaf;
    for sibling in path {
        if last == 0 {
            return Err(BadProof);
        }
        if position & 1 == 1 || position == last {
            hash = node_hash(sibling, &hash);
            while position & 1 == 0 && position != 0 {
                position >>= 1;
                last >>= 1;
            }
        } else {
            hash = node_hash(&hash, sibling);
        }
        position >>= 1;
        last >>= 1;
    }
    if last == 0 && hash == *root { Ok(()) } else { Err(BadProof) }
}

/// Checks that the tree of `old_size` leaves is a prefix of the tree of `new_size`
/// (RFC 9162, section 2.1.4.2). An empty old tree proves nothing and is refused.
pub fn verify_consistency(
    old_size: u64,
    new_size: u64,
    old_root: &TreeHash,
    new_root: &TreeHash,
    proof: &[TreeHash],
) -> Result<(), BadProof> {
    if old_size == 0 || old_size > new_size {
        return Err(BadProof);
    }
    if old_size == new_size {
        return if proof.is_empty() && old_root == new_root { Ok(()) } else { Err(BadProof) };
    }
    let (first, rest) = if old_size.is_power_of_two() {
        (*old_root, proof)
    } else {
        let (first, rest) = proof.split_first().ok_or(BadProof)?;
        (*first, rest)
    };
    let (mut old_position, mut new_position) = (old_size - 1, new_size - 1);
    while old_position & 1 == 1 {
        old_position >>= 1;
        new_position >>= 1;
    }
    let (mut old_hash, mut new_hash) = (first, first);
    for sibling in rest {
        if new_position == 0 {
            return Err(BadProof);
        }
        if old_position & 1 == 1 || old_position == new_position {
            old_hash = node_hash(sibling, &old_hash);
            new_hash = node_hash(sibling, &new_hash);
            while old_position & 1 == 0 && old_position != 0 {
                old_position >>= 1;
                new_position >>= 1;
            }
        } else {
            new_hash = node_hash(&new_hash, sibling);
        }
        old_position >>= 1;
        new_position >>= 1;
    }
    if new_position == 0 && old_hash == *old_root && new_hash == *new_root {
        Ok(())
    } else {
        Err(BadProof)
    }
}

/// The right edge of a growing tree: all that is needed to append to it and to know its root.
/// `peaks` are the roots of its full subtrees, largest first.
#[derive(Debug, Clone, PartialEq, Eq, Default, BorshSerialize, BorshDeserialize)]
pub struct Frontier {
    size: u64,
    peaks: Vec<TreeHash>,
}

impl Frontier {
    /// How many leaves the tree has.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Appends one leaf.
    pub fn append(&mut self, leaf: TreeHash) {
        let mut hash = leaf;
        let mut carry = self.size;
        while carry & 1 == 1 {
            let left = self.peaks.pop().expect("a set bit of the size stands for a peak");
            hash = node_hash(&left, &hash);
            carry >>= 1;
        }
        self.peaks.push(hash);
        self.size += 1;
    }

    /// The root of the tree so far.
    pub fn root(&self) -> TreeHash {
        let mut peaks = self.peaks.iter().rev();
        let Some(last) = peaks.next() else { return root(&[]) };
        peaks.fold(*last, |right, left| node_hash(left, &right))
    }
}

#[cfg(test)]
mod tests;
