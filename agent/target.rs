//! From what is wanted, and what is known of the host and its paths, to what the kernel and the data path should
//! hold, and which tunnels cannot be had.
//!
//! The same rules judge a new command and a restored state: of two tunnels that claim the same thing the senior
//! keeps it, and the other is at fault.

mod claims;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;

use ipnet::IpNet;

use self::claims::{Claims, Foreign, claim};
use crate::agent::reconcile::{Actual, Route};
use crate::agent::wireguard::message;
use crate::proto::command::{CommandError, ErrorKind, Field};
use crate::proto::model::{
    AllowedPrefix, Desired, Device, DeviceName, Framing, Host, Invalid, MeshName, Mtu, Offload, Offloads,
    Owner, PublicKey, Remote, Tunnel, TunnelName,
};

/// Bytes of an IPv4 and a UDP header.
const OVERHEAD_V4: u32 = 28;
/// Bytes of an IPv6 and a UDP header.
const OVERHEAD_V6: u32 = 48;
/// Bytes of `struct tun_pi` of `linux/if_tun.h`.
const OVERHEAD_PI: u32 = 4;
/// Bytes of an encrypted packet's header and tag.
const OVERHEAD_SEALED: u32 = message::OVERHEAD as u32;

/// What this agent was started with.
#[derive(Debug, Clone)]
pub struct Policy {
    /// The agent's UDP data port, and that of remotes that name none.
    pub data_port: u16,
    /// The key by which the peers of encrypted tunnels know this host.
    pub public_key: PublicKey,
    /// The networks in which overlay addresses, allowed prefixes and routes may lie.
    pub accept: Vec<IpNet>,
    /// What is not used for any tunnel, and why: it was switched off, or this host cannot do it.
    pub without: BTreeMap<Offload, String>,
}

/// What is known beside the wanted state.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// The interfaces and routes of the host.
    pub actual: Actual,
    /// Host names that have been asked for, and what came of it.
    pub resolved: BTreeMap<String, Result<IpAddr, String>>,
    /// The last known MTU of the route to each endpoint, in bytes.
    pub path_mtus: BTreeMap<IpAddr, u32>,
    /// Where controllers are.
    pub controllers: BTreeSet<IpAddr>,
    /// This host's keys by mesh, and why one cannot be had.
    pub keys: BTreeMap<MeshName, Result<PublicKey, String>>,
    /// Where the peers of encrypted tunnels have shown to be, if it is not where they were said to be.
    pub roamed: BTreeMap<TunnelName, IpAddr>,
    /// The largest packet of the underlay that was found to come through to the peers of probed tunnels, in bytes.
    pub carried: BTreeMap<TunnelName, u16>,
    /// Of tunnels with several remotes, the position of the one in use; absent: the preferred one, 0.
    pub in_use: BTreeMap<TunnelName, usize>,
    /// Whether the controller has another agent of this name, which is alive.
    pub is_second: bool,
}

impl Facts {
    /// Whether a tunnel has its place and carries nothing: two hosts with one key would take each other's packets from the
    /// peer, which sends to whichever it heard last.
    pub fn rests(&self, tunnel: &Tunnel) -> bool {
        self.is_second && tunnel.owner == Owner::Controller && tunnel.is_encrypted()
    }
}

/// What the kernel and the data path should hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Target {
    /// The devices to have.
    pub devices: BTreeMap<DeviceName, TargetDevice>,
    /// The routes to have.
    pub routes: BTreeSet<Route>,
    /// How packets go, by device; only devices that are to be had.
    pub forwarding: Forwarding,
    /// Why tunnels cannot be had.
    pub faults: BTreeMap<TunnelName, CommandError>,
    /// Where each tunnel's peer was said to be, as far as it is known; of several places the one in use.
    pub endpoints: BTreeMap<TunnelName, SocketAddr>,
    /// All places of each tunnel's peer that are known, where it has several.
    pub places_of: BTreeMap<TunnelName, Vec<Located>>,
    /// The position of the remote in use of those tunnels.
    pub in_use: BTreeMap<TunnelName, usize>,
    /// Where it is: there, or where it has shown to be.
    pub places: BTreeMap<TunnelName, IpAddr>,
    /// The largest packet that one datagram to the peer carries.
    pub path_mtus: BTreeMap<TunnelName, Mtu>,
}

