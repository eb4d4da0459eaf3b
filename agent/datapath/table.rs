//! Which tunnel a packet takes, and which tunnel a datagram belongs to.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;
use prefix_trie::joint::{JointPrefixMap, JointPrefixSet};

use super::batch::Place;
use super::link::{Fitness, LinkEnd};
use super::path::{Destination, Path};
use super::peer::{OwnKey, Peer, PeerId};
use super::standby::Preferred;
use super::stats::{DropReason, TunnelStats};
use crate::agent::os::tun::TunDevice;
use crate::agent::packet::parse::Packet;
use crate::agent::target::{ForwardingDevice, ForwardingTunnel, Other};
use crate::proto::model::{Framing, Offload, PublicKey, TunnelName};

/// An open device with the number that tells it from an earlier one of its name.
#[derive(Debug, Clone)]
pub struct OpenDevice {
    /// Unique in the agent's life; never 0.
    pub id: u64,
    /// The device.
    pub tun: Arc<TunDevice>,
}

/// All devices and tunnels that carry packets.
#[derive(Debug, Default)]
pub struct Table {
    devices: Vec<Device>,
    by_id: HashMap<u64, usize>,
    by_endpoint: HashMap<(IpAddr, u16), Place>,
    by_address: HashMap<IpAddr, Place>,
    /// The peers of encrypted tunnels, by the key of this host that they know.
    by_key: Vec<(Arc<OwnKey>, HashMap<PublicKey, Place>)>,
    by_peer: HashMap<PeerId, Place>,
    /// All encrypted tunnels.
    encrypted: Vec<Place>,
    /// All tunnels whose links are measured.
    measured: Vec<Place>,
    /// A tunnel for which datagrams must not arrive merged.
    is_without_gro: bool,
}

/// A device and the tunnels on it.
#[derive(Debug)]
pub struct Device {
    /// The open device.
    pub open: OpenDevice,
    addresses: BTreeSet<IpAddr>,
    tunnels: Vec<Tunnel>,
    /// Whether there are tunnels that rest, and are none of these.
    rests: bool,
    choice: Choice,
}

/// How a packet of a device finds its tunnel.
#[derive(Debug)]
enum Choice {
    /// The device has one peer, and everything goes to it.
    Whole(usize),
    /// The longest prefix that has the destination.
    ByPrefix(Box<JointPrefixMap<IpNet, Sharers>>),
}

/// The tunnels that share a prefix, the preferred first.
#[derive(Debug)]
struct Sharers {
    first: usize,
    others: Box<[usize]>,
}

impl Sharers {
    /// Of tunnels with their preferences; of equal ones the first to be given comes first.
    fn new(mut tunnels: Vec<(u32, usize)>) -> Option<Self> {
        tunnels.sort_by_key(|(preference, _)| *preference);
        let mut tunnels = tunnels.into_iter().map(|(_, tunnel)| tunnel);
        Some(Self { first: tunnels.next()?, others: tunnels.collect() })
    }

    /// The preferred one of those that are fittest; the first where nothing gets through any.
    fn choose(&self, fitness: impl Fn(usize) -> Fitness) -> usize {
        if self.others.is_empty() {
            return self.first;
        }
        let (mut best, mut chosen) = (fitness(self.first), self.first);
        for tunnel in &self.others {
            let fitness = fitness(*tunnel);
            if fitness > best {
                (best, chosen) = (fitness, *tunnel);
            }
        }
        chosen
    }
}

/// What of a tunnel outlives every table.
#[derive(Debug, Clone, Default)]
pub struct Kept {
    /// Its counters.
    pub stats: Arc<TunnelStats>,
    /// What is learnt of the way to its peer.
    pub path: Arc<Path>,
    /// The sessions with its peer, if it is encrypted.
    pub peer: Option<Arc<Peer>>,
    /// This end of its link, if that is measured.
    pub link: Option<Arc<LinkEnd>>,
    /// The endpoints that are preferred to the one in use, if it is probed.
    pub preferred: Option<Arc<Preferred>>,
}

