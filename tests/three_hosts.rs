//! The three hosts of the 2015 description, joined in every way an agent can be told of: ping and bulk TCP between
//! every pair of hosts and between the subnets behind them.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a fault ends the test")]

mod lab;

use lab::{Agent, Family, ThreeHosts, grpcurl, legacy_send, ping_ok, transfer};
use serde_json::{Value, json};

const BULK: u64 = 50_000_000;
const PAIRS: [(usize, usize); 3] = [(1, 2), (1, 3), (2, 3)];

/// The overlay address of `host` on its link with `peer`: both ends of a link share a network.
fn on_link(family: Family, host: usize, peer: usize) -> String {
    let link = match (host.min(peer), host.max(peer)) {
        (1, 2) => 1,
        (2, 3) => 2,
        (1, 3) => 3,
        other => panic!("no link {other:?}"),
    };
    let end = if host < peer { 1 } else { 2 };
    match family {
        Family::V4 => format!("10.0.{link}.{end}"),
        Family::V6 => format!("fd00:10:{link}::{end}"),
    }
}

fn agents(hosts: &ThreeHosts) -> [Agent; 3] {
    [1, 2, 3].map(|n| Agent::start(hosts.host(n), &[]))
}

/// The key of host `n`, where tunnels to it are encrypted.
fn key(agents: &[Agent; 3], n: usize, framing: &str) -> String {
    if framing == "WIREGUARD" { agents[n - 1].public_key() } else { String::new() }
}

/// Every ordered pair of hosts.
fn directions() -> impl Iterator<Item = (usize, usize)> {
    PAIRS.into_iter().flat_map(|(a, b)| [(a, b), (b, a)])
}

/// Pings both ways, and bulk TCP one way between the hosts and the other way between their subnets.
fn exercise(hosts: &ThreeHosts, address: impl Fn(usize, usize) -> String) {
    for (from, to) in directions() {
        ping_ok(hosts.host(from), &address(to, from));
        ping_ok(hosts.inner(from), &hosts.inner_address(to));
    }
    for (a, b) in PAIRS {
        transfer(hosts.host(a), hosts.host(b), &address(b, a), BULK);
        transfer(hosts.inner(b), hosts.inner(a), &hosts.inner_address(a), BULK);
    }
}

fn by_legacy_datagrams(family: Family, mtu: Option<Value>) {
    let hosts = ThreeHosts::new(family);
    let _agents = agents(&hosts);
    for n in 1..=3 {
        let tunnels: Vec<Value> = (1..=3)
            .filter(|peer| *peer != n)
            .map(|peer| {
                let mut tunnel = json!({
                    "name": format!("udp{peer}"),
                    "tunnelIP": on_link(family, n, peer),
                    "remoteServer": hosts.underlay(peer),
                });
                if let Some(mtu) = &mtu {
                    tunnel["mtu"] = mtu.clone();
                }
                tunnel
            })
            .collect();
        let datagram = json!({"op": "add", "tunnel": tunnels}).to_string();
        let reply = legacy_send(hosts.host(n), datagram.as_bytes()).expect("a reply");
        for peer in (1..=3).filter(|peer| *peer != n) {
            let answer = reply[format!("udp{peer}")].as_str().unwrap_or_default();
            assert!(answer.starts_with("ok"), "host {n}: {reply}");
            hosts.host(n).run(["ip", "route", "add", &hosts.subnet(peer), "dev", &format!("udp{peer}")]);
        }
    }
    exercise(&hosts, |host, peer| on_link(family, host, peer));
}

#[test]
fn legacy_datagrams_with_mtu_1400() {
    by_legacy_datagrams(Family::V4, Some(json!(1400)));
}

#[test]
fn legacy_datagrams_with_the_default_mtu() {
    by_legacy_datagrams(Family::V4, None);
}

#[test]
fn legacy_datagrams_on_ipv6() {
    by_legacy_datagrams(Family::V6, Some(json!("1400")));
}

fn by_grpcurl(family: Family, framing: &str, mtu: u32) {
    let hosts = ThreeHosts::new(family);
    let agents = agents(&hosts);
    let length = match family {
        Family::V4 => 30,
        Family::V6 => 126,
    };
    for (n, peer) in directions() {
        let tunnel = json!({"tunnel": {
            "name": format!("udp{peer}"),
            "addresses": [format!("{}/{length}", on_link(family, n, peer))],
            "remote": hosts.underlay(peer),
            "framing": framing,
            "peerPublicKey": key(&agents, peer, framing),
            "mtu": mtu,
            "routes": [hosts.subnet(peer)],
        }});
        let added = grpcurl(&agents[n - 1], "tunmesh.v1.TunnelService/AddTunnel", &tunnel).unwrap();
        assert_eq!(added["status"]["state"], "WAITING", "{added}");
    }
    exercise(&hosts, |host, peer| on_link(family, host, peer));
    for agent in &agents {
        let listed = grpcurl(agent, "tunmesh.v1.TunnelService/ListTunnels", &json!({})).unwrap();
        for status in listed["tunnels"].as_array().unwrap() {
            assert_eq!(status["state"], "PASSING", "{status}");
            let received = status["received"]["packets"].as_str().unwrap().parse::<u64>().unwrap();
            assert!(received > 1000, "{status}");
            assert!(status["lastReceived"].is_string(), "{status}");
        }
    }
}

#[test]
fn grpcurl_with_mtu_1400() {
    by_grpcurl(Family::V4, "RAW", 1400);
}

#[test]
fn grpcurl_with_the_default_mtu_of_2015() {
    by_grpcurl(Family::V4, "PI", 1500);
}

#[test]
fn grpcurl_on_ipv6() {
    by_grpcurl(Family::V6, "RAW", 0);
}

#[test]
fn grpcurl_with_encrypted_tunnels() {
    by_grpcurl(Family::V4, "WIREGUARD", 0);
}

fn on_one_shared_device(family: Family, framing: &str) {
    let hosts = ThreeHosts::new(family);
    let agents = agents(&hosts);
    let (overlay, host_length, length) = match family {
        Family::V4 => ("10.9.0.", 32, 24),
        Family::V6 => ("fd00:10:9::", 128, 64),
    };
    for (n, peer) in directions() {
        let tunnel = json!({"tunnel": {
            // Longer than an interface's name may be.
            "name": format!("tunnel-to-minion-{peer}"),
            "device": "mesh0",
            "addresses": [format!("{overlay}{n}/{length}")],
            "remote": hosts.underlay(peer),
            "framing": framing,
            "peerPublicKey": key(&agents, peer, framing),
            "allowedPrefixes": [
                {"prefix": format!("{overlay}{peer}/{host_length}")},
                {"prefix": hosts.subnet(peer), "preference": 10},
            ],
            "routes": [hosts.subnet(peer)],
        }});
        grpcurl(&agents[n - 1], "tunmesh.v1.TunnelService/AddTunnel", &tunnel).unwrap();
    }
    for n in 1..=3 {
        let links = hosts.host(n).ip_json(["link", "show", "type", "tun"]);
        assert_eq!(links.as_array().unwrap().len(), 1, "host {n} has one device: {links}");
    }
    exercise(&hosts, |host, _| format!("{overlay}{host}"));
}

#[test]
fn one_shared_device_a_host() {
    on_one_shared_device(Family::V4, "RAW");
}

#[test]
fn one_shared_device_a_host_on_ipv6() {
    on_one_shared_device(Family::V6, "PI");
}

#[test]
fn one_shared_device_a_host_on_ipv6_encrypted() {
    on_one_shared_device(Family::V6, "WIREGUARD");
}
