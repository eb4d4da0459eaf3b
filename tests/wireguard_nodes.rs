//! Nodes without an agent: what wg-quick makes of what is exported for them, and what their peers make of them.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a fault ends the test")]

mod lab;

use std::time::Duration;

use lab::{
    Agent, SOON, Segment, WgQuick, all_reach, ping, ping_ok, secrets, transfer, tunnel_status, wait_until,
};
use tunmesh::proto::host::wireguard::PrivateKey;

const BULK: u64 = 20_000_000;

/// A mesh of two hosts with agents, and of a phone that has none.
fn file(phone: &str) -> String {
    format!(
        "mesh: prod\noverlay: 10.9.0.0/24\nnodes:\n  n1: {{address: 10.9.0.1}}\n  n2: {{address: 10.9.0.2}}\n  \
         phone: {{kind: wireguard, address: 10.9.0.9, {phone}}}\n"
    )
}

/// What is exported for the phone, with a key that is made for it.
fn export_with_key(segment: &Segment) -> String {
    let exported = segment.controller.run(&["export", "wireguard", "phone", "--generate-key"]).unwrap();
    let key = exported.lines().find_map(|line| line.strip_prefix("PrivateKey = "));
    secrets::learn_wireguard_text(key.expect("its private key"));
    exported
}

fn has_phone(agent: &Agent) -> bool {
    agent.tunnel_names().contains(&"prod.phone".to_owned())
}

#[test]
fn a_phone_is_a_node_by_what_is_exported_for_it() {
    let segment = Segment::new(3);
    let agents = segment.agents(2);
    let phone = segment.host(3);
    let told = segment.controller.apply_with(&file("peers: [n1, n2]"), &["--wait"]).unwrap();
    assert!(told.contains("`controller export wireguard phone --generate-key` makes one"), "{told}");
    let refused = segment.controller.run(&["export", "wireguard", "phone"]).unwrap_err();
    assert!(refused.stderr.contains("phone has no key; have one made with --generate-key"), "{refused}");
    let exported = export_with_key(&segment);
    let device = WgQuick::up(phone, &exported, None);
    for peer in ["10.9.0.1", "10.9.0.2"] {
        // It is not known to them before, and its first packet begins a handshake.
        wait_until(SOON, "the phone reaches its peers", || ping(phone, peer, &[]));
        ping_ok(phone, peer);
    }
    for (n, own) in [(1, "10.9.0.1"), (2, "10.9.0.2")] {
        ping_ok(segment.host(n), "10.9.0.9");
        transfer(phone, segment.host(n), own, BULK);
        transfer(segment.host(n), phone, "10.9.0.9", BULK);
    }
    // Nothing is wrong with who has no agent to be heard of.
    assert_eq!(segment.controller.problems(""), [""; 0]);
    assert_eq!(segment.controller.node("phone")["health"], "NO_AGENT");
    let nodes = segment.controller.run(&["nodes"]).unwrap();
    assert!(
        nodes.lines().any(|line| line.trim_start().starts_with("phone") && line.contains("no agent")),
        "{nodes}"
    );

    // It sends no probes, and answers an ICMP echo: the controller knows of its links.
    let link = |state: &str| {
        let links = segment.controller.json(&["links"])["links"].as_array().cloned().unwrap_or_default();
        links
            .into_iter()
            .find(|link| link["peer"] == "phone" && link["node"] == "n1" && link["state"] == state)
    };
    wait_until(SOON, "its link is up", || link("UP").is_some());
    wait_until(Duration::from_secs(20), "how long an answer takes is told", || {
        link("UP").is_some_and(|link| !link["roundTrip"].is_null())
    });

    // It is printed again without its key, which nobody else has.
    let again = segment.controller.run(&["export", "wireguard", "phone"]).unwrap();
    let public = |text: &str| text.lines().skip(3).map(str::to_owned).collect::<Vec<_>>();
    assert!(again.contains("PostUp = wg set %i private-key") && !again.contains("PrivateKey"));
    assert_eq!(public(&again)[1..], public(&exported), "beside two lines for one");
    for entry in std::fs::read_dir(segment.controller.state_dir()).unwrap().flatten() {
        let content = std::fs::read(entry.path()).unwrap_or_default();
        secrets::look(&String::from_utf8_lossy(&content), "the controller's state directory");
    }

    // It goes on when it comes back, and ends with another key.
    device.restart();
    wait_until(SOON, "it is back", || ping(phone, "10.9.0.1", &[]));
    let exported = export_with_key(&segment);
    wait_until(SOON, "the old key is refused", || !ping(phone, "10.9.0.1", &[]));
    drop(device);
    let device = WgQuick::up(phone, &exported, None);
    wait_until(SOON, "it is back with the new key", || ping(phone, "10.9.0.1", &[]));

    // Whoever cannot write down what is made loses nothing by it.
    let full = segment.controller.run(&["export", "wireguard", "phone", "--generate-key", "--mesh", "other"]);
    assert!(full.unwrap_err().stderr.contains("is of kind wireguard in no mesh, or not in the one"));
    ping_ok(phone, "10.9.0.1");

    // Whom it does not name has nothing to do with it.
    segment.controller.apply_with(&file("peers: n1"), &["--wait"]).unwrap();
    assert!(has_phone(&agents[0]) && !has_phone(&agents[1]));
    assert!(!ping(phone, "10.9.0.2", &[]));
    ping_ok(phone, "10.9.0.1");
    wait_until(SOON, "it answers with its new key", || {
        !tunnel_status(&agents[0], "prod.phone")["link"]["lastHeard"].is_null()
    });
    drop(device);
    wait_until(Duration::from_secs(20), "it is known to be gone", || link("DOWN").is_some());
    let gone = link("DOWN").unwrap();
    assert_eq!(gone["reason"], "nothing comes from phone, and phone runs no agent that could say", "{gone}");
}

#[test]
fn a_router_with_a_key_of_its_own_is_dialled_and_has_a_network_behind_it() {
    let segment = Segment::new(3);
    let _agents = [segment.agent(1, &[]), segment.agent(2, &["--endpoint", "none"])];
    segment.wait_live(2);
    let router = segment.host(3);
    let key = PrivateKey::generate().unwrap();
    let given = format!(
        "endpoint: '172.100.1.3:51999', public_key: {}, peers: [n1, n2], routes: [192.168.77.0/24]",
        key.public()
    );
    segment.controller.apply_with(&file(&given), &["--wait"]).unwrap();
    let refused = segment.controller.run(&["export", "wireguard", "phone", "--generate-key"]).unwrap_err();
    assert!(refused.stderr.contains("phone has its public_key in the mesh file"), "{refused}");
    let exported = segment.controller.run(&["export", "wireguard", "phone"]).unwrap();
    assert!(exported.contains("ListenPort = 51999\n"), "{exported}");
    router.address("lo", "192.168.77.1/32");
    let _device = WgQuick::up(router, &exported, Some(&key));
    let all = ["10.9.0.9", "192.168.77.1"].map(|address| address.parse().unwrap());
    all_reach(&[(segment.host(1), all.to_vec()), (segment.host(2), all.to_vec())], SOON).unwrap();
    ping_ok(router, "10.9.0.1");
    ping_ok(router, "10.9.0.2");
    // The agents' own pair goes on beside it.
    ping_ok(segment.host(2), "10.9.0.1");
}
