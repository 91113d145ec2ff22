//! The metadata group and its clients in one thread, over a network and disks whose faults come from a
//! seed, in a time that passes as fast as there is nothing to do.
//!
//! What is real: the whole of a member as [`Running::start`] makes it (openraft, batching, read index,
//! forwarding, the services, RocksDB on files), gRPC with its encoding between all of them, and bundles
//! signed by session keys. What is simulated: connections, which have no TCP and no TLS below them
//! ([`net`]); how long a disk takes; the clock; and crashes ([`group`]), which lose what was not synced.
//!
//! Time is tokio's, paused: it goes on when every task waits. So work for the disk runs in its place
//! ([`on_disk`]) instead of on a thread of its own, which the simulated time would have to wait for.
//!
//! What a seed decides: what clients want and when, which fault comes when and whom it meets, how each
//! message between two hosts fares, how long the disk takes, and how elections are timed. Each part draws
//! from numbers of its own, so that one more message between two hosts changes nothing between others.
//! What it does not decide: the ids and keys of a group, which are random (places go by the order of the
//! ids, so they change no order), what tokio's `select!` draws, and the threads that are left (RocksDB's
//! own, the closing of a dead member's store, the reloading of certificates). `a_seed_repeats_its_run`
//! shows that runs come out the same, to the last row, all the same; if one ever does not, the schedule of
//! faults still is that of its seed.
//!
//! Not part of it yet: disks that fail, clocks that differ between members, changes of the group.

use std::cell::RefCell;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use coffer_history::Numbers;
use coffer_model::id::MemberId;
use opaque_ke::rand::{Error, RngCore};
use openraft::{AsyncRuntime, OptionalSend, TokioRuntime};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};

use self::net::{Line, Net};
use crate::snapshot::{Header, stream};
use crate::store::{StoreError, View};

mod clients;
mod faults;
mod group;
mod net;
mod oracle;
mod play;
mod tests;

/// A promise that is broken on purpose, to see that it is noticed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Flaw {
    /// Entries count as durable when they are written, and are lost in a crash.
    AcknowledgesTooEarly,
    /// Reads are answered without asking who leads.
    ReadsUnconfirmed,
    /// A repeated request is carried out again.
    ForgetsRepeats,
}

/// When a simulation begins, in milliseconds since the Unix epoch.
const BEGIN_UNIX_MS: u64 = 1_700_000_000_000;

/// What the product's hooks find while a simulation runs on their thread.
struct Simulation {
    flaw: Option<Flaw>,
    began: Instant,
    net: Arc<Net>,
    elections: Mutex<Numbers>,
    disk: Mutex<Numbers>,
}

thread_local! {
    static PRESENT: RefCell<Option<Arc<Simulation>>> = const { RefCell::new(None) };
}

fn present() -> Option<Arc<Simulation>> {
    PRESENT.with_borrow(Clone::clone)
}

/// Whether a simulation runs on this thread.
pub(crate) fn is_on() -> bool {
    present().is_some()
}

/// Whether this promise is to be broken.
pub(crate) fn flawed(flaw: Flaw) -> bool {
    present().is_some_and(|simulation| simulation.flaw == Some(flaw))
}

/// What a simulated clock says.
pub(crate) fn unix_ms() -> Option<u64> {
    present().map(|simulation| {
        let passed = simulation.began.elapsed().as_millis();
        BEGIN_UNIX_MS + u64::try_from(passed).unwrap()
    })
}

/// The simulated line from the member that is being started to another one.
pub(crate) fn line_to(member: MemberId) -> Option<Line> {
    let simulation = present()?;
    let (from, alive) = group::starting()?;
    Some(Line::new(&simulation.net, from, alive, simulation.net.host_of(member)?))
}

/// Runs work for the disk in its place. It takes a moment before and after, in which a crash can come;
/// now and then a long one.
pub(crate) async fn on_disk<T>(work: impl FnOnce() -> T) -> T {
    let simulation = present().expect("it is only called while a simulation runs");
    let (before, after) = {
        let mut disk = simulation.disk.lock().unwrap();
        let mut moment = || match disk.below(64) {
            0 => disk.below(60),
            1..8 => 1 + disk.below(4),
            _ => 0,
        };
        (moment(), moment())
    };
    drop(simulation);
    pause(before).await;
    let done = work();
    pause(after).await;
    done
}

