//! Getting a directory with everything in it. A page of a listing brings the slots of small files along,
//! so such a file costs one call for its chunks. Directories get their mode and time when everything in
//! them is done, so that a read-only one can be filled and none shows the time of its filling.
//!
//! Nothing a server says decides where a byte goes: names are validated, every file is made in a
//! directory that is held open, and no symbolic link is followed (`local`).

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use coffer_model::name::RemotePath;
use coffer_model::object::Kind;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::content::Content;
use crate::error::ClientError;
use crate::local::LocalDir;
use crate::names::Listing;
use crate::node::{Directory, Found, open_attributes};
use crate::options::GetOptions;
use crate::progress::{Progress, TreeReport};
use crate::resolve::{Place, all_of_a_small_file};
use crate::session::Session;
use crate::upload::blocking;

/// Files under way at a time; the bytes of their chunks are bounded by the session's budget. Each holds
/// an open file.
const FILES_IN_FLIGHT: usize = 64;
/// Names asked for at a time.
pub(crate) const PAGE: u32 = 256;
/// Directories of one directory that wait for their turn; beyond them the listing itself waits.
pub(crate) const WAITING_MAX: usize = 4096;
/// Permission bits of a directory without attributes.
const DIRECTORY_MODE: u32 = 0o755;

/// A local directory with what it gets when everything in it is done. Whatever is still to be put into
/// it holds it.
pub(crate) struct Filling {
    pub(crate) dir: Arc<LocalDir>,
    pub(crate) attributes: Option<(u32, i64)>,
    pub(crate) parent: Option<Arc<Filling>>,
}

/// A remote directory that is being walked.
struct Frame {
    shown: String,
    listing: Listing,
    ended: bool,
    waiting: Vec<(Found, String)>,
    into: Arc<Filling>,
    /// The names that are taken, case folded, where the local directory folds case.
    taken: Option<BTreeSet<String>>,
}

/// What became of one name.
pub(crate) enum Done {
    File { bytes: u64 },
    Symlink,
}

type Named = (String, Result<Done, ClientError>);

impl Session {
    /// Gets a remote directory with everything in it into a local one, which is made where it is
    /// missing. Modes, times and symbolic links are kept. What cannot be fetched is reported, and the
    /// rest goes on. Where the local file system takes two names for one, the first that comes has it.
    pub async fn get_tree(
        &self,
        remote: &RemotePath,
        local: &Path,
        options: &GetOptions,
        progress: Arc<dyn Progress>,
    ) -> Result<TreeReport, ClientError> {
        if options.version.is_some() {
            return Err(ClientError::Unsupported { what: "a version of a directory".to_owned() });
        }
        let path = local.to_owned();
        let make = move || {
            let dir = Arc::new(LocalDir::make(&path)?);
            let folds_case = dir.folds_case()?;
            Ok((dir, folds_case))
        };
        self.get_tree_into(remote, make, options, progress).await
    }

    /// As [`Self::get_tree`], into the directory that `make` gives, with whether it folds case.
    pub(crate) async fn get_tree_into(
        &self,
        remote: &RemotePath,
        make: impl FnOnce() -> Result<(Arc<LocalDir>, bool), ClientError> + Send + 'static,
        options: &GetOptions,
        progress: Arc<dyn Progress>,
    ) -> Result<TreeReport, ClientError> {
        let (root, attributes) = self.tree(remote).await?;
        let (dir, folds_case) = blocking(make).await?;
        let mut walk = Walk {
            session: self.clone(),
            overwrite: options.overwrite,
            progress,
            files: Arc::new(Semaphore::new(FILES_IN_FLIGHT)),
            report: TreeReport::default(),
            tasks: JoinSet::new(),
            hopeless: None,
        };
        let into = Arc::new(Filling { dir, attributes, parent: None });
        let mut frames = vec![Frame::new(root, remote.to_string(), into, folds_case)];
        while let Some(mut frame) = frames.pop() {
            if !frame.ended && frame.waiting.len() < WAITING_MAX {
                if let Err(error) = walk.next_page(&mut frame).await {
                    walk.fail(frame.shown.clone(), error);
                    walk.reap()?;
                    frame.ended = true;
                }
                frames.push(frame);
                continue;
            }
            match frame.waiting.pop() {
                Some((found, shown)) => {
                    let below = walk.enter(&frame, found, shown).await;
                    frames.push(frame);
                    frames.extend(below);
                }
                None => walk.leave(frame).await,
            }
        }
        while let Some(done) = walk.tasks.join_next().await {
            walk.count(done.map_err(|_| ClientError::Stopped)?);
        }
        self.save_marks().await?;
        Ok(walk.report)
    }

