//! What each node is to have: a device for each of its meshes, and its tunnels.

use std::collections::BTreeMap;
use std::num::NonZeroU16;
use std::sync::Arc;

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
    /// For those that have an endpoint themselves; absent: it has no key yet.
    usual: Option<Arc<Item>>,
    /// For those that have none, where the peer has one: both keep the path open.
    kept_open: Option<Arc<Item>>,
    /// For those that had an unencrypted one: until both have made their keys, and until they have agreed on some.
    from_plain: Option<(Arc<Item>, Option<Arc<Item>>)>,
}

impl<'a> Tunnels<'a> {
    fn new(mesh: &Mesh, peer: &'a NodeName, to: &'a Member<'a>, keys: Keys, some_dial: bool) -> Self {
        let is_encrypted = mesh.security == Security::Encrypted;
        let framing = match is_encrypted {
            false => Some(Framing::Raw),
            true => keys.of(to).map(Framing::Wireguard),
        };
        // Whoever has no agent keeps the path open itself.
        let usual = Style::of(KEEPALIVE, is_encrypted && to.dials() && to.wireguard.is_none());
        let kept_open = Style::of(KEEPALIVE, is_encrypted);
        let with = |style: Style| framing.and_then(|framing| tunnel_to(mesh, peer, to, framing, style));
        let from_plain = to.from_plain.and_then(|_| {
            let raw = tunnel_to(mesh, peer, to, Framing::Raw, Style::ALSO_PLAIN)?;
            Some((raw, with(Style::ALSO_PLAIN)))
        });
        Self {
            peer,
            to,
            usual: with(usual),
            kept_open: (some_dial && !to.dials()).then(|| with(kept_open)).flatten(),
            from_plain,
        }
    }

    /// The one that `own`, another node, has; `None`: none.
    fn of(&self, node: &NodeName, own: &Member<'_>, keys: Keys) -> Option<&Arc<Item>> {
        if self.to.wireguard.is_some_and(|wireguard| !wireguard.peers.contains(node)) {
            return None;
        }
        match (own.dials(), self.to.dials()) {
            (true, true) => None,
            (true, false) => self.kept_open.as_ref(),
            (false, true) => self.usual.as_ref(),
            (false, false) => {
                // The one of both that has come less far says how far the pair is.
                let how_far = own.from_plain.zip(self.to.from_plain).map(|(own, to)| own.min(to));
                match (how_far, &self.from_plain) {
                    (Some(FromPlain::Keyless), Some((raw, _))) if keys == Keys::Made => Some(raw),
                    (Some(FromPlain::Keyless | FromPlain::UnderWay), Some((_, sealed))) => sealed.as_ref(),
                    (Some(_) | None, _) => self.usual.as_ref(),
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
}

impl Style {
    const ALSO_PLAIN: Self = Self { keepalive: None, also_plain: true };

    fn of(keepalive: NonZeroU16, is_kept_open: bool) -> Self {
        Self { keepalive: is_kept_open.then_some(keepalive), also_plain: false }
    }
}

/// Gives every node of a mesh that has an agent a tunnel to each other one, and to those without that name it.
fn full(
    mesh: &Mesh,
    parts: &BTreeMap<NodeName, Member<'_>>,
    keys: Keys,
    views: &mut BTreeMap<NodeName, Vec<Arc<Item>>>,
) {
    let some_dial = parts.values().any(Member::dials);
    let tunnels: Vec<Tunnels<'_>> =
        parts.iter().map(|(peer, to)| Tunnels::new(mesh, peer, to, keys, some_dial)).collect();
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
    Style { keepalive, also_plain }: Style,
) -> Option<Arc<Item>> {
    Some(Arc::new(tunnel_item(&TunnelSpec {
        name: tunnel_name(mesh, peer)?,
        device: mesh.device.clone(),
        addresses: Vec::new(),
        mtu: mesh.mtu,
        remote: member.endpoint.clone(),
        framing,
        keepalive,
        also_plain,
        allowed_prefixes: member.prefixes().map(|prefix| AllowedPrefix { prefix, preference: 0 }).collect(),
        routes: member.routes.to_vec(),
        without: mesh.without.clone(),
    })))
}
