//! What clients did and saw, and whether a store that keeps its word can have answered so.
//!
//! Files are registers with versions: every write says which version it became, every read which one it
//! saw. That makes linearizability (Herlihy and Wing, 1990) easy to check. If the versions of a register
//! agree with real time, ordering its operations by version, each write before the reads of it, is a
//! linearization; if they do not, there is none.
//!
//! [`Numbers`] are what such tests draw from, so that a seed repeats them.

use std::collections::BTreeMap;
use std::fmt;

/// Numbers that a seed repeats: SplitMix64 (Steele, Lea, Flood 2014).
#[derive(Clone, Debug)]
pub struct Numbers(u64);

impl Numbers {
    /// The numbers of a seed.
    pub const fn of(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub const fn next_number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// The next number, brought below `bound`, which is not 0.
    pub const fn below(&mut self, bound: u64) -> u64 {
        self.next_number() % bound
    }

    /// The numbers of a seed of their own, for a part that draws by itself.
    #[must_use]
    pub const fn split(&mut self) -> Self {
        Self(self.next_number())
    }
}

/// One operation of one client. Times are of one clock, in nanoseconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation {
    /// Which client.
    pub client: usize,
    /// Which register.
    pub register: usize,
    /// When it was asked for.
    pub began: u64,
    /// When it was answered; none if nobody knows what became of it.
    pub ended: Option<u64>,
    /// What it was.
    pub action: Action,
}

/// What an operation did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Wrote a value that no other write wrote. The version is known where it was acknowledged.
    Write {
        /// The value.
        value: u64,
        /// The version it became.
        version: Option<u64>,
    },
    /// Saw a version with its value.
    Read {
        /// The value.
        value: u64,
        /// The version.
        version: u64,
    },
}

/// Something that a store which keeps its word never does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Violation {
    /// Two values were seen as one version.
    TwoValues {
        /// The register.
        register: usize,
        /// The version.
        version: u64,
    },
    /// A value was seen that nobody wrote before.
    OutOfThinAir(Operation),
    /// A write was acknowledged as a version that is not later than one which was there before the
    /// write began.
    WroteThePast(Operation),
    /// A read saw an older version than one that was there before the read began.
    ReadThePast(Operation),
    /// An acknowledged write is not among the versions at the end.
    Lost(Operation),
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TwoValues { register, version } => {
                write!(f, "version {version} of register {register} was seen with two values")
            }
            Self::OutOfThinAir(by) => write!(f, "nobody had written what was read: {by:?}"),
            Self::WroteThePast(by) => write!(f, "written behind a later version: {by:?}"),
            Self::ReadThePast(by) => write!(f, "an older version than was there: {by:?}"),
            Self::Lost(by) => write!(f, "acknowledged and lost: {by:?}"),
        }
    }
}

/// Checks a history. `last` gives the value of each version of each register after the last operation.
pub fn check(
    operations: &[Operation],
    last: &BTreeMap<usize, BTreeMap<u64, u64>>,
) -> Vec<Violation> {
    let mut registers: BTreeMap<usize, Vec<&Operation>> = BTreeMap::new();
    for operation in operations {
        registers.entry(operation.register).or_default().push(operation);
    }
    let mut violations = Vec::new();
    for (register, operations) in registers {
        let nothing = BTreeMap::new();
        let last = last.get(&register).unwrap_or(&nothing);
        check_values(register, &operations, last, &mut violations);
        check_order(&operations, &mut violations);
    }
    violations
}

/// Whether each version has one value, each value a write that began before it was seen, and each
/// acknowledged write is still there.
fn check_values(
    register: usize,
    operations: &[&Operation],
    last: &BTreeMap<u64, u64>,
    violations: &mut Vec<Violation>,
) {
    let mut written: BTreeMap<u64, &Operation> = BTreeMap::new();
    let mut values: BTreeMap<u64, u64> = last.clone();
    let mut see = |version: u64, value: u64, violations: &mut Vec<Violation>| {
        if *values.entry(version).or_insert(value) != value {
            violations.push(Violation::TwoValues { register, version });
        }
    };
    for operation in operations {
        if let Action::Write { value, version } = operation.action {
            written.insert(value, operation);
            let Some(version) = version else { continue };
            if last.get(&version).is_none() {
                violations.push(Violation::Lost((*operation).clone()));
            }
            see(version, value, violations);
        }
    }
    for operation in operations {
        let Action::Read { value, version } = operation.action else { continue };
        let source = written.get(&value);
        let seen_at = operation.ended.unwrap_or(u64::MAX);
        if source.is_none_or(|write| write.began > seen_at) {
            violations.push(Violation::OutOfThinAir((*operation).clone()));
        }
        see(version, value, violations);
    }
}

