//! A packet that is many, as a device hands it out with segmentation offloads, into the packets that it stands for.
//!
//! Nothing of the payload is copied: each packet is a header made anew and a part of the whole's payload, to be gathered
//! by whoever sends them. What the headers become is what the kernel's own segmentation makes of them (RFC 9293, RFC 791,
//! RFC 3168 section 6.1.2 on CWR).

use super::parse::Packet;
use super::vnet::{PartialChecksum, SegmentKind, VnetHeader};
use super::{checksum, header, protocol};

/// The longest headers of a packet that is split, in bytes: IP with options or extension headers, and TCP or UDP.
pub const HEADERS: usize = 256;

/// What a device handed out does not hold together: nothing of it can be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("what is left to do does not fit the packet")]
pub struct Unfit;

/// Completes a checksum that was left to the device.
///
/// # Errors
/// Where the field is not in the packet, which is unchanged then.
pub fn complete(packet: &mut [u8], partial: PartialChecksum) -> Result<(), Unfit> {
    let (start, offset) = (usize::from(partial.start), usize::from(partial.offset));
    let covered = packet.get_mut(start..).ok_or(Unfit)?;
    // The field is covered as it stands: it holds the sum of the pseudo-header.
    let sum = not_absent(checksum::finish(checksum::sum(covered, 0)), offset == header::UDP_CHECKSUM);
    covered.get_mut(offset..offset + 2).ok_or(Unfit)?.copy_from_slice(&sum.to_be_bytes());
    Ok(())
}

/// Of UDP a checksum of zero says that there is none (RFC 768); ones are the same value.
fn not_absent(sum: u16, is_udp: bool) -> u16 {
    if is_udp && sum == 0 { u16::MAX } else { sum }
}

/// A packet that is many.
#[derive(Debug)]
pub struct Train<'p> {
    payload: &'p [u8],
    /// All headers; what differs from packet to packet, and the checksums, are zero.
    template: [u8; HEADERS],
    header_length: usize,
    /// Where the transport header begins.
    transport: usize,
    is_v4: bool,
    /// The payload of each but the last.
    size: usize,
    /// The sum of the IPv4 header as it stands in the template.
    network_sum: u64,
    /// The sum of the transport header as it stands in the template, and of the pseudo-header without its length.
    transport_sum: u64,
    /// IPv4 identification of the first.
    identification: u16,
    varying: Varying,
}

/// What the transport's header says of each packet alone.
#[derive(Debug, Clone, Copy)]
enum Varying {
    /// Sequence number and flags of the whole.
    Tcp { sequence: u32, flags: u8 },
    /// The length.
    Udp,
}

impl<'p> Train<'p> {
    /// Looks at a packet with more than one packet's payload.
    ///
    /// # Errors
    /// Where the packet is not what `header` says, is without payload, or has headers of more than [`HEADERS`] bytes.
    pub fn plan(header: VnetHeader, packet: &Packet<'p>) -> Result<Self, Unfit> {
        let segments = header.segments.ok_or(Unfit)?;
        let bytes = packet.bytes();
        let (number, start) = packet.transport().ok_or(Unfit)?;
        let rest = bytes.get(start..).ok_or(Unfit)?;
        let (length, field) = match (segments.kind, number, packet.is_v4()) {
            (SegmentKind::TcpV4, protocol::TCP, true) | (SegmentKind::TcpV6, protocol::TCP, false) => {
                let words = rest.get(12).ok_or(Unfit)? >> 4;
                (usize::from(words) * 4, header::TCP_CHECKSUM)
            }
            (SegmentKind::Udp, protocol::UDP, _) => (header::UDP, header::UDP_CHECKSUM),
            _ => return Err(Unfit),
        };
        let least = if field == header::TCP_CHECKSUM { header::TCP } else { header::UDP };
        let (head, payload) = rest.split_at_checked(length).filter(|_| length >= least).ok_or(Unfit)?;
        let header_length = start + length;
        if payload.is_empty() || header_length > HEADERS {
            return Err(Unfit);
        }
        let total = u32::try_from(rest.len()).map_err(|_| Unfit)?;
        // The field has the pseudo-header's sum with the length of the whole; of a routed packet no other source has it.
        let pseudo = match header.checksum {
            Some(PartialChecksum { start: said, offset }) => {
                if usize::from(said) != start || usize::from(offset) != field {
                    return Err(Unfit);
                }
                let seed = u16::from_be_bytes([head[field], head[field + 1]]);
                u64::from(seed) + u64::from(!checksum::fold(total.into()))
            }
            None => checksum::pseudo_header(packet.source(), packet.destination(), number, 0),
        };

        let mut template = [0; HEADERS];
        template[..header_length].copy_from_slice(&bytes[..header_length]);
        let is_v4 = packet.is_v4();
        let mut identification = 0;
        if is_v4 {
            identification = u16::from_be_bytes([template[4], template[5]]);
            template[2..6].fill(0);
            template[10..12].fill(0);
        }
        let at = &mut template[start..header_length];
        let varying = if field == header::TCP_CHECKSUM {
            let sequence = u32::from_be_bytes([at[4], at[5], at[6], at[7]]);
            let flags = at[13];
            at[4..8].fill(0);
            at[13] = 0;
            Varying::Tcp { sequence, flags }
        } else {
            at[4..6].fill(0);
            Varying::Udp
        };
        at[field..field + 2].fill(0);
        let transport_sum = checksum::sum(at, pseudo);
        let network_sum = if is_v4 { checksum::sum(&template[..packet.header_length()], 0) } else { 0 };
        Ok(Self {
            payload,
            template,
            header_length,
            transport: start,
            is_v4,
            size: usize::from(segments.size),
            network_sum,
            transport_sum,
            identification,
            varying,
        })
    }

