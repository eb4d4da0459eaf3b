//! Kinds of fault that hurt users of comparable systems, each as a test on real devices, by its number.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a fault ends the test")]

mod endpoints;
mod kernel;
#[path = "../lab/mod.rs"]
mod lab;
mod links;
mod paths;
