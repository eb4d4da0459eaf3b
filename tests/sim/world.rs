//! One run: a world in which everything goes wrong for a while, and then nothing any more.

use std::collections::BTreeMap;
use std::time::Duration;

use tunmesh::proto::model::NodeName;

use crate::check;
use crate::env::{Env, Plant};
use crate::kernel::Event;
use crate::machine::{self, Machine};
use crate::network::{ConnectionId, Link, Network, Side};
use crate::operator;
use crate::random::Random;
use crate::server::Server;
use crate::trace::{Loudness, Trace};

/// So long what was said before may be under way: until then a session that its agent has let go of may still begin,
/// and end a later one.
const LATE: Duration = Duration::from_secs(12);
/// Within this time all must be as it is wanted, once nothing goes wrong any more.
const CONVERGED: Duration = Duration::from_secs(60);
/// So long it must then stay so.
const STABLE: Duration = Duration::from_secs(8);
/// How often that is looked at.
const LOOK: Duration = Duration::from_millis(500);
/// How often an operator looks for what waits for consent.
const CONSENT: Duration = Duration::from_secs(3);
/// More steps than any run has.
const STEPS: u64 = 200_000;

pub struct World {
    pub env: Env,
    machines: Vec<Machine>,
    server: Server,
    /// The names of the machines' nodes, and one that no machine has.
    nodes: Vec<NodeName>,
    /// By connection, the disk that its machine had.
    disks: BTreeMap<ConnectionId, u64>,
    /// The clone's position, and whose it is.
    clone: Option<(usize, usize)>,
    trouble_at: Duration,
    /// The store's revision that was checked last.
    checked: u64,
}

#[derive(Debug)]
enum Next {
    Arrival(ConnectionId, Side),
    Machine(usize),
    Server,
    Trouble,
}

impl World {
    pub fn new(seed: u64, loudness: Loudness, plant: Option<Plant>) -> Self {
        let mut random = Random::new(seed);
        let count = 3 + random.index(4);
        let clone = random.once_in(4).then(|| (count, random.index(count)));
        let total = count + usize::from(clone.is_some());
        let links = (0..total).map(|_| Link::good(&mut random)).collect();
        let mut env = Env::new(random, Trace::new(loudness), Network::new(links), plant);
        let mut machines: Vec<Machine> = (0..count)
            .map(|position| {
                let node = format!("n{position}");
                Machine::new(position, &node, node.clone(), &mut env)
            })
            .collect();
        let mut nodes: Vec<NodeName> = machines.iter().map(|machine| machine.node.clone()).collect();
        if let Some((position, of)) = clone {
            let mut machine =
                Machine::new(position, nodes[of].as_str(), format!("{}'s clone", nodes[of]), &mut env);
            machine.switch_off(&mut env);
            machines.push(machine);
        }
        nodes.push("ghost".parse().unwrap());
        let mut server = Server::default();
        server.start_soon(env.soon(0, 3000));
        Self {
            env,
            machines,
            server,
            nodes,
            disks: BTreeMap::new(),
            clone,
            trouble_at: Duration::ZERO,
            checked: 0,
        }
    }

    /// Lives through trouble, then through quiet.
    pub fn run(&mut self) {
        let end = self.env.soon(20_000, 90_000);
        self.live_until(end);
        self.calm();
        let deadline = self.env.now + CONVERGED;
        self.live_until(self.env.now + LATE);
        let mut consent_at = self.env.now;
        while let Err(problem) = check::converged(&self.machines, &self.server, &self.env) {
            assert!(self.env.now < deadline, "not within {CONVERGED:?}: {problem}");
            if consent_at <= self.env.now {
                consent_at = self.env.now + CONSENT;
                operator::consent(&mut self.server, &mut self.env);
            }
            self.live_until(self.env.now + LOOK);
        }
        self.env.say("world", format_args!("all is as it is wanted"));
        self.live_until(self.env.now + STABLE);
        if let Err(problem) = check::converged(&self.machines, &self.server, &self.env) {
            panic!("all was as it is wanted, and is not any more: {problem}");
        }
    }

    fn live_until(&mut self, end: Duration) {
        let mut steps = 0;
        while let Some((at, next)) = self.next().filter(|(at, _)| *at <= end) {
            steps += 1;
            assert!(steps < STEPS, "time stands still, and {next:?} goes on and on");
            self.env.now = self.env.now.max(at);
            self.step(&next);
        }
        self.env.now = self.env.now.max(end);
    }

    fn next(&self) -> Option<(Duration, Next)> {
        let arrival = self.env.network.next().map(|(at, id, side)| (at, Next::Arrival(id, side)));
        let machines = self.machines.iter().enumerate();
        let machine = machines
            .filter_map(|(position, machine)| Some((machine.next_at(&self.env)?, position)))
            .min()
            .map(|(at, position)| (at, Next::Machine(position)));
        let server = self.server.next_at(&self.env).map(|at| (at, Next::Server));
        let trouble = self.env.faulty.then_some((self.trouble_at, Next::Trouble));
        [arrival, machine, server, trouble].into_iter().flatten().min_by_key(|(at, _)| *at)
    }

