//! Logs: one line per event, to standard error, as text for people or as JSON for collectors. Where a
//! collector is named, the lines of our own crates go to it as well, and so do spans ([`crate::trace`]).
//!
//! Usually a process is one server and has one subscriber ([`init`]). Where several run in one process,
//! each has its own ([`Part`]), for which its threads stand in.

mod export;

use std::fs::File;
use std::io::{self, IsTerminal};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use tracing::Dispatch;
use tracing::dispatcher;
use tracing_subscriber::fmt::MakeWriter;
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
    let filter = parse(filter)?;
    let mut started = STARTED.lock().unwrap_or_else(PoisonError::into_inner);
    if *started {
        return Ok(TelemetryGuard(None));
    }
    let export = otlp.map(Export::start).transpose()?;
    let _ = subscriber(format, filter, io::stderr, io::stderr().is_terminal(), export.as_ref())
        .try_init();
    *started = true;
    Ok(TelemetryGuard(export))
}

/// As [`init`], to a file: for a process whose standard error is a person's terminal.
pub fn init_to(log: File, filter: &str) -> Result<(), TelemetryError> {
    let filter = parse(filter)?;
    let mut started = STARTED.lock().unwrap_or_else(PoisonError::into_inner);
    if !*started {
        let _ = subscriber(LogFormat::Text, filter, Arc::new(log), false, None).try_init();
        *started = true;
    }
    Ok(())
}

/// The logging of one of several servers in a process. Clones are the same.
#[derive(Clone, Debug)]
pub struct Part(Dispatch);

impl Part {
    /// As [`init`], for those threads only that [`enter`](Self::enter) it, and to a file.
    pub fn start(
        format: LogFormat,
        filter: &str,
        log: File,
        otlp: Option<&Otlp>,
    ) -> Result<(Self, TelemetryGuard), TelemetryError> {
        let filter = parse(filter)?;
        let export = otlp.map(Export::start).transpose()?;
        let subscriber = subscriber(format, filter, Arc::new(log), false, export.as_ref());
        Ok((Self(Dispatch::new(subscriber)), TelemetryGuard(export)))
    }

    /// The calling thread belongs to this server until it ends.
    pub fn enter(&self) {
        std::mem::forget(dispatcher::set_default(&self.0));
    }
}

/// Starts a thread that logs where its parent does.
pub fn spawn_thread<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    let present = dispatcher::get_default(Dispatch::clone);
    thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || dispatcher::with_default(&present, work))
}

/// What says every frame and handshake at `debug`, and nobody means by that.
const TALKATIVE: [&str; 5] = ["h2", "hyper", "hyper_util", "rustls", "tower"];

/// Where a filter names a level only, it is meant of what Coffer does, and not of every frame on the wire.
fn parse(filter: &str) -> Result<EnvFilter, TelemetryError> {
    let named = |source| TelemetryError::InvalidFilter { filter: filter.to_owned(), source };
    let parsed = EnvFilter::try_new(filter).map_err(named)?;
    if !["debug", "trace"].contains(&filter.trim()) {
        return Ok(parsed);
    }
    let quiet: Vec<String> = TALKATIVE.iter().map(|target| format!("{target}=info")).collect();
    EnvFilter::try_new(format!("{filter},{}", quiet.join(","))).map_err(named)
}

fn subscriber<W>(
    format: LogFormat,
    filter: EnvFilter,
    writer: W,
    colours: bool,
    export: Option<&Export>,
) -> impl tracing::Subscriber + Send + Sync
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    // Colours are for a person's eyes only.
    let lines = fmt::layer().with_writer(writer).with_ansi(colours);
    let lines = match format {
        LogFormat::Text => lines.boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    tracing_subscriber::registry().with(filter).with(lines).with(export.map(Export::layer))
}

#[cfg(test)]
mod tests;
