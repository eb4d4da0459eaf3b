//! The controller's state: what is stored, who is there, what each agent has, and what is to be done next.
//!
//! Drive it so: after each `handle_*` call [`ControllerState::poll_effect`] until it gives nothing more, and call
//! [`ControllerState::handle_timeout`] when [`ControllerState::poll_timeout`] says so. `now` never goes back; `wall`
//! is time since the Unix epoch. What is stored comes in by [`ControllerState::handle_change`] alone, also what the
//! state itself asked to be written.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use super::mesh::Mesh;
use super::registry::Registry;
use super::registry::admission::Admission;
use super::registry::petitions::Petitions;
use super::store::transaction::Transaction;
use super::stored::Stored;
use crate::proto::model::{MeshName, NodeName};
use crate::proto::session::{ControllerMessage, Digest, Generation, Items, Removals};

mod access;
mod changes;
mod events;
mod examinations;
mod leaving;
mod links;
mod messages;
mod plans;
mod push;
mod records;
mod sessions;
mod status;
mod tell;

pub use super::registry::{Connection, Health};
pub use events::{Event, EventKind};
pub use examinations::{Inquiry, NoInquiry};
pub use links::{LinkStanding, NodeLink, Passage, Verdict};
pub use plans::{ApplyError, Basis};
pub use status::{ControllerStatus, Convergence, NodeStatus, NodeTunnels, Problem};

use events::Events;
use leaving::Leaving;
use records::Records;

/// How long changes are collected before what every node is to have is worked out anew.
const COLLECT: Duration = Duration::from_millis(20);
/// How often it is looked whether an address has rested that a node waits for.
const ADDRESSES: Duration = Duration::from_secs(60);
/// The longest time between two looks.
const IDLE: Duration = Duration::from_secs(60);

/// Something to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Send a message on a stream.
    Send(Connection, ControllerMessage),
    /// Send all that is wanted of a node, in chunks.
    SendSnapshot(Connection, Snapshot),
    /// End a stream, for this reason. What it still brings is ignored.
    Close(Connection, Refusal),
    /// Commit a transaction and hand what came of it to [`ControllerState::handle_commit_result`]. One at a time.
    Commit(Transaction),
}

/// All that is wanted of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Its version.
    pub generation: Generation,
    /// The items.
    pub items: Items,
    /// What may go.
    pub removals: Removals,
}

/// Why a stream is refused or ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Another process is this node, and alive.
    #[error(
        "another agent with this name is connected and alive: give each host a name of its own with --name; on a host that \
         is a copy of that one run `agent leave` first"
    )]
    AlreadyConnected,
    /// More sessions than are taken on at once.
    #[error("too many agents connect at once: come again in {} ms", retry_after.as_millis())]
    TooMany {
        /// After which time to come again.
        retry_after: Duration,
    },
    /// A later session of the node has taken its place.
    #[error("a later session of this node has taken the place of this one")]
    Superseded,
    /// Nothing was heard for 15 s.
    #[error("nothing was heard of the agent for 15 s")]
    Silent,
    /// What was sent has not been acknowledged for 30 s.
    #[error("the agent has not acknowledged for 30 s what it was sent")]
    NotAcknowledged,
    /// The agent said what cannot be meant.
    #[error("{0}")]
    Invalid(String),
    /// The agent said goodbye.
    #[error("goodbye")]
    Goodbye,
    /// The controller ends.
    #[error("the controller ends")]
    Restarting,
    /// The node has not joined with the key that it shows, or was removed.
    #[error(
        "node {0}: it has not joined here with this key, or was removed; run `agent leave` on it, then let it join \
         with a token or by approval"
    )]
    NotJoined(NodeName),
    /// The node has joined, and whoever says that it is it shows no key.
    #[error(
        "node {0}: it has joined with a key of its own, and nothing shows that this is it; start its agent without \
         --insecure, or give this host another name with --name"
    )]
    Unproven(NodeName),
    /// It says that it is another node than its certificate does.
    #[error("node {claims}: this agent's certificate is that of {is}; start it with --name {is}")]
    Foreign {
        /// The node that it is.
        is: NodeName,
        /// The node that it says it is.
        claims: NodeName,
    },
    /// It shows the certificate of a node that is there from elsewhere, under another name.
    #[error(
        "node {claims}: this agent's certificate is that of {is}, whose agent is connected and alive: this host is a copy \
         of that one; run `agent leave` on it, then let it join with a token or by approval"
    )]
    Copied {
        /// The node that it is a copy of.
        is: NodeName,
        /// The node that it says it is.
        claims: NodeName,
    },
    /// Its certificate has expired.
    #[error("the certificate of this agent has expired; it renews it by itself")]
    Expired,
}

/// What a node is to have.
#[derive(Debug, Default)]
struct View {
    items: Items,
    /// Worked out when it is first asked for.
    digest: OnceLock<Digest>,
    /// The generation that last changed it.
    since: Generation,
}

impl View {
    fn digest(&self) -> Digest {
        *self.digest.get_or_init(|| self.items.digest())
    }
}

