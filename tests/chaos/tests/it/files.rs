//! The files API of a real cluster: what a user in gateway custody can do, which tokens open what, and
//! what servers keep of it.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use coffer_chaos::{Cluster, coffer_binary};
use coffer_proto::MESSAGE_BYTES_MAX;
use coffer_proto::v1 as pb;
use coffer_proto::v1::cluster_service_client::ClusterServiceClient;
use coffer_proto::v1::files_service_client::FilesServiceClient;
use coffer_service::channel::Channel;
use coffer_service::status::reason_of;
use tonic::metadata::MetadataValue;
use tonic::{Code, Request, Status};

use crate::api::channel;

/// How long a gateway may take to serve.
const PATIENCE: Duration = Duration::from_secs(60);

fn files(channel: &Channel) -> FilesServiceClient<Channel> {
    FilesServiceClient::new(channel.clone())
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX)
}

fn with_token<M>(token: &str, message: M) -> Request<M> {
    let mut request = Request::new(message);
    let value: MetadataValue<_> = format!("Bearer {token}").parse().unwrap();
    request.metadata_mut().insert("authorization", value);
    request
}

fn reason(status: &Status) -> String {
    reason_of(status).map_or_else(|| format!("none: {status:?}"), |reason| reason.code)
}

async fn register(channel: &Channel, name: &str) -> String {
    let password = format!("canary-password-of-{name}-31d6");
    let request = pb::RegisterRequest { name: name.to_owned(), password, invite: String::new() };
    let made = files(channel).register(request).await.unwrap().into_inner();
    assert_eq!(made.recovery_code.len(), 44);
    let session = made.session.unwrap();
    assert_eq!(session.idle_timeout.unwrap().seconds, 900);
    session.token
}

async fn login(channel: &Channel, name: &str, password: &str) -> Result<String, Status> {
    let request = pb::LoginRequest { name: name.to_owned(), password: password.to_owned() };
    Ok(files(channel).login(request).await?.into_inner().session.unwrap().token)
}

async fn put(channel: &Channel, token: &str, path: &str, text: &str) -> Result<u64, Status> {
    let content = Some(pb::put_request::Content::Text(text.to_owned()));
    let request = pb::PutRequest { path: path.to_owned(), content, ..Default::default() };
    let put = files(channel).put(with_token(token, request)).await?;
    Ok(put.into_inner().file.unwrap().version)
}

async fn get(channel: &Channel, token: &str, path: &str) -> Result<String, Status> {
    let request = pb::GetRequest { path: path.to_owned(), as_text: true, ..Default::default() };
    let got = files(channel).get(with_token(token, request)).await?.into_inner();
    match got.content {
        Some(pb::get_response::Content::Text(text)) => Ok(text),
        _ => panic!("no text"),
    }
}

async fn list(channel: &Channel, token: &str, path: &str) -> Result<Vec<String>, Status> {
    let request = pb::FilesServiceListRequest { path: path.to_owned(), ..Default::default() };
    let page = files(channel).list(with_token(token, request)).await?.into_inner();
    assert_eq!(page.next_page_token, "");
    Ok(page.files.into_iter().map(|file| file.path).collect())
}

/// One more gateway of the same cluster; it ends with the value.
struct Gateway {
    child: Child,
    address: String,
}

