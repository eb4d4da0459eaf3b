//! From the devices to the sockets.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::batch::{Delay, Place, Way};
use super::handshakes::Handshakes;
use super::outbox::Outbox;
use super::stats::DropReason;
use super::table::{Device, Table, Tunnel};
use super::{BUDGET, BUFFER, Shared};
use crate::agent::os::udp::send::{SEGMENTS, Sender};
use crate::agent::packet::parse::Packet;
use crate::agent::packet::split::{self, HEADERS, Train};
use crate::agent::packet::vnet::{self, VnetHeader};
use crate::agent::packet::{ecn, fragment, frame, icmp, mss};
use crate::proto::rate::{Bucket, Rate};

/// The most ICMP answers: so many at once, and as many a second.
const ANSWERS: Rate = Rate { burst: 200, every: Duration::from_millis(5) };
/// Room for what is read from a device before it is sent, in bytes.
const PACKETS: usize = 768 << 10;
/// Packets begin at multiples of this, a cache line.
const ALIGNMENT: usize = 64;

/// What reads the devices.
pub(super) struct Egress {
    shared: Arc<Shared>,
    answers: Bucket,
    packets: Vec<u8>,
    outbox: Outbox,
    handshakes: Handshakes,
    /// Time since boot, read once for each turn of a device.
    now: Duration,
}

