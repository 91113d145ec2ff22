//! Starting, serving and stopping.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use coffer_join::token::{JoinToken, TokenError};
use coffer_join::{Asking, JoinError, Newcomer};
use coffer_model::descriptor::{Descriptor, DescriptorError, SignedDescriptor};
use coffer_model::encoding::{Malformed, decode};
use coffer_model::id::{ClusterId, NodeId};
use coffer_model::signing::{PublicKey, Signer};
use coffer_proto::MESSAGE_BYTES_MAX;
use coffer_proto::internal::sibling_service_server::SiblingServiceServer;
use coffer_proto::v1::chunk_service_server::ChunkServiceServer;
use coffer_service::health::{Health, alive_while};
use coffer_service::identity::{IdentityError, ProcessIdentity};
use coffer_service::server::{GrpcServer, ServerLimits};
use coffer_service::shutdown::Shutdown;
use coffer_service::tls::{ClientAuth, LiveTls, TlsError};
use coffer_service::watch::{Watch, WatchError};
use tokio::net::TcpListener;
use tonic::service::Routes;
use tower::Layer;

use crate::clock::LogClock;
use crate::cluster::{self, Cluster};
use crate::compact::Compactor;
use crate::compare::{Comparer, Schedule};
use crate::complete::{Completer, Gauges, as_ms};
use crate::config::Config;
use crate::disk::Folder;
use crate::index::Index;
use crate::members::Members;
use crate::scrub::{Meters, Pace, Scrubber};
use crate::serve::{Served, Service};
use crate::store::{Owner, Sizes, Store};
use crate::{compact, compare, complete};

/// The role in a storage node's certificate and on its volume.
pub const ROLE: &str = "storage";

