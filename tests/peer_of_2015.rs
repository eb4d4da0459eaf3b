//! A tunnel to a server of 2015: it gets what it understands, and nothing else.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a fault ends the test")]

mod lab;

use lab::{Agent, Lab, Peer2015, SOON, legacy_add, ping, ping_ok, transfer, wait_until};

const BULK: u64 = 50_000_000;

fn carries_both_ways(mtu: u16) {
    let lab = Lab::new();
    let (ours, theirs) = (lab.host("ours"), lab.host("theirs"));
    lab.link(&ours, "172.100.1.1/24", &theirs, "172.100.1.2/24");
    let agent = Agent::start(&ours, &[]);
    let reply = legacy_add(&ours, "udp2", "10.0.1.1", "172.100.1.2", mtu);
    assert!(reply["udp2"].as_str().unwrap().starts_with("ok"), "{reply}");
    let peer = Peer2015::start(&theirs, "10.0.1.2/30", mtu, "172.100.1.1");

    ping_ok(&ours, "10.0.1.2");
    ping_ok(&theirs, "10.0.1.1");
    transfer(&ours, &theirs, "10.0.1.2", BULK);
    transfer(&theirs, &ours, "10.0.1.1", BULK);

    // What an agent has for other agents, or for nobody, must not reach it: chatter of a new device, answers to
    // what the agent refuses, packets that do not fit.
    assert!(!ping(&ours, "10.0.1.2", &["-M", "do", "-s", "1473"]), "a packet above the MTU came back");
    ours.run(["ip", "link", "set", "udp2", "down"]);
    ours.run(["ip", "link", "set", "udp2", "up"]);
    ping_ok(&theirs, "10.0.1.1");
    assert_eq!(peer.bad_datagrams(), Vec::<Vec<u8>>::new());
    assert_eq!(peer.ended(), None);
    drop(agent);
}

#[test]
fn carries_ping_and_tcp_at_mtu_1400() {
    carries_both_ways(1400);
}

#[test]
fn carries_ping_and_tcp_at_mtu_1500() {
    carries_both_ways(1500);
}

/// The laboratory's server is as fragile as the original: otherwise the tests above could not fail.
#[test]
fn a_raw_packet_ends_it() {
    let lab = Lab::new();
    let (ours, theirs) = (lab.host("ours"), lab.host("theirs"));
    lab.link(&ours, "172.100.1.1/24", &theirs, "172.100.1.2/24");
    let agent = Agent::start(&ours, &[]);
    let tunnel = serde_json::json!({"tunnel": {
        "name": "udp2", "addresses": ["10.0.1.1/30"], "remote": "172.100.1.2", "framing": "RAW",
    }});
    lab::grpcurl(&agent, "tunmesh.v1.TunnelService/AddTunnel", &tunnel).unwrap();
    let peer = Peer2015::start(&theirs, "10.0.1.2/30", 1400, "172.100.1.1");
    assert!(!ping(&ours, "10.0.1.2", &[]));
    wait_until(SOON, "the server of 2015 ends or notes the datagram", || {
        peer.ended().is_some() || !peer.bad_datagrams().is_empty()
    });
}
