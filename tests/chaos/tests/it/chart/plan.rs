//! What a pod's template says about its process: the program's arguments, environment, files, user and limits.
//!
//! Here nothing is done yet. Whatever a template says that this test does not know is refused: it would not be
//! tried otherwise.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::core::v1::{
    Container, EnvVar, KeyToPath, PodSpec, PodTemplateSpec, Probe, ProjectedVolumeSource, Volume,
};

use super::api::Api;
use super::node::API;
use super::rendered::{NAMESPACE, Rendered, thousandths, units};

/// What the image sets.
const IMAGE_ENV: [(&str, &str); 1] = [("PATH", "/usr/local/bin")];

/// Who a pod is.
pub(crate) struct Identity<'a> {
    pub(crate) name: &'a str,
    pub(crate) address: Ipv4Addr,
}

/// A pod's one process.
pub(crate) struct Plan {
    pub(crate) name: String,
    pub(crate) args: Vec<String>,
    pub(crate) env: Vec<(String, String)>,
    pub(crate) mounts: Vec<Mount>,
    pub(crate) user: u32,
    pub(crate) group: u32,
    /// The group that volumes belong to.
    pub(crate) files_group: Option<u32>,
    pub(crate) no_new_privileges: bool,
    pub(crate) no_capabilities: bool,
    pub(crate) read_only_root: bool,
    pub(crate) memory_bytes: Option<u64>,
    pub(crate) cpu_thousandths: Option<u64>,
    pub(crate) ports: BTreeMap<String, u16>,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) startup: Option<Asked>,
    pub(crate) liveness: Option<Asked>,
    pub(crate) readiness: Option<Asked>,
    pub(crate) linger: Duration,
    pub(crate) grace: Duration,
}

/// A volume at its place.
pub(crate) struct Mount {
    pub(crate) at: String,
    pub(crate) read_only: bool,
    pub(crate) volume: Held,
}

/// What is in a volume.
#[derive(Clone)]
pub(crate) enum Held {
    /// The volume of this claim.
    Claim(String),
    /// Nothing at first, and at most so many bytes.
    Scratch { bytes_max: Option<u64> },
    /// Files.
    Files(Vec<Mounted>),
}

/// A file in a volume.
#[derive(Clone)]
pub(crate) struct Mounted {
    pub(crate) path: String,
    pub(crate) mode: u32,
    pub(crate) content: Vec<u8>,
}

/// A probe by gRPC.
#[derive(Clone)]
pub(crate) struct Asked {
    pub(crate) port: u16,
    pub(crate) service: String,
    pub(crate) delay: Duration,
    pub(crate) period: Duration,
    pub(crate) timeout: Duration,
    pub(crate) failures_max: u32,
}

impl Plan {
    /// What this template says for this pod. `claims` are those of a StatefulSet, by the names of their volumes.
    pub(crate) fn of(
        template: &PodTemplateSpec,
        identity: &Identity<'_>,
        claims: &BTreeMap<String, String>,
        rendered: &Rendered,
        api: &Api,
    ) -> Result<Self> {
        let spec = template.spec.as_ref().context("a pod has a spec")?;
        let [container] = spec.containers.as_slice() else { bail!("a pod has one container") };
        ensure!(spec.init_containers.is_none(), "init containers are not known here");
        ensure!(spec.host_network != Some(true), "the host's network is not known here");
        ensure!(container.command.is_none(), "the image has no program but its entry point");
        ensure!(container.env_from.is_none(), "envFrom is not known here");
        ensure!(container.image.is_some(), "a container has an image");
        let account = spec.service_account_name.as_deref().unwrap_or("default");
        ensure!(
            rendered.accounts.iter().any(|it| it.metadata.name.as_deref() == Some(account)),
            "there is no ServiceAccount {account}"
        );
        let (pod, own) = (
            spec.security_context.clone().unwrap_or_default(),
            container.security_context.clone().unwrap_or_default(),
        );
        let user = own.run_as_user.or(pod.run_as_user).unwrap_or(10001);
        ensure!(
            user != 0 || own.run_as_non_root.or(pod.run_as_non_root) != Some(true),
            "this container must not run as root, and would"
        );
        let dropped = own.capabilities.as_ref().and_then(|it| it.drop.as_ref());
        let env = environment(container, identity)?;
        let args = container.args.iter().flatten().map(|arg| expand(arg, &env)).collect();
        let labels = template.metadata.as_ref().and_then(|it| it.labels.clone());
        let limits =
            container.resources.as_ref().and_then(|it| it.limits.clone()).unwrap_or_default();
        let mut plan = Self {
            name: identity.name.to_owned(),
            args,
            env: env.into_iter().collect(),
            mounts: Vec::new(),
            user: u32::try_from(user)?,
            group: u32::try_from(own.run_as_group.or(pod.run_as_group).unwrap_or(user))?,
            files_group: pod.fs_group.map(u32::try_from).transpose()?,
            no_new_privileges: own.allow_privilege_escalation == Some(false),
            no_capabilities: dropped.is_some_and(|it| it.iter().any(|it| it == "ALL")),
            read_only_root: own.read_only_root_filesystem == Some(true),
            memory_bytes: limits.get("memory").map(units).transpose()?,
            cpu_thousandths: limits.get("cpu").map(thousandths).transpose()?,
            ports: BTreeMap::new(),
            labels: labels.unwrap_or_default(),
            startup: asked(container.startup_probe.as_ref())?,
            liveness: asked(container.liveness_probe.as_ref())?,
            readiness: asked(container.readiness_probe.as_ref())?,
            linger: linger(container)?,
            grace: Duration::from_secs(u64::try_from(
                spec.termination_grace_period_seconds.unwrap_or(30),
            )?),
        };
        for port in container.ports.iter().flatten() {
            let name = port.name.clone().context("a port has a name")?;
            plan.ports.insert(name, u16::try_from(port.container_port)?);
        }
        let from = Sources { identity, account, rendered, api, claims };
        for mount in container.volume_mounts.iter().flatten() {
            ensure!(mount.sub_path.is_none(), "subPath is not known here");
            let volume = from.volume(spec, &mount.name)?;
            plan.mounts.push(Mount {
                at: mount.mount_path.clone(),
                read_only: mount.read_only == Some(true) || matches!(volume, Held::Files(_)),
                volume,
            });
        }
        Ok(plan)
    }
}