impl Gateway {
    fn start(cluster: &Cluster) -> Self {
        let free = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let (address, dir) = (free(), cluster.cluster_dir());
        let child = Command::new(coffer_binary().unwrap())
            .args(["gateway", "--config"])
            .arg(dir.join("gateway/config.toml"))
            .env("COFFER_GATEWAY__LISTEN", &address)
            .env("COFFER_GATEWAY__HEALTH_LISTEN", free())
            .env("COFFER_GATEWAY__AUDIT_LOG", dir.join("second-audit.jsonl"))
            .stdin(Stdio::null())
            .stdout(fs::File::create(dir.join("second-gateway-log")).unwrap())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self { child, address }
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn wait_until_served(channel: &Channel) {
    let began = Instant::now();
    let mut client = ClusterServiceClient::new(channel.clone());
    while client.get_status(pb::GetStatusRequest {}).await.is_err() {
        assert!(began.elapsed() < PATIENCE, "the gateway does not serve");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Goal: every call of a file's life, as a generated client makes it.
#[test]
fn a_user_in_gateway_custody_has_files_with_versions() {
    let cluster = Cluster::start().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let channel = channel(&cluster, &cluster.address);
        let token = register(&channel, "alice").await;
        let mut client = files(&channel);

        // Directories, puts and what they say.
        let deep = pb::MakeDirectoryRequest { path: "/alice/a/b".to_owned(), parents: true };
        client.make_directory(with_token(&token, deep)).await.unwrap();
        assert_eq!(put(&channel, &token, "/alice/a/b/notes", "first").await.unwrap(), 1);
        assert_eq!(put(&channel, &token, "/alice/a/b/notes", "second").await.unwrap(), 2);
        assert_eq!(get(&channel, &token, "/alice/a/b/notes").await.unwrap(), "second");
        let named = pb::PutRequest {
            path: "/alice/a/once".to_owned(),
            content: Some(pb::put_request::Content::Data(Bytes::from_static(&[0xff, 0]))),
            if_version: Some(0),
            request_id: "put-1".to_owned(),
            ..Default::default()
        };
        for _ in 0..2 {
            let put = client.put(with_token(&token, named.clone())).await.unwrap();
            assert_eq!(put.into_inner().file.unwrap().version, 1, "a repeat is answered alike");
        }
        let stale = pb::PutRequest { if_version: Some(7), request_id: String::new(), ..named };
        let refused = client.put(with_token(&token, stale)).await.unwrap_err();
        assert_eq!(reason(&refused), "VERSION_CONFLICT");

        // Versions, deleting, restoring.
        let versions = pb::FilesServiceListVersionsRequest {
            path: "/alice/a/b/notes".to_owned(),
            page_size: 1,
            page_token: String::new(),
        };
        let page = client.list_versions(with_token(&token, versions.clone())).await.unwrap();
        let page = page.into_inner();
        assert_eq!((page.versions.len(), page.versions[0].version), (1, 2));
        let next =
            pb::FilesServiceListVersionsRequest { page_token: page.next_page_token, ..versions };
        let page = client.list_versions(with_token(&token, next.clone())).await.unwrap();
        assert_eq!(page.into_inner().versions[0].version, 1);
        let foreign =
            pb::FilesServiceListVersionsRequest { path: "/alice/a/once".to_owned(), ..next };
        let refused = client.list_versions(with_token(&token, foreign)).await.unwrap_err();
        assert_eq!(reason(&refused), "PAGE_TOKEN_INVALID");
        let first = pb::RestoreRequest { path: "/alice/a/b/notes".to_owned(), version: 1 };
        let restored = client.restore(with_token(&token, first)).await.unwrap().into_inner();
        assert_eq!(restored.file.unwrap().version, 3);
        assert_eq!(get(&channel, &token, "/alice/a/b/notes").await.unwrap(), "first");
        let whole = pb::RemoveRequest { path: "/alice/a".to_owned(), recursive: true };
        client.remove(with_token(&token, whole)).await.unwrap();
        let gone = get(&channel, &token, "/alice/a/b/notes").await.unwrap_err();
        assert_eq!((gone.code(), reason(&gone)), (Code::NotFound, "FILE_NOT_FOUND".to_owned()));
        let back = pb::RestoreRequest { path: "/alice/a".to_owned(), version: 0 };
        client.restore(with_token(&token, back)).await.unwrap();

        // Moving, copying, finding, looking.
        let (from, to) = ("/alice/a/b".to_owned(), "/alice/moved".to_owned());
        client.r#move(with_token(&token, pb::MoveRequest { from, to })).await.unwrap();
        let (from, to) = ("/alice/moved".to_owned(), "/alice/copied".to_owned());
        let copy = pb::CopyRequest { from, to, recursive: true };
        client.copy(with_token(&token, copy)).await.unwrap();
        let matching = Some(pb::find_request::Matching::Glob("n?te*".to_owned()));
        let find = pb::FindRequest { path: "/alice".to_owned(), matching, limit: 0 };
        let found = client.find(with_token(&token, find)).await.unwrap().into_inner();
        let mut paths: Vec<_> = found.files.into_iter().map(|file| file.path).collect();
        paths.sort();
        assert_eq!(paths, ["/alice/copied/notes", "/alice/moved/notes"]);
        assert!(found.complete);
        let stat = pb::StatRequest { path: "/alice/moved/notes".to_owned() };
        let stat = client.stat(with_token(&token, stat)).await.unwrap().into_inner().file.unwrap();
        assert_eq!((stat.kind(), stat.length, stat.version), (pb::FileKind::File, 5, 3));
        let listed = list(&channel, &token, "/alice").await.unwrap();
        assert_eq!(listed, ["/alice/a", "/alice/copied", "/alice/moved"]);
        let quota = client.get_quota(with_token(&token, pb::GetQuotaRequest {})).await.unwrap();
        let quota = quota.into_inner();
        assert!(quota.used_bytes > 0 && quota.limit_bytes.is_none(), "{quota:?}");
        let mut page = pb::FilesServiceListRequest {
            path: "/alice".to_owned(),
            page_size: 2,
            ..Default::default()
        };
        let first = client.list(with_token(&token, page.clone())).await.unwrap().into_inner();
        page.page_token = first.next_page_token;
        let second = client.list(with_token(&token, page.clone())).await.unwrap().into_inner();
        assert_eq!((first.files.len(), second.files.len()), (2, 1));
        assert_eq!(second.next_page_token, "");
        page.path = "/alice/a".to_owned();
        let refused = client.list(with_token(&token, page)).await.unwrap_err();
        assert_eq!(reason(&refused), "PAGE_TOKEN_INVALID");
    });
}

/// Proves S34 of docs/semantics.md: files of megabytes, in pieces and as streams, are the bytes that were sent, or nothing.
#[test]
fn large_files_come_in_pieces_and_go_as_streams() {
    let cluster = Cluster::start().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let channel = channel(&cluster, &cluster.address);
        let token = register(&channel, "alice").await;
        let mut client = files(&channel);
        let content: Vec<u8> = (0..5_500_000u32).map(|at| (at / 7 % 251) as u8).collect();

        let start =
            pb::StartUploadRequest { path: "/alice/pieces".to_owned(), ..Default::default() };
        let upload = client.start_upload(with_token(&token, start.clone())).await.unwrap();
        let upload_id = upload.into_inner().upload_id;
        let piece = |offset: usize, count: usize| pb::WriteUploadRequest {
            upload_id: upload_id.clone(),
            offset: offset as u64,
            data: Bytes::copy_from_slice(&content[offset..(offset + count).min(content.len())]),
        };
        let mut at = 0;
        while at < content.len() {
            let written = client.write_upload(with_token(&token, piece(at, 1_300_001))).await;
            let again = client.write_upload(with_token(&token, piece(at, 1_300_001))).await;
            let next = written.unwrap().into_inner().next_offset;
            assert_eq!(again.unwrap().into_inner().next_offset, next, "taken once");
            at = next as usize;
        }
        let gap = pb::WriteUploadRequest { offset: content.len() as u64 + 1, ..piece(0, 1) };
        let refused = client.write_upload(with_token(&token, gap)).await.unwrap_err();
        assert_eq!(reason(&refused), "UPLOAD_GAP");
        let nothing = get(&channel, &token, "/alice/pieces").await.unwrap_err();
        assert_eq!(nothing.code(), Code::NotFound, "not there before it is finished");
        let finish = |length: usize| pb::FinishUploadRequest {
            upload_id: upload_id.clone(),
            length: Some(length as u64),
        };
        let short = client.finish_upload(with_token(&token, finish(17))).await.unwrap_err();
        assert_eq!(reason(&short), "UPLOAD_INCOMPLETE");
        for _ in 0..2 {
            let done =
                client.finish_upload(with_token(&token, finish(content.len()))).await.unwrap();
            let done = done.into_inner().file.unwrap();
            assert_eq!((done.version, done.length), (1, content.len() as u64));
        }

        // Given up: nothing appears.
        let start = pb::StartUploadRequest { path: "/alice/nothing".to_owned(), ..start };
        let upload = client.start_upload(with_token(&token, start.clone())).await.unwrap();
        let upload_id = upload.into_inner().upload_id;
        let some = pb::WriteUploadRequest {
            upload_id: upload_id.clone(),
            offset: 0,
            data: Bytes::from_static(b"some"),
        };
        client.write_upload(with_token(&token, some.clone())).await.unwrap();
        let abort = pb::AbortUploadRequest { upload_id };
        client.abort_upload(with_token(&token, abort)).await.unwrap();
        let refused = client.write_upload(with_token(&token, some)).await.unwrap_err();
        assert_eq!(reason(&refused), "UPLOAD_UNKNOWN");

        // As a stream, there and back.
        use pb::put_stream_request::Part;
        let mut parts = vec![pb::PutStreamRequest {
            part: Some(Part::Start(pb::StartUploadRequest {
                path: "/alice/stream".to_owned(),
                ..Default::default()
            })),
        }];
        parts.extend(content.chunks(1_000_003).map(|chunk| pb::PutStreamRequest {
            part: Some(Part::Data(Bytes::copy_from_slice(chunk))),
        }));
        let broken = [parts.clone(), vec![pb::PutStreamRequest { part: None }]].concat();
        let stream = |parts: Vec<pb::PutStreamRequest>| {
            with_token(&token, futures_util::stream::iter(parts))
        };
        let refused = client.put_stream(stream(broken)).await.unwrap_err();
        assert_eq!(reason(&refused), "STREAM_MALFORMED");
        let put = client.put_stream(stream(parts)).await.unwrap().into_inner().file.unwrap();
        assert_eq!((put.version, put.length), (1, content.len() as u64));
        for (path, offset, length) in [
            ("/alice/stream", 0, 0),
            ("/alice/pieces", 0, 0),
            ("/alice/pieces", 999_999, 2_000_002),
        ] {
            let request =
                pb::GetStreamRequest { path: path.to_owned(), version: 0, offset, length };
            let mut stream =
                client.get_stream(with_token(&token, request)).await.unwrap().into_inner();
            let mut bytes = Vec::new();
            while let Some(message) = stream.message().await.unwrap() {
                match message.part.unwrap() {
                    pb::get_stream_response::Part::Start(start) => {
                        assert_eq!(start.file_length, content.len() as u64);
                    }
                    pb::get_stream_response::Part::Data(piece) => bytes.extend_from_slice(&piece),
                }
            }
            let to = if length == 0 { content.len() } else { (offset + length) as usize };
            assert!(bytes == content[offset as usize..to], "{path} {offset}");
        }
        let whole = pb::GetRequest { path: "/alice/pieces".to_owned(), ..Default::default() };
        let refused = client.get(with_token(&token, whole.clone())).await.unwrap_err();
        assert_eq!(reason(&refused), "CONTENT_TOO_LARGE");
        let part = pb::GetRequest { offset: 1_048_570, length: 100, ..whole };
        let got = client.get(with_token(&token, part)).await.unwrap().into_inner();
        let data =
            pb::get_response::Content::Data(Bytes::copy_from_slice(&content[1_048_570..1_048_670]));
        assert!(got.content == Some(data));
    });
}

