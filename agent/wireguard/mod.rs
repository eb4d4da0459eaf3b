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

/// Why nothing came of a datagram. Nothing has changed then.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Of no type of the protocol, or not as long as its type is.
    #[error("no message of the protocol")]
    Malformed,
    /// Not meant for this host's key, or from the wrong key: an authentication failed.
    #[error("not authentic")]
    Forged,
    /// For a session or handshake that is not there, or not any more.
    #[error("of no session")]
    NoSession,
    /// A data packet that has been here, or an initiation that is not later than the last one.
    #[error("a repetition")]
    Repeated,
    /// A data packet so far behind others that it is not known whether it has been here.
    #[error("too late")]
    TooLate,
    /// There are too many handshakes.
    #[error("too many handshakes")]
    TooMany,
}
