//! The one task that owns the agent's state: it reads the clock, performs operations, and answers.

use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use crate::agent::datapath::DatapathEvent;
use crate::agent::os::clock;
use crate::agent::platform::Platform;
use crate::agent::reconcile::Op;
use crate::agent::state::{AgentState, OpResult};
use crate::agent::store::Store;
use crate::proto::command::{Command, CommandError, ErrorKind, Field, Outcome};
use crate::proto::model::{Invalid, Owner, TunnelName, TunnelState, TunnelStatus};

/// How many requests wait at most; more wait with their senders.
const QUEUE: usize = 64;

/// What the agent is asked for.
enum Request {
    Execute(Box<Command>, Owner, oneshot::Sender<Result<Outcome, CommandError>>),
    Tunnels(oneshot::Sender<Vec<TunnelStatus>>),
    Counters(oneshot::Sender<Counters>),
}

/// What belongs to no tunnel, by reason.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counters {
    /// Datagrams that arrived at the data port.
    pub datagrams: u64,
    /// Those of them that belong to no tunnel.
    pub datagrams_dropped: std::collections::BTreeMap<&'static str, u64>,
    /// Packets from devices that belong to no tunnel.
    pub packets_dropped: std::collections::BTreeMap<&'static str, u64>,
}

/// The way to a running agent, for every service.
#[derive(Debug, Clone)]
pub struct AgentHandle(mpsc::Sender<Request>);

fn stopping() -> CommandError {
    CommandError::new(
        ErrorKind::Unavailable,
        Field::Command,
        "",
        Invalid::new("came while the agent is stopping", "try again when it is back"),
    )
}

impl AgentHandle {
    /// Has a command carried out. When this returns well the change is on disk.
    ///
    /// # Errors
    /// Why the command was refused; nothing changed.
    pub async fn execute(&self, command: Command, owner: Owner) -> Result<Outcome, CommandError> {
        self.ask(|reply| Request::Execute(Box::new(command), owner, reply)).await?
    }

    /// All tunnels as they are, by name.
    ///
    /// # Errors
    /// Where the agent is stopping.
    pub async fn tunnels(&self) -> Result<Vec<TunnelStatus>, CommandError> {
        self.ask(Request::Tunnels).await
    }

    /// What belongs to no tunnel.
    ///
    /// # Errors
    /// Where the agent is stopping.
    pub async fn counters(&self) -> Result<Counters, CommandError> {
        self.ask(Request::Counters).await
    }

    async fn ask<T>(&self, request: impl FnOnce(oneshot::Sender<T>) -> Request) -> Result<T, CommandError> {
        let (reply, answer) = oneshot::channel();
        self.0.send(request(reply)).await.map_err(|_| stopping())?;
        answer.await.map_err(|_| stopping())
    }
}

type Resolved = (String, Result<Vec<IpAddr>, String>);

/// The state with everything that acts for it.
pub struct Runtime {
    state: AgentState,
    platform: Platform,
    store: Arc<Store>,
    requests: mpsc::Receiver<Request>,
    events: mpsc::Receiver<DatapathEvent>,
    lookups: JoinSet<Resolved>,
    boot: BootTime,
}

/// When the host was started, as time since the Unix epoch. Read once: two readings of two clocks are never the same,
/// and a time that was told must not change.
struct BootTime(Duration);

impl BootTime {
    /// The wall clock may be set: then the boot was at another time.
    const STEP: Duration = Duration::from_secs(1);

    fn read() -> Self {
        Self(since_epoch().saturating_sub(clock::since_boot()))
    }

    /// A time since boot as time since the Unix epoch.
    fn since_epoch(&mut self, since_boot: Duration) -> Duration {
        let Self(now) = Self::read();
        if now.abs_diff(self.0) > Self::STEP {
            self.0 = now;
        }
        self.0 + since_boot
    }
}

impl Runtime {
    /// A runtime, and the way to it.
    pub fn new(
        state: AgentState,
        platform: Platform,
        store: Store,
        events: mpsc::Receiver<DatapathEvent>,
    ) -> (Self, AgentHandle) {
        let (sender, requests) = mpsc::channel(QUEUE);
        let runtime = Self {
            state,
            platform,
            store: Arc::new(store),
            requests,
            events,
            lookups: JoinSet::new(),
            boot: BootTime::read(),
        };
        (runtime, AgentHandle(sender))
    }

    /// Brings up what was kept.
    ///
    /// # Errors
    /// Where the kernel's state cannot be read.
    pub async fn restore(&mut self) -> io::Result<()> {
        let actual = self.platform.observe().await?;
        self.state.handle_observed(actual, now());
        self.settle().await;
        for status in self.state.statuses() {
            if let TunnelState::Failed(reason) = &status.state {
                tracing::warn!(tunnel = %status.name, %reason, "tunnel cannot be brought up yet");
            }
        }
        Ok(())
    }

