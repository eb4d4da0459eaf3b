//! Meshes as they are by default: encrypted, with keys that the nodes make themselves.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a fault ends the test")]

mod lab;

use std::fs;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use lab::{
    Agent, Capture, Controller, Host, Lab, Memory, Pinger, SOON, Segment, all_reach, grpcurl, number, ping,
    wait_live, wait_until,
};
use serde_json::{Value, json};

const STATUS: &str = "tunmesh.v1.TunnelService/GetStatus";

/// A mesh file that says nothing of security, with the nodes as lines of YAML.
fn prod(nodes: &[(&str, &str)]) -> String {
    let nodes: String = nodes.iter().map(|(name, node)| format!("  {name}: {{{node}}}\n")).collect();
    format!("mesh: prod\noverlay: 10.9.0.0/24\nnodes:\n{nodes}")
}

/// The nodes n1 and so on with the addresses 10.9.0.1 and so on.
fn numbered(count: usize) -> String {
    let nodes: Vec<_> = (1..=count).map(|n| (format!("n{n}"), format!("address: 10.9.0.{n}"))).collect();
    prod(&nodes.iter().map(|(name, node)| (name.as_str(), node.as_str())).collect::<Vec<_>>())
}

fn overlay(n: usize) -> IpAddr {
    format!("10.9.0.{n}").parse().unwrap()
}

/// Waits until each of the hosts 1 to `count` has an answer of all others.
fn all_meet(segment: &Segment, count: usize) {
    let others = |own: usize| (1..=count).filter(move |n| *n != own).map(overlay).collect();
    let wanted: Vec<(&Host, Vec<IpAddr>)> = (1..=count).map(|n| (segment.host(n), others(n))).collect();
    all_reach(&wanted, SOON).unwrap();
}

/// The key by which an agent is known in a mesh; absent: it has none.
fn key_in(agent: &Agent, mesh: &str) -> Option<String> {
    let status = grpcurl(agent, STATUS, &json!({})).unwrap();
    status["meshPublicKeys"][mesh].as_str().map(str::to_owned)
}

fn tunnel(agent: &Agent, name: &str) -> Value {
    let tunnels = agent.tunnels();
    tunnels.into_iter().find(|status| status["tunnel"]["name"] == name).unwrap_or(Value::Null)
}

#[test]
fn a_mesh_that_says_nothing_of_security_can_be_read_by_nobody() {
    const TEXT: &[u8] = b"a text that can be told from everything else";
    let segment = Segment::new(3);
    let agents = segment.agents(3);
    let capture = Capture::start(segment.host(2), "udp port 5000");
    segment.controller.apply_with(&numbered(3), &["--wait"]).unwrap();
    all_meet(&segment, 3);
    let receiver = segment.host(2).enter(|| UdpSocket::bind("10.9.0.2:7777").unwrap());
    receiver.set_read_timeout(Some(SOON)).unwrap();
    for n in [1, 3] {
        let sender = segment.host(n).enter(|| UdpSocket::bind((overlay(n), 0)).unwrap());
        for _ in 0..100 {
            sender.send_to(TEXT, "10.9.0.2:7777").unwrap();
            let mut buffer = [0; 100];
            let length = receiver.recv(&mut buffer).unwrap();
            assert_eq!(&buffer[..length], TEXT);
        }
    }
    let captured = capture.stop();
    assert!(captured.len() > 200 * (TEXT.len() + 28 + 32), "it crossed there");
    assert!(!captured.has(TEXT) && !captured.has(&TEXT[..8]));
    // The addresses of both ends, as a header has them next to each other.
    assert!(!captured.has(&[10, 9, 0, 1, 10, 9, 0, 2]) && !captured.has(&[10, 9, 0, 3, 10, 9, 0, 2]));

    // One key a node and mesh, which its owner alone may read.
    let keys: Vec<_> = agents.iter().map(|agent| key_in(agent, "prod").unwrap()).collect();
    for (n, agent) in (1..).zip(&agents) {
        let file = agent.state_dir().join("wireguard/prod.key");
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert_ne!(Some(agent.public_key()), key_in(agent, "prod"));
        for other in (1..=3).filter(|other| *other != n) {
            let status = tunnel(agent, &format!("prod.n{other}"));
            assert_eq!(status["tunnel"]["peerPublicKey"], json!(keys[other - 1]));
            assert!(!status["lastHandshake"].is_null(), "{status}");
        }
    }

    // What was made stays through restarts of everything; another mesh has keys of its own.
    let mut agents = agents;
    agents[0].restart();
    assert_eq!(key_in(&agents[0], "prod").as_ref(), Some(&keys[0]));
    all_meet(&segment, 3);
    let other = numbered(3).replace("prod", "test").replace("10.9.0.", "10.8.0.");
    segment.controller.apply_with(&other, &["--wait"]).unwrap();
    let to_2 = "10.8.0.2".parse().unwrap();
    all_reach(&[(segment.host(1), vec![to_2]), (segment.host(3), vec![to_2])], SOON).unwrap();
    assert_ne!(key_in(&agents[0], "test").as_ref(), Some(&keys[0]));

    // With the mesh goes its key.
    segment.controller.run(&["mesh", "delete", "prod", "--allow-removals"]).unwrap();
    wait_until(SOON, "its key is gone", || key_in(&agents[0], "prod").is_none());
    wait_until(SOON, "its file is gone", || !agents[0].state_dir().join("wireguard/prod.key").exists());
    assert!(agents[0].state_dir().join("wireguard/test.key").exists());
}

