//! The completing loop: what commits have named and this node should hold, it gets.
//!
//! The node reports where it is and learns log time, the layout and its siblings. It follows the feed
//! of committed chunks from a durable cursor, notes what is not here, and fetches that from siblings
//! that hold it. A chunk that was just committed may still be on its way from a gateway, so a missing
//! one is left alone for a while.
//!
//! [`plan`] decides what to ask whom, from values; the rest carries it out.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use coffer_model::chunk::SealedChunk;
use coffer_model::descriptor::Descriptor;
use coffer_model::encoding::encode;
use coffer_model::id::{ChunkId, ClusterId, NodeId};
use coffer_model::layout::Layout;
use coffer_model::log::NodeReport;
use coffer_model::signing::{Domain, Signer};
use coffer_model::time::LogTime;
use coffer_proto::MESSAGE_BYTES_MAX;
use coffer_proto::internal as wire;
use coffer_proto::internal::member_service_client::MemberServiceClient;
use coffer_proto::internal::sibling_service_client::SiblingServiceClient;
use coffer_service::call::contained;
use coffer_service::channel::{ChannelOptions, ChannelPool};
use coffer_service::health::Health;
use coffer_service::identity::ProcessIdentity;
use coffer_service::metrics::{IntCounter, IntGauge, Metrics, MetricsError};
use coffer_service::peer::PeerId;
use coffer_service::shutdown::Shutdown;
use coffer_service::tls::LiveTls;
use tonic::Status;
use tonic::transport::Channel;

use crate::clock::{HOLD_MS, LogClock};
use crate::disk::Disk;
use crate::door::now_unix_ms;
use crate::index::QUARANTINED;
use crate::run::ROLE;
use crate::store::{Store, StoreError};

/// How long a member or sibling may take to answer.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// While nobody has answered yet.
const FIRST_REPORT_EVERY: Duration = Duration::from_millis(200);
/// Rows asked for at a time.
const ROWS_PER_CALL: u32 = 4096;
/// Chunks asked of one sibling at a time; with 4 MiB an answer, mostly fewer come.
const PULLS_PER_CALL: usize = 64;
/// Missing chunks looked at in one round.
const ROUND_CHUNKS: usize = 512;
/// More than this is reported as this.
const COUNTED_MAX: usize = 1_000_000;

/// A sibling as the members told of it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Sibling {
    address: String,
    reachable: bool,
}

/// What the loop works with.
pub(crate) struct Completer<D: Disk> {
    pub(crate) cluster: ClusterId,
    pub(crate) node: NodeId,
    pub(crate) identity: Arc<ProcessIdentity>,
    pub(crate) descriptor: Arc<Descriptor>,
    pub(crate) store: Store<D>,
    pub(crate) clock: Arc<LogClock>,
    pub(crate) layout: Arc<RwLock<Option<Arc<Layout>>>>,
    pub(crate) advertise: String,
    pub(crate) capacity_bytes: u64,
    pub(crate) report_every: Duration,
    pub(crate) poll_every: Duration,
    pub(crate) settle: Duration,
    gauges: Gauges,
    channels: ChannelPool,
    siblings: BTreeMap<NodeId, Sibling>,
    /// Which member answered last.
    member: usize,
    /// Where the next round of pulls begins.
    round_from: Option<ChunkId>,
    /// How often all that is missing was gone through.
    pass: usize,
}

/// What the loop needs from its node.
pub(crate) struct Parts<D: Disk> {
    pub(crate) cluster: ClusterId,
    pub(crate) node: NodeId,
    pub(crate) identity: Arc<ProcessIdentity>,
    pub(crate) descriptor: Arc<Descriptor>,
    pub(crate) store: Store<D>,
    pub(crate) clock: Arc<LogClock>,
    pub(crate) layout: Arc<RwLock<Option<Arc<Layout>>>>,
    pub(crate) config: crate::config::Config,
    pub(crate) gauges: Gauges,
}

