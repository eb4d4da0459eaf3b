//! The controller's host: its process, and the store that outlives it.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

use tunmesh::controller::registry::{Origin, Path};
use tunmesh::controller::state::{Connection, ControllerState, Effect, Refusal};
use tunmesh::controller::store::transaction::{Change, StoreError, Transaction};
use tunmesh::controller::stored::Stored;
use tunmesh::proto::model::{MeshName, NodeName};
use tunmesh::proto::session::{
    Ack, AgentMessage, ControllerMessage, Delta, Generation, Items, SnapshotChunk, SnapshotEnd,
};

use crate::disk::SimStore;
use crate::env::{Env, Plant};
use crate::network::{Arrival, ConnectionId, Side};

/// How the trace calls it.
const WHO: &str = "controller";

/// An acknowledgement that the controller has taken for true.
#[derive(Debug)]
pub struct Acknowledged {
    pub connection: ConnectionId,
    pub generation: Generation,
    /// What the controller believes the agent to have; absent: only its digest was told.
    pub items: Option<Items>,
}

#[derive(Debug, Default)]
pub struct Server {
    pub store: SimStore,
    /// An older copy of the store.
    copy: Option<SimStore>,
    pub process: Option<Process>,
    /// When it starts, while it does not run.
    start_at: Option<Duration>,
    /// By mesh, the last revision that an operator was told of.
    pub told: BTreeMap<MeshName, u64>,
    /// Not looked at yet.
    pub acknowledged: Vec<Acknowledged>,
    starts: u64,
}

#[derive(Debug)]
pub struct Process {
    pub state: ControllerState,
    /// The revision up to which it was told of changes, and when it is told of the next.
    watched: u64,
    change_at: Option<Duration>,
    /// In order; the first is under way.
    commits: VecDeque<Commit>,
    streams: BTreeMap<ConnectionId, Stream>,
    /// By node, the stream that was welcomed last.
    welcomed: BTreeMap<NodeName, ConnectionId>,
}

/// What the shell knows of a connection.
#[derive(Debug)]
struct Stream {
    node: NodeName,
    /// What was pushed, in order.
    pushed: Vec<(Generation, Option<Items>)>,
    is_acknowledged: bool,
}

#[derive(Debug)]
struct Commit {
    transaction: Transaction,
    /// The mesh that an operator set or deleted; absent: the state machine wants it.
    mesh: Option<MeshName>,
    stage: Stage,
    at: Duration,
}

#[derive(Debug)]
enum Stage {
    Writing,
    Answering(Result<u64, StoreError>),
}

impl Server {
    pub fn next_at(&self, env: &Env) -> Option<Duration> {
        let Some(process) = &self.process else { return self.start_at };
        let timeout = Some(env.at(process.state.poll_timeout()));
        let commit = process.commits.front().map(|commit| commit.at);
        [timeout, commit, process.change_at].into_iter().flatten().min()
    }

    pub fn start_soon(&mut self, at: Duration) {
        if self.process.is_none() {
            self.start_at = Some(at);
        }
    }

    /// Does what is due.
    pub fn work(&mut self, env: &mut Env) {
        let Some(process) = &mut self.process else {
            if self.start_at.is_some_and(|at| at <= env.now) {
                self.start(env);
            }
            return;
        };
        if process.commits.front().is_some_and(|commit| commit.at <= env.now) {
            self.commit(env);
        } else if process.change_at.is_some_and(|at| at <= env.now) {
            self.watch(env);
        } else if env.at(process.state.poll_timeout()) <= env.now {
            process.state.handle_timeout(env.instant(), env.wall());
        }
        self.settle(env);
    }

    fn start(&mut self, env: &mut Env) {
        self.start_at = None;
        self.starts += 1;
        let read = |store: &SimStore| {
            let (entries, revision) = store.read("/");
            Stored::from_entries(entries, revision)
        };
        let stored = read(&self.store);
        assert!(stored.faults.is_empty(), "the store cannot be read: {:?}", stored.faults);
        let (number, transaction) = stored.start(&format!("store-{}", self.starts)).unwrap();
        if env.fails(20) {
            env.say(WHO, format_args!("ends in its start, before it has written anything"));
            self.start_at = Some(env.soon(100, 2000));
            return;
        }
        self.store.commit(&transaction).unwrap();
        if env.fails(20) {
            env.say(WHO, format_args!("ends in its start {number}"));
            self.start_at = Some(env.soon(100, 2000));
            return;
        }
        let stored = read(&self.store);
        env.say(WHO, format_args!("starts for the {number}th time at {}", stored.generation()));
        self.process = Some(Process {
            watched: stored.revision,
            state: ControllerState::new(stored, number, env.instant(), env.wall()),
            change_at: None,
            commits: VecDeque::new(),
            streams: BTreeMap::new(),
            welcomed: BTreeMap::new(),
        });
        self.settle(env);
    }

