//! From waiting commands to log entries: what waits goes together into one entry, and while entries
//! are under way more waits. A command is done when the entry that holds it is committed and applied
//! here.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use coffer_metadata_core::{Command, Reply};
use coffer_model::id::MemberId;
use coffer_model::log::SystemOp;
use coffer_service::shutdown::Shutdown;
use openraft::error::ClientWriteError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::Instant;

use crate::clock::readings;
use crate::group::Group;
use crate::peers::Peers;
use crate::raft::{Leadership, Proposal, Replies};

/// Commands that may wait.
const WAITING_MAX: usize = 1024;
/// Bytes of commands that may wait or be under way.
const WAITING_BYTES_MAX: usize = 64 << 20;
/// Commands in one entry, a tick before them not counted.
const ENTRY_COMMANDS_MAX: usize = 64;
/// Bytes of commands in one entry, unless one alone is larger.
const ENTRY_BYTES_MAX: usize = 1 << 20;
/// Entries under way at a time. One is being synced while the next is being filled; more would only
/// make each smaller.
const ENTRIES_MAX: usize = 4;
/// How stale log time may become while there are only reads.
const NUDGE_EVERY: Duration = Duration::from_secs(5);

/// Why a command was not carried out, as far as this member knows. It may still be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum ProposeError {
    /// Too much waits already.
    Busy,
    /// This member does not lead; this one does, if that is known.
    NotLeader(Option<MemberId>),
    /// The member is stopping.
    Stopped,
}

type Answer = Result<Reply, ProposeError>;

/// A command that waits, or none where only log time is wanted.
struct Waiting {
    command: Option<Command>,
    bytes: usize,
    answer: oneshot::Sender<Answer>,
    _bytes_permit: OwnedSemaphorePermit,
}

/// Where commands are handed in. Clones hand in to the same batcher.
#[derive(Clone, Debug)]
pub(crate) struct Proposer {
    queue: mpsc::Sender<Waiting>,
    bytes: Arc<Semaphore>,
    nudged: Arc<Mutex<Option<Instant>>>,
}

/// What the batcher works with.
pub(crate) struct Batcher {
    pub(crate) leadership: Leadership,
    pub(crate) group: Arc<Group>,
    pub(crate) peers: Peers,
    pub(crate) tick_every: Duration,
}

impl Proposer {
    /// Starts the batcher as a task of `shutdown`; it ends with it.
    pub(crate) fn start(batcher: Batcher, shutdown: &Shutdown) -> Self {
        let (queue, waiting) = mpsc::channel(WAITING_MAX);
        let part = shutdown.clone();
        shutdown.spawn("batcher", async move {
            tokio::select! {
                () = part.cancelled() => {}
                () = batcher.run(waiting, &part) => {}
            }
        });
        let bytes = Arc::new(Semaphore::new(WAITING_BYTES_MAX));
        Self { queue, bytes, nudged: Arc::default() }
    }

    /// Has a command carried out.
    pub(crate) async fn propose(&self, command: Command) -> Answer {
        let bytes = match &command {
            Command::Submission(bytes) => bytes.len(),
            // Small, and few: their length only has to be of the right order.
            Command::System(_) => 1024,
        };
        self.wait(Some(command), bytes).await
    }

    /// Has log time moved to now, if it was not lately.
    pub(crate) async fn tick(&self) -> Result<(), ProposeError> {
        self.wait(None, 0).await.map(|_| ())
    }

    /// Has log time moved soon, if nobody asked for that lately; does not wait for it. Reads do this,
    /// so that sessions run out where nobody writes.
    pub(crate) fn nudge_tick(&self) {
        let mut nudged = self.nudged.lock().unwrap_or_else(PoisonError::into_inner);
        if nudged.is_none_or(|last| last.elapsed() >= NUDGE_EVERY) {
            *nudged = Some(Instant::now());
            // If the queue is full, log time moves anyway.
            let _ = self.enqueue(None, 0);
        }
    }

    async fn wait(&self, command: Option<Command>, bytes: usize) -> Answer {
        let answer = self.enqueue(command, bytes)?;
        answer.await.unwrap_or(Err(ProposeError::Stopped))
    }

    fn enqueue(
        &self,
        command: Option<Command>,
        bytes: usize,
    ) -> Result<oneshot::Receiver<Answer>, ProposeError> {
        let permits = u32::try_from(bytes).map_err(|_| ProposeError::Busy)?;
        let permit = Arc::clone(&self.bytes)
            .try_acquire_many_owned(permits)
            .map_err(|_| ProposeError::Busy)?;
        let (answer, receiver) = oneshot::channel();
        let waiting = Waiting { command, bytes, answer, _bytes_permit: permit };
        match self.queue.try_send(waiting) {
            Ok(()) => Ok(receiver),
            Err(mpsc::error::TrySendError::Full(_)) => Err(ProposeError::Busy),
            Err(mpsc::error::TrySendError::Closed(_)) => Err(ProposeError::Stopped),
        }
    }
}

