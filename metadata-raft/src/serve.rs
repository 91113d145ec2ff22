//! What members and storage nodes ask of a member, and all its services on one server.

use std::sync::Arc;
use std::time::{Duration, Instant};

use coffer_metadata_core::state::CORE_VERSION_MAX;
use coffer_metadata_core::{Command, query};
use coffer_model::encoding::{decode, encode};
use coffer_model::id::NodeId;
use coffer_model::log::{NodeReport, SystemOp};
use coffer_model::share::ShareProof;
use coffer_model::signing::{Domain, Signature};
use coffer_proto::MESSAGE_BYTES_MAX;
use coffer_proto::internal as pb;
use coffer_proto::internal::member_service_client::MemberServiceClient;
use coffer_proto::internal::member_service_server::{MemberService, MemberServiceServer};
use coffer_proto::internal::snapshot_service_server::{SnapshotService, SnapshotServiceServer};
use coffer_proto::v1::admin_service_server::AdminServiceServer;
use coffer_proto::v1::cluster_service_server::ClusterServiceServer;
use coffer_proto::v1::directory_service_server::DirectoryServiceServer;
use coffer_proto::v1::login_service_server::LoginServiceServer;
use coffer_service::audit::note;
use coffer_service::channel::Channel;
use coffer_service::health::Health;
use coffer_service::status::{status, status_with_retry};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tonic::service::Routes;
use tonic::{Code, Request, Response, Status, Streaming};

use crate::access::{Door, Route, invalid, reading, stopping, store_failed};
use crate::admin::Admin;
use crate::batch::Proposer;
use crate::clock::own_reading;
use crate::cluster::Cluster;
use crate::codec::{
    decode_append, decode_vote_request, encode_append_answer, encode_vote, encode_vote_answer,
};
use crate::directory::Directory;
use crate::group::Process;
use crate::join::{Asked, Vouching};
use crate::login::Login;
use crate::nodes::{Condition, FAULT_BYTES_MAX, Nodes};
use crate::placement;
use crate::raft::Snapshot;
use crate::reads::Reads;
use crate::snapshot::{Header, Received, Receiving, SnapshotData, SnapshotError};
use crate::store::{Store, View};

/// A storage node's report is a good deal shorter than this.
const REPORT_BYTES_MAX: usize = 1024;
/// How long the next message of a snapshot may take to come.
const PIECE_TIMEOUT: Duration = Duration::from_secs(30);
/// How long installing a snapshot may take that is all here: it is one write.
const INSTALL_TIMEOUT: Duration = Duration::from_secs(30);
/// When to come back where another snapshot is being received.
const SNAPSHOT_RETRY: Duration = Duration::from_secs(1);

/// The member service of one member.
#[derive(Clone)]
pub(crate) struct Internal {
    door: Door,
    reads: Reads,
    proposer: Proposer,
    nodes: Arc<Nodes>,
}

impl Internal {
    pub(crate) fn new(door: Door, reads: Reads, proposer: Proposer, nodes: Arc<Nodes>) -> Self {
        Self { door, reads, proposer, nodes }
    }
}

/// All services of a member, but for the one that newcomers ask.
pub(crate) fn routes(
    directory: Directory,
    login: Login,
    cluster: Cluster,
    internal: Internal,
    snapshots: Snapshots,
    admin: Admin,
    health: &Health,
) -> Routes {
    Routes::new(health.service())
        .add_service(
            DirectoryServiceServer::new(directory)
                .max_decoding_message_size(MESSAGE_BYTES_MAX)
                .max_encoding_message_size(MESSAGE_BYTES_MAX),
        )
        .add_service(LoginServiceServer::new(login))
        .add_service(ClusterServiceServer::new(cluster))
        .add_service(AdminServiceServer::new(admin))
        .add_service(
            SnapshotServiceServer::new(snapshots).max_decoding_message_size(MESSAGE_BYTES_MAX),
        )
        .add_service(
            MemberServiceServer::new(internal)
                .max_decoding_message_size(MESSAGE_BYTES_MAX)
                .max_encoding_message_size(MESSAGE_BYTES_MAX),
        )
}

