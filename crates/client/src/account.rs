//! Becoming a user, and logging in. The password stays in this process; what a server hands back is
//! opened with what the password gives, and compared with the user's signed record.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use coffer_crypto::content::{Attrs, Mode, Xattrs};
use coffer_crypto::error::CryptoError;
use coffer_crypto::hpke::{HpkePublicKey, VaultKeyContext, seal_vault_key};
use coffer_crypto::keyring::{
    Keyring, KeyringKey, KeyringOwner, OpenKeyring, RecoveryCode, SealedKeyring,
};
use coffer_crypto::keys::{DirectorySecret, ObjectKey};
use coffer_crypto::login::{
    ExportKey, LoginIdentity, Password, login_finish, login_start, registration_finish,
    registration_start,
};
use coffer_crypto::padding::Padding;
use coffer_crypto::random::{inode_id, principal_id};
use coffer_crypto::session::{BearerToken, KeptSession, SessionSecrets};
use coffer_crypto::sign::SessionKey;
use coffer_model::SUITE;
use coffer_model::bundle::{Author, OpProof};
use coffer_model::encoding::decode;
use coffer_model::hash::payload_hash;
use coffer_model::id::{ClusterId, InodeId, PrincipalId};
use coffer_model::name::UserName;
use coffer_model::object::{Custody, Object, Role, SessionLeaf, UserLeaf, VaultLeaf, VaultMember};
use coffer_model::op::{Change, Op, Rejection};
use coffer_model::session::{Certificate, SESSION_MS_MAX, Scope, SignedCertificate};
use coffer_model::signing::{PublicKey, Signer};
use coffer_proto::v1 as pb;
use coffer_service::status::reason_of;
use tonic::{Code, Status};

use crate::change::{PlannedOp, Signing, submit};
use crate::clock::LogClock;
use crate::contact::{Endpoint, Pinned, StateDir};
use crate::error::ClientError;
use crate::node::{GENERATION, seal_attributes};
use crate::read::object_query;
use crate::session::Session;
use crate::state::SessionState;
use crate::transport::{Credentials, Transport};
use crate::verify::{Checked, Verifier, user_record};

/// The reason of a refusal because a login's first step was made elsewhere or too long ago.
const LOGIN_EXPIRED: &str = "LOGIN_EXPIRED";
/// How often a login begins anew because the member that began it is gone.
const LOGIN_ATTEMPTS: u32 = 3;
/// How often a session is signed anew because log time was guessed wrong.
const SESSION_ATTEMPTS: u32 = 3;
/// Permission bits of a new home.
const HOME_MODE: u32 = 0o755;

/// A cluster somebody wants to use, before they are logged in.
pub struct Engine {
    transport: Arc<dyn Transport>,
    pinned: Pinned,
    state_dir: StateDir,
}

/// What kind of account is made.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub struct AccountOptions {
    /// Where the user's keys are used.
    pub custody: Custody,
    /// The secret of an invite.
    pub invite: Option<Vec<u8>>,
}

impl AccountOptions {
    /// Keys that stay with the user, and no invite.
    pub const fn standard() -> Self {
        Self { custody: Custody::Local, invite: None }
    }
}

/// A session in gateway custody that was begun or taken up.
pub struct CustodySession {
    /// Opens it again, at any gateway.
    pub token: BearerToken,
    /// What the user can do.
    pub session: Session,
}

/// A new user, or one with a new keyring.
pub struct Registered {
    /// Opens the keyring of someone who lost the password. To be shown once and kept on paper.
    pub recovery_code: RecoveryCode,
}

impl Engine {
    /// Meets the cluster behind `endpoint`, or meets it again.
    pub async fn connect(endpoint: &Endpoint, state_dir: StateDir) -> Result<Self, ClientError> {
        let pinned = Pinned::meet(endpoint, &state_dir).await?;
        let transport = Arc::new(pinned.transport()?);
        Ok(Self { transport, pinned, state_dir })
    }

