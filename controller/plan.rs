//! From meshes to what every node is to have, from there to operations, and what is dangerous about them.

mod hazards;
mod underlay;
mod words;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::alloc::Allocations;
use super::mesh::{Mesh, Security, Topology};
use crate::proto::command::TunnelSpec;
use crate::proto::convert::session::{device_item, tunnel_item};
use crate::proto::model::{AllowedPrefix, Framing, MeshName, NodeName, Remote, TunnelName};
use crate::proto::session::{Item, ItemId, Items, Tag};

use underlay::Underlay;
pub use words::differences;

/// The data port of a node that names none.
const DATA_PORT: u16 = 5000;

/// What a node said of itself. Its serde form is what the store keeps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Where others reach it: as it says, or where its session came from; absent: unknown.
    pub endpoint: Option<Remote>,
    /// The UDP port on which it receives packets.
    pub data_port: u16,
    /// The store's revision when it first said so of its endpoint and port: of two at one endpoint the first stays.
    #[serde(default)]
    pub since: u64,
}

/// All that is wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    /// The meshes.
    pub meshes: BTreeMap<MeshName, Mesh>,
    /// Their overlay addresses.
    pub allocations: BTreeMap<MeshName, Allocations>,
    /// The nodes that have ever been there.
    pub nodes: BTreeMap<NodeName, NodeRecord>,
}

/// A node as one of a mesh.
struct Member<'a> {
    record: Option<&'a NodeRecord>,
    /// Its overlay addresses with the prefix length of their network.
    addresses: Vec<IpNet>,
    /// Where others reach it, always with a port.
    endpoint: Option<Remote>,
    /// Why what it says of its endpoint is not believed.
    barred: Option<String>,
    routes: &'a [IpNet],
}

impl Member<'_> {
    /// Whether it can have tunnels: a plain tunnel needs both ends to know each other's address.
    fn is_joined(&self) -> bool {
        self.endpoint.is_some() && !self.addresses.is_empty()
    }
}

impl Wanted {
    /// The nodes of a mesh: those by name, and those that have the labels.
    pub fn members(&self, mesh: &Mesh) -> BTreeSet<NodeName> {
        let is_selected = |record: &NodeRecord| {
            mesh.members.iter().any(|selector| {
                selector.labels.iter().all(|(key, value)| record.labels.get(key) == Some(value))
            })
        };
        let selected = self.nodes.iter().filter(|(_, record)| is_selected(record)).map(|(node, _)| node);
        mesh.nodes.keys().chain(selected).cloned().collect()
    }

    /// The nodes of a mesh with what is known of them.
    fn parts<'a>(&'a self, mesh: &'a Mesh, underlay: &Underlay<'_>) -> BTreeMap<NodeName, Member<'a>> {
        let members = self.members(mesh).into_iter();
        members.map(|node| (node.clone(), self.member(mesh, &node, underlay))).collect()
    }

    fn member<'a>(&'a self, mesh: &'a Mesh, node: &NodeName, underlay: &Underlay<'_>) -> Member<'a> {
        let record = self.nodes.get(node);
        let wanted = mesh.nodes.get(node);
        let allocation = self.allocations.get(&mesh.name).and_then(|all| all.nodes.get(node));
        let addresses = allocation.map_or(&[][..], |allocation| &allocation.addresses);
        let given = wanted.and_then(|wanted| wanted.endpoint.as_ref()).map(|given| with_port(given, record));
        let claimed = record.and_then(|record| record.endpoint.as_ref()).map(|said| with_port(said, record));
        // Whoever names a node relies on what it says; by its labels anyone may come.
        let barred = match (wanted, &claimed) {
            (None, Some(claimed)) => underlay.bar(node, claimed),
            (Some(_), _) | (None, None) => None,
        };
        let claimed = claimed.filter(|_| barred.is_none());
        Member {
            record,
            addresses: addresses
                .iter()
                .filter_map(|address| {
                    let network = mesh.overlay.network_of(*address)?;
                    IpNet::new(*address, network.prefix_len()).ok()
                })
                .collect(),
            endpoint: given.or(claimed),
            barred,
            routes: wanted.map_or(&[], |wanted| &wanted.routes),
        }
    }

    /// What each node is to have; nodes of no mesh have nothing and are left out.
    pub fn views(&self) -> BTreeMap<NodeName, Items> {
        let mut views: BTreeMap<NodeName, Vec<Arc<Item>>> = BTreeMap::new();
        let underlay = Underlay::of(self);
        for mesh in self.meshes.values() {
            let mut parts = self.parts(mesh, &underlay);
            parts.retain(|_, member| member.is_joined());
            let tunnels: Vec<(&NodeName, Arc<Item>)> = match (mesh.security, mesh.topology) {
                // Not in this version, and never weaker than what is asked for.
                (Security::Encrypted, _) => continue,
                (Security::Plain, Topology::Full) => {
                    parts.iter().filter_map(|(node, member)| tunnel_to(mesh, node, member)).collect()
                }
            };
            // A device without a tunnel does not exist.
            if tunnels.len() < 2 {
                continue;
            }
            for (node, member) in &parts {
                let items = views.entry(node.clone()).or_default();
                items.push(Arc::new(device_item(&mesh.device, &member.addresses)));
                items.extend(
                    tunnels.iter().filter(|(peer, _)| *peer != node).map(|(_, tunnel)| tunnel.clone()),
                );
            }
        }
        views.into_iter().map(|(node, items)| (node, Items::new(items))).collect()
    }
}

