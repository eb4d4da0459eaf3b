//! Whether both ends of a link hear each other.

use std::num::{NonZeroU8, NonZeroU32};
use std::time::Duration;

use super::figures::{Arrival, Figures};
use super::probe::{Probe, Stamp};
use crate::proto::model::{Hearing, LinkState, Why};

/// How often probes are sent where there are few links.
const INTERVAL: Duration = Duration::from_millis(200);
/// How many probes an agent sends in a second, all links together, where each goes when it must; they go a tenth sooner.
const A_SECOND: u32 = 500;
/// How many intervals may pass in silence.
const MULTIPLIER: NonZeroU8 = NonZeroU8::new(4).unwrap();
/// How often an end that hears nothing sends.
const SLOW: Duration = Duration::from_secs(1);
/// The longest interval that the other end can ask for.
const SLOWEST: Duration = Duration::from_secs(10);
/// The longest detection time.
const LONGEST: Duration = Duration::from_secs(60);
/// How many detection times a link lives of packets alone: what the other end hears it says in probes.
const WORDLESS: u32 = 3;
/// A probe goes by so much of the interval before it is due where the link is looked at.
const EARLY: u32 = 8;
/// By how much of itself an interval is shorter at most, so that probes do not come in step.
const SPREAD: u32 = 8;
/// A change is told at once, but not sooner after the last probe than a part of the interval.
const AT_ONCE: u32 = 4;

/// How often probes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// How often probes are sent, and are wanted at most.
    pub interval: Duration,
    /// How many intervals may pass in silence.
    pub multiplier: NonZeroU8,
}

impl Timing {
    /// That of an agent with so many links: all its probes together are bounded.
    pub fn of_links(links: usize) -> Self {
        let links = u32::try_from(links).unwrap_or(u32::MAX);
        Self { interval: INTERVAL.max(Duration::from_secs(1) / A_SECOND * links), multiplier: MULTIPLIER }
    }
}

/// A change of state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transition {
    /// As it was.
    pub from: LinkState,
    /// As it is.
    pub to: LinkState,
    /// Why.
    pub why: Why,
}

/// What is known of the other end.
#[derive(Debug, Clone, Copy)]
struct Other {
    number: NonZeroU32,
    /// What it last said of the link.
    state: LinkState,
    /// Whether it knows this life of this end, so that what it says is of that.
    knows: bool,
    multiplier: NonZeroU8,
    sends_every: Duration,
    hears_every: Duration,
    /// When a probe of it was last heard, and anything.
    probed_at: Duration,
    heard_at: Duration,
}

/// One end of a link. Times are since boot.
///
/// It keeps no state but what it has heard: the state follows from that and from the time. So it is right again, whatever was
/// lost, as soon as both have heard each other.
#[derive(Debug, Clone)]
pub struct Link {
    number: NonZeroU32,
    timing: Timing,
    random: u64,
    other: Option<Other>,
    /// When a packet came, while no probe has.
    packet_at: Option<Duration>,
    state: LinkState,
    why: Why,
    is_leaving: bool,
    since: Duration,
    changes: u32,
    sequence: u32,
    sent_at: Option<Duration>,
    /// How many probes were sent since the state is what it is.
    told: u8,
    due: Duration,
    figures: Figures,
}

impl Link {
    /// One of which nothing has been heard. `number` is another in each life of the link; `seed` spreads the probes of many
    /// links over time.
    pub fn new(number: NonZeroU32, timing: Timing, seed: u64, now: Duration) -> Self {
        Self {
            number,
            timing,
            random: seed | 1,
            other: None,
            packet_at: None,
            state: LinkState::Down,
            why: Why::Never,
            is_leaving: false,
            since: now,
            changes: 0,
            sequence: 0,
            sent_at: None,
            told: 0,
            due: now,
            figures: Figures::default(),
        }
    }

    /// Probes go in another rhythm from now on.
    pub fn set_timing(&mut self, timing: Timing) {
        self.timing = timing;
    }

    /// The other end is told with the next probe, which is due at once, that this one goes; nothing leads back from that.
    pub fn leave(&mut self, now: Duration) {
        (self.is_leaving, self.due) = (true, now);
    }

    /// A probe has come.
    pub fn handle_probe(&mut self, probe: &Probe, now: Duration) -> Option<Transition> {
        let knows = probe.other == Some(self.number);
        // What it says of an earlier life of this end is nothing of this one, of which it may never hear.
        let stale = Probe { echo: None, hearing: Hearing::default(), ..*probe };
        let probe = if knows { probe } else { &stale };
        let is_new = self.other.is_none_or(|other| other.number != probe.own);
        if is_new {
            self.figures = Figures::default();
        }
        match self.figures.handle(probe, now) {
            Arrival::InOrder => {}
            // It says what was so before what is known.
            Arrival::Late => {
                self.handle_data(now);
                return self.look(now);
            }
            Arrival::Again => return None,
        }
        self.other = Some(Other {
            number: probe.own,
            state: probe.state,
            knows,
            multiplier: probe.multiplier,
            sends_every: probe.sends_every.min(SLOWEST),
            hears_every: probe.hears_every.min(SLOWEST),
            probed_at: now,
            heard_at: now,
        });
        if is_new {
            self.hurry(now);
        }
        self.look(now)
    }

    /// A packet of the other end came at a time that may have passed.
    pub fn handle_data(&mut self, at: Duration) {
        match &mut self.other {
            Some(other) => other.heard_at = other.heard_at.max(at),
            None => self.packet_at = self.packet_at.max(Some(at)),
        }
    }

