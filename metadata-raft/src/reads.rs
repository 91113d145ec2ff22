//! Reads that no replica can answer from the past. Before a request is answered, a majority confirms who
//! led after the request came in, and everything that was committed by then is applied here: a leader
//! has itself confirmed, another member asks the leader how far it has to be. One confirmation serves all
//! requests that wait for it.

use std::sync::Arc;
use std::time::Duration;

use coffer_model::id::MemberId;
use coffer_proto::internal as pb;
use coffer_service::call::contained;
use coffer_service::shutdown::Shutdown;
use openraft::error::{CheckIsLeaderError, RaftError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::timeout;
use tonic::Code;

#[cfg(test)]
use crate::member::simulation::{Flaw, flawed};
use crate::peers::Peers;
use crate::raft::Leadership;
use crate::store::{Store, View};

/// Requests that may wait, for a confirmation or for their turn.
const WAITING_MAX: usize = 4096;
/// Reads that are being answered at a time, each with an answer of some megabytes at worst.
const READS_MAX: usize = 256;
/// How long a confirmation may take.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(2);

/// Why nothing can be read here now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum ReadError {
    /// Too many wait already.
    Busy,
    /// This member does not lead; this one does, if that is known.
    NotLeader(Option<MemberId>),
    /// No majority confirmed that this member leads.
    Unconfirmed,
    /// The member is stopping.
    Stopped,
}

type Ask = oneshot::Sender<Result<(), ReadError>>;

/// Where confirmed views of the state come from. Clones share confirmations and bounds.
#[derive(Clone, Debug)]
pub(crate) struct Reads {
    asks: mpsc::Sender<Ask>,
    admitted: Arc<Semaphore>,
    places: Arc<Semaphore>,
    store: Arc<Store>,
}

/// A confirmed view of the state, and the right to work on it.
#[derive(Debug)]
pub(crate) struct Confirmed {
    pub(crate) view: View,
    place: OwnedSemaphorePermit,
}

impl Confirmed {
    /// Takes the view out, for keeping.
    pub(crate) fn into_view(self) -> (View, OwnedSemaphorePermit) {
        (self.view, self.place)
    }
}

impl Reads {
    /// Starts confirming as a task of `shutdown`; it ends with it.
    pub(crate) fn start(
        leadership: Leadership,
        peers: Peers,
        store: Arc<Store>,
        shutdown: &Shutdown,
    ) -> Self {
        let (asks, queue) = mpsc::channel(WAITING_MAX);
        let part = shutdown.clone();
        let confirming = Confirming { leadership, peers, store: Arc::clone(&store) };
        shutdown.spawn("read index", async move {
            tokio::select! {
                () = part.cancelled() => {}
                () = confirming.run(queue) => {}
            }
        });
        let (admitted, places) = (Semaphore::new(WAITING_MAX), Semaphore::new(READS_MAX));
        Self { asks, admitted: Arc::new(admitted), places: Arc::new(places), store }
    }

    /// A view of a state that holds everything that was acknowledged to anybody before this call.
    pub(crate) async fn view(&self) -> Result<Confirmed, ReadError> {
        let _admitted = self.admitted.try_acquire().map_err(|_| ReadError::Busy)?;
        self.confirm().await?;
        let place = Arc::clone(&self.places).acquire_owned().await;
        let place = place.map_err(|_| ReadError::Stopped)?;
        Ok(Confirmed { view: View::of(&self.store), place })
    }

    /// Waits until the state here holds everything that was acknowledged to anybody before this call.
    pub(crate) async fn confirm(&self) -> Result<(), ReadError> {
        let (ask, confirmed) = oneshot::channel();
        self.asks.try_send(ask).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => ReadError::Busy,
            mpsc::error::TrySendError::Closed(_) => ReadError::Stopped,
        })?;
        confirmed.await.unwrap_or(Err(ReadError::Stopped))
    }

    /// The state as this member has it, which may lack what others have acknowledged.
    pub(crate) fn local(&self) -> View {
        View::of(&self.store)
    }
}

struct Confirming {
    leadership: Leadership,
    peers: Peers,
    store: Arc<Store>,
}

impl Confirming {
    async fn run(self, mut queue: mpsc::Receiver<Ask>) {
        let mut waiting = Vec::new();
        // Whoever asks while a confirmation is under way waits for the next one: this one may have
        // begun before a change that the asker has already been told of.
        while queue.recv_many(&mut waiting, WAITING_MAX).await > 0 {
            let leader = self.leadership.leader();
            let confirmed = async {
                #[cfg(test)]
                if flawed(Flaw::ReadsUnconfirmed) {
                    return Ok(());
                }
                match leader {
                    Some(leader) if leader == self.leadership.me => self.lead().await,
                    Some(leader) => self.ask(leader).await,
                    None => Err(ReadError::NotLeader(None)),
                }
            };
            let result = timeout(CONFIRM_TIMEOUT, confirmed).await;
            let result = result.unwrap_or(Err(ReadError::Unconfirmed));
            for ask in waiting.drain(..) {
                // Whoever asked may have gone.
                let _ = ask.send(result);
            }
        }
    }

    async fn lead(&self) -> Result<(), ReadError> {
        let led = self.leadership.raft.ensure_linearizable().await;
        led.map(|_| ()).map_err(|error| refusal(&error))
    }

    /// Asks the leader, and waits until as much is applied here.
    async fn ask(&self, leader: MemberId) -> Result<(), ReadError> {
        let mut client = self.peers.raft(leader).ok_or(ReadError::NotLeader(Some(leader)))?;
        let answer = contained(client.get_read_index(pb::GetReadIndexRequest {})).await;
        let index = match answer {
            Ok(answer) => answer.into_inner().applied_index,
            Err(status) if status.code() == Code::ResourceExhausted => return Err(ReadError::Busy),
            // It is gone, or leads no more, or no majority answers it.
            Err(_) => return Err(ReadError::NotLeader(None)),
        };
        self.store.applied_upto(index).await.map_err(|_| ReadError::Stopped)
    }
}

fn refusal(error: &RaftError<u64, CheckIsLeaderError<u64, openraft::EmptyNode>>) -> ReadError {
    match error {
        RaftError::APIError(CheckIsLeaderError::ForwardToLeader(to)) => {
            ReadError::NotLeader(to.leader_id.map(MemberId::from_u64))
        }
        RaftError::APIError(CheckIsLeaderError::QuorumNotEnough(_)) => ReadError::Unconfirmed,
        RaftError::Fatal(_) => ReadError::Stopped,
    }
}
