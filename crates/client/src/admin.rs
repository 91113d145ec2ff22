//! Administration: the signed records that change a cluster. What is signed here is checked by every
//! member, and by everybody who follows the cluster from its first descriptor on.

use coffer_model::descriptor::{Descriptor, Followed, SignedDescriptor};
use coffer_model::encoding::encode;
use coffer_model::id::{ClusterId, InodeId};
use coffer_model::layout::Layout;
use coffer_model::name::UserName;
use coffer_model::order::{Decision, Order};
use coffer_model::signing::{Domain, Signer};
use coffer_proto::v1 as pb;

use crate::contact::{Endpoint, Pinned, StateDir, later};
use crate::error::ClientError;
use crate::transport::{GatewayTransport, Transport};

/// A cluster, as an administrator sees it.
pub struct Administration {
    cluster: ClusterId,
    followed: Followed,
    successors: Vec<Vec<u8>>,
    transport: GatewayTransport,
}

/// The layouts by which nodes hold chunks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layouts {
    /// The one in force.
    pub current: Layout,
    /// Those before it that are not retired, newest first.
    pub former: Vec<Layout>,
}

impl Administration {
    /// Meets the cluster behind `endpoint`, as [`Pinned::meet`] does.
    pub async fn connect(endpoint: &Endpoint, state_dir: &StateDir) -> Result<Self, ClientError> {
        let pinned = Pinned::meet(endpoint, state_dir).await?;
        Ok(Self {
            cluster: pinned.cluster,
            followed: pinned.followed()?,
            transport: pinned.transport()?,
            successors: pinned.successors,
        })
    }

    /// The cluster's id.
    pub fn cluster(&self) -> ClusterId {
        self.cluster
    }

    /// The latest descriptor.
    pub fn descriptor(&self) -> &Descriptor {
        &self.followed.descriptor
    }

    /// The signed descriptors after the first: what a new process is given along with that.
    pub fn successors(&self) -> &[Vec<u8>] {
        &self.successors
    }

    /// The state of the cluster.
    pub async fn status(&self) -> Result<pb::GetStatusResponse, ClientError> {
        self.transport.get_status().await.map_err(|status| ClientError::of_status(&status))
    }

    /// The layouts, checked.
    pub async fn layouts(&self) -> Result<Layouts, ClientError> {
        let request = pb::GetDescriptorRequest { known_number: self.descriptor().number };
        let answer = self.transport.get_descriptor(request).await;
        let answer = answer.map_err(|status| ClientError::of_status(&status))?;
        let verify = |signed: &[u8]| {
            self.followed
                .verify_layout(signed, &self.cluster)
                .map_err(|error| ClientError::tampered(error.to_string()))
        };
        let former = answer.former_layouts.iter().map(|signed| verify(signed));
        Ok(Layouts { current: verify(&answer.layout)?, former: former.collect::<Result<_, _>>()? })
    }

    /// Signs the descriptor that `change` makes of the one in force, and puts it in force.
    pub async fn change_descriptor(
        &mut self,
        administrator: &dyn Signer,
        change: impl FnOnce(&mut Descriptor),
    ) -> Result<(), ClientError> {
        let mut next = self.descriptor().clone();
        next.number = next.number.saturating_add(1);
        next.former = Some(self.descriptor().hash());
        change(&mut next);
        let signed = SignedDescriptor::next(&self.cluster, &next, &[administrator]);
        signed.verify_next(&self.cluster, self.descriptor())?;
        let request = pb::ChangeDescriptorRequest { descriptor: encode(&signed).into() };
        self.transport
            .change_descriptor(request)
            .await
            .map_err(|status| ClientError::of_status(&status))?;
        let known = self.descriptor().clone();
        let (_, more) = later(&self.transport, &self.cluster, known).await?;
        self.followed.follow(&self.cluster, &more)?;
        self.successors.extend(more);
        Ok(())
    }

    /// Signs a layout, and puts it in force.
    pub async fn change_layout(
        &self,
        administrator: &impl Signer,
        layout: &Layout,
    ) -> Result<(), ClientError> {
        let layout = layout.sign(&self.cluster, administrator).into();
        let changed = self.transport.change_layout(pb::ChangeLayoutRequest { layout }).await;
        changed.map(|_| ()).map_err(|status| ClientError::of_status(&status))
    }

    /// The root of a user's home, by the word of the server; it only says whom an order is about.
    pub async fn home_of(&self, name: &UserName) -> Result<InodeId, ClientError> {
        let request = pb::FindHomeRequest { name: name.as_str().to_owned() };
        let answer = self.transport.find_home(request).await;
        let answer = answer.map_err(|status| ClientError::of_status(&status))?;
        InodeId::try_from(answer.home.as_ref())
            .map_err(|_| ClientError::tampered("a home's id that is none"))
    }

    /// Signs an order, and has it carried out.
    pub async fn order(
        &self,
        administrator: &dyn Signer,
        what: Decision,
    ) -> Result<(), ClientError> {
        let number = self.status().await?.order_number.saturating_add(1);
        let order = encode(&Order { number, what });
        let signature = administrator.sign(Domain::Order, &self.cluster, &order);
        let signature = pb::AdministratorSignature {
            key: administrator.public_key().as_bytes().to_vec().into(),
            signature: signature.as_bytes().to_vec().into(),
        };
        let request = pb::GiveOrderRequest { order: order.into(), signatures: vec![signature] };
        let given = self.transport.give_order(request).await;
        given.map(|_| ()).map_err(|status| ClientError::of_status(&status))
    }
}
