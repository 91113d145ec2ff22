use super::*;
use crate::login::tests::export_key;

fn owner() -> KeyringOwner {
    KeyringOwner {
        cluster: ClusterId::from_bytes([1; 32]),
        principal: PrincipalId::from_bytes([2; 16]),
    }
}

/// A keyring that is the same each time; its wraps have the same id.
pub(crate) fn vector(owner: &KeyringOwner, id: [u8; 16]) -> SealedKeyring {
    let bob = Pin { name: "bob".parse().unwrap(), identity: PublicKey::from_bytes([0xaa; 32]) };
    let keyring = Keyring {
        identity: IdentityKey::from_seed(&[0x66; 32]),
        hpke: HpkeSecret::from_secret_bytes(&[0x55; 32]),
        pins: vec![bob],
    };
    let key = KeyringKey([0x77; 32]);
    let wraps = vec![
        key.wrap(owner, id, &WrapKeys::of_password(&export_key(0x88))),
        key.wrap(owner, id, &WrapKeys::of_recovery(&RecoveryCode::from_bytes([0x99; 20]))),
    ];
    SealedKeyring::seal(owner, 9, &key, &keyring, wraps).unwrap()
}

fn pin(name: &str) -> Pin {
    Pin { name: name.parse().unwrap(), identity: Keyring::generate().public_keys().0 }
}

/// A keyring that opens with export key 1 and with the code.
fn sealed(keyring: &Keyring, code: &RecoveryCode) -> SealedKeyring {
    let key = KeyringKey::generate();
    let wraps = vec![
        key.wrap_for_password(&owner(), &export_key(1)),
        key.wrap_for_recovery(&owner(), code),
    ];
    SealedKeyring::seal(&owner(), 1, &key, keyring, wraps).unwrap()
}

#[test]
fn a_keyring_opens_with_the_password_and_with_the_recovery_code() {
    let mut keyring = Keyring::generate();
    keyring.pins = vec![pin("bob"), pin("carol")];
    let code = RecoveryCode::generate();
    let blob = sealed(&keyring, &code).encode();
    let read = SealedKeyring::decode(&blob).unwrap();
    assert_eq!((read.epoch(), read.hash()), (1, payload_hash(&blob)));
    let typed = RecoveryCode::parse(&code.to_text()).unwrap();
    for open in [
        read.open_with_password(&owner(), &export_key(1)).unwrap(),
        read.open_with_recovery(&owner(), &typed).unwrap(),
    ] {
        let (identity, hpke) = keyring.public_keys();
        assert_eq!(open.verify(&identity, &hpke), Ok(()));
        assert_eq!(open.keyring.pins, keyring.pins);
    }
    let refused = [
        read.open_with_password(&owner(), &export_key(2)).err(),
        read.open_with_recovery(&owner(), &RecoveryCode::generate()).err(),
    ];
    assert_eq!(refused, [Some(CryptoError::Tampered); 2]);
}

/// A01: a server that answers with a keyring of its own making.
#[test]
fn another_keyring_is_not_taken_for_ones_own() {
    let (mine, planted) = (Keyring::generate(), Keyring::generate());
    let sealed = sealed(&planted, &RecoveryCode::generate());
    let open = sealed.open_with_password(&owner(), &export_key(1)).unwrap();
    let (identity, hpke) = mine.public_keys();
    let (planted_identity, planted_hpke) = planted.public_keys();
    assert_eq!(open.verify(&identity, &hpke), Err(CryptoError::KeyMismatch));
    assert_eq!(open.verify(&planted_identity, &hpke), Err(CryptoError::KeyMismatch));
    assert_eq!(open.verify(&identity, &planted_hpke), Err(CryptoError::KeyMismatch));
    assert_eq!(open.verify(&planted_identity, &planted_hpke), Ok(()));
}

/// A01, A11, A12: parts of one keyring in another, in another's place, or of another epoch.
#[test]
fn swapped_parts_are_refused() {
    let code = RecoveryCode::generate();
    let (one, two) = (sealed(&Keyring::generate(), &code), sealed(&Keyring::generate(), &code));
    let refused = |keyring: &SealedKeyring, owner: &KeyringOwner| {
        keyring.open_with_password(owner, &export_key(1)).err() == Some(CryptoError::Tampered)
            && keyring.open_with_recovery(owner, &code).err() == Some(CryptoError::Tampered)
    };
    assert!(!refused(&one, &owner()));
    assert!(refused(&SealedKeyring { sealed: two.sealed.clone(), ..one.clone() }, &owner()));
    assert!(refused(&SealedKeyring { epoch: 2, ..one.clone() }, &owner()));
    assert!(refused(&one, &KeyringOwner { cluster: ClusterId::from_bytes([9; 32]), ..owner() }));
    assert!(refused(
        &one,
        &KeyringOwner { principal: PrincipalId::from_bytes([9; 16]), ..owner() }
    ));
    assert!(refused(&SealedKeyring { wraps: Vec::new(), ..one.clone() }, &owner()));

    let mut crossed = one.clone();
    crossed.wraps[0].kind = WrapKind::Recovery;
    crossed.wraps[1].kind = WrapKind::Password;
    assert!(refused(&crossed, &owner()));
    let mut crossed = one.clone();
    crossed.wraps[0].id = [0; 16];
    crossed.wraps[1].id = [0; 16];
    assert!(refused(&crossed, &owner()));
}

