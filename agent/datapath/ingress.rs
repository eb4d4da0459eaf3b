//! From the sockets to the devices.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::stats::DropReason;
use super::table::{Device, Table, Tunnel};
use super::{BUDGET, BUFFER, Shared};
use crate::agent::os::clock;
use crate::agent::os::epoll::{Epoll, Waker};
use crate::agent::packet::frame::{self, Frame};
use crate::agent::packet::mss;
use crate::agent::packet::parse::Packet;

/// The waker's number in the epoll set; sockets have theirs, from 1.
const WAKER: u64 = 0;

/// The ingress thread's own.
pub(super) struct Ingress {
    shared: Arc<Shared>,
    epoll: Epoll,
}

impl Ingress {
    pub(super) fn new(shared: Arc<Shared>) -> io::Result<Self> {
        Ok(Self { shared, epoll: Epoll::new()? })
    }

    /// Works until the data path is stopped.
    ///
    /// # Errors
    /// What the kernel says where descriptors cannot be watched.
    pub(super) fn drive(&self, waker: &Waker) -> io::Result<()> {
        self.epoll.add(waker, WAKER)?;
        let sockets: Vec<(u64, &UdpSocket)> = (WAKER + 1..).zip(self.shared.sockets.iter()).collect();
        for (id, socket) in &sockets {
            self.epoll.add(*socket, *id)?;
        }
        let mut ready = Vec::new();
        let mut buffer = vec![0; BUFFER];
        while !self.shared.stop.load(Ordering::Acquire) {
            self.epoll.wait(&mut ready)?;
            let table = self.shared.table.load_full();
            let now = clock::since_boot();
            for id in &ready {
                if *id == WAKER {
                    waker.reset();
                } else if let Some((_, socket)) = sockets.iter().find(|(of_socket, _)| of_socket == id) {
                    self.drain(&table, socket, &mut buffer, now);
                }
            }
        }
        Ok(())
    }

    fn drain(&self, table: &Table, socket: &UdpSocket, buffer: &mut [u8], now: Duration) {
        for _ in 0..BUDGET {
            // An error that is not "nothing there" is of an earlier datagram, and taken with the reading.
            let Ok((length, source)) = socket.recv_from(buffer) else { return };
            self.shared.stats.count_datagram();
            let Some(datagram) = buffer.get_mut(..length) else { continue };
            self.deliver(table, datagram, source, now);
        }
    }

    fn deliver(&self, table: &Table, datagram: &mut [u8], source: SocketAddr, now: Duration) {
        let Some((device, tunnel)) = table.sender(source) else {
            self.shared.stats.datagrams_dropped.count(DropReason::UnknownSender);
            return;
        };
        match unwrap(device, tunnel, datagram) {
            Ok(packet) => match device.open.tun.send(packet) {
                Ok(()) => {
                    tunnel.stats.received.count(packet.len());
                    tunnel.stats.mark_received(now);
                }
                Err(error) => tunnel.stats.received.drops.count(match error.raw_os_error() {
                    Some(libc::EIO | libc::EBADFD) => DropReason::DeviceDown,
                    Some(libc::EINVAL) => DropReason::Malformed,
                    Some(_) | None => DropReason::Refused,
                }),
            },
            Err(reason) => tunnel.stats.received.drops.count(reason),
        }
    }
}

/// The packet in a datagram of `tunnel`, if the device may have it.
fn unwrap<'d>(device: &Device, tunnel: &Tunnel, datagram: &'d mut [u8]) -> Result<&'d [u8], DropReason> {
    let start = match frame::demux(datagram) {
        // A plain tunnel accepts both plain framings: the peer's may have been changed first.
        Ok(Frame::Packet { packet, .. }) => datagram.len() - packet.len(),
        Ok(Frame::Wireguard(_) | Frame::Own(_)) | Err(_) => return Err(DropReason::Framing),
    };
    let bytes = datagram.get_mut(start..).unwrap_or_default();
    let packet = Packet::parse(bytes).map_err(|_| DropReason::Malformed)?;
    device.admit(tunnel, &packet)?;
    let length = packet.bytes().len();
    mss::clamp(bytes, tunnel.tcp_mtu);
    bytes.get(..length).ok_or(DropReason::Malformed)
}
