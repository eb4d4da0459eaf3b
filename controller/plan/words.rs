//! Items and meshes in words, for who reads a plan.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;

use crate::controller::mesh::{Mesh, MeshNode, Security, Selector, Topology};
use crate::proto::convert::session::{Meaning, meaning};
use crate::proto::model::{Framing, Mtu, NodeName, Offloads, Remotes};
use crate::proto::session::Item;

/// An item in words, as `10.9.0.1/24` or `to 172.100.1.2:5000, 10.9.0.2/32 192.168.2.0/24, mtu auto`.
pub(super) fn of(item: &Item) -> String {
    match meaning(item) {
        Ok(Meaning::Device(_, device)) => list(&device.addresses),
        Ok(Meaning::Tunnel(tunnel)) => {
            let prefixes: Vec<_> = tunnel.allowed_prefixes.iter().map(|allowed| allowed.prefix).collect();
            let without = match offloads(&tunnel.without) {
                names if names.is_empty() => names,
                names => format!(", without {names}"),
            };
            let to = tunnel.remote.map_or_else(|| "from anywhere".to_owned(), |remotes| to(&remotes));
            let unencrypted = match (tunnel.framing, tunnel.also_plain) {
                (Framing::Raw | Framing::Pi, _) => ", unencrypted",
                (Framing::Wireguard(_), true) => ", unencrypted until keys are agreed on",
                (Framing::Wireguard(_), false) => "",
            };
            let keepalive =
                tunnel.keepalive.map(|seconds| format!(", keepalive {seconds}")).unwrap_or_default();
            format!("{to}, {}, mtu {}{unencrypted}{keepalive}{without}", list(&prefixes), mtu(tunnel.mtu))
        }
        // Where a later release wrote it.
        Err(error) => format!("not known to this release: {}", error.fault),
    }
}

/// Where datagrams go: to the preferred endpoint, or the others.
fn to(remotes: &Remotes) -> String {
    let others: Vec<String> = remotes.others().iter().map(|other| format!(" or {other}")).collect();
    format!("to {}{}", remotes.first(), others.concat())
}

/// An item before and after a change in words, which tell the keys, too, where nothing else is another.
pub(super) fn of_change(before: &Item, after: &Item) -> [String; 2] {
    let words = [before, after].map(of);
    if words[0] != words[1] {
        return words;
    }
    [before, after].map(|item| format!("{}, {}", of(item), key(item)))
}

fn key(item: &Item) -> String {
    let key = match meaning(item) {
        Ok(Meaning::Device(_, device)) => device.key.map(|mesh| format!("key for mesh {mesh}")),
        Ok(Meaning::Tunnel(tunnel)) => match tunnel.framing {
            Framing::Wireguard(key) => Some(format!("key {key}")),
            Framing::Raw | Framing::Pi => None,
        },
        Err(_) => None,
    };
    key.unwrap_or_else(|| "no key".to_owned())
}

/// What is different between two versions of a mesh, one line each, in the words of the mesh file.
pub fn differences(before: &Mesh, after: &Mesh) -> Vec<String> {
    let networks = |mesh: &Mesh| mesh.overlay.networks().collect::<Vec<_>>();
    let mut lines = Lines(Vec::new());
    lines.compare("mesh", before.name.to_string(), after.name.to_string());
    lines.compare("overlay", list(&networks(before)), list(&networks(after)));
    lines.compare("device", before.device.to_string(), after.device.to_string());
    lines.compare("topology", topology(before.topology).to_owned(), topology(after.topology).to_owned());
    lines.compare("security", security(before.security).to_owned(), security(after.security).to_owned());
    lines.compare("mtu", mtu(before.mtu), mtu(after.mtu));
    lines.compare("without", offloads(&before.without), offloads(&after.without));
    let names: BTreeSet<&NodeName> = before.nodes.keys().chain(after.nodes.keys()).collect();
    for name in names {
        match (before.nodes.get(name), after.nodes.get(name)) {
            (None, None) => {}
            (None, Some(_)) => lines.0.push(format!("nodes.{name}: added")),
            (Some(_), None) => lines.0.push(format!("nodes.{name}: removed")),
            (Some(old), Some(new)) => lines.compare_nodes(&format!("nodes.{name}"), old, new),
        }
    }
    lines.compare("members", selectors(&before.members), selectors(&after.members));
    lines.0
}

struct Lines(Vec<String>);

impl Lines {
    fn compare(&mut self, field: &str, before: String, after: String) {
        if before != after {
            let shown = |text: String| if text.is_empty() { "none".to_owned() } else { text };
            self.0.push(format!("{field}: {} -> {}", shown(before), shown(after)));
        }
    }

    fn compare_nodes(&mut self, field: &str, before: &MeshNode, after: &MeshNode) {
        let endpoint = |node: &MeshNode| node.endpoint.as_ref().map(Remotes::to_string).unwrap_or_default();
        let kind = |node: &MeshNode| if node.wireguard.is_some() { "wireguard" } else { "agent" };
        self.compare(&format!("{field}.kind"), kind(before).to_owned(), kind(after).to_owned());
        let own = |node: &MeshNode| {
            let wireguard = node.wireguard.as_ref()?;
            let key = wireguard.public_key.map(|key| key.to_string()).unwrap_or_default();
            Some([key, list(&wireguard.peers.iter().collect::<Vec<_>>())])
        };
        let [before_own, after_own] = [before, after].map(|node| own(node).unwrap_or_default());
        for ((name, before), after) in ["public_key", "peers"].into_iter().zip(before_own).zip(after_own) {
            self.compare(&format!("{field}.{name}"), before, after);
        }
        self.compare(&format!("{field}.endpoint"), endpoint(before), endpoint(after));
        self.compare(&format!("{field}.addresses"), list(&before.addresses), list(&after.addresses));
        self.compare(&format!("{field}.routes"), list(&before.routes), list(&after.routes));
        self.compare(&format!("{field}.labels"), labels(&before.labels), labels(&after.labels));
    }
}

fn list(parts: &[impl Display]) -> String {
    parts.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

fn labels(labels: &BTreeMap<String, String>) -> String {
    list(&labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>())
}

fn selectors(selectors: &[Selector]) -> String {
    list(&selectors.iter().map(|selector| format!("{{{}}}", labels(&selector.labels))).collect::<Vec<_>>())
}

fn topology(topology: Topology) -> &'static str {
    match topology {
        Topology::Full => "full",
    }
}

fn security(security: Security) -> &'static str {
    match security {
        Security::Encrypted => "encrypted",
        Security::Plain => "plain",
    }
}

fn offloads(offloads: &Offloads) -> String {
    list(&offloads.iter().collect::<Vec<_>>())
}

fn mtu(mtu: Option<Mtu>) -> String {
    mtu.map_or_else(|| "auto".to_owned(), |mtu| mtu.to_string())
}
