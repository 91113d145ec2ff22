use proptest::prelude::*;

use super::*;
use crate::keys::tests::directory;

fn context() -> NameContext {
    NameContext {
        cluster: ClusterId::from_bytes([1; 32]),
        directory: InodeId::from_bytes([2; 16]),
        inode: InodeId::from_bytes([3; 16]),
    }
}

fn name(text: &str) -> FileName {
    text.parse().unwrap()
}

#[test]
fn a_name_opens_and_its_length_falls_into_a_bucket() {
    let secret = directory(1);
    for (length, sealed_bytes) in
        [(1, 64), (31, 64), (32, 96), (63, 96), (64, 160), (127, 160), (128, 288), (255, 288)]
    {
        let name = name(&"x".repeat(length));
        let sealed = secret.seal_name(&context(), &[5; 16], &name);
        assert_eq!(sealed.len(), sealed_bytes, "{length}");
        assert!(sealed.len() <= SEALED_NAME_BYTES_MAX);
        let opened = secret.open_name(&context(), &sealed, &secret.name_tag(&name));
        assert_eq!(opened, Ok(name));
    }
}

/// A36: what a server sees of one name says nothing about the same name elsewhere.
#[test]
fn equal_names_do_not_show() {
    let (here, there) = (directory(1), directory(2));
    let report = name("report.pdf");
    assert_eq!(here.name_tag(&report), here.name_tag(&report));
    assert_ne!(here.name_tag(&report), there.name_tag(&report));
    assert_ne!(here.name_tag(&report), here.name_tag(&name("report.pdg")));
    assert_ne!(
        here.seal_name(&context(), &[5; 16], &report)[16..],
        here.seal_name(&context(), &[6; 16], &report)[16..]
    );
    // A new generation of the directory's key leaves tags where they are, and opens no old name.
    let renewed = here.renewed();
    assert_eq!(renewed.name_tag(&report), here.name_tag(&report));
    let sealed = here.seal_name(&context(), &[5; 16], &report);
    assert!(renewed.open_name(&context(), &sealed, &here.name_tag(&report)).is_err());
}

/// A07: a name opens only where it was given, and only under the tag it is found by.
#[test]
fn a_moved_or_swapped_name_is_refused() {
    let secret = directory(1);
    let (mine, other) = (name("mine"), name("other"));
    let sealed = secret.seal_name(&context(), &[5; 16], &mine);
    let tag = secret.name_tag(&mine);
    assert_eq!(secret.open_name(&context(), &sealed, &tag), Ok(mine));
    let elsewhere = InodeId::from_bytes([9; 16]);
    for context in [
        NameContext { cluster: ClusterId::from_bytes([9; 32]), ..context() },
        NameContext { directory: elsewhere, ..context() },
        NameContext { inode: elsewhere, ..context() },
    ] {
        assert_eq!(secret.open_name(&context, &sealed, &tag), Err(CryptoError::Tampered));
    }
    let tag_of_other = secret.name_tag(&other);
    let refused = secret.open_name(&context(), &sealed, &tag_of_other);
    assert_eq!(refused, Err(CryptoError::Tampered));
    assert_eq!(directory(2).open_name(&context(), &sealed, &tag), Err(CryptoError::Tampered));
}

/// What a member with the key could seal, but no honest client does.
#[test]
fn a_name_sealed_in_another_form_is_refused() {
    let secret = directory(1);
    let mine = name("mine");
    let seal = |plaintext: &[u8]| {
        secret.name_slot(&context(), &[5; 16], |slot| slot.seal(&[5; 16], plaintext))
    };
    let padded = |prefix: &[u8], length: usize| {
        let mut plaintext = prefix.to_vec();
        plaintext.resize(length, 0);
        plaintext
    };
    let open =
        |plaintext: &[u8]| secret.open_name(&context(), &seal(plaintext), &secret.name_tag(&mine));
    assert_eq!(open(&padded(b"\x04mine", 32)), Ok(mine.clone()));
    for plaintext in [
        padded(b"\x04mine", 64),
        padded(b"\x04mine", 31),
        padded(b"\x04mine\x01", 32),
        padded(b"\xffmine", 32),
        padded(b"\x00", 32),
        padded(b"\x02..", 32),
        padded(b"\x03a/b", 32),
        Vec::new(),
    ] {
        assert_eq!(open(&plaintext), Err(CryptoError::Tampered), "{plaintext:?}");
    }
}

proptest! {
    #[test]
    fn any_name_comes_back(text in "[^/\\p{Cc}\u{202A}-\u{202E}\u{2066}-\u{2069}]{1,60}", random: [u8; 16]) {
        let Ok(name) = text.parse::<FileName>() else { return Ok(()) };
        let secret = directory(1);
        let sealed = secret.seal_name(&context(), &random, &name);
        prop_assert!([64, 96, 160, 288].contains(&sealed.len()));
        prop_assert_eq!(secret.open_name(&context(), &sealed, &secret.name_tag(&name)), Ok(name));
    }

    #[test]
    fn a_changed_name_is_refused(position in 0..64usize, flip in 1u8..) {
        let secret = directory(1);
        let mut sealed = secret.seal_name(&context(), &[5; 16], &name("mine"));
        sealed[position] ^= flip;
        let opened = secret.open_name(&context(), &sealed, &secret.name_tag(&name("mine")));
        prop_assert_eq!(opened, Err(CryptoError::Tampered));
    }
}
