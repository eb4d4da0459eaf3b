//! What operators ask: who is there, what is wrong, and how far the nodes are.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::ControllerState;
use crate::controller::plan::Hazard;
use crate::controller::registry::{Health, Node};
use crate::proto::model::{LinkState, MeshName, NodeName, Remotes, TunnelName, TunnelState};
use crate::proto::session::{Forwarding, Generation, ItemId, Items, TunnelReport};
use crate::proto::words::span;

/// How many problems are told at most.
const PROBLEMS: usize = 1_000;
/// Of how many lagging nodes it is told what it is that they lack: all that each is to have is compared for it.
const EXPLAINED: usize = 20;

/// Something that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// The node that it is about; absent: the controller.
    pub node: Option<NodeName>,
    /// The node's item that it is about; absent: the node.
    pub item: Option<ItemId>,
    /// What is wrong, in words.
    pub message: String,
}

/// The controller as a whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControllerStatus {
    /// The store's name.
    pub store_id: String,
    /// What agents are brought to.
    pub generation: Generation,
    /// How many meshes there are.
    pub meshes: usize,
    /// Nodes that are live.
    pub live: usize,
    /// Nodes that are stale.
    pub stale: usize,
    /// Nodes that are offline.
    pub offline: usize,
    /// Nodes of a mesh that have an agent.
    pub members: usize,
    /// Those of them that have acknowledged all that is wanted of them.
    pub converged: usize,
    /// Ends of links that agents have told of.
    pub link_ends: usize,
    /// Those of them that hear the other end and are heard.
    pub link_ends_up: usize,
    /// What is wrong, at most 1,000.
    pub problems: Vec<Problem>,
}

/// A node as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeStatus {
    /// Its name.
    pub name: NodeName,
    /// Whether it is there; absent: it has no agent, and its peers' tunnels say so.
    pub health: Option<Health>,
    /// How long ago it was heard; absent: never since the controller's start.
    pub last_heard: Option<Duration>,
    /// The meshes that it is of.
    pub meshes: BTreeSet<MeshName>,
    /// The labels that its agent has.
    pub labels: BTreeMap<String, String>,
    /// Where others reach it, where no mesh says otherwise.
    pub endpoint: Option<Remotes>,
    /// Its agent's release; empty: never heard of since the controller's start.
    pub version: String,
    /// The generation that last changed what it is to have; absent: nothing is wanted of it.
    pub wanted: Option<Generation>,
    /// What it has acknowledged since it last connected.
    pub observed: Option<Generation>,
    /// Whether that is all that is wanted of it.
    pub converged: bool,
    /// How many tunnels it has, of both owners.
    pub tunnels: usize,
    /// Those of them that carry packets.
    pub passing: usize,
    /// Those of them that have failed.
    pub failed: usize,
    /// Those of them that go to another than the preferred endpoint of their peer.
    pub diverted: usize,
    /// How much it keeps that was to be removed.
    pub removals_held: usize,
}

/// A node's tunnels as last reported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeTunnels {
    /// By name. Times are as of now.
    pub tunnels: BTreeMap<TunnelName, TunnelReport>,
    /// How old the last report is; absent: there was none since the controller's start.
    pub age: Option<Duration>,
    /// Whether the node is there; absent: it has no agent.
    pub health: Option<Health>,
}

/// How far the nodes are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Convergence {
    /// What they are to come to. What is stored after it is not looked at yet.
    pub generation: Generation,
    /// How many nodes have something to come to.
    pub nodes: usize,
    /// Those of them that have acknowledged all of it.
    pub converged: usize,
    /// The others, and why as far as it is known.
    pub lagging: Vec<Problem>,
    /// What was processed and cannot be had.
    pub failures: Vec<Problem>,
}

