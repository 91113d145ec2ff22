//! Applying commands: check, then change.
//!
//! A bundle is checked as a whole (time, session, vault records), then its ops one after the other,
//! each on an overlay of its own: an op that is refused leaves nothing behind, and one that relies
//! on it meets a hash it did not expect and is refused too.

use std::collections::BTreeMap;

use coffer_model::bundle::{
    Author, Bundle, BundleRejection, Header, NOT_AFTER_MS_MAX, Outcomes, PAYLOAD_BYTES_MAX,
    Payloads,
};
use coffer_model::descriptor::{Descriptor, SignedDescriptor};
use coffer_model::hash::{Hash, payload_hash};
use coffer_model::id::{ClusterId, InodeId};
use coffer_model::log::{LogBody, LogEntry, SystemOp};
use coffer_model::manifest::Slot;
use coffer_model::merkle::{Frontier, Tree, leaf_hash};
use coffer_model::object::{SessionLeaf, UserLeaf};
use coffer_model::op::{Op, Outcome, Rejection};
use coffer_model::session::{CertificateHash, SESSION_MS_MAX};
use coffer_model::time::LogTime;

use crate::command::{Prepared, Reply};
use crate::state::{
    CORE_VERSION_MAX, LoggedOp, OpRef, Repeat, Row, Usage, load, meta, op_key, parse, repeat_key,
    store,
};
use crate::tables::{Overlay, Table, TableError, Tables};

pub(crate) mod gone;
mod ops;
mod purge;
mod system;
pub(crate) mod tree;

/// How many forgotten requests one bundle clears away, so that the table keeps up with its growth.
const REPEATS_CLEARED: usize = 4;

/// The replica cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum CoreError {
    /// The store failed or holds bytes this software did not write.
    #[error(transparent)]
    Store(#[from] TableError),
    /// The group goes on to a version of the state machine that this software does not have. To go on
    /// without it would be to come to another state than the others.
    #[error(
        "the group has gone on to version {version} of the state machine, and this program knows versions \
         up to {CORE_VERSION_MAX}: start a newer program; nothing is lost"
    )]
    LaterVersion {
        /// The version.
        version: u32,
    },
}

/// Why an op did not go through: it was refused, or the store failed.
pub(crate) enum Stop {
    Refused(Rejection),
    Store(TableError),
}

impl From<TableError> for Stop {
    fn from(error: TableError) -> Self {
        Self::Store(error)
    }
}

impl From<Rejection> for Stop {
    fn from(rejection: Rejection) -> Self {
        Self::Refused(rejection)
    }
}

/// Applies one command. The caller writes the overlay's changes, all or none.
pub fn apply<T: Tables>(tables: &mut Overlay<T>, command: &Prepared) -> Result<Reply, CoreError> {
    match command {
        Prepared::System(SystemOp::CoreVersion { version })
            if *version > CORE_VERSION_MAX
                && core_version(tables)?.checked_add(1) == Some(*version) =>
        {
            Err(CoreError::LaterVersion { version: *version })
        }
        Prepared::System(op) => {
            system::apply(tables, op)?;
            Ok(Reply::System)
        }
        Prepared::Refused(rejection) => Ok(Reply::Refused(rejection.clone())),
        Prepared::Submission(submission) => {
            let (bundle, payloads) = submission.as_ref();
            bundle_reply(tables, bundle, payloads).map_err(CoreError::Store)
        }
    }
}

/// What an op is applied in.
pub(crate) struct Context<'a> {
    pub(crate) cluster: ClusterId,
    pub(crate) header: &'a Header,
    pub(crate) blobs: BTreeMap<Hash, &'a [u8]>,
    pub(crate) slots: BTreeMap<u16, &'a [(u64, Slot)]>,
    pub(crate) time: LogTime,
    pub(crate) core_version: u32,
    pub(crate) open_registration: bool,
}

