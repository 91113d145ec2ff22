//! Small sealed values: attributes, and what a version carries beside its manifest. What the plaintext
//! means is said by [`crate::content`].
//!
//! ```text
//! sealed attributes = random (16) ‖ AES-SIV(subkey of the object's key,
//!                                           [suite, purpose, cluster, inode, random], plaintext)
//! sealed version    = AES-SIV(subkey of the file's key, [suite, purpose, cluster, inode, write], plaintext)
//! ```

use coffer_model::id::{ClusterId, InodeId, WriteId};

use crate::error::CryptoError;
use crate::keys::{FileKey, Label, ObjectKey};
use crate::plaintext::Plaintext;
use crate::siv::{Purpose, SIV_BYTES, Slot};

const RANDOM_BYTES: usize = 16;
/// How much longer sealed attributes are than their plaintext.
pub const ATTRS_OVERHEAD_BYTES: usize = RANDOM_BYTES + SIV_BYTES;
/// How much longer a sealed version is than its plaintext.
pub const VERSION_OVERHEAD_BYTES: usize = SIV_BYTES;

/// Whose attributes these are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AttrsContext {
    /// The cluster.
    pub cluster: ClusterId,
    /// The file, directory or symlink.
    pub inode: InodeId,
}

/// Whose version this is, and which write made it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VersionContext {
    /// The cluster.
    pub cluster: ClusterId,
    /// The file or symlink.
    pub inode: InodeId,
    /// The write.
    pub write: WriteId,
}

/// Seals attributes; `random` makes attributes that were set before look different.
pub fn seal_attrs(
    key: ObjectKey<'_>,
    context: &AttrsContext,
    random: &[u8; 16],
    plaintext: &[u8],
) -> Vec<u8> {
    let place = [&context.cluster.as_bytes()[..], context.inode.as_bytes(), random];
    Slot { key: key.derive(Label::Attrs), purpose: Purpose::Attrs, place: &place }
        .seal(random, plaintext)
}

/// Opens attributes.
pub fn open_attrs(
    key: ObjectKey<'_>,
    context: &AttrsContext,
    sealed: &[u8],
) -> Result<Plaintext, CryptoError> {
    let (random, body) = sealed.split_first_chunk::<RANDOM_BYTES>().ok_or(CryptoError::Tampered)?;
    let place = [&context.cluster.as_bytes()[..], context.inode.as_bytes(), random];
    Slot { key: key.derive(Label::Attrs), purpose: Purpose::Attrs, place: &place }.open(body)
}

/// Seals what a version carries. The same write gives the same bytes.
pub fn seal_version(key: &FileKey, context: &VersionContext, plaintext: &[u8]) -> Vec<u8> {
    let VersionContext { cluster, inode, write } = context;
    let place = [&cluster.as_bytes()[..], inode.as_bytes(), write.as_bytes()];
    Slot { key: key.derive(Label::Version), purpose: Purpose::Version, place: &place }
        .seal(&[], plaintext)
}

/// Opens what a version carries.
pub fn open_version(
    key: &FileKey,
    context: &VersionContext,
    sealed: &[u8],
) -> Result<Plaintext, CryptoError> {
    let VersionContext { cluster, inode, write } = context;
    let place = [&cluster.as_bytes()[..], inode.as_bytes(), write.as_bytes()];
    Slot { key: key.derive(Label::Version), purpose: Purpose::Version, place: &place }.open(sealed)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
