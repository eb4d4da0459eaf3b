//! A socket that hears one peer alone. For what arrives at it the kernel looks for no route, and need not tell who sent it.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};

use socket2::{SockRef, Socket};

use super::{Purpose, open, tell_place};

/// Nobody sends from this port (RFC 863).
const DISCARD: u16 = 9;

/// A socket beside that of a port, which hears what one peer sends to one address of this host.
#[derive(Debug)]
pub struct PeerSocket {
    socket: UdpSocket,
    peer: SocketAddr,
}

impl PeerSocket {
    /// Opens one beside `port`, which hears `peer` no more from then on. What others sent while it was being opened may be
    /// in it, too.
    ///
    /// # Errors
    /// `InvalidInput` where the peer sends from port 0, which to the kernel is any; `AddrNotAvailable` where packets to it
    /// do not go from `local`, where it sends to; and what the kernel says.
    pub fn open(port: &UdpSocket, peer: SocketAddr, local: IpAddr) -> io::Result<Self> {
        if peer.port() == 0 {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        if own_address(peer)? != local {
            return Err(io::ErrorKind::AddrNotAvailable.into());
        }
        let socket = open(peer.ip(), Purpose::Data)?;
        share_port(&socket, port)?;
        socket.connect(&peer.into())?;
        // Connected, it hears one address of this host, and the kernel need not tell which.
        tell_place(&socket, peer.is_ipv4(), false)?;
        Ok(Self { socket: socket.into(), peer })
    }

    /// Whom it hears.
    pub fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// The socket to read.
    pub fn socket(&self) -> &UdpSocket {
        &self.socket
    }

    /// Leaves the peer to the port again. What has arrived already can be read still.
    pub fn leave(&self) {
        // Where that fails, what arrives until the socket is closed is lost.
        let _ = self.socket.connect((self.peer.ip(), DISCARD));
    }
}

/// The address of this host from which packets to `peer` go.
fn own_address(peer: SocketAddr) -> io::Result<IpAddr> {
    let socket = open(peer.ip(), Purpose::Data)?;
    socket.connect(&peer.into())?;
    Ok(UdpSocket::from(socket).local_addr()?.ip())
}

/// Binds `socket` to the port of another one, which for this moment alone it shares with sockets of the same user. Sockets
/// of peers share it among themselves, too; who would take the port itself still finds it taken.
fn share_port(socket: &Socket, port: &UdpSocket) -> io::Result<()> {
    let address = port.local_addr()?;
    let port = SockRef::from(port);
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    port.set_reuse_port(true)?;
    let bound = socket.bind(&address.into());
    port.set_reuse_port(false)?;
    socket.set_reuse_port(false)?;
    bound
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};
    use std::time::Duration;

    use super::*;
    use crate::agent::os::udp::SocketPair;
    use crate::agent::os::udp::receive::{Reading, Receiver};

    fn sender() -> UdpSocket {
        UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap()
    }

    fn hears(socket: &UdpSocket) -> Option<Vec<u8>> {
        let mut buffer = [0; 16];
        socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        socket.recv(&mut buffer).ok().and_then(|length| buffer.get(..length).map(<[u8]>::to_vec))
    }

    #[test]
    fn hears_its_peer_alone_until_it_leaves() {
        let pair = SocketPair::bind(0, Purpose::Data).unwrap();
        let port = pair.v4.as_ref().unwrap();
        let to = (Ipv4Addr::LOCALHOST, port.local_addr().unwrap().port());
        let (peer, other) = (sender(), sender());
        let own = PeerSocket::open(port, peer.local_addr().unwrap(), Ipv4Addr::LOCALHOST.into()).unwrap();
        peer.send_to(b"own", to).unwrap();
        other.send_to(b"other", to).unwrap();
        assert_eq!(hears(own.socket()).as_deref(), Some(&b"own"[..]));
        assert_eq!(hears(own.socket()), None);
        assert_eq!(hears(port).as_deref(), Some(&b"other"[..]));
        peer.send_to(b"last", to).unwrap();
        own.leave();
        peer.send_to(b"next", to).unwrap();
        assert_eq!(hears(own.socket()).as_deref(), Some(&b"last"[..]));
        assert_eq!(hears(own.socket()), None);
        assert_eq!(hears(port).as_deref(), Some(&b"next"[..]));
    }

