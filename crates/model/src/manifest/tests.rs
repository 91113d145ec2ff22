#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

use proptest::prelude::*;

use super::*;

fn chunk(seed: u64) -> Slot {
    let id = *blake3::hash(&seed.to_le_bytes()).as_bytes();
    Slot::Chunk(SlotChunk {
        chunk: ChunkId::from_bytes(id),
        length: 7,
        write: WriteId::from_bytes([1; 16]),
        generation: 0,
        scheme: Redundancy::Replicas,
    })
}

/// A manifest kept beside the plain list it stands for.
#[derive(Default)]
struct Pair {
    pages: BTreeMap<Hash, Vec<u8>>,
    root: Root,
    slots: Vec<Slot>,
}

impl Pair {
    fn change(&mut self, length: u64, changes: &[(u64, Slot)]) -> usize {
        let old = self.slots.len() as u64;
        let changed = change(&self.pages, self.root, old, length, changes).unwrap();
        let written = changed.pages.iter().map(|(_, bytes)| bytes.len()).sum();
        assert!(changed.pages.iter().all(|(_, bytes)| bytes.len() <= PAGE_BYTES_MAX));
        self.pages.extend(changed.pages);
        self.root = changed.root;
        self.slots.resize(length as usize, Slot::Hole);
        for (slot, content) in changes {
            self.slots[*slot as usize] = *content;
        }
        written
    }

    fn check(&self) {
        let length = self.slots.len() as u64;
        let read = read(&self.pages, self.root, length, 0, length).unwrap();
        let expected: Vec<(u64, SlotChunk)> = (0..)
            .zip(&self.slots)
            .filter_map(|(slot, content)| match content {
                Slot::Hole => None,
                Slot::Chunk(chunk) => Some((slot, *chunk)),
            })
            .collect();
        assert_eq!(read, expected);
        // However it came about, the same slots have the same root.
        let all: Vec<(u64, Slot)> = (0..).zip(self.slots.iter().copied()).collect();
        let mut fresh = Pair::default();
        let mut done = 0;
        for part in all.chunks(CHANGES_MAX) {
            done += part.len() as u64;
            fresh.change(done, part);
        }
        assert_eq!(fresh.root, self.root);
    }
}

proptest! {
    #[test]
    fn any_changes_give_the_root_of_the_slots_they_lead_to(
        steps in proptest::collection::vec(
            (0u64..9000, proptest::collection::btree_map(0u64..9000, proptest::option::of(any::<u64>()), 0..12)),
            1..6,
        )
    ) {
        let mut pair = Pair::default();
        for (length, changes) in steps {
            let changes: Vec<(u64, Slot)> = changes
                .into_iter()
                .filter(|(slot, _)| *slot < length)
                .map(|(slot, seed)| (slot, seed.map_or(Slot::Hole, chunk)))
                .collect();
            pair.change(length, &changes);
        }
        pair.check();
    }

    #[test]
    fn a_range_reads_what_lies_in_it(from in 0u64..5000, count in 0u64..300) {
        let mut pair = Pair::default();
        let all: Vec<(u64, Slot)> = (0..5000).map(|slot| (slot, chunk(slot))).collect();
        pair.change(5000, &all);
        let part = read(&pair.pages, pair.root, 5000, from, from + count).unwrap();
        let slots: Vec<u64> = part.iter().map(|(slot, _)| *slot).collect();
        prop_assert_eq!(slots, (from..(from + count).min(5000)).collect::<Vec<_>>());
    }

    #[test]
    fn no_bytes_make_a_page_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = Page::parse(&bytes);
    }
}

#[test]
fn one_changed_slot_costs_one_page_a_level() {
    let mut pair = Pair::default();
    let all: Vec<(u64, Slot)> = (0..8192).map(|slot| (slot, chunk(slot))).collect();
    pair.change(8192, &all);
    let written = pair.change(8192, &[(4096, chunk(1))]);
    assert!(written <= 3 * PAGE_BYTES_MAX, "{written} bytes of pages");
    pair.check();
}

#[test]
fn changes_out_of_order_or_beyond_the_end_are_refused() {
    let pages = BTreeMap::new();
    for changes in [
        vec![(5, chunk(1))],
        vec![(2, chunk(1)), (2, chunk(2))],
        vec![(3, chunk(1)), (1, chunk(2))],
    ] {
        assert_eq!(change(&pages, None, 0, 5, &changes), Err(ManifestError::Changes));
    }
}

#[test]
fn pages_that_are_alike_are_listed_once() {
    let alike: Vec<(u64, Slot)> = (0..64 * 3).map(|slot| (slot, chunk(slot % 64))).collect();
    let changed = change(&BTreeMap::new(), None, 0, 64 * 3, &alike).unwrap();
    assert_eq!(changed.pages.len(), 2, "one leaf page, named three times by the root");
    // A rewrite of what is there writes no page but those on its path.
    let pages: BTreeMap<Hash, Vec<u8>> = changed.pages.into_iter().collect();
    let again = change(&pages, changed.root, 64 * 3, 64 * 3, &alike[64..65]).unwrap();
    assert_eq!((again.root, again.pages.len()), (changed.root, 2));
}

#[test]
fn a_base_with_a_missing_or_misplaced_page_is_said_to_be_so() {
    let all: Vec<(u64, Slot)> = (0..200).map(|slot| (slot, chunk(slot))).collect();
    let changed = change(&BTreeMap::new(), None, 0, 200, &all).unwrap();
    let root = changed.root.unwrap();
    let mut pages: BTreeMap<Hash, Vec<u8>> = changed.pages.into_iter().collect();
    // The same pages under a slot count of another height.
    let one = [(0, chunk(1))];
    assert_eq!(change(&pages, Some(root), 60, 60, &one), Err(ManifestError::Misplaced(root)));
    assert_eq!(read(&pages, Some(root), 60, 0, 60), Err(ManifestError::Misplaced(root)));
    pages.remove(&root);
    assert_eq!(change(&pages, Some(root), 200, 200, &one), Err(ManifestError::MissingPage(root)));
    assert_eq!(read(&pages, Some(root), 200, 0, 1), Err(ManifestError::MissingPage(root)));
    assert_eq!(change(&pages, None, SLOTS_MAX, SLOTS_MAX + 1, &[]), Err(ManifestError::TooLong));
    // The highest tree there is.
    let last = [(SLOTS_MAX - 1, chunk(1))];
    let high = change(&BTreeMap::new(), None, 0, SLOTS_MAX, &last).unwrap();
    assert_eq!(high.pages.len(), 7);
    let pages: BTreeMap<Hash, Vec<u8>> = high.pages.into_iter().collect();
    let found = read(&pages, high.root, SLOTS_MAX, SLOTS_MAX - 64, u64::MAX).unwrap();
    assert_eq!(found.iter().map(|(slot, _)| *slot).collect::<Vec<_>>(), [SLOTS_MAX - 1]);
}
