//! What each node of a mesh is given: its overlay addresses. The same file gives the same addresses, whoever comes and
//! goes meanwhile.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::mesh::{Mesh, Security, node_addresses, to_address};
use crate::proto::model::{NodeName, PublicKey};

/// How long an address that was freed is given to no other node.
pub const REST: Duration = Duration::from_secs(3600);

/// How many nodes that have left are remembered, beside those that left less than [`REST`] ago: nodes that come and
/// go under ever new names would fill the store.
const REMEMBERED: usize = 4096;

/// The overlay addresses of one mesh. Its serde form is what the store keeps.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Allocations {
    /// By node; also nodes that have left and may come back.
    pub nodes: BTreeMap<NodeName, Allocation>,
}

/// What one node is given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Allocation {
    /// One of each family of the overlay; fewer where the overlay has none left.
    pub addresses: Vec<IpAddr>,
    /// When the node left, as time since the Unix epoch; absent: it is a member.
    pub freed: Option<Duration>,
    /// How far it is on the way from unencrypted tunnels to encrypted ones; absent: it has had none of the former.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from_plain: Option<FromPlain>,
    /// The key of a node without an agent that was made for it, where the file has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<PublicKey>,
}

/// How far a node is on the way from unencrypted tunnels to encrypted ones. A pair of such nodes goes on unencrypted until
/// it has agreed on keys, unless both have done so with all others. There is no way back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FromPlain {
    /// It has not made its key yet.
    Keyless,
    /// It has, and has not agreed on keys with all others yet.
    UnderWay,
    /// It has.
    Keyed,
}

impl FromPlain {
    /// Whether it goes on unencrypted with some.
    pub fn is_under_way(self) -> bool {
        self < Self::Keyed
    }
}

impl Allocations {
    /// Has the nodes of `mesh` that were members `before` go on unencrypted until they have agreed on keys.
    pub fn leave_plain(&mut self, mesh: &Mesh, before: &Self) {
        for (node, allocation) in &mut self.nodes {
            let was_member = before.nodes.get(node).is_some_and(|before| before.freed.is_none());
            if was_member && allocation.freed.is_none() && !mesh.is_wireguard(node) {
                allocation.from_plain = Some(FromPlain::Keyless);
            }
        }
    }

    /// Takes in that nodes have made their key, or have agreed on keys with all others. Once all have done the latter, it is
    /// as if they had had no unencrypted tunnels.
    pub fn advance(&mut self, has_key: impl Fn(&NodeName) -> bool, is_keyed: impl Fn(&NodeName) -> bool) {
        for (node, allocation) in &mut self.nodes {
            match allocation.from_plain {
                Some(FromPlain::Keyless) if has_key(node) => {
                    allocation.from_plain = Some(FromPlain::UnderWay);
                }
                Some(FromPlain::UnderWay) if is_keyed(node) => allocation.from_plain = Some(FromPlain::Keyed),
                Some(_) | None => {}
            }
        }
        if self.under_way().next().is_none() {
            self.nodes.values_mut().for_each(|allocation| allocation.from_plain = None);
        }
    }

    /// The nodes that have not agreed on keys with all others.
    pub fn under_way(&self) -> impl Iterator<Item = &NodeName> {
        let nodes = self.nodes.iter();
        let under_way = nodes.filter(|(_, given)| given.from_plain.is_some_and(FromPlain::is_under_way));
        under_way.map(|(node, _)| node)
    }
}

/// The allocations after `members` came to be the mesh's nodes, and who lacks an address and why. `now` is time
/// since the Unix epoch.
///
/// An address that the file fixes goes to that node, and whoever had it moves. Other members keep what they have.
/// New ones get the lowest address that nobody has or had; where there is none, the one that was freed first, once
/// it has rested. A key stays for as long as the file has a member without an agent and none of its own for it.
pub fn allocate(
    mesh: &Mesh,
    members: &BTreeSet<NodeName>,
    before: &Allocations,
    now: Duration,
) -> (Allocations, BTreeMap<NodeName, String>) {
    let mut after = Allocations::default();
    let mut failures = BTreeMap::new();
    let mut families = Vec::new();
    for network in mesh.overlay.networks() {
        let mut family = Family::new(network, mesh, members, before, now);
        for node in members {
            let allocation = after.nodes.entry(node.clone());
            let allocation = allocation.or_insert_with(|| {
                let before = before.nodes.get(node).filter(|before| before.freed.is_none());
                let is_encrypted = mesh.security == Security::Encrypted && !mesh.is_wireguard(node);
                Allocation {
                    addresses: Vec::new(),
                    freed: None,
                    from_plain: before.filter(|_| is_encrypted).and_then(|before| before.from_plain),
                    key: before.filter(|_| is_without_key(mesh, node)).and_then(|before| before.key),
                }
            });
            match family.give(node) {
                Some(address) => allocation.addresses.push(address),
                None => _ = failures.entry(node.clone()).or_insert_with(|| family.exhausted()),
            }
        }
        families.push(family);
    }
    for (node, former) in before.nodes.iter().filter(|(node, _)| !members.contains(*node)) {
        let kept = families.iter().filter_map(|family| family.owned_by(node)).collect::<Vec<_>>();
        if !kept.is_empty() {
            let allocation =
                Allocation { addresses: kept, freed: Some(freed(former, now)), from_plain: None, key: None };
            after.nodes.insert(node.clone(), allocation);
        }
    }
    after.nodes.retain(|_, allocation| !allocation.addresses.is_empty());
    forget(&mut after, now);
    (after, failures)
}

