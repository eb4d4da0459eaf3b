//! Peers that are somewhere else than they were, and ways to them that go and come.

use std::time::Duration;

use tunmesh::proto::host::clock::since_epoch;

use serde_json::json;

use crate::lab::{
    Agent, Capture, Controller, Host, Lab, Names, Pinger, SOON, Way, add_probed, grpcurl, holds_within, ping,
    ping_ok, tunnel_status, wait_live, wait_until,
};

fn wait_up(agent: &Agent, name: &str) {
    wait_until(SOON, &format!("{name} is up"), || tunnel_status(agent, name)["link"]["state"] == "UP");
}

/// A host whose name others have gets another address, and its name, too.
#[test]
fn case_13_a_host_whose_name_has_another_address_is_reached_again() {
    for is_encrypted in [false, true] {
        let way = Way::new();
        let (a, b) = (way.host(0), way.host(1));
        let mut names = Names::new(a, "172.100.2.2 minion-b\n");
        let agents = [Agent::start(a, &[]), Agent::start(b, &[])];
        let key = |n: usize| if is_encrypted { agents[n].public_key() } else { String::new() };
        add_probed(&agents[0], "link", "10.9.0.1/24", "minion-b", &key(1));
        add_probed(&agents[1], "link", "10.9.0.2/24", Way::ENDS[0], &key(0));
        wait_up(&agents[0], "link");
        ping_ok(a, "10.9.0.2");
        let device = b.device_to(&way.router);
        b.run(["ip", "address", "del", "172.100.2.2/24", "dev", &device]);
        b.address(&device, "172.100.2.7/24");
        b.route("172.100.0.0/16", "172.100.2.254");
        names.write("hosts", "172.100.2.7 minion-b\n");
        let start = since_epoch();
        wait_until(Duration::from_secs(15), "it is reached", || ping(a, "10.9.0.2", &[]));
        let took = since_epoch() - start;
        assert!(took < Duration::from_secs(10), "encrypted: {is_encrypted}: {took:?}");
        // Answers go from where they were asked.
        ping_ok(b, "10.9.0.1");
        wait_up(&agents[1], "link");
    }
}

/// A name with two addresses, of which one leads nowhere.
#[test]
fn case_13_of_the_addresses_of_a_name_one_is_found_that_answers() {
    let way = Way::new();
    let a = way.host(0);
    let _names = Names::new(a, "172.100.1.99 minion-b\n172.100.2.2 minion-b\n");
    let agents = [Agent::start(a, &[]), Agent::start(way.host(1), &[])];
    add_probed(&agents[0], "link", "10.9.0.1/24", "minion-b", "");
    add_probed(&agents[1], "link", "10.9.0.2/24", Way::ENDS[0], "");
    wait_until(Duration::from_secs(20), "the one that answers is in use", || {
        tunnel_status(&agents[0], "link")["link"]["state"] == "UP"
    });
    assert_eq!(tunnel_status(&agents[0], "link")["endpoint"], "172.100.2.2:5000");
}

/// A chain through which a router's forwarded packets go, and in which nothing is refused yet.
fn cuttable(router: &Host) {
    router
        .run(["nft", "add table ip cut; add chain ip cut forward { type filter hook forward priority 0; }"]);
}

/// Two hosts with two routers between them, so that each has two endpoints, and two ways to the other's.
struct TwoWays {
    _lab: Lab,
    routers: [Host; 2],
    hosts: [Host; 2],
}

impl TwoWays {
    /// Where each host is, the way over the first router first.
    const ENDS: [[&str; 2]; 2] = [["172.100.1.1", "172.100.3.1"], ["172.100.2.2", "172.100.4.2"]];

    fn new() -> Self {
        let lab = Lab::new();
        let (routers, hosts) =
            (["r1", "r2"].map(|role| lab.host(role)), ["a", "b"].map(|role| lab.host(role)));
        for (way, router) in routers.iter().enumerate() {
            for (n, host) in hosts.iter().enumerate() {
                let [own, other] = [n, 1 - n].map(|n| way * 2 + n + 1);
                let end = format!("{}/24", Self::ENDS[n][way]);
                lab.link(host, &end, router, &format!("172.100.{own}.254/24"));
                host.route(&format!("172.100.{other}.0/24"), &format!("172.100.{own}.254"));
            }
            router.forwarding(true);
            cuttable(router);
        }
        Self { _lab: lab, routers, hosts }
    }