/// A device to have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetDevice {
    /// The best of its tunnels'.
    pub mtu: Mtu,
    /// Its addresses.
    pub addresses: BTreeSet<IpNet>,
}

/// How packets go between devices and peers.
pub type Forwarding = BTreeMap<DeviceName, ForwardingDevice>;

/// How the packets of one device go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForwardingDevice {
    /// The device's own addresses: no packet may come from a peer with one of them as its source.
    pub addresses: BTreeSet<IpAddr>,
    /// The mesh whose key its encrypted tunnels use; absent: the host's own.
    pub key: Option<MeshName>,
    /// What is not to be used on the device.
    pub without: Offloads,
    /// Whether there are tunnels that rest, and of which nobody is told that they go.
    pub rests: bool,
    /// Its tunnels by name.
    pub tunnels: BTreeMap<TunnelName, ForwardingTunnel>,
}

/// How the packets of one tunnel go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForwardingTunnel {
    /// Where its datagrams go; absent: where its peer shows to be.
    pub endpoint: Option<SocketAddr>,
    /// Whether only the endpoint's port may send, or every port of its address.
    pub exact_port: bool,
    /// Where else its peer is, in the order of preference.
    pub others: Vec<Other>,
    /// How packets are laid out in a datagram, and for whom they are encrypted.
    pub framing: Framing,
    /// How often at least something is sent to the peer of an encrypted tunnel, in seconds.
    pub keepalive: Option<NonZeroU16>,
    /// Whether packets of an encrypted tunnel are taken unencrypted, too, and sent so until there are keys.
    pub also_plain: bool,
    /// Whether both ends send each other probes.
    pub probed: bool,
    /// Who is asked by an ICMP echo, if that is done: an address of the device, and one of the peer.
    pub echo: Option<(IpAddr, IpAddr)>,
    /// The way to the peer, where it is known.
    pub underlay: Option<Underlay>,
    /// The largest packet that is sent whole.
    pub mtu: Mtu,
    /// The largest packet that TCP connections through the tunnel are told of.
    pub tcp_mtu: Mtu,
    /// What is not to be used for its datagrams.
    pub without: Offloads,
    /// What may be sent and received; empty: all.
    pub allowed_prefixes: Vec<AllowedPrefix>,
}

/// A place of a peer that is not the one in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Other {
    /// Where it is.
    pub address: SocketAddr,
    /// As that of the endpoint.
    pub exact_port: bool,
    /// Whether it is preferred to the one in use.
    pub is_preferred: bool,
}

/// A remote of a tunnel whose address is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Located {
    /// Its position among the tunnel's.
    pub position: usize,
    /// Where it is.
    pub address: SocketAddr,
    /// Whether it names the port.
    pub exact_port: bool,
}

impl Located {
    /// The part of a command that says it.
    fn field(&self) -> Field {
        self.position.checked_sub(1).map_or(Field::Remote, Field::MoreRemotes)
    }
}

/// The way to a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Underlay {
    /// Whether it is IPv4.
    pub is_v4: bool,
    /// The largest packet of the underlay that is ever to be sent, in bytes, IP header included: what the route carries, or what
    /// a packet of the tunnel's own `mtu` makes.
    pub ceiling: u16,
    /// What goes around a packet, in bytes.
    pub overhead: u16,
}

