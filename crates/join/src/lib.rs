//! How a process with a new volume gets into the cluster by the standing policy: it takes the place of one
//! whose volume is lost (docs/formats/descriptor.md, "A replacement"). It is not how a place is given; that
//! is for the members to decide.
//!
//! The join token never leaves the process: it signs the descriptor in which this very volume has the place,
//! so whoever sees the request can use it for nothing else.

pub mod token;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use coffer_model::descriptor::{Descriptor, Followed};
use coffer_model::encoding::encode;
use coffer_model::id::{ClusterId, MemberId, NodeId};
use coffer_model::signing::{Domain, PublicKey, Signer};
use coffer_proto::internal as pb;
use coffer_proto::internal::join_service_client::JoinServiceClient;
use coffer_proto::v1::GetDescriptorRequest;
use coffer_proto::v1::cluster_service_client::ClusterServiceClient;
use coffer_service::call::contained;
use coffer_service::channel::{Channel, ChannelOptions, ChannelPool, host_of};
use coffer_service::retry::{Backoff, Jitter};
use coffer_service::shutdown::Shutdown;
use coffer_service::status::{reason_of, retry_delay};
use coffer_service::tls::LiveTls;
use tonic::Status;

use crate::token::JoinToken;

/// How long a member may take to answer: it asks the others, and waits for a majority's disks.
const CALL_TIMEOUT: Duration = Duration::from_secs(15);
/// Channels that are kept open.
const CHANNELS_MAX: usize = 64;
/// How many times in a row members may have more descriptors to tell of; each time it is 64 of them.
const DESCRIPTOR_CALLS_MAX: usize = 64;
/// The distances at which a newcomer asks again. It never gives up: the policy may be set, and the old volume
/// fall silent, at any time.
const BACKOFF: Backoff =
    Backoff { first: Duration::from_millis(500), max: Duration::from_secs(15), attempts: u32::MAX };

/// What a newcomer is, and whose place it asks for.
#[derive(Clone, Debug)]
pub enum Newcomer {
    /// A storage node.
    Node {
        /// Its own id.
        id: NodeId,
        /// The id of the lost one; none: the members choose.
        replaces: Option<String>,
        /// The zone in which they choose.
        zone: String,
        /// Where it will be reached.
        address: String,
    },
    /// A metadata member.
    Member {
        /// Its own id.
        id: MemberId,
        /// The id or the address of the lost one.
        replaces: String,
    },
}

/// Why a newcomer does not get in, whatever comes.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The volume was the cluster's once.
    #[error(
        "this volume belonged to the cluster once and does not any more; it holds nothing the cluster \
         needs: start with a new one"
    )]
    Dismissed,
    /// The process was told to stop before it got in.
    #[error("the process was stopped before the cluster took it in")]
    Stopped,
}

/// Asks the members until they have taken this newcomer in, and gives the signed descriptors after the first
/// one, of which the last names it.
pub async fn join(
    asking: Asking<'_>,
    first: Descriptor,
    shutdown: &Shutdown,
) -> Result<Vec<Vec<u8>>, JoinError> {
    let mut round = Round {
        channels: ChannelPool::new(
            asking.tls,
            ChannelOptions { request_timeout: Some(CALL_TIMEOUT), ..ChannelOptions::standard() },
            CHANNELS_MAX,
        ),
        was_named: false,
        followed: Followed::new(first),
        successors: Vec::new(),
        asking,
    };
    let (mut jitter, mut attempt, mut said) = (Jitter::random(), 0, String::new());
    loop {
        let tried = tokio::select! {
            () = shutdown.cancelled() => return Err(JoinError::Stopped),
            tried = round.attempt() => tried,
        };
        let refusal = match tried {
            Ok(true) => return Ok(round.successors),
            Ok(false) => return Err(JoinError::Dismissed),
            Err(refusal) => refusal,
        };
        let reason = reason_of(&refusal).map(|reason| reason.code).unwrap_or_default();
        if reason == "DISMISSED" {
            return Err(JoinError::Dismissed);
        }
        if reason != said {
            // Said once for each reason: a newcomer may wait for long. Id and key are what an administrator
            // needs to give it a place of its own.
            let id = match &round.asking.newcomer {
                Newcomer::Node { id, .. } => id.to_string(),
                Newcomer::Member { id, .. } => id.to_string(),
            };
            tracing::warn!(
                reason,
                why = refusal.message(),
                id,
                public_key = %round.asking.key,
                "the cluster does not take this process in yet"
            );
            (said, attempt) = (reason, 0);
        }
        let delay = BACKOFF.delay(attempt, &mut jitter).unwrap_or(BACKOFF.max);
        attempt = attempt.saturating_add(1);
        let delay = delay.max(retry_delay(&refusal).unwrap_or_default()).min(BACKOFF.max);
        tokio::select! {
            () = shutdown.cancelled() => return Err(JoinError::Stopped),
            () = tokio::time::sleep(delay) => {}
        }
    }
}

