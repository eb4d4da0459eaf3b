//! What agents say of their links.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;
use std::time::Duration;

use crate::proto::model::{Hearing, LinkState, TunnelName, Why};

/// The links of an agent's probed tunnels.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LinkStates {
    /// By tunnel, with the numbers by which figures name them.
    pub links: BTreeMap<TunnelName, (NonZeroU32, LinkReport)>,
    /// Those that are gone since the last message.
    pub gone: BTreeSet<TunnelName>,
    /// Whether `links` are all that there are.
    pub whole: bool,
}

/// A link as one end has it. Times are as they were when it was told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkReport {
    /// How it is.
    pub state: LinkState,
    /// Why.
    pub why: Why,
    /// For how long it has been so.
    pub since: Duration,
    /// How long ago a probe of the other end was last heard; absent: never.
    pub last_heard: Option<Duration>,
    /// After how long a silence the other end is taken to be out of reach; absent: not known.
    pub detection_time: Option<Duration>,
    /// How often the state has changed since this end knows the link.
    pub changes: u32,
    /// Why the last probe was not sent, in words; empty: it was.
    pub unsent: String,
    /// The largest packet of the underlay that comes through, in bytes, IP header included; absent: not known yet.
    pub carries: Option<u16>,
    /// The least size that the path was found to lose without a word, while less is sent for that.
    pub loses: Option<u16>,
}

/// How well both ends of a link hear each other, as one end has it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LinkFigures {
    /// To the other end and back.
    pub round_trip: Option<Duration>,
    /// What the other end hears of this one.
    pub sent: Hearing,
    /// What this end hears of the other one.
    pub received: Hearing,
}
