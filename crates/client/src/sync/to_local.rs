//! A local directory becomes like a remote one. As in `get_tree`, every file is made in a directory that
//! is held open, no symbolic link is followed, and a directory gets its mode and time when everything in
//! it is done.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use coffer_model::name::{FileName, RemotePath};
use coffer_model::object::Kind;
use futures_util::stream::{self, StreamExt};

use crate::error::ClientError;
use crate::get_tree::{Filling, PAGE, WAITING_MAX, close};
use crate::local::{LocalDir, MODE_MASK};
use crate::names::Listing;
use crate::node::{Directory, Found};
use crate::put_tree::NAMES_AT_ONCE;
use crate::resolve::all_of_a_small_file;
use crate::session::{Session, Stat};
use crate::source::Source;
use crate::sync::{
    COMPARED_AT_ONCE, Difference, Pass, Step, SyncReport, Verdict, below, in_the_way,
    needs_reading, verdict,
};
use crate::upload::blocking;

/// A remote directory that is being walked.
struct Frame {
    shown: String,
    directory: Arc<Directory>,
    listing: Listing,
    ended: bool,
    /// Whether all of it could be listed; otherwise nothing is taken for extra.
    whole: bool,
    waiting: Vec<Waiting>,
    /// None where it does not exist, and is not to be made.
    into: Option<Arc<Filling>>,
}

/// A directory below that is still to be walked.
struct Waiting {
    shown: String,
    directory: Arc<Directory>,
    into: Option<Arc<Filling>>,
}

pub(super) async fn run(
    pass: Pass,
    remote: &RemotePath,
    local: &Path,
) -> Result<SyncReport, ClientError> {
    let (directory, attributes) = pass.session.tree(remote).await?;
    let mut walk = Walk { pass };
    let into = walk.root(local, attributes).await?;
    let mut frames = vec![Frame::of(Waiting { shown: String::new(), directory, into })];
    while let Some(mut frame) = frames.pop() {
        if !frame.ended && frame.waiting.len() < WAITING_MAX {
            if let Err(error) = walk.next_page(&mut frame).await {
                walk.pass.fail(frame.shown.clone(), error);
                (frame.ended, frame.whole) = (true, false);
                walk.pass.reap()?;
            }
            frames.push(frame);
            continue;
        }
        match frame.waiting.pop() {
            Some(waiting) => {
                frames.push(frame);
                frames.push(Frame::of(waiting));
            }
            None => {
                if let Err(error) = walk.remove_extra(&frame).await {
                    walk.pass.fail(frame.shown.clone(), error);
                }
                walk.leave(frame).await;
            }
        }
        walk.pass.reap()?;
    }
    walk.pass.finish().await
}

impl Frame {
    fn of(Waiting { shown, directory, into }: Waiting) -> Self {
        let listing = Listing::of(Arc::clone(&directory), all_of_a_small_file(), false, PAGE);
        let waiting = Vec::new();
        Self { shown, directory, listing, ended: false, whole: true, waiting, into }
    }
}

/// A walk over a remote tree.
struct Walk {
    pass: Pass,
}

/// A remote name beside the local one.
struct Pair {
    found: Found,
    theirs: Stat,
    ours: Option<Stat>,
}

