//! From a socket to the devices.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use super::Shared;
use super::asking::{Asking, Marking};
use super::batch::Place;
use super::load::Load;
use super::stats::DropReason;
use super::table::{Device, Table, Tunnel};
use crate::agent::os::clock;
use crate::agent::os::udp::peer::PeerSocket;
use crate::agent::os::udp::receive::{Reading, Received, Receiver};
use crate::agent::os::udp::{set_merging, tell_place, tell_tos};
use crate::agent::packet::coalesce::{Coalescer, Owner, Write};
use crate::agent::packet::frame::{self, Frame};
use crate::agent::packet::parse::Packet;
use crate::agent::packet::{ecn, mss};

/// As many bytes are handed on at once: what lies longer leaves the processor's cache.
const ENOUGH: usize = 60_000;

/// How many bytes come in before somebody is picked who may have a socket of its own.
const SAMPLE: usize = 4 << 20;

/// How often a socket is read at most to empty it: a full one has as many datagrams of 1,400 bytes.
const READINGS: usize = 500;

/// What was found of the datagram before, which holds for the next one that came the same way.
struct Before {
    /// Its source, the address of this host that it came to, and its TOS byte.
    way: (SocketAddr, Option<IpAddr>, u8),
    sender: Place,
    /// The ends of its packet, if the device may have it.
    admitted: Option<(IpAddr, IpAddr)>,
    /// Whether it was a packet and nothing else, so that the next may go on where it ended.
    goes_on: bool,
    /// Whether the address of this host is noted as the one that the peer sends to.
    is_local_marked: bool,
}

/// Where datagrams are read.
enum Source {
    /// The data port in one address family, and whether it tells where they arrived.
    Port { is_v4: bool, asking: Asking, tells_place: bool },
    /// A socket of one peer, and whether it tells how datagrams were marked.
    Peer { socket: PeerSocket, marking: Marking, tells_tos: bool },
}

/// What brings what arrives at a socket to the devices.
pub(super) struct Ingress {
    shared: Arc<Shared>,
    source: Source,
    receiver: Receiver,
    coalescer: Coalescer,
    /// Whether the socket delivers as one message what arrived so.
    merges: bool,
    /// What it has received of late.
    load: Load,
    /// Bytes for tunnels that were received since somebody was picked.
    heard: usize,
    /// Who sent the last message, where it is a tunnel's.
    last: Option<SocketAddr>,
    /// Whether there was a packet for a device since it was asked last.
    has_packet: bool,
    /// Whether there was a packet in the last reading that routers may mark.
    has_markable: bool,
}

impl Ingress {
    /// Of the data port in one address family.
    pub(super) fn of_port(shared: Arc<Shared>, is_v4: bool) -> Self {
        Self::new(shared, Source::Port { is_v4, asking: Asking::default(), tells_place: true })
    }

    /// Of one peer, whom the port hears no more then, and who is taken to send much.
    ///
    /// # Errors
    /// Where it has sent nothing yet, or no socket for it alone is to be had.
    pub(super) fn of_peer(shared: Arc<Shared>, peer: SocketAddr) -> io::Result<Self> {
        let table = shared.table.load();
        let tunnel = table.sender(peer).and_then(|place| table.tunnel(place));
        let local = tunnel.and_then(|tunnel| tunnel.path.local()).ok_or(io::ErrorKind::NotFound)?;
        let port = shared.sockets.of(peer).ok_or(io::ErrorKind::NotFound)?;
        let socket = PeerSocket::open(port, peer, local)?;
        let ingress = Self::new(
            Arc::clone(&shared),
            Source::Peer { socket, marking: Marking::default(), tells_tos: true },
        );
        ingress.load.raise(clock::since_boot());
        Ok(ingress)
    }

    fn new(shared: Arc<Shared>, source: Source) -> Self {
        Self {
            shared,
            source,
            receiver: Receiver::default(),
            coalescer: Coalescer::default(),
            merges: false,
            load: Load::default(),
            heard: 0,
            last: None,
            has_packet: false,
            has_markable: false,
        }
    }

    /// Takes it from now on that everything comes from the peer, for whom alone the socket is.
    pub(super) fn settle(&mut self) {
        if let Source::Peer { socket, .. } = &self.source {
            self.receiver.set_peer(socket.peer());
        }
    }

