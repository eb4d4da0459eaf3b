use std::fmt::Write;

use proptest::collection::{btree_map, btree_set, vec};
use proptest::prelude::*;
use proptest::sample::select;

use super::*;
use crate::proto::model::Offload;

const EXAMPLE: &str = "\
mesh: prod
overlay: 10.9.0.0/24
security: plain
nodes:
  minion-1: {endpoint: 172.100.1.1, address: 10.9.0.1, routes: [192.168.1.0/24]}
  minion-2: {endpoint: 172.100.1.2, routes: [192.168.2.0/24]}
  minion-3:
    labels: {rack: 07}
  minion-4:
members: [{labels: {role: web}}]
";

fn faults(content: &str) -> Vec<String> {
    parse(content).unwrap_err().iter().map(|fault| fault.describe("mesh.yaml")).collect()
}

fn name<T: std::str::FromStr<Err = Invalid>>(text: &str) -> T {
    text.parse().unwrap()
}

#[test]
fn a_mesh_is_read_from_yaml() {
    let labels = |key: &str, value: &str| BTreeMap::from([(key.to_owned(), value.to_owned())]);
    let nodes = BTreeMap::from([
        (
            name("minion-1"),
            MeshNode {
                endpoint: Some(name("172.100.1.1")),
                addresses: vec!["10.9.0.1".parse().unwrap()],
                routes: vec!["192.168.1.0/24".parse().unwrap()],
                ..MeshNode::default()
            },
        ),
        (
            name("minion-2"),
            MeshNode {
                endpoint: Some(name("172.100.1.2")),
                routes: vec!["192.168.2.0/24".parse().unwrap()],
                ..MeshNode::default()
            },
        ),
        // A label is text, whatever it looks like.
        (name("minion-3"), MeshNode { labels: labels("rack", "07"), ..MeshNode::default() }),
        (name("minion-4"), MeshNode::default()),
    ]);
    let mesh = Mesh {
        name: name("prod"),
        overlay: Overlay { v4: Some("10.9.0.0/24".parse().unwrap()), v6: None },
        device: name("prod"),
        topology: Topology::Full,
        security: Security::Plain,
        mtu: None,
        without: Offloads::new(),
        nodes,
        members: vec![Selector { labels: labels("role", "web") }],
    };
    assert_eq!(parse(EXAMPLE).unwrap(), mesh);
    let stored = serde_json::to_string(&mesh).unwrap();
    assert_eq!(serde_json::from_str::<Mesh>(&stored).unwrap(), mesh);
}

#[test]
fn a_mesh_is_never_plain_unless_it_says_so_and_its_mtu_automatic() {
    let mesh = "{mesh: a, overlay: [10.9.0.0/24, 'fd00::/64'], nodes: {b: }, security: plain}";
    for encrypted in [mesh.replace("plain", "encrypted"), mesh.replace(", security: plain", "")] {
        assert_eq!(parse(&encrypted).unwrap().security, Security::Encrypted);
    }
    let mesh = parse(mesh).unwrap();
    assert_eq!((mesh.security, mesh.mtu, mesh.device.as_str()), (Security::Plain, None, "a"));
    let mesh =
        parse("{mesh: a, overlay: 'fd00::/64', mtu: auto, device: tun7, security: plain, nodes: {b: }}")
            .unwrap();
    assert_eq!((mesh.overlay.v4, mesh.mtu, mesh.device.as_str()), (None, None, "tun7"));
    let mesh =
        parse("{mesh: a, overlay: 10.9.0.0/24, mtu: 1400, topology: full, security: plain, nodes: {b: }}")
            .unwrap();
    assert_eq!(mesh.mtu.map(Mtu::get), Some(1400));
}

