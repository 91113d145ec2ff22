//! What a session needs between commands, and how it is kept: on the user's machine in a file only the
//! user can read, at a gateway sealed under a bearer token that only the caller has.
//!
//! The identity is not part of it: a session can read and write until it expires, and then needs the
//! password again.
//!
//! ```text
//! secrets = framed borsh { session: [u8; 32], hpke: [u8; 32], pins: Vec<{ name: String, identity: [u8; 32] }> }
//! token   = "coffer_" ‖ hex(certificate hash ‖ key)
//! kept    = framed borsh { session: [u8; 32], hpke: [u8; 32], name: String, home: [u8; 16],
//!                          identity: [u8; 32], certificate: signed certificate }
//! sealed  = 1 ‖ AES-SIV(subkey of the token's key, [suite, purpose, cluster, certificate hash], kept)
//! ```

use borsh::BorshDeserialize;
use coffer_model::encoding::encode;
use coffer_model::hash::Hash;
use coffer_model::id::{ClusterId, InodeId};
use coffer_model::name::UserName;
use coffer_model::session::{CertificateHash, SignedCertificate};
use coffer_model::signing::{PublicKey, Signer};
use subtle::ConstantTimeEq;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::content::{frame, unframe};
use crate::error::CryptoError;
use crate::hpke::HpkeSecret;
use crate::keyring::{PINS_MAX, Pin};
use crate::keys::{Label, derive};
use crate::padding::Padding;
use crate::plaintext::Plaintext;
use crate::random::random_bytes;
use crate::sign::SessionKey;
use crate::siv::{Purpose, Slot};

const TOKEN_PREFIX: &str = "coffer_";
const TOKEN_KEY_BYTES: usize = 32;
/// The certificate hash and the key.
const TOKEN_BYTES: usize = 32 + TOKEN_KEY_BYTES;
/// The version of a session as a gateway keeps it.
const FORMAT: u8 = 1;

/// The unlocked keys of one session.
pub struct SessionSecrets {
    /// Signs bundles and proofs.
    pub key: SessionKey,
    /// Opens vault keys.
    pub hpke: HpkeSecret,
    /// Whom the user has met.
    pub pins: Vec<Pin>,
}

/// What a caller of the files API presents: which session, and the key that opens it.
#[derive(ZeroizeOnDrop)]
pub struct BearerToken {
    #[zeroize(skip)]
    session: CertificateHash,
    key: [u8; TOKEN_KEY_BYTES],
}

/// What a token is known again by, where its session is open. It does not give the token away.
pub struct TokenCheck(Zeroizing<[u8; 32]>);

/// A session in gateway custody, open: all of it but the cluster.
pub struct KeptSession {
    /// The user's name.
    pub name: UserName,
    /// The root of the user's tree.
    pub home: InodeId,
    /// The public half of the user's identity.
    pub identity: PublicKey,
    /// What vouches for the session's key.
    pub certificate: SignedCertificate,
    /// Signs bundles and proofs.
    pub key: SessionKey,
    /// Opens vault keys.
    pub hpke: HpkeSecret,
}

#[derive(BorshDeserialize, Zeroize, ZeroizeOnDrop)]
struct SecretFields {
    key: [u8; 32],
    hpke: [u8; 32],
    #[zeroize(skip)]
    pins: Vec<Pin>,
}

#[derive(BorshDeserialize, Zeroize, ZeroizeOnDrop)]
struct KeptFields {
    key: [u8; 32],
    hpke: [u8; 32],
    #[zeroize(skip)]
    name: UserName,
    #[zeroize(skip)]
    home: InodeId,
    #[zeroize(skip)]
    identity: PublicKey,
    #[zeroize(skip)]
    certificate: SignedCertificate,
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

impl KeptSession {
    /// What is kept of a session with these secrets.
    pub fn of(
        secrets: &SessionSecrets,
        name: UserName,
        home: InodeId,
        identity: PublicKey,
        certificate: SignedCertificate,
    ) -> Self {
        let key = SessionKey::from_secret_bytes(&secrets.key.to_secret_bytes());
        let hpke = HpkeSecret::from_secret_bytes(secrets.hpke.as_secret_bytes());
        Self { name, home, identity, certificate, key, hpke }
    }

