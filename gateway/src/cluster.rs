//! What the gateway knows of the cluster: the descriptor, the layouts, and where the nodes are. Asked of
//! the members every two seconds; what was learnt stays in use while no member answers.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use coffer_model::descriptor::{Descriptor, Followed};
use coffer_model::id::{ChunkId, ClusterId, NodeId};
use coffer_model::layout::Layout;
use coffer_proto::v1 as pb;
use coffer_proto::v1::cluster_service_client::ClusterServiceClient;
use coffer_service::channel::{Channel, ChannelOptions, ChannelPool, host_of};
use coffer_service::health::Health;
use coffer_service::shutdown::Shutdown;
use coffer_service::status::status;
use coffer_service::tls::LiveTls;
use tokio::sync::Semaphore;
use tonic::{Code, Status};

use crate::members::{Members, peer};

const REFRESH_EVERY: Duration = Duration::from_secs(2);
/// While there is no layout yet: a new cluster is about to have one.
const FIRST_REFRESH_EVERY: Duration = Duration::from_millis(200);
/// How long a node may take for one call, its disk included.
const NODE_TIMEOUT: Duration = Duration::from_secs(10);
/// What may be under way to one node. A node that has stopped answering must not hold back the
/// copies of the others.
const NODE_IN_FLIGHT_BYTES: usize = 24 << 20;

/// A storage node that can be called.
#[derive(Clone)]
pub(crate) struct Node {
    pub(crate) id: NodeId,
    pub(crate) channel: Channel,
    pub(crate) in_flight: Arc<Semaphore>,
    /// Whether the members heard from it lately.
    pub(crate) reachable: bool,
}

/// The storage side as it was last heard of.
pub(crate) struct View {
    /// The layout in force.
    layout: Layout,
    /// Those before it that may still be needed to find a chunk, newest first.
    former: Vec<Layout>,
    nodes: BTreeMap<NodeId, Node>,
}

impl View {
    pub(crate) fn layout_version(&self) -> u64 {
        self.layout.version()
    }

    /// The nodes that are to hold `chunk`, in order, as far as they can be called.
    pub(crate) fn holders(&self, chunk: &ChunkId) -> Vec<Node> {
        self.layout.nodes_of(chunk).filter_map(|id| self.nodes.get(&id).cloned()).collect()
    }

    /// The nodes to ask for `chunk`, in order: its holders, those the members have heard from first; then,
    /// while a layout takes the place of another, those that held it before.
    pub(crate) fn readers(&self, chunk: &ChunkId) -> Vec<Node> {
        let mut nodes = self.holders(chunk);
        nodes.sort_by_key(|node| !node.reachable);
        for layout in &self.former {
            let mut former: Vec<Node> = layout
                .nodes_of(chunk)
                .filter(|id| nodes.iter().all(|node| node.id != *id))
                .filter_map(|id| self.nodes.get(&id).cloned())
                .collect();
            former.sort_by_key(|node| !node.reachable);
            nodes.append(&mut former);
        }
        nodes
    }
}

/// The cluster.
pub(crate) struct Cluster {
    id: ClusterId,
    followed: RwLock<Arc<Followed>>,
    members: Arc<Members>,
    channels: ChannelPool,
    view: RwLock<Option<Arc<View>>>,
}

impl Cluster {
    pub(crate) fn new(
        id: ClusterId,
        descriptor: Descriptor,
        members: Arc<Members>,
        tls: &Arc<LiveTls>,
    ) -> Self {
        let options =
            ChannelOptions { request_timeout: Some(NODE_TIMEOUT), ..ChannelOptions::standard() };
        let channels = ChannelPool::new(tls, options, 4096);
        let followed = RwLock::new(Arc::new(Followed::new(descriptor)));
        Self { id, followed, members, channels, view: RwLock::new(None) }
    }

    /// The view, once there is one.
    pub(crate) fn view(&self) -> Result<Arc<View>, Status> {
        self.view.read().unwrap_or_else(PoisonError::into_inner).clone().ok_or_else(|| {
            let message = "the cluster has no layout yet, or no member answers; try again";
            status(Code::Unavailable, "NOT_READY", message, &[])
        })
    }

    /// Keeps the view fresh until shutdown; readiness follows.
    pub(crate) async fn follow(self: Arc<Self>, health: Health, shutdown: Shutdown) {
        loop {
            match self.refresh().await {
                Ok(()) => health.set_serving().await,
                Err(error) => {
                    tracing::debug!(%error, "the cluster did not say where its nodes are")
                }
            }
            let pause = if self.view().is_ok() { REFRESH_EVERY } else { FIRST_REFRESH_EVERY };
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Asks the members how things are now.
    pub(crate) async fn refresh(&self) -> Result<(), Status> {
        let known = Arc::clone(&self.followed.read().unwrap_or_else(PoisonError::into_inner));
        let known_number = known.descriptor.number;
        let answer = self
            .members
            .ask(async |channel| {
                let mut client = ClusterServiceClient::new(channel);
                let request = pb::GetDescriptorRequest { known_number };
                let descriptor = client.get_descriptor(request).await?;
                let status = client.get_status(pb::GetStatusRequest {}).await?;
                Ok((descriptor.into_inner(), status.into_inner()))
            })
            .await?;
        let (records, status) = answer;
        let damaged = |error: &dyn std::fmt::Display| Status::internal(error.to_string());
        let mut followed = Followed::clone(&known);
        followed.follow(&self.id, &records.successors).map_err(|error| damaged(&error))?;
        let followed = Arc::new(followed);
        let descriptor = &followed.descriptor;
        if descriptor.number > known_number {
            tracing::info!(number = descriptor.number, "another descriptor is in force");
            self.members.follow(&descriptor.members);
            let mut known = self.followed.write().unwrap_or_else(PoisonError::into_inner);
            *known = Arc::clone(&followed);
        }
        let verify = |signed: &[u8]| followed.verify_layout(signed, &self.id);
        let layout = verify(&records.layout).map_err(|error| damaged(&error))?;
        // One that is not good only makes fewer chunks found while the layout changes.
        let former_layouts: Vec<Layout> =
            records.former_layouts.iter().filter_map(|signed| verify(signed).ok()).collect();
        let former = self.view.read().unwrap_or_else(PoisonError::into_inner).clone();
        let mut nodes = BTreeMap::new();
        for node in status.nodes {
            let Ok(id) = node.id.parse::<NodeId>() else { continue };
            if node.address.is_empty() || descriptor.node_key(id).is_none() {
                continue;
            }
            let expected = peer("storage", *id.as_bytes());
            let host = host_of(&node.address);
            let Ok(channel) = self.channels.channel_to(&node.address, host, &expected) else {
                tracing::warn!(node = %id, address = node.address, "unusable node address");
                continue;
            };
            let in_flight = former.as_ref().and_then(|view| view.nodes.get(&id)).map_or_else(
                || Arc::new(Semaphore::new(NODE_IN_FLIGHT_BYTES)),
                |node| Arc::clone(&node.in_flight),
            );
            nodes.insert(id, Node { id, channel, in_flight, reachable: node.reachable });
        }
        if nodes.is_empty() {
            return Err(Status::unavailable("no storage node has reported yet"));
        }
        let view = Some(Arc::new(View { layout, former: former_layouts, nodes }));
        *self.view.write().unwrap_or_else(PoisonError::into_inner) = view;
        Ok(())
    }
}
