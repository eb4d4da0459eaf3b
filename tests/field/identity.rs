//! Two that say they are one, and two that have one address.

#![allow(clippy::disallowed_methods, reason = "takeovers are timed")]

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tonic::Code;

use crate::lab::{
    Agent, Capture, DIALLED, Early, Pinger, SOON, Segment, Site, actual, ping, ping_ok, trouble,
    wait_trouble, wait_until,
};

/// When another agent of the name has the place of one that is dead: it dials at most 6 s after it was refused, and
/// the dead one has 2 s to show that it is not.
const TAKEOVER: Duration = Duration::from_secs(8);
/// Between the requests of a ping.
const INTERVAL: Duration = Duration::from_millis(50);
/// Pings that a copy may cost before it is refused: two seconds' at [`INTERVAL`].
const START: u64 = 40;
/// Attempts of an agent that is refused again and again.
const ATTEMPTS: usize = 3;

/// A mesh of these nodes.
fn mesh(nodes: &[&str]) -> String {
    format!("mesh: prod\noverlay: 10.9.0.0/24\nsecurity: plain\nnodes:\n  {}\n", nodes.join("\n  "))
}

/// Pings that must not lose anything, both ways between the hosts `a` and `b`, which have the addresses 10.9.0.N.
fn traffic(segment: &Segment, a: usize, b: usize) -> Vec<(String, Pinger)> {
    let start = |(from, to): (usize, usize)| {
        let address = format!("10.9.0.{to}");
        ping_ok(segment.host(from), &address);
        (format!("{from} to {to}"), Pinger::start(segment.host(from), &address, INTERVAL))
    };
    [(a, b), (b, a)].map(start).into()
}

fn lost_nothing(traffic: Vec<(String, Pinger)>) {
    traffic.into_iter().for_each(|(what, pinger)| pinger.lost_nothing(&what));
}

#[test]
fn case_06_an_address_is_given_to_one_node_alone() {
    let segment = Segment::new(3);
    let _agents = segment.agents(3);
    let controller = &segment.controller;
    let twice = mesh(&["n1: {address: 10.9.0.1}", "n2: {address: 10.9.0.2}", "n3: {address: 10.9.0.2}"]);
    let refused = controller.apply(&twice).unwrap_err();
    for words in ["10.9.0.2", "n2", "n3"] {
        assert!(refused.stderr.contains(words), "{words}: {refused}");
    }
    controller.apply_with(&mesh(&["n1:", "n2:", "n3:"]), &["--wait"]).unwrap();
    let address = |n: usize| {
        let device = segment.host(n).ip_json(["-4", "address", "show", "dev", "prod"]);
        device[0]["addr_info"][0]["local"].as_str().unwrap().to_owned()
    };
    let mut given = [1, 2, 3].map(address);
    given.sort();
    assert!(given.windows(2).all(|two| two[0] != two[1]), "{given:?}");
}

#[test]
fn case_06_a_node_that_returns_does_not_get_back_an_address_that_another_has() {
    let segment = Segment::new(3);
    let mut agents = segment.agents(3);
    let controller = &segment.controller;
    let fixed = "n1: {address: 10.9.0.1}";
    controller.apply_with(&mesh(&[fixed, "n2:", "n3:"]), &["--wait"]).unwrap();
    assert!(actual(segment.host(2)).to_string().contains("10.9.0.2/24"), "{}", actual(segment.host(2)));
    ping_ok(segment.host(1), "10.9.0.2");

    // Its address goes to another while it is dead.
    agents[1].kill9();
    controller.apply(&mesh(&[fixed, "n2:", "n3: {address: 10.9.0.2}"])).unwrap();
    wait_until(SOON, "the other has it", || actual(segment.host(3)).to_string().contains("10.9.0.2/24"));
    ping_ok(segment.host(1), "10.9.0.2");
    let pinger = Pinger::start(segment.host(1), "10.9.0.2", INTERVAL);
    // It comes back with what it had, and is told.
    agents[1].restart();
    wait_until(SOON, "it has another", || {
        let actual = actual(segment.host(2)).to_string();
        !actual.contains("10.9.0.2/24") && actual.contains("10.9.0.")
    });
    segment.wait_live(3);
    pinger.lost_nothing("to who has the address now");
    let own = segment.host(2).ip_json(["-4", "address", "show", "dev", "prod"])[0]["addr_info"].clone();
    assert_eq!(own.as_array().unwrap().len(), 1, "{own}");
    ping_ok(segment.host(1), own[0]["local"].as_str().unwrap());
    ping_ok(segment.host(2), "10.9.0.2");
}

