//! A user's keyring: identity, HPKE key and pins, sealed under a random keyring key, which in turn is
//! wrapped once for each way to unlock it.
//!
//! ```text
//! blob    = borsh { suite: u16, epoch: u64, wraps: Vec<{ kind: u8, id: [u8; 16], bytes: Vec<u8> }>, sealed: Vec<u8> }
//! sealed  = AES-SIV(subkey of the keyring key, [suite, purpose, cluster, principal, epoch], framed keyring)
//! bytes   = commitment (32) ‖ AES-SIV(subkey, [suite, purpose, cluster, principal, id], keyring key (32))
//! ```
//!
//! The subkey of a wrap and its commitment come from one derivation, so a wrap opens under one password
//! only. A wrap is not bound to the epoch: changing the password must not need the recovery code.
//! Whether a blob is the present one is said by the user record, which holds its hash and epoch; that
//! the keys in it are the user's own, by [`OpenKeyring::verify`].

use borsh::{BorshDeserialize, BorshSerialize};
use coffer_model::SUITE;
use coffer_model::encoding::{decode, encode};
use coffer_model::hash::{Hash, payload_hash};
use coffer_model::id::{ClusterId, PrincipalId};
use coffer_model::name::UserName;
use coffer_model::signing::{PublicKey, Signer};
use subtle::ConstantTimeEq;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::content::{frame, unframe};
use crate::error::CryptoError;
use crate::hpke::{HpkePublicKey, HpkeSecret};
use crate::keys::{Label, derive};
use crate::login::ExportKey;
use crate::padding::Padding;
use crate::plaintext::Plaintext;
use crate::random::random_bytes;
use crate::sign::IdentityKey;
use crate::siv::{Purpose, Slot};

mod recovery;

pub use recovery::RecoveryCode;

/// The most pins a keyring holds.
pub const PINS_MAX: usize = 768;
/// The most wraps a keyring has.
pub const WRAPS_MAX: usize = 16;
/// The largest encoded sealed keyring: 768 pins of at most 68 bytes, padded, and the wraps; as much
/// as the payload of an op may have.
pub const KEYRING_BYTES_MAX: usize = 64 * 1024;

const COMMITMENT_BYTES: usize = 32;
const KEYRING_KEY_BYTES: usize = 32;

/// Whose keyring it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct KeyringOwner {
    /// The cluster.
    pub cluster: ClusterId,
    /// The user.
    pub principal: PrincipalId,
}

/// Someone whose identity was seen once and must stay the same.
#[derive(Clone, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
pub struct Pin {
    /// The user's name.
    pub name: UserName,
    /// The identity that name had.
    pub identity: PublicKey,
}

/// A user's secrets and what the user trusts.
pub struct Keyring {
    /// Signs sessions.
    pub identity: IdentityKey,
    /// Opens vault keys.
    pub hpke: HpkeSecret,
    /// Whom the user has met, at most [`PINS_MAX`].
    pub pins: Vec<Pin>,
}

/// Opens a sealed keyring; every wrap of a keyring holds the same one.
#[derive(ZeroizeOnDrop)]
pub struct KeyringKey([u8; KEYRING_KEY_BYTES]);

/// A way to unlock a keyring.
#[derive(Clone, Copy, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
#[borsh(use_discriminant = true)]
#[repr(u8)]
pub enum WrapKind {
    /// By the password, through OPAQUE's export key.
    Password = 0,
    /// By the recovery code.
    Recovery = 1,
    /// By a device's key; reserved.
    Device = 2,
}

/// The keyring key, wrapped for one way to unlock it.
#[derive(Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct KeyringWrap {
    kind: WrapKind,
    id: [u8; 16],
    bytes: Vec<u8>,
}

/// A keyring as servers keep it.
#[derive(Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct SealedKeyring {
    suite: u16,
    epoch: u64,
    wraps: Vec<KeyringWrap>,
    sealed: Vec<u8>,
}

/// An opened keyring with what is needed to seal it again.
pub struct OpenKeyring {
    /// The keyring.
    pub keyring: Keyring,
    /// The key it was sealed under.
    pub key: KeyringKey,
}

#[derive(BorshDeserialize, Zeroize, ZeroizeOnDrop)]
struct KeyringFields {
    identity: [u8; 32],
    hpke: [u8; 32],
    #[zeroize(skip)]
    pins: Vec<Pin>,
}

impl Keyring {
    /// The keys of a new user, who trusts nobody yet.
    pub fn generate() -> Self {
        Self { identity: IdentityKey::generate(), hpke: HpkeSecret::generate(), pins: Vec::new() }
    }

    /// The public halves, as the user record must name them.
    pub fn public_keys(&self) -> (PublicKey, HpkePublicKey) {
        (self.identity.public_key(), self.hpke.public_key())
    }

