//! Answering applications.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use coffer_join::token::{JoinToken, TokenError};
use coffer_model::descriptor::ReplacementPolicy;
use coffer_model::encoding::decode;
use coffer_model::enrolment::{
    Applicant, NAMES_MAX, NO_CLUSTER, STATEMENT_BYTES_MAX, STATEMENT_VERSION, Statement,
};
use coffer_model::signing::{Domain, PublicKey, Signature, Signer};
use coffer_proto::internal as pb;
use coffer_proto::internal::authority_service_server::{AuthorityService, AuthorityServiceServer};
use coffer_service::audit::note;
use coffer_service::channel::host_of;
use coffer_service::files::{PRIVATE_FILE, create_private_dir, write_atomically};
use coffer_service::health::Health;
use coffer_service::identity::{IdentityError, ProcessIdentity};
use coffer_service::one_box::{CA_FILE, CERTIFICATE_FILE, KEY_FILE, OneBoxCa, OneBoxError};
use coffer_service::peer::PeerId;
use coffer_service::server::{GrpcServer, ServerLimits};
use coffer_service::shutdown::Shutdown;
use coffer_service::status::{status, status_with_retry};
use coffer_service::tls::{
    ClientAuth, LiveTls, RELOAD_EVERY, TlsError, TlsFiles, read_certificates,
};
use coffer_service::watch::{Watch, WatchError};
use tokio::net::TcpListener;
use tonic::service::Routes;
use tonic::{Code, Request, Response, Status};
use tower::Layer;

use crate::config::Config;
use crate::founding::{Founding, FoundingError, Plan};
use crate::{ADMINISTRATOR, ROLE};

