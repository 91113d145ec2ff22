//! A pod: one process, shut in as a container is, and asked how it is as a kubelet does.
//!
//! The process has namespaces of its own for network, mounts, processes, names and control groups, a root with
//! nothing in it but what the image and the volumes have, and the user, rights and bounds that its plan says.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use coffer_chaos::{coffer_binary, wait_for};
use coffer_service::health::{ALIVE, READY};
use rustix::fs::{Gid, Uid};
use rustix::process::{Pid, Signal, kill_process};
use tokio::task::JoinHandle;
use tonic::transport::Endpoint;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use super::node::{DOMAIN, Entry, HOST, Node};
use super::plan::{Asked, Held, Mount, Mounted, Plan};
use super::rendered::NAMESPACE;

/// Where the image has the program, and starts it.
const PROGRAM: &str = "/usr/local/bin/coffer";
/// What shuts the program in, and is of no use to it.
const START: &str = ".start";
/// How often it is looked whether a process is ready, for the time it took.
const MEASURE_EVERY: Duration = Duration::from_millis(50);
/// How often in a row a probe may say something else than the process. Once it may, while the process hands its health
/// port over from waiting to serving.
const CONTRADICTIONS_MAX: u32 = 3;
/// Where a process may leave why it ended.
const LAST_WORDS: &str = "/dev/termination-log";
/// Where control groups are.
const GROUPS: &str = "/sys/fs/cgroup";

/// In the machine's network: a cable, one end of it in the bridge; then the pod's own namespaces.
const OUTSIDE: &str = r#"
ip link add name "$LINK" type veth peer name "$LINK-p"
ip link set "$LINK" master bridge up
exec unshare --net --uts --ipc --mount --propagation private sh -euc "$INSIDE" sh "$@"
"#;

/// In the pod's: the other end, the root and the volumes; then the container's own namespaces.
const INSIDE: &str = r#"
nsenter --net="/proc/$NODE/ns/net" ip link set "$LINK-p" netns $$
ip link set lo up
ip link set "$LINK-p" name eth0
ip address add "$ADDRESS/16" dev eth0
ip link set eth0 up
ip route add default via "$GATEWAY"
echo "$POD" > /proc/sys/kernel/hostname
for group in $JOIN; do echo $$ > "$group/cgroup.procs"; done
eval "$MOUNTS"
exec unshare --cgroup --pid --fork --kill-child sh -euc "$CONTAINER" sh "$@"
"#;

/// In the container's: what is left to be mounted can only be so here.
const CONTAINER: &str = r#"
mount -t proc -o nosuid,nodev,noexec proc "$ROOT/proc"
mount -o "remount,$ROOT_MODE" "$ROOT"
exec "$@"
"#;

/// What the pods' image has in it.
pub(crate) struct Image {
    dir: PathBuf,
    /// The dynamic linker's name beside what shuts the program in.
    linker: String,
}

impl Image {
    /// The program with the libraries it names, as deploy/docker/make-image packs them.
    pub(crate) fn pack(dir: &Path) -> Result<Self> {
        let program = coffer_binary()?;
        let to = dir.join(PROGRAM.trim_start_matches('/'));
        fs::create_dir_all(to.parent().context("it lies in a folder")?)?;
        fs::copy(&program, &to)?;
        for library in libraries(&program)? {
            let to = dir.join(library.trim_start_matches('/'));
            fs::create_dir_all(to.parent().context("it lies in a folder")?)?;
            fs::copy(&library, to)?;
        }
        let start = dir.join(START);
        fs::create_dir(&start)?;
        let setpriv = found("setpriv")?;
        let needed = libraries(&setpriv)?;
        for path in needed.iter().map(Path::new).chain([setpriv.as_path()]) {
            fs::copy(path, start.join(path.file_name().context("it has a name")?))?;
        }
        let linker = needed.iter().filter_map(|path| path.rsplit('/').next());
        let linker = linker.into_iter().find(|name| name.starts_with("ld-")).context("a linker")?;
        Ok(Self { dir: dir.to_owned(), linker: linker.to_owned() })
    }
}