    /// Adds to an agent the probed tunnel `link` to the other host, with both endpoints of that.
    fn add(&self, n: usize, agent: &Agent, key: &str) {
        let [first, second] = Self::ENDS[1 - n];
        let framing = if key.is_empty() { "RAW" } else { "WIREGUARD" };
        let tunnel = json!({"tunnel": {
            "name": "link", "addresses": [format!("10.9.0.{}/24", n + 1)], "remote": first, "moreRemotes": [second],
            "framing": framing, "peerPublicKey": key, "probed": true,
        }});
        grpcurl(agent, "tunmesh.v1.TunnelService/AddTunnel", &tunnel).unwrap();
    }

    /// The agents of both hosts, with the tunnel `link` between them that is up.
    fn agents(&self, is_encrypted: bool) -> [Agent; 2] {
        let agents = [0, 1].map(|n| Agent::start(&self.hosts[n], &[]));
        for n in [0, 1] {
            let key = if is_encrypted { agents[1 - n].public_key() } else { String::new() };
            self.add(n, &agents[n], &key);
        }
        agents.iter().for_each(|agent| wait_up(agent, "link"));
        agents
    }

    /// Nothing goes over the first router any more.
    fn cut(&self) {
        self.routers[0].run(["nft", "add", "rule", "ip", "cut", "forward", "drop"]);
    }

    /// The second router loses what is large on its way to the second host, and says so to nobody.
    fn narrow_second(&self) {
        let [_, router] = &self.routers;
        router.run(["ip", "link", "set", &router.device_to(&self.hosts[1]), "mtu", "1400"]);
        router.run([
            "nft",
            "add table ip silent; add chain ip silent out { type filter hook output priority 0; }; \
             add rule ip silent out icmp type destination-unreachable drop",
        ]);
    }

    fn heal(&self) {
        self.routers[0].run(["nft", "flush", "chain", "ip", "cut", "forward"]);
    }
}

/// For how long it is looked that nothing changes: longer than a healed endpoint is waited for.
const A_WHILE: Duration = Duration::from_secs(12);

/// Nothing of the pings from now on is lost until `done`.
fn loses_nothing(host: &Host, target: &str, deadline: Duration, what: &str, done: impl FnMut() -> bool) {
    let pinger = Pinger::start(host, target, Duration::from_millis(50));
    wait_until(deadline, what, done);
    let report = pinger.stop();
    assert_eq!(report.received, report.sent, "{what}: {report:?}");
}