fn bundle_reply<T: Tables>(
    tables: &mut Overlay<T>,
    bundle: &Bundle,
    payloads: &Payloads,
) -> Result<Reply, TableError> {
    let header = &bundle.header;
    // An answer is for the author of the request only, and what anybody can sign stays out of the log.
    if !key_is_the_principals(tables, bundle)? {
        return Ok(Reply::Refused(match header.author {
            Author::Session(_) => BundleRejection::Session,
            Author::Identity => BundleRejection::Signature,
        }));
    }
    let repeat = repeat_key(&header.principal, &header.request);
    if let Some(Repeat { outcomes, revision }) = load(tables, Table::Repeats, &repeat)? {
        return Ok(Reply::Bundle { outcomes, revision, repeated: true });
    }
    let time = load(tables, Table::Meta, meta::TIME)?.unwrap_or(LogTime::ZERO);
    let latest = time.plus_ms(NOT_AFTER_MS_MAX);
    if header.not_after < time || header.not_after > latest {
        return Ok(Reply::Refused(BundleRejection::Expired(time)));
    }
    if !author_may_sign(tables, bundle, time)? {
        return Ok(Reply::Refused(BundleRejection::Session));
    }
    for vault in &header.vaults {
        if tables.get(Table::VaultHashes, vault.as_hash().as_bytes())?.is_none() {
            return Ok(Reply::Refused(BundleRejection::VaultChanged));
        }
    }
    let Some((descriptor, cluster)) = cluster(tables)? else {
        return Ok(Reply::Refused(BundleRejection::Cluster));
    };

    let context = Context {
        cluster,
        header,
        blobs: payloads.blobs.iter().map(|blob| (payload_hash(blob), blob.as_slice())).collect(),
        slots: payloads.slots.iter().map(|of| (of.op, of.changes.as_slice())).collect(),
        time,
        core_version: core_version(tables)?,
        open_registration: descriptor.open_registration,
    };
    let mut frontier: Frontier = load(tables, Table::Meta, meta::FRONTIER)?.unwrap_or_default();
    let sequence = frontier.size();
    let mut outcomes = Outcomes::with_capacity(bundle.ops.len());
    for (index, op) in (0u16..).zip(&bundle.ops) {
        let at = OpRef { sequence, index };
        let mut attempt = Overlay::new(&*tables);
        match ops::apply(&mut attempt, &context, at, op) {
            Ok(charged_bytes) => {
                let changes = attempt.into_changes();
                tables.merge(changes);
                outcomes.push(Ok(Outcome { charged_bytes }));
            }
            Err(Stop::Refused(rejection)) => outcomes.push(Err(rejection)),
            Err(Stop::Store(error)) => return Err(error),
        }
    }

    // Nobody knows this author, and nobody will: what anybody can sign stays out of the log.
    if tables.get(Table::Principals, header.principal.as_bytes())?.is_none() {
        return Ok(Reply::Bundle { outcomes, revision: sequence, repeated: false });
    }

    let leaves: Vec<_> = bundle.signed.ops.iter().map(|op| leaf_hash(op)).collect();
    let tree = Tree::new(&leaves);
    for (index, op) in (0u16..).zip(&bundle.signed.ops) {
        let path = tree.path(usize::from(index)).unwrap_or_default().to_vec();
        let logged = LoggedOp { op: op.clone(), path };
        tables.put(Table::LogOps, &op_key(OpRef { sequence, index }), store(&logged));
    }
    let body = LogBody::Bundle {
        header: bundle.signed.header.clone(),
        signature: bundle.signed.signature,
        outcomes: outcomes.clone(),
    };
    append(tables, &mut frontier, time, body);
    let revision = frontier.size();
    let kept = Repeat { outcomes: outcomes.clone(), revision };
    tables.put(Table::Repeats, &repeat, store(&kept));
    let by_time = [header.not_after.unix_ms().to_be_bytes().as_slice(), &repeat].concat();
    tables.put(Table::RepeatsByTime, &by_time, Vec::new());
    forget_repeats(tables, time)?;
    Ok(Reply::Bundle { outcomes, revision, repeated: false })
}

/// Requests whose not-after has passed cannot be applied again, so nothing needs to remember them.
fn forget_repeats<T: Tables>(tables: &mut Overlay<T>, time: LogTime) -> Result<(), TableError> {
    let end = time.unix_ms().to_be_bytes();
    for (key, _) in tables.scan(Table::RepeatsByTime, &[], &end, REPEATS_CLEARED)? {
        tables.delete(Table::RepeatsByTime, &key);
        tables.delete(Table::Repeats, &key[8..]);
    }
    Ok(())
}

/// Whether the header's key is one of the principal: of a session of theirs, open or not, or their
/// identity. Who is not registered yet brings the identity in the bundle.
fn key_is_the_principals(tables: &impl Tables, bundle: &Bundle) -> Result<bool, TableError> {
    let Header { principal, key, author, .. } = &bundle.header;
    if let Author::Session(certificate) = author {
        let row: Option<Row<SessionLeaf>> =
            load(tables, Table::Sessions, certificate.as_hash().as_bytes())?;
        return Ok(row.is_some_and(|row| {
            let certificate = &row.leaf.certificate.certificate;
            certificate.key == *key && certificate.principal == *principal
        }));
    }
    Ok(match tables.get(Table::Principals, principal.as_bytes())? {
        Some(name) => {
            let user: Option<Row<UserLeaf>> = load(tables, Table::Users, &name)?;
            user.is_some_and(|user| user.leaf.identity == *key)
        }
        None => bundle.ops.iter().any(|op| match op {
            Op::Register { user, .. } => {
                user.leaf.principal == *principal && user.leaf.identity == *key
            }
            _ => false,
        }),
    })
}

