use std::collections::BTreeMap;

use etherparse::PacketBuilder;
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use proptest::sample::select;

use super::*;
use crate::agent::target::{Forwarding, Other};
use crate::proto::model::{AllowedPrefix, Framing, Mtu};

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn name(number: usize) -> TunnelName {
    format!("t{number}").parse().unwrap()
}

fn table(forwarding: &Forwarding) -> Table {
    let mut table = Table::default();
    for (id, device) in (1..).zip(forwarding.values()) {
        let open = OpenDevice { id, tun: Arc::new(TunDevice::null()) };
        table.add(open, device, |_, _| Kept::default());
    }
    table
}

fn sender(table: &Table, source: SocketAddr) -> Option<(&Device, &Tunnel)> {
    let place = table.sender(source)?;
    Some((&table.devices()[place.device], table.tunnel(place).unwrap()))
}

/// Where a tunnel's datagrams go.
fn at(tunnel: &Tunnel) -> SocketAddr {
    tunnel.destination.as_ref().unwrap().address
}

fn wanted(endpoint: SocketAddr, exact_port: bool, allowed_prefixes: Vec<AllowedPrefix>) -> ForwardingTunnel {
    ForwardingTunnel {
        without: BTreeSet::new(),
        endpoint: Some(endpoint),
        exact_port,
        others: Vec::new(),
        framing: Framing::Raw,
        keepalive: None,
        also_plain: false,
        probed: false,
        echo: None,
        underlay: None,
        mtu: Mtu::ETHERNET,
        tcp_mtu: Mtu::ETHERNET,
        allowed_prefixes,
    }
}

/// One device with a tunnel for each list of prefixes.
fn device(tunnels: &[Vec<AllowedPrefix>]) -> Forwarding {
    let tunnel = |(number, allowed): (usize, &Vec<AllowedPrefix>)| {
        let endpoint = SocketAddr::from(([192, 0, 2, number as u8 + 1], 5000));
        (name(number), wanted(endpoint, false, allowed.clone()))
    };
    let tunnels = tunnels.iter().enumerate().map(tunnel).collect();
    let addresses = BTreeSet::from(["10.5.5.1".parse().unwrap()]);
    BTreeMap::from([(
        "d0".parse().unwrap(),
        ForwardingDevice { addresses, key: None, without: BTreeSet::new(), rests: false, tunnels },
    )])
}

/// Addresses of which many share their first bits.
fn close_address() -> impl Strategy<Value = IpAddr> {
    let bits = || select(vec![0x00u8, 0x01, 0x02, 0x03, 0x40, 0x80, 0xc0, 0xff]);
    prop_oneof![
        3 => (bits(), bits(), bits()).prop_map(|(b, c, d)| IpAddr::from([10, b, c, d])),
        1 => (bits(), bits(), bits()).prop_map(|(b, c, d)| {
            IpAddr::from([0xfd, b, 0, 0, 0, 0, 0, c, 0, 0, 0, 0, 0, 0, 0, d])
        }),
    ]
}

fn close_prefix() -> impl Strategy<Value = IpNet> {
    (close_address(), 0..=128u8).prop_map(|(address, length)| {
        let most = if address.is_ipv4() { 32 } else { 128 };
        IpNet::new(address, length.min(most)).unwrap().trunc()
    })
}

fn some_allowed() -> impl Strategy<Value = Vec<AllowedPrefix>> {
    btree_map(close_prefix(), 0..4u32, 1..8).prop_map(|prefixes| {
        prefixes.into_iter().map(|(prefix, preference)| AllowedPrefix { prefix, preference }).collect()
    })
}

