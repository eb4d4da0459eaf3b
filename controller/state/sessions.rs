//! The agents' sessions: who is let in, and when one ends.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{ControllerState, Effect, EventKind, Refusal};
use crate::controller::plan::NodeRecord;
use crate::controller::registry::links::Links;
use crate::controller::registry::{Challenger, Connection, FENCE, Origin, Path, Session, WATCHDOG};
use crate::controller::trust::Operator;
use crate::proto::model::{Host, NodeName, Remote, Remotes, is_underlay_address};
use crate::proto::session::{
    ControllerMessage, Generation, Have, Heartbeat, Hello, PROBES, PROTOCOL_VERSION, Reach, Welcome,
};
use crate::proto::trust::{KeyId, Rights};

/// How often a store can have been restored since the copy that is restored now was made. An incarnation has 64 bits,
/// and nobody must be able to use them up.
const RESTORED: u64 = 1_000;
/// By how much a node's clock may be off before that is told.
const CLOCK_OFF: Duration = Duration::from_secs(60);
/// How many nodes there are at most.
const NODES: usize = 20_000;
/// How often operators are told at most that sessions are put off.
const REFUSALS: Duration = Duration::from_secs(10);
/// Over which time agents come again after the controller's end.
const RETURN: Duration = Duration::from_secs(2);

impl ControllerState {
    /// Takes in the first words of an agent on a new stream.
    pub fn handle_connected(
        &mut self,
        connection: Connection,
        origin: Origin,
        hello: Hello,
        now: Instant,
        wall: Duration,
    ) {
        let node = hello.node.clone();
        if let Err(refusal) = self.check(&hello, origin, now, wall) {
            self.effects.push_back(Effect::Close(connection, refusal));
            return;
        }
        let known = self.registry.node_or_new(&node);
        // A process that was copied as it ran, with a virtual machine, is two of one number.
        let is_same = |session: &Session| {
            session.run_id == hello.run_id && session.origin.path.source == origin.path.source
        };
        let rival = known.session.as_ref().filter(|session| !is_same(session));
        let Some(rival) = rival.map(|session| session.connection) else {
            // A process that comes again is alive.
            self.end_challenger(&node, Refusal::AlreadyConnected);
            self.end_session(&node, Refusal::Superseded);
            self.welcome(connection, origin, hello, now, wall);
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
            known.challenger = Some(Challenger { connection, origin, hello, ping, deadline });
        }
        self.registry.reschedule(&node);
    }