    /// The cluster a session is of.
    pub fn of_session(state: &SessionState, state_dir: StateDir) -> Result<Self, ClientError> {
        let pinned = state.pinned.clone();
        let transport = Arc::new(pinned.transport()?);
        Ok(Self { transport, pinned, state_dir })
    }

    /// The cluster `pinned`, over a given transport.
    pub fn over(transport: Arc<dyn Transport>, pinned: Pinned, state_dir: StateDir) -> Self {
        Self { transport, pinned, state_dir }
    }

    /// The cluster.
    pub fn pinned(&self) -> &Pinned {
        &self.pinned
    }

    /// The state of the cluster.
    pub async fn status(&self) -> Result<pb::GetStatusResponse, ClientError> {
        self.transport.get_status().await.map_err(|status| ClientError::of_status(&status))
    }

    /// Makes a new user with a home. Nobody is logged in by it.
    pub async fn register(
        &self,
        name: &UserName,
        password: &str,
    ) -> Result<Registered, ClientError> {
        let (registration, _) = self.make_user(name, password, &AccountOptions::standard()).await?;
        Ok(Registered { recovery_code: registration.recovery_code })
    }

    /// Makes a new user in gateway custody, and begins a session.
    pub async fn register_in_custody(
        &self,
        name: &UserName,
        password: &str,
        invite: Option<Vec<u8>>,
    ) -> Result<(Registered, CustodySession), ClientError> {
        let options = AccountOptions { custody: Custody::Gateway, invite };
        let (registration, clock) = self.make_user(name, password, &options).await?;
        let Registration { user, opened, recovery_code, .. } = registration;
        let begun = self.begin_in_custody(name, &user, opened, &clock).await?;
        Ok((Registered { recovery_code }, begun))
    }

    /// Makes a user. Nobody is logged in by it.
    async fn make_user(
        &self,
        name: &UserName,
        password: &str,
        options: &AccountOptions,
    ) -> Result<(Registration, LogClock), ClientError> {
        let password = parse_password(password)?;
        let (login_record, export_key, answer) = self.new_login(name, password).await?;
        if !answer.open_registration && options.invite.is_none() {
            return Err(ClientError::InviteRequired);
        }
        let clock = LogClock::default();
        clock.note(answer.log_time_ms);
        let cluster = self.pinned.cluster;
        let registration = Registration::new(cluster, name, login_record, &export_key, options)?;
        let by = Signing {
            transport: self.transport.as_ref(),
            session: None,
            cluster: self.pinned.cluster,
            principal: registration.user.principal,
            author: Author::Identity,
            clock: &clock,
            vaults: Vec::new(),
        };
        let identity = &registration.opened.keyring.identity;
        let (mut outcomes, _) = submit(&by, identity, vec![registration.op.clone()]).await?;
        match outcomes.pop() {
            Some(Ok(_)) => Ok((registration, clock)),
            Some(Err(rejection)) => Err(ClientError::rejected(rejection, name.as_str())),
            None => Err(ClientError::Stopped),
        }
    }

    /// Logs in, and opens a session of twelve hours. The state is for [`crate::SessionFile::save`].
    pub async fn login(
        &self,
        name: &UserName,
        password: &str,
    ) -> Result<SessionState, ClientError> {
        let account = self.account(name, password).await?;
        self.begin_session(name, &account.user.leaf, account.opened, &account.clock).await
    }

    /// Logs in a user in gateway custody. Whoever keeps the keys elsewhere is refused, and only after the
    /// password proved right: nobody else learns of a name where its keys are.
    pub async fn login_in_custody(
        &self,
        name: &UserName,
        password: &str,
    ) -> Result<CustodySession, ClientError> {
        let account = self.account(name, password).await?;
        if account.user.leaf.custody != Custody::Gateway {
            return Err(ClientError::LocalCustody);
        }
        self.begin_in_custody(name, &account.user.leaf, account.opened, &account.clock).await
    }

