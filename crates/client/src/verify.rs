//! Believing nothing: every leaf a server hands out comes with the op that set it, and counts only if
//! that op was signed by a session of somebody who may set it.
//!
//! A leaf is accepted when all of this holds: the op is in a bundle whose header is signed by the key
//! it names; the op sets exactly the object that was asked for; the key belongs to a session that the
//! author's identity vouched for; the author's role in the vault suffices; and the payload is the one
//! the leaf names. What lies inside a payload is checked when it is opened (`node`, `content`).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use coffer_model::authorize::{authorize, required_role};
use coffer_model::bundle::{Author, NOT_AFTER_MS_MAX, OpProof, ProvenOp};
use coffer_model::hash::{Hash, payload_hash};
use coffer_model::id::{ClusterId, InodeId, NameTag, PrincipalId};
use coffer_model::name::UserName;
use coffer_model::object::{
    AttrsLeaf, EntryKey, EntryLeaf, EntryState, HeadLeaf, Leaf, LeafHash, Object, Role,
    SessionLeaf, StagedKey, StagedLeaf, UserLeaf, VaultLeaf,
};
use coffer_model::op::Op;
use coffer_model::session::{Certificate, CertificateHash};
use coffer_model::signing::{PublicKey, Signature};
use coffer_proto::v1 as pb;
use coffer_service::cache::BoundedCache;

use crate::error::ClientError;

/// Headers whose signature was checked; many ops share one.
const HEADERS_REMEMBERED: usize = 8192;
/// Sessions whose certificate was checked.
const SESSIONS_REMEMBERED: usize = 4096;

/// Checks what servers hand out in one cluster.
pub(crate) struct Verifier {
    cluster: ClusterId,
    headers: BoundedCache<Hash, ()>,
    sessions: BoundedCache<CertificateHash, Arc<Certificate>>,
    identities: Mutex<BTreeMap<PrincipalId, PublicKey>>,
}

/// The ops of one answer, each certainly signed by the key in its header. Whose key that is has not
/// been looked at yet.
pub(crate) struct Proven(Vec<ProvenOp>);

/// A leaf that passed every check.
#[derive(Clone, Debug)]
pub(crate) struct Checked<L> {
    pub(crate) leaf: L,
    pub(crate) hash: LeafHash,
    pub(crate) payload: Bytes,
    /// Who set it.
    pub(crate) author: PrincipalId,
}

impl Verifier {
    pub(crate) fn new(cluster: ClusterId, own: PrincipalId, identity: PublicKey) -> Self {
        Self {
            cluster,
            headers: BoundedCache::new(HEADERS_REMEMBERED, None),
            sessions: BoundedCache::new(SESSIONS_REMEMBERED, None),
            identities: Mutex::new(BTreeMap::from([(own, identity)])),
        }
    }

    /// Checks signatures and paths of all ops of an answer.
    pub(crate) fn prove(&self, proofs: &pb::Proofs) -> Result<Proven, ClientError> {
        let ops = proofs.ops.iter().map(|op| self.prove_op(proofs, op));
        Ok(Proven(ops.collect::<Result<_, _>>()?))
    }

    fn prove_op(&self, proofs: &pb::Proofs, op: &pb::SignedOp) -> Result<ProvenOp, ClientError> {
        let malformed = || ClientError::tampered("the proofs of an answer are malformed");
        let at = usize::try_from(op.header).map_err(|_| malformed())?;
        let header = proofs.headers.get(at).ok_or_else(malformed)?;
        let signature = header.signature.as_ref().try_into().map_err(|_| malformed())?;
        let (path, rest) = op.path.as_chunks::<32>();
        if !rest.is_empty() {
            return Err(malformed());
        }
        let proof = OpProof {
            header: header.header.to_vec(),
            signature: Signature::from_bytes(signature),
            index: u16::try_from(op.index).map_err(|_| malformed())?,
            op: op.op.to_vec(),
            path: path.to_vec(),
        };
        let signed = [header.header.as_ref(), header.signature.as_ref()].concat();
        let key = Hash::of("coffer/v1/client/known-header", &signed);
        let known = self.headers.get(&key).is_some();
        let proven = proof.verify(&self.cluster, |_, _| known)?;
        if !known {
            self.headers.insert(key, ());
        }
        Ok(proven.into_inner())
    }

    /// The sessions that signed these ops and were not looked at yet.
    pub(crate) fn unknown_sessions(&self, proven: &Proven) -> BTreeSet<CertificateHash> {
        let sessions = proven.0.iter().filter_map(|op| match op.header.author {
            Author::Session(hash) => Some(hash),
            Author::Identity => None,
        });
        sessions.filter(|hash| self.sessions.get(hash).is_none()).collect()
    }

