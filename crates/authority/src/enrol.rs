//! How a process applies to the authority: before it serves for the first time, and again and again to renew its
//! certificate.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use coffer_join::token::{JoinToken, TokenError};
use coffer_model::descriptor::SignedDescriptor;
use coffer_model::encoding::{decode, encode};
use coffer_model::enrolment::{Applicant, NO_CLUSTER, STATEMENT_VERSION, Statement};
use coffer_model::signing::{Domain, Signer};
use coffer_proto::internal as pb;
use coffer_proto::internal::authority_service_client::AuthorityServiceClient;
use coffer_service::call::contained;
use coffer_service::channel::{ChannelError, ChannelOptions, connect_lazy, host_of};
use coffer_service::files::{PRIVATE_FILE, create_private_dir, write_atomically};
use coffer_service::health::alive_while;
use coffer_service::identity::{IdentityError, ProcessIdentity};
use coffer_service::one_box::{CA_FILE, CERTIFICATE_FILE, KEY_FILE, OneBoxError, new_request};
use coffer_service::peer::peer_uri_id;
use coffer_service::retry::{Backoff, Jitter};
use coffer_service::shutdown::Shutdown;
use coffer_service::status::{reason_of, retry_delay};
use coffer_service::tls::{
    ClientAuth, LiveTls, TlsError, TlsFiles, client_config_without_certificate, read_certificates,
};
use tonic::Status;

use crate::config::EnrolConfig;

const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// A process waits for the authority, its name and its peers for as long as it takes.
const BACKOFF: Backoff =
    Backoff { first: Duration::from_millis(200), max: Duration::from_secs(3), attempts: u32::MAX };
/// Certificates are renewed at least this often, which also brings changes of what is trusted.
const RENEW_EVERY_MAX: Duration = Duration::from_secs(3600);
const RENEW_EVERY_MIN: Duration = Duration::from_secs(10);
/// A certificate that ends sooner is not begun with.
const LIFE_LEFT_MIN: Duration = Duration::from_secs(60);

