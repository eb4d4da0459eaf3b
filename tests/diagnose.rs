//! Faults that are planted between two hosts, and what `controller diagnose` says of them, with a third host beside.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a fault ends the test")]

mod lab;

use std::time::Duration;

use lab::{
    AGENT, Agent, Controller, Flow, Host, SOON, Way, WireguardGo, faked, ping_ok, wait_live, wait_until,
};
use serde_json::Value;

/// Two hosts behind a router, and a third one; the controller is on the router.
struct World {
    way: Way,
    third: Host,
    controller: Controller,
    agents: Vec<Agent>,
}

impl World {
    /// With agents on the first `count` hosts, `n1` to `n3`, in a mesh in which the second one offers a network; `more` are
    /// other nodes.
    fn new(count: usize, more: &str) -> Self {
        let way = Way::new();
        let third = way.lab.host("c");
        way.lab.link(&third, "172.100.3.3/24", &way.router, "172.100.3.254/24");
        third.route("172.100.0.0/16", "172.100.3.254");
        let controller = Controller::start(&way.router, &[]);
        let mut world = Self { way, third, controller, agents: Vec::new() };
        for n in 1..=count {
            let host = world.host(n);
            host.forwarding(true);
            host.sysctl("net.ipv4.conf.all.rp_filter", "0");
            host.sysctl("net.ipv4.conf.default.rp_filter", "0");
            let agent = Agent::join(host, &format!("172.100.{n}.254:7443"), &format!("n{n}"), &[]);
            world.agents.push(agent);
        }
        let names: Vec<String> = (1..=count).map(|n| format!("n{n}")).collect();
        wait_live(&world.controller, &names);
        let nodes: String = (1..=count)
            .map(|n| {
                format!(
                    "  n{n}: {{address: 10.9.0.{n}{}}}\n",
                    if n == 2 { ", routes: [192.168.2.0/24]" } else { "" }
                )
            })
            .collect();
        world
            .controller
            .apply_with(&format!("mesh: m\noverlay: 10.9.0.0/24\nnodes:\n{nodes}{more}"), &[])
            .unwrap();
        world
    }

    fn host(&self, n: usize) -> &Host {
        if n == 3 { &self.third } else { self.way.host(n - 1) }
    }

    fn link(&self, pair: [&str; 2]) -> Value {
        let links = self.controller.json(&["links"])["links"].as_array().cloned().unwrap_or_default();
        let of_pair = |link: &Value| link["node"] == pair[0] && link["peer"] == pair[1];
        links.into_iter().find(of_pair).unwrap_or_default()
    }

    fn wait(&self, state: &str) {
        wait_until(SOON, &format!("the link is {state}"), || self.link(["n1", "n2"])["state"] == state);
    }

    fn diagnose(&self, pair: [&str; 2]) -> Value {
        self.controller.json(&["diagnose", pair[0], pair[1]])
    }

    /// The first thing that is wrong is of this kind, and is told with these words.
    fn is_wrong(&self, pair: [&str; 2], kind: &str, words: &[&str]) {
        let diagnosis = self.diagnose(pair);
        assert_eq!(diagnosis["faults"][0]["kind"], kind, "{diagnosis}");
        let text = diagnosis["paragraph"].as_str().unwrap();
        for words in words {
            assert!(text.contains(words), "{words:?} is not in {text:?}");
        }
    }

    /// Nothing is wrong between the first two any more, and all have a session again.
    fn is_right(&self) {
        let seconds = Duration::from_secs(60);
        wait_until(seconds, "the link is up", || self.link(["n1", "n2"])["state"] == "UP");
        let mut diagnosis = Value::Null;
        let everybody = serde_json::json!(["n1", "n2", "n3"]);
        wait_until(seconds, "everybody answers", || {
            diagnosis = self.diagnose(["n1", "n2"]);
            diagnosis["asked"] == everybody
        });
        let text = diagnosis["paragraph"].as_str().unwrap();
        let words = "Nothing is wrong between n1 and n2 in mesh m: both hear each other";
        assert!(text.starts_with(words), "{diagnosis}");
    }
}

