//! Tests of the services, called as tonic calls them: who is let in, what is refused and how.
#![allow(clippy::unwrap_used)]

use coffer_model::chunk::ShardKey;
use coffer_model::encoding::encode;
use coffer_model::hash::Hash;
use coffer_model::id::{ClusterId, InodeId, MemberId, PrincipalId};
use coffer_model::layout::Layout;
use coffer_model::session::{CertificateHash, PROOF_HEADER, SessionProof};
use coffer_model::signing::{Domain, Signer};
use coffer_model::ticket::{Leave, Ticket};
use coffer_service::status::reason_of;
use tempfile::TempDir;
use tonic::metadata::MetadataValue;

use super::*;
use crate::clock::HOLD_MS;
use crate::door::now_unix_ms;
use crate::kit::{self, CLUSTER, Key, NODE, Opened, START, checked, chunk, ids};
use crate::store::Sizes;
use crate::store::platter::{Fault, Platter};

const MEMBER: MemberId = MemberId::from_u64(7);
const MIB: usize = 1 << 20;

fn member() -> Key {
    Key::of(7)
}

fn session() -> Key {
    Key::of(0x5e)
}

/// A node's services on a disk in memory. The store is closed after the services have let go of it.
struct Bench {
    service: Service<Platter>,
    platter: Platter,
    opened: Opened<Platter>,
    _index: TempDir,
}

impl Bench {
    /// A node that knows log time.
    fn new() -> Self {
        let bench = Self::without_time();
        bench.service.0.clock.learn(START);
        bench
    }

    fn without_time() -> Self {
        Self::offering(u64::MAX)
    }

    fn offering(capacity_bytes: u64) -> Self {
        let (platter, index) = (Platter::default(), tempfile::tempdir().unwrap());
        let sizes = Sizes { segment_bytes: 8 << 20, hold_ms: HOLD_MS, capacity_bytes };
        let opened =
            kit::open_with(NODE, platter.clone(), &index.path().join("index"), sizes).unwrap();
        let descriptor = kit::descriptor(
            vec![kit::member(MEMBER, &member(), "127.0.0.1:1")],
            vec![kit::storage_node(NODE, Key::of_node().public_key())],
        );
        let cluster = kit::cluster(index.path(), descriptor);
        let clock = Arc::new(LogClock::new(HOLD_MS));
        let served = Served::new(opened.store.clone(), clock, cluster, NODE);
        Self { service: Service(Arc::new(served)), platter, opened, _index: index }
    }

    async fn put(&self, ticket: Vec<u8>, chunks: Vec<Bytes>) -> Result<Vec<pb::Stored>, Status> {
        self.put_by(0, ticket, chunks).await
    }

    /// Puts chunks that were placed by the layout of a version.
    async fn put_by(
        &self,
        layout_version: u64,
        ticket: Vec<u8>,
        chunks: Vec<Bytes>,
    ) -> Result<Vec<pb::Stored>, Status> {
        let message = pb::PutChunksRequest { ticket: ticket.into(), chunks, layout_version };
        let answer = self.service.put_chunks(proven(message, &proof())).await?;
        Ok(answer.into_inner().stored)
    }

    async fn get(&self, ticket: Vec<u8>, ids: &[ChunkId]) -> Result<Vec<pb::Fetched>, Status> {
        let message = pb::GetChunksRequest { ticket: ticket.into(), chunk_ids: as_bytes(ids) };
        let answer = self.service.get_chunks(proven(message, &proof())).await?;
        Ok(answer.into_inner().fetched)
    }

    async fn renew(&self, ticket: Vec<u8>, ids: &[ChunkId]) -> Result<Vec<pb::Stored>, Status> {
        let message = pb::RenewReceiptsRequest { ticket: ticket.into(), chunk_ids: as_bytes(ids) };
        let answer = self.service.renew_receipts(proven(message, &proof())).await?;
        Ok(answer.into_inner().stored)
    }
}

fn as_bytes(ids: &[ChunkId]) -> Vec<Bytes> {
    ids.iter().map(|id| Bytes::copy_from_slice(id.as_bytes())).collect()
}

fn bytes(chunks: &[SealedChunk<Bytes>]) -> Vec<Bytes> {
    chunks.iter().map(|chunk| chunk.bytes().clone()).collect()
}

