//! `coffer doctor`: looks at one thing after another, and says of each whether it is well, and if not what
//! to do. Facts are gathered first; what they mean is decided by [`checks`], values to values.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Result;
use coffer_client::contact::StateDir;
use coffer_client::{ClientError, Engine, SessionFile};
use coffer_proto::v1::GetStatusResponse;
use serde_json::{Value, json};
use tokio::net::{TcpStream, lookup_host};

use crate::commands::Console;
use crate::exit::Unwell;
use crate::health::{self, Layout, Problem};
use crate::output;

/// How long name resolution, and then a connection, may take.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// How far this clock may be behind log time: as far as two clocks of a cluster may differ.
const CLOCK_SKEW_MS_MAX: u64 = 120_000;

/// What was found out.
struct Facts {
    version: &'static str,
    /// Where the cluster is said to be.
    server: Option<String>,
    /// Whether its name leads to an address, and a connection is taken there.
    resolved: Option<Result<(), String>>,
    connected: Option<Result<(), String>>,
    /// Whether the expected cluster answers over TLS; its version.
    answered: Option<Result<String, String>>,
    status: Option<Result<GetStatusResponse, String>>,
    now_ms: u64,
    session: Login,
    /// Where sessions are kept, and whether that is memory.
    memory: (String, bool),
    /// Where the rest is remembered, and its mode, if it is there.
    state: (String, Option<u32>),
}

/// What the session file is.
enum Login {
    /// There is none.
    No,
    /// A session of this user, until then.
    Until(String, u64),
    /// It is refused.
    Refused(String),
}

/// One thing that was looked at.
struct Check {
    name: &'static str,
    outcome: Outcome,
}

enum Outcome {
    Well(String),
    Wrong(Vec<Problem>),
    /// It could not be looked at, because of what was wrong before.
    Skipped,
}

fn wrong(what: impl Into<String>, fix: impl Into<String>) -> Outcome {
    Outcome::Wrong(vec![Problem { what: what.into(), fix: fix.into() }])
}

/// What the facts mean, in the order somebody would look.
fn checks(facts: &Facts) -> Vec<Check> {
    let mut all = Vec::new();
    let mut check = |name, outcome| all.push(Check { name, outcome });
    check("memory file system", memory(facts));
    check("session", session(facts));
    check("local state", local_state(facts));
    check("server address", address(facts));
    check("connection", connection(facts));
    check("TLS and cluster", answer(facts));
    check("versions", versions(facts));
    let status = facts.status.as_ref();
    match status {
        Some(Err(why)) => {
            let fix = "look whether metadata members run: `coffer member list`, and their logs";
            check("cluster status", wrong(why, fix));
        }
        Some(Ok(_)) => check("cluster status", Outcome::Well("the leader answers".to_owned())),
        None => check("cluster status", Outcome::Skipped),
    }
    let status = status.and_then(|status| status.as_ref().ok());
    check("clock", status.map_or(Outcome::Skipped, |status| clock(facts, status)));
    type Look = fn(&GetStatusResponse) -> (Vec<Problem>, String);
    let looks: [(&str, Look); 5] = [
        ("metadata members", |it| (health::members(it), format!("{} of them", it.members.len()))),
        ("replication", |it| (health::lag(it), "all members keep up".to_owned())),
        ("storage nodes", |it| (health::nodes(it), format!("all {} report", it.nodes.len()))),
        ("free room", |it| (health::room(it), "no node is nearly full".to_owned())),
        ("copies", |it| (health::copies(it), "none is missing or damaged".to_owned())),
    ];
    for (name, look) in looks {
        check(
            name,
            match status.map(look) {
                None => Outcome::Skipped,
                Some((problems, well)) if problems.is_empty() => Outcome::Well(well),
                Some((problems, _)) => Outcome::Wrong(problems),
            },
        );
    }
    check("layout", status.map_or(Outcome::Skipped, layout));
    all
}

