//! Performs operations on this host: the kernel's interfaces and routes, and the data path.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use crate::agent::datapath::link::LinkEnd;
use crate::agent::datapath::peer::{OwnKey, Peer, Receivers};
use crate::agent::datapath::standby::Preferred;
use crate::agent::datapath::stats::{DropReason, TunnelStats};
use crate::agent::datapath::table::{Kept, OpenDevice, Table};
use crate::agent::datapath::{Datapath, stats::AgentStats};
use crate::agent::keys::{Key, Keys};
use crate::agent::link::liveness::Timing;
use crate::agent::os::netlink::{Interface, Netlink};
use crate::agent::os::tun::TunDevice;
use crate::agent::os::{clock, holder, preflight};
use crate::agent::packet::coalesce::Merges;
use crate::agent::reconcile::{Actual, ActualRoute, Link, Op, Route};
use crate::agent::session::LinkView;
use crate::agent::state::{OpResult, Standing};
use crate::agent::target::{Forwarding, ForwardingTunnel, Other};
use crate::agent::wireguard::wipe_stack;
use crate::proto::host::random;
use crate::proto::model::{
    DeviceName, Framing, LinkStatus, MeshName, Offload, OffloadState, Offloads, PublicKey, TunnelName,
    TunnelState, TunnelStatus,
};

/// Words of the stack that making a key or a peer reaches: what the library keeps of a peer has 20 kB, and is moved.
const KEYS: usize = 32 << 10;
/// For how long it matters that somebody used another key: handshakes are begun every five seconds.
const OTHER_KEY: Duration = Duration::from_secs(30);

/// A device that this agent made.
struct OwnDevice {
    index: u32,
    open: OpenDevice,
    /// What may cross it as one packet, as it was last set.
    merges: Option<Merges>,
}

impl OwnDevice {
    /// Lets cross as one packet what may. A kernel that can do less than it said takes packets one by one.
    fn set_merging(&mut self, without: &Offloads) {
        let wanted =
            Merges { tcp: !without.contains(&Offload::TunTso), udp: !without.contains(&Offload::TunUso) };
        if self.merges == Some(wanted) {
            return;
        }
        self.merges = Some(wanted);
        if let Err(error) = self.open.tun.set_merging(wanted) {
            tracing::warn!(%error, "the kernel does not take the offloads of a device");
        }
    }
}

/// This host as the agent changes it.
pub struct Platform {
    netlink: Netlink,
    datapath: Datapath,
    agent_stats: Arc<AgentStats>,
    keys: Keys,
    /// By which the peers of encrypted tunnels know this host, unless it is a mesh's.
    own: Arc<OwnKey>,
    /// With what is wrong with it.
    mesh_keys: BTreeMap<MeshName, (Arc<OwnKey>, Option<String>)>,
    receivers: Arc<Receivers>,
    devices: BTreeMap<DeviceName, OwnDevice>,
    /// With the endpoint that it was learnt at.
    kept: BTreeMap<TunnelName, (Option<SocketAddr>, Kept)>,
    next_id: u64,
    next_peer: u64,
}

impl Platform {
    /// A host on which this agent has made nothing yet. `own` is its key among `keys`, and `receivers` are the data path's.
    pub fn new(
        netlink: Netlink,
        datapath: Datapath,
        agent_stats: Arc<AgentStats>,
        (keys, own): (Keys, OwnKey),
        receivers: Arc<Receivers>,
    ) -> Self {
        Self {
            netlink,
            datapath,
            agent_stats,
            keys,
            own: Arc::new(own),
            mesh_keys: BTreeMap::new(),
            receivers,
            devices: BTreeMap::new(),
            kept: BTreeMap::new(),
            next_id: 1,
            next_peer: 1,
        }
    }

    /// What belongs to no tunnel.
    pub fn agent_stats(&self) -> &AgentStats {
        &self.agent_stats
    }

    /// A tunnel's counters.
    pub fn stats(&self, tunnel: &TunnelName) -> Option<&TunnelStats> {
        self.kept.get(tunnel).map(|(_, kept)| &*kept.stats)
    }

