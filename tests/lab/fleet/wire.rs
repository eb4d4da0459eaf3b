//! One connection of an agent, with its bytes counted.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::stream::{self, BoxStream};
use futures_util::{StreamExt, TryStreamExt};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::mpsc::{self, UnboundedSender};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::Status;
use tonic::transport::Endpoint;
use tonic_types::StatusExt;
use tower::service_fn;
use tunmesh::proto::convert::session::controller_message;
use tunmesh::proto::session::{AgentMessage, ControllerMessage};
use tunmesh::proto::v1;
use tunmesh::proto::v1::agent_control_client::AgentControlClient;

/// Bytes of all connections.
#[derive(Debug, Default)]
pub struct Bytes {
    pub up: AtomicU64,
    pub down: AtomicU64,
}

/// A connection that ended, or did not come about.
#[derive(Debug)]
pub struct Closed {
    pub reason: String,
    pub retry_after: Option<Duration>,
}

impl From<Status> for Closed {
    fn from(status: Status) -> Self {
        let retry_after = status.get_details_retry_info().and_then(|info| info.retry_delay);
        Self { reason: status.to_string(), retry_after }
    }
}

/// An open connection.
pub struct Connection {
    messages: UnboundedSender<v1::AgentMessage>,
    answers: BoxStream<'static, Result<v1::ControllerMessage, Status>>,
}

impl Connection {
    pub async fn open(address: SocketAddr, bytes: Arc<Bytes>) -> Result<Self, Closed> {
        let connector = service_fn(move |_| {
            let bytes = Arc::clone(&bytes);
            async move { Ok::<_, io::Error>(TokioIo::new(Counted(TcpStream::connect(address).await?, bytes))) }
        });
        let channel =
            Endpoint::from_static("http://controller.tunmesh").connect_with_connector(connector).await;
        let channel = channel.map_err(|error| Closed { reason: error.to_string(), retry_after: None })?;
        let (messages, outgoing) = mpsc::unbounded_channel();
        let mut client = AgentControlClient::new(channel);
        let call = async move {
            let response = client.session(UnboundedReceiverStream::new(outgoing)).await;
            response.map(tonic::Response::into_inner)
        };
        Ok(Self { messages, answers: stream::once(call).try_flatten().boxed() })
    }

    pub fn send(&self, message: AgentMessage) {
        // A connection that is gone says so where it is read.
        let _ = self.messages.send(message.into());
    }

    pub async fn next(&mut self) -> Result<ControllerMessage, Closed> {
        loop {
            match self.answers.next().await {
                Some(Ok(message)) => {
                    if let Some(message) = controller_message(message).expect("a controller of this release")
                    {
                        return Ok(message);
                    }
                }
                Some(Err(status)) => return Err(status.into()),
                None => return Err(Closed { reason: "the stream ended".to_owned(), retry_after: None }),
            }
        }
    }
}

struct Counted(TcpStream, Arc<Bytes>);

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let outcome = Pin::new(&mut self.0).poll_read(cx, buffer);
        self.1.down.fetch_add((buffer.filled().len() - before) as u64, Ordering::Relaxed);
        outcome
    }
}

impl AsyncWrite for Counted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.0).poll_write(cx, bytes);
        if let Poll::Ready(Ok(written)) = outcome {
            self.1.up.fetch_add(written as u64, Ordering::Relaxed);
        }
        outcome
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