/// Whether the header's key, which is the principal's, may sign these ops now.
fn author_may_sign(
    tables: &impl Tables,
    bundle: &Bundle,
    time: LogTime,
) -> Result<bool, TableError> {
    match bundle.header.author {
        Author::Session(certificate) => {
            let session = open_session(tables, &certificate, time)?;
            Ok(session.is_some() && !bundle.ops.iter().any(signed_by_identity))
        }
        Author::Identity => Ok(bundle.ops.iter().all(signed_by_identity)),
    }
}

fn signed_by_identity(op: &Op) -> bool {
    matches!(op, Op::Register { .. } | Op::OpenSession { .. } | Op::UpdateUser { .. })
}

/// The session with this certificate, if it counts at `time`.
pub(crate) fn open_session(
    tables: &impl Tables,
    certificate: &CertificateHash,
    time: LogTime,
) -> Result<Option<SessionLeaf>, TableError> {
    let row: Option<Row<SessionLeaf>> =
        load(tables, Table::Sessions, certificate.as_hash().as_bytes())?;
    Ok(row
        .map(|row| row.leaf)
        .filter(|session| !session.closed && session.certificate.certificate.expires > time))
}

/// Whether a certificate's times are acceptable when it is logged at `time`.
pub(crate) fn certificate_times_fit(issued: LogTime, expires: LogTime, time: LogTime) -> bool {
    issued <= time.plus_ms(NOT_AFTER_MS_MAX)
        && expires > time
        && expires > issued
        && expires <= issued.plus_ms(SESSION_MS_MAX)
}

/// The descriptor in force and the cluster's id, once there is a cluster.
pub(crate) fn cluster(tables: &impl Tables) -> Result<Option<(Descriptor, ClusterId)>, TableError> {
    let Some(id) = load::<ClusterId>(tables, Table::Meta, meta::CLUSTER)? else { return Ok(None) };
    let Some(signed) = descriptor(tables)? else { return Ok(None) };
    let signed: SignedDescriptor = parse(Table::Descriptors, &signed)?;
    Ok(Some((parse(Table::Descriptors, &signed.bytes)?, id)))
}

/// The signed descriptor in force, as it was proposed.
pub(crate) fn descriptor(tables: &impl Tables) -> Result<Option<Vec<u8>>, TableError> {
    match load::<u64>(tables, Table::Meta, meta::DESCRIPTOR_NUMBER)? {
        None => tables.get(Table::Meta, meta::DESCRIPTOR),
        Some(number) => tables.get(Table::Descriptors, &number.to_be_bytes()),
    }
}

/// The version of the state machine in force; 0 before there is a cluster.
pub(crate) fn core_version(tables: &impl Tables) -> Result<u32, TableError> {
    Ok(load(tables, Table::Meta, meta::CORE_VERSION)?.unwrap_or(0))
}

fn append<T: Tables>(
    tables: &mut Overlay<T>,
    frontier: &mut Frontier,
    time: LogTime,
    body: LogBody,
) {
    let entry = LogEntry { sequence: frontier.size(), time, body };
    tables.put(Table::Log, &entry.sequence.to_be_bytes(), store(&entry));
    frontier.append(entry.leaf());
    tables.put(Table::Meta, meta::FRONTIER, store(frontier));
}

impl Context<'_> {
    /// The payload a leaf names: it must have come with the bundle, or be the one that stands
    /// already.
    pub(crate) fn payload(
        &self,
        hash: &Hash,
        standing: Option<&[u8]>,
    ) -> Result<Vec<u8>, Rejection> {
        let blob = match self.blobs.get(hash) {
            Some(blob) => blob,
            None => {
                standing.filter(|bytes| payload_hash(bytes) == *hash).ok_or(Rejection::Payload)?
            }
        };
        if blob.len() > PAYLOAD_BYTES_MAX {
            return Err(Rejection::Payload);
        }
        Ok(blob.to_vec())
    }
}

/// Adds to what a home, and all homes, have used.
pub(crate) fn charge<T: Tables>(
    tables: &mut Overlay<T>,
    home: &InodeId,
    more: Usage,
) -> Result<(), TableError> {
    add_usage(tables, Table::Usage, home.as_bytes(), more)?;
    add_usage(tables, Table::Meta, meta::TOTAL, more)
}

fn add_usage<T: Tables>(
    tables: &mut Overlay<T>,
    table: Table,
    key: &[u8],
    more: Usage,
) -> Result<(), TableError> {
    let mut usage: Usage = load(tables, table, key)?.unwrap_or_default();
    usage.bytes = usage.bytes.saturating_add(more.bytes);
    usage.inodes = usage.inodes.saturating_add(more.inodes);
    usage.rows = usage.rows.saturating_add(more.rows);
    tables.put(table, key, store(&usage));
    Ok(())
}
