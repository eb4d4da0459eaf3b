//! Two hosts with a tunnel whose datagrams go by way of a third, which is not kind to them.

use serde_json::json;

use super::{Agent, Faults, Host, Lab, Relay, grpcurl, ping_ok};

const ADD: &str = "tunmesh.v1.TunnelService/AddTunnel";

/// The tunnel `link` between 10.0.1.1 and 10.0.1.2.
pub struct Relayed {
    _lab: Lab,
    /// Both hosts.
    pub hosts: [Host; 2],
    /// On each of them.
    pub agents: [Agent; 2],
    /// Between them.
    pub relay: Relay,
}

impl Relayed {
    /// The same once it carries packets, in a framing as `AddTunnel` has it.
    pub fn new(framing: &str, faults: Faults, seed: u64) -> Self {
        let lab = Lab::new();
        let (hosts, between) = (["a", "b"].map(|role| lab.host(role)), lab.host("between"));
        for (n, host) in (1..).zip(&hosts) {
            lab.link(host, &format!("172.100.{n}.1/24"), &between, &format!("172.100.{n}.254/24"));
        }
        let ends = |last: u8| [1, 2].map(|n| format!("172.100.{n}.{last}:5000").parse().unwrap());
        let relay = Relay::start(&between, ends(254), ends(1), faults, seed);
        let agents = hosts.each_ref().map(|host| Agent::start(host, &[]));
        for (n, agent) in (1..).zip(&agents) {
            let key = if framing == "WIREGUARD" { agents[2 - n].public_key() } else { String::new() };
            let tunnel = json!({"tunnel": {
                "name": "link", "addresses": [format!("10.0.1.{n}/24")], "remote": format!("172.100.{n}.254"),
                "framing": framing, "peerPublicKey": key,
            }});
            grpcurl(agent, ADD, &tunnel).unwrap();
        }
        ping_ok(&hosts[0], "10.0.1.2");
        Self { _lab: lab, hosts, agents, relay }
    }
}
