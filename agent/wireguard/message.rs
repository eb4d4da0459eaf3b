//! What a datagram of the protocol is, by its first bytes and its length.

/// Bytes that a data packet has beside what it carries: header and tag (section 5.4.6).
pub const OVERHEAD: usize = HEADER + 16;
/// What a data packet carries is padded to a multiple of this (section 5.4.6).
pub const PADDING: usize = 16;

/// Bytes before what a data packet carries.
pub(super) const HEADER: usize = 16;
/// Bytes of each message of fixed length (sections 5.4.2, 5.4.3 and 5.4.7).
const INITIATION: usize = 148;
const RESPONSE: usize = 92;
const COOKIE: usize = 64;

/// Names a session or handshake to the host that has chosen it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Index(pub u32);

/// A message of the protocol. `receiver` is what its receiver has chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Message {
    /// The first of a handshake.
    Initiation,
    /// The second of a handshake.
    Response {
        /// The handshake that it answers.
        receiver: Index,
    },
    /// What a busy host sends instead of an answer.
    Cookie {
        /// The handshake that it is about.
        receiver: Index,
    },
    /// An encrypted packet.
    Data {
        /// Its session.
        receiver: Index,
    },
}

impl Message {
    /// Tells what a datagram is.
    ///
    /// # Errors
    /// Where it is none of the protocol.
    pub fn parse(datagram: &[u8]) -> Result<Self, Refused> {
        let [kind, 0, 0, 0, a, b, c, d, e, f, g, h, ..] = *datagram else { return Err(Refused::Malformed) };
        let first = Index(u32::from_le_bytes([a, b, c, d]));
        match (kind, datagram.len()) {
            (1, INITIATION) => Ok(Self::Initiation),
            (2, RESPONSE) => Ok(Self::Response { receiver: Index(u32::from_le_bytes([e, f, g, h])) }),
            (3, COOKIE) => Ok(Self::Cookie { receiver: first }),
            (4, OVERHEAD..) => Ok(Self::Data { receiver: first }),
            _ => Err(Refused::Malformed),
        }
    }
}

/// The index that the sender of a handshake's message has chosen, by which it is answered.
pub fn sender(message: &[u8]) -> Option<Index> {
    match *message {
        [1 | 2, 0, 0, 0, a, b, c, d, ..] => Some(Index(u32::from_le_bytes([a, b, c, d]))),
        _ => None,
    }
}

/// Whether a message begins a handshake.
pub fn is_initiation(message: &[u8]) -> bool {
    Message::parse(message) == Ok(Message::Initiation)
}

/// How long a packet of `length` bytes is when it is encrypted for a tunnel whose longest packet is `longest`: padding does
/// not make it longer than that.
pub fn sealed_length(length: usize, longest: usize) -> usize {
    OVERHEAD + padded(length, longest)
}

pub(super) fn padded(length: usize, longest: usize) -> usize {
    length.next_multiple_of(PADDING).min(longest).max(length)
}

/// Why nothing came of a datagram. Nothing has changed then.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Of no type of the protocol, or not as long as its type is.
    #[error("no message of the protocol")]
    Malformed,
    /// Not meant for this host's key, or from the wrong key: an authentication failed.
    #[error("not authentic")]
    Forged,
    /// For a session or handshake that is not there, or not any more.
    #[error("of no session")]
    NoSession,
    /// A data packet that has been here, or an initiation that is not later than the last one.
    #[error("a repetition")]
    Repeated,
    /// A data packet so far behind others that it is not known whether it has been here.
    #[error("too late")]
    TooLate,
    /// There are too many handshakes.
    #[error("too many handshakes")]
    TooMany,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn datagram(kind: u8, length: usize) -> Vec<u8> {
        let mut bytes: Vec<u8> = (0..length).map(|n| n as u8).collect();
        bytes[..4].copy_from_slice(&[kind, 0, 0, 0]);
        bytes
    }

    #[test]
    fn type_and_length_tell_what_a_message_is() {
        let (first, second) = (Index(0x0706_0504), Index(0x0b0a_0908));
        assert_eq!(Message::parse(&datagram(1, 148)), Ok(Message::Initiation));
        assert_eq!(Message::parse(&datagram(2, 92)), Ok(Message::Response { receiver: second }));
        assert_eq!(Message::parse(&datagram(3, 64)), Ok(Message::Cookie { receiver: first }));
        for length in [32, 33, 65_507] {
            assert_eq!(Message::parse(&datagram(4, length)), Ok(Message::Data { receiver: first }));
        }
        for (kind, length) in [(1, 147), (1, 149), (2, 91), (3, 65), (4, 31), (4, 12), (0, 148), (5, 148)] {
            assert_eq!(Message::parse(&datagram(kind, length)), Err(Refused::Malformed), "{kind} {length}");
        }
        let mut reserved = datagram(4, 100);
        reserved[2] = 1;
        assert_eq!(Message::parse(&reserved), Err(Refused::Malformed));
        assert_eq!(
            [1, 2, 3, 4].map(|kind| sender(&datagram(kind, 148))),
            [Some(first), Some(first), None, None]
        );
    }

    proptest! {
        #[test]
        fn padding_is_to_sixteen_and_not_beyond_the_path(length in 0_usize..2000, longest in 68_usize..2000) {
            let sealed = sealed_length(length, longest);
            prop_assert!(sealed >= length + OVERHEAD);
            prop_assert!(sealed < length + OVERHEAD + PADDING);
            prop_assert!(sealed.is_multiple_of(PADDING) || sealed == OVERHEAD + longest.max(length));
        }

        #[test]
        fn nothing_that_arrives_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Message::parse(&bytes);
            let _ = sender(&bytes);
        }
    }
}