/// Whether versions agree with real time: what ended before something else began comes before it.
fn check_order(operations: &[&Operation], violations: &mut Vec<Violation>) {
    let version_of = |operation: &Operation| match operation.action {
        Action::Write { version, .. } => version,
        Action::Read { version, .. } => Some(version),
    };
    let mut ends: Vec<(u64, u64)> = operations
        .iter()
        .filter_map(|operation| Some((operation.ended?, version_of(operation)?)))
        .collect();
    ends.sort_unstable();
    let mut begins: Vec<&&Operation> = operations.iter().collect();
    begins.sort_by_key(|operation| operation.began);
    let (mut ended, mut highest) = (ends.into_iter().peekable(), 0);
    for operation in begins {
        while let Some((_, version)) = ended.next_if(|(at, _)| *at < operation.began) {
            highest = highest.max(version);
        }
        match operation.action {
            Action::Write { version: Some(version), .. } if version <= highest => {
                violations.push(Violation::WroteThePast((**operation).clone()));
            }
            Action::Read { version, .. } if version < highest => {
                violations.push(Violation::ReadThePast((**operation).clone()));
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(client: usize, began: u64, ended: u64, value: u64, version: u64) -> Operation {
        let action = Action::Write { value, version: Some(version) };
        Operation { client, register: 0, began, ended: Some(ended), action }
    }

    fn read(client: usize, began: u64, ended: u64, value: u64, version: u64) -> Operation {
        let action = Action::Read { value, version };
        Operation { client, register: 0, began, ended: Some(ended), action }
    }

    fn unknown(client: usize, began: u64, value: u64) -> Operation {
        let action = Action::Write { value, version: None };
        Operation { client, register: 0, began, ended: None, action }
    }

    fn last(values: &[(u64, u64)]) -> BTreeMap<usize, BTreeMap<u64, u64>> {
        BTreeMap::from([(0, values.iter().copied().collect())])
    }

    #[test]
    fn numbers_are_those_of_the_algorithm() {
        let mut numbers = Numbers::of(0);
        assert_eq!(numbers.next_number(), 0xe220_a839_7b1d_cdaf);
        assert_eq!(numbers.next_number(), 0x6e78_9e6a_a1b9_65f4);
    }

    #[test]
    fn good_histories_pass() {
        let concurrent = [
            write(0, 0, 10, 100, 1),
            // Two at once, in either order; a read during both sees either.
            write(1, 20, 60, 101, 3),
            write(2, 20, 50, 102, 2),
            read(3, 25, 55, 102, 2),
            read(4, 30, 58, 101, 3),
            read(3, 70, 80, 101, 3),
        ];
        assert_eq!(check(&concurrent, &last(&[(1, 100), (2, 102), (3, 101)])), []);
        // Whether a write of unknown outcome took effect is open, then and for ever.
        let lost_answer = [write(0, 0, 10, 100, 1), unknown(1, 5, 101), read(2, 20, 30, 101, 2)];
        assert_eq!(check(&lost_answer, &last(&[(1, 100), (2, 101)])), []);
        let never = [write(0, 0, 10, 100, 1), unknown(1, 5, 101), read(2, 20, 30, 100, 1)];
        assert_eq!(check(&never, &last(&[(1, 100)])), []);
        assert_eq!(check(&[], &last(&[])), []);
    }

    #[test]
    fn each_broken_promise_is_found() {
        let two = last(&[(1, 100), (2, 101)]);
        let first = write(0, 0, 10, 100, 1);
        let second = write(1, 20, 30, 101, 2);

        // A read that began after version 2 was acknowledged, or seen, goes back to version 1.
        let stale = read(2, 40, 50, 100, 1);
        let found = check(&[first.clone(), second.clone(), stale.clone()], &two);
        assert_eq!(found, [Violation::ReadThePast(stale.clone())]);
        let overlapping = write(1, 20, 90, 101, 2);
        let seen = read(3, 25, 35, 101, 2);
        let found = check(&[first.clone(), overlapping, seen, stale.clone()], &two);
        assert_eq!(found, [Violation::ReadThePast(stale)]);

        // A write that began after version 2 became version 1.
        let late = write(0, 40, 50, 100, 1);
        let found = check(&[write(1, 20, 30, 101, 2), late.clone()], &two);
        assert_eq!(found, [Violation::WroteThePast(late)]);

        // Two writes became one version; an acknowledged write is gone; a value came from nowhere, or
        // from the future.
        let twin = write(2, 15, 35, 102, 2);
        let found = check(&[first.clone(), second.clone(), twin], &two);
        assert!(found.contains(&Violation::TwoValues { register: 0, version: 2 }), "{found:?}");
        let found = check(&[first.clone(), second.clone()], &last(&[(1, 100)]));
        assert_eq!(found, [Violation::Lost(second.clone())]);
        let invented = read(2, 40, 50, 999, 3);
        let found = check(&[first.clone(), second.clone(), invented.clone()], &two);
        assert_eq!(found, [Violation::OutOfThinAir(invented)]);
        let early = read(2, 12, 15, 101, 2);
        let found = check(&[first, early.clone(), second], &two);
        assert!(found.contains(&Violation::OutOfThinAir(early)), "{found:?}");
    }
}
