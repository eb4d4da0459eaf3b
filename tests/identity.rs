//! Which store an agent follows: copies of a store, and foreign ones, under traffic.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a fault ends the test")]

mod lab;

use std::fmt::Write;
use std::fs;
use std::time::Duration;

use lab::{
    Agent, Controller, Early, Pinger, SOON, Segment, copy_files, node_name, ping_ok, wait_live, wait_until,
};

/// Between the requests of a ping.
const INTERVAL: Duration = Duration::from_millis(50);

/// A mesh of these hosts, which have the addresses 10.9.0.N.
fn mesh(nodes: impl IntoIterator<Item = usize>) -> String {
    let mut file = "mesh: prod\noverlay: 10.9.0.0/24\nsecurity: plain\nnodes:\n".to_owned();
    nodes.into_iter().for_each(|n| writeln!(file, "  n{n}: {{address: 10.9.0.{n}}}").unwrap());
    file
}

fn overlay(n: usize) -> String {
    format!("10.9.0.{n}")
}

/// Pings that must not lose anything, both ways between each of `pairs`.
fn traffic(segment: &Segment, pairs: &[(usize, usize)]) -> Vec<(String, Pinger)> {
    let both = pairs.iter().flat_map(|(a, b)| [(*a, *b), (*b, *a)]);
    both.map(|(from, to)| {
        ping_ok(segment.host(from), &overlay(to));
        (format!("{from} to {to}"), Pinger::start(segment.host(from), &overlay(to), INTERVAL))
    })
    .collect()
}

fn lost_nothing(traffic: Vec<(String, Pinger)>) {
    traffic.into_iter().for_each(|(what, pinger)| pinger.lost_nothing(&what));
}

fn trouble(agent: &Agent) -> String {
    agent.session()["trouble"].as_str().unwrap_or_default().to_owned()
}

fn problem_of(controller: &Controller, node: &str, words: &str) -> bool {
    let status = controller.json(&["status"]);
    status["problems"].as_array().into_iter().flatten().any(|problem| {
        problem["node"] == node && problem["message"].as_str().is_some_and(|message| message.contains(words))
    })
}

#[test]
fn an_older_copy_of_the_store_takes_nothing_away_unseen() {
    let mut segment = Segment::new(7);
    let agents = segment.agents(7);
    let all = || agents.iter().map(Agent::tunnel_names).collect::<Vec<_>>();
    let generations = || -> Vec<String> {
        agents.iter().map(|agent| agent.session()["generation"].as_str().unwrap().to_owned()).collect()
    };
    segment.controller.apply_with(&mesh(1..=3), &["--wait"]).unwrap();
    // As a disk has it when its host loses power: what is not in the database yet is in the log beside it.
    segment.controller.kill9();
    let state = segment.controller.state_dir();
    let older = state.with_file_name("older");
    copy_files(&state, &older);
    assert!(older.join("store.db-wal").exists(), "the copy is not of a running store");
    segment.controller.restart();
    segment.wait_live(7);
    for count in 4..=7 {
        segment.controller.apply_with(&mesh(1..=count), &["--wait"]).unwrap();
    }
    let before = all();
    assert!(before.iter().all(|names| names.len() == 6), "{before:?}");
    let newest: u64 = generations()[0].strip_prefix("1.").expect("the first incarnation").parse().unwrap();
    let flow = traffic(&segment, &[(1, 2), (1, 7), (6, 7)]);

    assert!(segment.controller.terminate().success());
    copy_files(&older, &state);
    segment.controller.restart();
    segment.wait_live(7);
    let controller = &segment.controller;
    wait_until(2 * SOON, "all agents have what the older store wants", || {
        (1..=7).all(|n| controller.node(&node_name(n))["converged"] == true)
    });
    let events = controller.events("store-restored", "");
    assert_eq!(events.len(), 1, "{events:?}");
    let message = events[0]["message"].as_str().unwrap();
    assert!(message.contains(&format!("it has generation 1.{newest}")), "{message}");
    let after = generations();
    assert!(after.iter().all(|generation| generation.starts_with("2.")), "{after:?}");
    // Of what it does not want nothing has gone, and everybody hears of it.
    assert_eq!(all(), before);
    for (n, agent) in (1..).zip(&agents) {
        let node = node_name(n);
        let events = controller.events("removals-held", &node);
        assert_eq!(events.len(), 1, "{node}: {events:?}");
        assert!(problem_of(controller, &node, "apply a mesh with --allow-removals"), "{node}");
        assert!(agent.show("status").contains("--allow-removals"), "{}", agent.show("status"));
    }

    // What was wanted is wanted again: it was never gone.
    controller.apply_with(&mesh(1..=7), &["--wait"]).unwrap();
    assert_eq!(all(), before);
    let status = controller.json(&["status"]);
    assert!(status["problems"].is_null(), "{status}");
    lost_nothing(flow);

    // It is the store now: what it comes to want is done, with the consent of somebody.
    let flow = traffic(&segment, &[(1, 2)]);
    controller.apply_with(&mesh(1..=3), &["--allow-removals", "--wait"]).unwrap();
    wait_until(SOON, "the others have none", || all()[3..].iter().all(Vec::is_empty));
    assert_eq!(all()[0], ["prod.n2", "prod.n3"]);
    lost_nothing(flow);
}