    fn to_plaintext(&self) -> Result<Plaintext, CryptoError> {
        if self.pins.len() > PINS_MAX {
            return Err(CryptoError::TooLong { what: "a keyring", bytes_max: KEYRING_BYTES_MAX });
        }
        let fields = (self.identity.as_seed(), self.hpke.as_secret_bytes(), &self.pins);
        Ok(frame(&Zeroizing::new(encode(&fields)), Padding::Bucket))
    }

    fn from_plaintext(plaintext: &Plaintext) -> Result<Self, CryptoError> {
        let mut fields: KeyringFields =
            unframe(plaintext).ok_or(CryptoError::Malformed("keyring"))?;
        Ok(Self {
            identity: IdentityKey::from_seed(&fields.identity),
            hpke: HpkeSecret::from_secret_bytes(&fields.hpke),
            pins: std::mem::take(&mut fields.pins),
        })
    }
}

impl KeyringKey {
    /// The random key of a new keyring.
    pub fn generate() -> Self {
        Self(random_bytes())
    }

    /// Wraps the key for the password that gave this export key.
    pub fn wrap_for_password(&self, owner: &KeyringOwner, export_key: &ExportKey) -> KeyringWrap {
        self.wrap(owner, random_bytes(), &WrapKeys::of_password(export_key))
    }

    /// Wraps the key for a recovery code.
    pub fn wrap_for_recovery(&self, owner: &KeyringOwner, code: &RecoveryCode) -> KeyringWrap {
        self.wrap(owner, random_bytes(), &WrapKeys::of_recovery(code))
    }

    fn wrap(&self, owner: &KeyringOwner, id: [u8; 16], keys: &WrapKeys) -> KeyringWrap {
        let bytes = keys.with_slot(owner, &id, |slot| slot.seal(keys.commitment(), &self.0));
        KeyringWrap { kind: keys.kind, id, bytes }
    }
}

impl SealedKeyring {
    /// Seals a keyring under its key. The first epoch is 1. Refuses two wraps of one kind: a keyring
    /// opens under one password and one recovery code.
    pub fn seal(
        owner: &KeyringOwner,
        epoch: u64,
        key: &KeyringKey,
        keyring: &Keyring,
        wraps: Vec<KeyringWrap>,
    ) -> Result<Self, CryptoError> {
        if !wraps_are_sound(&wraps) {
            return Err(CryptoError::Malformed("keyring"));
        }
        let plaintext = keyring.to_plaintext()?;
        let sealed = with_keyring_slot(owner, epoch, key, |slot| slot.seal(&[], &plaintext));
        Ok(Self { suite: SUITE, epoch, wraps, sealed })
    }

    /// Reads the blob that travels beside the user record.
    pub fn decode(blob: &[u8]) -> Result<Self, CryptoError> {
        const REFUSED: CryptoError = CryptoError::Malformed("keyring");
        if blob.len() > KEYRING_BYTES_MAX {
            return Err(REFUSED);
        }
        let sealed: Self = decode("keyring", blob).map_err(|_| REFUSED)?;
        if sealed.suite == SUITE && wraps_are_sound(&sealed.wraps) {
            Ok(sealed)
        } else {
            Err(REFUSED)
        }
    }

    /// The blob.
    pub fn encode(&self) -> Vec<u8> {
        encode(self)
    }

    /// The hash of the blob, which the user record holds.
    pub fn hash(&self) -> Hash {
        payload_hash(&self.encode())
    }

    /// Which of the user's keyrings this is; the user record holds it too.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Opens the keyring with what the login gave.
    pub fn open_with_password(
        &self,
        owner: &KeyringOwner,
        export_key: &ExportKey,
    ) -> Result<OpenKeyring, CryptoError> {
        self.open(owner, &WrapKeys::of_password(export_key))
    }

    /// Opens the keyring with the recovery code.
    pub fn open_with_recovery(
        &self,
        owner: &KeyringOwner,
        code: &RecoveryCode,
    ) -> Result<OpenKeyring, CryptoError> {
        self.open(owner, &WrapKeys::of_recovery(code))
    }

    /// The next epoch of this keyring, with a new password in place of the old.
    pub fn with_password(
        &self,
        owner: &KeyringOwner,
        open: &OpenKeyring,
        export_key: &ExportKey,
    ) -> Result<Self, CryptoError> {
        self.with_wrap(owner, open, open.key.wrap_for_password(owner, export_key))
    }

    /// The next epoch of this keyring, with a new recovery code in place of the old.
    pub fn with_recovery(
        &self,
        owner: &KeyringOwner,
        open: &OpenKeyring,
        code: &RecoveryCode,
    ) -> Result<Self, CryptoError> {
        self.with_wrap(owner, open, open.key.wrap_for_recovery(owner, code))
    }

