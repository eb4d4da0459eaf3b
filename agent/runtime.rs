//! The one task that owns the agent's state: it reads the clock, performs operations, and answers.

mod changes;
mod handle;
mod shown;
mod uplink;

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::task::JoinSet;

use self::changes::{Changed, LinkTold};
pub use self::handle::{AgentHandle, ControllerStatus, Overview, SessionStatus};
use self::handle::{Asked, Request, Requests};
use self::shown::BootTime;
pub use self::uplink::Uplink;
use crate::agent::check;
use crate::agent::credentials::Credentials;
use crate::agent::datapath::DatapathEvent;
use crate::agent::examine::{Subject, examine};
use crate::agent::os::clock;
use crate::agent::os::netlink::watch::Watch;
use crate::agent::platform::Platform;
use crate::agent::reconcile::Op;
use crate::agent::session::Base;
use crate::agent::state::{AgentState, OpResult, Wanted};
use crate::agent::store::Store;
use crate::proto::command::{Command, CommandError, ErrorKind, Field, Outcome};
use crate::proto::host::clock::now;
use crate::proto::host::credential::CredentialError;
use crate::proto::model::{DeviceName, Framing, Invalid, Owner, TunnelName, TunnelState};
use crate::proto::session::{Findings, ItemId};

/// How often it is looked whether a controller is to be told of tunnels.
const LOOK: Duration = Duration::from_secs(1);
/// How many examinations are under way at most.
const EXAMINATIONS: usize = 4;
/// Of how many prefixes of a tunnel it is looked where their packets go.
const PREFIXES: usize = 8;

type Resolved = (String, Result<Vec<IpAddr>, String>);

/// The state with everything that acts for it.
pub struct Runtime {
    state: AgentState,
    platform: Platform,
    store: Arc<Store>,
    credentials: Arc<Credentials>,
    requests: Requests,
    events: mpsc::Receiver<DatapathEvent>,
    lookups: JoinSet<Resolved>,
    examinations: JoinSet<Findings>,
    uplink: Option<Uplink>,
    boot: BootTime,
    watch: Watch,
    changed: Changed,
    /// What was logged of links.
    links: BTreeMap<TunnelName, LinkTold>,
    /// The devices of which it was logged that their tunnels are not encrypted, or, with `true`, that they take what is not.
    plain: BTreeSet<(DeviceName, bool)>,
}

impl Runtime {
    /// A runtime, and the way to it.
    pub fn new(
        state: AgentState,
        platform: Platform,
        store: Store,
        credentials: Arc<Credentials>,
        events: mpsc::Receiver<DatapathEvent>,
        watch: Watch,
    ) -> (Self, AgentHandle) {
        let (handle, requests) = handle::channel();
        let runtime = Self {
            state,
            platform,
            store: Arc::new(store),
            credentials,
            requests,
            events,
            lookups: JoinSet::new(),
            examinations: JoinSet::new(),
            uplink: None,
            boot: BootTime::read(),
            watch,
            changed: Changed::default(),
            links: BTreeMap::new(),
            plain: BTreeSet::new(),
        };
        (runtime, handle)
    }

    /// What is kept of a controller.
    pub fn base(&self) -> Option<&Base> {
        self.state.base()
    }

    /// Follows a controller from now on.
    pub fn follow(&mut self, uplink: Uplink) {
        self.uplink = Some(uplink);
        self.tell_keys();
    }

    /// Brings up what was kept.
    ///
    /// # Errors
    /// Where the kernel's state cannot be read.
    pub async fn restore(&mut self) -> io::Result<()> {
        let actual = self.platform.observe().await?;
        self.state.handle_observed(actual, now());
        let keys = self.platform.open_keys();
        self.state.handle_keys(keys, now());
        self.settle().await;
        for status in self.state.statuses() {
            if let TunnelState::Failed(reason) = &status.state {
                tracing::warn!(tunnel = %status.name, %reason, "tunnel cannot be brought up yet");
            }
        }
        Ok(())
    }

