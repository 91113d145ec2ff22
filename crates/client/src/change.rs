//! Changing the directory: ops are gathered into bundles, signed, submitted, and their outcomes handed
//! back one by one. One bundle is under way at a time, so what was handed in first is applied first.

use std::sync::Arc;

use bytes::Bytes;
use coffer_crypto::random::request_id;
use coffer_model::SUITE;
use coffer_model::bundle::{
    Author, BUNDLE_OPS_MAX, BundleRejection, Header, OpSlots, Outcomes, Payloads, Submission,
};
use coffer_model::encoding::{decode, encode};
use coffer_model::id::{ClusterId, PrincipalId};
use coffer_model::manifest::Slot;
use coffer_model::merkle::TreeHash;
use coffer_model::object::LeafHash;
use coffer_model::op::{Op, Outcome, Rejection};
use coffer_model::signing::Signer;
use coffer_proto::v1 as pb;

use crate::batch::{Batcher, Limits, Pending, Weight};
use crate::clock::LogClock;
use crate::error::{ClientError, bundle_rejection};
use crate::transport::{Credentials, Transport};
use crate::wire::Wire;

/// Bundles with their payloads stay below this; the limit of a submission is four times as much.
const BUNDLE_BYTES_MAX: usize = 1 << 20;
/// How often a bundle is signed anew because log time was guessed wrong.
const TIME_ATTEMPTS: u32 = 4;
/// What a changed slot weighs on the wire.
pub(crate) const SLOT_CHANGE_BYTES: usize = 66;

/// One op with what travels beside it.
#[derive(Clone)]
pub(crate) struct PlannedOp {
    pub(crate) op: Op,
    pub(crate) blobs: Vec<Vec<u8>>,
    pub(crate) slots: Vec<(u64, Slot)>,
}

impl PlannedOp {
    /// An op without changed slots.
    pub(crate) fn new(op: Op, blobs: Vec<Vec<u8>>) -> Self {
        Self { op, blobs, slots: Vec::new() }
    }

    fn bytes(&self) -> usize {
        let blobs: usize = self.blobs.iter().map(Vec::len).sum();
        encode(&self.op).len() + blobs + self.slots.len() * SLOT_CHANGE_BYTES
    }
}

/// What became of one op.
pub(crate) type OpOutcome = Result<Outcome, Rejection>;

/// Gathers ops into bundles.
pub(crate) struct Changes {
    batcher: Batcher<Vec<PlannedOp>, Vec<OpOutcome>>,
}

/// An outcome on its way.
pub(crate) struct PendingOp(Pending<Vec<OpOutcome>>);

impl PendingOp {
    /// Waits for the outcome.
    pub(crate) async fn outcome(self) -> Result<OpOutcome, ClientError> {
        let mut outcomes = self.0.answer().await?;
        outcomes.pop().ok_or(ClientError::Stopped)
    }
}

impl Changes {
    /// Ops of the session of `wire`, relying on the vault record with this hash.
    pub(crate) fn start(wire: Arc<Wire>, vault: LeafHash) -> Self {
        let limits = Limits {
            items_max: BUNDLE_OPS_MAX,
            bytes_max: BUNDLE_BYTES_MAX,
            eager_bytes: 0,
            calls_max: 1,
        };
        let batcher = Batcher::start(limits, move |_, items: Vec<Vec<PlannedOp>>| {
            let wire = Arc::clone(&wire);
            async move { submit_all(&wire, vault, items).await }
        });
        Self { batcher }
    }

    /// Hands in one op. What is handed in later is applied later.
    pub(crate) async fn hand_in(&self, op: PlannedOp) -> Result<PendingOp, ClientError> {
        let weight = Weight { group: Bytes::new(), bytes: op.bytes() };
        Ok(PendingOp(self.batcher.hand_in(weight, vec![op]).await?))
    }

    /// Applies one op.
    pub(crate) async fn apply(&self, op: PlannedOp) -> Result<OpOutcome, ClientError> {
        self.hand_in(op).await?.outcome().await
    }

    /// Applies a few ops in one bundle, one after the other.
    pub(crate) async fn apply_together(
        &self,
        ops: Vec<PlannedOp>,
    ) -> Result<Vec<OpOutcome>, ClientError> {
        let bytes = ops.iter().map(PlannedOp::bytes).sum();
        self.batcher.answer(Weight { group: Bytes::new(), bytes }, ops).await
    }
}

