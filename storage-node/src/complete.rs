//! The completing loop: what commits have named and this node should hold, it gets.
//!
//! The node reports where it is and learns log time, descriptors, layouts and its siblings. It follows
//! the feed of committed chunks from a durable cursor, notes what is not here, and fetches that from
//! siblings that hold it. A chunk that was just committed may still be on its way from a gateway, so a
//! missing one is left alone for a while. One that came counts as missing until it was read back from
//! the disk.
//!
//! [`plan`] decides what to ask whom, from values; the rest carries it out.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use coffer_model::chunk::SealedChunk;
use coffer_model::encoding::encode;
use coffer_model::id::{ChunkId, NodeId};
use coffer_model::layout::Layout;
use coffer_model::log::NodeReport;
use coffer_model::signing::{Domain, Signer};
use coffer_model::time::LogTime;
use coffer_proto::MESSAGE_BYTES_MAX;
use coffer_proto::internal as wire;
use coffer_proto::internal::sibling_service_client::SiblingServiceClient;
use coffer_service::call::contained;
use coffer_service::channel::{ChannelPool, host_of};
use coffer_service::health::Health;
use coffer_service::identity::ProcessIdentity;
use coffer_service::metrics::{IntCounter, IntGauge, Metrics, MetricsError};
use coffer_service::peer::PeerId;
use coffer_service::shutdown::Shutdown;
use coffer_service::status::reason_of;
use coffer_service::tls::LiveTls;
use tonic::Status;

use crate::clock::LogClock;
use crate::cluster::Cluster;
use crate::config::Config;
use crate::disk::Disk;
use crate::door::now_unix_ms;
use crate::index::QUARANTINED;
use crate::members::{Failure, Members, channels};
use crate::run::ROLE;
use crate::store::{Store, StoreError, off_the_async_threads};

/// While nobody has answered yet.
const FIRST_REPORT_EVERY: Duration = Duration::from_millis(200);
/// Rows asked for at a time.
const ROWS_PER_CALL: u32 = 4096;
/// Chunks asked of one sibling at a time; with 4 MiB an answer, mostly fewer come.
const PULLS_PER_CALL: usize = 64;
/// Missing chunks asked for in one round.
const ROUND_CHUNKS: usize = 512;
/// How many times so many of them are looked through in one round for those whose turn it is.
const ROUND_LOOKS: usize = 64;
/// More than this is reported as this.
const COUNTED_MAX: usize = 1_000_000;
/// Chunks of partitions with so many live holders or more are fetched last.
const HOLDERS_COUNTED_MAX: usize = 3;

/// A sibling as the members told of it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Sibling {
    address: String,
    reachable: bool,
}

/// What the loop works with.
pub(crate) struct Completer<D: Disk> {
    parts: Parts<D>,
    members: Members,
    channels: ChannelPool,
    siblings: BTreeMap<NodeId, Sibling>,
    turn: Turn,
    /// Chunks that came from siblings since the start.
    fetched: u64,
}

/// Where the next round of pulls begins.
#[derive(Clone, Copy, Debug, Default)]
struct Turn {
    /// How often all that is missing was gone through.
    pass: usize,
    /// Now it is the turn of chunks of partitions with so many live holders.
    holders: usize,
    from: Option<ChunkId>,
}

/// What the loop needs from its node.
pub(crate) struct Parts<D: Disk> {
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) node: NodeId,
    pub(crate) identity: Arc<ProcessIdentity>,
    pub(crate) store: Store<D>,
    pub(crate) clock: Arc<LogClock>,
    pub(crate) config: Config,
    pub(crate) gauges: Gauges,
}

/// What the node says of its store in its metrics, as of its last report.
pub(crate) struct Gauges {
    capacity_bytes: IntGauge,
    used_bytes: IntGauge,
    chunks: IntGauge,
    missing: IntGauge,
    quarantined: IntGauge,
    surplus: IntGauge,
    corrupt: IntCounter,
    fetched: IntCounter,
    poisoned: IntGauge,
}

