//! What is dangerous about a mesh.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use super::underlay::Underlay;
use super::{Hazard, Member, Wanted, tunnel_name};
use crate::controller::mesh::{Mesh, NODES, Security, nested};
use crate::proto::model::{ACCEPTED, Host, MeshName, NodeName, PublicKey, Remotes};

type Parts<'a> = BTreeMap<NodeName, Member<'a>>;

impl Wanted {
    /// What is dangerous about `mesh`, given all others. `controller` are addresses at which agents reach it.
    pub fn hazards(&self, mesh: &MeshName, controller: &BTreeSet<IpAddr>) -> Vec<Hazard> {
        let Some(mesh) = self.meshes.get(mesh) else { return Vec::new() };
        let underlay = Underlay::of(self);
        let parts = self.parts(mesh, &underlay);
        let others: Vec<(&Mesh, Parts<'_>)> = self
            .meshes
            .values()
            .filter(|other| other.name != mesh.name)
            .map(|other| (other, self.parts(other, &underlay)))
            .collect();
        let mut hazards = Vec::new();
        covered(&mut hazards, mesh, &parts, &others, controller);
        for (other, other_parts) in &others {
            let both_plain = self.has_plain(mesh) && self.has_plain(other);
            neighbours(&mut hazards, (mesh, &parts), (other, other_parts), both_plain);
        }
        same_endpoints(&mut hazards, &parts);
        for (node, member) in &parts {
            not_joined(&mut hazards, mesh, node, member);
        }
        hazards.extend(cannot_meet(mesh, &parts));
        self.without_agent(&mut hazards, mesh, &parts);
        let removed =
            mesh.nodes.keys().filter(|node| self.removed.contains(*node) && !mesh.is_wireguard(node));
        hazards.extend(removed.map(|node| {
            warning(node, format!("{node} was removed, and has no tunnels until it joins again"))
        }));
        not_accepted(&mut hazards, mesh, &parts);
        hazards.extend(self.too_many(mesh).map(|message| Hazard { is_error: false, node: None, message }));
        hazards
    }

    /// Says what is wrong with nodes that have no agent.
    fn without_agent(&self, hazards: &mut Vec<Hazard>, mesh: &Mesh, parts: &Parts<'_>) {
        let without_agent =
            || parts.iter().filter_map(|(node, member)| Some((node, member, member.wireguard?)));
        if without_agent().next().is_none() {
            return;
        }
        // Of two with one key it is the first one's, and an agent's before all.
        let agents =
            self.nodes.iter().filter_map(|(node, record)| Some((*record.keys.get(&mesh.name)?, node)));
        let others = without_agent().filter_map(|(node, member, _)| Some((member.key?, node)));
        let mut owners: BTreeMap<PublicKey, &NodeName> = BTreeMap::new();
        for (key, node) in agents.chain(others) {
            owners.entry(key).or_insert(node);
        }
        for (node, member, wireguard) in without_agent() {
            match member.key {
                None => hazards.push(warning(
                    node,
                    format!(
                        "{node} has no key, and no tunnels until `controller export wireguard {node} --generate-key` \
                         makes one, or the file has its public_key"
                    ),
                )),
                Some(key) => {
                    let owner = owners.get(&key).filter(|owner| **owner != node);
                    hazards.extend(owner.map(|owner| {
                        error(Some(node), format!("{node} has the key of {owner}; give it one of its own"))
                    }));
                }
            }
            if self.nodes.contains_key(node) {
                let message = format!(
                    "an agent has connected as {node}, and gets nothing of this mesh, where {node} has none; rename \
                     one of both"
                );
                hazards.push(warning(node, message));
            }
            for peer in &wireguard.peers {
                let message = match parts.get(peer) {
                    None => format!(
                        "{node} has no tunnel to {peer}, which is no node of this mesh; correct its peers"
                    ),
                    Some(other) if member.dials() && other.dials() && other.record.is_some() => format!(
                        "{node} and {peer} have no endpoint, and no tunnel to each other; give one of them an endpoint"
                    ),
                    Some(_) => continue,
                };
                hazards.push(warning(node, message));
            }
        }
    }

    /// Says that more nodes have a mesh's labels than it has room for.
    pub fn too_many(&self, mesh: &Mesh) -> Option<String> {
        let left_out = self.left_out(mesh);
        let first = left_out.first()?;
        let more = match left_out.len() - 1 {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        Some(format!(
            "{first}{more} have its labels and are left out, as a mesh has at most {NODES} nodes; select some of them \
             for another mesh"
        ))
    }

    /// Members of `mesh` that have no tunnels, for what they say of their endpoint is not believed.
    pub fn barred(&self, mesh: &Mesh) -> Vec<Hazard> {
        let parts = self.parts(mesh, &Underlay::of(self));
        parts.iter().filter_map(|(node, member)| barred(node, member)).collect()
    }
}

fn barred(node: &NodeName, member: &Member<'_>) -> Option<Hazard> {
    let reason = member.barred.as_ref()?;
    let message = format!(
        "{node} has no tunnels: {reason}; start its agent with another --endpoint, or name it in the file with its \
         endpoint"
    );
    Some(warning(node, message))
}

/// What is interrupted: members whose overlay address becomes another, and all where the security does.
pub(super) fn moves(before: &Wanted, after: &Wanted, mesh: &MeshName) -> Vec<Hazard> {
    let (Some(old), Some(new)) = (before.meshes.get(mesh), after.meshes.get(mesh)) else { return Vec::new() };
    let mut hazards = Vec::new();
    if new.security == Security::Plain && old.security == Security::Encrypted {
        let message = "its tunnels change one after the other, as each node hears of it; expect it to carry nothing for a \
                       moment"
            .to_owned();
        hazards.push(Hazard { is_error: false, node: None, message });
    }
    let (old, new) = (before.parts(old, &Underlay::of(before)), after.parts(new, &Underlay::of(after)));
    for (node, member) in &new {
        let Some(was) = old.get(node) else { continue };
        for address in was.addresses.iter().map(IpNet::addr) {
            let is_family = |other: &&IpNet| other.addr().is_ipv4() == address.is_ipv4();
            let now = member.addresses.iter().find(is_family).map(IpNet::addr);
            if let Some(now) = now.filter(|now| *now != address) {
                let owner =
                    new.iter().find(|(_, other)| other.addresses.iter().any(|net| net.addr() == address));
                let reason = owner.map(|(owner, _)| format!(", which {owner} gets,")).unwrap_or_default();
                let message =
                    format!("{node} moves from {address}{reason} to {now}; expect its connections to end");
                hazards.push(warning(node, message));
            }
        }
    }
    hazards
}

/// The nodes without an agent that have to be told by hand of what changes.
pub(super) fn exports(before: &Wanted, after: &Wanted, mesh: &MeshName) -> Vec<Hazard> {
    let (Some(old), Some(new)) = (before.meshes.get(mesh), after.meshes.get(mesh)) else { return Vec::new() };
    let stays = new.nodes.keys().filter(|node| old.is_wireguard(node) && new.is_wireguard(node));
    let (old, new) = (before.exporter(old), after.exporter(new));
    let concerned = stays.filter(|node| match (old.export(node), new.export(node)) {
        (Ok(old), Ok(new)) => old != new,
        (_, _) => false,
    });
    let told = |node: &NodeName| {
        let message = format!(
            "{node} has no agent that hears of this: replace its file by that of `controller export wireguard {node}`"
        );
        warning(node, message)
    };
    concerned.map(told).collect()
}

fn error(node: Option<&NodeName>, message: String) -> Hazard {
    Hazard { is_error: true, node: node.cloned(), message }
}

fn warning(node: &NodeName, message: String) -> Hazard {
    Hazard { is_error: false, node: Some(node.clone()), message }
}

/// Says which nodes of an encrypted mesh have no tunnels to each other, since none of them has an endpoint.
fn cannot_meet(mesh: &Mesh, parts: &Parts<'_>) -> Option<Hazard> {
    // Those without an agent have no record.
    let dials = parts.iter().filter(|(_, member)| member.record.is_some() && member.dials());
    let names: Vec<&NodeName> = dials.map(|(node, _)| node).collect();
    let (first, second) = (names.first()?, names.get(1)?);
    if mesh.security == Security::Plain {
        return None;
    }
    let more = match names.len() - 2 {
        0 => String::new(),
        more => format!(", and {more} more"),
    };
    let message = format!(
        "{first} and {second}{more} have no endpoint, and no tunnels to each other; give all but one of them an endpoint"
    );
    Some(Hazard { is_error: false, node: None, message })
}

/// What a mesh brings into the routing tables of its nodes.
struct Network<'a> {
    network: IpNet,
    /// The node behind which it lies; absent: it is the overlay.
    node: Option<&'a NodeName>,
}

impl Network<'_> {
    fn name(&self) -> String {
        let network = self.network;
        self.node.map_or_else(|| format!("overlay {network}"), |node| format!("subnet {network} of {node}"))
    }
}

