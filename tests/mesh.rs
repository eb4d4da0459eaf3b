//! Meshes: a real controller and real agents, from the mesh file to packets.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a fault ends the test")]
#![allow(clippy::disallowed_methods, reason = "real convergence is timed")]

mod lab;

use std::fmt::Write;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use lab::{
    Agent, Controller, Family, Host, Pinger, SOON, Segment, ThreeHosts, all_reach, grpcurl, holds_within,
    legacy_add, node_name as name, ping_ok, wait_live, wait_until,
};
use serde_json::{Value, json};

/// From the call of `apply` to packets between every pair.
const CONVERGED: Duration = Duration::from_secs(3);
const ADD: &str = "tunmesh.v1.TunnelService/AddTunnel";
const DELETE: &str = "tunmesh.v1.TunnelService/DeleteTunnel";

/// A mesh file with the nodes as lines of YAML, and other `settings` as they are.
fn mesh<'a>(
    name: &str,
    overlay: &str,
    nodes: impl IntoIterator<Item = (usize, &'a str)>,
    settings: &str,
) -> String {
    let mut file = format!("mesh: {name}\noverlay: {overlay}\n{settings}\nnodes:\n");
    for (n, node) in nodes {
        writeln!(file, "  n{n}: {{{node}}}").unwrap();
    }
    file
}

/// Nodes with the addresses 10.9.0.N, and nothing else.
fn numbered(nodes: &[usize]) -> Vec<(usize, String)> {
    nodes.iter().map(|n| (*n, format!("address: 10.9.0.{n}"))).collect()
}

fn prod(nodes: &[(usize, String)], settings: &str) -> String {
    mesh("prod", "10.9.0.0/24", nodes.iter().map(|(n, node)| (*n, node.as_str())), settings)
}

/// Each of the hosts with the addresses of the others.
fn all_pairs<'a>(hosts: &[(&'a Host, IpAddr)]) -> Vec<(&'a Host, Vec<IpAddr>)> {
    let others =
        |own: usize| hosts.iter().enumerate().filter(move |(n, _)| *n != own).map(|(_, (_, other))| *other);
    hosts.iter().enumerate().map(|(n, (host, _))| (*host, others(n).collect())).collect()
}

fn overlay(n: usize) -> IpAddr {
    format!("10.9.0.{n}").parse().unwrap()
}

/// The numbers of a host's interfaces that agents made, by name.
fn indexes(host: &Host) -> Vec<(String, u64)> {
    let links = host.ip_json(["link", "show", "type", "tun"]);
    let mut indexes: Vec<_> = links
        .as_array()
        .unwrap()
        .iter()
        .map(|link| (link["ifname"].as_str().unwrap().to_owned(), link["ifindex"].as_u64().unwrap()))
        .collect();
    indexes.sort();
    indexes
}

/// The overlay addresses of a mesh's nodes, as the controller has them.
fn addresses(controller: &Controller, mesh: &str) -> Vec<(String, Vec<IpAddr>)> {
    let meshes = controller.json(&["mesh", "list"]);
    let found = meshes["meshes"].as_array().unwrap().iter().find(|found| found["name"] == mesh);
    let nodes = found.unwrap_or_else(|| panic!("no mesh {mesh}: {meshes}"))["nodes"].as_array().unwrap();
    let parsed = |addresses: &Value| {
        let addresses = addresses.as_array().into_iter().flatten();
        addresses.map(|address| address.as_str().unwrap().parse().unwrap()).collect()
    };
    nodes.iter().map(|node| (node["name"].as_str().unwrap().to_owned(), parsed(&node["addresses"]))).collect()
}

/// Whether `controller status` comes to have so many problems of a node; an empty `node` is all.
fn comes_to_have(controller: &Controller, node: &str, problems: usize) -> bool {
    holds_within(SOON, || controller.problems(node).len() == problems)
}

fn state_of(agent: &Agent, tunnel: &str) -> String {
    let tunnels = agent.tunnels();
    let found = tunnels.iter().find(|status| status["tunnel"]["name"] == tunnel);
    found.and_then(|status| status["state"].as_str()).unwrap_or("GONE").to_owned()
}

