//! What Helm makes of the chart, as the objects a cluster would be given.

use std::collections::BTreeMap;
use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ConfigMap, Service, ServiceAccount};
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// The release's name, and that of its namespace.
pub(crate) const RELEASE: &str = "coffer";
pub(crate) const NAMESPACE: &str = "coffer";
/// The oldest Kubernetes the chart is for. A Helm that `go install` built takes itself for an older one.
const KUBERNETES: &str = "1.31.0";
/// What is for a cluster's scheduler, network and evictions, and nothing that a process would notice here.
const ELSEWHERE: [&str; 2] = ["NetworkPolicy", "PodDisruptionBudget"];

/// The objects of a release.
#[derive(Default)]
pub(crate) struct Rendered {
    pub(crate) sets: Vec<StatefulSet>,
    pub(crate) deployments: Vec<Deployment>,
    pub(crate) autoscalers: Vec<HorizontalPodAutoscaler>,
    pub(crate) services: Vec<Service>,
    pub(crate) config_maps: BTreeMap<String, ConfigMap>,
    pub(crate) accounts: Vec<ServiceAccount>,
    pub(crate) roles: Vec<Role>,
    pub(crate) bindings: Vec<RoleBinding>,
    pub(crate) jobs: Vec<Job>,
}

impl Rendered {
    /// The default chart with some values, each `key=value`.
    pub(crate) fn of(helm: &Path, values: &[&str]) -> Result<Self> {
        let chart = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/helm/coffer");
        let output = Command::new(helm)
            .args(["template", RELEASE])
            .arg(chart)
            .args(["--namespace", NAMESPACE, "--kube-version", KUBERNETES])
            .args(values.iter().flat_map(|value| ["--set", *value]))
            .output()
            .context("cannot run helm")?;
        ensure!(output.status.success(), "helm: {}", String::from_utf8_lossy(&output.stderr));
        Self::parse(&String::from_utf8(output.stdout)?)
    }

    fn parse(text: &str) -> Result<Self> {
        let mut rendered = Self::default();
        let text = with_decimal_modes(text)?;
        for document in yaml_serde::Deserializer::from_str(&text) {
            let object = Value::deserialize(document)?;
            let Some(kind) = object["kind"].as_str() else { continue };
            let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
            ensure!(
                object["metadata"]["namespace"] == NAMESPACE,
                "{kind} {name} is in another namespace"
            );
            match kind {
                "StatefulSet" => rendered.sets.push(typed(object)?),
                "Deployment" => rendered.deployments.push(typed(object)?),
                "HorizontalPodAutoscaler" => rendered.autoscalers.push(typed(object)?),
                "Service" => rendered.services.push(typed(object)?),
                "ServiceAccount" => rendered.accounts.push(typed(object)?),
                "Role" => rendered.roles.push(typed(object)?),
                "RoleBinding" => rendered.bindings.push(typed(object)?),
                "Job" => rendered.jobs.push(typed(object)?),
                "ConfigMap" => drop(rendered.config_maps.insert(name, typed(object)?)),
                other if ELSEWHERE.contains(&other) => {}
                other => bail!("this test does not know what a {other} does"),
            }
        }
        Ok(rendered)
    }

    /// The job that Helm runs at this time, if there is one.
    pub(crate) fn hook(&self, when: &str) -> Option<&Job> {
        self.jobs.iter().find(|job| {
            let notes = job.metadata.annotations.as_ref();
            let hook = notes.and_then(|notes| notes.get("helm.sh/hook"));
            hook.is_some_and(|hook| hook.split(',').any(|it| it == when))
        })
    }
}

fn typed<T: DeserializeOwned>(object: Value) -> Result<T> {
    let what = format!("{} {}", object["kind"], object["metadata"]["name"]);
    serde_json::from_value(object).context(what)
}

/// Kubernetes reads YAML 1.1, in which a number that begins with 0 is octal; our parser reads 1.2.
fn with_decimal_modes(text: &str) -> Result<String> {
    let mut lines = Vec::new();
    for line in text.lines() {
        let mode = line.split_once("ode: 0").filter(|(_, rest)| !rest.is_empty());
        lines.push(match mode {
            Some((before, octal)) => {
                format!("{before}ode: {}", u32::from_str_radix(octal.trim(), 8)?)
            }
            None => line.to_owned(),
        });
    }
    Ok(lines.join("\n"))
}

/// Helm, where scripts/test-chart finds it too.
pub(crate) fn helm() -> Option<PathBuf> {
    let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/tools");
    let go = env::var_os("GOPATH").map(PathBuf::from);
    let go = go.or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join("go")));
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain([tools])
        .chain(go.map(|go| go.join("bin")))
        .map(|folder| folder.join("helm"))
        .find(|helm| helm.is_file())
}

/// A quantity in whole units, thousandths rounded up.
pub(crate) fn units(quantity: &Quantity) -> Result<u64> {
    let thousandths = thousandths(quantity)?;
    Ok(thousandths.div_ceil(1000))
}

/// A quantity in thousandths.
pub(crate) fn thousandths(Quantity(text): &Quantity) -> Result<u64> {
    let end = text.find(|it: char| !it.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(end);
    let factor = match unit {
        "m" => 1,
        "" => 1000,
        "k" => 1_000_000,
        "M" => 1_000_000_000,
        "G" => 1_000_000_000_000,
        "Ki" => 1000 << 10,
        "Mi" => 1000 << 20,
        "Gi" => 1000 << 30,
        "Ti" => 1000 << 40,
        _ => bail!("{text} is no quantity that this test knows"),
    };
    Ok(digits.parse::<u64>().with_context(|| format!("the quantity {text}"))? * factor)
}
