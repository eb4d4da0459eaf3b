//! What each tunnel claims of the host and of the mesh, and who keeps what two claim.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use prefix_trie::joint::JointPrefixMap;

use super::{Facts, Keys, Located, Policy, Wish};
use crate::agent::reconcile::Actual;
use crate::proto::command::{CommandError, ErrorKind, Field};
use crate::proto::model::{AllowedPrefix, Device, DeviceName, Invalid, Mtu, Remote, Tunnel, TunnelName};

/// Things of which each has one tunnel or device.
#[derive(Default)]
pub(super) struct Claims {
    remotes: BTreeMap<(IpAddr, Option<u16>), TunnelName>,
    endpoints: BTreeMap<SocketAddr, TunnelName>,
    endpoint_addresses: BTreeMap<IpAddr, TunnelName>,
    /// The peers of encrypted tunnels.
    keys: BTreeMap<Keys, TunnelName>,
    /// Addresses of devices: the device, and who claimed it.
    addresses: BTreeMap<IpAddr, (DeviceName, TunnelName)>,
    /// Networks of devices and routes: the device, and who claimed it.
    networks: BTreeMap<IpNet, (DeviceName, TunnelName)>,
    covered: JointPrefixMap<IpNet, TunnelName>,
    allowed: BTreeMap<IpNet, (DeviceName, TunnelName)>,
    preferences: BTreeMap<(DeviceName, AllowedPrefix), TunnelName>,
    /// Whether a device that has been claimed has but one tunnel, by the first of them.
    whole_devices: BTreeMap<DeviceName, (TunnelName, bool)>,
}

/// What is not the agent's: interfaces, and where controllers are.
pub(super) struct Foreign<'a> {
    actual: &'a Actual,
    controllers: &'a BTreeSet<IpAddr>,
    connected: JointPrefixMap<IpNet, &'a str>,
    addresses: BTreeSet<IpAddr>,
}

impl<'a> Foreign<'a> {
    pub(super) fn of(facts: &'a Facts) -> Self {
        let Facts { actual, controllers, .. } = facts;
        let mut connected = JointPrefixMap::new();
        let mut addresses = BTreeSet::new();
        for (name, link) in actual.links.iter().filter(|(_, link)| !link.ours) {
            for address in &link.addresses {
                connected.insert(address.trunc(), name.as_str());
                addresses.insert(address.addr());
            }
        }
        Self { actual, controllers, connected, addresses }
    }
}

/// Claims for a tunnel all that it needs, or says what it cannot have. A tunnel that cannot have everything claims
/// nothing.
pub(super) fn claim(
    claims: &mut Claims,
    foreign: &Foreign<'_>,
    policy: &Policy,
    wish: &Wish<'_>,
) -> Result<(), CommandError> {
    let &Wish { name, tunnel, device, places, keys, in_use: _ } = wish;
    keys.map_or(Ok(()), |keys| check_keys(claims, keys))?;
    check_device(claims, foreign, tunnel)?;
    check_mtu(tunnel, device)?;
    for (position, address) in device.addresses.iter().enumerate() {
        let field = Field::Address(position);
        check_network(claims, foreign, policy, field, *address, &tunnel.device)?;
        check_address(claims, foreign, field, *address, &tunnel.device)?;
    }
    for (position, allowed) in tunnel.allowed_prefixes.iter().enumerate() {
        check_allowed(claims, policy, position, *allowed, &tunnel.device)?;
    }
    for (position, route) in tunnel.routes.iter().enumerate() {
        check_route(claims, foreign, policy, position, *route, tunnel)?;
    }
    for place in places {
        check_own_endpoint(tunnel, device, place.address.ip())?;
        check_endpoint(claims, foreign, policy, tunnel, place)?;
    }
    for place in places {
        // An encrypted tunnel is its peer's key's, wherever its datagrams come from.
        if tunnel.takes_plain() {
            claims.remotes.insert((place.address.ip(), port(place)), name.clone());
            claims.endpoints.insert(place.address, name.clone());
        }
        claims.endpoint_addresses.insert(place.address.ip(), name.clone());
    }
    if let Some(keys) = keys {
        claims.keys.insert(keys, name.clone());
    }
    let whole = tunnel.allowed_prefixes.is_empty();
    claims.whole_devices.entry(tunnel.device.clone()).or_insert_with(|| (name.clone(), whole));
    for address in &device.addresses {
        claims.addresses.insert(address.addr(), (tunnel.device.clone(), name.clone()));
    }
    let networks = device.addresses.iter().map(IpNet::trunc);
    for network in networks.chain(tunnel.routes.iter().copied()) {
        claims.covered.insert(network, name.clone());
        claims.networks.entry(network).or_insert_with(|| (tunnel.device.clone(), name.clone()));
    }
    for allowed in &tunnel.allowed_prefixes {
        claims.allowed.insert(allowed.prefix, (tunnel.device.clone(), name.clone()));
        claims.preferences.insert((tunnel.device.clone(), *allowed), name.clone());
    }
    Ok(())
}

