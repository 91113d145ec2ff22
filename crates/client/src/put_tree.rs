//! Putting a directory with everything in it. Directories go first, for what lies in them needs their
//! keys; the keys follow from a write id, so nothing waits for a directory to be made, only its op goes
//! ahead of the others. Many small files are under way at a time and share calls and bundles.
//!
//! Memory does not grow with the tree: a stack of open directories, and a bounded number of files.

use std::fs::{self, File, Metadata, ReadDir};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use coffer_crypto::content::Mode;
use coffer_crypto::random::write_id;
use coffer_model::chunk::ChunkClass;
use coffer_model::name::{FileName, RemotePath};
use coffer_model::object::Kind;
use coffer_model::op::Rejection;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;

use crate::error::ClientError;
use crate::node::{Directory, Found, open_attributes};
use crate::options::PutTreeOptions;
use crate::progress::{Progress, Tally, TreeReport};
use crate::resolve::Place;
use crate::session::Session;
use crate::source::Source;
use crate::upload::{Committed, Content, Target, blocking, mtime_ns};

/// Names of a directory that are handled together: as many as one question may look up.
pub(crate) const NAMES_AT_ONCE: usize = 64;
/// Files under way at a time; the bytes of their chunks are bounded by the session's budget.
const FILES_IN_FLIGHT: usize = 256;
/// Files of more than a slot among them.
const LARGE_IN_FLIGHT: usize = 8;
const LARGE_BYTES_MIN: u64 = 1 << 20;

/// What tasks of one tree share.
pub(crate) struct Job {
    session: Session,
    class: Option<ChunkClass>,
    skip_unchanged: bool,
    tally: Tally,
    progress: Arc<dyn Progress>,
    files: Arc<Semaphore>,
    large: Arc<Semaphore>,
}

/// A local directory that is being walked, with the remote one it goes to.
struct Frame {
    path: PathBuf,
    shown: String,
    remote: Arc<Directory>,
    /// Made by this walk, so nothing can be in it yet.
    fresh: bool,
    names: Option<ReadDir>,
}

/// One local name.
pub(crate) struct Local {
    pub(crate) path: PathBuf,
    pub(crate) name: FileName,
    pub(crate) found: Metadata,
}

/// What became of one name.
pub(crate) enum Done {
    File { bytes: u64 },
    Unchanged,
    Symlink,
    Directory,
}

/// A name and what became of it.
type Named = (String, Result<Done, ClientError>);

impl Session {
    /// Puts the content of a local directory into a remote one, which is made where it is missing.
    /// Modes, times and symbolic links are kept. What cannot be put is reported, and the rest goes on.
    pub async fn put_tree(
        &self,
        local: &Path,
        remote: &RemotePath,
        options: &PutTreeOptions,
        progress: Arc<dyn Progress>,
    ) -> Result<TreeReport, ClientError> {
        let found =
            fs::metadata(local).map_err(|error| ClientError::local("look at", local, error))?;
        if !found.is_dir() {
            return Err(ClientError::NotADirectory { what: local.display().to_string() });
        }
        let (root, fresh) = self.tree_root(remote).await?;
        let job = Arc::new(Job::new(self, options, progress));
        let mut walk =
            Walk { job, report: TreeReport::default(), tasks: JoinSet::new(), hopeless: None };
        if remote.names().is_empty() {
            // The home keeps its own mode and time.
        } else {
            walk.set_directory(remote, &found).await?;
        }
        let mut frames = vec![Frame {
            path: local.to_owned(),
            shown: remote.to_string(),
            remote: root,
            fresh,
            names: None,
        }];
        while let Some(mut frame) = frames.pop() {
            let names = match walk.next_names(&mut frame).await {
                Ok(names) => names,
                Err(error) => {
                    walk.fail(frame.shown, error);
                    continue;
                }
            };
            if names.is_empty() {
                continue;
            }
            let below = walk.put_names(&frame, names).await;
            // The directory itself comes back when those below it are done.
            frames.push(frame);
            frames.extend(below?);
        }
        walk.finish().await?;
        self.save_marks().await?;
        let transfer = walk.job.tally.transfer();
        Ok(TreeReport { transfer, ..walk.report })
    }