/// Who asks, and with what.
pub struct Asking<'a> {
    /// The cluster.
    pub cluster: ClusterId,
    /// The process's certificates.
    pub tls: &'a Arc<LiveTls>,
    /// What it is.
    pub newcomer: Newcomer,
    /// The public key on its volume.
    pub key: PublicKey,
    /// The join token.
    pub token: &'a JoinToken,
}

struct Round<'a> {
    asking: Asking<'a>,
    channels: ChannelPool,
    followed: Followed,
    successors: Vec<Vec<u8>>,
    /// Whether a descriptor on the way named this volume.
    was_named: bool,
}

impl Round<'_> {
    /// One attempt: says whether the newcomer is in; if not, it was once and never will be again.
    async fn attempt(&mut self) -> Result<bool, Status> {
        self.follow().await?;
        if self.is_named() {
            return Ok(true);
        }
        if self.was_named {
            return Ok(false);
        }
        let wanted = match &self.asking.newcomer {
            Newcomer::Node { replaces, zone, address, .. } => pb::FindSeatRequest {
                kind: pb::SeatKind::Node.into(),
                replaces: replaces.clone().unwrap_or_default(),
                zone: zone.clone(),
                address: address.clone(),
            },
            Newcomer::Member { replaces, .. } => pb::FindSeatRequest {
                kind: pb::SeatKind::Member.into(),
                replaces: replaces.clone(),
                ..pb::FindSeatRequest::default()
            },
        };
        let found = self
            .ask(async |channel| JoinServiceClient::new(channel).find_seat(wanted.clone()).await);
        let lost = found.await?.lost;
        let next = self.next(&lost).ok_or_else(|| {
            // It was replaced since the descriptor was asked for.
            Status::aborted("the place that was found is another's by now")
        })?;
        let descriptor = encode(&next);
        let token = self.asking.token;
        let signature = token.sign(Domain::Replacement, &self.asking.cluster, &descriptor);
        let request = pb::JoinRequest {
            descriptor: descriptor.into(),
            token_key: token.public_key().as_bytes().to_vec().into(),
            token_signature: signature.as_bytes().to_vec().into(),
        };
        let joined =
            self.ask(async |channel| JoinServiceClient::new(channel).join(request.clone()).await);
        joined.await?;
        self.follow().await?;
        if self.is_named() {
            tracing::info!(%lost, number = self.followed.descriptor.number, "this process has the place of a lost volume");
            return Ok(true);
        }
        Err(Status::aborted("the members do not name this process yet"))
    }

    /// The descriptor in which this newcomer has the place.
    fn next(&self, lost: &str) -> Option<Descriptor> {
        let (latest, key) = (&self.followed.descriptor, self.asking.key);
        match &self.asking.newcomer {
            Newcomer::Node { id, .. } => latest.with_node_replaced(lost.parse().ok()?, *id, key),
            Newcomer::Member { id, .. } => {
                latest.with_member_replaced(lost.parse().ok()?, *id, key)
            }
        }
    }

    fn is_named(&self) -> bool {
        let descriptor = &self.followed.descriptor;
        let named = match &self.asking.newcomer {
            Newcomer::Node { id, .. } => descriptor.node_key(*id),
            Newcomer::Member { id, .. } => descriptor.member_key(*id),
        };
        named == Some(self.asking.key)
    }

    /// Follows the descriptors to the one in force.
    async fn follow(&mut self) -> Result<(), Status> {
        self.was_named |= self.is_named();
        for _ in 0..DESCRIPTOR_CALLS_MAX {
            let known_number = self.followed.descriptor.number;
            let request = GetDescriptorRequest { known_number };
            let answer = self.ask(async |channel| {
                ClusterServiceClient::new(channel).get_descriptor(request).await
            });
            let successors = answer.await?.successors;
            for signed in successors {
                let before = self.followed.descriptor.number;
                self.followed
                    .follow(&self.asking.cluster, [&signed])
                    .map_err(|error| Status::data_loss(error.to_string()))?;
                if self.followed.descriptor.number > before {
                    self.successors.push(signed.into());
                    self.was_named |= self.is_named();
                }
            }
            if self.followed.descriptor.number == known_number {
                break;
            }
        }
        Ok(())
    }

    /// Asks one member after the other until one answers, or refuses for a reason of its own.
    async fn ask<T, F>(&self, call: impl Fn(Channel) -> F) -> Result<T, Status>
    where
        F: Future<Output = Result<tonic::Response<T>, Status>>,
    {
        let mut last = Status::unavailable("the cluster has no members");
        for member in &self.followed.descriptor.members {
            let address = &member.address;
            let channel = self.channels.channel(address, host_of(address));
            let channel = channel.map_err(|error| Status::unavailable(error.to_string()))?;
            match contained(call(channel)).await {
                Ok(answer) => return Ok(answer.into_inner()),
                Err(refusal) => {
                    // Who is not there, or does not know who leads, does not speak for the cluster.
                    let is_final = reason_of(&refusal)
                        .is_some_and(|it| !matches!(it.code.as_str(), "NOT_LEADER" | "STOPPING"));
                    last = refusal;
                    if is_final {
                        break;
                    }
                }
            }
        }
        Err(last)
    }
}