/// The addresses of one of the overlay's networks while they are given away.
struct Family {
    network: IpNet,
    /// Who has or had which address. Nothing is freed meanwhile, but to be given to another at once.
    owners: BTreeMap<IpAddr, NodeName>,
    addresses: BTreeMap<NodeName, IpAddr>,
    /// Addresses of former members that have rested, the one freed last first.
    rested: Vec<IpAddr>,
    resting: usize,
    /// Below this no address is free; `None`: nor above.
    next: Option<u128>,
}

impl Family {
    fn new(
        network: IpNet,
        mesh: &Mesh,
        members: &BTreeSet<NodeName>,
        before: &Allocations,
        now: Duration,
    ) -> Self {
        let mut family = Self {
            network,
            owners: BTreeMap::new(),
            addresses: BTreeMap::new(),
            rested: Vec::new(),
            resting: 0,
            next: Some(*node_addresses(network).start()),
        };
        let belongs = |address: &&IpAddr| mesh.overlay.network_of(**address) == Some(network);
        for (name, node) in mesh.nodes.iter().filter(|(name, _)| members.contains(*name)) {
            node.addresses.iter().find(belongs).map(|address| family.claim(name, *address));
        }
        let mut left = Vec::new();
        for (node, allocation) in &before.nodes {
            let Some(address) = allocation.addresses.iter().find(belongs) else { continue };
            if family.claim(node, *address) && !members.contains(node) {
                left.push((freed(allocation, now), *address));
            }
        }
        left.sort_by_key(|(freed, _)| Reverse(*freed));
        family.resting = left.iter().filter(|(freed, _)| rests(*freed, now)).count();
        family.rested = left.into_iter().skip(family.resting).map(|(_, address)| address).collect();
        family
    }

    /// Whether `node` now has `address`: nobody else had it, and it had none.
    fn claim(&mut self, node: &NodeName, address: IpAddr) -> bool {
        if self.owners.contains_key(&address) || self.addresses.contains_key(node) {
            return false;
        }
        self.owners.insert(address, node.clone());
        self.addresses.insert(node.clone(), address);
        true
    }

    fn owned_by(&self, node: &NodeName) -> Option<IpAddr> {
        self.addresses.get(node).copied()
    }

    /// The address of a member: what it has, or one that is free.
    fn give(&mut self, node: &NodeName) -> Option<IpAddr> {
        if let Some(address) = self.owned_by(node) {
            return Some(address);
        }
        let address = self.unused().or_else(|| {
            let address = self.rested.pop()?;
            let former = self.owners.remove(&address)?;
            self.addresses.remove(&former);
            Some(address)
        })?;
        self.claim(node, address);
        Some(address)
    }

    /// The lowest address that nobody has or had.
    fn unused(&mut self) -> Option<IpAddr> {
        let last = *node_addresses(self.network).end();
        while let Some(number) = self.next.filter(|number| *number <= last) {
            self.next = number.checked_add(1);
            let address = to_address(self.network, number);
            if !self.owners.contains_key(&address) {
                return Some(address);
            }
        }
        None
    }

    fn exhausted(&self) -> String {
        let waiting = match self.resting {
            0 => String::new(),
            resting => format!(" ({resting} are kept for an hour for nodes that left)"),
        };
        format!("the overlay {} has no address left{waiting}; use a larger one", self.network)
    }
}

/// Whether a key is made for a node: it has no agent, and the file has none.
pub fn is_without_key(mesh: &Mesh, node: &NodeName) -> bool {
    let node = mesh.nodes.get(node).and_then(|node| node.wireguard.as_ref());
    node.is_some_and(|wireguard| wireguard.public_key.is_none())
}

/// When a node that is no member left. A clock that was ahead, and was put right, keeps its address no longer than
/// any other.
fn freed(allocation: &Allocation, now: Duration) -> Duration {
    allocation.freed.map_or(now, |freed| freed.min(now))
}

/// Whether an address freed then is not to be given to another yet.
fn rests(freed: Duration, now: Duration) -> bool {
    now.saturating_sub(freed) < REST
}

/// Drops the former members that have been away the longest.
fn forget(allocations: &mut Allocations, now: Duration) {
    let freed = allocations.nodes.iter().filter_map(|(node, allocation)| Some((allocation.freed?, node)));
    let mut rested: Vec<_> =
        freed.filter(|(freed, _)| !rests(*freed, now)).map(|(freed, node)| (freed, node.clone())).collect();
    rested.sort();
    let excess = rested.len().saturating_sub(REMEMBERED);
    for (_, node) in rested.iter().take(excess) {
        allocations.nodes.remove(node);
    }
}

#[cfg(test)]
mod tests;
