use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

/// Each text is refused, in words that say what is wrong and what to do.
fn refused<T: fmt::Debug>(parse: impl Fn(&str) -> Result<T, Invalid>, cases: &[(&str, &str, &str)]) {
    for (text, problem, remedy) in cases {
        let fault = parse(text).unwrap_err();
        assert!(fault.problem.contains(problem), "{text:?}: {fault}");
        assert!(fault.remedy.contains(remedy), "{text:?}: {fault}");
    }
}

#[test]
fn names() {
    for text in ["a", "udp2", "0", "min-1.example_b", "abcdefghijklmno"] {
        assert_eq!(text.parse::<DeviceName>().unwrap().as_str(), text);
        assert_eq!(text.parse::<TunnelName>().unwrap().to_string(), text);
    }
    assert!("x".repeat(79).parse::<TunnelName>().is_ok());
    refused(
        DeviceName::from_str,
        &[
            ("", "is empty", "1 to 15 bytes"),
            ("abcdefghijklmnop", "is 16 bytes long", "at most 15 bytes"),
            ("a b", "has the character ' '", "letters, digits"),
            ("a/b", "has the character '/'", "letters, digits"),
            ("a:b", "has the character ':'", "letters, digits"),
            ("a\n", "has the character '\\n'", "letters, digits"),
            ("töp", "has the character 'ö'", "letters, digits"),
            // The kernel has no interface of these names, and options begin with '-'.
            (".", "begins with a mark", "begin with a letter or digit"),
            ("..", "begins with a mark", "begin with a letter or digit"),
            ("-a", "begins with a mark", "begin with a letter or digit"),
        ],
    );
    refused(TunnelName::from_str, &[(&"x".repeat(80), "is 80 bytes long", "at most 79 bytes")]);
}

#[test]
fn mtus() {
    for bytes in [68, 1500, 65_535] {
        assert_eq!(u32::from(Mtu::try_from(bytes).unwrap()), bytes);
    }
    for bytes in [0, 67, 65_536, u32::MAX] {
        let fault = Mtu::try_from(bytes).unwrap_err();
        assert_eq!(fault.to_string(), "is out of range; use 68 to 65535", "{bytes}");
    }
    for (bytes, nearest) in [(0, 68), (68, 68), (1472, 1472), (65_535, 65_535), (65_536, 65_535)] {
        assert_eq!(u32::from(Mtu::clamped(bytes)), nearest);
    }
}

