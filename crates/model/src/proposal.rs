//! Proposals: a descriptor or an order on its way from one administrator to the next, until enough of
//! them have signed it. Nothing in a proposal counts by itself: members look at the record and its
//! signatures alone.
//!
//! The file, version 1 (specified in `docs/formats/proposals.md`):
//!
//! ```text
//!   0  magic    8  "COFFERPR"
//!   8  version  2  1, little-endian
//!  10  the encoding of the rest: cluster, record, user, signatures
//! ```

use borsh::{BorshDeserialize, BorshSerialize};

use crate::descriptor::{Descriptor, SignedDescriptor};
use crate::encoding::{Malformed, decode, encode};
use crate::id::ClusterId;
use crate::name::UserName;
use crate::order::{Decision, Order};
use crate::signing::{Domain, PublicKey, Signature, Signer};

const MAGIC: &[u8; 8] = b"COFFERPR";
const VERSION: u16 = 1;
const HEAD_BYTES: usize = MAGIC.len() + 2;
/// The longest proposal that is read: a descriptor of some thousand nodes with all its signatures.
pub const PROPOSAL_BYTES_MAX: usize = 1 << 20;
/// The most signatures of one proposal, as many as members take.
pub const SIGNATURES_MAX: usize = 64;

/// The record that is proposed, as the exact bytes that are signed.
#[derive(Clone, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
enum Record {
    /// The encoding of a [`Descriptor`].
    Descriptor(Vec<u8>),
    /// The encoding of an [`Order`].
    Order(Vec<u8>),
}

impl Record {
    const fn domain(&self) -> Domain {
        match self {
            Self::Descriptor(_) => Domain::Descriptor,
            Self::Order(_) => Domain::Order,
        }
    }

    fn bytes(&self) -> &[u8] {
        match self {
            Self::Descriptor(bytes) | Self::Order(bytes) => bytes,
        }
    }
}

/// A change that administrators sign one after the other.
#[derive(Clone, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
pub struct Proposal {
    cluster: ClusterId,
    record: Record,
    /// Whose home an order names. Not signed; whoever reads the proposal has to ask the cluster.
    user: Option<String>,
    signatures: Vec<(PublicKey, Signature)>,
}

/// What a proposal would change.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Proposed {
    /// The next descriptor.
    Descriptor(Box<Descriptor>),
    /// The next order, and whose home it names, as whoever made the proposal says.
    Order {
        /// The order.
        order: Order,
        /// The user.
        user: Option<UserName>,
    },
}

/// What a cluster has now: what a proposal has to follow.
#[derive(Clone, Copy, Debug)]
pub struct Present<'a> {
    /// The cluster.
    pub cluster: ClusterId,
    /// The descriptor in force.
    pub descriptor: &'a Descriptor,
    /// The number of the last order.
    pub order_number: u64,
}

/// A proposal that follows what a cluster has now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Review {
    /// What it would change.
    pub proposed: Proposed,
    /// The administrators who have signed it.
    pub signed_by: Vec<PublicKey>,
    /// Who has signed it and is no administrator, or not any more: these do not count.
    pub not_counted: Vec<PublicKey>,
    /// How many administrators have to sign it.
    pub quorum: u8,
}

impl Review {
    /// How many signatures are still lacking.
    pub fn lacking(&self) -> usize {
        usize::from(self.quorum).saturating_sub(self.signed_by.len())
    }
}

/// Why a proposal cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProposalError {
    /// Something else than a proposal.
    #[error("this is no proposal: {0}")]
    NotAProposal(&'static str),
    /// Made by a later version of the program.
    #[error("the proposal has format version {0}, this program knows only version {VERSION}")]
    UnknownVersion(u16),
    /// It does not decode.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// Made for another cluster.
    #[error("the proposal is for cluster {found}, not for {expected}")]
    OtherCluster {
        /// The cluster that was asked.
        expected: ClusterId,
        /// The cluster it is for.
        found: ClusterId,
    },
    /// It has been carried out.
    #[error("what is proposed is in force already")]
    InForce,
    /// Something else was changed since it was made.
    #[error(
        "the proposal is stale: it would be {what} {number}, and {now} is in force by now; make it again"
    )]
    Stale {
        /// Descriptor or order.
        what: &'static str,
        /// Its number.
        number: u64,
        /// The number in force.
        now: u64,
    },
    /// No cluster would take it.
    #[error("no member would take what is proposed: {0}")]
    Refused(&'static str),
    /// A key that has signed it already.
    #[error("administrator {key} has signed this already; another one has to")]
    SignedAlready {
        /// The key.
        key: PublicKey,
    },
    /// A key that is no administrator's.
    #[error("{key} is no administrator's key of this cluster")]
    NotAnAdministrator {
        /// The key.
        key: PublicKey,
    },
    /// A signature that is over something else.
    #[error("the signature of {key} is not over what is proposed here: it is over other bytes")]
    OtherBytes {
        /// The key.
        key: PublicKey,
    },
    /// Not enough administrators have signed it.
    #[error(
        "{signed} of {quorum} administrators have signed this; the others have to sign it first"
    )]
    TooFew {
        /// How many have.
        signed: usize,
        /// How many have to.
        quorum: u8,
    },
    /// There is no room for another signature.
    #[error("a proposal takes at most {SIGNATURES_MAX} signatures")]
    TooManySignatures,
}

impl Proposal {
    /// Proposes a descriptor.
    pub fn of_descriptor(cluster: ClusterId, next: &Descriptor) -> Self {
        let record = Record::Descriptor(encode(next));
        Self { cluster, record, user: None, signatures: Vec::new() }
    }

