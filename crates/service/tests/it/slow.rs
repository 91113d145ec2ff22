//! Clients that stop halfway: each kind of waiting has an end, and others do not notice.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::routing::post;
use bytes::Bytes;
use coffer_service::pace::hold_until_taken;
use coffer_service::status::{is_retryable, reason_of};
use futures_util::stream::FuturesUnordered;
use h2::client::SendRequest;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};
use tokio_stream::StreamExt;

use super::raw::*;
use super::*;

/// Short enough for a test, and long for a loopback connection.
const SHORT: Duration = Duration::from_millis(300);
/// What the large answer weighs.
const LARGE_BYTES: usize = 1 << 20;

/// How long a connection lives on which `send` is all that is ever said.
async fn lives(server: &Running, tls: &Arc<ClientConfig>, send: &[u8]) -> Duration {
    let began = Instant::now();
    let mut stream = tls_to(server, tls).await;
    stream.write_all(send).await.unwrap();
    stream.flush().await.unwrap();
    let mut rest = Vec::new();
    // Whether it ends well or not does not matter: it ends.
    let _ = timeout(LONG, stream.read_to_end(&mut rest)).await.expect("it is closed");
    began.elapsed()
}

/// Goal: a few clients that are silent in the middle of the TLS handshake keep nobody out. Method: one
/// handshake at a time; many clients stop before, in and after their first message, and one that does
/// not is served long before their timeout.
#[tokio::test]
async fn silence_in_a_handshake_keeps_nobody_out() {
    let limits =
        ServerLimits { handshakes_max: 1, handshake_timeout: LONG, ..ServerLimits::standard() };
    let (server, tls) = open_door(limits).await;
    let name = ServerName::try_from("localhost").unwrap();
    let mut silent = Vec::new();
    for round in 0..8 {
        let mut hello = Vec::new();
        let mut session = rustls::ClientConnection::new(Arc::clone(&tls), name.clone()).unwrap();
        session.write_tls(&mut hello).unwrap();
        // Two of them say all that is needed for the server to do its costly part.
        let cuts = if round < 2 { vec![0, 3, 40, hello.len()] } else { vec![0, 3, 40] };
        for cut in cuts {
            let mut stream = TcpStream::connect(server.addr).await.unwrap();
            stream.write_all(&hello[..cut]).await.unwrap();
            silent.push(stream);
        }
    }
    let began = Instant::now();
    let options = ChannelOptions { connect_timeout: LONG, ..ChannelOptions::standard() };
    assert_eq!(check(server.channel_with(Arc::clone(&tls), &options)).await.unwrap(), SERVING);
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert_eq!(server.handshakes_failed(), 0, "the silent ones are still waited for");
}

#[tokio::test]
async fn whoever_does_not_speak_http2_in_time_is_closed() {
    let limits = ServerLimits { handshake_timeout: SHORT, ..ServerLimits::standard() };
    let (server, tls) = open_door(limits).await;
    let other = server.channel(Arc::clone(&tls));
    assert_eq!(check(other.clone()).await.unwrap(), SERVING);
    for said in [&b""[..], b"P", &PREFACE[..23]] {
        assert!(lives(&server, &tls, said).await < LONG / 2);
    }
    assert_eq!(server.stats.connections_stuck.load(Ordering::Relaxed), 3);
    // What is wrong is closed without waiting.
    lives(&server, &tls, b"GET / HTTP/1.1\r\nhost: here\r\n\r\n").await;
    assert_eq!(server.stats.connections_stuck.load(Ordering::Relaxed), 3);
    assert_eq!(check(other).await.unwrap(), SERVING);
}

