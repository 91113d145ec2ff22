//! Frames that are sent to do harm: the connection is closed, the process lives, others are served.

use tokio::time::timeout;

use super::raw::*;
use super::*;

/// What is sent over and over, and how the server says goodbye.
struct Flood {
    name: &'static str,
    /// Sent once before.
    first: Vec<u8>,
    /// The frame of the given turn; stream numbers of clients are odd.
    each: fn(u32) -> Vec<u8>,
    /// Of HTTP/2's error codes; nothing where the connection just ends.
    goodbye: Option<u32>,
}

const PROTOCOL_ERROR: u32 = 1;
const ENHANCE_YOUR_CALM: u32 = 11;

/// Goal: no flood costs more than a bounded number of frames. Method: each is sent until the server
/// closes, far beyond any bound; meanwhile and afterwards another client is served.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_ends_with_its_connection() {
    let limits = ServerLimits { useless_bytes_max: 256 << 10, ..ServerLimits::standard() };
    let (server, tls) = open_door(limits).await;
    let other = server.channel(Arc::clone(&tls));
    assert_eq!(check(other.clone()).await.unwrap(), SERVING);

    let call = || frame(HEADERS, END_HEADERS, 1, &call_headers());
    let floods = [
        Flood {
            name: "pings",
            first: Vec::new(),
            each: |turn| frame(PING, 0, 0, &[turn.to_be_bytes(), [0; 4]].concat()),
            goodbye: None,
        },
        Flood {
            name: "answers to pings nobody sent",
            first: Vec::new(),
            each: |_| frame(PING, ACK, 0, &[7; 8]),
            goodbye: None,
        },
        Flood {
            name: "settings",
            first: Vec::new(),
            each: |_| frame(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 100]),
            goodbye: None,
        },
        Flood {
            name: "priorities of streams that are not there",
            first: Vec::new(),
            each: |turn| frame(PRIORITY, 0, turn * 2 + 1, &[0, 0, 0, 0, 1]),
            goodbye: None,
        },
        Flood {
            name: "frames of a kind nobody knows",
            first: Vec::new(),
            each: |_| frame(UNHEARD_OF, 0, 0, &[0; 64]),
            goodbye: None,
        },
        Flood {
            name: "empty data",
            first: call(),
            each: |_| frame(DATA, 0, 1, &[]),
            goodbye: Some(ENHANCE_YOUR_CALM),
        },
        Flood {
            name: "larger and larger windows",
            first: call(),
            each: |_| frame(WINDOW, 0, 1, &[0, 0, 0, 1]),
            goodbye: None,
        },
        Flood {
            name: "requests that are reset at once (CVE-2023-44487)",
            first: Vec::new(),
            each: |turn| {
                let stream = turn * 2 + 1;
                let begin = frame(HEADERS, END_HEADERS, stream, &call_headers());
                [begin, frame(RESET, 0, stream, &[0, 0, 0, 8])].concat()
            },
            goodbye: Some(ENHANCE_YOUR_CALM),
        },
        Flood {
            name: "requests that make the server reset them",
            first: Vec::new(),
            each: |turn| {
                let stream = turn * 2 + 1;
                // It promises a body and has none.
                let promise = [call_headers(), headers(&[("content-length", "5")])].concat();
                frame(HEADERS, END_HEADERS | END_STREAM, stream, &promise)
            },
            goodbye: Some(ENHANCE_YOUR_CALM),
        },
        Flood {
            name: "headers without end (CVE-2024-27316)",
            first: frame(HEADERS, 0, 1, &call_headers()),
            each: |_| frame(CONTINUATION, 0, 1, &headers(&[("x", &"y".repeat(100))])),
            goodbye: Some(ENHANCE_YOUR_CALM),
        },
        Flood {
            name: "continuations of nothing",
            first: frame(HEADERS, 0, 1, &call_headers()),
            each: |_| frame(CONTINUATION, 0, 1, &[]),
            goodbye: Some(ENHANCE_YOUR_CALM),
        },
        Flood {
            name: "a push from a client",
            first: Vec::new(),
            each: |_| frame(5, END_HEADERS, 1, &[0, 0, 0, 2]),
            goodbye: Some(PROTOCOL_ERROR),
        },
    ];
    for Flood { name, first, each, goodbye } in floods {
        let Raw { reader, mut writer } = Raw::open(&server, &tls).await;
        let flooding = tokio::spawn(async move {
            use tokio::io::AsyncWriteExt;
            writer.write_all(&first).await?;
            // Tens of MiB of each: far beyond what any bound allows, and what the sockets hold between us.
            for batch in 0..30_000u32 {
                let frames: Vec<u8> = (batch * 100..batch * 100 + 100).flat_map(each).collect();
                writer.write_all(&frames).await?;
                writer.flush().await?;
            }
            std::io::Result::Ok(())
        });
        assert_eq!(check(other.clone()).await.unwrap(), SERVING, "during {name}");
        let said = timeout(LONG, reader.until_closed()).await.expect(name);
        // What was said may get lost on the way: the connection is reset where more was on its way in.
        assert!(said == goodbye || said.is_none(), "{name}: {said:?}");
        let flooded = timeout(LONG, flooding).await.expect(name).unwrap();
        assert!(flooded.is_err(), "{name}: the whole flood was taken");
        assert_eq!(check(other.clone()).await.unwrap(), SERVING, "after {name}");
        assert_eq!(check(server.channel(Arc::clone(&tls))).await.unwrap(), SERVING, "{name}");
    }
    assert!(!server.task.is_finished());
    // Those the library would have answered for ever.
    assert!(server.stats.connections_stuck.load(Ordering::Relaxed) >= 4);
}

