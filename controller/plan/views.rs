//! What each node is to have: a device for each of its meshes, and its tunnels.

use std::collections::BTreeMap;
use std::num::NonZeroU16;
use std::sync::Arc;

use ipnet::IpNet;

use super::underlay::Underlay;
use super::{KEEPALIVE, Member, Wanted};
use crate::controller::alloc::FromPlain;
use crate::controller::mesh::{Mesh, Security, Topology};
use crate::proto::command::TunnelSpec;
use crate::proto::convert::session::{DeviceSpec, device_item, tunnel_item};
use crate::proto::model::{AllowedPrefix, Framing, NodeName, PublicKey, TunnelName};
use crate::proto::session::{Item, Items};

/// What keys are taken into account.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Keys {
    /// Those that nodes have made.
    Made,
    /// Those that they are going to make, too: all look the same.
    ToCome,
}

impl Keys {
    /// Stands for the key of any node that makes its own.
    const ANY: [u8; 32] = [1; 32];

    fn of(self, member: &Member<'_>) -> Option<PublicKey> {
        match (self, member.wireguard) {
            (Self::Made, _) | (Self::ToCome, Some(_)) => member.key,
            (Self::ToCome, None) => Some(Self::ANY.into()),
        }
    }

    /// Whether a node sends probes, or is going to.
    fn probes(self, member: &Member<'_>) -> bool {
        match self {
            Self::Made => member.probes,
            Self::ToCome => member.wireguard.is_none(),
        }
    }
}

impl Wanted {
    /// What each node is to have; nodes of no mesh have nothing and are left out.
    pub fn views(&self) -> BTreeMap<NodeName, Items> {
        self.views_with(Keys::Made)
    }

    /// What each node is to have once all have made their keys.
    pub(super) fn views_to_come(&self) -> BTreeMap<NodeName, Items> {
        self.views_with(Keys::ToCome)
    }

    fn views_with(&self, keys: Keys) -> BTreeMap<NodeName, Items> {
        let mut views: BTreeMap<NodeName, Vec<Arc<Item>>> = BTreeMap::new();
        let underlay = Underlay::of(self);
        for mesh in self.meshes.values() {
            let mut parts = self.parts(mesh, &underlay);
            // A plain tunnel needs both ends to know where the other is, an encrypted one either.
            let can_have = |member: &Member<'_>| mesh.security == Security::Encrypted || !member.dials();
            parts.retain(|_, member| !member.addresses.is_empty() && can_have(member));
            match mesh.topology {
                Topology::Full => full(mesh, &parts, keys, &mut views),
            }
        }
        views.into_iter().map(|(node, items)| (node, Items::new(items))).collect()
    }
}

/// The tunnels to a node, as others have them.
struct Tunnels<'a> {
    peer: &'a NodeName,
    to: &'a Member<'a>,
    /// For those that send probes, where the node does.
    probed: Option<Styles>,
    /// For the others.
    unprobed: Option<Styles>,
}

/// The tunnels to a node, by what else others have.
struct Styles {
    /// For those that have an endpoint themselves; absent: it has no key yet.
    usual: Option<Arc<Item>>,
    /// For those that have none, where the peer has one: both keep the path open.
    kept_open: Option<Arc<Item>>,
    /// For those that had an unencrypted one: until both have made their keys, and until they have agreed on some.
    from_plain: Option<(Arc<Item>, Option<Arc<Item>>)>,
}

/// What the nodes of a mesh are that others have tunnels to.
#[derive(Debug, Clone, Copy)]
struct Crowd {
    some_dial: bool,
    all_probe: bool,
}

impl Styles {
    fn new(mesh: &Mesh, peer: &NodeName, to: &Member<'_>, keys: Keys, some_dial: bool, probed: bool) -> Self {
        let is_encrypted = mesh.security == Security::Encrypted;
        let framing = match is_encrypted {
            false => Some(Framing::Raw),
            true => keys.of(to).map(Framing::Wireguard),
        };
        // Whoever has no agent keeps the path open itself.
        let usual = Style::of(KEEPALIVE, is_encrypted && to.dials() && to.wireguard.is_none(), probed);
        let kept_open = Style::of(KEEPALIVE, is_encrypted, probed);
        let also_plain = Style { keepalive: None, also_plain: true, probed };
        let with = |style: Style| framing.and_then(|framing| tunnel_to(mesh, peer, to, framing, style));
        let from_plain = to.from_plain.and_then(|_| {
            let raw = tunnel_to(mesh, peer, to, Framing::Raw, also_plain)?;
            Some((raw, with(also_plain)))
        });
        let kept_open = (some_dial && !to.dials()).then(|| with(kept_open)).flatten();
        Self { usual: with(usual), kept_open, from_plain }
    }
}