fn networks<'a>(mesh: &Mesh, parts: &'a Parts<'_>) -> Vec<Network<'a>> {
    let overlay = mesh.overlay.networks().map(|network| Network { network, node: None });
    let routes = parts.iter().flat_map(|(node, member)| {
        member.routes.iter().map(move |route| Network { network: *route, node: Some(node) })
    });
    overlay.chain(routes).collect()
}

/// The underlay addresses of a mesh's nodes.
fn endpoints<'a>(parts: &'a Parts<'_>) -> impl Iterator<Item = (IpAddr, &'a NodeName)> {
    let all = parts.iter().flat_map(|(node, member)| {
        member.endpoint.iter().flat_map(Remotes::iter).map(move |endpoint| (&endpoint.host, node))
    });
    all.filter_map(|(host, node)| match host {
        Host::Address(address) => Some((*address, node)),
        Host::Name(_) => None,
    })
}

/// Refuses networks that cover an address of the underlay: what is sent there would go into a tunnel.
fn covered(
    hazards: &mut Vec<Hazard>,
    mesh: &Mesh,
    parts: &Parts<'_>,
    others: &[(&Mesh, Parts<'_>)],
    controller: &BTreeSet<IpAddr>,
) {
    let own: BTreeMap<IpAddr, String> =
        endpoints(parts).map(|(address, node)| (address, format!("the endpoint of {node}"))).collect();
    let mut all: BTreeMap<IpAddr, String> = BTreeMap::new();
    for (other, parts) in others {
        let of_other = endpoints(parts)
            .map(|(address, node)| (address, format!("the endpoint of {node} in mesh {}", other.name)));
        all.extend(of_other);
    }
    all.extend(own.clone());
    all.extend(controller.iter().map(|address| (*address, "an address of the controller".to_owned())));
    let mut refuse = |network: &Network<'_>, of: String, addresses: &BTreeMap<IpAddr, String>| {
        let range = network.network.network()..=network.network.broadcast();
        if let Some((address, what)) = addresses.range(range).next() {
            let message = format!(
                "{}{of} covers {address}, {what}: tunnels would run inside themselves; choose a network without it",
                network.name()
            );
            hazards.push(error(network.node, message));
        }
    };
    for network in networks(mesh, parts) {
        refuse(&network, String::new(), &all);
    }
    for (other, parts) in others {
        for network in networks(other, parts) {
            refuse(&network, format!(" in mesh {}", other.name), &own);
        }
    }
}

/// Refuses what two meshes cannot both have on a node that is in both.
fn neighbours(
    hazards: &mut Vec<Hazard>,
    one: (&Mesh, &Parts<'_>),
    other: (&Mesh, &Parts<'_>),
    both_plain: bool,
) {
    let ((mesh, parts), (other, other_parts)) = (one, other);
    let shared: Vec<&NodeName> = parts.keys().filter(|node| other_parts.contains_key(*node)).collect();
    let Some(first) = shared.first() else { return };
    if let [one, two, ..] = shared[..]
        && both_plain
    {
        let message = format!(
            "{one} and {two} are both in mesh {} and in mesh {}, and plain tunnels are told apart by their peers \
             alone; take one of them from one of the meshes",
            mesh.name, other.name
        );
        hazards.push(error(Some(one), message));
    }
    if mesh.device == other.device {
        let message = format!(
            "device {} is that of mesh {}, too, and {first} is in both; write another device: in one of the files",
            mesh.device, other.name
        );
        hazards.push(error(Some(first), message));
    }
    let (own, others) = (networks(mesh, parts), networks(other, other_parts));
    let marked =
        own.iter().map(|network| (true, network)).chain(others.iter().map(|network| (false, network)));
    for [(outer, (is_own, one)), (inner, (inner_is_own, two))] in
        nested(marked.map(|(is_own, network)| (network.network, (is_own, network))))
    {
        // A subnet within a subnet is more exact; equal ones, and any in an overlay, are not told apart.
        if is_own == inner_is_own || (one.node.is_some() && two.node.is_some() && outer != inner) {
            continue;
        }
        let (ours, theirs) = if is_own { (one, two) } else { (two, one) };
        // A node has no route to what lies behind itself.
        let Some(node) = shared.iter().find(|node| ours.node != Some(**node) && theirs.node != Some(**node))
        else {
            continue;
        };
        let message = format!(
            "{} overlaps the {} in mesh {}, and {node} is in both; choose another network",
            ours.name(),
            theirs.name(),
            other.name
        );
        hazards.push(error(Some(node), message));
    }
    let names: BTreeSet<_> = other_parts.keys().filter_map(|peer| tunnel_name(other, peer)).collect();
    for peer in parts.keys() {
        if let Some(name) = tunnel_name(mesh, peer).filter(|name| names.contains(name)) {
            let message = format!(
                "the tunnels to {peer} have the name {name}, as others of mesh {} have, and {first} is in both; \
                 rename one of the meshes",
                other.name
            );
            hazards.push(error(Some(first), message));
        }
    }
}

fn same_endpoints(hazards: &mut Vec<Hazard>, parts: &Parts<'_>) {
    let mut known = BTreeMap::new();
    let all = parts.iter().flat_map(|(node, member)| {
        member.endpoint.iter().flat_map(Remotes::iter).map(move |endpoint| (node, endpoint))
    });
    for (node, endpoint) in all {
        if let Some(first) = known.get(endpoint) {
            let message = format!(
                "{node} and {first} have one endpoint, {endpoint}, and others reach but one of them; give each its \
                 own address or port"
            );
            hazards.push(warning(node, message));
        } else {
            known.insert(endpoint, node);
        }
    }
}

/// Says of a member why it has no tunnels, or does not know of them yet.
fn not_joined(hazards: &mut Vec<Hazard>, mesh: &Mesh, node: &NodeName, member: &Member<'_>) {
    for network in mesh.overlay.networks() {
        if !member.addresses.iter().any(|address| network.contains(address)) {
            let message =
                format!("{node} has no address, as the overlay {network} has none left; use a larger one");
            hazards.push(warning(node, message));
        }
    }
    if let Some(hazard) = barred(node, member) {
        hazards.push(hazard);
        return;
    }
    if member.wireguard.is_some() {
        return;
    }
    match (member.record, &member.endpoint) {
        (Some(_), Some(_)) => {}
        (Some(_), None) if mesh.security == Security::Encrypted => {}
        (None, Some(_)) => {
            let message = format!("{node} has never connected; start its agent with --name {node}");
            hazards.push(warning(node, message));
        }
        (_, None) => {
            let message = format!(
                "{node} has no known endpoint, and no tunnels until its agent connects; start it with --name \
                 {node}, or write its endpoint"
            );
            hazards.push(warning(node, message));
        }
    }
}

/// Says what agents refuse unless they are started with more.
fn not_accepted(hazards: &mut Vec<Hazard>, mesh: &Mesh, parts: &Parts<'_>) {
    let accepted: Vec<IpNet> = ACCEPTED.iter().filter_map(|prefix| prefix.parse().ok()).collect();
    for network in networks(mesh, parts) {
        if !accepted.iter().any(|prefix| prefix.contains(&network.network)) {
            let message = format!(
                "{} lies in none of the networks that agents accept ({}); start them with --accept-prefix {}",
                network.name(),
                ACCEPTED.join(", "),
                network.network
            );
            hazards.push(Hazard { is_error: false, node: network.node.cloned(), message });
        }
    }
}