    /// The directory a tree goes to, and whether it is new.
    pub(crate) async fn tree_root(
        &self,
        path: &RemotePath,
    ) -> Result<(Arc<Directory>, bool), ClientError> {
        match self.directory(path).await {
            Ok(directory) => Ok((directory, false)),
            Err(ClientError::NotFound { .. }) => {
                self.mkdir(path, true).await?;
                Ok((self.directory(path).await?, true))
            }
            Err(error) => Err(error),
        }
    }
}

/// A walk over a local tree.
struct Walk {
    job: Arc<Job>,
    report: TreeReport,
    tasks: JoinSet<Named>,
    hopeless: Option<ClientError>,
}

impl Walk {
    /// The next names of a directory; none at its end. Names that cannot be used are reported.
    async fn next_names(&mut self, frame: &mut Frame) -> Result<Vec<Local>, ClientError> {
        loop {
            let (path, names) = (frame.path.clone(), frame.names.take());
            let (names, read, ended) =
                blocking(move || read_names(&path, names, NAMES_AT_ONCE)).await?;
            frame.names = Some(names);
            let mut usable = Vec::with_capacity(read.len());
            for one in read {
                match one {
                    Ok(local) => usable.push(local),
                    Err((path, error)) => self.fail(path, error),
                }
            }
            if ended || !usable.is_empty() {
                return Ok(usable);
            }
        }
    }

    /// Puts some names of a directory: files and symlinks as tasks, and gives the directories below.
    async fn put_names(
        &mut self,
        frame: &Frame,
        names: Vec<Local>,
    ) -> Result<Vec<Frame>, ClientError> {
        let standing = if frame.fresh {
            vec![None; names.len()]
        } else {
            let asked: Vec<FileName> = names.iter().map(|local| local.name.clone()).collect();
            self.job.session.look_up_all(&frame.remote, &asked).await?
        };
        let mut below = Vec::new();
        for (local, standing) in names.into_iter().zip(standing) {
            let shown = format!("{}/{}", frame.shown, local.name);
            if local.found.is_dir() {
                match self.put_directory(frame, &local, standing, &shown).await {
                    Ok((remote, fresh)) => {
                        below.push(Frame { path: local.path, shown, remote, fresh, names: None })
                    }
                    Err(error) => {
                        self.fail(shown, error);
                        self.reap()?;
                    }
                }
                continue;
            }
            let bytes = if local.found.is_file() { local.found.len() } else { 0 };
            self.job.progress.found(1, bytes);
            let room = self.room(bytes).await?;
            let (job, parent) = (Arc::clone(&self.job), Arc::clone(&frame.remote));
            self.tasks.spawn(async move {
                let done = job.put_one(&parent, &local, standing, &shown).await;
                drop(room);
                (shown, done)
            });
        }
        Ok(below)
    }