    /// Ends without a chance to do anything more.
    pub fn crash(&mut self, env: &mut Env) {
        let Some(process) = self.process.take() else { return };
        let Process { commits, .. } = process;
        if let Some(Commit { transaction, stage: Stage::Writing, .. }) = commits.front()
            && env.random.once_in(2)
        {
            let outcome = self.store.commit(transaction);
            env.say(WHO, format_args!("crashes after a write: {outcome:?}"));
        }
        let says_so = env.random.once_in(2);
        env.say(WHO, format_args!("crashes{}", if says_so { "" } else { ", and its host with it" }));
        for connection in env.network.all() {
            env.network.die(connection, Side::Controller, says_so, env.now);
        }
        self.start_at = Some(env.soon(50, 8000));
    }

    /// Ends as it does on SIGTERM.
    pub fn stop(&mut self, env: &mut Env) {
        let Some(process) = &mut self.process else { return };
        env.say(WHO, format_args!("is asked to end"));
        process.state.handle_shutdown();
        self.settle(env);
        self.process = None;
        for connection in env.network.all() {
            let reason = "the controller has ended".to_owned();
            env.network.close_down(connection, reason, None, env.now, &mut env.random);
        }
        self.start_at = Some(env.soon(50, 3000));
    }

    pub fn copy(&mut self, env: &mut Env) {
        // Before its first start it has no name yet: a store restored to that is another store.
        if self.store.revision() == 0 {
            return;
        }
        env.say(WHO, format_args!("its store is copied at {}", self.store.revision()));
        self.copy = Some(self.store.clone());
    }

    /// The store becomes what it was when it was copied.
    pub fn restore(&mut self, env: &mut Env) {
        let Some(copy) = self.copy.clone() else { return };
        self.crash(env);
        let revision = copy.revision();
        env.say(WHO, format_args!("its store is restored from {} to {revision}", self.store.revision()));
        self.told.retain(|_, told| *told <= revision);
        self.store = copy;
    }

    /// Has what an operator wants committed.
    pub fn submit(&mut self, mesh: &MeshName, transaction: Transaction, env: &mut Env) {
        let at = env.soon(1, 40);
        if let Some(process) = &mut self.process {
            process.enqueue(transaction, Some(mesh.clone()), at);
        }
    }

    fn commit(&mut self, env: &mut Env) {
        let Some(process) = &mut self.process else { return };
        let Some(commit) = process.commits.front_mut() else { return };
        match std::mem::replace(&mut commit.stage, Stage::Writing) {
            Stage::Writing => {
                let outcome = match env.fails(12) {
                    true => Err(StoreError::Unavailable("the disk is full".to_owned())),
                    false => self.store.commit(&commit.transaction),
                };
                env.say(WHO, format_args!("commits {}: {outcome:?}", describe(&commit.transaction)));
                commit.stage = Stage::Answering(outcome);
                commit.at = env.soon(0, 20);
                if process.change_at.is_none() && self.store.revision() > process.watched {
                    process.change_at = Some(env.soon(0, 30));
                }
            }
            Stage::Answering(outcome) => {
                let Some(Commit { mesh, .. }) = process.commits.pop_front() else { return };
                if let Some(next) = process.commits.front_mut() {
                    next.at = env.soon(1, 40);
                }
                match mesh {
                    None => process.state.handle_commit_result(outcome, env.instant(), env.wall()),
                    Some(mesh) => match outcome {
                        Ok(revision) => {
                            env.say("operator", format_args!("is told that {mesh} is stored at {revision}"));
                            self.told.insert(mesh, revision);
                        }
                        Err(error) => env.say("operator", format_args!("is told of {mesh}: {error}")),
                    },
                }
            }
        }
    }

