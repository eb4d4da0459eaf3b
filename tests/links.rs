//! Links: that each end of a tunnel says by itself whether the other hears it, and what follows from that.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a fault ends the test")]

mod lab;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use lab::{
    Agent, Capture, Controller, Host, Lab, Probed, SOON, Segment, Way, grpcurl, ping_ok, since,
    tunnel_status, wait_live, wait_until,
};
use serde_json::{Value, json};
use tunmesh::proto::host::clock::since_epoch;

const ADD: &str = "tunmesh.v1.TunnelService/AddTunnel";

/// Whether datagrams of tunnels come to a host within two seconds.
fn hears(host: &Host) -> bool {
    let capture = Capture::start(host, "inbound and udp port 5000");
    std::thread::sleep(Duration::from_secs(2));
    !capture.stop().is_empty()
}

#[test]
fn who_has_gone_is_sent_nothing_until_it_is_back() {
    for is_encrypted in [false, true] {
        let mut pair = Probed::new(is_encrypted);
        assert!(hears(pair.way.host(1)), "it would be seen");
        let start = since_epoch();
        pair.agents[1].terminate();
        wait_until(SOON, "it has said so", || pair.link(0)["state"] == "ADMIN_DOWN");
        let gone = pair.link(0);
        assert!(since(&gone, start) < Duration::from_secs(1), "{gone} after {start:?}");
        assert!(gone["reason"].as_str().unwrap().contains("has said that it ends"), "{gone}");
        if !is_encrypted {
            assert!(!hears(pair.way.host(1)));
        }
        pair.agents[1].restart();
        pair.wait(["UP", "UP"]);
    }
}

#[test]
fn where_none_was_asked_for_no_probe_goes() {
    let way = Way::new();
    let agents = [0, 1].map(|n| Agent::start(way.host(n), &[]));
    for (n, agent) in agents.iter().enumerate() {
        let mut tunnel = json!({"tunnel": {
            "name": "link", "addresses": [format!("10.9.0.{}/24", n + 1)], "remote": Way::ENDS[1 - n], "framing": "PI",
            "probed": true,
        }});
        let refused = grpcurl(agent, ADD, &tunnel).unwrap_err();
        assert!(refused.message.contains("tunnel.probed"), "{refused:?}");
        tunnel["tunnel"]["probed"] = json!(false);
        grpcurl(agent, ADD, &tunnel).unwrap();
    }
    ping_ok(way.host(0), "10.9.0.2");
    assert_eq!(tunnel_status(&agents[0], "link")["link"], Value::Null);
    assert!(!hears(way.host(1)));
}

#[test]
fn in_a_mesh_agents_probe_each_other_without_being_told() {
    for security in ["plain", "encrypted"] {
        let segment = Segment::new(3);
        let agents = segment.agents(3);
        segment
            .controller
            .apply_with(
                &format!("mesh: m\noverlay: 10.9.0.0/24\nsecurity: {security}\nnodes: {{n1: {{}}, n2: {{}}, n3: {{}}}}\n"),
                &["--wait"],
            )
            .unwrap();
        wait_until(SOON, &format!("all links of the {security} mesh are up"), || {
            agents.iter().all(|agent| {
                let tunnels = agent.tunnels();
                tunnels.len() == 2 && tunnels.iter().all(|tunnel| tunnel["link"]["state"] == "UP")
            })
        });
    }
}

