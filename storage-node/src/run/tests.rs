//! Whole nodes over TLS, with a metadata member that says what a test tells it to.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard};

use bytes::Bytes;
use coffer_model::chunk::SealedChunk;
use coffer_model::descriptor::Descriptor;
use coffer_model::encoding::encode;
use coffer_model::hash::Hash;
use coffer_model::id::{ChunkId, ClusterId, InodeId, MemberId, PrincipalId};
use coffer_model::layout::Layout;
use coffer_model::log::NodeReport;
use coffer_model::receipt::Receipt;
use coffer_model::session::{CertificateHash, PROOF_HEADER, SessionProof};
use coffer_model::share::{Release, ShareProof};
use coffer_model::signing::{Domain, Signature};
use coffer_model::ticket::{Leave, Ticket};
use coffer_model::time::LogTime;
use coffer_proto::internal as wire;
use coffer_proto::internal::member_service_server::{MemberService, MemberServiceServer};
use coffer_proto::internal::sibling_service_client::SiblingServiceClient;
use coffer_proto::internal::sibling_service_server::SiblingService;
use coffer_proto::v1 as pb;
use coffer_proto::v1::chunk_service_client::ChunkServiceClient;
use coffer_service::channel::{Channel, ChannelOptions, connect_lazy};
use coffer_service::one_box::OneBoxCa;
use coffer_service::peer::PeerId;
use coffer_service::server::peer_of;
use coffer_service::status::{reason_of, status};
use coffer_service::tls::TlsFiles;
use tempfile::TempDir;
use tokio::task::JoinHandle as Task;
use tonic::metadata::MetadataValue;
use tonic::{Code, Request, Response, Status};

use super::*;
use crate::clock::HOLD_MS;
use crate::door::now_unix_ms;
use crate::kit::{self, Key, START, administrator, chunk, ids};

/// Long enough for anything that is not stuck.
const LONG: Duration = Duration::from_secs(60);
const MEMBER: MemberId = MemberId::from_u64(7);
/// A node of the descriptor that the layout gives nothing.
const SPARE: usize = 3;

fn member() -> Key {
    Key::of(7)
}

fn session() -> Key {
    Key::of(0x5e)
}

/// A member that keeps the last report of each node, has rows, and changes the cluster as a test tells
/// it to.
struct Members {
    cluster: ClusterId,
    world: Mutex<World>,
    reports: Mutex<BTreeMap<NodeId, wire::ReportNodeRequest>>,
    addresses: Mutex<BTreeMap<NodeId, String>>,
    /// Ids of those who said that they are there.
    greeted: Mutex<BTreeSet<[u8; 16]>>,
    /// Nodes that have asked for rows since they were started: they know the time and the layout.
    followed: Mutex<BTreeSet<NodeId>>,
    /// Chunks that commits have named, in order: the first one is at position 1.
    feed: Mutex<Vec<ChunkId>>,
}

/// What the members have agreed upon.
struct World {
    time: LogTime,
    descriptor: Descriptor,
    /// Those after the first one.
    next_descriptors: Vec<Bytes>,
    /// The one in force, and those that are not retired.
    layouts: Vec<Layout>,
    /// Chunks whose rows are gone.
    purged: BTreeSet<ChunkId>,
    /// Whether `ReadRows` and `ProveShare` fail.
    is_away: bool,
    proofs: Vec<ShareProof>,
    /// Chunks that a node was given leave to forget.
    released: BTreeSet<ChunkId>,
    /// Nodes that are told that they are none of the cluster's.
    disowned: BTreeSet<NodeId>,
}

impl Members {
    fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap()
    }

    fn feed(&self) -> MutexGuard<'_, Vec<ChunkId>> {
        self.feed.lock().unwrap()
    }

    /// The chunks a node should hold, with their positions.
    fn rows(&self, node: NodeId, world: &World) -> BTreeMap<ChunkId, u64> {
        let is_given = |chunk: &ChunkId| {
            world.layouts.iter().any(|layout| layout.nodes_of(chunk).any(|it| it == node))
        };
        let rows = (1..).zip(self.feed().clone());
        rows.filter(|(_, chunk)| !world.purged.contains(chunk) && is_given(chunk))
            .map(|(position, chunk)| (chunk, position))
            .collect()
    }

    /// Whether nothing needs the chunk at the node, as docs/formats/layout.md says it.
    fn releases(&self, node: NodeId, chunk: &ChunkId, world: &World) -> bool {
        let position = self.feed().iter().position(|it| it == chunk);
        let Some(position) = position.filter(|_| !world.purged.contains(chunk)) else {
            return true;
        };
        let has_proven = |holder: NodeId| {
            world.proofs.iter().any(|proof| {
                let is_of = (proof.node, proof.layout) == (holder, world.layouts[0].version());
                is_of && proof.position > position as u64
            })
        };
        !self.rows(node, world).contains_key(chunk)
            && world.layouts[0].nodes_of(chunk).all(has_proven)
    }
}

fn as_row(chunk: &ChunkId) -> wire::FeedRow {
    wire::FeedRow { chunk_id: Bytes::copy_from_slice(chunk.as_bytes()), length: 0 }
}

struct MemberServer(Arc<Members>);

#[tonic::async_trait]
impl MemberService for MemberServer {
    async fn report_node(
        &self,
        request: Request<wire::ReportNodeRequest>,
    ) -> Result<Response<wire::ReportNodeResponse>, Status> {
        let caller = peer_of(&request).cloned().unwrap();
        let message = request.into_inner();
        let report: NodeReport = decode("report", &message.report).unwrap();
        assert_eq!((caller.role(), caller.id()), (ROLE, report.node.as_bytes()));
        let world = self.0.world();
        if world.disowned.contains(&report.node) {
            return Err(status(Code::PermissionDenied, "NOT_IN_DESCRIPTOR", "who are you?", &[]));
        }
        if let Some(key) = world.descriptor.node_key(report.node) {
            let signature = Signature::from_bytes(message.signature[..].try_into().unwrap());
            let cluster = &self.0.cluster;
            key.verify(Domain::NodeReport, cluster, &message.report, &signature).unwrap();
        }
        let known = usize::try_from(message.descriptor_number).unwrap();
        self.0.addresses.lock().unwrap().insert(report.node, report.address);
        self.0.reports.lock().unwrap().insert(report.node, message);
        let address = |(id, address): (&NodeId, &String)| wire::NodeAddress {
            node_id: Bytes::copy_from_slice(id.as_bytes()),
            address: address.clone(),
            reachable: true,
        };
        let mut layouts =
            world.layouts.iter().map(|it| Bytes::from(it.sign(&self.0.cluster, &administrator())));
        Ok(Response::new(wire::ReportNodeResponse {
            log_time_ms: world.time.unix_ms(),
            layout: layouts.next().unwrap(),
            former_layouts: layouts.collect(),
            nodes: self.0.addresses.lock().unwrap().iter().map(address).collect(),
            // One at a time.
            descriptors: world.next_descriptors.iter().skip(known).take(1).cloned().collect(),
        }))
    }