    /// A directory, and the mode and time it has.
    pub(crate) async fn tree(
        &self,
        path: &RemotePath,
    ) -> Result<(Arc<Directory>, Option<(u32, i64)>), ClientError> {
        match self.place(path, crate::resolve::attrs_and_head()).await? {
            Place::Top => Err(ClientError::Invalid {
                what: "`/` itself cannot be fetched; name a home".to_owned(),
            }),
            Place::Home => Ok((Arc::clone(&self.home().root), None)),
            Place::Name(located) => {
                let found = located.live(path)?;
                let directory = found.directory().cloned();
                let directory = directory
                    .ok_or_else(|| ClientError::NotADirectory { what: path.to_string() })?;
                Ok((directory, self.directory_attributes(&found)?))
            }
        }
    }

    pub(crate) fn directory_attributes(
        &self,
        found: &Found,
    ) -> Result<Option<(u32, i64)>, ClientError> {
        let Some(attrs) = &found.attrs else { return Ok(Some((DIRECTORY_MODE, 0))) };
        let key = found.secret.object_key();
        let attrs = open_attributes(&self.wire().cluster, found.inode(), key, attrs)?;
        Ok(Some((attrs.mode.bits(), attrs.mtime_ns)))
    }
}

impl Frame {
    fn new(directory: Arc<Directory>, shown: String, into: Arc<Filling>, folds_case: bool) -> Self {
        let listing = Listing::of(directory, all_of_a_small_file(), false, PAGE);
        let taken = folds_case.then(BTreeSet::new);
        Self { shown, listing, ended: false, waiting: Vec::new(), into, taken }
    }

    /// Whether this name is free. Names are in one normal form; what is left to fold is their case,
    /// and folding more than a file system does only reports what could have been fetched.
    fn take(&mut self, name: &str) -> bool {
        let Some(taken) = &mut self.taken else { return true };
        taken.insert(name.to_uppercase().to_lowercase())
    }
}

/// A walk over a remote tree.
struct Walk {
    session: Session,
    overwrite: bool,
    progress: Arc<dyn Progress>,
    files: Arc<Semaphore>,
    report: TreeReport,
    tasks: JoinSet<Named>,
    hopeless: Option<ClientError>,
}

impl Walk {
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

    /// Begins to fetch what the next page of a directory names.
    async fn next_page(&mut self, frame: &mut Frame) -> Result<(), ClientError> {
        let Some(page) = frame.listing.next_page_of_any(&self.session).await? else {
            frame.ended = true;
            return Ok(());
        };
        for found in page {
            let shown = format!("{}/{}", frame.shown, found.name);
            if !frame.take(found.name.as_str()) {
                let what = format!("a name that differs from {shown} only in case");
                self.fail(shown, ClientError::Exists { what });
                continue;
            }
            if found.kind() == Kind::Directory {
                frame.waiting.push((found, shown));
                continue;
            }
            let room = Arc::clone(&self.files).acquire_owned().await;
            let room = room.map_err(|_| ClientError::Stopped)?;
            self.reap()?;
            let (session, progress) = (self.session.clone(), Arc::clone(&self.progress));
            let (into, overwrite) = (Arc::clone(&frame.into), self.overwrite);
            self.tasks.spawn(async move {
                let done = session
                    .fetch_into(&found, &into.dir, &shown, overwrite, progress.as_ref())
                    .await;
                let closed = close(into).await;
                drop(room);
                (shown, done.and_then(|done| closed.map(|()| done)))
            });
        }
        Ok(())
    }

