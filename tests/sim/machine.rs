//! An agent's host: its process, its kernel, and its disk, which outlives both.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use tunmesh::agent::reconcile::Op;
use tunmesh::agent::session::{Base, Effect, Identity, Session, Trouble, TroubleKind};
use tunmesh::agent::state::{AgentState, Change, OpResult, Wanted};
use tunmesh::agent::target::{Forwarding, Policy};
use tunmesh::proto::command::{Command, TunnelSpec};
use tunmesh::proto::model::{Framing, MeshName, NodeName, Owner, PublicKey, TunnelName};
use tunmesh::proto::session::{ControllerMessage, Reach, RunId, TunnelReport};

use crate::env::{Env, Plant};
use crate::kernel::{Event, Kernel};
use crate::network::{Arrival, ConnectionId, Side};

/// Where the controller is among the addresses that agents have; the others answer nobody.
const CONTROLLER: usize = 0;

pub struct Machine {
    /// How the trace calls it.
    pub who: String,
    position: usize,
    pub node: NodeName,
    pub labels: BTreeMap<String, String>,
    /// Whether its agent says where it is.
    says_endpoint: bool,
    /// How many addresses its agent dials in turn.
    controllers: usize,
    pub disk: Wanted,
    /// The keys of meshes that are on it.
    pub keys: BTreeMap<MeshName, PublicKey>,
    /// Which disk it is: a new one has a new number.
    pub installed: u64,
    pub kernel: Kernel,
    pub process: Option<Process>,
    /// When it starts, while it does not run.
    start_at: Option<Duration>,
    /// Local tunnels of which their owner was told that they are there.
    pub locals: BTreeMap<TunnelName, TunnelSpec>,
}

pub struct Process {
    pub state: AgentState,
    pub session: Session,
    pub published: Forwarding,
    pub connection: Option<ConnectionId>,
    dial: Option<(Duration, usize)>,
    writing: Option<Writing>,
    /// What the controller wants, while something else is being written: the runtime does one thing after the other.
    waiting: Option<Base>,
    /// Whether nothing was done since the last report.
    reported: bool,
}

/// What is on its way to the disk.
struct Writing {
    change: Change,
    at: Duration,
    /// The command that wants it; absent: the controller does.
    command: Option<Command>,
}

/// Where a machine is on the underlay.
pub fn address(position: usize) -> IpAddr {
    IpAddr::from([172, 16, 0, 1 + u8::try_from(position).unwrap()])
}

fn policy() -> Policy {
    let accept = ["10.0.0.0/8", "192.168.0.0/16", "fc00::/7"];
    Policy {
        data_port: 5000,
        public_key: [1; 32].into(),
        accept: accept.into_iter().map(|net| net.parse().unwrap()).collect(),
        without: BTreeMap::new(),
    }
}

impl Machine {
    pub fn new(position: usize, node: &str, who: String, env: &mut Env) -> Self {
        let mut machine = Self {
            who,
            position,
            node: node.parse().unwrap(),
            labels: BTreeMap::new(),
            says_endpoint: env.random.once_in(3),
            controllers: if env.random.once_in(4) { 2 } else { 1 },
            disk: Wanted::default(),
            keys: BTreeMap::new(),
            installed: 0,
            kernel: Kernel::new(env.random.once_in(2)),
            process: None,
            start_at: Some(env.soon(0, 5000)),
            locals: BTreeMap::new(),
        };
        machine.relabel(env);
        let uplink = format!("{}/24", address(position)).parse().unwrap();
        machine.kernel.happen(&Event::Appears("eth0".to_owned(), uplink));
        machine
    }

    /// Chance decides on its labels, which it has from its next start on.
    pub fn relabel(&mut self, env: &mut Env) {
        let role = *env.random.pick(&["web", "db", "none"]);
        self.labels = [("role".to_owned(), role.to_owned())].into();
    }

    pub fn next_at(&self, env: &Env) -> Option<Duration> {
        let Some(process) = &self.process else { return self.start_at };
        let session = process.session.poll_timeout().map(|at| env.at(at));
        let state = Some(env.at(process.state.poll_timeout()));
        let dial = process.dial.as_ref().map(|(at, _)| *at);
        let writing = process.writing.as_ref().map(|writing| writing.at);
        [session, state, dial, writing].into_iter().flatten().min()
    }

    pub fn start_soon(&mut self, at: Duration) {
        if self.process.is_none() {
            self.start_at = Some(at);
        }
    }

