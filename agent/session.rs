//! The agent's session with its controller: what is said, what is kept of it, and when.
//!
//! Drive it so: after each call [`Session::poll_effect`] until it gives nothing more, and call
//! [`Session::handle_timeout`] when [`Session::poll_timeout`] says so. While [`Session::wants_tunnels`] says so,
//! tell it how the tunnels are with [`Session::handle_tunnels`] and [`Session::handle_failures`]. `now` never goes
//! back.
//!
//! Nothing here touches forwarding: whatever becomes of a session, what was kept stays real. Only that another agent has
//! this one's place is for others to act upon: [`Session::is_second`].

mod base;
mod links;
mod push;
mod random;
mod reports;
mod trouble;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use self::base::Base;
pub use self::links::LinkView;
use self::links::Links;
use self::push::Chunks;
use self::random::Random;
use self::reports::Reports;
pub use self::trouble::{Told, Trouble, TroubleKind};
use crate::proto::model::{DeviceName, MeshName, NodeName, OperatorName, PublicKey, TunnelName};
use crate::proto::session::{
    Ack, AgentMessage, ControllerMessage, Examination, Findings, Forwarding, Generation, Heartbeat, Hello,
    ItemId, PROBES, PROTOCOL_VERSION, Reach, RunId, TunnelReport, Welcome,
};
use crate::proto::trust::Rights;

/// How long a dial may take, names and handshakes included.
pub const DIAL_TIMEOUT: Duration = Duration::from_secs(3);
/// How often the agent says that it is there; 10 % more or less.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// A controller that has said nothing for so long is not there.
const WATCHDOG: Duration = Duration::from_secs(15);
/// The longest wait before the second attempt; doubled with each up to [`BACKOFF_MOST`].
const BACKOFF: Duration = Duration::from_millis(500);
/// The longest wait before any attempt.
const BACKOFF_MOST: Duration = Duration::from_secs(6);
/// A session that was in step for so long was a good one.
const GOOD: Duration = Duration::from_secs(10);
/// How soon a controller is asked again to which this agent does not belong.
const REFUSED: Duration = Duration::from_secs(30);
/// The codes of gRPC by which a controller that was told who this agent is says that it has another one that is, and that
/// it is not.
const ALREADY_EXISTS: i32 = 6;
const PERMISSION_DENIED: i32 = 7;
/// How many repairs wait to be told, and how many are told at once: a connection takes only so much.
const REPAIRS: usize = 1_000;
const AT_ONCE: usize = 8;
/// The longest time that a controller can ask for.
const ASKED_MOST: Duration = Duration::from_secs(300);

/// What an agent says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The node that it says it is.
    pub node: NodeName,
    /// What the node says of itself.
    pub labels: BTreeMap<String, String>,
    /// Where others reach its data port.
    pub reach: Reach,
    /// The UDP port on which it receives packets.
    pub data_port: u16,
    /// Its release.
    pub version: String,
    /// This run of its process.
    pub run_id: RunId,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Dial one of the controllers, by position; then say [`Session::handle_connected`] or
    /// [`Session::handle_closed`].
    Dial(usize),
    /// Send a message.
    Send(AgentMessage),
    /// Let go of the connection or attempt; nothing that it still says is heeded.
    Close,
    /// Keep this on disk and try it; then say [`Session::handle_kept`].
    Keep(Base),
    /// From now on these may steer this agent from elsewhere, and nobody else.
    Operators(Arc<BTreeMap<OperatorName, Rights>>),
    /// Try how this host reaches peers; then say [`Session::handle_findings`].
    Examine(Examination),
}

/// How far a session is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionState {
    /// It waits before it dials again.
    Waiting,
    /// It dials.
    Dialling,
    /// It is connected, and not in step yet.
    Connected,
    /// It has what the controller wants.
    Synced,
    /// It has ended for good.
    Ended,
}

/// A session as it is, to be shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// How far it is.
    pub state: SessionState,
    /// Since when.
    pub since: Instant,
    /// The controller that is dialled, by position.
    pub controller: usize,
    /// When a controller was last heard.
    pub last_heard: Option<Instant>,
    /// What is kept.
    pub generation: Option<Generation>,
    /// What was to be removed and is kept all the same.
    pub held: BTreeSet<ItemId>,
    /// Why it is not in step.
    pub trouble: Option<Trouble>,
}