#[test]
fn who_was_removed_sends_nothing_more_into_the_mesh() {
    let segment = Segment::new(3);
    let mut agents = segment.agents(3);
    segment.controller.apply_with(&numbered(3), &["--wait"]).unwrap();
    all_meet(&segment, 3);
    // It does not hear that it was removed, and goes on as it was.
    let outcast = segment.host(3);
    outcast.run(["nft", "add", "table", "inet", "cut"]);
    outcast.run(["nft", "add", "chain", "inet", "cut", "in", "{ type filter hook input priority 0; }"]);
    outcast.run(["nft", "add", "rule", "inet", "cut", "in", "tcp", "sport", "7443", "drop"]);
    segment.controller.apply_with(&numbered(2), &["--allow-removals"]).unwrap();
    wait_until(SOON, "nobody has a tunnel to it", || {
        agents[..2].iter().all(|agent| tunnel(agent, "prod.n3").is_null())
    });
    let inside = Capture::start(segment.host(1), "inbound and src host 10.9.0.3");
    let dropped =
        |reason: &str| number(&grpcurl(&agents[0], STATUS, &json!({})).unwrap()["datagramsDropped"][reason]);
    let (session, stranger) = (dropped("no_session"), dropped("unknown_sender"));
    assert!(!ping(outcast, "10.9.0.1", &["-c", "5", "-i", "0.05", "-W", "1"]));
    assert!(dropped("no_session") >= session + 5, "its packets came there");
    // Nor does a new handshake help.
    agents[2].restart();
    assert_eq!(agents[2].tunnel_names(), ["prod.n1", "prod.n2"], "it goes on with what it has");
    assert!(!ping(outcast, "10.9.0.1", &["-c", "5", "-i", "0.05", "-W", "1"]));
    let dropped =
        |reason: &str| number(&grpcurl(&agents[0], STATUS, &json!({})).unwrap()["datagramsDropped"][reason]);
    assert!(dropped("unknown_sender") > stranger, "its initiation came there");
    assert_eq!(inside.stop().len(), 24, "nothing but the header of the file");
    all_meet(&segment, 2);
}

#[test]
fn keys_are_wiped_with_what_they_were_for() {
    let segment = Segment::new(3);
    let agents = segment.agents(3);
    let capture = Capture::start(segment.host(1), "udp port 5000");
    segment.controller.apply_with(&numbered(3), &["--wait"]).unwrap();
    all_meet(&segment, 3);
    let captured = capture.stop();
    let last = |n: u8| captured.data_packets(Ipv4Addr::new(172, 100, 1, n)).pop().unwrap();
    let (from_1, from_2, from_3) = (last(1), last(2), last(3));
    let own_key = fs::read_to_string(agents[2].state_dir().join("wireguard/prod.key")).unwrap();
    let own_key = STANDARD.decode(own_key.trim_end()).unwrap();
    let memory = |n: usize| Memory::of(agents[n - 1].pid());
    let (of_1, of_3) = (memory(1), memory(3));
    assert!(of_1.keys_of(from_2) > 0 && of_1.keys_of(from_3) > 0, "they would be found");
    assert!(of_3.count(&own_key) > 0 && of_3.keys_of(from_1).max(of_3.keys_of(from_3)) > 0);

    segment.controller.apply_with(&numbered(2), &["--allow-removals", "--wait"]).unwrap();
    wait_until(SOON, "its own key is gone", || key_in(&agents[2], "prod").is_none());
    wait_until(SOON, "nobody has a tunnel to it", || {
        agents[..2].iter().all(|agent| tunnel(agent, "prod.n3").is_null())
    });
    wait_until(SOON, "its keys are wiped at its peer", || memory(1).keys_of(from_3) == 0);
    assert!(memory(1).keys_of(from_2) > 0, "others are as they were");
    wait_until(SOON, "its own key is wiped", || memory(3).count(&own_key) == 0);
    wait_until(SOON, "its sessions are wiped", || memory(3).keys_of(from_3) == 0);
    all_meet(&segment, 2);
}

