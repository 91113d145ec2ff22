//! Exit codes: stable, and listed in `coffer --help`.

use std::path::PathBuf;
use std::process::ExitCode;

use coffer_authority::EnrolError;
use coffer_client::ClientError;
use coffer_model::proposal::ProposalError;
use coffer_service::config::ConfigError;
use coffer_service::identity::IdentityError;

/// The exit code for what went wrong. Anything that is no error of the engine is 1.
pub(crate) fn code_of(error: &anyhow::Error) -> ExitCode {
    if let Some(Partial) = error.downcast_ref() {
        return ExitCode::from(14);
    }
    if let Some(Unwell) = error.downcast_ref() {
        return ExitCode::from(15);
    }
    if let Some(Waits { .. }) = error.downcast_ref() {
        return ExitCode::from(16);
    }
    if error.chain().any(|cause| cause.is::<ConfigError>()) {
        return ExitCode::from(17);
    }
    if error.chain().any(is_of_the_volume) {
        return ExitCode::from(18);
    }
    ExitCode::from(error.downcast_ref::<ClientError>().map_or(1, number))
}

/// Whether another start on this volume would end as this one did.
fn is_of_the_volume(cause: &(dyn std::error::Error + 'static)) -> bool {
    cause.is::<IdentityError>() || matches!(cause.downcast_ref(), Some(EnrolError::Refused { .. }))
}

/// Some of many files failed; each was named already.
#[derive(Debug, thiserror::Error)]
#[error("some files failed; they are named above")]
pub(crate) struct Partial;

/// `doctor` found something.
#[derive(Debug, thiserror::Error)]
#[error("something is wrong; it is named above")]
pub(crate) struct Unwell;

/// Signed, and not carried out: it needs other administrators, or was only to be signed.
#[derive(Debug, thiserror::Error)]
#[error(
    "signed by {signed} of {quorum} administrators; nothing has changed yet. Next: `{}`", self.next()
)]
pub(crate) struct Waits {
    pub(crate) signed: usize,
    pub(crate) quorum: u8,
    pub(crate) file: PathBuf,
}

impl Waits {
    fn next(&self) -> String {
        let file = self.file.display();
        if self.signed < usize::from(self.quorum) {
            format!(
                "coffer admin sign {file}` by another administrator, then `coffer admin submit {file}"
            )
        } else {
            format!("coffer admin submit {file}")
        }
    }
}

fn number(error: &ClientError) -> u8 {
    use ClientError as E;
    match error {
        E::NotFound { .. } => 3,
        E::Exists { .. } | E::NameTaken { .. } => 4,
        E::Conflict { .. }
        | E::SourceChanged { .. }
        | E::Proposal(ProposalError::Stale { .. } | ProposalError::InForce) => 5,
        E::Denied { .. }
        | E::CrossHome { .. }
        | E::InviteRequired
        | E::QuotaExceeded
        | E::Proposal(
            ProposalError::NotAnAdministrator { .. }
            | ProposalError::SignedAlready { .. }
            | ProposalError::TooFew { .. },
        ) => 6,
        E::WrongPassword | E::WrongRecoveryCode => 7,
        E::NotLoggedIn | E::SessionExpired => 8,
        E::Unavailable { .. }
        | E::TooManyAttempts
        | E::Connect { .. }
        | E::NotDurable { .. }
        | E::DataMissing { .. } => 9,
        E::Tampered { .. } | E::RolledBack { .. } | E::WrongCluster { .. } => 10,
        E::Proposal(_)
        | E::InvalidName { .. }
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
