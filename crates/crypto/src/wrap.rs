//! Wraps: a directory's key seals its children's keys, and an object's new key seals its former one.
//!
//! ```text
//! wrap = AES-SIV(subkey of the wrapping key, [suite, purpose, cluster, wrapping inode, child, generation],
//!                key ‖ tag key of a directory (64 bytes) or key of a file (32 bytes))
//! ```

use coffer_model::id::{ClusterId, InodeId};
use zeroize::Zeroizing;

use crate::error::CryptoError;
use crate::keys::{ChildSecret, DirectorySecret, FileKey, Label};
use crate::siv::{Purpose, SIV_BYTES, Slot};

/// Bytes of a directory's wrap.
pub const DIRECTORY_WRAP_BYTES: usize = SIV_BYTES + DirectorySecret::BYTES;
/// Bytes of a file's or symlink's wrap.
pub const FILE_WRAP_BYTES: usize = SIV_BYTES + FileKey::BYTES;

/// Where the wrap of a child's key stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WrapContext {
    /// The cluster.
    pub cluster: ClusterId,
    /// The directory whose key wraps.
    pub directory: InodeId,
    /// The inode whose key is wrapped.
    pub child: InodeId,
    /// The generation of the directory's key.
    pub generation: u32,
}

/// Where the wrap of an object's former key stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FormerContext {
    /// The cluster.
    pub cluster: ClusterId,
    /// The object whose keys these are.
    pub inode: InodeId,
    /// The generation of the key that wraps; the wrapped one is the generation before.
    pub generation: u32,
}

impl DirectorySecret {
    /// Wraps a child's key; the result stands in the child's entry.
    pub fn wrap(&self, context: &WrapContext, child: &ChildSecret) -> Vec<u8> {
        let key = self.derive(Label::Wrap);
        let place = (&context.cluster, &context.directory, &context.child, context.generation);
        match child {
            ChildSecret::Directory(secret) => {
                seal(key, Purpose::EntryDirectory, place, &secret.to_plaintext())
            }
            ChildSecret::File(file) => seal(key, Purpose::EntryFile, place, &file.to_plaintext()),
        }
    }

    /// Opens a wrap from a child's entry. Whether it holds a directory's secrets or a file's key
    /// follows from its length, and is sealed with it.
    pub fn unwrap(&self, context: &WrapContext, wrap: &[u8]) -> Result<ChildSecret, CryptoError> {
        let key = self.derive(Label::Wrap);
        let place = (&context.cluster, &context.directory, &context.child, context.generation);
        match wrap.len() {
            DIRECTORY_WRAP_BYTES => {
                let opened = open(key, Purpose::EntryDirectory, place, wrap)?;
                DirectorySecret::from_plaintext(&opened).map(ChildSecret::Directory)
            }
            FILE_WRAP_BYTES => {
                let opened = open(key, Purpose::EntryFile, place, wrap)?;
                FileKey::from_plaintext(&opened).map(ChildSecret::File)
            }
            _ => Err(CryptoError::Tampered),
        }
    }

    /// Wraps this directory's former secrets under the present ones: a newcomer to the vault may
    /// read history, and what was not yet renewed stays readable.
    pub fn wrap_former(&self, context: &FormerContext, former: &Self) -> Vec<u8> {
        let place = (&context.cluster, &context.inode, &context.inode, context.generation);
        seal(
            self.derive(Label::WrapFormer),
            Purpose::FormerDirectory,
            place,
            &former.to_plaintext(),
        )
    }

    /// Opens the wrap of this directory's former secrets.
    pub fn unwrap_former(&self, context: &FormerContext, wrap: &[u8]) -> Result<Self, CryptoError> {
        let place = (&context.cluster, &context.inode, &context.inode, context.generation);
        let opened = open(self.derive(Label::WrapFormer), Purpose::FormerDirectory, place, wrap)?;
        Self::from_plaintext(&opened)
    }
}

impl FileKey {
    /// Wraps this file's former key under the present one.
    pub fn wrap_former(&self, context: &FormerContext, former: &Self) -> Vec<u8> {
        let place = (&context.cluster, &context.inode, &context.inode, context.generation);
        seal(self.derive(Label::WrapFormer), Purpose::FormerFile, place, &former.to_plaintext())
    }

    /// Opens the wrap of this file's former key.
    pub fn unwrap_former(&self, context: &FormerContext, wrap: &[u8]) -> Result<Self, CryptoError> {
        let place = (&context.cluster, &context.inode, &context.inode, context.generation);
        let opened = open(self.derive(Label::WrapFormer), Purpose::FormerFile, place, wrap)?;
        Self::from_plaintext(&opened)
    }
}

type Place<'a> = (&'a ClusterId, &'a InodeId, &'a InodeId, u32);

fn seal(key: Zeroizing<[u8; 64]>, purpose: Purpose, place: Place<'_>, plaintext: &[u8]) -> Vec<u8> {
    let (cluster, wrapping, child, generation) = place;
    let place =
        [&cluster.as_bytes()[..], wrapping.as_bytes(), child.as_bytes(), &generation.to_le_bytes()];
    Slot { key, purpose, place: &place }.seal(&[], plaintext)
}

fn open(
    key: Zeroizing<[u8; 64]>,
    purpose: Purpose,
    place: Place<'_>,
    wrap: &[u8],
) -> Result<crate::plaintext::Plaintext, CryptoError> {
    let (cluster, wrapping, child, generation) = place;
    let place =
        [&cluster.as_bytes()[..], wrapping.as_bytes(), child.as_bytes(), &generation.to_le_bytes()];
    Slot { key, purpose, place: &place }.open(wrap)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
