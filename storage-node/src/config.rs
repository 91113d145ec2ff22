//! The storage node's configuration file.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use coffer_service::config::{ConfigError, Reader, read};
use coffer_service::tls::TlsFiles;

use crate::clock::HOLD_MS;

const DAY_MS: u64 = 24 * 60 * 60 * 1000;

/// What a storage node reads at its start.
#[derive(Clone, Debug)]
pub struct Config {
    /// `listen`: where gateways and siblings connect.
    pub listen: SocketAddr,
    /// `advertise`: `host:port` under which others reach this node.
    pub advertise: String,
    /// `data_dir`: the node's volume.
    pub data_dir: PathBuf,
    /// `descriptor`: the file of the signed cluster descriptor.
    pub descriptor: PathBuf,
    /// `tls.ca`, `tls.certificate`, `tls.key`: PEM files.
    pub tls: TlsFiles,
    /// `capacity`: how many bytes of chunks the node offers to keep; more are refused.
    pub capacity_bytes: u64,
    /// `segment_bytes`: the size of the files chunks are kept in.
    pub segment_bytes: u64,
    /// `report_every`: how often the node reports to the metadata group.
    pub report_every: Duration,
    /// `poll_every`: how often it asks for newly committed chunks.
    pub poll_every: Duration,
    /// `settle`: how long a committed chunk may still be on its way before it is fetched from a
    /// sibling.
    pub settle: Duration,
    /// `hold`: for how long the node promises to keep a chunk that no commit names yet; what takes longer
    /// from its chunks to its commit sends them again.
    pub hold: Duration,
    /// `compare_every`: how often all that is kept is compared with all that commits have named; that is
    /// also done at each start and when the layout changes.
    pub compare_every: Duration,
    /// `scrub_every`: how long it takes at least to read everything back once and check it.
    pub scrub_every: Duration,
    /// `scrub_bytes_per_second`: how fast it is read at most.
    pub scrub_bytes_per_second: u64,
    /// `compact_every`: how often it is looked whether segments are worth compacting; more often while
    /// the disk is full.
    pub compact_every: Duration,
    /// `compact_dead_percent`: how much of a segment has to be dead for it to be compacted; while the
    /// disk is full, 5 are enough.
    pub compact_dead_percent: u64,
    /// `compact_bytes_per_second`: how fast what is still good is written anew at most.
    pub compact_bytes_per_second: u64,
    /// `health_listen`: where health and metrics, and nothing else, are served without TLS; left out:
    /// nowhere.
    pub health_listen: Option<SocketAddr>,
    /// `audit_log`: the file of the audit log; left out: none is written.
    pub audit_log: Option<PathBuf>,
    /// `join_token_file`: the file of the join token, with which a node on a new volume asks for the place of
    /// one whose volume is lost; left out: it does not.
    pub join_token_file: Option<PathBuf>,
    /// `replaces`: the id or the address of the lost one; left out: the members choose the one that was
    /// reached at the same address, or else the only one of the zone that is silent.
    pub replaces: Option<String>,
    /// `zone`: the zone in which the members choose.
    pub zone: String,
}

