//! The simulation is run for some seeds, and shown to notice what it is there to notice.
#![allow(clippy::print_stdout)]

use super::Flaw;
use super::faults::outages;
use super::group::Files;
use super::net::Met;
use super::play::{Verdict, play, play_with};

/// Seeds that are run where nobody says otherwise.
const SEEDS: u64 = 16;
/// Seeds of runs with outages.
const OUTAGE_SEEDS: u64 = 4;

/// The first seed and how many: `COFFER_SEED` names the first, `SEEDS` says how many.
fn seeds() -> std::ops::Range<u64> {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let first = number("COFFER_SEED");
    let count = number("SEEDS").unwrap_or(if first.is_some() { 1 } else { SEEDS });
    let first = first.unwrap_or(1);
    first..first + count
}

/// The seeds that are played twice: two, unless more are asked for.
fn repeated() -> std::ops::Range<u64> {
    let all = seeds();
    let count = if std::env::var_os("SEEDS").is_some() { all.end - all.start } else { 2 };
    all.start..all.start + count
}

fn describe(seed: u64, verdict: &Verdict) -> String {
    let Verdict { faults, restarts, records, unanswered, met, simulated, .. } = verdict;
    format!(
        "COFFER_SEED={seed}: {faults} faults, {restarts} restarts, {records} records, {unanswered} \
         unanswered, {met:?}, {} s",
        simulated.as_secs()
    )
}

/// Proves S3, S6, S7, S19, S23 of docs/semantics.md.
///
/// Goal: whatever the network and crashes do, the group loses nothing it acknowledged, carries out no
/// request twice, answers no read from the past, and its members agree once it is over.
/// Method: for each seed, clients change and read a few names while faults come and go; what they were
/// told is compared with the log the members agree on, and as a history with real time.
#[test]
fn what_clients_were_told_holds_whatever_the_network_does() {
    let files = Files::founded();
    let (mut passed, mut failed) = (0, Vec::new());
    let mut met = [0; 7];
    for seed in seeds() {
        let verdict = play(&files, seed, None);
        println!("{}", describe(seed, &verdict));
        let Met { lost, reset, doubled, slow, snapshots, .. } = verdict.met;
        let (restarts, unanswered) = (verdict.restarts as u64, verdict.unanswered as u64);
        for (sum, here) in
            met.iter_mut().zip([lost, reset, doubled, slow, snapshots, restarts, unanswered])
        {
            *sum += here;
        }
        if verdict.wrong.is_empty() {
            passed += 1;
        } else {
            failed.push(seed);
            for wrong in &verdict.wrong {
                println!("COFFER_SEED={seed}: {wrong}");
            }
        }
    }
    println!("{passed} seeds passed, {} failed {failed:?}", failed.len());
    assert!(failed.is_empty(), "run again with COFFER_SEED={}", failed[0]);
    // One seed need not have all of them.
    let is_mild = seeds().count() >= usize::try_from(SEEDS).unwrap() && met.contains(&0);
    assert!(!is_mild, "something never happened: {met:?}");
}

/// Proves S6, S19 of docs/semantics.md.
///
/// Goal: a leader that was without power does not answer reads from before what it had acknowledged,
/// though it comes back so soon that nobody was elected instead of it.
/// Method: all members lose their power at once, some times in a run, and what was not synced with it:
/// how far the leader had committed, for one.
#[test]
fn a_leader_that_lost_its_power_forgets_nothing_it_acknowledged() {
    let files = Files::founded();
    for seed in 1..=OUTAGE_SEEDS {
        let verdict = play_with(&files, seed, None, outages);
        println!("{}", describe(seed, &verdict));
        assert!(verdict.wrong.is_empty(), "seed {seed}: {:#?}", verdict.wrong);
    }
}

/// Plays seeds until one notices the flaw by what it leads to; it is to happen within as many as are run
/// anyway.
fn assert_noticed(flaw: Flaw, by: &str) {
    let files = Files::founded();
    for seed in 1..=SEEDS {
        let verdict = play(&files, seed, Some(flaw));
        println!("{}: {:?}", describe(seed, &verdict), verdict.wrong.first());
        if verdict.wrong.iter().any(|wrong| wrong.contains(by)) {
            return;
        }
    }
    panic!("{flaw:?} is not noticed within {SEEDS} seeds");
}

/// Goal: the simulation notices that something is acknowledged before it is durable.
/// Method: appends to the log are not synced any more, and a crash loses what was not.
#[test]
fn an_acknowledgement_before_the_sync_is_noticed() {
    assert_noticed(Flaw::AcknowledgesTooEarly, "and the log knows nothing of it");
}

/// Goal: the simulation notices reads that nobody confirmed.
/// Method: every member answers from what it has.
#[test]
fn a_read_without_a_read_index_is_noticed() {
    assert_noticed(Flaw::ReadsUnconfirmed, "an older version than was there");
}

/// Goal: the simulation notices that a request is carried out a second time.
/// Method: the state machine forgets its answers before each command.
#[test]
fn a_forgotten_answer_is_noticed() {
    assert_noticed(Flaw::ForgetsRepeats, "carried out more than once");
}

/// Goal: a seed repeats its run, so that what it found can be looked at again.
/// Method: seeds are played twice from the same files of a group; what clients did and saw, with the times,
/// and every row the members have at the end are the same.
#[test]
fn a_seed_repeats_its_run() {
    let files = Files::founded();
    for seed in repeated() {
        let (one, other) = (play(&files, seed, None), play(&files, seed, None));
        assert_eq!(one.trace, other.trace, "COFFER_SEED={seed} went two ways: {one:?} {other:?}");
    }
}
