//! The form of a probe.
//!
//! | byte | what |
//! |---|---|
//! | 0 | 0x81 |
//! | 1 | bits 0 and 1 the state, bit 7 whether there is an echo; the others are zero, and not looked at |
//! | 2 | how many of its sender's intervals may pass in silence, at least 1 |
//! | 3 | zero, and not looked at |
//! | 4 | the sender's number of the link, not 0 |
//! | 8 | the receiver's number of the link; 0: not known yet |
//! | 12 | how long after this one the next is sent, at most, in microseconds |
//! | 16 | how often its sender wants to be sent probes at most: the least interval, in microseconds |
//! | 20 | the number of this probe, one more than of the one before; wraps |
//! | 24 | when it was sent, by its sender's clock, in microseconds; wraps |
//! | 28 | echo: the number of the last probe that was heard |
//! | 32 | echo: when that was sent, as it said |
//! | 36 | echo: how long ago it was heard, in microseconds |
//! | 40 | of how many of the last probes (at most 256) it is known what became of them, 2 bytes |
//! | 42 | how many of these were lost, 2 bytes |
//! | 44 | how many of these came after a later one, 2 bytes, then 2 bytes of zero |
//! | 48 | the jitter of what is heard, in microseconds |
//!
//! Numbers have four bytes where nothing else is said, the highest first. What follows is padding.

use std::num::{NonZeroU8, NonZeroU32};
use std::time::Duration;

use crate::proto::model::{Hearing, LinkState};

/// The first byte: of tunmesh's own frames (0x80 to 0xff) the one that is a probe.
pub const KIND: u8 = 0x81;
/// The bytes of a probe without padding.
pub const LENGTH: usize = 52;

const HAS_ECHO: u8 = 0x80;
const STATE: u8 = 0x03;

/// A time by some clock in microseconds, of which 32 bits are kept: two that are less than 71 minutes apart can be compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Stamp(pub u32);

impl Stamp {
    /// Of a time since boot.
    pub fn of(since_boot: Duration) -> Self {
        Self(since_boot.as_micros() as u32)
    }

    /// How much later it is than an earlier one of the same clock.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(self.0.wrapping_sub(earlier.0).into())
    }
}

/// What comes back of the last probe that was heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Echo {
    /// Its number.
    pub sequence: u32,
    /// When it was sent, as it said.
    pub sent: Stamp,
    /// How long ago it was heard.
    pub held: Duration,
}

/// A probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Probe {
    /// What its sender knows of the link.
    pub state: LinkState,
    /// How many of its intervals may pass in silence before its sender is taken to be out of reach.
    pub multiplier: NonZeroU8,
    /// Its sender's number of the link; another whenever that begins anew.
    pub own: NonZeroU32,
    /// Its receiver's number of the link, as far as its sender knows.
    pub other: Option<NonZeroU32>,
    /// How long after this one the next is sent, at most.
    pub sends_every: Duration,
    /// The least interval at which its sender wants to be sent probes.
    pub hears_every: Duration,
    /// One more than that of the one before; wraps.
    pub sequence: u32,
    /// When it was sent, by its sender's clock.
    pub sent: Stamp,
    /// Of the last probe that its sender has heard.
    pub echo: Option<Echo>,
    /// How well its sender hears.
    pub hearing: Hearing,
}

/// A frame is no probe of this form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no probe")]
pub struct NoProbe;

impl Probe {
    /// The probe as it goes, without padding. Durations of more than 71 minutes count as that.
    pub fn encode(&self) -> [u8; LENGTH] {
        let mut bytes = [0; LENGTH];
        bytes[0] = KIND;
        bytes[1] = self.state as u8 | if self.echo.is_some() { HAS_ECHO } else { 0 };
        bytes[2] = self.multiplier.get();
        let echo = self.echo.unwrap_or(Echo { sequence: 0, sent: Stamp(0), held: Duration::ZERO });
        let words = [
            self.own.get(),
            self.other.map_or(0, NonZeroU32::get),
            micros(self.sends_every),
            micros(self.hears_every),
            self.sequence,
            self.sent.0,
            echo.sequence,
            echo.sent.0,
            micros(echo.held),
            u32::from(self.hearing.known) << 16 | u32::from(self.hearing.lost),
            u32::from(self.hearing.reordered) << 16,
            micros(self.hearing.jitter),
        ];
        for (room, word) in bytes[4..].chunks_exact_mut(4).zip(words) {
            room.copy_from_slice(&word.to_be_bytes());
        }
        bytes
    }