/// Works out the target.
pub fn build(desired: &Desired, facts: &Facts, policy: &Policy) -> Target {
    let foreign = Foreign::of(facts);
    let mut claims = Claims::default();
    let mut target = Target::default();
    for name in &desired.seniority {
        let Some(tunnel) = desired.tunnels.get(name) else { continue };
        let Some(device) = desired.devices.get(&tunnel.device) else { continue };
        let Places { all, in_use } = locate((name, tunnel), facts, policy);
        // What does not resolve now may do so later: until then the tunnel keeps what else is its own.
        let (in_use, unresolved) = match in_use {
            Ok(in_use) => (in_use, None),
            Err(fault) => (None, Some(fault)),
        };
        let endpoint = in_use.map(|in_use| in_use.address);
        if let Some(endpoint) = endpoint {
            target.endpoints.insert(name.clone(), endpoint);
        }
        if let Some(in_use) =
            in_use.filter(|_| tunnel.remote.as_ref().is_some_and(|remote| remote.count() > 1))
        {
            target.places_of.insert(name.clone(), all.clone());
            target.in_use.insert(name.clone(), in_use.position);
        }
        let roamed = facts.roamed.get(name).filter(|_| tunnel.is_encrypted());
        if let Some(at) = roamed.copied().or(endpoint.map(|endpoint| endpoint.ip())) {
            target.places.insert(name.clone(), at);
        }
        let (keys, unkeyed) = match tunnel.framing {
            Framing::Raw | Framing::Pi => (None, None),
            Framing::Wireguard(peer) => match own_key((&tunnel.device, device), facts, policy) {
                Ok(own) => (own.map(|own| Keys { own, peer }), None),
                Err(fault) => (None, Some(fault)),
            },
        };
        let wish = Wish { name, tunnel, device, in_use, places: &all, keys };
        match (claim(&mut claims, &foreign, policy, &wish), unresolved.or(unkeyed)) {
            (Ok(()), None) => place(&mut target, facts, policy, &wish),
            (Err(fault), _) | (Ok(()), Some(fault)) => {
                target.faults.insert(name.clone(), fault);
            }
        }
    }
    for device in target.forwarding.values_mut() {
        // One device has the same offloads for all.
        device.without = device.tunnels.values().flat_map(|tunnel| tunnel.without.iter().copied()).collect();
    }
    route(&mut target, desired);
    target
}

/// Where the peer of a tunnel was said to be.
struct Places {
    /// The remotes whose addresses are known, each address once.
    all: Vec<Located>,
    /// The one in use; `None` while its host name is not resolved, and where nobody has said it.
    in_use: Result<Option<Located>, CommandError>,
}

/// Where a tunnel's peer was said to be. Of a remote that does not resolve the next one is used.
fn locate((name, tunnel): (&TunnelName, &Tunnel), facts: &Facts, policy: &Policy) -> Places {
    let mut places = Places { all: Vec::new(), in_use: Ok(None) };
    let Some(remotes) = &tunnel.remote else { return places };
    let mut fault = None;
    let mut pending = BTreeSet::new();
    for (position, remote) in remotes.iter().enumerate() {
        match resolved(remote, facts) {
            Ok(Some(address)) => {
                let address = SocketAddr::new(address, remote.port.unwrap_or(policy.data_port));
                if places.all.iter().all(|known| known.address != address) {
                    places.all.push(Located { position, address, exact_port: remote.port.is_some() });
                }
            }
            Ok(None) => _ = pending.insert(position),
            Err(why) => _ = fault.get_or_insert(why),
        }
    }
    let first = facts.in_use.get(name).copied().unwrap_or(0);
    let mut turn = (first..remotes.count()).chain(0..first.min(remotes.count()));
    let at = |position: usize| places.all.iter().find(|known| known.position == position).copied();
    let in_use = turn.find_map(|position| match at(position) {
        Some(known) => Some(Some(known)),
        None => pending.contains(&position).then_some(None),
    });
    places.in_use = match (in_use, fault) {
        (Some(in_use), _) => Ok(in_use),
        (None, Some(fault)) => Err(fault),
        (None, None) => Ok(None),
    };
    places
}

