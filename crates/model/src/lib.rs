//! What everybody in a Coffer cluster may know: ids, sizes, sealed chunks, manifests, records, ops,
//! tickets, receipts, and how each of them is hashed and verified.
//!
//! There is no IO here, no clock, no randomness and no secret: a function of this crate gives the
//! same answer on every machine. The byte formats are specified in `docs/formats/`.

pub mod authorize;
pub mod bundle;
pub mod chunk;
pub mod descriptor;
pub mod encoding;
pub mod enrolment;
pub mod hash;
pub mod id;
pub mod layout;
pub mod log;
pub mod manifest;
pub mod merkle;
pub mod name;
pub mod object;
pub mod op;
pub mod order;
pub mod proposal;
pub mod receipt;
pub mod session;
pub mod share;
pub mod signing;
pub mod ticket;
pub mod time;

/// The cipher and signature suite of this version: Ed25519 (strict), BLAKE3, AEAD_AES_SIV_CMAC_512,
/// C2SP chunked encryption with SHA-512 and AES-256-GCM, HPKE X25519/HKDF-SHA256/AES-256-GCM.
pub const SUITE: u16 = 1;
