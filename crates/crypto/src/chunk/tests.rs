use std::collections::BTreeSet;

use proptest::prelude::*;
use serde_json::Value;

use super::*;
use crate::keys::tests::file;

fn context() -> ChunkContext {
    ChunkContext {
        cluster: ClusterId::from_bytes([1; 32]),
        inode: InodeId::from_bytes([2; 16]),
        write: WriteId::from_bytes([3; 16]),
        slot: 4,
    }
}

fn content(length: usize) -> Vec<u8> {
    (0u8..=250).cycle().take(length).collect()
}

/// Opens changed bytes as a server would hand them out: under the id of what they are now, so that
/// only the sealing itself can refuse them.
fn open(sealed: Vec<u8>) -> Result<Plaintext, CryptoError> {
    open_chunk(&file(1), &context(), &SealedChunk::hash(sealed).unwrap())
}

fn sealed(length: usize) -> Vec<u8> {
    seal_chunk(&file(1), &context(), &content(length)).unwrap().into_bytes()
}

#[test]
fn chunks_come_back_at_every_frame_boundary() {
    for length in [
        0,
        1,
        FRAME_BYTES - 1,
        FRAME_BYTES,
        FRAME_BYTES + 1,
        2 * FRAME_BYTES,
        65_536,
        CHUNK_PLAINTEXT_BYTES_MAX - 1,
        CHUNK_PLAINTEXT_BYTES_MAX,
    ] {
        let sealed = sealed(length);
        assert_eq!(sealed.len(), sealed_len(length));
        assert!(*open(sealed).unwrap() == content(length), "{length}");
    }
    assert_eq!(sealed_len(CHUNK_PLAINTEXT_BYTES_MAX), 1_049_672);
    let too_long = seal_chunk(&file(1), &context(), &content(CHUNK_PLAINTEXT_BYTES_MAX + 1));
    assert!(matches!(too_long.err(), Some(CryptoError::TooLong { .. })));
}

/// A18: a repeated upload gives the same chunk; other bytes or another place never the same keys.
#[test]
fn sealing_depends_on_the_write_and_the_bytes_only() {
    assert_eq!(sealed(100_000), sealed(100_000));
    let other = InodeId::from_bytes([9; 16]);
    let mut salts = BTreeSet::new();
    let mut seal = |key: u8, context: ChunkContext, plaintext: &[u8]| {
        let chunk = seal_chunk(&file(key), &context, plaintext).unwrap();
        salts.insert(chunk.bytes()[..SALT_BYTES].to_vec());
    };
    seal(1, context(), b"one");
    seal(1, context(), b"two");
    seal(1, context(), b"one\0");
    seal(1, context(), b"");
    seal(2, context(), b"one");
    seal(1, ChunkContext { slot: 5, ..context() }, b"one");
    seal(1, ChunkContext { write: WriteId::from_bytes([9; 16]), ..context() }, b"one");
    seal(1, ChunkContext { inode: other, ..context() }, b"one");
    seal(1, ChunkContext { cluster: ClusterId::from_bytes([9; 32]), ..context() }, b"one");
    assert_eq!(salts.len(), 9);
}

/// A06, A33: a chunk of another file, write, slot or cluster.
#[test]
fn a_chunk_opens_in_its_place_only() {
    let chunk = seal_chunk(&file(1), &context(), b"content").unwrap();
    for elsewhere in [
        ChunkContext { cluster: ClusterId::from_bytes([9; 32]), ..context() },
        ChunkContext { inode: InodeId::from_bytes([9; 16]), ..context() },
        ChunkContext { write: WriteId::from_bytes([9; 16]), ..context() },
        ChunkContext { slot: 5, ..context() },
    ] {
        assert_eq!(open_chunk(&file(1), &elsewhere, &chunk).err(), Some(CryptoError::Tampered));
    }
    assert_eq!(open_chunk(&file(2), &context(), &chunk).err(), Some(CryptoError::Tampered));
}

