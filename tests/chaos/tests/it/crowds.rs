//! Crowds at the doors of real processes: users are served, and no process grows.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use coffer_chaos::Cluster;
use serde_json::Value;
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

/// More than one address may have (`connections_per_address_max`).
const CROWD: usize = 1100;
/// Connecting faster than the process accepts would only test the queue of the system.
const AT_ONCE: usize = 50;
const LONG: Duration = Duration::from_secs(30);

/// Connections from an address of their own that say nothing.
async fn silent(to: SocketAddr, from: Ipv4Addr) -> Vec<TcpStream> {
    let mut streams = Vec::with_capacity(CROWD);
    while streams.len() < CROWD {
        let mut wave = Vec::new();
        for _ in 0..AT_ONCE {
            let socket = TcpSocket::new_v4().unwrap();
            socket.bind((from, 0).into()).unwrap();
            wave.push(tokio::spawn(timeout(LONG, socket.connect(to))));
        }
        for connecting in wave {
            streams.push(connecting.await.unwrap().unwrap().unwrap());
        }
    }
    streams
}

/// Goal: who holds all the connections one address may have, at every process, keeps no user from
/// anything. Method: silent crowds at the gateway, the members and the nodes; a user registers, puts and
/// gets meanwhile.
#[test]
fn crowds_at_every_door_keep_no_user_out() {
    let cluster = Cluster::start().unwrap();
    let work = cluster.work_dir().unwrap();
    let file = work.join("file");
    fs::write(&file, vec![7; 3 << 20]).unwrap();
    let status: Value =
        serde_json::from_str(&cluster.coffer("alice", &["status", "--json"]).unwrap()).unwrap();
    let of = |what: &str| {
        let all = status[what].as_array().unwrap();
        all.iter().map(|it| it["address"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let doors = [vec![cluster.address.clone()], of("members"), of("nodes")].concat();
    let names = cluster.processes().unwrap();
    let before: Vec<u64> = names.iter().map(|name| cluster.peak_memory(name).unwrap()).collect();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mut crowds = Vec::new();
    for door in &doors {
        let from = Ipv4Addr::new(127, 0, 0, 2);
        crowds.push(runtime.block_on(silent(door.parse().unwrap(), from)));
    }
    cluster.coffer("alice", &["register", "alice"]).unwrap();
    cluster.coffer("alice", &["put", file.to_str().unwrap(), "/alice/file"]).unwrap();
    let copy = work.join("copy");
    cluster.coffer("alice", &["get", "/alice/file", copy.to_str().unwrap()]).unwrap();
    assert!(fs::read(&copy).unwrap() == fs::read(&file).unwrap());
    for (name, before) in names.iter().zip(before) {
        let grown = cluster.peak_memory(name).unwrap() - before;
        // What a user's own calls take is in it.
        assert!(grown < 256 << 20, "{name} has grown by {grown} bytes");
    }
    drop(crowds);
    cluster.coffer("alice", &["ls", "/alice"]).unwrap();
}
