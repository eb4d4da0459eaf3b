use etherparse::{IpSlice, Ipv4HeaderSlice};
use proptest::prelude::*;

use super::*;
use crate::agent::packet::sample;

const UDP: u8 = 17;

/// An IPv4 header of 20 bytes and eight more, `fragment_field` as given.
fn v4(fragment_field: u16) -> Vec<u8> {
    let mut bytes = vec![0; 28];
    bytes[0] = 0x45;
    bytes[3] = 28;
    bytes[6..8].copy_from_slice(&fragment_field.to_be_bytes());
    bytes[9] = UDP;
    bytes
}

/// An IPv6 packet of extension headers, each with its own number and its bytes, and then eight bytes of UDP.
fn v6(extensions: &[(u8, [u8; 8])]) -> Vec<u8> {
    let mut bytes = vec![0; 40];
    bytes[0] = 0x60;
    bytes[5] = extensions.len() as u8 * 8 + 8;
    bytes[6] = extensions.first().map_or(UDP, |(number, _)| *number);
    for (index, (_, header)) in extensions.iter().enumerate() {
        bytes.extend(header);
        bytes[40 + index * 8] = extensions.get(index + 1).map_or(UDP, |(number, _)| *number);
    }
    bytes.extend([0; 8]);
    bytes
}

fn malformed(bytes: &[u8]) -> Option<Malformed> {
    Packet::parse(bytes).err()
}

#[test]
fn what_is_no_packet_is_told_why() {
    assert_eq!(malformed(&[]), Some(Malformed::Empty));
    assert_eq!(malformed(&[0x55; 60]), Some(Malformed::Version));
    assert_eq!(malformed(&v4(0)[..19]), Some(Malformed::HeaderTruncated));
    assert_eq!(malformed(&v6(&[])[..39]), Some(Malformed::HeaderTruncated));
    assert_eq!(malformed(&v4(0)[..27]), Some(Malformed::LengthMismatch));
    assert_eq!(malformed(&v6(&[])[..47]), Some(Malformed::LengthMismatch));

    let with = |at: usize, value: u8| {
        let mut bytes = v4(0);
        bytes[at] = value;
        bytes
    };
    assert_eq!(malformed(&with(0, 0x44)), Some(Malformed::HeaderLength));
    assert_eq!(malformed(&with(0, 0x48)), Some(Malformed::HeaderTruncated));
    assert_eq!(malformed(&with(3, 19)), Some(Malformed::LengthMismatch));
    assert_eq!(malformed(&with(3, 0)), Some(Malformed::LengthMismatch));
    assert_eq!(malformed(&with(3, 20)), None);
}

#[test]
fn a_jumbogram_is_its_header() {
    let mut bytes = v6(&[(protocol::HOP_BY_HOP, [0; 8])]);
    bytes[5] = 0;
    let packet = Packet::parse(&bytes).unwrap();
    assert_eq!(packet.bytes(), &bytes[..40]);
    assert_eq!(packet.transport(), None);
}

#[test]
fn only_the_first_fragment_has_the_transport_header() {
    let check = |bytes: &[u8], dont_fragment: bool, first: bool, transport: Option<usize>| {
        let packet = Packet::parse(bytes).unwrap();
        assert_eq!(packet.dont_fragment(), dont_fragment);
        assert_eq!(packet.is_first_fragment_or_whole(), first);
        assert_eq!(packet.transport(), transport.map(|offset| (UDP, offset)));
    };
    check(&v4(0x0000), false, true, Some(20));
    check(&v4(0x4000), true, true, Some(20));
    check(&v4(0x2000), false, true, Some(20));
    check(&v4(0x0001), false, false, None);
    check(&v4(0x1000), false, false, None);
    check(&v4(0x3fff), false, false, None);

    let fragment = |high, low| (protocol::FRAGMENT, [0, 0xff, high, low, 0, 0, 0, 0]);
    let options = (protocol::DESTINATION_OPTIONS, [0; 8]);
    check(&v6(&[]), true, true, Some(40));
    check(&v6(&[fragment(0, 1)]), true, true, Some(48));
    check(&v6(&[options, fragment(0, 7), options]), true, true, Some(64));
    check(&v6(&[fragment(0, 8)]), true, false, None);
    check(&v6(&[options, fragment(0x80, 0)]), true, false, None);
}

#[test]
fn extension_headers_fit_and_are_bounded() {
    let options = (protocol::DESTINATION_OPTIONS, [0; 8]);
    let transport = |bytes: &[u8]| Packet::parse(bytes).unwrap().transport();
    assert_eq!(transport(&v6(&[options; 8])), Some((UDP, 104)));
    assert_eq!(transport(&v6(&[options; 9])), None);

    let mut long = v6(&[options]);
    long[41] = 1;
    assert_eq!(transport(&long), Some((UDP, 56)), "ends where the packet ends");
    long[41] = 2;
    assert_eq!(transport(&long), None, "longer than the packet");

    let mut short = v6(&[options]);
    short[5] = 7;
    assert_eq!(transport(&short), None, "no room for one");
}

proptest! {
    #[test]
    fn reads_packets_as_another_parser_does(bytes in sample::packet(), padding in 0..50usize) {
        let padded = [&bytes[..], &vec![0xa5; padding]].concat();
        let packet = Packet::parse(&padded).unwrap();
        let other = IpSlice::from_slice(&bytes).unwrap();
        prop_assert_eq!(packet.bytes(), &bytes[..]);
        prop_assert_eq!(packet.is_v4(), other.ipv4().is_some());
        prop_assert_eq!(packet.source(), other.source_addr());
        prop_assert_eq!(packet.destination(), other.destination_addr());
        prop_assert!(packet.is_first_fragment_or_whole());
        prop_assert_eq!(packet.dont_fragment(), other.ipv4().is_none_or(|v4| v4.header().dont_fragment()));
        let payload = other.payload();
        prop_assert_eq!(packet.transport(), Some((payload.ip_number.0, bytes.len() - payload.payload.len())));
    }

    #[test]
    fn what_it_accepts_can_be_indexed(bytes in sample::hostile()) {
        if let Ok(packet) = Packet::parse(&bytes) {
            prop_assert!(bytes.starts_with(packet.bytes()));
            prop_assert!(packet.header_length() <= packet.bytes().len());
            prop_assert!(packet.transport().is_none_or(|(_, offset)| offset <= packet.bytes().len()));
            prop_assert_eq!(packet.source().is_ipv4(), packet.destination().is_ipv4());
        }
    }

    #[test]
    fn accepts_the_ipv4_headers_that_another_parser_does(bytes in sample::hostile()) {
        let other = Ipv4HeaderSlice::from_slice(&bytes)
            .is_ok_and(|header| header.payload_len().is_ok() && usize::from(header.total_len()) <= bytes.len());
        let ours = Packet::parse(&bytes).is_ok_and(|packet| packet.is_v4());
        prop_assert_eq!(ours, other);
    }
}