/// Why a process cannot apply.
#[derive(Debug, thiserror::Error)]
pub enum EnrolError {
    /// The volume cannot be used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// There is no usable join token.
    #[error(transparent)]
    JoinToken(#[from] TokenError),
    /// No key for a certificate can be made.
    #[error("cannot ask for a certificate")]
    Request(#[from] OneBoxError),
    /// What is trusted cannot be read.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The authority's address is not one.
    #[error("the authority's address cannot be used")]
    Address(#[from] ChannelError),
    /// A file cannot be read or written.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// To which file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Health cannot be served meanwhile.
    #[error("cannot serve health")]
    Health(#[source] io::Error),
    /// The process was told to stop before it got a certificate.
    #[error("the process was stopped before the authority gave it a certificate")]
    Stopped,
    /// The authority will never give a certificate to this process as it is.
    #[error("the authority refuses: {why} ({reason})")]
    Refused {
        /// The stable reason.
        reason: String,
        /// What it says.
        why: String,
    },
}

/// What a process may begin with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Enrolled {
    /// Whether the first descriptor names it as a member: such a one forms the group, if there is none.
    pub is_founder: bool,
}

/// Gets a process on `volume` what it needs to serve: waits for the authority if it has to, and keeps the
/// certificate fresh from then on until `shutdown`. Until it returns, `health` says that the process is alive.
pub async fn enrol(
    config: &EnrolConfig,
    applicant: Applicant,
    volume: &Path,
    health: Option<std::net::SocketAddr>,
    shutdown: &Shutdown,
) -> Result<Enrolled, EnrolError> {
    let application = Application::new(config, applicant, volume)?;
    if !application.has_all() {
        let waited = alive_while(health, application.wait(shutdown)).await;
        waited.map_err(EnrolError::Health)??;
    }
    let is_founder = application.is_founder();
    // Later, when the server has read the files: it must not find a new key beside the former certificate.
    shutdown.spawn("renew the certificate", application.renew(shutdown.clone()));
    Ok(Enrolled { is_founder })
}

struct Application {
    config: EnrolConfig,
    statement: Statement,
    request: pb::EnrolRequest,
    key_pem: zeroize::Zeroizing<String>,
    files: TlsFiles,
}

impl Application {
    fn new(config: &EnrolConfig, applicant: Applicant, volume: &Path) -> Result<Self, EnrolError> {
        let token = JoinToken::read(&config.join_token_file)?;
        // The volume is free again when this returns; whoever serves from it takes it then.
        let identity = ProcessIdentity::load_or_create(volume, applicant.role(), None)?;
        let (request, key_pem) = new_request()?;
        let statement = Statement {
            version: STATEMENT_VERSION,
            applicant,
            id: *identity.id(),
            key: identity.public_key(),
            address: config.address.clone(),
            zone: config.zone.clone(),
            weight: config.weight,
            names: config.names.clone(),
            request,
            cluster: identity.cluster(),
        };
        let bytes = encode(&statement);
        let signature = identity.sign(Domain::Enrolment, &NO_CLUSTER, &bytes);
        let token_signature = token.sign(Domain::Enrolment, &NO_CLUSTER, &bytes);
        let tls = config.dir.join("tls");
        let request = pb::EnrolRequest {
            statement: bytes.into(),
            signature: signature.as_bytes().to_vec().into(),
            token_signature: token_signature.as_bytes().to_vec().into(),
            descriptor: kept(&config.dir.join(DESCRIPTOR_FILE))?.into(),
            layout: kept(&config.dir.join(LAYOUT_FILE))?.into(),
        };
        Ok(Self {
            config: config.clone(),
            statement,
            request,
            key_pem,
            files: TlsFiles {
                ca: tls.join(CA_FILE),
                certificate: tls.join(CERTIFICATE_FILE),
                key: tls.join(KEY_FILE),
            },
        })
    }

    /// Whether there is all it takes to serve, from an earlier start: then nobody has to be waited for.
    fn has_all(&self) -> bool {
        let lasts = self.life_left() > LIFE_LEFT_MIN;
        let certificates = read_certificates(&self.files.certificate).unwrap_or_default();
        let is_ours =
            peer_uri_id(&certificates).is_some_and(|peer| peer.id() == &self.statement.id);
        lasts && is_ours && self.first().is_some() && self.config.dir.join(LAYOUT_FILE).exists()
    }

    /// For how long the certificate counts yet; not at all, if the files cannot be used.
    fn life_left(&self) -> Duration {
        LiveTls::load(self.files.clone(), ClientAuth::Required)
            .ok()
            .and_then(|tls| tls.expires())
            .and_then(|end| end.duration_since(SystemTime::now()).ok())
            .unwrap_or_default()
    }

    fn first(&self) -> Option<coffer_model::descriptor::Descriptor> {
        let bytes = std::fs::read(self.config.dir.join(DESCRIPTOR_FILE)).ok()?;
        let signed: SignedDescriptor = decode("cluster descriptor", &bytes).ok()?;
        signed.verify_first(self.statement.cluster).ok().map(|(_, first)| first)
    }

    fn is_founder(&self) -> bool {
        self.statement.applicant == Applicant::Member
            && self.first().is_some_and(|first| {
                first.members.iter().any(|member| member.key == self.statement.key)
            })
    }

    async fn wait(&self, shutdown: &Shutdown) -> Result<(), EnrolError> {
        let (mut jitter, mut attempt, mut said) = (Jitter::random(), 0, String::new());
        loop {
            let tried = tokio::select! {
                () = shutdown.cancelled() => return Err(EnrolError::Stopped),
                tried = self.attempt() => tried?,
            };
            let (why, hint) = match tried {
                Ok(awaited) if awaited.is_empty() => return Ok(()),
                Ok(awaited) => {
                    (format!("the cluster is founded when these are there: {awaited:?}"), None)
                }
                Err(refusal) => {
                    let reason = reason_of(&refusal).map(|reason| reason.code).unwrap_or_default();
                    if matches!(reason.as_str(), "FOREIGN_VOLUME" | "ID_TAKEN") {
                        let why = refusal.message().to_owned();
                        return Err(EnrolError::Refused { reason, why });
                    }
                    let told = format!(
                        "the authority gives no certificate: {} {reason}",
                        refusal.message()
                    );
                    (told, retry_delay(&refusal))
                }
            };
            if why != said {
                tracing::warn!(
                    authority = self.config.authority,
                    why,
                    "this process waits for the authority"
                );
                (said, attempt) = (why, 0);
            }
            let delay = BACKOFF.delay(attempt, &mut jitter).unwrap_or(BACKOFF.max);
            attempt = attempt.saturating_add(1);
            let delay = delay.max(hint.unwrap_or_default()).min(BACKOFF.max);
            tokio::select! {
                () = shutdown.cancelled() => return Err(EnrolError::Stopped),
                () = tokio::time::sleep(delay) => {}
            }
        }
    }

    /// Applies once: says who is still awaited, or what the authority refuses for.
    async fn attempt(&self) -> Result<Result<Vec<String>, Status>, EnrolError> {
        // What is trusted may have changed; a new connection each time also finds a name that has moved.
        let mut trusted = read_certificates(&self.config.ca)?;
        trusted.extend(read_certificates(&self.files.ca).unwrap_or_default());
        let tls = Arc::new(client_config_without_certificate(&trusted)?);
        let address = &self.config.authority;
        let options =
            ChannelOptions { request_timeout: Some(CALL_TIMEOUT), ..ChannelOptions::standard() };
        let channel = connect_lazy(address, host_of(address), tls, &options)?;
        let mut client = AuthorityServiceClient::new(channel).max_decoding_message_size(16 << 20);
        let answer = match contained(client.enrol(self.request.clone())).await {
            Ok(answer) => answer.into_inner(),
            Err(refusal) => return Ok(Err(refusal)),
        };
        if answer.awaited.is_empty() {
            self.keep(&answer)?;
        }
        Ok(Ok(answer.awaited))
    }

    fn keep(&self, answer: &pb::EnrolResponse) -> Result<(), EnrolError> {
        let dir = self.config.dir.join("tls");
        create_private_dir(&dir).map_err(io_error("create", &dir))?;
        let records = [(DESCRIPTOR_FILE, &answer.descriptor), (LAYOUT_FILE, &answer.layout)];
        for (file, bytes) in records {
            let path = self.config.dir.join(file);
            // They never change; what a volume began with is kept.
            if !path.exists() {
                write(&path, bytes)?;
            }
        }
        write(&self.files.ca, answer.trusted_pem.as_bytes())?;
        write(&self.files.key, self.key_pem.as_bytes())?;
        write(&self.files.certificate, answer.certificate_pem.as_bytes())
    }

    async fn renew(self, shutdown: Shutdown) {
        let mut delay = RENEW_EVERY_MIN;
        let mut said = String::new();
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(delay) => {}
            }
            let failure = match self.attempt().await {
                Ok(Ok(_)) => None,
                Ok(Err(refusal)) => Some(refusal.message().to_owned()),
                Err(error) => Some(error.to_string()),
            };
            let left = self.life_left();
            let wanted = (left / 2).clamp(RENEW_EVERY_MIN, RENEW_EVERY_MAX);
            match failure {
                None => {
                    if !said.is_empty() {
                        tracing::info!("the certificate is renewed again");
                        said.clear();
                    }
                    delay = wanted;
                }
                Some(why) => {
                    if why != said {
                        tracing::warn!(
                            why,
                            seconds_left = left.as_secs(),
                            "the certificate is not renewed"
                        );
                        said = why;
                    }
                    delay = wanted.min(Duration::from_secs(60));
                }
            }
        }
    }
}

const DESCRIPTOR_FILE: &str = "descriptor";
const LAYOUT_FILE: &str = "layout";

/// What an earlier start has left; nothing at the first.
fn kept(path: &Path) -> Result<Vec<u8>, EnrolError> {
    match std::fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        read => read.map_err(io_error("read", path)),
    }
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), EnrolError> {
    write_atomically(path, bytes, PRIVATE_FILE).map_err(io_error("write", path))
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> EnrolError {
    let path = path.to_owned();
    move |source| EnrolError::Io { action, path, source }
}
