//! Many agents that come at once.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::fleet::{Herd, herd};
use crate::lab::{CONTROLLER, Lab};

/// How many agents there are, and in which time 99 of 100 must be in step.
const AGENTS: usize = 500;
const SYNCED: Duration = Duration::from_secs(5);
/// What an operator may wait for a list meanwhile.
const LISTED: Duration = Duration::from_secs(1);

fn list(socket: &Path) {
    let listed =
        Command::new(CONTROLLER).args(["nodes", "-o", "json", "--socket"]).arg(socket).output().unwrap();
    assert!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
}

#[test]
fn case_11_five_hundred_agents_at_once_are_in_step_soon_and_hold_up_no_operator() {
    /// What else runs on the machine makes it slower, and nothing makes it faster than it is.
    const TRIES: usize = 3;
    let mut missed = Vec::new();
    for _ in 0..TRIES {
        let lab = Lab::new();
        let Herd { synced, lists } = lab.host("herd").enter(|| herd(Path::new(CONTROLLER), AGENTS, list));
        let (p99, slowest) = (synced[AGENTS * 99 / 100 - 1], lists.iter().max().unwrap());
        if p99 < SYNCED && *slowest < LISTED {
            return;
        }
        missed.push(format!("99 of 100 after {p99:?}, all after {:?}; lists: {lists:?}", synced.last()));
    }
    panic!("{missed:#?}");
}
