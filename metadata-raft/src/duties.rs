//! What a leader does for the group without being asked: it raises the version of the state machine once
//! every member understands the next one, and has what is past its retention purged, step by step.
//!
//! Nothing of this is remembered: a new leader finds in the state what is still to be done.

use std::time::Duration;

use coffer_metadata_core::state::CORE_VERSION_MAX;
use coffer_metadata_core::{Command, query};
use coffer_model::id::InodeId;
use coffer_model::log::SystemOp;
use coffer_proto::internal as pb;
use coffer_proto::internal::member_service_client::MemberServiceClient;
use coffer_service::call::contained;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::access::Door;
use crate::batch::Proposer;
use crate::reads::Reads;
use crate::threads::blocking;

/// How often a leader looks whether there is something to do.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// How long a member may take to say which versions it understands.
const ASK_TIMEOUT: Duration = Duration::from_secs(2);
/// Inodes that one look finds; each takes one or more steps.
const PURGED_AT_ONCE: usize = 64;
/// Steps between two looks, so that purging never takes more than a part of what the group can do.
const STEPS_MAX: usize = 256;

/// A leader's duties, on every member; they rest while another one leads.
#[derive(Clone)]
pub(crate) struct Duties {
    pub(crate) door: Door,
    pub(crate) reads: Reads,
    pub(crate) proposer: Proposer,
}

impl Duties {
    /// Runs until it is told to stop.
    pub(crate) async fn watch(self, stop: CancellationToken) {
        let mut look = tokio::time::interval(LOOK_EVERY);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = look.tick() => {}
            }
            if !self.door.leadership.is_mine() {
                continue;
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.look() => {}
            }
        }
    }

    async fn look(&self) {
        let view = self.reads.local();
        let found = blocking(move || {
            Ok::<_, coffer_metadata_core::TableError>((
                query::core_version(&view)?,
                query::purgeable(&view, PURGED_AT_ONCE)?,
                query::next_purge(&view)?,
            ))
        });
        let (version, purgeable, next_purge) = match found.await {
            Ok(Ok(found)) => found,
            Ok(Err(error)) => {
                tracing::error!(%error, "the metadata store could not be read");
                return;
            }
            Err(_) => return,
        };
        // Before there is a cluster there is no version.
        if (1..CORE_VERSION_MAX).contains(&version) {
            self.raise(version + 1).await;
        }
        let clock = &self.door.group.clock;
        if purgeable.is_empty() && next_purge.is_some_and(|next| next.unix_ms() <= clock.unix_ms())
        {
            // Log time stands still where nobody works.
            self.proposer.nudge_tick();
        }
        self.purge(purgeable).await;
    }

    /// Raises the version of the state machine, if every member understands it.
    pub(crate) async fn raise(&self, version: u32) {
        for member in self.door.group.others() {
            let Some(channel) = self.door.peers.calls(member.id) else { return };
            let mut client = MemberServiceClient::new(channel);
            let answer = contained(client.get_core_version(pb::GetCoreVersionRequest {}));
            match timeout(ASK_TIMEOUT, answer).await {
                Ok(Ok(answer)) if answer.get_ref().version_max >= version => {}
                _ => return,
            }
        }
        let op = SystemOp::CoreVersion { version };
        if self.proposer.propose(Command::System(op)).await.is_ok() {
            tracing::info!(version, "a later version of the state machine is in force");
        }
    }

    /// Takes steps of purging, each inode until it is gone or the time has come to look again.
    async fn purge(&self, mut due: Vec<InodeId>) {
        let mut steps = 0;
        while !due.is_empty() && steps < STEPS_MAX {
            for inode in &due {
                let op = SystemOp::Purge { inode: *inode };
                if self.proposer.propose(Command::System(op)).await.is_err() {
                    return;
                }
                steps += 1;
            }
            let view = self.reads.local();
            let found = blocking(move || query::purgeable(&view, PURGED_AT_ONCE));
            let Ok(Ok(left)) = found.await else { return };
            due = left;
        }
        if steps > 0 {
            tracing::debug!(steps, "deleted files are purged");
        }
    }
}
