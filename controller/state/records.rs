//! What the controller itself has stored: what nodes say of themselves, the addresses of those that come and go by
//! their labels, and the incarnation. One transaction is under way; all that comes meanwhile goes into the next.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::{ControllerState, Effect, EventKind};
use crate::controller::alloc::{self, Allocations};
use crate::controller::plan::{NodeRecord, Wanted};
use crate::controller::store::transaction::{StoreError, Transaction};
use crate::controller::stored;
use crate::proto::model::{MeshName, NodeName, PublicKey};
use crate::proto::rate::Rate;

/// How soon a transaction is tried again that lost against another, unless the other's change comes in before.
const CONFLICT: Duration = Duration::from_millis(100);
/// How soon a transaction is tried again after the store refused.
const UNAVAILABLE: Duration = Duration::from_secs(1);
/// How often what a node says of itself is stored: each time all nodes of its meshes are brought to it.
const CHANGES: Rate = Rate { burst: 5, every: Duration::from_secs(10) };

/// What is to be stored.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Batch {
    nodes: BTreeMap<NodeName, NodeRecord>,
    incarnation: Option<u64>,
}

/// How far the store is with it.
#[derive(Debug, Default)]
enum Progress {
    #[default]
    Idle,
    /// The transaction with this is under way.
    UnderWay(Batch),
    /// It is done, and this revision, which has this, has not come in yet.
    Done(u64, Batch),
    /// It failed: again at this time, or after a revision above this one.
    Failed(Instant, u64),
}

impl Progress {
    /// What is stored, or may come to be, and has not come in yet.
    fn coming(&self) -> Option<&Batch> {
        match self {
            Self::UnderWay(batch) | Self::Done(_, batch) => Some(batch),
            Self::Idle | Self::Failed(..) => None,
        }
    }
}

/// What is to be stored and how far it is.
#[derive(Debug, Default)]
pub(super) struct Records {
    waiting: Batch,
    /// What nodes say that have changed too often of late, and when it is stored.
    held: BTreeMap<NodeName, (Instant, NodeRecord)>,
    progress: Progress,
    /// Whether members of a mesh wait for an address, or have one and have left.
    pub(super) allocations_due: bool,
    /// Why the store cannot be written, and since when.
    pub(super) refusal: Option<(String, Instant)>,
}

impl Records {
    /// When to try again.
    pub(super) fn retry_at(&self) -> Option<Instant> {
        let failed = match self.progress {
            Progress::Failed(at, _) => Some(at),
            Progress::Idle | Progress::UnderWay(_) | Progress::Done(..) => None,
        };
        self.held.values().map(|(at, _)| *at).chain(failed).min()
    }

    fn latest(&self, node: &NodeName) -> Option<&NodeRecord> {
        self.waiting.nodes.get(node).or_else(|| self.progress.coming()?.nodes.get(node))
    }

    fn is_ready(&mut self, revision: u64, now: Instant) -> bool {
        let is_ready = match self.progress {
            Progress::Idle => true,
            Progress::UnderWay(_) => false,
            Progress::Done(done, _) => revision >= done,
            Progress::Failed(at, judged) => now >= at || (revision > judged && self.refusal.is_none()),
        };
        if is_ready {
            self.progress = Progress::Idle;
        }
        is_ready
    }
}

impl ControllerState {
    /// What a node said of itself, stored or about to be.
    pub(super) fn recorded(&self, node: &NodeName) -> Option<&NodeRecord> {
        self.records.latest(node).or_else(|| self.stored.wanted.nodes.get(node))
    }

    /// What a node said of itself last, also where it is not about to be stored yet.
    pub(super) fn said(&self, node: &NodeName) -> Option<&NodeRecord> {
        self.records.held.get(node).map(|(_, record)| record).or_else(|| self.recorded(node))
    }

    /// The node that has told this key of a mesh before; `None`: it is news.
    fn owner_of_key(&self, mesh: &MeshName, key: PublicKey) -> Option<&NodeName> {
        let coming = self.records.progress.coming();
        let records = [Some(&self.records.waiting), coming].into_iter().flatten().map(|batch| &batch.nodes);
        let mut known = records.chain([&self.stored.wanted.nodes]).flatten();
        let owner = known.find(|(_, record)| record.keys.get(mesh) == Some(&key)).map(|(node, _)| node);
        owner.or_else(|| self.stored.wanted.wireguard_with_key(mesh, key))
    }

