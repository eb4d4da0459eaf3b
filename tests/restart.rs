//! An agent that ends, however it ends, and starts again.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a fault ends the test")]
#![allow(clippy::disallowed_methods, reason = "real starts are timed")]

mod lab;

use std::fs;
use std::net::UdpSocket;
use std::process::Command;
use std::time::{Duration, Instant};

use lab::{
    Agent, Disk, Names, SOON, actual, grpcurl, holds_within, legacy_add, ping_ok, tunnels_of_every_kind,
    two_hosts, wait_until,
};
use serde_json::json;

#[test]
fn killed_twenty_times_it_comes_back_as_it_was() {
    let (_lab, host, other) = two_hosts();
    let mut agent = Agent::start(&host, &[]);
    tunnels_of_every_kind(&host, &agent);
    let their = Agent::start(&other, &[]);
    legacy_add(&other, "udp1", "10.0.1.2", "172.100.1.1", 1400);
    let wanted = actual(&host);
    assert_eq!(wanted[0].as_array().unwrap().len(), 3, "{wanted}");
    let foreign = host.run(["ip", "-4", "route", "show", "dev", &host.device_to(&other)]);
    for round in 0..20 {
        agent.kill9();
        let start = Instant::now();
        agent.restart();
        let converged = holds_within(Duration::from_secs(2), || actual(&host) == wanted);
        assert!(converged, "round {round}: {} is not {wanted}", actual(&host));
        assert!(start.elapsed() < Duration::from_secs(2), "round {round} took {:?}", start.elapsed());
    }
    ping_ok(&host, "10.0.1.2");
    assert_eq!(host.run(["ip", "-4", "route", "show", "dev", &host.device_to(&other)]), foreign);
    drop(their);
}

#[test]
fn terminated_it_leaves_nothing_and_remembers_everything() {
    let (_lab, host, other) = two_hosts();
    let before = (host.ip_json(["addr"]), host.ip_json(["route", "show", "table", "all"]));
    let mut agent = Agent::start(&host, &[]);
    tunnels_of_every_kind(&host, &agent);
    let wanted = actual(&host);
    let socket = agent.socket();
    assert!(agent.terminate().success());
    assert_eq!((host.ip_json(["addr"]), host.ip_json(["route", "show", "table", "all"])), before);
    assert!(!socket.exists(), "the socket is left");
    // What is wanted changed while nobody ran: nothing of it comes back.
    agent.restart();
    assert_eq!(actual(&host), wanted);
    grpcurl(&agent, "tunmesh.v1.TunnelService/DeleteTunnel", &json!({"name": "udp3"})).unwrap();
    let changed = actual(&host);
    assert_ne!(changed, wanted);
    agent.kill9();
    agent.restart();
    assert!(holds_within(Duration::from_secs(2), || actual(&host) == changed), "{}", actual(&host));
    drop(other);
}

#[test]
fn a_corrupt_state_file_is_set_aside() {
    let (_lab, host, _other) = two_hosts();
    let mut agent = Agent::start(&host, &[]);
    tunnels_of_every_kind(&host, &agent);
    let path = agent.state_dir().join("state");
    let good = fs::read(&path).unwrap();
    let half = good[..good.len() / 2].to_vec();
    let changed = String::from_utf8(good.clone()).unwrap().replace("172.100.1.3", "172.100.1.9").into_bytes();
    for (round, corrupt) in [half, changed, vec![0; 4096], Vec::new()].into_iter().enumerate() {
        agent.terminate();
        fs::write(&path, &corrupt).unwrap();
        agent.restart();
        let log = agent.log();
        assert!(log.contains("set aside") && log.contains(&format!("corrupt-{round}")), "{log}");
        assert_eq!(fs::read(agent.state_dir().join(format!("state.corrupt-{round}"))).unwrap(), corrupt);
        assert_eq!(actual(&host)[0], json!([]));
        legacy_add(&host, "udp2", "10.0.1.1", "172.100.1.2", 1400);
    }
}

#[test]
fn a_second_agent_says_what_is_taken() {
    let (_lab, host, _other) = two_hosts();
    let mut first = Agent::start(&host, &[]);
    tunnels_of_every_kind(&host, &first);
    let wanted = actual(&host);
    let socket = first.socket();
    let (socket, state) = (socket.to_str().unwrap(), first.state_dir());
    let state = state.to_str().unwrap();
    let other_state = tempfile::tempdir().unwrap();
    let other_state = other_state.path().to_str().unwrap();
    for (arguments, words) in [
        (vec!["--socket", "/tmp/tunmesh-other.sock", "--state-dir", state], vec![state, "--state-dir"]),
        (
            vec!["--socket", "/tmp/tunmesh-other.sock", "--state-dir", other_state],
            vec!["5000", "--data-port"],
        ),
        (
            vec!["--socket", "/tmp/tunmesh-other.sock", "--state-dir", other_state, "--data-port", "6000"],
            vec!["5001", "--control-port"],
        ),
        (
            vec!["--socket", socket, "--state-dir", other_state, "--data-port", "6000", "--no-legacy"],
            vec![socket, "--socket"],
        ),
    ] {
        let refused = host.try_run([&[lab::AGENT][..], &arguments].concat()).unwrap_err().to_string();
        for word in words {
            assert!(refused.contains(word), "{arguments:?}: {word:?} is not in {refused}");
        }
        assert!(first.alive());
    }
    assert_eq!(actual(&host), wanted);
    grpcurl(&first, "tunmesh.v1.TunnelService/GetStatus", &json!({})).unwrap();
}

