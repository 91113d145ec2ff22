use proptest::prelude::*;

use super::*;
use crate::keys::tests::{directory, file};

const PLAINTEXT: &[u8] = b"what is sealed";

fn attrs() -> AttrsContext {
    AttrsContext { cluster: ClusterId::from_bytes([1; 32]), inode: InodeId::from_bytes([2; 16]) }
}

fn version() -> VersionContext {
    let AttrsContext { cluster, inode } = attrs();
    VersionContext { cluster, inode, write: WriteId::from_bytes([3; 16]) }
}

fn refused(opened: Result<Plaintext, CryptoError>) -> bool {
    opened.err() == Some(CryptoError::Tampered)
}

#[test]
fn attributes_open_under_the_key_of_their_object() {
    let (directory, file) = (directory(1), file(2));
    for key in [ObjectKey::from(&directory), ObjectKey::from(&file)] {
        let sealed = seal_attrs(key, &attrs(), &[5; 16], PLAINTEXT);
        assert_eq!(sealed.len(), PLAINTEXT.len() + ATTRS_OVERHEAD_BYTES);
        assert!(*open_attrs(key, &attrs(), &sealed).unwrap() == *PLAINTEXT);
        let again = seal_attrs(key, &attrs(), &[6; 16], PLAINTEXT);
        assert_ne!(sealed[16..], again[16..]);
    }
    let sealed = seal_attrs((&file).into(), &attrs(), &[5; 16], PLAINTEXT);
    assert!(refused(open_attrs((&directory).into(), &attrs(), &sealed)));
    let elsewhere = AttrsContext { inode: InodeId::from_bytes([9; 16]), ..attrs() };
    assert!(refused(open_attrs((&file).into(), &elsewhere, &sealed)));
    let elsewhere = AttrsContext { cluster: ClusterId::from_bytes([9; 32]), ..attrs() };
    assert!(refused(open_attrs((&file).into(), &elsewhere, &sealed)));
}

#[test]
fn a_version_opens_in_its_place_only_and_is_sealed_the_same_again() {
    let sealed = seal_version(&file(1), &version(), PLAINTEXT);
    assert_eq!(sealed, seal_version(&file(1), &version(), PLAINTEXT));
    assert_eq!(sealed.len(), PLAINTEXT.len() + VERSION_OVERHEAD_BYTES);
    assert!(*open_version(&file(1), &version(), &sealed).unwrap() == *PLAINTEXT);
    for elsewhere in [
        VersionContext { cluster: ClusterId::from_bytes([9; 32]), ..version() },
        VersionContext { inode: InodeId::from_bytes([9; 16]), ..version() },
        VersionContext { write: WriteId::from_bytes([9; 16]), ..version() },
    ] {
        assert!(refused(open_version(&file(1), &elsewhere, &sealed)));
    }
    assert!(refused(open_version(&file(2), &version(), &sealed)));
}

/// The write id of a version stands where attributes have their random bytes: still neither opens as
/// the other.
#[test]
fn attributes_and_versions_are_not_interchangeable() {
    let key = file(1);
    let random = *version().write.as_bytes();
    let attributes = seal_attrs((&key).into(), &attrs(), &random, PLAINTEXT);
    assert!(refused(open_version(&key, &version(), &attributes[16..])));
    let sealed = seal_version(&key, &version(), PLAINTEXT);
    assert!(refused(open_attrs((&key).into(), &attrs(), &[&random[..], &sealed].concat())));
}

proptest! {
    #[test]
    fn changed_or_cut_bytes_are_refused(position in 0..46usize, flip in 1u8.., length in 0..46usize) {
        let key = file(1);
        let sealed = seal_attrs((&key).into(), &attrs(), &[5; 16], PLAINTEXT);
        let mut changed = sealed.clone();
        changed[position] ^= flip;
        prop_assert!(refused(open_attrs((&key).into(), &attrs(), &changed)));
        prop_assert!(refused(open_attrs((&key).into(), &attrs(), &sealed[..length])));
        let sealed = seal_version(&key, &version(), PLAINTEXT);
        prop_assert!(refused(open_version(&key, &version(), &sealed[..length.min(sealed.len() - 1)])));
    }
}