/// The shared libraries a program needs, by the path they are looked for at.
fn libraries(program: &Path) -> Result<Vec<String>> {
    let output = Command::new("ldd").arg(program).output().context("cannot run ldd")?;
    ensure!(output.status.success(), "ldd {} fails", program.display());
    let text = String::from_utf8(output.stdout)?;
    let paths = text.lines().filter_map(|line| {
        let line = line.trim();
        let path = line.split_once("=> ").map_or(line, |(_, path)| path);
        path.starts_with('/').then(|| path.split(' ').next().unwrap_or(path).to_owned())
    });
    Ok(paths.collect())
}

/// Where a program of this machine is.
pub(crate) fn found(program: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut all = std::env::split_paths(&path).map(|folder| folder.join(program));
    all.find(|it| it.is_file()).with_context(|| format!("there is no {program}"))
}

/// What pods of a cluster have in common.
pub(crate) struct Surroundings<'a> {
    pub(crate) node: &'a Node,
    pub(crate) image: &'a Image,
    /// A folder for roots, volumes and logs.
    pub(crate) dir: &'a Path,
    /// The number of this pod: no other one has it, before or after.
    pub(crate) number: u32,
}

/// The address of the pod of this number.
pub(crate) fn address_of(number: u32) -> Result<Ipv4Addr> {
    let (high, low) = (number / 250, number % 250);
    Ok(Ipv4Addr::new(10, 77, u8::try_from(high + 1)?, u8::try_from(low + 1)?))
}

/// A pod that was started.
pub(crate) struct Pod {
    pub(crate) name: String,
    pub(crate) number: u32,
    /// The object whose pod it is.
    pub(crate) owner: String,
    /// The template it was made from.
    pub(crate) revision: String,
    /// None once its process has ended.
    child: Option<Child>,
    health: Arc<Mutex<Health>>,
    prober: JoinHandle<()>,
    stopping: Option<Stopping>,
    groups: Vec<PathBuf>,
    log: PathBuf,
    /// Writes the log; it ends when the last process of the pod has.
    writer: Option<thread::JoinHandle<()>>,
    entry: Entry,
    plan: Arc<Plan>,
    /// What the container's command is put behind, so that it is run in there.
    inside: Vec<String>,
}

#[derive(Clone, Copy)]
struct Stopping {
    since: Instant,
    told: bool,
}

/// What probes have found.
#[derive(Default)]
struct Health {
    /// Since when the pod is ready.
    ready: Option<Instant>,
    /// How long it took until a kubelet knew that it is, the first time.
    first: Option<Duration>,
    /// How long it took until it was.
    work: Option<Duration>,
    /// Why a kubelet would end it.
    fault: Option<String>,
}

