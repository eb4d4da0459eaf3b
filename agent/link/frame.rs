//! tunmesh's own frames: the first byte tells the kind.
//!
//! | first byte | frame |
//! |---|---|
//! | 0x81 | a probe, see [`super::probe`] |
//! | 0x82 | a question whether a datagram of this length comes through: three bytes of zero, its number in four, padding |
//! | 0x83 | the answer: three bytes of zero, the question's number in four |
//!
//! Numbers have the highest byte first.

use super::probe::{self, NoProbe, Probe};

const QUESTION: u8 = 0x82;
const ANSWER: u8 = 0x83;
/// The bytes of a question without padding, and of an answer.
pub const SHORT: usize = 8;

/// A frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Frame {
    /// A probe.
    Probe(Probe),
    /// Whether so long a datagram comes through: it has.
    Question(u32),
    /// It has.
    Answer(u32),
}

/// It is of a kind that this release does not know, too short, or says what cannot be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no frame of this release")]
pub struct NoFrame;

impl From<NoProbe> for NoFrame {
    fn from(_: NoProbe) -> Self {
        Self
    }
}

impl Frame {
    /// The frame that these bytes are.
    ///
    /// # Errors
    /// Where they are none.
    pub fn parse(bytes: &[u8]) -> Result<Self, NoFrame> {
        let number = || {
            let (head, _) = bytes.split_first_chunk::<SHORT>().ok_or(NoFrame)?;
            Ok(u32::from_be_bytes([head[4], head[5], head[6], head[7]]))
        };
        match bytes.first() {
            Some(&probe::KIND) => Ok(Self::Probe(Probe::parse(bytes)?)),
            Some(&QUESTION) => number().map(Self::Question),
            Some(&ANSWER) => number().map(Self::Answer),
            Some(_) | None => Err(NoFrame),
        }
    }
}

/// A question, to be padded with zeros to the length that is asked about.
pub fn question(number: u32) -> [u8; SHORT] {
    short(QUESTION, number)
}

/// An answer.
pub fn answer(number: u32) -> [u8; SHORT] {
    short(ANSWER, number)
}

fn short(kind: u8, number: u32) -> [u8; SHORT] {
    let [a, b, c, d] = number.to_be_bytes();
    [kind, 0, 0, 0, a, b, c, d]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn questions_and_answers_are_understood(number in any::<u32>(), padding in any::<Vec<u8>>()) {
            let padded = |frame: [u8; SHORT]| [&frame[..], &padding].concat();
            prop_assert_eq!(Frame::parse(&padded(question(number))), Ok(Frame::Question(number)));
            prop_assert_eq!(Frame::parse(&padded(answer(number))), Ok(Frame::Answer(number)));
        }

        #[test]
        fn whatever_arrives_is_a_frame_or_none(bytes in any::<Vec<u8>>(), kind in 0x80..0x90_u8) {
            let mut bytes = bytes;
            if let Some(first) = bytes.first_mut() {
                *first = kind;
            }
            match Frame::parse(&bytes) {
                Ok(Frame::Probe(_)) => prop_assert_eq!(kind, probe::KIND),
                Ok(Frame::Question(_)) => prop_assert!(kind == QUESTION && bytes.len() >= SHORT),
                Ok(Frame::Answer(_)) => prop_assert!(kind == ANSWER && bytes.len() >= SHORT),
                Err(NoFrame) => {}
            }
        }
    }
}
