//! From the descriptor to the Raft group. The log brings a later descriptor; every member then knows who
//! belongs and where they are, and the leader makes the Raft group the descriptor's members: who is new
//! learns first, and votes once it has caught up; who is not named any more leaves in the same step.
//!
//! A step that fails is taken again at the next look, by whoever leads then, so nothing here has to end
//! well the first time.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use coffer_model::descriptor::Descriptor;
use coffer_proto::v1 as pb;
use coffer_proto::v1::cluster_service_client::ClusterServiceClient;
use coffer_service::call::contained;
use openraft::{ChangeMembers, EmptyNode};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use crate::access::Door;
use crate::group::latest_descriptor;
use crate::raft::Membership;
use crate::reads::Reads;
use crate::threads::blocking;

/// How often the descriptor is looked at. Nothing waits for it but what an administrator does by hand.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// How many entries a learner may lack when it becomes a voter: what it fetches in a moment.
const BEHIND_MAX: u64 = 200;
/// How long one step of changing the group may take.
const STEP_TIMEOUT: Duration = Duration::from_secs(10);
/// A member that hears of no leader for this long asks the others whether it still belongs.
const ALONE_MAX: Duration = Duration::from_secs(3);
/// How long one of them may take to answer.
const ASK_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a member that is not named any more waits to hear that the group goes on without it. Who was
/// away while that happened never does.
const FAREWELL: Duration = Duration::from_secs(8);

/// Keeps the group of one member what the descriptor says.
pub(crate) struct Following {
    pub(crate) door: Door,
    pub(crate) reads: Reads,
    /// Cancelled when this member does not belong any more.
    pub(crate) dismissed: CancellationToken,
}

impl Following {
    /// Runs until it is told to stop, or Raft has, or this member does not belong any more.
    pub(crate) async fn watch(self, stop: CancellationToken) {
        let mut look = tokio::time::interval(LOOK_EVERY);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let (mut looked_at, mut unnamed_since, mut alone_since) = (None, None, None);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = look.tick() => {}
            }
            let metrics = self.door.leadership.raft.metrics().borrow().clone();
            if metrics.running_state.is_err() {
                return;
            }
            let mut latest =
                if looked_at == metrics.last_applied { None } else { self.latest().await };
            looked_at = metrics.last_applied;
            // A leader that nobody answers any more goes on taking itself for one.
            let is_heard = match metrics.current_leader {
                Some(leader) if leader == self.door.group.me.as_u64() => {
                    metrics.millis_since_quorum_ack.is_some() && self.door.leadership.is_mine()
                }
                leader => leader.is_some(),
            };
            if is_heard {
                alone_since = None;
            } else if alone_since.get_or_insert_with(Instant::now).elapsed() > ALONE_MAX {
                alone_since = None;
                latest = self.ask_around().await.or(latest);
            }
            let membership = metrics.membership_config.membership();
            let in_raft: BTreeSet<u64> = membership.nodes().map(|(id, _)| *id).collect();
            let group = &self.door.group;
            if group.follow(latest, &in_raft) {
                self.door.peers.follow(group);
                let descriptor = group.descriptor();
                tracing::info!(number = descriptor.number, "another descriptor is in force");
            }
            let descriptor = group.descriptor();
            if descriptor.member_key(group.me).is_none() {
                let since = *unnamed_since.get_or_insert_with(Instant::now);
                if !in_raft.contains(&group.me.as_u64()) || since.elapsed() > FAREWELL {
                    self.dismissed.cancel();
                    return;
                }
            }
            if self.door.leadership.is_mine() {
                let step = step(&descriptor, membership, &self.progress());
                if let Some(step) = step {
                    tokio::select! {
                        () = stop.cancelled() => return,
                        () = self.take(step) => {}
                    }
                }
            }
        }
    }

    /// A later descriptor by the word of the other members, if one has any.
    async fn ask_around(&self) -> Option<Descriptor> {
        let known = self.door.group.descriptor();
        for member in self.door.group.others() {
            let Some(channel) = self.door.peers.calls(member.id) else { continue };
            let request = pb::GetDescriptorRequest { known_number: known.number };
            let mut client = ClusterServiceClient::new(channel);
            let answer = contained(client.get_descriptor(request));
            let Ok(Ok(answer)) = timeout(ASK_TIMEOUT, answer).await else { continue };
            let latest = Descriptor::clone(&known)
                .follow(&self.door.cluster(), &answer.into_inner().successors);
            match latest {
                Ok(latest) if latest.number > known.number => return Some(latest),
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(member = %member.id, %error, "a member told of a bad descriptor");
                }
            }
        }
        None
    }

    async fn latest(&self) -> Option<Descriptor> {
        let view = self.reads.local();
        let latest = blocking(move || latest_descriptor(&view)).await;
        match latest {
            Ok(Ok(latest)) => latest,
            Ok(Err(error)) => {
                tracing::error!(%error, "the descriptor in the store cannot be read");
                None
            }
            Err(_) => None,
        }
    }

    /// How many entries each of the others lacks, as the leader knows.
    fn progress(&self) -> BTreeMap<u64, u64> {
        let metrics = self.door.leadership.raft.metrics().borrow().clone();
        let last = metrics.last_log_index.unwrap_or(0);
        let replication = metrics.replication.unwrap_or_default();
        let matched =
            replication.into_iter().filter_map(|(id, matched)| Some((id, matched?.index)));
        matched.map(|(id, index)| (id, last.saturating_sub(index))).collect()
    }

    async fn take(&self, step: Step) {
        let raft = &self.door.leadership.raft;
        tracing::info!(?step, "the Raft group is changed");
        let change: ChangeMembers<u64, EmptyNode> = match step {
            Step::Learn(ids) => {
                ChangeMembers::AddNodes(ids.into_iter().map(|id| (id, EmptyNode {})).collect())
            }
            Step::Vote(ids) => ChangeMembers::ReplaceAllVoters(ids),
            Step::Forget(ids) => ChangeMembers::RemoveNodes(ids),
        };
        match timeout(STEP_TIMEOUT, raft.change_membership(change, false)).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::info!(%error, "the Raft group could not be changed yet"),
            Err(_) => tracing::info!("changing the Raft group takes long"),
        }
    }
}

