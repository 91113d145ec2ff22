//! A remote directory becomes like a local one.

use std::fs::{self, ReadDir};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use coffer_crypto::content::Mode;
use coffer_model::name::RemotePath;
use coffer_model::object::Kind;
use futures_util::stream::{self, StreamExt};

use crate::error::ClientError;
use crate::names::Listing;
use crate::node::{Directory, Found};
use crate::options::PutTreeOptions;
use crate::put_tree::{Job, Local, NAMES_AT_ONCE, open_source, read_names};
use crate::resolve::{attrs_and_head, nothing};
use crate::session::{Session, Stat};
use crate::sync::{
    COMPARED_AT_ONCE, Difference, Pass, Step, SyncReport, Verdict, below, in_the_way,
    needs_reading, verdict,
};
use crate::upload::{blocking, mtime_ns};

/// Local names that are read, and put into order, at a time.
const NAMES_PAGE: usize = 1024;
/// Remote names that are asked for at a time.
const LIST_PAGE: u32 = 500;

/// A local directory that is being walked.
struct Frame {
    path: PathBuf,
    shown: String,
    at: RemotePath,
    /// None where it does not exist, and is not to be made.
    remote: Option<Arc<Directory>>,
    /// Made just now, so nothing is in it.
    fresh: bool,
    names: Option<ReadDir>,
}

pub(super) async fn run(
    mut pass: Pass,
    local: &Path,
    remote: &RemotePath,
) -> Result<SyncReport, ClientError> {
    let found = fs::metadata(local).map_err(|error| ClientError::local("look at", local, error))?;
    if !found.is_dir() {
        return Err(ClientError::NotADirectory { what: local.display().to_string() });
    }
    let options = PutTreeOptions::standard();
    let job = Arc::new(Job::new(&pass.session, &options, Arc::clone(&pass.progress)));
    let (root, fresh) = root(&mut pass, &job, remote, &stat_of(&found, None)).await?;
    let mut walk = Walk { pass, job };
    let mut frames = vec![Frame {
        path: local.to_owned(),
        shown: String::new(),
        at: remote.clone(),
        remote: root,
        fresh,
        names: None,
    }];
    while let Some(mut frame) = frames.pop() {
        match walk.next_names(&mut frame).await {
            Ok(Some(names)) => {
                let below = walk.compare(&frame, names).await;
                frames.push(frame);
                frames.extend(below?.into_iter().rev());
            }
            Ok(None) => {
                if let Err(error) = walk.remove_extra(&frame).await {
                    walk.pass.fail(frame.shown, error);
                }
            }
            // What cannot be listed is not taken for empty: nothing there is deleted.
            Err(error) => walk.pass.fail(frame.shown, error),
        }
        walk.pass.reap()?;
    }
    walk.pass.finish().await
}

/// The directory that is to become like `local`, and whether it is new.
async fn root(
    pass: &mut Pass,
    job: &Job,
    path: &RemotePath,
    local: &Stat,
) -> Result<(Option<Arc<Directory>>, bool), ClientError> {
    let session = pass.session.clone();
    let there = match session.directory(path).await {
        Ok(directory) => Some(directory),
        Err(ClientError::NotFound { .. }) => None,
        Err(error) => return Err(error),
    };
    if path.names().is_empty() {
        // The home keeps its own mode and time.
        return Ok((there, false));
    }
    let difference = |step| Difference { step, path: ".".into(), kind: Kind::Directory, bytes: 0 };
    let Some(directory) = there else {
        let made = async { session.mkdir(path, true).await };
        pass.settle_now(difference(Step::Add), made).await?;
        if !pass.options.apply {
            return Ok((None, true));
        }
        let (directory, _) = session.tree_root(path).await?;
        let found = session.locate(path, attrs_and_head()).await?.live(path)?;
        job.update_directory(&found, local.mode, local.mtime_ns, &path.to_string()).await?;
        return Ok((Some(directory), true));
    };
    let found = session.locate(path, attrs_and_head()).await?.live(path)?;
    if let Verdict::Attributes(why) = verdict(local, Some(&session.describe(&found)?), None) {
        let shown = path.to_string();
        let update = job.update_directory(&found, local.mode, local.mtime_ns, &shown);
        pass.settle_now(difference(Step::Change(why)), update).await?;
    }
    Ok((Some(directory), false))
}

