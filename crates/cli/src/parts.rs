//! The parts of a cluster on this machine: each is a process of its own, or has threads of its own in
//! this process. Either way it has its folder, its configuration and its log, and is stopped in order.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use coffer_service::shutdown::Shutdown;
use coffer_service::telemetry::{LogFormat, Part};
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};
use tokio::runtime::Builder;
use tokio::sync::oneshot;

use crate::BLOCKING_THREADS_MAX;
use crate::found::{self, Process, Role, config_file};
use crate::output;
use crate::roles::{DIE_WITH_PARENT, LogArgs, Server};

/// How long a part may take to stop before it is killed.
const STOP_WITHIN: Duration = Duration::from_secs(15);
/// How long threads may take to end once their server has ended.
const THREADS_END_WITHIN: Duration = Duration::from_secs(5);
/// Threads of one part for what does not wait.
const THREADS: usize = 2;

/// How the parts of a cluster run.
#[derive(Clone, Debug)]
pub(crate) enum Kind {
    /// Each as a process that runs this program.
    Processes(PathBuf),
    /// All in this process.
    Threads,
}

impl Kind {
    /// Each as a process that runs the present program.
    pub(crate) fn processes() -> Result<Self> {
        let binary = std::env::current_exe().context("cannot find this program's own file")?;
        Ok(Self::Processes(binary))
    }
}

/// Starts the parts of the cluster in `dir`.
#[derive(Clone, Debug)]
pub(crate) struct Starter {
    pub(crate) kind: Kind,
    pub(crate) dir: PathBuf,
    pub(crate) logging: LogArgs,
}

/// A part that has been started.
pub(crate) struct Running {
    pub(crate) process: Process,
    body: Body,
}

enum Body {
    Process(Child),
    Threads { shutdown: Shutdown, ended: oneshot::Receiver<Result<()>>, how: Option<String> },
}

impl Starter {
    /// Starts one part. It may still fail to come up, which [`Running::ended`] then tells.
    pub(crate) fn start(&self, process: &Process) -> Result<Running> {
        let process = &found::renew_if_lost(&self.dir, process)?;
        let folder = self.dir.join(&process.name);
        let log = log_of(&self.dir, &process.name);
        let log = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .with_context(|| format!("cannot write {}", log.display()))?;
        let pid = folder.join("pid");
        let body = match &self.kind {
            Kind::Processes(binary) => {
                let child = self.spawn(binary, process, log)?;
                if let Some(id) = child.id() {
                    std::fs::write(pid, id.to_string())?;
                }
                Body::Process(child)
            }
            Kind::Threads => {
                // It has no process of its own that somebody could send a signal to.
                let _ = std::fs::remove_file(pid);
                self.run_here(process, log)?
            }
        };
        Ok(Running { process: process.clone(), body })
    }

    fn spawn(&self, binary: &Path, process: &Process, log: File) -> Result<Child> {
        let mut command = Command::new(binary);
        command.arg(process.role.name()).arg("--config");
        command.arg(config_file(&self.dir, &process.name)).arg("--log").arg(&self.logging.log);
        if let Some(collector) = self.logging.collector() {
            command.arg("--otlp").arg(collector);
        }
        command
            .env(DIE_WITH_PARENT, std::process::id().to_string())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // Ctrl-C goes to the parent only, which stops the processes in order.
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {}", process.name))
    }

    fn run_here(&self, process: &Process, log: File) -> Result<Body> {
        let name = &process.name;
        let server = Server::read(process.role, Some(&config_file(&self.dir, name)))?;
        let otlp = server.otlp(&self.logging);
        let (part, telemetry) =
            Part::start(LogFormat::Text, &self.logging.log, log, otlp.as_ref())?;
        let entering = part.clone();
        let runtime = Builder::new_multi_thread()
            .worker_threads(THREADS)
            .max_blocking_threads(BLOCKING_THREADS_MAX)
            .thread_name(name)
            .on_thread_start(move || entering.enter())
            .enable_all()
            .build()
            .with_context(|| format!("cannot start the threads of {name}"))?;
        let shutdown = Shutdown::new();
        let (ending, ended) = oneshot::channel();
        let stopping = shutdown.clone();
        thread::Builder::new().name(name.clone()).spawn(move || {
            part.enter();
            let outcome = runtime.block_on(async {
                let outcome = tokio::spawn(server.run(stopping)).await;
                telemetry.stop().await;
                outcome.unwrap_or_else(|panic| Err(anyhow!("it broke: {panic}")))
            });
            if let Err(error) = &outcome {
                tracing::error!("{}", output::chain(error));
            }
            // Whoever starts it again finds its files released.
            runtime.shutdown_timeout(THREADS_END_WITHIN);
            let _ = ending.send(outcome);
        })?;
        Ok(Body::Threads { shutdown, ended, how: None })
    }
}

impl Running {
    /// Its process id, if it has one of its own.
    pub(crate) fn pid(&self) -> Option<u32> {
        match &self.body {
            Body::Process(child) => child.id(),
            Body::Threads { .. } => None,
        }
    }

    /// Waits until it has ended, and says how. This may be called again.
    pub(crate) async fn ended(&mut self) -> String {
        match &mut self.body {
            Body::Process(child) => match child.wait().await {
                Ok(status) => status.to_string(),
                Err(error) => error.to_string(),
            },
            Body::Threads { ended, how, .. } => match how {
                Some(how) => how.clone(),
                None => {
                    let told = match ended.await {
                        Ok(Ok(())) => "it stopped".to_owned(),
                        Ok(Err(error)) => output::chain(&error),
                        Err(_) => "it broke".to_owned(),
                    };
                    how.insert(told).clone()
                }
            },
        }
    }

    fn ask_to_stop(&self) {
        match &self.body {
            Body::Process(_) => self.signal(Signal::TERM),
            Body::Threads { shutdown, .. } => shutdown.request("the cluster stops"),
        }
    }

    fn signal(&self, signal: Signal) {
        let pid = self.pid().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
        if let Some(pid) = pid {
            // It may be gone by now, which is what we want.
            let _ = kill_process(pid, signal);
        }
    }

    async fn stop(mut self) {
        let waited = tokio::time::timeout(STOP_WITHIN, self.ended()).await;
        if waited.is_ok() {
            return;
        }
        let name = self.process.name.clone();
        match self.body {
            Body::Process(_) => {
                tracing::warn!(name, "did not stop in time; killed");
                self.signal(Signal::KILL);
                self.ended().await;
            }
            // It ends with this process.
            Body::Threads { .. } => tracing::warn!(name, "did not stop in time"),
        }
    }
}

/// The log of a part.
pub(crate) fn log_of(dir: &Path, name: &str) -> PathBuf {
    dir.join(name).join("log")
}

/// Stops the gateway first, then the storage nodes, then the members: each finishes its work while
/// what it depends on is still there.
pub(crate) async fn stop_all(running: Vec<Running>) {
    let order = [Role::Gateway, Role::Storage, Role::Metadata];
    let mut groups: [Vec<Running>; 3] = Default::default();
    for running in running {
        let at = order.iter().position(|role| *role == running.process.role).unwrap_or(0);
        groups[at].push(running);
    }
    for group in groups {
        group.iter().for_each(Running::ask_to_stop);
        for running in group {
            running.stop().await;
        }
    }
}
