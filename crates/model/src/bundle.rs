//! Bundles: up to 256 ops under one signature. The signature covers a header, the header names the
//! Merkle root over the ops, so one op of a bundle is proven with a short path.
//!
//! ```text
//! SignedBundle = header bytes | signature 64 | ops: list of op bytes
//! ```

use borsh::{BorshDeserialize, BorshSerialize};

use crate::encoding::{Malformed, decode, encode};
use crate::hash::Hash;
use crate::id::{ClusterId, PrincipalId, RequestId};
use crate::manifest::Slot;
use crate::merkle::{TreeHash, leaf_hash, root, verify_inclusion};
use crate::object::{AnyObjectLeaf, LeafHash, Object};
use crate::op::{Op, Rejection};
use crate::session::CertificateHash;
use crate::signing::{BadSignature, Domain, PublicKey, Signature, Signer, Verified};
use crate::time::LogTime;

/// The most ops in a bundle.
pub const BUNDLE_OPS_MAX: usize = 256;
/// The largest submission (bundle and payloads together).
pub const SUBMISSION_BYTES_MAX: usize = 4 << 20;
/// How far ahead of log time a bundle's not-after may lie: 120 seconds.
pub const NOT_AFTER_MS_MAX: u64 = 120 * 1000;
/// The most vault records a bundle names.
pub const VAULTS_RELIED_MAX: usize = 8;
/// The largest detached payload.
pub const PAYLOAD_BYTES_MAX: usize = 64 << 10;

/// Whose key signs a bundle.
#[derive(Clone, Copy, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
pub enum Author {
    /// A session's key; the session must be open.
    Session(CertificateHash),
    /// The user's identity; only to register and to open sessions.
    Identity,
}

/// What is signed.
#[derive(Clone, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
pub struct Header {
    /// The cluster.
    pub cluster: ClusterId,
    /// The suite.
    pub suite: u16,
    /// Who.
    pub principal: PrincipalId,
    /// With which of their keys.
    pub author: Author,
    /// That key.
    pub key: PublicKey,
    /// The vault records the author relied on, at most [`VAULTS_RELIED_MAX`].
    pub vaults: Vec<LeafHash>,
    /// Names the request; a repeat gets the first answer.
    pub request: RequestId,
    /// Refused once log time has passed it, or while it is more than [`NOT_AFTER_MS_MAX`] ahead.
    pub not_after: LogTime,
    /// How many ops there are.
    pub ops: u16,
    /// The Merkle root over the op bytes.
    pub ops_root: TreeHash,
}

/// A bundle as it travels and is kept.
#[derive(Clone, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
pub struct SignedBundle {
    /// The encoding of a [`Header`].
    pub header: Vec<u8>,
    /// Over those bytes.
    pub signature: Signature,
    /// The encodings of the ops.
    pub ops: Vec<Vec<u8>>,
}

/// What travels beside a bundle: its leaves name the hashes, purge can drop the bytes.
#[derive(Clone, PartialEq, Eq, Debug, Default, BorshSerialize, BorshDeserialize)]
pub struct Payloads {
    /// Sealed names, attributes, versions, keyrings, login records; found by their hash.
    pub blobs: Vec<Vec<u8>>,
    /// The changed slots of the ops that have any, ascending by op.
    pub slots: Vec<OpSlots>,
}

/// The changed slots of one op.
#[derive(Clone, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
pub struct OpSlots {
    /// Which op of the bundle.
    pub op: u16,
    /// Strictly ascending, at most [`crate::manifest::CHANGES_MAX`].
    pub changes: Vec<(u64, Slot)>,
}

/// A bundle with its payloads: what a client submits and Raft replicates.
#[derive(Clone, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
pub struct Submission {
    /// The bundle.
    pub bundle: SignedBundle,
    /// What travels beside it.
    pub payloads: Payloads,
}

/// A decoded bundle.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Bundle {
    /// The decoded header.
    pub header: Header,
    /// The decoded ops.
    pub ops: Vec<Op>,
    /// The exact bytes.
    pub signed: SignedBundle,
}

/// Why a whole bundle was refused, before any of its ops.
#[derive(Clone, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize, thiserror::Error)]
pub enum BundleRejection {
    /// It does not decode, or breaks a limit.
    #[error("malformed bundle: {0}")]
    Malformed(String),
    /// The signature is not by the key it names.
    #[error("the bundle's signature does not verify")]
    Signature,
    /// For another cluster or suite.
    #[error("the bundle is for another cluster or suite")]
    Cluster,
    /// Its time is over, or lies too far ahead.
    #[error("the bundle's time is over or too far ahead (log time {0:?})")]
    Expired(LogTime),
    /// The session is unknown, closed, expired or somebody else's.
    #[error("the session is not open: log in again")]
    Session,
    /// A vault record the author relied on is not the current one.
    #[error("a vault record changed in the meantime")]
    VaultChanged,
}

impl From<Malformed> for BundleRejection {
    fn from(error: Malformed) -> Self {
        Self::Malformed(error.to_string())
    }
}