/// The way to the endpoints that both ends prefer is cut, and heals.
#[test]
fn case_13_of_several_endpoints_the_next_is_used_and_the_first_again() {
    for is_encrypted in [false, true] {
        let ways = TwoWays::new();
        let agents = ways.agents(is_encrypted);
        let [a, b] = &ways.hosts;
        ping_ok(a, "10.9.0.2");
        // Whether a host sends to that one of its peer's endpoints, as it says.
        let uses = |n: usize, way: usize| {
            let status = tunnel_status(&agents[n], "link");
            let [first, second] = TwoWays::ENDS[1 - n];
            let is_said = match way {
                0 => status["preferred"].is_null(),
                _ => status["preferred"] == first && status["notes"][0].as_str().unwrap().contains(first),
            };
            let endpoint = format!("{}:5000", [first, second][way]);
            status["endpoint"] == endpoint && status["link"]["state"] == "UP" && is_said
        };
        assert!([0, 1].iter().all(|n| uses(*n, 0)), "encrypted: {is_encrypted}");

        // What the other way carries is found out there, and there alone.
        ways.narrow_second();
        let carries = || tunnel_status(&agents[0], "link")["link"]["carries"].as_u64().unwrap_or(0);
        assert_eq!(carries(), 1500);

        ways.cut();
        let start = since_epoch();
        wait_until(Duration::from_secs(15), "it is reached over the other way", || ping(a, "10.9.0.2", &[]));
        let took = since_epoch() - start;
        assert!(took < Duration::from_secs(10), "encrypted: {is_encrypted}: {took:?}");
        wait_until(SOON, "both say so", || uses(0, 1) && uses(1, 1));
        let shown = agents[0].show("tunnels");
        assert!(shown.contains("172.100.4.2:5000, instead of 172.100.2.2"), "{shown}");
        let shown = agents[0].show("status");
        assert!(shown.contains("1 (0 failed, 1 not to the preferred endpoint)"), "{shown}");
        ping_ok(b, "10.9.0.1");
        // As long as the first does not answer they stay where they are.
        let start = since_epoch();
        loses_nothing(a, "10.9.0.2", A_WHILE * 2, "a while has passed", || since_epoch() - start > A_WHILE);
        assert!(uses(0, 1) && uses(1, 1), "encrypted: {is_encrypted}");
        wait_until(SOON, "what that way carries is known", || (1280..=1400).contains(&carries()));

        ways.heal();
        let start = since_epoch();
        loses_nothing(a, "10.9.0.2", Duration::from_secs(40), "both use the first again", || {
            uses(0, 0) && uses(1, 0)
        });
        let took = since_epoch() - start;
        assert!(took >= Duration::from_secs(10), "encrypted: {is_encrypted}: {took:?}");
        ping_ok(b, "10.9.0.1");
        wait_until(SOON, "what the first way carries is known", || carries() == 1500);
    }
}

/// Who has said that it ends is asked at none of its endpoints, and is there again when it is back.
#[test]
fn case_13_a_peer_that_has_gone_is_asked_at_none_of_its_endpoints() {
    let ways = TwoWays::new();
    let [near, mut far] = ways.agents(false);
    let [a, b] = &ways.hosts;
    ping_ok(a, "10.9.0.2");
    far.terminate();
    let status = || tunnel_status(&near, "link");
    wait_until(SOON, "it has said so", || status()["link"]["state"] == "ADMIN_DOWN");
    // From then on there is one that is preferred to the one in use.
    wait_until(A_WHILE, "the next endpoint is in use", || !status()["preferred"].is_null());
    let capture = Capture::start(b, "inbound and udp port 5000");
    assert!(!holds_within(A_WHILE, || status()["link"]["state"] != "ADMIN_DOWN"));
    assert_eq!(capture.stop().count(), 0);
    far.restart();
    wait_until(SOON, "it is back", || ping(a, "10.9.0.2", &[]));
}

/// The way to the endpoint that one end prefers is cut in its direction alone: the other end stays where it is.
#[test]
fn case_13_an_end_that_is_not_heard_takes_the_next_endpoint_and_the_other_stays() {
    for is_encrypted in [false, true] {
        let ways = TwoWays::new();
        let agents = ways.agents(is_encrypted);
        let [a, _] = &ways.hosts;
        ping_ok(a, "10.9.0.2");
        let [first, _] = &ways.routers;
        first.run(["nft", "add", "rule", "ip", "cut", "forward", "iifname", &first.device_to(a), "drop"]);
        let start = since_epoch();
        wait_until(SOON, "it is reached over the other way", || ping(a, "10.9.0.2", &[]));
        let took = since_epoch() - start;
        assert!(took < Duration::from_secs(5), "encrypted: {is_encrypted}: {took:?}");
        agents.iter().for_each(|agent| wait_up(agent, "link"));
        let start = since_epoch();
        loses_nothing(a, "10.9.0.2", SOON, "a while has passed", || {
            since_epoch() - start > Duration::from_secs(4)
        });
        let endpoints = agents.each_ref().map(|agent| tunnel_status(agent, "link")["endpoint"].clone());
        assert_eq!(endpoints, ["172.100.4.2:5000", "172.100.1.1:5000"], "encrypted: {is_encrypted}");
    }
}

