//! The descriptor: the one administrator-signed record of the cluster. Clients pin it at first
//! contact; the next one is signed by the administrators of the one before, or replaces a lost volume
//! by the policy they have signed. The cluster's id is the hash of the first.

use std::collections::BTreeSet;

use borsh::{BorshDeserialize, BorshSerialize};

use crate::encoding::{Malformed, decode, encode};
use crate::hash::Hash;
use crate::id::{ClusterId, MemberId, NodeId};
use crate::layout::{Layout, LayoutError};
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
    /// Hash of the join token, the key a newcomer's request is signed with (see [`join_token_hash`]).
    pub join_token: Hash,
}

/// The hash by which a policy names a join token's public key.
pub fn join_token_hash(key: &PublicKey) -> Hash {
    Hash::of("coffer/v1/join-token", key.as_bytes())
}

/// Whose place a volume has lost, and who has it now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Replaced {
    /// A metadata member.
    Member {
        /// Who had the place.
        lost: MemberId,
        /// Who has it.
        new: MemberId,
    },
    /// A storage node.
    Node {
        /// Who had the place.
        lost: NodeId,
        /// Who has it.
        new: NodeId,
    },
}

/// By what a descriptor follows the one before it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Link {
    /// Enough administrators of the one before have signed it.
    Administrators,
    /// The standing policy: the join token and a majority of the members have signed it.
    Replacement(Replaced),
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
    /// The join token has signed what the standing policy does not allow.
    #[error("the descriptor is no replacement by the standing policy: {0}")]
    NotReplacement(&'static str),
}

/// A descriptor as it travels: exact bytes and signatures.
#[derive(Clone, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
pub struct SignedDescriptor {
    /// The encoding of a [`Descriptor`].
    pub bytes: Vec<u8>,
    /// Who signed, and their signatures: administrators, or for a replacement the join token and members.
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
        self.verify_link(cluster, former).map(|(next, _)| next)
    }

    /// Reads and checks the descriptor that follows `former`, and says by what it does.
    pub fn verify_link(
        &self,
        cluster: &ClusterId,
        former: &Descriptor,
    ) -> Result<(Descriptor, Link), DescriptorError> {
        let next: Descriptor = decode("cluster descriptor", &self.bytes)?;
        if next.suite != crate::SUITE {
            return Err(DescriptorError::Suite(next.suite));
        }
        let link = if former.approves(Domain::Descriptor, cluster, &self.bytes, &self.signatures) {
            Link::Administrators
        } else {
            Link::Replacement(self.verify_replacement(cluster, former, &next)?)
        };
        next.check_follows(former).map_err(DescriptorError::NotNext)?;
        Ok((next, link))
    }

    fn verify_replacement(
        &self,
        cluster: &ClusterId,
        former: &Descriptor,
        next: &Descriptor,
    ) -> Result<Replaced, DescriptorError> {
        if !former.has_token_signed(cluster, &self.bytes, &self.signatures) {
            return Err(DescriptorError::Signature);
        }
        let replaced = next.replaces_in(former).map_err(DescriptorError::NotReplacement)?;
        if !former.members_vouch(cluster, replaced, &self.bytes, &self.signatures) {
            let why = "no majority of the members has signed it";
            return Err(DescriptorError::NotReplacement(why));
        }
        Ok(replaced)
    }
}

impl Descriptor {
    /// The descriptor after this one in which `new` has the place of the member `lost`; none if there is no
    /// such member, or no number is left. What the policy says of it is for [`Self::replaces_in`].
    pub fn with_member_replaced(
        &self,
        lost: MemberId,
        new: MemberId,
        key: PublicKey,
    ) -> Option<Self> {
        let mut next = self.following()?;
        let seat = next.members.iter_mut().find(|member| member.id == lost)?;
        (seat.id, seat.key) = (new, key);
        Some(next)
    }

    /// The descriptor after this one in which `new` has the place of the storage node `lost`.
    pub fn with_node_replaced(&self, lost: NodeId, new: NodeId, key: PublicKey) -> Option<Self> {
        let mut next = self.following()?;
        let seat = next.nodes.iter_mut().find(|node| node.id == lost)?;
        (seat.id, seat.key) = (new, key);
        Some(next)
    }

    /// The descriptor after this one with nothing changed yet.
    fn following(&self) -> Option<Self> {
        let number = self.number.checked_add(1)?;
        Some(Self { number, former: Some(self.hash()), ..self.clone() })
    }

