//! What the node knows of its cluster, which changes while it runs: the descriptor in force, the
//! layout in force and the former ones that are not retired.
//!
//! A descriptor counts only if the one before it vouches for it, from the first one on, which the
//! configuration names. Those that follow it stand on the volume, one file each, so that a start knows
//! them. What a file holds that does not check out is left out: the members say it again. Layouts are
//! asked for after each start.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use bytes::Bytes;
use coffer_model::descriptor::{Descriptor, DescriptorError, Followed, SignedDescriptor};
use coffer_model::encoding::decode;
use coffer_model::id::{ChunkId, ClusterId, NodeId};
use coffer_model::layout::{Layout, LayoutError};
use coffer_service::files::{PRIVATE_FILE, create_private_dir, write_atomically};

/// Where the descriptors after the first stand on the volume.
pub(crate) const FOLDER: &str = "descriptors";

/// Why something that members said of the cluster was not taken up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClusterError {
    #[error("a member sent a descriptor that the one before it does not vouch for")]
    Descriptor(#[from] DescriptorError),
    #[error("a member sent a layout that does not verify")]
    Layout(#[from] LayoutError),
    #[error("the descriptors' folder cannot be used")]
    Folder(#[from] io::Error),
}

/// What is known at one moment.
#[derive(Clone)]
pub(crate) struct View {
    pub(crate) descriptor: Arc<Descriptor>,
    /// The one in force, and the former ones, newest first; none before a member has answered.
    layouts: Arc<[Layout]>,
}

impl View {
    pub(crate) fn layout(&self) -> Option<&Layout> {
        self.layouts.first()
    }

    /// Version of the layout in force, as far as is known; 0 if none is.
    pub(crate) fn layout_version(&self) -> u64 {
        self.layout().map_or(0, Layout::version)
    }

    /// All that are not retired: the one in force, and the former ones, newest first.
    pub(crate) fn layouts(&self) -> &[Layout] {
        &self.layouts
    }

    /// Whether any layout that is not retired gives the chunk to the node.
    pub(crate) fn gives(&self, node: NodeId, chunk: &ChunkId) -> bool {
        self.layouts.iter().any(|layout| layout.nodes_of(chunk).any(|holder| holder == node))
    }

    pub(crate) fn names(&self, node: NodeId) -> bool {
        self.descriptor.node_key(node).is_some()
    }
}

/// What the node knows of its cluster. One task learns, everybody reads.
pub(crate) struct Cluster {
    id: ClusterId,
    folder: PathBuf,
    followed: Mutex<Followed>,
    view: RwLock<View>,
    /// No member takes this node for one of the cluster's.
    is_disowned: AtomicBool,
}

impl Cluster {
    /// Goes on from the last descriptor in `folder` to which those before it lead from the first.
    pub(crate) fn open(
        id: ClusterId,
        first: Descriptor,
        folder: PathBuf,
    ) -> Result<Self, ClusterError> {
        create_private_dir(&folder)?;
        let mut followed = Followed::new(first);
        while let Some(number) = followed.descriptor.number.checked_add(1) {
            let bytes = match std::fs::read(folder.join(file_name(number))) {
                Ok(bytes) => bytes,
                Err(error) if error.kind() == io::ErrorKind::NotFound => break,
                Err(error) => return Err(error.into()),
            };
            if let Err(error) = step(&mut followed, &bytes, &id) {
                tracing::warn!(%error, number, "a stored descriptor is damaged; it is asked for again");
                break;
            }
        }
        let view =
            View { descriptor: Arc::new(followed.descriptor.clone()), layouts: Arc::new([]) };
        Ok(Self {
            id,
            folder,
            followed: Mutex::new(followed),
            view: RwLock::new(view),
            is_disowned: AtomicBool::new(false),
        })
    }

    pub(crate) fn id(&self) -> &ClusterId {
        &self.id
    }

    pub(crate) fn view(&self) -> View {
        self.view.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn followed(&self) -> MutexGuard<'_, Followed> {
        self.followed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the members did not take this node for one of the cluster's when they were asked last.
    pub(crate) fn is_disowned(&self) -> bool {
        self.is_disowned.load(Ordering::Relaxed)
    }

    /// The members said whether this node is one of the cluster's. Says whether that is news.
    pub(crate) fn disown(&self, is_disowned: bool) -> bool {
        self.is_disowned.swap(is_disowned, Ordering::Relaxed) != is_disowned
    }

    /// Takes up descriptors that follow the one in force, in order. Those before one that does not
    /// check out count.
    pub(crate) fn learn_descriptors(&self, signed: &[Bytes]) -> Result<(), ClusterError> {
        for bytes in signed {
            let mut followed = self.followed().clone();
            step(&mut followed, bytes, &self.id)?;
            let next = followed.descriptor.clone();
            // First on the volume: a node that was taken out must not serve again after a restart.
            write_atomically(&self.folder.join(file_name(next.number)), bytes, PRIVATE_FILE)?;
            tracing::info!(number = next.number, "another descriptor is in force");
            *self.followed() = followed;
            let mut view = self.view.write().unwrap_or_else(PoisonError::into_inner);
            view.descriptor = Arc::new(next);
        }
        Ok(())
    }

    /// Takes up the layouts that a member says are in force and not retired. A member that is behind
    /// changes nothing.
    pub(crate) fn learn_layouts(
        &self,
        current: &[u8],
        former: &[Bytes],
    ) -> Result<(), ClusterError> {
        let known = self.view();
        let followed = self.followed().clone();
        let current = followed.verify_layout(current, &self.id)?;
        let version = current.version();
        let mut layouts = vec![current];
        for signed in former {
            // One that cannot be checked, as its administrator has gone, costs the others nothing.
            let Ok(layout) = followed.verify_layout(signed, &self.id) else { continue };
            if layouts.last().is_some_and(|newer| layout.version() < newer.version()) {
                layouts.push(layout);
            }
        }
        let retires = known.layouts.len() > layouts.len();
        if version < known.layout_version() || version == known.layout_version() && !retires {
            return Ok(());
        }
        tracing::info!(version, former = layouts.len() - 1, "the layouts changed");
        let mut view = self.view.write().unwrap_or_else(PoisonError::into_inner);
        view.layouts = layouts.into();
        Ok(())
    }
}

/// Gives the volume of a new node the signed descriptors after the first: it is named in one of them, and
/// starts only if it is.
pub fn install_descriptors(data_dir: &Path, successors: &[Vec<u8>]) -> io::Result<()> {
    let folder = data_dir.join(FOLDER);
    create_private_dir(&folder)?;
    for (number, signed) in (1..).zip(successors) {
        write_atomically(&folder.join(file_name(number)), signed, PRIVATE_FILE)?;
    }
    Ok(())
}

fn step(followed: &mut Followed, bytes: &[u8], cluster: &ClusterId) -> Result<(), DescriptorError> {
    let signed: SignedDescriptor = decode("cluster descriptor", bytes)?;
    followed.step(cluster, &signed)
}

fn file_name(number: u64) -> String {
    format!("{number:016}")
}

#[cfg(test)]
mod tests;
