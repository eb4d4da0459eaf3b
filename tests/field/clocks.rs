//! Hosts whose clocks are off, and certificates of which time runs out.

use std::fs;
use std::time::Duration;

use crate::lab::{
    AGENT, Agent, CONTROLLER as PROGRAM, DIALLED, Lab, MESH, Pinger, SOON, Site, faked, grpcurl, ping,
    ping_ok, wait_trouble, wait_until,
};
use serde_json::json;

/// A command of an agent whose wall clock is off by so much, as `+1h`; its other clocks go on as they are.
fn with_clock(off: &str, arguments: &[&str]) -> Vec<String> {
    faked(&format!("FAKETIME={off}"), AGENT, arguments)
}

fn words(command: &[String]) -> Vec<&str> {
    command.iter().map(String::as_str).collect()
}

#[test]
fn case_19_a_clock_that_is_off_changes_no_forwarding_and_is_told() {
    let site = Site::new(4, &[]);
    let token = site.controller.token(&["--uses", "4"]);
    let start = |n: usize, off: &str| {
        let name = format!("web-{n}");
        let command = with_clock(off, &["--controller", DIALLED, "--name", &name, "--token", &token]);
        Agent::start_by(&site.hosts[n - 1], &words(&command))
    };
    let _off = [(1, "+1h"), (2, "+7d"), (3, "-1h")].map(|(n, off)| start(n, off));
    let _right = site.agent(4, "web-4", &["--token", &token]);
    site.wait_live(4);
    site.controller.apply_with(&MESH.replace("web-3: {}", "web-3: {}, web-4: {}"), &["--wait"]).unwrap();
    for to in ["10.9.0.2", "10.9.0.3", "10.9.0.4"] {
        ping_ok(&site.hosts[0], to);
    }
    for (node, words) in [
        ("web-1", "its clock is 1 h 0 min ahead"),
        ("web-2", "its clock is 7 d 0 h ahead"),
        ("web-3", "its clock is 1 h 0 min behind"),
    ] {
        let events = site.controller.events("clock-off", node);
        assert!(events[0]["message"].as_str().unwrap().contains(words), "{events:?}");
        assert!(site.controller.run(&["status"]).unwrap().contains(words));
    }
    assert_eq!(site.controller.events("clock-off", "web-4").len(), 0);
}

#[test]
fn case_19_a_host_that_lives_a_week_ago_says_why_it_does_not_join_and_keeps_what_it_has() {
    let site = Site::new(3, &[]);
    let mut agents = site.joined(2);
    site.controller.apply_with(MESH, &["--wait"]).unwrap();
    ping_ok(&site.hosts[0], "10.9.0.2");
    let token = site.controller.token(&[]);
    let new = with_clock("-7d", &["--controller", DIALLED, "--name", "web-3", "--token", &token]);
    let new = Agent::start_by(&site.hosts[2], &words(&new));
    wait_trouble(&new, "set the clock of this host");
    assert!(!site.is_known("web-3"));
    let is_told = |host: &str| {
        let words = format!("{host}: it does not believe");
        let events = site.controller.events("access-refused", "");
        events.iter().any(|event| event["message"].as_str().unwrap().contains(&words))
    };
    wait_until(SOON, "the controller tells that the new host does not believe it", || is_told("172.100.1.3"));
    drop(new);
    agents[0].terminate();
    let late = with_clock("-7d", &["--controller", DIALLED, "--name", "web-1"]);
    let late = Agent::start_copy_by(&site.hosts[0], &agents[0].state_dir(), &words(&late));
    wait_trouble(&late, "set the clock of this host");
    wait_trouble(&late, "holds only in 5 d 23 h by this host's clock");
    ping_ok(&site.hosts[0], "10.9.0.2");
    // Of many at once it tells one now and then.
    wait_until(Duration::from_secs(40), "it tells of the other one", || is_told("172.100.1.1"));
}

