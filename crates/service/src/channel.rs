//! gRPC channels to other processes: made at once, connected when first used, connected again by
//! themselves, each time with the present certificates.

use std::hash::{BuildHasher, RandomState};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Request, Response};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::body::Body;
use tonic::transport::{self, Endpoint};
use tower::{Service, service_fn};

use crate::cache::BoundedCache;
use crate::peer::{PeerId, peer_uri_id};
use crate::server::{CONNECTION_WINDOW_BYTES, FRAME_BYTES_MAX, STREAM_WINDOW_BYTES};
use crate::tls::LiveTls;
use crate::trace;

/// How long connecting and shaking hands may take together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// A server that is silent while a request is under way is asked this often whether it is there.
const KEEPALIVE_EVERY: Duration = Duration::from_secs(5);
/// How long the answer may take.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);

/// A channel. A call on it that is made while another is handled names that one's span to the server.
/// Clones share their connection.
#[derive(Clone, Debug)]
pub struct Channel(transport::Channel);

impl From<transport::Channel> for Channel {
    fn from(channel: transport::Channel) -> Self {
        Self(channel)
    }
}

impl Service<Request<Body>> for Channel {
    type Response = Response<Body>;
    type Error = transport::Error;
    type Future = <transport::Channel as Service<Request<Body>>>::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), transport::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        trace::pass_on(request.headers_mut());
        self.0.call(request)
    }
}

/// What a client shows and accepts.
#[derive(Clone, Debug)]
pub enum ClientTls {
    /// Always the same.
    Fixed(Arc<ClientConfig>),
    /// What the files hold at the time of connecting.
    Live(Arc<LiveTls>),
}

impl ClientTls {
    fn present(&self) -> Arc<ClientConfig> {
        match self {
            Self::Fixed(config) => Arc::clone(config),
            Self::Live(live) => live.client(),
        }
    }
}

impl From<Arc<ClientConfig>> for ClientTls {
    fn from(config: Arc<ClientConfig>) -> Self {
        Self::Fixed(config)
    }
}

impl From<Arc<LiveTls>> for ClientTls {
    fn from(live: Arc<LiveTls>) -> Self {
        Self::Live(live)
    }
}

impl From<&Arc<LiveTls>> for ClientTls {
    fn from(live: &Arc<LiveTls>) -> Self {
        Self::Live(Arc::clone(live))
    }
}

/// How a channel behaves. [`ChannelOptions::standard`] is where to begin.
#[derive(Clone, Debug)]
pub struct ChannelOptions {
    /// How long connecting and shaking hands may take together.
    pub connect_timeout: Duration,
    /// How long a request may take until its answer begins. tonic answers `Cancelled` then.
    pub request_timeout: Option<Duration>,
    /// Who the server's certificate has to say it is. Without it any server with a certificate of
    /// the authority and the right host name will do.
    pub expected_peer: Option<PeerId>,
}

impl ChannelOptions {
    /// Three seconds to connect, no limit to requests, any peer.
    pub const fn standard() -> Self {
        Self { connect_timeout: CONNECT_TIMEOUT, request_timeout: None, expected_peer: None }
    }
}

/// Why there is no channel. (That nobody answers is found out by the first call.)
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChannelError {
    /// The address is not one.
    #[error("{addr:?} is not an address; expected host:port")]
    InvalidAddress {
        /// What was given.
        addr: String,
    },
    /// The name cannot stand in a certificate.
    #[error("{server_name:?} is neither a host name nor an IP address")]
    InvalidServerName {
        /// What was given.
        server_name: String,
    },
}

/// A channel to `addr` (`host:port`) that accepts a server whose certificate is good for
/// `server_name`. Nothing is connected yet. It has to be called within a tokio runtime.
pub fn connect_lazy(
    addr: &str,
    server_name: &str,
    tls: impl Into<ClientTls>,
    options: &ChannelOptions,
) -> Result<Channel, ChannelError> {
    connect_lazy_any(&[(addr, server_name)], tls, options)
}

