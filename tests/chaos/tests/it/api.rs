//! The sealed API of a real cluster, spoken by hand: what the gateway and the other processes refuse.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use coffer_chaos::Cluster;
use coffer_crypto::sign::SessionKey;
use coffer_model::descriptor::SignedDescriptor;
use coffer_model::encoding::decode;
use coffer_model::id::ClusterId;
use coffer_model::session::{CertificateHash, PROOF_HEADER, SessionProof};
use coffer_model::signing::Signer;
use coffer_proto::v1 as pb;
use coffer_proto::v1::chunk_service_client::ChunkServiceClient;
use coffer_proto::v1::cluster_service_client::ClusterServiceClient;
use coffer_proto::v1::directory_service_client::DirectoryServiceClient;
use coffer_proto::{CHUNKS_PER_CALL, MESSAGE_BYTES_MAX, RENEWALS_PER_CALL};
use coffer_service::channel::{Channel, ChannelOptions, connect_lazy};
use coffer_service::status::reason_of;
use coffer_service::tls::client_config_without_certificate;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tonic::metadata::MetadataValue;
use tonic::{Code, Request, Status};

pub(crate) fn channel(cluster: &Cluster, address: &str) -> Channel {
    let ca = std::fs::read(cluster.authority()).unwrap();
    let ca = CertificateDer::from_pem_slice(&ca).unwrap();
    let tls = Arc::new(client_config_without_certificate(&[ca]).unwrap());
    connect_lazy(address, "127.0.0.1", tls, &ChannelOptions::standard()).unwrap()
}

fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    u64::try_from(now.as_millis()).unwrap()
}

pub(crate) fn with_proof<M>(message: M, proof: &[u8]) -> Request<M> {
    let mut request = Request::new(message);
    request.metadata_mut().insert_bin(PROOF_HEADER, MetadataValue::from_bytes(proof));
    request
}

fn reason(status: &Status) -> String {
    reason_of(status).map_or_else(|| format!("none: {status:?}"), |reason| reason.code)
}

async fn cluster_id(channel: &Channel) -> ClusterId {
    let mut client = ClusterServiceClient::new(channel.clone());
    let signed =
        client.get_descriptor(pb::GetDescriptorRequest::default()).await.unwrap().into_inner();
    let first: SignedDescriptor = decode("descriptor", &signed.descriptor).unwrap();
    first.verify_first(None).unwrap().0
}

/// A proof by a key nobody has vouched for.
fn proof(key: &SessionKey, audience: ClusterId, expires_unix_ms: u64) -> Vec<u8> {
    let certificate = CertificateHash::from_hash(coffer_model::hash::payload_hash(b"nobody's"));
    let key_of = key.public_key();
    SessionProof { audience, certificate, key: key_of, expires_unix_ms }.sign(key)
}

