//! Who is let in, and as whom.

use rustls::pki_types::ServerName;
use rustls::version::TLS12;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use coffer_service::tls::{client_config, client_config_without_certificate, read_certificates};

use super::*;

#[tokio::test]
async fn both_sides_know_each_other() {
    let authority = Authority::new();
    let mut server = Running::start(
        authority.tls(&peer("keeper"), ClientAuth::Required),
        ServerLimits::standard(),
    )
    .await;
    let tls = authority.tls(&peer("worker"), ClientAuth::Required);
    let options =
        ChannelOptions { expected_peer: Some(peer("keeper")), ..ChannelOptions::standard() };
    let channel = server.channel_with(tls, &options);
    assert_eq!(check(channel.clone()).await.unwrap(), SERVING);
    assert_eq!(server.seen.recv().await, Some((Some(peer("worker")), 1)));
    server.health.set_not_serving().await;
    assert_eq!(check(channel).await.unwrap(), NOT_SERVING);
    assert_eq!(server.stats.connections_ready.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_client_without_a_certificate_is_refused() {
    let authority = Authority::new();
    let server = Running::start(
        authority.tls(&peer("keeper"), ClientAuth::Required),
        ServerLimits::standard(),
    )
    .await;
    let files = authority.files(&peer("worker"));
    let tls = Arc::new(
        client_config_without_certificate(&read_certificates(&files.ca).unwrap()).unwrap(),
    );
    check_refused(server.channel(tls)).await;
    assert_eq!(server.stats.connections_ready.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn a_client_of_another_authority_is_refused() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let server = Running::start(
        authority.tls(&peer("keeper"), ClientAuth::Required),
        ServerLimits::standard(),
    )
    .await;
    // It knows the right authority, but its certificate is from elsewhere.
    let mut files = stranger.files(&peer("worker"));
    files.ca = authority.files(&peer("worker")).ca;
    check_refused(server.channel(Arc::new(client_config(&files).unwrap()))).await;
    assert_eq!(server.handshakes_failed(), 1);
    assert_eq!(server.stats.connections_ready.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn a_server_of_another_authority_is_refused() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let server =
        Running::start(stranger.tls(&peer("keeper"), ClientAuth::None), ServerLimits::standard())
            .await;
    let tls = authority.tls(&peer("worker"), ClientAuth::Required);
    assert_eq!(check_refused(server.channel(tls)).await.code(), Code::Unavailable);
}

#[tokio::test]
async fn a_server_of_the_wrong_name_or_id_is_refused() {
    let authority = Authority::new();
    let server = Running::start(
        authority.tls(&peer("keeper"), ClientAuth::Required),
        ServerLimits::standard(),
    )
    .await;
    let tls = authority.tls(&peer("worker"), ClientAuth::Required);
    for other in [peer("clerk"), PeerId::new("keeper", [8; 16]).unwrap()] {
        let options = ChannelOptions { expected_peer: Some(other), ..ChannelOptions::standard() };
        let refused = check_refused(server.channel_with(&tls, &options)).await;
        assert_eq!(refused.code(), Code::Unavailable);
    }
    let addr = server.addr.to_string();
    let channel =
        connect_lazy(&addr, "elsewhere.example", &tls, &ChannelOptions::standard()).unwrap();
    assert_eq!(check_refused(channel).await.code(), Code::Unavailable);
}

#[tokio::test]
async fn where_certificates_are_optional_a_wrong_one_is_still_refused() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let mut server = Running::start(
        authority.tls(&peer("keeper"), ClientAuth::Optional),
        ServerLimits::standard(),
    )
    .await;
    let files = authority.files(&peer("worker"));
    let anonymous =
        client_config_without_certificate(&read_certificates(&files.ca).unwrap()).unwrap();
    assert_eq!(check(server.channel(Arc::new(anonymous))).await.unwrap(), SERVING);
    assert_eq!(server.seen.recv().await, Some((None, 0)));
    let named = client_config(&files).unwrap();
    assert_eq!(check(server.channel(Arc::new(named))).await.unwrap(), SERVING);
    assert_eq!(server.seen.recv().await, Some((Some(peer("worker")), 1)));
    let wrong = TlsFiles { ca: files.ca, ..stranger.files(&peer("worker")) };
    check_refused(server.channel(Arc::new(client_config(&wrong).unwrap()))).await;
}

#[tokio::test]
async fn plain_text_and_old_tls_get_nothing() {
    let authority = Authority::new();
    let server =
        Running::start(authority.tls(&peer("keeper"), ClientAuth::None), ServerLimits::standard())
            .await;
    let plain = tonic::transport::Endpoint::from_shared(format!("http://{}", server.addr)).unwrap();
    check_refused(plain.connect_lazy().into()).await;

    let mut roots = rustls::RootCertStore::empty();
    let ca = authority.files(&peer("worker")).ca;
    roots.add(read_certificates(&ca).unwrap().remove(0)).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let old = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS12])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = TcpStream::connect(server.addr).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    TlsConnector::from(Arc::new(old)).connect(name, stream).await.unwrap_err();
    assert_eq!(server.stats.connections_ready.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn a_connection_that_never_speaks_is_closed() {
    let authority = Authority::new();
    let limits =
        ServerLimits { handshake_timeout: Duration::from_millis(20), ..ServerLimits::standard() };
    let server = Running::start(authority.tls(&peer("keeper"), ClientAuth::Required), limits).await;
    let mut silent = TcpStream::connect(server.addr).await.unwrap();
    let mut rest = Vec::new();
    let read = tokio::time::timeout(LONG, silent.read_to_end(&mut rest)).await.unwrap();
    assert!(read.is_err() || rest.is_empty());
    assert_eq!(server.handshakes_failed(), 1);
}

/// Goal: one client cannot take more connections than there are, and gives them back. Method: a
/// bound of one; the second is refused while the first lives, and let in some time after it is gone.
#[tokio::test]
async fn connections_are_bounded_and_given_back() {
    let authority = Authority::new();
    let limits = ServerLimits { connections_max: 1, ..ServerLimits::standard() };
    let server = Running::start(authority.tls(&peer("keeper"), ClientAuth::Required), limits).await;
    let tls = authority.tls(&peer("worker"), ClientAuth::Required);
    let first = server.channel(&tls);
    assert_eq!(check(first.clone()).await.unwrap(), SERVING);
    check_refused(server.channel(&tls)).await;
    assert_eq!(server.stats.connections_refused.load(Ordering::Relaxed), 1);
    assert_eq!(check(first.clone()).await.unwrap(), SERVING);
    drop(first);
    let let_in = async {
        while check(server.channel(&tls)).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(LONG, let_in).await.unwrap();
}

#[tokio::test]
async fn health_can_be_asked_without_tls_and_nothing_else_can() {
    let health = Health::new().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    let task = {
        let (health, stop) = (health.clone(), stop.clone());
        tokio::spawn(async move { health.serve_plain(listener, stop).await })
    };
    let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{addr}")).unwrap();
    let channel = Channel::from(endpoint.connect_lazy());
    assert_eq!(check(channel.clone()).await.unwrap(), NOT_SERVING);
    let alive = HealthCheckRequest { service: coffer_service::health::ALIVE.to_owned() };
    let answer = HealthClient::new(channel.clone()).check(alive).await.unwrap();
    assert_eq!(answer.into_inner().status, SERVING);
    health.set_serving().await;
    assert_eq!(check(channel.clone()).await.unwrap(), SERVING);
    let part = HealthCheckRequest { service: "unheard-of".to_owned() };
    let unknown = HealthClient::new(channel.clone()).check(part.clone()).await.unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound);
    health.set_part("unheard-of", false).await;
    let known = HealthClient::new(channel).check(part).await.unwrap();
    assert_eq!(known.into_inner().status, NOT_SERVING);
    // Nor can metrics, where there are none.
    assert!(!scrape(addr).await.contains("process_start_time_seconds"));
    stop.cancel();
    tokio::time::timeout(LONG, task).await.unwrap().unwrap().unwrap();
}

async fn scrape(addr: std::net::SocketAddr) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(addr).await.unwrap();
    let request = "GET /metrics HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn metrics_are_scraped_over_plain_http() {
    let shutdown = coffer_service::shutdown::Shutdown::new();
    let metrics = coffer_service::metrics::Metrics::new([], ["SESSION_CLOSED"]).unwrap();
    let health = Health::new().await.with_metrics(metrics);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let stop = shutdown.token();
    tokio::spawn(async move { health.serve_plain(listener, stop).await });
    let answer = scrape(addr).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(answer.contains("content-type: text/plain"), "{answer}");
    assert!(answer.contains("coffer_refused_total{reason=\"SESSION_CLOSED\"} 0"), "{answer}");
}
