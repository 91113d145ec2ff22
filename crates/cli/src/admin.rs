//! What operators change: storage nodes, members, the layout, retention, quotas and invites. Each is a
//! record that the administrator's key signs on this machine.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use coffer_client::admin::Layouts;
use coffer_client::contact::StateDir;
use coffer_client::{Administration, Authority, Endpoint};
use coffer_metadata_core::layout;
use coffer_model::descriptor::{Descriptor, Member, StorageNode};
use coffer_model::encoding::encode;
use coffer_model::hash::{Hash, payload_hash};
use coffer_model::id::{MemberId, NodeId};
use coffer_model::layout::Layout;
use coffer_model::name::UserName;
use coffer_model::order::Decision;
use coffer_model::signing::PublicKey;
use coffer_model::time::LogTime;
use coffer_service::files::{PRIVATE_FILE, write_atomically};
use coffer_service::identity::ProcessIdentity;
use serde_json::json;

use crate::args::Global;
use crate::commands::Console;
use crate::found::{self, Founded, Role};
use crate::output;

/// How long a new process may take until it reports.
const REPORT_WITHIN: Duration = Duration::from_secs(60);
/// Moving chunks may take long; with no progress for this long, something is in the way.
const STUCK_AFTER: Duration = Duration::from_secs(600);
/// How often progress is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Who signs, and for which cluster.
#[derive(Debug, Args)]
pub(crate) struct AdminArgs {
    /// The folder of a `coffer dev` cluster: it says where the cluster is and has the administrator's key
    #[arg(long, value_name = "DIR", env = "COFFER_DEV_DIR")]
    pub(crate) dir: Option<PathBuf>,
    /// The folder with the administrator's key
    #[arg(long, value_name = "DIR", env = "COFFER_ADMIN")]
    admin: Option<PathBuf>,
}

/// How long a command stays.
#[derive(Debug, Args)]
pub(crate) struct WaitArgs {
    /// Wait until every chunk is where it belongs, and show how far that is
    #[arg(long)]
    wait: bool,
}

/// `coffer node`
#[derive(Debug, Subcommand)]
pub(crate) enum NodeCommand {
    /// All storage nodes and how they are
    List,
    /// Take a storage node into the cluster and give it its share
    ///
    /// In a `coffer dev` cluster the node is made and started as well. Elsewhere prepare its volume with
    /// `coffer volume`, name its id and key here, and start it with the descriptors this prints.
    Add {
        #[command(flatten)]
        admin: AdminArgs,
        /// Id of a node whose volume is prepared, 32 hexadecimal digits
        #[arg(long, value_name = "ID", requires = "public_key")]
        id: Option<NodeId>,
        /// Its public key, 64 hexadecimal digits
        #[arg(long, value_name = "KEY", requires = "id")]
        public_key: Option<String>,
        /// The failure domain it is in
        #[arg(long, default_value = "")]
        zone: String,
        /// Its share of data, relative to the others
        #[arg(long, default_value_t = 1)]
        weight: u32,
        /// Change nothing in the layout yet
        #[arg(long)]
        no_layout: bool,
        #[command(flatten)]
        wait: WaitArgs,
    },
    /// Change the zone or the weight of a storage node; `coffer layout apply` then moves chunks
    Set {
        /// Its id or the beginning of it, or its name in a `coffer dev` cluster
        node: String,
        #[command(flatten)]
        admin: AdminArgs,
        /// The failure domain it is in
        #[arg(long)]
        zone: Option<String>,
        /// Its share of data, relative to the others; 0: none
        #[arg(long)]
        weight: Option<u32>,
    },
    /// Move everything off a storage node; it goes on serving until the copies elsewhere are proven
    Drain {
        /// Its id or the beginning of it, or its name in a `coffer dev` cluster
        node: String,
        #[command(flatten)]
        admin: AdminArgs,
        #[command(flatten)]
        wait: WaitArgs,
    },
    /// Take a storage node that has been drained, or that is lost, out of the cluster
    Remove {
        /// Its id or the beginning of it, or its name in a `coffer dev` cluster
        node: String,
        #[command(flatten)]
        admin: AdminArgs,
    },
}

/// `coffer member`
#[derive(Debug, Subcommand)]
pub(crate) enum MemberCommand {
    /// All metadata members and how they are
    List,
    /// Take a metadata member into the cluster
    Add {
        #[command(flatten)]
        admin: AdminArgs,
        #[command(flatten)]
        new: NewMember,
    },
    /// Put a new member in the place of one whose volume is lost
    Replace {
        /// The id of the lost one or the beginning of it, or its name in a `coffer dev` cluster
        member: String,
        #[command(flatten)]
        admin: AdminArgs,
        #[command(flatten)]
        new: NewMember,
    },
    /// Take a metadata member out of the cluster
    Remove {
        /// Its id or the beginning of it, or its name in a `coffer dev` cluster
        member: String,
        #[command(flatten)]
        admin: AdminArgs,
    },
}