/// Proves S32, S33 of docs/semantics.md.
#[test]
fn a_token_opens_its_session_at_any_gateway_until_logout() {
    let mut cluster = Cluster::start().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (token, second) = runtime.block_on(async {
        let first = channel(&cluster, &cluster.address);
        let token = register(&first, "alice").await;
        put(&first, &token, "/alice/file", "content").await.unwrap();
        let gateway = Gateway::start(&cluster);
        let other = channel(&cluster, &gateway.address);
        wait_until_served(&other).await;
        assert_eq!(get(&other, &token, "/alice/file").await.unwrap(), "content");

        // Another login is another session; ending one leaves the other.
        let second = login(&other, "alice", "canary-password-of-alice-31d6").await.unwrap();
        assert_ne!(second, token);
        assert_eq!(get(&first, &second, "/alice/file").await.unwrap(), "content");
        (token, second)
    });
    cluster.stop().unwrap();
    cluster.start_again().unwrap();
    runtime.block_on(async {
        let first = channel(&cluster, &cluster.address);
        assert_eq!(get(&first, &token, "/alice/file").await.unwrap(), "content");
        let gateway = Gateway::start(&cluster);
        let other = channel(&cluster, &gateway.address);
        wait_until_served(&other).await;
        assert_eq!(get(&other, &token, "/alice/file").await.unwrap(), "content");

        files(&other).logout(with_token(&token, pb::LogoutRequest {})).await.unwrap();
        // One gateway forgot it, the other still had it open: the cluster refuses it there.
        for channel in [&other, &first, &first] {
            let refused = get(channel, &token, "/alice/file").await.unwrap_err();
            assert_eq!(refused.code(), Code::Unauthenticated, "{refused:?}");
            let reason = reason(&refused);
            assert!(["TOKEN_UNKNOWN", "SESSION_ENDED"].contains(&reason.as_str()), "{reason}");
        }
        assert_eq!(get(&first, &second, "/alice/file").await.unwrap(), "content");
    });
}

