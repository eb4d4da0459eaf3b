use std::collections::BTreeMap;

use etherparse::{IpHeaders, Ipv4Header, Ipv6Header, TcpHeader};
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::agent::packet::sample::{self, Transport};
use crate::agent::packet::split::{HEADERS, Train};

/// A write, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Written {
    owner: Owner,
    header: VnetHeader,
    bytes: Vec<u8>,
    packets: u16,
    counted: usize,
}

/// What comes out of packets that arrive one after the other.
fn coalesce(arrivals: &[(Owner, Vec<u8>)]) -> Vec<Written> {
    let mut coalescer = Coalescer::default();
    let written = coalesce_with(&mut coalescer, arrivals, false);
    // A drained one is as good as a new one, and the short cut for trains changes nothing.
    assert_eq!(coalesce_with(&mut coalescer, arrivals, true), written);
    written
}

fn coalesce_with(coalescer: &mut Coalescer, arrivals: &[(Owner, Vec<u8>)], extends: bool) -> Vec<Written> {
    let mut buffer: Vec<u8> = arrivals.iter().flat_map(|(_, bytes)| bytes).copied().collect();
    let (mut at, mut before) = (0, None);
    for (owner, bytes) in arrivals {
        let place = at..at + bytes.len();
        if !(extends && before == Some(owner) && coalescer.extend(&buffer, place)) {
            coalescer.push(*owner, Merges::ALL, &buffer, at, &Packet::parse(bytes).unwrap());
        }
        (at, before) = (at + bytes.len(), Some(owner));
    }
    assert_eq!(coalescer.is_empty(), arrivals.is_empty());
    let mut written = Vec::new();
    coalescer.drain(&mut buffer, |buffer, write| {
        let bytes = write.pieces().flat_map(|piece| &buffer[piece]).copied().collect();
        let header = VnetHeader::parse(write.header).unwrap();
        let (owner, packets, counted) = (write.owner, write.packets, write.bytes);
        written.push(Written { owner, header, bytes, packets, counted });
    });
    assert!(coalescer.is_empty());
    written
}

/// The packets of a write as the kernel splits it.
fn split(written: &Written) -> Vec<Vec<u8>> {
    if written.header.segments.is_none() {
        assert_eq!(written.header.checksum, None);
        return vec![written.bytes.clone()];
    }
    assert!(written.bytes.len() <= LONGEST);
    assert!((2..=SEGMENTS).contains(&written.packets));
    let train = Train::plan(written.header, &Packet::parse(&written.bytes).unwrap()).unwrap();
    let mut header = [0; HEADERS];
    let packets: Vec<Vec<u8>> = (0..)
        .map_while(|index| {
            let payload = train.packet(index, &mut header)?;
            Some([&header[..train.header_length()], payload].concat())
        })
        .collect();
    assert_eq!(packets.len(), usize::from(written.packets));
    packets
}

/// The packet without what may change: the identification of an IPv4 packet that is never fragmented.
fn comparable(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    if bytes[0] >> 4 == 4 && bytes[6] & 0x40 != 0 {
        bytes[4..6].fill(0);
        bytes[10..12].fill(0);
    }
    bytes
}

type Key = (Owner2, Vec<u8>);
type Owner2 = (u32, u32);

/// By whom and between whom packets go: tunnel and addresses, and protocol and ports where they can be told.
fn flow_of(owner: Owner, bytes: &[u8]) -> Key {
    let packet = Packet::parse(bytes).unwrap();
    let hosts = format!("{} {}", packet.source(), packet.destination()).into_bytes();
    let ports =
        ports(&packet).map(|(protocol, ports)| [&[protocol], &ports[..]].concat()).unwrap_or_default();
    ((owner.device, owner.tunnel), [hosts, ports].concat())
}

/// One direction of one connection that sends for a while.
#[derive(Debug, Clone)]
struct Sender {
    is_v4: bool,
    is_tcp: bool,
    host: u8,
    port: u16,
    dont_fragment: bool,
    size: usize,
    owner: u32,
}

fn sender() -> impl Strategy<Value = Sender> {
    (any::<(bool, bool, bool)>(), 0..2u8, 0..3u16, prop_oneof![1..40usize, 500..1500usize], 0..2u32).prop_map(
        |((is_v4, is_tcp, dont_fragment), host, port, size, owner)| Sender {
            is_v4,
            is_tcp,
            host,
            port,
            dont_fragment,
            size,
            owner,
        },
    )
}

