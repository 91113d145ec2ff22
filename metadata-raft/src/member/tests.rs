//! Members in one process, over real connections with certificates on both sides.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::time::Duration;

use coffer_model::bundle::{BundleRejection, OpProof};
use coffer_model::descriptor::{Descriptor, SignedDescriptor};
use coffer_model::encoding::{decode, encode};
use coffer_model::id::{ChunkId, MemberId};
use coffer_model::op::Rejection;
use coffer_model::session::CLOCK_SKEW_MS_MAX;
use coffer_model::ticket::Ticket;
use coffer_proto::internal as internal_pb;
use coffer_proto::v1 as pb;
use coffer_proto::v1::admin_service_client::AdminServiceClient;
use coffer_proto::v1::cluster_service_client::ClusterServiceClient;
use coffer_service::one_box::OneBoxCa;
use coffer_service::peer::PeerId;
use coffer_service::shutdown::Shutdown;
use coffer_service::status::{reason_of, retry_delay};
use tonic::{Code, Request, Status};

pub(crate) use self::kit::copy_dir;
use self::kit::{
    Draft, Key, LONG, TestGroup, User, chunk_id, directory, eventually, member_client, node_id,
    tag, with_header,
};
use super::*;
use crate::clock::unix_ms;
use crate::codec::{decode_log_id, encode_vote};
use crate::raft::{LogId, StoredMembership, Vote};
use crate::snapshot::{Header, stream};
use crate::store::{Meta, View, WriteFault, all_rows};

mod administrators;
mod join;
mod kit;
mod listings;
pub(crate) mod simulation;
mod versions;

fn reason(status: &Status) -> String {
    reason_of(status).map(|reason| reason.code).unwrap_or_default()
}

fn rejection(status: &Status) -> BundleRejection {
    let reason = reason_of(status).unwrap();
    assert_eq!(reason.code, "BUNDLE_REJECTED");
    decode("rejection", &hex::decode(&reason.metadata["rejection"]).unwrap()).unwrap()
}

/// A follower of `leader`.
fn other_than(leader: usize) -> usize {
    (leader + 1) % 3
}

/// Proves S3, S6 of docs/semantics.md.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_takes_submissions_and_answers_reads_at_every_member() {
    let mut group = TestGroup::running(3).await;
    let leader = group.leader().await;
    versions::settled(&group, leader).await;
    let (at_leader, elsewhere) = (group.channel(leader), group.channel(other_than(leader)));
    let alice = User::registered(&group, other_than(leader), "alice").await;

    // A repeat, of the same bytes or signed anew, gets the first answer.
    let draft = || Draft::default().file(alice.home, "a", &[1, 2, 3], 0);
    let submission = alice.submission(draft());
    let first = alice.send(&elsewhere, submission.clone()).await;
    assert_eq!(first.0.len(), 1);
    assert!(first.0[0].is_ok());
    assert_eq!(alice.send(&at_leader, submission).await, first);
    // The same change by another request comes too late.
    let again = alice.send(&at_leader, alice.submission(draft())).await;
    assert!(matches!(again.0[0], Err(Rejection::Conflict { .. })), "{again:?}");

    for channel in [&at_leader, &elsewhere] {
        let read = alice.walk(channel, "a").await;
        assert_eq!(read.revision, again.1);
        let Some(pb::answer::Answer::Walk(walk)) = &read.answers[0].answer else { panic!() };
        let [entry] = walk.steps.as_slice() else { panic!() };
        // One op made all three leaves, and stands there once, with its header.
        let proofs = read.proofs.as_ref().unwrap();
        assert_eq!((proofs.headers.len(), proofs.ops.len()), (1, 1));
        let (header, op) = (&proofs.headers[0], &proofs.ops[0]);
        assert_eq!(op.sequence + 1, first.1);
        let proof = OpProof {
            header: header.header.to_vec(),
            signature: coffer_model::signing::Signature::from_bytes(
                header.signature[..].try_into().unwrap(),
            ),
            index: u16::try_from(op.index).unwrap(),
            op: op.op.to_vec(),
            path: op.path.chunks(32).map(|hash| hash.try_into().unwrap()).collect(),
        };
        proof.verify(&group.id, |_, _| false).unwrap();
        assert!(entry.attrs.is_some() && entry.head.is_some());
        assert_eq!(entry.pages.len(), 1);
        let session = alice.proof(0);
        let keys = |id: MemberId| group.descriptor.member_key(id);
        let ticket = Ticket::verify(&entry.ticket, &group.id, &session, unix_ms(), keys).unwrap();
        assert_eq!(ticket.principal, alice.principal);
        for number in 1..=3 {
            ticket.allows_read(&chunk_id(number)).unwrap();
        }
        ticket.allows_read(&chunk_id(4)).unwrap_err();
    }

    // A name that is not there, and a directory that is not the caller's.
    let read = alice.walk(&elsewhere, "b").await;
    let Some(pb::answer::Answer::Walk(walk)) = &read.answers[0].answer else { panic!() };
    assert!(walk.steps.is_empty());
    let bob = User::registered(&group, leader, "bob").await;
    let foreign = bob.request(alice.walk_request("a", 0));
    let denied = directory(&at_leader).read(foreign).await.unwrap_err();
    assert_eq!((denied.code(), reason(&denied).as_str()), (Code::PermissionDenied, "DENIED"));

    // A caller is not taken back behind what it has seen.
    let behind = alice.request(alice.walk_request("a", u64::MAX));
    let behind = directory(&elsewhere).read(behind).await.unwrap_err();
    assert_eq!((behind.code(), reason(&behind).as_str()), (Code::Unavailable, "BEHIND"));

    // Leave to write, charged to the home that pays.
    let ask = |bytes| {
        let inode = alice.home.as_bytes().to_vec().into();
        alice.request(pb::IssueWriteTicketRequest { inode, bytes })
    };
    let ticket = directory(&elsewhere).issue_write_ticket(ask(1 << 20)).await.unwrap();
    let keys = |id: MemberId| group.descriptor.member_key(id);
    let ticket = ticket.into_inner().ticket;
    let ticket = Ticket::verify(&ticket, &group.id, &alice.proof(0), unix_ms(), keys).unwrap();
    assert_eq!(ticket.allows_write(), Ok((alice.home, 1 << 20)));
    let refused = directory(&elsewhere).issue_write_ticket(ask(0)).await.unwrap_err();
    assert_eq!(reason(&refused), "TICKET_BYTES");
    group.stop_all().await;
}

