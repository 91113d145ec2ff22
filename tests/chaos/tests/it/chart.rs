//! The pods of the rendered chart, as local processes: what Helm makes of the default values is read, and each pod
//! is a process with exactly its arguments, environment, files, user, bounds, ports and probes.
//!
//! A network namespace stands for each pod. Needed are root, namespaces and Helm; without them the test says so and
//! passes.

#![allow(clippy::print_stderr)]

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::Instant;

use coffer_chaos::{coffer_binary, noise, wait_for};
use coffer_client::contact::StateDir;
use coffer_client::{Authority, Endpoint, Engine, Session};
use tempfile::TempDir;

use crate::moving::{Worked, Worker, path};

use kubernetes::Kubernetes;
use rendered::Rendered;

mod api;
mod kubernetes;
mod node;
mod plan;
mod pod;
mod rendered;

/// The values the chart is installed with: a lost volume is replaced soon.
const VALUES: [&str; 1] = ["authority.replaceAfter=5s"];
/// What an upgrade changes: something for every pod, and something for gateways and storage nodes only.
const FOR_ALL: &str = "logLevel=debug";
const FOR_SOME: [&str; 2] =
    ["gateway.resources.limits.memory=768Mi", "storage.compactDeadPercent=40"];
/// The gateway's Service, and a name its certificate is good for.
const GATEWAY: &str = "coffer-gateway";
const GATEWAY_NAME: &str = "coffer-gateway.coffer.svc";
const PASSWORD: &str = "a password of five words";

/// Somebody who uses the release from inside the cluster.
struct Alice {
    work: PathBuf,
    runtime: TempDir,
    server: String,
}

