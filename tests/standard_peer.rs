//! A WireGuard peer that is no agent: Debian's wireguard-go at the other end of an encrypted tunnel.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a fault ends the test")]

mod lab;

use std::time::Duration;

use lab::{Agent, Host, Lab, Pinger, SOON, WireguardGo, grpcurl, ping, ping_ok, transfer, wait_until};
use serde_json::{Value, json};

const ADD: &str = "tunmesh.v1.TunnelService/AddTunnel";
const GET: &str = "tunmesh.v1.TunnelService/GetTunnel";
const BULK: u64 = 20_000_000;
const PORT: u16 = 51820;

struct World {
    _lab: Lab,
    /// 172.100.1.1 and 10.9.0.1.
    host: Host,
    /// 172.100.1.2 and 10.9.0.2.
    other: Host,
    agent: Agent,
    peer: WireguardGo,
}

impl World {
    fn new() -> Self {
        let lab = Lab::new();
        let (host, other) = (lab.host("host"), lab.host("other"));
        lab.link(&host, "172.100.1.1/24", &other, "172.100.1.2/24");
        let agent = Agent::start(&host, &[]);
        let of_agent = [&agent.public_key(), "endpoint", "172.100.1.1:5000", "allowed-ips", "10.9.0.1/32"];
        let peer = WireguardGo::start(&other, PORT, "10.9.0.2/24", &of_agent);
        let tunnel = json!({"tunnel": {
            "name": "link", "addresses": ["10.9.0.1/24"], "remote": format!("172.100.1.2:{PORT}"),
            "peerPublicKey": peer.public_key(), "allowedPrefixes": [{"prefix": "10.9.0.2/32"}], "mtu": 1420,
        }});
        grpcurl(&agent, ADD, &tunnel).unwrap();
        let world = Self { _lab: lab, host, other, agent, peer };
        world.passes();
        world
    }

    fn link(&self) -> Value {
        grpcurl(&self.agent, GET, &json!({"name": "link"})).unwrap()["status"].clone()
    }

    fn passes(&self) {
        ping_ok(&self.host, "10.9.0.2");
        ping_ok(&self.other, "10.9.0.1");
        transfer(&self.host, &self.other, "10.9.0.2", BULK);
        transfer(&self.other, &self.host, "10.9.0.1", BULK);
    }
}

#[test]
fn a_peer_that_moves_and_a_host_that_moves_are_followed() {
    let world = World::new();
    world.peer.move_to(51999);
    ping_ok(&world.other, "10.9.0.1");
    assert_eq!(world.link()["endpoint"], "172.100.1.2:51999");
    world.passes();

    let cable = world.host.device_to(&world.other);
    world.host.address(&cable, "172.100.1.9/24");
    world.host.run(["ip", "address", "del", "172.100.1.1/24", "dev", &cable]);
    world.host.run(["ip", "address", "replace", "172.100.1.9/24", "dev", &cable]);
    ping_ok(&world.host, "10.9.0.2");
    assert_eq!(world.peer.endpoint(), "172.100.1.9:5000");
    world.passes();
}

#[test]
fn a_restart_of_either_is_survived() {
    let mut world = World::new();
    world.peer.restart(PORT);
    // Its first packet begins a handshake.
    wait_until(SOON, "the peer's packets pass again", || ping(&world.other, "10.9.0.1", &[]));
    world.passes();
    world.agent.kill9();
    world.agent.restart();
    wait_until(SOON, "the host's packets pass again", || ping(&world.host, "10.9.0.2", &[]));
    world.passes();
}

/// Takes two minutes: that is how long keys are used (REKEY-AFTER-TIME).
#[test]
fn keys_are_made_anew_every_two_minutes_and_nothing_is_lost() {
    let world = World::new();
    let (first, ours) = (world.peer.last_handshake(), world.link()["lastHandshake"].clone());
    let pinger = Pinger::start(&world.host, "10.9.0.2", Duration::from_millis(50));
    wait_until(Duration::from_secs(140), "keys are made anew", || world.peer.last_handshake() > first);
    pinger.lost_nothing("while keys are made anew");
    assert!(world.peer.last_handshake() >= first + 119);
    assert_ne!(world.link()["lastHandshake"], ours);
    world.passes();
}
