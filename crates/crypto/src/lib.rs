//! What only an edge may do: derive keys, seal and open names, attributes, versions and chunks, wrap
//! keys for children and members, keep a user's keyring, and log in without showing the password.
//!
//! There is no IO here and no clock; the only outside world is the operating system's random source.
//! This is the one crate that knows AEAD, HPKE and OPAQUE libraries. The byte formats are specified
//! in `docs/formats/keys-and-sealing.md`, and `testdata/coffer_v1.json` holds their vectors.
//!
//! Three rules hold everywhere. Every key has one use: a subkey is derived under a label of its own
//! ([`keys::LABELS`]), and every sealed value carries its purpose and its place as associated data, so
//! that nothing opens in another slot. Opening fails with one uniform error and releases no byte.
//! Secret types are wiped when dropped and have neither `Debug` nor `Clone` nor equality:
//!
//! ```compile_fail,E0277
//! let secret = coffer_crypto::keys::DirectorySecret::generate();
//! println!("{secret:?}");
//! ```
//!
//! ```compile_fail,E0599
//! let secret = coffer_crypto::keys::DirectorySecret::generate();
//! let _second = secret.clone();
//! ```
//!
//! ```compile_fail,E0277
//! let plaintext = coffer_crypto::plaintext::Plaintext::from(vec![1]);
//! println!("{plaintext:?}");
//! ```

pub mod chunk;
pub mod content;
pub mod error;
pub mod hpke;
pub mod keyring;
pub mod keys;
pub mod login;
pub mod names;
pub mod padding;
pub mod plaintext;
pub mod random;
pub mod seal;
pub mod session;
pub mod sign;
mod siv;
pub mod wrap;

#[cfg(test)]
mod vectors;