    /// Proposes an order; `user` says whose home it names.
    pub fn of_order(cluster: ClusterId, order: &Order, user: Option<&UserName>) -> Self {
        let user = user.map(|user| user.as_str().to_owned());
        Self { cluster, record: Record::Order(encode(order)), user, signatures: Vec::new() }
    }

    /// The file's bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&encode(self));
        bytes
    }

    /// Reads a file. Nothing is believed yet: [`Self::review`] says what it comes to.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, ProposalError> {
        if bytes.len() > PROPOSAL_BYTES_MAX {
            return Err(ProposalError::NotAProposal("it is too long"));
        }
        if !bytes.starts_with(MAGIC) {
            return Err(ProposalError::NotAProposal("it does not begin like one"));
        }
        let version =
            bytes.get(MAGIC.len()..HEAD_BYTES).and_then(|version| version.try_into().ok());
        let version = version.ok_or(ProposalError::NotAProposal("it ends before its version"))?;
        let version = u16::from_le_bytes(version);
        if version != VERSION {
            return Err(ProposalError::UnknownVersion(version));
        }
        let proposal: Self = decode("proposal", &bytes[HEAD_BYTES..])?;
        if proposal.signatures.len() > SIGNATURES_MAX {
            return Err(ProposalError::TooManySignatures);
        }
        Ok(proposal)
    }

    /// Compares the proposal with what the cluster has now, and checks every signature in it.
    pub fn review(&self, present: Present<'_>) -> Result<Review, ProposalError> {
        if self.cluster != present.cluster {
            let (expected, found) = (present.cluster, self.cluster);
            return Err(ProposalError::OtherCluster { expected, found });
        }
        let proposed = self.proposed(present)?;
        let (mut signed_by, mut not_counted) = (Vec::new(), Vec::new());
        for (key, signature) in &self.signatures {
            if signed_by.contains(key) || not_counted.contains(key) {
                return Err(ProposalError::SignedAlready { key: *key });
            }
            key.verify(self.record.domain(), &self.cluster, self.record.bytes(), signature)
                .map_err(|_| ProposalError::OtherBytes { key: *key })?;
            let is_theirs = present.descriptor.administrators.contains(key);
            if is_theirs { &mut signed_by } else { &mut not_counted }.push(*key);
        }
        Ok(Review { proposed, signed_by, not_counted, quorum: present.descriptor.quorum })
    }

    fn proposed(&self, present: Present<'_>) -> Result<Proposed, ProposalError> {
        match &self.record {
            Record::Descriptor(bytes) => {
                let next: Descriptor = decode("descriptor", bytes)?;
                if next == *present.descriptor {
                    return Err(ProposalError::InForce);
                }
                let (number, now) = (next.number, present.descriptor.number);
                if now.checked_add(1) != Some(number)
                    || next.former != Some(present.descriptor.hash())
                {
                    return Err(ProposalError::Stale { what: "descriptor", number, now });
                }
                if next.suite != crate::SUITE {
                    return Err(ProposalError::Refused("its suite is not known"));
                }
                next.check_follows(present.descriptor).map_err(ProposalError::Refused)?;
                Ok(Proposed::Descriptor(Box::new(next)))
            }
            Record::Order(bytes) => {
                let order: Order = decode("order", bytes)?;
                let (number, now) = (order.number, present.order_number);
                if now.checked_add(1) != Some(number) {
                    return Err(ProposalError::Stale { what: "order", number, now });
                }
                let user = self.user.as_deref().map(str::parse::<UserName>).transpose();
                let user = user.map_err(|_| {
                    ProposalError::Refused("the user it says it is about cannot be one")
                })?;
                let names_home = matches!(order.what, Decision::Quota { home: Some(_), .. });
                if user.is_some() && !names_home {
                    return Err(ProposalError::Refused("it names a user and no home"));
                }
                Ok(Proposed::Order { order, user })
            }
        }
    }

    /// Adds an administrator's signature, and says what the proposal comes to with it.
    pub fn sign(
        &mut self,
        present: Present<'_>,
        administrator: &dyn Signer,
    ) -> Result<Review, ProposalError> {
        let mut review = self.review(present)?;
        let key = administrator.public_key();
        if review.signed_by.contains(&key) {
            return Err(ProposalError::SignedAlready { key });
        }
        if !present.descriptor.administrators.contains(&key) {
            return Err(ProposalError::NotAnAdministrator { key });
        }
        if self.signatures.len() >= SIGNATURES_MAX {
            return Err(ProposalError::TooManySignatures);
        }
        let signature =
            administrator.sign(self.record.domain(), &self.cluster, self.record.bytes());
        self.signatures.push((key, signature));
        review.signed_by.push(key);
        Ok(review)
    }

    /// The record and its signatures, if enough administrators have signed it.
    pub fn enough(&self, present: Present<'_>) -> Result<Signed, ProposalError> {
        let review = self.review(present)?;
        if review.lacking() > 0 || review.signed_by.is_empty() {
            let (signed, quorum) = (review.signed_by.len(), review.quorum);
            return Err(ProposalError::TooFew { signed, quorum });
        }
        let counts = |(key, _): &&(PublicKey, Signature)| review.signed_by.contains(key);
        let signatures = self.signatures.iter().filter(counts).copied().collect();
        Ok(match &self.record {
            Record::Descriptor(bytes) => {
                Signed::Descriptor(SignedDescriptor { bytes: bytes.clone(), signatures })
            }
            Record::Order(bytes) => Signed::Order { bytes: bytes.clone(), signatures },
        })
    }
}

/// A record with enough signatures, as members take it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Signed {
    /// The next descriptor.
    Descriptor(SignedDescriptor),
    /// The next order.
    Order {
        /// The encoding of an [`Order`].
        bytes: Vec<u8>,
        /// Administrators and their signatures.
        signatures: Vec<(PublicKey, Signature)>,
    },
}

#[cfg(test)]
mod tests;
