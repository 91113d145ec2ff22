//! A client that is of a later release than the servers: what they do not know they pass over or refuse, and
//! never take for something else.

use std::collections::BTreeMap;

use bytes::Bytes;
use coffer_chaos::Cluster;
use coffer_proto::v1 as pb;
use coffer_proto::v1::files_service_client::FilesServiceClient;
use coffer_service::channel::Channel;
use coffer_service::status::reason_of;
use prost::Message;
use tonic::metadata::MetadataValue;
use tonic::{Code, Request, Status};

use crate::api::channel;

/// A put of a later release: what a later client sends beside or instead of what is known here.
#[derive(Clone, PartialEq, Message)]
struct LaterPut {
    #[prost(string, tag = "1")]
    path: String,
    #[prost(bytes = "bytes", optional, tag = "2")]
    data: Option<Bytes>,
    /// A kind of content that nobody knows yet.
    #[prost(string, optional, tag = "1001")]
    torrent: Option<String>,
    /// Something beside it.
    #[prost(btree_map = "string, uint64", tag = "1002")]
    labels: BTreeMap<String, u64>,
}

/// A part of a stream of a kind that nobody knows yet.
#[derive(Clone, PartialEq, Message)]
struct LaterPart {
    #[prost(bytes = "bytes", tag = "1001")]
    sparse: Bytes,
}

/// Any call by its name, with the messages of another release.
async fn call<Q: Message + 'static, A: Message + Default + 'static>(
    channel: &Channel,
    token: &str,
    method: &str,
    message: Q,
) -> Result<A, Status> {
    let mut client = tonic::client::Grpc::new(channel.clone());
    client.ready().await.unwrap();
    let codec = tonic_prost::ProstCodec::<Q, A>::default();
    let path = method.to_owned().try_into().unwrap();
    client.unary(with_token(token, message), path, codec).await.map(tonic::Response::into_inner)
}

fn with_token<M>(token: &str, message: M) -> Request<M> {
    let mut request = Request::new(message);
    let value: MetadataValue<_> = format!("Bearer {token}").parse().unwrap();
    request.metadata_mut().insert("authorization", value);
    request
}

async fn register(channel: &Channel) -> String {
    let request = pb::RegisterRequest {
        name: "alice".to_owned(),
        password: "a password".to_owned(),
        invite: String::new(),
    };
    let made = FilesServiceClient::new(channel.clone()).register(request).await.unwrap();
    made.into_inner().session.unwrap().token
}

async fn content(channel: &Channel, token: &str, path: &str) -> Vec<u8> {
    let request = pb::GetRequest { path: path.to_owned(), ..Default::default() };
    let got = FilesServiceClient::new(channel.clone()).get(with_token(token, request)).await;
    match got.unwrap().into_inner().content {
        Some(pb::get_response::Content::Data(data)) => data.to_vec(),
        _ => panic!("no bytes"),
    }
}

/// Goal: what a later release adds to a request does not keep an earlier server from doing what it knows, and
/// what a later release asks for that a server cannot do is refused, in words that say what to do, and changes
/// nothing. Method: a put with fields beside its content; a put, a stream and a question whose content is of a
/// kind not known here, over a file that is there; a method and a service that are not there.
#[test]
fn a_later_client_is_understood_or_refused() {
    let cluster = Cluster::start().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let channel = channel(&cluster, &cluster.address);
        let token = register(&channel).await;
        let method = "/coffer.v1.FilesService/Put";
        let later = LaterPut {
            path: "/alice/file".to_owned(),
            data: Some(Bytes::from_static(b"what was put")),
            torrent: None,
            labels: BTreeMap::from([("colour".to_owned(), 7)]),
        };
        let put: pb::PutResponse = call(&channel, &token, method, later.clone()).await.unwrap();
        assert_eq!(put.file.unwrap().version, 1);
        assert_eq!(content(&channel, &token, "/alice/file").await, b"what was put");

        let strange = LaterPut { data: None, torrent: Some("magnet:".to_owned()), ..later };
        let refused =
            call::<_, pb::PutResponse>(&channel, &token, method, strange).await.unwrap_err();
        check_refused(&refused, Code::InvalidArgument, "CONTENT_MISSING", "`data` or `text`");
        let read = pb::Query { query: None };
        let read = pb::ReadRequest { queries: vec![read], min_revision: 0 };
        let mut part = Vec::new();
        LaterPart { sparse: Bytes::from_static(b"holes") }.encode(&mut part).unwrap();
        let part = pb::PutStreamRequest::decode(&part[..]).unwrap();
        let start = pb::StartUploadRequest { path: "/alice/file".to_owned(), ..Default::default() };
        let start = Some(pb::put_stream_request::Part::Start(start));
        let parts = vec![pb::PutStreamRequest { part: start }, part];
        let stream = with_token(&token, futures_util::stream::iter(parts));
        let refused =
            FilesServiceClient::new(channel.clone()).put_stream(stream).await.unwrap_err();
        check_refused(&refused, Code::InvalidArgument, "STREAM_MALFORMED", "than bytes");
        // Nothing of this made a version.
        assert_eq!(content(&channel, &token, "/alice/file").await, b"what was put");

        for method in ["/coffer.v1.FilesService/Share", "/coffer.v2.FilesService/Put"] {
            let answer = call::<_, pb::PutResponse>(&channel, &token, method, read.clone()).await;
            assert_eq!(answer.unwrap_err().code(), Code::Unimplemented, "{method}");
        }
        // An empty file is asked for by empty content.
        let empty = LaterPut {
            path: "/alice/empty".to_owned(),
            data: Some(Bytes::new()),
            ..Default::default()
        };
        call::<_, pb::PutResponse>(&channel, &token, method, empty).await.unwrap();
        assert_eq!(content(&channel, &token, "/alice/empty").await, b"");
    });
}

fn check_refused(refused: &Status, code: Code, expected: &str, says: &str) {
    let reason = reason_of(refused).map(|reason| reason.code);
    assert_eq!((refused.code(), reason.as_deref()), (code, Some(expected)), "{refused:?}");
    assert!(refused.message().contains(says), "{refused:?}");
}
