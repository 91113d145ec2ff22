//! `coffer status` and its narrower sisters: one question to the cluster, shown so that a tired person
//! sees first what is wrong.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use anyhow::Result;
use coffer_proto::v1::{GetStatusResponse, MemberStatus, NodeStatus};
use serde_json::{Value, json};

use crate::commands::Console;
use crate::health::{self, Layout, Pace};
use crate::output;

/// Between two looks, to see how fast something moves.
const LOOK_AGAIN_AFTER: Duration = Duration::from_secs(1);
/// Characters of the bar that shows how full the cluster is.
const BAR_WIDTH: u64 = 30;

/// What was seen: the latest status, and the pace of each of its nodes.
struct Seen {
    status: GetStatusResponse,
    paces: Vec<Option<Pace>>,
}

impl Console {
    /// Looks once, and a second time where something is in progress.
    async fn look(&self) -> Result<Seen> {
        let (first, began) = (self.cluster_status().await?, Instant::now());
        if first.nodes.iter().all(|node| node.missing_chunks == 0) {
            let paces = vec![None; first.nodes.len()];
            return Ok(Seen { status: first, paces });
        }
        tokio::time::sleep(LOOK_AGAIN_AFTER).await;
        let status = self.cluster_status().await?;
        let elapsed_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        let pace = |now: &NodeStatus| {
            let before = first.nodes.iter().find(|before| before.id == now.id)?;
            health::pace(before, now, elapsed_ms)
        };
        let paces = status.nodes.iter().map(pace).collect();
        Ok(Seen { status, paces })
    }

    pub(crate) async fn status(&self) -> Result<()> {
        let seen = self.look().await?;
        self.show(&seen.json(), &seen.text());
        Ok(())
    }

    /// What is missing and how fast it comes.
    pub(crate) async fn repair_status(&self) -> Result<()> {
        let seen = self.look().await?;
        let nodes = seen.status.nodes.iter().zip(&seen.paces);
        let value: Vec<Value> = nodes
            .map(|(node, pace)| {
                json!({
                    "id": node.id,
                    "missing_chunks": node.missing_chunks,
                    "quarantined_chunks": node.quarantined_chunks,
                    "surplus_chunks": node.surplus_chunks,
                    "fetched_chunks": node.fetched_chunks,
                    "seconds_left": pace.map(|pace| pace.seconds_left),
                })
            })
            .collect();
        let missing: u64 = seen.status.nodes.iter().map(|node| node.missing_chunks).sum();
        let first = match missing {
            0 => "nothing to repair: no chunk is missing".to_owned(),
            _ => format!("{missing} copies are missing"),
        };
        self.show(&json!({ "nodes": value }), &[first, seen.progress()].concat());
        Ok(())
    }

    /// What reading everything back has found.
    pub(crate) async fn scrub_status(&self) -> Result<()> {
        let status = self.cluster_status().await?;
        let bad: u64 = status.nodes.iter().map(|node| node.quarantined_chunks).sum();
        let mut text = match bad {
            0 => "no damaged chunk is waiting for a new copy".to_owned(),
            _ => format!("{bad} damaged chunks wait for a new copy"),
        };
        let mut nodes = Vec::new();
        for node in &status.nodes {
            let NodeStatus { id, chunks, quarantined_chunks: bad, .. } = node;
            let _ = write!(text, "\n  {id}  {bad} of {chunks} chunks");
            nodes.push(json!({ "id": id, "chunks": chunks, "quarantined_chunks": bad }));
        }
        self.show(&json!({ "quarantined_chunks": bad, "nodes": nodes }), &text);
        Ok(())
    }

    pub(crate) async fn node_list(&self) -> Result<()> {
        let status = self.cluster_status().await?;
        let lines: Vec<String> = status.nodes.iter().map(|node| node_line(&status, node)).collect();
        self.show(
            &status.nodes.iter().map(|node| node_json(node, None)).collect(),
            &lines.join("\n"),
        );
        Ok(())
    }

    pub(crate) async fn member_list(&self) -> Result<()> {
        let status = self.cluster_status().await?;
        let lines: Vec<String> = status.members.iter().map(member_line).collect();
        self.show(&status.members.iter().map(member_json).collect(), &lines.join("\n"));
        Ok(())
    }

