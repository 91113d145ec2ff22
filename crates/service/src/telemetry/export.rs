//! Exporting to a collector by OTLP over gRPC: spans, and the log lines of our own crates.
//!
//! Nobody waits for the collector: what is to be sent stands in bounded queues, a thread of its own
//! sends it in batches, what does not fit is dropped, and what cannot be delivered is counted. What the
//! process knows of its exporter hangs on the tracing subscriber, so there is no other global state.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_appender_tracing::layer::OpenTelemetryTracingBridge;
use opentelemetry_otlp::{LogExporter, SpanExporter, WithExportConfig, WithTonicConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::logs::{
    BatchConfigBuilder as LogBatchConfig, BatchLogProcessor, LogBatch, SdkLogger, SdkLoggerProvider,
};
use opentelemetry_sdk::trace::{
    BatchConfigBuilder as SpanBatchConfig, BatchSpanProcessor, SdkTracer, SdkTracerProvider,
    SpanData,
};
use prometheus::IntCounter;
use tonic::transport::Endpoint;
use tracing::{Dispatch, Event, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;

use super::TelemetryError;
use crate::peer::PeerId;

/// Spans, and log lines, that wait to be sent; a few hundred bytes each. Further ones are dropped.
const QUEUE_MAX: usize = 2048;
/// Spans, or log lines, that are sent in one call.
const BATCH_MAX: usize = 512;
/// How long something waits for others to be sent with.
const BATCH_DELAY: Duration = Duration::from_secs(2);
/// How long one batch may take to be delivered; connecting included, it is twice that.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(3);
/// How long the last spans may take to be delivered when the process stops, and then the last lines.
pub(super) const FLUSH_MAX: Duration = Duration::from_secs(2);
/// Where the log lines of our own crates come from. What libraries say is not for export: it is not
/// known what stands in it.
const OWN_TARGETS: &str = "coffer";

/// Where traces and logs are sent to, and as whose.
#[derive(Clone, Debug)]
pub struct Otlp {
    /// The collector's receiver for OTLP over gRPC, `http://host:port`.
    pub endpoint: String,
    /// What the process does; it exports as the service `coffer-<role>`.
    pub role: &'static str,
    /// Who the process is, if its volume says so.
    pub instance: Option<PeerId>,
}

impl Otlp {
    fn resource(&self) -> Resource {
        let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
        let builder = Resource::builder()
            .with_service_name(format!("coffer-{}", self.role))
            .with_attribute(version);
        match &self.instance {
            Some(peer) => {
                builder.with_attribute(KeyValue::new("service.instance.id", hex::encode(peer.id())))
            }
            None => builder,
        }
        .build()
    }
}

/// The exporters of a process.
#[derive(Debug)]
pub(super) struct Export {
    spans: SdkTracerProvider,
    lines: SdkLoggerProvider,
    undelivered: IntCounter,
}

impl Export {
    /// Starts a thread for spans and one for lines. Nothing is connected yet.
    pub(super) fn start(otlp: &Otlp) -> Result<Self, TelemetryError> {
        let invalid = || TelemetryError::InvalidEndpoint { endpoint: otlp.endpoint.clone() };
        let endpoint = Endpoint::from_shared(otlp.endpoint.clone()).map_err(|_| invalid())?;
        // Over TLS tonic would ask for certificates of its own, which are not configured anywhere.
        if endpoint.uri().scheme_str() != Some("http") || endpoint.uri().port().is_none() {
            return Err(invalid());
        }
        let channel =
            endpoint.connect_timeout(EXPORT_TIMEOUT).timeout(EXPORT_TIMEOUT).connect_lazy();
        let undelivered = IntCounter::new(
            "coffer_telemetry_undelivered_total",
            "Spans and log lines that could not be delivered to the collector",
        )
        .map_err(|error| TelemetryError::Export(error.into()))?;
        let spans = SpanExporter::builder()
            .with_tonic()
            .with_timeout(EXPORT_TIMEOUT)
            .with_channel(channel.clone())
            .build()
            .map_err(|error| TelemetryError::Export(error.into()))?;
        let lines = LogExporter::builder()
            .with_tonic()
            .with_timeout(EXPORT_TIMEOUT)
            .with_channel(channel)
            .build()
            .map_err(|error| TelemetryError::Export(error.into()))?;
        let spans = BatchSpanProcessor::builder(Counted::new("spans", spans, &undelivered))
            .with_batch_config(
                SpanBatchConfig::default()
                    .with_max_queue_size(QUEUE_MAX)
                    .with_max_export_batch_size(BATCH_MAX)
                    .with_scheduled_delay(BATCH_DELAY)
                    .build(),
            )
            .build();
        let lines = BatchLogProcessor::builder(Counted::new("log lines", lines, &undelivered))
            .with_batch_config(
                LogBatchConfig::default()
                    .with_max_queue_size(QUEUE_MAX)
                    .with_max_export_batch_size(BATCH_MAX)
                    .with_scheduled_delay(BATCH_DELAY)
                    .build(),
            )
            .build();
        let resource = otlp.resource();
        Ok(Self {
            spans: SdkTracerProvider::builder()
                .with_resource(resource.clone())
                .with_span_processor(spans)
                .build(),
            lines: SdkLoggerProvider::builder()
                .with_resource(resource)
                .with_log_processor(lines)
                .build(),
            undelivered,
        })
    }

    /// What the subscriber has to have.
    pub(super) fn layer(&self) -> ExportLayer {
        let traces =
            Traces { tracer: self.spans.tracer("coffer"), undelivered: self.undelivered.clone() };
        ExportLayer { lines: OpenTelemetryTracingBridge::new(&self.lines), traces }
    }

    pub(super) async fn stop(self) {
        // The exporters need the runtime, so none of its threads may wait for them.
        let stopped = tokio::task::spawn_blocking(move || {
            // Whoever could be told of a failure has counted it already.
            let _ = self.spans.shutdown_with_timeout(FLUSH_MAX);
            let _ = self.lines.shutdown_with_timeout(FLUSH_MAX);
        });
        let _ = stopped.await;
    }
}

/// The layer that exports lines, and keeps what exports spans.
pub(super) struct ExportLayer {
    lines: OpenTelemetryTracingBridge<SdkLoggerProvider, SdkLogger>,
    traces: Traces,
}

impl<S> Layer<S> for ExportLayer
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        if event.metadata().target().starts_with(OWN_TARGETS) {
            self.lines.on_event(event, context);
        }
    }
}

