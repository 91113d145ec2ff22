//! Lost volumes are replaced without an administrator, as far as the standing policy allows it
//! (docs/formats/descriptor.md, "A replacement"). A newcomer asks any member; the leader collects the
//! signatures of a majority and proposes the descriptor.
//!
//! A certificate alone gets nobody in: nothing costs more than a signature's check before the join token has
//! signed, and no process asks more often than [`ASK_EVERY`].

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use coffer_metadata_core::state::{CORE_VERSION_REPLACEMENT, FORMER_LAYOUTS_MAX};
use coffer_metadata_core::{Command, query};
use coffer_model::descriptor::{Descriptor, Replaced, ReplacementPolicy, SignedDescriptor};
use coffer_model::encoding::{decode, encode};
use coffer_model::id::{MemberId, NodeId};
use coffer_model::log::SystemOp;
use coffer_model::signing::{Domain, PublicKey, Signature, Signer as _};
use coffer_proto::internal as pb;
use coffer_proto::internal::join_service_client::JoinServiceClient;
use coffer_proto::internal::join_service_server::JoinService;
use coffer_proto::internal::member_service_client::MemberServiceClient;
use coffer_service::audit::note;
use coffer_service::call::contained;
use coffer_service::channel::Channel;
use coffer_service::peer::PeerId;
use coffer_service::server::peer_of;
use coffer_service::status::{reason_of, status, status_with_retry};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tonic::{Code, Request, Response, Status};

use crate::access::{Door, Route, busy, invalid, reading, store_failed};
use crate::batch::Proposer;
use crate::group::{Process, STORAGE_ROLE, latest_descriptor, member_of_peer};
use crate::heard::Seat;
use crate::placement::layouts;
use crate::reads::Reads;
use crate::store::View;

/// A descriptor is a good deal shorter than this.
const DESCRIPTOR_BYTES_MAX: usize = 1 << 20;
/// How often one process may make the same call.
const ASK_EVERY: Duration = Duration::from_millis(200);
/// How many calls are remembered for that.
const ASKERS_MAX: usize = 1024;
/// How many requests are looked at at once.
const AT_ONCE_MAX: usize = 4;
/// How long another member may take to vouch.
const VOUCH_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest that somebody who was refused is asked to wait.
const RETRY_MAX: Duration = Duration::from_secs(15);
/// When to come back where something else changed in between.
const CHANGED_RETRY: Duration = Duration::from_millis(200);

/// What a member needs to vouch for a replacement.
#[derive(Clone)]
pub(crate) struct Vouching {
    pub(crate) door: Door,
    pub(crate) reads: Reads,
}

/// A replacement the join token has signed, as it was asked for.
#[derive(Clone)]
pub(crate) struct Asked {
    descriptor: Vec<u8>,
    token: (PublicKey, Signature),
}

impl Asked {
    pub(crate) fn new(descriptor: &[u8], key: &[u8], signature: &[u8]) -> Result<Self, Status> {
        if descriptor.len() > DESCRIPTOR_BYTES_MAX {
            return Err(invalid("DESCRIPTOR_TOO_LARGE", "the descriptor is too long"));
        }
        let key = <[u8; 32]>::try_from(key);
        let signature = <[u8; 64]>::try_from(signature);
        let (Ok(key), Ok(signature)) = (key, signature) else {
            return Err(invalid("SIGNATURE_INVALID", "a key has 32 bytes and a signature 64"));
        };
        let token = (PublicKey::from_bytes(key), Signature::from_bytes(signature));
        Ok(Self { descriptor: descriptor.to_vec(), token })
    }

    fn decode(&self) -> Result<Descriptor, Status> {
        decode("descriptor", &self.descriptor)
            .map_err(|error| invalid("MALFORMED", &error.to_string()))
    }
}

/// What was found out about a replacement that is in order.
struct InOrder {
    replaced: Replaced,
    former: Descriptor,
}

impl Vouching {
    /// This member's signature under a replacement, if the policy allows it and this member has itself not
    /// heard from the lost one for long enough.
    pub(crate) async fn vouch(&self, asked: &Asked, view: View) -> Result<Signature, Status> {
        let in_order = self.in_order(asked, view).await?;
        self.check_silent(&in_order)?;
        Ok(self.sign(asked))
    }

    fn sign(&self, asked: &Asked) -> Signature {
        let group = &self.door.group;
        group.identity.sign(Domain::Replacement, &group.cluster(), &asked.descriptor)
    }

