//! Packets for the tests here, built by etherparse.

use etherparse::{
    IcmpEchoHeader, Icmpv4Type, Icmpv6Type, IpFragOffset, IpHeaders, Ipv4Header, Ipv6Extensions,
    Ipv6FragmentHeader, Ipv6Header, Ipv6RawExtHeader, Ipv6RoutingExtensions, PacketBuilder, TcpHeader,
    ip_number,
};
use proptest::collection::vec;
use proptest::prelude::*;

/// What a sample carries, apart from payload.
#[derive(Debug, Clone)]
pub(super) enum Transport {
    Tcp(Box<TcpHeader>),
    Udp,
    Echo,
}

/// The packet of these parts, with all its lengths and checksums.
pub(super) fn build(ip: IpHeaders, transport: Transport, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let is_v4 = ip.ipv4().is_some();
    let builder = PacketBuilder::ip(ip);
    match transport {
        Transport::Tcp(header) => builder.tcp_header(*header).write(&mut bytes, payload).unwrap(),
        Transport::Udp => builder.udp(5000, 53).write(&mut bytes, payload).unwrap(),
        Transport::Echo => {
            let echo = IcmpEchoHeader { id: 7, seq: 1 };
            if is_v4 {
                builder.icmpv4(Icmpv4Type::EchoRequest(echo)).write(&mut bytes, payload).unwrap();
            } else {
                builder.icmpv6(Icmpv6Type::EchoRequest(echo)).write(&mut bytes, payload).unwrap();
            }
        }
    }
    bytes
}

/// IPv4 options as they should be, at most 40 bytes, padded.
pub(super) fn v4_options() -> impl Strategy<Value = Vec<u8>> {
    let one = prop_oneof![
        1 => Just(vec![1]),
        3 => (2..=255u8, vec(any::<u8>(), 0..12)).prop_map(|(kind, data)| {
            let mut option = vec![kind, data.len() as u8 + 2];
            option.extend(data);
            option
        }),
    ];
    vec(one, 0..6).prop_map(|options| {
        let mut bytes = Vec::new();
        for option in options {
            if bytes.len() + option.len() <= 40 {
                bytes.extend(option);
            }
        }
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    })
}

/// A host's IPv4 address.
fn v4_address() -> impl Strategy<Value = [u8; 4]> {
    (prop_oneof![1..127u8, 128..224u8], any::<[u8; 3]>()).prop_map(|(a, [b, c, d])| [a, b, c, d])
}

/// A host's IPv6 address.
fn v6_address() -> impl Strategy<Value = [u8; 16]> {
    any::<[u8; 16]>().prop_map(|mut address| {
        address[0] = 0xfd;
        address
    })
}

/// A header of an IPv4 packet that is no fragment.
pub(super) fn v4() -> impl Strategy<Value = Ipv4Header> {
    (v4_address(), v4_address(), v4_options(), any::<(u16, bool, u8)>()).prop_map(
        |(source, destination, options, (identification, dont_fragment, time_to_live))| Ipv4Header {
            source,
            destination,
            options: options.as_slice().try_into().unwrap(),
            identification,
            dont_fragment,
            time_to_live,
            ..Default::default()
        },
    )
}

fn v6_extension() -> impl Strategy<Value = Ipv6RawExtHeader> {
    (0..4usize, any::<u8>()).prop_map(|(units, fill)| {
        Ipv6RawExtHeader::new_raw(ip_number::UDP, &vec![fill; 6 + 8 * units]).unwrap()
    })
}

/// A header of an IPv6 packet and extension headers; a fragment header says offset zero.
pub(super) fn v6() -> impl Strategy<Value = (Ipv6Header, Ipv6Extensions)> {
    let option = || prop::option::weighted(0.3, v6_extension());
    let fragment = prop::option::weighted(0.3, any::<(bool, u32)>());
    (v6_address(), v6_address(), option(), option(), option(), option(), fragment).prop_map(
        |(source, destination, hop_by_hop_options, destination_options, routing, last, fragment)| {
            let header = Ipv6Header { source, destination, hop_limit: 64, ..Default::default() };
            let extensions = Ipv6Extensions {
                hop_by_hop_options,
                destination_options,
                routing: routing
                    .map(|routing| Ipv6RoutingExtensions { routing, final_destination_options: last }),
                fragment: fragment.map(|(more, identification)| {
                    Ipv6FragmentHeader::new(ip_number::UDP, IpFragOffset::ZERO, more, identification)
                }),
                auth: None,
            };
            (header, extensions)
        },
    )
}

/// Headers of a packet of either version that begins its datagram.
pub(super) fn ip() -> impl Strategy<Value = IpHeaders> {
    prop_oneof![
        v4().prop_map(|header| IpHeaders::Ipv4(header, Default::default())),
        v6().prop_map(|(header, extensions)| IpHeaders::Ipv6(header, extensions)),
    ]
}

fn transport() -> impl Strategy<Value = Transport> {
    prop_oneof![
        any::<(u16, u16, u32)>().prop_map(|(source, destination, sequence)| {
            Transport::Tcp(Box::new(TcpHeader::new(source, destination, sequence, 65535)))
        }),
        Just(Transport::Udp),
        Just(Transport::Echo),
    ]
}

/// A valid packet of either version.
pub(super) fn packet() -> impl Strategy<Value = Vec<u8>> {
    (ip(), transport(), vec(any::<u8>(), 0..1600))
        .prop_map(|(ip, transport, payload)| build(ip, transport, &payload))
}

/// What may arrive: anything, and packets gone bad.
pub(super) fn hostile() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![vec(any::<u8>(), 0..200), spoiled(packet())]
}

/// The packets with a few bytes changed, and an end cut off of half of them.
pub(super) fn spoiled(packets: impl Strategy<Value = Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    let changes = vec((any::<prop::sample::Index>(), any::<u8>()), 0..4);
    (packets, changes, prop::option::of(any::<prop::sample::Index>())).prop_map(
        |(mut bytes, changes, end)| {
            for (at, value) in changes {
                // Most of what can go wrong is in the headers.
                let at = at.index(bytes.len().min(100));
                bytes[at] = value;
            }
            if let Some(end) = end {
                bytes.truncate(end.index(bytes.len()));
            }
            bytes
        },
    )
}