/// Proves S9 of docs/semantics.md.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_of_a_listing_are_from_one_moment() {
    let mut group = TestGroup::running(1).await;
    versions::settled(&group, 0).await;
    let channel = group.channel(0);
    let alice = User::registered(&group, 0, "alice").await;
    let mut draft = Draft::default();
    for number in 0..25 {
        draft = draft.file(alice.home, &format!("file {number}"), &[number], 0);
    }
    let (outcomes, revision) = alice.send(&channel, alice.submission(draft)).await;
    assert!(outcomes.iter().all(Result::is_ok));
    let list = async |page_size, token: &str| {
        let request = alice.request(alice.list_request(page_size, token));
        directory(&channel).list(request).await.map(tonic::Response::into_inner)
    };

    let first = list(10, "").await.unwrap();
    assert_eq!((first.entries.len(), first.revision), (10, revision));
    // What comes later is not on later pages.
    alice.create(&channel, "later", &[]).await;
    let second = list(10, &first.next_page_token).await.unwrap();
    let third = list(10, &second.next_page_token).await.unwrap();
    assert_eq!((second.entries.len(), third.entries.len()), (10, 5));
    assert_eq!((second.revision, third.revision), (revision, revision));
    assert!(third.next_page_token.is_empty());
    let op_of = |page: &pb::ListResponse, entry: &pb::Entry| {
        let leaf = entry.entry.as_ref().unwrap();
        let op = &page.proofs.as_ref().unwrap().ops[usize::try_from(leaf.op).unwrap()];
        (op.sequence, op.index)
    };
    let mut seen = BTreeSet::new();
    for page in [&first, &second, &third] {
        for entry in &page.entries {
            assert!(seen.insert(op_of(page, entry)));
        }
        assert_eq!(page.proofs.as_ref().unwrap().headers.len(), 1);
    }
    assert_eq!(seen.len(), 25);
    // A page can be asked for again, and a new listing has the new name.
    assert_eq!(list(10, &first.next_page_token).await.unwrap().entries.len(), 10);
    assert_eq!(list(100, "").await.unwrap().entries.len(), 26);

    // Tokens are read strictly and belong to one listing.
    let token = &first.next_page_token;
    let other_listing =
        alice.request(pb::ListRequest { deleted: true, ..alice.list_request(10, token) });
    let other_listing = directory(&channel).list(other_listing).await.unwrap_err();
    assert_eq!(reason(&other_listing), "PAGE_TOKEN");
    let bob = User::registered(&group, 0, "bob").await;
    let mut stolen = alice.list_request(10, token);
    stolen.directory = bob.home.as_bytes().to_vec().into();
    let stolen = directory(&channel).list(bob.request(stolen)).await.unwrap_err();
    assert_eq!((stolen.code(), reason(&stolen).as_str()), (Code::InvalidArgument, "PAGE_TOKEN"));
    assert_eq!(reason(&list(10, "rubbish").await.unwrap_err()), "PAGE_TOKEN");
    assert_eq!(reason(&list(1001, "").await.unwrap_err()), "PAGE_SIZE");

    // Versions come newest first.
    let inode = kit::inode(&format!("{}/file 1", alice.home));
    let versions = alice.request(pb::ListVersionsRequest {
        inode: inode.as_bytes().to_vec().into(),
        ..pb::ListVersionsRequest::default()
    });
    let versions = directory(&channel).list_versions(versions).await.unwrap().into_inner();
    assert_eq!(versions.versions.len(), 1);
    assert!(versions.next_page_token.is_empty() && versions.versions[0].log_time_ms > 0);

    // After a restart the snapshot is gone, and the error says what to do.
    group.crash(0).await;
    group.start(0).await.unwrap();
    let gone = loop {
        let status = list(10, token).await.unwrap_err();
        if status.code() != Code::Unavailable {
            break status;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert_eq!((gone.code(), reason(&gone).as_str()), (Code::Aborted, "SNAPSHOT_GONE"));
    group.stop_all().await;
}

/// Goal: two questions of one call are answered at one moment. Method: each bundle makes two names; a
/// reader that asks for both never gets one of them alone.
/// Proves S8 of docs/semantics.md.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_read_is_of_one_moment() {
    let mut group = TestGroup::running(1).await;
    let channel = group.channel(0);
    let alice = User::registered(&group, 0, "alice").await;
    let writes = async {
        for number in 0..30 {
            let draft = Draft::default();
            let draft = draft.file(alice.home, &format!("left {number}"), &[], 0);
            let draft = draft.file(alice.home, &format!("right {number}"), &[], 0);
            let (outcomes, _) = alice.send(&channel, alice.submission(draft)).await;
            assert!(outcomes.iter().all(Result::is_ok));
        }
    };
    let looks = async {
        for number in 0..30 {
            loop {
                let mut both = alice.walk_request(&format!("left {number}"), 0);
                both.queries.extend(alice.walk_request(&format!("right {number}"), 0).queries);
                let answer = directory(&channel).read(alice.request(both)).await.unwrap();
                let there: Vec<bool> = answer
                    .into_inner()
                    .answers
                    .iter()
                    .map(|answer| match &answer.answer {
                        Some(pb::answer::Answer::Walk(walk)) => !walk.steps.is_empty(),
                        other => panic!("{other:?}"),
                    })
                    .collect();
                assert_eq!(there[0], there[1], "half a bundle");
                if there[0] {
                    break;
                }
            }
        }
    };
    tokio::join!(writes, looks);
    group.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn long_answers_are_cut_or_refused() {
    let mut group = TestGroup::running(1).await;
    let channel = group.channel(0);
    let alice = User::registered(&group, 0, "alice").await;
    for round in 0..3 {
        let mut draft = Draft::default();
        for number in 0..40 {
            draft = draft.file(alice.home, &format!("{round} {number}"), &[], 60 << 10);
        }
        let (outcomes, _) = alice.send(&channel, alice.submission(draft)).await;
        assert!(outcomes.iter().all(Result::is_ok));
    }
    let (mut token, mut pages, mut entries) = (String::new(), 0, 0);
    loop {
        let request = alice.request(alice.list_request(1000, &token));
        let page = directory(&channel).list(request).await.unwrap().into_inner();
        pages += 1;
        entries += page.entries.len();
        token = page.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    assert_eq!((pages, entries), (2, 120));
    let one = alice.walk_request("0 1", 0).queries.remove(0);
    let request = pb::ReadRequest { queries: vec![one.clone(); 64], min_revision: 0 };
    let answer = directory(&channel).read(alice.request(request)).await.unwrap();
    assert_eq!(answer.into_inner().answers.len(), 64);
    for (queries, expected) in [(vec![], "QUERIES"), (vec![one; 65], "QUERIES")] {
        let request = alice.request(pb::ReadRequest { queries, min_revision: 0 });
        assert_eq!(reason(&directory(&channel).read(request).await.unwrap_err()), expected);
    }
    let mut wide = alice.walk_request("0 1", 0);
    let Some(pb::query::Query::Walk(walk)) = &mut wide.queries[0].query else { panic!() };
    walk.want = Some(pb::Want { to_slot: 1025, ..pb::Want::default() });
    let refused = directory(&channel).read(alice.request(wide)).await.unwrap_err();
    assert_eq!(reason(&refused), "SLOT_RANGE");
    group.stop_all().await;
}

/// Goal: a member that does not lead answers reads itself, with everything that was acknowledged before.
/// Method: files are made through the leader and looked up at the others at once; the leader's audit log
/// has seen no read.
/// Proves S6 of docs/semantics.md.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_member_answers_reads_and_none_from_the_past() {
    let mut group = TestGroup::founded(3).await;
    let audit_log = |number: usize| group.dir.path().join(format!("audit-{number}"));
    let logs: Vec<_> = (0..3).map(audit_log).collect();
    for (config, log) in group.configs.iter_mut().zip(&logs) {
        config.audit_log = Some(log.clone());
    }
    for number in 0..3 {
        group.start(number).await.unwrap();
    }
    let leader = group.leader().await;
    let alice = User::registered(&group, leader, "alice").await;
    for round in 0..20 {
        let name = format!("file {round}");
        let revision = alice.create(&group.channel(leader), &name, &[1]).await;
        for follower in (0..3).filter(|number| *number != leader) {
            let read = alice.walk(&group.channel(follower), &name).await;
            assert!(read.revision >= revision);
            let Some(pb::answer::Answer::Walk(walk)) = &read.answers[0].answer else { panic!() };
            assert_eq!(walk.steps.len(), 1, "{name} at member {follower}");
        }
    }
    assert_eq!(group.leader().await, leader, "the leader changed, so nothing is shown");
    group.stop_all().await;
    let reads = |number: usize| {
        let text = std::fs::read_to_string(&logs[number]).unwrap();
        text.lines().filter(|line| line.contains("DirectoryService/Read\"")).count()
    };
    for number in 0..3 {
        assert_eq!(reads(number), if number == leader { 0 } else { 20 }, "member {number}");
    }
    let text = std::fs::read_to_string(&logs[leader]).unwrap();
    let submits: Vec<&str> = text.lines().filter(|line| line.contains("1 create")).collect();
    assert_eq!(submits.len(), 20);
    assert!(submits.iter().all(|line| line.contains(&alice.principal.to_string())), "{text}");
}

/// Goal: a member whose volume is lost is replaced by one with another, which then counts; the old volume
/// is of no use any more. Method: one ends, an administrator signs a descriptor with a new one in its
/// place, and another of the first three ends too; at last the old one starts again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_member_is_replaced() {
    let mut group = TestGroup::running(3).await;
    let first = group.leader().await;
    let alice = User::registered(&group, first, "alice").await;
    let before = alice.create(&group.channel(first), "before", &[1]).await;
    // The leader is the one that is lost.
    group.crash(first).await;
    let lost = group.descriptor.members[first].id;
    let new = group.new_member().await;
    let refused = group.start(3).await.unwrap_err();
    assert!(matches!(refused, MemberError::Group(GroupError::NotAMember { .. })), "{refused}");
    let unsigned = group.latest.clone();
    let signed = group.next_descriptor(|next| {
        next.members.retain(|member| member.id != lost);
        next.members.push(new.clone());
    });

    let channel = group.channel(group.any());
    let change = async |descriptor: Vec<u8>| {
        let request = pb::ChangeDescriptorRequest { descriptor: descriptor.into() };
        AdminServiceClient::new(channel.clone()).change_descriptor(request).await
    };
    let stranger = Descriptor { number: 1, former: Some(unsigned.hash()), ..unsigned };
    let stranger = SignedDescriptor::next(&group.id, &stranger, &[&Key::of("mallory")]);
    let refused = eventually(async || match change(encode(&stranger)).await {
        Err(status) if status.code() == Code::Unavailable => Err(status),
        other => Ok(other),
    });
    assert_eq!(reason(&refused.await.unwrap_err()), "RECORD_REFUSED");
    eventually(async || change(signed.clone()).await).await;
    // A repeat of what is in force does no harm.
    change(signed.clone()).await.unwrap();

    group.start(3).await.unwrap();
    let wanted: BTreeSet<u64> = group.latest.members.iter().map(|it| it.id.as_u64()).collect();
    let raft = &group.members[3].as_ref().unwrap().raft;
    let waiting = raft.wait(Some(LONG));
    let made = waiting.metrics(
        |metrics| {
            let membership = metrics.membership_config.membership();
            membership.get_joint_config() == std::slice::from_ref(&wanted)
        },
        "the group is the descriptor's",
    );
    made.await.unwrap();
    // With another of the first three gone there is a majority only if the new one counts.
    let second = group.any();
    group.crash(second).await;
    let channel = group.channel(3);
    let after = alice.create(&channel, "after", &[2]).await;
    assert!(after > before);
    for name in ["before", "after"] {
        let read = alice.walk(&channel, name).await;
        let Some(pb::answer::Answer::Walk(walk)) = &read.answers[0].answer else { panic!() };
        assert_eq!(walk.steps.len(), 1, "{name}");
    }
    group.start(second).await.unwrap();
    // The old volume comes back, learns that it does not belong any more, and says so.
    group.start(first).await.unwrap();
    let old = group.members[first].take().unwrap();
    let ended = tokio::time::timeout(LONG, old.until(&Shutdown::new())).await.unwrap();
    assert!(matches!(ended, Err(MemberError::Dismissed { member }) if member == lost), "{ended:?}");
    group.stop_all().await;
}