impl Pod {
    pub(crate) fn start(
        plan: Plan,
        around: &Surroundings<'_>,
        owner: &str,
        revision: &str,
        subdomain: Option<String>,
    ) -> Result<Self> {
        let own = around.dir.join("pods").join(format!("{}-{}", plan.name, around.number));
        fs::create_dir_all(own.join("root"))?;
        let address = address_of(around.number)?;
        let groups = join_groups(&plan, around.number)?;
        let log = own.join("log");
        let (output, writer) = output_into(&log, &plan)?;
        let mounts = mounts(&plan, around, &own, &groups)?;
        let mut inside = vec!["env".to_owned(), "-i".to_owned()];
        inside.extend(plan.env.iter().map(|(name, value)| format!("{name}={value}")));
        inside.push(found("chroot")?.display().to_string());
        inside.push(own.join("root").display().to_string());
        inside.extend(shut_in(&plan, &around.image.linker));
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "sh", "-euc", OUTSIDE, "sh"])
            .args(&inside)
            .args(&plan.args)
            .env("INSIDE", INSIDE)
            .env("CONTAINER", CONTAINER)
            .env("LINK", format!("pod{}", around.number))
            .env("NODE", around.node.holder().to_string())
            .env("ADDRESS", address.to_string())
            .env("GATEWAY", HOST.to_string())
            .env("POD", &plan.name)
            .env("ROOT", own.join("root"))
            .env("ROOT_MODE", if plan.read_only_root { "ro" } else { "rw" })
            .env(
                "JOIN",
                groups.iter().map(|it| it.display().to_string()).collect::<Vec<_>>().join(" "),
            )
            .env("MOUNTS", mounts)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output);
        let began = Instant::now();
        let child = command.spawn().with_context(|| format!("cannot start {}", plan.name))?;
        let health = Arc::<Mutex<Health>>::default();
        let entry = Entry {
            address,
            labels: plan.labels.clone(),
            subdomain,
            ports: plan.ports.clone(),
            ready: false,
            stopping: None,
        };
        around.node.set_pod(&plan.name, entry.clone());
        let plan = Arc::new(plan);
        let prober =
            around.node.runtime.spawn(ask(Arc::clone(&plan), address, began, Arc::clone(&health)));
        Ok(Self {
            name: plan.name.clone(),
            number: around.number,
            owner: owner.to_owned(),
            revision: revision.to_owned(),
            child: Some(child),
            health,
            prober,
            stopping: None,
            groups,
            log,
            writer: Some(writer),
            entry,
            plan,
            inside,
        })
    }

    fn health(&self) -> MutexGuard<'_, Health> {
        lock(&self.health)
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.is_some()
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.health().ready.is_some() && !self.is_stopping()
    }

    /// Whether it has been ready for so long.
    pub(crate) fn is_available(&self, least: Duration) -> bool {
        self.is_ready() && self.health().ready.is_some_and(|since| since.elapsed() >= least)
    }

    /// How long it took until it was ready the first time, and until a kubelet knew.
    pub(crate) fn start_times(&self) -> Option<(Duration, Duration)> {
        let health = self.health();
        Some((health.work?, health.first?))
    }

    /// Runs the program in the container, as `kubectl exec` does.
    pub(crate) fn exec(&self, args: &[&str]) -> Result<Output> {
        let process = self.process()?.with_context(|| format!("{} does not run", self.name))?;
        let target = format!("--target={}", process.as_raw_nonzero());
        Command::new("nsenter")
            .args([&target, "--mount", "--net", "--pid", "--ipc", "--uts", "--cgroup", "--"])
            .args(&self.inside)
            .args(args)
            .stdin(Stdio::null())
            .output()
            .context("cannot run nsenter")
    }

    /// Finds out whether the process is what its plan says, by what the kernel says of it: its arguments, environment,
    /// user, rights and root; and whether it listens at exactly the ports of its template.
    pub(crate) fn check(&self) -> Result<()> {
        let process = self.process()?.with_context(|| format!("{} does not run", self.name))?;
        let proc = PathBuf::from(format!("/proc/{}", process.as_raw_nonzero()));
        let plan = &self.plan;
        let words = |file: &str| {
            let bytes = fs::read(proc.join(file))?;
            let text = String::from_utf8(bytes)?;
            anyhow::Ok(text.split_terminator('\0').map(str::to_owned).collect::<Vec<_>>())
        };
        let args: Vec<String> = [PROGRAM.to_owned()].into_iter().chain(plan.args.clone()).collect();
        ensure!(words("cmdline")? == args, "{}: {:?}", self.name, words("cmdline")?);
        let mut env: Vec<String> =
            plan.env.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let mut found = words("environ")?;
        env.sort();
        found.sort();
        ensure!(found == env, "{}: {found:?}", self.name);
        let status = fs::read_to_string(proc.join("status"))?;
        let told = |key: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
            line.map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
                .unwrap_or_default()
        };
        let all = |id: u32| [id; 4].map(|id| id.to_string()).join(" ");
        let groups = plan.files_group.map(|group| group.to_string()).unwrap_or_default();
        let rights = "0".repeat(16);
        for (key, expected, asked) in [
            ("Uid", all(plan.user), true),
            ("Gid", all(plan.group), true),
            ("Groups", groups, true),
            ("NoNewPrivs", "1".to_owned(), plan.no_new_privileges),
            ("CapEff", rights.clone(), plan.no_capabilities),
            ("CapBnd", rights, plan.no_capabilities),
        ] {
            let found = told(key);
            ensure!(!asked || found == expected, "{}: {key} is {found}", self.name);
        }
        let written = File::create(proc.join("root/written"));
        let refused = written.is_err_and(|it| it.kind() == io::ErrorKind::ReadOnlyFilesystem);
        ensure!(refused == plan.read_only_root, "{}: the root refuses: {refused}", self.name);
        let mut ports = BTreeSet::new();
        for table in ["net/tcp", "net/tcp6"] {
            let table = fs::read_to_string(proc.join(table))?;
            for line in table.lines() {
                let fields: Vec<&str> = line.split_whitespace().collect();
                // 0A: it listens.
                if let [_, local, _, "0A", ..] = fields[..] {
                    let port = local.rsplit(':').next().unwrap_or_default();
                    ports.insert(u16::from_str_radix(port, 16)?);
                }
            }
        }
        let expected: BTreeSet<u16> = plan.ports.values().copied().collect();
        ensure!(
            ports == expected,
            "{} listens at {ports:?}, its template has {expected:?}",
            self.name
        );
        for line in self.log().lines() {
            ensure!(
                serde_json::from_str::<serde_json::Value>(line).is_ok(),
                "{}: the log has a line that is not JSON: {line}",
                self.name
            );
        }
        Ok(())
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Deletes the pod as the API does: it is told to stop when its hook is over.
    pub(crate) fn stop(&mut self, node: &Node) {
        if self.stopping.is_none() {
            self.stopping = Some(Stopping { since: Instant::now(), told: false });
            node.expect_still_served(&self.name, &self.entry);
        }
    }

    /// What a kubelet does with the pod again and again. Says how it has ended, once it has.
    pub(crate) fn look_after(&mut self, node: &Node) -> Result<Option<ExitStatus>> {
        let Some(child) = &mut self.child else { bail!("{} has ended already", self.name) };
        if let Some(status) = child.try_wait()? {
            self.prober.abort();
            self.child = None;
            // All it said is in the log before anybody reads it.
            let _ = self.writer.take().map(thread::JoinHandle::join);
            node.forget_pod(&self.name);
            self.leave_groups();
            return Ok(Some(status));
        }
        if let Some(fault) = self.health().fault.clone() {
            bail!("{}: {fault}\n{}", self.name, self.end_of_log());
        }
        if let Some(mut stopping) = self.stopping {
            let since = stopping.since.elapsed();
            if since > self.plan.grace {
                bail!("{} is not done after {since:?}\n{}", self.name, self.end_of_log());
            }
            if since >= self.plan.linger && !stopping.told {
                // A pod that stops is not asked any more whether it lives.
                self.prober.abort();
                self.signal(Signal::TERM)?;
                stopping.told = true;
                self.stopping = Some(stopping);
            }
        }
        let ready = self.health().ready.is_some();
        self.entry.ready = ready;
        self.entry.stopping = self.stopping.map(|it| it.since);
        node.set_pod(&self.name, self.entry.clone());
        Ok(None)
    }

    /// The process in the container, as it is called from outside.
    fn process(&self) -> Result<Option<Pid>> {
        let Some(child) = &self.child else { return Ok(None) };
        let id = child.id();
        let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children"))?;
        let [one] = children.split_whitespace().collect::<Vec<_>>()[..] else { return Ok(None) };
        Ok(Pid::from_raw(one.parse()?))
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let process = self.process()?.with_context(|| format!("{} has no process", self.name))?;
        Ok(kill_process(process, signal)?)
    }

    /// SIGKILL, and nothing else of what a kubelet does.
    pub(crate) fn kill(&mut self, node: &Node) -> Result<()> {
        self.signal(Signal::KILL)?;
        self.prober.abort();
        if let Some(mut child) = self.child.take() {
            wait_for("a killed process to be gone", || Ok(child.try_wait()?))?;
        }
        node.forget_pod(&self.name);
        self.leave_groups();
        Ok(())
    }

    pub(crate) fn end_of_log(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }

    /// Whether control groups bound it.
    pub(crate) fn is_bounded(&self) -> bool {
        !self.groups.is_empty()
    }

    fn leave_groups(&mut self) {
        for group in self.groups.drain(..) {
            // The last one of them to be left takes the folder above it along.
            let _ = fs::remove_dir(&group);
            let _ = group.parent().map(fs::remove_dir);
        }
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        self.prober.abort();
        if let Some(mut child) = self.child.take() {
            // The container's first process dies with its parent, and all others with it.
            let _ = child.kill();
            let _ = child.wait();
        }
        let began = Instant::now();
        while self.groups.iter().any(|group| !is_empty(group))
            && began.elapsed() < Duration::from_secs(5)
        {
            std::thread::yield_now();
        }
        self.leave_groups();
    }
}

