//! The Internet checksum (RFC 1071): a one's complement sum of 16-bit big-endian words.
//!
//! A checksum is built in steps: [`pseudo_header`] and [`sum`] give sums not yet folded, to be added or handed on as a
//! seed; [`finish`] makes the field's value of them. A block whose checksum field is included and right sums to a
//! [`finish`] of zero.

use std::net::IpAddr;

/// From this length on the wide registers pay.
const WIDE: usize = 128;

/// Adds `bytes` to `seed`, a sum of this module; an odd last byte is padded with a zero.
///
/// Of several blocks in a row all but the last must have an even length. Only the folded value has a meaning.
pub fn sum(bytes: &[u8], seed: u64) -> u64 {
    // The sum does not depend on byte order but for a swap of the result (RFC 1071, 2(B)).
    seed + u64::from(fold(words(bytes)).to_be())
}

/// The sum of 32-bit words in the host's byte order: it depends on the words' width as little (RFC 1071, 2(C)), as long
/// as no carry is lost. 2³² of them fit a u64.
#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code, reason = "whether the processor has the registers is known when it runs")]
fn words(bytes: &[u8]) -> u64 {
    if bytes.len() >= WIDE && is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has AVX2.
        return unsafe { wide(bytes) };
    }
    narrow(bytes)
}

#[cfg(not(target_arch = "x86_64"))]
fn words(bytes: &[u8]) -> u64 {
    narrow(bytes)
}

/// The same as [`narrow`], eight words at a time.
#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code, reason = "loads into wide registers take pointers")]
#[target_feature(enable = "avx2")]
fn wide(bytes: &[u8]) -> u64 {
    use std::arch::x86_64::{
        __m256i, _mm256_add_epi64, _mm256_and_si256, _mm256_extract_epi64, _mm256_loadu_si256,
        _mm256_set1_epi64x, _mm256_setzero_si256, _mm256_srli_epi64,
    };
    /// One register.
    const WIDTH: usize = size_of::<__m256i>();
    let even = _mm256_set1_epi64x(u32::MAX.into());
    let load = |register: &[u8; WIDTH]| {
        // SAFETY: as many bytes are read as the array has, at any alignment.
        unsafe { _mm256_loadu_si256(register.as_ptr().cast::<__m256i>()) }
    };
    // Even and odd words apart, and two of each, so that no addition waits for the one before.
    let mut sums = [_mm256_setzero_si256(); 4];
    let (blocks, rest) = bytes.as_chunks::<{ 2 * WIDTH }>();
    for block in blocks {
        if let ([first, second], []) = block.as_chunks::<WIDTH>() {
            let (first, second) = (load(first), load(second));
            sums[0] = _mm256_add_epi64(sums[0], _mm256_and_si256(first, even));
            sums[1] = _mm256_add_epi64(sums[1], _mm256_srli_epi64(first, 32));
            sums[2] = _mm256_add_epi64(sums[2], _mm256_and_si256(second, even));
            sums[3] = _mm256_add_epi64(sums[3], _mm256_srli_epi64(second, 32));
        }
    }
    let sum = _mm256_add_epi64(_mm256_add_epi64(sums[0], sums[1]), _mm256_add_epi64(sums[2], sums[3]));
    let lanes = [
        _mm256_extract_epi64::<0>(sum),
        _mm256_extract_epi64::<1>(sum),
        _mm256_extract_epi64::<2>(sum),
        _mm256_extract_epi64::<3>(sum),
    ];
    lanes.iter().map(|lane| lane.cast_unsigned()).sum::<u64>() + narrow(rest)
}

fn narrow(bytes: &[u8]) -> u64 {
    let (words, tail) = bytes.as_chunks::<4>();
    let mut last = [0; 4];
    last.iter_mut().zip(tail).for_each(|(to, from)| *to = *from);
    let words = words.iter().chain(std::iter::once(&last));
    words.map(|word| u64::from(u32::from_ne_bytes(*word))).sum()
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

#[cfg(test)]
mod tests {
    use etherparse::{IpSlice, ip_number};
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::agent::packet::sample;

    /// Word by word, carry by carry.
    fn naive(bytes: &[u8]) -> u16 {
        bytes.chunks(2).fold(0u16, |sum, word| {
            let word = u16::from_be_bytes([word[0], word.get(1).copied().unwrap_or(0)]);
            let (sum, carry) = sum.overflowing_add(word);
            sum + u16::from(carry)
        })
    }

    #[test]
    fn examples_of_the_rfcs() {
        let words = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(fold(sum(&words, 0)), 0xddf2);
        assert_eq!(finish(sum(&words, 0)), 0x220d);
        assert_eq!(update(0xdd2f, 0x5555, 0x3285), 0x0000);
    }

    #[test]
    fn the_longest_run_of_the_largest_words_loses_no_carry() {
        assert_eq!(fold(sum(&[0xff; 65535], 0)), naive(&[0xff; 65535]));
        assert_eq!(fold(u64::MAX), 0xffff);
        assert_eq!(fold(0), 0);
    }

    proptest! {
        #[test]
        fn sums_as_word_by_word(bytes in vec(any::<u8>(), 0..300)) {
            prop_assert_eq!(fold(sum(&bytes, 0)), naive(&bytes));
        }

        #[test]
        fn wide_registers_change_nothing(bytes in vec(any::<u8>(), 0..5000), from in 0..70usize) {
            // At any length and alignment.
            let bytes = bytes.get(from..).unwrap_or_default();
            prop_assert_eq!(fold(words(bytes)), fold(narrow(bytes)));
            prop_assert_eq!(fold(sum(bytes, 0)), naive(bytes));
        }

        #[test]
        fn a_seed_continues_a_block(bytes in vec(any::<u8>(), 0..300), words in 0..150usize) {
            let (head, tail) = bytes.split_at((words * 2).min(bytes.len() / 2 * 2));
            prop_assert_eq!(fold(sum(tail, sum(head, 0))), naive(&bytes));
        }

        #[test]
        fn packets_of_another_builder_sum_to_zero(bytes in sample::packet()) {
            let ip = IpSlice::from_slice(&bytes).unwrap();
            let payload = ip.payload();
            let (source, destination) = (ip.source_addr(), ip.destination_addr());
            let seed = if payload.ip_number == ip_number::ICMP {
                0
            } else {
                pseudo_header(source, destination, payload.ip_number.0, payload.payload.len() as u32)
            };
            prop_assert_eq!(finish(sum(payload.payload, seed)), 0);
            if let Some(v4) = ip.ipv4() {
                prop_assert_eq!(finish(sum(v4.header().slice(), 0)), 0);
            }
        }

        #[test]
        fn an_update_is_as_good_as_a_new_sum(
            mut bytes in vec(any::<u8>(), 4..300), at in any::<prop::sample::Index>(), new: u16,
        ) {
            let before = finish(sum(&bytes, 0));
            let at = at.index(bytes.len() - 1);
            let old = u16::from_be_bytes([bytes[at], bytes[at + 1]]);
            bytes[at..at + 2].copy_from_slice(&new.to_be_bytes());
            let after = if at % 2 == 0 {
                update(before, old, new)
            } else {
                update(before, old.swap_bytes(), new.swap_bytes())
            };
            prop_assert_eq!(finish(sum(&bytes, after.into())), 0);
        }
    }
}