/// How long what is under way at shutdown may take.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
/// How often the authority makes itself a new certificate.
const OWN_CERTIFICATE_EVERY: Duration = Duration::from_secs(3600);
/// The longest descriptor or layout that is taken up.
const RECORD_BYTES_MAX: usize = 2 << 20;
/// When a process whose cluster is not founded yet should ask again.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// Why the authority could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The authority's files cannot be used.
    #[error("the authority's certificate or key cannot be used")]
    Authority(#[from] OneBoxError),
    /// The certificates cannot be used.
    #[error("cannot set up TLS")]
    Tls(#[from] TlsError),
    /// There is no usable join token.
    #[error("the join token cannot be used")]
    JoinToken(#[from] TokenError),
    /// The volume cannot be used.
    #[error("the authority's volume cannot be used")]
    Volume(#[source] IdentityError),
    /// The administrator's key is missing, and there is no cluster yet.
    #[error(
        "there is no cluster yet, and no administrator's key to found one with: put the folder of \
         `coffer admin new` where `administrator` says ({})",
        path.display()
    )]
    Administrator {
        /// Where it was looked for.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: IdentityError,
    },
    /// The records cannot be used.
    #[error("the records of the cluster cannot be used")]
    Founding(#[from] FoundingError),
    /// A file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// A file cannot be written.
    #[error("cannot write {}", path.display())]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The address to listen on is taken or not ours.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address.
        address: std::net::SocketAddr,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// Calls cannot be watched.
    #[error(transparent)]
    Watch(#[from] WatchError),
    /// The server failed.
    #[error("the server failed")]
    Serve(#[source] tonic::transport::Error),
}

/// Runs the authority until `shutdown`.
pub async fn run(config: Config, shutdown: Shutdown) -> Result<(), Error> {
    let identity =
        ProcessIdentity::load_or_create(&config.data_dir, ROLE, None).map_err(Error::Volume)?;
    let token = JoinToken::read(&config.join_token_file)?;
    let plan = Plan {
        members: config.members.clone(),
        nodes: config.nodes.clone(),
        open_registration: config.open_registration,
        replacement: config.replace_after.map(|silent| ReplacementPolicy {
            silent_ms_min: u64::try_from(silent.as_millis()).unwrap_or(u64::MAX),
            join_token: token.hash(),
        }),
    };
    let founding = Founding::open(&config.data_dir, plan)?;
    if founding.records().is_none() {
        // Said at the start, not when everybody waits for it.
        administrator(&config)?;
    }
    let own = Own { peer: identity.peer_id().clone(), config: config.clone() };
    let files = own.issue()?;
    let tls = LiveTls::load(files, ClientAuth::None)?;
    let listener = TcpListener::bind(config.listen)
        .await
        .map_err(|source| Error::Listen { address: config.listen, source })?;
    let watch = Watch::start(
        ROLE,
        coffer_proto::methods(),
        coffer_proto::REFUSALS,
        config.audit_log.as_deref(),
    )?;
    let health = Health::new().await.with_metrics(watch.metrics());
    if let Some(address) = config.health_listen {
        let served = health.spawn_plain(address, &shutdown).await;
        served.map_err(|source| Error::Listen { address, source })?;
    }
    shutdown.spawn("reload certificates", Arc::clone(&tls).watch(RELOAD_EVERY, shutdown.token()));
    shutdown.spawn("renew the own certificate", own.renew(shutdown.clone()));
    match founding.records() {
        Some(records) => {
            tracing::info!(address = %config.listen, cluster = %records.cluster, "authority serving");
        }
        None => tracing::info!(
            address = %config.listen,
            members = ?config.members,
            nodes = ?config.nodes,
            "authority serving; the cluster is founded when all of these have applied"
        ),
    }
    let desk =
        Desk(Arc::new(Inner { token: token.public_key(), founding: Mutex::new(founding), config }));
    let service = AuthorityServiceServer::new(desk)
        .max_decoding_message_size(STATEMENT_BYTES_MAX + 2 * RECORD_BYTES_MAX)
        .max_encoding_message_size(4 * RECORD_BYTES_MAX);
    let routes = Routes::new(health.service()).add_service(service);
    health.set_serving().await;
    let limits = ServerLimits { drain_timeout: DRAIN_TIMEOUT, ..ServerLimits::standard() };
    GrpcServer::new(tls, limits)
        .serve(listener, watch.layer(routes), shutdown.token())
        .await
        .map_err(Error::Serve)?;
    if let Err(error) = shutdown.drain(DRAIN_TIMEOUT).await {
        tracing::warn!(%error, "some work did not end in time");
    }
    Ok(())
}

fn administrator(config: &Config) -> Result<impl Signer, Error> {
    let path = config.administrator.clone().unwrap_or_else(|| PathBuf::from(ADMINISTRATOR));
    ProcessIdentity::read_key(&path, ADMINISTRATOR)
        .map_err(|source| Error::Administrator { path, source })
}

/// The authority's own certificate.
struct Own {
    peer: PeerId,
    config: Config,
}

impl Own {
    fn issue(&self) -> Result<TlsFiles, Error> {
        let names: Vec<&str> = self.config.names.iter().map(String::as_str).collect();
        let issued =
            OneBoxCa::read(&self.config.issuer, &self.config.key)?.issue(&names, &self.peer)?;
        let dir = self.config.data_dir.join("tls");
        let files = TlsFiles {
            ca: dir.join(CA_FILE),
            certificate: dir.join(CERTIFICATE_FILE),
            key: dir.join(KEY_FILE),
        };
        let failed = |path: &PathBuf| {
            let path = path.clone();
            move |source| Error::Write { path, source }
        };
        create_private_dir(&dir).map_err(failed(&dir))?;
        let trusted = std::fs::read(&self.config.ca)
            .map_err(|source| Error::Read { path: self.config.ca.clone(), source })?;
        let chain = issued.certificate_pem + &leading(&self.config.issuer, &self.config.ca)?;
        write_atomically(&files.key, issued.key_pem.as_bytes(), PRIVATE_FILE)
            .map_err(failed(&files.key))?;
        write_atomically(&files.certificate, chain.as_bytes(), PRIVATE_FILE)
            .map_err(failed(&files.certificate))?;
        write_atomically(&files.ca, &trusted, PRIVATE_FILE).map_err(failed(&files.ca))?;
        Ok(files)
    }

    async fn renew(self, shutdown: Shutdown) {
        let every = OWN_CERTIFICATE_EVERY.min(self.config.certificate_life / 2);
        let own = Arc::new(self);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(every) => {}
            }
            let own = Arc::clone(&own);
            match tokio::task::spawn_blocking(move || own.issue()).await {
                Ok(Ok(_)) => {}
                Ok(Err(error)) => {
                    tracing::warn!(%error, "the authority's own certificate is not renewed");
                }
                Err(_) => return,
            }
        }
    }
}

/// What leads from a certificate that is issued to a trusted one: nothing where the issuer is trusted itself.
fn leading(issuer: &Path, trusted: &Path) -> Result<String, Error> {
    let issuers = read_certificates(issuer)?;
    let trusted = read_certificates(trusted)?;
    if issuers.first().is_some_and(|issuer| trusted.contains(issuer)) {
        return Ok(String::new());
    }
    std::fs::read_to_string(issuer)
        .map_err(|source| Error::Read { path: issuer.to_owned(), source })
}

struct Inner {
    config: Config,
    token: PublicKey,
    founding: Mutex<Founding>,
}

/// Where applications are handed in.
struct Desk(Arc<Inner>);

#[tonic::async_trait]
impl AuthorityService for Desk {
    async fn enrol(
        &self,
        request: Request<pb::EnrolRequest>,
    ) -> Result<Response<pb::EnrolResponse>, Status> {
        let checked = self.0.check(request.get_ref());
        if let Ok(statement) = &checked {
            note(&request, |subject| {
                subject.object =
                    Some(format!("{}/{}", statement.applicant.role(), hex::encode(statement.id)));
            });
        }
        let statement = checked?;
        let inner = Arc::clone(&self.0);
        let request = request.into_inner();
        tokio::task::spawn_blocking(move || inner.answer(&statement, request))
            .await
            .map_err(|_| failed(&"the task ended"))?
            .map(Response::new)
    }
}

impl Inner {
    /// Whether the applicant has the key it names, and the join token, and may have the names it asks for.
    fn check(&self, request: &pb::EnrolRequest) -> Result<Statement, Status> {
        let invalid = |why: &str| status(Code::InvalidArgument, "ENROLMENT_INVALID", why, &[]);
        if request.statement.len() > STATEMENT_BYTES_MAX
            || request.descriptor.len() > RECORD_BYTES_MAX
            || request.layout.len() > RECORD_BYTES_MAX
        {
            return Err(invalid("the application is too large"));
        }
        let statement: Statement = decode("statement", &request.statement).map_err(|_| {
            invalid("the statement cannot be read; is this program as new as that one?")
        })?;
        if statement.version != STATEMENT_VERSION {
            return Err(invalid("the statement has another version; run programs of one version"));
        }
        let signed = |key: &PublicKey, signature: &[u8]| {
            let signature = <[u8; 64]>::try_from(signature).map(Signature::from_bytes).ok();
            signature.is_some_and(|signature| {
                key.verify(Domain::Enrolment, &NO_CLUSTER, &request.statement, &signature).is_ok()
            })
        };
        if !signed(&self.token, &request.token_signature)
            || !signed(&statement.key, &request.signature)
        {
            return Err(status(
                Code::PermissionDenied,
                "ENROLMENT_DENIED",
                "the application is not signed by the join token and by the key it names",
                &[],
            ));
        }
        if statement.names.len() > NAMES_MAX {
            return Err(invalid("it asks for too many names"));
        }
        let own = match statement.applicant {
            Applicant::Gateway => None,
            Applicant::Member | Applicant::Node => Some(host_of(&statement.address)),
        };
        for name in statement.names.iter().map(String::as_str).chain(own) {
            if !self.config.names_of.allow(statement.applicant, name) {
                let shown: String = name.chars().take(128).collect();
                return Err(status(
                    Code::PermissionDenied,
                    "NAME_NOT_ALLOWED",
                    "a process of this role may not have this host name; `names_of` of the authority says \
                     which it may",
                    &[("name", shown)],
                ));
            }
        }
        Ok(statement)
    }

    fn answer(
        &self,
        statement: &Statement,
        request: pb::EnrolRequest,
    ) -> Result<pb::EnrolResponse, Status> {
        let mut founding = self.founding.lock().unwrap_or_else(PoisonError::into_inner);
        if !founding.is_key_of(statement) {
            return Err(status(
                Code::PermissionDenied,
                "ID_TAKEN",
                "another key has this id: this volume is a copy, or the application is forged",
                &[],
            ));
        }
        self.settle(&mut founding, statement, request)?;
        let awaited = match founding.records() {
            Some(_) => Vec::new(),
            None => founding.note(statement, Instant::now()),
        };
        if founding.records().is_none() && awaited.is_empty() {
            let administrator = administrator(&self.config).map_err(|error| failed(&error))?;
            let trusted = read_certificates(&self.config.ca).map_err(|error| failed(&error))?;
            let authority = trusted[0].to_vec();
            founding.found(authority, &administrator).map_err(|error| failed(&error))?;
            if let Some(records) = founding.records() {
                tracing::info!(cluster = %records.cluster, "the cluster is founded");
            }
        }
        let Some(records) = founding.records().cloned() else {
            return Ok(pb::EnrolResponse { awaited, ..pb::EnrolResponse::default() });
        };
        founding.keep_key(statement).map_err(|error| failed(&error))?;
        // Making a certificate takes no look at the founding.
        drop(founding);
        let certificate_pem = self.issue(statement).map_err(|error| failed(&error))?;
        let trusted_pem =
            std::fs::read_to_string(&self.config.ca).map_err(|error| failed(&error))?;
        Ok(pb::EnrolResponse {
            certificate_pem,
            trusted_pem,
            descriptor: records.descriptor.into(),
            layout: records.layout.into(),
            awaited,
        })
    }

    /// A process that belongs to a cluster is of ours, or brings back to us what we have lost.
    fn settle(
        &self,
        founding: &mut Founding,
        statement: &Statement,
        request: pb::EnrolRequest,
    ) -> Result<(), Status> {
        let Some(cluster) = statement.cluster else { return Ok(()) };
        let foreign = |why: &str| {
            let facts = [("cluster", cluster.to_string())];
            Err(status(Code::FailedPrecondition, "FOREIGN_VOLUME", why, &facts))
        };
        match founding.records() {
            Some(records) if records.cluster == cluster => Ok(()),
            Some(_) => foreign(
                "the volume of this process belongs to another cluster; give it its own volume, or an empty one",
            ),
            None if request.descriptor.is_empty() => foreign(
                "the volume of this process belongs to a cluster this authority does not know, and has not kept \
                 its first records",
            ),
            None => {
                let administrator = administrator(&self.config).map_err(|error| failed(&error))?;
                let taken = founding.take_up(
                    cluster,
                    &administrator.public_key(),
                    request.descriptor.into(),
                    request.layout.into(),
                );
                match taken {
                    Ok(true) => {
                        tracing::warn!(%cluster, "the authority had lost the records of its cluster; a process brought them");
                        Ok(())
                    }
                    Ok(false) | Err(FoundingError::Descriptor(_) | FoundingError::Layout(_)) => {
                        foreign("the records this process brings do not check out")
                    }
                    Err(error) => Err(failed(&error)),
                }
            }
        }
    }

    fn issue(&self, statement: &Statement) -> Result<String, Error> {
        let peer = PeerId::new(statement.applicant.role(), statement.id)
            .expect("our roles are names of roles");
        let names: Vec<&str> = statement.names.iter().map(String::as_str).collect();
        let certificate = OneBoxCa::read(&self.config.issuer, &self.config.key)?.issue_for(
            &statement.request,
            &names,
            &peer,
            self.config.certificate_life,
        )?;
        Ok(certificate + &leading(&self.config.issuer, &self.config.ca)?)
    }
}

/// It is our fault, or our disk's: the log says more than the caller is told.
fn failed(error: &dyn fmt::Display) -> Status {
    tracing::error!(%error, "an application could not be answered");
    status_with_retry(
        Code::Unavailable,
        "AUTHORITY_FAILED",
        "the authority cannot answer now; its log says why",
        &[],
        ASK_AGAIN,
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// Goal: who trusts only what `ca` says can follow a certificate to it. Method: an issuer that is trusted
    /// itself, first or later in the file, and one that is not.
    #[test]
    fn the_issuer_comes_along_where_nobody_knows_it() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let (one, _) = OneBoxCa::new_pems().unwrap();
        let (other, _) = OneBoxCa::new_pems().unwrap();
        let issuer = file("issuer.pem", &one);
        assert_eq!(leading(&issuer, &file("same.pem", &one)).unwrap(), "");
        assert_eq!(leading(&issuer, &file("both.pem", &format!("{other}{one}"))).unwrap(), "");
        assert_eq!(leading(&issuer, &file("root.pem", &other)).unwrap(), one);
    }
}