/// A host with two cables to its router, of whose endpoints the mesh file or its agent tells; it answers from where it
/// was asked. The other host has one.
#[test]
fn case_13_a_node_of_a_mesh_has_several_endpoints() {
    for is_said_by_agent in [false, true] {
        let lab = Lab::new();
        let [router, a, b] = ["router", "a", "b"].map(|role| lab.host(role));
        lab.link(&a, "172.100.1.1/24", &router, "172.100.1.254/24");
        lab.link(&b, "172.100.2.2/24", &router, "172.100.2.254/24");
        for (host, device) in [(&b, b.device_to(&router)), (&router, router.device_to(&b))] {
            host.run(["ip", "link", "set", &device, "down"]);
            host.run(["ip", "link", "set", &device, "name", "first"]);
            host.run(["ip", "link", "set", "first", "up"]);
        }
        lab.link(&b, "172.100.3.2/24", &router, "172.100.3.254/24");
        a.route("172.100.0.0/16", "172.100.1.254");
        b.route("172.100.0.0/16", "172.100.2.254");
        b.run(["ip", "route", "add", "default", "via", "172.100.3.254", "table", "3"]);
        b.run(["ip", "rule", "add", "from", "172.100.3.2", "table", "3"]);
        router.forwarding(true);
        cuttable(&router);
        let controller = Controller::start(&router, &[]);
        let endpoints = "172.100.2.2,172.100.3.2";
        let said: &[&str] = if is_said_by_agent { &["--endpoint", endpoints] } else { &[] };
        let agents = [
            Agent::join(&a, "172.100.1.254:7443", "a", &[]),
            Agent::join(&b, "172.100.2.254:7443", "b", said),
        ];
        wait_live(&controller, &["a".to_owned(), "b".to_owned()]);
        let written = if is_said_by_agent { String::new() } else { format!("endpoint: [{endpoints}], ") };
        let mesh = format!(
            "{{mesh: prod, overlay: 10.9.0.0/24, nodes: {{a: {{address: 10.9.0.1}}, b: {{{written}address: 10.9.0.2}}}}}}"
        );
        let applied = controller.apply_with(&mesh, &["--wait"]).unwrap();
        assert!(applied.contains("to 172.100.2.2:5000 or 172.100.3.2:5000"), "{applied}");
        wait_up(&agents[0], "prod.b");
        ping_ok(&a, "10.9.0.2");
        if is_said_by_agent {
            let nodes = controller.run(&["nodes"]).unwrap();
            assert!(nodes.contains("172.100.2.2, 172.100.3.2"), "{nodes}");
        }
        let in_use = || {
            let tunnels = controller.json(&["tunnels", "a"]);
            let tunnel = tunnels["tunnels"][0].clone();
            [tunnel["endpoint"].clone(), tunnel["preferred"].clone()]
        };
        wait_until(SOON, "it goes to the first", || in_use() == [json!("172.100.2.2:5000"), json!(null)]);

        // The session of its agent goes on over the same cable.
        for direction in ["iifname", "oifname"] {
            router.run([
                "nft", "add", "rule", "ip", "cut", "forward", direction, "first", "udp", "dport", "5000",
                "drop",
            ]);
        }
        let start = since_epoch();
        wait_until(Duration::from_secs(15), "it is reached over the other cable", || {
            ping(&a, "10.9.0.2", &[])
        });
        let took = since_epoch() - start;
        assert!(took < Duration::from_secs(10), "{took:?}");
        ping_ok(&b, "10.9.0.1");
        wait_until(SOON * 2, "the controller knows", || {
            in_use() == [json!("172.100.3.2:5000"), json!("172.100.2.2:5000")]
        });
        let shown = controller.run(&["nodes"]).unwrap();
        assert!(shown.contains("0 failed, 1 not to the preferred endpoint)"), "{shown}");
        let shown = controller.run(&["tunnels", "a"]).unwrap();
        assert!(shown.contains("172.100.3.2:5000, instead of 172.100.2.2:5000"), "{shown}");
        let said = controller.run(&["diagnose", "a", "b"]).unwrap();
        let words = "a sends to b at 172.100.3.2:5000, since it does not reach it at 172.100.2.2:5000";
        assert!(said.contains(words), "{said}");

        // What b sends over the first cable is lost still: that it hears there moves neither.
        router.run([
            "nft",
            "flush chain ip cut forward; add rule ip cut forward iifname first udp dport 5000 drop",
        ]);
        let start = since_epoch();
        loses_nothing(&a, "10.9.0.2", A_WHILE * 2, "a while has passed", || since_epoch() - start > A_WHILE);
        assert_eq!(tunnel_status(&agents[0], "prod.b")["endpoint"], "172.100.3.2:5000");

        router.run(["nft", "flush", "chain", "ip", "cut", "forward"]);
        loses_nothing(&a, "10.9.0.2", Duration::from_secs(40), "the first is used again", || {
            tunnel_status(&agents[0], "prod.b")["endpoint"] == "172.100.2.2:5000"
        });
        ping_ok(&b, "10.9.0.1");
    }
}

