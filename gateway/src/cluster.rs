//! What the gateway knows of the storage side: the layout, and where the nodes are. Asked of the
//! members every two seconds; what was learnt stays in use while no member answers.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use coffer_model::descriptor::Descriptor;
use coffer_model::id::{ChunkId, ClusterId, NodeId};
use coffer_model::layout::Layout;
use coffer_proto::v1 as pb;
use coffer_proto::v1::cluster_service_client::ClusterServiceClient;
use coffer_service::channel::{ChannelOptions, ChannelPool};
use coffer_service::health::Health;
use coffer_service::shutdown::Shutdown;
use coffer_service::status::status;
use coffer_service::tls::LiveTls;
use tokio::sync::Semaphore;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::members::{Members, host_of, peer};

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
    layout: Layout,
    nodes: BTreeMap<NodeId, Node>,
}

impl View {
    pub(crate) fn layout_version(&self) -> u64 {
        self.layout.version()
    }

    /// The nodes that hold `chunk`, in order, as far as they can be called.
    pub(crate) fn holders(&self, chunk: &ChunkId) -> Vec<Node> {
        self.layout.nodes_of(chunk).filter_map(|id| self.nodes.get(&id).cloned()).collect()
    }
}

/// The storage side.
pub(crate) struct Cluster {
    id: ClusterId,
    descriptor: Descriptor,
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
        Self { id, descriptor, members, channels, view: RwLock::new(None) }
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

    async fn refresh(&self) -> Result<(), Status> {
        let answer = self
            .members
            .ask(async |channel| {
                let mut client = ClusterServiceClient::new(channel);
                let descriptor = client.get_descriptor(pb::GetDescriptorRequest::default()).await?;
                let status = client.get_status(pb::GetStatusRequest {}).await?;
                Ok((descriptor.into_inner(), status.into_inner()))
            })
            .await?;
        let (descriptor, status) = answer;
        let administrators = &self.descriptor.administrators;
        let layout = Layout::verify(&descriptor.layout, &self.id, administrators)
            .map_err(|error| Status::internal(error.to_string()))?;
        let former = self.view.read().unwrap_or_else(PoisonError::into_inner).clone();
        let mut nodes = BTreeMap::new();
        for node in status.nodes {
            let Ok(id) = node.id.parse::<NodeId>() else { continue };
            if node.address.is_empty() || self.descriptor.node_key(id).is_none() {
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
        let view = Some(Arc::new(View { layout, nodes }));
        *self.view.write().unwrap_or_else(PoisonError::into_inner) = view;
        Ok(())
    }
}