/// An endpoint with its port, which is the node's own where it names none.
fn with_port(endpoint: &Remote, record: Option<&NodeRecord>) -> Remote {
    let port = record.map_or(DATA_PORT, |record| record.data_port);
    Remote { host: endpoint.host.clone(), port: Some(endpoint.port.unwrap_or(port)) }
}

/// The name of a mesh's tunnels to a node.
fn tunnel_name(mesh: &Mesh, peer: &NodeName) -> Option<TunnelName> {
    // A tunnel's name is long enough for any of a mesh and a node.
    format!("{}.{peer}", mesh.name).parse().ok()
}

/// The tunnel to a node, the same for all others.
fn tunnel_to<'a>(mesh: &Mesh, peer: &'a NodeName, member: &Member<'_>) -> Option<(&'a NodeName, Arc<Item>)> {
    let addresses = member.addresses.iter().map(|address| IpNet::from(address.addr()));
    let prefixes = addresses.chain(member.routes.iter().copied());
    let tunnel = tunnel_item(&TunnelSpec {
        name: tunnel_name(mesh, peer)?,
        device: mesh.device.clone(),
        addresses: Vec::new(),
        mtu: mesh.mtu,
        remote: member.endpoint.clone()?,
        framing: Framing::Raw,
        allowed_prefixes: prefixes.map(|prefix| AllowedPrefix { prefix, preference: 0 }).collect(),
        routes: member.routes.to_vec(),
    });
    Some((peer, Arc::new(tunnel)))
}

/// Something about a mesh that an operator should know before it is real.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Hazard {
    /// Whether it forbids to apply the mesh.
    pub is_error: bool,
    /// The node that it is about.
    pub node: Option<NodeName>,
    /// What is wrong, and what to do, in words.
    pub message: String,
}

/// What happens to one item of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operation {
    /// Which item.
    pub item: ItemId,
    /// What it is now, in words; absent: it is added.
    pub before: Option<String>,
    /// What it will be, in words; absent: it is removed.
    pub after: Option<String>,
}

/// What applying a mesh, or deleting it, does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Which mesh.
    pub mesh: MeshName,
    /// Names this plan: another once anything that it rests on has changed.
    pub hash: String,
    /// What is different in the mesh, in the words of its file; also where no node has anything to do.
    pub differences: Vec<String>,
    /// By node, only nodes with some.
    pub operations: BTreeMap<NodeName, Vec<Operation>>,
    /// What is dangerous about it, errors first.
    pub hazards: Vec<Hazard>,
    /// The nodes that lose more than half, and more than three, of their tunnels.
    pub mass_removals: BTreeSet<NodeName>,
    /// What is weaker than the defaults in this mesh, in words.
    pub weakened: Vec<String>,
}

/// What leads from one state to another that differs in `mesh`. `controller` are addresses at which agents reach the
/// controller.
pub fn plan(before: &Wanted, after: &Wanted, mesh: &MeshName, controller: &BTreeSet<IpAddr>) -> Plan {
    let views = [before.views(), after.views()];
    let changes = changes(&views[0], &views[1]);
    let versions = [before.meshes.get(mesh), after.meshes.get(mesh)];
    let mut hazards = hazards::moves(before, after, mesh);
    hazards.extend(after.hazards(mesh, controller));
    hazards.sort_by_key(|hazard| !hazard.is_error);
    let is_plain = |mesh: &Mesh| mesh.security == Security::Plain;
    let plain = "security: plain: whoever can read the underlay reads this mesh".to_owned();
    Plan {
        mesh: mesh.clone(),
        hash: hash(versions, &changes),
        differences: match versions {
            [None, None] => Vec::new(),
            [None, Some(_)] => vec!["new".to_owned()],
            [Some(_), None] => vec!["deleted".to_owned()],
            [Some(before), Some(after)] => differences(before, after),
        },
        operations: in_words(changes),
        hazards,
        mass_removals: mass_removals(&views[0], &views[1]),
        weakened: versions[1].is_some_and(is_plain).then_some(plain).into_iter().collect(),
    }
}

