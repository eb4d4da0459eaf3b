//! The state machine against a simulated host, with everything going wrong that can.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use proptest::collection::{btree_set, vec};
use proptest::prelude::*;
use proptest::sample::{select, subsequence};

use super::kernel::{Event, Kernel};
use super::{net, policy, spec};
use crate::agent::reconcile::{ActualRoute, Op};
use crate::agent::state::{AgentState, OpResult, Wanted};
use crate::agent::target::Forwarding;
use crate::proto::command::{Command, CommandError, ErrorKind, TunnelSpec};
use crate::proto::model::{
    AllowedPrefix, Desired, DeviceName, Framing, Offload, Owner, TunnelName, TunnelState,
};

/// What the resolver says of a name.
type Answer = Result<Vec<IpAddr>, String>;

/// One thing that happens to an agent.
#[derive(Debug, Clone)]
enum Step {
    Command(Command, Owner),
    /// The host changes, and the agent is told at once.
    Host(Event),
    /// The names of the underlay change.
    Names(String, Answer),
    /// The resolver answers what it was asked.
    Resolve,
    /// The MTU of the route to an address changes.
    Path(IpAddr, Result<u32, String>),
    /// Operations of these kinds fail from now on.
    Fail(Failing),
    /// Time passes until something is due.
    Timeout,
}

/// Which operations fail.
#[derive(Debug, Clone, Default)]
pub(super) struct Failing {
    /// By the bit of their kind.
    kinds: u16,
    /// All of them, or every second or third.
    every: u32,
    /// Whether the kernel did it all the same.
    late: bool,
}

impl Failing {
    /// One in `every` operations of the kind of `op`.
    pub(super) fn one_in(every: u32, op: &Op) -> Self {
        Self { kinds: kind_of(op).map_or(0, |kind| 1 << kind), every, late: false }
    }
}

/// The bit of an operation's kind; `None` where it cannot fail.
fn kind_of(op: &Op) -> Option<u32> {
    match op {
        Op::Resolve(_) | Op::Publish(_) => None,
        Op::Observe => Some(0),
        Op::MeasurePaths(_) => Some(1),
        Op::RemoveRoute(_) => Some(2),
        Op::DeleteDevice(_) => Some(3),
        Op::CreateDevice(_) => Some(4),
        Op::SetMtu(..) => Some(5),
        Op::AddAddress(..) => Some(6),
        Op::RemoveAddress(..) => Some(7),
        Op::SetUp(_) => Some(8),
        Op::AddRoute(_) => Some(9),
        Op::ChangeRoute(_) => Some(10),
    }
}

/// An agent on a host.
pub(super) struct Bench {
    pub(super) state: AgentState,
    pub(super) kernel: Kernel,
    pub(super) published: Forwarding,
    names: BTreeMap<String, Answer>,
    paths: BTreeMap<IpAddr, Result<u32, String>>,
    pub(super) asked: BTreeSet<String>,
    pub(super) now: Instant,
    pub(super) failing: Failing,
    pub(super) failable: u32,
    /// Devices and routes that failed, and until when they are to be left alone at least.
    held: BTreeMap<String, Instant>,
    /// Interfaces that others made or removed since the agent last looked.
    unseen: BTreeSet<String>,
}

impl Bench {
    #[allow(clippy::disallowed_methods, reason = "any instant will do to count from")]
    pub(super) fn new(promotes: bool) -> Self {
        let now = Instant::now();
        let mut bench = Self {
            state: AgentState::new(policy(), Wanted::default(), now),
            kernel: Kernel::new(promotes),
            published: Forwarding::new(),
            names: BTreeMap::new(),
            paths: BTreeMap::new(),
            asked: BTreeSet::new(),
            now,
            failing: Failing::default(),
            failable: 0,
            held: BTreeMap::new(),
            unseen: BTreeSet::new(),
        };
        bench.kernel.happen(&Event::Appears("eth0".to_owned(), net("10.9.0.9/16")));
        bench.settle();
        bench
    }

    fn step(&mut self, step: &Step) {
        self.now += Duration::from_millis(10);
        match step {
            Step::Command(command, owner) => {
                let _ = self.command(command, *owner);
            }
            Step::Host(event) => {
                if let Event::Appears(name, _) | Event::Vanishes(name) = event {
                    self.unseen.insert(name.clone());
                }
                self.kernel.happen(event);
                self.state.handle_device_event(self.now);
                self.settle();
            }
            Step::Names(host, answer) => {
                self.names.insert(host.clone(), answer.clone());
            }
            Step::Resolve => self.resolve(),
            Step::Path(address, mtu) => {
                self.paths.insert(*address, mtu.clone());
            }
            Step::Fail(failing) => self.failing = failing.clone(),
            Step::Timeout => self.pass(),
        }
        self.check_target();
    }

