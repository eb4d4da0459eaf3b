//! Connections between agents and controllers: each is in order, and may be cut, half open or slow.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use tunmesh::proto::session::{AgentMessage, ControllerMessage};

use crate::random::Random;

/// Names a connection for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ConnectionId(pub u64);

/// The two ends of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    Agent,
    Controller,
}

/// What comes out of a connection.
#[derive(Debug, Clone)]
pub enum Arrival<T> {
    Message(T),
    /// The other side has closed, or is not there any more: why, and when to come again.
    End(String, Option<Duration>),
}

/// One way of a connection.
#[derive(Debug)]
struct Way<T> {
    /// In order; the times never fall.
    under_way: VecDeque<(Duration, Arrival<T>)>,
    /// Whether the receiving process has let go of it: then nothing arrives any more.
    deaf: bool,
    /// Whether nothing more can be put in.
    ended: bool,
}

impl<T> Way<T> {
    fn new() -> Self {
        Self { under_way: VecDeque::new(), deaf: false, ended: false }
    }

    fn put(&mut self, at: Duration, arrival: Arrival<T>) {
        if self.ended || self.deaf {
            return;
        }
        self.ended = matches!(arrival, Arrival::End(..));
        let last = self.under_way.back().map_or(at, |(last, _)| at.max(*last));
        self.under_way.push_back((last, arrival));
    }

    fn deafen(&mut self) {
        self.deaf = true;
        self.under_way.clear();
    }

    fn cut(&mut self, at: Duration, learns: bool) {
        self.under_way.clear();
        self.end(at, learns.then(|| "the connection broke".to_owned()));
    }

    /// Nothing more is put in; the receiver is told, or not.
    fn end(&mut self, at: Duration, told: Option<String>) {
        if let Some(reason) = told {
            self.put(at, Arrival::End(reason, None));
        }
        self.ended = true;
    }

    fn is_over(&self) -> bool {
        self.under_way.is_empty() && (self.deaf || self.ended)
    }
}

#[derive(Debug)]
struct Connection {
    /// The machine that dialled, by its position.
    machine: usize,
    /// How much longer its messages take than those of others.
    lag: Duration,
    up: Way<AgentMessage>,
    down: Way<ControllerMessage>,
}

/// How a machine is joined to the controller.
#[derive(Debug, Clone, Copy)]
pub struct Link {
    /// The least time of a message in milliseconds.
    pub delay: u64,
    /// What is added at most.
    pub jitter: u64,
    /// Whether nothing passes. What was sent waits, as TCP sends it again.
    pub partitioned: bool,
}

impl Link {
    pub fn good(random: &mut Random) -> Self {
        Self { delay: random.of(1..40), jitter: 20, partitioned: false }
    }
}

#[derive(Debug)]
pub struct Network {
    pub links: Vec<Link>,
    connections: BTreeMap<ConnectionId, Connection>,
    count: u64,
}

impl Network {
    pub fn new(links: Vec<Link>) -> Self {
        Self { links, connections: BTreeMap::new(), count: 0 }
    }

    pub fn delay(&self, machine: usize, random: &mut Random) -> Duration {
        let link = self.links[machine];
        random.millis(link.delay..link.delay + link.jitter + 1) + Duration::from_micros(random.of(0..1000))
    }

    /// A new connection, whose messages take longer than those of others by `lag`.
    pub fn connect(&mut self, machine: usize, lag: Duration) -> ConnectionId {
        self.count += 1;
        let id = ConnectionId(self.count);
        self.connections.insert(id, Connection { machine, lag, up: Way::new(), down: Way::new() });
        id
    }

    /// The machines with an open connection whose messages take longer than those of others.
    pub fn slow(&self) -> Vec<usize> {
        let open = self.connections.iter().filter(|(id, c)| !c.lag.is_zero() && self.is_open(**id));
        open.map(|(_, connection)| connection.machine).collect()
    }

    pub fn all(&self) -> Vec<ConnectionId> {
        self.connections.keys().copied().collect()
    }

    pub fn machine(&self, id: ConnectionId) -> Option<usize> {
        self.connections.get(&id).map(|connection| connection.machine)
    }