/// The address of a remote; `None` while its host name is not resolved.
fn resolved(remote: &Remote, facts: &Facts) -> Result<Option<IpAddr>, CommandError> {
    match &remote.host {
        Host::Address(address) => Ok(Some(*address)),
        Host::Name(host) => match facts.resolved.get(host) {
            None => Ok(None),
            Some(Ok(address)) => Ok(Some(*address)),
            Some(Err(reason)) => Err(CommandError::new(
                ErrorKind::Unavailable,
                Field::Remote,
                remote,
                Invalid::new(
                    format!("does not resolve ({reason})"),
                    "check the name, or give the address; it is tried again",
                ),
            )),
        },
    }
}

/// The key by which the peers of a device's encrypted tunnels know this host; `None` while it is being made.
fn own_key(
    (name, device): (&DeviceName, &Device),
    facts: &Facts,
    policy: &Policy,
) -> Result<Option<PublicKey>, CommandError> {
    let Some(mesh) = &device.key else { return Ok(Some(policy.public_key)) };
    match facts.keys.get(mesh) {
        None => Ok(None),
        Some(Ok(key)) => Ok(Some(*key)),
        Some(Err(reason)) => Err(CommandError::new(
            ErrorKind::Unavailable,
            Field::Device,
            name,
            Invalid::new(
                format!("has no key for mesh {mesh} ({reason})"),
                "mend what stands in the way; it is tried again",
            ),
        )),
    }
}

/// A tunnel as it is to be judged.
struct Wish<'a> {
    name: &'a TunnelName,
    tunnel: &'a Tunnel,
    device: &'a Device,
    /// Where its peer was said to be, as far as it is known: of several places the one in use.
    in_use: Option<Located>,
    /// All places of its peer that are known.
    places: &'a [Located],
    /// The keys of an encrypted one, as far as they are known.
    keys: Option<Keys>,
}

/// The keys of an encrypted tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Keys {
    own: PublicKey,
    peer: PublicKey,
}

/// Puts a tunnel that has its claims on its device.
fn place(target: &mut Target, facts: &Facts, policy: &Policy, wish: &Wish<'_>) {
    let &Wish { name, tunnel, device, in_use, places, keys } = wish;
    let endpoint = in_use.map(|in_use| in_use.address);
    let framing = match tunnel.framing {
        Framing::Raw => 0,
        Framing::Pi => OVERHEAD_PI,
        Framing::Wireguard(_) => OVERHEAD_SEALED,
    };
    let at = target.places.get(name);
    // While it is not known where the peer is, it may be anywhere.
    let v6 = at.map_or(tunnel.remote.is_none(), IpAddr::is_ipv6);
    let route_mtu = at.and_then(|at| facts.path_mtus.get(at).copied());
    let overhead = if v6 { OVERHEAD_V6 } else { OVERHEAD_V4 } + framing;
    let ceiling = tunnel.mtu.map_or(u32::MAX, |mtu| u32::from(mtu) + overhead);
    // No more than the ceiling was ever tried.
    let carried = facts.carried.get(name).map(|bytes| u32::from(*bytes));
    let carried = carried.filter(|bytes| tunnel.probed && *bytes < ceiling).unwrap_or(u32::MAX);
    let least = route_mtu.unwrap_or(Mtu::ETHERNET.into()).min(carried);
    let path = Mtu::clamped(least.saturating_sub(overhead));
    let underlay = route_mtu.and_then(|route| {
        let ceiling = u16::try_from(route.min(ceiling)).unwrap_or(u16::MAX);
        Some(Underlay { is_v4: !v6, ceiling, overhead: u16::try_from(overhead).ok()? })
    });
    if route_mtu.is_some() {
        target.path_mtus.insert(name.clone(), path);
    }
    let wanted = tunnel.mtu.unwrap_or_else(|| {
        let inner_v6 = device.addresses.iter().any(|address| address.addr().is_ipv6());
        if inner_v6 { path.max(Mtu::LEAST_V6) } else { path }
    });
    let entry = target.devices.entry(tunnel.device.clone()).or_insert_with(|| TargetDevice {
        mtu: wanted,
        addresses: device.addresses.iter().copied().collect(),
    });
    entry.mtu = entry.mtu.max(wanted);
    let forwarding = target.forwarding.entry(tunnel.device.clone()).or_insert_with(|| ForwardingDevice {
        addresses: device.addresses.iter().map(IpNet::addr).collect(),
        key: device.key.clone(),
        without: Offloads::new(),
        rests: false,
        tunnels: BTreeMap::new(),
    });
    forwarding.rests |= facts.rests(tunnel);
    let is_known = match tunnel.framing {
        Framing::Raw | Framing::Pi => endpoint.is_some(),
        Framing::Wireguard(_) => keys.is_some() && endpoint.is_some() == tunnel.remote.is_some(),
    };
    if !is_known || facts.rests(tunnel) {
        return;
    }
    // A server of 2015 reads at most its MTU, four bytes of packet information included.
    let cut = if tunnel.framing == Framing::Pi { OVERHEAD_PI } else { 0 };
    let tcp_mtu = path.min(Mtu::clamped(u32::from(wanted).saturating_sub(cut)));
    forwarding.tunnels.insert(
        name.clone(),
        ForwardingTunnel {
            endpoint,
            exact_port: in_use.is_some_and(|in_use| in_use.exact_port),
            others: in_use.map_or_else(Vec::new, |in_use| others(places, in_use)),
            framing: tunnel.framing,
            keepalive: tunnel.keepalive,
            also_plain: tunnel.also_plain,
            probed: tunnel.probed,
            echo: tunnel.echo.and_then(|peer| Some((asker(device, peer)?, peer))),
            underlay,
            mtu: wanted.min(path),
            tcp_mtu,
            without: tunnel.without.iter().chain(policy.without.keys()).copied().collect(),
            allowed_prefixes: tunnel.allowed_prefixes.clone(),
        },
    );
}

