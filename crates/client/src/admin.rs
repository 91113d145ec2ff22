//! Administration: the signed records that change a cluster. What is signed here is checked by every
//! member, and by everybody who follows the cluster from its first descriptor on.
//!
//! A descriptor or an order begins as a proposal, is signed by as many administrators as the quorum says,
//! each on a machine of their own, and is then submitted. Where one signature is enough, the same three
//! steps follow each other at once.

use coffer_model::descriptor::{Descriptor, Followed};
use coffer_model::encoding::encode;
use coffer_model::id::{ClusterId, InodeId};
use coffer_model::layout::Layout;
use coffer_model::name::UserName;
use coffer_model::order::{Decision, Order};
use coffer_model::proposal::{Present, Proposal, Proposed, Review, Signed};
use coffer_model::signing::{PublicKey, Signer};
use coffer_proto::v1 as pb;

use crate::contact::{Endpoint, Pinned, StateDir, later};
use crate::error::ClientError;
use crate::transport::{GatewayTransport, Transport};
use crate::usage::HomeUsage;

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

    /// Proposes the descriptor that `change` makes of the one in force.
    pub fn propose_descriptor(&self, change: impl FnOnce(&mut Descriptor)) -> Proposal {
        let mut next = self.descriptor().clone();
        next.number = next.number.saturating_add(1);
        next.former = Some(self.descriptor().hash());
        change(&mut next);
        Proposal::of_descriptor(self.cluster, &next)
    }

    /// Proposes the next order; `user` says whose home it names.
    pub async fn propose_order(
        &self,
        what: Decision,
        user: Option<&UserName>,
    ) -> Result<Proposal, ClientError> {
        let number = self.status().await?.order_number.saturating_add(1);
        Ok(Proposal::of_order(self.cluster, &Order { number, what }, user))
    }

    /// Compares a proposal with what the cluster has now. That a user's home is the one an order names is
    /// by the word of the server, as with [`Self::home_of`].
    pub async fn review(&self, proposal: &Proposal) -> Result<Review, ClientError> {
        let review = proposal.review(self.present().await?.borrowed())?;
        self.check_home(&review).await?;
        Ok(review)
    }

    /// Adds a signature to a proposal, and says what it comes to with it.
    pub async fn sign(
        &self,
        proposal: &mut Proposal,
        administrator: &dyn Signer,
    ) -> Result<Review, ClientError> {
        let review = proposal.sign(self.present().await?.borrowed(), administrator)?;
        self.check_home(&review).await?;
        Ok(review)
    }

    /// Has a proposal carried out that enough administrators have signed.
    pub async fn submit(&mut self, proposal: &Proposal) -> Result<(), ClientError> {
        let signed = proposal.enough(self.present().await?.borrowed())?;
        let refused = |status| ClientError::of_status(&status);
        match signed {
            Signed::Descriptor(descriptor) => {
                let descriptor = encode(&descriptor).into();
                let request = pb::ChangeDescriptorRequest { descriptor };
                self.transport.change_descriptor(request).await.map_err(refused)?;
                self.follow().await
            }
            Signed::Order { bytes, signatures } => {
                let signatures = signatures
                    .iter()
                    .map(|(key, signature)| pb::AdministratorSignature {
                        key: key.as_bytes().to_vec().into(),
                        signature: signature.as_bytes().to_vec().into(),
                    })
                    .collect();
                let request = pb::GiveOrderRequest { order: bytes.into(), signatures };
                self.transport.give_order(request).await.map_err(refused)?;
                Ok(())
            }
        }
    }

    /// Takes up the descriptors that came since.
    async fn follow(&mut self) -> Result<(), ClientError> {
        let known = self.descriptor().clone();
        let (_, more) = later(&self.transport, &self.cluster, known).await?;
        self.followed.follow(&self.cluster, &more)?;
        self.successors.extend(more);
        Ok(())
    }

    async fn present(&self) -> Result<Now, ClientError> {
        let (descriptor, _) =
            later(&self.transport, &self.cluster, self.descriptor().clone()).await?;
        let order_number = self.status().await?.order_number;
        Ok(Now { cluster: self.cluster, descriptor, order_number })
    }

    async fn check_home(&self, review: &Review) -> Result<(), ClientError> {
        let Proposed::Order { order, user: Some(user) } = &review.proposed else { return Ok(()) };
        let Decision::Quota { home: Some(named), .. } = order.what else { return Ok(()) };
        if self.home_of(user).await? == named {
            return Ok(());
        }
        let what = format!("the home this order names is not that of {user}; do not sign it");
        Err(ClientError::Invalid { what })
    }

    /// Signs a layout, and puts it in force. A layout takes one administrator, whatever the quorum.
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
        Ok(self.home(name).await?.home)
    }

    /// A user's home and what it uses, by the word of the server.
    pub async fn home(&self, name: &UserName) -> Result<HomeUsage, ClientError> {
        HomeUsage::ask(&self.transport, name).await
    }

    /// Whether these administrators have signed all layouts by which nodes hold chunks. They have to, for
    /// that is how everybody checks them.
    pub async fn layouts_are_signed_by(
        &self,
        administrators: &[PublicKey],
    ) -> Result<bool, ClientError> {
        let request = pb::GetDescriptorRequest { known_number: self.descriptor().number };
        let answer = self.transport.get_descriptor(request).await;
        let answer = answer.map_err(|status| ClientError::of_status(&status))?;
        let is_theirs = |signed: &[u8]| Layout::is_signed_by(signed, &self.cluster, administrators);
        let mut former = answer.former_layouts.iter();
        Ok(is_theirs(&answer.layout) && former.all(|signed| is_theirs(signed)))
    }
}

/// What the cluster has at the moment.
struct Now {
    cluster: ClusterId,
    descriptor: Descriptor,
    order_number: u64,
}

impl Now {
    fn borrowed(&self) -> Present<'_> {
        Present {
            cluster: self.cluster,
            descriptor: &self.descriptor,
            order_number: self.order_number,
        }
    }
}
