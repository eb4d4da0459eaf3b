//! What keeps the sessions of encrypted tunnels going: the messages of handshakes, as they arrive and as they are due.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Shared;
use super::batch::Place;
use super::outbox::reason_of;
use super::path::Destination;
use super::peer::{Peer, Sessions};
use super::post::Post;
use super::stats::DropReason;
use super::table::{Table, Tunnel};
use crate::agent::wireguard::Refused;
use crate::agent::wireguard::cookie::Verdict;
use crate::agent::wireguard::message::Message;
use crate::agent::wireguard::tunnel::initiator;

/// When keys that are being agreed on can be used: whoever was asked for some hears a packet by them first.
const SETTLED: Duration = Duration::from_millis(200);

/// Takes in messages of handshakes and sends what is to be sent. Each data thread has one.
pub(super) struct Handshakes {
    shared: Arc<Shared>,
    post: Post,
}

impl Handshakes {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { post: Post::new(Arc::clone(&shared)), shared }
    }

    /// Takes in a message that is no data packet, which came from `source` to `local`; `now` is time since boot.
    pub(super) fn take_in(
        &mut self,
        table: &Table,
        kind: Message,
        message: &[u8],
        (source, local): (SocketAddr, Option<IpAddr>),
        now: Duration,
    ) {
        match self.judge(table, kind, message, source, now) {
            Err(refused) => {
                self.shared.stats.datagrams_dropped.count(refused, 1);
                if refused == DropReason::Forged && kind == Message::Initiation {
                    let tunnel = table.sender(source).and_then(|place| table.tunnel(place));
                    mark_other_key(tunnel, now);
                }
            }
            Ok(Judged::Cookie(cookie)) => {
                self.shared.stats.datagrams_dropped.count(DropReason::TooMany, 1);
                // Who gets none asks again.
                let _ = self.post.send_to(&Destination::from(source), local, &cookie);
            }
            Ok(Judged::Of(tunnel, peer)) => {
                let mut sessions = peer.sessions();
                match sessions.shake(message) {
                    Ok(answer) => {
                        self.shared.stats.count_session_message();
                        // An initiation may have been sent before: where its sender is, its first packet shows.
                        if let (Message::Response { .. }, Some(local)) = (kind, local)
                            && table.mark_way(tunnel, source, local, true)
                        {
                            self.shared.tell_moved(tunnel, now);
                        }
                        if let Some(answer) = answer {
                            // Whether it went shows by what follows.
                            let _ = self.post.send_to(&Destination::from(source), local, &answer);
                        }
                        self.release(tunnel, &mut sessions);
                        let is_asked = tunnel.link.as_ref().is_some_and(|link| link.asks().is_some());
                        if is_asked && self.shared.links_due.bring_forward(now + SETTLED) {
                            self.shared.waker.wake();
                        }
                    }
                    Err(refused) => {
                        tunnel.stats.received.drops.count(refused.into(), 1);
                        let is_old = refused == Refused::Repeated && kind == Message::Initiation;
                        if let Some(initiation) = is_old.then(|| sessions.revive(now)).flatten() {
                            self.ask(tunnel, &initiation);
                        }
                    }
                }
            }
        }
    }

    /// Whose message it is, and whether it is worth a look.
    #[allow(clippy::disallowed_methods, reason = "a data thread, and only where there is a handshake")]
    fn judge<'t>(
        &self,
        table: &'t Table,
        kind: Message,
        message: &[u8],
        source: SocketAddr,
        since_boot: Duration,
    ) -> Result<Judged<'t>, DropReason> {
        let of = |place: Place| {
            let tunnel = table.tunnel(place)?;
            Some(Judged::Of(tunnel, tunnel.peer.as_deref()?))
        };
        match kind {
            Message::Initiation => {
                let now = Instant::now();
                for (own, peers) in table.own_keys() {
                    let verdict = own.checker().judge(&mut self.shared.limits(), source, message, now);
                    match verdict {
                        // It may be for another key of this host.
                        Err(Refused::Forged) => {}
                        Err(refused) => return Err(refused.into()),
                        Ok(Verdict::Cookie(cookie)) => return Ok(Judged::Cookie(cookie)),
                        Ok(Verdict::Heed) => {
                            let peer = initiator(&own.private, message)?;
                            if let Some(judged) = peers.get(&peer).copied().and_then(of) {
                                return Ok(judged);
                            }
                            // It may be a peer that has another key than it was said to have.
                            let is_there = |tunnel: &&Tunnel| {
                                tunnel.destination.as_ref().is_some_and(|to| to.address == source)
                            };
                            let mut tunnels = peers.values().filter_map(|place| table.tunnel(*place));
                            mark_other_key(tunnels.find(is_there), since_boot);
                            return Err(DropReason::UnknownSender);
                        }
                    }
                }
                // Without an encrypted tunnel there is no key to hold it against.
                Err(if table.own_keys().is_empty() { DropReason::UnknownSender } else { DropReason::Forged })
            }
            Message::Response { receiver } | Message::Cookie { receiver } => {
                let place = self.shared.receivers.peer(receiver).and_then(|peer| table.peer(peer));
                let judged = place.and_then(of).ok_or(DropReason::NoSession)?;
                if let (Judged::Of(_, peer), Message::Response { receiver }) = (&judged, kind) {
                    peer.own.checker().check(message)?;
                    peer.sessions().expect_answer(receiver)?;
                }
                Ok(judged)
            }
            Message::Data { .. } => Err(DropReason::Malformed),
        }
    }

    /// Sends what has waited for a session with a peer, which is there now.
    pub(super) fn release(&mut self, tunnel: &Tunnel, sessions: &mut Sessions) {
        while let Some((datagram, length)) = sessions.released() {
            match self.post.send(tunnel, &datagram) {
                Ok(()) => tunnel.stats.sent.count(1, length),
                Err(error) => tunnel.stats.sent.drops.count(reason_of(&error), 1),
            }
        }
    }

    /// Looks at the clock for all peers; `now` is time since boot.
    pub(super) fn tick(&mut self, table: &Table, now: Duration) {
        // Who is nowhere comes first, and there is nobody to ask until then.
        let has_way = |tunnel: &Tunnel| tunnel.destination.is_some() || tunnel.path.roamed().is_some();
        for (tunnel, peer) in table.peers().filter(|(tunnel, _)| has_way(tunnel)) {
            let ticked = peer.sessions().tick(now, tunnel.also_plain);
            tunnel.stats.sent.drops.count(DropReason::NoSession, ticked.lost as u64);
            if let Some(message) = ticked.message {
                self.ask(tunnel, &message);
            }
        }
    }

    /// Sends the peer of a tunnel a message that is sent again where nothing comes of it.
    pub(super) fn ask(&mut self, tunnel: &Tunnel, message: &[u8]) {
        if let Err(error) = self.post.send(tunnel, message) {
            let to = tunnel.destination.as_ref().map(|destination| destination.address);
            tracing::debug!(?to, %error, "a message of a handshake was not sent");
        }
    }
}

/// Notes that somebody where the peer of an encrypted tunnel should be uses another key; anybody can seem to be there.
fn mark_other_key(tunnel: Option<&Tunnel>, since_boot: Duration) {
    if let Some(tunnel) = tunnel.filter(|tunnel| tunnel.peer.is_some()) {
        tunnel.stats.mark_other_key(since_boot);
    }
}

/// What a message is worth.
enum Judged<'t> {
    /// It is of a peer, as far as can be told.
    Of(&'t Tunnel, &'t Peer),
    /// This instead of an answer.
    Cookie(Vec<u8>),
}
