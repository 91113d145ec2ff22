//! What a process counts, for Prometheus. Names of gRPC metrics are those that gRPC servers in other
//! languages use, so that dashboards fit.
//!
//! Labels are bounded: a method or a reason that was not named at the start is counted as `other`.

use std::collections::BTreeSet;
use std::sync::Arc;

use prometheus::process_collector::ProcessCollector;
use prometheus::{
    Encoder, HistogramOpts, HistogramVec, IntCounterVec, Opts, Registry, TextEncoder,
};
pub use prometheus::{Error as MetricsError, IntCounter, IntGauge};
use tonic::Code;

/// The label of what has no label of its own.
const OTHER: &str = "other";
/// Upper bounds of the buckets of handling times, in seconds.
const SECONDS: [f64; 12] =
    [0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 20.0];

/// The metrics of a process.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    handled: IntCounterVec,
    seconds: HistogramVec,
    in_flight: IntGauge,
    refused: IntCounterVec,
    lost_events: IntCounter,
    methods: BTreeSet<String>,
    reasons: BTreeSet<&'static str>,
}

impl Metrics {
    /// The metrics of a process that serves these methods (`/package.Service/Method`) and refuses for
    /// these reasons. Each reason's counter is there from the start, at zero, so that an alert on its
    /// growth has something to grow from.
    pub fn new(
        methods: impl IntoIterator<Item = String>,
        reasons: impl IntoIterator<Item = &'static str>,
    ) -> Result<Arc<Self>, prometheus::Error> {
        let registry = Registry::new();
        let handled = IntCounterVec::new(
            Opts::new("grpc_server_handled_total", "Calls that were answered, by method and code"),
            &["grpc_method", "grpc_code"],
        )?;
        let seconds = HistogramVec::new(
            HistogramOpts::new("grpc_server_handling_seconds", "Time until the answer began")
                .buckets(SECONDS.to_vec()),
            &["grpc_method"],
        )?;
        let in_flight = IntGauge::new("grpc_server_in_flight", "Calls that are being handled")?;
        let refused = IntCounterVec::new(
            Opts::new("coffer_refused_total", "Calls that were refused, by reason"),
            &["reason"],
        )?;
        let lost_events = IntCounter::new(
            "coffer_audit_events_lost_total",
            "Audit events that could not be written",
        )?;
        registry.register(Box::new(handled.clone()))?;
        registry.register(Box::new(seconds.clone()))?;
        registry.register(Box::new(in_flight.clone()))?;
        registry.register(Box::new(refused.clone()))?;
        registry.register(Box::new(lost_events.clone()))?;
        registry.register(Box::new(ProcessCollector::for_self()))?;
        let reasons: BTreeSet<&'static str> = reasons.into_iter().collect();
        for reason in reasons.iter().copied().chain([OTHER]) {
            refused.with_label_values(&[reason]);
        }
        let methods = methods.into_iter().collect();
        Ok(Arc::new(Self {
            registry,
            handled,
            seconds,
            in_flight,
            refused,
            lost_events,
            methods,
            reasons,
        }))
    }

    /// A number of a role's own that goes up and down. One name is one gauge.
    pub fn gauge(&self, name: &str, help: &str) -> Result<IntGauge, prometheus::Error> {
        let gauge = IntGauge::new(name, help)?;
        self.registry.register(Box::new(gauge.clone()))?;
        Ok(gauge)
    }

    /// A number of a role's own that only goes up; it begins at zero. One name is one counter.
    pub fn counter(&self, name: &str, help: &str) -> Result<IntCounter, prometheus::Error> {
        let counter = IntCounter::new(name, help)?;
        self.registry.register(Box::new(counter.clone()))?;
        Ok(counter)
    }

    /// Shows a counter that was there before these metrics were.
    pub(crate) fn show(&self, counter: &IntCounter) -> Result<(), prometheus::Error> {
        self.registry.register(Box::new(counter.clone()))
    }

    /// Whether the process serves this method.
    pub(crate) fn knows(&self, path: &str) -> bool {
        self.methods.contains(path)
    }

    /// Everything, in Prometheus' text format.
    pub fn text(&self) -> Result<String, prometheus::Error> {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        String::from_utf8(text).map_err(|error| prometheus::Error::Msg(error.to_string()))
    }

    /// Audit events that were lost.
    pub fn lost_events(&self) -> &IntCounter {
        &self.lost_events
    }

    pub(crate) fn begun(&self) -> InFlight {
        self.in_flight.inc();
        InFlight(self.in_flight.clone())
    }

    pub(crate) fn handled(&self, path: &str, code: Code, reason: Option<&str>, seconds: f64) {
        let method = if self.knows(path) { path } else { OTHER };
        self.handled.with_label_values(&[method, code_name(code)]).inc();
        self.seconds.with_label_values(&[method]).observe(seconds);
        if let Some(reason) = reason {
            let reason = if self.reasons.contains(reason) { reason } else { OTHER };
            self.refused.with_label_values(&[reason]).inc();
        }
    }
}

/// A call that is being handled; dropped when it is done, or given up.
pub(crate) struct InFlight(IntGauge);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// The names gRPC gives its codes.
pub(crate) const fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn labels_are_bounded_and_reasons_start_at_zero() {
        let methods = ["/a.B/C".to_owned()];
        let metrics = Metrics::new(methods, ["SESSION_CLOSED"]).unwrap();
        let text = metrics.text().unwrap();
        assert!(text.contains("coffer_refused_total{reason=\"SESSION_CLOSED\"} 0"), "{text}");
        assert!(text.contains("process_resident_memory_bytes"), "{text}");
        let call = metrics.begun();
        metrics.handled("/a.B/C", Code::Ok, None, 0.002);
        for number in 0..100 {
            let (path, reason) = (format!("/a.B/{number}"), format!("REASON_{number}"));
            metrics.handled(&path, Code::Unimplemented, Some(&reason), 0.0);
        }
        metrics.handled("/a.B/C", Code::Unauthenticated, Some("SESSION_CLOSED"), 30.0);
        let text = metrics.text().unwrap();
        for line in [
            "grpc_server_handled_total{grpc_code=\"OK\",grpc_method=\"/a.B/C\"} 1",
            "grpc_server_handled_total{grpc_code=\"UNIMPLEMENTED\",grpc_method=\"other\"} 100",
            "coffer_refused_total{reason=\"other\"} 100",
            "coffer_refused_total{reason=\"SESSION_CLOSED\"} 1",
            "grpc_server_in_flight 1",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
        drop(call);
        assert!(metrics.text().unwrap().contains("grpc_server_in_flight 0"));
    }
}
