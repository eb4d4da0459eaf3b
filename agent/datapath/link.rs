//! One end of a link, which the data threads share: whoever receives takes in what has come, and one sends what is due.

use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::stats::{DropReason, TunnelStats};
use crate::agent::link::liveness::{Link, Timing, Transition};
use crate::agent::link::mtu::{Conditions, PathMtu, Question};
use crate::agent::link::probe::Probe;
use crate::agent::session::LinkView;
use crate::proto::model::{LinkState, LinkStatus, Why};
use crate::proto::session::{LinkFigures, LinkReport};

/// For how long a link that has failed is up until it is preferred again.
const HEALTH: Duration = Duration::from_secs(10);

/// How often new keys are asked for while the other end is not heard.
const RENEWAL: Duration = Duration::from_secs(5);
/// How long an answer is waited for: at least, which is also what is added to how long it usually takes, where that is not
/// known, and at most.
const HURRY: Duration = Duration::from_millis(150);
const USUAL: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(5);

/// Whether a link is to carry packets that another one could carry, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Fitness {
    /// One direction is cut, or both are.
    Cut = 0,
    /// It is up, and was not a short while ago.
    Healing = 1,
    /// It is up, or nothing is known of it.
    Fit = 2,
}

/// One end of a link. It outlives every table.
#[derive(Debug)]
pub struct LinkEnd {
    inner: Mutex<Inner>,
    fitness: AtomicU8,
}

#[derive(Debug)]
struct Inner {
    link: Link,
    /// Whether it was up once and then was not.
    has_failed: bool,
    /// Why the last probe was not sent.
    unsent: Option<DropReason>,
    /// What the path carries, once the route to the peer is known, and whether it is IPv4.
    path: Option<(PathMtu, bool)>,
    /// When keys were last to be agreed on anew, since the other end is not heard.
    renewed_at: Option<Duration>,
    /// How many packets had been sent when this was last looked at.
    sent: u64,
}

/// What is due at an end.
#[derive(Debug)]
pub struct Due {
    /// Whether its state has changed, or what its path carries.
    pub has_changed: bool,
    /// What is to be sent.
    pub probe: Option<Probe>,
    /// What is to be asked.
    pub question: Option<Question>,
    /// Whether new keys are to be agreed on: the other end is not heard, and may know none.
    pub renews: bool,
    /// When it is to be looked at again, as time since boot.
    pub next: Duration,
}

impl LinkEnd {
    /// One of which nothing has been heard, as [`Link::new`].
    pub fn new(number: NonZeroU32, timing: Timing, seed: u64, now: Duration) -> Self {
        let link = Link::new(number, timing, seed, now);
        let inner = Inner { link, has_failed: false, unsent: None, path: None, renewed_at: None, sent: 0 };
        Self { inner: Mutex::new(inner), fitness: AtomicU8::new(Fitness::Cut as u8) }
    }

    /// Whether it is to carry packets that another one could carry, too.
    pub fn fitness(&self) -> Fitness {
        match self.fitness.load(Ordering::Relaxed) {
            0 => Fitness::Cut,
            1 => Fitness::Healing,
            _ => Fitness::Fit,
        }
    }

    /// Whether the other end is heard.
    pub fn hears(&self) -> bool {
        matches!(self.inner().link.state().0, LinkState::Init | LinkState::Up)
    }

    /// As [`Link::set_timing`].
    pub fn set_timing(&self, timing: Timing) {
        self.inner().link.set_timing(timing);
    }

    /// The route to the peer carries packets of so many bytes, IP header included.
    pub fn set_path(&self, is_v4: bool, ceiling: u16, now: Duration) {
        let mut inner = self.inner();
        match &mut inner.path {
            Some((path, family)) if *family == is_v4 => _ = path.set_ceiling(ceiling, now),
            Some(_) | None => inner.path = Some((PathMtu::new(is_v4, ceiling, now), is_v4)),
        }
    }

    /// The largest packet that comes through, IP header included, as far as it is known.
    pub fn carries(&self) -> Option<u16> {
        self.inner().path.as_ref().map(|(path, _)| path.current())
    }

    /// A probe has come. Returns whether the state has changed, and when the end is to be looked at.
    pub fn handle_probe(&self, probe: &Probe, now: Duration) -> (bool, Duration) {
        let mut inner = self.inner();
        let transition = inner.link.handle_probe(probe, now);
        self.judge(&mut inner, transition, now);
        (transition.is_some(), inner.link.poll_at())
    }

    /// An answer has come. Returns whether the path is now known to carry something else, and when the end is to be looked at.
    pub fn handle_answer(&self, number: u32, now: Duration) -> (bool, Duration) {
        match &mut self.inner().path {
            Some((path, _)) => (path.handle_answer(number, now).is_some(), path.poll_at()),
            None => (false, Duration::MAX),
        }
    }

