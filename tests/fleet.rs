//! A thousand agents on one controller.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a fault ends the test")]

#[path = "lab/fleet/mod.rs"]
mod fleet;
mod lab;

use std::path::Path;
use std::time::Duration;

use lab::{CONTROLLER, Lab};

#[test]
fn a_thousand_agents_are_in_step_soon() {
    let lab = Lab::new();
    let host = lab.host("fleet");
    let options = fleet::Options { agents: 1000, reports: true };
    let parts = host.enter(|| fleet::run(Path::new(CONTROLLER), options, |_, _, _| ()));
    parts.iter().for_each(|part| println!("{part:?}"));
    let bounds = [10, 10, 2].map(Duration::from_secs);
    for (part, bound) in parts.iter().zip(bounds) {
        assert!(part.time < bound, "{}: {:?}, at most {bound:?}\n{parts:#?}", part.name, part.time);
    }
}