fn memory(facts: &Facts) -> Outcome {
    let (place, in_memory) = &facts.memory;
    match in_memory {
        true => Outcome::Well(place.clone()),
        false => wrong(
            format!("{place} is not in memory, so no session can be kept"),
            "export XDG_RUNTIME_DIR=/run/user/$(id -u), or mount a tmpfs there",
        ),
    }
}

fn session(facts: &Facts) -> Outcome {
    let now = facts.now_ms;
    match &facts.session {
        Login::No => Outcome::Well("nobody is logged in; `coffer login NAME` does it".to_owned()),
        Login::Until(user, until) if *until > now => {
            Outcome::Well(format!("{user}, until {}", output::log_time_text(*until)))
        }
        Login::Until(user, _) => {
            wrong(format!("the session of {user} is over"), format!("coffer login {user}"))
        }
        Login::Refused(why) => wrong(why, "coffer logout, then coffer login NAME"),
    }
}

fn local_state(facts: &Facts) -> Outcome {
    match &facts.state {
        (path, None) => Outcome::Well(format!("{path} is not there yet")),
        (path, Some(mode)) if mode & 0o022 == 0 => Outcome::Well(path.clone()),
        (path, Some(_)) => wrong(format!("others may change {path}"), format!("chmod 0700 {path}")),
    }
}

fn address(facts: &Facts) -> Outcome {
    match (&facts.server, &facts.resolved) {
        (None, _) => wrong(
            "nobody said where the cluster is",
            "export COFFER_SERVER=host:port COFFER_CA=ca.pem, or log in",
        ),
        (Some(server), Some(Ok(()))) => Outcome::Well(server.clone()),
        (Some(server), Some(Err(why))) => wrong(
            format!("{server} leads to no address: {why}"),
            "correct --server or $COFFER_SERVER, or look at this machine's name resolution",
        ),
        (Some(_), None) => Outcome::Skipped,
    }
}

fn connection(facts: &Facts) -> Outcome {
    match &facts.connected {
        None => Outcome::Skipped,
        Some(Ok(())) => Outcome::Well("taken".to_owned()),
        Some(Err(why)) => wrong(
            format!("no connection: {why}"),
            "start the gateway (`coffer gateway`), or look at what is in between",
        ),
    }
}

fn answer(facts: &Facts) -> Outcome {
    match &facts.answered {
        None => Outcome::Skipped,
        Some(Ok(_)) => Outcome::Well("the expected cluster answers".to_owned()),
        Some(Err(why)) => {
            wrong(why, "give the cluster's certificate with --ca, and its name with --server-name")
        }
    }
}

fn versions(facts: &Facts) -> Outcome {
    let ours = facts.version;
    match &facts.answered {
        Some(Ok(theirs)) if theirs == ours => Outcome::Well(format!("both {ours}")),
        // The formats carry versions of their own; another program version is no fault by itself.
        Some(Ok(theirs)) => Outcome::Well(format!("this program {ours}, the cluster {theirs}")),
        _ => Outcome::Skipped,
    }
}

/// Log time stands still while nothing happens, so only a clock behind it tells something.
fn clock(facts: &Facts, status: &GetStatusResponse) -> Outcome {
    let behind_ms = status.log_time_ms.saturating_sub(facts.now_ms);
    if behind_ms > CLOCK_SKEW_MS_MAX {
        let what = format!("this machine's clock is at least {} s behind", behind_ms / 1000);
        return wrong(what, "timedatectl set-ntp true");
    }
    let since = facts.now_ms.saturating_sub(status.log_time_ms) / 1000;
    Outcome::Well(format!("not behind log time, which is {since} s old"))
}

fn layout(status: &GetStatusResponse) -> Outcome {
    let version = status.layout_version;
    Outcome::Well(match health::layout(status) {
        Layout::Unknown => format!("version {version}"),
        Layout::Proven { nodes } => format!("version {version}, proven by all {nodes} nodes"),
        Layout::Moving { proven, nodes } => {
            format!("version {version} takes over: proven by {proven} of {nodes} nodes so far")
        }
    })
}

