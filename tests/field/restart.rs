//! What an agent that ended left behind, and what others did meanwhile.

use std::time::Duration;

use serde_json::{Value, json};

use crate::lab::{
    Agent, Host, SOON, Segment, actual, grpcurl, holds_within, legacy_add, node_name, ping, ping_ok,
    tunnel_status, tunnels_of_every_kind, two_hosts, wait_until,
};

const ADD: &str = "tunmesh.v1.TunnelService/AddTunnel";

/// All addresses of a host, as "prod 10.9.0.1/24".
fn addresses(host: &Host) -> Vec<String> {
    let listed = host.ip_json(["-4", "address"]);
    let of = |link: &Value| -> Vec<String> {
        let name = link["ifname"].as_str().unwrap().to_owned();
        let addresses = link["addr_info"].as_array().unwrap().iter();
        let one = |address: &Value| {
            format!("{name} {}/{}", address["local"].as_str().unwrap(), address["prefixlen"])
        };
        addresses.map(one).collect()
    };
    let mut all: Vec<_> = listed.as_array().unwrap().iter().flat_map(of).collect();
    all.sort();
    all
}

/// All routes of a host in all tables, as "192.168.2.0/24 prod 152".
fn routes(host: &Host) -> Vec<String> {
    let listed = host.ip_json(["-4", "route", "show", "table", "all"]);
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let one = |route: &Value| {
        let [kind, destination, device, protocol, source] =
            ["type", "dst", "dev", "protocol", "prefsrc"].map(|field| text(&route[field]));
        [kind, destination, device, protocol, source].join(" ").trim().to_owned()
    };
    let mut all: Vec<_> = listed.as_array().unwrap().iter().map(one).collect();
    all.sort();
    all
}

#[test]
fn case_03_what_was_deleted_and_readdressed_while_it_was_dead_leaves_nothing() {
    let segment = Segment::new(4);
    let controller = &segment.controller;
    let mut agents = segment.agents(4);
    let host = segment.host(1);
    let fresh = (addresses(host), routes(host));
    let prod = |own: &str, rest: &str| {
        format!("mesh: prod\noverlay: 10.9.0.0/24\nsecurity: plain\nnodes:\n  n1: {{address: {own}}}\n{rest}")
    };
    let before = prod(
        "10.9.0.1",
        "  n2: {address: 10.9.0.2, routes: [192.168.2.0/24]}\n  n3: {address: 10.9.0.3, routes: [192.168.3.0/24]}\n",
    );
    let blue = "mesh: blue\noverlay: 10.20.0.0/24\nsecurity: plain\nnodes:\n  n1: {address: 10.20.0.1}\n  \
                n4: {address: 10.20.0.4, routes: [192.168.4.0/24]}\n";
    controller.apply_with(&before, &["--wait"]).unwrap();
    controller.apply_with(blue, &["--wait"]).unwrap();
    ping_ok(host, "10.9.0.3");
    ping_ok(host, "10.20.0.4");
    // What the agent itself was asked for stays as it is.
    legacy_add(host, "udp9", "10.0.9.1", "172.100.1.99", 1400);

    agents[0].kill9();
    let after = prod("10.9.0.11", "  n2: {address: 10.9.0.22, routes: [192.168.22.0/24]}\n");
    controller.apply_with(&after, &["--allow-removals"]).unwrap();
    controller.run(&["mesh", "delete", "blue", "--allow-removals"]).unwrap();
    agents[0].restart();

    let with = |own: &[&str], of_fresh: &[String]| {
        let mut all: Vec<_> = own.iter().map(|&one| one.to_owned()).chain(of_fresh.iter().cloned()).collect();
        all.sort();
        all
    };
    let wanted = (
        with(&["prod 10.9.0.11/24", "udp9 10.0.9.1/30"], &fresh.0),
        with(
            &[
                "10.9.0.0/24 prod kernel 10.9.0.11",
                "local 10.9.0.11 prod kernel 10.9.0.11",
                "broadcast 10.9.0.255 prod kernel 10.9.0.11",
                "192.168.22.0/24 prod 152",
                "10.0.9.0/30 udp9 kernel 10.0.9.1",
                "local 10.0.9.1 udp9 kernel 10.0.9.1",
                "broadcast 10.0.9.3 udp9 kernel 10.0.9.1",
            ],
            &fresh.1,
        ),
    );
    let is_as_wanted = || (addresses(host), routes(host)) == wanted;
    assert!(holds_within(SOON, is_as_wanted), "{:#?} is not {wanted:#?}", (addresses(host), routes(host)));
    ping_ok(host, "10.9.0.22");
    wait_until(SOON, "all are in step", || controller.node(&node_name(1))["converged"] == true);
    assert_eq!(agents[0].tunnel_names(), ["prod.n2", "udp9"]);
    assert!(is_as_wanted(), "{:#?}", (addresses(host), routes(host)));
    // Nobody is where somebody was.
    for gone in ["10.9.0.2", "10.9.0.3", "10.20.0.4"] {
        assert!(!ping(host, gone, &[]), "{gone}");
    }
}

