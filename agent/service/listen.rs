//! Where TunnelService is heard: always on a Unix socket, and on a TCP address when asked for.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::transport::server::Router;
use tower::layer::util::{Identity, Stack};

use super::callers::{Calling, Place};
use super::local::Local;
use crate::agent::credentials::Credentials;
use crate::proto::host::accept::Gate;
use crate::proto::host::access::Access;
use crate::proto::host::reflection;
use crate::proto::host::socket::SocketFile;
use crate::proto::v1::tunnel_service_server::TunnelServiceServer;

/// What reflection shows.
const SERVICE: &str = "tunmesh.v1.TunnelService";
/// How many connections there may be from elsewhere.
const CONNECTIONS: usize = 256;
/// How often a quiet connection from elsewhere is tried, and how long the answer may take: a host that is gone says nothing.
const KEEPALIVE: Duration = Duration::from_secs(10);
/// The most bytes of a request's headers.
const HEADERS: u32 = 16 << 10;
/// How many streams one connection may have.
const STREAMS: u32 = 16;

/// A TCP address on which TunnelService is heard as well.
pub struct Tcp {
    listener: TcpListener,
    /// What shows who this agent is, and whom it heeds; absent: it is a loopback address, and all is plain text.
    credentials: Option<Arc<Credentials>>,
}

impl Tcp {
    /// Listens on `address`: in plain text where nobody but this host can reach it, otherwise with `credentials`.
    ///
    /// # Errors
    /// What the kernel says.
    pub async fn bind(address: SocketAddr, credentials: &Arc<Credentials>) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(address).await;
        let listener = listener.with_context(|| format!("--grpc-listen {address} cannot be had"))?;
        let is_network = !address.ip().is_loopback();
        Ok(Self { listener, credentials: is_network.then(|| Arc::clone(credentials)) })
    }
}

/// Everything that is served to those who call at `calling`.
async fn router(
    service: Local,
    calling: Calling,
) -> Result<Router<Stack<Access<Calling>, Identity>>, tonic_reflection::server::Error> {
    let (reporter, health) = tonic_health::server::health_reporter();
    reporter.set_serving::<TunnelServiceServer<Local>>().await;
    // Programs of this host are bounded by what they may do anyway.
    let is_network = calling.is_network();
    Ok(Server::builder()
        .http2_keepalive_interval(is_network.then_some(KEEPALIVE))
        .http2_keepalive_timeout(is_network.then_some(KEEPALIVE))
        .http2_max_header_list_size(is_network.then_some(HEADERS))
        .max_concurrent_streams(is_network.then_some(STREAMS))
        .layer(Access(calling))
        .add_service(TunnelServiceServer::new(service))
        .add_service(health)
        .add_service(reflection(SERVICE).build_v1()?)
        .add_service(reflection(SERVICE).build_v1alpha()?))
}

/// Serves on the socket, and on `tcp` where it is given, until `stop`.
///
/// # Errors
/// Where a listener fails.
pub async fn serve(
    service: Local,
    mut socket: SocketFile,
    tcp: Option<Tcp>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let Some(listener) = socket.take() else { return Ok(()) };
    let unix = router(service.clone(), Calling::at(Place::Socket))
        .await?
        .serve_with_incoming_shutdown(listener, stop.clone().cancelled_owned());
    match tcp {
        Some(tcp) => tokio::try_join!(async { Ok(unix.await?) }, dialled(service, tcp, stop)).map(|_| ()),
        None => Ok(unix.await?),
    }
}

/// Serves on a TCP address.
async fn dialled(service: Local, tcp: Tcp, stop: CancellationToken) -> anyhow::Result<()> {
    let Tcp { listener, credentials } = tcp;
    let stop = stop.cancelled_owned();
    match credentials {
        Some(credentials) => {
            let calling = Calling::at(Place::Network(Arc::clone(credentials.operators())));
            let gate = Gate::new(&[], CONNECTIONS, credentials.handshakes(), calling.clone());
            let connections = Box::pin(gate.connections(listener));
            router(service, calling).await?.serve_with_incoming_shutdown(connections, stop).await?;
        }
        None => {
            let connections = TcpListenerStream::new(listener);
            let router = router(service, Calling::at(Place::Loopback)).await?;
            router.serve_with_incoming_shutdown(connections, stop).await?;
        }
    }
    Ok(())
}