impl Walk {
    /// The directory that is to become like the remote one.
    async fn root(
        &mut self,
        local: &Path,
        attributes: Option<(u32, i64)>,
    ) -> Result<Option<Arc<Filling>>, ClientError> {
        let there = match std::fs::metadata(local) {
            Ok(found) if found.is_dir() => true,
            Ok(_) => {
                return Err(ClientError::NotADirectory { what: local.display().to_string() });
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => false,
            Err(error) => return Err(ClientError::local("look at", local, error)),
        };
        let (path, apply) = (local.to_owned(), self.pass.options.apply);
        let dir = match (there, apply) {
            (false, false) => None,
            (_, true) => Some(blocking(move || LocalDir::make(&path)).await?),
            (true, false) => Some(blocking(move || LocalDir::open(&path)).await?),
        };
        let step = match (&dir, attributes) {
            _ if !there => Some(Step::Add),
            (Some(dir), Some((mode, time))) => {
                let (ours_mode, ours_time) = dir.attributes()?;
                match (ours_mode == mode & MODE_MASK, ours_time == time) {
                    (true, true) => None,
                    (false, _) => Some(Step::Change("mode")),
                    (true, false) => Some(Step::Change("time")),
                }
            }
            _ => None,
        };
        if let Some(step) = step {
            let (path, kind) = (".".to_owned(), Kind::Directory);
            let difference = Difference { step, path, kind, bytes: 0 };
            self.pass.settle_now(difference, async { Ok(()) }).await?;
        }
        let attributes = attributes.filter(|_| apply);
        Ok(dir.map(|dir| Arc::new(Filling { dir: Arc::new(dir), attributes, parent: None })))
    }

    /// Compares the next page of a directory.
    async fn next_page(&mut self, frame: &mut Frame) -> Result<(), ClientError> {
        let session = self.pass.session.clone();
        let Some(mut page) = frame.listing.next_page_of_any(&session).await? else {
            frame.ended = true;
            return Ok(());
        };
        page.sort_by(|one, other| one.name.cmp(&other.name));
        let mut theirs = Vec::with_capacity(page.len());
        for found in page {
            let mut stat = session.describe(&found)?;
            // Only these are taken over.
            stat.mode &= MODE_MASK;
            theirs.push((found, stat));
        }
        let dir = frame.into.as_ref().map(|into| Arc::clone(&into.dir));
        let pairs = blocking(move || {
            let look = |(found, theirs): (Found, Stat)| {
                let ours = dir.as_ref().map(|dir| dir.look(local_name(&found)));
                Ok(Pair { ours: ours.transpose()?.flatten(), found, theirs })
            };
            theirs.into_iter().map(look).collect::<Result<Vec<_>, ClientError>>()
        });
        let pairs = pairs.await?;
        let (options, into) = (self.pass.options.clone(), frame.into.clone());
        let told: Vec<_> = stream::iter(pairs)
            .map(|pair| {
                let (session, into) = (session.clone(), into.clone());
                let reads = needs_reading(&pair.theirs, pair.ours.as_ref(), &options);
                async move {
                    let same = match into.filter(|_| reads) {
                        Some(into) => Some(pair.same_content(&session, &into.dir).await),
                        None => None,
                    };
                    (same.transpose(), pair)
                }
            })
            .buffered(COMPARED_AT_ONCE)
            .collect()
            .await;
        for (same, pair) in told {
            let shown = below(&frame.shown, pair.found.name.as_str());
            match same {
                Ok(same) => {
                    let below = self.settle(frame, pair, shown, same).await?;
                    frame.waiting.extend(below);
                }
                Err(error) => self.pass.fail(shown, error),
            }
            self.pass.reap()?;
        }
        Ok(())
    }

    /// Does what follows from comparing one name; gives the directory to go on with.
    async fn settle(
        &mut self,
        frame: &Frame,
        pair: Pair,
        shown: String,
        same: Option<bool>,
    ) -> Result<Option<Waiting>, ClientError> {
        let Pair { found, theirs, ours } = pair;
        let kind = theirs.kind;
        let mut verdict = verdict(&theirs, ours.as_ref(), same);
        if let (Verdict::OtherKind, Some(ours)) = (verdict, &ours) {
            if !self.pass.options.delete {
                self.pass.fail(shown, in_the_way(ours));
                return Ok(None);
            }
            let (path, kind) = (shown.clone(), ours.kind);
            let difference = Difference { step: Step::Delete, path, kind, bytes: 0 };
            let work = remove(frame.into.clone(), local_name(&found).to_owned());
            if !self.pass.settle_now(difference, work).await? {
                return Ok(None);
            }
            verdict = Verdict::Missing;
        }
        let step = match verdict {
            Verdict::Missing => Some(Step::Add),
            Verdict::Content(why) | Verdict::Attributes(why) => Some(Step::Change(why)),
            Verdict::Same | Verdict::OtherKind => None,
        };
        if kind == Kind::Directory {
            return self.directory(frame, &found, shown, step).await;
        }
        let Some(step) = step else {
            self.pass.report.unchanged += 1;
            return Ok(None);
        };
        let (session, progress) = (self.pass.session.clone(), Arc::clone(&self.pass.progress));
        let into = frame.into.clone();
        if matches!(verdict, Verdict::Attributes(_)) {
            let difference = Difference { step, path: shown, kind, bytes: 0 };
            let work = async move {
                let into = into.ok_or(ClientError::Stopped)?;
                let dir = Arc::clone(&into.dir);
                let name = local_name(&found).to_owned();
                let (mode, time) = (theirs.mode, theirs.mtime_ns);
                let set = blocking(move || dir.set_file_attributes(&name, mode, time)).await;
                close(into).await.and(set)
            };
            self.pass.settle(difference, work).await?;
            return Ok(None);
        }
        let bytes = if kind == Kind::File { theirs.length } else { 0 };
        let difference = Difference { step, path: shown.clone(), kind, bytes };
        // What came by itself since it was looked for stays.
        let overwrite = step != Step::Add;
        let work = async move {
            let into = into.ok_or(ClientError::Stopped)?;
            let fetched =
                session.fetch_into(&found, &into.dir, &shown, overwrite, progress.as_ref()).await;
            let closed = close(into).await;
            fetched.and(closed)
        };
        self.pass.settle(difference, work).await?;
        Ok(None)
    }

    /// Makes or enters a local directory. It gets its mode and time when everything in it is done.
    async fn directory(
        &mut self,
        frame: &Frame,
        found: &Found,
        shown: String,
        step: Option<Step>,
    ) -> Result<Option<Waiting>, ClientError> {
        let directory = found.directory().cloned().ok_or(ClientError::Stopped)?;
        let attributes = self.pass.session.directory_attributes(found)?;
        let (apply, parent) = (self.pass.options.apply, frame.into.clone());
        let name = local_name(found).to_owned();
        let entered = async {
            let Some(parent) = parent else { return Ok(None) };
            if !apply && step == Some(Step::Add) {
                return Ok(None);
            }
            let above = Arc::clone(&parent.dir);
            let enter = move || match apply {
                true => above.subdirectory(&name).map(|(dir, _)| dir),
                false => above.enter(&name),
            };
            let dir = Arc::new(blocking(enter).await?);
            let (attributes, parent) = (attributes.filter(|_| apply), Some(parent));
            Ok(Some(Arc::new(Filling { dir, attributes, parent })))
        };
        let into = match entered.await {
            Ok(into) => into,
            Err(error) => {
                self.pass.fail(shown, error);
                return Ok(None);
            }
        };
        match step {
            Some(step) => {
                let (path, kind) = (shown.clone(), Kind::Directory);
                let difference = Difference { step, path, kind, bytes: 0 };
                self.pass.settle_now(difference, async { Ok(()) }).await?;
            }
            None => self.pass.report.unchanged += 1,
        }
        Ok(Some(Waiting { shown, directory, into }))
    }

    /// Removes what only the local directory has.
    async fn remove_extra(&mut self, frame: &Frame) -> Result<(), ClientError> {
        let wanted = self.pass.options.delete && frame.whole;
        let Some(into) = frame.into.clone().filter(|_| wanted) else { return Ok(()) };
        let mut names = into.dir.names()?;
        loop {
            let page: Vec<OsString> =
                names.by_ref().take(NAMES_AT_ONCE).collect::<Result<_, _>>()?;
            if page.is_empty() {
                return close(into).await;
            }
            // What cannot be a remote name has no counterpart there.
            let (valid, mut extra): (Vec<_>, Vec<_>) =
                page.into_iter().partition(|name| FileName::from_bytes(name.as_bytes()).is_ok());
            let asked: Vec<FileName> = valid
                .iter()
                .filter_map(|name| FileName::from_bytes(name.as_bytes()).ok())
                .collect();
            let session = self.pass.session.clone();
            let standing = session.look_up_all(&frame.directory, &asked).await?;
            for (name, found) in valid.into_iter().zip(standing) {
                if found.is_none_or(|found| !found.is_live()) {
                    extra.push(name);
                }
            }
            extra.sort();
            for name in extra {
                let path = below(&frame.shown, &name.to_string_lossy());
                let Some(ours) = into.dir.look(&name)? else { continue };
                let (step, kind) = (Step::Delete, ours.kind);
                let difference = Difference { step, path, kind, bytes: 0 };
                let work = remove(Some(Arc::clone(&into)), name);
                self.pass.settle_now(difference, work).await?;
            }
        }
    }

    /// Everything in a directory is done, or under way.
    async fn leave(&mut self, frame: Frame) {
        let Some(into) = frame.into else { return };
        if let Err(error) = close(into).await {
            self.pass.fail(frame.shown, error);
        }
    }
}

impl Pair {
    async fn same_content(
        &self,
        session: &Session,
        dir: &Arc<LocalDir>,
    ) -> Result<bool, ClientError> {
        let (dir, name) = (Arc::clone(dir), local_name(&self.found).to_owned());
        let source = blocking(move || {
            let file = dir.open_file(&name)?;
            Source::file(file, &dir.path().join(&name))
        });
        session.has_content_of(&self.found, self.found.name.as_str(), source.await?).await
    }
}

async fn remove(into: Option<Arc<Filling>>, name: OsString) -> Result<(), ClientError> {
    let into = into.ok_or(ClientError::Stopped)?;
    let dir = Arc::clone(&into.dir);
    let removed = blocking(move || dir.remove(&name)).await;
    close(into).await.and(removed)
}

fn local_name(found: &Found) -> &OsStr {
    OsStr::from_bytes(found.name.as_str().as_bytes())
}