impl ControllerState {
    /// All nodes that are known, by name.
    pub fn nodes(&self, now: Instant) -> Vec<NodeStatus> {
        let mut meshes: BTreeMap<NodeName, BTreeSet<MeshName>> = BTreeMap::new();
        for (name, mesh) in &self.stored.wanted.meshes {
            for node in self.stored.wanted.members(mesh) {
                meshes.entry(node).or_default().insert(name.clone());
            }
        }
        let heard = self.registry.nodes().map(|(name, _)| name);
        for name in self.stored.wanted.nodes.keys().chain(heard) {
            meshes.entry(name.clone()).or_default();
        }
        meshes.into_iter().map(|(name, meshes)| self.node_status(name, meshes, now)).collect()
    }

    fn node_status(&self, name: NodeName, meshes: BTreeSet<MeshName>, now: Instant) -> NodeStatus {
        let node = self.registry.node(&name);
        let record = self.stored.wanted.nodes.get(&name);
        let tunnels = || node.into_iter().flat_map(|node| node.tunnels.values()).map(|(tunnel, _)| tunnel);
        let states = || tunnels().map(|tunnel| &tunnel.state);
        NodeStatus {
            health: self.health(&name, now),
            last_heard: node
                .and_then(|node| node.last_heard)
                .map(|heard| now.saturating_duration_since(heard)),
            meshes,
            labels: record.map(|record| record.labels.clone()).unwrap_or_default(),
            endpoint: record.and_then(|record| record.endpoint.clone()),
            version: node.map(|node| node.version.clone()).unwrap_or_default(),
            wanted: self.views.get(&name).map(|view| view.since),
            observed: node.and_then(|node| node.observed),
            converged: self.is_converged(&name),
            tunnels: states().count(),
            passing: states().filter(|state| **state == TunnelState::Passing).count(),
            failed: states().filter(|state| matches!(state, TunnelState::Failed(_))).count(),
            diverted: tunnels().filter(|tunnel| !tunnel.preferred.is_empty()).count(),
            removals_held: node.map_or(0, |node| node.removals_held.len()),
            name,
        }
    }

    /// Whether a node is there; `None`: it has no agent.
    fn health(&self, name: &NodeName, now: Instant) -> Option<Health> {
        let node = self.registry.node(name);
        let mut meshes =
            self.stored.wanted.meshes.values().filter(|mesh| mesh.nodes.contains_key(name)).peekable();
        let is_wireguard = meshes.peek().is_some() && meshes.all(|mesh| mesh.is_wireguard(name));
        let has_agent = !is_wireguard || node.is_some_and(|node| node.session.is_some());
        has_agent.then(|| node.map_or(Health::Offline, |node| node.health(now)))
    }

    /// The last request for a whole report that a node has answered; 0: none.
    pub fn answered(&self, name: &NodeName) -> u64 {
        self.registry.node(name).map_or(0, |node| node.answered)
    }

    /// The tunnels of a node as last reported; `None`: it is not known.
    pub fn node_tunnels(&self, name: &NodeName, now: Instant) -> Option<NodeTunnels> {
        let Some(node) = self.registry.node(name) else {
            let is_member = |mesh| self.stored.wanted.members(mesh).contains(name);
            let is_known = self.stored.wanted.nodes.contains_key(name)
                || self.stored.wanted.meshes.values().any(is_member);
            let (tunnels, health) = (BTreeMap::new(), self.health(name, now));
            return is_known.then_some(NodeTunnels { tunnels, age: None, health });
        };
        let tunnels = node.tunnels.iter().map(|(name, (tunnel, at))| {
            let passed = u64::try_from(now.saturating_duration_since(*at).as_millis()).unwrap_or(u64::MAX);
            let last_received_ms = tunnel.last_received_ms.map(|before| before.saturating_add(passed));
            (name.clone(), TunnelReport { last_received_ms, ..tunnel.clone() })
        });
        Some(NodeTunnels {
            tunnels: tunnels.collect(),
            age: node.reported_at.map(|at| now.saturating_duration_since(at)),
            health: self.health(name, now),
        })
    }

