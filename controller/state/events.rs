//! What happened, for operators: the last events, numbered.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use crate::proto::model::{MeshName, NodeName, TunnelName};

/// How many events are kept; with each more the oldest goes.
const KEPT: usize = 10_000;
/// How many bytes of events are kept: ten thousand with the longest words that an agent can say would be three times
/// as many.
const BYTES: usize = 4 << 20;
/// In how many bits events of one start are counted. The start's number is above, so that numbers rise over restarts.
const COUNT: u32 = 32;

/// What kind of event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum EventKind {
    /// The controller has started.
    ControllerStarted,
    /// A node was there for the first time.
    NodeJoined,
    /// A node has got an identity.
    NodeEnrolled,
    /// A node was taken out, and its identity from it.
    NodeRemoved,
    /// A host asks to join, and an operator is to compare codes.
    ApprovalWanted,
    /// Somebody was refused what they asked for.
    AccessRefused,
    /// A node's clock is off.
    ClockOff,
    /// A node is there.
    NodeLive,
    /// A node has been silent for a while.
    NodeStale,
    /// A node has been silent for long, or has said goodbye.
    NodeOffline,
    /// A node's agent is another process than before.
    NodeRestarted,
    /// Two processes say that they are one node.
    IdentityCloned,
    /// A mesh was set.
    MeshApplied,
    /// A mesh was deleted.
    MeshDeleted,
    /// A node cannot have all that is wanted of it.
    GenerationFailed,
    /// A tunnel carries no packets for a fault.
    TunnelFailed,
    /// A tunnel carries packets.
    TunnelPassing,
    /// A tunnel waits for packets.
    TunnelWaiting,
    /// Both ends of a link hear each other again.
    LinkUp,
    /// An end of a link does not hear the other any more, or has said that it goes.
    LinkDown,
    /// An end of a link is not heard any more by the other, whom it hears.
    LinkOneWay,
    /// Others have changed a device of an agent's, which has put it right.
    DeviceRepaired,
    /// A node keeps what was to be removed.
    RemovalsHeld,
    /// An older state of the store has been restored.
    StoreRestored,
    /// Sessions were put off, or an agent does not follow this controller.
    SessionRefused,
    /// More would have been told about a node than is kept of one.
    EventsLeftOut,
    /// The store cannot be written.
    StoreFailed,
    /// The store can be written again.
    StoreWritten,
}

impl EventKind {
    /// The kind as operators see it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ControllerStarted => "controller-started",
            Self::NodeJoined => "node-joined",
            Self::NodeEnrolled => "node-enrolled",
            Self::NodeRemoved => "node-removed",
            Self::ApprovalWanted => "approval-wanted",
            Self::AccessRefused => "access-refused",
            Self::ClockOff => "clock-off",
            Self::NodeLive => "node-live",
            Self::NodeStale => "node-stale",
            Self::NodeOffline => "node-offline",
            Self::NodeRestarted => "node-restarted",
            Self::IdentityCloned => "identity-cloned",
            Self::MeshApplied => "mesh-applied",
            Self::MeshDeleted => "mesh-deleted",
            Self::GenerationFailed => "generation-failed",
            Self::TunnelFailed => "tunnel-failed",
            Self::TunnelPassing => "tunnel-passing",
            Self::TunnelWaiting => "tunnel-waiting",
            Self::LinkUp => "link-up",
            Self::LinkDown => "link-down",
            Self::LinkOneWay => "link-one-way",
            Self::DeviceRepaired => "device-repaired",
            Self::RemovalsHeld => "removals-held",
            Self::StoreRestored => "store-restored",
            Self::SessionRefused => "session-refused",
            Self::EventsLeftOut => "events-left-out",
            Self::StoreFailed => "store-failed",
            Self::StoreWritten => "store-written",
        }
    }
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Rises with each event, also over the controller's restarts.
    pub number: u64,
    /// When, as time since the Unix epoch.
    pub time: Duration,
    /// What kind.
    pub kind: EventKind,
    /// The node that it is about.
    pub node: Option<NodeName>,
    /// The node's tunnel that it is about.
    pub tunnel: Option<TunnelName>,
    /// The mesh that it is about.
    pub mesh: Option<MeshName>,
    /// More, in words; may be empty.
    pub message: String,
}

impl Event {
    /// About how much memory it takes, in bytes.
    fn size(&self) -> usize {
        let names = [
            self.node.as_ref().map(NodeName::as_str),
            self.tunnel.as_ref().map(TunnelName::as_str),
            self.mesh.as_ref().map(MeshName::as_str),
        ];
        let names: usize = names.into_iter().flatten().map(str::len).sum();
        size_of::<Self>() + names + self.message.len()
    }
}

