//! gRPC statuses that programs can act on: a stable reason and facts beside the code, in the form of
//! `google.rpc.ErrorInfo` and `google.rpc.RetryInfo`. Behaviour follows codes and reasons, never text.

use std::collections::{BTreeMap, HashMap};
use std::error::Error;
use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

/// The `ErrorInfo` domain of every reason of ours.
pub const DOMAIN: &str = "coffer";
/// A message longer than this is cut: it travels in a header, and headers are bounded.
const MESSAGE_BYTES_MAX: usize = 1024;
/// Facts beyond this many bytes in all are left out, for the same reason.
const METADATA_BYTES_MAX: usize = 2048;
/// No hint makes anybody wait longer than this.
const RETRY_DELAY_MAX: Duration = Duration::from_secs(60);

/// The stable code of a failure and the facts that go with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason {
    /// UPPER_SNAKE, stable for ever.
    pub code: String,
    /// Facts by name.
    pub metadata: BTreeMap<String, String>,
}

/// A status with a stable reason (UPPER_SNAKE) and facts.
pub fn status(
    code: Code,
    reason: &'static str,
    message: &str,
    metadata: &[(&str, String)],
) -> Status {
    build(code, reason, message, metadata, None)
}

/// A status with a stable reason and facts, that also says when to try again.
pub fn status_with_retry(
    code: Code,
    reason: &'static str,
    message: &str,
    metadata: &[(&str, String)],
    retry_after: Duration,
) -> Status {
    build(code, reason, message, metadata, Some(retry_after))
}

/// The reason of a status, if one of us gave it.
pub fn reason_of(status: &Status) -> Option<Reason> {
    let info = status.get_details_error_info()?;
    if info.domain != DOMAIN {
        return None;
    }
    Some(Reason { code: info.reason, metadata: info.metadata.into_iter().collect() })
}

/// How long the answering side asks to wait, within bounds.
pub fn retry_delay(status: &Status) -> Option<Duration> {
    let delay = status.get_details_retry_info()?.retry_delay?;
    Some(delay.min(RETRY_DELAY_MAX))
}

/// Whether the same call may succeed later. It does not say that repeating it is harmless: the call
/// may have been carried out and only its answer lost.
///
/// - `Unavailable`: nobody there, or not ready.
/// - `Aborted`: lost a race that can be run again.
/// - `ResourceExhausted`: only with a hint; without one it is a limit that time does not lift.
/// - `Cancelled` and `DeadlineExceeded`: a time limit. tonic reports its own time limits, on either
///   side, as `Cancelled`; a caller that cancels by itself does not get to see a status.
/// - `Unknown` and `Internal`: only when they were made on this side of the wire, from a connection
///   that broke; what the other side says with these codes is final.
pub fn is_retryable(status: &Status) -> bool {
    match status.code() {
        Code::Unavailable | Code::Aborted | Code::DeadlineExceeded | Code::Cancelled => true,
        Code::ResourceExhausted => retry_delay(status).is_some(),
        Code::Unknown | Code::Internal => is_local(status),
        Code::Ok
        | Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::FailedPrecondition
        | Code::OutOfRange
        | Code::Unimplemented
        | Code::DataLoss
        | Code::Unauthenticated => false,
    }
}

/// A status read from the wire has no source; one made from a failed transport has.
fn is_local(status: &Status) -> bool {
    status.source().is_some()
}

/// The failure of a call this process made on behalf of a caller of its own, as that caller is told.
/// What broke on the way is `Unavailable`, for the caller cannot tell it from a final word of this
/// process; what the other side answered stays, without its headers.
pub fn relayed(failure: &Status) -> Status {
    let broken = match failure.code() {
        Code::Cancelled => true,
        _ => is_local(failure),
    };
    if broken {
        let text = "the connection to another process of the cluster failed";
        return status(Code::Unavailable, "PEER_UNREACHABLE", text, &[]);
    }
    let details = failure.details().to_vec();
    Status::with_details(failure.code(), failure.message(), details.into())
}

fn build(
    code: Code,
    reason: &'static str,
    message: &str,
    metadata: &[(&str, String)],
    retry_after: Option<Duration>,
) -> Status {
    debug_assert!(is_upper_snake(reason), "{reason:?} is not UPPER_SNAKE");
    let mut left = METADATA_BYTES_MAX;
    let mut facts = HashMap::new();
    for (name, value) in metadata {
        let Some(rest) = left.checked_sub(name.len() + value.len()) else { continue };
        left = rest;
        facts.insert((*name).to_owned(), value.clone());
    }
    let mut details = ErrorDetails::with_error_info(reason, DOMAIN, facts);
    if retry_after.is_some() {
        details.set_retry_info(retry_after);
    }
    Status::with_error_details(code, cut(message, MESSAGE_BYTES_MAX), details)
}

