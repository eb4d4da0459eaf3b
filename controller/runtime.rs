//! The one task that owns the controller's state: it reads the clock, performs effects, and answers.

mod changes;
mod orders;

use std::collections::BTreeMap;
use std::future::Future;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

use crate::controller::audit::Deed;
use crate::controller::diagnosis::Evidence;
use crate::controller::mesh::Mesh;
use crate::controller::plan::{Plan, PlanHash};
use crate::controller::registry::Origin;
use crate::controller::registry::petitions::TooMany;
use crate::controller::state::{
    Connection, ControllerState, Convergence, Effect, Event, Inquiry, NoInquiry, NodeTunnels, Refusal,
    Snapshot,
};
use crate::controller::store::{Change, Store, StoreError};
use crate::controller::stored::Stored;
use crate::controller::trust::{Denial, Draft, Proof, Trust};
use crate::proto::host::clock::{now, since_epoch};
use crate::proto::model::{MeshName, NodeName, PublicKey, TunnelName};
use crate::proto::rate::{Bucket, Rate};
use crate::proto::session::{AgentMessage, ControllerMessage, Findings, Hello};
use crate::proto::trust::Asker;
use crate::proto::trust::{Code, CodeHead, KeyId};

pub use changes::ChangeError;
use changes::{Asked, Change as TrustChange, Changes};
pub use orders::{Applied, OrderError};
use orders::{Order, Orders};

/// How many requests wait at most; more wait with their senders.
const QUEUE: usize = 256;
/// How many requests are answered before anything else is looked at.
const BATCH: usize = 64;
/// How many messages wait for one agent at most. One that is so far behind is not there.
pub const BEHIND: usize = 64;
/// How long a node may take to report its tunnels before its last report has to do.
const REPORT: Duration = Duration::from_secs(1);
/// How long a node may take to try how it reaches others: it waits a second and a half for pings, and three seconds for a port.
const EXAMINATION: Duration = Duration::from_secs(6);
/// How often it is logged that somebody was refused.
const REFUSALS: Rate = Rate { burst: 50, every: Duration::from_secs(1) };
/// How many events are told at once.
const EVENTS: usize = 1_000;
/// How soon a store that cannot be read is read again.
const REREAD: Duration = Duration::from_secs(1);

/// What goes out on a stream.
#[derive(Debug)]
pub enum Outgoing {
    /// A message.
    Message(ControllerMessage),
    /// All that is wanted, to be sent in chunks.
    Snapshot(Snapshot),
    /// The end, and why.
    End(Refusal),
}

/// An agent's stream.
#[derive(Debug)]
pub struct Link {
    /// Who is at its other end.
    pub origin: Origin,
    /// What goes out. It should hold [`BEHIND`].
    pub outgoing: mpsc::Sender<Outgoing>,
    /// Cancelled once nothing that comes in is heeded any more.
    pub ended: CancellationToken,
}

type Look = Box<dyn FnOnce(&ControllerState, Instant, Duration) + Send>;

/// What the controller is asked for.
enum Request {
    Connected(Connection, Box<Link>, Box<Hello>),
    Message(Connection, AgentMessage),
    Closed(Connection),
    Look(Look),
    Order(Order, oneshot::Sender<Result<Applied, OrderError>>),
    Change(Box<dyn TrustChange>),
    Petition(Box<Asking>, oneshot::Sender<Result<Duration, TooMany>>),
    Refused(Option<NodeName>, String),
    Copy(NodeName, IpAddr, oneshot::Sender<bool>),
    Report(NodeName, oneshot::Sender<()>),
    Examine(NodeName, Vec<TunnelName>, oneshot::Sender<Findings>),
}

/// A host that asks to join.
struct Asking {
    node: NodeName,
    key: KeyId,
    source: IpAddr,
    code: CodeHead,
}

/// The controller ends, and answers no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the controller is ending; try again when it is back")]
pub struct Stopping;

/// How far things are, to be compared with what it was before.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Rises whenever the convergence may be another.
    pub convergence: u64,
    /// The number of the last event.
    pub last_event: u64,
}