    /// Takes up the session of a bearer token, from what the cluster keeps of it.
    pub async fn take_up(&self, token: &BearerToken) -> Result<Session, ClientError> {
        let hash = token.session().as_hash().as_bytes().to_vec();
        let request = pb::GetSealedSessionRequest { certificate_hash: hash.into() };
        let answer = match self.transport.get_sealed_session(request).await {
            Ok(answer) => answer,
            Err(status) if status.code() == Code::NotFound => {
                return Err(ClientError::NoSuchSession);
            }
            Err(status) => return Err(ClientError::of_status(&status)),
        };
        // What an ended session is told depends on the token like everything else.
        let kept = token.open(&self.pinned.cluster, &answer.sealed);
        let kept = kept.map_err(|_| ClientError::WrongToken)?;
        if answer.ended {
            return Err(ClientError::SessionExpired);
        }
        self.session(self.state_of_kept(kept).await?)
    }

    /// Opens a session and leaves it with the cluster, sealed under a new token.
    async fn begin_in_custody(
        &self,
        name: &UserName,
        user: &UserLeaf,
        opened: OpenKeyring,
        clock: &LogClock,
    ) -> Result<CustodySession, ClientError> {
        let state = self.begin_session(name, user, opened, clock).await?;
        let token = BearerToken::generate(state.certificate.certificate.hash());
        let kept = state.to_kept();
        let session = self.session(state)?;
        session.keep(&token, &kept).await?;
        Ok(CustodySession { token, session })
    }

    /// Gives the user another password. Sessions stay open, the recovery code stays good, and the old
    /// password opens nothing that is stored from now on.
    pub async fn change_password(
        &self,
        name: &UserName,
        old: &str,
        new: &str,
    ) -> Result<(), ClientError> {
        let new = parse_password(new)?;
        let account = self.account(name, old).await?;
        let (login_record, export_key, _) = self.new_login(name, new).await?;
        let Account { user, sealed, opened, clock } = account;
        let cluster = self.pinned.cluster;
        let owner = KeyringOwner { cluster, principal: user.leaf.principal };
        let keyring = sealed.with_password(&owner, &opened, &export_key)?.encode();
        self.replace_keyring(name, &user, &opened.keyring, keyring, login_record, &clock).await
    }

    /// Gives a user who has the recovery code another password, and another recovery code, which is to be
    /// shown once. The old ones open nothing that is stored from now on. Sessions stay open.
    pub async fn recover(
        &self,
        name: &UserName,
        code: &str,
        new: &str,
    ) -> Result<Registered, ClientError> {
        let new = parse_password(new)?;
        let code = RecoveryCode::parse(code)?;
        let cluster = self.pinned.cluster;
        let request = pb::GetKeyringRequest { name: name.to_string() };
        let answer = self.transport.get_keyring(request).await;
        let answer = answer.map_err(|status| match status.code() {
            Code::NotFound => ClientError::NotFound { what: format!("the user {name}") },
            _ => ClientError::of_status(&status),
        })?;
        // As at a login, nothing of it is believed. That the code opens it shows that the user made it:
        // no server can wrap a key for a code it does not know.
        let proof: OpProof = decode("user record", &answer.user_proof)?;
        let user = user_record(&proof, &cluster, name)?;
        let sealed = check_keyring(&user.leaf, &answer.keyring)?;
        let owner = KeyringOwner { cluster, principal: user.leaf.principal };
        let opened = sealed.open_with_recovery(&owner, &code).map_err(|error| match error {
            CryptoError::Tampered => ClientError::WrongRecoveryCode,
            other => other.into(),
        })?;
        opened.verify(&user.leaf.identity, &HpkePublicKey::from_bytes(user.leaf.hpke))?;
        let (login_record, export_key, answer) = self.new_login(name, new).await?;
        let clock = LogClock::default();
        clock.note(answer.log_time_ms);
        // Under a new key: whoever got hold of the old one opens nothing that comes.
        let (key, recovery_code) = (KeyringKey::generate(), RecoveryCode::generate());
        let wraps = vec![
            key.wrap_for_password(&owner, &export_key),
            key.wrap_for_recovery(&owner, &recovery_code),
        ];
        let epoch = user.leaf.keyring_epoch + 1;
        let keyring = SealedKeyring::seal(&owner, epoch, &key, &opened.keyring, wraps)?.encode();
        self.replace_keyring(name, &user, &opened.keyring, keyring, login_record, &clock).await?;
        Ok(Registered { recovery_code })
    }

