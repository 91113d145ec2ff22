//! What takes a release's objects and sees to it that their pods are there: StatefulSets, Deployments and Jobs, in
//! the order and with the waits that Kubernetes has.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use coffer_chaos::wait_for;
use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use tempfile::TempDir;

use super::api::Api;
use super::node::{API, Node};
use super::plan::{Identity, Plan};
use super::pod::{Image, Pod, Surroundings, address_of, claim_dir, found};
use super::rendered::Rendered;

/// A cluster of one machine.
pub(crate) struct Kubernetes {
    // Pods end before the machine does.
    pods: Vec<Pod>,
    pub(crate) rendered: Rendered,
    pub(crate) api: Arc<Api>,
    image: Image,
    pub(crate) node: Node,
    dir: TempDir,
    /// How many pods there have been.
    started: u32,
    /// Templates that people gave a note, so that their pods are replaced.
    restarts: BTreeMap<String, u32>,
    /// How long pods took from their start until they were ready, and until a kubelet knew.
    start_times: Vec<(String, Duration, Duration)>,
}

/// Why it cannot be tried on this machine.
pub(crate) fn lacking() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("this is not root".to_owned());
    }
    let tools = ["ip", "unshare", "nsenter", "setpriv", "chroot", "mount", "ldd", "env", "sleep"];
    if let Some(tool) = tools.into_iter().find(|tool| found(tool).is_err()) {
        return Some(format!("there is no {tool}"));
    }
    // Inside of a container all of it may be forbidden.
    let script = "ip link add name try type bridge && \
                  ip link add name try0 type veth peer name try1 && mount -t tmpfs try /tmp";
    let tried = std::process::Command::new("unshare")
        .args([
            "--net", "--mount", "--pid", "--fork", "--cgroup", "--uts", "--ipc", "sh", "-c", script,
        ])
        .output();
    match tried {
        Ok(output) if output.status.success() => None,
        Ok(output) => Some(format!(
            "namespaces cannot be made: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        )),
        Err(error) => Some(format!("namespaces cannot be made: {error}")),
    }
}

impl Kubernetes {
    pub(crate) fn start() -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("coffer-chart").tempdir()?;
        let image = Image::pack(&dir.path().join("image"))?;
        let node = Node::start()?;
        let api = Api::new()?;
        node.runtime.block_on(Arc::clone(&api).serve((API, 443).into()))?;
        Ok(Self {
            pods: Vec::new(),
            rendered: Rendered::default(),
            api,
            image,
            node,
            dir,
            started: 0,
            restarts: BTreeMap::new(),
            start_times: Vec::new(),
        })
    }

    /// A folder for the test's own files.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// `helm install` and `helm upgrade`: the hook, then the objects. Nothing is waited for but the hook.
    pub(crate) fn apply(&mut self, rendered: Rendered, hook: &str) -> Result<()> {
        self.api.apply(&rendered);
        for service in &rendered.services {
            self.node.apply_service(service)?;
        }
        self.rendered = rendered;
        let hook = self.rendered.hook(hook).cloned();
        hook.map_or(Ok(()), |job| self.run(&job).map(drop))
    }

    /// Runs a job to its end, and gives what it said.
    pub(crate) fn run(&mut self, job: &Job) -> Result<String> {
        let owner = format!("Job {}", job.metadata.name.as_deref().unwrap_or_default());
        let spec = job.spec.as_ref().context("a Job has a spec")?;
        let name = format!("{}-{}", job.metadata.name.as_deref().unwrap_or_default(), self.started);
        let mut pod = self.start_pod(&owner, &spec.template, &name, &BTreeMap::new(), None)?;
        let status = wait_for(&format!("{owner} to end"), || {
            self.look_after_pods()?;
            pod.look_after(&self.node)
        })?;
        ensure!(status.success(), "{owner} ended with {status}\n{}", pod.end_of_log());
        Ok(pod.log())
    }

    /// `kubectl rollout restart`: all pods of an object are replaced.
    pub(crate) fn restart(&mut self, owner: &str) {
        *self.restarts.entry(owner.to_owned()).or_default() += 1;
    }

    /// Owners with pods, StatefulSets first.
    pub(crate) fn owners(&self) -> Vec<String> {
        let sets = self.rendered.sets.iter().map(|it| ("StatefulSet", &it.metadata));
        let deployments = self.rendered.deployments.iter().map(|it| ("Deployment", &it.metadata));
        sets.chain(deployments)
            .map(|(kind, it)| format!("{kind} {}", it.name.as_deref().unwrap_or_default()))
            .collect()
    }

    /// The pods by their owners. One that is replaced gets another number.
    pub(crate) fn numbers(&self) -> BTreeMap<String, BTreeSet<u32>> {
        let mut all: BTreeMap<String, BTreeSet<u32>> = BTreeMap::new();
        for pod in &self.pods {
            all.entry(pod.owner.clone()).or_default().insert(pod.number);
        }
        all
    }

    /// Takes a pod and its volume away, as when a machine burns down.
    pub(crate) fn lose(&mut self, name: &str) -> Result<()> {
        let at = self.pods.iter().position(|pod| pod.name == name).context("it is there")?;
        let mut pod = self.pods.remove(at);
        pod.kill(&self.node)?;
        let claim = claim_dir(self.dir.path(), &format!("data-{name}"));
        Ok(fs::rename(&claim, self.dir.path().join(format!("lost-{name}-{}", self.started)))?)
    }

    /// Waits until all pods are those that the objects ask for, and have been ready for long enough. Gives how long
    /// that took.
    pub(crate) fn settle(&mut self, what: &str) -> Result<Duration> {
        let began = Instant::now();
        let settled = wait_for(what, || Ok(self.step()?.then_some(began.elapsed())));
        if settled.is_err() {
            for pod in self.pods.iter().filter(|pod| !pod.is_ready()) {
                eprintln!("{} is not ready:\n{}\n", pod.name, pod.end_of_log());
            }
        }
        settled
    }

    /// Each controller looks once at what is there, and does what is next. True: nothing is left to do.
    pub(crate) fn step(&mut self) -> Result<bool> {
        self.look_after_pods()?;
        self.node.check()?;
        let mut settled = true;
        for set in self.rendered.sets.clone() {
            settled &= self.step_set(&set)?;
        }
        for deployment in self.rendered.deployments.clone() {
            settled &= self.step_deployment(&deployment)?;
        }
        Ok(settled)
    }

    /// Pods that were told to stop are forgotten when they have. No other may end.
    fn look_after_pods(&mut self) -> Result<()> {
        let mut at = 0;
        while at < self.pods.len() {
            let pod = &mut self.pods[at];
            match pod.look_after(&self.node)? {
                None => at += 1,
                Some(status) => {
                    let pod = self.pods.remove(at);
                    ensure!(
                        pod.is_stopping() && status.success(),
                        "{} ended with {status}{}\n{}",
                        pod.name,
                        if pod.is_stopping() { "" } else { " and was not told to" },
                        pod.end_of_log()
                    );
                    self.note_start_time(&pod);
                }
            }
        }
        Ok(())
    }

    fn note_start_time(&mut self, pod: &Pod) {
        if let Some((work, known)) = pod.start_times() {
            self.start_times.push((pod.name.clone(), work, known));
        }
    }

    fn start_pod(
        &mut self,
        owner: &str,
        template: &PodTemplateSpec,
        name: &str,
        claims: &BTreeMap<String, String>,
        subdomain: Option<String>,
    ) -> Result<Pod> {
        let number = self.started;
        self.started += 1;
        let identity = Identity { name, address: address_of(number)? };
        let plan = Plan::of(template, &identity, claims, &self.rendered, &self.api)
            .with_context(|| format!("{owner}, pod {name}"))?;
        let around =
            Surroundings { node: &self.node, image: &self.image, dir: self.dir.path(), number };
        let revision = self.revision(owner, template)?;
        Pod::start(plan, &around, owner, &revision, subdomain)
    }

    fn revision(&self, owner: &str, template: &PodTemplateSpec) -> Result<String> {
        let restarts = self.restarts.get(owner).copied().unwrap_or_default();
        Ok(format!("{restarts} {}", serde_json::to_string(template)?))
    }

    /// Pods are made all at once. Of an older template the last one is replaced first, and each when all after it
    /// have been ready for long enough.
    fn step_set(&mut self, set: &StatefulSet) -> Result<bool> {
        let name = set.metadata.name.clone().context("a StatefulSet has a name")?;
        let owner = format!("StatefulSet {name}");
        let spec = set.spec.clone().context("a StatefulSet has a spec")?;
        let revision = self.revision(&owner, &spec.template)?;
        let wanted = spec.replicas.unwrap_or(1);
        let least = Duration::from_secs(u64::try_from(spec.min_ready_seconds.unwrap_or(0))?);
        let partition = spec.update_strategy.as_ref().and_then(|it| it.rolling_update.as_ref());
        let partition = partition.and_then(|it| it.partition).unwrap_or(0);
        ensure!(
            spec.pod_management_policy.as_deref() == Some("Parallel"),
            "{owner} starts pod by pod"
        );
        let labels =
            spec.template.metadata.as_ref().and_then(|it| it.labels.clone()).unwrap_or_default();
        let selector = spec.selector.match_labels.clone().unwrap_or_default();
        ensure!(
            selector.iter().all(|(key, value)| labels.get(key) == Some(value)),
            "{owner} does not select its own pods"
        );
        let mut settled = true;
        for ordinal in 0..wanted {
            let pod = format!("{name}-{ordinal}");
            if self.pods.iter().any(|it| it.name == pod) {
                continue;
            }
            settled = false;
            let claims = spec.volume_claim_templates.iter().flatten();
            let claims = claims.filter_map(|it| it.metadata.name.clone());
            let claims = claims.map(|it| (it.clone(), format!("{it}-{pod}"))).collect();
            let pod =
                self.start_pod(&owner, &spec.template, &pod, &claims, spec.service_name.clone())?;
            self.pods.push(pod);
        }
        for ordinal in (0..wanted).rev() {
            let named = format!("{name}-{ordinal}");
            let pod = self.pods.iter_mut().find(|pod| pod.name == named).context("it is there")?;
            if pod.is_stopping() {
                return Ok(false);
            }
            if pod.revision != revision && ordinal >= partition {
                pod.stop(&self.node);
                return Ok(false);
            }
            if !pod.is_available(least) {
                return Ok(false);
            }
        }
        Ok(settled)
    }

    /// New pods come before old ones go, within the bounds of the Deployment's strategy.
    fn step_deployment(&mut self, deployment: &Deployment) -> Result<bool> {
        let name = deployment.metadata.name.clone().context("a Deployment has a name")?;
        let owner = format!("Deployment {name}");
        let spec = deployment.spec.clone().context("a Deployment has a spec")?;
        let revision = self.revision(&owner, &spec.template)?;
        let least = Duration::from_secs(u64::try_from(spec.min_ready_seconds.unwrap_or(0))?);
        let scaled = self.rendered.autoscalers.iter().filter_map(|it| it.spec.as_ref());
        let scaled = scaled.into_iter().find(|it| it.scale_target_ref.name == name);
        let scaled = scaled.and_then(|it| it.min_replicas);
        let wanted = usize::try_from(spec.replicas.or(scaled).unwrap_or(1))?;
        let strategy = spec.strategy.as_ref().and_then(|it| it.rolling_update.as_ref());
        let bound = |value: Option<&IntOrString>| match value {
            Some(IntOrString::Int(count)) => Ok(usize::try_from(*count)?),
            _ => bail!("{owner} has bounds that are not known here"),
        };
        let surge = bound(strategy.and_then(|it| it.max_surge.as_ref()))?;
        let unavailable = bound(strategy.and_then(|it| it.max_unavailable.as_ref()))?;
        ensure!(surge + unavailable > 0, "{owner} can never be replaced");
        let own: Vec<usize> = (0..self.pods.len())
            .filter(|at| self.pods[*at].owner == owner && !self.pods[*at].is_stopping())
            .collect();
        let (new, old): (Vec<usize>, Vec<usize>) =
            own.iter().partition(|at| self.pods[**at].revision == revision);
        if new.len() < wanted && own.len() < wanted + surge {
            let pod = format!("{name}-{}", self.started);
            let pod = self.start_pod(&owner, &spec.template, &pod, &BTreeMap::new(), None)?;
            self.pods.push(pod);
            return Ok(false);
        }
        let available = own.iter().filter(|at| self.pods[**at].is_available(least)).count();
        if let Some(at) = old.first() {
            if available + unavailable > wanted {
                self.pods[*at].stop(&self.node);
            }
            return Ok(false);
        }
        let stopping = self.pods.iter().any(|pod| pod.owner == owner && pod.is_stopping());
        Ok(available >= wanted && !stopping)
    }

    /// How long all pods took that were ever ready, until they were and until a kubelet knew.
    pub(crate) fn start_times(&mut self) -> Vec<(String, Duration, Duration)> {
        let mut times = self.start_times.clone();
        for pod in &self.pods {
            times.extend(pod.start_times().map(|(work, known)| (pod.name.clone(), work, known)));
        }
        times
    }

    /// Finds out whether every process is what its template says.
    pub(crate) fn check(&self) -> Result<()> {
        self.pods.iter().try_for_each(Pod::check)
    }

    /// Whether there is a pod whose memory and processor this machine does not let us bound.
    pub(crate) fn is_unbounded(&self) -> bool {
        self.pods.iter().any(|pod| !pod.is_bounded())
    }

    /// Some pod whose name begins so.
    pub(crate) fn pod(&self, name: &str) -> Result<&Pod> {
        let pod = self.pods.iter().find(|pod| pod.name.starts_with(name));
        pod.with_context(|| format!("there is no pod {name}"))
    }
}
