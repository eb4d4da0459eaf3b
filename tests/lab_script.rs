//! What `scripts/lab` says of hosts that can do all, and of hosts that cannot.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a fault ends the test")]

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

fn run(command: &[&str]) -> (Option<i32>, String) {
    let mut process = Command::new(command[0]);
    let Output { status, stdout, stderr } = process.args(&command[1..]).current_dir(ROOT).output().unwrap();
    let [stdout, stderr] = [stdout, stderr].map(|printed| String::from_utf8(printed).unwrap());
    (status.code(), stdout + &stderr)
}

/// Checks that the table has a row of this name and state, in which these words are.
#[track_caller]
fn has_row(table: &str, row: &str, words: &[&str]) {
    let found = table.lines().find(|line| line.starts_with(row));
    assert!(
        found.is_some_and(|line| words.iter().all(|word| line.contains(word))),
        "{row} {words:?}: {table}"
    );
}

/// The table of a run that was kept in a directory.
fn table(directory: &Path, cases: &[&str]) -> (Option<i32>, String) {
    run(&[&["python3", "tests/field/table.py", directory.to_str().unwrap()][..], cases].concat())
}

const CHECK: &str = r#"[
    {"subject": "devices", "severity": "ok", "found": "can be made", "remedy": ""},
    {"subject": "forwarding of IPv4", "severity": "problem", "found": "is off", "remedy": "sysctl -w net.ipv4.ip_forward=1"}
]"#;
const STATUS: &str = r#"{"offloads": [
    {"name": "tun-tso", "inUse": true},
    {"name": "tun-uso", "reason": "this kernel does not know it (Invalid argument (os error 22))"},
    {"name": "udp-gso", "inUse": true},
    {"name": "udp-gro", "inUse": true}
]}"#;
const CASES: &str = "
running 4 tests
test paths::case_01_a_path_is_measured ... ok
test paths::case_01_a_transfer_goes_on ... ok
test throughput::case_18_takes_a_minute ... ignored, takes a minute
test links::case_14_a_cut_is_seen ... FAILED
test links::case_14_a_cut_is_seen_encrypted ... ok

failures:

---- links::case_14_a_cut_is_seen stdout ----

thread 'links::case_14_a_cut_is_seen' (4711) panicked at tests/field/links.rs:30:5:
not within 10s: the link is [\"UP\", \"UP\"]
";

#[test]
fn a_row_says_what_works_what_is_done_instead_and_what_fails() {
    let directory = tempfile::tempdir().unwrap();
    let write = |file: &str, content: &str| fs::write(directory.path().join(file), content).unwrap();
    write("check.json", CHECK);
    write("status.json", STATUS);
    let (code, told) = table(directory.path(), &[]);
    assert_eq!(code, Some(0), "{told}");
    has_row(&told, "devices ", &["works"]);
    has_row(&told, "forwarding of IPv4 ", &["to be set", "sysctl -w net.ipv4.ip_forward=1"]);
    has_row(&told, "tun-tso ", &["works"]);
    has_row(&told, "tun-uso ", &["falls back", "one by one", "does not know it", "Linux 6.2"]);

    write("cases.log", CASES);
    let (code, told) = table(directory.path(), &["01"]);
    assert_eq!(code, Some(0), "{told}");
    has_row(&told, "01 a path that loses", &["works"]);
    let (code, told) = table(directory.path(), &["01", "14", "18"]);
    assert_eq!(code, Some(1), "{told}");
    has_row(&told, "14 loss in one direction ", &["FAILS", "1 of 2 tests", "the link is"]);
    // What nobody has tried is not said to work.
    has_row(&told, "18 ", &["FAILS", "no test of it ran to its end"]);

    write("lacks", "thin wires (tbf)\tmodprobe sch_tbf\n");
    let (code, told) = table(directory.path(), &["01"]);
    assert_eq!(code, Some(1), "{told}");
    has_row(&told, "thin wires (tbf) ", &["FAILS", "modprobe sch_tbf"]);
}

#[test]
fn a_case_is_run_on_this_kernel_and_what_is_hidden_is_named() {
    let (code, told) = run(&["scripts/lab", "--no-install", "--cases", "20"]);
    assert_eq!(code, Some(0), "{told}");
    has_row(&told, "20 a host without the tun device", &["works"]);
    has_row(&told, "devices ", &["works"]);

    // A mount namespace of its own, in which nothing is below /dev/net.
    let hidden = "mount -t tmpfs none /dev/net && scripts/lab --no-install --offload";
    let (code, told) = run(&["unshare", "--mount", "sh", "-c", hidden]);
    assert_eq!(code, Some(1), "{told}");
    has_row(&told, "devices ", &["FAILS", "modprobe tun"]);
    has_row(&told, "tun-tso ", &["FAILS"]);
}

/// The host is a network of its own, in which somebody does what the script never does.
#[test]
fn what_is_changed_outside_of_its_namespaces_is_shown() {
    let touched = "mount -t tmpfs none /run/netns
        until ls /run/netns/* >/run/netns/.seen 2>/run/netns/.seen; do sleep 0.02; done && ip link set lo up &
        scripts/lab --no-install --offload";
    let (code, told) = run(&["unshare", "--net", "--mount", "sh", "-c", touched]);
    assert_eq!(code, Some(1), "{told}");
    for words in ["nothing fails", "is not as it was", "+        \"operstate\"", "127.0.0.1"] {
        assert!(told.contains(words), "{words}: {told}");
    }
    let (code, told) = run(&["unshare", "--net", "scripts/lab", "--no-install", "--offload"]);
    assert_eq!(code, Some(0), "{told}");
}

#[test]
fn wrong_use_is_exit_code_2() {
    for arguments in [&["--cases", "21"][..], &["--cases"], &["--cases", "1,x"], &["--all"]] {
        let (code, told) = run(&[&["scripts/lab"], arguments].concat());
        assert_eq!(code, Some(2), "{arguments:?}: {told}");
    }
}