fn client(channel: Channel) -> MemberServiceClient<Channel> {
    MemberServiceClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX)
}

fn denied(text: &str) -> Status {
    status(Code::PermissionDenied, "NOT_YOURS", text, &[])
}

fn malformed(error: coffer_model::encoding::Malformed) -> Status {
    invalid("MALFORMED", &error.to_string())
}

#[tonic::async_trait]
impl MemberService for Internal {
    async fn append(
        &self,
        request: Request<pb::AppendRequest>,
    ) -> Result<Response<pb::AppendResponse>, Status> {
        let member = self.door.member(&request)?;
        let append = decode_append(&request.get_ref().message).map_err(malformed)?;
        if append.vote.leader_id.node_id != member.as_u64() {
            return Err(denied("a member leads in its own name only"));
        }
        let answer =
            self.door.leadership.raft.append_entries(append).await.map_err(|_| stopping())?;
        Ok(Response::new(pb::AppendResponse { message: encode_append_answer(&answer).into() }))
    }

    async fn vote(
        &self,
        request: Request<pb::VoteRequest>,
    ) -> Result<Response<pb::VoteResponse>, Status> {
        let member = self.door.member(&request)?;
        let vote = decode_vote_request(&request.get_ref().message).map_err(malformed)?;
        if vote.vote.leader_id.node_id != member.as_u64() {
            return Err(denied("a member stands for election in its own name only"));
        }
        let answer = self.door.leadership.raft.vote(vote).await.map_err(|_| stopping())?;
        Ok(Response::new(pb::VoteResponse { message: encode_vote_answer(&answer).into() }))
    }

    async fn install_snapshot(
        &self,
        request: Request<pb::InstallSnapshotRequest>,
    ) -> Result<Response<pb::InstallSnapshotResponse>, Status> {
        self.door.member(&request)?;
        let text = "snapshots come as streams: use SnapshotService";
        Err(status(Code::Unimplemented, "NO_SNAPSHOTS", text, &[]))
    }

    async fn read_clock(
        &self,
        request: Request<pb::ReadClockRequest>,
    ) -> Result<Response<pb::ReadClockResponse>, Status> {
        self.door.member(&request)?;
        let reading = encode(&own_reading(&self.door.group)).into();
        Ok(Response::new(pb::ReadClockResponse { reading }))
    }

    async fn report_node(
        &self,
        request: Request<pb::ReportNodeRequest>,
    ) -> Result<Response<pb::ReportNodeResponse>, Status> {
        // Before the call is passed on: the leader takes a member's word for who called it.
        let caller = self.door.process(&request)?;
        let (report, signature) = self.checked_report(caller, request.get_ref())?;
        if let Route::At(leader) = self.door.to_leader(&request)? {
            let call = |to, request| async move { client(to).report_node(request).await };
            return self.door.forward(leader, request, call).await;
        }
        let message = request.into_inner();
        let confirmed = self.reads.view().await.map_err(|error| self.door.read_refused(error))?;
        let logged = reading(move || query::nodes(&confirmed.view).map_err(store_failed)).await?;
        let logged = logged.iter().find(|logged| logged.node == report.node);
        let fault = &message.fault[..message.fault.floor_char_boundary(FAULT_BYTES_MAX)];
        let condition = Condition {
            used_bytes: message.used_bytes,
            chunks: message.chunks,
            missing_chunks: message.missing_chunks,
            quarantined_chunks: message.quarantined_chunks,
            surplus_chunks: message.surplus_chunks,
            fetched_chunks: message.fetched_chunks,
            fault: fault.to_owned(),
        };
        let news = self.nodes.report(&report, condition, logged, Instant::now());
        let news = news.map_err(|_| {
            let text = "a later report of this storage node is known";
            status(Code::FailedPrecondition, "STALE_REPORT", text, &[])
        })?;
        if message.surplus_chunks > 0 {
            // It may be forgotten once log time has passed.
            self.proposer.nudge_tick();
        }
        if news {
            tracing::info!(node = %report.node, address = report.address, "a storage node reported");
            let op = SystemOp::NodeReport { report: message.report.to_vec(), signature };
            let reply = self.proposer.propose(Command::System(op)).await;
            reply.map_err(|error| self.door.propose_refused(error))?;
        }
        let (view, nodes) = (self.reads.local(), Arc::clone(&self.nodes));
        let known = message.descriptor_number;
        Ok(Response::new(reading(move || whereabouts(&view, &nodes, known)).await?))
    }

