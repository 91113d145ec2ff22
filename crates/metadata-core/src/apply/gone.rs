//! What has no name and waits for its purge: one row for each, and one more in the order of time.

use coffer_model::id::InodeId;
use coffer_model::time::LogTime;

use crate::state::{Gone, load, meta, store};
use crate::tables::{Overlay, Table, TableError, Tables};

/// What is known of an inode that waits for its purge.
pub(crate) fn gone(tables: &impl Tables, inode: &InodeId) -> Result<Option<Gone>, TableError> {
    load(tables, Table::Gone, inode.as_bytes())
}

/// Whether the purge of an inode has begun.
pub(crate) fn purge_has_begun(tables: &impl Tables, inode: &InodeId) -> Result<bool, TableError> {
    Ok(gone(tables, inode)?.is_some_and(|gone| gone.purge.is_some()))
}

/// An inode waits from now on, in the place of what was known of it.
pub(crate) fn put<T: Tables>(
    tables: &mut Overlay<T>,
    inode: &InodeId,
    new: &Gone,
) -> Result<(), TableError> {
    take(tables, inode)?;
    tables.put(Table::Gone, inode.as_bytes(), store(new));
    tables.put(Table::Deleted, &new.deleted_key(inode), Vec::new());
    Ok(())
}

/// An inode waits no more; says whether it did.
pub(crate) fn take<T: Tables>(
    tables: &mut Overlay<T>,
    inode: &InodeId,
) -> Result<bool, TableError> {
    let Some(former) = gone(tables, inode)? else { return Ok(false) };
    tables.delete(Table::Gone, inode.as_bytes());
    tables.delete(Table::Deleted, &former.deleted_key(inode));
    Ok(true)
}

/// An inode that exists has lost its name.
pub(crate) fn lost_its_name<T: Tables>(
    tables: &mut Overlay<T>,
    inode: &InodeId,
    since: LogTime,
) -> Result<(), TableError> {
    put(tables, inode, &Gone { since, purge: None })?;
    count(tables, 1)
}

/// Counts the inodes that exist and have lost their name.
pub(crate) fn count<T: Tables>(tables: &mut Overlay<T>, by: i64) -> Result<(), TableError> {
    let deleted: u64 = load(tables, Table::Meta, meta::DELETED)?.unwrap_or(0);
    tables.put(Table::Meta, meta::DELETED, store(&deleted.saturating_add_signed(by)));
    Ok(())
}

/// Whether what has been without a name since then is due.
pub(crate) fn due(since: LogTime, retention_ms: u64, time: LogTime) -> bool {
    since.plus_ms(retention_ms) < time
}
