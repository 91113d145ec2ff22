//! `grpc.health.v1`: whether the process is alive, and whether it wants work.

use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::transport::{Channel, Server};
use tonic_health::ServingStatus;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus as Told;
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::health_server::HealthServer;
use tonic_health::server::{HealthReporter, HealthService};

/// The health service's name of "this process wants work"; it is the one asked for when none is named.
pub const READY: &str = "";
/// The health service's name of "this process is alive": serving for as long as it can answer at all.
pub const ALIVE: &str = "alive";

/// Callers of the plain-text health port at a time: probes, not clients.
const PLAIN_STREAMS_MAX: u32 = 16;

/// Whether the process at the other end says that it wants work.
pub async fn is_ready(channel: Channel) -> Result<bool, tonic::Status> {
    let request = HealthCheckRequest { service: READY.to_owned() };
    let answer = HealthClient::new(channel).check(request).await?;
    Ok(answer.into_inner().status() == Told::Serving)
}

/// The health of a process. Clones speak of the same process.
#[derive(Clone, Debug)]
pub struct Health {
    reporter: HealthReporter,
}

impl Health {
    /// A process that is alive and not yet ready.
    pub async fn new() -> Self {
        let reporter = HealthReporter::new();
        // tonic starts out with "serving".
        reporter.set_service_status(READY, ServingStatus::NotServing).await;
        reporter.set_service_status(ALIVE, ServingStatus::Serving).await;
        Self { reporter }
    }

    /// The process wants work.
    pub async fn set_serving(&self) {
        self.reporter.set_service_status(READY, ServingStatus::Serving).await;
    }

    /// The process wants no work: it is starting, stopping, or cannot do it.
    pub async fn set_not_serving(&self) {
        self.reporter.set_service_status(READY, ServingStatus::NotServing).await;
    }

    /// Says the same of one named part, such as one gRPC service.
    pub async fn set_part(&self, name: &str, serving: bool) {
        let status = if serving { ServingStatus::Serving } else { ServingStatus::NotServing };
        self.reporter.set_service_status(name, status).await;
    }

    /// The gRPC service to add to the routes of a server.
    pub fn service(&self) -> HealthServer<HealthService> {
        HealthServer::new(HealthService::from_health_reporter(self.reporter.clone()))
    }

    /// Serves health, and nothing else, without TLS, for probes that have no certificate. Ends when
    /// `shutdown` is cancelled; open watches are dropped then.
    pub async fn serve_plain(
        &self,
        listener: TcpListener,
        shutdown: CancellationToken,
    ) -> Result<(), tonic::transport::Error> {
        let serving = Server::builder()
            .max_concurrent_streams(PLAIN_STREAMS_MAX)
            .serve_with_incoming(Routes::new(self.service()), TcpListenerStream::new(listener));
        tokio::select! {
            result = serving => result,
            () = shutdown.cancelled() => Ok(()),
        }
    }
}
