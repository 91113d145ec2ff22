#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;

fn leaves(count: usize) -> Vec<TreeHash> {
    (0..count).map(|index| leaf_hash(&index.to_le_bytes())).collect()
}

proptest! {
    #[test]
    fn every_leaf_of_every_tree_is_proven_and_no_other(count in 1usize..80, at in 0usize..80, flip in 0usize..256) {
        let leaves = leaves(count);
        let tree = Tree::new(&leaves);
        prop_assert_eq!(tree.root(), root(&leaves));
        let at = at % count;
        let path = tree.path(at).unwrap().to_vec();
        let check = |index: usize, leaf: &TreeHash, path: &[TreeHash]| {
            verify_inclusion(index as u64, count as u64, leaf, path, &tree.root())
        };
        prop_assert_eq!(check(at, &leaves[at], &path), Ok(()));
        let mut wrong = leaves[at];
        wrong[flip / 8] ^= 1 << (flip % 8);
        prop_assert_eq!(check(at, &wrong, &path), Err(BadProof));
        if count > 1 {
            prop_assert_eq!(check((at + 1) % count, &leaves[at], &path), Err(BadProof));
            prop_assert_eq!(check(at, &leaves[at], &path[1..]), Err(BadProof));
        }
        let mut longer = path.clone();
        longer.push(wrong);
        prop_assert_eq!(check(at, &leaves[at], &longer), Err(BadProof));
    }

    #[test]
    fn a_frontier_has_the_root_of_the_whole_tree(count in 0usize..200) {
        let leaves = leaves(count);
        let mut frontier = Frontier::default();
        for leaf in &leaves {
            frontier.append(*leaf);
        }
        prop_assert_eq!(frontier.root(), root(&leaves));
        prop_assert_eq!(frontier.size(), count as u64);
    }
}

/// A hash of the published vectors. Where there is none, the vector cannot even be written down as a
/// [`TreeHash`], and is refused for it. A few others are words ("don't care"): they stand for any
/// hash, equal ones for equal ones.
fn hash(value: &serde_json::Value) -> Result<TreeHash, BadProof> {
    let bytes = hex::decode(value.as_str().unwrap()).unwrap();
    match bytes.len() {
        0 => Err(BadProof),
        32 => Ok(bytes.try_into().unwrap()),
        _ => Ok(leaf_hash(&bytes)),
    }
}

fn proof(value: &serde_json::Value) -> Result<Vec<TreeHash>, BadProof> {
    value.as_array().unwrap().iter().map(hash).collect()
}

/// `refuse` is what the vectors call `wantErr`.
fn check_vectors(text: &str, verify: impl Fn(&serde_json::Value) -> Result<(), BadProof>) {
    let rows: Vec<serde_json::Value> = serde_json::from_str(text).unwrap();
    assert_eq!(rows.len(), 98);
    for row in rows {
        let expected = if row["refuse"].as_bool().unwrap() { Err(BadProof) } else { Ok(()) };
        assert_eq!(verify(&row), expected, "{}", row["name"]);
    }
}

#[test]
fn published_inclusion_proofs_are_decided_as_published() {
    check_vectors(include_str!("../../testdata/merkle/inclusion.json"), |row| {
        let (index, size) = (row["index"].as_u64().unwrap(), row["size"].as_u64().unwrap());
        let path = proof(&row["proof"])?;
        verify_inclusion(index, size, &hash(&row["leaf"])?, &path, &hash(&row["root"])?)
    });
}

/// Nine of these have an old size of zero. The published expectation is the same as ours, refusal,
/// also where a literal reading of RFC 9162 accepts (two empty trees, whatever their roots).
#[test]
fn published_consistency_proofs_are_decided_as_published() {
    check_vectors(include_str!("../../testdata/merkle/consistency.json"), |row| {
        let (old, new) = (row["size1"].as_u64().unwrap(), row["size2"].as_u64().unwrap());
        let path = proof(&row["proof"])?;
        verify_consistency(old, new, &hash(&row["root1"])?, &hash(&row["root2"])?, &path)
    });
}

/// A38: an empty tree has no leaf to include and is no prefix worth proving.
#[test]
fn an_empty_tree_proves_nothing() {
    let (empty, some) = (root(&[]), leaf_hash(b"leaf"));
    for any in [empty, some, [0; 32]] {
        assert_eq!(verify_inclusion(0, 0, &any, &[], &any), Err(BadProof));
        assert_eq!(verify_inclusion(0, 0, &some, &[any], &any), Err(BadProof));
        for size in [0, 1, 2, u64::MAX] {
            assert_eq!(verify_consistency(0, size, &any, &some, &[]), Err(BadProof));
            assert_eq!(verify_consistency(0, size, &any, &any, &[]), Err(BadProof));
            assert_eq!(verify_consistency(0, size, &any, &some, &[some]), Err(BadProof));
        }
    }
}

/// The proof of RFC 9162, section 2.1.4.1, written down as it stands there.
fn consistency_proof(old: usize, leaves: &[TreeHash], whole: bool) -> Vec<TreeHash> {
    if old == leaves.len() {
        return if whole { Vec::new() } else { vec![root(leaves)] };
    }
    let middle = split(leaves.len());
    let (left, right) = leaves.split_at(middle);
    if old <= middle {
        let mut path = consistency_proof(old, left, whole);
        path.push(root(right));
        path
    } else {
        let mut path = consistency_proof(old - middle, right, false);
        path.push(root(left));
        path
    }
}

proptest! {
    #[test]
    fn every_prefix_is_proven_and_no_other(new in 1usize..80, old in 1usize..80, flip in 0usize..256, at in any::<prop::sample::Index>()) {
        let old = 1 + (old - 1) % new;
        let leaves = leaves(new);
        let (old_root, new_root) = (root(&leaves[..old]), root(&leaves));
        let path = consistency_proof(old, &leaves, true);
        let check = |old: usize, old_root: &TreeHash, new_root: &TreeHash, path: &[TreeHash]| {
            verify_consistency(old as u64, new as u64, old_root, new_root, path)
        };
        prop_assert_eq!(check(old, &old_root, &new_root, &path), Ok(()));
        let mut wrong = old_root;
        wrong[flip / 8] ^= 1 << (flip % 8);
        prop_assert_eq!(check(old, &wrong, &new_root, &path), Err(BadProof));
        prop_assert_eq!(check(old, &old_root, &wrong, &path), Err(BadProof));
        let mut longer = path.clone();
        longer.push(wrong);
        prop_assert_eq!(check(old, &old_root, &new_root, &longer), Err(BadProof));
        if !path.is_empty() {
            prop_assert_eq!(check(old, &old_root, &new_root, &path[1..]), Err(BadProof));
            let mut bent = path.clone();
            bent[at.index(path.len())][flip / 8] ^= 1 << (flip % 8);
            prop_assert_eq!(check(old, &old_root, &new_root, &bent), Err(BadProof));
        }
    }

    #[test]
    fn no_sizes_make_a_proof_checker_panic(index in any::<u64>(), size in any::<u64>(), length in 0usize..70) {
        let path = leaves(length);
        let any = leaf_hash(b"any");
        let _ = verify_inclusion(index, size, &any, &path, &any);
        let _ = verify_consistency(index, size, &any, &any, &path);
    }
}
