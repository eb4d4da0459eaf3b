//! From the sockets to the devices.

use std::io;
use std::net::{IpAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::batch::Place;
use super::stats::DropReason;
use super::table::{Device, Table, Tunnel};
use super::{ROUNDS, Shared};
use crate::agent::os::clock;
use crate::agent::os::epoll::{Epoll, Waker};
use crate::agent::os::udp::receive::{Received, Receiver};
use crate::agent::packet::coalesce::{Coalescer, Owner, Write};
use crate::agent::packet::frame::{self, Frame};
use crate::agent::packet::parse::Packet;
use crate::agent::packet::{ecn, mss};

/// The waker's number in the epoll set; sockets have theirs, from 1.
const WAKER: u64 = 0;

/// As many bytes are handed on at once: what lies longer leaves the processor's cache.
const ENOUGH: usize = 60_000;

/// The ingress thread's own.
pub(super) struct Ingress {
    shared: Arc<Shared>,
    epoll: Epoll,
    receiver: Receiver,
    arrived: Vec<Option<Received>>,
    coalescer: Coalescer,
}

impl Ingress {
    pub(super) fn new(shared: Arc<Shared>) -> io::Result<Self> {
        Ok(Self {
            shared,
            epoll: Epoll::new()?,
            receiver: Receiver::default(),
            arrived: Vec::new(),
            coalescer: Coalescer::default(),
        })
    }

    /// Works until the data path is stopped.
    ///
    /// # Errors
    /// What the kernel says where descriptors cannot be watched.
    pub(super) fn drive(&mut self, waker: &Waker) -> io::Result<()> {
        self.epoll.add(waker, WAKER)?;
        let shared = Arc::clone(&self.shared);
        let sockets: Vec<(u64, &UdpSocket)> = (WAKER + 1..).zip(shared.sockets.iter()).collect();
        for (id, socket) in &sockets {
            self.epoll.add(*socket, *id)?;
        }
        let mut ready = Vec::new();
        while !shared.stop.load(Ordering::Acquire) {
            self.epoll.wait(&mut ready)?;
            let table = shared.table.load_full();
            let now = clock::since_boot();
            for id in &ready {
                if *id == WAKER {
                    waker.reset();
                } else if let Some((_, socket)) = sockets.iter().find(|(of_socket, _)| of_socket == id) {
                    self.drain(&table, socket, now);
                }
            }
        }
        Ok(())
    }

    fn drain(&mut self, table: &Table, socket: &UdpSocket, now: Duration) {
        for _ in 0..ROUNDS {
            // An error that is not "nothing there" is of an earlier datagram, and taken with the reading.
            let Ok(is_more_likely) = self.receiver.receive(socket) else { return };
            let mut arrived = std::mem::take(&mut self.arrived);
            arrived.extend(self.receiver.messages());
            let mut bytes = 0;
            for message in arrived.drain(..) {
                bytes += message.as_ref().map_or(0, |message| message.place.len());
                self.take_in(table, message, now);
                if bytes >= ENOUGH {
                    self.hand_on(table);
                    bytes = 0;
                }
            }
            self.arrived = arrived;
            self.hand_on(table);
            if !is_more_likely {
                return;
            }
        }
    }

    /// Gives the devices what was taken in.
    fn hand_on(&mut self, table: &Table) {
        self.coalescer.drain(self.receiver.buffer_mut(), |buffer, write| deliver(table, buffer, &write));
    }

    /// Takes in a datagram or train.
    fn take_in(&mut self, table: &Table, message: Option<Received>, now: Duration) {
        let stats = &self.shared.stats;
        let Some(Received { place, segment, source, local, tos }) = message else {
            stats.count_datagrams(1);
            return stats.datagrams_dropped.count(DropReason::Malformed, 1);
        };
        // A datagram may be empty, which is one.
        let datagrams = place.len().div_ceil(segment).max(1) as u64;
        stats.count_datagrams(datagrams);
        let Some(sender) = table.sender(source) else {
            return stats.datagrams_dropped.count(DropReason::UnknownSender, datagrams);
        };
        let (Some(device), Some(tunnel)) = (table.devices().get(sender.device), table.tunnel(sender)) else {
            return;
        };
        let owner = Owner { device: sender.device as u32, tunnel: sender.tunnel as u32 };
        let merges = device.open.tun.merges();
        let buffer = self.receiver.buffer_mut();
        let mut is_packet = false;
        // Whether the datagram before was a packet and nothing else.
        let mut goes_on = false;
        // Of a train most packets are between the same two hosts, and one judgement does for all.
        let mut admitted = None;
        let mut at = place.start;
        loop {
            let end = (at + segment).min(place.end);
            if !(goes_on && self.coalescer.extend(buffer, at..end)) {
                let Some(datagram) = buffer.get_mut(at..end) else { break };
                let unwrapped = unwrap(device, tunnel, datagram, tos, &mut admitted);
                goes_on = unwrapped == Ok(0);
                match unwrapped {
                    Ok(start) => {
                        is_packet = true;
                        let at = at + start;
                        if let Some(Ok(packet)) = buffer.get(at..end).map(Packet::parse) {
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
            tunnel.stats.mark_received(now);
            if let Some(local) = local {
                tunnel.path.mark_local(local);
            }
        }
    }
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
