//! The layout planner: pure functions from storage nodes to the first layout, and from a layout and
//! storage nodes to the next one. The result, not the plan, is what is signed, so these functions may
//! change between versions.

use coffer_model::descriptor::StorageNode;
use coffer_model::id::NodeId;
use coffer_model::layout::{Layout, LayoutError, PARTITION_BITS, REPLICAS};

mod moves;
mod shares;

/// Plans the first layout: every node gets partitions in proportion to its weight, no partition
/// twice, and the copies of a partition lie in as many zones as there are. With fewer nodes than
/// [`REPLICAS`] there are as many copies as nodes.
pub fn first(nodes: &[StorageNode]) -> Result<Layout, LayoutError> {
    plan(1, PARTITION_BITS, nodes)
}

fn plan(version: u64, bits: u8, nodes: &[StorageNode]) -> Result<Layout, LayoutError> {
    let mut nodes: Vec<&StorageNode> = nodes.iter().filter(|node| node.weight > 0).collect();
    nodes.sort_by_key(|node| node.id);
    let replicas = nodes.len().min(usize::from(REPLICAS));
    let partitions = 1usize << bits;
    let mut load = vec![0u64; nodes.len()];
    let mut table = Vec::with_capacity(partitions * replicas);
    for partition in 0..partitions {
        let mut row: Vec<usize> = Vec::with_capacity(replicas);
        for _ in 0..replicas {
            let used_zones: Vec<&str> = row.iter().map(|at| nodes[*at].zone.as_str()).collect();
            // The least loaded node for its weight, in a zone that has no copy yet where there is
            // one. The partition number breaks ties, so that first places rotate.
            let best = (0..nodes.len()).filter(|at| !row.contains(at)).min_by(|left, right| {
                let rank = |at: usize| {
                    let zone_used = used_zones.contains(&nodes[at].zone.as_str());
                    let turn = (at + nodes.len() - partition % nodes.len()) % nodes.len();
                    (zone_used, turn)
                };
                let (left_zone, left_turn) = rank(*left);
                let (right_zone, right_turn) = rank(*right);
                // load/weight compared without division
                let left_load = u128::from(load[*left]) * u128::from(nodes[*right].weight);
                let right_load = u128::from(load[*right]) * u128::from(nodes[*left].weight);
                (left_zone, left_load, left_turn).cmp(&(right_zone, right_load, right_turn))
            });
            let Some(best) = best else { break };
            load[best] += 1;
            row.push(best);
        }
        // Every node should come first in its share of partitions.
        let shift = partition / nodes.len().max(1) % row.len().max(1);
        row.rotate_left(shift);
        for at in row {
            table.push(u16::try_from(at).map_err(|_| LayoutError::Inconsistent("too many nodes"))?);
        }
    }
    let replicas =
        u8::try_from(replicas).map_err(|_| LayoutError::Inconsistent("too many replicas"))?;
    Layout::new(version, bits, replicas, nodes.iter().map(|node| node.id).collect(), table)
}

/// Plans the layout after `current`: as many copies as there can be, at most [`REPLICAS`]; each node has
/// partitions in proportion to its weight, those of weight 0 and those that are not listed none; the
/// copies of a partition lie in as many zones as there can be; and as few copies as possible move.
pub fn next(current: &Layout, nodes: &[StorageNode]) -> Result<Layout, LayoutError> {
    let mut nodes: Vec<&StorageNode> = nodes.iter().filter(|node| node.weight > 0).collect();
    nodes.sort_by_key(|node| node.id);
    let replicas = nodes.len().min(usize::from(REPLICAS));
    let ids: Vec<NodeId> = nodes.iter().map(|node| node.id).collect();
    let kept: Vec<Vec<usize>> = current
        .partitions()
        .map(|partition| {
            let holders = current.holders(partition);
            holders.filter_map(|holder| ids.binary_search(&holder).ok()).collect()
        })
        .collect();
    let rows = moves::plan(&nodes, replicas, kept);
    let index = |at| u16::try_from(at).map_err(|_| LayoutError::Inconsistent("too many nodes"));
    let table = rows.into_iter().flatten().map(index).collect::<Result<_, _>>()?;
    let replicas =
        u8::try_from(replicas).map_err(|_| LayoutError::Inconsistent("too many replicas"))?;
    let version = current.version().saturating_add(1);
    Layout::new(version, current.partition_bits(), replicas, ids, table)
}

/// What has to be copied to come from one layout to another.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Movement {
    /// Partitions that get a node they did not have.
    pub partitions: u32,
    /// Such nodes, over all partitions.
    pub copies: u32,
}

/// Says what has to be copied to come from `current` to `next`.
pub fn movement(current: &Layout, next: &Layout) -> Movement {
    let mut movement = Movement::default();
    for partition in next.partitions() {
        let new = next.holders(partition).filter(|holder| !current.holds(*holder, partition));
        let copies = u32::try_from(new.count()).unwrap_or(u32::MAX);
        movement.copies = movement.copies.saturating_add(copies);
        movement.partitions += u32::from(copies > 0);
    }
    movement
}

#[cfg(test)]
mod tests;