    /// Leaves its peer to the port again, but for what has arrived already.
    pub(super) fn leave(&self) {
        if let Source::Peer { socket, .. } = &self.source {
            socket.leave();
        }
    }

    /// Whether what it reads is hardly worth a socket: little came of late, or the last of it was no tunnel's.
    pub(super) fn is_idle(&self) -> bool {
        self.last.is_none() || !self.load.is_high(clock::since_boot())
    }

    /// Whether there was a packet for a device since this was asked last.
    pub(super) fn take_has_packet(&mut self) -> bool {
        std::mem::take(&mut self.has_packet)
    }

    /// Begins anew to find out who sends much.
    pub(super) fn forget_who_sends(&mut self) {
        (self.heard, self.last) = (0, None);
    }

    /// Now and then, somebody who very likely sends much.
    pub(super) fn loud_peer(&mut self) -> Option<SocketAddr> {
        let loud = self.last.filter(|_| self.heard >= SAMPLE);
        if loud.is_some() {
            self.forget_who_sends();
        }
        loud
    }

    /// Reads what waits at the socket until nothing does, as far as a full socket has it. Returns whether it came so far.
    ///
    /// # Errors
    /// Where the socket cannot be read any more.
    pub(super) fn empty(&mut self) -> io::Result<bool> {
        for _ in 0..READINGS {
            if !self.pass(Reading::Many)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Reads what waits at the socket, and hands it on. Returns whether there was anything.
    ///
    /// # Errors
    /// Where the socket cannot be read any more.
    pub(super) fn pass(&mut self, reading: Reading) -> io::Result<bool> {
        let shared = Arc::clone(&self.shared);
        let Some(socket) = socket(&self.source, &shared) else { return Ok(false) };
        match self.receiver.read(socket, reading) {
            Ok(()) => {
                let table = shared.table.load();
                self.forward(&table, clock::since_boot());
                self.adjust(&table);
                Ok(true)
            }
            Err(error) if is_of_the_socket(&error) => Err(error),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            // Of an earlier datagram, and told once.
            Err(_) => Ok(true),
        }
    }

    /// Has the socket tell what is to be known of what comes next.
    fn adjust(&mut self, table: &Table) {
        // What waits as one message would lose where its datagrams end.
        if self.merges != table.takes_merged()
            && self.receiver.is_emptied()
            && let Some(socket) = socket(&self.source, &self.shared)
        {
            self.merges = table.takes_merged();
            // Kernels before 5.0 merge none, and nothing is said.
            let _ = set_merging(socket, self.merges);
        }
        match &mut self.source {
            Source::Port { is_v4, asking, tells_place } => {
                let asks = asking.next(self.receiver.count());
                if asks != *tells_place
                    && let Some(socket) = self.shared.sockets.of_family(*is_v4)
                    && tell_place(socket, *is_v4, asks).is_ok()
                {
                    *tells_place = asks;
                }
            }
            Source::Peer { socket, marking, tells_tos } => {
                let asks = marking.next(std::mem::take(&mut self.has_markable));
                let is_v4 = socket.peer().is_ipv4();
                if asks != *tells_tos && tell_tos(socket.socket(), is_v4, asks).is_ok() {
                    *tells_tos = asks;
                }
            }
        }
    }

    /// Hands on what was read; `now` is time since boot.
    fn forward(&mut self, table: &Table, now: Duration) {
        let (mut before, mut all, mut handed_on) = (None, 0, 0);
        for index in 0..self.receiver.count() {
            let message = self.receiver.message(index);
            let length = message.as_ref().map_or(0, |message| message.place.len());
            all += length;
            self.take_in(table, message, now, &mut before);
            if before.is_some() {
                self.heard += length;
            }
            if all - handed_on >= ENOUGH {
                self.hand_on(table);
                handed_on = all;
            }
        }
        self.hand_on(table);
        for load in [&self.shared.load, &self.load] {
            load.add(self.receiver.count(), all, now);
        }
        self.last = before.map(|before| before.way.0);
    }

    /// Gives the devices what was taken in.
    fn hand_on(&mut self, table: &Table) {
        self.coalescer.drain(self.receiver.buffer_mut(), |buffer, write| deliver(table, buffer, &write));
    }

    /// Takes in a datagram or train.
    fn take_in(
        &mut self,
        table: &Table,
        message: Option<Received>,
        now: Duration,
        before: &mut Option<Before>,
    ) {
        let stats = &self.shared.stats;
        let Some(Received { place, segment, source, local, tos }) = message else {
            stats.count_datagrams(1);
            return stats.datagrams_dropped.count(DropReason::Malformed, 1);
        };
        // A datagram may be empty, which is one.
        let datagrams = place.len().div_ceil(segment).max(1) as u64;
        stats.count_datagrams(datagrams);
        let way = (source, local, tos);
        if before.as_ref().is_none_or(|before| before.way != way) {
            *before = table.sender(source).map(|sender| Before {
                way,
                sender,
                admitted: None,
                goes_on: false,
                is_local_marked: false,
            });
        }
        let Some(before) = before else {
            return stats.datagrams_dropped.count(DropReason::UnknownSender, datagrams);
        };
        let sender = before.sender;
        let (Some(device), Some(tunnel)) = (table.devices().get(sender.device), table.tunnel(sender)) else {
            return;
        };
        let owner = Owner { device: sender.device as u32, tunnel: sender.tunnel as u32 };
        let merges = device.open.tun.merges();
        let buffer = self.receiver.buffer_mut();
        let mut is_packet = false;
        let mut at = place.start;
        loop {
            let end = (at + segment).min(place.end);
            if before.goes_on && self.coalescer.extend(buffer, at..end) {
                is_packet = true;
            } else {
                let Some(datagram) = buffer.get_mut(at..end) else { break };
                let unwrapped = unwrap(device, tunnel, datagram, tos, &mut before.admitted);
                before.goes_on = unwrapped == Ok(0);
                match unwrapped {
                    Ok(start) => {
                        is_packet = true;
                        let at = at + start;
                        if let Some(Ok(packet)) = buffer.get(at..end).map(Packet::parse) {
                            // What extends it has the same mark inside.
                            self.has_markable |= ecn::of(&packet) != 0;
                            self.coalescer.push(owner, merges, buffer, at, &packet);
                        }
                    }
                    Err(reason) => tunnel.stats.received.drops.count(reason, 1),
                }
            }
            at = end;
            if at >= place.end {
                break;
            }
        }
        if is_packet {
            self.has_packet = true;
            tunnel.stats.mark_received(now);
            if let Some(local) = local.filter(|_| !before.is_local_marked) {
                tunnel.path.mark_local(local);
                before.is_local_marked = true;
            }
        }
    }
}

/// The socket to read.
fn socket<'s>(source: &'s Source, shared: &'s Shared) -> Option<&'s UdpSocket> {
    match source {
        Source::Port { is_v4, .. } => shared.sockets.of_family(*is_v4),
        Source::Peer { socket, .. } => Some(socket.socket()),
    }
}

/// Whether nothing can be read from a socket any more, so that trying again would be for ever.
fn is_of_the_socket(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EBADF | libc::ENOTSOCK | libc::EFAULT | libc::EINVAL))
}

