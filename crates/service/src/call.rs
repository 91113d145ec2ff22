//! Calls to processes that may answer anything.

use std::panic::AssertUnwindSafe;

use futures_util::FutureExt;
use tonic::{Code, Status};

use crate::status::status;

/// The answer of a call, or a status where reading the answer would have ended the task.
///
/// FIXME: tonic 0.14.9 panics on status details that are not base64. A hostile server could so stop
/// the task that called it. When the test below fails without this function, tonic has been mended,
/// and it can go.
pub async fn contained<T>(call: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
    // What the call had borrowed is dropped with it; nothing half-changed is looked at again.
    AssertUnwindSafe(call).catch_unwind().await.unwrap_or_else(|_| {
        let text = "the answer is not gRPC as it should be";
        Err(status(Code::Internal, "ANSWER_UNREADABLE", text, &[]))
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::status::reason_of;

    #[tokio::test]
    async fn an_answer_that_panics_in_tonic_is_a_failure_of_the_call() {
        let answer = contained(async {
            let mut headers = http::HeaderMap::new();
            headers.insert("grpc-status", http::HeaderValue::from_static("5"));
            headers.insert("grpc-status-details-bin", http::HeaderValue::from_static("!!!"));
            match Status::from_header_map(&headers) {
                Some(status) => Err(status),
                None => Ok(()),
            }
        });
        let refused = answer.await.unwrap_err();
        assert_eq!(reason_of(&refused).unwrap().code, "ANSWER_UNREADABLE");
        assert!(contained(async { Ok(7) }).await.unwrap() == 7);
    }
}
