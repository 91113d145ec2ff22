//! Signed readings of the members' clocks, of which log time is made, and the clock a member judges callers
//! by: its own, unless the other members agree that it is wrong.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime};

use coffer_model::encoding::{decode, encode};
use coffer_model::id::MemberId;
use coffer_model::log::ClockReading;
use coffer_model::session::CLOCK_SKEW_MS_MAX;
use coffer_model::signing::{Domain, Signer};
use coffer_model::time::LogTime;
use coffer_proto::internal as pb;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::group::Group;
use crate::peers::Peers;

/// How long all members together have to say what their clocks say.
const READINGS_TIMEOUT: Duration = Duration::from_millis(300);
/// How long the last members are waited for once there is a majority. With all readings the median
/// is nobody's extreme; with a bare majority it is the slowest clock's.
const STRAGGLERS_TIMEOUT: Duration = Duration::from_millis(40);

/// How often a member compares its clock with the others'.
const COMPARE_EVERY: Duration = Duration::from_secs(10);
/// How often it tries to, until they have answered for the first time.
const COMPARE_FIRST: Duration = Duration::from_secs(1);
/// How long they may take for that: nobody waits, and a few seconds are nothing to a clock that is wrong.
const COMPARE_TIMEOUT: Duration = Duration::from_secs(3);
/// From here on a clock counts as wrong: half of what callers' clocks may differ, so that what is right by one
/// member's is not refused by another's.
const WRONG_FROM_MS: u64 = CLOCK_SKEW_MS_MAX / 2;

/// The clock a member judges callers' proofs by. Without the correction one member whose clock is wrong would
/// refuse everybody, and as the leader stop all writing. Readings for log time are never corrected.
#[derive(Debug, Default)]
pub(crate) struct Clock {
    correction_ms: AtomicI64,
}

impl Clock {
    /// The time, in milliseconds since the Unix epoch.
    pub(crate) fn unix_ms(&self) -> u64 {
        unix_ms().saturating_add_signed(self.correction_ms.load(Ordering::Relaxed))
    }

    /// Compares this member's clock with the others' until it is told to stop.
    pub(crate) async fn watch(group: Arc<Group>, peers: Peers, stop: CancellationToken) {
        let mut pause = COMPARE_FIRST;
        loop {
            let readings = tokio::select! {
                () = stop.cancelled() => return,
                readings = others(&group, &peers) => readings,
            };
            let members = group.descriptor().members.len();
            if let Some(correction) = correction(unix_ms(), &readings, members) {
                group.clock.correct(correction);
                pause = COMPARE_EVERY;
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = sleep(pause) => {}
            }
        }
    }

    fn correct(&self, correction_ms: i64) {
        let before = self.correction_ms.swap(correction_ms, Ordering::Relaxed);
        match (before, correction_ms) {
            (0, 0) => {}
            (0, wrong) => tracing::warn!(
                off_ms = -wrong,
                "this member's clock is not that of the other members: set it; until then it goes by theirs"
            ),
            (_, 0) => tracing::info!("this member's clock is that of the other members again"),
            _ => {}
        }
    }
}

/// What all other members' clocks say, as far as they answer.
async fn others(group: &Group, peers: &Peers) -> Vec<u64> {
    let mut asked: FuturesUnordered<_> =
        group.others().iter().map(|member| ask(group, peers, member.id)).collect();
    let deadline = Instant::now() + COMPARE_TIMEOUT;
    let mut readings = Vec::new();
    while let Ok(Some(answer)) = timeout_at(deadline, asked.next()).await {
        readings.extend(answer.map(|reading| reading.time.unix_ms()));
    }
    readings
}

/// What has to be added to this member's clock to come to the middle one of all; nothing where it is near. None
/// if the others are no majority by themselves: then nobody can tell who is wrong.
fn correction(own: u64, others: &[u64], members: usize) -> Option<i64> {
    if others.len() <= members / 2 {
        return None;
    }
    let mut all = [others, &[own]].concat();
    all.sort_unstable();
    let middle = all[(all.len() - 1) / 2];
    if own.abs_diff(middle) < WRONG_FROM_MS {
        return Some(0);
    }
    i64::try_from(i128::from(middle) - i128::from(own)).ok()
}

