//! A laboratory of network namespaces: hosts, links, agents and traffic, for tests that need a real kernel.
//!
//! It needs root, iproute2, iputils-ping and grpcurl; `scripts/test` installs what is missing. A [`Lab`] removes
//! its namespaces when it is dropped, and what a killed run left behind when it is made.

#![allow(dead_code, unused_imports, reason = "each test binary uses its own part of the laboratory")]
#![allow(unreachable_pub, reason = "a module of a test binary has no outside")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a laboratory that fails ends its test")]
#![allow(clippy::print_stderr, reason = "a failing test shows the agents' logs")]
#![allow(clippy::disallowed_methods, reason = "real processes are waited for in real time")]

mod actual;
mod agent;
mod capture;
mod controller;
mod daemon;
mod disk;
mod early;
mod faked;
mod flow;
mod hosts;
mod initiations;
mod kernel;
mod memory;
mod names;
mod pair;
mod peer2015;
mod probed;
mod reach;
mod relay;
mod relayed;
mod scripted;
pub mod secrets;
mod segment;
mod site;
mod tools;
mod traffic;
mod way;
mod wireguard;

use std::thread;
use std::time::{Duration, Instant};

pub use actual::actual;
pub use agent::{AGENT, Agent};
pub use capture::Capture;
pub use controller::{CONTROLLER, Controller, UNDERLAYS};
pub use daemon::{Daemon, StartError, copy_files};
pub use disk::Disk;
pub use early::Early;
pub use faked::faked;
pub use flow::Flow;
pub use hosts::{Failed, Family, Host, Lab, ThreeHosts};
pub use initiations::{Initiations, SOURCES};
pub use kernel::{refusing_merged_to, refusing_trains_to};
pub use memory::Memory;
pub use names::Names;
pub use pair::{tunnels_of_every_kind, two_hosts};
pub use peer2015::Peer2015;
pub use probed::{Probed, add_probed, since, tunnel_status};
pub use reach::all_reach;
pub use relay::{Faults, Passed, Relay};
pub use relayed::Relayed;
pub use scripted::{Scripted, Talk};
pub use segment::{Segment, node_name, wait_live};
pub use site::{DIALLED, MESH, Site, code, trouble, wait_trouble};
pub use tools::{
    GrpcError, OF_GRPC, as_member, as_outsider, grpcurl, grpcurl_at, grpcurl_from, grpcurl_path, legacy_add,
    legacy_send, methods, number,
};
pub use traffic::{PingReport, Pinger, datagrams, ping, ping_ok, transfer, try_transfer};
pub use way::{Way, time};
pub use wireguard::{WgQuick, WireguardGo};

/// What an ordinary step may take on a busy machine.
pub const SOON: Duration = Duration::from_secs(10);

/// Waits until `condition` holds; panics when `deadline` has passed without `what`.
pub fn wait_until(deadline: Duration, what: &str, condition: impl FnMut() -> bool) {
    assert!(holds_within(deadline, condition), "not within {deadline:?}: {what}");
}

/// Whether `condition` comes to hold within `deadline`.
pub fn holds_within(deadline: Duration, mut condition: impl FnMut() -> bool) -> bool {
    /// Short beside every deadline, long beside what a look costs.
    const PAUSE: Duration = Duration::from_millis(20);
    let start = Instant::now();
    loop {
        if condition() {
            return true;
        }
        if start.elapsed() > deadline {
            return false;
        }
        thread::sleep(PAUSE);
    }
}
