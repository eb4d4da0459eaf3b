//! Names, addresses, devices and tunnels. A value of these types is valid; parsing is the only way in.

mod link;
mod offload;
mod remotes;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

pub use link::{Hearing, LinkState, LinkStatus, Why};
pub use offload::{Offload, OffloadState, Offloads};
pub use remotes::Remotes;

/// Why a text is not a value of a type of this module, in words that follow the value.
///
/// "minion one" *has the character ' '*; *use letters, digits, '.', '_' and '-'*.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{problem}; {remedy}")]
pub struct Invalid {
    /// What is wrong with the value.
    pub problem: String,
    /// What to write instead.
    pub remedy: String,
}

impl Invalid {
    pub(crate) fn new(problem: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { problem: problem.into(), remedy: remedy.into() }
    }

    /// In one line: the field, its value where there is one, what is wrong, what to do.
    pub fn describe(&self, field: &str, value: &str) -> String {
        if value.is_empty() {
            return format!("{field} {self}");
        }
        format!("{field} {} {self}", shown(value))
    }
}

/// A value in quotes, cut where it is long.
pub(super) fn shown(value: &str) -> String {
    /// More of a value than this tells nobody anything, and floods logs.
    const SHOWN: usize = 100;
    let shown: String = value.chars().take(SHOWN).collect();
    let more = if shown.len() < value.len() { "…" } else { "" };
    format!("{shown:?}{more}")
}

const NAME_CHARACTERS: &str = "use letters, digits, '.', '_' and '-', and begin with a letter or digit";

fn check_name(text: &str, longest: usize) -> Result<(), Invalid> {
    if text.is_empty() {
        return Err(Invalid::new("is empty", format!("give a name of 1 to {longest} bytes")));
    }
    if text.len() > longest {
        return Err(Invalid::new(
            format!("is {} bytes long", text.len()),
            format!("use at most {longest} bytes"),
        ));
    }
    if let Some(c) = text.chars().find(|c| !(c.is_ascii_alphanumeric() || "._-".contains(*c))) {
        return Err(Invalid::new(format!("has the character {c:?}"), NAME_CHARACTERS));
    }
    if !text.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        return Err(Invalid::new("begins with a mark", NAME_CHARACTERS));
    }
    Ok(())
}

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident, $longest:expr, $reserved:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The most bytes that a name of this kind has.
            pub const LONGEST: usize = $longest;

            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = Invalid;

            fn from_str(text: &str) -> Result<Self, Invalid> {
                check_name(text, Self::LONGEST)?;
                let reserved: &[&str] = &$reserved;
                if reserved.contains(&text) {
                    return Err(Invalid::new("is a name that the kernel keeps for itself", "use another"));
                }
                Ok(Self(text.to_owned()))
            }
        }

        impl TryFrom<String> for $name {
            type Error = Invalid;

            fn try_from(text: String) -> Result<Self, Invalid> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name_type!(
    /// A tunnel's name, unique on its agent. Long enough for a mesh and a node of it, with a dot between.
    TunnelName,
    MeshName::LONGEST + 1 + NodeName::LONGEST,
    []
);
name_type!(
    /// The name of a host of the mesh, by default its host name.
    NodeName,
    63,
    []
);
name_type!(
    /// The name of someone who operates the mesh.
    OperatorName,
    63,
    []
);
name_type!(
    /// The name of a mesh, and by default of its device on every node.
    MeshName,
    15,
    ["all", "default"]
);
name_type!(
    /// A network interface's name: `IFNAMSIZ` of `linux/if.h` is 16 with the closing zero. `all` and `default` mean
    /// every and any interface below `/proc/sys/net`.
    DeviceName,
    15,
    ["all", "default"]
);

/// Refuses what cannot be a node's label: a key and a value of at most 63 letters, digits, '.', '_', '-' and '/'; the
/// value may be empty.
pub fn check_label(key: &str, value: &str) -> Result<(), Invalid> {
    let is_word = |text: &str| {
        text.len() <= NodeName::LONGEST
            && text.chars().all(|c| c.is_ascii_alphanumeric() || "._-/".contains(c))
    };
    if key.is_empty() || !is_word(key) || !is_word(value) { Err(no_label()) } else { Ok(()) }
}

/// Parses a label: `role=web`.
///
/// # Errors
/// What is wrong with it.
pub fn parse_label(text: &str) -> Result<(String, String), Invalid> {
    let (key, value) = text.split_once('=').ok_or_else(no_label)?;
    check_label(key, value)?;
    Ok((key.to_owned(), value.to_owned()))
}

fn no_label() -> Invalid {
    const FORM: &str =
        "write a label as role=web, in at most 63 letters, digits, '.', '_', '-' and '/' on each side";
    Invalid::new("is not a label", FORM)
}

/// The largest packet in bytes, without any framing: 68 (RFC 791) to 65,535.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct Mtu(u16);

impl Mtu {
    /// What every IPv4 host forwards without fragmentation, RFC 791.
    pub const LEAST: Self = Self(68);
    /// What every link of an IPv6 path carries, RFC 8200.
    pub const LEAST_V6: Self = Self(1280);
    /// What the legacy port means where a datagram names none.
    pub const ETHERNET: Self = Self(1500);
    /// The longest IP packet.
    pub const MOST: Self = Self(u16::MAX);

    /// The size in bytes.
    pub const fn get(self) -> u16 {
        self.0
    }

    /// The nearest MTU to `bytes`.
    pub fn clamped(bytes: u32) -> Self {
        let bytes = bytes.clamp(Self::LEAST.0.into(), Self::MOST.0.into());
        Self(u16::try_from(bytes).unwrap_or(u16::MAX))
    }
}

impl TryFrom<u32> for Mtu {
    type Error = Invalid;

    fn try_from(bytes: u32) -> Result<Self, Invalid> {
        match u16::try_from(bytes) {
            Ok(size) if size >= Self::LEAST.0 => Ok(Self(size)),
            Ok(_) | Err(_) => {
                Err(Invalid::new("is out of range", format!("use {} to {}", Self::LEAST, Self::MOST)))
            }
        }
    }
}

impl From<Mtu> for u32 {
    fn from(mtu: Mtu) -> Self {
        mtu.0.into()
    }
}

impl fmt::Display for Mtu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A host on the underlay, by address or by name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Host {
    /// An address that can be a peer's.
    Address(IpAddr),
    /// A name to be resolved, RFC 1123, in lower case.
    Name(String),
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Name(name) => f.write_str(name),
        }
    }
}

