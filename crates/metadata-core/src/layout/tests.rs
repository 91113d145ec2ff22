use coffer_model::id::NodeId;
use coffer_model::layout::Partition;
use coffer_model::signing::PublicKey;
use proptest::prelude::*;

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

// -- the next layout ------------------------------------------------------------------------------

/// A layout of 2^10 partitions, so that the tests are quick.
fn small(nodes: &[StorageNode]) -> Layout {
    plan(1, 10, nodes).expect("there are nodes")
}

fn loads(layout: &Layout, nodes: &[StorageNode]) -> Vec<usize> {
    let holds = |node: &StorageNode| {
        layout.partitions().filter(|partition| layout.holds(node.id, *partition)).count()
    };
    nodes.iter().map(holds).collect()
}

/// What each node should hold, by a slow and plain way: pour a little into every vessel that is not
/// full, until all is poured.
fn expected(nodes: &[StorageNode], partitions: usize) -> Vec<f64> {
    let weighty = nodes.iter().filter(|node| node.weight > 0);
    let mut zones: Vec<&str> = weighty.clone().map(|node| node.zone.as_str()).collect();
    let copies = zones.len().min(3);
    zones.sort_unstable();
    zones.dedup();
    let partitions = partitions as f64;
    let zone_room = (1 + copies.saturating_sub(zones.len())) as f64 * partitions;
    let total: f64 = weighty.map(|node| f64::from(node.weight)).sum();
    let mut poured = vec![0.0; nodes.len()];
    let mut rest = copies as f64 * partitions;
    while rest > 0.5 {
        let before = rest;
        for at in 0..nodes.len() {
            let in_zone: f64 = (0..nodes.len())
                .filter(|other| nodes[*other].zone == nodes[at].zone)
                .map(|other| poured[other])
                .sum();
            let room = (partitions - poured[at]).min(zone_room - in_zone).max(0.0);
            let drop = (f64::from(nodes[at].weight) / total * partitions / 200.0).min(room);
            poured[at] += drop;
            rest -= drop;
        }
        assert!(rest < before, "there is room");
    }
    poured
}

/// Checks everything that is promised of a next layout but how much moves.
fn check(current: &Layout, nodes: &[StorageNode]) -> Layout {
    let layout = next(current, nodes).expect("there are nodes");
    let mut reversed = nodes.to_vec();
    reversed.reverse();
    assert_eq!(layout, next(current, &reversed).expect("there are nodes"), "in another order");
    assert_eq!(layout.version(), current.version() + 1);
    assert_eq!(layout.partition_bits(), current.partition_bits());
    let weighty: Vec<&StorageNode> = nodes.iter().filter(|node| node.weight > 0).collect();
    let zone = |id: NodeId| {
        let node = weighty.iter().find(|node| node.id == id);
        node.expect("only nodes with a weight hold anything").zone.as_str()
    };
    let mut zones: Vec<&str> = weighty.iter().map(|node| node.zone.as_str()).collect();
    zones.sort_unstable();
    zones.dedup();
    let copies = weighty.len().min(3);
    for partition in layout.partitions() {
        let mut of_row: Vec<&str> = layout.holders(partition).map(zone).collect();
        assert_eq!(of_row.len(), copies);
        of_row.sort_unstable();
        of_row.dedup();
        assert_eq!(of_row.len(), copies.min(zones.len()), "partition {}", partition.number());
    }
    let partitions = layout.partitions().count();
    let loads = loads(&layout, nodes);
    for (at, expected) in expected(nodes, partitions).iter().enumerate() {
        let off = (loads[at] as f64 - expected).abs();
        let tolerance = nodes.len() as f64 + partitions as f64 / 100.0;
        assert!(off <= tolerance, "node {at} holds {} of {expected}: {nodes:?}", loads[at]);
    }
    layout
}

