//! Comparing: all that is kept, against all that commits have named and the layouts give to this node.
//!
//! The feed says what is new; comparing says the rest: what a layout that came into force gives to the
//! node, what a crash or a damaged segment took from it, and what nothing needs here any more. It is
//! done at each start, when the layout changes, and on a schedule. Rows come in the order of their ids,
//! as the index is ordered, so that two lists are merged, a piece at a time.
//!
//! When the layout stayed the same meanwhile, and all that was found lacking has come and was read
//! back, the node proves its share. A proof of position *p* says that every chunk of a row made up to
//! *p* is here; rows that were made since come with the feed.
//!
//! What is surplus may be forgotten, if the members give leave to (`forget.rs`). That is never done
//! while a comparison is under way: what it has found here is still here when it ends.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use coffer_model::encoding::encode;
use coffer_model::id::{ChunkId, NodeId};
use coffer_model::share::ShareProof;
use coffer_model::signing::{Domain, Signer};
use coffer_model::time::LogTime;
use coffer_proto::internal as wire;
use coffer_service::identity::ProcessIdentity;
use coffer_service::shutdown::Shutdown;
use tonic::Status;

use crate::clock::LogClock;
use crate::cluster::Cluster;
use crate::disk::Disk;
use crate::door::now_unix_ms;
use crate::forget::Forgetter;
use crate::index::Proven;
use crate::members::{Failure, Members};
use crate::store::{Store, StoreError, off_the_async_threads};

/// Rows asked for at a time.
const ROWS_PER_CALL: u32 = 4096;
/// Chunks of the index looked at in one piece.
const PIECE_CHUNKS: usize = if cfg!(test) { 4 } else { 4096 };
/// What is lacking and waited for is remembered up to so many. Where it is more, they are fetched
/// first, and then all is compared again.
const AWAITED_MAX: usize = if cfg!(test) { 64 } else { 65_536 };

/// How often things are done.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Schedule {
    pub(crate) compare_every: Duration,
    /// How often it is looked whether there is something to do.
    pub(crate) look_every: Duration,
}

/// What a member answered, checked for what can be checked.
#[derive(Debug, PartialEq, Eq)]
struct Page {
    /// Ascending.
    rows: Vec<ChunkId>,
    /// Up to where it says all; none: to the end.
    end: Option<ChunkId>,
    position: u64,
    layout: u64,
}

impl Page {
    /// None if it is no answer to what was asked: the rows behind `after`.
    fn parse(answer: &wire::ReadRowsResponse, after: Option<&ChunkId>) -> Option<Self> {
        let end = match answer.next_chunk.as_ref() {
            [] => None,
            chunk => Some(ChunkId::try_from(chunk).ok()?),
        };
        let mut rows = Vec::with_capacity(answer.rows.len());
        for row in &answer.rows {
            let chunk = ChunkId::try_from(row.chunk_id.as_ref()).ok()?;
            if rows.last().or(after).is_some_and(|before| *before >= chunk) {
                return None;
            }
            rows.push(chunk);
        }
        let goes_on = end.is_none_or(|end| {
            after.is_none_or(|after| *after < end) && rows.last().is_none_or(|last| *last <= end)
        });
        let (position, layout) = (answer.feed_position, answer.layout_version);
        goes_on.then_some(Self { rows, end, position, layout })
    }
}

/// A comparison that is under way.
#[derive(Debug, Default)]
struct Sweep {
    /// Layout and position of the first answer.
    began: Option<Proven>,
    /// Everything up to this chunk was compared.
    after: Option<ChunkId>,
    lacking: Vec<ChunkId>,
    lacks_too_much: bool,
}

/// What comes of an answer.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// It is of a member that is behind the one that answered first.
    Behind,
    /// The layout is another one: all begins anew.
    Anew,
    Compare,
}

impl Sweep {
    fn step(&mut self, page: &Page) -> Step {
        let now = Proven { layout: page.layout, position: page.position };
        let began = *self.began.get_or_insert(now);
        if page.layout != began.layout {
            Step::Anew
        } else if page.position < began.position {
            Step::Behind
        } else {
            Step::Compare
        }
    }

    fn lacks(&mut self, chunks: &[ChunkId]) {
        self.lacks_too_much |= self.lacking.len() + chunks.len() > AWAITED_MAX;
        if self.lacks_too_much {
            self.lacking = Vec::new();
        } else {
            self.lacking.extend(chunks);
        }
    }
}