/// The way to a running controller, for every service.
#[derive(Debug, Clone)]
pub struct ControllerHandle {
    requests: mpsc::Sender<Request>,
    progress: watch::Receiver<Progress>,
    trust: watch::Receiver<Arc<Trust>>,
    connections: Arc<AtomicU64>,
    /// The log lines about refusals.
    refusals: Arc<Mutex<Bucket>>,
}

impl ControllerHandle {
    /// Begins an agent's stream with its first words. Returns its number, for what follows.
    ///
    /// # Errors
    /// Where the controller is stopping; so for all others.
    pub async fn connected(&self, link: Link, hello: Hello) -> Result<Connection, Stopping> {
        let connection = Connection(self.connections.fetch_add(1, Ordering::Relaxed));
        self.send(Request::Connected(connection, Box::new(link), Box::new(hello))).await?;
        Ok(connection)
    }

    /// What an agent says.
    pub async fn message(&self, connection: Connection, message: AgentMessage) -> Result<(), Stopping> {
        self.send(Request::Message(connection, message)).await
    }

    /// An agent's stream has ended.
    pub async fn closed(&self, connection: Connection) -> Result<(), Stopping> {
        self.send(Request::Closed(connection)).await
    }

    /// Looks at the state: meshes, nodes, the status. `look` gets the time and the wall time.
    pub async fn look<T: Send + 'static>(
        &self,
        look: impl FnOnce(&ControllerState, Instant, Duration) -> T + Send + 'static,
    ) -> Result<T, Stopping> {
        let (reply, answer) = oneshot::channel();
        let look = move |state: &ControllerState, now, wall| {
            // Whoever asked may have gone away meanwhile.
            let _ = reply.send(look(state, now, wall));
        };
        self.send(Request::Look(Box::new(look))).await?;
        answer.await.map_err(|_| Stopping)
    }

    /// What applying a mesh would do.
    ///
    /// # Errors
    /// Where too many wait for such an answer, or the controller is stopping.
    pub async fn plan(&self, mesh: Mesh) -> Result<Plan, OrderError> {
        Ok(self.order(Order::Plan(Box::new(mesh))).await?.plan)
    }

    /// Applies a mesh, see [`Basis::apply`](crate::controller::state::Basis::apply). When this returns well the store
    /// has it, and agents are being brought to it.
    ///
    /// # Errors
    /// Why it was refused; nothing changed.
    pub async fn apply(
        &self,
        mesh: Mesh,
        hash: Option<PlanHash>,
        allow_removals: bool,
        asker: Asker,
    ) -> Result<Applied, OrderError> {
        self.order(Order::Apply { mesh: Box::new(mesh), hash, allow_removals, asker }).await
    }

    /// Deletes a mesh, see [`Basis::delete_mesh`](crate::controller::state::Basis::delete_mesh).
    ///
    /// # Errors
    /// Why it was refused; nothing changed.
    pub async fn delete_mesh(
        &self,
        mesh: MeshName,
        allow_removals: bool,
        asker: Asker,
    ) -> Result<Applied, OrderError> {
        self.order(Order::Delete { mesh, allow_removals, asker }).await
    }

    /// Gives a node without an agent a key that was made for it, see
    /// [`Basis::give_key`](crate::controller::state::Basis::give_key).
    ///
    /// # Errors
    /// Why it was refused; nothing changed.
    pub async fn give_key(
        &self,
        mesh: MeshName,
        node: NodeName,
        key: PublicKey,
        asker: Asker,
    ) -> Result<Applied, OrderError> {
        self.order(Order::GiveKey { mesh, node, key, asker }).await
    }

    async fn order(&self, order: Order) -> Result<Applied, OrderError> {
        let (reply, answer) = oneshot::channel();
        self.send(Request::Order(order, reply)).await?;
        answer.await.map_err(|_| Stopping)?
    }

    /// Changes who may join or who may steer. When this returns well the store has it, and [`Self::trust`] says it.
    /// `judge` makes it so in a draft, and may be called again with another; it gets the wall time. Where anything
    /// changes, `deed` is recorded.
    ///
    /// # Errors
    /// Why it was refused; nothing changed.
    pub async fn change<T: Send + 'static>(
        &self,
        deed: Option<Deed>,
        judge: impl FnMut(&mut Draft, Duration) -> Result<T, Denial> + Send + 'static,
    ) -> Result<T, ChangeError> {
        let (reply, answer) = oneshot::channel();
        self.send(Request::Change(Box::new(Asked::new(deed, judge, reply)))).await?;
        answer.await.map_err(|_| Stopping)?
    }

    /// Has a host wait for an operator. Returns when it is to ask again.
    ///
    /// # Errors
    /// Where too many wait, or the controller is stopping.
    pub async fn petition(
        &self,
        node: NodeName,
        key: KeyId,
        source: IpAddr,
        code: CodeHead,
    ) -> Result<Duration, ChangeError> {
        let (reply, answer) = oneshot::channel();
        self.send(Request::Petition(Box::new(Asking { node, key, source, code }), reply)).await?;
        let too_many =
            |TooMany| ChangeError::Refused(Denial::TooMany("too many hosts wait for approval; try later"));
        answer.await.map_err(|_| Stopping)?.map_err(too_many)
    }

    /// Lets a host in that shows this code to whoever sees `root`: one that waits, or has been let in with another word.
    ///
    /// # Errors
    /// Where none does, or it cannot be stored.
    pub async fn approve(
        &self,
        node: NodeName,
        code: Code,
        root: KeyId,
        labels: BTreeMap<String, String>,
        asker: Asker,
    ) -> Result<(), ChangeError> {
        let (asked, head) = (node.clone(), code.head);
        let waiting = self.look(move |state, _, _| {
            let known = state.stored().trust.identities.get(&asked).map(|known| known.key);
            let known = known.filter(|key| CodeHead::of(key, &root) == head);
            state.petition(&asked, head).map(|petition| petition.key).or(known)
        });
        let Some(key) = waiting.await? else {
            return Err(ChangeError::Refused(Denial::UnknownCode(node)));
        };
        let proof = Proof::Approval { by: asker.who.clone(), word: *code.word.as_bytes(), labels };
        let deed = Deed { asker, method: "ApproveNode", what: format!("node {node}") };
        self.change(Some(deed), move |draft, wall| draft.enrol(&node, key, proof.clone(), wall))
            .await
            .map(drop)
    }

    /// Takes note that somebody was refused. Where too much is to be noted, it is not.
    pub fn refused(&self, node: Option<NodeName>, words: String) {
        let is_logged = self.refusals.lock().unwrap_or_else(PoisonError::into_inner).take(REFUSALS, now());
        if is_logged.is_ok() {
            tracing::info!(node = node.as_ref().map(NodeName::as_str), %words, "access was refused");
        }
        let _ = self.requests.try_send(Request::Refused(node, words));
    }

    /// An agent at `source` shows the certificate of `node` under another name. Returns whether that node is there.
    ///
    /// # Errors
    /// Where the controller is ending.
    pub async fn is_copy(&self, node: NodeName, source: IpAddr) -> Result<bool, Stopping> {
        let (reply, answer) = oneshot::channel();
        self.send(Request::Copy(node, source, reply)).await?;
        answer.await.map_err(|_| Stopping)
    }

    /// Who may join and who may steer, as it is stored.
    pub fn trust(&self) -> Arc<Trust> {
        self.trust.borrow().clone()
    }

    /// The tunnels of a node as they are now, or as last reported where it does not say within a second; `None`:
    /// there is no such node.
    pub async fn node_tunnels(&self, node: NodeName) -> Result<Option<NodeTunnels>, Stopping> {
        let (reply, answer) = oneshot::channel();
        self.send(Request::Report(node.clone(), reply)).await?;
        // Dropped: it has no session, and none comes.
        let _ = tokio::time::timeout(REPORT, answer).await;
        self.look(move |state, now, _| state.node_tunnels(&node, now)).await
    }

    /// What is wrong between two nodes, in a mesh or in the first that joins them: both are asked, and a third one.
    ///
    /// # Errors
    /// Where nothing joins them.
    pub async fn diagnose(
        &self,
        ends: [NodeName; 2],
        mesh: Option<MeshName>,
    ) -> Result<Result<(Inquiry, Evidence), NoInquiry>, Stopping> {
        let inquiry = match self.look(move |state, now, _| state.inquiry(ends, mesh.as_ref(), now)).await? {
            Ok(inquiry) => inquiry,
            Err(error) => return Ok(Err(error)),
        };
        let asked =
            inquiry.examinations.iter().map(|(node, tunnels)| self.examine(node.clone(), tunnels.clone()));
        let answers = futures_util::future::join_all(asked).await;
        let nodes = inquiry.examinations.iter().map(|(node, _)| node.clone());
        let found = nodes.zip(answers).filter_map(|(node, found)| Some((node, found?))).collect();
        let apart = NoInquiry::Apart(inquiry.ends[0].clone(), inquiry.ends[1].clone());
        self.look(move |state, now, _| {
            let evidence = state.evidence(&inquiry, &found, now);
            // The mesh may have been deleted meanwhile.
            evidence.map(|evidence| (inquiry, evidence)).ok_or(apart)
        })
        .await
    }

    /// What a node finds when it tries how it reaches the peers of tunnels; `None`: it does not answer.
    async fn examine(&self, node: NodeName, tunnels: Vec<TunnelName>) -> Option<Findings> {
        let (reply, answer) = oneshot::channel();
        self.send(Request::Examine(node, tunnels, reply)).await.ok()?;
        tokio::time::timeout(EXAMINATION, answer).await.ok()?.ok()
    }

    /// How far the nodes are. [`Self::progress`] says when to look again.
    pub async fn convergence(&self) -> Result<Convergence, Stopping> {
        self.look(|state, now, _| state.convergence(now)).await
    }

    /// Events with a number above `number`, the oldest first, at most 1,000. [`Self::progress`] says when there are
    /// more.
    pub async fn events_after(&self, number: u64) -> Result<Vec<Arc<Event>>, Stopping> {
        self.look(move |state, _, _| state.events_after(number).take(EVENTS).cloned().collect()).await
    }

    /// How far things are, to wait for a change. It ends with the controller.
    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.clone()
    }

    async fn send(&self, request: Request) -> Result<(), Stopping> {
        self.requests.send(request).await.map_err(|_| Stopping)
    }
}

