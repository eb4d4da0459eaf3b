//! Names, addresses, devices and tunnels. A value of these types is valid; parsing is the only way in.

mod link;
mod names;
mod offload;
mod remotes;
mod tunnel;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

pub use link::{Hearing, LinkState, LinkStatus, Why};
pub use names::{DeviceName, MeshName, NodeName, OperatorName, TunnelName, check_label, parse_label};
pub use offload::{Offload, OffloadState, Offloads};
pub use remotes::Remotes;
pub use tunnel::{
    AllowedPrefix, Desired, Device, Framing, Owner, Traffic, Tunnel, TunnelState, TunnelStatus,
};

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

#[cfg(test)]
mod tests;
