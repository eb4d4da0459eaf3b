//! Devices and tunnels: as they are wanted, and as they are.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{
    DeviceName, LinkStatus, MeshName, Mtu, OffloadState, Offloads, PublicKey, Remote, Remotes, TunnelName,
};

/// How packets are laid out in a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Framing {
    /// The IP packet, unencrypted.
    Raw,
    /// Four bytes of packet information (`struct tun_pi` of `linux/if_tun.h`), then the IP packet, unencrypted.
    Pi,
    /// The WireGuard protocol, with the peer's key.
    Wireguard(PublicKey),
}

impl fmt::Display for Framing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Raw => "RAW",
            Self::Pi => "PI",
            Self::Wireguard(_) => "WIREGUARD",
        })
    }
}

/// What may be sent to a peer, and what may come from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct AllowedPrefix {
    /// The network, without host bits.
    pub prefix: IpNet,
    /// Of the tunnels of a device that share a prefix, the lowest preference sends.
    pub preference: u32,
}

/// Who wants a device or tunnel, and so who may remove it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Owner {
    /// Added on this host, over gRPC or the legacy port.
    Local,
    /// Wanted by the controller.
    Controller,
}

/// A tun interface as it is wanted. Its MTU is the best of its tunnels.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// Overlay addresses with the prefix length of their network.
    pub addresses: Vec<IpNet>,
    /// The mesh whose key its encrypted tunnels use; absent: the host's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<MeshName>,
    /// Who made it.
    pub owner: Owner,
}

/// The relation of one device to one peer, as it is wanted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tunnel {
    /// The device that carries its packets.
    pub device: DeviceName,
    /// The largest packet; absent: what the path carries.
    pub mtu: Option<Mtu>,
    /// Where the peer is on the underlay. Absent: it comes first, which only that of an encrypted tunnel can.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote: Option<Remotes>,
    /// How packets are laid out in a datagram.
    pub framing: Framing,
    /// How often at least something is sent to the peer of an encrypted tunnel, in seconds; absent: nothing is where there
    /// is nothing to send.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keepalive: Option<NonZeroU16>,
    /// While it changes from unencrypted to encrypted: packets are taken unencrypted, too, and sent so until keys have been
    /// agreed on with the peer.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub also_plain: bool,
    /// Whether both ends send each other probes.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub probed: bool,
    /// An overlay address of a peer that sends no probes, which is asked by an ICMP echo now and then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub echo: Option<IpAddr>,
    /// What may be sent to the peer and come from it. Empty: all, and the device has no other tunnel.
    pub allowed_prefixes: Vec<AllowedPrefix>,
    /// Kernel routes to install on the device.
    pub routes: Vec<IpNet>,
    /// What is not to be used for its packets, nor for those that share its device or the data port.
    #[serde(default, skip_serializing_if = "Offloads::is_empty")]
    pub without: Offloads,
    /// Who wants it.
    pub owner: Owner,
}

impl Tunnel {
    /// Whether packets are sent encrypted to a peer that has agreed on keys.
    pub fn is_encrypted(&self) -> bool {
        matches!(self.framing, Framing::Wireguard(_))
    }

    /// Whether packets are taken unencrypted.
    pub fn takes_plain(&self) -> bool {
        self.also_plain || !self.is_encrypted()
    }
}

/// All devices and tunnels that an agent wants. Every tunnel's device is among the devices, and no device is
/// without a tunnel.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Desired {
    /// Devices by name.
    pub devices: BTreeMap<DeviceName, Device>,
    /// Tunnels by name.
    pub tunnels: BTreeMap<TunnelName, Tunnel>,
    /// The tunnels' names, the longest unchanged first: of two that claim the same, the first keeps it.
    pub seniority: Vec<TunnelName>,
}

impl Desired {
    /// Sets a tunnel and its device, as the newest.
    pub fn set(&mut self, name: &TunnelName, tunnel: Tunnel, device: Device) {
        self.remove(name);
        self.devices.insert(tunnel.device.clone(), device);
        self.tunnels.insert(name.clone(), tunnel);
        self.seniority.push(name.clone());
    }

