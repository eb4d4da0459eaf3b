//! The way from a command line to a running process of this host.

use std::path::Path;

use anyhow::Context;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;

/// Connects to the process that listens on `socket`; `what` it is, as `agent`, and how to `start` one.
///
/// # Errors
/// Where nobody answers, in words.
pub async fn connect(socket: &Path, what: &str, start: &str) -> anyhow::Result<Channel> {
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
    channel.with_context(|| {
        format!(
            "no {what} answers on {}: start one with `{start}`, run this as root or as a member of the group \
             tunmesh, or name its socket with --socket",
            socket.display()
        )
    })
}
