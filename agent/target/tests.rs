use super::*;
use crate::agent::reconcile::Link;
use crate::proto::model::Owner;

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn mtu(bytes: u32) -> Mtu {
    bytes.try_into().unwrap()
}

fn policy() -> Policy {
    Policy {
        data_port: 5000,
        public_key: [1; 32].into(),
        accept: vec![net("10.0.0.0/8"), net("fd00::/8")],
        without: BTreeMap::new(),
    }
}

fn tunnel(device: &str, remote: &str) -> Tunnel {
    Tunnel {
        device: device.parse().unwrap(),
        mtu: None,
        remote: Some(remote.parse().unwrap()),
        framing: Framing::Raw,
        keepalive: None,
        also_plain: false,
        probed: false,
        echo: None,
        allowed_prefixes: Vec::new(),
        routes: Vec::new(),
        without: Offloads::new(),
        owner: Owner::Local,
    }
}

fn allowed(prefix: &str) -> Vec<AllowedPrefix> {
    vec![AllowedPrefix { prefix: net(prefix), preference: 0 }]
}

/// Tunnels from the most senior to the newest, and the addresses of their devices.
fn desired(tunnels: &[(&str, Tunnel)], addresses: &[&str]) -> Desired {
    let mut desired = Desired::default();
    for (name, tunnel) in tunnels {
        let addresses = addresses.iter().copied().map(net).collect();
        let device = Device { addresses, key: None, owner: Owner::Local };
        desired.set(&name.parse().unwrap(), tunnel.clone(), device);
    }
    assert!(desired.is_consistent());
    desired
}

/// Paths to endpoints, and nothing else.
fn paths(paths: &[(&str, u32)]) -> Facts {
    let path_mtus = paths.iter().map(|(address, bytes)| (address.parse().unwrap(), *bytes)).collect();
    Facts { path_mtus, ..Facts::default() }
}

fn faulty(target: &Target) -> Vec<&str> {
    target.faults.keys().map(TunnelName::as_str).collect()
}

#[test]
fn mtu_of_a_tunnel_alone() {
    const V4: &str = "198.51.100.1";
    const V6: &str = "2001:db8::1";
    let (raw, pi) = (Framing::Raw, Framing::Pi);
    // Remote, framing, asked, MTU of the route; MTU of the device, of what is sent whole, of what TCP is told.
    let cases = [
        (V4, raw, None, 1500, 1472, 1472, 1472),
        (V6, raw, None, 1500, 1452, 1452, 1452),
        (V4, pi, None, 1500, 1468, 1468, 1464),
        (V6, pi, None, 1500, 1448, 1448, 1444),
        (V4, raw, None, 9000, 8972, 8972, 8972),
        (V4, raw, Some(1400), 1500, 1400, 1400, 1400),
        (V4, pi, Some(1400), 1500, 1400, 1400, 1396),
        (V6, pi, Some(1400), 1500, 1400, 1400, 1396),
        // What is asked for is kept; what the path does not carry is not sent whole.
        (V4, raw, Some(1500), 1500, 1500, 1472, 1472),
        (V6, raw, Some(9000), 1500, 9000, 1452, 1452),
        // A server of 2015 with an MTU of 1500 reads 1496 bytes of packet: more than the path carries.
        (V4, pi, Some(1500), 1500, 1500, 1468, 1468),
        (V4, pi, Some(1470), 1500, 1470, 1468, 1466),
        // Less than any path may have.
        (V4, pi, None, 60, 68, 68, 68),
    ];
    for (remote, framing, asked, path, device_mtu, whole, tcp) in cases {
        let wanted = Tunnel { framing, mtu: asked.map(mtu), ..tunnel("d", remote) };
        let desired = desired(&[("t", wanted)], &["10.0.1.1/30"]);
        let target = build(&desired, &paths(&[(remote, path)]), &policy());
        let case = (remote, framing, asked, path);
        assert_eq!(target.faults, BTreeMap::new(), "{case:?}");
        assert_eq!(target.devices.values().next().unwrap().mtu, mtu(device_mtu), "{case:?}");
        let forwarding = &target.forwarding.values().next().unwrap().tunnels;
        let sent = forwarding.values().next().unwrap();
        assert_eq!((sent.mtu, sent.tcp_mtu), (mtu(whole), mtu(tcp)), "{case:?}");
        assert_eq!(sent.framing, framing);
    }
}