    /// Checks everything about a replacement but silence.
    async fn in_order(&self, asked: &Asked, view: View) -> Result<InOrder, Status> {
        let (asked, cluster) = (asked.clone(), self.door.cluster());
        reading(move || {
            let former = latest_descriptor(&view).map_err(store_failed)?.ok_or_else(busy)?;
            let next = asked.decode()?;
            policy_of(&former)?;
            if !former.has_token_signed(&cluster, &asked.descriptor, &[asked.token]) {
                let text = "the join token is not that of the cluster's policy";
                return Err(status(Code::PermissionDenied, "WRONG_TOKEN", text, &[]));
            }
            if former.number.checked_add(1) != Some(next.number)
                || next.former != Some(former.hash())
            {
                return Err(changed());
            }
            let replaced = next
                .replaces_in(&former)
                .map_err(|why| status(Code::PermissionDenied, "NOT_A_REPLACEMENT", why, &[]))?;
            check_new(&view, &next, &replaced)?;
            check_understood(&view)?;
            if let Replaced::Node { lost, .. } = replaced {
                check_layouts(&view, lost)?;
            }
            Ok(InOrder { replaced, former })
        })
        .await
    }

    fn check_silent(&self, in_order: &InOrder) -> Result<(), Status> {
        let wanted = policy_of(&in_order.former)?.silent_ms_min;
        let seat = Seat::lost(&in_order.replaced);
        if seat == Seat::Member(self.door.group.me) {
            return Err(not_silent(Duration::ZERO, wanted));
        }
        let silent = self.door.heard.silent_for(seat, Instant::now());
        if silent >= Duration::from_millis(wanted) {
            return Ok(());
        }
        Err(not_silent(silent, wanted))
    }
}

/// The join service of one member.
#[derive(Clone)]
pub(crate) struct Join {
    vouching: Vouching,
    proposer: Proposer,
    /// When who made which call last.
    askers: Arc<Mutex<HashMap<(PeerId, Call), Instant>>>,
    turns: Arc<Semaphore>,
}

fn client(channel: Channel) -> JoinServiceClient<Channel> {
    JoinServiceClient::new(channel)
}

/// What is asked.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Call {
    FindSeat,
    Join,
}

/// Who asks.
enum Asker {
    /// Somebody with a certificate.
    Newcomer(PeerId),
    /// A member, that passes on what a newcomer asked it.
    Member,
}

#[tonic::async_trait]
impl JoinService for Join {
    async fn find_seat(
        &self,
        request: Request<pb::FindSeatRequest>,
    ) -> Result<Response<pb::FindSeatResponse>, Status> {
        let asker = self.asker(&request, Call::FindSeat)?;
        let _turn = self.turns.try_acquire().map_err(|_| busy())?;
        let kind = request.get_ref().kind();
        if let Asker::Newcomer(peer) = &asker
            && kind_of(peer) != Some(kind)
        {
            return Err(not_yours());
        }
        note(&request, |subject| {
            let role = if kind == pb::SeatKind::Node { "storage node" } else { "member" };
            subject.object = Some(format!("place of a {role}"));
        });
        if let Route::At(leader) = self.vouching.door.to_leader(&request)? {
            let call = |to, request| async move { client(to).find_seat(request).await };
            return self.vouching.door.forward(leader, request, call).await;
        }
        let view = self.confirmed().await?;
        let (door, wanted) = (self.vouching.door.clone(), request.into_inner());
        let lost = reading(move || {
            let descriptor = latest_descriptor(&view).map_err(store_failed)?.ok_or_else(busy)?;
            let policy = policy_of(&descriptor)?;
            match wanted.kind() {
                pb::SeatKind::Member => find_member(&descriptor, &wanted),
                pb::SeatKind::Node => find_node(&door, &view, &descriptor, policy, &wanted),
                pb::SeatKind::Unspecified => Err(no_such_seat("say what the place is for")),
            }
        });
        Ok(Response::new(pb::FindSeatResponse { lost: lost.await? }))
    }

