//! Names: found by a keyed tag, shown from a sealed copy, and the two are checked against each other.
//!
//! ```text
//! sealed name = random (16) ‖ AES-SIV(subkey of the directory key,
//!                                     [suite, purpose, cluster, directory, inode, random],
//!                                     length (1) ‖ name ‖ zeros up to 32, 64, 128 or 256 bytes)
//! ```

use coffer_model::id::{ClusterId, InodeId, NameTag};
use coffer_model::name::FileName;
use subtle::ConstantTimeEq;

use crate::error::CryptoError;
use crate::keys::{DirectorySecret, Label};
use crate::plaintext::Plaintext;
use crate::siv::{Purpose, SIV_BYTES, Slot};

const RANDOM_BYTES: usize = 16;
/// What a name with its length byte is padded to.
pub const NAME_BUCKETS: [usize; 4] = [32, 64, 128, 256];
/// The longest sealed name.
pub const SEALED_NAME_BYTES_MAX: usize = RANDOM_BYTES + SIV_BYTES + NAME_BUCKETS[3];

/// Where a name stands and what it points at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NameContext {
    /// The cluster.
    pub cluster: ClusterId,
    /// The directory the name is in.
    pub directory: InodeId,
    /// The inode it points at.
    pub inode: InodeId,
}

impl DirectorySecret {
    /// What `name` is looked up by in this directory. The same name elsewhere has an unrelated tag.
    pub fn name_tag(&self, name: &FileName) -> NameTag {
        NameTag::from_bytes(
            *blake3::keyed_hash(self.tag_key(), name.as_str().as_bytes()).as_bytes(),
        )
    }

    /// Seals a name; `random` makes the same name, given again, look different.
    pub fn seal_name(&self, context: &NameContext, random: &[u8; 16], name: &FileName) -> Vec<u8> {
        self.name_slot(context, random, |slot| slot.seal(random, &padded(name)))
    }

    /// Opens a name and checks that it is the one the entry was found under.
    pub fn open_name(
        &self,
        context: &NameContext,
        sealed: &[u8],
        expected: &NameTag,
    ) -> Result<FileName, CryptoError> {
        let (random, body) =
            sealed.split_first_chunk::<RANDOM_BYTES>().ok_or(CryptoError::Tampered)?;
        let opened = self.name_slot(context, random, |slot| slot.open(body))?;
        let name = unpadded(&opened).ok_or(CryptoError::Tampered)?;
        let tag = self.name_tag(&name);
        if bool::from(tag.as_bytes().ct_eq(expected.as_bytes())) {
            Ok(name)
        } else {
            Err(CryptoError::Tampered)
        }
    }

    fn name_slot<T>(
        &self,
        context: &NameContext,
        random: &[u8; 16],
        with: impl FnOnce(&Slot<'_>) -> T,
    ) -> T {
        let NameContext { cluster, directory, inode } = context;
        let place = [&cluster.as_bytes()[..], directory.as_bytes(), inode.as_bytes(), random];
        with(&Slot { key: self.derive(Label::Name), purpose: Purpose::Name, place: &place })
    }
}

fn padded(name: &FileName) -> Plaintext {
    let bytes = name.as_str().as_bytes();
    let length = u8::try_from(bytes.len()).expect("a name has at most 255 bytes");
    let bucket = NAME_BUCKETS.into_iter().find(|bucket| bytes.len() < *bucket);
    let mut plaintext = Plaintext::with_capacity(NAME_BUCKETS[3]);
    plaintext.extend(&[length]);
    plaintext.extend(bytes);
    plaintext.pad(bucket.expect("a name and its length fit into 256 bytes"));
    plaintext
}

fn unpadded(plaintext: &[u8]) -> Option<FileName> {
    let (length, rest) = plaintext.split_first()?;
    let (name, padding) = rest.split_at_checked(usize::from(*length))?;
    let canonical = NAME_BUCKETS.into_iter().find(|bucket| name.len() < *bucket)?;
    if plaintext.len() != canonical || padding.iter().any(|byte| *byte != 0) {
        return None;
    }
    FileName::from_bytes(name).ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
