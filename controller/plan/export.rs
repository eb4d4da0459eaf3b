//! What a node without an agent has to know: its own addresses, and where its peers are.

use std::collections::BTreeSet;
use std::num::NonZeroU16;

use ipnet::IpNet;

use super::underlay::Underlay;
use super::{KEEPALIVE, Member, Wanted};
use crate::controller::alloc::is_without_key;
use crate::controller::mesh::{Mesh, MeshNode};
use crate::proto::model::{MeshName, Mtu, NodeName, PublicKey, Remote};

/// A node without an agent, as it is to be set up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Export {
    /// The node.
    pub node: NodeName,
    /// In which mesh.
    pub mesh: MeshName,
    /// The key by which its peers know it.
    pub public_key: PublicKey,
    /// Its overlay addresses with the prefix length of their network.
    pub addresses: Vec<IpNet>,
    /// The UDP port at which its peers look for it; absent: any.
    pub listen_port: Option<u16>,
    /// The largest packet; absent: what each path carries.
    pub mtu: Option<Mtu>,
    /// Those that it has tunnels to.
    pub peers: Vec<Peer>,
    /// Those that it is to have tunnels to and cannot yet, each with the reason.
    pub left_out: Vec<(NodeName, &'static str)>,
}

/// A peer of a node without an agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Its name.
    pub node: NodeName,
    /// Its key.
    pub public_key: PublicKey,
    /// Where it is reached; absent: it comes itself.
    pub endpoint: Option<Remote>,
    /// What is sent to it, and taken from it.
    pub allowed: Vec<IpNet>,
    /// How often something is sent to it, in seconds, so that the path stays open; absent: it need not.
    pub keepalive: Option<NonZeroU16>,
}

/// Why a node cannot be exported or get a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unfit {
    /// No mesh has it as one without an agent, or not that mesh.
    Unknown(NodeName),
    /// It is in more than one mesh, and none was named.
    Several(NodeName, Vec<MeshName>),
    /// It has no key.
    WithoutKey(NodeName),
    /// Its key is in the file.
    HasKey(NodeName),
    /// The overlay has no address left for it.
    WithoutAddress(NodeName),
}

impl Wanted {
    /// The mesh in which a node has no agent; only `mesh`, where one is named.
    ///
    /// # Errors
    /// Where there is none, or more than one.
    pub fn mesh_of_wireguard(&self, node: &NodeName, mesh: Option<&MeshName>) -> Result<&Mesh, Unfit> {
        let meshes = self
            .meshes
            .values()
            .filter(|known| mesh.is_none_or(|mesh| known.name == *mesh) && known.is_wireguard(node));
        match meshes.collect::<Vec<_>>()[..] {
            [] => Err(Unfit::Unknown(node.clone())),
            [mesh] => Ok(mesh),
            ref several => {
                Err(Unfit::Several(node.clone(), several.iter().map(|mesh| mesh.name.clone()).collect()))
            }
        }
    }

    /// The nodes without an agent that have a tunnel to `node`.
    pub fn wireguard_peers(&self, node: &NodeName) -> BTreeSet<&NodeName> {
        let nodes = self.meshes.values().flat_map(|mesh| &mesh.nodes);
        let is_peer = |(_, other): &(&NodeName, &MeshNode)| {
            other.wireguard.as_ref().is_some_and(|wireguard| wireguard.peers.contains(node))
        };
        nodes.filter(is_peer).map(|(name, _)| name).collect()
    }

    /// The key of a node without an agent: the file's, or the one that was made for it.
    pub(super) fn key_of_wireguard(&self, mesh: &Mesh, node: &NodeName) -> Option<PublicKey> {
        let wireguard = mesh.nodes.get(node)?.wireguard.as_ref()?;
        let made = || self.allocations.get(&mesh.name)?.nodes.get(node)?.key;
        wireguard.public_key.or_else(made)
    }

    /// The node without an agent that has a key of a mesh.
    pub fn wireguard_with_key(&self, mesh: &MeshName, key: PublicKey) -> Option<&NodeName> {
        let mesh = self.meshes.get(mesh)?;
        mesh.nodes.keys().find(|node| self.key_of_wireguard(mesh, node) == Some(key))
    }

