//! The way to a controller: dials, and turns what crosses the wire into events. No type of the wire goes further.

mod way;

use std::collections::BTreeSet;
use std::error::Error;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::FuturesUnordered;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tokio::task::JoinSet;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::agent::session::{Trouble, TroubleKind};
use crate::proto::convert::session::controller_message;
use crate::proto::host::client::over;
use crate::proto::host::clock;
use crate::proto::model::{Host, Remote};
use crate::proto::session::{AgentMessage, CONTROLLER_PORT, ControllerMessage, Hello};
use crate::proto::v1;
use crate::proto::v1::agent_control_client::AgentControlClient;

pub use way::{Introduction, Way};

/// How many events wait at most; a controller that says more waits.
const EVENTS: usize = 16;
/// How many messages wait at most; more are too many.
const MESSAGES: usize = 64;
/// The longest message that is read, in bytes: one item has at most what a mesh file of 4 MiB says of its node, as
/// routes and as allowed prefixes.
const LONGEST: usize = 16 << 20;
/// How long after one address of a name the next is dialled beside it, RFC 8305 section 5: one that does not answer
/// must not use up the time that a dial has.
const NEXT: Duration = Duration::from_millis(250);
/// How long a goodbye may take.
const GRACE: Duration = Duration::from_secs(1);

/// What happens on a connection.
#[derive(Debug)]
pub enum Event {
    /// These are addresses of the controller.
    Resolved(BTreeSet<IpAddr>),
    /// The controller answers.
    Connected,
    /// It says something.
    Message(ControllerMessage),
    /// The connection is gone or did not come about. The last event.
    Closed {
        /// Why.
        why: Trouble,
        /// The least time that the controller asks to wait.
        retry_after: Option<Duration>,
    },
}

/// A connection, or an attempt at one. Dropping it ends it, after what was sent.
#[derive(Debug)]
pub struct Connection {
    events: mpsc::Receiver<Event>,
    messages: mpsc::Sender<AgentMessage>,
}

impl Connection {
    /// What happens next; never again once it is closed.
    pub async fn event(&mut self) -> Event {
        match self.events.recv().await {
            Some(event) => event,
            None => std::future::pending().await,
        }
    }

    /// What has happened.
    pub fn try_event(&mut self) -> Option<Event> {
        self.events.try_recv().ok()
    }

    /// Says something; one that is closed hears nothing, and says so by its last event.
    ///
    /// # Errors
    /// Where too much waits to be sent.
    pub fn send(&self, message: AgentMessage) -> Result<(), Full> {
        match self.messages.try_send(message) {
            Ok(()) | Err(TrySendError::Closed(_)) => Ok(()),
            Err(TrySendError::Full(_)) => Err(Full),
        }
    }
}

/// The controller takes nothing any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Full;

/// Dials controllers.
pub struct Dialler {
    controllers: Vec<Remote>,
    way: Arc<Way>,
    /// Where each of them is, as far as it is known.
    known: Vec<BTreeSet<IpAddr>>,
    attempts: JoinSet<()>,
}

impl Dialler {
    /// One that dials `controllers` in this way.
    pub fn new(controllers: Vec<Remote>, way: Way) -> Self {
        let known = controllers.iter().map(|controller| match controller.host {
            Host::Address(address) => BTreeSet::from([address]),
            Host::Name(_) => BTreeSet::new(),
        });
        let known = known.collect();
        Self { controllers, way: Arc::new(way), known, attempts: JoinSet::new() }
    }

    /// Who is dialled.
    pub fn controllers(&self) -> &[Remote] {
        &self.controllers
    }

    /// Where controllers are, as far as it is known.
    pub fn known(&self) -> BTreeSet<IpAddr> {
        self.known.iter().flatten().copied().collect()
    }

    /// Takes in where the controller at a position is now.
    pub fn learn(&mut self, controller: usize, addresses: BTreeSet<IpAddr>) {
        if let Some(known) = self.known.get_mut(controller) {
            *known = addresses;
        }
    }

