//! What the store holds, read: the one place that knows its keys and encodings.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::alloc::Allocations;
use super::audit::{Deed, Head, KEPT, Record};
use super::mesh::Mesh;
use super::plan::{NodeRecord, Wanted};
use super::store::transaction::{Change, Condition, Entry, Transaction, Write};
use super::trust::{Draft, Identity, Item, Operator, Token, Trust};
use crate::proto::model::{MeshName, NodeName, OperatorName};
use crate::proto::session::{Generation, Have};
use crate::proto::trust::TokenId;

/// The version of keys and encodings that this release reads and writes.
const SCHEMA: u64 = 1;
/// How many starts are remembered. To agents that were away for more it is as if an older copy had been restored.
const TIMELINES: usize = 1_000;

/// Below which the records of changes are.
pub const AUDIT: &str = "/audit/";

/// A key of the store.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    StoreId,
    Incarnation,
    Starts,
    Schema,
    Timelines,
    Meshes,
    Mesh(MeshName),
    Allocations(MeshName),
    Node(NodeName),
    Consent(NodeName),
    Token(TokenId),
    Identity(NodeName),
    Removed(NodeName),
    Operator(OperatorName),
    Audit(u64),
}

impl From<&Item> for Key {
    fn from(item: &Item) -> Self {
        match item.clone() {
            Item::Token(id) => Self::Token(id),
            Item::Identity(node) => Self::Identity(node),
            Item::Removed(node) => Self::Removed(node),
            Item::Operator(name) => Self::Operator(name),
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::StoreId => f.write_str("/meta/store-id"),
            Self::Incarnation => f.write_str("/meta/incarnation"),
            Self::Starts => f.write_str("/meta/starts"),
            Self::Schema => f.write_str("/meta/schema"),
            Self::Timelines => f.write_str("/meta/timelines"),
            Self::Meshes => f.write_str("/meta/meshes"),
            Self::Mesh(name) => write!(f, "/meshes/{name}"),
            Self::Allocations(name) => write!(f, "/allocations/{name}"),
            Self::Node(name) => write!(f, "/nodes/{name}"),
            Self::Consent(name) => write!(f, "/consents/{name}"),
            Self::Token(id) => write!(f, "/tokens/{id}"),
            Self::Identity(name) => write!(f, "/identities/{name}"),
            Self::Removed(name) => write!(f, "/removed/{name}"),
            Self::Operator(name) => write!(f, "/operators/{name}"),
            // In the order of the numbers.
            Self::Audit(number) => write!(f, "{AUDIT}{number:020}"),
        }
    }
}

impl Key {
    /// `None`: a key that only a later release knows.
    fn parse(text: &str) -> Option<Result<Self, String>> {
        fn name<T: std::str::FromStr<Err = crate::proto::model::Invalid>>(text: &str) -> Result<T, String> {
            text.parse().map_err(|invalid: crate::proto::model::Invalid| invalid.problem)
        }
        let (kind, rest) = text.strip_prefix('/')?.split_once('/')?;
        match (kind, rest) {
            ("meta", "store-id") => Some(Ok(Self::StoreId)),
            ("meta", "incarnation") => Some(Ok(Self::Incarnation)),
            ("meta", "starts") => Some(Ok(Self::Starts)),
            ("meta", "schema") => Some(Ok(Self::Schema)),
            ("meta", "timelines") => Some(Ok(Self::Timelines)),
            ("meta", "meshes") => Some(Ok(Self::Meshes)),
            ("meshes", rest) => Some(name(rest).map(Self::Mesh)),
            ("allocations", rest) => Some(name(rest).map(Self::Allocations)),
            ("nodes", rest) => Some(name(rest).map(Self::Node)),
            ("consents", rest) => Some(name(rest).map(Self::Consent)),
            ("tokens", rest) => Some(name(rest).map(Self::Token)),
            ("identities", rest) => Some(name(rest).map(Self::Identity)),
            ("removed", rest) => Some(name(rest).map(Self::Removed)),
            ("operators", rest) => Some(name(rest).map(Self::Operator)),
            ("audit", rest) => Some(rest.parse().map(Self::Audit).map_err(|_| "is no number".to_owned())),
            _ => None,
        }
    }
}

