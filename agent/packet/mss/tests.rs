use etherparse::{IpFragOffset, IpHeaders, Ipv4Header, Ipv6Header, TcpHeader};
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::agent::packet::sample::{self, Transport};

#[derive(Debug, Clone)]
enum Item {
    Nop,
    Mss(u16),
    Other(u8, Vec<u8>),
}

fn items() -> impl Strategy<Value = Vec<Item>> {
    let item = prop_oneof![
        2 => Just(Item::Nop),
        3 => any::<u16>().prop_map(Item::Mss),
        // Kind 2 too, which is no MSS but by its length of four.
        2 => (2..=255u8, vec(any::<u8>(), 0..12))
            .prop_filter("an MSS", |(kind, data)| *kind != 2 || data.len() != 2)
            .prop_map(|(kind, data)| Item::Other(kind, data)),
    ];
    vec(item, 0..8)
}

/// As many of the options as fit, each MSS at most `limit`.
fn options(items: &[Item], limit: u16) -> Vec<u8> {
    let mut bytes = Vec::new();
    for item in items {
        let option = match item {
            Item::Nop => vec![1],
            Item::Mss(mss) => [&[2, 4][..], &mss.min(&limit).to_be_bytes()].concat(),
            Item::Other(kind, data) => [&[*kind, data.len() as u8 + 2], &data[..]].concat(),
        };
        if bytes.len() + option.len() <= 40 {
            bytes.extend(option);
        }
    }
    bytes
}

fn segment(ip: IpHeaders, syn: bool, ack: bool, options: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut header = TcpHeader { syn, ack, ..TcpHeader::new(5000, 80, 1, 65535) };
    header.set_options_raw(options).unwrap();
    sample::build(ip, Transport::Tcp(Box::new(header)), payload)
}

fn v4_syn(options: &[u8]) -> Vec<u8> {
    let header = Ipv4Header { source: [10, 0, 0, 1], destination: [10, 0, 0, 2], ..Default::default() };
    segment(IpHeaders::Ipv4(header, Default::default()), true, false, options, &[])
}

fn v6_syn(options: &[u8]) -> Vec<u8> {
    segment(IpHeaders::Ipv6(Ipv6Header::default(), Default::default()), true, false, options, &[])
}

/// The MSS option that begins the TCP options of `packet` after clamping.
fn clamped(mut packet: Vec<u8>, mtu: u16) -> u16 {
    clamp(&mut packet, mtu);
    let options = Packet::parse(&packet).unwrap().transport().unwrap().1 + header::TCP;
    u16::from_be_bytes([packet[options + 2], packet[options + 3]])
}

fn is_left_alone(packet: &[u8]) -> bool {
    let mut after = packet.to_vec();
    !clamp(&mut after, 500) && after == packet
}

#[test]
fn leaves_room_for_the_headers() {
    let mss = [2, 4, 0xff, 0xff];
    assert_eq!(clamped(v4_syn(&mss), 1500), 1460);
    assert_eq!(clamped(v6_syn(&mss), 1500), 1440);
    assert_eq!(clamped(v4_syn(&mss), 68), 28);
    assert_eq!(clamped(v4_syn(&mss), 41), 1);
    assert_eq!(clamped(v4_syn(&mss), 40), 1);
    assert_eq!(clamped(v6_syn(&mss), 0), 1);
    assert_eq!(clamped(v4_syn(&[2, 4, 0, 0]), 40), 0, "never raised");
    assert_eq!(clamped(v4_syn(&[2, 4, 2, 24]), 1500), 536, "never raised");
}

#[test]
fn malformed_options_and_the_end_are_the_last() {
    for options in [
        &[2, 0, 0xff, 0xff][..],
        &[2, 1, 0xff, 0xff],
        &[2, 3, 0xff, 1],
        &[2, 5, 0xff, 0xff, 0],
        &[3, 0, 2, 4, 0xff, 0xff],
        &[3, 1, 2, 4, 0xff, 0xff],
        &[3, 41, 2, 4, 0xff, 0xff],
        &[1, 2, 4, 0xff],
        &[1, 1, 1, 2],
        &[0, 2, 2, 4, 0xff, 0xff],
    ] {
        assert!(is_left_alone(&v4_syn(options)), "{options:?}");
        assert!(is_left_alone(&v6_syn(options)), "{options:?}");
    }
    assert_eq!(clamped(v4_syn(&[2, 4, 0xff, 0xff, 3, 0]), 1500), 1460, "a host heeds what comes before");
}

#[test]
fn a_header_that_is_not_whole_is_left_alone() {
    let syn = v4_syn(&[2, 4, 0xff, 0xff]);
    assert!(!is_left_alone(&syn));

    let mut cut = syn[..43].to_vec();
    cut[3] = 43;
    assert!(is_left_alone(&cut), "options cut");
    cut.truncate(39);
    cut[3] = 39;
    assert!(is_left_alone(&cut), "header cut");
    assert!(is_left_alone(&syn[..43]), "packet cut");

    let mut short = syn.clone();
    short[20 + 12] = 0x40;
    assert!(is_left_alone(&short), "data offset below 20 bytes");

    let mut udp = syn.clone();
    udp[9] = 17;
    assert!(is_left_alone(&udp), "another protocol");

    let mut later = syn.clone();
    later[7] = 1;
    assert!(is_left_alone(&later), "later fragment");
    let mut first = syn;
    first[6] = 0x20;
    assert!(!is_left_alone(&first), "first fragment");
}

proptest! {
    #[test]
    fn is_what_a_host_with_that_mss_sends(
        ip in sample::ip(), items in items(), ack: bool, payload in vec(any::<u8>(), 0..100), mtu in 0..3000u16,
    ) {
        let limit = mtu.saturating_sub(if ip.ipv4().is_some() { 40 } else { 60 }).max(1);
        let before = segment(ip.clone(), true, ack, &options(&items, u16::MAX), &payload);
        let expected = segment(ip, true, ack, &options(&items, limit), &payload);
        let mut packet = before.clone();
        let changed = clamp(&mut packet, mtu);
        prop_assert_eq!(&packet, &expected);
        prop_assert_eq!(changed, packet != before);
        prop_assert!(!clamp(&mut packet, mtu), "once is enough");
    }

    #[test]
    fn only_a_syn_changes(ip in sample::ip(), items in items(), ack: bool, other in sample::packet()) {
        prop_assert!(is_left_alone(&segment(ip, false, ack, &options(&items, u16::MAX), &[])));
        prop_assert!(is_left_alone(&other));
    }

    #[test]
    fn a_later_fragment_is_left_alone(header in sample::v4(), offset in 1..0x2000u16, items in items()) {
        let header = Ipv4Header { fragment_offset: IpFragOffset::try_new(offset).unwrap(), ..header };
        let ip = IpHeaders::Ipv4(header, Default::default());
        prop_assert!(is_left_alone(&segment(ip, true, false, &options(&items, u16::MAX), &[])));
    }

    #[test]
    fn nothing_panics_and_false_means_unchanged(
        mut packet in sample::spoiled((sample::ip(), items())
            .prop_map(|(ip, items)| segment(ip, true, false, &options(&items, u16::MAX), &[]))),
        mtu: u16,
    ) {
        let before = packet.clone();
        prop_assert_eq!(clamp(&mut packet, mtu), packet != before);
    }
}