/// Two hosts behind one address, the router's that they are behind, a host with an address of its own, and a controller.
struct Translated {
    _lab: Lab,
    gateway: Host,
    open: Host,
    hidden: [Host; 2],
    controller: Controller,
}

impl Translated {
    fn new() -> Self {
        let lab = Lab::new();
        let [router, gateway, open] = ["router", "gateway", "n1"].map(|role| lab.host(role));
        let hidden = ["n2", "n3"].map(|role| lab.host(role));
        lab.segment(&router, "172.100.1.254/24", &[(&gateway, "172.100.1.9/24"), (&open, "172.100.1.1/24")]);
        for (n, host) in (2..).zip(&hidden) {
            lab.link(host, &format!("192.168.{n}.1/24"), &gateway, &format!("192.168.{n}.254/24"));
            host.route("172.100.1.0/24", &format!("192.168.{n}.254"));
        }
        gateway.forwarding(true);
        gateway.run(["nft", "add", "table", "ip", "nat"]);
        gateway.run([
            "nft",
            "add",
            "chain",
            "ip",
            "nat",
            "out",
            "{ type nat hook postrouting priority 100; }",
        ]);
        // Each time at another port.
        let rule = ["oifname", "to-router", "masquerade", "random,fully-random"];
        gateway.run(["nft", "add", "rule", "ip", "nat", "out"].iter().chain(&rule));
        let controller = Controller::start(&router, &[]);
        Self { _lab: lab, gateway, open, hidden, controller }
    }

    fn agent(&self, n: usize) -> Agent {
        let host = if n == 1 { &self.open } else { &self.hidden[n - 2] };
        Agent::join(host, "172.100.1.254:7443", &format!("n{n}"), &[])
    }

    /// The gateway has another address: what was translated is forgotten.
    fn renumber(&self) {
        let device = "to-router";
        self.gateway.run(["ip", "address", "del", "172.100.1.9/24", "dev", device]);
        self.gateway.address(device, "172.100.1.8/24");
    }
}

#[test]
fn hosts_behind_one_address_are_reached_from_outside_and_at_another_address_again() {
    let net = Translated::new();
    let mut agents: Vec<_> = (1..=3).map(|n| net.agent(n)).collect();
    wait_live(&net.controller, &["n1", "n2", "n3"].map(str::to_owned));
    let file = prod(&[("n1", "address: 10.9.0.1"), ("n2", "address: 10.9.0.2"), ("n3", "address: 10.9.0.3")]);
    let planned = net.controller.mesh_file(&file);
    let plan = net.controller.run(&["plan", "-f", planned.to_str().unwrap()]).unwrap_err().stdout;
    assert!(plan.contains("n2 and n3 have no endpoint, and no tunnels to each other"), "{plan}");
    net.controller.apply_with(&file, &["--wait"]).unwrap();
    // It is they who come first, and nobody has sent a packet yet.
    let from_outside = [(&net.open, vec![overlay(2), overlay(3)])];
    all_reach(&from_outside, SOON).unwrap();
    assert_eq!(agents[1].tunnel_names(), ["prod.n1"]);
    let endpoint =
        |agents: &[Agent], name: &str| tunnel(&agents[0], name)["endpoint"].as_str().unwrap().to_owned();
    let [first, other] = ["prod.n2", "prod.n3"].map(|name| endpoint(&agents, name));
    assert!(first.starts_with("172.100.1.9:") && other.starts_with("172.100.1.9:"), "{first} {other}");
    assert_ne!(first, other);
    assert_eq!(tunnel(&agents[1], "prod.n1")["tunnel"]["keepalive"], json!(25));

    // Where they are reached changes.
    net.renumber();
    let is_heard = || ping(&net.hidden[0], "10.9.0.1", &["-c", "1", "-W", "1"]);
    wait_until(SOON, "it is heard from there", is_heard);
    assert!(ping(&net.open, "10.9.0.2", &["-c", "1", "-W", "1"]), "it is found there");
    assert!(endpoint(&agents, "prod.n2").starts_with("172.100.1.8:"));

    // Who has an address knows nobody's after a restart. They ask whether it is there.
    agents[0].restart();
    all_reach(&from_outside, Duration::from_secs(45)).unwrap();
}