#[test]
fn a_mesh_has_so_many_nodes_at_most() {
    let file = |nodes: usize| {
        let nodes: String = (0..nodes).map(|n| format!("  n{n}:\n")).collect();
        format!("mesh: a\noverlay: 10.9.0.0/16\nsecurity: plain\nnodes:\n{nodes}")
    };
    assert_eq!(parse(&file(NODES)).unwrap().nodes.len(), NODES);
    assert_eq!(
        faults(&file(NODES + 2)),
        [
            "mesh.yaml:2005:3: nodes \"n2000\" is one of 2002 nodes; a mesh has at most 2000: make two meshes, with an \
          overlay each"
        ]
    );
}

#[test]
fn a_name_that_the_kernel_has_is_no_device() {
    let kept = "is a name that the kernel keeps for itself; use another";
    let everywhere = "is an interface that every host has; write device: with another name";
    for (mesh, expected) in [
        ("mesh: lo", format!("1:8: mesh \"lo\" {everywhere}")),
        ("mesh: all", format!("1:8: mesh \"all\" {kept}")),
        ("mesh: prod, device: lo", format!("1:22: device \"lo\" {everywhere}")),
        ("mesh: prod, device: default", format!("1:22: device \"default\" {kept}")),
    ] {
        let found = faults(&format!("{{{mesh}, overlay: 10.9.0.0/24, security: plain, nodes: {{a: }}}}"));
        assert_eq!(found, [format!("mesh.yaml:{expected}")]);
    }
    assert!(parse("{mesh: lo, device: prod, overlay: 10.9.0.0/24, security: plain, nodes: {a: }}").is_ok());
}

#[test]
fn what_is_no_yaml_has_its_place_and_what_to_look_at() {
    let tab = "the line is indented with a tab; indent with spaces alone";
    let look = "see here and the line before: what belongs together begins in one column, behind a name come a colon and \
                a space, and what is opened is closed";
    for (content, place, expected) in [
        ("mesh: prod\nnodes:\n\tn1: {}\n", "3:1", tab),
        ("mesh: prod\nnodes:\n  n1:\n  \tendpoint: 1.2.3.4\n", "4:3", tab),
        ("mesh: prod\n\toverlay: 10.9.0.0/24\n", "2:1", tab),
        ("mesh: prod\nnodes:\n  n1: {}\n   n2: {}\n", "4:4", look),
        ("mesh: prod\nnodes:\n  n1: {}\n n2: {}\n", "4:2", look),
        ("mesh: prod\nnodes:\n  n1:\n    endpoint: 1.2.3.4\n     routes: []\n", "5:12", look),
        (" mesh: prod\noverlay: 10.9.0.0/24\n", "2:1", look),
        ("mesh: prod\noverlay:10.9.0.0/24\n", "2:1", look),
        ("mesh: prod\nnodes:\n  n1: {endpoint: 1.2.3.4\n  n2: {}\n", "4:5", look),
        // Between brackets a tab is a space.
        ("{\n\t\"mesh\": \"prod\"\n\t\"overlay\": \"10.9.0.0/24\"\n}\n", "3:2", look),
    ] {
        let found = faults(content);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].starts_with(&format!("mesh.yaml:{place}: ")), "{content:?}: {found:?}");
        assert!(found[0].ends_with(expected), "{content:?}: {found:?}");
    }
}

