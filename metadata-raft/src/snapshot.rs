//! A state on its way from one member to another: all rows of all tables, from one moment, in pieces
//! of bounded size. Nothing holds the whole of it: the sender reads from a view of its store, the
//! receiver writes into tables of its own that nobody reads until everything was there and was right.
//!
//! What goes over the wire is drawn in `docs/formats/raft-store.md`: a header, pieces of the rows, an
//! end with their number and a hash of everything before it.

use std::sync::Arc;

use borsh::{BorshDeserialize, BorshSerialize};
use coffer_metadata_core::Table;
use coffer_metadata_core::state::{CORE_VERSION_MAX, meta};
use coffer_model::encoding::{Malformed, decode, encode};
use coffer_model::hash::Hash;
use coffer_model::id::ClusterId;
use tokio::sync::OwnedSemaphorePermit;

use crate::codec::{LogIdForm, StoredMembershipForm, VoteForm};
use crate::raft::{LogId, SnapshotMeta, StoredMembership, Vote};
use crate::store::{Staging, Store, StoreError, View};

/// The version of everything in a snapshot's stream, rows included.
const VERSION: u8 = 1;
/// The bytes of rows in one message. Rows are cut wherever a piece is full.
pub(crate) const PIECE_BYTES: usize = 1 << 20;
/// The longest row there can be. What a row holds came in one log entry, and that fits into a message
/// of 6 MiB.
const ROW_BYTES_MAX: usize = 16 << 20;
/// A table's number and the lengths of key and value stand before each row.
const ROW_HEAD_BYTES: usize = 9;
/// What a hash of a stream is under.
const HASH_DOMAIN: &str = "coffer/v1/member/snapshot";

/// A snapshot, as openraft hands it around.
#[derive(Debug)]
pub(crate) enum SnapshotData {
    /// This member's state at some moment, to be sent.
    Own(Arc<View>),
    /// Another member's, to be installed.
    Received(Received),
}

