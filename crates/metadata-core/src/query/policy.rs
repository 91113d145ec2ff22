//! What the administrators have ordered, and what is due by it.

use coffer_model::id::InodeId;
use coffer_model::order::RETENTION_MS;
use coffer_model::time::LogTime;

use crate::query::log_time;
use crate::state::{load, meta};
use crate::tables::{Table, TableError, Tables};

/// What counts for the whole cluster.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Policy {
    /// Number of the last order; 0 before there is one.
    pub order_number: u64,
    /// How long what was deleted stays, in ms of log time.
    pub retention_ms: u64,
    /// Bytes a home may use that has no quota of its own; none: no limit.
    pub default_quota: Option<u64>,
}

/// What counts now.
pub fn policy(tables: &impl Tables) -> Result<Policy, TableError> {
    Ok(Policy {
        order_number: load(tables, Table::Meta, meta::ORDER_NUMBER)?.unwrap_or(0),
        retention_ms: load(tables, Table::Meta, meta::RETENTION)?.unwrap_or(RETENTION_MS),
        default_quota: load(tables, Table::Meta, meta::QUOTA)?,
    })
}

/// How many bytes a home may use, by its own quota or that of all homes; none: no limit.
pub fn quota(tables: &impl Tables, home: &InodeId) -> Result<Option<u64>, TableError> {
    match load(tables, Table::Quotas, home.as_bytes())? {
        Some(own) => Ok(Some(own)),
        None => load(tables, Table::Meta, meta::QUOTA),
    }
}

/// Inodes whose purge is due or has begun, the longest gone first. Each takes as many steps as it takes
/// until it is no longer among them.
pub fn purgeable(tables: &impl Tables, limit: usize) -> Result<Vec<InodeId>, TableError> {
    let retention_ms = policy(tables)?.retention_ms;
    // The first moment that is not due: what has been gone since before it is.
    let end = log_time(tables)?.unix_ms().saturating_sub(retention_ms);
    let rows = tables.scan(Table::Deleted, &[], &end.to_be_bytes(), limit)?;
    let inode = |key: &[u8]| {
        InodeId::try_from(&key[8..]).map_err(|error| TableError(format!("deleted key: {error}")))
    };
    rows.iter().map(|(key, _)| inode(key)).collect()
}

/// How many inodes exist that were deleted or replaced.
pub fn deleted_inodes(tables: &impl Tables) -> Result<u64, TableError> {
    Ok(load(tables, Table::Meta, meta::DELETED)?.unwrap_or(0))
}

/// From when on in log time there is something to purge; none if nothing is deleted.
pub fn next_purge(tables: &impl Tables) -> Result<Option<LogTime>, TableError> {
    let first = tables.scan(Table::Deleted, &[], &[u8::MAX; 25], 1)?;
    let Some((key, _)) = first.first() else { return Ok(None) };
    let time = key.first_chunk::<8>().map(|time| u64::from_be_bytes(*time));
    let time = time.ok_or_else(|| TableError("a time has 8 bytes".to_owned()))?;
    let retention_ms = policy(tables)?.retention_ms;
    Ok(Some(LogTime::from_unix_ms(time).plus_ms(retention_ms)))
}