    /// The controller as a whole.
    pub fn status(&self, now: Instant) -> ControllerStatus {
        let nodes = self.nodes(now);
        let with = |health| nodes.iter().filter(|node| node.health == Some(health)).count();
        let members = || nodes.iter().filter(|node| !node.meshes.is_empty() && node.health.is_some());
        let ends = self.link_ends(now);
        ControllerStatus {
            link_ends: ends.values().sum(),
            link_ends_up: ends.get(LinkState::Up.name()).copied().unwrap_or(0),
            store_id: self.stored.store_id.clone(),
            generation: self.generation,
            meshes: self.stored.wanted.meshes.len(),
            live: with(Health::Live),
            stale: with(Health::Stale),
            offline: with(Health::Offline),
            members: members().count(),
            converged: members().filter(|node| node.converged).count(),
            problems: self.problems(&nodes, now),
        }
    }

    /// That a value of the store cannot be read, and what follows from it.
    fn unread_words(&self, key: &str, reason: &str) -> String {
        let what = format!("the store's {key} cannot be read and is passed over: {reason}");
        match self.stored.remedy(key) {
            Some(remedy) => format!("{what}; no node removes anything until {remedy}"),
            None => what,
        }
    }

    fn problems(&self, nodes: &[NodeStatus], now: Instant) -> Vec<Problem> {
        let mut problems = Vec::new();
        let mut tell = |node: Option<&NodeName>, item: Option<ItemId>, message: String| {
            if problems.len() < PROBLEMS {
                problems.push(Problem { node: node.cloned(), item, message });
            }
        };
        for (key, reason) in &self.stored.faults {
            tell(None, None, self.unread_words(key, reason));
        }
        if let Some((reason, since)) = &self.records.refusal {
            let message = format!(
                "the store cannot be written for {} s: {reason}; until it can, no mesh is applied and no new node joins",
                now.saturating_duration_since(*since).as_secs()
            );
            tell(None, None, message);
        }
        // Nodes come to a mesh by their labels after it was judged.
        for (mesh, hazard) in self.standing_hazards() {
            tell(hazard.node.as_ref(), None, format!("mesh {mesh}: {}", hazard.message));
        }
        for (node, path) in self.paths() {
            let Some((owner, mesh)) = self.stored.wanted.overlay_owner(path.local) else { continue };
            let message = format!(
                "it reaches the controller through mesh {mesh}, at {} of {owner}, and is cut off where that fails; \
                 start its agent with --controller at an address of the underlay",
                path.local
            );
            tell(Some(node), None, message);
        }
        for (name, mesh) in &self.stored.wanted.meshes {
            if let Some(message) = self.stored.wanted.too_many(mesh) {
                tell(None, None, format!("mesh {name}: {message}"));
            }
        }
        for (mesh, nodes) in self.stored.wanted.leaving_plain() {
            for node in nodes {
                tell(Some(node), None, self.without_keys(mesh, node));
            }
        }
        for (mesh, node) in self.without_address() {
            tell(Some(&node), None, format!("no overlay address is left for it in mesh {mesh}"));
        }
        for status in nodes {
            let name = Some(&status.name);
            let node = self.registry.node(&status.name);
            let refusal = node.and_then(|node| node.refusal.as_ref());
            if !status.meshes.is_empty() && refusal.is_none() {
                match status.health {
                    Some(Health::Live) | None => {}
                    Some(Health::Stale) => {
                        tell(name, None, "stale: nothing was heard of it for 12 s".to_owned())
                    }
                    Some(Health::Offline) => tell(name, None, "offline".to_owned()),
                }
            }
            if status.removals_held > 0 {
                let until = match self.stored.holds_removals() {
                    true => " while the store cannot be read whole",
                    false => ": apply a mesh with --allow-removals",
                };
                let message = format!("{} are kept that were to be removed{until}", status.removals_held);
                tell(name, None, message);
            }
            let Some(node) = node else { continue };
            if let Some(reason) = refusal {
                tell(name, None, format!("its agent refuses this controller: {reason}"));
            }
            if let Some(words) = node.clock_words() {
                tell(name, None, words);
            }
            if let Some(reason) = &node.obstacle {
                tell(name, None, format!("its agent cannot follow: {reason}"));
            }
            for message in self.unforwarded(&status.name, node) {
                tell(name, None, message);
            }
            for source in node.namesakes(now) {
                let message = format!(
                    "an agent at {source} has its name as well, and is refused: give each host a name of its own with \
                     --name; on a copy of its host run `agent leave` first"
                );
                tell(name, None, message);
            }
            for (item, reason) in &node.failures {
                tell(name, Some(item.clone()), reason.clone());
            }
            for (tunnel, reason) in failed(node) {
                let item = ItemId::Tunnel(tunnel.clone());
                if !node.failures.contains_key(&item) {
                    tell(name, Some(item), reason.to_owned());
                }
            }
        }
        problems
    }

