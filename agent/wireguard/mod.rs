//! Encrypted tunnels: the WireGuard protocol ("WireGuard: Next Generation Kernel Network Tunnel", Donenfeld 2020),
//! without sockets, devices or threads.
//!
//! [`message`] tells what a datagram is, [`cookie`] decides which handshakes are worth a key exchange, and
//! [`tunnel`] keeps the sessions with one peer. Only [`cookie`], [`key`] and [`tunnel`] know whose implementation it is; it
//! reads the boot clock itself.

pub mod cookie;
pub mod key;
pub mod message;
pub mod tunnel;

pub use message::Refused;