impl Gauges {
    pub(crate) fn new(metrics: &Metrics) -> Result<Self, MetricsError> {
        let gauge = |name, help| metrics.gauge(name, help);
        Ok(Self {
            capacity_bytes: gauge("coffer_storage_capacity_bytes", "Bytes this node offers")?,
            used_bytes: gauge("coffer_storage_used_bytes", "Bytes of chunks that are kept")?,
            chunks: gauge("coffer_storage_chunks", "Chunks that are kept")?,
            missing: gauge(
                "coffer_storage_missing_chunks",
                "Chunks that belong here and are still to be fetched",
            )?,
            quarantined: gauge(
                "coffer_storage_quarantined_chunks",
                "Chunks that were found damaged and are still to be fetched again",
            )?,
            surplus: gauge(
                "coffer_storage_surplus_chunks",
                "Chunks that are kept and that nothing is known to need here",
            )?,
            fetched: metrics.counter(
                "coffer_storage_fetched_total",
                "Chunks that were fetched from other nodes since the start, and read back",
            )?,
            corrupt: metrics.counter(
                "coffer_storage_corrupt_total",
                "Chunks that were found damaged since the start",
            )?,
            poisoned: gauge("coffer_storage_poisoned", "1 if the store takes no writes any more")?,
        })
    }
}

impl<D: Disk> Completer<D> {
    pub(crate) fn new(parts: Parts<D>, tls: &Arc<LiveTls>) -> Self {
        Self {
            members: Members::new(Arc::clone(&parts.cluster), tls),
            parts,
            channels: channels(tls),
            siblings: BTreeMap::new(),
            turn: Turn::default(),
            fetched: 0,
        }
    }