    async fn read_feed(
        &self,
        request: Request<wire::ReadFeedRequest>,
    ) -> Result<Response<wire::ReadFeedResponse>, Status> {
        let request = request.into_inner();
        let node = NodeId::try_from(request.node_id.as_ref()).unwrap();
        self.0.followed.lock().unwrap().insert(node);
        let world = self.0.world();
        let rows = self.0.rows(node, &world);
        let feed = self.0.feed();
        // A few rows at a time, so that there is more than one answer.
        let after = usize::try_from(request.after).unwrap();
        let next = feed.len().min(after + 3);
        let own = feed[after..next].iter().filter(|chunk| rows.contains_key(chunk));
        Ok(Response::new(wire::ReadFeedResponse {
            rows: own.map(as_row).collect(),
            next: next as u64,
            more: next < feed.len(),
            log_time_ms: world.time.unix_ms(),
        }))
    }

    async fn read_rows(
        &self,
        request: Request<wire::ReadRowsRequest>,
    ) -> Result<Response<wire::ReadRowsResponse>, Status> {
        let request = request.into_inner();
        let world = self.0.world();
        if world.is_away {
            return Err(Status::unavailable("away"));
        }
        let rows = self.0.rows(NodeId::try_from(request.node_id.as_ref()).unwrap(), &world);
        let after = ChunkId::try_from(request.after_chunk.as_ref()).ok();
        let behind = rows.keys().filter(|chunk| after.is_none_or(|after| **chunk > after));
        // A few rows at a time, so that there is more than one answer.
        let own: Vec<ChunkId> = behind.take(3).copied().collect();
        let last = own.get(2).map(|last| Bytes::copy_from_slice(last.as_bytes()));
        Ok(Response::new(wire::ReadRowsResponse {
            rows: own.iter().map(as_row).collect(),
            next_chunk: last.unwrap_or_default(),
            log_time_ms: world.time.unix_ms(),
            feed_position: self.0.feed().len() as u64,
            layout_version: world.layouts[0].version(),
        }))
    }

    async fn prove_share(
        &self,
        request: Request<wire::ProveShareRequest>,
    ) -> Result<Response<wire::ProveShareResponse>, Status> {
        let request = request.into_inner();
        let mut world = self.0.world();
        if world.is_away {
            return Err(Status::unavailable("away"));
        }
        let proof: ShareProof = decode("proof", &request.proof).unwrap();
        let Some(key) = world.descriptor.node_key(proof.node) else {
            return Err(Status::permission_denied("who are you?"));
        };
        let signature = Signature::from_bytes(request.signature[..].try_into().unwrap());
        key.verify(Domain::ShareProof, &self.0.cluster, &request.proof, &signature).unwrap();
        world.proofs.push(proof);
        Ok(Response::new(wire::ProveShareResponse {}))
    }

    async fn greet(
        &self,
        request: Request<wire::GreetRequest>,
    ) -> Result<Response<wire::GreetResponse>, Status> {
        self.0.greeted.lock().unwrap().extend(peer_of(&request).map(|peer| *peer.id()));
        Ok(Response::new(wire::GreetResponse {}))
    }

    async fn vouch_replacement(
        &self,
        _: Request<wire::VouchReplacementRequest>,
    ) -> Result<Response<wire::VouchReplacementResponse>, Status> {
        Err(Status::unimplemented("no node asks this"))
    }

    async fn release_chunks(
        &self,
        request: Request<wire::ReleaseChunksRequest>,
    ) -> Result<Response<wire::ReleaseChunksResponse>, Status> {
        let request = request.into_inner();
        let mut world = self.0.world();
        let node = NodeId::try_from(request.node_id.as_ref()).unwrap();
        let asked: Vec<ChunkId> =
            request.chunk_ids.iter().map(|id| ChunkId::try_from(id.as_ref()).unwrap()).collect();
        assert!(asked.is_sorted() && asked.len() <= 4096);
        let mut chunks = asked;
        chunks.retain(|chunk| self.0.releases(node, chunk, &world));
        world.released.extend(&chunks);
        let release = encode(&Release { member: MEMBER, node, time: world.time, chunks });
        let signature = member().sign(Domain::Release, &self.0.cluster, &release);
        Ok(Response::new(wire::ReleaseChunksResponse {
            release: release.into(),
            signature: Bytes::copy_from_slice(signature.as_bytes()),
        }))
    }

    async fn get_read_index(
        &self,
        _: Request<wire::GetReadIndexRequest>,
    ) -> Result<Response<wire::GetReadIndexResponse>, Status> {
        Err(Status::unimplemented("get_read_index"))
    }

    async fn get_core_version(
        &self,
        _: Request<wire::GetCoreVersionRequest>,
    ) -> Result<Response<wire::GetCoreVersionResponse>, Status> {
        Err(Status::unimplemented("get_core_version"))
    }

    async fn append(
        &self,
        _: Request<wire::AppendRequest>,
    ) -> Result<Response<wire::AppendResponse>, Status> {
        Err(Status::unimplemented("append"))
    }

    async fn vote(
        &self,
        _: Request<wire::VoteRequest>,
    ) -> Result<Response<wire::VoteResponse>, Status> {
        Err(Status::unimplemented("vote"))
    }

    async fn install_snapshot(
        &self,
        _: Request<wire::InstallSnapshotRequest>,
    ) -> Result<Response<wire::InstallSnapshotResponse>, Status> {
        Err(Status::unimplemented("snapshot"))
    }

    async fn read_clock(
        &self,
        _: Request<wire::ReadClockRequest>,
    ) -> Result<Response<wire::ReadClockResponse>, Status> {
        Err(Status::unimplemented("clock"))
    }
}

