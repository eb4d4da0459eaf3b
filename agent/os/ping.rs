//! Whether a host on the underlay answers.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

use crate::agent::packet::echo::{Token, answer, answered, message};
use crate::agent::packet::parse::Packet;
use crate::proto::host::clock::now;
use crate::proto::session::{Ping, Port};

/// How often it is asked.
const TRIES: u16 = 3;
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_millis(500);
/// How often a port is tried: kernels say once a second that nobody listens, whoever has asked.
const PORT_TRIES: u16 = 6;

/// Asks a host by ICMP echoes. `None`: this process may not, or the host has no such addresses.
pub fn ping(address: IpAddr, token: &Token) -> Option<Ping> {
    let (domain, protocol) = match address {
        IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4),
        IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6),
    };
    let open = |kind| Socket::new(domain, kind, Some(protocol));
    // Without CAP_NET_RAW, where net.ipv4.ping_group_range lets this process's group (icmp(7)).
    let (socket, is_raw) = match open(Type::RAW) {
        Ok(socket) => (socket, true),
        Err(_) => (open(Type::DGRAM).ok()?, false),
    };
    let has_header = is_raw && address.is_ipv4();
    let asked = socket
        .connect(&SocketAddr::new(address, 0).into())
        .and_then(|()| ask(&socket, address, has_header, token));
    Some(match asked {
        Ok(true) => Ping::Answered,
        Ok(false) => Ping::Silent,
        Err(error) => Ping::NoWay(error.to_string()),
    })
}

/// Whether a question was answered. What is read begins with an IP header, or with the ICMP message.
fn ask(mut socket: &Socket, address: IpAddr, has_header: bool, token: &Token) -> io::Result<bool> {
    let is_answer = |read: &[u8]| match has_header {
        true => Packet::parse(read).is_ok_and(|packet| answered(&packet, token).is_some()),
        false => answer(read, address.is_ipv4(), token).is_some(),
    };
    for sequence in 0..TRIES {
        socket.write_all(&message(address.is_ipv4(), token, sequence))?;
        let deadline = now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(now());
            // A socket waits for ever without a time.
            if left.is_zero() {
                break;
            }
            socket.set_read_timeout(Some(left))?;
            let mut buffer = [0; 512];
            match socket.read(&mut buffer) {
                Ok(length) if is_answer(&buffer[..length]) => return Ok(true),
                Ok(_) => {}
                Err(error) if is_timeout(&error) => break,
                Err(error) => return Err(error),
            }
        }
    }
    Ok(false)
}

/// Sends a datagram that means nothing to a port, and listens for its host's word that nobody is there. `None`: it could not be
/// sent.
pub fn try_port(endpoint: SocketAddr) -> Option<Port> {
    let any: IpAddr = match endpoint {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect(endpoint).ok()?;
    socket.set_read_timeout(Some(PATIENCE)).ok()?;
    for _ in 0..PORT_TRIES {
        socket.send(&[0]).ok()?;
        match socket.recv(&mut [0; 1]) {
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => return Some(Port::Refused),
            Ok(_) => return Some(Port::OpenOrSilent),
            Err(error) if is_timeout(&error) => {}
            Err(_) => return None,
        }
    }
    Some(Port::OpenOrSilent)
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}
