//! From meshes to what every node is to have, from there to operations, and what is dangerous about them.

mod export;
mod hash;
mod hazards;
mod operations;
mod underlay;
mod views;
mod words;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::num::NonZeroU16;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::alloc::{Allocations, FromPlain};
use super::mesh::{Mesh, NODES, Security, WireguardNode};
use crate::proto::model::{MeshName, NodeName, PublicKey, Remotes};
use crate::proto::session::{ItemId, Items};

pub use export::{Export, Unfit};
pub use hash::PlanHash;
pub use operations::{OfNode, Operation, Operations};
use underlay::Underlay;
pub use views::tunnel_name;
pub use words::differences;

/// The data port of a node that names none.
const DATA_PORT: u16 = 5000;
/// How many nodes a text names at most.
const NAMED: usize = 10;
/// How often a node without an endpoint sends something to its peers, in seconds: many firewalls and address translations
/// forget UDP after 30 s.
const KEEPALIVE: NonZeroU16 = NonZeroU16::new(25).unwrap();

/// What a node said of itself. Its serde form is what the store keeps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Where others reach it: as it says, or where its session came from; absent: unknown. Of more than one place the
    /// store has a list, which an earlier release cannot read.
    pub endpoint: Option<Remotes>,
    /// The UDP port on which it receives packets.
    pub data_port: u16,
    /// The keys by which the peers of its encrypted tunnels know it, by mesh.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub keys: BTreeMap<MeshName, PublicKey>,
    /// Whether it sends probes to others that do, and understands theirs.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub probes: bool,
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
    /// Nodes that were removed: they are members of nothing until they join again.
    pub removed: BTreeSet<NodeName>,
    /// Nodes of which it cannot be read what they said: they stay members, and nobody is told anything of them.
    pub unread: BTreeSet<NodeName>,
}

/// A node as one of a mesh.
struct Member<'a> {
    record: Option<&'a NodeRecord>,
    /// Its overlay addresses with the prefix length of their network.
    addresses: Vec<IpNet>,
    /// Where others reach it, always with a port. Without one it reaches others.
    endpoint: Option<Remotes>,
    /// Why what it says of its endpoint is not believed.
    barred: Option<String>,
    routes: &'a [IpNet],
    /// The key by which the peers of its encrypted tunnels know it.
    key: Option<PublicKey>,
    /// What it has instead of an agent.
    wireguard: Option<&'a WireguardNode>,
    /// Whether it sends probes to others that do.
    probes: bool,
    /// How far it is on the way from unencrypted tunnels to encrypted ones.
    from_plain: Option<FromPlain>,
}

impl Member<'_> {
    /// Whether it has to come first, since nobody knows where it is.
    fn dials(&self) -> bool {
        self.endpoint.is_none()
    }

    /// What may be sent to it, and come from it.
    fn prefixes(&self) -> impl Iterator<Item = IpNet> {
        let addresses = self.addresses.iter().map(|address| IpNet::from(address.addr()));
        addresses.chain(self.routes.iter().copied())
    }
}

impl Wanted {
    /// The nodes of a mesh: those by name, and of those that have the labels as many as a mesh can have.
    pub fn members(&self, mesh: &Mesh) -> BTreeSet<NodeName> {
        let mut members: BTreeSet<NodeName> = mesh.nodes.keys().cloned().collect();
        let room = NODES.saturating_sub(members.len());
        members.extend(self.selected(mesh).into_iter().take(room).cloned());
        // Who has no agent has not joined either.
        members.retain(|node| !self.removed.contains(node) || mesh.is_wireguard(node));
        members
    }

    /// The nodes that have the labels of a mesh and find no room in it.
    pub fn left_out(&self, mesh: &Mesh) -> Vec<&NodeName> {
        let room = NODES.saturating_sub(mesh.nodes.len());
        self.selected(mesh).into_iter().skip(room).collect()
    }

