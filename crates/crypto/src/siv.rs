//! AEAD_AES_SIV_CMAC_512 (RFC 5297) as every small sealed value uses it: the first two headers are
//! the suite and the purpose, the rest say where the value belongs.

use aes_siv::siv::Aes256Siv;
use aes_siv::{KeyInit, Tag};
use coffer_model::SUITE;
use zeroize::Zeroizing;

use crate::error::CryptoError;
use crate::plaintext::Plaintext;

/// Bytes of the synthetic IV in front of the ciphertext.
pub(crate) const SIV_BYTES: usize = 16;

/// What a sealed value is for. Each is a header of its own, so no value opens in another slot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Purpose {
    EntryDirectory,
    EntryFile,
    FormerDirectory,
    FormerFile,
    Name,
    Attrs,
    Version,
    Keyring,
    KeyringPassword,
    KeyringRecovery,
    Session,
}

impl Purpose {
    const fn text(self) -> &'static str {
        match self {
            Self::EntryDirectory => "coffer/v1/seal/entry-directory",
            Self::EntryFile => "coffer/v1/seal/entry-file",
            Self::FormerDirectory => "coffer/v1/seal/former-directory",
            Self::FormerFile => "coffer/v1/seal/former-file",
            Self::Name => "coffer/v1/seal/name",
            Self::Attrs => "coffer/v1/seal/attrs",
            Self::Version => "coffer/v1/seal/version",
            Self::Keyring => "coffer/v1/seal/keyring",
            Self::KeyringPassword => "coffer/v1/seal/keyring-password",
            Self::KeyringRecovery => "coffer/v1/seal/keyring-recovery",
            Self::Session => "coffer/v1/seal/session",
        }
    }
}

/// A derived key and what it seals.
pub(crate) struct Slot<'a> {
    pub(crate) key: Zeroizing<[u8; 64]>,
    pub(crate) purpose: Purpose,
    pub(crate) place: &'a [&'a [u8]],
}

impl Slot<'_> {
    fn headers(&self) -> impl Iterator<Item = &[u8]> {
        const SUITE_BYTES: [u8; 2] = SUITE.to_le_bytes();
        [SUITE_BYTES.as_slice(), self.purpose.text().as_bytes()]
            .into_iter()
            .chain(self.place.iter().copied())
    }

    /// Gives `prefix ‖ synthetic IV ‖ ciphertext`.
    pub(crate) fn seal(&self, prefix: &[u8], plaintext: &[u8]) -> Vec<u8> {
        let start = prefix.len() + SIV_BYTES;
        let mut sealed = Vec::with_capacity(start + plaintext.len());
        sealed.extend_from_slice(prefix);
        sealed.extend_from_slice(&[0u8; SIV_BYTES]);
        sealed.extend_from_slice(plaintext);
        let tag = encrypt(&self.key, self.headers(), &mut sealed[start..]);
        sealed[prefix.len()..start].copy_from_slice(&tag);
        sealed
    }

    /// Opens `synthetic IV ‖ ciphertext`.
    pub(crate) fn open(&self, sealed: &[u8]) -> Result<Plaintext, CryptoError> {
        open(&self.key, self.headers(), sealed)
    }
}

fn encrypt<'a>(
    key: &[u8; 64],
    headers: impl Iterator<Item = &'a [u8]>,
    buffer: &mut [u8],
) -> [u8; SIV_BYTES] {
    Aes256Siv::new(key.into())
        .encrypt_inout_detached(headers, buffer.into())
        .expect("there are far fewer than 126 headers")
        .into()
}

fn open<'a>(
    key: &[u8; 64],
    headers: impl Iterator<Item = &'a [u8]>,
    sealed: &[u8],
) -> Result<Plaintext, CryptoError> {
    let (tag, body) = sealed.split_first_chunk::<SIV_BYTES>().ok_or(CryptoError::Tampered)?;
    let mut plaintext = Plaintext::from(body.to_vec());
    Aes256Siv::new(key.into())
        .decrypt_inout_detached(headers, plaintext.as_mut_slice().into(), &Tag::from(*tag))
        .map_err(|_| CryptoError::Tampered)?;
    Ok(plaintext)
}

