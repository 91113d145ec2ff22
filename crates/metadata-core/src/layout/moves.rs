//! From the copies there are to the copies there shall be, with few moves.
//!
//! What cannot stay goes, what is missing goes where most is wanting, and then copies move from nodes
//! that hold more than their share to nodes that hold less: directly where a partition allows it, else
//! along the shortest chain of nodes that each give one copy and get one.

use std::collections::VecDeque;

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
    while plan.move_along_a_chain() {}
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

    /// Brings one copy from a node above its share to one below it, over others that give one and get
    /// one; says whether that went.
    fn move_along_a_chain(&mut self) -> bool {
        let nodes = self.zones.len();
        let sources: Vec<usize> = (0..nodes).filter(|node| self.surplus(*node) > 0).collect();
        if sources.is_empty() {
            return false;
        }
        // A partition in which the first node can be replaced by the second.
        let mut hops: Vec<Option<usize>> = vec![None; nodes * nodes];
        for (partition, row) in self.rows.iter().enumerate() {
            for old in row {
                for new in 0..nodes {
                    let hop = &mut hops[old * nodes + new];
                    if hop.is_none() && self.fits(partition, Some(*old), new) {
                        *hop = Some(partition);
                    }
                }
            }
        }
        let mut came_from: Vec<Option<usize>> = vec![None; nodes];
        let mut waiting: VecDeque<usize> = sources.iter().copied().collect();
        let mut target = None;
        'search: while let Some(old) = waiting.pop_front() {
            for new in 0..nodes {
                let seen = came_from[new].is_some() || sources.contains(&new);
                if seen || hops[old * nodes + new].is_none() {
                    continue;
                }
                came_from[new] = Some(old);
                if self.surplus(new) < 0 {
                    target = Some(new);
                    break 'search;
                }
                waiting.push_back(new);
            }
        }
        let Some(mut new) = target else { return false };
        while let Some(old) = came_from[new] {
            let Some(partition) = hops[old * nodes + new] else { return false };
            // A shortest chain does not get into its own way; if it did, what is left would stand.
            if !self.fits(partition, Some(old), new) {
                return false;
            }
            self.replace(partition, old, new);
            new = old;
        }
        true
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
