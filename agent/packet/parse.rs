//! The IP header, checked once.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{header, protocol};

/// The most IPv6 extension headers looked through: RFC 8200 names four kinds, one of which may come twice.
const EXTENSION_HEADERS_BOUND: usize = 8;

/// Bits of the 16-bit IPv4 field of flags and fragment offset (RFC 791).
pub(super) const DONT_FRAGMENT: u16 = 0x4000;
pub(super) const MORE_FRAGMENTS: u16 = 0x2000;
pub(super) const FRAGMENT_OFFSET: u16 = 0x1fff;

/// A whole IP packet, its header checked against its bytes, so that everything after can index it.
///
/// The IPv4 header checksum is not verified: the kernel does that on delivery.
#[derive(Debug, Clone, Copy)]
pub struct Packet<'a> {
    bytes: &'a [u8],
    source: IpAddr,
    destination: IpAddr,
    /// In bytes, IPv4 options included, IPv6 extension headers not.
    header_length: usize,
    /// IPv4: flags and fragment offset. IPv6: `DONT_FRAGMENT`, for no router may fragment it.
    fragment_field: u16,
}

/// Why bytes are not an IP packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// There are no bytes.
    #[error("no bytes")]
    Empty,
    /// The version is neither 4 nor 6.
    #[error("neither IPv4 nor IPv6")]
    Version,
    /// The bytes end inside the header.
    #[error("header cut short")]
    HeaderTruncated,
    /// The IPv4 header length is below 20 bytes.
    #[error("header length below 20 bytes")]
    HeaderLength,
    /// The packet's own length is more than there are bytes, or less than its header.
    #[error("length does not match the bytes")]
    LengthMismatch,
}

/// Where the walk through a packet's headers ended.
enum Upper {
    Transport(u8, usize),
    LaterFragment,
    Unfit,
}

impl<'a> Packet<'a> {
    /// Checks the header. Bytes behind the packet's own length are cut off (padding).
    ///
    /// An IPv6 payload length of zero (a jumbogram, RFC 2675) makes a packet of 40 bytes.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let Some(first) = bytes.first() else { return Err(Malformed::Empty) };
        match first >> 4 {
            4 => Self::parse_v4(bytes),
            6 => Self::parse_v6(bytes),
            _ => Err(Malformed::Version),
        }
    }

    fn parse_v4(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let Some(header) = bytes.first_chunk::<{ header::V4 }>() else {
            return Err(Malformed::HeaderTruncated);
        };
        let &[first, _, l0, l1, _, _, f0, f1, _, _, _, _, s0, s1, s2, s3, d0, d1, d2, d3] = header;
        let header_length = usize::from(first & 0xf) * 4;
        if header_length < header::V4 {
            return Err(Malformed::HeaderLength);
        }
        if header_length > bytes.len() {
            return Err(Malformed::HeaderTruncated);
        }
        Ok(Self {
            bytes: cut(bytes, header_length, usize::from(u16::from_be_bytes([l0, l1])))?,
            source: Ipv4Addr::new(s0, s1, s2, s3).into(),
            destination: Ipv4Addr::new(d0, d1, d2, d3).into(),
            header_length,
            fragment_field: u16::from_be_bytes([f0, f1]),
        })
    }

    fn parse_v6(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let Some((fixed, rest)) = bytes.split_first_chunk::<8>() else {
            return Err(Malformed::HeaderTruncated);
        };
        let Some((source, rest)) = rest.split_first_chunk::<16>() else {
            return Err(Malformed::HeaderTruncated);
        };
        let Some(destination) = rest.first_chunk::<16>() else { return Err(Malformed::HeaderTruncated) };
        let payload = usize::from(u16::from_be_bytes([fixed[4], fixed[5]]));
        Ok(Self {
            bytes: cut(bytes, header::V6, header::V6 + payload)?,
            source: Ipv6Addr::from(*source).into(),
            destination: Ipv6Addr::from(*destination).into(),
            header_length: header::V6,
            fragment_field: DONT_FRAGMENT,
        })
    }

    /// The packet's bytes, exactly its own length of them.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Whether this is IPv4; otherwise it is IPv6.
    pub fn is_v4(&self) -> bool {
        self.source.is_ipv4()
    }

    /// The source address.
    pub fn source(&self) -> IpAddr {
        self.source
    }

    /// The destination address, of the same family as the source.
    pub fn destination(&self) -> IpAddr {
        self.destination
    }

    /// Whether the packet must not be fragmented on its way: always so for IPv6.
    pub fn dont_fragment(&self) -> bool {
        self.fragment_field & DONT_FRAGMENT != 0
    }

    /// Whether the packet begins where the datagram does: it is no fragment, or the first.
    pub fn is_first_fragment_or_whole(&self) -> bool {
        !matches!(self.upper(), Upper::LaterFragment)
    }

    /// The transport protocol and where its header begins in [`bytes`](Self::bytes): at their end at most.
    ///
    /// Found behind IPv4 options, or behind IPv6 hop-by-hop, routing, destination options and fragment headers. None
    /// for later fragments, and where the extension headers do not fit the packet or are more than eight.
    pub fn transport(&self) -> Option<(u8, usize)> {
        match self.upper() {
            Upper::Transport(protocol, offset) => Some((protocol, offset)),
            Upper::LaterFragment | Upper::Unfit => None,
        }
    }

    /// The length of the header in bytes: with IPv4 options, without IPv6 extension headers.
    pub(super) fn header_length(&self) -> usize {
        self.header_length
    }

    /// The IPv4 field of flags and fragment offset.
    pub(super) fn fragment_field(&self) -> u16 {
        self.fragment_field
    }

    fn upper(&self) -> Upper {
        if self.fragment_field & FRAGMENT_OFFSET != 0 {
            return Upper::LaterFragment;
        }
        if self.is_v4() {
            return Upper::Transport(self.bytes[9], self.header_length);
        }
        let (mut next, mut offset) = (self.bytes[6], header::V6);
        for _ in 0..=EXTENSION_HEADERS_BOUND {
            let length = match next {
                protocol::HOP_BY_HOP
                | protocol::ROUTING
                | protocol::DESTINATION_OPTIONS
                | protocol::FRAGMENT => {
                    let Some(&[following, length, f0, f1, ..]) = self.bytes[offset..].first_chunk::<8>()
                    else {
                        return Upper::Unfit;
                    };
                    let is_fragment = next == protocol::FRAGMENT;
                    if is_fragment && u16::from_be_bytes([f0, f1]) >> 3 != 0 {
                        return Upper::LaterFragment;
                    }
                    next = following;
                    // The fragment header's second byte is reserved, not a length (RFC 8200 section 4.5).
                    if is_fragment { 8 } else { (usize::from(length) + 1) * 8 }
                }
                _ => return Upper::Transport(next, offset),
            };
            offset += length;
            if offset > self.bytes.len() {
                return Upper::Unfit;
            }
        }
        Upper::Unfit
    }
}

/// The first `total` of `bytes`, which are at least a header.
fn cut(bytes: &[u8], header_length: usize, total: usize) -> Result<&[u8], Malformed> {
    if total < header_length {
        return Err(Malformed::LengthMismatch);
    }
    bytes.get(..total).ok_or(Malformed::LengthMismatch)
}

#[cfg(test)]
mod tests;
