//! The server roles: read the configuration, set up the process, run until told to stop.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use coffer_service::identity::ProcessIdentity;
use coffer_service::shutdown::Shutdown;
use coffer_service::telemetry::{self, LogFormat, Otlp, TelemetryGuard};
use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};

/// Set by a parent that wants its children to end with it: the parent's process id.
pub(crate) const DIE_WITH_PARENT: &str = "COFFER_DIE_WITH_PARENT";

/// Arguments of every server role.
#[derive(Debug, clap::Args)]
pub(crate) struct RoleArgs {
    /// The configuration file; its values can also be set from the environment
    #[arg(long)]
    config: Option<PathBuf>,
    /// Write logs as JSON lines
    #[arg(long)]
    log_json: bool,
    /// Which log lines are written, as for `RUST_LOG`
    #[arg(long, env = "COFFER_LOG", default_value = "info")]
    log: String,
    /// Send traces and logs to the collector at this address, by OTLP over gRPC, such as
    /// `http://127.0.0.1:4317`
    #[arg(long, value_name = "URL", env = "OTEL_EXPORTER_OTLP_ENDPOINT")]
    otlp: Option<String>,
}

impl RoleArgs {
    /// Starts the telemetry of a process with this role, whose volume this is.
    fn telemetry(&self, role: &'static str, volume: Option<&Path>) -> Result<TelemetryGuard> {
        let format = if self.log_json { LogFormat::Json } else { LogFormat::Text };
        // An empty variable is one that is not set: OpenTelemetry says so.
        let endpoint = self.otlp.clone().filter(|endpoint| !endpoint.is_empty());
        let otlp = endpoint.map(|endpoint| Otlp {
            endpoint,
            role,
            instance: volume.and_then(ProcessIdentity::recorded),
        });
        Ok(telemetry::init(format, &self.log, otlp.as_ref())?)
    }
}

/// Which server.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Server {
    Metadata,
    Storage,
    Gateway,
}

/// Runs one server until SIGTERM or SIGINT.
pub(crate) async fn run(server: Server, args: RoleArgs) -> Result<()> {
    end_with_parent()?;
    let shutdown = Shutdown::new();
    shutdown.listen_for_signals().context("cannot listen for signals")?;
    let file = args.config.as_deref();
    match server {
        Server::Metadata => {
            let config = coffer_metadata_raft::read_config(file)?;
            let volume = Some(config.data_dir.as_path());
            let telemetry = args.telemetry(coffer_metadata_raft::ROLE, volume)?;
            let ended = coffer_metadata_raft::run(config, shutdown).await;
            telemetry.stop().await;
            ended?;
        }
        Server::Storage => {
            let config = coffer_storage_node::read_config(file)?;
            let volume = Some(config.data_dir.as_path());
            let telemetry = args.telemetry(coffer_storage_node::ROLE, volume)?;
            let ended = coffer_storage_node::run(config, shutdown).await;
            telemetry.stop().await;
            ended?;
        }
        Server::Gateway => {
            let config = coffer_gateway::read_config(file)?;
            let telemetry = args.telemetry(coffer_gateway::ROLE, None)?;
            let ended = coffer_gateway::run(config, shutdown).await;
            telemetry.stop().await;
            ended?;
        }
    }
    Ok(())
}

fn end_with_parent() -> Result<()> {
    let Ok(parent) = std::env::var(DIE_WITH_PARENT) else { return Ok(()) };
    set_parent_process_death_signal(Some(Signal::TERM))
        .context("cannot ask to end with the parent process")?;
    // It may have ended before we asked.
    let alive = getppid().map(Pid::as_raw_nonzero).map(|pid| pid.to_string());
    if alive.as_deref() != Some(parent.as_str()) {
        anyhow::bail!("the parent process {parent} is gone");
    }
    Ok(())
}
