//! Whether what clients did and saw is what a group that keeps its promises can have answered. The log
//! that all members agree on at the end is the judge: it says what was carried out, and in which order.

use std::collections::BTreeMap;

use coffer_history::{Action, Operation, check};
use coffer_metadata_core::Table;
use coffer_metadata_core::state::LoggedOp;
use coffer_model::bundle::{Header, Outcomes};
use coffer_model::encoding::decode;
use coffer_model::id::{ClusterId, RequestId};
use coffer_model::log::{LogBody, LogEntry};
use coffer_model::object::{LeafHash, Object};
use coffer_model::op::Op;

use super::clients::Record;

/// The rows of a member's tables.
pub(super) type Rows = Vec<(Table, Vec<u8>, Vec<u8>)>;

/// What the log says of one request.
struct Logged {
    sequence: u64,
    outcomes: Outcomes,
}

/// The log of bundles, as one member has it.
struct Log {
    requests: BTreeMap<RequestId, Vec<Logged>>,
    /// What was set in which order: by the sequence of the bundle.
    chains: BTreeMap<Object, Vec<(u64, LeafHash)>>,
    /// What does not follow from what was there.
    broken: Vec<String>,
}

impl Log {
    fn read(rows: &Rows, cluster: &ClusterId) -> Self {
        let mut log =
            Self { requests: BTreeMap::new(), chains: BTreeMap::new(), broken: Vec::new() };
        let mut ops: BTreeMap<u64, Vec<Op>> = BTreeMap::new();
        for (_, key, value) in rows.iter().filter(|(table, ..)| *table == Table::LogOps) {
            let sequence = u64::from_be_bytes(*key.first_chunk().unwrap());
            let logged: LoggedOp = decode("logged op", value).unwrap();
            ops.entry(sequence).or_default().push(decode("op", &logged.op).unwrap());
        }
        for (_, _, value) in rows.iter().filter(|(table, ..)| *table == Table::Log) {
            let LogEntry { sequence, body, .. } = decode("log entry", value).unwrap();
            let LogBody::Bundle { header, outcomes, .. } = body else { continue };
            let header: Header = decode("header", &header).unwrap();
            let applied = ops.remove(&sequence).unwrap_or_default();
            for (op, _) in applied.iter().zip(&outcomes).filter(|(_, outcome)| outcome.is_ok()) {
                for change in op.changes() {
                    let chain = log.chains.entry(change.object.clone()).or_default();
                    if chain.last().map(|(_, hash)| *hash) != change.expected {
                        let text = format!("op at {sequence} set what was not as it expected");
                        log.broken.push(text);
                    }
                    chain.push((sequence, change.leaf_hash(cluster)));
                }
            }
            let logged = Logged { sequence, outcomes };
            log.requests.entry(header.request).or_default().push(logged);
        }
        log
    }

    /// What stood under an object at a revision: what the bundles before it had set.
    fn at(&self, object: &Object, revision: u64) -> Option<LeafHash> {
        let chain = self.chains.get(object)?;
        let before = chain.partition_point(|(sequence, _)| *sequence < revision);
        before.checked_sub(1).map(|last| chain[last].1)
    }
}

/// What is wrong with a run: `records` of clients, and what the members have at the end.
pub(super) fn judge(records: &[Record], rows: &Rows, cluster: &ClusterId) -> Vec<String> {
    let log = Log::read(rows, cluster);
    let mut wrong = log.broken.clone();
    for (request, logged) in &log.requests {
        if logged.len() > 1 {
            let at: Vec<u64> = logged.iter().map(|logged| logged.sequence).collect();
            wrong.push(format!("carried out more than once, at {at:?}: request {request:?}"));
        }
    }
    for record in records {
        match record {
            Record::Wrong(text) => wrong.push(text.clone()),
            Record::Wrote { client, request, answer: Some((outcomes, revision)), .. } => {
                let logged = log.requests.get(request).and_then(|logged| logged.first());
                match logged {
                    None => wrong.push(format!(
                        "client {client} was told {outcomes:?} at {revision}, and the log knows nothing of it"
                    )),
                    Some(logged)
                        if logged.outcomes != *outcomes || logged.sequence + 1 != *revision =>
                    {
                        wrong.push(format!(
                            "client {client} was told {outcomes:?} at {revision}, and the log says {:?} at {}",
                            logged.outcomes, logged.sequence
                        ));
                    }
                    Some(_) => {}
                }
            }
            Record::Wrote { .. } => {}
            Record::Saw { client, least, revision, found, .. } => {
                if revision < least {
                    wrong.push(format!("client {client} saw {revision} after {least}"));
                }
                for (object, hash) in found {
                    if log.at(object, *revision) != *hash {
                        wrong.push(format!(
                            "client {client} saw at {revision} what never stood there: {object:?}"
                        ));
                    }
                }
            }
        }
    }
    let (operations, last) = history(records, &log);
    wrong.extend(check(&operations, &last).iter().map(ToString::to_string));
    wrong
}