    pub(crate) async fn layout_show(&self) -> Result<()> {
        let status = self.cluster_status().await?;
        let mut text = layout_text(&status);
        let mut nodes = Vec::new();
        for node in &status.nodes {
            let NodeStatus { id, zone, weight, in_layout, proven_layout, .. } = node;
            let share = if *in_layout { "has a share" } else { "has no share" };
            let zone_text = if zone.is_empty() { String::new() } else { format!(", zone {zone}") };
            let _ = write!(
                text,
                "\n  {id}  weight {weight}{zone_text}, {share}, proven {proven_layout}"
            );
            nodes.push(json!({
                "id": id,
                "zone": zone,
                "weight": weight,
                "in_layout": in_layout,
                "proven_layout": proven_layout,
            }));
        }
        let value = json!({
            "layout_version": status.layout_version,
            "former_layouts": status.former_layouts,
            "nodes": nodes,
        });
        self.show(&value, &text);
        Ok(())
    }
}

impl Seen {
    fn json(&self) -> Value {
        let status = &self.status;
        let problems = health::problems(status);
        let problems: Vec<Value> =
            problems.iter().map(|it| json!({ "what": it.what, "fix": it.fix })).collect();
        json!({
            "well": problems.is_empty(),
            "headline": health::headline(status),
            "problems": problems,
            "revision": status.revision,
            "log_time_ms": status.log_time_ms,
            "inodes": status.inodes,
            "deleted_inodes": status.deleted_inodes,
            "charged_bytes": status.charged_bytes,
            "log_root": hex::encode(&status.log_root),
            "layout_version": status.layout_version,
            "former_layouts": status.former_layouts,
            "core_version": status.core_version,
            "descriptor_number": status.descriptor_number,
            "order_number": status.order_number,
            "retention_ms": status.retention_ms,
            "default_quota_bytes": status.default_quota_bytes,
            "feed_position": status.feed_position,
            "members": status.members.iter().map(member_json).collect::<Vec<_>>(),
            "nodes": status.nodes.iter().zip(&self.paces)
                .map(|(node, pace)| node_json(node, *pace)).collect::<Vec<_>>(),
        })
    }

    fn text(&self) -> String {
        let status = &self.status;
        let mut text = health::headline(status);
        for problem in health::problems(status) {
            let _ = write!(text, "\n! {}\n    {}", problem.what, problem.fix);
        }
        text += &self.progress();
        let sum = |of: fn(&NodeStatus) -> u64| status.nodes.iter().map(of).sum::<u64>();
        let (used, all) = (sum(|it| it.used_bytes), sum(|it| it.capacity_bytes));
        let _ = write!(
            text,
            "\n\nroom      {} {} of {} on {} nodes",
            bar(used, all),
            size_text(used),
            size_text(all),
            status.nodes.len()
        );
        let (missing, bad) = (sum(|it| it.missing_chunks), sum(|it| it.quarantined_chunks));
        let surplus = sum(|it| it.surplus_chunks);
        let _ =
            write!(text, "\ncopies    {missing} missing, {bad} damaged, {surplus} to be dropped");
        let _ = write!(text, "\nlayout    {}", layout_text(status));
        let _ = write!(
            text,
            "\ncontent   {} files and directories, {} deleted; {} in all versions",
            status.inodes.saturating_sub(status.deleted_inodes),
            status.deleted_inodes,
            size_text(status.charged_bytes)
        );
        let _ = write!(
            text,
            "\nlog       {} entries, last time {}",
            status.revision,
            output::log_time_text(status.log_time_ms)
        );
        text += "\n\nmetadata members";
        for member in &status.members {
            let _ = write!(text, "\n  {}", member_line(member));
        }
        text += "\n\nstorage nodes";
        for node in &status.nodes {
            let _ = write!(text, "\n  {}", node_line(status, node));
        }
        text
    }

    /// What is being done, node by node; empty when nothing is.
    fn progress(&self) -> String {
        let mut text = String::new();
        for (node, pace) in self.status.nodes.iter().zip(&self.paces) {
            if node.missing_chunks == 0 {
                continue;
            }
            let _ = write!(text, "\n> storage node {}: {} to fetch", node.id, node.missing_chunks);
            let _ = match pace {
                Some(pace) => write!(
                    text,
                    ", {} a second, about {} left",
                    pace.chunks_per_second,
                    duration_text(pace.seconds_left)
                ),
                None => write!(text, ", nothing moves at the moment"),
            };
        }
        text
    }
}

fn layout_text(status: &GetStatusResponse) -> String {
    let version = status.layout_version;
    match (health::layout(status), status.former_layouts) {
        (Layout::Unknown, _) => {
            format!("version {version}; the servers do not tell who has proven it")
        }
        (Layout::Proven { nodes }, _) => format!("version {version}, proven by all {nodes} nodes"),
        (Layout::Moving { proven, nodes }, former) => format!(
            "version {version}, proven by {proven} of {nodes} nodes; {former} former ones are kept"
        ),
    }
}

