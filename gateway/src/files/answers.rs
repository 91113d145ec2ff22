//! What the engine found, and what it refused, in the words of the files API. No refusal repeats a path,
//! a name or content: its reason says what was wrong, and the caller knows what was asked for.

use std::time::Duration;

use coffer_client::progress::Report;
use coffer_client::{ClientError, EntryInfo, Stat, VersionInfo};
use coffer_model::name::{NameError, RemotePath, UserName};
use coffer_model::object::Kind;
use coffer_proto::v1 as pb;
use coffer_service::status::{status, status_with_retry};
use prost_types::Timestamp;
use tonic::{Code, Status};

/// What a caller is told to wait when the cluster does not answer.
const CLUSTER_PAUSE: Duration = Duration::from_secs(1);
/// What a caller is told to wait whose name was tried too often; attempts are counted by the minute.
const ATTEMPTS_PAUSE: Duration = Duration::from_secs(30);

/// An argument that cannot be used.
pub(crate) fn invalid(reason: &'static str, message: &str) -> Status {
    status(Code::InvalidArgument, reason, message, &[])
}

/// Somebody who did not prove who they are.
pub(crate) fn unauthenticated(reason: &'static str, message: &str) -> Status {
    status(Code::Unauthenticated, reason, message, &[])
}

/// Reads a path with the one validator there is.
pub(crate) fn remote_path(text: &str) -> Result<RemotePath, Status> {
    text.parse().map_err(|why: NameError| invalid("PATH_INVALID", &name_fault(&why)))
}

/// Reads the name of a user.
pub(crate) fn user_name(text: &str) -> Result<UserName, Status> {
    text.parse().map_err(|why: NameError| invalid("NAME_INVALID", &name_fault(&why)))
}

/// What is wrong with a name, without the name.
fn name_fault(why: &NameError) -> String {
    match why {
        NameError::NotNfc(_) => "the name is not in Unicode form NFC".to_owned(),
        other => other.to_string(),
    }
}

/// What a failure of the engine is for the caller.
pub(crate) fn refusal(error: &ClientError) -> Status {
    use ClientError as E;
    let (code, reason, message) = match error {
        E::NotFound { .. } => (Code::NotFound, "FILE_NOT_FOUND", "there is nothing there"),
        E::Exists { .. } => (Code::AlreadyExists, "FILE_EXISTS", "the name is in use"),
        E::Conflict { .. } => {
            (Code::Aborted, "VERSION_CONFLICT", "it was changed by somebody else meanwhile")
        }
        E::Denied { .. } => (Code::PermissionDenied, "NOT_YOURS", "not allowed"),
        E::NotEmpty { .. } => {
            (Code::FailedPrecondition, "DIRECTORY_NOT_EMPTY", "the directory is not empty")
        }
        E::IsADirectory { .. } => (Code::FailedPrecondition, "IS_A_DIRECTORY", "it is a directory"),
        E::NotADirectory { .. } => {
            (Code::FailedPrecondition, "NOT_A_DIRECTORY", "it is not a directory")
        }
        E::NotAFile { .. } => (Code::FailedPrecondition, "NOT_A_FILE", "it is not a regular file"),
        E::InvalidName { why, .. } => return invalid("PATH_INVALID", &name_fault(why)),
        E::Invalid { .. } => {
            (Code::InvalidArgument, "ARGUMENT_INVALID", "an argument cannot be used")
        }
        E::CrossHome { .. } => {
            (Code::FailedPrecondition, "OTHER_HOME", "nothing moves to another home; copy it")
        }
        E::IntoItself { .. } => {
            (Code::InvalidArgument, "INTO_ITSELF", "a directory cannot be moved into itself")
        }
        E::TooDeep { .. } => (Code::FailedPrecondition, "TOO_DEEP", "it would lie too deep"),
        E::NameTaken { .. } => (Code::AlreadyExists, "NAME_TAKEN", "the user name is taken"),
        E::InviteRequired => {
            (Code::PermissionDenied, "INVITE_REQUIRED", "registration needs an invite that is good")
        }
        E::WrongPassword => {
            (Code::Unauthenticated, "WRONG_PASSWORD", "wrong user name or password")
        }
        E::InvalidPassword { .. } => {
            (Code::InvalidArgument, "PASSWORD_INVALID", "a password has 1 to 1,024 bytes")
        }
        E::SessionExpired => (Code::Unauthenticated, "SESSION_ENDED", "the session is over"),
        E::Clock { .. } => {
            let text = "the clock of this gateway is wrong; tell its administrator";
            (Code::FailedPrecondition, "GATEWAY_CLOCK", text)
        }
        E::NoSuchSession => {
            (Code::Unauthenticated, "TOKEN_UNKNOWN", "there is no session of this token")
        }
        E::WrongToken => (Code::Unauthenticated, "TOKEN_WRONG", "the token is wrong"),
        E::LocalCustody => (
            Code::FailedPrecondition,
            "LOCAL_CUSTODY",
            "this user's keys are kept by the user alone; use the sealed API, as the command line does",
        ),
        E::TooManyAttempts => {
            let text = "this name was tried too often; try again later";
            let code = Code::ResourceExhausted;
            return status_with_retry(code, "TOO_MANY_ATTEMPTS", text, &[], ATTEMPTS_PAUSE);
        }
        E::WrongPageToken => {
            (Code::InvalidArgument, "PAGE_TOKEN_INVALID", "the page token is not of this listing")
        }
        E::ListingGone => {
            (Code::Aborted, "LISTING_GONE", "the listing was interrupted; begin it again")
        }
        E::QuotaExceeded => (Code::ResourceExhausted, "QUOTA_EXCEEDED", "the quota is used up"),
        E::Unavailable { .. } | E::NotDurable { .. } | E::DataMissing { .. } => {
            let text = "the cluster does not answer, or lacks nodes; try again";
            let code = Code::Unavailable;
            return status_with_retry(code, "CLUSTER_UNAVAILABLE", text, &[], CLUSTER_PAUSE);
        }
        E::Tampered { .. } | E::WrongCluster { .. } => {
            // Nobody else sees this: the caller gets the refusal, an administrator has to look.
            tracing::error!("an answer of the cluster was refused, it has been tampered with");
            (Code::DataLoss, "DATA_TAMPERED", "what the cluster keeps was tampered with")
        }
        E::RolledBack { .. } => {
            tracing::error!("an answer of the cluster was refused, it is older than one before it");
            (Code::DataLoss, "ROLLED_BACK", "the cluster answered with something older than before")
        }
        E::OtherRelease => {
            let text =
                "this gateway and the cluster are of different releases; tell their administrator";
            (Code::Unimplemented, "UNSUPPORTED", text)
        }
        E::Unsupported { .. } => (Code::Unimplemented, "UNSUPPORTED", "this is not supported"),
        E::Refused { .. } => (Code::FailedPrecondition, "REFUSED", "the cluster refused it"),
        _ => (Code::Internal, "ENGINE_FAILED", "the gateway could not do it"),
    };
    status(code, reason, message, &[])
}