/// A sibling that answers with something else than what it is asked for.
#[derive(Clone, Default)]
struct Liar(Arc<Mutex<BTreeSet<ChunkId>>>);

#[tonic::async_trait]
impl SiblingService for Liar {
    async fn pull_chunks(
        &self,
        request: Request<wire::PullChunksRequest>,
    ) -> Result<Response<wire::PullChunksResponse>, Status> {
        let asked = request.into_inner().chunk_ids;
        let mut seen = self.0.lock().unwrap();
        seen.extend(asked.iter().map(|id| ChunkId::try_from(id.as_ref()).unwrap()));
        // More answers than questions, too.
        let chunks = vec![Bytes::from_static(b"something else"); asked.len() + 1];
        Ok(Response::new(wire::PullChunksResponse { chunks }))
    }
}

/// A cluster of one member that plays a group, and up to four nodes; the layout gives everything to
/// the first three.
struct Cluster {
    dir: TempDir,
    ca: OneBoxCa,
    id: ClusterId,
    descriptor: Descriptor,
    members: Arc<Members>,
    nodes: Vec<NodeId>,
    /// What a test started itself, beside nodes.
    servers: Shutdown,
}

struct Running {
    address: String,
    shutdown: Shutdown,
    task: Task<Result<(), Error>>,
}

impl Running {
    async fn stop(self) {
        self.shutdown.request("the test wants it");
        tokio::time::timeout(LONG, self.task).await.unwrap().unwrap().unwrap();
    }
}

