//! Going through a whole tree without fetching any content.

use coffer_model::name::RemotePath;
use coffer_model::object::Kind;

use crate::error::ClientError;
use crate::session::{EntryInfo, Session, Stat};

/// One name of a tree that is walked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Visit {
    /// Where it is.
    pub path: RemotePath,
    /// How many levels below the start; the start itself has 0.
    pub depth: usize,
    /// Whether it is the last name of its directory.
    pub last: bool,
    /// What it is.
    pub stat: Stat,
}

/// A walk through a tree: each directory before what is in it, names ascending. The directories of one
/// path at a time are held in memory.
pub struct TreeWalk {
    session: Session,
    open: Vec<Level>,
    deepest: usize,
}

/// What is left of one directory, in reverse order.
struct Level {
    path: RemotePath,
    rest: Vec<EntryInfo>,
}

impl Session {
    /// Walks a path and everything below it, down to `deepest` levels. The first visit is the path itself.
    pub async fn walk_tree(
        &self,
        path: &RemotePath,
        deepest: usize,
    ) -> Result<(Visit, TreeWalk), ClientError> {
        let stat = self.stat(path).await?;
        let mut walk = TreeWalk { session: self.clone(), open: Vec::new(), deepest };
        let first = Visit { path: path.clone(), depth: 0, last: true, stat };
        walk.enter(&first).await?;
        Ok((first, walk))
    }
}

impl TreeWalk {
    /// The next name; none at the end. What was removed while the walk was on its way there is left out.
    pub async fn next(&mut self) -> Result<Option<Visit>, ClientError> {
        loop {
            let depth = self.open.len();
            let Some(level) = self.open.last_mut() else { return Ok(None) };
            let Some(entry) = level.rest.pop() else {
                self.open.pop();
                continue;
            };
            let last = level.rest.is_empty();
            let path = level.path.join(entry.name.clone());
            let path = path.map_err(|why| ClientError::invalid_name(entry.name.as_str(), why))?;
            let visit = Visit { path, depth, last, stat: entry.stat };
            match self.enter(&visit).await {
                Ok(()) => return Ok(Some(visit)),
                Err(ClientError::NotFound { .. } | ClientError::NotADirectory { .. }) => {}
                Err(error) => return Err(error),
            }
        }
    }

    async fn enter(&mut self, visit: &Visit) -> Result<(), ClientError> {
        if visit.stat.kind == Kind::Directory && visit.depth < self.deepest {
            let mut rest = self.session.list(&visit.path, false).await?;
            rest.reverse();
            self.open.push(Level { path: visit.path.clone(), rest });
        }
        Ok(())
    }
}