    /// How many packets it is.
    pub fn count(&self) -> usize {
        self.payload.len().div_ceil(self.size)
    }

    /// The length of each packet's headers in bytes.
    pub fn header_length(&self) -> usize {
        self.header_length
    }

    /// The length of the longest packet in bytes: of all but the last.
    pub fn longest(&self) -> usize {
        self.header_length + self.size.min(self.payload.len())
    }

    /// Where the payload of the packet at `index` begins, in bytes from the beginning of the whole.
    pub fn payload_at(&self, index: usize) -> usize {
        self.header_length + index * self.size
    }

    /// Writes the headers of the packet at `index` to the first [`header_length`](Self::header_length) bytes of
    /// `header`. Returns its payload; `None`: there is no such packet, or no room for its headers.
    pub fn packet(&self, index: usize, header: &mut [u8]) -> Option<&'p [u8]> {
        let start = index.checked_mul(self.size)?;
        let rest = self.payload.get(start..).filter(|rest| !rest.is_empty())?;
        let payload = &rest[..rest.len().min(self.size)];
        let is_last = payload.len() == rest.len();
        let header = header.get_mut(..self.header_length)?;
        header.copy_from_slice(&self.template[..self.header_length]);
        // All of it fits 16 bits, for the whole does.
        let total = (self.header_length + payload.len()) as u16;
        if self.is_v4 {
            let identification = self.identification.wrapping_add(index as u16);
            let sum = self.network_sum + u64::from(total) + u64::from(identification);
            header[2..4].copy_from_slice(&total.to_be_bytes());
            header[4..6].copy_from_slice(&identification.to_be_bytes());
            header[10..12].copy_from_slice(&checksum::finish(sum).to_be_bytes());
        } else {
            header[4..6].copy_from_slice(&(total - header::V6 as u16).to_be_bytes());
        }
        let length = total - self.transport as u16;
        let sum = self.transport_sum + u64::from(length);
        let head = &mut header[self.transport..];
        match self.varying {
            Varying::Tcp { sequence, flags } => {
                let sequence = sequence.wrapping_add(start as u32);
                let mut cleared = 0;
                if !is_last {
                    cleared |= header::FIN | header::PSH;
                }
                if index > 0 {
                    cleared |= header::CWR;
                }
                let flags = flags & !cleared;
                head[4..8].copy_from_slice(&sequence.to_be_bytes());
                head[13] = flags;
                let sum = sum + u64::from(sequence) + u64::from(flags);
                let sum = checksum::finish(checksum::sum(payload, sum));
                head[header::TCP_CHECKSUM..header::TCP_CHECKSUM + 2].copy_from_slice(&sum.to_be_bytes());
            }
            Varying::Udp => {
                head[4..6].copy_from_slice(&length.to_be_bytes());
                let sum = checksum::finish(checksum::sum(payload, sum + u64::from(length)));
                let sum = not_absent(sum, true);
                head[header::UDP_CHECKSUM..header::UDP_CHECKSUM + 2].copy_from_slice(&sum.to_be_bytes());
            }
        }
        Some(payload)
    }
}

#[cfg(test)]
mod tests;