    /// When the keys were agreed on by which the packets of an encrypted tunnel go now, as time since boot; `since_boot` is
    /// now. `None`: there are none, or it is not encrypted.
    pub fn last_handshake(&self, tunnel: &TunnelName, since_boot: Duration) -> Option<Duration> {
        let (_, kept) = self.kept.get(tunnel)?;
        kept.peer.as_ref()?.sessions().established(since_boot)
    }

    /// Where the peers of encrypted tunnels have shown to be, if it is not where they were said to be.
    pub fn roamed(&self) -> BTreeMap<TunnelName, IpAddr> {
        let names = self.kept.keys();
        names.filter_map(|name| Some((name.clone(), self.roamed_to(name)?.ip()))).collect()
    }

    /// The same of the peer of one tunnel, with its port.
    pub fn roamed_to(&self, tunnel: &TunnelName) -> Option<SocketAddr> {
        let (_, kept) = self.kept.get(tunnel)?;
        let roamed = kept.path.roamed();
        roamed.as_deref().filter(|_| kept.peer.is_some()).map(|roamed| roamed.address)
    }

    /// Whether keys have been agreed on with a tunnel's peer since that is known.
    pub fn is_keyed(&self, tunnel: &TunnelName) -> bool {
        let peer = self.kept.get(tunnel).and_then(|(_, kept)| kept.peer.as_ref());
        peer.is_some_and(|peer| peer.is_met())
    }

    /// The keys of meshes that are kept.
    pub fn open_keys(&mut self) -> BTreeMap<MeshName, PublicKey> {
        let meshes = self.keys.meshes();
        let open = |mesh: MeshName| match self.open_key(&mesh) {
            Ok(key) => Some((mesh, key)),
            Err(error) => {
                tracing::error!(%mesh, %error, "the key of a mesh cannot be had");
                None
            }
        };
        meshes.into_iter().filter_map(open).collect()
    }

    /// How the hosts that a probed tunnel joins hear each other; `since_epoch` makes a time since boot one since the Unix
    /// epoch.
    pub fn link(
        &self,
        tunnel: &TunnelName,
        since_epoch: impl FnMut(Duration) -> Duration,
    ) -> Option<LinkStatus> {
        let (_, kept) = self.kept.get(tunnel)?;
        kept.link.as_ref()?.status(since_epoch)
    }

    /// Whether somebody at the address of a tunnel's peer has used another key of late; `since_boot` is now.
    pub fn other_key(&self, tunnel: &TunnelName, since_boot: Duration) -> bool {
        let stats = self.kept.get(tunnel).map(|(_, kept)| &kept.stats);
        let marked = stats.and_then(|stats| stats.last_other_key());
        marked.is_some_and(|marked| since_boot < marked + OTHER_KEY)
    }

    /// By which interface packets to an address leave this host, where that is not `device`; empty: there is no route.
    pub async fn strays(&self, address: IpAddr, device: &DeviceName) -> Option<String> {
        let index = self.netlink.route_of(address).await.map_or(None, |(index, _)| index);
        if index.is_some() && index == self.devices.get(device).map(|device| device.index) {
            return None;
        }
        let interfaces = self.netlink.interfaces().await.ok()?;
        let taken = interfaces.into_iter().find(|(_, interface)| Some(interface.index) == index);
        Some(taken.map(|(name, _)| name).unwrap_or_default())
    }

    /// From now on it is told again that links have changed.
    pub fn look_at_links(&self) {
        self.datapath.look_at_links();
    }

    /// The links of which something is known, by their tunnels; times are since boot.
    pub fn links(&self) -> impl Iterator<Item = (&TunnelName, LinkStatus)> {
        self.ends().filter_map(|(name, link)| Some((name, link.status(|since_boot| since_boot)?)))
    }

