//! Who connects, how often, and for how long without a session.

mod transport;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures_util::Stream;
use ipnet::IpNet;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::Sleep;
use tonic::transport::server::Connected;

use super::clock;
use super::tls::{Shown, Unbelieved};
use crate::proto::rate::{Bucket, Rate, Seldom};
use crate::proto::seats::Seats;
use crate::proto::source::{Shares, Source};

use transport::Transport;
pub use transport::{Handshakes, Next};

/// How long a connection may be there before there is a session on it, and up to twice as long after its last one, which
/// has something to hear then.
const SILENCE: Duration = Duration::from_secs(5);
/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(3);
/// How many connections a source may begin: each handshake costs a signature and more.
const BEGUN: Rate = Rate { burst: 1_000, every: Duration::from_micros(2_500) };
/// How many sessions one connection may begin. An agent needs one, and dials anew for the next.
const STREAMS: Rate = Rate { burst: 10, every: Duration::from_secs(1) };
/// How often one log line about refused connections is written.
const LOG_EVERY: Duration = Duration::from_secs(10);
/// How long to wait where no more connections can be had.
const EXHAUSTED: Duration = Duration::from_millis(100);

/// Takes note of connections that may not stay.
pub trait TurnedAway: Clone {
    /// One of late may not, and from where and why, in words.
    fn turned_away(&self, words: String);
}

/// Lets connections in, for all listeners.
#[derive(Debug, Clone)]
pub struct Gate<T> {
    insecure: Arc<[IpNet]>,
    handshakes: Arc<Handshakes>,
    notes: T,
    seats: Arc<Mutex<Seats>>,
    /// How many connections sources have begun of late.
    begun: Arc<Mutex<Shares>>,
    refused: Arc<Mutex<Seldom>>,
}

impl<T: TurnedAway + Send + 'static> Gate<T> {
    /// A gate for `most` connections, which are plain text only from the networks `insecure`; `notes` hears of the others.
    pub fn new(insecure: &[IpNet], most: usize, handshakes: Arc<Handshakes>, notes: T) -> Self {
        Self {
            insecure: insecure.into(),
            handshakes,
            notes,
            seats: Arc::new(Mutex::new(Seats::new(most))),
            begun: Arc::new(Mutex::new(Shares::new(BEGUN))),
            refused: Arc::default(),
        }
    }

    /// The connections of `listener` that may stay.
    pub fn connections(self, listener: TcpListener) -> impl Stream<Item = io::Result<Accepted>> {
        let begun = (self, listener, JoinSet::new());
        futures_util::stream::unfold(begun, |(gate, listener, mut handshakes)| async move {
            let accepted = loop {
                // A handshake that hangs holds nobody else up.
                tokio::select! {
                    Some(shaken) = handshakes.join_next() => {
                        if let Ok(Some(accepted)) = shaken {
                            break accepted;
                        }
                    }
                    connected = listener.accept() => match connected {
                        Ok((stream, peer)) => match gate.seat(&stream, peer) {
                            Ok((seat, local)) => {
                                handshakes.spawn(gate.clone().shake(stream, peer, local, seat));
                            }
                            Err(why) => gate.log(peer, &why),
                        },
                        Err(error) => {
                            tracing::warn!(%error, "no connection can be taken");
                            tokio::time::sleep(EXHAUSTED).await;
                        }
                    },
                }
            };
            Some((Ok(accepted), (gate, listener, handshakes)))
        })
    }

    /// Takes a seat for a connection. Returns the address that it has dialled as well.
    fn seat(&self, stream: &TcpStream, peer: SocketAddr) -> Result<(Seat, IpAddr), String> {
        let source = Source::from(peer.ip());
        if !self.begun.lock().unwrap_or_else(PoisonError::into_inner).take(source, clock::now()) {
            return Err("it begins too many of late".to_owned());
        }
        // A stream whose other end is gone already has no address, and no agent.
        let local = stream.local_addr().map_err(|error| error.to_string())?.ip().to_canonical();
        stream.set_nodelay(true).map_err(|error| error.to_string())?;
        let mut seats = self.seats.lock().unwrap_or_else(PoisonError::into_inner);
        seats.take(source).map_err(|has| format!("it has {has}, and no more are left for all others"))?;
        Ok((Seat { source, seats: Arc::clone(&self.seats) }, local))
    }

    /// Brings a connection to where it can be served; `None`: it may not stay.
    async fn shake(self, stream: TcpStream, peer: SocketAddr, local: IpAddr, seat: Seat) -> Option<Accepted> {
        let source = peer.ip().to_canonical();
        let may_be_plain = self.insecure.iter().any(|network| network.contains(&source));
        let opened = tokio::time::timeout(HANDSHAKE, self.handshakes.open(stream, may_be_plain)).await;
        let opened =
            opened.unwrap_or_else(|_| Err("it did not come to an end with its handshake".to_owned()));
        match opened {
            Ok((stream, shown)) => {
                let peer = Peer { source, local, shown, sessions: Arc::default() };
                let patience = Box::pin(tokio::time::sleep(SILENCE));
                Some(Accepted { stream, peer, patience, _seat: seat })
            }
            Err(why) => {
                self.log(peer, &why);
                None
            }
        }
    }

    fn log(&self, peer: SocketAddr, why: &str) {
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = refused.take(LOG_EVERY, clock::now()) {
            tracing::warn!(%peer, why, count, "a connection was refused");
            self.notes.turned_away(format!("a connection from {}: {why}", peer.ip().to_canonical()));
        }
    }
}

