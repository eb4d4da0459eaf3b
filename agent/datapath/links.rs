//! Sends the probes of all links and asks what their paths carry, and tells the runtime how they change.

use std::sync::Arc;
use std::time::Duration;

use super::handshakes::Handshakes;
use super::peer::Peer;
use super::post::{Post, Unsent};
use super::stats::DropReason;
use super::table::{Table, Tunnel};
use super::{DatapathEvent, Shared};
use crate::agent::link::frame::{self, SHORT};
use crate::agent::link::mtu::Question;
use crate::agent::packet::frame::packet_information;

/// How close together looks at the links are at most, but for what is hurried: what is due a little later is seen to with the
/// next.
const PAUSE: Duration = Duration::from_millis(5);
/// How often it is said that this end goes: nothing says whether it was heard.
const FAREWELLS: usize = 3;

/// What sends probes. One thread has it.
pub(super) struct Links {
    pub(super) shared: Arc<Shared>,
    pub(super) post: Post,
    pub(super) handshakes: Handshakes,
    question: Vec<u8>,
}

impl Links {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self {
            post: Post::new(Arc::clone(&shared)),
            handshakes: Handshakes::new(Arc::clone(&shared)),
            shared,
            question: Vec::new(),
        }
    }

    /// Does what is due; `now` is time since boot. Returns for how long nothing is.
    pub(super) fn keep(&mut self, table: &Table, now: Duration) -> Option<Duration> {
        if now >= self.shared.links_due.get() {
            self.shared.links_due.set(Duration::MAX);
            let mut next = Duration::MAX;
            for (tunnel, end) in table.links() {
                // Not while the end is held: whoever receives holds the sessions first.
                let peer = end.asks().and(tunnel.peer.as_deref());
                let keyed_at = peer.and_then(|peer| peer.sessions().established(now));
                let due = end.poll(&tunnel.stats, keyed_at, now);
                if due.has_changed {
                    self.shared.tell_links();
                }
                if due.renews
                    && let Some(peer) = tunnel.addressee()
                {
                    let initiation = peer.sessions().renew();
                    initiation.iter().for_each(|initiation| self.handshakes.ask(tunnel, initiation));
                }
                if let Some(probe) = due.probe {
                    let sent = self.send(tunnel, &probe.encode());
                    end.note_sent(sent);
                }
                if let Some(packet) = due.echo {
                    let sent = self.send_packet(tunnel, &packet);
                    end.note_sent(sent);
                }
                if let Some(question) = due.question {
                    self.ask(tunnel, question, now);
                }
                next = next.min(due.next);
            }
            next = next.min(self.ask_preferred(table, now));
            self.shared.links_due.bring_forward(next.max(now + PAUSE));
        }
        let due = self.shared.links_due.get();
        (due < Duration::MAX).then(|| due.saturating_sub(now))
    }

    /// Says goodbye on the links of a table that another one has no more.
    pub(super) fn leave(&mut self, before: &Table, after: &Table, now: Duration) {
        for (tunnel, end) in before.gone_in(after) {
            for _ in 0..FAREWELLS {
                if let Some(probe) = end.leave(now) {
                    let sent = self.send(tunnel, &probe.encode());
                    end.note_sent(sent);
                }
            }
        }
    }

    /// Asks whether so large a packet comes through. Whether the question was sent shows by its answer.
    fn ask(&mut self, tunnel: &Tunnel, Question { number, size }: Question, now: Duration) {
        let Some(length) = tunnel.frame_in(size).filter(|length| *length >= SHORT) else { return };
        let mut frame = std::mem::take(&mut self.question);
        frame.clear();
        frame.extend_from_slice(&frame::question(number));
        frame.resize(length, 0);
        if self.send(tunnel, &frame) == Err(DropReason::TooBig)
            && let Some(to) = &tunnel.destination
            && tunnel.path.is_news(now)
        {
            // The kernel has heard of it before.
            let _ = self.shared.events.try_send(DatapathEvent::PathNarrowed(to.address.ip()));
        }
        self.question = frame;
    }

    /// Sends a packet of this host's own into a tunnel.
    fn send_packet(&mut self, tunnel: &Tunnel, packet: &[u8]) -> Result<(), DropReason> {
        if !tunnel.packet_information || tunnel.addressee().is_some() {
            return self.send(tunnel, packet);
        }
        let is_v4 = packet.first().is_some_and(|first| first >> 4 == 4);
        self.send(tunnel, &[&packet_information(is_v4), packet].concat())
    }

    fn send(&mut self, tunnel: &Tunnel, frame: &[u8]) -> Result<(), DropReason> {
        let mut sessions = tunnel.addressee().map(Peer::sessions);
        match self.post.send_own(tunnel, sessions.as_deref_mut(), frame) {
            Ok(()) => Ok(()),
            Err(Unsent::Lost(reason)) => Err(reason),
            Err(Unsent::NoSession(initiation)) => {
                drop(sessions);
                if let Some(initiation) = initiation {
                    self.handshakes.ask(tunnel, &initiation);
                }
                Err(DropReason::NoSession)
            }
        }
    }
}
