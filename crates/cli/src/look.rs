//! Commands that go through a tree and look: `tree`, `find`, `du`; and `df` and `quota`, which look at what
//! is used.

use anyhow::Result;
use coffer_client::{ClientError, HomeUsage, Session, Visit};
use coffer_model::object::Kind;
use glob::{MatchOptions, Pattern};
use serde_json::{Value, json};

use crate::admin::time_text;
use crate::args::FindKind;
use crate::commands::{Console, path};
use crate::output::{self, bytes_text, entry_mark, stat_json};

/// What `find` is asked for.
pub(crate) struct Wanted {
    pub(crate) name: Option<String>,
    pub(crate) ignore_case: bool,
    pub(crate) kind: Option<FindKind>,
    pub(crate) min_size: Option<u64>,
    pub(crate) max_size: Option<u64>,
}

impl Wanted {
    /// What decides about one name.
    fn test(self) -> Result<impl Fn(&Visit) -> bool, ClientError> {
        let pattern = self.name.as_deref().map(Pattern::new).transpose().map_err(|error| {
            ClientError::Invalid { what: format!("the pattern cannot be read: {error}") }
        })?;
        let case = MatchOptions { case_sensitive: !self.ignore_case, ..MatchOptions::new() };
        Ok(move |visit: &Visit| {
            let stat = &visit.stat;
            let named = pattern.as_ref().is_none_or(|pattern| {
                visit
                    .path
                    .split()
                    .is_some_and(|(_, name)| pattern.matches_with(name.as_str(), case))
            });
            let of_kind = self.kind.is_none_or(|wanted| {
                matches!(
                    (wanted, stat.kind),
                    (FindKind::F, Kind::File)
                        | (FindKind::D, Kind::Directory)
                        | (FindKind::L, Kind::Symlink)
                )
            });
            let sized = self.min_size.is_some() || self.max_size.is_some();
            let fits = self.min_size.is_none_or(|least| stat.length >= least)
                && self.max_size.is_none_or(|most| stat.length <= most);
            named && of_kind && (!sized || (stat.kind == Kind::File && fits))
        })
    }
}

fn visit_json(visit: &Visit) -> Value {
    let mut value = stat_json(&visit.stat);
    if let Value::Object(fields) = &mut value {
        fields.insert("path".to_owned(), visit.path.to_string().into());
    }
    value
}

impl Console {
    pub(crate) async fn tree(&self, session: &Session, of: &str, depth: usize) -> Result<()> {
        let (first, mut walk) = session.walk_tree(&path(of)?, depth).await?;
        if self.global.json {
            output::json(&visit_json(&first));
        } else {
            output::line(&first.path.to_string());
        }
        let (mut files, mut directories) = (0u64, 0u64);
        let mut stems: Vec<&str> = Vec::new();
        while let Some(visit) = walk.next().await? {
            match visit.stat.kind {
                Kind::Directory => directories += 1,
                _ => files += 1,
            }
            if self.global.json {
                output::json(&visit_json(&visit));
                continue;
            }
            stems.truncate(visit.depth - 1);
            let name = visit.path.names().last().map_or_else(
                || visit.path.home().map_or("", |home| home.as_str()),
                |name| name.as_str(),
            );
            let branch = if visit.last { "└── " } else { "├── " };
            output::line(&format!(
                "{}{branch}{name}{}",
                stems.concat(),
                entry_mark(visit.stat.kind)
            ));
            stems.push(if visit.last { "    " } else { "│   " });
        }
        if !self.global.json {
            output::line(&format!("{directories} directories, {files} files"));
        }
        Ok(())
    }

    pub(crate) async fn find(&self, session: &Session, of: &str, wanted: Wanted) -> Result<()> {
        let matches = wanted.test()?;
        let (first, mut walk) = session.walk_tree(&path(of)?, usize::MAX).await?;
        let mut next = Some(first);
        while let Some(visit) = next {
            if matches(&visit) {
                self.show(&visit_json(&visit), &visit.path.to_string());
            }
            next = walk.next().await?;
        }
        Ok(())
    }

