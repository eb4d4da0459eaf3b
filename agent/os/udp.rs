//! UDP sockets on the underlay.

pub mod peer;
pub mod receive;
pub mod send;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, Type};

/// How much the kernel keeps for a data socket in each direction, in bytes.
const BUFFER: libc::c_int = 16 << 20;

/// How long who waits at a data socket does so before it looks for what else there is to do.
const TURN: Duration = Duration::from_millis(100);

/// What a port is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Packets, in trains. A thread waits for them in the socket itself: there the kernel wakes it once, where readiness
    /// is told for every datagram.
    Data,
    /// Control messages, one by one, when the socket is ready.
    Control,
}

/// The address families that the data port or the control port is open on.
#[derive(Debug)]
pub struct SocketPair {
    /// IPv4.
    pub v4: Option<UdpSocket>,
    /// IPv6 alone.
    pub v6: Option<UdpSocket>,
}

impl SocketPair {
    /// Opens `port` on all addresses of every family that the host has, without SO_REUSEPORT: a second agent fails.
    ///
    /// # Errors
    /// `AddrInUse`, or what the kernel says where no family can be had.
    pub fn bind(port: u16, purpose: Purpose) -> io::Result<Self> {
        let v4 = bind(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port, purpose);
        let v6 = bind(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port, purpose);
        match (v4, v6) {
            (Ok(v4), Ok(v6)) => Ok(Self { v4: Some(v4), v6: Some(v6) }),
            (Ok(v4), Err(error)) if is_absent(&error) => Ok(Self { v4: Some(v4), v6: None }),
            (Err(error), Ok(v6)) if is_absent(&error) => Ok(Self { v4: None, v6: Some(v6) }),
            (Err(error), _) | (Ok(_), Err(error)) => Err(error),
        }
    }

    /// Ends the waiting of whoever receives on the sockets, for good.
    pub fn end_receiving(&self) {
        for socket in self.iter() {
            // That it is not connected is an error which changes nothing: who waits is woken (`inet_shutdown` of the kernel).
            let _ = SockRef::from(socket).shutdown(Shutdown::Read);
        }
    }

    /// The sockets that there are.
    pub fn iter(&self) -> impl Iterator<Item = &UdpSocket> {
        self.v4.iter().chain(&self.v6)
    }

    /// The socket that reaches `destination`; `None`: the host lacks its family.
    pub fn of(&self, destination: SocketAddr) -> Option<&UdpSocket> {
        self.of_family(destination.is_ipv4())
    }

    /// The socket of IPv4, or of IPv6; `None`: the host lacks it.
    pub fn of_family(&self, is_v4: bool) -> Option<&UdpSocket> {
        if is_v4 { self.v4.as_ref() } else { self.v6.as_ref() }
    }
}

/// Whether the host lacks an address family.
fn is_absent(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL))
}

fn bind(address: IpAddr, port: u16, purpose: Purpose) -> io::Result<UdpSocket> {
    let socket = open(address, purpose)?;
    socket.bind(&SocketAddr::new(address, port).into())?;
    Ok(socket.into())
}

/// Opens a socket of `address`'s family, with all options.
fn open(address: IpAddr, purpose: Purpose) -> io::Result<Socket> {
    let domain = Domain::for_address(SocketAddr::new(address, 0));
    let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_nonblocking(purpose == Purpose::Control)?;
    for (force, ask) in [(libc::SO_RCVBUFFORCE, libc::SO_RCVBUF), (libc::SO_SNDBUFFORCE, libc::SO_SNDBUF)] {
        // Who may not administer the network gets what `net.core.[rw]mem_max` allows.
        set_value(&socket, libc::SOL_SOCKET, force, BUFFER)
            .or_else(|_| set_value(&socket, libc::SOL_SOCKET, ask, BUFFER))?;
    }
    // Before the port is open: the kernel notes the interface of what arrives from then on.
    tell_place(&socket, address.is_ipv4(), true)?;
    match purpose {
        Purpose::Data => {
            socket.set_read_timeout(Some(TURN))?;
            tell_tos(&socket, address.is_ipv4(), true)?;
            forbid_fragments(&socket, address)?;
        }
        Purpose::Control => {}
    }
    Ok(socket)
}

/// Whether datagrams of one sender may arrive at a socket as one message.
///
/// # Errors
/// Of kernels before 5.0.
pub fn set_merging(socket: &impl AsRawFd, is_on: bool) -> io::Result<()> {
    set_option(socket, libc::SOL_UDP, libc::UDP_GRO, is_on)
}

/// Whether a socket tells the TOS byte, or the traffic class, of each datagram.
///
/// # Errors
/// What the kernel says; none that is known.
pub fn tell_tos(socket: &impl AsRawFd, is_v4: bool, is_on: bool) -> io::Result<()> {
    if is_v4 {
        set_option(socket, libc::IPPROTO_IP, libc::IP_RECVTOS, is_on)
    } else {
        set_option(socket, libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS, is_on)
    }
}