/// Hands on the messages of a snapshot as they are taken.
pub(crate) async fn read_ahead<M>(
    header: Header,
    view: Arc<View>,
    pieces: mpsc::Sender<M>,
    made: impl Fn(Vec<u8>) -> M,
) -> Result<(), StoreError> {
    let mut messages = Vec::new();
    let read = on_disk(|| {
        stream(&header, &view, |message| {
            messages.push(message);
            true
        })
    });
    read.await?;
    drop(view);
    for message in messages {
        if pieces.send(made(message)).await.is_err() {
            break;
        }
    }
    Ok(())
}

async fn pause(ms: u64) {
    if ms > 0 {
        sleep(Duration::from_millis(ms)).await;
    }
}

/// tokio, but for the randomness of elections.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Runtime;

impl AsyncRuntime for Runtime {
    type JoinError = <TokioRuntime as AsyncRuntime>::JoinError;
    type JoinHandle<T: OptionalSend + 'static> = <TokioRuntime as AsyncRuntime>::JoinHandle<T>;
    type Sleep = <TokioRuntime as AsyncRuntime>::Sleep;
    type Instant = <TokioRuntime as AsyncRuntime>::Instant;
    type TimeoutError = <TokioRuntime as AsyncRuntime>::TimeoutError;
    type Timeout<R, T: Future<Output = R> + OptionalSend> =
        <TokioRuntime as AsyncRuntime>::Timeout<R, T>;
    type ThreadLocalRng = Elections;
    type OneshotSender<T: OptionalSend> = <TokioRuntime as AsyncRuntime>::OneshotSender<T>;
    type OneshotReceiver<T: OptionalSend> = <TokioRuntime as AsyncRuntime>::OneshotReceiver<T>;
    type OneshotReceiverError = <TokioRuntime as AsyncRuntime>::OneshotReceiverError;

    fn spawn<T>(future: T) -> Self::JoinHandle<T::Output>
    where
        T: Future + OptionalSend + 'static,
        T::Output: OptionalSend + 'static,
    {
        TokioRuntime::spawn(future)
    }

    fn sleep(duration: Duration) -> Self::Sleep {
        TokioRuntime::sleep(duration)
    }

    fn sleep_until(deadline: Self::Instant) -> Self::Sleep {
        TokioRuntime::sleep_until(deadline)
    }

    fn timeout<R, F: Future<Output = R> + OptionalSend>(
        duration: Duration,
        future: F,
    ) -> Self::Timeout<R, F> {
        TokioRuntime::timeout(duration, future)
    }

    fn timeout_at<R, F: Future<Output = R> + OptionalSend>(
        deadline: Self::Instant,
        future: F,
    ) -> Self::Timeout<R, F> {
        TokioRuntime::timeout_at(deadline, future)
    }

    fn is_panic(join_error: &Self::JoinError) -> bool {
        TokioRuntime::is_panic(join_error)
    }

    fn thread_rng() -> Elections {
        Elections
    }

    fn oneshot<T: OptionalSend>() -> (Self::OneshotSender<T>, Self::OneshotReceiver<T>) {
        TokioRuntime::oneshot()
    }
}

/// Where openraft draws how long it waits for a leader: from the seed, or, in a test that is no
/// simulation, from the system.
pub(crate) struct Elections;

impl RngCore for Elections {
    fn next_u32(&mut self) -> u32 {
        let [a, b, c, d, ..] = self.next_u64().to_le_bytes();
        u32::from_le_bytes([a, b, c, d])
    }

    fn next_u64(&mut self) -> u64 {
        match present() {
            Some(simulation) => simulation.elections.lock().unwrap().next_number(),
            None => getrandom::u64().unwrap(),
        }
    }

    fn fill_bytes(&mut self, bytes: &mut [u8]) {
        for part in bytes.chunks_mut(8) {
            part.copy_from_slice(&self.next_u64().to_le_bytes()[..part.len()]);
        }
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Error> {
        self.fill_bytes(bytes);
        Ok(())
    }
}