fn is_empty(group: &Path) -> bool {
    fs::read_to_string(group.join("cgroup.procs")).is_ok_and(|text| text.is_empty())
}

/// A pipe to a pod's log. It belongs to the pod's user, as a container runtime has it: who may write to standard output
/// may open it again as well.
fn output_into(log: &Path, plan: &Plan) -> Result<(io::PipeWriter, thread::JoinHandle<()>)> {
    let (mut from, to) = io::pipe()?;
    rustix::fs::fchown(&to, Some(Uid::from_raw(plan.user)), Some(Gid::from_raw(plan.group)))?;
    let mut log = File::create(log)?;
    let writer = thread::spawn(move || drop(io::copy(&mut from, &mut log)));
    Ok((to, writer))
}

/// The command that gives up what the process must not have, and becomes the program.
fn shut_in(plan: &Plan, linker: &str) -> Vec<String> {
    let mut command = vec![
        format!("/{START}/{linker}"),
        "--library-path".to_owned(),
        format!("/{START}"),
        format!("/{START}/setpriv"),
        format!("--reuid={}", plan.user),
        format!("--regid={}", plan.group),
        "--pdeathsig=KILL".to_owned(),
    ];
    command.push(match plan.files_group {
        Some(group) => format!("--groups={group}"),
        None => "--clear-groups".to_owned(),
    });
    if plan.no_new_privileges {
        command.push("--no-new-privs".to_owned());
    }
    if plan.no_capabilities {
        command.extend(["--bounding-set=-all".to_owned(), "--inh-caps=-all".to_owned()]);
    }
    command.extend(["--".to_owned(), PROGRAM.to_owned()]);
    command
}