/// What spans are made with, where they are exported.
#[derive(Clone, Debug)]
pub(crate) struct Traces {
    pub(crate) tracer: SdkTracer,
    pub(crate) undelivered: IntCounter,
}

impl Traces {
    /// That of the present subscriber; none where nothing is exported.
    pub(crate) fn present() -> Option<Self> {
        let traces =
            |dispatch: &Dispatch| Some(dispatch.downcast_ref::<ExportLayer>()?.traces.clone());
        tracing::dispatcher::get_default(traces)
    }
}

/// An exporter whose failures are counted, and logged when they begin and when they end.
#[derive(Debug)]
struct Counted<E> {
    what: &'static str,
    exporter: E,
    undelivered: IntCounter,
    failing: AtomicBool,
}

impl<E> Counted<E> {
    fn new(what: &'static str, exporter: E, undelivered: &IntCounter) -> Self {
        let failing = AtomicBool::new(false);
        Self { what, exporter, undelivered: undelivered.clone(), failing }
    }

    fn note(&self, count: usize, outcome: &OTelSdkResult) {
        let what = self.what;
        match outcome {
            Ok(()) => {
                if self.failing.swap(false, Ordering::Relaxed) {
                    tracing::info!(what, "the collector takes telemetry again");
                }
            }
            Err(error) => {
                self.undelivered.inc_by(u64::try_from(count).unwrap_or(u64::MAX));
                if !self.failing.swap(true, Ordering::Relaxed) {
                    tracing::warn!(what, %error, "telemetry cannot be delivered; it is dropped");
                }
            }
        }
    }
}

impl opentelemetry_sdk::trace::SpanExporter for Counted<SpanExporter> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let count = batch.len();
        let outcome = self.exporter.export(batch).await;
        self.note(count, &outcome);
        outcome
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

impl opentelemetry_sdk::logs::LogExporter for Counted<LogExporter> {
    async fn export(&self, batch: LogBatch<'_>) -> OTelSdkResult {
        let count = batch.iter().count();
        let outcome = self.exporter.export(batch).await;
        self.note(count, &outcome);
        outcome
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}