/// Who is silent in the middle of a frame or of headers cannot answer a ping, for nothing may come in
/// between; who has said nothing but the preface does not.
#[tokio::test]
async fn whoever_does_not_answer_is_closed() {
    let limits = ServerLimits {
        keepalive_every: SHORT,
        keepalive_timeout: SHORT,
        ..ServerLimits::standard()
    };
    let (server, tls) = open_door(limits).await;
    let other = server.channel(Arc::clone(&tls));
    assert_eq!(check(other.clone()).await.unwrap(), SERVING);
    let begun = [PREFACE, &frame(SETTINGS, 0, 0, &[])].concat();
    let head = frame(HEADERS, END_HEADERS, 1, &call_headers());
    let rows = [
        ("no settings", PREFACE.to_vec()),
        ("half a frame", [&begun[..], &[0, 0]].concat()),
        ("half the headers", [&begun[..], &head[..head.len() - 5]].concat()),
        ("headers to be continued", [&begun[..], &frame(HEADERS, 0, 1, &call_headers())].concat()),
        ("half a body", [&begun[..], &head, &frame(DATA, 0, 1, &[0, 0, 0, 0, 9, 1])].concat()),
    ];
    for (what, said) in rows {
        assert!(lives(&server, &tls, &said).await < LONG / 2, "{what}");
    }
    assert_eq!(check(other).await.unwrap(), SERVING);
}

/// Goal: connections nobody uses are given back; those on which an answer may still come are not.
/// Method: both answer the server's pings. The watch is the older of the two.
#[tokio::test]
async fn whoever_is_idle_is_closed_and_whoever_watches_is_not() {
    let limits = ServerLimits { idle_timeout: SHORT, ..ServerLimits::standard() };
    let (server, tls) = open_door(limits).await;
    let watching = server.channel(Arc::clone(&tls));
    let everything = HealthCheckRequest { service: String::new() };
    let mut watch = HealthClient::new(watching).watch(everything).await.unwrap().into_inner();
    assert_eq!(watch.next().await.unwrap().unwrap().status, SERVING);

    let mut idle = h2_to(&server, &tls, 1 << 20).await;
    assert_eq!(call_of(&mut idle.requests, "/unheard-of").await.unwrap().status(), 200);
    timeout(LONG, idle.connection).await.expect("it is closed").unwrap().unwrap();
    assert_eq!(server.stats.connections_idle.load(Ordering::Relaxed), 1);

    server.health.set_not_serving().await;
    assert_eq!(watch.next().await.unwrap().unwrap().status, NOT_SERVING);
    // A channel that lost its connection makes another; only a call that meets the end itself fails, and
    // may be made again.
    let channel = server.channel(Arc::clone(&tls));
    while server.stats.connections_ready.load(Ordering::Relaxed) < 4 {
        match check(channel.clone()).await {
            Ok(told) => assert_eq!(told, NOT_SERVING),
            Err(met) => {
                assert!(is_retryable(&met), "{met:?}");
                continue;
            }
        }
        let idle = server.stats.connections_idle.load(Ordering::Relaxed);
        let closed = async {
            while server.stats.connections_idle.load(Ordering::Relaxed) == idle {
                tokio::task::yield_now().await;
            }
        };
        timeout(LONG, closed).await.unwrap();
    }
}

/// A connection of the library's, without a library's manners.
struct H2 {
    requests: SendRequest<Bytes>,
    connection: tokio::task::JoinHandle<Result<(), h2::Error>>,
}

async fn h2_to(server: &Running, tls: &Arc<ClientConfig>, window: u32) -> H2 {
    let (requests, connection) = h2::client::Builder::new()
        .initial_window_size(window)
        .initial_connection_window_size(1 << 30)
        .handshake(tls_to(server, tls).await)
        .await
        .unwrap();
    H2 { requests, connection: tokio::spawn(connection) }
}

