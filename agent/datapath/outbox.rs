//! Sends what egress has gathered, and finds for each refusal of the kernel what becomes of it.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use super::batch::{Batch, Delay, Entry, Way};
use super::path::Destination;
use super::stats::DropReason;
use super::table::{Table, Tunnel};
use super::{DatapathEvent, Shared};
use crate::agent::os::epoll::wait_writable;
use crate::agent::os::udp::send::{Message, Part, Sender, Transmit};
use crate::agent::packet::split::Train;

/// How long a full socket may hold up what is behind.
const PATIENCE: Duration = Duration::from_millis(20);

/// What waits to be sent.
pub(super) struct Outbox<T = Sender> {
    shared: Arc<Shared>,
    batch: Batch,
    sender: T,
}

/// What is to be done about a refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Remedy {
    /// The same again.
    Again,
    /// Each datagram alone.
    Singly,
    /// Nothing helps.
    Lost(DropReason),
}

impl<T: Transmit> Outbox<T> {
    pub(super) fn new(shared: Arc<Shared>, sender: T) -> Self {
        Self { shared, batch: Batch::new(), sender }
    }

    /// Whether it is to be flushed before more is added.
    pub(super) fn is_full(&self) -> bool {
        self.batch.is_full()
    }

    /// Adds the packet of `length` bytes at `at` of `packets`.
    pub(super) fn add(&mut self, way: &Way<'_>, packets: &[u8], at: usize, length: usize) -> Delay {
        let mut delay = Delay::default();
        match way.peer {
            None => self.batch.add(way, at, length),
            Some((peer, longest)) => {
                let packet = packets.get(at..at + length).unwrap_or_default();
                self.batch.seal(way, &mut peer.sessions(), [packet, &[]], longest, &mut delay);
            }
        }
        delay
    }

    /// Adds the packets of a train that begins at `at` of `packets`; what finds no room is sent at once.
    pub(super) fn add_train(
        &mut self,
        table: &Table,
        way: &Way<'_>,
        train: &Train<'_>,
        packets: &[u8],
        at: usize,
        now: Duration,
    ) -> Delay {
        let (mut next, mut delay) = (0, Delay::default());
        loop {
            next = match way.peer {
                None => self.batch.add_train(way, train, at, next),
                Some((peer, longest)) => {
                    let sessions = (&mut *peer.sessions(), longest);
                    self.batch.seal_train(way, sessions, train, next, &mut delay)
                }
            };
            if next >= train.count() {
                return delay;
            }
            self.flush(table, packets, now);
        }
    }

    /// Sends everything. The packets' bytes are in `packets`; `now` is time since boot.
    pub(super) fn flush(&mut self, table: &Table, packets: &[u8], now: Duration) {
        let (mut first, mut tries) = (0, 0);
        while let Some(entry) = self.batch.entries().get(first) {
            let Some(tunnel) = table.tunnel(entry.place) else {
                first += 1;
                continue;
            };
            let Some(to) = destination(entry, tunnel) else {
                lose(table, entry, DropReason::Unreachable);
                first += 1;
                continue;
            };
            let address = to.address;
            let of_family = |entry: &&Entry| {
                let to = table.tunnel(entry.place).and_then(|tunnel| destination(entry, tunnel));
                to.is_some_and(|to| to.address.is_ipv4() == address.is_ipv4())
            };
            let rest = self.batch.entries().get(first..).unwrap_or_default();
            let run = rest.iter().take_while(of_family).count();
            let run = rest.get(..run).unwrap_or_default();
            let Some(socket) = self.shared.sockets.of(address) else {
                for entry in run {
                    lose(table, entry, DropReason::Unreachable);
                }
                first += run.len();
                continue;
            };
            let messages = run.iter().map(|entry| {
                let tunnel = table.tunnel(entry.place).unwrap_or(tunnel);
                let segment = (entry.datagrams > 1).then_some(entry.segment as u16);
                let to = destination(entry, tunnel).unwrap_or(to);
                message(to, tunnel, entry.tos, segment, entry.parts.clone())
            });
            let sent = self.sender.send(socket, messages, self.batch.parts(), [packets, self.batch.made()]);
            if sent.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock) {
                // It is going to wait, and others are to receive meanwhile.
                self.shared.load.raise(now);
            }
            match sent {
                Ok(sent) => {
                    for entry in run.iter().take(sent) {
                        if let Some(tunnel) = table.tunnel(entry.place) {
                            tunnel.stats.sent.count(entry.datagrams, entry.packet_bytes);
                        }
                    }
                    (first, tries) = (first + sent.max(1), 0);
                }
                Err(error) => match remedy(&error, socket, tunnel, entry.datagrams, tries) {
                    Remedy::Again => tries += 1,
                    Remedy::Singly => {
                        let local = tunnel.path.local();
                        for (datagram, length) in self.batch.datagrams(entry) {
                            let buffers = [packets, self.batch.made()];
                            let sent = send_one(
                                &mut self.sender,
                                socket,
                                (to, tunnel),
                                entry.tos,
                                datagram,
                                buffers,
                            );
                            match sent {
                                Ok(()) => tunnel.stats.sent.count(1, length),
                                Err(reason) => {
                                    self.tell(tunnel, address, reason, now);
                                    tunnel.stats.sent.drops.count(reason, 1);
                                }
                            }
                        }
                        // Otherwise the address was at fault.
                        if tunnel.path.local() == local {
                            tunnel.path.refuse_trains(now);
                        }
                        (first, tries) = (first + 1, 0);
                    }
                    Remedy::Lost(reason) => {
                        self.tell(tunnel, address, reason, now);
                        lose(table, entry, reason);
                        (first, tries) = (first + 1, 0);
                    }
                },
            }
        }
        self.batch.clear();
    }

    /// Sends the fragments of a packet of `length` bytes, after everything that came before it.
    pub(super) fn send_fragments(
        &mut self,
        table: &Table,
        way: &Way<'_>,
        fragments: &[Vec<u8>],
        length: usize,
        packets: &[u8],
        now: Duration,
    ) -> Delay {
        self.flush(table, packets, now);
        let mut delay = Delay::default();
        let Some(tunnel) = table.tunnel(way.place) else { return delay };
        if let Some((peer, longest)) = way.peer {
            // Each is a packet of its own from here on.
            for fragment in fragments {
                if self.is_full() {
                    self.flush(table, packets, now);
                }
                self.batch.seal(way, &mut peer.sessions(), [fragment, &[]], longest, &mut delay);
            }
            return delay;
        }
        let to = tunnel.destination.as_ref();
        let Some((to, socket)) = to.and_then(|to| Some((to, self.shared.sockets.of(to.address)?))) else {
            tunnel.stats.sent.drops.count(DropReason::Unreachable, 1);
            return delay;
        };
        let part = |buffer, bytes: &[u8]| Part { buffer, at: 0, length: bytes.len() as u32 };
        for fragment in fragments {
            let parts = [part(0, way.prefix), part(1, fragment)];
            let buffers = [way.prefix, fragment];
            if let Err(reason) = send_one(&mut self.sender, socket, (to, tunnel), way.tos, &parts, buffers) {
                self.tell(tunnel, to.address, reason, now);
                tunnel.stats.sent.drops.count(reason, 1);
                return delay;
            }
        }
        tunnel.stats.sent.count(1, length);
        delay
    }

    /// Tells the runtime what it can do something about.
    fn tell(&self, tunnel: &Tunnel, to: SocketAddr, reason: DropReason, now: Duration) {
        if reason == DropReason::TooBig && tunnel.path.is_news(now) {
            // A full channel has news enough, and what was not told is told again.
            let _ = self.shared.events.try_send(DatapathEvent::PathNarrowed(to.ip()));
        }
    }
}

