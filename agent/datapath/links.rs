//! Sends the probes of all links, and tells the runtime how they change.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use super::Shared;
use super::handshakes::Handshakes;
use super::link::LinkEnd;
use super::outbox::reason_of;
use super::post::Post;
use super::stats::DropReason;
use super::table::{Table, Tunnel};
use crate::agent::link::probe::{LENGTH, Probe};

/// How close together looks at the links are at most: what is due a little later is seen to with the next.
const PAUSE: Duration = Duration::from_millis(5);
/// How often it is said that this end goes: nothing says whether it was heard.
const FAREWELLS: usize = 3;

/// What sends probes. One thread has it.
pub(super) struct Links {
    shared: Arc<Shared>,
    post: Post,
    handshakes: Handshakes,
    sealed: Vec<u8>,
}

impl Links {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self {
            post: Post::new(Arc::clone(&shared)),
            handshakes: Handshakes::new(Arc::clone(&shared)),
            shared,
            sealed: Vec::new(),
        }
    }

    /// Does what is due; `now` is time since boot. Returns for how long nothing is.
    pub(super) fn keep(&mut self, table: &Table, now: Duration) -> Option<Duration> {
        if now >= self.shared.links_due.get() {
            self.shared.links_due.set(Duration::MAX);
            let mut next = Duration::MAX;
            for (tunnel, end) in table.links() {
                let due = end.poll(tunnel.stats.last_received(), now);
                if due.transition.is_some() {
                    self.shared.tell_links();
                }
                if let Some(probe) = due.probe {
                    let sent = self.send(tunnel, &probe);
                    end.note_sent(sent);
                }
                next = next.min(due.next);
            }
            self.shared.links_due.bring_forward(next.max(now + PAUSE));
        }
        let due = self.shared.links_due.get();
        (due < Duration::MAX).then(|| due.saturating_sub(now))
    }

    /// Says goodbye on the links of a table that another one has no more.
    pub(super) fn leave(&mut self, before: &Table, after: &Table, now: Duration) {
        let stay: HashSet<*const LinkEnd> = after.links().map(|(_, end)| std::ptr::from_ref(end)).collect();
        for (tunnel, end) in before.links().filter(|(_, end)| !stay.contains(&std::ptr::from_ref(*end))) {
            for _ in 0..FAREWELLS {
                if let Some(probe) = end.leave(now) {
                    let sent = self.send(tunnel, &probe);
                    end.note_sent(sent);
                }
            }
        }
    }

    fn send(&mut self, tunnel: &Tunnel, probe: &Probe) -> Result<(), DropReason> {
        let frame = probe.encode();
        let Some(peer) = tunnel.addressee() else {
            return self.post.send(tunnel, &frame).map_err(|error| reason_of(&error));
        };
        self.sealed.clear();
        let sealed = peer.sessions().seal_at_once(&frame, LENGTH as u16, &mut self.sealed);
        match sealed {
            Ok(()) => self.post.send(tunnel, &self.sealed).map_err(|error| reason_of(&error)),
            Err(initiation) => {
                if let Some(initiation) = initiation {
                    self.handshakes.ask(tunnel, &initiation);
                }
                Err(DropReason::NoSession)
            }
        }
    }
}
