//! Many datagrams with one system call (`sendmmsg(2)`), gathered from parts, and trains of them as one message that the
//! kernel or the network card cuts (`UDP_SEGMENT` of `udp(7)`).

use std::io;
use std::net::{IpAddr, UdpSocket};
use std::ops::Range;
use std::os::fd::AsRawFd;

use socket2::SockAddr;

/// The most datagrams of one train: of 64 that every kernel takes, older ones counted a header more.
pub const SEGMENTS: usize = 63;
/// The most bytes of one train: the payload of the longest IPv4 datagram, 65,535 less 20 and 8.
pub const TRAIN: usize = 65_507;

/// Words of control messages: segment size, TOS, source address.
const CONTROL: usize = 12;

/// A part of a message, in one of the buffers that a sender is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// Which buffer.
    pub buffer: u8,
    /// Where it begins.
    pub at: u32,
    /// Its bytes.
    pub length: u32,
}

/// One datagram or train, to one destination.
#[derive(Debug, Clone)]
pub struct Message<'m> {
    /// Where it goes.
    pub destination: &'m SockAddr,
    /// The local address that it goes from; `None`: the kernel chooses.
    pub source: Option<IpAddr>,
    /// The length of each datagram but the last; `None`: it is one.
    pub segment: Option<u16>,
    /// The TOS byte or traffic class of the outer header.
    pub tos: u8,
    /// Which of the parts it is made of.
    pub parts: Range<usize>,
}

/// What `sendmmsg` works from, kept for the next call.
#[derive(Default)]
pub struct Sender {
    headers: Vec<libc::mmsghdr>,
    vectors: Vec<libc::iovec>,
    control: Vec<[u64; CONTROL]>,
}

// SAFETY: the pointers inside mean something during `send` alone, which makes them anew.
#[allow(unsafe_code, reason = "raw pointers that are never followed from one call to the next")]
unsafe impl Send for Sender {}

/// Whatever messages can be sent with.
pub trait Transmit {
    /// Sends messages, and says how many of them went, from the first on: at least one. The parts that they name are in
    /// `parts`, and the parts' bytes in `buffers`.
    ///
    /// # Errors
    /// Why the first did not go: `WouldBlock` where the socket is full, even where others wait on it; `InvalidInput` also
    /// where a part is not there.
    fn send<'m>(
        &mut self,
        socket: &UdpSocket,
        messages: impl ExactSizeIterator<Item = Message<'m>>,
        parts: &[Part],
        buffers: [&[u8]; 2],
    ) -> io::Result<usize>;
}

impl Transmit for Sender {
    #[allow(unsafe_code, reason = "no crate in use gathers several segmented datagrams")]
    fn send<'m>(
        &mut self,
        socket: &UdpSocket,
        messages: impl ExactSizeIterator<Item = Message<'m>>,
        parts: &[Part],
        buffers: [&[u8]; 2],
    ) -> io::Result<usize> {
        let outside = || io::Error::from(io::ErrorKind::InvalidInput);
        self.vectors.clear();
        for part in parts {
            let buffer = buffers.get(usize::from(part.buffer)).ok_or_else(outside)?;
            let at = part.at as usize;
            let bytes = buffer.get(at..at + part.length as usize).ok_or_else(outside)?;
            self.vectors
                .push(libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() });
        }
        self.control.clear();
        self.control.resize(messages.len(), [0; CONTROL]);
        self.headers.clear();
        for (message, control) in messages.zip(&mut self.control) {
            let vectors = self.vectors.get_mut(message.parts.clone()).ok_or_else(outside)?;
            // SAFETY: an all-zero `mmsghdr` is valid: null pointers, and lengths of zero.
            let mut header: libc::mmsghdr = unsafe { std::mem::zeroed() };
            let inner = &mut header.msg_hdr;
            inner.msg_name = message.destination.as_ptr().cast_mut().cast();
            inner.msg_namelen = message.destination.len();
            inner.msg_iov = vectors.as_mut_ptr();
            inner.msg_iovlen = vectors.len();
            write_control(inner, control, &message);
            self.headers.push(header);
        }
        let count = self.headers.len() as libc::c_uint;
        // SAFETY: the headers point at addresses and buffers that are borrowed for this call, and at vectors and control
        // messages of `self`, which have not moved since; all with their true lengths. The kernel reads them, and writes
        // only the headers' `msg_len`.
        let sent = unsafe {
            libc::sendmmsg(socket.as_raw_fd(), self.headers.as_mut_ptr(), count, libc::MSG_DONTWAIT)
        };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(sent.unsigned_abs() as usize) }
    }
}

/// Points a header at control messages for `message`, written to `control`.
#[allow(unsafe_code, reason = "control messages are written with libc's macros")]
fn write_control(header: &mut libc::msghdr, control: &mut [u64; CONTROL], message: &Message<'_>) {
    let segment = message.segment.map(u16::to_ne_bytes);
    let tos = libc::c_int::from(message.tos).to_ne_bytes();
    // `struct in_pktinfo` of ip(7): interface index, source, and what is for receiving alone. `struct in6_pktinfo` of
    // ipv6(7): source, and interface index.
    let (mut v4, mut v6) = ([0; 12], [0; 20]);
    let is_v4 = message.destination.is_ipv4();
    let (level, tos_kind) = match is_v4 {
        true => (libc::IPPROTO_IP, libc::IP_TOS),
        false => (libc::IPPROTO_IPV6, libc::IPV6_TCLASS),
    };
    let source = match message.source {
        Some(IpAddr::V4(source)) if is_v4 => {
            v4[4..8].copy_from_slice(&source.octets());
            Some((libc::IP_PKTINFO, &v4[..]))
        }
        Some(IpAddr::V6(source)) if !is_v4 => {
            v6[..16].copy_from_slice(&source.octets());
            Some((libc::IPV6_PKTINFO, &v6[..]))
        }
        Some(_) | None => None,
    };
    let all = [
        segment.as_ref().map(|segment| (libc::SOL_UDP, libc::UDP_SEGMENT, &segment[..])),
        (message.tos != 0).then_some((level, tos_kind, &tos[..])),
        source.map(|(kind, data)| (level, kind, data)),
    ];
    header.msg_control = control.as_mut_ptr().cast();
    header.msg_controllen = size_of_val(control);
    let mut used = 0;
    // SAFETY: the header points at `control`, whose length it has, and which is aligned for a `cmsghdr`; there is room in
    // it for the longest three messages, so that no pointer is null before the last was written. Data is copied to where
    // `CMSG_DATA` says, as many bytes as `CMSG_LEN` was told of.
    unsafe {
        let mut next = libc::CMSG_FIRSTHDR(&raw const *header);
        for (level, kind, data) in all.into_iter().flatten() {
            if next.is_null() {
                break;
            }
            let length = data.len() as libc::c_uint;
            (*next).cmsg_level = level;
            (*next).cmsg_type = kind;
            (*next).cmsg_len = libc::CMSG_LEN(length) as usize;
            std::ptr::copy_nonoverlapping(data.as_ptr(), libc::CMSG_DATA(next), data.len());
            used += libc::CMSG_SPACE(length) as usize;
            next = libc::CMSG_NXTHDR(&raw const *header, next);
        }
    }
    header.msg_controllen = used;
    if used == 0 {
        header.msg_control = std::ptr::null_mut();
    }
}