fn proof() -> SessionProof {
    SessionProof {
        audience: CLUSTER,
        certificate: CertificateHash::from_hash(Hash::of("a test", b"")),
        key: session().public_key(),
        expires_unix_ms: now_unix_ms() + 30_000,
    }
}

fn with_header<T>(message: T, header: &[u8]) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert_bin(PROOF_HEADER, MetadataValue::from_bytes(header));
    request
}

fn proven<T>(message: T, proof: &SessionProof) -> Request<T> {
    with_header(message, &proof.sign(&session()))
}

fn ticket(leave: Leave) -> Ticket {
    Ticket {
        cluster: CLUSTER,
        member: MEMBER,
        principal: PrincipalId::from_bytes([1; 16]),
        session: session().public_key(),
        leave,
        expires_unix_ms: now_unix_ms() + 30_000,
    }
}

fn writing(bytes_max: usize) -> Ticket {
    let home = InodeId::from_bytes([2; 16]);
    ticket(Leave::Write { home, bytes_max: bytes_max as u64 })
}

fn reading(ids: &[ChunkId]) -> Ticket {
    let mut chunks = ids.to_vec();
    chunks.sort_unstable();
    ticket(Leave::Read { chunks })
}

fn write() -> Vec<u8> {
    writing(64 * MIB).sign(&member())
}

fn read(ids: &[ChunkId]) -> Vec<u8> {
    reading(ids).sign(&member())
}

/// Code and reason of a refusal.
#[track_caller]
fn refusal<T>(answer: Result<T, Status>) -> (Code, Option<String>) {
    let Err(status) = answer else { panic!("it was not refused") };
    (status.code(), reason_of(&status).map(|reason| reason.code))
}

#[track_caller]
fn assert_refused<T>(answer: Result<T, Status>, code: Code, reason: &str) {
    assert_eq!(refusal(answer), (code, Some(reason.to_owned())));
}

#[tokio::test]
async fn chunks_are_put_read_and_renewed() {
    let bench = Bench::new();
    let chunks: Vec<_> = (0..5).map(|at| chunk(at, 1000)).collect();
    let absent = chunk(9, 10).id();
    let stored = bench.put(write(), bytes(&chunks)).await.unwrap();
    for (chunk, stored) in chunks.iter().zip(&stored) {
        assert_eq!(&stored.chunk_id[..], chunk.id().as_bytes());
        let [receipt] = &stored.receipts[..] else { panic!("one receipt of one node") };
        let receipt = checked(receipt);
        assert_eq!(receipt.held.shard.chunk, chunk.id());
        let kept_ms = receipt.held.keep_until.unix_ms() - START.unix_ms();
        // An hour of log time, which has moved on by a little since.
        assert!((HOLD_MS..HOLD_MS + 60_000).contains(&kept_ms), "{kept_ms}");
    }
    let mut ids = ids(&chunks);
    ids.push(absent);
    let fetched = bench.get(read(&ids), &ids).await.unwrap();
    let data: Vec<Bytes> = fetched.iter().map(|fetched| fetched.data.clone()).collect();
    let mut expected = bytes(&chunks);
    expected.push(Bytes::new());
    assert_eq!(data, expected);
    let renewed = bench.renew(write(), &ids).await.unwrap();
    let receipts: Vec<usize> = renewed.iter().map(|stored| stored.receipts.len()).collect();
    assert_eq!(receipts, [1, 1, 1, 1, 1, 0]);
}