impl Cluster {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let ca = OneBoxCa::ephemeral().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let volume = |at: usize| dir.path().join(format!("node-{at}"));
        let made: Vec<_> = (0..=SPARE).map(|at| init(&volume(at)).unwrap()).collect();
        let descriptor = kit::descriptor(
            vec![kit::member(MEMBER, &member(), &address)],
            made.iter().map(|(id, key)| kit::storage_node(*id, *key)).collect(),
        );
        let signed = SignedDescriptor::first(&descriptor, &[&administrator()]);
        let (id, descriptor) = signed.verify_first(None).unwrap();
        std::fs::write(dir.path().join("descriptor"), encode(&signed)).unwrap();
        let nodes: Vec<NodeId> = made.iter().map(|(id, _)| *id).collect();
        let world = World {
            time: START,
            descriptor: descriptor.clone(),
            next_descriptors: Vec::new(),
            layouts: vec![kit::layout(1, &nodes[..3])],
            purged: BTreeSet::new(),
            is_away: false,
            proofs: Vec::new(),
            released: BTreeSet::new(),
            disowned: BTreeSet::new(),
        };
        let members = Arc::new(Members {
            cluster: id,
            world: Mutex::new(world),
            reports: Mutex::default(),
            greeted: Mutex::default(),
            followed: Mutex::default(),
            addresses: Mutex::default(),
            feed: Mutex::default(),
        });
        let servers = Shutdown::new();
        let cluster = Self { dir, ca, id, descriptor, members, nodes, servers };
        let routes =
            Routes::new(MemberServiceServer::new(MemberServer(Arc::clone(&cluster.members))));
        cluster.serve(listener, routes, &PeerId::new("metadata", [7; 16]).unwrap());
        cluster
    }

    fn volume(&self, at: usize) -> PathBuf {
        self.dir.path().join(format!("node-{at}"))
    }

    fn files(&self, peer: &PeerId) -> TlsFiles {
        let name = format!("{}-{}", peer.role(), NodeId::from_bytes(*peer.id()));
        self.ca.issue_into(&self.dir.path().join(name), &[], peer).unwrap()
    }

    /// Serves `routes` as `peer` until the test ends.
    fn serve(&self, listener: TcpListener, routes: Routes, peer: &PeerId) {
        let tls = LiveTls::load(self.files(peer), ClientAuth::Optional).unwrap();
        let server = GrpcServer::new(tls, ServerLimits::standard());
        self.servers
            .spawn("a server of the test", server.serve(listener, routes, self.servers.token()));
    }

    fn peer(&self, at: usize) -> PeerId {
        PeerId::new(ROLE, *self.nodes[at].as_bytes()).unwrap()
    }

    fn config(&self, at: usize, advertise: &str) -> Config {
        Config {
            listen: "127.0.0.1:0".parse().unwrap(),
            advertise: advertise.to_owned(),
            data_dir: self.volume(at),
            descriptor: self.dir.path().join("descriptor"),
            tls: self.files(&self.peer(at)),
            capacity_bytes: 1 << 30,
            segment_bytes: 4 << 20,
            hold: Duration::from_millis(HOLD_MS),
            report_every: Duration::from_millis(50),
            poll_every: Duration::from_millis(20),
            settle: Duration::ZERO,
            compare_every: Duration::from_secs(6 * 60 * 60),
            scrub_every: Duration::from_secs(7 * 24 * 60 * 60),
            scrub_bytes_per_second: 20 << 20,
            compact_every: Duration::from_secs(60 * 60),
            compact_dead_percent: 50,
            compact_bytes_per_second: 20 << 20,
            health_listen: None,
            audit_log: None,
            join_token_file: None,
            replaces: None,
            zone: String::new(),
        }
    }

    async fn start(&self, at: usize) -> Running {
        self.start_with(at, |config| config).await
    }

    async fn start_with(&self, at: usize, change: impl FnOnce(Config) -> Config) -> Running {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let node = Node::open(change(self.config(at, &address))).unwrap();
        self.members.followed.lock().unwrap().remove(&self.nodes[at]);
        let shutdown = Shutdown::new();
        let stop = shutdown.clone();
        let task = tokio::spawn(async move { node.serve(listener, &stop).await });
        let running = Running { address, shutdown, task };
        self.until(|| {
            let known = self.members.addresses.lock().unwrap().get(&self.nodes[at]).cloned();
            // It has reported, and taken up what it was told.
            known.as_ref() == Some(&running.address)
                && self.members.followed.lock().unwrap().contains(&self.nodes[at])
        })
        .await;
        running
    }

    /// Waits until something is so.
    async fn until(&self, is_so: impl Fn() -> bool) {
        let wait = async {
            while !is_so() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(LONG, wait).await.unwrap();
    }

    /// Another descriptor comes into force.
    fn change_descriptor(&self, change: impl FnOnce(&mut Descriptor)) {
        let mut world = self.members.world();
        let (next, signed) = kit::next_descriptor(&self.id, &world.descriptor, change);
        world.descriptor = next;
        world.next_descriptors.push(signed);
    }

    /// A layout comes into force that gives everything to some nodes; those before it are not retired.
    fn change_layout(&self, nodes: &[usize]) {
        let mut world = self.members.world();
        let nodes: Vec<NodeId> = nodes.iter().map(|at| self.nodes[*at]).collect();
        let layout = kit::layout(world.layouts[0].version() + 1, &nodes);
        world.layouts.insert(0, layout);
    }

    fn report_of(&self, at: usize) -> wire::ReportNodeRequest {
        let reports = self.members.reports.lock().unwrap();
        reports.get(&self.nodes[at]).cloned().unwrap_or_default()
    }

    /// What node `at` said last: chunks that are here, and that are missing.
    fn reported(&self, at: usize) -> (u64, u64) {
        let reports = self.members.reports.lock().unwrap();
        reports.get(&self.nodes[at]).map_or((0, 0), |it| (it.chunks, it.missing_chunks))
    }

    fn channel(&self, address: &str, peer: &PeerId) -> Channel {
        let tls = LiveTls::load(self.files(peer), ClientAuth::Optional).unwrap();
        connect_lazy(address, "127.0.0.1", &tls, &ChannelOptions::standard()).unwrap()
    }

    fn client(&self, node: &Running) -> ChunkServiceClient<Channel> {
        let gateway = PeerId::new("gateway", [9; 16]).unwrap();
        ChunkServiceClient::new(self.channel(&node.address, &gateway))
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    fn ticket(&self, leave: Leave) -> Bytes {
        let ticket = Ticket {
            cluster: self.id,
            member: MEMBER,
            principal: PrincipalId::from_bytes([1; 16]),
            session: session().public_key(),
            leave,
            expires_unix_ms: now_unix_ms() + 60_000,
        };
        ticket.sign(&member()).into()
    }

    fn proven<T>(&self, message: T) -> Request<T> {
        let proof = SessionProof {
            audience: self.id,
            certificate: CertificateHash::from_hash(Hash::of("a test", b"")),
            key: session().public_key(),
            expires_unix_ms: now_unix_ms() + 60_000,
        };
        let mut request = Request::new(message);
        let header = MetadataValue::from_bytes(&proof.sign(&session()));
        request.metadata_mut().insert_bin(PROOF_HEADER, header);
        request
    }

    /// Stores chunks on a node and checks its receipts.
    async fn put(&self, node: &Running, at: usize, chunks: &[SealedChunk<Bytes>]) {
        let home = InodeId::from_bytes([2; 16]);
        let message = pb::PutChunksRequest {
            ticket: self.ticket(Leave::Write { home, bytes_max: 1 << 20 }),
            chunks: chunks.iter().map(|chunk| chunk.bytes().clone()).collect(),
            layout_version: 0,
        };
        let answer = self.client(node).put_chunks(self.proven(message)).await.unwrap();
        let stored = answer.into_inner().stored;
        assert_eq!(stored.len(), chunks.len());
        for (stored, chunk) in stored.iter().zip(chunks) {
            let key = |id| self.descriptor.node_key(id);
            let receipt = Receipt::verify(&stored.receipts[0], &self.id, key).unwrap();
            assert_eq!(
                (receipt.flush.node, receipt.held.shard.chunk),
                (self.nodes[at], chunk.id())
            );
        }
    }

    async fn get(&self, node: &Running, chunks: &[SealedChunk<Bytes>]) -> Vec<Bytes> {
        let mut ids = ids(chunks);
        let chunk_ids = ids.iter().map(|id| Bytes::copy_from_slice(id.as_bytes())).collect();
        ids.sort_unstable();
        let ticket = self.ticket(Leave::Read { chunks: ids });
        let message = pb::GetChunksRequest { ticket, chunk_ids };
        let answer = self.client(node).get_chunks(self.proven(message)).await.unwrap();
        answer.into_inner().fetched.into_iter().map(|fetched| fetched.data).collect()
    }
}

fn chunks(names: std::ops::Range<u64>) -> Vec<SealedChunk<Bytes>> {
    names.map(|name| chunk(name, 1000)).collect()
}

fn bytes(chunks: &[SealedChunk<Bytes>]) -> Vec<Bytes> {
    chunks.iter().map(|chunk| chunk.bytes().clone()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_missed_chunks_fetches_them_and_then_misses_nothing() {
    let cluster = Cluster::new().await;
    let (first, second) = (cluster.start(0).await, cluster.start(1).await);
    let chunks = chunks(0..20);
    // Some are on both, some on one of them only, one is on neither.
    cluster.put(&first, 0, &chunks[..12]).await;
    cluster.put(&second, 1, &chunks[8..19]).await;
    cluster.members.feed().extend(ids(&chunks));

    let third = cluster.start(2).await;
    cluster.until(|| (0..3).all(|at| cluster.reported(at) == (19, 1))).await;
    let mut expected = bytes(&chunks);
    expected[19] = Bytes::new();
    assert_eq!(cluster.get(&third, &chunks).await, expected);

    // What comes late, to any of them, comes to all.
    cluster.put(&second, 1, &chunks[19..]).await;
    cluster.until(|| (0..3).all(|at| cluster.reported(at) == (20, 0))).await;
    for node in [&first, &second, &third] {
        assert_eq!(cluster.get(node, &chunks).await, bytes(&chunks));
    }
    for node in [first, second, third] {
        node.stop().await;
    }
}

/// Goal: two nodes that lack a chunk do not ask each other for ever, and lies are not kept. Method:
/// one sibling has everything, the other one answers with something else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_sibling_has_is_found_whatever_the_other_says() {
    let cluster = Cluster::new().await;
    let honest = cluster.start(0).await;
    let chunks = chunks(0..20);
    cluster.put(&honest, 0, &chunks).await;
    let liar = Liar::default();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let routes = Routes::new(SiblingServiceServer::new(liar.clone()));
    cluster.serve(listener, routes, &cluster.peer(1));
    cluster.members.addresses.lock().unwrap().insert(cluster.nodes[1], address);
    cluster.members.feed().extend(ids(&chunks));

    let node = cluster.start(2).await;
    cluster.until(|| cluster.reported(2) == (20, 0)).await;
    assert_eq!(cluster.get(&node, &chunks).await, bytes(&chunks));
    assert!(!liar.0.lock().unwrap().is_empty(), "it was asked as well");
    node.stop().await;
    honest.stop().await;
}

/// Flips a byte of every given chunk in the segments of node `at`.
fn damage(cluster: &Cluster, at: usize, chunks: &[SealedChunk<Bytes>]) {
    let path = cluster.volume(at).join("segments").join("0000000000000000.seg");
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    let stored = std::fs::read(path).unwrap();
    for chunk in chunks {
        let found = stored.windows(chunk.bytes().len()).position(|it| it == chunk.bytes());
        let byte = found.unwrap() + chunk.bytes().len() / 2;
        std::os::unix::fs::FileExt::write_all_at(&file, &[!stored[byte]], byte as u64).unwrap();
    }
}

/// Reads all that a node keeps again and again.
fn always_scrubbing(config: Config) -> Config {
    Config { scrub_every: Duration::from_millis(20), scrub_bytes_per_second: 1 << 30, ..config }
}

/// Goal: what rots is found without anybody reading it, never served, said to be missing, also after a
/// restart, and fetched again. Method: a node alone, some of whose chunks rot, and later a sibling.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_rots_is_found_by_scrubbing_and_fetched_again() {
    let cluster = Cluster::new().await;
    let chunks = chunks(0..20);
    let (node, sibling) = (cluster.start_with(0, always_scrubbing).await, cluster.start(1).await);
    cluster.put(&node, 0, &chunks).await;
    cluster.put(&sibling, 1, &chunks).await;
    cluster.members.feed().extend(ids(&chunks));
    cluster.until(|| (0..2).all(|at| cluster.reported(at) == (20, 0))).await;
    sibling.stop().await;

    damage(&cluster, 0, &chunks[5..8]);
    cluster.until(|| cluster.reported(0) == (20, 3)).await;
    let mut expected = bytes(&chunks);
    expected[5..8].fill(Bytes::new());
    assert_eq!(cluster.get(&node, &chunks).await, expected);
    // It knows that after a restart, and scrubs nothing.
    node.stop().await;
    cluster.members.reports.lock().unwrap().clear();
    let node = cluster.start(0).await;
    cluster.until(|| cluster.reported(0) == (20, 3)).await;
    assert_eq!(cluster.get(&node, &chunks).await, expected);

    let sibling = cluster.start(1).await;
    cluster.until(|| cluster.reported(0) == (20, 0)).await;
    assert_eq!(cluster.get(&node, &chunks).await, bytes(&chunks));
    node.stop().await;
    sibling.stop().await;
}

/// What a read finds damaged is answered as not here, so that the next holder is asked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_read_finds_damaged_is_fetched_again() {
    let cluster = Cluster::new().await;
    let chunks = chunks(0..6);
    let node = cluster.start(0).await;
    cluster.put(&node, 0, &chunks).await;
    cluster.members.feed().extend(ids(&chunks));
    cluster.until(|| cluster.reported(0) == (6, 0)).await;
    damage(&cluster, 0, &chunks[..1]);
    let mut expected = bytes(&chunks);
    expected[0] = Bytes::new();
    assert_eq!(cluster.get(&node, &chunks).await, expected);
    cluster.until(|| cluster.reported(0) == (6, 1)).await;
    let sibling = cluster.start(1).await;
    cluster.put(&sibling, 1, &chunks[..1]).await;
    cluster.until(|| cluster.reported(0) == (6, 0)).await;
    assert_eq!(cluster.get(&node, &chunks).await, bytes(&chunks));
    node.stop().await;
    sibling.stop().await;
}