/// A peer on the underlay as the user writes it: a host, and its data port where it is not ours.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Remote {
    /// The peer's host.
    pub host: Host,
    /// The peer's data port; absent: the agent's own.
    pub port: Option<u16>,
}

const REMOTE_FORMS: &str = "write an address or a host name, with or without a port, as 172.100.1.2, \
                            [fd00::2]:5000 or minion-2:5000";

/// Whether `address` can be one host's: not unspecified, multicast or broadcast.
pub fn is_host_address(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => !(v4.is_unspecified() || v4.is_multicast() || v4.is_broadcast()),
        IpAddr::V6(v6) => !(v6.is_unspecified() || v6.is_multicast()),
    }
}

/// Whether `address` can be one host's on the underlay, whoever asks: a link-local one of IPv6 is another host's on
/// every link, RFC 4007 section 5.
pub fn is_underlay_address(address: IpAddr) -> bool {
    is_host_address(address) && !is_link_local(address)
}

fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local())
}

impl FromStr for Remote {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let of_address = |address: IpAddr, port| {
            let address = address.to_canonical();
            if is_link_local(address) {
                Err(Invalid::new("is another host's on every link", "use a global or unique local address"))
            } else if is_host_address(address) {
                Ok(Self { host: Host::Address(address), port })
            } else {
                Err(Invalid::new("is no host's address", REMOTE_FORMS))
            }
        };
        // With a zone, as RFC 4007 section 11 writes it: that is a name of this host alone.
        if let Some((address, _)) = text.trim_start_matches('[').split_once('%')
            && let Ok(address) = address.parse()
            && is_link_local(address)
        {
            return of_address(address, None);
        }
        if let Ok(address) = text.parse() {
            return of_address(address, None);
        }
        if let Ok(socket) = text.parse::<SocketAddr>() {
            return match socket.port() {
                0 => Err(Invalid::new("has the port 0", "use a port of 1 to 65535")),
                port => of_address(socket.ip(), Some(port)),
            };
        }
        let (host, port) = match text.split_once(':') {
            None => (text, None),
            Some((host, port)) => match port.parse::<u16>() {
                Ok(port) if port != 0 => (host, Some(port)),
                Ok(_) | Err(_) => {
                    return Err(Invalid::new("has no valid port behind ':'", REMOTE_FORMS));
                }
            },
        };
        let is_label = |label: &str| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        };
        // Four numbers with a slip are a mistyped address, not a name to ask the resolver for.
        let is_numeric = host.bytes().all(|b| b.is_ascii_digit() || b == b'.');
        if host.len() > 253 || is_numeric || !host.split('.').all(is_label) {
            return Err(Invalid::new("is neither an address nor a host name", REMOTE_FORMS));
        }
        Ok(Self { host: Host::Name(host.to_ascii_lowercase()), port })
    }
}

