//! Making one tree like another, in one direction: a local directory like a remote one, or the other way
//! round. Each name of the source is compared with the target's; what differs is told, and put right
//! only where that was asked for.
//!
//! Memory does not grow with the trees: names are compared a page at a time, and what only the target
//! has is found by going through the target and asking the source. What is compared, and what follows
//! from it, is in [`verdict`]; the two directions only fetch the facts and act.

use std::path::Path;
use std::sync::Arc;

use coffer_model::name::RemotePath;
use coffer_model::object::Kind;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;

use crate::content::{Content, FileReader};
use crate::error::ClientError;
use crate::node::Found;
use crate::options::SyncOptions;
use crate::progress::{FAILURES_MAX, Progress};
use crate::session::{Session, Stat};
use crate::source::Source;

mod to_local;
mod to_remote;

/// Files under way at a time; the bytes of their chunks are bounded by the session's budget.
const FILES_IN_FLIGHT: usize = 64;
/// Files of more than a slot among them.
const LARGE_IN_FLIGHT: usize = 8;
const LARGE_BYTES_MIN: u64 = 1 << 20;
/// Files whose content is compared at a time.
const COMPARED_AT_ONCE: usize = 8;

/// What is done about a difference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The target lacks it.
    Add,
    /// The target has another one; what differs.
    Change(&'static str),
    /// Only the target has it.
    Delete,
}

/// One name that differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// What is to be done.
    pub step: Step,
    /// Where, below the root of both trees; `.` is the root itself.
    pub path: String,
    /// What it is.
    pub kind: Kind,
    /// Bytes of content that are to be moved.
    pub bytes: u64,
}

/// What became of two trees; or, where nothing was to be done, what would.
#[derive(Clone, Debug, Default)]
pub struct SyncReport {
    /// Names the target lacked.
    pub added: u64,
    /// Names that differed.
    pub changed: u64,
    /// Names that only the target had. A directory counts once, with everything in it.
    pub deleted: u64,
    /// Names that were the same.
    pub unchanged: u64,
    /// Bytes of content.
    pub bytes: u64,
    /// What failed: path and reason, the first [`FAILURES_MAX`].
    pub failures: Vec<(String, ClientError)>,
    /// How many failed in all.
    pub failed: u64,
}

impl Session {
    /// Makes a remote directory like a local one.
    pub async fn sync_to_remote(
        &self,
        local: &Path,
        remote: &RemotePath,
        options: &SyncOptions,
        progress: Arc<dyn Progress>,
    ) -> Result<SyncReport, ClientError> {
        let pass = Pass::new(self, options, progress);
        to_remote::run(pass, local, remote).await
    }

    /// Makes a local directory like a remote one.
    pub async fn sync_to_local(
        &self,
        remote: &RemotePath,
        local: &Path,
        options: &SyncOptions,
        progress: Arc<dyn Progress>,
    ) -> Result<SyncReport, ClientError> {
        let pass = Pass::new(self, options, progress);
        to_local::run(pass, remote, local).await
    }
}