/// What is scraped says what was found.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scrubbing_is_seen_in_the_metrics() {
    let cluster = Cluster::new().await;
    let chunks = chunks(0..4);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let node = Node::open(always_scrubbing(cluster.config(0, &address))).unwrap();
    let (metrics, shutdown) = (node.watch.metrics(), Shutdown::new());
    let has = |line: &str| metrics.text().unwrap().lines().any(|it| it == line);
    for line in ["coffer_storage_corrupt_total 0", "coffer_storage_scrubbed_bytes 0"] {
        assert!(has(line), "{line} is not there from the start");
    }
    let stop = shutdown.clone();
    let task = tokio::spawn(async move { node.serve(listener, &stop).await });
    let node = Running { address, shutdown, task };
    cluster.until(|| cluster.members.reports.lock().unwrap().len() == 1).await;
    cluster.put(&node, 0, &chunks).await;
    damage(&cluster, 0, &chunks[..2]);
    cluster.until(|| has("coffer_storage_quarantined_chunks 2")).await;
    cluster.until(|| has("coffer_storage_missing_chunks 2")).await;
    cluster.until(|| has("coffer_storage_corrupt_total 2")).await;
    assert!(!has("coffer_storage_scrubbed_bytes 0"));
    cluster.until(|| has("coffer_storage_scrub_position_percent 100")).await;
    node.stop().await;
}

/// Goal: a node whose capacity is used up fetches nothing more, and says so, but mends what it has.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_without_capacity_fetches_only_what_it_had() {
    let cluster = Cluster::new().await;
    let chunks = chunks(0..12);
    let small = |config| Config { capacity_bytes: 10_000, ..config };
    let (node, sibling) = (cluster.start_with(0, small).await, cluster.start(1).await);
    // There would be room for one more.
    cluster.put(&node, 0, &chunks[..9]).await;
    cluster.put(&sibling, 1, &chunks).await;
    cluster.members.feed().extend(ids(&chunks));
    let fault = || {
        let reports = cluster.members.reports.lock().unwrap();
        reports.get(&cluster.nodes[0]).map(|it| it.fault.clone()).unwrap_or_default()
    };
    cluster.until(|| cluster.reported(0) == (9, 3)).await;
    assert_eq!(fault(), "this storage node's capacity is used up");
    damage(&cluster, 0, &chunks[3..4]);
    assert_eq!(cluster.get(&node, &chunks[3..4]).await, [Bytes::new()]);
    // It came again, and with it nothing that is new.
    let mut expected = bytes(&chunks);
    expected[9..].fill(Bytes::new());
    let mended = async { while cluster.get(&node, &chunks).await != expected {} };
    tokio::time::timeout(LONG, mended).await.unwrap();
    cluster.until(|| cluster.reported(0) == (9, 3)).await;
    node.stop().await;

    let node = cluster.start(0).await;
    cluster.until(|| cluster.reported(0) == (12, 0)).await;
    assert_eq!(fault(), "");
    assert_eq!(cluster.get(&node, &chunks).await, bytes(&chunks));
    node.stop().await;
    sibling.stop().await;
}