#[test]
fn an_automatic_mtu_suffices_for_ipv6_inside() {
    let desired = desired(&[("t", tunnel("d", "198.51.100.1"))], &["fd00:1::1/64"]);
    let target = build(&desired, &paths(&[("198.51.100.1", 1000)]), &policy());
    assert_eq!(target.devices.values().next().unwrap().mtu, Mtu::LEAST_V6);
    let forwarding = target.forwarding.values().next().unwrap();
    assert_eq!(forwarding.tunnels.values().next().unwrap().mtu, mtu(972));
}

#[test]
fn an_unmeasured_path_is_taken_for_ethernet_and_not_shown() {
    let desired = desired(&[("t", tunnel("d", "198.51.100.1"))], &["10.0.1.1/30"]);
    let target = build(&desired, &Facts::default(), &policy());
    assert_eq!(target.devices.values().next().unwrap().mtu, mtu(1472));
    assert_eq!(target.path_mtus, BTreeMap::new());
    let measured = build(&desired, &paths(&[("198.51.100.1", 1400)]), &policy());
    assert_eq!(measured.path_mtus.values().copied().collect::<Vec<_>>(), [mtu(1372)]);
}

#[test]
fn a_device_has_the_best_mtu_of_its_tunnels_and_routes_their_own() {
    let near = Tunnel {
        allowed_prefixes: allowed("10.1.0.0/16"),
        routes: vec![net("10.1.1.0/24"), net("10.1.9.0/24")],
        ..tunnel("d", "198.51.100.1")
    };
    let far = Tunnel {
        allowed_prefixes: vec![
            AllowedPrefix { prefix: net("10.2.0.0/16"), preference: 0 },
            AllowedPrefix { prefix: net("10.1.0.0/16"), preference: 1 },
        ],
        // The first is to the device's own network, to which the kernel itself has a route.
        routes: vec![net("10.0.1.0/24"), net("10.2.1.0/24"), net("10.1.9.0/24")],
        ..tunnel("d", "198.51.100.2")
    };
    let far =
        Tunnel { allowed_prefixes: [far.allowed_prefixes.clone(), allowed("10.0.1.0/24")].concat(), ..far };
    let desired = desired(&[("near", near), ("far", far)], &["10.0.1.1/24"]);
    let target = build(&desired, &paths(&[("198.51.100.1", 1500), ("198.51.100.2", 1400)]), &policy());
    assert_eq!(target.faults, BTreeMap::new());
    assert_eq!(target.devices.values().next().unwrap().mtu, mtu(1472));
    let routes: Vec<(String, Option<u32>)> =
        target.routes.iter().map(|route| (route.prefix.to_string(), route.mtu.map(u32::from))).collect();
    let expected = [
        ("10.1.1.0/24", None),
        // Shared: what it takes is what both of them carry.
        ("10.1.9.0/24", Some(1372)),
        ("10.2.1.0/24", Some(1372)),
    ];
    assert_eq!(routes, expected.map(|(prefix, mtu)| (prefix.to_owned(), mtu)));
}

