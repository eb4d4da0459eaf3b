//! What is shown of the agent: tunnels with their counters and links, and its controller.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Runtime;
use super::handle::ControllerStatus;
use crate::agent::os::clock;
use crate::proto::host::clock::{now, since_epoch};
use crate::proto::model::{Framing, Remote, TunnelName, TunnelState, TunnelStatus};
use crate::proto::session::{ItemId, TunnelReport};

/// What an encrypted tunnel waits for.
const NO_HANDSHAKE: &str = "the peer has not agreed on keys yet: its agent or its WireGuard must run, reach this host, and \
                            have this host's public key";

/// When the host was started, as time since the Unix epoch. Read once: two readings of two clocks are never the same,
/// and a time that was told must not change.
pub(super) struct BootTime(Duration);

impl BootTime {
    /// The wall clock may be set: then the boot was at another time.
    const STEP: Duration = Duration::from_secs(1);

    pub(super) fn read() -> Self {
        Self(since_epoch().saturating_sub(clock::since_boot()))
    }

    /// A time since boot as time since the Unix epoch.
    pub(super) fn since_epoch(&mut self, since_boot: Duration) -> Duration {
        let Self(now) = Self::read();
        if now.abs_diff(self.0) > Self::STEP {
            self.0 = now;
        }
        self.0 + since_boot
    }
}

impl Runtime {
    pub(super) fn tunnels(&mut self) -> Vec<TunnelStatus> {
        let statuses: Vec<TunnelStatus> = self.state.statuses().collect();
        statuses.into_iter().map(|status| self.with_counters(status)).collect()
    }

    pub(super) fn status(&mut self, name: &TunnelName) -> Option<TunnelStatus> {
        let status = self.state.status(name)?;
        Some(self.with_counters(status))
    }

    pub(super) fn with_counters(&mut self, mut status: TunnelStatus) -> TunnelStatus {
        let since_boot = clock::since_boot();
        self.platform.note_refusals(&mut status, since_boot);
        self.platform.note_holder(&mut status);
        if let Framing::Wireguard(_) = status.tunnel.framing {
            let handshake = self.platform.last_handshake(&status.name, since_boot);
            status.last_handshake = handshake.map(|handshake| self.boot.since_epoch(handshake));
            status.endpoint = self.platform.roamed_to(&status.name).or(status.endpoint);
        }
        if self.platform.other_key(&status.name, since_boot) {
            status.notes.push(
                "somebody at the peer's address uses another key than the tunnel has for the peer or this host: see that \
                 each end has the other's public key"
                    .to_owned(),
            );
        }
        let boot = &mut self.boot;
        status.link = self.platform.link(&status.name, |since_boot| boot.since_epoch(since_boot));
        if let Some((loses, carries)) = status.link.as_ref().and_then(|link| link.loses.zip(link.carries)) {
            status.notes.push(format!(
                "packets of {loses} bytes and more are lost on the way to the peer, and nobody says so, as was found at \
                 most ten minutes ago: no more than {carries} are sent; whoever runs that path is to let ICMP \"fragmentation needed\" pass"
            ));
        }
        let Some(stats) = self.platform.stats(&status.name) else { return status };
        status.sent = stats.sent.read();
        status.received = stats.received.read();
        if let Some(received) = stats.last_received() {
            status.last_received = Some(self.boot.since_epoch(received));
            if status.state == TunnelState::Waiting(None) {
                status.state = TunnelState::Passing;
            }
        }
        let is_encrypted = status.tunnel.is_encrypted();
        if is_encrypted && status.last_handshake.is_none() && status.state == TunnelState::Waiting(None) {
            status.state = TunnelState::Waiting(Some(NO_HANDSHAKE.to_owned()));
        }
        status
    }

    /// What of the controller's cannot be had, or is not as it is to be, and why.
    pub(super) fn failures(&self) -> BTreeMap<ItemId, String> {
        self.state.unmet().into_iter().chain(self.state.failures()).collect()
    }

    pub(super) fn controller(&self) -> Option<ControllerStatus> {
        let base = self.state.base();
        if self.uplink.is_none() && base.is_none() {
            return None;
        }
        let held = base.iter().flat_map(|base| base.held.iter()).map(|item| item.id.clone()).collect();
        Some(ControllerStatus {
            session: self.uplink.as_ref().map(|uplink| uplink.status(now(), since_epoch())),
            store_id: base.map(|base| base.store_id.clone()),
            generation: base.map(|base| base.generation),
            held,
            failures: self.failures(),
        })
    }

    /// All tunnels as a controller is told of them.
    pub(super) fn reports(&mut self) -> BTreeMap<TunnelName, TunnelReport> {
        let now = since_epoch();
        let tunnels = self.tunnels().into_iter();
        let reports = tunnels.map(|status| {
            let keyed = self.platform.is_keyed(&status.name);
            (status.name.clone(), TunnelReport { keyed, ..report(status, now) })
        });
        reports.collect()
    }
}

/// A tunnel as a controller is told of it; `now` is since the Unix epoch.
fn report(status: TunnelStatus, now: Duration) -> TunnelReport {
    let age = status.last_received.map(|last| now.saturating_sub(last).as_millis());
    TunnelReport {
        device: status.tunnel.device,
        owner: status.tunnel.owner,
        state: status.state,
        endpoint: status.endpoint.map(|endpoint| endpoint.to_string()).unwrap_or_default(),
        preferred: status.preferred.as_ref().map(Remote::to_string).unwrap_or_default(),
        last_received_ms: age.map(|age| u64::try_from(age).unwrap_or(u64::MAX)),
        keyed: false,
    }
}