/// Goal: every member hears of a node by itself. Method: what the member of the test was greeted by.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_greets_the_members() {
    let cluster = Cluster::new().await;
    let node = cluster.start(0).await;
    let id = *cluster.nodes[0].as_bytes();
    for _ in 0..2 {
        cluster.until(|| cluster.members.greeted.lock().unwrap().remove(&id)).await;
    }
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copies_are_for_the_holders_of_a_chunk_only() {
    let cluster = Cluster::new().await;
    let node = cluster.start(0).await;
    let chunk = chunk(1, 1000);
    cluster.put(&node, 0, std::slice::from_ref(&chunk)).await;
    let pull = async |peer: &PeerId| {
        let chunk_ids = vec![Bytes::copy_from_slice(chunk.id().as_bytes())];
        let mut client = SiblingServiceClient::new(cluster.channel(&node.address, peer));
        client.pull_chunks(wire::PullChunksRequest { chunk_ids }).await
    };
    for stranger in [
        PeerId::new("gateway", [9; 16]).unwrap(),
        // A certificate alone admits nobody.
        PeerId::new(ROLE, [9; 16]).unwrap(),
        PeerId::new("metadata", *cluster.nodes[1].as_bytes()).unwrap(),
        cluster.peer(SPARE),
    ] {
        let refused = pull(&stranger).await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied, "{stranger}");
        assert_eq!(reason_of(&refused).unwrap().code, "NOT_A_SIBLING");
    }
    let answer = pull(&cluster.peer(1)).await.unwrap();
    assert_eq!(answer.into_inner().chunks, [chunk.bytes().clone()]);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_starts_again_is_the_same_and_has_what_it_had() {
    let cluster = Cluster::new().await;
    let chunks = chunks(0..5);
    let node = cluster.start(0).await;
    cluster.put(&node, 0, &chunks).await;
    node.stop().await;
    let (id, key) = init(&cluster.volume(0)).unwrap();
    assert_eq!((id, Some(key)), (cluster.nodes[0], cluster.descriptor.node_key(id)));
    let node = cluster.start(0).await;
    assert_eq!(cluster.get(&node, &chunks).await, bytes(&chunks));
    // The volume is its own while it runs.
    let refused = Node::open(cluster.config(0, "127.0.0.1:1")).err().unwrap();
    assert!(matches!(refused, Error::Identity(IdentityError::Locked { .. })), "{refused}");
    node.stop().await;
}

#[tokio::test]
async fn a_volume_of_another_cluster_or_node_is_refused() {
    let (here, there) = (Cluster::new().await, Cluster::new().await);
    Node::open(here.config(0, "")).unwrap().close();
    let refused = async |config: Config| {
        // One that is not refused would serve for ever.
        tokio::time::timeout(LONG, run(config, Shutdown::new())).await.unwrap().unwrap_err()
    };

    let elsewhere = Config { descriptor: there.config(0, "").descriptor, ..here.config(0, "") };
    let error = refused(elsewhere).await;
    assert!(matches!(error, Error::Identity(IdentityError::ForeignVolume { .. })), "{error}");

    // A volume that belongs to no cluster yet, and whose node the descriptor does not name.
    let fresh = Config { data_dir: here.dir.path().join("fresh"), ..here.config(0, "") };
    let error = refused(fresh).await;
    assert!(matches!(error, Error::NotNamed(_)), "{error}");

    // The segments of one node under the identity of another.
    let mixed = here.config(1, "");
    for folder in ["segments", "index"] {
        kit::copy(&here.volume(0).join(folder), &mixed.data_dir.join(folder));
    }
    let error = refused(mixed).await;
    assert!(matches!(error, Error::Store(_)), "{error}");

    // And the one that belongs is still good.
    Node::open(here.config(0, "")).unwrap().close();
}

#[tokio::test]
async fn a_descriptor_that_is_damaged_or_missing_is_refused() {
    let cluster = Cluster::new().await;
    let config = cluster.config(0, "");
    let good = std::fs::read(&config.descriptor).unwrap();
    for at in 0..good.len() {
        let mut bytes = good.clone();
        bytes[at] ^= 1;
        std::fs::write(&config.descriptor, bytes).unwrap();
        let refused = Node::open(config.clone()).err().unwrap();
        assert!(
            matches!(refused, Error::Malformed(_) | Error::Descriptor(_)),
            "byte {at}: {refused}"
        );
    }
    std::fs::remove_file(&config.descriptor).unwrap();
    let refused = Node::open(config).err().unwrap();
    assert!(matches!(refused, Error::ReadDescriptor { .. }), "{refused}");
}

#[tokio::test]
async fn an_address_that_is_taken_is_refused_and_the_volume_let_go() {
    let cluster = Cluster::new().await;
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let config = Config { listen: taken.local_addr().unwrap(), ..cluster.config(0, "") };
    let error = run(config, Shutdown::new()).await.unwrap_err();
    assert!(matches!(error, Error::Listen { .. }), "{error}");
    Node::open(cluster.config(0, "")).unwrap().close();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn descriptors_are_followed_and_known_after_a_restart() {
    let cluster = Cluster::new().await;
    let spare = cluster.nodes[SPARE];
    let pull = async |node: &Running| {
        let mut client =
            SiblingServiceClient::new(cluster.channel(&node.address, &cluster.peer(SPARE)));
        client.pull_chunks(wire::PullChunksRequest { chunk_ids: Vec::new() }).await
    };
    let node = cluster.start(0).await;
    pull(&node).await.unwrap();
    cluster.change_descriptor(|next| next.open_registration = true);
    cluster.change_descriptor(|next| next.nodes.retain(|it| it.id != spare));
    cluster.until(|| cluster.report_of(0).descriptor_number == 2).await;
    assert_eq!(reason_of(&pull(&node).await.unwrap_err()).unwrap().code, "NOT_A_SIBLING");
    node.stop().await;
    cluster.members.reports.lock().unwrap().clear();
    let node = cluster.start(0).await;
    // It asks for none that it has.
    cluster.until(|| cluster.report_of(0).descriptor_number == 2).await;
    assert_eq!(reason_of(&pull(&node).await.unwrap_err()).unwrap().code, "NOT_A_SIBLING");
    node.stop().await;
}

/// A node that goes on serving would take writes that nobody looks for there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_taken_out_stops_and_says_why_and_does_not_start_again() {
    let cluster = Cluster::new().await;
    let node = cluster.start(0).await;
    let id = cluster.nodes[0];
    cluster.change_descriptor(|next| next.nodes.retain(|it| it.id != id));
    let ended = tokio::time::timeout(LONG, node.task).await.unwrap().unwrap();
    assert!(matches!(ended, Err(Error::NotNamed(of)) if of == id), "{ended:?}");
    let refused = Node::open(cluster.config(0, "")).err().unwrap();
    assert!(matches!(refused, Error::NotNamed(of) if of == id), "{refused}");
}

