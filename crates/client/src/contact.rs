//! Meeting a cluster: the first descriptor is verified and pinned, and from then on the same cluster
//! must answer.
//!
//! ```text
//! file = borsh { format: u8 = 2, pinned }, one for each server address
//! ```
//!
//! Format 1 had no successors; it is read, and written again as format 2.

use std::path::{Path, PathBuf};

use borsh::{BorshDeserialize, BorshSerialize};
use coffer_model::descriptor::{Descriptor, Followed, SignedDescriptor};
use coffer_model::encoding::{decode, encode};
use coffer_model::hash::Hash;
use coffer_model::id::ClusterId;
use coffer_proto::v1 as pb;
use coffer_service::channel::host_of;
use coffer_service::files::{PRIVATE_FILE, write_atomically};
use coffer_service::tls::read_certificates;

use crate::error::ClientError;
use crate::state_dir::{make_parent, read_if_there};
use crate::transport::{GatewayTransport, Transport};

pub use crate::state_dir::StateDir;

const FORMAT: u8 = 2;
/// How many times in a row a server may have more descriptors to tell of; each time it is 64 of them.
const DESCRIPTOR_CALLS_MAX: usize = 64;

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
    /// `host:port` of a gateway, or several with commas between: any one that answers is used.
    pub server: String,
    /// What its certificate must be good for; its own host where this is none.
    pub server_name: Option<String>,
    /// Which authorities to accept.
    pub authority: Authority,
}

/// A cluster that was met.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Pinned {
    /// The cluster.
    pub cluster: ClusterId,
    /// `host:port` of the gateway it was met through, or several with commas between.
    pub server: String,
    /// What a gateway's certificate must be good for; its own host where this is empty.
    pub server_name: String,
    /// The authorities the gateway's certificate is accepted with, DER.
    pub authorities: Vec<Vec<u8>>,
    /// The signed first descriptor.
    pub descriptor: SignedDescriptor,
    /// The descriptors after it, as far as they were seen.
    pub successors: Vec<Vec<u8>>,
}

/// [`Pinned`] as format 1 had it.
#[derive(BorshDeserialize)]
struct PinnedV1 {
    cluster: ClusterId,
    server: String,
    server_name: String,
    authorities: Vec<Vec<u8>>,
    descriptor: SignedDescriptor,
}

impl Pinned {
    /// The latest descriptor that was seen, verified by all before it.
    pub fn descriptor(&self) -> Result<Descriptor, ClientError> {
        Ok(self.followed()?.descriptor)
    }

    /// What the descriptors that were seen say, each verified by the one before.
    pub fn followed(&self) -> Result<Followed, ClientError> {
        let mut followed = Followed::new(self.descriptor.verify_first(Some(self.cluster))?.1);
        followed.follow(&self.cluster, &self.successors)?;
        Ok(followed)
    }

    /// A transport to the gateway the cluster was met through.
    pub fn transport(&self) -> Result<GatewayTransport, ClientError> {
        GatewayTransport::new(&self.server, &self.server_name, &self.authorities)
    }

    /// Meets the cluster behind `endpoint`. The first time it is pinned in `state_dir`, later it must
    /// be the one that was pinned then.
    pub async fn meet(endpoint: &Endpoint, state_dir: &StateDir) -> Result<Self, ClientError> {
        let path = pin_path(state_dir, &endpoint.server);
        let known = match &path {
            Some(path) => read_if_there(path)?.map(|bytes| parse(path, &bytes)).transpose()?,
            None => None,
        };
        let refused = |why: String| ClientError::Connect { server: endpoint.server.clone(), why };
        let server_name = match &endpoint.server_name {
            Some(name) => name.clone(),
            None if endpoint.server.contains(',') => String::new(),
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
        let pinned = known.as_ref().map(|known| known.cluster);
        let mut successors = known.map(|known| known.successors).unwrap_or_default();
        let answer = get_descriptor(&transport, 0).await?;
        let descriptor: SignedDescriptor = decode("cluster descriptor", &answer.descriptor)?;
        let (cluster, first) = descriptor.verify_first(pinned)?;
        let latest = first.follow(&cluster, &successors)?;
        let (latest, more) = later(&transport, &cluster, latest).await?;
        successors.extend(more);
        // From now on the cluster's own authority is good as well, without the file.
        if !authorities.contains(&latest.authority) {
            authorities.push(latest.authority);
        }
        let server = endpoint.server.clone();
        let met = Self { cluster, server, server_name, authorities, descriptor, successors };
        if let Some(path) = &path {
            make_parent(path)?;
            write_atomically(path, &encode(&(FORMAT, &met)), PRIVATE_FILE)
                .map_err(|error| ClientError::local("write", path, error))?;
        }
        Ok(met)
    }
}

/// The latest descriptor a cluster tells of after `known`, and the signed ones that lead to it.
pub(crate) async fn later(
    transport: &dyn Transport,
    cluster: &ClusterId,
    known: Descriptor,
) -> Result<(Descriptor, Vec<Vec<u8>>), ClientError> {
    let (mut latest, mut signed) = (known, Vec::new());
    for _ in 0..DESCRIPTOR_CALLS_MAX {
        let before = latest.number;
        let answer = get_descriptor(transport, before).await?;
        latest = latest.follow(cluster, &answer.successors)?;
        if latest.number == before {
            break;
        }
        signed.extend(answer.successors.into_iter().map(Vec::from));
    }
    Ok((latest, signed))
}

async fn get_descriptor(
    transport: &dyn Transport,
    known_number: u64,
) -> Result<pb::GetDescriptorResponse, ClientError> {
    let answer = transport.get_descriptor(pb::GetDescriptorRequest { known_number }).await;
    answer.map_err(|status| ClientError::of_status(&status))
}

fn pin_path(state_dir: &StateDir, server: &str) -> Option<PathBuf> {
    let name = Hash::of("coffer/v1/client/server", server.as_bytes()).to_string();
    Some(state_dir.clusters()?.join(name))
}

/// A pin that cannot be read must not be taken for no pin: that would pin whoever answers now.
fn parse(path: &Path, bytes: &[u8]) -> Result<Pinned, ClientError> {
    if let Ok((1, old)) = decode::<(u8, PinnedV1)>("pinned cluster", bytes) {
        let PinnedV1 { cluster, server, server_name, authorities, descriptor } = old;
        let successors = Vec::new();
        return Ok(Pinned { cluster, server, server_name, authorities, descriptor, successors });
    }
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_pin_of_format_1_is_still_the_same_cluster() {
        let descriptor = SignedDescriptor { bytes: vec![1, 2, 3], signatures: Vec::new() };
        let cluster = ClusterId::from_bytes([7; 32]);
        // As format 1 wrote it: everything but the successors.
        let fields = (cluster, "a:1".to_owned(), "a".to_owned(), vec![vec![9u8]]);
        let bytes = [encode(&1u8), encode(&fields), encode(&descriptor)].concat();
        let pinned = parse(Path::new("pin"), &bytes).unwrap();
        assert_eq!(pinned.cluster, cluster);
        assert_eq!((pinned.server.as_str(), pinned.authorities.len()), ("a:1", 1));
        assert!(pinned.successors.is_empty());
        let again = encode(&(FORMAT, &pinned));
        assert_eq!(parse(Path::new("pin"), &again).unwrap(), pinned);
        assert!(parse(Path::new("pin"), &again[1..]).is_err());
    }
}
