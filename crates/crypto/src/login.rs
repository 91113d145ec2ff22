//! The client's half of login: OPAQUE (RFC 9807) over ristretto255 with SHA-512 and 3DH. The password
//! never leaves this module; what the server keeps does not let it guess without one Argon2id a guess.
//!
//! The server's half lives with the metadata members. It uses the same suite with no key stretching of
//! its own (the stretching is the client's), and must agree on [`CONTEXT`], [`client_identifier`],
//! [`server_identifier`] and [`credential_identifier`].
//!
//! The two `finish` functions take a quarter of a second and 64 MiB: run them off the event loop.

use argon2::{Algorithm, Argon2, Params, Version};
use coffer_model::id::ClusterId;
use coffer_model::name::UserName;
use opaque_ke::errors::{InternalError, ProtocolError};
use opaque_ke::generic_array::{ArrayLength, GenericArray};
use opaque_ke::ksf::Ksf;
use opaque_ke::{
    CipherSuite, ClientLogin, ClientLoginFinishParameters, ClientRegistration,
    ClientRegistrationFinishParameters, CredentialResponse, Identifiers, RegistrationResponse,
    Ristretto255, TripleDh,
};
use unicode_normalization::UnicodeNormalization;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::error::CryptoError;
use crate::random::OsRandom;

/// OPAQUE's context string.
pub const CONTEXT: &[u8] = b"coffer/v1/login";
/// The longest password, in bytes of UTF-8 after normalisation.
pub const PASSWORD_BYTES_MAX: usize = 1024;

const ARGON2_MEMORY_KIB: u32 = 64 * 1024;
const ARGON2_PASSES: u32 = 3;
const ARGON2_LANES: u32 = 4;

/// OPAQUE's client identity: the user's name.
pub fn client_identifier(name: &UserName) -> &[u8] {
    name.as_str().as_bytes()
}

/// OPAQUE's server identity: the cluster, whichever member answers.
pub fn server_identifier(cluster: &ClusterId) -> Vec<u8> {
    [b"coffer".as_slice(), cluster.as_bytes()].concat()
}

/// What the server derives a user's OPRF key from: the user's name.
pub fn credential_identifier(name: &UserName) -> &[u8] {
    name.as_str().as_bytes()
}

/// Who logs in where.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LoginIdentity {
    /// The cluster.
    pub cluster: ClusterId,
    /// The user.
    pub name: UserName,
}

/// A typed password in Unicode form NFC, so that it is the same on every keyboard.
#[derive(ZeroizeOnDrop)]
pub struct Password(String);

/// What a right password gives, at registration and at every login: the key that unlocks the keyring.
#[derive(ZeroizeOnDrop)]
pub struct ExportKey([u8; 64]);

/// A registration waiting for the server's answer.
pub struct RegistrationState(ClientRegistration<Suite>);

/// A login waiting for the server's answer.
pub struct LoginState(ClientLogin<Suite>);

impl Password {
    /// Takes what was typed.
    pub fn new(typed: &str) -> Result<Self, CryptoError> {
        const TOO_LONG: CryptoError =
            CryptoError::TooLong { what: "a password", bytes_max: PASSWORD_BYTES_MAX };
        if typed.is_empty() {
            return Err(CryptoError::Malformed("password: it is empty"));
        }
        if typed.len() > PASSWORD_BYTES_MAX {
            return Err(TOO_LONG);
        }
        // NFC makes no text more than three times as long, so the string never moves.
        let mut normal = Self(String::with_capacity(typed.len() * 3));
        normal.0.extend(typed.nfc());
        if normal.0.len() > PASSWORD_BYTES_MAX { Err(TOO_LONG) } else { Ok(normal) }
    }
}

impl ExportKey {
    pub(crate) const fn as_bytes(&self) -> &[u8; 64] {
        &self.0
    }

    fn take(key: &mut GenericArray<u8, impl ArrayLength<u8>>) -> Self {
        let taken = Self(key.as_slice().try_into().expect("SHA-512 gives 64 bytes"));
        key.as_mut_slice().zeroize();
        taken
    }
}

