//! The nodes that have been heard of since the controller's start, and their sessions.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use self::links::Links;
use crate::proto::model::{NodeName, TunnelName};
use crate::proto::rate::Bucket;
use crate::proto::session::{
    Digest, Findings, Forwarding, Generation, Hello, ItemId, Items, Removals, Report, RunId, TunnelReport,
};
use crate::proto::trust::KeyId;

pub mod admission;
pub mod links;
pub mod petitions;

/// How often each side says that it is there; give or take a tenth.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// How long a silent agent's session lives.
pub const WATCHDOG: Duration = Duration::from_secs(15);
/// How long an agent may take to acknowledge what it was sent.
pub const ACKNOWLEDGE: Duration = Duration::from_secs(30);
/// How long an older session has to show that it is alive before another process takes its place.
pub const FENCE: Duration = Duration::from_secs(2);
/// How long a silent node counts as live.
const LIVE: Duration = Duration::from_secs(12);
/// How long a silent node counts as stale.
const STALE: Duration = Duration::from_secs(60);
/// How long it is known that another agent of a node's name was refused. One that is refused comes again within 6 s.
const NAMESAKE: Duration = Duration::from_secs(60);
/// How many of them are known at a time.
const NAMESAKES: usize = 8;

/// One stream of an agent, numbered by whoever accepts it; no number comes twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Connection(pub u64);

/// Whether a node is there, by the age of its last message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Health {
    /// Heard of within 12 s.
    Live,
    /// Not heard of for 12 s.
    Stale,
    /// Not heard of for 60 s or since the controller's start, or it said goodbye, or its agent refuses this controller.
    Offline,
}

/// Where a stream begins and ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Path {
    /// Where the agent dials from.
    pub source: IpAddr,
    /// The controller's address that it has dialled.
    pub local: IpAddr,
}

/// Who is at the other end of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin {
    /// From where to where.
    pub path: Path,
    /// The key by which its certificate shows it to be the node that it says it is; absent: it only says so, in a
    /// network in which that is enough.
    pub key: Option<KeyId>,
}

/// What a session has been sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Push {
    /// Its version.
    pub generation: Generation,
    /// All items with it.
    pub items: Items,
    /// What was said of removals with it.
    pub removals: Removals,
}

/// The session of a node.
#[derive(Debug, Clone)]
pub struct Session {
    /// Its stream.
    pub connection: Connection,
    /// Who is at its other end.
    pub origin: Origin,
    /// Which of the node's sessions it is.
    pub epoch: u64,
    /// The agent's process.
    pub run_id: RunId,
    /// The digest of what the agent said that it has of this store; until the first push.
    pub claim: Option<Digest>,
    /// Nothing older than this is sent.
    pub floor: Generation,
    /// What the agent has acknowledged in this session; absent: it needs all.
    pub acknowledged: Option<Push>,
    /// What it has been sent and has not acknowledged.
    pub under_way: Option<Push>,
    /// Until when it is to have acknowledged something; absent: it owes nothing. Asking for all again prolongs nothing.
    pub acknowledge_by: Option<Instant>,
    /// Before this nothing is sent, for it has had all too often.
    pub held_until: Option<Instant>,
    /// Whether there may be something to send.
    pub is_dirty: bool,
    /// When the controller says next that it is there.
    pub heartbeat_at: Instant,
    /// How often it has.
    pub beats: u64,
    /// When the agent was heard last in this session.
    pub last_heard: Instant,
}

impl Session {
    /// Sets when the next heartbeat is due: not at the same moment for all.
    pub fn schedule_heartbeat(&mut self, now: Instant) {
        self.beats += 1;
        // A multiplicative hash, Knuth, The Art of Computer Programming, volume 3, section 6.4.
        let mixed = (self.connection.0 << 32 ^ self.beats).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let share = u32::try_from(mixed >> 48).unwrap_or_default();
        let spread = HEARTBEAT / 5;
        self.heartbeat_at = now + HEARTBEAT - spread / 2 + spread * share / (1 << 16);
    }

    fn deadline(&self) -> Instant {
        let watchdog = self.last_heard + WATCHDOG;
        let others = [self.acknowledge_by, self.held_until].into_iter().flatten();
        others.fold(self.heartbeat_at.min(watchdog), Instant::min)
    }
}

/// Another process that says it is a node, while the node's session shows whether it is alive.
#[derive(Debug, Clone)]
pub struct Challenger {
    /// Its stream.
    pub connection: Connection,
    /// Who is at its other end.
    pub origin: Origin,
    /// What it said.
    pub hello: Hello,
    /// The number that the session is to answer.
    pub ping: u64,
    /// When the session has lost.
    pub deadline: Instant,
}

