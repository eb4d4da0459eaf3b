//! Many datagrams with one system call (`recvmmsg(2)`), and trains of them as one message where the kernel has merged
//! what came from one sender (`UDP_GRO` of `udp(7)`).

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::ops::Range;
use std::os::fd::AsRawFd;

/// How many messages are read at once. Where the kernel merges nothing, few cost half as much again.
const MESSAGES: usize = 32;
/// How many are where not one may be there: to make many places ready takes longer than the message.
const FEW: usize = 4;
/// The longest message: a datagram or a train.
const LONGEST: usize = 1 << 16;
/// Messages begin so far apart: at a power of two all would compete for the same lines of the processor's cache.
const STRIDE: usize = LONGEST + 33 * 64;
/// Words of control messages: segment size, TOS, local address.
const CONTROL: usize = 16;

/// How a socket is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reading {
    /// A few messages of those that there are: soon done where it is one.
    Few,
    /// As many of those that there are as have room.
    Many,
    /// The same, and where there are none they are waited for, as long as reading on the socket may take.
    Wait,
}

/// A datagram or train as it arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Received {
    /// Where it is in the receiver's buffer.
    pub place: Range<usize>,
    /// The length of each datagram but the last, which may be shorter. Never 0.
    pub segment: usize,
    /// Who sent it, as far as it says.
    pub source: SocketAddr,
    /// The address of this host that it came to, where the kernel tells.
    pub local: Option<IpAddr>,
    /// The TOS byte or traffic class of the outer header.
    pub tos: u8,
}

/// What `recvmmsg` works on, kept for the next call.
pub struct Receiver {
    buffer: Vec<u8>,
    headers: Vec<libc::mmsghdr>,
    vectors: Vec<libc::iovec>,
    names: Vec<libc::sockaddr_storage>,
    control: Vec<[u64; CONTROL]>,
    /// How many messages there are.
    count: usize,
    /// Who has sent all of them; absent: the kernel is asked.
    peer: Option<SocketAddr>,
}

// SAFETY: the pointers inside mean something during a reading alone, which makes them anew.
#[allow(unsafe_code, reason = "raw pointers that are never followed from one call to the next")]
unsafe impl Send for Receiver {}

impl Default for Receiver {
    /// A receiver without messages.
    #[allow(unsafe_code, reason = "plain C structures begin as zeroes")]
    fn default() -> Self {
        // SAFETY: all-zero is valid for both: null pointers, lengths of zero, integers.
        let (header, name) = unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
        Self {
            buffer: vec![0; MESSAGES * STRIDE],
            headers: vec![header; MESSAGES],
            vectors: Vec::with_capacity(MESSAGES),
            names: vec![name; MESSAGES],
            control: vec![[0; CONTROL]; MESSAGES],
            count: 0,
            peer: None,
        }
    }
}

impl Receiver {
    /// Takes it from now on that `peer` has sent everything that is read.
    pub fn set_peer(&mut self, peer: SocketAddr) {
        self.peer = Some(peer);
    }

    /// Reads messages of a socket; what was read before is gone.
    ///
    /// # Errors
    /// `WouldBlock` where there are none; and what became of an earlier datagram.
    pub fn read(&mut self, socket: &UdpSocket, reading: Reading) -> io::Result<()> {
        match reading {
            Reading::Few => self.receive(socket, FEW, libc::MSG_DONTWAIT),
            Reading::Many => self.receive(socket, MESSAGES, libc::MSG_DONTWAIT),
            Reading::Wait => self.receive(socket, MESSAGES, libc::MSG_WAITFORONE),
        }
    }

