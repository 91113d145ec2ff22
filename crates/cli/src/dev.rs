//! `coffer dev`: a whole cluster on this machine, each part a process of its own.
//!
//! The parent founds the cluster, starts the processes, and watches them. It holds no state that a
//! restart would miss: everything is in the folder. A process that dies is started again, unless
//! told otherwise.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use coffer_proto::v1::GetStatusRequest;
use coffer_proto::v1::cluster_service_client::ClusterServiceClient;
use coffer_service::channel::{ChannelOptions, connect_lazy};
use coffer_service::health::is_ready;
use coffer_service::shutdown::Shutdown;
use coffer_service::tls::{client_config_without_certificate, read_certificates};
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};
use tokio::sync::mpsc;

use crate::found::{
    self, Founded, Process, Role, Size, authority_file, config_file, load, load_or_found,
};
use crate::roles::DIE_WITH_PARENT;

/// How long a new cluster may take until it serves.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// How often the list of processes is looked at.
const LIST_EVERY: Duration = Duration::from_secs(1);
/// How long a process may take to stop before it is killed.
const STOP_WITHIN: Duration = Duration::from_secs(15);

/// `coffer dev`
#[derive(Debug, clap::Args)]
pub(crate) struct DevArgs {
    /// Where the cluster keeps everything
    #[arg(long, default_value = "coffer-dev")]
    dir: PathBuf,
    /// Where clients connect; port 0 picks a free one. Counts when the cluster is made, later the
    /// cluster keeps its address
    #[arg(long, default_value = "127.0.0.1:7420")]
    listen: SocketAddr,
    /// Seconds after which a process that died is started again; 0 leaves it dead
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(0..=3600))]
    restart_after: u64,
}

struct Running {
    process: Process,
    child: Child,
}

/// Runs the cluster until SIGINT or SIGTERM.
#[allow(clippy::print_stdout)]
pub(crate) async fn run(args: DevArgs) -> Result<()> {
    let shutdown = Shutdown::new();
    shutdown.listen_for_signals().context("cannot listen for signals")?;
    std::fs::create_dir_all(&args.dir)
        .with_context(|| format!("cannot create {}", args.dir.display()))?;
    let dir = args.dir.canonicalize()?;
    let size = Size { members: 3, nodes: 3, gateway: args.listen };
    let founded = load_or_found(&dir, size)?;
    let binary = std::env::current_exe().context("cannot find this program's own file")?;

    println!("cluster {}", founded.cluster);
    let mut running = Vec::with_capacity(founded.processes.len());
    for process in &founded.processes {
        running.push(start(&binary, &dir, process)?);
    }
    let served = tokio::select! {
        () = shutdown.cancelled() => None,
        ready = wait_until_ready(&dir, &founded, &mut running) => Some(ready),
    };
    match served {
        Some(Ok(took)) => announce(&dir, &founded, took),
        Some(Err(error)) => {
            stop_all(running).await;
            return Err(error);
        }
        None => {}
    }
    let running = watch(&binary, &dir, running, args.restart_after, &shutdown).await?;
    println!("stopping");
    stop_all(running).await;
    println!("stopped; `coffer dev --dir {}` starts it again with everything", args.dir.display());
    Ok(())
}

/// A cluster for as long as a command runs, without restarts.
pub(crate) struct Temporary {
    pub(crate) founded: Founded,
    running: Vec<Running>,
}

impl Temporary {
    /// Founds and starts a cluster in `dir` and waits until it serves.
    pub(crate) async fn start(dir: &Path) -> Result<Self> {
        let gateway = SocketAddr::from(([127, 0, 0, 1], 0));
        let founded = load_or_found(dir, Size { members: 3, nodes: 3, gateway })?;
        let binary = std::env::current_exe().context("cannot find this program's own file")?;
        let mut running = Vec::with_capacity(founded.processes.len());
        for process in &founded.processes {
            running.push(start(&binary, dir, process)?);
        }
        if let Err(error) = wait_until_ready(dir, &founded, &mut running).await {
            stop_all(running).await;
            return Err(error);
        }
        Ok(Self { founded, running })
    }