/// Goal: what was acknowledged outlives the leader, and then all members. Method: the leader ends as
/// in a crash, the others go on; then all end and start again.
/// Proves S19 of docs/semantics.md.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_outlives_the_leader_and_a_restart_of_all() {
    let mut group = TestGroup::running(3).await;
    let first_leader = group.leader().await;
    let survivor = other_than(first_leader);
    let channel = group.channel(survivor);
    let alice = User::registered(&group, survivor, "alice").await;
    let before = alice.create(&channel, "before", &[1]).await;
    group.crash(first_leader).await;

    let during = alice.create(&channel, "during", &[2]).await;
    assert!(during > before);
    let second_leader = group.leader().await;
    assert_ne!(second_leader, first_leader);
    // The one that was away catches up and takes part again.
    group.start(first_leader).await.unwrap();
    let back = group.channel(first_leader);
    // The group itself may have put something into the log since.
    assert!(alice.walk(&back, "during").await.revision >= during);

    group.stop_all().await;
    for number in 0..3 {
        group.start(number).await.unwrap();
    }
    for number in 0..3 {
        let channel = group.channel(number);
        for name in ["before", "during"] {
            let read = alice.walk(&channel, name).await;
            let Some(pb::answer::Answer::Walk(walk)) = &read.answers[0].answer else { panic!() };
            assert_eq!(walk.steps.len(), 1, "{name} at member {number}");
        }
    }
    let after = alice.create(&channel, "after", &[3]).await;
    assert!(after > during);
    group.stop_all().await;
}