fn text(checks: &[Check]) -> String {
    let mut lines = Vec::new();
    let mut count = 0;
    for Check { name, outcome } in checks {
        match outcome {
            Outcome::Well(how) => lines.push(format!("ok       {name}: {how}")),
            Outcome::Skipped => lines.push(format!("skipped  {name}")),
            Outcome::Wrong(problems) => {
                count += problems.len();
                for Problem { what, fix } in problems {
                    lines.push(format!("problem  {name}: {what}\n         fix: {fix}"));
                }
            }
        }
    }
    lines.push(match count {
        0 => "\nnothing is wrong".to_owned(),
        1 => "\n1 problem".to_owned(),
        count => format!("\n{count} problems"),
    });
    lines.join("\n")
}

fn json(checks: &[Check]) -> Value {
    let one = |Check { name, outcome }: &Check| match outcome {
        Outcome::Well(how) => json!({ "check": name, "state": "ok", "detail": how }),
        Outcome::Skipped => json!({ "check": name, "state": "skipped" }),
        Outcome::Wrong(problems) => json!({
            "check": name,
            "state": "problem",
            "problems": problems.iter()
                .map(|it| json!({ "what": it.what, "fix": it.fix })).collect::<Vec<_>>(),
        }),
    };
    json!({ "well": is_well(checks), "checks": checks.iter().map(one).collect::<Vec<_>>() })
}

fn is_well(checks: &[Check]) -> bool {
    !checks.iter().any(|check| matches!(check.outcome, Outcome::Wrong(_)))
}

impl Console {
    pub(crate) async fn doctor(&self) -> Result<()> {
        let checks = checks(&self.gather().await?);
        self.show(&json(&checks), &text(&checks));
        if is_well(&checks) { Ok(()) } else { Err(Unwell.into()) }
    }

    async fn gather(&self) -> Result<Facts> {
        let file = SessionFile::standard(&self.global.session)?;
        let state_dir = StateDir::standard()?;
        let (session, known) = match file.load() {
            Ok(state) => {
                let login = Login::Until(state.name().to_string(), state.expires().unix_ms());
                (login, Some(state))
            }
            Err(ClientError::NotLoggedIn) => (Login::No, None),
            Err(error) => (Login::Refused(error.to_string()), None),
        };
        let state_path = state_dir.path().unwrap_or(Path::new(""));
        let mode = std::fs::metadata(state_path).ok().map(|it| it.permissions().mode());
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let of_session = known.as_ref().map(|state| state.server().to_owned());
        let mut facts = Facts {
            version: env!("CARGO_PKG_VERSION"),
            server: self.global.server.clone().or(of_session),
            resolved: None,
            connected: None,
            answered: None,
            status: None,
            now_ms: u64::try_from(now.as_millis()).unwrap_or(u64::MAX),
            session,
            memory: (file.path().display().to_string(), file.is_in_memory()),
            state: (state_path.display().to_string(), mode),
        };
        let Some(server) = facts.server.clone() else { return Ok(facts) };
        let addresses: Result<Vec<_>, String> =
            within("name resolution", lookup_host(server.as_str())).await.map(Iterator::collect);
        let addresses = match addresses {
            Ok(addresses) if addresses.is_empty() => Err("there is none".to_owned()),
            addresses => addresses,
        };
        facts.resolved = Some(addresses.as_ref().map(|_| ()).map_err(Clone::clone));
        let Ok(addresses) = addresses else { return Ok(facts) };
        let connected = within("connecting", TcpStream::connect(addresses.as_slice())).await;
        let is_connected = connected.is_ok();
        facts.connected = Some(connected.map(drop));
        if !is_connected {
            return Ok(facts);
        }
        let engine = match (&self.global.server, &known) {
            (None, Some(state)) => Engine::of_session(state, state_dir).map_err(Into::into),
            _ => self.engine().await,
        };
        let answered = match engine {
            Ok(engine) => {
                let version = engine.server_version().await;
                let is_there = version.is_ok();
                facts.answered = Some(version.map_err(|error| error.to_string()));
                is_there.then_some(engine)
            }
            Err(error) => {
                facts.answered = Some(Err(error.to_string()));
                None
            }
        };
        if let Some(engine) = answered {
            facts.status = Some(engine.status().await.map_err(|error| error.to_string()));
        }
        Ok(facts)
    }
}

