//! What holds of the packet path's pure parts, whatever bytes they are given. Fuzz targets look for bytes with which it
//! does not; `tests/corpora.rs` tries what they have found so far.

#![allow(dead_code, reason = "each fuzz target uses one law")]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a panic is what is looked for")]

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use tunmesh::agent::packet::coalesce::{Coalescer, Merges, Owner};
use tunmesh::agent::packet::frame::{self, Frame};
use tunmesh::agent::packet::parse::Packet;
use tunmesh::agent::packet::split::{self, HEADERS, Train};
use tunmesh::agent::packet::vnet::{self, VnetHeader};
use tunmesh::agent::packet::{ecn, fragment, icmp, mss};

/// Of a tunnel.
const MTU: u16 = 1_400;
/// The longest packet.
const LONGEST: usize = 65_535;

/// A header and a packet as a tun device hands them out. Answers and fragments are packets and fit; one that is many falls
/// apart into packets that have all of its payload, and right checksums.
pub(crate) fn device(bytes: &[u8]) {
    let Some((header, body)) = bytes.split_first_chunk::<{ vnet::LENGTH }>() else { return };
    let Ok(header) = VnetHeader::parse(*header) else { return };
    let mut body = body[..body.len().min(LONGEST)].to_vec();
    if header.segments.is_some() {
        seed(&mut body);
    }
    if let (Some(partial), None) = (header.checksum, header.segments)
        && split::complete(&mut body, partial).is_err()
    {
        return;
    }
    let Ok(packet) = Packet::parse(&body) else { return };
    for answer in [icmp::too_big(&packet, MTU), icmp::unreachable(&packet)].into_iter().flatten() {
        let answer = Packet::parse(&answer).unwrap();
        assert_eq!(answer.destination(), packet.source());
    }
    if header.segments.is_none() {
        let mut clamped = packet.bytes().to_vec();
        mss::clamp(&mut clamped, MTU);
        assert_eq!(Packet::parse(&clamped).unwrap().bytes().len(), packet.bytes().len());
        for fragment in fragment::fragments(&packet, MTU) {
            let fragment = Packet::parse(&fragment).unwrap();
            assert!(fragment.bytes().len() <= usize::from(MTU));
            assert_eq!(fragment.destination(), packet.destination());
        }
        return;
    }
    let Ok(train) = Train::plan(header, &packet) else { return };
    let packets = apart(&train);
    let length = train.header_length();
    let payload: Vec<u8> = packets.iter().flat_map(|packet| &packet[length..]).copied().collect();
    assert_eq!(payload, packet.bytes()[length..], "{} packets", train.count());
    for bytes in &packets {
        assert!(bytes.len() <= train.longest());
        assert_eq!(Packet::parse(bytes).unwrap().bytes().len(), bytes.len());
        assert!(is_sound(bytes), "{bytes:02x?}");
    }
}

/// A TOS byte, and a datagram that arrived with it. What is taken out of it is as long as it was.
pub(crate) fn datagram(bytes: &[u8]) {
    let Some((tos, datagram)) = bytes.split_first() else { return };
    let Ok(Frame::Packet { packet: bytes, .. }) = frame::demux(datagram) else { return };
    let Ok(packet) = Packet::parse(bytes) else { return };
    let mut changed = bytes.to_vec();
    if ecn::decapsulate(&mut changed, packet.is_v4(), *tos).is_err() {
        return;
    }
    mss::clamp(&mut changed, MTU);
    let same = Packet::parse(&changed).unwrap();
    assert_eq!(same.bytes().len(), packet.bytes().len());
    assert_eq!((same.source(), same.destination()), (packet.source(), packet.destination()));
    if is_sound(packet.bytes()) {
        assert!(is_sound(same.bytes()), "{packet:?} {same:?}");
    }
}

/// Packets, each behind how it is made, its length and its bytes. Those that come out are those that went in, and whether a
/// train is judged by its first packet alone makes no difference.
pub(crate) fn trains(bytes: &[u8]) {
    let arrivals = arrivals(bytes);
    let merged = coalesce(&arrivals, false);
    assert_eq!(merged, coalesce(&arrivals, true));
    let mut before: Vec<_> = arrivals.iter().map(|(owner, bytes)| (*owner, comparable(bytes))).collect();
    let mut after = Vec::new();
    for Written { owner, header, bytes, packets } in &merged {
        let header = VnetHeader::parse(*header).unwrap();
        if header.segments.is_none() {
            after.push((*owner, comparable(bytes)));
            continue;
        }
        let packet = Packet::parse(bytes).unwrap();
        let train = Train::plan(header, &packet).unwrap();
        assert_eq!(train.count(), usize::from(*packets));
        after.extend(apart(&train).iter().map(|bytes| (*owner, comparable(bytes))));
    }
    before.sort();
    after.sort();
    assert_eq!(before, after);
}