    /// The nodes that have the labels of a mesh and are not named in it: first those that are members already, since a
    /// newcomer takes nobody's place.
    fn selected(&self, mesh: &Mesh) -> Vec<&NodeName> {
        let is_selected = |record: &NodeRecord| {
            mesh.members.iter().any(|selector| {
                selector.labels.iter().all(|(key, value)| record.labels.get(key) == Some(value))
            })
        };
        let allocations = self.allocations.get(&mesh.name);
        let is_member = |node: &NodeName| {
            let allocation = allocations.and_then(|allocations| allocations.nodes.get(node));
            allocation.is_some_and(|allocation| allocation.freed.is_none())
        };
        let selected =
            self.nodes.iter().filter(|(node, record)| !mesh.nodes.contains_key(*node) && is_selected(record));
        let unread = self.unread.iter().filter(|node| !mesh.nodes.contains_key(*node) && is_member(node));
        let mut selected: Vec<_> = selected.map(|(node, _)| node).chain(unread).collect();
        selected.sort_by_key(|node| !is_member(node));
        selected
    }

    /// Whether a node is named in a mesh, or has an address in one.
    pub fn has_place(&self, node: &NodeName) -> bool {
        let is_named = self.meshes.values().any(|mesh| mesh.nodes.contains_key(node));
        let mut allocated = self.allocations.values().filter_map(|all| all.nodes.get(node));
        !self.removed.contains(node) && (is_named || allocated.any(|allocation| allocation.freed.is_none()))
    }

    /// The nodes of a mesh with what is known of them.
    fn parts<'a>(&'a self, mesh: &'a Mesh, underlay: &Underlay<'_>) -> BTreeMap<NodeName, Member<'a>> {
        let is_read = |node: &NodeName| !self.unread.contains(node) || mesh.is_wireguard(node);
        let members = self.members(mesh).into_iter().filter(is_read);
        members.map(|node| (node.clone(), self.member(mesh, &node, underlay))).collect()
    }

    fn member<'a>(&'a self, mesh: &'a Mesh, node: &NodeName, underlay: &Underlay<'_>) -> Member<'a> {
        let wanted = mesh.nodes.get(node);
        let wireguard = wanted.and_then(|wanted| wanted.wireguard.as_ref());
        // An agent of the same name says nothing for it.
        let record = self.nodes.get(node).filter(|_| wireguard.is_none());
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
            key: match wireguard {
                None => record.and_then(|record| record.keys.get(&mesh.name)).copied(),
                Some(_) => self.key_of_wireguard(mesh, node),
            },
            wireguard,
            probes: record.is_some_and(|record| record.probes),
            from_plain: allocation.and_then(|allocation| allocation.from_plain),
        }
    }

    /// Nodes that have not agreed on keys with all others of a mesh that was unencrypted, by mesh.
    pub fn leaving_plain(&self) -> impl Iterator<Item = (&MeshName, Vec<&NodeName>)> {
        let meshes = self.allocations.iter().map(|(mesh, all)| (mesh, all.under_way().collect::<Vec<_>>()));
        meshes.filter(|(_, nodes)| !nodes.is_empty())
    }

    /// Nodes of encrypted meshes that have been there and have not made their key, with the first mesh of each.
    pub fn without_key(&self) -> BTreeMap<NodeName, &MeshName> {
        let encrypted = self.meshes.values().filter(|mesh| mesh.security == Security::Encrypted);
        let mut without = BTreeMap::new();
        for mesh in encrypted {
            let has_none = |node: &NodeName| {
                !mesh.is_wireguard(node)
                    && self.nodes.get(node).is_some_and(|record| !record.keys.contains_key(&mesh.name))
            };
            for node in self.members(mesh).into_iter().filter(has_none) {
                without.entry(node).or_insert(&mesh.name);
            }
        }
        without
    }

    /// Whether keys matter to what nodes are to have.
    fn is_encrypted(&self) -> bool {
        self.meshes.values().any(|mesh| mesh.security == Security::Encrypted)
    }

    /// What is weaker than the defaults in the meshes, in words.
    pub fn weakened(&self) -> Vec<String> {
        let of = |mesh: &MeshName| {
            let named = format!("mesh {mesh}: ");
            self.weakened_of(mesh).into_iter().map(move |words| format!("{named}{words}"))
        };
        self.meshes.keys().flat_map(of).collect()
    }

    /// What is weaker than the defaults in a mesh, in words.
    pub fn weakened_of(&self, mesh: &MeshName) -> Vec<String> {
        let plain = self
            .meshes
            .get(mesh)
            .filter(|mesh| mesh.security == Security::Plain)
            .map(|_| "security: plain: whoever can read the underlay reads this mesh".to_owned());
        let leaving: Vec<_> =
            self.allocations.get(mesh).into_iter().flat_map(Allocations::under_way).collect();
        let leaving = (!leaving.is_empty()).then(|| {
            let named = leaving.iter().take(NAMED).map(|node| node.as_str()).collect::<Vec<_>>().join(", ");
            let more = match leaving.len().saturating_sub(NAMED) {
                0 => String::new(),
                more => format!(" and {more} more"),
            };
            format!(
                "was unencrypted, and its tunnels to {named}{more} go on so until they have agreed on keys, and take \
                 unencrypted packets until then"
            )
        });
        plain.into_iter().chain(leaving).collect()
    }

    /// Whether a mesh has unencrypted tunnels.
    fn has_plain(&self, mesh: &Mesh) -> bool {
        let is_leaving =
            || self.allocations.get(&mesh.name).is_some_and(|all| all.under_way().next().is_some());
        mesh.security == Security::Plain || is_leaving()
    }
}

