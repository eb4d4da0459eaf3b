//! Tunnels as they are, in words.

use std::collections::BTreeMap;

use super::AgentState;
use crate::agent::reconcile::Route;
use crate::proto::model::{
    DeviceName, Offload, OffloadState, Owner, Remote, Remotes, Traffic, Tunnel, TunnelName, TunnelState,
    TunnelStatus,
};
use crate::proto::session::ItemId;

/// What an encrypted tunnel waits for whose peer has another host with this one's key.
const RESTS: &str = "another agent of this name is connected to the controller and alive; the tunnel rests until the \
                     controller lets this agent in";

impl AgentState {
    /// Every tunnel as far as this state knows it: without counters, and never passing.
    pub fn statuses(&self) -> impl Iterator<Item = TunnelStatus> {
        self.wanted.desired.tunnels.iter().map(|(name, tunnel)| self.status_of(name, tunnel))
    }

    /// One tunnel, as [`Self::statuses`] has it.
    pub fn status(&self, name: &TunnelName) -> Option<TunnelStatus> {
        self.wanted.desired.tunnels.get(name).map(|tunnel| self.status_of(name, tunnel))
    }

    /// What the owner of a tunnel should know of it.
    pub fn notes(&self, name: &TunnelName) -> Vec<String> {
        let Some(tunnel) = self.desired().tunnels.get(name) else { return Vec::new() };
        let mut notes = Vec::new();
        if let (Some(asked), Some(path)) = (tunnel.mtu, self.target.path_mtus.get(name))
            && asked > *path
        {
            notes.push(format!(
                "mtu {asked} is more than the path carries ({path}): larger packets are refused with ICMP \
                 too-big or, where they may be, fragmented"
            ));
        }
        notes.extend(self.note_of_endpoints(name, tunnel));
        let clashes =
            [(ItemId::Tunnel(name.clone()), "tunnel"), (ItemId::Device(tunnel.device.clone()), "device")];
        for (id, kind) in clashes {
            if tunnel.owner == Owner::Local && self.refused.contains_key(&id) {
                notes.push(format!(
                    "the controller wants a {kind} of this name, too, and gets it once this one is gone"
                ));
            }
        }
        notes
    }

