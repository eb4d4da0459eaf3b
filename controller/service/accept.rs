//! Who may connect in plain text, and for how long without a word.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::Stream;
use ipnet::IpNet;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, Sleep};
use tonic::transport::server::Connected;

/// How long a connection may be there before an agent has said Hello on it.
const SILENCE: Duration = Duration::from_secs(5);
/// How many such connections one source may have.
const SILENT: usize = 1024;
/// How often one log line about refused connections is written.
const LOG_EVERY: Duration = Duration::from_secs(10);
/// How long to wait where no more connections can be had.
const EXHAUSTED: Duration = Duration::from_millis(100);

/// Lets connections in, for all listeners.
#[derive(Debug, Clone)]
pub struct Gate {
    insecure: Arc<[IpNet]>,
    silent: Arc<Mutex<BTreeMap<IpAddr, usize>>>,
    refused: Arc<Mutex<Refused>>,
}

/// Refused connections since the last log line about them.
#[derive(Debug, Default)]
struct Refused {
    count: u64,
    logged_at: Option<Instant>,
}

impl Gate {
    /// A gate for the networks in which the control channel may be plain text.
    pub fn new(insecure: &[IpNet]) -> Self {
        Self { insecure: insecure.into(), silent: Arc::default(), refused: Arc::default() }
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
        let mut silent = self.silent.lock().unwrap_or_else(PoisonError::into_inner);
        let count = silent.entry(source).or_default();
        if *count >= SILENT {
            return Err(format!("{SILENT} connections from there have not said who they are"));
        }
        *count += 1;
        let silence = Silence { source, silent: Arc::clone(&self.silent) };
        let peer = Peer { source, local, silence: Arc::new(Mutex::new(Some(silence))) };
        Ok(Accepted { stream, peer, patience: Some(Box::pin(tokio::time::sleep(SILENCE))) })
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

/// Counts a connection as silent as long as it lives.
#[derive(Debug)]
struct Silence {
    source: IpAddr,
    silent: Arc<Mutex<BTreeMap<IpAddr, usize>>>,
}

impl Drop for Silence {
    fn drop(&mut self) {
        let mut silent = self.silent.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = silent.get_mut(&self.source) {
            *count -= 1;
            if *count == 0 {
                silent.remove(&self.source);
            }
        }
    }
}

/// The other end of a connection.
#[derive(Debug, Clone)]
pub struct Peer {
    /// Its address.
    pub source: IpAddr,
    /// The controller's address that it has dialled.
    pub local: IpAddr,
    silence: Arc<Mutex<Option<Silence>>>,
}

impl Peer {
    /// One that has said who it is.
    #[cfg(test)]
    pub(super) fn greeted(source: IpAddr, local: IpAddr) -> Self {
        Self { source, local, silence: Arc::default() }
    }

    /// It has said who it is, and may stay.
    pub fn greet(&self) {
        self.silence.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    fn is_silent(&self) -> bool {
        self.silence.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }
}

/// A connection. One that stays silent fails to be read after a while, which ends it.
#[derive(Debug)]
pub struct Accepted {
    stream: TcpStream,
    peer: Peer,
    patience: Option<Pin<Box<Sleep>>>,
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
        if let Some(patience) = self.patience.as_mut()
            && patience.as_mut().poll(context).is_ready()
        {
            self.patience = None;
            if self.peer.is_silent() {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
        }
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
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