impl Egress {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self {
            outbox: Outbox::new(Arc::clone(&shared), Sender::default()),
            handshakes: Handshakes::new(Arc::clone(&shared)),
            shared,
            answers: Bucket::default(),
            packets: vec![0; PACKETS],
            now: Duration::ZERO,
        }
    }

    /// Sends what waits at a device, as far as its turn goes; `now` is time since boot.
    ///
    /// # Errors
    /// Where the device cannot be read any more.
    pub(super) fn drain(&mut self, table: &Table, position: usize, now: Duration) -> io::Result<()> {
        let Some(device) = table.devices().get(position) else { return Ok(()) };
        self.now = now;
        let (mut at, mut count, mut bytes) = (0, 0, 0);
        let mut outcome = Ok(());
        for _ in 0..BUDGET {
            if self.outbox.is_full() || at + BUFFER > PACKETS {
                self.outbox.flush(table, &self.packets, self.now);
                at = 0;
            }
            let Some(room) = self.packets.get_mut(at..at + BUFFER) else { break };
            let mut header = VnetHeader::WHOLE;
            match device.open.tun.receive(&mut header, room) {
                Ok(length) => {
                    self.forward(table, position, header, at, length);
                    at += length.next_multiple_of(ALIGNMENT);
                    count += 1;
                    bytes += length;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => {
                    outcome = Err(error);
                    break;
                }
            }
        }
        self.outbox.flush(table, &self.packets, self.now);
        self.shared.load.add(count, bytes, now);
        outcome
    }

    /// Forwards what was read to `at`: one packet, or one that is many.
    fn forward(
        &mut self,
        table: &Table,
        position: usize,
        header: [u8; vnet::LENGTH],
        at: usize,
        length: usize,
    ) {
        let Some(device) = table.devices().get(position) else { return };
        let dropped = &self.shared.stats.packets_dropped;
        let place = at..at + length;
        let Ok(header) = VnetHeader::parse(header) else { return dropped.count(DropReason::Malformed, 1) };
        if let (Some(partial), None) = (header.checksum, header.segments)
            && let Some(bytes) = self.packets.get_mut(place.clone())
            && split::complete(bytes, partial).is_err()
        {
            return dropped.count(DropReason::Malformed, 1);
        }
        let bytes = self.packets.get(place.clone()).unwrap_or_default();
        let Ok(packet) = Packet::parse(bytes) else { return dropped.count(DropReason::Malformed, 1) };
        let Some((index, tunnel)) = device.tunnel_to(packet.destination()) else {
            dropped.count(DropReason::NoTunnel, 1);
            return answer(&mut self.answers, device, icmp::unreachable(&packet));
        };
        let information = frame::packet_information(packet.is_v4());
        let roamed = tunnel.path.roamed();
        let peer = tunnel.addressee();
        let way = Way {
            place: Place { device: position, tunnel: index },
            tos: if tunnel.packet_information { 0 } else { ecn::of(&packet) },
            prefix: if tunnel.packet_information { &information } else { &[] },
            limit: if tunnel.takes_trains && tunnel.path.takes_trains(self.now) { SEGMENTS } else { 1 },
            peer: peer.map(|peer| (peer, tunnel.mtu)),
            roamed: roamed.as_ref().filter(|_| peer.is_some()),
        };
        let length = packet.bytes().len();
        if header.segments.is_none() {
            if length <= usize::from(tunnel.mtu) {
                if let Some(bytes) = self.packets.get_mut(place) {
                    mss::clamp(bytes, tunnel.tcp_mtu);
                }
                let delay = self.outbox.add(&way, &self.packets, at, length);
                heed(&mut self.handshakes, tunnel, delay);
            } else if let Some(fragments) = fragments(tunnel, &packet) {
                let delay =
                    self.outbox.send_fragments(table, &way, &fragments, length, &self.packets, self.now);
                heed(&mut self.handshakes, tunnel, delay);
            } else {
                answer(&mut self.answers, device, icmp::too_big(&packet, tunnel.mtu));
            }
            return;
        }
        let Ok(train) = Train::plan(header, &packet) else {
            return tunnel.stats.sent.drops.count(DropReason::Malformed, 1);
        };
        if train.longest() <= usize::from(tunnel.mtu) {
            let delay = self.outbox.add_train(table, &way, &train, &self.packets, at, self.now);
            heed(&mut self.handshakes, tunnel, delay);
        } else if packet.dont_fragment() {
            // The kernel sends anew what it takes as one, and tells the sender once.
            tunnel.stats.sent.drops.count(DropReason::TooBig, train.count() as u64);
            answer(&mut self.answers, device, icmp::too_big(&packet, tunnel.mtu));
        } else {
            let mut header = [0; HEADERS];
            for index in 0..train.count() {
                let Some(payload) = train.packet(index, &mut header) else { break };
                let whole = [header.get(..train.header_length()).unwrap_or_default(), payload].concat();
                let Ok(packet) = Packet::parse(&whole) else { break };
                let fragments = fragment::fragments(&packet, tunnel.mtu);
                let delay =
                    self.outbox.send_fragments(table, &way, &fragments, whole.len(), &self.packets, self.now);
                heed(&mut self.handshakes, tunnel, delay);
            }
        }
    }
}

/// Does what is to be done where packets wait for a session.
fn heed(handshakes: &mut Handshakes, tunnel: &Tunnel, delay: Delay) {
    tunnel.stats.sent.drops.count(DropReason::NoSession, delay.lost);
    if let Some(initiation) = delay.initiation {
        handshakes.ask(tunnel, &initiation);
    }
}

/// The fragments of a packet that the tunnel does not carry whole; `None`: it must not be fragmented, which is counted.
fn fragments(tunnel: &Tunnel, packet: &Packet<'_>) -> Option<Vec<Vec<u8>>> {
    if packet.dont_fragment() {
        tunnel.stats.sent.drops.count(DropReason::TooBig, 1);
        return None;
    }
    Some(fragment::fragments(packet, tunnel.mtu))
}

#[allow(clippy::disallowed_methods, reason = "a data thread, and only where a packet was refused")]
fn answer(answers: &mut Bucket, device: &Device, answer: Option<Vec<u8>>) {
    if let Some(answer) = answer
        && answers.take(ANSWERS, Instant::now()).is_ok()
    {
        // Whoever took the device down does not wait for an answer.
        let _ = device.open.tun.send(&VnetHeader::WHOLE, std::iter::once(&answer[..]));
    }
}