    #[allow(unsafe_code, reason = "no crate in use receives several merged datagrams")]
    fn receive(&mut self, socket: &UdpSocket, messages: usize, flags: libc::c_int) -> io::Result<()> {
        self.count = 0;
        self.vectors.clear();
        let places = self.buffer.chunks_exact_mut(STRIDE).take(messages);
        self.vectors.extend(
            places.map(|place| libc::iovec { iov_base: place.as_mut_ptr().cast(), iov_len: LONGEST }),
        );
        let rest = self.vectors.iter_mut().zip(&mut self.names).zip(&mut self.control);
        for (header, ((vector, name), control)) in self.headers.iter_mut().zip(rest) {
            let inner = &mut header.msg_hdr;
            (inner.msg_name, inner.msg_namelen) = match self.peer {
                Some(_) => (std::ptr::null_mut(), 0),
                None => (std::ptr::from_mut(name).cast(), size_of_val(name) as libc::socklen_t),
            };
            inner.msg_iov = vector;
            inner.msg_iovlen = 1;
            inner.msg_control = control.as_mut_ptr().cast();
            inner.msg_controllen = size_of_val(control);
            inner.msg_flags = 0;
        }
        // SAFETY: the headers point at names, vectors and control messages of `self`, and the vectors at parts of its
        // buffer that do not overlap; all with their true lengths, and none moves during the call.
        let count = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                self.headers.as_mut_ptr(),
                self.vectors.len() as libc::c_uint,
                flags,
                std::ptr::null_mut(),
            )
        };
        if count < 0 {
            return Err(io::Error::last_os_error());
        }
        self.count = count.unsigned_abs() as usize;
        Ok(())
    }

    /// Whether the last reading took everything that was there.
    pub fn is_emptied(&self) -> bool {
        self.count < self.vectors.len()
    }

    /// How many messages were read last.
    pub fn count(&self) -> usize {
        self.count
    }

    /// The buffer that the places are in.
    pub fn buffer_mut(&mut self) -> &mut [u8] {
        &mut self.buffer
    }

    /// One of the messages that were read last, by its place among them. `None` for what was cut short, or is of no family
    /// that there is.
    #[allow(unsafe_code, reason = "control messages are read with libc's macros")]
    pub fn message(&self, index: usize) -> Option<Received> {
        let header = self.headers.get(..self.count)?.get(index)?;
        let inner = &header.msg_hdr;
        let length = header.msg_len as usize;
        let is_cut = inner.msg_flags & (libc::MSG_TRUNC | libc::MSG_CTRUNC) != 0;
        if is_cut || length > LONGEST {
            return None;
        }
        let at = index * STRIDE;
        let mut received = Received {
            place: at..at + length,
            segment: length.max(1),
            source: self.peer.or_else(|| address(self.names.get(index)?))?,
            local: None,
            tos: 0,
        };
        // SAFETY: the header is as `recvmmsg` left it, and what it points at is `self`'s and has not moved since.
        // `CMSG_*` walk only what the kernel wrote, and data is read unaligned after its level and type said what it is.
        unsafe {
            let mut next = libc::CMSG_FIRSTHDR(inner);
            while !next.is_null() {
                let data = libc::CMSG_DATA(next);
                match ((*next).cmsg_level, (*next).cmsg_type) {
                    (libc::SOL_UDP, libc::UDP_GRO) => {
                        let segment = data.cast::<libc::c_int>().read_unaligned();
                        received.segment = usize::try_from(segment).ok()?.max(1);
                    }
                    (libc::IPPROTO_IP, libc::IP_TOS) => received.tos = data.read(),
                    (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) => {
                        let class = data.cast::<libc::c_int>().read_unaligned();
                        received.tos = u8::try_from(class).unwrap_or_default();
                    }
                    (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                        let info = data.cast::<libc::in_pktinfo>().read_unaligned();
                        let local = Ipv4Addr::from(u32::from_be(info.ipi_spec_dst.s_addr));
                        // None where it was not asked for when the datagram arrived.
                        received.local = (!local.is_unspecified()).then_some(local.into());
                    }
                    (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                        let info = data.cast::<libc::in6_pktinfo>().read_unaligned();
                        received.local = Some(Ipv6Addr::from(info.ipi6_addr.s6_addr).into());
                    }
                    _ => {}
                }
                next = libc::CMSG_NXTHDR(inner, next);
            }
        }
        Some(received)
    }
}

/// The address that the kernel wrote; `None`: it is of neither family.
#[allow(unsafe_code, reason = "the family says what the storage holds")]
fn address(name: &libc::sockaddr_storage) -> Option<SocketAddr> {
    // SAFETY: the storage is as long as either structure and aligned for it, and holds integers alone; its family says
    // which one the kernel wrote.
    unsafe {
        let name = std::ptr::from_ref(name);
        match libc::c_int::from((*name).ss_family) {
            libc::AF_INET => {
                let v4 = &*name.cast::<libc::sockaddr_in>();
                let address = Ipv4Addr::from(u32::from_be(v4.sin_addr.s_addr));
                Some((address, u16::from_be(v4.sin_port)).into())
            }
            libc::AF_INET6 => {
                let v6 = &*name.cast::<libc::sockaddr_in6>();
                let address = Ipv6Addr::from(v6.sin6_addr.s6_addr);
                Some(
                    std::net::SocketAddrV6::new(
                        address,
                        u16::from_be(v6.sin6_port),
                        v6.sin6_flowinfo,
                        v6.sin6_scope_id,
                    )
                    .into(),
                )
            }
            _ => None,
        }
    }
}
