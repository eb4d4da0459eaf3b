//! Where TunnelService is heard: always a Unix socket, and a loopback TCP address when asked for.

use std::io;
use std::net::SocketAddr;

use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::transport::server::Router;

use super::local::Local;
use crate::proto::host::reflection;
use crate::proto::host::socket::SocketFile;
use crate::proto::v1::tunnel_service_server::TunnelServiceServer;

/// What reflection shows.
const SERVICE: &str = "tunmesh.v1.TunnelService";

/// Everything that is served on both.
async fn router(service: Local) -> Result<Router, tonic_reflection::server::Error> {
    let (reporter, health) = tonic_health::server::health_reporter();
    reporter.set_serving::<TunnelServiceServer<Local>>().await;
    Ok(Server::builder()
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
    tcp: Option<TcpListener>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let unix = match socket.take() {
        Some(listener) => router(service.clone())
            .await?
            .serve_with_incoming_shutdown(listener, stop.clone().cancelled_owned()),
        None => return Ok(()),
    };
    match tcp {
        Some(listener) => {
            let listener = TcpListenerStream::new(listener);
            let tcp = router(service).await?.serve_with_incoming_shutdown(listener, stop.cancelled_owned());
            tokio::try_join!(unix, tcp)?;
        }
        None => unix.await?,
    }
    Ok(())
}

/// Binds the TCP address for TunnelService.
///
/// # Errors
/// `InvalidInput` for an address that is not a loopback one; otherwise what the kernel says.
pub async fn bind_tcp(address: SocketAddr) -> io::Result<TcpListener> {
    if !address.ip().is_loopback() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "without certificates only a loopback address may be listened on, as 127.0.0.1:5002",
        ));
    }
    TcpListener::bind(address).await
}
