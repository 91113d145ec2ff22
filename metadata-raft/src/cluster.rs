//! The cluster service: what the cluster says about itself.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use coffer_metadata_core::query;
use coffer_model::descriptor::Descriptor;
use coffer_model::log::NodeReport;
use coffer_proto::v1 as pb;
use coffer_proto::v1::cluster_service_client::ClusterServiceClient;
use coffer_proto::v1::cluster_service_server::ClusterService;
use coffer_service::channel::Channel;
use tonic::{Request, Response, Status};

use crate::access::{Door, Route, reading, store_failed};
use crate::group::latest_descriptor;
use crate::nodes::Nodes;
use crate::reads::Reads;

/// The cluster service of one member.
#[derive(Clone)]
pub(crate) struct Cluster {
    pub(crate) door: Door,
    pub(crate) reads: Reads,
    pub(crate) nodes: Arc<Nodes>,
}

fn client(channel: Channel) -> ClusterServiceClient<Channel> {
    ClusterServiceClient::new(channel)
}

#[tonic::async_trait]
impl ClusterService for Cluster {
    /// Answered by every member, also without a majority: the records are signed and numbered.
    async fn get_descriptor(
        &self,
        request: Request<pb::GetDescriptorRequest>,
    ) -> Result<Response<pb::GetDescriptorResponse>, Status> {
        // The latest where there is a majority; without one, what is known here.
        let view = match self.reads.view().await {
            Ok(confirmed) => confirmed.into_view().0,
            Err(_) => self.reads.local(),
        };
        let known = request.get_ref().known_number;
        let records = reading(move || {
            let descriptor = query::genesis(&view).map_err(store_failed)?.map(|(first, _)| first);
            let layouts = query::layouts(&view).map_err(store_failed)?;
            let successors = query::successors(&view, known).map_err(store_failed)?;
            Ok((descriptor, layouts.map(|layouts| layouts.signed), successors))
        });
        let (descriptor, layouts, successors) = records.await?;
        let own = &self.door.group.records;
        let descriptor = descriptor.unwrap_or_else(|| own.signed_descriptor.clone());
        let layouts = layouts.unwrap_or_else(|| vec![own.signed_layout.clone()]);
        let mut layouts = layouts.into_iter().map(Into::into);
        Ok(Response::new(pb::GetDescriptorResponse {
            descriptor: descriptor.into(),
            layout: layouts.next().unwrap_or_default(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            successors: successors.into_iter().map(Into::into).collect(),
            former_layouts: layouts.collect(),
        }))
    }

    async fn get_status(
        &self,
        request: Request<pb::GetStatusRequest>,
    ) -> Result<Response<pb::GetStatusResponse>, Status> {
        if let Route::At(leader) = self.door.to_leader(&request)? {
            let call = |to, request| async move { client(to).get_status(request).await };
            return self.door.forward(leader, request, call).await;
        }
        let confirmed = self.reads.view().await.map_err(|error| self.door.read_refused(error))?;
        let (cluster, nodes) = (self.clone(), Arc::clone(&self.nodes));
        let answer = reading(move || {
            let view = &confirmed.view;
            // That of the log: this process may just be about to follow it.
            let latest = latest_descriptor(view).map_err(store_failed)?.map(Arc::new);
            let descriptor = latest.unwrap_or_else(|| cluster.door.group.descriptor());
            let members = cluster.members(&descriptor);
            let logged = query::nodes(view).map_err(store_failed)?;
            let totals = query::totals(view).map_err(store_failed)?;
            let layouts = query::layouts(view).map_err(store_failed)?;
            let in_layout = layouts.as_ref().map(|layouts| layouts.in_force().holders_all());
            let policy = query::policy(view).map_err(store_failed)?;
            let proofs = query::proofs(view).map_err(store_failed)?;
            let now = Instant::now();
            let node_status = |node: &coffer_model::descriptor::StorageNode| {
                let report = logged.iter().find(|report| report.node == node.id);
                let (reachable, condition) = nodes.condition(node.id, now);
                let proof = proofs.iter().find(|proof| proof.node == node.id);
                pb::NodeStatus {
                    id: node.id.to_string(),
                    address: report.map_or(String::new(), |report| report.address.clone()),
                    zone: node.zone.clone(),
                    reachable: reachable && report.is_some(),
                    capacity_bytes: report.map_or(0, |report: &NodeReport| report.capacity_bytes),
                    used_bytes: condition.used_bytes,
                    chunks: condition.chunks,
                    missing_chunks: condition.missing_chunks,
                    fault: condition.fault,
                    quarantined_chunks: condition.quarantined_chunks,
                    surplus_chunks: condition.surplus_chunks,
                    proven_layout: proof.map_or(0, |proof| proof.layout),
                    proven_position: proof.map_or(0, |proof| proof.position),
                    weight: node.weight,
                    in_layout: in_layout.as_ref().is_some_and(|all| all.contains(&node.id)),
                    fetched_chunks: condition.fetched_chunks,
                }
            };
            Ok(pb::GetStatusResponse {
                revision: query::revision(view).map_err(store_failed)?,
                log_time_ms: query::log_time(view).map_err(store_failed)?.unix_ms(),
                members,
                nodes: descriptor.nodes.iter().map(node_status).collect(),
                inodes: totals.inodes,
                charged_bytes: totals.bytes,
                log_root: query::log_root(view).map_err(store_failed)?.to_vec().into(),
                layout_version: layouts.as_ref().map_or(0, |all| all.in_force().version()),
                former_layouts: layouts.map_or(0, |all| number(all.former().len())),
                core_version: query::core_version(view).map_err(store_failed)?,
                descriptor_number: descriptor.number,
                order_number: policy.order_number,
                retention_ms: policy.retention_ms,
                default_quota_bytes: policy.default_quota,
                feed_position: query::feed_position(view).map_err(store_failed)?,
                deleted_inodes: query::deleted_inodes(view).map_err(store_failed)?,
            })
        });
        Ok(Response::new(answer.await?))
    }
}

impl Cluster {
    fn members(&self, descriptor: &Descriptor) -> Vec<pb::MemberStatus> {
        let metrics = self.door.leadership.raft.metrics().borrow().clone();
        let voters: BTreeSet<u64> = metrics.membership_config.membership().voter_ids().collect();
        let last = metrics.last_log_index.unwrap_or(0);
        let group = &self.door.group;
        let status = |member: &coffer_model::descriptor::Member| {
            let me = member.id == group.me;
            let replicated = metrics.replication.as_ref().and_then(|replication| {
                let matched = replication.get(&member.id.as_u64())?.as_ref()?;
                Some(matched.index)
            });
            pb::MemberStatus {
                id: member.id.to_string(),
                address: member.address.clone(),
                leader: me,
                reachable: me || self.door.peers.reached(member.id),
                behind: if me { 0 } else { last - replicated.unwrap_or(0).min(last) },
                voter: voters.contains(&member.id.as_u64()),
            }
        };
        descriptor.members.iter().map(status).collect()
    }
}

fn number(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}