/// A11: every byte of the blob matters.
#[test]
fn a_changed_blob_is_refused() {
    let code = RecoveryCode::generate();
    let blob = sealed(&Keyring::generate(), &code).encode();
    for position in 0..blob.len() {
        let mut changed = blob.clone();
        changed[position] ^= 1;
        let both = SealedKeyring::decode(&changed).map(|keyring| {
            let password = keyring.open_with_password(&owner(), &export_key(1)).is_ok();
            (password, keyring.open_with_recovery(&owner(), &code).is_ok())
        });
        assert!(both != Ok((true, true)), "byte {position}");
    }
    for length in [0, 1, 10, blob.len() - 1] {
        assert!(SealedKeyring::decode(&blob[..length]).is_err());
    }
    assert!(SealedKeyring::decode(&[blob, vec![0]].concat()).is_err());
}

/// A32: a keyring that opens under two passwords would tell its maker which of them was used.
#[test]
fn a_keyring_has_one_password() {
    let (keyring, key) = (Keyring::generate(), KeyringKey::generate());
    let wraps = vec![
        key.wrap_for_password(&owner(), &export_key(1)),
        key.wrap_for_password(&owner(), &export_key(2)),
    ];
    let both = SealedKeyring::seal(&owner(), 1, &key, &keyring, wraps.clone());
    assert_eq!(both.err(), Some(CryptoError::Malformed("keyring")));
    let mut forged = SealedKeyring::seal(&owner(), 1, &key, &keyring, Vec::new()).unwrap();
    forged.wraps = wraps;
    assert!(SealedKeyring::decode(&forged.encode()).is_err());

    // The commitment of a wrap under the sealing of another.
    let one = key.wrap_for_password(&owner(), &export_key(1));
    let mut two = key.wrap_for_password(&owner(), &export_key(2));
    two.bytes[..COMMITMENT_BYTES].copy_from_slice(&one.bytes[..COMMITMENT_BYTES]);
    let forged = SealedKeyring::seal(&owner(), 1, &key, &keyring, vec![two]).unwrap();
    for password in [1, 2] {
        assert!(forged.open_with_password(&owner(), &export_key(password)).is_err());
    }
}

#[test]
fn a_changed_password_raises_the_epoch_and_keeps_the_recovery_code() {
    let code = RecoveryCode::generate();
    let first = sealed(&Keyring::generate(), &code);
    let open = first.open_with_password(&owner(), &export_key(1)).unwrap();
    let second = first.with_password(&owner(), &open, &export_key(2)).unwrap();
    assert_eq!(second.epoch(), 2);
    assert!(second.open_with_password(&owner(), &export_key(1)).is_err());
    let again = second.open_with_password(&owner(), &export_key(2)).unwrap();
    assert!(again.keyring.public_keys() == open.keyring.public_keys());
    assert!(second.open_with_recovery(&owner(), &code).is_ok());

    let new_code = RecoveryCode::generate();
    let third = second.with_recovery(&owner(), &again, &new_code).unwrap();
    assert!(third.open_with_recovery(&owner(), &code).is_err());
    let mut open = third.open_with_recovery(&owner(), &new_code).unwrap();
    open.keyring.pins.push(pin("dave"));
    let fourth = third.with_content(&owner(), &open).unwrap();
    assert_eq!(fourth.epoch(), 4);
    let open = fourth.open_with_password(&owner(), &export_key(2)).unwrap();
    assert_eq!(open.keyring.pins.len(), 1);
}

#[test]
fn a_full_keyring_fits_its_bound() {
    let mut keyring = Keyring::generate();
    let longest = pin(&"x".repeat(32));
    keyring.pins = vec![longest.clone(); PINS_MAX];
    let code = RecoveryCode::generate();
    let blob = sealed(&keyring, &code).encode();
    assert!(blob.len() <= KEYRING_BYTES_MAX, "{}", blob.len());
    const { assert!(KEYRING_BYTES_MAX <= coffer_model::bundle::PAYLOAD_BYTES_MAX) };
    let read = SealedKeyring::decode(&blob).unwrap();
    assert!(read.open_with_recovery(&owner(), &code).is_ok());
    keyring.pins.push(longest);
    let too_many = SealedKeyring::seal(&owner(), 1, &KeyringKey::generate(), &keyring, Vec::new());
    assert!(matches!(too_many.err(), Some(CryptoError::TooLong { .. })));
}
