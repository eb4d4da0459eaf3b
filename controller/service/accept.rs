//! Who may connect in plain text, how often, and for how long without a session.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::Stream;
use ipnet::IpNet;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, Sleep};
use tonic::transport::server::Connected;

use crate::controller::registry::seats::Seats;
use crate::controller::registry::source::Source;
use crate::proto::rate::{Bucket, Rate};

/// How long a connection may be there before an agent has said Hello on it, and up to twice as long after its last
/// session, which has something to hear then.
const SILENCE: Duration = Duration::from_secs(5);
/// How many streams one connection may begin. An agent needs one, and dials anew for the next.
const STREAMS: Rate = Rate { burst: 10, every: Duration::from_secs(1) };
/// How often one log line about refused connections is written.
const LOG_EVERY: Duration = Duration::from_secs(10);
/// How long to wait where no more connections can be had.
const EXHAUSTED: Duration = Duration::from_millis(100);

/// Lets connections in, for all listeners.
#[derive(Debug, Clone)]
pub struct Gate {
    insecure: Arc<[IpNet]>,
    seats: Arc<Mutex<Seats>>,
    refused: Arc<Mutex<Refused>>,
}

/// Refused connections since the last log line about them.
#[derive(Debug, Default)]
struct Refused {
    count: u64,
    logged_at: Option<Instant>,
}

impl Gate {
    /// A gate for the networks in which the control channel may be plain text, and for `most` connections.
    pub fn new(insecure: &[IpNet], most: usize) -> Self {
        Self {
            insecure: insecure.into(),
            seats: Arc::new(Mutex::new(Seats::new(most))),
            refused: Arc::default(),
        }
    }

    /// The connections of `listener` that may stay.
    pub fn connections(self, listener: TcpListener) -> impl Stream<Item = io::Result<Accepted>> {
        futures_util::stream::unfold((self, listener), |(gate, listener)| async move {
            let accepted = loop {
                match listener.accept().await {
                    Ok((stream, peer)) => match gate.admit(stream, peer) {
                        Ok(accepted) => break accepted,
                        Err(why) => gate.log(peer, &why),
                    },
                    Err(error) => {
                        tracing::warn!(%error, "no connection can be taken");
                        tokio::time::sleep(EXHAUSTED).await;
                    }
                }
            };
            Some((Ok(accepted), (gate, listener)))
        })
    }

    fn admit(&self, stream: TcpStream, peer: SocketAddr) -> Result<Accepted, String> {
        let source = peer.ip().to_canonical();
        if !self.insecure.iter().any(|network| network.contains(&source)) {
            return Err("it is in none of the networks of --insecure".to_owned());
        }
        // A stream whose other end is gone already has no address, and no agent.
        let local = stream.local_addr().map_err(|error| error.to_string())?.ip().to_canonical();
        stream.set_nodelay(true).map_err(|error| error.to_string())?;
        let mut seats = self.seats.lock().unwrap_or_else(PoisonError::into_inner);
        seats
            .take(source.into())
            .map_err(|has| format!("it has {has}, and no more are left for all others"))?;
        let seat = Seat { source: source.into(), seats: Arc::clone(&self.seats) };
        let peer = Peer { source, local, sessions: Arc::default() };
        Ok(Accepted { stream, peer, patience: Box::pin(tokio::time::sleep(SILENCE)), _seat: seat })
    }

    #[allow(clippy::disallowed_methods, reason = "the log is limited by time")]
    fn log(&self, peer: SocketAddr, why: &str) {
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        refused.count += 1;
        let now = Instant::now();
        if refused.logged_at.is_none_or(|logged| now >= logged + LOG_EVERY) {
            tracing::warn!(%peer, why, count = refused.count, "a connection was refused");
            *refused = Refused { count: 0, logged_at: Some(now) };
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
    /// The controller's address that it has dialled.
    pub local: IpAddr,
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
    /// One whose connection is another's concern.
    #[cfg(test)]
    pub(super) fn new(source: IpAddr, local: IpAddr) -> Self {
        Self { source, local, sessions: Arc::default() }
    }

    /// Begins a stream.
    ///
    /// # Errors
    /// After which time to come again, where there were too many.
    pub fn begin(&self, now: std::time::Instant) -> Result<(), Duration> {
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
    pub(super) fn is_silent(&self) -> bool {
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
    stream: TcpStream,
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
