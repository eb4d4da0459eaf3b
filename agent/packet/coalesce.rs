//! Packets that arrived together into packets that are many: what a device takes in with one system call and the kernel
//! carries up as one.
//!
//! The law: whoever splits what comes out as the kernel does has, of each flow, the packets that went in, in their order,
//! byte for byte but for the IPv4 identification where DF is set and means nothing (RFC 6864 section 4.1). So only what
//! is proven whole is merged: a packet whose checksum is wrong goes through as it is, for the kernel to drop.
//!
//! Packets stay where they are in the receive buffer and are named by their offset in it. A header is rewritten in place
//! when its packets are handed out.

use std::net::IpAddr;
use std::ops::Range;

use super::parse::{DONT_FRAGMENT, FRAGMENT_OFFSET, MORE_FRAGMENTS, Packet};
use super::vnet::{self, PartialChecksum, SegmentKind, Segmentation, VnetHeader};
use super::{checksum, header, protocol};

/// The most packets of one merged packet: kernels before 6.9 take no more UDP datagrams (`UDP_MAX_SEGMENTS`), and none
/// makes more TCP segments of what it merges itself.
pub const SEGMENTS: u16 = 64;
/// The most bytes of one merged packet, headers included: what an IPv4 length can say.
const LONGEST: usize = 65535;
/// The most flows that are merged at once; of more the one that began first ends.
const OPEN: usize = 16;

/// The end of a list of pieces.
const END: u32 = u32::MAX;

/// Where packets belong that may be merged with each other: to one tunnel of one device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    /// The device's position.
    pub device: u32,
    /// The tunnel's position on the device.
    pub tunnel: u32,
}

/// What may be merged.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Merges {
    /// TCP segments.
    pub tcp: bool,
    /// UDP datagrams.
    pub udp: bool,
}

impl Merges {
    /// Everything that can be.
    pub const ALL: Self = Self { tcp: true, udp: true };
}

/// What goes to a device with one write.
#[derive(Debug)]
pub struct Write<'c> {
    /// Where it belongs.
    pub owner: Owner,
    /// Goes first.
    pub header: [u8; vnet::LENGTH],
    /// How many packets it is.
    pub packets: u16,
    /// Their length in bytes, each with its own headers.
    pub bytes: usize,
    pieces: &'c [Piece],
    first: u32,
}

impl Write<'_> {
    /// What goes behind the header, in order, as places in the receive buffer.
    pub fn pieces(&self) -> impl Iterator<Item = Range<usize>> {
        let mut next = self.first;
        std::iter::from_fn(move || {
            let piece = self.pieces.get(next as usize)?;
            next = piece.next;
            Some(piece.at as usize..piece.at as usize + usize::from(piece.length))
        })
    }
}

/// Merges the packets of one reading of the sockets. It is filled and drained again and again, and allocates no more
/// once it has been as full as it gets.
#[derive(Debug, Default)]
pub struct Coalescer {
    slots: Vec<Slot>,
    pieces: Vec<Piece>,
    /// Slots that may grow, the oldest first.
    open: Vec<usize>,
    /// The slot of the packet that was taken in last, if it may grow.
    last: Option<usize>,
}

/// A part of the receive buffer.
#[derive(Debug, Clone, Copy)]
struct Piece {
    at: u32,
    length: u16,
    next: u32,
}

/// What will be one write.
#[derive(Debug)]
struct Slot {
    owner: Owner,
    first: u32,
    last: u32,
    packets: u16,
    /// Of the first packet's headers and all payloads.
    length: usize,
    /// `None`: it is one packet, as it is.
    chain: Option<Chain>,
}

/// What packets must be like to be merged with the first of a slot.
#[derive(Debug, Clone, Copy)]
struct Chain {
    flow: Flow,
    /// Where the first packet is in the receive buffer.
    at: usize,
    shape: Shape,
    /// The sum of the pseudo-header but for the length.
    pseudo: u64,
    next_sequence: u32,
    next_identification: u16,
    /// Whether the first packet's checksums have been found right.
    is_verified: bool,
    /// Whether one of the packets has PSH.
    is_pushed: bool,
}

/// Between whom packets go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Flow {
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    /// Both ports as they stand in the header.
    ports: [u8; 4],
}

/// The lengths of a packet that can be merged.
#[derive(Debug, Clone, Copy)]
struct Shape {
    is_tcp: bool,
    /// Where the transport header begins.
    transport: usize,
    /// Where the payload begins.
    payload: usize,
    /// The payload in bytes; never 0.
    size: usize,
}

