//! Tests of what is asked of whom. The loop itself is tested with whole nodes, in `run/tests.rs`.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use super::*;
use crate::kit;

fn node(number: u8) -> NodeId {
    NodeId::from_bytes([number; 16])
}

/// Three nodes that hold everything.
fn layout() -> [Layout; 1] {
    [kit::layout(1, &[node(1), node(2), node(3)])]
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

/// All nodes of `numbers`, and whether they are there.
fn there(numbers: &[u8]) -> BTreeMap<NodeId, Sibling> {
    let sibling = Sibling { address: "127.0.0.1:1".to_owned(), reachable: true };
    numbers.iter().map(|number| (node(*number), sibling.clone())).collect()
}

/// Goal: a chunk is looked for where it most likely is, and in the end everywhere. Method: a layout and
/// two former ones, and nodes that none of them names.
#[test]
fn holders_are_asked_first_then_former_ones_and_then_all_others_in_turns() {
    let layouts = [
        kit::layout(3, &[node(1), node(2), node(3)]),
        kit::layout(2, &[node(2), node(4), node(1)]),
        kit::layout(1, &[node(5)]),
    ];
    for chunk in missing(20) {
        let siblings = there(&[1, 2, 3, 4, 5, 6, 7, 8]);
        let asked: Vec<NodeId> = (0..15)
            .map(|pass| whom_to_ask(&layouts, node(1), &siblings, &chunk, pass).unwrap())
            .collect();
        let mut others = BTreeSet::new();
        for cycle in asked.chunks(5) {
            assert_eq!(BTreeSet::from([cycle[0], cycle[1]]), BTreeSet::from([node(2), node(3)]));
            assert_eq!(cycle[2..4], [node(4), node(5)], "the newest of the former ones first");
            others.insert(cycle[4]);
        }
        assert_eq!(others, BTreeSet::from([node(6), node(7), node(8)]));
        // Where no holder is there, others are asked at once.
        let asked = |pass| whom_to_ask(&layouts, node(1), &there(&[1, 6, 7]), &chunk, pass);
        assert_ne!(asked(0), asked(1));
        let siblings = there(&[1]);
        assert_eq!(whom_to_ask(&layouts, node(1), &siblings, &chunk, 0), None);
    }
}

#[test]
fn live_holders_are_those_of_all_layouts_but_this_node() {
    let layouts = [kit::layout(2, &[node(1), node(2)]), kit::layout(1, &[node(2), node(3)])];
    let chunk = missing(1)[0];
    for (siblings, expected) in
        [(&[][..], 0), (&[1, 4][..], 0), (&[1, 2][..], 1), (&[1, 2, 3, 4][..], 2)]
    {
        let found = live_holders(&layouts, node(1), &there(siblings), &chunk);
        assert_eq!(found, expected, "{siblings:?}");
    }
}

/// Goal: what is in the greatest danger comes first. Method: the turns of two passes.
#[test]
fn those_with_the_fewest_live_holders_have_the_first_turn() {
    let chunk = missing(1)[0];
    let mut turn = Turn::default();
    let mut turns = Vec::new();
    for _ in 0..2 * (HOLDERS_COUNTED_MAX + 1) {
        turn = turn.after(Some(chunk));
        turns.push((turn.pass, turn.holders, turn.from));
        turn = turn.after(None);
    }
    let expected: Vec<_> = (0..2)
        .flat_map(|pass| (0..=HOLDERS_COUNTED_MAX).map(move |holders| (pass, holders, Some(chunk))))
        .collect();
    assert_eq!(turns, expected);
}
