//! What the machine could do at best, measured by the same program in the same run: the cipher, the
//! hash, the disk, and gRPC over TLS on loopback with nothing behind it.

use std::fs::File;
use std::io::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::thread::{available_parallelism, scope};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bytes::Bytes;
use coffer_crypto::chunk::{ChunkContext, seal_chunk};
use coffer_crypto::keys::DirectorySecret;
use coffer_crypto::plaintext::Plaintext;
use coffer_model::chunk::SealedChunk;
use coffer_model::id::{ClusterId, InodeId, WriteId};
use coffer_proto::v1::chunk_service_client::ChunkServiceClient;
use coffer_proto::v1::chunk_service_server::{ChunkService, ChunkServiceServer};
use coffer_proto::{MESSAGE_BYTES_MAX, v1 as pb};
use coffer_service::channel::{ChannelOptions, connect_lazy};
use coffer_service::one_box::OneBoxCa;
use coffer_service::peer::PeerId;
use coffer_service::server::{GrpcServer, ServerLimits};
use coffer_service::tls::{
    ClientAuth, LiveTls, client_config_without_certificate, read_certificates,
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::{Request, Response, Status};

use super::MIB;

/// Bytes that go through one thread of a computing ceiling.
const COMPUTED_BYTES: usize = 256 * MIB;
/// Bytes that are written to the disk.
const WRITTEN_BYTES: usize = 256 * MIB;
/// Small writes, each with a sync of its own.
const SYNCS: usize = 100;
/// Bytes of one message.
const MESSAGE_BYTES: usize = 4 * MIB;
/// Messages sent, and under way at a time.
const MESSAGES: usize = 128;
const IN_FLIGHT: usize = 4;

/// One measurement, in what the name says.
pub(crate) type Sample = (&'static str, &'static str, f64);

/// Measures everything once. `dir` is on the disk that the cluster uses.
pub(crate) async fn measure(dir: &Path) -> Result<Vec<Sample>> {
    let threads = available_parallelism().map_or(2, usize::from);
    let mut samples = vec![
        ("cipher, one core", "MiB/s", seal_on(1)?),
        ("cipher, all cores", "MiB/s", seal_on(threads)?),
        ("BLAKE3, one core", "MiB/s", hash_on(1)),
        ("BLAKE3, all cores", "MiB/s", hash_on(threads)),
    ];
    let (write, sync) = disk(dir)?;
    samples.push(("disk, written and synced once", "MiB/s", write));
    samples.push(("disk, 4 KiB and a sync each", "writes/s", sync));
    samples.push(("gRPC over TLS on loopback", "MiB/s", loopback(dir).await?));
    Ok(samples)
}

/// Runs `work` on so many threads at once; MiB/s of all together.
fn on_threads(threads: usize, work: impl Fn() + Sync) -> f64 {
    let began = Instant::now();
    scope(|scope| {
        for _ in 0..threads {
            scope.spawn(&work);
        }
    });
    mib_per_second(threads * COMPUTED_BYTES, began.elapsed())
}

pub(crate) fn mib_per_second(bytes: usize, took: Duration) -> f64 {
    #[allow(clippy::cast_precision_loss)]
    let mib = bytes as f64 / MIB as f64;
    mib / took.as_secs_f64()
}

fn seal_on(threads: usize) -> Result<f64> {
    let write = WriteId::from_bytes([1; 16]);
    let key = DirectorySecret::generate().file_key_for(&write);
    let context = ChunkContext {
        cluster: ClusterId::from_bytes([2; 32]),
        inode: InodeId::from_bytes([3; 16]),
        write,
        slot: 0,
    };
    let plaintext = Plaintext::from(vec![5; MIB]);
    seal_chunk(&key, &context, &plaintext)?;
    Ok(on_threads(threads, || {
        for slot in 0..COMPUTED_BYTES / MIB {
            let context = ChunkContext { slot: slot as u64, ..context };
            let _ = std::hint::black_box(seal_chunk(&key, &context, &plaintext));
        }
    }))
}

fn hash_on(threads: usize) -> f64 {
    let bytes = vec![5; MIB];
    on_threads(threads, || {
        for _ in 0..COMPUTED_BYTES / MIB {
            let _ = std::hint::black_box(SealedChunk::hash(bytes.as_slice()));
        }
    })
}

/// MiB/s of one large write, and synced small writes a second.
fn disk(dir: &Path) -> Result<(f64, f64)> {
    let path = dir.join("disk");
    let block = vec![5; 4 * MIB];
    let began = Instant::now();
    let mut file = File::create(&path).context("cannot write for the measurement")?;
    for _ in 0..WRITTEN_BYTES / block.len() {
        file.write_all(&block)?;
    }
    file.sync_data()?;
    let write = mib_per_second(WRITTEN_BYTES, began.elapsed());
    let began = Instant::now();
    for _ in 0..SYNCS {
        file.write_all(&block[..4096])?;
        file.sync_data()?;
    }
    #[allow(clippy::cast_precision_loss)]
    let sync = SYNCS as f64 / began.elapsed().as_secs_f64();
    std::fs::remove_file(&path)?;
    Ok((write, sync))
}

/// Takes chunks and forgets them.
struct Sink;

#[tonic::async_trait]
impl ChunkService for Sink {
    async fn put_chunks(
        &self,
        _: Request<pb::PutChunksRequest>,
    ) -> Result<Response<pb::PutChunksResponse>, Status> {
        Ok(Response::new(pb::PutChunksResponse::default()))
    }

    async fn get_chunks(
        &self,
        _: Request<pb::GetChunksRequest>,
    ) -> Result<Response<pb::GetChunksResponse>, Status> {
        Err(Status::unimplemented("a sink gives nothing"))
    }

    async fn renew_receipts(
        &self,
        _: Request<pb::RenewReceiptsRequest>,
    ) -> Result<Response<pb::RenewReceiptsResponse>, Status> {
        Err(Status::unimplemented("a sink gives nothing"))
    }
}

async fn loopback(dir: &Path) -> Result<f64> {
    let authority = OneBoxCa::ephemeral()?;
    let files = authority.issue_into(
        &dir.join("loopback"),
        &["127.0.0.1"],
        &PeerId::new("bench", [1; 16])?,
    )?;
    let tls = LiveTls::load(files.clone(), ClientAuth::None)?;
    let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await?;
    let address = listener.local_addr()?.to_string();
    let stop = CancellationToken::new();
    let service = ChunkServiceServer::new(Sink).max_decoding_message_size(MESSAGE_BYTES_MAX);
    let serving = GrpcServer::new(tls, ServerLimits::standard()).serve(
        listener,
        Routes::new(service),
        stop.clone(),
    );
    let serving = tokio::spawn(serving);
    let authority = read_certificates(&files.ca)?;
    let tls = Arc::new(client_config_without_certificate(&authority)?);
    let channel = connect_lazy(&address, "127.0.0.1", tls, &ChannelOptions::standard())?;
    let client = ChunkServiceClient::new(channel).max_encoding_message_size(MESSAGE_BYTES_MAX);
    let block = Bytes::from(vec![5; MESSAGE_BYTES]);
    let send = |mut client: ChunkServiceClient<_>, block: Bytes| async move {
        let request =
            pb::PutChunksRequest { ticket: Bytes::new(), chunks: vec![block], layout_version: 0 };
        client.put_chunks(request).await
    };
    send(client.clone(), block.clone()).await?;
    let began = Instant::now();
    let mut senders = tokio::task::JoinSet::new();
    for _ in 0..IN_FLIGHT {
        let (client, block) = (client.clone(), block.clone());
        senders.spawn(async move {
            for _ in 0..MESSAGES / IN_FLIGHT {
                send(client.clone(), block.clone()).await?;
            }
            Ok::<_, Status>(())
        });
    }
    while let Some(sent) = senders.join_next().await {
        sent??;
    }
    let rate = mib_per_second(MESSAGES * MESSAGE_BYTES, began.elapsed());
    stop.cancel();
    drop(client);
    serving.await??;
    Ok(rate)
}