    /// The largest packet of the underlay that was found to come through to the peers of probed tunnels, in bytes.
    pub fn carried(&self) -> BTreeMap<TunnelName, u16> {
        self.ends().filter_map(|(name, link)| Some((name.clone(), link.carries()?))).collect()
    }

    /// The tunnels whose peers are known not to be heard.
    pub fn silent(&self) -> BTreeSet<TunnelName> {
        self.ends().filter(|(_, link)| link.is_silent()).map(|(name, _)| name.clone()).collect()
    }

    /// How a tunnel with several remotes is; `since_boot` is now.
    pub fn standing(&self, tunnel: &TunnelName, since_boot: Duration) -> Standing {
        let kept = self.kept.get(tunnel).map(|(_, kept)| kept);
        Standing {
            link: kept.and_then(|kept| kept.link.as_ref()?.state()),
            fit: kept.and_then(|kept| kept.preferred.as_ref()?.fit(since_boot)),
        }
    }

    /// The same as a controller is told of them; `since_boot` is now.
    pub fn link_views(&self, since_boot: Duration) -> BTreeMap<TunnelName, LinkView> {
        self.ends().filter_map(|(name, link)| Some((name.clone(), link.view(since_boot)?))).collect()
    }

    /// What is wrong with the keys of meshes.
    pub fn key_faults(&self) -> Vec<String> {
        self.mesh_keys.values().filter_map(|(_, fault)| fault.clone()).collect()
    }

    fn open_key(&mut self, mesh: &MeshName) -> io::Result<PublicKey> {
        let Key { private, fault } = self.keys.of(mesh)?;
        let public = private.public();
        self.mesh_keys.insert(mesh.clone(), (Arc::new(OwnKey::new(private)), fault));
        Ok(public)
    }

    /// Notes in a tunnel's status which offloads have proved not to work; `since_boot` is now.
    pub fn note_refusals(&self, status: &mut TunnelStatus, since_boot: Duration) {
        let device = self.devices.get(&status.tunnel.device);
        let takes = device.map(|device| device.open.tun.merges());
        let trains = self.kept.get(&status.name).is_none_or(|(_, kept)| kept.path.takes_trains(since_boot));
        for OffloadState { offload, why_off } in &mut status.offloads {
            let is_refused = match offload {
                Offload::TunTso => takes.is_some_and(|takes| !takes.tcp),
                Offload::TunUso => takes.is_some_and(|takes| !takes.udp),
                Offload::UdpGso => !trains,
                Offload::UdpGro => false,
            };
            if is_refused && why_off.is_none() {
                *why_off = Some(match offload {
                    Offload::UdpGso => {
                        "refused on the way to this peer; tried again within a minute".to_owned()
                    }
                    Offload::TunTso | Offload::TunUso | Offload::UdpGro => {
                        "refused by the kernel on this device".to_owned()
                    }
                });
            }
        }
    }

    /// Notes in a tunnel's status which other process holds its device.
    pub fn note_holder(&self, status: &mut TunnelStatus) {
        let device = &status.tunnel.device;
        if matches!(status.state, TunnelState::Failed(_))
            && !self.devices.contains_key(device)
            && let Some(holder) = holder::of(device)
        {
            status.notes.push(format!("device {device} is held by {holder}"));
        }
    }

    /// Forgets the counters of tunnels that are not wanted any more.
    pub fn retain_stats(&mut self, mut wanted: impl FnMut(&TunnelName) -> bool) {
        self.kept.retain(|tunnel, _| wanted(tunnel));
    }

