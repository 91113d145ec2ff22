//! TLS 1.3 with certificates on both sides, from PEM files that may change while the process runs.
//!
//! A new connection uses what the files held at the last look; connections that are open live on with
//! what they began with. Sessions are never resumed, so every connection shows a certificate that is
//! checked against the present authority.

use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::version::TLS13;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

/// How often the files are looked at.
pub const RELOAD_EVERY: Duration = Duration::from_secs(10);

/// How often a certificate and a key that do not go together are looked at before that is an error, and how long
/// to wait in between.
const PAIR_TRIES: u32 = 5;
const PAIR_DELAY: Duration = Duration::from_millis(50);

/// HTTP/2, the only protocol we speak.
const ALPN: &[u8] = b"h2";
/// A PEM file longer than this is something else.
const PEM_BYTES_MAX: u64 = 1 << 20;

/// Why TLS cannot be set up. Every fault names its file.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A file is not PEM.
    #[error("{} is not PEM", path.display())]
    NotPem {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: rustls::pki_types::pem::Error,
    },
    /// A file that should hold a certificate or key holds none.
    #[error("{} holds no {what}", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
        /// What was looked for.
        what: &'static str,
    },
    /// A certificate cannot serve as an authority.
    #[error("{origin} holds a certificate that cannot serve as an authority")]
    Authority {
        /// The file, or what else the certificate came from.
        origin: String,
        /// What is wrong with it.
        #[source]
        source: rustls::Error,
    },
    /// Certificate and key cannot be used together.
    #[error("the certificate {} and the key {} cannot be used together", certificate.display(), key.display())]
    Pair {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// What is wrong with them.
        #[source]
        source: rustls::Error,
    },
    /// No verifier can be made of the authority.
    #[error("clients cannot be verified with {}", path.display())]
    Verifier {
        /// The authority's file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: rustls::client::VerifierBuilderError,
    },
    /// The cryptography library does not do TLS 1.3.
    #[error("the cryptography library does not support TLS 1.3")]
    Provider(#[source] rustls::Error),
}

/// The PEM files of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The authorities whose certificates are accepted from others.
    pub ca: PathBuf,
    /// The process's own certificate, with what leads from it to the authority.
    pub certificate: PathBuf,
    /// The key of that certificate; secret.
    pub key: PathBuf,
}

/// What a server asks of those who connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientAuth {
    /// A certificate of the authority; nobody else gets a connection.
    Required,
    /// A certificate of the authority, or none: callers without one prove otherwise what they may do.
    Optional,
    /// Nothing.
    None,
}

/// The configuration of a server.
pub fn server_config(files: &TlsFiles, auth: ClientAuth) -> Result<ServerConfig, TlsError> {
    Material::read(files)?.server(files, auth)
}

/// The configuration of a client that shows a certificate.
pub fn client_config(files: &TlsFiles) -> Result<ClientConfig, TlsError> {
    Material::read(files)?.client(files)
}

/// The configuration of a client that shows no certificate and accepts servers of the given
/// authorities only.
pub fn client_config_without_certificate(
    authorities: &[CertificateDer<'static>],
) -> Result<ClientConfig, TlsError> {
    let roots = roots(authorities, "the given authority")?;
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .map_err(TlsError::Provider)?;
    Ok(finished_client(builder.with_root_certificates(roots).with_no_client_auth()))
}

/// The certificates in a PEM file, at least one.
pub fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let pem = read_bounded(path)?;
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<_, _>>()
        .map_err(|source| TlsError::NotPem { path: path.to_owned(), source })?;
    if certificates.is_empty() {
        return Err(TlsError::Empty { path: path.to_owned(), what: "certificate" });
    }
    Ok(certificates)
}

/// Configurations that follow their files.
pub struct LiveTls {
    files: TlsFiles,
    auth: ClientAuth,
    current: Mutex<Loaded>,
}

struct Loaded {
    stamps: Stamps,
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
    expires: Option<SystemTime>,
}

impl LiveTls {
    /// Reads the files for the first time.
    pub fn load(files: TlsFiles, auth: ClientAuth) -> Result<Arc<Self>, TlsError> {
        let mut tries = 1;
        let loaded = loop {
            match Loaded::read(&files, auth) {
                // Who replaces the files may be between the two.
                Err(TlsError::Pair { .. }) if tries < PAIR_TRIES => {
                    tries += 1;
                    std::thread::sleep(PAIR_DELAY);
                }
                read => break read?,
            }
        };
        Ok(Arc::new(Self { files, auth, current: Mutex::new(loaded) }))
    }

    /// What the next accepted connection uses.
    pub fn server(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.lock().server)
    }

    /// What the next outgoing connection uses.
    pub fn client(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.lock().client)
    }

    /// When our own certificate ends, for a metric.
    pub fn expires(&self) -> Option<SystemTime> {
        self.lock().expires
    }

    /// Reads the files again if one of them has changed, and says whether it did. After an error the
    /// former configurations stay, and the next call tries again.
    pub fn reload(&self) -> Result<bool, TlsError> {
        if self.lock().stamps == Stamps::of(&self.files)? {
            return Ok(false);
        }
        let loaded = Loaded::read(&self.files, self.auth)?;
        *self.lock() = loaded;
        Ok(true)
    }

    /// Looks at the files again and again ([`RELOAD_EVERY`]) until `stop`. For a task of its own.
    pub async fn watch(self: Arc<Self>, every: Duration, stop: CancellationToken) {
        let mut tick = tokio::time::interval(every);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // A fault is said once, not at every look.
        let mut said = None;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = tick.tick() => {}
            }
            let live = Arc::clone(&self);
            let Ok(reloaded) = tokio::task::spawn_blocking(move || live.reload()).await else {
                return;
            };
            match reloaded {
                Ok(true) => {
                    tracing::info!(certificate = %self.files.certificate.display(), "certificates reloaded")
                }
                Ok(false) => {}
                Err(error) => {
                    let text = chain(&error);
                    if said.as_ref() != Some(&text) {
                        tracing::warn!(
                            error = text,
                            "certificates not reloaded; the former ones stay in use"
                        );
                        said = Some(text);
                    }
                    continue;
                }
            }
            said = None;
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Loaded> {
        // The value is replaced whole, so a panic elsewhere cannot have left it half done.
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for LiveTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LiveTls")
            .field("files", &self.files)
            .field("auth", &self.auth)
            .finish_non_exhaustive()
    }
}

