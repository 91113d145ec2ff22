//! Who may do what: session proofs and tickets, checked here, asking nobody.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use coffer_model::session::{PROOF_HEADER, SessionProof};
use coffer_model::ticket::{Leave, Ticket, TicketError};
use coffer_service::audit::note;
use coffer_service::cache::BoundedCache;
use coffer_service::status::status;
use tonic::metadata::MetadataMap;
use tonic::{Code, Request, Status};

use crate::cluster::Cluster;

/// Proofs and tickets that may come again.
const REMEMBERED: usize = 16_384;

/// Checks proofs and tickets, each of them once.
pub(crate) struct Door {
    cluster: Arc<Cluster>,
    proofs: BoundedCache<Vec<u8>, SessionProof>,
    tickets: BoundedCache<blake3::Hash, Arc<Admitted>>,
}

/// A ticket that was checked.
pub(crate) struct Admitted {
    ticket: Ticket,
    /// Bytes stored with it so far.
    used: AtomicU64,
}

fn refuse(error: &TicketError) -> Status {
    let reason = match error {
        TicketError::Malformed(_) | TicketError::Forged => "TICKET_FORGED",
        TicketError::Expired => "TICKET_EXPIRED",
        TicketError::Foreign => "TICKET_FOREIGN",
        TicketError::NotAllowed => "TICKET_NOT_ALLOWED",
    };
    tracing::warn!(reason, "a ticket was refused");
    status(Code::PermissionDenied, reason, &error.to_string(), &[])
}

impl Door {
    pub(crate) fn new(cluster: Arc<Cluster>) -> Self {
        let proofs = BoundedCache::new(REMEMBERED, None);
        let tickets = BoundedCache::new(REMEMBERED, None);
        Self { cluster, proofs, tickets }
    }

    fn proof(&self, metadata: &MetadataMap, now: u64) -> Result<SessionProof, Status> {
        let refused = |message: &str| {
            tracing::warn!("a session proof was refused");
            status(Code::Unauthenticated, "SESSION_PROOF_INVALID", message, &[])
        };
        let value = metadata.get_bin(PROOF_HEADER);
        let value = value.ok_or_else(|| refused("this call needs a session: log in first"))?;
        let bytes = value.to_bytes().map_err(|_| refused("the session proof is not base64"))?;
        if let Some(proof) = self.proofs.get(bytes.as_ref()).filter(|it| now < it.expires_unix_ms) {
            return Ok(proof);
        }
        let proof = SessionProof::verify(&bytes, self.cluster.id(), now)
            .map_err(|error| {
                tracing::warn!("a session proof was refused");
                let (text, facts) = (error.to_string(), error.facts());
                status(Code::Unauthenticated, error.reason(), &text, &facts)
            })?
            .into_inner();
        self.proofs.insert(bytes.to_vec(), proof.clone());
        Ok(proof)
    }

    /// Checks the caller's session proof and ticket.
    pub(crate) fn admit<T>(
        &self,
        request: &Request<T>,
        signed: &[u8],
    ) -> Result<Arc<Admitted>, Status> {
        let now = now_unix_ms();
        let proof = self.proof(request.metadata(), now)?;
        note(request, |subject| subject.session = Some(proof.certificate.as_hash().to_string()));
        let admitted = self.admit_ticket(&proof, signed, now)?;
        note(request, |subject| subject.principal = Some(admitted.ticket.principal.to_string()));
        Ok(admitted)
    }

    fn admit_ticket(
        &self,
        proof: &SessionProof,
        signed: &[u8],
        now: u64,
    ) -> Result<Arc<Admitted>, Status> {
        let name = blake3::hash(signed);
        if let Some(admitted) = self.tickets.get(&name) {
            let ticket = &admitted.ticket;
            if ticket.session == proof.key && now < ticket.expires_unix_ms {
                return Ok(admitted);
            }
        }
        let descriptor = self.cluster.view().descriptor;
        let key = |member| descriptor.member_key(member);
        let ticket = Ticket::verify(signed, self.cluster.id(), proof, now, key)
            .map_err(|error| refuse(&error))?;
        let admitted = Arc::new(Admitted { ticket, used: AtomicU64::new(0) });
        self.tickets
            .get_or_insert_with(name, || Ok::<_, Status>(Arc::clone(&admitted)))
            .map(|kept| if kept.ticket == admitted.ticket { kept } else { admitted })
    }
}

impl Admitted {
    /// Whether every one of `chunks` may be read.
    pub(crate) fn read(&self, chunks: &[coffer_model::id::ChunkId]) -> Result<(), Status> {
        for chunk in chunks {
            self.ticket.allows_read(chunk).map_err(|error| refuse(&error))?;
        }
        Ok(())
    }

    /// Takes `bytes` of what may be stored with the ticket.
    pub(crate) fn write(&self, bytes: u64) -> Result<(), Status> {
        let Leave::Write { bytes_max, .. } = self.ticket.leave else {
            return Err(refuse(&TicketError::NotAllowed));
        };
        let used = self.used.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes);
        if used > bytes_max {
            self.used.fetch_sub(bytes, Ordering::Relaxed);
            let message = "the ticket's bytes are used up; ask for another";
            return Err(status(Code::PermissionDenied, "TICKET_BUDGET", message, &[]));
        }
        Ok(())
    }
}

pub(crate) fn now_unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