impl<'a> Tunnels<'a> {
    fn new(mesh: &Mesh, peer: &'a NodeName, to: &'a Member<'a>, keys: Keys, crowd: Crowd) -> Self {
        let styles = |probed| Styles::new(mesh, peer, to, keys, crowd.some_dial, probed);
        let probes = keys.probes(to);
        Self {
            peer,
            to,
            probed: probes.then(|| styles(true)),
            unprobed: (!probes || !crowd.all_probe).then(|| styles(false)),
        }
    }

    /// The one that `own`, another node, has; `None`: none.
    fn of(&self, node: &NodeName, own: &Member<'_>, keys: Keys) -> Option<&Arc<Item>> {
        if self.to.wireguard.is_some_and(|wireguard| !wireguard.peers.contains(node)) {
            return None;
        }
        let probed = self.probed.as_ref().filter(|_| keys.probes(own));
        let styles = probed.or(self.unprobed.as_ref())?;
        match (own.dials(), self.to.dials()) {
            (true, true) => None,
            (true, false) => styles.kept_open.as_ref(),
            (false, true) => styles.usual.as_ref(),
            (false, false) => {
                // The one of both that has come less far says how far the pair is.
                let how_far = own.from_plain.zip(self.to.from_plain).map(|(own, to)| own.min(to));
                match (how_far, &styles.from_plain) {
                    (Some(FromPlain::Keyless), Some((raw, _))) if keys == Keys::Made => Some(raw),
                    (Some(FromPlain::Keyless | FromPlain::UnderWay), Some((_, sealed))) => sealed.as_ref(),
                    (Some(_) | None, _) => styles.usual.as_ref(),
                }
            }
        }
    }
}

/// What a tunnel has beside its peer and framing.
#[derive(Debug, Clone, Copy)]
struct Style {
    keepalive: Option<NonZeroU16>,
    also_plain: bool,
    probed: bool,
}

impl Style {
    fn of(keepalive: NonZeroU16, is_kept_open: bool, probed: bool) -> Self {
        Self { keepalive: is_kept_open.then_some(keepalive), also_plain: false, probed }
    }
}

/// Gives every node of a mesh that has an agent a tunnel to each other one, and to those without that name it.
fn full(
    mesh: &Mesh,
    parts: &BTreeMap<NodeName, Member<'_>>,
    keys: Keys,
    views: &mut BTreeMap<NodeName, Vec<Arc<Item>>>,
) {
    let crowd = Crowd {
        some_dial: parts.values().any(Member::dials),
        all_probe: parts.values().all(|member| keys.probes(member)),
    };
    let tunnels: Vec<Tunnels<'_>> =
        parts.iter().map(|(peer, to)| Tunnels::new(mesh, peer, to, keys, crowd)).collect();
    let key = (mesh.security == Security::Encrypted).then(|| mesh.name.clone());
    // A device without a tunnel does not exist; but where there is to be one, its key is made first.
    if key.is_none() && tunnels.len() < 2 {
        return;
    }
    for (node, member) in parts.iter().filter(|(_, member)| member.wireguard.is_none()) {
        let device = DeviceSpec { addresses: member.addresses.clone(), key: key.clone() };
        let items = views.entry(node.clone()).or_default();
        items.reserve(tunnels.len() + 1);
        items.push(Arc::new(device_item(&mesh.device, &device)));
        // Both are keys of one map, and a mesh has millions of pairs.
        let others = tunnels.iter().filter(|tunnel| !std::ptr::eq(tunnel.peer, node));
        items.extend(others.filter_map(|tunnel| tunnel.of(node, member, keys)).cloned());
    }
}

/// The name of a mesh's tunnels to a node.
pub fn tunnel_name(mesh: &Mesh, peer: &NodeName) -> Option<TunnelName> {
    // A tunnel's name is long enough for any of a mesh and a node.
    format!("{}.{peer}", mesh.name).parse().ok()
}

/// The tunnel to a node.
fn tunnel_to(
    mesh: &Mesh,
    peer: &NodeName,
    member: &Member<'_>,
    framing: Framing,
    Style { keepalive, also_plain, probed }: Style,
) -> Option<Arc<Item>> {
    Some(Arc::new(tunnel_item(&TunnelSpec {
        name: tunnel_name(mesh, peer)?,
        device: mesh.device.clone(),
        addresses: Vec::new(),
        mtu: mesh.mtu,
        // Of a peer that sends no probes nobody knows which of several answer.
        remote: match member.wireguard {
            Some(_) => member.endpoint.as_ref().map(|endpoint| endpoint.first().clone().into()),
            None => member.endpoint.clone(),
        },
        framing,
        keepalive,
        also_plain,
        probed,
        echo: member.wireguard.and_then(|_| member.addresses.first()).map(IpNet::addr),
        allowed_prefixes: member.prefixes().map(|prefix| AllowedPrefix { prefix, preference: 0 }).collect(),
        routes: member.routes.to_vec(),
        without: mesh.without.clone(),
    })))
}
