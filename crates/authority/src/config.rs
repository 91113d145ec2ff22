//! The configuration of the authority, and of a process that applies there.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use coffer_service::config::{ConfigError, Reader, read};

use crate::names::{NamesOf, Pattern};

const DAY_MS: u64 = 86_400_000;
/// As `coffer join policy` has it.
const SILENT_MS: std::ops::RangeInclusive<u64> = 5_000..=30 * DAY_MS;

/// The configuration of the authority.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where it listens.
    pub listen: SocketAddr,
    /// Where it serves health and metrics.
    pub health_listen: Option<SocketAddr>,
    /// Its volume.
    pub data_dir: PathBuf,
    /// The audit log.
    pub audit_log: Option<PathBuf>,
    /// The certificates that are trusted, PEM; the first one is in the first descriptor.
    pub ca: PathBuf,
    /// The certificate by which it issues, and what leads from it to a trusted one, PEM.
    pub issuer: PathBuf,
    /// The key of that certificate, PEM.
    pub key: PathBuf,
    /// The join token.
    pub join_token_file: PathBuf,
    /// The folder with the administrator's key. It is needed until the cluster is founded.
    pub administrator: Option<PathBuf>,
    /// Its own host names.
    pub names: Vec<String>,
    /// The addresses of the founding members.
    pub members: Vec<String>,
    /// The addresses of the founding storage nodes.
    pub nodes: Vec<String>,
    /// Whether anybody may register.
    pub open_registration: bool,
    /// For how long a process has to be silent before one on a new volume takes its place; none: never.
    pub replace_after: Option<Duration>,
    /// How long certificates count.
    pub certificate_life: Duration,
    /// Which names the certificates of each role may have.
    pub names_of: NamesOf,
}

/// The configuration of a process that applies.
#[derive(Clone, Debug)]
pub struct EnrolConfig {
    /// Where the authority is.
    pub authority: String,
    /// The certificates that are trusted until the authority has told of others.
    pub ca: PathBuf,
    /// The join token.
    pub join_token_file: PathBuf,
    /// Where descriptor, layout and `tls/` are put.
    pub dir: PathBuf,
    /// The host names of the process.
    pub names: Vec<String>,
    /// Where it is reached; not for a gateway.
    pub address: String,
    /// Its zone.
    pub zone: String,
    /// Its weight.
    pub weight: u32,
}

/// Reads the configuration of the authority from a file and the environment.
pub fn read_config(file: Option<&Path>) -> Result<Config, ConfigError> {
    read(file, "COFFER_AUTHORITY", Config::read)
}

/// Reads the configuration of a process that applies from a file and the environment.
pub fn read_enrol_config(file: &Path) -> Result<EnrolConfig, ConfigError> {
    read(Some(file), "COFFER_ENROL", EnrolConfig::read)
}

impl Config {
    fn read(reader: &Reader<'_>) -> Self {
        let patterns = |names_of: &Reader<'_>, role: &str| {
            names_of.list_of_parsed::<Pattern>(role, "host names, whose labels may be *")
        };
        let replace_after = reader
            .optional_string("replace_after")
            .map(|_| reader.duration_ms("replace_after", SILENT_MS, 600_000));
        let config = Self {
            listen: reader.socket_addr("listen"),
            health_listen: reader.optional_parsed("health_listen", "an IP address and a port"),
            data_dir: reader.path("data_dir"),
            audit_log: reader.optional_path("audit_log"),
            ca: reader.path("ca"),
            issuer: reader.path("issuer"),
            key: reader.path("key"),
            join_token_file: reader.path("join_token_file"),
            administrator: reader.optional_path("administrator"),
            names: reader.list_of_strings("names"),
            members: reader.list_of_host_ports("members"),
            nodes: reader.list_of_host_ports("nodes"),
            open_registration: reader.bool_or("open_registration", false),
            replace_after,
            certificate_life: reader.duration_ms(
                "certificate_life",
                20_000..=365 * DAY_MS,
                30 * DAY_MS,
            ),
            names_of: reader.table("names_of", |names_of| NamesOf {
                member: patterns(names_of, "metadata"),
                node: patterns(names_of, "storage"),
                gateway: patterns(names_of, "gateway"),
            }),
        };
        if config.names.is_empty() {
            reader.fault("names", "the host names of the authority");
        }
        if !matches!(config.members.len(), 1 | 3 | 5 | 7) {
            reader.fault("members", "the addresses of 1, 3, 5 or 7 founding members");
        }
        if config.nodes.len() < 2 {
            reader.fault(
                "nodes",
                "the addresses of at least 2 founding storage nodes: content is always kept on two",
            );
        }
        config
    }
}

impl EnrolConfig {
    fn read(reader: &Reader<'_>) -> Self {
        let weight = reader.u64_in("weight", 1..=1_000_000, 1);
        Self {
            authority: reader.host_port("authority"),
            ca: reader.path("ca"),
            join_token_file: reader.path("join_token_file"),
            dir: reader.path("dir"),
            names: reader.list_of_strings("names"),
            address: reader.string_or_empty("address"),
            zone: reader.string_or_empty("zone"),
            weight: u32::try_from(weight).unwrap_or(1),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use coffer_service::config::parse;

    use super::*;

    const NEEDED: &str = r#"
listen = "[::]:7423"
data_dir = "data"
ca = "ca.pem"
issuer = "ca.pem"
key = "ca.key"
join_token_file = "token"
names = ["authority"]
members = ["m-0:7421"]
nodes = ["n-0:7422", "n-1:7422"]
"#;

    fn parsed(text: &str) -> Result<Config, ConfigError> {
        parse(text, [], "COFFER_AUTHORITY", Config::read)
    }

    #[test]
    fn what_is_left_out_has_a_default() {
        let config = parsed(NEEDED).unwrap();
        assert_eq!(config.replace_after, None);
        assert_eq!(config.certificate_life, Duration::from_secs(30 * 86_400));
        assert!(!config.open_registration);
        let config = parsed(&format!("replace_after = \"10m\"\n{NEEDED}")).unwrap();
        assert_eq!(config.replace_after, Some(Duration::from_secs(600)));
    }

    #[test]
    fn all_faults_are_told_together() {
        let text = NEEDED
            .replace("names = [\"authority\"]", "replace_after = \"1s\"")
            .replace("\"m-0:7421\"", "\"m-0:7421\", \"m-1:7421\"")
            .replace(", \"n-1:7422\"", "")
            + "[names_of]\nstorage = [\"*a.example\"]\n";
        let Err(ConfigError::Faults(faults)) = parsed(&text) else { panic!("it is wrong") };
        let keys: Vec<&str> = faults.faults().iter().map(|fault| fault.key.as_str()).collect();
        for key in ["names", "replace_after", "members", "nodes", "names_of.storage"] {
            assert!(keys.iter().any(|found| found.starts_with(key)), "{key} is not among {keys:?}");
        }
    }
}