    /// Waits until another file may be under way.
    async fn room(&mut self, bytes: u64) -> Result<Vec<OwnedSemaphorePermit>, ClientError> {
        let mut room = Vec::new();
        let large = (bytes >= LARGE_BYTES_MIN).then(|| Arc::clone(&self.job.large));
        for semaphore in [Some(Arc::clone(&self.job.files)), large].into_iter().flatten() {
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

    /// Makes a directory, or takes the one that is there; whether it is new.
    async fn put_directory(
        &mut self,
        frame: &Frame,
        local: &Local,
        standing: Option<Found>,
        shown: &str,
    ) -> Result<(Arc<Directory>, bool), ClientError> {
        self.reap()?;
        let session = self.job.session.clone();
        let (mode, time) = (local.found.mode(), mtime_ns(&local.found));
        if let Some(found) = standing.as_ref().filter(|found| found.is_live()) {
            let directory = found.directory().cloned();
            let directory =
                directory.ok_or_else(|| ClientError::NotADirectory { what: shown.to_owned() })?;
            self.job.update_directory(found, mode, time, shown).await?;
            self.count((shown.to_owned(), Ok(Done::Directory)));
            return Ok((directory, false));
        }
        let former = standing.map(|tombstone| tombstone.hash);
        let (directory, op) = session.new_directory(&frame.remote, &local.name, former, mode, time);
        // In a directory that this walk has made nobody else makes anything: there is nothing to wait
        // for, only to be ahead of what lies below.
        let pending = session.changes().hand_in(op).await?;
        let what = shown.to_owned();
        if frame.fresh {
            self.tasks.spawn(async move {
                let done = match pending.outcome().await {
                    Ok(Ok(_)) => Ok(Done::Directory),
                    Ok(Err(rejection)) => Err(ClientError::rejected(rejection, &what)),
                    Err(error) => Err(error),
                };
                (what, done)
            });
            return Ok((directory, true));
        }
        match pending.outcome().await? {
            Ok(_) => {
                self.count((what, Ok(Done::Directory)));
                Ok((directory, true))
            }
            Err(Rejection::Conflict { .. }) => {
                let found = session.look_up(&frame.remote, &local.name).await?;
                let found = found.filter(Found::is_live);
                let found = found.ok_or(ClientError::Conflict { what: shown.to_owned() })?;
                let directory = found.directory().cloned();
                let directory = directory
                    .ok_or_else(|| ClientError::NotADirectory { what: shown.to_owned() })?;
                self.count((what, Ok(Done::Directory)));
                Ok((directory, false))
            }
            Err(rejection) => Err(ClientError::rejected(rejection, shown)),
        }
    }

    /// Gives the root of the tree the mode and time of the local one.
    async fn set_directory(
        &mut self,
        path: &RemotePath,
        local: &Metadata,
    ) -> Result<(), ClientError> {
        let session = &self.job.session;
        if let Place::Name(located) = session.place(path, crate::resolve::attrs_and_head()).await? {
            let found = located.live(path)?;
            let (mode, time) = (local.mode(), mtime_ns(local));
            self.job.update_directory(&found, mode, time, &path.to_string()).await?;
        }
        Ok(())
    }

    fn count(&mut self, (path, done): Named) {
        match done {
            Ok(done) => {
                match done {
                    Done::File { bytes } => {
                        self.report.files += 1;
                        self.report.bytes += bytes;
                    }
                    Done::Unchanged => self.report.files_unchanged += 1,
                    Done::Symlink => self.report.symlinks += 1,
                    Done::Directory => {
                        self.report.directories += 1;
                        return;
                    }
                }
                self.job.progress.done(&path);
            }
            Err(error) => self.fail(path, error),
        }
    }

    fn fail(&mut self, path: String, error: ClientError) {
        if error.is_hopeless() {
            self.hopeless = Some(error.clone());
        }
        self.job.progress.failed(&path, &error);
        self.report.fail(path, error);
    }

    async fn finish(&mut self) -> Result<(), ClientError> {
        while let Some(done) = self.tasks.join_next().await {
            self.count(done.map_err(|_| ClientError::Stopped)?);
        }
        Ok(())
    }
}

impl Job {
    pub(crate) fn new(
        session: &Session,
        options: &PutTreeOptions,
        progress: Arc<dyn Progress>,
    ) -> Self {
        Self {
            session: session.clone(),
            class: options.class,
            skip_unchanged: options.skip_unchanged,
            tally: Tally::default(),
            progress,
            files: Arc::new(Semaphore::new(FILES_IN_FLIGHT)),
            large: Arc::new(Semaphore::new(LARGE_IN_FLIGHT)),
        }
    }

    /// Puts one file or symlink.
    pub(crate) async fn put_one(
        &self,
        parent: &Arc<Directory>,
        local: &Local,
        standing: Option<Found>,
        shown: &str,
    ) -> Result<Done, ClientError> {
        let kind = local.found.file_type();
        let stamp = mtime_ns(&local.found);
        if self.skip_unchanged
            && let Some(found) = standing.as_ref().filter(|found| found.is_live())
            && self.is_unchanged(found, local)?
        {
            self.progress.bytes(local.found.len());
            return Ok(Done::Unchanged);
        }
        let (source, remote_kind) = if kind.is_file() {
            (open_source(local.path.clone()).await?, Kind::File)
        } else if kind.is_symlink() {
            let path = local.path.clone();
            let target = blocking(move || {
                fs::read_link(&path).map_err(|error| ClientError::local("read", &path, error))
            });
            let target = target.await?;
            (Source::Memory(target.as_os_str().as_bytes().into()), Kind::Symlink)
        } else {
            return Err(ClientError::Unsupported { what: "a pipe, socket or device".to_owned() });
        };
        let content = Content {
            kind: remote_kind,
            source,
            mode: Some(local.found.mode()),
            mtime_ns: stamp,
            mtime_given: true,
            class: self.class,
            if_version: None,
            write: write_id(),
            resumed: false,
            tally: &self.tally,
            progress: self.progress.as_ref(),
        };
        let target = Target { parent, name: &local.name, found: standing, path: shown };
        let Committed { length, .. } = self.session.put_content(target, content).await?;
        Ok(match remote_kind {
            Kind::Symlink => Done::Symlink,
            _ => Done::File { bytes: length },
        })
    }

    /// Whether the remote file has the length, time and mode of the local one.
    fn is_unchanged(&self, found: &Found, local: &Local) -> Result<bool, ClientError> {
        if found.kind() != Kind::File || !local.found.is_file() {
            return Ok(false);
        }
        let stat = self.session.describe(found)?;
        Ok(stat.length == local.found.len()
            && stat.mtime_ns == mtime_ns(&local.found)
            && stat.mode == Mode::from_bits(local.found.mode()).bits())
    }

    /// Gives a directory that exists another mode and time, where they differ.
    pub(crate) async fn update_directory(
        &self,
        found: &Found,
        mode: u32,
        time: i64,
        shown: &str,
    ) -> Result<(), ClientError> {
        let Some(standing) = &found.attrs else { return Ok(()) };
        let (cluster, mode) = (&self.session.wire().cluster, Mode::from_bits(mode));
        let key = found.secret.object_key();
        let attrs = open_attributes(cluster, found.inode(), key, standing)?;
        if attrs.mode == mode && attrs.mtime_ns == time {
            return Ok(());
        }
        let op = self.session.attrs_op(found.inode(), key, standing, &|attrs| {
            attrs.mode = mode;
            attrs.mtime_ns = time;
        })?;
        match self.session.changes().apply(op).await? {
            // Somebody else has just set them; theirs are as good.
            Ok(_) | Err(Rejection::Conflict { .. }) => Ok(()),
            Err(rejection) => Err(ClientError::rejected(rejection, shown)),
        }
    }
}

/// What was read of a directory: names, those that cannot be used, and whether it has ended.
pub(crate) type NamesRead = (ReadDir, Vec<Result<Local, (String, ClientError)>>, bool);

/// Reads up to `count` names of a directory, in the order the file system gives them. Blocks.
pub(crate) fn read_names(
    path: &Path,
    names: Option<ReadDir>,
    count: usize,
) -> Result<NamesRead, ClientError> {
    let local = |error| ClientError::local("list", path, error);
    let mut names = match names {
        Some(names) => names,
        None => fs::read_dir(path).map_err(local)?,
    };
    let mut read = Vec::with_capacity(NAMES_AT_ONCE);
    while read.len() < count {
        let Some(entry) = names.next() else { return Ok((names, read, true)) };
        let entry = entry.map_err(local)?;
        let path = entry.path();
        let shown = || path.display().to_string();
        let name = entry.file_name();
        let one = match (FileName::from_bytes(name.as_bytes()), entry.metadata()) {
            (Ok(name), Ok(found)) => Ok(Local { path: path.clone(), name, found }),
            (Err(why), _) => {
                let text = String::from_utf8_lossy(name.as_bytes()).into_owned();
                Err((shown(), ClientError::invalid_name(text, why)))
            }
            (_, Err(error)) => Err((shown(), ClientError::local("look at", &path, error))),
        };
        read.push(one);
    }
    Ok((names, read, false))
}

/// Opens a regular file that was just looked at; not what may have taken its place since.
pub(crate) async fn open_source(path: PathBuf) -> Result<Source, ClientError> {
    blocking(move || {
        let flags = rustix::fs::OFlags::NOFOLLOW.bits().cast_signed()
            | rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
        let file = File::options().read(true).custom_flags(flags).open(&path);
        let file = file.map_err(|error| ClientError::local("open", &path, error))?;
        let found = file.metadata().map_err(|error| ClientError::local("look at", &path, error))?;
        if !found.is_file() {
            let error = io::Error::other("it is no regular file any more");
            return Err(ClientError::local("read", &path, error));
        }
        Source::file(file, &path)
    })
    .await
}
