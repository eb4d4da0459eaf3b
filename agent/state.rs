//! The agent's state: what is wanted, what is known, and what is to be done next.
//!
//! Drive it so: after each `handle_*` call [`AgentState::poll_op`] until it gives nothing more, hand each result to
//! [`AgentState::handle_op_result`] before asking again, and call [`AgentState::handle_timeout`] when
//! [`AgentState::poll_timeout`] says so. `now` never goes back.

mod command;
mod status;
mod wanted;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use self::wanted::Derived;
pub use self::wanted::Wanted;
use crate::agent::reconcile::{self, Actual, Held, Op, Route};
use crate::agent::session::Base;
use crate::agent::target::{self, Facts, Forwarding, Policy, Target};
use crate::proto::command::{Command, CommandError, ErrorKind};
use crate::proto::model::{Desired, DeviceName, Host, Owner, TunnelName, is_underlay_address};
use crate::proto::session::ItemId;

/// How often the kernel's state is read again, and compared.
const AUDIT: Duration = Duration::from_secs(60);
/// The same while a tunnel cannot be had: what stands in its way may be gone.
const AUDIT_TROUBLED: Duration = Duration::from_secs(5);
/// How soon a device or route that failed is tried again; doubled up to [`RETRY_MOST`].
const RETRY_LEAST: Duration = Duration::from_secs(1);
/// The longest wait before a failed device or route is tried again.
const RETRY_MOST: Duration = Duration::from_secs(30);
/// How soon a name that did not resolve is asked for again.
const RESOLVE_RETRY: Duration = Duration::from_secs(5);
/// How long an answer of the resolver is believed.
const RESOLVE_AGAIN: Duration = Duration::from_secs(60);

/// A change of the wanted state that was accepted but is not kept yet. It becomes real by [`AgentState::commit`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use = "a change that is not committed never happens"]
pub struct Change {
    /// What is wanted with the change: what is to be kept.
    pub wanted: Wanted,
    /// Whether anything differs from before.
    pub is_change: bool,
    /// The tunnels that are tried at once.
    tried: BTreeSet<TunnelName>,
    refused: BTreeMap<ItemId, String>,
}

/// What came of an operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OpResult {
    /// It is done.
    Done,
    /// [`Op::Observe`]: what the kernel holds.
    Observed(Actual),
    /// [`Op::MeasurePaths`]: the MTU of each route in bytes.
    Measured(BTreeMap<IpAddr, Result<u32, String>>),
    /// It failed, in words why.
    Failed(String),
}

/// A device or route that failed.
#[derive(Debug, Clone)]
struct Failure {
    reason: String,
    retry_at: Instant,
    wait: Duration,
}

impl Failure {
    fn after(earlier: Option<&Self>, reason: String, now: Instant) -> Self {
        let wait = earlier.map_or(RETRY_LEAST, |earlier| (earlier.wait * 2).min(RETRY_MOST));
        Self { reason, retry_at: now + wait, wait }
    }
}

/// A host name that a remote has.
#[derive(Debug, Clone)]
struct Lookup {
    due: Instant,
    pending: bool,
}

/// The agent's state machine.
#[derive(Debug)]
pub struct AgentState {
    policy: Policy,
    wanted: Wanted,
    /// What of the controller's is not among what is wanted, and why.
    refused: BTreeMap<ItemId, String>,
    facts: Facts,
    target: Target,
    published: Forwarding,
    lookups: BTreeMap<String, Lookup>,
    /// The endpoints that were measured since the last audit, and why one has no path.
    paths: BTreeMap<IpAddr, Option<String>>,
    failed_devices: BTreeMap<DeviceName, Failure>,
    failed_routes: BTreeMap<Route, Failure>,
    queue: VecDeque<Op>,
    observe: bool,
    audited_at: Instant,
    now: Instant,
}