    /// Performs an operation. [`Op::Resolve`] is not among those that a host is asked for.
    pub async fn perform(&mut self, op: &Op) -> OpResult {
        let done = match op {
            Op::Observe => return self.observe().await.map_or_else(failed, OpResult::Observed),
            Op::MeasurePaths(addresses) => return self.measure(addresses).await,
            Op::Resolve(_) => Ok(()),
            Op::OpenKey(mesh) => {
                let opened = self.open_key(mesh);
                wipe_stack::<KEYS>();
                return opened.map_or_else(failed, OpResult::Opened);
            }
            Op::RemoveKey(mesh) => {
                self.mesh_keys.remove(mesh);
                self.keys.remove(mesh)
            }
            Op::Publish(forwarding) => {
                self.publish(forwarding);
                Ok(())
            }
            Op::CreateDevice(name) => self.create(name).await,
            Op::DeleteDevice(name) => self.delete(name).await,
            Op::SetMtu(name, mtu) => match self.index(name) {
                Ok(index) => self.netlink.set_mtu(index, *mtu).await,
                Err(error) => Err(error),
            },
            Op::AddAddress(name, address) => match self.index(name) {
                Ok(index) => self.netlink.add_address(index, *address).await,
                Err(error) => Err(error),
            },
            Op::RemoveAddress(name, address) => match self.index(name) {
                Ok(index) => self.netlink.remove_address(index, *address).await,
                Err(error) => Err(error),
            },
            Op::SetUp(name) => match self.index(name) {
                Ok(index) => self.netlink.set_up(index).await,
                Err(error) => Err(error),
            },
            Op::AddRoute(route) => self.add_route(route).await,
            Op::ChangeRoute(route) => match self.index(&route.device) {
                Ok(index) => self.netlink.change_route(index, route).await,
                Err(error) => Err(error),
            },
            Op::RemoveRoute(route) => self.remove_route(route).await,
        };
        match done {
            Ok(()) => OpResult::Done,
            Err(error) => OpResult::Failed(in_words(op, &error)),
        }
    }

    /// This end of all links.
    fn ends(&self) -> impl Iterator<Item = (&TunnelName, &LinkEnd)> {
        self.kept.iter().filter_map(|(name, (_, kept))| Some((name, kept.link.as_deref()?)))
    }

    /// Whether the interface of a number is a device of this agent's.
    pub fn is_own(&self, index: u32) -> bool {
        self.devices.values().any(|device| device.index == index)
    }

    /// What the kernel holds. A device that someone else removed is let go.
    ///
    /// # Errors
    /// What the kernel says.
    pub async fn observe(&mut self) -> io::Result<Actual> {
        let interfaces = self.netlink.interfaces().await?;
        let routes = self.netlink.own_routes(&interfaces).await?;
        self.devices.retain(|name, device| {
            interfaces.get(name.as_str()).is_some_and(|interface| interface.index == device.index)
        });
        let own = |name: &str| self.devices.iter().any(|(own, _)| own.as_str() == name);
        let links = interfaces.into_iter().map(|(name, Interface { up, mtu, addresses, .. })| {
            let ours = own(&name);
            (name, Link { ours, up, mtu, addresses })
        });
        Ok(Actual { links: links.collect(), routes })
    }

    async fn measure(&self, addresses: &[IpAddr]) -> OpResult {
        let interfaces = match self.netlink.interfaces().await {
            Ok(interfaces) => interfaces,
            Err(error) => return failed(error),
        };
        let mut measured = BTreeMap::new();
        for address in addresses {
            let mtu = self.netlink.path_mtu(*address, &interfaces).await;
            measured.insert(*address, mtu.map_err(|error| error.to_string()));
        }
        OpResult::Measured(measured)
    }

