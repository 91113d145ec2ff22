//! The configuration of a metadata member.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use coffer_service::config::{ConfigError, Reader, read};
use coffer_service::tls::TlsFiles;

/// What the environment variables of this role begin with, such as `COFFER_METADATA__LISTEN`.
const ENV_PREFIX: &str = "COFFER_METADATA";

/// What a metadata member needs to know.
#[derive(Clone, Debug)]
pub struct Config {
    /// `listen`: where gRPC is served, with certificates on both sides.
    pub listen: SocketAddr,
    /// `health_listen`: where health and metrics, and nothing else, are served without TLS; left out:
    /// nowhere.
    pub health_listen: Option<SocketAddr>,
    /// `data_dir`: the member's volume.
    pub data_dir: PathBuf,
    /// `descriptor`: the file of the signed first descriptor.
    pub descriptor: PathBuf,
    /// `successors`: the file of the descriptors after the first, for a member that is not named in the
    /// first; left out: there are none.
    pub successors: Option<PathBuf>,
    /// `audit_log`: the file of the audit log; left out: none is written.
    pub audit_log: Option<PathBuf>,
    /// `layout`: the file of the signed first layout.
    pub layout: PathBuf,
    /// `opaque_setup`: the file of the secrets for login, the same on all members, mode 0600.
    pub opaque_setup: PathBuf,
    /// `bootstrap`: whether this member forms the group at its first start. Set it on exactly one.
    pub bootstrap: bool,
    /// `tls.ca`, `tls.certificate`, `tls.key`: PEM files.
    pub tls: TlsFiles,
    /// `join_token_file`: the file of the join token, with which a member on a new volume asks for the place of
    /// one whose volume is lost; left out: it does not.
    pub join_token_file: Option<PathBuf>,
    /// `replaces`: the id or the address of the lost one; needed with `join_token_file`.
    pub replaces: Option<String>,
    /// `timing.*`.
    pub timing: Timing,
}

/// How fast things go. The defaults suit one data centre.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// `timing.heartbeat`: how often a leader says that it is there. It is also the most an append to
    /// a peer may take before it is tried again.
    pub heartbeat: Duration,
    /// `timing.election_min`: the shortest silence after which a member stands for election.
    pub election_min: Duration,
    /// `timing.election_max`: the longest.
    pub election_max: Duration,
    /// `timing.tick`: how old log time may be when work comes.
    pub tick: Duration,
    /// `timing.step_down`: how long a leader that stops waits for a successor.
    pub step_down: Duration,
}

impl Timing {
    /// The defaults.
    pub const STANDARD: Self = Self {
        heartbeat: Duration::from_millis(150),
        election_min: Duration::from_millis(500),
        election_max: Duration::from_millis(1000),
        tick: Duration::from_secs(1),
        step_down: Duration::from_secs(3),
    };
}

/// Reads the configuration from a file and the environment (`COFFER_METADATA__…`).
pub fn read_config(file: Option<&Path>) -> Result<Config, ConfigError> {
    read(file, ENV_PREFIX, Config::read)
}

impl Config {
    fn read(reader: &Reader<'_>) -> Self {
        let (join_token_file, replaces) =
            (reader.optional_path("join_token_file"), reader.optional_string("replaces"));
        if join_token_file.is_some() && replaces.is_none() {
            reader.fault("replaces", "the id or the address of the member to replace");
        }
        Self {
            listen: reader.socket_addr("listen"),
            health_listen: reader.optional_parsed("health_listen", "an IP address and a port"),
            data_dir: reader.path("data_dir"),
            descriptor: reader.path("descriptor"),
            successors: reader.optional_path("successors"),
            audit_log: reader.optional_path("audit_log"),
            layout: reader.path("layout"),
            opaque_setup: reader.path("opaque_setup"),
            bootstrap: reader.bool_or("bootstrap", false),
            tls: reader.table("tls", |tls| TlsFiles {
                ca: tls.path("ca"),
                certificate: tls.path("certificate"),
                key: tls.path("key"),
            }),
            join_token_file,
            replaces,
            timing: reader.table("timing", read_timing),
        }
    }

    /// Where a member that the policy let in keeps the descriptors that name it, until it has the log.
    pub(crate) fn joined_file(&self) -> PathBuf {
        self.data_dir.join("successors")
    }

    /// Where the database stands.
    pub(crate) fn store_dir(&self) -> PathBuf {
        store_dir(&self.data_dir)
    }
}

fn store_dir(data_dir: &Path) -> PathBuf {
    data_dir.join("raft")
}

fn read_timing(reader: &Reader<'_>) -> Timing {
    let ms = |default: Duration| u64::try_from(default.as_millis()).unwrap_or(u64::MAX);
    let standard = Timing::STANDARD;
    let timing = Timing {
        heartbeat: reader.duration_ms("heartbeat", 10..=10_000, ms(standard.heartbeat)),
        election_min: reader.duration_ms("election_min", 50..=60_000, ms(standard.election_min)),
        election_max: reader.duration_ms("election_max", 100..=120_000, ms(standard.election_max)),
        tick: reader.duration_ms("tick", 100..=60_000, ms(standard.tick)),
        step_down: reader.duration_ms("step_down", 0..=60_000, ms(standard.step_down)),
    };
    if timing.election_min < timing.heartbeat * 2 {
        reader.fault("election_min", "at least twice timing.heartbeat");
    }
    if timing.election_max <= timing.election_min {
        reader.fault("election_max", "more than timing.election_min");
    }
    timing
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use coffer_service::config::{ConfigError, parse};

    use super::*;

    const FULL: &str = r#"
        listen = "127.0.0.1:7000"
        data_dir = "data"
        descriptor = "descriptor"
        layout = "layout"
        opaque_setup = "opaque.setup"
        [tls]
        ca = "ca.pem"
        certificate = "certificate.pem"
        key = "key.pem"
    "#;

    #[test]
    fn what_is_left_out_has_a_default() {
        let config = parse(FULL, [], ENV_PREFIX, Config::read).unwrap();
        assert_eq!(config.timing, Timing::STANDARD);
        assert!(!config.bootstrap && config.health_listen.is_none());
        assert_eq!(config.store_dir(), Path::new("data/raft"));
    }

    #[test]
    fn a_join_token_needs_a_place() {
        let text = format!("join_token_file = \"token\"\n{FULL}");
        let Err(ConfigError::Faults(faults)) = parse(&text, [], ENV_PREFIX, Config::read) else {
            panic!("nobody is named")
        };
        assert_eq!(faults.faults()[0].key, "replaces");
        let text = format!("replaces = \"metadata-1:7400\"\n{text}");
        let config = parse(&text, [], ENV_PREFIX, Config::read).unwrap();
        assert_eq!(config.replaces.as_deref(), Some("metadata-1:7400"));
    }

    #[test]
    fn all_faults_are_told_together() {
        let text = "listen = 1\nbootstap = true\n[timing]\nheartbeat = 400\nelection_max = 400\n";
        let Err(ConfigError::Faults(faults)) = parse(text, [], ENV_PREFIX, Config::read) else {
            panic!("the configuration is wrong")
        };
        let keys: Vec<&str> = faults.faults().iter().map(|fault| fault.key.as_str()).collect();
        for key in [
            "listen",
            "bootstap",
            "data_dir",
            "tls.key",
            "timing.election_min",
            "timing.election_max",
        ] {
            assert!(keys.contains(&key), "{key} is not among {keys:?}");
        }
    }
}