/// The state machine of one agent's sessions, one after the other.
#[derive(Debug)]
pub struct Session {
    identity: Identity,
    controllers: usize,
    random: Random,
    base: Option<Base>,
    /// What is being kept. Meanwhile nothing is dialled: a Hello must say what is on disk.
    keeping: Option<Base>,
    phase: Phase,
    since: Instant,
    controller: usize,
    /// Attempts since the last good session.
    attempts: u32,
    last_heard: Option<Instant>,
    trouble: Option<Trouble>,
    is_second: bool,
    /// The keys by which the peers of encrypted tunnels know this host.
    keys: BTreeMap<MeshName, PublicKey>,
    effects: VecDeque<Effect>,
}

#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "an agent has one")]
enum Phase {
    Waiting { dial_at: Instant },
    Dialling { until: Instant },
    Open(Open),
    Ended,
}

/// A connection.
#[derive(Debug)]
struct Open {
    heard: Instant,
    beat_at: Instant,
    /// The store of the controller that welcomed it; `None`: none has yet.
    store_id: Option<String>,
    /// What it calls its start.
    timeline: String,
    /// Whether what it said in its Hello has been answered.
    answered: bool,
    synced: Option<Instant>,
    /// When the controller last came nearer to an answer.
    moved: Instant,
    chunks: Option<Chunks>,
    /// When and why a snapshot is to be asked for.
    resync: Option<(Instant, String)>,
    resynced_at: Option<Instant>,
    /// What was acknowledged last.
    acked: Option<Ack>,
    reports: Reports,
    links: Links,
    /// What others have done to devices, and is to be told.
    repairs: VecDeque<(DeviceName, String)>,
}

impl Session {
    /// A session that dials the first of `controllers` at once. `base` is what was kept of earlier ones, and `seed`
    /// is random.
    pub fn new(identity: Identity, controllers: usize, base: Option<Base>, seed: u64, now: Instant) -> Self {
        Self {
            identity,
            controllers: controllers.max(1),
            random: Random(seed),
            base,
            keeping: None,
            phase: Phase::Waiting { dial_at: now },
            since: now,
            controller: controllers.max(1) - 1,
            attempts: 0,
            last_heard: None,
            trouble: None,
            is_second: false,
            keys: BTreeMap::new(),
            effects: VecDeque::new(),
        }
    }

    /// The session as it is.
    pub fn standing(&self) -> Standing {
        Standing {
            state: match &self.phase {
                Phase::Waiting { .. } => SessionState::Waiting,
                Phase::Dialling { .. } => SessionState::Dialling,
                Phase::Open(Open { synced: None, .. }) => SessionState::Connected,
                Phase::Open(Open { synced: Some(_), .. }) => SessionState::Synced,
                Phase::Ended => SessionState::Ended,
            },
            since: self.since,
            controller: self.controller,
            last_heard: self.last_heard,
            generation: self.base.as_ref().map(|base| base.generation),
            held: self.base.iter().flat_map(|base| base.held.iter()).map(|item| item.id.clone()).collect(),
            trouble: self.trouble.clone(),
        }
    }

    /// Whether the controller that was heard last has another agent of this name, which is alive.
    pub fn is_second(&self) -> bool {
        self.is_second
    }

    /// What is kept of the controller.
    pub fn base(&self) -> Option<&Base> {
        self.base.as_ref()
    }

    /// The dialled controller answers.
    pub fn handle_connected(&mut self, now: Instant) {
        if !matches!(self.phase, Phase::Dialling { .. }) {
            return;
        }
        let beat_at = now + self.random.about(HEARTBEAT);
        self.enter(
            Phase::Open(Open {
                heard: now,
                beat_at,
                store_id: None,
                timeline: String::new(),
                answered: false,
                synced: None,
                moved: now,
                chunks: None,
                resync: None,
                resynced_at: None,
                acked: None,
                reports: Reports::default(),
                links: Links::default(),
                repairs: VecDeque::new(),
            }),
            now,
        );
        let hello = Hello {
            protocol_version: PROTOCOL_VERSION,
            capabilities: BTreeSet::from([PROBES.to_owned()]),
            node: self.identity.node.clone(),
            run_id: self.identity.run_id,
            have: self.base.as_ref().map(Base::have),
            version: self.identity.version.clone(),
            labels: self.identity.labels.clone(),
            reach: self.identity.reach.clone(),
            data_port: self.identity.data_port,
            // Whoever sends it knows on what connection, and reads the clock.
            local: None,
            clock: None,
            keys: self.keys.clone(),
        };
        self.send(AgentMessage::Hello(Box::new(hello)));
    }