/// Goal: a leader without a majority tells nobody anything, and what it could not finish is done once
/// when the majority is back. Method: both others end; a read and a submission; one comes back.
/// Proves S6, S23 of docs/semantics.md.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_without_a_majority_answers_nothing() {
    let mut group = TestGroup::running(3).await;
    let leader = group.leader().await;
    let channel = group.channel(leader);
    let alice = User::registered(&group, leader, "alice").await;
    for other in (0..3).filter(|other| *other != leader) {
        group.crash(other).await;
    }
    let submission = alice.submission(Draft::default().file(alice.home, "a", &[], 0));
    let mut request = alice.request(pb::SubmitRequest { submission: submission.clone().into() });
    request.set_timeout(Duration::from_millis(300));
    let unanswered = directory(&channel).submit(request).await.unwrap_err();
    assert!(matches!(unanswered.code(), Code::Cancelled | Code::Unavailable), "{unanswered:?}");
    // At first no majority confirms it; after a while it does not take itself for the leader any more.
    let given_up = async {
        loop {
            let request = alice.request(alice.walk_request("a", 0));
            let refused = directory(&channel).read(request).await.unwrap_err();
            assert_eq!(refused.code(), Code::Unavailable);
            match reason(&refused).as_str() {
                "NO_QUORUM" => {}
                "NOT_LEADER" => return,
                other => panic!("{other}"),
            }
        }
    };
    tokio::time::timeout(LONG, given_up).await.unwrap();

    group.start(other_than(leader)).await.unwrap();
    let (outcomes, _) = alice.send(&channel, submission.clone()).await;
    assert!(outcomes[0].is_ok(), "{outcomes:?}");
    let read = alice.walk(&channel, "a").await;
    let Some(pb::answer::Answer::Walk(walk)) = &read.answers[0].answer else { panic!() };
    assert_eq!(walk.steps.len(), 1);
    group.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_told_to_stop_lets_another_lead_first() {
    let mut group = TestGroup::running(3).await;
    let leader = group.leader().await;
    let channel = group.channel(other_than(leader));
    let alice = User::registered(&group, leader, "alice").await;
    let shutdown = Shutdown::new();
    let mut stopping = group.members[leader].take().unwrap();
    // On a busy machine the others take longer to elect one of them.
    stopping.timing.step_down = LONG;
    let raft = stopping.raft.clone();
    shutdown.request("the test says so");
    tokio::time::timeout(LONG, stopping.until(&shutdown)).await.unwrap().unwrap();
    let last_known = raft.metrics().borrow().current_leader;
    let own = group.descriptor.members[leader].id.as_u64();
    assert!(last_known.is_some_and(|last| last != own), "{last_known:?}");
    alice.create(&channel, "still here", &[]).await;
    group.stop_all().await;
}