    fn publish(&mut self, forwarding: &Forwarding) {
        let mut table = Table::default();
        let mut stay = BTreeSet::new();
        let links = forwarding.values().flat_map(|device| device.tunnels.values());
        let timing = Timing::of_links(links.filter(|tunnel| tunnel.probed).count());
        for (name, device) in forwarding {
            if let Some(own) = self.devices.get_mut(name) {
                own.set_merging(&device.without);
                let of_mesh = device.key.as_ref().and_then(|mesh| self.mesh_keys.get(mesh));
                let own_key = of_mesh.map_or(&self.own, |(key, _)| key);
                let (all, receivers, next) = (&mut self.kept, &self.receivers, &mut self.next_peer);
                table.add(own.open.clone(), device, |tunnel, wanted| {
                    let ForwardingTunnel {
                        endpoint,
                        others,
                        framing,
                        keepalive,
                        also_plain,
                        probed,
                        echo,
                        underlay,
                        ..
                    } = wanted;
                    stay.insert(tunnel.clone());
                    let new = || (*endpoint, Kept::default());
                    let (learnt_at, kept) = all.entry(tunnel.clone()).or_insert_with(new);
                    // The peer stays who it is where another one of its endpoints is used.
                    let is_of_peer = |at: SocketAddr| others.iter().any(|other| other.address == at);
                    let is_other_end = learnt_at.is_some_and(is_of_peer) && endpoint.is_some();
                    let mut is_another = *learnt_at != *endpoint && !is_other_end;
                    if *learnt_at != *endpoint {
                        match (*endpoint, std::mem::replace(learnt_at, *endpoint)) {
                            // It is where it was, until it shows to be somewhere else.
                            (None, Some(last)) if kept.path.roamed().is_none() => {
                                let _ = kept.path.roam(None, last);
                            }
                            (None, Some(_)) => {}
                            (Some(_) | None, _) => kept.path = Arc::default(),
                        }
                    }
                    let wanted = match framing {
                        Framing::Wireguard(key) => Some((*key, *keepalive)),
                        Framing::Raw | Framing::Pi => None,
                    };
                    let is_same = match (&kept.peer, wanted) {
                        (Some(peer), Some(wanted)) => {
                            (peer.key, peer.keepalive) == wanted && Arc::ptr_eq(&peer.own, own_key)
                        }
                        (peer, wanted) => peer.is_some() == wanted.is_some(),
                    };
                    is_another |= !is_same;
                    if !is_same {
                        if let Some(peer) = &kept.peer {
                            let lost = peer.sessions().forget();
                            kept.stats.sent.drops.count(DropReason::NoSession, lost as u64);
                            // Where that one is, the next one is not.
                            kept.path = Arc::default();
                        }
                        // What passed before says nothing of whether this passes, unless it passes as well.
                        if !also_plain || kept.peer.is_some() {
                            kept.stats.forget_received();
                        }
                        kept.peer = wanted.map(|(key, keepalive)| {
                            *next += 1;
                            let (own, receivers) = (Arc::clone(own_key), Arc::clone(receivers));
                            Arc::new(Peer::new(*next, own, key, keepalive, receivers))
                        });
                    }
                    let measures = *probed || echo.is_some();
                    match &kept.link {
                        Some(link) if measures && !is_another && link.asks() == *echo => {
                            link.set_timing(timing)
                        }
                        Some(_) | None => {
                            let is_encrypted = kept.peer.is_some();
                            kept.link = measures.then(|| new_link(timing, *echo, is_encrypted)).flatten();
                        }
                    }
                    if let Some(link) = kept.link.as_ref().filter(|_| is_other_end) {
                        link.forget_path();
                    }
                    kept.preferred = preferred(kept.preferred.take(), others, *probed);
                    if let (Some(link), Some(underlay), true) = (&kept.link, underlay, *probed) {
                        link.set_path(underlay.is_v4, underlay.ceiling, clock::since_boot());
                    }
                    kept.clone()
                });
            }
        }
        // Its peer is told that it is gone, and when it is back it is another.
        let gone = self.kept.iter_mut().filter(|(name, _)| !stay.contains(*name));
        gone.for_each(|(_, (_, kept))| (kept.link, kept.preferred) = (None, None));
        wipe_stack::<KEYS>();
        self.datapath.publish(table);
    }

    async fn create(&mut self, name: &DeviceName) -> io::Result<()> {
        let tun = TunDevice::create(name)?;
        let index = self.netlink.index_of(name).await?;
        self.netlink.prepare(name, index).await?;
        let open = OpenDevice { id: self.next_id, tun: Arc::new(tun) };
        self.next_id += 1;
        self.devices.insert(name.clone(), OwnDevice { index, open, merges: None });
        Ok(())
    }

