//! MSS clamping: the largest TCP segment that two hosts agree on is lowered to what the tunnel between them carries.

use super::parse::Packet;
use super::{checksum, header, protocol};

/// Bytes of an IPv4 and a TCP header without options: an MSS leaves out no more than these (RFC 6691).
const V4_HEADERS: u16 = 40;
/// Bytes of an IPv6 and a TCP header.
const V6_HEADERS: u16 = 60;

const OPTION_END: u8 = 0;
const OPTION_NOP: u8 = 1;
const OPTION_MSS: u8 = 2;

/// Lowers the MSS option of a TCP SYN or SYN-ACK to what `mtu` carries: `mtu` − 40 for IPv4, − 60 for IPv6, at least 1.
/// Returns whether the packet changed.
///
/// `mtu` is the largest IP packet in bytes. The MSS is never raised and the option never added. The TCP checksum is
/// updated, not made anew: a wrong one stays wrong, so a checksum left to offload must be completed before. An option
/// of malformed length ends the options, as it does for the host that receives them.
pub fn clamp(packet: &mut [u8], mtu: u16) -> bool {
    let Some(Syn { header, options, is_v4 }) = syn(packet) else { return false };
    let limit = mtu.saturating_sub(if is_v4 { V4_HEADERS } else { V6_HEADERS }).max(1);
    let mut changed = false;
    let mut at = 0;
    while let Some(&kind) = options.get(at)
        && kind != OPTION_END
    {
        if kind == OPTION_NOP {
            at += 1;
            continue;
        }
        let length = options.get(at + 1).map_or(0, |length| usize::from(*length));
        let Some(option) = options.get_mut(at..at + length).filter(|option| option.len() >= 2) else { break };
        if let [OPTION_MSS, _, high, low] = option {
            let old = u16::from_be_bytes([*high, *low]);
            if old > limit {
                [*high, *low] = limit.to_be_bytes();
                // At an odd offset the value lies across two words: each byte counts as the other half of a word.
                let swap = |value: u16| if at.is_multiple_of(2) { value } else { value.swap_bytes() };
                let sum = u16::from_be_bytes([header[16], header[17]]);
                [header[16], header[17]] = checksum::update(sum, swap(old), swap(limit)).to_be_bytes();
                changed = true;
            }
        }
        at += length;
    }
    changed
}

/// A TCP segment that opens a connection.
struct Syn<'a> {
    header: &'a mut [u8; header::TCP],
    /// Begin at an even offset of the segment.
    options: &'a mut [u8],
    is_v4: bool,
}

/// The SYN or SYN-ACK in `packet`, if it is one whose whole TCP header is there.
fn syn(packet: &mut [u8]) -> Option<Syn<'_>> {
    let parsed = Packet::parse(packet).ok()?;
    let (protocol::TCP, start) = parsed.transport()? else { return None };
    let (is_v4, end) = (parsed.is_v4(), parsed.bytes().len());
    let (header, rest) = packet.get_mut(start..end)?.split_first_chunk_mut::<{ header::TCP }>()?;
    let options = usize::from(header[12] >> 4) * 4;
    let options = rest.get_mut(..options.checked_sub(header::TCP)?)?;
    (header[13] & header::SYN != 0).then_some(Syn { header, options, is_v4 })
}

#[cfg(test)]
mod tests;
