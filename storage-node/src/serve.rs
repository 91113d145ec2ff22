//! The node's two services: chunks for whoever has a ticket, and copies for siblings.

use std::sync::Arc;

use bytes::Bytes;
use coffer_model::chunk::{ChunkError, SEALED_BYTES_MAX, SealedChunk};
use coffer_model::id::{ChunkId, NodeId};
use coffer_model::time::LogTime;
use coffer_proto::internal::sibling_service_server::SiblingService;
use coffer_proto::internal::{PullChunksRequest, PullChunksResponse};
use coffer_proto::v1 as pb;
use coffer_proto::v1::chunk_service_server::ChunkService;
use coffer_proto::{CHUNK_BYTES_PER_CALL, CHUNKS_PER_CALL, RENEWALS_PER_CALL};
use coffer_service::audit::note;
use coffer_service::server::peer_of;
use coffer_service::status::status;
use tokio::sync::Semaphore;
use tonic::{Code, Request, Response, Status};

use crate::clock::{HOLD_MS, LogClock};
use crate::cluster::Cluster;
use crate::disk::Disk;
use crate::door::Door;
use crate::run::ROLE;
use crate::store::{Store, StoreError};

/// What may be read from disk and be on its way at a time.
const READ_BYTES: usize = 48 << 20;

/// What the services share.
pub(crate) struct Served<D: Disk> {
    pub(crate) store: Store<D>,
    pub(crate) door: Door,
    pub(crate) clock: Arc<LogClock>,
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) node: NodeId,
    reading: Arc<Semaphore>,
}

impl<D: Disk> Served<D> {
    pub(crate) fn new(
        store: Store<D>,
        clock: Arc<LogClock>,
        cluster: Arc<Cluster>,
        node: NodeId,
    ) -> Self {
        let reading = Arc::new(Semaphore::new(READ_BYTES));
        let door = Door::new(Arc::clone(&cluster));
        Self { store, door, clock, cluster, node, reading }
    }

    /// A node that the cluster has taken out serves nobody.
    fn belongs(&self) -> Result<(), Status> {
        if !self.cluster.is_disowned() {
            return Ok(());
        }
        let message = "this storage node is not in the cluster's descriptor any more";
        Err(status(Code::PermissionDenied, "NOT_IN_DESCRIPTOR", message, &[]))
    }

    /// Whether chunks that a caller placed by the layout of a version are this node's. A caller that
    /// knows a later one than this node knows better.
    fn holds(&self, chunks: &[SealedChunk<Bytes>], layout_version: u64) -> Result<(), Status> {
        let view = self.cluster.view();
        let is_checked = layout_version > 0 && layout_version <= view.layout_version();
        if !is_checked || chunks.iter().all(|chunk| view.gives(self.node, &chunk.id())) {
            return Ok(());
        }
        let message = "the layout does not give these chunks to this storage node";
        Err(status(Code::FailedPrecondition, "NOT_A_HOLDER", message, &[]))
    }

    /// Until when a chunk that is stored now is kept.
    fn keep_until(&self) -> Result<LogTime, Status> {
        let now = self.clock.now().ok_or_else(not_ready)?;
        Ok(now.plus_ms(HOLD_MS))
    }

    /// Reads chunks until the answer is full; what does not fit, and what is not here, is empty.
    async fn read_all(&self, ids: Vec<ChunkId>) -> Result<Vec<Bytes>, Status> {
        let most = ids.len().saturating_mul(SEALED_BYTES_MAX).min(CHUNK_BYTES_PER_CALL);
        let permits = u32::try_from(most.max(1)).unwrap_or(u32::MAX);
        let room = Arc::clone(&self.reading).acquire_many_owned(permits).await;
        let room = room.map_err(|_| Status::unavailable("stopping"))?;
        let store = self.store.clone();
        let read = tokio::task::spawn_blocking(move || {
            let mut bytes = 0;
            let mut found = Vec::with_capacity(ids.len());
            for id in ids {
                let chunk = if bytes < CHUNK_BYTES_PER_CALL { store.read(&id)? } else { None };
                let chunk = chunk.unwrap_or_default();
                bytes += chunk.len();
                found.push(chunk);
            }
            drop(room);
            Ok(found)
        });
        read.await.map_err(|_| Status::internal("a read did not end"))?.map_err(store_status)
    }
}