/// What an item was and what it will be; one of both is there.
type Change = [Option<Arc<Item>>; 2];

/// What changes on each node, in the order of the items' ids; only nodes where something does.
fn changes(
    before: &BTreeMap<NodeName, Items>,
    after: &BTreeMap<NodeName, Items>,
) -> BTreeMap<NodeName, Vec<(ItemId, Change)>> {
    let mut changes = BTreeMap::new();
    for (node, old, new) in pairs(before, after) {
        let (set, deleted) = old.changes_to(&new);
        let items: Vec<_> = old.iter().collect();
        let old_item = |id: &ItemId| {
            let position = items.binary_search_by(|item| item.id.cmp(id)).ok()?;
            items.get(position).map(|item| Arc::clone(item))
        };
        let mut of_node: Vec<(ItemId, Change)> =
            set.into_iter().map(|item| (item.id.clone(), [old_item(&item.id), Some(item)])).collect();
        of_node.extend(deleted.into_iter().map(|id| {
            let item = old_item(&id);
            (id, [item, None])
        }));
        of_node.sort_by(|(one, _), (other, _)| one.cmp(other));
        if !of_node.is_empty() {
            changes.insert(node.clone(), of_node);
        }
    }
    changes
}

/// A short hash of all that a plan rests on.
fn hash(versions: [Option<&Mesh>; 2], changes: &BTreeMap<NodeName, Vec<(ItemId, Change)>>) -> String {
    let mut hash = Sha256::new();
    for mesh in versions {
        // Its keys are texts, and so it has a JSON form.
        hash.update(serde_json::to_string(&mesh).unwrap_or_default());
        hash.update([0]);
    }
    for (node, changes) in changes {
        hash.update(node.as_str());
        hash.update([0]);
        // A tag covers the item's name.
        for item in changes.iter().flat_map(|(_, items)| items) {
            hash.update(item.as_ref().map_or(&[0; 16], |item| item.tag.as_bytes()));
        }
    }
    hash.finalize().iter().take(6).map(|byte| format!("{byte:02x}")).collect()
}

/// The operations by node that lead from one state to another; only nodes with some.
pub fn operations(
    before: &BTreeMap<NodeName, Items>,
    after: &BTreeMap<NodeName, Items>,
) -> BTreeMap<NodeName, Vec<Operation>> {
    in_words(changes(before, after))
}

fn in_words(changes: BTreeMap<NodeName, Vec<(ItemId, Change)>>) -> BTreeMap<NodeName, Vec<Operation>> {
    // Most items are shared by all nodes of a mesh.
    let mut known: BTreeMap<Tag, String> = BTreeMap::new();
    let mut words = |item: &Item| known.entry(item.tag).or_insert_with(|| words::of(item)).clone();
    let mut operation = |(item, [before, after]): (ItemId, Change)| Operation {
        item,
        before: before.as_deref().map(&mut words),
        after: after.as_deref().map(&mut words),
    };
    changes
        .into_iter()
        .map(|(node, changes)| (node, changes.into_iter().map(&mut operation).collect()))
        .collect()
}

/// The nodes that lose more than half, and more than three, of their tunnels.
pub fn mass_removals(
    before: &BTreeMap<NodeName, Items>,
    after: &BTreeMap<NodeName, Items>,
) -> BTreeSet<NodeName> {
    let is_tunnel = |id: &ItemId| matches!(id, ItemId::Tunnel(_));
    let loses_most = |old: &Items, new: &Items| {
        let (_, deleted) = old.changes_to(new);
        let lost = deleted.iter().filter(|id| is_tunnel(id)).count();
        lost > 3 && 2 * lost > old.iter().filter(|item| is_tunnel(&item.id)).count()
    };
    let losers = pairs(before, after).filter(|(_, old, new)| loses_most(old, new));
    losers.map(|(node, _, _)| node.clone()).collect()
}

/// Each node with its two views.
fn pairs<'a>(
    before: &'a BTreeMap<NodeName, Items>,
    after: &'a BTreeMap<NodeName, Items>,
) -> impl Iterator<Item = (&'a NodeName, Items, Items)> {
    let of =
        |views: &BTreeMap<NodeName, Items>, node: &NodeName| views.get(node).cloned().unwrap_or_default();
    let nodes: BTreeSet<_> = before.keys().chain(after.keys()).collect();
    nodes.into_iter().map(move |node| (node, of(before, node), of(after, node)))
}

#[cfg(test)]
mod tests;