/// Each file has these faults, in this order, each said in words that begin and end so.
#[test]
fn every_fault_has_its_place_field_value_and_remedy() {
    let file = |rest: &str| {
        let security = if rest.contains("security:") { "" } else { "\nsecurity: plain" };
        format!("mesh: prod\noverlay: 10.9.0.0/29\n{rest}{security}")
    };
    let cases: &[(&str, &[(&str, &str)])] = &[
        ("nodes:\n  a b:\n", &[(":4:3: nodes \"a b\" has the character ' '", "letter or digit")]),
        (
            "nodes: {a: {endpoint: 1.2.3}}",
            &[(":3:23: nodes.a.endpoint \"1.2.3\" is neither", "minion-2:5000")],
        ),
        (
            "nodes: {a: {endpoint: '127.0.0.1:5000'}}",
            &[(":3:23: nodes.a.endpoint \"127.0.0.1:5000\" is every host's own", "others reach the node")],
        ),
        (
            "nodes: {a: {endpoint: [1.2.3.4, 1.2.3, 1.2.3.4]}}",
            &[
                (":3:33: nodes.a.endpoint[1] \"1.2.3\" is neither", "minion-2:5000"),
                (":3:40: nodes.a.endpoint[2] \"1.2.3.4\" stands twice", "give it once"),
            ],
        ),
        (
            "nodes: {a: {endpoint: [none, 1.2.3.4, 1.2.3.4]}}",
            &[
                (":3:24: nodes.a.endpoint[0] \"none\" is no host", "alone"),
                (":3:39: nodes.a.endpoint[2] \"1.2.3.4\" stands twice", "give it once"),
            ],
        ),
        (
            "nodes: {a: {endpoint: [1.2.3.4, a.example, 1.2.3.4]}}",
            &[(":3:44: nodes.a.endpoint[2] \"1.2.3.4\" stands twice", "give it once")],
        ),
        (
            "nodes: {a: {endpoint: [1.2.3.4, 1.2.3.5, 1.2.3.6, 1.2.3.7, 1.2.3.8]}}",
            &[(":3:60: nodes.a.endpoint[4] \"1.2.3.8\" is one too many", "give at most 4")],
        ),
        ("nodes: {a: {endpoint: []}}", &[(":3:23: nodes.a.endpoint is empty", "as 172.100.1.2")]),
        (
            "nodes: {a: {endpoint: [1.2.3.4, 1.2.3.5]}, b: {endpoint: [1.2.3.6, 1.2.3.5]}}",
            &[(":3:68: nodes.b.endpoint[1] \"1.2.3.5\" is also nodes.a.endpoint[1]", "its own port")],
        ),
        (
            "nodes:\n  a: {endpoint: 1.2.3.4}\n  b: {endpoint: 1.2.3.4}\n",
            &[(":5:17: nodes.b.endpoint \"1.2.3.4\" is also nodes.a.endpoint", "its own port")],
        ),
        (
            "nodes: {a: {address: 10.9.0.8}}",
            &[(":3:22: nodes.a.address \"10.9.0.8\" does not lie in the overlay", "use 10.9.0.0/29")],
        ),
        (
            "nodes:\n  a: {address: 10.9.0.0}\n  b: {address: 10.9.0.7}\n",
            &[
                (":4:16: nodes.a.address \"10.9.0.0\" is the address of the network itself", "single host"),
                (":5:16: nodes.b.address \"10.9.0.7\" is the network's broadcast address", "single host"),
            ],
        ),
        (
            "nodes: {a: {address: 10.9.0.1/29}}",
            &[(":3:22: nodes.a.address \"10.9.0.1/29\" has a prefix length", "write 10.9.0.1")],
        ),
        ("nodes: {a: {address: one}}", &[(":3:22: nodes.a.address \"one\" is no address", "as 10.9.0.1")]),
        (
            "nodes:\n  a: {address: 10.9.0.1}\n  b: {addresses: [10.9.0.1]}\n",
            &[(":5:19: nodes.b.addresses[0] \"10.9.0.1\" is also nodes.a.address", "its own address")],
        ),
        (
            "nodes: {a: {addresses: [10.9.0.1, 10.9.0.2]}}",
            &[(":3:35: nodes.a.addresses[1] \"10.9.0.2\" is a second address", "one IPv6 address")],
        ),
        (
            "nodes: {a: {address: 10.9.0.1, addresses: []}}",
            &[(":3:43: nodes.a.addresses is there beside address", "one of both")],
        ),
        (
            "nodes:\n  a: {routes: [192.168.0.0/16]}\n  b: {routes: [10.0.0.0/8, 192.168.2.0/24]}\n",
            &[
                (
                    ":5:16: nodes.b.routes[0] \"10.0.0.0/8\" overlaps 10.9.0.0/29, which is overlay",
                    "of the overlay",
                ),
                (
                    ":5:28: nodes.b.routes[1] \"192.168.2.0/24\" overlaps 192.168.0.0/16, which is nodes.a.routes[0]",
                    "of the overlay",
                ),
            ],
        ),
        (
            "nodes: {a: {routes: [192.168.2.0/24]}, b: {routes: [192.168.2.0/24]}}",
            &[(":3:53: nodes.b.routes[0] \"192.168.2.0/24\" overlaps 192.168.2.0/24", "of the overlay")],
        ),
        (
            "nodes: {a: {routes: [192.168.2.1/24, 0.0.0.0/0, '::/0', 224.0.0.0/4, x]}}",
            &[
                (":3:22: nodes.a.routes[0] \"192.168.2.1/24\" has bits behind", "write 192.168.2.0/24"),
                (":3:38: nodes.a.routes[1] \"0.0.0.0/0\" is a default route", "behind the node"),
                (":3:49: nodes.a.routes[2] \"::/0\" is a default route", "behind the node"),
                (":3:57: nodes.a.routes[3] \"224.0.0.0/4\" is no network of hosts", "as 10.9.0.0/24"),
                (":3:70: nodes.a.routes[4] \"x\" is not a network", "fd00:2::/64"),
            ],
        ),
        (
            "nodes: {a: , b: , c: , d: , e: , f: , g: }",
            &[(":2:10: overlay \"10.9.0.0/29\" has 6 addresses for 7 nodes", "behind the slash")],
        ),
        ("members: [{labels: {}}]", &[(":3:11: members[0] selects every node", "{role: web}}")]),
        ("members: [{labels: {a=b: c}}]", &[(":3:21: members[0].labels \"a=b\" has the character", "web}")]),
        (
            "members: [{labels: {a: }}]\n",
            &[(":3:22: null is not allowed here", "in the form of a mesh file")],
        ),
        ("", &[(":1:7: nodes is missing", "members: [{labels: {role: web}}]")]),
        (
            "nodes: {a: }\ntopology: star\nsecurity: none\nmtu: big\ndevice: a/b\n",
            &[
                (":4:11: topology \"star\" is no topology", "write full"),
                (":5:11: security \"none\" is no kind", "reads this mesh"),
                (":6:6: mtu \"big\" is no number", "or auto"),
                (":7:9: device \"a/b\" has the character '/'", "letter or digit"),
            ],
        ),
        (
            "nodes: {a: }\nwithout: [udp-gso, lro, udp-gso]\n",
            &[
                (":4:20: without[1] \"lro\" is no offload", "tun-tso, tun-uso, udp-gso, udp-gro"),
                (":4:25: without[2] \"udp-gso\" stands twice", "give it once"),
            ],
        ),
        ("nodes: {a: }\nmtu: 67\n", &[(":4:6: mtu \"67\" is out of range", "68 to 65535")]),
        (
            "nodes:\n  a:\n    colour: red\n",
            &[(
                ":5:5: colour is not known here",
                "use kind, public_key, peers, endpoint, address, addresses, routes, labels",
            )],
        ),
        ("hub: a\n", &[(":3:1: hub is not known here", "mtu, without, nodes, members")]),
        ("nodes: {a: , b: , a: }", &[(":3:19: a is there twice", "each key once")]),
        ("nodes: {1: , '1': }", &[(":3:14: nodes \"1\" is there twice", "each node once")]),
        ("nodes: [a]", &[(":3:8: expected a map, as {name: value}", "a mesh file")]),
        ("nodes: {a: {routes: 192.168.2.0/24}}", &[(":3:21: expected a list, as [one, two]", "a mesh file")]),
        ("nodes: {a: }\nmesh: other", &[(":4:1: mesh is there twice", "each key once")]),
    ];
    for (rest, expected) in cases {
        let found = faults(&file(rest));
        assert_eq!(found.len(), expected.len(), "{rest}: {found:#?}");
        for (line, (start, end)) in found.iter().zip(*expected) {
            assert!(line.starts_with(&format!("mesh.yaml{start}")), "{rest}: {line}");
            assert!(line.ends_with(end), "{rest}: {line}");
        }
    }
}

