//! `coffer found`: a cluster over several machines, each of which is a loopback address here.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

use coffer_chaos::{coffer_binary, wait_for};
use tempfile::TempDir;

/// Addresses of three machines that nothing else listens at: this process's id makes them its own.
fn addresses() -> [Ipv4Addr; 3] {
    let [.., high, low] = std::process::id().to_be_bytes();
    let addresses = [1, 2, 3].map(|host| Ipv4Addr::new(127, 128 | high >> 1, low, host));
    for address in addresses {
        TcpListener::bind((address, 7420)).expect("nobody else uses it");
    }
    addresses
}

/// Machines that were founded in one place, their folders moved elsewhere.
struct Machines {
    work: TempDir,
    runtime: TempDir,
    addresses: [Ipv4Addr; 3],
    running: Vec<(String, Child)>,
}

impl Machines {
    fn found() -> Self {
        let work = tempfile::tempdir().unwrap();
        let runtime = tempfile::tempdir_in("/dev/shm").unwrap();
        let machines = Self { work, runtime, addresses: addresses(), running: Vec::new() };
        let mut command = Command::new(coffer_binary().unwrap());
        command.arg("found").arg("--dir").arg(machines.dir());
        for (name, address) in NAMES.iter().zip(machines.addresses) {
            command.arg("--machine").arg(format!("{name}={address}"));
        }
        let founded = command.output().unwrap();
        assert!(founded.status.success(), "{founded:?}");
        for name in NAMES {
            fs::rename(machines.dir().join(name), machines.home(name)).unwrap();
        }
        machines
    }

    fn dir(&self) -> PathBuf {
        self.work.path().join("cluster")
    }

    /// Where the folder of a machine was put.
    fn home(&self, machine: &str) -> PathBuf {
        self.work.path().join(format!("var-lib-{machine}"))
    }

    fn start(&mut self, machine: &str) {
        for role in ["metadata", "storage", "gateway"] {
            let log = self.work.path().join(format!("{machine}-{role}.log"));
            let log = fs::File::options().create(true).append(true).open(log).unwrap();
            let child = Command::new(coffer_binary().unwrap())
                .arg(role)
                .arg("--config")
                .arg(self.home(machine).join(role).join("config.toml"))
                .env("COFFER_DIE_WITH_PARENT", std::process::id().to_string())
                .current_dir("/")
                .stdin(Stdio::null())
                .stdout(log.try_clone().unwrap())
                .stderr(log)
                .spawn()
                .unwrap();
            self.running.push((machine.to_owned(), child));
        }
    }

    /// SIGKILL to all that runs on a machine, or on all.
    fn kill(&mut self, machine: Option<&str>) {
        self.running.retain_mut(|(on, child)| {
            let dies = machine.is_none_or(|machine| machine == on);
            if dies {
                child.kill().unwrap();
                child.wait().unwrap();
            }
            !dies
        });
    }

    /// The gateways of all machines.
    fn servers(&self) -> String {
        self.addresses.map(|address| format!("{address}:7420")).join(",")
    }

