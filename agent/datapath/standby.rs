//! The endpoints of a peer that are preferred to the one in use: they are asked beside the traffic whether they answer.

use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::links::Links;
use super::path::Destination;
use super::peer::Peer;
use super::post::Unsent;
use super::table::{Table, Tunnel};
use crate::agent::link::frame;
use crate::agent::link::standby::Standby;
use crate::proto::model::LinkState;

/// What the data threads and the runtime know of them. It is another one whenever they are others.
#[derive(Debug)]
pub struct Preferred(Mutex<Standby>);

impl Preferred {
    /// Of endpoints of which nothing is known, the most preferred first; `now` is since boot.
    pub fn new(endpoints: impl IntoIterator<Item = SocketAddr>, now: Duration) -> Self {
        Self(Mutex::new(Standby::new(endpoints, now)))
    }

    /// Whether they are these.
    pub fn are(&self, endpoints: impl Iterator<Item = SocketAddr>) -> bool {
        self.inner().places().eq(endpoints)
    }

    /// The most preferred one that has answered for long enough.
    pub fn fit(&self, now: Duration) -> Option<SocketAddr> {
        self.inner().fit(now)
    }

    /// An answer has come that may be theirs.
    pub fn handle_answer(&self, number: u32, now: Duration) {
        self.inner().handle_answer(number, now);
    }

    fn inner(&self) -> MutexGuard<'_, Standby> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Links {
    /// Asks endpoints that are preferred to those in use, where that is due. Returns when it is next, since boot.
    pub(super) fn ask_preferred(&mut self, table: &Table, now: Duration) -> Duration {
        let mut next = Duration::MAX;
        for (tunnel, end) in table.links() {
            let Some(preferred) = &tunnel.preferred else { continue };
            // Who has said that it ends is sent nothing until it is heard again, and then links are due.
            if end.state() == Some(LinkState::AdminDown) {
                continue;
            }
            let asked = preferred.inner().poll(now);
            for (address, number) in asked {
                self.ask_at(tunnel, address, number);
            }
            if preferred.fit(now).is_some() {
                self.shared.tell_links();
            }
            next = next.min(preferred.inner().poll_at());
        }
        next
    }

    /// Asks an endpoint whether it answers. From where the datagram goes the kernel says: what is known of the way is
    /// about another one.
    fn ask_at(&mut self, tunnel: &Tunnel, address: SocketAddr, number: u32) {
        let to = Destination::from(address);
        let mut sessions = tunnel.addressee().map(Peer::sessions);
        let sent = self.post.send_own_to((&to, None), sessions.as_deref_mut(), &frame::question(number));
        drop(sessions);
        // Whether it was sent shows by its answer.
        if let Err(Unsent::NoSession(Some(initiation))) = sent {
            self.handshakes.ask(tunnel, &initiation);
        }
    }
}
