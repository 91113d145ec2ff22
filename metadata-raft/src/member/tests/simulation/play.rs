//! One run: a group, clients, faults, calm, and the verdict.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use coffer_history::Numbers;
use coffer_metadata_core::query;
use coffer_model::hash::Hash;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::clients::{Account, CLIENTS, Client, Record};
use super::faults::{self, Planned, Present};
use super::group::{Files, Group, MEMBERS};
use super::net::{Met, Net};
use super::oracle::{self, Rows};
use super::{Flaw, PRESENT, Simulation};
use crate::codec::{decode_entry, decode_log_id};
use crate::raft::LogId;
use crate::store::{Meta, View, all_rows};
use crate::truncation::LogPolicy;

/// How long a run may take in simulated time; what takes longer is stuck.
const RUN_MAX: Duration = Duration::from_secs(100);
/// With a flaw a run may get stuck for good, which is not waited for.
const FLAWED_RUN_MAX: Duration = Duration::from_secs(30);
/// How long the group may take to be formed, and to agree once there are no more faults.
const SETTLE_MAX: Duration = Duration::from_secs(60);
/// How often is looked whether it does.
const SETTLE_LOOK: Duration = Duration::from_millis(50);
/// How often is looked whether the group is formed: so often that nothing comes between.
const FORMED_LOOK: Duration = Duration::from_millis(1);

/// What came of a run.
#[derive(Debug)]
pub(super) struct Verdict {
    pub(super) wrong: Vec<String>,
    /// Over what clients did and saw and what the members have at the end.
    pub(super) trace: Hash,
    pub(super) faults: usize,
    pub(super) restarts: usize,
    pub(super) records: usize,
    pub(super) unanswered: usize,
    pub(super) met: Met,
    pub(super) simulated: Duration,
}

/// Plays one seed.
pub(super) fn play(files: &Files, seed: u64, flaw: Option<Flaw>) -> Verdict {
    play_with(files, seed, flaw, faults::plan)
}

/// Plays one seed with faults of another plan.
pub(super) fn play_with(
    files: &Files,
    seed: u64,
    flaw: Option<Flaw>,
    plan: fn(&mut Numbers) -> Vec<Planned>,
) -> Verdict {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap();
    runtime.block_on(async {
        let mut numbers = Numbers::of(seed);
        let net = Net::new(numbers.split(), &files.members);
        let simulation = Simulation {
            flaw,
            began: Instant::now(),
            net: Arc::clone(&net),
            elections: Mutex::new(numbers.split()),
            disk: Mutex::new(numbers.split()),
        };
        let began = simulation.began;
        PRESENT.set(Some(Arc::new(simulation)));
        let policy = log_policy(&mut numbers);
        // A member that the flaw has ended would be sent snapshots all the time, which is slow and shows nothing.
        let policy = if flaw.is_some() { LogPolicy::STANDARD } else { policy };
        let group = Group::new(files, &net, policy);
        let mut run = Run { group, net, records: Vec::new(), began, faults: 0, rows: Rows::new() };
        let run_max = if flaw.is_some() { FLAWED_RUN_MAX } else { RUN_MAX };
        let ended = timeout(run_max, run.go(files, &mut numbers, plan)).await;
        let mut wrong = match ended {
            Ok(Ok(())) => Vec::new(),
            Ok(Err(text)) => vec![text],
            Err(_) => vec!["the run does not end".to_owned()],
        };
        if wrong.is_empty() {
            wrong = oracle::judge(&run.records, &run.rows, &files.cluster);
        }
        run.verdict(wrong).await
    })
}

/// Some groups keep all of their log, others so little that who was away needs a snapshot.
fn log_policy(numbers: &mut Numbers) -> LogPolicy {
    if numbers.below(2) == 0 {
        return LogPolicy::STANDARD;
    }
    LogPolicy {
        entries_max: 10 + numbers.below(30),
        kept_entries: numbers.below(10),
        look_every: Duration::from_millis(300),
        ..LogPolicy::STANDARD
    }
}

/// What one member has.
struct Held {
    applied: Option<LogId>,
    rows: Rows,
    entries: BTreeMap<u64, Vec<u8>>,
}

struct Run {
    group: Group,
    net: Arc<Net>,
    records: Vec<Record>,
    began: Instant,
    faults: usize,
    rows: Rows,
}