impl Coalescer {
    /// Takes in the packet that is at `at` of the receive buffer. All of it must stay as it is until [`drain`].
    ///
    /// [`drain`]: Self::drain
    pub fn push(&mut self, owner: Owner, merges: Merges, buffer: &[u8], at: usize, packet: &Packet<'_>) {
        self.last = None;
        let may_be = |shape: &Shape| if shape.is_tcp { merges.tcp } else { merges.udp };
        let Some(shape) = shape(packet).filter(may_be) else {
            self.close_between(owner, packet);
            self.begin(owner, at, packet.bytes().len(), None);
            return;
        };
        let bytes = packet.bytes();
        let flow = flow(packet, &shape);
        let found = self.open.iter().rposition(|slot| self.is_of(*slot, owner, &flow));
        if let Some(position) = found {
            let slot = self.open[position];
            match self.append(slot, buffer, at, bytes) {
                Appended::Open => return self.last = Some(slot),
                Appended::Last => {
                    self.open.remove(position);
                    return;
                }
                Appended::No => _ = self.open.remove(position),
                Appended::Damaged => {
                    self.open.remove(position);
                    self.begin(owner, at, bytes.len(), None);
                    return;
                }
            }
        }
        let is_pushed = shape.is_tcp && bytes[shape.transport + 13] & header::PSH != 0;
        let sequence = sequence(bytes, &shape);
        let chain = Chain {
            flow,
            at,
            shape,
            pseudo: checksum::pseudo_header(flow.source, flow.destination, flow.protocol, 0),
            next_sequence: sequence.wrapping_add(shape.size as u32),
            next_identification: identification(bytes).wrapping_add(1),
            is_verified: false,
            is_pushed,
        };
        let slot = self.begin(owner, at, bytes.len(), Some(chain));
        if !is_pushed {
            if self.open.len() == OPEN {
                self.open.remove(0);
            }
            self.open.push(slot);
            self.last = Some(slot);
        }
    }

    /// Takes in the packet at `place` of the receive buffer if it goes on where the packet that was taken in last ended,
    /// between the same ports and with the same header but for what counts up. Returns whether it did; otherwise it is
    /// to be pushed. Whatever was found of that packet by its header holds for this one.
    pub fn extend(&mut self, buffer: &[u8], place: Range<usize>) -> bool {
        let (Some(slot), Some(bytes)) = (self.last, buffer.get(place.clone())) else { return false };
        match self.append(slot, buffer, place.start, bytes) {
            Appended::Open => true,
            Appended::Last => {
                self.last = None;
                self.open.retain(|open| *open != slot);
                true
            }
            Appended::No | Appended::Damaged => false,
        }
    }

