//! Purge: what was deleted longer ago than retention says goes for good, in bounded steps.
//!
//! The name goes first, with what hangs on the inode itself; then its versions, so that nothing refers
//! to a page or a chunk any more; then what lies below a directory loses its name, and waits for a
//! purge of its own; then pages with their chunk rows; at last the home gets back what the inode has
//! charged, and the inode is no more. Once it has begun, nothing brings the inode back.

use std::collections::BTreeSet;

use coffer_model::id::{ChunkId, InodeId, NameTag};
use coffer_model::log::ChunkRow;
use coffer_model::manifest::{Page, Slot};
use coffer_model::object::{EntryKey, EntryLeaf, VaultLeaf};
use coffer_model::time::LogTime;

use crate::apply::gone::{self, due};
use crate::query;
use crate::state::{
    Gone, InodeState, Row, Usage, after_prefix, entry_key, load, meta, parse, row_key, store,
    trash_key,
};
use crate::tables::{Overlay, Rows, Table, TableError, Tables};

/// The most rows one step looks at, beyond the few of the inode itself: a step holds up everything
/// behind it in the log.
const STEP_ROWS_MAX: usize = 256;

/// Takes one step; says whether there was one to take.
pub(crate) fn step<T: Tables>(
    tables: &mut Overlay<T>,
    inode: &InodeId,
    time: LogTime,
) -> Result<bool, TableError> {
    let Some(gone) = gone::gone(tables, inode)? else { return Ok(false) };
    let retention_ms = query::policy(tables)?.retention_ms;
    if gone.purge.is_none() && !due(gone.since, retention_ms, time) {
        return Ok(false);
    }
    let mut purge = Purge { tables, inode: *inode, gone, rows_left: STEP_ROWS_MAX };
    if purge.gone.purge.is_none() {
        purge.begin()?;
    }
    let done = purge.remove_all_of(Table::Versions)?
        && purge.remove_all_of(Table::Staged)?
        && purge.let_names_go()?
        && purge.let_trash_go()?
        && purge.remove_pages()?
        && purge.give_back()?;
    if done {
        purge.end()?;
    }
    Ok(true)
}

struct Purge<'a, T> {
    tables: &'a mut Overlay<T>,
    inode: InodeId,
    gone: Gone,
    rows_left: usize,
}