    async fn read_rows(
        &self,
        request: Request<pb::ReadRowsRequest>,
    ) -> Result<Response<pb::ReadRowsResponse>, Status> {
        let node = self.asks_for_itself(&request, &request.get_ref().node_id)?;
        self.door.here()?;
        let confirmed = self.reads.view().await.map_err(|error| self.door.read_refused(error))?;
        let message = request.into_inner();
        let answer = reading(move || placement::rows(&confirmed.view, node, &message));
        Ok(Response::new(answer.await?))
    }

    async fn prove_share(
        &self,
        request: Request<pb::ProveShareRequest>,
    ) -> Result<Response<pb::ProveShareResponse>, Status> {
        let caller = self.door.process(&request)?;
        let message = request.get_ref();
        let proof: ShareProof = decode("proof of a share", &message.proof).map_err(malformed)?;
        speaks_for(caller, proof.node)?;
        let signature =
            self.signed(Domain::ShareProof, proof.node, &message.proof, &message.signature)?;
        if let Route::At(leader) = self.door.to_leader(&request)? {
            let call = |to, request| async move { client(to).prove_share(request).await };
            return self.door.forward(leader, request, call).await;
        }
        note(&request, |subject| {
            subject.object = Some(format!("layout {} to {}", proof.layout, proof.position));
        });
        let op = SystemOp::ShareProof { proof: message.proof.to_vec(), signature };
        let reply = self.proposer.propose(Command::System(op)).await;
        reply.map_err(|error| self.door.propose_refused(error))?;
        let confirmed = self.reads.view().await.map_err(|error| self.door.read_refused(error))?;
        reading(move || {
            let known = query::proofs(&confirmed.view).map_err(store_failed)?;
            if known.contains(&proof) {
                return Ok(Response::new(pb::ProveShareResponse {}));
            }
            let text = "the proof is not of the layout in force, or an older one: compare again";
            Err(status(Code::FailedPrecondition, "PROOF_REFUSED", text, &[]))
        })
        .await
    }

    async fn release_chunks(
        &self,
        request: Request<pb::ReleaseChunksRequest>,
    ) -> Result<Response<pb::ReleaseChunksResponse>, Status> {
        let node = self.asks_for_itself(&request, &request.get_ref().node_id)?;
        note(&request, |subject| {
            subject.object = Some(format!("{} chunks", request.get_ref().chunk_ids.len()));
        });
        self.door.here()?;
        let (view, group) = (self.reads.local(), Arc::clone(&self.door.group));
        let message = request.into_inner();
        let answer = reading(move || placement::release(&view, &group, node, &message));
        Ok(Response::new(answer.await?))
    }

    async fn get_core_version(
        &self,
        request: Request<pb::GetCoreVersionRequest>,
    ) -> Result<Response<pb::GetCoreVersionResponse>, Status> {
        self.door.member(&request)?;
        Ok(Response::new(pb::GetCoreVersionResponse { version_max: CORE_VERSION_MAX }))
    }