    /// Runs until shutdown, or until the cluster has taken the node out: then it stops the node. The
    /// node is ready once a member has answered.
    pub(crate) async fn run(mut self, health: Health, node: Shutdown) {
        let (report_every, poll_every) =
            (self.parts.config.report_every, self.parts.config.poll_every);
        let mut next_report = Instant::now();
        loop {
            if Instant::now() >= next_report {
                let reported = self.report().await;
                if !self.parts.cluster.view().names(self.parts.node) {
                    tracing::error!(
                        node = %self.parts.node,
                        "the descriptor in force does not name this node any more; it stops"
                    );
                    health.set_not_serving().await;
                    return node.cancel();
                }
                self.disown(&reported);
                let pause = match reported {
                    Ok(()) => {
                        if self.parts.store.poison().is_none() {
                            health.set_serving().await;
                        } else {
                            health.set_not_serving().await;
                        }
                        report_every
                    }
                    Err(error) => {
                        tracing::debug!(error = error.message(), "no member took the report");
                        if self.parts.cluster.is_disowned() {
                            health.set_not_serving().await;
                        }
                        FIRST_REPORT_EVERY.max(report_every / 10)
                    }
                };
                next_report = Instant::now() + pause;
            }
            let pause = match self.round().await {
                Ok(true) => Duration::ZERO,
                Ok(false) => poll_every,
                Err(Failure::Call(error)) => {
                    tracing::debug!(error = error.message(), "cannot follow the feed for now");
                    poll_every
                }
                Err(Failure::Store(error)) => {
                    tracing::warn!(%error, "the store cannot be completed");
                    // A full disk, or one that keeps something else, stays so for a while; siblings are not to send in vain.
                    poll_every.max(report_every)
                }
            };
            let pause = pause.min(next_report.saturating_duration_since(Instant::now()));
            tokio::select! {
                () = node.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// A member's bare word takes no node out, but while no other member says otherwise, nobody is
    /// served: a node that was away learns in no other way that its place was given to another.
    fn disown(&self, reported: &Result<(), Status>) {
        let is_disowned = match reported {
            Ok(()) => false,
            Err(error) => {
                let reason = reason_of(error);
                if reason.is_none_or(|reason| reason.code != "NOT_IN_DESCRIPTOR") {
                    return;
                }
                true
            }
        };
        if self.parts.cluster.disown(is_disowned) && is_disowned {
            tracing::error!(
                node = %self.parts.node,
                "the members say that this node is not in the descriptor; it serves nobody"
            );
        }
    }

    /// One step: follow the feed, then fetch some of what is missing, also where no member answers.
    /// Says whether there is more to do at once.
    async fn round(&mut self) -> Result<bool, Failure> {
        if self.parts.cluster.view().layout().is_none() {
            return Ok(false);
        }
        let followed = match self.follow().await {
            Err(Failure::Store(error)) => return Err(error.into()),
            followed => followed,
        };
        if self.parts.store.poison().is_some() {
            // It could not be kept.
            return followed;
        }
        let pulled = self.pull().await?;
        Ok(followed? || pulled)
    }

    async fn report(&mut self) -> Result<(), Status> {
        let Parts { store, gauges, config, cluster, .. } = &self.parts;
        let totals = store.totals();
        let missing = store.index().count_missing(COUNTED_MAX);
        let surplus = store.index().count_surplus(COUNTED_MAX);
        let number = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        gauges.capacity_bytes.set(number(config.capacity_bytes));
        gauges.used_bytes.set(number(totals.bytes));
        gauges.chunks.set(number(totals.shards));
        gauges.missing.set(number(missing.chunks));
        gauges.quarantined.set(number(missing.quarantined));
        gauges.surplus.set(number(surplus));
        gauges.corrupt.inc_by(store.corrupt().saturating_sub(gauges.corrupt.get()));
        gauges.fetched.inc_by(self.fetched.saturating_sub(gauges.fetched.get()));
        gauges.poisoned.set(i64::from(store.poison().is_some()));
        let report = NodeReport {
            node: self.parts.node,
            // Wall time: it rises over restarts; a clock that went back only delays a new address.
            number: now_unix_ms(),
            address: config.advertise.clone(),
            capacity_bytes: config.capacity_bytes,
        };
        let report = encode(&report);
        let signature = self.parts.identity.sign(Domain::NodeReport, cluster.id(), &report);
        let request = wire::ReportNodeRequest {
            report: report.into(),
            signature: Bytes::copy_from_slice(signature.as_bytes()),
            used_bytes: totals.bytes,
            chunks: totals.shards,
            missing_chunks: missing.chunks,
            fault: store.fault().unwrap_or_default(),
            quarantined_chunks: missing.quarantined,
            surplus_chunks: surplus,
            fetched_chunks: self.fetched,
            descriptor_number: cluster.view().descriptor.number,
        };
        let answer = self
            .members
            .ask(|mut member| {
                let request = request.clone();
                async move { Ok(member.report_node(request).await?.into_inner()) }
            })
            .await?;
        self.parts.clock.learn(LogTime::from_unix_ms(answer.log_time_ms));
        // Descriptors first: layouts are checked by the administrators of the one in force.
        for learnt in [
            cluster.learn_descriptors(&answer.descriptors),
            cluster.learn_layouts(&answer.layout, &answer.former_layouts),
        ] {
            if let Err(error) = learnt {
                tracing::warn!(error = &error as &dyn std::error::Error, "an answer is left out");
            }
        }
        let view = cluster.view();
        self.siblings = answer
            .nodes
            .into_iter()
            .filter_map(|node| {
                let id = NodeId::try_from(node.node_id.as_ref()).ok()?;
                Some((id, Sibling { address: node.address, reachable: node.reachable }))
            })
            .filter(|(id, _)| view.names(*id))
            .collect();
        Ok(())
    }

    /// Takes up new rows of the feed and notes what is not here.
    async fn follow(&mut self) -> Result<bool, Failure> {
        let cursor = self.parts.store.index().cursor().map_err(StoreError::from)?;
        let request = wire::ReadFeedRequest {
            node_id: Bytes::copy_from_slice(self.parts.node.as_bytes()),
            after: cursor,
            limit: ROWS_PER_CALL,
        };
        let answer = self
            .members
            .ask(|mut member| {
                let request = request.clone();
                async move { Ok(member.read_feed(request).await?.into_inner()) }
            })
            .await?;
        self.parts.clock.learn(LogTime::from_unix_ms(answer.log_time_ms));
        if answer.next <= cursor {
            return Ok(false);
        }
        let rows: Vec<ChunkId> = answer
            .rows
            .iter()
            .filter_map(|row| ChunkId::try_from(row.chunk_id.as_ref()).ok())
            .collect();
        self.parts.store.take_up(&rows, &[], now_unix_ms(), Some(answer.next))?;
        Ok(answer.more)
    }

    /// Fetches some of what is missing. Says whether anything came.
    async fn pull(&mut self) -> Result<bool, Failure> {
        let Wanted { here, wanted, next } = self.list_wanted()?;
        if !here.is_empty() {
            let store = self.parts.store.clone();
            off_the_async_threads(move || store.verify_missing(&here)).await??;
        }
        let view = self.parts.cluster.view();
        let Plan { asked, rest } =
            plan(view.layouts(), self.parts.node, &self.siblings, &wanted, self.turn.pass);
        // The next round goes on where this one ends.
        self.turn = rest.map_or(next, |rest| Turn { from: Some(rest), ..self.turn });
        let mut came = false;
        for (sibling, chunks) in asked {
            match self.pull_from(sibling, &chunks).await {
                Ok(some) => came |= some,
                Err(Failure::Call(error)) => {
                    tracing::debug!(%sibling, error = error.message(), "a sibling gave no copies");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(came)
    }

    /// Missing chunks that are to be asked for now, of those whose turn it is. Where there are none,
    /// it is the turn of those with more live holders.
    fn list_wanted(&mut self) -> Result<Wanted, StoreError> {
        let Parts { store, config, cluster, node, .. } = &self.parts;
        let view = cluster.view();
        // Room for what is quarantined has been counted before; that is fetched all the same.
        let is_at_capacity = store.is_at_capacity();
        let settled = now_unix_ms().saturating_sub(as_ms(config.settle));
        let (mut here, mut wanted) = (Vec::new(), Vec::new());
        let mut next = self.turn;
        for _ in 0..ROUND_LOOKS {
            self.turn = next;
            let listed = store.index().missing(self.turn.from.as_ref(), ROUND_CHUNKS)?;
            next = self.turn.after(listed.get(ROUND_CHUNKS - 1).map(|(chunk, _)| *chunk));
            for (chunk, noticed) in listed {
                if live_holders(view.layouts(), *node, &self.siblings, &chunk) != self.turn.holders
                {
                    continue;
                }
                if store.has(&chunk)? {
                    here.push(chunk);
                } else if noticed <= settled && (noticed == QUARANTINED || !is_at_capacity) {
                    wanted.push(chunk);
                }
            }
            if !wanted.is_empty() || !here.is_empty() || next.pass != self.turn.pass {
                break;
            }
        }
        Ok(Wanted { here, wanted, next })
    }

    async fn pull_from(&mut self, sibling: NodeId, chunks: &[ChunkId]) -> Result<bool, Failure> {
        let Some(Sibling { address, .. }) = self.siblings.get(&sibling) else { return Ok(false) };
        let peer = PeerId::new(ROLE, *sibling.as_bytes()).map_err(unusable)?;
        let channel =
            self.channels.channel_to(address, host_of(address), &peer).map_err(unusable)?;
        let mut client =
            SiblingServiceClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let chunk_ids = chunks.iter().map(|id| Bytes::copy_from_slice(id.as_bytes())).collect();
        let request = wire::PullChunksRequest { chunk_ids };
        let answer = contained(client.pull_chunks(request)).await?.into_inner();
        let mut good = Vec::new();
        for (id, bytes) in chunks.iter().zip(answer.chunks) {
            if bytes.is_empty() {
                continue;
            }
            match SealedChunk::check(*id, bytes) {
                Ok(chunk) => good.push(chunk),
                Err(error) => tracing::warn!(%sibling, %error, "a sibling sent something else"),
            }
        }
        if good.is_empty() {
            return Ok(false);
        }
        let ids: Vec<ChunkId> = good.iter().map(SealedChunk::id).collect();
        let clock = &self.parts.clock;
        let keep_until = clock.now().unwrap_or(LogTime::ZERO).plus_ms(clock.hold_ms());
        self.parts.store.put(good, keep_until).await?;
        let store = self.parts.store.clone();
        let verified = off_the_async_threads(move || store.verify_missing(&ids)).await??;
        self.fetched += verified;
        tracing::debug!(%sibling, chunks = verified, "copies fetched");
        Ok(verified > 0)
    }
}

/// What one round found.
struct Wanted {
    /// They came, and are to be read back.
    here: Vec<ChunkId>,
    wanted: Vec<ChunkId>,
    /// Where the round after it begins.
    next: Turn,
}

impl Turn {
    /// The turn after this one, which ended with `end`; with none, all that is missing was looked
    /// through for it.
    fn after(self, end: Option<ChunkId>) -> Self {
        match end {
            Some(_) => Self { from: end, ..self },
            None if self.holders < HOLDERS_COUNTED_MAX => {
                Self { holders: self.holders + 1, from: None, ..self }
            }
            None => Self { pass: self.pass.wrapping_add(1), holders: 0, from: None },
        }
    }
}

/// What one round asks for.
#[derive(Debug, PartialEq, Eq)]
struct Plan {
    asked: BTreeMap<NodeId, Vec<ChunkId>>,
    /// The first chunk whose sibling is asked for enough already: the next round begins with it.
    rest: Option<ChunkId>,
}

/// Whom to ask for which missing chunks: each chunk of one node that is there, and no more of one
/// sibling than it can answer at once.
fn plan(
    layouts: &[Layout],
    node: NodeId,
    siblings: &BTreeMap<NodeId, Sibling>,
    missing: &[ChunkId],
    pass: usize,
) -> Plan {
    let mut asked: BTreeMap<NodeId, Vec<ChunkId>> = BTreeMap::new();
    for chunk in missing {
        let Some(holder) = whom_to_ask(layouts, node, siblings, chunk, pass) else { continue };
        let chunks = asked.entry(holder).or_default();
        if chunks.len() == PULLS_PER_CALL {
            return Plan { asked, rest: Some(*chunk) };
        }
        chunks.push(*chunk);
    }
    Plan { asked, rest: None }
}

/// Whom to ask for a chunk in a pass: each pass asks the next one, for the one asked before may lack
/// it as well. First come those to whom the layout in force gives it, then those of the former ones,
/// and then one of all others, in turns. Chunks spread over the holders by their ids, which are hashes.
fn whom_to_ask(
    layouts: &[Layout],
    node: NodeId,
    siblings: &BTreeMap<NodeId, Sibling>,
    chunk: &ChunkId,
    pass: usize,
) -> Option<NodeId> {
    let [.., spread] = *chunk.as_bytes();
    let spread = usize::from(spread);
    let mut holders: Vec<NodeId> = Vec::new();
    for layout in layouts {
        let begin = holders.len();
        for holder in layout.nodes_of(chunk) {
            if is_there(node, siblings, &holder) && !holders.contains(&holder) {
                holders.push(holder);
            }
        }
        let own = &mut holders[begin..];
        own.rotate_left(spread.checked_rem(own.len()).unwrap_or(0));
    }
    let mut others = siblings.keys().copied().collect::<Vec<NodeId>>();
    others.retain(|other| is_there(node, siblings, other) && !holders.contains(other));
    let turns = holders.len() + usize::from(!others.is_empty());
    let turn = pass.checked_rem(turns)?;
    let other = || others[(pass / turns).wrapping_add(spread) % others.len()];
    Some(holders.get(turn).copied().unwrap_or_else(other))
}

/// How many other nodes that hold the chunk by any layout are there; more than is counted is as good.
fn live_holders(
    layouts: &[Layout],
    node: NodeId,
    siblings: &BTreeMap<NodeId, Sibling>,
    chunk: &ChunkId,
) -> usize {
    let mut holders: Vec<NodeId> = Vec::new();
    for holder in layouts.iter().flat_map(|layout| layout.nodes_of(chunk)) {
        if is_there(node, siblings, &holder) && !holders.contains(&holder) {
            holders.push(holder);
        }
    }
    holders.len().min(HOLDERS_COUNTED_MAX)
}

fn is_there(node: NodeId, siblings: &BTreeMap<NodeId, Sibling>, other: &NodeId) -> bool {
    *other != node && siblings.get(other).is_some_and(|it| it.reachable)
}

fn unusable(error: impl std::fmt::Display) -> Failure {
    Failure::Call(Status::unavailable(error.to_string()))
}

pub(crate) fn as_ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
