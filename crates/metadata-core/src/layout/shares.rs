//! How many copies each node should hold.
//!
//! A node's share goes by its weight, but no node holds more than one copy of a partition, and no zone
//! more than leaves the copies spread. What one cannot take, the others share by weight: water that
//! rises to one level in vessels of different width, some of them full.

/// A level is a number of copies for each unit of weight, in parts of 2^32, so that one step up adds at
/// most one copy to each node.
const LEVEL_BITS: u32 = 32;

/// What shares are computed from.
pub(super) struct Demand<'a> {
    /// The weight of each node.
    pub(super) weights: &'a [u32],
    /// The zone of each node, by number.
    pub(super) zones: &'a [usize],
    /// How many copies each node holds now: who holds more gets what does not divide.
    pub(super) held: &'a [usize],
    /// How many copies of one partition a zone may hold.
    pub(super) zone_copies_max: usize,
    /// How many partitions there are.
    pub(super) partitions: usize,
    /// How many copies of each there shall be.
    pub(super) replicas: usize,
}

/// The number of copies of each node. They add up to all copies there shall be, and can be laid out.
pub(super) fn shares(demand: &Demand<'_>) -> Vec<usize> {
    let zones: Vec<Vec<usize>> = (0..demand.zones.iter().max().map_or(0, |last| last + 1))
        .map(|zone| (0..demand.zones.len()).filter(|at| demand.zones[*at] == zone).collect())
        .collect();
    let room: Vec<usize> = zones
        .iter()
        .map(|members| members.len().min(demand.zone_copies_max) * demand.partitions)
        .collect();
    let filled = |members: &[usize], level: u128| -> usize {
        members.iter().map(|at| demand.share_at(*at, level)).sum()
    };
    let all = demand.replicas * demand.partitions;
    let zone_at = |zone: usize, level| filled(&zones[zone], level).min(room[zone]);
    let total = |level| (0..zones.len()).map(|zone| zone_at(zone, level)).sum::<usize>();
    let level = demand.highest_level(|level| total(level) <= all);
    let mut of_zone: Vec<usize> = (0..zones.len()).map(|zone| zone_at(zone, level)).collect();
    let held: Vec<usize> =
        zones.iter().map(|members| members.iter().map(|at| demand.held[*at]).sum()).collect();
    give_rest(&mut of_zone, &room, &held, all);

    let mut shares = vec![0; demand.weights.len()];
    for (members, wanted) in zones.iter().zip(of_zone) {
        let level = demand.highest_level(|level| filled(members, level) <= wanted);
        let mut own: Vec<usize> = members.iter().map(|at| demand.share_at(*at, level)).collect();
        let held: Vec<usize> = members.iter().map(|at| demand.held[*at]).collect();
        give_rest(&mut own, &vec![demand.partitions; members.len()], &held, wanted);
        for (at, share) in members.iter().zip(own) {
            shares[*at] = share;
        }
    }
    shares
}

impl Demand<'_> {
    fn share_at(&self, node: usize, level: u128) -> usize {
        let share = (u128::from(self.weights[node]) * level) >> LEVEL_BITS;
        usize::try_from(share).map_or(self.partitions, |share| share.min(self.partitions))
    }

    /// The highest level that fits; at the highest of all, every node holds every partition.
    fn highest_level(&self, fits: impl Fn(u128) -> bool) -> u128 {
        let (mut low, mut high) = (0, (self.partitions as u128) << LEVEL_BITS);
        while low < high {
            let middle = (low + high).div_ceil(2);
            if fits(middle) {
                low = middle;
            } else {
                high = middle - 1;
            }
        }
        low
    }
}

/// Gives out one by one what is missing from `wanted`: first to those that hold more than they have
/// been given, so that it need not move.
fn give_rest(given: &mut [usize], room: &[usize], held: &[usize], wanted: usize) {
    let mut rest = wanted.saturating_sub(given.iter().sum());
    let mut order: Vec<usize> = (0..given.len()).collect();
    order.sort_by_key(|at| held[*at] <= given[*at]);
    let mut gave = true;
    while rest > 0 && gave {
        gave = false;
        for at in &order {
            if rest > 0 && given[*at] < room[*at] {
                given[*at] += 1;
                rest -= 1;
                gave = true;
            }
        }
    }
}
