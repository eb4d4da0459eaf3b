//! The Internet checksum (RFC 1071): a one's complement sum of 16-bit big-endian words.
//!
//! A checksum is built in steps: [`pseudo_header`] and [`sum`] give sums not yet folded, to be added or handed on as a
//! seed; [`finish`] makes the field's value of them. A block whose checksum field is included and right sums to a
//! [`finish`] of zero.

use std::net::IpAddr;

/// Adds `bytes` to `seed`, a sum of this module; an odd last byte is padded with a zero.
///
/// Of several blocks in a row all but the last must have an even length. Only the folded value has a meaning.
pub fn sum(bytes: &[u8], seed: u64) -> u64 {
    // The sum does not depend on byte order but for a swap of the result (RFC 1071, 2(B)), nor on the words' width as
    // long as carries are kept: 2³² words of 32 bits fit a u64.
    let (words, tail) = bytes.as_chunks::<4>();
    let words: u64 = words.iter().map(|word| u64::from(u32::from_ne_bytes(*word))).sum();
    let mut last = [0; 4];
    last.iter_mut().zip(tail).for_each(|(to, from)| *to = *from);
    seed + u64::from(fold(words + u64::from(u32::from_ne_bytes(last))).to_be())
}

/// The 16-bit one's complement value of a sum.
pub fn fold(mut sum: u64) -> u16 {
    loop {
        match u16::try_from(sum) {
            Ok(folded) => return folded,
            Err(_) => sum = (sum & 0xffff) + (sum >> 16),
        }
    }
}

/// The value of a checksum field: the complement of the folded sum.
pub fn finish(sum: u64) -> u16 {
    !fold(sum)
}

/// The sum of the pseudo-header of TCP, UDP and ICMPv6 (RFC 9293 section 3.1, RFC 8200 section 8.1).
///
/// `length` is that of the transport header and its payload, in bytes.
pub fn pseudo_header(source: IpAddr, destination: IpAddr, protocol: u8, length: u32) -> u64 {
    let addresses = address(destination, address(source, 0));
    addresses + u64::from(protocol) + u64::from(length)
}

fn address(address: IpAddr, seed: u64) -> u64 {
    match address {
        IpAddr::V4(v4) => sum(&v4.octets(), seed),
        IpAddr::V6(v6) => sum(&v6.octets(), seed),
    }
}

/// The checksum after one 16-bit word that it covers went from `old` to `new` (RFC 1624, equation 3).
///
/// For a value at an odd offset swap the bytes of both.
pub fn update(checksum: u16, old: u16, new: u16) -> u16 {
    finish(u64::from(!checksum) + u64::from(!old) + u64::from(new))
}
