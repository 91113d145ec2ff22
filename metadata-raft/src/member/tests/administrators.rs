//! What members refuse of administrators' records before it costs a place in the log.

use coffer_metadata_core::layout;
use coffer_model::id::NodeId;
use coffer_model::layout::Layout;
use coffer_model::order::{Decision, Order};
use coffer_model::signing::Signer;

use super::*;

type Answer = Result<u64, Status>;

/// A group with somebody who speaks to its administrators' service.
struct Office {
    group: TestGroup,
    client: AdminServiceClient<coffer_service::channel::Channel>,
}

impl Office {
    async fn opened() -> Self {
        let group = TestGroup::running(1).await;
        group.leader().await;
        super::versions::settled(&group, 0).await;
        let client = AdminServiceClient::new(group.channel(0));
        Self { group, client }
    }

    fn layout(&self) -> Layout {
        let signed = std::fs::read(self.group.dir.path().join("layout")).unwrap();
        let administrators = &self.group.descriptor.administrators;
        Layout::verify(&signed, &self.group.id, administrators).unwrap()
    }

    /// The next descriptor with a change, signed by the administrator of the first.
    async fn descriptor(&self, change: impl FnOnce(&mut Descriptor)) -> Answer {
        let former = &self.group.latest;
        let mut next = former.clone();
        next.number += 1;
        next.former = Some(former.hash());
        change(&mut next);
        let signed = SignedDescriptor::next(&self.group.id, &next, &[&Key::of("admin")]);
        let request = pb::ChangeDescriptorRequest { descriptor: encode(&signed).into() };
        Ok(self.client.clone().change_descriptor(request).await?.into_inner().revision)
    }

    async fn layout_change(&self, layout: &Layout, by: &Key) -> Answer {
        let request = pb::ChangeLayoutRequest { layout: layout.sign(&self.group.id, by).into() };
        Ok(self.client.clone().change_layout(request).await?.into_inner().revision)
    }

    async fn order(&self, number: u64, by: &[&dyn Signer]) -> Answer {
        let order = Order { number, what: Decision::Retention { ms: 60_000 } };
        let (order, signatures) = order.sign(&self.group.id, by);
        let signature = |(key, signature): (_, coffer_model::signing::Signature)| {
            let key: coffer_model::signing::PublicKey = key;
            pb::AdministratorSignature {
                key: key.as_bytes().to_vec().into(),
                signature: signature.as_bytes().to_vec().into(),
            }
        };
        let signatures = signatures.into_iter().map(signature).collect();
        let request = pb::GiveOrderRequest { order: order.into(), signatures };
        Ok(self.client.clone().give_order(request).await?.into_inner().revision)
    }

    async fn revision(&self) -> u64 {
        let status = ClusterServiceClient::new(self.group.channel(0))
            .get_status(pb::GetStatusRequest {})
            .await;
        status.unwrap().into_inner().revision
    }

    /// The answer is this refusal, and nothing has gone into the log.
    async fn check_refused(&self, before: u64, answer: Answer, code: Code, expected: &str) {
        let refused = answer.unwrap_err();
        assert_eq!((refused.code(), reason(&refused).as_str()), (code, expected), "{refused}");
        assert!(!refused.message().is_empty());
        assert_eq!(self.revision().await, before, "{expected} went into the log");
    }
}

/// Goal: a descriptor that would put chunks or layouts out of reach is refused. Method: one leaves out a node
/// that has a share, one the administrator who signed the layout; one that leaves both alone is taken.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_descriptor_that_would_lose_something_is_refused() {
    let mut office = Office::opened().await;
    let before = office.revision().await;
    let answer = office.descriptor(|next| drop(next.nodes.remove(0))).await;
    office.check_refused(before, answer, Code::FailedPrecondition, "NODE_IN_USE").await;
    let successor = Key::of("another administrator").public_key();
    let answer = office.descriptor(|next| next.administrators = vec![successor]).await;
    office.check_refused(before, answer, Code::FailedPrecondition, "LAYOUT_UNSIGNED").await;
    let joined = office.descriptor(|next| next.administrators.push(successor)).await.unwrap();
    assert_eq!(joined, before + 1);
    office.group.stop_all().await;
}

/// Goal: a layout is refused that does not follow the one in force, or gives chunks to a node nobody has named.
/// Method: one of a version too many, one of other partitions, one with a stranger among its nodes, one a
/// stranger signed; the next one is taken, and again when it is repeated, and then does not follow any more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_layout_that_does_not_follow_is_refused() {
    let mut office = Office::opened().await;
    let before = office.revision().await;
    let (admin, first) = (Key::of("admin"), office.layout());
    let nodes = office.group.descriptor.nodes.clone();
    let next = layout::next(&first, &nodes).unwrap();
    let after_next = layout::next(&next, &nodes).unwrap();
    let answer = office.layout_change(&after_next, &admin).await;
    office.check_refused(before, answer, Code::FailedPrecondition, "NOT_NEXT").await;

    let mut strangers = nodes.clone();
    strangers[0].id = NodeId::from_bytes([9; 16]);
    let strange = layout::next(&first, &strangers).unwrap();
    let answer = office.layout_change(&strange, &admin).await;
    office.check_refused(before, answer, Code::FailedPrecondition, "NOT_IN_DESCRIPTOR").await;
    let answer = office.layout_change(&next, &Key::of("mallory")).await;
    office.check_refused(before, answer, Code::InvalidArgument, "RECORD_REFUSED").await;

    let taken = office.layout_change(&next, &admin).await.unwrap();
    assert_eq!(taken, before + 1);
    assert_eq!(office.layout_change(&next, &admin).await.unwrap(), taken);
    let answer = office.layout_change(&first, &admin).await;
    office.check_refused(taken, answer, Code::FailedPrecondition, "NOT_NEXT").await;
    office.group.stop_all().await;
}

/// Goal: an order counts once, in its place, by administrators only. Method: one by nobody, by a stranger, by
/// an administrator twice under a number too many, and of one that was given already.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_out_of_place_is_refused() {
    let mut office = Office::opened().await;
    let before = office.revision().await;
    let (admin, mallory) = (Key::of("admin"), Key::of("mallory"));
    for by in [&[] as &[&dyn Signer], &[&mallory]] {
        let answer = office.order(1, by).await;
        office.check_refused(before, answer, Code::PermissionDenied, "NOT_AN_ADMINISTRATOR").await;
    }
    for number in [0, 2, u64::MAX] {
        let answer = office.order(number, &[&admin]).await;
        office.check_refused(before, answer, Code::FailedPrecondition, "NOT_NEXT").await;
    }
    let taken = office.order(1, &[&admin]).await.unwrap();
    assert_eq!(taken, before + 1);
    let answer = office.order(1, &[&admin]).await;
    office.check_refused(taken, answer, Code::FailedPrecondition, "NOT_NEXT").await;
    office.order(2, &[&mallory, &admin]).await.unwrap();
    office.group.stop_all().await;
}
