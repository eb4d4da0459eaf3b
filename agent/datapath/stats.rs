//! Counters, which the data threads write and the runtime reads.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::agent::wireguard::Refused;
use crate::proto::model::Traffic;

/// Why a packet or datagram went no further.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub enum DropReason {
    /// A datagram from an address that is no tunnel's remote, or a handshake of a key that is no tunnel's.
    UnknownSender,
    /// A datagram in another framing than its tunnel's, or in none.
    Framing,
    /// No well-formed IP packet.
    Malformed,
    /// A packet from or to an address that no tunnel may carry: loopback, unspecified, a group as the source, or
    /// an address of this host as the source.
    Martian,
    /// A packet whose source the tunnel's allowed prefixes do not have.
    SourceNotAllowed,
    /// A packet that was marked as congested on its way, and whose sender cannot be told otherwise (RFC 6040).
    Congested,
    /// A packet to an address to which no tunnel of the device leads.
    NoTunnel,
    /// A packet larger than the path carries, which may not be fragmented.
    TooBig,
    /// No way to the peer: no route, or no address family.
    Unreachable,
    /// A firewall of this host.
    Firewall,
    /// The socket stayed full.
    SocketFull,
    /// The device is down, or gone.
    DeviceDown,
    /// Another refusal of the kernel.
    Refused,
    /// An encrypted datagram of a session that is not there, or not any more; or a packet that waited for a session in vain.
    NoSession,
    /// A datagram that was not encrypted or signed with the keys that it should have been.
    Forged,
    /// An encrypted datagram that has been here, or a handshake not later than one that has.
    Repeated,
    /// An encrypted datagram so late that it is not known whether it has been here.
    TooLate,
    /// A handshake of too many. Its sender may have been sent a cookie, to come again with.
    TooMany,
}

impl From<Refused> for DropReason {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Malformed => Self::Malformed,
            Refused::Forged => Self::Forged,
            Refused::NoSession => Self::NoSession,
            Refused::Repeated => Self::Repeated,
            Refused::TooLate => Self::TooLate,
            Refused::TooMany => Self::TooMany,
        }
    }
}

impl DropReason {
    /// All reasons, in the order of their counters.
    pub const ALL: [Self; 18] = [
        Self::UnknownSender,
        Self::Framing,
        Self::Malformed,
        Self::Martian,
        Self::SourceNotAllowed,
        Self::Congested,
        Self::NoTunnel,
        Self::TooBig,
        Self::Unreachable,
        Self::Firewall,
        Self::SocketFull,
        Self::DeviceDown,
        Self::Refused,
        Self::NoSession,
        Self::Forged,
        Self::Repeated,
        Self::TooLate,
        Self::TooMany,
    ];

    /// The reason as counters and metrics name it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::UnknownSender => "unknown_sender",
            Self::Framing => "framing",
            Self::Malformed => "malformed",
            Self::Martian => "martian",
            Self::SourceNotAllowed => "source_not_allowed",
            Self::Congested => "congested",
            Self::NoTunnel => "no_tunnel",
            Self::TooBig => "too_big",
            Self::Unreachable => "unreachable",
            Self::Firewall => "firewall",
            Self::SocketFull => "socket_full",
            Self::DeviceDown => "device_down",
            Self::Refused => "refused",
            Self::NoSession => "no_session",
            Self::Forged => "forged",
            Self::Repeated => "repeated",
            Self::TooLate => "too_late",
            Self::TooMany => "too_many_handshakes",
        }
    }
}

impl DropReason {
    /// Why an agent could send nothing, in words that follow its name; where it is no reason for that, its name.
    pub const fn words(self) -> &'static str {
        match self {
            Self::TooBig => "it is larger than the path carries",
            Self::Unreachable => "its host has no way to the peer",
            Self::Firewall => "a firewall of its host refuses it",
            Self::SocketFull => "its host could not send for some time",
            Self::Refused => "the kernel of its host refuses it",
            Self::NoSession => "the ends have not agreed on keys",
            Self::UnknownSender
            | Self::Framing
            | Self::Malformed
            | Self::Martian
            | Self::SourceNotAllowed
            | Self::Congested
            | Self::NoTunnel
            | Self::DeviceDown
            | Self::Forged
            | Self::Repeated
            | Self::TooLate
            | Self::TooMany => self.name(),
        }
    }
}