    /// The connection is gone, was refused, or did not come about; `retry_after`: the least time that the controller
    /// asks for.
    pub fn handle_closed(&mut self, why: Trouble, retry_after: Option<Duration>, now: Instant) {
        if matches!(self.phase, Phase::Open(_)) {
            match why.kind {
                TroubleKind::Refused(ALREADY_EXISTS) => self.is_second = true,
                TroubleKind::Refused(PERMISSION_DENIED) => self.is_second = false,
                TroubleKind::Unbelieved
                | TroubleKind::Unapproved
                | TroubleKind::Unjoined
                | TroubleKind::Unreachable
                | TroubleKind::Unanswered
                | TroubleKind::Refused(_)
                | TroubleKind::Refuses
                | TroubleKind::Unintelligible
                | TroubleKind::Silent
                | TroubleKind::Ended
                | TroubleKind::Unkept => {}
            }
        }
        match self.phase {
            Phase::Dialling { .. } | Phase::Open(_) => self.wait(why, retry_after.unwrap_or_default(), now),
            Phase::Waiting { .. } | Phase::Ended => {}
        }
    }

    /// The controller says something.
    pub fn handle_message(&mut self, message: ControllerMessage, now: Instant) {
        let Phase::Open(open) = &mut self.phase else { return };
        open.heard = now;
        self.last_heard = Some(now);
        let welcomed = open.store_id.is_some();
        match message {
            ControllerMessage::Heartbeat(Heartbeat { ping, .. }) => {
                if ping.is_some() {
                    self.send(AgentMessage::Heartbeat(Heartbeat { ping: None, answers: ping }));
                }
            }
            ControllerMessage::GoAway { reason, after_ms } => {
                let reason = format!("the controller ended the session: {reason}");
                self.close(Trouble::new(TroubleKind::Ended, reason), Duration::from_millis(after_ms), now);
            }
            ControllerMessage::Welcome(welcome) if !welcomed => self.handle_welcome(&welcome, now),
            ControllerMessage::Welcome(_) => {
                self.misunderstand("the controller welcomed a session twice", now);
            }
            ControllerMessage::NotModified(_)
            | ControllerMessage::Snapshot(_)
            | ControllerMessage::Delta(_)
            | ControllerMessage::ReportRequest(_)
            | ControllerMessage::Operators(_)
            | ControllerMessage::Examination(_)
                if !welcomed =>
            {
                self.misunderstand("the controller began without a welcome", now);
            }
            ControllerMessage::NotModified(generation) => self.handle_not_modified(generation, now),
            ControllerMessage::Snapshot(chunk) => self.handle_chunk(chunk, now),
            ControllerMessage::Delta(delta) => self.handle_delta(delta, now),
            ControllerMessage::Operators(operators) => self.effects.push_back(Effect::Operators(operators)),
            ControllerMessage::Examination(asked) => self.effects.push_back(Effect::Examine(asked)),
            ControllerMessage::ReportRequest(request) => {
                open.reports.handle_request(request);
            }
        }
    }

    /// Whether the controller is to be told of tunnels: as they are, or as they changed.
    pub fn wants_tunnels(&self) -> bool {
        match &self.phase {
            Phase::Open(open) => open.store_id.is_some() && (open.reports.are_due() || open.synced.is_some()),
            Phase::Waiting { .. } | Phase::Dialling { .. } | Phase::Ended => false,
        }
    }

    /// Takes in the keys by which the peers of encrypted tunnels know this host: the controller is told of others.
    pub fn handle_keys(&mut self, keys: BTreeMap<MeshName, PublicKey>) {
        if self.keys != keys {
            self.keys = keys;
            if matches!(self.phase, Phase::Open(_)) {
                self.send(AgentMessage::Keys(self.keys.clone()));
            }
        }
    }