impl Run {
    async fn go(
        &mut self,
        files: &Files,
        numbers: &mut Numbers,
        plan: fn(&mut Numbers) -> Vec<Planned>,
    ) -> Result<(), String> {
        let account = Arc::new(Account::new(files.cluster));
        let (mut plan_numbers, mut client_numbers) = (numbers.split(), numbers.split());
        for member in 0..MEMBERS {
            self.group.start(member).await?;
        }
        let mut client =
            |number, net| Client::new(number, &account, net, client_numbers.split(), self.began);
        let mut first = client(CLIENTS, &self.net);
        let clients: Vec<Client> = (0..CLIENTS).map(|number| client(number, &self.net)).collect();
        self.formed().await?;
        self.records = first.prepare().await;

        let working: Vec<_> = clients.into_iter().map(|it| tokio::spawn(it.work())).collect();
        self.disturb(plan(&mut plan_numbers)).await?;
        for work in working {
            self.records.extend(work.await.map_err(|error| error.to_string())?);
        }

        self.net.calm();
        for member in 0..MEMBERS {
            if let Some(fault) = self.group.fault(member) {
                return Err(format!("member {member} has ended by itself: {fault}"));
            }
            self.group.start(member).await?;
        }
        if !first.change_once().await {
            return Err("nothing can be changed once there are no more faults".to_owned());
        }
        self.agree().await?;
        for member in 0..MEMBERS {
            if !first.look_at_all(member).await {
                return Err(format!("member {member} answers no read once there are no faults"));
            }
        }
        self.records.extend(first.into_records());
        self.agree().await
    }

    /// Waits until a member has what founds the cluster: from then on it takes submissions.
    async fn formed(&self) -> Result<(), String> {
        let is_formed = |member: usize| {
            let store = self.group.store(member);
            store.is_some_and(|store| query::genesis(&View::of(store)).unwrap().is_some())
        };
        let formed = async {
            while !(0..MEMBERS).any(is_formed) {
                sleep(FORMED_LOOK).await;
            }
        };
        timeout(SETTLE_MAX, formed).await.map_err(|_| "the group is not formed".to_owned())
    }

    /// Has faults come and go as they are planned.
    async fn disturb(&mut self, plan: Vec<Planned>) -> Result<(), String> {
        self.faults = plan.len();
        let began = Instant::now();
        // What is to go, in the order in which it does; the number keeps two of one moment apart.
        let mut going: BTreeMap<(Duration, usize), Present> = BTreeMap::new();
        let mut coming = plan.into_iter().enumerate().peekable();
        loop {
            let next_end = going.first_key_value().map(|((at, _), _)| *at);
            let next_begin = coming.peek().map(|(_, planned)| planned.at);
            match (next_begin, next_end) {
                (None, None) => return Ok(()),
                (Some(at), end) if end.is_none_or(|end| at <= end) => {
                    sleep_until(began + at).await;
                    let Some((number, planned)) = coming.next() else { return Ok(()) };
                    let present = planned.fault.come(&mut self.group, &self.net);
                    going.insert((planned.at + planned.lasts, number), present);
                }
                (_, Some(at)) => {
                    sleep_until(began + at).await;
                    let Some((_, present)) = going.pop_first() else { return Ok(()) };
                    present.go(&mut self.group, &self.net).await?;
                }
                (Some(_), None) => {}
            }
        }
    }

    /// Waits until all members have the same log and the same state.
    async fn agree(&mut self) -> Result<(), String> {
        let deadline = Instant::now() + SETTLE_MAX;
        loop {
            let differs = match self.compare() {
                Ok(rows) => {
                    self.rows = rows;
                    return Ok(());
                }
                Err(differs) => differs,
            };
            if Instant::now() > deadline {
                return Err(differs);
            }
            sleep(SETTLE_LOOK).await;
        }
    }

    /// The rows that all members have, if they agree.
    fn compare(&self) -> Result<Rows, String> {
        let first = self.held(0)?;
        for member in 1..MEMBERS {
            let held = self.held(member)?;
            if held.applied != first.applied {
                return Err(format!("member {member} has not applied what others have"));
            }
            if held.rows != first.rows {
                return Err(format!("member {member} has another state than others"));
            }
            // Each keeps as much of the log as it likes.
            let differs = |(index, entry): (&u64, &Vec<u8>)| {
                first.entries.get(index).is_some_and(|there| there != entry)
            };
            if held.entries.iter().any(differs) {
                return Err(format!("member {member} has another log than others"));
            }
        }
        Ok(first.rows)
    }

    fn held(&self, member: usize) -> Result<Held, String> {
        if let Some(fault) = self.group.fault(member) {
            return Err(format!("member {member} has ended by itself: {fault}"));
        }
        let store = self.group.store(member).ok_or(format!("member {member} is down"))?;
        let view = View::of(store);
        let entries = store.entries(0, u64::MAX, usize::MAX).unwrap().into_iter();
        Ok(Held {
            applied: view.meta(Meta::Applied, decode_log_id).unwrap().flatten(),
            rows: all_rows(&view),
            entries: entries
                .map(|bytes| (decode_entry(bytes.clone()).unwrap().log_id.index, bytes))
                .collect(),
        })
    }

    async fn verdict(self, wrong: Vec<String>) -> Verdict {
        let is_unanswered = |record: &&Record| matches!(record, Record::Wrote { answer: None, .. });
        let trace = format!("{:?}{:?}", self.records, self.rows);
        let verdict = Verdict {
            wrong,
            trace: Hash::of("simulation", trace.as_bytes()),
            faults: self.faults,
            restarts: self.group.restarts(),
            records: self.records.len(),
            unanswered: self.records.iter().filter(is_unanswered).count(),
            met: self.net.met(),
            simulated: self.began.elapsed(),
        };
        self.group.end().await;
        PRESENT.set(None);
        verdict
    }
}
