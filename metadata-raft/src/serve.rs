//! What members and storage nodes ask of a member, and all its services on one server.

use std::sync::Arc;
use std::time::Instant;

use coffer_metadata_core::{Command, query};
use coffer_model::encoding::{decode, encode};
use coffer_model::hash::Hash;
use coffer_model::id::NodeId;
use coffer_model::layout::Layout;
use coffer_model::log::{NodeReport, SystemOp};
use coffer_model::signing::{Domain, Signature};
use coffer_proto::MESSAGE_BYTES_MAX;
use coffer_proto::internal as pb;
use coffer_proto::internal::member_service_client::MemberServiceClient;
use coffer_proto::internal::member_service_server::{MemberService, MemberServiceServer};
use coffer_proto::v1::cluster_service_server::ClusterServiceServer;
use coffer_proto::v1::directory_service_server::DirectoryServiceServer;
use coffer_proto::v1::login_service_server::LoginServiceServer;
use coffer_service::cache::BoundedCache;
use coffer_service::health::Health;
use coffer_service::status::status;
use tonic::service::Routes;
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status};

use crate::access::{Door, Route, invalid, reading, stopping, store_failed};
use crate::batch::Proposer;
use crate::clock::own_reading;
use crate::cluster::Cluster;
use crate::codec::{decode_append, decode_vote_request, encode_append_answer, encode_vote_answer};
use crate::directory::Directory;
use crate::group::Process;
use crate::login::Login;
use crate::nodes::{Condition, FAULT_BYTES_MAX, Nodes};
use crate::reads::Reads;
use crate::store::View;

/// A storage node's report is a good deal shorter than this.
const REPORT_BYTES_MAX: usize = 1024;
/// The most rows of the feed in one answer.
const FEED_ROWS_MAX: u32 = 10_000;
/// Parsed layouts: the one in force, and one that is on its way out.
const LAYOUTS_MAX: usize = 4;

/// The member service of one member.
#[derive(Clone)]
pub(crate) struct Internal {
    door: Door,
    reads: Reads,
    proposer: Proposer,
    nodes: Arc<Nodes>,
    layouts: Arc<BoundedCache<Hash, Arc<Layout>>>,
}

impl Internal {
    pub(crate) fn new(door: Door, reads: Reads, proposer: Proposer, nodes: Arc<Nodes>) -> Self {
        let layouts = Arc::new(BoundedCache::new(LAYOUTS_MAX, None));
        Self { door, reads, proposer, nodes, layouts }
    }
}

/// All services of a member.
pub(crate) fn routes(
    directory: Directory,
    login: Login,
    cluster: Cluster,
    internal: Internal,
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
        let text = "this version makes no snapshots of the Raft log";
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
            fault: fault.to_owned(),
        };
        let news = self.nodes.report(&report, condition, logged, Instant::now());
        let news = news.map_err(|_| {
            let text = "a later report of this storage node is known";
            status(Code::FailedPrecondition, "STALE_REPORT", text, &[])
        })?;
        if news {
            tracing::info!(node = %report.node, address = report.address, "a storage node reported");
            let op = SystemOp::NodeReport { report: message.report.to_vec(), signature };
            let reply = self.proposer.propose(Command::System(op)).await;
            reply.map_err(|error| self.door.propose_refused(error))?;
        }
        let (view, nodes) = (self.reads.local(), Arc::clone(&self.nodes));
        Ok(Response::new(reading(move || whereabouts(&view, &nodes)).await?))
    }

    async fn read_feed(
        &self,
        request: Request<pb::ReadFeedRequest>,
    ) -> Result<Response<pb::ReadFeedResponse>, Status> {
        // As with reports: who asks is checked where the call comes in.
        let caller = self.door.process(&request)?;
        let node = NodeId::try_from(&request.get_ref().node_id[..])
            .map_err(|_| invalid("NODE", "a node id has 16 bytes"))?;
        speaks_for(caller, node)?;
        if let Route::At(leader) = self.door.to_leader(&request)? {
            let call = |to, request| async move { client(to).read_feed(request).await };
            return self.door.forward(leader, request, call).await;
        }
        let message = request.into_inner();
        let limit = match message.limit {
            0 => FEED_ROWS_MAX,
            limit => limit.min(FEED_ROWS_MAX),
        };
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let confirmed = self.reads.view().await.map_err(|error| self.door.read_refused(error))?;
        let internal = self.clone();
        let answer = reading(move || {
            let view = &confirmed.view;
            let layout = internal.layout(view)?;
            let (rows, next, more) =
                query::feed(view, &layout, node, message.after, limit).map_err(store_failed)?;
            let row = |row: &coffer_model::log::ChunkRow| pb::FeedRow {
                chunk_id: row.chunk.as_bytes().to_vec().into(),
                length: row.length,
            };
            Ok(pb::ReadFeedResponse {
                rows: rows.iter().map(row).collect(),
                next,
                more,
                log_time_ms: query::log_time(view).map_err(store_failed)?.unix_ms(),
            })
        });
        Ok(Response::new(answer.await?))
    }
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

    /// The layout in force.
    fn layout(&self, view: &View) -> Result<Arc<Layout>, Status> {
        let signed = query::layout(view).map_err(store_failed)?.ok_or_else(|| {
            status(Code::Unavailable, "NO_CLUSTER", "the cluster is not formed yet", &[])
        })?;
        let key = Hash::of("coffer/v1/member/layout-cache", &signed);
        self.layouts.get_or_insert_with(key, || {
            let group = &self.door.group;
            Layout::verify(&signed, &group.cluster(), &group.descriptor().administrators)
                .map(Arc::new)
                .map_err(|error| store_failed(coffer_metadata_core::TableError(error.to_string())))
        })
    }
}

/// What a storage node gets to know with each report.
fn whereabouts(view: &View, nodes: &Nodes) -> Result<pb::ReportNodeResponse, Status> {
    let now = Instant::now();
    let address = |report: NodeReport| pb::NodeAddress {
        node_id: report.node.as_bytes().to_vec().into(),
        reachable: nodes.condition(report.node, now).0,
        address: report.address,
    };
    Ok(pb::ReportNodeResponse {
        log_time_ms: query::log_time(view).map_err(store_failed)?.unix_ms(),
        layout: query::layout(view).map_err(store_failed)?.unwrap_or_default().into(),
        nodes: query::nodes(view).map_err(store_failed)?.into_iter().map(address).collect(),
    })
}
