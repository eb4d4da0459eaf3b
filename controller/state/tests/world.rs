//! A store in memory, a clock, and agents that do as the protocol says, around a state. It checks all that the state
//! does.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use crate::controller::mesh::{self, Mesh};
use crate::controller::registry::{Origin, Path};
use crate::controller::state::{ApplyError, Connection, ControllerState, Effect, Refusal};
use crate::controller::store::transaction::{Change, Condition, Entry, StoreError, Transaction, Write};
use crate::controller::stored::Stored;
use crate::proto::model::NodeName;
use crate::proto::session::{
    Ack, AgentMessage, ControllerMessage, Digest, Generation, Have, Heartbeat, Hello, Items,
    PROTOCOL_VERSION, Reach, RunId,
};
use crate::proto::trust::KeyId;

pub(super) const WALL: Duration = Duration::from_secs(1_700_000_000);

/// A store in memory.
#[derive(Debug, Clone, Default)]
pub(super) struct Memory {
    entries: BTreeMap<String, (Vec<u8>, u64)>,
    pub(super) revision: u64,
}

impl Memory {
    pub(super) fn commit(&mut self, transaction: Transaction) -> Result<Change, StoreError> {
        for Condition { key, revision } in transaction.conditions {
            if self.entries.get(&key).map(|(_, set)| *set) != revision {
                return Err(StoreError::Conflict(key));
            }
        }
        self.revision += 1;
        for write in &transaction.writes {
            match write {
                Write::Put(key, value) => {
                    self.entries.insert(key.clone(), (value.clone(), self.revision));
                }
                Write::Delete(key) => _ = self.entries.remove(key),
            }
        }
        Ok(Change { revision: self.revision, writes: transaction.writes })
    }

    pub(super) fn read(&self) -> Stored {
        let entries = self.entries.iter().map(|(key, (value, revision))| Entry {
            key: key.clone(),
            value: value.clone(),
            revision: *revision,
        });
        Stored::from_entries(entries, self.revision)
    }
}

/// An agent's process.
#[derive(Debug, Clone)]
pub(super) struct Agent {
    pub(super) hello: Hello,
    pub(super) source: IpAddr,
    /// The key that its certificate is for.
    pub(super) key: Option<KeyId>,
    pub(super) has: Option<(Generation, Items)>,
    pub(super) connection: Option<Connection>,
}

/// A stream as the controller's side sees it.
#[derive(Debug, Clone, Default)]
pub(super) struct Stream {
    pub(super) node: Option<NodeName>,
    /// To the agent, not delivered yet.
    pub(super) down: VecDeque<Sent>,
    /// To the controller, not delivered yet.
    pub(super) up: VecDeque<AgentMessage>,
    acknowledged: Option<Generation>,
    under_way: Option<Generation>,
    pub(super) closed: Option<Refusal>,
}

#[derive(Debug, Clone)]
pub(super) enum Sent {
    Message(ControllerMessage),
    Snapshot(Generation, Items),
}

pub(super) struct World {
    pub(super) state: ControllerState,
    pub(super) store: Memory,
    pub(super) now: Instant,
    pub(super) start: Instant,
    pub(super) streams: BTreeMap<Connection, Stream>,
    /// Committed; the state does not know yet.
    pub(super) changes: VecDeque<Change>,
    pub(super) commit: Option<Transaction>,
    /// Where agents reach the controller.
    pub(super) local: IpAddr,
    pub(super) commits: usize,
    /// What each generation of a node is.
    contents: BTreeMap<(NodeName, Generation), Digest>,
    last_epoch: u64,
}

pub(super) fn mesh(text: &str) -> Mesh {
    mesh::parse(text).unwrap_or_else(|faults| panic!("{faults:?}"))
}

pub(super) fn node(number: usize) -> NodeName {
    format!("n{number}").parse().unwrap()
}

impl Agent {
    /// What its stream shows of it, to the controller's address `local`.
    pub(super) fn origin(&self, local: IpAddr) -> Origin {
        Origin { path: Path { source: self.source, local }, key: self.key }
    }