/// The last events.
#[derive(Debug)]
pub(super) struct Events {
    kept: VecDeque<Arc<Event>>,
    /// Of those that are kept.
    bytes: usize,
    last: u64,
}

impl Events {
    /// No events yet, on the start with this number.
    pub(super) fn new(start: u64) -> Self {
        Self { kept: VecDeque::new(), bytes: 0, last: start << COUNT }
    }

    /// The number of the last event; where there was none yet, less than that of the first.
    pub(super) fn last(&self) -> u64 {
        self.last
    }

    /// The kept events with a number above `number`, the oldest first. One that no event has yet is of a time that
    /// this store does not know of, as after the restoring of a copy: then all that are kept.
    pub(super) fn after(&self, number: u64) -> impl Iterator<Item = &Arc<Event>> {
        let known = if number > self.last { 0 } else { number };
        self.kept.range(self.kept.partition_point(|event| event.number <= known)..)
    }

    /// Something about a node.
    pub(super) fn node(
        &mut self,
        time: Duration,
        kind: EventKind,
        node: &NodeName,
        message: impl Into<String>,
    ) {
        self.push(time, kind, Some(node.clone()), None, None, message.into());
    }

    /// Something about a tunnel of a node.
    pub(super) fn tunnel(
        &mut self,
        time: Duration,
        kind: EventKind,
        node: &NodeName,
        tunnel: &TunnelName,
        message: impl Into<String>,
    ) {
        self.push(time, kind, Some(node.clone()), Some(tunnel.clone()), None, message.into());
    }

    /// Something about a mesh.
    pub(super) fn mesh(&mut self, time: Duration, kind: EventKind, mesh: &MeshName) {
        self.push(time, kind, None, None, Some(mesh.clone()), String::new());
    }

    /// Something about the controller as a whole.
    pub(super) fn controller(&mut self, time: Duration, kind: EventKind, message: impl Into<String>) {
        self.push(time, kind, None, None, None, message.into());
    }

    fn push(
        &mut self,
        time: Duration,
        kind: EventKind,
        node: Option<NodeName>,
        tunnel: Option<TunnelName>,
        mesh: Option<MeshName>,
        message: String,
    ) {
        self.last += 1;
        let event = Event { number: self.last, time, kind, node, tunnel, mesh, message };
        self.bytes += event.size();
        self.kept.push_back(Arc::new(event));
        while self.kept.len() > KEPT || self.bytes > BYTES {
            let Some(oldest) = self.kept.pop_front() else { break };
            self.bytes -= oldest.size();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(events: &Events, after: u64) -> Vec<u64> {
        events.after(after).map(|event| event.number).collect()
    }

    #[test]
    fn keeps_the_last_events_and_gives_those_after_a_number() {
        let mut events = Events::new(1);
        assert_eq!(events.after(0).count(), 0);
        let first = events.last() + 1;
        for _ in 0..KEPT + 5 {
            events.controller(Duration::ZERO, EventKind::SessionRefused, "");
        }
        let last = events.last();
        assert_eq!(numbers(&events, last - 2), [last - 1, last]);
        assert_eq!(numbers(&events, last), [0; 0]);
        let all: Vec<_> = (first + 5..=last).collect();
        assert_eq!(numbers(&events, 0), all);
        assert_eq!(numbers(&events, last + 7), all, "of a time that is not known here");
    }

    #[test]
    fn numbers_go_on_after_a_restart() {
        let mut events = Events::new(7);
        (0..100).for_each(|_| events.controller(Duration::ZERO, EventKind::SessionRefused, ""));
        let seen = events.last();
        let mut next = Events::new(8);
        next.controller(Duration::ZERO, EventKind::ControllerStarted, "");
        assert_eq!(numbers(&next, seen), [next.last()]);
        assert!(next.last() > seen);
    }

    #[test]
    fn long_words_are_kept_for_less_long() {
        let mut events = Events::new(1);
        let words = "x".repeat(1_000);
        for _ in 0..KEPT {
            events.controller(Duration::ZERO, EventKind::SessionRefused, words.clone());
        }
        let kept: usize = events.after(0).map(|event| event.message.len()).sum();
        assert!((BYTES / 2..BYTES).contains(&kept), "{kept}");
        // What is longer than all is dropped, and the next is kept.
        events.controller(Duration::ZERO, EventKind::SessionRefused, "x".repeat(2 * BYTES));
        events.controller(Duration::ZERO, EventKind::SessionRefused, "short");
        assert_eq!(events.after(0).map(|event| event.message.as_str()).collect::<Vec<_>>(), ["short"]);
    }
}
