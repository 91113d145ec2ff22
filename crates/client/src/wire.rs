//! What every part of a session shares: the way to the cluster, the session's credentials, and what is
//! known so far about time, revisions and authors.

use std::sync::Arc;

use coffer_model::descriptor::Descriptor;
use coffer_model::id::{ClusterId, InodeId, PrincipalId};

use crate::clock::LogClock;
use crate::seen::Seen;
use crate::transport::{Credentials, Transport};
use crate::verify::Verifier;

/// The shared half of a session.
pub(crate) struct Wire {
    pub(crate) transport: Arc<dyn Transport>,
    pub(crate) cluster: ClusterId,
    pub(crate) descriptor: Descriptor,
    pub(crate) principal: PrincipalId,
    pub(crate) home: InodeId,
    pub(crate) credentials: Credentials,
    pub(crate) clock: LogClock,
    pub(crate) seen: Seen,
    pub(crate) verifier: Verifier,
}
