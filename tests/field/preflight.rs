//! An agent on a host that lacks what it needs: at its start it says so in one line, and later for what cannot be had.

use std::process::Command;

use serde_json::json;

use crate::lab::{AGENT, Agent, GrpcError, Lab, SOON, grpcurl, ping_ok, tunnel_status, wait_until};

/// Runs the agent with a state directory of its own under `wrapper`; its exit code and what it said.
fn run_under(wrapper: &[&str]) -> (Option<i32>, String) {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    // An agent that starts all the same must not hold up the test.
    let output = Command::new("timeout")
        .arg("10")
        .args(wrapper)
        .args([AGENT, "--socket", &path("agent.sock"), "--state-dir", &path("state")])
        .output()
        .unwrap();
    assert!(!directory.path().join("state").exists(), "it made something before it looked");
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[track_caller]
fn assert_one_line(wrapper: &[&str], words: &[&str]) {
    let (code, said) = run_under(wrapper);
    assert_eq!(code, Some(1), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    for word in words {
        assert!(said.contains(word), "{word:?} is not in {said}");
    }
}

#[test]
fn case_20_without_the_capability_it_does_not_start() {
    let drop = ["setpriv", "--bounding-set", "-net_admin", "--inh-caps", "-net_admin"];
    assert_one_line(&drop, &["CAP_NET_ADMIN", "root", "AmbientCapabilities"]);
}

#[test]
fn case_20_without_the_tun_device_it_does_not_start() {
    // A mount namespace of its own, in which nothing is below /dev/net.
    let hidden = ["unshare", "--mount", "sh", "-c", "mount -t tmpfs none /dev/net && exec \"$0\" \"$@\""];
    assert_one_line(&hidden, &["/dev/net/tun", "modprobe tun", "--device"]);
}

#[test]
fn case_20_with_a_tun_device_that_is_none_it_does_not_start() {
    let dead = [
        "unshare",
        "--mount",
        "sh",
        "-c",
        "mount -t tmpfs none /dev/net && mknod /dev/net/tun c 10 199 && exec \"$0\" \"$@\"",
    ];
    assert_one_line(&dead, &["/dev/net/tun", "modprobe tun"]);
}

/// It is there when the agent starts and goes while it runs, as where a container's devices are changed.
#[test]
fn case_20_a_tun_device_that_goes_while_it_runs_costs_what_needs_it_and_is_named() {
    let lab = Lab::new();
    let (host, other) = (lab.host("host"), lab.host("other"));
    lab.link(&host, "172.100.1.1/24", &other, "172.100.1.2/24");
    let agent = Agent::start_by(&host, &["unshare", "--mount", AGENT]);
    let their = Agent::start(&other, &[]);
    let tunnel = |name: &str, network: u8, own: u8| {
        json!({"tunnel": {
            "name": name, "addresses": [format!("10.0.{network}.{own}/30")], "framing": "RAW",
            "remote": format!("172.100.1.{}", if network == 1 { 3 - own } else { 9 }),
        }})
    };
    let add = |agent: &Agent, name: &str, network: u8, own: u8| -> Result<_, GrpcError> {
        grpcurl(agent, "tunmesh.v1.TunnelService/AddTunnel", &tunnel(name, network, own))
    };
    add(&agent, "link", 1, 1).unwrap();
    add(&their, "link", 1, 2).unwrap();
    ping_ok(&host, "10.0.1.2");

    // In its mount namespace alone nothing is below /dev/net any more.
    let pid = agent.pid().to_string();
    let inside =
        |command: &[&str]| host.run([&["nsenter", "--mount", "--target", &pid][..], command].concat());
    inside(&["mount", "-t", "tmpfs", "none", "/dev/net"]);
    add(&agent, "late", 2, 1).unwrap();
    host.run(["ip", "link", "del", "dev", "link"]);
    let words = ["/dev/net/tun", "modprobe tun", "--device"];
    for name in ["link", "late"] {
        let mut last = json!(null);
        wait_until(SOON, &format!("{name} is FAILED by name"), || {
            last = tunnel_status(&agent, name);
            last["state"] == "FAILED"
        });
        let reason = last["reason"].as_str().unwrap();
        assert!(words.iter().all(|word| reason.contains(word)), "{reason}");
    }
    let status = grpcurl(&agent, "tunmesh.v1.TunnelService/GetStatus", &json!({})).unwrap();
    assert_eq!(status["failedTunnels"], 2, "{status}");
    assert!(agent.show("tunnels").contains("modprobe tun"), "{}", agent.show("tunnels"));
    let lines = agent.log().lines().count();
    assert!(lines < 40, "a flood: {}", agent.log());

    inside(&["umount", "/dev/net"]);
    ping_ok(&host, "10.0.1.2");
    wait_until(SOON, "the other is up", || tunnel_status(&agent, "late")["state"] == "WAITING");
}