fn member_line(member: &MemberStatus) -> String {
    let state = match (member.leader, member.reachable) {
        (true, _) => "leads".to_owned(),
        (false, true) if !member.voter => {
            format!("learns, {} entries behind; does not count yet", member.behind)
        }
        (false, true) => format!("follows, {} entries behind", member.behind),
        (false, false) => "not reachable".to_owned(),
    };
    format!("{}  {:<21} {state}", member.id, member.address)
}

fn node_line(status: &GetStatusResponse, node: &NodeStatus) -> String {
    let state = match (node.reachable, node.fault.is_empty()) {
        (false, _) => "does not report",
        (true, false) => "takes no writes",
        (true, true) => "there",
    };
    let mut text = format!(
        "{}  {:<21} {state}, {} chunks, {}",
        node.id,
        node.address,
        node.chunks,
        size_text(node.used_bytes)
    );
    if let Some(percent) = health::percent(node.used_bytes, node.capacity_bytes) {
        let _ = write!(text, " ({percent} %)");
    }
    if !node.zone.is_empty() {
        let _ = write!(text, ", zone {}", node.zone);
    }
    if health::layout(status) != Layout::Unknown && node.in_layout {
        let proven = health::has_proven(status, node);
        text += if proven { ", share proven" } else { ", share not proven yet" };
    }
    text
}

fn member_json(member: &MemberStatus) -> Value {
    json!({
        "id": member.id,
        "address": member.address,
        "leader": member.leader,
        "reachable": member.reachable,
        "behind": member.behind,
        "voter": member.voter,
    })
}

fn node_json(node: &NodeStatus, pace: Option<Pace>) -> Value {
    json!({
        "id": node.id,
        "address": node.address,
        "zone": node.zone,
        "reachable": node.reachable,
        "capacity_bytes": node.capacity_bytes,
        "used_bytes": node.used_bytes,
        "chunks": node.chunks,
        "missing_chunks": node.missing_chunks,
        "fault": node.fault,
        "quarantined_chunks": node.quarantined_chunks,
        "surplus_chunks": node.surplus_chunks,
        "proven_layout": node.proven_layout,
        "proven_position": node.proven_position,
        "weight": node.weight,
        "in_layout": node.in_layout,
        "fetched_chunks": node.fetched_chunks,
        "seconds_left": pace.map(|pace| pace.seconds_left),
    })
}

fn bar(used: u64, all: u64) -> String {
    let Some(percent) = health::percent(used, all) else { return "unknown,".to_owned() };
    let full = usize::try_from(percent.min(100) * BAR_WIDTH / 100).unwrap_or_default();
    let width = usize::try_from(BAR_WIDTH).unwrap_or_default();
    format!("[{:-<width$}] {percent} %,", "#".repeat(full))
}

pub(crate) fn size_text(bytes: u64) -> String {
    match bytes {
        0..0x10_0000 => format!("{} KiB", bytes.div_ceil(1 << 10)),
        0x10_0000..0x4000_0000 => format!("{} MiB", bytes >> 20),
        _ => format!("{}.{} GiB", bytes >> 30, (bytes >> 20) % 1024 * 10 / 1024),
    }
}

fn duration_text(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        _ => format!("{} h", seconds / 3600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::tests::well;

    #[test]
    fn the_page_says_first_what_is_wrong() {
        let mut status = well();
        let page = |status: &GetStatusResponse, pace| {
            let paces = vec![pace; status.nodes.len()];
            Seen { status: status.clone(), paces }.text()
        };
        let told = page(&status, None);
        assert!(told.starts_with("everything is well"), "{told}");
        assert!(told.contains("[###---------------------------] 10 %"), "{told}");
        status.nodes[1].missing_chunks = 500;
        let pace = Some(Pace { chunks_per_second: 4, seconds_left: 125 });
        let told = page(&status, pace);
        assert!(told.starts_with("1 problem\n! storage node 2 lacks 500 chunks\n"), "{told}");
        assert!(told.contains("> storage node 2: 500 to fetch, 4 a second, about 2 min left"));
        assert!(page(&status, None).contains("nothing moves"));
        // Nothing filled in is no reason to divide by it.
        assert!(page(&GetStatusResponse::default(), None).contains("room      unknown"));
    }

    #[test]
    fn sizes_and_durations_read_well() {
        assert_eq!(size_text(1), "1 KiB");
        assert_eq!(size_text(5 << 20), "5 MiB");
        assert_eq!(size_text((5 << 30) + (512 << 20)), "5.5 GiB");
        assert_eq!(duration_text(7300), "2 h");
    }
}