/// A subnet that two hosts offer: while the way to the preferred one is cut the other one has the packets.
#[test]
fn the_next_best_has_the_packets_while_the_way_to_the_best_is_cut() {
    let way = Way::new();
    let third = way.lab.host("c");
    way.lab.link(&third, "172.100.3.3/24", &way.router, "172.100.3.254/24");
    third.route("172.100.0.0/16", "172.100.3.254");
    let hosts = [way.host(0), way.host(1), &third];
    let agents = hosts.map(|host| Agent::start(host, &[]));
    let add = |agent: &Agent, name: &str, own: u8, peer: u8, remote: &str, prefixes: Value, routes: Value| {
        let mut allowed = vec![json!({"prefix": format!("10.9.0.{peer}/32")})];
        allowed.extend(prefixes.as_array().unwrap().iter().cloned());
        let tunnel = json!({"tunnel": {
            "name": name, "device": "mesh", "addresses": [format!("10.9.0.{own}/24")], "remote": remote,
            "framing": "RAW", "probed": true, "allowedPrefixes": allowed, "routes": routes,
        }});
        grpcurl(agent, ADD, &tunnel).unwrap();
    };
    let offer = |preference: u32| json!([{"prefix": "192.168.9.0/24", "preference": preference}]);
    add(&agents[0], "to-b", 1, 2, Way::ENDS[1], offer(10), json!(["192.168.9.0/24"]));
    add(&agents[0], "to-c", 1, 3, "172.100.3.3", offer(20), json!(["192.168.9.0/24"]));
    for (n, own) in [(1, 2), (2, 3)] {
        add(&agents[n], "to-a", own, 1, Way::ENDS[0], json!([]), json!([]));
        hosts[n].address("lo", "192.168.9.1/32");
    }
    let is_up = |name: &str| tunnel_status(&agents[0], name)["link"]["state"] == "UP";
    wait_until(SOON, "both are up", || is_up("to-b") && is_up("to-c"));
    let received = |n: usize| lab::number(&tunnel_status(&agents[n], "to-a")["received"]["packets"]);
    /// Pings until the host is the one that has the packets, and says how long it took.
    fn until_at(host: &Host, received: impl Fn() -> u64, patience: Duration) -> Duration {
        let start = since_epoch();
        wait_until(patience, "the other one has the packets", || {
            let before = received();
            let came = host.try_run(["ping", "-n", "-c", "1", "-W", "0.2", "192.168.9.1"]).is_ok();
            came && received() > before
        });
        since_epoch() - start
    }
    until_at(hosts[0], || received(1), SOON);
    way.cut(1, &["udp", "dport", "5000"]);
    let moved = until_at(hosts[0], || received(2), SOON);
    assert!(moved < Duration::from_millis(1_500), "{moved:?}");
    assert_eq!(tunnel_status(&agents[0], "to-b")["link"]["state"], "DOWN");
    way.heal();
    wait_until(SOON, "both are up", || is_up("to-b"));
    until_at(hosts[0], || received(2), SOON);
    let back = until_at(hosts[0], || received(1), Duration::from_secs(15));
    assert!(back > Duration::from_secs(8), "not before it has been well for ten seconds: {back:?}");
}

/// The links of a controller, by their nodes.
fn links(controller: &Controller) -> BTreeMap<String, Value> {
    let answer = controller.json(&["links"]);
    let links = answer["links"].as_array().cloned().unwrap_or_default();
    let pair =
        |link: &Value| format!("{}-{}", link["node"].as_str().unwrap(), link["peer"].as_str().unwrap());
    links.into_iter().map(|link| (pair(&link), link)).collect()
}

/// Whether a controller has so many links, and all are up.
fn are_up(controller: &Controller, count: usize) -> bool {
    let links = links(controller);
    links.len() == count && links.values().all(|link| link["state"] == "UP")
}

/// What comes from `source` to the ports of tunnels is lost on a host from now on.
fn deafen(host: &Host, source: &str) {
    host.run(["nft", "add", "table", "ip", "deaf"]);
    host.run(["nft", "add", "chain", "ip", "deaf", "in", "{ type filter hook input priority 0; }"]);
    host.run([
        "nft", "add", "rule", "ip", "deaf", "in", "ip", "saddr", source, "udp", "dport", "5000", "drop",
    ]);
}

fn undeafen(host: &Host) {
    host.run(["nft", "delete", "table", "ip", "deaf"]);
}