/// What the last views are worked out from, and what has changed since.
#[derive(Debug, Default)]
struct Pending {
    /// When to work them out.
    due: Option<Instant>,
    /// Whose consent has changed.
    consents: BTreeSet<NodeName>,
}

/// Earlier versions of a mesh, the oldest first, with the revision that ended each.
type Versions = VecDeque<(u64, Option<Arc<Mesh>>)>;

/// Sessions that were put off, for the next event about them.
#[derive(Debug, Default)]
struct Refusals {
    count: u64,
    told_at: Option<Instant>,
}

/// The controller's state machine.
#[derive(Debug)]
pub struct ControllerState {
    stored: Arc<Stored>,
    /// By node, what it is to have at `generation`. A node that had a view has one, if only an empty one.
    views: BTreeMap<NodeName, View>,
    generation: Generation,
    /// Whether nothing goes that is not in `views`: not all of what is wanted could be read for them.
    removals_held: bool,
    pending: Pending,
    history: Arc<BTreeMap<MeshName, Versions>>,
    registry: Registry,
    admission: Admission,
    records: Records,
    events: Events,
    effects: VecDeque<Effect>,
    /// The start's number, in the upper half of every epoch.
    start: u64,
    /// What the start is called.
    timeline: String,
    /// How many epochs, pings and requests there were.
    counter: u64,
    refusals: Refusals,
    petitions: Petitions,
    told: access::Told,
    looked_at: Instant,
    leaving: Leaving,
    /// When addresses were given last, or none had to be.
    allocated_at: Instant,
    /// Rises with everything that [`Self::convergence`] may tell.
    progress: u64,
    nothing: View,
}

impl ControllerState {
    /// The state at start: what is stored, and nobody there yet. `start` numbers the controller's starts, from 1.
    pub fn new(stored: Stored, start: u64, now: Instant, wall: Duration) -> Self {
        let mut state = Self {
            generation: stored.generation(),
            removals_held: false,
            timeline: stored.timeline().to_owned(),
            stored: Arc::new(stored),
            views: BTreeMap::new(),
            pending: Pending::default(),
            history: Arc::default(),
            registry: Registry::default(),
            admission: Admission::new(now),
            records: Records::default(),
            events: Events::new(start),
            effects: VecDeque::new(),
            start,
            counter: 0,
            refusals: Refusals::default(),
            petitions: Petitions::default(),
            told: access::Told::default(),
            looked_at: now,
            leaving: Leaving::default(),
            allocated_at: now,
            progress: 0,
            nothing: View::default(),
        };
        state.events.controller(wall, EventKind::ControllerStarted, "");
        state.stored.wanted.meshes.keys().for_each(|mesh| state.log_weakened(mesh));
        state.watch_leaving(now);
        state.work_out_views(now, wall);
        state
    }

    /// What is stored.
    pub fn stored(&self) -> &Stored {
        &self.stored
    }

    /// The generation that agents are brought to: what is stored, but for changes of the last moment.
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// Whether agents are brought to all that is stored up to a revision: what it was about may be nothing of theirs.
    pub fn has_come_to(&self, revision: u64) -> bool {
        let is_worked_out = self.pending.due.is_none() && self.stored.revision >= revision;
        is_worked_out || self.generation.revision >= revision
    }

    /// Rises whenever [`Self::convergence`] may tell something else.
    pub fn progress(&self) -> u64 {
        self.progress
    }

    /// The number of the last event; where there was none yet, less than that of the first.
    pub fn last_event(&self) -> u64 {
        self.events.last()
    }

    /// The events with a number above `number`, the oldest first, as far as they are kept.
    pub fn events_after(&self, number: u64) -> impl Iterator<Item = &Arc<Event>> {
        self.events.after(number)
    }

    /// The next thing to do.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// When to call [`Self::handle_timeout`].
    pub fn poll_timeout(&self) -> Instant {
        let due = [self.pending.due, self.records.retry_at(), self.registry.next_due(), self.leaving.due];
        due.into_iter().flatten().fold(self.looked_at + IDLE, Instant::min)
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Instant, wall: Duration) {
        self.looked_at = now;
        while let Some(node) = self.registry.pop_due(now) {
            self.node_due(&node, now, wall);
            self.registry.reschedule(&node);
        }
        if self.pending.due.is_some_and(|due| due <= now) {
            self.work_out_views(now, wall);
        } else if now >= self.allocated_at + ADDRESSES {
            self.allocated_at = now;
            self.records.allocations_due |= !self.due_allocations(&self.stored.wanted, wall).is_empty();
        }
        if self.leaving.due.is_some_and(|due| due <= now) {
            self.look_at_leaving(now);
        }
        self.pump_records(now, wall);
    }

    /// A number that has not been given yet.
    fn next_number(&mut self) -> u64 {
        self.counter += 1;
        self.counter
    }

    fn view(&self, node: &NodeName) -> &View {
        self.views.get(node).unwrap_or(&self.nothing)
    }
}

#[cfg(test)]
mod tests;
