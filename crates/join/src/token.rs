//! The join token: an Ed25519 key that whoever runs the cluster keeps, and of which the descriptor has the
//! hash. As text it is
//!
//! ```text
//! coffer-join-1-<32 bytes of the seed><first 4 bytes of the hash of the public key>   in hexadecimal
//! ```
//!
//! so that a token that was copied wrongly is noticed as such.

use std::io;
use std::path::{Path, PathBuf};

use coffer_model::descriptor::join_token_hash;
use coffer_model::hash::Hash;
use coffer_model::id::ClusterId;
use coffer_model::signing::{Domain, PublicKey, Signature, Signer, signed_bytes};
use ed25519_dalek::{Signer as _, SigningKey};
use zeroize::Zeroizing;

const PREFIX: &str = "coffer-join-1-";
const CHECK_BYTES: usize = 4;
/// A file longer than this holds something else.
const FILE_BYTES_MAX: u64 = 4096;

/// A secret key that gets a new volume into the cluster. It is wiped when it is dropped.
pub struct JoinToken(SigningKey);

/// Why there is no join token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The file cannot be read.
    #[error("cannot read the join token {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It is something else, or was copied wrongly.
    #[error(
        "this is not a join token: it begins with {PREFIX}, and 72 hexadecimal digits follow that fit together"
    )]
    Malformed,
    /// The system gave no randomness.
    #[error("the system gave no random bytes for a join token")]
    Random(#[source] getrandom::Error),
}

impl JoinToken {
    /// A new one.
    pub fn random() -> Result<Self, TokenError> {
        let mut seed = Zeroizing::new([0; 32]);
        getrandom::fill(&mut *seed).map_err(TokenError::Random)?;
        Ok(Self(SigningKey::from_bytes(&seed)))
    }

    /// The one that stands in a file, with white space around it or not.
    pub fn read(path: &Path) -> Result<Self, TokenError> {
        let failed = |source| TokenError::Read { path: path.to_owned(), source };
        if std::fs::metadata(path).map_err(failed)?.len() > FILE_BYTES_MAX {
            return Err(TokenError::Malformed);
        }
        let text = Zeroizing::new(std::fs::read(path).map_err(failed)?);
        let text = std::str::from_utf8(&text).map_err(|_| TokenError::Malformed)?;
        Self::parse(text.trim())
    }

    /// Reads the text form.
    pub fn parse(text: &str) -> Result<Self, TokenError> {
        let digits = text.strip_prefix(PREFIX).ok_or(TokenError::Malformed)?;
        let mut bytes = Zeroizing::new([0; 32 + CHECK_BYTES]);
        hex::decode_to_slice(digits, &mut *bytes).map_err(|_| TokenError::Malformed)?;
        let (seed, check) = bytes.split_at(32);
        let seed: &[u8; 32] = seed.try_into().map_err(|_| TokenError::Malformed)?;
        let token = Self(SigningKey::from_bytes(seed));
        if token.hash().as_bytes()[..CHECK_BYTES] == *check {
            Ok(token)
        } else {
            Err(TokenError::Malformed)
        }
    }

    /// The text form, for a file or a secret of who runs the cluster.
    pub fn to_text(&self) -> Zeroizing<String> {
        let seed = Zeroizing::new(self.0.to_bytes());
        let digits = Zeroizing::new(hex::encode(*seed));
        let check = hex::encode(&self.hash().as_bytes()[..CHECK_BYTES]);
        Zeroizing::new([PREFIX, &digits, &check].concat())
    }

    /// By which the policy of a descriptor names it.
    pub fn hash(&self) -> Hash {
        join_token_hash(&self.public_key())
    }
}

impl Signer for JoinToken {
    fn public_key(&self) -> PublicKey {
        PublicKey::from_bytes(self.0.verifying_key().to_bytes())
    }

    fn sign(&self, domain: Domain, cluster: &ClusterId, bytes: &[u8]) -> Signature {
        Signature::from_bytes(self.0.sign(&signed_bytes(domain, cluster, bytes)).to_bytes())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_token_is_read_back_and_a_wrong_copy_is_noticed() {
        let token = JoinToken::random().unwrap();
        let text = token.to_text();
        assert_eq!(JoinToken::parse(&text).unwrap().hash(), token.hash());
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        std::fs::write(&path, format!("{}\n", *text)).unwrap();
        assert_eq!(JoinToken::read(&path).unwrap().hash(), token.hash());
        std::fs::write(&path, [b'x'; 5000]).unwrap();
        assert!(JoinToken::read(&path).is_err());
        assert!(JoinToken::read(&dir.path().join("none")).is_err());

        let digit = |at: usize| {
            let other = if text.as_bytes()[at] == b'0' { "1" } else { "0" };
            [&text[..at], other, &text[at + 1..]].concat()
        };
        let mut wrong: Vec<String> = (PREFIX.len()..text.len()).map(digit).collect();
        wrong.extend([String::new(), text[1..].to_owned(), text[..text.len() - 2].to_owned()]);
        wrong.extend([format!("{}00", *text), PREFIX.to_owned(), format!("{PREFIX}é")]);
        for wrong in wrong {
            assert!(matches!(JoinToken::parse(&wrong), Err(TokenError::Malformed)));
        }
    }

    /// The seed of the vector in docs/formats, as text.
    #[test]
    fn the_text_form_is_what_the_format_says() {
        let token = JoinToken(SigningKey::from_bytes(&[0x40; 32]));
        let check = &token.hash().to_string()[..8];
        assert_eq!(*token.to_text(), format!("coffer-join-1-{}{check}", "40".repeat(32)));
    }
}
