//! `grpc.health.v1`: whether the process is alive, and whether it wants work.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::transport::Server;
use tonic::transport::server::Connected;
use tonic_health::ServingStatus;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus as Told;
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::health_server::HealthServer;
use tonic_health::server::{HealthReporter, HealthService};

use crate::channel::Channel;
use crate::metrics::Metrics;
use crate::shutdown::Shutdown;

/// The health service's name of "this process wants work"; it is the one asked for when none is named.
pub const READY: &str = "";
/// The health service's name of "this process is alive": serving for as long as it can answer at all.
pub const ALIVE: &str = "alive";

/// Callers of the plain-text health port at a time: probes, not clients.
const PLAIN_STREAMS_MAX: u32 = 16;
/// Connections of the plain-text health port at a time; further ones are closed at once.
pub const PLAIN_CONNECTIONS_MAX: usize = 64;
/// How old one of them may become, whatever it does: a probe is done in no time, and a scraper that
/// keeps its connection makes another.
pub const PLAIN_CONNECTION_AGE_MAX: Duration = Duration::from_secs(30);

/// Whether the process at the other end says that it wants work.
pub async fn is_ready(channel: Channel) -> Result<bool, tonic::Status> {
    let request = HealthCheckRequest { service: READY.to_owned() };
    let answer = HealthClient::new(channel).check(request).await?;
    Ok(answer.into_inner().status() == Told::Serving)
}

/// Does `work` while the plain-text health port, if there is one, says that this process is alive and not
/// ready. The port is free again afterwards.
pub async fn alive_while<T>(
    address: Option<SocketAddr>,
    work: impl Future<Output = T>,
) -> io::Result<T> {
    let Some(address) = address else { return Ok(work.await) };
    let listener = TcpListener::bind(address).await?;
    let stop = CancellationToken::new();
    let serving = tokio::spawn({
        let (health, stop) = (Health::new().await, stop.clone());
        async move { health.serve_plain(listener, stop).await }
    });
    let done = work.await;
    stop.cancel();
    if let Ok(Err(error)) = serving.await {
        tracing::warn!(%error, "health was not served while this process waited");
    }
    Ok(done)
}

fn scrape(metrics: &Metrics) -> Response {
    match metrics.text() {
        Ok(text) => ([(CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

/// The health of a process. Clones speak of the same process.
#[derive(Clone, Debug)]
pub struct Health {
    reporter: HealthReporter,
    metrics: Option<Arc<Metrics>>,
}

impl Health {
    /// A process that is alive and not yet ready.
    pub async fn new() -> Self {
        let reporter = HealthReporter::new();
        // tonic starts out with "serving".
        reporter.set_service_status(READY, ServingStatus::NotServing).await;
        reporter.set_service_status(ALIVE, ServingStatus::Serving).await;
        Self { reporter, metrics: None }
    }

    /// The same, with metrics beside it on the plain-text port.
    pub fn with_metrics(self, metrics: Arc<Metrics>) -> Self {
        Self { metrics: Some(metrics), ..self }
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

    /// Serves health and metrics on `address` without TLS, in a task of its own, until shutdown.
    pub async fn spawn_plain(&self, address: SocketAddr, shutdown: &Shutdown) -> io::Result<()> {
        let listener = TcpListener::bind(address).await?;
        let (health, stop) = (self.clone(), shutdown.token());
        shutdown.spawn("serve health and metrics", async move {
            if let Err(error) = health.serve_plain(listener, stop).await {
                tracing::warn!(%error, "health and metrics are not served any more");
            }
        });
        Ok(())
    }

    /// Serves health, and where there are metrics also `GET /metrics`, without TLS, for probes and scrapers that
    /// have no certificate; nothing else is served so. Ends when `shutdown` is cancelled; open watches
    /// are dropped then.
    pub async fn serve_plain(
        &self,
        listener: TcpListener,
        shutdown: CancellationToken,
    ) -> Result<(), tonic::transport::Error> {
        self.serve_plain_with(listener, shutdown, PLAIN_CONNECTION_AGE_MAX).await
    }

    /// As [`Self::serve_plain`], with another age.
    pub async fn serve_plain_with(
        &self,
        listener: TcpListener,
        shutdown: CancellationToken,
        connection_age_max: Duration,
    ) -> Result<(), tonic::transport::Error> {
        let seats = Arc::new(Semaphore::new(PLAIN_CONNECTIONS_MAX));
        let incoming =
            TcpListenerStream::new(listener).filter_map(move |accepted| match accepted {
                // Dropping it tells the caller at once.
                Ok(stream) => {
                    let seat = Arc::clone(&seats).try_acquire_owned().ok()?;
                    Some(Ok(PlainStream { stream, _seat: seat }))
                }
                Err(error) => Some(Err(error)),
            });
        let mut router = Routes::new(self.service()).into_axum_router();
        if let Some(metrics) = self.metrics.clone() {
            router = router.route("/metrics", get(async move || scrape(&metrics)));
        }
        let serving = Server::builder()
            .accept_http1(true)
            .max_concurrent_streams(PLAIN_STREAMS_MAX)
            .max_connection_age(connection_age_max)
            // Without a grace it would only be asked to end, which it may decline for ever.
            .max_connection_age_grace(Duration::ZERO)
            .serve_with_incoming(Routes::from(router), incoming);
        tokio::select! {
            result = serving => result,
            () = shutdown.cancelled() => Ok(()),
        }
    }
}

/// A connection without TLS. It counts until it is dropped.
struct PlainStream {
    stream: TcpStream,
    _seat: OwnedSemaphorePermit,
}

impl Connected for PlainStream {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for PlainStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for PlainStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
