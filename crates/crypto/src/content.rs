//! What is sealed in attributes and versions: plaintext structures, their encoding and its padding.
//!
//! ```text
//! plaintext = length of the encoding (u32 LE) ‖ borsh encoding ‖ zeros
//! ```
//!
//! With padding the whole has a Padmé length of at least 64 bytes, without it there are no zeros.

use std::collections::BTreeMap;

use borsh::{BorshDeserialize, BorshSerialize};
use coffer_model::encoding::encode;
use zeroize::Zeroizing;

use crate::error::CryptoError;
use crate::padding::{Padding, bucket};
use crate::plaintext::Plaintext;

/// The longest content that is sealed inside its version instead of in chunks.
pub const INLINE_BYTES_MAX: usize = 4096;
/// The longest name of an extended attribute.
pub const XATTR_NAME_BYTES_MAX: usize = 255;
/// The most bytes all names and values of one object's extended attributes have together.
pub const XATTRS_BYTES_MAX: usize = 16 * 1024;
/// The most extended attributes one object has.
pub const XATTRS_MAX: usize = 128;
/// The shortest padded plaintext.
pub const PADDED_BYTES_MIN: usize = 64;

const LENGTH_BYTES: usize = 4;

/// Permission bits: the lower twelve of a Unix mode. What kind of thing an inode is stands in its
/// entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mode(u32);

impl Mode {
    const MASK: u32 = 0o7777;

    /// Takes a Unix mode, without its type bits.
    pub const fn from_bits(bits: u32) -> Self {
        Self(bits & Self::MASK)
    }

    /// The permission bits.
    pub const fn bits(self) -> u32 {
        self.0
    }
}

/// Extended attributes, ascending by name, within their bounds.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Xattrs(BTreeMap<Vec<u8>, Vec<u8>>);

impl Xattrs {
    /// The value of an attribute.
    pub fn get(&self, name: &[u8]) -> Option<&[u8]> {
        self.0.get(name).map(Vec::as_slice)
    }

    /// Names and values, ascending by name.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.0.iter().map(|(name, value)| (name.as_slice(), value.as_slice()))
    }

    /// Sets an attribute. Refused, and nothing changed, where a bound would be passed.
    pub fn insert(&mut self, name: &[u8], value: &[u8]) -> Result<(), CryptoError> {
        if name.is_empty() || name.contains(&0) {
            return Err(CryptoError::Malformed("extended attribute's name"));
        }
        if name.len() > XATTR_NAME_BYTES_MAX {
            let what = "an extended attribute's name";
            return Err(CryptoError::TooLong { what, bytes_max: XATTR_NAME_BYTES_MAX });
        }
        let others = self.0.iter().filter(|(other, _)| other.as_slice() != name);
        let (count, bytes) = others.fold((0, 0), |(count, bytes), (name, value)| {
            (count + 1, bytes + name.len() + value.len())
        });
        if count >= XATTRS_MAX || name.len() + value.len() > XATTRS_BYTES_MAX - bytes {
            let what = "the set of extended attributes";
            return Err(CryptoError::TooLong { what, bytes_max: XATTRS_BYTES_MAX });
        }
        self.0.insert(name.to_vec(), value.to_vec());
        Ok(())
    }

    /// Removes an attribute; whether it was there.
    pub fn remove(&mut self, name: &[u8]) -> bool {
        self.0.remove(name).is_some()
    }
}

/// Mode, time and extended attributes of an inode. Files have their time in the version instead; here
/// it counts for directories and symlinks.
#[derive(Clone, PartialEq, Eq)]
pub struct Attrs {
    /// Permission bits.
    pub mode: Mode,
    /// When it was last changed, in nanoseconds since the Unix epoch.
    pub mtime_ns: i64,
    /// Extended attributes.
    pub xattrs: Xattrs,
}

/// What a version carries beside its manifest.
pub struct VersionInfo {
    /// The length of the content.
    pub length: u64,
    /// When it was last changed, in nanoseconds since the Unix epoch.
    pub mtime_ns: i64,
    /// The content itself, where it is short enough ([`INLINE_BYTES_MAX`]), and always the target of a
    /// symlink. Then it has exactly `length` bytes, and there are no chunks.
    pub inline: Option<Plaintext>,
}

