//! The agents' sessions: who is let in, what each is sent, and when one ends.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{ControllerState, Effect, EventKind, Refusal, Snapshot};
use crate::controller::registry::rate::Rate;
use crate::controller::registry::{
    ACKNOWLEDGE, Challenger, Connection, FENCE, Health, Path, Push, Session, WATCHDOG,
};
use crate::proto::model::{Host, NodeName, Remote, TunnelState, is_underlay_address};
use crate::proto::session::{
    Ack, AgentMessage, ControllerMessage, Delta, Generation, Heartbeat, Hello, Item, PROTOCOL_VERSION,
    Report, Welcome,
};

/// How often a store can have been restored since the copy that is restored now was made. An incarnation has 64 bits,
/// and nobody must be able to use them up.
const RESTORED: u64 = 1_000;
/// How many nodes there are at most.
const NODES: usize = 20_000;
/// How many tunnels a node reports at most.
const TUNNELS: usize = 20_000;
/// How often a node is sent all that is wanted because it asks for that, or comes with something else. A faithful
/// agent asks every 5 s at most, and one that comes gives up after 15 s without an answer.
const SNAPSHOTS: Rate = Rate { burst: 5, every: Duration::from_secs(5) };
/// How many events there are about one node. They are kept with those of all others, and drive them out.
const EVENTS: Rate = Rate { burst: 100, every: Duration::from_secs(1) };
/// How often operators are told at most that sessions are put off.
const REFUSALS: Duration = Duration::from_secs(10);
/// The longest content of a change, in bytes; what is more goes in chunks, as a snapshot.
const CHANGE: usize = 8 << 10;
/// Over which time agents come again after the controller's end.
const RETURN: Duration = Duration::from_secs(2);

impl ControllerState {
    /// Takes in the first words of an agent on a new stream, from `source` to the controller's address `local`.
    pub fn handle_connected(
        &mut self,
        connection: Connection,
        source: IpAddr,
        local: IpAddr,
        hello: Hello,
        now: Instant,
        wall: Duration,
    ) {
        let node = hello.node.clone();
        let path = Path { source: source.to_canonical(), local: local.to_canonical() };
        if let Err(refusal) = self.check(&hello, path, now, wall) {
            self.effects.push_back(Effect::Close(connection, refusal));
            return;
        }
        let known = self.registry.node_or_new(&node);
        // A process that was copied as it ran, with a virtual machine, is two of one number.
        let is_same = |session: &Session| session.run_id == hello.run_id && session.path.source == path.source;
        let rival = known.session.as_ref().filter(|session| !is_same(session));
        let Some(rival) = rival.map(|session| session.connection) else {
            // A process that comes again is alive.
            self.end_challenger(&node, Refusal::AlreadyConnected);
            self.end_session(&node, Refusal::Superseded);
            self.welcome(connection, path, hello, now, wall);
            return;
        };
        // The time that the session has is not prolonged by a third process.
        let earlier = self.end_challenger(&node, Refusal::AlreadyConnected);
        let (ping, deadline) = earlier.unwrap_or((0, now + FENCE));
        let ping = if ping == 0 { self.next_number() } else { ping };
        if earlier.is_none() {
            let ping = Heartbeat { ping: Some(ping), answers: None };
            self.effects.push_back(Effect::Send(rival, ControllerMessage::Heartbeat(ping)));
        }
        self.registry.bind(connection, &node);
        if let Some(known) = self.registry.node_mut(&node) {
            known.challenger = Some(Challenger { connection, path, hello, ping, deadline });
        }
        self.registry.reschedule(&node);
    }

