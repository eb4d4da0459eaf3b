//! A session with its connection: performs what the session wants done.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::handle::SessionStatus;
use crate::agent::credentials::Credentials;
use crate::agent::service::controller::{Connection, Dialler, Event, Full};
use crate::agent::session::{
    Base, Effect, Identity, LinkView, Session, SessionState, Standing, Told, Trouble, TroubleKind,
};
use crate::proto::model::{DeviceName, MeshName, NodeName, PublicKey, TunnelName};
use crate::proto::session::{AgentMessage, Examination, Findings, Forwarding, ItemId, TunnelReport};

/// How many examinations wait at most.
const EXAMINATIONS: usize = 4;

/// A session with what acts for it.
pub struct Uplink {
    session: Session,
    dialler: Dialler,
    credentials: Arc<Credentials>,
    connection: Option<Connection>,
    /// What came first on the connection and has not been taken in.
    arrived: Option<Event>,
    /// What the session wants kept.
    base: Option<Base>,
    /// What the controller wants tried.
    examinations: VecDeque<Examination>,
    /// Where controllers are, when that has changed.
    addresses: Option<BTreeSet<IpAddr>>,
    node: NodeName,
    shown: (SessionState, Option<Trouble>),
    told: Told,
}

impl Uplink {
    /// An uplink of `identity` that goes on from `base`; `seed` is random.
    pub fn new(
        identity: Identity,
        dialler: Dialler,
        credentials: Arc<Credentials>,
        base: Option<Base>,
        seed: u64,
        now: Instant,
    ) -> Self {
        let node = identity.node.clone();
        let session = Session::new(identity, dialler.controllers().len(), base, seed, now);
        Self {
            session,
            addresses: Some(dialler.known()),
            dialler,
            credentials,
            connection: None,
            arrived: None,
            base: None,
            examinations: VecDeque::new(),
            node,
            shown: (SessionState::Waiting, None),
            told: Told::default(),
        }
    }

    /// Waits until something has arrived that [`Self::attend`] takes in; for ever where there is no connection.
    pub(super) async fn ready(uplink: &mut Option<Self>) {
        let Some(uplink) = uplink else { return std::future::pending().await };
        let Some(connection) = &mut uplink.connection else { return std::future::pending().await };
        uplink.arrived = Some(connection.event().await);
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.session.poll_timeout()
    }

    /// Takes in all that has arrived, and does what is due.
    pub(super) fn attend(&mut self, now: Instant) {
        while let Some(event) = self.next_event() {
            match event {
                Event::Resolved(addresses) => {
                    self.dialler.learn(self.session.standing().controller, addresses);
                    self.addresses = Some(self.dialler.known());
                }
                Event::Connected => self.session.handle_connected(now),
                Event::Message(message) => self.session.handle_message(message, now),
                Event::Closed { why, retry_after } => {
                    self.connection = None;
                    self.session.handle_closed(why, retry_after, now);
                }
            }
            self.act(now);
        }
        if self.session.poll_timeout().is_some_and(|at| at <= now) {
            self.session.handle_timeout(now);
            self.act(now);
        }
    }

    fn next_event(&mut self) -> Option<Event> {
        self.arrived.take().or_else(|| self.connection.as_mut()?.try_event())
    }

    /// Does what the session wants done.
    fn act(&mut self, now: Instant) {
        while let Some(effect) = self.session.poll_effect() {
            match effect {
                Effect::Dial(controller) => self.connection = Some(self.dialler.dial(controller)),
                Effect::Send(message) => self.send(message, now),
                Effect::Close => {
                    self.connection = None;
                    self.arrived = None;
                }
                Effect::Keep(base) => self.base = Some(base),
                // What is said in plain text anybody may have said.
                Effect::Operators(operators) if self.credentials.has_joined() => {
                    self.credentials.operators().replace(operators);
                }
                Effect::Operators(_) => {}
                Effect::Examine(asked) if self.examinations.len() < EXAMINATIONS => {
                    self.examinations.push_back(asked);
                }
                Effect::Examine(_) => {}
            }
        }
        self.tell();
    }

    fn send(&mut self, message: AgentMessage, now: Instant) {
        let Some(connection) = &self.connection else { return };
        if connection.send(message) == Err(Full) {
            self.connection = None;
            let why = Trouble::new(TroubleKind::Silent, "the controller takes nothing any more");
            self.session.handle_closed(why, None, now);
        }
    }