    /// Whose place changes hands, if this is `former` with exactly one id and key changed and `former` has
    /// a policy for that. Signatures are not looked at.
    pub fn replaces_in(&self, former: &Self) -> Result<Replaced, &'static str> {
        if former.replacement.is_none() {
            return Err("the one before has no policy for replacements");
        }
        let member = former.members.iter().zip(&self.members).find(|(lost, new)| lost != new);
        let node = former.nodes.iter().zip(&self.nodes).find(|(lost, new)| lost != new);
        let (replaced, expected, key) = match (member, node) {
            (Some((lost, new)), None) => {
                let expected = former.with_member_replaced(lost.id, new.id, new.key);
                if former.member_key(new.id).is_some() {
                    return Err("the id of the new one is known already");
                }
                (Replaced::Member { lost: lost.id, new: new.id }, expected, new.key)
            }
            (None, Some((lost, new))) => {
                let expected = former.with_node_replaced(lost.id, new.id, new.key);
                if former.node_key(new.id).is_some() {
                    return Err("the id of the new one is known already");
                }
                (Replaced::Node { lost: lost.id, new: new.id }, expected, new.key)
            }
            (None, None) => return Err("it replaces nobody"),
            (Some(_), Some(_)) => return Err("more than one id and key changed"),
        };
        if former.names_key(&key) {
            return Err("the key of the new one is known already");
        }
        // Whatever else differs, the number and the hash of the one before included, shows here.
        if expected.as_ref() != Some(self) {
            return Err("more than one id and key changed");
        }
        Ok(replaced)
    }

    /// Whether a key is anybody's in this descriptor, the join token's included.
    fn names_key(&self, key: &PublicKey) -> bool {
        self.administrators.contains(key)
            || self.cosigners.contains(key)
            || self.members.iter().any(|member| member.key == *key)
            || self.nodes.iter().any(|node| node.key == *key)
            || self.is_join_token(key)
    }

    /// Whether this is the join token of the policy.
    pub fn is_join_token(&self, key: &PublicKey) -> bool {
        self.replacement.as_ref().is_some_and(|policy| policy.join_token == join_token_hash(key))
    }

    /// Whether the policy's join token has signed the descriptor `bytes` that is to follow this one.
    pub fn has_token_signed(
        &self,
        cluster: &ClusterId,
        bytes: &[u8],
        signatures: &[(PublicKey, Signature)],
    ) -> bool {
        signatures.iter().any(|(key, signature)| {
            self.is_join_token(key)
                && key.verify(Domain::Replacement, cluster, bytes, signature).is_ok()
        })
    }

    /// Whether a majority of all members has signed; the one who is replaced counts among all, and its
    /// signature for nothing.
    fn members_vouch(
        &self,
        cluster: &ClusterId,
        replaced: Replaced,
        bytes: &[u8],
        signatures: &[(PublicKey, Signature)],
    ) -> bool {
        let counts = |member: &&Member| {
            !matches!(replaced, Replaced::Member { lost, .. } if lost == member.id)
                && signatures.iter().any(|(key, signature)| {
                    *key == member.key
                        && key.verify(Domain::Replacement, cluster, bytes, signature).is_ok()
                })
        };
        // Two members of one key would be one signer.
        let keys: BTreeSet<PublicKey> =
            self.members.iter().filter(counts).map(|member| member.key).collect();
        keys.len() > self.members.len() / 2
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
        let mut followed = Followed::new(self);
        followed.follow(cluster, successors)?;
        Ok(followed.descriptor)
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

/// What a reader knows who follows the descriptors one after the other: the latest, and whom those on the way
/// have put in whose place.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Followed {
    /// The latest.
    pub descriptor: Descriptor,
    /// Lost storage nodes and those in their places, in order.
    replaced: Vec<(NodeId, NodeId)>,
}

impl Followed {
    /// Begins with a descriptor; layouts in which a node was replaced before it are not accepted.
    pub const fn new(descriptor: Descriptor) -> Self {
        Self { descriptor, replaced: Vec::new() }
    }

    /// Goes on to the descriptors that follow, each checked by the one before it; those behind already are
    /// passed over. Those before one that does not check out count.
    pub fn follow<B: AsRef<[u8]>>(
        &mut self,
        cluster: &ClusterId,
        successors: impl IntoIterator<Item = B>,
    ) -> Result<(), DescriptorError> {
        for bytes in successors {
            let signed: SignedDescriptor = decode("cluster descriptor", bytes.as_ref())?;
            let next: Descriptor = decode("cluster descriptor", &signed.bytes)?;
            if next.number > self.descriptor.number {
                self.step(cluster, &signed)?;
            }
        }
        Ok(())
    }

    /// Goes on to the very next descriptor.
    pub fn step(
        &mut self,
        cluster: &ClusterId,
        signed: &SignedDescriptor,
    ) -> Result<(), DescriptorError> {
        let (next, link) = signed.verify_link(cluster, &self.descriptor)?;
        if let Link::Replacement(Replaced::Node { lost, new }) = link {
            self.replaced.push((lost, new));
        }
        self.descriptor = next;
        Ok(())
    }

    /// Reads and checks a layout by what the descriptors say.
    pub fn verify_layout(&self, signed: &[u8], cluster: &ClusterId) -> Result<Layout, LayoutError> {
        let administrators = &self.descriptor.administrators;
        Layout::verify_replaced(signed, cluster, administrators, &self.replaced)
    }
}

#[cfg(test)]
mod tests;