    /// Takes in what the host forwards, for the next report.
    pub fn handle_forwarding(&mut self, forwarding: Forwarding) {
        if let Phase::Open(open) = &mut self.phase {
            open.reports.handle_forwarding(forwarding);
        }
    }

    /// Takes in all tunnels as they are now.
    pub fn handle_tunnels(&mut self, tunnels: BTreeMap<TunnelName, TunnelReport>) {
        let wanted = self.wants_tunnels();
        let Phase::Open(open) = &mut self.phase else { return };
        if wanted {
            let reports = open.reports.next(tunnels).into_iter();
            self.effects.extend(reports.map(|report| Effect::Send(AgentMessage::Report(report))));
        }
    }

    /// Whether the controller is told of links.
    pub fn wants_links(&self) -> bool {
        matches!(&self.phase, Phase::Open(open) if open.store_id.is_some())
    }

    /// Takes in all links as they are now.
    pub fn handle_links(&mut self, links: &BTreeMap<TunnelName, LinkView>, now: Instant) {
        let wanted = self.wants_links();
        let Phase::Open(open) = &mut self.phase else { return };
        if wanted {
            let messages = open.links.next(links, now).into_iter();
            let repairs = open.repairs.drain(..open.repairs.len().min(AT_ONCE));
            let repairs = repairs.map(|(device, what)| AgentMessage::Repaired { device, what });
            self.effects.extend(messages.chain(repairs).map(Effect::Send));
        }
    }

    /// Takes in what others have done to a device, which is put right: the controller is told, if it is there.
    pub fn handle_repair(&mut self, device: DeviceName, what: String) {
        let Phase::Open(open) = &mut self.phase else { return };
        if open.repairs.len() < REPAIRS {
            open.repairs.push_back((device, what));
        }
    }

    /// Takes in what was found, for the controller that is there: one that did not ask does not know the number.
    pub fn handle_findings(&mut self, findings: Findings) {
        if self.wants_links() {
            self.send(AgentMessage::Findings(findings));
        }
    }

    /// Takes in what of the controller's cannot be had now, and why: where that has changed since it was acknowledged,
    /// it is acknowledged again.
    pub fn handle_failures(&mut self, failures: BTreeMap<ItemId, String>) {
        let Phase::Open(open) = &mut self.phase else { return };
        if let Some(ack) = open.acked.as_mut().filter(|ack| open.synced.is_some() && ack.failures != failures)
        {
            ack.failures = failures;
            let ack = ack.clone();
            self.send(AgentMessage::Ack(ack));
        }
    }

    /// Ends for good.
    pub fn end(&mut self, now: Instant) {
        if matches!(self.phase, Phase::Open(_)) {
            self.send(AgentMessage::Goodbye);
        }
        if matches!(self.phase, Phase::Open(_) | Phase::Dialling { .. }) {
            self.effects.push_back(Effect::Close);
        }
        self.enter(Phase::Ended, now);
    }