    async fn join(
        &self,
        request: Request<pb::JoinRequest>,
    ) -> Result<Response<pb::JoinResponse>, Status> {
        let asker = self.asker(&request, Call::Join)?;
        let _turn = self.turns.try_acquire().map_err(|_| busy())?;
        let message = request.get_ref();
        let asked = Asked::new(&message.descriptor, &message.token_key, &message.token_signature)?;
        let next = asked.decode()?;
        if let Asker::Newcomer(peer) = &asker
            && !is_named(&next, peer)
        {
            return Err(not_yours());
        }
        note(&request, |subject| {
            subject.object = Some(format!("replacement in descriptor {}", next.number));
        });
        if let Route::At(leader) = self.vouching.door.to_leader(&request)? {
            let call = |to, request| async move { client(to).join(request).await };
            return self.vouching.door.forward(leader, request, call).await;
        }
        let view = self.confirmed().await?;
        if let Some(signed) = in_force(&view, &next)? {
            // A repeat: the answer of the first time was lost.
            return Ok(Response::new(pb::JoinResponse { descriptor: signed.into() }));
        }
        let signed = self.collect(&asked, view).await?;
        let op = SystemOp::NextDescriptor { descriptor: encode(&signed) };
        let proposed = self.proposer.propose(Command::System(op)).await;
        proposed.map_err(|error| self.vouching.door.propose_refused(error))?;
        let view = self.confirmed().await?;
        let descriptor = in_force(&view, &next)?.ok_or_else(changed)?;
        tracing::info!(number = next.number, "a lost volume is replaced by the standing policy");
        Ok(Response::new(pb::JoinResponse { descriptor: descriptor.into() }))
    }
}

impl Join {
    pub(crate) fn new(vouching: Vouching, proposer: Proposer) -> Self {
        let turns = Arc::new(Semaphore::new(AT_ONCE_MAX));
        Self { vouching, proposer, askers: Arc::default(), turns }
    }

    /// Who calls, if they do not call too often.
    fn asker<T>(&self, request: &Request<T>, call: Call) -> Result<Asker, Status> {
        let Some(peer) = peer_of(request) else { return Err(not_yours()) };
        if let Some(Process::Member(_)) = self.vouching.door.group.process(peer) {
            return Ok(Asker::Member);
        }
        let now = Instant::now();
        let mut askers = self.askers.lock().unwrap_or_else(PoisonError::into_inner);
        askers.retain(|_, asked| now.saturating_duration_since(*asked) < ASK_EVERY);
        let asked = (peer.clone(), call);
        if askers.len() >= ASKERS_MAX || askers.contains_key(&asked) {
            let text = "a newcomer asks too often; try again shortly";
            let retry = ASK_EVERY;
            return Err(status_with_retry(Code::ResourceExhausted, "BUSY", text, &[], retry));
        }
        askers.insert(asked, now);
        Ok(Asker::Newcomer(peer.clone()))
    }

    async fn confirmed(&self) -> Result<View, Status> {
        let Vouching { door, reads } = &self.vouching;
        let confirmed = reads.view().await.map_err(|error| door.read_refused(error))?;
        Ok(confirmed.into_view().0)
    }

    /// The replacement with the signatures of the join token and of a majority of the members, this one's
    /// first: a leader that has heard from the lost one asks nobody.
    async fn collect(&self, asked: &Asked, view: View) -> Result<SignedDescriptor, Status> {
        let door = &self.vouching.door;
        let in_order = self.vouching.in_order(asked, view).await?;
        self.vouching.check_silent(&in_order)?;
        let own = self.vouching.sign(asked);
        let mut signatures = vec![asked.token, (door.group.identity.public_key(), own)];
        let mut asking = JoinSet::new();
        for member in &in_order.former.members {
            let is_lost = Seat::lost(&in_order.replaced) == Seat::Member(member.id);
            if is_lost || member.id == door.group.me {
                continue;
            }
            let Some(channel) = door.peers.calls(member.id) else { continue };
            let request = pb::VouchReplacementRequest {
                descriptor: asked.descriptor.clone().into(),
                token_key: asked.token.0.as_bytes().to_vec().into(),
                token_signature: asked.token.1.as_bytes().to_vec().into(),
            };
            let key = member.key;
            asking.spawn(async move {
                let mut client = MemberServiceClient::new(channel);
                let answer = contained(client.vouch_replacement(request));
                match timeout(VOUCH_TIMEOUT, answer).await {
                    Ok(answer) => answer.map(|answer| (key, answer.into_inner().signature)),
                    Err(_) => Err(Status::deadline_exceeded("a member does not answer")),
                }
            });
        }
        let cluster = door.cluster();
        let wanted = in_order.former.members.len() / 2 + 1;
        let mut refusal = no_majority();
        // The join token's does not count among the members'.
        while signatures.len() - 1 < wanted {
            let Some(answer) = asking.join_next().await else { return Err(refusal) };
            match answer {
                Ok(Ok((key, signature))) => {
                    let signature = <[u8; 64]>::try_from(&signature[..]).map(Signature::from_bytes);
                    let Ok(signature) = signature else { continue };
                    let good =
                        key.verify(Domain::Replacement, &cluster, &asked.descriptor, &signature);
                    if good.is_ok() {
                        signatures.push((key, signature));
                    }
                }
                // Somebody who heard from the lost one says more than somebody who is not there.
                Ok(Err(status)) if reason_of(&status).is_some_and(|it| it.code == "NOT_SILENT") => {
                    let details = status.details().to_vec().into();
                    refusal = Status::with_details(status.code(), status.message(), details);
                }
                Ok(Err(status)) => tracing::info!(%status, "a member did not vouch"),
                Err(_) => {}
            }
        }
        Ok(SignedDescriptor { bytes: asked.descriptor.clone(), signatures })
    }
}