/// Goal: one that was taken out while it was away, whom no member gives a descriptor any more, serves
/// nobody; and no longer than that is so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_no_member_knows_serves_nobody_until_one_does() {
    let cluster = Cluster::new().await;
    let chunks = chunks(0..1);
    let node = cluster.start(0).await;
    cluster.put(&node, 0, &chunks).await;
    let pull = async || {
        let mut client =
            SiblingServiceClient::new(cluster.channel(&node.address, &cluster.peer(1)));
        let answer = client.pull_chunks(wire::PullChunksRequest { chunk_ids: Vec::new() }).await;
        answer.err().and_then(|refused| reason_of(&refused)).map(|reason| reason.code)
    };
    assert_eq!(pull().await, None);
    for (disowned, expected) in
        [(BTreeSet::from([cluster.nodes[0]]), Some("NOT_IN_DESCRIPTOR")), (BTreeSet::new(), None)]
    {
        cluster.members.world().disowned = disowned;
        let told = async { while pull().await.as_deref() != expected {} };
        tokio::time::timeout(LONG, told).await.unwrap();
    }
    node.stop().await;
}

/// Goal: what no holder has any more is still found where it is. Method: a chunk on a node to which no
/// layout gives anything, and on one of a former layout.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_no_holder_has_is_fetched_from_former_holders_and_from_all_others() {
    let cluster = Cluster::new().await;
    let chunks = chunks(0..8);
    let (former, spare) = (cluster.start(2).await, cluster.start(SPARE).await);
    cluster.put(&former, 2, &chunks[..4]).await;
    cluster.put(&spare, SPARE, &chunks[4..]).await;
    cluster.members.feed().extend(ids(&chunks));
    cluster.change_layout(&[0, 1]);
    let (first, second) = (cluster.start(0).await, cluster.start(1).await);
    cluster.until(|| (0..2).all(|at| cluster.reported(at) == (8, 0))).await;
    assert_eq!(cluster.report_of(0).fetched_chunks, 8);
    assert_eq!(cluster.get(&first, &chunks).await, bytes(&chunks));
    for node in [former, spare, first, second] {
        node.stop().await;
    }
}

/// Goal: while no member answers, what is known to be missing is fetched all the same. Method: the
/// members fall silent, and then a sibling gets what was missing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_known_to_be_missing_comes_while_no_member_answers() {
    let cluster = Cluster::new().await;
    let chunks = chunks(0..3);
    let (node, sibling) = (cluster.start(0).await, cluster.start(1).await);
    cluster.members.feed().extend(ids(&chunks));
    cluster.until(|| (0..2).all(|at| cluster.reported(at) == (0, 3))).await;
    cluster.servers.request("the test wants it");
    cluster.put(&sibling, 1, &chunks).await;
    let came = async { while cluster.get(&node, &chunks).await != bytes(&chunks) {} };
    tokio::time::timeout(LONG, came).await.unwrap();
    node.stop().await;
    sibling.stop().await;
}

/// Compares all the time.
fn always_comparing(config: Config) -> Config {
    Config { compare_every: Duration::from_millis(100), ..config }
}

/// Goal: data moves to the nodes of a new layout, and only when they have proven it, the old ones give
/// it up. Method: one node of three is replaced by another; the last receipts have run out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_layout_moves_data_and_the_old_copy_goes_after_the_new_one_is_proven() {
    let cluster = Cluster::new().await;
    let chunks = chunks(0..20);
    let mut nodes = Vec::new();
    for at in 0..=SPARE {
        nodes.push(cluster.start(at).await);
    }
    cluster.put(&nodes[0], 0, &chunks).await;
    cluster.put(&nodes[1], 1, &chunks).await;
    cluster.members.feed().extend(ids(&chunks));
    cluster.until(|| (0..3).all(|at| cluster.reported(at) == (20, 0))).await;
    // Nobody proves more than is there: the new holder's siblings are gone before it has anything.
    cluster.members.world().is_away = true;
    cluster.change_layout(&[1, 2, SPARE]);
    let begin = cluster.members.world().time.plus_ms(2 * HOLD_MS);
    cluster.members.world().time = begin;
    cluster.members.world().is_away = false;
    let has_proven = |at: usize| {
        let world = cluster.members.world();
        world
            .proofs
            .iter()
            .any(|it| (it.node, it.layout, it.position) == (cluster.nodes[at], 2, 20))
    };
    cluster.until(|| [1, 2, SPARE].into_iter().all(has_proven)).await;
    cluster.until(|| cluster.reported(SPARE) == (20, 0)).await;
    assert_eq!(cluster.get(&nodes[SPARE], &chunks).await, bytes(&chunks));
    assert_eq!(cluster.reported(0), (20, 0), "by a former layout it is still its own");
    assert!(cluster.members.world().released.is_empty());

    cluster.members.world().layouts.truncate(1);
    // The next comparison is hours away; a start compares at once.
    nodes.remove(0).stop().await;
    let node = cluster.start(0).await;
    cluster.until(|| cluster.reported(0) == (0, 0)).await;
    cluster.until(|| cluster.report_of(0).surplus_chunks == 0).await;
    assert_eq!(cluster.get(&node, &chunks).await, vec![Bytes::new(); 20]);
    for (at, node) in (1..).zip(nodes) {
        assert_eq!(cluster.reported(at), (20, 0));
        node.stop().await;
    }
    node.stop().await;
}

