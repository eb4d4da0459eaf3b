//! Explicit congestion notification across a tunnel (RFC 6040).
//!
//! The two bits of a packet go to the header outside, and what routers marked there comes back to the packet.

use super::checksum;
use super::parse::Packet;

/// The field in the TOS byte or traffic class (RFC 3168 section 5).
const MASK: u8 = 0b11;
const NOT_CAPABLE: u8 = 0b00;
const CAPABLE_1: u8 = 0b01;
const CAPABLE_0: u8 = 0b10;
const CONGESTED: u8 = 0b11;

/// A packet that was marked outside and whose sender could not be told: it is to be dropped, which tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("marked as congested, and not capable of being told")]
pub struct Congested;

/// What the header outside is to say of a packet.
pub fn of(packet: &Packet<'_>) -> u8 {
    class(packet.bytes(), packet.is_v4()) & MASK
}

/// Gives a packet what the header outside said, whose TOS byte or traffic class was `outer`.
///
/// # Errors
/// [`Congested`]; the packet is unchanged.
pub fn decapsulate(bytes: &mut [u8], is_v4: bool, outer: u8) -> Result<(), Congested> {
    let inner = class(bytes, is_v4) & MASK;
    let new = match (inner, outer & MASK) {
        (NOT_CAPABLE, CONGESTED) => return Err(Congested),
        (CAPABLE_0 | CAPABLE_1, CONGESTED) => CONGESTED,
        (CAPABLE_0, CAPABLE_1) => CAPABLE_1,
        _ => return Ok(()),
    };
    if is_v4 {
        if let [first, tos, _, _, _, _, _, _, _, _, high, low, ..] = bytes {
            let old = u16::from_be_bytes([*first, *tos]);
            *tos = *tos & !MASK | new;
            let sum =
                checksum::update(u16::from_be_bytes([*high, *low]), old, u16::from_be_bytes([*first, *tos]));
            [*high, *low] = sum.to_be_bytes();
        }
    } else if let Some(second) = bytes.get_mut(1) {
        *second = *second & !(MASK << 4) | new << 4;
    }
    Ok(())
}

/// The TOS byte, or the traffic class, which lies across two bytes.
fn class(bytes: &[u8], is_v4: bool) -> u8 {
    match bytes {
        [_, tos, ..] if is_v4 => *tos,
        [first, second, ..] => first << 4 | second >> 4,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::agent::packet::sample;

    /// RFC 6040, figure 4: the inner field down, the outer across; `None`: drop.
    const DECAPSULATED: [[Option<u8>; 4]; 4] = [
        [Some(0), Some(0), Some(0), None],
        [Some(1), Some(1), Some(1), Some(3)],
        [Some(2), Some(1), Some(2), Some(3)],
        [Some(3), Some(3), Some(3), Some(3)],
    ];

    fn set(bytes: &mut [u8], is_v4: bool, field: u8) {
        if is_v4 {
            bytes[1] = bytes[1] & !MASK | field;
            let length = usize::from(bytes[0] & 0xf) * 4;
            bytes[10..12].fill(0);
            let sum = checksum::finish(checksum::sum(&bytes[..length], 0));
            bytes[10..12].copy_from_slice(&sum.to_be_bytes());
        } else {
            bytes[1] = bytes[1] & !(MASK << 4) | field << 4;
        }
    }

    proptest! {
        #[test]
        fn is_as_the_table_of_the_rfc_says(bytes in sample::packet(), dscp: u8) {
            let is_v4 = bytes[0] >> 4 == 4;
            for (inner, row) in DECAPSULATED.iter().enumerate() {
                for (outer, expected) in row.iter().enumerate() {
                    let mut packet = bytes.clone();
                    set(&mut packet, is_v4, inner as u8);
                    prop_assert_eq!(of(&Packet::parse(&packet).unwrap()), inner as u8);
                    let mut after = packet.clone();
                    let outcome = decapsulate(&mut after, is_v4, dscp & !MASK | outer as u8);
                    prop_assert_eq!(outcome.is_ok(), expected.is_some());
                    set(&mut packet, is_v4, expected.unwrap_or(inner as u8));
                    if is_v4 {
                        // Ones and zeroes are one value of a checksum.
                        let length = usize::from(after[0] & 0xf) * 4;
                        prop_assert_eq!(checksum::finish(checksum::sum(&after[..length], 0)), 0);
                        after[10..12].copy_from_slice(&packet[10..12]);
                    }
                    prop_assert_eq!(after, packet);
                }
            }
        }

        #[test]
        fn nothing_panics(mut bytes in sample::hostile(), is_v4: bool, outer: u8) {
            let _ = decapsulate(&mut bytes, is_v4, outer);
        }
    }
}