fn policy_of(descriptor: &Descriptor) -> Result<&ReplacementPolicy, Status> {
    descriptor.replacement.as_ref().ok_or_else(|| {
        let text = "this cluster has no policy for replacing lost volumes; an administrator has to add \
                    this process, or set one with `coffer join policy`";
        status(Code::FailedPrecondition, "NO_POLICY", text, &[])
    })
}

/// The signed descriptor in force, if that is `next`.
fn in_force(view: &View, next: &Descriptor) -> Result<Option<Vec<u8>>, Status> {
    let current = latest_descriptor(view).map_err(store_failed)?;
    if current.as_ref() != Some(next) {
        return Ok(None);
    }
    query::descriptor(view).map_err(store_failed)
}

/// Checks that no descriptor there ever was names the new id or key: a volume that was replaced stays lost.
fn check_new(view: &View, next: &Descriptor, replaced: &Replaced) -> Result<(), Status> {
    let is_known = |signed: &[u8]| {
        let damaged = |error: coffer_model::encoding::Malformed| {
            store_failed(coffer_metadata_core::TableError(error.to_string()))
        };
        let signed: SignedDescriptor = decode("descriptor", signed).map_err(damaged)?;
        let known: Descriptor = decode("descriptor", &signed.bytes).map_err(damaged)?;
        Ok::<_, Status>(match replaced {
            Replaced::Member { new, .. } => {
                let key = next.member_key(*new);
                known.members.iter().any(|it| it.id == *new || Some(it.key) == key)
            }
            Replaced::Node { new, .. } => {
                let key = next.node_key(*new);
                known.nodes.iter().any(|it| it.id == *new || Some(it.key) == key)
            }
        })
    };
    let (first, _) = query::genesis(view).map_err(store_failed)?.ok_or_else(busy)?;
    let mut known = is_known(&first)?;
    let mut after = 0;
    while !known {
        let signed = query::successors(view, after).map_err(store_failed)?;
        if signed.is_empty() {
            return Ok(());
        }
        for signed in &signed {
            known |= is_known(signed)?;
            after += 1;
        }
    }
    let text = "this volume belonged to the cluster once and does not any more; it holds nothing the \
                cluster needs: start with a new one";
    Err(status(Code::PermissionDenied, "DISMISSED", text, &[]))
}

fn check_understood(view: &View) -> Result<(), Status> {
    if query::core_version(view).map_err(store_failed)? >= CORE_VERSION_REPLACEMENT {
        return Ok(());
    }
    let text = "not all members of the cluster understand replacements yet";
    Err(status_with_retry(Code::FailedPrecondition, "CORE_VERSION", text, &[], RETRY_MAX))
}

fn check_layouts(view: &View, lost: NodeId) -> Result<(), Status> {
    let layouts = layouts(view)?;
    if !layouts.in_force().nodes().contains(&lost) || layouts.former().len() < FORMER_LAYOUTS_MAX {
        return Ok(());
    }
    let text = "too many layouts wait for their nodes to prove their shares";
    Err(status_with_retry(Code::FailedPrecondition, "LAYOUTS_PENDING", text, &[], RETRY_MAX))
}

/// The member whose place it is, by id or address.
fn find_member(descriptor: &Descriptor, wanted: &pb::FindSeatRequest) -> Result<String, Status> {
    let replaces = &wanted.replaces;
    let is_it = |id: MemberId, address: &str| id.to_string() == *replaces || address == replaces;
    let found = descriptor.members.iter().find(|member| is_it(member.id, &member.address));
    found.map(|member| member.id.to_string()).ok_or_else(|| {
        no_such_seat("the descriptor names no member with this id or address: say whom to replace")
    })
}