proptest! {
    #[test]
    fn the_longest_prefix_and_then_the_lowest_preference_sends(
        tunnels in vec(some_allowed(), 1..6),
        destinations in vec(close_address(), 1..30),
    ) {
        let forwarding = device(&tunnels);
        let table = table(&forwarding);
        for destination in destinations {
            let all = tunnels.iter().enumerate().flat_map(|(n, all)| all.iter().map(move |one| (n, one)));
            let best = all
                .filter(|(_, allowed)| allowed.prefix.contains(&destination))
                .min_by_key(|(n, allowed)| (u8::MAX - allowed.prefix.prefix_len(), allowed.preference, *n));
            let expected = best.map(|(n, _)| SocketAddr::from(([192, 0, 2, n as u8 + 1], 5000)));
            let chosen = table.devices()[0].tunnel_to(destination).map(|(_, tunnel)| at(tunnel));
            prop_assert_eq!(chosen, expected, "to {}", destination);
        }
    }

    #[test]
    fn a_tunnel_delivers_what_comes_from_its_prefixes(
        allowed in some_allowed(),
        sources in vec(close_address(), 1..20),
    ) {
        let forwarding = device(&[allowed.clone(), Vec::new()]);
        let table = table(&forwarding);
        for source in sources {
            let within = allowed.iter().any(|allowed| allowed.prefix.contains(&source));
            let bytes = packet(source);
            let packet = Packet::parse(&bytes).unwrap();
            for (octet, expected) in [
                (1, if within { Ok(()) } else { Err(DropReason::SourceNotAllowed) }),
                (2, Ok(())),
            ] {
                let (device, tunnel) = sender(&table, SocketAddr::from(([192, 0, 2, octet], 5000))).unwrap();
                prop_assert_eq!(device.admit(tunnel, &packet), expected, "from {}", source);
            }
        }
    }

    #[test]
    fn a_datagram_belongs_to_its_exact_endpoint_or_else_to_its_address(
        // By address: a tunnel without a port, and those with one.
        hosts in btree_map(0..6u8, (any::<bool>(), btree_map(5000..5004u16, 0..3usize, 0..3), 0..3usize), 0..6),
        sources in vec((0..7u8, 4999..5005u16), 1..30),
    ) {
        let endpoint = |host: u8, port| SocketAddr::from(([192, 0, 2, host], port));
        let mut devices: BTreeMap<usize, Vec<(SocketAddr, bool)>> = BTreeMap::new();
        for (host, (any_port, ports, device)) in &hosts {
            if *any_port {
                devices.entry(*device).or_default().push((endpoint(*host, 5000), false));
            }
            for (port, device) in ports.iter().filter(|(port, _)| !*any_port || **port != 5000) {
                devices.entry(*device).or_default().push((endpoint(*host, *port), true));
            }
        }
        let mut forwarding = Forwarding::new();
        for (number, endpoints) in &devices {
            let tunnels = endpoints.iter().enumerate().map(|(n, (endpoint, exact))| {
                (name(n), wanted(*endpoint, *exact, vec![AllowedPrefix { prefix: net("10.0.0.0/8"), preference: n as u32 }]))
            });
            let device = ForwardingDevice {
                addresses: BTreeSet::new(),
                key: None,
                without: BTreeSet::new(),
                rests: false,
                tunnels: tunnels.collect(),
            };
            forwarding.insert(format!("d{number}").parse().unwrap(), device);
        }
        let table = table(&forwarding);
        let all: Vec<(u64, SocketAddr, bool)> = (1..)
            .zip(devices.values())
            .flat_map(|(id, endpoints)| endpoints.iter().map(move |(endpoint, exact)| (id, *endpoint, *exact)))
            .collect();
        for (host, port) in sources {
            let source = endpoint(host, port);
            let exact = all.iter().find(|(_, endpoint, _)| *endpoint == source);
            let of_host = all.iter().find(|(_, endpoint, exact)| endpoint.ip() == source.ip() && !exact);
            let expected = exact.or(of_host).map(|(id, endpoint, _)| (*id, *endpoint));
            let found = sender(&table, source).map(|(device, tunnel)| (device.open.id, at(tunnel)));
            prop_assert_eq!(found, expected, "from {}", source);
        }
    }
}

/// A packet from `source` to an address of its family.
fn packet(source: IpAddr) -> Vec<u8> {
    match source {
        IpAddr::V4(v4) => packet_between(source, IpAddr::from([10, v4.octets()[1], 200, 200])),
        IpAddr::V6(_) => packet_between(source, "fd00::2".parse().unwrap()),
    }
}

fn packet_between(source: IpAddr, destination: IpAddr) -> Vec<u8> {
    let builder = match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            PacketBuilder::ipv4(source.octets(), destination.octets(), 64)
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            PacketBuilder::ipv6(source.octets(), destination.octets(), 64)
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => panic!("two families"),
    };
    let mut bytes = Vec::new();
    builder.udp(1, 2).write(&mut bytes, b"payload").unwrap();
    bytes
}

#[test]
fn a_device_of_one_peer_sends_it_everything() {
    let table = table(&device(&[Vec::new()]));
    for destination in ["10.0.0.2", "255.255.255.255", "224.0.0.1", "fd00::1", "ff02::1"] {
        assert!(table.devices()[0].tunnel_to(destination.parse().unwrap()).is_some(), "{destination}");
    }
}