    /// Takes up a session: its certificate must be signed by the identity of a known user.
    pub(crate) fn admit_session(
        &self,
        hash: CertificateHash,
        proven: &Proven,
        leaf: &pb::ProvenLeaf,
    ) -> Result<(), ClientError> {
        let refused = |why: &str| ClientError::tampered(format!("a session: {why}"));
        let op = proven.op(leaf)?;
        let Leaf::Session(SessionLeaf { certificate, .. }) = op.leaf(&Object::Session(hash))?.leaf
        else {
            return Err(refused("another object"));
        };
        let content = &certificate.certificate;
        if content.hash() != hash
            || content.cluster != self.cluster
            || content.suite != coffer_model::SUITE
        {
            return Err(refused("another certificate"));
        }
        let identity =
            self.identity(content.principal).ok_or_else(|| refused("of an unknown user"))?;
        certificate.verify(&identity).map_err(|_| refused("not vouched for by its user"))?;
        let logged_well = match &op.op {
            Op::OpenSession { .. } => {
                op.header.author == Author::Identity
                    && op.header.key == identity
                    && op.header.principal == content.principal
            }
            // Whoever closed it, the certificate itself is still what the identity signed.
            Op::CloseSession { .. } => true,
            _ => false,
        };
        if !logged_well {
            return Err(refused("not opened by its user"));
        }
        self.sessions.insert(hash, Arc::new(certificate.certificate));
        Ok(())
    }

    /// Takes up the own session, whose certificate was made here.
    pub(crate) fn trust_session(&self, certificate: &Certificate) {
        self.sessions.insert(certificate.hash(), Arc::new(certificate.clone()));
    }

    /// An entry of a tree.
    pub(crate) fn entry(
        &self,
        proven: &Proven,
        leaf: &pb::ProvenLeaf,
        key: EntryKey,
        vault: &VaultLeaf,
    ) -> Result<Checked<EntryLeaf>, ClientError> {
        self.tree_leaf(proven, leaf, &Object::Entry(key), vault, |leaf| match leaf {
            Leaf::Entry(entry) => Some((entry.name, entry)),
            _ => None,
        })
    }

    /// The attributes of an inode.
    pub(crate) fn attrs(
        &self,
        proven: &Proven,
        leaf: &pb::ProvenLeaf,
        inode: InodeId,
        vault: &VaultLeaf,
    ) -> Result<Checked<AttrsLeaf>, ClientError> {
        self.tree_leaf(proven, leaf, &Object::Attrs(inode), vault, |leaf| match leaf {
            Leaf::Attrs(attrs) => Some((attrs.payload, attrs)),
            _ => None,
        })
    }

    /// A version of a file. Whether it is the current one is for the caller to say.
    pub(crate) fn head(
        &self,
        proven: &Proven,
        leaf: &pb::ProvenLeaf,
        inode: InodeId,
        vault: &VaultLeaf,
    ) -> Result<Checked<HeadLeaf>, ClientError> {
        self.tree_leaf(proven, leaf, &Object::Head(inode), vault, |leaf| match leaf {
            Leaf::Head(head) => Some((head.payload, head)),
            _ => None,
        })
    }

    /// A partial version.
    pub(crate) fn staged(
        &self,
        proven: &Proven,
        leaf: &pb::ProvenLeaf,
        key: StagedKey,
        vault: &VaultLeaf,
    ) -> Result<Checked<StagedLeaf>, ClientError> {
        let op = proven.op(leaf)?;
        let (leaf, hash) = self.authored(op, &Object::Staged(key), vault)?;
        let Leaf::Staged(leaf) = leaf else {
            return Err(ClientError::tampered("another object than was asked for"));
        };
        Ok(Checked { leaf, hash, payload: Bytes::new(), author: op.header.principal })
    }

    /// The access list of the own home: set by the user's identity at registration.
    pub(crate) fn own_vault(
        &self,
        proven: &Proven,
        leaf: &pb::ProvenLeaf,
        home: InodeId,
        own: PrincipalId,
    ) -> Result<Checked<VaultLeaf>, ClientError> {
        let refused = |why: &str| ClientError::tampered(format!("the home's access list: {why}"));
        let op = proven.op(leaf)?;
        self.check_author(op)?;
        if op.header.principal != own {
            return Err(refused("not set by its owner"));
        }
        let found = op.leaf(&Object::Vault(home))?;
        let Leaf::Vault(vault) = found.leaf else { return Err(refused("another object")) };
        if vault.home != home || vault.role_of(own) != Some(Role::Admin) {
            return Err(refused("its owner is not its administrator"));
        }
        Ok(Checked { leaf: vault, hash: found.hash, payload: Bytes::new(), author: own })
    }