#[test]
fn remotes() {
    let address = |text: &str| Host::Address(text.parse().unwrap());
    let named = |text: &str| Host::Name(text.to_owned());
    for (text, host, port, shown) in [
        ("172.100.1.2", address("172.100.1.2"), None, "172.100.1.2"),
        ("172.100.1.2:5000", address("172.100.1.2"), Some(5000), "172.100.1.2:5000"),
        ("fd00::2", address("fd00::2"), None, "fd00::2"),
        ("FD00:0::2", address("fd00::2"), None, "fd00::2"),
        ("[fd00::2]:5000", address("fd00::2"), Some(5000), "[fd00::2]:5000"),
        // A socket for both families shows IPv4 peers so.
        ("::ffff:172.100.1.2", address("172.100.1.2"), None, "172.100.1.2"),
        ("[::ffff:172.100.1.2]:1", address("172.100.1.2"), Some(1), "172.100.1.2:1"),
        ("minion-2", named("minion-2"), None, "minion-2"),
        ("Minion-2.Example", named("minion-2.example"), None, "minion-2.example"),
        ("minion_2:65535", named("minion_2"), Some(65_535), "minion_2:65535"),
        ("3com.example", named("3com.example"), None, "3com.example"),
        ("127.0.0.1:6000", address("127.0.0.1"), Some(6000), "127.0.0.1:6000"),
    ] {
        let remote: Remote = text.parse().unwrap();
        assert_eq!(remote, Remote { host, port }, "{text}");
        assert_eq!(remote.to_string(), shown);
    }
    let long = format!("{}.example", "x".repeat(64));
    let very_long = ["x".repeat(60).as_str(); 5].join(".");
    let neither = "is neither an address nor a host name";
    let forms = "172.100.1.2, [fd00::2]:5000 or minion-2:5000";
    refused(
        Remote::from_str,
        &[
            ("", neither, forms),
            ("1", neither, forms),
            ("12345", neither, forms),
            ("172.100.1", neither, forms),
            ("172.100.1.256", neither, forms),
            ("172.100.1.2.3", neither, forms),
            ("172.100.1.2/24", neither, forms),
            ("a..b", neither, forms),
            ("minion 2", neither, forms),
            ("http://minion-2", "no valid port", forms),
            (&long, neither, forms),
            (&very_long, neither, forms),
            (":5000", neither, forms),
            ("minion-2:", "no valid port", forms),
            ("minion-2:0", "no valid port", forms),
            ("minion-2:65536", "no valid port", forms),
            ("minion-2:x", "no valid port", forms),
            ("172.100.1.2:0", "has the port 0", "1 to 65535"),
            ("[fd00::2]:0", "has the port 0", "1 to 65535"),
            ("[fd00::2]", "no valid port", forms),
            ("fd00::g", "no valid port", forms),
            ("0.0.0.0", "is no host's address", forms),
            ("::", "is no host's address", forms),
            ("224.0.0.1:5000", "is no host's address", forms),
            ("ff02::1", "is no host's address", forms),
            ("255.255.255.255", "is no host's address", forms),
            ("::ffff:224.0.0.1", "is no host's address", forms),
            ("fe80::1", "is another host's on every link", "a global or unique local address"),
            ("[fe80::1]:5000", "is another host's on every link", "a global or unique local address"),
            ("fe80::1%eth0", "is another host's on every link", "a global or unique local address"),
            ("[febf::1%eth0]:5000", "is another host's on every link", "a global or unique local address"),
        ],
    );
}

#[test]
fn networks() {
    for text in ["192.168.2.0/24", "0.0.0.0/0", "10.0.0.1/32", "fd00:2::/64", "::/0"] {
        assert_eq!(parse_network(text).unwrap().to_string(), text);
    }
    refused(
        parse_network,
        &[
            ("", "is not a network", "192.168.2.0/24 or fd00:2::/64"),
            ("192.168.2.0", "is not a network", "192.168.2.0/24"),
            ("192.168.2.0/33", "is not a network", "192.168.2.0/24"),
            ("fd00:2::/129", "is not a network", "192.168.2.0/24"),
            ("192.168.2.1/24", "has bits behind its prefix length", "write 192.168.2.0/24"),
            ("fd00:2::1/64", "has bits behind its prefix length", "write fd00:2::/64"),
        ],
    );
}

#[test]
fn interface_addresses() {
    for text in ["10.0.1.1/30", "10.0.1.0/31", "10.0.1.1/31", "10.0.1.1/32", "fd00:1::1/64", "fd00:1::1/128"]
    {
        assert_eq!(parse_interface_address(text).unwrap().to_string(), text);
    }
    refused(
        parse_interface_address,
        &[
            ("10.0.1.1", "has no prefix length", "as 10.0.1.1/30"),
            ("fd00:1::1", "has no prefix length", "fd00:1::1/64"),
            ("minion-1/24", "is not an address", "as 10.0.1.1/30"),
            ("10.0.1.1/33", "is not an address", "as 10.0.1.1/30"),
            ("10.0.1.0/30", "is the address of the network itself", "a single host"),
            ("10.0.1.3/30", "is the network's broadcast address", "a single host"),
            ("0.0.0.0/8", "is no single host's address", "a single host"),
            ("127.0.0.1/8", "is no single host's address", "a single host"),
            ("224.0.0.1/4", "is no single host's address", "a single host"),
            ("255.255.255.255/32", "is no single host's address", "a single host"),
            ("::1/128", "is no single host's address", "a single host"),
            ("ff02::1/64", "is no single host's address", "a single host"),
        ],
    );
}

