//! How Raft's own values are written, on disk and between members: a version byte, then borsh. The
//! bytes of an entry are the same in both places. See `docs/formats/raft-store.md`.

use std::collections::BTreeSet;

use borsh::{BorshDeserialize, BorshSerialize};
use bytes::Bytes;
use coffer_model::encoding::{Malformed, decode, encode};
use openraft::EntryPayload;
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, VoteRequest, VoteResponse};
use openraft::{CommittedLeaderId, LeaderId};

use crate::raft::{Entry, LogId, Membership, Proposal, StoredMembership, TypeConfig, Vote};

/// The version of everything in this module.
const VERSION: u8 = 1;
/// Version, term, node, index and kind stand before an entry's payload.
const ENTRY_HEAD_BYTES: usize = 26;
const KIND_BLANK: u8 = 0;
const KIND_COMMANDS: u8 = 1;
const KIND_MEMBERSHIP: u8 = 2;

#[derive(BorshSerialize, BorshDeserialize)]
pub(crate) struct LogIdForm {
    term: u64,
    node: u64,
    index: u64,
}

#[derive(BorshSerialize, BorshDeserialize)]
pub(crate) struct VoteForm {
    term: u64,
    node: u64,
    committed: bool,
}

#[derive(BorshSerialize, BorshDeserialize)]
struct MembershipForm {
    /// One set of voters, or two during a change.
    configs: Vec<BTreeSet<u64>>,
    /// Voters and learners.
    nodes: BTreeSet<u64>,
}

#[derive(BorshSerialize, BorshDeserialize)]
pub(crate) struct StoredMembershipForm {
    log_id: Option<LogIdForm>,
    membership: MembershipForm,
}

#[derive(BorshSerialize, BorshDeserialize)]
struct AppendForm {
    vote: VoteForm,
    prev: Option<LogIdForm>,
    commit: Option<LogIdForm>,
    entries: Vec<Vec<u8>>,
}

#[derive(BorshSerialize, BorshDeserialize)]
enum AppendAnswerForm {
    Success,
    Partial(Option<LogIdForm>),
    Conflict,
    HigherVote(VoteForm),
}

#[derive(BorshSerialize, BorshDeserialize)]
struct VoteRequestForm {
    vote: VoteForm,
    last: Option<LogIdForm>,
}

#[derive(BorshSerialize, BorshDeserialize)]
struct VoteAnswerForm {
    vote: VoteForm,
    granted: bool,
    last: Option<LogIdForm>,
}

impl From<&LogId> for LogIdForm {
    fn from(id: &LogId) -> Self {
        Self { term: id.leader_id.term, node: id.leader_id.node_id, index: id.index }
    }
}

impl From<LogIdForm> for LogId {
    fn from(form: LogIdForm) -> Self {
        Self::new(CommittedLeaderId::new(form.term, form.node), form.index)
    }
}

impl From<&Vote> for VoteForm {
    fn from(vote: &Vote) -> Self {
        let LeaderId { term, node_id } = vote.leader_id;
        Self { term, node: node_id, committed: vote.committed }
    }
}

impl From<VoteForm> for Vote {
    fn from(form: VoteForm) -> Self {
        if form.committed {
            Self::new_committed(form.term, form.node)
        } else {
            Self::new(form.term, form.node)
        }
    }
}

impl From<&Membership> for MembershipForm {
    fn from(membership: &Membership) -> Self {
        Self {
            configs: membership.get_joint_config().clone(),
            nodes: membership.nodes().map(|(id, _)| *id).collect(),
        }
    }
}

impl From<MembershipForm> for Membership {
    fn from(form: MembershipForm) -> Self {
        Self::new(form.configs, form.nodes)
    }
}

impl From<&StoredMembership> for StoredMembershipForm {
    fn from(stored: &StoredMembership) -> Self {
        Self {
            log_id: log_id_form(stored.log_id().as_ref()),
            membership: stored.membership().into(),
        }
    }
}

impl From<StoredMembershipForm> for StoredMembership {
    fn from(form: StoredMembershipForm) -> Self {
        Self::new(form.log_id.map(LogId::from), form.membership.into())
    }
}

fn log_id_form(id: Option<&LogId>) -> Option<LogIdForm> {
    id.map(LogIdForm::from)
}

fn versioned(form: &impl BorshSerialize) -> Vec<u8> {
    let mut bytes = vec![VERSION];
    bytes.append(&mut encode(form));
    bytes
}

fn parse<T: BorshDeserialize>(what: &'static str, bytes: &[u8]) -> Result<T, Malformed> {
    decode(what, after_version(what, bytes)?)
}

fn after_version<'a>(what: &'static str, bytes: &'a [u8]) -> Result<&'a [u8], Malformed> {
    match bytes.split_first() {
        Some((&VERSION, rest)) => Ok(rest),
        Some((version, _)) => {
            Err(Malformed { what, reason: format!("version {version} is not known here") })
        }
        None => Err(Malformed { what, reason: "it is empty".to_owned() }),
    }
}

