//! Forgetting: what nothing needs here any more is given up, and only if the members say so.
//!
//! The node asks about surplus chunks whose last receipt has run out. Each member answers for itself
//! with a signed release (docs/formats/layout.md). A chunk that more than half of the members of the
//! descriptor in force release is forgotten, if the time that a majority has reached lies behind every
//! receipt given for it **at the moment of forgetting**: the store looks at that itself, so that no put
//! and no renewal comes in between.
//!
//! [`agreed`] decides, from values; the rest carries it out.

use std::time::{Duration, Instant};

use bytes::Bytes;
use coffer_model::chunk::ShardKey;
use coffer_model::descriptor::Member;
use coffer_model::encoding::decode;
use coffer_model::id::{ChunkId, ClusterId, NodeId};
use coffer_model::share::{RELEASE_CHUNKS_MAX, Release};
use coffer_model::signing::{Domain, Signature};
use coffer_model::time::LogTime;
use coffer_proto::internal as wire;
use tonic::Status;

use crate::clock::LogClock;
use crate::cluster::Cluster;
use crate::disk::Disk;
use crate::members::Members;
use crate::store::{Store, StoreError};

/// How many looks to wait after one that brought nothing, and after all that is surplus was gone
/// through. What is not released now mostly waits for others to prove their share.
const LOOKS_AFTER_NOTHING: u32 = 10;

/// Where forgetting stands.
pub(crate) struct Forgetter {
    look_every: Duration,
    /// The last chunk that was asked about.
    after: Option<ChunkId>,
    next: Instant,
}

impl Forgetter {
    pub(crate) fn new(look_every: Duration) -> Self {
        Self { look_every, after: None, next: Instant::now() }
    }

    /// Asks about some of what is surplus, and forgets what the members release. Says whether there is
    /// more to do at once.
    pub(crate) async fn step<D: Disk>(
        &mut self,
        cluster: &Cluster,
        node: NodeId,
        store: &Store<D>,
        clock: &LogClock,
        members: &Members,
    ) -> Result<bool, StoreError> {
        let Some(now) = clock.now().filter(|_| Instant::now() >= self.next) else {
            return Ok(false);
        };
        let listed = store.index().surplus(self.after.as_ref(), RELEASE_CHUNKS_MAX)?;
        self.after = listed.get(RELEASE_CHUNKS_MAX - 1).copied();
        let mut asked = Vec::new();
        for chunk in listed {
            let location = store.index().location(&ShardKey::replica(chunk))?;
            if location.is_some_and(|location| location.keep_until < now) {
                asked.push(chunk);
            }
        }
        let mut forgotten = 0;
        if !asked.is_empty() && store.poison().is_none() {
            let descriptor = cluster.view().descriptor;
            let mut releases = Vec::new();
            for member in &descriptor.members {
                match release_of(members, cluster.id(), node, member, &asked).await {
                    Ok(release) => releases.push(release),
                    Err(error) => {
                        tracing::debug!(
                            member = %member.id,
                            error = error.message(),
                            "a member gave no release"
                        );
                    }
                }
            }
            let agreed = agreed(descriptor.members.len(), &releases, &asked);
            // Those of another descriptor's members are no majority of this one's.
            if !agreed.is_empty() && cluster.view().descriptor.number == descriptor.number {
                forgotten = store.forget(agreed).await?;
                tracing::debug!(chunks = forgotten, "chunks were forgotten");
            }
        }
        if forgotten == 0 || self.after.is_none() {
            self.next = Instant::now() + self.look_every * LOOKS_AFTER_NOTHING;
        }
        Ok(forgotten > 0)
    }
}

async fn release_of(
    members: &Members,
    cluster: &ClusterId,
    node: NodeId,
    member: &Member,
    asked: &[ChunkId],
) -> Result<Release, Status> {
    let request = wire::ReleaseChunksRequest {
        node_id: Bytes::copy_from_slice(node.as_bytes()),
        chunk_ids: asked.iter().map(|id| Bytes::copy_from_slice(id.as_bytes())).collect(),
    };
    let call = members.ask_one(&member.address, |mut member| {
        let request = request.clone();
        async move { Ok(member.release_chunks(request).await?.into_inner()) }
    });
    let answer = call.await?;
    let release = checked(&answer, cluster, node, member);
    if release.is_none() {
        tracing::warn!(member = %member.id, "a member sent a release that does not verify");
    }
    release.ok_or_else(|| Status::internal("its release does not verify"))
}

/// The release, if it is this member's, for this node, and as it should be.
fn checked(
    answer: &wire::ReleaseChunksResponse,
    cluster: &ClusterId,
    node: NodeId,
    member: &Member,
) -> Option<Release> {
    let signature = Signature::from_bytes(answer.signature.as_ref().try_into().ok()?);
    member.key.verify(Domain::Release, cluster, &answer.release, &signature).ok()?;
    let release: Release = decode("release", &answer.release).ok()?;
    let ascends = release.chunks.is_sorted_by(|before, after| before < after);
    let is_good = (release.member, release.node) == (member.id, node)
        && ascends
        && release.chunks.len() <= RELEASE_CHUNKS_MAX;
    is_good.then_some(release)
}

/// What more than half of the members release, of what they were asked about, each with the latest
/// log time that more than half have reached.
fn agreed(members: usize, releases: &[Release], asked: &[ChunkId]) -> Vec<(ChunkId, LogTime)> {
    let mut agreed = Vec::new();
    for chunk in asked {
        let names = |release: &&Release| release.chunks.binary_search(chunk).is_ok();
        let mut times: Vec<_> = releases.iter().filter(names).map(|it| it.time).collect();
        times.sort_unstable_by(|earlier, later| later.cmp(earlier));
        agreed.extend(times.get(members / 2).map(|time| (*chunk, *time)));
    }
    agreed
}

#[cfg(test)]
mod tests;
