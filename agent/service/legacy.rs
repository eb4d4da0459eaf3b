//! The control port of 2015: one JSON datagram asks, one answers.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use tokio::io::Interest;
use tokio_util::sync::CancellationToken;

use crate::agent::os::udp::{Arrival, SocketPair, receive_with_interface};
use crate::agent::runtime::AgentHandle;
use crate::proto::legacy::{self, Answer};
use crate::proto::model::{Owner, TunnelName};

/// The longest datagram.
const BUFFER: usize = 1 << 16;
/// The loopback interface has this number in every network namespace (`LOOPBACK_IFINDEX` of the kernel).
const LOOPBACK: u32 = 1;
/// How often one log line about ignored datagrams is written.
const LOG_EVERY: Duration = Duration::from_secs(10);

/// The control port, and whom it heeds.
pub struct Legacy {
    agent: AgentHandle,
    allow: Vec<IpNet>,
}

impl Legacy {
    /// A control port for `agent` that heeds this host and senders in `allow`.
    pub fn new(agent: AgentHandle, allow: Vec<IpNet>) -> Self {
        Self { agent, allow }
    }

    /// Answers on every socket until `stop`.
    ///
    /// # Errors
    /// Where a socket cannot be prepared.
    pub async fn serve(self, sockets: SocketPair, stop: CancellationToken) -> io::Result<()> {
        let SocketPair { v4, v6 } = sockets;
        let serve = async |socket: Option<UdpSocket>| match socket {
            Some(socket) => self.serve_on(socket).await,
            None => std::future::pending().await,
        };
        tokio::select! {
            () = stop.cancelled() => Ok(()),
            ended = serve(v4) => ended,
            ended = serve(v6) => ended,
        }
    }

    async fn serve_on(&self, socket: UdpSocket) -> io::Result<()> {
        let socket = tokio::net::UdpSocket::from_std(socket)?;
        let mut buffer = vec![0; BUFFER];
        let mut ignored = Ignored::default();
        let mut refused = Refused::default();
        loop {
            socket.readable().await?;
            // A flood keeps the socket readable: without this no other task of the thread would run until it ends.
            tokio::task::coop::consume_budget().await;
            let received = socket.try_io(Interest::READABLE, || receive_with_interface(&socket, &mut buffer));
            // Nothing there, or an error of an earlier reply, which is taken with the reading.
            let Ok(arrival) = received else { continue };
            let datagram = buffer.get(..arrival.length).unwrap_or_default();
            if !self.heeds(&arrival) {
                ignored.note(arrival.source);
                continue;
            }
            // Off loopback the source may be forged: a longer reply would make this host an amplifier.
            let longest = (arrival.interface != LOOPBACK).then_some(datagram.len());
            if let Some(reply) = self.answer(datagram, arrival.source, longest, &mut refused).await
                && let Err(error) = socket.try_send_to(&reply, arrival.source)
            {
                tracing::debug!(source = %arrival.source, %error, "a reply of the control port was not sent");
            }
        }
    }

    /// Whether a datagram came from this host or from a named network. Its source says nothing of this host.
    fn heeds(&self, arrival: &Arrival) -> bool {
        let source = arrival.source.ip();
        arrival.interface == LOOPBACK
            || (!source.is_loopback() && self.allow.iter().any(|prefix| prefix.contains(&source)))
    }

    async fn answer(
        &self,
        datagram: &[u8],
        source: SocketAddr,
        longest: Option<usize>,
        log: &mut Refused,
    ) -> Option<Vec<u8>> {
        let request = match legacy::parse(datagram) {
            Ok(request) => request,
            Err(malformed) => {
                log.note(|unlogged| {
                    tracing::warn!(%source, %malformed, unlogged, "a control datagram was refused");
                });
                if legacy::is_reply(datagram) {
                    return None;
                }
                return legacy::malformed_reply(&malformed, longest);
            }
        };
        let mut answers = Vec::with_capacity(request.entries.len());
        let mut refused = 0_usize;
        for entry in request.entries {
            let outcome = match entry.command {
                Ok(command) => self.agent.execute(command, Owner::Local).await,
                Err(error) => Err(error),
            };
            let answer = Answer::from(outcome);
            if let Answer::Error(words) = &answer {
                refused += 1;
                if refused == 1 {
                    // What a sender calls a tunnel may be anything, line breaks included.
                    let tunnel: String = entry.key.chars().take(TunnelName::LONGEST).collect();
                    log.note(|unlogged| {
                        tracing::warn!(
                            %source, ?tunnel, %words, unlogged,
                            "a control command was refused or cannot be done yet"
                        );
                    });
                }
            }
            answers.push((entry.key, answer));
        }
        legacy::reply(&answers, longest)
    }
}

/// The most log lines about refused datagrams in [`LOG_EVERY`].
const REFUSALS: u32 = 100;

/// Datagrams that were refused: a log line each, but a flood does not fill the disk.
#[derive(Default)]
struct Refused {
    since: Option<Instant>,
    logged: u32,
    unlogged: u64,
}

impl Refused {
    /// Has a line written by `log`, which is told how many before it were not if any, unless there were too many
    /// lately.
    #[allow(clippy::disallowed_methods, reason = "only to limit the log")]
    fn note(&mut self, log: impl FnOnce(Option<u64>)) {
        let now = Instant::now();
        if self.since.is_none_or(|since| now.duration_since(since) >= LOG_EVERY) {
            (self.since, self.logged) = (Some(now), 0);
        }
        if self.logged < REFUSALS {
            self.logged += 1;
            let unlogged = std::mem::take(&mut self.unlogged);
            log((unlogged > 0).then_some(unlogged));
        } else {
            self.unlogged += 1;
        }
    }
}

/// Datagrams that were ignored, for a log line now and then.
#[derive(Default)]
struct Ignored {
    count: u64,
    logged: Option<Instant>,
    by_source: BTreeMap<IpAddr, u64>,
}

/// More sources than this are not kept apart.
const SOURCES: usize = 8;

impl Ignored {
    #[allow(clippy::disallowed_methods, reason = "only to limit the log")]
    fn note(&mut self, source: SocketAddr) {
        self.count += 1;
        if self.by_source.len() < SOURCES || self.by_source.contains_key(&source.ip()) {
            *self.by_source.entry(source.ip()).or_default() += 1;
        }
        let now = Instant::now();
        if self.logged.is_some_and(|logged| now.duration_since(logged) < LOG_EVERY) {
            return;
        }
        let sources: Vec<String> = self.by_source.keys().map(ToString::to_string).collect();
        tracing::warn!(
            count = self.count,
            sources = sources.join(", "),
            "control datagrams that did not come through loopback were ignored: on this host use 127.0.0.1, for others \
             start the agent with --legacy-allow CIDR"
        );
        *self = Self { logged: Some(now), ..Self::default() };
    }
}
