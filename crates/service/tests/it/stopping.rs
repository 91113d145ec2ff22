//! Stopping a server: what is under way ends, and what never ends is cut off.

use std::error::Error;

use coffer_service::status::is_retryable;
use tokio_stream::StreamExt;
use tokio_util::task::TaskTracker;

use super::*;

async fn start(drain_timeout: Duration) -> (Running, Channel) {
    let authority = Authority::new();
    let limits = ServerLimits { drain_timeout, ..ServerLimits::standard() };
    let server = Running::start(authority.tls(&peer("keeper"), ClientAuth::Required), limits).await;
    let channel = server.channel(authority.tls(&peer("worker"), ClientAuth::Required));
    (server, channel)
}

#[tokio::test]
async fn an_idle_server_stops_at_once_and_leaves_its_port() {
    let (server, channel) = start(LONG).await;
    assert_eq!(check(channel.clone()).await.unwrap(), SERVING);
    server.stop.cancel();
    tokio::time::timeout(LONG / 2, server.task).await.unwrap().unwrap().unwrap();
    let refused = check_refused(channel).await;
    assert!(is_retryable(&refused), "{refused:?}");
    TcpListener::bind(server.addr).await.unwrap();
}

/// Goal: a stream that never ends cannot keep a process from stopping. Method: an open watch on
/// health; the server is told to stop, and the stream breaks with something worth trying again.
#[tokio::test]
async fn a_stream_that_never_ends_is_cut_off() {
    let (server, channel) = start(Duration::from_millis(50)).await;
    let request = HealthCheckRequest { service: String::new() };
    let mut watch = HealthClient::new(channel).watch(request).await.unwrap().into_inner();
    assert_eq!(watch.next().await.unwrap().unwrap().status, SERVING);
    server.stop.cancel();
    tokio::time::timeout(LONG, server.task).await.unwrap().unwrap().unwrap();
    let broken = tokio::time::timeout(LONG, watch.next()).await.unwrap().unwrap().unwrap_err();
    assert!(is_retryable(&broken), "{broken:?}, source {:?}", broken.source());
}

#[tokio::test]
async fn what_is_under_way_ends_before_the_server_does() {
    let (server, channel) = start(LONG).await;
    let request = HealthCheckRequest { service: String::new() };
    let mut watch = HealthClient::new(channel).watch(request).await.unwrap().into_inner();
    assert_eq!(watch.next().await.unwrap().unwrap().status, SERVING);
    server.stop.cancel();
    server.health.set_not_serving().await;
    assert_eq!(watch.next().await.unwrap().unwrap().status, NOT_SERVING);
    assert!(!server.task.is_finished());
    drop(watch);
    tokio::time::timeout(LONG / 2, server.task).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn dropping_the_server_closes_its_connections() {
    let (server, channel) = start(LONG).await;
    let request = HealthCheckRequest { service: String::new() };
    let mut watch = HealthClient::new(channel).watch(request).await.unwrap().into_inner();
    assert_eq!(watch.next().await.unwrap().unwrap().status, SERVING);
    server.task.abort();
    let broken = tokio::time::timeout(LONG, watch.next()).await.unwrap().unwrap().unwrap_err();
    assert!(is_retryable(&broken), "{broken:?}");
}

/// Many clients at once, each with a connection of its own: nobody is lost in the handshakes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rush_of_connections_is_served() {
    let authority = Authority::new();
    let limits = ServerLimits { handshakes_max: 2, ..ServerLimits::standard() };
    let server = Running::start(authority.tls(&peer("keeper"), ClientAuth::Required), limits).await;
    let tls = authority.tls(&peer("worker"), ClientAuth::Required);
    let options = ChannelOptions { connect_timeout: LONG, ..ChannelOptions::standard() };
    let clients = TaskTracker::new();
    for _ in 0..32 {
        let channel = server.channel_with(&tls, &options);
        clients.spawn(async move { assert_eq!(check(channel).await.unwrap(), SERVING) });
    }
    clients.close();
    clients.wait().await;
    assert_eq!(server.stats.connections_ready.load(Ordering::Relaxed), 32);
}
