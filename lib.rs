//! tunmesh joins hosts into a mesh of UDP tunnels over tun devices: one **controller** holds the mesh that is
//! wanted, an **agent** on every host makes it real.
//!
//! # The dependency rule
//!
//! *Pure* files take time as an argument and return values. They use std's collections, [`proto`] and `tracing`;
//! no tokio, tonic, tun, file, clock or randomness (a seed is an argument). They are all of `proto/` (of which
//! only `proto/mod.rs` and `proto/convert.rs` see the generated protobuf code), and of the agent `reconcile.rs`,
//! `state.rs`, `target.rs` and `packet/`.
//!
//! `agent/runtime.rs` is the one task that owns the agent's state: it reads the clock and performs the effects.
//! `agent/datapath/` moves packets on threads of its own. `agent/os/` holds the system calls and the only unsafe
//! code. `agent` and `controller` never import each other.
//!
//! `tests/layering.rs` enforces this by reading the imports, `clippy.toml` by banning the calls.

pub mod agent;
pub mod controller;
pub mod proto;
