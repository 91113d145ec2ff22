//! What a proposal would change, in words: a person decides by them whether to sign. So every field of what
//! is signed is named here, and what is not understood cannot be left out.

use std::path::Path;

use anyhow::Result;
use coffer_client::{Administration, HomeUsage};
use coffer_model::descriptor::{Descriptor, Member, ReplacementPolicy, StorageNode};
use coffer_model::hash::payload_hash;
use coffer_model::order::{Decision, Order};
use coffer_model::proposal::{Proposed, Review};
use coffer_model::signing::PublicKey;
use serde_json::{Value, json};

use crate::output::{self, bytes_text};

/// What the cluster has now, as far as a proposal is about it.
pub(super) struct Standing {
    descriptor: Descriptor,
    retention_ms: u64,
    /// The quota of homes that have none of their own.
    quota_bytes: Option<u64>,
    /// The home an order names.
    home: Option<HomeUsage>,
}

impl Standing {
    pub(super) async fn ask(cluster: &Administration, review: &Review) -> Result<Self> {
        let status = cluster.status().await?;
        let home = match &review.proposed {
            Proposed::Order { user: Some(user), .. } => Some(cluster.home(user).await?),
            _ => None,
        };
        Ok(Self {
            descriptor: cluster.descriptor().clone(),
            retention_ms: status.retention_ms,
            quota_bytes: status.default_quota_bytes,
            home,
        })
    }

    /// One line for each change.
    pub(super) fn changes(&self, review: &Review) -> Vec<String> {
        match &review.proposed {
            Proposed::Descriptor(next) => descriptor_changes(&self.descriptor, next),
            Proposed::Order { order, user } => {
                vec![self.order_change(order, user.as_ref().map(|user| user.as_str()))]
            }
        }
    }

    fn order_change(&self, order: &Order, user: Option<&str>) -> String {
        match &order.what {
            Decision::Retention { ms } => format!(
                "what was deleted can be restored for {}, then it is gone for good (now: {})",
                time_text(*ms),
                time_text(self.retention_ms)
            ),
            Decision::Quota { home: Some(home), bytes } => {
                let whose = user.map_or_else(
                    || format!("the home {home}"),
                    |user| format!("the home of {user} ({home})"),
                );
                let wanted = bytes.map_or_else(
                    || "has no quota of its own any more".to_owned(),
                    |bytes| format!("may use {}", bytes_text(bytes)),
                );
                let now = self.home.as_ref().map_or_else(String::new, |home| {
                    let (quota, used) = (quota_text(home.quota_bytes), bytes_text(home.used_bytes));
                    format!(" (now: {quota}, {used} used)")
                });
                format!("{whose} {wanted}{now}")
            }
            Decision::Quota { home: None, bytes } => format!(
                "every home without a quota of its own may use {} (now: {})",
                quota_text(*bytes),
                quota_text(self.quota_bytes)
            ),
            Decision::Invite { invite, expires } => format!(
                "whoever has the invite with the hash {invite} can register as one user, until {}",
                output::log_time_text(expires.unix_ms())
            ),
        }
    }
}

/// A proposal for people.
pub(super) fn proposal_text(review: &Review, changes: &[String]) -> String {
    let mut text = match &review.proposed {
        Proposed::Descriptor(next) => format!("descriptor {} would change:", next.number),
        Proposed::Order { order, .. } => format!("order {} would say:", order.number),
    };
    for change in changes {
        text += &format!("\n  {change}");
    }
    let (signed, quorum) = (review.signed_by.len(), review.quorum);
    text += &format!("\nsigned by {signed} of {quorum} administrators:");
    for key in &review.signed_by {
        text += &format!("\n  {key}");
    }
    for key in &review.not_counted {
        text += &format!("\n  {key} (no administrator: does not count)");
    }
    text
}

/// What programs are told of a proposal and its signatures.
pub(super) fn signatures_json(review: &Review, file: &Path) -> Value {
    let keys = |keys: &[PublicKey]| keys.iter().map(ToString::to_string).collect::<Vec<_>>();
    let (what, number) = match &review.proposed {
        Proposed::Descriptor(next) => ("descriptor", next.number),
        Proposed::Order { order, .. } => ("order", order.number),
    };
    json!({
        "proposal": file.display().to_string(), "record": what, "number": number,
        "signed_by": keys(&review.signed_by), "not_counted": keys(&review.not_counted),
        "quorum": review.quorum, "lacking": review.lacking(),
    })
}

