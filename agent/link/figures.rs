//! How well the other end of a link is heard, and how long an answer takes.

use std::time::Duration;

use super::probe::{Echo, Probe, Stamp};
use crate::proto::model::Hearing;

/// Of how many of the last probes it is kept what became of them.
const WINDOW: usize = 256;

/// How many of them are the last few.
const RECENT: usize = 32;

/// An answer that is said to have taken longer is none to a probe of this end's.
const LONGEST: Duration = Duration::from_secs(60);

/// What became of a probe.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Fate {
    #[default]
    Lost,
    Heard,
    /// Heard after a later one.
    Late,
}

/// How a probe came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrival {
    /// None that is later has come.
    InOrder,
    /// A later one has come before.
    Late,
    /// It has come before, or so long ago was its turn that this is not known.
    Again,
}

/// Of the last probes, which have come.
#[derive(Debug, Clone)]
struct Window {
    fates: [Fate; WINDOW],
    /// How many of them there are: those before the first that was heard count for nothing.
    known: usize,
    highest: u32,
    /// How many of those that are known are lost, heard, and late: it is asked with every probe.
    counts: [u16; 3],
}

impl Window {
    fn new(first: u32) -> Self {
        let (fates, counts) = ([Fate::Lost; WINDOW], [0; 3]);
        let mut window = Self { fates, known: 0, highest: first.wrapping_sub(1), counts };
        window.push(Fate::Heard);
        window
    }

    /// Takes in what became of the probe behind the highest, which is the highest then.
    fn push(&mut self, fate: Fate) {
        self.highest = self.highest.wrapping_add(1);
        let Some(room) = self.fates.get_mut(self.highest as usize % WINDOW) else { return };
        let gone = std::mem::replace(room, fate);
        if self.known == WINDOW {
            self.tally(gone, u16::wrapping_sub);
        } else {
            self.known += 1;
        }
        self.tally(fate, u16::wrapping_add);
    }

    fn tally(&mut self, fate: Fate, by: impl FnOnce(u16, u16) -> u16) {
        if let Some(count) = self.counts.get_mut(fate as usize) {
            *count = by(*count, 1);
        }
    }

    fn note(&mut self, sequence: u32) -> Arrival {
        let ahead = sequence.wrapping_sub(self.highest);
        if ahead != 0 && ahead <= u32::MAX / 2 {
            let pushed = ahead.min(WINDOW as u32);
            if ahead > pushed {
                // Nothing of what was known stays, and what is pushed out again need not be pushed in.
                (self.known, self.counts) = (0, [0; 3]);
            }
            self.highest = sequence.wrapping_sub(pushed);
            (1..pushed).for_each(|_| self.push(Fate::Lost));
            self.push(Fate::Heard);
            return Arrival::InOrder;
        }
        let behind = self.highest.wrapping_sub(sequence) as usize;
        match self.fates.get_mut(sequence as usize % WINDOW) {
            Some(fate) if behind < self.known && *fate == Fate::Lost => *fate = Fate::Late,
            Some(_) | None => return Arrival::Again,
        }
        self.tally(Fate::Lost, u16::wrapping_sub);
        self.tally(Fate::Late, u16::wrapping_add);
        Arrival::Late
    }

    fn recent_loss(&self) -> f64 {
        let known = self.known.min(RECENT) as u32;
        let last = (0..known).map(|behind| self.highest.wrapping_sub(behind));
        let fates = last.filter_map(|sequence| self.fates.get(sequence as usize % WINDOW));
        fates.filter(|fate| **fate == Fate::Lost).count() as f64 / f64::from(known.max(1))
    }

    fn count(&self, fate: Fate) -> u16 {
        self.counts.get(fate as usize).copied().unwrap_or_default()
    }
}

/// How long an answer takes, without the time that the other end held it (RFC 6298 section 2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RoundTrip {
    /// Smoothed: an eighth of each new one.
    pub mean: Duration,
    /// The mean distance from it, a quarter of each new one.
    pub deviation: Duration,
    /// The last one.
    pub last: Duration,
}

impl RoundTrip {
    /// With one more that took `last`.
    pub(super) fn next(before: Option<Self>, last: Duration) -> Self {
        let Some(Self { mean, deviation, .. }) = before else {
            return Self { mean: last, deviation: last / 2, last };
        };
        Self { mean: mean * 7 / 8 + last / 8, deviation: deviation * 3 / 4 + mean.abs_diff(last) / 4, last }
    }
}

