//! Two hosts with a cable, and tunnels of every kind on one of them.

use serde_json::json;

use super::{Agent, Host, Lab, grpcurl, legacy_add};

const ADD: &str = "tunmesh.v1.TunnelService/AddTunnel";

/// 172.100.1.1 and 172.100.1.2.
pub fn two_hosts() -> (Lab, Host, Host) {
    let lab = Lab::new();
    let (host, other) = (lab.host("host"), lab.host("other"));
    lab.link(&host, "172.100.1.1/24", &other, "172.100.1.2/24");
    (lab, host, other)
}

/// Gives the agent on a host a tunnel of the legacy port, one with IPv6 and routes, and two that share a device.
pub fn tunnels_of_every_kind(host: &Host, agent: &Agent) {
    legacy_add(host, "udp2", "10.0.1.1", "172.100.1.2", 1400);
    for tunnel in [
        json!({"name": "udp3", "addresses": ["10.0.3.1/30", "fd00:3::1/64"], "remote": "172.100.1.3", "framing": "RAW",
               "mtu": 1280, "routes": ["192.168.3.0/24", "fd00:33::/64"]}),
        json!({"name": "shared-4", "device": "mesh0", "addresses": ["10.9.0.1/24"], "remote": "172.100.1.4",
               "framing": "RAW", "allowedPrefixes": [{"prefix": "10.9.0.4/32"}, {"prefix": "192.168.4.0/24"}],
               "routes": ["192.168.4.0/24"]}),
        json!({"name": "shared-5", "device": "mesh0", "remote": "172.100.1.5:6000", "framing": "PI", "mtu": 1300,
               "allowedPrefixes": [{"prefix": "10.9.0.5/32"}, {"prefix": "192.168.5.0/24"}],
               "routes": ["192.168.5.0/24"]}),
    ] {
        grpcurl(agent, ADD, &json!({ "tunnel": tunnel })).unwrap();
    }
}
