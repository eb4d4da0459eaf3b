//! What is stored changes: keep up with it, and with what every node is to have.

use std::collections::BTreeSet;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use super::{Basis, COLLECT, ControllerState, EventKind, View};
use crate::controller::audit::Record;
use crate::controller::mesh::Mesh;
use crate::controller::plan;
use crate::controller::store::transaction::Change;
use crate::controller::stored::Stored;
use crate::proto::model::MeshName;
use crate::proto::session::Items;

/// How many earlier versions of a mesh are kept, to tell what has changed since a plan was made.
const VERSIONS: usize = 8;

impl ControllerState {
    /// Takes in a change of what is stored, in order.
    pub fn handle_change(&mut self, change: &Change, now: Instant, wall: Duration) {
        let touched = Arc::make_mut(&mut self.stored).apply(change);
        if !touched.meshes.is_empty() {
            self.forget_leaving();
        }
        for (mesh, before) in touched.meshes {
            let kind = match self.stored.wanted.meshes.contains_key(&mesh) {
                true => EventKind::MeshApplied,
                false => EventKind::MeshDeleted,
            };
            self.events.mesh(wall, kind, &mesh);
            if kind == EventKind::MeshApplied {
                self.log_weakened(&mesh);
            }
            let versions = Arc::make_mut(&mut self.history).entry(mesh).or_default();
            versions.push_back((change.revision, before.map(Arc::new)));
            if versions.len() > VERSIONS {
                versions.pop_front();
            }
        }
        for node in &touched.joined {
            self.events.node(wall, EventKind::NodeJoined, node, "");
        }
        for (node, had) in &touched.identities {
            match (had, self.stored.trust.identities.get(node)) {
                (false, Some(identity)) => {
                    let message = identity.via.to_string();
                    self.petitions.end(&identity.key);
                    self.events.node(wall, EventKind::NodeEnrolled, node, message);
                }
                (true, None) => {
                    self.forget_record(node);
                    self.events.node(wall, EventKind::NodeRemoved, node, "");
                }
                (true, Some(_)) | (false, None) => {}
            }
        }
        for record in &touched.records {
            let Record { who, method, what, request, before, .. } = record;
            tracing::info!(who, method, what, request, before, after = change.revision, "change");
        }
        let nodes = touched.identities.into_keys().collect();
        self.end_unproven(&nodes, now, wall);
        if touched.operators {
            self.tell_operators();
        }
        self.pending.consents.extend(touched.consents);
        if touched.wanted {
            self.collect(now);
        }
        self.pump_records(now, wall);
    }

    /// Takes in all that is stored, where changes have been missed.
    pub fn handle_reload(&mut self, stored: Stored, now: Instant, wall: Duration) {
        self.stored = Arc::new(stored);
        self.forget_leaving();
        self.history = Arc::default();
        self.pending.consents.extend(self.stored.consents.keys().cloned());
        let nodes = self.registry.live_sessions().into_iter().collect();
        self.end_unproven(&nodes, now, wall);
        self.tell_operators();
        self.collect(now);
        self.pump_records(now, wall);
    }

    /// Logs what is weaker than the defaults in a mesh.
    pub(super) fn log_weakened(&self, mesh: &MeshName) {
        for words in self.stored.wanted.weakened_of(mesh) {
            tracing::warn!(%mesh, "{words}");
        }
    }

    fn collect(&mut self, now: Instant) {
        self.pending.due.get_or_insert(now + COLLECT);
        self.watch_leaving(now);
    }

    /// Works out what every node is to have, and sends what differs. Pushes are of this generation until the next
    /// time: two that differ never have the same.
    pub(super) fn work_out_views(&mut self, now: Instant, wall: Duration) {
        self.pending.due = None;
        self.allocated_at = now;
        self.generation = self.stored.generation();
        self.removals_held = self.stored.holds_removals();
        let mut changed = std::mem::take(&mut self.pending.consents);
        let mut fresh = self.stored.wanted.views();
        for node in self.views.keys() {
            fresh.entry(node.clone()).or_default();
        }
        for (node, items) in fresh {
            if self.views.get(&node).is_none_or(|view| !is_same(&view.items, &items)) {
                changed.insert(node.clone());
                self.views.insert(node, View { items, digest: OnceLock::new(), since: self.generation });
            }
        }
        for node in &changed {
            let session = self.registry.node_mut(node).and_then(|node| node.session.as_mut());
            session.into_iter().for_each(|session| session.is_dirty = true);
        }
        for node in self.registry.live_sessions() {
            self.push(&node, now);
        }
        self.progress += 1;
        self.records.allocations_due = !self.due_allocations(&self.stored.wanted, wall).is_empty();
        self.pump_records(now, wall);
    }
}

impl Basis {
    /// What is different about a mesh, and what it rests on, since `revision`, in words.
    pub fn changed_since(&self, mesh: &MeshName, revision: u64) -> Vec<String> {
        let now = self.stored.wanted.meshes.get(mesh);
        let versions = self.history.get(mesh).into_iter().flatten();
        let then: Option<&Option<Arc<Mesh>>> =
            versions.clone().find(|(ended, _)| *ended > revision).map(|(_, version)| version);
        let mut changes = match (then.map(Option::as_deref), now) {
            (Some(Some(then)), Some(now)) => plan::differences(then, now),
            (Some(Some(_)), None) => vec![format!("mesh {mesh} was deleted")],
            (Some(None), Some(_)) => vec![format!("mesh {mesh} was made")],
            (Some(None) | None, None) | (None, Some(_)) => Vec::new(),
        };
        let is_newer = |set: Option<u64>| set.is_some_and(|set| set > revision);
        let meshes: BTreeSet<&MeshName> = self
            .stored
            .wanted
            .meshes
            .keys()
            .filter(|name| is_newer(self.stored.mesh_revision(name)))
            .collect();
        if changes.is_empty() && meshes.contains(mesh) {
            changes.push(format!("mesh {mesh} was applied"));
        }
        changes.extend(
            meshes.iter().filter(|name| **name != mesh).map(|name| format!("mesh {name} was applied")),
        );
        let nodes = self.stored.wanted.nodes.keys();
        let nodes = nodes.filter(|name| is_newer(self.stored.node_revision(name)));
        changes.extend(nodes.map(|name| format!("node {name} has new labels or is reached elsewhere")));
        changes
    }
}

/// Whether two nodes' items are the same; the tags say it.
fn is_same(one: &Items, other: &Items) -> bool {
    one.len() == other.len()
        && one.iter().zip(other.iter()).all(|(one, other)| one.tag == other.tag && one.id == other.id)
}
