//! What was changed, by whom: kept in the same transaction as the change itself, each with a hash of all before it.
//! Pure.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::proto::trust::Asker;

/// How many changes are kept; with each more the oldest goes.
pub const KEPT: u64 = 20_000;

/// A change that is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deed {
    /// Who asks.
    pub asker: Asker,
    /// The method, as `Apply`.
    pub method: &'static str,
    /// What it is about, in words, without anything secret.
    pub what: String,
}

/// A change that was made, as it is kept. The revision that has it is that of the store's key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// When, as time since the Unix epoch.
    pub time: Duration,
    /// Who asked for it.
    pub who: String,
    /// The method.
    pub method: String,
    /// What it was about.
    pub what: String,
    /// The request.
    pub request: String,
    /// The revision that it was judged by.
    pub before: u64,
    /// The SHA-256 of the one before it and of the rest of this, in hexadecimal.
    pub chain: String,
}

impl Record {
    fn new(deed: &Deed, before: u64, time: Duration, chain: &str) -> Self {
        let mut record = Self {
            time,
            who: deed.asker.who.clone(),
            method: deed.method.to_owned(),
            what: deed.what.clone(),
            request: deed.asker.request.clone(),
            before,
            chain: String::new(),
        };
        record.chain = record.link(chain);
        record
    }

    /// What the chain is with this, after `chain`.
    fn link(&self, chain: &str) -> String {
        let rest = Self { chain: chain.to_owned(), ..self.clone() };
        // It has texts and numbers alone, and always a JSON form.
        let hash = Sha256::digest(serde_json::to_vec(&rest).unwrap_or_default());
        hash.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// Where the records end.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Head {
    /// The number of the last one; 0: there is none.
    pub number: u64,
    /// Its chain.
    pub chain: String,
}

impl Head {
    /// The records of `deeds`, with their numbers.
    pub fn append(&self, deeds: &[Deed], before: u64, time: Duration) -> Vec<(u64, Record)> {
        let mut chain = self.chain.clone();
        let records = (self.number + 1..).zip(deeds).map(|(number, deed)| {
            let record = Record::new(deed, before, time, &chain);
            chain.clone_from(&record.chain);
            (number, record)
        });
        records.collect()
    }
}

/// The first record that is not what it was when the next was written, or is missing; the first of all is believed.
pub fn broken(records: &[(u64, Record)]) -> Option<u64> {
    records.windows(2).find_map(|pair| {
        let [(number, record), (next, after)] = pair else { return None };
        let follows = *next == number + 1 && after.link(&record.chain) == after.chain;
        (!follows).then_some(*next)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deed(what: &str) -> Deed {
        let asker = Asker { who: "anna".to_owned(), request: "r1".to_owned() };
        Deed { asker, method: "Apply", what: what.to_owned() }
    }

    fn records(count: usize) -> Vec<(u64, Record)> {
        let deeds: Vec<_> = (0..count).map(|number| deed(&format!("mesh m{number}"))).collect();
        Head::default().append(&deeds, 7, Duration::from_secs(1))
    }

    #[test]
    fn records_go_on_from_the_last_one() {
        let whole = records(5);
        let (first, rest) = whole.split_at(2);
        let head = Head { number: 2, chain: first[1].1.chain.clone() };
        let deeds: Vec<_> = (2..5).map(|number| deed(&format!("mesh m{number}"))).collect();
        assert_eq!(head.append(&deeds, 7, Duration::from_secs(1)), rest);
        assert_eq!(broken(&whole), None);
        assert_eq!(broken(&whole[2..]), None, "the oldest have gone");
    }

    #[test]
    fn what_was_changed_or_taken_out_is_noticed() {
        for place in 1..4 {
            let mut changed = records(5);
            changed[place].1.who = "eve".to_owned();
            assert_eq!(broken(&changed), Some(place as u64 + 1));
            let mut shorter = records(5);
            shorter.remove(place);
            assert_eq!(broken(&shorter), Some(place as u64 + 2));
        }
    }
}
