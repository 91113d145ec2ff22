//! The gRPC server of a process: it accepts, shakes hands, and hands ready connections to tonic.
//!
//! tonic's own TLS cannot change its certificates, so the handshake is ours. There is no plain-text
//! mode; only health and metrics have one ([`crate::health::Health::serve_plain`]).

use std::fmt;
use std::future::{Future, pending};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Request, Response};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::body::Body;
use tonic::transport::Server;
use tonic::transport::server::{Connected, TcpConnectInfo, TlsConnectInfo};
use tower::{Service, ServiceBuilder};

use crate::peer::{PeerId, peer_uri_id};
use crate::tls::LiveTls;

/// The largest HTTP/2 frame, on either side: one frame for a large message costs least.
pub const FRAME_BYTES_MAX: u32 = 1 << 20;
/// What may be under way to us on one stream, on either side.
pub const STREAM_WINDOW_BYTES: u32 = 4 << 20;
/// What may be under way to us on one connection, on either side.
pub const CONNECTION_WINDOW_BYTES: u32 = 8 << 20;

/// Headers of a request in all. Ours are small; the largest is a proof of a session.
const HEADER_BYTES_MAX: u32 = 32 << 10;
/// A connection that says nothing is asked whether it is there.
const KEEPALIVE_EVERY: Duration = Duration::from_secs(20);
/// How long the answer may take.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// After the system refuses to accept (no descriptors left), we wait instead of spinning.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The bounds of a server. [`ServerLimits::standard`] is where to begin.
#[derive(Clone, Copy, Debug)]
pub struct ServerLimits {
    /// Connections at a time; further ones are closed at once.
    pub connections_max: usize,
    /// Handshakes at a time; further ones wait, within their own timeout. A handshake costs about a
    /// millisecond of a core.
    pub handshakes_max: usize,
    /// How long a connection may take to become ready.
    pub handshake_timeout: Duration,
    /// Requests at a time on one connection; the client waits with further ones.
    pub requests_per_connection_max: u32,
    /// How long a request may take until its answer begins. tonic answers `Cancelled` then.
    pub request_timeout: Option<Duration>,
    /// How old a connection may become, so that changed certificates take effect.
    pub connection_age_max: Option<Duration>,
    /// How long requests that are under way at shutdown may take to end.
    pub drain_timeout: Duration,
}

impl ServerLimits {
    /// Bounds for a server of a few hundred clients.
    pub const fn standard() -> Self {
        Self {
            connections_max: 4096,
            handshakes_max: 64,
            handshake_timeout: Duration::from_secs(10),
            requests_per_connection_max: 1024,
            request_timeout: None,
            connection_age_max: None,
            drain_timeout: Duration::from_secs(20),
        }
    }
}

/// What a server has seen since it was made, for metrics.
#[derive(Debug, Default)]
pub struct ServerStats {
    /// Connections that became ready.
    pub connections_ready: AtomicU64,
    /// Connections closed because there were too many.
    pub connections_refused: AtomicU64,
    /// Connections that were not ready in time, or whose certificate was refused.
    pub handshakes_failed: AtomicU64,
}

/// What is known of the connection a request came on; it is among the request's extensions.
#[derive(Clone)]
pub struct ConnectionInfo {
    tls: TlsConnectInfo<TcpConnectInfo>,
    peer: Option<PeerId>,
}

impl ConnectionInfo {
    /// Where the connection comes from.
    pub fn remote_addr(&self) -> Option<SocketAddr> {
        self.tls.get_ref().remote_addr()
    }

    /// Who the peer's certificate says it is.
    pub const fn peer(&self) -> Option<&PeerId> {
        self.peer.as_ref()
    }
}

impl fmt::Debug for ConnectionInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectionInfo")
            .field("remote", &self.tls.get_ref().remote_addr())
            .field("peer", &self.peer)
            .finish_non_exhaustive()
    }
}

