//! Orders: what administrators decide for the whole cluster beyond who belongs to it. They count up, so
//! that an old one cannot be given again.

use borsh::{BorshDeserialize, BorshSerialize};

use crate::encoding::encode;
use crate::hash::Hash;
use crate::id::{ClusterId, InodeId};
use crate::signing::{Domain, PublicKey, Signature, Signer};
use crate::time::LogTime;

/// One order.
#[derive(Clone, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
pub struct Order {
    /// 1 for the first, one more for each next.
    pub number: u64,
    /// What is ordered.
    pub what: Decision,
}

impl Order {
    /// Signs the order as administrators: the bytes and signatures of a
    /// [`crate::log::SystemOp::Order`].
    pub fn sign(
        &self,
        cluster: &ClusterId,
        administrators: &[&dyn Signer],
    ) -> (Vec<u8>, Vec<(PublicKey, Signature)>) {
        let bytes = encode(self);
        let sign =
            |admin: &&dyn Signer| (admin.public_key(), admin.sign(Domain::Order, cluster, &bytes));
        let signatures = administrators.iter().map(sign).collect();
        (bytes, signatures)
    }
}

/// What an order says.
#[derive(Clone, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
pub enum Decision {
    /// What was deleted longer ago than this is removed for good.
    Retention {
        /// Milliseconds of log time.
        ms: u64,
    },
    /// How many bytes a home may use.
    Quota {
        /// The home's root; none for all homes that have no quota of their own.
        home: Option<InodeId>,
        /// The bytes; none lifts the limit, or takes the home's own one away.
        bytes: Option<u64>,
    },
    /// Somebody may register.
    Invite {
        /// The payload hash of the invite's secret, which the newcomer sends along.
        invite: Hash,
        /// Until when.
        expires: LogTime,
    },
}

/// The shortest secret of an invite.
pub const INVITE_SECRET_BYTES_MIN: usize = 16;
/// The longest secret of an invite.
pub const INVITE_SECRET_BYTES_MAX: usize = 64;
/// What retention is where no order has said anything: 30 days.
pub const RETENTION_MS: u64 = 30 * 24 * 60 * 60 * 1000;