/// A tunnel as packets see it.
#[derive(Debug)]
pub struct Tunnel {
    /// Where its datagrams go, unless its peer has roamed; absent: nobody has said where its peer is.
    pub destination: Option<Destination>,
    /// The sessions with its peer, if it is encrypted: then nothing else is sent or taken, unless it is `also_plain`.
    pub peer: Option<Arc<Peer>>,
    /// Whether an encrypted tunnel takes unencrypted packets, too, and sends them so until there are keys.
    pub also_plain: bool,
    /// Whether packets go behind four bytes of packet information.
    pub packet_information: bool,
    /// The largest packet that is sent whole, in bytes.
    pub mtu: u16,
    /// The largest packet that TCP connections are told of, in bytes.
    pub tcp_mtu: u16,
    /// What goes around a packet, in bytes, on a path that is known.
    overhead: Option<u16>,
    /// Whether datagrams may leave as one message.
    pub takes_trains: bool,
    /// Its counters.
    pub stats: Arc<TunnelStats>,
    /// What is learnt of the way to its peer.
    pub path: Arc<Path>,
    /// This end of its link, if that is measured.
    pub link: Option<Arc<LinkEnd>>,
    /// The endpoints that are preferred to the one in use, if it is probed.
    pub preferred: Option<Arc<Preferred>>,
    /// Where else its peer is.
    others: Vec<Other>,
    /// `None`: every source may come from the peer.
    allowed: Option<JointPrefixSet<IpNet>>,
}

impl Table {
    /// Adds a device with its tunnels; `kept` has what outlives the table of each.
    pub fn add(
        &mut self,
        open: OpenDevice,
        forwarding: &ForwardingDevice,
        mut kept: impl FnMut(&TunnelName, &ForwardingTunnel) -> Kept,
    ) {
        let device = self.devices.len();
        let mut tunnels = Vec::with_capacity(forwarding.tunnels.len());
        let mut prefixes: JointPrefixMap<IpNet, Vec<(u32, usize)>> = JointPrefixMap::new();
        for (name, wanted) in &forwarding.tunnels {
            let tunnel = tunnels.len();
            let place = Place { device, tunnel };
            let endpoint = wanted.endpoint;
            let kept = kept(name, wanted);
            if let Some(peer) = &kept.peer {
                self.add_peer(peer, place);
            }
            if kept.link.is_some() {
                self.measured.push(place);
            }
            let in_use = endpoint.map(|endpoint| (endpoint, wanted.exact_port));
            let others = wanted.others.iter().map(|other| (other.address, other.exact_port));
            for (endpoint, exact_port) in in_use.into_iter().chain(others) {
                let at = (endpoint.ip(), endpoint.port());
                if kept.peer.is_some() && !wanted.also_plain {
                    // What comes from there and is not encrypted belongs to a plain tunnel first.
                    self.by_endpoint.entry(at).or_insert(place);
                } else {
                    self.by_endpoint.insert(at, place);
                    if !exact_port {
                        self.by_address.insert(endpoint.ip(), place);
                    }
                }
            }
            for allowed in &wanted.allowed_prefixes {
                let sharer = (allowed.preference, tunnel);
                match prefixes.get_mut(&allowed.prefix) {
                    Some(sharers) => sharers.push(sharer),
                    None => _ = prefixes.insert(allowed.prefix, vec![sharer]),
                }
            }
            self.is_without_gro |= wanted.without.contains(&Offload::UdpGro);
            tunnels.push(Tunnel::new(wanted, kept));
        }
        let whole = tunnels.iter().position(|tunnel| tunnel.allowed.is_none());
        let choice = match whole {
            Some(tunnel) => Choice::Whole(tunnel),
            None => {
                let sharers = prefixes.into_iter();
                let sharers = sharers.filter_map(|(prefix, tunnels)| Some((prefix, Sharers::new(tunnels)?)));
                Choice::ByPrefix(Box::new(sharers.collect()))
            }
        };
        self.by_id.insert(open.id, device);
        let (addresses, rests) = (forwarding.addresses.clone(), forwarding.rests);
        self.devices.push(Device { open, addresses, tunnels, rests, choice });
    }

