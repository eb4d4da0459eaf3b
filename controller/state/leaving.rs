//! Meshes on their way from unencrypted to encrypted: which nodes have agreed on keys with all others.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::ControllerState;
use crate::controller::alloc::Allocations;
use crate::controller::plan::tunnel_name;
use crate::proto::model::{MeshName, NodeName, TunnelName};
use crate::proto::session::ItemId;

/// How often is looked.
const LOOK: Duration = Duration::from_millis(250);
/// How many tunnels are looked at in one go: a mesh may have millions.
const TUNNELS: usize = 50_000;

/// What is known of such meshes.
#[derive(Debug, Default)]
pub(super) struct Leaving {
    /// When to look again; absent: there is no such mesh.
    pub(super) due: Option<Instant>,
    /// The node that was looked at last.
    last: Option<(MeshName, NodeName)>,
    /// Nodes that have agreed on keys with all others, which is not stored yet.
    keyed: BTreeMap<MeshName, BTreeSet<NodeName>>,
}

impl ControllerState {
    /// Begins anew with what is stored now.
    pub(super) fn watch_leaving(&mut self, now: Instant) {
        let is_wanted = self.stored.wanted.leaving_plain().next().is_some();
        let due = is_wanted.then(|| self.leaving.due.unwrap_or(now + LOOK));
        self.leaving = Leaving { due, ..Leaving::default() };
    }

    /// Looks which nodes have agreed on keys with all others that are there.
    pub(super) fn look_at_leaving(&mut self, now: Instant) {
        self.leaving.due = Some(now + LOOK);
        let mut left = TUNNELS;
        let mut keyed: BTreeMap<MeshName, BTreeSet<NodeName>> = BTreeMap::new();
        let mut last = None;
        for (mesh, nodes) in self.stored.wanted.leaving_plain() {
            let Some(others) = self.there(mesh) else { continue };
            for node in nodes.into_iter().filter(|node| others.contains_key(*node)) {
                let place = (mesh.clone(), node.clone());
                if self.leaving.last.as_ref().is_some_and(|last| place <= *last) {
                    continue;
                }
                if left == 0 {
                    break;
                }
                left = left.saturating_sub(others.len());
                if self.has_keys_with_all(node, &others) {
                    keyed.entry(mesh.clone()).or_default().insert(node.clone());
                }
                last = Some(place);
            }
        }
        // Having come to the end, the next look begins with the first.
        self.leaving.last = last.filter(|_| left == 0);
        if !keyed.is_empty() {
            for (mesh, nodes) in keyed {
                self.leaving.keyed.entry(mesh).or_default().extend(nodes);
            }
            self.records.allocations_due = true;
        }
    }

    /// Notes in the addresses of a mesh's nodes who has agreed on keys.
    pub(super) fn note_keyed(&self, mesh: &MeshName, allocations: &mut Allocations) {
        if let Some(keyed) = self.leaving.keyed.get(mesh) {
            allocations.note_keyed(keyed);
        }
    }

    /// The nodes that had unencrypted tunnels, have a session now, and have made their key, with the tunnel that others have to
    /// each. The rest comes later, and is waited for by itself.
    fn there(&self, mesh: &MeshName) -> Option<BTreeMap<&NodeName, TunnelName>> {
        let wanted = &self.stored.wanted;
        let known = wanted.meshes.get(mesh)?;
        let nodes = wanted.allocations.get(mesh)?.nodes.iter();
        let is_there = |node: &NodeName| {
            let has_session = self.registry.node(node).is_some_and(|known| known.session.is_some());
            has_session && wanted.nodes.get(node).is_some_and(|record| record.keys.contains_key(mesh))
        };
        let nodes = nodes.filter(|(node, allocation)| allocation.from_plain.is_some() && is_there(node));
        Some(nodes.filter_map(|(node, _)| Some((node, tunnel_name(known, node)?))).collect())
    }

    /// Whether a node and each other one have agreed on keys, by what both say.
    fn has_keys_with_all(&self, node: &NodeName, others: &BTreeMap<&NodeName, TunnelName>) -> bool {
        let Some(own) = others.get(node) else { return false };
        let is_keyed = |of: &NodeName, to: &TunnelName| {
            let tunnel = self.registry.node(of).and_then(|known| known.tunnels.get(to));
            tunnel.is_some_and(|(report, _)| report.keyed)
        };
        let mut others = others.iter().filter(|(other, _)| **other != node);
        others.all(|(other, to)| {
            // Two that cannot reach each other have no tunnel.
            !self.view(node).items.has(&ItemId::Tunnel(to.clone()))
                || (is_keyed(node, to) && is_keyed(other, own))
        })
    }
}