/// Where the peer without an agent listens.
const PORT: u16 = 51820;
const PAIR: [&str; 2] = ["n1", "n2"];

#[test]
fn what_is_wrong_with_the_path_is_named() {
    let world = World::new(3, "");
    let way = &world.way;
    world.is_right();

    way.cut(0, &["ip", "daddr", Way::ENDS[1]]);
    world.wait("ONE_WAY");
    world.is_wrong(PAIR, "one-way", &["what n1 sends does not reach n2, pings included"]);
    // Whoever asks the other way around hears the same.
    world.is_wrong(["n2", "n1"], "one-way", &["what n1 sends does not reach n2, pings included"]);

    way.cut(1, &["ip", "daddr", Way::ENDS[0]]);
    world.wait("DOWN");
    world.is_wrong(
        PAIR,
        "path-cut",
        &["in either direction", "n3 reaches both, so it is the path between them"],
    );
    way.heal();
    world.is_right();

    let other = world.host(2);
    other.run(["nft", "add", "table", "ip", "wall"]);
    other.run(["nft", "add", "chain", "ip", "wall", "in", "{ type filter hook input priority 0; }"]);
    other.run(["nft", "add", "rule", "ip", "wall", "in", "udp", "dport", "5000", "drop"]);
    world.wait("ONE_WAY");
    world.is_wrong(
        PAIR,
        "firewall",
        &[
            "what n1 sends to the data port of n2 is lost",
            "at the host of n2 or close to it",
            "UDP port 5000",
        ],
    );
    other.run(["nft", "delete", "table", "ip", "wall"]);
    world.is_right();

    // The same filter on the way of one of them.
    way.cut(0, &["ip", "daddr", Way::ENDS[1], "udp", "dport", "5000"]);
    world.wait("ONE_WAY");
    world.is_wrong(
        PAIR,
        "firewall",
        &["what n1 sends to the data port of n2 is lost", "it is on the way from n1"],
    );
    way.heal();
    world.is_right();

    let router = &way.router;
    router.run(["nft", "add", "chain", "ip", "cut", "out", "{ type filter hook output priority 0; }"]);
    router.run(["nft", "add", "rule", "ip", "cut", "out", "icmp", "type", "destination-unreachable", "drop"]);
    let device = router.device_to(other);
    router.run(["ip", "link", "set", "dev", &device, "mtu", "1350"]);
    let _flow = Flow::start(world.host(1), other, "10.9.0.2");
    wait_until(Duration::from_secs(30), "the size is found", || {
        let tunnels = world.agents[0].tunnels();
        tunnels.iter().any(|tunnel| tunnel["link"]["loses"].as_u64().is_some_and(|loses| loses > 0))
    });
    wait_until(SOON, "the controller is told", || world.diagnose(PAIR)["faults"][0]["kind"] == "small-path");
    world.is_wrong(PAIR, "small-path", &["are lost on the way, and no router says so"]);
}