    /// Gives a command as the runtime does: the host is read first, and what is accepted is made real.
    pub(super) fn command(&mut self, command: &Command, owner: Owner) -> Result<Vec<Op>, CommandError> {
        self.unseen.clear();
        self.state.handle_observed(self.kernel.actual(), self.now);
        self.settle();
        let before = self.state.desired().clone();
        let faults: BTreeSet<TunnelName> = self.state.target().faults.keys().cloned().collect();
        let change = match self.state.handle_command(command, owner) {
            Ok(change) => change,
            Err(error) => {
                assert_eq!(*self.state.desired(), before);
                assert_eq!(self.settle(), [], "after the refusal {error:?}");
                return Err(error);
            }
        };
        let (name, is_change) = (command.tunnel().clone(), change.is_change);
        assert_eq!(is_change, change.wanted.desired != before);
        self.state.commit(change, self.now);
        if is_change && let Some(tunnel) = self.state.desired().tunnels.get(&name) {
            self.held.retain(|held, _| held.split(' ').next() != Some(tunnel.device.as_str()));
        }
        self.check_others_kept(&before, owner, &name);
        // Nobody loses anything to a new tunnel: it would have been refused. A deleted one may have kept down an older
        // tunnel, which now claims what is its own.
        if let Command::Add { .. } = command {
            for (other, fault) in &self.state.target().faults {
                let known = faults.contains(other) && (*other != name || !is_change);
                assert!(
                    known || fault.kind == ErrorKind::Unavailable,
                    "{other} has {fault:?} by {command:?}"
                );
            }
        }
        let ops = self.settle();
        assert!(is_change || ops.is_empty(), "{ops:?} without a change");
        Ok(ops)
    }

    /// One owner's command leaves what the other wants, and one tunnel's the other tunnels.
    fn check_others_kept(&self, before: &Desired, owner: Owner, name: &TunnelName) {
        let after = self.state.desired();
        let others = |desired: &Desired| {
            let mut others = desired.tunnels.clone();
            others.remove(name);
            others
        };
        assert_eq!(others(before), others(after));
        let devices = |desired: &Desired| {
            let mut devices = desired.devices.clone();
            devices.retain(|_, device| device.owner != owner);
            devices
        };
        assert_eq!(devices(before), devices(after));
        let tunnels = |desired: &Desired| {
            let mut tunnels = desired.tunnels.clone();
            tunnels.retain(|_, tunnel| tunnel.owner != owner);
            tunnels
        };
        assert_eq!(tunnels(before), tunnels(after));
    }

    fn resolve(&mut self) {
        for host in std::mem::take(&mut self.asked) {
            let answer = self.names.get(&host).cloned().unwrap_or_else(|| Err("no such host".to_owned()));
            self.state.handle_resolved(&host, answer, self.now);
            self.settle();
        }
    }

    pub(super) fn pass(&mut self) {
        self.now = self.now.max(self.state.poll_timeout());
        // What came to light by the first may make an audit due that was not.
        for _ in 0..2 {
            self.state.handle_timeout(self.now);
            self.settle();
            if self.state.poll_timeout() > self.now {
                return;
            }
        }
        panic!("the timeout is due for ever");
    }

    /// Performs all that is to be done; each operation must be one that may be done.
    pub(super) fn settle(&mut self) -> Vec<Op> {
        let tunnels = self.state.desired().tunnels.len().max(self.kernel.our_devices().len());
        let bound = 20 + 12 * tunnels;
        let mut ops = Vec::new();
        while let Some(op) = self.state.poll_op() {
            ops.push(op.clone());
            assert!(ops.len() <= bound, "no end: {ops:#?}");
            if let Op::Resolve(host) = &op {
                self.asked.insert(host.clone());
                continue;
            }
            self.check_op(&op);
            let result = self.perform(&op);
            if let OpResult::Failed(_) = &result
                && let Some(key) = key_of(&op)
            {
                self.held.insert(key, self.now + Duration::from_secs(1));
            }
            self.state.handle_op_result(op, result, self.now);
        }
        ops
    }

