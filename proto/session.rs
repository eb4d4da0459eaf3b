//! What agents and controllers say to each other on their session.

mod examination;
mod link;

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::model::{
    DeviceName, Invalid, MeshName, NodeName, OperatorName, Owner, PublicKey, Remotes, TunnelName, TunnelState,
};
use super::trust::Rights;

pub use examination::{EXAMINED, Examination, Findings, HostFinding, HostSubject, PeerFinding, Ping, Port};
pub use link::{LinkFigures, LinkReport, LinkStates};

/// Where controllers listen, TCP, unless their address says otherwise.
pub const CONTROLLER_PORT: u16 = 7443;
/// The version of the protocol that this release speaks. Versions only ever add.
pub const PROTOCOL_VERSION: u32 = 1;

/// A version of what is wanted. Ordered by incarnation, then by revision.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Generation {
    /// Rises when an older state of the store has been restored.
    pub incarnation: u64,
    /// The store's revision.
    pub revision: u64,
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.incarnation, self.revision)
    }
}

/// Names one device or tunnel of a node.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum ItemId {
    /// A tun interface.
    Device(DeviceName),
    /// A tunnel.
    Tunnel(TunnelName),
}

impl fmt::Display for ItemId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Device(name) => write!(f, "device {name}"),
            Self::Tunnel(name) => write!(f, "tunnel {name}"),
        }
    }
}

impl FromStr for ItemId {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        match text.split_once(' ') {
            Some(("device", name)) => Ok(Self::Device(name.parse()?)),
            Some(("tunnel", name)) => Ok(Self::Tunnel(name.parse()?)),
            Some(_) | None => Err(Invalid::new("names no item", "write device NAME or tunnel NAME")),
        }
    }
}

impl TryFrom<String> for ItemId {
    type Error = Invalid;

    fn try_from(text: String) -> Result<Self, Invalid> {
        text.parse()
    }
}

impl From<ItemId> for String {
    fn from(id: ItemId) -> Self {
        id.to_string()
    }
}

macro_rules! hash_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name([u8; 16]);

        impl $name {
            /// From 16 bytes as they cross the wire; `None` for another length.
            pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
                bytes.try_into().ok().map(Self)
            }

            /// The 16 bytes as they cross the wire.
            pub fn as_bytes(&self) -> &[u8; 16] {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl TryFrom<String> for $name {
            type Error = Invalid;

            fn try_from(text: String) -> Result<Self, Invalid> {
                let invalid = || Invalid::new("is not 16 bytes in hexadecimal", "write 32 of 0-9 and a-f");
                if text.len() != 32 || !text.is_ascii() {
                    return Err(invalid());
                }
                u128::from_str_radix(&text, 16).map(|bits| Self(bits.to_be_bytes())).map_err(|_| invalid())
            }
        }

        impl From<$name> for String {
            fn from(hash: $name) -> Self {
                hash.to_string()
            }
        }
    };
}

hash_type!(
    /// The controller's hash of an item's content.
    Tag
);
hash_type!(
    /// The hash of all items' names and tags.
    Digest
);
hash_type!(
    /// Names one run of an agent's process. Random.
    RunId
);

impl Tag {
    /// The hash of an item's content. Only a controller works it out; an agent keeps what it was told.
    pub fn of(content: &[u8]) -> Self {
        Self(half(&Sha256::digest(content)))
    }
}

impl Digest {
    /// The hash of items in the order of their ids, each once.
    pub fn of<'a>(items: impl IntoIterator<Item = (&'a ItemId, Tag)>) -> Self {
        let mut hash = Sha256::new();
        for (id, tag) in items {
            let (kind, name) = match id {
                ItemId::Device(name) => (b"d", name.as_str()),
                ItemId::Tunnel(name) => (b"t", name.as_str()),
            };
            hash.update(kind);
            // No name has a zero.
            hash.update(name);
            hash.update([0]);
            hash.update(tag.as_bytes());
        }
        Self(half(&hash.finalize()))
    }
}

impl RunId {
    /// From 128 random bits.
    pub fn new(random: u128) -> Self {
        Self(random.to_be_bytes())
    }
}

fn half(hash: &[u8]) -> [u8; 16] {
    let mut half = [0; 16];
    half.iter_mut().zip(hash).for_each(|(to, from)| *to = *from);
    half
}

/// A device or tunnel as the controller sends it. `content` is what `super::convert` makes of it and back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// Which one.
    pub id: ItemId,
    /// The hash of `content`.
    pub tag: Tag,
    /// The encoded message. An agent keeps also what it does not understand.
    pub content: Vec<u8>,
}

/// All items of a node, in the order of their ids, each once. Items are shared between nodes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Items(Arc<[Arc<Item>]>);

impl Items {
    /// Puts items in order; of two with one id the later stays.
    pub fn new(items: impl IntoIterator<Item = Arc<Item>>) -> Self {
        let mut ordered: Vec<Arc<Item>> = items.into_iter().collect();
        // Those of a mesh mostly are, on each of its nodes.
        if !ordered.is_sorted_by(|one, other| one.id < other.id) {
            ordered.reverse();
            ordered.sort_by(|one, other| one.id.cmp(&other.id));
            ordered.dedup_by(|next, first| next.id == first.id);
        }
        Self(ordered.into())
    }