#[cfg(test)]
#[expect(clippy::unwrap_used)]
mod tests {
    use serde_json::Value;

    use super::*;

    const PURPOSES: [Purpose; 11] = [
        Purpose::EntryDirectory,
        Purpose::EntryFile,
        Purpose::FormerDirectory,
        Purpose::FormerFile,
        Purpose::Name,
        Purpose::Attrs,
        Purpose::Version,
        Purpose::Keyring,
        Purpose::KeyringPassword,
        Purpose::KeyringRecovery,
        Purpose::Session,
    ];

    /// Even under one key and in one place, nothing sealed for one purpose opens for another.
    #[test]
    fn no_purpose_opens_what_another_sealed() {
        let slot = |purpose| Slot { key: Zeroizing::new([1; 64]), purpose, place: &[b"place"] };
        for sealed_for in PURPOSES {
            let sealed = slot(sealed_for).seal(&[], b"secret");
            for opened_for in PURPOSES {
                let opened = slot(opened_for).open(&sealed);
                assert_eq!(
                    opened.is_ok(),
                    sealed_for == opened_for,
                    "{sealed_for:?} {opened_for:?}"
                );
            }
        }
    }

    #[test]
    fn the_document_lists_every_purpose() {
        let document = include_str!("../../../docs/formats/keys-and-sealing.md");
        for purpose in PURPOSES {
            assert!(document.contains(&format!("`{}`", purpose.text())), "{purpose:?}");
        }
    }

    /// Headers are separate strings, not one concatenation.
    #[test]
    fn headers_do_not_run_into_each_other() {
        let slot = |place| Slot { key: Zeroizing::new([1; 64]), purpose: Purpose::Name, place };
        let sealed = slot(&[b"ab", b"c"]).seal(&[], b"secret");
        assert!(slot(&[b"a", b"bc"]).open(&sealed).is_err());
        assert!(slot(&[b"abc"]).open(&sealed).is_err());
        assert!(slot(&[b"ab", b"c", b""]).open(&sealed).is_err());
    }

    fn bytes(test: &Value, field: &str) -> Vec<u8> {
        hex::decode(test[field].as_str().unwrap()).unwrap()
    }

    /// Wycheproof's groups for the RFC 5297 mode with a nonce as last header.
    #[test]
    fn aes_siv_agrees_with_wycheproof() {
        let file: Value =
            serde_json::from_str(include_str!("../testdata/wycheproof_aes_siv_cmac_512.json"))
                .unwrap();
        let (mut valid, mut invalid) = (0, 0);
        for group in file["testGroups"].as_array().unwrap() {
            assert_eq!(group["keySize"], 512);
            for test in group["tests"].as_array().unwrap() {
                let key: [u8; 64] = bytes(test, "key").try_into().unwrap();
                let (aad, iv) = (bytes(test, "aad"), bytes(test, "iv"));
                let headers = || [aad.as_slice(), iv.as_slice()].into_iter();
                let sealed = [bytes(test, "tag"), bytes(test, "ct")].concat();
                let message = bytes(test, "msg");
                let opened = open(&key, headers(), &sealed);
                if test["result"] == "valid" {
                    assert!(*opened.unwrap() == *message, "{}", test["tcId"]);
                    let mut buffer = message.clone();
                    let tag = encrypt(&key, headers(), &mut buffer);
                    assert_eq!([tag.as_slice(), &buffer].concat(), sealed, "{}", test["tcId"]);
                    valid += 1;
                } else {
                    assert_eq!(opened.err(), Some(CryptoError::Tampered), "{}", test["tcId"]);
                    invalid += 1;
                }
            }
        }
        assert!(valid > 50 && invalid > 50, "{valid} valid, {invalid} invalid");
    }
}