pub(crate) fn encode_entry(entry: &Entry) -> Vec<u8> {
    let membership;
    let (kind, payload): (u8, &[u8]) = match &entry.payload {
        EntryPayload::Blank => (KIND_BLANK, &[]),
        EntryPayload::Normal(proposal) => (KIND_COMMANDS, proposal.bytes()),
        EntryPayload::Membership(content) => {
            membership = encode(&MembershipForm::from(content));
            (KIND_MEMBERSHIP, &membership)
        }
    };
    let mut bytes = Vec::with_capacity(ENTRY_HEAD_BYTES + payload.len());
    bytes.push(VERSION);
    LogIdForm::from(&entry.log_id).serialize(&mut bytes).expect("writing to a Vec cannot fail");
    bytes.push(kind);
    bytes.extend_from_slice(payload);
    bytes
}

pub(crate) fn decode_entry(bytes: Vec<u8>) -> Result<Entry, Malformed> {
    let what = "Raft log entry";
    let wrong = |reason: &str| Malformed { what, reason: reason.to_owned() };
    after_version(what, &bytes)?;
    let mut bytes = Bytes::from(bytes);
    if bytes.len() < ENTRY_HEAD_BYTES {
        return Err(wrong("it ends within its head"));
    }
    let payload = bytes.split_off(ENTRY_HEAD_BYTES);
    let log_id: LogIdForm = decode(what, &bytes[1..ENTRY_HEAD_BYTES - 1])?;
    let payload = match (bytes[ENTRY_HEAD_BYTES - 1], payload) {
        (KIND_BLANK, payload) if payload.is_empty() => EntryPayload::Blank,
        (KIND_COMMANDS, payload) => EntryPayload::Normal(Proposal::from_bytes(payload)),
        (KIND_MEMBERSHIP, payload) => {
            EntryPayload::Membership(decode::<MembershipForm>(what, &payload)?.into())
        }
        _ => return Err(wrong("its kind is not known here")),
    };
    Ok(Entry { log_id: log_id.into(), payload })
}

pub(crate) fn encode_vote(vote: &Vote) -> Vec<u8> {
    versioned(&VoteForm::from(vote))
}

pub(crate) fn decode_vote(bytes: &[u8]) -> Result<Vote, Malformed> {
    parse::<VoteForm>("vote", bytes).map(Vote::from)
}

pub(crate) fn encode_log_id(id: Option<&LogId>) -> Vec<u8> {
    versioned(&log_id_form(id))
}

pub(crate) fn decode_log_id(bytes: &[u8]) -> Result<Option<LogId>, Malformed> {
    parse::<Option<LogIdForm>>("log id", bytes).map(|form| form.map(LogId::from))
}

pub(crate) fn encode_membership(stored: &StoredMembership) -> Vec<u8> {
    versioned(&StoredMembershipForm::from(stored))
}

pub(crate) fn decode_membership(bytes: &[u8]) -> Result<StoredMembership, Malformed> {
    parse::<StoredMembershipForm>("membership", bytes).map(StoredMembership::from)
}

/// The number of the tables in force.
pub(crate) fn encode_generation(generation: u64) -> Vec<u8> {
    versioned(&generation)
}

pub(crate) fn decode_generation(bytes: &[u8]) -> Result<u64, Malformed> {
    parse("generation", bytes)
}

pub(crate) fn encode_append(request: &AppendEntriesRequest<TypeConfig>) -> Vec<u8> {
    versioned(&AppendForm {
        vote: (&request.vote).into(),
        prev: log_id_form(request.prev_log_id.as_ref()),
        commit: log_id_form(request.leader_commit.as_ref()),
        entries: request.entries.iter().map(encode_entry).collect(),
    })
}

pub(crate) fn decode_append(bytes: &[u8]) -> Result<AppendEntriesRequest<TypeConfig>, Malformed> {
    let form: AppendForm = parse("append request", bytes)?;
    Ok(AppendEntriesRequest {
        vote: form.vote.into(),
        prev_log_id: form.prev.map(LogId::from),
        leader_commit: form.commit.map(LogId::from),
        entries: form.entries.into_iter().map(decode_entry).collect::<Result<_, _>>()?,
    })
}

pub(crate) fn encode_append_answer(answer: &AppendEntriesResponse<u64>) -> Vec<u8> {
    versioned(&match answer {
        AppendEntriesResponse::Success => AppendAnswerForm::Success,
        AppendEntriesResponse::PartialSuccess(id) => {
            AppendAnswerForm::Partial(log_id_form(id.as_ref()))
        }
        AppendEntriesResponse::Conflict => AppendAnswerForm::Conflict,
        AppendEntriesResponse::HigherVote(vote) => AppendAnswerForm::HigherVote(vote.into()),
    })
}

