//! A certificate authority for clusters that have none of their own, and the certificates of processes.
//!
//! Authority and leaves are ECDSA P-256; an authority made elsewhere may have another key. The authority's
//! key stands in a file; whoever can read it can get a connection, but is not yet a member of anything.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
    PublicKeyData, SanType,
};
use rustls::pki_types::CertificateSigningRequestDer;
use zeroize::Zeroizing;

use crate::files::{PRIVATE_FILE, create_private_dir, write_atomically};
use crate::peer::PeerId;
use crate::tls::TlsFiles;

/// The file of the authority's certificate, in every directory.
pub const CA_FILE: &str = "ca.pem";
/// The file of the authority's key.
const CA_KEY_FILE: &str = "ca-key.pem";
/// The file of a leaf's certificate.
pub const CERTIFICATE_FILE: &str = "certificate.pem";
/// The file of a leaf's key.
pub const KEY_FILE: &str = "key.pem";

/// Certificates count from a little before now, for clocks that are slow.
const SLOW_CLOCKS: Duration = Duration::from_secs(3600);
const CA_LIFE: Duration = Duration::from_secs(10 * 365 * 86_400);
const LEAF_LIFE: Duration = Duration::from_secs(365 * 86_400);

/// Every leaf is good for these.
const LOOPBACK: [&str; 3] = ["localhost", "127.0.0.1", "::1"];

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum OneBoxError {
    /// A certificate or key could not be made, or the authority's could not be understood.
    #[error("cannot {action}")]
    Certificate {
        /// What was being done.
        action: &'static str,
        /// What went wrong.
        #[source]
        source: rcgen::Error,
    },
    /// The file system refused.
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
    /// The system gave no randomness.
    #[error("the system gave no random bytes for a new authority")]
    Random(#[source] getrandom::Error),
}

/// A certificate authority that signs with a key of its own.
pub struct OneBoxCa {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate and its key, as PEM.
pub struct Issued {
    /// The certificate.
    pub certificate_pem: String,
    /// Its key; secret.
    pub key_pem: Zeroizing<String>,
}

impl OneBoxCa {
    /// Makes an authority and keeps it nowhere.
    pub fn ephemeral() -> Result<Self, OneBoxError> {
        Ok(Self::generate()?.0)
    }

    /// Makes an authority and keeps it nowhere: its certificate and its key, as PEM.
    pub fn new_pems() -> Result<(String, Zeroizing<String>), OneBoxError> {
        let (ca, key_pem) = Self::generate()?;
        Ok((ca.pem, key_pem))
    }

    /// Makes an authority and keeps it in `dir`, in place of one that was there.
    pub fn create(dir: &Path) -> Result<Self, OneBoxError> {
        let (ca, key_pem) = Self::generate()?;
        create_private_dir(dir).map_err(io_error("create", dir))?;
        // The certificate comes last: `load_or_create` takes it as the sign that both are there.
        write(&dir.join(CA_KEY_FILE), key_pem.as_bytes())?;
        write(&dir.join(CA_FILE), ca.pem.as_bytes())?;
        Ok(ca)
    }

    /// Takes up the authority that [`Self::create`] left in `dir`.
    pub fn load(dir: &Path) -> Result<Self, OneBoxError> {
        let key_pem = Zeroizing::new(read(&dir.join(CA_KEY_FILE))?);
        let pem = read(&dir.join(CA_FILE))?;
        let key = KeyPair::from_pem_and_sign_algo(&key_pem, &PKCS_ECDSA_P256_SHA256)
            .map_err(certificate_error("understand the authority's key"))?;
        let issuer = Issuer::from_ca_cert_pem(&pem, key)
            .map_err(certificate_error("understand the authority's certificate"))?;
        Ok(Self { pem, issuer })
    }

    /// Takes up an authority whose certificate is the first one in `issuer`, and whose key is in `key`.
    pub fn read(issuer: &Path, key: &Path) -> Result<Self, OneBoxError> {
        let key_pem = Zeroizing::new(read(key)?);
        let pem = read(issuer)?;
        let key = KeyPair::from_pem(&key_pem)
            .map_err(certificate_error("understand the authority's key"))?;
        let issuer = Issuer::from_ca_cert_pem(&pem, key)
            .map_err(certificate_error("understand the authority's certificate"))?;
        Ok(Self { pem, issuer })
    }

    /// Takes up the authority in `dir`, or makes one if there is none.
    pub fn load_or_create(dir: &Path) -> Result<Self, OneBoxError> {
        if dir.join(CA_FILE).exists() { Self::load(dir) } else { Self::create(dir) }
    }

    /// The authority's certificate.
    pub fn certificate_pem(&self) -> &str {
        &self.pem
    }

    /// Makes a certificate for a process: good for loopback and `names` (host names or IP addresses),
    /// as a server and as a client, and saying who it is for.
    pub fn issue(&self, names: &[&str], peer: &PeerId) -> Result<Issued, OneBoxError> {
        let key = new_key()?;
        let certificate_pem = self.certify(&key, names, peer, LEAF_LIFE)?;
        Ok(Issued { certificate_pem, key_pem: Zeroizing::new(key.serialize_pem()) })
    }

    /// The same for a key that is the process's own secret: of its `request` (PKCS #10, DER) only the public
    /// key counts, and that it proves to have the secret one.
    pub fn issue_for(
        &self,
        request: &[u8],
        names: &[&str],
        peer: &PeerId,
        life: Duration,
    ) -> Result<String, OneBoxError> {
        let request = CertificateSigningRequestDer::from(request);
        let request = CertificateSigningRequestParams::from_der(&request)
            .map_err(certificate_error("understand the request for a certificate"))?;
        self.certify(&request.public_key, names, peer, life)
    }

    fn certify(
        &self,
        key: &impl PublicKeyData,
        names: &[&str],
        peer: &PeerId,
        life: Duration,
    ) -> Result<String, OneBoxError> {
        let names: Vec<String> =
            LOOPBACK.iter().chain(names).map(|name| (*name).to_owned()).collect();
        let uri = peer.to_string().try_into().map_err(certificate_error("name the peer"))?;
        let mut params = CertificateParams::new(names)
            .map_err(certificate_error("use a host name in a certificate"))?;
        params.subject_alt_names.push(SanType::URI(uri));
        params.distinguished_name.remove(DnType::CommonName);
        params.distinguished_name.push(DnType::CommonName, peer.role());
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        set_validity(&mut params, life);
        let certificate =
            params.signed_by(key, &self.issuer).map_err(certificate_error("sign a certificate"))?;
        Ok(certificate.pem())
    }

    /// Makes a certificate for a process and puts it, its key and the authority's certificate into
    /// `dir`, in place of those that were there.
    pub fn issue_into(
        &self,
        dir: &Path,
        names: &[&str],
        peer: &PeerId,
    ) -> Result<TlsFiles, OneBoxError> {
        let issued = self.issue(names, peer)?;
        create_private_dir(dir).map_err(io_error("create", dir))?;
        let files = TlsFiles {
            ca: dir.join(CA_FILE),
            certificate: dir.join(CERTIFICATE_FILE),
            key: dir.join(KEY_FILE),
        };
        write(&files.ca, self.pem.as_bytes())?;
        write(&files.certificate, issued.certificate_pem.as_bytes())?;
        write(&files.key, issued.key_pem.as_bytes())?;
        Ok(files)
    }

    fn generate() -> Result<(Self, Zeroizing<String>), OneBoxError> {
        // Two authorities never have the same name, so a chain leads to one of them at most.
        let serial = getrandom::u64().map_err(OneBoxError::Random)?;
        let mut params = CertificateParams::default();
        params.distinguished_name.remove(DnType::CommonName);
        params
            .distinguished_name
            .push(DnType::CommonName, format!("coffer one-box authority {serial:016x}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        set_validity(&mut params, CA_LIFE);
        let key = new_key()?;
        let key_pem = Zeroizing::new(key.serialize_pem());
        let certificate =
            params.self_signed(&key).map_err(certificate_error("sign the authority"))?;
        Ok((Self { pem: certificate.pem(), issuer: Issuer::new(params, key) }, key_pem))
    }
}

/// A new key for a certificate, and the request with which a process asks for it (PKCS #10, DER).
pub fn new_request() -> Result<(Vec<u8>, Zeroizing<String>), OneBoxError> {
    let key = new_key()?;
    let request = CertificateParams::default()
        .serialize_request(&key)
        .map_err(certificate_error("ask for a certificate"))?;
    Ok((request.der().to_vec(), Zeroizing::new(key.serialize_pem())))
}

fn new_key() -> Result<KeyPair, OneBoxError> {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(certificate_error("make a key"))
}

fn set_validity(params: &mut CertificateParams, life: Duration) {
    let now = SystemTime::now();
    params.not_before = (now - SLOW_CLOCKS).into();
    params.not_after = (now + life).into();
}

fn read(path: &Path) -> Result<String, OneBoxError> {
    std::fs::read_to_string(path).map_err(io_error("read", path))
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), OneBoxError> {
    write_atomically(path, bytes, PRIVATE_FILE).map_err(io_error("write", path))
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> OneBoxError {
    let path = path.to_owned();
    move |source| OneBoxError::Io { action, path, source }
}

fn certificate_error(action: &'static str) -> impl FnOnce(rcgen::Error) -> OneBoxError {
    move |source| OneBoxError::Certificate { action, source }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::Arc;

    use rustls::client::WebPkiServerVerifier;
    use rustls::client::danger::ServerCertVerifier;
    use rustls::pki_types::UnixTime;

    use super::*;

    /// Goal: an authority that another one made, as a certificate manager does, issues certificates that lead to
    /// the root. Method: root and intermediate are made here; rustls follows the chain, and does not without the
    /// intermediate or for another name.
    #[test]
    fn an_authority_made_elsewhere_issues_certificates_that_lead_to_its_root() {
        let authority = |name: &str| {
            let mut params = CertificateParams::default();
            params.distinguished_name.push(DnType::CommonName, name);
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
            (params, new_key().unwrap())
        };
        let (root_params, root_key) = authority("root");
        let root = root_params.self_signed(&root_key).unwrap();
        let (params, key) = authority("between");
        let issuer = Issuer::new(root_params, root_key);
        let between = params.signed_by(&key, &issuer).unwrap();

        let dir = tempfile::tempdir().unwrap();
        let (certificate, key_file) = (dir.path().join("tls.crt"), dir.path().join("tls.key"));
        std::fs::write(&certificate, between.pem() + &root.pem()).unwrap();
        std::fs::write(&key_file, key.serialize_pem()).unwrap();
        let ca = OneBoxCa::read(&certificate, &key_file).unwrap();
        let (request, _) = new_request().unwrap();
        let peer = PeerId::new("storage", [7; 16]).unwrap();
        let life = Duration::from_secs(3600);
        let leaf = ca.issue_for(&request, &["node.example"], &peer, life).unwrap();
        assert!(ca.issue_for(b"no request", &[], &peer, life).is_err());

        let file = dir.path().join("leaf.pem");
        std::fs::write(&file, leaf).unwrap();
        let leaf = crate::tls::read_certificates(&file).unwrap().swap_remove(0);
        let mut roots = rustls::RootCertStore::empty();
        roots.add(root.der().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider);
        let verifier = verifier.build().unwrap();
        let follows = |between: &[rustls::pki_types::CertificateDer<'_>], name: &'static str| {
            let name = name.try_into().unwrap();
            verifier.verify_server_cert(&leaf, between, &name, &[], UnixTime::now()).is_ok()
        };
        let between = [between.der().clone()];
        assert!(follows(&between, "node.example") && follows(&between, "localhost"));
        assert!(!follows(&[], "node.example") && !follows(&between, "other.example"));
        assert_eq!(crate::peer::peer_uri_id(std::slice::from_ref(&leaf)), Some(peer));
    }
}