#[tokio::test]
async fn a_ticket_that_is_not_good_is_refused_with_its_reason() {
    let bench = Bench::new();
    let now = now_unix_ms();
    let stranger = Key::of(8);
    let good = || writing(MIB);
    let other = ClusterId::from_bytes([9; 32]);
    let in_domain = |domain| {
        let content = encode(&good());
        let signature = member().sign(domain, &CLUSTER, &content);
        encode(&(content, signature))
    };
    let rows: Vec<(&str, Vec<u8>, &str)> = vec![
        ("signed by a key that is no member", good().sign(&stranger), "TICKET_FORGED"),
        ("signed by a storage node", good().sign(&Key::of_node()), "TICKET_FORGED"),
        (
            "of a member nobody named",
            Ticket { member: MemberId::from_u64(8), ..good() }.sign(&stranger),
            "TICKET_FORGED",
        ),
        ("signed for another purpose", in_domain(Domain::NodeReport), "TICKET_FORGED"),
        ("no ticket at all", b"let me in".to_vec(), "TICKET_FORGED"),
        ("nothing", Vec::new(), "TICKET_FORGED"),
        (
            "for another cluster",
            Ticket { cluster: other, ..good() }.sign(&member()),
            "TICKET_FOREIGN",
        ),
        (
            "for another session",
            Ticket { session: stranger.public_key(), ..good() }.sign(&member()),
            "TICKET_FOREIGN",
        ),
        (
            "expired",
            Ticket { expires_unix_ms: now - 130_000, ..good() }.sign(&member()),
            "TICKET_EXPIRED",
        ),
        (
            "good for too long",
            Ticket { expires_unix_ms: now + 300_000, ..good() }.sign(&member()),
            "TICKET_EXPIRED",
        ),
        ("for reading", read(&[chunk(1, 10).id()]), "TICKET_NOT_ALLOWED"),
    ];
    for (what, ticket, reason) in rows {
        let answer = bench.put(ticket.clone(), bytes(&[chunk(1, 10)])).await;
        let expected = (Code::PermissionDenied, Some(reason.to_owned()));
        assert_eq!(refusal(answer), expected, "{what}");
        assert_eq!(refusal(bench.renew(ticket, &[]).await), expected, "{what}");
    }
    assert_eq!(bench.opened.store.totals().shards, 0);
    // A clock that is two minutes slow is no reason to refuse.
    let late = Ticket { expires_unix_ms: now - 60_000, ..good() }.sign(&member());
    bench.put(late, bytes(&[chunk(1, 10)])).await.unwrap();
}

#[tokio::test]
async fn a_ticket_is_refused_whatever_byte_of_it_changes() {
    let bench = Bench::new();
    let good = writing(MIB).sign(&member());
    for at in 0..good.len() {
        let mut changed = good.clone();
        changed[at] ^= 1;
        let answer = bench.put(changed, bytes(&[chunk(1, 10)])).await;
        assert_eq!(answer.err().map(|it| it.code()), Some(Code::PermissionDenied), "byte {at}");
    }
    bench.put(good, bytes(&[chunk(1, 10)])).await.unwrap();
}

#[tokio::test]
async fn a_ticket_that_was_used_is_still_for_its_session_only() {
    let bench = Bench::new();
    let ticket = write();
    bench.put(ticket.clone(), bytes(&[chunk(1, 10)])).await.unwrap();
    let thief = Key::of(9);
    let proof = SessionProof { key: thief.public_key(), ..proof() }.sign(&thief);
    let message = pb::PutChunksRequest {
        ticket: ticket.into(),
        chunks: bytes(&[chunk(2, 10)]),
        layout_version: 0,
    };
    let answer = bench.service.put_chunks(with_header(message, &proof)).await;
    assert_refused(answer, Code::PermissionDenied, "TICKET_FOREIGN");
}

#[tokio::test]
async fn a_session_proof_that_is_not_good_is_refused() {
    let bench = Bench::new();
    let now = now_unix_ms();
    let id = chunk(1, 10).id();
    let message =
        || pb::GetChunksRequest { ticket: read(&[id]).into(), chunk_ids: as_bytes(&[id]) };
    let rows = [
        proof().sign(&Key::of(1)),
        SessionProof { audience: ClusterId::from_bytes([9; 32]), ..proof() }.sign(&session()),
        SessionProof { expires_unix_ms: now - 130_000, ..proof() }.sign(&session()),
        SessionProof { expires_unix_ms: now + 300_000, ..proof() }.sign(&session()),
        b"it is me".to_vec(),
    ];
    let mut requests: Vec<_> = rows.iter().map(|header| with_header(message(), header)).collect();
    requests.push(Request::new(message()));
    for (place, request) in requests.into_iter().enumerate() {
        let answer = bench.service.get_chunks(request).await;
        let is_of_another_time = [2, 3].contains(&place);
        let expected =
            if is_of_another_time { "SESSION_PROOF_EXPIRED" } else { "SESSION_PROOF_INVALID" };
        assert_refused(answer, Code::Unauthenticated, expected);
    }
    bench.service.get_chunks(proven(message(), &proof())).await.unwrap();
}

