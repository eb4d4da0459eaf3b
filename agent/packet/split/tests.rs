use etherparse::{IpHeaders, IpSlice, TcpHeader, TcpSlice, UdpSlice, ip_number};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use tun_rs::{VirtioNetHdr, gso_split};

use super::*;
use crate::agent::packet::sample::{self, Transport};
use crate::agent::packet::vnet::{self, Segmentation};

/// A packet that is many, as a device hands it out: its checksum field has the pseudo-header's sum.
#[derive(Debug, Clone)]
struct Whole {
    header: VnetHeader,
    bytes: Vec<u8>,
    transport: usize,
}

fn tcp() -> impl Strategy<Value = Transport> {
    let options = vec(any::<u8>(), 0..=10).prop_map(|words| words.repeat(4));
    (any::<(u16, u16, u32, u32, u16, u16)>(), any::<u8>(), options).prop_map(|(fields, flags, options)| {
        let (source, destination, sequence, acknowledgment, window, urgent) = fields;
        let mut header = TcpHeader::new(source, destination, sequence, window);
        header.acknowledgment_number = acknowledgment;
        header.urgent_pointer = urgent;
        header.fin = flags & header::FIN != 0;
        header.psh = flags & header::PSH != 0;
        header.cwr = flags & header::CWR != 0;
        header.ack = flags & 0x10 != 0;
        header.ece = flags & 0x40 != 0;
        header.set_options_raw(&options).unwrap();
        Transport::Tcp(Box::new(header))
    })
}

fn whole_of(ip: impl Strategy<Value = IpHeaders>) -> impl Strategy<Value = Whole> {
    let lengths = (1..=9000u16, 1..=80usize).prop_flat_map(|(size, packets)| {
        let most = (usize::from(size) * packets).min(64_000);
        (Just(size), vec(any::<u8>(), 1..=most))
    });
    (ip, prop_oneof![3 => tcp(), 1 => Just(Transport::Udp)], lengths, any::<bool>()).prop_map(
        |(ip, transport, (size, payload), has_sum)| {
            let kind = match (&transport, ip.ipv4().is_some()) {
                (Transport::Tcp(_), true) => SegmentKind::TcpV4,
                (Transport::Tcp(_), false) => SegmentKind::TcpV6,
                (Transport::Udp | Transport::Echo, _) => SegmentKind::Udp,
            };
            let mut bytes = sample::build(ip, transport, &payload);
            let packet = Packet::parse(&bytes).unwrap();
            let (number, start) = packet.transport().unwrap();
            let offset = if kind == SegmentKind::Udp { header::UDP_CHECKSUM } else { header::TCP_CHECKSUM };
            let length = (bytes.len() - start) as u32;
            let sum = checksum::pseudo_header(packet.source(), packet.destination(), number, length);
            let sum = checksum::fold(sum).to_be_bytes();
            bytes[start + offset..start + offset + 2].copy_from_slice(&sum);
            let partial = PartialChecksum { start: start as u16, offset: offset as u16 };
            let header = VnetHeader {
                checksum: has_sum.then_some(partial),
                segments: Some(Segmentation { kind, size }),
            };
            Whole { header, bytes, transport: start }
        },
    )
}

fn whole() -> impl Strategy<Value = Whole> {
    whole_of(sample::ip())
}

fn plan<'p>(whole: &'p Whole) -> Train<'p> {
    Train::plan(whole.header, &Packet::parse(&whole.bytes).unwrap()).unwrap()
}

fn packets(train: &Train<'_>) -> Vec<Vec<u8>> {
    let mut header = [0xa5; HEADERS];
    (0..)
        .map_while(|index| {
            let payload = train.packet(index, &mut header)?;
            Some([&header[..train.header_length()], payload].concat())
        })
        .collect()
}