#[derive(BorshSerialize, BorshDeserialize)]
struct AttrsFields {
    mode: u32,
    mtime_ns: i64,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

#[derive(BorshDeserialize)]
struct VersionFields {
    length: u64,
    mtime_ns: i64,
    inline: Option<Vec<u8>>,
}

impl Attrs {
    /// The plaintext to be sealed.
    pub fn encode(&self, padding: Padding) -> Plaintext {
        let xattrs = self.xattrs.0.clone().into_iter().collect();
        frame(&encode(&AttrsFields { mode: self.mode.0, mtime_ns: self.mtime_ns, xattrs }), padding)
    }

    /// Reads an opened plaintext.
    pub fn decode(plaintext: &Plaintext) -> Result<Self, CryptoError> {
        const REFUSED: CryptoError = CryptoError::Malformed("attributes");
        let fields: AttrsFields = unframe(plaintext).ok_or(REFUSED)?;
        let ascending = fields.xattrs.windows(2).all(|pair| pair[0].0 < pair[1].0);
        if fields.mode & !Mode::MASK != 0 || !ascending {
            return Err(REFUSED);
        }
        let mut xattrs = Xattrs::default();
        for (name, value) in &fields.xattrs {
            xattrs.insert(name, value).map_err(|_| REFUSED)?;
        }
        Ok(Self { mode: Mode(fields.mode), mtime_ns: fields.mtime_ns, xattrs })
    }
}

impl VersionInfo {
    /// The plaintext to be sealed.
    pub fn encode(&self, padding: Padding) -> Result<Plaintext, CryptoError> {
        let inline = self.inline.as_deref();
        if inline.is_some_and(|inline| inline.len() > INLINE_BYTES_MAX) {
            return Err(CryptoError::TooLong {
                what: "inline content",
                bytes_max: INLINE_BYTES_MAX,
            });
        }
        if !self.is_consistent() {
            return Err(CryptoError::Malformed("version"));
        }
        let encoding = Zeroizing::new(encode(&(self.length, self.mtime_ns, inline)));
        Ok(frame(&encoding, padding))
    }

    /// Reads an opened plaintext.
    pub fn decode(plaintext: &Plaintext) -> Result<Self, CryptoError> {
        const REFUSED: CryptoError = CryptoError::Malformed("version");
        let fields: VersionFields = unframe(plaintext).ok_or(REFUSED)?;
        let VersionFields { length, mtime_ns, inline } = fields;
        let version = Self { length, mtime_ns, inline: inline.map(Plaintext::from) };
        if version.is_consistent() { Ok(version) } else { Err(REFUSED) }
    }

    fn is_consistent(&self) -> bool {
        let fits = |inline: &Plaintext| {
            inline.len() <= INLINE_BYTES_MAX && u64::try_from(inline.len()) == Ok(self.length)
        };
        self.inline.as_ref().is_none_or(fits)
    }
}

/// Gives an encoding its length and its padding.
pub(crate) fn frame(encoding: &[u8], padding: Padding) -> Plaintext {
    let length =
        u32::try_from(encoding.len()).expect("what is framed here has bounds far below 4 GiB");
    let framed_bytes = LENGTH_BYTES + encoding.len();
    let mut plaintext = Plaintext::with_capacity(framed_bytes);
    plaintext.extend(&length.to_le_bytes());
    plaintext.extend(encoding);
    match padding {
        Padding::Bucket => plaintext.pad(bucket(framed_bytes, PADDED_BYTES_MIN)),
        Padding::None => {}
    }
    plaintext
}

/// Reads a framed encoding; anything but zeros behind it is refused.
pub(crate) fn unframe<T: BorshDeserialize>(plaintext: &[u8]) -> Option<T> {
    let (length, rest) = plaintext.split_first_chunk::<LENGTH_BYTES>()?;
    let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
    let (encoding, padding) = rest.split_at_checked(length)?;
    if padding.iter().any(|byte| *byte != 0) {
        return None;
    }
    borsh::from_slice(encoding).ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
