use proptest::prelude::*;

use super::*;

fn xattrs(pairs: &[(&[u8], &[u8])]) -> Xattrs {
    let mut xattrs = Xattrs::default();
    for (name, value) in pairs {
        xattrs.insert(name, value).unwrap();
    }
    xattrs
}

fn attrs(pairs: &[(&[u8], &[u8])]) -> Attrs {
    Attrs { mode: Mode::from_bits(0o100_644), mtime_ns: -1, xattrs: xattrs(pairs) }
}

fn version(length: usize) -> VersionInfo {
    let inline = Some(Plaintext::from(vec![7; length]));
    VersionInfo { length: u64::try_from(length).unwrap(), mtime_ns: 5, inline }
}

#[test]
fn attributes_come_back() {
    let attrs = attrs(&[(b"user.b", b"2"), (b"user.a", b"1"), (b"user.b", b"3")]);
    assert_eq!(attrs.mode.bits(), 0o644);
    let pairs: Vec<_> = attrs.xattrs.iter().collect();
    assert_eq!(pairs, [(&b"user.a"[..], &b"1"[..]), (b"user.b", b"3")]);
    for padding in [Padding::Bucket, Padding::None] {
        assert!(Attrs::decode(&attrs.encode(padding)).unwrap() == attrs);
    }
}

#[test]
fn a_version_comes_back() {
    for length in [0, 1, INLINE_BYTES_MAX] {
        let plaintext = version(length).encode(Padding::Bucket).unwrap();
        let opened = VersionInfo::decode(&plaintext).unwrap();
        assert_eq!((opened.length, opened.mtime_ns), (u64::try_from(length).unwrap(), 5));
        assert!(*opened.inline.unwrap() == vec![7; length]);
    }
    let chunked = VersionInfo { length: u64::MAX, mtime_ns: i64::MIN, inline: None };
    let opened = VersionInfo::decode(&chunked.encode(Padding::None).unwrap()).unwrap();
    assert!(
        (opened.length, opened.mtime_ns, opened.inline.is_none()) == (u64::MAX, i64::MIN, true)
    );
}

#[test]
fn an_inline_version_has_the_length_it_says() {
    let lying = VersionInfo { length: 3, ..version(2) };
    assert_eq!(lying.encode(Padding::None).err(), Some(CryptoError::Malformed("version")));
    let plaintext = frame(&encode(&(3u64, 5i64, Some(vec![7u8; 2]))), Padding::None);
    assert!(VersionInfo::decode(&plaintext).is_err());
    let too_long = version(INLINE_BYTES_MAX + 1).encode(Padding::None).err();
    assert!(matches!(too_long, Some(CryptoError::TooLong { .. })));
    let length = u64::try_from(INLINE_BYTES_MAX + 1).unwrap();
    let inline = Some(vec![0u8; INLINE_BYTES_MAX + 1]);
    assert!(VersionInfo::decode(&frame(&encode(&(length, 0i64, inline)), Padding::None)).is_err());
}

#[test]
fn extended_attributes_have_bounds() {
    let mut xattrs = xattrs(&[(b"user.big", &[0; XATTRS_BYTES_MAX - 8])]);
    let before = xattrs.clone();
    assert!(xattrs.insert(b"u", b"").is_err());
    assert!(xattrs.insert(b"", b"x").is_err());
    assert!(xattrs.insert(b"a\0b", b"x").is_err());
    assert!(xattrs.insert(&[b'x'; XATTR_NAME_BYTES_MAX + 1], b"").is_err());
    assert!(xattrs == before);
    // Replacing counts the new value only.
    xattrs.insert(b"user.big", b"small").unwrap();
    assert_eq!(xattrs.get(b"user.big"), Some(&b"small"[..]));
    assert!(xattrs.remove(b"user.big") && !xattrs.remove(b"user.big"));
    for number in 0..XATTRS_MAX {
        xattrs.insert(format!("user.{number}").as_bytes(), b"").unwrap();
    }
    assert!(xattrs.insert(b"user.more", b"").is_err());
}

/// What a writer could seal, but no honest client does.
#[test]
fn attributes_in_another_form_are_refused() {
    let plaintext = |mode: u32, names: &[&str]| {
        let xattrs = names.iter().map(|name| (name.as_bytes().to_vec(), Vec::new())).collect();
        frame(&encode(&AttrsFields { mode, mtime_ns: 0, xattrs }), Padding::Bucket)
    };
    assert!(Attrs::decode(&plaintext(0o7777, &["a", "b"])).is_ok());
    for bad in [
        plaintext(0o10_000, &[]),
        plaintext(0, &["b", "a"]),
        plaintext(0, &["a", "a"]),
        plaintext(0, &[""]),
        Plaintext::from(Vec::new()),
        Plaintext::from(vec![255; 64]),
    ] {
        assert_eq!(Attrs::decode(&bad).err(), Some(CryptoError::Malformed("attributes")));
    }
    let mut dirty = plaintext(0, &[]).to_vec();
    *dirty.last_mut().unwrap() = 1;
    assert!(Attrs::decode(&dirty.into()).is_err());
}

#[test]
fn padded_lengths_fall_into_few_buckets() {
    let lengths: std::collections::BTreeSet<_> = (0..=INLINE_BYTES_MAX)
        .map(|length| version(length).encode(Padding::Bucket).unwrap().len())
        .collect();
    assert_eq!(lengths.first(), Some(&PADDED_BYTES_MIN));
    assert!(lengths.len() <= 82, "{lengths:?}");
    assert_eq!(version(10).encode(Padding::None).unwrap().len(), 4 + 8 + 8 + 1 + 4 + 10);
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let plaintext = Plaintext::from(bytes);
        let _ = Attrs::decode(&plaintext);
        let _ = VersionInfo::decode(&plaintext);
    }
}
