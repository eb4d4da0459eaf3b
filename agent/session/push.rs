//! What the controller pushes: taken in whole or not at all, kept, and acknowledged.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Base, Effect, Phase, Session, Trouble, TroubleKind};
use crate::proto::session::{Ack, AgentMessage, Delta, Generation, Item, ItemId, Items, SnapshotChunk};

/// The least time between two requests for a snapshot, and before one after what could not be kept.
const RESYNC_PAUSE: Duration = Duration::from_secs(5);
/// The most items of a snapshot.
const SNAPSHOT_ITEMS: usize = 100_000;
/// The most bytes of their contents.
pub(super) const SNAPSHOT_BYTES: usize = 64 << 20;

/// The parts of a snapshot that have come.
#[derive(Debug)]
pub(super) struct Chunks {
    generation: Generation,
    items: Vec<Arc<Item>>,
    /// Of their contents.
    bytes: usize,
}

impl Session {
    /// What came of [`Effect::Keep`]: on disk and tried, with what of it cannot be had and why; or why it could not
    /// be kept, and nothing changed.
    pub fn handle_kept(&mut self, outcome: Result<BTreeMap<ItemId, String>, String>, now: Instant) {
        let Some(base) = self.keeping.take() else { return };
        match outcome {
            Ok(failures) => {
                let ack = Ack {
                    generation: base.generation,
                    failures,
                    removals_held: base.held.iter().map(|item| item.id.clone()).collect(),
                };
                self.base = Some(base);
                if let Phase::Open(open) = &mut self.phase {
                    // A push that came meanwhile is asked for again.
                    if open.resync.is_none() {
                        if open.synced.is_none() {
                            open.synced = Some(now);
                            self.since = now;
                        }
                        self.trouble = None;
                    }
                    open.acked = Some(ack.clone());
                    self.send(AgentMessage::Ack(ack));
                }
            }
            Err(reason) => {
                let reason = format!("cannot be kept on disk: {reason}");
                self.trouble = Some(Trouble::new(TroubleKind::Unkept, reason.clone()));
                self.resync(&reason, now + RESYNC_PAUSE, now);
            }
        }
        self.handle_timeout(now);
    }

    pub(super) fn handle_not_modified(&mut self, generation: Generation, now: Instant) {
        let Phase::Open(open) = &self.phase else { return };
        match &self.base {
            Some(base) if !open.answered => {
                // It is all that it said it has: what was held is wanted again.
                let (items, held) = (base.all(), Items::default());
                let base = Base { generation, items, held, consents_after: None, ..base.clone() };
                self.keep(base, now);
            }
            // It would say nothing of what is here now.
            Some(_) | None => self.resync("nothing was asked that this could answer", now, now),
        }
    }

    pub(super) fn handle_chunk(&mut self, chunk: SnapshotChunk, now: Instant) {
        let Phase::Open(open) = &mut self.phase else { return };
        open.moved = now;
        let chunks = open.chunks.get_or_insert_with(|| Chunks {
            generation: chunk.generation,
            items: Vec::new(),
            bytes: 0,
        });
        if chunks.generation != chunk.generation {
            let reason = format!("a part of {} came amid {}", chunk.generation, chunks.generation);
            return self.resync(&reason, now, now);
        }
        chunks.bytes += chunk.items.iter().map(|item| item.content.len()).sum::<usize>();
        if chunks.bytes > SNAPSHOT_BYTES || chunks.items.len() + chunk.items.len() > SNAPSHOT_ITEMS {
            let reason = format!(
                "the controller wants more than {SNAPSHOT_ITEMS} items, or of more than {SNAPSHOT_BYTES} bytes"
            );
            return self.refuse(reason, now);
        }
        chunks.items.extend(chunk.items);
        let Some(end) = chunk.end else { return };
        let items = Items::new(std::mem::take(&mut chunks.items));
        if items.digest() != end.digest {
            let reason = format!("the snapshot of {} is not whole", chunk.generation);
            return self.resync(&reason, now, now);
        }
        let store_id = open.store_id.clone().unwrap_or_default();
        let next = Base::next(self.base.as_ref(), store_id, chunk.generation, items, end.removals);
        self.keep(next, now);
    }

    pub(super) fn handle_delta(&mut self, delta: Delta, now: Instant) {
        let Phase::Open(open) = &self.phase else { return };
        let base = self.base.as_ref().filter(|base| base.generation == delta.base && open.chunks.is_none());
        let Some(base) = base else {
            let reason = format!("a change of {} cannot be made here", delta.base);
            return self.resync(&reason, now, now);
        };
        let stays = base.items.iter().filter(|item| !delta.delete.contains(&item.id)).cloned();
        let items = Items::new(stays.chain(delta.set));
        if items.digest() != delta.digest {
            let reason = format!("the change to {} does not come out", delta.generation);
            return self.resync(&reason, now, now);
        }
        let next = Base::next(Some(base), base.store_id.clone(), delta.generation, items, delta.removals);
        self.keep(next, now);
    }

    /// Has a new base kept, if it can follow the one that is.
    fn keep(&mut self, mut next: Base, now: Instant) {
        if self.keeping.is_some() {
            let reason = format!("{} came before what was under way was acknowledged", next.generation);
            return self.resync(&reason, now, now);
        }
        if let Some(base) = self.base.as_ref().filter(|base| next.generation < base.generation) {
            let reason = format!(
                "the controller wants {}, which is older than {}, which this agent has",
                next.generation, base.generation
            );
            return self.refuse(reason, now);
        }
        if let Phase::Open(open) = &mut self.phase {
            open.chunks = None;
            open.resync = None;
            open.answered = true;
            next.timeline.clone_from(&open.timeline);
        }
        self.keeping = Some(next.clone());
        self.effects.push_back(Effect::Keep(next));
    }

    /// Asks for a snapshot, at `at` or later.
    fn resync(&mut self, reason: &str, at: Instant, now: Instant) {
        let Phase::Open(open) = &mut self.phase else { return };
        open.chunks = None;
        if open.synced.take().is_some() {
            self.since = now;
        }
        let at = open.resynced_at.map_or(at, |last| at.max(last + RESYNC_PAUSE));
        open.resync.get_or_insert_with(|| (at, reason.to_owned()));
        self.handle_timeout(now);
    }
}