    /// Hands out all that was taken in, in the order in which it came, and is empty.
    pub fn drain(&mut self, buffer: &mut [u8], mut emit: impl FnMut(&[u8], Write<'_>)) {
        self.open.clear();
        self.last = None;
        for slot in &self.slots {
            let (mut header, mut bytes) = (VnetHeader::WHOLE, slot.length);
            if let Some(chain) = slot.chain.filter(|_| slot.packets > 1) {
                header = finish(buffer, &chain, slot.length);
                bytes += chain.shape.payload * usize::from(slot.packets - 1);
            }
            let (owner, packets, first) = (slot.owner, slot.packets, slot.first);
            emit(buffer, Write { owner, header, packets, bytes, pieces: &self.pieces, first });
        }
        self.slots.clear();
        self.pieces.clear();
    }

    /// Whether nothing has been taken in since the last [`drain`](Self::drain).
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    fn is_of(&self, slot: usize, owner: Owner, flow: &Flow) -> bool {
        let slot = &self.slots[slot];
        slot.owner == owner && slot.chain.as_ref().is_some_and(|chain| chain.flow == *flow)
    }

    /// Ends what a packet must not be overtaken by: its flow, or where that cannot be told all between its hosts.
    fn close_between(&mut self, owner: Owner, packet: &Packet<'_>) {
        if self.open.is_empty() {
            return;
        }
        let ports = ports(packet);
        let slots = &self.slots;
        self.open.retain(|slot| {
            let slot = &slots[*slot];
            let Some(Chain { flow, .. }) = &slot.chain else { return false };
            slot.owner != owner
                || flow.source != packet.source()
                || flow.destination != packet.destination()
                || ports.is_some_and(|ports| ports != (flow.protocol, flow.ports))
        });
    }

    fn begin(&mut self, owner: Owner, at: usize, length: usize, chain: Option<Chain>) -> usize {
        let piece = self.piece(at, length);
        self.slots.push(Slot { owner, first: piece, last: piece, packets: 1, length, chain });
        self.slots.len() - 1
    }

    fn piece(&mut self, at: usize, length: usize) -> u32 {
        // A receive buffer is far below 4 GiB and a packet at most 65,575 bytes of IPv6, which a datagram cannot carry.
        self.pieces.push(Piece { at: at as u32, length: length as u16, next: END });
        (self.pieces.len() - 1) as u32
    }

    fn append(&mut self, slot: usize, buffer: &[u8], at: usize, bytes: &[u8]) -> Appended {
        let Slot { chain: Some(chain), length, packets, .. } = &self.slots[slot] else { return Appended::No };
        let Shape { is_tcp, payload, size: longest, .. } = chain.shape;
        let Some(head) = buffer.get(chain.at..chain.at + payload) else { return Appended::No };
        let size = bytes.len().saturating_sub(payload);
        if *packets >= SEGMENTS || length + size > LONGEST || !follows(head, chain, bytes) {
            return Appended::No;
        }
        if !chain.is_verified {
            let first = buffer.get(chain.at..chain.at + payload + longest);
            if !first.is_some_and(|first| is_intact(first, chain)) {
                return Appended::No;
            }
        }
        if !is_intact(bytes, chain) {
            return Appended::Damaged;
        }
        let is_pushed = is_tcp && bytes[chain.shape.transport + 13] & header::PSH != 0;
        let piece = self.piece(at + payload, size);
        let slot = &mut self.slots[slot];
        self.pieces[slot.last as usize].next = piece;
        slot.last = piece;
        slot.packets += 1;
        slot.length += size;
        if let Some(chain) = &mut slot.chain {
            chain.is_verified = true;
            chain.is_pushed |= is_pushed;
            chain.next_sequence = chain.next_sequence.wrapping_add(size as u32);
            chain.next_identification = chain.next_identification.wrapping_add(1);
        }
        if is_pushed || size < longest { Appended::Last } else { Appended::Open }
    }
}

/// What became of a packet and the slot of its flow.
enum Appended {
    /// It is in, and more may follow.
    Open,
    /// It is in, and nothing may follow.
    Last,
    /// It does not go on where the slot ends.
    No,
    /// It would, but its checksums are wrong.
    Damaged,
}

/// The lengths of a packet that can be merged with others; `None`: it cannot.
fn shape(packet: &Packet<'_>) -> Option<Shape> {
    let bytes = packet.bytes();
    let transport = if packet.is_v4() { header::V4 } else { header::V6 };
    if packet.fragment_field() & (MORE_FRAGMENTS | FRAGMENT_OFFSET) != 0 {
        return None;
    }
    // Without IPv4 options and IPv6 extension headers.
    let (number, start) = packet.transport()?;
    if start != transport {
        return None;
    }
    let head = bytes.get(start..)?;
    let (is_tcp, payload) = match number {
        protocol::TCP => {
            let fixed = head.first_chunk::<{ header::TCP }>()?;
            let length = usize::from(fixed[12] >> 4) * 4;
            let flags = fixed[13];
            if length < header::TCP
                || flags & header::ACK == 0
                || flags & !(header::ACK | header::PSH | header::ECE) != 0
            {
                return None;
            }
            (true, start + length)
        }
        protocol::UDP => {
            let fixed = head.first_chunk::<{ header::UDP }>()?;
            let length = usize::from(u16::from_be_bytes([fixed[4], fixed[5]]));
            // The kernel merges no datagrams without checksum.
            if length != head.len() || [fixed[6], fixed[7]] == [0, 0] {
                return None;
            }
            (false, start + header::UDP)
        }
        _ => return None,
    };
    let size = bytes.len().checked_sub(payload).filter(|size| *size > 0)?;
    Some(Shape { is_tcp, transport, payload, size })
}

fn flow(packet: &Packet<'_>, shape: &Shape) -> Flow {
    let at = &packet.bytes()[shape.transport..];
    Flow {
        source: packet.source(),
        destination: packet.destination(),
        protocol: if shape.is_tcp { protocol::TCP } else { protocol::UDP },
        ports: [at[0], at[1], at[2], at[3]],
    }
}

/// The transport protocol and the ports of a packet that can be told to belong to one flow.
fn ports(packet: &Packet<'_>) -> Option<(u8, [u8; 4])> {
    if packet.fragment_field() & (MORE_FRAGMENTS | FRAGMENT_OFFSET) != 0 {
        return None;
    }
    let (number, start) = packet.transport()?;
    Some((number, *packet.bytes().get(start..)?.first_chunk()?))
}

fn sequence(bytes: &[u8], shape: &Shape) -> u32 {
    let at = &bytes[shape.transport..];
    if shape.is_tcp { u32::from_be_bytes([at[4], at[5], at[6], at[7]]) } else { 0 }
}

/// The IPv4 identification; what stands there in an IPv6 header is not looked at.
fn identification(bytes: &[u8]) -> u16 {
    u16::from_be_bytes([bytes[4], bytes[5]])
}

/// Whether bytes are a packet that goes on where the chain with the headers `head` ends.
fn follows(head: &[u8], chain: &Chain, bytes: &[u8]) -> bool {
    let Shape { is_tcp, transport: at, payload, size } = chain.shape;
    if bytes.len() <= payload || bytes.len() > payload + size {
        return false;
    }
    let number = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
    let network = if at == header::V4 {
        let may_vary = number(6) & DONT_FRAGMENT != 0;
        // Version and TOS; flags, TTL and protocol; addresses. The kernel counts the identification up when it splits.
        same::<2>(head, bytes, 0)
            && same::<4>(head, bytes, 6)
            && same::<8>(head, bytes, 12)
            && usize::from(number(2)) == bytes.len()
            && (may_vary || identification(bytes) == chain.next_identification)
    } else {
        // Version, traffic class and flow label; next header and hop limit; addresses.
        same::<4>(head, bytes, 0)
            && same::<2>(head, bytes, 6)
            && same::<32>(head, bytes, 8)
            && header::V6 + usize::from(number(4)) == bytes.len()
    };
    let transport = if is_tcp {
        sequence(bytes, &chain.shape) == chain.next_sequence
            // Acknowledgement and length; window; urgent pointer; options.
            && same::<5>(head, bytes, at + 8)
            && (head[at + 13] ^ bytes[at + 13]) & !header::PSH == 0
            && same::<2>(head, bytes, at + 14)
            && same::<2>(head, bytes, at + 18)
            && head[at + header::TCP..payload] == bytes[at + header::TCP..payload]
    } else {
        // The kernel merges no datagrams without checksum.
        usize::from(number(at + 4)) == bytes.len() - at && number(at + header::UDP_CHECKSUM) != 0
    };
    // The ports.
    network && same::<4>(head, bytes, at) && transport
}

/// Whether both have the same `N` bytes at `at`.
#[inline(always)]
fn same<const N: usize>(one: &[u8], other: &[u8], at: usize) -> bool {
    let of = |bytes: &[u8]| bytes.get(at..).and_then(|bytes| bytes.first_chunk::<N>().copied());
    of(one) == of(other)
}

/// Whether the checksums of a packet are right that is like those of the chain.
fn is_intact(bytes: &[u8], chain: &Chain) -> bool {
    let (network, transport) = bytes.split_at(chain.shape.transport);
    (chain.flow.source.is_ipv6() || checksum::finish(checksum::sum(network, 0)) == 0)
        && checksum::finish(checksum::sum(transport, chain.pseudo + transport.len() as u64)) == 0
}

/// Makes the headers of the first packet those of all, and returns what is left to do with them. `length` is that of
/// all, headers included.
fn finish(buffer: &mut [u8], chain: &Chain, length: usize) -> [u8; vnet::LENGTH] {
    let Chain { at, shape, flow, .. } = *chain;
    let Some(head) = buffer.get_mut(at..at + shape.payload) else { return VnetHeader::WHOLE };
    let (network, transport) = head.split_at_mut(shape.transport);
    let is_v4 = flow.source.is_ipv4();
    let covered = length - shape.transport;
    if is_v4 {
        network[2..4].copy_from_slice(&(length as u16).to_be_bytes());
        network[10..12].fill(0);
        let sum = checksum::finish(checksum::sum(network, 0));
        network[10..12].copy_from_slice(&sum.to_be_bytes());
    } else {
        network[4..6].copy_from_slice(&(covered as u16).to_be_bytes());
    }
    let pseudo = chain.pseudo + covered as u64;
    let field = if shape.is_tcp { header::TCP_CHECKSUM } else { header::UDP_CHECKSUM };
    if shape.is_tcp {
        if chain.is_pushed {
            transport[13] |= header::PSH;
        }
    } else {
        transport[4..6].copy_from_slice(&(covered as u16).to_be_bytes());
    }
    // The kernel takes the sum of the pseudo-header as it is and completes it.
    transport[field..field + 2].copy_from_slice(&checksum::fold(pseudo).to_be_bytes());
    let kind = match (shape.is_tcp, is_v4) {
        (true, true) => SegmentKind::TcpV4,
        (true, false) => SegmentKind::TcpV6,
        (false, _) => SegmentKind::Udp,
    };
    let header = VnetHeader {
        checksum: Some(PartialChecksum { start: shape.transport as u16, offset: field as u16 }),
        segments: Some(Segmentation { kind, size: shape.size as u16 }),
    };
    header.emit(shape.payload as u16)
}

#[cfg(test)]
mod tests;
