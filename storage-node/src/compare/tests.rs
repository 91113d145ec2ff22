//! Tests of what is made of a member's rows. Proofs and whole sweeps are tested with whole nodes, in
//! `run/tests.rs`.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use super::*;
use crate::kit::{START, chunk, ids, open};
use crate::store::platter::{Dice, Platter};

fn id(number: u8) -> ChunkId {
    ChunkId::from_bytes([number; 32])
}

fn as_bytes(chunk: ChunkId) -> Bytes {
    Bytes::copy_from_slice(chunk.as_bytes())
}

fn answer(rows: &[u8], end: Option<u8>) -> wire::ReadRowsResponse {
    let row = |number: &u8| wire::FeedRow { chunk_id: as_bytes(id(*number)), length: 0 };
    wire::ReadRowsResponse {
        rows: rows.iter().map(row).collect(),
        next_chunk: end.map(|end| as_bytes(id(end))).unwrap_or_default(),
        log_time_ms: 1,
        feed_position: 5,
        layout_version: 2,
    }
}

/// Otherwise a member could have a node go in circles, or take what it holds for surplus.
#[test]
fn rows_that_do_not_go_on_from_the_last_answer_are_no_answer() {
    for (rows, end, after, is_good) in [
        (&[1, 2, 9][..], Some(9), None, true),
        (&[][..], None, None, true),
        (&[][..], None, Some(4), true),
        (&[5][..], Some(7), Some(4), true),
        (&[1, 1][..], None, None, false),
        (&[2, 1][..], None, None, false),
        (&[4][..], None, Some(4), false),
        (&[3][..], None, Some(4), false),
        (&[8][..], Some(7), None, false),
        (&[][..], Some(4), Some(4), false),
        (&[][..], Some(3), Some(4), false),
    ] {
        let page = Page::parse(&answer(rows, end), after.map(id).as_ref());
        assert_eq!(page.is_some(), is_good, "{rows:?} up to {end:?} after {after:?}");
    }
    let broken = Bytes::from_static(b"short");
    let next_chunk = wire::ReadRowsResponse { next_chunk: broken.clone(), ..answer(&[], None) };
    assert_eq!(Page::parse(&next_chunk, None), None);
    let mut row = answer(&[1], None);
    row.rows[0].chunk_id = broken;
    assert_eq!(Page::parse(&row, None), None);
}

fn page(rows: Vec<ChunkId>, end: Option<ChunkId>, position: u64, layout: u64) -> Page {
    Page { rows, end, position, layout }
}

/// A proof holds for one layout, and for the position of the first answer.
#[test]
fn a_sweep_begins_anew_with_another_layout_and_does_not_go_back() {
    let mut sweep = Sweep::default();
    let step =
        |sweep: &mut Sweep, position, layout| sweep.step(&page(Vec::new(), None, position, layout));
    assert_eq!(step(&mut sweep, 10, 3), Step::Compare);
    assert_eq!(step(&mut sweep, 12, 3), Step::Compare);
    assert_eq!(step(&mut sweep, 9, 3), Step::Behind);
    assert_eq!(step(&mut sweep, 10, 3), Step::Compare);
    assert_eq!(sweep.began, Some(Proven { layout: 3, position: 10 }));
    assert_eq!(step(&mut sweep, 20, 4), Step::Anew);
    assert_eq!(step(&mut sweep, 20, 2), Step::Anew);
}

#[test]
fn what_is_lacking_is_remembered_up_to_a_bound() {
    let mut sweep = Sweep::default();
    let some = vec![id(1); AWAITED_MAX / 2];
    sweep.lacks(&some);
    sweep.lacks(&some);
    assert_eq!((sweep.lacking.len(), sweep.lacks_too_much), (AWAITED_MAX, false));
    sweep.lacks(&some[..1]);
    sweep.lacks(&[]);
    assert_eq!((sweep.lacking.len(), sweep.lacks_too_much), (0, true));
}