#[test]
fn what_the_files_api_refuses() {
    let cluster = Cluster::start().unwrap();
    cluster.coffer("carol", &["register", "carol"]).unwrap();
    let dir = cluster.cluster_dir();
    let invite = cluster.coffer("carol", &["order", "invite", "--dir", dir.to_str().unwrap()]);
    let invite = invite.unwrap().trim().to_owned();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let channel = channel(&cluster, &cluster.address);
        let alice = register(&channel, "alice").await;
        let bob = register(&channel, "bob").await;
        put(&channel, &alice, "/alice/private", "alice's own").await.unwrap();

        // Tokens.
        let mut wrong_key = alice.clone();
        let last = wrong_key.pop().unwrap();
        wrong_key.push(if last == '0' { '1' } else { '0' });
        let unknown = format!("coffer_{}", "00".repeat(64));
        let rows = [
            (wrong_key.as_str(), "TOKEN_WRONG"),
            (unknown.as_str(), "TOKEN_UNKNOWN"),
            ("rubbish", "TOKEN_MALFORMED"),
        ];
        for (token, expected) in rows {
            let refused = get(&channel, token, "/alice/private").await.unwrap_err();
            assert_eq!(refused.code(), Code::Unauthenticated);
            assert_eq!(reason(&refused), expected);
        }
        let request = pb::StatRequest { path: "/alice/private".to_owned() };
        let refused = files(&channel).stat(request).await.unwrap_err();
        assert_eq!(reason(&refused), "TOKEN_REQUIRED");

        // Logins: a wrong password, a name that is not there, and a user who keeps the keys elsewhere.
        for (name, password, expected) in [
            ("alice", "wrong", "WRONG_PASSWORD"),
            ("nobody", "wrong", "WRONG_PASSWORD"),
            ("carol", "wrong", "WRONG_PASSWORD"),
            ("carol", "the password of carol", "LOCAL_CUSTODY"),
            ("Not A Name", "x", "NAME_INVALID"),
        ] {
            let refused = login(&channel, name, password).await.unwrap_err();
            assert_eq!(reason(&refused), expected, "{name}");
        }
        let again = pb::RegisterRequest {
            name: "alice".to_owned(),
            password: "another".to_owned(),
            invite: String::new(),
        };
        let refused = files(&channel).register(again).await.unwrap_err();
        assert_eq!(reason(&refused), "NAME_TAKEN");

        // Anybody may register here; an invite is taken as its administrator wrote it.
        for (name, invite, expected) in
            [("ivy", invite.as_str(), None), ("ivan", "not hexadecimal", Some("INVITE_MALFORMED"))]
        {
            let request = pb::RegisterRequest {
                name: name.to_owned(),
                password: "another".to_owned(),
                invite: invite.to_owned(),
            };
            let refused = files(&channel).register(request).await.err();
            assert_eq!(refused.as_ref().map(reason).as_deref(), expected, "{name}");
        }

        // Paths, and other people's files.
        for (path, expected) in [
            ("/alice/../bob/x", "PATH_INVALID"),
            ("/alice/./x", "PATH_INVALID"),
            ("/alice//x", "PATH_INVALID"),
            ("alice/x", "PATH_INVALID"),
            ("/alice/a\0b", "PATH_INVALID"),
            ("", "PATH_INVALID"),
            ("/bob/x", "NOT_YOURS"),
            ("/carol", "NOT_YOURS"),
        ] {
            let refused = put(&channel, &alice, path, "x").await.unwrap_err();
            assert_eq!(reason(&refused), expected, "{path:?}");
            assert!(path.len() < 3 || !refused.message().contains(path), "{refused:?}");
        }
        for path in ["/alice/private", "/alice"] {
            let refused = get(&channel, &bob, path).await.unwrap_err();
            assert_eq!(
                (refused.code(), reason(&refused)),
                (Code::PermissionDenied, "NOT_YOURS".to_owned())
            );
            let refused = list(&channel, &bob, path).await.unwrap_err();
            assert_eq!(reason(&refused), "NOT_YOURS");
        }
        // An upload answers to the session that began it.
        let start = pb::StartUploadRequest { path: "/alice/up".to_owned(), ..Default::default() };
        let upload = files(&channel).start_upload(with_token(&alice, start)).await.unwrap();
        let abort = pb::AbortUploadRequest { upload_id: upload.into_inner().upload_id };
        let refused = files(&channel).abort_upload(with_token(&bob, abort)).await.unwrap_err();
        assert_eq!(reason(&refused), "UPLOAD_UNKNOWN");
    });
}

