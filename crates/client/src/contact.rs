//! Meeting a cluster: the first descriptor is verified and pinned, and from then on the same cluster
//! must answer.
//!
//! ```text
//! file = borsh { format: u8 = 1, pinned }, one for each server address
//! ```

use std::path::{Path, PathBuf};

use borsh::{BorshDeserialize, BorshSerialize};
use coffer_model::descriptor::{Descriptor, SignedDescriptor};
use coffer_model::encoding::{decode, encode};
use coffer_model::hash::Hash;
use coffer_model::id::ClusterId;
use coffer_service::files::{PRIVATE_FILE, write_atomically};
use coffer_service::tls::read_certificates;

use crate::error::ClientError;
use crate::state_dir::{make_parent, read_if_there};
use crate::transport::{GatewayTransport, Transport};

pub use crate::state_dir::StateDir;

const FORMAT: u8 = 1;

/// Whose certificates a server is accepted with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Authority {
    /// The ones that were pinned with the cluster.
    Pinned,
    /// Those in a PEM file: at first contact, or where something in between ends the TLS connection.
    PemFile(PathBuf),
}

/// Where a cluster is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// `host:port` of a gateway.
    pub server: String,
    /// What its certificate must be good for; the host of `server` where this is none.
    pub server_name: Option<String>,
    /// Which authorities to accept.
    pub authority: Authority,
}

/// A cluster that was met.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Pinned {
    /// The cluster.
    pub cluster: ClusterId,
    /// `host:port` of the gateway it was met through.
    pub server: String,
    /// What the gateway's certificate must be good for.
    pub server_name: String,
    /// The authorities the gateway's certificate is accepted with, DER.
    pub authorities: Vec<Vec<u8>>,
    /// The signed descriptor.
    pub descriptor: SignedDescriptor,
}

impl Pinned {
    /// The verified descriptor.
    pub fn descriptor(&self) -> Result<Descriptor, ClientError> {
        Ok(self.descriptor.verify_first(Some(self.cluster))?.1)
    }

    /// A transport to the gateway the cluster was met through.
    pub fn transport(&self) -> Result<GatewayTransport, ClientError> {
        GatewayTransport::new(&self.server, &self.server_name, &self.authorities)
    }

    /// Meets the cluster behind `endpoint`. The first time it is pinned in `state_dir`, later it must
    /// be the one that was pinned then.
    pub async fn meet(endpoint: &Endpoint, state_dir: &StateDir) -> Result<Self, ClientError> {
        let path = pin_path(state_dir, &endpoint.server);
        let known = read_if_there(&path)?.map(|bytes| parse(&path, &bytes)).transpose()?;
        let refused = |why: String| ClientError::Connect { server: endpoint.server.clone(), why };
        let server_name = match &endpoint.server_name {
            Some(name) => name.clone(),
            None => host_of(&endpoint.server).to_owned(),
        };
        let mut authorities: Vec<Vec<u8>> = match (&endpoint.authority, &known) {
            (Authority::PemFile(path), _) => read_certificates(path)
                .map_err(|error| refused(error.to_string()))?
                .into_iter()
                .map(|certificate| certificate.to_vec())
                .collect(),
            (Authority::Pinned, Some(known)) => known.authorities.clone(),
            (Authority::Pinned, None) => {
                return Err(refused(
                    "this server was never met; give the certificate authority of its cluster"
                        .to_owned(),
                ));
            }
        };
        let transport = GatewayTransport::new(&endpoint.server, &server_name, &authorities)?;
        let answer =
            transport.get_descriptor().await.map_err(|status| ClientError::of_status(&status))?;
        let pinned = known.map(|known| known.cluster);
        let descriptor: SignedDescriptor = decode("cluster descriptor", &answer.descriptor)?;
        let (cluster, content) = descriptor.verify_first(pinned)?;
        // From now on the cluster's own authority is good as well, without the file.
        if !authorities.contains(&content.authority) {
            authorities.push(content.authority);
        }
        let met =
            Self { cluster, server: endpoint.server.clone(), server_name, authorities, descriptor };
        make_parent(&path)?;
        write_atomically(&path, &encode(&(FORMAT, &met)), PRIVATE_FILE)
            .map_err(|error| ClientError::local("write", &path, error))?;
        Ok(met)
    }
}

fn host_of(server: &str) -> &str {
    server.rsplit_once(':').map_or(server, |(host, _)| host.trim_matches(['[', ']']))
}

fn pin_path(state_dir: &StateDir, server: &str) -> PathBuf {
    state_dir.clusters().join(Hash::of("coffer/v1/client/server", server.as_bytes()).to_string())
}

/// A pin that cannot be read must not be taken for no pin: that would pin whoever answers now.
fn parse(path: &Path, bytes: &[u8]) -> Result<Pinned, ClientError> {
    match decode::<(u8, Pinned)>("pinned cluster", bytes) {
        Ok((FORMAT, pinned)) => Ok(pinned),
        _ => Err(ClientError::WrongCluster {
            why: format!(
                "{} does not say which cluster it was; remove it to meet the server anew",
                path.display()
            ),
        }),
    }
}