    /// The probe that a frame is.
    ///
    /// # Errors
    /// Where it is another frame, is too short, or says what cannot be.
    pub fn parse(frame: &[u8]) -> Result<Self, NoProbe> {
        let (head, _) = frame.split_first_chunk::<LENGTH>().ok_or(NoProbe)?;
        let word = |at: usize| u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let duration = |at| Duration::from_micros(word(at).into());
        let half = |at: usize| u16::from_be_bytes([head[at], head[at + 1]]);
        if head[0] != KIND {
            return Err(NoProbe);
        }
        let echo = Echo { sequence: word(28), sent: Stamp(word(32)), held: duration(36) };
        let hearing = Hearing { known: half(40), lost: half(42), reordered: half(44), jitter: duration(48) };
        if hearing.lost.saturating_add(hearing.reordered) > hearing.known {
            return Err(NoProbe);
        }
        Ok(Self {
            state: state(head[1]),
            multiplier: NonZeroU8::new(head[2]).ok_or(NoProbe)?,
            own: NonZeroU32::new(word(4)).ok_or(NoProbe)?,
            other: NonZeroU32::new(word(8)),
            sends_every: duration(12),
            hears_every: duration(16),
            sequence: word(20),
            sent: Stamp(word(24)),
            echo: (head[1] & HAS_ECHO != 0).then_some(echo),
            hearing,
        })
    }
}

fn state(bits: u8) -> LinkState {
    match bits & STATE {
        0 => LinkState::AdminDown,
        1 => LinkState::Down,
        2 => LinkState::Init,
        _ => LinkState::Up,
    }
}

fn micros(duration: Duration) -> u32 {
    u32::try_from(duration.as_micros()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn duration() -> impl Strategy<Value = Duration> {
        any::<u32>().prop_map(|micros| Duration::from_micros(micros.into()))
    }

    fn hearing() -> impl Strategy<Value = Hearing> {
        (0..=256_u16, any::<[u16; 2]>(), duration()).prop_map(|(known, [lost, reordered], jitter)| {
            let lost = lost % (known + 1);
            Hearing { known, lost, reordered: reordered % (known - lost + 1), jitter }
        })
    }

    prop_compose! {
        fn probe()(
            state in (0..4_u8).prop_map(state),
            multiplier in any::<NonZeroU8>(),
            own in any::<NonZeroU32>(),
            other in any::<u32>().prop_map(NonZeroU32::new),
            [sends_every, hears_every] in [duration(), duration()],
            [sequence, sent] in any::<[u32; 2]>(),
            echo in proptest::option::of((any::<[u32; 2]>(), duration())),
            hearing in hearing(),
        ) -> Probe {
            let echo = echo.map(|([sequence, sent], held)| Echo { sequence, sent: Stamp(sent), held });
            Probe {
                state, multiplier, own, other, sends_every, hears_every, sequence, sent: Stamp(sent), echo, hearing,
            }
        }
    }

    proptest! {
        #[test]
        fn what_was_said_is_understood_whatever_it_is_padded_with(probe in probe(), padding in any::<Vec<u8>>()) {
            let bytes = [&probe.encode()[..], &padding].concat();
            prop_assert_eq!(Probe::parse(&bytes), Ok(probe));
        }

        #[test]
        fn nothing_that_arrives_is_taken_for_what_it_cannot_be(bytes in any::<[u8; LENGTH]>(), is_cut in any::<bool>()) {
            let mut bytes = bytes;
            bytes[0] = KIND;
            let frame = if is_cut { &bytes[1..] } else { &bytes[..] };
            if let Ok(probe) = Probe::parse(frame) {
                prop_assert!(probe.hearing.lost + probe.hearing.reordered <= probe.hearing.known);
                prop_assert_eq!(Probe::parse(&probe.encode()), Ok(probe));
            }
        }
    }

    #[test]
    fn other_frames_are_no_probes() {
        let probe = Probe {
            state: LinkState::Up,
            multiplier: NonZeroU8::MIN,
            own: NonZeroU32::MIN,
            other: None,
            sends_every: Duration::MAX,
            hears_every: Duration::ZERO,
            sequence: 1,
            sent: Stamp::of(Duration::from_secs(1)),
            echo: None,
            hearing: Hearing::default(),
        };
        let good = probe.encode();
        assert!(Probe::parse(&good).is_ok());
        assert_eq!(Probe::parse(&good[..LENGTH - 1]), Err(NoProbe));
        for (at, value) in [(0, 0x80), (0, 0x45), (2, 0), (7, 0), (43, 1)] {
            let mut bad = good;
            bad[at] = value;
            assert_eq!(Probe::parse(&bad), Err(NoProbe), "byte {at} is {value}");
        }
    }

    #[test]
    fn a_stamp_outlives_its_wrapping() {
        let before = Duration::from_micros(u64::from(u32::MAX) - 10);
        let after = before + Duration::from_millis(1);
        assert_eq!(Stamp::of(after).since(Stamp::of(before)), Duration::from_millis(1));
    }
}
