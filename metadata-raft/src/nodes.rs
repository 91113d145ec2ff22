//! What the leader knows of the storage nodes beyond the log: when each last reported, and how it does.
//! It is kept in memory only; after a change of leaders the nodes' next reports bring it back.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use coffer_model::id::NodeId;
use coffer_model::log::NodeReport;

/// A node that did not report for this long counts as gone.
const SILENT_MAX: Duration = Duration::from_secs(15);
/// The longest description of a fault.
pub(crate) const FAULT_BYTES_MAX: usize = 256;

/// How a storage node does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Condition {
    pub(crate) used_bytes: u64,
    pub(crate) chunks: u64,
    pub(crate) missing_chunks: u64,
    pub(crate) quarantined_chunks: u64,
    pub(crate) surplus_chunks: u64,
    pub(crate) fetched_chunks: u64,
    pub(crate) fault: String,
}

/// The storage nodes that have reported to this member. The descriptor bounds their number.
#[derive(Debug, Default)]
pub(crate) struct Nodes(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    seen: HashMap<NodeId, Seen>,
    /// When this member began to lead, while it does.
    leading_since: Option<Instant>,
}

#[derive(Debug)]
struct Seen {
    report: NodeReport,
    condition: Condition,
    at: Instant,
}

/// A report from before one that was seen already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stale;

impl Nodes {
    /// Notes a report whose signature was checked. `logged` is the node's report in the log. Says
    /// whether the log needs this one: the first, or one with another address or capacity.
    pub(crate) fn report(
        &self,
        report: &NodeReport,
        condition: Condition,
        logged: Option<&NodeReport>,
        now: Instant,
    ) -> Result<bool, Stale> {
        let mut state = self.lock();
        let seen = state.seen.get(&report.node).map(|seen| &seen.report);
        let newest = [seen, logged].into_iter().flatten().map(|former| former.number).max();
        if newest.is_some_and(|newest| newest > report.number) {
            return Err(Stale);
        }
        state.seen.insert(report.node, Seen { report: report.clone(), condition, at: now });
        let changed = logged.is_none_or(|logged| {
            logged.address != report.address || logged.capacity_bytes != report.capacity_bytes
        });
        // The log takes only rising numbers; an equal one is a repeat of what it has.
        Ok(changed && logged.is_none_or(|logged| logged.number < report.number))
    }

    /// Notes whether this member leads.
    pub(crate) fn set_leading(&self, leading: bool, now: Instant) {
        let mut state = self.lock();
        state.leading_since = match (leading, state.leading_since) {
            (true, Some(since)) => Some(since),
            (true, None) => Some(now),
            (false, _) => None,
        };
    }

    /// Whether a node reported lately, and how it did. A new leader has heard of nobody: for the first
    /// seconds it takes every node for reachable.
    pub(crate) fn condition(&self, node: NodeId, now: Instant) -> (bool, Condition) {
        let recent = |at: Instant| now.saturating_duration_since(at) < SILENT_MAX;
        let state = self.lock();
        let new_leader = state.leading_since.is_some_and(recent);
        match state.seen.get(&node) {
            Some(seen) => (recent(seen.at) || new_leader, seen.condition.clone()),
            None => (new_leader, Condition::default()),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn report(number: u64, address: &str) -> NodeReport {
        let node = NodeId::from_bytes([1; 16]);
        NodeReport { node, number, address: address.to_owned(), capacity_bytes: 5 }
    }

    #[test]
    fn only_what_changed_goes_to_the_log_and_nothing_old_is_taken() {
        let (nodes, now) = (Nodes::default(), Instant::now());
        let take = |report: &NodeReport, logged: Option<&NodeReport>| {
            nodes.report(report, Condition::default(), logged, now)
        };
        let first = report(5, "a:1");
        assert_eq!(take(&first, None), Ok(true));
        assert_eq!(take(&first, None), Ok(true), "the log did not get it yet");
        assert_eq!(take(&first, Some(&first)), Ok(false));
        assert_eq!(take(&report(6, "a:1"), Some(&first)), Ok(false));
        assert_eq!(take(&report(5, "b:1"), Some(&first)), Err(Stale));
        assert_eq!(take(&report(7, "b:1"), Some(&first)), Ok(true));
        assert_eq!(take(&report(7, "b:1"), Some(&report(9, "c:1"))), Err(Stale));
    }

    #[test]
    fn a_silent_node_counts_as_gone_but_not_for_a_new_leader() {
        let nodes = Nodes::default();
        let (node, start) = (NodeId::from_bytes([1; 16]), Instant::now());
        let at = |secs| start + Duration::from_secs(secs);
        assert!(!nodes.condition(node, start).0);
        nodes.set_leading(true, start);
        assert!(nodes.condition(node, at(14)).0);
        assert!(!nodes.condition(node, at(15)).0);
        let condition = Condition { used_bytes: 3, ..Condition::default() };
        nodes.report(&report(1, "a:1"), condition.clone(), None, at(20)).unwrap();
        assert_eq!(nodes.condition(node, at(34)), (true, condition.clone()));
        assert_eq!(nodes.condition(node, at(35)), (false, condition));
    }
}
