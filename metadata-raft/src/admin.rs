//! What administrators change. Each of their records carries its own signatures, so a call needs no
//! session: what is not theirs is refused here, before it costs a place in the log, and once more by
//! every replica.

use coffer_metadata_core::state::FORMER_LAYOUTS_MAX;
use coffer_metadata_core::{Command, TableError, query};
use coffer_model::descriptor::{Descriptor, SignedDescriptor};
use coffer_model::encoding::decode;
use coffer_model::id::ClusterId;
use coffer_model::layout::Layout;
use coffer_model::log::SystemOp;
use coffer_model::name::{NameError, UserName};
use coffer_model::order::Order;
use coffer_model::signing::{Domain, PublicKey, Signature};
use coffer_proto::v1 as pb;
use coffer_proto::v1::admin_service_client::AdminServiceClient;
use coffer_proto::v1::admin_service_server::AdminService;
use coffer_service::audit::note;
use coffer_service::channel::Channel;
use coffer_service::status::status;
use tonic::{Code, Request, Response, Status};

use crate::access::{Door, Route, invalid, reading, store_failed};
use crate::batch::Proposer;
use crate::group::latest_descriptor;
use crate::placement::layouts;
use crate::reads::Reads;
use crate::store::View;

/// An order is a good deal shorter than this.
const ORDER_BYTES_MAX: usize = 4 << 10;
/// The most administrators that sign one order.
const SIGNATURES_MAX: usize = 64;

/// The admin service of one member.
#[derive(Clone)]
pub(crate) struct Admin {
    pub(crate) door: Door,
    pub(crate) reads: Reads,
    pub(crate) proposer: Proposer,
}

fn client(channel: Channel) -> AdminServiceClient<Channel> {
    AdminServiceClient::new(channel)
}

/// What a record comes to before it is proposed.
enum Checked {
    /// It follows what is in force.
    Next,
    /// It is in force already: this is a repeat.
    InForce,
}

#[tonic::async_trait]
impl AdminService for Admin {
    async fn change_descriptor(
        &self,
        request: Request<pb::ChangeDescriptorRequest>,
    ) -> Result<Response<pb::ChangeDescriptorResponse>, Status> {
        if let Route::At(leader) = self.door.to_leader(&request)? {
            let call = |to, request| async move { client(to).change_descriptor(request).await };
            return self.door.forward(leader, request, call).await;
        }
        note(&request, |subject| subject.object = Some("descriptor".to_owned()));
        let descriptor = Vec::from(request.into_inner().descriptor);
        let signed: SignedDescriptor =
            decode("signed descriptor", &descriptor).map_err(|error| refused(&error))?;
        let (cluster, next) = (self.door.cluster(), signed.clone());
        let checked = self.checked(move |view| {
            let former = in_force(view)?;
            let wanted: Descriptor =
                decode("descriptor", &next.bytes).map_err(|error| refused(&error))?;
            if wanted == former {
                return Ok(Checked::InForce);
            }
            next.verify_next(&cluster, &former).map_err(|error| refused(&error))?;
            keeps_holders(view, &former, &wanted)?;
            keeps_layouts(view, &cluster, &wanted)?;
            Ok(Checked::Next)
        });
        let op = SystemOp::NextDescriptor { descriptor };
        let revision = self.change(checked.await?, op, move |view| {
            let wanted: Descriptor =
                decode("descriptor", &signed.bytes).map_err(|error| refused(&error))?;
            Ok(in_force(view)? == wanted)
        });
        Ok(Response::new(pb::ChangeDescriptorResponse { revision: revision.await? }))
    }