#[test]
fn what_is_wrong_with_a_host_is_named() {
    let mut world = World::new(3, "");
    world.is_right();

    let (first, second) = (world.host(1).clone(), world.host(2).clone());
    first.run(["ip", "route", "add", "10.9.0.2/32", "via", "172.100.1.254"]);
    let device = first.device_to(&world.way.router);
    world.is_wrong(
        PAIR,
        "overlapping-route",
        &["On n1 packets for 10.9.0.2, which is at n2", &format!("device {device}")],
    );
    first.run(["ip", "route", "del", "10.9.0.2/32", "via", "172.100.1.254"]);

    second.forwarding(false);
    world.is_wrong(
        PAIR,
        "forwarding-off",
        &["On n2 forwarding of IPv4 is off", "sysctl -w net.ipv4.ip_forward=1"],
    );
    second.forwarding(true);
    second.sysctl("net.ipv4.conf.all.rp_filter", "1");
    world.is_wrong(
        PAIR,
        "reverse-path",
        &["On n2 reverse-path filter is strict", "net.ipv4.conf.all.rp_filter=2"],
    );
    second.sysctl("net.ipv4.conf.all.rp_filter", "0");
    world.is_right();

    world.agents[1].kill9();
    world.wait("DOWN");
    world.is_wrong(PAIR, "agent-down", &["its host answers n1 and n3, but "]);
    world.agents[1].restart();
    world.is_right();

    // It has said that it goes, and is gone.
    world.agents[1].terminate();
    wait_until(SOON, "it is gone", || world.controller.node("n2")["health"] == "OFFLINE");
    world.is_wrong(PAIR, "agent-down", &["The agent of n2 does not run"]);
    world.agents[1].restart();
    world.is_right();

    let cable = second.device_to(&world.way.router);
    second.run(["ip", "link", "set", "dev", &cable, "down"]);
    world.wait("DOWN");
    // Whether or not the controller has missed it already.
    world.is_wrong(
        PAIR,
        "host-down",
        &["The host of n2 is down or cut off from everybody", "no ping of n1 and n3"],
    );
    wait_until(Duration::from_secs(20), "the controller misses it", || {
        world.controller.node("n2")["health"] != "LIVE"
    });
    world.is_wrong(PAIR, "host-down", &["The host of n2 is down or cut off from everybody"]);
    let waited = world.controller.run(&["wait", "--converged", "1s"]).unwrap_err();
    assert!(waited.stderr.contains("n2: it was last heard of"), "{waited}");
    second.run(["ip", "link", "set", "dev", &cable, "up"]);
    second.route("172.100.0.0/16", "172.100.2.254");
    world.is_right();
}

#[test]
fn a_clock_that_is_off_is_named() {
    let mut world = World::new(2, "  n3: {address: 10.9.0.3}\n");
    let command = faked(
        "FAKETIME=+1h",
        AGENT,
        &["--controller", "172.100.3.254:7443", "--name", "n3", "--insecure", "172.100.0.0/16"],
    );
    let command: Vec<&str> = command.iter().map(String::as_str).collect();
    world.agents.push(Agent::start_by(&world.third, &command));
    wait_until(SOON, "its link is up", || world.link(["n1", "n3"])["state"] == "UP");
    world.is_wrong(
        ["n1", "n3"],
        "clock-off",
        &["n3: its clock is 1 h 0 min ahead of the controller's", "Set the clock"],
    );
}

#[test]
fn keys_that_do_not_fit_are_named() {
    const OTHER: &str = "YWJjZGVmZ2hpamtsbW5vcHFyc3R1dnd4eXphYmNkZWY=";
    let more = format!(
        "  router: {{kind: wireguard, address: 10.9.0.9, endpoint: '172.100.3.3:{PORT}', peers: [n1], public_key: {OTHER}}}\n"
    );
    let world = World::new(2, &more);
    // The key that it has for the mesh is told first.
    world.controller.run(&["wait", "--converged", "20s"]).unwrap();
    let exported = world.controller.run(&["export", "wireguard", "router"]).unwrap();
    let key = exported.lines().find_map(|line| line.strip_prefix("PublicKey = ")).unwrap().to_owned();
    // What the file has is another's key than its own.
    let peer =
        [&key, "endpoint", "172.100.1.1:5000", "allowed-ips", "10.9.0.1/32", "persistent-keepalive", "1"];
    let _router = WireguardGo::start(&world.third, PORT, "10.9.0.9/24", &peer);
    wait_until(SOON, "both have tried", || {
        world.agents[0]
            .tunnels()
            .iter()
            .any(|tunnel| tunnel["notes"].to_string().contains("uses another key"))
    });
    world.is_wrong(
        ["n1", "router"],
        "wrong-key",
        &["The keys of n1 and router do not fit", "public_key of router"],
    );
}

#[test]
fn who_is_joined_by_nothing_is_told_so() {
    let world = World::new(2, "");
    for (pair, words) in [(["n1", "n7"], "node n7 is in no mesh"), (["n1", "n1"], "is one node: name two")] {
        let refused = world.controller.run(&["diagnose", pair[0], pair[1]]).unwrap_err();
        assert!(refused.stderr.contains(words), "{refused}");
    }
    ping_ok(world.host(1), "10.9.0.2");
}