fn all_files(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { all_files(&path, found) } else { found.push(path) }
    }
}

/// Goal: what passes a gateway in plain form stays on no disk, in no log and in no audit file.
#[test]
fn plaintext_of_gateway_custody_is_in_no_file_of_any_server() {
    let mut cluster = Cluster::start().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let text = "canary-text-2b7e ".repeat(30);
    let large = "canary-large-88c1 ".repeat(70_000);
    let token = runtime.block_on(async {
        let channel = channel(&cluster, &cluster.address);
        let token = register(&channel, "alice").await;
        let directory = pb::MakeDirectoryRequest {
            path: "/alice/canary-folder-07aa".to_owned(),
            parents: false,
        };
        files(&channel).make_directory(with_token(&token, directory)).await.unwrap();
        let path = "/alice/canary-folder-07aa/canary-name-5d1f.txt";
        put(&channel, &token, path, &text).await.unwrap();
        put(&channel, &token, "/alice/canary-big-9e40", &large).await.unwrap();
        assert_eq!(get(&channel, &token, path).await.unwrap(), text);
        // Refusals are written down as well.
        get(&channel, &token, "/alice/canary-missing-6666").await.unwrap_err();
        login(&channel, "alice", "canary-wrong-password-7777").await.unwrap_err();
        token
    });
    cluster.stop().unwrap();
    let mut found = Vec::new();
    all_files(&cluster.cluster_dir(), &mut found);
    let key = &token[token.len() - 64..];
    let key_bytes: Vec<u8> =
        (0..64).step_by(2).map(|at| u8::from_str_radix(&key[at..at + 2], 16).unwrap()).collect();
    let canaries: [&[u8]; 10] = [
        b"canary-folder-07aa",
        b"canary-name-5d1f",
        b"canary-big-9e40",
        b"canary-text-2b7e",
        b"canary-large-88c1",
        b"canary-missing-6666",
        b"canary-wrong-password-7777",
        b"canary-password-of-alice",
        key.as_bytes(),
        &key_bytes,
    ];
    let mut audited = false;
    for path in found {
        let bytes = fs::read(&path).unwrap();
        let end = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |at| at + 1);
        let has = |part: &[u8]| bytes[..end].windows(part.len()).any(|window| window == part);
        audited |= has(b"/coffer.v1.FilesService/Put");
        for canary in canaries {
            let shown = String::from_utf8_lossy(canary);
            assert!(!has(canary), "{shown} stands in clear in {}", path.display());
        }
    }
    assert!(audited, "the calls are in an audit log");
}