/// Starts a registration (or a change of password): the state to keep and the message to send.
pub fn registration_start(
    password: &Password,
) -> Result<(RegistrationState, Vec<u8>), CryptoError> {
    let started = ClientRegistration::<Suite>::start(&mut OsRandom, password.0.as_bytes())
        .map_err(|_| CryptoError::Malformed("password"))?;
    Ok((RegistrationState(started.state), started.message.serialize().to_vec()))
}

/// Finishes a registration: the login record for the server to keep, and the export key. Slow.
pub fn registration_finish(
    state: RegistrationState,
    password: &Password,
    response: &[u8],
    identity: &LoginIdentity,
) -> Result<(Vec<u8>, ExportKey), CryptoError> {
    const REFUSED: CryptoError = CryptoError::Malformed("answer to a registration");
    let response = RegistrationResponse::deserialize(response).map_err(|_| REFUSED)?;
    let server = server_identifier(&identity.cluster);
    let identifiers =
        Identifiers { client: Some(client_identifier(&identity.name)), server: Some(&server) };
    let stretching = Stretching;
    let parameters = ClientRegistrationFinishParameters::new(identifiers, Some(&stretching));
    let mut finished = state
        .0
        .finish(&mut OsRandom, password.0.as_bytes(), response, parameters)
        .map_err(|_| REFUSED)?;
    let export_key = ExportKey::take(&mut finished.export_key);
    Ok((finished.message.serialize().to_vec(), export_key))
}

/// Starts a login: the state to keep and the message to send.
pub fn login_start(password: &Password) -> Result<(LoginState, Vec<u8>), CryptoError> {
    let started = ClientLogin::<Suite>::start(&mut OsRandom, password.0.as_bytes())
        .map_err(|_| CryptoError::Malformed("password"))?;
    Ok((LoginState(started.state), started.message.serialize().to_vec()))
}

/// Finishes a login: the message that proves it to the server, and the export key. Slow.
pub fn login_finish(
    state: LoginState,
    password: &Password,
    response: &[u8],
    identity: &LoginIdentity,
) -> Result<(Vec<u8>, ExportKey), CryptoError> {
    const REFUSED: CryptoError = CryptoError::Malformed("answer to a login");
    let response = CredentialResponse::deserialize(response).map_err(|_| REFUSED)?;
    let server = server_identifier(&identity.cluster);
    let identifiers =
        Identifiers { client: Some(client_identifier(&identity.name)), server: Some(&server) };
    let stretching = Stretching;
    let parameters =
        ClientLoginFinishParameters::new(Some(CONTEXT), identifiers, Some(&stretching));
    let finished = state.0.finish(&mut OsRandom, password.0.as_bytes(), response, parameters);
    let mut finished = finished.map_err(|error| match error {
        ProtocolError::InvalidLoginError => CryptoError::WrongPassword,
        _ => REFUSED,
    })?;
    finished.session_key.as_mut_slice().zeroize();
    let export_key = ExportKey::take(&mut finished.export_key);
    Ok((finished.message.serialize().to_vec(), export_key))
}

/// The suite. Its hash is the one of the library's own generation of crates.
struct Suite;

impl CipherSuite for Suite {
    type OprfCs = Ristretto255;
    type KeyExchange = TripleDh<Ristretto255, sha2_v10::Sha512>;
    type Ksf = Stretching;
}

/// Argon2id with costs that no server and no configuration chooses. The salt is all zeros, as RFC 9807
/// has it: what is stretched is already different for every user.
#[derive(Default)]
struct Stretching;

impl Ksf for Stretching {
    fn hash<L: ArrayLength<u8>>(
        &self,
        input: GenericArray<u8, L>,
    ) -> Result<GenericArray<u8, L>, InternalError> {
        let input = Zeroizing::new(input.to_vec());
        let parameters = Params::new(ARGON2_MEMORY_KIB, ARGON2_PASSES, ARGON2_LANES, None)
            .map_err(|_| InternalError::KsfError)?;
        let mut stretched = GenericArray::default();
        Argon2::new(Algorithm::Argon2id, Version::V0x13, parameters)
            .hash_password_into(&input, &[0; 16], &mut stretched)
            .map_err(|_| InternalError::KsfError)?;
        Ok(stretched)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(crate) mod tests;
