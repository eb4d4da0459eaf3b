//! What a datagram of the data port carries: byte 0 tells the framings apart.

/// The length in bytes of the header that the `pi` framing puts before a packet.
pub const PI_LENGTH: usize = 4;

/// Flags of zero and the EtherType of IPv4 (`struct tun_pi`, linux/if_tun.h).
const PI_V4: [u8; PI_LENGTH] = [0x00, 0x00, 0x08, 0x00];
/// Flags of zero and the EtherType of IPv6.
const PI_V6: [u8; PI_LENGTH] = [0x00, 0x00, 0x86, 0xdd];

/// A datagram by its framing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Frame<'a> {
    /// Begins as a plain IP packet does; only the version has been looked at.
    Packet {
        /// Whether a `tun_pi` header was before it, which `packet` is without.
        pi: bool,
        /// The packet.
        packet: &'a [u8],
    },
    /// A WireGuard message: a type of 1 to 4 and three zero bytes, the whole datagram.
    Wireguard(&'a [u8]),
    /// A frame of tunmesh's own: byte 0 is 0x80 or more, the whole datagram.
    Own(&'a [u8]),
}

/// Why a datagram has no framing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unframed {
    /// The datagram has no bytes.
    #[error("empty datagram")]
    Empty,
    /// It begins as no framing does, or its `tun_pi` header is not that of the packet behind it.
    #[error("unknown framing")]
    Unknown,
}

/// Tells what a datagram carries, by its first bytes.
pub fn demux(datagram: &[u8]) -> Result<Frame<'_>, Unframed> {
    match datagram {
        [] => Err(Unframed::Empty),
        [0x00, 0x00, 0x08, 0x00, packet @ ..] if version(packet) == Some(4) => {
            Ok(Frame::Packet { pi: true, packet })
        }
        [0x00, 0x00, 0x86, 0xdd, packet @ ..] if version(packet) == Some(6) => {
            Ok(Frame::Packet { pi: true, packet })
        }
        _ if is_wireguard(datagram) => Ok(Frame::Wireguard(datagram)),
        [0x40..=0x4f | 0x60..=0x6f, ..] => Ok(Frame::Packet { pi: false, packet: datagram }),
        _ if is_own(datagram) => Ok(Frame::Own(datagram)),
        _ => Err(Unframed::Unknown),
    }
}

/// Whether a datagram is a WireGuard message, as [`demux`] tells.
pub fn is_wireguard(datagram: &[u8]) -> bool {
    matches!(datagram, [0x01..=0x04, 0x00, 0x00, 0x00, ..])
}

/// Whether a datagram, or what an encrypted one carries, is a frame of tunmesh's own, as [`demux`] tells.
pub fn is_own(datagram: &[u8]) -> bool {
    matches!(datagram, [0x80..=0xff, ..])
}

/// The `tun_pi` header of a packet.
pub fn packet_information(is_v4: bool) -> [u8; PI_LENGTH] {
    if is_v4 { PI_V4 } else { PI_V6 }
}

fn version(packet: &[u8]) -> Option<u8> {
    packet.first().map(|byte| byte >> 4)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::agent::packet::parse::Packet;
    use crate::agent::packet::sample;

    #[test]
    fn byte_zero_tells_the_framings_apart() {
        assert_eq!(demux(&[]), Err(Unframed::Empty));
        for first in 0..=255 {
            let datagram = [first, 0, 0, 0, 0x45, 0];
            let expected = match first {
                1..=4 => Ok(Frame::Wireguard(&datagram)),
                0x40..=0x4f | 0x60..=0x6f => Ok(Frame::Packet { pi: false, packet: &datagram }),
                0x80.. => Ok(Frame::Own(&datagram)),
                _ => Err(Unframed::Unknown),
            };
            assert_eq!(demux(&datagram), expected, "{first:#x}");
        }
    }

    #[test]
    fn packet_information_must_be_that_of_the_packet() {
        let (v4, v6) = (0x45, 0x60);
        assert_eq!(demux(&[0, 0, 8, 0, v4]), Ok(Frame::Packet { pi: true, packet: &[v4] }));
        assert_eq!(demux(&[0, 0, 0x86, 0xdd, v6]), Ok(Frame::Packet { pi: true, packet: &[v6] }));
        for datagram in [
            &[0, 0, 8, 0, v6][..],
            &[0, 0, 0x86, 0xdd, v4],
            &[0, 0, 8, 0],
            &[0, 0, 8],
            &[0, 1, 8, 0, v4],
            &[0, 0, 8, 6, v4],
            &[0],
        ] {
            assert_eq!(demux(datagram), Err(Unframed::Unknown), "{datagram:x?}");
        }
    }

    #[test]
    fn a_wireguard_message_has_three_zero_bytes() {
        for datagram in [&[1, 0, 0, 1][..], &[1, 0, 1, 0], &[1, 1, 0, 0], &[4, 0, 0], &[1]] {
            assert_eq!(demux(datagram), Err(Unframed::Unknown), "{datagram:x?}");
        }
    }

    proptest! {
        #[test]
        fn a_framed_packet_is_found_again(bytes in sample::packet()) {
            prop_assert_eq!(demux(&bytes), Ok(Frame::Packet { pi: false, packet: &bytes }));
            let is_v4 = Packet::parse(&bytes).unwrap().is_v4();
            let framed = [&packet_information(is_v4), &bytes[..]].concat();
            prop_assert_eq!(demux(&framed), Ok(Frame::Packet { pi: true, packet: &bytes }));
            let mislabelled = [&packet_information(!is_v4), &bytes[..]].concat();
            prop_assert_eq!(demux(&mislabelled), Err(Unframed::Unknown));
        }

        #[test]
        fn nothing_that_arrives_panics(
            bytes in sample::hostile(), header in prop::sample::select(vec![&[][..], &PI_V4, &PI_V6]),
        ) {
            let datagram = [header, &bytes].concat();
            if let Ok(Frame::Packet { pi, packet }) = demux(&datagram) {
                prop_assert_eq!(packet, &datagram[if pi { PI_LENGTH } else { 0 }..]);
                let _ = Packet::parse(packet);
            }
        }
    }
}
