//! Real connections over loopback: TLS, who is let in, reloading, bounds, and stopping.
#![allow(clippy::unwrap_used)]

mod calls;
mod crowds;
mod floods;
mod one_box;
mod raw;
mod reload;
mod round_trip;
mod slow;
mod stopping;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use coffer_service::channel::{Channel, ChannelOptions, ClientTls, connect_lazy};
use coffer_service::health::Health;
use coffer_service::one_box::OneBoxCa;
use coffer_service::peer::PeerId;
use coffer_service::server::{ConnectionInfo, GrpcServer, ServerLimits, ServerStats};
use coffer_service::tls::{ClientAuth, LiveTls, TlsFiles};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::transport::server::{TcpConnectInfo, TlsConnectInfo};
use tonic::{Code, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tower::ServiceBuilder;

/// Long enough for anything that is not stuck.
const LONG: Duration = Duration::from_secs(30);

/// An authority with the directory its certificates go to.
struct Authority {
    ca: OneBoxCa,
    dir: TempDir,
}

impl Authority {
    fn new() -> Self {
        Self { ca: OneBoxCa::ephemeral().unwrap(), dir: tempfile::tempdir().unwrap() }
    }

    fn files(&self, peer: &PeerId) -> TlsFiles {
        self.files_in(&self.dir.path().join(peer.role()), peer)
    }

    fn files_in(&self, dir: &Path, peer: &PeerId) -> TlsFiles {
        self.ca.issue_into(dir, &[], peer).unwrap()
    }

    fn tls(&self, peer: &PeerId, auth: ClientAuth) -> Arc<LiveTls> {
        LiveTls::load(self.files(peer), auth).unwrap()
    }
}

fn peer(role: &str) -> PeerId {
    PeerId::new(role, [7; 16]).unwrap()
}

/// Whom the server saw, for each request: by our own accessor, and by how many certificates by tonic's.
type Seen = mpsc::UnboundedReceiver<(Option<PeerId>, usize)>;

/// A server of the health service, and nothing else.
struct Running {
    addr: SocketAddr,
    health: Health,
    stats: Arc<ServerStats>,
    stop: CancellationToken,
    task: JoinHandle<Result<(), tonic::transport::Error>>,
    seen: Seen,
}

impl Running {
    async fn start(tls: Arc<LiveTls>, limits: ServerLimits) -> Self {
        Self::start_with(tls, limits, |routes| routes).await
    }

    async fn start_with(
        tls: Arc<LiveTls>,
        limits: ServerLimits,
        add: impl FnOnce(axum::Router) -> axum::Router,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let health = Health::new().await;
        health.set_serving().await;
        let (sender, seen) = mpsc::unbounded_channel();
        let service = ServiceBuilder::new()
            .map_request(move |request: http::Request<tonic::body::Body>| {
                let ours = request.extensions().get::<ConnectionInfo>().unwrap().peer().cloned();
                let tonics = request.extensions().get::<TlsConnectInfo<TcpConnectInfo>>().unwrap();
                assert!(tonics.get_ref().remote_addr().unwrap().ip().is_loopback());
                let _ = sender.send((ours, tonics.peer_certs().map_or(0, |certs| certs.len())));
                request
            })
            .service(Routes::from(add(Routes::new(health.service()).into_axum_router())));
        let server = GrpcServer::new(tls, limits);
        let stats = server.stats();
        let stop = CancellationToken::new();
        let task = tokio::spawn(server.serve(listener, service, stop.clone()));
        Self { addr, health, stats, stop, task, seen }
    }

    fn channel(&self, tls: impl Into<ClientTls>) -> Channel {
        self.channel_with(tls, &ChannelOptions::standard())
    }

    fn channel_with(&self, tls: impl Into<ClientTls>, options: &ChannelOptions) -> Channel {
        connect_lazy(&self.addr.to_string(), "localhost", tls, options).unwrap()
    }

    fn handshakes_failed(&self) -> u64 {
        self.stats.handshakes_failed.load(Ordering::Relaxed)
    }
}

async fn check(channel: Channel) -> Result<i32, Status> {
    let request = HealthCheckRequest { service: String::new() };
    let answer =
        tokio::time::timeout(LONG, HealthClient::new(channel).check(request)).await.unwrap()?;
    Ok(answer.into_inner().status)
}

const SERVING: i32 = 1;
const NOT_SERVING: i32 = 2;

/// The refusal itself. Its code is not looked at: tonic's differs from run to run where the server
/// closes after the client's handshake is done.
async fn check_refused(channel: Channel) -> Status {
    let status = check(channel).await.unwrap_err();
    assert_ne!(status.code(), Code::Ok);
    status
}