    /// Puts the next epoch of a user's keyring, and the login record it belongs to, into the user record.
    async fn replace_keyring(
        &self,
        name: &UserName,
        user: &Checked<UserLeaf>,
        opened: &Keyring,
        keyring: Vec<u8>,
        login_record: Vec<u8>,
        clock: &LogClock,
    ) -> Result<(), ClientError> {
        let leaf = UserLeaf {
            keyring: payload_hash(&keyring),
            keyring_epoch: user.leaf.keyring_epoch + 1,
            login_record: payload_hash(&login_record),
            ..user.leaf.clone()
        };
        let change = Change { key: name.clone(), expected: Some(user.hash), leaf };
        let op = PlannedOp::new(Op::UpdateUser { user: change }, vec![keyring, login_record]);
        let by = Signing {
            transport: self.transport.as_ref(),
            session: None,
            cluster: self.pinned.cluster,
            principal: user.leaf.principal,
            author: Author::Identity,
            clock,
            vaults: Vec::new(),
        };
        let (mut outcomes, _) = submit(&by, &opened.identity, vec![op]).await?;
        match outcomes.pop() {
            Some(Ok(_)) => Ok(()),
            Some(Err(rejection)) => Err(ClientError::rejected(rejection, name.as_str())),
            None => Err(ClientError::Stopped),
        }
    }

    /// The account of a user who can prove the password.
    async fn account(&self, name: &UserName, password: &str) -> Result<Account, ClientError> {
        let mut attempt = 1;
        loop {
            match self.prove_password(name, password).await {
                Ok(account) => return Ok(account),
                Err(LoginStop::BeginAnew(status)) if attempt < LOGIN_ATTEMPTS => {
                    tracing::debug!(code = ?status.code(), "a login begins anew");
                    attempt += 1;
                }
                Err(LoginStop::BeginAnew(status)) => return Err(ClientError::of_status(&status)),
                Err(LoginStop::Failed(error)) => return Err(error),
            }
        }
    }

    /// Makes a login record for a new password with the server's help; gives also the key that wraps the
    /// keyring, and what else the server said.
    async fn new_login(
        &self,
        name: &UserName,
        password: Password,
    ) -> Result<(Vec<u8>, ExportKey, pb::StartRegistrationResponse), ClientError> {
        let (state, message) = registration_start(&password)?;
        let request =
            pb::StartRegistrationRequest { name: name.to_string(), message: message.into() };
        let answer = self.transport.start_registration(request).await;
        let answer = answer.map_err(|status| ClientError::of_status(&status))?;
        let identity = LoginIdentity { cluster: self.pinned.cluster, name: name.clone() };
        let response = answer.message.clone();
        let finished = tokio::task::spawn_blocking(move || {
            registration_finish(state, &password, &response, &identity)
        });
        let (login_record, export_key) = finished.await.map_err(|_| ClientError::Stopped)??;
        Ok((login_record, export_key, answer))
    }

    /// Opens a session with an opened keyring.
    pub(crate) async fn begin_session(
        &self,
        name: &UserName,
        user: &UserLeaf,
        opened: OpenKeyring,
        clock: &LogClock,
    ) -> Result<SessionState, ClientError> {
        let key = SessionKey::generate();
        let certificate = self.open_session(user, &opened, &key, clock).await?;
        let Keyring { hpke, pins, .. } = opened.keyring;
        let secrets = SessionSecrets { key, hpke, pins };
        let &UserLeaf { principal, home, identity, .. } = user;
        self.session_state(Whose { name, principal, home, identity }, certificate, secrets).await
    }