pub(crate) fn decode_append_answer(bytes: &[u8]) -> Result<AppendEntriesResponse<u64>, Malformed> {
    Ok(match parse("append answer", bytes)? {
        AppendAnswerForm::Success => AppendEntriesResponse::Success,
        AppendAnswerForm::Partial(id) => AppendEntriesResponse::PartialSuccess(id.map(LogId::from)),
        AppendAnswerForm::Conflict => AppendEntriesResponse::Conflict,
        AppendAnswerForm::HigherVote(vote) => AppendEntriesResponse::HigherVote(vote.into()),
    })
}

pub(crate) fn encode_vote_request(request: &VoteRequest<u64>) -> Vec<u8> {
    versioned(&VoteRequestForm {
        vote: (&request.vote).into(),
        last: log_id_form(request.last_log_id.as_ref()),
    })
}

pub(crate) fn decode_vote_request(bytes: &[u8]) -> Result<VoteRequest<u64>, Malformed> {
    let form: VoteRequestForm = parse("vote request", bytes)?;
    Ok(VoteRequest::new(form.vote.into(), form.last.map(LogId::from)))
}

pub(crate) fn encode_vote_answer(answer: &VoteResponse<u64>) -> Vec<u8> {
    versioned(&VoteAnswerForm {
        vote: (&answer.vote).into(),
        granted: answer.vote_granted,
        last: log_id_form(answer.last_log_id.as_ref()),
    })
}

pub(crate) fn decode_vote_answer(bytes: &[u8]) -> Result<VoteResponse<u64>, Malformed> {
    let form: VoteAnswerForm = parse("vote answer", bytes)?;
    Ok(VoteResponse::new(Vote::from(form.vote), form.last.map(LogId::from), form.granted))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use coffer_metadata_core::Command;
    use coffer_model::log::SystemOp;

    use super::*;

    fn id(term: u64, index: u64) -> LogId {
        LogId::new(CommittedLeaderId::new(term, 7), index)
    }

    fn entries() -> Vec<Entry> {
        let commands = vec![
            Command::System(SystemOp::Tick { readings: vec![] }),
            Command::Submission(vec![9]),
        ];
        let voters = BTreeSet::from([1, 2, 3]);
        vec![
            Entry { log_id: id(1, 0), payload: EntryPayload::Blank },
            Entry { log_id: id(1, 1), payload: EntryPayload::Normal(Proposal::new(&commands)) },
            Entry {
                log_id: id(2, 2),
                payload: EntryPayload::Membership(Membership::new(
                    vec![voters.clone(), BTreeSet::from([1])],
                    BTreeSet::from([1, 2, 3, 4]),
                )),
            },
        ]
    }

    #[test]
    fn what_was_written_is_read_again() {
        for entry in entries() {
            let read = decode_entry(encode_entry(&entry)).unwrap();
            assert_eq!((read.log_id, &read.payload), (entry.log_id, &entry.payload));
        }
        for vote in [Vote::new(3, 9), Vote::new_committed(u64::MAX, 0)] {
            assert_eq!(decode_vote(&encode_vote(&vote)).unwrap(), vote);
        }
        for log_id in [None, Some(id(4, 5))] {
            assert_eq!(decode_log_id(&encode_log_id(log_id.as_ref())).unwrap(), log_id);
        }
        let request = AppendEntriesRequest {
            vote: Vote::new_committed(2, 7),
            prev_log_id: None,
            leader_commit: Some(id(1, 1)),
            entries: entries(),
        };
        let read = decode_append(&encode_append(&request)).unwrap();
        assert_eq!((read.vote, read.prev_log_id), (request.vote, None));
        assert_eq!((read.leader_commit, read.entries.len()), (Some(id(1, 1)), 3));
    }

    /// The bytes are a format: an entry written by this version is read for ever.
    #[test]
    fn the_bytes_of_an_entry_do_not_change() {
        let commands = vec![Command::Submission(vec![0xab])];
        let entry =
            Entry { log_id: id(1, 2), payload: EntryPayload::Normal(Proposal::new(&commands)) };
        let expected = concat!(
            "01",
            "0100000000000000",
            "0700000000000000",
            "0200000000000000",
            "01", // head
            "01",
            "01000000",
            "01",
            "01000000",
            "ab" // one submission of one byte
        );
        assert_eq!(hex::encode(encode_entry(&entry)), expected);
    }

    #[test]
    fn rubbish_is_refused() {
        let good = encode_entry(&entries()[1]);
        let mut later = good.clone();
        later[0] = 2;
        let mut strange = good.clone();
        strange[ENTRY_HEAD_BYTES - 1] = 9;
        let mut blank = encode_entry(&entries()[0]);
        blank.push(0);
        for bytes in [vec![], good[..20].to_vec(), later, strange, blank] {
            decode_entry(bytes).unwrap_err();
        }
        decode_append(&[1, 2, 3]).unwrap_err();
        assert!(Proposal::from_bytes(Bytes::from_static(&[2, 0, 0, 0, 0])).commands().is_err());
    }
}
