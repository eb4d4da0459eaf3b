//! Two hosts with a tunnel on which agents send each other probes.

use std::time::Duration;

use serde_json::{Value, json};

use super::{Agent, SOON, Way, grpcurl, time, wait_until};

const ADD: &str = "tunmesh.v1.TunnelService/AddTunnel";
const GET: &str = "tunmesh.v1.TunnelService/GetTunnel";

/// A tunnel of an agent as it is.
pub fn tunnel_status(agent: &Agent, name: &str) -> Value {
    grpcurl(agent, GET, &json!({"name": name})).unwrap()["status"].clone()
}

/// Adds a probed tunnel with a device of its own; it is encrypted where the peer's key is given.
pub fn add_probed(agent: &Agent, name: &str, address: &str, remote: &str, key: &str) {
    let framing = if key.is_empty() { "RAW" } else { "WIREGUARD" };
    let tunnel = json!({"tunnel": {
        "name": name, "addresses": [address], "remote": remote, "framing": framing, "peerPublicKey": key, "probed": true,
    }});
    grpcurl(agent, ADD, &tunnel).unwrap();
}

/// How long after `start`, as time since the Unix epoch, a link came to be as it is.
pub fn since(link: &Value, start: Duration) -> Duration {
    time(&link["since"]).checked_sub(start).unwrap_or_else(|| panic!("{link} is older"))
}

/// Both hosts of a way with an agent, and the probed tunnel `link` between them: 10.9.0.1 and 10.9.0.2.
pub struct Probed {
    /// Between them.
    pub way: Way,
    /// On each of them.
    pub agents: [Agent; 2],
}

impl Probed {
    /// The same once the link is up.
    pub fn new(is_encrypted: bool) -> Self {
        Self::on(Way::new(), is_encrypted)
    }

    /// The same on a way that is there.
    pub fn on(way: Way, is_encrypted: bool) -> Self {
        let agents = [0, 1].map(|n| Agent::start(way.host(n), &[]));
        for n in [0, 1] {
            let key = if is_encrypted { agents[1 - n].public_key() } else { String::new() };
            add_probed(&agents[n], "link", &format!("10.9.0.{}/24", n + 1), Way::ENDS[1 - n], &key);
        }
        let probed = Self { way, agents };
        probed.wait(["UP", "UP"]);
        probed
    }

    /// The tunnel as one end has it.
    pub fn status(&self, n: usize) -> Value {
        tunnel_status(&self.agents[n], "link")
    }

    /// The link as one end has it.
    pub fn link(&self, n: usize) -> Value {
        self.status(n)["link"].clone()
    }

    /// Waits until both ends have it so.
    pub fn wait(&self, states: [&str; 2]) {
        wait_until(SOON, &format!("the link is {states:?}"), || {
            [0, 1].map(|n| self.link(n)["state"].clone()) == states
        });
    }
}