/// Asserts that a packet is whole and its checksums right; returns its payload.
fn payload_of(bytes: &[u8]) -> Vec<u8> {
    let ip = IpSlice::from_slice(bytes).unwrap();
    if let Some(v4) = ip.ipv4() {
        assert_eq!(usize::from(v4.header().total_len()), bytes.len());
        assert_eq!(checksum::finish(checksum::sum(v4.header().slice(), 0)), 0);
    }
    let (source, destination) = (ip.source_addr(), ip.destination_addr());
    let upper = ip.payload();
    let pseudo = checksum::pseudo_header(source, destination, upper.ip_number.0, upper.payload.len() as u32);
    assert_eq!(checksum::finish(checksum::sum(upper.payload, pseudo)), 0);
    if upper.ip_number == ip_number::UDP {
        let udp = UdpSlice::from_slice(upper.payload).unwrap();
        assert_eq!(usize::from(udp.length()), upper.payload.len());
        assert_ne!(udp.checksum(), 0);
        udp.payload().to_vec()
    } else {
        TcpSlice::from_slice(upper.payload).unwrap().payload().to_vec()
    }
}

proptest! {
    #[test]
    fn each_packet_is_whole_and_together_they_are_the_payload(whole in whole()) {
        let train = plan(&whole);
        let packets = packets(&train);
        prop_assert_eq!(packets.len(), train.count());
        prop_assert_eq!(packets.iter().map(Vec::len).max().unwrap(), train.longest());
        let size = usize::from(whole.header.segments.unwrap().size);
        let payloads: Vec<Vec<u8>> = packets.iter().map(|packet| payload_of(packet)).collect();
        let (last, others) = payloads.split_last().unwrap();
        prop_assert!(others.iter().all(|payload| payload.len() == size));
        prop_assert!((1..=size).contains(&last.len()));
        prop_assert_eq!(&payloads.concat(), &whole.bytes[train.header_length()..]);
    }

    #[test]
    fn headers_differ_where_the_kernel_makes_them_differ(whole in whole()) {
        let train = plan(&whole);
        let packets = packets(&train);
        let (head, at) = (&whole.bytes[..train.header_length()], whole.transport);
        let is_udp = whole.header.segments.unwrap().kind == SegmentKind::Udp;
        let size = usize::from(whole.header.segments.unwrap().size);
        for (index, packet) in packets.iter().enumerate() {
            let mut expected = head.to_vec();
            let length = packet.len() as u16;
            if head[0] >> 4 == 4 {
                let id = u16::from_be_bytes([head[4], head[5]]).wrapping_add(index as u16);
                expected[2..4].copy_from_slice(&length.to_be_bytes());
                expected[4..6].copy_from_slice(&id.to_be_bytes());
                expected[10..12].copy_from_slice(&packet[10..12]);
            } else {
                expected[4..6].copy_from_slice(&(length - 40).to_be_bytes());
            }
            if is_udp {
                expected[at + 4..at + 6].copy_from_slice(&(length - at as u16).to_be_bytes());
                expected[at + 6..at + 8].copy_from_slice(&packet[at + 6..at + 8]);
            } else {
                let sequence = u32::from_be_bytes(head[at + 4..at + 8].try_into().unwrap());
                let sequence = sequence.wrapping_add((index * size) as u32);
                expected[at + 4..at + 8].copy_from_slice(&sequence.to_be_bytes());
                if index + 1 < packets.len() {
                    expected[at + 13] &= !(header::FIN | header::PSH);
                }
                if index > 0 {
                    expected[at + 13] &= !header::CWR;
                }
                expected[at + 16..at + 18].copy_from_slice(&packet[at + 16..at + 18]);
            }
            prop_assert_eq!(&packet[..expected.len()], &expected[..], "packet {}", index);
        }
    }

    #[test]
    fn another_splitter_makes_the_same(whole in whole_of(plain_ip())) {
        let train = plan(&whole);
        let Segmentation { kind, size } = whole.header.segments.unwrap();
        let mut bytes = whole.header.emit(train.header_length() as u16);
        bytes[0] = 1;
        bytes[6..8].copy_from_slice(&(whole.transport as u16).to_ne_bytes());
        let offset = if kind == SegmentKind::Udp { header::UDP_CHECKSUM } else { header::TCP_CHECKSUM };
        bytes[8..10].copy_from_slice(&(offset as u16).to_ne_bytes());
        let header = VirtioNetHdr::decode(&bytes).unwrap();
        let mut input = whole.bytes.clone();
        let mut out = vec![vec![0; train.header_length() + usize::from(size)]; train.count()];
        let mut sizes = vec![0; out.len()];
        let is_v6 = whole.bytes[0] >> 4 == 6;
        let count = gso_split(&mut input, header, &mut out, &mut sizes, 0, is_v6).unwrap();
        let theirs: Vec<&[u8]> = out.iter().zip(&sizes).take(count).map(|(packet, size)| &packet[..*size]).collect();
        prop_assert_eq!(theirs, packets(&train));
    }

    #[test]
    fn a_completed_checksum_is_right(packet in sample::packet()) {
        let parsed = Packet::parse(&packet).unwrap();
        let Some((number, start)) = parsed.transport() else { return Ok(()) };
        let offset = match number {
            protocol::TCP => header::TCP_CHECKSUM,
            protocol::UDP => header::UDP_CHECKSUM,
            _ => return Ok(()),
        };
        let length = (packet.len() - start) as u32;
        let sum = checksum::pseudo_header(parsed.source(), parsed.destination(), number, length);
        let mut partial = packet.clone();
        partial[start + offset..start + offset + 2].copy_from_slice(&checksum::fold(sum).to_be_bytes());
        complete(&mut partial, PartialChecksum { start: start as u16, offset: offset as u16 }).unwrap();
        prop_assert_eq!(partial, packet);
    }

    #[test]
    fn a_field_outside_the_packet_changes_nothing(mut packet in vec(any::<u8>(), 0..100), start: u16, offset in 0..200u16) {
        let before = packet.clone();
        let fits = usize::from(start) + usize::from(offset) + 2 <= packet.len();
        prop_assert_eq!(complete(&mut packet, PartialChecksum { start, offset }).is_ok(), fits);
        if !fits {
            prop_assert_eq!(packet, before);
        }
    }

    #[test]
    fn nothing_that_a_device_could_say_panics(
        bytes in sample::hostile(), header: [u8; vnet::LENGTH], size: u16, kind in prop::sample::select(vec![1u8, 4, 5]),
    ) {
        let mut said = header;
        said[1] = kind;
        said[4..6].copy_from_slice(&size.to_ne_bytes());
        for said in [header, said] {
            let Ok(header) = VnetHeader::parse(said) else { continue };
            let Ok(packet) = Packet::parse(&bytes) else { continue };
            if let Ok(train) = Train::plan(header, &packet) {
                prop_assert_eq!(packets(&train).len(), train.count());
            }
        }
    }
}