    fn watch(&mut self, env: &mut Env) {
        let Some(process) = &mut self.process else { return };
        if env.fails(60) {
            let (entries, revision) = self.store.read("/");
            env.say(WHO, format_args!("reads the whole store at {revision}"));
            process.state.handle_reload(Stored::from_entries(entries, revision), env.instant(), env.wall());
            process.watched = revision;
        } else if let Some(change) = self.store.changes_after(process.watched).next() {
            let Change { revision, .. } = change;
            process.state.handle_change(change, env.instant(), env.wall());
            process.watched = *revision;
        }
        let behind = self.store.revision() > process.watched;
        process.change_at = behind.then(|| env.soon(0, 30));
    }

    /// What comes on a connection.
    pub fn receive(
        &mut self,
        connection: ConnectionId,
        source: IpAddr,
        arrival: Arrival<AgentMessage>,
        env: &mut Env,
    ) {
        let Some(process) = &mut self.process else { return };
        match arrival {
            Arrival::End(reason, _) => {
                env.say(WHO, format_args!("{connection:?} has ended: {reason}"));
                process.state.handle_closed(Connection(connection.0), env.instant(), env.wall());
                process.streams.remove(&connection);
            }
            Arrival::Message(AgentMessage::Hello(hello)) => {
                env.say(WHO, format_args!("{connection:?} {} has {:?}", hello.node, hello.have));
                let stream = Stream { node: hello.node.clone(), pushed: Vec::new(), is_acknowledged: false };
                process.streams.insert(connection, stream);
                let local = IpAddr::from([172, 16, 9, 9]);
                let (now, wall) = (env.instant(), env.wall());
                let origin = Origin { path: Path { source, local }, key: None };
                process.state.handle_connected(Connection(connection.0), origin, *hello, now, wall);
            }
            Arrival::Message(message) => {
                let Some(node) = process.streams.get(&connection).map(|stream| stream.node.clone()) else {
                    return;
                };
                let current =
                    process.welcomed.get(&node).copied().filter(|c| process.streams.contains_key(c));
                let connection = match env.plant {
                    Some(Plant::NoFence) => current.unwrap_or(connection),
                    Some(_) | None => connection,
                };
                if let AgentMessage::Ack(ack) = &message {
                    env.say(WHO, format_args!("{connection:?} {node} acknowledges {ack:?}"));
                    self.acknowledged.extend(process.acknowledge(connection, current, ack));
                }
                process.state.handle_message(Connection(connection.0), message, env.instant(), env.wall());
            }
        }
        self.settle(env);
    }

    /// Does what the state machine wants done.
    fn settle(&mut self, env: &mut Env) {
        let Some(process) = &mut self.process else { return };
        while let Some(effect) = process.state.poll_effect() {
            match effect {
                Effect::Commit(transaction) => {
                    let at = env.soon(1, 40);
                    process.enqueue(transaction, None, at);
                }
                Effect::Close(Connection(number), refusal) => {
                    let connection = ConnectionId(number);
                    env.say(WHO, format_args!("closes {connection:?}: {refusal}"));
                    if env.plant == Some(Plant::NoFence) && refusal == Refusal::Superseded {
                        continue;
                    }
                    let retry_after = match refusal {
                        Refusal::TooMany { retry_after } => Some(retry_after),
                        _ => None,
                    };
                    process.streams.remove(&connection);
                    let reason = refusal.to_string();
                    env.network.close_down(connection, reason, retry_after, env.now, &mut env.random);
                }
                Effect::Send(Connection(number), message) => process.send(ConnectionId(number), message, env),
                Effect::SendSnapshot(Connection(number), snapshot) => {
                    let connection = ConnectionId(number);
                    let generation = snapshot.generation;
                    env.say(WHO, format_args!("{connection:?} snapshot of {generation}"));
                    if let Some(stream) = process.streams.get_mut(&connection) {
                        stream.push(generation, Some(snapshot.items.clone()));
                    }
                    let end = SnapshotEnd { digest: snapshot.items.digest(), removals: snapshot.removals };
                    let items: Vec<_> = snapshot.items.iter().cloned().collect();
                    let size = 1 + env.random.index(6);
                    let mut chunks: Vec<Vec<_>> = items.chunks(size).map(<[_]>::to_vec).collect();
                    let last = chunks.pop().unwrap_or_default();
                    for (items, end) in
                        chunks.into_iter().map(|items| (items, None)).chain([(last, Some(end))])
                    {
                        let chunk = ControllerMessage::Snapshot(SnapshotChunk { generation, items, end });
                        env.network.send_down(connection, chunk, env.now, &mut env.random);
                    }
                }
            }
        }
    }
}

