//! The controller: holds the mesh that is wanted, and the operator's commands.

pub mod cli;
