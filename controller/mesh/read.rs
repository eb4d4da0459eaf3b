//! Turns the texts of a mesh file into a mesh, or into everything that is wrong with them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;
use serde_saphyr::Spanned;

use super::file::{Entries, OneOrMore, RawMesh, RawNode, RawSelector, Text, place};
use super::{
    Fault, Mesh, MeshNode, NODES, Overlay, Security, Selector, Topology, WireguardNode, nested,
    node_addresses,
};
use crate::proto::model::{
    DeviceName, Host, Invalid, MeshName, Mtu, NodeName, Offload, Offloads, PublicKey, Remote, Remotes,
    check_interface_address, is_host_address, parse_network,
};

/// The UDP port of WireGuard where none is named, as most have it.
const WIREGUARD_PORT: u16 = 51820;

/// A value and where it stands.
struct Placed<T> {
    value: T,
    place: Option<(usize, usize)>,
    field: String,
}

/// The values that no two nodes share, of nodes that have been read.
#[derive(Default)]
pub(super) struct Reader {
    faults: Vec<Fault>,
    networks: Vec<Placed<IpNet>>,
    addresses: BTreeMap<IpAddr, String>,
    endpoints: BTreeMap<String, String>,
    keys: BTreeMap<PublicKey, String>,
    /// Where nodes are said to have WireGuard.
    kinds: Vec<Placed<()>>,
    /// The peers of such nodes.
    peers: Vec<Placed<NodeName>>,
}

impl Reader {
    fn fault(&mut self, place: Option<(usize, usize)>, field: &str, value: &str, fault: Invalid) {
        self.faults.push(Fault { place, field: field.to_owned(), value: value.to_owned(), fault });
    }

    /// A field is not there. `mesh`: where the mesh has its name.
    fn missing(&mut self, field: &str, mesh: Option<(usize, usize)>, remedy: &str) {
        self.fault(mesh, field, "", Invalid::new("is missing", remedy));
    }

    fn read<T>(
        &mut self,
        field: &str,
        text: &Text,
        parse: impl FnOnce(&str) -> Result<T, Invalid>,
    ) -> Option<T> {
        parse(&text.value).map_err(|fault| self.fault(place(text), field, &text.value, fault)).ok()
    }

    /// The texts of a list, each with its field.
    fn texts(field: &str, list: Option<Spanned<OneOrMore>>) -> Vec<(String, Text)> {
        match list {
            None => Vec::new(),
            Some(Spanned { value: OneOrMore::One(value), referenced, defined }) => {
                vec![(field.to_owned(), Spanned { value, referenced, defined })]
            }
            Some(Spanned { value: OneOrMore::More(texts), .. }) => numbered(field, texts),
        }
    }

