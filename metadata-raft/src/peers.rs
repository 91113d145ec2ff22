//! Channels to the other members: two for each, so that Raft's small and urgent messages do not queue
//! behind forwarded calls.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use coffer_model::id::MemberId;
use coffer_proto::MESSAGE_BYTES_MAX;
use coffer_proto::internal::member_service_client::MemberServiceClient;
use coffer_service::channel::{ChannelError, ChannelOptions, connect_lazy};
use coffer_service::tls::LiveTls;
use tonic::transport::Channel;

use crate::group::Group;

/// A member that answered no message of Raft's for this long counts as gone.
const SILENT_MAX: Duration = Duration::from_secs(3);

/// The channels of one member to all others.
#[derive(Clone, Debug)]
pub(crate) struct Peers(Arc<BTreeMap<MemberId, Peer>>);

#[derive(Debug)]
struct Peer {
    address: String,
    raft: Channel,
    calls: Channel,
    answered: Mutex<Option<Instant>>,
}

impl Peers {
    /// Makes the channels; nothing is connected yet.
    pub(crate) fn new(group: &Group, tls: &Arc<LiveTls>) -> Result<Self, ChannelError> {
        let mut peers = BTreeMap::new();
        for member in group.others() {
            let connect = || {
                let name = host_of(&member.address);
                connect_lazy(&member.address, name, tls, &ChannelOptions::standard())
            };
            let (raft, calls) = (connect()?, connect()?);
            let address = member.address.clone();
            peers.insert(member.id, Peer { address, raft, calls, answered: Mutex::new(None) });
        }
        Ok(Self(Arc::new(peers)))
    }

    /// The channel for Raft's own messages.
    pub(crate) fn raft(&self, member: MemberId) -> Option<MemberServiceClient<Channel>> {
        let channel = self.0.get(&member)?.raft.clone();
        Some(
            MemberServiceClient::new(channel)
                .max_decoding_message_size(MESSAGE_BYTES_MAX)
                .max_encoding_message_size(MESSAGE_BYTES_MAX),
        )
    }

    /// The channel for forwarded calls.
    pub(crate) fn calls(&self, member: MemberId) -> Option<Channel> {
        Some(self.0.get(&member)?.calls.clone())
    }

    /// Notes that a member answered a message of Raft's.
    pub(crate) fn note_answer(&self, member: MemberId) {
        if let Some(peer) = self.0.get(&member) {
            *peer.answered.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        }
    }

    /// Whether a member answered lately. Only a leader, who sends to all, can tell.
    pub(crate) fn reached(&self, member: MemberId) -> bool {
        self.0.get(&member).is_some_and(|peer| {
            let answered = *peer.answered.lock().unwrap_or_else(PoisonError::into_inner);
            answered.is_some_and(|at| at.elapsed() < SILENT_MAX)
        })
    }

    /// Where a member is.
    pub(crate) fn address(&self, member: MemberId) -> Option<&str> {
        Some(&self.0.get(&member)?.address)
    }
}

/// The host of `host:port`, without the brackets of an IPv6 address.
fn host_of(address: &str) -> &str {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}

#[cfg(test)]
mod tests {
    use super::host_of;

    #[test]
    fn hosts() {
        for (address, host) in
            [("a.example:1", "a.example"), ("127.0.0.1:80", "127.0.0.1"), ("[::1]:443", "::1")]
        {
            assert_eq!(host_of(address), host);
        }
    }
}
