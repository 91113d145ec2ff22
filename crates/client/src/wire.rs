//! What every part of a session shares: the way to the cluster, the session's credentials, and what is
//! known so far about time, revisions and authors.

use std::sync::{Arc, PoisonError, RwLock};

use coffer_model::descriptor::Descriptor;
use coffer_model::id::{ClusterId, InodeId, PrincipalId};

use crate::clock::LogClock;
use crate::contact;
use crate::error::ClientError;
use crate::seen::Seen;
use crate::transport::{Credentials, Transport};
use crate::verify::Verifier;

/// The shared half of a session.
pub(crate) struct Wire {
    pub(crate) transport: Arc<dyn Transport>,
    pub(crate) cluster: ClusterId,
    pub(crate) descriptor: LiveDescriptor,
    pub(crate) principal: PrincipalId,
    pub(crate) home: InodeId,
    pub(crate) credentials: Credentials,
    pub(crate) clock: LogClock,
    pub(crate) seen: Seen,
    pub(crate) verifier: Verifier,
}

impl Wire {
    /// Whether there is a later descriptor than the one of this number: one that another call has learnt of
    /// meanwhile, or one that is asked for now.
    pub(crate) async fn knows_later(&self, number: u64) -> Result<bool, ClientError> {
        let known = self.descriptor.get();
        if known.number > number {
            return Ok(true);
        }
        let (latest, _) =
            contact::later(&*self.transport, &self.cluster, Descriptor::clone(&known)).await?;
        self.descriptor.learn(latest);
        Ok(self.descriptor.get().number > number)
    }
}

/// The latest descriptor a session knows.
pub(crate) struct LiveDescriptor(RwLock<Arc<Descriptor>>);

impl LiveDescriptor {
    pub(crate) fn new(descriptor: Descriptor) -> Self {
        Self(RwLock::new(Arc::new(descriptor)))
    }

    pub(crate) fn get(&self) -> Arc<Descriptor> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes a verified one, if it is later.
    pub(crate) fn learn(&self, latest: Descriptor) {
        let mut known = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if latest.number > known.number {
            *known = Arc::new(latest);
        }
    }
}