/// Proves S24 of docs/semantics.md.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_are_proven_and_bundles_checked_at_the_door() {
    let mut group = TestGroup::running(1).await;
    let channel = group.channel(0);
    let alice = User::registered(&group, 0, "alice").await;
    let mallory = User::registered(&group, 0, "mallory").await;
    let now = unix_ms();

    // Goal: nobody reads without a fresh proof of an open session.
    let stranger = alice.proof(now + 50_000);
    let other_key = coffer_model::session::SessionProof {
        key: coffer_model::signing::Signer::public_key(&mallory.session),
        ..stranger.clone()
    };
    let elsewhere = coffer_model::session::SessionProof {
        audience: coffer_model::id::ClusterId::from_bytes([1; 32]),
        ..stranger.clone()
    };
    let rows = [
        ("forged", stranger.sign(&mallory.session), "SESSION_PROOF_INVALID"),
        ("of another session's key", other_key.sign(&mallory.session), "SESSION_CLOSED"),
        ("for another cluster", elsewhere.sign(&alice.session), "SESSION_PROOF_INVALID"),
        (
            "expired",
            alice.proof(now - CLOCK_SKEW_MS_MAX - 1000).sign(&alice.session),
            "SESSION_PROOF_EXPIRED",
        ),
        ("too far ahead", alice.proof(now + 600_000).sign(&alice.session), "SESSION_PROOF_EXPIRED"),
        ("rubbish", vec![1, 2, 3], "SESSION_PROOF_INVALID"),
        ("too long", vec![0; 4096], "SESSION_PROOF_INVALID"),
    ];
    for (what, header, expected) in rows {
        let request = with_header(alice.walk_request("a", 0), &header);
        let refused = directory(&channel).read(request).await.unwrap_err();
        assert_eq!(
            (refused.code(), reason(&refused).as_str()),
            (Code::Unauthenticated, expected),
            "{what}"
        );
    }
    let bare = Request::new(alice.walk_request("a", 0));
    let refused = directory(&channel).read(bare).await.unwrap_err();
    assert_eq!(reason(&refused), "SESSION_REQUIRED");

    // Goal: a bundle that could never be applied is refused with what is wrong with it.
    let submit = async |user: &User, submission: Vec<u8>| {
        let request = user.request(pb::SubmitRequest { submission: submission.into() });
        directory(&channel).submit(request).await.unwrap_err()
    };
    let draft = || Draft::default().file(alice.home, "a", &[], 0);
    let mut tampered = alice.submission(draft());
    let middle = tampered.len() / 2;
    tampered[middle] ^= 1;
    assert_eq!(reason(&submit(&alice, tampered).await), "BUNDLE_REJECTED");
    let refused = submit(&alice, vec![7; 5 << 20]).await;
    assert!(matches!(rejection(&refused), BundleRejection::Malformed(_)));
    assert_eq!(refused.code(), Code::FailedPrecondition);
    // With somebody else's proof.
    let refused = submit(&mallory, alice.submission(draft())).await;
    assert_eq!(rejection(&refused), BundleRejection::Session);
    assert_eq!(refused.code(), Code::Unauthenticated);
    // Too late: the answer says what time it is.
    let session = coffer_model::bundle::Author::Session(alice.certificate.hash());
    let log_time = coffer_model::time::LogTime::from_unix_ms(group.log_time().await);
    let past = coffer_model::time::LogTime::from_unix_ms(1000);
    let refused = submit(&alice, alice.sign(draft(), session, past)).await;
    assert!(matches!(rejection(&refused), BundleRejection::Expired(time) if time >= log_time));
    // None of this left a trace.
    let read = alice.walk(&channel, "a").await;
    let Some(pb::answer::Answer::Walk(walk)) = &read.answers[0].answer else { panic!() };
    assert!(walk.steps.is_empty());
    group.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_password_is_proven_and_guesses_are_counted() {
    let mut group = TestGroup::running(3).await;
    let leader = group.leader().await;
    let follower = other_than(leader);
    let (at_leader, elsewhere) = (group.channel(leader), group.channel(follower));
    let alice = User::registered(&group, leader, "alice").await;

    // Begun at one member and finished through another.
    for channels in [(&at_leader, &elsewhere), (&elsewhere, &at_leader)] {
        let login = alice.login(channels, b"secret").await.unwrap();
        assert_eq!(login.keyring, "keyring of alice".as_bytes());
        assert!(login.log_time_ms > 0);
        let proof: OpProof = decode("op proof", &login.user_proof).unwrap();
        proof.verify(&group.id, |_, _| false).unwrap();
    }
    let wrong = alice.login((&elsewhere, &elsewhere), b"guess").await.unwrap_err();
    assert_eq!((wrong.code(), reason(&wrong).as_str()), (Code::Unauthenticated, "WRONG_PASSWORD"));

    // Nobody can tell an unknown name from a wrong password.
    let mut nobody = User::registered(&group, leader, "bob").await;
    nobody.name = "nobody".parse().unwrap();
    let unknown = nobody.login((&at_leader, &at_leader), b"guess").await.unwrap_err();
    assert_eq!((unknown.code(), unknown.message()), (wrong.code(), wrong.message()));
    assert_eq!(unknown.details(), wrong.details());

    // The sealed keyring is handed out without a login, at any member, and only of users there are.
    let keyring = async |name: &str| {
        coffer_proto::v1::login_service_client::LoginServiceClient::new(elsewhere.clone())
            .get_keyring(pb::GetKeyringRequest { name: name.to_owned() })
            .await
    };
    let told = keyring("alice").await.unwrap().into_inner();
    assert_eq!(told.keyring, "keyring of alice".as_bytes());
    let proof: OpProof = decode("op proof", &told.user_proof).unwrap();
    proof.verify(&group.id, |_, _| false).unwrap();
    let unknown = keyring("somebody").await.unwrap_err();
    assert_eq!((unknown.code(), reason(&unknown).as_str()), (Code::NotFound, "USER_UNKNOWN"));

    // Good logins do not use the guesses up; bad ones do.
    for _ in 0..12 {
        alice.login((&at_leader, &at_leader), b"secret").await.unwrap();
    }
    let limited = async {
        loop {
            let refused = alice.login((&at_leader, &at_leader), b"guess").await.unwrap_err();
            if refused.code() == Code::ResourceExhausted {
                return refused;
            }
            assert_eq!(reason(&refused), "WRONG_PASSWORD");
        }
    };
    let limited = tokio::time::timeout(LONG, limited).await.unwrap();
    assert_eq!(reason(&limited), "TOO_MANY_ATTEMPTS");
    // Fetching the keyring is counted with them.
    assert_eq!(reason(&keyring("alice").await.unwrap_err()), "TOO_MANY_ATTEMPTS");
    assert!(retry_delay(&limited).is_some());

    // An attempt is good for one proof.
    let spent = pb::FinishLoginRequest { attempt: vec![0; 24].into(), message: vec![].into() };
    let spent = coffer_proto::v1::login_service_client::LoginServiceClient::new(at_leader)
        .finish_login(spent)
        .await
        .unwrap_err();
    assert_eq!(reason(&spent), "LOGIN_EXPIRED");
    group.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn storage_nodes_report_and_follow_the_feed() {
    let mut group = TestGroup::running(3).await;
    let leader = group.leader().await;
    let follower = other_than(leader);
    let alice = User::registered(&group, leader, "alice").await;
    let chunks: Vec<u64> = (0..100).collect();
    alice.create(&group.channel(leader), "big", &chunks).await;

    for node in 0..2 {
        let channel = group.node_channel(follower, node);
        let report = group.report(node, 1, &format!("node-{node}:7443"));
        let answer =
            eventually(async || member_client(channel.clone()).report_node(report.clone()).await);
        let answer = answer.await.into_inner();
        assert!(!answer.layout.is_empty() && answer.log_time_ms > 0);
        assert_eq!(answer.nodes.len(), node + 1);
        assert!(answer.nodes.iter().all(|node| node.reachable));
    }
    let status = ClusterServiceClient::new(group.channel(follower))
        .get_status(pb::GetStatusRequest {})
        .await
        .unwrap()
        .into_inner();
    let nodes: Vec<_> = status
        .nodes
        .iter()
        .map(|node| (node.address.as_str(), node.reachable, node.used_bytes, node.missing_chunks))
        .collect();
    assert_eq!(
        nodes,
        [("node-0:7443", true, 7, 1), ("node-1:7443", true, 7, 1), ("", false, 0, 0)]
    );
    assert_eq!(status.members.len(), 3);
    assert!(status.members.iter().all(|member| member.reachable));

    // The same report again changes nothing in the log; one from before is refused.
    versions::settled(&group, leader).await;
    let status = ClusterServiceClient::new(group.channel(leader))
        .get_status(pb::GetStatusRequest {})
        .await
        .unwrap()
        .into_inner();
    let revision = status.revision;
    let channel = group.node_channel(leader, 0);
    let report = async |report| member_client(channel.clone()).report_node(report).await;
    report(group.report(0, 2, "node-0:7443")).await.unwrap();
    let stale = report(group.report(0, 1, "elsewhere:7443")).await.unwrap_err();
    assert_eq!(reason(&stale), "STALE_REPORT");
    let other = report(group.report(1, 9, "node-1:7443")).await.unwrap_err();
    assert_eq!((other.code(), reason(&other).as_str()), (Code::PermissionDenied, "NOT_YOURS"));
    let mut forged = group.report(0, 9, "node-0:7443");
    forged.signature = vec![0; 64].into();
    assert_eq!(report(forged).await.unwrap_err().code(), Code::PermissionDenied);
    let status = ClusterServiceClient::new(group.channel(leader))
        .get_status(pb::GetStatusRequest {})
        .await
        .unwrap()
        .into_inner();
    assert_eq!(status.revision, revision);

    // Three nodes hold everything: each one's feed has every chunk once, in steps.
    let channel = group.node_channel(follower, 0);
    let feed = async |after, limit| {
        let node_id = node_id(0).as_bytes().to_vec().into();
        let request = internal_pb::ReadFeedRequest { node_id, after, limit };
        member_client(channel.clone()).read_feed(request).await.unwrap().into_inner()
    };
    let (mut seen, mut after) = (BTreeSet::new(), 0);
    loop {
        let step = feed(after, 30).await;
        for row in &step.rows {
            assert_eq!(row.length, 1000);
            assert!(seen.insert(ChunkId::try_from(&row.chunk_id[..]).unwrap()));
        }
        after = step.next;
        if !step.more {
            break;
        }
    }
    assert_eq!(seen, chunks.iter().map(|number| chunk_id(*number)).collect());
    let node_one = internal_pb::ReadFeedRequest {
        node_id: node_id(1).as_bytes().to_vec().into(),
        after: 0,
        limit: 1,
    };
    let other = member_client(channel.clone()).read_feed(node_one).await.unwrap_err();
    assert_eq!(reason(&other), "NOT_YOURS");
    group.stop_all().await;
}

/// Goal: a certificate alone admits nobody to the group's own service.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_those_in_the_descriptor_are_members() {
    let mut group = TestGroup::running(1).await;
    group.leader().await;
    let member = |id: [u8; 16]| PeerId::new("metadata", id).unwrap();
    let vote = Vote::new(u64::MAX, group.descriptor.members[0].id.as_u64());
    let request = openraft::raft::VoteRequest::new(vote, None);
    let message = crate::codec::encode_vote_request(&request);
    let ask = async |channel: coffer_service::channel::Channel| {
        let request = internal_pb::VoteRequest { message: message.clone().into() };
        member_client(channel).vote(request).await.unwrap_err()
    };
    let rows = [
        (group.channel_as(0, &member([1; 16])), "NOT_IN_DESCRIPTOR"),
        (group.channel(0), "NOT_IN_DESCRIPTOR"),
        (group.node_channel(0, 0), "NOT_A_MEMBER"),
    ];
    for (channel, expected) in rows {
        let refused = ask(channel.clone()).await;
        assert_eq!((refused.code(), reason(&refused).as_str()), (Code::PermissionDenied, expected));
        let clock = member_client(channel).read_clock(internal_pb::ReadClockRequest {}).await;
        assert_eq!(clock.unwrap_err().code(), Code::PermissionDenied);
    }
    // A certificate of another authority does not even get a connection.
    let stranger = OneBoxCa::ephemeral().unwrap();
    let mut files =
        stranger.issue_into(&group.dir.path().join("stranger"), &[], &member([1; 16])).unwrap();
    files.ca = group.configs[0].tls.ca.clone();
    let refused = ask(group.channel_with(0, &files)).await;
    assert_ne!(refused.code(), Code::PermissionDenied);
    group.stop_all().await;
}