impl Process {
    fn enqueue(&mut self, transaction: Transaction, mesh: Option<MeshName>, at: Duration) {
        self.commits.push_back(Commit { transaction, mesh, stage: Stage::Writing, at });
    }

    fn send(&mut self, connection: ConnectionId, mut message: ControllerMessage, env: &mut Env) {
        match &mut message {
            ControllerMessage::Welcome(_) => {
                if let Some(stream) = self.streams.get(&connection) {
                    self.welcomed.insert(stream.node.clone(), connection);
                }
            }
            ControllerMessage::NotModified(generation) => {
                env.say(WHO, format_args!("{connection:?} not modified, {generation}"));
                if let Some(stream) = self.streams.get_mut(&connection) {
                    stream.push(*generation, None);
                }
            }
            ControllerMessage::Delta(delta) => {
                env.say(WHO, format_args!("{connection:?} {} to {}", delta.base, delta.generation));
                if let Some(stream) = self.streams.get_mut(&connection) {
                    if env.plant == Some(Plant::LostDirtyFlag)
                        && stream.is_acknowledged
                        && env.random.once_in(2)
                    {
                        return self.forget(connection, delta.generation, env);
                    }
                    stream.push_delta(delta, env.plant == Some(Plant::WrongBase));
                }
            }
            ControllerMessage::Snapshot(_)
            | ControllerMessage::Heartbeat(_)
            | ControllerMessage::ReportRequest(_)
            | ControllerMessage::Examination(_)
            | ControllerMessage::Operators(_)
            | ControllerMessage::GoAway { .. } => {}
        }
        env.network.send_down(connection, message, env.now, &mut env.random);
    }

    /// Lets the state machine believe that a push was acknowledged that was never sent.
    fn forget(&mut self, connection: ConnectionId, generation: Generation, env: &Env) {
        let ack = Ack { generation, failures: BTreeMap::new(), removals_held: Default::default() };
        let message = AgentMessage::Ack(ack);
        self.state.handle_message(Connection(connection.0), message, env.instant(), env.wall());
    }

    /// What an acknowledgement says that the state machine is about to believe.
    fn acknowledge(
        &mut self,
        connection: ConnectionId,
        current: Option<ConnectionId>,
        ack: &Ack,
    ) -> Option<Acknowledged> {
        let stream = self.streams.get_mut(&connection).filter(|_| current == Some(connection))?;
        let (generation, items) = stream.pushed.last()?.clone();
        stream.is_acknowledged = true;
        (generation == ack.generation).then_some(Acknowledged { connection, generation, items })
    }
}

impl Stream {
    fn push(&mut self, generation: Generation, items: Option<Items>) {
        self.is_acknowledged = false;
        self.pushed.push((generation, items));
    }

    fn push_delta(&mut self, delta: &mut Delta, on_wrong_base: bool) {
        let before = self.pushed.last().and_then(|(_, items)| items.clone());
        let after = before.as_ref().map(|items| changed(items, delta));
        if let (true, Some(before), Some(after)) = (on_wrong_base, &before, &after)
            && let Some((_, Some(wrong))) = self.pushed.iter().rev().nth(1)
        {
            (delta.set, delta.delete) = wrong.changes_to(after);
            delta.digest = changed(before, delta).digest();
        }
        self.push(delta.generation, after);
    }
}

fn changed(items: &Items, delta: &Delta) -> Items {
    let kept = items.iter().filter(|item| !delta.delete.contains(&item.id));
    Items::new(kept.chain(&delta.set).cloned())
}

fn describe(transaction: &Transaction) -> String {
    use tunmesh::controller::store::transaction::Write;
    let keys = transaction.writes.iter().map(|write| match write {
        Write::Put(key, _) => key.clone(),
        Write::Delete(key) => format!("-{key}"),
    });
    keys.collect::<Vec<_>>().join(" ")
}