    /// Whether it will not start again.
    pub fn is_off(&self) -> bool {
        self.process.is_none() && self.start_at.is_none()
    }

    /// Does what is due. `answers`: whether the controller's process runs.
    pub fn work(&mut self, answers: bool, env: &mut Env) {
        let Some(process) = &mut self.process else {
            if self.start_at.is_some_and(|at| at <= env.now) {
                self.start(env);
            }
            return;
        };
        let now = env.instant();
        if let Some((_, to)) = process.dial.take_if(|(at, _)| *at <= env.now) {
            if to == CONTROLLER && env.network.links[self.position].partitioned {
                // Nobody answers; the session has its own patience.
            } else if to == CONTROLLER && answers {
                let lag = if env.fails(5) { env.random.millis(100..6000) } else { Duration::ZERO };
                let connection = env.network.connect(self.position, lag);
                env.say(&self.who, format_args!("is connected by {connection:?}"));
                process.connection = Some(connection);
                process.reported = false;
                process.session.handle_connected(now);
            } else {
                let refused = Trouble::new(TroubleKind::Unreachable, "connection refused");
                process.session.handle_closed(refused, None, now);
            }
        } else if process.writing.as_ref().is_some_and(|writing| writing.at <= env.now) {
            self.written(env);
        } else {
            process.session.handle_timeout(now);
            if process.state.poll_timeout() <= now {
                process.state.handle_timeout(now);
            }
        }
        self.settle(env);
    }

    fn start(&mut self, env: &mut Env) {
        self.start_at = None;
        let identity = Identity {
            node: self.node.clone(),
            labels: self.labels.clone(),
            reach: match self.says_endpoint {
                true => Reach::At(format!("{}:5000", address(self.position)).parse().unwrap()),
                false => Reach::BySession,
            },
            data_port: 5000,
            version: "0.1.0".to_owned(),
            run_id: RunId::new(env.random.wide()),
        };
        let base = self.disk.controller.clone();
        let generation = base.as_ref().map(|base| base.generation);
        env.say(&self.who, format_args!("starts with {generation:?}"));
        let (now, seed) = (env.instant(), env.random.next());
        let mut state = AgentState::new(policy(), self.disk.clone(), now);
        state.handle_keys(self.keys.clone(), now);
        state.handle_observed(self.kernel.actual(), now);
        self.process = Some(Process {
            state,
            session: Session::new(identity, self.controllers, base, seed, now),
            published: Forwarding::new(),
            connection: None,
            dial: None,
            writing: None,
            waiting: None,
            reported: false,
        });
        self.settle(env);
    }

    /// Ends without a chance to do anything more.
    pub fn crash(&mut self, env: &mut Env) {
        let Some(process) = self.process.take() else { return };
        if let Some(Writing { change, command, .. }) = process.writing
            && env.random.once_in(2)
        {
            env.say(&self.who, format_args!("crashes after a write"));
            self.keep(change, command);
        }
        let says_so = env.random.once_in(2);
        env.say(&self.who, format_args!("crashes{}", if says_so { "" } else { ", and its host with it" }));
        if let Some(connection) = process.connection {
            env.network.die(connection, Side::Agent, says_so, env.now);
        }
        self.end(env);
    }

    /// Ends as it does on SIGTERM.
    pub fn stop(&mut self, env: &mut Env) {
        let Some(process) = &mut self.process else { return };
        env.say(&self.who, format_args!("is asked to end"));
        process.session.end(env.instant());
        self.settle(env);
        self.process = None;
        self.end(env);
    }

    /// Its connection takes nothing any more, and it lets go of it.
    pub fn let_go(&mut self, env: &mut Env) {
        let Some(process) = &mut self.process else { return };
        let Some(connection) = process.connection.take() else { return };
        env.say(&self.who, format_args!("lets go of {connection:?}"));
        env.network.close_up(connection, env.now, &mut env.random);
        let why = Trouble::new(TroubleKind::Silent, "the controller takes nothing any more");
        process.session.handle_closed(why, None, env.instant());
        self.settle(env);
    }

    /// Its host gets a new disk.
    pub fn reinstall(&mut self, env: &mut Env) {
        self.crash(env);
        env.say(&self.who, format_args!("is installed anew"));
        self.disk = Wanted::default();
        self.keys.clear();
        self.locals.clear();
        self.installed = env.random.next();
    }