/// Goal: whoever has a certificate of the authority and a member's address is not that member.
/// Method: a storage node, and a member with another id, answer where a member should.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_else_answers_for_a_member() {
    let group = TestGroup::founded(2).await;
    let (address, own) = (group.configs[1].listen, group.descriptor.members[1].id);
    let opened = Opened::open(&group.configs[0]).unwrap();
    let peers = Peers::new(&opened.group, &opened.tls).unwrap();
    let stranger = PeerId::new("metadata", [1; 16]).unwrap();
    let node = PeerId::new("storage", *node_id(0).as_bytes()).unwrap();
    let right = peer_uri_id(&read_certificates(&group.configs[1].tls.certificate).unwrap());
    for (peer, let_in) in [(stranger, false), (node, false), (right.unwrap(), true)] {
        let files = group.dir.path().join("answering");
        let files = group.authority.issue_into(&files, &[], &peer).unwrap();
        let server = GrpcServer::new(
            LiveTls::load(files, ClientAuth::Required).unwrap(),
            ServerLimits::standard(),
        );
        let (stop, listener) = (CancellationToken::new(), group.listen_as(1).await);
        assert_eq!(listener.local_addr().unwrap(), address);
        let routes = tonic::service::Routes::new(Health::new().await.service());
        let serving = tokio::spawn(server.serve(listener, routes, stop.clone()));
        let call = peers.raft(own).unwrap().read_clock(internal_pb::ReadClockRequest {}).await;
        // Who is let in is asked, and does not know the service.
        let expected = if let_in { Code::Unimplemented } else { Code::Unavailable };
        assert_eq!(call.unwrap_err().code(), expected, "{peer}");
        stop.cancel();
        serving.await.unwrap().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_is_used_by_its_own_member_of_its_own_cluster_only() {
    let mut group = TestGroup::running(1).await;
    group.leader().await;

    // In use.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let locked = Running::start(group.configs[0].clone(), LogPolicy::STANDARD, listener)
        .await
        .err()
        .unwrap();
    assert!(matches!(locked, MemberError::Identity(IdentityError::Locked { .. })), "{locked}");
    group.stop_all().await;

    // Another cluster's descriptor.
    let other = TestGroup::founded(1).await;
    let foreign = Config {
        descriptor: other.configs[0].descriptor.clone(),
        layout: other.configs[0].layout.clone(),
        ..group.configs[0].clone()
    };
    let refused = start_anywhere(foreign).await;
    assert!(
        matches!(refused, MemberError::Identity(IdentityError::ForeignVolume { .. })),
        "{refused}"
    );

    // A stranger's volume, and one whose certificate is another's.
    let stranger = Config { data_dir: group.dir.path().join("new"), ..group.configs[0].clone() };
    let refused = start_anywhere(stranger).await;
    assert!(matches!(refused, MemberError::Certificate { .. }), "{refused}");
    let data_dir = group.dir.path().join("other");
    let identity = ProcessIdentity::load_or_create(&data_dir, ROLE, None).unwrap();
    let tls = group.authority.issue_into(&group.dir.path().join("x"), &[], identity.peer_id());
    drop(identity);
    let stranger = Config { data_dir, tls: tls.unwrap(), ..group.configs[0].clone() };
    let refused = start_anywhere(stranger).await;
    assert!(matches!(refused, MemberError::Group(GroupError::NotAMember { .. })), "{refused}");

    // Another member's store under this member's identity.
    let mixed = group.dir.path().join("mixed");
    copy_dir(&group.configs[0].data_dir, &mixed);
    std::fs::remove_dir_all(mixed.join("raft")).unwrap();
    let lost = Config { data_dir: mixed.clone(), ..group.configs[0].clone() };
    let refused = start_anywhere(lost.clone()).await;
    assert!(matches!(refused, MemberError::StoreLost { .. }), "{refused}");
    let stranger = MemberId::from_u64(1);
    drop(Store::open(&mixed.join("raft"), &group.id, stranger).unwrap());
    let refused = start_anywhere(lost).await;
    assert!(matches!(refused, MemberError::Store(StoreError::Foreign { .. })), "{refused}");

    // Secrets that others can read.
    use std::os::unix::fs::PermissionsExt;
    let open = std::fs::Permissions::from_mode(0o644);
    std::fs::set_permissions(&group.configs[0].opaque_setup, open).unwrap();
    let refused = start_anywhere(group.configs[0].clone()).await;
    assert!(matches!(refused, MemberError::Setup(SetupError::Exposed { .. })), "{refused}");
}

async fn start_anywhere(config: Config) -> MemberError {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    Running::start(config, LogPolicy::STANDARD, listener).await.err().unwrap()
}

/// Goal: a member whose disk fails stops and says so, acknowledges nothing it does not have, and is
/// whole again after a restart. Method: the write fails before anything is written, or afterwards.
/// Proves S22 of docs/semantics.md.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_write_ends_the_member_and_the_next_start_recovers() {
    for fault in [WriteFault::NotDone, WriteFault::DoneButReported] {
        let mut group = TestGroup::running(1).await;
        let channel = group.channel(0);
        let alice = User::registered(&group, 0, "alice").await;
        let before = alice.create(&channel, "before", &[]).await;
        let member = group.members[0].take().unwrap();
        *member.store.fault.lock().unwrap() = Some(fault);
        let submission = alice.submission(Draft::default().file(alice.home, "lost", &[], 0));
        let request = alice.request(pb::SubmitRequest { submission: submission.clone().into() });
        let shutdown = Shutdown::new();
        let mut calls = directory(&channel);
        let (ended, answered) = tokio::join!(member.until(&shutdown), calls.submit(request));
        let ended = ended.unwrap_err();
        assert!(matches!(ended, MemberError::Store(StoreError::Poisoned(_))), "{ended}");
        answered.unwrap_err();

        group.start(0).await.unwrap();
        // The client repeats the request and gets one answer, whatever became of the first.
        let (outcomes, revision) = alice.send(&channel, submission).await;
        assert!(outcomes[0].is_ok() && revision > before);
        let read = alice.walk(&channel, "lost").await;
        let Some(pb::answer::Answer::Walk(walk)) = &read.answers[0].answer else { panic!() };
        assert_eq!(walk.steps.len(), 1);
        group.stop_all().await;
    }
}

