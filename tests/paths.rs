//! The paths that datagrams take: what they carry, what they do to packets, and that one of them holds up no other.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a fault ends the test")]

mod lab;

use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use lab::{
    AGENT, Agent, Family, Faults, Host, Lab, Passed, Pinger, Relayed, SOON, ThreeHosts, grpcurl, number,
    ping, ping_ok, refusing_trains_to, transfer, wait_until,
};
use serde_json::{Value, json};

const ADD: &str = "tunmesh.v1.TunnelService/AddTunnel";
const GET: &str = "tunmesh.v1.TunnelService/GetTunnel";
const BULK: u64 = 20_000_000;

fn tunnel(agent: &Agent, name: &str) -> Value {
    grpcurl(agent, GET, &json!({"name": name})).unwrap()["status"].clone()
}

/// The key of an agent, where tunnels to it are encrypted.
fn key(agent: &Agent, framing: &str) -> String {
    if framing == "WIREGUARD" { agent.public_key() } else { String::new() }
}

/// A router on the way takes smaller packets than both ends' links: told by the router alone, when the first is too big.
fn follows_a_narrow_path(family: Family, underlay_mtu: u64, framing: &str) {
    // Of an IP and a UDP header, or an IP and an ICMP header.
    let header = if family == Family::V4 { 28 } else { 48 };
    let sealed = if framing == "WIREGUARD" { 32 } else { 0 };
    let carried = underlay_mtu - header - sealed;
    let hosts = ThreeHosts::new(family);
    let agents = [1, 3].map(|n| Agent::start(hosts.host(n), &[]));
    let (overlay, length) = match family {
        Family::V4 => ("10.9.0.", 24),
        Family::V6 => ("fd00:10:9::", 64),
    };
    let [a, b] = &agents;
    for (n, peer, agent, other) in [(1, 3, a, b), (3, 1, b, a)] {
        let tunnel = json!({"tunnel": {
            "name": "link", "addresses": [format!("{overlay}{n}/{length}")], "remote": hosts.underlay(peer),
            "framing": framing, "peerPublicKey": key(other, framing),
        }});
        grpcurl(agent, ADD, &tunnel).unwrap();
    }
    let (near, far) = (format!("{overlay}1"), format!("{overlay}3"));
    ping_ok(hosts.host(1), &far);
    let wide = tunnel(&agents[0], "link")["pathMtu"].as_u64().unwrap();
    assert_eq!(wide, 1500 - header - sealed);
    let to_far = hosts.router.device_to(hosts.host(3));
    hosts.router.run(["ip", "link", "set", "dev", &to_far, "mtu", &underlay_mtu.to_string()]);
    if sealed > 0 {
        // What fits with its padding there must fit with it on the way back, where its sender knows of no limit yet.
        let back = hosts.host(3).device_to(&hosts.router);
        hosts.host(3).run(["ip", "link", "set", "dev", &back, "mtu", &underlay_mtu.to_string()]);
    }

    transfer(hosts.host(1), hosts.host(3), &far, BULK);
    let status = tunnel(&agents[0], "link");
    assert_eq!(status["pathMtu"].as_u64(), Some(carried), "{status}");
    transfer(hosts.host(3), hosts.host(1), &near, BULK);
    // Whoever sends too much is told so, and at once what passes.
    let size = |bytes: u64| (bytes - header).to_string();
    assert!(ping(hosts.host(1), &far, &["-M", "do", "-s", &size(carried)]));
    let refused = hosts.host(1).try_run([
        "ping",
        "-n",
        "-c",
        "1",
        "-W",
        "5",
        "-M",
        "do",
        "-s",
        &size(carried + 1),
        &far,
    ]);
    let words = refused.unwrap_err().to_string();
    assert!(
        words.contains(&format!("mtu={carried}")) || words.contains(&format!("mtu: {carried}")),
        "{words}"
    );
}

#[test]
fn a_narrow_path_is_followed_on_ipv4() {
    follows_a_narrow_path(Family::V4, 1300, "RAW");
}

#[test]
fn a_narrow_path_is_followed_on_ipv6() {
    follows_a_narrow_path(Family::V6, 1400, "RAW");
}