    /// The next epoch of this keyring, with changed content (new pins) behind the same wraps.
    pub fn with_content(
        &self,
        owner: &KeyringOwner,
        open: &OpenKeyring,
    ) -> Result<Self, CryptoError> {
        Self::seal(owner, self.next_epoch()?, &open.key, &open.keyring, self.wraps.clone())
    }

    fn with_wrap(
        &self,
        owner: &KeyringOwner,
        open: &OpenKeyring,
        wrap: KeyringWrap,
    ) -> Result<Self, CryptoError> {
        let others = self.wraps.iter().filter(|other| other.kind != wrap.kind).cloned();
        let wraps = others.chain([wrap.clone()]).collect();
        Self::seal(owner, self.next_epoch()?, &open.key, &open.keyring, wraps)
    }

    fn next_epoch(&self) -> Result<u64, CryptoError> {
        self.epoch.checked_add(1).ok_or(CryptoError::Malformed("keyring"))
    }

    fn open(&self, owner: &KeyringOwner, keys: &WrapKeys) -> Result<OpenKeyring, CryptoError> {
        let wrap = self.wraps.iter().find(|wrap| wrap.kind == keys.kind);
        let KeyringWrap { id, bytes, .. } = wrap.ok_or(CryptoError::Tampered)?;
        let (commitment, body) =
            bytes.split_first_chunk::<COMMITMENT_BYTES>().ok_or(CryptoError::Tampered)?;
        if !bool::from(commitment.ct_eq(keys.commitment())) {
            return Err(CryptoError::Tampered);
        }
        let opened = keys.with_slot(owner, id, |slot| slot.open(body))?;
        let key = KeyringKey(opened.as_ref().try_into().map_err(|_| CryptoError::Tampered)?);
        let opened = with_keyring_slot(owner, self.epoch, &key, |slot| slot.open(&self.sealed))?;
        Ok(OpenKeyring { keyring: Keyring::from_plaintext(&opened)?, key })
    }
}

impl OpenKeyring {
    /// Checks that the keys in the keyring are the ones the user record names. Before that, nothing
    /// may be signed with them and nothing sealed to them.
    pub fn verify(&self, identity: &PublicKey, hpke: &HpkePublicKey) -> Result<(), CryptoError> {
        if self.keyring.public_keys() == (*identity, *hpke) {
            Ok(())
        } else {
            Err(CryptoError::KeyMismatch)
        }
    }
}

/// How one wrap is sealed: an AES-SIV key (64 bytes) and a commitment (32) from one derivation.
struct WrapKeys {
    kind: WrapKind,
    purpose: Purpose,
    derived: Zeroizing<[u8; 96]>,
}

impl WrapKeys {
    fn of_password(export_key: &ExportKey) -> Self {
        let derived = derive(export_key.as_bytes(), Label::KeyringPassword, &[]);
        Self { kind: WrapKind::Password, purpose: Purpose::KeyringPassword, derived }
    }

    fn of_recovery(code: &RecoveryCode) -> Self {
        let derived = derive(code.as_bytes(), Label::KeyringRecovery, &[]);
        Self { kind: WrapKind::Recovery, purpose: Purpose::KeyringRecovery, derived }
    }

    fn commitment(&self) -> &[u8; COMMITMENT_BYTES] {
        self.derived.last_chunk().expect("96 bytes end with 32")
    }

    fn with_slot<T>(
        &self,
        owner: &KeyringOwner,
        id: &[u8; 16],
        with: impl FnOnce(&Slot<'_>) -> T,
    ) -> T {
        let key = Zeroizing::new(*self.derived.first_chunk().expect("96 bytes begin with 64"));
        let place = [&owner.cluster.as_bytes()[..], owner.principal.as_bytes(), id];
        with(&Slot { key, purpose: self.purpose, place: &place })
    }
}

fn with_keyring_slot<T>(
    owner: &KeyringOwner,
    epoch: u64,
    key: &KeyringKey,
    with: impl FnOnce(&Slot<'_>) -> T,
) -> T {
    let epoch = epoch.to_le_bytes();
    let place = [&owner.cluster.as_bytes()[..], owner.principal.as_bytes(), &epoch];
    with(&Slot {
        key: derive(&key.0, Label::Keyring, &[]),
        purpose: Purpose::Keyring,
        place: &place,
    })
}

/// A list of wraps in which a server could hide a second password would be a keyring that opens under
/// both.
fn wraps_are_sound(wraps: &[KeyringWrap]) -> bool {
    let count = |kind| wraps.iter().filter(|wrap| wrap.kind == kind).count();
    wraps.len() <= WRAPS_MAX && count(WrapKind::Password) <= 1 && count(WrapKind::Recovery) <= 1
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(crate) mod tests;