/// As [`connect_lazy`], to whichever of several servers that are all the same: each has an address and a name
/// its certificate is good for. Any one is taken first; where a connection fails or takes too long, the next
/// attempt is made at the next one.
pub fn connect_lazy_any(
    servers: &[(&str, &str)],
    tls: impl Into<ClientTls>,
    options: &ChannelOptions,
) -> Result<Channel, ChannelError> {
    let none = || ChannelError::InvalidAddress { addr: String::new() };
    let endpoints: Vec<Endpoint> =
        servers.iter().map(|(addr, _)| endpoint_of(addr)).collect::<Result<_, _>>()?;
    // The address in it is what calls are said to be for; where they go is up to the connector.
    let endpoint = endpoints.into_iter().next().ok_or_else(none)?;
    let servers: Vec<(String, ServerName<'static>)> = servers
        .iter()
        .map(|(addr, name)| {
            let name = ServerName::try_from((*name).to_owned())
                .map_err(|_| ChannelError::InvalidServerName { server_name: (*name).to_owned() })?;
            Ok(((*addr).to_owned(), name))
        })
        .collect::<Result<_, _>>()?;
    let endpoint = endpoint
        .connect_timeout(options.connect_timeout)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES_MAX)
        .http2_keep_alive_interval(KEEPALIVE_EVERY)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(false);
    let endpoint = match options.request_timeout {
        Some(limit) => endpoint.timeout(limit),
        None => endpoint,
    };
    // So that many clients with one list do not all use its first server.
    let first = RandomState::new().hash_one(0) % servers.len() as u64;
    let target = Arc::new(Target {
        servers,
        next: AtomicUsize::new(usize::try_from(first).unwrap_or(0)),
        tls: tls.into(),
        expected_peer: options.expected_peer.clone(),
    });
    let channel = endpoint.connect_with_connector_lazy(service_fn(move |_| {
        let target = Arc::clone(&target);
        async move { target.connect().await.map(TokioIo::new) }
    }));
    Ok(channel.into())
}

fn endpoint_of(addr: &str) -> Result<Endpoint, ChannelError> {
    let invalid_address = || ChannelError::InvalidAddress { addr: addr.to_owned() };
    // The scheme is http because the TLS is ours; for https tonic would ask for its own.
    let endpoint =
        Endpoint::from_shared(format!("http://{addr}")).map_err(|_| invalid_address())?;
    let authority = endpoint.uri().authority().filter(|authority| authority.as_str() == addr);
    if authority.is_none_or(|it| it.host().is_empty() || it.port().is_none()) {
        return Err(invalid_address());
    }
    Ok(endpoint)
}

/// Where a channel leads to.
struct Target {
    servers: Vec<(String, ServerName<'static>)>,
    /// The server that is tried next.
    next: AtomicUsize,
    tls: ClientTls,
    expected_peer: Option<PeerId>,
}

impl Target {
    /// One attempt at one server; the one that worked is taken again next time. An attempt that takes too
    /// long is dropped, so the next one is chosen before it begins.
    async fn connect(&self) -> io::Result<TlsStream<TcpStream>> {
        let at = self.next.fetch_add(1, Ordering::Relaxed) % self.servers.len();
        let (addr, name) = &self.servers[at];
        let stream = self.connect_to(addr, name).await?;
        self.next.store(at, Ordering::Relaxed);
        Ok(stream)
    }

    async fn connect_to(
        &self,
        addr: &str,
        name: &ServerName<'static>,
    ) -> io::Result<TlsStream<TcpStream>> {
        let stream = TcpStream::connect(addr).await?;
        stream.set_nodelay(true)?;
        let stream = TlsConnector::from(self.tls.present()).connect(name.clone(), stream).await?;
        let Some(expected) = &self.expected_peer else { return Ok(stream) };
        let found = stream.get_ref().1.peer_certificates().and_then(peer_uri_id);
        if found.as_ref() != Some(expected) {
            return Err(io::Error::other(WrongPeer { expected: expected.clone(), found }));
        }
        Ok(stream)
    }
}

/// Somebody else answers at the address.
#[derive(Debug, thiserror::Error)]
#[error("expected {expected} at this address, found {}", found.as_ref().map_or("a certificate without a peer id".to_owned(), PeerId::to_string))]
struct WrongPeer {
    expected: PeerId,
    found: Option<PeerId>,
}

/// Channels that are kept for the next call, at most a given number. Clones of a channel share one
/// connection, so everybody who asks for the same target gets the same one. A channel that is pushed
/// out lives on with those who hold it.
#[derive(Debug)]
pub struct ChannelPool {
    tls: ClientTls,
    options: ChannelOptions,
    channels: BoundedCache<Key, Channel>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    addr: String,
    server_name: String,
    expected_peer: Option<PeerId>,
}

impl ChannelPool {
    /// A pool of at most `channels_max` channels that all behave alike.
    pub fn new(tls: impl Into<ClientTls>, options: ChannelOptions, channels_max: usize) -> Self {
        Self { tls: tls.into(), options, channels: BoundedCache::new(channels_max, None) }
    }

