//! Starting, serving and stopping.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use coffer_model::descriptor::{DescriptorError, SignedDescriptor};
use coffer_model::encoding::{Malformed, decode};
use coffer_proto::MESSAGE_BYTES_MAX;
use coffer_proto::v1::admin_service_server::AdminServiceServer;
use coffer_proto::v1::chunk_service_server::ChunkServiceServer;
use coffer_proto::v1::cluster_service_server::ClusterServiceServer;
use coffer_proto::v1::directory_service_server::DirectoryServiceServer;
use coffer_proto::v1::files_service_server::FilesServiceServer;
use coffer_proto::v1::login_service_server::LoginServiceServer;
use coffer_service::channel::ChannelError;
use coffer_service::health::Health;
use coffer_service::server::{GrpcServer, ServerLimits};
use coffer_service::shutdown::Shutdown;
use coffer_service::tls::{ClientAuth, LiveTls, TlsError};
use coffer_service::watch::{Watch, WatchError};
use tokio::net::TcpListener;
use tonic::server::NamedService;
use tonic::service::Routes;
use tower::Layer;

use crate::chunks::Chunks;
use crate::cluster::Cluster;
use crate::config::Config;
use crate::door::Door;
use crate::files::Files;
use crate::members::Members;

/// The role of a gateway, in its logs, its audit log and its traces.
pub const ROLE: &str = "gateway";

const TLS_RELOAD_EVERY: Duration = Duration::from_secs(10);
/// How long what is under way at shutdown may take.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a gateway could not start or go on.
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
    /// The certificates cannot be used.
    #[error("cannot set up TLS")]
    Tls(#[source] TlsError),
    /// A member's address is not one.
    #[error("the descriptor names an unusable address")]
    Address(#[from] ChannelError),
    /// The address to listen on is taken or not ours.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address.
        address: std::net::SocketAddr,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// Calls cannot be watched.
    #[error(transparent)]
    Watch(#[from] WatchError),
    /// Our own description of the API cannot be served.
    #[error("the API's description is damaged")]
    Reflection(#[source] tonic_reflection::server::Error),
    /// The server failed.
    #[error("the server failed")]
    Serve(#[source] tonic::transport::Error),
}

/// What tools like grpcurl ask for: a description of what is served here, and of the details of a
/// refusal. A builder makes one service.
fn reflection() -> tonic_reflection::server::Builder<'static> {
    let served = [
        AdminServiceServer::<Members>::NAME,
        ChunkServiceServer::<Chunks>::NAME,
        ClusterServiceServer::<Members>::NAME,
        DirectoryServiceServer::<Members>::NAME,
        FilesServiceServer::<Files>::NAME,
        LoginServiceServer::<Members>::NAME,
    ];
    let builder = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(coffer_proto::DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET);
    served.into_iter().fold(builder, |builder, name| builder.with_service_name(name))
}

/// Runs a gateway until `shutdown`.
pub async fn run(config: Config, shutdown: Shutdown) -> Result<(), Error> {
    let bytes = std::fs::read(&config.descriptor)
        .map_err(|source| Error::ReadDescriptor { path: config.descriptor.clone(), source })?;
    let signed: SignedDescriptor =
        decode("cluster descriptor", &bytes).map_err(Error::Malformed)?;
    let (cluster_id, descriptor) = signed.verify_first(None).map_err(Error::Descriptor)?;
    let tls = LiveTls::load(config.tls.clone(), ClientAuth::None).map_err(Error::Tls)?;
    let listener = TcpListener::bind(config.listen)
        .await
        .map_err(|source| Error::Listen { address: config.listen, source })?;

    let door = Arc::new(Door::new(cluster_id));
    let members = Arc::new(Members::new(&descriptor.members, &tls, Arc::clone(&door))?);
    let cluster = Arc::new(Cluster::new(cluster_id, descriptor, Arc::clone(&members), &tls));
    let watch = Watch::start(
        ROLE,
        coffer_proto::methods(),
        coffer_proto::REFUSALS,
        config.audit_log.as_deref(),
    )?;
    let health = Health::new().await.with_metrics(watch.metrics());
    if let Some(address) = config.health_listen {
        let served = health.spawn_plain(address, &shutdown).await;
        served.map_err(|source| Error::Listen { address, source })?;
    }
    shutdown
        .spawn("follow the cluster", Arc::clone(&cluster).follow(health.clone(), shutdown.clone()));
    shutdown
        .spawn("reload certificates", Arc::clone(&tls).watch(TLS_RELOAD_EVERY, shutdown.token()));

    let chunks = Arc::new(Chunks::new(cluster, door, config.in_flight_bytes, shutdown.clone()));
    let files = Arc::new(Files::new(cluster_id, signed, Arc::clone(&members), Arc::clone(&chunks)));
    shutdown.spawn("wipe idle sessions", Arc::clone(&files).sweep(shutdown.clone()));
    let directory = DirectoryServiceServer::from_arc(Arc::clone(&members))
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let files = FilesServiceServer::from_arc(files)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let chunks = ChunkServiceServer::from_arc(chunks)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let routes = Routes::new(health.service())
        .add_service(directory)
        .add_service(chunks)
        .add_service(files)
        .add_service(reflection().build_v1().map_err(Error::Reflection)?)
        .add_service(reflection().build_v1alpha().map_err(Error::Reflection)?)
        .add_service(LoginServiceServer::from_arc(Arc::clone(&members)))
        .add_service(AdminServiceServer::from_arc(Arc::clone(&members)))
        .add_service(ClusterServiceServer::from_arc(members));
    tracing::info!(address = %config.listen, cluster = %cluster_id, "gateway serving");
    let limits = ServerLimits { drain_timeout: DRAIN_TIMEOUT, ..ServerLimits::standard() };
    GrpcServer::new(tls, limits)
        .serve(listener, watch.layer(routes), shutdown.token())
        .await
        .map_err(Error::Serve)?;
    if let Err(error) = shutdown.drain(DRAIN_TIMEOUT).await {
        tracing::warn!(%error, "some work did not end in time");
    }
    Ok(())
}
