//! Connections to a controller on loopback that listens when it is told to.

#![allow(clippy::disallowed_methods, reason = "the controller of the test")]

use std::net::Ipv4Addr;
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;
use tonic::{Request, Response, Streaming};

use super::*;
use crate::agent::credentials::Credentials;
use crate::proto::v1::agent_control_server::{AgentControl, AgentControlServer};

/// How long to wait for what must come.
const PATIENCE: Duration = Duration::from_secs(20);

/// Tells of what agents say, once it may listen.
struct Slow {
    listens: Arc<Notify>,
    heard: mpsc::UnboundedSender<v1::AgentMessage>,
}

#[tonic::async_trait]
impl AgentControl for Slow {
    type SessionStream = ReceiverStream<Result<v1::ControllerMessage, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<v1::AgentMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let (listens, heard) = (Arc::clone(&self.listens), self.heard.clone());
        let (says, outbound) = mpsc::channel(1);
        let mut messages = request.into_inner();
        tokio::spawn(async move {
            listens.notified().await;
            while let Ok(Some(message)) = messages.message().await {
                heard.send(message).unwrap();
            }
            drop(says);
        });
        Ok(Response::new(ReceiverStream::new(outbound)))
    }
}

#[tokio::test]
async fn what_was_said_is_heard_also_by_one_that_listens_slowly() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let listens = Arc::new(Notify::new());
    let (heard, mut hears) = mpsc::unbounded_channel();
    let service = AgentControlServer::new(Slow { listens: Arc::clone(&listens), heard });
    let serve = Server::builder().add_service(service).serve_with_incoming(TcpListenerStream::new(listener));
    tokio::spawn(serve);

    let directory = tempfile::tempdir().unwrap();
    let way = Way {
        node: "n1".parse().unwrap(),
        credentials: Arc::new(Credentials::open(directory.path()).unwrap()),
        introduction: Introduction::default(),
        insecure: vec!["127.0.0.0/8".parse().unwrap()],
        share: 0,
    };
    let mut dialler = Dialler::new(vec![address.to_string().parse().unwrap()], way);
    let mut connection = dialler.dial(0);
    let connected = async { while !matches!(connection.event().await, Event::Connected) {} };
    tokio::time::timeout(PATIENCE, connected).await.expect("it answers");
    // More than is taken before it is read.
    for _ in 0..16 {
        connection.send(AgentMessage::Resync("x".repeat(1 << 20))).unwrap();
    }
    connection.send(AgentMessage::Goodbye).unwrap();
    drop(connection);
    listens.notify_one();
    tokio::time::timeout(PATIENCE, dialler.drain()).await.expect("it ends");
    let mut last = None;
    while let Ok(message) = hears.try_recv() {
        last = message.message;
    }
    assert!(matches!(last, Some(v1::agent_message::Message::Goodbye(_))), "the goodbye is not heard");
}
