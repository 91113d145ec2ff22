//! From the copies there are to the copies there shall be, with few moves.
//!
//! What cannot stay goes, what is missing goes where most is wanting, and then copies move from nodes
//! that hold more than their share to nodes that hold less: directly where a partition allows it, else
//! along chains and rings of nodes that each give one copy and get one, as long as there is one that
//! brings the loads nearer to the shares or saves a move. That is cycle cancelling for a flow of least
//! cost (Klein 1967), in which what goes back to where it was costs nothing.

use std::collections::BTreeSet;

use coffer_model::descriptor::StorageNode;

use super::shares::{Demand, shares};

/// A plan under way. Nodes are numbers; so are zones.
struct Plan {
    zones: Vec<usize>,
    zone_copies_max: usize,
    replicas: usize,
    /// The nodes of each partition.
    rows: Vec<Vec<usize>>,
    /// How many copies each node holds, and how many it should.
    loads: Vec<usize>,
    shares: Vec<usize>,
}

/// A copy of a partition that goes from a node to another.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Hop {
    partition: usize,
    old: usize,
    new: usize,
}

/// By pairs of nodes, row by row: a partition, and what the hop costs.
type Hops = Vec<Option<(usize, i64)>>;

/// The nodes of each partition, in order, from those of `kept` that it has now.
pub(super) fn plan(
    nodes: &[&StorageNode],
    replicas: usize,
    kept: Vec<Vec<usize>>,
) -> Vec<Vec<usize>> {
    let mut names: Vec<&str> = nodes.iter().map(|node| node.zone.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    let zones: Vec<usize> =
        nodes.iter().map(|node| names.partition_point(|name| *name < node.zone.as_str())).collect();
    // One copy for each zone, and the rest in any.
    let zone_copies_max = 1 + replicas.saturating_sub(names.len());
    let mut loads = vec![0; nodes.len()];
    for node in kept.iter().flatten() {
        loads[*node] += 1;
    }
    let weights: Vec<u32> = nodes.iter().map(|node| node.weight).collect();
    let shares = shares(&Demand {
        weights: &weights,
        zones: &zones,
        held: &loads,
        zone_copies_max,
        partitions: kept.len(),
        replicas,
    });
    let before = kept.clone();
    let mut plan = Plan { zones, zone_copies_max, replicas, rows: kept, loads, shares };
    plan.drop_surplus();
    plan.fill();
    plan.move_directly(|partition, node| !before[partition].contains(&node));
    plan.move_directly(|_, _| true);
    let mut barred = BTreeSet::new();
    while plan.improve(&before, &mut barred) {}
    plan.put_first(&before);
    plan.rows
}

impl Plan {
    /// How far a node is above its share, or below it.
    fn surplus(&self, node: usize) -> isize {
        self.loads[node].cast_signed() - self.shares[node].cast_signed()
    }

    fn copies_in_zone(&self, partition: usize, zone: usize) -> usize {
        self.rows[partition].iter().filter(|node| self.zones[**node] == zone).count()
    }

    /// Whether a partition may get a copy at `new`, in the place of the one at `old` if there is one.
    fn fits(&self, partition: usize, old: Option<usize>, new: usize) -> bool {
        let zone = self.zones[new];
        let freed = usize::from(old.is_some_and(|old| self.zones[old] == zone));
        !self.rows[partition].contains(&new)
            && self.copies_in_zone(partition, zone) - freed < self.zone_copies_max
    }

    fn replace(&mut self, partition: usize, old: usize, new: usize) {
        for node in &mut self.rows[partition] {
            if *node == old {
                *node = new;
            }
        }
        self.loads[old] -= 1;
        self.loads[new] += 1;
    }

    /// Takes away copies beyond the number of replicas, and those too many in one zone.
    fn drop_surplus(&mut self) {
        for partition in 0..self.rows.len() {
            loop {
                let row = &self.rows[partition];
                let crowded = |node: &usize| {
                    self.copies_in_zone(partition, self.zones[*node]) > self.zone_copies_max
                };
                let most = |nodes: &mut dyn Iterator<Item = &usize>| {
                    nodes.max_by_key(|node| self.surplus(**node)).copied()
                };
                let gone = most(&mut row.iter().filter(|node| crowded(node)));
                let gone = match gone {
                    None if row.len() > self.replicas => most(&mut row.iter()),
                    gone => gone,
                };
                let Some(gone) = gone else { break };
                self.rows[partition].retain(|node| *node != gone);
                self.loads[gone] -= 1;
            }
        }
    }

    /// Gives every partition its copies, where most is wanting. The partition's number breaks ties, so
    /// that nodes do not always meet the same others.
    fn fill(&mut self) {
        let nodes = self.zones.len();
        for partition in 0..self.rows.len() {
            while self.rows[partition].len() < self.replicas {
                let turn = |node: usize| (node + nodes - partition % nodes) % nodes;
                let best = (0..nodes)
                    .filter(|node| self.fits(partition, None, *node))
                    .min_by_key(|node| (self.surplus(*node), turn(*node)));
                // There are as many zones and nodes as it takes.
                let Some(best) = best else { break };
                self.rows[partition].push(best);
                self.loads[best] += 1;
            }
        }
    }

    /// Moves copies that `may_move` from nodes above their share to nodes below it.
    fn move_directly(&mut self, may_move: impl Fn(usize, usize) -> bool) {
        for partition in 0..self.rows.len() {
            for place in 0..self.rows[partition].len() {
                let old = self.rows[partition][place];
                if self.surplus(old) <= 0 || !may_move(partition, old) {
                    continue;
                }
                let best = (0..self.zones.len())
                    .filter(|new| self.surplus(*new) < 0 && self.fits(partition, Some(old), *new))
                    .min_by_key(|new| self.surplus(*new));
                if let Some(new) = best {
                    self.replace(partition, old, new);
                }
            }
        }
    }

    /// Improves the plan by one chain or ring of hops; says whether there was one.
    fn improve(&mut self, before: &[Vec<usize>], barred: &mut BTreeSet<Hop>) -> bool {
        let hops = self.cheapest_hops(before, barred);
        let Some(ring) = self.ring_that_saves(&hops) else { return false };
        for (done, hop) in ring.iter().enumerate() {
            if self.fits(hop.partition, Some(hop.old), hop.new) {
                self.replace(hop.partition, hop.old, hop.new);
                continue;
            }
            // It meets one partition twice and gets into its own way: back, and without this hop.
            for hop in ring[..done].iter().rev() {
                self.replace(hop.partition, hop.new, hop.old);
            }
            barred.insert(*hop);
            return true;
        }
        barred.clear();
        true
    }

    /// For each pair of nodes the partition in which the second can come in the place of the first at
    /// the least cost, and that cost.
    fn cheapest_hops(&self, before: &[Vec<usize>], barred: &BTreeSet<Hop>) -> Hops {
        let nodes = self.zones.len();
        let mut hops = vec![None; nodes * nodes];
        for (partition, row) in self.rows.iter().enumerate() {
            let moved = |node| i64::from(!before[partition].contains(&node));
            for old in row {
                for new in 0..nodes {
                    let hop = &mut hops[old * nodes + new];
                    let cost = moved(new) - moved(*old);
                    let better = hop.is_none_or(|(_, known)| cost < known);
                    if better
                        && self.fits(partition, Some(*old), new)
                        && !barred.contains(&Hop { partition, old: *old, new })
                    {
                        *hop = Some((partition, cost));
                    }
                }
            }
        }
        hops
    }

    /// Hops that, taken together, bring a load nearer to its share, or save a move and change no load:
    /// a ring of negative cost, found as Bellman and Ford do. Chains from a node above its share to one
    /// below it are rings too, over a node of their own (the last) that makes up for what they begin
    /// and end with.
    fn ring_that_saves(&self, hops: &Hops) -> Option<Vec<Hop>> {
        let nodes = self.zones.len();
        // More than what any hops cost.
        let balance = 2 * i64::try_from(nodes).ok()? + 2;
        let cost = |from: usize, to: usize| match (from == nodes, to == nodes) {
            (true, true) => None,
            (true, false) => (self.surplus(to) > 0).then_some(0),
            (false, true) => (self.surplus(from) < 0).then_some(-balance),
            (false, false) => hops[from * nodes + to].map(|(_, cost)| cost),
        };
        let mut distances = vec![0; nodes + 1];
        let mut came_from = vec![0; nodes + 1];
        let mut changed = None;
        for _ in 0..=nodes {
            changed = None;
            for from in 0..=nodes {
                for to in 0..=nodes {
                    let Some(cost) = cost(from, to) else { continue };
                    if distances[from] + cost < distances[to] {
                        distances[to] = distances[from] + cost;
                        came_from[to] = from;
                        changed = Some(to);
                    }
                }
            }
            changed?;
        }
        // What still changes after so many rounds hangs on a ring.
        let mut at = changed?;
        for _ in 0..=nodes {
            at = came_from[at];
        }
        let mut ring = Vec::new();
        let start = at;
        loop {
            let old = came_from[at];
            if old != nodes && at != nodes {
                let (partition, _) = hops[old * nodes + at]?;
                ring.push(Hop { partition, old, new: at });
            }
            at = old;
            if at == start {
                return Some(ring);
            }
        }
    }

    /// Orders the nodes of each partition: every node comes first in its share of partitions, and the
    /// one that came first before goes on to, where that fits.
    fn put_first(&mut self, before: &[Vec<usize>]) {
        let mut firsts = vec![0; self.zones.len()];
        let mut open = Vec::new();
        for (partition, row) in self.rows.iter_mut().enumerate() {
            let room = |node: usize| firsts[node] < self.loads[node] / self.replicas.max(1);
            let former = before[partition].first().filter(|node| room(**node));
            match former.and_then(|node| row.iter().position(|at| at == node)) {
                Some(place) => {
                    firsts[row[place]] += 1;
                    row[..=place].rotate_right(1);
                }
                None => open.push(partition),
            }
        }
        for partition in open {
            let row = &mut self.rows[partition];
            let most_behind = (0..row.len()).min_by_key(|place| {
                let node = row[*place];
                // In parts of its share; the first of equals.
                (firsts[node] << 20) / self.loads[node].max(1)
            });
            if let Some(place) = most_behind {
                firsts[row[place]] += 1;
                row[..=place].rotate_right(1);
            }
        }
    }
}
