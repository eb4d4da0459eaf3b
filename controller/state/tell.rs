//! What operators are told of nodes.

use std::time::{Duration, Instant};

use super::{ControllerState, EventKind};
use crate::controller::registry::Health;
use crate::proto::model::NodeName;
use crate::proto::rate::Rate;

/// How many events there are about one node. They are kept with those of all others, and drive them out.
const EVENTS: Rate = Rate { burst: 100, every: Duration::from_secs(1) };

impl ControllerState {
    /// An event about a node that is known; where there are too many of it, one that says how many there were.
    pub(super) fn tell(
        &mut self,
        name: &NodeName,
        kind: EventKind,
        message: impl Into<String>,
        now: Instant,
        wall: Duration,
    ) {
        if self.may_tell(name, now) {
            self.events.node(wall, kind, name, message);
        }
    }

    pub(super) fn may_tell(&mut self, name: &NodeName, now: Instant) -> bool {
        let Some(node) = self.registry.node_mut(name) else { return true };
        match node.events.take(EVENTS, now) {
            Ok(()) => true,
            Err(again) => {
                node.left_out.get_or_insert((0, again)).0 += 1;
                false
            }
        }
    }

    /// Tells how many events of a node were not told.
    pub(super) fn tell_left_out(&mut self, name: &NodeName, now: Instant, wall: Duration) {
        let Some(node) = self.registry.node_mut(name) else { return };
        let Some((count, _)) = node.left_out.filter(|(_, at)| *at <= now) else { return };
        node.left_out = node.events.take(EVENTS, now).err().map(|again| (count, again));
        if node.left_out.is_none() {
            let message = format!("{count} more: there are too many to tell all");
            self.events.node(wall, EventKind::EventsLeftOut, name, message);
        }
    }

    pub(super) fn tell_health(&mut self, name: &NodeName, now: Instant, wall: Duration) {
        let Some(node) = self.registry.node_mut(name) else { return };
        let health = node.health(now);
        if node.told == health {
            return;
        }
        node.told = health;
        let (kind, message) = match health {
            Health::Live => (EventKind::NodeLive, ""),
            Health::Stale => (EventKind::NodeStale, ""),
            Health::Offline if node.is_gone => (EventKind::NodeOffline, "it said goodbye"),
            Health::Offline if node.refusal.is_some() => {
                (EventKind::NodeOffline, "its agent refuses this controller")
            }
            Health::Offline => (EventKind::NodeOffline, ""),
        };
        self.tell(name, kind, message, now, wall);
        self.progress += 1;
    }

    pub(super) fn heard(&mut self, name: &NodeName, now: Instant, wall: Duration) {
        let Some(node) = self.registry.node_mut(name) else { return };
        node.last_heard = Some(now);
        node.is_gone = false;
        node.session.iter_mut().for_each(|session| session.last_heard = now);
        self.tell_health(name, now, wall);
    }
}