    /// That a node has not agreed on keys with all others of a mesh that was unencrypted, in words.
    fn without_keys(&self, mesh: &MeshName, node: &NodeName) -> String {
        let with = match self.without_keys_with(mesh, node) {
            Some(other) => other.to_string(),
            None => "all others".to_owned(),
        };
        format!(
            "it has not agreed on keys with {with} in mesh {mesh} yet, and takes unencrypted packets until then"
        )
    }

    /// What a node offers to others and its host does not forward.
    fn unforwarded(&self, name: &NodeName, node: &Node) -> Vec<String> {
        let Some(forwarding) = node.forwarding else { return Vec::new() };
        let off = [(forwarding.ipv4, Forwarding::SYSCTL_V4), (forwarding.ipv6, Forwarding::SYSCTL_V6)];
        let mut problems = Vec::new();
        for (mesh, wanted) in &self.stored.wanted.meshes {
            let routes = wanted.nodes.get(name).map_or(&[][..], |node| &node.routes);
            for (is_v4, (is_on, sysctl)) in [true, false].into_iter().zip(off) {
                if let Some(route) = routes.iter().find(|route| route.addr().is_ipv4() == is_v4 && !is_on) {
                    problems.push(format!(
                        "mesh {mesh}: it offers {route}, and its host forwards no packets of that family; there: \
                         sysctl -w {sysctl}=1"
                    ));
                }
            }
        }
        problems
    }

    /// What would forbid to apply the meshes as they are now, and members without tunnels for what they say.
    fn standing_hazards(&self) -> impl Iterator<Item = (&MeshName, Hazard)> {
        let wanted = &self.stored.wanted;
        let reached_at = self.reached_at();
        wanted.meshes.keys().flat_map(move |mesh| {
            let hazards = wanted.hazards(mesh, &reached_at).into_iter();
            let barred = wanted.meshes.get(mesh).map(|mesh| wanted.barred(mesh));
            let hazards = hazards.filter(|hazard| hazard.is_error).chain(barred.unwrap_or_default());
            hazards.map(move |hazard| (mesh, hazard))
        })
    }

    /// The members of each mesh that have no address in it.
    fn without_address(&self) -> Vec<(MeshName, NodeName)> {
        let wanted = &self.stored.wanted;
        let readable = wanted.meshes.iter().filter(|(name, _)| !self.stored.has_lost_allocations(name));
        let without = readable.flat_map(|(name, mesh)| {
            let allocations = wanted.allocations.get(name);
            let has_address = move |node: &NodeName| {
                let allocation = allocations.and_then(|allocations| allocations.nodes.get(node));
                allocation.is_some_and(|allocation| !allocation.addresses.is_empty())
            };
            let members = wanted.members(mesh).into_iter();
            members.filter(move |node| !has_address(node)).map(|node| (name.clone(), node))
        });
        without.collect()
    }