    /// Gives a node without an agent a key that was made for it, in place of any before.
    ///
    /// # Errors
    /// Where the file has its key, or it has no address.
    pub fn give_key(&mut self, mesh: &MeshName, node: &NodeName, key: PublicKey) -> Result<(), Unfit> {
        let known = self.meshes.get(mesh).filter(|mesh| mesh.is_wireguard(node));
        let known = known.ok_or_else(|| Unfit::Unknown(node.clone()))?;
        if !is_without_key(known, node) {
            return Err(Unfit::HasKey(node.clone()));
        }
        let allocation = self.allocations.get_mut(mesh).and_then(|all| all.nodes.get_mut(node));
        let allocation = allocation.filter(|allocation| allocation.freed.is_none());
        allocation.ok_or_else(|| Unfit::WithoutAddress(node.clone()))?.key = Some(key);
        Ok(())
    }

    /// What a node without an agent has to know.
    ///
    /// # Errors
    /// Where it is none, or has no key or address.
    pub fn export(&self, node: &NodeName, mesh: Option<&MeshName>) -> Result<Export, Unfit> {
        self.exporter(self.mesh_of_wireguard(node, mesh)?).export(node)
    }

    /// The same as if it had been given a key.
    ///
    /// # Errors
    /// Where it is none, has its key in the file, or has no address.
    pub fn export_with(
        &self,
        node: &NodeName,
        mesh: Option<&MeshName>,
        key: PublicKey,
    ) -> Result<Export, Unfit> {
        let mesh = self.mesh_of_wireguard(node, mesh)?.name.clone();
        let mut wanted = self.clone();
        wanted.give_key(&mesh, node, key)?;
        wanted.export(node, Some(&mesh))
    }

    /// What exports the nodes of a mesh.
    pub(super) fn exporter<'a>(&'a self, mesh: &'a Mesh) -> Exporter<'a> {
        Exporter { wanted: self, mesh, underlay: Underlay::of(self), members: self.members(mesh) }
    }
}

/// A mesh with what all exports of its nodes rest on.
pub(super) struct Exporter<'a> {
    wanted: &'a Wanted,
    mesh: &'a Mesh,
    underlay: Underlay<'a>,
    members: BTreeSet<NodeName>,
}

impl Exporter<'_> {
    /// What a node without an agent has to know.
    pub(super) fn export(&self, node: &NodeName) -> Result<Export, Unfit> {
        let member = self.wanted.member(self.mesh, node, &self.underlay);
        let public_key = member.key.ok_or_else(|| Unfit::WithoutKey(node.clone()))?;
        if member.addresses.is_empty() {
            return Err(Unfit::WithoutAddress(node.clone()));
        }
        let (mut peers, mut left_out) = (Vec::new(), Vec::new());
        for peer in member.wireguard.iter().flat_map(|wireguard| &wireguard.peers) {
            let is_member = self.members.contains(peer);
            let known = is_member.then(|| self.wanted.member(self.mesh, peer, &self.underlay));
            match known.map_or(Err("it is no node of this mesh"), |known| as_peer(peer, &known, &member)) {
                Ok(known) => peers.push(known),
                Err(reason) => left_out.push((peer.clone(), reason)),
            }
        }
        Ok(Export {
            node: node.clone(),
            mesh: self.mesh.name.clone(),
            public_key,
            addresses: member.addresses,
            listen_port: member.endpoint.and_then(|endpoint| endpoint.first().port),
            mtu: self.mesh.mtu,
            peers,
            left_out,
        })
    }
}

/// A peer as `own` has it.
fn as_peer(node: &NodeName, peer: &Member<'_>, own: &Member<'_>) -> Result<Peer, &'static str> {
    let public_key = peer.key.ok_or("it has not made its key yet")?;
    if peer.addresses.is_empty() {
        return Err("it has no overlay address");
    }
    if peer.dials() && own.dials() {
        return Err("neither of them has an endpoint");
    }
    Ok(Peer {
        node: node.clone(),
        public_key,
        endpoint: peer.endpoint.as_ref().map(|endpoint| endpoint.first().clone()),
        allowed: peer.prefixes().collect(),
        keepalive: (peer.dials() || own.dials()).then_some(KEEPALIVE),
    })
}
