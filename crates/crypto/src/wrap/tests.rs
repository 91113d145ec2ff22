use proptest::prelude::*;

use super::*;
use crate::keys::tests::{directory, file};

fn context() -> WrapContext {
    WrapContext {
        cluster: ClusterId::from_bytes([1; 32]),
        directory: InodeId::from_bytes([2; 16]),
        child: InodeId::from_bytes([3; 16]),
        generation: 4,
    }
}

fn former() -> FormerContext {
    FormerContext {
        cluster: ClusterId::from_bytes([1; 32]),
        inode: InodeId::from_bytes([2; 16]),
        generation: 4,
    }
}

/// The plaintext of whatever secret a wrap held.
fn bytes_of(secret: Result<ChildSecret, CryptoError>) -> Result<Vec<u8>, CryptoError> {
    Ok(match secret? {
        ChildSecret::Directory(secret) => secret.to_plaintext().to_vec(),
        ChildSecret::File(key) => key.to_plaintext().to_vec(),
    })
}

#[test]
fn a_wrap_opens_to_what_was_wrapped() {
    let parent = directory(1);
    for (child, length) in [
        (ChildSecret::Directory(directory(2)), DIRECTORY_WRAP_BYTES),
        (ChildSecret::File(file(3)), FILE_WRAP_BYTES),
    ] {
        let wrap = parent.wrap(&context(), &child);
        assert_eq!(wrap.len(), length);
        assert!(length <= coffer_model::object::WRAP_BYTES_MAX);
        assert_eq!(bytes_of(parent.unwrap(&context(), &wrap)), bytes_of(Ok(child)));
    }
    let wrap = directory(2).wrap_former(&former(), &directory(1));
    let opened = directory(2).unwrap_former(&former(), &wrap).unwrap();
    assert!(*opened.to_plaintext() == *directory(1).to_plaintext());
    let wrap = file(2).wrap_former(&former(), &file(1));
    let opened = file(2).unwrap_former(&former(), &wrap).unwrap();
    assert!(*opened.to_plaintext() == *file(1).to_plaintext());
}

#[test]
fn a_wrap_opens_in_its_own_place_only() {
    let wrap = directory(1).wrap(&context(), &ChildSecret::File(file(2)));
    let other = InodeId::from_bytes([9; 16]);
    for elsewhere in [
        WrapContext { cluster: ClusterId::from_bytes([9; 32]), ..context() },
        WrapContext { directory: other, ..context() },
        WrapContext { child: other, ..context() },
        WrapContext { generation: 5, ..context() },
        WrapContext { directory: context().child, child: context().directory, ..context() },
    ] {
        assert_eq!(bytes_of(directory(1).unwrap(&elsewhere, &wrap)), Err(CryptoError::Tampered));
    }
    assert_eq!(bytes_of(directory(2).unwrap(&context(), &wrap)), Err(CryptoError::Tampered));
}

/// A12: every kind of wrap into every slot, under equal raw keys and in equal places.
#[test]
fn no_wrap_opens_in_another_slot() {
    let (parent, key) = (directory(1), file(1));
    let same = InodeId::from_bytes([2; 16]);
    let context = WrapContext { directory: same, child: same, ..context() };
    let wraps = [
        parent.wrap(&context, &ChildSecret::Directory(directory(5))),
        parent.wrap(&context, &ChildSecret::File(file(5))),
        parent.wrap_former(&former(), &directory(5)),
        key.wrap_former(&former(), &file(5)),
    ];
    for (made_for, wrap) in wraps.iter().enumerate() {
        let opened = [
            matches!(parent.unwrap(&context, wrap), Ok(ChildSecret::Directory(_))),
            matches!(parent.unwrap(&context, wrap), Ok(ChildSecret::File(_))),
            parent.unwrap_former(&former(), wrap).is_ok(),
            key.unwrap_former(&former(), wrap).is_ok(),
        ];
        for (slot, opened) in opened.into_iter().enumerate() {
            assert_eq!(opened, slot == made_for, "wrap {made_for} in slot {slot}");
        }
    }
}

proptest! {
    #[test]
    fn a_changed_wrap_is_refused(position in 0..DIRECTORY_WRAP_BYTES, flip in 1u8..) {
        let mut wrap = directory(1).wrap(&context(), &ChildSecret::Directory(directory(2)));
        wrap[position] ^= flip;
        prop_assert_eq!(bytes_of(directory(1).unwrap(&context(), &wrap)), Err(CryptoError::Tampered));
    }

    #[test]
    fn any_bytes_are_refused(wrap in proptest::collection::vec(any::<u8>(), 0..100)) {
        prop_assert!(directory(1).unwrap(&context(), &wrap).is_err());
        prop_assert!(directory(1).unwrap_former(&former(), &wrap).is_err());
        prop_assert!(file(1).unwrap_former(&former(), &wrap).is_err());
    }
}