    /// When to call [`Self::handle_timeout`]; `None`: after the next event at the earliest.
    pub fn poll_timeout(&self) -> Option<Instant> {
        match &self.phase {
            Phase::Waiting { dial_at } => self.keeping.is_none().then_some(*dial_at),
            Phase::Dialling { until } => Some(*until),
            Phase::Open(open) => {
                let resync = open.resync.as_ref().filter(|_| self.keeping.is_none()).map(|(at, _)| *at);
                let answer = (!open.answered).then(|| open.moved + WATCHDOG);
                let watch = (open.heard + WATCHDOG).min(open.beat_at);
                let links = open.links.due();
                Some(resync.into_iter().chain(answer).chain(links).fold(watch, Instant::min))
            }
            Phase::Ended => None,
        }
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        let keeping = self.keeping.is_some();
        match &mut self.phase {
            Phase::Waiting { dial_at } => {
                if now >= *dial_at && !keeping {
                    self.controller = (self.controller + 1) % self.controllers;
                    self.effects.push_back(Effect::Dial(self.controller));
                    self.enter(Phase::Dialling { until: now + DIAL_TIMEOUT }, now);
                }
            }
            Phase::Dialling { until } => {
                if now >= *until {
                    let reason = format!("no answer within {} s", DIAL_TIMEOUT.as_secs());
                    self.close(Trouble::new(TroubleKind::Unreachable, reason), Duration::ZERO, now);
                }
            }
            Phase::Open(open) => {
                if now >= open.heard + WATCHDOG {
                    let reason = format!("the controller has said nothing for {} s", WATCHDOG.as_secs());
                    self.close(Trouble::new(TroubleKind::Silent, reason), Duration::ZERO, now);
                    return;
                }
                if !open.answered && now >= open.moved + WATCHDOG {
                    let seconds = WATCHDOG.as_secs();
                    let reason = format!("the controller has not said what it wants for {seconds} s");
                    self.close(Trouble::new(TroubleKind::Silent, reason), Duration::ZERO, now);
                    return;
                }
                if let Some((_, reason)) = open.resync.take_if(|(at, _)| now >= *at && !keeping) {
                    open.resynced_at = Some(now);
                    self.effects.push_back(Effect::Send(AgentMessage::Resync(reason)));
                }
                if now >= open.beat_at {
                    open.beat_at = now + self.random.about(HEARTBEAT);
                    self.send(AgentMessage::Heartbeat(Heartbeat::default()));
                }
            }
            Phase::Ended => {}
        }
    }

    /// The next thing to do.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    fn handle_welcome(&mut self, welcome: &Welcome, now: Instant) {
        self.is_second = false;
        let foreign = self.base.as_ref().filter(|base| base.store_id != welcome.store_id);
        if let Some(base) = foreign {
            let reason = format!(
                "the controller has the store {}, and this agent belongs to {}; to change to this one run `agent leave`, \
                 then start the agent again",
                welcome.store_id, base.store_id
            );
            return self.refuse(reason, now);
        }
        if !(1..=PROTOCOL_VERSION).contains(&welcome.protocol_version) {
            let reason = format!(
                "the controller ({}) speaks version {} of the protocol, this agent {PROTOCOL_VERSION}; run agent and \
                 controller of one release",
                welcome.version, welcome.protocol_version
            );
            return self.refuse(reason, now);
        }
        if let Phase::Open(open) = &mut self.phase {
            open.store_id = Some(welcome.store_id.clone());
            open.timeline.clone_from(&welcome.timeline);
            open.moved = now;
        }
    }

    /// Ends a session with a controller that this agent does not follow; both sides show why.
    fn refuse(&mut self, reason: String, now: Instant) {
        let trouble = format!("refused: {reason}");
        self.send(AgentMessage::Refusal(reason));
        self.close(Trouble::new(TroubleKind::Refuses, trouble), REFUSED, now);
    }

    /// Ends a session with a controller that says what it must not.
    fn misunderstand(&mut self, reason: &str, now: Instant) {
        self.close(Trouble::new(TroubleKind::Unintelligible, reason), Duration::ZERO, now);
    }

    fn close(&mut self, why: Trouble, least: Duration, now: Instant) {
        self.effects.push_back(Effect::Close);
        self.wait(why, least, now);
    }

    /// Waits at least `least` before it dials again.
    fn wait(&mut self, why: Trouble, least: Duration, now: Instant) {
        let was_good = match &self.phase {
            Phase::Open(open) => open.synced.is_some_and(|at| now >= at + GOOD),
            Phase::Waiting { .. } | Phase::Dialling { .. } | Phase::Ended => false,
        };
        if was_good {
            self.attempts = 0;
        }
        let most = BACKOFF.saturating_mul(1 << self.attempts.min(16)).min(BACKOFF_MOST);
        self.attempts = self.attempts.saturating_add(1);
        let dial_at = now + least.min(ASKED_MOST) + self.random.up_to(most);
        self.trouble = Some(why);
        self.enter(Phase::Waiting { dial_at }, now);
    }

    fn enter(&mut self, phase: Phase, now: Instant) {
        self.phase = phase;
        self.since = now;
    }

    fn send(&mut self, message: AgentMessage) {
        self.effects.push_back(Effect::Send(message));
    }
}

#[cfg(test)]
mod tests;