/// The other end of a handle, for a runtime.
#[derive(Debug)]
pub struct Requests {
    requests: mpsc::Receiver<Request>,
    progress: watch::Sender<Progress>,
    trust: watch::Sender<Arc<Trust>>,
}

/// A handle, before there is anything behind it: what it is asked waits.
pub fn channel() -> (ControllerHandle, Requests) {
    let (sender, requests) = mpsc::channel(QUEUE);
    let (progress, seen) = watch::channel(Progress::default());
    let (trust, trusted) = watch::channel(Arc::default());
    let connections = Arc::new(AtomicU64::new(1));
    let refusals = Arc::default();
    let handle = ControllerHandle { requests: sender, progress: seen, trust: trusted, connections, refusals };
    (handle, Requests { requests, progress, trust })
}

/// What an answered watch or read brings.
enum News {
    Change(Change),
    /// The watch has ended.
    Missed,
    Reread(Box<Stored>),
}

/// The state with everything that acts for it.
pub struct Runtime {
    state: ControllerState,
    store: Arc<dyn Store>,
    requests: Requests,
    links: BTreeMap<Connection, Link>,
    /// Changes of the store; while it is read again there are none.
    changes: Option<ReceiverStream<Change>>,
    rereads: JoinSet<Stored>,
    commits: JoinSet<Result<u64, StoreError>>,
    orders: Orders,
    trust_changes: Changes,
    /// Who waits for a report with this number, or a later one.
    reports: Vec<(NodeName, u64, oneshot::Sender<()>)>,
    /// Who waits for the answer to an examination.
    examinations: Vec<(NodeName, u64, oneshot::Sender<Findings>)>,
}