fn environment(container: &Container, identity: &Identity<'_>) -> Result<Vec<(String, String)>> {
    let api = API.to_string();
    let told = [
        ("HOSTNAME", identity.name),
        ("HOME", "/"),
        ("KUBERNETES_SERVICE_HOST", api.as_str()),
        ("KUBERNETES_SERVICE_PORT", "443"),
        ("KUBERNETES_SERVICE_PORT_HTTPS", "443"),
    ];
    let all = IMAGE_ENV.into_iter().chain(told);
    let mut env: Vec<(String, String)> =
        all.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    for variable in container.env.iter().flatten() {
        let value = value(variable, &env, identity)?;
        env.retain(|(name, _)| *name != variable.name);
        env.push((variable.name.clone(), value));
    }
    Ok(env)
}

fn value(variable: &EnvVar, env: &[(String, String)], identity: &Identity<'_>) -> Result<String> {
    let Some(from) = &variable.value_from else {
        return Ok(expand(variable.value.as_deref().unwrap_or_default(), env));
    };
    let field = from.field_ref.as_ref().map(|it| it.field_path.as_str());
    Ok(match field {
        Some("metadata.name") => identity.name.to_owned(),
        Some("metadata.namespace") => NAMESPACE.to_owned(),
        Some("status.podIP") => identity.address.to_string(),
        _ => bail!("{} comes from where this test does not know", variable.name),
    })
}

/// Puts variables in for `$(NAME)`, as Kubernetes does: `$$` is a dollar sign, and a name that nobody set stays.
fn expand(text: &str, env: &[(String, String)]) -> String {
    let (mut out, mut rest) = (String::new(), text);
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
            continue;
        }
        let named = rest.strip_prefix('(').and_then(|it| it.split_once(')'));
        match named.and_then(|(name, after)| Some((env.iter().find(|it| it.0 == name)?, after))) {
            Some(((_, value), after)) => {
                out.push_str(value);
                rest = after;
            }
            None => out.push('$'),
        }
    }
    out + rest
}

fn asked(probe: Option<&Probe>) -> Result<Option<Asked>> {
    let Some(probe) = probe else { return Ok(None) };
    let grpc = probe.grpc.as_ref().context("only probes by gRPC are known here")?;
    ensure!(probe.success_threshold.unwrap_or(1) == 1, "only one success is known here");
    let seconds = |value: Option<i32>, standard: u32| {
        let value = value.map_or(Ok(standard), u32::try_from)?;
        anyhow::Ok(Duration::from_secs(value.into()))
    };
    Ok(Some(Asked {
        port: u16::try_from(grpc.port)?,
        service: grpc.service.clone().unwrap_or_default(),
        delay: seconds(probe.initial_delay_seconds, 0)?,
        period: seconds(probe.period_seconds, 10)?,
        timeout: seconds(probe.timeout_seconds, 1)?,
        failures_max: u32::try_from(probe.failure_threshold.unwrap_or(3))?,
    }))
}