    pub(crate) async fn du(&self, session: &Session, of: &str, summarize: bool) -> Result<()> {
        let (first, mut walk) = session.walk_tree(&path(of)?, usize::MAX).await?;
        // The directories above the present name, with what was summed up in each so far.
        let mut open: Vec<(Visit, u64)> = vec![(first.clone(), first.stat.length)];
        loop {
            let visit = walk.next().await?;
            let depth = visit.as_ref().map_or(0, |visit| visit.depth);
            while open.len() > depth {
                let Some((done, bytes)) = open.pop() else { break };
                if let Some((_, above)) = open.last_mut() {
                    *above += bytes;
                }
                if open.is_empty() || (done.stat.kind == Kind::Directory && !summarize) {
                    let value = json!({ "path": done.path.to_string(), "bytes": bytes });
                    self.show(&value, &format!("{bytes:>16}  {}", done.path));
                }
            }
            let Some(visit) = visit else { return Ok(()) };
            let bytes = visit.stat.length;
            open.push((visit, bytes));
        }
    }

    pub(crate) async fn quota(&self, session: &Session) -> Result<()> {
        let (usage, name) = (session.usage().await?, session.name());
        let retention_ms = session.status().await?.retention_ms;
        let value = json!({
            "user": name.as_str(), "home": usage.home.to_string(),
            "used_bytes": usage.used_bytes, "quota_bytes": usage.quota_bytes,
            "used_inodes": usage.used_inodes, "used_rows": usage.used_rows,
            "retention_ms": retention_ms,
        });
        self.show(&value, &quota_table(name.as_str(), &usage, retention_ms));
        Ok(())
    }

    /// Where a quota is used up, says how much it is, as far as the cluster can be asked.
    pub(crate) async fn with_figures(&self, session: &Session, done: Result<()>) -> Result<()> {
        let Err(error) = done else { return Ok(()) };
        if !matches!(error.downcast_ref(), Some(ClientError::QuotaExceeded)) {
            return Err(error);
        }
        let (Ok(usage), Ok(status)) = (session.usage().await, session.status().await) else {
            return Err(error);
        };
        Err(error.context(figures_text(&usage, status.retention_ms)))
    }

    pub(crate) async fn df(&self) -> Result<()> {
        let status = self.cluster_status().await?;
        let mut lines =
            vec![format!("{:<32} {:>12} {:>12} {:>5}", "storage node", "MiB", "used", "%")];
        let mut nodes = Vec::new();
        for node in &status.nodes {
            let (all, used) = (node.capacity_bytes, node.used_bytes);
            let percent = used.saturating_mul(100).checked_div(all).unwrap_or(0);
            nodes.push(json!({ "id": node.id, "capacity_bytes": all, "used_bytes": used }));
            let (all, used) = (all >> 20, used >> 20);
            lines.push(format!("{:<32} {all:>12} {used:>12} {percent:>4}%", node.id));
        }
        lines.push(format!("{} MiB in all versions of all files", status.charged_bytes >> 20));
        let value = json!({ "nodes": nodes, "charged_bytes": status.charged_bytes });
        self.show(&value, &lines.join("\n"));
        Ok(())
    }
}

/// How much is used and allowed, one line for each kind.
fn quota_table(name: &str, usage: &HomeUsage, retention_ms: u64) -> String {
    let row = |what: &str, used: &str, allowed: &str| format!("{what:<8} {used:<32} {allowed}");
    let allowed = usage.quota_bytes.map_or_else(
        || "no limit".to_owned(),
        |quota| match usage.used_bytes.saturating_mul(100).checked_div(quota) {
            Some(percent) => format!("{}, {percent} % used", bytes_text(quota)),
            None => bytes_text(quota),
        },
    );
    [
        row(name, "used", "allowed"),
        row("bytes", &bytes_text(usage.used_bytes), &allowed),
        row("entries", &usage.used_inodes.to_string(), "no limit"),
        row("rows", &usage.used_rows.to_string(), "no limit"),
        format!(
            "what was deleted counts until it is purged, {} after it was deleted",
            time_text(retention_ms)
        ),
    ]
    .join("\n")
}

fn figures_text(usage: &HomeUsage, retention_ms: u64) -> String {
    let allowed = usage.quota_bytes.map_or_else(|| "no limit".to_owned(), bytes_text);
    format!(
        "your files use {} of {allowed}, and with this it would be more; what is deleted counts until it is \
         purged, {} later",
        bytes_text(usage.used_bytes),
        time_text(retention_ms)
    )
}