/// Where the datagrams of a message go; `None`: nobody knows where its peer is.
fn destination<'d>(entry: &'d Entry, tunnel: &'d Tunnel) -> Option<&'d Destination> {
    entry.roamed.as_deref().or(tunnel.destination.as_ref())
}

fn message<'m>(
    to: &'m Destination,
    tunnel: &Tunnel,
    tos: u8,
    segment: Option<u16>,
    parts: std::ops::Range<usize>,
) -> Message<'m> {
    Message { destination: &to.socket, source: tunnel.path.local(), segment, tos, parts }
}

/// Sends one datagram.
fn send_one(
    sender: &mut impl Transmit,
    socket: &UdpSocket,
    (to, tunnel): (&Destination, &Tunnel),
    tos: u8,
    parts: &[Part],
    buffers: [&[u8]; 2],
) -> Result<(), DropReason> {
    let mut tries = 0;
    loop {
        let messages = std::iter::once(message(to, tunnel, tos, None, 0..parts.len()));
        let Err(error) = sender.send(socket, messages, parts, buffers) else { return Ok(()) };
        match remedy(&error, socket, tunnel, 1, tries) {
            Remedy::Lost(reason) => return Err(reason),
            Remedy::Again | Remedy::Singly => tries += 1,
        }
    }
}

fn lose(table: &Table, entry: &Entry, reason: DropReason) {
    if let Some(tunnel) = table.tunnel(entry.place) {
        tunnel.stats.sent.drops.count(reason, entry.datagrams as u64);
    }
}

/// What to do about a message of so many datagrams that was refused after so many tries.
fn remedy(error: &io::Error, socket: &UdpSocket, tunnel: &Tunnel, datagrams: usize, tries: usize) -> Remedy {
    let lost = Remedy::Lost(reason_of(error));
    match error.raw_os_error() {
        Some(libc::EAGAIN) if tries == 0 && wait_writable(socket, PATIENCE).is_ok() => Remedy::Again,
        // Memory may be there again; and of an earlier datagram it may be told now that its peer was not there.
        Some(libc::ENOBUFS | libc::ECONNREFUSED) if tries == 0 => Remedy::Again,
        // No checksums or segmentation on the way that this peer's datagrams take, or more of them than this kernel takes.
        Some(libc::EIO | libc::EINVAL) if datagrams > 1 => Remedy::Singly,
        Some(_) if tunnel.path.local().is_some() && is_of_the_source(error) => {
            tunnel.path.forget_local();
            Remedy::Again
        }
        Some(_) | None => lost,
    }
}

/// Whether the address that a datagram is to go from may have left this host: the kernel finds no route from there, or no
/// such address.
pub(super) fn is_of_the_source(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EINVAL | libc::EADDRNOTAVAIL | libc::ENETUNREACH | libc::EHOSTUNREACH)
    )
}

/// Why what was refused so is lost.
pub(super) fn reason_of(error: &io::Error) -> DropReason {
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
mod tests;
