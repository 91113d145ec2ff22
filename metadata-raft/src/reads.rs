//! Reads that no replica can answer from the past: before a request is answered, a majority confirms
//! that this member led after the request came in, and everything committed by then is applied. One
//! confirmation serves all requests that wait for it.

use std::sync::Arc;
use std::time::Duration;

use coffer_model::id::MemberId;
use coffer_service::shutdown::Shutdown;
use openraft::error::{CheckIsLeaderError, RaftError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::timeout;

use crate::raft::Raft;
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
    pub(crate) fn start(raft: Raft, store: Arc<Store>, shutdown: &Shutdown) -> Self {
        let (asks, queue) = mpsc::channel(WAITING_MAX);
        let part = shutdown.clone();
        shutdown.spawn("read index", async move {
            tokio::select! {
                () = part.cancelled() => {}
                () = confirm(raft, queue) => {}
            }
        });
        let (admitted, places) = (Semaphore::new(WAITING_MAX), Semaphore::new(READS_MAX));
        Self { asks, admitted: Arc::new(admitted), places: Arc::new(places), store }
    }

    /// A view of a state that holds everything that was acknowledged to anybody before this call.
    pub(crate) async fn view(&self) -> Result<Confirmed, ReadError> {
        let _admitted = self.admitted.try_acquire().map_err(|_| ReadError::Busy)?;
        let (ask, confirmed) = oneshot::channel();
        self.asks.try_send(ask).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => ReadError::Busy,
            mpsc::error::TrySendError::Closed(_) => ReadError::Stopped,
        })?;
        confirmed.await.unwrap_or(Err(ReadError::Stopped))?;
        let place = Arc::clone(&self.places).acquire_owned().await;
        let place = place.map_err(|_| ReadError::Stopped)?;
        Ok(Confirmed { view: View::of(&self.store), place })
    }

    /// The state as this member has it, which may lack what others have acknowledged.
    pub(crate) fn local(&self) -> View {
        View::of(&self.store)
    }
}

async fn confirm(raft: Raft, mut queue: mpsc::Receiver<Ask>) {
    let mut waiting = Vec::new();
    // Whoever asks while a confirmation is under way waits for the next one: this one may have begun
    // before a change that the asker has already been told of.
    while queue.recv_many(&mut waiting, WAITING_MAX).await > 0 {
        let result = match timeout(CONFIRM_TIMEOUT, raft.ensure_linearizable()).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(refusal(&error)),
            Err(_) => Err(ReadError::Unconfirmed),
        };
        for ask in waiting.drain(..) {
            // Whoever asked may have gone.
            let _ = ask.send(result);
        }
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
