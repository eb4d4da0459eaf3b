//! What each step of the packet path costs by itself.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "the packets are made here")]

use std::collections::BTreeSet;
use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};

use divan::Bencher;
use divan::counter::BytesCount;
use etherparse::PacketBuilder;
use ipnet::IpNet;
use prefix_trie::joint::JointPrefixMap;
use tunmesh::agent::packet::checksum;
use tunmesh::agent::packet::coalesce::{Coalescer, Merges, Owner};
use tunmesh::agent::packet::parse::Packet;
use tunmesh::agent::packet::split::{HEADERS, Train};
use tunmesh::agent::packet::vnet::{PartialChecksum, SegmentKind, Segmentation, VnetHeader};
use tunmesh::agent::wireguard::message;
use tunmesh::agent::wireguard::tunnel::{Indices, Noise, Sealed, Tunnel};
use tunmesh::proto::host::wireguard::PrivateKey;

/// A full segment of a tunnel with an MTU of 1,472.
const SEGMENT: usize = 1432;
/// As many as one message of the data port has.
const SEGMENTS: usize = 44;
/// The longest packet of an encrypted tunnel whose path carries 1,500 bytes.
const LONGEST: u16 = 1440;
/// The payload of a full segment of such a tunnel.
const SEALED: usize = 1400;

fn main() {
    divan::main();
}

#[divan::bench(args = [64, 1432, 65_535])]
fn sum(bencher: Bencher<'_, '_>, length: usize) {
    let bytes = vec![0x5a; length];
    bencher.counter(BytesCount::from(length)).bench(|| checksum::sum(black_box(&bytes), 0));
}

/// A TCP packet with `payload` bytes.
fn tcp(sequence: u32, payload: usize) -> Vec<u8> {
    let builder =
        PacketBuilder::ipv4([10, 9, 0, 1], [10, 9, 0, 2], 64).tcp(40000, 5201, sequence, 65535).ack(1);
    let mut bytes = Vec::new();
    builder.write(&mut bytes, &vec![0x5a; payload]).unwrap();
    // Not to be fragmented, as TCP's packets are.
    bytes[6] = 0x40;
    let sum = {
        bytes[10..12].fill(0);
        checksum::finish(checksum::sum(&bytes[..20], 0))
    };
    bytes[10..12].copy_from_slice(&sum.to_be_bytes());
    bytes
}

#[divan::bench]
fn split(bencher: Bencher<'_, '_>) {
    let bytes = tcp(1, SEGMENT * SEGMENTS);
    let packet = Packet::parse(&bytes).unwrap();
    let header = VnetHeader {
        checksum: Some(PartialChecksum { start: 20, offset: 16 }),
        segments: Some(Segmentation { kind: SegmentKind::TcpV4, size: SEGMENT as u16 }),
    };
    bencher.counter(BytesCount::from(bytes.len())).bench(|| {
        let train = Train::plan(black_box(header), &packet).unwrap();
        let mut room = [0; HEADERS];
        for index in 0..train.count() {
            black_box(train.packet(index, &mut room));
        }
    });
}

#[divan::bench]
fn coalesce(bencher: Bencher<'_, '_>) {
    let packets: Vec<Vec<u8>> = (0..SEGMENTS).map(|n| tcp((n * SEGMENT) as u32, SEGMENT)).collect();
    let fresh = packets.concat();
    let mut buffer = fresh.clone();
    let mut coalescer = Coalescer::default();
    bencher.counter(BytesCount::from(fresh.len())).bench_local(|| {
        // Merging has rewritten the first header.
        buffer[..40].copy_from_slice(&fresh[..40]);
        let mut at = 0;
        for packet in &packets {
            let end = at + packet.len();
            if !coalescer.extend(&buffer, at..end) {
                let parsed = Packet::parse(packet).unwrap();
                coalescer.push(Owner { device: 0, tunnel: 0 }, Merges::ALL, &buffer, at, &parsed);
            }
            at = end;
        }
        let mut writes = 0;
        coalescer.drain(&mut buffer, |_, write| writes += write.packets);
        assert_eq!(usize::from(writes), SEGMENTS);
    });
}

/// A pair of hosts with a session.
fn session() -> [Noise; 2] {
    let keys = [(); 2].map(|()| PrivateKey::generate().unwrap());
    let end = |own: usize| Noise::new(&keys[own], &keys[1 - own].public(), None, &Indices::default());
    let (mut here, mut there) = (end(0), end(1));
    let response = there.shake(&here.initiate().unwrap()).unwrap().unwrap();
    let mut keepalive = here.shake(&response).unwrap().unwrap();
    there.open(&mut keepalive).unwrap();
    [here, there]
}

/// Encrypts what a device gave as one.
fn seal_all(from: &mut Noise, packet: &[u8], room: &mut Vec<u8>) {
    room.clear();
    for _ in 0..SEGMENTS {
        assert_eq!(from.seal([&packet[..40], &packet[40..]], LONGEST, room), Sealed::Datagram);
    }
}

#[divan::bench]
fn seal(bencher: Bencher<'_, '_>) {
    let ([mut here, _], packet) = (session(), tcp(1, SEALED));
    let mut room = Vec::with_capacity(1 << 17);
    bencher
        .counter(BytesCount::from(packet.len() * SEGMENTS))
        .bench_local(|| seal_all(&mut here, &packet, &mut room));
}

#[divan::bench]
fn open(bencher: Bencher<'_, '_>) {
    let ([mut here, mut there], packet) = (session(), tcp(1, SEALED));
    let length = message::sealed_length(packet.len(), LONGEST.into());
    bencher
        .with_inputs(|| {
            let mut room = Vec::new();
            seal_all(&mut here, &packet, &mut room);
            room
        })
        .counter(BytesCount::from(packet.len() * SEGMENTS))
        .bench_local_refs(|room| {
            for datagram in room.chunks_mut(length) {
                black_box(there.open(datagram).unwrap());
            }
        });
}

/// Which tunnel a packet takes, of so many.
#[divan::bench(args = [1, 10, 1000, 10_000])]
fn lookup(bencher: Bencher<'_, '_>, tunnels: u32) {
    let address = |n: u32| Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 9, 0, 1)) + n);
    let prefixes: JointPrefixMap<IpNet, usize> =
        (0..tunnels).map(|n| (IpNet::from(IpAddr::V4(address(n))), n as usize)).collect();
    let wanted: BTreeSet<IpAddr> =
        (0..tunnels).step_by((tunnels / 16).max(1) as usize).map(|n| address(n).into()).collect();
    bencher.counter(divan::counter::ItemsCount::new(wanted.len())).bench(|| {
        for address in &wanted {
            black_box(prefixes.get_lpm(&IpNet::from(*black_box(address))));
        }
    });
}