/// Submits items of one or a few ops each, in as few bundles as hold them.
async fn submit_all(
    wire: &Wire,
    vault: LeafHash,
    items: Vec<Vec<PlannedOp>>,
) -> Result<Vec<Result<Vec<OpOutcome>, ClientError>>, ClientError> {
    let by = Signing {
        transport: wire.transport.as_ref(),
        session: Some(&wire.credentials),
        cluster: wire.cluster,
        principal: wire.principal,
        author: Author::Session(wire.credentials.certificate()),
        clock: &wire.clock,
        vaults: vec![vault],
    };
    let mut answers = Vec::with_capacity(items.len());
    let mut items = items.into_iter().peekable();
    while items.peek().is_some() {
        let (mut ops, mut counts) = (Vec::new(), Vec::new());
        while let Some(item) = items.next_if(|item| ops.len() + item.len() <= BUNDLE_OPS_MAX) {
            counts.push(item.len());
            ops.extend(item);
        }
        match submit(&by, wire.credentials.key(), ops).await {
            Ok((outcomes, revision)) => {
                wire.seen.check_revision(revision, 0)?;
                let mut outcomes = outcomes.into_iter();
                answers.extend(
                    counts.iter().map(|count| Ok(outcomes.by_ref().take(*count).collect())),
                );
            }
            Err(error) => answers.extend(counts.iter().map(|_| Err(error.clone()))),
        }
    }
    Ok(answers)
}

/// Who signs, and what it takes to submit.
pub(crate) struct Signing<'a> {
    pub(crate) transport: &'a dyn Transport,
    pub(crate) session: Option<&'a Credentials>,
    pub(crate) cluster: ClusterId,
    pub(crate) principal: PrincipalId,
    pub(crate) author: Author,
    pub(crate) clock: &'a LogClock,
    pub(crate) vaults: Vec<LeafHash>,
}

/// Signs and submits one bundle; gives the outcome of each op and the revision after it. The request id
/// stays the same however often it is signed, so the bundle is applied once.
pub(crate) async fn submit(
    by: &Signing<'_>,
    key: &impl Signer,
    planned: Vec<PlannedOp>,
) -> Result<(Vec<OpOutcome>, u64), ClientError> {
    let request = request_id();
    let (ops, payloads) = unpack(planned);
    let mut last = None;
    for _ in 0..TIME_ATTEMPTS {
        let header = Header {
            cluster: by.cluster,
            suite: SUITE,
            principal: by.principal,
            author: by.author,
            key: key.public_key(),
            vaults: by.vaults.clone(),
            request,
            not_after: by.clock.not_after(),
            ops: 0,
            ops_root: TreeHash::default(),
        };
        let submission = Submission { bundle: header.sign(&ops, key), payloads: payloads.clone() };
        let message = pb::SubmitRequest { submission: encode(&submission).into() };
        let status = match by.transport.submit(by.session, message).await {
            Ok(response) => {
                let outcomes: Outcomes = decode("outcomes", &response.outcomes)?;
                if outcomes.len() != ops.len() {
                    return Err(ClientError::tampered("more or fewer outcomes than ops"));
                }
                let settled = ops.iter().zip(outcomes);
                let settled = settled.map(|(op, outcome)| settle(&by.cluster, op, outcome));
                return Ok((settled.collect(), response.revision));
            }
            Err(status) => status,
        };
        match bundle_rejection(&status) {
            // Log time was guessed wrong; now it is known.
            Some(BundleRejection::Expired(time)) => {
                by.clock.set(time);
                last = Some(BundleRejection::Expired(time));
            }
            Some(rejection) => return Err(refused(rejection)),
            None => return Err(ClientError::of_status(&status)),
        }
    }
    Err(refused(last.unwrap_or(BundleRejection::Signature)))
}

fn unpack(planned: Vec<PlannedOp>) -> (Vec<Op>, Payloads) {
    let (mut ops, mut payloads) = (Vec::with_capacity(planned.len()), Payloads::default());
    for (number, planned) in (0u16..).zip(planned) {
        ops.push(planned.op);
        payloads.blobs.extend(planned.blobs);
        if !planned.slots.is_empty() {
            payloads.slots.push(OpSlots { op: number, changes: planned.slots });
        }
    }
    (ops, payloads)
}

/// A conflict with the very leaf the op was to set is no conflict: an earlier attempt was applied, and
/// its answer lost.
fn settle(cluster: &ClusterId, op: &Op, outcome: OpOutcome) -> OpOutcome {
    if let Err(Rejection::Conflict { object, current: Some(current) }) = &outcome {
        let ours = op
            .changes()
            .iter()
            .any(|change| change.object == *object && change.leaf_hash(cluster) == *current);
        if ours {
            return Ok(Outcome { charged_bytes: 0 });
        }
    }
    outcome
}

fn refused(rejection: BundleRejection) -> ClientError {
    match rejection {
        BundleRejection::Session => ClientError::SessionExpired,
        BundleRejection::VaultChanged => {
            ClientError::Conflict { what: "the access list of the home".to_owned() }
        }
        BundleRejection::Cluster => ClientError::WrongCluster { why: rejection.to_string() },
        BundleRejection::Malformed(_)
        | BundleRejection::Signature
        | BundleRejection::Expired(_) => ClientError::Refused { detail: rejection.to_string() },
    }
}
