//! AgentControl: the agents' sessions on their streams.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::Stream;
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;
use tonic::{Code, Request, Response, Status, Streaming};
use tonic_types::{ErrorDetails, StatusExt};

use crate::controller::registry::{Origin, Path};
use crate::controller::runtime::{BEHIND, ControllerHandle, Link, Outgoing};
use crate::controller::state::{Refusal, Snapshot};
use crate::proto::convert;
use crate::proto::host::accept::Peer;
use crate::proto::host::clock::now;
use crate::proto::rate::{Bucket, Rate};
use crate::proto::session::{
    AgentMessage, ControllerMessage, Digest, Generation, Hello, Item, Items, Removals, SnapshotChunk,
    SnapshotEnd,
};
use crate::proto::trust::Caller;
use crate::proto::v1;
use crate::proto::v1::agent_control_server::AgentControl;

/// How long an agent may take for its first words.
const HELLO: Duration = Duration::from_secs(3);
/// How fast an agent is listened to. One that says more is heard later: the others are not to wait for it.
const PACE: Rate = Rate { burst: 200, every: Duration::from_millis(20) };
/// The most content of one chunk of a snapshot, in bytes, but for a single item that is longer: on a link of 1 kB/s a
/// heartbeat still gets through in time.
const CHUNK: usize = 8 << 10;

/// The service that agents dial.
#[derive(Debug, Clone)]
pub struct Control {
    controller: ControllerHandle,
    readers: TaskTracker,
}

impl Control {
    /// A service for `controller`.
    pub fn new(controller: ControllerHandle) -> Self {
        Self { controller, readers: TaskTracker::new() }
    }
}

#[tonic::async_trait]
impl AgentControl for Control {
    type SessionStream = Outbound;

    async fn session(
        &self,
        request: Request<Streaming<v1::AgentMessage>>,
    ) -> Result<Response<Outbound>, Status> {
        let Some(peer) = request.extensions().get::<Peer>().cloned() else {
            return Err(Status::internal("the connection has no address"));
        };
        if let Err(retry_after) = peer.begin(now()) {
            return Err(refused(&Refusal::TooMany { retry_after }));
        }
        let (outgoing, waiting) = mpsc::channel(BEHIND);
        let ended = CancellationToken::new();
        let outbound = Outbound { waiting, chunks: None, _reader: ended.clone().drop_guard() };
        let shown = peer.shown.as_ref().and_then(|shown| shown.as_ref().ok());
        let origin = Origin {
            path: Path { source: peer.source, local: peer.local },
            key: shown.map(|shown| shown.key),
        };
        let link = Link { origin, outgoing, ended };
        let caller = request.extensions().get::<Caller>().cloned();
        self.readers.spawn(read(self.controller.clone(), peer, caller, link, request.into_inner()));
        Ok(Response::new(outbound))
    }
}

/// Brings what an agent says to the controller, until one of both ends the session.
async fn read(
    controller: ControllerHandle,
    peer: Peer,
    caller: Option<Caller>,
    link: Link,
    mut messages: Streaming<v1::AgentMessage>,
) {
    let ended = link.ended.clone();
    let hello = match first_words(&mut messages).await.and_then(|hello| of_caller(hello, caller.as_ref())) {
        Ok(hello) => hello,
        Err(refusal) => {
            let refusal = named(refusal, &controller, &peer).await;
            if let Refusal::Foreign { is, .. } = &refusal {
                controller.refused(Some(is.clone()), format!("a session from {}: {refusal}", peer.source));
            }
            // Whoever is gone does not hear it.
            let _ = link.outgoing.send(Outgoing::End(refusal)).await;
            return;
        }
    };
    let _greeted = peer.greet();
    let outgoing = link.outgoing.clone();
    let Ok(connection) = controller.connected(link, hello).await else {
        let _ = outgoing.send(Outgoing::End(Refusal::Restarting)).await;
        return;
    };
    // The sender of what goes out is the controller's alone: dropped, it ends the stream.
    let outgoing = outgoing.downgrade();
    let mut pace = Bucket::default();
    loop {
        let next = async {
            while let Err(again) = pace.take(PACE, now()) {
                tokio::time::sleep_until(again.into()).await;
            }
            messages.message().await
        };
        let message = tokio::select! {
            () = ended.cancelled() => break,
            message = next => message,
        };
        // A stream that ends without Goodbye is as good as one that fails.
        let Ok(Some(message)) = message else { break };
        match convert::session::agent_message(message) {
            Ok(Some(message)) => {
                if controller.message(connection, message).await.is_err() {
                    break;
                }
            }
            // A later release may say more than this one understands.
            Ok(None) => {}
            Err(error) => {
                if let Some(outgoing) = outgoing.upgrade() {
                    let _ = outgoing.try_send(Outgoing::End(Refusal::Invalid(error.to_string())));
                }
                break;
            }
        }
    }
    let _ = controller.closed(connection).await;
}

/// A refusal as it is told: who shows the certificate of a node that is there under another name is a copy of its host.
async fn named(refusal: Refusal, controller: &ControllerHandle, peer: &Peer) -> Refusal {
    let Refusal::Foreign { is, claims } = refusal else { return refusal };
    match controller.is_copy(is.clone(), peer.source).await {
        Ok(true) => Refusal::Copied { is, claims },
        Ok(false) | Err(_) => Refusal::Foreign { is, claims },
    }
}

