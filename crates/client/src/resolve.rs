//! From paths to inodes. A path whose directories were met before takes one question: the tags of all
//! its names are computed from remembered keys. What comes back is verified step by step, and a
//! directory that has been replaced meanwhile is noticed, for its inode is another.

use std::sync::Arc;

use coffer_model::id::NameTag;
use coffer_model::name::{FileName, RemotePath};
use coffer_proto::v1 as pb;
use coffer_proto::v1::answer::Answer;

use crate::error::ClientError;
use crate::node::{Directory, Found};
use crate::read::walk_query;
use crate::session::Session;

/// What is wanted beyond the name.
pub(crate) fn nothing() -> pb::Want {
    pb::Want::default()
}

/// Mode, times, and the current version without slots.
pub(crate) fn attrs_and_head() -> pb::Want {
    pb::Want { attrs: true, head: true, ..pb::Want::default() }
}

/// The slots of a small file as well.
pub(crate) fn all_of_a_small_file() -> pb::Want {
    pb::Want { to_slot: SMALL_FILE_SLOTS, ..attrs_and_head() }
}

/// Slots that come along with a name: one page of the manifest.
pub(crate) const SMALL_FILE_SLOTS: u64 = 64;

/// Where a path leads.
pub(crate) enum Place {
    /// `/`, which is not stored anywhere.
    Top,
    /// The root of the own home.
    Home,
    /// A name in a directory.
    Name(Box<Located>),
}

/// A name in a directory that exists.
pub(crate) struct Located {
    pub(crate) parent: Arc<Directory>,
    pub(crate) name: FileName,
    /// What stands under the name: live, a tombstone, or nothing.
    pub(crate) found: Option<Found>,
}

impl Located {
    /// What stands under the name, if it is live.
    pub(crate) fn live(self, path: &RemotePath) -> Result<Found, ClientError> {
        self.found.filter(Found::is_live).ok_or_else(|| ClientError::not_found(path))
    }
}

impl Session {
    /// Finds what a path leads to. Everything but the last name must exist.
    pub(crate) async fn place(
        &self,
        path: &RemotePath,
        want: pb::Want,
    ) -> Result<Place, ClientError> {
        let Some(home) = path.home() else { return Ok(Place::Top) };
        if home != self.name() {
            return Err(ClientError::Denied { what: format!("/{home} is not shared with you") });
        }
        match path.names().split_last() {
            None => Ok(Place::Home),
            Some((last, _)) => {
                let (parent, found) = self.walk(path, want).await?;
                Ok(Place::Name(Box::new(Located { parent, name: last.clone(), found })))
            }
        }
    }

    /// Finds a name that must lie below a home.
    pub(crate) async fn locate(
        &self,
        path: &RemotePath,
        want: pb::Want,
    ) -> Result<Located, ClientError> {
        match self.place(path, want).await? {
            Place::Name(located) => Ok(*located),
            Place::Top | Place::Home => Err(ClientError::IsADirectory { what: path.to_string() }),
        }
    }

    /// Finds a directory that must exist.
    pub(crate) async fn directory(&self, path: &RemotePath) -> Result<Arc<Directory>, ClientError> {
        match self.place(path, nothing()).await? {
            Place::Top => Err(ClientError::Denied { what: "`/` belongs to nobody".to_owned() }),
            Place::Home => Ok(Arc::clone(&self.home().root)),
            Place::Name(located) => {
                let found = located.live(path)?;
                let directory = found.directory();
                directory
                    .cloned()
                    .ok_or_else(|| ClientError::NotADirectory { what: path.to_string() })
            }
        }
    }

    /// Follows all names of a path: the directory of the last one, and what stands under it.
    async fn walk(
        &self,
        path: &RemotePath,
        want: pb::Want,
    ) -> Result<(Arc<Directory>, Option<Found>), ClientError> {
        let home = self.home();
        let names = path.names();
        let mut at = Arc::clone(&home.root);
        let mut done = 0;
        // Each turn takes at least one step.
        loop {
            let guess = self.guess(&at, &names[done..]);
            let complete = done + guess.tags.len() == names.len();
            let wanted = if complete { want } else { nothing() };
            let mut reading =
                self.wire().read(vec![walk_query(at.inode, &guess.tags, wanted)]).await?;
            let Some(Answer::Walk(answer)) = reading.answers.pop() else {
                return Err(ClientError::tampered("another answer than was asked for"));
            };
            if answer.steps.len() > guess.tags.len() {
                return Err(ClientError::tampered("more steps than names"));
            }
            let mut steps = answer.steps.into_iter();
            for (number, tag) in guess.tags.iter().enumerate() {
                let last = done + 1 == names.len();
                let Some(step) = steps.next() else {
                    return if last { Ok((at, None)) } else { Err(missing(path, done)) };
                };
                let (proven, revision) = (&reading.proven, reading.revision);
                let found =
                    self.wire().open_found(&home, &at, Some(*tag), proven, step, revision)?;
                if last {
                    self.remember(&found);
                    return Ok((at, Some(found)));
                }
                if !found.is_live() {
                    return Err(missing(path, done));
                }
                let next = found.directory().cloned();
                self.remember(&found);
                at = next.ok_or_else(|| ClientError::NotADirectory { what: above(path, done) })?;
                done += 1;
                if guess.directories.get(number).is_some_and(|guessed| *guessed != at.inode) {
                    break;
                }
            }
        }
    }

    /// The tags of as many names as remembered keys reach, at least one.
    fn guess(&self, from: &Arc<Directory>, names: &[FileName]) -> Guess {
        let mut guess = Guess { tags: Vec::new(), directories: Vec::new() };
        let mut at = Arc::clone(from);
        for name in names {
            let tag = at.secret.name_tag(name);
            guess.tags.push(tag);
            let Some(next) = self.remembered(at.inode, tag) else { break };
            guess.directories.push(next.inode);
            at = next;
        }
        guess
    }
}

/// Tags of names, and the directories they were guessed to lead to.
struct Guess {
    tags: Vec<NameTag>,
    directories: Vec<coffer_model::id::InodeId>,
}

/// The first names of a path, up to the one at `last`.
fn above(path: &RemotePath, last: usize) -> String {
    let mut shown = format!("/{}", path.home().map_or("", |home| home.as_str()));
    for name in path.names().iter().take(last + 1) {
        shown.push('/');
        shown.push_str(name.as_str());
    }
    shown
}

fn missing(path: &RemotePath, at: usize) -> ClientError {
    ClientError::not_found(above(path, at))
}
