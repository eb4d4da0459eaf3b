//! The node agent: makes the tunnels that are wanted real on one host, and moves their packets.

pub mod packet;