    /// Runs `coffer` as alice.
    fn run(&self, args: &[&str]) -> Output {
        let sessions = self.runtime.path().join("alice");
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&sessions).unwrap();
        Command::new(coffer_binary().unwrap())
            .args(args)
            .env("COFFER_SERVER", self.servers())
            .env("COFFER_CA", self.dir().join("ca.pem"))
            .env("COFFER_PASSWORD", "a password of five words")
            .env("XDG_RUNTIME_DIR", sessions)
            .env("XDG_STATE_HOME", self.work.path().join("state"))
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    fn coffer(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert!(output.status.success(), "{args:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn wait_until_well(&self) {
        wait_for("everything to be well", || {
            let told = self.run(&["status"]);
            Ok(String::from_utf8_lossy(&told.stdout)
                .starts_with("everything is well")
                .then_some(()))
        })
        .unwrap();
    }
}

impl Drop for Machines {
    fn drop(&mut self) {
        self.kill(None);
    }
}

const NAMES: [&str; 3] = ["one", "two", "three"];

/// Goal: a cluster over three machines stands without anything that only the administrator has, and any one
/// machine may be lost with all that runs on it. Method: folders are made, moved, and run from; the
/// machine that formed the group is killed while the others serve, and comes back.
#[test]
fn any_one_of_three_machines_may_be_lost() {
    let mut machines = Machines::found();
    let secret = machines.dir().join("secret");
    fs::rename(&secret, machines.work.path().join("in-a-safe")).unwrap();
    for name in NAMES {
        machines.start(name);
    }
    machines.wait_until_well();
    machines.coffer(&["register", "alice"]);
    let file = machines.work.path().join("file");
    let content: Vec<u8> = (0..4_000_000_u32).map(|at| (at % 249) as u8).collect();
    fs::write(&file, &content).unwrap();
    let file = file.to_str().unwrap();
    machines.coffer(&["put", file, "/alice/first"]);

    // Each gateway serves alone as well.
    for address in machines.addresses {
        machines.coffer(&["--server", &format!("{address}:7420"), "ls", "/alice"]);
    }

    machines.kill(Some("one"));
    let status = machines.coffer(&["status", "--json"]);
    assert!(status.contains("\"one\""), "zones are the machines: {status}");
    machines.coffer(&["put", file, "/alice/second"]);
    let copy = machines.work.path().join("copy");
    for path in ["/alice/first", "/alice/second"] {
        machines.coffer(&["get", "--force", path, copy.to_str().unwrap()]);
        assert!(fs::read(&copy).unwrap() == content, "{path}");
    }
    machines.start("one");
    machines.wait_until_well();
}

/// Goal: what cannot become a cluster is refused before anything is written. Method: bad calls, each by its
/// reason; and a folder that has a cluster already.
#[test]
fn a_cluster_that_cannot_be_is_not_founded() {
    let work = tempfile::tempdir().unwrap();
    let dir = work.path().join("cluster");
    let found = |machines: &[&str]| {
        let mut command = Command::new(coffer_binary().unwrap());
        command.arg("found").arg("--dir").arg(&dir);
        for machine in machines {
            command.arg("--machine").arg(machine);
        }
        let output = command.output().unwrap();
        (output.status.success(), String::from_utf8(output.stderr).unwrap())
    };
    for (machines, reason) in [
        (&[][..], "--machine"),
        (&["one"], "NAME=HOST"),
        (&["one=10.0.0.1"], "too few"),
        (&["one=10.0.0.1", "one=10.0.0.2"], "one name or host"),
        (&["one=10.0.0.1", "two=10.0.0.1"], "one name or host"),
        (&["../one=10.0.0.1", "two=10.0.0.2"], "cannot name a machine's folder"),
        (&["secret=10.0.0.1", "two=10.0.0.2"], "cannot name a machine's folder"),
        (&["one=10.0.0.1/8", "two=10.0.0.2"], "neither a host name nor an IP address"),
    ] {
        let (founded, told) = found(machines);
        assert!(!founded && told.contains(reason), "{machines:?}: {told}");
        assert!(!dir.exists(), "{machines:?}");
    }
    let (founded, told) = found(&["one=fd00::1", "two=two.example", "three=10.0.0.3"]);
    assert!(founded, "{told}");
    let (founded, told) = found(&["four=10.0.0.4", "five=10.0.0.5"]);
    assert!(!founded && told.contains("has a cluster already"), "{told}");
    // Nor is another one made on top of it.
    let descriptor = fs::read(dir.join("descriptor")).unwrap();
    let mut dev = Command::new(coffer_binary().unwrap());
    let dev = dev.args(["dev", "--listen", "127.0.0.1:0", "--dir"]).arg(&dir).output().unwrap();
    let told = String::from_utf8(dev.stderr).unwrap();
    assert!(!dev.status.success() && told.contains("coffer found"), "{told}");
    assert!(fs::read(dir.join("descriptor")).unwrap() == descriptor);
}
