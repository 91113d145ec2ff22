//! What Coffer does in a Kubernetes cluster by its API. Nothing else of Coffer speaks to it.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, PostParams};
use kube::{Client, Config};
use zeroize::Zeroizing;

/// Why a secret could not be made.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// This is no pod with a service account's token, and there is no kubeconfig.
    #[error(
        "the Kubernetes API cannot be found: run this in a pod whose service account's token is mounted"
    )]
    NoCluster(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The API refuses or does not answer.
    #[error("the Kubernetes API does not let us {action} the secret {name}")]
    Api {
        /// What was being done.
        action: &'static str,
        /// The secret.
        name: String,
        /// What it says.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// There is a secret of that name that lacks something.
    #[error(
        "the secret {name} exists and has no {missing}; it is left as it is: add what is missing, or remove the \
         secret if nothing was ever founded with it"
    )]
    Incomplete {
        /// The secret.
        name: String,
        /// The keys that are missing.
        missing: String,
    },
}

/// What was found or done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ensured {
    /// It was made now.
    Made,
    /// It was there already, and stays as it is.
    Kept,
}

/// Makes a secret in this pod's namespace, if there is none of that name; one that is there is never changed.
pub async fn ensure_secret(
    name: &str,
    contents: BTreeMap<String, Zeroizing<Vec<u8>>>,
) -> Result<Ensured, SecretError> {
    let config = Config::infer().await.map_err(|error| SecretError::NoCluster(Box::new(error)))?;
    let client =
        Client::try_from(config).map_err(|error| SecretError::NoCluster(Box::new(error)))?;
    let secrets: Api<Secret> = Api::default_namespaced(client);
    let refused = |action| {
        move |source: kube::Error| SecretError::Api {
            action,
            name: name.to_owned(),
            source: Box::new(source),
        }
    };
    let wanted: BTreeSet<String> = contents.keys().cloned().collect();
    if let Some(found) = secrets.get_opt(name).await.map_err(refused("read"))? {
        return keep(name, &wanted, &found);
    }
    let labels = BTreeMap::from([("app.kubernetes.io/part-of".to_owned(), "coffer".to_owned())]);
    let data = contents.into_iter().map(|(key, bytes)| (key, ByteString(bytes.to_vec()))).collect();
    let secret = Secret {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            labels: Some(labels),
            ..ObjectMeta::default()
        },
        // What was founded with it must not be lost by a slip.
        immutable: Some(false),
        data: Some(data),
        ..Secret::default()
    };
    match secrets.create(&PostParams::default(), &secret).await {
        Ok(_) => Ok(Ensured::Made),
        // Another was quicker: that one counts.
        Err(kube::Error::Api(status)) if status.code == 409 => {
            let found = secrets.get(name).await.map_err(refused("read"))?;
            keep(name, &wanted, &found)
        }
        Err(error) => Err(refused("make")(error)),
    }
}

fn keep(name: &str, wanted: &BTreeSet<String>, found: &Secret) -> Result<Ensured, SecretError> {
    let has = |key: &&String| found.data.as_ref().is_some_and(|data| data.contains_key(*key));
    let missing: Vec<&str> = wanted.iter().filter(|key| !has(key)).map(String::as_str).collect();
    if missing.is_empty() {
        return Ok(Ensured::Kept);
    }
    Err(SecretError::Incomplete { name: name.to_owned(), missing: missing.join(", ") })
}
