//! The keys of the tree, and how everything else is derived from them.
//!
//! Every directory and every file has one random (or derived) 32-byte key, and nothing is ever sealed
//! under that key itself: each use has a subkey, HKDF-Expand with SHA-512 under a label of its own.

use coffer_model::SUITE;
use coffer_model::encoding::encode;
use coffer_model::hash::Hash;
use coffer_model::id::{ClusterId, InodeId, WriteId};
use hkdf::Hkdf;
use sha2::Sha512;
use subtle::ConstantTimeEq;
use zeroize::{ZeroizeOnDrop, Zeroizing};

use crate::error::CryptoError;
use crate::plaintext::Plaintext;
use crate::random::random_bytes;

/// One use of a key. The text is the first part of the HKDF info.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Label {
    FileKey,
    DirectoryKey,
    DirectoryTagKey,
    InodeId,
    Wrap,
    WrapFormer,
    Name,
    Attrs,
    Version,
    Chunk,
    ChunkSalt,
    Keyring,
    KeyringPassword,
    KeyringRecovery,
    Session,
    SessionId,
}

/// Every label a subkey is derived under, and what the subkey does. No label is a prefix of another
/// that is followed by the separator, so no two infos are equal.
pub const LABELS: [(&str, &str); 16] = [
    ("coffer/v1/key/file", "directory key → the key of a new file, by its write id"),
    ("coffer/v1/key/directory", "directory key → the key of a new directory, by its write id"),
    (
        "coffer/v1/key/directory-tag",
        "directory key → the tag key of a new directory, by its write id",
    ),
    ("coffer/v1/key/inode", "directory key → the inode id of a new child, by its write id"),
    ("coffer/v1/key/wrap", "directory key → AES-SIV key of its children's wraps"),
    ("coffer/v1/key/wrap-former", "object key → AES-SIV key of the wrap of its own former key"),
    ("coffer/v1/key/name", "directory key → AES-SIV key of the names in it"),
    ("coffer/v1/key/attrs", "object key → AES-SIV key of its attributes"),
    ("coffer/v1/key/version", "file key → AES-SIV key of its versions' payloads"),
    ("coffer/v1/key/chunk", "file key → input key of chunked encryption"),
    ("coffer/v1/key/chunk-salt", "file key → BLAKE3 key of the chunks' salts"),
    ("coffer/v1/key/keyring", "keyring key → AES-SIV key of the keyring"),
    ("coffer/v1/key/keyring-password", "OPAQUE export key → AES-SIV key and commitment of a wrap"),
    ("coffer/v1/key/keyring-recovery", "recovery code → AES-SIV key and commitment of a wrap"),
    ("coffer/v1/key/session", "key of a bearer token → AES-SIV key of the session it opens"),
    ("coffer/v1/key/session-id", "key of a bearer token → what a gateway knows the token again by"),
];

impl Label {
    const fn text(self) -> &'static str {
        LABELS[self as usize].0
    }
}

/// HKDF-Expand(SHA-512, key, label ‖ 0x00 ‖ about). The key is uniformly random already, so there is
/// no extract step.
pub(crate) fn derive<const N: usize>(key: &[u8], label: Label, about: &[u8]) -> Zeroizing<[u8; N]> {
    let mut derived = Zeroizing::new([0u8; N]);
    expand(key, &[label.text().as_bytes(), &[0], about], derived.as_mut_slice());
    derived
}

/// HKDF-Expand with SHA-512 for keys of up to 64 bytes. HMAC pads a short key with zeros to its
/// block, so filling up here changes nothing but satisfies the library, which wants 64 bytes.
pub(crate) fn expand(key: &[u8], info: &[&[u8]], derived: &mut [u8]) {
    let mut padded = Zeroizing::new([0u8; 64]);
    padded[..key.len()].copy_from_slice(key);
    Hkdf::<Sha512>::from_prk(padded.as_slice())
        .expect("64 bytes are enough")
        .expand_multi_info(info, derived)
        .expect("far fewer than 255 blocks are asked for");
}

/// A directory's secrets: the key of its present generation, and the key that names are looked up
/// by, which stays the same as long as the directory lives.
#[derive(ZeroizeOnDrop)]
pub struct DirectorySecret {
    key: [u8; 32],
    tag_key: [u8; 32],
}

/// A file's or symlink's key of one generation.
#[derive(ZeroizeOnDrop)]
pub struct FileKey([u8; 32]);

/// What a directory's entry wraps.
pub enum ChildSecret {
    /// The secrets of a directory below.
    Directory(DirectorySecret),
    /// The key of a file or symlink.
    File(FileKey),
}