    /// Dials the controller at a position.
    pub fn dial(&mut self, controller: usize) -> Connection {
        let (event_sender, events) = mpsc::channel(EVENTS);
        let (messages, message_receiver) = mpsc::channel(MESSAGES);
        while self.attempts.try_join_next().is_some() {}
        if let Some(controller) = self.controllers.get(controller).cloned() {
            self.attempts.spawn(live(controller, Arc::clone(&self.way), event_sender, message_receiver));
        }
        Connection { events, messages }
    }

    /// Waits for goodbyes to be said.
    pub async fn drain(mut self) {
        while self.attempts.join_next().await.is_some() {}
    }
}

/// Why a connection ended.
struct End {
    why: Trouble,
    retry_after: Option<Duration>,
}

impl End {
    /// Whether the controller has refused something, in words of its own.
    fn is_refusal(&self) -> bool {
        matches!(self.why.kind, TroubleKind::Refused(_))
    }

    /// Whether the controller does not know who this agent is.
    fn is_unauthenticated(&self) -> bool {
        self.why.kind == TroubleKind::Refused(Code::Unauthenticated.into())
    }

    fn new(kind: TroubleKind, words: impl Into<String>) -> Self {
        Self { why: Trouble::new(kind, words), retry_after: None }
    }
}

impl From<Status> for End {
    fn from(status: Status) -> Self {
        let retry_after = status.get_details_retry_info().and_then(|info| info.retry_delay);
        let is_lost = matches!(status.code(), Code::Unknown | Code::Unavailable | Code::Cancelled);
        let kind = if is_lost { TroubleKind::Ended } else { TroubleKind::Refused(status.code().into()) };
        let words = match status.message() {
            "" => status.code().to_string(),
            words if is_lost => words.to_owned(),
            words => format!("refused: {words}"),
        };
        Self { why: Trouble::new(kind, words), retry_after }
    }
}

/// A connection from its first packet to its last.
async fn live(
    controller: Remote,
    way: Arc<Way>,
    events: mpsc::Sender<Event>,
    messages: mpsc::Receiver<AgentMessage>,
) {
    let let_go = async {
        events.closed().await;
        // What was sent before may still be on its way.
        tokio::time::sleep(GRACE).await;
    };
    let end = tokio::select! {
        () = let_go => return,
        Err(end) = converse(&controller, &way, &events, messages) => end,
    };
    let End { why, retry_after } = end;
    // Whoever let go needs no reason.
    let _ = events.send(Event::Closed { why, retry_after }).await;
}

async fn converse(
    controller: &Remote,
    way: &Way,
    events: &mpsc::Sender<Event>,
    messages: mpsc::Receiver<AgentMessage>,
) -> Result<std::convert::Infallible, End> {
    if let Some(fault) = way.credentials.fault() {
        let words = format!(
            "{fault}; mend the file, or run `agent leave`, start the agent again, and let it join anew"
        );
        return Err(End::new(TroubleKind::Unjoined, words));
    }
    let mut stream = connect(controller, events).await?;
    let is_plain = way.is_plain(&stream);
    if !is_plain && !way.credentials.has_joined() {
        way.join(stream).await?;
        // Who one is, is shown when a connection begins.
        stream = connect(controller, events).await?;
    }
    let local = local(&stream)?;
    let channel = match is_plain {
        true => over(stream).await.map_err(|error| unanswered(&error, local))?,
        false => way.open(stream).await?.0,
    };
    let mut client = AgentControlClient::new(channel.clone()).max_decoding_message_size(LONGEST);
    // Where nobody listens any more it is read on, so that the last words get out.
    let _ = events.send(Event::Connected).await;
    let outbound = ReceiverStream::new(messages);
    let outbound = outbound.map(move |message| v1::AgentMessage::from(completed(message, local)));
    let answer = client.session(outbound).await.map_err(|status| match status.source() {
        Some(cause) if is_plain => unanswered(cause, local),
        Some(_) | None => status.into(),
    });
    let mut inbound = match answer {
        Ok(answer) => answer.into_inner(),
        Err(end) if !is_plain && end.is_unauthenticated() => return Err(way.renewed(channel, end).await),
        Err(end) => return Err(end),
    };
    let mut renewal = std::pin::pin!(way.keep_renewed(channel.clone(), is_plain));
    loop {
        let message = tokio::select! {
            () = &mut renewal => continue,
            message = inbound.message() => message,
        };
        let message = match message {
            Ok(Some(message)) => message,
            Ok(None) => return Err(End::new(TroubleKind::Ended, "the controller ended the session")),
            Err(status) => {
                let end = End::from(status);
                return Err(match !is_plain && end.is_unauthenticated() {
                    true => way.renewed(channel, end).await,
                    false => end,
                });
            }
        };
        match controller_message(message) {
            Ok(Some(message)) => {
                let _ = events.send(Event::Message(message)).await;
            }
            Ok(None) => {
                tracing::debug!("the controller says something that only a later release understands")
            }
            Err(error) => {
                let words = format!("the controller's message cannot be read: {error}");
                return Err(End::new(TroubleKind::Unintelligible, words));
            }
        }
    }
}

