//! Exit codes: stable, and listed in `coffer --help`.

use std::process::ExitCode;

use coffer_client::ClientError;

/// The exit code for what went wrong. Anything that is no error of the engine is 1.
pub(crate) fn code_of(error: &anyhow::Error) -> ExitCode {
    if let Some(Partial) = error.downcast_ref() {
        return ExitCode::from(14);
    }
    if let Some(Unwell) = error.downcast_ref() {
        return ExitCode::from(15);
    }
    ExitCode::from(error.downcast_ref::<ClientError>().map_or(1, number))
}

/// Some of many files failed; each was named already.
#[derive(Debug, thiserror::Error)]
#[error("some files failed; they are named above")]
pub(crate) struct Partial;

/// `doctor` found something.
#[derive(Debug, thiserror::Error)]
#[error("something is wrong; it is named above")]
pub(crate) struct Unwell;

fn number(error: &ClientError) -> u8 {
    use ClientError as E;
    match error {
        E::NotFound { .. } => 3,
        E::Exists { .. } | E::NameTaken { .. } => 4,
        E::Conflict { .. } | E::SourceChanged { .. } => 5,
        E::Denied { .. } | E::CrossHome { .. } | E::InviteRequired | E::QuotaExceeded => 6,
        E::WrongPassword | E::WrongRecoveryCode => 7,
        E::NotLoggedIn | E::SessionExpired => 8,
        E::Unavailable { .. }
        | E::TooManyAttempts
        | E::Connect { .. }
        | E::NotDurable { .. }
        | E::DataMissing { .. } => 9,
        E::Tampered { .. } | E::RolledBack { .. } | E::WrongCluster { .. } => 10,
        E::InvalidName { .. }
        | E::Invalid { .. }
        | E::InvalidPassword { .. }
        | E::IntoItself { .. }
        | E::TooDeep { .. } => 11,
        E::IsADirectory { .. }
        | E::NotADirectory { .. }
        | E::NotAFile { .. }
        | E::NotEmpty { .. } => 12,
        E::Local { .. } | E::UnsafeSessionFile { .. } | E::Clock { .. } => 13,
        _ => 1,
    }
}