fn descriptor_changes(now: &Descriptor, next: &Descriptor) -> Vec<String> {
    // Every field is taken out by name, so that a new one cannot be forgotten here. Number and former were
    // compared already.
    let Descriptor {
        suite,
        number: _,
        former: _,
        nonce,
        authority,
        administrators,
        quorum,
        members,
        nodes,
        cosigners,
        replacement,
        open_registration,
    } = next;
    let mut lines = Vec::new();
    let (before, after) = (&now.administrators, administrators);
    lines.extend(gone(before, after).map(|key| format!("administrator {key} is taken out")));
    lines.extend(gone(after, before).map(|key| format!("{key} becomes an administrator")));
    if *quorum != now.quorum || before.len() != after.len() {
        lines.push(format!(
            "{quorum} of {} administrators have to sign (now: {} of {})",
            after.len(),
            now.quorum,
            before.len()
        ));
    }
    members_changes(&now.members, members, &mut lines);
    nodes_changes(&now.nodes, nodes, &mut lines);
    let (before, after) = (&now.cosigners, cosigners);
    lines.extend(gone(before, after).map(|key| format!("cosigner {key} is taken out")));
    lines.extend(gone(after, before).map(|key| format!("{key} becomes a cosigner")));
    if *replacement != now.replacement {
        let (wanted, had) = (policy_text(replacement), policy_text(&now.replacement));
        lines.push(format!(
            "a lost volume may be replaced without an administrator: {wanted} (now: {had})"
        ));
    }
    if *open_registration != now.open_registration {
        lines.push(if *open_registration {
            "anybody can register (now: only with an invite)".to_owned()
        } else {
            "only who has an invite can register (now: anybody)".to_owned()
        });
    }
    if *authority != now.authority {
        lines.push(format!(
            "the certificate authority is another one: {} (now: {})",
            fingerprint(authority),
            fingerprint(&now.authority)
        ));
    }
    if *suite != now.suite || *nonce != now.nonce {
        lines.push(
            "the suite or the nonce changes, which no command of this program does".to_owned(),
        );
    }
    if lines.is_empty() {
        lines.push("nothing but its number, or the order of what it lists".to_owned());
    }
    lines
}

fn members_changes(now: &[Member], next: &[Member], lines: &mut Vec<String>) {
    for Member { id, key, address } in now {
        if next.iter().all(|member| member.id != *id) {
            lines.push(format!("member {id} at {address:?} is taken out (key {key})"));
        }
    }
    for Member { id, key, address } in next {
        match now.iter().find(|member| member.id == *id) {
            None => lines.push(format!("member {id} at {address:?} is taken in (key {key})")),
            Some(before) if before.address != *address => {
                lines.push(format!("member {id} is at {address:?} (now: {:?})", before.address));
            }
            Some(_) => {}
        }
    }
}

fn nodes_changes(now: &[StorageNode], next: &[StorageNode], lines: &mut Vec<String>) {
    let zone_text =
        |zone: &str| if zone.is_empty() { "none".to_owned() } else { format!("{zone:?}") };
    for StorageNode { id, key, zone, weight } in now {
        if next.iter().all(|node| node.id != *id) {
            let zone = zone_text(zone);
            lines.push(format!(
                "storage node {id} is taken out (zone {zone}, weight {weight}, key {key})"
            ));
        }
    }
    for StorageNode { id, key, zone, weight } in next {
        let Some(before) = now.iter().find(|node| node.id == *id) else {
            let zone = zone_text(zone);
            lines.push(format!(
                "storage node {id} is taken in (zone {zone}, weight {weight}, key {key})"
            ));
            continue;
        };
        if before.zone != *zone {
            let (zone, had) = (zone_text(zone), zone_text(&before.zone));
            lines.push(format!("storage node {id} is in zone {zone} (now: {had})"));
        }
        if before.weight != *weight {
            let had = before.weight;
            lines.push(format!("storage node {id} has weight {weight} (now: {had})"));
        }
    }
}

/// What is in the one list and not in the other.
fn gone<'a, T: PartialEq>(from: &'a [T], to: &'a [T]) -> impl Iterator<Item = &'a T> {
    from.iter().filter(|item| !to.contains(item))
}

fn policy_text(policy: &Option<ReplacementPolicy>) -> String {
    match policy {
        None => "never".to_owned(),
        Some(ReplacementPolicy { silent_ms_min, join_token }) => format!(
            "once it has been silent for {}, by who has the token with the hash {join_token}",
            time_text(*silent_ms_min)
        ),
    }
}

fn fingerprint(certificate: &[u8]) -> String {
    payload_hash(certificate).to_string()
}

fn quota_text(bytes: Option<u64>) -> String {
    bytes.map_or_else(|| "without a limit".to_owned(), bytes_text)
}

/// A time as the commands take it, in the largest unit that leaves nothing over.
pub(crate) fn time_text(ms: u64) -> String {
    let units = [(86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1000, "s")];
    let fits = units.into_iter().find(|(unit, _)| ms.is_multiple_of(*unit));
    match fits {
        Some((_, _)) if ms == 0 => "0 s".to_owned(),
        Some((unit, name)) => format!("{} {name}", ms / unit),
        None => format!("{ms} ms"),
    }
}

#[cfg(test)]
mod tests;