/// A walk over a local tree.
struct Walk {
    pass: Pass,
    job: Arc<Job>,
}

/// A local name beside the remote one, and what follows.
struct Pair {
    local: Local,
    ours: Stat,
    standing: Option<Found>,
    theirs: Option<Stat>,
}

impl Walk {
    /// The next names of a directory, in order; none at its end. Names that cannot be used are reported.
    async fn next_names(&mut self, frame: &mut Frame) -> Result<Option<Vec<Local>>, ClientError> {
        let (path, names) = (frame.path.clone(), frame.names.take());
        let (names, read, ended) = blocking(move || read_names(&path, names, NAMES_PAGE)).await?;
        frame.names = Some(names);
        if ended && read.is_empty() {
            return Ok(None);
        }
        let mut usable = Vec::with_capacity(read.len());
        for one in read {
            match one {
                Ok(local) => usable.push(local),
                Err((path, error)) => self.pass.fail(path, error),
            }
        }
        usable.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(Some(usable))
    }

    /// Compares some names of a directory, and gives the directories below.
    async fn compare(
        &mut self,
        frame: &Frame,
        mut names: Vec<Local>,
    ) -> Result<Vec<Frame>, ClientError> {
        let mut deeper = Vec::new();
        while !names.is_empty() {
            let rest = names.split_off(names.len().min(NAMES_AT_ONCE));
            let pairs = self.pairs(frame, std::mem::replace(&mut names, rest)).await?;
            let (session, options) = (self.pass.session.clone(), self.pass.options.clone());
            let told: Vec<_> = stream::iter(pairs)
                .map(|pair| {
                    let session = session.clone();
                    let reads = needs_reading(&pair.ours, pair.theirs.as_ref(), &options);
                    async move {
                        let same =
                            if reads { Some(pair.same_content(&session).await) } else { None };
                        (same.transpose(), pair)
                    }
                })
                .buffered(COMPARED_AT_ONCE)
                .collect()
                .await;
            for (same, pair) in told {
                let shown = below(&frame.shown, pair.local.name.as_str());
                match same {
                    Ok(same) => deeper.extend(self.settle(frame, pair, shown, same).await?),
                    Err(error) => self.pass.fail(shown, error),
                }
                self.pass.reap()?;
            }
        }
        Ok(deeper)
    }

    async fn pairs(&mut self, frame: &Frame, names: Vec<Local>) -> Result<Vec<Pair>, ClientError> {
        let session = self.pass.session.clone();
        let standing = match &frame.remote {
            Some(remote) if !frame.fresh => {
                let asked: Vec<_> = names.iter().map(|local| local.name.clone()).collect();
                session.look_up_all(remote, &asked).await?
            }
            _ => vec![None; names.len()],
        };
        let mut pairs = Vec::with_capacity(names.len());
        for (local, standing) in names.into_iter().zip(standing) {
            let shown = || below(&frame.shown, local.name.as_str());
            let live = standing.as_ref().filter(|found| found.is_live());
            let theirs = live.map(|found| session.describe(found)).transpose()?;
            match link_target(&local) {
                Ok(target) => {
                    let ours = stat_of(&local.found, target);
                    pairs.push(Pair { local, ours, standing, theirs });
                }
                Err(error) => self.pass.fail(shown(), error),
            }
        }
        Ok(pairs)
    }

