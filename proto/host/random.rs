//! Randomness of the host.

use std::io;

use rustix::rand::{GetRandomFlags, getrandom};

/// 128 random bits.
///
/// # Errors
/// Where the kernel has none, `getrandom(2)`.
pub fn bits() -> io::Result<u128> {
    let mut bytes = [0; 16];
    // A read of up to 256 bytes is whole.
    getrandom(&mut bytes, GetRandomFlags::empty())?;
    Ok(u128::from_ne_bytes(bytes))
}
