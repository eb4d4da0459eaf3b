//! What an agent tries when somebody asks what is wrong between two nodes.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use crate::proto::model::TunnelName;

/// How many tunnels are examined at once at most.
pub const EXAMINED: usize = 8;

/// Asks an agent to try itself how it reaches the peers of tunnels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Examination {
    /// Its number, which the answer carries; not 0.
    pub request: u64,
    /// At most [`EXAMINED`].
    pub tunnels: Vec<TunnelName>,
}

/// What an agent has found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Findings {
    /// The number of the examination.
    pub request: u64,
    /// What is wrong with the host itself.
    pub host: Vec<HostFinding>,
    /// Of the tunnels that it has, how it reaches their peers.
    pub peers: BTreeMap<TunnelName, PeerFinding>,
}

/// Something that is wrong with a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostFinding {
    /// What it is about.
    pub subject: HostSubject,
    /// What was found, in words.
    pub found: String,
}

/// What of a host keeps subnets behind it from being reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum HostSubject {
    /// Forwarding of IPv4 is off.
    ForwardingV4,
    /// Forwarding of IPv6 is off.
    ForwardingV6,
    /// The reverse-path filter is strict.
    ReversePath,
    /// A firewall drops what is forwarded.
    Firewall,
}

/// How a host reaches the peer of a tunnel.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PeerFinding {
    /// Where datagrams go; absent: nobody knows where the peer is.
    pub endpoint: Option<SocketAddr>,
    /// What became of ICMP echoes to it on the underlay; absent: none was sent.
    pub ping: Option<Ping>,
    /// What became of a datagram to its data port; absent: none was sent.
    pub port: Option<Port>,
    /// An overlay address of the peer's, or one behind it, whose packets do not go into the tunnel's device, and the interface
    /// by which they leave; empty: there is no route.
    pub strayed: Option<(IpAddr, String)>,
    /// Somebody at the peer's address begins handshakes with another key than the tunnel has, or for another key than this
    /// host's.
    pub other_key: bool,
}

/// What became of ICMP echoes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ping {
    /// One was answered.
    Answered,
    /// None was.
    Silent,
    /// The host or a router says that there is no way, in these words.
    NoWay(String),
}

/// What became of a datagram to a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Port {
    /// Nothing says that nobody listens there.
    OpenOrSilent,
    /// The host says that nobody does.
    Refused,
}
