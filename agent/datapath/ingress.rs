//! From a socket to the devices.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::ops::Range;
use std::sync::{Arc, MutexGuard};
use std::time::Duration;

use super::Shared;
use super::asking::{Asking, Marking};
use super::batch::Place;
use super::handshakes::Handshakes;
use super::link::LinkEnd;
use super::load::Load;
use super::path::Destination;
use super::peer::Sessions;
use super::post::Post;
use super::stats::DropReason;
use super::table::{Device, Table, Tunnel};
use crate::agent::link::frame::{self as own, Frame as Own, NoFrame};
use crate::agent::os::clock;
use crate::agent::os::udp::peer::PeerSocket;
use crate::agent::os::udp::receive::{Reading, Received, Receiver};
use crate::agent::os::udp::{set_merging, tell_place, tell_tos};
use crate::agent::packet::coalesce::{Coalescer, Owner, Write};
use crate::agent::packet::frame::{self, Frame};
use crate::agent::packet::parse::Packet;
use crate::agent::packet::{ecn, mss};
use crate::agent::wireguard::Refused;
use crate::agent::wireguard::message::{Index, Message};

/// As many bytes are handed on at once: what lies longer leaves the processor's cache.
const ENOUGH: usize = 60_000;

/// How many bytes come in before somebody is picked who may have a socket of its own.
const SAMPLE: usize = 4 << 20;

/// How often a socket is read at most to empty it: a full one has as many datagrams of 1,400 bytes.
const READINGS: usize = 500;

/// How a message came: its source, the address of this host that it came to, and its TOS byte.
type Way = (SocketAddr, Option<IpAddr>, u8);

/// Who is behind a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Heard {
    /// As far as can be told nobody.
    Nobody,
    /// The peer of a tunnel.
    Peer,
    /// The peer, with a packet.
    Packet,
}

/// What was found of the datagram before, which holds for the next one that came the same way.
struct Before {
    way: Way,
    /// The session, if it was encrypted.
    session: Option<Index>,
    sender: Place,
    /// The ends of its packet, if the device may have it.
    admitted: Option<(IpAddr, IpAddr)>,
    /// Whether the next packet may go on where its packet ended.
    goes_on: bool,
    /// Who was behind what came this way, as far as it is noted.
    marked: Heard,
    /// Whether its way is noted as the one to the peer.
    is_way_marked: bool,
}

impl Before {
    fn new(way: Way, session: Option<Index>, sender: Place) -> Self {
        let (admitted, goes_on, is_way_marked) = (None, false, false);
        Self { way, session, sender, admitted, goes_on, marked: Heard::Nobody, is_way_marked }
    }

    /// Notes that somebody was behind a datagram that came this way at `now`, time since boot. Returns whether it was
    /// somewhere else before.
    fn mark(&mut self, table: &Table, heard: Heard, now: Duration) -> bool {
        let (source, local, _) = self.way;
        let is_way_known = self.is_way_marked || local.is_none();
        if heard == Heard::Nobody || (heard <= self.marked && is_way_known) {
            return false;
        }
        let Some(tunnel) = table.tunnel(self.sender) else { return false };
        if heard == Heard::Packet {
            tunnel.stats.mark_received(now);
        }
        self.marked = self.marked.max(heard);
        let Some(local) = local.filter(|_| !self.is_way_marked) else { return false };
        self.is_way_marked = true;
        table.mark_way(tunnel, source, local, self.session.is_some())
    }
}