    /// The ids of its processes.
    pub(crate) fn pids(&self) -> Vec<u32> {
        self.running.iter().filter_map(|running| running.child.id()).collect()
    }

    pub(crate) async fn stop(self) {
        stop_all(self.running).await;
    }
}

fn start(binary: &Path, dir: &Path, process: &Process) -> Result<Running> {
    let process = &found::renew_if_lost(dir, process)?;
    let folder = dir.join(&process.name);
    let log = std::fs::File::options()
        .create(true)
        .append(true)
        .open(folder.join("log"))
        .with_context(|| format!("cannot write the log of {}", process.name))?;
    let child = Command::new(binary)
        .arg(process.role.name())
        .arg("--config")
        .arg(config_file(dir, &process.name))
        .env(DIE_WITH_PARENT, std::process::id().to_string())
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        // Ctrl-C goes to the parent only, which stops the processes in order.
        .process_group(0)
        .spawn()
        .with_context(|| format!("cannot start {}", process.name))?;
    if let Some(pid) = child.id() {
        std::fs::write(folder.join("pid"), pid.to_string())?;
    }
    Ok(Running { process: process.clone(), child })
}

/// Waits until a leader serves and every storage node has reported.
async fn wait_until_ready(
    dir: &Path,
    founded: &Founded,
    running: &mut [Running],
) -> Result<Duration> {
    let began = Instant::now();
    let gateway = founded.gateway().context("the cluster has no gateway")?;
    let authority = read_certificates(&authority_file(dir))?;
    let tls = std::sync::Arc::new(client_config_without_certificate(&authority)?);
    let options = ChannelOptions {
        request_timeout: Some(Duration::from_secs(5)),
        ..ChannelOptions::standard()
    };
    let channel = connect_lazy(&gateway.to_string(), &gateway.ip().to_string(), tls, &options)?;
    let wanted = founded.processes.iter().filter(|it| it.role == Role::Storage).count();
    loop {
        for running in running.iter_mut() {
            if let Some(status) = running.child.try_wait()? {
                let name = &running.process.name;
                let log = dir.join(name).join("log");
                let tail = std::fs::read_to_string(&log).unwrap_or_default();
                let last = tail.lines().last().unwrap_or("its log is empty").to_owned();
                bail!("{name} did not start ({status}): {last}\nits log is {}", log.display());
            }
        }
        let answer =
            ClusterServiceClient::new(channel.clone()).get_status(GetStatusRequest {}).await;
        let told = match answer {
            Ok(answer) => {
                let status = answer.into_inner();
                let here = status.nodes.iter().filter(|node| node.reachable).count();
                let led = status.members.iter().any(|member| member.leader);
                if led && here == wanted && is_ready(channel.clone()).await.unwrap_or(false) {
                    return Ok(began.elapsed());
                }
                format!("{here} of {wanted} storage nodes have reported")
            }
            Err(status) => status.message().to_owned(),
        };
        if began.elapsed() > READY_WITHIN {
            bail!(
                "the cluster does not serve after {} s: {told}; the logs are in {}",
                READY_WITHIN.as_secs(),
                dir.display()
            );
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[allow(clippy::print_stdout)]
fn announce(dir: &Path, founded: &Founded, took: Duration) {
    let Some(gateway) = founded.gateway() else { return };
    let authority = authority_file(dir);
    println!("ready after {:.1} s", took.as_secs_f64());
    println!("  address      {gateway}");
    println!("  certificate  {}", authority.display());
    println!("  logs         {}/<process>/log", dir.display());
    println!();
    println!("try this in another terminal:");
    println!("  export COFFER_SERVER={gateway} COFFER_CA={}", authority.display());
    println!("  coffer register alice");
    println!("  coffer put README.md /alice/README.md");
    println!();
    println!("Ctrl-C stops the cluster.");
}

/// Starts again what dies, until shutdown; gives back what runs then.
#[allow(clippy::print_stdout)]
async fn watch(
    binary: &Path,
    dir: &Path,
    running: Vec<Running>,
    restart_after: u64,
    shutdown: &Shutdown,
) -> Result<Vec<Running>> {
    // Each process has a task that waits for it and says when it is gone.
    let (gone, mut news) = mpsc::channel::<(Process, String)>(16);
    let mut alive: Vec<Watched> =
        running.into_iter().map(|running| Watched::new(running, gone.clone())).collect();
    let mut known: BTreeSet<String> = alive.iter().map(|it| it.process.name.clone()).collect();
    let mut look = tokio::time::interval(LIST_EVERY);
    loop {
        let (process, how) = tokio::select! {
            () = shutdown.cancelled() => break,
            Some(news) = news.recv() => news,
            _ = look.tick() => {
                // `coffer node` and `coffer member` change the list.
                let listed = load(dir)?.processes;
                for process in listed.iter().filter(|process| !known.contains(&process.name)) {
                    println!("{} is new", process.name);
                    alive.push(Watched::new(start(binary, dir, process)?, gone.clone()));
                }
                known.extend(listed.iter().map(|process| process.name.clone()));
                let is_listed = |watched: &Watched| {
                    listed.iter().any(|process| process.name == watched.process.name)
                };
                let (kept, taken_out): (Vec<_>, Vec<_>) = alive.into_iter().partition(is_listed);
                alive = kept;
                let mut stopping = Vec::new();
                for watched in taken_out {
                    println!("{} is taken out", watched.process.name);
                    stopping.extend(watched.release().await);
                }
                stop_all(stopping).await;
                continue;
            }
        };
        println!("{} is gone: {how}", process.name);
        alive.retain(|watched| watched.process.name != process.name);
        if restart_after > 0 {
            tokio::select! {
                () = shutdown.cancelled() => break,
                () = tokio::time::sleep(Duration::from_secs(restart_after)) => {}
            }
            let listed = load(dir)?.processes;
            if listed.iter().any(|listed| listed.name == process.name) {
                println!("{} is started again", process.name);
                alive.push(Watched::new(start(binary, dir, &process)?, gone.clone()));
            }
        }
    }
    let mut left = Vec::new();
    for watched in alive {
        left.extend(watched.release().await);
    }
    Ok(left)
}

/// A process somebody waits for.
struct Watched {
    process: Process,
    release: tokio::sync::oneshot::Sender<()>,
    waiting: tokio::task::JoinHandle<Option<Running>>,
}

impl Watched {
    fn new(mut running: Running, gone: mpsc::Sender<(Process, String)>) -> Self {
        let (release, released) = tokio::sync::oneshot::channel();
        let process = running.process.clone();
        let waiting = tokio::spawn(async move {
            let how = tokio::select! {
                _ = released => return Some(running),
                status = running.child.wait() => match status {
                    Ok(status) => status.to_string(),
                    Err(error) => error.to_string(),
                },
            };
            // The receiver is there until shutdown; after that nobody needs to know.
            let _ = gone.send((running.process, how)).await;
            None
        });
        Self { process, release, waiting }
    }

    async fn release(self) -> Option<Running> {
        // An error means that the process is gone already.
        let _ = self.release.send(());
        self.waiting.await.ok().flatten()
    }
}

/// Stops the gateway first, then the storage nodes, then the members: each finishes its work while
/// what it depends on is still there.
async fn stop_all(running: Vec<Running>) {
    let order = [Role::Gateway, Role::Storage, Role::Metadata];
    let mut groups: [Vec<Running>; 3] = Default::default();
    for running in running {
        let at = order.iter().position(|role| *role == running.process.role).unwrap_or(0);
        groups[at].push(running);
    }
    for group in groups {
        for running in &group {
            signal(running, Signal::TERM);
        }
        for mut running in group {
            let waited = tokio::time::timeout(STOP_WITHIN, running.child.wait()).await;
            if waited.is_err() {
                tracing::warn!(process = running.process.name, "did not stop in time; killed");
                signal(&running, Signal::KILL);
                let _ = running.child.wait().await;
            }
        }
    }
}

fn signal(running: &Running, signal: Signal) {
    let pid = running.child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
    if let Some(pid) = pid {
        // It may be gone by now, which is what we want.
        let _ = kill_process(pid, signal);
    }
}