/// Three hosts with subnets, one of them behind a router that is the controller's, and a mesh with these settings.
fn three_hosts(family: Family, settings: &str) {
    let hosts = ThreeHosts::new(family);
    let (listen, address, overlay, own) = match family {
        Family::V4 => ("0.0.0.0:7443", "172.100.1.254:7443", "10.9.0.0/24", "10.9.0."),
        Family::V6 => ("[::]:7443", "[fd00:100:1::254]:7443", "fd00:10:9::/64", "fd00:10:9::"),
    };
    let controller = Controller::start(&hosts.router, &["--listen", listen]);
    let _agents = [1, 2, 3].map(|n| Agent::join(hosts.host(n), address, &name(n), &[]));
    wait_live(&controller, &[1, 2, 3].map(name));
    let nodes = [1, 2, 3].map(|n| {
        let (endpoint, route) = (hosts.underlay(n), hosts.subnet(n));
        (n, format!("endpoint: '{endpoint}', address: '{own}{n}', routes: ['{route}']"))
    });
    let file =
        mesh("prod", &format!("'{overlay}'"), nodes.iter().map(|(n, node)| (*n, node.as_str())), settings);

    let start = Instant::now();
    controller.apply(&file).unwrap();
    let outer: Vec<_> = [1, 2, 3].map(|n| (hosts.host(n), format!("{own}{n}").parse().unwrap())).into();
    let inner: Vec<_> = [1, 2, 3].map(|n| (hosts.inner(n), hosts.inner_address(n).parse().unwrap())).into();
    let mut wanted = all_pairs(&outer);
    wanted.extend(all_pairs(&inner));
    all_reach(&wanted, CONVERGED.saturating_sub(start.elapsed())).unwrap();
    controller.apply_with(&file, &["--wait"]).unwrap();
}

#[test]
fn three_hosts_and_their_subnets_are_joined_in_three_seconds() {
    three_hosts(Family::V4, "");
}

#[test]
fn three_hosts_and_their_subnets_are_joined_in_three_seconds_in_plain_text() {
    three_hosts(Family::V4, "security: plain");
}

#[test]
fn three_hosts_and_their_subnets_are_joined_in_three_seconds_on_ipv6() {
    three_hosts(Family::V6, "");
}

#[test]
fn ten_hosts_are_joined_in_three_seconds() {
    let segment = Segment::new(10);
    let _agents = segment.agents(10);
    let nodes = numbered(&(1..=10).collect::<Vec<_>>());
    let start = Instant::now();
    segment.controller.apply(&prod(&nodes, "")).unwrap();
    let hosts: Vec<_> = (1..=10).map(|n| (segment.host(n), overlay(n))).collect();
    all_reach(&all_pairs(&hosts), CONVERGED.saturating_sub(start.elapsed())).unwrap();
}

