//! An agent that is killed while meshes are applied.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a fault ends the test")]
#![allow(clippy::disallowed_methods, reason = "a process is killed at real moments")]

mod lab;

use std::fs;
use std::thread;
use std::time::Duration;

use lab::{Agent, Controller, SOON, Segment, actual, grpcurl, holds_within, legacy_add, wait_until};
use serde_json::{Value, json};

/// How often it is killed.
const ROUNDS: u64 = 30;
/// From before the call of `apply` to after its effects.
const MOMENTS: Duration = Duration::from_millis(150);
/// When it has again what is wanted, once it runs.
const RECOVERED: Duration = Duration::from_secs(10);

/// Two meshes that differ in all that an agent makes: device, addresses, peers and routes. Only n1 has an agent.
fn meshes() -> [String; 2] {
    let node = |n: usize, more: &str| format!("  n{n}: {{endpoint: 172.100.1.{n}, {more}}}\n");
    let one =
        ["address: 10.9.0.1", "routes: [192.168.2.0/24]", "routes: [192.168.3.0/24]", "address: 10.9.0.4"];
    let two = ["address: 10.9.0.9", "routes: [192.168.3.0/24]", "address: 10.9.0.1"];
    let nodes =
        |settings: &[&str]| -> String { (1..).zip(settings).map(|(n, more)| node(n, more)).collect() };
    let file = |settings: &str, nodes: &str| {
        format!(
            "mesh: prod\noverlay: [10.9.0.0/24, 'fd00:9::/64']\nsecurity: plain\n{settings}\nnodes:\n{nodes}"
        )
    };
    [
        file("", &nodes(&one)),
        file("device: other0\nmtu: 1300", &(nodes(&two) + &node(7, "routes: [192.168.4.0/24]"))),
    ]
}

/// What a host has of everything that an agent could leave behind: its devices and routes, and the policy rules.
fn kernel(agent: &Agent) -> Value {
    json!([actual(agent.host()), agent.host().ip_json(["rule"]), agent.host().ip_json(["-6", "rule"])])
}

/// The generation that is on disk.
fn kept(agent: &Agent) -> (u64, u64) {
    let file = fs::read_to_string(agent.state_dir().join("state")).unwrap();
    let (_, body) = file.split_once('\n').unwrap();
    let body: Value = serde_json::from_str(body).unwrap();
    let generation = &body["controller"]["generation"];
    (generation["incarnation"].as_u64().unwrap(), generation["revision"].as_u64().unwrap())
}

/// The generation that the controller has an acknowledgement of.
fn acknowledged(controller: &Controller) -> Option<(u64, u64)> {
    let node = controller.node("n1");
    let number = |value: &Value| value.as_str().and_then(|text| text.parse().ok());
    Some((number(&node["observed"]["incarnation"])?, number(&node["observed"]["revision"])?))
}

fn in_step(controller: &Controller) -> bool {
    let node = controller.node("n1");
    node["health"] == "LIVE" && node["converged"] == true
}

#[test]
fn killed_at_any_moment_it_comes_to_what_is_wanted() {
    let segment = Segment::new(1);
    let controller = &segment.controller;
    let mut agents = segment.agents(1);
    let agent = &mut agents[0];
    legacy_add(segment.host(1), "udp9", "10.0.9.1", "172.100.1.99", 1400);
    let local = json!({"tunnel": {"name": "local8", "device": "local0", "addresses": ["10.0.8.1/24"],
                                  "remote": "172.100.1.98", "framing": "RAW", "routes": ["192.168.8.0/24"]}});
    grpcurl(agent, "tunmesh.v1.TunnelService/AddTunnel", &local).unwrap();
    let meshes = meshes();
    let mut wanted = Vec::new();
    for (mesh, device) in meshes.iter().zip(["prod", "other0"]) {
        controller.apply_with(mesh, &["--allow-removals"]).unwrap();
        wait_until(SOON, "it has the mesh", || {
            segment.host(1).try_run(["ip", "link", "show", device]).is_ok() && in_step(controller)
        });
        wanted.push((kernel(agent), agent.tunnel_names()));
    }
    assert_ne!(wanted[0].0, wanted[1].0);
    let foreign = segment.host(1).ip_json(["route", "show", "dev", "to-router"]);

    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    for round in 0..ROUNDS {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        let moment = MOMENTS.mul_f64((seed >> 11) as f64 / (1_u64 << 53) as f64);
        let version = usize::try_from(round % 2).unwrap();
        let mut known = None;
        thread::scope(|scope| {
            let applied = scope.spawn(|| controller.apply_with(&meshes[version], &["--allow-removals"]));
            thread::sleep(moment);
            known = known.max(acknowledged(controller));
            agent.kill9();
            applied.join().unwrap().unwrap();
        });
        let kept = kept(agent);
        assert!(
            known.is_none_or(|known| kept >= known),
            "round {round}: {known:?} is lost, there is {kept:?}"
        );
        agent.restart();
        let is_wanted = |agent: &Agent| (kernel(agent), agent.tunnel_names()) == wanted[version];
        let recovered = holds_within(RECOVERED, || in_step(controller) && is_wanted(agent));
        assert!(
            recovered,
            "round {round}, killed after {moment:?}: there is {}, and wanted {}",
            kernel(agent),
            wanted[version].0
        );
        // What is on disk is that as well: no controller is needed to come back to it.
        agent.kill9();
        agent.restart();
        assert!(holds_within(RECOVERED, || is_wanted(agent)), "round {round}: {}", kernel(agent));
    }
    assert_eq!(segment.host(1).ip_json(["route", "show", "dev", "to-router"]), foreign);
    agents[0].terminate();
    assert_eq!(actual(segment.host(1)), json!([[], []]), "something is left behind");
}
