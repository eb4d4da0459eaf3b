//! Two hosts with a router between them that can cut the way in either direction.

use std::time::Duration;

use pbjson_types::Timestamp;
use serde_json::Value;

use super::{Host, Lab};

/// Two hosts, 172.100.1.1 and 172.100.2.2, and what is between them.
pub struct Way {
    /// Where they are; more hosts may join.
    pub lab: Lab,
    /// Between them.
    pub router: Host,
    hosts: [Host; 2],
}

impl Way {
    /// Where the hosts are on the underlay.
    pub const ENDS: [&str; 2] = ["172.100.1.1", "172.100.2.2"];

    /// The hosts `a` and `b`, and `router`.
    pub fn new() -> Self {
        let lab = Lab::new();
        let router = lab.host("router");
        let hosts = ["a", "b"].map(|role| lab.host(role));
        for (n, (host, end)) in (1..).zip(hosts.iter().zip(Self::ENDS)) {
            lab.link(host, &format!("{end}/24"), &router, &format!("172.100.{n}.254/24"));
            host.route("172.100.0.0/16", &format!("172.100.{n}.254"));
        }
        router.forwarding(true);
        router.run(["nft", "add", "table", "ip", "cut"]);
        router.run([
            "nft",
            "add",
            "chain",
            "ip",
            "cut",
            "forward",
            "{ type filter hook forward priority 0; }",
        ]);
        Self { lab, router, hosts }
    }

    /// The first host, or the second.
    pub fn host(&self, n: usize) -> &Host {
        &self.hosts[n]
    }

    /// Nothing that the host `n` sends comes through any more, as far as `what` is about it, as `["udp", "dport", "5000"]`.
    pub fn cut(&self, n: usize, what: &[&str]) {
        let device = self.router.device_to(self.host(n));
        let rule = ["nft", "add", "rule", "ip", "cut", "forward", "iifname", &device];
        self.router.run(rule.iter().chain(what).chain(&["drop"]));
    }

    /// Everything comes through again.
    pub fn heal(&self) {
        self.router.run(["nft", "flush", "chain", "ip", "cut", "forward"]);
    }
}

/// A time of an answer, as time since the Unix epoch.
pub fn time(value: &Value) -> Duration {
    let time: Timestamp = serde_json::from_value(value.clone()).unwrap_or_else(|e| panic!("{value}: {e}"));
    Duration::new(time.seconds.try_into().unwrap(), time.nanos.try_into().unwrap())
}