impl Runtime {
    /// A runtime for what `store` holds, on the start with this number.
    pub fn new(stored: Stored, start: u64, store: Arc<dyn Store>, requests: Requests) -> Self {
        requests.trust.send_replace(Arc::clone(&stored.trust));
        let changes = Some(store.watch(stored.revision));
        Self {
            state: ControllerState::new(stored, start, now(), since_epoch()),
            orders: Orders::new(Arc::clone(&store)),
            trust_changes: Changes::new(Arc::clone(&store)),
            store,
            requests,
            links: BTreeMap::new(),
            changes,
            rereads: JoinSet::new(),
            commits: JoinSet::new(),
            reports: Vec::new(),
            examinations: Vec::new(),
        }
    }

    /// Works until `shutdown`, then ends all sessions.
    pub async fn run(mut self, shutdown: impl Future<Output = ()>) {
        let mut shutdown = std::pin::pin!(shutdown);
        let mut batch = Vec::with_capacity(BATCH);
        self.settle();
        loop {
            let timeout = tokio::time::Instant::from_std(self.state.poll_timeout());
            tokio::select! {
                () = &mut shutdown => break,
                1.. = self.requests.requests.recv_many(&mut batch, BATCH) => {
                    for request in batch.drain(..) {
                        self.answer(request);
                    }
                }
                news = news(&mut self.changes, &mut self.rereads) => self.take_in(news),
                Some(committed) = self.commits.join_next() => {
                    let lost = |error: tokio::task::JoinError| StoreError::Unavailable(error.to_string());
                    let committed = committed.map_err(lost).flatten();
                    self.state.handle_commit_result(committed, now(), since_epoch());
                }
                Some(step) = self.orders.next() => {
                    if let Some(reason) = step.failure() {
                        self.state.handle_store_failure(reason.to_owned(), now(), since_epoch());
                    }
                    self.orders.settle(step);
                }
                Some(commit) = self.trust_changes.next() => {
                    if let Some(reason) = self.trust_changes.settle(commit) {
                        self.state.handle_store_failure(reason, now(), since_epoch());
                    }
                }
                () = tokio::time::sleep_until(timeout) => self.state.handle_timeout(now(), since_epoch()),
            }
            self.settle();
        }
        self.state.handle_shutdown();
        self.settle();
    }