/// The first words, where whoever says them is the node that they are of.
fn of_caller(hello: Hello, caller: Option<&Caller>) -> Result<Hello, Refusal> {
    match caller {
        Some(Caller::Agent(node)) if *node != hello.node => {
            Err(Refusal::Foreign { is: node.clone(), claims: hello.node })
        }
        Some(Caller::Agent(_) | Caller::Claimant) => Ok(hello),
        Some(Caller::Stranger(_) | Caller::Operator(..)) | None => Err(Refusal::NotJoined(hello.node)),
    }
}

async fn first_words(messages: &mut Streaming<v1::AgentMessage>) -> Result<Hello, Refusal> {
    let invalid = |why: &str| Refusal::Invalid(why.to_owned());
    let first = tokio::time::timeout(HELLO, messages.message()).await;
    let first = first.map_err(|_| invalid("hello: did not come within 3 s"))?;
    let first = first.map_err(|status| invalid(status.message()))?;
    let first = first.ok_or_else(|| invalid("hello: did not come"))?;
    match convert::session::agent_message(first).map_err(|error| invalid(&error.to_string()))? {
        Some(AgentMessage::Hello(hello)) => Ok(*hello),
        Some(
            AgentMessage::Ack(_)
            | AgentMessage::Resync(_)
            | AgentMessage::Heartbeat(_)
            | AgentMessage::Report(_)
            | AgentMessage::Keys(_)
            | AgentMessage::LinkStates(_)
            | AgentMessage::LinkFigures(_)
            | AgentMessage::Repaired { .. }
            | AgentMessage::Findings(_)
            | AgentMessage::Goodbye
            | AgentMessage::Refusal(_),
        )
        | None => Err(invalid("hello: is to be said first")),
    }
}

/// The end of a stream as gRPC says it; `None`: a good end.
fn status(refusal: &Refusal) -> Option<Status> {
    (*refusal != Refusal::Goodbye).then(|| refused(refusal))
}

fn refused(refusal: &Refusal) -> Status {
    let code = match refusal {
        Refusal::AlreadyConnected | Refusal::Copied { .. } => Code::AlreadyExists,
        Refusal::TooMany { .. } => Code::ResourceExhausted,
        Refusal::Superseded => Code::Aborted,
        Refusal::Silent | Refusal::NotAcknowledged => Code::DeadlineExceeded,
        Refusal::Invalid(_) => Code::InvalidArgument,
        Refusal::Goodbye => Code::Ok,
        Refusal::Restarting => Code::Unavailable,
        Refusal::NotJoined(_) | Refusal::Unproven(_) | Refusal::Foreign { .. } => Code::PermissionDenied,
        Refusal::Expired => Code::Unauthenticated,
    };
    let details = match refusal {
        Refusal::TooMany { retry_after } => ErrorDetails::with_retry_info(Some(*retry_after)),
        Refusal::AlreadyConnected
        | Refusal::Superseded
        | Refusal::Silent
        | Refusal::NotAcknowledged
        | Refusal::Invalid(_)
        | Refusal::Goodbye
        | Refusal::Restarting
        | Refusal::NotJoined(_)
        | Refusal::Unproven(_)
        | Refusal::Foreign { .. }
        | Refusal::Copied { .. }
        | Refusal::Expired => ErrorDetails::new(),
    };
    Status::with_error_details(code, refusal.to_string(), details)
}

/// What goes out on a stream. Snapshots are cut and encoded as the agent reads them.
#[derive(Debug)]
pub struct Outbound {
    waiting: mpsc::Receiver<Outgoing>,
    chunks: Option<Chunks>,
    /// Ends the reader with the stream.
    _reader: DropGuard,
}

impl Stream for Outbound {
    type Item = Result<v1::ControllerMessage, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(chunks) = &mut self.chunks {
                match chunks.next() {
                    Some(chunk) => return Poll::Ready(Some(Ok(ControllerMessage::Snapshot(chunk).into()))),
                    None => self.chunks = None,
                }
            }
            match ready!(self.waiting.poll_recv(context)) {
                Some(Outgoing::Message(message)) => return Poll::Ready(Some(Ok(message.into()))),
                Some(Outgoing::Snapshot(snapshot)) => self.chunks = Some(Chunks::new(snapshot)),
                Some(Outgoing::End(refusal)) => {
                    self.waiting.close();
                    return Poll::Ready(status(&refusal).map(Err));
                }
                None => return Poll::Ready(None),
            }
        }
    }
}

/// The chunks of a snapshot: at least one, and the end in the last.
#[derive(Debug)]
struct Chunks {
    generation: Generation,
    items: Items,
    /// How many items are sent.
    sent: usize,
    removals: Removals,
    digest: Digest,
    is_done: bool,
}

impl Chunks {
    fn new(snapshot: Snapshot) -> Self {
        let Snapshot { generation, items, removals } = snapshot;
        let digest = items.digest();
        Self { generation, items, sent: 0, removals, digest, is_done: false }
    }
}

impl Iterator for Chunks {
    type Item = SnapshotChunk;

    fn next(&mut self) -> Option<SnapshotChunk> {
        if self.is_done {
            return None;
        }
        let mut length = 0;
        let fits = |item: &&Arc<Item>| {
            let is_first = length == 0;
            length += item.content.len();
            is_first || length <= CHUNK
        };
        let items: Vec<_> = self.items.iter().skip(self.sent).take_while(fits).cloned().collect();
        self.sent += items.len();
        self.is_done = self.sent == self.items.len();
        let end = self.is_done.then_some(SnapshotEnd { digest: self.digest, removals: self.removals });
        Some(SnapshotChunk { generation: self.generation, items, end })
    }
}

#[cfg(test)]
mod tests;