    /// Logs what changed.
    fn tell(&mut self) {
        let Standing { state, controller, trouble, generation, .. } = self.session.standing();
        if (state, &trouble) == (self.shown.0, &self.shown.1) {
            return;
        }
        let address = self.dialler.controllers().get(controller);
        let address = address.map(ToString::to_string).unwrap_or_default();
        let generation = generation.map(|generation| generation.to_string()).unwrap_or_default();
        // A trouble stands until the agent is in step: while it dials the next controller it is still that of the last.
        let is_fresh = state == SessionState::Waiting || trouble != self.shown.1;
        match &trouble {
            _ if state == SessionState::Synced => {
                self.told.forget();
                tracing::info!(%address, generation, "in step with the controller");
            }
            Some(Trouble { kind, words: reason }) if is_fresh && self.told.is_news(controller, *kind) => {
                let tunnels = match self.is_second() {
                    true => "its encrypted tunnels rest",
                    false => "tunnels stay as they are",
                };
                tracing::warn!(%address, %reason, "not in step with the controller; {tunnels}");
            }
            Some(_) | None => tracing::debug!(%address, ?state, "the session with the controller"),
        }
        self.shown = (state, trouble);
    }

    pub(super) fn take_addresses(&mut self) -> Option<BTreeSet<IpAddr>> {
        self.addresses.take()
    }

    /// Whether the controller has another agent of this name, which is alive. What is said in plain text anybody may have said.
    pub(super) fn is_second(&self) -> bool {
        self.credentials.has_joined() && self.session.is_second()
    }

    /// What is to be kept; then say [`Self::handle_kept`].
    pub(super) fn take_base(&mut self) -> Option<Base> {
        self.base.take()
    }

    /// What is to be tried; then say [`Self::handle_findings`].
    pub(super) fn take_examination(&mut self) -> Option<Examination> {
        self.examinations.pop_front()
    }

    /// Takes in what was found.
    pub(super) fn handle_findings(&mut self, findings: Findings, now: Instant) {
        self.session.handle_findings(findings);
        self.act(now);
    }

    pub(super) fn handle_kept(&mut self, outcome: Result<BTreeMap<ItemId, String>, String>, now: Instant) {
        self.session.handle_kept(outcome, now);
        self.act(now);
    }

    pub(super) fn wants_tunnels(&self) -> bool {
        self.session.wants_tunnels()
    }

    /// Takes in what others have done to a device, which is put right.
    pub(super) fn handle_repair(&mut self, device: DeviceName, what: String, now: Instant) {
        self.session.handle_repair(device, what);
        self.act(now);
    }

    pub(super) fn wants_links(&self) -> bool {
        self.session.wants_links()
    }

    /// Takes in how all links are.
    pub(super) fn handle_links(&mut self, links: &BTreeMap<TunnelName, LinkView>, now: Instant) {
        self.session.handle_links(links, now);
        self.act(now);
    }

    /// Takes in the keys by which this host is known.
    pub(super) fn handle_keys(&mut self, keys: BTreeMap<MeshName, PublicKey>, now: Instant) {
        self.session.handle_keys(keys);
        self.act(now);
    }

    /// Takes in how all tunnels are, what of the controller's cannot be had, and what the host forwards.
    pub(super) fn handle_tunnels(
        &mut self,
        tunnels: BTreeMap<TunnelName, TunnelReport>,
        failures: BTreeMap<ItemId, String>,
        forwarding: Forwarding,
        now: Instant,
    ) {
        self.session.handle_forwarding(forwarding);
        self.session.handle_tunnels(tunnels);
        self.session.handle_failures(failures);
        self.act(now);
    }

    /// Says goodbye.
    pub(super) fn end(&mut self, now: Instant) {
        self.session.end(now);
        self.act(now);
    }

    /// Waits for a goodbye to be said.
    pub(super) async fn drain(self) {
        drop(self.connection);
        self.dialler.drain().await;
    }

    /// The session as it is; `since_epoch` is `now` as time since the Unix epoch.
    pub(super) fn status(&self, now: Instant, since_epoch: Duration) -> SessionStatus {
        let Standing { state, since, controller, last_heard, trouble, .. } = self.session.standing();
        let at = |then: Instant| since_epoch.saturating_sub(now.saturating_duration_since(then));
        SessionStatus {
            node: self.node.clone(),
            address: self.dialler.controllers().get(controller).map(ToString::to_string).unwrap_or_default(),
            state,
            since: at(since),
            last_heard: last_heard.map(at),
            trouble: trouble.map(|trouble| trouble.words),
        }
    }
}