/// The figures of a link, as one end has them since the other has begun it.
#[derive(Debug, Clone, Default)]
pub struct Figures {
    window: Option<Window>,
    jitter: Duration,
    /// When the last probe was sent, as it said, and when it came.
    before: Option<(Stamp, Duration)>,
    round_trip: Option<RoundTrip>,
    /// The probe of this end whose echo was taken last.
    echoed: Option<u32>,
    /// When that one was sent.
    passed_at: Option<Duration>,
    /// What the other end says of what it hears.
    heard: Option<Hearing>,
}

impl Figures {
    /// Takes in a probe that came at `now`, time since boot.
    pub fn handle(&mut self, probe: &Probe, now: Duration) -> Arrival {
        let arrival = match &mut self.window {
            None => {
                self.window = Some(Window::new(probe.sequence));
                Arrival::InOrder
            }
            Some(window) => window.note(probe.sequence),
        };
        if arrival != Arrival::InOrder {
            return arrival;
        }
        if let Some((sent, came)) = self.before.replace((probe.sent, now)) {
            let difference = probe.sent.since(sent).abs_diff(now.saturating_sub(came));
            self.jitter = self.jitter * 15 / 16 + difference / 16;
        }
        self.heard = Some(probe.hearing);
        if let Some(echo) = probe.echo.filter(|echo| self.echoed != Some(echo.sequence)) {
            self.echoed = Some(echo.sequence);
            let ago = Stamp::of(now).since(echo.sent);
            if let Some(last) = ago.checked_sub(echo.held).filter(|last| *last <= LONGEST) {
                self.passed_at = Some(now.saturating_sub(ago));
                self.round_trip = Some(RoundTrip::next(self.round_trip, last));
            }
        }
        arrival
    }

    /// What is sent back of the last probe that came in order.
    pub fn echo(&self, now: Duration) -> Option<Echo> {
        let (sent, came) = self.before?;
        let sequence = self.window.as_ref()?.highest;
        Some(Echo { sequence, sent, held: now.saturating_sub(came) })
    }

    /// How well the other end is heard.
    pub fn hearing(&self) -> Hearing {
        let Some(window) = &self.window else { return Hearing::default() };
        Hearing {
            known: window.known as u16,
            lost: window.count(Fate::Lost),
            reordered: window.count(Fate::Late),
            jitter: self.jitter,
        }
    }

    /// The share of the last few probes that was lost, 0 to 1: what has only begun counts for little in the others.
    pub fn recent_loss(&self) -> f64 {
        self.window.as_ref().map_or(0.0, Window::recent_loss)
    }

    /// How well the other end hears, as it last said.
    pub fn heard(&self) -> Option<Hearing> {
        self.heard
    }

    /// When the last probe of this end was sent of which it is known that it arrived.
    pub fn passed_at(&self) -> Option<Duration> {
        self.passed_at
    }

    /// How long an answer takes.
    pub fn round_trip(&self) -> Option<RoundTrip> {
        self.round_trip
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_counted_is_what_is_kept(first in any::<u32>(), steps in prop::collection::vec(-300_i64..600, 0..600)) {
            let mut window = Window::new(first);
            for step in steps {
                window.note(window.highest.wrapping_add(step as u32));
                let kept = (0..window.known as u32).map(|behind| {
                    window.fates[window.highest.wrapping_sub(behind) as usize % WINDOW]
                });
                let kept: Vec<Fate> = kept.collect();
                for fate in [Fate::Lost, Fate::Heard, Fate::Late] {
                    prop_assert_eq!(usize::from(window.count(fate)), kept.iter().filter(|one| **one == fate).count());
                }
            }
        }
    }

    #[test]
    fn what_is_out_of_the_window_is_not_known() {
        // Numbers wrap.
        let first = u32::MAX - 100;
        let mut window = Window::new(first);
        assert_eq!(window.note(first - 1), Arrival::Again, "before the first nothing is known");
        assert_eq!(window.note(first + 3), Arrival::InOrder);
        assert_eq!((window.note(first + 1), window.note(first + 1)), (Arrival::Late, Arrival::Again));
        assert_eq!([Fate::Lost, Fate::Heard, Fate::Late].map(|fate| window.count(fate)), [1, 2, 1]);
        let last = first.wrapping_add(300);
        assert_eq!(window.note(last), Arrival::InOrder);
        assert_eq!(window.note(last.wrapping_sub(256)), Arrival::Again);
        assert_eq!(window.note(last.wrapping_sub(255)), Arrival::Late);
        assert_eq!([Fate::Lost, Fate::Heard, Fate::Late].map(|fate| window.count(fate)), [254, 1, 1]);
        assert_eq!(window.note(last.wrapping_add(1 << 20)), Arrival::InOrder);
        assert_eq!([Fate::Lost, Fate::Heard, Fate::Late].map(|fate| window.count(fate)), [255, 1, 0]);
    }
}
