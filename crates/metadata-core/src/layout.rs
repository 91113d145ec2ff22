//! The layout planner: a pure function from storage nodes to a layout.

use coffer_model::descriptor::StorageNode;
use coffer_model::layout::{Layout, LayoutError, PARTITION_BITS, REPLICAS};

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

#[cfg(test)]
mod tests {
    use coffer_model::id::NodeId;
    use coffer_model::layout::Partition;
    use coffer_model::signing::PublicKey;

    use super::*;

    fn node(number: u8, zone: &str, weight: u32) -> StorageNode {
        let key = PublicKey::from_bytes([number; 32]);
        StorageNode { id: NodeId::from_bytes([number; 16]), key, zone: zone.to_owned(), weight }
    }

    #[test]
    fn copies_are_spread_over_zones_and_by_weight() {
        let nodes: Vec<StorageNode> = (0..6)
            .map(|number| {
                node(number, ["a", "b", "c"][usize::from(number % 3)], 1 + u32::from(number / 3))
            })
            .collect();
        let layout = first(&nodes).expect("six nodes make a layout");
        let mut counts = [0u64; 6];
        for partition in 0..4096 {
            let holders: Vec<NodeId> = layout.holders(Partition::from_number(partition)).collect();
            assert_eq!(holders.len(), 3);
            let mut zones: Vec<u8> = holders.iter().map(|id| id.as_bytes()[0] % 3).collect();
            zones.sort_unstable();
            assert_eq!(zones, [0, 1, 2], "partition {partition}");
            for holder in holders {
                counts[usize::from(holder.as_bytes()[0])] += 1;
            }
        }
        for at in 0..3 {
            let (light, heavy) = (counts[at], counts[at + 3]);
            assert!(heavy.abs_diff(2 * light) <= 4, "{counts:?}");
        }
    }

    #[test]
    fn one_node_is_a_layout_with_one_copy_and_none_is_refused() {
        let layout = first(&[node(1, "", 1)]).expect("one node");
        assert_eq!(layout.holders(Partition::from_number(7)).count(), 1);
        assert!(first(&[]).is_err());
    }
}
