//! Keys sealed to a member: HPKE (RFC 9180) base mode, X25519, HKDF-SHA256, AES-256-GCM, single shot.
//!
//! HPKE says nothing about the sender. Who gave out a vault's key is said by the signed vault record,
//! whose commitment [`open_vault_key`] checks.
//!
//! ```text
//! sealed key = enc (32) ‖ ciphertext of key ‖ tag key (64) ‖ tag (16)
//! ```

use std::fmt;

use coffer_model::SUITE;
use coffer_model::hash::Hash;
use coffer_model::id::{ClusterId, InodeId, PrincipalId};
use hpke::aead::AesGcm256;
use hpke::kdf::HkdfSha256;
use hpke::kem::X25519HkdfSha256;
use hpke::{
    Deserializable, Kem, OpModeR, OpModeS, Serializable, single_shot_open, single_shot_seal,
};
use zeroize::ZeroizeOnDrop;

use crate::error::CryptoError;
use crate::keys::DirectorySecret;
use crate::plaintext::Plaintext;
use crate::random::random_bytes;

const ENCAPSULATED_BYTES: usize = 32;
const TAG_BYTES: usize = 16;
/// Bytes of a vault key sealed to one member.
pub const SEALED_VAULT_KEY_BYTES: usize = ENCAPSULATED_BYTES + DirectorySecret::BYTES + TAG_BYTES;
const VAULT_KEY_INFO: &[u8] = b"coffer/v1/hpke/vault-key\0";

/// What others seal keys to: an X25519 public key, as a user record names it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct HpkePublicKey([u8; 32]);

/// The secret half: opens what was sealed to a member.
#[derive(ZeroizeOnDrop)]
pub struct HpkeSecret([u8; 32]);

/// Which key is sealed, and to whom.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VaultKeyContext {
    /// The cluster.
    pub cluster: ClusterId,
    /// The vault, by its root.
    pub vault: InodeId,
    /// The generation of the root key.
    pub epoch: u32,
    /// The member it is sealed to.
    pub principal: PrincipalId,
}

impl HpkePublicKey {
    /// Takes 32 bytes as a public key.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The bytes of the key.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for HpkePublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl HpkeSecret {
    /// A new random key.
    pub fn generate() -> Self {
        Self(random_bytes())
    }

    /// The public half.
    pub fn public_key(&self) -> HpkePublicKey {
        HpkePublicKey(X25519HkdfSha256::sk_to_pk(&self.scalar()).to_bytes().into())
    }

    /// The raw secret, only for a sealed keyring or session.
    pub(crate) const fn as_secret_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    pub(crate) const fn from_secret_bytes(bytes: &[u8; 32]) -> Self {
        Self(*bytes)
    }

    fn scalar(&self) -> <X25519HkdfSha256 as Kem>::PrivateKey {
        <X25519HkdfSha256 as Kem>::PrivateKey::from_bytes(&self.0)
            .expect("any 32 bytes are a scalar")
    }
}

impl VaultKeyContext {
    fn info(&self) -> Vec<u8> {
        [
            VAULT_KEY_INFO,
            &SUITE.to_le_bytes(),
            self.cluster.as_bytes(),
            self.vault.as_bytes(),
            &self.epoch.to_le_bytes(),
            self.principal.as_bytes(),
        ]
        .concat()
    }
}

/// Seals a vault's root key to one member. Refuses a public key that is no key at all (a point of
/// small order). The caller has checked that `recipient` comes from the member's signed record.
pub fn seal_vault_key(
    recipient: &HpkePublicKey,
    context: &VaultKeyContext,
    secret: &DirectorySecret,
) -> Result<Vec<u8>, CryptoError> {
    const REFUSED: CryptoError = CryptoError::Malformed("public key");
    let recipient =
        <X25519HkdfSha256 as Kem>::PublicKey::from_bytes(&recipient.0).map_err(|_| REFUSED)?;
    let (encapsulated, ciphertext) = single_shot_seal::<AesGcm256, HkdfSha256, X25519HkdfSha256>(
        &OpModeS::Base,
        &recipient,
        &context.info(),
        &secret.to_plaintext(),
        &[],
    )
    .map_err(|_| REFUSED)?;
    Ok([encapsulated.to_bytes().as_slice(), &ciphertext].concat())
}

/// Opens a vault's root key and checks it against the commitment of the signed vault record.
pub fn open_vault_key(
    recipient: &HpkeSecret,
    context: &VaultKeyContext,
    commitment: &Hash,
    sealed: &[u8],
) -> Result<DirectorySecret, CryptoError> {
    if sealed.len() != SEALED_VAULT_KEY_BYTES {
        return Err(CryptoError::Tampered);
    }
    let (encapsulated, ciphertext) = sealed.split_at(ENCAPSULATED_BYTES);
    let encapsulated = <X25519HkdfSha256 as Kem>::EncappedKey::from_bytes(encapsulated)
        .map_err(|_| CryptoError::Tampered)?;
    let opened = single_shot_open::<AesGcm256, HkdfSha256, X25519HkdfSha256>(
        &OpModeR::Base,
        &recipient.scalar(),
        &encapsulated,
        &context.info(),
        ciphertext,
        &[],
    )
    .map_err(|_| CryptoError::Tampered)?;
    let secret = DirectorySecret::from_plaintext(&Plaintext::from(opened))?;
    secret.verify_commitment(&context.cluster, &context.vault, context.epoch, commitment)?;
    Ok(secret)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