    fn perform(&mut self, op: &Op) -> OpResult {
        let fails = kind_of(op).is_some_and(|kind| {
            self.failing.kinds & (1 << kind) != 0 && {
                self.failable += 1;
                self.failable.is_multiple_of(self.failing.every.max(1))
            }
        });
        if fails {
            if self.failing.late {
                let _ = self.kernel.perform(op);
                self.unseen.extend(device_of(op));
            }
            return OpResult::Failed("it fails".to_owned());
        }
        match op {
            Op::Observe => {
                self.unseen.clear();
                OpResult::Observed(self.kernel.actual())
            }
            Op::MeasurePaths(addresses) => {
                let path = |address: &IpAddr| self.paths.get(address).cloned().unwrap_or(Ok(1500));
                OpResult::Measured(addresses.iter().map(|address| (*address, path(address))).collect())
            }
            Op::Publish(forwarding) => {
                self.published = forwarding.clone();
                OpResult::Done
            }
            Op::Resolve(_)
            | Op::RemoveRoute(_)
            | Op::DeleteDevice(_)
            | Op::CreateDevice(_)
            | Op::SetMtu(..)
            | Op::AddAddress(..)
            | Op::RemoveAddress(..)
            | Op::SetUp(_)
            | Op::AddRoute(_)
            | Op::ChangeRoute(_) => match self.kernel.perform(op) {
                Ok(()) => OpResult::Done,
                Err(reason) => OpResult::Failed(reason),
            },
        }
    }

    fn check_op(&self, op: &Op) {
        let device = device_of(op);
        if let Some(device) = &device
            && !self.unseen.contains(device)
        {
            assert!(!self.kernel.is_foreign(device), "{op:?} touches what is not ours");
        }
        let held = |key: &str| self.held.get(key).is_some_and(|until| *until > self.now);
        if let Some(key) = key_of(op) {
            assert!(!held(&key), "{op:?} comes too soon after a failure");
        }
        match op {
            Op::Publish(forwarding) => {
                for device in forwarding.keys().map(DeviceName::as_str) {
                    let exists = self.kernel.is_ours(device) || self.unseen.contains(device);
                    assert!(exists, "{device} is published and does not exist");
                }
            }
            Op::DeleteDevice(device) => {
                assert!(!self.published.contains_key(device), "{device} is deleted while it carries packets");
            }
            Op::AddRoute(route) | Op::ChangeRoute(route) => {
                assert!(!held(route.device.as_str()), "{op:?} over a device that failed");
                assert!(self.published.contains_key(&route.device), "{op:?} leads packets to nobody");
            }
            Op::Observe
            | Op::Resolve(_)
            | Op::MeasurePaths(_)
            | Op::RemoveRoute(_)
            | Op::CreateDevice(_)
            | Op::SetMtu(..)
            | Op::AddAddress(..)
            | Op::RemoveAddress(..)
            | Op::SetUp(_) => {}
        }
    }

    /// What is accepted is consistent, and no two tunnels have the same.
    fn check_target(&self) {
        let (desired, target) = (self.state.desired(), self.state.target());
        assert!(desired.is_consistent(), "{desired:?}");
        let mut endpoints = BTreeSet::new();
        let mut addresses = BTreeSet::new();
        let mut preferences = BTreeSet::new();
        let mut networks: BTreeMap<IpNet, &DeviceName> = BTreeMap::new();
        let mut whole: BTreeMap<&DeviceName, bool> = BTreeMap::new();
        let accepted = || desired.tunnels.iter().filter(|(name, _)| !target.faults.contains_key(*name));
        for (name, tunnel) in accepted() {
            let device = desired.devices.get(&tunnel.device).unwrap();
            if let Some(endpoint) = target.endpoints.get(name) {
                assert!(endpoints.insert(*endpoint), "{name} shares {endpoint}");
                let port_alone = (endpoint.ip(), tunnel.remote.port);
                assert!(addresses.insert(port_alone), "{name} shares {port_alone:?}");
            }
            for allowed in &tunnel.allowed_prefixes {
                let all = (&tunnel.device, allowed.prefix, allowed.preference);
                assert!(preferences.insert(all), "{name} shares {all:?}");
            }
            for network in device.addresses.iter().map(IpNet::trunc).chain(tunnel.routes.iter().copied()) {
                let on = *networks.entry(network).or_insert(&tunnel.device);
                assert_eq!(on, &tunnel.device, "{name} shares {network}");
            }
            let alone = tunnel.allowed_prefixes.is_empty();
            let others = whole.insert(&tunnel.device, alone);
            assert!(others.is_none_or(|other| !other && !alone), "{name} shares {}", tunnel.device);
        }
        for endpoint in accepted().filter_map(|(name, _)| target.endpoints.get(name)) {
            let covering = networks.keys().find(|network| network.contains(&endpoint.ip()));
            assert_eq!(covering, None, "the tunnel to {endpoint} runs inside a tunnel");
        }
    }