/// What the store holds at one revision.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stored {
    /// Names the store, whatever it holds; empty before its first start.
    pub store_id: String,
    /// Rises when an older state of the store has been restored; from 1.
    pub incarnation: u64,
    /// All that is wanted.
    pub wanted: Wanted,
    /// Who may join and who may steer.
    pub trust: Arc<Trust>,
    /// Where the records of changes end.
    pub audit: Head,
    /// Up to which revision each node's removals have been consented to.
    pub consents: BTreeMap<NodeName, u64>,
    /// The revision.
    pub revision: u64,
    /// By key, values that cannot be read, and why. They are as if they were absent.
    pub faults: BTreeMap<String, String>,
    starts: u64,
    schema: u64,
    /// The latest starts of controllers, the latest last.
    timelines: Vec<Timeline>,
    /// By key, the revision that set it; also where its value cannot be read.
    revisions: BTreeMap<String, u64>,
}

/// A start of a controller, by which it is told what came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Timeline {
    /// Random, so that of two stores that went on from one copy none has the other's.
    name: String,
    /// The revision that it found.
    begun: u64,
}

/// What a change was about.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Touched {
    /// Meshes that were set or deleted, as they were before.
    pub meshes: BTreeMap<MeshName, Option<Mesh>>,
    /// Nodes that had no record before.
    pub joined: BTreeSet<NodeName>,
    /// Nodes whose removals were consented to.
    pub consents: BTreeSet<NodeName>,
    /// Nodes whose identity came, went or was renewed, and whether they had one before.
    pub identities: BTreeMap<NodeName, bool>,
    /// Whether anybody may steer otherwise.
    pub operators: bool,
    /// Whether anything may be wanted otherwise of a node.
    pub wanted: bool,
    /// What was done, in order.
    pub records: Vec<Record>,
}

impl Stored {
    /// What `entries`, all that a store has at `revision`, say.
    pub fn from_entries(entries: impl IntoIterator<Item = Entry>, revision: u64) -> Self {
        let mut stored = Self { revision, ..Self::default() };
        let mut touched = Touched::default();
        for Entry { key, value, revision } in entries {
            stored.set(&key, Some((&value, revision)), &mut touched);
        }
        stored
    }

    /// Takes in a change. One that is not newer says nothing.
    pub fn apply(&mut self, change: &Change) -> Touched {
        let mut touched = Touched::default();
        if change.revision <= self.revision {
            return touched;
        }
        for write in &change.writes {
            match write {
                Write::Put(key, value) => self.set(key, Some((value, change.revision)), &mut touched),
                Write::Delete(key) => self.set(key, None, &mut touched),
            }
        }
        self.revision = change.revision;
        touched
    }

    /// The incarnation and revision of all this.
    pub fn generation(&self) -> Generation {
        Generation { incarnation: self.incarnation, revision: self.revision }
    }

    /// Whether no node removes anything: while it cannot be read what is wanted of nodes, nobody knows what is not wanted any
    /// more.
    pub fn holds_removals(&self) -> bool {
        self.faults.keys().any(|key| self.remedy(key).is_some())
    }

    /// What makes removals possible again that a value holds up which cannot be read; `None`: it holds up none.
    pub fn remedy(&self, fault: &str) -> Option<String> {
        match Key::parse(fault)?.ok()? {
            Key::Mesh(mesh) => {
                Some(format!("mesh {mesh} is applied again, or deleted with --allow-removals"))
            }
            Key::Allocations(mesh) => Some(format!(
                "mesh {mesh} is applied again, which gives its nodes their addresses anew, or deleted with \
                 --allow-removals"
            )),
            Key::Node(node) if self.wanted.has_place(&node) => {
                Some(format!("{node} is heard again, removed, or in no mesh any more"))
            }
            Key::Node(_)
            | Key::StoreId
            | Key::Incarnation
            | Key::Starts
            | Key::Schema
            | Key::Timelines
            | Key::Meshes
            | Key::Consent(_)
            | Key::Token(_)
            | Key::Identity(_)
            | Key::Removed(_)
            | Key::Operator(_)
            | Key::Audit(_) => None,
        }
    }

    /// Whether a mesh, or who has which address in it, cannot be read.
    pub(super) fn is_unread(&self, mesh: &MeshName) -> bool {
        self.faults.contains_key(&Key::Mesh(mesh.clone()).to_string()) || self.has_lost_allocations(mesh)
    }