    #[test]
    fn the_port_stays_ours_alone() {
        let pair = SocketPair::bind(0, Purpose::Data).unwrap();
        let port = pair.v4.as_ref().unwrap();
        let peer = sender();
        let _own = PeerSocket::open(port, peer.local_addr().unwrap(), Ipv4Addr::LOCALHOST.into()).unwrap();
        let number = port.local_addr().unwrap().port();
        for (address, reuses_port) in [(false, false), (false, true), (true, false), (true, true)] {
            let second = open(Ipv4Addr::UNSPECIFIED.into(), Purpose::Data).unwrap();
            second.set_reuse_address(address).unwrap();
            second.set_reuse_port(reuses_port).unwrap();
            let refused = second.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, number)).into()).unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::AddrInUse, "{address} {reuses_port}");
        }
    }

    #[test]
    fn several_peers_have_one_each() {
        let pair = SocketPair::bind(0, Purpose::Data).unwrap();
        for (port, local) in [
            (pair.v4.as_ref().unwrap(), IpAddr::from(Ipv4Addr::LOCALHOST)),
            (pair.v6.as_ref().unwrap(), Ipv6Addr::LOCALHOST.into()),
        ] {
            let peers: Vec<_> = (0..4).map(|_| UdpSocket::bind((local, 0)).unwrap()).collect();
            let open = |peer: &UdpSocket| PeerSocket::open(port, peer.local_addr().unwrap(), local).unwrap();
            let sockets: Vec<_> = peers.iter().map(open).collect();
            for (n, peer) in peers.iter().enumerate() {
                peer.send_to(&[n as u8], (local, port.local_addr().unwrap().port())).unwrap();
            }
            for (n, socket) in sockets.iter().enumerate() {
                assert_eq!(hears(socket.socket()), Some(vec![n as u8]), "{local}");
            }
        }
    }

    #[test]
    fn is_told_how_a_datagram_is_marked_and_not_where_it_arrived() {
        const MARK: u8 = 0b11;
        let pair = SocketPair::bind(0, Purpose::Data).unwrap();
        let port = pair.v4.as_ref().unwrap();
        let peer = sender();
        SockRef::from(&peer).set_tos_v4(MARK.into()).unwrap();
        let own = PeerSocket::open(port, peer.local_addr().unwrap(), Ipv4Addr::LOCALHOST.into()).unwrap();
        peer.send_to(b"marked", (Ipv4Addr::LOCALHOST, port.local_addr().unwrap().port())).unwrap();
        let mut receiver = Receiver::default();
        receiver.read(own.socket(), Reading::Wait).unwrap();
        let received = receiver.message(0).unwrap();
        assert_eq!((received.tos, received.local), (MARK, None));
    }

    #[test]
    fn is_not_had_for_what_comes_from_no_port() {
        let pair = SocketPair::bind(0, Purpose::Data).unwrap();
        let peer = (Ipv4Addr::LOCALHOST, 0).into();
        let refused = PeerSocket::open(pair.v4.as_ref().unwrap(), peer, Ipv4Addr::LOCALHOST.into());
        assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn is_not_had_where_the_peer_sends_to_another_address() {
        let pair = SocketPair::bind(0, Purpose::Data).unwrap();
        let peer = sender().local_addr().unwrap();
        let refused = PeerSocket::open(pair.v4.as_ref().unwrap(), peer, Ipv4Addr::new(127, 0, 0, 2).into());
        assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::AddrNotAvailable);
    }
}
