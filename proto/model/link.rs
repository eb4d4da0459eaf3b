//! How two hosts that a tunnel joins hear each other.

use std::fmt;
use std::time::Duration;

/// What one end knows of a link. The numbers are those of RFC 5880 section 4.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LinkState {
    /// An end has said that it goes.
    AdminDown = 0,
    /// This end does not hear the other one.
    Down = 1,
    /// It hears the other one, by which it is not heard as far as that has said.
    Init = 2,
    /// It hears the other one and is heard.
    Up = 3,
}

impl LinkState {
    /// As it is shown.
    pub fn name(self) -> &'static str {
        match self {
            Self::AdminDown => "admin down",
            Self::Down => "down",
            Self::Init => "init",
            Self::Up => "up",
        }
    }
}

/// Why a link is as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Why {
    /// Both ends hear each other.
    Heard,
    /// Nothing has been heard since this end knows the link.
    Never,
    /// Nothing has been heard for the detection time.
    Silent,
    /// Packets come, and for three detection times no probe.
    Wordless,
    /// The other end says that it does not hear this one.
    NotHeard,
    /// Packets come, and no answer to an ICMP echo any more.
    Unanswered,
    /// The other end answers no ICMP echo, and has agreed on keys of late.
    Keyed,
    /// The other end has said that it goes.
    Left,
    /// This end goes: nobody is told, but the other end.
    Leaving,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Heard => "both ends hear each other",
            Self::Never => "nothing has come from the peer yet",
            Self::Silent => "nothing comes from the peer any more",
            Self::Wordless => "packets come from the peer, but no probe: its tunnel is to be probed, too",
            Self::Unanswered => "packets come from the peer, but no answer to an ICMP echo any more",
            Self::Keyed => "the peer answers no ICMP echo, but has agreed on keys within the last 3 minutes",
            Self::NotHeard => "the peer is heard, and does not hear this host",
            Self::Left => "the peer's agent has said that it ends",
            Self::Leaving => "this host's agent ends",
        })
    }
}

/// What became of the latest probes in one direction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Hearing {
    /// Of how many of the last probes it is known what became of them, at most 256.
    pub known: u16,
    /// How many of these were lost.
    pub lost: u16,
    /// How many of these came after a later one.
    pub reordered: u16,
    /// How unevenly they come (RFC 3550 section 6.4.1).
    pub jitter: Duration,
}

/// A link as one end has it. Times are since the Unix epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkStatus {
    /// How it is.
    pub state: LinkState,
    /// Why.
    pub why: Why,
    /// Why this end could not send the last probe, in words.
    pub unsent: Option<&'static str>,
    /// Since when.
    pub since: Duration,
    /// When the other end was last heard by a probe, or by its answer to an ICMP echo.
    pub last_heard: Option<Duration>,
    /// After how long a silence the other end is taken to be out of reach.
    pub detection_time: Option<Duration>,
    /// To the other end and back, smoothed.
    pub round_trip: Option<Duration>,
    /// What the other end hears of this one, as it says.
    pub sent: Option<Hearing>,
    /// What this end hears of the other one.
    pub received: Option<Hearing>,
    /// How often the state has changed since this end knows the link.
    pub changes: u32,
    /// The largest packet of the underlay that is sent to the other end, in bytes, IP header included; absent: the route is
    /// not known yet.
    pub carries: Option<u16>,
    /// Whether one of that size has come through.
    pub is_carried: bool,
    /// The least size that the path was found to lose without a word, while less is sent for that.
    pub loses: Option<u16>,
}