/// What is odd about one packet.
#[derive(Debug, Clone)]
enum Oddity {
    None,
    Short,
    Push,
    Acknowledgement,
    Window,
    Tos,
    Ttl,
    Lost,
    Again,
    Damaged(prop::sample::Index, u8),
    Fragment,
    Options,
    Flags(u8),
    NoChecksum,
}

fn oddity() -> impl Strategy<Value = Oddity> {
    prop_oneof![
        40 => Just(Oddity::None),
        2 => Just(Oddity::Short),
        2 => Just(Oddity::Push),
        1 => Just(Oddity::Acknowledgement),
        1 => Just(Oddity::Window),
        1 => Just(Oddity::Tos),
        1 => Just(Oddity::Ttl),
        2 => Just(Oddity::Lost),
        2 => Just(Oddity::Again),
        2 => (any::<prop::sample::Index>(), 1..=255u8).prop_map(|(at, bits)| Oddity::Damaged(at, bits)),
        1 => Just(Oddity::Fragment),
        1 => Just(Oddity::Options),
        2 => any::<u8>().prop_map(Oddity::Flags),
        1 => Just(Oddity::NoChecksum),
    ]
}

/// What one sender sends.
fn stream(sender: Sender, oddities: Vec<Oddity>, payload: u8) -> Vec<(Owner, Vec<u8>)> {
    let owner = Owner { device: 0, tunnel: sender.owner };
    let mut sequence = 0xffff_f000_u32.wrapping_add(u32::from(payload) * 100);
    let mut identification = 0xfff8_u16;
    let (mut acknowledgment, mut window, mut tos, mut ttl) = (7, 1000, 0, 64);
    let mut sent: Vec<(Owner, Vec<u8>)> = Vec::new();
    for (number, oddity) in oddities.into_iter().enumerate() {
        let mut tcp = TcpHeader::new(1000 + sender.port, 80, sequence, window);
        tcp.ack = true;
        let mut size = sender.size;
        let mut options = Vec::new();
        match oddity {
            Oddity::Short => size = size.div_ceil(2),
            Oddity::Push => tcp.psh = true,
            Oddity::Acknowledgement => acknowledgment += 1,
            Oddity::Window => window += 1,
            Oddity::Tos => tos ^= 4,
            Oddity::Ttl => ttl ^= 1,
            Oddity::Options => options = vec![1, 1, 1, 1],
            Oddity::Lost => {
                sequence = sequence.wrapping_add(size as u32);
                identification = identification.wrapping_add(1);
                continue;
            }
            Oddity::Again => {
                let last = sent.last().cloned();
                sent.extend(last);
                continue;
            }
            Oddity::None | Oddity::Damaged(..) | Oddity::Fragment | Oddity::Flags(_) | Oddity::NoChecksum => {
            }
        }
        tcp.acknowledgment_number = acknowledgment;
        tcp.window_size = window;
        if !options.is_empty() && number % 2 == 0 {
            tcp.set_options_raw(&options).unwrap();
            options.clear();
        }
        let transport = if sender.is_tcp { Transport::Tcp(Box::new(tcp)) } else { Transport::Udp };
        let ip = if sender.is_v4 {
            let header = Ipv4Header {
                source: [10, 0, 0, sender.host],
                destination: [10, 0, 1, 1],
                identification,
                dont_fragment: sender.dont_fragment,
                time_to_live: ttl,
                dscp: (tos >> 2).try_into().unwrap(),
                options: options.as_slice().try_into().unwrap(),
                ..Default::default()
            };
            IpHeaders::Ipv4(header, Default::default())
        } else {
            let header = Ipv6Header {
                source: [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, sender.host],
                destination: [0xfd; 16],
                hop_limit: ttl,
                traffic_class: tos,
                ..Default::default()
            };
            IpHeaders::Ipv6(header, Default::default())
        };
        let content: Vec<u8> =
            (0..size).map(|at| (at as u8).wrapping_add(payload).wrapping_mul(31)).collect();
        let mut bytes = sample::build(ip, transport, &content);
        let start = Packet::parse(&bytes).unwrap().transport().unwrap().1;
        match oddity {
            Oddity::Damaged(at, bits) => {
                // Not the version, lengths or protocol: the packet is still one of this flow, or of another.
                let at = start + at.index(bytes.len() - start);
                bytes[at] ^= bits;
            }
            Oddity::Fragment if sender.is_v4 => {
                bytes[6] |= 0x20;
                bytes[10..12].fill(0);
                let sum = checksum::finish(checksum::sum(&bytes[..start], 0));
                bytes[10..12].copy_from_slice(&sum.to_be_bytes());
            }
            Oddity::Flags(flags) if sender.is_tcp => {
                let old = u16::from_be_bytes([bytes[start + 12], bytes[start + 13]]);
                bytes[start + 13] = flags;
                let new = u16::from_be_bytes([bytes[start + 12], flags]);
                let sum = u16::from_be_bytes([bytes[start + 16], bytes[start + 17]]);
                bytes[start + 16..start + 18].copy_from_slice(&checksum::update(sum, old, new).to_be_bytes());
            }
            Oddity::NoChecksum if !sender.is_tcp => bytes[start + 6..start + 8].fill(0),
            Oddity::Fragment
            | Oddity::Flags(_)
            | Oddity::NoChecksum
            | Oddity::None
            | Oddity::Short
            | Oddity::Push
            | Oddity::Acknowledgement
            | Oddity::Window
            | Oddity::Tos
            | Oddity::Ttl
            | Oddity::Lost
            | Oddity::Again
            | Oddity::Options => {}
        }
        sequence = sequence.wrapping_add(size as u32);
        identification = identification.wrapping_add(1);
        sent.push((owner, bytes));
    }
    sent
}