    /// The items in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Arc<Item>> {
        self.0.iter()
    }

    /// Whether there is one of this id.
    pub fn has(&self, id: &ItemId) -> bool {
        self.0.binary_search_by(|item| item.id.cmp(id)).is_ok()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The digest of all.
    pub fn digest(&self) -> Digest {
        Digest::of(self.iter().map(|item| (&item.id, item.tag)))
    }

    /// What differs in `other`, in the order of the ids: each item as it is here and as it is there.
    pub fn differences<'a>(
        &'a self,
        other: &'a Self,
    ) -> impl Iterator<Item = [Option<&'a Arc<Item>>; 2]> + use<'a> {
        let (mut old, mut new) = (self.iter().peekable(), other.iter().peekable());
        std::iter::from_fn(move || {
            loop {
                let order = match (old.peek(), new.peek()) {
                    (None, None) => return None,
                    (Some(_), None) => Ordering::Less,
                    (None, Some(_)) => Ordering::Greater,
                    // Most are shared, and to compare a thousand names takes longer than all else.
                    (Some(before), Some(after)) if Arc::ptr_eq(before, after) => {
                        old.next();
                        new.next();
                        continue;
                    }
                    (Some(before), Some(after)) => before.id.cmp(&after.id),
                };
                match order {
                    Ordering::Less => return Some([old.next(), None]),
                    Ordering::Greater => return Some([None, new.next()]),
                    Ordering::Equal => {
                        let pair = [old.next(), new.next()];
                        if pair[0].map(|item| item.tag) != pair[1].map(|item| item.tag) {
                            return Some(pair);
                        }
                    }
                }
            }
        })
    }

    /// The items of which there is none of their id in `other`.
    pub fn missing_in<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = &'a Arc<Item>> + use<'a> {
        let differences = self.differences(other);
        differences.filter_map(|[here, there]| here.filter(|_| there.is_none()))
    }

    /// What is to be set and deleted to come from `self` to `other`.
    pub fn changes_to(&self, other: &Self) -> (Vec<Arc<Item>>, BTreeSet<ItemId>) {
        let (mut set, mut deleted) = (Vec::new(), BTreeSet::new());
        for [before, after] in self.differences(other) {
            match after {
                Some(after) => set.push(Arc::clone(after)),
                None => deleted.extend(before.map(|before| before.id.clone())),
            }
        }
        (set, deleted)
    }
}

/// The capability of an agent that sends probes to others that have it, and understands theirs.
pub const PROBES: &str = "probes";

/// The first words of an agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// The highest version of the protocol that it speaks, from 1.
    pub protocol_version: u32,
    /// What it can do beyond that.
    pub capabilities: BTreeSet<String>,
    /// The node that it says it is.
    pub node: NodeName,
    /// Its process.
    pub run_id: RunId,
    /// What it has, and from which store.
    pub have: Option<Have>,
    /// Its release.
    pub version: String,
    /// What the node says of itself.
    pub labels: BTreeMap<String, String>,
    /// Where others reach its data port.
    pub reach: Reach,
    /// The address that the session comes from as the agent sees it; absent: it does not say.
    pub local: Option<IpAddr>,
    /// The UDP port on which it receives packets.
    pub data_port: u16,
    /// What time it is by its clock, since the Unix epoch; absent: it does not say.
    pub clock: Option<Duration>,
    /// The keys by which the peers of its encrypted tunnels know it, by mesh.
    pub keys: BTreeMap<MeshName, PublicKey>,
}

/// Where others reach a node's data port, as the node says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Reach {
    /// Where its session comes from, unless addresses are translated on the way.
    #[default]
    BySession,
    /// Here, the preferred one first.
    At(Remotes),
    /// Nowhere: it reaches them.
    Nowhere,
}

impl Reach {
    const NOWHERE: &str = "none";
}

impl FromStr for Reach {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        match text {
            "" => Ok(Self::BySession),
            Self::NOWHERE => Ok(Self::Nowhere),
            text => text.parse().map(Self::At),
        }
    }
}

impl fmt::Display for Reach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BySession => Ok(()),
            Self::At(remotes) => remotes.fmt(f),
            Self::Nowhere => f.write_str(Self::NOWHERE),
        }
    }
}

/// What an agent has of its controller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Have {
    /// The store that it comes from.
    pub store_id: String,
    /// Its version.
    pub generation: Generation,
    /// The digest of its items.
    pub digest: Digest,
    /// In which start of a controller it was sent; empty: an earlier release did not say.
    pub timeline: String,
}