    /// Gets the disk of another machine.
    pub fn clone_disk(&mut self, other: &Self, env: &mut Env) {
        self.crash(env);
        env.say(&self.who, format_args!("gets the disk of {}", other.who));
        self.disk = other.disk.clone();
        self.keys = other.keys.clone();
        self.locals = other.locals.clone();
        self.installed = env.random.next();
    }

    /// A process's devices go with it.
    fn end(&mut self, env: &mut Env) {
        let devices: Vec<String> = self.kernel.our_devices().into_iter().map(str::to_owned).collect();
        devices.into_iter().for_each(|device| self.kernel.happen(&Event::Vanishes(device)));
        self.start_at = Some(env.soon(50, 8000));
    }

    /// Ends and does not come again.
    pub fn switch_off(&mut self, env: &mut Env) {
        self.crash(env);
        self.start_at = None;
    }

    /// Someone on this host wants something.
    pub fn command(&mut self, command: Command, env: &mut Env) {
        let Some(process) = &mut self.process else { return };
        if process.is_busy() {
            return;
        }
        process.state.handle_observed(self.kernel.actual(), env.instant());
        match process.state.handle_command(&command, Owner::Local) {
            Ok(change) => {
                env.say(&self.who, format_args!("local: {}", describe(&command)));
                process.writing = Some(Writing { change, at: env.soon(0, 50), command: Some(command) });
            }
            Err(error) => env.say(&self.who, format_args!("local: {}: {error:?}", describe(&command))),
        }
        self.settle(env);
    }

    /// Something on this host goes wrong beside the agent.
    pub fn happen(&mut self, event: &Event, env: &mut Env) {
        self.kernel.happen(event);
        if let Some(process) = &mut self.process {
            env.say(&self.who, format_args!("{event:?}"));
            process.state.handle_device_event(env.instant());
        }
        self.settle(env);
    }

    /// What comes on a connection.
    pub fn receive(&mut self, connection: ConnectionId, arrival: Arrival<ControllerMessage>, env: &mut Env) {
        let Some(process) = self.process.as_mut().filter(|process| process.connection == Some(connection))
        else {
            return;
        };
        match arrival {
            Arrival::Message(message) => process.session.handle_message(message, env.instant()),
            Arrival::End(reason, retry_after) => {
                env.say(&self.who, format_args!("{connection:?} has ended: {reason}"));
                process.connection = None;
                let ended = Trouble::new(TroubleKind::Ended, reason);
                process.session.handle_closed(ended, retry_after, env.instant());
            }
        }
        self.settle(env);
    }

    /// What was on its way to the disk is there, or could not be written.
    fn written(&mut self, env: &mut Env) {
        let Some(process) = &mut self.process else { return };
        let Some(Writing { change, command, .. }) = process.writing.take() else { return };
        if env.fails(15) {
            env.say(&self.who, format_args!("its disk is full"));
            if command.is_none() {
                process.session.handle_kept(Err("no space left on device".to_owned()), env.instant());
            }
            return;
        }
        let is_wanted = command.is_none();
        self.keep(change.clone(), command);
        let Some(process) = &mut self.process else { return };
        process.state.commit(change, env.instant());
        self.perform(env);
        let Some(process) = &mut self.process else { return };
        if is_wanted && env.plant != Some(Plant::EarlyAck) {
            process.session.handle_kept(Ok(process.state.failures()), env.instant());
        }
    }

    fn keep(&mut self, change: Change, command: Option<Command>) {
        let before = self.disk.controller.as_ref().map(|base| base.generation);
        let after = change.wanted.controller.as_ref().map(|base| base.generation);
        assert!(after >= before, "{} goes back from {before:?} to {after:?}", self.who);
        self.disk = change.wanted;
        match command {
            Some(Command::Add { tunnel, .. }) => {
                self.locals.insert(tunnel.name.clone(), *tunnel);
            }
            Some(Command::Delete { name }) => {
                self.locals.remove(&name);
            }
            None => {}
        }
    }

    /// What the controller wants is to be kept.
    fn begin(&mut self, base: Base, env: &mut Env) {
        let Some(process) = &mut self.process else { return };
        process.state.handle_observed(self.kernel.actual(), env.instant());
        let generation = base.generation;
        let mut change = process.state.handle_wanted(Some(base));
        env.say(&self.who, format_args!("keeps {generation}, change: {}", change.is_change));
        if env.plant == Some(Plant::PrunesLocal) {
            let foreign = self.locals.keys().next().cloned();
            foreign.into_iter().for_each(|name| _ = change.wanted.desired.remove(&name));
        }
        if env.plant == Some(Plant::EarlyAck) {
            process.session.handle_kept(Ok(BTreeMap::new()), env.instant());
        }
        process.writing = Some(Writing { change, at: env.soon(0, 60), command: None });
    }

