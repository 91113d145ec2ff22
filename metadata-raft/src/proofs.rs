//! Building answers: every leaf with the op that set it, each header and each op once an answer.

use std::collections::HashMap;
use std::sync::Arc;

use coffer_metadata_core::Tables;
use coffer_metadata_core::query::{self, FoundContent, FoundEntry, FoundLeaf};
use coffer_metadata_core::state::OpRef;
use coffer_model::id::{ChunkId, PrincipalId};
use coffer_model::session::SessionProof;
use coffer_model::ticket::{Leave, TICKET_CHUNKS_MAX, TICKET_MS_MAX, Ticket};
use coffer_proto::v1 as pb;
use tonic::Status;

use crate::access::{invalid, store_failed};
use crate::group::Group;

/// What a leaf or an entry costs in an answer beside its bytes, generously.
const OVERHEAD_BYTES: usize = 64;

/// Signs tickets for one caller.
#[derive(Clone)]
pub(crate) struct TicketOffice {
    pub(crate) group: Arc<Group>,
    pub(crate) principal: PrincipalId,
    pub(crate) proof: SessionProof,
}

impl TicketOffice {
    pub(crate) fn issue(&self, leave: Leave) -> Vec<u8> {
        let ticket = Ticket {
            cluster: self.group.cluster(),
            member: self.group.me,
            principal: self.principal,
            session: self.proof.key,
            leave,
            expires_unix_ms: self.group.clock.unix_ms().saturating_add(TICKET_MS_MAX),
        };
        ticket.sign(&*self.group.identity)
    }

    /// A ticket to read these chunks; empty if there are none.
    fn read(&self, mut chunks: Vec<ChunkId>) -> Result<Vec<u8>, Status> {
        if chunks.is_empty() {
            return Ok(Vec::new());
        }
        chunks.sort_unstable();
        chunks.dedup();
        if chunks.len() > TICKET_CHUNKS_MAX {
            let text = "the pages of these slots name more chunks than one ticket can; ask for fewer \
                        slots, or begin at a multiple of 64";
            return Err(invalid("SLOT_RANGE", text));
        }
        Ok(self.issue(Leave::Read { chunks }))
    }
}

/// An answer in the making.
pub(crate) struct Answers<'a, T> {
    tables: &'a T,
    office: &'a TicketOffice,
    proofs: pb::Proofs,
    headers: HashMap<u64, u32>,
    ops: HashMap<OpRef, u32>,
    bytes: usize,
}

impl<'a, T: Tables> Answers<'a, T> {
    pub(crate) fn new(tables: &'a T, office: &'a TicketOffice) -> Self {
        Self {
            tables,
            office,
            proofs: pb::Proofs::default(),
            headers: HashMap::new(),
            ops: HashMap::new(),
            bytes: 0,
        }
    }

    /// About how long the answer is so far.
    pub(crate) const fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) const fn principal(&self) -> PrincipalId {
        self.office.principal
    }

    pub(crate) fn into_proofs(self) -> pb::Proofs {
        self.proofs
    }

    pub(crate) fn leaf(&mut self, found: FoundLeaf) -> Result<pb::ProvenLeaf, Status> {
        self.bytes += found.payload.len() + OVERHEAD_BYTES;
        Ok(pb::ProvenLeaf { op: self.op(found.at)?, payload: found.payload.into() })
    }

    pub(crate) fn entry(&mut self, found: FoundEntry) -> Result<pb::Entry, Status> {
        let attrs = found.attrs.map(|attrs| self.leaf(attrs)).transpose()?;
        let head = found.head.map(|head| self.leaf(head)).transpose()?;
        Ok(pb::Entry {
            entry: Some(self.leaf(found.entry)?),
            attrs,
            head,
            ticket: self.ticket(found.chunks)?,
            pages: self.pages(found.pages),
        })
    }

    pub(crate) fn content(&mut self, found: FoundContent) -> Result<pb::ContentAnswer, Status> {
        Ok(pb::ContentAnswer {
            head: Some(self.leaf(found.head)?),
            ticket: self.ticket(found.chunks)?,
            pages: self.pages(found.pages),
        })
    }

    fn ticket(&mut self, chunks: Vec<ChunkId>) -> Result<bytes::Bytes, Status> {
        let ticket = self.office.read(chunks)?;
        self.bytes += ticket.len();
        Ok(ticket.into())
    }

    fn pages(&mut self, pages: Vec<Vec<u8>>) -> Vec<bytes::Bytes> {
        self.bytes += pages.iter().map(|page| page.len() + OVERHEAD_BYTES).sum::<usize>();
        pages.into_iter().map(bytes::Bytes::from).collect()
    }

    fn op(&mut self, at: OpRef) -> Result<u32, Status> {
        if let Some(op) = self.ops.get(&at) {
            return Ok(*op);
        }
        let proof = query::op_proof(self.tables, at).map_err(store_failed)?;
        let next_header = index(self.proofs.headers.len());
        let header = *self.headers.entry(at.sequence).or_insert(next_header);
        if header == next_header {
            self.bytes += proof.header.len() + OVERHEAD_BYTES;
            self.proofs.headers.push(pb::SignedHeader {
                header: proof.header.into(),
                signature: proof.signature.as_bytes().to_vec().into(),
            });
        }
        self.bytes += proof.op.len() + proof.path.len() * 32 + OVERHEAD_BYTES;
        let op = index(self.proofs.ops.len());
        self.proofs.ops.push(pb::SignedOp {
            header,
            index: at.index.into(),
            op: proof.op.into(),
            path: proof.path.concat().into(),
            sequence: at.sequence,
        });
        self.ops.insert(at, op);
        Ok(op)
    }
}

fn index(length: usize) -> u32 {
    u32::try_from(length).expect("an answer is bounded far below this")
}
