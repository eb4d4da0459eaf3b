//! The mesh that an operator writes down: a file of YAML or JSON, parsed.

mod file;
mod read;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use crate::proto::model::{DeviceName, Invalid, MeshName, Mtu, NodeName, Offloads, PublicKey, Remotes};

pub use file::parse;

/// How many nodes a mesh has at most: every node has a tunnel to every other one.
pub const NODES: usize = 2_000;

/// A mesh as it is wanted. Its serde form is what the store keeps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mesh {
    /// Its name.
    pub name: MeshName,
    /// Where its nodes' overlay addresses lie.
    pub overlay: Overlay,
    /// The device on every node; by default the mesh's name.
    pub device: DeviceName,
    /// Which pairs of nodes have a tunnel.
    pub topology: Topology,
    /// Whether its tunnels are encrypted.
    pub security: Security,
    /// The largest packet; absent: what each path carries.
    pub mtu: Option<Mtu>,
    /// What is not to be used for its packets.
    #[serde(default, skip_serializing_if = "Offloads::is_empty")]
    pub without: Offloads,
    /// Nodes by name, at most [`NODES`].
    pub nodes: BTreeMap<NodeName, MeshNode>,
    /// Nodes by label, beside those by name, as far as there is room for more.
    pub members: Vec<Selector>,
}

impl Mesh {
    /// Whether a node has WireGuard instead of an agent.
    pub fn is_wireguard(&self, node: &NodeName) -> bool {
        self.nodes.get(node).is_some_and(|node| node.wireguard.is_some())
    }
}

/// Where overlay addresses lie: one network of a family, or one of each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Overlay {
    /// IPv4.
    pub v4: Option<Ipv4Net>,
    /// IPv6.
    pub v6: Option<Ipv6Net>,
}

impl Overlay {
    /// Its networks, IPv4 first.
    pub fn networks(&self) -> impl Iterator<Item = IpNet> + use<> {
        self.v4.map(IpNet::from).into_iter().chain(self.v6.map(IpNet::from))
    }

    /// The network in which a node can have `address`.
    pub fn network_of(&self, address: IpAddr) -> Option<IpNet> {
        self.networks().find(|network| {
            network.contains(&address) && node_addresses(*network).contains(&to_number(address))
        })
    }
}

/// The addresses of `network` that nodes can have, as numbers: not its own and the broadcast address of IPv4
/// (RFC 3021: both of a /31 are hosts'), not the subnet-router anycast address of IPv6 (RFC 4291, and RFC 6164 for
/// a /127).
pub(super) fn node_addresses(network: IpNet) -> RangeInclusive<u128> {
    let (first, last) = (to_number(network.network()), to_number(network.broadcast()));
    match (network, network.max_prefix_len() - network.prefix_len()) {
        (_, 0 | 1) => first..=last,
        (IpNet::V4(_), _) => first + 1..=last - 1,
        (IpNet::V6(_), _) => first + 1..=last,
    }
}

/// An address as a number; that of an address of the same family is greater where the address is.
fn to_number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => v4.to_bits().into(),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

/// The address of a number, of the family of `network`.
pub(super) fn to_address(network: IpNet, number: u128) -> IpAddr {
    match (network, u32::try_from(number)) {
        (IpNet::V4(_), Ok(bits)) => Ipv4Addr::from_bits(bits).into(),
        (IpNet::V4(_), Err(_)) => Ipv4Addr::BROADCAST.into(),
        (IpNet::V6(_), _) => Ipv6Addr::from_bits(number).into(),
    }
}

/// Which pairs of nodes have a tunnel.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Topology {
    /// All.
    #[default]
    Full,
}

/// Whether a mesh's tunnels are encrypted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Security {
    /// By the WireGuard protocol.
    #[default]
    Encrypted,
    /// Not at all.
    Plain,
}

/// A node as the mesh file has it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MeshNode {
    /// Where others reach its data port, the preferred place first; absent: as its agent says.
    pub endpoint: Option<Remotes>,
    /// Fixed overlay addresses, at most one of each family.
    pub addresses: Vec<IpAddr>,
    /// Subnets behind it, reachable for all others.
    pub routes: Vec<IpNet>,
    /// Labels beside those that its agent has.
    pub labels: BTreeMap<String, String>,
    /// What is there instead of an agent, only in an encrypted mesh.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wireguard: Option<WireguardNode>,
}

/// What has no agent and speaks WireGuard: a phone, a router, a host of somebody else.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WireguardNode {
    /// The key by which its peers know it; absent: one that is made with `controller export wireguard --generate-key`.
    pub public_key: Option<PublicKey>,
    /// The nodes that it has tunnels to, all of which have an agent; at least one.
    pub peers: BTreeSet<NodeName>,
}

/// Selects the nodes that have all of some labels.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Selector {
    /// The labels; at least one.
    pub labels: BTreeMap<String, String>,
}

/// What is wrong in a mesh file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Where, line and column from 1; absent: nowhere in particular.
    pub place: Option<(usize, usize)>,
    /// The field, as `nodes.minion-2.endpoint`; empty: the file as a whole.
    pub field: String,
    /// The value, as it was written; empty: it is missing.
    pub value: String,
    /// What is wrong with it, and what to write instead.
    pub fault: Invalid,
}

impl Fault {
    /// The fault in one line, which begins with `file` and the place: `mesh.yaml:5:14: nodes.minion-2.endpoint …`.
    pub fn describe(&self, file: &str) -> String {
        let place = self.place.map(|(line, column)| format!(":{line}:{column}")).unwrap_or_default();
        let fault = self.fault.describe(&self.field, &self.value);
        format!("{file}{place}: {}", fault.trim_start())
    }
}

/// Networks that lie in another of `networks`, each with the largest that it lies in. Equal ones lie in the first.
pub(super) fn nested<T: Copy>(networks: impl IntoIterator<Item = (IpNet, T)>) -> Vec<[(IpNet, T); 2]> {
    let mut networks: Vec<_> = networks.into_iter().collect();
    // A network comes right before those that lie in it.
    networks.sort_by_key(|(network, _)| *network);
    let mut found = Vec::new();
    let mut outer: Option<(IpNet, T)> = None;
    for inner in networks {
        match outer {
            Some(outer) if outer.0.contains(&inner.0) => found.push([outer, inner]),
            Some(_) | None => outer = Some(inner),
        }
    }
    found
}

#[cfg(test)]
mod tests;
