//! What agents and operators call: convert, ask the controller, convert back.

pub mod admin;
pub mod callers;
pub mod control;
pub mod enrolment;
pub mod listen;

use std::time::Duration;

/// What does not change while the controller runs.
#[derive(Debug, Clone)]
pub struct Facts {
    /// When it started, as time since the Unix epoch.
    pub started: Duration,
    /// Where agents dial.
    pub listen: Vec<String>,
    /// Where the store is.
    pub store: String,
    /// Weaker settings that were asked for by name.
    pub weakened: Vec<String>,
}

#[cfg(test)]
mod tests;