    /// The mesh, or all faults in the order of the file.
    pub(super) fn mesh(mut self, raw: RawMesh) -> Result<Mesh, Vec<Fault>> {
        let at = raw.mesh.as_ref().and_then(place);
        let name = match &raw.mesh {
            None => {
                self.missing("mesh", None, "name the mesh, as mesh: prod");
                None
            }
            Some(text) => self.read("mesh", text, MeshName::from_str),
        };
        let device = match (&raw.device, &raw.mesh) {
            (Some(text), _) => self.read("device", text, parse_device),
            (None, Some(text)) if name.is_some() => self.read("mesh", text, parse_device),
            (None, _) => None,
        };
        let topology = raw.topology.and_then(|text| {
            self.read("topology", &text, |text| match text {
                "full" => Ok(Topology::Full),
                _ => Err(Invalid::new("is no topology that this version has", "write full")),
            })
        });
        let security = raw.security.map_or(Some(Security::default()), |text| {
            self.read("security", &text, |text| match text {
                "encrypted" => Ok(Security::Encrypted),
                "plain" => Ok(Security::Plain),
                _ => Err(Invalid::new(
                    "is no kind of security",
                    "write encrypted (the default), or plain, and whoever can read the underlay reads this mesh",
                )),
            })
        });
        let mtu_text = raw.mtu.filter(|text| text.value != "auto");
        let mtu = mtu_text.as_ref().and_then(|text| self.read("mtu", text, parse_mtu));
        let without = self.without(raw.without);
        let texts = Self::texts("overlay", raw.overlay);
        let overlay = self.overlay(&texts, at);
        if let (Some(text), Some(mtu)) = (&mtu_text, mtu)
            && overlay.is_some_and(|overlay| overlay.v6.is_some())
            && mtu < Mtu::LEAST_V6
        {
            let remedy = format!("use at least {} (RFC 8200), or an IPv4 overlay alone", Mtu::LEAST_V6);
            let fault = Invalid::new("is too small for an IPv6 overlay", remedy);
            self.fault(place(text), "mtu", &text.value, fault);
        }
        let named = raw.nodes.map(|entries| entries.0).unwrap_or_default();
        let selectors = raw.members.unwrap_or_default();
        if named.is_empty() && selectors.is_empty() {
            let remedy = "name nodes, or select them by label as members: [{labels: {role: web}}]";
            self.missing("nodes", at, remedy);
        }
        if let Some(overlay) = overlay {
            self.check_size(overlay, &texts, named.len());
        }
        if let Some((text, _)) = named.get(NODES) {
            let problem = format!("is one of {} nodes", named.len());
            let remedy = format!("a mesh has at most {NODES}: make two meshes, with an overlay each");
            self.fault(place(text), "nodes", &text.value, Invalid::new(problem, remedy));
        }
        let mut nodes = BTreeMap::new();
        for (position, (text, raw)) in named.into_iter().enumerate() {
            let Some((name, node)) = self.node(overlay, position, &text, raw.unwrap_or_default()) else {
                continue;
            };
            // YAML tells the number 1 from the text "1".
            if nodes.insert(name, node).is_some() {
                let fault = Invalid::new("is there twice", "write each node once");
                self.fault(place(&text), "nodes", &text.value, fault);
            }
        }
        self.check_wireguard(security, &nodes);
        let members = numbered("members", selectors)
            .into_iter()
            .map(|(field, selector)| self.selector(&field, selector))
            .collect();
        self.check_networks();
        self.faults.sort_by_key(|fault| fault.place);
        match (name, overlay, device, security) {
            (Some(name), Some(overlay), Some(device), Some(security)) if self.faults.is_empty() => Ok(Mesh {
                name,
                overlay,
                device,
                topology: topology.unwrap_or_default(),
                security,
                mtu,
                without,
                nodes,
                members,
            }),
            (_, _, _, _) => Err(self.faults),
        }
    }

    /// What is not to be used for the mesh's packets.
    fn without(&mut self, texts: Option<Spanned<OneOrMore>>) -> Offloads {
        let mut without = Offloads::new();
        for (field, text) in Self::texts("without", texts) {
            let Some(offload) = self.read(&field, &text, Offload::from_str) else { continue };
            if !without.insert(offload) {
                let fault = Invalid::new("stands twice", "give it once");
                self.fault(place(&text), &field, &text.value, fault);
            }
        }
        without
    }

    /// The overlay; `None` where a part of it is at fault, so that nothing else is held against it.
    /// `mesh`: where the mesh has its name.
    fn overlay(&mut self, texts: &[(String, Text)], mesh: Option<(usize, usize)>) -> Option<Overlay> {
        let mut overlay = Overlay { v4: None, v6: None };
        if texts.is_empty() {
            let remedy = "name the network of the nodes' addresses, as overlay: 10.9.0.0/24";
            self.missing("overlay", mesh, remedy);
        }
        let before = self.faults.len();
        for (field, text) in texts {
            let Some(network) = self.read(field, text, parse_overlay) else { continue };
            let is_second = match network {
                IpNet::V4(v4) => overlay.v4.replace(v4).is_some(),
                IpNet::V6(v6) => overlay.v6.replace(v6).is_some(),
            };
            if is_second {
                let fault = Invalid::new("is a second network of its family", "name one IPv4 and one IPv6");
                self.fault(place(text), field, &text.value, fault);
            }
            self.networks.push(Placed { value: network, place: place(text), field: field.clone() });
        }
        (!texts.is_empty() && self.faults.len() == before).then_some(overlay)
    }