#[test]
fn a_narrow_path_is_followed_encrypted() {
    follows_a_narrow_path(Family::V4, 1300, "WIREGUARD");
}

/// Sets what it holds when it goes.
struct Done<'d>(&'d AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Peers that nothing reaches, each for another reason, beside one that all is well with, on one device.
#[test]
fn a_peer_that_cannot_be_reached_holds_up_no_other() {
    let hosts = ThreeHosts::new(Family::V4);
    let host = hosts.host(1);
    let (agent, other) = (Agent::start(host, &[]), Agent::start(hosts.host(2), &[]));
    let add = |agent: &Agent, name: &str, own: u8, peer: u8, remote: &str| {
        let tunnel = json!({"tunnel": {
            "name": name, "device": "mesh", "addresses": [format!("10.9.0.{own}/24")], "remote": remote,
            "framing": "RAW", "mtu": 1400, "allowedPrefixes": [{"prefix": format!("10.9.0.{peer}/32")}],
        }});
        grpcurl(agent, ADD, &tunnel).unwrap();
    };
    add(&agent, "well", 1, 2, "172.100.1.2");
    add(&other, "well", 2, 1, "172.100.1.1");
    let bad = [
        ("narrow", 3, "172.100.2.3"),
        ("nobody", 10, "172.100.1.77"),
        ("far", 11, "172.101.0.1"),
        ("forbidden", 12, "172.100.1.253"),
        ("deaf", 13, "172.100.1.254"),
    ];
    for (name, peer, remote) in bad {
        add(&agent, name, 1, peer, remote);
    }
    let to_narrow = hosts.router.device_to(hosts.host(3));
    hosts.router.run(["ip", "link", "set", "dev", &to_narrow, "mtu", "1300"]);
    host.run([
        "nft",
        "add table ip t; add chain ip t out { type filter hook output priority 0; }; \
                      add rule ip t out ip daddr 172.100.1.253 drop",
    ]);
    ping_ok(host, "10.9.0.2");

    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        for (_, peer, _) in bad {
            let done = &done;
            scope.spawn(move || {
                let socket = host.enter(|| UdpSocket::bind("10.9.0.1:0")).unwrap();
                while !done.load(Ordering::Relaxed) {
                    for _ in 0..10 {
                        // What was refused is told of the next; that is what is looked for.
                        let _ = socket.send_to(&[0; 1300], format!("10.9.0.{peer}:9"));
                    }
                    // Some thousands a second: more would fill the device, whoever they are for.
                    thread::sleep(Duration::from_millis(5));
                }
            });
        }
        // Also where something below fails.
        let _done = Done(&done);
        let pinger = Pinger::start(host, "10.9.0.2", Duration::from_millis(50));
        transfer(host, hosts.host(2), "10.9.0.2", BULK);
        transfer(hosts.host(2), host, "10.9.0.1", BULK);
        pinger.lost_nothing("beside peers that cannot be reached");
    });
    let drops = |name: &str| tunnel(&agent, name)["sent"]["drops"].clone();
    assert_eq!(drops("well"), Value::Null);
    assert!(number(&drops("far")["unreachable"]) > 0, "{}", drops("far"));
    assert!(number(&drops("forbidden")["firewall"]) > 0, "{}", drops("forbidden"));
    assert!(number(&drops("narrow")["too_big"]) > 0, "{}", drops("narrow"));
}

