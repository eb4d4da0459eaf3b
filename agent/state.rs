//! The agent's state: what is wanted, what is known, and what is to be done next.
//!
//! Drive it so: after each `handle_*` call [`AgentState::poll_op`] until it gives nothing more, hand each result to
//! [`AgentState::handle_op_result`] before asking again, and call [`AgentState::handle_timeout`] when
//! [`AgentState::poll_timeout`] says so. `now` never goes back.

mod command;
mod endpoints;
mod keys;
mod names;
mod outcome;
mod status;
mod wanted;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use self::endpoints::Chosen;
pub use self::endpoints::{Move, Standing};
use self::names::Lookup;
use self::outcome::Failure;
pub use self::outcome::OpResult;
use self::wanted::Derived;
pub use self::wanted::Wanted;
use crate::agent::reconcile::{self, Actual, Held, Op, Route};
use crate::agent::session::Base;
use crate::agent::target::{self, Facts, Forwarding, Policy, Target};
use crate::proto::command::{Command, CommandError, ErrorKind};
use crate::proto::model::{Desired, DeviceName, Host, MeshName, Owner, Remotes, TunnelName};
use crate::proto::rate::{Bucket, Rate};
use crate::proto::session::ItemId;

/// How often the kernel's state is read again, and compared.
const AUDIT: Duration = Duration::from_secs(60);
/// The same while a tunnel cannot be had: what stands in its way may be gone.
const AUDIT_TROUBLED: Duration = Duration::from_secs(5);

/// How often what others do to a device is put right: so many times at once, and then one in a while.
const REPAIRS: Rate = Rate { burst: 6, every: Duration::from_secs(10) };
/// How long it takes at most to measure a path.
const MEASUREMENT: Duration = Duration::from_millis(5);

/// What others have done to a device of ours, which is put right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repair {
    /// The device.
    pub device: DeviceName,
    /// What they did, as "took it down".
    pub what: String,
}

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
    keys: BTreeSet<MeshName>,
}

/// The agent's state machine.
#[derive(Debug)]
pub struct AgentState {
    policy: Policy,
    wanted: Wanted,
    /// What of the controller's is not among what is wanted, and why.
    refused: BTreeMap<ItemId, String>,
    /// The meshes for which this host is to have a key.
    keys: BTreeSet<MeshName>,
    facts: Facts,
    target: Target,
    published: Forwarding,
    lookups: BTreeMap<String, Lookup>,
    /// The probed tunnels whose peers are not heard.
    silent: BTreeSet<TunnelName>,
    /// Of tunnels with several remotes, which one is in use.
    chosen: BTreeMap<TunnelName, Chosen>,
    /// The endpoints that were measured since the last audit, and why one has no path.
    paths: BTreeMap<IpAddr, Option<String>>,
    failed_devices: BTreeMap<DeviceName, Failure>,
    failed_routes: BTreeMap<Route, Failure>,
    /// How often others have changed a device of late.
    meddling: BTreeMap<DeviceName, Bucket>,
    /// What they did, and is put right.
    repairs: VecDeque<Repair>,
    /// When all paths were last to be measured anew.
    stale_at: Instant,
    /// When they are to be again, since something has changed.
    stale_due: Option<Instant>,
    queue: VecDeque<Op>,
    observe: bool,
    /// Why the kernel's state could not be read when it last was to be.
    unread: Option<String>,
    audited_at: Instant,
    now: Instant,
}

