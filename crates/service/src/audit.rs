//! The audit log: one JSON object a line for every call a process answered: who, from where, what
//! about, allowed or not and why. Ids only: no name, no content, no key.
//!
//! Events go through a bounded queue to a thread that writes. A call never waits for it; an event that
//! finds the queue full is lost, and counted.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use prometheus::IntCounter;
use serde::Serialize;

use crate::telemetry::spawn_thread;

/// Events that wait to be written.
const QUEUE_EVENTS: usize = 16 * 1024;
/// A file that has grown to this is set aside and a new one begun.
const FILE_BYTES_MAX: u64 = 64 << 20;
/// How many files that were set aside are kept.
const FILES_KEPT: u32 = 8;
/// What was written is given to the system at least this often.
const FLUSH_EVERY: Duration = Duration::from_millis(200);

/// The path that stands for this process's standard output, whatever that is: nothing is set aside there.
const STDOUT: &str = "/dev/stdout";

/// What became of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Decision {
    /// It was done.
    Allowed,
    /// Whoever called may not do this, or did not prove who they are.
    Denied,
    /// It was not done for another reason.
    Failed,
}

/// One call.
#[derive(Clone, Debug, Serialize)]
pub struct Event<'a> {
    /// When it was answered, in milliseconds since the Unix epoch, by this machine's clock.
    pub time_ms: u64,
    /// What kind of process answered.
    pub role: &'a str,
    /// The method.
    pub method: &'a str,
    /// Where the call came from.
    pub from: Option<String>,
    /// The process that called, where it showed a certificate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub process: Option<String>,
    /// Who the call is for.
    #[serde(flatten)]
    pub subject: Subject,
    /// What became of it.
    pub decision: Decision,
    /// The gRPC code.
    pub code: &'a str,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<&'a str>,
    /// How long it took until the answer began.
    pub micros: u64,
}

/// What only the one who handles a call knows of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Subject {
    /// The session, by its certificate's hash.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session: Option<String>,
    /// The user.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub principal: Option<String>,
    /// What the call is about: an id, or how many of what.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub object: Option<String>,
}

/// Filled in by whoever handles a call; it is among the request's extensions.
#[derive(Clone, Debug, Default)]
pub struct Note(Arc<Mutex<Subject>>);

