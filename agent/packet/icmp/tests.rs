use etherparse::icmpv4::DestUnreachableHeader;
use etherparse::icmpv6::DestUnreachableCode;
use etherparse::{
    Icmpv4Header, Icmpv4Type, Icmpv6Type, IpFragOffset, IpHeaders, Ipv4Header, Ipv6Extensions,
    Ipv6FragmentHeader, Ipv6Header, NetSlice, PacketBuilder, SlicedPacket, TransportSlice, ip_number,
};
use proptest::prelude::*;

use super::*;
use crate::agent::packet::sample::{self, Transport};

const A4: [u8; 4] = [10, 0, 0, 1];
const B4: [u8; 4] = [10, 0, 0, 2];
const A6: [u8; 16] = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
const B6: [u8; 16] = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];

fn v4(source: [u8; 4], destination: [u8; 4]) -> IpHeaders {
    IpHeaders::Ipv4(Ipv4Header { source, destination, ..Default::default() }, Default::default())
}

fn v6(source: [u8; 16], destination: [u8; 16]) -> IpHeaders {
    IpHeaders::Ipv6(Ipv6Header { source, destination, ..Default::default() }, Default::default())
}

fn is_answered(bytes: &[u8]) -> bool {
    let packet = Packet::parse(bytes).unwrap();
    let answers = [too_big(&packet, 1400).is_some(), unreachable(&packet).is_some()];
    assert_eq!(answers[0], answers[1]);
    answers[0]
}

