//! Peers that send no probes: what their answers to an ICMP echo through the tunnel say of them.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a fault ends the test")]

mod lab;

use std::time::Duration;

use lab::{
    Agent, Capture, Host, Peer2015, Pinger, SOON, Way, WireguardGo, grpcurl, ping_ok, since, tunnel_status,
    wait_until,
};
use serde_json::{Value, json};
use tunmesh::proto::host::clock::since_epoch;

const ADD: &str = "tunmesh.v1.TunnelService/AddTunnel";
const PORT: u16 = 51820;
/// The detection time, and as much as a look at the status takes.
const SILENCE: Duration = Duration::from_secs(18);

/// A standard peer on the second host of a way, and the tunnel to it of an agent on the first: 10.9.0.1 and 10.9.0.2.
fn standard(way: &Way) -> (Agent, WireguardGo) {
    let agent = Agent::start(way.host(0), &[]);
    let of_agent = [&agent.public_key(), "endpoint", "172.100.1.1:5000", "allowed-ips", "10.9.0.1/32"];
    let peer = WireguardGo::start(way.host(1), PORT, "10.9.0.2/24", &of_agent);
    let tunnel = json!({"tunnel": {
        "name": "link", "addresses": ["10.9.0.1/24"], "remote": format!("172.100.2.2:{PORT}"),
        "peerPublicKey": peer.public_key(), "allowedPrefixes": [{"prefix": "10.9.0.2/32"}], "echo": "10.9.0.2",
    }});
    grpcurl(&agent, ADD, &tunnel).unwrap();
    (agent, peer)
}

fn link(agent: &Agent) -> Value {
    tunnel_status(agent, "link")["link"].clone()
}

/// A host answers no ICMP echo from now on.
fn answers_none(host: &Host) {
    host.run(["nft", "add", "table", "ip", "mute"]);
    host.run(["nft", "add", "chain", "ip", "mute", "in", "{ type filter hook input priority 0; }"]);
    host.run(["nft", "add", "rule", "ip", "mute", "in", "icmp", "type", "echo-request", "drop"]);
}

#[test]
fn a_standard_peer_is_up_while_it_answers() {
    let way = Way::new();
    let (agent, _peer) = standard(&way);
    wait_until(SOON, "it answers", || link(&agent)["state"] == "UP");
    let up = link(&agent);
    assert!(!up["roundTrip"].is_null() && !up["lastHeard"].is_null(), "{up}");
    assert_eq!(up["detectionTime"], "16s", "{up}");
    // What programs of the host ask is answered to them, and the answers to the agent are nobody else's.
    let inside =
        Capture::start(way.host(0), "inbound and icmp[icmptype] == icmp-echoreply and src host 10.9.0.2");
    let pinger = Pinger::start(way.host(0), "10.9.0.2", Duration::from_millis(200));
    wait_until(SOON, "the agent asks again", || link(&agent)["lastHeard"] != up["lastHeard"]);
    let report = pinger.stop();
    assert_eq!(report.received, report.sent, "{report:?}");
    let captured = inside.stop();
    assert_eq!(captured.count(), usize::try_from(report.received).unwrap(), "as many as were asked for");

    way.cut(1, &["udp", "sport", &PORT.to_string()]);
    let start = since_epoch();
    wait_until(SILENCE, "it is silent", || link(&agent)["state"] == "DOWN");
    let down = link(&agent);
    assert!(since(&down, start) <= Duration::from_secs(17), "{down}");
    assert!(down["reason"].as_str().unwrap().contains("nothing comes from the peer any more"), "{down}");
    way.heal();
    wait_until(SOON, "it answers again", || link(&agent)["state"] == "UP");
}

#[test]
fn a_standard_peer_that_answers_none_is_known_by_its_keys() {
    let way = Way::new();
    answers_none(way.host(1));
    let (agent, _peer) = standard(&way);
    wait_until(SOON, "keys are agreed on", || link(&agent)["state"] == "UP");
    let keyed = link(&agent);
    assert!(keyed["reason"].as_str().unwrap().contains("answers no ICMP echo"), "{keyed}");
    assert!(keyed["lastHeard"].is_null() && keyed["roundTrip"].is_null(), "{keyed}");
}

#[test]
fn a_server_of_2015_is_up_while_it_answers() {
    let way = Way::new();
    let agent = Agent::start(way.host(0), &[]);
    let tunnel = json!({"tunnel": {
        "name": "link", "addresses": ["10.0.1.1/30"], "remote": "172.100.2.2", "framing": "PI", "mtu": 1400,
        "echo": "10.0.1.2",
    }});
    grpcurl(&agent, ADD, &tunnel).unwrap();
    // It may answer none: as long as it has not, nothing is said of it.
    let alone = tunnel_status(&agent, "link");
    assert!(alone["link"].is_null(), "{alone}");
    assert!(agent.show("tunnels").contains("no answer yet"));
    let peer = Peer2015::start(way.host(1), "10.0.1.2/30", 1400, "172.100.1.1");
    wait_until(SOON, "it answers", || link(&agent)["state"] == "UP");
    ping_ok(way.host(0), "10.0.1.2");
    // One that sends and answers none any more is told from one that is gone.
    answers_none(way.host(1));
    let pinger = Pinger::start(way.host(1), "10.0.1.1", Duration::from_millis(500));
    wait_until(SILENCE, "it answers no more", || link(&agent)["state"] == "INIT");
    let mute = link(&agent);
    assert!(mute["reason"].as_str().unwrap().contains("no answer to an ICMP echo any more"), "{mute}");
    pinger.stop();
    assert_eq!((peer.bad_datagrams(), peer.ended()), (Vec::new(), None));
    drop(peer);
    wait_until(SILENCE, "it is gone", || link(&agent)["state"] == "DOWN");
}

#[test]
fn who_is_asked_is_an_address_of_a_host_that_sends_no_probes() {
    let way = Way::new();
    let agent = Agent::start(way.host(0), &[]);
    for (echo, probed, problem) in [
        ("0.0.0.0", false, "is no address of a host"),
        ("minion", false, "is no address of a host"),
        ("10.9.0.2", true, "is not asked where probes are sent"),
        ("10.9.0.1", false, "is this host's own"),
        ("10.8.0.2", false, "is in none of allowed_prefixes"),
    ] {
        let tunnel = json!({"tunnel": {
            "name": "link", "addresses": ["10.9.0.1/24"], "remote": "172.100.2.2", "framing": "RAW", "echo": echo,
            "probed": probed, "allowedPrefixes": [{"prefix": "10.9.0.0/24"}],
        }});
        let refused = grpcurl(&agent, ADD, &tunnel).unwrap_err();
        assert!(refused.message.contains("tunnel.echo") && refused.message.contains(problem), "{refused:?}");
    }
}