const TLS_RELOAD_EVERY: Duration = Duration::from_secs(10);
/// How long what is under way at shutdown may take.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a storage node could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The descriptor file cannot be read.
    #[error("cannot read the cluster descriptor {}", path.display())]
    ReadDescriptor {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The descriptor file is not a descriptor.
    #[error("the descriptor file is damaged")]
    Malformed(#[source] Malformed),
    /// The descriptor does not check out.
    #[error("the descriptor is not valid")]
    Descriptor(#[source] DescriptorError),
    /// The volume cannot be used.
    #[error("cannot use the volume")]
    Identity(#[source] IdentityError),
    /// The descriptor in force names other storage nodes.
    #[error(
        "the cluster's descriptor does not name this node ({0}); an administrator has to add it, or has taken it out, or this is the wrong volume"
    )]
    NotNamed(NodeId),
    /// The descriptors on the volume cannot be used.
    #[error("cannot use the descriptors on the volume: {0}")]
    Descriptors(String),
    /// The certificates cannot be used.
    #[error("cannot set up TLS")]
    Tls(#[source] TlsError),
    /// The chunk store cannot be opened.
    #[error("cannot open the chunk store: {0}")]
    Store(String),
    /// The address to listen on is taken or not ours.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address.
        address: std::net::SocketAddr,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The join token cannot be used.
    #[error(transparent)]
    JoinToken(#[from] TokenError),
    /// Calls cannot be watched.
    #[error(transparent)]
    Watch(#[from] WatchError),
    /// The server failed.
    #[error("the server failed")]
    Serve(#[source] tonic::transport::Error),
}

/// The id and key of the node whose volume is `data_dir`; made if it has none yet.
pub fn init(data_dir: &Path) -> Result<(NodeId, PublicKey), Error> {
    let identity =
        ProcessIdentity::load_or_create(data_dir, ROLE, None).map_err(Error::Identity)?;
    Ok((NodeId::from_bytes(*identity.id()), identity.public_key()))
}

/// Runs a storage node until `shutdown`.
pub async fn run(config: Config, shutdown: Shutdown) -> Result<(), Error> {
    if !join_if_new(&config, &shutdown).await? {
        return Ok(());
    }
    let node = Node::open(config)?;
    let address = node.config.listen;
    match TcpListener::bind(address).await {
        Ok(listener) => node.serve(listener, &shutdown).await,
        Err(source) => {
            node.close();
            Err(Error::Listen { address, source })
        }
    }
}

/// A node whose volume, certificates and store are open and fit together.
struct Node {
    config: Config,
    cluster: Arc<Cluster>,
    id: NodeId,
    identity: Arc<ProcessIdentity>,
    tls: Arc<LiveTls>,
    watch: Watch,
    gauges: Gauges,
    scrubber: Scrubber<Folder>,
    compaction: compact::Meters,
    store: Store<Folder>,
    writer: JoinHandle<()>,
}

/// The cluster, and its first descriptor.
fn first_descriptor(config: &Config) -> Result<(ClusterId, Descriptor), Error> {
    let bytes = std::fs::read(&config.descriptor)
        .map_err(|source| Error::ReadDescriptor { path: config.descriptor.clone(), source })?;
    let signed: SignedDescriptor =
        decode("cluster descriptor", &bytes).map_err(Error::Malformed)?;
    signed.verify_first(None).map_err(Error::Descriptor)
}

/// Asks for the place of a lost node, where the configuration says so and no descriptor that is known here
/// names this one. Says whether to go on: not if it was told to stop before it got in.
async fn join_if_new(config: &Config, shutdown: &Shutdown) -> Result<bool, Error> {
    let Some(token) = &config.join_token_file else { return Ok(true) };
    let token = JoinToken::read(token).map_err(Error::JoinToken)?;
    let (cluster, first) = first_descriptor(config)?;
    // Held until it is in, so that no other process takes the volume.
    let identity = ProcessIdentity::load_or_create(&config.data_dir, ROLE, Some(&cluster))
        .map_err(Error::Identity)?;
    let id = NodeId::from_bytes(*identity.id());
    let folder = config.data_dir.join(cluster::FOLDER);
    let known = Cluster::open(cluster, first.clone(), folder);
    let known = known.map_err(|error| Error::Descriptors(error.to_string()))?;
    if known.view().descriptor.node_key(id) == Some(identity.public_key()) {
        return Ok(true);
    }
    let tls = LiveTls::load(config.tls.clone(), ClientAuth::Optional).map_err(Error::Tls)?;
    let asking = Asking {
        cluster,
        tls: &tls,
        newcomer: Newcomer::Node {
            id,
            replaces: config.replaces.clone(),
            zone: config.zone.clone(),
            address: config.advertise.clone(),
        },
        key: identity.public_key(),
        token: &token,
    };
    let joining = coffer_join::join(asking, first, shutdown);
    let joined = alive_while(config.health_listen, joining).await.map_err(|source| {
        Error::Listen { address: config.health_listen.unwrap_or(config.listen), source }
    })?;
    match joined {
        Ok(successors) => cluster::install_descriptors(&config.data_dir, &successors)
            .map(|()| true)
            .map_err(|error| Error::Descriptors(error.to_string())),
        Err(JoinError::Dismissed) => Err(Error::NotNamed(id)),
        Err(JoinError::Stopped) => Ok(false),
    }
}

impl Node {
    fn open(config: Config) -> Result<Self, Error> {
        let (cluster, first) = first_descriptor(&config)?;
        let identity = ProcessIdentity::load_or_create(&config.data_dir, ROLE, Some(&cluster))
            .map_err(Error::Identity)?;
        let identity = Arc::new(identity);
        let id = NodeId::from_bytes(*identity.id());
        let cluster = Cluster::open(cluster, first, config.data_dir.join(cluster::FOLDER));
        let cluster = Arc::new(cluster.map_err(|error| Error::Descriptors(error.to_string()))?);
        if cluster.view().descriptor.node_key(id) != Some(identity.public_key()) {
            return Err(Error::NotNamed(id));
        }
        let tls = LiveTls::load(config.tls.clone(), ClientAuth::Optional).map_err(Error::Tls)?;
        let watch = Watch::start(
            ROLE,
            coffer_proto::methods(),
            coffer_proto::REFUSALS,
            config.audit_log.as_deref(),
        )?;
        let gauges = Gauges::new(&watch.metrics()).map_err(WatchError::from)?;
        let meters = Meters::new(&watch.metrics()).map_err(WatchError::from)?;
        let compaction = compact::Meters::new(&watch.metrics()).map_err(WatchError::from)?;

        let disk = Folder::open(&config.data_dir.join("segments"))
            .map_err(|error| Error::Store(error.to_string()))?;
        let index = Index::open(&config.data_dir.join("index"))
            .map_err(|error| Error::Store(error.to_string()))?;
        let signer: Arc<dyn Signer + Send + Sync> = Arc::clone(&identity) as _;
        let sizes = Sizes {
            segment_bytes: config.segment_bytes,
            hold_ms: as_ms(config.hold),
            capacity_bytes: config.capacity_bytes,
        };
        let owner = Owner { cluster: *cluster.id(), node: id, signer };
        let (store, writer) = Store::open(disk, index, owner, sizes)
            .map_err(|error| Error::Store(error.to_string()))?;
        let scrubber = Scrubber::new(store.clone(), Pace::of(&config), meters)
            .map_err(|error| Error::Store(error.to_string()))?;
        Ok(Self {
            config,
            cluster,
            id,
            identity,
            tls,
            watch,
            gauges,
            scrubber,
            compaction,
            store,
            writer,
        })
    }

    /// Closes a node that was not served: a process must not end while its store is being closed.
    fn close(self) {
        drop(self.scrubber);
        drop(self.store);
        let _ = self.writer.join();
    }

    async fn serve(self, listener: TcpListener, shutdown: &Shutdown) -> Result<(), Error> {
        let Self {
            config,
            cluster,
            id,
            identity,
            tls,
            watch,
            gauges,
            scrubber,
            compaction,
            store,
            writer,
        } = self;
        // A part of its own, so that it can be ended where the server fails by itself.
        let part = shutdown.child();
        let clock = Arc::new(LogClock::new(as_ms(config.hold)));
        let health = Health::new().await.with_metrics(watch.metrics());
        let (listen, health_listen, totals) = (config.listen, config.health_listen, store.totals());
        let schedule =
            Schedule { compare_every: config.compare_every, look_every: config.poll_every };
        let comparer = Comparer::new(
            compare::Parts {
                cluster: Arc::clone(&cluster),
                node: id,
                identity: Arc::clone(&identity),
                store: store.clone(),
                clock: Arc::clone(&clock),
            },
            schedule,
            Members::new(Arc::clone(&cluster), &tls),
        );
        let report_every = config.report_every;
        let pace = compact::Pace::of(&config);
        let compactor = Compactor::new(store.clone(), Arc::clone(&clock), pace, compaction);
        let completer = Completer::new(
            complete::Parts {
                cluster: Arc::clone(&cluster),
                node: id,
                identity,
                store: store.clone(),
                gauges,
                clock: Arc::clone(&clock),
                config,
            },
            &tls,
        );
        if let Some(address) = health_listen {
            let served = health.spawn_plain(address, &part).await;
            served.map_err(|source| Error::Listen { address, source })?;
        }
        let greeter = Members::new(Arc::clone(&cluster), &tls);
        part.spawn("greet the members", greet(greeter, report_every, part.clone()));
        part.spawn("complete the store", completer.run(health.clone(), part.clone()));
        part.spawn("compare the store", comparer.run(part.clone()));
        part.spawn("compact the store", compactor.run(part.clone()));
        part.spawn("scrub the store", scrubber.run(Arc::clone(&clock), part.clone()));
        part.spawn("reload certificates", Arc::clone(&tls).watch(TLS_RELOAD_EVERY, part.token()));

        let served = Served::new(store, clock, Arc::clone(&cluster), id);
        let service = Service(Arc::new(served));
        let routes = Routes::new(health.service())
            .add_service(
                ChunkServiceServer::new(service.clone())
                    .max_decoding_message_size(MESSAGE_BYTES_MAX)
                    .max_encoding_message_size(MESSAGE_BYTES_MAX),
            )
            .add_service(
                SiblingServiceServer::new(service)
                    .max_decoding_message_size(MESSAGE_BYTES_MAX)
                    .max_encoding_message_size(MESSAGE_BYTES_MAX),
            );
        tracing::info!(node = %id, address = %listen, chunks = totals.shards, "storage node serving");
        let limits = ServerLimits { drain_timeout: DRAIN_TIMEOUT, ..ServerLimits::standard() };
        let served =
            GrpcServer::new(tls, limits).serve(listener, watch.layer(routes), part.token()).await;
        part.cancel();
        if let Err(error) = part.drain(DRAIN_TIMEOUT).await {
            tracing::warn!(%error, "some work did not end in time");
        }
        // The server and the loops have let go of the store, so the writer finishes and syncs.
        let _ = tokio::task::spawn_blocking(move || writer.join()).await;
        served.map_err(Error::Serve)?;
        if cluster.view().names(id) { Ok(()) } else { Err(Error::NotNamed(id)) }
    }
}

/// Says to every member that this node is there, again and again. A report reaches one of them, and the
/// leader; whether the node is silent is for each to know by itself.
async fn greet(members: Members, every: Duration, part: Shutdown) {
    loop {
        tokio::select! {
            () = part.cancelled() => return,
            () = members.greet() => {}
        }
        tokio::select! {
            () = part.cancelled() => return,
            () = tokio::time::sleep(every) => {}
        }
    }
}

#[cfg(test)]
mod tests;
