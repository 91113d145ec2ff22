//! Clusters of real processes for tests that kill them.
//!
//! A [`Cluster`] is `coffer dev` in a temporary folder: three metadata members, three storage nodes
//! and a gateway, each a process of its own on loopback. Dropping it ends every process it started.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use serde_json::Value;
use tempfile::TempDir;

/// Everything a test waits for comes within this time, or the test fails.
const PATIENCE: Duration = Duration::from_secs(90);
/// How often a condition is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// The `coffer` binary beside the test's own.
pub fn coffer_binary() -> Result<PathBuf> {
    let test = std::env::current_exe()?;
    let target =
        test.parent().and_then(Path::parent).context("tests lie in target/<profile>/deps")?;
    let binary = target.join("coffer");
    ensure!(binary.exists(), "{} is missing: run `cargo build -p coffer` first", binary.display());
    Ok(binary)
}

/// A cluster of real processes.
pub struct Cluster {
    dir: TempDir,
    runtime: TempDir,
    dev: Option<Child>,
    restart_after: u32,
    settings: Vec<(String, String)>,
    /// `host:port` of the gateway.
    pub address: String,
}

impl Cluster {
    /// Starts a new cluster and waits until it serves.
    pub fn start() -> Result<Self> {
        Self::start_with(0)
    }

    /// As [`Self::start`]; what dies is started again after so many seconds (0: it stays dead).
    pub fn start_with(restart_after: u32) -> Result<Self> {
        Self::start_set(restart_after, &[])
    }

