//! What can go wrong, in the words of whoever asked. A variant says what to do about it, so a command
//! line can give each an exit code of its own.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use coffer_crypto::error::CryptoError;
use coffer_model::bundle::{BundleRejection, ProofFailure};
use coffer_model::descriptor::DescriptorError;
use coffer_model::encoding::{Malformed, decode};
use coffer_model::name::NameError;
use coffer_model::op::Rejection;
use coffer_model::proposal::ProposalError;
use coffer_model::session::{PROOF_EXPIRED, SERVER_TIME};
use coffer_service::status::{is_retryable, reason_of};
use tonic::{Code, Status};

use crate::clock;

/// The reason of a status that carries a [`BundleRejection`].
const BUNDLE_REJECTED: &str = "BUNDLE_REJECTED";
/// The reason of a status that says the cluster is behind what the caller has seen, and stays so.
const BEHIND: &str = "BEHIND";
/// The reason of a status that says that a name was tried too often.
const TOO_MANY_ATTEMPTS: &str = "TOO_MANY_ATTEMPTS";
/// The reason of a status that says a listing has to begin anew.
const SNAPSHOT_GONE: &str = "SNAPSHOT_GONE";

/// Why an operation did not happen, or was stopped.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ClientError {
    /// There is no such file, directory, version or user.
    #[error("{what} does not exist")]
    NotFound {
        /// What was looked for.
        what: String,
    },
    /// The name is in use.
    #[error("{what} exists already")]
    Exists {
        /// What is in the way.
        what: String,
    },
    /// Somebody else changed it meanwhile.
    #[error("{what} was changed by somebody else meanwhile; look at it and try again")]
    Conflict {
        /// What was changed.
        what: String,
    },
    /// The user's role does not allow it.
    #[error("not allowed: {what}")]
    Denied {
        /// What was asked for.
        what: String,
    },
    /// A directory that has content.
    #[error("{what} is not empty; remove it with everything in it, or empty it first")]
    NotEmpty {
        /// The directory.
        what: String,
    },
    /// A directory where a file was meant.
    #[error("{what} is a directory")]
    IsADirectory {
        /// The directory.
        what: String,
    },
    /// Something else where a directory was meant.
    #[error("{what} is not a directory")]
    NotADirectory {
        /// What is no directory.
        what: String,
    },
    /// Something else where a file was meant.
    #[error("{what} is not a regular file")]
    NotAFile {
        /// What is no file.
        what: String,
    },
    /// A name or path that cannot be one.
    #[error("{name:?} cannot be used as a name: {why}")]
    InvalidName {
        /// The name as it was given.
        name: String,
        /// What is wrong with it.
        why: NameError,
    },
    /// An argument that makes no sense.
    #[error("{what}")]
    Invalid {
        /// What is wrong.
        what: String,
    },
    /// From one home to another.
    #[error("{what} cannot be moved to another home; copy it and remove the original")]
    CrossHome {
        /// What was to be moved.
        what: String,
    },
    /// A directory below itself.
    #[error("{what} cannot be moved into itself")]
    IntoItself {
        /// What was to be moved.
        what: String,
    },
    /// Too deep a tree.
    #[error("{what} would lie too deep in the tree")]
    TooDeep {
        /// What was to be made.
        what: String,
    },
    /// The user name belongs to somebody.
    #[error("the name {name} is taken; choose another")]
    NameTaken {
        /// The name.
        name: String,
    },
    /// Registration is not open.
    #[error("this cluster takes registrations only with an invite; ask its administrator")]
    InviteRequired,
    /// Wrong user name or password.
    #[error("wrong user name or password")]
    WrongPassword,
    /// A recovery code that is not this user's, or not any more.
    #[error(
        "this recovery code does not open the keyring; a code is good until the next one is issued"
    )]
    WrongRecoveryCode,
    /// A password that cannot be one.
    #[error("the password cannot be used: {why}")]
    InvalidPassword {
        /// What is wrong with it.
        why: String,
    },
    /// The session is over.
    #[error("the session is over; log in again")]
    SessionExpired,
    /// This machine's clock is not that of the cluster.
    #[error(
        "this machine's clock is {differs} the cluster's: set it right; no server takes a session's proofs before"
    )]
    Clock {
        /// How it differs.
        differs: String,
    },
    /// Nobody knows the session a bearer token is of.
    #[error("there is no such session; log in again")]
    NoSuchSession,
    /// A bearer token that does not open its session.
    #[error("the token is wrong")]
    WrongToken,
    /// A gateway was asked for a user who keeps the keys elsewhere.
    #[error(
        "this user's keys are kept by the user alone; use the sealed API, as the command line does"
    )]
    LocalCustody,
    /// A name was tried too often.
    #[error("too many attempts for this name; try again later")]
    TooManyAttempts,
    /// A page token that was made for something else.
    #[error("the page token is not of this listing")]
    WrongPageToken,
    /// The moment a listing was of is gone.
    #[error("the listing was interrupted; begin it again")]
    ListingGone,
    /// There is no session.
    #[error("nobody is logged in; log in first")]
    NotLoggedIn,
    /// What a server handed out is not what was signed or sealed.
    #[error(
        "the answer was refused, it has been tampered with: {what}. Nothing of it was used. If this stays, tell your administrator"
    )]
    Tampered {
        /// What did not hold.
        what: String,
    },
    /// A server answered with something older than what was seen before.
    #[error(
        "the answer was refused, it is older than what was seen before: {what}. The cluster may have been rolled back; tell your administrator"
    )]
    RolledBack {
        /// What went backwards.
        what: String,
    },
    /// Another cluster answers than the one that was pinned, or its descriptor does not hold.
    #[error("this is not the cluster that was met before: {why}")]
    WrongCluster {
        /// What does not fit.
        why: String,
    },
    /// Fewer than two storage nodes proved that they hold a chunk.
    #[error("too few storage nodes have the data: {what}; nothing was committed, try again")]
    NotDurable {
        /// What is missing.
        what: String,
    },
    /// Data the cluster should have is not to be had now.
    #[error("data is missing: {what}. If this stays, tell your administrator")]
    DataMissing {
        /// What is missing.
        what: String,
    },
    /// The quota of the home is used up.
    #[error("the quota is used up; ask an administrator for more")]
    QuotaExceeded,
    /// Nobody answered in time.
    #[error("the cluster does not answer ({detail}); try again later")]
    Unavailable {
        /// What the last attempt met.
        detail: String,
    },
    /// The server address or its certificate authority cannot be used.
    #[error("cannot connect to {server}: {why}")]
    Connect {
        /// The server.
        server: String,
        /// What is wrong.
        why: String,
    },
    /// A local file or directory.
    #[error("cannot {doing} {}: {why}", path.display())]
    Local {
        /// What was being done.
        doing: &'static str,
        /// To which file.
        path: PathBuf,
        /// What the system said.
        why: Arc<io::Error>,
    },
    /// A place where the session's keys must not be kept.
    #[error("{} cannot hold a session: {why}", path.display())]
    UnsafeSessionFile {
        /// The place.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A local file changed while it was read.
    #[error("{} changed while it was read; put it again", path.display())]
    SourceChanged {
        /// The file.
        path: PathBuf,
    },
    /// Something this version cannot do.
    #[error("{what} is not supported")]
    Unsupported {
        /// What was asked for.
        what: String,
    },
    /// A proposal of administrators that cannot be used.
    #[error(transparent)]
    Proposal(#[from] ProposalError),
    /// A server does not know what was asked for.
    #[error(
        "the cluster does not know this call: it and this program are of different releases; use the program of \
         the cluster's release, or have the cluster upgraded"
    )]
    OtherRelease,
    /// A server refused in a way that no retry changes.
    #[error("the server refused: {detail}")]
    Refused {
        /// What it said.
        detail: String,
    },
    /// A task of the engine ended without an answer.
    #[error("the engine stopped in the middle of the operation")]
    Stopped,
}

