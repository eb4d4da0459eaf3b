//! From the devices to the sockets.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::stats::DropReason;
use super::table::{Device, Table, Tunnel};
use super::{BUDGET, BUFFER, DatapathEvent, Shared};
use crate::agent::os::epoll::{Epoll, Waker};
use crate::agent::os::tun::TunDevice;
use crate::agent::packet::parse::Packet;
use crate::agent::packet::{fragment, frame, icmp, mss};
use crate::proto::rate::{Bucket, Rate};

/// The waker's number in the epoll set; devices have theirs, from 1.
const WAKER: u64 = 0;
/// The most ICMP answers: so many at once, and as many a second.
const ANSWERS: Rate = Rate { burst: 200, every: Duration::from_millis(5) };

/// The egress thread's own.
pub(super) struct Egress {
    shared: Arc<Shared>,
    epoll: Epoll,
    watched: BTreeMap<u64, Arc<TunDevice>>,
    answers: Bucket,
}

/// What becomes of a packet from a device.
enum Verdict<'t> {
    /// It goes through a tunnel whole.
    Send(&'t Tunnel),
    /// It goes through a tunnel in fragments.
    Fragment(&'t Tunnel),
    /// It goes nowhere, and its sender may be told.
    Refuse(Option<&'t Tunnel>, DropReason),
}

fn decide<'t>(device: &'t Device, packet: &Packet<'_>) -> Verdict<'t> {
    let Some(tunnel) = device.tunnel_to(packet.destination()) else {
        return Verdict::Refuse(None, DropReason::NoTunnel);
    };
    if packet.bytes().len() <= usize::from(tunnel.mtu) {
        Verdict::Send(tunnel)
    } else if packet.dont_fragment() {
        Verdict::Refuse(Some(tunnel), DropReason::TooBig)
    } else {
        Verdict::Fragment(tunnel)
    }
}

impl Egress {
    pub(super) fn new(shared: Arc<Shared>) -> io::Result<Self> {
        Ok(Self { shared, epoll: Epoll::new()?, watched: BTreeMap::new(), answers: Bucket::default() })
    }

    /// Works until the data path is stopped.
    ///
    /// # Errors
    /// What the kernel says where descriptors cannot be watched.
    pub(super) fn drive(&mut self, waker: &Waker) -> io::Result<()> {
        self.epoll.add(waker, WAKER)?;
        let mut ready = Vec::new();
        // Room in front of each packet for its packet information.
        let mut buffer = vec![0; frame::PI_LENGTH + BUFFER];
        while !self.shared.stop.load(Ordering::Acquire) {
            let table = self.shared.table.load_full();
            self.watch(&table)?;
            self.epoll.wait(&mut ready)?;
            for id in &ready {
                if *id == WAKER {
                    waker.reset();
                } else if let Some(device) = table.devices().iter().find(|device| device.open.id == *id) {
                    self.drain(device, &mut buffer);
                }
            }
        }
        Ok(())
    }

    /// Watches the devices of the table and no others.
    fn watch(&mut self, table: &Table) -> io::Result<()> {
        let wanted: BTreeMap<u64, &Arc<TunDevice>> =
            table.devices().iter().map(|device| (device.open.id, &device.open.tun)).collect();
        let epoll = &self.epoll;
        self.watched.retain(|id, tun| {
            let keep = wanted.contains_key(id);
            if !keep {
                // A device that failed is out of the set already.
                let _ = epoll.remove(&**tun);
            }
            keep
        });
        for (id, tun) in wanted {
            if !self.watched.contains_key(&id) {
                self.epoll.add(&**tun, id)?;
                self.watched.insert(id, Arc::clone(tun));
            }
        }
        Ok(())
    }

    fn drain(&mut self, device: &Device, buffer: &mut [u8]) {
        for _ in 0..BUDGET {
            let Some(room) = buffer.get_mut(frame::PI_LENGTH..) else { return };
            match device.open.tun.receive(room) {
                Ok(length) => {
                    let end = (frame::PI_LENGTH + length).min(buffer.len());
                    if let Some(framed) = buffer.get_mut(..end) {
                        self.forward(device, framed);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => {
                    // Level-triggered, a dead descriptor would be reported for ever.
                    tracing::debug!(%error, "a device cannot be read any more");
                    let _ = self.epoll.remove(&*device.open.tun);
                    let _ = self.shared.events.try_send(DatapathEvent::DeviceGone);
                    return;
                }
            }
        }
    }

    /// Forwards the packet behind the first bytes of `framed`, which are room for its packet information.
    fn forward(&mut self, device: &Device, framed: &mut [u8]) {
        let Some((_, bytes)) = framed.split_at_mut_checked(frame::PI_LENGTH) else { return };
        let Ok(packet) = Packet::parse(bytes) else {
            self.shared.stats.packets_dropped.count(DropReason::Malformed);
            return;
        };
        match decide(device, &packet) {
            Verdict::Send(tunnel) => {
                let length = packet.bytes().len();
                let is_v4 = packet.is_v4();
                mss::clamp(bytes, tunnel.tcp_mtu);
                self.count(tunnel, length, self.send(tunnel, framed, length, is_v4));
            }
            Verdict::Fragment(tunnel) => {
                let length = packet.bytes().len();
                let sent = fragment::fragments(&packet, tunnel.mtu).iter().try_for_each(|fragment| {
                    let mut framed = vec![0; frame::PI_LENGTH];
                    framed.extend_from_slice(fragment);
                    self.send(tunnel, &mut framed, fragment.len(), true)
                });
                self.count(tunnel, length, sent);
            }
            Verdict::Refuse(tunnel, reason) => {
                let drops =
                    tunnel.map_or(&self.shared.stats.packets_dropped, |tunnel| &tunnel.stats.sent.drops);
                drops.count(reason);
                let answer = match tunnel {
                    Some(tunnel) => icmp::too_big(&packet, tunnel.mtu),
                    None => icmp::unreachable(&packet),
                };
                self.answer(device, answer);
            }
        }
    }

    /// Sends the `length` bytes of a packet that stand behind the room for packet information.
    fn send(&self, tunnel: &Tunnel, framed: &mut [u8], length: usize, is_v4: bool) -> Result<(), DropReason> {
        let start = if tunnel.packet_information {
            if let Some(room) = framed.get_mut(..frame::PI_LENGTH) {
                room.copy_from_slice(&frame::packet_information(is_v4));
            }
            0
        } else {
            frame::PI_LENGTH
        };
        let datagram = framed.get(start..frame::PI_LENGTH + length).ok_or(DropReason::Malformed)?;
        let sockets = &self.shared.sockets;
        let mut result = sockets.send(datagram, tunnel.endpoint);
        if result.as_ref().is_err_and(|error| error.raw_os_error() == Some(libc::ENOBUFS)) {
            result = sockets.send(datagram, tunnel.endpoint);
        }
        result.map_err(|error| reason_of(&error))
    }

    fn count(&self, tunnel: &Tunnel, length: usize, sent: Result<(), DropReason>) {
        match sent {
            Ok(()) => tunnel.stats.sent.count(length),
            Err(reason) => tunnel.stats.sent.drops.count(reason),
        }
    }

    #[allow(clippy::disallowed_methods, reason = "a data thread, and only where a packet was refused")]
    fn answer(&mut self, device: &Device, answer: Option<Vec<u8>>) {
        if let Some(answer) = answer
            && self.answers.take(ANSWERS, Instant::now()).is_ok()
        {
            // Whoever took the device down does not wait for an answer.
            let _ = device.open.tun.send(&answer);
        }
    }
}

fn reason_of(error: &io::Error) -> DropReason {
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => DropReason::Firewall,
        Some(libc::ENETUNREACH | libc::EHOSTUNREACH | libc::ENETDOWN | libc::EADDRNOTAVAIL) => {
            DropReason::Unreachable
        }
        Some(libc::EMSGSIZE) => DropReason::TooBig,
        Some(libc::EAGAIN | libc::ENOBUFS | libc::ENOMEM) => DropReason::SocketFull,
        Some(_) => DropReason::Refused,
        None if error.kind() == io::ErrorKind::Unsupported => DropReason::Unreachable,
        None => DropReason::Refused,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_of_the_kernel_has_a_counter() {
        for errno in 1..134 {
            // Must not panic, and must give a reason that tells what to look at where there is one.
            let reason = reason_of(&io::Error::from_raw_os_error(errno));
            assert!(DropReason::ALL.contains(&reason));
        }
        assert_eq!(reason_of(&io::Error::from_raw_os_error(libc::EPERM)), DropReason::Firewall);
        assert_eq!(reason_of(&io::ErrorKind::Unsupported.into()), DropReason::Unreachable);
    }
}
