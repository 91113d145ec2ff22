//! `coffer join`: the standing policy by which a lost volume is replaced without an administrator.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Subcommand;
use coffer_client::Administration;
use coffer_client::contact::StateDir;
use coffer_join::token::JoinToken;
use coffer_model::descriptor::ReplacementPolicy;
use coffer_service::files::{PRIVATE_FILE, write_atomically};
use serde_json::json;

use crate::admin::{AdminArgs, Operator, endpoint, milliseconds, show};
use crate::args::Global;
use crate::exit::Waits;
use crate::found;

/// A process is greeted every few seconds; a shorter silence says nothing.
const SILENT_MS_MIN: u64 = 5_000;
/// A longer one is no policy.
const SILENT_MS_MAX: u64 = 30 * 86_400_000;

/// `coffer join`
#[derive(Debug, Subcommand)]
pub(crate) enum JoinCommand {
    /// Show the policy for replacing lost volumes, set it or clear it
    ///
    /// With a policy, a storage node or member on a new volume that has the join token takes the place of one
    /// that has been silent for long enough, if a majority of the members agrees. Without options this shows
    /// the policy.
    Policy {
        #[command(flatten)]
        admin: AdminArgs,
        /// For how long a process must have been silent to be replaced, such as 10m
        #[arg(long, value_name = "TIME")]
        silent: Option<String>,
        /// Make a new join token and write it into this file; the one before counts no more
        #[arg(long, value_name = "FILE", requires = "silent")]
        token_out: Option<PathBuf>,
        /// Replace nothing without an administrator any more
        #[arg(long, conflicts_with_all = ["silent", "token_out"])]
        off: bool,
    },
}

/// `coffer join`
pub(crate) async fn run(global: Global, command: JoinCommand) -> Result<()> {
    let JoinCommand::Policy { admin, silent, token_out, off } = command;
    match silent {
        Some(silent) => set(&global, admin, &silent, token_out).await,
        None if off => {
            let mut operator = Operator::new(&global, admin).await?;
            if operator.cluster.descriptor().replacement.is_some() {
                operator.change(|next| next.replacement = None).await?;
            }
            if let Some(dir) = &operator.dir {
                remove(&found::token_file(dir))?;
            }
            operator.told("nothing is replaced without an administrator");
            Ok(())
        }
        None => {
            let endpoint = endpoint(&global, admin.key.dir.as_deref())?;
            let cluster = Administration::connect(&endpoint, &StateDir::standard()?).await?;
            let policy = cluster.descriptor().replacement.as_ref();
            let text =
                policy.map_or("nothing is replaced without an administrator".to_owned(), told);
            let value = policy.map(|policy| {
                json!({
                    "silent_ms": policy.silent_ms_min,
                    "join_token_hash": policy.join_token.to_string(),
                })
            });
            show(&global, &json!({ "policy": value }), &text);
            Ok(())
        }
    }
}

async fn set(
    global: &Global,
    admin: AdminArgs,
    silent: &str,
    token_out: Option<PathBuf>,
) -> Result<()> {
    let silent_ms_min = milliseconds(silent)?;
    if !(SILENT_MS_MIN..=SILENT_MS_MAX).contains(&silent_ms_min) {
        bail!("a process must have been silent for 5s to 30d");
    }
    let mut operator = Operator::new(global, admin).await?;
    let former = operator.cluster.descriptor().replacement.clone();
    // The processes of a `coffer dev` cluster find it there.
    let of_dev = operator.dir.as_deref().map(found::token_file);
    let file = token_out.or_else(|| of_dev.filter(|_| former.is_none()));
    let (join_token, made) = match (file, former) {
        (Some(file), _) => (write_token(&file)?, Some(file)),
        (None, Some(former)) => (former.join_token, None),
        (None, None) => bail!("there is no join token yet: say where to, with --token-out"),
    };
    let policy = ReplacementPolicy { silent_ms_min, join_token };
    let text = told(&policy);
    let changed = operator.change(|next| next.replacement = Some(policy)).await;
    if let (Err(error), Some(made)) = (&changed, &made)
        && !error.is::<Waits>()
    {
        // A token that no policy names, nor a proposal, is good for nothing.
        remove(made)?;
    }
    changed?;
    operator.told(&text);
    if let Some(made) = made {
        operator.told(&format!("the join token is in {}; keep it secret", made.display()));
    }
    Ok(())
}

/// Writes a new join token, and gives its hash. One that is there is not overwritten: its policy may count.
fn write_token(file: &Path) -> Result<coffer_model::hash::Hash> {
    if file.exists() {
        bail!("{} is there already; remove it, or choose another file", file.display());
    }
    let token = JoinToken::random()?;
    let text = zeroize::Zeroizing::new(format!("{}\n", *token.to_text()));
    write_atomically(file, text.as_bytes(), PRIVATE_FILE)
        .with_context(|| format!("cannot write {}", file.display()))?;
    Ok(token.hash())
}

fn remove(file: &Path) -> Result<()> {
    match std::fs::remove_file(file) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", file.display()))
        }
        _ => Ok(()),
    }
}

fn told(policy: &ReplacementPolicy) -> String {
    format!(
        "a process that has been silent for {} s is replaced by one with a new volume and the join token \
         (hash {})",
        policy.silent_ms_min / 1000,
        policy.join_token
    )
}
