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
    /// It does not follow the one before.
    #[error("the descriptor does not follow the one before: {0}")]
    NotNext(&'static str),
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
        if !descriptor.approves(Domain::Descriptor, &found, &self.bytes, &self.signatures) {
            return Err(DescriptorError::Signature);
        }
        Ok((found, descriptor))
    }

    /// Signs the next descriptor of a cluster, as administrators of the one before.
    pub fn next(cluster: &ClusterId, next: &Descriptor, administrators: &[&dyn Signer]) -> Self {
        let bytes = encode(next);
        let sign = |admin: &&dyn Signer| {
            (admin.public_key(), admin.sign(Domain::Descriptor, cluster, &bytes))
        };
        let signatures = administrators.iter().map(sign).collect();
        Self { bytes, signatures }
    }

    /// Reads and checks the descriptor that follows `former`.
    pub fn verify_next(
        &self,
        cluster: &ClusterId,
        former: &Descriptor,
    ) -> Result<Descriptor, DescriptorError> {
        let next: Descriptor = decode("cluster descriptor", &self.bytes)?;
        if next.suite != crate::SUITE {
            return Err(DescriptorError::Suite(next.suite));
        }
        if !former.approves(Domain::Descriptor, cluster, &self.bytes, &self.signatures) {
            return Err(DescriptorError::Signature);
        }
        next.check_follows(former).map_err(DescriptorError::NotNext)?;
        Ok(next)
    }
}

impl Descriptor {
    /// Whether enough administrators of this descriptor have signed `bytes`. Each counts once.
    pub fn approves(
        &self,
        domain: Domain,
        cluster: &ClusterId,
        bytes: &[u8],
        signatures: &[(PublicKey, Signature)],
    ) -> bool {
        let mut signed: Vec<PublicKey> = Vec::new();
        for (key, signature) in signatures {
            let counts = self.administrators.contains(key)
                && !signed.contains(key)
                && key.verify(domain, cluster, bytes, signature).is_ok();
            if counts {
                signed.push(*key);
            }
        }
        !signed.is_empty() && signed.len() >= usize::from(self.quorum)
    }

    /// The last of the signed descriptors that follow this one, each checked by the one before it. Those
    /// this one has behind it already are passed over.
    pub fn follow<B: AsRef<[u8]>>(
        self,
        cluster: &ClusterId,
        successors: impl IntoIterator<Item = B>,
    ) -> Result<Self, DescriptorError> {
        successors.into_iter().try_fold(self, |former, bytes| {
            let signed: SignedDescriptor = decode("cluster descriptor", bytes.as_ref())?;
            let next: Self = decode("cluster descriptor", &signed.bytes)?;
            if next.number <= former.number {
                return Ok(former);
            }
            signed.verify_next(cluster, &former)
        })
    }

    pub(crate) fn check_follows(&self, former: &Self) -> Result<(), &'static str> {
        if former.number.checked_add(1) != Some(self.number) {
            return Err("its number is not one more");
        }
        if self.former != Some(former.hash()) {
            return Err("it names another one before it");
        }
        if self.administrators.is_empty()
            || self.quorum == 0
            || usize::from(self.quorum) > self.administrators.len()
        {
            return Err("its administrators could not sign the one after it");
        }
        if self.members.is_empty() {
            return Err("it has no members");
        }
        let twice = |at: usize| {
            let member = &self.members[at];
            self.members[..at].iter().any(|it| it.id == member.id || it.address == member.address)
        };
        if (0..self.members.len()).any(twice) {
            return Err("two members have one id or address");
        }
        let twice = |at: usize| self.nodes[..at].iter().any(|it| it.id == self.nodes[at].id);
        if (0..self.nodes.len()).any(twice) {
            return Err("two storage nodes have one id");
        }
        let key_changed = |own: Option<PublicKey>, key| own.is_some_and(|own| own != key);
        if former.members.iter().any(|it| key_changed(self.member_key(it.id), it.key))
            || former.nodes.iter().any(|it| key_changed(self.node_key(it.id), it.key))
        {
            return Err("the key of an id changed; a new volume has a new id");
        }
        Ok(())
    }

    /// The key of a member.
    pub fn member_key(&self, id: MemberId) -> Option<PublicKey> {
        self.members.iter().find(|member| member.id == id).map(|member| member.key)
    }

    /// The key of a storage node.
    pub fn node_key(&self, id: NodeId) -> Option<PublicKey> {
        self.nodes.iter().find(|node| node.id == id).map(|node| node.key)
    }
}