    /// When it is to be polled next.
    pub fn poll_at(&self) -> Duration {
        if self.why == Why::Left {
            return Duration::MAX;
        }
        let silent_at = self.other.map(|other| self.silent_at(&other));
        silent_at.filter(|_| self.hears()).map_or(self.due, |silent_at| silent_at.min(self.due))
    }

    /// What is due: how the state has changed, and a probe that is to be sent, which may be a little before it is due: many
    /// links are looked at together. To an end that has gone nothing is: it comes first when it is back.
    pub fn poll(&mut self, now: Duration) -> (Option<Transition>, Option<Probe>) {
        let transition = self.look(now);
        let Timing { interval, .. } = self.timing;
        // What is hurried is so close to the one before that it is no sooner than it must.
        let is_rhythm = self.sent_at.is_none_or(|sent| now >= sent + interval / 2);
        let is_due = now >= self.due || (is_rhythm && now + interval / EARLY >= self.due);
        let probe = (is_due && self.why != Why::Left).then(|| self.probe(now));
        (transition, probe)
    }

    /// The state, since when it is so, and why.
    pub fn state(&self) -> (LinkState, Duration, Why) {
        (self.state, self.since, self.why)
    }

    /// After how long a silence the other end is taken not to be heard; `None`: it has never been heard.
    pub fn detection_time(&self) -> Option<Duration> {
        self.other.as_ref().map(|other| self.detection(other))
    }

    /// How often the state has changed.
    pub fn changes(&self) -> u32 {
        self.changes
    }

    /// When a probe of the other end was last heard.
    pub fn last_heard(&self) -> Option<Duration> {
        self.other.map(|other| other.probed_at)
    }

    /// Both ends' numbers, as far as they are known.
    pub fn numbers(&self) -> (NonZeroU32, Option<NonZeroU32>) {
        (self.number, self.other.map(|other| other.number))
    }

    /// How well the ends hear each other.
    pub fn figures(&self) -> &Figures {
        &self.figures
    }

    fn hears(&self) -> bool {
        matches!(self.state, LinkState::Init | LinkState::Up)
    }

    fn detection(&self, other: &Other) -> Duration {
        let interval = other.sends_every.max(self.timing.interval);
        (interval * other.multiplier.get().into()).min(LONGEST)
    }

    /// From when on the other end is not heard.
    fn silent_at(&self, other: &Other) -> Duration {
        let detection = self.detection(other);
        (other.heard_at + detection).min(other.probed_at + detection * WORDLESS)
    }

    /// What the state is by all that was heard until now.
    fn judge(&self, now: Duration) -> (LinkState, Why) {
        if self.is_leaving {
            return (LinkState::AdminDown, Why::Leaving);
        }
        let Some(other) = &self.other else {
            // Its tunnel may not be probed.
            let comes = self.packet_at.is_some_and(|at| now < at + SLOWEST);
            return (LinkState::Down, if comes { Why::Wordless } else { Why::Never });
        };
        match other.state {
            // Nobody else knows this end's number.
            LinkState::AdminDown if other.knows => (LinkState::Down, Why::Left),
            _ if now >= self.silent_at(other) => {
                let is_wordless = now < other.heard_at + self.detection(other);
                (LinkState::Down, if is_wordless { Why::Wordless } else { Why::Silent })
            }
            LinkState::Init | LinkState::Up if other.knows => (LinkState::Up, Why::Heard),
            LinkState::AdminDown | LinkState::Down | LinkState::Init | LinkState::Up => {
                (LinkState::Init, Why::NotHeard)
            }
        }
    }

    fn look(&mut self, now: Duration) -> Option<Transition> {
        let (to, why) = self.judge(now);
        let from = self.state;
        (self.state, self.why) = (to, why);
        if from == to {
            return None;
        }
        self.since = now;
        self.changes = self.changes.saturating_add(1);
        self.told = 0;
        self.hurry(now);
        Some(Transition { from, to, why })
    }

    /// Has the next probe be sent at once, or as soon as the other end can be told again.
    fn hurry(&mut self, now: Duration) {
        let earliest = self.sent_at.map_or(now, |sent| sent + self.timing.interval / AT_ONCE);
        self.due = self.due.min(earliest.max(now));
    }

    fn probe(&mut self, now: Duration) -> Probe {
        let asked = self.other.map_or(Duration::ZERO, |other| other.hears_every);
        let is_slow = !self.hears() && self.told >= self.timing.multiplier.get();
        let interval = self.timing.interval.max(asked).max(if is_slow { SLOW } else { Duration::ZERO });
        self.told = self.told.saturating_add(1);
        self.sequence = self.sequence.wrapping_add(1);
        self.sent_at = Some(now);
        self.due = now + self.spread(interval);
        Probe {
            state: self.state,
            multiplier: self.timing.multiplier,
            own: self.number,
            other: self.other.map(|other| other.number),
            sends_every: interval,
            hears_every: self.timing.interval,
            sequence: self.sequence,
            sent: Stamp::of(now),
            echo: self.figures.echo(now),
            hearing: self.figures.hearing(),
        }
    }

    /// An interval that is somewhat shorter (RFC 5880 section 6.8.7 allows a quarter; what goes early counts).
    fn spread(&mut self, interval: Duration) -> Duration {
        // Xorshift (Marsaglia 2003).
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        interval - interval / SPREAD * (self.random % 1024) as u32 / 1024
    }
}

#[cfg(test)]
mod tests;