    fn add_peer(&mut self, peer: &Peer, place: Place) {
        self.by_peer.insert(peer.id, place);
        self.encrypted.push(place);
        let known = self.by_key.iter_mut().find(|(own, _)| Arc::ptr_eq(own, &peer.own));
        match known {
            Some((_, peers)) => _ = peers.insert(peer.key, place),
            None => self.by_key.push((Arc::clone(&peer.own), HashMap::from([(peer.key, place)]))),
        }
    }

    /// All devices.
    pub fn devices(&self) -> &[Device] {
        &self.devices
    }

    /// Whether datagrams may arrive at the data port as one message.
    pub fn takes_merged(&self) -> bool {
        !self.is_without_gro
    }

    /// The position of an open device among all, by its number.
    pub fn position(&self, id: u64) -> Option<usize> {
        self.by_id.get(&id).copied()
    }

    /// A tunnel of this table.
    pub fn tunnel(&self, place: Place) -> Option<&Tunnel> {
        self.devices.get(place.device)?.tunnels.get(place.tunnel)
    }

    /// The keys of this host by which peers know it, with the tunnels to them.
    pub fn own_keys(&self) -> &[(Arc<OwnKey>, HashMap<PublicKey, Place>)] {
        &self.by_key
    }

    /// The tunnel of a peer.
    pub fn peer(&self, peer: PeerId) -> Option<Place> {
        self.by_peer.get(&peer).copied()
    }

    /// All encrypted tunnels, with their peers.
    pub fn peers(&self) -> impl Iterator<Item = (&Tunnel, &Peer)> {
        (0..self.encrypted.len()).filter_map(|position| self.peer_at(position))
    }

    /// The encrypted tunnel at a position of all of them.
    pub fn peer_at(&self, position: usize) -> Option<(&Tunnel, &Peer)> {
        let tunnel = self.tunnel(*self.encrypted.get(position)?)?;
        Some((tunnel, tunnel.peer.as_deref()?))
    }

    /// The tunnels whose links are measured, with this end of them, that another table has no more, and that have gone for good.
    pub fn gone_in(&self, after: &Self) -> impl Iterator<Item = (&Tunnel, &LinkEnd)> {
        let stay: HashSet<*const LinkEnd> = after.links().map(|(_, end)| std::ptr::from_ref(end)).collect();
        let resting = after.devices.iter().filter(|device| device.rests);
        let resting: HashSet<u64> = resting.map(|device| device.open.id).collect();
        let gone = self.measured.iter().filter(move |place| {
            let device = self.devices.get(place.device);
            device.is_some_and(|device| !resting.contains(&device.open.id))
        });
        let gone = gone.filter_map(|place| self.tunnel(*place));
        let ends = gone.filter_map(|tunnel| Some((tunnel, tunnel.link.as_deref()?)));
        ends.filter(move |(_, end)| !stay.contains(&std::ptr::from_ref(*end)))
    }

    /// All tunnels whose links are measured, with this end of them.
    pub fn links(&self) -> impl Iterator<Item = (&Tunnel, &LinkEnd)> {
        let tunnels = self.measured.iter().filter_map(|place| self.tunnel(*place));
        tunnels.filter_map(|tunnel| Some((tunnel, tunnel.link.as_deref()?)))
    }

    /// Notes that the peer of a tunnel, who has shown who it is, is at `source` and sends to `local`; not where that is
    /// inside the overlay: a tunnel would run inside itself. Returns whether it was somewhere else before. Who shows it by
    /// the source alone, where it is not `is_sealed`, is nowhere else. What comes from an endpoint that is not the one in use
    /// says nothing of the way there.
    pub fn mark_way(&self, tunnel: &Tunnel, source: SocketAddr, local: IpAddr, is_sealed: bool) -> bool {
        if self.devices.iter().any(|device| device.addresses.contains(&local)) {
            return false;
        }
        if tunnel.is_other(source) {
            return is_sealed && tunnel.path.forget_roamed();
        }
        // Once what is sent is sealed, nobody who shows less says where from.
        if is_sealed || tunnel.addressee().is_none() {
            tunnel.path.mark_local(local);
        }
        is_sealed && tunnel.path.roam(tunnel.destination.as_ref(), source)
    }