    /// Does what follows from comparing one name; gives the directory to go on with.
    async fn settle(
        &mut self,
        frame: &Frame,
        mut pair: Pair,
        shown: String,
        same: Option<bool>,
    ) -> Result<Option<Frame>, ClientError> {
        let kind = pair.ours.kind;
        if !matches!(kind, Kind::File | Kind::Directory | Kind::Symlink) {
            let what = "a pipe, socket or device".to_owned();
            self.pass.fail(shown, ClientError::Unsupported { what });
            return Ok(None);
        }
        let at = match frame.at.join(pair.local.name.clone()) {
            Ok(at) => at,
            Err(why) => {
                let error = ClientError::invalid_name(pair.local.name.as_str(), why);
                self.pass.fail(shown, error);
                return Ok(None);
            }
        };
        let mut found = verdict(&pair.ours, pair.theirs.as_ref(), same);
        if let (Verdict::OtherKind, Some(theirs)) = (found, &pair.theirs) {
            if !self.pass.options.delete {
                self.pass.fail(shown, in_the_way(theirs));
                return Ok(None);
            }
            if !self.clear(frame, &mut pair, &at, &shown).await? {
                return Ok(None);
            }
            found = Verdict::Missing;
        }
        let bytes = if kind == Kind::File { pair.ours.length } else { 0 };
        let step = match found {
            Verdict::Missing => Step::Add,
            Verdict::Content(why) | Verdict::Attributes(why) => Step::Change(why),
            Verdict::Same | Verdict::OtherKind => {
                self.pass.report.unchanged += 1;
                return Ok((kind == Kind::Directory).then(|| Frame::of(pair, shown, at)));
            }
        };
        let content = !matches!(found, Verdict::Attributes(_)) && kind != Kind::Directory;
        let bytes = if content { bytes } else { 0 };
        let difference = Difference { step, path: shown.clone(), kind, bytes };
        if kind == Kind::Directory {
            return self.directory(frame, pair, at, difference).await;
        }
        let job = Arc::clone(&self.job);
        if content {
            self.pass.progress.found(1, bytes);
            let parent = frame.remote.clone();
            let work = async move {
                let parent = parent.ok_or(ClientError::Stopped)?;
                job.put_one(&parent, &pair.local, pair.standing, &at.to_string()).await.map(|_| ())
            };
            self.pass.settle(difference, work).await?;
        } else {
            let (session, ours) = (self.pass.session.clone(), pair.ours);
            let theirs = pair.theirs;
            let work = async move {
                if theirs.as_ref().is_some_and(|theirs| theirs.mode != ours.mode) {
                    session.set_mode(&at, ours.mode).await?;
                }
                if theirs.is_some_and(|theirs| theirs.mtime_ns != ours.mtime_ns) {
                    session.set_mtime(&at, ours.mtime_ns).await?;
                }
                Ok(())
            };
            self.pass.settle(difference, work).await?;
        }
        Ok(None)
    }

    /// Makes a directory, or gives the one that is there another mode and time.
    async fn directory(
        &mut self,
        frame: &Frame,
        pair: Pair,
        at: RemotePath,
        difference: Difference,
    ) -> Result<Option<Frame>, ClientError> {
        let (path, shown) = (at.to_string(), difference.path.clone());
        let (mode, time) = (pair.ours.mode, pair.ours.mtime_ns);
        if pair.theirs.is_some() {
            let (job, standing) = (Arc::clone(&self.job), pair.standing.clone());
            let work = async move {
                let standing = standing.ok_or(ClientError::Stopped)?;
                job.update_directory(&standing, mode, time, &path).await
            };
            self.pass.settle(difference, work).await?;
            return Ok(Some(Frame::of(pair, shown, at)));
        }
        let (mut made, session) = (None, self.pass.session.clone());
        let former = pair.standing.as_ref().map(|tombstone| tombstone.hash);
        let work = async {
            let parent = frame.remote.as_ref().ok_or(ClientError::Stopped)?;
            let (directory, op) =
                session.new_directory(parent, &pair.local.name, former, mode, time);
            let outcome = session.changes().apply(op).await?;
            outcome.map_err(|rejection| ClientError::rejected(rejection, &path))?;
            made = Some(directory);
            Ok(())
        };
        if !self.pass.settle_now(difference, work).await? {
            return Ok(None);
        }
        let (path, names) = (pair.local.path, None);
        Ok(Some(Frame { path, shown, at, remote: made, fresh: true, names }))
    }

