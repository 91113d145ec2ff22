//! What a cluster says of itself: metrics on every process, and an audit event for every call.

use std::io::{Read, Write};
use std::net::TcpStream;

use coffer_chaos::{Cluster, wait_for};
use coffer_proto::v1 as pb;
use coffer_proto::v1::directory_service_client::DirectoryServiceClient;
use serde_json::Value;

use crate::api::{channel, with_proof};

pub(crate) fn scrape(address: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    let request = "GET /metrics HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    answer
}

/// The value of a metric, by its name and labels as they are printed.
fn metric(text: &str, name: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
}

fn events(cluster: &Cluster, process: &str) -> Vec<Value> {
    let path = cluster.cluster_dir().join(process).join("audit.jsonl");
    let text = std::fs::read_to_string(path).unwrap();
    // The last line may still be on its way.
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

#[test]
fn every_call_is_counted_and_written_down() {
    let cluster = Cluster::start().unwrap();
    let work = cluster.work_dir().unwrap();
    let founded: Value =
        serde_json::from_slice(&std::fs::read(cluster.cluster_dir().join("cluster.json")).unwrap())
            .unwrap();
    let health = |name: &str| {
        let processes = founded["processes"].as_array().unwrap();
        let process = processes.iter().find(|process| process["name"] == name).unwrap();
        process["health"].as_str().unwrap().to_owned()
    };
    // Counters of refusals are there before the first one.
    let before = scrape(&health("gateway"));
    let refused = "coffer_refused_total{reason=\"SESSION_PROOF_INVALID\"}";
    assert_eq!(metric(&before, refused), Some(0.0));

    cluster.coffer("alice", &["register", "alice"]).unwrap();
    let file = work.join("file");
    std::fs::write(&file, vec![5u8; 3 << 20]).unwrap();
    cluster.coffer("alice", &["put", file.to_str().unwrap(), "/alice/secret-name-1f"]).unwrap();
    cluster.coffer("alice", &["cat", "/alice/secret-name-1f"]).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let mut client = DirectoryServiceClient::new(channel(&cluster, &cluster.address));
        let request = with_proof(pb::ReadRequest::default(), b"forged");
        client.read(request).await.unwrap_err();
    });

    let after = scrape(&health("gateway"));
    assert_eq!(metric(&after, refused), Some(1.0));
    let puts = "grpc_server_handled_total{grpc_code=\"OK\",grpc_method=\"/coffer.v1.ChunkService/PutChunks\"}";
    assert!(metric(&after, puts) > Some(0.0), "{after}");
    wait_for("every node to count its chunks", || {
        let counted = ["storage-1", "storage-2", "storage-3"]
            .iter()
            .all(|node| metric(&scrape(&health(node)), "coffer_storage_chunks") == Some(3.0));
        Ok(counted.then_some(()))
    })
    .unwrap();

    // Who, from where, what about, allowed or not and why.
    let of_method = |process: &str, method: &str| -> Vec<Value> {
        let all = events(&cluster, process).into_iter();
        all.filter(|event| event["method"] == method).collect()
    };
    wait_for("the audit logs to be written", || {
        let denied = of_method("gateway", "/coffer.v1.DirectoryService/Read");
        let denied = denied.iter().any(|event| event["decision"] == "denied");
        let stored = of_method("storage-1", "/coffer.v1.ChunkService/PutChunks");
        Ok((denied && !stored.is_empty()).then_some(()))
    })
    .unwrap();
    let reads = of_method("gateway", "/coffer.v1.DirectoryService/Read");
    let denied: Vec<&Value> = reads.iter().filter(|event| event["decision"] == "denied").collect();
    assert_eq!(denied.len(), 1);
    assert!(reads.len() > 1);
    assert_eq!(denied[0]["reason"], "SESSION_PROOF_INVALID");
    let logins = of_method("gateway", "/coffer.v1.LoginService/StartLogin");
    assert!(logins.iter().all(|event| event["object"] == "user alice") && !logins.is_empty());
    assert!(denied[0]["from"].as_str().unwrap().starts_with("127.0.0.1:"));
    let stored = of_method("storage-1", "/coffer.v1.ChunkService/PutChunks");
    let stored = stored.iter().find(|event| event["decision"] == "allowed").unwrap();
    assert_eq!(stored["principal"].as_str().unwrap().len(), 32, "{stored}");
    assert_eq!(stored["session"].as_str().unwrap().len(), 64, "{stored}");
    assert!(stored["process"].as_str().unwrap().contains("gateway"), "{stored}");
    for process in cluster.processes().unwrap() {
        let path = cluster.cluster_dir().join(&process).join("audit.jsonl");
        let text = std::fs::read_to_string(path).unwrap_or_default();
        assert!(!text.contains("secret-name-1f"), "{process}");
    }
}
