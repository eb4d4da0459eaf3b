//! A controller whose disk is full, or cannot be written: what it says, and what it costs.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a fault ends the test")]

mod lab;

use std::fmt::Write;

use lab::{Agent, Controller, Disk, Host, Lab, SOON, ping, wait_until};

const CONTROLLER: &str = "172.100.1.254:7443";

fn mesh(more: usize) -> String {
    let mut file = "mesh: prod\noverlay: 10.9.0.0/22\nsecurity: plain\nnodes:\n".to_owned();
    file += "  n1: {address: 10.9.0.1}\n  n2: {address: 10.9.0.2}\n";
    for node in 0..more {
        writeln!(file, "  minion-with-a-long-name-{node}: {{}}").unwrap();
    }
    file
}

/// Two nodes in a mesh, and a controller with a small disk.
struct Site {
    hosts: [Host; 2],
    agents: [Agent; 2],
    controller: Controller,
    disk: Disk,
    _lab: Lab,
}

impl Site {
    fn new() -> Self {
        let lab = Lab::new();
        let router = lab.host("router");
        let hosts = ["n1", "n2"].map(|name| lab.host(name));
        let ends = [(&hosts[0], "172.100.1.1/24"), (&hosts[1], "172.100.1.2/24")];
        lab.segment(&router, "172.100.1.254/24", &ends);
        let mut controller = Controller::start(&router, &[]);
        controller.terminate();
        let disk = Disk::mount(&controller.state_dir(), "1m");
        controller.restart();
        let agents = [0, 1].map(|n| Agent::join(&hosts[n], CONTROLLER, hosts[n].role(), &[]));
        wait_until(SOON, "both nodes are there", || {
            ["n1", "n2"].iter().all(|name| controller.node(name)["health"] == "LIVE")
        });
        controller.apply_with(&mesh(0), &["--wait"]).unwrap();
        Self { hosts, agents, controller, disk, _lab: lab }
    }

    fn tunnels_carry(&self) {
        wait_until(SOON, "n1 reaches n2", || ping(&self.hosts[0], "10.9.0.2", &["-c", "1", "-W", "1"]));
    }

    fn is_told(&self) -> bool {
        let problems = self.controller.problems("");
        problems
            .iter()
            .any(|words| words.contains("the store cannot be written for") && words.contains("is full"))
    }

    fn events(&self, kind: &str) -> usize {
        let events = self.controller.run(&["events"]).unwrap();
        events.lines().filter(|line| line.contains(kind)).count()
    }
}

#[test]
fn a_full_disk_is_told_until_there_is_room_and_changes_nothing() {
    let site = Site::new();
    let controller = &site.controller;
    site.disk.fill();
    assert!(!site.is_told(), "nobody has written yet");
    let failed = controller.apply(&mesh(300)).unwrap_err();
    assert_eq!(failed.code, Some(1), "{failed}");
    for words in ["the store cannot be written: ", "is full: make room", "nothing changed"] {
        assert!(failed.stderr.contains(words), "{failed}");
    }
    assert!(!failed.stderr.contains("went away"), "{failed}");
    wait_until(SOON, "the status has it", || site.is_told());
    assert_eq!((site.events("store-failed"), site.events("store-written")), (1, 0));
    assert_eq!(controller.json(&["mesh", "list"])["meshes"][0]["nodes"].as_array().unwrap().len(), 2);
    site.tunnels_carry();

    site.disk.make_room();
    wait_until(SOON, "the status has it no more", || !site.is_told());
    assert_eq!((site.events("store-failed"), site.events("store-written")), (1, 1));
    controller.apply(&mesh(300)).unwrap();
    let lines = controller.log().lines().filter(|line| line.contains("cannot be written")).count();
    assert_eq!(lines, 1, "it is logged once, not each time that it is tried");
}

#[test]
fn a_controller_that_cannot_write_does_not_start_and_says_what_to_do() {
    let mut site = Site::new();
    for (is_read_only, kills) in [(false, true), (false, false), (true, true), (true, false)] {
        if kills {
            site.controller.kill9();
        } else {
            site.controller.terminate();
        }
        let remedy = if is_read_only {
            site.disk.set_read_only(true);
            "mount its file system for writing"
        } else {
            site.disk.fill();
            "make room"
        };
        let log = site.controller.log().len();
        // Its socket may answer before it has found out.
        let status = match site.controller.try_restart() {
            Ok(()) => Some(site.controller.ended()),
            Err(error) => error.status,
        };
        assert_eq!(status.and_then(|status| status.code()), Some(1));
        let said = &site.controller.log()[log..];
        assert!(said.contains(remedy), "{is_read_only} {kills}: {said}");
        site.tunnels_carry();
        if is_read_only {
            site.disk.set_read_only(false);
        } else {
            site.disk.make_room();
        }
        site.controller.restart();
        wait_until(SOON, "both nodes are back", || {
            ["n1", "n2"].iter().all(|name| site.controller.node(name)["converged"] == true)
        });
        assert!(site.agents.iter_mut().all(|agent| agent.alive()));
    }
}
