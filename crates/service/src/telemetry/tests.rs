//! What a collector gets, and what it never gets, over a real connection.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use http::{Request, Response};
use opentelemetry_proto::tonic::collector::logs::v1::logs_service_server::{
    LogsService, LogsServiceServer,
};
use opentelemetry_proto::tonic::collector::logs::v1::{
    ExportLogsServiceRequest, ExportLogsServiceResponse,
};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_client::TraceServiceClient;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use prost::Message;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::body::Body;
use tonic::transport::Endpoint;
use tonic::{Code, Status};
use tower::{Layer as _, ServiceExt, service_fn};
use tracing::subscriber::DefaultGuard;

use super::*;
use crate::channel::Channel;
use crate::metrics::Metrics;
use crate::peer::PeerId;
use crate::shutdown::Shutdown;
use crate::status::status;
use crate::watch::Watch;

/// What stands in a call and must not leave the process.
const CANARY: &str = "canary-7f3a";
const TRACE_ID: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const SPAN_ID: &str = "00f067aa0ba902b7";

/// A collector that keeps what it gets.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Collected>>);

#[derive(Debug, Default)]
struct Collected {
    spans: Vec<ExportTraceServiceRequest>,
    lines: Vec<ExportLogsServiceRequest>,
    /// The span that each call with spans named as its parent.
    parents: Vec<Option<String>>,
}

impl Collector {
    async fn serve() -> (Self, SocketAddr) {
        let collector = Self::default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let serving = tonic::transport::Server::builder()
            .add_service(TraceServiceServer::new(collector.clone()))
            .add_service(LogsServiceServer::new(collector.clone()))
            .serve_with_incoming(TcpListenerStream::new(listener));
        tokio::spawn(serving);
        (collector, address)
    }
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, Status> {
        let parent = request.metadata().get("traceparent");
        let parent = parent.map(|parent| parent.to_str().unwrap().to_owned());
        let mut collected = self.0.lock().unwrap();
        collected.parents.push(parent);
        collected.spans.push(request.into_inner());
        Ok(tonic::Response::new(Default::default()))
    }
}

#[tonic::async_trait]
impl LogsService for Collector {
    async fn export(
        &self,
        request: tonic::Request<ExportLogsServiceRequest>,
    ) -> Result<tonic::Response<ExportLogsServiceResponse>, Status> {
        self.0.lock().unwrap().lines.push(request.into_inner());
        Ok(tonic::Response::new(Default::default()))
    }
}

/// A process that exports to `address`, for this thread.
fn exporting(address: SocketAddr) -> (Export, DefaultGuard) {
    let otlp = Otlp {
        endpoint: format!("http://{address}"),
        role: "worker",
        instance: Some(PeerId::new("worker", [0x0a; 16]).unwrap()),
    };
    let export = Export::start(&otlp).unwrap();
    let subscriber = tracing_subscriber::registry().with(export.layer());
    let guard = tracing::subscriber::set_default(subscriber);
    (export, guard)
}

/// Handles calls that go well, that are refused, that nobody knows, and that come often; all carry the
/// canary wherever a caller can put it.
async fn handle_calls() -> Arc<Metrics> {
    let methods = ["/a.B/Good".to_owned(), "/a.B/Bad".to_owned(), "/a.B/Often".to_owned()];
    let service = service_fn(|request: Request<Body>| async move {
        tokio::task::yield_now().await;
        tracing::info!(parts = 3, "something was done");
        tracing::info!(target: "library", text = CANARY, "a library has said something");
        let answer = match request.uri().path() {
            "/a.B/Good" | "/a.B/Often" => Response::new(Body::empty()),
            "/a.B/Bad" => {
                status(Code::Internal, "BROKEN", CANARY, &[("name", CANARY.to_owned())]).into_http()
            }
            _ => Status::unimplemented(CANARY).into_http(),
        };
        Ok::<_, Infallible>(answer)
    });
    let watch = Watch::start("worker", methods, ["BROKEN"], None).unwrap();
    let watch = watch.with_quiet(&["/a.B/Often"]);
    let metrics = watch.metrics();
    let watched = watch.layer(service);
    for path in ["/a.B/Good", "/a.B/Bad", "/canary-7f3a/canary-7f3a", "/a.B/Often"] {
        let request = Request::builder()
            .uri(format!("{path}?{CANARY}"))
            .header("traceparent", format!("00-{TRACE_ID}-{SPAN_ID}-01"))
            .header("tracestate", format!("vendor={CANARY}"))
            .header("authorization", CANARY)
            .body(Body::new(CANARY.to_owned()))
            .unwrap();
        watched.clone().oneshot(request).await.unwrap();
    }
    metrics
}

