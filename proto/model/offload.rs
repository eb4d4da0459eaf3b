//! Work that is done for many packets at once, and that can be switched off piece by piece.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::Invalid;

/// Work that is done for many packets at once. Its serde form is its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Offload {
    /// TCP segments cross a device as one packet, in both directions. Of a device.
    TunTso,
    /// UDP datagrams cross a device as one packet, in both directions. Of a device; needs Linux 6.2.
    TunUso,
    /// Datagrams to a peer leave as one message (`UDP_SEGMENT` of udp(7)). Of a tunnel; needs Linux 4.18.
    UdpGso,
    /// Datagrams of a peer arrive as one message (`UDP_GRO` of udp(7)). Of the data port; needs Linux 5.0.
    UdpGro,
}

/// Some of them.
pub type Offloads = BTreeSet<Offload>;

impl Offload {
    /// All.
    pub const ALL: [Self; 4] = [Self::TunTso, Self::TunUso, Self::UdpGso, Self::UdpGro];

    /// The name that flags, files and messages have for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::TunTso => "tun-tso",
            Self::TunUso => "tun-uso",
            Self::UdpGso => "udp-gso",
            Self::UdpGro => "udp-gro",
        }
    }
}

impl fmt::Display for Offload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Offload {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let unknown = || {
            let names = Self::ALL.map(Self::name).join(", ");
            Invalid::new("is no offload of this version", format!("choose among {names}"))
        };
        Self::ALL.into_iter().find(|offload| offload.name() == text).ok_or_else(unknown)
    }
}

impl TryFrom<String> for Offload {
    type Error = Invalid;

    fn try_from(text: String) -> Result<Self, Invalid> {
        text.parse()
    }
}

impl From<Offload> for String {
    fn from(offload: Offload) -> Self {
        offload.name().to_owned()
    }
}

/// Why an offload is not in use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OffloadState {
    /// Which one.
    pub offload: Offload,
    /// `None`: it is in use.
    pub why_off: Option<String>,
}