/// A05: one bit of salt, commitment, body and tag of the first, a middle and the last frame.
#[test]
fn a_flipped_bit_is_refused() {
    let sealed = sealed(2 * FRAME_BYTES + 100);
    let frame = |number: usize| HEADER_BYTES + number * SEALED_FRAME_BYTES;
    for position in [
        0,
        SALT_BYTES - 1,
        SALT_BYTES,
        HEADER_BYTES - 1,
        frame(0),
        frame(0) + FRAME_BYTES,
        frame(1) - 1,
        frame(1) + 5,
        frame(2) - 1,
        frame(2),
        frame(2) + 99,
        frame(2) + 100,
        sealed.len() - 1,
    ] {
        let mut changed = sealed.clone();
        changed[position] ^= 1;
        assert_eq!(open(changed).err(), Some(CryptoError::Tampered), "{position}");
    }
}

/// A06: frames cut off, swapped, repeated, added, and a full last frame.
#[test]
fn rearranged_frames_are_refused() {
    let sealed = sealed(2 * FRAME_BYTES + 100);
    let (header, frames) = sealed.split_at(HEADER_BYTES);
    let frames: Vec<&[u8]> = frames.chunks(SEALED_FRAME_BYTES).collect();
    let refused = |order: &[&[u8]]| {
        let bytes = [header, &order.concat()].concat();
        open(bytes).err() == Some(CryptoError::Tampered)
    };
    let [first, second, last] = frames[..] else { panic!("three frames") };
    assert!(!refused(&[first, second, last]));
    assert!(refused(&[second, first, last]));
    assert!(refused(&[first, last]));
    assert!(refused(&[second, last]));
    assert!(refused(&[first, first, second, last]));
    assert!(refused(&[first, second]));
    assert!(refused(&[first, second, last, last]));
    assert!(refused(&[first, second, &last[..last.len() - 1]]));
    assert!(refused(&[first, second, &last[..TAG_BYTES]]));
    assert!(refused(&[first, second, &last[..TAG_BYTES - 1]]));
    assert!(refused(&[]));
    for length in [0, SALT_BYTES, HEADER_BYTES - 1, HEADER_BYTES, HEADER_BYTES + TAG_BYTES - 1] {
        assert_eq!(open(sealed[..length].to_vec()).err(), Some(CryptoError::Tampered));
    }
}

/// A header from one message and frames from another, of equal length.
#[test]
fn spliced_messages_are_refused() {
    let (one, other) = (sealed(FRAME_BYTES + 5), {
        let other = ChunkContext { slot: 5, ..context() };
        seal_chunk(&file(1), &other, &content(FRAME_BYTES + 5)).unwrap().into_bytes()
    });
    for cut in [SALT_BYTES, HEADER_BYTES, HEADER_BYTES + SEALED_FRAME_BYTES] {
        let spliced = [&one[..cut], &other[cut..]].concat();
        assert_eq!(open(spliced).err(), Some(CryptoError::Tampered), "{cut}");
    }
}

proptest! {
    #[test]
    fn random_flips_are_refused(position in 0..40_000usize, flip in 1u8..) {
        let mut changed = sealed(39_000);
        let position = position % changed.len();
        changed[position] ^= flip;
        prop_assert_eq!(open(changed).err(), Some(CryptoError::Tampered));
    }

    #[test]
    fn any_bytes_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        prop_assert_eq!(open(bytes).err(), Some(CryptoError::Tampered));
    }
}

fn text<'a>(test: &'a Value, field: &str) -> &'a str {
    test[field].as_str().unwrap()
}

/// Joins the parts of a ciphertext; `00*16384` is one byte 16,384 times.
fn parts(test: &Value) -> Vec<u8> {
    let part = |part: &Value| match part.as_str().unwrap().split_once('*') {
        Some((byte, times)) => hex::decode(byte).unwrap().repeat(times.parse().unwrap()),
        None => hex::decode(part.as_str().unwrap()).unwrap(),
    };
    test["ct"].as_array().unwrap().iter().flat_map(part).collect()
}