/// How many copies have to move at least for the loads to become what they are, by a slow and plain
/// way: a flow from nodes over zones to partitions in which a copy that stays is free, made cheaper
/// path by path.
fn least(current: &Layout, next: &Layout, nodes: &[StorageNode]) -> usize {
    let zones: Vec<&str> = nodes.iter().map(|node| node.zone.as_str()).collect();
    let mut names = zones.clone();
    names.sort_unstable();
    names.dedup();
    let mut in_use: Vec<&str> =
        nodes.iter().filter(|node| node.weight > 0).map(|node| node.zone.as_str()).collect();
    let copies = in_use.len().min(3);
    in_use.sort_unstable();
    in_use.dedup();
    let in_zone = 1 + copies.saturating_sub(in_use.len());
    let partitions: Vec<Partition> = next.partitions().collect();
    // 0 is the source, 1 the sink; then the nodes, the partitions, and each partition's zones.
    let (first_partition, first_zone) = (2 + nodes.len(), 2 + nodes.len() + partitions.len());
    let mut flow = Flow::new(first_zone + partitions.len() * names.len());
    let loads = loads(next, nodes).into_iter().enumerate();
    let of_node: Vec<usize> = loads.map(|(at, load)| flow.edge(0, 2 + at, load, 0)).collect();
    for (number, partition) in partitions.iter().enumerate() {
        let of_partition = flow.edge(first_partition + number, 1, copies, 0);
        for zone in 0..names.len() {
            let vertex = first_zone + number * names.len() + zone;
            let of_zone = flow.edge(vertex, first_partition + number, in_zone, 0);
            for (at, node) in nodes.iter().enumerate() {
                if node.zone == names[zone] {
                    let stays = current.holds(node.id, *partition);
                    let edge = flow.edge(2 + at, vertex, 1, i32::from(!stays));
                    if stays {
                        // What is free is a flow of least cost, from which the paths go on.
                        flow.push(&[of_node[at], edge, of_zone, of_partition]);
                    }
                }
            }
        }
    }
    flow.least_cost()
}

/// A flow of least cost, by shortest paths one after the other.
struct Flow {
    /// Of each vertex, its edges.
    out: Vec<Vec<usize>>,
    /// Where to, how much room, and at what cost; each edge stands beside its way back.
    edges: Vec<(usize, usize, i32)>,
}

impl Flow {
    fn new(vertices: usize) -> Self {
        Self { out: vec![Vec::new(); vertices], edges: Vec::new() }
    }

    fn edge(&mut self, from: usize, to: usize, room: usize, cost: i32) -> usize {
        self.out[from].push(self.edges.len());
        self.edges.push((to, room, cost));
        self.out[to].push(self.edges.len());
        self.edges.push((from, 0, -cost));
        self.edges.len() - 2
    }

    /// One unit along a path, if there is room.
    fn push(&mut self, path: &[usize]) {
        if path.iter().all(|edge| self.edges[*edge].1 > 0) {
            for edge in path {
                self.edges[*edge].1 -= 1;
                self.edges[*edge ^ 1].1 += 1;
            }
        }
    }

    fn least_cost(mut self) -> usize {
        let mut total = 0;
        loop {
            let mut distances = vec![i32::MAX; self.out.len()];
            let mut by = vec![usize::MAX; self.out.len()];
            let mut waiting = std::collections::VecDeque::from([0]);
            distances[0] = 0;
            while let Some(at) = waiting.pop_front() {
                for edge in &self.out[at] {
                    let (to, room, cost) = self.edges[*edge];
                    if room > 0 && distances[at] + cost < distances[to] {
                        distances[to] = distances[at] + cost;
                        by[to] = *edge;
                        // What became cheaper is looked at first: such paths are short.
                        waiting.push_front(to);
                    }
                }
            }
            if distances[1] == i32::MAX {
                return usize::try_from(total).expect("nothing costs less than nothing");
            }
            total += distances[1];
            let (mut path, mut at) = (Vec::new(), 1);
            while at != 0 {
                path.push(by[at]);
                at = self.edges[by[at] ^ 1].0;
            }
            self.push(&path);
        }
    }
}