    async fn change_layout(
        &self,
        request: Request<pb::ChangeLayoutRequest>,
    ) -> Result<Response<pb::ChangeLayoutResponse>, Status> {
        if let Route::At(leader) = self.door.to_leader(&request)? {
            let call = |to, request| async move { client(to).change_layout(request).await };
            return self.door.forward(leader, request, call).await;
        }
        note(&request, |subject| subject.object = Some("layout".to_owned()));
        let layout = Vec::from(request.into_inner().layout);
        let (cluster, signed) = (self.door.cluster(), layout.clone());
        let checked = self.checked(move |view| {
            let descriptor = in_force(view)?;
            let next = Layout::verify(&signed, &cluster, &descriptor.administrators)
                .map_err(|error| refused(&error))?;
            let layouts = layouts(view)?;
            if *layouts.in_force() == next {
                return Ok(Checked::InForce);
            }
            let follows = layouts.in_force().version().checked_add(1) == Some(next.version())
                && layouts.in_force().partition_bits() == next.partition_bits();
            if !follows {
                let text = format!(
                    "version {} of the layout is in force, with {} partition bits: plan again",
                    layouts.in_force().version(),
                    layouts.in_force().partition_bits()
                );
                return Err(status(Code::FailedPrecondition, "NOT_NEXT", &text, &[]));
            }
            if next.nodes().iter().any(|node| descriptor.node_key(*node).is_none()) {
                let text = "the layout names a storage node that the descriptor does not";
                return Err(status(Code::FailedPrecondition, "NOT_IN_DESCRIPTOR", text, &[]));
            }
            if layouts.former().len() >= FORMER_LAYOUTS_MAX {
                let text = "too many layouts wait for their nodes to prove their shares; see `coffer \
                            repair status`";
                return Err(status(Code::FailedPrecondition, "LAYOUTS_PENDING", text, &[]));
            }
            Ok(Checked::Next)
        });
        let op = SystemOp::NextLayout { layout: layout.clone() };
        let revision = self.change(checked.await?, op, move |view| {
            Ok(layouts(view)?.signed.first() == Some(&layout))
        });
        Ok(Response::new(pb::ChangeLayoutResponse { revision: revision.await? }))
    }

    async fn give_order(
        &self,
        request: Request<pb::GiveOrderRequest>,
    ) -> Result<Response<pb::GiveOrderResponse>, Status> {
        if let Route::At(leader) = self.door.to_leader(&request)? {
            let call = |to, request| async move { client(to).give_order(request).await };
            return self.door.forward(leader, request, call).await;
        }
        note(&request, |subject| subject.object = Some("order".to_owned()));
        let pb::GiveOrderRequest { order, signatures } = request.into_inner();
        if order.len() > ORDER_BYTES_MAX || signatures.len() > SIGNATURES_MAX {
            return Err(invalid(
                "ORDER_TOO_LARGE",
                "an order is a few bytes, with a few signatures",
            ));
        }
        let order = Vec::from(order);
        let decoded: Order = decode("order", &order).map_err(|error| refused(&error))?;
        let signatures =
            signatures.iter().map(signature).collect::<Option<Vec<(PublicKey, Signature)>>>();
        let signatures = signatures
            .ok_or_else(|| invalid("SIGNATURE_INVALID", "a key has 32 bytes and a signature 64"))?;
        let number = decoded.number;
        let (cluster, bytes, by) = (self.door.cluster(), order.clone(), signatures.clone());
        let checked = self.checked(move |view| {
            if !in_force(view)?.approves(Domain::Order, &cluster, &bytes, &by) {
                let text = "the order is not signed by enough administrators of the cluster";
                return Err(status(Code::PermissionDenied, "NOT_AN_ADMINISTRATOR", text, &[]));
            }
            let last = query::policy(view).map_err(store_failed)?.order_number;
            if last.checked_add(1) != Some(number) {
                let text = format!("the last order has number {last}: sign it with the next one");
                return Err(status(Code::FailedPrecondition, "NOT_NEXT", &text, &[]));
            }
            Ok(Checked::Next)
        });
        let op = SystemOp::Order { order, signatures };
        let revision = self.change(checked.await?, op, move |view| {
            Ok(query::policy(view).map_err(store_failed)?.order_number >= number)
        });
        Ok(Response::new(pb::GiveOrderResponse { revision: revision.await? }))
    }

