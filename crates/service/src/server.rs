//! The gRPC server of a process: it accepts, shakes hands, and hands ready connections to tonic.
//!
//! tonic's own TLS cannot change its certificates, so the handshake is ours. There is no plain-text
//! mode; only health and metrics have one ([`crate::health::Health::serve_plain`]).

use std::collections::HashMap;
use std::fmt;
use std::future::{Future, Ready, pending, ready};
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::Either;
use http::header::CONTENT_TYPE;
use http::{Method, Request, Response, StatusCode};
use rustix::process::{Resource, getrlimit};
use rustls::server::Acceptor;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::{Instant, Sleep, sleep, sleep_until, timeout, timeout_at};
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::body::Body;
use tonic::transport::Server;
use tonic::transport::server::{Connected, TcpConnectInfo, TlsConnectInfo};
use tower::{Service, ServiceBuilder};

use crate::pace::{Paced, Traffic, Unfinished, Verdict};
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
/// What a client says first of all, in bytes (RFC 9113, section 3.4).
const PREFACE_BYTES: usize = 24;
/// How long a handshake may keep others waiting. A client that is slower goes on without its turn.
const HANDSHAKE_TURN_MAX: Duration = Duration::from_millis(500);
/// After the system refuses to accept (no descriptors left), we wait instead of spinning.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The bounds of a server. [`ServerLimits::standard`] is where to begin.
#[derive(Clone, Copy, Debug)]
pub struct ServerLimits {
    /// Connections at a time; further ones are closed at once. A server takes no more than half of the
    /// descriptors its process may have: the other half belongs to its files.
    pub connections_max: usize,
    /// Connections at a time from one address (of IPv6: one network of 64 bits), so that one caller
    /// cannot keep all others out. Callers behind one proxy count as one.
    pub connections_per_address_max: usize,
    /// Handshakes at a time; further ones wait, within their own timeout. A handshake costs about a
    /// millisecond of a core. Who has not yet said anything is not shaking hands.
    pub handshakes_max: usize,
    /// How long a connection may take to become ready, its first HTTP/2 bytes included.
    pub handshake_timeout: Duration,
    /// A connection that says nothing is asked this often whether it is there.
    pub keepalive_every: Duration,
    /// How long the answer may take.
    pub keepalive_timeout: Duration,
    /// How long a connection is kept on which no request is under way.
    pub idle_timeout: Duration,
    /// How long a client that is in the middle of a message may send next to nothing of it.
    pub arrival_timeout: Duration,
    /// How long a client may leave an answer lying and take next to nothing at all.
    pub answer_stall_timeout: Duration,
    /// How long a client may take for one part of an answer, however busily.
    pub answer_timeout: Duration,
    /// Bytes of messages that are not whole yet, on all connections together.
    pub unfinished_bytes_max: usize,
    /// Bytes of messages that are not whole yet, on one connection.
    pub unfinished_bytes_per_connection_max: usize,
    /// Bytes that may come on a connection without any request getting on: floods of small frames. It
    /// has to be larger than [`CONNECTION_WINDOW_BYTES`], which may come before a request is looked at.
    pub useless_bytes_max: usize,
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
            connections_per_address_max: 1024,
            handshakes_max: 64,
            handshake_timeout: Duration::from_secs(10),
            keepalive_every: Duration::from_secs(20),
            keepalive_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(10 * 60),
            arrival_timeout: Duration::from_secs(30),
            answer_stall_timeout: Duration::from_secs(60),
            answer_timeout: Duration::from_secs(15 * 60),
            unfinished_bytes_max: 512 << 20,
            unfinished_bytes_per_connection_max: 64 << 20,
            useless_bytes_max: 2 * CONNECTION_WINDOW_BYTES as usize,
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
    /// Connections that were closed because they were not used.
    pub connections_idle: AtomicU64,
    /// Connections that were closed because their client stopped halfway, left answers lying, or sent
    /// frames that led to nothing.
    pub connections_stuck: AtomicU64,
}

