//! What storage nodes ask: what they should hold, and what they may forget.

use coffer_model::id::{ChunkId, NodeId};
use coffer_model::layout::{Layout, Partition};
use coffer_model::log::ChunkRow;
use coffer_model::share::ShareProof;

use crate::state::{Layouts, after_prefix, load, meta, parse, row_key};
use crate::tables::{Table, TableError, Tables};

/// The most ranges one answer of [`rows_of`] looks into: a node may hold tens of thousands of
/// partitions with nothing in them, or a chunk may stand in as many files.
const ROWS_SCANS_MAX: usize = 1024;

/// The layouts by which nodes hold chunks, once there is a cluster.
pub fn layouts(tables: &impl Tables) -> Result<Option<Layouts>, TableError> {
    Layouts::load(tables)
}

/// The last proof of every storage node, also those of layouts that are not in force any more.
pub fn proofs(tables: &impl Tables) -> Result<Vec<ShareProof>, TableError> {
    let rows = tables.scan(Table::Proofs, &[], &[u8::MAX; 17], usize::from(u16::MAX))?;
    rows.iter().map(|(_, value)| parse(Table::Proofs, value)).collect()
}

/// How many rows commits have made so far: the last feed position given.
pub fn feed_position(tables: &impl Tables) -> Result<u64, TableError> {
    Ok(load(tables, Table::Meta, meta::FEED)?.unwrap_or(0))
}

/// The rows of a node's partitions after a position, by any of the layouts, in order of commit; where
/// to go on, and whether there is more now.
pub fn feed(
    tables: &impl Tables,
    layouts: &[Layout],
    node: NodeId,
    after: u64,
    limit: usize,
) -> Result<(Vec<ChunkRow>, u64, bool), TableError> {
    let from = after.saturating_add(1).to_be_bytes();
    let scanned = tables.scan(Table::Feed, &from, &[u8::MAX; 9], limit)?;
    let more = scanned.len() == limit;
    let mut next = after;
    let mut rows = Vec::new();
    for (key, value) in scanned {
        let key: [u8; 8] = key
            .as_slice()
            .try_into()
            .map_err(|_| TableError("a feed position has 8 bytes".to_owned()))?;
        next = u64::from_be_bytes(key);
        let row: ChunkRow = parse(Table::Feed, &value)?;
        if holds(layouts, node, &row.chunk) {
            rows.push(row);
        }
    }
    Ok((rows, next, more))
}

/// The chunks of a node's partitions after a chunk, by any of the layouts, in order of their ids, each
/// once, with the first of its rows (whose length is what a user said: only the chunk itself proves
/// one); and up to where was looked, if that is not the end. What lies in other partitions is passed
/// over unread.
pub fn rows_of(
    tables: &impl Tables,
    layouts: &[Layout],
    node: NodeId,
    after: Option<&ChunkId>,
    limit: usize,
) -> Result<(Vec<ChunkRow>, Option<ChunkId>), TableError> {
    let mut from = after.map_or_else(Vec::new, |after| after_prefix(after.as_bytes()));
    let mut rows: Vec<ChunkRow> = Vec::new();
    let mut looked = after.copied();
    let mut scans = 0;
    for (first, last) in ranges(layouts, node) {
        let end = after_prefix(last.as_bytes());
        from = from.max(first.as_bytes().to_vec());
        while from < end {
            if scans == ROWS_SCANS_MAX || rows.len() >= limit.max(1) {
                return Ok((rows, looked));
            }
            scans += 1;
            let wanted = limit.max(1) - rows.len();
            let scanned = tables.scan(Table::Rows, &from, &end, wanted)?;
            let full = scanned.len() == wanted;
            for (_, value) in scanned {
                let row: ChunkRow = parse(Table::Rows, &value)?;
                // The other rows of the same chunk need not be read.
                from = after_prefix(row.chunk.as_bytes());
                looked = Some(row.chunk);
                if rows.last().is_none_or(|before| before.chunk != row.chunk) {
                    rows.push(row);
                }
            }
            if !full {
                break;
            }
        }
        looked = Some(last);
    }
    Ok((rows, None))
}

/// Those of the chunks that nothing needs at a node: no row names them; or no layout gives them to the
/// node, and whoever the layout in force gives them to has proven to hold them.
pub fn releasable(
    tables: &impl Tables,
    layouts: &Layouts,
    node: NodeId,
    chunks: &[ChunkId],
) -> Result<Vec<ChunkId>, TableError> {
    let mut free = Vec::new();
    for chunk in chunks {
        let named = row_after(tables, chunk, 0)?;
        if !named || (!holds(&layouts.layouts, node, chunk) && proven(tables, layouts, chunk)?) {
            free.push(*chunk);
        }
    }
    Ok(free)
}

/// Whether every node that the layout in force gives the chunk to has proven all of its rows.
fn proven(tables: &impl Tables, layouts: &Layouts, chunk: &ChunkId) -> Result<bool, TableError> {
    for holder in layouts.in_force().nodes_of(chunk) {
        let Some(position) = layouts.proven(tables, holder)? else { return Ok(false) };
        if row_after(tables, chunk, position)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Whether the chunk has a row after a feed position.
fn row_after(tables: &impl Tables, chunk: &ChunkId, after: u64) -> Result<bool, TableError> {
    let from = row_key(chunk, after.saturating_add(1));
    let end = after_prefix(chunk.as_bytes());
    Ok(!tables.scan(Table::Rows, &from, &end, 1)?.is_empty())
}

fn holds(layouts: &[Layout], node: NodeId, chunk: &ChunkId) -> bool {
    let gives = |layout: &Layout| layout.holds(node, Partition::of(chunk, layout.partition_bits()));
    layouts.iter().any(gives)
}

/// The first and the last possible chunk of each run of partitions that are a node's by any layout.
fn ranges(layouts: &[Layout], node: NodeId) -> Vec<(ChunkId, ChunkId)> {
    // A cluster's layouts all have the same partitions.
    let Some(layout) = layouts.first() else { return Vec::new() };
    let shift = 16 - layout.partition_bits();
    let mut ranges: Vec<(u16, u16)> = Vec::new();
    for partition in layout.partitions() {
        if !layouts.iter().any(|layout| layout.holds(node, partition)) {
            continue;
        }
        let number = partition.number();
        match ranges.last_mut() {
            Some((_, last)) if last.checked_add(1) == Some(number) => *last = number,
            _ => ranges.push((number, number)),
        }
    }
    let chunk = |prefix: u16, rest: u8| {
        let mut id = [rest; 32];
        id[..2].copy_from_slice(&prefix.to_be_bytes());
        ChunkId::from_bytes(id)
    };
    let low = |number: u16| number << shift;
    let high = |number: u16| low(number) | ((1u16 << shift) - 1);
    let bounds = |(first, last)| (chunk(low(first), 0), chunk(high(last), u8::MAX));
    ranges.into_iter().map(bounds).collect()
}