/// A share that is proven once `lacking` has come and was read back.
#[derive(Debug)]
struct Claim {
    share: Proven,
    lacking: Vec<ChunkId>,
}

/// What the task needs from its node.
pub(crate) struct Parts<D: Disk> {
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) node: NodeId,
    pub(crate) identity: Arc<ProcessIdentity>,
    pub(crate) store: Store<D>,
    pub(crate) clock: Arc<LogClock>,
}

/// The task that compares, proves and forgets.
pub(crate) struct Comparer<D: Disk> {
    parts: Parts<D>,
    schedule: Schedule,
    members: Members,
    forgetter: Forgetter,
    /// The one under way.
    sweep: Option<Sweep>,
    /// When the next one is due; at once after a start, whether the end was clean or not.
    due: Instant,
    /// The layout as it was known when the last one began.
    layout_version: u64,
    /// Too much was lacking: the next one is due when most of it has come.
    lacks_too_much: bool,
    claim: Option<Claim>,
}

impl<D: Disk> Comparer<D> {
    pub(crate) fn new(parts: Parts<D>, schedule: Schedule, members: Members) -> Self {
        Self {
            parts,
            schedule,
            members,
            forgetter: Forgetter::new(schedule.look_every),
            sweep: None,
            due: Instant::now(),
            layout_version: 0,
            lacks_too_much: false,
            claim: None,
        }
    }