/// Makes the control groups that bound the pod, where this machine lets us.
fn join_groups(plan: &Plan, number: u32) -> Result<Vec<PathBuf>> {
    let name = format!("coffer-chart-{}", std::process::id());
    let mut bounds: Vec<(&str, &str, String)> = Vec::new();
    let unified = Path::new(GROUPS).join("cgroup.controllers").exists();
    if let Some(bytes) = plan.memory_bytes {
        let file = if unified { "memory.max" } else { "memory.limit_in_bytes" };
        bounds.push(("memory", file, bytes.to_string()));
    }
    if let Some(thousandths) = plan.cpu_thousandths {
        // Of a period of a tenth of a second, which is the kernel's own choice.
        let quota = thousandths * 100;
        match unified {
            true => bounds.push(("cpu", "cpu.max", format!("{quota} 100000"))),
            false => bounds.push(("cpu", "cpu.cfs_quota_us", quota.to_string())),
        }
    }
    let mut joined: Vec<PathBuf> = Vec::new();
    for (controller, file, bound) in bounds {
        let root = if unified { PathBuf::from(GROUPS) } else { Path::new(GROUPS).join(controller) };
        let above = root.join(&name);
        let group = above.join(number.to_string());
        let made = fs::create_dir_all(&group).and_then(|()| {
            if unified {
                for parent in [&root, &above] {
                    fs::write(parent.join("cgroup.subtree_control"), format!("+{controller}"))?;
                }
            }
            fs::write(group.join(file), bound)
        });
        match made {
            Ok(()) if joined.contains(&group) => {}
            Ok(()) => joined.push(group),
            // A machine that is a container itself may not let us: then there is no such bound.
            Err(_) => {
                let _ = fs::remove_dir(&group);
                let _ = fs::remove_dir(&above);
            }
        }
    }
    Ok(joined)
}

