//! The server half of OPAQUE (RFC 9807): ristretto255, SHA-512, 3DH. No key stretching happens here;
//! that is the client's. Context and identifiers must be the client's, see
//! `docs/formats/keys-and-sealing.md`.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use coffer_model::hash::Hash;
use coffer_model::id::ClusterId;
use coffer_model::name::UserName;
use opaque_ke::keypair::PublicKey;
use opaque_ke::rand::rngs::OsRng;
use opaque_ke::{
    CipherSuite, CredentialFinalization, CredentialRequest, Identifiers, RegistrationRequest,
    RegistrationUpload, Ristretto255, ServerLogin, ServerLoginParameters, ServerRegistration,
    ServerSetup, TripleDh,
};
use zeroize::Zeroizing;

/// OPAQUE's context string.
const CONTEXT: &[u8] = b"coffer/v1/login";
/// What a setup file begins with: a name and a version.
const MAGIC: &[u8; 8] = b"COFFEROP";
const VERSION: u8 = 1;
/// Nobody but the owner may change the file, and nobody outside the owner's group may read it. (A
/// Kubernetes secret with an `fsGroup` is readable by that group.)
const MODE_FORBIDDEN: u32 = 0o027;

/// Why the setup cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// The file cannot be read.
    #[error("cannot read the OPAQUE setup {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The file is open to others.
    #[error("the OPAQUE setup {} has mode {mode:o}; it is secret: set mode 0600", path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// The file holds something else.
    #[error("{} is not an OPAQUE setup of version {VERSION}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
    },
}

/// What the client sent is not a message of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MalformedMessage;

/// The proof does not fit the password that was registered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct WrongPassword;

struct Suite;

impl CipherSuite for Suite {
    type OprfCs = Ristretto255;
    type KeyExchange = TripleDh<Ristretto255, sha2_v10::Sha512>;
    type Ksf = opaque_ke::ksf::Identity;
}

/// A new OPRF seed and server key, as they stand in the setup file. All members of a cluster use the
/// same one, and it must never change: with it the passwords of all users would stop working.
pub fn new_opaque_setup() -> Zeroizing<Vec<u8>> {
    let setup = ServerSetup::<Suite>::new(&mut OsRng);
    let mut bytes = Zeroizing::new(Vec::with_capacity(256));
    bytes.extend_from_slice(MAGIC);
    bytes.push(VERSION);
    bytes.extend_from_slice(&Zeroizing::new(setup.serialize().to_vec()));
    bytes
}

/// The server's secrets for login.
pub(crate) struct Opaque {
    setup: ServerSetup<Suite>,
    server_identifier: Vec<u8>,
}

/// A login between its two steps.
pub(crate) struct Attempt(ServerLogin<Suite>);

impl Opaque {
    pub(crate) fn read(path: &Path, cluster: &ClusterId) -> Result<Self, SetupError> {
        let failed = |source| SetupError::Read { path: path.to_owned(), source };
        let mode = std::fs::metadata(path).map_err(failed)?.permissions().mode() & 0o777;
        if mode & MODE_FORBIDDEN != 0 {
            return Err(SetupError::Exposed { path: path.to_owned(), mode });
        }
        let bytes = Zeroizing::new(std::fs::read(path).map_err(failed)?);
        Self::parse(&bytes, cluster).ok_or(SetupError::Malformed { path: path.to_owned() })
    }

    fn parse(bytes: &[u8], cluster: &ClusterId) -> Option<Self> {
        let bytes = bytes.strip_prefix(MAGIC)?.strip_prefix(&[VERSION])?;
        let setup = ServerSetup::<Suite>::deserialize(bytes).ok()?;
        // The library looks at what it needs and no further.
        if Zeroizing::new(setup.serialize().to_vec()).as_slice() != bytes {
            return None;
        }
        let server_identifier = [b"coffer".as_slice(), cluster.as_bytes()].concat();
        Some(Self { setup, server_identifier })
    }

    /// What tells one setup from another and gives nothing away: members whose setups differ cannot
    /// log in each other's users.
    pub(crate) fn fingerprint(&self) -> Hash {
        let key: &PublicKey<Ristretto255> = self.setup.keypair().public();
        Hash::of("coffer/v1/member/opaque-fingerprint", &key.serialize())
    }

