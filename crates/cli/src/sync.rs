//! `coffer sync`: one tree becomes like another. Without --yes it only says what it would do.

use std::path::Path;
use std::sync::Arc;

use anyhow::Result;
use coffer_client::{
    ClientError, Difference, Progress as Listener, Session, Step, SyncOptions, SyncReport,
};
use coffer_model::name::UserName;
use serde_json::{Value, json};

use crate::commands::{Console, path};
use crate::exit::Partial;
use crate::output::{self, entry_mark, kind_name};
use crate::progress::Progress;

/// `coffer sync`
#[derive(Debug, clap::Args)]
pub(crate) struct SyncArgs {
    /// What is to be like: a local directory, or a remote one
    source: String,
    /// What is made like it. One of both is remote: it begins with your own name, /alice/…
    target: String,
    /// Do it; without this nothing is changed
    #[arg(short, long)]
    yes: bool,
    /// Delete what only the target has, and replace what is of another kind there
    #[arg(long)]
    delete: bool,
    /// Read both sides and compare content where the size is the same; the time then decides nothing
    #[arg(short, long)]
    checksum: bool,
}

/// Which of both is remote.
#[derive(Debug, PartialEq, Eq)]
enum Direction {
    ToRemote,
    ToLocal,
}

/// A remote path begins with the user's own home; exactly one of both has to.
fn direction(user: &UserName, source: &str, target: &str) -> Result<Direction, ClientError> {
    let home = format!("/{user}");
    let is_remote = |text: &str| {
        text.strip_prefix(&home).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    match (is_remote(source), is_remote(target)) {
        (false, true) => Ok(Direction::ToRemote),
        (true, false) => Ok(Direction::ToLocal),
        (true, true) => Err(ClientError::Invalid {
            what: format!(
                "both paths look remote, for they begin with {home}; write the local one as /.{home}/…"
            ),
        }),
        (false, false) => Err(ClientError::Invalid {
            what: format!("one of both must be remote, and begin with {home}"),
        }),
    }
}

/// Shows differences as they are found, above the progress of what is done about them.
struct Shown {
    progress: Progress,
    json: bool,
}

impl Listener for Shown {
    fn found(&self, files: u64, bytes: u64) {
        self.progress.found(files, bytes);
    }

    fn bytes(&self, count: u64) {
        self.progress.bytes(count);
    }

    fn done(&self, path: &str) {
        self.progress.done(path);
    }

    fn differs(&self, difference: &Difference) {
        self.progress.aside(|| {
            if self.json {
                output::json(&difference_json(difference));
            } else {
                output::line(&difference_line(difference));
            }
        });
    }

    fn failed(&self, path: &str, error: &ClientError) {
        self.progress.aside(|| self.progress.failed(path, error));
    }
}

fn difference_line(difference: &Difference) -> String {
    let (path, mark) = (&difference.path, entry_mark(difference.kind));
    match difference.step {
        Step::Add => format!("+ {path}{mark}"),
        Step::Change(why) => format!("~ {path}{mark} ({why})"),
        Step::Delete => format!("- {path}{mark}"),
    }
}

fn difference_json(difference: &Difference) -> Value {
    let (step, why) = match difference.step {
        Step::Add => ("add", None),
        Step::Change(why) => ("change", Some(why)),
        Step::Delete => ("delete", None),
    };
    let kind = kind_name(difference.kind);
    json!({ "step": step, "path": difference.path, "kind": kind, "bytes": difference.bytes, "why": why })
}

fn sum_text(report: &SyncReport, applied: bool) -> String {
    let SyncReport { added, changed, deleted, unchanged, .. } = report;
    let mib = report.bytes >> 20;
    if added + changed + deleted + report.failed == 0 {
        return format!("nothing to do, all {unchanged} names are the same");
    }
    match applied {
        true => format!(
            "{added} added, {changed} changed, {deleted} deleted, {unchanged} the same; {mib} MiB moved"
        ),
        false => format!(
            "{added} to add, {changed} to change, {deleted} to delete, {unchanged} the same; {mib} MiB to move\n\
             nothing was changed; with --yes it is done"
        ),
    }
}

impl Console {
    pub(crate) async fn sync(&self, session: &Session, args: &SyncArgs) -> Result<()> {
        let SyncArgs { source, target, .. } = args;
        let options =
            SyncOptions { apply: args.yes, delete: args.delete, compare_content: args.checksum };
        let progress = Progress::new("sync", self.global.json || !args.yes);
        let shown = Arc::new(Shown { progress, json: self.global.json });
        let report = match direction(session.name(), source, target)? {
            Direction::ToRemote => {
                let (local, remote) = (Path::new(source), path(target)?);
                session.sync_to_remote(local, &remote, &options, shown.clone()).await?
            }
            Direction::ToLocal => {
                let (remote, local) = (path(source)?, Path::new(target));
                session.sync_to_local(&remote, local, &options, shown.clone()).await?
            }
        };
        shown.progress.finish();
        let value = json!({
            "applied": args.yes,
            "added": report.added,
            "changed": report.changed,
            "deleted": report.deleted,
            "unchanged": report.unchanged,
            "bytes": report.bytes,
            "failed": report.failed,
        });
        self.told(&value, &sum_text(&report, args.yes));
        if report.failed > 0 { Err(Partial.into()) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use coffer_model::object::Kind;

    use super::*;

    #[test]
    fn which_side_is_remote_shows_in_the_paths() {
        let user: UserName = "alice".parse().unwrap();
        let rows = [
            ("docs", "/alice/docs", Some(Direction::ToRemote)),
            ("/alice", "/tmp/x", Some(Direction::ToLocal)),
            ("/alice/a", "/./alice/a", Some(Direction::ToLocal)),
            ("/alice/a", "/alice/b", None),
            ("/alicea", "/bob/b", None),
        ];
        for (source, target, expected) in rows {
            assert_eq!(direction(&user, source, target).ok(), expected, "{source} {target}");
        }
    }

    #[test]
    fn differences_and_sums_read_well() {
        let difference = |step, kind| Difference { step, path: "a/b".to_owned(), kind, bytes: 7 };
        let line = |step, kind| difference_line(&difference(step, kind));
        assert_eq!(line(Step::Add, Kind::Directory), "+ a/b/");
        assert_eq!(line(Step::Change("time"), Kind::File), "~ a/b (time)");
        assert_eq!(line(Step::Delete, Kind::Symlink), "- a/b@");
        let report = SyncReport { unchanged: 5, ..SyncReport::default() };
        assert_eq!(sum_text(&report, false), "nothing to do, all 5 names are the same");
        let report = SyncReport { deleted: 1, ..report };
        assert!(sum_text(&report, false).contains("1 to delete"));
        assert!(sum_text(&report, true).contains("1 deleted"));
    }
}