/// Goal: a node that lacks what it should hold does not say that it has it. Method: a chunk that is
/// nowhere, a member that takes no proof for a while, and then the chunk.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_share_is_proven_only_when_all_of_it_is_here() {
    let cluster = Cluster::new().await;
    let chunks = chunks(0..7);
    let (node, sibling) = (cluster.start(0).await, cluster.start(1).await);
    cluster.put(&sibling, 1, &chunks[..6]).await;
    cluster.members.feed().extend(ids(&chunks));
    cluster.change_layout(&[0, 1, 2]);
    cluster.until(|| (0..2).all(|at| cluster.reported(at) == (6, 1))).await;
    let proofs = |at: usize| -> Vec<(u64, u64)> {
        let world = cluster.members.world();
        let own = world.proofs.iter().filter(|it| it.node == cluster.nodes[at]);
        own.map(|it| (it.layout, it.position)).filter(|it| it.0 == 2).collect()
    };
    // Long enough for many looks.
    let before = cluster.report_of(0).report;
    cluster.until(|| cluster.report_of(0).report != before).await;
    assert_eq!(proofs(0), []);
    cluster.members.world().is_away = true;
    cluster.put(&sibling, 1, &chunks[6..]).await;
    cluster.until(|| (0..2).all(|at| cluster.reported(at) == (7, 0))).await;
    assert_eq!(proofs(0), []);
    cluster.members.world().is_away = false;
    cluster.until(|| proofs(0) == [(2, 7)] && proofs(1) == [(2, 7)]).await;
    // It is not said again after a restart, but when there is more.
    node.stop().await;
    let node = cluster.start_with(0, always_comparing).await;
    let more = chunk(9, 1000);
    cluster.put(&node, 0, std::slice::from_ref(&more)).await;
    cluster.members.feed().push(more.id());
    cluster.until(|| proofs(0).last() == Some(&(2, 8))).await;
    assert_eq!(proofs(0), [(2, 7), (2, 8)]);
    node.stop().await;
    sibling.stop().await;
}

/// Goal: what no commit names goes when its receipt has run out and no earlier; what a purge has taken
/// out goes too, and all else stays. Method: log time, moved by the test.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_nothing_names_is_forgotten_when_its_receipts_have_run_out() {
    let cluster = Cluster::new().await;
    let chunks = chunks(0..9);
    let node = cluster.start_with(0, always_comparing).await;
    cluster.put(&node, 0, &chunks).await;
    cluster.members.feed().extend(ids(&chunks[..6]));
    cluster.members.world().purged.extend(ids(&chunks[4..6]));
    cluster.until(|| cluster.report_of(0).surplus_chunks == 5).await;
    // The node asks for no leave while it has promised to keep them.
    assert!(cluster.members.world().released.is_empty());
    assert_eq!(cluster.reported(0), (9, 0));
    cluster.members.world().time = START.plus_ms(HOLD_MS + 60_000);
    cluster.until(|| cluster.reported(0) == (4, 0)).await;
    cluster.until(|| cluster.report_of(0).surplus_chunks == 0).await;
    let mut expected = bytes(&chunks);
    expected[4..].fill(Bytes::new());
    assert_eq!(cluster.get(&node, &chunks).await, expected);
    assert_eq!(cluster.report_of(0).used_bytes, 4000);
    node.stop().await;
}

/// Goal: what was forgotten takes up no room on the disk for long, and an operator sees that. Method:
/// chunks that fill a few segments, most of which nothing names.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_room_of_what_was_forgotten_is_given_back() {
    let cluster = Cluster::new().await;
    let chunks: Vec<_> = (0..24).map(|name| chunk(name, 1 << 20)).collect();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let config = always_comparing(cluster.config(0, &address));
    let config = Config { compact_every: Duration::from_millis(100), ..config };
    let node = Node::open(config).unwrap();
    let (metrics, shutdown) = (node.watch.metrics(), Shutdown::new());
    let has = |line: &str| metrics.text().unwrap().lines().any(|it| it == line);
    for name in ["surplus_chunks", "fetched_total", "dead_bytes", "segments_given_back_total"] {
        assert!(has(&format!("coffer_storage_{name} 0")), "{name} is not there from the start");
    }
    let stop = shutdown.clone();
    let task = tokio::spawn(async move { node.serve(listener, &stop).await });
    let node = Running { address, shutdown, task };
    cluster.until(|| cluster.members.reports.lock().unwrap().len() == 1).await;
    for chunk in &chunks {
        cluster.put(&node, 0, std::slice::from_ref(chunk)).await;
    }
    cluster.members.feed().extend(ids(&chunks[..4]));
    cluster.until(|| has("coffer_storage_surplus_chunks 20")).await;
    let segments = || std::fs::read_dir(cluster.volume(0).join("segments")).unwrap().count();
    assert_eq!(segments(), 8);
    cluster.members.world().time = START.plus_ms(HOLD_MS + 60_000);
    cluster.until(|| cluster.report_of(0).used_bytes == 4 << 20).await;
    cluster.until(|| segments() <= 3).await;
    cluster.until(|| has("coffer_storage_surplus_chunks 0")).await;
    assert!(!has("coffer_storage_segments_given_back_total 0"));
    assert_eq!(cluster.get(&node, &chunks[..4]).await, bytes(&chunks[..4]));
    node.stop().await;
}

/// Goal: a node that lost its index, or part of it, learns from comparing what is missing, though its
/// cursor stands behind. Method: the segments are removed under the index of a node that stopped.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_finds_what_the_feed_does_not_say_again() {
    let cluster = Cluster::new().await;
    let chunks = chunks(0..5);
    let (node, sibling) = (cluster.start(0).await, cluster.start(1).await);
    cluster.put(&node, 0, &chunks).await;
    cluster.put(&sibling, 1, &chunks).await;
    cluster.members.feed().extend(ids(&chunks));
    cluster.until(|| (0..2).all(|at| cluster.reported(at) == (5, 0))).await;
    node.stop().await;
    // An index that says how far the feed was followed, and no more.
    std::fs::remove_dir_all(cluster.volume(0).join("segments")).unwrap();
    std::fs::remove_dir_all(cluster.volume(0).join("index")).unwrap();
    let index = Index::open(&cluster.volume(0).join("index")).unwrap();
    index.note(&crate::index::Notes { cursor: Some(5), ..Default::default() }).unwrap();
    drop(index);
    let node = cluster.start(0).await;
    cluster.until(|| cluster.reported(0) == (5, 0)).await;
    assert_eq!(cluster.get(&node, &chunks).await, bytes(&chunks));
    node.stop().await;
    sibling.stop().await;
}