/// Drops by reason.
#[derive(Debug, Default)]
pub struct Drops([AtomicU64; DropReason::ALL.len()]);

impl Drops {
    /// Counts `packets` more.
    pub fn count(&self, reason: DropReason, packets: u64) {
        if let Some(counter) = self.0.get(reason as usize) {
            counter.fetch_add(packets, Ordering::Relaxed);
        }
    }

    /// The reasons with at least one, by name.
    pub fn read(&self) -> BTreeMap<&'static str, u64> {
        let counts = self.0.iter().map(|counter| counter.load(Ordering::Relaxed));
        DropReason::ALL.iter().zip(counts).filter(|(_, n)| *n > 0).map(|(r, n)| (r.name(), n)).collect()
    }
}

/// One direction of a tunnel.
#[derive(Debug, Default)]
pub struct Direction {
    packets: AtomicU64,
    bytes: AtomicU64,
    /// Packets not carried.
    pub drops: Drops,
}

impl Direction {
    /// Counts packets of `bytes` bytes together that were carried.
    pub fn count(&self, packets: usize, bytes: usize) {
        self.packets.fetch_add(packets as u64, Ordering::Relaxed);
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Packets that were carried.
    pub fn packets(&self) -> u64 {
        self.packets.load(Ordering::Relaxed)
    }

    /// The counters as they are.
    pub fn read(&self) -> Traffic {
        Traffic {
            packets: self.packets.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            drops: self.drops.read(),
        }
    }
}

/// A tunnel's counters. They outlive every table, and changes of the tunnel.
#[derive(Debug, Default)]
pub struct TunnelStats {
    /// From this host to the peer.
    pub sent: Direction,
    /// From the peer to this host.
    pub received: Direction,
    /// Milliseconds since boot; 0 is never.
    last_received: AtomicU64,
    /// The same of handshakes with other keys.
    last_other_key: AtomicU64,
}

impl TunnelStats {
    /// Notes that somebody at the peer's address began a handshake with another key than the peer's, or for another than
    /// this host's, at a time since boot.
    pub fn mark_other_key(&self, since_boot: Duration) {
        self.last_other_key.store(millis(since_boot), Ordering::Relaxed);
    }

    /// When that was last.
    pub fn last_other_key(&self) -> Option<Duration> {
        marked(&self.last_other_key)
    }

    /// Notes that a packet was received `since_boot`.
    pub fn mark_received(&self, since_boot: Duration) {
        self.last_received.store(millis(since_boot), Ordering::Relaxed);
    }

    /// Notes that nothing was received from whoever the peer is now.
    pub fn forget_received(&self) {
        self.last_received.store(0, Ordering::Relaxed);
    }

    /// When the last packet was received, as time since boot.
    pub fn last_received(&self) -> Option<Duration> {
        marked(&self.last_received)
    }
}

/// A time since boot as it is kept, which is never 0.
fn millis(since_boot: Duration) -> u64 {
    u64::try_from(since_boot.as_millis()).unwrap_or(u64::MAX).max(1)
}

fn marked(at: &AtomicU64) -> Option<Duration> {
    match at.load(Ordering::Relaxed) {
        0 => None,
        millis => Some(Duration::from_millis(millis)),
    }
}

/// What belongs to no tunnel.
#[derive(Debug, Default)]
pub struct AgentStats {
    datagrams: AtomicU64,
    session_messages: AtomicU64,
    /// Datagrams at the data port that belong to no tunnel.
    pub datagrams_dropped: Drops,
    /// Packets from devices that belong to no tunnel.
    pub packets_dropped: Drops,
}

impl AgentStats {
    /// Counts datagrams that arrived at the data port.
    pub fn count_datagrams(&self, datagrams: u64) {
        self.datagrams.fetch_add(datagrams, Ordering::Relaxed);
    }

    /// Counts a datagram that carried no packet and was taken in all the same: it keeps an encrypted tunnel going.
    pub fn count_session_message(&self) {
        self.session_messages.fetch_add(1, Ordering::Relaxed);
    }

    /// Datagrams that carried no packet and were taken in all the same.
    pub fn session_messages(&self) -> u64 {
        self.session_messages.load(Ordering::Relaxed)
    }

    /// Datagrams that arrived at the data port.
    pub fn datagrams(&self) -> u64 {
        self.datagrams.load(Ordering::Relaxed)
    }
}
