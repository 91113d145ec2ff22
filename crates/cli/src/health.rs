//! What a cluster's status means: what is wrong, what is in progress, and how long that takes. Values to
//! values; `status` and `doctor` show it.
//!
//! A server that does not fill in a field yet leaves it zero. Zero is then taken for "not told", never
//! for a fault.

use coffer_proto::v1::{GetStatusResponse, MemberStatus, NodeStatus};

/// A member that lacks more log entries than this does not keep up.
const BEHIND_MAX: u64 = 10_000;
/// A node that is fuller than this is about to refuse chunks.
const FULL_PERCENT: u64 = 90;
/// Nodes that must hold a chunk before a write is acknowledged.
const WRITE_QUORUM: usize = 2;

/// Something a person has to know, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Problem {
    pub(crate) what: String,
    pub(crate) fix: String,
}

fn problem(what: String, fix: &str) -> Problem {
    Problem { what, fix: fix.to_owned() }
}

/// What is wrong with the metadata members.
pub(crate) fn members(status: &GetStatusResponse) -> Vec<Problem> {
    let mut found = Vec::new();
    if !status.members.iter().any(|member| member.leader) {
        let fix = "start metadata members again until a majority runs";
        found.push(problem("no metadata member leads; nothing can be read or changed".into(), fix));
    }
    for MemberStatus { id, address, .. } in status.members.iter().filter(|it| !it.reachable) {
        found.push(problem(
            format!("metadata member {id} ({address}) is not reachable"),
            "start its process again (`coffer metadata`), or look into its log",
        ));
    }
    found
}

/// Which members do not keep up.
pub(crate) fn lag(status: &GetStatusResponse) -> Vec<Problem> {
    let slow = status.members.iter().filter(|it| it.reachable && it.behind > BEHIND_MAX);
    let told = slow.map(|it| {
        let what = format!("metadata member {} is {} log entries behind", it.id, it.behind);
        problem(what, "give it time; if the number grows, look at its disk and network")
    });
    told.collect()
}

/// Which nodes do not serve.
pub(crate) fn nodes(status: &GetStatusResponse) -> Vec<Problem> {
    let mut found = Vec::new();
    let here = status.nodes.iter().filter(|node| node.reachable && node.fault.is_empty()).count();
    if here < WRITE_QUORUM {
        let what =
            format!("{here} storage nodes take chunks, {WRITE_QUORUM} are needed; writes wait");
        found.push(problem(what, "start storage nodes again"));
    }
    for NodeStatus { id, address, fault, reachable, .. } in &status.nodes {
        let at = if address.is_empty() { String::new() } else { format!(" ({address})") };
        if !reachable {
            found.push(problem(
                format!("storage node {id}{at} does not report"),
                "start its process again (`coffer storage`), or look into its log",
            ));
        } else if !fault.is_empty() {
            found.push(problem(
                format!("storage node {id}{at} takes no writes: {fault}"),
                "look at its disk, then start it again",
            ));
        }
    }
    found
}

/// Which nodes are nearly full.
pub(crate) fn room(status: &GetStatusResponse) -> Vec<Problem> {
    let mut found = Vec::new();
    for node in &status.nodes {
        if let Some(percent) = percent(node.used_bytes, node.capacity_bytes)
            && percent >= FULL_PERCENT
        {
            let what = format!("storage node {} is {percent} % full", node.id);
            found.push(problem(what, "give it more capacity, or add a node"));
        }
    }
    found
}

/// Which copies are not there.
pub(crate) fn copies(status: &GetStatusResponse) -> Vec<Problem> {
    let mut found = Vec::new();
    for node in status.nodes.iter().filter(|node| node.missing_chunks > 0) {
        let (id, missing) = (&node.id, node.missing_chunks);
        let what = match node.quarantined_chunks {
            0 => format!("storage node {id} lacks {missing} chunks"),
            bad => format!("storage node {id} lacks {missing} chunks, {bad} of them found damaged"),
        };
        let fix = "it fetches them by itself; `coffer repair status` shows how far it is";
        found.push(problem(what, fix));
    }
    found
}

/// Everything that is wrong, the worst first.
pub(crate) fn problems(status: &GetStatusResponse) -> Vec<Problem> {
    [members(status), nodes(status), copies(status), room(status), lag(status)].concat()
}

/// How far the layout in force has got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    /// The servers do not tell.
    Unknown,
    /// Every node that has a share has proven it.
    Proven { nodes: usize },
    /// Some have not yet.
    Moving { proven: usize, nodes: usize },
}

/// Whether every node has proven its share of the layout in force.
pub(crate) fn layout(status: &GetStatusResponse) -> Layout {
    let share: Vec<_> = status.nodes.iter().filter(|node| node.in_layout).collect();
    let proven = share.iter().filter(|node| has_proven(status, node)).count();
    let told = status.nodes.iter().any(|node| node.proven_layout > 0);
    match share.len() {
        _ if status.layout_version == 0 || !told => Layout::Unknown,
        0 => Layout::Unknown,
        nodes if proven == nodes && status.former_layouts == 0 => Layout::Proven { nodes },
        nodes => Layout::Moving { proven, nodes },
    }
}

pub(crate) fn has_proven(status: &GetStatusResponse, node: &NodeStatus) -> bool {
    node.proven_layout >= status.layout_version
}

/// One sentence for all of it. Green only when nothing is missing and every node has proven its share.
pub(crate) fn headline(status: &GetStatusResponse) -> String {
    let count = problems(status).len();
    match (count, layout(status)) {
        (0, Layout::Proven { .. }) => {
            "everything is well: every node has proven that it holds its share".to_owned()
        }
        (0, Layout::Unknown) => "everything is well, as far as the servers tell".to_owned(),
        (0, Layout::Moving { proven, nodes }) => format!(
            "nothing is wrong; the layout is changing, {proven} of {nodes} nodes hold their new share"
        ),
        (1, _) => "1 problem".to_owned(),
        (count, _) => format!("{count} problems"),
    }
}

