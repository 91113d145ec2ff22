//! Since when this member has not heard from each process of the cluster, by its own monotonic clock. It is
//! what a member's signature under a replacement rests on (docs/formats/descriptor.md, "A replacement").
//!
//! Nothing here is asked of others or kept on a disk: a member counts from its own start at the earliest, and
//! from anew after it was itself stopped, for then it could not hear.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use coffer_model::descriptor::{Descriptor, Replaced};
use coffer_model::id::{MemberId, NodeId};
use coffer_proto::internal as pb;
use coffer_proto::internal::member_service_client::MemberServiceClient;
use coffer_service::call::contained;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tonic::Code;

use crate::access::Door;

/// How often each member greets all others.
const GREET_EVERY: Duration = Duration::from_secs(1);
/// How long the answer may take.
const GREET_TIMEOUT: Duration = Duration::from_secs(2);
/// A member that did not look for this long did not run.
const STOPPED_AFTER: Duration = Duration::from_secs(6);

/// A place in the cluster.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Seat {
    /// A metadata member's.
    Member(MemberId),
    /// A storage node's.
    Node(NodeId),
}

impl Seat {
    /// The place of who is lost.
    pub(crate) const fn lost(replaced: &Replaced) -> Self {
        match replaced {
            Replaced::Member { lost, .. } => Self::Member(*lost),
            Replaced::Node { lost, .. } => Self::Node(*lost),
        }
    }
}

/// When each process was last heard from. The descriptor bounds their number.
#[derive(Debug, Default)]
pub(crate) struct Heard(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    last: HashMap<Seat, Instant>,
    looked: Option<Instant>,
}

impl Heard {
    /// Looks who belongs to the cluster: whoever is new counts as heard from now.
    pub(crate) fn look(&self, descriptor: &Descriptor, now: Instant) {
        let mut state = self.lock();
        let members = descriptor.members.iter().map(|member| Seat::Member(member.id));
        let seats: Vec<Seat> =
            members.chain(descriptor.nodes.iter().map(|node| Seat::Node(node.id))).collect();
        let ran =
            state.looked.is_none_or(|looked| now.saturating_duration_since(looked) < STOPPED_AFTER);
        if !ran {
            tracing::warn!("this member did not run for a while; it begins anew to listen");
            state.last.clear();
        }
        state.looked = Some(now);
        state.last.retain(|seat, _| seats.contains(seat));
        for seat in seats {
            state.last.entry(seat).or_insert(now);
        }
    }

    /// Notes that a process was heard from.
    pub(crate) fn note(&self, seat: Seat, now: Instant) {
        if let Some(last) = self.lock().last.get_mut(&seat) {
            *last = (*last).max(now);
        }
    }

    /// How long a process has been silent. Of who is not known, or if this member has not looked for too
    /// long to know, that is no time at all.
    pub(crate) fn silent_for(&self, seat: Seat, now: Instant) -> Duration {
        let state = self.lock();
        let ran = state
            .looked
            .is_some_and(|looked| now.saturating_duration_since(looked) < STOPPED_AFTER);
        match state.last.get(&seat) {
            Some(last) if ran => now.saturating_duration_since(*last),
            _ => Duration::ZERO,
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Greets all others until it is told to stop, and notes who answers.
pub(crate) async fn greet(door: Door, stop: CancellationToken) {
    let mut tick = tokio::time::interval(GREET_EVERY);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = tick.tick() => {}
        }
        door.heard.look(&door.group.descriptor(), Instant::now());
        tokio::select! {
            () = stop.cancelled() => return,
            () = greet_once(&door) => {}
        }
    }
}

async fn greet_once(door: &Door) {
    let mut greetings = JoinSet::new();
    for member in door.group.others() {
        let Some(channel) = door.peers.calls(member.id) else { continue };
        greetings.spawn(async move {
            let mut client = MemberServiceClient::new(channel);
            let answer = timeout(GREET_TIMEOUT, contained(client.greet(pb::GreetRequest {}))).await;
            let is_there = match answer {
                Ok(Ok(_)) => true,
                // A member of a release that knows no greetings is there as well.
                Ok(Err(status)) => status.code() == Code::Unimplemented,
                Err(_) => false,
            };
            is_there.then_some(member.id)
        });
    }
    while let Some(greeted) = greetings.join_next().await {
        if let Ok(Some(member)) = greeted {
            door.heard.note(Seat::Member(member), Instant::now());
        }
    }
}

#[cfg(test)]
mod tests {
    use coffer_model::descriptor::{Member, StorageNode};
    use coffer_model::signing::PublicKey;