    /// Whether a session may begin.
    fn check(&mut self, hello: &Hello, path: Path, now: Instant, wall: Duration) -> Result<(), Refusal> {
        let ours = hello.have.as_ref().filter(|have| have.store_id == self.stored.store_id);
        let known = self.stored.generation().incarnation;
        if let Some(have) = ours.filter(|have| have.generation.incarnation > known.saturating_add(RESTORED)) {
            return Err(Refusal::Invalid(format!(
                "have: generation {} is not of this store, which is at incarnation {known}; run `agent leave` on the \
                 node, then start the agent again",
                have.generation
            )));
        }
        if !self.stored.wanted.nodes.contains_key(&hello.node) && self.recorded_nodes() >= NODES {
            return Err(Refusal::Invalid(format!("node: there are {NODES} nodes, and no more are taken on")));
        }
        self.admission.admit(path.source, now).map_err(|retry_after| {
            self.refusals.count += 1;
            let is_due = self.refusals.told_at.is_none_or(|told| now >= told + REFUSALS);
            if is_due {
                let count = std::mem::take(&mut self.refusals.count);
                self.refusals.told_at = Some(now);
                let message = format!("{count} put off: more than are taken on at once; they come again");
                self.events.controller(wall, EventKind::SessionRefused, message);
            }
            Refusal::TooMany { retry_after }
        })
    }

