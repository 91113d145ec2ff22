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
