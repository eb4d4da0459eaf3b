//! Meshes on their way from unencrypted to encrypted: which nodes have agreed on keys with all others.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::ControllerState;
use crate::controller::alloc::{Allocation, Allocations, FromPlain};
use crate::controller::mesh::Mesh;
use crate::controller::plan::{Wanted, tunnel_name};
use crate::proto::model::{MeshName, NodeName, TunnelName};
use crate::proto::session::ItemId;

/// How often is looked.
const LOOK: Duration = Duration::from_millis(250);
/// How many tunnels are looked at in one go: a mesh may have millions.
const TUNNELS: usize = 20_000;

/// What is known of such meshes.
#[derive(Debug, Default)]
pub(super) struct Leaving {
    /// When to look again; absent: there is no such mesh.
    pub(super) due: Option<Instant>,
    /// The node that was looked at last; absent: the next is the first.
    last: Option<(MeshName, NodeName)>,
    /// Nodes that have agreed on keys with all others, which is not stored yet.
    keyed: BTreeMap<MeshName, BTreeSet<NodeName>>,
    /// Nodes that have not, each with one that it has not agreed on keys with.
    missing: BTreeMap<(MeshName, NodeName), NodeName>,
}

impl ControllerState {
    /// Begins to look, or ends it, as what is stored now wants it.
    pub(super) fn watch_leaving(&mut self, now: Instant) {
        let wanted = &self.stored.wanted;
        if wanted.leaving_plain().next().is_none() {
            return self.forget_leaving();
        }
        self.leaving.due.get_or_insert(now + LOOK);
        // What is stored now is no news.
        for (mesh, keyed) in &mut self.leaving.keyed {
            let given = wanted.allocations.get(mesh);
            keyed.retain(|node| {
                let how_far =
                    given.and_then(|given| given.nodes.get(node)).and_then(|given| given.from_plain);
                how_far.is_some_and(FromPlain::is_under_way)
            });
        }
        self.leaving.keyed.retain(|_, keyed| !keyed.is_empty());
    }

    /// What was found may be of another time in which a mesh left plain text.
    pub(super) fn forget_leaving(&mut self) {
        self.leaving = Leaving::default();
    }

    /// Looks which nodes have agreed on keys with all others.
    pub(super) fn look_at_leaving(&mut self, now: Instant) {
        self.leaving.due = Some(now + LOOK);
        let begins_after = self.leaving.last.take();
        if begins_after.is_none() {
            self.leaving.missing.clear();
        }
        let mut left = TUNNELS;
        let mut found = Vec::new();
        for (mesh, nodes) in self.stored.wanted.leaving_plain() {
            let others = self.others(mesh);
            for node in nodes.into_iter().filter(|node| others.get(*node).is_some_and(|other| other.is_there))
            {
                let place = (mesh.clone(), node.clone());
                if left == 0 {
                    break;
                }
                if begins_after.as_ref().is_none_or(|last| place > *last) {
                    left = left.saturating_sub(others.len());
                    found.push((place, self.first_without_keys(node, &others).cloned()));
                }
            }
        }
        if left == 0 {
            self.leaving.last = found.last().map(|(place, _)| place.clone());
        }
        for ((mesh, node), missing) in found {
            match missing {
                Some(missing) => _ = self.leaving.missing.insert((mesh, node), missing),
                None => _ = self.leaving.keyed.entry(mesh).or_default().insert(node),
            }
        }
        // Each change of what is stored has all views worked out anew: one is enough for all that were looked at.
        self.records.allocations_due |= self.leaving.last.is_none() && !self.leaving.keyed.is_empty();
    }

    /// Notes in what the nodes of a mesh are given how far they are on the way from unencrypted tunnels.
    pub(super) fn advance_leaving(&self, wanted: &Wanted, mesh: &MeshName, allocations: &mut Allocations) {
        let has_key =
            |node: &NodeName| wanted.nodes.get(node).is_some_and(|record| record.keys.contains_key(mesh));
        let keyed = self.leaving.keyed.get(mesh);
        allocations.advance(has_key, |node| keyed.is_some_and(|keyed| keyed.contains(node)));
    }

    /// One of the others of a mesh with which a node has not agreed on keys, as far as it has been looked for.
    pub(super) fn without_keys_with(&self, mesh: &MeshName, node: &NodeName) -> Option<&NodeName> {
        self.leaving.missing.get(&(mesh.clone(), node.clone()))
    }

    /// The nodes that had unencrypted tunnels and have either a session now, or agreed on keys with all who had one then: with
    /// all of these a node has to have agreed on keys. Those that are missing will look for themselves.
    fn others<'a>(&'a self, mesh: &MeshName) -> BTreeMap<&'a NodeName, Other> {
        let wanted = &self.stored.wanted;
        let known = wanted.meshes.get(mesh).zip(wanted.allocations.get(mesh));
        let nodes =
            known.into_iter().flat_map(|(mesh, all)| all.nodes.iter().map(move |given| (mesh, given)));
        let keyed = self.leaving.keyed.get(mesh);
        let other = |(known, (node, given)): (&Mesh, (&'a NodeName, &'a Allocation))| {
            let how_far = given.from_plain?;
            let has_session = self.registry.node(node).is_some_and(|known| known.session.is_some());
            let is_there = has_session && how_far > FromPlain::Keyless;
            let is_keyed = how_far == FromPlain::Keyed || keyed.is_some_and(|keyed| keyed.contains(node));
            let tunnel = tunnel_name(known, node)?;
            (is_there || is_keyed).then_some((node, Other { tunnel, is_there }))
        };
        nodes.filter_map(other).collect()
    }

    /// The first of the others with which a node has not agreed on keys, by what both say.
    fn first_without_keys<'a>(
        &self,
        node: &NodeName,
        others: &BTreeMap<&'a NodeName, Other>,
    ) -> Option<&'a NodeName> {
        let own = &others.get(node)?.tunnel;
        let is_keyed = |of: &NodeName, to: &TunnelName| {
            let tunnel = self.registry.node(of).and_then(|known| known.tunnels.get(to));
            tunnel.is_some_and(|(report, _)| report.keyed)
        };
        let mut others = others.iter().filter(|(other, _)| **other != node);
        let first = others.find(|(other, Other { tunnel, .. })| {
            // Two that cannot reach each other have no tunnel.
            let has_tunnel = self.view(node).items.has(&ItemId::Tunnel(tunnel.clone()));
            has_tunnel && !(is_keyed(node, tunnel) && is_keyed(other, own))
        });
        first.map(|(other, _)| *other)
    }
}

/// A node that another has to have agreed on keys with.
struct Other {
    /// The tunnel that others have to it.
    tunnel: TunnelName,
    /// Whether it has a session, and has made its key.
    is_there: bool,
}