    /// What is due; `stats` are the tunnel's.
    pub fn poll(&self, stats: &TunnelStats, now: Duration) -> Due {
        let mut inner = self.inner();
        if let Some(at) = stats.last_received() {
            inner.link.handle_data(at);
        }
        let (transition, probe) = inner.link.poll(now);
        self.judge(&mut inner, transition, now);
        let (mut change, mut question) = (None, None);
        if inner.path.as_ref().is_some_and(|(path, _)| now >= path.poll_at()) {
            let before = std::mem::replace(&mut inner.sent, stats.sent.packets());
            let conditions = Conditions { is_used: inner.sent != before, ..inner.conditions() };
            if let Some((path, _)) = &mut inner.path {
                (change, question) = path.poll(conditions, now);
            }
        }
        let next = inner.path.as_ref().map_or(Duration::MAX, |(path, _)| path.poll_at());
        let has_changed = transition.is_some() || change.is_some();
        let renews = inner.renews(now);
        Due { has_changed, probe, question, renews, next: next.min(inner.link.poll_at()) }
    }

    /// This end goes. Returns what is to be sent.
    pub fn leave(&self, now: Duration) -> Option<Probe> {
        let mut inner = self.inner();
        inner.link.leave(now);
        inner.link.poll(now).1
    }

    /// Notes what became of the last probe.
    pub fn note_sent(&self, sent: Result<(), DropReason>) {
        self.inner().unsent = sent.err();
    }

    /// How it is; `since_epoch` makes a time since boot one since the Unix epoch.
    pub fn status(&self, mut since_epoch: impl FnMut(Duration) -> Duration) -> LinkStatus {
        let inner = self.inner();
        let (state, since, why) = inner.link.state();
        let figures = inner.link.figures();
        LinkStatus {
            state: if why == Why::Left { LinkState::AdminDown } else { state },
            why,
            unsent: inner.unsent.map(DropReason::name),
            since: since_epoch(since),
            last_heard: inner.link.last_heard().map(since_epoch),
            detection_time: inner.link.detection_time(),
            round_trip: figures.round_trip().map(|round_trip| round_trip.mean),
            sent: figures.heard().filter(|hearing| hearing.known > 0),
            received: Some(figures.hearing()).filter(|hearing| hearing.known > 0),
            changes: inner.link.changes(),
            carries: inner.path.as_ref().map(|(path, _)| path.current()),
            is_carried: inner.path.as_ref().is_some_and(|(path, _)| path.is_verified()),
            loses: inner.path.as_ref().and_then(|(path, _)| path.lost()),
        }
    }

    /// How it is, as a controller is told of it.
    pub fn view(&self, now: Duration) -> LinkView {
        let status = self.status(|since_boot| now.saturating_sub(since_boot));
        // Either end can tell of both; the one with the lower number does.
        let is_teller = match self.inner().link.numbers() {
            (own, Some(other)) => own < other,
            (_, None) => false,
        };
        let known = status.sent.zip(status.received).filter(|_| is_teller);
        LinkView {
            report: LinkReport {
                state: status.state,
                why: status.why,
                since: status.since,
                last_heard: status.last_heard,
                detection_time: status.detection_time,
                changes: status.changes,
                unsent: status.unsent.unwrap_or_default().to_owned(),
                carries: status.carries.filter(|_| status.is_carried),
                loses: status.loses,
            },
            figures: known.map(|(sent, received)| LinkFigures {
                round_trip: status.round_trip,
                sent,
                received,
            }),
        }
    }

    fn judge(&self, inner: &mut Inner, transition: Option<Transition>, now: Duration) {
        inner.has_failed |= transition.is_some_and(|transition| transition.from == LinkState::Up);
        let fitness = match inner.link.state() {
            (LinkState::Up, since, _) if inner.has_failed && now < since + HEALTH => Fitness::Healing,
            (LinkState::Up, _, _) => Fitness::Fit,
            (LinkState::AdminDown | LinkState::Down | LinkState::Init, _, _) => Fitness::Cut,
        };
        self.fitness.store(fitness as u8, Ordering::Relaxed);
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Whoever was restarted knows no keys any more, and what it sends to agree on some may be lost.
    fn renews(&mut self, now: Duration) -> bool {
        let (state, since, why) = self.link.state();
        let is_silent = state == LinkState::Down && matches!(why, Why::Silent | Why::Wordless);
        let is_due = is_silent && self.renewed_at.is_none_or(|at| at < since || now >= at + RENEWAL);
        if is_due {
            self.renewed_at = Some(now);
        }
        is_due
    }

    fn conditions(&self) -> Conditions {
        let figures = self.link.figures();
        let usual = figures.round_trip().map_or(USUAL, |trip| trip.mean + trip.deviation * 4 + HURRY);
        // A question and its answer go both ways.
        let ways = [Some(figures.hearing()), figures.heard()].into_iter().flatten();
        let comes = ways.map(|way| 1.0 - f64::from(way.lost) / f64::from(way.known.max(1))).product::<f64>();
        Conditions {
            is_up: self.link.state().0 == LinkState::Up,
            is_used: false,
            patience: usual.clamp(HURRY, PATIENCE),
            loss: (1.0 - comes).max(figures.recent_loss()),
        }
    }
}
