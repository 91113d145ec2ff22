//! What is secret stays secret: names, content, passwords, codes and keys that went through every API are
//! nowhere in what servers keep, write about themselves, export or answer to others.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use coffer_chaos::Cluster;
use coffer_proto::MESSAGE_BYTES_MAX;
use coffer_proto::v1 as pb;
use coffer_proto::v1::files_service_client::FilesServiceClient;
use coffer_service::channel::Channel;
use opentelemetry_proto::tonic::collector::logs::v1::logs_service_server::{
    LogsService, LogsServiceServer,
};
use opentelemetry_proto::tonic::collector::logs::v1::{
    ExportLogsServiceRequest, ExportLogsServiceResponse,
};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use prost::Message;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::metadata::MetadataValue;
use tonic::{Request, Response, Status};

use crate::api::channel;
use crate::observed::scrape;

/// A collector of traces and logs that keeps what it gets, as it came.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<u8>>>);

impl Collector {
    async fn serve() -> (Self, String) {
        let collector = Self::default();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let serving = tonic::transport::Server::builder()
            .add_service(TraceServiceServer::new(collector.clone()))
            .add_service(LogsServiceServer::new(collector.clone()))
            .serve_with_incoming(TcpListenerStream::new(listener));
        tokio::spawn(serving);
        (collector, address)
    }

    fn keep(&self, message: &impl Message) {
        self.0.lock().unwrap().extend(message.encode_to_vec());
    }
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.keep(request.get_ref());
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

#[tonic::async_trait]
impl LogsService for Collector {
    async fn export(
        &self,
        request: Request<ExportLogsServiceRequest>,
    ) -> Result<Response<ExportLogsServiceResponse>, Status> {
        self.keep(request.get_ref());
        Ok(Response::new(ExportLogsServiceResponse::default()))
    }
}

/// What must be nowhere, in all forms it could take.
#[derive(Default)]
struct Canaries {
    /// The forms by their first two bytes.
    forms: BTreeMap<[u8; 2], Vec<(Vec<u8>, String)>>,
}

impl Canaries {
    fn add(&mut self, canary: impl AsRef<[u8]>) {
        let canary = canary.as_ref();
        assert!(canary.len() >= 12, "too short to be met by nothing but itself");
        let what = String::from_utf8_lossy(canary).into_owned();
        self.form(canary.to_vec(), &what);
        let hex: String = canary.iter().map(|byte| format!("{byte:02x}")).collect();
        self.form(hex.to_uppercase().into_bytes(), &what);
        self.form(hex.into_bytes(), &what);
        for alphabet in [b"+/", b"-_"] {
            for before in 0..3 {
                self.form(base64_inside(canary, before, alphabet), &what);
            }
        }
    }

    fn form(&mut self, form: Vec<u8>, what: &str) {
        let forms = self.forms.entry([form[0], form[1]]).or_default();
        forms.push((form, what.to_owned()));
    }

    fn found_in(&self, bytes: &[u8]) -> Option<&str> {
        // Most places begin no form, and a table says so at once.
        let mut begins = vec![false; 1 << 16];
        for two in self.forms.keys() {
            begins[usize::from(u16::from_be_bytes(*two))] = true;
        }
        let two = |at: usize| [bytes[at], bytes[at + 1]];
        (0..bytes.len().saturating_sub(1)).find_map(|at| {
            if !begins[usize::from(u16::from_be_bytes(two(at)))] {
                return None;
            }
            let forms = self.forms.get(&two(at))?;
            let found = forms.iter().find(|(form, _)| bytes[at..].starts_with(form));
            found.map(|(_, what)| what.as_str())
        })
    }

    fn check(&self, place: &str, bytes: &[u8]) {
        // Long runs of zeros are the part of a file that is not written yet.
        let end = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |at| at + 1);
        let found = self.found_in(&bytes[..end]);
        assert!(found.is_none(), "{} stands in {place}", found.unwrap_or_default());
    }
}