#[test]
fn what_cannot_be_kept_is_refused() {
    let (_lab, host, _other) = two_hosts();
    let agent = Agent::start(&host, &[]);
    legacy_add(&host, "udp2", "10.0.1.1", "172.100.1.2", 1400);
    let before = actual(&host);
    // No file can be made where a directory is, as on a full disk.
    let in_the_way = agent.state_dir().join("state.new");
    fs::create_dir(&in_the_way).unwrap();
    let reply = legacy_add(&host, "udp3", "10.0.3.1", "172.100.1.3", 1400);
    assert!(reply["udp3"].as_str().unwrap().contains("disk"), "{reply}");
    let error =
        grpcurl(&agent, "tunmesh.v1.TunnelService/DeleteTunnel", &json!({"name": "udp2"})).unwrap_err();
    assert!(error.message.contains("disk"), "{error:?}");
    assert_eq!(actual(&host), before);
    fs::remove_dir(&in_the_way).unwrap();
    let reply = legacy_add(&host, "udp3", "10.0.3.1", "172.100.1.3", 1400);
    assert!(reply["udp3"].as_str().unwrap().starts_with("ok"), "{reply}");
}

#[test]
fn a_full_disk_keeps_no_tunnel_from_coming_up() {
    let (_lab, host, _other) = two_hosts();
    let mut agent = Agent::start(&host, &[]);
    agent.terminate();
    let disk = Disk::mount(&agent.state_dir(), "64k");
    agent.restart();
    legacy_add(&host, "udp2", "10.0.1.1", "172.100.1.2", 1400);
    let before = actual(&host);
    agent.kill9();
    // What the dead agent wrote takes room as well.
    fs::write(agent.state_dir().join("lock"), "").unwrap();
    disk.fill();
    agent.restart();
    wait_until(SOON, "the tunnel is back", || actual(&host) == before);
    let reply = legacy_add(&host, "udp3", "10.0.3.1", "172.100.1.3", 1400);
    assert!(reply["udp3"].as_str().unwrap().contains("disk"), "{reply}");
    assert_eq!(actual(&host), before);
}

#[test]
fn a_disk_that_cannot_be_written_keeps_no_tunnel_from_coming_up() {
    let (_lab, host, _other) = two_hosts();
    let mut agent = Agent::start(&host, &[]);
    agent.terminate();
    let disk = Disk::mount(&agent.state_dir(), "64k");
    agent.restart();
    legacy_add(&host, "udp2", "10.0.1.1", "172.100.1.2", 1400);
    let before = actual(&host);
    agent.kill9();
    disk.set_read_only(true);
    agent.restart();
    wait_until(SOON, "the tunnel is back", || actual(&host) == before);
    assert!(agent.log().contains("the state directory cannot be written to"), "{}", agent.log());
    assert!(agent.log().contains("Read-only file system"), "{}", agent.log());
    let reply = legacy_add(&host, "udp3", "10.0.3.1", "172.100.1.3", 1400);
    assert!(reply["udp3"].as_str().unwrap().contains("for writing; nothing has changed"), "{reply}");
    let second = Command::new("timeout")
        .args(["20", "ip", "netns", "exec", host.namespace(), env!("CARGO_BIN_EXE_agent"), "--state-dir"])
        .arg(agent.state_dir())
        .output()
        .unwrap();
    let refused = String::from_utf8(second.stderr).unwrap();
    assert!(refused.contains("is in use by another agent"), "{refused}");
    assert_eq!(actual(&host), before);
    disk.set_read_only(false);
    // The mount that it sees is a copy from when it started.
    agent.restart();
    let reply = legacy_add(&host, "udp3", "10.0.3.1", "172.100.1.3", 1400);
    assert!(reply["udp3"].as_str().unwrap().starts_with("ok"), "{reply}");
}

#[test]
fn a_resolver_that_is_silent_does_not_hold_up_the_end() {
    let (_lab, host, _other) = two_hosts();
    let mut names = Names::new(&host, "");
    names.resolve_at("127.0.0.1", 30);
    let silent = host.enter(|| UdpSocket::bind("127.0.0.1:53").unwrap());
    let mut agent = Agent::start(&host, &[]);
    legacy_add(&host, "udp2", "10.0.1.1", "minion-2", 1400);
    silent.set_read_timeout(Some(SOON)).unwrap();
    silent.recv(&mut [0; 512]).expect("the name is asked for");
    assert!(agent.terminate().success());
}

#[test]
fn nothing_acknowledged_is_lost() {
    let (_lab, host, _other) = two_hosts();
    let mut agent = Agent::start(&host, &[]);
    for n in 1..=30_u32 {
        let reply = legacy_add(
            &host,
            &format!("udp{n}"),
            &format!("10.1.{n}.1"),
            &format!("172.100.1.{}", 100 + n),
            1400,
        );
        assert!(reply[format!("udp{n}")].as_str().unwrap().starts_with("ok"), "{reply}");
        if n % 5 == 0 {
            agent.kill9();
            agent.restart();
            let listed = grpcurl(&agent, "tunmesh.v1.TunnelService/ListTunnels", &json!({})).unwrap();
            assert_eq!(listed["tunnels"].as_array().unwrap().len(), n as usize);
        }
    }
}