#[test]
fn who_is_not_concerned_by_a_change_loses_nothing() {
    let segment = Segment::new(6);
    let controller = &segment.controller;
    let agents = segment.agents(5);
    let subnet = |n: usize| {
        segment.host(n).run(["ip", "link", "add", "subnet", "type", "bridge"]);
        segment.host(n).run(["ip", "link", "set", "subnet", "up"]);
        segment.host(n).address("subnet", &format!("192.168.7.{n}/24"));
    };
    let with_subnet = |nodes: &[usize], owner: usize| {
        let mut nodes = numbered(nodes);
        nodes
            .iter_mut()
            .filter(|(n, _)| *n == owner)
            .for_each(|(_, node)| *node += ", routes: [192.168.7.0/24]");
        prod(&nodes, "members: [{labels: {role: web}}]")
    };
    subnet(3);
    controller.apply_with(&with_subnet(&[1, 2, 3, 4, 5], 3), &["--wait"]).unwrap();
    let hosts: Vec<_> = (1..=5).map(|n| (segment.host(n), overlay(n))).collect();
    all_reach(&all_pairs(&hosts), SOON).unwrap();
    ping_ok(segment.host(1), "192.168.7.3");

    let before: Vec<_> = (1..=4).map(|n| indexes(segment.host(n))).collect();
    let interval = Duration::from_millis(50);
    let pair = [(1, 2), (2, 1)].map(|(from, to)| {
        (format!("{from} to {to}"), Pinger::start(segment.host(from), &overlay(to).to_string(), interval))
    });
    // Nor do those that change but stay.
    let to_3 = Pinger::start(segment.host(1), "10.9.0.3", interval);
    let to_4 = Pinger::start(segment.host(2), "10.9.0.4", interval);

    // One joins by its label.
    let joined = segment.agent(6, &["--label", "role=web"]);
    wait_until(SOON, "it has an address", || addresses(controller, "prod").len() == 6);
    let (_, of_6) = addresses(controller, "prod").into_iter().find(|(name, _)| name == "n6").unwrap();
    let all: Vec<_> = hosts.iter().copied().chain([(segment.host(6), of_6[0])]).collect();
    all_reach(&all_pairs(&all), SOON).unwrap();

    // One is removed: it alone loses more than half.
    let without_5 = with_subnet(&[1, 2, 3, 4], 3);
    let refused = controller.apply(&without_5).unwrap_err();
    assert!(refused.stderr.contains("n5") && refused.stderr.contains("--allow-removals"), "{refused}");
    assert_eq!(addresses(controller, "prod").len(), 6, "a refused file changes nothing");
    controller.apply_with(&without_5, &["--allow-removals", "--wait"]).unwrap();
    wait_until(SOON, "the removed node has no tunnels", || {
        agents[4].tunnels().is_empty() && indexes(segment.host(5)).is_empty()
    });
    wait_until(SOON, "the others have none to it", || {
        agents[..4].iter().all(|agent| state_of(agent, "prod.n5") == "GONE")
    });

    // A subnet moves.
    segment.host(3).run(["ip", "link", "del", "subnet"]);
    subnet(4);
    controller.apply_with(&with_subnet(&[1, 2, 3, 4], 4), &["--wait"]).unwrap();
    ping_ok(segment.host(1), "192.168.7.4");
    ping_ok(segment.host(6), "192.168.7.4");

    for (what, pinger) in pair.into_iter().chain([("to 3".to_owned(), to_3), ("to 4".to_owned(), to_4)]) {
        pinger.lost_nothing(&what);
    }
    let after: Vec<_> = (1..=4).map(|n| indexes(segment.host(n))).collect();
    assert_eq!(after, before);
    drop(joined);
}

#[test]
fn a_node_that_was_away_loses_what_was_consented_to_and_nothing_else() {
    let segment = Segment::new(5);
    let controller = &segment.controller;
    let mut agents = segment.agents(5);
    legacy_add(segment.host(5), "udp9", "10.0.9.1", "172.100.1.99", 1400);
    controller.apply_with(&prod(&numbered(&[1, 2, 3, 4, 5]), ""), &["--wait"]).unwrap();
    let all = |agents: &[Agent]| agents.iter().map(Agent::tunnel_names).collect::<Vec<_>>();
    let before = all(&agents);
    agents[4].kill9();

    let emptied = prod(&numbered(&[1]), "");
    for refused in [controller.run(&["mesh", "delete", "prod"]), controller.apply(&emptied)] {
        let refused = refused.unwrap_err();
        assert!(refused.stderr.contains("--allow-removals") && refused.stderr.contains("n5"), "{refused}");
    }
    assert_eq!(all(&agents[..4]), before[..4]);
    controller.run(&["mesh", "delete", "prod", "--allow-removals"]).unwrap();
    wait_until(SOON, "those that are there have none", || all(&agents[..4]).iter().all(Vec::is_empty));
    agents[4].restart();
    wait_until(SOON, "nor has the one that comes back", || agents[4].tunnel_names() == ["udp9"]);
    wait_until(SOON, "it is in step", || agents[4].session()["state"] == "SYNCED");
    assert!(controller.events("removals-held", "").is_empty());
    assert!(controller.problems("").is_empty());
}