    /// Makes the tunnels that `is_last` names junior to all others; among themselves they keep their order.
    pub fn rank_last(&mut self, is_last: impl Fn(&TunnelName) -> bool) {
        self.seniority.sort_by_key(is_last);
    }

    /// Removes a tunnel, and its device with the last tunnel on it. Returns whether there was one.
    pub fn remove(&mut self, name: &TunnelName) -> bool {
        let Some(tunnel) = self.tunnels.remove(name) else { return false };
        self.seniority.retain(|other| other != name);
        if self.tunnels_on(&tunnel.device).next().is_none() {
            self.devices.remove(&tunnel.device);
        }
        true
    }

    /// Keeps the tunnels that `stays` names, and the devices that they are on.
    pub fn retain(&mut self, mut stays: impl FnMut(&TunnelName, &Tunnel) -> bool) {
        self.tunnels.retain(|name, tunnel| stays(name, tunnel));
        self.seniority.retain(|name| self.tunnels.contains_key(name));
        let used: BTreeSet<_> = self.tunnels.values().map(|tunnel| &tunnel.device).collect();
        self.devices.retain(|name, _| used.contains(name));
    }

    /// Whether every tunnel has its device and its seniority, and nothing is left over.
    pub fn is_consistent(&self) -> bool {
        let ranked: BTreeSet<_> = self.seniority.iter().collect();
        let used: BTreeSet<_> = self.tunnels.values().map(|tunnel| &tunnel.device).collect();
        ranked.len() == self.seniority.len()
            && ranked.into_iter().eq(self.tunnels.keys())
            && used.into_iter().eq(self.devices.keys())
    }

    /// The tunnels on `device`, by name.
    pub fn tunnels_on<'a>(
        &'a self,
        device: &'a DeviceName,
    ) -> impl Iterator<Item = (&'a TunnelName, &'a Tunnel)> {
        self.tunnels.iter().filter(move |(_, tunnel)| tunnel.device == *device)
    }
}

/// Whether a tunnel carries packets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TunnelState {
    /// Ready, nothing received yet. The words say what is awaited where it is not a first packet.
    Waiting(Option<String>),
    /// Packets have been received.
    Passing,
    /// Something that it needs cannot be had, in words what; it is tried again.
    Failed(String),
}

/// One direction of a tunnel since the agent started.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Packets carried whole to the other side.
    pub packets: u64,
    /// Their bytes, without any framing.
    pub bytes: u64,
    /// Packets not carried, by reason; only reasons with a packet.
    pub drops: BTreeMap<&'static str, u64>,
}

/// A tunnel as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TunnelStatus {
    /// Its name.
    pub name: TunnelName,
    /// What is wanted.
    pub tunnel: Tunnel,
    /// Its device's addresses.
    pub addresses: Vec<IpNet>,
    /// Whether it carries packets.
    pub state: TunnelState,
    /// Where datagrams go, once the remote is resolved.
    pub endpoint: Option<SocketAddr>,
    /// The preferred remote, where another one is in use.
    pub preferred: Option<Remote>,
    /// The largest packet that the device takes.
    pub device_mtu: Option<Mtu>,
    /// The largest packet that one datagram to the peer carries.
    pub path_mtu: Option<Mtu>,
    /// From this host to the peer.
    pub sent: Traffic,
    /// From the peer to this host.
    pub received: Traffic,
    /// When the last packet was received, as time since the Unix epoch.
    pub last_received: Option<std::time::Duration>,
    /// When the keys were agreed on by which its packets are encrypted now, as time since the Unix epoch.
    pub last_handshake: Option<std::time::Duration>,
    /// Of a probed tunnel: how the hosts that it joins hear each other.
    pub link: Option<LinkStatus>,
    /// Every offload, with why it is not in use where it is not.
    pub offloads: Vec<OffloadState>,
    /// What its owner should know.
    pub notes: Vec<String>,
}