/// The node whose place it is: the one that was named, by id or address; or the one that reported the newcomer's address; or
/// the only one of the zone that has been silent for long enough.
fn find_node(
    door: &Door,
    view: &View,
    descriptor: &Descriptor,
    policy: &ReplacementPolicy,
    wanted: &pb::FindSeatRequest,
) -> Result<String, Status> {
    let nodes = || descriptor.nodes.iter();
    let reported = query::nodes(view).map_err(store_failed)?;
    let is_at = |node: NodeId, address: &str| {
        reported.iter().any(|report| report.node == node && report.address == address)
    };
    let replaces = &wanted.replaces;
    if !replaces.is_empty() {
        let is_it = |node: NodeId| node.to_string() == *replaces || is_at(node, replaces);
        let found = nodes().find(|node| is_it(node.id)).map(|node| node.id.to_string());
        return found.ok_or_else(|| {
            no_such_seat(
                "no storage node has this id or address: whom it shall replace is named wrongly, or an \
                 administrator has to give it a place of its own (`coffer node add`)",
            )
        });
    }
    if let Some(node) = nodes().find(|node| is_at(node.id, &wanted.address)) {
        return Ok(node.id.to_string());
    }
    let silent = |node: NodeId| door.heard.silent_for(Seat::Node(node), Instant::now());
    let in_zone: Vec<NodeId> =
        nodes().filter(|node| node.zone == wanted.zone).map(|node| node.id).collect();
    let long = Duration::from_millis(policy.silent_ms_min);
    let mut lost = in_zone.iter().filter(|node| silent(**node) >= long);
    match (lost.next(), lost.next()) {
        (Some(node), None) => Ok(node.to_string()),
        (Some(_), Some(_)) => {
            let text = "several storage nodes of this zone are silent: name the one to replace";
            Err(status(Code::FailedPrecondition, "AMBIGUOUS_SEAT", text, &[]))
        }
        (None, _) => match in_zone.iter().map(|node| silent(*node)).max() {
            Some(longest) => Err(not_silent(longest, policy.silent_ms_min)),
            None => Err(no_such_seat("the descriptor names no storage node in this zone")),
        },
    }
}

fn kind_of(peer: &PeerId) -> Option<pb::SeatKind> {
    if member_of_peer(peer).is_some() {
        return Some(pb::SeatKind::Member);
    }
    (peer.role() == STORAGE_ROLE).then_some(pb::SeatKind::Node)
}

/// Whether the descriptor names the process of this certificate.
fn is_named(descriptor: &Descriptor, peer: &PeerId) -> bool {
    match member_of_peer(peer) {
        Some(member) => descriptor.member_key(member).is_some(),
        None => {
            let node = NodeId::from_bytes(*peer.id());
            peer.role() == STORAGE_ROLE && descriptor.node_key(node).is_some()
        }
    }
}

fn not_yours() -> Status {
    let text = "a newcomer asks for itself only, with its own certificate";
    status(Code::PermissionDenied, "NOT_YOURS", text, &[])
}

fn no_such_seat(text: &str) -> Status {
    status(Code::NotFound, "NO_SUCH_SEAT", text, &[])
}

fn not_silent(silent: Duration, wanted_ms: u64) -> Status {
    let wanted = Duration::from_millis(wanted_ms);
    let left = wanted.saturating_sub(silent);
    let text = format!(
        "the old volume was heard from {} s ago; it can be replaced when it has been silent for {} s",
        silent.as_secs(),
        wanted.as_secs()
    );
    let facts =
        [("silent_ms", silent.as_millis().to_string()), ("left_ms", left.as_millis().to_string())];
    let retry = left.min(RETRY_MAX);
    status_with_retry(Code::FailedPrecondition, "NOT_SILENT", &text, &facts, retry)
}

fn changed() -> Status {
    let text = "the descriptor has changed in the meantime: look again, and sign anew";
    status_with_retry(Code::Aborted, "NOT_NEXT", text, &[], CHANGED_RETRY)
}

fn no_majority() -> Status {
    let text = "too few members vouch for the replacement";
    status_with_retry(Code::Unavailable, "NO_QUORUM", text, &[], Duration::from_secs(1))
}
