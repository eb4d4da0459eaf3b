//! What this host can do for many packets at once, found by trying it.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::time::Duration;

use super::epoll::wait_readable;
use super::tun::TunDevice;
use super::udp::receive::{Reading, Receiver};
use super::udp::send::{Message, Part, Sender, Transmit};
use super::udp::set_merging;
use crate::agent::packet::coalesce::Merges;
use crate::agent::packet::vnet::{self, PartialChecksum, SegmentKind, Segmentation, VnetHeader};
use crate::proto::model::Offload;

/// How long a datagram may take over loopback.
const PATIENCE: Duration = Duration::from_millis(500);
/// The datagrams of the train that is sent over loopback, and their bytes. The last is as long as the others: kernels have
/// been at fault there.
const DATAGRAMS: usize = 4;
const LENGTH: usize = 100;

/// What this host cannot do, and why. What cannot be tried is taken to work: it is tried again with the first packet.
pub fn lacking() -> BTreeMap<Offload, String> {
    let mut lacking = BTreeMap::new();
    try_device(&mut lacking);
    try_socket(&mut lacking);
    lacking
}

fn try_device(lacking: &mut BTreeMap<Offload, String>) {
    let device = match TunDevice::anonymous() {
        Ok(device) => device,
        Err(error) => return tracing::debug!(%error, "no device to try offloads on"),
    };
    let tries = [
        (Offload::TunTso, Merges { tcp: true, udp: false }, &[SegmentKind::TcpV4, SegmentKind::TcpV6][..]),
        (Offload::TunUso, Merges { tcp: false, udp: true }, &[SegmentKind::Udp]),
    ];
    for (offload, merges, kinds) in tries {
        if let Err(error) = device.set_merging(merges) {
            lacking.insert(offload, format!("this kernel does not know it ({error})"));
            continue;
        }
        for kind in kinds {
            // The device is down: what the kernel understands it refuses for that alone.
            let (header, packet) = two_segments(*kind);
            let refusal = device.send(&header, std::iter::once(&packet[..])).err();
            if refusal.as_ref().and_then(io::Error::raw_os_error) == Some(libc::EINVAL) {
                lacking.insert(offload, "this kernel refuses packets that are many".to_owned());
            }
        }
    }
}

/// A packet that is two, with the header that goes before it. Only lengths and offsets are looked at.
fn two_segments(kind: SegmentKind) -> ([u8; vnet::LENGTH], Vec<u8>) {
    const PAYLOAD: u16 = 100;
    let (first, protocol, network, transport, offset) = match kind {
        SegmentKind::TcpV4 => (0x45, 6, 20, 20, 16),
        SegmentKind::TcpV6 => (0x60, 6, 40, 20, 16),
        SegmentKind::Udp => (0x45, 17, 20, 8, 6),
    };
    let headers = network + transport;
    let mut packet = vec![0; headers + 2 * usize::from(PAYLOAD)];
    packet[0] = first;
    packet[if network == 20 { 9 } else { 6 }] = protocol;
    let length = packet.len() as u16;
    match network {
        20 => packet[2..4].copy_from_slice(&length.to_be_bytes()),
        _ => packet[4..6].copy_from_slice(&(length - 40).to_be_bytes()),
    }
    if transport == 20 {
        packet[network + 12] = 5 << 4;
    }
    let header = VnetHeader {
        checksum: Some(PartialChecksum { start: network as u16, offset }),
        segments: Some(Segmentation { kind, size: PAYLOAD }),
    };
    (header.emit(headers as u16), packet)
}

fn try_socket(lacking: &mut BTreeMap<Offload, String>) {
    let socket = match UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)) {
        Ok(socket) => socket,
        // The loopback interface may be down.
        Err(error) => return tracing::debug!(%error, "no socket to try offloads on"),
    };
    if let Err(error) = socket.set_nonblocking(true) {
        return tracing::debug!(%error, "no socket to try offloads on");
    }
    if let Err(error) = set_merging(&socket, true) {
        lacking.insert(Offload::UdpGro, format!("this kernel does not know it ({error})"));
    }
    match send_a_train(&socket) {
        Ok(Sent::Arrived | Sent::Missing) => {}
        Ok(Sent::Garbled) => {
            lacking.insert(Offload::UdpGso, "this kernel garbles what it cuts".to_owned());
        }
        Err(error) => {
            lacking.insert(Offload::UdpGso, format!("this kernel does not know it ({error})"));
        }
    }
}

/// What became of a train over loopback.
enum Sent {
    /// It is there, byte for byte.
    Arrived,
    /// Something else is there.
    Garbled,
    /// Nothing came: a firewall may be in the way.
    Missing,
}

fn send_a_train(socket: &UdpSocket) -> io::Result<Sent> {
    let own = socket.local_addr()?;
    let bytes: Vec<u8> = (0..=u8::MAX).cycle().take(DATAGRAMS * LENGTH).collect();
    let train =
        Message { destination: &own.into(), source: None, segment: Some(LENGTH as u16), tos: 0, parts: 0..1 };
    let part = Part { buffer: 0, at: 0, length: bytes.len() as u32 };
    match Sender::default().send(socket, std::iter::once(train), &[part], [&bytes, &[]]) {
        Ok(_) => {}
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => return Ok(Sent::Missing),
        Err(error) => return Err(error),
    }
    let mut receiver = Receiver::default();
    let mut arrived = Vec::new();
    while arrived.len() < bytes.len() {
        wait_readable(socket, PATIENCE)?;
        match receiver.read(socket, Reading::Many) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Sent::Missing),
            Err(error) => return Err(error),
        }
        for index in 0..receiver.count() {
            let Some(message) = receiver.message(index).filter(|message| message.source == own) else {
                continue;
            };
            if message.segment != LENGTH {
                return Ok(Sent::Garbled);
            }
            arrived.extend_from_slice(receiver.buffer_mut().get(message.place).unwrap_or_default());
        }
    }
    Ok(if arrived == bytes { Sent::Arrived } else { Sent::Garbled })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_it_tries_is_what_this_kernel_takes() {
        // Without leave to make devices those are not tried.
        assert_eq!(lacking(), BTreeMap::new());
    }
}
