//! More connections than there is room for.

use std::fs;
use std::net::Ipv4Addr;
use std::sync::Arc;

use coffer_service::health::PLAIN_CONNECTIONS_MAX;
use futures_util::future::join_all;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

use super::raw::*;
use super::*;

/// Connections to open at most; fewer where the system does not let the test have so many.
const CROWD: usize = 10_000;
/// Connecting faster than the server accepts would only test the queue of the system.
const AT_ONCE: usize = 100;

/// So many that client and server, both in this process, find descriptors, and some are left.
fn crowd() -> usize {
    let descriptors = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let descriptors = descriptors.map_or(usize::MAX, |it| usize::try_from(it).unwrap());
    CROWD.min(descriptors.saturating_sub(200) / 2)
}

fn resident_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches("kB").trim().parse::<u64>().unwrap() * 1024
}

/// Connections that say nothing, each from the address of its number.
async fn silent(server: &Running, count: usize, from: fn(usize) -> Ipv4Addr) -> Vec<TcpStream> {
    let mut streams = Vec::with_capacity(count);
    while streams.len() < count {
        let wave = (streams.len()..count).take(AT_ONCE).map(|number| async move {
            let socket = TcpSocket::new_v4().unwrap();
            socket.bind((from(number), 0).into()).unwrap();
            timeout(LONG, socket.connect(server.addr)).await.unwrap().unwrap()
        });
        let wave = join_all(wave).await;
        streams.extend(wave);
    }
    streams
}

/// Goal: no address keeps others out. Method: a crowd from one address; the server keeps its share and
/// closes the rest at once, and clients from elsewhere come in and are served.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_from_one_address_keeps_nobody_out() {
    let standard = ServerLimits::standard();
    let limits = ServerLimits { handshake_timeout: LONG * 2, ..standard };
    let (server, tls) = open_door(limits).await;
    let before = server.channel(Arc::clone(&tls));
    assert_eq!(check(before.clone()).await.unwrap(), SERVING);
    let crowd = crowd();
    assert!(crowd > 2 * limits.connections_per_address_max, "too few descriptors to test anything");
    let memory = resident_bytes();
    let mut streams = silent(&server, crowd, |_| Ipv4Addr::new(127, 0, 0, 2)).await;

    // Those from elsewhere, old and new.
    assert_eq!(check(before).await.unwrap(), SERVING);
    assert_eq!(check(server.channel(Arc::clone(&tls))).await.unwrap(), SERVING);
    let surplus = u64::try_from(crowd - limits.connections_per_address_max).unwrap();
    assert_eq!(server.stats.connections_refused.load(Ordering::Relaxed), surplus);
    let grown = resident_bytes().saturating_sub(memory);
    assert!(grown < 64 << 20, "{crowd} connections cost {grown} bytes");
    // The surplus is told at once; the first ones are still waited for.
    let last = streams.last_mut().unwrap();
    let end = timeout(LONG, last.read(&mut [0])).await.unwrap();
    assert!(matches!(end, Ok(0) | Err(_)));
    assert_eq!(server.handshakes_failed(), 0);
}

/// Goal: a server that is full goes on serving whom it has, and has room again once the silent ones
/// are given up. Method: a crowd from many addresses takes every connection there is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_from_everywhere_goes_away_again() {
    let limits = ServerLimits {
        connections_max: 1000,
        handshake_timeout: Duration::from_secs(5),
        ..ServerLimits::standard()
    };
    let (server, tls) = open_door(limits).await;
    let before = server.channel(Arc::clone(&tls));
    assert_eq!(check(before.clone()).await.unwrap(), SERVING);
    let from = |number| Ipv4Addr::new(127, 0, 1, u8::try_from(number % 200).unwrap() + 1);
    let mut streams = Vec::new();
    let shut_out = async {
        // On a machine so slow that the first ones are given up before the last have come, more come.
        loop {
            streams.extend(silent(&server, limits.connections_max, from).await);
            if check(server.channel(Arc::clone(&tls))).await.is_err() {
                break;
            }
        }
    };
    timeout(LONG, shut_out).await.expect("the server is full");
    assert!(server.stats.connections_refused.load(Ordering::Relaxed) > 0);
    assert_eq!(check(before.clone()).await.unwrap(), SERVING);

    let let_in = async {
        while check(server.channel(Arc::clone(&tls))).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    timeout(LONG, let_in).await.unwrap();
    assert_eq!(check(before).await.unwrap(), SERVING);
    drop(streams);
}

/// Goal: connections that are ready and idle are bounded and come back. Method: as many as one address
/// may have, all with TLS and HTTP/2; then one more; then one of them goes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ready_connections_are_bounded_and_come_back() {
    let limits = ServerLimits { connections_per_address_max: 200, ..ServerLimits::standard() };
    let (server, tls) = open_door(limits).await;
    let memory = resident_bytes();
    let mut raw = Vec::new();
    for _ in 0..limits.connections_per_address_max {
        raw.push(Raw::open(&server, &tls).await);
    }
    let grown = resident_bytes().saturating_sub(memory);
    assert!(grown < 64 << 20, "{} connections cost {grown} bytes", raw.len());
    check_refused(server.channel(Arc::clone(&tls))).await;
    raw.pop();
    let let_in = async {
        while check(server.channel(Arc::clone(&tls))).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    timeout(LONG, let_in).await.unwrap();
}

/// Goal: the plain port cannot be taken from probes for long, nor take descriptors from the rest of
/// the process. Method: silent connections up to its bound, one that is refused, and a probe that gets
/// in once the silent ones are too old.
#[tokio::test]
async fn the_plain_port_is_bounded() {
    let health = Health::new().await;
    health.set_serving().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let age = Duration::from_secs(1);
    let stop = CancellationToken::new();
    let serving = health.clone();
    tokio::spawn(async move { serving.serve_plain_with(listener, stop, age).await });
    let mut silent = Vec::new();
    for number in 0..PLAIN_CONNECTIONS_MAX {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        // Silent at once, within the head of HTTP/1, and after the preface of HTTP/2.
        let said = [&b""[..], b"GET /metrics HTTP/1.1\r\nHost", PREFACE][number % 3];
        stream.write_all(said).await.unwrap();
        silent.push(stream);
    }
    let mut surplus = TcpStream::connect(addr).await.unwrap();
    let end = timeout(LONG, surplus.read(&mut [0])).await.unwrap();
    assert!(matches!(end, Ok(0) | Err(_)));
    for mut stream in silent {
        let mut rest = Vec::new();
        let _ = timeout(LONG, stream.read_to_end(&mut rest)).await.expect("it is closed");
    }
    let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{addr}")).unwrap();
    assert_eq!(check(endpoint.connect_lazy().into()).await.unwrap(), SERVING);
}
