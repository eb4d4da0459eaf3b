//! The state machine on a simulated host: every operation that it asks for is checked and performed, or fails as it is to.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use ipnet::IpNet;

use super::kernel::{Event, Kernel};
use super::{net, policy};
use crate::agent::reconcile::{ActualRoute, Op};
use crate::agent::state::{AgentState, OpResult, Wanted};
use crate::agent::target::{Forwarding, ForwardingDevice, Located};
use crate::proto::command::{Command, CommandError, ErrorKind};
use crate::proto::model::{Desired, DeviceName, MeshName, Owner, PublicKey, TunnelName, TunnelState};

/// What the resolver says of a name.
pub(super) type Answer = Result<Vec<IpAddr>, String>;

/// One thing that happens to an agent.
#[derive(Debug, Clone)]
pub(super) enum Step {
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
    pub(super) kinds: u16,
    /// All of them, or every second or third.
    pub(super) every: u32,
    /// Whether the kernel did it all the same.
    pub(super) late: bool,
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
        Op::Resolve(_) | Op::Publish(_) | Op::RemoveKey(_) => None,
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
        Op::OpenKey(_) => Some(11),
    }
}

/// This host's key of a mesh.
pub(super) fn key_of_mesh(mesh: &MeshName) -> PublicKey {
    let mut bytes = [7; 32];
    bytes.iter_mut().zip(mesh.as_str().bytes()).for_each(|(to, from)| *to = from);
    bytes.into()
}

/// An agent on a host.
pub(super) struct Bench {
    pub(super) state: AgentState,
    pub(super) kernel: Kernel,
    pub(super) published: Forwarding,
    pub(super) names: BTreeMap<String, Answer>,
    pub(super) paths: BTreeMap<IpAddr, Result<u32, String>>,
    pub(super) asked: BTreeSet<String>,
    pub(super) now: Instant,
    pub(super) failing: Failing,
    pub(super) failable: u32,
    /// Devices and routes that failed, and until when they are to be left alone at least.
    pub(super) held: BTreeMap<String, Instant>,
    /// Interfaces that others made or removed since the agent last looked.
    unseen: BTreeSet<String>,
    /// The meshes whose keys are open.
    pub(super) keys: BTreeSet<MeshName>,
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
            keys: BTreeSet::new(),
        };
        bench.kernel.happen(&Event::Appears("eth0".to_owned(), net("10.9.0.9/16")));
        bench.settle();
        bench
    }

    pub(super) fn step(&mut self, step: &Step) {
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
            Op::OpenKey(mesh) => {
                assert!(self.keys.insert(mesh.clone()), "the key of {mesh} is open");
                OpResult::Opened(key_of_mesh(mesh))
            }
            Op::RemoveKey(mesh) => {
                let uses = |device: &ForwardingDevice| device.key.as_ref() == Some(mesh);
                assert!(!self.published.values().any(uses), "the key of {mesh} is in use");
                assert!(self.keys.remove(mesh), "the key of {mesh} is not open");
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
            | Op::OpenKey(_)
            | Op::RemoveKey(_)
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
            // Encrypted ones are told apart by their keys.
            let is_plain = !tunnel.is_encrypted();
            for (endpoint, port) in self.places(name).into_iter().filter(|_| is_plain) {
                assert!(endpoints.insert(endpoint), "{name} shares {endpoint}");
                let port_alone = (endpoint.ip(), port);
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
        for (endpoint, _) in accepted().flat_map(|(name, _)| self.places(name)) {
            let covering = networks.keys().find(|network| network.contains(&endpoint.ip()));
            assert_eq!(covering, None, "the tunnel to {endpoint} runs inside a tunnel");
        }
    }

    /// All places of a tunnel's peer that are known, with the ports that are named.
    fn places(&self, name: &TunnelName) -> Vec<(SocketAddr, Option<u16>)> {
        let target = self.state.target();
        if let Some(all) = target.places_of.get(name) {
            assert!(
                all.iter().any(|place| target.endpoints.get(name) == Some(&place.address)),
                "{name}: {all:?}"
            );
            let named = |place: &Located| place.exact_port.then_some(place.address.port());
            return all.iter().map(|place| (place.address, named(place))).collect();
        }
        let Some(endpoint) = target.endpoints.get(name) else { return Vec::new() };
        let remotes =
            self.state.desired().tunnels.get(name).and_then(|tunnel| tunnel.remote.as_ref()).unwrap();
        assert_eq!(remotes.count(), 1, "{name}");
        vec![(*endpoint, remotes.first().port)]
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
        assert_eq!(self.state.unmet(), BTreeMap::new());
        for status in self.state.statuses() {
            let faulty = target.faults.contains_key(&status.name);
            let resolved = status.endpoint.is_some() || status.tunnel.remote.is_none();
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
    pub(super) fn remove(mut self) {
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
        Op::Observe
        | Op::Resolve(_)
        | Op::MeasurePaths(_)
        | Op::OpenKey(_)
        | Op::RemoveKey(_)
        | Op::Publish(_)
        | Op::RemoveRoute(_) => None,
    }
}

/// The device that an operation changes or leads to.
pub(super) fn device_of(op: &Op) -> Option<String> {
    match op {
        Op::AddRoute(route) | Op::ChangeRoute(route) => Some(route.device.to_string()),
        Op::RemoveRoute(route) => Some(route.device.clone()),
        Op::DeleteDevice(device)
        | Op::CreateDevice(device)
        | Op::SetMtu(device, _)
        | Op::AddAddress(device, _)
        | Op::RemoveAddress(device, _)
        | Op::SetUp(device) => Some(device.to_string()),
        Op::Observe
        | Op::Resolve(_)
        | Op::MeasurePaths(_)
        | Op::OpenKey(_)
        | Op::RemoveKey(_)
        | Op::Publish(_) => None,
    }
}
