//! Where the engine remembers what is not secret: which cluster a server is, how new an answer must be,
//! and which uploads were interrupted. Losing it loses protection against rollback, nothing else.

use std::env;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use coffer_model::id::ClusterId;
use coffer_model::name::UserName;
use coffer_service::files::create_private_dir;

use crate::error::ClientError;

/// The directory of everything remembered on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateDir(Option<PathBuf>);

impl StateDir {
    /// `$XDG_STATE_HOME/coffer`, or `~/.local/state/coffer`.
    pub fn standard() -> Result<Self, ClientError> {
        let absolute =
            |name: &str| env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
        let base = absolute("XDG_STATE_HOME")
            .or_else(|| absolute("HOME").map(|home| home.join(".local/state")))
            .ok_or_else(|| ClientError::Invalid {
                what: "neither XDG_STATE_HOME nor HOME says where to keep state".to_owned(),
            })?;
        Ok(Self(Some(base.join("coffer"))))
    }

    /// Some other directory.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self(Some(path.into()))
    }

    /// Nothing is written anywhere: what is remembered goes with the process.
    pub const fn nowhere() -> Self {
        Self(None)
    }

    /// The path of the directory; none where nothing is written.
    pub fn path(&self) -> Option<&Path> {
        self.0.as_deref()
    }

    /// What is remembered about servers.
    pub(crate) fn clusters(&self) -> Option<PathBuf> {
        Some(self.0.as_ref()?.join("clusters"))
    }

    /// What is remembered for one user of one cluster.
    pub(crate) fn of_user(&self, cluster: &ClusterId, name: &UserName) -> Option<PathBuf> {
        Some(self.0.as_ref()?.join(cluster.to_string()).join(name.as_str()))
    }
}

/// Makes the directory a file will be in.
pub(crate) fn make_parent(path: &Path) -> Result<(), ClientError> {
    let Some(parent) = path.parent() else { return Ok(()) };
    create_private_dir(parent).map_err(|error| ClientError::local("make", parent, error))
}

/// The content of a file that need not exist.
pub(crate) fn read_if_there(path: &Path) -> Result<Option<Vec<u8>>, ClientError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(ClientError::local("read", path, error)),
    }
}