#[test]
fn local_tunnels_stay_and_a_clash_costs_one_tunnel() {
    let segment = Segment::new(6);
    let controller = &segment.controller;
    let mut agents = segment.agents(6);
    let first = &agents[0];
    legacy_add(segment.host(1), "udp9", "10.0.9.1", "172.100.1.99", 1400);
    // Of the same name as a tunnel of the controller, to the same remote, and with the same prefix.
    for tunnel in [
        json!({"name": "prod.n2", "device": "local2", "addresses": ["10.0.2.1/30"], "remote": "172.100.1.98", "framing": "RAW"}),
        json!({"name": "local3", "addresses": ["10.0.3.1/30"], "remote": "172.100.1.3", "framing": "RAW"}),
        json!({"name": "local4", "addresses": ["10.0.4.1/30"], "remote": "172.100.1.97", "framing": "RAW",
               "allowedPrefixes": [{"prefix": "10.9.0.4/32"}, {"prefix": "10.0.4.0/30"}]}),
    ] {
        grpcurl(first, ADD, &json!({ "tunnel": tunnel })).unwrap();
    }
    let local = |agent: &Agent| -> Vec<Value> {
        let mut tunnels = agent.tunnels();
        tunnels.retain(|status| status["owner"] == "LOCAL");
        tunnels.iter_mut().map(|status| json!([status["tunnel"], status["state"]])).collect()
    };
    let before = (local(first), indexes(segment.host(1)));
    assert_eq!(before.0.len(), 4);

    let file = prod(&numbered(&[1, 2, 3, 4, 5, 6]), "security: plain");
    let failed = controller.apply_with(&file, &["--wait"]).unwrap_err();
    for tunnel in ["prod.n2", "prod.n3", "prod.n4"] {
        assert!(failed.stderr.contains(tunnel), "{failed}");
    }
    let good: Vec<_> = [1, 5, 6].map(|n| (segment.host(n), overlay(n))).into();
    all_reach(&all_pairs(&good), SOON).unwrap();
    let rest: Vec<_> = (2..=6).map(|n| (segment.host(n), overlay(n))).collect();
    all_reach(&all_pairs(&rest), SOON).unwrap();
    assert_eq!(local(first), before.0, "local tunnels were touched");
    assert!(
        before.1.iter().all(|index| indexes(segment.host(1)).contains(index)),
        "their devices were touched"
    );

    // By name, on both sides.
    let socket = first.socket();
    let shown = segment.host(1).run([lab::AGENT, "tunnels", "--socket", socket.to_str().unwrap()]);
    let problems = controller.problems("n1");
    for (tunnel, with) in [("prod.n2", "prod.n2"), ("prod.n3", "local3"), ("prod.n4", "local4")] {
        let line = problems.iter().find(|problem| problem.starts_with(&format!("tunnel {tunnel}:")));
        assert!(line.is_some_and(|line| line.contains(with)), "{tunnel}: {problems:?}");
        assert!(shown.contains(tunnel), "{shown}");
    }
    assert_eq!(problems.len(), 3, "{problems:?}");
    for line in ["local3", "local4"] {
        assert!(
            shown.lines().any(|shown| shown.contains("prod.n") && shown.contains(line)),
            "{line}: {shown}"
        );
    }
    assert_eq!(controller.problems("").len(), 3);

    // Whatever comes: a new snapshot, a new mesh file, either side anew.
    agents[0].restart();
    wait_live(controller, &[name(1)]);
    all_reach(&all_pairs(&good), SOON).unwrap();
    controller
        .apply_with(&prod(&numbered(&[1, 2, 3, 4, 5]), "security: plain"), &["--allow-removals"])
        .unwrap();
    wait_until(SOON, "n1 has no tunnel to n6", || state_of(&agents[0], "prod.n6") == "GONE");
    let first = &agents[0];
    assert_eq!(local(first), before.0);

    // A local tunnel that clashes with one of the controller's is refused.
    let late = json!({"tunnel": {"name": "late", "addresses": ["10.0.5.1/30"], "remote": "172.100.1.5", "framing": "RAW"}});
    let refused = grpcurl(first, ADD, &late).unwrap_err();
    assert!(refused.message.contains("prod.n5"), "{refused:?}");

    // What was in the way goes, and the controller's tunnels come.
    for tunnel in ["prod.n2", "local3", "local4"] {
        grpcurl(first, DELETE, &json!({"name": tunnel})).unwrap();
    }
    let all: Vec<_> = (1..=5).map(|n| (segment.host(n), overlay(n))).collect();
    all_reach(&all_pairs(&all), SOON).unwrap();
    assert!(comes_to_have(controller, "", 0), "{:?}", controller.problems(""));
}

