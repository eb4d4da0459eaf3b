//! ICMP echo (RFC 792, RFC 4443 section 4): a question whether a host is there, and the answer to it.

use std::net::IpAddr;

use super::icmp::{ICMP_HEADER, message_v4, message_v6};
use super::parse::Packet;
use super::{checksum, protocol};

/// Tells the questions of one end from all others, those of programs of its host included: an answer repeats it.
pub type Token = [u8; 16];

const QUESTION_V4: u8 = 8;
const ANSWER_V4: u8 = 0;
const QUESTION_V6: u8 = 128;
const ANSWER_V6: u8 = 129;

/// The question from one address to another, as a whole IP packet. None where they are of two families.
pub fn question(from: IpAddr, to: IpAddr, token: &Token, sequence: u16) -> Option<Vec<u8>> {
    let header = header(from.is_ipv4(), token, sequence);
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => Some(message_v4(token, header, from, to)),
        (IpAddr::V6(from), IpAddr::V6(to)) => Some(message_v6(token, header, from, to)),
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => None,
    }
}

/// The question as an ICMP message, for a socket that puts the rest around it; the checksum of one of IPv6 is the kernel's.
pub fn message(is_v4: bool, token: &Token, sequence: u16) -> Vec<u8> {
    let mut message = [&header(is_v4, token, sequence)[..], token].concat();
    if is_v4 {
        let checksum = checksum::finish(checksum::sum(&message, 0)).to_be_bytes();
        message[2..4].copy_from_slice(&checksum);
    }
    message
}

fn header(is_v4: bool, token: &Token, sequence: u16) -> [u8; ICMP_HEADER] {
    let ([high, low], [first, second, ..]) = (sequence.to_be_bytes(), *token);
    [if is_v4 { QUESTION_V4 } else { QUESTION_V6 }, 0, 0, 0, first, second, high, low]
}

/// The sequence number of the question that a packet answers, if it is one of the end with this token.
pub fn answered(packet: &Packet<'_>, token: &Token) -> Option<u16> {
    let (protocol, at) = packet.transport()?;
    match (packet.is_v4(), protocol) {
        (true, protocol::ICMPV4) | (false, protocol::ICMPV6) => {
            answer(packet.bytes().get(at..)?, packet.is_v4(), token)
        }
        _ => None,
    }
}

/// The same of an ICMP message. Its identifier may be one of the kernel's choice, where a socket has set it.
pub fn answer(message: &[u8], is_v4: bool, token: &Token) -> Option<u16> {
    let (header, body) = message.split_first_chunk::<ICMP_HEADER>()?;
    let kind = if is_v4 { ANSWER_V4 } else { ANSWER_V6 };
    match *header {
        [is, 0, _, _, _, _, high, low] if is == kind && body == token => {
            Some(u16::from_be_bytes([high, low]))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use etherparse::{Icmpv4Type, Icmpv6Type, PacketBuilder, SlicedPacket, TransportSlice};
    use proptest::prelude::*;

    use super::*;
    use crate::agent::packet::sample;

    /// What a host answers to a question.
    fn reply(question: &[u8]) -> Vec<u8> {
        let packet = Packet::parse(question).unwrap();
        let sliced = SlicedPacket::from_ip(question).unwrap();
        let mut reply = Vec::new();
        match (sliced.transport.unwrap(), packet.source(), packet.destination()) {
            (TransportSlice::Icmpv4(icmp), IpAddr::V4(source), IpAddr::V4(destination)) => {
                let Icmpv4Type::EchoRequest(header) = icmp.icmp_type() else { panic!("{icmp:?}") };
                let expected =
                    etherparse::Icmpv4Header::with_checksum(icmp.icmp_type(), icmp.payload()).checksum;
                assert_eq!(icmp.checksum(), expected);
                let builder = PacketBuilder::ipv4(destination.octets(), source.octets(), 60);
                builder.icmpv4_echo_reply(header.id, header.seq).write(&mut reply, icmp.payload()).unwrap();
            }
            (TransportSlice::Icmpv6(icmp), IpAddr::V6(source), IpAddr::V6(destination)) => {
                let Icmpv6Type::EchoRequest(header) = icmp.icmp_type() else { panic!("{icmp:?}") };
                assert!(icmp.is_checksum_valid(source.octets(), destination.octets()));
                let builder = PacketBuilder::ipv6(destination.octets(), source.octets(), 60);
                builder.icmpv6_echo_reply(header.id, header.seq).write(&mut reply, icmp.payload()).unwrap();
            }
            (other, ..) => panic!("{other:?}"),
        }
        reply
    }

    proptest! {
        #[test]
        fn an_answer_is_known_by_who_asked(
            token in any::<Token>(), other in any::<Token>(), sequence in any::<u16>(), v6 in any::<bool>(),
        ) {
            let ends: [IpAddr; 2] = if v6 { ["fd00::1", "fd00::2"] } else { ["10.9.0.1", "10.9.0.2"] }
                .map(|address| address.parse().unwrap());
            let asked = question(ends[0], ends[1], &token, sequence).unwrap();
            prop_assert_eq!(answered(&Packet::parse(&asked).unwrap(), &token), None, "it is the question");
            let reply = reply(&asked);
            let packet = Packet::parse(&reply).unwrap();
            prop_assert_eq!(answered(&packet, &token), Some(sequence));
            // A socket of the kernel's has the message alone, or is given it.
            let at = packet.transport().unwrap().1;
            prop_assert_eq!(answer(&reply[at..], !v6, &token), Some(sequence));
            let (mut sent, mut whole) = (message(!v6, &token, sequence), asked[at..].to_vec());
            if v6 {
                let _ = [&mut sent, &mut whole].map(|message| message[2..4].fill(0));
            }
            prop_assert_eq!(sent, whole);
            prop_assume!(token != other);
            prop_assert_eq!(answered(&packet, &other), None);
        }

        #[test]
        fn nothing_else_is_an_answer(bytes in sample::packet(), token in any::<Token>()) {
            prop_assert_eq!(answered(&Packet::parse(&bytes).unwrap(), &token), None);
        }
    }

    #[test]
    fn between_two_families_nothing_is_asked() {
        let [v4, v6] = ["10.9.0.1", "fd00::1"].map(|address| address.parse().unwrap());
        assert_eq!(question(v4, v6, &[0; 16], 1), None);
        assert_eq!(question(v6, v4, &[0; 16], 1), None);
    }
}