/// What the other splitter knows: no IPv6 extension headers.
fn plain_ip() -> impl Strategy<Value = IpHeaders> {
    prop_oneof![
        sample::v4().prop_map(|header| IpHeaders::Ipv4(header, Default::default())),
        sample::v6().prop_map(|(header, _)| IpHeaders::Ipv6(header, Default::default())),
    ]
}

#[test]
fn what_does_not_fit_is_refused() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let whole = loop {
        let whole = whole().new_tree(&mut runner).unwrap().current();
        if whole.header.checksum.is_some() && whole.header.segments.unwrap().kind == SegmentKind::TcpV4 {
            break whole;
        }
    };
    let refused = |header: VnetHeader, bytes: &[u8]| {
        Packet::parse(bytes).map_or(true, |packet| Train::plan(header, &packet).is_err())
    };
    assert!(!refused(whole.header, &whole.bytes));
    let Segmentation { size, .. } = whole.header.segments.unwrap();
    for kind in [SegmentKind::TcpV6, SegmentKind::Udp] {
        let header = VnetHeader { segments: Some(Segmentation { kind, size }), ..whole.header };
        assert!(refused(header, &whole.bytes), "{kind:?}");
    }
    let partial = whole.header.checksum.unwrap();
    for partial in [
        PartialChecksum { start: partial.start + 1, ..partial },
        PartialChecksum { offset: 6, ..partial },
        PartialChecksum { start: 0, ..partial },
    ] {
        assert!(refused(VnetHeader { checksum: Some(partial), ..whole.header }, &whole.bytes));
    }
    assert!(refused(VnetHeader { segments: None, ..whole.header }, &whole.bytes));
    let mut empty = whole.bytes[..plan(&whole).header_length()].to_vec();
    let length = (empty.len() as u16).to_be_bytes();
    empty[2..4].copy_from_slice(&length);
    assert!(refused(whole.header, &empty));
    for words in 0..5 {
        let mut short = whole.bytes.clone();
        short[whole.transport + 12] = words << 4;
        assert!(refused(whole.header, &short), "{words}");
    }
}