    /// What a node says of itself without keys that are another's: whoever sees a key can say that it is its own, and so
    /// does a copy of a host.
    fn with_own_keys(&mut self, node: &NodeName, mut said: NodeRecord) -> NodeRecord {
        let known = self.recorded(node).map(|known| known.keys.clone()).unwrap_or_default();
        let mut rival = None;
        said.keys.retain(|mesh, key| {
            let owner = match known.get(mesh) == Some(key) {
                true => None,
                false => self.owner_of_key(mesh, *key).filter(|owner| *owner != node),
            };
            if let Some(owner) = owner {
                rival = Some(format!(
                    "its key for mesh {mesh} is that of {owner}: remove that node if it is the same host, or remove \
                     wireguard/{mesh}.key from its agent's state directory and start that anew"
                ));
            }
            owner.is_none()
        });
        self.registry.node_or_new(node).rival = rival;
        said
    }

    /// Has what a node says of itself stored, where it is not; since when it says so is found out here.
    pub(super) fn record(&mut self, node: &NodeName, said: NodeRecord, now: Instant) {
        let said = self.with_own_keys(node, said);
        let known = self.recorded(node);
        let same =
            |known: &&NodeRecord| (&known.endpoint, known.data_port) == (&said.endpoint, said.data_port);
        let since = known.filter(same).map_or(self.stored.revision, |known| known.since);
        let record = NodeRecord { since, ..said };
        let is_news = known != Some(&record);
        self.records.held.remove(node);
        if is_news {
            match self.registry.node_or_new(node).records.take(CHANGES, now) {
                Ok(()) => _ = self.records.waiting.nodes.insert(node.clone(), record),
                Err(again) => _ = self.records.held.insert(node.clone(), (again, record)),
            }
        }
    }

    /// What a node that was removed said last is not stored any more.
    pub(super) fn forget_record(&mut self, node: &NodeName) {
        self.records.waiting.nodes.remove(node);
        self.records.held.remove(node);
    }

    /// Has stored what was held until now.
    fn release_held(&mut self, now: Instant) {
        for (node, (_, record)) in self.records.held.extract_if(.., |_, (at, _)| *at <= now) {
            // What it says meanwhile waits for the next.
            let _ = self.registry.node_or_new(&node).records.take(CHANGES, now);
            self.records.waiting.nodes.insert(node, record);
        }
    }

    /// The store could not be written, for an order or for the state's own sake. It is tried until it can.
    pub fn handle_store_failure(&mut self, reason: String, now: Instant, wall: Duration) {
        self.set_refusal(Some(reason), now, wall);
        self.pump_records(now, wall);
    }

    fn set_refusal(&mut self, reason: Option<String>, now: Instant, wall: Duration) {
        let before = self.records.refusal.take();
        match (&before, &reason) {
            (None, Some(reason)) => {
                self.events.controller(
                    wall,
                    EventKind::StoreFailed,
                    format!("it cannot be written: {reason}"),
                );
            }
            (Some(_), None) => {
                self.events.controller(wall, EventKind::StoreWritten, "it can be written again")
            }
            (None, None) | (Some(_), Some(_)) => {}
        }
        let since = before.map_or(now, |(_, since)| since);
        self.records.refusal = reason.map(|reason| (reason, since));
    }

    /// How many nodes have a record, or will.
    pub(super) fn recorded_nodes(&self) -> usize {
        self.stored.wanted.nodes.len() + self.records.waiting.nodes.len()
    }

    /// Has the incarnation raised to `incarnation`. Returns whether that is news.
    pub(super) fn raise_incarnation(&mut self, incarnation: u64) -> bool {
        let before = self.records.progress.coming().and_then(|batch| batch.incarnation);
        let coming = self.records.waiting.incarnation.max(before);
        let is_news = coming.is_none_or(|coming| coming < incarnation);
        if is_news {
            self.records.waiting.incarnation = Some(incarnation);
        }
        is_news
    }

