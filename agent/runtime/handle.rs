//! The way to a running agent, and what can be asked on it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use crate::agent::session::SessionState;
use crate::proto::command::{Command, CommandError, ErrorKind, Field, Outcome};
use crate::proto::model::{Invalid, MeshName, NodeName, Owner, PublicKey, TunnelStatus};
use crate::proto::session::{Generation, ItemId};

/// How many requests wait at most; more wait with their senders.
const QUEUE: usize = 1024;

/// What the agent is asked for.
pub(super) enum Request {
    Execute(Asked),
    Tunnels(oneshot::Sender<Vec<TunnelStatus>>),
    Overview(oneshot::Sender<Overview>),
    Controller(oneshot::Sender<Option<ControllerStatus>>),
    Leave(oneshot::Sender<Result<usize, CommandError>>),
}

/// A command with who wants it, and who is to be told what came of it.
pub(super) struct Asked {
    pub(super) command: Box<Command>,
    pub(super) owner: Owner,
    pub(super) reply: oneshot::Sender<Result<Outcome, CommandError>>,
}

/// What the agent is asked for and has not begun.
pub(super) struct Requests {
    arriving: mpsc::Receiver<Request>,
    /// What came with commands and is not to be taken with them.
    next: Option<Request>,
}

impl Requests {
    /// What comes first; `None`: nobody can ask any more.
    pub(super) async fn first(&mut self) -> Option<Request> {
        match self.next.take() {
            Some(next) => Some(next),
            None => self.arriving.recv().await,
        }
    }

    /// The commands that can be carried out together with `first`: those that wait right behind it, each about another
    /// tunnel.
    pub(super) fn together(&mut self, first: Asked) -> Vec<Asked> {
        let mut names = BTreeSet::from([first.command.tunnel().clone()]);
        let mut all = vec![first];
        while all.len() < QUEUE
            && let Ok(request) = self.arriving.try_recv()
        {
            let Request::Execute(asked) = request else {
                self.next = Some(request);
                break;
            };
            if !names.insert(asked.command.tunnel().clone()) {
                self.next = Some(Request::Execute(asked));
                break;
            }
            all.push(asked);
        }
        all
    }
}

/// The agent as a whole: what belongs to no tunnel, by reason, and as whom meshes know it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Overview {
    /// Datagrams that arrived at the data port.
    pub datagrams: u64,
    /// Those of them that carried no packet, and keep encrypted tunnels going.
    pub session_messages: u64,
    /// Those of them that belong to no tunnel.
    pub datagrams_dropped: BTreeMap<&'static str, u64>,
    /// Packets from devices that belong to no tunnel.
    pub packets_dropped: BTreeMap<&'static str, u64>,
    /// The keys by which the peers of encrypted tunnels know this host, by mesh.
    pub keys: BTreeMap<MeshName, PublicKey>,
    /// What is wrong with them, in words.
    pub key_faults: Vec<String>,
}

/// What the agent has to do with its controller. Times are since the Unix epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControllerStatus {
    /// The session with it; `None`: none is dialled.
    pub session: Option<SessionStatus>,
    /// The store that the agent belongs to; `None`: none yet.
    pub store_id: Option<String>,
    /// The version of what is kept.
    pub generation: Option<Generation>,
    /// What is not wanted any more and is kept all the same.
    pub held: BTreeSet<ItemId>,
    /// What of the controller's cannot be had, and why.
    pub failures: BTreeMap<ItemId, String>,
}

/// The session with a controller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionStatus {
    /// The node that the agent says it is.
    pub node: NodeName,
    /// Who is dialled.
    pub address: String,
    /// How far it is.
    pub state: SessionState,
    /// Since when.
    pub since: Duration,
    /// When a controller was last heard.
    pub last_heard: Option<Duration>,
    /// Why it is not in step.
    pub trouble: Option<String>,
}

/// The way to a running agent, for every service.
#[derive(Debug, Clone)]
pub struct AgentHandle(mpsc::Sender<Request>);

/// A way to an agent, and where what is asked on it arrives.
pub(super) fn channel() -> (AgentHandle, Requests) {
    let (sender, arriving) = mpsc::channel(QUEUE);
    (AgentHandle(sender), Requests { arriving, next: None })
}

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
        let command = Box::new(command);
        self.ask(|reply| Request::Execute(Asked { command, owner, reply })).await?
    }

    /// All tunnels as they are, by name.
    ///
    /// # Errors
    /// Where the agent is stopping.
    pub async fn tunnels(&self) -> Result<Vec<TunnelStatus>, CommandError> {
        self.ask(Request::Tunnels).await
    }

    /// The agent as a whole.
    ///
    /// # Errors
    /// Where the agent is stopping.
    pub async fn overview(&self) -> Result<Overview, CommandError> {
        self.ask(Request::Overview).await
    }

    /// What the agent has to do with its controller; `None`: it has none.
    ///
    /// # Errors
    /// Where the agent is stopping.
    pub async fn controller(&self) -> Result<Option<ControllerStatus>, CommandError> {
        self.ask(Request::Controller).await
    }

    /// Forgets the controller. Returns how many tunnels went with it.
    ///
    /// # Errors
    /// Where that cannot be kept on disk; nothing changed.
    pub async fn leave(&self) -> Result<usize, CommandError> {
        self.ask(Request::Leave).await?
    }

    async fn ask<T>(&self, request: impl FnOnce(oneshot::Sender<T>) -> Request) -> Result<T, CommandError> {
        let (reply, answer) = oneshot::channel();
        self.0.send(request(reply)).await.map_err(|_| stopping())?;
        answer.await.map_err(|_| stopping())
    }
}