/// The address of a device from which a peer is asked by an ICMP echo; `None`: it has none of the peer's family.
pub fn asker(device: &Device, peer: IpAddr) -> Option<IpAddr> {
    let of_family = || device.addresses.iter().filter(|own| own.addr().is_ipv4() == peer.is_ipv4());
    let own = of_family().find(|own| own.contains(&peer)).or_else(|| of_family().next())?;
    Some(own.addr())
}

/// The places of a peer beside the one in use.
fn others(places: &[Located], in_use: Located) -> Vec<Other> {
    let others = places.iter().filter(|other| other.position != in_use.position);
    let other = |other: &Located| Other {
        address: other.address,
        exact_port: other.exact_port,
        is_preferred: other.position < in_use.position,
    };
    others.map(other).collect()
}

/// Adds the routes of the tunnels that have their place. A route into a tunnel that carries less than its device
/// takes has an MTU of its own; of tunnels that share a route, the least.
fn route(target: &mut Target, desired: &Desired) {
    let mut mtus: BTreeMap<(IpNet, DeviceName), Option<Mtu>> = BTreeMap::new();
    for (device_name, device) in &target.forwarding {
        let Some(device_mtu) = target.devices.get(device_name).map(|device| device.mtu) else { continue };
        for (name, tunnel) in desired.tunnels_on(device_name) {
            if target.faults.contains_key(name) {
                continue;
            }
            let mtu = device.tunnels.get(name).map(|tunnel| tunnel.mtu).filter(|mtu| *mtu < device_mtu);
            // The kernel has a route to a device's own networks as soon as it is up.
            let connected = |prefix: &IpNet| {
                let device = target.devices.get(device_name);
                device.is_some_and(|device| device.addresses.iter().any(|net| net.trunc() == *prefix))
            };
            for prefix in tunnel.routes.iter().filter(|prefix| !connected(prefix)) {
                let entry = mtus.entry((*prefix, device_name.clone())).or_insert(mtu);
                *entry = match (*entry, mtu) {
                    (Some(one), Some(other)) => Some(one.min(other)),
                    (one, other) => one.or(other),
                };
            }
        }
    }
    target.routes = mtus.into_iter().map(|((prefix, device), mtu)| Route { prefix, device, mtu }).collect();
}

#[cfg(test)]
mod tests;
