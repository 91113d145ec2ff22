//! Clusters of real processes for tests that kill them.
//!
//! A [`Cluster`] is `coffer dev` in a temporary folder: three metadata members, three storage nodes
//! and a gateway, each a process of its own on loopback. Single processes can be stopped and started by
//! the test itself, of another [`Build`] or in another surrounding. Dropping the cluster ends every process
//! it started.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use serde_json::Value;
use tempfile::TempDir;

mod engine;
pub mod faults;

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

/// The commit whose `coffer` is the previous one.
const PREVIOUS_COMMIT: &str = include_str!("../previous");

/// Which `coffer` is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Build {
    /// The one that was built with the tests.
    This,
    /// The one of the commit in `tests/chaos/previous`, which `scripts/previous-build` builds.
    Previous,
}

impl Build {
    /// The program.
    pub fn binary(self) -> Result<PathBuf> {
        let this = coffer_binary()?;
        if self == Self::This {
            return Ok(this);
        }
        let target = this.ancestors().nth(2).context("binaries lie in target/<profile>")?;
        let binary = target.join("previous").join(PREVIOUS_COMMIT.trim()).join("coffer");
        ensure!(
            binary.exists(),
            "{} is missing: run `scripts/previous-build` first",
            binary.display()
        );
        Ok(binary)
    }
}