    async fn state_of_kept(&self, kept: KeptSession) -> Result<SessionState, ClientError> {
        let KeptSession { name, home, identity, certificate, key, hpke } = kept;
        let principal = certificate.certificate.principal;
        let secrets = SessionSecrets { key, hpke, pins: Vec::new() };
        self.session_state(Whose { name: &name, principal, home, identity }, certificate, secrets)
            .await
    }

    /// Proves the password, and opens the keyring with what that gives.
    async fn prove_password(&self, name: &UserName, password: &str) -> Result<Account, LoginStop> {
        let password = parse_password(password)?;
        let (state, message) = login_start(&password).map_err(ClientError::from)?;
        let request = pb::StartLoginRequest { name: name.to_string(), message: message.into() };
        let started = self.transport.start_login(request).await;
        let started = started.map_err(LoginStop::of_status)?;
        let identity = LoginIdentity { cluster: self.pinned.cluster, name: name.clone() };
        let finished = tokio::task::spawn_blocking(move || {
            login_finish(state, &password, &started.message, &identity)
        });
        let finished = finished.await.map_err(|_| ClientError::Stopped)?;
        let (message, export_key) = finished.map_err(ClientError::from)?;
        let request = pb::FinishLoginRequest { attempt: started.attempt, message: message.into() };
        let answer = self.transport.finish_login(request).await;
        let answer = answer.map_err(LoginStop::of_status)?;
        let clock = LogClock::default();
        clock.note(answer.log_time_ms);
        Ok(open_account(&self.pinned.cluster, name, &answer, &export_key, clock)?)
    }

    /// Signs a certificate for `key` and puts it into the log.
    async fn open_session(
        &self,
        user: &UserLeaf,
        opened: &OpenKeyring,
        key: &SessionKey,
        clock: &LogClock,
    ) -> Result<SignedCertificate, ClientError> {
        let identity = &opened.keyring.identity;
        let by = Signing {
            transport: self.transport.as_ref(),
            session: None,
            cluster: self.pinned.cluster,
            principal: user.principal,
            author: Author::Identity,
            clock,
            vaults: Vec::new(),
        };
        let mut last = None;
        for _ in 0..SESSION_ATTEMPTS {
            let issued = clock.now();
            let certificate = Certificate {
                suite: SUITE,
                cluster: self.pinned.cluster,
                principal: user.principal,
                key: key.public_key(),
                scope: Scope::Full,
                issued,
                expires: issued.plus_ms(SESSION_MS_MAX),
            }
            .sign(identity);
            let leaf = SessionLeaf { certificate: certificate.clone(), closed: false };
            let key = certificate.certificate.hash();
            let op = Op::OpenSession { session: Change { key, expected: None, leaf } };
            let (mut outcomes, _) =
                submit(&by, identity, vec![PlannedOp::new(op, Vec::new())]).await?;
            match outcomes.pop() {
                Some(Ok(_)) => return Ok(certificate),
                // The certificate's times did not fit; submitting has told us log time meanwhile.
                Some(Err(rejection @ Rejection::Invalid(_))) => last = Some(rejection),
                Some(Err(rejection)) => {
                    return Err(ClientError::rejected(rejection, "the session"));
                }
                None => return Err(ClientError::Stopped),
            }
        }
        let rejection = last.unwrap_or(Rejection::Denied);
        Err(ClientError::rejected(rejection, "the session"))
    }