    async fn greet(
        &self,
        request: Request<pb::GreetRequest>,
    ) -> Result<Response<pb::GreetResponse>, Status> {
        // To know who calls is to have heard from them.
        self.door.process(&request)?;
        Ok(Response::new(pb::GreetResponse {}))
    }

    async fn vouch_replacement(
        &self,
        request: Request<pb::VouchReplacementRequest>,
    ) -> Result<Response<pb::VouchReplacementResponse>, Status> {
        self.door.member(&request)?;
        note(&request, |subject| subject.object = Some("replacement".to_owned()));
        let message = request.get_ref();
        let asked = Asked::new(&message.descriptor, &message.token_key, &message.token_signature)?;
        let vouching = Vouching { door: self.door.clone(), reads: self.reads.clone() };
        let signature = vouching.vouch(&asked, self.reads.local()).await?;
        let signature = signature.as_bytes().to_vec().into();
        Ok(Response::new(pb::VouchReplacementResponse { signature }))
    }

    async fn get_read_index(
        &self,
        request: Request<pb::GetReadIndexRequest>,
    ) -> Result<Response<pb::GetReadIndexResponse>, Status> {
        self.door.member(&request)?;
        self.door.here()?;
        if !self.door.leadership.is_mine() {
            return Err(self.door.not_leader(None));
        }
        // Reads elsewhere move log time as reads here do.
        self.proposer.nudge_tick();
        self.reads.confirm().await.map_err(|error| self.door.read_refused(error))?;
        let applied = self.door.leadership.raft.metrics().borrow().last_applied;
        Ok(Response::new(pb::GetReadIndexResponse {
            applied_index: applied.map_or(0, |applied| applied.index),
        }))
    }

    async fn read_feed(
        &self,
        request: Request<pb::ReadFeedRequest>,
    ) -> Result<Response<pb::ReadFeedResponse>, Status> {
        let node = self.asks_for_itself(&request, &request.get_ref().node_id)?;
        self.door.here()?;
        let confirmed = self.reads.view().await.map_err(|error| self.door.read_refused(error))?;
        let message = request.into_inner();
        let answer = reading(move || placement::feed(&confirmed.view, node, &message));
        Ok(Response::new(answer.await?))
    }
}

/// The snapshot service of one member.
#[derive(Clone)]
pub(crate) struct Snapshots {
    door: Door,
    store: Arc<Store>,
    /// One snapshot is received at a time: there is one place for it.
    turn: Arc<Semaphore>,
}

type Pieces = Streaming<pb::StreamSnapshotRequest>;

#[tonic::async_trait]
impl SnapshotService for Snapshots {
    async fn stream_snapshot(
        &self,
        request: Request<Pieces>,
    ) -> Result<Response<pb::StreamSnapshotResponse>, Status> {
        let member = self.door.member(&request)?;
        let turn = Arc::clone(&self.turn).try_acquire_owned().map_err(|_| {
            let text = "another snapshot is being received";
            let retry = SNAPSHOT_RETRY;
            status_with_retry(Code::ResourceExhausted, "SNAPSHOT_UNDER_WAY", text, &[], retry)
        })?;
        let turn = Arc::new(turn);
        let mut pieces = request.into_inner();
        let first = next_piece(&mut pieces).await?.ok_or_else(cut_off)?;
        let cluster = self.door.cluster();
        let header = Header::decode(&first, &cluster).map_err(|error| snapshot_refused(&error))?;
        let leader = header.vote.leader_id.node_id;
        if leader != member.as_u64() || !header.vote.committed {
            return Err(denied("a member sends snapshots in its own name only, while it leads"));
        }
        let metrics = self.door.leadership.raft.metrics().borrow().clone();
        // What is known already need not come again, and of who leads no more nothing is taken.
        if metrics.vote > header.vote || metrics.last_applied >= Some(header.last) {
            let message = encode_vote(&metrics.vote).into();
            return Ok(Response::new(pb::StreamSnapshotResponse { message }));
        }
        tracing::info!(%member, last = %header.last, "receiving a snapshot");
        let received = self.receive(header, &first, &mut pieces, &turn).await;
        let answer = match received {
            Ok(received) => self.install(received).await,
            Err(status) => Err(status),
        };
        if let Err(status) = &answer {
            tracing::warn!(%member, %status, "a snapshot was not taken");
        }
        // Whatever of it did not come into force is removed, before another may begin; unless somebody
        // still has it, and may yet install it.
        if let Some(turn) = Arc::into_inner(turn) {
            let store = Arc::clone(&self.store);
            storing(move || {
                let _turn = turn;
                Ok(store.drop_other_generations()?)
            })
            .await?;
        }
        answer
    }
}