    pub(super) fn new(number: usize) -> Self {
        Self {
            hello: Hello {
                protocol_version: PROTOCOL_VERSION,
                capabilities: BTreeSet::new(),
                node: node(number),
                run_id: RunId::new(number as u128),
                have: None,
                version: "9.9.9".to_owned(),
                labels: BTreeMap::new(),
                reach: Reach::default(),
                local: None,
                data_port: 5000,
                clock: None,
                keys: BTreeMap::new(),
            },
            source: Ipv4Addr::new(172, 100, 1, u8::try_from(number).unwrap() + 1).into(),
            key: None,
            has: None,
            connection: None,
        }
    }

    /// Another process on the same host.
    pub(super) fn restart(&mut self) {
        let next = u128::from_be_bytes(*self.hello.run_id.as_bytes()) + 1_000;
        self.hello.run_id = RunId::new(next);
        self.connection = None;
    }

    pub(super) fn label(&mut self, key: &str, value: &str) {
        self.hello.labels.insert(key.to_owned(), value.to_owned());
    }

    /// Takes in a message and answers it. `store_id`: of the controller.
    fn take(&mut self, sent: Sent) -> Option<AgentMessage> {
        let generation = match sent {
            Sent::Snapshot(generation, items) => {
                self.has = Some((generation, items));
                generation
            }
            Sent::Message(ControllerMessage::NotModified(generation)) => {
                let (_, items) = self.has.take().expect("something that is not modified");
                self.has = Some((generation, items));
                generation
            }
            Sent::Message(ControllerMessage::Delta(delta)) => {
                let (generation, items) = self.has.take().expect("a base");
                assert_eq!(generation, delta.base, "a change of what the agent has");
                let stays = items.iter().filter(|item| !delta.delete.contains(&item.id)).cloned();
                let items = Items::new(stays.chain(delta.set));
                assert_eq!(items.digest(), delta.digest);
                self.has = Some((delta.generation, items));
                delta.generation
            }
            Sent::Message(ControllerMessage::Heartbeat(Heartbeat { ping, .. })) => {
                return ping.map(|_| AgentMessage::Heartbeat(Heartbeat { ping: None, answers: ping }));
            }
            Sent::Message(
                ControllerMessage::Welcome(_)
                | ControllerMessage::Snapshot(_)
                | ControllerMessage::ReportRequest(_)
                | ControllerMessage::Examination(_)
                | ControllerMessage::Operators(_)
                | ControllerMessage::GoAway { .. },
            ) => return None,
        };
        Some(AgentMessage::Ack(Ack { generation, failures: BTreeMap::new(), removals_held: BTreeSet::new() }))
    }
}

impl World {
    #[allow(clippy::disallowed_methods, reason = "any time will do")]
    pub(super) fn new() -> Self {
        let now = Instant::now();
        let mut store = Memory::default();
        let (start, transaction) = store.read().start("store-1").unwrap();
        store.commit(transaction).unwrap();
        let state = ControllerState::new(store.read(), start, now, WALL);
        let mut world = Self {
            state,
            store,
            now,
            start: now,
            streams: BTreeMap::new(),
            changes: VecDeque::new(),
            commit: None,
            local: Ipv4Addr::new(172, 100, 9, 9).into(),
            commits: 0,
            contents: BTreeMap::new(),
            last_epoch: 0,
        };
        world.drain();
        world
    }

    pub(super) fn wall(&self) -> Duration {
        WALL + self.now.duration_since(self.start)
    }

    /// Ends the controller, and starts another on what is stored.
    pub(super) fn restart(&mut self) {
        let (start, transaction) = self.store.read().start("another").unwrap();
        self.store.commit(transaction).unwrap();
        self.state = ControllerState::new(self.store.read(), start, self.now, self.wall());
        self.changes.clear();
        self.commit = None;
        self.streams.values_mut().for_each(|stream| stream.closed = Some(Refusal::Restarting));
        self.drain();
    }