/// What mounts the root and the volumes, for a shell.
fn mounts(
    plan: &Plan,
    around: &Surroundings<'_>,
    own: &Path,
    groups: &[PathBuf],
) -> Result<String> {
    let root = own.join("root");
    let mut lines = vec![format!("mount -t tmpfs -o mode=0755 pod {}", quoted(&root))];
    let mut bind = |from: &Path, at: &str, read_only: bool| {
        let to = root.join(at.trim_start_matches('/'));
        let (from, to, folder) =
            (quoted(from), quoted(&to), to.parent().map(quoted).unwrap_or_default());
        lines.push(format!("mkdir -p {folder}"));
        lines.push(format!("if [ -d {from} ]; then mkdir -p {to}; else : > {to}; fi"));
        lines.push(format!("mount --bind {from} {to}"));
        if read_only {
            lines.push(format!("mount -o remount,bind,ro {to}"));
        }
    };
    for part in fs::read_dir(&around.image.dir)? {
        let part = part?;
        bind(&part.path(), &part.file_name().to_string_lossy(), true);
    }
    for device in ["null", "zero", "full", "random", "urandom"] {
        let path = format!("/dev/{device}");
        bind(Path::new(&path), &path, false);
    }
    let last_words = own.join("last-words");
    File::create(&last_words)?.set_permissions(fs::Permissions::from_mode(0o666))?;
    bind(&last_words, LAST_WORDS, false);
    for (name, text) in [
        (
            "hosts",
            format!(
                "127.0.0.1 localhost\n::1 localhost\n{} {}\n",
                address_of(around.number)?,
                plan.name
            ),
        ),
        (
            "resolv.conf",
            format!(
                "search {NAMESPACE}.svc.{DOMAIN} svc.{DOMAIN} {DOMAIN}\nnameserver {HOST}\noptions ndots:5\n"
            ),
        ),
        ("hostname", format!("{}\n", plan.name)),
    ] {
        let file = own.join(name);
        fs::write(&file, text)?;
        bind(&file, &format!("/etc/{name}"), true);
    }
    for group in groups {
        let controller = group.strip_prefix(GROUPS)?.components().next();
        match controller.filter(|_| !Path::new(GROUPS).join("cgroup.controllers").exists()) {
            Some(controller) => {
                let at = Path::new(GROUPS).join(controller);
                bind(group, &at.to_string_lossy(), true);
            }
            None => bind(group, GROUPS, true),
        }
    }
    let mut scratch = Vec::new();
    for (number, Mount { at, read_only, volume }) in plan.mounts.iter().enumerate() {
        match volume {
            Held::Claim(claim) => {
                bind(&claimed(around.dir, claim, plan.files_group)?, at, *read_only)
            }
            Held::Files(files) => {
                let folder = own.join(format!("volume-{number}"));
                write_files(&folder, files, plan.files_group)?;
                bind(&folder, at, true);
            }
            Held::Scratch { bytes_max } => {
                let to = quoted(&root.join(at.trim_start_matches('/')));
                let group = plan.files_group.unwrap_or(0);
                let size = bytes_max.map(|bytes| format!(",size={bytes}")).unwrap_or_default();
                scratch.push(format!("mkdir -p {to}"));
                scratch.push(format!("mount -t tmpfs -o mode=2777,gid={group}{size} scratch {to}"));
            }
        }
    }
    lines.extend(scratch);
    for folder in ["proc", "sys", "dev/shm"] {
        lines.push(format!("mkdir -p {}", quoted(&root.join(folder))));
    }
    for (number, stream) in ["stdin", "stdout", "stderr"].into_iter().enumerate() {
        let link = quoted(&root.join("dev").join(stream));
        lines.push(format!("ln -s /proc/self/fd/{number} {link}"));
    }
    lines.push(format!("ln -s /proc/self/fd {}", quoted(&root.join("dev/fd"))));
    lines.push(format!(
        "mount -t tmpfs -o mode=1777,size=64m shm {}",
        quoted(&root.join("dev/shm"))
    ));
    Ok(lines.join("\n"))
}

