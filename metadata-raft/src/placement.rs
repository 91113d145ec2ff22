//! What storage nodes ask about chunks: which ones they should hold, and which they may forget. And what
//! they say: that they hold their share.

use coffer_metadata_core::query;
use coffer_metadata_core::state::Layouts;
use coffer_model::encoding::encode;
use coffer_model::id::{ChunkId, NodeId};
use coffer_model::log::ChunkRow;
use coffer_model::share::{RELEASE_CHUNKS_MAX, Release};
use coffer_model::signing::{Domain, Signer};
use coffer_proto::internal as pb;
use coffer_service::status::status;
use tonic::{Code, Status};

use crate::access::{invalid, store_failed};
use crate::group::Group;
use crate::store::View;

/// The most rows in one answer.
const ROWS_MAX: u32 = 10_000;

/// The layouts by which nodes hold chunks.
pub(crate) fn layouts(view: &View) -> Result<Layouts, Status> {
    query::layouts(view).map_err(store_failed)?.ok_or_else(|| {
        status(Code::Unavailable, "NO_CLUSTER", "the cluster is not formed yet", &[])
    })
}

pub(crate) fn feed(
    view: &View,
    node: NodeId,
    message: &pb::ReadFeedRequest,
) -> Result<pb::ReadFeedResponse, Status> {
    let layouts = layouts(view)?;
    let limit = limit(message.limit);
    let (rows, next, more) =
        query::feed(view, &layouts.layouts, node, message.after, limit).map_err(store_failed)?;
    Ok(pb::ReadFeedResponse {
        rows: rows.iter().map(row).collect(),
        next,
        more,
        log_time_ms: query::log_time(view).map_err(store_failed)?.unix_ms(),
    })
}

pub(crate) fn rows(
    view: &View,
    node: NodeId,
    message: &pb::ReadRowsRequest,
) -> Result<pb::ReadRowsResponse, Status> {
    let layouts = layouts(view)?;
    let after = match message.after_chunk.as_ref() {
        [] => None,
        bytes => Some(ChunkId::try_from(bytes).map_err(|_| chunk_invalid())?),
    };
    let limit = limit(message.limit);
    let (rows, next) = query::rows_of(view, &layouts.layouts, node, after.as_ref(), limit)
        .map_err(store_failed)?;
    Ok(pb::ReadRowsResponse {
        rows: rows.iter().map(row).collect(),
        next_chunk: next.map(|chunk| chunk.as_bytes().to_vec().into()).unwrap_or_default(),
        log_time_ms: query::log_time(view).map_err(store_failed)?.unix_ms(),
        feed_position: query::feed_position(view).map_err(store_failed)?,
        layout_version: layouts.in_force().version(),
    })
}

/// This member's word on which of the chunks a node need not keep, from the state as it has it here:
/// whoever asks a majority of members needs no more.
pub(crate) fn release(
    view: &View,
    group: &Group,
    node: NodeId,
    message: &pb::ReleaseChunksRequest,
) -> Result<pb::ReleaseChunksResponse, Status> {
    if message.chunk_ids.len() > RELEASE_CHUNKS_MAX {
        return Err(invalid("TOO_MANY_CHUNKS", "one call asks about at most 4096 chunks"));
    }
    let asked = message.chunk_ids.iter().map(|id| ChunkId::try_from(id.as_ref()));
    let asked: Vec<ChunkId> = asked.collect::<Result<_, _>>().map_err(|_| chunk_invalid())?;
    if !asked.windows(2).all(|pair| pair[0] < pair[1]) {
        return Err(invalid("CHUNK_ID_INVALID", "chunk ids come in ascending order, each once"));
    }
    let release = Release {
        member: group.me,
        node,
        time: query::log_time(view).map_err(store_failed)?,
        chunks: query::releasable(view, &layouts(view)?, node, &asked).map_err(store_failed)?,
    };
    let release = encode(&release);
    let signature = group.identity.sign(Domain::Release, &group.cluster(), &release);
    Ok(pb::ReleaseChunksResponse {
        release: release.into(),
        signature: signature.as_bytes().to_vec().into(),
    })
}

fn limit(asked: u32) -> usize {
    let limit = if asked == 0 { ROWS_MAX } else { asked.min(ROWS_MAX) };
    usize::try_from(limit).unwrap_or(usize::MAX)
}

fn row(row: &ChunkRow) -> pb::FeedRow {
    pb::FeedRow { chunk_id: row.chunk.as_bytes().to_vec().into(), length: row.length }
}

fn chunk_invalid() -> Status {
    invalid("CHUNK_ID_INVALID", "a chunk id has 32 bytes")
}
