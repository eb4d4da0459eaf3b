//! tunmesh joins hosts into a mesh of UDP tunnels over tun devices: one **controller** holds the mesh that is
//! wanted, an **agent** on every host makes it real.
//!
//! # The dependency rule
//!
//! *Pure* files take time as an argument and return values. They use std's collections, [`proto`] and `tracing`;
//! no tokio, tonic, tun, file, clock or randomness (a seed is an argument). They are all of `proto/` but
//! `proto/host/` (only `proto/mod.rs` and `proto/convert/` see the generated protobuf code), of the agent
//! `reconcile.rs`, `session.rs`, `state.rs`, `target.rs`, `packet/` and `wireguard/message.rs`, and of the controller
//! `mesh.rs`, `alloc.rs`, `plan.rs`, `registry.rs` and `state.rs`.
//!
//! `agent/runtime.rs` and `controller/runtime.rs` are the one task that owns the state: they read the clock and
//! perform the effects.
//! `agent/datapath/` moves packets on threads of its own. `agent/os/` holds the system calls and the only unsafe
//! code. `agent` and `controller` never import each other; what both do
//! with the host that they run on is in `proto/host/`.
//!
//! `tests/layering.rs` enforces this by reading the imports, `clippy.toml` by banning the calls.

pub mod agent;
pub mod controller;
pub mod proto;
