//! Chunks: C2SP chunked encryption with SHA-512 and AES-256-GCM (<https://c2sp.org/chunked-encryption>,
//! "Cobblestone-256"). A chunk is a message there, what is called a chunk there is a frame here.
//!
//! ```text
//! sealed chunk = salt (24) ‖ commitment (32) ‖ frame 0 ‖ frame 1 ‖ … ‖ last frame
//! frame        = AES-256-GCM of 16,384 bytes, the last of fewer (perhaps none) ‖ tag (16)
//! ```
//!
//! The salt is a keyed hash over context and plaintext, so nothing here depends on a random source: the
//! same write seals the same bytes again, and other bytes get other keys. The commitment binds the
//! ciphertext to one key, and is checked before anything is decrypted.

use aes_gcm::aead::{AeadInOut, Nonce, Tag};
use aes_gcm::{Aes256Gcm, KeyInit};
use borsh::BorshSerialize;
use coffer_model::SUITE;
use coffer_model::chunk::{SEALED_BYTES_MAX, SealedChunk};
use coffer_model::encoding::encode;
use coffer_model::id::{ClusterId, InodeId, WriteId};
use subtle::ConstantTimeEq;
use zeroize::{Zeroize, Zeroizing};

use crate::error::CryptoError;
use crate::keys::{FileKey, Label, expand};
use crate::plaintext::Plaintext;

/// The most plaintext one chunk seals: a slot of the large class.
pub const CHUNK_PLAINTEXT_BYTES_MAX: usize = 1 << 20;

const SALT_BYTES: usize = 24;
const COMMITMENT_BYTES: usize = 32;
const HEADER_BYTES: usize = SALT_BYTES + COMMITMENT_BYTES;
const FRAME_BYTES: usize = 16_384;
const TAG_BYTES: usize = 16;
const SEALED_FRAME_BYTES: usize = FRAME_BYTES + TAG_BYTES;

/// Where a chunk belongs. Not its version: an upload that lost its race seals nothing twice.
#[derive(Clone, Copy, PartialEq, Eq, Debug, BorshSerialize)]
pub struct ChunkContext {
    /// The cluster.
    pub cluster: ClusterId,
    /// The file.
    pub inode: InodeId,
    /// The write.
    pub write: WriteId,
    /// Which slot of the file.
    pub slot: u64,
}

/// How many bytes a chunk of `length` bytes of plaintext has when sealed.
pub const fn sealed_len(length: usize) -> usize {
    HEADER_BYTES + length + (length / FRAME_BYTES + 1) * TAG_BYTES
}

/// Seals the content of one slot. Padding, where wanted, is already part of `plaintext`
/// (see [`crate::padding::padded_len`]).
pub fn seal_chunk(
    key: &FileKey,
    context: &ChunkContext,
    plaintext: &[u8],
) -> Result<SealedChunk<Vec<u8>>, CryptoError> {
    let too_long =
        CryptoError::TooLong { what: "a chunk's content", bytes_max: CHUNK_PLAINTEXT_BYTES_MAX };
    if plaintext.len() > CHUNK_PLAINTEXT_BYTES_MAX {
        return Err(too_long);
    }
    let context = encode(&(SUITE, context));
    let salt = salt(&key.derive(Label::ChunkSalt), &context, plaintext);
    let sealed = seal_message(&key.derive(Label::Chunk), &context, &salt, plaintext);
    SealedChunk::hash(sealed).map_err(|_| too_long)
}

/// Opens a chunk: all of it or nothing.
pub fn open_chunk<B: AsRef<[u8]>>(
    key: &FileKey,
    context: &ChunkContext,
    chunk: &SealedChunk<B>,
) -> Result<Plaintext, CryptoError> {
    open_message(&key.derive(Label::Chunk), &encode(&(SUITE, context)), chunk.bytes().as_ref())
}

/// A chunk's salt: the first 24 bytes of BLAKE3 under `key` over context (of fixed length) and
/// plaintext.
fn salt(key: &[u8; 32], context: &[u8], plaintext: &[u8]) -> [u8; SALT_BYTES] {
    let mut hasher = blake3::Hasher::new_keyed(key);
    hasher.update(context);
    hasher.update(plaintext);
    let mut salt = [0u8; SALT_BYTES];
    hasher.finalize_xof().fill(&mut salt);
    hasher.zeroize();
    salt
}