/// What follows from comparing a name of the source with that of the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Same,
    Missing,
    /// A file here and a directory there, or the like.
    OtherKind,
    Content(&'static str),
    Attributes(&'static str),
}

/// Compares two names. `same_content` is what reading both of them told, where that was asked for.
fn verdict(source: &Stat, target: Option<&Stat>, same_content: Option<bool>) -> Verdict {
    let Some(target) = target else { return Verdict::Missing };
    if source.kind != target.kind {
        return Verdict::OtherKind;
    }
    let attributes = match (source.mode == target.mode, source.mtime_ns == target.mtime_ns) {
        (true, true) => Verdict::Same,
        (false, _) => Verdict::Attributes("mode"),
        (true, false) => Verdict::Attributes("time"),
    };
    match (source.kind, same_content) {
        // A link is where it points; its mode means nothing, and not every system keeps its time.
        (Kind::Symlink, _) if source.target == target.target => Verdict::Same,
        (Kind::Symlink, _) => Verdict::Content("target"),
        (Kind::Directory, _) => attributes,
        _ if source.length != target.length => Verdict::Content("size"),
        (_, Some(false)) => Verdict::Content("content"),
        (_, Some(true)) => attributes,
        (_, None) if source.mtime_ns != target.mtime_ns => Verdict::Content("time"),
        (_, None) => attributes,
    }
}

/// Whether only reading can tell that two names are the same.
fn needs_reading(source: &Stat, target: Option<&Stat>, options: &SyncOptions) -> bool {
    options.compare_content
        && source.kind == Kind::File
        && target.is_some_and(|it| it.kind == Kind::File && it.length == source.length)
}

/// What has another kind there stays, unless deleting was allowed.
fn in_the_way(target: &Stat) -> ClientError {
    let what = match target.kind {
        Kind::Directory => "a directory",
        Kind::File => "a file",
        Kind::Symlink => "a symbolic link",
        Kind::Fifo | Kind::Device => "a pipe, socket or device",
    };
    ClientError::Exists { what: format!("{what} of this name") }
}

/// A path below the root.
fn below(above: &str, name: &str) -> String {
    if above.is_empty() { name.to_owned() } else { format!("{above}/{name}") }
}

impl Session {
    /// Whether a remote file has the content of a local one. Both are read up to the first difference.
    async fn has_content_of(
        &self,
        found: &Found,
        shown: &str,
        local: Source,
    ) -> Result<bool, ClientError> {
        let content = Content::current(self, found, shown)?;
        let length = content.length;
        if local.length() != Some(length) {
            return Ok(false);
        }
        let mut reader = FileReader::new(self, content, 0, length);
        let mut offset = 0;
        while let Some(theirs) = reader.next().await? {
            match local.read_off(offset, theirs.len()).await {
                Ok(ours) if ours == *theirs => {}
                Ok(_) | Err(ClientError::SourceChanged { .. }) => return Ok(false),
                Err(error) => return Err(error),
            }
            offset += u64::try_from(theirs.len()).unwrap_or(u64::MAX);
        }
        Ok(true)
    }
}

type Finished = (Difference, Result<(), ClientError>);

/// One comparison of two trees, in either direction.
struct Pass {
    session: Session,
    options: SyncOptions,
    progress: Arc<dyn Progress>,
    files: Arc<Semaphore>,
    large: Arc<Semaphore>,
    report: SyncReport,
    tasks: JoinSet<Finished>,
    hopeless: Option<ClientError>,
}

impl Pass {
    fn new(session: &Session, options: &SyncOptions, progress: Arc<dyn Progress>) -> Self {
        Self {
            session: session.clone(),
            options: options.clone(),
            progress,
            files: Arc::new(Semaphore::new(FILES_IN_FLIGHT)),
            large: Arc::new(Semaphore::new(LARGE_IN_FLIGHT)),
            report: SyncReport::default(),
            tasks: JoinSet::new(),
            hopeless: None,
        }
    }

    /// Tells of a difference, and puts it right beside others where that was asked for.
    async fn settle(
        &mut self,
        difference: Difference,
        work: impl Future<Output = Result<(), ClientError>> + Send + 'static,
    ) -> Result<(), ClientError> {
        self.progress.differs(&difference);
        if !self.options.apply {
            self.count((difference, Ok(())));
            return Ok(());
        }
        let room = self.room(difference.bytes).await?;
        self.tasks.spawn(async move {
            let done = work.await;
            drop(room);
            (difference, done)
        });
        Ok(())
    }

    /// As [`Self::settle`], for what the next steps need: they wait for it. Whether it is done.
    async fn settle_now(
        &mut self,
        difference: Difference,
        work: impl Future<Output = Result<(), ClientError>>,
    ) -> Result<bool, ClientError> {
        self.progress.differs(&difference);
        let done = if self.options.apply { work.await } else { Ok(()) };
        let well = done.is_ok();
        self.count((difference, done));
        self.reap()?;
        Ok(well)
    }

    /// Waits until another file may be under way.
    async fn room(&mut self, bytes: u64) -> Result<Vec<OwnedSemaphorePermit>, ClientError> {
        let mut room = Vec::new();
        let large = (bytes >= LARGE_BYTES_MIN).then(|| Arc::clone(&self.large));
        for semaphore in [Some(Arc::clone(&self.files)), large].into_iter().flatten() {
            room.push(semaphore.acquire_owned().await.map_err(|_| ClientError::Stopped)?);
        }
        self.reap()?;
        Ok(room)
    }

    /// Counts what is done. A failure that every other name would meet as well ends the walk.
    fn reap(&mut self) -> Result<(), ClientError> {
        while let Some(done) = self.tasks.try_join_next() {
            self.count(done.map_err(|_| ClientError::Stopped)?);
        }
        match self.hopeless.take() {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    fn count(&mut self, (difference, done): Finished) {
        if let Err(error) = done {
            return self.fail(difference.path, error);
        }
        match difference.step {
            Step::Add => self.report.added += 1,
            Step::Change(_) => self.report.changed += 1,
            Step::Delete => self.report.deleted += 1,
        }
        self.report.bytes += difference.bytes;
        if self.options.apply && difference.kind != Kind::Directory {
            self.progress.done(&difference.path);
        }
    }

    fn fail(&mut self, path: String, error: ClientError) {
        if error.is_hopeless() {
            self.hopeless = Some(error.clone());
        }
        self.progress.failed(&path, &error);
        self.report.failed += 1;
        if self.report.failures.len() < FAILURES_MAX {
            self.report.failures.push((path, error));
        }
    }

    async fn finish(mut self) -> Result<SyncReport, ClientError> {
        while let Some(done) = self.tasks.join_next().await {
            self.count(done.map_err(|_| ClientError::Stopped)?);
        }
        self.session.save_marks().await?;
        Ok(self.report)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stat(kind: Kind, mode: u32, mtime_ns: i64, length: u64) -> Stat {
        Stat { inode: None, kind, mode, mtime_ns, length, version: 0, class: None, target: None }
    }

    #[test]
    fn what_follows_from_a_comparison() {
        let file = stat(Kind::File, 0o644, 5, 10);
        let rows: &[(Stat, Option<bool>, Verdict)] = &[
            (file.clone(), None, Verdict::Same),
            (file.clone(), Some(true), Verdict::Same),
            (file.clone(), Some(false), Verdict::Content("content")),
            (Stat { length: 11, ..file.clone() }, None, Verdict::Content("size")),
            (Stat { mtime_ns: 6, ..file.clone() }, None, Verdict::Content("time")),
            (Stat { mtime_ns: 6, ..file.clone() }, Some(true), Verdict::Attributes("time")),
            (Stat { mode: 0o600, ..file.clone() }, None, Verdict::Attributes("mode")),
            (stat(Kind::Directory, 0o644, 5, 10), None, Verdict::OtherKind),
        ];
        for (target, same_content, expected) in rows {
            assert_eq!(verdict(&file, Some(target), *same_content), *expected, "{target:?}");
        }
        assert_eq!(verdict(&file, None, None), Verdict::Missing);
        let link = |to: &str| Stat { target: Some(to.into()), ..stat(Kind::Symlink, 0o777, 1, 1) };
        let later = Stat { mtime_ns: 9, mode: 0, ..link("a") };
        assert_eq!(verdict(&link("a"), Some(&later), None), Verdict::Same);
        assert_eq!(verdict(&link("a"), Some(&link("b")), None), Verdict::Content("target"));
        let directory = stat(Kind::Directory, 0o755, 1, 0);
        let target = Stat { mtime_ns: 2, ..directory.clone() };
        assert_eq!(verdict(&directory, Some(&target), None), Verdict::Attributes("time"));
    }
}