fn cluster() -> impl Strategy<Value = Vec<StorageNode>> {
    let zone = prop::sample::select(&["a", "b", "c", "d"][..]);
    let weight = prop_oneof![4 => 1u32..4, 1 => Just(0), 1 => 1u32..1000];
    (1u8..5, prop::collection::vec((zone, weight), 1..9)).prop_map(|(zones, nodes)| {
        let mut nodes: Vec<StorageNode> = (1u8..)
            .zip(nodes)
            .map(|(number, (zone, weight))| {
                let zone = if zone.as_bytes()[0] < b'a' + zones { zone } else { "a" };
                node(number, zone, weight)
            })
            .collect();
        if nodes.iter().all(|node| node.weight == 0) {
            nodes[0].weight = 1;
        }
        nodes
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn whatever_the_nodes_become_the_next_layout_fits_them(
        before in cluster(),
        changes in prop::collection::vec(cluster(), 1..3),
    ) {
        let mut layout = small(&before);
        for nodes in &changes {
            layout = check(&layout, nodes);
        }
    }

    /// One node comes, goes, or gets another weight: what moves is what has to, not one copy more.
    #[test]
    fn only_what_has_to_moves_when_one_node_changes(
        nodes in cluster(),
        which in any::<prop::sample::Index>(),
        zone in prop::sample::select(&["a", "b", "c", "d", "e"][..]),
        weight in 0u32..4,
    ) {
        let current = check(&small(&nodes), &nodes);
        let mut joined = nodes.clone();
        joined.push(node(100, zone, weight.max(1)));
        let mut left = nodes.clone();
        left.remove(which.index(nodes.len()));
        let mut weighed = nodes.clone();
        weighed[which.index(nodes.len())].weight = weight;
        for changed in [joined, left, weighed] {
            if changed.iter().all(|node| node.weight == 0) {
                continue;
            }
            let next = check(&current, &changed);
            let moved = movement(&current, &next);
            assert!(moved.partitions <= moved.copies);
            assert_eq!(moved.copies as usize, least(&current, &next, &changed), "{changed:?}");
        }
    }
}

#[test]
fn where_nothing_changes_nothing_moves() {
    let nodes: Vec<StorageNode> = (1..=5).map(|number| node(number, "", 2)).collect();
    let current = check(&small(&nodes), &nodes);
    assert_eq!(movement(&current, &check(&current, &nodes)), Movement::default());
}

/// Without zones, exactly what the new node holds moves, and exactly what the lost one held.
#[test]
fn a_node_that_comes_or_goes_moves_its_own_share_only() {
    let nodes: Vec<StorageNode> = (1..=4).map(|number| node(number, "", 1)).collect();
    let three = small(&nodes[..3]);
    let four = check(&three, &nodes);
    assert_eq!(loads(&four, &nodes), [768; 4]);
    assert_eq!(movement(&three, &four), Movement { partitions: 768, copies: 768 });
    let back = check(&four, &nodes[..3]);
    assert_eq!(movement(&four, &back), Movement { partitions: 768, copies: 768 });
    assert_eq!(loads(&back, &nodes), [1024, 1024, 1024, 0]);
}

#[test]
fn copies_come_back_when_nodes_do() {
    let nodes: Vec<StorageNode> = (1..=3).map(|number| node(number, "", 1)).collect();
    let mut layout = small(&nodes[..1]);
    for count in [1, 2, 3, 2, 1] {
        layout = check(&layout, &nodes[..count]);
        assert_eq!(loads(&layout, &nodes[..count]), vec![1024; count]);
    }
    assert!(next(&layout, &[]).is_err());
    assert!(next(&layout, &[node(1, "", 0)]).is_err());
}

#[test]
fn each_node_comes_first_in_its_share() {
    let nodes: Vec<StorageNode> = (1..=4).map(|number| node(number, "", 1)).collect();
    let layout = check(&small(&nodes[..3]), &nodes);
    for node in &nodes {
        let first = |partition| layout.holders(partition).next() == Some(node.id);
        let firsts = layout.partitions().filter(|partition| first(*partition)).count();
        assert!(firsts.abs_diff(256) <= 16, "{firsts}");
    }
}
