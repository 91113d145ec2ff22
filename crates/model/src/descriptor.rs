//! The descriptor: the one administrator-signed record of the cluster. Clients pin it at first
//! contact; the next one is signed by the administrators of the one before. The cluster's id is the
//! hash of the first.

use borsh::{BorshDeserialize, BorshSerialize};

use crate::encoding::{Malformed, decode, encode};
use crate::hash::Hash;
use crate::id::{ClusterId, MemberId, NodeId};
use crate::signing::{Domain, PublicKey, Signature, Signer};

/// A metadata member.
#[derive(Clone, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
pub struct Member {
    /// Its id.
    pub id: MemberId,
    /// Its signing key.
    pub key: PublicKey,
    /// `host:port` of its cluster-internal endpoint.
    pub address: String,
}

/// A storage node.
#[derive(Clone, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
pub struct StorageNode {
    /// Its id.
    pub id: NodeId,
    /// Its signing key.
    pub key: PublicKey,
    /// The failure domain it is in; empty when zones do not matter.
    pub zone: String,
    /// The share of data it gets, relative to the others.
    pub weight: u32,
}

/// When a lost volume may be replaced without an administrator. `None` in the descriptor means never.
#[derive(Clone, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
pub struct ReplacementPolicy {
    /// How long the old one must have been silent.
    pub silent_ms_min: u64,
    /// Hash of the token a newcomer has to show.
    pub join_token: Hash,
}

/// The record of the cluster.
#[derive(Clone, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
pub struct Descriptor {
    /// The suite of its signatures.
    pub suite: u16,
    /// 0 for the first, one more for each next.
    pub number: u64,
    /// The hash of the one before; none for the first.
    pub former: Option<Hash>,
    /// A random value that makes the first descriptor, and so the cluster id, unique.
    pub nonce: [u8; 16],
    /// The certificate authority of the processes, DER.
    pub authority: Vec<u8>,
    /// Who may sign the next descriptor.
    pub administrators: Vec<PublicKey>,
    /// How many of them must.
    pub quorum: u8,
    /// The metadata members.
    pub members: Vec<Member>,
    /// The storage nodes.
    pub nodes: Vec<StorageNode>,
    /// Who cosigns checkpoints.
    pub cosigners: Vec<PublicKey>,
    /// The standing replacement policy.
    pub replacement: Option<ReplacementPolicy>,
    /// Whether anybody may register, or an invite is needed.
    pub open_registration: bool,
}

/// Why a descriptor was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DescriptorError {
    /// Not a descriptor at all.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// Too few signatures of administrators.
    #[error("the cluster descriptor is not signed by its administrators")]
    Signature,
    /// Not the cluster that was pinned.
    #[error("this is cluster {found}, not the pinned cluster {pinned}")]
    OtherCluster {
        /// The cluster the caller has pinned.
        pinned: ClusterId,
        /// The cluster that answered.
        found: ClusterId,
    },
    /// A suite this version does not know.
    #[error("the cluster uses suite {0}, which this version does not know")]
    Suite(u16),
}

/// A descriptor as it travels: exact bytes and signatures.
#[derive(Clone, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
pub struct SignedDescriptor {
    /// The encoding of a [`Descriptor`].
    pub bytes: Vec<u8>,
    /// Administrators and their signatures.
    pub signatures: Vec<(PublicKey, Signature)>,
}

impl Descriptor {
    /// The hash of this descriptor; of the first one, the cluster's id.
    pub fn hash(&self) -> Hash {
        Hash::of("coffer/v1/descriptor", &encode(self))
    }
}

impl SignedDescriptor {
    /// Signs the first descriptor of a new cluster.
    pub fn first(descriptor: &Descriptor, administrators: &[&dyn Signer]) -> Self {
        let cluster = ClusterId::from_bytes(*descriptor.hash().as_bytes());
        let bytes = encode(descriptor);
        let signatures = administrators
            .iter()
            .map(|admin| (admin.public_key(), admin.sign(Domain::Descriptor, &cluster, &bytes)))
            .collect();
        Self { bytes, signatures }
    }

    /// Reads and checks the first descriptor of a cluster, pinned or not, and gives its id.
    pub fn verify_first(
        &self,
        pinned: Option<ClusterId>,
    ) -> Result<(ClusterId, Descriptor), DescriptorError> {
        let descriptor: Descriptor = decode("cluster descriptor", &self.bytes)?;
        if descriptor.suite != crate::SUITE {
            return Err(DescriptorError::Suite(descriptor.suite));
        }
        let found = ClusterId::from_bytes(*descriptor.hash().as_bytes());
        if let Some(pinned) = pinned
            && pinned != found
        {
            return Err(DescriptorError::OtherCluster { pinned, found });
        }
        let mut signed: Vec<PublicKey> = Vec::new();
        for (key, signature) in &self.signatures {
            let counts = descriptor.administrators.contains(key)
                && !signed.contains(key)
                && key.verify(Domain::Descriptor, &found, &self.bytes, signature).is_ok();
            if counts {
                signed.push(*key);
            }
        }
        if signed.is_empty() || signed.len() < usize::from(descriptor.quorum) {
            return Err(DescriptorError::Signature);
        }
        Ok((found, descriptor))
    }
}

impl Descriptor {
    /// The key of a member.
    pub fn member_key(&self, id: MemberId) -> Option<PublicKey> {
        self.members.iter().find(|member| member.id == id).map(|member| member.key)
    }

    /// The key of a storage node.
    pub fn node_key(&self, id: NodeId) -> Option<PublicKey> {
        self.nodes.iter().find(|node| node.id == id).map(|node| node.key)
    }
}