/// The clock of this machine, in milliseconds since the Unix epoch.
pub(crate) fn unix_ms() -> u64 {
    #[cfg(test)]
    if let Some(now) = crate::member::simulation::unix_ms() {
        return now;
    }
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// A reading of this member's own clock.
pub(crate) fn own_reading(group: &Group) -> ClockReading {
    let time = LogTime::from_unix_ms(unix_ms());
    let bytes = encode(&(group.me, time));
    let signature = group.identity.sign(Domain::ClockReading, &group.cluster(), &bytes);
    ClockReading { member: group.me, time, signature }
}

/// Good readings of at least a majority, ascending by member; none if there is no majority in time.
pub(crate) async fn readings(group: &Arc<Group>, peers: &Peers) -> Option<Vec<ClockReading>> {
    let mut asked: FuturesUnordered<_> =
        group.others().iter().map(|member| ask(group, peers, member.id)).collect();
    let majority = group.descriptor().members.len() / 2 + 1;
    let mut readings = vec![own_reading(group)];
    let mut deadline = Instant::now() + READINGS_TIMEOUT;
    let mut hurried = false;
    loop {
        if readings.len() >= majority && !hurried {
            deadline = deadline.min(Instant::now() + STRAGGLERS_TIMEOUT);
            hurried = true;
        }
        match timeout_at(deadline, asked.next()).await {
            Ok(Some(Some(reading))) => readings.push(reading),
            Ok(Some(None)) => {}
            Ok(None) | Err(_) => break,
        }
    }
    readings.sort_by_key(|reading| reading.member);
    (readings.len() >= majority).then_some(readings)
}

/// One member's reading, if it gives a good one.
async fn ask(group: &Group, peers: &Peers, member: MemberId) -> Option<ClockReading> {
    let answer = peers.raft(member)?.read_clock(pb::ReadClockRequest {}).await.ok()?.into_inner();
    let reading: ClockReading = decode("clock reading", &answer.reading).ok()?;
    let bytes = encode(&(reading.member, reading.time));
    let key = group.descriptor().member_key(member)?;
    let good = reading.member == member
        && key.verify(Domain::ClockReading, &group.cluster(), &bytes, &reading.signature).is_ok();
    if !good {
        // One bad reading would spoil the whole tick.
        tracing::warn!(%member, "a member sent a clock reading that is not its own");
    }
    good.then_some(reading)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u64 = 3_600_000;
    const NOW: u64 = 1_800_000_000_000;

    /// Goal: a member corrects its own clock when it is the one that is wrong, and never because one other
    /// says so.
    #[test]
    fn a_clock_is_corrected_by_a_majority_of_others_only() {
        type Row = (&'static str, u64, &'static [u64], usize, Option<i64>);
        let rows: [Row; 10] = [
            ("right", NOW, &[NOW + 5, NOW - 7], 3, Some(0)),
            ("an hour ahead", NOW + HOUR, &[NOW, NOW + 9], 3, Some(9 - 3_600_000)),
            ("an hour behind", NOW - HOUR, &[NOW, NOW + 9], 3, Some(3_600_000)),
            ("one liar behind", NOW, &[NOW - HOUR, NOW + 1], 3, Some(0)),
            ("one liar ahead", NOW, &[NOW + HOUR, NOW + 1], 3, Some(0)),
            ("one silent, one liar", NOW, &[NOW + HOUR], 3, None),
            ("alone", NOW, &[], 1, None),
            ("one of two", NOW, &[NOW + HOUR], 2, None),
            ("two liars of five", NOW, &[0, 1, NOW + 2, NOW + 3], 5, Some(0)),
            ("nearly wrong", NOW, &[NOW + 59_999, NOW + 60_000], 3, Some(0)),
        ];
        for (what, own, others, members, expected) in rows {
            assert_eq!(correction(own, others, members), expected, "{what}");
        }
    }
}