/// A cluster of real processes.
pub struct Cluster {
    dir: TempDir,
    runtime: TempDir,
    dev: Option<Child>,
    /// Processes that are children of the test, not of `coffer dev`.
    own: Mutex<BTreeMap<String, Child>>,
    build: Build,
    restart_after: u32,
    settings: Vec<(String, String)>,
    processes: bool,
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
        Self::found(Build::This, true, restart_after, settings)
    }

    /// As [`Self::start`], with all parts in one process: none can be killed or signalled by itself.
    pub fn start_in_one_process() -> Result<Self> {
        Self::found(Build::This, false, 0, &[])
    }

    /// As [`Self::start`], all of it of this build.
    pub fn start_of(build: Build) -> Result<Self> {
        Self::found(build, true, 0, &[])
    }

    fn found(
        build: Build,
        processes: bool,
        restart_after: u32,
        settings: &[(&str, &str)],
    ) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("coffer-chaos").tempdir()?;
        // Sessions live in memory only.
        let runtime = tempfile::Builder::new().prefix("coffer-chaos").tempdir_in("/dev/shm")?;
        let settings =
            settings.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let mut cluster = Self {
            dir,
            runtime,
            dev: None,
            own: Mutex::default(),
            build,
            restart_after,
            settings,
            processes,
            address: String::new(),
        };
        cluster.start_again()?;
        Ok(cluster)
    }

    /// Whether each part has a process of its own from the next start on.
    pub fn in_processes(&mut self, processes: bool) {
        self.processes = processes;
    }

    /// Starts all processes over the same folders.
    pub fn start_again(&mut self) -> Result<()> {
        ensure!(self.dev.is_none(), "the cluster runs already");
        let mut dev = Command::new(self.build.binary()?)
            .arg("dev")
            .args(self.processes.then_some("--processes"))
            .args(["--listen", "127.0.0.1:0", "--restart-after"])
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

    /// From the next start on everything is of this build, the users' program too.
    pub fn set_build(&mut self, build: Build) {
        self.build = build;
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

    /// Ends one process as SIGTERM does, and waits until it is gone. Whoever watches over the processes
    /// must not start it again: that is for [`Self::start_process`].
    pub fn stop_process(&self, name: &str) -> Result<()> {
        ensure!(self.restart_after == 0, "`coffer dev` would start {name} again");
        let pid = self.pid(name)?;
        kill_process(pid, Signal::TERM).with_context(|| format!("cannot stop {name}"))?;
        let own = self.own().remove(name);
        match own {
            Some(mut child) => {
                let status = wait_for(&format!("{name} to stop"), || Ok(child.try_wait()?));
                let status = status.inspect_err(|_| drop(child.kill()))?;
                ensure!(status.success(), "{name} ended with {status}");
                Ok(())
            }
            None => wait_for(&format!("{name} to stop"), || {
                Ok(test_kill_process(pid).is_err().then_some(()))
            }),
        }
    }

    /// Starts one process that does not run, from this build. It ends with the thread that called this.
    pub fn start_process(&self, name: &str, build: Build) -> Result<()> {
        self.start_process_in(name, build, &[])
    }

    /// As [`Self::start_process`], with settings in its environment.
    pub fn start_process_in(
        &self,
        name: &str,
        build: Build,
        settings: &[(String, String)],
    ) -> Result<()> {
        let (role, _) = name.split_once('-').unwrap_or((name, ""));
        let folder = self.cluster_dir().join(name);
        let log = fs::File::options().create(true).append(true).open(folder.join("log"))?;
        let child = Command::new(build.binary()?)
            .arg(role)
            .arg("--config")
            .arg(folder.join("config.toml"))
            .env("COFFER_DIE_WITH_PARENT", std::process::id().to_string())
            .envs(self.settings.iter().map(|(key, value)| (key, value)))
            .envs(settings.iter().map(|(key, value)| (key, value)))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        fs::write(folder.join("pid"), child.id().to_string())?;
        if let Some(mut former) = self.own().insert(name.to_owned(), child) {
            former.kill()?;
            former.wait()?;
            bail!("{name} ran already");
        }
        Ok(())
    }

    /// Waits for a process the test started to end by itself, and says how it did.
    pub fn wait_process(&self, name: &str) -> Result<ExitStatus> {
        let mut child = self.own().remove(name).context("the test did not start this process")?;
        let status = wait_for(&format!("{name} to end"), || Ok(child.try_wait()?));
        status.inspect_err(|_| drop(child.kill()))
    }

    /// What one process has written about itself, from its first start on.
    pub fn log(&self, name: &str) -> Result<String> {
        Ok(fs::read_to_string(self.cluster_dir().join(name).join("log"))?)
    }

    fn own(&self) -> MutexGuard<'_, BTreeMap<String, Child>> {
        self.own.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// SIGKILL to every process, the parent included.
    pub fn kill_everything(&mut self) -> Result<()> {
        let pids: Vec<Pid> =
            self.processes()?.iter().filter_map(|name| self.pid(name).ok()).collect();
        for (_, mut child) in std::mem::take(&mut *self.own()) {
            child.kill()?;
            child.wait()?;
        }
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
        // The gateway first, the members last, as `coffer dev` does; so goes the alphabet, but for one.
        let mut own: Vec<String> = self.own().keys().cloned().collect();
        own.sort_by_key(|name| name.starts_with("metadata"));
        for name in own {
            self.stop_process(&name)?;
        }
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

    /// As [`Self::run`], with settings in the program's environment.
    pub fn run_in(
        &self,
        user: &str,
        args: &[&str],
        settings: &[(String, String)],
    ) -> Result<Output> {
        let mut command = self.command(user, args)?;
        command.envs(settings.iter().map(|(key, value)| (key, value)));
        command.stdin(Stdio::null()).output().context("cannot run `coffer`")
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

    /// As [`Self::spawn_piped`], with its standard input for whoever writes to it.
    pub fn spawn_fed(&self, user: &str, args: &[&str]) -> Result<Child> {
        let mut command = self.command(user, args)?;
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().context("cannot run `coffer`")
    }

    /// The `coffer` program as `user`, with the environment it needs.
    pub fn command(&self, user: &str, args: &[&str]) -> Result<Command> {
        self.command_of(self.build, user, args)
    }

    fn command_of(&self, build: Build, user: &str, args: &[&str]) -> Result<Command> {
        let runtime = self.runtime.path().join(user);
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&runtime)?;
        let mut command = Command::new(build.binary()?);
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
        self.coffer_of(self.build, user, args)
    }

    /// As [`Self::coffer`], by this build of the program.
    pub fn coffer_of(&self, build: Build, user: &str, args: &[&str]) -> Result<String> {
        let mut command = self.command_of(build, user, args)?;
        let output = command.stdin(Stdio::null()).output().context("cannot run `coffer`")?;
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

    /// Waits until everybody is there and counts: all members, all storage nodes, and no copy is missing.
    pub fn wait_until_whole(&self, user: &str) -> Result<()> {
        wait_for("every process to be there", || {
            let output = self.run(user, &["status", "--json"])?;
            let Ok(status) = serde_json::from_slice::<Value>(&output.stdout) else {
                return Ok(None);
            };
            let (Some(members), Some(nodes)) =
                (status["members"].as_array(), status["nodes"].as_array())
            else {
                return Ok(None);
            };
            let whole = members.iter().all(|it| it["reachable"] == true && it["voter"] == true)
                && members.iter().any(|it| it["leader"] == true)
                && nodes.iter().all(|it| it["reachable"] == true && it["missing_chunks"] == 0);
            Ok(whole.then_some(()))
        })
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

/// So many bytes that do not repeat, the same ones for the same seed: Xorshift64 (Marsaglia, 2003).
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    // Seeds that lie close together begin far from each other.
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
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
