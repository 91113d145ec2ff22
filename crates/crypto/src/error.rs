//! The one error type. Its messages say what to do, never which check failed: a caller that can be
//! asked to open things must not become an oracle.

/// Why something could not be sealed or opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CryptoError {
    /// The bytes do not open: wrong key, wrong place, or changed on the way.
    #[error("these bytes do not open here: wrong key, wrong place, or tampered with")]
    Tampered,
    /// The key opened, but it is not the key a signed record speaks of.
    #[error("the key is not the one the signed record names")]
    KeyMismatch,
    /// The password is wrong, or the server does not have this user's login record.
    #[error("wrong user name or password")]
    WrongPassword,
    /// Bytes or text that are no such thing at all; nothing secret was used to find out.
    #[error("malformed {0}")]
    Malformed(&'static str),
    /// More bytes than this may have.
    #[error("{what} has at most {bytes_max} bytes")]
    TooLong {
        /// What was too long.
        what: &'static str,
        /// Its bound.
        bytes_max: usize,
    },
    /// The typed recovery code has a typing error.
    #[error("this is not a recovery code; check it for typing errors")]
    InvalidRecoveryCode,
}