    fn step(&mut self, next: &Next) {
        let env = &mut self.env;
        match *next {
            Next::Arrival(id, Side::Agent) => {
                let Some(position) = env.network.machine(id) else { return };
                if let Some(arrival) = env.network.take_down(id) {
                    self.machines[position].receive(id, arrival, env);
                }
                self.check_machine(position);
            }
            Next::Arrival(id, Side::Controller) => {
                let Some(position) = env.network.machine(id) else { return };
                if let Some(arrival) = env.network.take_up(id) {
                    self.server.receive(id, machine::address(position), arrival, env);
                }
                self.check_server();
            }
            Next::Machine(position) => {
                let answers = self.server.process.is_some();
                self.machines[position].work(answers, env);
                let machine = &self.machines[position];
                if let Some(connection) = machine.process.as_ref().and_then(|process| process.connection) {
                    self.disks.entry(connection).or_insert(machine.installed);
                }
                self.check_machine(position);
            }
            Next::Server => {
                self.server.work(env);
                self.check_server();
            }
            Next::Trouble => {
                self.trouble();
                self.trouble_at = self.env.soon(50, 1500);
                (0..self.machines.len()).for_each(|position| self.check_machine(position));
                self.check_server();
            }
        }
    }

    fn check_machine(&self, position: usize) {
        check::locals(&self.machines[position]);
    }

    fn check_server(&mut self) {
        for acknowledged in std::mem::take(&mut self.server.acknowledged) {
            let Some(position) = self.env.network.machine(acknowledged.connection) else { continue };
            let Some(installed) = self.disks.get(&acknowledged.connection) else { continue };
            check::acknowledged(&self.machines[position], *installed, &acknowledged);
        }
        let revision = self.server.store.revision();
        if revision != self.checked {
            self.checked = revision;
            check::store(&self.server);
        }
    }

    /// Something happens.
    fn trouble(&mut self) {
        let env = &mut self.env;
        let position = env.random.index(self.machines.len());
        let machine = &mut self.machines[position];
        match env.random.of(0..100) {
            0..20 => operator::operate(&mut self.server, &self.nodes, env),
            20..36 => {
                let command = operator::some_command(&self.nodes, &mut env.random);
                machine.command(command, env);
            }
            36..42 => machine.crash(env),
            42..44 => machine.stop(env),
            44..46 => {
                machine.crash(env);
                machine.relabel(env);
            }
            46 => machine.reinstall(env),
            47..52 => self.server.crash(env),
            52..54 => self.server.stop(env),
            54..56 => self.server.copy(env),
            56 => self.server.restore(env),
            57..67 => {
                let partitioned = !env.network.links[position].partitioned && env.random.once_in(3);
                env.say(&machine.who, format_args!("partitioned: {partitioned}"));
                env.network.links[position].partitioned = partitioned;
            }
            67..74 => {
                let delay = *env.random.pick(&[1, 20, 300, 2500]);
                env.say(&machine.who, format_args!("is {delay} ms away"));
                env.network.links[position].delay = delay;
                env.network.links[position].jitter = delay;
            }
            74..84 => {
                let connections = env.network.all();
                if !connections.is_empty() {
                    let connection = *env.random.pick(&connections);
                    let (agent, controller) = (env.random.once_in(2), env.random.once_in(2));
                    env.say(
                        "world",
                        format_args!(
                            "{connection:?} is cut; agent learns: {agent}, controller: {controller}"
                        ),
                    );
                    env.network.cut(connection, agent, controller, env.now);
                }
            }
            84..90 => {
                let devices: Vec<String> =
                    machine.kernel.our_devices().into_iter().map(str::to_owned).collect();
                if !devices.is_empty() {
                    let device = env.random.pick(&devices).clone();
                    let event = match env.random.index(4) {
                        0 => Event::Vanishes(device),
                        1 => Event::Down(device),
                        2 => Event::Loses(device),
                        _ => Event::Mtu(device, 1400),
                    };
                    machine.happen(&event, env);
                }
            }
            90..92 => {
                env.ahead += Duration::from_secs(env.random.of(0..7200));
                let ahead = env.ahead;
                env.say("world", format_args!("the controller's wall clock is {ahead:?} ahead"));
            }
            92..94 => {
                if let Some((clone, of)) = self.clone {
                    let [original, clone] = self.machines.get_disjoint_mut([of, clone]).unwrap();
                    clone.clone_disk(original, env);
                    clone.start_soon(env.soon(0, 100));
                }
            }
            _ => self.let_go(),
        }
    }

    /// The agents with slow connections let go of them, with all that is still under way.
    fn let_go(&mut self) {
        for machine in self.env.network.slow() {
            self.machines[machine].let_go(&mut self.env);
        }
    }

    /// From here on nothing goes wrong any more.
    fn calm(&mut self) {
        // What is still under way on a connection that was let go of comes when nothing mends it any more.
        self.let_go();
        let env = &mut self.env;
        env.say("world", format_args!("from here on nothing goes wrong any more"));
        env.faulty = false;
        for position in 0..self.machines.len() {
            env.network.links[position] = Link::good(&mut env.random);
        }
        if let Some((clone, _)) = self.clone {
            self.machines[clone].switch_off(env);
        }
        for (position, machine) in self.machines.iter_mut().enumerate() {
            if self.clone.is_none_or(|(clone, _)| clone != position) {
                machine.start_soon(env.soon(0, 1000));
            }
        }
        self.server.start_soon(env.soon(0, 1000));
    }
}
