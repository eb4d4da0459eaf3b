//! ICMP answers to a packet that cannot go on.
//!
//! An answer is a whole IP packet that says it is from the refused packet's destination: a host takes a packet from
//! its own address that arrives on a tun device for a forgery.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::parse::{DONT_FRAGMENT, Packet};
use super::{checksum, header, protocol};

const HOP_LIMIT: u8 = 64;
/// The length in bytes of a message's header.
pub(super) const ICMP_HEADER: usize = 8;
/// The most of a packet that is quoted: the answer is then 576 bytes (RFC 1812 section 4.3.2.3).
const V4_QUOTE: usize = 576 - header::V4 - ICMP_HEADER;
/// The most of a packet that is quoted: the answer is then the least IPv6 MTU, 1280 bytes (RFC 4443 section 2.4 c).
const V6_QUOTE: usize = 1280 - header::V6 - ICMP_HEADER;

/// Says that only packets of at most `mtu` bytes can go on: "fragmentation needed" with the MTU (RFC 1191) for IPv4,
/// "packet too big" for IPv6.
///
/// None where no answer is allowed (RFC 1122 section 3.2.2, RFC 4443 section 2.4 e): to an ICMP error or redirect, to
/// a later fragment, to a packet whose protocol cannot be told, and where source or destination is not one host's
/// address. A subnet's broadcast address is not recognised, for the packet does not tell its prefix length.
pub fn too_big(packet: &Packet<'_>, mtu: u16) -> Option<Vec<u8>> {
    let [high, low] = mtu.to_be_bytes();
    let (kind, code) = if packet.is_v4() { (3, 4) } else { (2, 0) };
    answer(packet, [kind, code, 0, 0, 0, 0, high, low])
}

/// Says that the destination is not there: "host unreachable" for IPv4, "no route to destination" for IPv6.
///
/// None where [`too_big`] has none.
pub fn unreachable(packet: &Packet<'_>) -> Option<Vec<u8>> {
    let (kind, code) = if packet.is_v4() { (3, 1) } else { (1, 0) };
    answer(packet, [kind, code, 0, 0, 0, 0, 0, 0])
}

/// `message` is the ICMP header without its checksum.
fn answer(packet: &Packet<'_>, message: [u8; ICMP_HEADER]) -> Option<Vec<u8>> {
    if !may_be_answered(packet) {
        return None;
    }
    match (packet.destination(), packet.source()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => Some(message_v4(packet.bytes(), message, from, to)),
        (IpAddr::V6(from), IpAddr::V6(to)) => Some(message_v6(packet.bytes(), message, from, to)),
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => None,
    }
}

/// A message with as much of `body` as it may quote; `message` is its header without the checksum.
pub(super) fn message_v4(body: &[u8], message: [u8; ICMP_HEADER], from: Ipv4Addr, to: Ipv4Addr) -> Vec<u8> {
    let quote = &body[..body.len().min(V4_QUOTE)];
    let length = ((header::V4 + ICMP_HEADER + quote.len()) as u16).to_be_bytes();
    let mut header = [0; header::V4];
    header[0] = 0x45;
    header[2..4].copy_from_slice(&length);
    // Of a packet that is never fragmented the identification means nothing and is zero (RFC 6864).
    header[6..8].copy_from_slice(&DONT_FRAGMENT.to_be_bytes());
    header[8] = HOP_LIMIT;
    header[9] = protocol::ICMPV4;
    header[12..16].copy_from_slice(&from.octets());
    header[16..20].copy_from_slice(&to.octets());
    let header_checksum = checksum::finish(checksum::sum(&header, 0));
    header[10..12].copy_from_slice(&header_checksum.to_be_bytes());
    assemble(&header, message, quote, 0)
}

/// The same of IPv6.
pub(super) fn message_v6(body: &[u8], message: [u8; ICMP_HEADER], from: Ipv6Addr, to: Ipv6Addr) -> Vec<u8> {
    let quote = &body[..body.len().min(V6_QUOTE)];
    let length = (ICMP_HEADER + quote.len()) as u16;
    let mut header = [0; header::V6];
    header[0] = 0x60;
    header[4..6].copy_from_slice(&length.to_be_bytes());
    header[6] = protocol::ICMPV6;
    header[7] = HOP_LIMIT;
    header[8..24].copy_from_slice(&from.octets());
    header[24..40].copy_from_slice(&to.octets());
    let seed = checksum::pseudo_header(from.into(), to.into(), protocol::ICMPV6, length.into());
    assemble(&header, message, quote, seed)
}

/// The answer of its parts; `seed` is the sum of the pseudo-header, if the checksum covers one.
fn assemble(header: &[u8], mut message: [u8; ICMP_HEADER], quote: &[u8], seed: u64) -> Vec<u8> {
    let message_checksum = checksum::finish(checksum::sum(quote, checksum::sum(&message, seed)));
    message[2..4].copy_from_slice(&message_checksum.to_be_bytes());
    [header, &message, quote].concat()
}

fn may_be_answered(packet: &Packet<'_>) -> bool {
    let Some((number, offset)) = packet.transport() else { return false };
    let kind = packet.bytes().get(offset).copied();
    let is_error = match (packet.is_v4(), number) {
        // Destination unreachable, source quench, redirect, time exceeded, parameter problem.
        (true, protocol::ICMPV4) => matches!(kind, None | Some(3 | 4 | 5 | 11 | 12)),
        // All below 128, and redirect.
        (false, protocol::ICMPV6) => matches!(kind, None | Some(0..=127 | 137)),
        _ => false,
    };
    !is_error && is_one_host(packet.source()) && is_one_host(packet.destination())
}

/// Whether an address stands for a single host that is not this one.
fn is_one_host(address: IpAddr) -> bool {
    match address {
        // 0/8 is "this host", 127/8 loopback, 224/4 multicast, 240/4 reserved and broadcast.
        IpAddr::V4(v4) => !matches!(v4.octets()[0], 0 | 127 | 224..=255),
        IpAddr::V6(v6) => !(v6.is_unspecified() || v6.is_loopback() || v6.is_multicast()),
    }
}

#[cfg(test)]
mod tests;