    fn tree_leaf<L>(
        &self,
        proven: &Proven,
        leaf: &pb::ProvenLeaf,
        object: &Object,
        vault: &VaultLeaf,
        of_kind: impl FnOnce(Leaf) -> Option<(Hash, L)>,
    ) -> Result<Checked<L>, ClientError> {
        let op = proven.op(leaf)?;
        let (found, hash) = self.authored(op, object, vault)?;
        let (named, typed) = of_kind(found)
            .ok_or_else(|| ClientError::tampered("another object than was asked for"))?;
        if payload_hash(&leaf.payload) != named {
            return Err(ClientError::tampered("a payload is not the one that was signed"));
        }
        let payload = leaf.payload.clone();
        Ok(Checked { leaf: typed, hash, payload, author: op.header.principal })
    }

    /// The leaf an op gave to `object`, if its author may do that in `vault`.
    fn authored(
        &self,
        op: &ProvenOp,
        object: &Object,
        vault: &VaultLeaf,
    ) -> Result<(Leaf, LeafHash), ClientError> {
        self.check_author(op)?;
        // A home's first leaves come with the registration of its owner, who administers it.
        let needed = required_role(&op.op).unwrap_or(Role::Admin);
        authorize(vault, op.header.principal, needed)
            .map_err(|_| ClientError::tampered("signed by somebody who may not do this"))?;
        let found = op.leaf(object)?;
        Ok((found.leaf, found.hash))
    }

    /// Whether the key of a header is its principal's.
    fn check_author(&self, op: &ProvenOp) -> Result<(), ClientError> {
        let refused = |why: &str| ClientError::tampered(format!("an op's author: {why}"));
        let header = &op.header;
        let by_identity =
            matches!(op.op, Op::Register { .. } | Op::UpdateUser { .. } | Op::OpenSession { .. });
        match header.author {
            Author::Identity => {
                if !by_identity {
                    return Err(refused("an identity signs no such op"));
                }
                let identity =
                    self.identity(header.principal).ok_or_else(|| refused("unknown user"))?;
                if header.key != identity {
                    return Err(refused("another identity"));
                }
            }
            Author::Session(hash) => {
                let certificate =
                    self.sessions.get(&hash).ok_or_else(|| refused("unknown session"))?;
                if by_identity
                    || certificate.principal != header.principal
                    || certificate.key != header.key
                {
                    return Err(refused("another session's key"));
                }
                // It was applied before the session ended, so its not-after cannot be much later.
                if header.not_after > certificate.expires.plus_ms(NOT_AFTER_MS_MAX) {
                    return Err(refused("signed after the end of its session"));
                }
            }
        }
        Ok(())
    }

    fn identity(&self, principal: PrincipalId) -> Option<PublicKey> {
        let identities = self.identities.lock().unwrap_or_else(PoisonError::into_inner);
        identities.get(&principal).copied()
    }
}

impl Proven {
    fn op(&self, leaf: &pb::ProvenLeaf) -> Result<&ProvenOp, ClientError> {
        let at = usize::try_from(leaf.op).ok();
        at.and_then(|at| self.0.get(at))
            .ok_or_else(|| ClientError::tampered("an answer names an op that it does not carry"))
    }

    /// The tag under which an op of a listing sets an entry of `directory`. A rename sets two entries
    /// of one directory, of which only one is live.
    pub(crate) fn entry_tag(
        &self,
        leaf: &pb::ProvenLeaf,
        directory: InodeId,
    ) -> Result<NameTag, ClientError> {
        let mut tags = self.op(leaf)?.op.changes().into_iter().filter_map(|change| {
            match (change.object, change.leaf) {
                (Object::Entry(key), Leaf::Entry(entry))
                    if key.directory == directory
                        && !matches!(entry.state, EntryState::Moved { .. }) =>
                {
                    Some(key.tag)
                }
                _ => None,
            }
        });
        tags.next().ok_or_else(|| ClientError::tampered("a listing names another directory"))
    }
}

/// The user record of a login's answer: set by the user's own identity, under the user's name.
pub(crate) fn user_record(
    proof: &OpProof,
    cluster: &ClusterId,
    name: &UserName,
) -> Result<Checked<UserLeaf>, ClientError> {
    let refused = |why: &str| ClientError::tampered(format!("the user record: {why}"));
    let op = proof.verify(cluster, |_, _| false)?.into_inner();
    let found = op.leaf(&Object::User(name.clone()))?;
    let Leaf::User(user) = found.leaf else { return Err(refused("another object")) };
    let by_itself = op.header.author == Author::Identity
        && op.header.key == user.identity
        && op.header.principal == user.principal;
    if !by_itself {
        return Err(refused("not signed by the identity it names"));
    }
    let author = user.principal;
    Ok(Checked { leaf: user, hash: found.hash, payload: Bytes::new(), author })
}