/// A handshake's time must be later than that of the one before (section 5.4.2 of the WireGuard paper).
#[test]
fn case_19_an_agent_whose_clock_was_set_back_has_its_encrypted_tunnels_again_soon() {
    let lab = Lab::new();
    let hosts = [lab.host("a"), lab.host("b")];
    lab.link(&hosts[0], "172.100.1.1/24", &hosts[1], "172.100.1.2/24");
    let mut agents = hosts.each_ref().map(|host| Agent::start(host, &[]));
    for (own, peer) in [(0, 1), (1, 0)] {
        let tunnel = json!({"tunnel": {
            "name": "link", "addresses": [format!("10.9.0.{}/24", own + 1)],
            "remote": format!("172.100.1.{}", peer + 1), "peerPublicKey": agents[peer].public_key(),
        }});
        grpcurl(&agents[own], "tunmesh.v1.TunnelService/AddTunnel", &tunnel).unwrap();
    }
    ping_ok(&hosts[0], "10.9.0.2");
    // So the last handshake is one that it has begun.
    agents[0].kill9();
    agents[0].restart();
    ping_ok(&hosts[0], "10.9.0.2");
    agents[0].kill9();
    let late = Agent::start_copy_by(&hosts[0], &agents[0].state_dir(), &words(&with_clock("-1h", &[])));
    // From there, and to there.
    for (host, to) in [(&hosts[0], "10.9.0.2"), (&hosts[1], "10.9.0.1")] {
        wait_until(2 * SOON, "packets pass", || ping(host, to, &[]));
    }
    // Its own handshakes are all refused: it was the other one that asked.
    let link = grpcurl(&agents[1], "tunmesh.v1.TunnelService/GetTunnel", &json!({"name": "link"})).unwrap();
    assert_eq!(link["status"]["received"]["drops"]["repeated"], "1", "{link}");
    drop(late);
}

/// All clocks go on by weeks while the controller is away.
#[test]
fn case_19_agents_keep_their_mesh_for_29_days_without_a_controller_and_renew_at_its_end() {
    let directory = tempfile::tempdir().unwrap();
    let clock = directory.path().join("clock");
    let set = |days: u32| fs::write(&clock, format!("+{days}d\n")).unwrap();
    set(0);
    let setting = format!("FAKETIME_TIMESTAMP_FILE={}", clock.display());
    let mut site = Site::start_by(2, &words(&faked(&setting, PROGRAM, &["serve"])));
    let token = site.controller.token(&["--uses", "2"]);
    let mut agents = [1, 2].map(|n| {
        let joining = ["--controller", DIALLED, "--name", &format!("web-{n}"), "--token", &token];
        Agent::start_by(&site.hosts[n - 1], &words(&faked(&setting, AGENT, &joining)))
    });
    site.wait_live(2);
    site.controller.apply_with(MESH, &["--wait"]).unwrap();
    ping_ok(&site.hosts[0], "10.9.0.2");
    let identity = |agent: &Agent| fs::read_to_string(agent.state_dir().join("identity.pem")).unwrap();
    // When three fifths of its time are over an agent has renewed its certificate though it still holds.
    let first = identity(&agents[0]);
    set(5);
    agents[0].restart();
    wait_until(SOON, "it has renewed", || identity(&agents[0]) != first);
    site.wait_live(2);
    let before = agents.each_ref().map(identity);
    ping_ok(&site.hosts[0], "10.9.0.2");
    let pinger = Pinger::start(&site.hosts[0], "10.9.0.2", Duration::from_millis(50));
    site.controller.terminate();
    set(5 + 29);
    wait_trouble(&agents[0], "refused");
    site.controller.restart();
    site.wait_live(2);
    pinger.lost_nothing("while weeks went by");
    let after = agents.each_ref().map(identity);
    assert!(before.iter().zip(&after).all(|(before, after)| before != after), "they have renewed");

    // After too long a time nobody knows the key any more; what there is stays.
    site.controller.terminate();
    set(5 + 29 + 7 + 31);
    site.controller.restart();
    wait_trouble(&agents[0], "30 days");
    ping_ok(&site.hosts[0], "10.9.0.2");
    let events = site.controller.events("access-refused", "web-1");
    assert!(!events.is_empty());
}