    fn check_size(&mut self, overlay: Overlay, texts: &[(String, Text)], nodes: usize) {
        for network in overlay.networks() {
            let addresses = node_addresses(network);
            let places = (addresses.end() - addresses.start()).saturating_add(1);
            if u128::try_from(nodes).is_ok_and(|nodes| nodes > places) {
                let text = texts.iter().find(|(_, text)| text.value.parse() == Ok(network));
                let fault = Invalid::new(
                    format!("has {places} addresses for {nodes} nodes"),
                    "use a larger network, with a smaller number behind the slash",
                );
                let place = text.and_then(|(_, text)| place(text));
                self.fault(place, "overlay", &network.to_string(), fault);
            }
        }
    }

    fn node(
        &mut self,
        overlay: Option<Overlay>,
        position: usize,
        name: &Text,
        raw: RawNode,
    ) -> Option<(NodeName, MeshNode)> {
        let parsed = self.read("nodes", name, NodeName::from_str);
        // A name that is none could hold anything.
        let path = match &parsed {
            Some(name) => format!("nodes.{name}"),
            None => format!("nodes[{position}]"),
        };
        let is_wireguard = self.is_wireguard(&path, &raw);
        let endpoint = self.endpoint(&format!("{path}.endpoint"), raw.endpoint, is_wireguard);
        if let (Some(_), Some(second)) = (&raw.address, &raw.addresses) {
            let fault = Invalid::new("is there beside address", "write one of both");
            self.fault(place(second), &format!("{path}.addresses"), "", fault);
        }
        let mut texts = Self::texts(&format!("{path}.address"), raw.address);
        texts.extend(Self::texts(&format!("{path}.addresses"), raw.addresses));
        let addresses = self.addresses(overlay, &texts);
        let mut routes = Vec::new();
        for (field, text) in numbered(&format!("{path}.routes"), raw.routes.unwrap_or_default()) {
            let Some(route) = self.read(&field, &text, parse_route) else { continue };
            self.networks.push(Placed { value: route, place: place(&text), field });
            routes.push(route);
        }
        let labels = self.labels(&format!("{path}.labels"), raw.labels);
        let wireguard =
            is_wireguard.then(|| self.wireguard(&path, parsed.as_ref(), name, raw.public_key, raw.peers));
        Some((parsed?, MeshNode { endpoint, addresses, routes, labels, wireguard }))
    }

    /// Whether a node has WireGuard instead of an agent.
    fn is_wireguard(&mut self, path: &str, raw: &RawNode) -> bool {
        let field = format!("{path}.kind");
        let is_wireguard = raw.kind.as_ref().map_or(Some(false), |text| {
            self.read(&field, text, |text| match text {
                "agent" => Ok(false),
                "wireguard" => Ok(true),
                _ => Err(Invalid::new("is no kind of node", "write agent (the default) or wireguard")),
            })
        });
        let own = [
            ("public_key", raw.public_key.as_ref().map(|text| (place(text), text.value.as_str()))),
            ("peers", raw.peers.as_ref().map(|list| (place(list), ""))),
        ];
        for (name, written) in own {
            if let Some((at, value)) = written.filter(|_| is_wireguard == Some(false)) {
                let fault = Invalid::new(
                    "is for nodes without an agent",
                    "write kind: wireguard, too, or leave it out",
                );
                self.fault(at, &format!("{path}.{name}"), value, fault);
            }
        }
        if let (Some(true), Some(text)) = (is_wireguard, &raw.kind) {
            self.kinds.push(Placed { value: (), place: place(text), field });
        }
        is_wireguard.unwrap_or(false)
    }

    /// What a node that has WireGuard says beside all else.
    fn wireguard(
        &mut self,
        path: &str,
        node: Option<&NodeName>,
        name: &Text,
        public_key: Option<Text>,
        peers: Option<Spanned<OneOrMore>>,
    ) -> WireguardNode {
        let public_key = public_key.and_then(|text| {
            let field = format!("{path}.public_key");
            let key = self.read(&field, &text, PublicKey::from_str)?;
            if let Some(other) = self.keys.get(&key) {
                let fault = Invalid::new(format!("is also {other}"), "give each node a key of its own");
                self.fault(place(&text), &field, &text.value, fault);
            } else {
                self.keys.insert(key, field);
            }
            Some(key)
        });
        let texts = Self::texts(&format!("{path}.peers"), peers);
        if texts.is_empty() {
            let remedy = "name the nodes that it has tunnels to, as peers: [minion-1]";
            self.missing(&format!("{path}.peers"), place(name), remedy);
        }
        let mut named = BTreeSet::new();
        for (field, text) in texts {
            let Some(peer) = self.read(&field, &text, NodeName::from_str) else { continue };
            let fault = if node == Some(&peer) {
                Invalid::new("is the node itself", "name others")
            } else if !named.insert(peer.clone()) {
                Invalid::new("stands twice", "name it once")
            } else {
                self.peers.push(Placed { value: peer, place: place(&text), field });
                continue;
            };
            self.fault(place(&text), &field, &text.value, fault);
        }
        WireguardNode { public_key, peers: named }
    }

