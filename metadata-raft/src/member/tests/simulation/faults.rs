//! What goes wrong in a run, and when: decided by the seed before the run begins. Only who leads at that
//! moment is found out when a fault is for the leader.

use std::time::Duration;

use coffer_history::Numbers;

use super::group::{Group, MEMBERS};
use super::net::{Host, Net, Weather};

/// How many faults a run has.
const FAULTS_MIN: u64 = 4;
const FAULTS_MAX: u64 = 10;
/// How long one lasts at most, and how much later the next one comes at most.
const LASTS_MS_MAX: u64 = 4000;
const GAP_MS_MAX: u64 = 2500;
/// How often the power fails in a run of outages.
const OUTAGES: u32 = 8;

/// Which members a fault meets.
#[derive(Clone, Copy, Debug)]
pub(super) enum Victims {
    /// The one that leads then, or this one where nobody does.
    Leader(usize),
    One(usize),
    /// All but this one.
    AllBut(usize),
    All,
}

/// Which way nothing arrives any more.
#[derive(Clone, Copy, Debug)]
pub(super) enum Ways {
    Out,
    In,
    Both,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Fault {
    Crash(Victims),
    /// Between the victim and the other members, not between it and clients.
    Part {
        victim: Victims,
        ways: Ways,
        cut: bool,
    },
    Weather(Weather),
}

/// One fault, when it comes and how long it lasts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Planned {
    pub(super) at: Duration,
    pub(super) lasts: Duration,
    pub(super) fault: Fault,
}

/// The faults of a seed, in the order in which they come.
pub(super) fn plan(numbers: &mut Numbers) -> Vec<Planned> {
    let ms = Duration::from_millis;
    let mut at = ms(200);
    let count = FAULTS_MIN + numbers.below(FAULTS_MAX - FAULTS_MIN + 1);
    (0..count)
        .map(|_| {
            at += ms(numbers.below(GAP_MS_MAX));
            let lasts = ms(50 + numbers.below(LASTS_MS_MAX));
            Planned { at, lasts, fault: fault(numbers) }
        })
        .collect()
}

/// The power fails everywhere, again and again, and is soon back.
pub(super) fn outages(numbers: &mut Numbers) -> Vec<Planned> {
    let ms = Duration::from_millis;
    (1..=OUTAGES)
        .map(|count| Planned {
            at: ms(u64::from(count) * 1500 + numbers.below(1000)),
            lasts: ms(50 + numbers.below(300)),
            fault: Fault::Crash(Victims::All),
        })
        .collect()
}

fn fault(numbers: &mut Numbers) -> Fault {
    let member = usize::try_from(numbers.below(MEMBERS as u64)).unwrap();
    let victims = match numbers.below(10) {
        0..3 => Victims::Leader(member),
        3..7 => Victims::One(member),
        7..9 => Victims::AllBut(member),
        _ => Victims::All,
    };
    match numbers.below(10) {
        0..4 => Fault::Crash(victims),
        4..8 => {
            let victim = match victims {
                Victims::Leader(_) | Victims::One(_) => victims,
                Victims::AllBut(_) | Victims::All => Victims::Leader(member),
            };
            let ways = match numbers.below(4) {
                0 => Ways::Out,
                1 => Ways::In,
                _ => Ways::Both,
            };
            Fault::Part { victim, ways, cut: numbers.below(2) == 0 }
        }
        _ => Fault::Weather(Weather {
            lost: numbers.below(100),
            reset: numbers.below(30),
            doubled: numbers.below(200),
            slow: numbers.below(300),
            slow_ms: 1 + numbers.below(1500),
        }),
    }
}

/// A fault that has come, for when it goes.
pub(super) enum Present {
    Crashed(Vec<usize>),
    Parted(Vec<(Host, Host)>),
    Weather,
}

impl Victims {
    fn of(self, group: &Group) -> Vec<usize> {
        match self {
            Self::Leader(otherwise) => vec![group.leader().unwrap_or(otherwise)],
            Self::One(member) => vec![member],
            Self::AllBut(spared) => (0..MEMBERS).filter(|member| *member != spared).collect(),
            Self::All => (0..MEMBERS).collect(),
        }
    }
}

impl Fault {
    pub(super) fn come(self, group: &mut Group, net: &Net) -> Present {
        match self {
            Self::Crash(victims) => {
                let victims = victims.of(group);
                for member in &victims {
                    group.crash(*member);
                }
                Present::Crashed(victims)
            }
            Self::Part { victim, ways, cut } => {
                let mut blocked = Vec::new();
                for member in victim.of(group) {
                    for other in (0..MEMBERS).filter(|other| *other != member) {
                        let (member, other) = (Host::Member(member), Host::Member(other));
                        if matches!(ways, Ways::Out | Ways::Both) {
                            blocked.push((member, other));
                        }
                        if matches!(ways, Ways::In | Ways::Both) {
                            blocked.push((other, member));
                        }
                    }
                }
                net.block(&blocked, cut);
                Present::Parted(blocked)
            }
            Self::Weather(weather) => {
                net.set_weather(weather);
                Present::Weather
            }
        }
    }
}

impl Present {
    pub(super) async fn go(self, group: &mut Group, net: &Net) -> Result<(), String> {
        match self {
            Self::Crashed(members) => {
                for member in members {
                    group.start(member).await?;
                }
            }
            Self::Parted(ways) => net.unblock(&ways),
            Self::Weather => net.set_weather(Weather::default()),
        }
        Ok(())
    }
}
