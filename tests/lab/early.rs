//! An agent of an early release, which says of the protocol what cannot be left out and nothing more.

use std::net::{SocketAddr, TcpStream};
use std::thread;

use hyper_util::rt::TokioIo;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::Status;
use tonic::transport::Endpoint;
use tunmesh::proto::v1;
use tunmesh::proto::v1::agent_control_client::AgentControlClient;
use tunmesh::proto::v1::agent_message::Message as FromAgent;
use tunmesh::proto::v1::controller_message::Message as FromController;

use super::{Host, SOON};

/// What a controller says to it first.
pub struct Heard {
    /// Its welcome.
    pub welcome: v1::Welcome,
    /// What is wanted, in all chunks.
    pub items: Vec<v1::Item>,
}

/// A session with a controller, on a thread of its own. It ends when this is dropped, and with the controller.
pub struct Early {
    heard: std::sync::mpsc::Receiver<Result<Heard, Status>>,
    _stop: tokio_util::sync::DropGuard,
}

impl Early {
    /// Dials a controller from `host` as a node, and says that it speaks the protocol up to `version`.
    pub fn dial(host: &Host, controller: SocketAddr, node: &str, version: u32) -> Self {
        let stream =
            host.enter(|| TcpStream::connect_timeout(&controller, SOON)).expect("a controller listens");
        stream.set_nonblocking(true).unwrap();
        let hello = v1::Hello {
            protocol_version: version,
            node: node.to_owned(),
            run_id: vec![7; 16],
            data_port: 5000,
            ..v1::Hello::default()
        };
        let stop = tokio_util::sync::CancellationToken::new();
        let (sender, heard) = std::sync::mpsc::channel();
        let ended = stop.clone();
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                tokio::select! {
                    () = follow(stream, hello, sender) => {}
                    () = ended.cancelled() => {}
                }
            });
        });
        Self { heard, _stop: stop.drop_guard() }
    }

    /// The welcome and the whole of what is wanted, once they are there.
    pub fn heard(&self) -> Heard {
        self.next().expect("it is not refused")
    }

    /// Why its session ends.
    pub fn refusal(&self) -> Status {
        self.next().err().expect("it is refused")
    }

    fn next(&self) -> Result<Heard, Status> {
        self.heard.recv_timeout(SOON).expect("the controller says what is wanted")
    }
}

/// Takes in what is wanted and acknowledges it, and answers heartbeats.
async fn follow(stream: TcpStream, hello: v1::Hello, heard: std::sync::mpsc::Sender<Result<Heard, Status>>) {
    let mut stream = Some(TokioIo::new(tokio::net::TcpStream::from_std(stream).unwrap()));
    let connector = tower::service_fn(move |_| {
        std::future::ready(stream.take().ok_or_else(|| std::io::Error::other("the connection is gone")))
    });
    let channel = Endpoint::from_static("http://controller").connect_with_connector(connector).await.unwrap();
    let (says, outgoing) = tokio::sync::mpsc::unbounded_channel();
    let say = |message| says.send(v1::AgentMessage { message: Some(message) }).unwrap();
    say(FromAgent::Hello(hello));
    let mut client = AgentControlClient::new(channel);
    let mut answers = client.session(UnboundedReceiverStream::new(outgoing)).await.unwrap().into_inner();
    let (mut welcome, mut items) = (None, Vec::new());
    loop {
        let message = match answers.message().await {
            Ok(Some(message)) => message,
            Ok(None) => return,
            // Whoever waited may have gone.
            Err(status) => return drop(heard.send(Err(status))),
        };
        let acknowledge = |generation| {
            say(FromAgent::Ack(v1::Ack { generation, ..v1::Ack::default() }));
        };
        match message.message {
            Some(FromController::Welcome(said)) => welcome = Some(said),
            Some(FromController::Snapshot(chunk)) => {
                items.extend(chunk.items);
                if chunk.last {
                    acknowledge(chunk.generation);
                    let welcome = welcome.clone().expect("a welcome comes first");
                    // Whoever waited may have heard enough.
                    let _ = heard.send(Ok(Heard { welcome, items: std::mem::take(&mut items) }));
                }
            }
            Some(FromController::Delta(delta)) => acknowledge(delta.generation),
            Some(FromController::NotModified(same)) => acknowledge(same.generation),
            Some(FromController::Heartbeat(v1::Heartbeat { ping, .. })) if ping != 0 => {
                say(FromAgent::Heartbeat(v1::Heartbeat { ping: 0, answers: ping }));
            }
            _ => {}
        }
    }
}