impl AgentState {
    /// The state at start: `wanted` as it was kept, nothing known yet. What the controller wants is understood anew:
    /// an earlier release may have understood less.
    pub fn new(policy: Policy, wanted: Wanted, now: Instant) -> Self {
        let Derived { wanted, refused, keys, changed: _ } = wanted.derived(|_| false);
        let mut state = Self {
            policy,
            wanted,
            refused,
            keys,
            facts: Facts::default(),
            target: Target::default(),
            published: Forwarding::new(),
            lookups: BTreeMap::new(),
            silent: BTreeSet::new(),
            chosen: BTreeMap::new(),
            paths: BTreeMap::new(),
            failed_devices: BTreeMap::new(),
            failed_routes: BTreeMap::new(),
            meddling: BTreeMap::new(),
            repairs: VecDeque::new(),
            stale_at: now,
            stale_due: None,
            queue: VecDeque::new(),
            observe: true,
            unread: None,
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
    ///
    /// # Errors
    /// Why it is refused.
    pub fn handle_command(&self, command: &Command, owner: Owner) -> Result<Change, CommandError> {
        let (change, verdicts) = self.handle_commands(&[(command, owner)]);
        verdicts.into_iter().try_for_each(|verdict| verdict.map(|_| ()))?;
        Ok(change)
    }

    /// Judges commands that came together, each about another tunnel. Those that get along are all accepted, whatever
    /// their order. Returns the change that the accepted ones make, and of each whether it changes anything or why it is
    /// refused. It changes nothing: keep the change, then [`Self::commit`] it.
    pub fn handle_commands(
        &self,
        commands: &[(&Command, Owner)],
    ) -> (Change, Vec<Result<bool, CommandError>>) {
        let mut desired = self.desired().clone();
        let mut verdicts = Vec::with_capacity(commands.len());
        self.judge(&mut desired, commands, &mut verdicts);
        let mut change = self.change(Wanted { desired, controller: self.wanted.controller.clone() });
        let accepted = commands.iter().zip(&verdicts).filter(|(_, verdict)| verdict.is_ok());
        change.tried.extend(accepted.map(|((command, _), _)| command.tunnel().clone()));
        (change, verdicts)
    }

    /// Judges all commands at once, and where that makes a fault one half after the other, so that what is at fault is
    /// refused alone: to work out what is had of a thousand tunnels takes as long for one that is new as for all.
    fn judge(
        &self,
        desired: &mut Desired,
        commands: &[(&Command, Owner)],
        verdicts: &mut Vec<Result<bool, CommandError>>,
    ) {
        let mut after = desired.clone();
        let apply = |(command, owner): &(&Command, Owner)| command::apply(&mut after, command, *owner);
        let applied: Vec<Result<bool, CommandError>> = commands.iter().map(apply).collect();
        let changes = commands.iter().zip(&applied).filter(|(_, applied)| **applied == Ok(true));
        let added: BTreeSet<&TunnelName> = changes
            .filter_map(|((command, _), _)| match command {
                Command::Add { tunnel, .. } => Some(&tunnel.name),
                Command::Delete { .. } => None,
            })
            .collect();
        if !added.is_empty() {
            // What works is not upset by what does not, not even when that could work again.
            after.rank_last(|name| !added.contains(name) && self.is_faulty(name));
            if let Err(error) = self.check_faults(&after, &added) {
                return match commands.split_at(commands.len() / 2) {
                    ([], _) => verdicts.push(Err(error)),
                    (first, second) => {
                        self.judge(desired, first, verdicts);
                        self.judge(desired, second, verdicts);
                    }
                };
            }
        }
        *desired = after;
        verdicts.extend(applied);
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
        let Derived { wanted, refused, keys, changed } = wanted.derived(|name| self.is_faulty(name));
        let is_change = wanted != self.wanted;
        Change { wanted, is_change, tried: changed, refused, keys }
    }

    fn is_faulty(&self, name: &TunnelName) -> bool {
        self.target.faults.contains_key(name)
    }

    /// Refuses a wanted state in which one of `added`, or because of them another tunnel, cannot be had.
    fn check_faults(&self, desired: &Desired, added: &BTreeSet<&TunnelName>) -> Result<(), CommandError> {
        let after = target::build(desired, &self.facts, &self.policy);
        let is_new = |(other, fault): &(&TunnelName, &CommandError)| {
            added.contains(*other) || self.target.faults.get(*other) != Some(*fault)
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
        let Change { wanted, tried, refused, keys, is_change: _ } = change;
        // Whoever changes a tunnel expects it to be tried at once.
        let tried = tried.iter().filter_map(|name| wanted.desired.tunnels.get(name));
        let devices: BTreeSet<&DeviceName> = tried.map(|tunnel| &tunnel.device).collect();
        self.failed_devices.retain(|device, _| !devices.contains(device));
        self.failed_routes.retain(|route, _| !devices.contains(&route.device));
        self.wanted = wanted;
        self.refused = refused;
        self.keys = keys;
        self.rebuild();
    }

    /// Takes in what the kernel holds, read by [`Op::Observe`] or on an occasion.
    pub fn handle_observed(&mut self, actual: Actual, now: Instant) {
        self.now = now;
        (self.observe, self.unread) = (false, None);
        if self.facts.actual != actual {
            self.note_meddling(&actual);
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

    /// Takes in whether the controller has another agent of this name, which is alive.
    pub fn handle_second(&mut self, is_second: bool, now: Instant) {
        self.now = now;
        if self.facts.is_second != is_second {
            self.facts.is_second = is_second;
            self.rebuild();
        }
    }

    /// Whether what is sent to `address` goes into a device of ours.
    fn is_covered(&self, address: IpAddr) -> bool {
        let connected = self.target.devices.values().flat_map(|device| &device.addresses);
        let routes = self.target.routes.iter().map(|route| &route.prefix);
        connected.chain(routes).any(|network| network.contains(&address))
    }

    /// Takes in that a device of ours went away or changed without our doing.
    pub fn handle_device_event(&mut self, now: Instant) {
        self.now = now;
        self.observe = true;
    }

    /// Takes in that interfaces or routes of the host have changed that are not ours: paths may be others now. They are measured
    /// anew; not at once where that was done a moment ago, for a thousand take a while, and on some hosts something changes
    /// all the time.
    pub fn handle_paths_changed(&mut self, now: Instant) {
        self.now = now;
        let pause = MEASUREMENT * u32::try_from(self.paths.len()).unwrap_or(u32::MAX);
        let due = *self.stale_due.get_or_insert((self.stale_at + pause).max(now));
        if due <= now {
            self.measure_anew();
        }
    }

    fn measure_anew(&mut self) {
        (self.stale_at, self.stale_due) = (self.now, None);
        self.paths.clear();
    }

    /// What others have done to a device of ours and is put right: each is told once.
    pub fn poll_repair(&mut self) -> Option<Repair> {
        self.repairs.pop_front()
    }

    /// Notes what others have done. Whoever does it again and again has the device for a while: nobody gains by a race.
    fn note_meddling(&mut self, actual: &Actual) {
        let devices = &self.target.devices;
        self.meddling.retain(|device, _| devices.contains_key(device));
        for (device, what) in reconcile::drift(&self.facts.actual, actual, &self.target) {
            match self.meddling.entry(device.clone()).or_default().take(REPAIRS, self.now) {
                Ok(()) => self.repairs.push_back(Repair { device, what }),
                Err(again) => {
                    let reason = format!("others change device {device} again and again: they {what}");
                    self.failed_devices.insert(device, Failure::until(again, reason));
                }
            }
        }
    }

    /// Takes in where the peers of encrypted tunnels have shown to be, if it is not where they were said to be.
    pub fn handle_roamed(&mut self, roamed: BTreeMap<TunnelName, IpAddr>, now: Instant) {
        self.now = now;
        if self.facts.roamed != roamed {
            self.facts.roamed = roamed;
            self.rebuild();
        }
    }

    /// Takes in what was found to come through to the peers of probed tunnels, in bytes of a packet of the underlay.
    pub fn handle_carried(&mut self, carried: BTreeMap<TunnelName, u16>, now: Instant) {
        self.now = now;
        if self.facts.carried != carried {
            self.facts.carried = carried;
            self.rebuild();
        }
    }

    /// Takes in that the path to `address` carries less than was known: it is measured anew.
    pub fn handle_path_narrowed(&mut self, address: IpAddr, now: Instant) {
        self.now = now;
        self.paths.remove(&address);
    }

    /// When to call [`Self::handle_timeout`].
    pub fn poll_timeout(&self) -> Instant {
        let failures = self.failed_devices.values().chain(self.failed_routes.values());
        let lookups = self.lookups.values().filter(|lookup| !lookup.pending);
        failures
            .map(|failure| failure.retry_at)
            .chain(lookups.map(|lookup| lookup.due))
            .chain(self.stale_due)
            .chain(self.choice_due())
            .fold(self.audit_at(), Instant::min)
    }

    fn audit_at(&self) -> Instant {
        let no_route = self.paths.values().any(Option::is_some);
        let no_key = self.facts.keys.values().any(Result::is_err);
        let troubled = no_route || no_key || self.unread.is_some() || !self.target.faults.is_empty();
        self.audited_at + if troubled { AUDIT_TROUBLED } else { AUDIT }
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.now = now;
        if now >= self.audit_at() {
            self.audited_at = now;
            self.observe = true;
            self.measure_anew();
            self.retry_keys();
        }
        if self.stale_due.is_some_and(|due| due <= now) {
            self.measure_anew();
        }
        self.try_others();
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
        if let Some(op) = self.missing_key() {
            return Some(op);
        }
        if let Some((host, lookup)) =
            self.lookups.iter_mut().find(|(_, lookup)| !lookup.pending && lookup.due <= self.now)
        {
            lookup.pending = true;
            return Some(Op::Resolve(host.clone()));
        }
        let places = self.target.places.values();
        let mut unmeasured: Vec<IpAddr> =
            places.filter(|address| !self.paths.contains_key(address)).copied().collect();
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
        self.queue.pop_front().or_else(|| self.needless_key())
    }

    /// Works the target out anew, and forgets what no tunnel needs any more.
    fn rebuild(&mut self) {
        let hosts: BTreeSet<String> = self
            .wanted
            .desired
            .tunnels
            .values()
            .flat_map(|tunnel| tunnel.remote.iter().flat_map(Remotes::iter))
            .filter_map(|remote| match &remote.host {
                Host::Name(name) => Some(name.clone()),
                Host::Address(_) => None,
            })
            .collect();
        self.lookups.retain(|host, _| hosts.contains(host));
        self.facts.resolved.retain(|host, _| hosts.contains(host));
        for host in hosts {
            self.lookups.entry(host).or_insert(Lookup::new(self.now));
        }
        self.keep_choices();
        self.target = target::build(&self.wanted.desired, &self.facts, &self.policy);
        self.take_in_use();
        // What is not wanted any more may still fail to go away: it is not tried again at once either.
        let (target, now) = (&self.target, self.now);
        let used: BTreeSet<IpAddr> = target.places.values().copied().collect();
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
