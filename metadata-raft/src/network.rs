//! Raft's messages over gRPC.

// openraft's errors are large, and rare.
#![allow(clippy::result_large_err)]

use std::error::Error;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use coffer_model::encoding::Malformed;
use coffer_model::id::MemberId;
use coffer_proto::internal as pb;
use coffer_service::call::contained;
use openraft::error::{
    Fatal, NetworkError, RPCError, RaftError, ReplicationClosed, StreamingError, Unreachable,
};
use openraft::network::{Backoff, RPCOption, RaftNetwork, RaftNetworkFactory};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, VoteRequest, VoteResponse,
};
use openraft::{AnyError, EmptyNode, StorageError, StorageIOError};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Status};

use crate::codec::{
    decode_append_answer, decode_vote, decode_vote_answer, encode_append, encode_vote_request,
};
use crate::group::Group;
use crate::peers::Peers;
use crate::raft::{Snapshot, TypeConfig, Vote};
use crate::snapshot::{Header, SnapshotData, stream};
use crate::store::{StoreError, View};

/// How long replication to a member that cannot be reached pauses.
const UNREACHABLE_PAUSE: Duration = Duration::from_millis(200);
/// Pieces of a snapshot that are read before the receiver has room for them.
const PIECES_AHEAD: usize = 2;
/// How long the receiver of a snapshot may take nothing, or not answer at its end, before it counts as
/// gone.
const STALL_MAX: Duration = Duration::from_secs(45);

/// Makes the connections.
#[derive(Clone, Debug)]
pub(crate) struct Network {
    pub(crate) group: Arc<Group>,
    pub(crate) peers: Peers,
}

/// The connection to one member.
#[derive(Debug)]
pub(crate) struct Connection {
    group: Arc<Group>,
    peers: Peers,
    target: MemberId,
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Connection;

    async fn new_client(&mut self, target: u64, _: &EmptyNode) -> Connection {
        Connection {
            group: Arc::clone(&self.group),
            peers: self.peers.clone(),
            target: MemberId::from_u64(target),
        }
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
    ) -> Result<
        pb::member_service_client::MemberServiceClient<coffer_service::channel::Channel>,
        Failure<E>,
    > {
        self.peers.raft(self.target).ok_or_else(|| {
            let reason = AnyError::error(format!("the descriptor names no member {}", self.target));
            Unreachable::from(reason).into()
        })
    }
}

type Refusal = StreamingError<TypeConfig, Fatal<u64>>;

/// Whatever went wrong with a snapshot, the next attempt is not made at once.
fn gone(reason: AnyError) -> Refusal {
    Unreachable::from(reason).into()
}

/// Waits for the answer of a receiver that goes on taking pieces, unless Raft does not want it any more.
async fn attended(
    call: impl Future<Output = Result<tonic::Response<pb::StreamSnapshotResponse>, Status>>,
    cancel: impl Future<Output = ReplicationClosed>,
    sent: &AtomicU64,
) -> Result<pb::StreamSnapshotResponse, Refusal> {
    let (mut call, mut cancel) = (pin!(call), pin!(cancel));
    let mut seen = None;
    loop {
        tokio::select! {
            answer = &mut call => {
                let answer = answer.map_err(|status| gone(AnyError::new(&status)))?;
                return Ok(answer.into_inner());
            }
            closed = &mut cancel => return Err(closed.into()),
            () = tokio::time::sleep(STALL_MAX) => {
                let now = sent.load(Ordering::Relaxed);
                if seen.replace(now) == Some(now) {
                    return Err(gone(AnyError::error("the receiver of a snapshot is stuck")));
                }
            }
        }
    }
}

/// Reads the messages of a snapshot, not much faster than they are taken, and counts them.
fn read_ahead(
    header: Header,
    view: Arc<View>,
    pieces: mpsc::Sender<pb::StreamSnapshotRequest>,
    progress: Arc<AtomicU64>,
) -> JoinHandle<Result<(), StoreError>> {
    let counted = move |message: Vec<u8>| {
        progress.fetch_add(1, Ordering::Relaxed);
        pb::StreamSnapshotRequest { message: message.into() }
    };
    // A thread that waits for the receiver would hold up simulated time.
    #[cfg(test)]
    if crate::member::simulation::is_on() {
        let reading = crate::member::simulation::read_ahead(header, view, pieces, counted);
        return tokio::spawn(reading);
    }
    tokio::task::spawn_blocking(move || {
        stream(&header, &view, |message| pieces.blocking_send(counted(message)).is_ok())
    })
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

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
        _: RPCOption,
    ) -> Result<SnapshotResponse<u64>, Refusal> {
        let (Some(last), SnapshotData::Own(view)) = (snapshot.meta.last_log_id, *snapshot.snapshot)
        else {
            return Err(gone(AnyError::error("there is nothing in the snapshot to be sent")));
        };
        let Some(mut client) = self.peers.snapshots(self.target) else {
            let reason = format!("the descriptor names no member {}", self.target);
            return Err(gone(AnyError::error(reason)));
        };
        let membership = snapshot.meta.last_membership.clone();
        let header = Header { cluster: self.group.cluster(), vote, last, membership };
        let (pieces, taken) = mpsc::channel(PIECES_AHEAD);
        let sent = Arc::new(AtomicU64::new(0));
        let progress = Arc::clone(&sent);
        // It ends with the call: then nobody takes pieces any more.
        let reading = read_ahead(header, view, pieces, progress);
        tracing::info!(member = %self.target, %last, "sending a snapshot");
        let call = contained(client.stream_snapshot(ReceiverStream::new(taken)));
        let answer = attended(call, cancel, &sent).await;
        // The receiver's half of the channel is gone by now, so this does not take long.
        match reading.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                let error = StorageIOError::read_snapshot(
                    Some(snapshot.meta.signature()),
                    AnyError::new(&error),
                );
                return Err(StorageError::from(error).into());
            }
            Err(error) => return Err(gone(AnyError::new(&error))),
        }
        let vote = decode_vote(&answer?.message).map_err(|error| gone(AnyError::new(&error)))?;
        tracing::info!(member = %self.target, %last, "the snapshot is taken");
        Ok(SnapshotResponse { vote })
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(std::iter::repeat(UNREACHABLE_PAUSE))
    }
}
