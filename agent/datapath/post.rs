//! Sends what is no packet: messages of handshakes, and tunmesh's own frames.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use super::Shared;
use super::outbox::is_of_the_source;
use super::path::Destination;
use super::table::Tunnel;
use crate::agent::os::udp::send::{Message, Part, Sender, Transmit};

/// Sends one datagram at a time.
pub(super) struct Post {
    shared: Arc<Shared>,
    sender: Sender,
}

impl Post {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, sender: Sender::default() }
    }

    /// Sends a datagram to the peer of a tunnel, wherever it is.
    ///
    /// # Errors
    /// What the kernel says; `AddrNotAvailable` where nobody knows where the peer is.
    pub(super) fn send(&mut self, tunnel: &Tunnel, datagram: &[u8]) -> io::Result<()> {
        let roamed = tunnel.path.roamed();
        let destination = roamed.as_deref().or(tunnel.destination.as_ref());
        let destination = destination.ok_or(io::ErrorKind::AddrNotAvailable)?;
        let local = tunnel.path.local();
        match self.send_to(destination, local, datagram) {
            Err(error) if local.is_some() && is_of_the_source(&error) => {
                tunnel.path.forget_local();
                self.send_to(destination, None, datagram)
            }
            sent => sent,
        }
    }

    /// Sends a datagram to an address, from another where that is given.
    ///
    /// # Errors
    /// What the kernel says; `Unsupported` where there is no socket of the address family.
    pub(super) fn send_to(
        &mut self,
        to: &Destination,
        source: Option<IpAddr>,
        datagram: &[u8],
    ) -> io::Result<()> {
        let socket = self.shared.sockets.of(to.address).ok_or(io::ErrorKind::Unsupported)?;
        let message = Message { destination: &to.socket, source, segment: None, tos: 0, parts: 0..1 };
        let part = Part { buffer: 0, at: 0, length: datagram.len() as u32 };
        self.sender.send(socket, std::iter::once(message), &[part], [datagram, &[]]).map(|_| ())
    }
}