/// What is known of a node beyond what is stored.
#[derive(Debug, Clone)]
pub struct Node {
    /// Its session.
    pub session: Option<Session>,
    /// Who wants to take the session's place.
    pub challenger: Option<Challenger>,
    /// Its last process.
    pub run_id: Option<RunId>,
    /// Where agents of its name came from that were refused as second ones, and when last.
    namesakes: BTreeMap<IpAddr, Instant>,
    /// Its agent's release.
    pub version: String,
    /// When it was heard last.
    pub last_heard: Option<Instant>,
    /// Whether it said goodbye after that.
    pub is_gone: bool,
    /// Its health as events have it.
    pub told: Health,
    /// Why it does not follow this controller, as its agent said last.
    pub refusal: Option<String>,
    /// By how much its clock was off when its session began, and whether it was ahead; absent: not by much.
    pub clock_off: Option<(Duration, bool)>,
    /// Why it has asked for all again, until it acknowledges something.
    pub obstacle: Option<String>,
    /// Why a key that it says is its own is not taken for it.
    pub rival: Option<String>,
    /// What it has acknowledged since its last Hello.
    pub observed: Option<Generation>,
    /// What of it cannot be had, and why.
    pub failures: BTreeMap<ItemId, String>,
    /// What was to be removed and is kept all the same.
    pub removals_held: BTreeSet<ItemId>,
    /// What its host forwards, as last reported; absent: it is not known.
    pub forwarding: Option<Forwarding>,
    /// Its tunnels as last reported, and when.
    pub tunnels: BTreeMap<TunnelName, (TunnelReport, Instant)>,
    /// Its links as last told.
    pub links: Links,
    /// What it found when it was last asked to try something.
    pub findings: Option<Findings>,
    /// When it last reported.
    pub reported_at: Option<Instant>,
    /// The last request for a whole report that it answered; 0: none.
    pub answered: u64,
    /// How often it was sent all because it asked for it, or came with something else.
    pub snapshots: Bucket,
    /// How often it has said something new of itself.
    pub records: Bucket,
    /// How many events about it there were.
    pub events: Bucket,
    /// How many more there would have been, and when that may be told.
    pub left_out: Option<(u64, Instant)>,
    /// The earliest timer that is set for it.
    timer: Option<Instant>,
}

impl Node {
    fn new() -> Self {
        Self {
            session: None,
            challenger: None,
            run_id: None,
            namesakes: BTreeMap::new(),
            version: String::new(),
            last_heard: None,
            is_gone: false,
            told: Health::Offline,
            refusal: None,
            clock_off: None,
            findings: None,
            obstacle: None,
            rival: None,
            observed: None,
            failures: BTreeMap::new(),
            removals_held: BTreeSet::new(),
            forwarding: None,
            tunnels: BTreeMap::new(),
            links: Links::default(),
            reported_at: None,
            answered: 0,
            snapshots: Bucket::default(),
            records: Bucket::default(),
            events: Bucket::default(),
            left_out: None,
            timer: None,
        }
    }

    /// Whether it is there.
    pub fn health(&self, now: Instant) -> Health {
        // It comes again and again, and has nothing of what is wanted here.
        let is_here = !self.is_gone && self.refusal.is_none();
        let Some(heard) = self.last_heard.filter(|_| is_here) else { return Health::Offline };
        let age = now.saturating_duration_since(heard);
        if age < LIVE {
            Health::Live
        } else if age < STALE {
            Health::Stale
        } else {
            Health::Offline
        }
    }

    /// Takes in that an agent of its name was refused. Returns whether that is news.
    pub fn handle_namesake(&mut self, source: IpAddr, now: Instant) -> bool {
        self.namesakes.retain(|_, at| now.saturating_duration_since(*at) < NAMESAKE);
        let is_known = self.namesakes.contains_key(&source);
        if is_known || self.namesakes.len() < NAMESAKES {
            return self.namesakes.insert(source, now).is_none();
        }
        false
    }

    /// Where agents of its name come from that are refused.
    pub fn namesakes(&self, now: Instant) -> impl Iterator<Item = IpAddr> {
        let of_late =
            self.namesakes.iter().filter(move |(_, at)| now.saturating_duration_since(**at) < NAMESAKE);
        of_late.map(|(source, _)| *source)
    }

    /// Takes in how tunnels are. Returns those whose state is now of another kind, or failed from the first on.
    pub fn handle_report(&mut self, report: Report, now: Instant) -> Vec<(TunnelName, TunnelReport)> {
        let mut told = Vec::new();
        if report.whole || report.forwarding.is_some() {
            self.forwarding = report.forwarding;
        }
        if report.whole {
            self.tunnels.retain(|name, _| report.tunnels.contains_key(name));
        }
        for name in &report.gone {
            self.tunnels.remove(name);
        }
        for (name, tunnel) in report.tunnels {
            let before = self.tunnels.insert(name.clone(), (tunnel.clone(), now));
            let kind = std::mem::discriminant(&tunnel.state);
            let is_news = match before {
                Some((before, _)) => std::mem::discriminant(&before.state) != kind,
                None => matches!(tunnel.state, crate::proto::model::TunnelState::Failed(_)),
            };
            if is_news {
                told.push((name, tunnel));
            }
        }
        self.reported_at = Some(now);
        if let Some(request) = report.request {
            self.answered = self.answered.max(request);
        }
        told
    }

