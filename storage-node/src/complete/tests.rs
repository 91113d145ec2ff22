//! Tests of what is asked of whom. The loop itself is tested with whole nodes, in `run/tests.rs`.
#![allow(clippy::unwrap_used)]

use super::*;

fn node(number: u8) -> NodeId {
    NodeId::from_bytes([number; 16])
}

/// Three nodes that hold everything.
fn layout() -> Layout {
    let table = (0..3 << 10).map(|at| at % 3).collect();
    Layout::new(1, 10, 3, vec![node(1), node(2), node(3)], table).unwrap()
}

fn siblings(reachable: [bool; 2]) -> BTreeMap<NodeId, Sibling> {
    let sibling = |reachable| Sibling { address: "127.0.0.1:1".to_owned(), reachable };
    BTreeMap::from([(node(2), sibling(reachable[0])), (node(3), sibling(reachable[1]))])
}

fn missing(count: u8) -> Vec<ChunkId> {
    (0..count).map(|at| ChunkId::from_bytes([at; 32])).collect()
}

#[test]
fn missing_chunks_are_asked_of_siblings_that_are_there_and_evenly() {
    let missing = missing(100);
    let Plan { asked, rest } = plan(&layout(), node(1), &siblings([true, true]), &missing, 0);
    assert_eq!((asked[&node(2)].len(), asked[&node(3)].len()), (50, 50));
    assert_eq!(rest, None);

    let Plan { asked, rest } = plan(&layout(), node(1), &siblings([false, true]), &missing, 0);
    assert_eq!(asked, BTreeMap::from([(node(3), missing[..PULLS_PER_CALL].to_vec())]));
    assert_eq!(rest, Some(missing[PULLS_PER_CALL]), "the next round begins with it");

    // Nobody asks themselves, and nobody is asked where nobody is.
    let nobody = Plan { asked: BTreeMap::new(), rest: None };
    assert_eq!(plan(&layout(), node(1), &siblings([false, false]), &missing, 0), nobody);
    assert_eq!(plan(&layout(), node(1), &BTreeMap::new(), &missing, 0), nobody);
}

/// Otherwise two nodes that both lack a chunk could ask each other for ever, beside a third that has
/// it.
#[test]
fn each_pass_asks_another_holder_for_the_same_chunk() {
    for chunk in missing(9) {
        let asked = [usize::MAX, 0, 1].map(|pass| {
            let plan = plan(&layout(), node(1), &siblings([true, true]), &[chunk], pass);
            *plan.asked.keys().next().unwrap()
        });
        assert_ne!(asked[0], asked[1]);
        assert_ne!(asked[1], asked[2]);
    }
}

/// Chunks that nobody has must not keep those behind them from being asked for.
#[test]
fn rounds_go_through_all_that_is_missing() {
    let all = missing(250);
    let (mut left, mut rounds) = (&all[..], Vec::new());
    loop {
        let Plan { asked, rest } = plan(&layout(), node(1), &siblings([true, true]), left, 7);
        assert!(asked.values().all(|chunks| chunks.len() <= PULLS_PER_CALL));
        rounds.extend(asked.into_values().flatten());
        let Some(rest) = rest else { break };
        left = &left[left.iter().position(|chunk| *chunk == rest).unwrap()..];
    }
    rounds.sort_unstable();
    assert_eq!(rounds, all);
}