    /// How far the nodes are: those of a mesh, and those with a session that have still something to remove.
    pub fn convergence(&self, now: Instant) -> Convergence {
        let mut convergence = Convergence {
            generation: self.generation,
            nodes: 0,
            converged: 0,
            lagging: Vec::new(),
            failures: Vec::new(),
        };
        // What is not read of what is wanted cannot be had.
        let unread = self.stored.faults.iter().filter(|(key, _)| self.stored.remedy(key).is_some());
        convergence.failures.extend(unread.map(|(key, reason)| Problem {
            node: None,
            item: None,
            message: self.unread_words(key, reason),
        }));
        let without_key = self.stored.wanted.without_key();
        let leaving: BTreeMap<&NodeName, &MeshName> = self
            .stored
            .wanted
            .leaving_plain()
            .flat_map(|(mesh, nodes)| nodes.into_iter().map(move |node| (node, mesh)))
            .collect();
        // What was stored in the last moment may make other tunnels of it.
        let is_worked_out = self.pending.due.is_none();
        for (name, view) in &self.views {
            let node = self.registry.node(name);
            let keyless = without_key.get(name);
            let has_session = node.is_some_and(|node| node.session.is_some());
            if view.items.is_empty() && !has_session {
                continue;
            }
            convergence.nodes += 1;
            let problem = |item, message| Problem { node: Some(name.clone()), item, message };
            for (item, reason) in node.iter().flat_map(|node| &node.failures) {
                convergence.failures.push(problem(Some(item.clone()), reason.clone()));
            }
            let leaves = leaving.get(name);
            if keyless.is_none() && leaves.is_none() && is_worked_out && self.is_converged(name) {
                convergence.converged += 1;
                continue;
            }
            let heard = node.and_then(|node| node.last_heard);
            let refusal = node.and_then(|node| node.refusal.as_ref());
            let obstacle = node.and_then(|node| node.obstacle.as_ref());
            let mut item = None;
            let message = match (refusal, has_session, heard) {
                (Some(reason), ..) => format!("its agent refuses this controller: {reason}"),
                (None, true, _) if let Some(reason) = obstacle => {
                    format!("its agent cannot follow: {reason}")
                }
                (None, true, _) => match keyless.filter(|_| self.is_converged(name)) {
                    Some(mesh) => node
                        .and_then(|node| node.rival.clone())
                        .unwrap_or_else(|| format!("it has not made its key for mesh {mesh} yet")),
                    None => match leaves.filter(|_| self.is_converged(name)) {
                        Some(mesh) => self.without_keys(mesh, name),
                        None => {
                            let owed =
                                (convergence.lagging.len() < EXPLAINED).then(|| self.owed(name)).flatten();
                            let (first, more) = owed.unzip();
                            item = first;
                            match more {
                                Some(more @ 1..) => format!("not acknowledged yet, nor are {more} more"),
                                Some(0) => "not acknowledged yet".to_owned(),
                                None => "it has not acknowledged it yet".to_owned(),
                            }
                        }
                    },
                },
                (None, false, Some(heard)) => {
                    let ago = span(now.saturating_duration_since(heard));
                    format!("it is not connected, and was heard {ago} ago")
                }
                (None, false, None) => "it has not connected since the controller's start".to_owned(),
            };
            convergence.lagging.push(problem(item, message));
        }
        convergence
    }

    /// The first of what a node is to set or remove and has not acknowledged, and how many more there are.
    fn owed(&self, node: &NodeName) -> Option<(ItemId, usize)> {
        let session = self.registry.node(node)?.session.as_ref()?;
        let nothing = Items::default();
        let has = session.acknowledged.as_ref().map_or(&nothing, |push| &push.items);
        let (set, deleted) = has.changes_to(&self.view(node).items);
        let more = (set.len() + deleted.len()).checked_sub(1)?;
        Some((set.first().map(|item| item.id.clone()).or_else(|| deleted.into_iter().next())?, more))
    }
}

fn failed(node: &Node) -> impl Iterator<Item = (&TunnelName, &str)> {
    node.tunnels.iter().filter_map(|(name, (tunnel, _))| match &tunnel.state {
        TunnelState::Failed(reason) => Some((name, reason.as_str())),
        TunnelState::Waiting(_) | TunnelState::Passing => None,
    })
}