fn quoted(path: &Path) -> String {
    format!("'{}'", path.display())
}

/// The folder of a claim's volume. Who takes the volume away renames it.
pub(crate) fn claim_dir(dir: &Path, claim: &str) -> PathBuf {
    dir.join("claims").join(claim)
}

fn claimed(dir: &Path, claim: &str, group: Option<u32>) -> Result<PathBuf> {
    let volume = claim_dir(dir, claim);
    if !volume.exists() {
        fs::create_dir_all(&volume)?;
        // What a kubelet makes of a new volume for a pod with fsGroup.
        chown(&volume, Some(0), Some(group.unwrap_or(0)))?;
        let mode = if group.is_some() { 0o2775 } else { 0o755 };
        fs::set_permissions(&volume, fs::Permissions::from_mode(mode))?;
    }
    Ok(volume)
}

/// Lays files out as a kubelet does: in a folder of their own, to which a link leads.
fn write_files(folder: &Path, files: &[Mounted], group: Option<u32>) -> Result<()> {
    let data = folder.join("..2020_01_01");
    fs::create_dir_all(&data)?;
    for file in files {
        let path = data.join(&file.path);
        ensure!(!path.exists(), "{} comes from two sources", file.path);
        fs::create_dir_all(path.parent().context("it lies in a folder")?)?;
        fs::write(&path, &file.content)?;
        chown(&path, Some(0), Some(group.unwrap_or(0)))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(file.mode))?;
        let first = file.path.split('/').next().unwrap_or_default();
        if !folder.join(first).is_symlink() {
            symlink(Path::new("..data").join(first), folder.join(first))?;
        }
    }
    Ok(symlink("..2020_01_01", folder.join("..data"))?)
}

/// Asks a pod again and again, as a kubelet does.
async fn ask(plan: Arc<Plan>, address: Ipv4Addr, began: Instant, health: Arc<Mutex<Health>>) {
    // A Job listens nowhere, and nobody waits for it to be ready.
    if plan.ports.is_empty() {
        return;
    }
    let asker = Asker { plan: &plan, address, began, health: &health };
    tokio::join!(asker.as_a_kubelet(), asker.closely());
}

struct Asker<'a> {
    plan: &'a Plan,
    address: Ipv4Addr,
    began: Instant,
    health: &'a Mutex<Health>,
}