/// What an agent says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AgentMessage {
    /// First and once.
    Hello(Box<Hello>),
    /// A generation has been kept and tried.
    Ack(Ack),
    /// It cannot follow, for this reason.
    Resync(String),
    /// It is there.
    Heartbeat(Heartbeat),
    /// Tunnels as they are.
    Report(Report),
    /// It ends.
    Goodbye,
    /// It does not follow this controller, for this reason, and ends the session.
    Refusal(String),
    /// The keys by which the peers of its encrypted tunnels know it, by mesh: as in its Hello, when they have changed.
    Keys(BTreeMap<MeshName, PublicKey>),
    /// Links as they are.
    LinkStates(LinkStates),
    /// Others have done something to a device, as "took it down", and it is put right.
    Repaired {
        /// The device.
        device: DeviceName,
        /// What they did.
        what: String,
    },
    /// How well the ends of links hear each other, by the links' numbers.
    LinkFigures(BTreeMap<NonZeroU32, LinkFigures>),
    /// What it has found when it was asked to try.
    Findings(Findings),
}

/// What a controller says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ControllerMessage {
    /// First and once.
    Welcome(Welcome),
    /// What the agent has is what is wanted.
    NotModified(Generation),
    /// All that is wanted, or a part of it.
    Snapshot(SnapshotChunk),
    /// What changes.
    Delta(Delta),
    /// It is there.
    Heartbeat(Heartbeat),
    /// Asks for a whole report, by this number.
    ReportRequest(u64),
    /// Asks it to try how it reaches peers.
    Examination(Examination),
    /// Who may steer agents from elsewhere.
    Operators(Arc<BTreeMap<OperatorName, Rights>>),
    /// It ends the session.
    GoAway {
        /// Why, in words.
        reason: String,
        /// The least time before the next attempt, in milliseconds.
        after_ms: u64,
    },
}

/// The first words of a controller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Welcome {
    /// The version that both speak.
    pub protocol_version: u32,
    /// What the controller can do beyond that.
    pub capabilities: BTreeSet<String>,
    /// The store that generations come from.
    pub store_id: String,
    /// Which of the node's sessions this is.
    pub epoch: u64,
    /// The controller's release.
    pub version: String,
    /// Names this start of the controller among all of all stores.
    pub timeline: String,
}

/// A part of all that is wanted of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotChunk {
    /// Its version.
    pub generation: Generation,
    /// The items of this part.
    pub items: Vec<Arc<Item>>,
    /// The end, in the last chunk.
    pub end: Option<SnapshotEnd>,
}

/// The end of a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SnapshotEnd {
    /// The digest of all items.
    pub digest: Digest,
    /// What may go.
    pub removals: Removals,
}

/// What of what an agent has may go when it is not wanted any more.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Removals {
    /// The revision up to which removals have been consented to; 0: none.
    pub consent: u64,
    /// Whether nothing goes, consent or not: what is wanted cannot be read whole.
    pub are_held: bool,
}

/// What changes from one generation to another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delta {
    /// The generation that it changes.
    pub base: Generation,
    /// What it makes of it.
    pub generation: Generation,
    /// Items that are new or differ.
    pub set: Vec<Arc<Item>>,
    /// Items that go.
    pub delete: BTreeSet<ItemId>,
    /// The digest of all items with the change.
    pub digest: Digest,
    /// What may go.
    pub removals: Removals,
}

/// A generation has been kept and tried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ack {
    /// Which.
    pub generation: Generation,
    /// What of it cannot be had, in words why.
    pub failures: BTreeMap<ItemId, String>,
    /// What was to be removed and is kept all the same.
    pub removals_held: BTreeSet<ItemId>,
}

/// One side is there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Heartbeat {
    /// Asks for an answer with this number at once.
    pub ping: Option<u64>,
    /// The ping that it answers.
    pub answers: Option<u64>,
}

/// Tunnels as they are on an agent, of both owners.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// By name.
    pub tunnels: BTreeMap<TunnelName, TunnelReport>,
    /// Those that are gone since the last report.
    pub gone: BTreeSet<TunnelName>,
    /// Whether `tunnels` are all that there are.
    pub whole: bool,
    /// The request that it answers.
    pub request: Option<u64>,
    /// What the host forwards; absent: as it was, and in a whole report: it is not known.
    pub forwarding: Option<Forwarding>,
}

/// Whether a host's kernel forwards packets from one interface to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forwarding {
    /// Those of IPv4.
    pub ipv4: bool,
    /// Those of IPv6.
    pub ipv6: bool,
}

impl Forwarding {
    /// The sysctl of IPv4.
    pub const SYSCTL_V4: &str = "net.ipv4.ip_forward";
    /// The sysctl of IPv6.
    pub const SYSCTL_V6: &str = "net.ipv6.conf.all.forwarding";
}

/// One tunnel as it is on an agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TunnelReport {
    /// Its device.
    pub device: DeviceName,
    /// Who wants it.
    pub owner: Owner,
    /// Whether it carries packets.
    pub state: TunnelState,
    /// Where its datagrams go, as text; empty while it is not known.
    pub endpoint: String,
    /// The preferred one of its peer's endpoints, as text, where that is another one; empty: it is not.
    pub preferred: String,
    /// How long before the report the last packet was received, in milliseconds; absent: never.
    pub last_received_ms: Option<u64>,
    /// Whether keys have been agreed on with its peer since that is known.
    pub keyed: bool,
}

#[cfg(test)]
mod tests;