/// Nothing on the way to one peer takes trains: they go to it singly, and to others as ever.
#[test]
fn a_peer_that_refuses_trains_slows_no_other() {
    let lab = Lab::new();
    let [host, able, unable] = ["host", "able", "unable"].map(|role| lab.host(role));
    let directory = tempfile::tempdir().unwrap();
    let kernel = refusing_trains_to("172.100.2.2", directory.path());
    let agent = Agent::start_by(&host, &[&kernel.each_ref().map(String::as_str)[..], &[AGENT]].concat());
    let peers = [&able, &unable];
    let _others = [1, 2].map(|n| {
        let peer = peers[n - 1];
        lab.link(&host, &format!("172.100.{n}.1/24"), peer, &format!("172.100.{n}.2/24"));
        let add = |agent: &Agent, name: &str, own: u8, other: u8| {
            let tunnel = json!({"tunnel": {
                "name": name, "addresses": [format!("10.0.{n}.{own}/24")], "remote": format!("172.100.{n}.{other}"),
                "framing": "RAW",
            }});
            grpcurl(agent, ADD, &tunnel).unwrap();
        };
        add(&agent, peer.role(), 1, 2);
        let other = Agent::start(peer, &[]);
        add(&other, "link", 2, 1);
        other
    });
    // Sends to a peer; how many packets of the tunnel the host's interface has sent as one.
    let degree = |n: usize| {
        let peer = peers[n - 1];
        let counts = || {
            let link = host.ip_json(["-s", "link", "show", "dev", &host.device_to(peer)]);
            let sent = number(&tunnel(&agent, peer.role())["sent"]["packets"]);
            [sent, link[0]["stats64"]["tx"]["packets"].as_u64().unwrap()]
        };
        let before = counts();
        transfer(&host, peer, &format!("10.0.{n}.2"), BULK);
        let after = counts();
        (after[0] - before[0]) as f64 / (after[1] - before[1]) as f64
    };
    let pinger = Pinger::start(&host, "10.0.1.2", Duration::from_millis(50));
    let to_unable = degree(2);
    let to_able = thread::scope(|scope| {
        scope.spawn(|| transfer(&host, &unable, "10.0.2.2", BULK));
        degree(1)
    });
    pinger.lost_nothing("beside a peer that refuses trains");
    assert!(to_unable < 1.1 && to_able > 3.0, "{to_unable} {to_able}");
    let refused = "refused on the way to this peer";
    for (other, told) in [("able", false), ("unable", true)] {
        let status = tunnel(&agent, other);
        assert_eq!(status["sent"]["drops"], Value::Null, "{status}");
        assert_eq!(status["offloads"].to_string().contains(refused), told, "{status}");
    }
}

/// Counts `what` arrives at a device of `host` by its ECN field, in a table of its own; returns what to read the counts
/// with.
fn count_ecn(host: &Host, table: &str, device: &str, what: &str) -> impl Fn() -> [u64; 4] + use<> {
    let rules = ["not-ect", "ect1", "ect0", "ce"]
        .map(|field| format!("add rule ip {table} in iifname {device} {what} ip ecn {field} counter"));
    let chain = format!(
        "add table ip {table}; add chain ip {table} in {{ type filter hook prerouting priority 0; }}"
    );
    host.run(["nft", &format!("{chain}; {}", rules.join("; "))]);
    let (host, table) = (host.clone(), table.to_owned());
    move || {
        let listed: Value =
            serde_json::from_str(&host.run(["nft", "-j", "list", "table", "ip", &table])).unwrap();
        let rules = listed["nftables"].as_array().unwrap().iter().filter_map(|entry| entry.get("rule"));
        let counts = rules.map(|rule| {
            let parts = rule["expr"].as_array().unwrap().iter();
            parts.filter_map(|part| part["counter"]["packets"].as_u64()).sum()
        });
        counts.collect::<Vec<u64>>().try_into().unwrap()
    }
}

