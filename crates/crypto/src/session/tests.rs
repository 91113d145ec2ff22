use coffer_model::id::{ClusterId, PrincipalId};
use coffer_model::signing::{PublicKey, Signer};

use super::*;
use crate::keyring::Keyring;

fn owner() -> KeyringOwner {
    KeyringOwner {
        cluster: ClusterId::from_bytes([1; 32]),
        principal: PrincipalId::from_bytes([2; 16]),
    }
}

/// A sealed session that is the same each time.
pub(crate) fn vector(owner: &KeyringOwner) -> Vec<u8> {
    let bob = Pin { name: "bob".parse().unwrap(), identity: PublicKey::from_bytes([0xaa; 32]) };
    let secrets = SessionSecrets {
        key: SessionKey::from_secret_bytes(&Zeroizing::new([0xbb; 32])),
        hpke: HpkeSecret::from_secret_bytes(&[0x55; 32]),
        pins: vec![bob],
    };
    BearerToken([0xcc; 32]).seal(owner, &secrets)
}

fn secrets() -> SessionSecrets {
    let bob = Pin { name: "bob".parse().unwrap(), identity: Keyring::generate().public_keys().0 };
    SessionSecrets { key: SessionKey::generate(), hpke: HpkeSecret::generate(), pins: vec![bob] }
}

fn public(secrets: &SessionSecrets) -> impl PartialEq + std::fmt::Debug + use<> {
    (secrets.key.public_key(), secrets.hpke.public_key(), secrets.pins.clone())
}

#[test]
fn a_session_file_comes_back() {
    let secrets = secrets();
    let bytes = secrets.to_secret_bytes();
    assert_eq!(public(&SessionSecrets::from_secret_bytes(&bytes).unwrap()), public(&secrets));
    assert!(SessionSecrets::from_secret_bytes(&bytes[..70]).is_err());
    assert!(SessionSecrets::from_secret_bytes(&[]).is_err());
}

#[test]
fn a_session_opens_with_its_token_only() {
    let (token, other) = (BearerToken::generate(), BearerToken::generate());
    let secrets = secrets();
    let sealed = token.seal(&owner(), &secrets);
    let presented = BearerToken::parse(&token.to_text()).unwrap();
    assert_eq!(public(&presented.open(&owner(), &sealed).unwrap()), public(&secrets));
    assert_eq!(presented.session_id(), token.session_id());

    assert_ne!(other.session_id(), token.session_id());
    assert_eq!(other.open(&owner(), &sealed).err(), Some(CryptoError::Tampered));
    let elsewhere = KeyringOwner { principal: PrincipalId::from_bytes([9; 16]), ..owner() };
    assert_eq!(token.open(&elsewhere, &sealed).err(), Some(CryptoError::Tampered));
    let mut changed = sealed;
    changed[20] ^= 1;
    assert_eq!(token.open(&owner(), &changed).err(), Some(CryptoError::Tampered));
}

#[test]
fn text_that_is_no_token_is_refused() {
    let text = BearerToken::generate().to_text();
    for bad in
        ["", "coffer_", &text[1..], &text[..70], &format!("{}0", *text), &text.to_uppercase()]
    {
        assert!(BearerToken::parse(bad).is_err(), "{bad}");
    }
}
