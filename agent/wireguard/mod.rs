//! Encrypted tunnels: the WireGuard protocol ("WireGuard: Next Generation Kernel Network Tunnel", Donenfeld 2020),
//! without sockets, devices or threads.
//!
//! [`message`] tells what a datagram is, [`cookie`] decides which handshakes are worth a key exchange, and
//! [`tunnel`] keeps the sessions with one peer. Only [`cookie`] and [`tunnel`] know whose implementation it is; it reads the
//! boot clock itself.

pub mod cookie;
pub mod message;
pub mod tunnel;

use zeroize::Zeroize;

pub use message::Refused;

/// Wipes what calls that have returned have left on the stack, as far as so many words: the library moves keys and what it
/// makes of them, and a value that was moved leaves a copy where it was.
#[inline(never)]
pub fn wipe_stack<const WORDS: usize>() {
    let mut stack = [0_u64; WORDS];
    stack.zeroize();
    std::hint::black_box(&stack);
}
