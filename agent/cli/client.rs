//! The way from the command line to a running agent.

use std::path::Path;

use anyhow::Context;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;

use crate::proto::v1::tunnel_service_client::TunnelServiceClient;

/// Connects to the agent that listens on `socket`.
pub(super) async fn connect(socket: &Path) -> anyhow::Result<TunnelServiceClient<Channel>> {
    let path = socket.to_owned();
    let connector = service_fn(move |_| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    // Every request needs an authority, which a socket has not.
    let channel = Endpoint::from_static("http://localhost").connect_with_connector(connector).await;
    let channel = channel.map_err(|error| {
        let mut source: &dyn std::error::Error = &error;
        while let Some(deeper) = source.source() {
            source = deeper;
        }
        anyhow::anyhow!("{source}")
    });
    channel.map(TunnelServiceClient::new).with_context(|| {
        format!(
            "no agent answers on {}: start one with `agent`, run this as root or as a member of the group tunmesh, \
             or name its socket with --socket",
            socket.display()
        )
    })
}