    /// Works until `shutdown`, then removes what the agent made.
    pub async fn run(mut self, shutdown: impl Future<Output = ()>) {
        let mut shutdown = std::pin::pin!(shutdown);
        loop {
            let timeout = tokio::time::Instant::from_std(self.state.poll_timeout());
            tokio::select! {
                () = &mut shutdown => break,
                Some(request) = self.requests.recv() => self.answer(request).await,
                Some(DatapathEvent::DeviceGone) = self.events.recv() => self.state.handle_device_event(now()),
                Some(resolved) = self.lookups.join_next() => {
                    if let Ok((host, answer)) = resolved {
                        self.state.handle_resolved(&host, answer, now());
                    }
                }
                () = tokio::time::sleep_until(timeout) => self.state.handle_timeout(now()),
            }
            self.settle().await;
        }
        self.clear().await;
    }

    async fn answer(&mut self, request: Request) {
        // Whoever asked may have gone away meanwhile.
        match request {
            Request::Execute(command, owner, reply) => {
                let _ = reply.send(self.execute(&command, owner).await);
            }
            Request::Tunnels(reply) => {
                let _ = reply.send(self.tunnels());
            }
            Request::Counters(reply) => {
                let stats = self.platform.agent_stats();
                let _ = reply.send(Counters {
                    datagrams: stats.datagrams(),
                    datagrams_dropped: stats.datagrams_dropped.read(),
                    packets_dropped: stats.packets_dropped.read(),
                });
            }
        }
    }

    async fn execute(&mut self, command: &Command, owner: Owner) -> Result<Outcome, CommandError> {
        // The command is judged against the host as it is now. Where it cannot be read the last reading stands.
        if let Ok(actual) = self.platform.observe().await {
            self.state.handle_observed(actual, now());
        }
        let change = self.state.handle_command(command, owner)?;
        let tunnel = change.tunnel.clone();
        if change.is_change {
            self.save(&change.desired).await?;
            tracing::info!(%tunnel, ?owner, "{}", match command {
                Command::Add { .. } => "tunnel is wanted",
                Command::Delete { .. } => "tunnel is no longer wanted",
            });
        }
        self.state.commit(change, now());
        self.settle().await;
        Ok(match self.status(&tunnel) {
            Some(status) => Outcome::Added { status: Box::new(status), notes: self.state.notes(&tunnel) },
            None => Outcome::Deleted,
        })
    }

    async fn save(&self, desired: &crate::proto::model::Desired) -> Result<(), CommandError> {
        let (store, desired) = (Arc::clone(&self.store), desired.clone());
        let saved = tokio::task::spawn_blocking(move || store.save(&desired)).await;
        match saved.map_err(io::Error::other) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) | Err(error) => Err(CommandError::new(
                ErrorKind::Storage,
                Field::Command,
                "",
                Invalid::new(
                    format!("cannot be kept on disk: {error}"),
                    "make room in the agent's state directory; nothing has changed",
                ),
            )),
        }
    }

    /// Performs operations until there are none.
    async fn settle(&mut self) {
        while let Some(op) = self.state.poll_op() {
            tracing::debug!(?op, "perform");
            if let Op::Resolve(host) = &op {
                self.resolve(host.clone());
                continue;
            }
            let result = self.platform.perform(&op).await;
            if let OpResult::Failed(reason) = &result {
                tracing::warn!(%reason, "an operation failed; it is tried again");
            }
            self.state.handle_op_result(op, result, now());
        }
        let desired = self.state.desired();
        self.platform.retain_stats(|tunnel| desired.tunnels.contains_key(tunnel));
    }

    fn resolve(&mut self, host: String) {
        self.lookups.spawn(async move {
            // The port is not looked at; the resolver wants one.
            let answer = tokio::net::lookup_host((host.as_str(), 0)).await;
            let answer = answer
                .map(|addresses| addresses.map(|address| address.ip().to_canonical()).collect())
                .map_err(|error| error.to_string());
            (host, answer)
        });
    }

    fn tunnels(&mut self) -> Vec<TunnelStatus> {
        let statuses: Vec<TunnelStatus> = self.state.statuses().collect();
        statuses.into_iter().map(|status| self.with_counters(status)).collect()
    }

    fn status(&mut self, name: &TunnelName) -> Option<TunnelStatus> {
        let status = self.state.status(name)?;
        Some(self.with_counters(status))
    }

    fn with_counters(&mut self, mut status: TunnelStatus) -> TunnelStatus {
        let Some(stats) = self.platform.stats(&status.name) else { return status };
        status.sent = stats.sent.read();
        status.received = stats.received.read();
        if let Some(received) = stats.last_received() {
            status.last_received = Some(self.boot.since_epoch(received));
            if status.state == TunnelState::Waiting(None) {
                status.state = TunnelState::Passing;
            }
        }
        status
    }

    /// Removes what the agent made; what is wanted stays on disk.
    async fn clear(mut self) {
        self.lookups.abort_all();
        for op in self.state.removal() {
            if let OpResult::Failed(reason) = self.platform.perform(&op).await {
                tracing::warn!(%reason, "could not be removed");
            }
        }
    }
}

#[allow(clippy::disallowed_methods, reason = "the runtime is where time enters")]
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

#[allow(clippy::disallowed_methods, reason = "the runtime is where time enters")]
fn since_epoch() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}