/// Puts the sum of the pseudo header where a kernel has it that leaves the rest to others.
fn seed(bytes: &mut [u8]) {
    let Ok(packet) = Packet::parse(bytes) else { return };
    let Some((protocol @ (6 | 17), at)) = packet.transport() else { return };
    let field = at + if protocol == 6 { 16 } else { 6 };
    let sum = !complement(pseudo_sum(bytes, protocol, packet.bytes().len() - at));
    if let Some(place) = bytes.get_mut(field..field + 2) {
        place.copy_from_slice(&sum.to_be_bytes());
    }
}

/// What a device is given.
#[derive(Debug, PartialEq, Eq)]
struct Written {
    owner: u32,
    header: [u8; vnet::LENGTH],
    bytes: Vec<u8>,
    packets: u16,
}

/// Reads packets. Of the byte before each the lowest two bits are whose it is; the next says that it goes on where the one
/// before ended, with these bytes as its payload; the next that its lengths and checksums are put right.
fn arrivals(mut bytes: &[u8]) -> Vec<(u32, Vec<u8>)> {
    let mut arrivals: Vec<(u32, Vec<u8>)> = Vec::new();
    let mut total = 0;
    while let Some(([how, high, low], rest)) = bytes.split_first_chunk() {
        let length = usize::from(u16::from_be_bytes([*high, *low])) % 2_048;
        let (packet, rest) = rest.split_at(length.min(rest.len()));
        bytes = rest;
        let mut packet = match arrivals.last() {
            Some((_, before)) if how & 4 != 0 => behind(before, packet),
            Some(_) | None => packet.to_vec(),
        };
        if how & 8 != 0 {
            mend(&mut packet);
        }
        total += packet.len();
        if total > LONGEST {
            break;
        }
        if let Ok(whole) = Packet::parse(&packet) {
            let length = whole.bytes().len();
            packet.truncate(length);
            arrivals.push((u32::from(how & 3), packet));
        }
    }
    arrivals
}

/// The packet that goes on where `before` ends, with `payload`, and with lengths and checksums that are not right.
fn behind(before: &[u8], payload: &[u8]) -> Vec<u8> {
    let Some((header, transport)) = headers(before) else { return payload.to_vec() };
    let mut next = before[..header].to_vec();
    if next[0] >> 4 == 4 {
        let identification = u16::from_be_bytes([next[4], next[5]]).wrapping_add(1);
        next[4..6].copy_from_slice(&identification.to_be_bytes());
    }
    if header > transport + 8 {
        let sequence: &mut [u8; 4] = (&mut next[transport + 4..transport + 8]).try_into().unwrap();
        *sequence = u32::from_be_bytes(*sequence).wrapping_add((before.len() - header) as u32).to_be_bytes();
    }
    next.extend(payload);
    next
}

/// Where the payload of a TCP or UDP packet begins, and where its transport header does.
fn headers(bytes: &[u8]) -> Option<(usize, usize)> {
    let (protocol, transport) = Packet::parse(bytes).ok()?.transport()?;
    let payload = match protocol {
        6 => transport + usize::from(bytes.get(transport + 12)? >> 4) * 4,
        17 => transport + 8,
        _ => return None,
    };
    (payload >= transport + 8 && payload <= bytes.len()).then_some((payload, transport))
}

/// Puts right the lengths and checksums of a packet, as far as it has such.
fn mend(bytes: &mut [u8]) {
    let length = bytes.len() as u16;
    match bytes.first().map(|first| first >> 4) {
        Some(4) if bytes.len() >= 20 => {
            bytes[2..4].copy_from_slice(&length.to_be_bytes());
            bytes[10..12].fill(0);
            let end = (usize::from(bytes[0] & 15) * 4).clamp(20, bytes.len());
            let header = complement(sum(&bytes[..end]));
            bytes[10..12].copy_from_slice(&header.to_be_bytes());
        }
        Some(6) if bytes.len() >= 40 => bytes[4..6].copy_from_slice(&(length - 40).to_be_bytes()),
        _ => return,
    }
    let Ok(packet) = Packet::parse(bytes) else { return };
    let Some((protocol, at)) = packet.transport() else { return };
    let (field, is_udp) = match protocol {
        6 => (at + 16, false),
        17 => (at + 6, true),
        _ => return,
    };
    if bytes.len() < field + 2 || bytes.len() < at + 8 {
        return;
    }
    if is_udp {
        bytes[at + 4..at + 6].copy_from_slice(&(length - at as u16).to_be_bytes());
    }
    bytes[field..field + 2].fill(0);
    let all = transport_sum(bytes, protocol, at);
    let checksum = if is_udp && all == 0 { 0xffff } else { all };
    bytes[field..field + 2].copy_from_slice(&checksum.to_be_bytes());
}