    pub(super) fn connect(&mut self, agent: &mut Agent) -> Connection {
        let connection = Connection(self.streams.len() as u64 + 1);
        agent.connection = Some(connection);
        let store_id = "store-1".to_owned();
        let have = agent.has.as_ref();
        agent.hello.have = have.map(|(generation, items)| Have {
            store_id,
            generation: *generation,
            digest: items.digest(),
            timeline: String::new(),
        });
        let node = Some(agent.hello.node.clone());
        self.streams.insert(connection, Stream { node, ..Stream::default() });
        let local = self.local;
        let (hello, wall) = (agent.hello.clone(), self.wall());
        self.state.handle_connected(connection, agent.origin(local), hello, self.now, wall);
        self.drain();
        connection
    }

    /// The agent takes in the next message to it. Returns whether there was one.
    pub(super) fn deliver_down(&mut self, agent: &mut Agent) -> bool {
        let Some(stream) = agent.connection.and_then(|connection| self.streams.get_mut(&connection)) else {
            return false;
        };
        let Some(sent) = stream.down.pop_front() else { return false };
        stream.up.extend(agent.take(sent));
        true
    }

    /// The controller takes in the next message of a stream, also of one that it has closed.
    pub(super) fn deliver_up(&mut self, connection: Connection) -> bool {
        let Some(stream) = self.streams.get_mut(&connection) else { return false };
        let Some(message) = stream.up.pop_front() else { return false };
        let before = stream.closed.is_some().then(|| format!("{:?}", self.state));
        if stream.closed.is_none()
            && let AgentMessage::Ack(ack) = &message
            && stream.under_way == Some(ack.generation)
        {
            stream.acknowledged = stream.under_way.take();
        }
        if stream.closed.is_none() && matches!(message, AgentMessage::Resync(_)) {
            (stream.acknowledged, stream.under_way) = (None, None);
        }
        self.state.handle_message(connection, message, self.now, self.wall());
        if let Some(before) = before {
            assert_eq!(before, format!("{:?}", self.state), "a closed stream changed something");
        }
        self.drain();
        true
    }

    pub(super) fn say(&mut self, agent: &Agent, message: AgentMessage) {
        let connection = agent.connection.expect("a connection");
        self.streams.get_mut(&connection).unwrap().up.push_back(message);
        while self.deliver_up(connection) {}
    }

    pub(super) fn close(&mut self, connection: Connection) {
        if let Some(stream) = self.streams.get_mut(&connection) {
            stream.closed.get_or_insert(Refusal::Goodbye);
            self.state.handle_closed(connection, self.now, self.wall());
            self.drain();
        }
    }

    /// The store does what the state asked for.
    pub(super) fn do_commit(&mut self) -> bool {
        let Some(transaction) = self.commit.take() else { return false };
        self.commits += 1;
        let result = self.store.commit(transaction).map(|change| {
            let revision = change.revision;
            self.changes.push_back(change);
            revision
        });
        self.state.handle_commit_result(result, self.now, self.wall());
        self.drain();
        true
    }

    pub(super) fn deliver_change(&mut self) -> bool {
        let Some(change) = self.changes.pop_front() else { return false };
        self.state.handle_change(&change, self.now, self.wall());
        self.drain();
        true
    }

    pub(super) fn apply(&mut self, mesh: Mesh) {
        match self.state.basis().apply(mesh, None, true, self.wall()) {
            // By the time that it is committed something else may have been.
            Ok((_, Some(transaction))) => self.changes.extend(self.store.commit(transaction)),
            Ok((_, None)) | Err(ApplyError::Hazards(_)) => {}
            Err(error) => panic!("{error:?}"),
        }
    }

    /// Lets time pass, and does what comes due on the way.
    pub(super) fn pass(&mut self, time: Duration) {
        let until = self.now + time;
        loop {
            let due = self.state.poll_timeout();
            if due > until {
                break;
            }
            self.now = self.now.max(due);
            self.state.handle_timeout(self.now, self.wall());
            assert!(self.state.poll_timeout() > self.now, "what is due is done");
            self.drain();
        }
        self.now = until;
    }