#[test]
fn the_controller_knows_every_link_and_names_the_direction_that_is_cut() {
    let segment = Segment::new(3);
    let _agents = segment.agents(3);
    let controller = &segment.controller;
    let mesh = "mesh: m\noverlay: 10.9.0.0/24\nnodes: {n1: {}, n2: {}, n3: {}}\n";
    controller.apply_with(mesh, &["--wait"]).unwrap();
    let all_up = || are_up(controller, 3);
    wait_until(SOON, "all are up", all_up);
    wait_until(Duration::from_secs(20), "one end of each has told figures", || {
        links(controller).values().all(|link| {
            ["there", "back"].iter().all(|way| link[way]["heard"]["known"].as_u64() > Some(5))
                && ["roundTrip", "figuresAge", "age", "detectionTime"].iter().all(|key| !link[key].is_null())
        })
    });
    let matrix = controller.run(&["links"]).unwrap();
    assert!(
        matrix.contains("3 links: 3 up; told at most ") && matrix.contains("figures at most "),
        "{matrix}"
    );
    let list = controller.run(&["links", "--list", "--mesh", "m"]).unwrap();
    assert!(
        list.lines().filter(|line| line.contains(" of ") && line.contains("lost, jitter")).count() == 3,
        "{list}"
    );

    // What n1 sends does not reach n2.
    deafen(segment.host(2), "172.100.1.1");
    let start = since_epoch();
    wait_until(SOON, "the direction is named", || {
        let link = &links(controller)["n1-n2"];
        link["state"] == "ONE_WAY" && link["reason"] == "what n1 sends does not reach n2"
    });
    let took = since_epoch() - start;
    assert!(took < Duration::from_secs(2), "{took:?}");
    let link = &links(controller)["n1-n2"];
    assert_eq!(
        (&link["there"]["passage"], &link["back"]["passage"]),
        (&json!("CUT"), &json!("HEARD")),
        "{link}"
    );
    let shown = controller.run(&["links"]).unwrap();
    assert!(shown.contains("CUT") && shown.contains("what n1 sends does not reach n2"), "{shown}");
    // And nothing of n2 reaches n1.
    deafen(segment.host(1), "172.100.1.2");
    let start = since_epoch();
    wait_until(SOON, "both directions are", || links(controller)["n1-n2"]["state"] == "DOWN");
    let took = since_epoch() - start;
    assert!(took < Duration::from_millis(1_500), "{took:?}");
    assert!(["n1-n3", "n2-n3"].iter().all(|pair| links(controller)[*pair]["state"] == "UP"));
    for (kind, node, tunnel) in
        [("link-down", "n2", "m.n1"), ("link-one-way", "n1", "m.n2"), ("link-down", "n1", "m.n2")]
    {
        let events = controller.events(kind, node);
        assert!(events.iter().any(|event| event["tunnel"] == tunnel), "{kind} of {node}: {events:?}");
    }
    undeafen(segment.host(1));
    undeafen(segment.host(2));
    wait_until(SOON, "all are up again", all_up);
    wait_until(SOON, "that is an event at both ends", || {
        [("n1", "m.n2"), ("n2", "m.n1")].iter().all(|(node, tunnel)| {
            controller.events("link-up", node).iter().any(|event| event["tunnel"] == *tunnel)
        })
    });
    assert!(controller.events("link-up", "n3").is_empty(), "nothing was to be told of that");
}

#[test]
fn who_is_away_from_the_controller_is_not_taken_to_be_cut_off() {
    let mut segment = Segment::new(3);
    let _agents = segment.agents(3);
    let mesh = "mesh: m\noverlay: 10.9.0.0/24\nsecurity: plain\nnodes: {n1: {}, n2: {}, n3: {}}\n";
    segment.controller.apply_with(mesh, &["--wait"]).unwrap();
    wait_until(SOON, "all are up", || are_up(&segment.controller, 3));
    for n in [1, 2] {
        let host = segment.host(n);
        host.run(["nft", "add", "table", "ip", "away"]);
        host.run(["nft", "add", "chain", "ip", "away", "out", "{ type filter hook output priority 0; }"]);
        host.run(["nft", "add", "rule", "ip", "away", "out", "tcp", "dport", "7443", "drop"]);
    }
    let stale = Duration::from_secs(20);
    wait_until(stale, "nobody says how n1 and n2 hear each other", || {
        let link = &links(&segment.controller)["n1-n2"];
        link["state"] == "UNKNOWN" && link["reason"].as_str().unwrap().contains("was last heard of")
    });
    let others = links(&segment.controller);
    assert!(["n1-n3", "n2-n3"].iter().all(|pair| others[*pair]["state"] == "UP"), "n3 says so: {others:?}");
    for n in [1, 2] {
        segment.host(n).run(["nft", "delete", "table", "ip", "away"]);
    }
    wait_until(stale, "they are back", || links(&segment.controller)["n1-n2"]["state"] == "UP");
    // A controller that knows nothing yet says that, and is told.
    segment.controller.kill9();
    segment.controller.restart();
    wait_until(stale, "all is told again", || are_up(&segment.controller, 3));
}

