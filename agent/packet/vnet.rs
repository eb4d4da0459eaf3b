//! The header that goes before each packet of a device opened with `IFF_VNET_HDR`: what of the packet is left to do
//! (`struct virtio_net_hdr` of linux/virtio_net.h, ten bytes in the host's byte order).

/// The length of the header in bytes.
pub const LENGTH: usize = 10;

/// The checksum is to be completed (`VIRTIO_NET_HDR_F_NEEDS_CSUM`).
const NEEDS_CHECKSUM: u8 = 1;
/// The header counts what the receiver merged (`VIRTIO_NET_HDR_F_RSC_INFO`); never on a tun device.
const MERGE_INFORMATION: u8 = 4;

/// `VIRTIO_NET_HDR_GSO_*`.
const NONE: u8 = 0;
const TCP_V4: u8 = 1;
const TCP_V6: u8 = 4;
const UDP: u8 = 5;
/// Beside a TCP type: the packet has CWR set, which belongs on the first segment alone.
const ECN: u8 = 0x80;

/// What is left to do with a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VnetHeader {
    /// The checksum to complete; `None`: it is complete, or there is none.
    pub checksum: Option<PartialChecksum>,
    /// How the packet is to be split; `None`: it is one packet.
    pub segments: Option<Segmentation>,
}

/// A checksum whose field holds the folded sum of the pseudo-header and that is to cover all from `start` on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartialChecksum {
    /// Where the transport header begins, in bytes from the packet's beginning.
    pub start: u16,
    /// Where the field is, in bytes from `start`: 16 of TCP, 6 of UDP.
    pub offset: u16,
}

/// A packet that is many: one header, and the payload of all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segmentation {
    /// Of which protocols.
    pub kind: SegmentKind,
    /// The payload of each in bytes; the last may have less. Never 0.
    pub size: u16,
}

/// What can be split.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SegmentKind {
    /// TCP over IPv4.
    TcpV4,
    /// TCP over IPv6.
    TcpV6,
    /// UDP datagrams, over either.
    Udp,
}

/// A header that a device never has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no virtio_net_hdr of a tun device")]
pub struct BadHeader;

impl VnetHeader {
    /// Nothing is left to do.
    pub const WHOLE: [u8; LENGTH] = [0; LENGTH];

    /// Reads a header. `hdr_len` is ignored: on forwarded packets the kernel counts all that is not in pages.
    ///
    /// # Errors
    /// Where its fields do not go together, or are of another kind of device.
    pub fn parse(bytes: [u8; LENGTH]) -> Result<Self, BadHeader> {
        let [flags, kind, _, _, s0, s1, c0, c1, o0, o1] = bytes;
        if flags & MERGE_INFORMATION != 0 {
            return Err(BadHeader);
        }
        let checksum = (flags & NEEDS_CHECKSUM != 0).then_some(PartialChecksum {
            start: u16::from_ne_bytes([c0, c1]),
            offset: u16::from_ne_bytes([o0, o1]),
        });
        let size = u16::from_ne_bytes([s0, s1]);
        let kind = match (kind & !ECN, kind & ECN) {
            (NONE, 0) => return Ok(Self { checksum, segments: None }),
            (TCP_V4, _) => SegmentKind::TcpV4,
            (TCP_V6, _) => SegmentKind::TcpV6,
            (UDP, 0) => SegmentKind::Udp,
            _ => return Err(BadHeader),
        };
        if size == 0 {
            return Err(BadHeader);
        }
        Ok(Self { checksum, segments: Some(Segmentation { kind, size }) })
    }

    /// The header's bytes. `header_length` is that of all headers of the packet, which the kernel copies to the packet's
    /// linear part; it means something with segments only.
    pub fn emit(&self, header_length: u16) -> [u8; LENGTH] {
        let mut bytes = Self::WHOLE;
        if let Some(PartialChecksum { start, offset }) = self.checksum {
            bytes[0] = NEEDS_CHECKSUM;
            bytes[6..8].copy_from_slice(&start.to_ne_bytes());
            bytes[8..10].copy_from_slice(&offset.to_ne_bytes());
        }
        if let Some(Segmentation { kind, size }) = self.segments {
            bytes[1] = match kind {
                SegmentKind::TcpV4 => TCP_V4,
                SegmentKind::TcpV6 => TCP_V6,
                SegmentKind::Udp => UDP,
            };
            bytes[2..4].copy_from_slice(&header_length.to_ne_bytes());
            bytes[4..6].copy_from_slice(&size.to_ne_bytes());
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header() -> impl Strategy<Value = VnetHeader> {
        let checksum = any::<(u16, u16)>().prop_map(|(start, offset)| PartialChecksum { start, offset });
        let kinds = vec![SegmentKind::TcpV4, SegmentKind::TcpV6, SegmentKind::Udp];
        let segments =
            (prop::sample::select(kinds), 1..=u16::MAX).prop_map(|(kind, size)| Segmentation { kind, size });
        (prop::option::of(checksum), prop::option::of(segments))
            .prop_map(|(checksum, segments)| VnetHeader { checksum, segments })
    }

    #[test]
    fn what_no_tun_device_says_is_refused() {
        let plain = |flags, kind, size: u16| {
            let mut bytes = [0; LENGTH];
            bytes[0] = flags;
            bytes[1] = kind;
            bytes[4..6].copy_from_slice(&size.to_ne_bytes());
            VnetHeader::parse(bytes)
        };
        // A mark that the sum was found right already changes nothing.
        assert_eq!(plain(2, NONE, 0), Ok(VnetHeader { checksum: None, segments: None }));
        for (flags, kind, size) in [
            (MERGE_INFORMATION, NONE, 0),
            (0, ECN, 0),
            (0, UDP | ECN, 9),
            (1, TCP_V4, 0),
            (1, 3, 9),
            (1, 2, 9),
        ] {
            assert_eq!(plain(flags, kind, size), Err(BadHeader), "{flags} {kind:#x} {size}");
        }
        assert!(plain(1, TCP_V6 | ECN, 1).unwrap().segments.is_some());
    }

    proptest! {
        #[test]
        fn a_header_comes_back_as_it_was(header in header(), header_length: u16) {
            prop_assert_eq!(VnetHeader::parse(header.emit(header_length)), Ok(header));
        }

        #[test]
        fn nothing_panics(bytes: [u8; LENGTH]) {
            if let Ok(header) = VnetHeader::parse(bytes) {
                prop_assert_eq!(VnetHeader::parse(header.emit(0)), Ok(header));
            }
        }
    }
}