/// The part of a base64 text that stands for `bytes` behind `before` others, whatever is around them.
fn base64_inside(bytes: &[u8], before: usize, last_two: &[u8; 2]) -> Vec<u8> {
    let mut alphabet: Vec<u8> = (b'A'..=b'Z').chain(b'a'..=b'z').chain(b'0'..=b'9').collect();
    alphabet.extend(last_two);
    let whole = [vec![0; before], bytes.to_vec()].concat();
    let digit = |at: usize| {
        let bit = |number: usize| whole[number / 8] >> (7 - number % 8) & 1;
        let value = (at * 6..at * 6 + 6).fold(0, |value, number| value << 1 | bit(number));
        alphabet[usize::from(value)]
    };
    ((before * 8).div_ceil(6)..whole.len() * 8 / 6).map(digit).collect()
}

#[test]
fn canaries_are_found_in_every_form() {
    let mut canaries = Canaries::default();
    canaries.add("canary-of-the-test");
    // By another program's hand: `printf 'xcanary-of-the-test.' | base64`, and so on.
    let rows: [&[u8]; 7] = [
        b"..canary-of-the-test..",
        b"63616e6172792d6f662d7468652d74657374",
        b"63616E6172792D6F662D7468652D74657374",
        b"Y2FuYXJ5LW9mLXRoZS10ZXN0",
        b"eGNhbmFyeS1vZi10aGUtdGVzdC4=",
        b"eHhjYW5hcnktb2YtdGhlLXRlc3Qu",
        b"\x00\x01canary-of-the-test\x00",
    ];
    for row in rows {
        assert!(canaries.found_in(row).is_some(), "{}", String::from_utf8_lossy(row));
    }
    assert_eq!(canaries.found_in(b"canary-of-the-tes canary-of-the_test"), None);
}

fn all_files(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { all_files(&path, found) } else { found.push(path) }
    }
}

