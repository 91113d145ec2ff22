//! Raft's messages over gRPC.

// openraft's errors are large, and rare.
#![allow(clippy::result_large_err)]

use std::error::Error;
use std::time::Duration;

use coffer_model::encoding::Malformed;
use coffer_model::id::MemberId;
use coffer_proto::internal as pb;
use coffer_service::call::contained;
use openraft::error::{InstallSnapshotError, NetworkError, RPCError, RaftError, Unreachable};
use openraft::network::{Backoff, RPCOption, RaftNetwork, RaftNetworkFactory};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse,
    VoteRequest, VoteResponse,
};
use openraft::{AnyError, EmptyNode};
use tonic::{Code, Request, Status};

use crate::codec::{decode_append_answer, decode_vote_answer, encode_append, encode_vote_request};
use crate::peers::Peers;
use crate::raft::TypeConfig;

/// How long replication to a member that cannot be reached pauses.
const UNREACHABLE_PAUSE: Duration = Duration::from_millis(200);

/// Makes the connections.
#[derive(Clone, Debug)]
pub(crate) struct Network(pub(crate) Peers);

/// The connection to one member.
#[derive(Debug)]
pub(crate) struct Connection {
    peers: Peers,
    target: MemberId,
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Connection;

    async fn new_client(&mut self, target: u64, _: &EmptyNode) -> Connection {
        Connection { peers: self.0.clone(), target: MemberId::from_u64(target) }
    }
}

type Failure<E = RaftError<u64>> = RPCError<u64, EmptyNode, E>;

fn unreachable<E: Error>(status: &Status) -> Failure<E> {
    match status.code() {
        Code::Unavailable => Unreachable::new(status).into(),
        _ => NetworkError::new(status).into(),
    }
}

fn garbled(error: Malformed) -> Failure {
    NetworkError::new(&error).into()
}

impl Connection {
    fn client<E: Error>(
        &self,
    ) -> Result<pb::member_service_client::MemberServiceClient<tonic::transport::Channel>, Failure<E>>
    {
        self.peers.raft(self.target).ok_or_else(|| {
            let reason = AnyError::error(format!("the descriptor names no member {}", self.target));
            Unreachable::from(reason).into()
        })
    }
}

fn with_deadline<T>(message: T, option: &RPCOption) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(option.hard_ttl());
    request
}

impl RaftNetwork<TypeConfig> for Connection {
    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<u64>, Failure> {
        let message = pb::AppendRequest { message: encode_append(&rpc).into() };
        let mut client = self.client()?;
        let answer = contained(client.append(with_deadline(message, &option))).await;
        let answer = answer.map_err(|status| unreachable(&status))?.into_inner();
        self.peers.note_answer(self.target);
        decode_append_answer(&answer.message).map_err(garbled)
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<u64>,
        option: RPCOption,
    ) -> Result<VoteResponse<u64>, Failure> {
        let message = pb::VoteRequest { message: encode_vote_request(&rpc).into() };
        let mut client = self.client()?;
        let answer = contained(client.vote(with_deadline(message, &option))).await;
        let answer = answer.map_err(|status| unreachable(&status))?.into_inner();
        decode_vote_answer(&answer.message).map_err(garbled)
    }

    async fn install_snapshot(
        &mut self,
        _: InstallSnapshotRequest<TypeConfig>,
        _: RPCOption,
    ) -> Result<InstallSnapshotResponse<u64>, Failure<RaftError<u64, InstallSnapshotError>>> {
        // Nothing is purged from the log, so nobody ever needs one.
        let reason = AnyError::error("this version makes no snapshots of the Raft log");
        Err(Unreachable::from(reason).into())
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(std::iter::repeat(UNREACHABLE_PAUSE))
    }
}