#[test]
fn a_host_that_does_not_forward_what_it_offers_is_named() {
    let segment = Segment::new(2);
    let controller = &segment.controller;
    let host = segment.host(1);
    host.forwarding(false);
    segment.host(2).forwarding(false);
    let _agents = segment.agents(2);
    let mut nodes = numbered(&[1, 2]);
    nodes[0].1 += ", routes: [192.168.7.0/24, 'fd00:7::/64']";
    controller.apply_with(&prod(&nodes, ""), &["--wait"]).unwrap();
    let off = |sysctl: &str| {
        let problems = controller.problems("n1");
        problems.iter().any(|problem| problem.contains("mesh prod: it offers ") && problem.contains(sysctl))
    };
    let (v4, v6) = ("sysctl -w net.ipv4.ip_forward=1", "sysctl -w net.ipv6.conf.all.forwarding=1");
    wait_until(SOON, "both families are named", || off(v4) && off(v6));
    assert!(controller.problems("n2").is_empty(), "it offers nothing");
    host.sysctl("net.ipv4.ip_forward", "1");
    wait_until(SOON, "IPv4 is on", || !off(v4));
    assert!(off(v6));
    host.forwarding(true);
    assert!(comes_to_have(controller, "", 0), "{:?}", controller.problems(""));
}

#[test]
fn what_cannot_be_had_is_named_and_the_rest_applies() {
    let segment = Segment::new(4);
    let controller = &segment.controller;
    let _agents = segment.agents(4);
    segment.host(2).run(["ip", "link", "add", "prod", "type", "bridge"]);
    let theirs = segment.host(2).ip_json(["link", "show", "dev", "prod"]);
    let mut nodes = numbered(&[1, 2, 3, 4]);
    nodes[2].1 += ", routes: [203.0.113.0/24]";
    segment.host(3).forwarding(true);
    let file = prod(&nodes, "");
    let failed = controller.apply_with(&file, &["--wait"]).unwrap_err();
    assert!(failed.stderr.contains("prod.n3") && failed.stderr.contains("203.0.113.0/24"), "{failed}");
    all_reach(&all_pairs(&[1, 4].map(|n| (segment.host(n), overlay(n)))), SOON).unwrap();

    let of = |node: &str, tunnel: &str| {
        let start = format!("tunnel {tunnel}:");
        controller.problems(node).into_iter().find(|problem| problem.starts_with(&start))
    };
    for node in ["n1", "n4"] {
        let problem = of(node, "prod.n3").unwrap_or_default();
        assert!(
            problem.contains("203.0.113.0/24") && problem.contains("--accept-prefix"),
            "{node}: {problem}"
        );
        assert_eq!(controller.problems(node).len(), 1, "{:?}", controller.problems(node));
    }
    for peer in ["n1", "n3", "n4"] {
        let problem = of("n2", &format!("prod.{peer}")).unwrap_or_default();
        assert!(problem.contains("prod"), "{peer}: {:?}", controller.problems("n2"));
    }
    assert!(controller.problems("n3").is_empty(), "{:?}", controller.problems("n3"));
    assert_eq!(
        segment.host(2).ip_json(["link", "show", "dev", "prod"]),
        theirs,
        "the foreign device was touched"
    );

    // Once it can be had, it comes by itself.
    segment.host(2).run(["ip", "link", "del", "prod"]);
    all_reach(&all_pairs(&[1, 2, 4].map(|n| (segment.host(n), overlay(n)))), SOON).unwrap();
    assert!(comes_to_have(controller, "n2", 1), "{:?}", controller.problems("n2"));
    controller.apply_with(&prod(&numbered(&[1, 2, 3, 4]), ""), &["--wait"]).unwrap();
    assert!(controller.problems("").is_empty());
}