    fn answer(&mut self, request: Request) {
        let (now, wall) = (now(), since_epoch());
        match request {
            Request::Connected(connection, link, hello) => {
                let origin = link.origin;
                self.links.insert(connection, *link);
                self.state.handle_connected(connection, origin, *hello, now, wall);
            }
            Request::Message(connection, message) => {
                self.state.handle_message(connection, message, now, wall);
                self.answer_examinations();
            }
            Request::Closed(connection) => {
                self.links.remove(&connection);
                self.state.handle_closed(connection, now, wall);
            }
            Request::Look(look) => look(&self.state, now, wall),
            Request::Order(order, reply) => self.orders.take_in(order, reply),
            Request::Change(change) => self.trust_changes.take_in(change),
            Request::Petition(asking, reply) => {
                let Asking { node, key, source, code } = *asking;
                // Whoever asked may have gone away meanwhile.
                let _ = reply.send(self.state.handle_petition(&node, key, source, code, now, wall));
            }
            Request::Copy(node, source, reply) => {
                // Whoever asked may have gone away meanwhile.
                let _ = reply.send(self.state.handle_copy(&node, source, now, wall));
            }
            Request::Refused(node, words) => self.state.handle_refused(node.as_ref(), words, now, wall),
            Request::Report(node, reply) => {
                if let Some(request) = self.state.request_report(&node) {
                    self.reports.push((node, request, reply));
                }
            }
            Request::Examine(node, tunnels, reply) => {
                if let Some(request) = self.state.request_examination(&node, tunnels) {
                    self.examinations.push((node, request, reply));
                }
            }
        }
        // What one request brings about is not held up by those behind it.
        self.perform();
    }