    /// Whether it cannot be read who has which address in a mesh.
    pub(super) fn has_lost_allocations(&self, mesh: &MeshName) -> bool {
        !self.faults.is_empty() && self.faults.contains_key(&Key::Allocations(mesh.clone()).to_string())
    }

    /// The revision that set a mesh, also one that cannot be read.
    pub fn mesh_revision(&self, mesh: &MeshName) -> Option<u64> {
        self.revisions.get(&Key::Mesh(mesh.clone()).to_string()).copied()
    }

    /// The revision that set a node's record.
    pub fn node_revision(&self, node: &NodeName) -> Option<u64> {
        self.revisions.get(&Key::Node(node.clone()).to_string()).copied()
    }

    /// What a controller writes when it starts, and the number of this start, from 1. The start is called `new_id`,
    /// which must be random, and so is a store without a name.
    ///
    /// # Errors
    /// Where the store is a later release's or damaged, in words.
    pub fn start(&self, new_id: &str) -> Result<(u64, Transaction), String> {
        if self.schema > SCHEMA {
            return Err(format!(
                "the store has schema {}, and this release knows {SCHEMA}: run the release that wrote it",
                self.schema
            ));
        }
        if let Some((key, reason)) = self.faults.iter().find(|(key, _)| key.starts_with("/meta/")) {
            return Err(format!("the store's {key} cannot be read ({reason}): restore a copy of it"));
        }
        let start = self.starts + 1;
        let timeline = Timeline { name: new_id.to_owned(), begun: self.revision };
        let forgotten = (self.timelines.len() + 1).saturating_sub(TIMELINES);
        let timelines: Vec<_> = self.timelines.iter().skip(forgotten).cloned().chain([timeline]).collect();
        let mut writes = vec![text(&Key::Starts, start), json(&Key::Timelines, &timelines)];
        if self.store_id.is_empty() {
            writes.push(text(&Key::StoreId, new_id));
        }
        if self.incarnation == 0 {
            writes.push(text(&Key::Incarnation, 1));
        }
        if self.schema == 0 {
            writes.push(text(&Key::Schema, SCHEMA));
        }
        Ok((start, Transaction { conditions: vec![self.unchanged(&Key::Starts)], writes }))
    }

    /// What the last start is called.
    pub fn timeline(&self) -> &str {
        self.timelines.last().map_or("", |timeline| &timeline.name)
    }

    /// Whether what an agent has was sent by a controller of this store: not of one that it is an older copy of, or that
    /// is one of it.
    pub fn has_sent(&self, have: &Have) -> bool {
        if have.generation > self.generation() {
            return false;
        }
        // An earlier release did not say.
        if have.timeline.is_empty() {
            return true;
        }
        let Some(place) = self.timelines.iter().position(|timeline| timeline.name == have.timeline) else {
            return false;
        };
        // The next start found all that the one before it had stored.
        let next = self.timelines.get(place + 1);
        next.is_none_or(|next| have.generation.revision <= next.begun)
    }

    /// That a mesh, and the addresses of its nodes, are as they are here.
    pub(super) fn unchanged_mesh(&self, mesh: &MeshName) -> [Condition; 2] {
        [self.unchanged(&Key::Mesh(mesh.clone())), self.unchanged(&Key::Allocations(mesh.clone()))]
    }

    /// That no mesh was applied or deleted since: what is a hazard with one may be none without.
    pub(super) fn unchanged_meshes(&self) -> Condition {
        self.unchanged(&Key::Meshes)
    }

    /// That the incarnation is as it is here.
    pub(super) fn unchanged_incarnation(&self) -> Condition {
        self.unchanged(&Key::Incarnation)
    }

    fn unchanged(&self, key: &Key) -> Condition {
        let key = key.to_string();
        let revision = self.revisions.get(&key).copied();
        Condition { key, revision }
    }

    fn set(&mut self, key: &str, value: Option<(&Vec<u8>, u64)>, touched: &mut Touched) {
        self.faults.remove(key);
        match value {
            Some((_, revision)) => self.revisions.insert(key.to_owned(), revision),
            None => self.revisions.remove(key),
        };
        let outcome = match Key::parse(key) {
            None => Ok(()),
            Some(Err(problem)) => value.map_or(Ok(()), |_| Err(format!("its name {problem}"))),
            Some(Ok(key)) => self.set_key(key, value, touched),
        };
        if let Err(reason) = outcome {
            self.faults.insert(key.to_owned(), reason);
        }
    }