    /// The agent sends.
    pub fn send_up(&mut self, id: ConnectionId, message: AgentMessage, now: Duration, random: &mut Random) {
        let Some(machine) = self.machine(id) else { return };
        let at = now + self.delay(machine, random);
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.up.put(at + connection.lag, Arrival::Message(message));
        }
    }

    /// The controller sends.
    pub fn send_down(
        &mut self,
        id: ConnectionId,
        message: ControllerMessage,
        now: Duration,
        random: &mut Random,
    ) {
        let Some(machine) = self.machine(id) else { return };
        let at = now + self.delay(machine, random);
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.down.put(at + connection.lag, Arrival::Message(message));
        }
    }

    /// The agent closes: it hears no more, and what it has sent still arrives before the end.
    pub fn close_up(&mut self, id: ConnectionId, now: Duration, random: &mut Random) {
        let Some(machine) = self.machine(id) else { return };
        let at = now + self.delay(machine, random);
        let Some(connection) = self.connections.get_mut(&id) else { return };
        connection.up.put(at, Arrival::End("the agent has closed".to_owned(), None));
        connection.down.deafen();
        self.forget(id);
    }

    /// The controller closes, likewise.
    pub fn close_down(
        &mut self,
        id: ConnectionId,
        reason: String,
        retry_after: Option<Duration>,
        now: Duration,
        random: &mut Random,
    ) {
        let Some(machine) = self.machine(id) else { return };
        let at = now + self.delay(machine, random);
        let Some(connection) = self.connections.get_mut(&id) else { return };
        connection.down.put(at, Arrival::End(reason, retry_after));
        connection.up.deafen();
        self.forget(id);
    }

    /// The connection breaks: what is under way is lost. Each side learns of it, or does not.
    pub fn cut(&mut self, id: ConnectionId, agent_learns: bool, controller_learns: bool, now: Duration) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        connection.up.cut(now, controller_learns);
        connection.down.cut(now, agent_learns);
        self.forget(id);
    }

    /// The process at `side` is dead: the kernel ends its connections, or the host is dead with it and says nothing.
    /// What it has sent still arrives.
    pub fn die(&mut self, id: ConnectionId, side: Side, says_so: bool, now: Duration) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let reason = || "the process at the other end is dead".to_owned();
        match side {
            Side::Agent => {
                connection.down.deafen();
                connection.up.end(now, says_so.then(reason));
            }
            Side::Controller => {
                connection.up.deafen();
                connection.down.end(now, says_so.then(reason));
            }
        }
        self.forget(id);
    }

    fn forget(&mut self, id: ConnectionId) {
        if self.connections.get(&id).is_some_and(|c| c.up.is_over() && c.down.is_over()) {
            self.connections.remove(&id);
        }
    }

    /// Whether both sides still hear each other.
    pub fn is_open(&self, id: ConnectionId) -> bool {
        let is_open = |deaf: bool, ended: bool| !deaf && !ended;
        self.connections.get(&id).is_some_and(|Connection { up, down, .. }| {
            is_open(up.deaf, up.ended) && is_open(down.deaf, down.ended)
        })
    }

    /// The next arrival: when, where, and who receives it.
    pub fn next(&self) -> Option<(Duration, ConnectionId, Side)> {
        let open = self.connections.iter().filter(|(_, c)| !self.links[c.machine].partitioned);
        open.flat_map(|(id, connection)| {
            let up = connection.up.under_way.front().map(|(at, _)| (*at, *id, Side::Controller));
            let down = connection.down.under_way.front().map(|(at, _)| (*at, *id, Side::Agent));
            [up, down]
        })
        .flatten()
        .min()
    }

    pub fn take_up(&mut self, id: ConnectionId) -> Option<Arrival<AgentMessage>> {
        let (_, arrival) = self.connections.get_mut(&id)?.up.under_way.pop_front()?;
        Some(arrival)
    }

    pub fn take_down(&mut self, id: ConnectionId) -> Option<Arrival<ControllerMessage>> {
        let (_, arrival) = self.connections.get_mut(&id)?.down.under_way.pop_front()?;
        Some(arrival)
    }
}
