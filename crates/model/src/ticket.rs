//! Tickets: a metadata member's short-lived signed leave to read or write chunks. A storage node
//! checks a ticket by itself, asking nobody; a ticket gives ciphertext only.

use borsh::{BorshDeserialize, BorshSerialize};

use crate::encoding::{Malformed, decode, encode};
use crate::id::{ChunkId, ClusterId, InodeId, MemberId, PrincipalId};
use crate::session::{CLOCK_SKEW_MS_MAX, SessionProof};
use crate::signing::{BadSignature, Domain, PublicKey, Signature, Signer};

/// The longest a ticket is valid: 60 seconds.
pub const TICKET_MS_MAX: u64 = 60 * 1000;
/// The most chunk ids one read ticket names.
pub const TICKET_CHUNKS_MAX: usize = 1024;

/// What a ticket allows.
#[derive(Clone, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
pub enum Leave {
    /// Read these chunks (ascending ids).
    Read {
        /// The ids, at most [`TICKET_CHUNKS_MAX`].
        chunks: Vec<ChunkId>,
    },
    /// Store chunks, charged to a home.
    Write {
        /// Whose quota pays.
        home: InodeId,
        /// How many sealed bytes may be stored with this ticket.
        bytes_max: u64,
    },
}

/// The content of a ticket.
#[derive(Clone, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
pub struct Ticket {
    /// The cluster.
    pub cluster: ClusterId,
    /// The member that signed it.
    pub member: MemberId,
    /// Who may use it.
    pub principal: PrincipalId,
    /// The session key its user must prove to hold.
    pub session: PublicKey,
    /// What it allows.
    pub leave: Leave,
    /// Until when, at most [`TICKET_MS_MAX`] ahead of the member's clock.
    pub expires_unix_ms: u64,
}

/// Why a ticket was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TicketError {
    /// Not a ticket at all.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// Signed by nobody this node knows, or not by the member it names.
    #[error("the ticket was not signed by a metadata member of this cluster")]
    Forged,
    /// Its time is over, or lies too far ahead.
    #[error("the ticket has expired")]
    Expired,
    /// Another session's ticket, or another cluster's.
    #[error("the ticket belongs to another session or cluster")]
    Foreign,
    /// It allows something else.
    #[error("the ticket does not allow this")]
    NotAllowed,
}

impl From<BadSignature> for TicketError {
    fn from(_: BadSignature) -> Self {
        Self::Forged
    }
}

impl Ticket {
    /// Signs the ticket with the member's identity; the result travels as opaque bytes.
    pub fn sign(&self, member: &impl Signer) -> Vec<u8> {
        let bytes = encode(self);
        let signature = member.sign(Domain::Ticket, &self.cluster, &bytes);
        encode(&(bytes, signature))
    }

    /// Checks a ticket's signature, time, cluster and session. `member_key` gives the key of a
    /// member, if the descriptor names it.
    pub fn verify(
        signed: &[u8],
        cluster: &ClusterId,
        proof: &SessionProof,
        now_unix_ms: u64,
        member_key: impl Fn(MemberId) -> Option<PublicKey>,
    ) -> Result<Self, TicketError> {
        let (bytes, signature): (Vec<u8>, Signature) = decode("ticket", signed)?;
        let ticket: Self = decode("ticket", &bytes)?;
        if ticket.cluster != *cluster || ticket.session != proof.key {
            return Err(TicketError::Foreign);
        }
        let latest = now_unix_ms.saturating_add(TICKET_MS_MAX + CLOCK_SKEW_MS_MAX);
        if ticket.expires_unix_ms < now_unix_ms.saturating_sub(CLOCK_SKEW_MS_MAX)
            || ticket.expires_unix_ms > latest
        {
            return Err(TicketError::Expired);
        }
        let key = member_key(ticket.member).ok_or(TicketError::Forged)?;
        key.verify(Domain::Ticket, cluster, &bytes, &signature)?;
        Ok(ticket)
    }

    /// Whether the ticket allows reading `chunk`.
    pub fn allows_read(&self, chunk: &ChunkId) -> Result<(), TicketError> {
        match &self.leave {
            Leave::Read { chunks } if chunks.binary_search(chunk).is_ok() => Ok(()),
            _ => Err(TicketError::NotAllowed),
        }
    }

    /// The home and the number of bytes the ticket allows to store.
    pub fn allows_write(&self) -> Result<(InodeId, u64), TicketError> {
        match self.leave {
            Leave::Write { home, bytes_max } => Ok((home, bytes_max)),
            Leave::Read { .. } => Err(TicketError::NotAllowed),
        }
    }
}