#[test]
fn public_keys() {
    let key = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=";
    assert_eq!(key.parse::<PublicKey>().unwrap().to_string(), key);
    let (problem, remedy) = ("is not 32 bytes in base64", "`wg pubkey`");
    refused(
        PublicKey::from_str,
        &[
            ("", problem, remedy),
            ("secret", problem, remedy),
            ("AAAA", problem, remedy),
            (&key[..43], problem, remedy),
        ],
    );
}

fn tunnel(device: &str) -> Tunnel {
    Tunnel {
        device: device.parse().unwrap(),
        mtu: None,
        remote: Some("minion-2".parse().unwrap()),
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

fn device() -> Device {
    Device { addresses: vec!["10.0.1.1/30".parse().unwrap()], key: None, owner: Owner::Local }
}

fn some_tunnel() -> impl Strategy<Value = Tunnel> {
    let remote = prop::sample::select(vec!["172.100.1.2", "[fd00::2]:5000", "minion-2", "minion-2:6000"]);
    let key = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=".parse().unwrap();
    let framing = prop::sample::select(vec![Framing::Raw, Framing::Pi, Framing::Wireguard(key)]);
    let without = prop::collection::btree_set(prop::sample::select(Offload::ALL.to_vec()), 0..3);
    let owner = prop::sample::select(vec![Owner::Local, Owner::Controller]);
    let prefix = (any::<IpAddr>(), 0..=32u8)
        .prop_map(|(address, length)| IpNet::new(address, length).unwrap().trunc());
    let allowed =
        (prefix.clone(), any::<u32>()).prop_map(|(prefix, preference)| AllowedPrefix { prefix, preference });
    let mtu = proptest::option::of((68..=65_535u32).prop_map(|bytes| bytes.try_into().unwrap()));
    ("[a-z]{1,2}", mtu, remote, framing, vec(allowed, 0..3), vec(prefix, 0..3), without, owner).prop_map(
        |(device, mtu, remote, framing, allowed_prefixes, routes, without, owner)| Tunnel {
            device: device.parse().unwrap(),
            mtu,
            remote: Some(remote.parse().unwrap()),
            framing,
            keepalive: None,
            also_plain: false,
            probed: false,
            echo: None,
            allowed_prefixes,
            routes,
            without,
            owner,
        },
    )
}

proptest! {
    #[test]
    fn no_text_breaks_a_parser(text in "[ -~\\n\u{e4}]{0,20}|[0-9a-f.:/\\[\\]]{0,20}") {
        if let Ok(remote) = text.parse::<Remote>() {
            prop_assert_eq!(remote.to_string().parse::<Remote>().unwrap(), remote);
        }
        if let Ok(network) = parse_network(&text) {
            prop_assert_eq!(parse_network(&network.to_string()).unwrap(), network);
        }
        if let Ok(address) = parse_interface_address(&text) {
            prop_assert_eq!(parse_interface_address(&address.to_string()).unwrap(), address);
        }
        if let Ok(name) = text.parse::<DeviceName>() {
            prop_assert!(text.parse::<TunnelName>().is_ok());
            prop_assert!(name.as_str().len() <= DeviceName::LONGEST);
        }
    }

    #[test]
    fn the_wanted_state_stays_consistent_and_survives_json(
        changes in vec(("[a-c]", proptest::option::of(some_tunnel())), 0..20),
    ) {
        let mut desired = Desired::default();
        for (name, change) in changes {
            let name: TunnelName = name.parse().unwrap();
            match change {
                Some(tunnel) => {
                    desired.set(&name, tunnel, device());
                    prop_assert_eq!(desired.seniority.last(), Some(&name));
                }
                None => {
                    let known = desired.tunnels.contains_key(&name);
                    prop_assert_eq!(desired.remove(&name), known);
                }
            }
            prop_assert!(desired.is_consistent());
        }
        let json = serde_json::to_string(&desired).unwrap();
        prop_assert_eq!(serde_json::from_str::<Desired>(&json).unwrap(), desired);
    }
}

#[test]
fn seniority_is_that_of_the_last_change() {
    let mut desired = Desired::default();
    for name in ["a", "b", "c", "a"] {
        desired.set(&name.parse().unwrap(), tunnel(name), device());
    }
    assert!(desired.remove(&"b".parse().unwrap()));
    assert_eq!(desired.seniority.iter().map(TunnelName::as_str).collect::<Vec<_>>(), ["c", "a"]);
}

#[test]
fn a_device_goes_with_its_last_tunnel() {
    let mut desired = Desired::default();
    let (a, b) = ("a".parse().unwrap(), "b".parse().unwrap());
    desired.set(&a, tunnel("d0"), device());
    desired.set(&b, tunnel("d0"), device());
    let devices = |desired: &Desired| desired.devices.keys().map(ToString::to_string).collect::<Vec<_>>();
    desired.set(&a, tunnel("d1"), device());
    assert_eq!(devices(&desired), ["d0", "d1"]);
    desired.set(&b, tunnel("d1"), device());
    assert_eq!(devices(&desired), ["d1"]);
    desired.remove(&a);
    desired.remove(&b);
    assert_eq!(desired, Desired::default());
}

#[test]
fn what_does_not_match_is_not_consistent() {
    let mut good = Desired::default();
    good.set(&"a".parse().unwrap(), tunnel("d0"), device());
    good.set(&"b".parse().unwrap(), tunnel("d1"), device());
    type Spoil = fn(&mut Desired);
    let breaks: [(&str, Spoil); 6] = [
        ("a device without a tunnel", |it| {
            it.devices.insert("d2".parse().unwrap(), device());
        }),
        ("a tunnel without its device", |it| it.devices.retain(|name, _| name.as_str() != "d0")),
        ("a tunnel without seniority", |it| it.seniority.truncate(1)),
        ("seniority of nobody", |it| it.seniority.push("c".parse().unwrap())),
        ("seniority twice", |it| it.seniority.push("a".parse().unwrap())),
        ("seniority of another", |it| it.seniority[0] = "c".parse().unwrap()),
    ];
    assert!(good.is_consistent());
    for (what, spoil) in breaks {
        let mut bad = good.clone();
        spoil(&mut bad);
        assert!(!bad.is_consistent(), "{what}");
    }
}

#[test]
fn json_is_no_way_around_the_parsers() {
    for (text, good) in [("\"udp2\"", true), ("\"-udp2\"", false), ("\"\"", false), ("7", false)] {
        assert_eq!(serde_json::from_str::<DeviceName>(text).is_ok(), good, "{text}");
    }
    for (text, good) in [("1500", true), ("67", false), ("70000", false), ("-1", false)] {
        assert_eq!(serde_json::from_str::<Mtu>(text).is_ok(), good, "{text}");
    }
    for (text, good) in [("\"10.0.0.1:1\"", true), ("\"10.0.0\"", false)] {
        assert_eq!(serde_json::from_str::<Remote>(text).is_ok(), good, "{text}");
    }
}

#[test]
fn prefixes_of_command_lines_are_networks_with_or_without_host_bits() {
    assert_eq!(parse_prefix("172.100.1.1/16").unwrap().to_string(), "172.100.0.0/16");
    refused(
        parse_prefix,
        &[
            ("172.100.1.1", "has no prefix length", "172.100.1.1/32"),
            ("fd00::1", "has no prefix length", "fd00::1/128"),
            ("172.100.0.0/33", "is not a network", "172.100.0.0/16"),
            ("nowhere", "is not a network", "fd00:100::/32"),
        ],
    );
}