#[test]
fn only_the_newcomer_is_at_fault() {
    let resolved = |answer: &str| Facts {
        resolved: BTreeMap::from([("h1".to_owned(), Ok(answer.parse().unwrap()))]),
        ..Facts::default()
    };
    let mut by_name = desired(&[("senior", tunnel("d0", "198.51.100.1"))], &["10.0.1.1/30"]);
    let device = |address| Device { addresses: vec![net(address)], key: None, owner: Owner::Local };
    by_name.set(&"newcomer".parse().unwrap(), tunnel("d1", "h1"), device("10.0.2.1/30"));
    assert_eq!(faulty(&build(&by_name, &Facts::default(), &policy())), [""; 0]);
    assert_eq!(faulty(&build(&by_name, &resolved("198.51.100.2"), &policy())), [""; 0]);

    let target = build(&by_name, &resolved("198.51.100.1"), &policy());
    assert_eq!(faulty(&target), ["newcomer"]);
    let fault = target.faults.values().next().unwrap();
    assert_eq!((fault.kind, fault.field), (ErrorKind::Clash, Field::Remote));
    assert_eq!(fault.fault.problem, "(198.51.100.1:5000) is already the remote of tunnel senior");
    assert_eq!(target.devices.len(), 1);

    // A senior whose name resolves into a newcomer's network keeps its place, too.
    let mut inside = desired(&[("senior", tunnel("d0", "h1"))], &["10.0.1.1/30"]);
    let route = Tunnel { routes: vec![net("10.50.0.0/16")], ..tunnel("d1", "198.51.100.2") };
    inside.set(&"newcomer".parse().unwrap(), route, device("10.0.2.1/30"));
    let target = build(&inside, &resolved("10.50.0.7"), &policy());
    assert_eq!(faulty(&target), ["newcomer"]);
    assert_eq!(target.routes, BTreeSet::new());
}

#[test]
fn a_name_that_does_not_resolve_keeps_its_device_and_hides_no_other_fault() {
    let facts = Facts {
        resolved: BTreeMap::from([("h1".to_owned(), Err("no such host".to_owned()))]),
        ..Facts::default()
    };
    let both = desired(
        &[("senior", tunnel("d", "h1")), ("newcomer", tunnel("d", "198.51.100.1"))],
        &["10.0.1.1/30"],
    );
    let target = build(&both, &facts, &policy());
    let kinds: Vec<_> = target.faults.iter().map(|(name, fault)| (name.as_str(), fault.kind)).collect();
    assert_eq!(kinds, [("newcomer", ErrorKind::Clash), ("senior", ErrorKind::Unavailable)]);
    assert_eq!(target.devices, BTreeMap::new());

    let refused = Tunnel { routes: vec![net("0.0.0.0/0")], ..tunnel("d", "h1") };
    let target = build(&desired(&[("t", refused)], &["10.0.1.1/30"]), &facts, &policy());
    assert_eq!(target.faults.values().next().unwrap().kind, ErrorKind::NotAccepted);
}

#[test]
fn a_tunnel_at_fault_takes_nothing_from_others() {
    let mut facts = Facts::default();
    let link = Link { ours: false, up: true, mtu: 1500, addresses: BTreeSet::new() };
    facts.actual.links.insert("d0".to_owned(), link);
    let tunnels = [("faulty", tunnel("d0", "198.51.100.1")), ("good", tunnel("d1", "198.51.100.1"))];
    let target = build(&desired(&tunnels, &["10.0.1.1/30"]), &facts, &policy());
    assert_eq!(faulty(&target), ["faulty"]);
    assert_eq!(target.forwarding.keys().map(DeviceName::as_str).collect::<Vec<_>>(), ["d1"]);
    // With the interface gone the senior has what it wants.
    let target = build(&desired(&tunnels, &["10.0.1.1/30"]), &Facts::default(), &policy());
    assert_eq!(faulty(&target), ["good"]);
}

#[test]
fn ports_tell_tunnels_to_one_host_apart() {
    let of = |remotes: [&str; 2]| {
        let mut both = desired(&[("a", tunnel("d0", remotes[0]))], &["10.0.1.1/30"]);
        let device = Device { addresses: vec![net("10.0.2.1/30")], key: None, owner: Owner::Local };
        both.set(&"b".parse().unwrap(), tunnel("d1", remotes[1]), device);
        build(&both, &Facts::default(), &policy())
    };
    for clash in [
        ["198.51.100.1", "198.51.100.1"],
        ["198.51.100.1", "198.51.100.1:5000"],
        ["198.51.100.1:5000", "198.51.100.1"],
        ["198.51.100.1:6000", "198.51.100.1:6000"],
    ] {
        assert_eq!(faulty(&of(clash)), ["b"], "{clash:?}");
    }
    let target = of(["198.51.100.1", "198.51.100.1:6000"]);
    assert_eq!(faulty(&target), [""; 0]);
    let forwarding = target.forwarding.values().flat_map(|device| device.tunnels.values());
    let endpoints: Vec<_> = forwarding.map(|t| (t.endpoint.unwrap().to_string(), t.exact_port)).collect();
    assert_eq!(endpoints, [("198.51.100.1:5000".to_owned(), false), ("198.51.100.1:6000".to_owned(), true)]);
}

