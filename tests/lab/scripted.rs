//! A controller that says what a test tells it to.

#![allow(clippy::wildcard_enum_match_arm, reason = "a test looks for one message")]

use std::net::{SocketAddr, TcpListener};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio_stream::wrappers::{TcpListenerStream, UnboundedReceiverStream};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};
use tunmesh::proto::convert::session::agent_message;
use tunmesh::proto::session::{Ack, AgentMessage, ControllerMessage, Hello, Welcome};
use tunmesh::proto::v1;
use tunmesh::proto::v1::agent_control_server::{AgentControl, AgentControlServer};

use super::{Host, SOON};

/// Listens on a host until it is dropped.
pub struct Scripted {
    talks: Receiver<Talk>,
    _stop: DropGuard,
}

/// One session of an agent.
pub struct Talk {
    said: Receiver<Result<AgentMessage, Status>>,
    says: tokio::sync::mpsc::UnboundedSender<Result<v1::ControllerMessage, Status>>,
}

impl Scripted {
    /// Listens on `address` of `host`.
    pub fn start(host: &Host, address: SocketAddr) -> Self {
        let listener = host.enter(|| TcpListener::bind(address)).expect("the address is free");
        listener.set_nonblocking(true).unwrap();
        let (sender, talks) = channel();
        let stop = CancellationToken::new();
        let ended = stop.clone();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let serve = async {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                let service = AgentControlServer::new(Service(Mutex::new(sender)));
                let serve = Server::builder()
                    .add_service(service)
                    .serve_with_incoming(TcpListenerStream::new(listener));
                tokio::select! {
                    served = serve => served.unwrap(),
                    () = ended.cancelled() => {}
                }
            };
            runtime.block_on(serve);
        });
        Self { talks, _stop: stop.drop_guard() }
    }

    /// The next session, with what the agent says first.
    pub fn hello(&self) -> (Talk, Hello) {
        self.hello_within(SOON)
    }

    /// The same, of an agent that may take its time.
    pub fn hello_within(&self, deadline: Duration) -> (Talk, Hello) {
        let talk = self.talks.recv_timeout(deadline).expect("an agent dials");
        match talk.next() {
            AgentMessage::Hello(hello) => (talk, *hello),
            other => panic!("{other:?} is no hello"),
        }
    }

    /// Whether an agent dials within `deadline`.
    pub fn is_dialled_within(&self, deadline: Duration) -> bool {
        self.talks.recv_timeout(deadline).is_ok()
    }
}

impl Talk {
    /// Says something.
    pub fn say(&self, message: impl Into<v1::ControllerMessage>) {
        self.says.send(Ok(message.into())).expect("the agent listens");
    }

    /// Welcomes the agent to a store.
    pub fn welcome(&self, store_id: &str) {
        self.say(ControllerMessage::Welcome(Welcome {
            protocol_version: 1,
            capabilities: Default::default(),
            store_id: store_id.to_owned(),
            epoch: 1,
            version: "scripted".to_owned(),
            timeline: format!("of {store_id}"),
        }));
    }

    /// Ends the session with a status.
    pub fn refuse(self, status: Status) {
        self.says.send(Err(status)).expect("the agent listens");
    }

    /// What the agent says next.
    pub fn next(&self) -> AgentMessage {
        self.find(SOON, "anything", Some)
    }

    /// The first thing that `wanted` takes; what comes before is passed over.
    pub fn find<T>(&self, deadline: Duration, what: &str, wanted: impl Fn(AgentMessage) -> Option<T>) -> T {
        self.try_find(deadline, wanted).unwrap_or_else(|| panic!("not within {deadline:?}: {what}"))
    }

    /// The same, where it may not come.
    pub fn try_find<T>(&self, deadline: Duration, wanted: impl Fn(AgentMessage) -> Option<T>) -> Option<T> {
        let end = Instant::now() + deadline;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            match self.said.recv_timeout(left) {
                Ok(Ok(message)) => {
                    if let Some(found) = wanted(message) {
                        return Some(found);
                    }
                }
                Ok(Err(_)) | Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return None,
            }
        }
    }

    /// The next acknowledgement.
    pub fn ack(&self) -> Ack {
        self.find(SOON, "an acknowledgement", |message| match message {
            AgentMessage::Ack(ack) => Some(ack),
            _ => None,
        })
    }

    /// The next request for all that is wanted.
    pub fn resync(&self) -> String {
        self.find(SOON, "a request for a snapshot", |message| match message {
            AgentMessage::Resync(reason) => Some(reason),
            _ => None,
        })
    }

    /// Waits until the agent lets go.
    pub fn closed_within(&self, deadline: Duration) {
        let end = Instant::now() + deadline;
        loop {
            match self.said.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(Ok(_)) => {}
                Ok(Err(_)) | Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => panic!("the agent has not let go within {deadline:?}"),
            }
        }
    }
}

struct Service(Mutex<Sender<Talk>>);

#[tonic::async_trait]
impl AgentControl for Service {
    type SessionStream = UnboundedReceiverStream<Result<v1::ControllerMessage, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<v1::AgentMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let (saying, said) = channel();
        let (says, outbound) = tokio::sync::mpsc::unbounded_channel();
        let mut messages = request.into_inner();
        tokio::task::spawn(async move {
            // Whoever listens may have gone.
            loop {
                match messages.message().await {
                    Ok(Some(message)) => match agent_message(message) {
                        Ok(Some(message)) => drop(saying.send(Ok(message))),
                        Ok(None) => {}
                        Err(error) => drop(saying.send(Err(Status::internal(error.to_string())))),
                    },
                    Ok(None) => return,
                    Err(status) => return drop(saying.send(Err(status))),
                }
            }
        });
        // The test that it is for may have ended.
        let _ = self.0.lock().unwrap_or_else(PoisonError::into_inner).send(Talk { said, says });
        Ok(Response::new(UnboundedReceiverStream::new(outbound)))
    }
}