/// Who the certificate of the process that sent `request` says it is. It is read once a connection.
pub fn peer_of<T>(request: &tonic::Request<T>) -> Option<&PeerId> {
    request.extensions().get::<ConnectionInfo>()?.peer()
}

/// A gRPC server over TLS.
#[derive(Debug)]
pub struct GrpcServer {
    tls: Arc<LiveTls>,
    limits: ServerLimits,
    stats: Arc<ServerStats>,
}

impl GrpcServer {
    /// A server with the given certificates and bounds.
    pub fn new(tls: Arc<LiveTls>, limits: ServerLimits) -> Self {
        Self { tls, limits, stats: Arc::default() }
    }

    /// What the server has seen.
    pub fn stats(&self) -> Arc<ServerStats> {
        Arc::clone(&self.stats)
    }

    /// Serves `service` (tonic `Routes`, bare or in layers) on `listener` until `shutdown`. Then it
    /// stops listening, lets what is under way end within the drain timeout, and closes the rest.
    ///
    /// A request carries [`ConnectionInfo`], and `peer_certs()` and `remote_addr()` work on it.
    /// Dropping the future closes all connections.
    pub async fn serve<S>(
        self,
        listener: TcpListener,
        service: S,
        shutdown: CancellationToken,
    ) -> Result<(), tonic::transport::Error>
    where
        S: Service<Request<Body>, Response = Response<Body>> + Clone + Send + 'static,
        S::Future: Send,
        S::Error: Into<Box<dyn std::error::Error + Send + Sync>> + Send,
    {
        let limits = self.limits;
        let closing = CancellationToken::new();
        let _close_on_drop = closing.clone().drop_guard();
        // One place: a connection that is ready waits here until tonic takes it, which is at once.
        let (ready, incoming) = mpsc::channel(1);
        let service = ServiceBuilder::new().map_request(with_connect_info).service(service);
        let serving = tonic_server(&limits).serve_with_incoming_shutdown(
            service,
            ReceiverStream::new(incoming),
            shutdown.clone().cancelled_owned(),
        );
        let door = Door {
            tls: self.tls,
            limits,
            stats: self.stats,
            connections: Arc::new(Semaphore::new(limits.connections_max)),
            handshakes: Arc::new(Semaphore::new(limits.handshakes_max)),
            closing: closing.clone(),
            ready,
        };
        let both = async {
            let ((), served) = tokio::join!(door.accept_until(listener, &shutdown), serving);
            served
        };
        let close_late = async {
            shutdown.cancelled().await;
            sleep(limits.drain_timeout).await;
            tracing::info!("requests still under way are cut off");
            closing.cancel();
            pending().await
        };
        tokio::select! {
            served = both => served,
            () = close_late => unreachable!("it pends for ever"),
        }
    }
}

fn tonic_server(limits: &ServerLimits) -> Server {
    let server = Server::builder()
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES_MAX)
        .http2_max_header_list_size(HEADER_BYTES_MAX)
        .http2_keepalive_interval(Some(KEEPALIVE_EVERY))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .max_concurrent_streams(limits.requests_per_connection_max)
        .concurrency_limit_per_connection(
            usize::try_from(limits.requests_per_connection_max).unwrap_or(usize::MAX),
        )
        .trace_fn(|request| tracing::info_span!("rpc", path = request.uri().path()));
    let server = match limits.request_timeout {
        Some(limit) => server.timeout(limit),
        None => server,
    };
    match limits.connection_age_max {
        // Without a grace tonic closes gracefully at that age; with one it only cuts off, later.
        Some(age) => server.max_connection_age(age),
        None => server,
    }
}

/// Puts what tonic's own accessors look for beside our own.
fn with_connect_info(mut request: Request<Body>) -> Request<Body> {
    if let Some(info) = request.extensions().get::<ConnectionInfo>() {
        let tls = info.tls.clone();
        request.extensions_mut().insert(tls);
    }
    request
}