/// Goal: submissions that come together share entries, and each gets its own answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn submissions_that_wait_share_an_entry() {
    let mut group = TestGroup::running(1).await;
    let channel = group.channel(0);
    let alice = User::registered(&group, 0, "alice").await;
    let raft = group.members[0].as_ref().unwrap().raft.clone();
    let before = raft.metrics().borrow().last_log_index.unwrap();
    let mut calls = tokio::task::JoinSet::new();
    for number in 0..200u64 {
        let name = format!("file {number}");
        // Every tenth is of a name that is taken by then, or takes it.
        let draft =
            Draft::default().file(alice.home, &format!("file {}", number / 10 * 10), &[], 0);
        let unique = Draft::default().file(alice.home, &name, &[], 0);
        let draft = if number % 10 == 1 { draft } else { unique };
        let request =
            alice.request(pb::SubmitRequest { submission: alice.submission(draft).into() });
        let mut client = directory(&channel);
        calls.spawn(async move { client.submit(request).await.unwrap().into_inner() });
    }
    let (mut good, mut revisions) = (0, BTreeSet::new());
    while let Some(answer) = calls.join_next().await {
        let answer = answer.unwrap();
        let outcomes: coffer_model::bundle::Outcomes =
            decode("outcomes", &answer.outcomes).unwrap();
        good += usize::from(outcomes[0].is_ok());
        assert!(revisions.insert(answer.revision));
    }
    assert_eq!(good, 180);
    let entries = raft.metrics().borrow().last_log_index.unwrap() - before;
    assert!(entries < 150, "200 submissions took {entries} entries");
    group.stop_all().await;
}

/// A log that is cut after some tens of entries, and looked at often.
const SHORT_LOG: LogPolicy = LogPolicy {
    entries_max: 40,
    bytes_max: 100 << 20,
    kept_entries: 15,
    kept_bytes: 50 << 20,
    look_every: Duration::from_millis(20),
};

/// Waits for something that comes by itself.
async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let waiting = async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(LONG, waiting).await.unwrap_or_else(|_| panic!("{what}"));
}

impl TestGroup {
    fn running_member(&self, number: usize) -> &Running {
        self.members[number].as_ref().unwrap()
    }

    /// The first index the log of a member may still have.
    fn log_begin(&self, number: usize) -> u64 {
        let metrics = self.running_member(number).raft.metrics().borrow().clone();
        metrics.purged.map_or(0, |purged| purged.index + 1)
    }

    /// Makes files until the log of a member begins behind `index`.
    async fn fill_until_cut(&self, user: &User, number: usize, index: u64, word: &str) -> u64 {
        let (channel, mut count, mut revision) = (self.channel(number), 0, 0);
        while self.log_begin(number) <= index {
            revision = user.create(&channel, &format!("{word} {count}"), &[count]).await;
            count += 1;
            assert!(count < 1000, "the log is not cut");
        }
        revision
    }

    /// Waits until two members have applied the same entries, and compares all they have.
    async fn assert_same_state(&self, left: usize, right: usize) {
        let view = |number: usize| View::of(&self.running_member(number).store);
        let applied = |view: &View| view.meta(Meta::Applied, decode_log_id).unwrap().flatten();
        let compared = async {
            loop {
                // Log time may move meanwhile.
                let (left, right) = (view(left), view(right));
                if applied(&left) == applied(&right) {
                    let (left, right) = (all_rows(&left), all_rows(&right));
                    assert!(left == right, "the members differ");
                    assert!(left.len() > 20);
                    return;
                }
                drop((left, right));
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(LONG, compared).await.unwrap();
    }

    async fn assert_has(&self, user: &User, number: usize, name: &str) {
        let read = user.walk(&self.channel(number), name).await;
        let Some(pb::answer::Answer::Walk(walk)) = &read.answers[0].answer else { panic!() };
        assert_eq!(walk.steps.len(), 1, "{name} at member {number}");
    }
}

/// Goal: a member that was away for longer than the log reaches gets the state, byte for byte, while
/// the others go on; it can then do without them, restart, and be the one that brings up another.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_the_log_does_not_reach_catches_up_by_snapshot() {
    let mut group = TestGroup::founded(3).await;
    group.policy = SHORT_LOG;
    for number in 0..3 {
        group.start(number).await.unwrap();
    }
    let leader = group.leader().await;
    let (away, third) = (other_than(leader), other_than(other_than(leader)));
    let alice = User::registered(&group, leader, "alice").await;
    alice.create(&group.channel(leader), "before", &[1]).await;
    let last = group.running_member(away).raft.metrics().borrow().last_log_index.unwrap();
    group.crash(away).await;
    let revision = group.fill_until_cut(&alice, leader, last + 1, "while away").await;

    group.start(away).await.unwrap();
    // The group serves meanwhile.
    let during = alice.create(&group.channel(leader), "during", &[2]).await;
    assert!(during > revision);
    group.assert_same_state(leader, away).await;
    let generation =
        |store: &Store| store.meta(Meta::Generation, crate::codec::decode_generation).unwrap();
    assert_eq!(generation(&group.running_member(away).store), Some(1), "it came by snapshot");
    for name in ["before", "while away 0", "during"] {
        group.assert_has(&alice, away, name).await;
    }
    // It keeps what it got, and its log goes on behind it.
    group.crash(away).await;
    group.start(away).await.unwrap();
    group.assert_same_state(leader, away).await;

    // Now two of three are there, one of them the one that was brought up.
    group.crash(third).await;
    group.fill_until_cut(&alice, leader, group.log_begin(leader) + 100, "with two").await;
    group.start(third).await.unwrap();
    group.assert_same_state(leader, third).await;
    group.crash(leader).await;
    alice.create(&group.channel(away), "without the leader", &[3]).await;
    group.assert_same_state(away, third).await;
    group.assert_has(&alice, third, "before").await;
    group.stop_all().await;

    // All start again, with logs that do not begin at the beginning.
    for number in 0..3 {
        group.start(number).await.unwrap();
    }
    for number in 0..3 {
        for name in ["before", "with two 0", "without the leader"] {
            group.assert_has(&alice, number, name).await;
        }
    }
    group.stop_all().await;
}

/// Goal: a member that is named in the descriptor and has nothing yet is brought up by a snapshot where
/// the log has been cut, and by the log where it has not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_with_nothing_catches_up() {
    for (policy, by_snapshot) in [(SHORT_LOG, true), (LogPolicy::STANDARD, false)] {
        let mut group = TestGroup::founded(3).await;
        group.policy = policy;
        group.start(0).await.unwrap();
        group.start(1).await.unwrap();
        let leader = group.leader().await;
        // The clock of the member that is not there yet is not waited for long, and not in vain.
        while group.log_time().await == 0 {}
        let alice = User::registered(&group, leader, "alice").await;
        if policy == SHORT_LOG {
            group.fill_until_cut(&alice, leader, 50, "early").await;
        } else {
            for number in 0..20 {
                alice.create(&group.channel(leader), &format!("early {number}"), &[number]).await;
            }
        }
        group.start(2).await.unwrap();
        group.assert_same_state(leader, 2).await;
        let store = &group.running_member(2).store;
        let found = store.meta(Meta::Generation, crate::codec::decode_generation).unwrap();
        // The log may be cut again while a snapshot is taken; then there is one more.
        assert_eq!(found.is_some(), by_snapshot, "{found:?}");
        group.crash(leader).await;
        group.assert_has(&alice, 2, "early 3").await;
        group.stop_all().await;
    }
}