#[test]
fn case_04_started_while_its_predecessor_is_ending_it_waits() {
    let (_lab, host, _other) = two_hosts();
    let mut agent = Agent::start(&host, &[]);
    for n in 1..=40_u32 {
        legacy_add(
            &host,
            &format!("udp{n}"),
            &format!("10.1.{n}.1"),
            &format!("172.100.1.{}", 100 + n),
            1400,
        );
    }
    let wanted = actual(&host);
    // The kernel takes its time to remove forty devices, and the next agent does not wait for it.
    agent.replace9();
    assert!(holds_within(Duration::from_secs(2), || actual(&host) == wanted), "{}", actual(&host));
    assert!(agent.alive());
}

#[test]
fn case_04_a_foreign_device_of_the_same_name_costs_its_tunnel_alone() {
    let (_lab, host, other) = two_hosts();
    let mut agent = Agent::start(&host, &[]);
    tunnels_of_every_kind(&host, &agent);
    let wanted = actual(&host);
    agent.kill9();
    for foreign in [&["type", "bridge"][..], &["tuntap"]] {
        let name = "udp3";
        if foreign == ["tuntap"] {
            host.run(["ip", "tuntap", "add", "dev", name, "mode", "tun"]);
        } else {
            host.run([&["ip", "link", "add", name][..], foreign].concat());
        }
        let theirs = host.ip_json(["addr", "show", "dev", name]);
        agent.restart();
        let states = || -> Vec<(String, String)> {
            let listed = grpcurl(&agent, "tunmesh.v1.TunnelService/ListTunnels", &json!({})).unwrap();
            let tunnels = listed["tunnels"].as_array().unwrap().iter();
            tunnels
                .map(|status| {
                    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
                    (text(&status["tunnel"]["name"]), text(&status["state"]) + &text(&status["reason"]))
                })
                .collect()
        };
        for (tunnel, state) in states() {
            if tunnel == name {
                assert!(state.starts_with("FAILED") && state.contains(name), "{state}");
            } else {
                assert_eq!(state, "WAITING", "{tunnel}");
            }
        }
        assert_eq!(host.ip_json(["addr", "show", "dev", name]), theirs, "the foreign device was touched");
        host.run(["ip", "link", "del", name]);
        assert!(
            holds_within(Duration::from_secs(10), || actual(&host) == wanted),
            "it does not come when it can"
        );
        agent.kill9();
    }
    drop(other);
}

#[test]
fn case_04_a_device_that_another_process_holds_is_named_with_its_holder() {
    let (_lab, host, _other) = two_hosts();
    let tunnel = |network: u8| {
        json!({"tunnel": {"name": "udp3", "addresses": [format!("10.0.{network}.1/30")], "remote": "172.100.1.3",
                          "framing": "RAW"}})
    };
    let mut agent = Agent::start(&host, &[]);
    grpcurl(&agent, ADD, &tunnel(3)).unwrap();
    let wanted = actual(&host);
    agent.kill9();
    let holder = Agent::start(&host, &["--data-port", "6000", "--no-legacy"]);
    grpcurl(&holder, ADD, &tunnel(4)).unwrap();
    let theirs = actual(&host);
    agent.restart();
    let status = tunnel_status(&agent, "udp3");
    let named = format!("device udp3 is held by process {} (agent)", holder.pid());
    assert!(
        status["reason"].as_str().unwrap().contains("udp3") && status["notes"].to_string().contains(&named),
        "{status}"
    );
    assert!(agent.show("tunnels").contains(&named), "{}", agent.show("tunnels"));
    assert_eq!((&status["state"], actual(&host)), (&json!("FAILED"), theirs));
    drop(holder);
    wait_until(SOON, "it has the device", || actual(&host) == wanted);
}