    fn set_key(
        &mut self,
        key: Key,
        value: Option<(&Vec<u8>, u64)>,
        touched: &mut Touched,
    ) -> Result<(), String> {
        let content = value.map(|(content, _)| content.as_slice());
        touched.wanted |= !matches!(key, Key::Token(_) | Key::Identity(_) | Key::Operator(_) | Key::Audit(_));
        match key {
            Key::StoreId => self.store_id = content.map(read_text).transpose()?.unwrap_or_default(),
            Key::Incarnation => self.incarnation = content.map_or(Ok(0), read_number)?,
            Key::Starts => self.starts = content.map_or(Ok(0), read_number)?,
            Key::Schema => self.schema = content.map_or(Ok(0), read_number)?,
            Key::Timelines => self.timelines = content.map(read_json).transpose()?.unwrap_or_default(),
            // Its revision says it all.
            Key::Meshes => {}
            Key::Mesh(name) => {
                touched.meshes.insert(name.clone(), self.wanted.meshes.remove(&name));
                if let Some(mesh) = content.map(read_json::<Mesh>).transpose()? {
                    if mesh.name != name {
                        return Err(format!("it is the mesh {}", mesh.name));
                    }
                    self.wanted.meshes.insert(name, mesh);
                }
            }
            Key::Allocations(name) => {
                self.wanted.allocations.remove(&name);
                if let Some(allocations) = content.map(read_json::<Allocations>).transpose()? {
                    self.wanted.allocations.insert(name, allocations);
                }
            }
            Key::Node(name) => {
                let before = self.wanted.nodes.remove(&name);
                let record = content.map(read_json::<NodeRecord>).transpose();
                match record.is_err() {
                    true => self.wanted.unread.insert(name.clone()),
                    false => self.wanted.unread.remove(&name),
                };
                if let Some(record) = record? {
                    if before.is_none() {
                        touched.joined.insert(name.clone());
                    }
                    self.wanted.nodes.insert(name, record);
                }
            }
            Key::Consent(name) => {
                match value {
                    Some((_, revision)) => self.consents.insert(name.clone(), revision),
                    None => self.consents.remove(&name),
                };
                touched.consents.insert(name);
            }
            Key::Token(id) => {
                let token = content.map(read_json::<Token>).transpose();
                put(&mut Arc::make_mut(&mut self.trust).tokens, id, token)?;
            }
            Key::Identity(name) => {
                let had = self.trust.identities.contains_key(&name);
                touched.identities.insert(name.clone(), had);
                let identity = content.map(read_json::<Identity>).transpose();
                let trust = Arc::make_mut(&mut self.trust);
                match identity.is_err() {
                    true => trust.damaged.insert(name.clone()),
                    false => trust.damaged.remove(&name),
                };
                put(&mut trust.identities, name, identity)?;
            }
            Key::Operator(name) => {
                touched.operators = true;
                let operator = content.map(read_json::<Operator>).transpose();
                put(&mut Arc::make_mut(&mut self.trust).operators, name, operator)?;
            }
            // The oldest go, and the last stays.
            Key::Audit(number) => {
                if let Some(record) = content.map(read_json::<Record>).transpose()?
                    && number > self.audit.number
                {
                    self.audit = Head { number, chain: record.chain.clone() };
                    touched.records.push(record);
                }
            }
            Key::Removed(name) => {
                for removed in [&mut Arc::make_mut(&mut self.trust).removed, &mut self.wanted.removed] {
                    match content {
                        Some(_) => removed.insert(name.clone()),
                        None => removed.remove(&name),
                    };
                }
            }
        }
        Ok(())
    }

    /// Has deeds recorded by the transaction that does them.
    pub fn record(&self, deeds: &[Deed], wall: Duration, transaction: &mut Transaction) {
        for (number, record) in self.audit.append(deeds, self.revision, wall) {
            let key = Key::Audit(number);
            // Of two that would have one number one is done.
            transaction.conditions.push(self.unchanged(&key));
            transaction.writes.push(json(&key, &record));
            if let Some(oldest) = number.checked_sub(KEPT).filter(|oldest| *oldest > 0) {
                transaction.writes.push(Write::Delete(Key::Audit(oldest).to_string()));
            }
        }
    }