#[test]
fn a_node_may_have_wireguard_instead_of_an_agent() {
    const KEY: &str = "CAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAg=";
    let file = |nodes: &str| format!("mesh: prod\noverlay: 10.9.0.0/29\nnodes:\n  a:\n{nodes}");
    let node = |text: &str| parse(&file(text)).unwrap().nodes[&name::<NodeName>("phone")].clone();
    let phone =
        node(&format!("  phone: {{kind: wireguard, public_key: '{KEY}', peers: [a, b], endpoint: phone}}"));
    let wireguard = phone.wireguard.unwrap();
    assert_eq!(wireguard.public_key, Some(name(KEY)));
    assert_eq!(wireguard.peers, BTreeSet::from([name("a"), name("b")]));
    assert_eq!(phone.endpoint, Some(name("phone:51820")), "where others have it, too");
    assert_eq!(node("  phone: {kind: wireguard, peers: a}").wireguard.unwrap().public_key, None);
    assert_eq!(node("  phone: {kind: agent}"), MeshNode::default());
    let cases = [
        (
            "  phone: {kind: router}",
            ":5:17: nodes.phone.kind \"router\" is no kind",
            "agent (the default) or wireguard",
        ),
        ("  phone: {kind: wireguard}", ":5:3: nodes.phone.peers is missing", "as peers: [minion-1]"),
        (
            "  phone: {kind: wireguard, peers: []}",
            ":5:3: nodes.phone.peers is missing",
            "as peers: [minion-1]",
        ),
        (
            "  phone: {peers: [a]}",
            ":5:18: nodes.phone.peers is for nodes without an agent",
            "kind: wireguard, too",
        ),
        (
            "  phone: {kind: agent, public_key: x}",
            ":5:36: nodes.phone.public_key \"x\" is for nodes without an agent",
            "leave it out",
        ),
        (
            "  phone: {kind: wireguard, peers: a, public_key: x}",
            ":5:50: nodes.phone.public_key \"x\" is not 32 bytes",
            "`wg pubkey`",
        ),
        (
            "  phone: {kind: wireguard, peers: phone}",
            ":5:35: nodes.phone.peers \"phone\" is the node itself",
            "others",
        ),
        (
            "  phone: {kind: wireguard, peers: [a, a]}",
            ":5:39: nodes.phone.peers[1] \"a\" stands twice",
            "once",
        ),
        (
            "  phone: {kind: wireguard, peers: x}\n  x: {kind: wireguard, peers: a}",
            ":5:35: nodes.phone.peers \"x\" has no agent either",
            "name nodes that have one",
        ),
        (
            "  phone: {kind: wireguard, peers: a}\nsecurity: plain",
            ":5:17: nodes.phone.kind \"wireguard\" has encrypted tunnels alone",
            "security: encrypted",
        ),
    ];
    for (text, fault, remedy) in cases {
        let [told] = &faults(&file(text))[..] else { panic!("{text}: {:?}", faults(&file(text))) };
        assert!(told.contains(fault) && told.contains(remedy), "{text}: {told}");
    }
    let twice = format!(
        "  phone: {{kind: wireguard, peers: a, public_key: '{KEY}'}}\n  x: {{kind: wireguard, peers: a, public_key: '{KEY}'}}"
    );
    let [told] = &faults(&file(&twice))[..] else { panic!("{:?}", faults(&file(&twice))) };
    assert!(told.contains("is also nodes.phone.public_key; give each node a key of its own"), "{told}");
}

