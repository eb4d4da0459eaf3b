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

/// All of a list that is told in pages. `page` asks for those after a name, and has how many more there are; `name` is
/// an entry's.
///
/// # Errors
/// That of the first page that cannot be had.
pub async fn pages<T, E>(
    mut page: impl AsyncFnMut(String) -> Result<(Vec<T>, u32), E>,
    name: impl Fn(&T) -> &str,
) -> Result<Vec<T>, E> {
    let mut all: Vec<T> = Vec::new();
    let mut after = String::new();
    loop {
        let (entries, more) = page(after).await?;
        all.extend(entries);
        match all.last().filter(|_| more > 0) {
            Some(last) => after = name(last).to_owned(),
            None => return Ok(all),
        }
    }
}