    fn take_in(&mut self, news: News) {
        match news {
            News::Change(change) => self.state.handle_change(&change, now(), since_epoch()),
            News::Missed => {
                tracing::warn!("changes of the store were missed; it is read again");
                self.changes = None;
                self.rereads.spawn(reread(Arc::clone(&self.store)));
            }
            News::Reread(stored) => {
                self.changes = Some(self.store.watch(stored.revision));
                self.state.handle_reload(*stored, now(), since_epoch());
            }
        }
    }

    /// Performs what there is to do, and tells those who wait.
    fn settle(&mut self) {
        self.perform();
        self.orders.handle_state(&self.state, since_epoch());
        // First what is answered is true for all who look.
        let trust = &self.state.stored().trust;
        self.requests.trust.send_if_modified(|told| {
            let is_news = !Arc::ptr_eq(told, trust);
            told.clone_from(trust);
            is_news
        });
        self.trust_changes.handle_state(&self.state, since_epoch());
        let state = &self.state;
        self.reports.retain(|(node, request, reply)| !reply.is_closed() && state.answered(node) < *request);
        self.answer_examinations();
        let state = &self.state;
        let progress = Progress { convergence: state.progress(), last_event: state.last_event() };
        self.requests.progress.send_if_modified(|told| std::mem::replace(told, progress) != progress);
    }

    /// Tells those who wait for an examination what was found: the next one of a node takes the place of this one.
    fn answer_examinations(&mut self) {
        for (node, request, reply) in std::mem::take(&mut self.examinations) {
            match self.state.findings(&node).filter(|found| found.request == request) {
                // Whoever asked may have gone away meanwhile.
                Some(found) => _ = reply.send(found.clone()),
                None if reply.is_closed() => {}
                None => self.examinations.push((node, request, reply)),
            }
        }
    }

    fn perform(&mut self) {
        while let Some(effect) = self.state.poll_effect() {
            match effect {
                Effect::Send(connection, message) => self.send(connection, Outgoing::Message(message)),
                Effect::SendSnapshot(connection, snapshot) => {
                    self.send(connection, Outgoing::Snapshot(snapshot));
                }
                Effect::Close(connection, refusal) => {
                    if let Some(link) = self.links.remove(&connection) {
                        tracing::debug!(source = %link.origin.path.source, %refusal, "a session ends");
                        // Where no more can be sent, the end without a reason has to do.
                        let _ = link.outgoing.try_send(Outgoing::End(refusal));
                        link.ended.cancel();
                    }
                }
                Effect::Commit(transaction) => {
                    let store = Arc::clone(&self.store);
                    self.commits.spawn(async move { store.commit(transaction).await });
                }
            }
        }
    }

    fn send(&mut self, connection: Connection, outgoing: Outgoing) {
        let Some(link) = self.links.get(&connection) else { return };
        if link.outgoing.try_send(outgoing).is_err() {
            tracing::debug!(source = %link.origin.path.source, "an agent does not read what it is sent; its session ends");
            if let Some(link) = self.links.remove(&connection) {
                link.ended.cancel();
            }
            self.state.handle_closed(connection, now(), since_epoch());
        }
    }
}

async fn news(changes: &mut Option<ReceiverStream<Change>>, rereads: &mut JoinSet<Stored>) -> News {
    match changes {
        Some(changes) => changes.next().await.map_or(News::Missed, News::Change),
        None => loop {
            match rereads.join_next().await {
                Some(Ok(stored)) => return News::Reread(Box::new(stored)),
                Some(Err(_)) => return News::Missed,
                None => std::future::pending().await,
            }
        },
    }
}

/// Reads a store until it can be read.
async fn reread(store: Arc<dyn Store>) -> Stored {
    loop {
        match store.read("").await {
            Ok((entries, revision)) => return Stored::from_entries(entries, revision),
            Err(error) => tracing::error!(%error, "the store cannot be read; it is tried again"),
        }
        tokio::time::sleep(REREAD).await;
    }
}