impl AgentState {
    /// The state at start: `wanted` as it was kept, nothing known yet. What the controller wants is understood anew:
    /// an earlier release may have understood less.
    pub fn new(policy: Policy, wanted: Wanted, now: Instant) -> Self {
        let Derived { wanted, refused, changed: _ } = wanted.derived(|_| false);
        let mut state = Self {
            policy,
            wanted,
            refused,
            facts: Facts::default(),
            target: Target::default(),
            published: Forwarding::new(),
            lookups: BTreeMap::new(),
            paths: BTreeMap::new(),
            failed_devices: BTreeMap::new(),
            failed_routes: BTreeMap::new(),
            queue: VecDeque::new(),
            observe: true,
            audited_at: now,
            now,
        };
        state.rebuild();
        state
    }

    /// What is wanted.
    pub fn desired(&self) -> &Desired {
        &self.wanted.desired
    }

    /// What is kept of the controller.
    pub fn base(&self) -> Option<&Base> {
        self.wanted.controller.as_ref()
    }

    /// What the kernel and the data path should hold.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// The operations that remove what the agent made, for its end.
    pub fn removal(&self) -> Vec<Op> {
        let mut actual = self.facts.actual.clone();
        let mut published = self.published.clone();
        let mut all = Vec::new();
        loop {
            let ops = reconcile::next_ops(&actual, &published, &Target::default(), &Held::default());
            if ops.is_empty() {
                return all;
            }
            for op in ops {
                reconcile::apply(&mut actual, &op);
                if let Op::Publish(forwarding) = &op {
                    published = forwarding.clone();
                }
                all.push(op);
            }
        }
    }

    /// Judges a command. It changes nothing: keep the change, then [`Self::commit`] it.
    pub fn handle_command(&self, command: &Command, owner: Owner) -> Result<Change, CommandError> {
        let mut desired = self.desired().clone();
        match command {
            Command::Add { tunnel, replace } => {
                command::add(&mut desired, tunnel, *replace, owner)?;
                if desired != *self.desired() {
                    // What works is not upset by what does not, not even when that could work again.
                    desired.rank_last(|name| *name != tunnel.name && self.is_faulty(name));
                    self.check_faults(&desired, &tunnel.name)?;
                }
            }
            Command::Delete { name } => command::delete(&mut desired, name, owner)?,
        }
        let mut change = self.change(Wanted { desired, controller: self.wanted.controller.clone() });
        change.tried.insert(command.tunnel().clone());
        Ok(change)
    }

    /// Takes in what the controller wants; `None`: it has no say any more. What of it clashes is at fault, and nothing
    /// is refused. It changes nothing: keep the change, then [`Self::commit`] it.
    pub fn handle_wanted(&self, controller: Option<Base>) -> Change {
        let mut desired = self.desired().clone();
        if controller.is_none() {
            desired.retain(|_, tunnel| tunnel.owner == Owner::Local);
        }
        self.change(Wanted { desired, controller })
    }

    fn change(&self, wanted: Wanted) -> Change {
        let Derived { wanted, refused, changed } = wanted.derived(|name| self.is_faulty(name));
        let is_change = wanted != self.wanted;
        Change { wanted, is_change, tried: changed, refused }
    }

    fn is_faulty(&self, name: &TunnelName) -> bool {
        self.target.faults.contains_key(name)
    }

    /// Refuses a wanted state in which `name`, or because of it another tunnel, cannot be had.
    fn check_faults(&self, desired: &Desired, name: &TunnelName) -> Result<(), CommandError> {
        let after = target::build(desired, &self.facts, &self.policy);
        let is_new = |(other, fault): &(&TunnelName, &CommandError)| {
            *other == name || self.target.faults.get(*other) != Some(*fault)
        };
        let unresolved = |fault: &CommandError| fault.kind == ErrorKind::Unavailable;
        match after.faults.iter().find(|entry| is_new(entry) && !unresolved(entry.1)) {
            Some((_, fault)) => Err(fault.clone()),
            None => Ok(()),
        }
    }