async fn within<T>(
    what: &str,
    work: impl Future<Output = std::io::Result<T>>,
) -> Result<T, String> {
    match tokio::time::timeout(CONNECT_WITHIN, work).await {
        Ok(done) => done.map_err(|error| error.to_string()),
        Err(_) => Err(format!("{what} took more than {} s", CONNECT_WITHIN.as_secs())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::tests::well as cluster;

    const NOW: u64 = 1_800_000_000_000;

    fn well() -> Facts {
        Facts {
            version: "1.2.3",
            server: Some("host:1".to_owned()),
            resolved: Some(Ok(())),
            connected: Some(Ok(())),
            answered: Some(Ok("1.2.3".to_owned())),
            status: Some(Ok(GetStatusResponse { log_time_ms: NOW - 5000, ..cluster() })),
            now_ms: NOW,
            session: Login::Until("alice".to_owned(), NOW + 1),
            memory: ("/dev/shm/x".to_owned(), true),
            state: ("/state".to_owned(), Some(0o40700)),
        }
    }

    /// Names and states of all checks that are not well.
    fn unwell(facts: &Facts) -> Vec<String> {
        let checks = checks(facts);
        let told: Vec<String> = checks
            .iter()
            .filter_map(|check| match &check.outcome {
                Outcome::Well(_) => None,
                Outcome::Skipped => Some(format!("skipped {}", check.name)),
                Outcome::Wrong(_) => Some(check.name.to_owned()),
            })
            .collect();
        assert_eq!(is_well(&checks), told.iter().all(|it| it.starts_with("skipped")));
        told
    }

    #[test]
    fn each_fault_is_found_where_it_is() {
        type Harm = fn(&mut Facts);
        let rows: &[(Harm, &[&str])] = &[
            (|_| {}, &[]),
            (|it| it.session = Login::No, &[]),
            (|it| it.session = Login::Until("alice".into(), NOW), &["session"]),
            (|it| it.session = Login::Refused("others may read it".into()), &["session"]),
            (|it| it.memory.1 = false, &["memory file system"]),
            (|it| it.state.1 = Some(0o40777), &["local state"]),
            (|it| it.state.1 = None, &[]),
            (|it| it.answered = Some(Ok("1.3.0".into())), &[]),
            (|it| it.now_ms = NOW - 1_000_000, &["clock"]),
            (|it| it.now_ms = NOW - 60_000, &[]),
        ];
        for (harm, expected) in rows {
            let mut facts = well();
            harm(&mut facts);
            assert_eq!(unwell(&facts), *expected);
        }
        type Damage = fn(&mut GetStatusResponse);
        let harmed: &[(Damage, &str)] = &[
            (|it| it.members[2].reachable = false, "metadata members"),
            (|it| it.members[2].behind = 1_000_000, "replication"),
            (|it| it.nodes[2].reachable = false, "storage nodes"),
            (|it| it.nodes[2].used_bytes = 999, "free room"),
            (|it| it.nodes[2].missing_chunks = 1, "copies"),
        ];
        for (harm, expected) in harmed {
            let mut facts = well();
            if let Some(Ok(status)) = &mut facts.status {
                harm(status);
            }
            assert_eq!(unwell(&facts), [*expected]);
        }
    }

    #[test]
    fn what_cannot_be_looked_at_is_skipped_and_the_first_cause_named() {
        let mut facts = well();
        (facts.answered, facts.status) = (None, None);
        facts.connected = Some(Err("refused".to_owned()));
        let told = unwell(&facts);
        assert_eq!(told[0], "connection");
        assert!(told.len() > 8 && told[1..].iter().all(|it| it.starts_with("skipped")), "{told:?}");
        let page = text(&checks(&facts));
        assert!(page.contains("problem  connection: no connection: refused\n         fix: start"));
        assert!(page.ends_with("\n1 problem"), "{page}");
        assert_eq!(json(&checks(&facts))["well"], false);
    }
}