/// Makes a socket refuse with EMSGSIZE what the path does not carry whole, as far as the kernel knows: it keeps what
/// routers say of each path for ten minutes (RFC 1191, RFC 8201; `IP_PMTUDISC_DO` of ip(7)).
fn forbid_fragments(socket: &Socket, address: IpAddr) -> io::Result<()> {
    if address.is_ipv4() {
        return set_value(socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DO);
    }
    set_value(socket, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_DO)?;
    set_option(socket, libc::IPPROTO_IPV6, libc::IPV6_DONTFRAG, true)
}

/// Whether a socket tells with each datagram at which interface and address of this host it arrived.
///
/// # Errors
/// What the kernel says; none that is known.
pub fn tell_place(socket: &impl AsRawFd, is_v4: bool, is_on: bool) -> io::Result<()> {
    if is_v4 {
        set_option(socket, libc::IPPROTO_IP, libc::IP_PKTINFO, is_on)
    } else {
        set_option(socket, libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, is_on)
    }
}

fn set_option(socket: &impl AsRawFd, level: libc::c_int, option: libc::c_int, is_on: bool) -> io::Result<()> {
    set_value(socket, level, option, is_on.into())
}

#[allow(unsafe_code, reason = "no crate in use sets all of these")]
fn set_value(
    socket: &impl AsRawFd,
    level: libc::c_int,
    option: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    let length = size_of_val(&value) as libc::socklen_t;
    // SAFETY: the descriptor is open, and the kernel reads `length` bytes at `value`, which is that long.
    let status =
        unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const value).cast(), length) };
    if status < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A datagram with the place where it arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arrival {
    /// Its length in bytes.
    pub length: usize,
    /// Who sent it, as far as the datagram says.
    pub source: SocketAddr,
    /// The index of the interface at which it arrived, whatever its source claims.
    pub interface: u32,
}

/// Receives one datagram from a socket of a [`SocketPair`]; a longer one is cut to the buffer.
///
/// # Errors
/// `WouldBlock` where none waits; `InvalidData` where the kernel does not tell the interface.
#[allow(unsafe_code, reason = "control messages are read with libc's macros")]
pub fn receive_with_interface(socket: &impl AsRawFd, buffer: &mut [u8]) -> io::Result<Arrival> {
    /// Room for one `in6_pktinfo`, the larger one, aligned as `cmsghdr` needs it.
    const CONTROL: usize = 16;
    let mut control = [0_u64; CONTROL];
    let mut segment = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    let mut interface = None;
    // SAFETY: `try_init` hands a zeroed address and its length; the message points at it, at `segment` and at
    // `control`, which all outlive the call, with their true lengths. `CMSG_*` walk only what the kernel wrote, and
    // the payload is read unaligned after its level and type said what it is.
    let ((length, _), source) = unsafe {
        socket2::SockAddr::try_init(|address, address_length| {
            let mut message: libc::msghdr = std::mem::zeroed();
            message.msg_name = address.cast();
            message.msg_namelen = *address_length;
            message.msg_iov = &raw mut segment;
            message.msg_iovlen = 1;
            message.msg_control = control.as_mut_ptr().cast();
            message.msg_controllen = size_of_val(&control);
            let length = libc::recvmsg(socket.as_raw_fd(), &raw mut message, 0);
            if length < 0 {
                return Err(io::Error::last_os_error());
            }
            *address_length = message.msg_namelen;
            let mut header = libc::CMSG_FIRSTHDR(&raw const message);
            while !header.is_null() {
                let data = libc::CMSG_DATA(header);
                match ((*header).cmsg_level, (*header).cmsg_type) {
                    (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                        let info: libc::in_pktinfo = data.cast::<libc::in_pktinfo>().read_unaligned();
                        interface = u32::try_from(info.ipi_ifindex).ok();
                    }
                    (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                        let info: libc::in6_pktinfo = data.cast::<libc::in6_pktinfo>().read_unaligned();
                        interface = Some(info.ipi6_ifindex);
                    }
                    _ => {}
                }
                header = libc::CMSG_NXTHDR(&raw const message, header);
            }
            Ok((length.unsigned_abs(), ()))
        })?
    };
    let source = source.as_socket().ok_or(io::ErrorKind::InvalidData)?;
    Ok(Arrival { length, source, interface: interface.ok_or(io::ErrorKind::InvalidData)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_the_interface_of_what_came_before_anyone_looked() {
        const LOOPBACK: u32 = 1;
        for address in [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)] {
            let socket = bind(address, 0, Purpose::Control).unwrap();
            let sender = UdpSocket::bind((address, 0)).unwrap();
            sender.send_to(b"early", socket.local_addr().unwrap()).unwrap();
            let mut buffer = [0; 16];
            let arrival = receive_with_interface(&socket, &mut buffer).unwrap();
            assert_eq!((arrival.length, arrival.interface), (5, LOOPBACK));
            assert_eq!(arrival.source, sender.local_addr().unwrap());
        }
    }
}