/// The sessions of a peer while its datagrams are being taken in: nobody else has them.
struct Held<'t> {
    tunnel: &'t Tunnel,
    sessions: MutexGuard<'t, Sessions>,
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
    handshakes: Handshakes,
    post: Post,
    /// Whether the socket delivers as one message what arrived so.
    merges: bool,
    /// What it has received of late.
    load: Load,
    /// Bytes for tunnels that were received since somebody was picked.
    heard: usize,
    /// Who sent the last message, and the tunnel whose it was.
    last: Option<(SocketAddr, Place)>,
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

    /// Of one peer that is at an address, whom the port hears no more then, and who is taken to send much.
    ///
    /// # Errors
    /// Where its tunnel has no way yet, or no socket for it alone is to be had.
    pub(super) fn of_peer(shared: Arc<Shared>, (peer, tunnel): (SocketAddr, Place)) -> io::Result<Self> {
        let table = shared.table.load();
        let tunnel = table.tunnel(tunnel);
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
            handshakes: Handshakes::new(Arc::clone(&shared)),
            post: Post::new(Arc::clone(&shared)),
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

    /// Now and then, somebody who very likely sends much, and its tunnel.
    pub(super) fn loud_peer(&mut self) -> Option<(SocketAddr, Place)> {
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
        self.last = before.map(|before| (before.way.0, before.sender));
    }

    /// Gives the devices what was taken in.
    fn hand_on(&mut self, table: &Table) {
        self.coalescer.drain(self.receiver.buffer_mut(), |buffer, write| deliver(table, buffer, &write));
    }

    /// Takes in a datagram or train. Nothing is left in `before` where nothing of it was a tunnel's.
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
        stats.count_datagrams(place.len().div_ceil(segment).max(1) as u64);
        let way = (source, local, tos);
        if before.as_ref().is_some_and(|before| before.way != way) {
            *before = None;
        }
        let mut held = None;
        let mut at = place.start;
        loop {
            let end = (at + segment).min(place.end);
            let is_sealed = self.receiver.buffer_mut().get(at..end).is_some_and(frame::is_wireguard);
            let heard = match is_sealed {
                true => self.take_sealed(table, at..end, way, now, before, &mut held),
                false => self.take_plain(table, at..end, way, now, before),
            };
            self.has_packet |= heard == Heard::Packet;
            if let Some(before) = before
                && before.mark(table, heard, now)
                && let Some(tunnel) = table.tunnel(before.sender)
            {
                self.shared.tell_moved(tunnel, now);
            }
            at = end;
            if at >= place.end {
                break;
            }
        }
        self.let_go(held);
    }

    /// Sends what has waited for a session that is there now, and leaves the sessions to others.
    fn let_go(&mut self, held: Option<Held<'_>>) {
        if let Some(Held { tunnel, mut sessions }) = held {
            self.handshakes.release(tunnel, &mut sessions);
        }
    }

    /// Takes in a datagram that is not encrypted.
    fn take_plain(
        &mut self,
        table: &Table,
        place: Range<usize>,
        way: Way,
        now: Duration,
        before: &mut Option<Before>,
    ) -> Heard {
        if before.as_ref().is_none_or(|before| before.session.is_some()) {
            *before = table.sender(way.0).map(|sender| Before::new(way, None, sender));
        }
        let Some(before) = before else {
            self.shared.stats.datagrams_dropped.count(DropReason::UnknownSender, 1);
            return Heard::Nobody;
        };
        let buffer = self.receiver.buffer_mut();
        if before.goes_on && self.coalescer.extend(buffer, place.clone()) {
            return Heard::Packet;
        }
        let (Some(device), Some(tunnel)) =
            (table.devices().get(before.sender.device), table.tunnel(before.sender))
        else {
            return Heard::Nobody;
        };
        let Some(datagram) = buffer.get_mut(place.clone()) else { return Heard::Nobody };
        if let Some(link) = tunnel.prober().filter(|_| tunnel.takes_plain() && frame::is_own(datagram)) {
            before.goes_on = false;
            let frame = Own::parse(datagram);
            return self.take_own((tunnel, link), frame, None, way, now);
        }
        let unwrapped = unframe(tunnel, datagram).and_then(|(start, pi)| {
            let packet = datagram.get_mut(start..).unwrap_or_default();
            // A server of 2015 copies nothing of the packet to the header outside.
            let tos = (!pi).then_some(way.2);
            admit(device, tunnel, packet, tos, &mut before.admitted).map(|_| start)
        });
        before.goes_on = unwrapped == Ok(0);
        match unwrapped {
            Ok(start) if self.takes_answer(tunnel, place.start + start..place.end, now) => {
                before.goes_on = false;
                Heard::Peer
            }
            Ok(start) => {
                self.push(device, before.sender, place.start + start..place.end);
                Heard::Packet
            }
            Err(reason) => {
                tunnel.stats.received.drops.count(reason, 1);
                Heard::Nobody
            }
        }
    }

    /// Takes in a datagram that is encrypted, or a message of a handshake. `held` are the sessions of the datagram before.
    /// Nothing is left in `before` where it is not authentic.
    fn take_sealed<'t>(
        &mut self,
        table: &'t Table,
        place: Range<usize>,
        way: Way,
        now: Duration,
        before: &mut Option<Before>,
        held: &mut Option<Held<'t>>,
    ) -> Heard {
        let message =
            self.receiver.buffer_mut().get(place.clone()).map_or(Err(Refused::Malformed), Message::parse);
        let session = match message {
            Ok(Message::Data { receiver }) => Some(receiver),
            Ok(_) | Err(_) => None,
        };
        if session.is_none() || before.as_ref().is_none_or(|before| before.session != session) {
            // It may be for the peer whose sessions are held.
            self.let_go(held.take());
            let peer = session.and_then(|session| self.shared.receivers.peer(session));
            let sender = peer.and_then(|peer| table.peer(peer));
            *before = sender.map(|sender| Before::new(way, session, sender));
        }
        let dropped = &self.shared.stats.datagrams_dropped;
        let Some(datagram) = self.receiver.buffer_mut().get_mut(place.clone()) else { return Heard::Nobody };
        match message {
            Ok(Message::Data { .. }) => {}
            Ok(kind) => {
                self.handshakes.take_in(table, kind, datagram, (way.0, way.1), now);
                return Heard::Nobody;
            }
            Err(refused) => {
                dropped.count(refused.into(), 1);
                return Heard::Nobody;
            }
        }
        let Some(known) = before else {
            dropped.count(DropReason::NoSession, 1);
            return Heard::Nobody;
        };
        let (device, tunnel) = (table.devices().get(known.sender.device), table.tunnel(known.sender));
        let (Some(device), Some(tunnel)) = (device, tunnel) else { return Heard::Nobody };
        let Some(peer) = &tunnel.peer else { return Heard::Nobody };
        let held = held.get_or_insert_with(|| Held { tunnel, sessions: peer.sessions() });
        let inner = match held.sessions.open(datagram) {
            Ok(inner) => inner,
            Err(refused) => {
                tunnel.stats.received.drops.count(refused.into(), 1);
                *before = None;
                return Heard::Nobody;
            }
        };
        // The peer says that it is there, and nothing else.
        if inner.is_empty() {
            self.shared.stats.count_session_message();
            return Heard::Peer;
        }
        if let Some(link) = tunnel.prober()
            && let Some(frame) = datagram.get(inner.clone()).filter(|inner| frame::is_own(inner))
        {
            known.goes_on = false;
            let frame = Own::parse(frame);
            return self.take_own((tunnel, link), frame, Some(&mut *held.sessions), way, now);
        }
        let at = place.start + inner.start;
        let packet = datagram.get(inner).unwrap_or_default();
        // Without what it was padded with.
        let end = at + Packet::parse(packet).map_or(packet.len(), |packet| packet.bytes().len());
        let buffer = self.receiver.buffer_mut();
        if known.goes_on && self.coalescer.extend(buffer, at..end) {
            return Heard::Packet;
        }
        let packet = buffer.get_mut(at..end).unwrap_or_default();
        let admitted = admit(device, tunnel, packet, Some(way.2), &mut known.admitted);
        known.goes_on = admitted.is_ok();
        match admitted {
            Ok(()) if self.takes_answer(tunnel, at..end, now) => {
                known.goes_on = false;
                Heard::Peer
            }
            Ok(()) => {
                self.push(device, known.sender, at..end);
                Heard::Packet
            }
            Err(reason) => {
                tunnel.stats.received.drops.count(reason, 1);
                Heard::Peer
            }
        }
    }

    /// Takes in a frame of tunmesh's own that came for a tunnel whose peer sends some. It was sealed where there are `sessions`.
    fn take_own(
        &mut self,
        (tunnel, link): (&Tunnel, &LinkEnd),
        frame: Result<Own, NoFrame>,
        sessions: Option<&mut Sessions>,
        (source, local, _): Way,
        now: Duration,
    ) -> Heard {
        let (has_changed, due) = match frame {
            Ok(Own::Probe(probe)) => link.handle_probe(&probe, now),
            Ok(Own::Answer(number)) => {
                if let Some(preferred) = &tunnel.preferred {
                    preferred.handle_answer(number, now);
                }
                link.handle_answer(number, now)
            }
            Ok(Own::Question(number)) => {
                // It goes back the way that was asked about, which need not be the one that packets take. Who gets no
                // answer asks again.
                let way = (&Destination::from(source), local.or_else(|| tunnel.path.local()));
                let _ = self.post.send_own_to(way, sessions, &own::answer(number));
                self.shared.stats.count_session_message();
                return Heard::Nobody;
            }
            Err(NoFrame) => {
                tunnel.stats.received.drops.count(DropReason::Malformed, 1);
                return Heard::Nobody;
            }
        };
        self.shared.stats.count_session_message();
        if has_changed {
            self.shared.tell_links();
        }
        if self.shared.links_due.bring_forward(due) {
            self.shared.waker.wake();
        }
        Heard::Peer
    }

    /// Takes in a packet if it answers a question of this host's own.
    fn takes_answer(&mut self, tunnel: &Tunnel, place: Range<usize>, now: Duration) -> bool {
        let Some(link) = &tunnel.link else { return false };
        let packet = self.receiver.buffer_mut().get(place).unwrap_or_default();
        let Some(has_changed) = link.handle_packet(packet, now) else { return false };
        self.shared.stats.count_session_message();
        if has_changed {
            self.shared.tell_links();
        }
        true
    }

    /// Takes in a packet that a device may have.
    fn push(&mut self, device: &Device, sender: Place, place: Range<usize>) {
        let owner = Owner { device: sender.device as u32, tunnel: sender.tunnel as u32 };
        let buffer = self.receiver.buffer_mut();
        if let Some(Ok(packet)) = buffer.get(place.clone()).map(Packet::parse) {
            // What extends it has the same mark inside.
            self.has_markable |= ecn::of(&packet) != 0;
            self.coalescer.push(owner, device.open.tun.merges(), buffer, place.start, &packet);
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

/// Where the packet in a datagram of `tunnel` begins, and whether packet information was before it.
fn unframe(tunnel: &Tunnel, datagram: &[u8]) -> Result<(usize, bool), DropReason> {
    match frame::demux(datagram) {
        // A plain tunnel accepts both plain framings: the peer's may have been changed first. An encrypted one accepts
        // neither, unless that is said of it: whoever can send in the name of the peer's address is not the peer.
        Ok(Frame::Packet { pi, packet }) if tunnel.takes_plain() => Ok((datagram.len() - packet.len(), pi)),
        Ok(Frame::Packet { .. } | Frame::Wireguard(_) | Frame::Own(_)) | Err(_) => Err(DropReason::Framing),
    }
}

/// Judges a packet that came for a tunnel, and makes of it what its device is given. `tos` is what the datagram was marked
/// with, where that says something about the packet. `admitted` are the ends of a packet that the device may have.
fn admit(
    device: &Device,
    tunnel: &Tunnel,
    bytes: &mut [u8],
    tos: Option<u8>,
    admitted: &mut Option<(IpAddr, IpAddr)>,
) -> Result<(), DropReason> {
    let packet = Packet::parse(bytes).map_err(|_| DropReason::Malformed)?;
    let ends = Some((packet.source(), packet.destination()));
    if *admitted != ends {
        device.admit(tunnel, &packet)?;
        *admitted = ends;
    }
    let is_v4 = packet.is_v4();
    if let Some(tos) = tos {
        ecn::decapsulate(bytes, is_v4, tos).map_err(|_| DropReason::Congested)?;
    }
    mss::clamp(bytes, tunnel.tcp_mtu);
    Ok(())
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
mod tests;