/// Where the packet in a datagram of `tunnel` begins, if the device may have it. `admitted` are the ends of a packet that it
/// may have.
fn unwrap(
    device: &Device,
    tunnel: &Tunnel,
    datagram: &mut [u8],
    tos: u8,
    admitted: &mut Option<(IpAddr, IpAddr)>,
) -> Result<usize, DropReason> {
    let (start, pi) = match frame::demux(datagram) {
        // A plain tunnel accepts both plain framings: the peer's may have been changed first.
        Ok(Frame::Packet { pi, packet }) => (datagram.len() - packet.len(), pi),
        Ok(Frame::Wireguard(_) | Frame::Own(_)) | Err(_) => return Err(DropReason::Framing),
    };
    let bytes = datagram.get_mut(start..).unwrap_or_default();
    let packet = Packet::parse(bytes).map_err(|_| DropReason::Malformed)?;
    let ends = Some((packet.source(), packet.destination()));
    if *admitted != ends {
        device.admit(tunnel, &packet)?;
        *admitted = ends;
    }
    let is_v4 = packet.is_v4();
    // A server of 2015 copies nothing of the packet to the header outside.
    if !pi {
        ecn::decapsulate(bytes, is_v4, tos).map_err(|_| DropReason::Congested)?;
    }
    mss::clamp(bytes, tunnel.tcp_mtu);
    Ok(start)
}