/// How fast a node gets what it lacks, from two looks at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pace {
    pub(crate) chunks_per_second: u64,
    pub(crate) seconds_left: u64,
}

/// The pace between two looks; none when nothing moves or nothing is missing.
pub(crate) fn pace(before: &NodeStatus, now: &NodeStatus, elapsed_ms: u64) -> Option<Pace> {
    let fetched = now.fetched_chunks.saturating_sub(before.fetched_chunks);
    let done = fetched.max(before.missing_chunks.saturating_sub(now.missing_chunks));
    if done == 0 || now.missing_chunks == 0 || elapsed_ms == 0 {
        return None;
    }
    let left_ms = now.missing_chunks.saturating_mul(elapsed_ms).div_ceil(done);
    let chunks_per_second = done.saturating_mul(1000).div_ceil(elapsed_ms);
    Some(Pace { chunks_per_second, seconds_left: left_ms.div_ceil(1000) })
}

/// Whole percent; none of nothing.
pub(crate) fn percent(part: u64, whole: u64) -> Option<u64> {
    part.saturating_mul(100).checked_div(whole)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A cluster that is well, told by servers that fill everything in.
    pub(crate) fn well() -> GetStatusResponse {
        let member = |id: u64| MemberStatus {
            id: id.to_string(),
            address: format!("m:{id}"),
            leader: id == 1,
            reachable: true,
            behind: 0,
            voter: true,
        };
        let node = |id: u64| NodeStatus {
            id: id.to_string(),
            address: format!("n:{id}"),
            reachable: true,
            capacity_bytes: 1000,
            used_bytes: 100,
            chunks: 10,
            proven_layout: 2,
            weight: 1,
            in_layout: true,
            ..NodeStatus::default()
        };
        GetStatusResponse {
            layout_version: 2,
            members: (1..=3).map(member).collect(),
            nodes: (1..=3).map(node).collect(),
            ..GetStatusResponse::default()
        }
    }

    #[test]
    fn what_is_wrong_is_said_in_plain_words() {
        type Harm = fn(&mut GetStatusResponse);
        let rows: &[(Harm, &[&str])] = &[
            (|_| {}, &[]),
            (|it| it.members[0].leader = false, &["no metadata member leads"]),
            (|it| it.members[1].reachable = false, &["metadata member 2 (m:2) is not reachable"]),
            (|it| it.members[1].behind = 20_000, &["20000 log entries behind"]),
            (|it| it.nodes[0].reachable = false, &["storage node 1 (n:1) does not report"]),
            (|it| it.nodes[0].fault = "EIO".into(), &["takes no writes: EIO"]),
            (|it| it.nodes[2].used_bytes = 950, &["storage node 3 is 95 % full"]),
            (|it| it.nodes[2].capacity_bytes = 0, &[]),
            (|it| it.nodes[0].missing_chunks = 4, &["lacks 4 chunks"]),
            (
                |it| (it.nodes[0].missing_chunks, it.nodes[0].quarantined_chunks) = (4, 1),
                &["lacks 4 chunks, 1 of them found damaged"],
            ),
            (
                |it| it.nodes.iter_mut().take(2).for_each(|node| node.reachable = false),
                &["1 storage nodes take chunks", "node 1", "node 2"],
            ),
        ];
        for (harm, expected) in rows {
            let mut status = well();
            harm(&mut status);
            let found = problems(&status);
            assert_eq!(found.len(), expected.len(), "{found:?}");
            for (found, expected) in found.iter().zip(*expected) {
                assert!(found.what.contains(expected) && !found.fix.is_empty(), "{found:?}");
            }
        }
    }

    #[test]
    fn green_only_when_every_node_has_proven_its_share() {
        let mut status = well();
        assert_eq!(layout(&status), Layout::Proven { nodes: 3 });
        assert!(headline(&status).starts_with("everything is well"));
        status.nodes[1].proven_layout = 1;
        assert_eq!(layout(&status), Layout::Moving { proven: 2, nodes: 3 });
        assert!(headline(&status).contains("2 of 3 nodes"));
        // A node without a share has nothing to prove.
        status.nodes[1].in_layout = false;
        assert_eq!(layout(&status), Layout::Proven { nodes: 2 });
        status.former_layouts = 1;
        assert_eq!(layout(&status), Layout::Moving { proven: 2, nodes: 2 });
        // Servers that tell nothing of it.
        status.nodes.iter_mut().for_each(|node| node.proven_layout = 0);
        assert_eq!(layout(&status), Layout::Unknown);
        status.nodes[0].missing_chunks = 1;
        assert_eq!(headline(&status), "1 problem");
    }

    #[test]
    fn a_pace_comes_of_two_looks() {
        let look = |missing_chunks, fetched_chunks| NodeStatus {
            missing_chunks,
            fetched_chunks,
            ..NodeStatus::default()
        };
        let told = |chunks_per_second, seconds_left| Some(Pace { chunks_per_second, seconds_left });
        let rows = [
            (look(100, 0), look(90, 10), told(10, 9)),
            // More went missing meanwhile; what was fetched counts.
            (look(100, 5), look(120, 15), told(10, 12)),
            // A server that does not count what it fetched.
            (look(100, 0), look(80, 0), told(20, 4)),
            (look(100, 7), look(100, 7), None),
            (look(1, 0), look(0, 1), None),
        ];
        for (before, now, expected) in rows {
            assert_eq!(pace(&before, &now, 1000), expected, "{now:?}");
        }
    }
}