#[test]
fn several_meshes_keep_their_addresses() {
    let mut segment = Segment::new(4);
    let _agents = segment.agents(4);
    // All but n3 are in two; the last has two families.
    let files = [
        ("red", mesh("red", "10.9.0.0/24", [(1, ""), (2, ""), (3, "")], "security: plain")),
        ("blue", mesh("blue", "'fd00:9::/64'", [(2, "endpoint: '172.100.1.2:5000'"), (4, "")], "")),
        ("green", mesh("green", "[10.10.0.0/24, 'fd00:10::/64']", [(1, ""), (4, "")], "")),
    ];
    for (_, file) in &files {
        segment.controller.apply_with(file, &["--wait"]).unwrap_or_else(|failed| panic!("{failed}"));
    }
    let all = |controller: &Controller| files.each_ref().map(|(name, _)| addresses(controller, name));
    let reached = |segment: &Segment| {
        for nodes in all(&segment.controller) {
            let host = |name: &str| segment.host(name[1..].parse().unwrap());
            let families = nodes[0].1.len();
            for family in 0..families {
                let ends: Vec<_> =
                    nodes.iter().map(|(name, addresses)| (host(name), addresses[family])).collect();
                all_reach(&all_pairs(&ends), SOON).unwrap();
            }
        }
    };
    let before = all(&segment.controller);
    assert_eq!(before.each_ref().map(|nodes| nodes[0].1.len()), [1, 1, 2], "{before:?}");
    reached(&segment);
    let devices = (1..=4).map(|n| indexes(segment.host(n))).collect::<Vec<_>>();
    assert_eq!(devices.iter().map(Vec::len).collect::<Vec<_>>(), [2, 2, 1, 2], "{devices:?}");

    // Plain tunnels are told apart by their peers: no two nodes can be in two meshes together.
    let second = mesh("second", "10.11.0.0/24", [(1, ""), (2, "")], "security: plain");
    let refused = segment.controller.apply(&second).unwrap_err();
    assert!(refused.stderr.contains("red") && refused.stderr.contains("n2"), "{refused}");
    assert_eq!(segment.controller.json(&["mesh", "list"])["meshes"].as_array().unwrap().len(), 3);

    segment.controller.restart();
    assert_eq!(all(&segment.controller), before, "after a restart");
    wait_live(&segment.controller, &(1..=4).map(name).collect::<Vec<_>>());
    assert_eq!(
        (1..=4).map(|n| indexes(segment.host(n))).collect::<Vec<_>>(),
        devices,
        "devices were made anew"
    );

    // A node is removed and comes back.
    let without = mesh("red", "10.9.0.0/24", [(2, ""), (3, "")], "security: plain");
    segment.controller.apply_with(&without, &["--wait"]).unwrap();
    assert_eq!(addresses(&segment.controller, "red").len(), 2);
    segment.controller.apply_with(&files[0].1, &["--wait"]).unwrap();
    assert_eq!(all(&segment.controller), before, "after a removal and the same file");
    reached(&segment);

    let devices = (1..=4).map(|n| indexes(segment.host(n))).collect::<Vec<_>>();

    // One mesh goes, the others stay.
    segment.controller.run(&["mesh", "delete", "blue"]).unwrap();
    wait_until(SOON, "blue is gone", || {
        (1..=4).all(|n| indexes(segment.host(n)).iter().all(|(device, _)| device != "blue"))
    });
    let left: Vec<_> = devices
        .iter()
        .map(|devices| devices.iter().filter(|(device, _)| device != "blue").cloned().collect::<Vec<_>>())
        .collect();
    assert_eq!((1..=4).map(|n| indexes(segment.host(n))).collect::<Vec<_>>(), left);
}