/// What is known of the connection a request came on; it is among the request's extensions.
#[derive(Clone)]
pub struct ConnectionInfo {
    tls: TlsConnectInfo<TcpConnectInfo>,
    peer: Option<PeerId>,
    traffic: Arc<Traffic>,
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

    pub(crate) const fn traffic(&self) -> &Arc<Traffic> {
        &self.traffic
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
        let service = ServiceBuilder::new()
            .map_request(with_connect_info)
            .layer_fn(Paced::new)
            .layer_fn(CallsOnly)
            .service(service);
        let serving = tonic_server(&limits).serve_with_incoming_shutdown(
            service,
            ReceiverStream::new(incoming),
            shutdown.clone().cancelled_owned(),
        );
        let door = Door {
            tls: self.tls,
            limits,
            stats: self.stats,
            connections: Arc::new(Semaphore::new(connections_max(&limits))),
            addresses: Arc::new(Addresses::default()),
            unfinished: Arc::default(),
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

/// The bound on connections, within what the system lets the process have.
fn connections_max(limits: &ServerLimits) -> usize {
    let descriptors = getrlimit(Resource::Nofile).current;
    let half = descriptors.map(|it| usize::try_from(it / 2).unwrap_or(usize::MAX));
    limits.connections_max.min(half.unwrap_or(usize::MAX))
}

fn tonic_server(limits: &ServerLimits) -> Server {
    let server = Server::builder()
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES_MAX)
        .http2_max_header_list_size(HEADER_BYTES_MAX)
        .http2_keepalive_interval(Some(limits.keepalive_every))
        .http2_keepalive_timeout(Some(limits.keepalive_timeout))
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

/// A service that gets nothing but gRPC calls. Routes would take any method and any content.
#[derive(Clone, Debug)]
struct CallsOnly<S>(S);

impl<S> Service<Request<Body>> for CallsOnly<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Either<S::Future, Ready<Result<Response<Body>, S::Error>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let refusal = match request.headers().get(CONTENT_TYPE) {
            _ if request.method() != Method::POST => StatusCode::METHOD_NOT_ALLOWED,
            Some(kind) if is_grpc(kind.as_bytes()) => return Either::Left(self.0.call(request)),
            _ => StatusCode::UNSUPPORTED_MEDIA_TYPE,
        };
        let mut answer = Response::new(Body::empty());
        *answer.status_mut() = refusal;
        Either::Right(ready(Ok(answer)))
    }
}

/// Whether a content type is gRPC's, of whatever encoding and with whatever parameters.
fn is_grpc(kind: &[u8]) -> bool {
    let rest = kind.strip_prefix(b"application/grpc");
    rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
}

/// How many connections each address has.
#[derive(Default)]
struct Addresses(Mutex<HashMap<IpAddr, usize>>);

impl Addresses {
    /// Counts a connection, unless there are `max` already.
    fn enter(self: &Arc<Self>, from: IpAddr, max: usize) -> Option<AddressSeat> {
        let from = network_of(from);
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(from).or_default();
        // An entry that was just made has room: a bound of none would let nobody in.
        if *count >= max.max(1) {
            return None;
        }
        *count += 1;
        Some(AddressSeat { addresses: Arc::clone(self), from })
    }
}

/// What counts as one address.
fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(it) => IpAddr::V6(Ipv6Addr::from_bits(it.to_bits() & (u128::MAX << 64))),
        v4 @ IpAddr::V4(_) => v4,
    }
}

/// A connection that counts for its address until it is dropped.
struct AddressSeat {
    addresses: Arc<Addresses>,
    from: IpAddr,
}

impl Drop for AddressSeat {
    fn drop(&mut self) {
        let mut counts = self.addresses.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.from) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.from);
            }
        }
    }
}

/// What a connection has while it lives.
struct Seat {
    _of_all: OwnedSemaphorePermit,
    _of_address: AddressSeat,
}

/// Where connections come in.
struct Door {
    tls: Arc<LiveTls>,
    limits: ServerLimits,
    stats: Arc<ServerStats>,
    connections: Arc<Semaphore>,
    addresses: Arc<Addresses>,
    handshakes: Arc<Semaphore>,
    unfinished: Arc<Unfinished>,
    closing: CancellationToken,
    ready: mpsc::Sender<Result<ServedStream, io::Error>>,
}

