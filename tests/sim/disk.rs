//! The store that controllers share: what was committed survives them.

use std::collections::{BTreeMap, BTreeSet};

use tunmesh::controller::store::transaction::{Change, Entry, StoreError, Transaction, Write};

/// A store of keys, as the real ones are, without a disk.
#[derive(Debug, Clone, Default)]
pub struct SimStore {
    entries: BTreeMap<String, (Vec<u8>, u64)>,
    changes: Vec<Change>,
}

impl SimStore {
    pub fn revision(&self) -> u64 {
        self.changes.last().map_or(0, |change| change.revision)
    }

    pub fn read(&self, prefix: &str) -> (Vec<Entry>, u64) {
        let entries = self.entries.iter().filter(|(key, _)| key.starts_with(prefix));
        let entries = entries.map(|(key, (value, revision))| Entry {
            key: key.clone(),
            value: value.clone(),
            revision: *revision,
        });
        (entries.collect(), self.revision())
    }

    pub fn commit(&mut self, transaction: &Transaction) -> Result<u64, StoreError> {
        for condition in &transaction.conditions {
            let revision = self.entries.get(&condition.key).map(|(_, revision)| *revision);
            if revision != condition.revision {
                return Err(StoreError::Conflict(condition.key.clone()));
            }
        }
        let keys: BTreeSet<&String> = transaction
            .writes
            .iter()
            .map(|write| match write {
                Write::Put(key, _) | Write::Delete(key) => key,
            })
            .collect();
        assert_eq!(keys.len(), transaction.writes.len(), "a key twice in {transaction:?}");
        let changes_something = |write: &&Write| match write {
            Write::Put(..) => true,
            Write::Delete(key) => self.entries.contains_key(key),
        };
        let writes: Vec<Write> = transaction.writes.iter().filter(changes_something).cloned().collect();
        if writes.is_empty() {
            return Ok(self.revision());
        }
        let revision = self.revision() + 1;
        for write in &writes {
            match write {
                Write::Put(key, value) => {
                    self.entries.insert(key.clone(), (value.clone(), revision));
                }
                Write::Delete(key) => {
                    self.entries.remove(key);
                }
            }
        }
        self.changes.push(Change { revision, writes });
        Ok(revision)
    }

    /// The revision that last changed a key.
    pub fn last_change(&self, key: &str) -> Option<u64> {
        let is_about = |write: &Write| match write {
            Write::Put(other, _) | Write::Delete(other) => other == key,
        };
        let change = self.changes.iter().rev().find(|change| change.writes.iter().any(is_about));
        change.map(|change| change.revision)
    }

    /// All changes after `revision`.
    pub fn changes_after(&self, revision: u64) -> impl Iterator<Item = &Change> {
        self.changes.iter().filter(move |change| change.revision > revision)
    }
}