    /// Works until `shutdown`, then removes what the agent made.
    ///
    /// # Errors
    /// Where it ends before, since the data path did, in words why.
    pub async fn run(mut self, shutdown: impl Future<Output = ()>) -> Result<(), String> {
        let mut shutdown = std::pin::pin!(shutdown);
        let ended = loop {
            let timeout = tokio::time::Instant::from_std(self.poll_timeout(now()));
            tokio::select! {
                () = &mut shutdown => break Ok(()),
                Some(request) = self.requests.first() => self.answer(request).await,
                Some(event) = self.events.recv() => match event {
                    DatapathEvent::DeviceGone => self.state.handle_device_event(now()),
                    DatapathEvent::Ended(why) => {
                        tracing::error!(%why, "the data path is broken: the agent ends");
                        break Err(why);
                    }
                    DatapathEvent::PathNarrowed(address) => self.state.handle_path_narrowed(address, now()),
                    // It is looked at whatever happens.
                    DatapathEvent::PeerMoved => {}
                    DatapathEvent::LinkChanged => self.note_links(),
                },
                Some(resolved) = self.lookups.join_next() => {
                    if let Ok((host, answer)) = resolved {
                        self.state.handle_resolved(&host, answer, now());
                    }
                }
                Some(findings) = self.examinations.join_next() => {
                    if let (Ok(findings), Some(uplink)) = (findings, &mut self.uplink) {
                        uplink.handle_findings(findings, now());
                    }
                }
                change = self.watch.changed() => self.note_change(change),
                () = Uplink::ready(&mut self.uplink) => {}
                () = tokio::time::sleep_until(timeout) => self.state.handle_timeout(now()),
            }
            self.look_at_host();
            self.look_at_links();
            self.settle().await;
            self.keep_in_step().await;
        };
        self.clear().await;
        ended
    }

    fn poll_timeout(&self, now: Instant) -> Instant {
        let look = self.uplink.as_ref().filter(|uplink| uplink.wants_tunnels()).map(|_| now + LOOK);
        let session = self.uplink.as_ref().and_then(Uplink::poll_timeout);
        let due = [look, session, self.changed.due, self.changed.links_due].into_iter().flatten();
        due.fold(self.state.poll_timeout(), Instant::min)
    }

    async fn answer(&mut self, request: Request) {
        // Whoever asked may have gone away meanwhile.
        match request {
            Request::Execute(asked) => {
                let all = self.requests.together(asked);
                self.execute(all).await;
            }
            Request::Tunnels(reply) => {
                let _ = reply.send(self.tunnels());
            }
            Request::Controller(reply) => {
                let _ = reply.send(self.controller());
            }
            Request::Leave(reply) => {
                let _ = reply.send(self.leave().await);
            }
            Request::Overview(reply) => {
                let stats = self.platform.agent_stats();
                let _ = reply.send(Overview {
                    datagrams: stats.datagrams(),
                    session_messages: stats.session_messages(),
                    datagrams_dropped: stats.datagrams_dropped.read(),
                    packets_dropped: stats.packets_dropped.read(),
                    keys: self.state.keys(),
                    key_faults: self.platform.key_faults(),
                });
            }
        }
    }

    /// Carries out commands, each about another tunnel, with one look at the host and one write to disk.
    async fn execute(&mut self, all: Vec<Asked>) {
        // They are judged against the host as it is now. Where it cannot be read the last reading stands.
        if let Ok(actual) = self.platform.observe().await {
            self.state.handle_observed(actual, now());
        }
        let commands: Vec<(&Command, Owner)> =
            all.iter().map(|asked| (&*asked.command, asked.owner)).collect();
        let (change, verdicts) = self.state.handle_commands(&commands);
        let mut unkept = None;
        if change.is_change
            && let Err(error) = self.save(&change.wanted).await
        {
            unkept = Some(not_kept(&error));
        } else {
            for ((command, owner), _) in
                commands.iter().zip(&verdicts).filter(|(_, verdict)| **verdict == Ok(true))
            {
                tracing::info!(tunnel = %command.tunnel(), ?owner, "{}", match command {
                    Command::Add { .. } => "tunnel is wanted",
                    Command::Delete { .. } => "tunnel is no longer wanted",
                });
            }
            self.state.commit(change, now());
            self.settle().await;
        }
        for (Asked { command, reply, .. }, verdict) in all.into_iter().zip(verdicts) {
            let outcome = match (verdict, &unkept) {
                (Err(error), _) => Err(error),
                (Ok(_), Some(error)) => Err(error.clone()),
                (Ok(_), None) => Ok(self.outcome(&command)),
            };
            // Whoever asked may have gone away meanwhile.
            let _ = reply.send(outcome);
        }
    }