    /// Nothing fails any more, and time passes until all is as it should be.
    pub(super) fn converge(&mut self) {
        self.failing = Failing::default();
        let end = self.now + Duration::from_secs(200);
        for _ in 0..200 {
            if self.now >= end {
                break;
            }
            self.resolve();
            self.pass();
        }
        assert!(self.now >= end, "too many timeouts");
        self.resolve();
        self.check_target();
        self.check_converged();
        self.state.handle_device_event(self.now);
        assert_eq!(self.settle(), [Op::Observe], "converged, and still something to do");
    }

    pub(super) fn check_converged(&self) {
        let target = self.state.target();
        let actual = self.kernel.actual();
        let wanted: BTreeSet<&str> = target.devices.keys().map(DeviceName::as_str).collect();
        assert_eq!(self.kernel.our_devices(), wanted);
        for (name, device) in &target.devices {
            let link = &actual.links[name.as_str()];
            assert!(link.up, "{name} is down");
            assert_eq!(link.mtu, u32::from(device.mtu), "mtu of {name}");
            let mut addresses = link.addresses.clone();
            addresses.retain(|address| !address.to_string().starts_with("fe80:"));
            assert_eq!(addresses, device.addresses, "addresses of {name}");
        }
        let routes: BTreeSet<ActualRoute> = target
            .routes
            .iter()
            .map(|route| ActualRoute {
                prefix: route.prefix,
                device: route.device.to_string(),
                mtu: route.mtu.map(u32::from),
            })
            .collect();
        assert_eq!(actual.routes, routes);
        assert_eq!(self.published, target.forwarding);
        for status in self.state.statuses() {
            let faulty = target.faults.contains_key(&status.name);
            let resolved = status.endpoint.is_some();
            let path = status
                .endpoint
                .map_or(Ok(1500), |endpoint| self.paths.get(&endpoint.ip()).cloned().unwrap_or(Ok(1500)));
            let fails = faulty || !resolved || path.is_err();
            let state = &status.state;
            assert_eq!(matches!(state, TunnelState::Failed(_)), fails, "{}: {state:?}", status.name);
            assert!(fails || *state == TunnelState::Waiting(None), "{}: {state:?}", status.name);
        }
    }

    /// The agent ends, and leaves nothing behind.
    fn remove(mut self) {
        for op in self.state.removal() {
            self.check_op(&op);
            assert_eq!(self.perform(&op), OpResult::Done);
        }
        assert_eq!(self.kernel.our_devices(), BTreeSet::new());
        assert_eq!(self.kernel.actual().routes, BTreeSet::new());
    }
}

/// What fails with an operation: a device, or a route over one.
fn key_of(op: &Op) -> Option<String> {
    match op {
        Op::AddRoute(route) | Op::ChangeRoute(route) => {
            Some(format!("{} {} {:?}", route.device, route.prefix, route.mtu))
        }
        Op::DeleteDevice(_)
        | Op::CreateDevice(_)
        | Op::SetMtu(..)
        | Op::AddAddress(..)
        | Op::RemoveAddress(..)
        | Op::SetUp(_) => device_of(op),
        Op::Observe | Op::Resolve(_) | Op::MeasurePaths(_) | Op::Publish(_) | Op::RemoveRoute(_) => None,
    }
}

/// The device that an operation changes or leads to.
fn device_of(op: &Op) -> Option<String> {
    match op {
        Op::AddRoute(route) | Op::ChangeRoute(route) => Some(route.device.to_string()),
        Op::RemoveRoute(route) => Some(route.device.clone()),
        Op::DeleteDevice(device)
        | Op::CreateDevice(device)
        | Op::SetMtu(device, _)
        | Op::AddAddress(device, _)
        | Op::RemoveAddress(device, _)
        | Op::SetUp(device) => Some(device.to_string()),
        Op::Observe | Op::Resolve(_) | Op::MeasurePaths(_) | Op::Publish(_) => None,
    }
}