/// Why a snapshot is not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SnapshotError {
    /// The sender's version is not known here.
    #[error("snapshots of version {0} are not known here")]
    Version(u8),
    /// Its state is of a later version of the state machine than this program has.
    #[error(
        "the snapshot is of version {0} of the state machine, and this member knows versions up to \
         {CORE_VERSION_MAX}: start a newer program there"
    )]
    LaterState(u32),
    /// It is of another cluster.
    #[error("the snapshot is of cluster {0}")]
    Foreign(ClusterId),
    /// A message is not what it should be.
    #[error("a message of the snapshot cannot be read")]
    Malformed(#[source] Malformed),
    /// The messages do not go together.
    #[error("the snapshot is damaged: {0}")]
    Damaged(&'static str),
    /// It could not be written down.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What stands before the rows.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Header {
    pub(crate) cluster: ClusterId,
    /// In whose name it is sent.
    pub(crate) vote: Vote,
    /// Up to where the rows reflect the log.
    pub(crate) last: LogId,
    pub(crate) membership: StoredMembership,
}

#[derive(BorshSerialize, BorshDeserialize)]
enum Part {
    Header { cluster: ClusterId, vote: VoteForm, last: LogIdForm, membership: StoredMembershipForm },
    Rows(Vec<u8>),
    End { rows: u64, hash: Hash },
}

fn encode_part(part: &Part) -> Vec<u8> {
    let mut bytes = vec![VERSION];
    bytes.append(&mut encode(part));
    bytes
}

fn decode_part(bytes: &[u8]) -> Result<Part, SnapshotError> {
    match bytes.split_first() {
        Some((&VERSION, rest)) => {
            decode("part of a snapshot", rest).map_err(SnapshotError::Malformed)
        }
        Some((&version, _)) => Err(SnapshotError::Version(version)),
        None => Err(SnapshotError::Damaged("a message is empty")),
    }
}

/// A hash of all messages so far, one after the other.
fn chained(before: &Hash, message: &[u8]) -> Hash {
    Hash::of(HASH_DOMAIN, &[before.as_bytes().as_slice(), message].concat())
}

impl Header {
    fn encode(&self) -> Vec<u8> {
        encode_part(&Part::Header {
            cluster: self.cluster,
            vote: (&self.vote).into(),
            last: (&self.last).into(),
            membership: (&self.membership).into(),
        })
    }

    /// Reads the first message of a stream, which has to be of this cluster.
    pub(crate) fn decode(message: &[u8], own: &ClusterId) -> Result<Self, SnapshotError> {
        let Part::Header { cluster, vote, last, membership } = decode_part(message)? else {
            return Err(SnapshotError::Damaged("it does not begin with a header"));
        };
        if cluster != *own {
            return Err(SnapshotError::Foreign(cluster));
        }
        Ok(Self { cluster, vote: vote.into(), last: last.into(), membership: membership.into() })
    }

    pub(crate) fn meta(&self) -> SnapshotMeta {
        SnapshotMeta {
            last_log_id: Some(self.last),
            last_membership: self.membership.clone(),
            snapshot_id: self.last.to_string(),
        }
    }
}

/// Hands the messages of a stream to `send`, one after the other, for as long as it wants more.
pub(crate) fn stream(
    header: &Header,
    view: &View,
    mut send: impl FnMut(Vec<u8>) -> bool,
) -> Result<(), StoreError> {
    let mut hash = Hash::from_bytes([0; 32]);
    let mut next = |message: Vec<u8>| {
        hash = chained(&hash, &message);
        (hash, send(message))
    };
    if !next(header.encode()).1 {
        return Ok(());
    }
    let (mut piece, mut rows) = (Vec::with_capacity(PIECE_BYTES), 0u64);
    for table in Table::ALL {
        let mut from = Vec::new();
        loop {
            let found = view.rows(table, &from, PIECE_BYTES)?;
            let Some((last, _)) = found.last() else { break };
            from.clone_from(last);
            // The least key after it.
            from.push(0);
            for (key, value) in &found {
                rows += 1;
                put_row(&mut piece, table, key, value)?;
                while piece.len() >= PIECE_BYTES {
                    let rest = piece.split_off(PIECE_BYTES);
                    if !next(encode_part(&Part::Rows(std::mem::replace(&mut piece, rest)))).1 {
                        return Ok(());
                    }
                }
            }
        }
    }
    let (hash, wanted) = next(encode_part(&Part::Rows(piece)));
    if wanted {
        send(encode_part(&Part::End { rows, hash }));
    }
    Ok(())
}

fn put_row(piece: &mut Vec<u8>, table: Table, key: &[u8], value: &[u8]) -> Result<(), StoreError> {
    let too_long = |_| StoreError::Read {
        what: "a row for a snapshot",
        reason: "it is longer than any row can be".to_owned(),
    };
    piece.push(table as u8);
    piece.extend_from_slice(&u32::try_from(key.len()).map_err(too_long)?.to_le_bytes());
    piece.extend_from_slice(&u32::try_from(value.len()).map_err(too_long)?.to_le_bytes());
    piece.extend_from_slice(key);
    piece.extend_from_slice(value);
    Ok(())
}

/// A row at the beginning of `bytes`, and how long it is there; none if it is not all there.
fn take_row(bytes: &[u8]) -> Result<Option<(Row<'_>, usize)>, SnapshotError> {
    let Some((&[table, key @ .., a, b, c, d], rest)) = bytes.split_first_chunk::<ROW_HEAD_BYTES>()
    else {
        return Ok(None);
    };
    let length = |bytes| usize::try_from(u32::from_le_bytes(bytes)).unwrap_or(usize::MAX);
    let (key, value) = (length(key), length([a, b, c, d]));
    let both = key.saturating_add(value);
    if both > ROW_BYTES_MAX {
        return Err(SnapshotError::Damaged("a row is too long"));
    }
    let table = Table::ALL.get(usize::from(table)).copied();
    let table =
        table.ok_or(SnapshotError::Damaged("a row is of a table that is not known here"))?;
    let Some(row) = rest.get(..both) else { return Ok(None) };
    let (key, value) = row.split_at(key);
    Ok(Some((Row { table, key, value }, ROW_HEAD_BYTES + both)))
}

/// A state this program cannot go on from is not taken.
fn check_core_version(row: &[u8]) -> Result<(), SnapshotError> {
    match decode("the version of the state machine", row).map_err(SnapshotError::Malformed)? {
        version if version > CORE_VERSION_MAX => Err(SnapshotError::LaterState(version)),
        _ => Ok(()),
    }
}

struct Row<'a> {
    table: Table,
    key: &'a [u8],
    value: &'a [u8],
}

