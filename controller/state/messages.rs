//! What agents say in their sessions.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::{ControllerState, Effect, EventKind, Refusal};
use crate::controller::plan::NodeRecord;
use crate::controller::registry::{ACKNOWLEDGE, Connection, Node};
use crate::proto::model::{LinkState, MeshName, NodeName, PublicKey, TunnelName, TunnelState};
use crate::proto::session::{Ack, AgentMessage, ControllerMessage, Heartbeat, LinkReport, Report};

/// How many tunnels a node reports at most.
const TUNNELS: usize = 20_000;

impl ControllerState {
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
            AgentMessage::Keys(keys) => self.handle_keys(&name, keys, now, wall),
            AgentMessage::LinkStates(states) => {
                let news = self.registry.node_mut(&name).map(|node| node.links.handle_states(states, now));
                self.tell_links(&name, news.unwrap_or_default(), now, wall);
                self.check_size(&name, now, wall);
            }
            AgentMessage::LinkFigures(figures) => {
                if let Some(node) = self.registry.node_mut(&name) {
                    node.links.handle_figures(figures, now);
                }
            }
            AgentMessage::Findings(findings) => {
                if let Some(node) = self.registry.node_mut(&name) {
                    node.findings = Some(findings);
                }
            }
            AgentMessage::Repaired { device, what } => {
                self.tell(
                    &name,
                    EventKind::DeviceRepaired,
                    format!("device {device}: others {what}"),
                    now,
                    wall,
                );
            }
            AgentMessage::Goodbye => self.handle_goodbye(&name, now, wall),
            AgentMessage::Refusal(reason) => self.handle_refusal(&name, reason, now, wall),
        }
        self.registry.reschedule(&name);
    }

    /// Asks a node's agent for a whole report. Returns the number that the report will carry; `None`: it has no
    /// session.
    pub fn request_report(&mut self, node: &NodeName) -> Option<u64> {
        let connection = self.registry.node(node)?.session.as_ref()?.connection;
        let request = self.next_number();
        self.effects.push_back(Effect::Send(connection, ControllerMessage::ReportRequest(request)));
        Some(request)
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
        let why = match self.stored.holds_removals() {
            true => "the store cannot be read whole",
            false => "apply the mesh with --allow-removals",
        };
        let held = (node.removals_held.is_empty() && !ack.removals_held.is_empty())
            .then(|| format!("{} are kept: {why}", ack.removals_held.len()));
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

    fn handle_keys(
        &mut self,
        name: &NodeName,
        keys: BTreeMap<MeshName, PublicKey>,
        now: Instant,
        wall: Duration,
    ) {
        if let Some(said) = self.said(name).cloned() {
            self.record(name, NodeRecord { keys, ..said }, now);
            self.pump_records(now, wall);
        }
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
        let news = self.registry.node_mut(name).map(|node| node.links.news(now)).unwrap_or_default();
        self.tell_links(name, news, now, wall);
        let Some(node) = self.registry.node_mut(name) else { return };
        let challenger = node.challenger.as_ref();
        let namesake = challenger.filter(|challenger| Some(challenger.ping) == heartbeat.answers);
        let Some(source) = namesake.map(|namesake| namesake.origin.path.source) else { return };
        let is_news = node.handle_namesake(source, now);
        if is_news {
            self.tell_namesake(name, source, now, wall);
        }
        self.end_challenger(name, Refusal::AlreadyConnected);
    }

    fn tell_namesake(&mut self, name: &NodeName, source: IpAddr, now: Instant, wall: Duration) {
        let message = format!(
            "an agent at {source} is this node, too, and this one is alive: give each host a name of its own with --name; on \
             a copy of its host run `agent leave` first"
        );
        self.tell(name, EventKind::IdentityCloned, message, now, wall);
    }

    /// Takes in that an agent at `source` shows a node's certificate under another name. Returns whether that node is there: then
    /// this one is a copy.
    pub fn handle_copy(&mut self, name: &NodeName, source: IpAddr, now: Instant, wall: Duration) -> bool {
        let node = self.registry.node_mut(name).filter(|node| node.speaks(now));
        let is_news = node.map(|node| node.handle_namesake(source, now));
        if is_news == Some(true) {
            self.tell_namesake(name, source, now, wall);
        }
        is_news.is_some()
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
        self.check_size(name, now, wall);
    }

    /// Ends the session of a node that has told of more than is believed.
    fn check_size(&mut self, name: &NodeName, now: Instant, wall: Duration) {
        let is_too_much = |node: &Node| node.tunnels.len() > TUNNELS || node.links.iter().len() > TUNNELS;
        if self.registry.node(name).is_some_and(is_too_much) {
            let refusal = Refusal::Invalid(format!("report: more than {TUNNELS} tunnels"));
            self.end_session(name, refusal);
            self.let_challenger_in(name, now, wall);
        }
    }

    fn tell_links(
        &mut self,
        name: &NodeName,
        news: Vec<(TunnelName, LinkReport)>,
        now: Instant,
        wall: Duration,
    ) {
        for (tunnel, report) in news {
            let kind = match report.state {
                LinkState::Up => EventKind::LinkUp,
                LinkState::Init => EventKind::LinkOneWay,
                LinkState::Down | LinkState::AdminDown => EventKind::LinkDown,
            };
            if self.may_tell(name, now) {
                self.events.tunnel(wall, kind, name, &tunnel, report.why.to_string());
            }
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
}
