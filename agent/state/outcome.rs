//! What came of operations, and when one that failed is tried again.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::AgentState;
use crate::agent::reconcile::{self, Actual, Held, Op};
use crate::proto::model::PublicKey;

/// How soon a device or route that failed is tried again; doubled up to [`RETRY_MOST`].
const RETRY_LEAST: Duration = Duration::from_secs(1);
/// The longest wait before a failed device or route is tried again.
pub(super) const RETRY_MOST: Duration = Duration::from_secs(30);

/// What came of an operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OpResult {
    /// It is done.
    Done,
    /// [`Op::Observe`]: what the kernel holds.
    Observed(Actual),
    /// [`Op::OpenKey`]: the public key.
    Opened(PublicKey),
    /// [`Op::MeasurePaths`]: the MTU of each route in bytes.
    Measured(BTreeMap<IpAddr, Result<u32, String>>),
    /// It failed, in words why.
    Failed(String),
}

/// A device or route that failed.
#[derive(Debug, Clone)]
pub(super) struct Failure {
    pub(super) reason: String,
    pub(super) retry_at: Instant,
    wait: Duration,
}

impl Failure {
    /// One that is tried again at a time.
    pub(super) fn until(retry_at: Instant, reason: String) -> Self {
        Self { reason, retry_at, wait: RETRY_LEAST }
    }

    fn after(earlier: Option<&Self>, reason: String, now: Instant) -> Self {
        let wait = earlier.map_or(RETRY_LEAST, |earlier| (earlier.wait * 2).min(RETRY_MOST));
        Self { reason, retry_at: now + wait, wait }
    }
}

impl AgentState {
    /// Takes in what came of an operation.
    pub fn handle_op_result(&mut self, op: Op, result: OpResult, now: Instant) {
        self.now = now;
        match result {
            OpResult::Observed(actual) => self.handle_observed(actual, now),
            OpResult::Measured(mtus) => self.handle_measured(mtus),
            OpResult::Opened(key) => {
                if let Op::OpenKey(mesh) = op {
                    self.handle_key(mesh, Ok(key));
                }
            }
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
            Op::RemoveKey(mesh) => self.handle_key_removed(&mesh),
            Op::Observe
            | Op::OpenKey(_)
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
            Op::OpenKey(mesh) => self.handle_key(mesh, Err(reason)),
            // It is of no use to anybody, and looked for again at the next start.
            Op::RemoveKey(mesh) => self.handle_key_removed(&mesh),
            // The next audit reads again; until then the last reading stands.
            Op::Observe => (self.observe, self.unread) = (false, Some(reason)),
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

    pub(super) fn held(&self) -> Held {
        let is_held = |failure: &Failure| failure.retry_at > self.now;
        let devices = self.failed_devices.iter().filter(|(_, failure)| is_held(failure));
        let routes = self.failed_routes.iter().filter(|(_, failure)| is_held(failure));
        Held {
            devices: devices.map(|(device, _)| device.clone()).collect(),
            routes: routes.map(|(route, _)| route.clone()).collect(),
        }
    }
}