    use super::*;

    const MEMBER: Seat = Seat::Member(MemberId::from_u64(1));
    const NODE: Seat = Seat::Node(NodeId::from_bytes([2; 16]));

    fn descriptor() -> Descriptor {
        let key = PublicKey::from_bytes([0; 32]);
        Descriptor {
            suite: 1,
            number: 0,
            former: None,
            nonce: [0; 16],
            authority: Vec::new(),
            administrators: Vec::new(),
            quorum: 1,
            members: vec![Member { id: MemberId::from_u64(1), key, address: "a:1".to_owned() }],
            nodes: vec![StorageNode {
                id: NodeId::from_bytes([2; 16]),
                key,
                zone: String::new(),
                weight: 1,
            }],
            cosigners: Vec::new(),
            replacement: None,
            open_registration: true,
        }
    }

    /// Looks every second from `from` to `to`, as a member that runs does.
    fn run(heard: &Heard, start: Instant, from: u64, to: u64) {
        for second in from..=to {
            heard.look(&descriptor(), start + Duration::from_secs(second));
        }
    }

    /// Goal: silence is what this member has itself lived through. Method: a clock of the test's.
    #[test]
    fn silence_is_counted_from_the_start_and_from_the_last_word() {
        let (heard, start) = (Heard::default(), Instant::now());
        let at = |secs| start + Duration::from_secs(secs);
        let silent = |seat, secs| heard.silent_for(seat, at(secs)).as_secs();
        assert_eq!(silent(NODE, 100), 0, "nobody has listened yet");
        run(&heard, start, 100, 130);
        assert_eq!((silent(NODE, 130), silent(MEMBER, 130)), (30, 30));
        heard.note(NODE, at(125));
        heard.note(NODE, at(110));
        assert_eq!((silent(NODE, 130), silent(MEMBER, 130)), (5, 30));
        let stranger = Seat::Node(NodeId::from_bytes([9; 16]));
        heard.note(stranger, at(101));
        assert_eq!(silent(stranger, 130), 0);
    }

    #[test]
    fn who_was_stopped_has_heard_nobody_and_begins_anew() {
        let (heard, start) = (Heard::default(), Instant::now());
        let at = |secs| start + Duration::from_secs(secs);
        run(&heard, start, 0, 60);
        assert_eq!(heard.silent_for(NODE, at(60)).as_secs(), 60);
        // Before it looks again, and after.
        assert_eq!(heard.silent_for(NODE, at(600)).as_secs(), 0);
        run(&heard, start, 600, 610);
        assert_eq!(heard.silent_for(NODE, at(610)).as_secs(), 10);
    }

    #[test]
    fn who_comes_later_counts_from_then_and_who_goes_is_forgotten() {
        let (heard, start) = (Heard::default(), Instant::now());
        let at = |secs| start + Duration::from_secs(secs);
        let without = Descriptor { nodes: Vec::new(), ..descriptor() };
        for second in 0..=50 {
            heard.look(&without, at(second));
        }
        run(&heard, start, 51, 54);
        assert_eq!(heard.silent_for(NODE, at(54)).as_secs(), 3);
        heard.look(&without, at(55));
        assert_eq!(heard.silent_for(NODE, at(55)).as_secs(), 0);
    }
}