/// What a put led to.
pub(crate) fn written(report: &Report) -> Option<pb::Written> {
    Some(pb::Written { version: report.version, length: report.length })
}

/// A name of a directory.
pub(crate) fn entry(directory: &RemotePath, entry: EntryInfo) -> Result<pb::File, Status> {
    let path = directory.join(entry.name.clone());
    let path = path.map_err(|why| invalid("PATH_INVALID", &name_fault(&why)))?;
    Ok(pb::File { deleted: entry.deleted, ..file(&path, entry.stat) })
}

/// What a path leads to.
pub(crate) fn file(path: &RemotePath, stat: Stat) -> pb::File {
    let kind = match stat.kind {
        Kind::File => pb::FileKind::File,
        Kind::Directory => pb::FileKind::Directory,
        Kind::Symlink => pb::FileKind::Symlink,
        _ => pb::FileKind::Unspecified,
    };
    pb::File {
        path: path.to_string(),
        kind: kind.into(),
        length: stat.length,
        version: stat.version,
        mode: stat.mode,
        modified_at: Some(timestamp(stat.mtime_ns)),
        deleted: false,
        link_target: stat
            .target
            .map(|target| String::from_utf8_lossy(&target).into_owned())
            .unwrap_or_default(),
    }
}

/// A version of a file.
pub(crate) fn version(info: &VersionInfo) -> pb::FileVersion {
    pb::FileVersion {
        version: info.version,
        length: info.length,
        modified_at: Some(timestamp(info.mtime_ns)),
        committed_at: Some(timestamp_ms(info.committed.unix_ms())),
        restored: info.restored.unwrap_or_default(),
    }
}

/// A time in milliseconds since the Unix epoch.
pub(crate) fn timestamp_ms(ms: u64) -> Timestamp {
    timestamp(i64::try_from(ms).unwrap_or(i64::MAX).saturating_mul(1_000_000))
}

fn timestamp(ns: i64) -> Timestamp {
    let nanos = i32::try_from(ns.rem_euclid(1_000_000_000)).unwrap_or_default();
    Timestamp { seconds: ns.div_euclid(1_000_000_000), nanos }
}

#[cfg(test)]
mod tests {
    use coffer_service::status::reason_of;

    use super::*;

    #[test]
    fn no_refusal_repeats_what_it_is_about() {
        let what = || "/alice/canary".to_owned();
        let errors = [
            ClientError::NotFound { what: what() },
            ClientError::Exists { what: what() },
            ClientError::Conflict { what: what() },
            ClientError::Denied { what: what() },
            ClientError::InvalidName { name: what(), why: NameError::NotNfc(what()) },
            ClientError::Invalid { what: what() },
            ClientError::Tampered { what: what() },
            ClientError::Refused { detail: what() },
            ClientError::Unavailable { detail: what() },
            ClientError::InvalidPassword { why: what() },
            ClientError::NameTaken { name: what() },
        ];
        for error in errors {
            let refused = refusal(&error);
            assert!(reason_of(&refused).is_some(), "{refused:?}");
            assert!(!format!("{refused:?}").contains("canary"), "{refused:?}");
        }
        assert!(!format!("{:?}", remote_path("canary").err()).contains("canary"));
    }

    #[test]
    fn times_before_the_epoch_are_times() {
        let before = timestamp(-1);
        assert_eq!((before.seconds, before.nanos), (-1, 999_999_999));
        let after = timestamp_ms(1_500);
        assert_eq!((after.seconds, after.nanos), (1, 500_000_000));
    }
}