#[test]
fn an_overlay_is_held_against_its_rules() {
    for (overlay, mtu, expected) in [
        (
            "10.9.0.1/24",
            "auto",
            "1:20: overlay \"10.9.0.1/24\" has bits behind its prefix length; write 10.9.0.0/24",
        ),
        ("[10.9.0.0/24, 10.8.0.0/24]", "auto", "1:34: overlay[1] \"10.8.0.0/24\" is a second network"),
        ("0.0.0.0/0", "auto", "1:20: overlay \"0.0.0.0/0\" is all addresses"),
        ("127.0.0.0/8", "auto", "1:20: overlay \"127.0.0.0/8\" is no network of hosts"),
        ("'ff00::/8'", "auto", "1:20: overlay \"ff00::/8\" is no network of hosts"),
        ("'fd00::/64'", "1279", "1:38: mtu \"1279\" is too small for an IPv6 overlay; use at least 1280"),
        ("[]", "auto", "1:8: overlay is missing"),
        ("10", "auto", "1:11: invalid type: integer `10`, expected a text or a list of texts"),
    ] {
        let found =
            faults(&format!("{{mesh: a, overlay: {overlay}, mtu: {mtu}, nodes: {{b: }}, security: plain}}"));
        assert_eq!(found.len(), 1, "{found:#?}");
        assert!(found[0].starts_with(&format!("mesh.yaml:{expected}")), "{}", found[0]);
    }
}