/// Goal: rows and index are compared whole, however both are cut into pieces. Method: random rows and
/// chunks, random answers, and sets that are computed at once.
#[test]
fn comparing_finds_all_that_is_missing_surplus_or_needed_no_more() {
    for seed in 1..=40_u64 {
        let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let index = tempfile::tempdir().unwrap();
        let opened = open(Platter::default(), index.path(), 1 << 20);
        let pool: Vec<_> = (0..40).map(|name| chunk(name, 20)).collect();
        let mut some = |one_in: u64| -> Vec<_> {
            pool.iter().filter(|_| dice.below(one_in) == 0).cloned().collect()
        };
        let (held, rows, was_missing, was_surplus) = (some(2), some(2), some(4), some(4));
        opened.put(&held, START).unwrap();
        let set = |chunks: &[_]| -> BTreeSet<ChunkId> { ids(chunks).into_iter().collect() };
        let (held, rows) = (set(&held), set(&rows));
        // Left over from before; the feed was followed up to 7.
        let absent: Vec<_> = set(&was_missing).difference(&held).copied().collect();
        opened.store.take_up(&absent, &ids(&was_surplus), 1, Some(7)).unwrap();
        let all: Vec<ChunkId> = rows.iter().copied().collect();
        let mut after = None;
        let mut lacking = Vec::new();
        loop {
            let from = all.partition_point(|row| after.is_some_and(|after| *row <= after));
            let to = all.len().min(from + usize::try_from(dice.below(12)).unwrap() + 1);
            let end = (to < all.len()).then(|| all[to - 1]);
            let page = page(all[from..to].to_vec(), end, 7, 1);
            lacking.extend(compare(&opened.store, after, &page).unwrap());
            after = end;
            if after.is_none() {
                break;
            }
        }
        let expected: Vec<ChunkId> = rows.difference(&held).copied().collect();
        assert_eq!(opened.missing(), expected, "seed {seed}");
        assert_eq!(lacking, expected, "seed {seed}");
        let surplus = opened.store.index().surplus(None, 1000).unwrap();
        let expected: Vec<ChunkId> = held.difference(&rows).copied().collect();
        assert_eq!(surplus, expected, "seed {seed}");
        opened.close();
    }
}

/// Goal: what the feed has named since an answer was made is not forgotten as needed no more.
#[test]
fn an_answer_says_nothing_of_rows_that_are_newer() {
    let index = tempfile::tempdir().unwrap();
    let opened = open(Platter::default(), index.path(), 1 << 20);
    let missing = [id(1), id(2)];
    opened.store.take_up(&missing, &[], 1, Some(8)).unwrap();
    compare(&opened.store, None, &page(Vec::new(), None, 7, 1)).unwrap();
    assert_eq!(opened.missing(), missing);
    compare(&opened.store, None, &page(vec![id(2)], None, 8, 1)).unwrap();
    assert_eq!(opened.missing(), [id(2)]);
    opened.close();
}

/// A chunk that came is waited for until it was read back.
#[test]
fn what_came_and_was_not_read_back_is_lacking() {
    let index = tempfile::tempdir().unwrap();
    let opened = open(Platter::default(), index.path(), 1 << 20);
    let a = chunk(1, 100);
    opened.store.take_up(&[a.id()], &[], 1, None).unwrap();
    opened.put(std::slice::from_ref(&a), START).unwrap();
    let rows = page(vec![a.id()], None, 7, 1);
    assert_eq!(compare(&opened.store, None, &rows).unwrap(), [a.id()]);
    assert_eq!(opened.missing(), [a.id()], "nor does a report leave it out");
    assert_eq!(opened.store.verify_missing(&[a.id()]).unwrap(), 1);
    assert_eq!(compare(&opened.store, None, &rows).unwrap(), []);
    assert_eq!(opened.missing(), []);
    opened.close();
}