/// Counts a connection as long as it lives.
#[derive(Debug)]
struct Seat {
    source: Source,
    seats: Arc<Mutex<Seats>>,
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.seats.lock().unwrap_or_else(PoisonError::into_inner).free(self.source);
    }
}

/// The other end of a connection.
#[derive(Debug, Clone)]
pub struct Peer {
    /// Its address.
    pub source: IpAddr,
    /// The address of this host that it has dialled.
    pub local: IpAddr,
    /// Whom its certificate shows it to be; absent: it speaks plain text, in a network in which it may.
    pub shown: Option<Result<Shown, Unbelieved>>,
    sessions: Arc<Sessions>,
}

/// The sessions on a connection.
#[derive(Debug, Default)]
struct Sessions {
    count: AtomicUsize,
    /// Whether one has ended since the last look.
    ended: AtomicBool,
    /// How many streams there were.
    streams: Mutex<Bucket>,
}

impl Peer {
    /// One whose connection is another's concern, in plain text.
    #[cfg(test)]
    pub(crate) fn new(source: IpAddr, local: IpAddr) -> Self {
        Self { source, local, shown: None, sessions: Arc::default() }
    }

    /// Begins a stream.
    ///
    /// # Errors
    /// After which time to come again, where there were too many.
    pub fn begin(&self, now: Instant) -> Result<(), Duration> {
        let mut streams = self.sessions.streams.lock().unwrap_or_else(PoisonError::into_inner);
        streams.take(STREAMS, now).map_err(|again| again.duration_since(now))
    }

    /// It has said who it is, and may stay as long as what this returns lives.
    #[must_use]
    pub fn greet(&self) -> Greeted {
        self.sessions.count.fetch_add(1, Ordering::Relaxed);
        Greeted(Arc::clone(&self.sessions))
    }

    /// Whether there is no session, and none since this was asked last.
    pub(crate) fn is_silent(&self) -> bool {
        let has_ended = self.sessions.ended.swap(false, Ordering::Relaxed);
        !has_ended && self.sessions.count.load(Ordering::Relaxed) == 0
    }
}

/// A session on a connection.
#[derive(Debug)]
pub struct Greeted(Arc<Sessions>);

impl Drop for Greeted {
    fn drop(&mut self) {
        self.0.ended.store(true, Ordering::Relaxed);
        self.0.count.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A connection. One that stays without a session fails after a while, which ends it.
#[derive(Debug)]
pub struct Accepted {
    stream: Transport,
    peer: Peer,
    /// When it is looked next whether there is a session.
    patience: Pin<Box<Sleep>>,
    _seat: Seat,
}

impl Accepted {
    fn bear(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        while self.patience.as_mut().poll(context).is_ready() {
            if self.peer.is_silent() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            let next = self.patience.deadline() + SILENCE;
            self.patience.as_mut().reset(next);
        }
        Ok(())
    }
}

impl Connected for Accepted {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Accepted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.bear(context)?;
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Accepted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        content: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, content)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        content: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, content)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Where nothing can be written, nothing is read.
        self.bear(context)?;
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests;
