use super::*;
use crate::keys::tests::directory;

fn context() -> VaultKeyContext {
    VaultKeyContext {
        cluster: ClusterId::from_bytes([1; 32]),
        vault: InodeId::from_bytes([2; 16]),
        epoch: 3,
        principal: PrincipalId::from_bytes([4; 16]),
    }
}

fn commitment(secret: &DirectorySecret) -> Hash {
    secret.commitment(&context().cluster, &context().vault, context().epoch)
}

fn refusal(
    recipient: &HpkeSecret,
    context: &VaultKeyContext,
    commitment: &Hash,
    sealed: &[u8],
) -> Option<CryptoError> {
    open_vault_key(recipient, context, commitment, sealed).err()
}

#[test]
fn a_member_opens_the_vault_key() {
    let member = HpkeSecret::generate();
    let sealed = seal_vault_key(&member.public_key(), &context(), &directory(7)).unwrap();
    assert_eq!(sealed.len(), SEALED_VAULT_KEY_BYTES);
    let opened = open_vault_key(&member, &context(), &commitment(&directory(7)), &sealed).unwrap();
    assert!(*opened.to_plaintext() == *directory(7).to_plaintext());
}

#[test]
fn a_vault_key_opens_for_its_member_and_place_only() {
    let member = HpkeSecret::generate();
    let expected = commitment(&directory(7));
    let sealed = seal_vault_key(&member.public_key(), &context(), &directory(7)).unwrap();
    for elsewhere in [
        VaultKeyContext { cluster: ClusterId::from_bytes([9; 32]), ..context() },
        VaultKeyContext { vault: InodeId::from_bytes([9; 16]), ..context() },
        VaultKeyContext { epoch: 4, ..context() },
        VaultKeyContext { principal: PrincipalId::from_bytes([9; 16]), ..context() },
    ] {
        assert_eq!(refusal(&member, &elsewhere, &expected, &sealed), Some(CryptoError::Tampered));
    }
    let stranger = HpkeSecret::generate();
    assert_eq!(refusal(&stranger, &context(), &expected, &sealed), Some(CryptoError::Tampered));
    for position in 0..sealed.len() {
        let mut changed = sealed.clone();
        changed[position] ^= 1;
        assert_eq!(refusal(&member, &context(), &expected, &changed), Some(CryptoError::Tampered));
    }
    for length in [0, 31, 32, 48, sealed.len() - 1] {
        let short = &sealed[..length];
        assert_eq!(refusal(&member, &context(), &expected, short), Some(CryptoError::Tampered));
    }
}

/// A17: anybody can seal a key to a member; only the one the vault record commits to is taken.
#[test]
fn another_key_than_the_committed_one_is_refused() {
    let member = HpkeSecret::generate();
    let planted = seal_vault_key(&member.public_key(), &context(), &directory(8)).unwrap();
    let expected = commitment(&directory(7));
    assert_eq!(refusal(&member, &context(), &expected, &planted), Some(CryptoError::KeyMismatch));
}

/// A15: points of small order give everybody the same secret.
#[test]
fn points_of_small_order_are_refused() {
    let member = HpkeSecret::generate();
    let sealed = seal_vault_key(&member.public_key(), &context(), &directory(7)).unwrap();
    let field = "ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f";
    let points = [
        "00".repeat(32),
        format!("01{}", "00".repeat(31)),
        "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800".to_owned(),
        "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157".to_owned(),
        format!("ec{field}"),
        format!("ed{field}"),
        format!("ee{field}"),
    ];
    for point in points {
        let point: [u8; 32] = hex::decode(&point).unwrap().try_into().unwrap();
        for high_bit in [0, 0x80] {
            let mut point = point;
            point[31] |= high_bit;
            let key = HpkePublicKey::from_bytes(point);
            let refused = seal_vault_key(&key, &context(), &directory(7)).err();
            assert_eq!(refused, Some(CryptoError::Malformed("public key")));
            let planted = [&point[..], &sealed[32..]].concat();
            let refused = refusal(&member, &context(), &commitment(&directory(7)), &planted);
            assert_eq!(refused, Some(CryptoError::Tampered));
        }
    }
}

#[test]
fn the_public_half_follows_from_the_secret() {
    // RFC 7748, section 6.1.
    let secret = "5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb";
    let public = "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f";
    let secret = HpkeSecret::from_secret_bytes(&hex::decode(secret).unwrap().try_into().unwrap());
    assert_eq!(hex::encode(secret.public_key().as_bytes()), public);
    assert_eq!(format!("{:?}", secret.public_key()), public);
}