/// The key of an object, where it does not matter of which kind it is.
#[derive(Clone, Copy)]
pub enum ObjectKey<'a> {
    /// A directory's.
    Directory(&'a DirectorySecret),
    /// A file's or symlink's.
    File(&'a FileKey),
}

impl DirectorySecret {
    /// Bytes of both keys together.
    pub(crate) const BYTES: usize = 64;

    /// The random secrets of a new vault root.
    pub fn generate() -> Self {
        Self { key: random_bytes(), tag_key: random_bytes() }
    }

    /// The next generation of this directory: a new random key, the same tag key, so that names keep
    /// their place.
    pub fn renewed(&self) -> Self {
        Self { key: random_bytes(), tag_key: self.tag_key }
    }

    /// The key of the file that this write creates here. An interrupted upload needs only its write
    /// id to go on with the same bytes.
    pub fn file_key_for(&self, write: &WriteId) -> FileKey {
        FileKey(*derive(&self.key, Label::FileKey, write.as_bytes()))
    }

    /// The secrets of the directory that this write creates here.
    pub fn directory_for(&self, write: &WriteId) -> Self {
        Self {
            key: *derive(&self.key, Label::DirectoryKey, write.as_bytes()),
            tag_key: *derive(&self.key, Label::DirectoryTagKey, write.as_bytes()),
        }
    }

    /// The inode id of whatever this write creates here.
    pub fn inode_for(&self, write: &WriteId) -> InodeId {
        InodeId::from_bytes(*derive(&self.key, Label::InodeId, write.as_bytes()))
    }

    /// What the signed vault record says about its root key, so that no member can be handed another.
    pub fn commitment(&self, cluster: &ClusterId, vault: &InodeId, epoch: u32) -> Hash {
        let committed =
            Zeroizing::new(encode(&(SUITE, cluster, vault, epoch, self.key, self.tag_key)));
        Hash::of("coffer/v1/vault-key-commitment", &committed)
    }

    /// Checks the secrets against the commitment of a signed vault record.
    pub fn verify_commitment(
        &self,
        cluster: &ClusterId,
        vault: &InodeId,
        epoch: u32,
        expected: &Hash,
    ) -> Result<(), CryptoError> {
        let found = self.commitment(cluster, vault, epoch);
        if bool::from(found.as_bytes().ct_eq(expected.as_bytes())) {
            Ok(())
        } else {
            Err(CryptoError::KeyMismatch)
        }
    }

    pub(crate) fn derive<const N: usize>(&self, label: Label) -> Zeroizing<[u8; N]> {
        derive(&self.key, label, &[])
    }

    pub(crate) fn tag_key(&self) -> &[u8; 32] {
        &self.tag_key
    }

    /// Both keys, for sealing: `key ‖ tag key`.
    pub(crate) fn to_plaintext(&self) -> Plaintext {
        let mut plaintext = Plaintext::with_capacity(Self::BYTES);
        plaintext.extend(&self.key);
        plaintext.extend(&self.tag_key);
        plaintext
    }

    pub(crate) fn from_plaintext(plaintext: &Plaintext) -> Result<Self, CryptoError> {
        let (key, tag_key) = plaintext.split_first_chunk().ok_or(CryptoError::Tampered)?;
        let tag_key = tag_key.try_into().map_err(|_| CryptoError::Tampered)?;
        Ok(Self { key: *key, tag_key })
    }
}

impl FileKey {
    /// Bytes of the key.
    pub(crate) const BYTES: usize = 32;

    /// The next generation of a file's key.
    pub fn generate() -> Self {
        Self(random_bytes())
    }

    pub(crate) fn derive<const N: usize>(&self, label: Label) -> Zeroizing<[u8; N]> {
        derive(&self.0, label, &[])
    }

    pub(crate) fn to_plaintext(&self) -> Plaintext {
        let mut plaintext = Plaintext::with_capacity(Self::BYTES);
        plaintext.extend(&self.0);
        plaintext
    }

    pub(crate) fn from_plaintext(plaintext: &Plaintext) -> Result<Self, CryptoError> {
        plaintext.as_ref().try_into().map(Self).map_err(|_| CryptoError::Tampered)
    }
}

impl ChildSecret {
    /// The key, whichever kind it is.
    pub fn object_key(&self) -> ObjectKey<'_> {
        match self {
            Self::Directory(secret) => ObjectKey::Directory(secret),
            Self::File(key) => ObjectKey::File(key),
        }
    }
}