    fn outcome(&mut self, command: &Command) -> Outcome {
        let tunnel = command.tunnel();
        match self.status(tunnel) {
            Some(status) => Outcome::Added { status: Box::new(status), notes: self.state.notes(tunnel) },
            None => Outcome::Deleted,
        }
    }

    async fn save(&self, wanted: &Wanted) -> io::Result<()> {
        let (store, wanted) = (Arc::clone(&self.store), wanted.clone());
        tokio::task::spawn_blocking(move || store.save(&wanted)).await.map_err(io::Error::other).flatten()
    }

    /// Performs operations until there are none.
    async fn settle(&mut self) {
        self.attend();
        self.state.handle_roamed(self.platform.roamed(), now());
        self.state.handle_carried(self.platform.carried(), now());
        self.state.handle_silent(self.platform.silent(), now());
        self.choose_endpoints();
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
            self.tell_repairs();
            // A thousand operations take a while, and a controller that hears nothing takes this agent for dead.
            self.attend();
        }
        let desired = self.state.desired();
        self.platform.retain_stats(|tunnel| desired.tunnels.contains_key(tunnel));
        self.links.retain(|tunnel, _| desired.tunnels.contains_key(tunnel));
        self.log_plain();
    }

    /// Logs of each device once that it has tunnels that are not encrypted, or take what is not.
    fn log_plain(&mut self) {
        let tunnels = self.state.desired().tunnels.values();
        let plain = tunnels.filter(|tunnel| tunnel.takes_plain());
        let plain: BTreeSet<(DeviceName, bool)> =
            plain.map(|tunnel| (tunnel.device.clone(), tunnel.is_encrypted())).collect();
        for (device, is_bridge) in plain.difference(&self.plain) {
            match is_bridge {
                false => {
                    tracing::warn!(%device, "its tunnels are not encrypted: whoever can read the underlay reads them");
                }
                true => tracing::warn!(%device, "its tunnels take unencrypted packets, too"),
            }
        }
        self.plain = plain;
    }

    /// Takes in what a controller has said so far, and says what is due.
    fn attend(&mut self) {
        let Some(uplink) = &mut self.uplink else { return };
        uplink.attend(now());
        self.state.handle_second(uplink.is_second(), now());
        if let Some(addresses) = uplink.take_addresses() {
            self.state.handle_controllers(addresses, now());
        }
    }

    /// Makes real what a controller wants, and tells it how the tunnels are.
    async fn keep_in_step(&mut self) {
        self.tell_keys();
        self.examine().await;
        while let Some(base) = self.uplink.as_mut().and_then(Uplink::take_base) {
            let outcome = self.keep(base).await;
            self.tell_keys();
            if let Some(uplink) = &mut self.uplink {
                uplink.handle_kept(outcome, now());
            }
        }
        if let Some(uplink) = self.uplink.as_mut().filter(|uplink| uplink.wants_links()) {
            let links = self.platform.link_views(clock::since_boot());
            uplink.handle_links(&links, now());
        }
        if self.uplink.as_ref().is_some_and(Uplink::wants_tunnels) {
            let (reports, failures) = (self.reports(), self.failures());
            if let Some(uplink) = &mut self.uplink {
                uplink.handle_tunnels(reports, failures, check::ip_forwarding(), now());
            }
        }
    }

    /// Begins what a controller wants tried. Where that is too much at once, it hears nothing.
    async fn examine(&mut self) {
        let Some(asked) = self.uplink.as_mut().and_then(Uplink::take_examination) else { return };
        if self.examinations.len() >= EXAMINATIONS {
            return;
        }
        let mut subjects = Vec::new();
        for tunnel in asked.tunnels {
            subjects.extend(self.subject(tunnel).await);
        }
        self.examinations.spawn(examine(asked.request, subjects));
    }

    /// What is known of the way to the peer of a tunnel.
    async fn subject(&mut self, tunnel: TunnelName) -> Option<Subject> {
        let status = self.status(&tunnel)?;
        let wanted = &status.tunnel;
        let mut strayed = None;
        for prefix in wanted.allowed_prefixes.iter().map(|allowed| allowed.prefix).take(PREFIXES) {
            let Some(address) = prefix.hosts().next() else { continue };
            if let Some(taken) = self.platform.strays(address, &wanted.device).await {
                strayed = Some((address, taken));
                break;
            }
        }
        Some(Subject {
            // What is at an address that was learnt may be a router's that translates it.
            endpoint: status.endpoint.filter(|_| self.platform.roamed_to(&tunnel).is_none()),
            is_tolerant: wanted.framing != Framing::Pi,
            strayed,
            other_key: self.platform.other_key(&tunnel, clock::since_boot()),
            tunnel,
        })
    }

    /// Has a controller told of the keys by which this host is known.
    fn tell_keys(&mut self) {
        if let Some(uplink) = &mut self.uplink {
            uplink.handle_keys(self.state.keys(), now());
        }
    }

    /// Keeps on disk what a controller wants, then tries it. Returns what of it cannot be had, and why.
    async fn keep(&mut self, base: Base) -> Result<BTreeMap<ItemId, String>, String> {
        if let Ok(actual) = self.platform.observe().await {
            self.state.handle_observed(actual, now());
        }
        let generation = base.generation;
        let change = self.state.handle_wanted(Some(base));
        if change.is_change {
            self.save(&change.wanted).await.map_err(|error| error.to_string())?;
            tracing::info!(%generation, "this is what the controller wants");
        }
        self.state.commit(change, now());
        self.settle().await;
        // What the kernel said that it did is not what is acknowledged, but what it has.
        self.state.handle_device_event(now());
        self.settle().await;
        Ok(self.failures())
    }

    async fn leave(&mut self) -> Result<usize, CommandError> {
        let change = self.state.handle_wanted(None);
        if change.is_change {
            self.save(&change.wanted).await.map_err(|error| not_kept(&error))?;
        }
        // What was wanted is had again from the controller, and who this agent is not.
        self.credentials.forget().map_err(|error| match error {
            CredentialError::Io(error) => not_kept(&error),
            other
            @ (CredentialError::Malformed(_) | CredentialError::Tls(_) | CredentialError::Crypto(_)) => {
                not_kept(&io::Error::other(other))
            }
        })?;
        if let Some(uplink) = &mut self.uplink {
            uplink.end(now());
        }
        let before = self.state.desired().tunnels.len();
        self.state.commit(change, now());
        self.state.handle_controllers(BTreeSet::new(), now());
        self.settle().await;
        tracing::info!("the controller is forgotten, and its tunnels are gone");
        Ok(before - self.state.desired().tunnels.len())
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

    /// Removes what the agent made; what is wanted stays on disk.
    async fn clear(mut self) {
        self.lookups.abort_all();
        self.examinations.abort_all();
        if let Some(uplink) = &mut self.uplink {
            uplink.end(now());
        }
        for op in self.state.removal() {
            if let OpResult::Failed(reason) = self.platform.perform(&op).await {
                tracing::warn!(%reason, "could not be removed");
            }
        }
        if let Some(uplink) = self.uplink {
            uplink.drain().await;
        }
    }
}

fn not_kept(error: &io::Error) -> CommandError {
    let remedy = if error.kind() == io::ErrorKind::ReadOnlyFilesystem {
        "mount the file system of the agent's state directory for writing; nothing has changed"
    } else {
        "make room in the agent's state directory; nothing has changed"
    };
    CommandError::new(
        ErrorKind::Storage,
        Field::Command,
        "",
        Invalid::new(format!("cannot be kept on disk: {error}"), remedy),
    )
}