/// A message on a connection from `local`, with the time by this host's clock, where it is to have both.
fn completed(message: AgentMessage, local: IpAddr) -> AgentMessage {
    match message {
        AgentMessage::Hello(hello) => {
            let hello = Hello { local: Some(local), clock: Some(clock::since_epoch()), ..*hello };
            AgentMessage::Hello(Box::new(hello))
        }
        other @ (AgentMessage::Ack(_)
        | AgentMessage::Resync(_)
        | AgentMessage::Heartbeat(_)
        | AgentMessage::Report(_)
        | AgentMessage::Keys(_)
        | AgentMessage::LinkStates(_)
        | AgentMessage::LinkFigures(_)
        | AgentMessage::Repaired { .. }
        | AgentMessage::Findings(_)
        | AgentMessage::Goodbye
        | AgentMessage::Refusal(_)) => other,
    }
}

fn local(stream: &TcpStream) -> Result<IpAddr, End> {
    let local = stream.local_addr().map_err(|error| End::new(TroubleKind::Ended, error.to_string()))?;
    Ok(local.ip().to_canonical())
}

/// That there was no answer on a connection from `local`. A controller that may not speak to it closes it at once, and
/// cannot say so.
fn unanswered(cause: &dyn Error, local: IpAddr) -> End {
    let words = format!(
        "the controller closed the connection before it answered ({}): its --insecure may have no network with this \
         host's address, {local}",
        innermost(cause)
    );
    End::new(TroubleKind::Unanswered, words)
}

/// A TCP connection to one of the controller's addresses.
async fn connect(controller: &Remote, events: &mpsc::Sender<Event>) -> Result<TcpStream, End> {
    let port = controller.port.unwrap_or(CONTROLLER_PORT);
    let addresses: BTreeSet<IpAddr> = match &controller.host {
        Host::Address(address) => BTreeSet::from([*address]),
        Host::Name(name) => {
            let found = tokio::net::lookup_host((name.as_str(), port)).await;
            let found = found.map_err(|error| {
                End::new(TroubleKind::Unreachable, format!("{name} does not resolve: {error}"))
            })?;
            found.map(|address| address.ip().to_canonical()).collect()
        }
    };
    let _ = events.send(Event::Resolved(addresses.clone())).await;
    let attempts = (0..).zip(addresses).map(|(place, address)| async move {
        tokio::time::sleep(NEXT * place).await;
        let stream = TcpStream::connect(SocketAddr::new(address, port)).await;
        stream.map_err(|error| End::new(TroubleKind::Unreachable, format!("{address} port {port}: {error}")))
    });
    let mut attempts: FuturesUnordered<_> = attempts.collect();
    let mut end = End::new(TroubleKind::Unreachable, "it has no address");
    while let Some(attempt) = attempts.next().await {
        match attempt {
            Ok(stream) => {
                let made = stream.set_nodelay(true).map(|()| stream);
                return made.map_err(|error| End::new(TroubleKind::Ended, error.to_string()));
            }
            Err(reason) => end = reason,
        }
    }
    Err(end)
}

fn innermost(error: &dyn Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

#[cfg(test)]
mod tests;
