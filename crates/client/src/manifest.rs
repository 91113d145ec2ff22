//! The manifest of a version that is being written: it knows the pages that the next changed slots
//! touch, and forgets the others. Content written front to back needs only the right edge of the tree.

use std::collections::BTreeMap;

use bytes::Bytes;
use coffer_model::hash::Hash;
use coffer_model::manifest::{ManifestError, Page, Root, Slot, change};

use crate::error::ClientError;

/// A manifest with the pages it takes to change it.
#[derive(Default, Clone)]
pub(crate) struct Manifest {
    pub(crate) root: Root,
    pub(crate) slots: u64,
    pages: BTreeMap<Hash, Vec<u8>>,
}

impl Manifest {
    /// The manifest of a version, with the pages an answer carried.
    pub(crate) fn of_version(root: Root, slots: u64, pages: &[Bytes]) -> Self {
        Self { root, slots, pages: by_hash(pages) }
    }

    /// Puts changed slots in (strictly ascending); afterwards there are `slots` slots.
    pub(crate) fn change(
        &mut self,
        slots: u64,
        changes: &[(u64, Slot)],
    ) -> Result<(), ClientError> {
        let changed =
            change(&self.pages, self.root, self.slots, slots, changes).map_err(bad_page)?;
        self.root = changed.root;
        self.slots = slots;
        self.pages.extend(changed.pages);
        Ok(())
    }

    /// Forgets all pages but those at the right edge: only slots at the end follow.
    pub(crate) fn keep_right_edge(&mut self) -> Result<(), ClientError> {
        let mut edge = BTreeMap::new();
        let mut at = self.root;
        while let Some(hash) = at {
            let Some(bytes) = self.pages.remove(&hash) else { break };
            at = match Page::parse(&bytes).map_err(bad_page)? {
                Page::Interior(children) => children.last().copied().flatten(),
                Page::Leaf(_) => None,
            };
            edge.insert(hash, bytes);
        }
        self.pages = edge;
        Ok(())
    }
}

/// Pages by their hash, as [`coffer_model::manifest`] looks them up.
pub(crate) fn by_hash(pages: &[Bytes]) -> BTreeMap<Hash, Vec<u8>> {
    pages.iter().map(|page| (Page::hash(page), page.to_vec())).collect()
}

/// A page that is not what the root commits to came from a server.
pub(crate) fn bad_page(error: ManifestError) -> ClientError {
    match error {
        ManifestError::Changes | ManifestError::TooLong => {
            ClientError::Invalid { what: error.to_string() }
        }
        ManifestError::Malformed(_)
        | ManifestError::MissingPage(_)
        | ManifestError::Misplaced(_) => ClientError::tampered(error.to_string()),
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used)]
mod tests {
    use coffer_model::chunk::Redundancy;
    use coffer_model::id::{ChunkId, WriteId};
    use coffer_model::manifest::SlotChunk;

    use super::*;

    fn slot(number: u64) -> (u64, Slot) {
        let id = *blake3::hash(&number.to_le_bytes()).as_bytes();
        let chunk = SlotChunk {
            chunk: ChunkId::from_bytes(id),
            length: 1,
            write: WriteId::from_bytes([1; 16]),
            generation: 1,
            scheme: Redundancy::Replicas,
        };
        (number, Slot::Chunk(chunk))
    }

    #[test]
    fn written_front_to_back_the_right_edge_is_enough() {
        let mut edge = Manifest::default();
        let mut whole = Manifest::default();
        let mut at = 0;
        for part in [1, 63, 64, 1, 4095, 8192, 5000] {
            let changes: Vec<_> = (at..at + part).filter(|n| n % 7 != 3).map(slot).collect();
            at += part;
            edge.change(at, &changes).unwrap();
            whole.change(at, &changes).unwrap();
            assert_eq!(edge.root, whole.root);
            edge.keep_right_edge().unwrap();
            assert!(edge.pages.len() <= 4);
        }
    }
}