    /// Fetches what else a session needs: the home's access list.
    async fn session_state(
        &self,
        whose: Whose<'_>,
        certificate: SignedCertificate,
        secrets: SessionSecrets,
    ) -> Result<SessionState, ClientError> {
        let Whose { name, principal, home, identity } = whose;
        let SessionSecrets { key, hpke, pins } = secrets;
        let credentials =
            Credentials::new(self.pinned.cluster, certificate.certificate.hash(), key);
        let request = pb::ReadRequest {
            queries: vec![pb::Query { query: Some(object_query(&Object::Vault(home))) }],
            min_revision: 0,
        };
        let answer = self.transport.read(&credentials, request).await;
        let mut answer = answer.map_err(|status| ClientError::of_status(&status))?;
        let verifier = Verifier::new(self.pinned.cluster, principal, identity);
        let proven = verifier.prove(&answer.proofs.unwrap_or_default())?;
        let leaf = match answer.answers.pop().and_then(|answer| answer.answer) {
            Some(pb::answer::Answer::Object(pb::ObjectAnswer { leaf: Some(leaf) })) => leaf,
            _ => return Err(ClientError::tampered("the home's access list is not there")),
        };
        let vault = verifier.own_vault(&proven, &leaf, home, principal)?;
        Ok(SessionState {
            pinned: self.pinned.clone(),
            principal,
            name: name.clone(),
            home,
            identity,
            certificate,
            vault: vault.leaf,
            vault_hash: vault.hash,
            secrets: SessionSecrets { key: credentials.into_key(), hpke, pins },
        })
    }

    /// A session from its state.
    pub fn session(&self, state: SessionState) -> Result<Session, ClientError> {
        Session::resume_over(Arc::clone(&self.transport), state, &self.state_dir)
    }
}

/// Whose session it is.
struct Whose<'a> {
    name: &'a UserName,
    principal: PrincipalId,
    home: InodeId,
    identity: PublicKey,
}

/// A user whose keyring is open.
struct Account {
    user: Checked<UserLeaf>,
    sealed: SealedKeyring,
    opened: OpenKeyring,
    clock: LogClock,
}

/// Why a login stopped.
enum LoginStop {
    /// The member that began it does not know it any more.
    BeginAnew(Status),
    /// Anything else.
    Failed(ClientError),
}

impl LoginStop {
    fn of_status(status: Status) -> Self {
        let unknown = reason_of(&status).is_some_and(|reason| reason.code == LOGIN_EXPIRED);
        if unknown || matches!(status.code(), Code::NotFound | Code::Aborted) {
            return Self::BeginAnew(status);
        }
        // Whoever fails to prove the password hears the same as whoever does not exist.
        if matches!(status.code(), Code::Unauthenticated | Code::PermissionDenied) {
            return Self::Failed(ClientError::WrongPassword);
        }
        Self::Failed(ClientError::of_status(&status))
    }
}

impl From<ClientError> for LoginStop {
    fn from(error: ClientError) -> Self {
        Self::Failed(error)
    }
}

fn parse_password(typed: &str) -> Result<Password, ClientError> {
    Password::new(typed).map_err(|error| {
        let why = match error {
            CryptoError::Malformed(_) => "it is empty".to_owned(),
            other => other.to_string(),
        };
        ClientError::InvalidPassword { why }
    })
}

/// Opens what a proven password is answered with. Nothing in it is believed: the record must be signed
/// by the identity it names, the keyring must be the one the record names, and the keys inside must be
/// the record's.
fn open_account(
    cluster: &ClusterId,
    name: &UserName,
    answer: &pb::FinishLoginResponse,
    export_key: &ExportKey,
    clock: LogClock,
) -> Result<Account, ClientError> {
    let proof: OpProof = decode("user record", &answer.user_proof)?;
    let user = user_record(&proof, cluster, name)?;
    let sealed = check_keyring(&user.leaf, &answer.keyring)?;
    let owner = KeyringOwner { cluster: *cluster, principal: user.leaf.principal };
    let opened = sealed.open_with_password(&owner, export_key)?;
    opened.verify(&user.leaf.identity, &HpkePublicKey::from_bytes(user.leaf.hpke))?;
    Ok(Account { user, sealed, opened, clock })
}