/// The checksum over a packet from `at` on with its pseudo header (RFC 9293, RFC 768, RFC 8200): 0 where the one in it is
/// right.
fn transport_sum(bytes: &[u8], protocol: u8, at: usize) -> u16 {
    complement(pseudo_sum(bytes, protocol, bytes.len() - at) + sum(&bytes[at..]))
}

fn pseudo_sum(bytes: &[u8], protocol: u8, length: usize) -> u64 {
    let addresses = if bytes[0] >> 4 == 4 { 12..20 } else { 8..40 };
    sum(&bytes[addresses]) + u64::from(protocol) + length as u64
}

/// The sum of 16-bit words (RFC 1071).
fn sum(bytes: &[u8]) -> u64 {
    let word = |pair: &[u8]| u64::from(pair[0]) << 8 | u64::from(pair.get(1).copied().unwrap_or(0));
    bytes.chunks(2).map(word).sum()
}

/// The complement of a sum, folded.
fn complement(mut sum: u64) -> u16 {
    while sum >> 16 > 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// Whether the checksums of a packet are right, as far as it has such and is no fragment.
fn is_sound(bytes: &[u8]) -> bool {
    let Ok(sliced) = SlicedPacket::from_ip(bytes) else { return true };
    let is_header_sound = match &sliced.net {
        Some(NetSlice::Ipv4(v4)) => complement(sum(v4.header().slice())) == 0,
        _ => true,
    };
    let is_fragment = match &sliced.net {
        Some(NetSlice::Ipv4(v4)) => v4.header().is_fragmenting_payload(),
        Some(NetSlice::Ipv6(v6)) => v6.extensions().is_fragmenting_payload(),
        _ => true,
    };
    let Ok(packet) = Packet::parse(bytes) else { return true };
    let is_transport_sound = match (&sliced.transport, packet.transport()) {
        (Some(TransportSlice::Tcp(_)), Some((6, at))) => transport_sum(bytes, 6, at) == 0,
        (Some(TransportSlice::Udp(udp)), Some((17, at))) => {
            udp.checksum() == 0 || transport_sum(bytes, 17, at) == 0
        }
        _ => true,
    };
    is_header_sound && (is_fragment || is_transport_sound)
}

/// What comes out of packets that arrive one after the other.
fn coalesce(arrivals: &[(u32, Vec<u8>)], extends: bool) -> Vec<Written> {
    let mut coalescer = Coalescer::default();
    let mut buffer: Vec<u8> = arrivals.iter().flat_map(|(_, bytes)| bytes).copied().collect();
    let (mut at, mut before) = (0, None);
    for (tunnel, bytes) in arrivals {
        let owner = Owner { device: tunnel / 2, tunnel: *tunnel };
        let place = at..at + bytes.len();
        if !(extends && before == Some(tunnel) && coalescer.extend(&buffer, place)) {
            coalescer.push(owner, Merges::ALL, &buffer, at, &Packet::parse(bytes).unwrap());
        }
        (at, before) = (at + bytes.len(), Some(tunnel));
    }
    let mut written = Vec::new();
    coalescer.drain(&mut buffer, |buffer, write| {
        let bytes: Vec<u8> = write.pieces().flat_map(|piece| &buffer[piece]).copied().collect();
        written.push(Written {
            owner: write.owner.tunnel,
            header: write.header,
            bytes,
            packets: write.packets,
        });
    });
    assert!(coalescer.is_empty());
    written
}

/// A packet without what may change: the identification of one that is never fragmented.
fn comparable(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    if bytes[0] >> 4 == 4 && bytes[6] & 0x40 != 0 {
        bytes[4..6].fill(0);
        bytes[10..12].fill(0);
    }
    bytes
}

/// The packets of a train.
fn apart(train: &Train<'_>) -> Vec<Vec<u8>> {
    let mut header = [0; HEADERS];
    let mut packet = |index| {
        let payload = train.packet(index, &mut header)?;
        Some([&header[..train.header_length()], payload].concat())
    };
    (0..train.count()).map(|index| packet(index).unwrap()).collect()
}