    /// As [`Self::start_with`], with settings that every process finds in its environment.
    pub fn start_set(restart_after: u32, settings: &[(&str, &str)]) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("coffer-chaos").tempdir()?;
        // Sessions live in memory only.
        let runtime = tempfile::Builder::new().prefix("coffer-chaos").tempdir_in("/dev/shm")?;
        let settings =
            settings.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let address = String::new();
        let mut cluster = Self { dir, runtime, dev: None, address, restart_after, settings };
        cluster.start_again()?;
        Ok(cluster)
    }

    /// Starts all processes over the same folders.
    pub fn start_again(&mut self) -> Result<()> {
        ensure!(self.dev.is_none(), "the cluster runs already");
        let mut dev = Command::new(coffer_binary()?)
            .args(["dev", "--listen", "127.0.0.1:0", "--restart-after"])
            .arg(self.restart_after.to_string())
            .arg("--dir")
            .arg(self.cluster_dir())
            .envs(self.settings.iter().map(|(key, value)| (key, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .context("cannot start `coffer dev`")?;
        let lines = BufReader::new(dev.stdout.take().context("its output is piped")?).lines();
        self.dev = Some(dev);
        let mut ready = false;
        let mut rest = lines;
        for line in rest.by_ref() {
            let line = line?;
            ready |= line.starts_with("ready after");
            if let Some(address) = line.trim().strip_prefix("address") {
                self.address = address.trim().to_owned();
            }
            if line.starts_with("Ctrl-C") {
                break;
            }
        }
        ensure!(ready, "the cluster did not become ready");
        // Somebody has to read on, or the parent would block on a full pipe.
        thread::spawn(move || rest.for_each(drop));
        Ok(())
    }

    /// Where the servers keep everything.
    pub fn cluster_dir(&self) -> PathBuf {
        self.dir.path().join("cluster")
    }

    /// A folder for the test's own files.
    pub fn work_dir(&self) -> Result<PathBuf> {
        let work = self.dir.path().join("work");
        fs::create_dir_all(&work)?;
        Ok(work)
    }

    /// The authority's certificate.
    pub fn authority(&self) -> PathBuf {
        self.cluster_dir().join("ca.pem")
    }

    /// Names of all processes.
    pub fn processes(&self) -> Result<Vec<String>> {
        let text = fs::read(self.cluster_dir().join("cluster.json"))?;
        let founded: Value = serde_json::from_slice(&text)?;
        let processes = founded["processes"].as_array().context("cluster.json lists processes")?;
        Ok(processes.iter().filter_map(|it| it["name"].as_str().map(str::to_owned)).collect())
    }

    /// The process id of one process.
    pub fn pid(&self, name: &str) -> Result<Pid> {
        let text = fs::read_to_string(self.cluster_dir().join(name).join("pid"))?;
        Pid::from_raw(text.trim().parse()?).context("a process id is not zero")
    }

    /// Sends a signal to one process.
    pub fn signal(&self, name: &str, signal: Signal) -> Result<()> {
        kill_process(self.pid(name)?, signal).with_context(|| format!("cannot signal {name}"))
    }

    /// SIGKILL to one process.
    pub fn kill(&self, name: &str) -> Result<()> {
        self.signal(name, Signal::KILL)
    }

    /// SIGKILL to every process, the parent included.
    pub fn kill_everything(&mut self) -> Result<()> {
        let pids: Vec<Pid> =
            self.processes()?.iter().filter_map(|name| self.pid(name).ok()).collect();
        if let Some(mut dev) = self.dev.take() {
            dev.kill()?;
            dev.wait()?;
        }
        for pid in &pids {
            // Some may be dead already, or die of the parent's end.
            let _ = kill_process(*pid, Signal::KILL);
        }
        wait_for("all processes to be gone", || {
            Ok(pids.iter().all(|pid| test_kill_process(*pid).is_err()).then_some(()))
        })
    }

    /// Stops the cluster as Ctrl-C does.
    pub fn stop(&mut self) -> Result<()> {
        let Some(mut dev) = self.dev.take() else { return Ok(()) };
        let pid = Pid::from_raw(i32::try_from(dev.id())?).context("a process id is not zero")?;
        kill_process(pid, Signal::INT)?;
        let status = dev.wait()?;
        ensure!(status.success(), "`coffer dev` ended with {status}");
        Ok(())
    }

    /// Runs the `coffer` program as `user`, whatever comes of it.
    pub fn run(&self, user: &str, args: &[&str]) -> Result<Output> {
        self.run_with_input(user, args, None)
    }

    /// Runs the `coffer` program as `user` with standard input from a file.
    pub fn run_with_input(
        &self,
        user: &str,
        args: &[&str],
        input: Option<&Path>,
    ) -> Result<Output> {
        let stdin = match input {
            Some(path) => fs::File::open(path)?.into(),
            None => Stdio::null(),
        };
        self.command(user, args)?.stdin(stdin).output().context("cannot run `coffer`")
    }

    /// Starts the `coffer` program as `user` and does not wait for it.
    pub fn spawn(&self, user: &str, args: &[&str]) -> Result<Child> {
        let mut command = self.command(user, args)?;
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().context("cannot run `coffer`")
    }

    /// As [`Self::spawn`], with what it prints for whoever waits for it.
    pub fn spawn_piped(&self, user: &str, args: &[&str]) -> Result<Child> {
        let mut command = self.command(user, args)?;
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().context("cannot run `coffer`")
    }

    fn command(&self, user: &str, args: &[&str]) -> Result<Command> {
        let runtime = self.runtime.path().join(user);
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&runtime)?;
        let mut command = Command::new(coffer_binary()?);
        command
            .args(args)
            .env("COFFER_SERVER", &self.address)
            .env("COFFER_CA", self.authority())
            .env("COFFER_PASSWORD", password(user))
            .env("XDG_RUNTIME_DIR", runtime)
            .env("XDG_STATE_HOME", self.dir.path().join("state").join(user));
        Ok(command)
    }

    /// Runs the `coffer` program as `user` and gives its output; it must succeed.
    pub fn coffer(&self, user: &str, args: &[&str]) -> Result<String> {
        let output = self.run(user, args)?;
        if !output.status.success() {
            let (out, err) = (lossy(&output.stdout), lossy(&output.stderr));
            bail!("coffer {} ended with {}\n{out}{err}", args.join(" "), output.status);
        }
        Ok(String::from_utf8(output.stdout)?)
    }

    /// `coffer status --json`.
    pub fn status(&self, user: &str) -> Result<Value> {
        Ok(serde_json::from_str(&self.coffer(user, &["status", "--json"])?)?)
    }

    /// The name of the process that leads the metadata group.
    pub fn leader(&self, user: &str) -> Result<String> {
        let status = self.status(user)?;
        let members = status["members"].as_array().context("status lists members")?;
        let leader = members.iter().find(|member| member["leader"] == true);
        let id = leader.and_then(|member| member["id"].as_str()).context("there is no leader")?;
        let founded: Value =
            serde_json::from_slice(&fs::read(self.cluster_dir().join("cluster.json"))?)?;
        let processes = founded["processes"].as_array().context("cluster.json lists processes")?;
        let process = processes.iter().find(|process| process["id"] == id);
        let name = process.and_then(|process| process["name"].as_str());
        Ok(name.context("the leader is one of our processes")?.to_owned())
    }

    /// The largest resident size a process has had, in bytes.
    pub fn peak_memory(&self, name: &str) -> Result<u64> {
        peak_memory(self.pid(name)?)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.stop().is_err() {
            // The folders go away in any case; processes must not stay behind.
            let _ = self.kill_everything();
        }
    }
}

/// The password of a test user.
pub fn password(user: &str) -> String {
    format!("the password of {user}")
}

/// The largest resident size a process has had, in bytes.
pub fn peak_memory(pid: Pid) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero()))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("VmHWM")?;
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kib * 1024)
}

/// Looks at a condition until it holds, within bounds.
pub fn wait_for<T>(what: &str, mut condition: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let began = Instant::now();
    loop {
        if let Some(value) = condition()? {
            return Ok(value);
        }
        ensure!(began.elapsed() < PATIENCE, "waited {} s for {what}", PATIENCE.as_secs());
        thread::sleep(LOOK_EVERY);
    }
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
