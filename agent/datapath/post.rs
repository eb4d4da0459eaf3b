//! Sends what is no packet: messages of handshakes, and tunmesh's own frames.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use super::Shared;
use super::outbox::{is_of_the_source, reason_of};
use super::path::Destination;
use super::peer::Sessions;
use super::stats::DropReason;
use super::table::Tunnel;
use crate::agent::os::udp::send::{Message, Part, Sender, Transmit};

/// Sends one datagram at a time.
pub(super) struct Post {
    shared: Arc<Shared>,
    sender: Sender,
    sealed: Vec<u8>,
}

/// Why a frame was not sent.
pub(super) enum Unsent {
    /// What became of it, as of a packet.
    Lost(DropReason),
    /// There are no keys. What begins a handshake, where none is under way, is to be sent.
    NoSession(Option<Vec<u8>>),
}

impl Post {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, sender: Sender::default(), sealed: Vec::new() }
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

    /// Sends a frame of tunmesh's own to the peer of a tunnel, sealed where its sessions are given.
    ///
    /// # Errors
    /// Why it was not sent.
    pub(super) fn send_own(
        &mut self,
        tunnel: &Tunnel,
        sessions: Option<&mut Sessions>,
        frame: &[u8],
    ) -> Result<(), Unsent> {
        self.send_sealed(sessions, frame, |post, datagram| post.send(tunnel, datagram))
    }

    /// The same to an address of the peer, from another where that is given, wherever else the peer is.
    ///
    /// # Errors
    /// Why it was not sent.
    pub(super) fn send_own_to(
        &mut self,
        (to, source): (&Destination, Option<IpAddr>),
        sessions: Option<&mut Sessions>,
        frame: &[u8],
    ) -> Result<(), Unsent> {
        self.send_sealed(sessions, frame, |post, datagram| post.send_to(to, source, datagram))
    }

    fn send_sealed(
        &mut self,
        sessions: Option<&mut Sessions>,
        frame: &[u8],
        send: impl FnOnce(&mut Self, &[u8]) -> io::Result<()>,
    ) -> Result<(), Unsent> {
        let lost = |error: io::Error| Unsent::Lost(reason_of(&error));
        let Some(sessions) = sessions else { return send(self, frame).map_err(lost) };
        let mut sealed = std::mem::take(&mut self.sealed);
        sealed.clear();
        // A frame is never longer than a packet.
        let longest = u16::try_from(frame.len()).unwrap_or(u16::MAX);
        let sent = match sessions.seal_at_once(frame, longest, &mut sealed) {
            Ok(()) => send(self, &sealed).map_err(lost),
            Err(initiation) => Err(Unsent::NoSession(initiation)),
        };
        self.sealed = sealed;
        sent
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