/// A member whose volume is prepared; in a `coffer dev` cluster it is made.
#[derive(Debug, Args)]
pub(crate) struct NewMember {
    /// Its id, 16 hexadecimal digits
    #[arg(long, value_name = "ID", requires_all = ["public_key", "address"])]
    id: Option<MemberId>,
    /// Its public key, 64 hexadecimal digits
    #[arg(long, value_name = "KEY", requires = "id")]
    public_key: Option<String>,
    /// Where the others reach it, host:port
    #[arg(long, value_name = "HOST:PORT", requires = "id")]
    address: Option<String>,
}

/// `coffer layout`
#[derive(Debug, Subcommand)]
pub(crate) enum LayoutCommand {
    /// The layout in force, and which nodes have proven their share
    Show,
    /// What `apply` would change
    Plan {
        #[command(flatten)]
        admin: AdminArgs,
    },
    /// Give every storage node its share by the weights and zones of the descriptor
    Apply {
        #[command(flatten)]
        admin: AdminArgs,
        #[command(flatten)]
        wait: WaitArgs,
    },
}

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

/// What a prepared volume is for.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(crate) enum VolumeRole {
    /// A storage node
    Storage,
    /// A metadata member
    Metadata,
}

/// Prepares a volume and says who it is.
pub(crate) fn volume(global: &Global, role: VolumeRole, dir: &Path) -> Result<()> {
    let (id, key) = match role {
        VolumeRole::Storage => {
            let (id, key) = coffer_storage_node::init(dir)?;
            (id.to_string(), key)
        }
        VolumeRole::Metadata => {
            let (id, key) = coffer_metadata_raft::init(dir)?;
            (id.to_string(), key)
        }
    };
    let key = hex::encode(key.as_bytes());
    let text = format!("id          {id}\npublic key  {key}");
    show(global, &json!({ "id": id, "public_key": key }), &text);
    Ok(())
}

/// An operator with a key.
pub(crate) struct Operator<'a> {
    global: &'a Global,
    /// The folder of a `coffer dev` cluster.
    pub(crate) dir: Option<PathBuf>,
    key: ProcessIdentity,
    pub(crate) cluster: Administration,
}

impl<'a> Operator<'a> {
    pub(crate) async fn new(global: &'a Global, args: AdminArgs) -> Result<Self> {
        let dir = args.dir.map(|dir| dir.canonicalize().with_context(|| dir.display().to_string()));
        let dir = dir.transpose()?;
        let Some(secret) = args.admin.or_else(|| dir.as_ref().map(|dir| dir.join("secret"))) else {
            bail!(
                "this needs the administrator's key: --dir with the folder of a `coffer dev` cluster, or \
                 --admin with the key's folder"
            );
        };
        if !secret.join("identity").exists() {
            bail!("{} has no administrator's key", secret.display());
        }
        let key = ProcessIdentity::load_or_create(&secret, "administrator", None)?;
        let endpoint = endpoint(global, dir.as_deref())?;
        let cluster = Administration::connect(&endpoint, &StateDir::standard()?).await?;
        if !cluster.descriptor().administrators.contains(&key_of(&key)) {
            bail!("{} has a key that is no administrator's of this cluster", secret.display());
        }
        if cluster.descriptor().quorum > 1 {
            bail!(
                "this cluster needs {} administrators for a change; signing together is not there yet",
                cluster.descriptor().quorum
            );
        }
        Ok(Self { global, dir, key, cluster })
    }

    fn founded(&self) -> Result<Option<(PathBuf, Founded)>> {
        let Some(dir) = &self.dir else { return Ok(None) };
        Ok(Some((dir.clone(), found::load(dir)?)))
    }