    /// Refuses nodes without an agent where nothing is encrypted, and peers of them that have no agent either.
    fn check_wireguard(&mut self, security: Option<Security>, nodes: &BTreeMap<NodeName, MeshNode>) {
        for kind in std::mem::take(&mut self.kinds) {
            if security == Some(Security::Plain) {
                let fault = Invalid::new("has encrypted tunnels alone", "write security: encrypted");
                self.fault(kind.place, &kind.field, "wireguard", fault);
            }
        }
        for Placed { value: peer, place, field } in std::mem::take(&mut self.peers) {
            if nodes.get(&peer).is_some_and(|node| node.wireguard.is_some()) {
                let fault = Invalid::new("has no agent either", "name nodes that have one");
                self.fault(place, &field, peer.as_str(), fault);
            }
        }
    }

    /// Where others reach a node, the preferred place first.
    fn endpoint(
        &mut self,
        field: &str,
        list: Option<Spanned<OneOrMore>>,
        is_wireguard: bool,
    ) -> Option<Remotes> {
        let at = place(list.as_ref()?);
        let texts = Self::texts(field, list);
        let (mut given, mut endpoints) = (Vec::new(), Vec::new());
        for (field, text) in &texts {
            let Some(mut endpoint) = self.read(field, text, Remote::from_str) else { continue };
            endpoint.port = endpoint.port.or(is_wireguard.then_some(WIREGUARD_PORT));
            // Who stands twice in a list is at fault for that alone.
            if !endpoints.contains(&endpoint) {
                self.claim_endpoint(field, text, &endpoint);
            }
            given.push((field, text));
            endpoints.push(endpoint);
        }
        for (position, fault) in Remotes::faults(&endpoints) {
            if let Some((field, text)) = given.get(position) {
                self.fault(place(text), field, &text.value, fault);
            }
        }
        let is_whole = endpoints.len() == texts.len();
        let endpoints = Remotes::new(endpoints);
        if let (Err((_, fault)), true) = (&endpoints, texts.is_empty()) {
            self.fault(at, field, "", fault.clone());
        }
        endpoints.ok().filter(|_| is_whole)
    }

    fn claim_endpoint(&mut self, field: &str, text: &Text, endpoint: &Remote) {
        if matches!(endpoint.host, Host::Address(address) if address.is_loopback()) {
            let fault =
                Invalid::new("is every host's own", "give the address at which others reach the node");
            self.fault(place(text), field, &text.value, fault);
        } else if let Some(other) = self.endpoints.get(&endpoint.to_string()) {
            let fault =
                Invalid::new(format!("is also {other}"), "give each node its own address, or its own port");
            self.fault(place(text), field, &text.value, fault);
        } else {
            self.endpoints.insert(endpoint.to_string(), field.to_owned());
        }
    }

    fn addresses(&mut self, overlay: Option<Overlay>, texts: &[(String, Text)]) -> Vec<IpAddr> {
        let mut addresses: Vec<IpAddr> = Vec::new();
        for (field, text) in texts {
            let Some(address) = self.read(field, text, |text| parse_address(overlay, text)) else { continue };
            let fault = if let Some(other) = self.addresses.get(&address) {
                Invalid::new(format!("is also {other}"), "give each node its own address")
            } else if addresses.iter().any(|first| first.is_ipv4() == address.is_ipv4()) {
                Invalid::new("is a second address of its family", "give one IPv4 and one IPv6 address")
            } else {
                self.addresses.insert(address, field.clone());
                addresses.push(address);
                continue;
            };
            self.fault(place(text), field, &text.value, fault);
        }
        addresses
    }