impl ClientError {
    pub(crate) fn tampered(what: impl Into<String>) -> Self {
        Self::Tampered { what: what.into() }
    }

    pub(crate) fn not_found(what: impl ToString) -> Self {
        Self::NotFound { what: what.to_string() }
    }

    pub(crate) fn local(doing: &'static str, path: &Path, why: impl Into<io::Error>) -> Self {
        Self::Local { doing, path: path.to_owned(), why: Arc::new(why.into()) }
    }

    pub(crate) fn invalid_name(name: impl Into<String>, why: NameError) -> Self {
        Self::InvalidName { name: name.into(), why }
    }

    /// What a refused op means for `subject`.
    pub(crate) fn rejected(rejection: Rejection, subject: &str) -> Self {
        let what = subject.to_owned();
        match rejection {
            Rejection::Conflict { .. } | Rejection::InodeExists => Self::Conflict { what },
            Rejection::NotFound => Self::NotFound { what },
            Rejection::Denied => Self::Denied { what },
            Rejection::NotADirectory => Self::NotADirectory { what },
            Rejection::IsADirectory => Self::IsADirectory { what },
            Rejection::NotEmpty => Self::NotEmpty { what },
            Rejection::IntoItself => Self::IntoItself { what },
            Rejection::CrossHome => Self::CrossHome { what },
            Rejection::TooDeep => Self::TooDeep { what },
            Rejection::NameTaken => Self::NameTaken { name: what },
            Rejection::InviteRequired => Self::InviteRequired,
            Rejection::QuotaExceeded => Self::QuotaExceeded,
            Rejection::ReceiptsExpired => {
                Self::NotDurable { what: format!("the receipts for {what} have run out") }
            }
            Rejection::Manifest | Rejection::Payload | Rejection::Invalid(_) => {
                Self::Refused { detail: format!("{what}: {rejection}") }
            }
        }
    }