    /// Makes a directory and begins to walk it.
    async fn enter(&mut self, frame: &Frame, found: Found, shown: String) -> Option<Frame> {
        let attributes = self.session.directory_attributes(&found);
        let name = found.name.clone();
        let dir = Arc::clone(&frame.into.dir);
        let made =
            blocking(move || dir.subdirectory(OsStr::from_bytes(name.as_str().as_bytes()))).await;
        match (attributes, made, found.directory()) {
            (Ok(attributes), Ok((dir, _)), Some(directory)) => {
                self.report.directories += 1;
                let parent = Some(Arc::clone(&frame.into));
                let into = Arc::new(Filling { dir: Arc::new(dir), attributes, parent });
                Some(Frame::new(Arc::clone(directory), shown, into, frame.taken.is_some()))
            }
            (Err(error), ..) | (_, Err(error), _) => {
                self.fail(shown, error);
                None
            }
            _ => {
                self.fail(shown, ClientError::Stopped);
                None
            }
        }
    }

    /// Everything in a directory is done, or under way.
    async fn leave(&mut self, frame: Frame) {
        let Frame { shown, into, .. } = frame;
        if let Err(error) = close(into).await {
            self.fail(shown, error);
        }
    }

    fn count(&mut self, (path, done): Named) {
        match done {
            Ok(Done::File { bytes }) => {
                self.report.files += 1;
                self.report.bytes += bytes;
            }
            Ok(Done::Symlink) => self.report.symlinks += 1,
            Err(error) => return self.fail(path, error),
        }
        self.progress.done(&path);
    }

    fn fail(&mut self, path: String, error: ClientError) {
        if error.is_hopeless() {
            self.hopeless = Some(error.clone());
        }
        self.progress.failed(&path, &error);
        self.report.fail(path, error);
    }
}

/// Lets go of a directory. Whoever is the last gives it its mode and time, and lets go of the one above.
pub(crate) async fn close(filling: Arc<Filling>) -> Result<(), ClientError> {
    blocking(move || {
        let mut last = Some(filling);
        while let Some(filling) = last.take().and_then(Arc::into_inner) {
            if let Some((mode, mtime_ns)) = filling.attributes {
                filling.dir.set_attributes(mode, mtime_ns)?;
            }
            last = filling.parent;
        }
        Ok(())
    })
    .await
}

impl Session {
    /// Fetches one file or symlink into an open directory.
    pub(crate) async fn fetch_into(
        &self,
        found: &Found,
        dir: &Arc<LocalDir>,
        shown: &str,
        overwrite: bool,
        progress: &dyn Progress,
    ) -> Result<Done, ClientError> {
        let content = Content::current(self, found, shown)?;
        progress.found(1, content.length);
        let name = OsStr::from_bytes(found.name.as_str().as_bytes()).to_owned();
        match found.kind() {
            Kind::File => {
                let name = Path::new(&name);
                let bytes = self.fetch_to(found, content, dir, name, overwrite, progress).await?;
                Ok(Done::File { bytes })
            }
            Kind::Symlink => {
                let target = content.inline.as_ref().map(|target| target.to_vec());
                let target = target.filter(|target| !target.is_empty() && !target.contains(&0));
                let target =
                    target.ok_or_else(|| ClientError::tampered("a symlink without a target"))?;
                let (dir, mtime_ns) = (Arc::clone(dir), content.mtime_ns);
                blocking(move || {
                    dir.symlink(&name, OsStr::from_bytes(&target), mtime_ns, overwrite)
                })
                .await?;
                Ok(Done::Symlink)
            }
            _ => Err(ClientError::Unsupported { what: "a pipe or device".to_owned() }),
        }
    }
}