impl Snapshots {
    pub(crate) fn new(door: Door, store: Arc<Store>) -> Self {
        Self { door, store, turn: Arc::new(Semaphore::new(1)) }
    }

    async fn receive(
        &self,
        header: Header,
        first: &[u8],
        pieces: &mut Pieces,
        turn: &Arc<OwnedSemaphorePermit>,
    ) -> Result<Received, Status> {
        let (store, turn, first) = (Arc::clone(&self.store), Arc::clone(turn), first.to_vec());
        let begun = storing(move || Receiving::begin(&store, header, &first, turn));
        let mut receiving = begun.await?;
        loop {
            let piece = next_piece(pieces).await?.ok_or_else(cut_off)?;
            let taken = storing(move || {
                let ended = receiving.take(&piece)?;
                Ok((receiving, ended))
            });
            let ended;
            (receiving, ended) = taken.await?;
            if ended {
                break;
            }
        }
        if next_piece(pieces).await?.is_some() {
            return Err(snapshot_refused(&SnapshotError::Damaged("it goes on after its end")));
        }
        storing(move || receiving.finish()).await
    }

    async fn install(
        &self,
        received: Received,
    ) -> Result<Response<pb::StreamSnapshotResponse>, Status> {
        let (meta, vote) = (received.header().meta(), received.header().vote);
        let snapshot = Snapshot { meta, snapshot: Box::new(SnapshotData::Received(received)) };
        let installed = self.door.leadership.raft.install_full_snapshot(vote, snapshot);
        match timeout(INSTALL_TIMEOUT, installed).await {
            Ok(Ok(answer)) => {
                let message = encode_vote(&answer.vote).into();
                Ok(Response::new(pb::StreamSnapshotResponse { message }))
            }
            Ok(Err(_)) | Err(_) => Err(stopping()),
        }
    }
}

async fn next_piece(pieces: &mut Pieces) -> Result<Option<bytes::Bytes>, Status> {
    match timeout(PIECE_TIMEOUT, pieces.message()).await {
        Ok(piece) => Ok(piece?.map(|piece| piece.message)),
        Err(_) => {
            let text = "the next piece of the snapshot did not come in time";
            Err(status(Code::DeadlineExceeded, "SNAPSHOT_STALLED", text, &[]))
        }
    }
}

fn cut_off() -> Status {
    snapshot_refused(&SnapshotError::Damaged("it is cut off"))
}

fn snapshot_refused(error: &SnapshotError) -> Status {
    let (code, reason) = match error {
        SnapshotError::Version(_) | SnapshotError::LaterState(_) => {
            (Code::Unimplemented, "SNAPSHOT_VERSION")
        }
        SnapshotError::Foreign(_) => (Code::FailedPrecondition, "SNAPSHOT_FOREIGN"),
        SnapshotError::Malformed(_) | SnapshotError::Damaged(_) => {
            (Code::InvalidArgument, "SNAPSHOT_DAMAGED")
        }
        SnapshotError::Store(_) => (Code::Internal, "STORE_FAILED"),
    };
    status(code, reason, &error.to_string(), &[])
}