/// Takes an answer apart: its type, and that what both kinds have in common is right.
fn check(answer: &[u8], refused: &[u8]) -> (Option<Icmpv4Type>, Option<Icmpv6Type>) {
    let packet = Packet::parse(refused).unwrap();
    let parsed = SlicedPacket::from_ip(answer).unwrap();
    match (parsed.net.unwrap(), parsed.transport.unwrap()) {
        (NetSlice::Ipv4(ip), TransportSlice::Icmpv4(icmp)) => {
            let header = ip.header();
            assert_eq!(IpAddr::V4(header.source_addr()), packet.destination());
            assert_eq!(IpAddr::V4(header.destination_addr()), packet.source());
            assert_eq!((header.ttl(), header.dont_fragment(), header.more_fragments()), (64, true, false));
            assert_eq!(header.header_checksum(), header.to_header().calc_header_checksum());
            assert_eq!(icmp.payload(), &refused[..refused.len().min(548)]);
            assert_eq!(
                icmp.checksum(),
                Icmpv4Header::with_checksum(icmp.icmp_type(), icmp.payload()).checksum
            );
            assert!(answer.len() <= 576);
            (Some(icmp.icmp_type()), None)
        }
        (NetSlice::Ipv6(ip), TransportSlice::Icmpv6(icmp)) => {
            let header = ip.header();
            assert_eq!(IpAddr::V6(header.source_addr()), packet.destination());
            assert_eq!(IpAddr::V6(header.destination_addr()), packet.source());
            assert_eq!(header.hop_limit(), 64);
            assert!(icmp.is_checksum_valid(header.source(), header.destination()));
            assert_eq!(icmp.payload(), &refused[..refused.len().min(1232)]);
            assert!(answer.len() <= 1280);
            (None, Some(icmp.icmp_type()))
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn errors_are_not_answered() {
    for kind in 0..=255 {
        let mut bytes = Vec::new();
        let builder = PacketBuilder::ip(v4(A4, B4)).icmpv4_raw(kind, 0, [0; 4]);
        builder.write(&mut bytes, &[]).unwrap();
        assert_eq!(is_answered(&bytes), ![3, 4, 5, 11, 12].contains(&kind), "ICMP type {kind}");

        let mut bytes = Vec::new();
        let builder = PacketBuilder::ip(v6(A6, B6)).icmpv6_raw(kind, 0, [0; 4]);
        builder.write(&mut bytes, &[]).unwrap();
        assert_eq!(is_answered(&bytes), kind >= 128 && kind != 137, "ICMPv6 type {kind}");
    }
}

#[test]
fn what_may_be_an_error_is_not_answered() {
    for ip in [v4(A4, B4), v6(A6, B6)] {
        let mut echo = sample::build(ip, Transport::Echo, &[]);
        echo.truncate(echo.len() - 8);
        let length = echo.len() as u8;
        if Packet::parse(&echo).is_ok() {
            panic!("still whole");
        }
        match echo[0] >> 4 {
            4 => echo[3] = length,
            _ => echo[5] = 0,
        }
        assert!(!is_answered(&echo), "no ICMP type");
    }
    let mut bytes = sample::build(v6(A6, B6), Transport::Udp, &[]);
    bytes[6] = protocol::DESTINATION_OPTIONS;
    bytes[41] = 200;
    assert!(!is_answered(&bytes), "extension headers that do not fit");
}

#[test]
fn only_the_first_fragment_is_answered() {
    for offset in 0..2 {
        let fragment_offset = IpFragOffset::try_new(offset).unwrap();
        let header = Ipv4Header { source: A4, destination: B4, fragment_offset, ..Default::default() };
        let ip = IpHeaders::Ipv4(header, Default::default());
        assert_eq!(is_answered(&sample::build(ip, Transport::Udp, &[])), offset == 0);

        let header = Ipv6Header { source: A6, destination: B6, ..Default::default() };
        let fragment = Some(Ipv6FragmentHeader::new(ip_number::UDP, fragment_offset, true, 1));
        let ip = IpHeaders::Ipv6(header, Ipv6Extensions { fragment, ..Default::default() });
        assert_eq!(is_answered(&sample::build(ip, Transport::Udp, &[])), offset == 0);
    }
}

#[test]
fn only_single_hosts_are_answered() {
    let answered = |ip: IpHeaders| is_answered(&sample::build(ip, Transport::Udp, &[]));
    for other in
        [[0; 4], [0, 1, 2, 3], [127, 0, 0, 1], [224, 0, 0, 1], [239, 1, 1, 1], [240, 0, 0, 1], [255; 4]]
    {
        assert!(!answered(v4(other, B4)), "from {other:?}");
        assert!(!answered(v4(A4, other)), "to {other:?}");
    }
    let loopback = Ipv6Addr::LOCALHOST.octets();
    let all_nodes = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    for other in [[0; 16], loopback, all_nodes] {
        assert!(!answered(v6(other, B6)), "from {other:?}");
        assert!(!answered(v6(A6, other)), "to {other:?}");
    }
    for other in [[1, 0, 0, 1], [126, 1, 1, 1], [128, 0, 0, 1], [223, 255, 255, 255]] {
        assert!(answered(v4(other, B4)) && answered(v4(A4, other)), "{other:?}");
    }
}

proptest! {
    #[test]
    fn too_big_tells_the_mtu(refused in sample::packet(), mtu: u16) {
        let answer = too_big(&Packet::parse(&refused).unwrap(), mtu).unwrap();
        match check(&answer, &refused) {
            (Some(v4), _) => prop_assert_eq!(v4, Icmpv4Type::DestinationUnreachable(
                DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: mtu })),
            (_, v6) => prop_assert_eq!(v6, Some(Icmpv6Type::PacketTooBig { mtu: mtu.into() })),
        }
    }

    #[test]
    fn unreachable_is_told(refused in sample::packet()) {
        let answer = unreachable(&Packet::parse(&refused).unwrap()).unwrap();
        match check(&answer, &refused) {
            (Some(v4), _) => {
                prop_assert_eq!(v4, Icmpv4Type::DestinationUnreachable(DestUnreachableHeader::Host));
            }
            (_, v6) => {
                prop_assert_eq!(v6, Some(Icmpv6Type::DestinationUnreachable(DestUnreachableCode::NoRoute)));
            }
        }
        prop_assert!(!is_answered(&answer), "an answer to the answer");
    }

    #[test]
    fn whatever_is_answered_gets_a_whole_answer(bytes in sample::hostile(), mtu: u16) {
        let Ok(packet) = Packet::parse(&bytes) else { return Ok(()) };
        for answer in [too_big(&packet, mtu), unreachable(&packet)].into_iter().flatten() {
            check(&answer, packet.bytes());
        }
    }
}