/// Whether a cluster begins with this batch.
fn founds(batch: &[Waiting]) -> bool {
    let is_genesis =
        |command: &Command| matches!(command, Command::System(SystemOp::Genesis { .. }));
    batch.iter().any(|waiting| waiting.command.as_ref().is_some_and(is_genesis))
}

impl Batcher {
    async fn run(self, mut queue: mpsc::Receiver<Waiting>, shutdown: &Shutdown) {
        let under_way = Arc::new(Semaphore::new(ENTRIES_MAX));
        let mut last_tick: Option<Instant> = None;
        // Taken from the queue, but too large for the entry before.
        let mut carried: Option<Waiting> = None;
        loop {
            let first = match carried.take() {
                Some(waiting) => waiting,
                None => match queue.recv().await {
                    Some(waiting) => waiting,
                    None => return,
                },
            };
            // While we wait for a place, more comes into the queue: the slower the disks, the
            // larger the entries.
            let Ok(place) = Arc::clone(&under_way).acquire_owned().await else { return };
            let batch = gather(first, &mut queue, &mut carried);
            if let Some(refusal) = self.refusal() {
                answer_all(batch, refusal);
                continue;
            }
            // Those before the genesis did not count.
            let due = last_tick.is_none_or(|last| last.elapsed() >= self.tick_every);
            let tick =
                if due || founds(&batch) { readings(&self.group, &self.peers).await } else { None };
            if tick.is_some() {
                last_tick = Some(Instant::now());
            }
            self.send(batch, tick.map(|readings| SystemOp::Tick { readings }), place, shutdown)
                .await;
        }
    }

    /// Why nothing can be proposed here now, if so.
    fn refusal(&self) -> Option<ProposeError> {
        let leader = self.leadership.leader();
        (leader != Some(self.group.me)).then_some(ProposeError::NotLeader(leader))
    }

    /// Proposes one entry, and leaves a task behind that hands out what becomes of it.
    async fn send(
        &self,
        batch: Vec<Waiting>,
        tick: Option<SystemOp>,
        place: OwnedSemaphorePermit,
        shutdown: &Shutdown,
    ) {
        // Before there is a cluster no tick counts, so the one with the genesis comes after it.
        let (first, last) = if founds(&batch) { (None, tick) } else { (tick, None) };
        let ticks = usize::from(first.is_some());
        let mut commands: Vec<Command> = first.into_iter().map(Command::System).collect();
        let mut answers = Vec::with_capacity(batch.len());
        for Waiting { command, answer, _bytes_permit: permit, .. } in batch {
            answers.push((answer, command.is_some(), permit));
            commands.extend(command);
        }
        commands.extend(last.map(Command::System));
        if commands.is_empty() {
            // Only log time was wanted, and it moved lately.
            for (answer, ..) in answers {
                let _ = answer.send(Ok(Reply::System));
            }
            return;
        }
        let sent = self.leadership.raft.client_write_ff(Proposal::new(&commands)).await;
        drop(commands);
        shutdown.spawn("entry", async move {
            let result = match sent {
                Ok(written) => match written.await {
                    Ok(Ok(response)) => Ok(response.data),
                    Ok(Err(ClientWriteError::ForwardToLeader(to))) => {
                        Err(ProposeError::NotLeader(to.leader_id.map(MemberId::from_u64)))
                    }
                    // Memberships are not changed by this path.
                    Ok(Err(ClientWriteError::ChangeMembershipError(_))) | Err(_) => {
                        Err(ProposeError::Stopped)
                    }
                },
                Err(_) => Err(ProposeError::Stopped),
            };
            drop(place);
            hand_out(answers, ticks, result);
        });
    }
}

/// What goes into one entry together with `first`.
fn gather(
    first: Waiting,
    queue: &mut mpsc::Receiver<Waiting>,
    carried: &mut Option<Waiting>,
) -> Vec<Waiting> {
    let mut bytes = first.bytes;
    let mut batch = vec![first];
    while batch.len() < ENTRY_COMMANDS_MAX {
        let Ok(next) = queue.try_recv() else { break };
        if bytes + next.bytes > ENTRY_BYTES_MAX {
            *carried = Some(next);
            break;
        }
        bytes += next.bytes;
        batch.push(next);
    }
    batch
}

fn answer_all(batch: Vec<Waiting>, error: ProposeError) {
    for waiting in batch {
        // Whoever asked may have gone.
        let _ = waiting.answer.send(Err(error));
    }
}

fn hand_out(
    answers: Vec<(oneshot::Sender<Answer>, bool, OwnedSemaphorePermit)>,
    ticks: usize,
    result: Result<Replies, ProposeError>,
) {
    match result {
        Ok(Replies(replies)) => {
            let mut replies = replies.into_iter().skip(ticks);
            for (answer, has_command, _permit) in answers {
                let reply = if has_command { replies.next() } else { Some(Reply::System) };
                let _ = answer.send(reply.ok_or(ProposeError::Stopped));
            }
        }
        Err(error) => {
            for (answer, ..) in answers {
                let _ = answer.send(Err(error));
            }
        }
    }
}