    /// Takes in what came of [`Effect::Commit`].
    pub fn handle_commit_result(&mut self, result: Result<u64, StoreError>, now: Instant, wall: Duration) {
        let Progress::UnderWay(batch) = std::mem::take(&mut self.records.progress) else { return };
        match result {
            Ok(revision) => {
                self.set_refusal(None, now, wall);
                self.records.progress = Progress::Done(revision, batch);
            }
            Err(error) => {
                let wait = match &error {
                    StoreError::Conflict(_) => CONFLICT,
                    StoreError::Unavailable(_) => UNAVAILABLE,
                };
                let reason = match error {
                    StoreError::Conflict(_) => None,
                    StoreError::Unavailable(reason) => Some(reason),
                };
                self.set_refusal(reason, now, wall);
                for (node, record) in batch.nodes {
                    self.records.waiting.nodes.entry(node).or_insert(record);
                }
                self.records.waiting.incarnation = self.records.waiting.incarnation.max(batch.incarnation);
                // Its addresses may be all that it was about.
                self.records.allocations_due = true;
                self.records.progress = Progress::Failed(now + wait, self.stored.revision);
            }
        }
        self.pump_records(now, wall);
    }

    /// Starts the next transaction, unless one is under way.
    pub(super) fn pump_records(&mut self, now: Instant, wall: Duration) {
        self.release_held(now);
        let is_wanted = self.records.allocations_due
            || self.records.waiting != Batch::default()
            || self.records.refusal.is_some();
        // First of all, what is past must not be waited for any more.
        if !self.records.is_ready(self.stored.revision, now) || !is_wanted {
            return;
        }
        self.records.allocations_due = false;
        let mut batch = std::mem::take(&mut self.records.waiting);
        batch.nodes.retain(|node, record| self.stored.wanted.nodes.get(node) != Some(record));
        batch.incarnation = batch.incarnation.filter(|raised| *raised > self.stored.incarnation);
        let mut transaction = self.transaction(&batch, wall);
        if transaction.writes.is_empty() && self.records.refusal.is_some() {
            transaction.writes.push(stored::probe());
        }
        if !transaction.writes.is_empty() {
            self.records.progress = Progress::UnderWay(batch);
            self.effects.push_back(Effect::Commit(transaction));
        }
    }

    fn transaction(&self, batch: &Batch, wall: Duration) -> Transaction {
        let mut transaction = Transaction::default();
        if let Some(incarnation) = batch.incarnation {
            transaction.conditions.push(self.stored.unchanged_incarnation());
            transaction.writes.push(stored::put_incarnation(incarnation));
        }
        let allocations = if batch.nodes.is_empty() {
            self.due_allocations(&self.stored.wanted, wall)
        } else {
            let mut wanted = self.stored.wanted.clone();
            wanted.nodes.extend(batch.nodes.clone());
            self.due_allocations(&wanted, wall)
        };
        for (mesh, allocations) in &allocations {
            transaction.conditions.extend(self.stored.unchanged_mesh(mesh));
            transaction.writes.push(stored::put_allocations(mesh, allocations));
        }
        transaction.writes.extend(batch.nodes.iter().map(|(node, record)| stored::put_node(node, record)));
        transaction
    }

    /// By mesh, the addresses of its nodes where they are to be others than they are.
    pub(super) fn due_allocations(&self, wanted: &Wanted, wall: Duration) -> Vec<(MeshName, Allocations)> {
        let nothing = Allocations::default();
        // Nobody gets another address because it cannot be read which one it has.
        let readable = wanted.meshes.iter().filter(|(name, _)| !self.stored.has_lost_allocations(name));
        let due = readable.filter_map(|(name, mesh)| {
            let before = wanted.allocations.get(name).unwrap_or(&nothing);
            let (mut after, _) = alloc::allocate(mesh, &wanted.members(mesh), before, wall);
            self.advance_leaving(wanted, name, &mut after);
            (after != *before).then(|| (name.clone(), after))
        });
        due.collect()
    }
}
