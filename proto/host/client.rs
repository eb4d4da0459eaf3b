//! The way from a command line to a running process of this host.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;

use super::credential::Credential;
use super::tls::{self, Belief, Seen};
use crate::proto::model::{Host, Remote};
use crate::proto::session::CONTROLLER_PORT;

/// How long each step towards a controller may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// HTTP/2 on a stream that is open already.
///
/// # Errors
/// Where the other end does not answer.
pub async fn over<S>(stream: S) -> Result<Channel, tonic::transport::Error>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let mut stream = Some(TokioIo::new(stream));
    let connector = service_fn(move |_| {
        let stream = stream.take().ok_or_else(|| std::io::Error::other("the connection is gone"));
        std::future::ready(stream)
    });
    // Every request needs an authority.
    Endpoint::from_static("http://controller.tunmesh").connect_with_connector(connector).await
}

/// Connects to the controller at `server` as whoever `identity`, a file of `controller admin create`, says.
///
/// # Errors
/// Where nobody answers, or somebody who is not the controller that made the identity; in words.
pub async fn dial(server: &Remote, identity: &Path) -> anyhow::Result<Channel> {
    let credential = Credential::read(identity)?;
    let file = identity.display();
    let credential = credential.with_context(|| format!("{file}: there is no such file"))?;
    anyhow::ensure!(!credential.chain.is_empty(), "{file}: it has no certificate");
    let config = tls::client(Belief::Roots(credential.roots.clone()), Some(&credential), Seen::default())?;
    let host = match &server.host {
        Host::Address(address) => address.to_string(),
        Host::Name(name) => name.as_str().to_owned(),
    };
    let port = server.port.unwrap_or(CONTROLLER_PORT);
    let connecting = TcpStream::connect((host, port));
    let unanswered = || format!("no controller answers at {server}");
    let stream = tokio::time::timeout(PATIENCE, connecting).await.with_context(unanswered)?;
    let stream = stream.with_context(unanswered)?;
    let name = ServerName::try_from(tls::CONTROLLER)?;
    let shaking = TlsConnector::from(Arc::new(config)).connect(name, stream);
    let stream = tokio::time::timeout(PATIENCE, shaking).await.with_context(unanswered)?;
    let stream =
        stream.with_context(|| format!("whoever answers at {server} is not the controller of {file}"))?;
    over(stream).await.with_context(unanswered)
}

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