    /// What makes a draft real; `None`: all of it is stored, and nothing is told.
    pub fn transaction_of(&self, draft: &Draft, wall: Duration) -> Option<Transaction> {
        if draft.touched.is_empty() && draft.deeds.is_empty() {
            return None;
        }
        let trust = &draft.trust;
        let write = |item: &Item| {
            let key = Key::from(item);
            let put = match item {
                Item::Token(id) => trust.tokens.get(id).map(|token| json(&key, token)),
                Item::Identity(node) => trust.identities.get(node).map(|identity| json(&key, identity)),
                Item::Operator(name) => trust.operators.get(name).map(|operator| json(&key, operator)),
                Item::Removed(node) => {
                    trust.removed.get(node).map(|_| Write::Put(key.to_string(), Vec::new()))
                }
            };
            put.unwrap_or_else(|| Write::Delete(key.to_string()))
        };
        // A node that was removed says nothing of itself any more.
        let silenced = draft.touched.iter().filter_map(|item| match item {
            // Also where what it said is still on its way here.
            Item::Removed(node) if trust.removed.contains(node) => {
                Some(Write::Delete(Key::Node(node.clone()).to_string()))
            }
            Item::Removed(_) | Item::Token(_) | Item::Identity(_) | Item::Operator(_) => None,
        });
        let mut transaction = Transaction {
            conditions: draft.touched.iter().map(|item| self.unchanged(&Key::from(item))).collect(),
            writes: draft
                .touched
                .iter()
                .map(write)
                .chain(silenced)
                .chain(draft.consents.iter().map(put_consent))
                .collect(),
        };
        self.record(&draft.deeds, wall, &mut transaction);
        Some(transaction)
    }
}

/// Sets or removes what a key has; what cannot be read is as if it were absent.
fn put<K: Ord, V>(map: &mut BTreeMap<K, V>, key: K, value: Result<Option<V>, String>) -> Result<(), String> {
    map.remove(&key);
    if let Some(value) = value? {
        map.insert(key, value);
    }
    Ok(())
}

/// Sets a mesh.
pub(super) fn put_mesh(mesh: &Mesh) -> Write {
    json(&Key::Mesh(mesh.name.clone()), mesh)
}

/// Says that a mesh was applied or deleted.
pub(super) fn touch_meshes() -> Write {
    Write::Put(Key::Meshes.to_string(), Vec::new())
}

/// Deletes a mesh with all addresses of its nodes.
pub(super) fn delete_mesh(mesh: &MeshName) -> [Write; 2] {
    [Key::Mesh(mesh.clone()), Key::Allocations(mesh.clone())].map(|key| Write::Delete(key.to_string()))
}

/// Sets the addresses of a mesh's nodes.
pub(super) fn put_allocations(mesh: &MeshName, allocations: &Allocations) -> Write {
    json(&Key::Allocations(mesh.clone()), allocations)
}

/// Sets what a node said of itself.
pub(super) fn put_node(node: &NodeName, record: &NodeRecord) -> Write {
    json(&Key::Node(node.clone()), record)
}

/// Consents to a node's removals up to the revision of the transaction.
pub(super) fn put_consent(node: &NodeName) -> Write {
    Write::Put(Key::Consent(node.clone()).to_string(), Vec::new())
}

/// Says nothing new, to see whether the store can be written.
pub(super) fn probe() -> Write {
    text(&Key::Schema, SCHEMA)
}

/// Sets the incarnation.
pub(super) fn put_incarnation(incarnation: u64) -> Write {
    text(&Key::Incarnation, incarnation)
}

fn text(key: &Key, value: impl fmt::Display) -> Write {
    Write::Put(key.to_string(), value.to_string().into_bytes())
}

fn json(key: &Key, value: &impl Serialize) -> Write {
    // These types have names for keys and no values of their own making: they always have a JSON form.
    Write::Put(key.to_string(), serde_json::to_vec(value).unwrap_or_default())
}

fn read_text(content: &[u8]) -> Result<String, String> {
    str::from_utf8(content).map(str::to_owned).map_err(|error| error.to_string())
}

fn read_number(content: &[u8]) -> Result<u64, String> {
    read_text(content)?.parse().map_err(|error: std::num::ParseIntError| error.to_string())
}

fn read_json<T: DeserializeOwned>(content: &[u8]) -> Result<T, String> {
    serde_json::from_slice(content).map_err(|error| error.to_string())
}
