//! An agent on a host that lacks what it needs says so in one line.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a fault ends the test")]

mod lab;

use std::process::Command;

use lab::AGENT;

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
fn without_the_capability() {
    let drop = ["setpriv", "--bounding-set", "-net_admin", "--inh-caps", "-net_admin"];
    assert_one_line(&drop, &["CAP_NET_ADMIN", "root", "AmbientCapabilities"]);
}

#[test]
fn without_the_tun_device() {
    // A mount namespace of its own, in which nothing is below /dev/net.
    let hidden = ["unshare", "--mount", "sh", "-c", "mount -t tmpfs none /dev/net && exec \"$0\" \"$@\""];
    assert_one_line(&hidden, &["/dev/net/tun", "modprobe tun", "--device"]);
}

#[test]
fn with_a_tun_device_that_is_none() {
    let dead = [
        "unshare",
        "--mount",
        "sh",
        "-c",
        "mount -t tmpfs none /dev/net && mknod /dev/net/tun c 10 199 && exec \"$0\" \"$@\"",
    ];
    assert_one_line(&dead, &["/dev/net/tun", "modprobe tun"]);
}

#[test]
fn wrong_use_is_exit_code_2() {
    for arguments in [
        &["--data-port", "6000", "--control-port", "6000"][..],
        &["--data-port", "70000"],
        &["--no-such-flag"],
        &["--legacy-allow", "x"],
    ] {
        let output = Command::new(AGENT).args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
    }
}