/// Reads the configuration from a file and the environment (`COFFER_STORAGE__…`).
pub fn read_config(file: Option<&Path>) -> Result<Config, ConfigError> {
    read(file, "COFFER_STORAGE", |reader: &Reader<'_>| Config {
        listen: reader.socket_addr("listen"),
        advertise: reader.host_port("advertise"),
        data_dir: reader.path("data_dir"),
        descriptor: reader.path("descriptor"),
        tls: reader.table("tls", |tls| TlsFiles {
            ca: tls.path("ca"),
            certificate: tls.path("certificate"),
            key: tls.path("key"),
        }),
        capacity_bytes: reader.bytes_size("capacity", 1 << 20..=1 << 50, 1 << 40),
        segment_bytes: reader.bytes_size("segment_bytes", 4 << 20..=1 << 32, 64 << 20),
        report_every: reader.duration_ms("report_every", 50..=10_000, 3000),
        poll_every: reader.duration_ms("poll_every", 20..=10_000, 500),
        settle: reader.duration_ms("settle", 0..=60_000, 3000),
        hold: reader.duration_ms("hold", 1000..=7 * DAY_MS, HOLD_MS),
        compare_every: reader.duration_ms("compare_every", 1000..=30 * DAY_MS, DAY_MS / 4),
        scrub_every: reader.duration_ms("scrub_every", 1000..=365 * DAY_MS, 7 * DAY_MS),
        scrub_bytes_per_second: reader.bytes_size(
            "scrub_bytes_per_second",
            64 << 10..=1 << 34,
            20 << 20,
        ),
        compact_every: reader.duration_ms("compact_every", 1000..=30 * DAY_MS, DAY_MS / 24),
        compact_dead_percent: reader.u64_in("compact_dead_percent", 1..=100, 50),
        compact_bytes_per_second: reader.bytes_size(
            "compact_bytes_per_second",
            64 << 10..=1 << 34,
            20 << 20,
        ),
        health_listen: reader.optional_parsed("health_listen", "an IP address and a port"),
        audit_log: reader.optional_path("audit_log"),
        join_token_file: reader.optional_path("join_token_file"),
        replaces: reader.optional_string("replaces"),
        zone: reader.string_or_empty("zone"),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const NEEDED: &str = r#"
listen = "127.0.0.1:7421"
advertise = "node-0:7421"
data_dir = "/data"
descriptor = "/descriptor"
[tls]
ca = "ca"
certificate = "certificate"
key = "key"
"#;

    fn read(more: &str) -> Result<Config, ConfigError> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("storage.toml");
        std::fs::write(&file, format!("{more}{NEEDED}")).unwrap();
        read_config(Some(&file))
    }

    #[test]
    fn comparing_has_a_default_and_bounds() {
        assert_eq!(read("").unwrap().compare_every, Duration::from_secs(6 * 60 * 60));
        let config = read("compare_every = \"2h\"\n").unwrap();
        assert_eq!(config.compare_every, Duration::from_secs(2 * 60 * 60));
        for refused in ["compare_every = 0\n", "compare_every = \"31d\"\n"] {
            assert!(read(refused).is_err(), "{refused}");
        }
    }

    #[test]
    fn compaction_has_defaults_and_bounds() {
        let config = read("").unwrap();
        assert_eq!(config.compact_every, Duration::from_secs(60 * 60));
        assert_eq!((config.compact_dead_percent, config.compact_bytes_per_second), (50, 20 << 20));
        let config = read(
            "compact_every = \"10m\"\ncompact_dead_percent = 80\ncompact_bytes_per_second = \"1MiB\"\n",
        )
        .unwrap();
        assert_eq!(config.compact_every, Duration::from_secs(600));
        assert_eq!((config.compact_dead_percent, config.compact_bytes_per_second), (80, 1 << 20));
        for refused in [
            "compact_every = 0\n",
            "compact_dead_percent = 0\n",
            "compact_dead_percent = 101\n",
            "compact_bytes_per_second = 1\n",
        ] {
            assert!(read(refused).is_err(), "{refused}");
        }
    }

    #[test]
    fn scrubbing_has_defaults_and_bounds() {
        let config = read("").unwrap();
        assert_eq!(config.scrub_every, Duration::from_secs(7 * 24 * 60 * 60));
        assert_eq!(config.scrub_bytes_per_second, 20 << 20);
        let config = read("scrub_every = \"30d\"\nscrub_bytes_per_second = \"5MiB\"\n").unwrap();
        assert_eq!(config.scrub_every, Duration::from_secs(30 * 24 * 60 * 60));
        assert_eq!(config.scrub_bytes_per_second, 5 << 20);
        for refused in ["scrub_every = 0\n", "scrub_bytes_per_second = 0\n", "scrub = true\n"] {
            assert!(read(refused).is_err(), "{refused}");
        }
    }
}
