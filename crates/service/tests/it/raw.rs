//! A client that keeps to no rules: TLS, and whatever frames one likes (RFC 9113).

use std::sync::Arc;

use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf, split};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::*;

pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const PRIORITY: u8 = 2;
pub(crate) const RESET: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const GO_AWAY: u8 = 7;
pub(crate) const WINDOW: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;
pub(crate) const UNHEARD_OF: u8 = 0xbe;

pub(crate) const ACK: u8 = 1;
pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;

/// A server that asks nobody for a certificate, and the TLS of its clients.
pub(crate) async fn open_door(limits: ServerLimits) -> (Running, Arc<ClientConfig>) {
    let authority = Authority::new();
    let tls = authority.tls(&peer("keeper"), ClientAuth::None);
    let client = authority.tls(&peer("worker"), ClientAuth::None).client();
    (Running::start(tls, limits).await, client)
}

pub(crate) async fn tls_to(server: &Running, tls: &Arc<ClientConfig>) -> TlsStream<TcpStream> {
    let stream = TcpStream::connect(server.addr).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    TlsConnector::from(Arc::clone(tls)).connect(name, stream).await.unwrap()
}

pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], kind, flags];
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// Headers in the plainest form HPACK has: nothing indexed, nothing compressed.
pub(crate) fn headers(of: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in of {
        block.push(0);
        for text in [name, value] {
            match text.len().checked_sub(127) {
                None => block.push(u8::try_from(text.len()).unwrap()),
                Some(mut rest) => {
                    block.push(127);
                    while rest >= 128 {
                        block.push(u8::try_from(rest % 128 + 128).unwrap());
                        rest /= 128;
                    }
                    block.push(u8::try_from(rest).unwrap());
                }
            }
            block.extend(text.as_bytes());
        }
    }
    block
}

/// What every call of a gRPC method begins with.
pub(crate) fn call_headers() -> Vec<u8> {
    headers(&[
        (":method", "POST"),
        (":scheme", "https"),
        (":authority", "localhost"),
        (":path", "/grpc.health.v1.Health/Check"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ])
}

/// A connection on which HTTP/2 has begun.
pub(crate) struct Raw {
    pub(crate) reader: RawReader,
    pub(crate) writer: WriteHalf<TlsStream<TcpStream>>,
}

pub(crate) struct RawReader(ReadHalf<TlsStream<TcpStream>>);

impl Raw {
    pub(crate) async fn open(server: &Running, tls: &Arc<ClientConfig>) -> Self {
        let (reader, writer) = split(tls_to(server, tls).await);
        let mut raw = Self { reader: RawReader(reader), writer };
        raw.send(PREFACE).await.unwrap();
        raw.send(&frame(SETTINGS, 0, 0, &[])).await.unwrap();
        raw
    }

    pub(crate) async fn send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.writer.write_all(bytes).await?;
        self.writer.flush().await
    }
}

impl RawReader {
    /// Kind, flags and payload of the next frame; nothing once the connection is gone.
    pub(crate) async fn next(&mut self) -> Option<(u8, u8, Vec<u8>)> {
        let mut head = [0; 9];
        self.0.read_exact(&mut head).await.ok()?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; usize::try_from(length).unwrap()];
        self.0.read_exact(&mut payload).await.ok()?;
        Some((head[3], head[4], payload))
    }

    /// Reads until the server has closed; gives the code it said goodbye with, if it did.
    pub(crate) async fn until_closed(mut self) -> Option<u32> {
        let mut code = None;
        while let Some((kind, _, payload)) = self.next().await {
            if kind == GO_AWAY {
                code = payload.get(4..8).map(|code| u32::from_be_bytes(code.try_into().unwrap()));
            }
        }
        code
    }
}