impl ObjectKey<'_> {
    pub(crate) fn derive<const N: usize>(self, label: Label) -> Zeroizing<[u8; N]> {
        match self {
            Self::Directory(secret) => secret.derive(label),
            Self::File(key) => key.derive(label),
        }
    }
}

impl<'a> From<&'a DirectorySecret> for ObjectKey<'a> {
    fn from(secret: &'a DirectorySecret) -> Self {
        Self::Directory(secret)
    }
}

impl<'a> From<&'a FileKey> for ObjectKey<'a> {
    fn from(key: &'a FileKey) -> Self {
        Self::File(key)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeSet;

    use super::*;

    pub(crate) fn directory(fill: u8) -> DirectorySecret {
        DirectorySecret { key: [fill; 32], tag_key: [fill ^ 0xff; 32] }
    }

    pub(crate) fn file(fill: u8) -> FileKey {
        FileKey([fill; 32])
    }

    const ALL: [Label; 16] = [
        Label::FileKey,
        Label::DirectoryKey,
        Label::DirectoryTagKey,
        Label::InodeId,
        Label::Wrap,
        Label::WrapFormer,
        Label::Name,
        Label::Attrs,
        Label::Version,
        Label::Chunk,
        Label::ChunkSalt,
        Label::Keyring,
        Label::KeyringPassword,
        Label::KeyringRecovery,
        Label::Session,
        Label::SessionId,
    ];

    #[test]
    fn every_use_of_a_key_has_a_key_of_its_own() {
        let texts: BTreeSet<_> = ALL.iter().map(|label| label.text()).collect();
        let keys: BTreeSet<[u8; 32]> =
            ALL.iter().map(|label| *derive(&[7; 32], *label, &[])).collect();
        assert_eq!((texts.len(), keys.len()), (ALL.len(), LABELS.len()));
        assert!(
            texts.iter().all(|text| text.starts_with("coffer/v1/key/") && !text.contains('\0'))
        );
    }

    #[test]
    fn the_document_lists_every_label() {
        let document = include_str!("../../../docs/formats/keys-and-sealing.md");
        for (label, _) in LABELS {
            assert!(document.contains(&format!("`{label}`")), "{label} is not in the document");
        }
    }

    #[test]
    fn what_a_write_creates_depends_on_the_write_and_the_directory_only() {
        let (write, other) = (WriteId::from_bytes([1; 16]), WriteId::from_bytes([2; 16]));
        let here = directory(1);
        assert!(here.file_key_for(&write).0 == directory(1).file_key_for(&write).0);
        assert!(here.directory_for(&write).key == directory(1).directory_for(&write).key);
        assert_eq!(here.inode_for(&write), directory(1).inode_for(&write));

        let child = here.directory_for(&write);
        let derived: BTreeSet<[u8; 32]> = [
            here.file_key_for(&write).0,
            here.file_key_for(&other).0,
            directory(2).file_key_for(&write).0,
            child.key,
            child.tag_key,
            here.directory_for(&other).key,
        ]
        .into_iter()
        .collect();
        assert_eq!(derived.len(), 6);
        assert_ne!(here.inode_for(&write), here.inode_for(&other));
        assert_ne!(here.inode_for(&write), directory(2).inode_for(&write));
    }

    #[test]
    fn a_commitment_fits_one_key_in_one_place_only() {
        let (cluster, vault) = (ClusterId::from_bytes([1; 32]), InodeId::from_bytes([2; 16]));
        let secret = directory(3);
        let commitment = secret.commitment(&cluster, &vault, 4);
        assert_eq!(secret.verify_commitment(&cluster, &vault, 4, &commitment), Ok(()));

        let other_tag_key = DirectorySecret { key: [3; 32], tag_key: [9; 32] };
        let refused = [
            directory(4).verify_commitment(&cluster, &vault, 4, &commitment),
            other_tag_key.verify_commitment(&cluster, &vault, 4, &commitment),
            secret.verify_commitment(&ClusterId::from_bytes([9; 32]), &vault, 4, &commitment),
            secret.verify_commitment(&cluster, &InodeId::from_bytes([9; 16]), 4, &commitment),
            secret.verify_commitment(&cluster, &vault, 5, &commitment),
        ];
        assert!(refused.iter().all(|result| *result == Err(CryptoError::KeyMismatch)));
    }

    #[test]
    fn a_renewed_directory_keeps_its_tag_key_only() {
        let renewed = directory(1).renewed();
        assert!(renewed.tag_key == directory(1).tag_key && renewed.key != directory(1).key);
    }
}