#[test]
fn a_device_whose_peers_are_not_known_yet_sends_nothing() {
    let table = table(&device(&[]));
    assert!(table.devices()[0].tunnel_to("10.0.0.2".parse().unwrap()).is_none());
    assert!(sender(&table, "192.0.2.1:5000".parse().unwrap()).is_none());
}

#[test]
fn no_peer_sends_what_only_this_host_can() {
    let table = table(&device(&[Vec::new()]));
    let (device, tunnel) = sender(&table, "192.0.2.1:5000".parse().unwrap()).unwrap();
    for (source, destination, expected) in [
        ("10.0.0.2", "10.0.0.1", Ok(())),
        ("10.0.0.2", "224.0.0.251", Ok(())),
        ("fd00::2", "ff02::1", Ok(())),
        // The device's own address.
        ("10.5.5.1", "10.0.0.2", Err(DropReason::Martian)),
        ("127.0.0.1", "10.0.0.1", Err(DropReason::Martian)),
        ("10.0.0.2", "127.0.0.1", Err(DropReason::Martian)),
        ("::1", "fd00::1", Err(DropReason::Martian)),
        ("fd00::2", "::1", Err(DropReason::Martian)),
        ("0.0.0.0", "10.0.0.1", Err(DropReason::Martian)),
        ("::", "fd00::1", Err(DropReason::Martian)),
        ("224.0.0.1", "10.0.0.1", Err(DropReason::Martian)),
        ("255.255.255.255", "10.0.0.1", Err(DropReason::Martian)),
        ("10.0.0.2", "255.255.255.255", Err(DropReason::Martian)),
    ] {
        let bytes = packet_between(source.parse().unwrap(), destination.parse().unwrap());
        let packet = Packet::parse(&bytes).unwrap();
        assert_eq!(device.admit(tunnel, &packet), expected, "{source} to {destination}");
    }
}

/// Of the places of a peer the first two are no more, or not yet, in use.
fn with_others() -> Table {
    let other = |octet: u8, port, is_preferred| Other {
        address: SocketAddr::from(([192, 0, 2, octet], port)),
        exact_port: port != 5000,
        is_preferred,
    };
    let tunnel = ForwardingTunnel {
        others: vec![other(1, 5000, true), other(2, 6000, false)],
        ..wanted(SocketAddr::from(([192, 0, 2, 3], 5000)), false, Vec::new())
    };
    let addresses = BTreeSet::from(["10.5.5.1".parse().unwrap()]);
    let tunnels = BTreeMap::from([(name(0), tunnel)]);
    let device = ForwardingDevice { addresses, key: None, without: BTreeSet::new(), rests: false, tunnels };
    table(&BTreeMap::from([("d0".parse().unwrap(), device)]))
}

#[test]
fn a_peer_is_known_by_all_its_endpoints() {
    let table = with_others();
    let is_known = |octet: u8, port| table.sender(SocketAddr::from(([192, 0, 2, octet], port))).is_some();
    for (octet, port, expected) in [
        (3, 5000, true),
        (3, 4000, true),
        (1, 5000, true),
        (1, 4000, true),
        (2, 6000, true),
        (2, 5000, false),
    ] {
        assert_eq!(is_known(octet, port), expected, "192.0.2.{octet}:{port}");
    }
}

#[test]
fn what_comes_from_another_endpoint_says_nothing_of_the_way_to_the_one_in_use() {
    let table = with_others();
    let tunnel = table.tunnel(Place { device: 0, tunnel: 0 }).unwrap();
    let at = |octet: u8, port| SocketAddr::from(([192, 0, 2, octet], port));
    let local = |octet: u8| IpAddr::from([192, 0, 2, octet]);
    assert!(!table.mark_way(tunnel, at(3, 5000), local(100), true));
    assert_eq!(tunnel.path.local(), Some(local(100)));
    for other in [at(1, 5000), at(1, 4000), at(2, 6000)] {
        assert!(!table.mark_way(tunnel, other, local(101), true), "{other}");
        assert_eq!(tunnel.path.local(), Some(local(100)), "{other}");
        assert!(tunnel.path.roamed().is_none(), "{other}");
    }
    // Elsewhere it may be, and it is so no more when it shows to be at one of its places.
    assert!(table.mark_way(tunnel, at(9, 5000), local(100), true));
    assert_eq!(tunnel.path.roamed().as_ref().unwrap().address, at(9, 5000));
    assert!(table.mark_way(tunnel, at(1, 5000), local(101), true));
    assert!(tunnel.path.roamed().is_none());
}