    /// The channel to `addr`, as [`connect_lazy`] makes it, with the peer the options expect.
    pub fn channel(&self, addr: &str, server_name: &str) -> Result<Channel, ChannelError> {
        self.keep(addr, server_name, self.options.expected_peer.clone())
    }

    /// The channel to `addr` that accepts only `peer` there.
    pub fn channel_to(
        &self,
        addr: &str,
        server_name: &str,
        peer: &PeerId,
    ) -> Result<Channel, ChannelError> {
        self.keep(addr, server_name, Some(peer.clone()))
    }

    /// Forgets the channels to `addr`, such as those of a process that has moved.
    pub fn forget(&self, addr: &str) {
        self.channels.retain(|key, _| key.addr != addr);
    }

    fn keep(
        &self,
        addr: &str,
        server_name: &str,
        peer: Option<PeerId>,
    ) -> Result<Channel, ChannelError> {
        let key = Key {
            addr: addr.to_owned(),
            server_name: server_name.to_owned(),
            expected_peer: peer.clone(),
        };
        self.channels.get_or_insert_with(key, || {
            let options = ChannelOptions { expected_peer: peer, ..self.options.clone() };
            connect_lazy(addr, server_name, self.tls.clone(), &options)
        })
    }
}

/// The host of `host:port`, without the brackets of an IPv6 address: what a certificate has to be good for.
pub fn host_of(address: &str) -> &str {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::one_box::OneBoxCa;
    use crate::tls::client_config_without_certificate;
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject;

    fn tls() -> ClientTls {
        let ca = OneBoxCa::ephemeral().unwrap();
        let ca = CertificateDer::from_pem_slice(ca.certificate_pem().as_bytes()).unwrap();
        Arc::new(client_config_without_certificate(&[ca]).unwrap()).into()
    }

    #[tokio::test]
    async fn addresses_and_names_are_checked_at_once() {
        let tls = tls();
        for addr in [
            "",
            "host",
            ":1",
            "host:1/path",
            "host:x",
            "host:65536",
            "user@",
            "http://host:1",
            "host:1 ",
        ] {
            let made = connect_lazy(addr, "host", tls.clone(), &ChannelOptions::standard());
            assert!(matches!(made, Err(ChannelError::InvalidAddress { .. })), "{addr}");
        }
        for addr in ["host:1", "10.0.0.1:65535", "[::1]:443"] {
            connect_lazy(addr, "host", tls.clone(), &ChannelOptions::standard()).unwrap();
        }
        let made = connect_lazy("host:1", "not a name", tls, &ChannelOptions::standard());
        assert!(matches!(made, Err(ChannelError::InvalidServerName { .. })));
    }

    #[tokio::test]
    async fn a_pool_is_bounded_and_forgets() {
        let pool = ChannelPool::new(tls(), ChannelOptions::standard(), 8);
        let peer = PeerId::new("worker", [1; 16]).unwrap();
        for port in 1..100 {
            let addr = format!("host:{port}");
            pool.channel(&addr, "host").unwrap();
            pool.channel(&addr, "host").unwrap();
            pool.channel_to(&addr, "host", &peer).unwrap();
            assert!(pool.channels.len() <= 8);
        }
        let before = pool.channels.len();
        pool.forget("host:99");
        assert_eq!(pool.channels.len(), before - 2);
        pool.channel("nowhere", "host").unwrap_err();
    }

    #[test]
    fn hosts() {
        for (address, host) in
            [("a.example:1", "a.example"), ("127.0.0.1:80", "127.0.0.1"), ("[::1]:443", "::1")]
        {
            assert_eq!(host_of(address), host);
        }
    }
}
