//! The gateway's configuration file.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use coffer_service::config::{ConfigError, Reader, read};
use coffer_service::tls::TlsFiles;

/// What a gateway reads at its start.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where clients connect.
    pub listen: SocketAddr,
    /// The signed cluster descriptor.
    pub descriptor: PathBuf,
    /// Certificate and key, and the cluster's authority.
    pub tls: TlsFiles,
    /// How many chunk bytes may be under way at a time.
    pub in_flight_bytes: u64,
    /// Where health and metrics, and nothing else, are served without TLS; left out: nowhere.
    pub health_listen: Option<SocketAddr>,
    /// The file of the audit log; left out: none is written.
    pub audit_log: Option<PathBuf>,
}

/// Reads the configuration from a file and the environment (`COFFER_GATEWAY__…`).
pub fn read_config(file: Option<&Path>) -> Result<Config, ConfigError> {
    read(file, "COFFER_GATEWAY", |reader: &Reader<'_>| Config {
        listen: reader.socket_addr("listen"),
        descriptor: reader.path("descriptor"),
        tls: reader.table("tls", |tls| TlsFiles {
            ca: tls.path("ca"),
            certificate: tls.path("certificate"),
            key: tls.path("key"),
        }),
        in_flight_bytes: reader.bytes_size("in_flight_bytes", 8 << 20..=8 << 30, 96 << 20),
        health_listen: reader.optional_parsed("health_listen", "an IP address and a port"),
        audit_log: reader.optional_path("audit_log"),
    })
}