impl Door {
    /// Ends with the listener closed and the unfinished handshakes dropped.
    async fn accept_until(self, listener: TcpListener, shutdown: &CancellationToken) {
        // Never more tasks than connections: each holds a seat.
        let mut handshakes = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                () = shutdown.cancelled() => return,
                accepted = listener.accept() => accepted,
                Some(_) = handshakes.join_next() => continue,
            };
            let (stream, from) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept connections for the moment");
                    sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let Some(seat) = self.seat(from.ip()) else {
                // Closing it tells the client at once; a queue would tell it after its timeout.
                self.stats.connections_refused.fetch_add(1, Ordering::Relaxed);
                continue;
            };
            handshakes.spawn(self.shake_hands(stream, seat));
        }
    }

    fn seat(&self, from: IpAddr) -> Option<Seat> {
        let of_all = Arc::clone(&self.connections).try_acquire_owned().ok()?;
        let of_address = self.addresses.enter(from, self.limits.connections_per_address_max)?;
        Some(Seat { _of_all: of_all, _of_address: of_address })
    }

    /// Makes an accepted connection ready and hands it on.
    fn shake_hands(
        &self,
        stream: TcpStream,
        seat: Seat,
    ) -> impl Future<Output = ()> + Send + 'static {
        let (tls, stats) = (Arc::clone(&self.tls), Arc::clone(&self.stats));
        let (handshakes, ready) = (Arc::clone(&self.handshakes), self.ready.clone());
        let (limits, closing) = (self.limits, self.closing.clone());
        let traffic = Traffic::new(limits, Arc::clone(&self.unfinished));
        async move {
            let ready_by = Instant::now() + limits.handshake_timeout;
            let shaken = timeout_at(ready_by, shake_hands(stream, &tls, &handshakes));
            match shaken.await.unwrap_or_else(|elapsed| Err(elapsed.into())) {
                Ok(stream) => {
                    stats.connections_ready.fetch_add(1, Ordering::Relaxed);
                    let served = ServedStream::new(stream, seat, closing, traffic, ready_by, stats);
                    // Nobody takes it if tonic has already stopped.
                    let _ = ready.send(Ok(served)).await;
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

/// The TLS handshake. Nobody gets a turn who has not said anything, and nobody keeps it by falling
/// silent: a few clients that do so would otherwise keep out all others.
async fn shake_hands(
    stream: TcpStream,
    tls: &LiveTls,
    handshakes: &Semaphore,
) -> io::Result<TlsStream<TcpStream>> {
    stream.set_nodelay(true)?;
    let greeted = LazyConfigAcceptor::new(Acceptor::default(), stream).await?;
    // The semaphore is never closed; if it were, the handshake would just not be bounded.
    let turn = handshakes.acquire().await;
    let mut shaking = Box::pin(greeted.into_stream(tls.server()));
    match timeout(HANDSHAKE_TURN_MAX, &mut shaking).await {
        Ok(shaken) => shaken,
        Err(_) => {
            drop(turn);
            shaking.await
        }
    }
}

/// A ready connection. It counts as a connection until it is dropped, and fails once the server is
/// closing or it does not get on.
struct ServedStream {
    stream: TlsStream<TcpStream>,
    info: ConnectionInfo,
    closing: Pin<Box<WaitForCancellationFutureOwned>>,
    /// How many bytes are to come until the client has said that it speaks HTTP/2.
    preface_left: usize,
    /// When they are due.
    preface_by: Instant,
    /// When it is judged next.
    judged_next: Pin<Box<Sleep>>,
    /// It is not used any more, and has ended as if the client had ended it.
    ended: bool,
    /// Why it failed, if it did.
    failed: Option<&'static str>,
    stats: Arc<ServerStats>,
    _seat: Seat,
}

impl ServedStream {
    fn new(
        stream: TlsStream<TcpStream>,
        seat: Seat,
        closing: CancellationToken,
        traffic: Arc<Traffic>,
        preface_by: Instant,
        stats: Arc<ServerStats>,
    ) -> Self {
        let first = Instant::now() + traffic.judge_every();
        let peer = stream.get_ref().1.peer_certificates().and_then(peer_uri_id);
        Self {
            info: ConnectionInfo { tls: stream.connect_info(), peer, traffic },
            stream,
            closing: Box::pin(closing.cancelled_owned()),
            preface_left: PREFACE_BYTES,
            preface_by,
            judged_next: Box::pin(sleep_until(preface_by.min(first))),
            ended: false,
            failed: None,
            stats,
            _seat: seat,
        }
    }

    /// The stream, unless it is to be closed. Registers for being told so.
    fn open(&mut self, cx: &mut Context<'_>) -> io::Result<Pin<&mut TlsStream<TcpStream>>> {
        if self.closing.as_mut().poll(cx).is_ready() {
            return Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the server is closing"));
        }
        if let Some(why) = self.failed {
            return Err(io::Error::new(io::ErrorKind::ConnectionAborted, why));
        }
        while !self.ended && self.judged_next.as_mut().poll(cx).is_ready() {
            let now = Instant::now();
            if self.preface_left > 0 && now >= self.preface_by {
                return Err(self.stuck("it does not speak HTTP/2"));
            }
            match self.info.traffic.verdict() {
                Verdict::GoOn => {}
                Verdict::Idle => {
                    self.stats.connections_idle.fetch_add(1, Ordering::Relaxed);
                    self.ended = true;
                }
                Verdict::Stalled => return Err(self.stuck("its client leaves answers lying")),
                Verdict::Useless => return Err(self.stuck("its frames lead to nothing")),
            }
            let next = now + self.info.traffic.judge_every();
            let due = if self.preface_left > 0 { next.min(self.preface_by) } else { next };
            self.judged_next.as_mut().reset(due);
        }
        Ok(Pin::new(&mut self.stream))
    }

    fn count(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(bytes)) = &written {
            self.info.traffic.sent(*bytes);
        }
        written
    }

    /// Fails the connection, for good.
    fn stuck(&mut self, why: &'static str) -> io::Error {
        self.failed = Some(why);
        self.stats.connections_stuck.fetch_add(1, Ordering::Relaxed);
        tracing::debug!(connection = ?self.info, why, "a connection is closed");
        io::Error::new(io::ErrorKind::ConnectionAborted, why)
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
        let before = buffer.filled().len();
        self.open(cx)?;
        if self.ended {
            return Poll::Ready(Ok(()));
        }
        let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
        let bytes = buffer.filled().len() - before;
        self.preface_left = self.preface_left.saturating_sub(bytes);
        if self.info.traffic.received(bytes) == Verdict::Useless {
            return Poll::Ready(Err(self.stuck("its frames lead to nothing")));
        }
        read
    }
}

impl AsyncWrite for ServedStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = self.open(cx)?.poll_write(cx, bytes);
        self.count(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = self.open(cx)?.poll_write_vectored(cx, slices);
        self.count(written)
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn addresses_are_counted_by_network_and_given_back() {
        let addresses = Arc::new(Addresses::default());
        let enter = |text: &str| addresses.enter(text.parse().unwrap(), 2);
        for same in [
            ["10.0.0.1", "::ffff:10.0.0.1", "10.0.0.1"],
            ["2001:db8::1", "2001:db8::2:1", "2001:db8::ffff"],
        ] {
            let (first, second) = (enter(same[0]).unwrap(), enter(same[1]).unwrap());
            assert!(enter(same[2]).is_none());
            drop(first);
            let third = enter(same[2]).unwrap();
            drop((second, third));
        }
        let _others = (enter("10.0.0.1"), enter("10.0.0.2"), enter("2001:db8:0:1::1"));
        assert_eq!(addresses.0.lock().unwrap().len(), 3, "who has none is not remembered");
    }

    #[test]
    fn half_of_the_descriptors_are_left_to_files() {
        let limits = ServerLimits { connections_max: usize::MAX, ..ServerLimits::standard() };
        let descriptors = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        assert!(u64::try_from(connections_max(&limits)).unwrap() <= descriptors / 2);
    }
}
