//! From a socket to the devices.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::Shared;
use super::batch::Place;
use super::stats::DropReason;
use super::table::{Device, Table, Tunnel};
use crate::agent::os::clock;
use crate::agent::os::udp::receive::{Received, Receiver};
use crate::agent::os::udp::tell_place;
use crate::agent::packet::coalesce::{Coalescer, Owner, Write};
use crate::agent::packet::frame::{self, Frame};
use crate::agent::packet::parse::Packet;
use crate::agent::packet::{ecn, mss};

/// As many bytes are handed on at once: what lies longer leaves the processor's cache.
const ENOUGH: usize = 60_000;

/// When a socket is to tell where datagrams arrive. It costs each a twentieth of its way through the kernel, and hardly
/// ever changes: under load it is asked now and then.
#[derive(Debug, Default)]
struct Asking {
    /// How many readings in a row found the socket busy.
    busy: usize,
}

impl Asking {
    /// From so many messages of one reading on a socket is busy.
    const BUSY: usize = 16;
    /// Of so many readings of a busy socket the first few ask.
    const TURN: usize = 32;
    const FEW: usize = 4;

    /// Whether to ask, after a reading of so many messages.
    fn next(&mut self, messages: usize) -> bool {
        self.busy = if messages < Self::BUSY { 0 } else { self.busy.wrapping_add(1) };
        self.busy % Self::TURN < Self::FEW
    }
}

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

/// An ingress thread's own.
pub(super) struct Ingress {
    shared: Arc<Shared>,
    is_v4: bool,
    receiver: Receiver,
    coalescer: Coalescer,
    asking: Asking,
    /// Whether the socket tells where datagrams arrived.
    tells_place: bool,
}

impl Ingress {
    pub(super) fn new(shared: Arc<Shared>, is_v4: bool) -> Self {
        Self {
            shared,
            is_v4,
            receiver: Receiver::default(),
            coalescer: Coalescer::default(),
            asking: Asking::default(),
            tells_place: true,
        }
    }

    /// Works until the data path is stopped.
    ///
    /// # Errors
    /// Where the socket cannot be read any more.
    pub(super) fn drive(&mut self) -> io::Result<()> {
        let shared = Arc::clone(&self.shared);
        let Some(socket) = shared.sockets.of_family(self.is_v4) else { return Ok(()) };
        loop {
            let received = self.receiver.receive(socket);
            if shared.stop.load(Ordering::Acquire) {
                return Ok(());
            }
            match received {
                Ok(()) => {
                    self.forward(&shared.table.load(), clock::since_boot());
                    self.ask_for_place(socket);
                }
                Err(error) if is_of_the_socket(&error) => return Err(error),
                // Of an earlier datagram, and told once.
                Err(_) => {}
            }
        }
    }

    /// Has the socket tell where datagrams arrive, or not.
    fn ask_for_place(&mut self, socket: &UdpSocket) {
        let asks = self.asking.next(self.receiver.count());
        if asks != self.tells_place && tell_place(socket, self.is_v4, asks).is_ok() {
            self.tells_place = asks;
        }
    }

    /// Hands on what was read; `now` is time since boot.
    fn forward(&mut self, table: &Table, now: Duration) {
        let (mut before, mut bytes) = (None, 0);
        for index in 0..self.receiver.count() {
            let message = self.receiver.message(index);
            bytes += message.as_ref().map_or(0, |message| message.place.len());
            self.take_in(table, message, now, &mut before);
            if bytes >= ENOUGH {
                self.hand_on(table);
                bytes = 0;
            }
        }
        self.hand_on(table);
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
            if let Some(local) = local.filter(|_| !before.is_local_marked) {
                tunnel.path.mark_local(local);
                before.is_local_marked = true;
            }
        }
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
    use super::*;

    #[test]
    fn a_quiet_socket_always_tells_where_and_a_busy_one_now_and_then() {
        let mut asking = Asking::default();
        let mut of = |messages: usize| (0..1000).filter(|_| asking.next(messages)).count();
        assert_eq!(of(1), 1000);
        assert_eq!(of(15), 1000);
        assert!((100..150).contains(&of(32)));
        assert_eq!(of(1), 1000);
    }
}
