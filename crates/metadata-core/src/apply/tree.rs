//! The rules of the tree that no single entry can see: what lies above what, and whether all of it
//! is live.

use coffer_model::id::InodeId;
use coffer_model::name::PATH_DEPTH_MAX;
use coffer_model::object::{Kind, VaultLeaf};
use coffer_model::op::Rejection;

use crate::apply::Stop;
use crate::state::{InodeState, Row, load};
use crate::tables::{Table, Tables};

/// Where something lies.
pub(crate) struct Place {
    /// The home it is charged to.
    pub(crate) home: InodeId,
    /// The access list that counts there.
    pub(crate) vault: VaultLeaf,
    /// How many directories are above it.
    pub(crate) depth: usize,
}

/// Walks from `inode` up to the home's root. Every step must be linked; `avoid`, where given, must
/// not be met (a directory below itself).
pub(crate) fn live_place(
    tables: &impl Tables,
    inode: &InodeId,
    avoid: Option<&InodeId>,
) -> Result<Place, Stop> {
    walk_up(tables, inode, avoid, true)
}

/// As [`live_place`], but deleted steps are no obstacle: who may see, not what stands.
pub(crate) fn any_place(tables: &impl Tables, inode: &InodeId) -> Result<Place, Stop> {
    walk_up(tables, inode, None, false)
}

fn walk_up(
    tables: &impl Tables,
    inode: &InodeId,
    avoid: Option<&InodeId>,
    only_live: bool,
) -> Result<Place, Stop> {
    let mut at = *inode;
    let mut vault: Option<VaultLeaf> = None;
    for depth in 0..=PATH_DEPTH_MAX {
        if avoid == Some(&at) {
            return Err(Rejection::IntoItself.into());
        }
        let state = inode_state(tables, &at)?.ok_or(Rejection::NotFound)?;
        if only_live && !state.linked {
            return Err(Rejection::NotFound.into());
        }
        if state.vault && vault.is_none() {
            let row: Option<Row<VaultLeaf>> = load(tables, Table::Vaults, at.as_bytes())?;
            vault = row.map(|row| row.leaf);
        }
        match state.parent {
            Some(parent) => at = parent.directory,
            None => {
                let vault = vault.ok_or(Rejection::NotFound)?;
                return Ok(Place { home: state.home, vault, depth });
            }
        }
    }
    Err(Rejection::TooDeep.into())
}

/// The state of an inode.
pub(crate) fn inode_state(
    tables: &impl Tables,
    inode: &InodeId,
) -> Result<Option<InodeState>, Stop> {
    Ok(load(tables, Table::Inodes, inode.as_bytes())?)
}

/// The state of something that must be a directory.
pub(crate) fn directory(tables: &impl Tables, inode: &InodeId) -> Result<InodeState, Stop> {
    let state = inode_state(tables, inode)?.ok_or(Rejection::NotFound)?;
    if state.kind != Kind::Directory {
        return Err(Rejection::NotADirectory.into());
    }
    Ok(state)
}
