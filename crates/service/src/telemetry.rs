//! Logs: one line per event, to standard error, as text for people or as JSON for collectors.

use std::io;
use std::sync::Mutex;
use std::sync::PoisonError;

use tracing_subscriber::EnvFilter;

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
}

/// Held by `main` until its end, so that nothing buffered is lost. (Nothing is buffered today; trace
/// exporters will be.)
#[derive(Debug)]
#[must_use = "dropping it ends telemetry"]
pub struct TelemetryGuard(());

static STARTED: Mutex<bool> = Mutex::new(false);

/// Starts logging to standard error. A second call changes nothing, so that tests may all call it;
/// nor does a call where somebody else has installed a subscriber.
pub fn init(format: LogFormat, filter: &str) -> Result<TelemetryGuard, TelemetryError> {
    let parsed = EnvFilter::try_new(filter)
        .map_err(|source| TelemetryError::InvalidFilter { filter: filter.to_owned(), source })?;
    let mut started = STARTED.lock().unwrap_or_else(PoisonError::into_inner);
    if !*started {
        let builder = tracing_subscriber::fmt().with_env_filter(parsed).with_writer(io::stderr);
        let _ = match format {
            LogFormat::Text => builder.try_init(),
            LogFormat::Json => builder.json().flatten_event(true).try_init(),
        };
        *started = true;
    }
    Ok(TelemetryGuard(()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_second_start_is_harmless_and_a_bad_filter_is_named() {
        let _first = init(LogFormat::Text, "off").unwrap();
        let _second = init(LogFormat::Json, "info").unwrap();
        let error = init(LogFormat::Text, "coffer=loud").unwrap_err();
        assert!(error.to_string().contains("\"coffer=loud\""), "{error}");
    }
}
