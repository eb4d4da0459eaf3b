//! The tables in which a store is kept, and what is asked of them.

use std::collections::BTreeSet;

use rusqlite::{Connection, OptionalExtension, Transaction as Group};

use crate::controller::store::{Change, Entry, Transaction, Write};

/// What is made in an empty database.
pub(super) const CREATE: &str = "
    -- What is.
    create table kv (key text not null primary key, value blob not null, revision integer not null) strict;
    -- What changed last; without a value, a key was removed. `total` counts the bytes ever logged.
    create table log (
        revision integer not null,
        position integer not null,
        key text not null,
        value blob,
        total integer not null,
        primary key (revision, position)
    ) strict;
";

/// How many transactions the log holds.
const LOG_TRANSACTIONS: u64 = 10_000;
/// How many bytes of keys and values the log holds, beside the last transaction.
const LOG_BYTES: u64 = 64 << 20;

/// When enough of the log has been read for one look.
const BATCH_BYTES: usize = 1 << 20;
const BATCH_TRANSACTIONS: usize = 64;

/// The end of the log. Its last transaction is never dropped: its revision is the store's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct End {
    /// The revision of the last transaction that changed something.
    pub(super) revision: u64,
    total: u64,
}

/// Why one transaction of a group was not done.
#[derive(Debug)]
pub(super) enum Refusal {
    /// A condition on this key does not hold.
    Conflict(String),
    /// It writes this key twice.
    Twice(String),
    /// The database fails.
    Failed(rusqlite::Error),
}

impl From<rusqlite::Error> for Refusal {
    fn from(error: rusqlite::Error) -> Self {
        Self::Failed(error)
    }
}

/// The end of the log as it is.
pub(super) fn end(database: &Connection) -> rusqlite::Result<End> {
    let last = "select revision, total from log order by revision desc, position desc limit 1";
    let found = database
        .prepare_cached(last)?
        .query_row([], |row| Ok(End { revision: row.get(0)?, total: row.get(1)? }))
        .optional()?;
    Ok(found.unwrap_or_default())
}

/// All keys that begin with `prefix`, and the revision at which they are so.
pub(super) fn read(database: &Connection, prefix: &str) -> rusqlite::Result<(Vec<Entry>, u64)> {
    let snapshot = database.unchecked_transaction()?;
    let mut select =
        snapshot.prepare_cached("select key, value, revision from kv where key >= ?1 order by key")?;
    let entry =
        |row: &rusqlite::Row<'_>| Ok(Entry { key: row.get(0)?, value: row.get(1)?, revision: row.get(2)? });
    let mut entries = Vec::new();
    for entry in select.query_map([prefix], entry)? {
        let entry = entry?;
        if !entry.key.starts_with(prefix) {
            break;
        }
        entries.push(entry);
    }
    Ok((entries, end(&snapshot)?.revision))
}

/// The next of the changes after `revision`, none where there are no more; `None`: the log does not reach from there.
pub(super) fn changes(database: &Connection, revision: u64) -> rusqlite::Result<Option<Vec<Change>>> {
    let snapshot = database.unchecked_transaction()?;
    let last = end(&snapshot)?.revision;
    let first: Option<u64> =
        snapshot.prepare_cached("select min(revision) from log")?.query_row([], |row| row.get(0))?;
    if revision > last || first.is_some_and(|first| first > revision + 1) {
        return Ok(None);
    }
    let mut select = snapshot.prepare_cached(
        "select revision, key, value from log where revision > ?1 order by revision, position",
    )?;
    let mut rows = select.query([revision])?;
    let (mut changes, mut bytes) = (Vec::<Change>::new(), 0);
    while let Some(row) = rows.next()? {
        let (revision, key, value): (u64, String, Option<Vec<u8>>) = (row.get(0)?, row.get(1)?, row.get(2)?);
        let length = key.len() + value.as_ref().map_or(0, Vec::len);
        let write = match value {
            Some(value) => Write::Put(key, value),
            None => Write::Delete(key),
        };
        let is_full = bytes >= BATCH_BYTES || changes.len() >= BATCH_TRANSACTIONS;
        match changes.last_mut() {
            Some(change) if change.revision == revision => change.writes.push(write),
            Some(_) if is_full => break,
            Some(_) | None => changes.push(Change { revision, writes: vec![write] }),
        }
        bytes += length;
    }
    Ok(Some(changes))
}

/// Does one transaction of a group at the end of the log; the end after it. What it did before it was refused is the
/// caller's to take back.
pub(super) fn perform(database: &Connection, transaction: &Transaction, end: End) -> Result<End, Refusal> {
    for condition in &transaction.conditions {
        let mut select = database.prepare_cached("select revision from kv where key = ?1")?;
        let revision: Option<u64> = select.query_row([&condition.key], |row| row.get(0)).optional()?;
        if revision != condition.revision {
            return Err(Refusal::Conflict(condition.key.clone()));
        }
    }
    let mut put =
        database.prepare_cached("insert or replace into kv (key, value, revision) values (?1, ?2, ?3)")?;
    let mut delete = database.prepare_cached("delete from kv where key = ?1")?;
    let mut log = database.prepare_cached(
        "insert into log (revision, position, key, value, total) values (?1, ?2, ?3, ?4, ?5)",
    )?;
    let revision = end.revision + 1;
    let mut after = end;
    let mut keys = BTreeSet::new();
    for (position, write) in transaction.writes.iter().enumerate() {
        let (key, value) = match write {
            Write::Put(key, value) => (key, Some(value)),
            Write::Delete(key) => (key, None),
        };
        if !keys.insert(key) {
            return Err(Refusal::Twice(key.clone()));
        }
        let changed = match value {
            Some(value) => put.execute((key, value, revision))?,
            None => delete.execute([key])?,
        };
        if changed > 0 {
            after = End { revision, total: after.total + (key.len() + value.map_or(0, Vec::len)) as u64 };
            log.execute((revision, position, key, value, after.total))?;
        }
    }
    Ok(after)
}

/// Drops what the log holds too much.
pub(super) fn prune(database: &Group<'_>, end: End) -> rusqlite::Result<()> {
    let mut first =
        database.prepare_cached("select revision, total from log order by revision, position limit 1")?;
    let mut delete = database.prepare_cached("delete from log where revision = ?1")?;
    while let Some((revision, total)) =
        first.query_row([], |row| Ok((row.get::<_, u64>(0)?, row.get::<_, u64>(1)?))).optional()?
    {
        let is_old = end.revision - revision >= LOG_TRANSACTIONS || end.total - total > LOG_BYTES;
        if revision == end.revision || !is_old {
            break;
        }
        delete.execute([revision])?;
    }
    Ok(())
}
