//! The real state machines of agents and controller in a simulated world, in which everything goes wrong that can:
//! links, processes, disks, operators, and the clock that only this world has. One seed is one run.
//!
//! A run that fails prints its seed and what happened last; `TUNMESH_SIM_SEED=… cargo test --test sim` runs that one
//! again and prints all of it. `TUNMESH_SIM_RUNS=…` is the number of runs, by default 10,000; with `TUNMESH_SIM_ALL=1`
//! all seeds that fail are named.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a fault ends the run")]
#![allow(clippy::wildcard_enum_match_arm, reason = "a world looks at what it needs")]
#![allow(unreachable_pub, dead_code, reason = "modules of a test binary have no outside")]
#![allow(clippy::print_stderr, reason = "a failure is shown")]

mod check;
mod disk;
mod env;
#[path = "../../agent/state/tests/kernel.rs"]
mod kernel;
mod machine;
mod network;
mod operator;
mod random;
mod search;
mod server;
mod trace;
mod world;

// The simulated kernel is that of the agent's own tests, and names its crate so.
use tunmesh::{agent, proto};

use crate::env::Plant;
use crate::search::{find, runs, single};

#[test]
fn whatever_happens_all_becomes_as_it_is_wanted() {
    if let Some(seed) = single() {
        search::show(seed, None);
        return;
    }
    if let Some(failure) = find(runs(10_000), None) {
        panic!("{failure}");
    }
}

/// A fault that is put into the shells must be found.
fn is_found(plant: Plant, words: &str) {
    let failure = find(runs(5000), Some(plant)).unwrap_or_else(|| panic!("{plant:?} is not found"));
    eprintln!("{plant:?} is found with seed {}: {}", failure.seed, failure.problem);
    assert!(failure.problem.contains(words), "{failure}");
}

#[test]
fn finds_a_missing_fence() {
    is_found(Plant::NoFence, "");
}

#[test]
fn finds_an_acknowledgement_before_the_write() {
    is_found(Plant::EarlyAck, "acknowledged");
}

#[test]
fn finds_a_delta_on_the_wrong_base() {
    is_found(Plant::WrongBase, "");
}

#[test]
fn finds_a_lost_dirty_flag() {
    is_found(Plant::LostDirtyFlag, "not within");
}

#[test]
fn finds_the_pruning_of_a_local_tunnel() {
    is_found(Plant::PrunesLocal, "lost its local tunnel");
}