/// Whoever was away has an older epoch: what it says when it is back counts no more.
#[test]
fn case_06_a_node_that_was_stopped_is_fenced_when_it_goes_on() {
    let segment = Segment::new(3);
    let agents = segment.agents(2);
    let controller = &segment.controller;
    let file = mesh(&["n1: {address: 10.9.0.1}", "n2: {address: 10.9.0.2}"]);
    controller.apply_with(&file, &["--wait"]).unwrap();
    ping_ok(segment.host(1), "10.9.0.2");
    agents[1].signal(Signal::SIGSTOP);
    let successor = Agent::join_verbose(segment.host(3), Segment::CONTROLLER, "n2");
    wait_until(TAKEOVER, "another has its place", || agents[0].endpoint_of("prod.n2") == "172.100.1.3:5000");
    ping_ok(segment.host(1), "10.9.0.2");
    let flow = Pinger::start(segment.host(1), "10.9.0.2", INTERVAL);
    agents[1].signal(Signal::SIGCONT);
    wait_until(3 * SOON, "it is told that it is the second one", || {
        trouble(&agents[1]).contains("another agent with this name is connected and alive")
    });
    assert_eq!(agents[0].endpoint_of("prod.n2"), "172.100.1.3:5000");
    assert_eq!(successor.session()["state"], "SYNCED");
    assert_eq!(controller.node("n2")["health"], "LIVE");
    flow.lost_nothing("to who has its place");
}

/// Waits until an agent has been refused again and again because of its name, and was told what to do.
fn is_refused_as_a_second_one(agent: &Agent) {
    let attempts = || agent.log().matches("state=Dialling").count();
    let before = attempts();
    wait_until(3 * SOON, "it has come again and again", || attempts() >= before + ATTEMPTS);
    let words =
        "another agent with this name is connected and alive: give each host a name of its own with --name";
    wait_until(SOON, "its status says what to do", || trouble(agent).contains(words));
    assert!(agent.show("status").contains(words) && agent.log().contains(words), "{}", agent.log());
}

#[test]
fn case_07_a_copy_of_an_agent_waits_until_the_first_is_dead() {
    let segment = Segment::new(4);
    let controller = &segment.controller;
    let first = Agent::join_verbose(segment.host(1), Segment::CONTROLLER, "n1");
    let mut second = Agent::join_verbose(segment.host(2), Segment::CONTROLLER, "n2");
    segment.wait_live(2);
    let file = mesh(&["n1: {address: 10.9.0.1}", "n2: {address: 10.9.0.2}"]);
    controller.apply_with(&file, &["--wait"]).unwrap();
    let flow = traffic(&segment, 1, 2);

    // One with the first's state, and one that has but its name.
    let mut copy = second.copy_to(segment.host(3));
    let namesake = Agent::join_verbose(segment.host(4), Segment::CONTROLLER, "n2");
    is_refused_as_a_second_one(&copy);
    is_refused_as_a_second_one(&namesake);
    assert_eq!((copy.tunnel_names(), namesake.tunnel_names()), (vec!["prod.n1".to_owned()], Vec::new()));
    assert!(!ping(segment.host(3), "10.9.0.1", &[]), "the copy has taken the place of the first");
    assert_eq!(first.endpoint_of("prod.n2"), "172.100.1.2:5000");
    // As gRPC says it.
    let other = Early::dial(segment.host(3), Segment::CONTROLLER.parse().unwrap(), "n2", 1);
    let refusal = other.refusal();
    assert_eq!(refusal.code(), Code::AlreadyExists, "{refusal:?}");
    assert_eq!(controller.node("n2")["health"], "LIVE");
    assert_eq!(controller.events("node-restarted", "n2").len(), 0, "the first lost its session");
    // Each is told of once, however often it comes.
    let mut told: Vec<_> = controller
        .events("identity-cloned", "")
        .iter()
        .map(|event| {
            assert_eq!(event["node"], "n2", "{event}");
            event["message"].as_str().unwrap().to_owned()
        })
        .collect();
    told.sort();
    assert_eq!(told.len(), 2, "{told:?}");
    for (told, source) in told.iter().zip(["172.100.1.3", "172.100.1.4"]) {
        assert!(told.contains(source) && told.contains("--name"), "{told}");
        let problems = controller.json(&["status"])["problems"].clone();
        let is_told = |problem: &Value| problem["node"] == "n2" && problem.to_string().contains(source);
        assert!(problems.as_array().unwrap().iter().any(is_told), "{problems}");
    }
    lost_nothing(flow);

    // Its tunnels are as they were while nobody is n2, and then it is.
    drop(namesake);
    second.kill9();
    let dead = Instant::now();
    wait_until(TAKEOVER, "the copy has its place", || first.endpoint_of("prod.n2") == "172.100.1.3:5000");
    assert!(dead.elapsed() < TAKEOVER, "{:?}", dead.elapsed());
    ping_ok(segment.host(1), "10.9.0.2");
    assert_eq!(controller.events("node-restarted", "n2").len(), 1);
    // Whoever comes later is the second one, also if it was the first.
    second.restart();
    let flow = [(1, 2), (3, 1)].map(|(from, to)| {
        let address = format!("10.9.0.{to}");
        (format!("{from} to {to}"), Pinger::start(segment.host(from), &address, INTERVAL))
    });
    is_refused_as_a_second_one(&second);
    assert_eq!(first.endpoint_of("prod.n2"), "172.100.1.3:5000");
    lost_nothing(flow.into());
    copy.kill9();
    wait_until(TAKEOVER, "the first has its place back", || {
        first.endpoint_of("prod.n2") == "172.100.1.2:5000"
    });
    ping_ok(segment.host(1), "10.9.0.2");
}