/// What is done to the Raft group next.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Step {
    /// These get the log, and do not count yet.
    Learn(BTreeSet<u64>),
    /// These, and only these, are the voters.
    Vote(BTreeSet<u64>),
    /// These learners are not named any more.
    Forget(BTreeSet<u64>),
}

/// The next step from the Raft group there is to the members of the descriptor; none if it is them, or if
/// a new one has to catch up first.
fn step(
    descriptor: &Descriptor,
    membership: &Membership,
    behind: &BTreeMap<u64, u64>,
) -> Option<Step> {
    let wanted: BTreeSet<u64> = descriptor.members.iter().map(|it| it.id.as_u64()).collect();
    let known: BTreeSet<u64> = membership.nodes().map(|(id, _)| *id).collect();
    let voters: BTreeSet<u64> = membership.voter_ids().collect();
    let new: BTreeSet<u64> = wanted.difference(&known).copied().collect();
    if !new.is_empty() {
        return Some(Step::Learn(new));
    }
    let is_theirs = membership.get_joint_config().len() == 1 && voters == wanted;
    if !is_theirs {
        // A new one that never comes is an administrator's to take back, in a descriptor without it.
        let ready = |id: &&u64| {
            voters.contains(*id) || behind.get(*id).is_some_and(|behind| *behind <= BEHIND_MAX)
        };
        return wanted.iter().all(|id| ready(&id)).then_some(Step::Vote(wanted));
    }
    let unnamed: BTreeSet<u64> = known.difference(&wanted).copied().collect();
    (!unnamed.is_empty()).then_some(Step::Forget(unnamed))
}

#[cfg(test)]
mod tests {
    use coffer_model::descriptor::Member;
    use coffer_model::id::MemberId;
    use coffer_model::signing::PublicKey;

    use super::*;

    fn descriptor(members: &[u64]) -> Descriptor {
        let member = |id: &u64| Member {
            id: MemberId::from_u64(*id),
            key: PublicKey::from_bytes([0; 32]),
            address: format!("member-{id}:1"),
        };
        Descriptor {
            suite: 1,
            number: 0,
            former: None,
            nonce: [0; 16],
            authority: Vec::new(),
            administrators: Vec::new(),
            quorum: 1,
            members: members.iter().map(member).collect(),
            nodes: Vec::new(),
            cosigners: Vec::new(),
            replacement: None,
            open_registration: true,
        }
    }

    fn set<const N: usize>(ids: [u64; N]) -> BTreeSet<u64> {
        BTreeSet::from(ids)
    }

    fn raft(configs: &[BTreeSet<u64>], learners: BTreeSet<u64>) -> Membership {
        let nodes: BTreeSet<u64> = configs.iter().flatten().copied().chain(learners).collect();
        Membership::new(configs.to_vec(), nodes)
    }

    #[test]
    fn a_lost_member_is_replaced_step_by_step() {
        let wanted = descriptor(&[1, 2, 4]);
        let before = raft(&[set([1, 2, 3])], set([]));
        assert_eq!(step(&wanted, &before, &BTreeMap::new()), Some(Step::Learn(set([4]))));
        let learning = raft(&[set([1, 2, 3])], set([4]));
        assert_eq!(step(&wanted, &learning, &BTreeMap::new()), None, "nothing is known of it");
        assert_eq!(step(&wanted, &learning, &BTreeMap::from([(4, 5000)])), None, "far behind");
        let caught_up = BTreeMap::from([(4, 7)]);
        assert_eq!(step(&wanted, &learning, &caught_up), Some(Step::Vote(set([1, 2, 4]))));
        // A leader that was lost in the middle leaves a joint config; the next one goes on.
        let joint = raft(&[set([1, 2, 3]), set([1, 2, 4])], set([]));
        assert_eq!(step(&wanted, &joint, &caught_up), Some(Step::Vote(set([1, 2, 4]))));
        assert_eq!(step(&wanted, &raft(&[set([1, 2, 4])], set([])), &caught_up), None);
    }

    #[test]
    fn a_learner_that_is_not_named_any_more_is_forgotten() {
        let wanted = descriptor(&[1, 2, 3]);
        let raft = raft(&[set([1, 2, 3])], set([9]));
        assert_eq!(step(&wanted, &raft, &BTreeMap::new()), Some(Step::Forget(set([9]))));
    }
}