    /// Begins a session. The node has none.
    fn welcome(&mut self, connection: Connection, path: Path, hello: Hello, now: Instant, wall: Duration) {
        let epoch = self.start << 32 | self.next_number();
        let have = hello.have.filter(|have| have.store_id == self.stored.store_id);
        let known = self.stored.generation();
        if let Some(have) = have.as_ref().filter(|have| have.generation > known) {
            let incarnation = have.generation.incarnation.max(known.incarnation) + 1;
            if self.raise_incarnation(incarnation) {
                let message = format!(
                    "it has generation {}, and the store is at {known}: an older copy was restored; the \
                     incarnation rises to {incarnation}",
                    have.generation
                );
                self.tell(&hello.node, EventKind::StoreRestored, message, now, wall);
            }
        }
        let endpoint = hello.endpoint.or_else(|| self.origin(&hello.node, path.source));
        self.record(&hello.node, hello.labels, endpoint, hello.data_port, now);

        let mut session = Session {
            connection,
            path,
            epoch,
            run_id: hello.run_id,
            floor: have.as_ref().map(|have| have.generation).unwrap_or_default(),
            claim: have.map(|have| have.digest),
            acknowledged: None,
            under_way: None,
            acknowledge_by: None,
            held_until: None,
            is_dirty: true,
            heartbeat_at: now,
            beats: 0,
            last_heard: now,
        };
        session.schedule_heartbeat(now);
        let node = self.registry.node_or_new(&hello.node);
        let before = node.run_id.replace(hello.run_id);
        node.session = Some(session);
        node.observed = None;
        node.version = hello.version;
        if before.is_some_and(|before| before != hello.run_id) {
            self.tell(&hello.node, EventKind::NodeRestarted, "", now, wall);
        }
        self.registry.bind(connection, &hello.node);
        self.heard(&hello.node, now, wall);
        let welcome = Welcome {
            protocol_version: hello.protocol_version.min(PROTOCOL_VERSION),
            capabilities: std::collections::BTreeSet::new(),
            store_id: self.stored.store_id.clone(),
            epoch,
            version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        self.effects.push_back(Effect::Send(connection, ControllerMessage::Welcome(welcome)));
        self.push(&hello.node, now);
        self.registry.reschedule(&hello.node);
        self.progress += 1;
        self.pump_records(now, wall);
    }

    /// Where a node is that does not say so: where its session comes from. One that comes through a mesh says nothing
    /// about the underlay; then what was known before.
    fn origin(&self, node: &NodeName, source: IpAddr) -> Option<Remote> {
        if self.stored.wanted.is_in_overlay(source) {
            return self.recorded(node)?.endpoint.clone();
        }
        let host = Host::Address(source);
        (!source.is_loopback() && is_underlay_address(source)).then_some(Remote { host, port: None })
    }

    /// Addresses of the underlay at which agents reach the controller now.
    pub(super) fn reached_at(&self) -> BTreeSet<IpAddr> {
        let all: BTreeSet<IpAddr> = self.paths().map(|(_, path)| path.local).collect();
        all.into_iter().filter(|local| self.stored.wanted.overlay_owner(*local).is_none()).collect()
    }

    /// The sessions' paths.
    pub(super) fn paths(&self) -> impl Iterator<Item = (&NodeName, Path)> {
        self.registry.nodes().filter_map(|(name, node)| Some((name, node.session.as_ref()?.path)))
    }

    /// An event about a node that is known; where there are too many of it, one that says how many there were.
    fn tell(
        &mut self,
        name: &NodeName,
        kind: EventKind,
        message: impl Into<String>,
        now: Instant,
        wall: Duration,
    ) {
        if self.may_tell(name, now) {
            self.events.node(wall, kind, name, message);
        }
    }

    fn may_tell(&mut self, name: &NodeName, now: Instant) -> bool {
        let Some(node) = self.registry.node_mut(name) else { return true };
        match node.events.take(EVENTS, now) {
            Ok(()) => true,
            Err(again) => {
                node.left_out.get_or_insert((0, again)).0 += 1;
                false
            }
        }
    }

    /// Tells how many events of a node were not told.
    fn tell_left_out(&mut self, name: &NodeName, now: Instant, wall: Duration) {
        let Some(node) = self.registry.node_mut(name) else { return };
        let Some((count, _)) = node.left_out.filter(|(_, at)| *at <= now) else { return };
        node.left_out = node.events.take(EVENTS, now).err().map(|again| (count, again));
        if node.left_out.is_none() {
            let message = format!("{count} more: there are too many to tell all");
            self.events.node(wall, EventKind::EventsLeftOut, name, message);
        }
    }

    /// Takes in what an agent says. A stream that is no session's says nothing.
    pub fn handle_message(
        &mut self,
        connection: Connection,
        message: AgentMessage,
        now: Instant,
        wall: Duration,
    ) {
        let Some(name) = self.registry.owner(connection).cloned() else { return };
        let session = self.registry.node(&name).and_then(|node| node.session.as_ref());
        if session.is_none_or(|session| session.connection != connection) {
            // A challenger has nothing to say until it is welcomed, but that it goes.
            if message == AgentMessage::Goodbye {
                self.end_challenger(&name, Refusal::Goodbye);
            }
            return;
        }
        self.heard(&name, now, wall);
        match message {
            AgentMessage::Hello(_) => {
                let refusal = Refusal::Invalid("hello: is said first and once".to_owned());
                self.end_session(&name, refusal);
                self.let_challenger_in(&name, now, wall);
            }
            AgentMessage::Ack(ack) => self.handle_ack(&name, ack, now, wall),
            AgentMessage::Resync(reason) => self.handle_resync(&name, reason, now),
            AgentMessage::Heartbeat(heartbeat) => {
                self.handle_heartbeat(&name, connection, heartbeat, now, wall);
            }
            AgentMessage::Report(report) => self.handle_report(&name, report, now, wall),
            AgentMessage::Goodbye => self.handle_goodbye(&name, now, wall),
            AgentMessage::Refusal(reason) => self.handle_refusal(&name, reason, now, wall),
        }
        self.registry.reschedule(&name);
    }

    /// Takes in that a stream has ended.
    pub fn handle_closed(&mut self, connection: Connection, now: Instant, wall: Duration) {
        let Some(name) = self.registry.owner(connection).cloned() else { return };
        self.registry.unbind(connection);
        let Some(node) = self.registry.node_mut(&name) else { return };
        if node.challenger.as_ref().is_some_and(|challenger| challenger.connection == connection) {
            node.challenger = None;
        } else {
            node.session = None;
            self.progress += 1;
            self.let_challenger_in(&name, now, wall);
        }
    }

    /// Ends all sessions, for the controller's own end; the agents come again one after the other.
    pub fn handle_shutdown(&mut self) {
        let nodes = self.registry.live_sessions();
        let count = u32::try_from(nodes.len()).unwrap_or(u32::MAX).max(1);
        for (place, name) in nodes.iter().enumerate() {
            let place = u32::try_from(place).unwrap_or_default();
            let session = self.registry.node(name).and_then(|node| node.session.as_ref());
            if let Some(connection) = session.map(|session| session.connection) {
                let after = RETURN * place / count;
                let go_away = ControllerMessage::GoAway {
                    reason: Refusal::Restarting.to_string(),
                    after_ms: u64::try_from(after.as_millis()).unwrap_or_default(),
                };
                self.effects.push_back(Effect::Send(connection, go_away));
            }
            self.end_session(name, Refusal::Restarting);
            self.end_challenger(name, Refusal::Restarting);
        }
    }

    /// Asks a node's agent for a whole report. Returns the number that the report will carry; `None`: it has no
    /// session.
    pub fn request_report(&mut self, node: &NodeName) -> Option<u64> {
        let connection = self.registry.node(node)?.session.as_ref()?.connection;
        let request = self.next_number();
        self.effects.push_back(Effect::Send(connection, ControllerMessage::ReportRequest(request)));
        Some(request)
    }

    /// Does what is due for a node.
    pub(super) fn node_due(&mut self, name: &NodeName, now: Instant, wall: Duration) {
        self.tell_health(name, now, wall);
        self.tell_left_out(name, now, wall);
        let Some(node) = self.registry.node_mut(name) else { return };
        if node.challenger.as_ref().is_some_and(|challenger| challenger.deadline <= now) {
            self.end_session(name, Refusal::Superseded);
            self.let_challenger_in(name, now, wall);
            return;
        }
        let Some(session) = node.session.as_mut() else { return };
        let refusal = if session.last_heard + WATCHDOG <= now {
            Refusal::Silent
        } else if session.acknowledge_by.is_some_and(|deadline| deadline <= now) {
            Refusal::NotAcknowledged
        } else {
            if session.heartbeat_at <= now {
                session.schedule_heartbeat(now);
                let beat = ControllerMessage::Heartbeat(Heartbeat::default());
                self.effects.push_back(Effect::Send(session.connection, beat));
            }
            if session.held_until.take_if(|until| *until <= now).is_some() {
                self.push(name, now);
            }
            return;
        };
        self.end_session(name, refusal);
        self.let_challenger_in(name, now, wall);
    }

    /// Sends a session what it is to have and has not, unless something is under way already.
    pub(super) fn push(&mut self, name: &NodeName, now: Instant) {
        let view = self.views.get(name).unwrap_or(&self.nothing);
        let generation = self.generation;
        let consent = self.stored.consents.get(name).copied().unwrap_or(0);
        let Some(node) = self.registry.node_mut(name) else { return };
        let Some(session) = node.session.as_mut() else { return };
        let is_busy = session.under_way.is_some() || session.held_until.is_some();
        if !session.is_dirty || is_busy || generation < session.floor {
            return;
        }
        session.is_dirty = false;
        let items = view.items.clone();
        let claim = session.claim.take();
        let change = session.acknowledged.as_ref().map(|base| (base, base.items.changes_to(&items)));
        let length = |set: &[Arc<Item>]| set.iter().map(|item| item.content.len()).sum::<usize>();
        let effect = match change {
            // What went away and came back while a push was under way is acknowledged anew, as nothing that changes.
            Some((base, (set, delete)))
                if set.is_empty()
                    && delete.is_empty()
                    && base.consent == consent
                    && base.generation >= view.since =>
            {
                return;
            }
            Some((base, (set, delete))) if length(&set) <= CHANGE => {
                let (base, digest) = (base.generation, view.digest());
                let delta = Delta { base, generation, set, delete, digest, consent };
                Effect::Send(session.connection, ControllerMessage::Delta(delta))
            }
            None if claim == Some(view.digest()) => {
                Effect::Send(session.connection, ControllerMessage::NotModified(generation))
            }
            None if let Err(again) = node.snapshots.take(SNAPSHOTS, now) => {
                session.is_dirty = true;
                session.held_until = Some(again);
                self.registry.reschedule(name);
                return;
            }
            Some(_) | None => {
                let snapshot = Snapshot { generation, items: items.clone(), consent };
                Effect::SendSnapshot(session.connection, snapshot)
            }
        };
        session.under_way = Some(Push { generation, items, consent });
        session.acknowledge_by.get_or_insert(now + ACKNOWLEDGE);
        self.effects.push_back(effect);
        self.registry.reschedule(name);
    }

    fn handle_ack(&mut self, name: &NodeName, ack: Ack, now: Instant, wall: Duration) {
        let Some(node) = self.registry.node_mut(name) else { return };
        let Some(session) = node.session.as_mut() else { return };
        let acknowledged = session.under_way.take_if(|push| push.generation == ack.generation);
        if let Some(push) = acknowledged {
            session.acknowledged = Some(push);
            session.acknowledge_by = None;
            node.observed = Some(ack.generation);
            node.refusal = None;
            node.obstacle = None;
        } else if session.acknowledged.as_ref().is_none_or(|push| push.generation != ack.generation) {
            return;
        }
        // An agent may say of the same generation again what of it cannot be had.
        let first = ack.failures.first_key_value().filter(|_| node.failures != ack.failures);
        let failed = first.map(|(item, reason)| {
            let more = match ack.failures.len() - 1 {
                0 => String::new(),
                more => format!(", and {more} more"),
            };
            format!("generation {}: {item}: {reason}{more}", ack.generation)
        });
        let held = (node.removals_held.is_empty() && !ack.removals_held.is_empty())
            .then(|| format!("{} are kept: apply the mesh with --allow-removals", ack.removals_held.len()));
        node.failures = ack.failures;
        node.removals_held = ack.removals_held;
        for (kind, message) in [(EventKind::GenerationFailed, failed), (EventKind::RemovalsHeld, held)] {
            if let Some(message) = message {
                self.tell(name, kind, message, now, wall);
            }
        }
        self.tell_health(name, now, wall);
        self.progress += 1;
        self.push(name, now);
    }

    /// An agent that asks all the time is answered now and then, and is to come to an end like any other.
    fn handle_resync(&mut self, name: &NodeName, reason: String, now: Instant) {
        let Some(node) = self.registry.node_mut(name) else { return };
        let Some(session) = node.session.as_mut() else { return };
        session.acknowledged = None;
        session.under_way = None;
        session.is_dirty = true;
        session.acknowledge_by.get_or_insert(now + ACKNOWLEDGE);
        tracing::debug!(node = %name, %reason, "agent asks for all that is wanted");
        node.obstacle = Some(reason);
        self.push(name, now);
    }

    fn handle_heartbeat(
        &mut self,
        name: &NodeName,
        connection: Connection,
        heartbeat: Heartbeat,
        now: Instant,
        wall: Duration,
    ) {
        if heartbeat.ping.is_some() {
            let answer = Heartbeat { ping: None, answers: heartbeat.ping };
            self.effects.push_back(Effect::Send(connection, ControllerMessage::Heartbeat(answer)));
        }
        let Some(node) = self.registry.node_mut(name) else { return };
        let challenger = node.challenger.as_ref();
        let namesake = challenger.filter(|challenger| Some(challenger.ping) == heartbeat.answers);
        let Some(source) = namesake.map(|namesake| namesake.path.source.to_canonical()) else { return };
        if node.handle_namesake(source, now) {
            let message = format!(
                "an agent at {source} has its name, and it is alive: give each host a name of its own with --name"
            );
            self.tell(name, EventKind::IdentityCloned, message, now, wall);
        }
        self.end_challenger(name, Refusal::AlreadyConnected);
    }

    fn handle_report(&mut self, name: &NodeName, report: Report, now: Instant, wall: Duration) {
        let Some(node) = self.registry.node_mut(name) else { return };
        for (tunnel, report) in node.handle_report(report, now) {
            let (kind, message) = match report.state {
                TunnelState::Failed(reason) => (EventKind::TunnelFailed, reason),
                TunnelState::Passing => (EventKind::TunnelPassing, String::new()),
                TunnelState::Waiting(reason) => (EventKind::TunnelWaiting, reason.unwrap_or_default()),
            };
            if self.may_tell(name, now) {
                self.events.tunnel(wall, kind, name, &tunnel, message);
            }
        }
        if self.registry.node(name).is_some_and(|node| node.tunnels.len() > TUNNELS) {
            let refusal = Refusal::Invalid(format!("report: more than {TUNNELS} tunnels"));
            self.end_session(name, refusal);
            self.let_challenger_in(name, now, wall);
        }
    }

    /// The agent comes again, and says the same until something is done about it: that is told once.
    fn handle_refusal(&mut self, name: &NodeName, reason: String, now: Instant, wall: Duration) {
        self.end_session(name, Refusal::Goodbye);
        if let Some(node) = self.registry.node_mut(name)
            && node.refusal.as_ref() != Some(&reason)
        {
            node.refusal = Some(reason.clone());
            self.tell(name, EventKind::SessionRefused, format!("by its agent: {reason}"), now, wall);
        }
        self.tell_health(name, now, wall);
        self.let_challenger_in(name, now, wall);
    }

    fn handle_goodbye(&mut self, name: &NodeName, now: Instant, wall: Duration) {
        self.end_session(name, Refusal::Goodbye);
        if let Some(node) = self.registry.node_mut(name) {
            node.is_gone = true;
        }
        self.tell_health(name, now, wall);
        self.let_challenger_in(name, now, wall);
    }

    fn heard(&mut self, name: &NodeName, now: Instant, wall: Duration) {
        let Some(node) = self.registry.node_mut(name) else { return };
        node.last_heard = Some(now);
        node.is_gone = false;
        node.session.iter_mut().for_each(|session| session.last_heard = now);
        self.tell_health(name, now, wall);
    }

    fn tell_health(&mut self, name: &NodeName, now: Instant, wall: Duration) {
        let Some(node) = self.registry.node_mut(name) else { return };
        let health = node.health(now);
        if node.told == health {
            return;
        }
        node.told = health;
        let (kind, message) = match health {
            Health::Live => (EventKind::NodeLive, ""),
            Health::Stale => (EventKind::NodeStale, ""),
            Health::Offline if node.is_gone => (EventKind::NodeOffline, "it said goodbye"),
            Health::Offline if node.refusal.is_some() => {
                (EventKind::NodeOffline, "its agent refuses this controller")
            }
            Health::Offline => (EventKind::NodeOffline, ""),
        };
        self.tell(name, kind, message, now, wall);
        self.progress += 1;
    }

    fn end_session(&mut self, name: &NodeName, refusal: Refusal) {
        let Some(node) = self.registry.node_mut(name) else { return };
        if let Some(session) = node.session.take() {
            self.registry.unbind(session.connection);
            self.effects.push_back(Effect::Close(session.connection, refusal));
            self.progress += 1;
        }
    }

    /// Returns the ping that the challenger waited for, and until when.
    fn end_challenger(&mut self, name: &NodeName, refusal: Refusal) -> Option<(u64, Instant)> {
        let challenger = self.registry.node_mut(name)?.challenger.take()?;
        self.registry.unbind(challenger.connection);
        self.effects.push_back(Effect::Close(challenger.connection, refusal));
        Some((challenger.ping, challenger.deadline))
    }

    /// Where the node has no session any more, begins that of the challenger.
    fn let_challenger_in(&mut self, name: &NodeName, now: Instant, wall: Duration) {
        let Some(node) = self.registry.node_mut(name) else { return };
        if let Some(challenger) = node.challenger.take() {
            let Challenger { connection, path, hello, .. } = challenger;
            self.welcome(connection, path, hello, now, wall);
        }
    }

    /// Whether a node has acknowledged all that is wanted of it.
    pub(super) fn is_converged(&self, name: &NodeName) -> bool {
        let observed: Option<Generation> = self.registry.node(name).and_then(|node| node.observed);
        observed.is_some_and(|observed| observed >= self.view(name).since)
    }
}