fn sha512(bytes: &[u8]) -> String {
    use sha2::Digest;
    hex::encode(sha2::Sha512::digest(bytes))
}

#[test]
fn chunked_encryption_agrees_with_wycheproof() {
    let vectors =
        include_str!("../../testdata/wycheproof_c2sp_chunked_encryption_aes_256_gcm.json");
    let file: Value = serde_json::from_str(vectors).unwrap();
    let (mut valid, mut invalid) = (0, 0);
    for test in file["testGroups"].as_array().unwrap().iter().flat_map(|group| {
        assert_eq!((text(group, "aead"), text(group, "sha")), ("AEAD_AES_256_GCM", "SHA-512"));
        group["tests"].as_array().unwrap()
    }) {
        let number = &test["tcId"];
        let context = hex::decode(text(test, "ctx")).unwrap();
        let sealed = parts(test);
        // A key of another length is no value of the type at all.
        let key: Result<[u8; 32], _> = hex::decode(text(test, "key")).unwrap().try_into();
        let opened = key.as_ref().map_err(|_| CryptoError::Tampered);
        let opened = opened.and_then(|key| open_message(key, &context, &sealed));
        if test["result"] == "valid" {
            let (opened, key) = (opened.unwrap(), key.as_ref().unwrap());
            assert_eq!(opened.len(), usize::try_from(test["msgLength"].as_u64().unwrap()).unwrap());
            assert_eq!(sha512(&opened), text(test, "msgSha512"), "{number}");
            let salt = sealed.first_chunk().unwrap();
            assert!(seal_message(key, &context, salt, &opened) == sealed, "{number}");
            let keys = MessageKeys::derive(key, &context, salt);
            assert_eq!(hex::encode(keys.nonce), text(test, "baseNonce"), "{number}");
            valid += 1;
        } else {
            assert_eq!(opened.err(), Some(CryptoError::Tampered), "{number}");
            invalid += 1;
        }
    }
    assert_eq!((valid, invalid), (10, 25));
}

/// A31: AES-GCM alone opens this ciphertext under two keys, to two different files. Here no frame is
/// even looked at before the commitment says that the key is the right one.
#[test]
fn a_ciphertext_that_opens_under_two_keys_is_refused() {
    let file: Value =
        serde_json::from_str(include_str!("../../testdata/gcm_two_keys.json")).unwrap();
    let bytes = |field| hex::decode(text(&file, field)).unwrap();
    let (nonce, frame): ([u8; 12], _) = (bytes("nonce").try_into().unwrap(), bytes("ct_tag"));
    let raw_keys: [[u8; 32]; 2] =
        [bytes("k1").try_into().unwrap(), bytes("k2").try_into().unwrap()];
    let (body, tag) = frame.split_last_chunk::<TAG_BYTES>().unwrap();
    for raw_key in raw_keys {
        let mut buffer = body.to_vec();
        Aes256Gcm::new(&raw_key.into())
            .decrypt_inout_detached(
                &nonce.into(),
                &[],
                buffer.as_mut_slice().into(),
                &Tag::<Aes256Gcm>::from(*tag),
            )
            .unwrap();
    }
    for key in raw_keys {
        for commitment_of in raw_keys {
            let keys = MessageKeys::derive(&commitment_of, b"", &[7; SALT_BYTES]);
            let message = [&[7; SALT_BYTES][..], &keys.commitment, &frame].concat();
            assert_eq!(open_message(&key, b"", &message).err(), Some(CryptoError::Tampered));
        }
    }
    // A writer who knows both keys and forges a message for one of them cannot make it one of the other.
    let salt = [7; SALT_BYTES];
    let message = seal_message(&raw_keys[0], b"", &salt, b"for the first reader only");
    assert!(open_message(&raw_keys[0], b"", &message).is_ok());
    assert_eq!(open_message(&raw_keys[1], b"", &message).err(), Some(CryptoError::Tampered));
}