#[tokio::test]
async fn a_read_ticket_is_for_its_chunks_and_a_write_ticket_for_none() {
    let bench = Bench::new();
    let (a, b) = (chunk(1, 10), chunk(2, 10));
    bench.put(write(), bytes(&[a.clone(), b.clone()])).await.unwrap();
    let denied = Code::PermissionDenied;
    let only_a = read(&[a.id()]);
    bench.get(only_a.clone(), &[a.id()]).await.unwrap();
    assert_refused(bench.get(only_a, &[a.id(), b.id()]).await, denied, "TICKET_NOT_ALLOWED");
    assert_refused(bench.get(write(), &[a.id()]).await, denied, "TICKET_NOT_ALLOWED");
}

#[tokio::test]
async fn a_write_ticket_stores_no_more_than_its_bytes() {
    let bench = Bench::new();
    let ticket = writing(1000).sign(&member());
    bench.put(ticket.clone(), bytes(&[chunk(1, 600)])).await.unwrap();
    let denied = Code::PermissionDenied;
    let too_much = bench.put(ticket.clone(), bytes(&[chunk(2, 401)])).await;
    assert_refused(too_much, denied, "TICKET_BUDGET");
    // What was refused is not counted.
    bench.put(ticket.clone(), bytes(&[chunk(3, 400)])).await.unwrap();
    assert_refused(bench.put(ticket.clone(), bytes(&[chunk(4, 1)])).await, denied, "TICKET_BUDGET");
    bench.renew(ticket, &[chunk(1, 600).id()]).await.unwrap();
    assert_eq!(bench.opened.store.totals().bytes, 1000);
}

#[tokio::test]
async fn a_call_is_bounded() {
    let bench = Bench::new();
    let invalid = Code::InvalidArgument;
    let many: Vec<_> = (0..=CHUNKS_PER_CALL as u64).map(|at| chunk(at, 1)).collect();
    assert_refused(bench.put(write(), bytes(&many)).await, invalid, "TOO_MANY_CHUNKS");
    let heavy: Vec<_> = (0..6).map(|at| chunk(at, MIB)).collect();
    assert_refused(bench.put(write(), bytes(&heavy)).await, invalid, "TOO_MANY_CHUNKS");
    let large = vec![Bytes::from(vec![0; SEALED_BYTES_MAX + 1])];
    assert_refused(bench.put(write(), large).await, invalid, "CHUNK_TOO_LARGE");
    // It could be acknowledged, but never be told from one that is not here.
    assert_refused(bench.put(write(), vec![Bytes::new()]).await, invalid, "CHUNK_EMPTY");
    let many = ids(&many);
    assert_refused(bench.get(read(&many), &many).await, invalid, "TOO_MANY_CHUNKS");
    let renewals = vec![many[0]; RENEWALS_PER_CALL + 1];
    assert_refused(bench.renew(write(), &renewals).await, invalid, "TOO_MANY_CHUNKS");
    let message = pb::GetChunksRequest {
        ticket: read(&many).into(),
        chunk_ids: vec![Bytes::from_static(&[1; 31])],
    };
    let answer = bench.service.get_chunks(proven(message, &proof())).await;
    assert_refused(answer, invalid, "CHUNK_ID_INVALID");
    assert_eq!(bench.opened.store.totals().shards, 0);
    // Just within bounds.
    bench.renew(write(), &renewals[1..]).await.unwrap();
    bench.put(write(), bytes(&heavy[..4])).await.unwrap();
}

#[tokio::test]
async fn an_answer_is_bounded_and_says_what_it_leaves_out() {
    let bench = Bench::new();
    let chunks: Vec<_> = (0..8).map(|at| chunk(at, MIB)).collect();
    for chunks in chunks.chunks(4) {
        bench.put(write(), bytes(chunks)).await.unwrap();
    }
    let ids = ids(&chunks);
    let fetched = bench.get(read(&ids), &ids).await.unwrap();
    let lengths: Vec<usize> = fetched.iter().map(|fetched| fetched.data.len()).collect();
    assert_eq!(lengths, [MIB, MIB, MIB, MIB, 0, 0, 0, 0]);
}