/// Goal: who was away shortly needs no snapshot, although the log was cut meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_was_away_shortly_catches_up_from_the_log() {
    let mut group = TestGroup::founded(3).await;
    group.policy = LogPolicy { kept_entries: 35, ..SHORT_LOG };
    for number in 0..3 {
        group.start(number).await.unwrap();
    }
    let leader = group.leader().await;
    let away = other_than(leader);
    let alice = User::registered(&group, leader, "alice").await;
    // Just before the next cut.
    let channel = group.channel(leader);
    let last = || group.running_member(leader).raft.metrics().borrow().last_log_index.unwrap();
    let mut number = 0;
    while last() < group.log_begin(leader) + 38 {
        alice.create(&channel, &format!("file {number}"), &[number]).await;
        number += 1;
    }
    let begin = group.log_begin(leader);
    let raft = group.running_member(away).raft.clone();
    let reached = last();
    until("it has all", || raft.metrics().borrow().last_log_index >= Some(reached)).await;
    drop(raft);
    group.crash(away).await;
    group.fill_until_cut(&alice, leader, begin, "away").await;
    group.start(away).await.unwrap();
    group.assert_same_state(leader, away).await;
    let store = &group.running_member(away).store;
    let generation = store.meta(Meta::Generation, crate::codec::decode_generation).unwrap();
    assert_eq!(generation, None, "no snapshot was needed");
    group.stop_all().await;
}

/// Goal: a log whose entries are large is cut by its bytes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_of_large_entries_is_cut() {
    let mut group = TestGroup::founded(1).await;
    let (bytes_max, kept_bytes) = (2 << 20, 1 << 20);
    group.policy = LogPolicy {
        bytes_max,
        kept_bytes,
        look_every: SHORT_LOG.look_every,
        ..LogPolicy::STANDARD
    };
    group.start(0).await.unwrap();
    let channel = group.channel(0);
    let alice = User::registered(&group, 0, "alice").await;
    let mut number = 0;
    while group.log_begin(0) == 0 {
        let draft = Draft::default().file(alice.home, &format!("file {number}"), &[], 60 << 10);
        alice.send(&channel, alice.submission(draft)).await;
        number += 1;
        assert!(number < 200, "the log is not cut");
    }
    assert!(number >= 30, "two megabytes had to be there: {number}");
    // It is the files of the log that got shorter, and nothing else.
    let store = &group.running_member(0).store;
    let kept: usize = store.entries(0, u64::MAX, usize::MAX).unwrap().iter().map(Vec::len).sum();
    assert!(kept < 3 << 20, "{kept}");
    group.assert_has(&alice, 0, "file 0").await;
    group.crash(0).await;
    group.start(0).await.unwrap();
    group.assert_has(&alice, 0, "file 0").await;
    group.stop_all().await;
}

/// Goal: whoever sends a snapshot that is not right, or is not who may send one, is refused, and the
/// member goes on with what it has.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_is_taken_from_who_leads_and_only_whole() {
    let mut group = TestGroup::running(3).await;
    let leader = group.leader().await;
    let follower = other_than(leader);
    let alice = User::registered(&group, leader, "alice").await;
    alice.create(&group.channel(leader), "before", &[1]).await;
    let peer = |number: usize| {
        let certificate = &group.configs[number].tls.certificate;
        peer_uri_id(&read_certificates(certificate).unwrap()).unwrap()
    };
    let vote = group.running_member(leader).raft.metrics().borrow().vote;
    let led = openraft::CommittedLeaderId::new(vote.leader_id.term, vote.leader_id.node_id);
    let header = Header {
        cluster: group.id,
        vote,
        last: LogId::new(led, 1 << 40),
        membership: StoredMembership::default(),
    };
    let view = View::of(&group.running_member(leader).store);
    let messages = |header: &Header| {
        let mut messages = Vec::new();
        let take = |message: Vec<u8>| {
            messages.push(message);
            true
        };
        stream(header, &view, take).unwrap();
        messages
    };
    let send = async |channel: &coffer_service::channel::Channel, messages: &[Vec<u8>]| {
        let messages: Vec<_> = messages
            .iter()
            .map(|message| internal_pb::StreamSnapshotRequest { message: message.clone().into() })
            .collect();
        internal_pb::snapshot_service_client::SnapshotServiceClient::new(channel.clone())
            .stream_snapshot(tokio_stream::iter(messages))
            .await
    };
    let as_leader = group.channel_as(follower, &peer(leader));
    let good = messages(&header);
    let end = good.len() - 1;
    let mut flipped = good.clone();
    let middle = flipped[1].len() / 2;
    flipped[1][middle] ^= 1;
    let mut later = good.clone();
    later[0][0] = 2;
    let mut longer = good.clone();
    longer.push(good[end].clone());
    let foreign =
        Header { cluster: coffer_model::id::ClusterId::from_bytes([7; 32]), ..header.clone() };
    let candidate =
        Header { vote: Vote::new(vote.leader_id.term, vote.leader_id.node_id), ..header.clone() };
    let rows = [
        (&as_leader, good[..end].to_vec(), "SNAPSHOT_DAMAGED"),
        (&as_leader, good[..1].to_vec(), "SNAPSHOT_DAMAGED"),
        (&as_leader, vec![], "SNAPSHOT_DAMAGED"),
        (&as_leader, flipped, "SNAPSHOT_DAMAGED"),
        (&as_leader, longer, "SNAPSHOT_DAMAGED"),
        (&as_leader, later, "SNAPSHOT_VERSION"),
        (&as_leader, messages(&foreign), "SNAPSHOT_FOREIGN"),
        (&as_leader, messages(&candidate), "NOT_YOURS"),
        (&group.channel_as(follower, &peer(other_than(follower))), good.clone(), "NOT_YOURS"),
        (&group.node_channel(follower, 0), good.clone(), "NOT_A_MEMBER"),
        (&group.channel(follower), good.clone(), "NOT_IN_DESCRIPTOR"),
    ];
    for (channel, messages, expected) in rows {
        let refused = send(channel, &messages).await.unwrap_err();
        assert_eq!(reason(&refused), expected, "{refused}");
    }
    // Of a leader that was replaced, and of what is known already, nothing is taken: the answer says who
    // leads, or that all is well.
    let former = Header { vote: Vote::new_committed(0, vote.leader_id.node_id), ..header.clone() };
    let known = Header { last: LogId::new(led, 0), ..header };
    for header in [former, known] {
        let answer = send(&as_leader, &messages(&header)[..1]).await.unwrap().into_inner();
        assert_eq!(answer.message, encode_vote(&vote));
    }
    drop(view);
    let store = &group.running_member(follower).store;
    assert_eq!(store.meta(Meta::Generation, crate::codec::decode_generation).unwrap(), None);
    alice.create(&group.channel(leader), "after", &[2]).await;
    group.assert_same_state(leader, follower).await;
    group.stop_all().await;
}

#[test]
fn a_members_id_is_the_beginning_of_its_volumes_id() {
    let dir = tempfile::tempdir().unwrap();
    let (id, key) = init(dir.path()).unwrap();
    assert_eq!(init(dir.path()).unwrap(), (id, key));
    let identity = ProcessIdentity::load_or_create(dir.path(), ROLE, None).unwrap();
    assert_eq!(id.as_u64().to_le_bytes(), identity.id()[..8]);
    // Nothing of this is guessed: the names used above are spelt out once.
    assert_eq!(encode(&tag("x")).len(), 32);
    let _ = Key::of("x");
}