/// It has the keys of the first: whatever it sent, the peers would take it for the first at another place.
#[test]
fn case_07_a_copy_in_an_encrypted_mesh_sends_nothing_until_the_first_is_dead() {
    let site = Site::new(3, &[]);
    let controller = &site.controller;
    let token = controller.token(&["--name", "web-*", "--uses", "2"]);
    let first = site.agent_verbose(1, "web-1", &["--token", &token]);
    let mut second = site.agent_verbose(2, "web-2", &["--token", &token]);
    site.wait_live(2);
    let nodes = "nodes:\n  web-1: {address: 10.9.0.1}\n  web-2: {address: 10.9.0.2}\n";
    controller.apply_with(&format!("mesh: prod\noverlay: 10.9.0.0/24\n{nodes}"), &["--wait"]).unwrap();
    let hosts = &site.hosts;
    let endpoint = || first.endpoint_of("prod.web-2");
    ping_ok(&hosts[0], "10.9.0.2");
    let outage = Pinger::start(&hosts[0], "10.9.0.2", INTERVAL);
    let mut copy = second.copy_to(&hosts[2]);
    is_refused_as_a_second_one(&copy);
    let words = "another agent of this name is connected to the controller and alive; the tunnel rests";
    wait_until(SOON, "its tunnel says that it rests", || copy.show("tunnels").contains(words));
    // Until it was told it may have been heard.
    wait_until(SOON, "the peer sends to the first", || endpoint() == "172.100.1.2:5000");
    ping_ok(&hosts[0], "10.9.0.2");
    let report = outage.stop();
    assert!(report.received + START >= report.sent, "beside a copy that starts: {report:?}");

    let flow = [(0, "10.9.0.2"), (1, "10.9.0.1")].map(|(from, to)| {
        ping_ok(&hosts[from], to);
        (format!("to {to}"), Pinger::start(&hosts[from], to, INTERVAL))
    });
    let capture = Capture::start(&hosts[2], "udp port 5000");
    is_refused_as_a_second_one(&copy);
    assert!(!ping(&hosts[2], "10.9.0.1", &[]), "the copy has taken the place of the first");
    assert!(actual(&hosts[2]).to_string().contains("10.9.0.2/24"), "its device is gone");
    let captured = capture.stop();
    assert!(captured.is_empty(), "{} packets from the copy, or to it", captured.count());
    assert_eq!(endpoint(), "172.100.1.2:5000");
    lost_nothing(flow.into());

    second.kill9();
    wait_until(TAKEOVER, "the copy has its place", || endpoint() == "172.100.1.3:5000");
    ping_ok(&hosts[2], "10.9.0.1");
    second.restart();
    is_refused_as_a_second_one(&second);
    copy.kill9();
    wait_until(TAKEOVER, "the first has its place back", || endpoint() == "172.100.1.2:5000");
    ping_ok(&hosts[0], "10.9.0.2");
}

/// A machine that was cloned, with the certificate by which the controller knows the first.
#[test]
fn case_07_a_copy_with_the_certificate_of_the_first_waits_as_well() {
    let site = Site::new(3, &[]);
    let agents = site.joined(2);
    site.controller
        .apply_with(
            "mesh: prod\noverlay: 10.9.0.0/24\nsecurity: plain\nnodes: {web-1: , web-2: }\n",
            &["--wait"],
        )
        .unwrap();
    ping_ok(&site.hosts[0], "10.9.0.2");
    let endpoint = || agents[0].tunnels()[0]["endpoint"].as_str().unwrap_or_default().to_owned();
    let pinger = Pinger::start(&site.hosts[0], "10.9.0.2", INTERVAL);
    let mut copy = agents[1].copy_to(&site.hosts[2]);
    wait_trouble(&copy, "another agent with this name is connected and alive");
    assert_eq!(
        (endpoint(), &site.controller.node("web-2")["health"]),
        ("172.100.1.2:5000".to_owned(), &json!("LIVE"))
    );
    let told = site.controller.events("identity-cloned", "web-2");
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0]["message"].as_str().unwrap().contains("172.100.1.3"), "{told:?}");
    // Under another name it is the same copy.
    let state = copy.state_dir();
    copy.terminate();
    let renamed = Agent::start_copy(&site.hosts[2], &state, &["--controller", DIALLED, "--name", "web-9"]);
    wait_trouble(
        &renamed,
        "certificate is that of web-2, whose agent is connected and alive: this host is a copy",
    );
    let problems = site.controller.json(&["status"])["problems"].to_string();
    assert!(problems.contains("an agent at 172.100.1.3 has its name as well"), "{problems}");
    pinger.lost_nothing("beside a copy of its peer");
}