impl TryFrom<String> for Remote {
    type Error = Invalid;

    fn try_from(text: String) -> Result<Self, Invalid> {
        text.parse()
    }
}

impl From<Remote> for String {
    fn from(remote: Remote) -> Self {
        remote.to_string()
    }
}

impl fmt::Display for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.host, self.port) {
            (host, None) => host.fmt(f),
            (Host::Address(address), Some(port)) => SocketAddr::new(*address, port).fmt(f),
            (Host::Name(name), Some(port)) => write!(f, "{name}:{port}"),
        }
    }
}

/// A peer's WireGuard public key: a Curve25519 point, RFC 7748.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PublicKey([u8; 32]);

impl PublicKey {
    /// The point.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// From the point as it crosses the wire; `None` where that is none.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        // With zero every secret is zero (RFC 7748 section 6.1).
        <[u8; 32]>::try_from(bytes).ok().filter(|point| *point != [0; 32]).map(Self)
    }
}

impl From<[u8; 32]> for PublicKey {
    fn from(point: [u8; 32]) -> Self {
        Self(point)
    }
}

impl FromStr for PublicKey {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        const REMEDY: &str = "give what `wg pubkey` prints";
        let bytes = STANDARD.decode(text).ok().filter(|bytes| bytes.len() == 32);
        let bytes = bytes.ok_or_else(|| Invalid::new("is not 32 bytes in base64", REMEDY))?;
        Self::from_bytes(&bytes).ok_or_else(|| Invalid::new("is no host's key", REMEDY))
    }
}

impl TryFrom<String> for PublicKey {
    type Error = Invalid;

    fn try_from(text: String) -> Result<Self, Invalid> {
        text.parse()
    }
}

impl From<PublicKey> for String {
    fn from(key: PublicKey) -> Self {
        key.to_string()
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&STANDARD.encode(self.0))
    }
}

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

/// The networks in which an agent takes addresses and routes, unless it is started with others: private networks
/// (RFC 1918), shared address space (RFC 6598) and unique local addresses (RFC 4193).
pub const ACCEPTED: [&str; 5] =
    ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7"];

/// Parses a network: an address without host bits, and a prefix length.
pub fn parse_network(text: &str) -> Result<IpNet, Invalid> {
    const FORM: &str = "write a network as 192.168.2.0/24 or fd00:2::/64";
    let network: IpNet = text.parse().map_err(|_| Invalid::new("is not a network", FORM))?;
    if network.trunc() != network {
        return Err(Invalid::new("has bits behind its prefix length", format!("write {}", network.trunc())));
    }
    Ok(network)
}

/// Parses a network whose host bits mean nothing, as command lines have it: 172.100.1.1/16 is 172.100.0.0/16.
pub fn parse_prefix(text: &str) -> Result<IpNet, Invalid> {
    if let Ok(address) = text.parse::<IpAddr>() {
        let alone = IpNet::from(address);
        return Err(Invalid::new(
            "has no prefix length",
            format!("write {alone} for this address alone, or the network that it lies in"),
        ));
    }
    let network: IpNet = text
        .parse()
        .map_err(|_| Invalid::new("is not a network", "write one as 172.100.0.0/16 or fd00:100::/32"))?;
    Ok(network.trunc())
}

/// Parses a device's address: a host's address, and the prefix length of its network.
pub fn parse_interface_address(text: &str) -> Result<IpNet, Invalid> {
    const FORM: &str = "write an address with its prefix length, as 10.0.1.1/30 or fd00:1::1/64";
    let network: IpNet = text.parse().map_err(|_| {
        if text.parse::<IpAddr>().is_ok() {
            Invalid::new("has no prefix length", FORM)
        } else {
            Invalid::new("is not an address", FORM)
        }
    })?;
    check_interface_address(network)?;
    Ok(network)
}

/// Refuses the addresses of a network that no interface can have: its own, its broadcast, group addresses.
pub fn check_interface_address(network: IpNet) -> Result<(), Invalid> {
    const OTHER: &str = "give the device an address of a single host";
    let address = network.addr();
    if !is_host_address(address) || address.is_loopback() {
        return Err(Invalid::new("is no single host's address", OTHER));
    }
    // RFC 3021: both addresses of a /31 are hosts'. IPv6 has no broadcast, and its lowest address is anycast.
    let IpNet::V4(v4) = network else { return Ok(()) };
    if v4.prefix_len() < 31 && v4.addr() == v4.network() {
        return Err(Invalid::new("is the address of the network itself", OTHER));
    }
    if v4.prefix_len() < 31 && v4.addr() == v4.broadcast() {
        return Err(Invalid::new("is the network's broadcast address", OTHER));
    }
    Ok(())
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

#[cfg(test)]
mod tests;