#[test]
fn an_older_copy_that_has_caught_up_is_noticed() {
    let mut segment = Segment::new(3);
    let agents = segment.agents(3);
    segment.controller.apply_with(&mesh(1..=2), &["--wait"]).unwrap();
    segment.controller.kill9();
    let state = segment.controller.state_dir();
    let older = state.with_file_name("older");
    copy_files(&state, &older);
    segment.controller.restart();
    segment.wait_live(3);
    segment.controller.apply_with(&mesh(1..=3), &["--wait"]).unwrap();

    assert!(segment.controller.terminate().success());
    copy_files(&older, &state);
    // Each start is a change: the copy passes the numbers that the agents know.
    for _ in 0..4 {
        segment.controller.restart();
        segment.controller.kill9();
    }
    segment.controller.restart();
    segment.wait_live(3);
    wait_until(2 * SOON, "what the agents have is another incarnation", || {
        agents.iter().all(|agent| agent.session()["generation"].as_str().unwrap().starts_with("2."))
    });
}

#[test]
fn a_foreign_store_changes_nothing_and_is_followed_by_those_that_leave() {
    let mut segment = Segment::new(3);
    let mut agents = segment.agents(3);
    segment.controller.apply_with(&mesh(1..=3), &["--wait"]).unwrap();
    let flow = traffic(&segment, &[(1, 2)]);
    let before: Vec<_> = agents.iter().map(Agent::tunnel_names).collect();

    assert!(segment.controller.terminate().success());
    let state = segment.controller.state_dir();
    let own = state.with_file_name("own");
    copy_files(&state, &own);
    fs::remove_dir_all(&state).unwrap();
    segment.controller.restart();
    let controller = &segment.controller;
    for (n, agent) in (1..).zip(&agents) {
        let words = "to change to this one run `agent leave`";
        wait_until(SOON, "its status says what to do", || trouble(agent).contains(words));
        let node = node_name(n);
        wait_until(SOON, "the controller has heard why", || {
            problem_of(controller, &node, "its agent refuses this controller: the controller has the store")
        });
        assert_eq!(controller.events("session-refused", &node).len(), 1);
        // It is not there for this controller, whatever it said.
        assert_eq!(controller.node(&node)["health"], "OFFLINE", "{node}");
    }
    // Not even with a mesh in which they are.
    let other = mesh(1..=2).replace("10.9.", "10.8.").replace("prod", "other");
    assert!(controller.apply_with(&other, &["--wait", "1s"]).unwrap_err().stderr.contains("agent leave"));
    assert_eq!(agents.iter().map(Agent::tunnel_names).collect::<Vec<_>>(), before);
    lost_nothing(flow);

    agents[2].show("leave");
    assert_eq!(agents[2].tunnel_names(), Vec::<String>::new());
    agents[2].restart();
    wait_live(controller, &[node_name(3)]);
    assert!(!problem_of(controller, "n3", "refuses"));

    // The own store is put back, and those that stayed are as they were.
    assert!(segment.controller.terminate().success());
    copy_files(&own, &state);
    segment.controller.restart();
    agents[..2].iter_mut().for_each(|agent| agent.restart());
    segment.wait_live(2);
    let flow = traffic(&segment, &[(1, 2)]);
    wait_until(SOON, "they are in step", || {
        agents[..2].iter().all(|agent| agent.session()["state"] == "SYNCED")
    });
    assert_eq!(agents[..2].iter().map(Agent::tunnel_names).collect::<Vec<_>>(), before[..2]);
    assert!(segment.controller.events("store-restored", "").is_empty());
    lost_nothing(flow);
}

/// What later releases have added to the protocol can be left out, and what a controller does not speak is not spoken.
#[test]
fn an_agent_of_another_release_is_one_of_the_mesh() {
    let segment = Segment::new(2);
    let first = segment.agents(1);
    // With its endpoint in the file it has its place before it dials.
    let file = mesh(1..=2).replace("10.9.0.2}", "10.9.0.2, endpoint: 172.100.1.2}");
    segment.controller.apply(&file).unwrap();
    let address = Segment::CONTROLLER.parse().unwrap();
    for version in [1, 9] {
        let other = Early::dial(segment.host(2), address, "n2", version);
        let heard = other.heard();
        assert_eq!(heard.welcome.protocol_version, 1);
        // The device, and the tunnel to the first.
        assert_eq!(heard.items.len(), 2);
        // It has acknowledged what is wanted, and what changes.
        let changed = file.replace("nodes:", &format!("mtu: {}\nnodes:", 1400 + version));
        segment.controller.apply_with(&changed, &["--wait"]).unwrap();
        assert_eq!(segment.controller.node("n2")["health"], "LIVE");
        assert_eq!(first[0].endpoint_of("prod.n2"), "172.100.1.2:5000");
    }
}