/// A client that only reads sends nothing but pings and windows; as long as its requests get on, that
/// is no flood.
#[tokio::test]
async fn what_leads_to_something_is_no_flood() {
    let limits = ServerLimits { useless_bytes_max: 16 << 10, ..ServerLimits::standard() };
    let (server, tls) = open_door(limits).await;
    let mut raw = Raw::open(&server, &tls).await;
    let pings: Vec<u8> = (0..400).flat_map(|_| frame(PING, 0, 0, &[1; 8])).collect();
    for turn in 0..8u32 {
        raw.send(&pings).await.unwrap();
        let stream = turn * 2 + 1;
        let call = frame(HEADERS, END_HEADERS, stream, &call_headers());
        let message = frame(DATA, END_STREAM, stream, &[0; 5]);
        raw.send(&[call, message].concat()).await.unwrap();
        // The answer: head, message, trailers.
        let mut parts = 0;
        while parts < 3 {
            let next = timeout(LONG, raw.reader.next()).await.unwrap();
            let (kind, _, _) = next.expect("it is no flood");
            parts += u32::from(matches!(kind, HEADERS | DATA));
        }
    }
}

/// Headers beyond `HEADER_BYTES_MAX` are refused, each request by itself.
#[tokio::test]
async fn headers_are_bounded() {
    let (server, tls) = open_door(ServerLimits::standard()).await;
    for (bytes, served) in [(16 << 10, true), (40 << 10, false), (1 << 20, false)] {
        let mut client =
            tonic_health::pb::health_client::HealthClient::new(server.channel(Arc::clone(&tls)));
        let mut request = tonic::Request::new(HealthCheckRequest { service: String::new() });
        // In pieces: one value may be smaller than the whole.
        for at in 0..bytes / 4096 {
            let name = format!("x-{at}").parse::<tonic::metadata::AsciiMetadataKey>().unwrap();
            request.metadata_mut().insert(name, "y".repeat(4096).parse().unwrap());
        }
        let answer = timeout(LONG, client.check(request)).await.unwrap();
        assert_eq!(answer.is_ok(), served, "{bytes}: {answer:?}");
        // The next request finds a server.
        let small = HealthCheckRequest { service: String::new() };
        let again = timeout(LONG, async {
            while client.check(small.clone()).await.is_err() {
                tokio::task::yield_now().await;
            }
        });
        again.await.unwrap();
    }
}
