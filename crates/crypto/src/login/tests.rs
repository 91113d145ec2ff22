use opaque_ke::ksf::Identity;
use opaque_ke::{
    CredentialFinalization, CredentialRequest, RegistrationRequest, RegistrationUpload,
    ServerLogin, ServerLoginParameters, ServerRegistration, ServerSetup,
};

use super::*;

pub(crate) fn export_key(fill: u8) -> ExportKey {
    ExportKey([fill; 64])
}

/// A03: the costs are compiled in; `testdata/coffer_v1.json` holds what they give.
pub(crate) fn stretched_zeros() -> Vec<u8> {
    let zeros: GenericArray<u8, opaque_ke::generic_array::typenum::U64> = GenericArray::default();
    Stretching.hash(zeros).unwrap().to_vec()
}

/// The suite of the server's half: the same but for the stretching, which the server never does.
struct ServerSuite;

impl CipherSuite for ServerSuite {
    type OprfCs = Ristretto255;
    type KeyExchange = TripleDh<Ristretto255, sha2_v10::Sha512>;
    type Ksf = Identity;
}

struct Server {
    setup: ServerSetup<ServerSuite>,
}

impl Server {
    fn new() -> Self {
        Self { setup: ServerSetup::new(&mut OsRandom) }
    }

    fn register(&self, name: &UserName, message: &[u8]) -> Vec<u8> {
        let request = RegistrationRequest::deserialize(message).unwrap();
        let name = credential_identifier(name);
        let started = ServerRegistration::start(&self.setup, request, name).unwrap();
        started.message.serialize().to_vec()
    }

    /// Answers a login; then tells whether the client's last message proves it.
    fn login(
        &self,
        who: &LoginIdentity,
        record: Option<&[u8]>,
        message: &[u8],
    ) -> (Vec<u8>, impl FnOnce(&[u8]) -> bool + use<>) {
        let record = record.map(|record| {
            ServerRegistration::finish(RegistrationUpload::deserialize(record).unwrap())
        });
        let who = who.clone();
        let server = server_identifier(&who.cluster);
        let started = ServerLogin::start(
            &mut OsRandom,
            &self.setup,
            record,
            CredentialRequest::deserialize(message).unwrap(),
            credential_identifier(&who.name),
            parameters(&who, &server),
        )
        .unwrap();
        let answer = started.message.serialize().to_vec();
        let finish = move |message: &[u8]| {
            let message = CredentialFinalization::deserialize(message).unwrap();
            started.state.finish(message, parameters(&who, &server)).is_ok()
        };
        (answer, finish)
    }
}

fn parameters<'a>(who: &'a LoginIdentity, server: &'a [u8]) -> ServerLoginParameters<'static, 'a> {
    let client = client_identifier(&who.name);
    let identifiers = Identifiers { client: Some(client), server: Some(server) };
    ServerLoginParameters { context: Some(CONTEXT), identifiers }
}

fn who(name: &str) -> LoginIdentity {
    LoginIdentity { cluster: ClusterId::from_bytes([1; 32]), name: name.parse().unwrap() }
}

fn password(text: &str) -> Password {
    Password::new(text).unwrap()
}

fn register(server: &Server, who: &LoginIdentity, text: &str) -> (Vec<u8>, ExportKey) {
    let (state, message) = registration_start(&password(text)).unwrap();
    let answer = server.register(&who.name, &message);
    registration_finish(state, &password(text), &answer, who).unwrap()
}

#[test]
fn the_right_password_gives_the_same_key_again_and_no_other_does() {
    let server = Server::new();
    let alice = who("alice");
    let (record, registered) = register(&server, &alice, "corr\u{e9}ct horse");

    // Typed on a keyboard that composes the accent.
    let right = password("corre\u{301}ct horse");
    let (state, message) = login_start(&right).unwrap();
    let (answer, proves) = server.login(&alice, Some(&record), &message);
    let (proof, export_key) = login_finish(state, &right, &answer, &alice).unwrap();
    assert!(proves(&proof));
    assert!(export_key.0 == registered.0);

    let wrong = password("correct horse");
    let (state, message) = login_start(&wrong).unwrap();
    let (answer, _) = server.login(&alice, Some(&record), &message);
    assert_eq!(
        login_finish(state, &wrong, &answer, &alice).err(),
        Some(CryptoError::WrongPassword)
    );
}

/// An unknown user, another cluster's record, and another user's record look like a wrong password.
#[test]
fn whatever_is_not_this_users_record_is_a_wrong_password() {
    let server = Server::new();
    let (alice, bob) = (who("alice"), who("bob"));
    let (record, _) = register(&server, &alice, "secret");
    let elsewhere = LoginIdentity { cluster: ClusterId::from_bytes([9; 32]), ..alice.clone() };
    for (record, asked, answered) in [
        (None, &alice, &alice),
        (Some(&record), &elsewhere, &alice),
        (Some(&record), &bob, &alice),
        (Some(&record), &alice, &bob),
    ] {
        let (state, message) = login_start(&password("secret")).unwrap();
        let (answer, _) = server.login(answered, record.map(Vec::as_slice), &message);
        let refused = login_finish(state, &password("secret"), &answer, asked).err();
        assert_eq!(refused, Some(CryptoError::WrongPassword));
    }
}

#[test]
fn an_answer_that_is_none_is_refused() {
    let alice = who("alice");
    let right = password("secret");
    for answer in [Vec::new(), vec![0; 320], vec![255; 400]] {
        let (state, _) = login_start(&right).unwrap();
        let refused = login_finish(state, &right, &answer, &alice).err();
        assert_eq!(refused, Some(CryptoError::Malformed("answer to a login")));
        let (state, _) = registration_start(&right).unwrap();
        let refused = registration_finish(state, &right, &answer, &alice).err();
        assert_eq!(refused, Some(CryptoError::Malformed("answer to a registration")));
    }
    // The server sends the blinded password back as it came.
    let server = Server::new();
    let (record, _) = register(&server, &alice, "secret");
    let (state, message) = login_start(&right).unwrap();
    let (mut answer, _) = server.login(&alice, Some(&record), &message);
    answer[..32].copy_from_slice(&message[..32]);
    assert!(login_finish(state, &right, &answer, &alice).is_err());
}

#[test]
fn passwords_have_bounds() {
    assert!(Password::new("").is_err());
    assert!(Password::new(&"x".repeat(PASSWORD_BYTES_MAX)).is_ok());
    assert!(Password::new(&"x".repeat(PASSWORD_BYTES_MAX + 1)).is_err());
}