    /// Does what both state machines want done.
    fn settle(&mut self, env: &mut Env) {
        self.perform(env);
        if let Some(process) = &mut self.process {
            process.reported = false;
        }
        loop {
            let Some(process) = &mut self.process else { return };
            process.session.handle_keys(process.state.keys());
            if !process.reported && process.session.wants_tunnels() {
                process.reported = true;
                let reports = process.reports();
                process.session.handle_tunnels(reports);
            }
            if process.writing.is_none()
                && let Some(base) = process.waiting.take()
            {
                self.begin(base, env);
                continue;
            }
            let Some(effect) = process.session.poll_effect() else { return };
            match effect {
                Effect::Dial(to) => {
                    process.dial = Some((env.now + env.network.delay(self.position, &mut env.random), to));
                }
                Effect::Close => {
                    process.dial = None;
                    if let Some(connection) = process.connection.take() {
                        let trouble = process.session.standing().trouble;
                        env.say(&self.who, format_args!("closes {connection:?}: {trouble:?}"));
                        env.network.close_up(connection, env.now, &mut env.random);
                    }
                }
                Effect::Send(message) => {
                    if let Some(connection) = process.connection {
                        env.network.send_up(connection, message, env.now, &mut env.random);
                    }
                }
                Effect::Keep(base) => process.waiting = Some(base),
                Effect::Operators(_) | Effect::Examine(_) => {}
            }
        }
    }

    /// Performs operations until there are none.
    fn perform(&mut self, env: &mut Env) {
        let Some(process) = &mut self.process else { return };
        let mut count = 0;
        while let Some(op) = process.state.poll_op() {
            count += 1;
            assert!(count < 1000, "{}: operations without an end, at last {op:?}", self.who);
            if let Op::Resolve(host) = &op {
                process.state.handle_resolved(host, Err("no such host".to_owned()), env.instant());
                continue;
            }
            let result = match &op {
                Op::Observe => OpResult::Observed(self.kernel.actual()),
                Op::MeasurePaths(addresses) => {
                    OpResult::Measured(addresses.iter().map(|address| (*address, Ok(1500))).collect())
                }
                Op::Publish(forwarding) => {
                    process.published = forwarding.clone();
                    OpResult::Done
                }
                other if env.faulty && env.random.once_in(40) => {
                    if env.random.once_in(2) {
                        let _ = self.kernel.perform(other);
                    }
                    OpResult::Failed("it fails".to_owned())
                }
                Op::OpenKey(mesh) => {
                    let key = || {
                        let words = [env.random.wide(), env.random.wide()].map(u128::to_ne_bytes);
                        PublicKey::from_bytes(&words.concat()).unwrap()
                    };
                    OpResult::Opened(*self.keys.entry(mesh.clone()).or_insert_with(key))
                }
                Op::RemoveKey(mesh) => {
                    self.keys.remove(mesh);
                    OpResult::Done
                }
                other => match self.kernel.perform(other) {
                    Ok(()) => OpResult::Done,
                    Err(reason) => OpResult::Failed(reason),
                },
            };
            process.state.handle_op_result(op, result, env.instant());
        }
    }
}

impl Process {
    /// Whether something is being kept.
    pub fn is_busy(&self) -> bool {
        self.writing.is_some() || self.waiting.is_some()
    }

    fn reports(&self) -> BTreeMap<TunnelName, TunnelReport> {
        let report = |status: tunmesh::proto::model::TunnelStatus| {
            let report = TunnelReport {
                device: status.tunnel.device.clone(),
                owner: status.tunnel.owner,
                state: status.state,
                endpoint: status.endpoint.map(|endpoint| endpoint.to_string()).unwrap_or_default(),
                preferred: String::new(),
                last_received_ms: None,
                // Whoever knows the other's key agrees on some at once.
                keyed: matches!(status.tunnel.framing, Framing::Wireguard(_)),
            };
            (status.name, report)
        };
        self.state.statuses().map(report).collect()
    }
}

fn describe(command: &Command) -> String {
    match command {
        Command::Add { tunnel, .. } => format!("add {} to {:?}", tunnel.name, tunnel.remote),
        Command::Delete { name } => format!("delete {name}"),
    }
}