#[test]
fn an_anycast_address_is_no_nodes() {
    let found = faults("{mesh: a, overlay: 'fd00::/64', nodes: {b: {address: 'fd00::'}}, security: plain}");
    assert!(found[0].contains("nodes.b.address \"fd00::\" is the anycast address"), "{}", found[0]);
}

#[test]
fn json_is_read_with_places_too() {
    let json = r#"{
  "mesh": "prod", "overlay": ["10.9.0.0/24"], "security": "plain", "mtu": 1400,
  "nodes": {"minion-1": {"endpoint": "172.100.1.1:6000", "routes": ["192.168.1.0/24"]}, "minion-4": null}
}"#;
    assert_eq!(parse(json).unwrap().nodes.len(), 2);
    let faulty = json.replace("172.100.1.1:6000", "172.100.1.1:0");
    assert_eq!(
        faults(&faulty),
        [
            "mesh.yaml:3:38: nodes.minion-1.endpoint \"172.100.1.1:0\" has the port 0; use a port of 1 to 65535"
        ]
    );
    assert!(faults(&json.replace("null}", "null"))[0].starts_with("mesh.yaml:"), "an unclosed brace");
    let faulty = json.replace("\"routes\"", "\"subnets\"");
    assert!(faults(&faulty)[0].starts_with("mesh.yaml:3:58: subnets is not known here"));
}

#[test]
fn aliases_stand_where_they_are_used() {
    let found = faults(
        "mesh: a\noverlay: 10.9.0.0/24\nnodes:\n  b: &x {endpoint: 1.2.3.4}\n  c: *x\nsecurity: plain\n",
    );
    assert_eq!(found.len(), 1);
    assert!(found[0].starts_with("mesh.yaml:5:6: nodes.c.endpoint \"1.2.3.4\" is also nodes.b.endpoint"));
}