const DEVICES: [&str; 4] = ["d0", "d1", "d2", "d3"];
const HOSTS: [&str; 2] = ["h1", "h2"];
/// The last is on the network of a device.
const UNDERLAY: [&str; 5] = ["10.9.0.1", "10.9.0.2", "10.9.7.1", "fd09::1", "10.2.0.7"];
const PREFIXES: [&str; 5] = ["10.1.0.0/24", "10.2.0.0/24", "192.168.1.0/24", "192.168.0.0/16", "fd00:2::/64"];
/// Those of a device, by its position, and one more of each.
const ADDRESSES: [&[&str]; 6] = [
    &["10.1.0.1/24", "10.1.0.2/24"],
    &["10.2.0.1/24", "fd00:2::1/64"],
    &["fd00:3::1/64"],
    &["10.4.0.1/30"],
    &["10.1.0.2/24", "192.168.9.1/24"],
    &["10.9.7.2/24"],
];

fn name(text: &str) -> TunnelName {
    text.parse().unwrap()
}

fn some_prefixes() -> impl Strategy<Value = Vec<AllowedPrefix>> {
    let preferences = vec(0..3u32, PREFIXES.len());
    let chosen = prop_oneof![
        2 => Just(Vec::new()),
        3 => subsequence(PREFIXES.to_vec(), 1..=4),
    ];
    (chosen, preferences).prop_map(|(prefixes, preferences)| {
        let allowed = prefixes.into_iter().zip(preferences);
        allowed.map(|(prefix, preference)| AllowedPrefix { prefix: net(prefix), preference }).collect()
    })
}

fn some_routes() -> impl Strategy<Value = Vec<IpNet>> {
    prop_oneof![
        3 => Just(Vec::new()),
        3 => subsequence(PREFIXES.to_vec(), 1..=3),
        1 => Just(vec!["10.9.0.0/24"]),
    ]
    .prop_map(|routes| routes.into_iter().map(net).collect())
}

fn some_tunnel() -> impl Strategy<Value = TunnelSpec> {
    let device = 0..DEVICES.len();
    let addresses = prop_oneof![
        4 => Just(None),
        1 => Just(Some(Vec::new())),
        1 => select(ADDRESSES.to_vec()).prop_map(|set| Some(set.to_vec())),
    ];
    let remote = prop_oneof![
        4 => select(UNDERLAY.to_vec()).prop_map(str::to_owned),
        2 => select(HOSTS.to_vec()).prop_map(str::to_owned),
        1 => (select(vec!["10.9.0.1", "10.9.0.2", "h1"]), 5000..5002u16)
            .prop_map(|(host, port)| format!("{host}:{port}")),
    ];
    let mtu = select(vec![None, None, Some(600), Some(1300), Some(1472), Some(9000)]);
    let framing = select(vec![Framing::Raw, Framing::Pi]);
    let without = btree_set(select(Offload::ALL.to_vec()), 0..2);
    (0..6, device, addresses, remote, mtu, framing, some_prefixes(), some_routes(), without).prop_map(
        |(tunnel, device, addresses, remote, mtu, framing, allowed_prefixes, routes, without)| {
            let addresses = addresses.unwrap_or_else(|| ADDRESSES[device].to_vec());
            TunnelSpec {
                mtu: mtu.map(|mtu: u32| mtu.try_into().unwrap()),
                framing,
                allowed_prefixes,
                routes,
                without,
                ..spec(&format!("t{tunnel}"), DEVICES[device], &addresses, &remote)
            }
        },
    )
}

fn some_owner() -> impl Strategy<Value = Owner> {
    prop_oneof![4 => Just(Owner::Local), 1 => Just(Owner::Controller)]
}

fn some_command() -> impl Strategy<Value = Command> {
    prop_oneof![
        6 => (some_tunnel(), any::<bool>())
            .prop_map(|(tunnel, replace)| Command::Add { tunnel: Box::new(tunnel), replace }),
        1 => (0..6).prop_map(|n| Command::Delete { name: name(&format!("t{n}")) }),
    ]
}