    async fn delete(&mut self, name: &DeviceName) -> io::Result<()> {
        let index = self.index(name)?;
        // Data threads may hold the device for one more round; its name must be free now.
        self.netlink.delete(index).await?;
        self.devices.remove(name);
        Ok(())
    }

    async fn add_route(&self, route: &Route) -> io::Result<()> {
        self.netlink.add_route(self.index(&route.device)?, route).await
    }

    async fn remove_route(&self, route: &ActualRoute) -> io::Result<()> {
        let name = route.device.parse().map_err(io::Error::other)?;
        self.netlink.remove_route(self.index(&name)?, route).await
    }

    fn index(&self, name: &DeviceName) -> io::Result<u32> {
        self.devices.get(name).map(|device| device.index).ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

/// The endpoints that are preferred to the one in use, of a tunnel that is probed; `known` are those of before.
fn preferred(known: Option<Arc<Preferred>>, others: &[Other], is_probed: bool) -> Option<Arc<Preferred>> {
    let endpoints = || others.iter().filter(|other| other.is_preferred).map(|other| other.address);
    endpoints().next().filter(|_| is_probed)?;
    let known = known.filter(|known| known.are(endpoints()));
    Some(known.unwrap_or_else(|| Arc::new(Preferred::new(endpoints(), clock::since_boot()))))
}

/// An end of a link of which nothing is known, which asks by ICMP echoes if it is said from where and whom; `None`: the kernel
/// has no random bits, and it is tried with the next table.
fn new_link(timing: Timing, echo: Option<(IpAddr, IpAddr)>, is_encrypted: bool) -> Option<Arc<LinkEnd>> {
    let bits = random::bits().ok()?;
    if let Some(ends) = echo {
        return Some(Arc::new(LinkEnd::asking(ends, is_encrypted, bits.to_be_bytes(), clock::since_boot())));
    }
    let number = NonZeroU32::new((bits >> 64) as u32).unwrap_or(NonZeroU32::MIN);
    Some(Arc::new(LinkEnd::new(number, timing, bits as u64, clock::since_boot())))
}

fn failed(error: io::Error) -> OpResult {
    OpResult::Failed(error.to_string())
}

/// What failed, why, and what to do where that can be told.
fn in_words(op: &Op, error: &io::Error) -> String {
    match (op, error.raw_os_error()) {
        (Op::CreateDevice(name), Some(libc::EBUSY)) => {
            let holder = holder::of(name).unwrap_or_else(|| "another process".to_owned());
            format!("device {name} is held by {holder}: end it, or choose another device name")
        }
        (Op::CreateDevice(name), _) => {
            // What was there when the agent started may be gone.
            let reason =
                preflight::check().err().map_or_else(|| error.to_string(), |missing| missing.to_string());
            format!("device {name} cannot be made: {reason}")
        }
        (Op::SetMtu(name, mtu), _) => format!("device {name} does not take mtu {mtu}: {error}"),
        (Op::AddAddress(name, address), _) => format!("device {name} does not take {address}: {error}"),
        (Op::RemoveAddress(name, address), _) => format!("device {name} does not lose {address}: {error}"),
        (Op::SetUp(name), _) => format!("device {name} does not come up: {error}"),
        (Op::DeleteDevice(name), _) => format!("device {name} cannot be removed: {error}"),
        (Op::AddRoute(route), Some(libc::EEXIST)) => format!(
            "this host has another route to {}: remove it (`ip route show {}`) or the tunnel's",
            route.prefix, route.prefix
        ),
        (Op::AddRoute(route) | Op::ChangeRoute(route), _) => {
            format!("the kernel does not take the route to {}: {error}", route.prefix)
        }
        (Op::RemoveKey(mesh), _) => format!("the key of mesh {mesh} cannot be removed: {error}"),
        (
            Op::Observe
            | Op::MeasurePaths(_)
            | Op::Resolve(_)
            | Op::OpenKey(_)
            | Op::Publish(_)
            | Op::RemoveRoute(_),
            _,
        ) => error.to_string(),
    }
}