#[tokio::test]
async fn without_log_time_nothing_is_promised() {
    let bench = Bench::without_time();
    let chunks = bytes(&[chunk(1, 10)]);
    let unavailable = Code::Unavailable;
    let ticket = writing(10).sign(&member());
    assert_refused(bench.put(ticket.clone(), chunks.clone()).await, unavailable, "NOT_READY");
    assert_refused(bench.renew(write(), &[]).await, unavailable, "NOT_READY");
    bench.get(read(&[chunk(1, 10).id()]), &[chunk(1, 10).id()]).await.unwrap();
    bench.service.0.clock.learn(START);
    // The first try has used up nothing of the ticket.
    bench.put(ticket, chunks).await.unwrap();
}

#[tokio::test]
async fn a_full_or_broken_disk_is_told_and_reads_go_on() {
    let bench = Bench::new();
    let a = chunk(1, 1000);
    bench.put(write(), bytes(std::slice::from_ref(&a))).await.unwrap();
    for (fault, code, reason) in [
        (Fault::Full, Code::ResourceExhausted, "DISK_FULL"),
        (Fault::Sync, Code::Unavailable, "STORE_POISONED"),
    ] {
        bench.platter.fail(Some(fault));
        let large: Vec<_> = (10..14).map(|at| chunk(at, MIB)).collect();
        let mut answer = bench.put(write(), bytes(&large)).await;
        if answer.is_ok() {
            // The first of them still found room.
            let large: Vec<_> = (20..24).map(|at| chunk(at, MIB)).collect();
            answer = bench.put(write(), bytes(&large)).await;
        }
        assert_refused(answer, code, reason);
        let fetched = bench.get(read(&[a.id()]), &[a.id()]).await.unwrap();
        assert_eq!(&fetched[0].data, a.bytes());
        bench.platter.fail(None);
    }
}

#[tokio::test]
async fn a_capacity_that_is_used_up_is_told_and_all_else_goes_on() {
    let bench = Bench::offering(2500);
    bench.service.0.clock.learn(START);
    let here = [chunk(1, 1000), chunk(2, 1000)];
    bench.put(write(), bytes(&here)).await.unwrap();
    let refused = bench.put(write(), bytes(&[chunk(3, 1000)])).await;
    assert_refused(refused, Code::ResourceExhausted, "CAPACITY_FULL");
    let fetched = bench.get(read(&ids(&here)), &ids(&here)).await.unwrap();
    let data: Vec<Bytes> = fetched.into_iter().map(|fetched| fetched.data).collect();
    assert_eq!(data, bytes(&here));
    let renewed = bench.renew(write(), &ids(&here)).await.unwrap();
    assert!(renewed.iter().all(|stored| stored.receipts.len() == 1));
    bench.put(write(), bytes(&here)).await.unwrap();
    bench.put(write(), bytes(&[chunk(4, 500)])).await.unwrap();
}

/// What the disk does not give is not here: the caller asks the next holder, and gets the rest.
#[tokio::test]
async fn bytes_that_cannot_be_read_are_answered_as_not_here() {
    let bench = Bench::new();
    let chunks = [chunk(1, 1000), chunk(2, 1000)];
    bench.put(write(), bytes(&chunks)).await.unwrap();
    bench.platter.break_sector(Some((0, 500..501)));
    let fetched = bench.get(read(&ids(&chunks)), &ids(&chunks)).await.unwrap();
    assert_eq!(fetched[0].data, Bytes::new());
    assert_eq!(&fetched[1].data, chunks[1].bytes());
    bench.put(write(), bytes(&chunks)).await.unwrap();
    let fetched = bench.get(read(&ids(&chunks)), &ids(&chunks)).await.unwrap();
    assert_eq!(&fetched[0].data, chunks[0].bytes());
    // And what is kept wrongly is not promised.
    let location = bench.opened.store.index().location(&ShardKey::replica(chunks[0].id()));
    bench.platter.rot(0, location.unwrap().unwrap().end() - 1);
    bench.get(read(&ids(&chunks)), &ids(&chunks)).await.unwrap();
    bench.platter.fail(Some(Fault::Rot));
    let refused = bench.put(write(), bytes(&chunks)).await;
    assert_refused(refused, Code::Unavailable, "DISK_FAILED");
}

#[tokio::test]
async fn copies_are_for_storage_nodes_with_a_certificate() {
    let bench = Bench::new();
    let request = Request::new(PullChunksRequest { chunk_ids: as_bytes(&[chunk(1, 10).id()]) });
    let answer = bench.service.pull_chunks(request).await;
    assert_refused(answer, Code::PermissionDenied, "NOT_A_SIBLING");
}