/// Congestion that is marked on the way reaches whoever can do something about it: RFC 6040, figure 4.
#[test]
fn congestion_marked_on_the_way_reaches_the_packets_inside() {
    let lab = Lab::new();
    let (a, b) = (lab.host("a"), lab.host("b"));
    lab.link(&a, "172.100.1.1/24", &b, "172.100.1.2/24");
    let agents = [Agent::start(&a, &[]), Agent::start(&b, &[])];
    let set = |framing: &str| {
        for (n, agent) in (1..).zip(&agents) {
            let tunnel = json!({"replace": true, "tunnel": {
                "name": "link", "addresses": [format!("10.0.1.{n}/24")], "remote": format!("172.100.1.{}", 3 - n),
                "framing": framing, "peerPublicKey": key(&agents[2 - n], framing),
            }});
            grpcurl(agent, ADD, &tunnel).unwrap();
        }
    };
    set(FRAMINGS[0]);
    ping_ok(&a, "10.0.1.2");
    let arrived = count_ecn(&b, "inside", "link", "icmp type echo-request");
    let carried = count_ecn(&b, "outside", &b.device_to(&a), "udp dport 5000");
    // The field of the packet inside as it arrives, for each that is sent; 4: it does not arrive.
    let fields = || {
        [0, 1, 2, 3].map(|field| {
            let before = arrived();
            ping(&a, "10.0.1.2", &["-Q", &field.to_string()]);
            let after = arrived();
            (0..4).find(|at| after[*at] > before[*at]).unwrap_or(4)
        })
    };
    let mark = |field: &str| {
        a.run([
            "nft",
            "add table ip m; flush table ip m; \
                       add chain ip m out { type filter hook output priority 0; }",
        ]);
        a.run(["nft", &format!("add rule ip m out udp dport 5000 ip ecn set {field}")]);
    };
    for (framing, congested) in FRAMINGS.into_iter().zip(1..) {
        set(framing);
        ping_ok(&a, "10.0.1.2");
        // On the way a packet shows what it is.
        let before = carried();
        assert_eq!(fields(), [0, 1, 2, 3]);
        assert!((0..4).all(|field| carried()[field] > before[field]), "{before:?} {:?}", carried());
        mark("ce");
        assert_eq!(fields(), [4, 3, 3, 3], "{framing}");
        assert_eq!(number(&tunnel(&agents[1], "link")["received"]["drops"]["congested"]), congested);
        mark("ect1");
        assert_eq!(fields(), [0, 1, 1, 3], "{framing}");
        mark("not-ect");
        assert_eq!(fields(), [0, 1, 2, 3], "{framing}");
        a.run(["nft", "delete table ip m"]);
    }
    // A server of 2015 knows nothing of all this.
    set("PI");
    mark("ce");
    assert_eq!(fields(), [0, 1, 2, 3]);
    a.run(["nft", "delete table ip m"]);
    let before = carried();
    assert_eq!(fields(), [0, 1, 2, 3]);
    assert_eq!(carried()[1..], before[1..], "of a packet nothing is shown");
}

fn passes_an_underlay_with(faults: Faults, framing: &str) {
    let Relayed { hosts: [a, b], agents, relay, .. } = &Relayed::new(framing, faults, 7);
    transfer(a, b, "10.0.1.2", 3_000_000);
    transfer(b, a, "10.0.1.1", 3_000_000);
    for (from, to) in [(0, 1), (1, 0)] {
        let passed = &relay.passed[from];
        wait_until(SOON, "what went in came out, or is counted as dropped", || {
            let (sent, received) = (tunnel(&agents[from], "link"), tunnel(&agents[to], "link"));
            let drops = |way: &Value| -> u64 {
                way["drops"].as_object().into_iter().flatten().map(|(_, count)| number(count)).sum()
            };
            let received = &received["received"];
            number(&sent["sent"]["packets"]) == passed.came.load(Ordering::Relaxed)
                && passed.went.load(Ordering::Relaxed) == number(&received["packets"]) + drops(received)
        });
    }
    if faults.lost > 0 {
        let [there, back] = &relay.passed;
        let lost =
            |passed: &Passed| passed.came.load(Ordering::Relaxed) > passed.went.load(Ordering::Relaxed);
        assert!(lost(there) && lost(back));
    }
}

const FRAMINGS: [&str; 2] = ["RAW", "WIREGUARD"];

#[test]
fn a_transfer_survives_the_loss_of_one_in_a_hundred() {
    for framing in FRAMINGS {
        passes_an_underlay_with(Faults { lost: 10, ..Faults::default() }, framing);
    }
}

#[test]
fn a_transfer_survives_the_loss_of_one_in_twenty() {
    for framing in FRAMINGS {
        passes_an_underlay_with(Faults { lost: 50, ..Faults::default() }, framing);
    }
}

#[test]
fn a_transfer_survives_doubles_delay_and_disorder() {
    let faults = Faults { doubled: 50, late: 50, delay: Duration::from_millis(5), ..Faults::default() };
    for framing in FRAMINGS {
        passes_an_underlay_with(faults, framing);
    }
}