/// Attributes as texts, by name.
fn texts(attributes: &[KeyValue]) -> BTreeMap<String, String> {
    let text = |value: &Option<AnyValue>| match value.as_ref()?.value.as_ref()? {
        Value::StringValue(text) => Some(text.clone()),
        Value::IntValue(number) => Some(number.to_string()),
        _ => None,
    };
    let named = |it: &KeyValue| Some((it.key.clone(), text(&it.value)?));
    attributes.iter().filter_map(named).collect()
}

#[track_caller]
fn check_resource(attributes: &[KeyValue]) {
    let resource = texts(attributes);
    assert_eq!(resource["service.name"], "coffer-worker");
    assert_eq!(resource["service.version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(resource["service.instance.id"], "0a".repeat(16));
}

#[tokio::test]
async fn a_collector_gets_calls_and_own_lines_and_nothing_of_what_they_are_about() {
    let (collector, address) = Collector::serve().await;
    let (export, _guard) = exporting(address);
    let metrics = handle_calls().await;
    export.stop().await;

    let collected = collector.0.lock().unwrap();
    let mut bytes: Vec<u8> = Vec::new();
    collected.spans.iter().for_each(|sent| sent.encode(&mut bytes).unwrap());
    collected.lines.iter().for_each(|sent| sent.encode(&mut bytes).unwrap());
    assert!(bytes.windows(6).any(|at| at == b"a.B/Go"), "it would not be found");
    assert!(!bytes.windows(CANARY.len()).any(|at| at == CANARY.as_bytes()), "{collected:?}");

    let of_process = collected.spans.iter().flat_map(|sent| &sent.resource_spans);
    let of_process: Vec<_> = of_process.collect();
    of_process.iter().for_each(|it| check_resource(&it.resource.as_ref().unwrap().attributes));
    let spans: Vec<_> = of_process
        .iter()
        .flat_map(|it| it.scope_spans.iter().flat_map(|scope| &scope.spans))
        .collect();
    let names: Vec<_> = spans.iter().map(|span| span.name.as_str()).collect();
    assert_eq!(names, ["a.B/Good", "a.B/Bad", "other"]);
    let expected = [("a.B", "Good", "0"), ("a.B", "Bad", "13"), ("other", "other", "12")];
    for (span, (service, method, code)) in spans.iter().zip(expected) {
        let attributes = texts(&span.attributes);
        let expected = [
            ("coffer.role", "worker"),
            ("rpc.grpc.status_code", code),
            ("rpc.method", method),
            ("rpc.service", service),
            ("rpc.system", "grpc"),
        ];
        assert!(
            attributes.iter().map(|(key, value)| (key.as_str(), value.as_str())).eq(expected),
            "{attributes:?}"
        );
        assert_eq!(hex::encode(&span.trace_id), TRACE_ID);
        assert_eq!(hex::encode(&span.parent_span_id), SPAN_ID);
        assert!(span.trace_state.is_empty() && span.events.is_empty(), "{span:?}");
    }

    let of_process = collected.lines.iter().flat_map(|sent| &sent.resource_logs);
    let of_process: Vec<_> = of_process.collect();
    of_process.iter().for_each(|it| check_resource(&it.resource.as_ref().unwrap().attributes));
    let lines: Vec<_> = of_process
        .iter()
        .flat_map(|it| it.scope_logs.iter().flat_map(|scope| &scope.log_records))
        .collect();
    assert_eq!(lines.len(), 4, "{lines:?}");
    for line in &lines {
        let text = line.body.as_ref().and_then(|body| body.value.clone());
        assert_eq!(text, Some(Value::StringValue("something was done".to_owned())));
        assert_eq!(texts(&line.attributes)["parts"], "3");
    }
    // A line says in which call it was written.
    assert_eq!(lines[0].trace_id, spans[0].trace_id);
    assert_eq!(lines[0].span_id, spans[0].span_id);

    let text = metrics.text().unwrap();
    assert!(text.contains("coffer_telemetry_undelivered_total 0"), "{text}");
}

/// Any call will do to see what is sent along.
async fn call(channel: Channel) {
    let mut client = TraceServiceClient::new(channel);
    client.export(ExportTraceServiceRequest::default()).await.unwrap();
}

#[tokio::test]
async fn a_call_made_while_another_is_handled_belongs_to_it() {
    let (collector, address) = Collector::serve().await;
    let (called, called_address) = Collector::serve().await;
    let (export, _guard) = exporting(address);
    let endpoint = Endpoint::from_shared(format!("http://{called_address}")).unwrap();
    let channel = Channel::from(endpoint.connect_lazy());
    let (within, shutdown) = (channel.clone(), Shutdown::new());
    let service = service_fn(move |_: Request<Body>| {
        let (channel, shutdown) = (within.clone(), shutdown.clone());
        async move {
            call(channel.clone()).await;
            shutdown.spawn("call on the side", call(channel)).await.unwrap();
            Ok::<_, Infallible>(Response::new(Body::empty()))
        }
    });
    let watch = Watch::start("worker", ["/a.B/Good".to_owned()], [], None).unwrap();
    let request = Request::builder()
        .uri("/a.B/Good")
        .header("traceparent", format!("00-{TRACE_ID}-{SPAN_ID}-01"))
        .header("tracestate", format!("vendor={CANARY}"));
    watch.layer(service).oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
    call(channel).await;
    export.stop().await;

    let collected = collector.0.lock().unwrap();
    assert_eq!(collected.parents, [None]);
    let span = &collected.spans[0].resource_spans[0].scope_spans[0].spans[0];
    let own = Some(format!("00-{TRACE_ID}-{}-01", hex::encode(&span.span_id)));
    assert_eq!(called.0.lock().unwrap().parents, [own.clone(), own, None]);
}

#[tokio::test]
async fn without_an_endpoint_nothing_is_started() {
    let subscriber = tracing_subscriber::registry().with(None::<export::ExportLayer>);
    let _guard = tracing::subscriber::set_default(subscriber);
    assert!(Traces::present().is_none());
    let metrics = handle_calls().await;
    assert!(!metrics.text().unwrap().contains("coffer_telemetry"));
    TelemetryGuard(None).stop().await;
}

#[tokio::test]
async fn where_nobody_listens_calls_go_on_and_the_loss_is_counted() {
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = free.local_addr().unwrap();
    drop(free);
    let (export, _guard) = exporting(address);
    let metrics = handle_calls().await;
    export.stop().await;
    let text = metrics.text().unwrap();
    assert!(text.contains("coffer_telemetry_undelivered_total 7"), "{text}");
}

#[tokio::test]
async fn a_collector_that_never_answers_does_not_hold_up_the_end() {
    // It takes connections, for the system does, and says nothing on them.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (export, _guard) = exporting(silent.local_addr().unwrap());
    handle_calls().await;
    tokio::time::timeout(export::FLUSH_MAX * 3, export.stop()).await.unwrap();
}

#[tokio::test]
async fn addresses_are_checked() {
    let bad = ["", "host:4317", "http://host", "https://host:4317", "http://", "unix:/path"];
    for endpoint in bad {
        let otlp = Otlp { endpoint: endpoint.to_owned(), role: "worker", instance: None };
        let refused = Export::start(&otlp);
        assert!(matches!(refused, Err(TelemetryError::InvalidEndpoint { .. })), "{endpoint}");
    }
}

#[test]
fn a_second_start_is_harmless_and_a_bad_filter_is_named() {
    let _first = init(LogFormat::Text, "off", None).unwrap();
    let _second = init(LogFormat::Json, "info", None).unwrap();
    let error = init(LogFormat::Text, "coffer=loud", None).unwrap_err();
    assert!(error.to_string().contains("\"coffer=loud\""), "{error}");
}

/// Goal: `debug` alone is of use to who watches a server; who wants the frames names them.
#[test]
fn a_level_alone_leaves_out_every_frame() {
    assert!(parse("debug").unwrap().to_string().contains("h2=info"));
    for named in ["info", "debug,h2=debug", "coffer_gateway=trace"] {
        let told = parse(named).unwrap().to_string();
        assert!(!told.contains("h2=info"), "{named}: {told}");
    }
    assert!(parse("no=such=level").is_err());
}