fn store_status(error: StoreError) -> Status {
    let (code, reason) = match &error {
        StoreError::Poisoned(_) => (Code::Unavailable, "STORE_POISONED"),
        StoreError::Stopping => (Code::Unavailable, "STOPPING"),
        // Without a hint to try again: time alone makes no room.
        StoreError::Full => (Code::ResourceExhausted, "DISK_FULL"),
        StoreError::CapacityFull => (Code::ResourceExhausted, "CAPACITY_FULL"),
        StoreError::Disk(_) | StoreError::NotReadBack => (Code::Unavailable, "DISK_FAILED"),
        StoreError::Damaged(_) => (Code::DataLoss, "STORE_DAMAGED"),
    };
    status(code, reason, &error.to_string(), &[])
}

fn not_ready() -> Status {
    let message = "this storage node has not heard from the metadata group yet";
    status(Code::Unavailable, "NOT_READY", message, &[])
}

fn invalid(reason: &'static str, message: &str) -> Status {
    status(Code::InvalidArgument, reason, message, &[])
}

fn parse_ids(ids: &[Bytes], most: usize) -> Result<Vec<ChunkId>, Status> {
    if ids.len() > most {
        return Err(invalid("TOO_MANY_CHUNKS", &format!("one call names at most {most} chunks")));
    }
    let parsed: Result<Vec<ChunkId>, _> =
        ids.iter().map(|id| ChunkId::try_from(id.as_ref())).collect();
    parsed.map_err(|_| invalid("CHUNK_ID_INVALID", "a chunk id has 32 bytes"))
}

/// Says in the audit log how many chunks a call is about.
fn about<T>(request: &Request<T>, chunks: usize) {
    note(request, |subject| subject.object = Some(format!("{chunks} chunks")));
}

/// Hashes chunks, off the async threads.
pub(crate) async fn hash_all(chunks: Vec<Bytes>) -> Result<Vec<SealedChunk<Bytes>>, Status> {
    let hashed = tokio::task::spawn_blocking(move || {
        chunks.into_iter().map(SealedChunk::hash).collect::<Result<Vec<_>, ChunkError>>()
    });
    let hashed = hashed.await.map_err(|_| Status::internal("hashing did not end"))?;
    hashed.map_err(|error| invalid("CHUNK_TOO_LARGE", &error.to_string()))
}

/// The services, as tonic wants them.
pub(crate) struct Service<D: Disk>(pub(crate) Arc<Served<D>>);

impl<D: Disk> Clone for Service<D> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

#[tonic::async_trait]
impl<D: Disk> ChunkService for Service<D> {
    async fn put_chunks(
        &self,
        request: Request<pb::PutChunksRequest>,
    ) -> Result<Response<pb::PutChunksResponse>, Status> {
        about(&request, request.get_ref().chunks.len());
        self.0.belongs()?;
        let admitted = self.0.door.admit(&request, &request.get_ref().ticket)?;
        let pb::PutChunksRequest { chunks, layout_version, .. } = request.into_inner();
        let bytes: usize = chunks.iter().map(Bytes::len).sum();
        if chunks.len() > CHUNKS_PER_CALL || bytes > CHUNK_BYTES_PER_CALL + SEALED_BYTES_MAX {
            return Err(invalid("TOO_MANY_CHUNKS", "one call takes at most 256 chunks and 4 MiB"));
        }
        if chunks.iter().any(Bytes::is_empty) {
            // An answer that brings none would look the same.
            return Err(invalid("CHUNK_EMPTY", "a sealed chunk is never empty"));
        }
        let keep_until = self.0.keep_until()?;
        let chunks = hash_all(chunks).await?;
        self.0.holds(&chunks, layout_version)?;
        admitted.write(bytes as u64)?;
        let ids: Vec<ChunkId> = chunks.iter().map(SealedChunk::id).collect();
        let receipts = self.0.store.put(chunks, keep_until).await.map_err(store_status)?;
        let stored =
            ids.iter().zip(receipts).map(|(id, receipt)| stored(id, Some(receipt))).collect();
        Ok(Response::new(pb::PutChunksResponse { stored }))
    }

