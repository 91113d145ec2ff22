//! Signed readings of the members' clocks, of which log time is made.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use coffer_model::encoding::{decode, encode};
use coffer_model::id::MemberId;
use coffer_model::log::ClockReading;
use coffer_model::signing::{Domain, Signer};
use coffer_model::time::LogTime;
use coffer_proto::internal as pb;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::time::{Instant, timeout_at};

use crate::group::Group;
use crate::peers::Peers;

/// How long all members together have to say what their clocks say.
const READINGS_TIMEOUT: Duration = Duration::from_millis(300);
/// How long the last members are waited for once there is a majority. With all readings the median
/// is nobody's extreme; with a bare majority it is the slowest clock's.
const STRAGGLERS_TIMEOUT: Duration = Duration::from_millis(40);

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