#[test]
fn a_file_that_would_cost_too_much_is_refused() {
    let bomb = (1..40).fold("a0: &a0 [x]\n".to_owned(), |mut text, level| {
        let below = level - 1;
        writeln!(text, "a{level}: &a{level} [*a{below}, *a{below}, *a{below}, *a{below}]").unwrap();
        text
    });
    for (content, expected) in [
        (String::new(), "the file is empty"),
        ("# nothing\n".to_owned(), "the file is empty"),
        ("a".repeat((4 << 20) + 1), "the file has 4194305 bytes; use at most 4194304"),
        ("[".repeat(1_000_000), ""),
        ("{a: ".repeat(1_000_000), ""),
        ("- ".repeat(1_000_000), ""),
        (format!("nodes: {{a: {}", "{a: ".repeat(100_000)), ""),
        (format!("nodes: {{a: {{labels: {}", "[".repeat(100_000)), ""),
        (format!("mesh: {bomb}"), ""),
        (bomb, "a0 is not known here"),
        ((0..300_000).fold("nodes:\n".to_owned(), |text, node| text + &format!(" n{node}:\n")), "too many"),
        ("mesh: a\n---\nmesh: b\n".to_owned(), "multiple"),
    ] {
        let found = faults(&content);
        assert_eq!(found.len(), 1);
        assert!(found[0].contains(expected), "{}", found[0]);
    }
}

#[test]
fn a_fault_is_one_line_whatever_the_file_holds() {
    for content in
        ["\"a\\nb\\e[31m\": 1", "nodes: {\"a\\nb\\e[31m\": {endpoint: \"\\e\"}}", "mesh: !<\u{1b}> a"]
    {
        for fault in faults(content) {
            assert!(!fault.contains(char::is_control), "{fault:?}");
        }
    }
}