/// A number for a leaf that no other has.
fn value(hash: &LeafHash) -> u64 {
    u64::from_le_bytes(*hash.as_hash().as_bytes().first_chunk().unwrap())
}

/// The version that a bundle made: 1 is that nothing is there yet.
fn version(sequence: u64) -> u64 {
    sequence + 2
}

/// The records as a history of registers: each name is one, and the content of each file.
fn history(records: &[Record], log: &Log) -> (Vec<Operation>, BTreeMap<usize, BTreeMap<u64, u64>>) {
    let mut registers: BTreeMap<&Object, usize> = BTreeMap::new();
    for record in records {
        let objects: Vec<&Object> = match record {
            Record::Wrote { set, .. } => set.iter().map(|(object, _)| object).collect(),
            Record::Saw { found, .. } => found.iter().map(|(object, _)| object).collect(),
            Record::Wrong(_) => Vec::new(),
        };
        for object in objects {
            let next = registers.len();
            registers.entry(object).or_insert(next);
        }
    }
    let (mut operations, mut last) = (Vec::new(), BTreeMap::new());
    for (object, register) in &registers {
        let action = Action::Write { value: 0, version: Some(1) };
        let register = *register;
        operations.push(Operation { client: 0, register, began: 0, ended: Some(0), action });
        let chain = log.chains.get(*object).into_iter().flatten();
        let mut versions: BTreeMap<u64, u64> =
            chain.map(|(sequence, hash)| (version(*sequence), value(hash))).collect();
        versions.insert(1, 0);
        last.insert(register, versions);
    }
    for record in records {
        match record {
            Record::Wrote { client, request, set, began, ended, answer } => {
                let logged = log.requests.get(request).and_then(|logged| logged.first());
                let done = |outcomes: &Outcomes| outcomes.iter().all(Result::is_ok);
                let acknowledged = answer.as_ref().filter(|(outcomes, _)| done(outcomes));
                let was_done = logged.is_some_and(|logged| done(&logged.outcomes));
                // A change that nobody was told of counts only if it was made.
                if acknowledged.is_none() && !was_done {
                    continue;
                }
                // An answer that says otherwise than the log was noticed already.
                let acknowledged = acknowledged.map(|(_, revision)| version(revision - 1));
                let ended = acknowledged.and(*ended);
                for (object, hash) in set {
                    let action = Action::Write { value: value(hash), version: acknowledged };
                    let register = registers[object];
                    let (client, began) = (*client, *began);
                    operations.push(Operation { client, register, began, ended, action });
                }
            }
            Record::Saw { client, found, began, ended, .. } => {
                for (object, hash) in found {
                    let version = hash.map_or(Some(1), |hash| {
                        let chain = log.chains.get(object)?;
                        let at = chain.iter().find(|(_, standing)| *standing == hash)?;
                        Some(version(at.0))
                    });
                    // What never stood there was noticed already.
                    let Some(version) = version else { continue };
                    let value = hash.as_ref().map_or(0, value);
                    operations.push(Operation {
                        client: *client,
                        register: registers[object],
                        began: *began,
                        ended: Some(*ended),
                        action: Action::Read { value, version },
                    });
                }
            }
            Record::Wrong(_) => {}
        }
    }
    (operations, last)
}