/// Runs a step of receiving, which may wait for the disk, off the async threads.
async fn storing<T: Send + 'static>(
    step: impl FnOnce() -> Result<T, SnapshotError> + Send + 'static,
) -> Result<T, Status> {
    reading(move || step().map_err(|error| snapshot_refused(&error))).await
}

/// A storage node speaks for itself only. A member passes on what a node said to it.
fn speaks_for(caller: Process, node: NodeId) -> Result<(), Status> {
    match caller {
        Process::Member(_) => Ok(()),
        Process::Node(caller) if caller == node => Ok(()),
        Process::Node(_) => Err(denied("a storage node speaks for itself only")),
    }
}

impl Internal {
    fn checked_report(
        &self,
        caller: Process,
        message: &pb::ReportNodeRequest,
    ) -> Result<(NodeReport, Signature), Status> {
        if message.report.len() > REPORT_BYTES_MAX {
            return Err(invalid("REPORT", "the report is too long"));
        }
        let report: NodeReport = decode("node report", &message.report).map_err(malformed)?;
        speaks_for(caller, report.node)?;
        let signature: [u8; 64] = message.signature[..]
            .try_into()
            .map_err(|_| invalid("REPORT", "a signature has 64 bytes"))?;
        let signature = Signature::from_bytes(signature);
        let group = &self.door.group;
        let signed = group.descriptor().node_key(report.node).is_some_and(|key| {
            key.verify(Domain::NodeReport, &group.cluster(), &message.report, &signature).is_ok()
        });
        if !signed {
            return Err(denied("the report is not signed by the storage node it is about"));
        }
        Ok((report, signature))
    }

    /// The node that a call is about, which has to be the caller.
    fn asks_for_itself<M>(&self, request: &Request<M>, node: &[u8]) -> Result<NodeId, Status> {
        let caller = self.door.process(request)?;
        let node = NodeId::try_from(node).map_err(|_| invalid("NODE", "a node id has 16 bytes"))?;
        speaks_for(caller, node)?;
        Ok(node)
    }

    /// The signature over `bytes`, if it is the node's.
    fn signed(
        &self,
        domain: Domain,
        node: NodeId,
        bytes: &[u8],
        signature: &[u8],
    ) -> Result<Signature, Status> {
        let signature = <[u8; 64]>::try_from(signature)
            .map_err(|_| invalid("SIGNATURE_INVALID", "a signature has 64 bytes"))?;
        let signature = Signature::from_bytes(signature);
        let group = &self.door.group;
        let good = group
            .descriptor()
            .node_key(node)
            .is_some_and(|key| key.verify(domain, &group.cluster(), bytes, &signature).is_ok());
        if good {
            Ok(signature)
        } else {
            Err(denied("it is not signed by the storage node it is about"))
        }
    }
}

/// What a storage node gets to know with each report.
fn whereabouts(
    view: &View,
    nodes: &Nodes,
    known_descriptor: u64,
) -> Result<pb::ReportNodeResponse, Status> {
    let now = Instant::now();
    let address = |report: NodeReport| pb::NodeAddress {
        node_id: report.node.as_bytes().to_vec().into(),
        reachable: nodes.condition(report.node, now).0,
        address: report.address,
    };
    let layouts = query::layouts(view).map_err(store_failed)?;
    let mut layouts = layouts.map(|layouts| layouts.signed).unwrap_or_default().into_iter();
    let descriptors = query::successors(view, known_descriptor).map_err(store_failed)?;
    Ok(pb::ReportNodeResponse {
        log_time_ms: query::log_time(view).map_err(store_failed)?.unix_ms(),
        layout: layouts.next().unwrap_or_default().into(),
        nodes: query::nodes(view).map_err(store_failed)?.into_iter().map(address).collect(),
        former_layouts: layouts.map(Into::into).collect(),
        descriptors: descriptors.into_iter().map(Into::into).collect(),
    })
}
