//! As much of the Kubernetes API as the release's Job asks for: Secrets of one namespace, for whom the release's
//! Roles let.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, ensure};
use coffer_chaos::noise;
use coffer_service::one_box::OneBoxCa;
use coffer_service::peer::PeerId;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::rendered::{NAMESPACE, Rendered};

/// More than any Secret.
const BODY_BYTES_MAX: usize = 1 << 20;

/// The API, its certificate, and what it keeps.
pub(crate) struct Api {
    authority: OneBoxCa,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    secrets: BTreeMap<String, Secret>,
    roles: Vec<Role>,
    bindings: Vec<RoleBinding>,
    /// Whose a token is.
    tokens: BTreeMap<String, String>,
}

impl Api {
    pub(crate) fn new() -> Result<Arc<Self>> {
        Ok(Arc::new(Self { authority: OneBoxCa::ephemeral()?, kept: Mutex::default() }))
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn apply(&self, rendered: &Rendered) {
        let mut kept = self.kept();
        kept.roles = rendered.roles.clone();
        kept.bindings = rendered.bindings.clone();
    }

    pub(crate) fn certificate(&self) -> &str {
        self.authority.certificate_pem()
    }

    /// A token for a service account.
    pub(crate) fn token(&self, account: &str) -> String {
        let mut kept = self.kept();
        let bytes = noise(kept.tokens.len() as u64 + 1, 32);
        let token: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        kept.tokens.insert(token.clone(), account.to_owned());
        token
    }

    pub(crate) fn secret(&self, name: &str) -> Option<BTreeMap<String, ByteString>> {
        self.kept().secrets.get(name).map(|secret| secret.data.clone().unwrap_or_default())
    }

    /// Answers at this address until the runtime ends.
    pub(crate) async fn serve(self: Arc<Self>, address: SocketAddr) -> Result<()> {
        let names = [&address.ip().to_string(), "kubernetes.default.svc"];
        let issued = self.authority.issue(&names, &PeerId::new("gateway", [0; 16])?)?;
        let chain = vec![CertificateDer::from_pem_slice(issued.certificate_pem.as_bytes())?];
        let key = PrivateKeyDer::from_pem_slice(issued.key_pem.as_bytes())?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(chain, key)?;
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind(address).await?;
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (api, acceptor) = (Arc::clone(&self), acceptor.clone());
                tokio::spawn(async move {
                    let stream = acceptor.accept(stream).await?;
                    api.answer_one(stream).await
                });
            }
        });
        Ok(())
    }

    async fn answer_one(&self, stream: impl AsyncReadExt + AsyncWriteExt + Unpin) -> Result<()> {
        let mut stream = BufReader::new(stream);
        let (mut head, mut length, mut token) = (String::new(), 0, String::new());
        stream.read_line(&mut head).await?;
        loop {
            let mut line = String::new();
            ensure!(stream.read_line(&mut line).await? > 0, "the request ends too early");
            let Some((name, value)) = line.trim().split_once(':') else { break };
            match name.to_ascii_lowercase().as_str() {
                "content-length" => length = value.trim().parse()?,
                "authorization" => {
                    value.trim().trim_start_matches("Bearer ").clone_into(&mut token)
                }
                _ => {}
            }
        }
        ensure!(length <= BODY_BYTES_MAX, "the request is too large");
        let mut body = vec![0; length];
        stream.read_exact(&mut body).await?;
        let mut words = head.split_whitespace();
        let (method, uri) = (words.next().context("a method")?, words.next().context("a path")?);
        let path = uri.split('?').next().unwrap_or_default();
        let (status, answer) = self.answer(method, path, &token, &body)?;
        let answer = serde_json::to_vec(&answer)?;
        let head = format!(
            "HTTP/1.1 {status} -\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
            answer.len()
        );
        stream.write_all(head.as_bytes()).await?;
        stream.write_all(&answer).await?;
        stream.flush().await?;
        Ok(stream.shutdown().await?)
    }

    fn answer(&self, method: &str, path: &str, token: &str, body: &[u8]) -> Result<(u16, Value)> {
        let mut kept = self.kept();
        let Some(account) = kept.tokens.get(token) else { return Ok(refusal(401, "Unauthorized")) };
        let all = format!("/api/v1/namespaces/{NAMESPACE}/secrets");
        match (method, path.strip_prefix(&all)) {
            ("GET", Some(rest)) if rest.starts_with('/') => {
                let name = &rest[1..];
                if !kept.allows(account, "get", Some(name)) {
                    return Ok(refusal(403, "Forbidden"));
                }
                match kept.secrets.get(name) {
                    Some(secret) => Ok((200, serde_json::to_value(secret)?)),
                    None => Ok(refusal(404, "NotFound")),
                }
            }
            ("POST", Some("")) => {
                if !kept.allows(account, "create", None) {
                    return Ok(refusal(403, "Forbidden"));
                }
                let secret: Secret = serde_json::from_slice(body)?;
                let name = secret.metadata.name.clone().context("a Secret has a name")?;
                if kept.secrets.contains_key(&name) {
                    return Ok(refusal(409, "AlreadyExists"));
                }
                kept.secrets.insert(name, secret.clone());
                Ok((201, serde_json::to_value(secret)?))
            }
            _ => Ok(refusal(403, "Forbidden")),
        }
    }
}

impl Kept {
    fn allows(&self, account: &str, verb: &str, name: Option<&str>) -> bool {
        let bound = self.bindings.iter().filter(|binding| {
            let mut subjects = binding.subjects.iter().flatten();
            subjects.any(|it| it.kind == "ServiceAccount" && it.name == account)
        });
        let has =
            |list: &Option<Vec<String>>, word: &str| list.iter().flatten().any(|it| it == word);
        bound
            .filter_map(|binding| {
                let named =
                    |role: &&Role| role.metadata.name.as_ref() == Some(&binding.role_ref.name);
                self.roles.iter().find(named)
            })
            .flat_map(|role| role.rules.iter().flatten())
            .any(|rule| {
                let for_name = rule
                    .resource_names
                    .as_ref()
                    .is_none_or(|names| name.is_some_and(|name| names.iter().any(|it| it == name)));
                rule.verbs.iter().any(|it| it == verb)
                    && has(&rule.resources, "secrets")
                    && for_name
            })
    }
}

fn refusal(code: u16, reason: &str) -> (u16, Value) {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": reason, "reason": reason, "code": code,
    });
    (code, status)
}