#[test]
fn addresses_that_nodes_can_have() {
    let range = |network: &str| {
        let network: IpNet = network.parse().unwrap();
        let addresses = node_addresses(network);
        [*addresses.start(), *addresses.end()].map(|number| to_address(network, number).to_string())
    };
    assert_eq!(range("10.9.0.0/24"), ["10.9.0.1", "10.9.0.254"]);
    assert_eq!(range("10.9.0.0/30"), ["10.9.0.1", "10.9.0.2"]);
    assert_eq!(range("10.9.0.0/31"), ["10.9.0.0", "10.9.0.1"]);
    assert_eq!(range("10.9.0.0/32"), ["10.9.0.0", "10.9.0.0"]);
    assert_eq!(range("fd00::/126"), ["fd00::1", "fd00::3"]);
    assert_eq!(range("fd00::/127"), ["fd00::", "fd00::1"]);
    assert_eq!(range("::/0"), ["::1", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"]);
}

/// A node as a file has it: parts that cannot clash with those of another position.
fn node(position: usize) -> impl Strategy<Value = MeshNode> {
    (any::<[bool; 6]>(), btree_map("[a-z]{1,3}", "[a-z0-9. ]{0,4}", 0..3)).prop_map(move |(has, labels)| {
        let parts = |has: bool, text: String| has.then(|| text.parse().unwrap());
        let addresses = [
            parts(has[0], format!("10.9.1.{}", position + 1)),
            parts(has[1], format!("fd00:9::{:x}", position + 1)),
        ];
        MeshNode {
            endpoint: has[2].then(|| {
                let more = if has[3] {
                    format!(",host-{position}:7000,other-{position}:6000")
                } else {
                    String::new()
                };
                format!("host-{position}:6000{more}").parse().unwrap()
            }),
            addresses: addresses.into_iter().flatten().collect(),
            routes: has[3].then(|| format!("192.168.{position}.0/24").parse().unwrap()).into_iter().collect(),
            labels,
            wireguard: has[4].then(|| WireguardNode {
                public_key: has[5].then(|| [u8::try_from(position + 1).unwrap(); 32].into()),
                peers: BTreeSet::from([name("peer"), name(&format!("peer-{position}"))]),
            }),
        }
    })
}

fn mesh() -> impl Strategy<Value = Mesh> {
    let nodes = vec(any::<bool>(), 0..8)
        .prop_flat_map(|kept| kept.into_iter().enumerate().map(|(at, _)| node(at)).collect::<Vec<_>>());
    let selectors = vec(btree_map("[a-z]{1,3}", "[a-z]{0,3}", 1..3), 1..3);
    let without = btree_set(select(Offload::ALL.to_vec()), 0..3);
    (nodes, selectors, prop::option::of(1280_u32..9000), without).prop_map(
        |(nodes, selectors, mtu, without)| Mesh {
            name: name("prod"),
            overlay: Overlay { v4: "10.9.0.0/16".parse().ok(), v6: "fd00:9::/64".parse().ok() },
            device: name("tun7"),
            topology: Topology::Full,
            security: match nodes.iter().any(|node| node.wireguard.is_some()) {
                true => Security::Encrypted,
                false => Security::Plain,
            },
            mtu: mtu.map(|mtu| mtu.try_into().unwrap()),
            without,
            nodes: nodes.into_iter().enumerate().map(|(at, node)| (name(&format!("n{at}")), node)).collect(),
            members: selectors.into_iter().map(|labels| Selector { labels }).collect(),
        },
    )
}

/// The file of a mesh, as JSON.
fn file(mesh: &Mesh) -> String {
    let nodes: serde_json::Map<_, _> = mesh
        .nodes
        .iter()
        .map(|(name, node)| {
            let mut file = serde_json::json!({
                "endpoint": node.endpoint, "addresses": node.addresses, "routes": node.routes, "labels": node.labels,
            });
            if let Some(wireguard) = &node.wireguard {
                file["kind"] = "wireguard".into();
                file["public_key"] = serde_json::json!(wireguard.public_key);
                file["peers"] = serde_json::json!(wireguard.peers);
            }
            (name.to_string(), file)
        })
        .collect();
    let overlay: Vec<_> = mesh.overlay.networks().collect();
    let mtu = mesh.mtu.map_or(serde_json::json!("auto"), |mtu| mtu.get().into());
    serde_json::json!({
        "mesh": mesh.name, "overlay": overlay, "device": mesh.device, "topology": mesh.topology,
        "security": mesh.security, "mtu": mtu, "without": mesh.without, "nodes": nodes, "members": mesh.members,
    })
    .to_string()
}

fn network() -> impl Strategy<Value = IpNet> {
    (0_u32..16, 28_u8..=32)
        .prop_map(|(low, prefix)| IpNet::new(Ipv4Addr::from(low).into(), prefix).unwrap().trunc())
}

proptest! {
    #[test]
    fn what_is_written_is_what_is_read(mesh in mesh()) {
        prop_assert_eq!(parse(&file(&mesh)), Ok(mesh));
    }

    #[test]
    fn no_text_is_too_odd(content in "(\\PC|[\\[\\]{}:,&*!|>'\"#\n\t -])*") {
        let _ = parse(&content);
    }

    #[test]
    fn no_mangled_file_is_too_odd(at in 0..EXAMPLE.len(), length in 0_usize..40, other in "[\\[\\]{}:,&*a0./\n -]{0,6}") {
        let end = (at + length).min(EXAMPLE.len());
        let content = format!("{}{other}{}", &EXAMPLE[..at], &EXAMPLE[end..]);
        for fault in parse(&content).err().into_iter().flatten() {
            prop_assert!(!fault.describe("mesh.yaml").contains('\n'));
            let lines = content.lines().count();
            prop_assert!(fault.place.is_none_or(|(line, column)| (1..=lines + 1).contains(&line) && column > 0));
        }
    }

    #[test]
    fn overlaps_are_found(networks in vec(network(), 0..8)) {
        let numbered = networks.iter().copied().enumerate().map(|(at, network)| (network, at));
        let found = nested(numbered);
        for [(outer, at), (inner, other)] in &found {
            prop_assert!(outer.contains(inner) && at != other);
        }
        // All but the largest of each group lie in one.
        let largest = networks.iter().enumerate().filter(|(at, network)| {
            networks.iter().enumerate().all(|(other, outer)| {
                other == *at || !outer.contains(*network) || (outer == *network && other > *at)
            })
        });
        prop_assert_eq!(found.len(), networks.len() - largest.count());
    }
}