#[test]
fn an_address_is_on_one_interface() {
    let device = |address| Device { addresses: vec![net(address)], key: None, owner: Owner::Local };
    let mut both = desired(&[("a", tunnel("d0", "198.51.100.1"))], &["10.0.1.1/24"]);
    // The same address in a wider network.
    both.set(&"b".parse().unwrap(), tunnel("d1", "198.51.100.2"), device("10.0.1.1/16"));
    let target = build(&both, &Facts::default(), &policy());
    assert_eq!(faulty(&target), ["b"]);
    let fault = target.faults.values().next().unwrap();
    assert_eq!((fault.kind, fault.field), (ErrorKind::Clash, Field::Address(0)));

    let mut facts = Facts::default();
    let link = Link { ours: false, up: true, mtu: 1500, addresses: BTreeSet::from([net("10.0.1.1/30")]) };
    facts.actual.links.insert("eth0".to_owned(), link);
    let alone = desired(&[("a", tunnel("d0", "198.51.100.1"))], &["10.0.1.1/24"]);
    assert_eq!(faulty(&build(&alone, &facts, &policy())), ["a"]);
    // A network around the host's own is another matter.
    let around = desired(&[("a", tunnel("d0", "198.51.100.1"))], &["10.0.1.9/24"]);
    assert_eq!(faulty(&build(&around, &facts, &policy())), [""; 0]);
}

/// A tunnel with several remotes of which the one at a position is in use.
fn with_several(remotes: &str, in_use: usize, resolved: &[(&str, Result<&str, &str>)]) -> Target {
    let desired = desired(&[("t", Tunnel { probed: true, ..tunnel("d", remotes) })], &["10.0.1.1/30"]);
    let resolved = resolved.iter().map(|(name, answer)| {
        let answer = answer.map(|address| address.parse().unwrap()).map_err(str::to_owned);
        ((*name).to_owned(), answer)
    });
    let in_use = BTreeMap::from([("t".parse().unwrap(), in_use)]);
    build(&desired, &Facts { resolved: resolved.collect(), in_use, ..Facts::default() }, &policy())
}

fn sent(target: &Target) -> &ForwardingTunnel {
    target.forwarding.values().next().unwrap().tunnels.values().next().unwrap()
}

#[test]
fn of_several_remotes_one_is_in_use_and_all_are_known() {
    let remotes = "198.51.100.1,198.51.100.2:6000,198.51.100.3";
    for (in_use, endpoint, preferred) in [
        (0, "198.51.100.1:5000", [false, false]),
        (1, "198.51.100.2:6000", [true, false]),
        (2, "198.51.100.3:5000", [true, true]),
        // Of a list that is shorter now.
        (9, "198.51.100.1:5000", [false, false]),
    ] {
        let target = with_several(remotes, in_use, &[]);
        let sent = sent(&target);
        assert_eq!(sent.endpoint.unwrap().to_string(), endpoint);
        assert_eq!(sent.exact_port, in_use == 1);
        assert_eq!(sent.others.iter().map(|other| other.is_preferred).collect::<Vec<_>>(), preferred);
        let mut all: Vec<_> = sent.others.iter().map(|other| (other.address, other.exact_port)).collect();
        all.push((sent.endpoint.unwrap(), sent.exact_port));
        all.sort_unstable();
        let named = all.iter().map(|(address, exact)| (address.to_string(), *exact)).collect::<Vec<_>>();
        let expected =
            [("198.51.100.1:5000", false), ("198.51.100.2:6000", true), ("198.51.100.3:5000", false)];
        assert_eq!(named, expected.map(|(address, exact)| (address.to_owned(), exact)));
    }
}

