//! The controller: holds the mesh that is wanted, and brings it to the agents.

pub mod alloc;
pub mod audit;
pub mod cli;
pub mod config;
pub mod credentials;
pub mod daemon;
pub mod diagnosis;
pub mod mesh;
pub mod metrics;
pub mod pki;
pub mod plan;
pub mod registry;
pub mod runtime;
pub mod service;
pub mod state;
pub mod store;
pub mod stored;
pub mod trust;
