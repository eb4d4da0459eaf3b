//! What the files say of the underlay. It goes before what a member by label says of itself: a stranger takes nobody's
//! place, and keeps no mesh from being applied.

use std::collections::BTreeMap;

use ipnet::IpNet;
use prefix_trie::joint::JointPrefixMap;

use super::{Wanted, with_port};
use crate::proto::model::{Host, MeshName, NodeName, Remote};

/// The endpoints and networks that files name.
pub(super) struct Underlay<'a> {
    endpoints: BTreeMap<Remote, &'a NodeName>,
    networks: JointPrefixMap<IpNet, &'a MeshName>,
}

impl<'a> Underlay<'a> {
    pub(super) fn of(wanted: &'a Wanted) -> Self {
        let mut underlay = Self { endpoints: BTreeMap::new(), networks: JointPrefixMap::new() };
        for mesh in wanted.meshes.values() {
            for (node, given) in &mesh.nodes {
                if let Some(endpoint) = &given.endpoint {
                    underlay.endpoints.insert(with_port(endpoint, wanted.nodes.get(node)), node);
                }
            }
            let routes = mesh.nodes.values().flat_map(|node| node.routes.iter().copied());
            for network in mesh.overlay.networks().chain(routes) {
                underlay.networks.insert(network, &mesh.name);
            }
        }
        underlay
    }

    /// Why `node` cannot be at the endpoint that it claims.
    pub(super) fn bar(&self, node: &NodeName, claimed: &Remote) -> Option<String> {
        if let Some(owner) = self.endpoints.get(claimed).filter(|owner| **owner != node) {
            return Some(format!("it says that it is at {claimed}, which is the endpoint of {owner}"));
        }
        let Host::Address(address) = claimed.host else { return None };
        let (network, mesh) = self.networks.get_lpm(&IpNet::from(address))?;
        Some(format!("it says that it is at {claimed}, which lies in {network} of mesh {mesh}"))
    }
}
