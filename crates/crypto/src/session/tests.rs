use coffer_model::SUITE;
use coffer_model::id::PrincipalId;
use coffer_model::session::{Certificate, SESSION_MS_MAX, Scope};
use coffer_model::time::LogTime;

use super::*;
use crate::keyring::Keyring;
use crate::sign::IdentityKey;

const CLUSTER: ClusterId = ClusterId::from_bytes([1; 32]);

/// A sealed session that is the same each time.
pub(crate) fn vector(cluster: ClusterId, principal: PrincipalId) -> Vec<u8> {
    let kept = kept(cluster, principal, SessionKey::from_secret_bytes(&Zeroizing::new([0xbb; 32])));
    let session = kept.certificate.certificate.hash();
    BearerToken { session, key: [0xcc; 32] }.seal(&cluster, &kept)
}

fn kept(cluster: ClusterId, principal: PrincipalId, key: SessionKey) -> KeptSession {
    let identity = IdentityKey::from_seed(&[0x66; 32]);
    let issued = LogTime::from_unix_ms(1_800_000_000_000);
    let certificate = Certificate {
        suite: SUITE,
        cluster,
        principal,
        key: key.public_key(),
        scope: Scope::Full,
        issued,
        expires: issued.plus_ms(SESSION_MS_MAX),
    };
    KeptSession {
        name: "bob".parse().unwrap(),
        home: InodeId::from_bytes([0xdd; 16]),
        identity: identity.public_key(),
        certificate: certificate.sign(&identity),
        key,
        hpke: HpkeSecret::from_secret_bytes(&[0x55; 32]),
    }
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
fn a_kept_session_opens_with_its_token_only() {
    let kept = kept(CLUSTER, PrincipalId::from_bytes([2; 16]), SessionKey::generate());
    let session = kept.certificate.certificate.hash();
    let (token, other) = (BearerToken::generate(session), BearerToken::generate(session));
    let sealed = token.seal(&CLUSTER, &kept);
    let presented = BearerToken::parse(&token.to_text()).unwrap();
    let opened = presented.open(&CLUSTER, &sealed).unwrap();
    assert_eq!(opened.key.public_key(), kept.key.public_key());
    assert_eq!(opened.hpke.public_key(), kept.hpke.public_key());
    assert_eq!((&opened.name, opened.home), (&kept.name, kept.home));
    assert!(opened.certificate == kept.certificate && opened.identity == kept.identity);
    assert!(token.check().is_of(&presented) && !token.check().is_of(&other));

    let refused = |token: &BearerToken, cluster, sealed: &[u8]| token.open(cluster, sealed).err();
    assert_eq!(refused(&other, &CLUSTER, &sealed), Some(CryptoError::Tampered));
    let elsewhere = ClusterId::from_bytes([9; 32]);
    assert_eq!(refused(&token, &elsewhere, &sealed), Some(CryptoError::Tampered));
    let renamed = BearerToken {
        session: CertificateHash::from_hash(Hash::from_bytes([7; 32])),
        key: token.key,
    };
    assert_eq!(refused(&renamed, &CLUSTER, &sealed), Some(CryptoError::Tampered));
    for at in [1, 20, sealed.len() - 1] {
        let mut changed = sealed.clone();
        changed[at] ^= 1;
        assert_eq!(refused(&token, &CLUSTER, &changed), Some(CryptoError::Tampered));
    }
    assert_eq!(refused(&token, &CLUSTER, &[]), Some(CryptoError::Tampered));
    let later = [&[2], &sealed[1..]].concat();
    assert!(matches!(refused(&token, &CLUSTER, &later), Some(CryptoError::Malformed(_))));
}

#[test]
fn a_kept_session_of_another_certificate_is_refused() {
    let kept = kept(CLUSTER, PrincipalId::from_bytes([2; 16]), SessionKey::generate());
    let token = BearerToken::generate(CertificateHash::from_hash(Hash::from_bytes([7; 32])));
    let sealed = token.seal(&CLUSTER, &kept);
    assert_eq!(token.open(&CLUSTER, &sealed).err(), Some(CryptoError::KeyMismatch));
}

#[test]
fn text_that_is_no_token_is_refused() {
    let session = CertificateHash::from_hash(Hash::from_bytes([7; 32]));
    let text = BearerToken::generate(session).to_text();
    for bad in
        ["", "coffer_", &text[1..], &text[..70], &format!("{}0", *text), &text.to_uppercase()]
    {
        assert!(BearerToken::parse(bad).is_err(), "{bad}");
    }
}