    /// Removes what has the name but another kind. Whether the name is free now.
    async fn clear(
        &mut self,
        frame: &Frame,
        pair: &mut Pair,
        at: &RemotePath,
        shown: &str,
    ) -> Result<bool, ClientError> {
        let kind = pair.theirs.take().map_or(Kind::File, |theirs| theirs.kind);
        let difference = Difference { step: Step::Delete, path: shown.to_owned(), kind, bytes: 0 };
        let session = self.pass.session.clone();
        let removed = async { session.remove(at, true).await };
        if !self.pass.settle_now(difference, removed).await? {
            return Ok(false);
        }
        pair.standing = match &frame.remote {
            Some(remote) if self.pass.options.apply => {
                session.look_up(remote, &pair.local.name).await?
            }
            _ => None,
        };
        Ok(true)
    }

    /// Removes what only the remote directory has.
    async fn remove_extra(&mut self, frame: &Frame) -> Result<(), ClientError> {
        let Some(remote) = frame.remote.as_ref().filter(|_| !frame.fresh) else { return Ok(()) };
        if !self.pass.options.delete {
            return Ok(());
        }
        let session = self.pass.session.clone();
        let mut listing = Listing::of(Arc::clone(remote), nothing(), false, LIST_PAGE);
        while let Some(page) = listing.next_page_of_any(&session).await? {
            let path = frame.path.clone();
            let mut extra = blocking(move || only_there(&path, page)).await?;
            extra.sort_by(|one, other| one.name.cmp(&other.name));
            for found in extra {
                let name = found.name.as_str();
                let at = frame.at.join(found.name.clone());
                let at = at.map_err(|why| ClientError::invalid_name(name, why))?;
                let (step, path) = (Step::Delete, below(&frame.shown, name));
                let difference = Difference { step, path, kind: found.kind(), bytes: 0 };
                let session = session.clone();
                let work = async move { session.remove(&at, true).await };
                self.pass.settle(difference, work).await?;
            }
        }
        Ok(())
    }
}

impl Frame {
    /// A directory that both sides have.
    fn of(pair: Pair, shown: String, at: RemotePath) -> Self {
        let remote = pair.standing.as_ref().and_then(Found::directory).cloned();
        Self { path: pair.local.path, shown, at, remote, fresh: false, names: None }
    }
}

impl Pair {
    async fn same_content(&self, session: &Session) -> Result<bool, ClientError> {
        let found = self.standing.as_ref().ok_or(ClientError::Stopped)?;
        let source = open_source(self.local.path.clone()).await?;
        session.has_content_of(found, self.local.name.as_str(), source).await
    }
}

/// Those of some remote names that are not in a local directory. Blocks.
fn only_there(path: &Path, page: Vec<Found>) -> Result<Vec<Found>, ClientError> {
    let mut extra = Vec::new();
    for found in page {
        let local = path.join(found.name.as_str());
        match fs::symlink_metadata(&local) {
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => extra.push(found),
            Err(error) => return Err(ClientError::local("look at", &local, error)),
        }
    }
    Ok(extra)
}

/// Where a local symbolic link points.
fn link_target(local: &Local) -> Result<Option<Vec<u8>>, ClientError> {
    if !local.found.is_symlink() {
        return Ok(None);
    }
    let target = fs::read_link(&local.path)
        .map_err(|error| ClientError::local("read", &local.path, error))?;
    Ok(Some(target.as_os_str().as_bytes().to_vec()))
}

fn stat_of(found: &fs::Metadata, target: Option<Vec<u8>>) -> Stat {
    let kind = match found.file_type() {
        it if it.is_dir() => Kind::Directory,
        it if it.is_file() => Kind::File,
        it if it.is_symlink() => Kind::Symlink,
        it if it.is_fifo() => Kind::Fifo,
        _ => Kind::Device,
    };
    Stat {
        inode: None,
        kind,
        mode: Mode::from_bits(found.mode()).bits(),
        mtime_ns: mtime_ns(found),
        length: found.len(),
        version: 0,
        class: None,
        target,
    }
}