/// A snapshot that is being received. What it has written nobody reads; if it is dropped, the next one
/// or the next start removes it.
#[derive(Debug)]
pub(crate) struct Receiving {
    header: Header,
    staging: Staging,
    hash: Hash,
    /// The beginning of a row whose rest is still to come: never more than one row and one piece.
    rest: Vec<u8>,
    rows: u64,
    last: Option<(Table, Vec<u8>)>,
    ended: bool,
    /// One is received at a time.
    turn: Arc<OwnedSemaphorePermit>,
}

impl Receiving {
    /// Begins with the header and the message it was read from.
    pub(crate) fn begin(
        store: &Arc<Store>,
        header: Header,
        message: &[u8],
        turn: Arc<OwnedSemaphorePermit>,
    ) -> Result<Self, SnapshotError> {
        Ok(Self {
            header,
            staging: store.begin_staging()?,
            hash: chained(&Hash::from_bytes([0; 32]), message),
            rest: Vec::new(),
            rows: 0,
            last: None,
            ended: false,
            turn,
        })
    }

    /// Takes the next message; says whether it was the last.
    pub(crate) fn take(&mut self, message: &[u8]) -> Result<bool, SnapshotError> {
        if self.ended {
            return Err(SnapshotError::Damaged("it goes on after its end"));
        }
        match decode_part(message)? {
            Part::Header { .. } => return Err(SnapshotError::Damaged("it has two headers")),
            Part::Rows(piece) if piece.len() > PIECE_BYTES => {
                return Err(SnapshotError::Damaged("a piece is too long"));
            }
            Part::Rows(piece) => {
                self.hash = chained(&self.hash, message);
                self.take_rows(&piece)?;
            }
            Part::End { rows, hash } => {
                if !self.rest.is_empty() {
                    return Err(SnapshotError::Damaged("it ends within a row"));
                }
                if rows != self.rows {
                    return Err(SnapshotError::Damaged("it has another number of rows"));
                }
                if hash != self.hash {
                    return Err(SnapshotError::Damaged("it has another hash"));
                }
                self.ended = true;
            }
        }
        Ok(self.ended)
    }

    fn take_rows(&mut self, piece: &[u8]) -> Result<(), SnapshotError> {
        self.rest.extend_from_slice(piece);
        let (mut rows, mut taken) = (Vec::new(), 0);
        while let Some((row, length)) = take_row(&self.rest[taken..])? {
            if row.table == Table::Meta && row.key == meta::CORE_VERSION {
                check_core_version(row.value)?;
            }
            let place = (row.table, row.key.to_vec());
            if self.last.as_ref().is_some_and(|last| *last >= place) {
                return Err(SnapshotError::Damaged("its rows are not in order"));
            }
            self.last = Some(place);
            taken += length;
            rows.push(row);
        }
        self.rows += rows.len() as u64;
        self.staging.put(rows.iter().map(|row| (row.table, row.key, row.value)))?;
        self.rest.drain(..taken);
        Ok(())
    }

    /// Makes a state of which everything was there durable.
    pub(crate) fn finish(self) -> Result<Received, SnapshotError> {
        if !self.ended {
            return Err(SnapshotError::Damaged("it is cut off"));
        }
        self.staging.flush()?;
        let Self { header, staging, turn, .. } = self;
        Ok(Received { header, staging, _turn: turn })
    }
}

/// A state that is all there and durable, and not this member's yet.
#[derive(Debug)]
pub(crate) struct Received {
    header: Header,
    staging: Staging,
    _turn: Arc<OwnedSemaphorePermit>,
}

impl Received {
    pub(crate) const fn header(&self) -> &Header {
        &self.header
    }

    /// Makes it this member's, in one step.
    pub(crate) fn swap_in(self) -> Result<(), StoreError> {
        self.staging.swap_in(&self.header.last, &self.header.membership)
    }
}

#[cfg(test)]
mod tests;