    async fn get_chunks(
        &self,
        request: Request<pb::GetChunksRequest>,
    ) -> Result<Response<pb::GetChunksResponse>, Status> {
        about(&request, request.get_ref().chunk_ids.len());
        self.0.belongs()?;
        let admitted = self.0.door.admit(&request, &request.get_ref().ticket)?;
        let chunk_ids = request.into_inner().chunk_ids;
        let ids = parse_ids(&chunk_ids, CHUNKS_PER_CALL)?;
        admitted.read(&ids)?;
        let found = self.0.read_all(ids).await?;
        let fetched = chunk_ids
            .into_iter()
            .zip(found)
            .map(|(chunk_id, data)| pb::Fetched { chunk_id, data })
            .collect();
        Ok(Response::new(pb::GetChunksResponse { fetched }))
    }

    async fn renew_receipts(
        &self,
        request: Request<pb::RenewReceiptsRequest>,
    ) -> Result<Response<pb::RenewReceiptsResponse>, Status> {
        about(&request, request.get_ref().chunk_ids.len());
        self.0.belongs()?;
        let admitted = self.0.door.admit(&request, &request.get_ref().ticket)?;
        // It writes no chunk, but it takes leave to write.
        admitted.write(0)?;
        let ids = parse_ids(&request.get_ref().chunk_ids, RENEWALS_PER_CALL)?;
        let keep_until = self.0.keep_until()?;
        let receipts = self.0.store.extend(ids.clone(), keep_until).await.map_err(store_status)?;
        let stored = ids.iter().zip(receipts).map(|(id, receipt)| stored(id, receipt)).collect();
        Ok(Response::new(pb::RenewReceiptsResponse { stored }))
    }
}

fn stored(id: &ChunkId, receipt: Option<Vec<u8>>) -> pb::Stored {
    pb::Stored {
        chunk_id: Bytes::copy_from_slice(id.as_bytes()),
        receipts: receipt.into_iter().map(Bytes::from).collect(),
    }
}

#[tonic::async_trait]
impl<D: Disk> SiblingService for Service<D> {
    async fn pull_chunks(
        &self,
        request: Request<PullChunksRequest>,
    ) -> Result<Response<PullChunksResponse>, Status> {
        about(&request, request.get_ref().chunk_ids.len());
        self.0.belongs()?;
        let view = self.0.cluster.view();
        let sibling = peer_of(&request)
            .filter(|peer| peer.role() == ROLE)
            .map(|peer| NodeId::from_bytes(*peer.id()))
            .filter(|id| view.names(*id));
        let refused = |message: &str| status(Code::PermissionDenied, "NOT_A_SIBLING", message, &[]);
        let Some(sibling) = sibling else {
            tracing::warn!("somebody who is no storage node of this cluster asked for copies");
            return Err(refused("only storage nodes of this cluster may ask for copies"));
        };
        let ids = parse_ids(&request.get_ref().chunk_ids, CHUNKS_PER_CALL)?;
        if view.layout().is_none() {
            return Err(not_ready());
        }
        if !ids.iter().all(|id| view.gives(sibling, id)) {
            return Err(refused("no layout gives these chunks to you"));
        }
        let chunks = self.0.read_all(ids).await?;
        Ok(Response::new(PullChunksResponse { chunks }))
    }
}

#[cfg(test)]
mod tests;