fn to(path: &str) -> http::request::Builder {
    http::Request::builder()
        .method("POST")
        .uri(format!("https://localhost{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
}

async fn call_of(
    requests: &mut SendRequest<Bytes>,
    path: &str,
) -> Result<http::Response<h2::RecvStream>, h2::Error> {
    let mut ready = requests.clone().ready().await?;
    let (answer, _) = ready.send_request(to(path).body(()).unwrap(), true)?;
    timeout(LONG, answer).await.expect("it answers")
}

/// A server with an answer of `LARGE_BYTES` for which it has room once, and a place that takes all.
async fn with_large(limits: ServerLimits) -> (Running, Arc<ClientConfig>, Arc<Semaphore>) {
    let authority = Authority::new();
    let tls = authority.tls(&peer("keeper"), ClientAuth::None);
    let client = authority.tls(&peer("worker"), ClientAuth::None).client();
    let room = Arc::new(Semaphore::new(1));
    let large = {
        let room = Arc::clone(&room);
        move || async move {
            let permit = room.acquire_owned().await.unwrap();
            let mut answer = http::Response::new(Body::from(vec![7; LARGE_BYTES]));
            hold_until_taken(answer.extensions_mut(), permit);
            answer
        }
    };
    let add = |routes: Router| {
        routes.route("/large", post(large)).route(
            "/take",
            post(async |body: Body| match axum::body::to_bytes(body, usize::MAX).await {
                Ok(bytes) => bytes.len().to_string(),
                Err(error) => error.into_inner().to_string(),
            }),
        )
    };
    (Running::start_with(tls, limits, add).await, client, room)
}

/// Goal: an answer that is not taken is not kept for ever, and what it holds comes back. Method: the
/// client answers pings and takes the head, and never opens its window.
#[tokio::test]
async fn whoever_leaves_an_answer_lying_is_closed() {
    let limits = ServerLimits { answer_stall_timeout: SHORT, ..ServerLimits::standard() };
    let (server, tls, room) = with_large(limits).await;
    let other = server.channel(Arc::clone(&tls));
    for window in [0, 1, 65_535] {
        let mut slow = h2_to(&server, &tls, window).await;
        let answer = call_of(&mut slow.requests, "/large").await.unwrap();
        assert_eq!(answer.status(), 200);
        assert_eq!(room.available_permits(), 0, "window {window}: the answer holds its room");
        assert_eq!(check(other.clone()).await.unwrap(), SERVING);
        let closed = timeout(LONG, slow.connection).await.expect("it is closed").unwrap();
        drop((closed, answer));
        drop(timeout(LONG, room.acquire()).await.expect("the room comes back").unwrap());
        assert_eq!(check(other.clone()).await.unwrap(), SERVING);
    }
    assert_eq!(server.stats.connections_stuck.load(Ordering::Relaxed), 3);
}

/// As long as bytes flow, an answer may take longer than the stall timeout; and its room comes back
/// with its last bytes, not before.
#[tokio::test]
async fn whoever_takes_an_answer_slowly_gets_it() {
    let limits = ServerLimits { answer_stall_timeout: SHORT, ..ServerLimits::standard() };
    let (server, tls, room) = with_large(limits).await;
    let mut slow = h2_to(&server, &tls, 65_535).await;
    let mut body = call_of(&mut slow.requests, "/large").await.unwrap().into_body();
    let began = Instant::now();
    let mut taken = 0;
    while let Some(part) = timeout(LONG, body.data()).await.unwrap() {
        let part = part.unwrap().len();
        taken += part;
        if taken <= LARGE_BYTES / 2 {
            assert_eq!(room.available_permits(), 0);
        }
        // Less than the limit for each part, and many limits in all.
        tokio::time::sleep(SHORT / 8).await;
        body.flow_control().release_capacity(part).unwrap();
    }
    assert_eq!(taken, LARGE_BYTES);
    assert!(began.elapsed() > SHORT * 2, "{:?}", began.elapsed());
    drop(timeout(LONG, room.acquire()).await.expect("the room comes back").unwrap());
    assert_eq!(server.stats.connections_stuck.load(Ordering::Relaxed), 0);
}

/// Goal: half a message is not waited for for ever. Method: the head of a message that never ends, on
/// a connection that answers pings; a call beside it on the same connection is not disturbed.
#[tokio::test]
async fn whoever_stops_within_a_message_is_told_so() {
    let limits = ServerLimits { arrival_timeout: SHORT, ..ServerLimits::standard() };
    let (server, tls) = open_door(limits).await;
    let mut client = h2_to(&server, &tls, 1 << 20).await;
    let request = to("/grpc.health.v1.Health/Check").body(()).unwrap();
    for said in [&[][..], &[0, 0, 0], &[0, 0, 0, 0, 9, 1, 1]] {
        let (answer, mut body) = client.requests.send_request(request.clone(), false).unwrap();
        body.send_data(Bytes::copy_from_slice(said), false).unwrap();
        let answer = timeout(LONG, answer).await.expect("it answers").unwrap();
        let status = Status::from_header_map(answer.headers()).unwrap();
        assert_eq!(status.code(), Code::DeadlineExceeded, "{said:?}: {status:?}");
        assert_eq!(reason_of(&status).unwrap().code, "TOO_SLOW");
        assert!(is_retryable(&status));
    }
    assert_eq!(call_of(&mut client.requests, "/unheard-of").await.unwrap().status(), 200);
}

/// Goal: messages that are begun and not ended take a bounded amount of memory, on one connection and
/// on all. Method: halves of messages up to the bound and one more; it is refused with a hint, and
/// room comes back with the others.
#[tokio::test]
async fn unfinished_messages_are_bounded() {
    const HALF: usize = 400 << 10;
    // The bounds of a connection and of all, and how many messages are begun on each connection: one
    // more than there is room for.
    for (of_one, of_all, begun) in
        [(2 * HALF, 9 * HALF, &[3][..]), (9 * HALF, 2 * HALF, &[3]), (2 * HALF, 3 * HALF, &[2, 2])]
    {
        let limits = ServerLimits {
            unfinished_bytes_per_connection_max: of_one,
            unfinished_bytes_max: of_all,
            ..ServerLimits::standard()
        };
        let (server, tls, _) = with_large(limits).await;
        let (mut answers, mut bodies) = (FuturesUnordered::new(), Vec::new());
        let mut clients = Vec::new();
        for &count in begun {
            let mut client = h2_to(&server, &tls, 1 << 20).await;
            for _ in 0..count {
                let (answer, mut body) = begin(&mut client).await;
                body.send_data(Bytes::from(vec![1; HALF]), false).unwrap();
                answers.push(told(answer));
                bodies.push(body);
            }
            clients.push(client);
        }
        let refused = timeout(LONG, answers.next()).await.expect("one is too much").unwrap();
        assert!(refused.contains("too many messages"), "{refused}");
        for body in &mut bodies {
            // The refused one does not listen any more.
            let _ = body.send_data(Bytes::new(), true);
        }
        while let Some(told) = timeout(LONG, answers.next()).await.unwrap() {
            assert_eq!(told, HALF.to_string());
        }
        // All is given back.
        let (answer, mut body) = begin(&mut clients[0]).await;
        body.send_data(Bytes::from(vec![1; 2 * HALF]), true).unwrap();
        assert_eq!(told(answer).await, (2 * HALF).to_string());
    }
}

async fn begin(client: &mut H2) -> (h2::client::ResponseFuture, h2::SendStream<Bytes>) {
    let mut ready = timeout(LONG, client.requests.clone().ready()).await.unwrap().unwrap();
    ready.send_request(to("/take").body(()).unwrap(), false).unwrap()
}

async fn told(answer: h2::client::ResponseFuture) -> String {
    let mut body = timeout(LONG, answer).await.unwrap().unwrap().into_body();
    let text = timeout(LONG, body.data()).await.unwrap().unwrap().unwrap();
    String::from_utf8(text.to_vec()).unwrap()
}
