//! What a session needs between commands, and how it is kept: on the user's machine in a file only the
//! user can read, at a gateway sealed under a bearer token that only the caller has.
//!
//! The identity is not part of it: a session can read and write until it expires, and then needs the
//! password again.
//!
//! ```text
//! secrets = framed borsh { session: [u8; 32], hpke: [u8; 32], pins: Vec<{ name: String, identity: [u8; 32] }> }
//! sealed  = AES-SIV(subkey of the token, [suite, purpose, cluster, principal], secrets)
//! ```

use borsh::BorshDeserialize;
use coffer_model::encoding::encode;
use coffer_model::hash::Hash;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::content::{frame, unframe};
use crate::error::CryptoError;
use crate::hpke::HpkeSecret;
use crate::keyring::{KeyringOwner, PINS_MAX, Pin};
use crate::keys::{Label, derive};
use crate::padding::Padding;
use crate::plaintext::Plaintext;
use crate::random::random_bytes;
use crate::sign::SessionKey;
use crate::siv::{Purpose, Slot};

const TOKEN_PREFIX: &str = "coffer_";
const TOKEN_BYTES: usize = 32;

/// The unlocked keys of one session.
pub struct SessionSecrets {
    /// Signs bundles and proofs.
    pub key: SessionKey,
    /// Opens vault keys.
    pub hpke: HpkeSecret,
    /// Whom the user has met.
    pub pins: Vec<Pin>,
}

/// What a caller of the files API presents: the key of its sealed session.
#[derive(ZeroizeOnDrop)]
pub struct BearerToken([u8; TOKEN_BYTES]);

#[derive(BorshDeserialize, Zeroize, ZeroizeOnDrop)]
struct SecretFields {
    key: [u8; 32],
    hpke: [u8; 32],
    #[zeroize(skip)]
    pins: Vec<Pin>,
}

impl SessionSecrets {
    /// The secrets as bytes, for the session file and nothing else.
    pub fn to_secret_bytes(&self) -> Plaintext {
        let key = self.key.to_secret_bytes();
        let fields = (&*key, self.hpke.as_secret_bytes(), &self.pins);
        frame(&Zeroizing::new(encode(&fields)), Padding::Bucket)
    }

    /// Reads what [`Self::to_secret_bytes`] gave.
    pub fn from_secret_bytes(bytes: &[u8]) -> Result<Self, CryptoError> {
        const REFUSED: CryptoError = CryptoError::Malformed("session");
        let mut fields: SecretFields = unframe(bytes).ok_or(REFUSED)?;
        if fields.pins.len() > PINS_MAX {
            return Err(REFUSED);
        }
        Ok(Self {
            key: SessionKey::from_secret_bytes(&Zeroizing::new(fields.key)),
            hpke: HpkeSecret::from_secret_bytes(&fields.hpke),
            pins: std::mem::take(&mut fields.pins),
        })
    }
}

impl BearerToken {
    /// A new random token.
    pub fn generate() -> Self {
        Self(random_bytes())
    }

    /// The token as the caller presents it: `coffer_` and 64 hexadecimal digits.
    pub fn to_text(&self) -> Zeroizing<String> {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut text = Zeroizing::new(String::with_capacity(TOKEN_PREFIX.len() + 2 * TOKEN_BYTES));
        text.push_str(TOKEN_PREFIX);
        for byte in &self.0 {
            text.push(char::from(DIGITS[usize::from(byte >> 4)]));
            text.push(char::from(DIGITS[usize::from(byte & 15)]));
        }
        text
    }

    /// Reads a presented token.
    pub fn parse(text: &str) -> Result<Self, CryptoError> {
        const REFUSED: CryptoError = CryptoError::Malformed("bearer token");
        let digits = text.strip_prefix(TOKEN_PREFIX).ok_or(REFUSED)?.as_bytes();
        if digits.len() != 2 * TOKEN_BYTES {
            return Err(REFUSED);
        }
        let mut token = Self([0; TOKEN_BYTES]);
        for (byte, pair) in token.0.iter_mut().zip(digits.chunks_exact(2)) {
            let (high, low) = (digit(pair[0]).ok_or(REFUSED)?, digit(pair[1]).ok_or(REFUSED)?);
            *byte = high << 4 | low;
        }
        Ok(token)
    }

    /// What the sealed session is kept under; tells nothing about the token.
    pub fn session_id(&self) -> Hash {
        Hash::from_bytes(*derive(&self.0, Label::SessionId, &[]))
    }

    /// Seals a session's secrets; only who presents the token can open them.
    pub fn seal(&self, owner: &KeyringOwner, secrets: &SessionSecrets) -> Vec<u8> {
        let plaintext = secrets.to_secret_bytes();
        self.with_slot(owner, |slot| slot.seal(&[], &plaintext))
    }

    /// Opens a session's secrets.
    pub fn open(&self, owner: &KeyringOwner, sealed: &[u8]) -> Result<SessionSecrets, CryptoError> {
        SessionSecrets::from_secret_bytes(&self.with_slot(owner, |slot| slot.open(sealed))?)
    }

    fn with_slot<T>(&self, owner: &KeyringOwner, with: impl FnOnce(&Slot<'_>) -> T) -> T {
        let place = [&owner.cluster.as_bytes()[..], owner.principal.as_bytes()];
        let key = derive(&self.0, Label::Session, &[]);
        with(&Slot { key, purpose: Purpose::Session, place: &place })
    }
}

fn digit(character: u8) -> Option<u8> {
    match character {
        b'0'..=b'9' => Some(character - b'0'),
        b'a'..=b'f' => Some(character - b'a' + 10),
        _ => None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(crate) mod tests;
