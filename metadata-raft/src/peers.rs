//! Channels to the other members: three for each, so that Raft's small and urgent messages do not queue
//! behind forwarded calls, nor either behind a snapshot.
//!
//! A member's id is the beginning of the id in its certificate, so the channels check the certificate
//! themselves: whoever answers at a member's address has to be that member, or nothing is sent.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use coffer_model::descriptor::Member;
use coffer_model::id::MemberId;
use coffer_proto::MESSAGE_BYTES_MAX;
use coffer_proto::internal::member_service_client::MemberServiceClient;
use coffer_proto::internal::snapshot_service_client::SnapshotServiceClient;
use coffer_service::channel::{Channel, ChannelError, host_of};
use coffer_service::peer::{PeerId, peer_uri_id};
use coffer_service::server::{CONNECTION_WINDOW_BYTES, FRAME_BYTES_MAX, STREAM_WINDOW_BYTES};
use coffer_service::tls::LiveTls;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::ServerName;
use tonic::transport::Endpoint;
use tower::service_fn;

use crate::group::{Group, member_of_peer};

/// How long connecting and shaking hands may take together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// A member that is silent while a call is under way is asked this often whether it is there.
const KEEPALIVE_EVERY: Duration = Duration::from_secs(2);
/// How long the answer may take.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(2);

/// A member that answered no message of Raft's for this long counts as gone.
const SILENT_MAX: Duration = Duration::from_secs(3);

/// The channels of one member to all others. Clones are the same ones.
#[derive(Clone)]
pub(crate) struct Peers {
    tls: Arc<LiveTls>,
    all: Arc<RwLock<BTreeMap<MemberId, Arc<Peer>>>>,
}

#[derive(Debug)]
struct Peer {
    address: String,
    raft: Channel,
    calls: Channel,
    snapshots: Channel,
    answered: Mutex<Option<Instant>>,
}

impl Peers {
    /// Makes the channels; nothing is connected yet.
    pub(crate) fn new(group: &Group, tls: &Arc<LiveTls>) -> Result<Self, ChannelError> {
        let peers = Self { tls: Arc::clone(tls), all: Arc::default() };
        for member in group.others() {
            let peer = Peer::new(&member, tls)?;
            peers.write().insert(member.id, Arc::new(peer));
        }
        Ok(peers)
    }

    /// Follows the group: channels to those who came or moved are made, those to who is gone are
    /// closed. A member whose address is not one cannot be reached, and that is said.
    pub(crate) fn follow(&self, group: &Group) {
        let others = group.others();
        let mut all = self.write();
        all.retain(|id, _| others.iter().any(|member| member.id == *id));
        for member in others {
            if all.get(&member.id).is_some_and(|peer| peer.address == member.address) {
                continue;
            }
            match Peer::new(&member, &self.tls) {
                Ok(peer) => {
                    all.insert(member.id, Arc::new(peer));
                }
                Err(error) => {
                    tracing::error!(member = %member.id, %error, "a member cannot be reached");
                }
            }
        }
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, BTreeMap<MemberId, Arc<Peer>>> {
        self.all.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn get(&self, member: MemberId) -> Option<Arc<Peer>> {
        self.all.read().unwrap_or_else(PoisonError::into_inner).get(&member).cloned()
    }

    /// The channel for Raft's own messages.
    pub(crate) fn raft(&self, member: MemberId) -> Option<MemberServiceClient<Channel>> {
        let channel = self.get(member)?.raft.clone();
        Some(
            MemberServiceClient::new(channel)
                .max_decoding_message_size(MESSAGE_BYTES_MAX)
                .max_encoding_message_size(MESSAGE_BYTES_MAX),
        )
    }

    /// The channel for forwarded calls.
    pub(crate) fn calls(&self, member: MemberId) -> Option<Channel> {
        Some(self.get(member)?.calls.clone())
    }

    /// The channel for snapshots.
    pub(crate) fn snapshots(&self, member: MemberId) -> Option<SnapshotServiceClient<Channel>> {
        let channel = self.get(member)?.snapshots.clone();
        Some(SnapshotServiceClient::new(channel).max_encoding_message_size(MESSAGE_BYTES_MAX))
    }

    /// Notes that a member answered a message of Raft's.
    pub(crate) fn note_answer(&self, member: MemberId) {
        if let Some(peer) = self.get(member) {
            *peer.answered.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        }
    }

    /// Whether a member answered lately. Only a leader, who sends to all, can tell.
    pub(crate) fn reached(&self, member: MemberId) -> bool {
        self.get(member).is_some_and(|peer| {
            let answered = *peer.answered.lock().unwrap_or_else(PoisonError::into_inner);
            answered.is_some_and(|at| at.elapsed() < SILENT_MAX)
        })
    }

    /// Where a member is.
    pub(crate) fn address(&self, member: MemberId) -> Option<String> {
        Some(self.get(member)?.address.clone())
    }
}

impl fmt::Debug for Peers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Peers").finish_non_exhaustive()
    }
}

impl Peer {
    fn new(member: &Member, tls: &Arc<LiveTls>) -> Result<Self, ChannelError> {
        let target = Arc::new(Target::new(&member.address, member.id, tls)?);
        Ok(Self {
            address: member.address.clone(),
            raft: connect(&target)?,
            calls: connect(&target)?,
            snapshots: connect(&target)?,
            answered: Mutex::new(None),
        })
    }
}

/// Where a channel leads to, and who has to be there.
struct Target {
    address: String,
    name: ServerName<'static>,
    member: MemberId,
    tls: Arc<LiveTls>,
}

impl Target {
    fn new(address: &str, member: MemberId, tls: &Arc<LiveTls>) -> Result<Self, ChannelError> {
        let server_name = host_of(address).to_owned();
        let name = ServerName::try_from(server_name.clone())
            .map_err(|_| ChannelError::InvalidServerName { server_name })?;
        Ok(Self { address: address.to_owned(), name, member, tls: Arc::clone(tls) })
    }

    async fn connect(&self) -> io::Result<TlsStream<TcpStream>> {
        let stream = TcpStream::connect(&self.address).await?;
        stream.set_nodelay(true)?;
        let connector = TlsConnector::from(self.tls.client());
        let stream = connector.connect(self.name.clone(), stream).await?;
        let found = stream.get_ref().1.peer_certificates().and_then(peer_uri_id);
        if found.as_ref().and_then(member_of_peer) == Some(self.member) {
            return Ok(stream);
        }
        let found =
            found.as_ref().map_or("a certificate without an id".to_owned(), PeerId::to_string);
        Err(io::Error::other(format!("expected member {} here, found {found}", self.member)))
    }
}

/// A channel that connects when it is first used, and again whenever it has to.
fn connect(target: &Arc<Target>) -> Result<Channel, ChannelError> {
    // The scheme is http because the TLS is ours; for https tonic would ask for its own.
    let endpoint = Endpoint::from_shared(format!("http://{}", target.address))
        .map_err(|_| ChannelError::InvalidAddress { addr: target.address.clone() })?
        .connect_timeout(CONNECT_TIMEOUT)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES_MAX)
        .http2_keep_alive_interval(KEEPALIVE_EVERY)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(false);
    #[cfg(test)]
    if let Some(line) = crate::member::simulation::line_to(target.member) {
        return Ok(line.channel(endpoint));
    }
    let target = Arc::clone(target);
    let channel = endpoint.connect_with_connector_lazy(service_fn(move |_| {
        let target = Arc::clone(&target);
        async move { target.connect().await.map(TokioIo::new) }
    }));
    Ok(channel.into())
}
