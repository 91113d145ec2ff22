//! `coffer order`: what administrators decide for the whole cluster beyond who belongs to it.

use anyhow::{Context, Result, bail};
use clap::Subcommand;
use coffer_model::hash::{Hash, payload_hash};
use coffer_model::name::UserName;
use coffer_model::order::Decision;
use coffer_model::time::LogTime;
use serde_json::json;

use crate::admin::{AdminArgs, Operator, show};
use crate::args::Global;
use crate::exit::Waits;

/// `coffer order`
#[derive(Debug, Subcommand)]
pub(crate) enum OrderCommand {
    /// How long what was deleted can be restored
    Retention {
        /// Such as 30d, 12h or 0s
        time: String,
        #[command(flatten)]
        admin: AdminArgs,
    },
    /// How many bytes a user may store
    Quota {
        /// The user; left out: every user that has no quota of their own
        #[arg(long)]
        user: Option<String>,
        /// Bytes, also with K, M, G or T behind; `none` lifts the limit
        bytes: String,
        #[command(flatten)]
        admin: AdminArgs,
    },
    /// Whether anybody can register, or an invite is needed
    Registration {
        /// Who can
        who: Registration,
        #[command(flatten)]
        admin: AdminArgs,
    },
    /// Make an invite, with which one user can register
    Invite {
        /// How long it counts
        #[arg(long, default_value = "7d")]
        expires: String,
        #[command(flatten)]
        admin: AdminArgs,
    },
}

/// Who can register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Registration {
    /// Anybody
    Open,
    /// Whoever has an invite
    Invited,
}

/// `coffer order`
pub(crate) async fn order(global: Global, command: OrderCommand) -> Result<()> {
    match command {
        OrderCommand::Retention { time, admin } => {
            let ms = milliseconds(&time)?;
            let mut operator = Operator::new(&global, admin).await?;
            operator.order(Decision::Retention { ms }, None).await?;
            operator.told(&format!("what was deleted more than {time} ago is purged"));
            Ok(())
        }
        OrderCommand::Quota { user, bytes, admin } => {
            let limit = quota(&bytes)?;
            let mut operator = Operator::new(&global, admin).await?;
            let name = user.as_deref().map(str::parse::<UserName>).transpose()?;
            let home = match &name {
                Some(name) => Some(operator.cluster.home_of(name).await?),
                None => None,
            };
            operator.order(Decision::Quota { home, bytes: limit }, name.as_ref()).await?;
            let whose = user.as_deref().unwrap_or("every user without a quota of their own");
            operator.told(&format!("quota of {whose}: {bytes}"));
            Ok(())
        }
        OrderCommand::Registration { who, admin } => {
            let mut operator = Operator::new(&global, admin).await?;
            let open = who == Registration::Open;
            if operator.cluster.descriptor().open_registration != open {
                operator.change(|next| next.open_registration = open).await?;
            }
            let text = if open { "anybody can register" } else { "who has an invite can register" };
            operator.told(text);
            Ok(())
        }
        OrderCommand::Invite { expires, admin } => {
            let ms = milliseconds(&expires)?;
            let mut operator = Operator::new(&global, admin).await?;
            let (secret, carried) = invite(&mut operator, ms).await?;
            // Where others have to sign as well, this machine is the only one that knows the invite.
            let is_made = match &carried {
                Ok(()) => true,
                Err(error) => error.downcast_ref::<Waits>().is_some(),
            };
            if is_made {
                show(&global, &json!({ "invite": secret }), &secret);
            }
            carried
        }
    }
}

/// Makes an invite for `ms` from now, and says how ordering it went.
pub(crate) async fn invite(operator: &mut Operator<'_>, ms: u64) -> Result<(String, Result<()>)> {
    let mut secret = [0; 24];
    getrandom::fill(&mut secret).context("the system gives no randomness")?;
    let invite: Hash = payload_hash(&secret);
    let now = LogTime::from_unix_ms(operator.cluster.status().await?.log_time_ms);
    let ordered = operator.order(Decision::Invite { invite, expires: now.plus_ms(ms) }, None).await;
    Ok((hex::encode(secret), ordered))
}

pub(crate) fn milliseconds(text: &str) -> Result<u64> {
    let wrong = || format!("{text} is no time; give a number and s, m, h or d");
    let (number, unit) = text.split_at_checked(text.len().saturating_sub(1)).with_context(wrong)?;
    let unit: u64 = match unit {
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => bail!(wrong()),
    };
    number.parse::<u64>().ok().and_then(|number| number.checked_mul(unit)).with_context(wrong)
}

fn quota(text: &str) -> Result<Option<u64>> {
    if text == "none" {
        return Ok(None);
    }
    let wrong =
        || format!("{text} is no number of bytes; give one, with K, M, G or T behind, or `none`");
    let digits = text.trim_end_matches(['K', 'M', 'G', 'T']);
    let shift = match &text[digits.len()..] {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => bail!(wrong()),
    };
    let number: u64 = digits.parse().ok().with_context(wrong)?;
    number.checked_mul(1 << shift).map(Some).with_context(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_sizes_are_read_or_refused() {
        assert_eq!(milliseconds("30d").ok(), Some(30 * 86_400_000));
        assert_eq!(milliseconds("0s").ok(), Some(0));
        for wrong in ["", "d", "3", "3w", "-1d", "99999999999999999999d", "1é"] {
            assert!(milliseconds(wrong).is_err(), "{wrong}");
        }
        assert_eq!(quota("none").ok(), Some(None));
        assert_eq!(quota("0").ok(), Some(Some(0)));
        assert_eq!(quota("5G").ok(), Some(Some(5 << 30)));
        for wrong in ["", "G", "5GG", "5g", "-1", "99999999999999T"] {
            assert!(quota(wrong).is_err(), "{wrong}");
        }
    }
}