    /// Whether a session may begin.
    fn check(&mut self, hello: &Hello, origin: Origin, now: Instant, wall: Duration) -> Result<(), Refusal> {
        let proven = self.check_identity(&hello.node, origin.key, wall);
        if let Err(refusal @ (Refusal::NotJoined(_) | Refusal::Unproven(_))) = &proven {
            let message = format!("a session from {}: {refusal}", origin.path.source);
            self.handle_refused(Some(&hello.node), message, now, wall);
        }
        proven?;
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
        self.admission.admit(origin.path.source, now).map_err(|retry_after| {
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

    /// Whether whoever has shown this key may be the node, or may say so without.
    fn check_identity(&self, node: &NodeName, key: Option<KeyId>, wall: Duration) -> Result<(), Refusal> {
        let trust = &self.stored.trust;
        let known = trust.identities.get(node);
        match (key, known) {
            (Some(key), Some(known)) if known.key == key => match wall < known.expires {
                true => Ok(()),
                false => Err(Refusal::Expired),
            },
            (Some(_), _) => Err(Refusal::NotJoined(node.clone())),
            (None, Some(_)) => Err(Refusal::Unproven(node.clone())),
            (None, None) if trust.damaged.contains(node) => Err(Refusal::Unproven(node.clone())),
            (None, None) if trust.removed.contains(node) => Err(Refusal::NotJoined(node.clone())),
            (None, None) => Ok(()),
        }
    }

    /// Ends the sessions of nodes that have joined no more, and of those that show another key than they joined with.
    pub(super) fn end_unproven(&mut self, nodes: &BTreeSet<NodeName>, now: Instant, wall: Duration) {
        for name in nodes {
            let Some(node) = self.registry.node(name) else { continue };
            let refused = |origin: Origin| self.check_identity(name, origin.key, wall).err();
            let challenger = node.challenger.as_ref().and_then(|challenger| refused(challenger.origin));
            let session = node.session.as_ref().and_then(|session| refused(session.origin));
            if let Some(refusal) = challenger {
                self.end_challenger(name, refusal);
            }
            if let Some(refusal) = session {
                self.end_session(name, refusal);
                self.let_challenger_in(name, now, wall);
            }
        }
    }

    /// Begins a session. The node has none.
    fn welcome(
        &mut self,
        connection: Connection,
        origin: Origin,
        hello: Hello,
        now: Instant,
        wall: Duration,
    ) {
        let epoch = self.start << 32 | self.next_number();
        let have = hello.have.filter(|have| have.store_id == self.stored.store_id);
        let known = self.stored.generation();
        let mut floor = have.as_ref().map(|have| have.generation).unwrap_or_default();
        // An agent that has an earlier incarnation gets a later generation as it is.
        let is_foreign =
            |have: &&Have| have.generation.incarnation >= known.incarnation && !self.stored.has_sent(have);
        if let Some(have) = have.as_ref().filter(is_foreign) {
            let incarnation = have.generation.incarnation + 1;
            floor = Generation { incarnation, revision: 0 };
            if self.raise_incarnation(incarnation) {
                let message = format!(
                    "it has generation {}, which this store, at {known}, did not send: an older copy was restored; the \
                     incarnation rises to {incarnation}",
                    have.generation
                );
                self.tell(&hello.node, EventKind::StoreRestored, message, now, wall);
            }
        }
        let endpoint = match hello.reach {
            Reach::At(endpoint) => Some(endpoint),
            Reach::Nowhere => None,
            Reach::BySession => self.found_at(&hello.node, origin.path.source, hello.local),
        };
        // What a node says that it is, it is only where nothing else says it.
        let identity = self.stored.trust.identities.get(&hello.node).filter(|_| origin.key.is_some());
        let labels = identity.and_then(|identity| identity.labels.clone()).unwrap_or(hello.labels);
        let said = NodeRecord {
            labels,
            endpoint,
            data_port: hello.data_port,
            keys: hello.keys,
            probes: hello.capabilities.contains(PROBES),
            since: 0,
        };
        self.record(&hello.node, said, now);

        let mut session = Session {
            connection,
            origin,
            epoch,
            run_id: hello.run_id,
            floor,
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
        if !hello.capabilities.contains(PROBES) {
            // It tells of none, and so that there are none.
            node.links = Links::default();
        }
        let off = hello.clock.map(|clock| (clock.abs_diff(wall), clock > wall));
        let was_off = std::mem::replace(&mut node.clock_off, off.filter(|(off, _)| *off >= CLOCK_OFF));
        let is_news = node.clock_off.is_some() && was_off.is_none();
        let clock_off = node.clock_words().filter(|_| is_news);
        if before.is_some_and(|before| before != hello.run_id) {
            self.tell(&hello.node, EventKind::NodeRestarted, "", now, wall);
        }
        if let Some(words) = clock_off {
            self.tell(&hello.node, EventKind::ClockOff, words, now, wall);
        }
        self.registry.bind(connection, &hello.node);
        self.heard(&hello.node, now, wall);
        let welcome = Welcome {
            protocol_version: hello.protocol_version.min(PROTOCOL_VERSION),
            capabilities: std::collections::BTreeSet::new(),
            store_id: self.stored.store_id.clone(),
            epoch,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            timeline: self.timeline.clone(),
        };
        self.effects.push_back(Effect::Send(connection, ControllerMessage::Welcome(welcome)));
        if origin.key.is_some() {
            self.effects.push_back(Effect::Send(connection, self.operators()));
        }
        self.push(&hello.node, now);
        self.registry.reschedule(&hello.node);
        self.progress += 1;
        self.pump_records(now, wall);
    }

    /// Who may steer agents from elsewhere.
    fn operators(&self) -> ControllerMessage {
        let operators = &self.stored.trust.operators;
        let rights = |known: &Operator| Rights { key: known.key, role: known.role };
        let told: BTreeMap<_, _> =
            operators.iter().map(|(name, known)| (name.clone(), rights(known))).collect();
        ControllerMessage::Operators(Arc::new(told))
    }

    /// Tells it all agents that have shown who they are.
    pub(super) fn tell_operators(&mut self) {
        let message = self.operators();
        for name in self.registry.live_sessions() {
            let session = self.registry.node(&name).and_then(|node| node.session.as_ref());
            if let Some(session) = session.filter(|session| session.origin.key.is_some()) {
                self.effects.push_back(Effect::Send(session.connection, message.clone()));
            }
        }
    }

    /// Where a node is that does not say so: where its session comes from. One that comes through a mesh says nothing
    /// about the underlay; then what was known before. `local` is the same as the node sees it: where it is another, only the
    /// node itself can begin.
    fn found_at(&self, node: &NodeName, source: IpAddr, local: Option<IpAddr>) -> Option<Remotes> {
        if self.stored.wanted.is_in_overlay(source) {
            return self.recorded(node)?.endpoint.clone();
        }
        let host = Host::Address(source);
        let is_translated = local.is_some_and(|local| local != source);
        let is_reached = !is_translated && !source.is_loopback() && is_underlay_address(source);
        is_reached.then_some(Remote { host, port: None }.into())
    }

    /// Addresses of the underlay at which agents reach the controller now.
    pub(super) fn reached_at(&self) -> BTreeSet<IpAddr> {
        let all: BTreeSet<IpAddr> = self.paths().map(|(_, path)| path.local).collect();
        all.into_iter().filter(|local| self.stored.wanted.overlay_owner(*local).is_none()).collect()
    }

    /// The sessions' paths.
    pub(super) fn paths(&self) -> impl Iterator<Item = (&NodeName, Path)> {
        self.registry.nodes().filter_map(|(name, node)| Some((name, node.session.as_ref()?.origin.path)))
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
        let expired = node.session.as_ref().and_then(|session| {
            let identity = session.origin.key.and(self.stored.trust.identities.get(name))?;
            (wall >= identity.expires).then_some(Refusal::Expired)
        });
        let Some(session) = node.session.as_mut() else { return };
        let refusal = if let Some(expired) = expired {
            expired
        } else if session.last_heard + WATCHDOG <= now {
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

    pub(super) fn end_session(&mut self, name: &NodeName, refusal: Refusal) {
        let Some(node) = self.registry.node_mut(name) else { return };
        if let Some(session) = node.session.take() {
            self.registry.unbind(session.connection);
            self.effects.push_back(Effect::Close(session.connection, refusal));
            self.progress += 1;
        }
    }

    /// Returns the ping that the challenger waited for, and until when.
    pub(super) fn end_challenger(&mut self, name: &NodeName, refusal: Refusal) -> Option<(u64, Instant)> {
        let challenger = self.registry.node_mut(name)?.challenger.take()?;
        self.registry.unbind(challenger.connection);
        self.effects.push_back(Effect::Close(challenger.connection, refusal));
        Some((challenger.ping, challenger.deadline))
    }

    /// Where the node has no session any more, begins that of the challenger.
    pub(super) fn let_challenger_in(&mut self, name: &NodeName, now: Instant, wall: Duration) {
        let Some(node) = self.registry.node_mut(name) else { return };
        if let Some(challenger) = node.challenger.take() {
            let Challenger { connection, origin, hello, .. } = challenger;
            self.welcome(connection, origin, hello, now, wall);
        }
    }
}