    /// Runs until shutdown.
    pub(crate) async fn run(mut self, shutdown: Shutdown) {
        loop {
            let pause = match self.step().await {
                Ok(true) => Duration::ZERO,
                Ok(false) => self.schedule.look_every,
                Err(Failure::Call(error)) => {
                    tracing::debug!(error = error.message(), "cannot compare for now");
                    self.schedule.look_every
                }
                Err(Failure::Store(error)) => {
                    tracing::warn!(%error, "the store cannot be compared with what commits have named");
                    self.schedule.look_every.max(FAILURE_PAUSE)
                }
            };
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Says whether there is more to do at once.
    async fn step(&mut self) -> Result<bool, Failure> {
        let layout_version = self.parts.cluster.view().layout_version();
        if layout_version == 0 {
            return Ok(false);
        }
        if layout_version != self.layout_version || self.is_due() {
            self.layout_version = layout_version;
            self.sweep = Some(Sweep::default());
        }
        if let Some(sweep) = self.sweep.take() {
            return self.go_on(sweep).await;
        }
        self.prove().await?;
        let Parts { cluster, node, store, clock, .. } = &self.parts;
        Ok(self.forgetter.step(cluster, *node, store, clock, &self.members).await?)
    }

    fn is_due(&self) -> bool {
        if self.sweep.is_some() {
            return false;
        }
        let most_came = || {
            let missing = self.parts.store.index().count_missing(AWAITED_MAX / 2).chunks;
            missing < (AWAITED_MAX / 2) as u64
        };
        Instant::now() >= self.due || self.lacks_too_much && most_came()
    }

    /// Compares what one answer says. A sweep that could not go on is gone on with the next time.
    async fn go_on(&mut self, mut sweep: Sweep) -> Result<bool, Failure> {
        let page = match self.page(sweep.after).await {
            Ok(page) => page,
            Err(error) => {
                self.sweep = Some(sweep);
                return Err(error.into());
            }
        };
        match sweep.step(&page) {
            Step::Anew => {
                self.sweep = Some(Sweep::default());
                return Ok(true);
            }
            Step::Behind => {
                self.sweep = Some(sweep);
                return Ok(false);
            }
            Step::Compare => {}
        }
        let (store, after) = (self.parts.store.clone(), sweep.after);
        let compared = off_the_async_threads(move || {
            let lacking = compare(&store, after, &page);
            lacking.map(|lacking| (lacking, page.end))
        });
        match compared.await.flatten() {
            Ok((lacking, end)) => {
                sweep.lacks(&lacking);
                if end.is_some() {
                    sweep.after = end;
                    self.sweep = Some(sweep);
                } else {
                    self.end(sweep);
                }
                Ok(true)
            }
            Err(error) => {
                self.sweep = Some(sweep);
                Err(error.into())
            }
        }
    }

    async fn page(&mut self, after: Option<ChunkId>) -> Result<Page, Status> {
        let request = wire::ReadRowsRequest {
            node_id: Bytes::copy_from_slice(self.parts.node.as_bytes()),
            after_chunk: after.map_or(Bytes::new(), |it| Bytes::copy_from_slice(it.as_bytes())),
            limit: ROWS_PER_CALL,
        };
        let answer = self
            .members
            .ask(|mut member| {
                let request = request.clone();
                async move { Ok(member.read_rows(request).await?.into_inner()) }
            })
            .await?;
        self.parts.clock.learn(LogTime::from_unix_ms(answer.log_time_ms));
        let page = Page::parse(&answer, after.as_ref());
        page.ok_or_else(|| Status::internal("a member's rows are not in the order of their ids"))
    }

    fn end(&mut self, sweep: Sweep) {
        self.due = Instant::now() + self.schedule.compare_every;
        self.lacks_too_much = sweep.lacks_too_much;
        let lacking = sweep.lacking;
        tracing::debug!(lacking = lacking.len(), "all was compared with what commits have named");
        self.claim =
            sweep.began.filter(|_| !sweep.lacks_too_much).map(|share| Claim { share, lacking });
    }

    /// Proves the share once all of it is here, until a member has taken the proof.
    async fn prove(&mut self) -> Result<(), Failure> {
        let Parts { cluster, node, identity, store, .. } = &self.parts;
        let Some(claim) = &mut self.claim else { return Ok(()) };
        while let Some(chunk) = claim.lacking.last() {
            if store.index().is_missing(chunk).map_err(StoreError::from)? {
                return Ok(());
            }
            claim.lacking.pop();
        }
        let share = claim.share;
        let proven = store.index().proven().map_err(StoreError::from)?;
        let is_new = proven.is_none_or(|proven| {
            share.layout > proven.layout
                || share.layout == proven.layout && share.position > proven.position
        });
        if is_new {
            let Proven { layout, position } = share;
            let proof = encode(&ShareProof { node: *node, layout, position });
            let signature = identity.sign(Domain::ShareProof, cluster.id(), &proof);
            let request = wire::ProveShareRequest {
                proof: proof.into(),
                signature: Bytes::copy_from_slice(signature.as_bytes()),
            };
            let taken = self.members.ask(|mut member| {
                let request = request.clone();
                async move { Ok(member.prove_share(request).await?.into_inner()) }
            });
            taken.await?;
            tracing::info!(layout, position, "this node has proven its share");
            store.index().set_proven(&share).map_err(StoreError::from)?;
        }
        self.claim = None;
        Ok(())
    }
}

/// How long to wait after a failure of the disk or the index.
const FAILURE_PAUSE: Duration = Duration::from_secs(5);

/// Compares what is kept behind `after` with an answer: what is not here is noted as missing, what no
/// row names as surplus. Gives what is missing.
fn compare<D: Disk>(
    store: &Store<D>,
    after: Option<ChunkId>,
    page: &Page,
) -> Result<Vec<ChunkId>, StoreError> {
    let mut lacking = Vec::new();
    let (mut from, mut rows) = (after, &page.rows[..]);
    loop {
        let mut held = store.index().chunks_after(from.as_ref(), PIECE_CHUNKS)?;
        let piece_end = held.get(PIECE_CHUNKS - 1).copied();
        let is_last = piece_end.is_none() || page.end.is_some() && piece_end >= page.end;
        let end = if is_last { page.end } else { piece_end };
        let is_within = |chunk: &ChunkId| end.is_none_or(|end| *chunk <= end);
        held.truncate(held.partition_point(is_within));
        let (own, behind) = rows.split_at(rows.partition_point(is_within));
        let surplus = missing_from(&held, own);
        lacking.extend(store.take_up(own, &surplus, now_unix_ms(), None)?);
        store.need_no_more(from.as_ref(), end.as_ref(), own, page.position)?;
        if is_last {
            return Ok(lacking);
        }
        (from, rows) = (end, behind);
    }
}

/// Those of `held` that are not among `rows`; both ascend.
fn missing_from(held: &[ChunkId], rows: &[ChunkId]) -> Vec<ChunkId> {
    let mut rows = rows.iter().peekable();
    let is_surplus = |chunk: &&ChunkId| {
        while rows.next_if(|row| row < chunk).is_some() {}
        rows.peek() != Some(chunk)
    };
    held.iter().filter(is_surplus).copied().collect()
}

#[cfg(test)]
mod tests;