#[test]
fn a_remote_that_does_not_resolve_leaves_it_to_the_next() {
    let remotes = "h1,198.51.100.2,h2";
    let in_use = |in_use, resolved: &[(&str, Result<&str, &str>)]| {
        let target = with_several(remotes, in_use, resolved);
        assert_eq!(faulty(&target), [""; 0]);
        target.in_use.values().next().copied()
    };
    assert_eq!(in_use(0, &[]), None, "it is being asked for");
    assert_eq!(in_use(0, &[("h1", Err("no such host"))]), Some(1));
    assert_eq!(in_use(0, &[("h1", Ok("198.51.100.1"))]), Some(0));
    assert_eq!(in_use(2, &[("h2", Err("no such host"))]), None, "the next is being asked for");
    assert_eq!(in_use(2, &[("h2", Err("no such host")), ("h1", Err("no such host"))]), Some(1));
    // Two names of one address are one place.
    assert_eq!(in_use(0, &[("h1", Ok("198.51.100.2"))]), Some(0));
    let target = with_several("h1,h2", 0, &[("h1", Err("no such host")), ("h2", Err("no such host"))]);
    assert_eq!(faulty(&target), ["t"]);
    assert_eq!(target.faults.values().next().unwrap().value, "h1");
}

#[test]
fn every_remote_of_several_is_claimed_and_looked_at() {
    let both = |first: &str, second: &str| {
        let mut both = desired(&[("a", tunnel("d0", first))], &["10.0.1.1/30"]);
        let device = Device { addresses: vec![net("10.0.2.1/30")], key: None, owner: Owner::Local };
        both.set(&"b".parse().unwrap(), tunnel("d1", second), device);
        build(&both, &Facts::default(), &policy())
    };
    for (first, second, field, value) in [
        ("198.51.100.1,198.51.100.2", "198.51.100.2", Field::Remote, "198.51.100.2"),
        ("198.51.100.2", "198.51.100.1,198.51.100.2", Field::MoreRemotes(0), "198.51.100.2"),
        (
            "198.51.100.1,198.51.100.2",
            "a.example,198.51.100.3,198.51.100.2",
            Field::MoreRemotes(1),
            "198.51.100.2",
        ),
    ] {
        let target = both(first, second);
        assert_eq!(faulty(&target), ["b"], "{first} and {second}");
        let fault = target.faults.values().next().unwrap();
        assert_eq!((fault.kind, fault.field, fault.value.as_str()), (ErrorKind::Clash, field, value));
        assert!(fault.fault.problem.contains("is already the remote of tunnel a"), "{fault:?}");
    }
    assert_eq!(faulty(&both("198.51.100.1,198.51.100.2", "198.51.100.2:6000")), [""; 0]);
    // What covers any of them would take it into a tunnel.
    for (remotes, problem) in [
        ("198.51.100.1,10.0.1.2", "covers 10.0.1.2, the tunnel's own endpoint"),
        ("198.51.100.1,127.0.0.1", "is this host itself"),
    ] {
        let target =
            build(&desired(&[("t", tunnel("d", remotes))], &["10.0.1.1/30"]), &Facts::default(), &policy());
        let fault = &target.faults.values().next().unwrap().fault.problem;
        assert_eq!(fault, problem);
    }
    let route = Tunnel { routes: vec![net("10.50.0.0/16")], ..tunnel("d1", "198.51.100.3") };
    let mut covered = desired(&[("a", tunnel("d0", "198.51.100.1,10.50.0.7"))], &["10.0.1.1/30"]);
    let device = Device { addresses: vec![net("10.0.2.1/30")], key: None, owner: Owner::Local };
    covered.set(&"b".parse().unwrap(), route, device);
    let target = build(&covered, &Facts::default(), &policy());
    assert_eq!(faulty(&target), ["b"]);
    let problem = &target.faults.values().next().unwrap().fault.problem;
    assert_eq!(problem, "covers 10.50.0.7, the endpoint of tunnel a");
}
