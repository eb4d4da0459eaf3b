//! What happened, for operators: the last events, numbered.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use crate::proto::model::{MeshName, NodeName, TunnelName};

/// How many events are kept; with each more the oldest goes.
const KEPT: usize = 10_000;

/// What kind of event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum EventKind {
    /// The controller has started.
    ControllerStarted,
    /// A node was there for the first time.
    NodeJoined,
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
    /// A node keeps what was to be removed, for want of consent.
    RemovalsHeld,
    /// An older state of the store has been restored.
    StoreRestored,
    /// Sessions were put off, or an agent does not follow this controller.
    SessionRefused,
}

impl EventKind {
    /// The kind as operators see it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ControllerStarted => "controller-started",
            Self::NodeJoined => "node-joined",
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
            Self::RemovalsHeld => "removals-held",
            Self::StoreRestored => "store-restored",
            Self::SessionRefused => "session-refused",
        }
    }
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Rises by one with each event, from 1 at the controller's start.
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

/// The last events.
#[derive(Debug, Default)]
pub(super) struct Events {
    kept: VecDeque<Arc<Event>>,
    last: u64,
}

impl Events {
    /// The number of the last event; 0: there was none.
    pub(super) fn last(&self) -> u64 {
        self.last
    }

    /// The kept events with a number above `number`, the oldest first.
    pub(super) fn after(&self, number: u64) -> impl Iterator<Item = &Arc<Event>> {
        let newer = usize::try_from(self.last.saturating_sub(number)).unwrap_or(usize::MAX);
        self.kept.iter().skip(self.kept.len().saturating_sub(newer))
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
        if self.kept.len() == KEPT {
            self.kept.pop_front();
        }
        self.kept.push_back(Arc::new(Event { number: self.last, time, kind, node, tunnel, mesh, message }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_last_events_and_gives_those_after_a_number() {
        let mut events = Events::default();
        assert_eq!(events.after(0).count(), 0);
        for _ in 0..KEPT + 5 {
            events.controller(Duration::ZERO, EventKind::SessionRefused, "");
        }
        let last = events.last();
        let numbers = |after| events.after(after).map(|event| event.number).collect::<Vec<_>>();
        assert_eq!(numbers(last - 2), [last - 1, last]);
        assert_eq!(numbers(last), [0; 0]);
        assert_eq!(numbers(last + 7), [0; 0]);
        assert_eq!(numbers(0), (6..=last).collect::<Vec<_>>());
    }
}