/// Where connections come in.
struct Door {
    tls: Arc<LiveTls>,
    limits: ServerLimits,
    stats: Arc<ServerStats>,
    connections: Arc<Semaphore>,
    handshakes: Arc<Semaphore>,
    closing: CancellationToken,
    ready: mpsc::Sender<Result<ServedStream, io::Error>>,
}

impl Door {
    /// Ends with the listener closed and the unfinished handshakes dropped.
    async fn accept_until(self, listener: TcpListener, shutdown: &CancellationToken) {
        // Never more tasks than connections: each holds a permit.
        let mut handshakes = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                () = shutdown.cancelled() => return,
                accepted = listener.accept() => accepted,
                Some(_) = handshakes.join_next() => continue,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept connections for the moment");
                    sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let Ok(permit) = Arc::clone(&self.connections).try_acquire_owned() else {
                // Closing it tells the client at once; a queue would tell it after its timeout.
                self.stats.connections_refused.fetch_add(1, Ordering::Relaxed);
                continue;
            };
            handshakes.spawn(self.shake_hands(stream, permit));
        }
    }

    /// Makes an accepted connection ready and hands it on.
    fn shake_hands(
        &self,
        stream: TcpStream,
        permit: OwnedSemaphorePermit,
    ) -> impl Future<Output = ()> + Send + 'static {
        let (tls, stats) = (Arc::clone(&self.tls), Arc::clone(&self.stats));
        let (handshakes, ready) = (Arc::clone(&self.handshakes), self.ready.clone());
        let (limit, closing) = (self.limits.handshake_timeout, self.closing.clone());
        async move {
            let shaken = timeout(limit, async {
                // The semaphore is never closed; if it were, the handshake would just not be bounded.
                let _turn = handshakes.acquire().await;
                stream.set_nodelay(true)?;
                TlsAcceptor::from(tls.server()).accept(stream).await
            });
            match shaken.await.unwrap_or_else(|elapsed| Err(elapsed.into())) {
                Ok(stream) => {
                    stats.connections_ready.fetch_add(1, Ordering::Relaxed);
                    // Nobody takes it if tonic has already stopped.
                    let _ = ready.send(Ok(ServedStream::new(stream, permit, closing))).await;
                }
                // Anybody can cause this, so it must not fill the log.
                Err(error) => {
                    stats.handshakes_failed.fetch_add(1, Ordering::Relaxed);
                    tracing::debug!(%error, "a handshake failed");
                }
            }
        }
    }
}

/// A ready connection. It counts as a connection until it is dropped, and fails once the server is
/// closing.
struct ServedStream {
    stream: TlsStream<TcpStream>,
    info: ConnectionInfo,
    closing: Pin<Box<WaitForCancellationFutureOwned>>,
    _permit: OwnedSemaphorePermit,
}

impl ServedStream {
    fn new(
        stream: TlsStream<TcpStream>,
        permit: OwnedSemaphorePermit,
        closing: CancellationToken,
    ) -> Self {
        let peer = stream.get_ref().1.peer_certificates().and_then(peer_uri_id);
        let info = ConnectionInfo { tls: stream.connect_info(), peer };
        Self { stream, info, closing: Box::pin(closing.cancelled_owned()), _permit: permit }
    }

    /// The stream, unless it is to be closed. Registers for being told so.
    fn open(&mut self, cx: &mut Context<'_>) -> io::Result<Pin<&mut TlsStream<TcpStream>>> {
        match self.closing.as_mut().poll(cx) {
            Poll::Ready(()) => {
                Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the server is closing"))
            }
            Poll::Pending => Ok(Pin::new(&mut self.stream)),
        }
    }
}

impl Connected for ServedStream {
    type ConnectInfo = ConnectionInfo;

    fn connect_info(&self) -> ConnectionInfo {
        self.info.clone()
    }
}

impl AsyncRead for ServedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.open(cx)?.poll_read(cx, buffer)
    }
}

impl AsyncWrite for ServedStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.open(cx)?.poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.open(cx)?.poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.open(cx)?.poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.open(cx)?.poll_shutdown(cx)
    }
}
