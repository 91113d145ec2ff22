//! The server roles: read the configuration, set up the process, run until told to stop.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use coffer_authority::{EnrolConfig, EnrolError};
use coffer_model::enrolment::Applicant;
use coffer_service::identity::ProcessIdentity;
use coffer_service::shutdown::Shutdown;
use coffer_service::telemetry::{self, LogFormat, Otlp};
use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};

use crate::found::Role;

/// Set by a parent that wants its children to end with it: the parent's process id.
pub(crate) const DIE_WITH_PARENT: &str = "COFFER_DIE_WITH_PARENT";

/// What is logged, and where traces go.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct LogArgs {
    /// Which log lines are written, as for `RUST_LOG`
    #[arg(long, env = "COFFER_LOG", default_value = "info")]
    pub(crate) log: String,
    /// Send traces and logs to the collector at this address, by OTLP over gRPC, such as
    /// `http://127.0.0.1:4317`
    #[arg(long, value_name = "URL", env = "OTEL_EXPORTER_OTLP_ENDPOINT")]
    otlp: Option<String>,
}

impl LogArgs {
    /// For servers that are started with this process's environment, where the collector stands.
    pub(crate) fn of_environment() -> Self {
        let log = std::env::var("COFFER_LOG").unwrap_or_else(|_| "info".to_owned());
        Self { log, otlp: None }
    }

    /// The collector, if there is one.
    pub(crate) fn collector(&self) -> Option<&str> {
        // An empty variable is one that is not set: OpenTelemetry says so.
        self.otlp.as_deref().filter(|endpoint| !endpoint.is_empty())
    }
}

/// Arguments of every server role.
#[derive(Debug, clap::Args)]
pub(crate) struct RoleArgs {
    /// The configuration file; its values can also be set from the environment
    #[arg(long)]
    config: Option<PathBuf>,
    /// Apply to the authority that this file names for certificates and for a place in the cluster, and wait for it
    /// where there is nothing to begin with
    #[arg(long, value_name = "FILE")]
    enrol: Option<PathBuf>,
    #[command(flatten)]
    output: LogOutput,
}

/// Arguments of the authority.
#[derive(Debug, clap::Args)]
pub(crate) struct AuthorityArgs {
    /// The configuration file; its values can also be set from the environment
    #[arg(long)]
    config: Option<PathBuf>,
    #[command(flatten)]
    output: LogOutput,
}

/// How and what is logged.
#[derive(Debug, clap::Args)]
struct LogOutput {
    /// Write logs as JSON lines
    #[arg(long)]
    log_json: bool,
    #[command(flatten)]
    logging: LogArgs,
}

impl LogOutput {
    const fn format(&self) -> LogFormat {
        if self.log_json { LogFormat::Json } else { LogFormat::Text }
    }
}

/// A server whose configuration has been read.
#[derive(Debug)]
pub(crate) enum Server {
    Metadata(coffer_metadata_raft::Config),
    Storage(coffer_storage_node::Config),
    Gateway(coffer_gateway::Config),
}

impl Server {
    /// Reads the configuration of a server from its file and the environment.
    pub(crate) fn read(role: Role, file: Option<&Path>) -> Result<Self> {
        Ok(match role {
            Role::Metadata => Self::Metadata(coffer_metadata_raft::read_config(file)?),
            Role::Storage => Self::Storage(coffer_storage_node::read_config(file)?),
            Role::Gateway => Self::Gateway(coffer_gateway::read_config(file)?),
        })
    }

    /// Where its traces and logs are exported to, and as whose.
    pub(crate) fn otlp(&self, logging: &LogArgs) -> Option<Otlp> {
        let (role, volume) = match self {
            Self::Metadata(config) => (coffer_metadata_raft::ROLE, Some(&config.data_dir)),
            Self::Storage(config) => (coffer_storage_node::ROLE, Some(&config.data_dir)),
            Self::Gateway(_) => (coffer_gateway::ROLE, None),
        };
        let instance = volume.and_then(|volume| ProcessIdentity::recorded(volume));
        logging.collector().map(|endpoint| Otlp { endpoint: endpoint.to_owned(), role, instance })
    }

    /// What it is to the authority, where its identity is, and where it serves health meanwhile.
    fn applies_as(&self, enrol: &EnrolConfig) -> (Applicant, PathBuf, Option<SocketAddr>) {
        match self {
            Self::Metadata(config) => {
                (Applicant::Member, config.data_dir.clone(), config.health_listen)
            }
            Self::Storage(config) => {
                (Applicant::Node, config.data_dir.clone(), config.health_listen)
            }
            // It has no volume of its own.
            Self::Gateway(config) => {
                (Applicant::Gateway, enrol.dir.join("gateway"), config.health_listen)
            }
        }
    }

    /// Runs it until it is told to stop.
    pub(crate) async fn run(self, shutdown: Shutdown) -> Result<()> {
        match self {
            Self::Metadata(config) => coffer_metadata_raft::run(config, shutdown).await?,
            Self::Storage(config) => coffer_storage_node::run(config, shutdown).await?,
            Self::Gateway(config) => coffer_gateway::run(config, shutdown).await?,
        }
        Ok(())
    }
}

/// Runs one server as this process, until SIGTERM or SIGINT.
pub(crate) async fn run(role: Role, args: RoleArgs) -> Result<()> {
    end_with_parent()?;
    let shutdown = Shutdown::new();
    shutdown.listen_for_signals().context("cannot listen for signals")?;
    let server = Server::read(role, args.config.as_deref())?;
    let enrol = args.enrol.as_deref().map(coffer_authority::read_enrol_config).transpose()?;
    let logging = &args.output.logging;
    let telemetry =
        telemetry::init(args.output.format(), &logging.log, server.otlp(logging).as_ref())?;
    let ended = match enrol {
        Some(enrol) => run_enrolled(server, &enrol, shutdown).await,
        None => server.run(shutdown).await,
    };
    telemetry.stop().await;
    ended
}

/// Runs a server that gets its certificates and its cluster's records from the authority.
async fn run_enrolled(mut server: Server, enrol: &EnrolConfig, shutdown: Shutdown) -> Result<()> {
    let (applicant, volume, health) = server.applies_as(enrol);
    let enrolled = coffer_authority::enrol(enrol, applicant, &volume, health, &shutdown).await;
    let is_founder = match enrolled {
        Ok(enrolled) => enrolled.is_founder,
        Err(EnrolError::Stopped) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    if let Server::Metadata(config) = &mut server {
        config.bootstrap = is_founder;
    }
    server.run(shutdown).await
}

/// Runs the authority as this process, until SIGTERM or SIGINT.
pub(crate) async fn authority(args: AuthorityArgs) -> Result<()> {
    end_with_parent()?;
    let shutdown = Shutdown::new();
    shutdown.listen_for_signals().context("cannot listen for signals")?;
    let config = coffer_authority::read_config(args.config.as_deref())?;
    let logging = &args.output.logging;
    let otlp = logging.collector().map(|endpoint| Otlp {
        endpoint: endpoint.to_owned(),
        role: coffer_authority::ROLE,
        instance: ProcessIdentity::recorded(&config.data_dir),
    });
    let telemetry = telemetry::init(args.output.format(), &logging.log, otlp.as_ref())?;
    let ended = coffer_authority::run(config, shutdown).await;
    telemetry.stop().await;
    Ok(ended?)
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
