//! What the files say of the underlay. It goes before what a member by label says of itself: a stranger takes nobody's
//! place, and keeps no mesh from being applied.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use prefix_trie::joint::JointPrefixMap;

use super::{Wanted, with_port};
use crate::proto::model::{Host, MeshName, NodeName, Remote, Remotes};

impl Wanted {
    /// Whether an address lies in the overlay of a mesh.
    pub fn is_in_overlay(&self, address: IpAddr) -> bool {
        let mut networks = self.meshes.values().flat_map(|mesh| mesh.overlay.networks());
        networks.any(|network| network.contains(&address))
    }

    /// The node that has an overlay address, or had it, and in which mesh.
    pub fn overlay_owner(&self, address: IpAddr) -> Option<(&NodeName, &MeshName)> {
        self.allocations.iter().find_map(|(mesh, allocations)| {
            let mut nodes = allocations.nodes.iter();
            let (node, _) = nodes.find(|(_, allocation)| allocation.addresses.contains(&address))?;
            Some((node, mesh))
        })
    }
}

/// The endpoints and networks that files name, and who has an endpoint that no file names.
pub(super) struct Underlay<'a> {
    endpoints: BTreeMap<Remote, &'a NodeName>,
    /// By what nodes say of themselves, who said it first. Those that a file names go before those by label.
    claims: BTreeMap<Remote, (bool, u64, &'a NodeName)>,
    networks: JointPrefixMap<IpNet, &'a MeshName>,
}

impl<'a> Underlay<'a> {
    pub(super) fn of(wanted: &'a Wanted) -> Self {
        let (endpoints, claims) = (BTreeMap::new(), BTreeMap::new());
        let mut underlay = Self { endpoints, claims, networks: JointPrefixMap::new() };
        for mesh in wanted.meshes.values() {
            for (node, given) in &mesh.nodes {
                if let Some(endpoint) = &given.endpoint {
                    let endpoints = with_port(endpoint, wanted.nodes.get(node));
                    underlay.endpoints.extend(endpoints.iter().map(|endpoint| (endpoint.clone(), node)));
                }
            }
            let routes = mesh.nodes.values().flat_map(|node| node.routes.iter().copied());
            for network in mesh.overlay.networks().chain(routes) {
                underlay.networks.insert(network, &mesh.name);
            }
        }
        for mesh in wanted.meshes.values() {
            for node in wanted.members(mesh) {
                let Some((node, record)) = wanted.nodes.get_key_value(&node) else { continue };
                let Some(said) = &record.endpoint else { continue };
                let said = with_port(said, Some(record));
                // What a file says of it goes before what it says itself.
                let given = mesh.nodes.get(node);
                if given.is_some_and(|given| given.endpoint.is_some())
                    || underlay.bar_by_files(node, &said).is_some()
                {
                    continue;
                }
                let claim = (given.is_none(), record.since, node);
                for said in said.iter() {
                    let first = underlay.claims.entry(said.clone()).or_insert(claim);
                    *first = claim.min(*first);
                }
            }
        }
        underlay
    }

    /// Why `node` cannot be at one of the endpoints that it claims.
    pub(super) fn bar(&self, node: &NodeName, claimed: &Remotes) -> Option<String> {
        self.bar_by_files(node, claimed).or_else(|| {
            claimed.iter().find_map(|claimed| {
                let (_, _, first) = self.claims.get(claimed).filter(|(_, _, first)| *first != node)?;
                Some(format!("it says that it is at {claimed}, where {first} was before"))
            })
        })
    }

    fn bar_by_files(&self, node: &NodeName, claimed: &Remotes) -> Option<String> {
        claimed.iter().find_map(|claimed| {
            if let Some(owner) = self.endpoints.get(claimed).filter(|owner| **owner != node) {
                return Some(format!("it says that it is at {claimed}, which is the endpoint of {owner}"));
            }
            let Host::Address(address) = claimed.host else { return None };
            let (network, mesh) = self.networks.get_lpm(&IpNet::from(address))?;
            Some(format!("it says that it is at {claimed}, which lies in {network} of mesh {mesh}"))
        })
    }
}