/// Endpoints with their ports, which is the node's own where they name none.
fn with_port(endpoints: &Remotes, record: Option<&NodeRecord>) -> Remotes {
    endpoints.with_port(record.map_or(DATA_PORT, |record| record.data_port))
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

/// What applying a mesh, or deleting it, does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Which mesh.
    pub mesh: MeshName,
    /// Names this plan: another once anything that it rests on has changed.
    pub hash: PlanHash,
    /// What is different in the mesh, in the words of its file; also where no node has anything to do.
    pub differences: Vec<String>,
    /// What happens on the nodes.
    pub operations: Operations,
    /// What is dangerous about it, errors first.
    pub hazards: Vec<Hazard>,
    /// The nodes that lose more than half, and more than three, of their tunnels.
    pub mass_removals: BTreeSet<NodeName>,
    /// What is weaker than the defaults in this mesh, in words.
    pub weakened: Vec<String>,
}

/// What leads from one state to another that differs in `mesh`. `before` is stored at `revision`; `controller` are
/// addresses at which agents reach the controller.
pub fn plan(
    before: &Wanted,
    after: &Wanted,
    mesh: &MeshName,
    revision: u64,
    controller: &BTreeSet<IpAddr>,
) -> Plan {
    let views = [before.views_to_come(), after.views_to_come()];
    let operations = Operations::between(&views[0], &views[1]);
    let mut mass_removals = mass_removals(&views[0], &operations);
    if before.is_encrypted() || after.is_encrypted() {
        mass_removals.extend(losers(before, after));
    }
    let versions = [before.meshes.get(mesh), after.meshes.get(mesh)];
    let mut hazards = hazards::moves(before, after, mesh);
    hazards.extend(after.hazards(mesh, controller));
    hazards.extend(hazards::exports(before, after, mesh));
    hazards.sort_by_key(|hazard| !hazard.is_error);
    Plan {
        mesh: mesh.clone(),
        hash: PlanHash::of(revision, versions, &operations),
        differences: match versions {
            [None, None] => Vec::new(),
            [None, Some(_)] => vec!["new".to_owned()],
            [Some(_), None] => vec!["deleted".to_owned()],
            [Some(before), Some(after)] => differences(before, after),
        },
        hazards,
        mass_removals,
        operations,
        weakened: after.weakened_of(mesh),
    }
}

/// The nodes that lose more than half, and more than three, of the tunnels that they have now, also where others take their
/// place once keys are made.
pub fn losers(before: &Wanted, after: &Wanted) -> BTreeSet<NodeName> {
    let views = before.views();
    mass_removals(&views, &Operations::between(&views, &after.views()))
}

/// The nodes that lose more than half, and more than three, of the tunnels that they have in `before`.
fn mass_removals(before: &BTreeMap<NodeName, Items>, operations: &Operations) -> BTreeSet<NodeName> {
    let is_tunnel = |id: &ItemId| matches!(id, ItemId::Tunnel(_));
    let loses_most = |(node, operations): (&NodeName, OfNode<'_>)| {
        let is_lost = |operation: &&Operation| operation.after.is_none() && is_tunnel(&operation.item);
        let lost = operations.filter(is_lost).count();
        let had = || before.get(node).map_or(0, |had| had.iter().filter(|item| is_tunnel(&item.id)).count());
        (lost > 3 && 2 * lost > had()).then(|| node.clone())
    };
    operations.nodes().filter_map(loses_most).collect()
}

#[cfg(test)]
mod tests;