    /// Makes a change real.
    pub fn commit(&mut self, change: Change, now: Instant) {
        self.now = now;
        if !change.is_change {
            return;
        }
        let Change { wanted, tried, refused, is_change: _ } = change;
        // Whoever changes a tunnel expects it to be tried at once.
        let tried = tried.iter().filter_map(|name| wanted.desired.tunnels.get(name));
        let devices: BTreeSet<&DeviceName> = tried.map(|tunnel| &tunnel.device).collect();
        self.failed_devices.retain(|device, _| !devices.contains(device));
        self.failed_routes.retain(|route, _| !devices.contains(&route.device));
        self.wanted = wanted;
        self.refused = refused;
        self.rebuild();
    }

    /// Takes in what the kernel holds, read by [`Op::Observe`] or on an occasion.
    pub fn handle_observed(&mut self, actual: Actual, now: Instant) {
        self.now = now;
        self.observe = false;
        if self.facts.actual != actual {
            self.facts.actual = actual;
            self.rebuild();
        }
    }

    /// Takes in where controllers are. An address that lies in a network of a tunnel that works is not believed:
    /// whoever answers for a controller's name must not take tunnels down.
    pub fn handle_controllers(&mut self, mut addresses: BTreeSet<IpAddr>, now: Instant) {
        self.now = now;
        addresses.retain(|address| self.facts.controllers.contains(address) || !self.is_covered(*address));
        if self.facts.controllers != addresses {
            self.facts.controllers = addresses;
            self.rebuild();
        }
    }

    /// Whether what is sent to `address` goes into a device of ours.
    fn is_covered(&self, address: IpAddr) -> bool {
        let connected = self.target.devices.values().flat_map(|device| &device.addresses);
        let routes = self.target.routes.iter().map(|route| &route.prefix);
        connected.chain(routes).any(|network| network.contains(&address))
    }

    /// Takes in what a resolver says of a host name, the preferred address first.
    pub fn handle_resolved(&mut self, host: &str, answer: Result<Vec<IpAddr>, String>, now: Instant) {
        self.now = now;
        if !self.lookups.contains_key(host) {
            return;
        }
        let known = self.facts.resolved.get(host).and_then(|known| known.as_ref().ok()).copied();
        let resolved = match (answer, known) {
            // A name with several addresses comes in any order: stay with the one in use.
            (Ok(addresses), Some(known)) if addresses.contains(&known) => Ok(known),
            // Resolvers that block a name answer with addresses that are no host's, as 0.0.0.0. Those on the same link
            // answer with what is a host's on that link alone.
            (Ok(addresses), known) => {
                let mut addresses = addresses.into_iter().filter(|address| is_underlay_address(*address));
                addresses.next().or(known).ok_or_else(|| "no address of a host".to_owned())
            }
            // The peer is likely where it was while the resolver is away.
            (Err(_), Some(known)) => Ok(known),
            (Err(reason), None) => Err(reason),
        };
        // What is known already is in the target: many names that stay cost nothing.
        let is_news = known.is_none_or(|known| resolved != Ok(known));
        let resolved =
            resolved.and_then(|address| match is_news.then(|| self.upset_by(host, address)).flatten() {
                Some(other) => Err(format!("{address} clashes with tunnel {other}")),
                None => Ok(address),
            });
        if let Some(lookup) = self.lookups.get_mut(host) {
            lookup.pending = false;
            lookup.due = now + if resolved.is_ok() { RESOLVE_AGAIN } else { RESOLVE_RETRY };
        }
        if is_news {
            self.facts.resolved.insert(host.to_owned(), resolved);
            self.rebuild();
        }
    }

