//! Spans: one for each call that is handled, below the one the caller sent along, above those of the
//! calls that are made while it is handled.
//!
//! A span says which method, of which role, with which code and for how long. It has nothing of what
//! the call was about, nor of who made it: that is for the audit log.

use http::{HeaderMap, HeaderValue, Request};
use opentelemetry::propagation::{Extractor, Injector, TextMapPropagator};
use opentelemetry::trace::{SpanKind, Status, TraceContextExt, Tracer as _};
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tonic::Code;
use tonic::body::Body;

use crate::telemetry::Traces;

/// The one header of W3C trace context that is read and sent. `tracestate` may hold anything, so it is
/// neither exported nor passed on.
const TRACEPARENT: &str = "traceparent";
/// Service and method of a call that nobody knows: what it asks for may be anything.
const OTHER: &str = "other";

/// The span of a call that is being handled. It ends with [`Self::end`], or without a code when it is
/// dropped: then the caller has gone away.
#[derive(Clone, Debug)]
pub(crate) struct CallSpan(Context);

impl CallSpan {
    /// Begins the span of `request`. Its path is named only if the method is known.
    pub(crate) fn begin(
        traces: &Traces,
        role: &'static str,
        request: &Request<Body>,
        known: bool,
    ) -> Self {
        let path = request.uri().path().strip_prefix('/').filter(|_| known).unwrap_or(OTHER);
        let (service, method) = path.split_once('/').unwrap_or((OTHER, OTHER));
        let parent =
            TraceContextPropagator::new().extract_with_context(&Context::new(), &Parent(request));
        let span = traces
            .tracer
            .span_builder(path.to_owned())
            .with_kind(SpanKind::Server)
            .with_attributes([
                KeyValue::new("rpc.system", "grpc"),
                KeyValue::new("rpc.service", service.to_owned()),
                KeyValue::new("rpc.method", method.to_owned()),
                KeyValue::new("coffer.role", role),
            ])
            .start_with_context(&traces.tracer, &parent);
        Self(parent.with_span(span))
    }

    /// What has to be in force while the call is handled.
    pub(crate) fn context(&self) -> Context {
        self.0.clone()
    }

    /// The answer has begun.
    pub(crate) fn end(&self, code: Code) {
        let span = self.0.span();
        span.set_attribute(KeyValue::new("rpc.grpc.status_code", i64::from(i32::from(code))));
        if is_fault(code) {
            // A text could name what the call was about.
            span.set_status(Status::error(""));
        }
        span.end();
    }
}

/// Whether the server, not the caller, is at fault.
const fn is_fault(code: Code) -> bool {
    matches!(
        code,
        Code::Unknown
            | Code::DeadlineExceeded
            | Code::Unimplemented
            | Code::Internal
            | Code::Unavailable
            | Code::DataLoss
    )
}

/// Names the span in force, if there is one, to whoever is called.
pub(crate) fn pass_on(headers: &mut HeaderMap) {
    let context = Context::current();
    if context.has_active_span() {
        TraceContextPropagator::new().inject_context(&context, &mut Child(headers));
    }
}

/// What a propagator may see of a request.
struct Parent<'a>(&'a Request<Body>);

impl Extractor for Parent<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        let value = self.0.headers().get(TRACEPARENT).filter(|_| key == TRACEPARENT);
        value.and_then(|value| value.to_str().ok())
    }

    fn keys(&self) -> Vec<&str> {
        vec![TRACEPARENT]
    }
}

/// What a propagator may put on a request.
struct Child<'a>(&'a mut HeaderMap);

impl Injector for Child<'_> {
    fn set(&mut self, key: &str, value: String) {
        if key != TRACEPARENT {
            return;
        }
        if let Ok(value) = HeaderValue::from_str(&value) {
            self.0.insert(TRACEPARENT, value);
        }
    }
}