/// The port that a remote names.
fn port(place: &Located) -> Option<u16> {
    place.exact_port.then_some(place.address.port())
}

fn check_keys(claims: &Claims, keys: Keys) -> Result<(), CommandError> {
    let fault = |problem: String, remedy: &str| {
        let fault = Invalid::new(problem, remedy);
        Err(CommandError::new(ErrorKind::Clash, Field::PeerPublicKey, keys.peer, fault))
    };
    if keys.peer == keys.own {
        return fault("is this host's own".to_owned(), "give the key of the host at the other end");
    }
    match claims.keys.get(&keys) {
        Some(other) => fault(
            format!("is already the key of tunnel {other}'s peer"),
            "change that tunnel, or give another host's key",
        ),
        None => Ok(()),
    }
}

fn check_device(claims: &Claims, foreign: &Foreign<'_>, tunnel: &Tunnel) -> Result<(), CommandError> {
    let fault = |field, problem: String, remedy: &str| {
        Err(CommandError::new(ErrorKind::Clash, field, &tunnel.device, Invalid::new(problem, remedy)))
    };
    if foreign.actual.links.get(tunnel.device.as_str()).is_some_and(|link| !link.ours) {
        return fault(
            Field::Device,
            "is an interface of this host that the agent did not make".to_owned(),
            "choose another name, or remove that interface",
        );
    }
    match claims.whole_devices.get(&tunnel.device) {
        None => Ok(()),
        Some((other, true)) => fault(
            Field::Device,
            format!("carries everything to the peer of tunnel {other}"),
            "give that tunnel allowed prefixes first, or name another device",
        ),
        Some((other, false)) if tunnel.allowed_prefixes.is_empty() => fault(
            Field::AllowedPrefixes,
            format!("is shared with tunnel {other}"),
            "say with allowed prefixes which packets go to this peer",
        ),
        Some((_, false)) => Ok(()),
    }
}

fn check_mtu(tunnel: &Tunnel, device: &Device) -> Result<(), CommandError> {
    let Some(mtu) = tunnel.mtu else { return Ok(()) };
    let v6 = device.addresses.iter().any(|address| address.addr().is_ipv6());
    if v6 && mtu < Mtu::LEAST_V6 {
        return Err(CommandError::invalid(
            Field::Mtu,
            mtu,
            Invalid::new(
                "is too small for IPv6 addresses",
                format!("use at least {} (RFC 8200), or IPv4 addresses alone", Mtu::LEAST_V6),
            ),
        ));
    }
    Ok(())
}

/// Refuses a network that lies in none of the accepted ones.
fn check_accepted(policy: &Policy, field: Field, network: IpNet) -> Result<(), CommandError> {
    let within = network.trunc();
    if policy.accept.iter().any(|accepted| accepted.contains(&within)) {
        return Ok(());
    }
    let accepted: Vec<String> = policy.accept.iter().map(IpNet::to_string).collect();
    Err(CommandError::new(
        ErrorKind::NotAccepted,
        field,
        network,
        Invalid::new(
            format!("lies in none of the networks that this agent accepts ({})", accepted.join(", ")),
            format!("choose another, or start the agent with --accept-prefix {within}"),
        ),
    ))
}

/// Refuses a network of a device or route that the host or another device has, or that covers an endpoint or a controller.
fn check_network(
    claims: &Claims,
    foreign: &Foreign<'_>,
    policy: &Policy,
    field: Field,
    network: IpNet,
    device: &DeviceName,
) -> Result<(), CommandError> {
    check_accepted(policy, field, network)?;
    let within = network.trunc();
    let fault = |problem: String, remedy: &str| {
        Err(CommandError::new(ErrorKind::Clash, field, network, Invalid::new(problem, remedy)))
    };
    if let Some((connected, interface)) = foreign.connected.get_lpm(&within) {
        return fault(
            format!("lies in {connected}, to which this host is connected through {interface}"),
            "choose a network that the host has not",
        );
    }
    if let Some((other_device, other)) = claims.networks.get(&within)
        && other_device != device
    {
        return fault(
            format!("is already on device {other_device} (tunnel {other})"),
            "choose another network, or put both tunnels on one device",
        );
    }
    if let Some(controller) = foreign.controllers.range(within.network()..=within.broadcast()).next() {
        return fault(
            format!("covers {controller}, the address of the controller"),
            "choose a network without it: the controller would be out of reach",
        );
    }
    let covered = claims.endpoint_addresses.range(within.network()..=within.broadcast()).next();
    if let Some((endpoint, other)) = covered {
        return fault(
            format!("covers {endpoint}, the endpoint of tunnel {other}"),
            "choose a network without it: the tunnel would run inside itself",
        );
    }
    Ok(())
}

