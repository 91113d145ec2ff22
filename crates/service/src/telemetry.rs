//! Logs: one line per event, to standard error, as text for people or as JSON for collectors. Where a
//! collector is named, the lines of our own crates go to it as well, and so do spans ([`crate::trace`]).

mod export;

use std::io;
use std::sync::Mutex;
use std::sync::PoisonError;

use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, fmt};

pub use export::Otlp;
pub(crate) use export::Traces;

use export::Export;

/// What a line of the log looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For collectors: one JSON object a line.
    Json,
}

/// Why logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The filter is not one.
    #[error("{filter:?} is not a log filter; expected something like \"info\" or \"info,h2=warn\"")]
    InvalidFilter {
        /// What was given.
        filter: String,
        /// What is wrong with it.
        #[source]
        source: tracing_subscriber::filter::ParseError,
    },
    /// The collector's address is not one.
    #[error("{endpoint:?} is not the address of a collector; expected http://host:port")]
    InvalidEndpoint {
        /// What was given.
        endpoint: String,
    },
    /// The exporters cannot be made.
    #[error("traces and logs cannot be exported")]
    Export(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Held by `main` until its end, when it is [stopped](Self::stop) so that nothing queued is lost.
#[derive(Debug)]
#[must_use = "what is still queued for the collector is lost unless it is stopped"]
pub struct TelemetryGuard(Option<Export>);

impl TelemetryGuard {
    /// Sends what is queued for the collector, within a few seconds, and ends exporting. Lines that are
    /// logged later go to standard error only.
    pub async fn stop(self) {
        if let Some(export) = self.0 {
            export.stop().await;
        }
    }
}

static STARTED: Mutex<bool> = Mutex::new(false);

/// Starts logging to standard error, and exporting where a collector is named; that has to be within a
/// tokio runtime. A second call changes nothing, so that tests may all call it; nor does a call where
/// somebody else has installed a subscriber.
pub fn init(
    format: LogFormat,
    filter: &str,
    otlp: Option<&Otlp>,
) -> Result<TelemetryGuard, TelemetryError> {
    let parsed = EnvFilter::try_new(filter)
        .map_err(|source| TelemetryError::InvalidFilter { filter: filter.to_owned(), source })?;
    let mut started = STARTED.lock().unwrap_or_else(PoisonError::into_inner);
    if *started {
        return Ok(TelemetryGuard(None));
    }
    let export = otlp.map(Export::start).transpose()?;
    let lines = fmt::layer().with_writer(io::stderr);
    let lines = match format {
        LogFormat::Text => lines.boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    let exported = export.as_ref().map(Export::layer);
    let _ = tracing_subscriber::registry().with(parsed).with(lines).with(exported).try_init();
    *started = true;
    Ok(TelemetryGuard(export))
}

#[cfg(test)]
mod tests;
