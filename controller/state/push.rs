//! What sessions are sent of what is wanted.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{ControllerState, Effect, Snapshot};
use crate::controller::registry::{ACKNOWLEDGE, Push};
use crate::proto::model::NodeName;
use crate::proto::rate::Rate;
use crate::proto::session::{ControllerMessage, Delta, Generation, Item, Removals};

/// How often a node is sent all that is wanted because it asks for that, or comes with something else. A faithful
/// agent asks every 5 s at most, and one that comes gives up after 15 s without an answer.
const SNAPSHOTS: Rate = Rate { burst: 5, every: Duration::from_secs(5) };
/// The longest content of a change, in bytes; what is more goes in chunks, as a snapshot.
const CHANGE: usize = 8 << 10;

impl ControllerState {
    /// Sends a session what it is to have and has not, unless something is under way already.
    pub(super) fn push(&mut self, name: &NodeName, now: Instant) {
        let view = self.views.get(name).unwrap_or(&self.nothing);
        let generation = self.generation;
        let consent = self.stored.consents.get(name).copied().unwrap_or(0);
        let removals = Removals { consent, are_held: self.removals_held };
        let Some(node) = self.registry.node_mut(name) else { return };
        let Some(session) = node.session.as_mut() else { return };
        let is_busy = session.under_way.is_some() || session.held_until.is_some();
        if !session.is_dirty || is_busy || generation < session.floor {
            return;
        }
        session.is_dirty = false;
        let items = view.items.clone();
        let claim = session.claim.take();
        let change = session.acknowledged.as_ref().map(|base| (base, base.items.changes_to(&items)));
        let length = |set: &[Arc<Item>]| set.iter().map(|item| item.content.len()).sum::<usize>();
        let effect = match change {
            // What went away and came back while a push was under way is acknowledged anew, as nothing that changes.
            Some((base, (set, delete)))
                if set.is_empty()
                    && delete.is_empty()
                    && base.removals == removals
                    && base.generation >= view.since =>
            {
                return;
            }
            Some((base, (set, delete))) if length(&set) <= CHANGE => {
                let (base, digest) = (base.generation, view.digest());
                let delta = Delta { base, generation, set, delete, digest, removals };
                Effect::Send(session.connection, ControllerMessage::Delta(delta))
            }
            None if claim == Some(view.digest()) => {
                Effect::Send(session.connection, ControllerMessage::NotModified(generation))
            }
            None if let Err(again) = node.snapshots.take(SNAPSHOTS, now) => {
                session.is_dirty = true;
                session.held_until = Some(again);
                self.registry.reschedule(name);
                return;
            }
            Some(_) | None => {
                let snapshot = Snapshot { generation, items: items.clone(), removals };
                Effect::SendSnapshot(session.connection, snapshot)
            }
        };
        session.under_way = Some(Push { generation, items, removals });
        session.acknowledge_by.get_or_insert(now + ACKNOWLEDGE);
        self.effects.push_back(effect);
        self.registry.reschedule(name);
    }

    /// Whether a node has acknowledged all that is wanted of it.
    pub(super) fn is_converged(&self, name: &NodeName) -> bool {
        let observed: Option<Generation> = self.registry.node(name).and_then(|node| node.observed);
        observed.is_some_and(|observed| observed >= self.view(name).since)
    }
}