impl Loaded {
    fn read(files: &TlsFiles, auth: ClientAuth) -> Result<Self, TlsError> {
        // The stamps come first: a change while we read is then seen at the next look.
        let stamps = Stamps::of(files)?;
        let material = Material::read(files)?;
        let expires = material.expires();
        let client = Arc::new(material.client(files)?);
        let server = Arc::new(material.server(files, auth)?);
        Ok(Self { stamps, server, client, expires })
    }
}

/// What tells a changed file from an unchanged one: its number on the device, its length, the time of its change.
#[derive(PartialEq, Eq)]
struct Stamps([(u64, u64, i64, i64); 3]);

impl Stamps {
    fn of(files: &TlsFiles) -> Result<Self, TlsError> {
        let stamp = |path: &PathBuf| {
            let found = fs::metadata(path)
                .map_err(|source| TlsError::Read { path: path.clone(), source })?;
            Ok((found.ino(), found.len(), found.mtime(), found.mtime_nsec()))
        };
        Ok(Self([stamp(&files.ca)?, stamp(&files.certificate)?, stamp(&files.key)?]))
    }
}

/// What the files hold.
struct Material {
    authorities: Vec<CertificateDer<'static>>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl Material {
    fn read(files: &TlsFiles) -> Result<Self, TlsError> {
        Ok(Self {
            authorities: read_certificates(&files.ca)?,
            chain: read_certificates(&files.certificate)?,
            key: read_key(&files.key)?,
        })
    }

    fn server(&self, files: &TlsFiles, auth: ClientAuth) -> Result<ServerConfig, TlsError> {
        let roots = Arc::new(roots(&self.authorities, &files.ca.display().to_string())?);
        let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider());
        let verifier = match auth {
            ClientAuth::Required => verifier.build(),
            ClientAuth::Optional => verifier.allow_unauthenticated().build(),
            ClientAuth::None => Ok(WebPkiClientVerifier::no_client_auth()),
        };
        let verifier =
            verifier.map_err(|source| TlsError::Verifier { path: files.ca.clone(), source })?;
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])
            .map_err(TlsError::Provider)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(self.chain.clone(), self.key.clone_key())
            .map_err(pair(files))?;
        config.alpn_protocols = vec![ALPN.to_vec()];
        // No resumption: see the head of this module.
        config.send_tls13_tickets = 0;
        Ok(config)
    }

    fn client(&self, files: &TlsFiles) -> Result<ClientConfig, TlsError> {
        let roots = roots(&self.authorities, &files.ca.display().to_string())?;
        let config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])
            .map_err(TlsError::Provider)?
            .with_root_certificates(roots)
            .with_client_auth_cert(self.chain.clone(), self.key.clone_key())
            .map_err(pair(files))?;
        Ok(finished_client(config))
    }

    fn expires(&self) -> Option<SystemTime> {
        let (_, leaf) = x509_parser::parse_x509_certificate(self.chain.first()?).ok()?;
        let seconds = u64::try_from(leaf.validity().not_after.timestamp()).ok()?;
        SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
    }
}

fn finished_client(mut config: ClientConfig) -> ClientConfig {
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    config
}

/// Named explicitly: the default one is whatever the features of all crates together make it.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

fn roots(authorities: &[CertificateDer<'static>], origin: &str) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for authority in authorities {
        roots
            .add(authority.clone())
            .map_err(|source| TlsError::Authority { origin: origin.to_owned(), source })?;
    }
    Ok(roots)
}

fn pair(files: &TlsFiles) -> impl FnOnce(rustls::Error) -> TlsError {
    let (certificate, key) = (files.certificate.clone(), files.key.clone());
    move |source| TlsError::Pair { certificate, key, source }
}

fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let pem = Zeroizing::new(read_bounded(path)?);
    match PrivateKeyDer::from_pem_slice(&pem) {
        Ok(key) => Ok(key),
        Err(rustls::pki_types::pem::Error::NoItemsFound) => {
            Err(TlsError::Empty { path: path.to_owned(), what: "private key" })
        }
        Err(source) => Err(TlsError::NotPem { path: path.to_owned(), source }),
    }
}

fn read_bounded(path: &Path) -> Result<Vec<u8>, TlsError> {
    let failed = |source| TlsError::Read { path: path.to_owned(), source };
    if fs::metadata(path).map_err(failed)?.len() > PEM_BYTES_MAX {
        return Err(failed(io::Error::new(io::ErrorKind::FileTooLarge, "it is longer than 1 MiB")));
    }
    fs::read(path).map_err(failed)
}

/// An error with what caused it, on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