/// Packets of several senders, interleaved.
fn arrivals() -> impl Strategy<Value = Vec<(Owner, Vec<u8>)>> {
    let streams = vec((sender(), vec(oddity(), 0..90), any::<u8>()), 1..5);
    (streams, vec((any::<prop::sample::Index>(), 1..30usize), 0..60)).prop_map(|(streams, turns)| {
        let mut queues: Vec<Vec<(Owner, Vec<u8>)>> = streams
            .into_iter()
            .map(|(sender, oddities, payload)| {
                let mut packets = stream(sender, oddities, payload);
                packets.reverse();
                packets
            })
            .collect();
        let mut arrivals = Vec::new();
        for (queue, count) in turns {
            let queue = queue.index(queues.len());
            for _ in 0..count {
                arrivals.extend(queues[queue].pop());
            }
        }
        arrivals
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    #[test]
    fn what_was_merged_is_split_into_what_arrived(arrivals in arrivals()) {
        let written = coalesce(&arrivals);
        prop_assert_eq!(written.iter().map(|write| usize::from(write.packets)).sum::<usize>(), arrivals.len());
        let counted: usize = written.iter().map(|write| write.counted).sum();
        prop_assert_eq!(counted, arrivals.iter().map(|(_, bytes)| bytes.len()).sum::<usize>());
        let mut flows: BTreeMap<Key, [Vec<Vec<u8>>; 2]> = BTreeMap::new();
        for (owner, bytes) in &arrivals {
            flows.entry(flow_of(*owner, bytes)).or_default()[0].push(comparable(bytes));
        }
        for write in &written {
            for bytes in split(write) {
                flows.entry(flow_of(write.owner, &bytes)).or_default()[1].push(comparable(&bytes));
            }
        }
        for (flow, [arrived, left]) in flows {
            prop_assert_eq!(arrived, left, "{:?}", flow);
        }
    }

    #[test]
    fn what_is_alone_is_as_it_was(arrivals in arrivals()) {
        let written = coalesce(&arrivals);
        let mut rest = arrivals.iter();
        for write in written.iter().filter(|write| write.packets == 1) {
            prop_assert_eq!(write.header, VnetHeader { checksum: None, segments: None });
            prop_assert!(rest.any(|(owner, bytes)| *owner == write.owner && *bytes == write.bytes));
        }
    }

    #[test]
    fn a_packet_of_any_kind_comes_out(packets in vec(sample::packet(), 0..40)) {
        let owner = Owner { device: 1, tunnel: 2 };
        let arrivals: Vec<_> = packets.into_iter().map(|bytes| (owner, bytes)).collect();
        let out: usize = coalesce(&arrivals).iter().map(|write| usize::from(write.packets)).sum();
        prop_assert_eq!(out, arrivals.len());
    }

    #[test]
    fn a_train_in_two_parts_is_one_again(sender in sender(), count in 2..60usize, cut in 1..60usize, payload: u8) {
        let sender = Sender { is_tcp: true, size: sender.size.min(900), ..sender };
        let train = stream(sender, vec![Oddity::None; count], payload);
        prop_assert_eq!(coalesce(&train).len(), 1);
        // The kernel hands out trains cut anywhere: what came in an earlier reading is not waited for.
        let (first, second) = train.split_at(cut.min(count));
        let parts: Vec<_> = [first, second].into_iter().flat_map(coalesce).collect();
        prop_assert_eq!(parts.iter().flat_map(split).map(|bytes| comparable(&bytes)).collect::<Vec<_>>(),
            train.iter().map(|(_, bytes)| comparable(bytes)).collect::<Vec<_>>());
    }
}

fn plain(is_tcp: bool) -> Sender {
    Sender { is_v4: true, is_tcp, host: 1, port: 1, dont_fragment: true, size: 100, owner: 0 }
}

#[test]
fn as_many_are_merged_as_the_kernel_takes() {
    let sizes = |is_tcp, size, count| {
        let train = stream(Sender { size, ..plain(is_tcp) }, vec![Oddity::None; count], 1);
        coalesce(&train).iter().map(|write| write.packets).collect::<Vec<_>>()
    };
    assert_eq!(sizes(true, 100, 130), [64, 64, 2]);
    assert_eq!(sizes(false, 10, 130), [64, 64, 2]);
    assert_eq!(sizes(true, 1400, 47), [46, 1]);
}

#[test]
fn more_flows_than_are_merged_at_once_end_the_oldest() {
    let flows: Vec<_> = (0..OPEN as u16 + 1)
        .map(|port| stream(Sender { port, ..plain(true) }, vec![Oddity::None; 2], 1))
        .collect();
    let arrivals: Vec<_> = (0..2).flat_map(|turn| flows.iter().map(move |flow| flow[turn].clone())).collect();
    let written = coalesce(&arrivals);
    assert_eq!(written.iter().filter(|write| write.packets == 2).count(), 0);
    let arrivals: Vec<_> =
        (0..2).flat_map(|turn| flows[1..].iter().map(move |flow| flow[turn].clone())).collect();
    assert_eq!(coalesce(&arrivals).iter().filter(|write| write.packets == 2).count(), OPEN);
}

#[test]
fn a_damaged_packet_is_never_given_a_good_checksum() {
    for is_tcp in [true, false] {
        for damaged in 0..3 {
            let mut train = stream(plain(is_tcp), vec![Oddity::None; 3], 1);
            *train[damaged].1.last_mut().unwrap() ^= 1;
            let written = coalesce(&train);
            let alone = written.iter().find(|write| write.bytes == train[damaged].1).unwrap();
            assert_eq!(alone.header, VnetHeader { checksum: None, segments: None });
            // The IPv4 header's as well.
            let mut train = stream(plain(is_tcp), vec![Oddity::None; 3], 1);
            train[damaged].1[11] ^= 1;
            assert!(coalesce(&train).iter().any(|write| write.bytes == train[damaged].1));
        }
    }
}

#[test]
fn a_train_is_extended_only_between_the_same_hosts() {
    // Both directions between two hosts have the same sum of addresses, and so the same checksum.
    let [there, back] =
        [([10, 0, 0, 1], [10, 0, 0, 2]), ([10, 0, 0, 2], [10, 0, 0, 1])].map(|(source, destination)| {
            let header = Ipv4Header {
                source,
                destination,
                dont_fragment: true,
                time_to_live: 64,
                ..Default::default()
            };
            sample::build(IpHeaders::Ipv4(header, Default::default()), Transport::Udp, &[7; 100])
        });
    assert!(extends(&there, &there));
    assert!(!extends(&there, &back));
}

#[test]
fn a_train_is_not_extended_by_what_lies_behind_a_packet() {
    let train = stream(Sender { size: 200, ..plain(true) }, vec![Oddity::None, Oddity::Short], 1);
    let [(_, first), (_, second)] = train.try_into().unwrap();
    assert!(extends(&first, &second));
    // Two bytes that make up for the length that they add.
    assert!(!extends(&first, &[&second[..], &(!2_u16).to_be_bytes()].concat()));
}

/// Whether `second` is taken in as what goes on where `first` ended.
fn extends(first: &[u8], second: &[u8]) -> bool {
    let buffer = [first, second].concat();
    let mut coalescer = Coalescer::default();
    let owner = Owner { device: 0, tunnel: 0 };
    coalescer.push(owner, Merges::ALL, &buffer, 0, &Packet::parse(first).unwrap());
    coalescer.extend(&buffer, first.len()..buffer.len())
}