    /// A tunnel to elsewhere that works, and would not if `host` had `address`: whoever answers for a name must not
    /// take from others what they have.
    fn upset_by(&self, host: &str, address: IpAddr) -> Option<TunnelName> {
        let mut facts = self.facts.clone();
        facts.resolved.insert(host.to_owned(), Ok(address));
        let after = target::build(&self.wanted.desired, &facts, &self.policy);
        let is_elsewhere = |name: &TunnelName| {
            let remote = self.wanted.desired.tunnels.get(name).map(|tunnel| &tunnel.remote.host);
            !matches!(remote, Some(Host::Name(name)) if name == host)
        };
        let mut upset = after.faults.into_keys();
        upset.find(|name| is_elsewhere(name) && !self.target.faults.contains_key(name))
    }

    /// Takes in that a device of ours went away or changed without our doing.
    pub fn handle_device_event(&mut self, now: Instant) {
        self.now = now;
        self.observe = true;
    }

    /// When to call [`Self::handle_timeout`].
    pub fn poll_timeout(&self) -> Instant {
        let failures = self.failed_devices.values().chain(self.failed_routes.values());
        let lookups = self.lookups.values().filter(|lookup| !lookup.pending);
        failures
            .map(|failure| failure.retry_at)
            .chain(lookups.map(|lookup| lookup.due))
            .fold(self.audit_at(), Instant::min)
    }

    fn audit_at(&self) -> Instant {
        let no_route = self.paths.values().any(Option::is_some);
        let troubled = no_route || !self.target.faults.is_empty();
        self.audited_at + if troubled { AUDIT_TROUBLED } else { AUDIT }
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.now = now;
        if now >= self.audit_at() {
            self.audited_at = now;
            self.observe = true;
            self.paths.clear();
        }
        // What was held may have been held up by something of the host that is gone.
        let is_due = |failure: &Failure| failure.retry_at <= now;
        if self.failed_devices.values().chain(self.failed_routes.values()).any(is_due) {
            self.observe = true;
        }
    }

    /// The next operation. Hand its result to [`Self::handle_op_result`] before asking again.
    pub fn poll_op(&mut self) -> Option<Op> {
        if let Some(op) = self.queue.pop_front() {
            return Some(op);
        }
        if self.observe {
            return Some(Op::Observe);
        }
        if let Some((host, lookup)) =
            self.lookups.iter_mut().find(|(_, lookup)| !lookup.pending && lookup.due <= self.now)
        {
            lookup.pending = true;
            return Some(Op::Resolve(host.clone()));
        }
        let endpoints = self.target.endpoints.values().map(SocketAddr::ip);
        let mut unmeasured: Vec<IpAddr> =
            endpoints.filter(|address| !self.paths.contains_key(address)).collect();
        if !unmeasured.is_empty() {
            unmeasured.sort_unstable();
            unmeasured.dedup();
            return Some(Op::MeasurePaths(unmeasured));
        }
        let held = self.held();
        self.queue = reconcile::next_ops(&self.facts.actual, &self.published, &self.target, &held).into();
        if self.queue.is_empty() {
            // What is not held and needs no operation has come right.
            self.failed_devices.retain(|device, _| held.devices.contains(device));
            self.failed_routes.retain(|route, _| held.routes.contains(route));
        }
        self.queue.pop_front()
    }

    /// Takes in what came of an operation.
    pub fn handle_op_result(&mut self, op: Op, result: OpResult, now: Instant) {
        self.now = now;
        match result {
            OpResult::Observed(actual) => self.handle_observed(actual, now),
            OpResult::Measured(mtus) => self.handle_measured(mtus),
            OpResult::Failed(reason) => self.handle_failure(op, reason, now),
            OpResult::Done => self.handle_done(op),
        }
    }

    fn handle_measured(&mut self, mtus: BTreeMap<IpAddr, Result<u32, String>>) {
        for (address, mtu) in mtus {
            // A path that is away for a moment is likely the same when it is back.
            self.paths.insert(address, mtu.as_ref().err().cloned());
            if let Ok(mtu) = mtu {
                self.facts.path_mtus.insert(address, mtu);
            }
        }
        self.rebuild();
    }