/// What the node says of its store in its metrics, as of its last report.
pub(crate) struct Gauges {
    capacity_bytes: IntGauge,
    used_bytes: IntGauge,
    chunks: IntGauge,
    missing: IntGauge,
    quarantined: IntGauge,
    corrupt: IntCounter,
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
        let options =
            ChannelOptions { request_timeout: Some(CALL_TIMEOUT), ..ChannelOptions::standard() };
        Self {
            cluster: parts.cluster,
            node: parts.node,
            identity: parts.identity,
            descriptor: parts.descriptor,
            store: parts.store,
            clock: parts.clock,
            layout: parts.layout,
            advertise: parts.config.advertise,
            capacity_bytes: parts.config.capacity_bytes,
            report_every: parts.config.report_every,
            poll_every: parts.config.poll_every,
            settle: parts.config.settle,
            gauges: parts.gauges,
            channels: ChannelPool::new(tls, options, 1024),
            siblings: BTreeMap::new(),
            member: 0,
            round_from: None,
            pass: 0,
        }
    }

    /// Runs until shutdown. The node is ready once a member has answered.
    pub(crate) async fn run(mut self, health: Health, shutdown: Shutdown) {
        let mut next_report = Instant::now();
        loop {
            if Instant::now() >= next_report {
                let pause = match self.report().await {
                    Ok(()) => {
                        if self.store.poison().is_none() {
                            health.set_serving().await;
                        } else {
                            health.set_not_serving().await;
                        }
                        self.report_every
                    }
                    Err(error) => {
                        tracing::debug!(error = error.message(), "no member took the report");
                        FIRST_REPORT_EVERY.max(self.report_every / 10)
                    }
                };
                next_report = Instant::now() + pause;
            }
            let pause = match self.round().await {
                Ok(true) => Duration::ZERO,
                Ok(false) => self.poll_every,
                Err(Failure::Call(error)) => {
                    tracing::debug!(error = error.message(), "cannot follow the feed for now");
                    self.poll_every
                }
                Err(Failure::Store(error)) => {
                    tracing::warn!(%error, "the store cannot be completed");
                    // A full disk, or one that keeps something else, stays so for a while; siblings are not to send in vain.
                    self.poll_every.max(self.report_every)
                }
            };
            let pause = pause.min(next_report.saturating_duration_since(Instant::now()));
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// One step: follow the feed, then fetch some of what is missing. Says whether there is more to
    /// do at once.
    async fn round(&mut self) -> Result<bool, Failure> {
        let layout = self.layout.read().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(layout) = layout else { return Ok(false) };
        let more = self.follow().await?;
        if self.store.poison().is_some() {
            // It could not be kept.
            return Ok(more);
        }
        let pulled = self.pull(&layout).await?;
        Ok(more || pulled)
    }

    async fn report(&mut self) -> Result<(), Status> {
        let totals = self.store.totals();
        let missing = self.store.index().count_missing(COUNTED_MAX);
        let number = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        self.gauges.capacity_bytes.set(number(self.capacity_bytes));
        self.gauges.used_bytes.set(number(totals.bytes));
        self.gauges.chunks.set(number(totals.shards));
        self.gauges.missing.set(number(missing.chunks));
        self.gauges.quarantined.set(number(missing.quarantined));
        self.gauges.corrupt.inc_by(self.store.corrupt().saturating_sub(self.gauges.corrupt.get()));
        self.gauges.poisoned.set(i64::from(self.store.poison().is_some()));
        let report = NodeReport {
            node: self.node,
            // Wall time: it rises over restarts; a clock that went back only delays a new address.
            number: now_unix_ms(),
            address: self.advertise.clone(),
            capacity_bytes: self.capacity_bytes,
        };
        let report = encode(&report);
        let signature = self.identity.sign(Domain::NodeReport, &self.cluster, &report);
        let request = wire::ReportNodeRequest {
            report: report.into(),
            signature: Bytes::copy_from_slice(signature.as_bytes()),
            used_bytes: totals.bytes,
            chunks: totals.shards,
            missing_chunks: missing.chunks,
            fault: self.store.fault().unwrap_or_default(),
            ..wire::ReportNodeRequest::default()
        };
        let answer = self
            .ask_member(|mut member| {
                let request = request.clone();
                async move { Ok(member.report_node(request).await?.into_inner()) }
            })
            .await?;
        self.clock.learn(LogTime::from_unix_ms(answer.log_time_ms));
        let administrators = &self.descriptor.administrators;
        match Layout::verify(&answer.layout, &self.cluster, administrators) {
            Ok(layout) => {
                let mut current = self.layout.write().unwrap_or_else(PoisonError::into_inner);
                if current.as_ref().is_none_or(|it| it.version() < layout.version()) {
                    *current = Some(Arc::new(layout));
                }
            }
            Err(error) => tracing::warn!(%error, "a member sent a layout that does not verify"),
        }
        self.siblings = answer
            .nodes
            .into_iter()
            .filter_map(|node| {
                let id = NodeId::try_from(node.node_id.as_ref()).ok()?;
                Some((id, Sibling { address: node.address, reachable: node.reachable }))
            })
            .collect();
        Ok(())
    }

    /// Asks members one after the other, beginning with the one that answered last.
    async fn ask_member<T, F>(
        &mut self,
        call: impl Fn(MemberServiceClient<Channel>) -> F,
    ) -> Result<T, Status>
    where
        F: Future<Output = Result<T, Status>>,
    {
        let members = &self.descriptor.members;
        let mut last = Status::unavailable("the cluster has no members");
        for turn in 0..members.len() {
            let at = (self.member + turn) % members.len();
            let address = &members[at].address;
            let channel = match self.channels.channel(address, host_of(address)) {
                Ok(channel) => channel,
                Err(error) => {
                    last = Status::unavailable(error.to_string());
                    continue;
                }
            };
            match contained(call(MemberServiceClient::new(channel))).await {
                Ok(answer) => {
                    self.member = at;
                    return Ok(answer);
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// Takes up new rows of the feed and notes what is not here.
    async fn follow(&mut self) -> Result<bool, Failure> {
        let cursor = self.store.index().cursor().map_err(StoreError::from)?;
        let request = wire::ReadFeedRequest {
            node_id: Bytes::copy_from_slice(self.node.as_bytes()),
            after: cursor,
            limit: ROWS_PER_CALL,
        };
        let answer = self
            .ask_member(|member| {
                let request = request.clone();
                let mut member = member.max_decoding_message_size(MESSAGE_BYTES_MAX);
                async move { Ok(member.read_feed(request).await?.into_inner()) }
            })
            .await?;
        self.clock.learn(LogTime::from_unix_ms(answer.log_time_ms));
        if answer.next <= cursor {
            return Ok(false);
        }
        let mut absent = Vec::new();
        for row in &answer.rows {
            let Ok(chunk) = ChunkId::try_from(row.chunk_id.as_ref()) else { continue };
            if !self.store.has(&chunk)? {
                absent.push(chunk);
            }
        }
        self.store.note_missing(&absent, now_unix_ms(), answer.next)?;
        Ok(answer.more)
    }

    /// Fetches some of what is missing. Says whether anything came.
    async fn pull(&mut self, layout: &Layout) -> Result<bool, Failure> {
        let index = self.store.index();
        let listed =
            index.missing(self.round_from.as_ref(), ROUND_CHUNKS).map_err(StoreError::from)?;
        let end = listed.get(ROUND_CHUNKS - 1).map(|(chunk, _)| *chunk);
        // Room for what is quarantined has been counted before; that is fetched all the same.
        let is_at_capacity = self.store.is_at_capacity();
        let settled = now_unix_ms().saturating_sub(as_ms(self.settle));
        let (mut here, mut wanted) = (Vec::new(), Vec::new());
        for (chunk, noticed) in listed {
            if self.store.has(&chunk)? {
                here.push(chunk);
            } else if noticed <= settled && (noticed == QUARANTINED || !is_at_capacity) {
                wanted.push(chunk);
            }
        }
        if !here.is_empty() {
            self.store.forget_missing(&here)?;
        }
        let Plan { asked, rest } = plan(layout, self.node, &self.siblings, &wanted, self.pass);
        // The next round goes on where this one ends, and at the end from the beginning.
        self.round_from = rest.or(end);
        if self.round_from.is_none() {
            self.pass = self.pass.wrapping_add(1);
        }
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

    async fn pull_from(&self, sibling: NodeId, chunks: &[ChunkId]) -> Result<bool, Failure> {
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
        let keep_until = self.clock.now().unwrap_or(LogTime::ZERO).plus_ms(HOLD_MS);
        self.store.put(good, keep_until).await?;
        self.store.forget_missing(&ids)?;
        tracing::debug!(%sibling, chunks = ids.len(), "copies fetched");
        Ok(true)
    }
}

/// What one round asks for.
#[derive(Debug, PartialEq, Eq)]
struct Plan {
    asked: BTreeMap<NodeId, Vec<ChunkId>>,
    /// The first chunk whose sibling is asked for enough already: the next round begins with it.
    rest: Option<ChunkId>,
}

/// Whom to ask for which missing chunks: each chunk of one holder that is there, and no more of one
/// sibling than it can answer at once. Chunks spread over the holders by their ids, which are hashes,
/// and each pass asks the next holder: the one asked before may lack the chunk as well.
fn plan(
    layout: &Layout,
    node: NodeId,
    siblings: &BTreeMap<NodeId, Sibling>,
    missing: &[ChunkId],
    pass: usize,
) -> Plan {
    let mut asked: BTreeMap<NodeId, Vec<ChunkId>> = BTreeMap::new();
    for chunk in missing {
        let holders = layout.nodes_of(chunk).filter(|holder| *holder != node);
        let there: Vec<NodeId> =
            holders.filter(|holder| siblings.get(holder).is_some_and(|it| it.reachable)).collect();
        let [.., spread] = *chunk.as_bytes();
        let turn = usize::from(spread).wrapping_add(pass);
        let Some(holder) = turn.checked_rem(there.len()).map(|at| there[at]) else { continue };
        let chunks = asked.entry(holder).or_default();
        if chunks.len() == PULLS_PER_CALL {
            return Plan { asked, rest: Some(*chunk) };
        }
        chunks.push(*chunk);
    }
    Plan { asked, rest: None }
}

enum Failure {
    Call(Status),
    Store(StoreError),
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        Self::Call(status)
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

fn unusable(error: impl std::fmt::Display) -> Failure {
    Failure::Call(Status::unavailable(error.to_string()))
}

fn as_ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn host_of(address: &str) -> &str {
    address.rsplit_once(':').map_or(address, |(host, _)| host.trim_matches(['[', ']']))
}

#[cfg(test)]
mod tests;