impl<T: Tables> Purge<'_, T> {
    /// Marks the inode, and takes away what there is once: its name, version, attributes, access list.
    fn begin(&mut self) -> Result<(), TableError> {
        self.go_on_at(Vec::new())?;
        let inode = self.inode;
        let Some(mut state) = self.state(&inode)? else { return Ok(()) };
        if let Some(parent) = state.parent.take() {
            let key = entry_key(&parent);
            let row: Option<Row<EntryLeaf>> = load(self.tables, Table::Entries, &key)?;
            if row.is_some_and(|row| row.leaf.inode == inode) {
                self.tables.delete(Table::Entries, &key);
            }
            self.tables.delete(Table::Trash, &trash_key(&parent.directory, &inode));
        }
        self.tables.delete(Table::Heads, inode.as_bytes());
        self.tables.delete(Table::Attrs, inode.as_bytes());
        let vault: Option<Row<VaultLeaf>> = load(self.tables, Table::Vaults, inode.as_bytes())?;
        if let Some(vault) = vault {
            self.tables.delete(Table::Vaults, inode.as_bytes());
            self.tables.delete(Table::VaultHashes, vault.hash.as_hash().as_bytes());
        }
        state.vault = false;
        self.tables.put(Table::Inodes, inode.as_bytes(), store(&state));
        Ok(())
    }

    /// Nothing is left but the inode.
    fn end(&mut self) -> Result<(), TableError> {
        if self.state(&self.inode)?.is_some() {
            self.tables.delete(Table::Inodes, self.inode.as_bytes());
            gone::count(self.tables, -1)?;
        }
        gone::take(self.tables, &self.inode)?;
        Ok(())
    }

    fn state(&self, inode: &InodeId) -> Result<Option<InodeState>, TableError> {
        load(self.tables, Table::Inodes, inode.as_bytes())
    }

    fn go_on_at(&mut self, row: Vec<u8>) -> Result<(), TableError> {
        self.gone.purge = Some(row);
        gone::put(self.tables, &self.inode, &self.gone)
    }

    /// Rows of a table whose key begins with the inode, as many as this step may still look at; and
    /// whether those are all.
    fn own_rows(&mut self, table: Table) -> Result<(Rows, bool), TableError> {
        let own = self.inode.as_bytes();
        let rows = self.tables.scan(table, own, &after_prefix(own), self.rows_left)?;
        let all = rows.len() < self.rows_left;
        self.rows_left -= rows.len();
        Ok((rows, all))
    }

    fn remove_all_of(&mut self, table: Table) -> Result<bool, TableError> {
        let (rows, all) = self.own_rows(table)?;
        for (key, _) in rows {
            self.tables.delete(table, &key);
        }
        Ok(all)
    }

    /// Removes the names in a directory. What had its name there has none from now on, since when the
    /// directory has none.
    fn let_names_go(&mut self) -> Result<bool, TableError> {
        let (rows, all) = self.own_rows(Table::Entries)?;
        for (key, value) in rows {
            let row: Row<EntryLeaf> = parse(Table::Entries, &value)?;
            let tag = NameTag::try_from(&key[16..])
                .map_err(|error| TableError(format!("entry key: {error}")))?;
            self.tables.delete(Table::Entries, &key);
            let name = EntryKey { directory: self.inode, tag };
            self.let_go(&row.leaf.inode, |parent| *parent == name)?;
        }
        Ok(all)
    }

    /// The same for what a reused name pointed at.
    fn let_trash_go(&mut self) -> Result<bool, TableError> {
        let (rows, all) = self.own_rows(Table::Trash)?;
        for (key, value) in rows {
            let row: Row<EntryLeaf> = parse(Table::Trash, &value)?;
            self.tables.delete(Table::Trash, &key);
            let directory = self.inode;
            self.let_go(&row.leaf.inode, |parent| parent.directory == directory)?;
        }
        Ok(all)
    }

    fn let_go(
        &mut self,
        child: &InodeId,
        is_here: impl Fn(&EntryKey) -> bool,
    ) -> Result<(), TableError> {
        let Some(mut state) = self.state(child)? else { return Ok(()) };
        if !state.parent.as_ref().is_some_and(is_here) {
            return Ok(());
        }
        state.parent = None;
        if state.linked {
            state.linked = false;
            gone::lost_its_name(self.tables, child, self.gone.since)?;
            if let Some(mut own) = self.state(&self.inode)? {
                own.children = own.children.saturating_sub(1);
                self.tables.put(Table::Inodes, self.inode.as_bytes(), store(&own));
            }
        }
        self.tables.put(Table::Inodes, child.as_bytes(), store(&state));
        Ok(())
    }

    /// Removes pages one by one, each with the inode's rows of the chunks it names. Rows of the same
    /// chunks by others are passed over.
    fn remove_pages(&mut self) -> Result<bool, TableError> {
        let mut from = self.inode.as_bytes().to_vec();
        let end = after_prefix(&from);
        while self.rows_left > 0 {
            let first = self.tables.scan(Table::Pages, &from, &end, 1)?;
            let Some((key, bytes)) = first.first() else { return Ok(true) };
            let page = Page::parse(bytes)
                .map_err(|error| TableError(format!("page of {}: {error}", self.inode)))?;
            if let Page::Leaf(slots) = page {
                let chunks: BTreeSet<ChunkId> = slots
                    .iter()
                    .filter_map(|slot| match slot {
                        Slot::Chunk(chunk) => Some(chunk.chunk),
                        Slot::Hole => None,
                    })
                    .collect();
                for chunk in chunks {
                    if !self.remove_rows(&chunk)? {
                        return Ok(false);
                    }
                }
            }
            self.tables.delete(Table::Pages, key);
            // What this step has removed is not looked at again.
            from = after_prefix(key);
            self.rows_left = self.rows_left.saturating_sub(1);
            self.go_on_at(Vec::new())?;
        }
        Ok(false)
    }

    /// Removes the inode's rows of one chunk, from where the purge has come to.
    fn remove_rows(&mut self, chunk: &ChunkId) -> Result<bool, TableError> {
        let end = after_prefix(chunk.as_bytes());
        let reached = self.gone.purge.clone().unwrap_or_default();
        let from = row_key(chunk, 0).max(reached);
        let rows = self.tables.scan(Table::Rows, &from, &end, self.rows_left)?;
        let all = rows.len() < self.rows_left;
        self.rows_left -= rows.len();
        let next = rows.last().map_or(from, |(key, _)| after_prefix(key));
        for (key, value) in rows {
            let row: ChunkRow = parse(Table::Rows, &value)?;
            if row.inode == self.inode {
                self.tables.delete(Table::Feed, &key[32..]);
                self.tables.delete(Table::Rows, &key);
            }
        }
        if !all {
            self.go_on_at(next)?;
        }
        Ok(all)
    }

    /// Gives homes back what the inode has charged them.
    fn give_back(&mut self) -> Result<bool, TableError> {
        let (rows, all) = self.own_rows(Table::InodeUsage)?;
        for (key, value) in rows {
            let back: Usage = parse(Table::InodeUsage, &value)?;
            for (table, of) in [(Table::Usage, &key[16..]), (Table::Meta, meta::TOTAL)] {
                let mut usage: Usage = load(self.tables, table, of)?.unwrap_or_default();
                usage.bytes = usage.bytes.saturating_sub(back.bytes);
                usage.inodes = usage.inodes.saturating_sub(back.inodes);
                usage.rows = usage.rows.saturating_sub(back.rows);
                self.tables.put(table, of, store(&usage));
            }
            self.tables.delete(Table::InodeUsage, &key);
        }
        Ok(all)
    }
}
