//! Stopping in order: one token says that it is time, one tracker knows who is still at work.

use std::fmt;
use std::future::Future;
use std::io;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use opentelemetry::context::FutureExt;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, WaitForCancellationFuture};
use tokio_util::task::TaskTracker;

/// Why the process stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// SIGTERM or SIGINT.
    Signal,
    /// A part of the process asked for it.
    Requested(&'static str),
    /// A task panicked; what it kept in memory can no longer be trusted.
    Panicked(&'static str),
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Signal => f.write_str("a signal asked for it"),
            Self::Requested(why) => f.write_str(why),
            Self::Panicked(task) => write!(f, "the task {task} panicked"),
        }
    }
}

/// Tasks that were still running when the wait was over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{tasks} tasks were still running after {} ms", waited.as_millis())]
pub struct Undrained {
    /// How many.
    pub tasks: usize,
    /// How long they were given.
    pub waited: Duration,
}

/// The stopping of a process, or of a part of it. Clones are the same part.
#[derive(Clone, Debug)]
pub struct Shutdown {
    token: CancellationToken,
    /// The trackers of this part and of all it is part of, the outermost first.
    trackers: Vec<TaskTracker>,
    /// The token of the whole process.
    root: CancellationToken,
    cause: Arc<OnceLock<Cause>>,
}

impl Shutdown {
    /// A process that runs.
    pub fn new() -> Self {
        let token = CancellationToken::new();
        Self {
            root: token.clone(),
            token,
            trackers: vec![TaskTracker::new()],
            cause: Arc::new(OnceLock::new()),
        }
    }

    /// Stops the process at the first SIGTERM or SIGINT. A second one is left without effect: what
    /// is slow to stop is bounded by [`Self::drain`], and SIGKILL is there for the rest.
    pub fn listen_for_signals(&self) -> io::Result<JoinHandle<()>> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let shutdown = self.clone();
        Ok(tokio::spawn(async move {
            tokio::select! {
                _ = terminate.recv() => shutdown.stop(Cause::Signal),
                _ = interrupt.recv() => shutdown.stop(Cause::Signal),
                () = shutdown.root.cancelled() => {}
            }
        }))
    }

    /// Stops the whole process, of which this may be a part.
    pub fn request(&self, why: &'static str) {
        self.stop(Cause::Requested(why));
    }

    /// Stops this part only.
    pub fn cancel(&self) {
        self.token.cancel();
    }

    /// Completes when it is time to stop.
    pub fn cancelled(&self) -> WaitForCancellationFuture<'_> {
        self.token.cancelled()
    }

    /// Whether it is time to stop.
    pub fn is_cancelled(&self) -> bool {
        self.token.is_cancelled()
    }

    /// The token itself, for those who want nothing else.
    pub fn token(&self) -> CancellationToken {
        self.token.clone()
    }

    /// Why the process stops, once it does.
    pub fn cause(&self) -> Option<Cause> {
        self.cause.get().copied()
    }

    /// A part that stops with this one, or before it. Its tasks count for both.
    pub fn child(&self) -> Self {
        let mut trackers = self.trackers.clone();
        trackers.push(TaskTracker::new());
        Self {
            token: self.token.child_token(),
            trackers,
            root: self.root.clone(),
            cause: Arc::clone(&self.cause),
        }
    }

    /// Runs a task that [`Self::drain`] waits for. The task has to watch [`Self::cancelled`] itself.
    /// If it panics, the whole process is told to stop. Started while a call is handled, it counts as
    /// part of that call in traces.
    pub fn spawn<F>(&self, name: &'static str, task: F) -> JoinHandle<F::Output>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        let at_work: Vec<_> = self.trackers.iter().map(TaskTracker::token).collect();
        let watch = PanicWatch { name, shutdown: self.clone() };
        let task = task.with_current_context();
        tokio::spawn(async move {
            let _at_work = at_work;
            let _watch = watch;
            task.await
        })
    }

    /// Waits until all tasks of this part have ended, at most `limit`. It cancels nothing: do that
    /// before.
    pub async fn drain(&self, limit: Duration) -> Result<(), Undrained> {
        let tracker = self.trackers.last().expect("there is always one");
        tracker.close();
        match tokio::time::timeout(limit, tracker.wait()).await {
            Ok(()) => Ok(()),
            Err(_) => Err(Undrained { tasks: tracker.len(), waited: limit }),
        }
    }

    fn stop(&self, cause: Cause) {
        if self.cause.set(cause).is_ok() {
            tracing::info!(%cause, "stopping");
        }
        self.root.cancel();
    }
}

impl Default for Shutdown {
    fn default() -> Self {
        Self::new()
    }
}

/// Notices that the task that owns it is unwinding.
struct PanicWatch {
    name: &'static str,
    shutdown: Shutdown,
}

impl Drop for PanicWatch {
    fn drop(&mut self) {
        if std::thread::panicking() {
            tracing::error!(task = self.name, "a task panicked");
            self.shutdown.stop(Cause::Panicked(self.name));
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use tokio::sync::oneshot;

    use super::*;

    const LONG: Duration = Duration::from_secs(30);

    #[tokio::test]
    async fn drain_waits_for_the_tasks_of_parts_too() {
        let shutdown = Shutdown::new();
        let part = shutdown.child();
        let (release, held) = oneshot::channel::<()>();
        part.spawn("held", held);
        let refused = shutdown.drain(Duration::ZERO).await.unwrap_err();
        assert_eq!(refused.tasks, 1);
        assert_eq!(part.drain(Duration::ZERO).await.unwrap_err().tasks, 1);
        release.send(()).unwrap();
        shutdown.drain(LONG).await.unwrap();
        part.drain(LONG).await.unwrap();
    }

    #[tokio::test]
    async fn a_part_stops_alone_or_with_the_whole() {
        let shutdown = Shutdown::new();
        let (first, second) = (shutdown.child(), shutdown.child());
        first.cancel();
        assert!(first.is_cancelled() && !second.is_cancelled() && !shutdown.is_cancelled());
        assert_eq!(shutdown.cause(), None);
        second.request("enough");
        second.cancelled().await;
        assert!(shutdown.is_cancelled());
        shutdown.request("later causes do not count");
        assert_eq!(shutdown.cause(), Some(Cause::Requested("enough")));
    }

    #[tokio::test]
    async fn a_panicking_task_stops_the_process() {
        let shutdown = Shutdown::new();
        let part = shutdown.child();
        let task = part.spawn("fragile", async { panic!("expected by the test") });
        shutdown.cancelled().await;
        assert_eq!(shutdown.cause(), Some(Cause::Panicked("fragile")));
        let joined: Result<(), _> = task.await;
        assert!(joined.unwrap_err().is_panic());
        shutdown.drain(LONG).await.unwrap();
    }

    #[tokio::test]
    async fn a_signal_stops_the_process() {
        let shutdown = Shutdown::new();
        let listening = shutdown.listen_for_signals().unwrap();
        rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::TERM)
            .unwrap();
        tokio::time::timeout(LONG, shutdown.cancelled()).await.unwrap();
        listening.await.unwrap();
        assert_eq!(shutdown.cause(), Some(Cause::Signal));
    }
}