/// Goal: what the layout gives to others is not taken from a gateway that has not heard of it, for
/// nobody would look for it here. Method: layouts that give a chunk to this node or not, as of a caller
/// that is behind, ahead or even.
#[tokio::test]
async fn what_no_layout_gives_to_this_node_is_refused_unless_the_caller_knows_better() {
    let bench = Bench::new();
    let a = std::slice::from_ref(&chunk(1, 100)).to_vec();
    let elsewhere = NodeId::from_bytes([9; 16]);
    let learn = |current: &Layout, former: &[&Layout]| {
        let sign = |layout: &Layout| Bytes::from(layout.sign(&CLUSTER, &kit::administrator()));
        let former: Vec<Bytes> = former.iter().map(|layout| sign(layout)).collect();
        bench.service.0.cluster.learn_layouts(&sign(current), &former).unwrap();
    };
    let put = async |version| bench.put_by(version, write(), bytes(&a)).await;
    let check = async |version: u64, refused: bool| {
        let answer = put(version).await;
        if refused {
            assert_refused(answer, Code::FailedPrecondition, "NOT_A_HOLDER");
        } else {
            assert_eq!(answer.unwrap().len(), 1, "placed by {version}");
        }
    };
    // It knows none yet, and so is behind everybody.
    check(1, false).await;
    learn(&kit::layout(1, &[NODE]), &[]);
    check(1, false).await;
    let (ours, theirs) = (kit::layout(1, &[NODE]), kit::layout(2, &[elsewhere]));
    learn(&theirs, &[&ours]);
    for (version, refused) in [(0, false), (1, false), (2, false), (3, false)] {
        check(version, refused).await;
    }
    learn(&theirs, &[]);
    for (version, refused) in [(0, false), (1, true), (2, true), (3, false)] {
        check(version, refused).await;
    }
    // What was refused is not charged to the ticket.
    let exact = writing(100).sign(&member());
    let refused = bench.put_by(2, exact.clone(), bytes(&a)).await;
    assert_refused(refused, Code::FailedPrecondition, "NOT_A_HOLDER");
    bench.put_by(3, exact, bytes(&a)).await.unwrap();
    // A member that is behind does not bring back what is retired.
    learn(&theirs, &[&ours]);
    learn(&ours, &[]);
    check(2, true).await;
}

#[tokio::test]
async fn a_node_that_was_taken_out_serves_nobody() {
    let bench = Bench::new();
    let a = chunk(1, 100);
    bench.put(write(), bytes(std::slice::from_ref(&a))).await.unwrap();
    let denied = Code::PermissionDenied;
    bench.service.0.cluster.disown(true);
    let ids = [a.id()];
    assert_refused(bench.get(read(&ids), &ids).await, denied, "NOT_IN_DESCRIPTOR");
    assert_refused(bench.put(write(), Vec::new()).await, denied, "NOT_IN_DESCRIPTOR");
    assert_refused(bench.renew(write(), &ids).await, denied, "NOT_IN_DESCRIPTOR");
    let request = Request::new(PullChunksRequest { chunk_ids: as_bytes(&ids) });
    assert_refused(bench.service.pull_chunks(request).await, denied, "NOT_IN_DESCRIPTOR");
    bench.service.0.cluster.disown(false);
    bench.get(read(&ids), &ids).await.unwrap();
}

/// A member that the descriptor in force does not name signs no tickets.
#[tokio::test]
async fn tickets_are_those_of_the_members_in_force() {
    let bench = Bench::new();
    let descriptor = bench.service.0.cluster.view().descriptor;
    let other = Key::of(8);
    let (_, signed) = kit::next_descriptor(&CLUSTER, &descriptor, |next| {
        next.members = vec![kit::member(MemberId::from_u64(8), &other, "127.0.0.1:2")];
    });
    let ticket = || Ticket { member: MemberId::from_u64(8), ..writing(10) };
    let denied = Code::PermissionDenied;
    assert_refused(bench.put(ticket().sign(&other), Vec::new()).await, denied, "TICKET_FORGED");
    bench.service.0.cluster.learn_descriptors(&[signed]).unwrap();
    bench.put(ticket().sign(&other), Vec::new()).await.unwrap();
    let former = writing(11).sign(&member());
    assert_refused(bench.put(former, Vec::new()).await, denied, "TICKET_FORGED");
}