/// The keys of one message.
struct MessageKeys {
    cipher: Aes256Gcm,
    nonce: [u8; 12],
    commitment: [u8; COMMITMENT_BYTES],
}

impl MessageKeys {
    fn derive(key: &[u8; 32], context: &[u8], salt: &[u8; SALT_BYTES]) -> Self {
        const SCHEME: &[u8] = b"c2sp.org/chunked-encryption@v1+AEAD_AES_256_GCM\0";
        let mut derived = Zeroizing::new([0u8; 76]);
        expand(key, &[SCHEME, salt, context], derived.as_mut_slice());
        let (cipher_key, rest) = derived.split_first_chunk::<32>().expect("76 bytes begin with 32");
        let (nonce, commitment) = rest.split_first_chunk::<12>().expect("44 bytes begin with 12");
        Self {
            cipher: Aes256Gcm::new(cipher_key.into()),
            nonce: *nonce,
            commitment: commitment.try_into().expect("32 bytes are left"),
        }
    }

    /// The base nonce XOR the frame's number, big-endian.
    fn nonce(&self, frame: u64) -> Nonce<Aes256Gcm> {
        let mut nonce = self.nonce;
        for (byte, counter) in nonce[4..].iter_mut().zip(frame.to_be_bytes()) {
            *byte ^= counter;
        }
        nonce.into()
    }
}

/// Seals one message of the specification under a given salt.
fn seal_message(
    key: &[u8; 32],
    context: &[u8],
    salt: &[u8; SALT_BYTES],
    plaintext: &[u8],
) -> Vec<u8> {
    let keys = MessageKeys::derive(key, context, salt);
    let mut sealed = Vec::with_capacity(sealed_len(plaintext.len()));
    sealed.extend_from_slice(salt);
    sealed.extend_from_slice(&keys.commitment);
    let frames = plaintext.chunks_exact(FRAME_BYTES);
    // The last frame is the one that is not full, so a message of full frames ends with an empty one.
    let last = frames.remainder();
    for (frame, content) in (0u64..).zip(frames.chain([last])) {
        let start = sealed.len();
        sealed.extend_from_slice(content);
        let tag = keys
            .cipher
            .encrypt_inout_detached(&keys.nonce(frame), &[], sealed[start..].as_mut().into())
            .expect("a frame is far shorter than what AES-GCM takes");
        sealed.extend_from_slice(&tag);
    }
    sealed
}

/// Opens one message of the specification, all of it or nothing.
fn open_message(key: &[u8; 32], context: &[u8], sealed: &[u8]) -> Result<Plaintext, CryptoError> {
    let (salt, rest) = sealed.split_first_chunk().ok_or(CryptoError::Tampered)?;
    let (commitment, frames) =
        rest.split_first_chunk::<COMMITMENT_BYTES>().ok_or(CryptoError::Tampered)?;
    let keys = MessageKeys::derive(key, context, salt);
    if !bool::from(keys.commitment.ct_eq(commitment)) {
        return Err(CryptoError::Tampered);
    }
    let frames = frames.chunks_exact(SEALED_FRAME_BYTES);
    let last = frames.remainder();
    let mut plaintext = Plaintext::with_capacity(frames.len() * FRAME_BYTES + last.len());
    for (frame, content) in (0u64..).zip(frames.chain([last])) {
        let (content, tag) =
            content.split_last_chunk::<TAG_BYTES>().ok_or(CryptoError::Tampered)?;
        let start = plaintext.len();
        plaintext.extend(content);
        let opened = &mut plaintext.as_mut_slice()[start..];
        let tag = Tag::<Aes256Gcm>::from(*tag);
        keys.cipher
            .decrypt_inout_detached(&keys.nonce(frame), &[], opened.into(), &tag)
            .map_err(|_| CryptoError::Tampered)?;
    }
    Ok(plaintext)
}

const _: () = assert!(sealed_len(CHUNK_PLAINTEXT_BYTES_MAX) == SEALED_BYTES_MAX);

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