    /// The preferred remote of a tunnel, where another one is in use.
    fn preferred<'t>(&self, name: &TunnelName, tunnel: &'t Tunnel) -> Option<&'t Remote> {
        let is_other = self.target.in_use.get(name).is_some_and(|position| *position > 0);
        tunnel.remote.as_ref().filter(|_| is_other).map(Remotes::first)
    }

    fn note_of_endpoints(&self, name: &TunnelName, tunnel: &Tunnel) -> Option<String> {
        let remotes = tunnel.remote.as_ref().filter(|remotes| remotes.count() > 1)?;
        if !tunnel.probed {
            return Some(format!(
                "of its endpoints only {} is used: it is not probed, and so nobody knows which of them answer",
                remotes.first()
            ));
        }
        let preferred = self.preferred(name, tunnel)?;
        Some(format!(
            "its preferred endpoint {preferred} is not in use, since the peer could not be reached there; it is asked now \
             and then, and used again once it has answered for 10 s"
        ))
    }

    /// What of the controller's cannot be had, and why.
    pub fn failures(&self) -> BTreeMap<ItemId, String> {
        let tunnels = self.desired().tunnels.iter().filter(|(_, tunnel)| tunnel.owner == Owner::Controller);
        let failed = tunnels.filter_map(|(name, tunnel)| match self.tunnel_state(name, tunnel) {
            TunnelState::Failed(reason) => Some((ItemId::Tunnel(name.clone()), reason)),
            TunnelState::Waiting(_) | TunnelState::Passing => None,
        });
        self.refused.clone().into_iter().chain(failed).collect()
    }

    /// The controller's devices that the kernel has not as they are to be, with the routes over them, by what was last read of
    /// it, in words. Where it is known why, their tunnels say it. What could not be read is not taken to be there.
    pub fn unmet(&self) -> BTreeMap<ItemId, String> {
        let is_controllers = |name: &DeviceName| {
            self.desired().devices.get(name).is_some_and(|device| device.owner == Owner::Controller)
        };
        let is_unexplained = |name: &DeviceName| !self.failed_devices.contains_key(name);
        let devices = self.target.devices.iter();
        let devices = devices.filter(|(name, _)| is_controllers(name) && is_unexplained(name));
        let unmet = devices.filter_map(|(name, device)| {
            let words = match self.facts.actual.links.get(name.as_str()).filter(|link| link.ours) {
                _ if let Some(reason) = &self.unread => {
                    vec![format!("may be as it is to be: what the kernel has of it cannot be read: {reason}")]
                }
                None => vec!["is not there".to_owned()],
                Some(link) => {
                    let mut words = Vec::new();
                    let mtu = u32::from(device.mtu);
                    if !link.up {
                        words.push("is down".to_owned());
                    }
                    if link.mtu != mtu {
                        words.push(format!("has MTU {} instead of {mtu}", link.mtu));
                    }
                    let lacks = device.addresses.difference(&link.addresses);
                    words.extend(lacks.map(|address| format!("has no address {address}")));
                    let has = link.addresses.difference(&device.addresses);
                    words.extend(has.map(|address| format!("has the address {address}, too")));
                    let routes = self.target.routes.iter().filter(|route| route.device == *name);
                    let unexplained = routes.filter(|route| !self.failed_routes.contains_key(*route));
                    words.extend(unexplained.filter(|route| !self.facts.actual.has(route)).map(lack));
                    words
                }
            };
            (!words.is_empty()).then(|| (ItemId::Device(name.clone()), words.join(", ")))
        });
        unmet.collect()
    }

    fn status_of(&self, name: &TunnelName, tunnel: &Tunnel) -> TunnelStatus {
        let device = self.target.devices.get(&tunnel.device);
        TunnelStatus {
            name: name.clone(),
            tunnel: tunnel.clone(),
            addresses: self
                .wanted
                .desired
                .devices
                .get(&tunnel.device)
                .map_or_else(Vec::new, |d| d.addresses.clone()),
            state: self.tunnel_state(name, tunnel),
            endpoint: self.target.endpoints.get(name).copied(),
            preferred: self.preferred(name, tunnel).cloned(),
            device_mtu: device.map(|device| device.mtu),
            path_mtu: self.target.path_mtus.get(name).copied(),
            sent: Traffic::default(),
            received: Traffic::default(),
            last_received: None,
            last_handshake: None,
            link: None,
            offloads: self.offloads(tunnel),
            notes: self.notes(name),
        }
    }

    /// Which offloads are in use for a tunnel, as far as that was decided and not learnt under way.
    fn offloads(&self, tunnel: &Tunnel) -> Vec<OffloadState> {
        let off_by_another = |offload: Offload| {
            let shares = |other: &Tunnel| match offload {
                Offload::TunTso | Offload::TunUso => other.device == tunnel.device,
                Offload::UdpGro => true,
                Offload::UdpGso => false,
            };
            let others = &self.wanted.desired.tunnels;
            let other = others.iter().find(|(_, other)| shares(other) && other.without.contains(&offload));
            other.map(|(other, _)| format!("switched off by tunnel {other}"))
        };
        let state = |offload| OffloadState {
            offload,
            why_off: match self.policy.without.get(&offload) {
                Some(why) => Some(why.clone()),
                None if tunnel.without.contains(&offload) => Some("switched off for this tunnel".to_owned()),
                None => off_by_another(offload),
            },
        };
        Offload::ALL.map(state).to_vec()
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
        if self.facts.rests(tunnel) {
            return TunnelState::Waiting(Some(RESTS.to_owned()));
        }
        if let Some(remote) = tunnel.remote.as_ref().filter(|_| !self.target.endpoints.contains_key(name)) {
            return TunnelState::Waiting(Some(format!("{remote} is being resolved")));
        }
        let at = self.target.places.get(name);
        if let Some((at, Some(reason))) = at.and_then(|at| Some((at, self.paths.get(at)?))) {
            return TunnelState::Failed(format!("no route to {at}: {reason}"));
        }
        let up = self.facts.actual.links.get(tunnel.device.as_str()).is_some_and(|link| link.ours && link.up);
        TunnelState::Waiting((!up).then(|| format!("device {} is being made", tunnel.device)))
    }
}

/// That there is no such route, in words.
fn lack(route: &Route) -> String {
    let mtu = route.mtu.map_or_else(String::new, |mtu| format!(" with MTU {}", u32::from(mtu)));
    format!("has no route to {}{mtu}", route.prefix)
}