    /// Whether what it has told last is so now: it has a session, and has been heard of late.
    pub fn speaks(&self, now: Instant) -> bool {
        self.session.is_some() && self.health(now) == Health::Live
    }

    /// That its clock is off, in words.
    pub fn clock_words(&self) -> Option<String> {
        let (off, is_ahead) = self.clock_off?;
        let side = if is_ahead { "ahead of" } else { "behind" };
        // What is said in seconds is late by up to one.
        let minutes = (off.as_secs() + 30) / 60;
        let (days, hours) = (minutes / 1_440, minutes % 1_440 / 60);
        let span = match (days, hours) {
            (0, 0) => format!("{minutes} min"),
            (0, hours) => format!("{hours} h {} min", minutes % 60),
            (days, hours) => format!("{days} d {hours} h"),
        };
        Some(format!("its clock is {span} {side} the controller's: set the one that is wrong"))
    }

    fn deadline(&self) -> Option<Instant> {
        let heard = self.last_heard.filter(|_| !self.is_gone);
        let health = match self.told {
            Health::Live => heard.map(|heard| heard + LIVE),
            Health::Stale => heard.map(|heard| heard + STALE),
            Health::Offline => None,
        };
        let session = self.session.as_ref().map(Session::deadline);
        let challenger = self.challenger.as_ref().map(|challenger| challenger.deadline);
        let left_out = self.left_out.map(|(_, at)| at);
        [health, session, challenger, left_out].into_iter().flatten().min()
    }
}

/// The nodes that have been heard of, their streams, and when something is due.
#[derive(Debug, Default)]
pub struct Registry {
    nodes: BTreeMap<NodeName, Node>,
    connections: BTreeMap<Connection, NodeName>,
    timers: BTreeSet<(Instant, NodeName)>,
}

impl Registry {
    /// A node that has been heard of.
    pub fn node(&self, name: &NodeName) -> Option<&Node> {
        self.nodes.get(name)
    }

    /// The same, to be changed. [`Self::reschedule`] it afterwards.
    pub fn node_mut(&mut self, name: &NodeName) -> Option<&mut Node> {
        self.nodes.get_mut(name)
    }

    /// The same, made where it is not known.
    pub fn node_or_new(&mut self, name: &NodeName) -> &mut Node {
        self.nodes.entry(name.clone()).or_insert_with(Node::new)
    }

    /// All nodes that have been heard of.
    pub fn nodes(&self) -> impl ExactSizeIterator<Item = (&NodeName, &Node)> {
        self.nodes.iter()
    }

    /// The names of the nodes with a session.
    pub fn live_sessions(&self) -> Vec<NodeName> {
        let with_session = self.nodes.iter().filter(|(_, node)| node.session.is_some());
        with_session.map(|(name, _)| name.clone()).collect()
    }

    /// Whose stream it is.
    pub fn owner(&self, connection: Connection) -> Option<&NodeName> {
        self.connections.get(&connection)
    }

    /// Makes a stream a node's.
    pub fn bind(&mut self, connection: Connection, node: &NodeName) {
        self.connections.insert(connection, node.clone());
    }

    /// Forgets a stream: what it still brings is nobody's.
    pub fn unbind(&mut self, connection: Connection) {
        self.connections.remove(&connection);
    }

    /// Sees to it that a node is due in time. Timers that came to be too early stay: they cost a look.
    pub fn reschedule(&mut self, name: &NodeName) {
        let Some(node) = self.nodes.get_mut(name) else { return };
        let Some(deadline) = node.deadline() else { return };
        if node.timer.is_none_or(|timer| deadline < timer) {
            if let Some(timer) = node.timer {
                self.timers.remove(&(timer, name.clone()));
            }
            node.timer = Some(deadline);
            self.timers.insert((deadline, name.clone()));
        }
    }

    /// When the next node is due.
    pub fn next_due(&self) -> Option<Instant> {
        self.timers.first().map(|(due, _)| *due)
    }

    /// A node that is due by `now`. [`Self::reschedule`] it afterwards.
    pub fn pop_due(&mut self, now: Instant) -> Option<NodeName> {
        self.timers.first().filter(|(due, _)| *due <= now)?;
        let (_, name) = self.timers.pop_first()?;
        if let Some(node) = self.nodes.get_mut(&name) {
            node.timer = None;
        }
        Some(name)
    }
}