    async fn find_home(
        &self,
        request: Request<pb::FindHomeRequest>,
    ) -> Result<Response<pb::FindHomeResponse>, Status> {
        self.door.here()?;
        let name: UserName = request
            .get_ref()
            .name
            .parse()
            .map_err(|error: NameError| invalid("NAME_INVALID", &error.to_string()))?;
        let confirmed = self.reads.view().await.map_err(|error| self.door.read_refused(error))?;
        let answer = reading(move || {
            let view = &confirmed.view;
            let text = "there is no user of this name";
            let home = query::home_of(view, &name)
                .map_err(store_failed)?
                .ok_or_else(|| status(Code::NotFound, "USER_UNKNOWN", text, &[]))?;
            let used = query::usage(view, &home).map_err(store_failed)?;
            Ok(pb::FindHomeResponse {
                home: home.as_bytes().to_vec().into(),
                used_bytes: used.bytes,
                quota_bytes: query::quota(view, &home).map_err(store_failed)?,
                used_inodes: used.inodes,
                used_rows: used.rows,
            })
        });
        Ok(Response::new(answer.await?))
    }
}

impl Admin {
    async fn checked(
        &self,
        check: impl FnOnce(&View) -> Result<Checked, Status> + Send + 'static,
    ) -> Result<Checked, Status> {
        let confirmed = self.reads.view().await.map_err(|error| self.door.read_refused(error))?;
        reading(move || check(&confirmed.view)).await
    }

    /// Proposes what was checked, and says at which revision it was there. Another change may have come
    /// in between; then nothing of this one counts.
    async fn change(
        &self,
        checked: Checked,
        op: SystemOp,
        is_there: impl FnOnce(&View) -> Result<bool, Status> + Send + 'static,
    ) -> Result<u64, Status> {
        if matches!(checked, Checked::Next) {
            let proposed = self.proposer.propose(Command::System(op)).await;
            proposed.map_err(|error| self.door.propose_refused(error))?;
        }
        let confirmed = self.reads.view().await.map_err(|error| self.door.read_refused(error))?;
        reading(move || {
            if !is_there(&confirmed.view)? {
                let text = "something else was changed in the meantime, or not all members understand \
                            this change yet: look again, and sign anew";
                return Err(status(Code::Aborted, "NOT_APPLIED", text, &[]));
            }
            query::revision(&confirmed.view).map_err(store_failed)
        })
        .await
    }
}

fn signature(signature: &pb::AdministratorSignature) -> Option<(PublicKey, Signature)> {
    let key = <[u8; 32]>::try_from(signature.key.as_ref()).ok()?;
    let signature = <[u8; 64]>::try_from(signature.signature.as_ref()).ok()?;
    Some((PublicKey::from_bytes(key), Signature::from_bytes(signature)))
}

fn in_force(view: &View) -> Result<Descriptor, Status> {
    latest_descriptor(view).map_err(store_failed)?.ok_or_else(no_cluster)
}

/// A storage node that some layout still gives chunks to has to stay, or they would be out of reach. One that
/// was replaced has gone already.
fn keeps_holders(view: &View, former: &Descriptor, next: &Descriptor) -> Result<(), Status> {
    let layouts = layouts(view)?;
    let gone = layouts
        .layouts
        .iter()
        .flat_map(Layout::holders_all)
        .find(|node| former.node_key(*node).is_some() && next.node_key(*node).is_none());
    match gone {
        None => Ok(()),
        Some(node) => {
            let text = format!(
                "storage node {node} still has chunks by a layout that is not retired: drain it, and \
                 wait until its copies are elsewhere"
            );
            Err(status(Code::FailedPrecondition, "NODE_IN_USE", &text, &[]))
        }
    }
}

/// The layouts must stay signed by administrators of the descriptor in force: that is how everybody checks
/// them.
fn keeps_layouts(view: &View, cluster: &ClusterId, next: &Descriptor) -> Result<(), Status> {
    let signed = layouts(view)?.signed;
    let is_theirs = |signed: &Vec<u8>| Layout::is_signed_by(signed, cluster, &next.administrators);
    if signed.iter().all(is_theirs) {
        return Ok(());
    }
    let text = "a layout that is not retired is signed by an administrator this descriptor leaves out: have \
                one that stays sign the next layout first, and wait until it is proven";
    Err(status(Code::FailedPrecondition, "LAYOUT_UNSIGNED", text, &[]))
}

fn refused(error: &dyn std::error::Error) -> Status {
    status(Code::InvalidArgument, "RECORD_REFUSED", &error.to_string(), &[])
}

fn no_cluster() -> Status {
    store_failed(TableError("there is no descriptor or layout yet".to_owned()))
}
