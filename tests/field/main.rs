//! Kinds of fault that hurt users of comparable systems, each as a test on real devices, by its number.
//!
//! - 01 a path that loses large packets and says so to nobody
//! - 02 a route that leads a tunnel into itself
//! - 03 what a killed agent left in the kernel
//! - 04 a device name that is taken after a restart
//! - 05 names that are longer than those of devices
//! - 06 one address given to two hosts
//! - 07 a copied identity
//! - 08 a control stream that is dead and looks alive
//! - 09 trouble of the controller that reaches the tunnels
//! - 10 a start while the controller is away
//! - 11 many agents that come at once
//! - 12 a database that is locked, or has a bad row
//! - 13 a peer whose address changes
//! - 14 loss in one direction
//! - 15 a device that others take down
//! - 16 an underlay that cannot be reached for a while
//! - 17 addresses and routes that others change
//! - 18 packets out of order, and kernels that take none that are many
//! - 19 clocks that are off
//! - 20 a host without the tun device or the capability
//!
//! Of some of them a part is not here, most of it since it needs more than one controller on one machine:
//!
//! - 06, 10: epochs that fence between several controllers, and a start with one that never saw the node: a store is of
//!   one controller.
//! - 07: a copy that starts while no controller is there to hold it off: it has the keys of the first, and peers send to
//!   whichever of both they heard last.
//! - 09: a rolling restart of several controllers: the same.
//! - 11: agents on hosts of their own: here all of them and the controller share the processors of one machine.
//! - 12: a store that several processes write to: nobody but the controller writes to a file, others lock it at most.
//! - 18: what a network card does by itself with segments: the cables of namespaces are software.
//! - 19: a machine that sleeps: the clock that counts on through it cannot be made to jump here.
//! - 20: a capability that a running process loses: the kernel takes none away from outside.
//! - Of all: agents and controllers of two releases beside one another for days: there is one release.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a fault ends the test")]

mod clocks;
mod endpoints;
#[path = "../lab/fleet/mod.rs"]
mod fleet;
mod herd;
mod identity;
mod kernel;
#[path = "../lab/mod.rs"]
mod lab;
mod links;
mod names;
mod outage;
mod paths;
mod preflight;
mod restart;
mod routes;
mod store;
mod throughput;
