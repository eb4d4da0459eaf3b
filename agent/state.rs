//! The agent's state: what is wanted, what is known, and what is to be done next.
//!
//! Drive it so: after each `handle_*` call [`AgentState::poll_op`] until it gives nothing more, hand each result to
//! [`AgentState::handle_op_result`] before asking again, and call [`AgentState::handle_timeout`] when
//! [`AgentState::poll_timeout`] says so. `now` never goes back.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use crate::agent::reconcile::{self, Actual, Held, Op, Route};
use crate::agent::target::{self, Facts, Forwarding, Policy, Target};
use crate::proto::command::{Command, CommandError, ErrorKind, Field, TunnelSpec};
use crate::proto::model::{
    Desired, Device, DeviceName, Host, Invalid, Owner, Traffic, Tunnel, TunnelName, TunnelState,
    TunnelStatus, is_host_address,
};

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
    /// The wanted state with the change.
    pub desired: Desired,
    /// The tunnel that the command was about.
    pub tunnel: TunnelName,
    /// Whether anything differs from before.
    pub is_change: bool,
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
    desired: Desired,
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
    /// The state at start: `desired` as it was kept, nothing known yet.
    pub fn new(policy: Policy, desired: Desired, now: Instant) -> Self {
        let mut state = Self {
            policy,
            desired,
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
        &self.desired
    }

    /// What the kernel and the data path should hold.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// Every tunnel as far as this state knows it: without counters, and never passing.
    pub fn statuses(&self) -> impl Iterator<Item = TunnelStatus> {
        self.desired.tunnels.iter().map(|(name, tunnel)| self.status_of(name, tunnel))
    }

    /// One tunnel, as [`Self::statuses`] has it.
    pub fn status(&self, name: &TunnelName) -> Option<TunnelStatus> {
        self.desired.tunnels.get(name).map(|tunnel| self.status_of(name, tunnel))
    }

    /// What the owner of an added tunnel should know of it.
    pub fn notes(&self, name: &TunnelName) -> Vec<String> {
        let asked = self.desired.tunnels.get(name).and_then(|tunnel| tunnel.mtu);
        match (asked, self.target.path_mtus.get(name)) {
            (Some(asked), Some(path)) if asked > *path => vec![format!(
                "mtu {asked} is more than the path carries ({path}): larger packets are refused with ICMP \
                 too-big or, where they may be, fragmented"
            )],
            (Some(_) | None, Some(_) | None) => Vec::new(),
        }
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
        let mut desired = self.desired.clone();
        let tunnel = match command {
            Command::Add { tunnel, replace } => {
                add(&mut desired, tunnel, *replace, owner)?;
                if desired != self.desired {
                    // What works is not upset by what does not, not even when that could work again.
                    desired.rank_last(|name| *name != tunnel.name && self.target.faults.contains_key(name));
                    self.check_faults(&desired, &tunnel.name)?;
                }
                tunnel.name.clone()
            }
            Command::Delete { name } => {
                delete(&mut desired, name, owner)?;
                name.clone()
            }
        };
        let is_change = desired != self.desired;
        Ok(Change { desired, tunnel, is_change })
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
        // Whoever changes a tunnel expects it to be tried at once.
        if let Some(tunnel) = change.desired.tunnels.get(&change.tunnel) {
            self.failed_devices.remove(&tunnel.device);
            self.failed_routes.retain(|route, _| route.device != tunnel.device);
        }
        self.desired = change.desired;
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
            // Resolvers that block a name answer with addresses that are no host's, as 0.0.0.0.
            (Ok(addresses), known) => {
                let mut addresses = addresses.into_iter().filter(|address| is_host_address(*address));
                addresses.next().or(known).ok_or_else(|| "no address of a host".to_owned())
            }
            // The peer is likely where it was while the resolver is away.
            (Err(_), Some(known)) => Ok(known),
            (Err(reason), None) => Err(reason),
        };
        let resolved = resolved.and_then(|address| match self.upset_by(host, address) {
            Some(other) => Err(format!("{address} clashes with tunnel {other}")),
            None => Ok(address),
        });
        if let Some(lookup) = self.lookups.get_mut(host) {
            lookup.pending = false;
            lookup.due = now + if resolved.is_ok() { RESOLVE_AGAIN } else { RESOLVE_RETRY };
        }
        self.facts.resolved.insert(host.to_owned(), resolved);
        self.rebuild();
    }

    /// A tunnel to elsewhere that works, and would not if `host` had `address`: whoever answers for a name must not
    /// take from others what they have.
    fn upset_by(&self, host: &str, address: IpAddr) -> Option<TunnelName> {
        let mut facts = self.facts.clone();
        facts.resolved.insert(host.to_owned(), Ok(address));
        let after = target::build(&self.desired, &facts, &self.policy);
        let is_elsewhere = |name: &TunnelName| {
            let remote = self.desired.tunnels.get(name).map(|tunnel| &tunnel.remote.host);
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
        let hosts: Vec<String> = self
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
        self.target = target::build(&self.desired, &self.facts, &self.policy);
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

    fn status_of(&self, name: &TunnelName, tunnel: &Tunnel) -> TunnelStatus {
        let device = self.target.devices.get(&tunnel.device);
        TunnelStatus {
            name: name.clone(),
            tunnel: tunnel.clone(),
            addresses: self
                .desired
                .devices
                .get(&tunnel.device)
                .map_or_else(Vec::new, |d| d.addresses.clone()),
            state: self.tunnel_state(name, tunnel),
            endpoint: self.target.endpoints.get(name).copied(),
            device_mtu: device.map(|device| device.mtu),
            path_mtu: self.target.path_mtus.get(name).copied(),
            sent: Traffic::default(),
            received: Traffic::default(),
            last_received: None,
        }
    }

    fn tunnel_state(&self, name: &TunnelName, tunnel: &Tunnel) -> TunnelState {
        if let Some(fault) = self.target.faults.get(name) {
            return TunnelState::Failed(fault.describe(fault.field.name()));
        }
        if let Some(failure) = self.failed_devices.get(&tunnel.device) {
            return TunnelState::Failed(failure.reason.clone());
        }
        let mut routes = self
            .failed_routes
            .iter()
            .filter(|(route, _)| route.device == tunnel.device && tunnel.routes.contains(&route.prefix));
        if let Some((route, failure)) = routes.next() {
            return TunnelState::Failed(format!("route {}: {}", route.prefix, failure.reason));
        }
        let Some(endpoint) = self.target.endpoints.get(name) else {
            return TunnelState::Waiting(Some(format!("{} is being resolved", tunnel.remote)));
        };
        if let Some(Some(reason)) = self.paths.get(&endpoint.ip()) {
            return TunnelState::Failed(format!("no route to {}: {reason}", endpoint.ip()));
        }
        let up = self.facts.actual.links.get(tunnel.device.as_str()).is_some_and(|link| link.ours && link.up);
        TunnelState::Waiting((!up).then(|| format!("device {} is being made", tunnel.device)))
    }
}

/// Puts a tunnel into the wanted state.
fn add(desired: &mut Desired, spec: &TunnelSpec, replace: bool, owner: Owner) -> Result<(), CommandError> {
    let known = desired.tunnels.get(&spec.name);
    if known.is_some_and(|known| known.owner != owner) {
        return Err(foreign_owner(Field::Name, &spec.name));
    }
    let device = device_for(desired, spec, replace, owner)?;
    let tunnel = Tunnel {
        device: spec.device.clone(),
        mtu: spec.mtu,
        remote: spec.remote.clone(),
        framing: spec.framing,
        allowed_prefixes: spec.allowed_prefixes.clone(),
        routes: spec.routes.clone(),
        owner,
    };
    let same_device = desired
        .devices
        .get(&spec.device)
        .is_some_and(|known| known.owner == device.owner && is_same_set(&known.addresses, &device.addresses));
    match known {
        Some(known) if is_same(known, &tunnel) && same_device => return Ok(()),
        Some(known) if !replace => {
            return Err(CommandError::new(
                ErrorKind::AlreadyExists,
                Field::Name,
                &spec.name,
                Invalid::new(
                    format!(
                        "is known with another content (remote {}, device {})",
                        known.remote, known.device
                    ),
                    "set replace to change it in place, or choose another name",
                ),
            ));
        }
        Some(_) | None => {}
    }
    desired.set(&spec.name, tunnel, device);
    Ok(())
}

/// Whether two tunnels mean the same: in their lists the order says nothing.
fn is_same(one: &Tunnel, other: &Tunnel) -> bool {
    let Tunnel { device, mtu, remote, framing, allowed_prefixes, routes, owner } = one;
    (device, mtu, remote, framing, owner)
        == (&other.device, &other.mtu, &other.remote, &other.framing, &other.owner)
        && is_same_set(allowed_prefixes, &other.allowed_prefixes)
        && is_same_set(routes, &other.routes)
}

fn is_same_set<T: Ord>(one: &[T], other: &[T]) -> bool {
    one.iter().collect::<BTreeSet<_>>() == other.iter().collect::<BTreeSet<_>>()
}

/// The device that a tunnel asks for: the one that it names, or with its addresses a new one.
fn device_for(
    desired: &Desired,
    spec: &TunnelSpec,
    replace: bool,
    owner: Owner,
) -> Result<Device, CommandError> {
    let wanted = Device { addresses: spec.addresses.clone(), owner };
    let Some(known) = desired.devices.get(&spec.device) else {
        if spec.addresses.is_empty() {
            return Err(CommandError::missing(
                Field::Addresses,
                format!(
                    "device {} does not exist yet: give its addresses, as 10.0.1.1/30, or name a device that exists",
                    spec.device
                ),
            ));
        }
        return Ok(wanted);
    };
    if known.owner != owner {
        return Err(foreign_owner(Field::Device, &spec.device));
    }
    if spec.addresses.is_empty() || is_same_set(&spec.addresses, &known.addresses) {
        return Ok(known.clone());
    }
    let alone = desired.tunnels_on(&spec.device).all(|(name, _)| *name == spec.name);
    if replace || alone {
        return Ok(wanted);
    }
    let has: Vec<String> = known.addresses.iter().map(ToString::to_string).collect();
    Err(CommandError::new(
        ErrorKind::Clash,
        Field::Device,
        &spec.device,
        Invalid::new(
            format!("has other addresses ({})", has.join(", ")),
            "leave the addresses out, or set replace to change them for all its tunnels",
        ),
    ))
}

fn delete(desired: &mut Desired, name: &TunnelName, owner: Owner) -> Result<(), CommandError> {
    match desired.tunnels.get(name) {
        None => Err(CommandError::new(
            ErrorKind::NotFound,
            Field::Name,
            name,
            Invalid::new("is no tunnel of this agent", "list the tunnels for their names"),
        )),
        Some(tunnel) if tunnel.owner != owner => Err(foreign_owner(Field::Name, name)),
        Some(_) => {
            desired.remove(name);
            Ok(())
        }
    }
}

fn foreign_owner(field: Field, name: impl std::fmt::Display) -> CommandError {
    CommandError::new(
        ErrorKind::Clash,
        field,
        name,
        Invalid::new("is the other owner's", "change it where it was made, or choose another name"),
    )
}

#[cfg(test)]
mod tests;