/// The sealed keyring, if it is the one the user record names.
fn check_keyring(user: &UserLeaf, blob: &[u8]) -> Result<SealedKeyring, ClientError> {
    if payload_hash(blob) != user.keyring {
        return Err(ClientError::tampered("the keyring is not the one the user record names"));
    }
    let sealed = SealedKeyring::decode(blob)?;
    if sealed.epoch() != user.keyring_epoch {
        return Err(ClientError::RolledBack {
            what: "the keyring is not of the epoch the user record names".to_owned(),
        });
    }
    Ok(sealed)
}

/// Everything that comes into being with a user.
pub(crate) struct Registration {
    pub(crate) user: UserLeaf,
    pub(crate) opened: OpenKeyring,
    pub(crate) recovery_code: RecoveryCode,
    pub(crate) op: PlannedOp,
}

impl Registration {
    fn new(
        cluster: ClusterId,
        name: &UserName,
        login_record: Vec<u8>,
        export_key: &ExportKey,
        options: &AccountOptions,
    ) -> Result<Self, ClientError> {
        let principal = principal_id();
        let owner = KeyringOwner { cluster, principal };
        let (keyring, key) = (Keyring::generate(), KeyringKey::generate());
        let recovery_code = RecoveryCode::generate();
        let wraps = vec![
            key.wrap_for_password(&owner, export_key),
            key.wrap_for_recovery(&owner, &recovery_code),
        ];
        let sealed = SealedKeyring::seal(&owner, 1, &key, &keyring, wraps)?.encode();
        let (user, op) =
            register_op(cluster, name, &owner, &keyring, login_record, sealed, options)?;
        Ok(Self { user, opened: OpenKeyring { keyring, key }, recovery_code, op })
    }
}

/// The record of a new user, and the op that makes it with a home, with its payloads beside it.
pub(crate) fn register_op(
    cluster: ClusterId,
    name: &UserName,
    owner: &KeyringOwner,
    keyring: &Keyring,
    login_record: Vec<u8>,
    sealed_keyring: Vec<u8>,
    options: &AccountOptions,
) -> Result<(UserLeaf, PlannedOp), ClientError> {
    let (identity, hpke) = keyring.public_keys();
    let (home, secret) = (inode_id(), DirectorySecret::generate());
    let epoch = GENERATION;
    let context = VaultKeyContext { cluster, vault: home, epoch, principal: owner.principal };
    let vault = VaultLeaf {
        home,
        epoch,
        key_commitment: secret.commitment(&cluster, &home, epoch),
        members: vec![VaultMember {
            principal: owner.principal,
            role: Role::Admin,
            sealed_key: seal_vault_key(&hpke, &context, &secret)?,
        }],
        former_key: None,
        gateway_custody: options.custody == Custody::Gateway,
        padding: true,
    };
    let attrs =
        Attrs { mode: Mode::from_bits(HOME_MODE), mtime_ns: now_ns(), xattrs: Xattrs::default() };
    let key = ObjectKey::Directory(&secret);
    let (attrs, sealed_attrs) = seal_attributes(&cluster, home, key, &attrs, Padding::Bucket);
    let user = UserLeaf {
        principal: owner.principal,
        identity,
        hpke: *hpke.as_bytes(),
        home,
        custody: options.custody,
        keyring: payload_hash(&sealed_keyring),
        keyring_epoch: 1,
        login_record: payload_hash(&login_record),
        invite: options.invite.as_deref().map(payload_hash),
    };
    let op = Op::Register {
        user: Change { key: name.clone(), expected: None, leaf: user.clone() },
        vault: Change { key: home, expected: None, leaf: vault },
        attrs: Change { key: home, expected: None, leaf: attrs },
    };
    let mut blobs = vec![sealed_keyring, login_record, sealed_attrs];
    blobs.extend(options.invite.clone());
    Ok((user, PlannedOp::new(op, blobs)))
}

/// This machine's clock, as files have it.
pub(crate) fn now_ns() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_nanos()).unwrap_or(i64::MAX)
}