    fn selector(&mut self, field: &str, raw: Spanned<RawSelector>) -> Selector {
        let place = place(&raw);
        let is_empty = raw.value.labels.as_ref().is_none_or(|labels| labels.0.is_empty());
        if is_empty {
            let fault = Invalid::new("selects every node", "name a label, as {labels: {role: web}}");
            self.fault(place, field, "", fault);
        }
        Selector { labels: self.labels(&format!("{field}.labels"), raw.value.labels) }
    }

    fn labels(&mut self, field: &str, raw: Option<Entries<Text>>) -> BTreeMap<String, String> {
        let entries = raw.map(|entries| entries.0).unwrap_or_default();
        for (key, _) in &entries {
            self.read(field, key, |key| match key {
                "" => Err(Invalid::new("a label has no name", "name it, as {role: web}")),
                _ if key.contains('=') => Err(Invalid::new("has the character '='", "write {role: web}")),
                _ => Ok(()),
            });
        }
        entries.into_iter().map(|(key, value)| (key.value, value.value)).collect()
    }

    /// Refuses subnets that lie in one another or in the overlay.
    fn check_networks(&mut self) {
        let networks = std::mem::take(&mut self.networks);
        for [(_, outer), (_, inner)] in nested(networks.iter().map(|placed| (placed.value, placed))) {
            // What comes later in the file is at fault.
            let (first, second) = if inner.place < outer.place { (inner, outer) } else { (outer, inner) };
            let problem = format!("overlaps {}, which is {}", first.value, first.field);
            let remedy = "offer each subnet from one node, and none of the overlay";
            let fault = Invalid::new(problem, remedy);
            self.fault(second.place, &second.field, &second.value.to_string(), fault);
        }
    }
}

/// The parts of a list, each with its field.
fn numbered<T>(field: &str, list: Vec<T>) -> Vec<(String, T)> {
    list.into_iter().enumerate().map(|(position, part)| (format!("{field}[{position}]"), part)).collect()
}

fn parse_device(text: &str) -> Result<DeviceName, Invalid> {
    if text == "lo" {
        return Err(Invalid::new("is an interface that every host has", "write device: with another name"));
    }
    text.parse()
}

fn parse_mtu(text: &str) -> Result<Mtu, Invalid> {
    let bytes: u32 =
        text.parse().map_err(|_| Invalid::new("is no number of bytes", "write a number, or auto"))?;
    Mtu::try_from(bytes)
}

fn parse_overlay(text: &str) -> Result<IpNet, Invalid> {
    let network = parse_network(text)?;
    if network.prefix_len() == 0 {
        return Err(Invalid::new("is all addresses", "name a network, as 10.9.0.0/24"));
    }
    check_hosts(network)?;
    Ok(network)
}

fn parse_route(text: &str) -> Result<IpNet, Invalid> {
    let network = parse_network(text)?;
    if network.prefix_len() == 0 {
        return Err(Invalid::new("is a default route", "name the networks behind the node"));
    }
    check_hosts(network)?;
    Ok(network)
}

/// Refuses networks whose addresses are no single hosts' or stay on one host.
fn check_hosts(network: IpNet) -> Result<(), Invalid> {
    let address = network.network();
    if !is_host_address(address) || address.is_loopback() {
        return Err(Invalid::new("is no network of hosts", "name another, as 10.9.0.0/24"));
    }
    Ok(())
}

fn parse_address(overlay: Option<Overlay>, text: &str) -> Result<IpAddr, Invalid> {
    let address: IpAddr = text.parse().map_err(|_| match text.parse::<IpNet>() {
        Ok(network) => Invalid::new("has a prefix length", format!("write {}", network.addr())),
        Err(_) => Invalid::new("is no address", "write an address of the overlay, as 10.9.0.1"),
    })?;
    let Some(overlay) = overlay else { return Ok(address) };
    let Some(network) = overlay.networks().find(|network| network.contains(&address)) else {
        let networks: Vec<_> = overlay.networks().map(|network| network.to_string()).collect();
        return Err(Invalid::new("does not lie in the overlay", format!("use {}", networks.join(" or "))));
    };
    if overlay.network_of(address).is_none() {
        IpNet::new(address, network.prefix_len()).map_or(Ok(()), check_interface_address)?;
        return Err(Invalid::new("is the anycast address of the network", "use another of the overlay"));
    }
    Ok(address)
}