/// Packets of known text cross on the way from one host to another, and can be read there or not.
fn can_be_read(from: &Host, to: &Host, address: &str) -> bool {
    const TEXT: &[u8] = b"a text that can be told from everything else";
    let capture = Capture::start(to, "udp port 5000");
    let receiver = to.enter(|| UdpSocket::bind((address, 7778)).unwrap());
    receiver.set_read_timeout(Some(SOON)).unwrap();
    let sender = from.enter(|| UdpSocket::bind("0.0.0.0:0").unwrap());
    sender.send_to(TEXT, (address, 7778)).unwrap();
    receiver.recv(&mut [0; 100]).unwrap();
    capture.stop().has(TEXT)
}

#[test]
fn a_mesh_leaves_plain_text_node_by_node_and_nothing_is_lost() {
    let segment = Segment::new(4);
    let agents = segment.agents(4);
    let plain = format!("{}security: plain\n", numbered(4));
    segment.controller.apply_with(&plain, &["--wait"]).unwrap();
    all_meet(&segment, 4);
    assert!(can_be_read(segment.host(1), segment.host(2), "10.9.0.2"));
    let often = Duration::from_millis(10);
    let pairs = [(1, 2), (2, 3), (3, 1), (1, 4), (4, 2)];
    let pingers: Vec<_> = pairs
        .iter()
        .map(|(from, to)| (from, to, Pinger::start(segment.host(*from), &format!("10.9.0.{to}"), often)))
        .collect();
    // One hears nothing of its controller meanwhile, and goes on.
    let cut_off = segment.host(4);
    cut_off.run(["nft", "add", "table", "ip", "t"]);
    cut_off.run(["nft", "add", "chain", "ip", "t", "out", "{ type filter hook output priority 0; }"]);
    cut_off.run(["nft", "add", "rule", "ip", "t", "out", "tcp", "dport", "7443", "drop"]);
    wait_until(4 * SOON, "n4 is cut off", || segment.controller.node("n4")["health"] != "LIVE");
    let told = segment.controller.apply(&numbered(4)).unwrap();
    assert!(told.contains("was unencrypted, and its tunnels to n1, n2, n3, n4 go on so until"), "{told}");
    let is_left = |words: &str| {
        let status = segment.controller.json(&["status"]);
        status["weakened"].as_array().into_iter().flatten().any(|line| line.as_str().unwrap().contains(words))
    };
    wait_until(SOON, "the others have agreed on keys", || {
        is_left("mesh prod: was unencrypted, and its tunnels to n4 ")
    });
    let is_strict = |of: usize, to: usize| {
        let status = tunnel(&agents[of - 1], &format!("prod.n{to}"));
        status["tunnel"]["framing"] == "WIREGUARD" && status["tunnel"]["alsoPlain"].is_null()
    };
    for (of, to) in [(1, 2), (2, 1), (1, 3), (3, 1), (2, 3), (3, 2)] {
        wait_until(SOON, "they take nothing else", || is_strict(of, to));
    }
    assert!(!can_be_read(segment.host(1), segment.host(2), "10.9.0.2"));
    assert!(!can_be_read(segment.host(3), segment.host(1), "10.9.0.1"));
    assert!(can_be_read(segment.host(1), cut_off, "10.9.0.4"));
    let problems = segment.controller.problems("n4").concat();
    assert!(problems.contains("it has not agreed on keys with all others in mesh prod yet"), "{problems}");
    let shown = agents[0].show("status");
    assert!(shown.contains("tunnels on prod"), "{shown}");

    cut_off.run(["nft", "delete", "table", "ip", "t"]);
    wait_until(6 * SOON, "it is back, and all is over", || !is_left("was unencrypted"));
    for n in 1..=3 {
        wait_until(SOON, "they take nothing else", || is_strict(n, 4) && is_strict(4, n));
    }
    assert!(!can_be_read(segment.host(1), cut_off, "10.9.0.4"));
    for (from, to, pinger) in pingers {
        pinger.lost_nothing(&format!("from n{from} to n{to}"));
    }
    let convergence = segment.controller.apply_with(&numbered(4), &["--wait"]);
    convergence.unwrap();
}
