//! Overlays over tables are the tables they will be: reading through any number of them gives what
//! writing their changes gives.

use coffer_metadata_core::{MemoryTables, Overlay, Table, Tables};
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Change {
    Put(Table, Vec<u8>, u8),
    Delete(Table, Vec<u8>),
}

const TABLES: [Table; 3] = [Table::Entries, Table::Trash, Table::Heads];

fn table() -> impl Strategy<Value = Table> {
    prop::sample::select(&TABLES[..])
}

/// Few and short keys, so that they meet; some at the very ends of the order.
fn bytes() -> impl Strategy<Value = Vec<u8>> {
    let byte = prop::sample::select(&[0u8, 1, 2, 0xfe, 0xff][..]);
    prop::collection::vec(byte, 0..4)
}

fn changes() -> impl Strategy<Value = Vec<Change>> {
    let change = prop_oneof![
        2 => (table(), bytes(), any::<u8>()).prop_map(|(table, key, value)| Change::Put(table, key, value)),
        1 => (table(), bytes()).prop_map(|(table, key)| Change::Delete(table, key)),
    ];
    prop::collection::vec(change, 0..25)
}

fn put<T: Tables>(overlay: &mut Overlay<T>, changes: &[Change]) {
    for change in changes {
        match change {
            Change::Put(table, key, value) => overlay.put(*table, key, vec![*value]),
            Change::Delete(table, key) => overlay.delete(*table, key),
        }
    }
}

fn written(mut tables: MemoryTables, changes: &[Change]) -> MemoryTables {
    let mut overlay = Overlay::new(MemoryTables::default());
    put(&mut overlay, changes);
    tables.write(overlay.into_changes());
    tables
}

/// What a scan means, said as simply as possible.
fn scanned(
    tables: &MemoryTables,
    table: Table,
    from: &[u8],
    to: &[u8],
    limit: usize,
) -> Vec<(Vec<u8>, Vec<u8>)> {
    tables
        .rows()
        .filter(|(at, key, _)| *at == table && *key >= from && *key < to)
        .take(limit)
        .map(|(_, key, value)| (key.to_vec(), value.to_vec()))
        .collect()
}

proptest! {
    #[test]
    fn an_overlay_reads_as_if_it_were_written(
        layers in prop::collection::vec(changes(), 1..4),
        scans in prop::collection::vec((table(), bytes(), bytes(), 0usize..6), 1..12),
        keys in prop::collection::vec((table(), bytes()), 1..12),
    ) {
        let base = written(MemoryTables::default(), &layers[0]);
        let empty = Vec::new();
        let (second, third) = (layers.get(1).unwrap_or(&empty), layers.get(2).unwrap_or(&empty));
        let expected = written(written(base.clone(), second), third);

        let mut below = Overlay::new(&base);
        put(&mut below, second);
        let mut above = Overlay::new(&below);
        put(&mut above, third);
        for (table, from, to, limit) in &scans {
            for limit in [*limit, usize::MAX] {
                let rows = scanned(&expected, *table, from, to, limit);
                prop_assert_eq!(above.scan(*table, from, to, limit).unwrap(), rows.clone());
                prop_assert_eq!(expected.scan(*table, from, to, limit).unwrap(), rows);
            }
        }
        for (table, key) in &keys {
            prop_assert_eq!(above.get(*table, key).unwrap(), expected.get(*table, key).unwrap());
        }
        // Taken over by the one below, and then written, it is the same.
        let changes = above.into_changes();
        below.merge(changes);
        let changes = below.into_changes();
        let mut tables = base.clone();
        tables.write(changes);
        prop_assert_eq!(tables, expected);
    }
}

#[test]
fn what_is_dropped_never_happened() {
    let mut tables = MemoryTables::default();
    let mut overlay = Overlay::new(&tables);
    overlay.put(Table::Meta, b"key", vec![1]);
    let changes = overlay.into_changes();
    tables.write(changes);
    let before = tables.clone();
    let mut overlay = Overlay::new(&tables);
    overlay.delete(Table::Meta, b"key");
    assert_eq!(overlay.get(Table::Meta, b"key").unwrap(), None);
    drop(overlay);
    assert_eq!(tables, before);
}

/// The numbers and names are part of the format on disk.
#[test]
fn every_table_is_named_once() {
    let mut names: Vec<&str> = Table::ALL.iter().map(|table| table.name()).collect();
    for (number, table) in (0u8..).zip(Table::ALL) {
        assert_eq!(table as u8, number);
    }
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), Table::ALL.len());
}