fn some_step() -> impl Strategy<Value = Step> {
    let foreign = select(vec!["eth1", "eth2", "d0", "d3"]).prop_map(str::to_owned);
    let device = || select(DEVICES.to_vec()).prop_map(str::to_owned);
    let connected =
        select(vec!["10.200.0.1/16", "192.168.1.5/24", "10.4.0.2/30", "10.1.0.9/16"]).prop_map(net);
    let stray = select(vec!["10.77.0.1/24", "fe80::1/64", "10.1.0.77/24"]).prop_map(net);
    let event = prop_oneof![
        3 => (foreign.clone(), connected).prop_map(|(name, address)| Event::Appears(name, address)),
        3 => foreign.prop_map(Event::Vanishes),
        2 => device().prop_map(Event::Vanishes),
        1 => device().prop_map(Event::Down),
        1 => (device(), select(vec![900, 1400])).prop_map(|(name, mtu)| Event::Mtu(name, mtu)),
        1 => (device(), stray).prop_map(|(name, address)| Event::Gains(name, address)),
        1 => device().prop_map(Event::Loses),
        1 => device().prop_map(Event::Unroutes),
    ];
    let address = || select(UNDERLAY.to_vec()).prop_map(|text| text.parse::<IpAddr>().unwrap());
    let answer = prop_oneof![
        4 => vec(address(), 0..3).prop_map(Ok),
        1 => Just(Err("it times out".to_owned())),
    ];
    let path = prop_oneof![
        4 => select(vec![576, 1400, 1500, 9000]).prop_map(Ok),
        1 => Just(Err("network is unreachable".to_owned())),
    ];
    let failing = (any::<u16>(), any::<u16>(), 1..4u32, any::<bool>())
        .prop_map(|(some, few, every, late)| Failing { kinds: some & few, every, late });
    prop_oneof![
        12 => (some_command(), some_owner()).prop_map(|(command, owner)| Step::Command(command, owner)),
        4 => event.prop_map(Step::Host),
        2 => (select(HOSTS.to_vec()), answer).prop_map(|(host, answer)| Step::Names(host.to_owned(), answer)),
        3 => Just(Step::Resolve),
        1 => (address(), path).prop_map(|(address, path)| Step::Path(address, path)),
        2 => failing.prop_map(Step::Fail),
        2 => Just(Step::Fail(Failing::default())),
        3 => Just(Step::Timeout),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_the_host_becomes_what_is_wanted(
        steps in vec(some_step(), 1..60),
        promotes: bool,
    ) {
        let mut bench = Bench::new(promotes);
        for step in &steps {
            bench.step(step);
        }
        bench.converge();
        bench.remove();
    }

    #[test]
    fn commands_that_come_together_do_as_one_after_the_other(
        steps in vec(some_step(), 0..30),
        mut commands in vec((some_command(), some_owner()), 1..6),
    ) {
        let mut names = BTreeSet::new();
        commands.retain(|(command, _)| names.insert(command.tunnel().clone()));
        let [mut one_by_one, mut together] = [(); 2].map(|()| {
            let mut bench = Bench::new(true);
            steps.iter().for_each(|step| bench.step(step));
            bench
        });
        let faults = together.state.target().faults.clone();
        let commands: Vec<_> = commands.iter().map(|(command, owner)| (command, *owner)).collect();
        let (change, verdicts) = together.state.handle_commands(&commands);
        prop_assert_eq!(verdicts.len(), commands.len());
        prop_assert_eq!(change.is_change, verdicts.contains(&Ok(true)));
        let now = one_by_one.now;
        let all_accepted = commands.iter().all(|(command, owner)| {
            let change = one_by_one.state.handle_command(command, *owner);
            change.map(|change| one_by_one.state.commit(change, now)).is_ok()
        });
        if all_accepted {
            prop_assert!(verdicts.iter().all(Result::is_ok), "{verdicts:?}");
            prop_assert_eq!(&change.wanted.desired, one_by_one.state.desired());
        }
        together.state.commit(change, now);
        let is_accepted = |name: &TunnelName| {
            commands.iter().zip(&verdicts).any(|((command, _), verdict)| {
                command.tunnel() == name && *verdict == Ok(true)
            })
        };
        let deletes = commands.iter().any(|(command, _)| matches!(command, Command::Delete { .. }));
        for (name, fault) in &together.state.target().faults {
            // A deleted tunnel may have kept down an older one, which now claims what is its own.
            let is_known = deletes || faults.contains_key(name) && !is_accepted(name);
            prop_assert!(is_known || fault.kind == ErrorKind::Unavailable, "{name}: {fault:?}");
        }
        // What is changed is tried at once.
        together.held.clear();
        together.settle();
        together.converge();
    }

    #[test]
    fn a_restart_finds_what_was_wanted(steps in vec(some_step(), 1..40)) {
        let mut bench = Bench::new(true);
        for step in &steps {
            bench.step(step);
        }
        bench.converge();
        let mut after = Bench::new(true);
        after.names = bench.names.clone();
        after.paths = bench.paths.clone();
        after.kernel = bench.kernel.clone();
        for device in bench.kernel.our_devices() {
            after.kernel.happen(&Event::Vanishes(device.to_owned()));
        }
        after.state = AgentState::new(policy(), bench.state.desired().clone().into(), after.now);
        after.settle();
        after.converge();
        prop_assert_eq!(after.state.desired(), bench.state.desired());
    }

    #[test]
    fn a_change_of_one_tunnel_touches_no_other_device(which in 0..4usize, changes in vec(some_change(), 1..8)) {
        let mut bench = Bench::new(true);
        let mut tunnels = [
            spec("t0", "d0", &["10.1.0.1/24"], "10.99.0.1"),
            spec("t1", "d1", &["10.2.0.1/24"], "10.99.0.2"),
            spec("t2", "d1", &[], "10.99.0.3:6000"),
            spec("t3", "d2", &["10.4.0.1/30", "fd00:3::1/64"], "h1"),
        ];
        for (number, tunnel) in tunnels.iter_mut().enumerate() {
            let prefix = net(&format!("10.1{number}.0.0/16"));
            tunnel.allowed_prefixes = vec![AllowedPrefix { prefix, preference: 0 }];
            tunnel.routes = vec![net(&format!("10.1{number}.0.0/24"))];
            bench.command(&Command::Add { tunnel: Box::new(tunnel.clone()), replace: false }, Owner::Local).unwrap();
        }
        bench.names.insert("h1".to_owned(), Ok(vec!["10.99.0.4".parse().unwrap()]));
        bench.names.insert("h2".to_owned(), Ok(vec!["10.99.1.4".parse().unwrap()]));
        bench.paths.insert("10.99.0.3".parse().unwrap(), Ok(1400));
        bench.converge();
        let tunnel = &mut tunnels[which];
        for change in changes {
            change.apply(tunnel, which);
            let command = Command::Add { tunnel: Box::new(tunnel.clone()), replace: true };
            check_local(&bench.command(&command, Owner::Local).unwrap(), tunnel);
            for host in std::mem::take(&mut bench.asked) {
                let answer = bench.names[&host].clone();
                bench.state.handle_resolved(&host, answer, bench.now);
                check_local(&bench.settle(), tunnel);
            }
            bench.check_converged();
        }
        prop_assert!(bench.state.target().faults.is_empty());
    }
}

/// A change of one tunnel that leaves its device.
#[derive(Debug, Clone)]
enum Local {
    Mtu(Option<u32>),
    Route(u8),
    Remote(u8),
    Name,
}

impl Local {
    fn apply(&self, tunnel: &mut TunnelSpec, number: usize) {
        match self {
            Self::Mtu(mtu) => tunnel.mtu = mtu.map(|mtu| mtu.try_into().unwrap()),
            Self::Route(third) => tunnel.routes = vec![net(&format!("10.1{number}.{third}.0/24"))],
            Self::Remote(last) => tunnel.remote = format!("10.99.2.{last}").parse().unwrap(),
            Self::Name => tunnel.remote = "h2".parse().unwrap(),
        }
    }
}

fn some_change() -> impl Strategy<Value = Local> {
    prop_oneof![
        select(vec![None, Some(1280), Some(1400), Some(9000)]).prop_map(Local::Mtu),
        (0..8u8).prop_map(Local::Route),
        (1..9u8).prop_map(Local::Remote),
        Just(Local::Name),
    ]
}

/// Every operation is about the device of `tunnel` or its routes, and no device goes or comes.
fn check_local(ops: &[Op], tunnel: &TunnelSpec) {
    let published = ops.iter().filter(|op| matches!(op, Op::Publish(_))).count();
    assert!(published <= 1, "{ops:?}");
    for op in ops {
        let device = device_of(op);
        assert!(device.is_none_or(|device| device == tunnel.device.as_str()), "{op:?} for {tunnel:?}");
        let of_device = op.device().is_none() || matches!(op, Op::SetMtu(..));
        assert!(of_device, "{op:?} for {tunnel:?}");
    }
}