impl Note {
    /// Adds what is known.
    pub fn add(&self, add: impl FnOnce(&mut Subject)) {
        add(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }

    pub(crate) fn take(&self) -> Subject {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What a request's handler adds to, for one that hands the request on before it knows.
pub fn note_of<T>(request: &tonic::Request<T>) -> Note {
    request.extensions().get::<Note>().cloned().unwrap_or_default()
}

/// Adds to what the audit log will say of a request.
pub fn note<T>(request: &tonic::Request<T>, add: impl FnOnce(&mut Subject)) {
    if let Some(note) = request.extensions().get::<Note>() {
        note.add(add);
    }
}

/// The audit log of a process. Clones write to the same file. Dropping the last one waits until
/// everything is written.
#[derive(Clone, Debug)]
pub struct AuditLog {
    queue: Arc<Queue>,
    lost: IntCounter,
}

#[derive(Debug)]
struct Queue {
    events: Option<SyncSender<Vec<u8>>>,
    writer: Option<JoinHandle<()>>,
}

impl Drop for Queue {
    fn drop(&mut self) {
        // Without a sender the writer finishes what is queued, and ends.
        drop(self.events.take());
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
    }
}

impl AuditLog {
    /// Opens the log for adding to it. `lost` counts what could not be written.
    pub fn open(path: &Path, lost: IntCounter) -> io::Result<Self> {
        Self::with_bounds(path, lost, FILE_BYTES_MAX)
    }

    fn with_bounds(path: &Path, lost: IntCounter, file_bytes_max: u64) -> io::Result<Self> {
        let writer = Writer::open(path, file_bytes_max, lost.clone())?;
        let (events, queue) = sync_channel(QUEUE_EVENTS);
        let writer = Some(spawn_thread("audit", move || writer.run(&queue))?);
        Ok(Self { queue: Arc::new(Queue { events: Some(events), writer }), lost })
    }

    /// Writes an event, or counts it as lost.
    pub fn write(&self, event: &Event<'_>) {
        let Ok(mut line) = serde_json::to_vec(event) else {
            self.lost.inc();
            return;
        };
        line.push(b'\n');
        let sent = self.queue.events.as_ref().map(|events| events.try_send(line));
        if !matches!(sent, Some(Ok(()))) {
            self.lost.inc();
        }
    }
}

struct Writer {
    path: PathBuf,
    file: io::BufWriter<File>,
    bytes: u64,
    file_bytes_max: u64,
    lost: IntCounter,
    failing: bool,
}

impl Writer {
    fn open(path: &Path, file_bytes_max: u64, lost: IntCounter) -> io::Result<Self> {
        // Opened by its path, a pipe that another user made would be refused.
        let (file, file_bytes_max) = if path == Path::new(STDOUT) {
            (File::from(io::stdout().as_fd().try_clone_to_owned()?), u64::MAX)
        } else {
            (append_to(path)?, file_bytes_max)
        };
        let bytes = file.metadata()?.len();
        let file = io::BufWriter::new(file);
        Ok(Self { path: path.to_owned(), file, bytes, file_bytes_max, lost, failing: false })
    }

    fn run(mut self, queue: &Receiver<Vec<u8>>) {
        loop {
            match queue.recv_timeout(FLUSH_EVERY) {
                Ok(line) => {
                    let written = self.add(&line);
                    self.judge(written, 1);
                }
                Err(RecvTimeoutError::Timeout) => {
                    let flushed = self.file.flush();
                    self.judge(flushed, 0);
                }
                Err(RecvTimeoutError::Disconnected) => {
                    let flushed = self.file.flush();
                    self.judge(flushed, 0);
                    return;
                }
            }
        }
    }

    fn add(&mut self, line: &[u8]) -> io::Result<()> {
        if self.bytes >= self.file_bytes_max {
            self.set_aside()?;
        }
        self.file.write_all(line)?;
        self.bytes += u64::try_from(line.len()).unwrap_or(u64::MAX);
        Ok(())
    }

    /// Says that writing fails when it begins to, not at every event.
    fn judge(&mut self, done: io::Result<()>, events: u64) {
        match done {
            Ok(()) => self.failing = false,
            Err(error) => {
                self.lost.inc_by(events);
                if !self.failing {
                    tracing::error!(%error, path = %self.path.display(), "the audit log cannot be written");
                }
                self.failing = true;
            }
        }
    }

    /// `audit.jsonl` becomes `audit.jsonl.1`, that one `.2`, and so on; the oldest goes.
    fn set_aside(&mut self) -> io::Result<()> {
        self.file.flush()?;
        let aside = |number: u32| {
            let mut name = self.path.clone().into_os_string();
            name.push(format!(".{number}"));
            PathBuf::from(name)
        };
        for number in (1..FILES_KEPT).rev() {
            match std::fs::rename(aside(number), aside(number + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        std::fs::rename(&self.path, aside(1))?;
        self.file = io::BufWriter::new(append_to(&self.path)?);
        self.bytes = 0;
        Ok(())
    }
}

fn append_to(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o600).open(path)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn event(method: &str) -> Event<'_> {
        Event {
            time_ms: 1,
            role: "worker",
            method,
            from: Some("192.0.2.1:7".to_owned()),
            process: None,
            subject: Subject { principal: Some("ab".to_owned()), ..Subject::default() },
            decision: Decision::Denied,
            code: "PERMISSION_DENIED",
            reason: Some("NOT_YOURS"),
            micros: 12,
        }
    }

    fn lost() -> IntCounter {
        IntCounter::new("lost", "lost").unwrap()
    }

    #[test]
    fn an_event_is_one_line_of_json() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.jsonl");
        let log = AuditLog::open(&path, lost()).unwrap();
        log.write(&event("/a.B/C"));
        drop(log);
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().count(), 1);
        let read: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(read["decision"], "denied");
        assert_eq!(read["principal"], "ab");
        assert_eq!(read["reason"], "NOT_YOURS");
        assert!(read.get("object").is_none());
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn files_are_set_aside_and_the_oldest_goes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.jsonl");
        let line = serde_json::to_vec(&event("/a.B/C")).unwrap().len() + 1;
        let bound = u64::try_from(line * 10).unwrap();
        let log = AuditLog::with_bounds(&path, lost(), bound).unwrap();
        for _ in 0..95 {
            log.write(&event("/a.B/C"));
        }
        drop(log);
        let lines = |path: &Path| std::fs::read_to_string(path).unwrap().lines().count();
        assert_eq!(lines(&path), 5);
        for number in 1..=FILES_KEPT {
            assert_eq!(lines(&PathBuf::from(format!("{}.{number}", path.display()))), 10);
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 9);
    }

    #[test]
    fn what_cannot_be_written_is_counted() {
        let dir = tempfile::tempdir().unwrap();
        let missing = dir.path().join("nowhere/audit.jsonl");
        assert!(AuditLog::open(&missing, lost()).is_err());
        let lost = lost();
        let full = AuditLog::open(Path::new("/dev/full"), lost.clone()).unwrap();
        let large = "x".repeat(100_000);
        full.write(&event(&large));
        drop(full);
        assert_eq!(lost.get(), 1);
    }
}