impl From<BadSignature> for BundleRejection {
    fn from(_: BadSignature) -> Self {
        Self::Signature
    }
}

/// What became of each op of a bundle, in order.
pub type Outcomes = Vec<Result<crate::op::Outcome, Rejection>>;

impl Header {
    /// Makes and signs a bundle of `ops`; fills in their number and root.
    pub fn sign(mut self, ops: &[Op], author: &impl Signer) -> SignedBundle {
        let ops: Vec<Vec<u8>> = ops.iter().map(encode).collect();
        let leaves: Vec<TreeHash> = ops.iter().map(|op| leaf_hash(op)).collect();
        self.ops = u16::try_from(ops.len()).unwrap_or(u16::MAX);
        self.ops_root = root(&leaves);
        let header = encode(&self);
        let signature = author.sign(Domain::Bundle, &self.cluster, &header);
        SignedBundle { header, signature, ops }
    }
}

impl SignedBundle {
    /// Decodes the bundle and checks what needs no state: limits, the op root, the signature.
    pub fn verify(self, cluster: &ClusterId) -> Result<Verified<Bundle>, BundleRejection> {
        let header: Header = decode("bundle header", &self.header)?;
        if header.cluster != *cluster || header.suite != crate::SUITE {
            return Err(BundleRejection::Cluster);
        }
        let malformed = |why: &str| BundleRejection::Malformed(why.to_owned());
        if self.ops.is_empty() || self.ops.len() > BUNDLE_OPS_MAX {
            return Err(malformed("a bundle has 1 to 256 ops"));
        }
        if header.vaults.len() > VAULTS_RELIED_MAX {
            return Err(malformed("a bundle relies on at most 8 vault records"));
        }
        let leaves: Vec<TreeHash> = self.ops.iter().map(|op| leaf_hash(op)).collect();
        if usize::from(header.ops) != self.ops.len() || root(&leaves) != header.ops_root {
            return Err(malformed("the ops are not the ones that were signed"));
        }
        header.key.verify(Domain::Bundle, cluster, &self.header, &self.signature)?;
        let ops = self.ops.iter().map(|op| decode("op", op)).collect::<Result<Vec<Op>, _>>()?;
        Ok(Verified::checked(Bundle { header, ops, signed: self }))
    }
}

/// One op of an applied bundle, with what proves that its author signed it.
#[derive(Clone, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
pub struct OpProof {
    /// The bundle's header bytes.
    pub header: Vec<u8>,
    /// The bundle's signature.
    pub signature: Signature,
    /// Which op of the bundle.
    pub index: u16,
    /// The op bytes.
    pub op: Vec<u8>,
    /// The path from the op to the header's root.
    pub path: Vec<TreeHash>,
}

/// An op that a principal certainly signed. Whether they were allowed to is another question.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ProvenOp {
    /// The header it was signed under.
    pub header: Header,
    /// The op.
    pub op: Op,
}

/// A proof that does not hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProofFailure {
    /// Does not decode.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// The signature, the path or the cluster is wrong.
    #[error("the server's answer is not signed by its author")]
    Forged,
    /// The op does not set the object it was handed out for.
    #[error("the server's answer is about something else")]
    OtherObject,
}

impl OpProof {
    /// Checks signature and path. The signature check may be skipped where `known` says that this
    /// very header and signature were checked before (many ops share one bundle).
    pub fn verify(
        &self,
        cluster: &ClusterId,
        known: impl FnOnce(&[u8], &Signature) -> bool,
    ) -> Result<Verified<ProvenOp>, ProofFailure> {
        let header: Header = decode("bundle header", &self.header)?;
        if header.cluster != *cluster || header.suite != crate::SUITE {
            return Err(ProofFailure::Forged);
        }
        let (index, size) = (u64::from(self.index), u64::from(header.ops));
        verify_inclusion(index, size, &leaf_hash(&self.op), &self.path, &header.ops_root)
            .map_err(|_| ProofFailure::Forged)?;
        if !known(&self.header, &self.signature) {
            header
                .key
                .verify(Domain::Bundle, cluster, &self.header, &self.signature)
                .map_err(|_| ProofFailure::Forged)?;
        }
        let op = decode("op", &self.op)?;
        Ok(Verified::checked(ProvenOp { header, op }))
    }
}

impl ProvenOp {
    /// The leaf this op gave to `object`, with its hash.
    pub fn leaf(&self, object: &Object) -> Result<AnyObjectLeaf, ProofFailure> {
        let change = self
            .op
            .changes()
            .into_iter()
            .find(|change| change.object == *object)
            .ok_or(ProofFailure::OtherObject)?;
        let hash = change.leaf_hash(&self.header.cluster);
        Ok(AnyObjectLeaf { leaf: change.leaf, hash })
    }
}

/// The hash of a whole submission, for caches.
pub fn submission_hash(bytes: &[u8]) -> Hash {
    Hash::of("coffer/v1/submission", bytes)
}