fn cut(text: &str, bytes_max: usize) -> &str {
    &text[..text.floor_char_boundary(bytes_max)]
}

fn is_upper_snake(reason: &str) -> bool {
    reason.starts_with(|first: char| first.is_ascii_uppercase())
        && reason
            .bytes()
            .all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_')
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn reason_and_facts_survive_the_wire() {
        let sent = status_with_retry(
            Code::Aborted,
            "VERSION_CONFLICT",
            "somebody was faster",
            &[("expected", "3".to_owned()), ("found", "4".to_owned())],
            Duration::from_millis(250),
        );
        let headers = sent.into_http::<()>();
        let got = Status::from_header_map(headers.headers()).unwrap();
        assert_eq!((got.code(), got.message()), (Code::Aborted, "somebody was faster"));
        let reason = reason_of(&got).unwrap();
        assert_eq!(reason.code, "VERSION_CONFLICT");
        assert_eq!(
            reason.metadata.into_iter().collect::<Vec<_>>(),
            [("expected".to_owned(), "3".to_owned()), ("found".to_owned(), "4".to_owned()),]
        );
        assert_eq!(retry_delay(&got), Some(Duration::from_millis(250)));
    }

    #[test]
    fn what_is_not_ours_has_no_reason() {
        let foreign = Status::with_error_details(
            Code::NotFound,
            "x",
            ErrorDetails::with_error_info("GONE", "example.org", HashMap::new()),
        );
        let rubbish = Status::with_details(Code::NotFound, "x", vec![0xff; 40].into());
        for status in [Status::not_found("x"), foreign, rubbish] {
            assert_eq!(reason_of(&status), None);
            assert_eq!(retry_delay(&status), None);
        }
    }

    #[test]
    fn a_status_fits_into_its_headers() {
        let long = "ä".repeat(MESSAGE_BYTES_MAX);
        let status = status(
            Code::Internal,
            "LONG",
            &long,
            &[("a", long.clone()), ("b", long.clone()), ("c", "kept".into())],
        );
        assert_eq!(status.message().len(), MESSAGE_BYTES_MAX);
        assert!(status.details().len() < METADATA_BYTES_MAX + 256);
        assert_eq!(reason_of(&status).unwrap().metadata["c"], "kept");
    }

    #[test]
    fn what_broke_on_the_way_is_no_final_word() {
        let broken = Status::from_error("connection reset".into());
        assert_eq!(relayed(&broken).code(), Code::Unavailable);
        assert!(is_retryable(
            &Status::from_header_map(relayed(&broken).into_http::<()>().headers()).unwrap()
        ));
        assert_eq!(relayed(&Status::cancelled("Timeout expired")).code(), Code::Unavailable);

        let mut answered = status(Code::Internal, "DISK", "the disk failed", &[]);
        answered.metadata_mut().insert("content-type", "application/grpc".parse().unwrap());
        let relayed = relayed(&answered);
        assert_eq!(relayed.code(), Code::Internal);
        assert_eq!(reason_of(&relayed).unwrap().code, "DISK");
        assert!(relayed.metadata().is_empty());
    }

    #[test]
    fn a_hint_is_bounded() {
        let status =
            status_with_retry(Code::Unavailable, "BUSY", "x", &[], Duration::from_secs(1 << 30));
        assert_eq!(retry_delay(&status), Some(RETRY_DELAY_MAX));
    }

    #[test]
    fn only_passing_failures_are_retryable() {
        let mut broken = Status::unknown("transport error");
        broken.set_source(std::sync::Arc::new(std::io::Error::other("connection reset")));
        for (status, expected) in [
            (Status::unavailable(""), true),
            (Status::aborted(""), true),
            (Status::cancelled("Timeout expired"), true),
            (Status::deadline_exceeded(""), true),
            (broken, true),
            (Status::unknown("said the other side"), false),
            (Status::internal("said the other side"), false),
            (Status::resource_exhausted("over quota"), false),
            (Status::permission_denied(""), false),
            (Status::data_loss(""), false),
        ] {
            assert_eq!(is_retryable(&status), expected, "{status:?}");
        }
    }
}
