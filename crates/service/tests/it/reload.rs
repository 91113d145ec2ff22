//! Certificates that change under a running process.

use coffer_service::tls::{TlsError, client_config};
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::*;

/// The certificate the server shows to a new connection.
async fn shown(server: &Running, tls: &Arc<LiveTls>) -> CertificateDer<'static> {
    let stream = TcpStream::connect(server.addr).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let stream = TlsConnector::from(tls.client()).connect(name, stream).await.unwrap();
    stream.get_ref().1.peer_certificates().unwrap()[0].clone()
}

#[tokio::test]
async fn a_new_certificate_is_shown_to_new_connections_and_old_ones_live_on() {
    let authority = Authority::new();
    let (keeper, worker) = (peer("keeper"), peer("worker"));
    let live = authority.tls(&keeper, ClientAuth::Required);
    let server = Running::start(Arc::clone(&live), ServerLimits::standard()).await;
    let client = authority.tls(&worker, ClientAuth::Required);
    let before = shown(&server, &client).await;
    assert!(!live.reload().unwrap(), "nothing has changed");
    let open = server.channel(&client);
    assert_eq!(check(open.clone()).await.unwrap(), SERVING);

    authority.files(&keeper);
    assert_eq!(shown(&server, &client).await, before, "nobody has looked yet");
    assert!(live.reload().unwrap());
    assert_ne!(shown(&server, &client).await, before);
    assert_eq!(check(open).await.unwrap(), SERVING);
}

/// Goal: moving to another authority locks out the certificates of the former one, both ways.
#[tokio::test]
async fn a_new_authority_is_taken_up_by_servers_and_clients() {
    let (old, new) = (Authority::new(), Authority::new());
    let (keeper, worker) = (peer("keeper"), peer("worker"));
    let live = old.tls(&keeper, ClientAuth::Required);
    let server = Running::start(Arc::clone(&live), ServerLimits::standard()).await;
    let client_dir = old.dir.path().join("worker");
    let client = old.tls(&worker, ClientAuth::Required);
    assert_eq!(check(server.channel(&client)).await.unwrap(), SERVING);

    new.files_in(&old.dir.path().join("keeper"), &keeper);
    assert!(live.reload().unwrap());
    check_refused(server.channel(&client)).await;
    // A client that trusts the new authority but still shows the old certificate.
    let mut half = old.files_in(&old.dir.path().join("half"), &worker);
    half.ca = new.files(&worker).ca;
    check_refused(server.channel(Arc::new(client_config(&half).unwrap()))).await;

    let lazy = server.channel(&client);
    new.files_in(&client_dir, &worker);
    assert!(client.reload().unwrap());
    assert_eq!(
        check(lazy).await.unwrap(),
        SERVING,
        "a channel takes what is there when it connects"
    );
}

#[tokio::test]
async fn files_that_do_not_fit_leave_the_former_ones_in_use() {
    let authority = Authority::new();
    let keeper = peer("keeper");
    let files = authority.files(&keeper);
    let live = LiveTls::load(files.clone(), ClientAuth::Required).unwrap();
    let server = Running::start(Arc::clone(&live), ServerLimits::standard()).await;
    let client = authority.tls(&peer("worker"), ClientAuth::Required);
    let before = shown(&server, &client).await;

    // The certificate has come, its key not yet.
    let next = authority.ca.issue(&[], &keeper).unwrap();
    std::fs::write(&files.certificate, &next.certificate_pem).unwrap();
    for _ in 0..2 {
        let refused = live.reload().unwrap_err();
        assert!(matches!(&refused, TlsError::Pair { key, .. } if *key == files.key), "{refused:?}");
        assert_eq!(shown(&server, &client).await, before);
    }
    std::fs::write(&files.key, next.key_pem.as_bytes()).unwrap();
    assert!(live.reload().unwrap());
    assert_ne!(shown(&server, &client).await, before);
}

#[tokio::test]
async fn the_watching_task_notices_by_itself_and_ends_when_told() {
    let authority = Authority::new();
    let keeper = peer("keeper");
    let live = authority.tls(&keeper, ClientAuth::Required);
    let before = live.server();
    let stop = CancellationToken::new();
    let task = tokio::spawn(Arc::clone(&live).watch(Duration::from_millis(1), stop.clone()));
    authority.files(&keeper);
    let noticed = async {
        while Arc::ptr_eq(&live.server(), &before) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(LONG, noticed).await.unwrap();
    stop.cancel();
    tokio::time::timeout(LONG, task).await.unwrap().unwrap();
}

#[test]
fn every_fault_names_its_file() {
    let authority = Authority::new();
    let good = authority.files(&peer("keeper"));
    let other = authority.files(&peer("worker"));
    let rubbish = authority.dir.path().join("rubbish.pem");
    std::fs::write(&rubbish, "-----BEGIN CERTIFICATE-----\n!!!\n-----END CERTIFICATE-----\n")
        .unwrap();
    let empty = authority.dir.path().join("empty.pem");
    std::fs::write(&empty, "").unwrap();
    let absent = authority.dir.path().join("absent.pem");
    for (files, named, kind) in [
        (TlsFiles { ca: absent.clone(), ..good.clone() }, &absent, "cannot read"),
        (TlsFiles { key: absent.clone(), ..good.clone() }, &absent, "cannot read"),
        (TlsFiles { certificate: rubbish.clone(), ..good.clone() }, &rubbish, "is not PEM"),
        (TlsFiles { certificate: empty.clone(), ..good.clone() }, &empty, "holds no certificate"),
        (TlsFiles { key: empty.clone(), ..good.clone() }, &empty, "holds no private key"),
        (TlsFiles { key: good.ca.clone(), ..good.clone() }, &good.ca, "holds no private key"),
        (
            TlsFiles { key: other.key.clone(), ..good.clone() },
            &other.key,
            "cannot be used together",
        ),
    ] {
        let error = LiveTls::load(files, ClientAuth::Required).unwrap_err().to_string();
        assert!(error.contains(&named.display().to_string()) && error.contains(kind), "{error}");
    }
    let live = LiveTls::load(good, ClientAuth::Required).unwrap();
    let left = live.expires().unwrap().duration_since(std::time::SystemTime::now()).unwrap();
    assert!(left > Duration::from_secs(364 * 86_400) && left < Duration::from_secs(366 * 86_400));
    assert!(!format!("{live:?}").contains("PRIVATE"));
}