    /// What a failed call means.
    pub(crate) fn of_status(status: &Status) -> Self {
        let detail = status.message().to_owned();
        let reason = reason_of(status);
        match reason.as_ref().map(|reason| reason.code.as_str()) {
            Some(PROOF_EXPIRED) => {
                let servers =
                    reason.as_ref().and_then(|it| it.metadata.get(SERVER_TIME)?.parse().ok());
                return Self::Clock { differs: clock::differs(servers) };
            }
            Some(BEHIND) => return Self::RolledBack { what: detail },
            Some(TOO_MANY_ATTEMPTS) => return Self::TooManyAttempts,
            _ => {}
        }
        match status.code() {
            _ if is_retryable(status) => Self::Unavailable { detail },
            Code::Unauthenticated => Self::SessionExpired,
            Code::PermissionDenied => Self::Denied { what: detail },
            Code::NotFound => Self::NotFound { what: detail },
            Code::ResourceExhausted => Self::Unavailable { detail },
            Code::Unimplemented => Self::OtherRelease,
            _ => Self::Refused { detail: format!("{} ({:?})", detail, status.code()) },
        }
    }

    /// Whether everything else that is tried now would fail in the same way.
    pub(crate) fn is_hopeless(&self) -> bool {
        matches!(
            self,
            Self::SessionExpired
                | Self::Clock { .. }
                | Self::Unavailable { .. }
                | Self::RolledBack { .. }
                | Self::QuotaExceeded
                | Self::Stopped
        )
    }

    /// Whether trying the whole operation again may help: nobody was reached, or nodes were missing.
    pub fn is_temporary(&self) -> bool {
        matches!(
            self,
            Self::Unavailable { .. } | Self::NotDurable { .. } | Self::DataMissing { .. }
        )
    }
}

/// The rejection of a whole bundle, if that is what a status carries.
pub(crate) fn bundle_rejection(status: &Status) -> Option<BundleRejection> {
    let reason = reason_of(status).filter(|reason| reason.code == BUNDLE_REJECTED)?;
    let bytes = hex::decode(reason.metadata.get("rejection")?).ok()?;
    decode("bundle rejection", &bytes).ok()
}

/// Whether a listing's snapshot is gone, so that it has to begin anew.
pub(crate) fn is_snapshot_gone(status: &Status) -> bool {
    reason_of(status).is_some_and(|reason| reason.code == SNAPSHOT_GONE)
}

/// Whether a call failed over its ticket, so that a fresh one may help.
pub(crate) fn is_ticket_refused(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::Unauthenticated | Code::PermissionDenied | Code::FailedPrecondition
    ) && reason_of(status).is_some_and(|reason| reason.code.contains("TICKET"))
}

impl From<ProofFailure> for ClientError {
    fn from(failure: ProofFailure) -> Self {
        Self::tampered(failure.to_string())
    }
}

impl From<Malformed> for ClientError {
    fn from(error: Malformed) -> Self {
        Self::tampered(error.to_string())
    }
}

impl From<DescriptorError> for ClientError {
    fn from(error: DescriptorError) -> Self {
        Self::WrongCluster { why: error.to_string() }
    }
}

impl From<CryptoError> for ClientError {
    fn from(error: CryptoError) -> Self {
        match error {
            CryptoError::WrongPassword => Self::WrongPassword,
            CryptoError::TooLong { .. } | CryptoError::InvalidRecoveryCode => {
                Self::Invalid { what: error.to_string() }
            }
            CryptoError::Tampered | CryptoError::KeyMismatch | CryptoError::Malformed(_) => {
                Self::tampered(error.to_string())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use coffer_service::status::status;

    use super::*;

    /// Goal: a person learns what to do where client and cluster do not go together: by their releases, or by
    /// their clocks. Method: the refusals as they come from the wire.
    #[test]
    fn what_does_not_go_together_is_named() {
        let unknown = ClientError::of_status(&Status::unimplemented(""));
        assert!(matches!(unknown, ClientError::OtherRelease));
        assert!(unknown.to_string().contains("different releases"), "{unknown}");

        let proof = "the session proof is not of this time";
        for (server, told) in
            [("1000000", "minutes ahead of"), ("99999999999999", "minutes behind")]
        {
            let facts = [(SERVER_TIME, server.to_owned())];
            let refused = status(Code::Unauthenticated, PROOF_EXPIRED, proof, &facts);
            let error = ClientError::of_status(&refused);
            assert!(error.to_string().contains(told), "{error}");
        }
        for facts in [vec![], vec![(SERVER_TIME, "noon".to_owned())]] {
            let refused = status(Code::Unauthenticated, PROOF_EXPIRED, proof, &facts);
            let error = ClientError::of_status(&refused);
            assert!(error.to_string().contains("clock is far from the cluster's"), "{error}");
        }
    }
}
