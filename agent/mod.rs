//! The node agent: makes the tunnels that are wanted real on one host, and moves their packets.

pub mod check;
pub mod cli;
pub mod config;
pub mod credentials;
pub mod daemon;
pub mod datapath;
pub mod examine;
pub mod keys;
pub mod link;
pub mod metrics;
pub mod operators;
pub mod os;
pub mod packet;
pub mod platform;
pub mod reconcile;
pub mod runtime;
pub mod service;
pub mod session;
pub mod state;
pub mod store;
pub mod target;
pub mod wireguard;