/// A user who keeps the keys alone, by the command line; gives what errors said to others.
fn use_the_command_line(cluster: &Cluster, canaries: &mut Canaries) -> Vec<Vec<u8>> {
    let work = cluster.work_dir().unwrap();
    let write = |name: &str, content: &[u8]| {
        let path = work.join(name);
        fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let coffer = |args: &[&str]| cluster.coffer("alice", args).unwrap();
    let code_of = |text: &str| {
        let value: serde_json::Value = serde_json::from_str(text).unwrap();
        value["recovery_code"].as_str().unwrap().to_owned()
    };
    let code = code_of(&coffer(&["register", "alice", "--json"]));
    cluster.coffer("bobby", &["register", "bobby"]).unwrap();
    canaries.add(coffer_chaos::password("alice"));
    canaries.add(&code);
    canaries.add(code.replace('-', ""));

    let small = write("small", "canary-small-content-91c5 ".repeat(20).as_bytes());
    let large = write("large", "canary-large-content-e0d2 ".repeat(100_000).as_bytes());
    let tree = work.join("canary-directory-7f3a");
    fs::create_dir(&tree).unwrap();
    fs::copy(&small, tree.join("canary-name-55ab.txt")).unwrap();
    fs::copy(&large, tree.join("canary-other-name-0c1d.bin")).unwrap();
    symlink("canary-link-target-4b1f", tree.join("canary-link-name-c0c0")).unwrap();
    let tree = tree.to_str().unwrap();
    let there = "/alice/canary-directory-7f3a";
    coffer(&["put", "-r", tree, there]);
    for content in ["canary-first-version-18d0", "canary-second-version-2e99"] {
        let file = write("versions", content.as_bytes());
        coffer(&["put", &file, "/alice/canary-versions-6a51"]);
        canaries.add(content);
    }
    coffer(&["versions", "/alice/canary-versions-6a51"]);
    coffer(&["restore", "--version", "1", "/alice/canary-versions-6a51"]);
    coffer(&["mv", there, "/alice/canary-moved-b7b7"]);
    coffer(&["cp", "-r", "/alice/canary-moved-b7b7", "/alice/canary-copied-d4d4"]);
    coffer(&["find", "/alice", "--name", "canary-name-5*"]);
    coffer(&["ls", "/alice/canary-copied-d4d4"]);
    coffer(&["rm", "-r", "/alice/canary-moved-b7b7"]);
    coffer(&["restore", "/alice/canary-moved-b7b7"]);
    coffer(&["rm", "-r", "/alice/canary-copied-d4d4"]);
    coffer(&["sync", "--yes", tree, "/alice/canary-synced-f00d"]);
    coffer(&["get", "-r", "/alice/canary-synced-f00d", work.join("back").to_str().unwrap()]);

    // Passwords and codes, right and wrong ones.
    let (new, newer) = (
        write("new", b"canary-changed-password-ab12"),
        write("newer", b"canary-recovered-password-cd34"),
    );
    coffer(&["passwd", "--new-password-file", &new]);
    let code_file = write("code", code.as_bytes());
    let recover =
        ["recover", "alice", "--json", "--code-file", &code_file, "--new-password-file", &newer];
    let second = code_of(&cluster.coffer("alice", &recover).unwrap());
    canaries.add(&second);
    canaries.add(second.replace('-', ""));
    let wrong = write("wrong", b"canary-wrong-password-ef56");
    let refused = |user: &str, args: &[&str]| {
        let output = cluster.run(user, args).unwrap();
        assert!(!output.status.success(), "{args:?}");
        [output.stdout, output.stderr].concat()
    };
    refused("thief", &["login", "alice", "--password-file", &wrong]);
    refused("alice", &["cat", "/alice/canary-missing-6666"]);
    refused("alice", &["put", &small, "/alice/canary-versions-6a51", "--if-version", "9"]);
    refused("alice", &["mv", "/alice/canary-versions-6a51", "/bobby/canary-foreign-1a1a"]);
    for canary in [
        "canary-small-content-91c5",
        "canary-large-content-e0d2",
        "canary-directory-7f3a",
        "canary-name-55ab",
        "canary-other-name-0c1d",
        "canary-link-target-4b1f",
        "canary-link-name-c0c0",
        "canary-versions-6a51",
        "canary-moved-b7b7",
        "canary-copied-d4d4",
        "canary-synced-f00d",
        "canary-changed-password-ab12",
        "canary-recovered-password-cd34",
        "canary-wrong-password-ef56",
        "canary-missing-6666",
        "canary-foreign-1a1a",
    ] {
        canaries.add(canary);
    }
    // Others who look get nothing of hers.
    [["ls", "/alice"], ["ls", "/alice/a"], ["cat", "/alice/a"], ["tree", "/alice"]]
        .iter()
        .map(|args| refused("bobby", args))
        .collect()
}

fn with_token<M>(token: &str, message: M) -> Request<M> {
    let mut request = Request::new(message);
    let value: MetadataValue<_> = format!("Bearer {token}").parse().unwrap();
    request.metadata_mut().insert("authorization", value);
    request
}

fn said(status: &Status) -> Vec<u8> {
    [status.message().as_bytes(), status.details()].concat()
}

/// A user in gateway custody, by every call of the files API; gives what errors said.
async fn use_the_files_api(channel: &Channel, canaries: &mut Canaries) -> Vec<Vec<u8>> {
    let mut client = FilesServiceClient::new(channel.clone())
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let (name, password) = ("gwen".to_owned(), "canary-files-password-31d6".to_owned());
    let request = pb::RegisterRequest {
        name: name.clone(),
        password: password.clone(),
        invite: String::new(),
    };
    let made = client.register(request).await.unwrap().into_inner();
    let registered = made.session.unwrap().token;
    canaries.add(&made.recovery_code);
    canaries.add(made.recovery_code.replace('-', ""));
    let login = pb::LoginRequest { name: name.clone(), password };
    let logged_in = client.login(login).await.unwrap().into_inner().session.unwrap().token;
    for token in [&registered, &logged_in] {
        // The second half of a token is the key.
        let key = &token[token.len() - 64..];
        let byte = |at| u8::from_str_radix(&key[at..at + 2], 16).unwrap();
        canaries.add((0..64).step_by(2).map(byte).collect::<Vec<u8>>());
    }
    let token = &logged_in;

    let folder = "/gwen/canary-folder-07aa".to_owned();
    let notes = format!("{folder}/canary-notes-5d1f.txt");
    let make = pb::MakeDirectoryRequest { path: folder.clone(), parents: false };
    client.make_directory(with_token(token, make)).await.unwrap();
    let put = |path: &str, text: String, request_id: &str| {
        let content = Some(pb::put_request::Content::Text(text));
        let (path, request_id) = (path.to_owned(), request_id.to_owned());
        with_token(token, pb::PutRequest { path, content, request_id, ..Default::default() })
    };
    let text = "canary-text-2b7e ".repeat(30);
    client.put(put(&notes, text.clone(), "canary-request-id-77e1")).await.unwrap();
    client.put(put(&notes, "canary-second-text-9191".to_owned(), "")).await.unwrap();
    let get = |path: &str| pb::GetRequest { path: path.to_owned(), ..Default::default() };
    client.get(with_token(token, get(&notes))).await.unwrap();

    let piece = Bytes::from("canary-uploaded-88c1 ".repeat(60_000));
    let start = |path: &str| pb::StartUploadRequest { path: path.to_owned(), ..Default::default() };
    let upload = start("/gwen/canary-upload-9e40");
    let upload = client.start_upload(with_token(token, upload)).await.unwrap().into_inner();
    let upload_id = upload.upload_id;
    let write = pb::WriteUploadRequest { upload_id: upload_id.clone(), offset: 0, data: piece };
    client.write_upload(with_token(token, write)).await.unwrap();
    let finish = pb::FinishUploadRequest { upload_id, length: None };
    client.finish_upload(with_token(token, finish)).await.unwrap();
    let given_up = start("/gwen/canary-given-up-3c3c");
    let given_up = client.start_upload(with_token(token, given_up)).await.unwrap().into_inner();
    let write = pb::WriteUploadRequest {
        upload_id: given_up.upload_id.clone(),
        offset: 0,
        data: Bytes::from("canary-given-up-content-4d4d ".repeat(60_000)),
    };
    client.write_upload(with_token(token, write)).await.unwrap();
    let abort = pb::AbortUploadRequest { upload_id: given_up.upload_id };
    client.abort_upload(with_token(token, abort)).await.unwrap();
    use pb::put_stream_request::Part;
    let parts = [
        Part::Start(start("/gwen/canary-stream-b2b2")),
        Part::Data(Bytes::from("canary-streamed-0e0e ".repeat(60_000))),
    ];
    let parts = parts.map(|part| pb::PutStreamRequest { part: Some(part) });
    let stream = with_token(token, futures_util::stream::iter(parts));
    client.put_stream(stream).await.unwrap();
    let back =
        pb::GetStreamRequest { path: "/gwen/canary-stream-b2b2".to_owned(), ..Default::default() };
    let mut back = client.get_stream(with_token(token, back)).await.unwrap().into_inner();
    while back.message().await.unwrap().is_some() {}

    let list = pb::FilesServiceListRequest { path: folder.clone(), ..Default::default() };
    client.list(with_token(token, list)).await.unwrap();
    let stat = pb::StatRequest { path: notes.clone() };
    client.stat(with_token(token, stat)).await.unwrap();
    let versions =
        pb::FilesServiceListVersionsRequest { path: notes.clone(), ..Default::default() };
    client.list_versions(with_token(token, versions)).await.unwrap();
    for matching in [
        pb::find_request::Matching::Glob("canary-searched-5?5?5".to_owned()),
        pb::find_request::Matching::Contains("canary-contained-8b8b".to_owned()),
    ] {
        let find = pb::FindRequest { path: "/gwen".to_owned(), matching: Some(matching), limit: 0 };
        client.find(with_token(token, find)).await.unwrap();
    }
    let restore = pb::RestoreRequest { path: notes.clone(), version: 1 };
    client.restore(with_token(token, restore)).await.unwrap();
    let to = "/gwen/canary-renamed-a9a9".to_owned();
    let rename = pb::MoveRequest { from: folder.clone(), to: to.clone() };
    client.r#move(with_token(token, rename)).await.unwrap();
    let copy =
        pb::CopyRequest { from: to, to: "/gwen/canary-copy-e3e3".to_owned(), recursive: true };
    client.copy(with_token(token, copy)).await.unwrap();
    let remove = pb::RemoveRequest { path: "/gwen/canary-copy-e3e3".to_owned(), recursive: true };
    client.remove(with_token(token, remove)).await.unwrap();
    client.get_quota(with_token(token, pb::GetQuotaRequest {})).await.unwrap();

    // Refusals of every kind, with canaries in what is refused.
    let mut errors = Vec::new();
    let mut refused = |answer: Result<(), Status>| errors.push(said(&answer.unwrap_err()));
    let wrong = "canary-files-wrong-password-6e6e".to_owned();
    refused(client.login(pb::LoginRequest { name, password: wrong }).await.map(drop));
    let missing = get("/gwen/canary-nothing-here-2727");
    refused(client.get(with_token(token, missing)).await.map(drop));
    let foreign = get("/alice/canary-not-yours-4949");
    refused(client.get(with_token(token, foreign)).await.map(drop));
    for path in ["/gwen/canary-dots-5f5f/../x", "canary-relative-1b1b", "/gwen/canary-nul-3e3e\0"] {
        refused(client.put(put(path, "canary-refused-text-8282".to_owned(), "")).await.map(drop));
    }
    let stale = pb::PutRequest {
        path: "/gwen/canary-renamed-a9a9/canary-notes-5d1f.txt".to_owned(),
        content: Some(pb::put_request::Content::Text("canary-stale-text-c7c7".to_owned())),
        if_version: Some(99),
        ..Default::default()
    };
    refused(client.put(with_token(token, stale)).await.map(drop));
    let below = format!("{notes}/canary-below-a-file-9a9a");
    refused(client.put(put(&below, "canary-refused-text-8282".to_owned(), "")).await.map(drop));
    let odd = with_token("canary-token-that-is-none-7c7c", get("/gwen/canary-odd-token-5858"));
    refused(client.get(odd).await.map(drop));
    let unwise = pb::RegisterRequest {
        name: "Canary Name That Is None 6060".to_owned(),
        password: "canary-unused-password-7171".to_owned(),
        invite: "canary-no-invite-9393".to_owned(),
    };
    refused(client.register(unwise).await.map(drop));
    client.logout(with_token(token, pb::LogoutRequest {})).await.unwrap();
    refused(client.get(with_token(token, get("/gwen/canary-logged-out-0404"))).await.map(drop));
    for canary in [
        "canary-files-password-31d6",
        "canary-folder-07aa",
        "canary-notes-5d1f",
        "canary-text-2b7e",
        "canary-request-id-77e1",
        "canary-second-text-9191",
        "canary-upload-9e40",
        "canary-uploaded-88c1",
        "canary-given-up-3c3c",
        "canary-given-up-content-4d4d",
        "canary-stream-b2b2",
        "canary-streamed-0e0e",
        "canary-searched-5",
        "canary-contained-8b8b",
        "canary-renamed-a9a9",
        "canary-copy-e3e3",
        "canary-files-wrong-password-6e6e",
        "canary-nothing-here-2727",
        "canary-not-yours-4949",
        "canary-dots-5f5f",
        "canary-relative-1b1b",
        "canary-nul-3e3e",
        "canary-refused-text-8282",
        "canary-stale-text-c7c7",
        "canary-below-a-file-9a9a",
        "canary-token-that-is-none-7c7c",
        "canary-odd-token-5858",
        "Canary Name That Is None 6060",
        "canary-unused-password-7171",
        "canary-no-invite-9393",
        "canary-logged-out-0404",
        registered.as_str(),
        logged_in.as_str(),
    ] {
        canaries.add(canary);
    }
    errors
}

/// What an administrator does, and the key it is done with.
fn administrate(cluster: &Cluster, canaries: &mut Canaries) {
    let dir = cluster.cluster_dir();
    let order = |args: &[&str]| {
        let args = [&["order"], args, &["--dir", dir.to_str().unwrap()]].concat();
        cluster.coffer("operator", &args).unwrap();
    };
    order(&["retention", "1h"]);
    order(&["quota", "--user", "alice", "1G"]);
    order(&["invite"]);
    let mut secrets = Vec::new();
    all_files(&dir.join("secret"), &mut secrets);
    let mut keys = 0;
    for path in secrets {
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let bytes = fs::read(&path).unwrap();
        // The members hold the seed of logins, and say so nowhere either.
        if name == "opaque.setup" {
            canaries.add(&bytes[bytes.len() - 32..]);
            keys += 1;
        } else if name.contains("key") {
            let middle = bytes.len() / 2;
            canaries.add(&bytes[middle..(middle + 24).min(bytes.len())]);
            keys += 1;
        }
    }
    assert!(keys >= 2, "the administrator's folder has changed: nothing of it is looked for");
}

/// Goal: nothing that is a secret of users or administrators is anywhere in a server but in the memory it is
/// meant for. Method: secrets that are known by heart go through every command and every call, and into what is
/// refused; then they are looked for, as they are, in hexadecimal and in base64, in every file of every
/// server (data, logs, audit), on every page of metrics, in all that a collector of traces and logs got,
/// and in what errors said. That the search would find them is shown by what it does find: a user's name.
#[test]
fn secrets_are_nowhere_in_any_server() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (collector, address) = runtime.block_on(Collector::serve());
    let settings = [("OTEL_EXPORTER_OTLP_ENDPOINT", address.as_str()), ("COFFER_LOG", "debug")];
    let mut cluster = Cluster::start_set(0, &settings).unwrap();
    let mut canaries = Canaries::default();
    let mut places: Vec<(String, Vec<u8>)> = Vec::new();
    for error in use_the_command_line(&cluster, &mut canaries) {
        places.push(("what the command line was told".to_owned(), error));
    }
    let errors = runtime.block_on(async {
        use_the_files_api(&channel(&cluster, &cluster.address), &mut canaries).await
    });
    for error in errors {
        places.push(("an error of the files API".to_owned(), error));
    }
    administrate(&cluster, &mut canaries);
    let founded = fs::read(cluster.cluster_dir().join("cluster.json")).unwrap();
    let founded: serde_json::Value = serde_json::from_slice(&founded).unwrap();
    for process in founded["processes"].as_array().unwrap() {
        let page = scrape(process["health"].as_str().unwrap());
        places.push((format!("the metrics of {}", process["name"]), page.into_bytes()));
    }
    let status = cluster.coffer("bobby", &["status", "--json"]).unwrap();
    places.push(("the cluster's status".to_owned(), status.into_bytes()));
    cluster.stop().unwrap();
    let exported = std::mem::take(&mut *collector.0.lock().unwrap());
    assert!(exported.len() > 10_000, "the collector got {} bytes", exported.len());
    places.push(("what was exported".to_owned(), exported));

    let (mut kept, mut knows_users, mut audited) = (0, 0, false);
    for name in cluster.processes().unwrap() {
        let mut found = Vec::new();
        all_files(&cluster.cluster_dir().join(&name), &mut found);
        for path in found {
            let shown = path.display().to_string();
            let bytes = fs::read(&path).unwrap();
            kept += bytes.len();
            if path.starts_with(cluster.cluster_dir().join(&name).join("data")) {
                // What was flushed is compressed, and would be searched in vain; before that all of it
                // stands in the log of writes.
                let flushed =
                    ["sst", "blob"].iter().any(|end| path.extension().is_some_and(|it| it == *end));
                assert!(!flushed || name.starts_with("storage"), "{shown} is compressed");
                let mut user = Canaries::default();
                user.form(b"gwen".to_vec(), "a user's name");
                knows_users += usize::from(user.found_in(&bytes).is_some());
            }
            audited |= shown.ends_with("audit.jsonl") && !bytes.is_empty();
            places.push((shown, bytes));
        }
    }
    for (place, bytes) in &places {
        canaries.check(place, bytes);
    }
    assert!(kept > 3 * 2_600_000, "the servers do not even keep three copies");
    assert!(knows_users >= 3, "the search does not see what members know");
    assert!(audited, "there is no audit log");
}
