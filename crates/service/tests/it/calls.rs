//! Calls that are not what they should be: each gets a status, and the next call is served.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request};
use rustls::ClientConfig;
use tokio::time::timeout;

use super::raw::*;
use super::*;

/// A request as it should be, to be spoiled.
fn call() -> http::request::Builder {
    Request::builder()
        .method("POST")
        .uri("https://localhost/grpc.health.v1.Health/Check")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
}

/// A message in its frame.
fn message(compressed: u8, bytes: &[u8]) -> Vec<u8> {
    let length = u32::try_from(bytes.len()).unwrap().to_be_bytes();
    [&[compressed], &length[..], bytes].concat()
}

/// What the server says to a call: the HTTP status, and gRPC's.
async fn answer(
    server: &Running,
    tls: &Arc<ClientConfig>,
    request: http::request::Builder,
    body: Vec<u8>,
) -> (u16, Option<Code>) {
    let (requests, connection) = h2::client::handshake(tls_to(server, tls).await).await.unwrap();
    let connection = tokio::spawn(connection);
    let told = async {
        let mut requests = requests.ready().await?;
        let (answer, mut sent) = requests.send_request(request.body(()).unwrap(), false)?;
        // It may have been answered before it was sent whole.
        let _ = sent.send_data(Bytes::from(body), true);
        let (head, mut body) = answer.await?.into_parts();
        while let Some(part) = body.data().await {
            body.flow_control().release_capacity(part?.len())?;
        }
        let trailers = body.trailers().await?.unwrap_or_default();
        let told = |of: &HeaderMap| Status::from_header_map(of).map(|status| status.code());
        Result::<_, h2::Error>::Ok((head.status.as_u16(), told(&head.headers).or(told(&trailers))))
    };
    let told = timeout(LONG, told).await.expect("it answers").expect("with an answer");
    connection.abort();
    told
}

#[tokio::test]
async fn each_spoiled_call_gets_its_status() {
    let (server, tls) = open_door(ServerLimits::standard()).await;
    let name = [0x0a, 0, 0xf8, 0x07, 1, 0x82, 0x40, 3, 1, 2, 3];
    let mut long = vec![0x0a, 0xff, 0xff, 0xff, 0x01];
    long.resize(5 << 20, b'x');
    let gzip = || call().header("grpc-encoding", "gzip");
    let rows = [
        ("as it should be", call(), message(0, &[]), (200, Some(Code::Ok))),
        ("fields nobody knows yet", call(), message(0, &name), (200, Some(Code::Ok))),
        ("no message", call(), Vec::new(), (200, Some(Code::Internal))),
        ("rubbish", call(), message(0, &[0xff; 40]), (200, Some(Code::Internal))),
        (
            "a name that is no text",
            call(),
            message(0, &[0x0a, 1, 0xff]),
            (200, Some(Code::Internal)),
        ),
        (
            "half a message",
            call(),
            message(0, &[0; 40])[..20].to_vec(),
            (200, Some(Code::Internal)),
        ),
        ("half a frame head", call(), vec![0, 0], (200, Some(Code::Internal))),
        ("longer than any", call(), message(0, &long), (200, Some(Code::OutOfRange))),
        ("said to be 4 GiB", call(), vec![0, 255, 255, 255, 255], (200, Some(Code::OutOfRange))),
        ("gzip", gzip(), message(1, &[0x1f, 0x8b, 8]), (200, Some(Code::Unimplemented))),
        (
            "zstd",
            call().header("grpc-encoding", "zstd"),
            message(1, &[0x28, 0xb5, 0x2f, 0xfd]),
            (200, Some(Code::Unimplemented)),
        ),
        ("gzip, said to be none", call(), message(1, &[0x1f, 0x8b]), (200, Some(Code::Internal))),
        ("compressed how nobody knows", call(), message(9, &[]), (200, Some(Code::Internal))),
        (
            "no such method",
            call().uri("https://localhost/grpc.health.v1.Health/Cure"),
            message(0, &[]),
            (200, Some(Code::Unimplemented)),
        ),
        (
            "no such service",
            call().uri("https://localhost/no.such.Service/Check"),
            message(0, &[]),
            (200, Some(Code::Unimplemented)),
        ),
        (
            "a path that is none",
            call().uri("https://localhost/%2e%2e/%00"),
            message(0, &[]),
            (200, Some(Code::Unimplemented)),
        ),
    ];
    for (what, request, body, expected) in rows {
        assert_eq!(answer(&server, &tls, request, body).await, expected, "{what}");
        assert_eq!(check(server.channel(Arc::clone(&tls))).await.unwrap(), SERVING, "{what}");
    }
    let other = |kind: &'static str| {
        let mut request = call();
        request.headers_mut().unwrap().insert("content-type", HeaderValue::from_static(kind));
        request
    };
    for (what, request, expected) in [
        ("GET", call().method("GET"), 405),
        ("CONNECT in disguise", call().method("OPTIONS"), 405),
        ("JSON", other("application/json"), 415),
        ("almost", other("application/grpcs"), 415),
        ("for browsers", other("application/grpc-web+proto"), 415),
        ("with its encoding", other("application/grpc+proto"), 200),
        ("with a parameter", other("application/grpc;v=1"), 200),
    ] {
        let told = answer(&server, &tls, request, message(0, &[])).await;
        assert_eq!(told, (expected, (expected == 200).then_some(Code::Ok)), "{what}");
    }
    let bare =
        Request::builder().method("POST").uri("https://localhost/grpc.health.v1.Health/Check");
    assert_eq!(answer(&server, &tls, bare, message(0, &[])).await, (415, None));
}
