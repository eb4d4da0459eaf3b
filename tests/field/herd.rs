//! Many agents that come at once.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::fleet;
use crate::lab::{CONTROLLER, Lab};

#[test]
fn case_11_five_hundred_agents_at_once_are_in_step_soon_and_hold_up_no_operator() {
    const AGENTS: usize = 500;
    const SYNCED: Duration = Duration::from_secs(5);
    const LISTED: Duration = Duration::from_secs(1);
    let lab = Lab::new();
    let host = lab.host("herd");
    let list = |socket: &Path| {
        let listed =
            Command::new(CONTROLLER).args(["nodes", "-o", "json", "--socket"]).arg(socket).output().unwrap();
        assert!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
    };
    let fleet::Herd { synced, lists } = host.enter(|| fleet::herd(Path::new(CONTROLLER), AGENTS, list));
    let p99 = synced[AGENTS * 99 / 100 - 1];
    assert!(p99 < SYNCED, "99 of 100 after {p99:?}, all after {:?}", synced.last());
    assert!(lists.len() > 1 && lists.iter().all(|time| *time < LISTED), "{lists:?}");
}
