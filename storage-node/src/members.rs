//! Asking metadata members, those of the descriptor in force.

use std::sync::Arc;
use std::time::Duration;

use coffer_proto::MESSAGE_BYTES_MAX;
use coffer_proto::internal as wire;
use coffer_proto::internal::member_service_client::MemberServiceClient;
use coffer_service::call::contained;
use coffer_service::channel::{Channel, ChannelOptions, ChannelPool, host_of};
use coffer_service::tls::LiveTls;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tonic::Status;

use crate::cluster::Cluster;
use crate::store::StoreError;

/// How long a member or sibling may take to answer.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a greeting may take.
const GREET_TIMEOUT: Duration = Duration::from_secs(2);
/// Channels that are kept open.
const CHANNELS_MAX: usize = 1024;

/// Channels to members and siblings, each of which has to answer in time.
pub(crate) fn channels(tls: &Arc<LiveTls>) -> ChannelPool {
    let options =
        ChannelOptions { request_timeout: Some(CALL_TIMEOUT), ..ChannelOptions::standard() };
    ChannelPool::new(tls, options, CHANNELS_MAX)
}

/// Why a step that asks others and writes here did not go through.
pub(crate) enum Failure {
    Call(Status),
    Store(StoreError),
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        Self::Call(status)
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

pub(crate) struct Members {
    cluster: Arc<Cluster>,
    channels: ChannelPool,
    /// Which one answered last.
    last: usize,
}

impl Members {
    pub(crate) fn new(cluster: Arc<Cluster>, tls: &Arc<LiveTls>) -> Self {
        Self { cluster, channels: channels(tls), last: 0 }
    }

    /// Asks one after the other, beginning with the one that answered last, until one answers.
    pub(crate) async fn ask<T, F>(
        &mut self,
        call: impl Fn(MemberServiceClient<Channel>) -> F,
    ) -> Result<T, Status>
    where
        F: Future<Output = Result<T, Status>>,
    {
        let descriptor = self.cluster.view().descriptor;
        let members = &descriptor.members;
        let mut refusal = Status::unavailable("the cluster has no members");
        for turn in 0..members.len() {
            let at = (self.last + turn) % members.len();
            match self.ask_one(&members[at].address, &call).await {
                Ok(answer) => {
                    self.last = at;
                    return Ok(answer);
                }
                Err(error) => refusal = error,
            }
        }
        Err(refusal)
    }

    /// Greets all members at once, and does not wait for long.
    pub(crate) async fn greet(&self) {
        let mut greetings = JoinSet::new();
        for member in &self.cluster.view().descriptor.members {
            let Ok(channel) = self.channels.channel(&member.address, host_of(&member.address))
            else {
                continue;
            };
            greetings.spawn(timeout(GREET_TIMEOUT, async move {
                let request = wire::GreetRequest {};
                contained(MemberServiceClient::new(channel).greet(request)).await
            }));
        }
        // Who is not there hears nothing; that is all there is to it.
        while greetings.join_next().await.is_some() {}
    }

    /// Asks the member at an address, and nobody else.
    pub(crate) async fn ask_one<T, F>(
        &self,
        address: &str,
        call: impl Fn(MemberServiceClient<Channel>) -> F,
    ) -> Result<T, Status>
    where
        F: Future<Output = Result<T, Status>>,
    {
        let channel = self.channels.channel(address, host_of(address));
        let channel = channel.map_err(|error| Status::unavailable(error.to_string()))?;
        let client = MemberServiceClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
        contained(call(client)).await
    }
}