    fn handle_done(&mut self, op: Op) {
        reconcile::apply(&mut self.facts.actual, &op);
        match op {
            // The kernel may have done more: without `promote_secondaries` it removes all addresses of the network
            // with its first.
            Op::RemoveAddress(..) => self.observe = true,
            // A device that is up gets a link-local address when its MTU comes to carry IPv6.
            Op::SetMtu(device, _) => {
                self.observe |= self.facts.actual.links.get(device.as_str()).is_some_and(|link| link.up);
            }
            Op::Publish(forwarding) => self.published = forwarding,
            Op::Observe
            | Op::Resolve(_)
            | Op::MeasurePaths(_)
            | Op::RemoveRoute(_)
            | Op::DeleteDevice(_)
            | Op::CreateDevice(_)
            | Op::AddAddress(..)
            | Op::SetUp(_)
            | Op::AddRoute(_)
            | Op::ChangeRoute(_) => {}
        }
    }

    fn handle_failure(&mut self, op: Op, reason: String, now: Instant) {
        if let Some(device) = op.device() {
            self.queue.retain(|queued| queued.device() != Some(device));
            let failure = Failure::after(self.failed_devices.get(device), reason, now);
            self.failed_devices.insert(device.clone(), failure);
            self.observe = true;
            return;
        }
        match op {
            Op::AddRoute(route) | Op::ChangeRoute(route) => {
                let failure = Failure::after(self.failed_routes.get(&route), reason, now);
                self.failed_routes.insert(route, failure);
            }
            // Whatever it was that is not there any more, the next reading shows it.
            Op::RemoveRoute(route) => {
                self.facts.actual.routes.remove(&route);
            }
            Op::MeasurePaths(addresses) => {
                let failed = addresses.into_iter().map(|address| (address, Some(reason.clone())));
                self.paths.extend(failed);
            }
            // The next audit reads again; until then the last reading stands.
            Op::Observe => self.observe = false,
            Op::Publish(_)
            | Op::Resolve(_)
            | Op::DeleteDevice(_)
            | Op::CreateDevice(_)
            | Op::SetMtu(..)
            | Op::AddAddress(..)
            | Op::RemoveAddress(..)
            | Op::SetUp(_) => {}
        }
    }

    fn held(&self) -> Held {
        let is_held = |failure: &Failure| failure.retry_at > self.now;
        let devices = self.failed_devices.iter().filter(|(_, failure)| is_held(failure));
        let routes = self.failed_routes.iter().filter(|(_, failure)| is_held(failure));
        Held {
            devices: devices.map(|(device, _)| device.clone()).collect(),
            routes: routes.map(|(route, _)| route.clone()).collect(),
        }
    }

    /// Works the target out anew, and forgets what no tunnel needs any more.
    fn rebuild(&mut self) {
        let hosts: BTreeSet<String> = self
            .wanted
            .desired
            .tunnels
            .values()
            .filter_map(|tunnel| match &tunnel.remote.host {
                Host::Name(name) => Some(name.clone()),
                Host::Address(_) => None,
            })
            .collect();
        self.lookups.retain(|host, _| hosts.contains(host));
        self.facts.resolved.retain(|host, _| hosts.contains(host));
        for host in hosts {
            self.lookups.entry(host).or_insert(Lookup { due: self.now, pending: false });
        }
        self.target = target::build(&self.wanted.desired, &self.facts, &self.policy);
        // What is not wanted any more may still fail to go away: it is not tried again at once either.
        let (target, now) = (&self.target, self.now);
        let used: BTreeSet<IpAddr> = target.endpoints.values().map(SocketAddr::ip).collect();
        self.paths.retain(|address, _| used.contains(address));
        self.facts.path_mtus.retain(|address, _| used.contains(address));
        self.failed_devices
            .retain(|device, failure| target.devices.contains_key(device) || failure.retry_at > now);
        self.failed_routes.retain(|route, failure| target.routes.contains(route) || failure.retry_at > now);
        self.queue.clear();
    }
}

#[cfg(test)]
mod tests;