/// How long a pod is left in peace before it is told to stop.
fn linger(container: &Container) -> Result<Duration> {
    let hooks = container.lifecycle.clone().unwrap_or_default();
    ensure!(hooks.post_start.is_none(), "postStart is not known here");
    let Some(before) = hooks.pre_stop else { return Ok(Duration::ZERO) };
    let sleep = before.sleep.context("the image has no program for preStop")?;
    Ok(Duration::from_secs(u64::try_from(sleep.seconds)?))
}

/// Where files come from.
struct Sources<'a> {
    identity: &'a Identity<'a>,
    account: &'a str,
    rendered: &'a Rendered,
    api: &'a Api,
    claims: &'a BTreeMap<String, String>,
}

impl Sources<'_> {
    fn volume(&self, spec: &PodSpec, name: &str) -> Result<Held> {
        if let Some(claim) = self.claims.get(name) {
            return Ok(Held::Claim(claim.clone()));
        }
        let volume = spec.volumes.iter().flatten().find(|volume| volume.name == name);
        let volume = volume.with_context(|| format!("there is no volume {name}"))?;
        match volume {
            Volume { empty_dir: Some(it), .. } => {
                Ok(Held::Scratch { bytes_max: it.size_limit.as_ref().map(units).transpose()? })
            }
            Volume { projected: Some(it), .. } => Ok(Held::Files(self.files(it)?)),
            _ => bail!("a volume of the kind of {name} is not known here"),
        }
    }

    fn files(&self, volume: &ProjectedVolumeSource) -> Result<Vec<Mounted>> {
        let mode = u32::try_from(volume.default_mode.unwrap_or(0o644))?;
        let mut files = Vec::new();
        for source in volume.sources.iter().flatten() {
            if let Some(it) = &source.config_map {
                let data = self.config_map(&it.name);
                pick(&mut files, &it.name, it.items.as_deref(), it.optional, mode, data)?;
            } else if let Some(it) = &source.secret {
                let secret = self.api.secret(&it.name);
                let data =
                    secret.map(|it| it.into_iter().map(|(key, value)| (key, value.0)).collect());
                pick(&mut files, &it.name, it.items.as_deref(), it.optional, mode, data)?;
            } else if let Some(it) = &source.service_account_token {
                let content = self.api.token(self.account).into_bytes();
                files.push(Mounted { path: it.path.clone(), mode, content });
            } else if let Some(it) = &source.downward_api {
                for item in it.items.iter().flatten() {
                    let field = item.field_ref.as_ref().map(|it| it.field_path.as_str());
                    let content = match field {
                        Some("metadata.namespace") => NAMESPACE.into(),
                        Some("metadata.name") => self.identity.name.into(),
                        _ => bail!("{} is of a field that is not known here", item.path),
                    };
                    files.push(Mounted { path: item.path.clone(), mode, content });
                }
            } else {
                bail!("a source of files that is not known here: {source:?}");
            }
        }
        Ok(files)
    }

    fn config_map(&self, name: &str) -> Option<BTreeMap<String, Vec<u8>>> {
        // Every namespace has this one.
        if name == "kube-root-ca.crt" {
            let certificate = self.api.certificate().as_bytes().to_vec();
            return Some(BTreeMap::from([("ca.crt".to_owned(), certificate)]));
        }
        let data = self.rendered.config_maps.get(name)?.data.clone().unwrap_or_default();
        Some(data.into_iter().map(|(key, text)| (key, text.into_bytes())).collect())
    }
}

/// Takes the keys that are asked for, or all.
fn pick(
    files: &mut Vec<Mounted>,
    name: &str,
    items: Option<&[KeyToPath]>,
    optional: Option<bool>,
    mode: u32,
    data: Option<BTreeMap<String, Vec<u8>>>,
) -> Result<()> {
    let optional = optional == Some(true);
    let Some(data) = data else {
        ensure!(optional, "a pod waits for {name}, which is not there");
        return Ok(());
    };
    let Some(items) = items else {
        let all = data.into_iter().map(|(path, content)| Mounted { path, mode, content });
        files.extend(all);
        return Ok(());
    };
    for item in items {
        match data.get(&item.key) {
            Some(content) => files.push(Mounted {
                path: item.path.clone(),
                mode: item.mode.map_or(Ok(mode), u32::try_from)?,
                content: content.clone(),
            }),
            None => ensure!(optional, "a pod waits for {} in {name}, which is not there", item.key),
        }
    }
    Ok(())
}