    fn to_plaintext(&self) -> Plaintext {
        let key = self.key.to_secret_bytes();
        let secrets = (&*key, self.hpke.as_secret_bytes());
        let fields = (secrets, &self.name, &self.home, &self.identity, &self.certificate);
        frame(&Zeroizing::new(encode(&fields)), Padding::Bucket)
    }

    fn from_plaintext(plaintext: &Plaintext) -> Option<Self> {
        let fields: KeptFields = unframe(plaintext)?;
        Some(Self {
            name: fields.name.clone(),
            home: fields.home,
            identity: fields.identity,
            certificate: fields.certificate.clone(),
            key: SessionKey::from_secret_bytes(&Zeroizing::new(fields.key)),
            hpke: HpkeSecret::from_secret_bytes(&fields.hpke),
        })
    }
}

impl BearerToken {
    /// A new random token of a session.
    pub fn generate(session: CertificateHash) -> Self {
        Self { session, key: random_bytes() }
    }

    /// Which session it is of.
    pub fn session(&self) -> CertificateHash {
        self.session
    }

    /// The token as the caller presents it: `coffer_` and 128 hexadecimal digits.
    pub fn to_text(&self) -> Zeroizing<String> {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut text = Zeroizing::new(String::with_capacity(TOKEN_PREFIX.len() + 2 * TOKEN_BYTES));
        text.push_str(TOKEN_PREFIX);
        for byte in self.session.as_hash().as_bytes().iter().chain(&self.key) {
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
        let mut bytes = Zeroizing::new([0; TOKEN_BYTES]);
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            let (high, low) = (digit(pair[0]).ok_or(REFUSED)?, digit(pair[1]).ok_or(REFUSED)?);
            *byte = high << 4 | low;
        }
        let session = *bytes.first_chunk().expect("64 bytes begin with 32");
        let session = CertificateHash::from_hash(Hash::from_bytes(session));
        Ok(Self { session, key: *bytes.last_chunk().expect("64 bytes end with 32") })
    }

    /// What a gateway that has the session open knows the token again by.
    pub fn check(&self) -> TokenCheck {
        TokenCheck(derive(&self.key, Label::SessionId, &[]))
    }

    /// Seals a session; only who presents the token can open it.
    pub fn seal(&self, cluster: &ClusterId, kept: &KeptSession) -> Vec<u8> {
        let plaintext = kept.to_plaintext();
        self.with_slot(cluster, |slot| slot.seal(&[FORMAT], &plaintext))
    }

    /// Opens a session, which must be the one the token is of.
    pub fn open(&self, cluster: &ClusterId, sealed: &[u8]) -> Result<KeptSession, CryptoError> {
        let (format, sealed) = sealed.split_first().ok_or(CryptoError::Tampered)?;
        if *format != FORMAT {
            return Err(CryptoError::Malformed("session of another version"));
        }
        let opened = self.with_slot(cluster, |slot| slot.open(sealed))?;
        let kept = KeptSession::from_plaintext(&opened);
        let kept = kept.ok_or(CryptoError::Malformed("session"))?;
        let certificate = &kept.certificate.certificate;
        if certificate.hash() != self.session || certificate.key != kept.key.public_key() {
            return Err(CryptoError::KeyMismatch);
        }
        Ok(kept)
    }

    fn with_slot<T>(&self, cluster: &ClusterId, with: impl FnOnce(&Slot<'_>) -> T) -> T {
        let place = [&cluster.as_bytes()[..], self.session.as_hash().as_bytes()];
        let key = derive(&self.key, Label::Session, &[]);
        with(&Slot { key, purpose: Purpose::Session, place: &place })
    }
}

impl TokenCheck {
    /// Whether it was made of the same token. Takes the same time either way.
    pub fn is_of(&self, token: &BearerToken) -> bool {
        self.0.ct_eq(&*token.check().0).into()
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
