//! `coffer node` and `coffer layout`: storage nodes come and go, and chunks move accordingly.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use clap::{Args, Subcommand};
use coffer_client::admin::Layouts;
use coffer_metadata_core::layout;
use coffer_model::descriptor::StorageNode;
use coffer_model::id::NodeId;
use coffer_model::layout::Layout;
use serde_json::json;

use crate::admin::{AdminArgs, KeyArgs, Operator, public_key_of, show};
use crate::args::Global;
use crate::commands::Console;
use crate::found::Role;

/// How long a new process may take until it reports.
const REPORT_WITHIN: Duration = Duration::from_secs(60);
/// Moving chunks may take long; with no progress for this long, something is in the way.
const STUCK_AFTER: Duration = Duration::from_secs(600);
/// How often progress is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(500);

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

/// `coffer layout`
#[derive(Debug, Subcommand)]
pub(crate) enum LayoutCommand {
    /// The layout in force, and which nodes have proven their share
    Show,
    /// What `apply` would change
    Plan {
        #[command(flatten)]
        admin: KeyArgs,
    },
    /// Give every storage node its share by the weights and zones of the descriptor
    ///
    /// A layout takes the signature of one administrator, whatever the quorum.
    Apply {
        #[command(flatten)]
        admin: KeyArgs,
        /// Also where nothing moves: the layout in force is then signed by this administrator, and who
        /// signed it before can be taken out
        #[arg(long)]
        anew: bool,
        #[command(flatten)]
        wait: WaitArgs,
    },
}

/// `coffer node`
pub(crate) async fn node(global: Global, command: NodeCommand) -> Result<()> {
    match command {
        NodeCommand::List => Console { global }.node_list().await,
        NodeCommand::Add { admin, id, public_key, zone, weight, no_layout, wait } => {
            let mut operator = Operator::new(&global, admin).await?;
            let (id, key) = match (id, public_key) {
                (Some(id), Some(key)) => (id, public_key_of(&key)?),
                _ => {
                    let made = operator.make(Role::Storage)?;
                    (made.process.id.parse()?, made.key)
                }
            };
            operator.change(|next| next.nodes.push(StorageNode { id, key, zone, weight })).await?;
            operator.told(&format!("storage node {id} belongs to the cluster"));
            if no_layout {
                return Ok(());
            }
            operator.wait_for_report(id).await?;
            operator.apply_layout(&wait, false).await
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
            operator.apply_layout(&wait, false).await
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
            operator.told(&format!("storage node {id} does not belong to the cluster any more"));
            Ok(())
        }
    }
}

/// `coffer layout`
pub(crate) async fn layout(global: Global, command: LayoutCommand) -> Result<()> {
    match command {
        LayoutCommand::Show => Console { global }.layout_show().await,
        LayoutCommand::Apply { admin, anew, wait } => {
            Operator::with_key(&global, admin).await?.apply_layout(&wait, anew).await
        }
        LayoutCommand::Plan { admin } => {
            let operator = Operator::with_key(&global, admin).await?;
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

impl Operator<'_> {
    async fn apply_layout(&self, wait: &WaitArgs, anew: bool) -> Result<()> {
        let layouts = self.cluster.layouts().await?;
        let next = layout::next(&layouts.current, &self.cluster.descriptor().nodes)?;
        let movement = layout::movement(&layouts.current, &next);
        if same_places(&layouts.current, &next) && !anew {
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