    /// The tunnel that a datagram from `source` belongs to, if it is not encrypted.
    pub fn sender(&self, source: SocketAddr) -> Option<Place> {
        let exact = self.by_endpoint.get(&(source.ip(), source.port()));
        exact.or_else(|| self.by_address.get(&source.ip())).copied()
    }
}

impl Device {
    /// The tunnel that a packet to `destination` takes, and its position on the device.
    pub fn tunnel_to(&self, destination: IpAddr) -> Option<(usize, &Tunnel)> {
        let tunnel = match &self.choice {
            Choice::Whole(tunnel) => *tunnel,
            Choice::ByPrefix(prefixes) => {
                let sharers = prefixes.get_lpm(&IpNet::from(destination))?.1;
                let link = |tunnel: usize| self.tunnels.get(tunnel)?.link.as_ref();
                sharers.choose(|tunnel| link(tunnel).map_or(Fitness::Fit, |link| link.fitness()))
            }
        };
        Some((tunnel, self.tunnels.get(tunnel)?))
    }

    /// Judges a packet that came from the peer of `tunnel`.
    pub fn admit(&self, tunnel: &Tunnel, packet: &Packet<'_>) -> Result<(), DropReason> {
        let (source, destination) = (packet.source(), packet.destination());
        let no_source = source.is_multicast() || is_never_carried(source) || self.addresses.contains(&source);
        if no_source || is_never_carried(destination) {
            return Err(DropReason::Martian);
        }
        match &tunnel.allowed {
            Some(allowed) if allowed.get_lpm(&IpNet::from(source)).is_none() => {
                Err(DropReason::SourceNotAllowed)
            }
            Some(_) | None => Ok(()),
        }
    }
}

impl Tunnel {
    /// The peer for whom what is sent now is encrypted.
    pub fn addressee(&self) -> Option<&Peer> {
        self.peer.as_deref().filter(|peer| !self.also_plain || peer.is_met())
    }

    /// Whether an unencrypted packet is taken.
    pub fn takes_plain(&self) -> bool {
        self.peer.is_none() || self.also_plain
    }

    /// This end of its link, if the other one sends probes, too.
    pub fn prober(&self) -> Option<&LinkEnd> {
        self.link.as_deref().filter(|link| link.asks().is_none())
    }

    /// Whether the peer is at an address beside the one in use.
    fn is_other(&self, source: SocketAddr) -> bool {
        if self.others.is_empty() {
            return false;
        }
        let is_in_use = self.destination.as_ref().is_some_and(|to| to.address.ip() == source.ip());
        self.others.iter().any(|other| {
            other.address == source || (!is_in_use && !other.exact_port && other.address.ip() == source.ip())
        })
    }

    /// How long a frame of tunmesh's own is that makes a packet of so many bytes on the underlay; `None`: that is too little, or
    /// it is not known where the peer is.
    pub fn frame_in(&self, size: u16) -> Option<usize> {
        usize::from(size).checked_sub(self.overhead?.into())
    }

    fn new(wanted: &ForwardingTunnel, Kept { stats, path, peer, link, preferred }: Kept) -> Self {
        let prefixes = &wanted.allowed_prefixes;
        let allowed = prefixes.iter().map(|allowed| allowed.prefix).collect();
        Self {
            destination: wanted.endpoint.map(Destination::from),
            peer,
            also_plain: wanted.also_plain,
            packet_information: wanted.framing == Framing::Pi,
            mtu: wanted.mtu.get(),
            tcp_mtu: wanted.tcp_mtu.get(),
            overhead: wanted.underlay.map(|underlay| underlay.overhead),
            takes_trains: !wanted.without.contains(&Offload::UdpGso),
            stats,
            path,
            link,
            preferred,
            others: wanted.others.clone(),
            allowed: (!prefixes.is_empty()).then_some(allowed),
        }
    }
}

/// Addresses that never leave a host (RFC 1122 section 3.2.1.3, RFC 4291 section 2.5).
fn is_never_carried(address: IpAddr) -> bool {
    let broadcast = matches!(address, IpAddr::V4(v4) if v4.is_broadcast());
    address.is_loopback() || address.is_unspecified() || broadcast
}

#[cfg(test)]
mod tests;