impl Alice {
    /// Registers, as NOTES.txt says.
    fn register(kubernetes: &Kubernetes) -> Self {
        let alice = Self {
            work: kubernetes.dir().join("alice"),
            runtime: tempfile::tempdir_in("/dev/shm").unwrap(),
            server: format!("{}:7420", kubernetes.node.service(GATEWAY).unwrap()),
        };
        let secret = kubernetes.api.secret("coffer-secrets").unwrap();
        let admin = alice.work.join("admin");
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&admin).unwrap();
        fs::write(admin.join("identity"), &secret["administrator"].0).unwrap();
        fs::write(alice.ca(), &secret["ca.pem"].0).unwrap();
        let admin = admin.to_str().unwrap();
        let invite = alice.coffer(&["order", "invite", "--admin", admin]);
        alice.coffer(&["register", "alice", "--invite", invite.trim()]);
        alice
    }

    fn ca(&self) -> PathBuf {
        self.work.join("ca.pem")
    }

    fn run(&self, args: &[&str]) -> Output {
        Command::new(coffer_binary().unwrap())
            .args(args)
            .env("COFFER_SERVER", &self.server)
            .env("COFFER_SERVER_NAME", GATEWAY_NAME)
            .env("COFFER_CA", self.ca())
            .env("COFFER_PASSWORD", PASSWORD)
            .env("XDG_RUNTIME_DIR", self.runtime.path())
            .env("XDG_STATE_HOME", self.work.join("state"))
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    fn coffer(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert!(output.status.success(), "{args:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn put(&self, remote: &str, content: &[u8]) {
        let file = self.work.join("file");
        fs::write(&file, content).unwrap();
        self.coffer(&["put", file.to_str().unwrap(), remote]);
    }

    fn is_still(&self, remote: &str, content: &[u8]) {
        let output = self.run(&["get", remote, "-"]);
        assert!(output.status.success(), "{remote}: {output:?}");
        assert!(output.stdout == content, "{remote} is not what was put");
    }

    fn is_well(&self) -> bool {
        self.run(&["status"]).stdout.starts_with(b"everything is well")
    }

    async fn session(&self, client: &str) -> Session {
        let endpoint = Endpoint {
            server: self.server.clone(),
            server_name: Some(GATEWAY_NAME.to_owned()),
            authority: Authority::PemFile(self.ca()),
        };
        let state = StateDir::at(self.work.join(client));
        let engine = Engine::connect(&endpoint, state).await.unwrap();
        let state = engine.login(&"alice".parse().unwrap(), PASSWORD).await.unwrap();
        engine.session(state).unwrap()
    }
}

/// The release, from its installation on.
struct Release {
    helm: PathBuf,
    kubernetes: Kubernetes,
    began: Instant,
}

impl Release {
    fn install(helm: PathBuf) -> Self {
        let kubernetes = Kubernetes::start().unwrap();
        let mut release = Self { helm, kubernetes, began: Instant::now() };
        release.apply(&VALUES, "pre-install");
        release.settle("the release to be installed");
        release
    }

    fn apply(&mut self, values: &[&str], hook: &str) {
        let rendered = Rendered::of(&self.helm, values).unwrap();
        self.kubernetes.apply(rendered, hook).unwrap();
    }

    fn settle(&mut self, what: &str) {
        let took = self.kubernetes.settle(what).unwrap();
        say(&format!("{:.1?}: {what} took {took:.1?}", self.began.elapsed()));
    }

    /// Waits until no copy is missing, while pods are looked after.
    fn wait_until_well(&mut self, alice: &Alice) {
        let began = Instant::now();
        wait_for("everything to be well", || {
            self.kubernetes.step()?;
            Ok(alice.is_well().then_some(()))
        })
        .unwrap();
        say(&format!("  everything is well {:.1?} later", began.elapsed()));
    }

    /// What `kubectl exec deployment/coffer-gateway -- coffer status` says, which the README promises to people.
    fn wait_until_well_inside(&mut self) {
        wait_for("everything to be well, seen from within a gateway", || {
            self.kubernetes.step()?;
            let told = self.kubernetes.pod(GATEWAY)?.exec(&["status"])?;
            Ok(told.stdout.starts_with(b"everything is well").then_some(()))
        })
        .unwrap();
    }

    /// Upgrades, and gives the owners whose pods were all replaced. Of the others no pod was.
    fn upgrade(&mut self, values: &[&str]) -> BTreeSet<String> {
        let before = self.kubernetes.numbers();
        self.apply(values, "pre-upgrade");
        self.settle(&format!("the upgrade to {}", values.join(" ")));
        let after = self.kubernetes.numbers();
        let mut replaced = BTreeSet::new();
        for (owner, before) in before {
            if after[&owner].is_disjoint(&before) {
                replaced.insert(owner);
            } else {
                assert_eq!(after[&owner], before, "{owner}");
            }
        }
        replaced
    }

    /// What `helm test` does.
    fn test(&mut self) {
        let job = self.kubernetes.rendered.hook("test").unwrap().clone();
        say(self.kubernetes.run(&job).unwrap().trim());
    }
}

fn say(what: &str) {
    eprintln!("{what}");
}

/// Goal: what the chart renders forms a cluster, which goes on serving while each of its pods is replaced, while it
/// is upgraded, and when volumes are lost. Method: a kubelet's, a name server's and controllers' part is done here;
/// somebody works all the time, and nothing of that may fail.
#[test]
fn the_rendered_chart_runs() {
    let Some(helm) = rendered::helm() else {
        return say("the rendered chart was NOT run: there is no helm");
    };
    if let Some(why) = kubernetes::lacking() {
        return say(&format!("the rendered chart was NOT run: {why}"));
    }
    let mut release = Release::install(helm);
    release.kubernetes.check().unwrap();
    if release.kubernetes.is_unbounded() {
        say("this machine does not let us bound memory and processor: pods have no limits");
    }
    release.test();
    release.wait_until_well_inside();
    let alice = Alice::register(&release.kubernetes);
    let content = noise(1, 3_000_000);
    alice.put("/alice/installed", &content);
    let handle = release.kubernetes.node.runtime.handle().clone();
    let session = handle.block_on(alice.session("worker"));
    let worker = handle.block_on(async { Worker::start(session) });

    let owners = release.kubernetes.owners();
    for owner in &owners {
        release.kubernetes.restart(owner);
        release.settle(&format!("each pod of {owner} to be replaced"));
    }
    release.wait_until_well(&alice);
    alice.is_still("/alice/installed", &content);

    let all: Vec<&str> = VALUES.into_iter().chain([FOR_ALL]).collect();
    assert_eq!(release.upgrade(&all), owners.iter().cloned().collect());
    let some: Vec<&str> = all.into_iter().chain(FOR_SOME).collect();
    let replaced = ["Deployment coffer-gateway", "StatefulSet coffer-storage"];
    assert_eq!(release.upgrade(&some), replaced.map(str::to_owned).into());
    release.wait_until_well(&alice);
    alice.put("/alice/upgraded", &content);

    for pod in ["coffer-storage-1", "coffer-metadata-0"] {
        release.kubernetes.lose(pod).unwrap();
        release.settle(&format!("{pod} to be there again without its volume"));
        release.wait_until_well(&alice);
        let log = release.kubernetes.pod(pod).unwrap().log();
        assert!(log.contains("this process has the place of a lost volume"), "{pod}: {log}");
    }
    alice.put("/alice/replaced", &content);
    for remote in ["/alice/installed", "/alice/upgraded", "/alice/replaced"] {
        alice.is_still(remote, &content);
    }
    release.test();

    let Worked { failures, content } = handle.block_on(worker.stop());
    assert_eq!(failures, Vec::<String>::new());
    let session = handle.block_on(alice.session("reader"));
    for (file, expected) in &content {
        let found = handle.block_on(session.read_range(&path(*file), None, 0, u64::MAX));
        assert_eq!(&found.unwrap(), expected, "file {file}");
    }
    release.kubernetes.check().unwrap();
    for (pod, work, known) in release.kubernetes.start_times() {
        say(&format!("{pod} was ready after {work:.1?}, which its probes told after {known:.1?}"));
    }
}
