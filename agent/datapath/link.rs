//! One end of a link, which the data threads share: whoever receives takes in what has come, and one sends what is due.

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::stats::{DropReason, TunnelStats};
use crate::agent::link::echo::Echo;
use crate::agent::link::figures::{Figures, RoundTrip};
use crate::agent::link::liveness::{Link, Timing, Transition};
use crate::agent::link::mtu::{Conditions, PathMtu, Question};
use crate::agent::link::probe::Probe;
use crate::agent::packet::echo::{Token, answered, question};
use crate::agent::packet::parse::Packet;
use crate::agent::session::LinkView;
use crate::proto::model::{Hearing, LinkState, LinkStatus, Why};
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
    asking: Option<Asking>,
}

/// How a peer is asked that sends no probes.
#[derive(Debug)]
struct Asking {
    /// From where, and whom.
    ends: (IpAddr, IpAddr),
    token: Token,
}

/// By what it is known whether the other end is there.
#[derive(Debug)]
enum Measure {
    /// Probes that both ends send.
    Probes(Box<Link>),
    /// What it answers to ICMP echoes.
    Echo(Echo),
}

#[derive(Debug)]
struct Inner {
    measure: Measure,
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
    /// What is to be sent to an end that sends some, too.
    pub probe: Option<Probe>,
    /// A packet for one that sends none, by which it is asked whether it is there.
    pub echo: Option<Vec<u8>>,
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
        Self::of(Measure::Probes(Box::new(link)), Fitness::Cut, None)
    }

    /// One whose peer sends no probes and is asked by ICMP echoes: `ends` are from where, and whom.
    pub fn asking(ends: (IpAddr, IpAddr), is_encrypted: bool, token: Token, now: Duration) -> Self {
        let [seed, ..] = token;
        let echo = Echo::new(is_encrypted, u64::from(seed) * 4, now);
        let fitness = if echo.is_known() { Fitness::Cut } else { Fitness::Fit };
        Self::of(Measure::Echo(echo), fitness, Some(Asking { ends, token }))
    }

    fn of(measure: Measure, fitness: Fitness, asking: Option<Asking>) -> Self {
        let inner = Inner { measure, has_failed: false, unsent: None, path: None, renewed_at: None, sent: 0 };
        Self { inner: Mutex::new(inner), fitness: AtomicU8::new(fitness as u8), asking }
    }

    /// Whom it asks by ICMP echoes, and from where; absent: it sends probes.
    pub fn asks(&self) -> Option<(IpAddr, IpAddr)> {
        self.asking.as_ref().map(|asking| asking.ends)
    }

    /// Whether it is to carry packets that another one could carry, too.
    pub fn fitness(&self) -> Fitness {
        match self.fitness.load(Ordering::Relaxed) {
            0 => Fitness::Cut,
            1 => Fitness::Healing,
            _ => Fitness::Fit,
        }
    }

    /// Whether the other end is known not to be heard.
    pub fn is_silent(&self) -> bool {
        let inner = self.inner();
        inner.is_known() && matches!(inner.state().0, LinkState::Down | LinkState::AdminDown)
    }

    /// The state of the link; `None`: nothing is known of it yet.
    pub fn state(&self) -> Option<LinkState> {
        let inner = self.inner();
        inner.is_known().then(|| match inner.state() {
            (_, _, Why::Left) => LinkState::AdminDown,
            (state, _, _) => state,
        })
    }

    /// As [`Link::set_timing`].
    pub fn set_timing(&self, timing: Timing) {
        if let Measure::Probes(link) = &mut self.inner().measure {
            link.set_timing(timing);
        }
    }

    /// The route to the peer carries packets of so many bytes, IP header included.
    pub fn set_path(&self, is_v4: bool, ceiling: u16, now: Duration) {
        let mut inner = self.inner();
        match &mut inner.path {
            Some((path, family)) if *family == is_v4 => _ = path.set_ceiling(ceiling, now),
            Some(_) | None => inner.path = Some((PathMtu::new(is_v4, ceiling, now), is_v4)),
        }
    }

    /// What is sent takes another way from now on: what that carries is found out anew.
    pub fn forget_path(&self) {
        self.inner().path = None;
    }

    /// The largest packet that comes through, IP header included, as far as it is known.
    pub fn carries(&self) -> Option<u16> {
        self.inner().path.as_ref().map(|(path, _)| path.current())
    }

    /// A probe has come. Returns whether the state has changed, and when the end is to be looked at.
    pub fn handle_probe(&self, probe: &Probe, now: Duration) -> (bool, Duration) {
        let mut inner = self.inner();
        let Measure::Probes(link) = &mut inner.measure else { return (false, Duration::MAX) };
        let transition = link.handle_probe(probe, now);
        let due = link.poll_at();
        self.judge(&mut inner, transition, now);
        (transition.is_some(), due)
    }

    /// Whether a packet that came from the peer answers an ICMP echo of this end's, and whether the state has changed by that.
    pub fn handle_packet(&self, bytes: &[u8], now: Duration) -> Option<bool> {
        let Asking { ends: (own, peer), token } = self.asking.as_ref()?;
        let packet = Packet::parse(bytes).ok()?;
        if (packet.source(), packet.destination()) != (*peer, *own) {
            return None;
        }
        let sequence = answered(&packet, token)?;
        let mut inner = self.inner();
        let Measure::Echo(echo) = &mut inner.measure else { return None };
        let transition = echo.handle_answer(sequence, now);
        self.judge(&mut inner, transition, now);
        Some(transition.is_some())
    }

    /// An answer has come. Returns whether the path is now known to carry something else, and when the end is to be looked at.
    pub fn handle_answer(&self, number: u32, now: Duration) -> (bool, Duration) {
        match &mut self.inner().path {
            Some((path, _)) => (path.handle_answer(number, now).is_some(), path.poll_at()),
            None => (false, Duration::MAX),
        }
    }

    /// What is due; `stats` are the tunnel's, and `keyed_at` is when the keys were agreed on by which packets go to a peer that
    /// sends no probes.
    pub fn poll(&self, stats: &TunnelStats, keyed_at: Option<Duration>, now: Duration) -> Due {
        let mut inner = self.inner();
        let heard_at = stats.last_received();
        let (transition, probe, asked) = match &mut inner.measure {
            Measure::Probes(link) => {
                if let Some(at) = heard_at {
                    link.handle_data(at);
                }
                let (transition, probe) = link.poll(now);
                (transition, probe, None)
            }
            Measure::Echo(echo) => {
                echo.handle_signs(heard_at, keyed_at, now);
                let (transition, sequence) = echo.poll(now);
                (transition, None, sequence)
            }
        };
        let echo = self.asking.as_ref().zip(asked);
        let echo = echo.and_then(|(Asking { ends: (own, peer), token }, sequence)| {
            question(*own, *peer, token, sequence)
        });
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
        let poll_at = match &inner.measure {
            Measure::Probes(link) => link.poll_at(),
            Measure::Echo(echo) => echo.poll_at(),
        };
        Due { has_changed, probe, echo, question, renews, next: next.min(poll_at) }
    }

    /// This end goes. Returns what is to be sent.
    pub fn leave(&self, now: Duration) -> Option<Probe> {
        let Measure::Probes(link) = &mut self.inner().measure else { return None };
        link.leave(now);
        link.poll(now).1
    }

    /// Notes what became of the last probe or question.
    pub fn note_sent(&self, sent: Result<(), DropReason>) {
        self.inner().unsent = sent.err();
    }

    /// How it is; `since_epoch` makes a time since boot one since the Unix epoch. `None`: nothing is known yet of an end that
    /// may never be heard of.
    pub fn status(&self, mut since_epoch: impl FnMut(Duration) -> Duration) -> Option<LinkStatus> {
        let inner = self.inner();
        if !inner.is_known() {
            return None;
        }
        let (state, since, why) = inner.state();
        let (last_heard, detection_time, changes) = match &inner.measure {
            Measure::Probes(link) => (link.last_heard(), link.detection_time(), link.changes()),
            Measure::Echo(echo) => (echo.last_heard(), Some(echo.detection_time()), echo.changes()),
        };
        let figures = inner.figures();
        let known = |hearing: Option<Hearing>| hearing.filter(|hearing| hearing.known > 0);
        // What is not heard any more tells nothing of now: its figures are those of before.
        let (hears, is_up) =
            (matches!(state, LinkState::Init | LinkState::Up), state == LinkState::Up && why != Why::Keyed);
        Some(LinkStatus {
            state: if why == Why::Left { LinkState::AdminDown } else { state },
            why,
            unsent: inner.unsent.map(DropReason::words),
            since: since_epoch(since),
            last_heard: last_heard.map(since_epoch),
            detection_time,
            // What is known by keys alone says nothing of how long an answer takes.
            round_trip: inner.round_trip().filter(|_| is_up).map(|round_trip| round_trip.mean),
            sent: known(figures.and_then(Figures::heard)).filter(|_| is_up),
            received: known(figures.map(Figures::hearing)).filter(|_| hears),
            changes,
            carries: inner.path.as_ref().map(|(path, _)| path.current()),
            is_carried: inner.path.as_ref().is_some_and(|(path, _)| path.is_verified()),
            // Whether it still does shows only while anything comes through.
            loses: inner.path.as_ref().and_then(|(path, _)| path.lost()).filter(|_| is_up),
        })
    }

    /// How it is, as a controller is told of it; `None` as in [`Self::status`].
    pub fn view(&self, now: Duration) -> Option<LinkView> {
        let status = self.status(|since_boot| now.saturating_sub(since_boot))?;
        let known = match &self.inner().measure {
            // Either end can tell of both; the one with the lower number does.
            Measure::Probes(link) => match link.numbers() {
                (own, Some(other)) if own < other => status.sent.zip(status.received),
                (_, Some(_) | None) => None,
            },
            // Of one that does not answer now there is nothing new.
            Measure::Echo(_) if status.why == Why::Heard => Some((Hearing::default(), Hearing::default())),
            Measure::Echo(_) => None,
        };
        Some(LinkView {
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
        })
    }

    fn judge(&self, inner: &mut Inner, transition: Option<Transition>, now: Duration) {
        inner.has_failed |= transition.is_some_and(|transition| transition.from == LinkState::Up);
        if !inner.is_known() {
            return;
        }
        let fitness = match inner.state() {
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
    fn state(&self) -> (LinkState, Duration, Why) {
        match &self.measure {
            Measure::Probes(link) => link.state(),
            Measure::Echo(echo) => echo.state(),
        }
    }

    fn is_known(&self) -> bool {
        match &self.measure {
            Measure::Probes(_) => true,
            Measure::Echo(echo) => echo.is_known(),
        }
    }

    fn figures(&self) -> Option<&Figures> {
        match &self.measure {
            Measure::Probes(link) => Some(link.figures()),
            Measure::Echo(_) => None,
        }
    }

    fn round_trip(&self) -> Option<RoundTrip> {
        match &self.measure {
            Measure::Probes(link) => link.figures().round_trip(),
            Measure::Echo(echo) => echo.round_trip(),
        }
    }

    /// Whoever was restarted knows no keys any more, and what it sends to agree on some may be lost.
    fn renews(&mut self, now: Duration) -> bool {
        let (state, since, why) = self.state();
        let is_silent = state == LinkState::Down && matches!(why, Why::Silent | Why::Wordless);
        let is_due = is_silent && self.renewed_at.is_none_or(|at| at < since || now >= at + RENEWAL);
        if is_due {
            self.renewed_at = Some(now);
        }
        is_due
    }

    fn conditions(&self) -> Conditions {
        let usual = self.round_trip().map_or(USUAL, |trip| trip.mean + trip.deviation * 4 + HURRY);
        let figures = self.figures();
        // A question and its answer go both ways.
        let ways = [figures.map(Figures::hearing), figures.and_then(Figures::heard)].into_iter().flatten();
        let comes = ways.map(|way| 1.0 - f64::from(way.lost) / f64::from(way.known.max(1))).product::<f64>();
        Conditions {
            is_up: self.state().0 == LinkState::Up,
            is_used: false,
            patience: usual.clamp(HURRY, PATIENCE),
            passed_at: figures.and_then(Figures::passed_at),
            loss: (1.0 - comes).max(figures.map_or(0.0, Figures::recent_loss)),
        }
    }
}
