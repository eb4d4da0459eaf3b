//! Fragmentation of IPv4 packets whose DF is clear (RFC 791 section 3.2).

use super::checksum;
use super::parse::{FRAGMENT_OFFSET, MORE_FRAGMENTS, Packet};

/// The least MTU of an IPv4 link: the longest header, and eight bytes of payload (RFC 791).
const LEAST_MTU: u16 = 68;

const FIXED_HEADER: usize = 20;
const OPTION_END: u8 = 0;
const OPTION_NOP: u8 = 1;
/// The bit of an option's type that says it belongs on every fragment.
const OPTION_COPIED: u8 = 0x80;

/// The fragments of `packet` of at most `mtu` bytes each, in order; a packet that fits is its only fragment.
///
/// `mtu` is at least 68; less is taken as 68. The packet may itself be a fragment. None for a packet that must not be
/// fragmented (DF set, or IPv6) and for one that reaches beyond the 65535 bytes of a datagram.
pub fn fragments(packet: &Packet<'_>, mtu: u16) -> Vec<Vec<u8>> {
    let mtu = usize::from(mtu.max(LEAST_MTU));
    let (header, mut rest) = packet.bytes().split_at(packet.header_length());
    let mut offset = usize::from(packet.fragment_field() & FRAGMENT_OFFSET) * 8;
    if packet.dont_fragment() || offset + rest.len() > usize::from(u16::MAX) {
        return Vec::new();
    }
    if packet.bytes().len() <= mtu {
        return vec![packet.bytes().to_vec()];
    }

    let more_behind = packet.fragment_field() & MORE_FRAGMENTS;
    let later_header = later_header(header);
    let mut header = header;
    let mut fragments = Vec::new();
    loop {
        let room = mtu - header.len();
        if rest.len() <= room {
            fragments.push(fragment(header, rest, offset, more_behind));
            return fragments;
        }
        let (payload, tail) = rest.split_at(room / 8 * 8);
        fragments.push(fragment(header, payload, offset, MORE_FRAGMENTS));
        offset += payload.len();
        rest = tail;
        header = &later_header;
    }
}

/// `offset` is in bytes, a multiple of eight below 65536; `more` is `MORE_FRAGMENTS` or zero.
fn fragment(header: &[u8], payload: &[u8], offset: usize, more: u16) -> Vec<u8> {
    let mut bytes = [header, payload].concat();
    let length = bytes.len() as u16;
    let field = (offset / 8) as u16 | more;
    bytes[0] = 0x40 | (header.len() / 4) as u8;
    bytes[2..4].copy_from_slice(&length.to_be_bytes());
    bytes[6..8].copy_from_slice(&field.to_be_bytes());
    bytes[10..12].fill(0);
    let header_checksum = checksum::finish(checksum::sum(&bytes[..header.len()], 0));
    bytes[10..12].copy_from_slice(&header_checksum.to_be_bytes());
    bytes
}

/// The header of all fragments but the first: of the options only those to be copied, padded to a multiple of four.
///
/// An option of malformed length ends the options.
fn later_header(header: &[u8]) -> Vec<u8> {
    let (fixed, mut options) = header.split_at(FIXED_HEADER);
    let mut later = fixed.to_vec();
    while let [kind, tail @ ..] = options
        && *kind != OPTION_END
    {
        if *kind == OPTION_NOP {
            options = tail;
            continue;
        }
        let length = tail.first().map_or(0, |length| usize::from(*length));
        let Some((option, behind)) = options.split_at_checked(length).filter(|_| length >= 2) else {
            break;
        };
        if kind & OPTION_COPIED != 0 {
            later.extend_from_slice(option);
        }
        options = behind;
    }
    later.resize(later.len().next_multiple_of(4), OPTION_END);
    later
}

#[cfg(test)]
mod tests;