/// A host without IPv4, one of whose peers is behind its default route and one beside it.
#[test]
fn case_16_a_default_route_that_goes_and_comes_costs_no_other_peer() {
    let lab = Lab::new();
    let [host, router, far, near] = ["host", "router", "far", "near"].map(|role| lab.host(role));
    lab.link(&host, "fd00:100:1::1/64", &router, "fd00:100:1::254/64");
    lab.link(&far, "fd00:100:2::2/64", &router, "fd00:100:2::254/64");
    lab.link(&host, "fd00:100:3::1/64", &near, "fd00:100:3::3/64");
    router.forwarding(true);
    let default = |host: &Host, via: &str| host.run(["ip", "-6", "route", "add", "default", "via", via]);
    default(&host, "fd00:100:1::254");
    default(&far, "fd00:100:2::254");
    let mut agent = Agent::start(&host, &[]);
    let others = [Agent::start(&far, &[]), Agent::start(&near, &[])];
    add_probed(&agent, "far", "10.9.2.1/24", "fd00:100:2::2", "");
    add_probed(&agent, "near", "10.9.3.1/24", "fd00:100:3::3", "");
    add_probed(&others[0], "back", "10.9.2.2/24", "fd00:100:1::1", "");
    add_probed(&others[1], "back", "10.9.3.2/24", "fd00:100:3::1", "");
    ["far", "near"].iter().for_each(|name| wait_up(&agent, name));
    ping_ok(&host, "10.9.2.2");
    let pinger = Pinger::start(&host, "10.9.3.2", Duration::from_millis(50));
    host.run(["ip", "-6", "route", "del", "default"]);
    let start = since_epoch();
    wait_until(SOON, "the other does not hear it", || {
        tunnel_status(&agent, "far")["link"]["state"] == "INIT"
    });
    let gone = tunnel_status(&agent, "far");
    assert!(gone["reason"].as_str().unwrap().contains("no route to fd00:100:2::2"), "{gone}");
    assert!(
        gone["link"]["reason"]
            .as_str()
            .unwrap()
            .contains("could not send the last probe: its host has no way to the peer"),
        "{gone}"
    );
    let lines = agent.log().lines().count();
    while since_epoch() - start < Duration::from_secs(30) {
        // What nobody can carry is sent all the same.
        let _ = ping(&host, "10.9.2.2", &[]);
        assert!(agent.alive());
    }
    assert!(agent.log().lines().count() < lines + 5, "a flood: {}", agent.log());
    default(&host, "fd00:100:1::254");
    let start = since_epoch();
    wait_until(SOON, "it is reached again", || ping(&host, "10.9.2.2", &[]));
    let took = since_epoch() - start;
    assert!(took < Duration::from_secs(5), "{took:?}");
    let report = pinger.stop();
    assert_eq!(report.received, report.sent, "nothing of the other peer is lost: {report:?}");
    wait_until(SOON, "nothing is wrong", || tunnel_status(&agent, "far")["reason"].is_null());
}