impl Asker<'_> {
    async fn as_a_kubelet(&self) {
        if let Some(startup) = &self.plan.startup
            && let Err(why) = self.starts(startup).await
        {
            return self.is_at_fault(&format!("it does not start: {why}"));
        }
        tokio::join!(self.lives(), self.wants_work());
    }

    async fn starts(&self, startup: &Asked) -> Result<()> {
        tokio::time::sleep(startup.delay).await;
        let (mut failures, mut contradictions) = (0, 0);
        while let Err(why) = probe(self.address, startup).await {
            failures += 1;
            ensure!(failures < startup.failures_max, "{why:#}");
            // Whoever lives has started, however long it waits for others.
            contradictions = if self.says(ALIVE).await.is_ok() { contradictions + 1 } else { 0 };
            ensure!(
                contradictions < CONTRADICTIONS_MAX,
                "it lives, and its startup probe says that it does not: {why:#}"
            );
            tokio::time::sleep(startup.period).await;
        }
        Ok(())
    }

    async fn lives(&self) {
        let Some(liveness) = &self.plan.liveness else {
            return self.is_at_fault("nobody asks it whether it lives");
        };
        tokio::time::sleep(liveness.delay).await;
        let (mut failures, mut contradictions) = (0, 0);
        loop {
            let mut pause = liveness.period;
            match probe(self.address, liveness).await {
                Ok(()) => (failures, contradictions) = (0, 0),
                Err(why) => {
                    failures += 1;
                    contradictions += 1;
                    if self.says(ALIVE).await.is_ok() {
                        // Sooner than a kubelet asks again: few pods are not ready for that long.
                        pause = MEASURE_EVERY;
                    } else {
                        contradictions = 0;
                    }
                    if failures >= liveness.failures_max || contradictions >= CONTRADICTIONS_MAX {
                        return self.is_at_fault(&format!("it does not live: {why:#}"));
                    }
                }
            }
            tokio::time::sleep(pause).await;
        }
    }

    async fn wants_work(&self) {
        let Some(readiness) = &self.plan.readiness else {
            return self.is_at_fault("nobody asks it whether it is ready");
        };
        tokio::time::sleep(readiness.delay).await;
        let (mut failures, mut first) = (0, true);
        loop {
            match probe(self.address, readiness).await {
                Ok(()) => {
                    if first
                        && self.says(READY).await.is_err()
                        && let Err(why) = self.says(READY).await
                    {
                        let fault = "its readiness probe says that it is ready, and it is not";
                        return self.is_at_fault(&format!("{fault}: {why:#}"));
                    }
                    (failures, first) = (0, false);
                    let mut health = lock(self.health);
                    health.ready.get_or_insert(Instant::now());
                    health.first.get_or_insert(self.began.elapsed());
                }
                Err(_) => {
                    failures += 1;
                    if failures >= readiness.failures_max {
                        lock(self.health).ready = None;
                    }
                }
            }
            tokio::time::sleep(readiness.period).await;
        }
    }

    /// Looks closer than a kubelet, to know how long the process itself takes.
    async fn closely(&self) {
        while self.says(READY).await.is_err() {
            tokio::time::sleep(MEASURE_EVERY).await;
        }
        lock(self.health).work = Some(self.began.elapsed());
    }

    /// What the process says whatever its probes ask for.
    async fn says(&self, service: &str) -> Result<()> {
        let asked = Asked {
            port: *self.plan.ports.get("health").context("there is no port named health")?,
            service: service.to_owned(),
            delay: Duration::ZERO,
            period: MEASURE_EVERY,
            timeout: Duration::from_secs(5),
            failures_max: 1,
        };
        probe(self.address, &asked).await
    }

    fn is_at_fault(&self, why: &str) {
        lock(self.health).fault = Some(why.to_owned());
    }
}

fn lock(health: &Mutex<Health>) -> MutexGuard<'_, Health> {
    health.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Asks once, over a connection of its own.
async fn probe(address: Ipv4Addr, asked: &Asked) -> Result<()> {
    let to = SocketAddr::from((address, asked.port));
    let answer = tokio::time::timeout(asked.timeout, async {
        let channel = Endpoint::from_shared(format!("http://{to}"))?.connect().await?;
        let request = HealthCheckRequest { service: asked.service.clone() };
        anyhow::Ok(HealthClient::new(channel).check(request).await?.into_inner())
    });
    let answer = answer.await.context("no answer in time")??;
    ensure!(answer.status() == ServingStatus::Serving, "it says {:?}", answer.status());
    Ok(())
}
