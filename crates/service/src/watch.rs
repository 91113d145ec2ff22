//! Watching calls from outside of whoever handles them: each is counted, timed, and written into the
//! audit log, and is a span where spans are exported.

use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use http::{Request, Response};
use opentelemetry::context::FutureExt;
use tonic::body::Body;
use tonic::{Code, Status};
use tower::{Layer, Service};

use crate::audit::{AuditLog, Decision, Event, Note};
use crate::metrics::{Metrics, code_name};
use crate::server::ConnectionInfo;
use crate::status::reason_of;
use crate::telemetry::Traces;
use crate::trace::CallSpan;

/// What a process remembers of every call.
#[derive(Clone, Debug)]
pub struct Watch {
    role: &'static str,
    metrics: Arc<Metrics>,
    audit: Option<AuditLog>,
    traces: Option<Traces>,
    quiet: &'static [&'static str],
}

/// Why nothing can be watched.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// Two metrics have one name.
    #[error("the metrics contradict each other")]
    Metrics(#[from] prometheus::Error),
    /// The audit log cannot be written.
    #[error("cannot open the audit log {}", path.display())]
    AuditLog {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

impl Watch {
    /// Watches the calls of a process of this kind that serves these methods and refuses for these
    /// reasons (see [`Metrics::new`]). Without a file there is no audit log; without a collector, named
    /// when telemetry was started, there are no spans.
    pub fn start(
        role: &'static str,
        methods: impl IntoIterator<Item = String>,
        reasons: impl IntoIterator<Item = &'static str>,
        audit_log: Option<&Path>,
    ) -> Result<Self, WatchError> {
        let metrics = Metrics::new(methods, reasons)?;
        let open = |path: &Path| {
            AuditLog::open(path, metrics.lost_events().clone())
                .map_err(|source| WatchError::AuditLog { path: path.to_owned(), source })
        };
        let audit = audit_log.map(open).transpose()?;
        let traces = Traces::present();
        if let Some(traces) = &traces {
            metrics.show(&traces.undelivered)?;
        }
        Ok(Self { role, metrics, audit, traces, quiet: &[] })
    }

    /// Leaves calls of these methods out of the audit log where they go well, and out of traces: those
    /// by which processes keep each other up to date, many times a second, for nobody in particular.
    #[must_use]
    pub fn with_quiet(self, methods: &'static [&'static str]) -> Self {
        Self { quiet: methods, ..self }
    }

    /// What is counted.
    pub fn metrics(&self) -> Arc<Metrics> {
        Arc::clone(&self.metrics)
    }

    fn span(&self, request: &Request<Body>) -> Option<CallSpan> {
        let path = request.uri().path();
        let traces = self.traces.as_ref().filter(|_| !self.quiet.contains(&path))?;
        Some(CallSpan::begin(traces, self.role, request, self.metrics.knows(path)))
    }

    fn answered(&self, call: &Call, answer: Option<&Response<Body>>) {
        let status = answer.and_then(|answer| Status::from_header_map(answer.headers()));
        // Without a status in its head an answer goes well; without an answer the service broke.
        let code = match (&status, answer) {
            (Some(status), _) => status.code(),
            (None, Some(_)) => Code::Ok,
            (None, None) => Code::Internal,
        };
        let reason = status.as_ref().and_then(reason_of).map(|reason| reason.code);
        let took = call.began.elapsed();
        self.metrics.handled(&call.path, code, reason.as_deref(), took.as_secs_f64());
        if let Some(span) = &call.span {
            span.end(code);
        }
        let Some(audit) = &self.audit else { return };
        if code == Code::Ok && self.quiet.contains(&call.path.as_str()) {
            return;
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        audit.write(&Event {
            time_ms: u64::try_from(now.as_millis()).unwrap_or(u64::MAX),
            role: self.role,
            method: &call.path,
            from: call.from.clone(),
            process: call.process.clone(),
            subject: call.note.take(),
            decision: match code {
                Code::Ok => Decision::Allowed,
                Code::Unauthenticated | Code::PermissionDenied => Decision::Denied,
                _ => Decision::Failed,
            },
            code: code_name(code),
            reason: reason.as_deref(),
            micros: u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
        });
    }
}

/// A call that is being handled.
struct Call {
    began: Instant,
    path: String,
    from: Option<String>,
    process: Option<String>,
    note: Note,
    span: Option<CallSpan>,
}

impl Call {
    fn of(request: &mut Request<Body>, span: Option<CallSpan>) -> Self {
        let note = Note::default();
        let connection = request.extensions().get::<ConnectionInfo>();
        let from = connection.and_then(ConnectionInfo::remote_addr).map(|addr| addr.to_string());
        let process = connection.and_then(ConnectionInfo::peer).map(ToString::to_string);
        request.extensions_mut().insert(note.clone());
        let path = request.uri().path().to_owned();
        Self { began: Instant::now(), path, from, process, note, span }
    }
}

impl<S> Layer<S> for Watch {
    type Service = Watched<S>;

    fn layer(&self, inner: S) -> Watched<S> {
        Watched { inner, watch: self.clone() }
    }
}

/// A service that is watched.
#[derive(Clone, Debug)]
pub struct Watched<S> {
    inner: S,
    watch: Watch,
}

impl<S> Service<Request<Body>> for Watched<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let watch = self.watch.clone();
        let span = watch.span(&request);
        let call = Call::of(&mut request, span);
        let in_flight = watch.metrics.begun();
        let answer = self.inner.call(request);
        Box::pin(async move {
            let answer = match &call.span {
                Some(span) => answer.with_context(span.context()).await,
                None => answer.await,
            };
            watch.answered(&call, answer.as_ref().ok());
            drop(in_flight);
            answer
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::convert::Infallible;

    use tower::{ServiceExt, service_fn};

    use super::*;
    use crate::status::status;

    #[tokio::test]
    async fn each_call_is_counted_and_written_down_with_its_reason() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.jsonl");
        let methods = ["/a.B/Good".to_owned(), "/a.B/Bad".to_owned()];
        let service = service_fn(|request: Request<Body>| async move {
            let note = request.extensions().get::<Note>().unwrap().clone();
            note.add(|subject| subject.principal = Some("ab".to_owned()));
            let answer = match request.uri().path() {
                "/a.B/Good" | "/a.B/Often" => Response::new(Body::empty()),
                _ => status(Code::PermissionDenied, "NOT_YOURS", "no", &[]).into_http(),
            };
            Ok::<_, Infallible>(answer)
        });
        let watch = Watch::start("worker", methods, ["NOT_YOURS"], Some(&path)).unwrap();
        let watch = watch.with_quiet(&["/a.B/Often", "/a.B/OftenBad"]);
        let metrics = watch.metrics();
        let watched = watch.layer(service);
        for path in ["/a.B/Often", "/a.B/Good", "/a.B/Bad", "/a.B/OftenBad"] {
            let request = Request::builder().uri(path).body(Body::empty()).unwrap();
            watched.clone().oneshot(request).await.unwrap();
        }
        drop((watch, watched));
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().count(), 3);
        let events: Vec<serde_json::Value> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(events[0]["decision"], "allowed");
        assert_eq!(events[1]["decision"], "denied");
        assert_eq!(events[1]["reason"], "NOT_YOURS");
        assert!(events.iter().all(|event| event["principal"] == "ab"));
        let text = metrics.text().unwrap();
        assert!(text.contains("coffer_refused_total{reason=\"NOT_YOURS\"} 2"), "{text}");
        assert!(text.contains("grpc_code=\"OK\",grpc_method=\"/a.B/Good\"} 1"), "{text}");
    }
}