    /// The answer to the first step of a registration.
    pub(crate) fn registration(
        &self,
        name: &UserName,
        message: &[u8],
    ) -> Result<Vec<u8>, MalformedMessage> {
        let request =
            RegistrationRequest::<Suite>::deserialize(message).map_err(|_| MalformedMessage)?;
        let id = name.as_str().as_bytes();
        let started = ServerRegistration::<Suite>::start(&self.setup, request, id)
            .map_err(|_| MalformedMessage)?;
        Ok(started.message.serialize().to_vec())
    }

    /// The answer to the first step of a login. Without a record, or with one that is not a record,
    /// the answer has the same form and no password fits it.
    pub(crate) fn login(
        &self,
        name: &UserName,
        record: Option<&[u8]>,
        message: &[u8],
    ) -> Result<(Attempt, Vec<u8>), MalformedMessage> {
        let request =
            CredentialRequest::<Suite>::deserialize(message).map_err(|_| MalformedMessage)?;
        let id = name.as_str().as_bytes();
        // The record is what the client's registration ended with, kept as it came.
        let record = record
            .and_then(|record| RegistrationUpload::<Suite>::deserialize(record).ok())
            .map(ServerRegistration::finish);
        let parameters = self.parameters(name);
        let started = ServerLogin::start(&mut OsRng, &self.setup, record, request, id, parameters)
            .map_err(|_| MalformedMessage)?;
        Ok((Attempt(started.state), started.message.serialize().to_vec()))
    }

    /// Checks the second step of a login.
    pub(crate) fn finish(
        &self,
        name: &UserName,
        attempt: Attempt,
        message: &[u8],
    ) -> Result<(), WrongPassword> {
        let message =
            CredentialFinalization::<Suite>::deserialize(message).map_err(|_| WrongPassword)?;
        attempt.0.finish(message, self.parameters(name)).map(|_| ()).map_err(|_| WrongPassword)
    }

    fn parameters<'a>(&'a self, name: &'a UserName) -> ServerLoginParameters<'a, 'a> {
        ServerLoginParameters {
            context: Some(CONTEXT),
            identifiers: Identifiers {
                client: Some(name.as_str().as_bytes()),
                server: Some(&self.server_identifier),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const CLUSTER: ClusterId = ClusterId::from_bytes([1; 32]);

    #[test]
    fn a_setup_is_read_strictly() {
        let bytes = new_opaque_setup();
        assert_eq!(bytes.len(), 9 + 64 + 32 + 32);
        let fingerprint = Opaque::parse(&bytes, &CLUSTER).unwrap().fingerprint();
        assert_ne!(
            fingerprint,
            Opaque::parse(&new_opaque_setup(), &CLUSTER).unwrap().fingerprint()
        );
        let mut longer = bytes.to_vec();
        longer.push(0);
        let mut later = bytes.to_vec();
        later[8] = 2;
        for wrong in [&[][..], &bytes[1..], &bytes[..bytes.len() - 1], &longer, &later] {
            assert!(Opaque::parse(wrong, &CLUSTER).is_none());
        }
    }

    /// Goal: an answer tells nobody whether a user exists. Method: the lengths of the answers, and
    /// what stays the same for one name, are alike with a record, without one, and with rubbish.
    #[test]
    fn unknown_users_get_answers_of_the_same_form() {
        use opaque_ke::{
            ClientLogin, ClientRegistration, ClientRegistrationFinishParameters,
            RegistrationResponse,
        };

        let opaque = Opaque::parse(&new_opaque_setup(), &CLUSTER).unwrap();
        let name: UserName = "alice".parse().unwrap();
        let started = ClientRegistration::<Suite>::start(&mut OsRng, b"secret").unwrap();
        let answer = opaque.registration(&name, &started.message.serialize()).unwrap();
        let response = RegistrationResponse::deserialize(&answer).unwrap();
        let parameters = ClientRegistrationFinishParameters::default();
        let finished = started.state.finish(&mut OsRng, b"secret", response, parameters).unwrap();
        let record = finished.message.serialize().to_vec();

        let login = ClientLogin::<Suite>::start(&mut OsRng, b"guess").unwrap().message.serialize();
        let answers: Vec<Vec<u8>> = [Some(record.as_slice()), None, Some(b"rubbish")]
            .into_iter()
            .map(|record| opaque.login(&name, record, &login).unwrap().1)
            .collect();
        for answer in &answers {
            assert_eq!(answer.len(), answers[0].len());
            // The evaluated element depends on the name alone.
            assert_eq!(answer[..32], answers[0][..32]);
        }
        assert!(opaque.login(&name, None, b"rubbish").is_err());
        assert!(opaque.registration(&name, b"rubbish").is_err());
    }
}
