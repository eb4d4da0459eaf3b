use etherparse::defrag::IpDefragPool;
use etherparse::{IpFragOffset, Ipv4Header, Ipv4HeaderSlice, SlicedPacket, ip_number};
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::agent::packet::sample;

fn packet(mut header: Ipv4Header, payload: &[u8]) -> Vec<u8> {
    header.dont_fragment = false;
    header.protocol = ip_number::UDP;
    header.set_payload_len(payload.len()).unwrap();
    header.header_checksum = header.calc_header_checksum();
    [&header.to_bytes(), payload].concat()
}

fn cut(bytes: &[u8], mtu: u16) -> Vec<Vec<u8>> {
    fragments(&Packet::parse(bytes).unwrap(), mtu)
}

/// The payload that another implementation makes of the fragments; None while some are missing.
fn reassembled(fragments: &[Vec<u8>]) -> Option<Vec<u8>> {
    let mut pool = IpDefragPool::<(), ()>::new();
    let mut payload = None;
    for fragment in fragments {
        assert!(payload.is_none(), "complete before the last fragment");
        let sliced = SlicedPacket::from_ip(fragment).unwrap();
        payload = pool.process_sliced_packet(&sliced, (), ()).unwrap().map(|whole| whole.payload);
    }
    payload
}

/// What holds of the fragments of any packet, whole or itself a fragment.
fn check(fragments: &[Vec<u8>], original: &[u8], mtu: u16) {
    let original = Ipv4HeaderSlice::from_slice(original).unwrap();
    let mut offset = usize::from(original.fragments_offset().value()) * 8;
    for (index, bytes) in fragments.iter().enumerate() {
        let is_last = index + 1 == fragments.len();
        assert!(bytes.len() <= usize::from(mtu));
        let header = Ipv4HeaderSlice::from_slice(bytes).unwrap();
        assert_eq!(usize::from(header.total_len()), bytes.len());
        assert_eq!(header.header_checksum(), header.to_header().calc_header_checksum());
        assert_eq!(usize::from(header.fragments_offset().value()) * 8, offset);
        assert_eq!(header.more_fragments(), !is_last || original.more_fragments());
        let payload = bytes.len() - header.slice().len();
        assert!(is_last || (payload % 8 == 0 && payload > 0));
        offset += payload;

        let mut same = header.to_header();
        let expected = original.to_header();
        same.total_len = expected.total_len;
        same.header_checksum = expected.header_checksum;
        same.more_fragments = expected.more_fragments;
        same.fragment_offset = expected.fragment_offset;
        if index > 0 {
            same.options = expected.options.clone();
        }
        assert_eq!(same, expected);
    }
}

fn header_with(options: &[u8]) -> Ipv4Header {
    Ipv4Header {
        source: [10, 0, 0, 1],
        destination: [10, 0, 0, 2],
        options: options.try_into().unwrap(),
        ..Default::default()
    }
}

#[test]
fn only_copied_options_go_on_later_fragments() {
    const RECORD_ROUTE: [u8; 7] = [7, 7, 4, 0, 0, 0, 0];
    const SECURITY: [u8; 3] = [130, 3, 9];
    const LOOSE_ROUTE: [u8; 7] = [131, 7, 4, 10, 0, 0, 9];
    let mut options = [&RECORD_ROUTE[..], &[1], &SECURITY, &[1], &LOOSE_ROUTE, &[0, 2], &SECURITY].concat();
    options.resize(24, 0);
    let fragments = cut(&packet(header_with(&options), &[0; 200]), 100);
    let [first, later @ ..] = &fragments[..] else { panic!("no fragments") };
    assert_eq!(Ipv4HeaderSlice::from_slice(first).unwrap().options(), options);
    assert!(later.len() > 1);
    for later in later {
        let copied = [&SECURITY[..], &LOOSE_ROUTE, &[0, 0]].concat();
        assert_eq!(Ipv4HeaderSlice::from_slice(later).unwrap().options(), copied);
    }
}