/// Refuses an address that the host or another device has, in whatever network.
fn check_address(
    claims: &Claims,
    foreign: &Foreign<'_>,
    field: Field,
    address: IpNet,
    device: &DeviceName,
) -> Result<(), CommandError> {
    let fault = |problem: String| {
        let remedy = "choose another address";
        Err(CommandError::new(ErrorKind::Clash, field, address, Invalid::new(problem, remedy)))
    };
    if foreign.addresses.contains(&address.addr()) {
        return fault("is the address of another interface of this host".to_owned());
    }
    match claims.addresses.get(&address.addr()) {
        Some((other_device, other)) if other_device != device => {
            fault(format!("is the address of device {other_device} (tunnel {other})"))
        }
        Some(_) | None => Ok(()),
    }
}

fn check_allowed(
    claims: &Claims,
    policy: &Policy,
    position: usize,
    allowed: AllowedPrefix,
    device: &DeviceName,
) -> Result<(), CommandError> {
    let field = Field::AllowedPrefix(position);
    check_accepted(policy, field, allowed.prefix)?;
    let fault = |problem: String, remedy: &str| {
        Err(CommandError::new(ErrorKind::Clash, field, allowed.prefix, Invalid::new(problem, remedy)))
    };
    if let Some((other_device, other)) = claims.allowed.get(&allowed.prefix)
        && other_device != device
    {
        return fault(
            format!("is already on device {other_device} (tunnel {other})"),
            "choose another prefix, or put both tunnels on one device",
        );
    }
    if let Some(other) = claims.preferences.get(&(device.clone(), allowed)) {
        return fault(
            format!("is that of tunnel {other} with the same preference, {}", allowed.preference),
            "give one of them another preference",
        );
    }
    Ok(())
}

fn check_route(
    claims: &Claims,
    foreign: &Foreign<'_>,
    policy: &Policy,
    position: usize,
    route: IpNet,
    tunnel: &Tunnel,
) -> Result<(), CommandError> {
    let field = Field::Route(position);
    if route.prefix_len() == 0 {
        return Err(CommandError::new(
            ErrorKind::NotAccepted,
            field,
            route,
            Invalid::new("is a default route", "name the networks behind the peer"),
        ));
    }
    check_network(claims, foreign, policy, field, route, &tunnel.device)?;
    let allowed = &tunnel.allowed_prefixes;
    if !allowed.is_empty() && !allowed.iter().any(|allowed| allowed.prefix.contains(&route)) {
        return Err(CommandError::invalid(
            field,
            route,
            Invalid::new(
                "lies in none of the tunnel's allowed prefixes",
                "add it to them: the tunnel would not carry its packets",
            ),
        ));
    }
    Ok(())
}

/// Refuses a tunnel whose own networks cover an endpoint of it.
fn check_own_endpoint(tunnel: &Tunnel, device: &Device, endpoint: IpAddr) -> Result<(), CommandError> {
    let addresses = device.addresses.iter().enumerate().map(|(i, net)| (Field::Address(i), net));
    let routes = tunnel.routes.iter().enumerate().map(|(i, net)| (Field::Route(i), net));
    for (field, network) in addresses.chain(routes) {
        if network.contains(&endpoint) {
            return Err(CommandError::new(
                ErrorKind::Clash,
                field,
                network,
                Invalid::new(
                    format!("covers {endpoint}, the tunnel's own endpoint"),
                    "choose a network without it: the tunnel would run inside itself",
                ),
            ));
        }
    }
    Ok(())
}

fn check_endpoint(
    claims: &Claims,
    foreign: &Foreign<'_>,
    policy: &Policy,
    tunnel: &Tunnel,
    place: &Located,
) -> Result<(), CommandError> {
    let endpoint = place.address;
    let address = endpoint.ip();
    let fault = |problem: String, remedy: &str| {
        let remote = tunnel.remote.as_ref().and_then(|remotes| remotes.iter().nth(place.position));
        let remote = remote.map(Remote::to_string).unwrap_or_default();
        Err(CommandError::new(ErrorKind::Clash, place.field(), remote, Invalid::new(problem, remedy)))
    };
    let here = address.is_loopback() || foreign.addresses.contains(&address);
    if here && endpoint.port() == policy.data_port {
        return fault("is this host itself".to_owned(), "name the host at the other end");
    }
    let other = claims.remotes.get(&(address, port(place))).or_else(|| claims.endpoints.get(&endpoint));
    if let Some(other) = other.filter(|_| tunnel.takes_plain()) {
        return fault(
            format!("({endpoint}) is already the remote of tunnel {other}"),
            "change that tunnel, or name another host",
        );
    }
    if let Some((network, other)) = claims.covered.get_lpm(&IpNet::from(address)) {
        return fault(
            format!("({address}) lies in {network}, which tunnel {other} carries"),
            "take that network from the other tunnel: this one would run inside it",
        );
    }
    Ok(())
}
