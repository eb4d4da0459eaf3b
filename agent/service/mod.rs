//! The ways in: TunnelService over gRPC, and the legacy control port. Each turns its wire into commands.

pub mod callers;
pub mod controller;
pub mod legacy;
pub mod listen;
pub mod local;