#[test]
fn a_malformed_option_ends_the_options() {
    for malformed in [[131, 0, 0, 0], [131, 1, 0, 0], [131, 9, 0, 0], [1, 1, 1, 131]] {
        let options = [&[130, 4, 5, 6][..], &malformed].concat();
        let fragments = cut(&packet(header_with(&options), &[0; 200]), 100);
        assert_eq!(Ipv4HeaderSlice::from_slice(&fragments[1]).unwrap().options(), [130, 4, 5, 6]);
    }
}

#[test]
fn what_must_not_be_fragmented_is_not() {
    let mut bytes = packet(header_with(&[]), &[0; 200]);
    bytes[6] |= 0x40;
    assert!(cut(&bytes, 100).is_empty());

    let mut v6 = vec![0; 140];
    v6[0] = 0x60;
    v6[5] = 100;
    assert!(cut(&v6, 100).is_empty());
}

#[test]
fn a_fragment_reaches_to_the_end_of_a_datagram_and_not_beyond() {
    let with_offset =
        |offset| Ipv4Header { fragment_offset: IpFragOffset::try_new(offset).unwrap(), ..header_with(&[]) };
    let last = 65535 - 200;
    let bytes = packet(with_offset(last / 8), &vec![0; 200 + usize::from(last % 8)]);
    check(&cut(&bytes, 100), &bytes, 100);
    assert_eq!(cut(&bytes, 100).len(), 3);
    let beyond = packet(with_offset(last / 8), &vec![0; 201 + usize::from(last % 8)]);
    assert!(cut(&beyond, 100).is_empty());
}

#[test]
fn fragments_are_as_few_as_can_be() {
    let lengths = |payload: usize, mtu| -> Vec<usize> {
        cut(&packet(header_with(&[]), &vec![0; payload]), mtu).iter().map(Vec::len).collect()
    };
    assert_eq!(lengths(80, 100), [100]);
    assert_eq!(lengths(81, 100), [100, 21]);
    assert_eq!(lengths(240, 100), [100, 100, 100]);
    assert_eq!(lengths(80 + 83, 103), [100, 103]);
}

#[test]
fn an_mtu_below_the_least_is_the_least() {
    let bytes = packet(header_with(&[1; 40]), &[0; 200]);
    assert_eq!(cut(&bytes, 0), cut(&bytes, 68));
    check(&cut(&bytes, 0), &bytes, 68);
}

#[test]
fn the_largest_datagram_comes_back() {
    let payload: Vec<u8> = (0..65535 - 20).map(|index| (index / 8) as u8).collect();
    let bytes = packet(header_with(&[]), &payload);
    let fragments = cut(&bytes, 1400);
    check(&fragments, &bytes, 1400);
    assert_eq!(reassembled(&fragments), Some(payload));
}

proptest! {
    #[test]
    fn fragments_make_the_payload_again(
        header in sample::v4(), payload in vec(any::<u8>(), 0..4000), mtu in 68..2000u16, second in 68..2000u16,
    ) {
        let bytes = packet(header, &payload);
        let first_cut = cut(&bytes, mtu);
        check(&first_cut, &bytes, mtu);
        if bytes.len() <= usize::from(mtu) {
            prop_assert_eq!(first_cut, [bytes]);
            return Ok(());
        }
        prop_assert_eq!(reassembled(&first_cut), Some(payload.clone()));

        let mut second_cut = Vec::new();
        for fragment in &first_cut {
            let fragments = cut(fragment, second);
            check(&fragments, fragment, second);
            second_cut.extend(fragments);
        }
        prop_assert_eq!(reassembled(&second_cut), Some(payload));
    }

    #[test]
    fn nothing_that_arrives_panics(bytes in sample::hostile(), mtu: u16) {
        let Ok(packet) = Packet::parse(&bytes) else { return Ok(()) };
        for fragment in fragments(&packet, mtu) {
            prop_assert!(fragment.len() <= usize::from(mtu.max(68)));
            prop_assert!(Packet::parse(&fragment).is_ok());
        }
    }
}
