//! The authority of one box: kept, taken up again, and known by its leaves.

use std::os::unix::fs::PermissionsExt;

use coffer_service::peer::peer_uri_id;
use coffer_service::tls::read_certificates;

use super::*;

#[tokio::test]
async fn leaves_of_a_reloaded_authority_are_accepted() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("ca");
    let first = OneBoxCa::load_or_create(&home).unwrap();
    let keeper = first.issue_into(
        &dir.path().join("keeper"),
        &["keeper.example", "10.1.2.3"],
        &peer("keeper"),
    );
    let again = OneBoxCa::load_or_create(&home).unwrap();
    assert_eq!(first.certificate_pem(), again.certificate_pem());
    let worker = again.issue_into(&dir.path().join("worker"), &[], &peer("worker")).unwrap();

    let live = LiveTls::load(keeper.unwrap(), ClientAuth::Required).unwrap();
    let mut server = Running::start(live, ServerLimits::standard()).await;
    let tls = LiveTls::load(worker, ClientAuth::Required).unwrap();
    for name in ["localhost", "127.0.0.1", "::1", "keeper.example", "10.1.2.3"] {
        let addr = server.addr.to_string();
        let channel = connect_lazy(&addr, name, &tls, &ChannelOptions::standard()).unwrap();
        assert_eq!(check(channel).await.unwrap(), SERVING, "{name}");
        assert_eq!(server.seen.recv().await, Some((Some(peer("worker")), 1)));
    }
}

#[test]
fn files_are_private_and_leaves_say_who_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("ca");
    let ca = OneBoxCa::create(&home).unwrap();
    let files = ca.issue_into(&dir.path().join("leaf"), &[], &peer("worker")).unwrap();
    for path in [
        home.join("ca.pem"),
        home.join("ca-key.pem"),
        files.ca.clone(),
        files.certificate.clone(),
        files.key,
    ] {
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{}", path.display());
    }
    assert_eq!(peer_uri_id(&read_certificates(&files.certificate).unwrap()), Some(peer("worker")));
    assert_eq!(peer_uri_id(&read_certificates(&files.ca).unwrap()), None);
    assert!(OneBoxCa::load(dir.path()).is_err());
    assert!(ca.issue(&["not\u{e4}ascii"], &peer("worker")).is_err());
}
