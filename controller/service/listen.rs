//! Where the controller is heard: over TCP, and by the operators of its own host on a Unix socket.

use std::time::Duration;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic_health::server::HealthReporter;

use super::admin::Admin;
use super::callers::{Dialled, Local};
use super::control::Control;
use super::enrolment::Enroller;
use crate::controller::runtime::ControllerHandle;
use crate::proto::host::accept::Gate;
use crate::proto::host::access::Access;
use crate::proto::host::reflection;
use crate::proto::host::socket::SocketFile;
use crate::proto::v1::agent_control_server::AgentControlServer;
use crate::proto::v1::enrolment_server::EnrolmentServer;
use crate::proto::v1::mesh_admin_server::MeshAdminServer;

/// What reflection shows, and what health is asked for.
const SERVICE: &str = "tunmesh.v1.MeshAdmin";
/// How often a quiet connection is tried, and how long the answer may take.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(5));
/// The longest message of an agent in bytes.
const LONGEST: usize = 4 << 20;
/// The longest message of an operator in bytes: a mesh file may have 4 MiB, which its parser has words for.
const LONGEST_ORDER: usize = 8 << 20;
/// The longest request to join in bytes: a request for a certificate, and a token.
const LONGEST_REQUEST: usize = 16 << 10;
/// The most bytes of a request's headers.
const HEADERS: u32 = 16 << 10;
/// How many streams one connection may have; an agent needs one.
const STREAMS: u32 = 4;

/// What those are served who dial.
#[derive(Clone)]
pub struct Served {
    /// For agents.
    pub control: Control,
    /// For hosts without an identity, or with an old one.
    pub enroller: Enroller,
    /// For operators.
    pub admin: Admin,
    /// By which callers are known.
    pub controller: ControllerHandle,
}

/// Serves those who dial, until `stop`.
///
/// # Errors
/// Where the listener fails.
pub async fn dialled(
    served: Served,
    gate: Gate<Dialled>,
    listener: TcpListener,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let (interval, timeout) = KEEPALIVE;
    let Served { control, enroller, admin, controller } = served;
    let connections = Box::pin(gate.connections(listener));
    Server::builder()
        .http2_keepalive_interval(Some(interval))
        .http2_keepalive_timeout(Some(timeout))
        .http2_max_header_list_size(Some(HEADERS))
        .max_concurrent_streams(STREAMS)
        .layer(Access(Dialled(controller)))
        .add_service(AgentControlServer::new(control).max_decoding_message_size(LONGEST))
        .add_service(EnrolmentServer::new(enroller).max_decoding_message_size(LONGEST_REQUEST))
        .add_service(MeshAdminServer::new(admin).max_decoding_message_size(LONGEST_ORDER))
        .add_service(reflection(SERVICE).build_v1()?)
        .add_service(reflection(SERVICE).build_v1alpha()?)
        .serve_with_incoming_shutdown(connections, stop.cancelled_owned())
        .await?;
    Ok(())
}

/// Whether the controller is ready, as `grpc.health.v1` says it.
#[derive(Debug, Clone)]
pub struct Health(HealthReporter);

impl Health {
    /// Says it.
    pub async fn set(&self, is_ready: bool) {
        let status = match is_ready {
            true => tonic_health::ServingStatus::Serving,
            false => tonic_health::ServingStatus::NotServing,
        };
        for service in ["", SERVICE] {
            self.0.set_service_status(service, status).await;
        }
    }
}

/// Serves operators on the socket until `stop`. Health says that the controller is not ready.
///
/// # Errors
/// Where the services cannot be made.
pub async fn local(
    admin: Admin,
    controller: ControllerHandle,
    mut socket: SocketFile,
    stop: CancellationToken,
) -> anyhow::Result<(Health, impl Future<Output = anyhow::Result<()>>)> {
    let (reporter, service) = tonic_health::server::health_reporter();
    let health = Health(reporter);
    health.set(false).await;
    let router = Server::builder()
        .layer(Access(Local(controller)))
        .add_service(MeshAdminServer::new(admin).max_decoding_message_size(LONGEST_ORDER))
        .add_service(service)
        .add_service(reflection(SERVICE).build_v1()?)
        .add_service(reflection(SERVICE).build_v1alpha()?);
    let serving = async move {
        if let Some(listener) = socket.take() {
            router.serve_with_incoming_shutdown(listener, stop.cancelled_owned()).await?;
        }
        // It is in the file system as long as it is served.
        drop(socket);
        Ok(())
    };
    Ok((health, serving))
}