    /// The id that `text` means: the beginning of one, or a process's name.
    fn resolve<'i>(&self, text: &str, ids: impl Iterator<Item = String> + 'i) -> Result<String> {
        let named = self.founded()?.and_then(|(_, founded)| {
            founded.processes.into_iter().find(|process| process.name == text)
        });
        let wanted = named.map_or_else(|| text.to_owned(), |process| process.id);
        let mut found: Vec<String> = ids.filter(|id| id.starts_with(&wanted)).collect();
        match (found.pop(), found.len()) {
            (Some(id), 0) => Ok(id),
            (Some(_), _) => bail!("{text} is the beginning of several ids; give more of it"),
            (None, _) => bail!("the descriptor names nothing that begins with {text}"),
        }
    }

    fn node(&self, text: &str) -> Result<NodeId> {
        let nodes = self.cluster.descriptor().nodes.iter().map(|node| node.id.to_string());
        Ok(self.resolve(text, nodes)?.parse()?)
    }

    fn member(&self, text: &str) -> Result<MemberId> {
        let members = self.cluster.descriptor().members.iter();
        Ok(self.resolve(text, members.map(|member| member.id.to_string()))?.parse()?)
    }

    pub(crate) async fn change(&mut self, change: impl FnOnce(&mut Descriptor)) -> Result<()> {
        self.cluster.change_descriptor(&self.key, change).await?;
        // New processes of this folder are given the descriptors along with the first one.
        if let Some(dir) = &self.dir {
            let successors = encode(&self.cluster.successors().to_vec());
            write_atomically(&found::successors_file(dir), &successors, PRIVATE_FILE)?;
        }
        Ok(())
    }

    /// A process for the cluster's folder: made, and started by `coffer dev` once it is listed.
    fn make(&self, role: Role) -> Result<(PathBuf, found::Made)> {
        let Some(dir) = &self.dir else {
            bail!("say which one: --id and --public-key, as `coffer volume` prints them");
        };
        Ok((dir.clone(), found::make(dir, role)?))
    }

    async fn apply_layout(&self, wait: &WaitArgs) -> Result<()> {
        let layouts = self.cluster.layouts().await?;
        let next = layout::next(&layouts.current, &self.cluster.descriptor().nodes)?;
        let movement = layout::movement(&layouts.current, &next);
        if same_places(&layouts.current, &next) {
            self.told("the layout is what it should be");
        } else {
            self.cluster.change_layout(&self.key, &next).await?;
            self.told(&format!(
                "layout {} is in force: {} of {} partitions get a copy elsewhere",
                next.version(),
                movement.partitions,
                next.partitions().count()
            ));
        }
        if wait.wait { self.wait_for_copies().await } else { Ok(()) }
    }

    /// Waits until every node has proven its share, which is when no former layout is left.
    async fn wait_for_copies(&self) -> Result<()> {
        let (mut said, mut moved) = (String::new(), Instant::now());
        loop {
            let status = self.cluster.status().await?;
            let in_layout = || status.nodes.iter().filter(|node| node.in_layout);
            let missing: u64 = in_layout().map(|node| node.missing_chunks).sum();
            let proven = in_layout().filter(|node| node.proven_layout == status.layout_version);
            let (proven, all) = (proven.count(), in_layout().count());
            let now = format!(
                "{missing} chunks to fetch, {proven} of {all} nodes have proven their share"
            );
            // Each proof says that nothing was missing up to a position. What is being written meanwhile is
            // always on its way to some node.
            if status.former_layouts == 0 {
                self.told("every chunk is where it belongs");
                return Ok(());
            }
            if now != said {
                self.told(&now);
                (said, moved) = (now, Instant::now());
            }
            if moved.elapsed() > STUCK_AFTER {
                bail!(
                    "nothing has moved for {} minutes: {said}; `coffer doctor` says what is in the way",
                    STUCK_AFTER.as_secs() / 60
                );
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    async fn wait_for_report(&self, node: NodeId) -> Result<()> {
        let (id, began) = (node.to_string(), Instant::now());
        loop {
            let status = self.cluster.status().await?;
            if status.nodes.iter().any(|node| node.id == id && node.reachable) {
                return Ok(());
            }
            if began.elapsed() > REPORT_WITHIN {
                bail!(
                    "storage node {id} is in the descriptor and has not reported for {} s: see that it \
                     runs, then `coffer layout apply`",
                    REPORT_WITHIN.as_secs()
                );
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    pub(crate) fn told(&self, text: &str) {
        if !self.global.json {
            output::remark(text);
        }
    }

    fn unlist(&self, id: &str) -> Result<()> {
        match &self.dir {
            Some(dir) => found::unlist(dir, id),
            None => Ok(()),
        }
    }
}

/// `coffer node`
pub(crate) async fn node(global: Global, command: NodeCommand) -> Result<()> {
    match command {
        NodeCommand::List => Console { global }.node_list().await,
        NodeCommand::Add { admin, id, public_key, zone, weight, no_layout, wait } => {
            let mut operator = Operator::new(&global, admin).await?;
            let (id, key, made) = match (id, public_key) {
                (Some(id), Some(key)) => (id, public_key_of(&key)?, None),
                _ => {
                    let (dir, made) = operator.make(Role::Storage)?;
                    (made.process.id.parse()?, made.key, Some((dir, made.process)))
                }
            };
            operator.change(|next| next.nodes.push(StorageNode { id, key, zone, weight })).await?;
            if let Some((dir, process)) = &made {
                found::install_descriptors(dir, process, operator.cluster.successors())?;
                found::list(dir, process.clone())?;
            }
            operator.told(&format!("storage node {id} belongs to the cluster"));
            if no_layout {
                return Ok(());
            }
            operator.wait_for_report(id).await?;
            operator.apply_layout(&wait).await
        }
        NodeCommand::Set { node, admin, zone, weight } => {
            let mut operator = Operator::new(&global, admin).await?;
            let id = operator.node(&node)?;
            operator
                .change(|next| {
                    if let Some(node) = next.nodes.iter_mut().find(|node| node.id == id) {
                        node.zone = zone.unwrap_or_else(|| node.zone.clone());
                        node.weight = weight.unwrap_or(node.weight);
                    }
                })
                .await?;
            operator.told("set; `coffer layout apply` moves chunks accordingly");
            Ok(())
        }
        NodeCommand::Drain { node, admin, wait } => {
            let mut operator = Operator::new(&global, admin).await?;
            let id = operator.node(&node)?;
            let is_drained = |node: &StorageNode| node.id == id && node.weight == 0;
            if !operator.cluster.descriptor().nodes.iter().any(is_drained) {
                operator
                    .change(|next| {
                        next.nodes
                            .iter_mut()
                            .filter(|node| node.id == id)
                            .for_each(|node| node.weight = 0);
                    })
                    .await?;
            }
            operator.apply_layout(&wait).await
        }
        NodeCommand::Remove { node, admin } => {
            let mut operator = Operator::new(&global, admin).await?;
            let id = operator.node(&node)?;
            let Layouts { current, former } = operator.cluster.layouts().await?;
            if current.holders_all().contains(&id) {
                bail!("storage node {id} still has its share: `coffer node drain {node}` first");
            }
            if former.iter().any(|layout| layout.holders_all().contains(&id)) {
                bail!(
                    "not all copies of what storage node {id} had are proven elsewhere yet: see `coffer \
                     status`, and try again"
                );
            }
            operator.change(|next| next.nodes.retain(|node| node.id != id)).await?;
            operator.unlist(&id.to_string())?;
            operator.told(&format!("storage node {id} does not belong to the cluster any more"));
            Ok(())
        }
    }
}

/// `coffer member`
pub(crate) async fn member(global: Global, command: MemberCommand) -> Result<()> {
    let (admin, lost, new) = match command {
        MemberCommand::List => return Console { global }.member_list().await,
        MemberCommand::Add { admin, new } => (admin, None, Some(new)),
        MemberCommand::Replace { member, admin, new } => (admin, Some(member), Some(new)),
        MemberCommand::Remove { member, admin } => (admin, Some(member), None),
    };
    let mut operator = Operator::new(&global, admin).await?;
    let lost = lost.map(|member| operator.member(&member)).transpose()?;
    let (new, made) = match new {
        None => (None, None),
        Some(NewMember { id: Some(id), public_key: Some(key), address: Some(address) }) => {
            (Some(Member { id, key: public_key_of(&key)?, address }), None)
        }
        Some(_) => {
            let (dir, made) = operator.make(Role::Metadata)?;
            let address = made.process.address.to_string();
            let member = Member { id: made.process.id.parse()?, key: made.key, address };
            (Some(member), Some((dir, made.process)))
        }
    };
    let id = new.as_ref().map(|member| member.id);
    operator
        .change(|next| {
            next.members.retain(|member| Some(member.id) != lost);
            next.members.extend(new);
        })
        .await?;
    if let Some((dir, process)) = made {
        found::list(&dir, process)?;
    }
    if let Some(lost) = lost {
        operator.unlist(&lost.to_string())?;
        operator.told(&format!("member {lost} does not belong to the cluster any more"));
    }
    if let Some(id) = id {
        operator.told(&format!(
            "member {id} belongs to the cluster; it votes once it has caught up, see `coffer status`"
        ));
    }
    Ok(())
}

/// `coffer layout`
pub(crate) async fn layout(global: Global, command: LayoutCommand) -> Result<()> {
    match command {
        LayoutCommand::Show => Console { global }.layout_show().await,
        LayoutCommand::Apply { admin, wait } => {
            Operator::new(&global, admin).await?.apply_layout(&wait).await
        }
        LayoutCommand::Plan { admin } => {
            let operator = Operator::new(&global, admin).await?;
            let layouts = operator.cluster.layouts().await?;
            let nodes = &operator.cluster.descriptor().nodes;
            let next = layout::next(&layouts.current, nodes)?;
            let movement = layout::movement(&layouts.current, &next);
            let share = |layout: &Layout, node: NodeId| {
                layout.partitions().filter(|partition| layout.holds(node, *partition)).count()
            };
            let rows = nodes
                .iter()
                .map(|node| (node, share(&layouts.current, node.id), share(&next, node.id)));
            let mut text = format!(
                "layout {} to {}: {} copies of {} partitions go elsewhere\n",
                layouts.current.version(),
                next.version(),
                movement.copies,
                movement.partitions
            );
            let mut list = Vec::new();
            for (node, before, after) in rows {
                text += &format!("  {}  {before:>5} -> {after:>5} partitions", node.id);
                if !node.zone.is_empty() {
                    text += &format!("  zone {}", node.zone);
                }
                text += "\n";
                list.push(json!({
                    "id": node.id.to_string(), "zone": node.zone, "weight": node.weight,
                    "partitions_before": before, "partitions_after": after,
                }));
            }
            let value = json!({
                "version": layouts.current.version(), "next": next.version(),
                "copies": movement.copies, "partitions": movement.partitions, "nodes": list,
            });
            show(&global, &value, text.trim_end());
            Ok(())
        }
    }
}

/// `coffer order`
pub(crate) async fn order(global: Global, command: OrderCommand) -> Result<()> {
    match command {
        OrderCommand::Retention { time, admin } => {
            let ms = milliseconds(&time)?;
            let operator = Operator::new(&global, admin).await?;
            operator.cluster.order(&operator.key, Decision::Retention { ms }).await?;
            operator.told(&format!("what was deleted more than {time} ago is purged"));
            Ok(())
        }
        OrderCommand::Quota { user, bytes, admin } => {
            let limit = quota(&bytes)?;
            let operator = Operator::new(&global, admin).await?;
            let home = match &user {
                Some(user) => {
                    let name: UserName = user.parse()?;
                    Some(operator.cluster.home_of(&name).await?)
                }
                None => None,
            };
            let what = Decision::Quota { home, bytes: limit };
            operator.cluster.order(&operator.key, what).await?;
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
            let operator = Operator::new(&global, admin).await?;
            let mut secret = [0; 24];
            getrandom::fill(&mut secret).context("the system gives no randomness")?;
            let invite: Hash = payload_hash(&secret);
            let now = LogTime::from_unix_ms(operator.cluster.status().await?.log_time_ms);
            let what = Decision::Invite { invite, expires: now.plus_ms(ms) };
            operator.cluster.order(&operator.key, what).await?;
            let secret = hex::encode(secret);
            show(&global, &json!({ "invite": secret }), &secret);
            Ok(())
        }
    }
}

pub(crate) fn endpoint(global: &Global, dir: Option<&Path>) -> Result<Endpoint> {
    let (mut server, mut authority) = (global.server.clone(), global.ca.clone());
    if let Some(dir) = dir {
        server = found::load(dir)?.gateway().map(|gateway| gateway.to_string());
        authority = Some(found::authority_file(dir));
    }
    let Some(server) = server else {
        bail!("say where the cluster is: --server host:port, or $COFFER_SERVER");
    };
    let authority = authority.map_or(Authority::Pinned, Authority::PemFile);
    Ok(Endpoint { server, server_name: global.server_name.clone(), authority })
}

fn key_of(key: &ProcessIdentity) -> PublicKey {
    use coffer_model::signing::Signer as _;
    key.public_key()
}

fn public_key_of(text: &str) -> Result<PublicKey> {
    let bytes = hex::decode(text).ok().and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
    Ok(PublicKey::from_bytes(bytes.context("a public key has 64 hexadecimal digits")?))
}

/// Whether two layouts give the same nodes the same partitions, in whatever order.
fn same_places(left: &Layout, right: &Layout) -> bool {
    left.partitions().all(|partition| {
        let holders = |layout: &Layout| {
            let mut holders: Vec<NodeId> = layout.holders(partition).collect();
            holders.sort_unstable();
            holders
        };
        holders(left) == holders(right)
    })
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

pub(crate) fn show(global: &Global, value: &serde_json::Value, text: &str) {
    if global.json { output::json(value) } else { output::line(text) }
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
