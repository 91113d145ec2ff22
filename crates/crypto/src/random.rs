//! Randomness from the operating system.

use coffer_model::id::{InodeId, PrincipalId, RequestId, WriteId};
use opaque_ke::rand::{CryptoRng, Error, RngCore};

/// `N` bytes nobody can predict.
pub fn random_bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0u8; N];
    getrandom::fill(&mut bytes)
        .expect("the operating system's random source does not fail once seeded");
    bytes
}

/// A new inode id, where none can be derived from a write (see [`crate::keys::DirectorySecret::inode_for`]).
pub fn inode_id() -> InodeId {
    InodeId::from_bytes(random_bytes())
}

/// A new id for one attempt to write content.
pub fn write_id() -> WriteId {
    WriteId::from_bytes(random_bytes())
}

/// A new id for one request.
pub fn request_id() -> RequestId {
    RequestId::from_bytes(random_bytes())
}

/// A new id for a user.
pub fn principal_id() -> PrincipalId {
    PrincipalId::from_bytes(random_bytes())
}

/// The same source in the shape OPAQUE's library wants it.
pub(crate) struct OsRandom;

impl CryptoRng for OsRandom {}

impl RngCore for OsRandom {
    fn next_u32(&mut self) -> u32 {
        u32::from_le_bytes(random_bytes())
    }

    fn next_u64(&mut self) -> u64 {
        u64::from_le_bytes(random_bytes())
    }

    fn fill_bytes(&mut self, bytes: &mut [u8]) {
        getrandom::fill(bytes)
            .expect("the operating system's random source does not fail once seeded");
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Error> {
        self.fill_bytes(bytes);
        Ok(())
    }
}