    /// Everything is delivered and nothing lost until nothing happens any more; agents that were sent away come back.
    pub(super) fn settle(&mut self, agents: &mut [Agent]) {
        for _ in 0..200 {
            let mut is_busy = false;
            for agent in agents.iter_mut() {
                let is_closed = |connection| self.streams.get(&connection).is_none_or(|s| s.closed.is_some());
                if agent.connection.is_none_or(is_closed) {
                    self.connect(agent);
                    is_busy = true;
                }
                while self.deliver_down(agent) {
                    is_busy = true;
                }
                let connection = agent.connection.expect("it has just connected");
                while self.deliver_up(connection) {
                    is_busy = true;
                }
            }
            while self.do_commit() || self.deliver_change() {
                is_busy = true;
            }
            self.pass(Duration::from_millis(25));
            if !is_busy && self.now + Duration::from_millis(100) < self.state.poll_timeout() {
                // What an agent has asked for too often comes when it is its time.
                let sessions = self.state.registry.nodes().filter_map(|(_, node)| node.session.as_ref());
                match sessions.filter_map(|session| session.held_until).min() {
                    Some(held) => self.pass(held.duration_since(self.now)),
                    None => return,
                }
            }
        }
    }

    /// Takes in what the state wants done, and checks it.
    pub(super) fn drain(&mut self) {
        while let Some(effect) = self.state.poll_effect() {
            match effect {
                Effect::Commit(transaction) => {
                    assert!(self.commit.is_none(), "one transaction at a time");
                    self.commit = Some(transaction);
                }
                Effect::Close(connection, refusal) => {
                    let stream = self.streams.get_mut(&connection).expect("a stream");
                    assert!(stream.closed.is_none(), "{connection:?} closed twice");
                    stream.closed = Some(refusal);
                }
                Effect::SendSnapshot(connection, snapshot) => {
                    self.check_push(connection, snapshot.generation, None, Some(snapshot.items.digest()));
                    let sent = Sent::Snapshot(snapshot.generation, snapshot.items);
                    self.streams.get_mut(&connection).unwrap().down.push_back(sent);
                }
                Effect::Send(connection, message) => {
                    match &message {
                        ControllerMessage::Welcome(welcome) => {
                            assert!(welcome.epoch > self.last_epoch, "epochs rise");
                            self.last_epoch = welcome.epoch;
                        }
                        ControllerMessage::NotModified(generation) => {
                            self.check_push(connection, *generation, None, None);
                        }
                        ControllerMessage::Delta(delta) => {
                            let (base, digest) = (Some(delta.base), Some(delta.digest));
                            self.check_push(connection, delta.generation, base, digest);
                        }
                        ControllerMessage::Heartbeat(_)
                        | ControllerMessage::Snapshot(_)
                        | ControllerMessage::ReportRequest(_)
                        | ControllerMessage::Examination(_)
                        | ControllerMessage::Operators(_)
                        | ControllerMessage::GoAway { .. } => {}
                    }
                    let stream = self.streams.get_mut(&connection).expect("a stream");
                    assert!(stream.closed.is_none(), "{message:?} on a closed stream");
                    stream.down.push_back(Sent::Message(message));
                }
            }
        }
    }

    fn check_push(
        &mut self,
        connection: Connection,
        generation: Generation,
        base: Option<Generation>,
        digest: Option<Digest>,
    ) {
        let stream = self.streams.get_mut(&connection).expect("a stream");
        assert!(stream.closed.is_none(), "a push on a closed stream");
        assert_eq!(stream.under_way, None, "a second push while one is under way");
        assert!(stream.acknowledged <= Some(generation), "generations never go back");
        if base.is_some() {
            assert_eq!(stream.acknowledged, base, "a change of what was not acknowledged in this session");
            assert!(base < Some(generation));
        }
        stream.under_way = Some(generation);
        if let (Some(digest), Some(node)) = (digest, stream.node.clone()) {
            let known = *self.contents.entry((node, generation)).or_insert(digest);
            assert_eq!(known, digest, "one generation with two contents");
        }
    }
}