/// Gives a device what came for it.
fn deliver(table: &Table, buffer: &[u8], write: &Write<'_>) {
    let Owner { device, tunnel } = write.owner;
    let place = Place { device: device as usize, tunnel: tunnel as usize };
    let (Some(device), Some(tunnel)) = (table.devices().get(place.device), table.tunnel(place)) else {
        return;
    };
    let parts = write.pieces().filter_map(|piece| buffer.get(piece));
    match device.open.tun.send(&write.header, parts) {
        Ok(()) => tunnel.stats.received.count(write.packets.into(), write.bytes),
        Err(error) => {
            let reason = match error.raw_os_error() {
                Some(libc::EIO | libc::EBADFD) => DropReason::DeviceDown,
                Some(libc::EINVAL) => DropReason::Malformed,
                Some(_) | None => DropReason::Refused,
            };
            tunnel.stats.received.drops.count(reason, write.packets.into());
            if write.packets > 1 && reason == DropReason::Malformed {
                device.open.tun.refuse_merged();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use socket2::SockRef;

    use super::*;
    use crate::agent::datapath::sample;
    use crate::agent::os::udp::send::{Message, Part, Sender, Transmit};
    use crate::agent::packet::checksum;
    use crate::proto::model::Offload;

    #[test]
    fn marks_are_asked_for_as_soon_as_there_is_what_can_be_marked() {
        const NONE: u8 = 0b00;
        const CAPABLE: u8 = 0b10;
        const CONGESTED: u8 = 0b11;
        let world = world(1);
        let mut own = world.of_peer(0);
        let peer = &world.peers[0];
        let port = world.shared.sockets.v4.as_ref().unwrap().local_addr().unwrap();
        // Has a packet arrive, which says `inside`, in a datagram that says `outside`.
        let mut arrives = |inside: u8, outside: u8| {
            let mut packet = [0x45, inside, 0, 20, 0, 0, 0, 0, 64, 253, 0, 0, 10, 9, 0, 1, 10, 9, 0, 9];
            let sum = checksum::finish(checksum::sum(&packet, 0));
            packet[10..12].copy_from_slice(&sum.to_be_bytes());
            SockRef::from(peer).set_tos_v4(outside.into()).unwrap();
            peer.send_to(&packet, port).unwrap();
            assert!(own.pass(Reading::Wait).unwrap());
        };
        let congested = || {
            let table = world.shared.table.load();
            let tunnel = table.tunnel(table.sender(peer.local_addr().unwrap()).unwrap()).unwrap();
            tunnel.stats.received.drops.read().get("congested").copied().unwrap_or_default()
        };
        arrives(NONE, CONGESTED);
        assert_eq!(congested(), 1, "at first it is asked");
        (0..Marking::MANY).for_each(|_| arrives(NONE, NONE));
        arrives(NONE, CONGESTED);
        assert_eq!(congested(), 1, "none was to be expected");
        arrives(CAPABLE, NONE);
        arrives(NONE, CONGESTED);
        assert_eq!(congested(), 2);
    }

    /// Peers on loopback with a tunnel each, and what receives from them.
    struct World {
        peers: Vec<UdpSocket>,
        shared: Arc<Shared>,
        port: Ingress,
    }

    fn world(count: usize) -> World {
        let peers: Vec<_> = (0..count).map(|_| UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap()).collect();
        let endpoints: Vec<_> = peers.iter().map(|peer| peer.local_addr().unwrap()).collect();
        let (shared, _) = sample::shared(sample::table(&endpoints, &[]));
        for endpoint in endpoints {
            let table = shared.table.load();
            let tunnel = table.tunnel(table.sender(endpoint).unwrap()).unwrap();
            tunnel.path.mark_local(Ipv4Addr::LOCALHOST.into());
        }
        let socket = shared.sockets.v4.as_ref().unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        World { port: Ingress::of_port(Arc::clone(&shared), true), peers, shared }
    }

    impl World {
        fn of_peer(&self, peer: usize) -> Ingress {
            Ingress::of_peer(Arc::clone(&self.shared), self.peers[peer].local_addr().unwrap()).unwrap()
        }

        fn send(&self, peer: &UdpSocket, length: usize, count: usize) {
            let port = self.shared.sockets.v4.as_ref().unwrap().local_addr().unwrap();
            for _ in 0..count {
                peer.send_to(&vec![0x45; length], port).unwrap();
            }
        }
    }

    #[test]
    fn a_peer_keeps_its_socket_though_little_came_at_first() {
        let world = world(1);
        let mut own = world.of_peer(0);
        world.send(&world.peers[0], 100, 1);
        assert!(own.pass(Reading::Wait).unwrap());
        assert!(!own.is_idle());
    }

    #[test]
    fn a_socket_whose_peer_has_no_tunnel_any_more_is_idle() {
        let world = world(1);
        let mut own = world.of_peer(0);
        world.shared.table.store(Arc::new(Table::default()));
        world.send(&world.peers[0], 100, 100);
        assert!(own.pass(Reading::Wait).unwrap());
        assert!(own.is_idle());
    }

    #[test]
    fn what_waits_behind_the_news_of_an_earlier_datagram_is_read() {
        let mut world = world(1);
        let mut own = world.of_peer(0);
        world.send(&world.peers[0], 100, 40);
        let peer = world.peers.remove(0);
        let address = peer.local_addr().unwrap();
        drop(peer);
        // Nobody is there any more: the kernel tells the socket that is connected to it.
        world.shared.sockets.v4.as_ref().unwrap().send_to(b"to nobody", address).unwrap();
        assert!(own.empty().unwrap());
        assert_eq!(world.shared.stats.datagrams(), 40);
    }

    #[test]
    fn what_waits_as_one_message_is_read_whole_though_it_should_come_one_by_one() {
        const TRAINS: u64 = 40;
        let mut world = world(1);
        let peer = world.peers[0].try_clone().unwrap();
        world.send(&peer, 100, 1);
        assert!(world.port.pass(Reading::Few).unwrap());
        let destination = world.shared.sockets.v4.as_ref().unwrap().local_addr().unwrap().into();
        let bytes = [0x45; 1_000];
        for _ in 0..TRAINS {
            let part = Part { buffer: 0, at: 0, length: bytes.len() as u32 };
            let train =
                Message { destination: &destination, source: None, segment: Some(100), tos: 0, parts: 0..1 };
            Sender::default().send(&peer, std::iter::once(train), &[part], [&bytes, &[]]).unwrap();
        }
        let endpoints = [peer.local_addr().unwrap()];
        world.shared.table.store(Arc::new(sample::table(&endpoints, &[Offload::UdpGro])));
        assert!(world.port.empty().unwrap());
        assert_eq!(world.shared.stats.datagrams(), 1 + 10 * TRAINS);
        assert!(!world.port.merges);
    }

    #[test]
    fn only_peers_of_tunnels_are_picked_and_only_while_they_send() {
        let mut world = world(1);
        // The peers' tunnels are their address's, whatever the port.
        let stranger = UdpSocket::bind((Ipv4Addr::new(127, 0, 0, 2), 0)).unwrap();
        let picked = |world: &mut World, sender: &UdpSocket, datagrams: usize| {
            let mut picked = None;
            for _ in 0..datagrams {
                world.send(sender, 60_000, 1);
                assert!(world.port.pass(Reading::Wait).unwrap());
                picked = picked.or(world.port.loud_peer());
            }
            picked
        };
        let peer = world.peers[0].try_clone().unwrap();
        assert_eq!(picked(&mut world, &peer, 1), None);
        assert_eq!(picked(&mut world, &stranger, 2 * SAMPLE / 60_000), None, "strangers count for nobody");
        assert_eq!(picked(&mut world, &peer, 1 + SAMPLE / 60_000), Some(peer.local_addr().unwrap()));
        assert_eq!(picked(&mut world, &peer, SAMPLE / 60_000 / 2), None, "it is counted anew");
        world.port.forget_who_sends();
        assert_eq!(picked(&mut world, &peer, SAMPLE / 60_000 / 2 + 2), None);
    }
}