/// What a program tells as metrics on its host.
fn metrics(host: &Host, port: u16, name: &str) -> String {
    let request = format!("GET /metrics HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n");
    host.enter(|| {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    })
}

/// A value of the metrics; `None`: there is none with these labels.
fn value(metrics: &str, metric: &str) -> Option<f64> {
    let line = metrics.lines().find_map(|line| line.strip_prefix(metric)?.strip_prefix(' '));
    line.map(|value| value.parse().unwrap())
}

#[test]
fn metrics_tell_the_same() {
    let lab = Lab::new();
    let (a, b) = (lab.host("a"), lab.host("b"));
    lab.link(&a, "172.100.1.1/24", &b, "172.100.1.2/24");
    let controller = Controller::start(&a, &["--metrics-listen", "127.0.0.1:7480"]);
    let listening = ["--metrics-listen", "127.0.0.1:7481"];
    let _agents = [
        Agent::join(&a, "172.100.1.1:7443", "n1", &listening),
        Agent::join(&b, "172.100.1.1:7443", "n2", &listening),
    ];
    wait_live(&controller, &["n1".to_owned(), "n2".to_owned()]);
    controller.apply_with("mesh: m\noverlay: 10.9.0.0/24\nnodes: {n1: {}, n2: {}}\n", &["--wait"]).unwrap();
    wait_until(SOON, "the link is up", || are_up(&controller, 1));
    let tunnel = "{tunnel=\"m.n2\",device=\"m\"}";
    let of_agent =
        |name: &str| value(&metrics(&a, 7481, "localhost:7481"), &format!("tunmesh_agent_{name}{tunnel}"));
    wait_until(SOON, "this end has heard that it is heard", || of_agent("link_up") == Some(1.0));
    assert!(of_agent("link_round_trip_seconds").unwrap() < 1.0);
    assert!(of_agent("link_last_heard_age_seconds").unwrap() < 1.0);
    assert_eq!(of_agent("tunnel_failed"), Some(0.0));
    let of_controller =
        |name: &str| value(&metrics(&a, 7480, "127.0.0.1"), &format!("tunmesh_controller_{name}"));
    let way = "{mesh=\"m\",from=\"n1\",to=\"n2\"}";
    assert_eq!(of_controller(&format!("link_open{way}")), Some(1.0));
    assert_eq!(of_controller("converged_nodes"), Some(2.0));
    assert_eq!(of_controller("nodes{health=\"live\"}"), Some(2.0));
    wait_until(Duration::from_secs(20), "figures are told with their age", || {
        of_controller(&format!("link_figures_age_seconds{way}")).is_some_and(|age| age < 16.0)
    });
    deafen(&b, "172.100.1.1");
    wait_until(SOON, "the cut is told", || {
        of_controller(&format!("link_open{way}")) == Some(0.0) && of_agent("link_up") == Some(0.0)
    });
    assert_eq!(of_agent("link_round_trip_seconds"), None, "it is that of before");
    wait_until(Duration::from_secs(30), "nothing of before is told as new", || {
        of_controller(&format!("link_figures_age_seconds{way}")).is_some_and(|age| age > 16.0)
    });
    // A page whose name was made to lead here.
    let refused = metrics(&a, 7480, "evil.example");
    assert!(refused.starts_with("HTTP/1.1 403") && !refused.contains("tunmesh_"), "{refused}");
    let shown = controller.run(&["status"]).unwrap();
    assert!(!shown.contains("--metrics-listen"), "loopback weakens nothing: {shown}");
}