#[test]
fn what_the_gateway_refuses() {
    let cluster = Cluster::start().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let channel = channel(&cluster, &cluster.address);
        let id = cluster_id(&channel).await;
        let key = SessionKey::generate();
        let stranger = proof(&key, id, now_ms() + 50_000);

        // Proofs of a session.
        let elsewhere = ClusterId::from_bytes([1; 32]);
        let (bytes, _): (Vec<u8>, [u8; 64]) = decode("proof", &stranger).unwrap();
        let forged = coffer_model::encoding::encode(&(bytes, [7u8; 64]));
        let rows = [
            ("rubbish", vec![1, 2, 3], "SESSION_PROOF_INVALID"),
            ("forged", forged, "SESSION_PROOF_INVALID"),
            ("expired", proof(&key, id, now_ms() - 300_000), "SESSION_PROOF_EXPIRED"),
            ("an hour slow", proof(&key, id, now_ms() - 3_600_000), "SESSION_PROOF_EXPIRED"),
            ("an hour fast", proof(&key, id, now_ms() + 3_600_000), "SESSION_PROOF_EXPIRED"),
            (
                "of another cluster",
                proof(&key, elsewhere, now_ms() + 50_000),
                "SESSION_PROOF_INVALID",
            ),
            ("of a session nobody opened", stranger.clone(), "SESSION_CLOSED"),
        ];
        let mut directory = DirectoryServiceClient::new(channel.clone());
        for (what, proof, expected) in rows {
            let request = with_proof(
                pb::IssueWriteTicketRequest { inode: Bytes::from_static(&[1; 16]), bytes: 1 },
                &proof,
            );
            let refused = directory.issue_write_ticket(request).await.unwrap_err();
            assert_eq!(
                (refused.code(), reason(&refused).as_str()),
                (Code::Unauthenticated, expected),
                "{what}"
            );
        }
        let bare = Request::new(pb::IssueWriteTicketRequest {
            inode: Bytes::from_static(&[1; 16]),
            bytes: 1,
        });
        let refused = directory.issue_write_ticket(bare).await.unwrap_err();
        assert_eq!(reason(&refused), "SESSION_PROOF_INVALID");

        // Calls that are too large, or name what cannot be.
        let mut chunks = ChunkServiceClient::new(channel.clone())
            .max_encoding_message_size(4 * MESSAGE_BYTES_MAX);
        let put = |chunks: Vec<Bytes>| {
            with_proof(
                pb::PutChunksRequest { ticket: Bytes::new(), chunks, layout_version: 0 },
                &stranger,
            )
        };
        let refused =
            chunks.put_chunks(put(vec![Bytes::from(vec![0; 2 * MESSAGE_BYTES_MAX])])).await;
        assert_eq!(refused.unwrap_err().code(), Code::OutOfRange);
        let refused =
            chunks.put_chunks(put(vec![Bytes::from(vec![0; 5 << 20])])).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
        let refused = chunks.put_chunks(put(vec![Bytes::new(); CHUNKS_PER_CALL + 1])).await;
        assert_eq!(reason(&refused.unwrap_err()), "TOO_MANY_CHUNKS");
        let get = |ids: Vec<Bytes>| {
            with_proof(pb::GetChunksRequest { ticket: Bytes::new(), chunk_ids: ids }, &stranger)
        };
        let refused = chunks.get_chunks(get(vec![Bytes::from_static(b"short")])).await;
        assert_eq!(reason(&refused.unwrap_err()), "CHUNK_ID_INVALID");
        let ids = vec![Bytes::from_static(&[0; 32]); RENEWALS_PER_CALL + 1];
        let renew = pb::RenewReceiptsRequest { ticket: Bytes::new(), chunk_ids: ids };
        let refused = chunks.renew_receipts(with_proof(renew, &stranger)).await;
        assert_eq!(reason(&refused.unwrap_err()), "TOO_MANY_CHUNKS");
        // A ticket that is none, at a real storage node.
        let refused = chunks.get_chunks(get(vec![Bytes::from_static(&[0; 32])])).await.unwrap_err();
        assert!(reason(&refused).contains("TICKET"), "{refused:?}");

        // Submissions that are none.
        let submission = Bytes::from(vec![7; 1000]);
        let refused = directory.submit(Request::new(pb::SubmitRequest { submission })).await;
        assert_eq!(reason(&refused.unwrap_err()), "BUNDLE_REJECTED");

        // After all of this it serves as before.
        assert_eq!(cluster_id(&channel).await, id);
    });
    cluster.coffer("alice", &["register", "alice"]).unwrap();
}

#[test]
fn members_and_storage_nodes_talk_to_the_cluster_only() {
    let cluster = Cluster::start().unwrap();
    let status: serde_json::Value =
        serde_json::from_str(&cluster.coffer("alice", &["status", "--json"]).unwrap()).unwrap();
    let address = |of: &serde_json::Value| of["address"].as_str().unwrap().to_owned();
    let member = address(&status["members"][0]);
    let node = address(&status["nodes"][0]);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        // TLS, the right authority, but no certificate of our own: a member does not even shake hands,
        // a storage node wants a ticket.
        let mut client = ClusterServiceClient::new(channel(&cluster, &member));
        let refused = client.get_status(pb::GetStatusRequest {}).await.unwrap_err();
        let broken = std::error::Error::source(&refused).is_some();
        assert!(broken, "an answer, not a broken connection: {refused:?}");
        let mut client = ChunkServiceClient::new(channel(&cluster, &node));
        let ids = vec![Bytes::from_static(&[0; 32])];
        let get = pb::GetChunksRequest { ticket: Bytes::new(), chunk_ids: ids };
        let refused = client.get_chunks(get).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unauthenticated, "{refused:?}");
        // No TLS at all.
        for address in [member, node] {
            let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{address}"));
            let refused = match endpoint.unwrap().connect().await {
                Ok(plain) => {
                    let mut client = ClusterServiceClient::new(plain);
                    client.get_status(pb::GetStatusRequest {}).await.unwrap_err().to_string()
                }
                Err(error) => error.to_string(),
            };
            assert!(!refused.is_empty());
        }
    });
}
