//! The agents' sessions: the real state machine on real connections, and nothing behind it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use futures_util::future::{BoxFuture, FutureExt, OptionFuture};
use tokio::task::JoinSet;
use tunmesh::agent::session::{Effect, Identity, Session, SessionState, Trouble, TroubleKind};
use tunmesh::proto::model::{DeviceName, Owner, TunnelName, TunnelState};
use tunmesh::proto::session::{Generation, ItemId, Reach, RunId, TunnelReport};

use super::wire::{Bytes, Closed, Connection};
use super::{LOOK, Options};

/// All agents. Dropping them ends them.
pub struct Agents {
    board: Arc<Board>,
    _tasks: JoinSet<()>,
}

struct Board {
    /// By agent, the revision that it has acknowledged in its session; 0: it is not in step.
    revisions: Vec<AtomicU64>,
    bytes: Arc<Bytes>,
}

impl Agents {
    /// Agents that begin to dial `controller`.
    pub fn start(options: Options, controller: SocketAddr) -> Self {
        let revisions = std::iter::repeat_with(AtomicU64::default).take(options.agents).collect();
        let board = Arc::new(Board { revisions, bytes: Arc::default() });
        let mut tasks = JoinSet::new();
        for position in 0..options.agents {
            let agent = Agent {
                session: session(position),
                position,
                reports: options.reports,
                reported: None,
                controller,
                board: Arc::clone(&board),
                dial: None,
                connection: None,
            };
            tasks.spawn(agent.run());
        }
        Self { board, _tasks: tasks }
    }

    /// How many have acknowledged `revision` or a later one, and are connected.
    pub fn synced(&self, revision: u64) -> usize {
        let has = |of: &&AtomicU64| of.load(Ordering::Relaxed) >= revision;
        self.board.revisions.iter().filter(has).count()
    }

    /// Waits until none is connected.
    pub async fn wait_lost(&self) {
        while self.synced(1) > 0 {
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Bytes on TCP, to the controller and from it.
    pub fn bytes(&self) -> (u64, u64) {
        let Bytes { up, down } = &*self.board.bytes;
        (up.load(Ordering::Relaxed), down.load(Ordering::Relaxed))
    }
}

fn session(position: usize) -> Session {
    let identity = Identity {
        node: super::node(position + 1).parse().unwrap(),
        labels: BTreeMap::new(),
        reach: Reach::At(super::endpoint(position + 1).parse().unwrap()),
        data_port: 5000,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        run_id: RunId::new(position as u128 + 1),
    };
    Session::new(identity, 1, None, position as u64, now())
}

struct Agent {
    session: Session,
    position: usize,
    reports: bool,
    /// What was kept at the last report in this connection: nothing else changes tunnels here.
    reported: Option<Generation>,
    controller: SocketAddr,
    board: Arc<Board>,
    dial: Option<BoxFuture<'static, Result<Connection, Closed>>>,
    connection: Option<Connection>,
}

impl Agent {
    async fn run(mut self) {
        loop {
            self.settle();
            let timeout = self.session.poll_timeout().expect("a session that has not ended");
            tokio::select! {
                Some(outcome) = OptionFuture::from(self.dial.as_mut()) => {
                    self.dial = None;
                    match outcome {
                        Ok(connection) => {
                            self.connection = Some(connection);
                            self.reported = None;
                            self.session.handle_connected(now());
                        }
                        Err(closed) => self.closed(&closed),
                    }
                }
                Some(message) = OptionFuture::from(self.connection.as_mut().map(Connection::next)) => {
                    match message {
                        Ok(message) => self.session.handle_message(message, now()),
                        Err(closed) => self.closed(&closed),
                    }
                }
                () = tokio::time::sleep_until(timeout.into()) => self.session.handle_timeout(now()),
            }
        }
    }

    fn closed(&mut self, closed: &Closed) {
        self.connection = None;
        let why = Trouble::new(TroubleKind::Ended, closed.reason.clone());
        self.session.handle_closed(why, closed.retry_after, now());
    }

    fn settle(&mut self) {
        while let Some(effect) = self.session.poll_effect() {
            match effect {
                Effect::Dial(_) => {
                    self.dial =
                        Some(Connection::open(self.controller, Arc::clone(&self.board.bytes)).boxed());
                }
                Effect::Send(message) => self.connection.iter().for_each(|open| open.send(message.clone())),
                Effect::Operators(_) | Effect::Examine(_) => {}
                Effect::Close => (self.dial, self.connection) = (None, None),
                Effect::Keep(_) => self.session.handle_kept(Ok(BTreeMap::new()), now()),
            }
        }
        let kept = self.session.base().map(|base| base.generation);
        if self.reports && kept != self.reported && self.session.wants_tunnels() {
            self.reported = kept;
            let tunnels = self.tunnels();
            self.session.handle_tunnels(tunnels);
            return self.settle();
        }
        let standing = self.session.standing();
        let synced = standing.generation.filter(|_| standing.state == SessionState::Synced);
        let revision = synced.map_or(0, |generation| generation.revision);
        self.board.revisions[self.position].store(revision, Ordering::Relaxed);
    }

    /// All tunnels that are wanted, as if they waited for a first packet.
    fn tunnels(&self) -> BTreeMap<TunnelName, TunnelReport> {
        let device: DeviceName = "fleet".parse().unwrap();
        let items = self.session.base().map(|base| base.all()).unwrap_or_default();
        let report = TunnelReport {
            device,
            owner: Owner::Controller,
            state: TunnelState::Waiting(None),
            endpoint: String::new(),
            preferred: String::new(),
            last_received_ms: None,
            keyed: false,
        };
        let names = items.iter().filter_map(|item| match &item.id {
            ItemId::Tunnel(name) => Some(name.clone()),
            ItemId::Device(_) => None,
        });
        names.map(|name| (name, report.clone())).collect()
    }
}

fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}
