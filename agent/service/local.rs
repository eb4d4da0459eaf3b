//! TunnelService: convert, ask the agent, convert back.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::{Code, Request, Response, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::agent::runtime::{AgentHandle, ControllerStatus};
use crate::agent::session::SessionState;
use crate::proto::command::{Command, CommandError, ErrorKind, Field, Outcome};
use crate::proto::convert;
use crate::proto::convert::room::{FIELD, MESSAGE, Room, page, parts};
use crate::proto::host::access::{asker, until_refused};
use crate::proto::model::{Invalid, Offload, OffloadState, Owner, PublicKey};
use crate::proto::trust::Asker;
use crate::proto::v1;
use crate::proto::v1::tunnel_service_server::TunnelService;

/// How often a watch looks where it does not say.
const INTERVAL: Duration = Duration::from_secs(1);
const INTERVAL_LEAST: Duration = Duration::from_millis(100);
const INTERVAL_MOST: Duration = Duration::from_secs(3600);
/// How many devices with plain tunnels a status names.
const PLAIN_DEVICES: usize = 5;
/// How many watches there may be at once: each looks at all tunnels.
const WATCHES: usize = 64;

/// What does not change while the agent runs.
#[derive(Debug, Clone)]
pub struct Facts {
    /// When the agent started, as time since the Unix epoch.
    pub started: Duration,
    /// Where datagrams are received.
    pub data_ports: Vec<String>,
    /// Weaker settings that were asked for by name.
    pub weakened: Vec<String>,
    /// What is weaker as well for as long as a controller is followed.
    pub insecure: Vec<String>,
    /// What can be done for many packets at once, and what was switched off for all tunnels.
    pub offloads: Vec<OffloadState>,
    /// The key by which the peers of encrypted tunnels know this host.
    pub public_key: PublicKey,
    /// What is wrong with it.
    pub key_fault: Option<String>,
}

impl Facts {
    /// The weaker settings that weaken something now: an agent that has left dials nobody until it is started anew.
    fn weakened_now(&self, controller: Option<&ControllerStatus>) -> Vec<String> {
        let session = controller.and_then(|controller| controller.session.as_ref());
        let follows = session.is_some_and(|session| session.state != SessionState::Ended);
        self.weakened.iter().chain(self.insecure.iter().filter(|_| follows)).cloned().collect()
    }
}

/// The service of one agent.
#[derive(Debug, Clone)]
pub struct Local {
    agent: AgentHandle,
    facts: Arc<Facts>,
    watches: TaskTracker,
    stop: CancellationToken,
}

impl Local {
    /// A service for `agent`; its watches end with `stop`.
    pub fn new(agent: AgentHandle, facts: Facts, stop: CancellationToken) -> Self {
        Self { agent, facts: Arc::new(facts), watches: TaskTracker::new(), stop }
    }

    async fn tunnels(&self) -> Result<Vec<v1::TunnelStatus>, Status> {
        let tunnels = self.agent.tunnels().await.map_err(|error| status(&error))?;
        Ok(tunnels.into_iter().map(Into::into).collect())
    }
}

/// Logs that a change was made.
fn tell(Asker { who, request }: &Asker, method: &str, what: &str) {
    tracing::info!(who, method, what, request, "change");
}

/// A refused command as gRPC says it: the field, the value and the remedy, also as google.rpc.BadRequest.
fn status(error: &CommandError) -> Status {
    let code = match error.kind {
        ErrorKind::Invalid => Code::InvalidArgument,
        ErrorKind::NotFound => Code::NotFound,
        ErrorKind::AlreadyExists => Code::AlreadyExists,
        ErrorKind::Clash => Code::FailedPrecondition,
        ErrorKind::NotAccepted => Code::PermissionDenied,
        ErrorKind::Storage => Code::Internal,
        ErrorKind::Unavailable => Code::Unavailable,
    };
    let field = convert::field_name(error.field);
    let message = error.describe(&field);
    let details = ErrorDetails::with_bad_request_violation(field, error.describe("the value"));
    Status::with_error_details(code, message, details)
}

#[tonic::async_trait]
impl TunnelService for Local {
    async fn add_tunnel(
        &self,
        request: Request<v1::AddTunnelRequest>,
    ) -> Result<Response<v1::AddTunnelResponse>, Status> {
        let asker = asker(&request);
        let command = convert::add_tunnel(request.into_inner()).map_err(|error| status(&error))?;
        let name = command.tunnel().clone();
        match self.agent.execute(command, Owner::Local).await.map_err(|error| status(&error))? {
            Outcome::Added { status, notes } => {
                tell(&asker, "AddTunnel", name.as_str());
                Ok(Response::new(v1::AddTunnelResponse { status: Some((*status).into()), notes }))
            }
            Outcome::Deleted => Err(Status::aborted("the tunnel was deleted at the same time")),
        }
    }

    async fn delete_tunnel(
        &self,
        request: Request<v1::DeleteTunnelRequest>,
    ) -> Result<Response<v1::DeleteTunnelResponse>, Status> {
        let asker = asker(&request);
        let name = convert::tunnel_name(&request.into_inner().name).map_err(|error| status(&error))?;
        let deleted = self.agent.execute(Command::Delete { name: name.clone() }, Owner::Local).await;
        deleted.map_err(|error| status(&error))?;
        tell(&asker, "DeleteTunnel", name.as_str());
        Ok(Response::new(v1::DeleteTunnelResponse {}))
    }

    async fn get_tunnel(
        &self,
        request: Request<v1::GetTunnelRequest>,
    ) -> Result<Response<v1::GetTunnelResponse>, Status> {
        let name = convert::tunnel_name(&request.into_inner().name).map_err(|error| status(&error))?;
        let tunnels = self.agent.tunnels().await.map_err(|error| status(&error))?;
        let Some(found) = tunnels.into_iter().find(|tunnel| tunnel.name == name) else {
            let unknown = Invalid::new("is no tunnel of this agent", "`agent tunnels` lists their names");
            return Err(status(&CommandError::new(ErrorKind::NotFound, Field::Name, name, unknown)));
        };
        Ok(Response::new(v1::GetTunnelResponse { status: Some(found.into()) }))
    }

    async fn list_tunnels(
        &self,
        request: Request<v1::ListTunnelsRequest>,
    ) -> Result<Response<v1::ListTunnelsResponse>, Status> {
        let after = request.into_inner().after;
        let mut tunnels = self.agent.tunnels().await.map_err(|error| status(&error))?;
        tunnels.retain(|tunnel| *tunnel.name.as_str() > *after);
        let (tunnels, more) = page(tunnels.into_iter().map(Into::into));
        Ok(Response::new(v1::ListTunnelsResponse { tunnels, more }))
    }

    type WatchTunnelsStream = ReceiverStream<Result<v1::WatchTunnelsResponse, Status>>;

    async fn watch_tunnels(
        &self,
        request: Request<v1::WatchTunnelsRequest>,
    ) -> Result<Response<Self::WatchTunnelsStream>, Status> {
        if self.watches.len() >= WATCHES {
            return Err(Status::resource_exhausted(
                "many watch this agent already; try again when some have ended",
            ));
        }
        let refused = until_refused(request.extensions());
        let interval = interval(request.into_inner().interval).map_err(|error| status(&error))?;
        // One message waits at most: a slow reader gets fewer, and each has all that changed since the last.
        let (sender, receiver) = tokio::sync::mpsc::channel(1);
        let service = self.clone();
        let stop = self.stop.clone();
        self.watches.spawn(async move {
            let watch = service.watch(interval, &sender);
            tokio::select! {
                () = stop.cancelled() => {}
                () = sender.closed() => {}
                refusal = refused => {
                    // Whoever reads nothing is told by the end alone.
                    let _ = timeout(INTERVAL_LEAST, sender.send(Err(refusal))).await;
                }
                Err(error) = watch => {
                    let _ = sender.send(Err(error)).await;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn get_status(
        &self,
        _: Request<v1::GetStatusRequest>,
    ) -> Result<Response<v1::GetStatusResponse>, Status> {
        let tunnels = self.tunnels().await?;
        let overview = self.agent.overview().await.map_err(|error| status(&error))?;
        let controller = self.agent.controller().await.map_err(|error| status(&error))?;
        let failed = tunnels.iter().filter(|tunnel| tunnel.state() == v1::tunnel_status::State::Failed);
        let diverted = tunnels.iter().filter(|tunnel| !tunnel.preferred.is_empty());
        let findings = tokio::task::spawn_blocking(crate::agent::check::forwarding).await.unwrap_or_default();
        let key_faults = self.facts.key_fault.iter().chain(&overview.key_faults).cloned();
        Ok(Response::new(v1::GetStatusResponse {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started: Some(convert::timestamp(self.facts.started)),
            data_ports: self.facts.data_ports.clone(),
            tunnels: u32::try_from(tunnels.len()).unwrap_or(u32::MAX),
            failed_tunnels: u32::try_from(failed.count()).unwrap_or(u32::MAX),
            diverted_tunnels: u32::try_from(diverted.count()).unwrap_or(u32::MAX),
            datagrams_received: overview.datagrams,
            session_messages: overview.session_messages,
            datagrams_dropped: convert::drops(overview.datagrams_dropped),
            packets_dropped: convert::drops(overview.packets_dropped),
            findings: findings.iter().map(ToString::to_string).chain(key_faults).collect(),
            public_key: self.facts.public_key.to_string(),
            mesh_public_keys: overview
                .keys
                .into_iter()
                .map(|(mesh, key)| (mesh.into(), key.to_string()))
                .collect(),
            weakened: self
                .facts
                .weakened_now(controller.as_ref())
                .into_iter()
                .chain(plain(&tunnels))
                .collect(),
            controller: controller.map(controller_to_wire),
            offloads: offloads(&self.facts.offloads, &tunnels),
        }))
    }

    async fn leave(&self, request: Request<v1::LeaveRequest>) -> Result<Response<v1::LeaveResponse>, Status> {
        let tunnels = self.agent.leave().await.map_err(|error| status(&error))?;
        tell(&asker(&request), "Leave", "");
        Ok(Response::new(v1::LeaveResponse { tunnels: u32::try_from(tunnels).unwrap_or(u32::MAX) }))
    }
}

/// Says which devices have tunnels that are not encrypted, or take what is not.
fn plain(tunnels: &[v1::TunnelStatus]) -> impl Iterator<Item = String> {
    let is_plain = |tunnel: &v1::Tunnel| tunnel.framing() != v1::tunnel::Framing::Wireguard;
    let not = on_devices(tunnels, is_plain)
        .map(|on| format!("{on} are not encrypted: whoever can read the underlay reads them"));
    let also = on_devices(tunnels, |tunnel| tunnel.also_plain && !is_plain(tunnel)).map(|on| {
        format!("{on} take unencrypted packets, too, and send them until keys are agreed on with the peer")
    });
    not.into_iter().chain(also)
}

/// Names the devices of the tunnels that a condition holds for, if there are any.
fn on_devices(tunnels: &[v1::TunnelStatus], holds: impl Fn(&v1::Tunnel) -> bool) -> Option<String> {
    let tunnels = tunnels.iter().filter_map(|status| status.tunnel.as_ref());
    let mut devices: Vec<&str> =
        tunnels.filter(|tunnel| holds(tunnel)).map(|tunnel| tunnel.device.as_str()).collect();
    devices.sort_unstable();
    devices.dedup();
    let shown = devices.iter().take(PLAIN_DEVICES).copied().collect::<Vec<_>>().join(", ");
    let more = match devices.len().saturating_sub(PLAIN_DEVICES) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    (!devices.is_empty()).then(|| format!("tunnels on {shown}{more}"))
}

/// What is used on the whole host. What one tunnel has off that is of the data port is off for all.
fn offloads(of_host: &[OffloadState], tunnels: &[v1::TunnelStatus]) -> Vec<v1::OffloadState> {
    let of_port = Offload::UdpGro;
    let states = of_host.iter().map(|state| {
        let tunnel = tunnels.iter().filter_map(|status| status.tunnel.as_ref()).find(|tunnel| {
            state.offload == of_port && tunnel.without.iter().any(|name| name == of_port.name())
        });
        let by_tunnel = || tunnel.map(|tunnel| format!("switched off by tunnel {}", tunnel.name));
        OffloadState { offload: state.offload, why_off: state.why_off.clone().or_else(by_tunnel) }
    });
    states.map(Into::into).collect()
}

fn controller_to_wire(status: ControllerStatus) -> v1::ControllerStatus {
    use v1::controller_status::State;
    let ControllerStatus { session, store_id, generation, held, failures } = status;
    let held = held.iter().map(ToString::to_string);
    let (held, more_held) = Room(MESSAGE / 4).fill(held, String::len);
    let failures = failures.into_iter().map(|(item, why)| (item.to_string(), why));
    // A pair is a message of its own.
    let (failures, more_failures) =
        Room(MESSAGE / 2).fill(failures, |(item, why)| item.len() + why.len() + 2 * FIELD);
    let mut wire = v1::ControllerStatus {
        store_id: store_id.unwrap_or_default(),
        generation: generation.map(|generation| generation.to_string()).unwrap_or_default(),
        held,
        failures: failures.into_iter().collect(),
        more_held,
        more_failures,
        state: State::NotDialled.into(),
        ..v1::ControllerStatus::default()
    };
    if let Some(session) = session {
        wire.node = session.node.to_string();
        wire.address = session.address;
        wire.since = Some(convert::timestamp(session.since));
        wire.last_heard = session.last_heard.map(convert::timestamp);
        wire.trouble = session.trouble.unwrap_or_default();
        wire.set_state(match session.state {
            SessionState::Waiting => State::Waiting,
            SessionState::Dialling => State::Dialling,
            SessionState::Connected => State::Connected,
            SessionState::Synced => State::Synced,
            SessionState::Ended => State::NotDialled,
        });
    }
    wire
}

impl Local {
    /// Sends the tunnels, then what changes, until the reader or the agent goes away.
    async fn watch(
        &self,
        interval: Duration,
        sender: &tokio::sync::mpsc::Sender<Result<v1::WatchTunnelsResponse, Status>>,
    ) -> Result<(), Status> {
        let mut known = BTreeMap::new();
        let mut ticks = tokio::time::interval(interval);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut first = true;
        loop {
            ticks.tick().await;
            let now: BTreeMap<String, v1::TunnelStatus> = self
                .tunnels()
                .await?
                .into_iter()
                .map(|status| (status.tunnel.as_ref().map_or_else(String::new, |t| t.name.clone()), status))
                .collect();
            let changed = now.iter().filter(|(name, status)| known.get(*name) != Some(*status));
            let changed: Vec<_> = changed.map(|(_, status)| status.clone()).collect();
            let removed: Vec<_> = known.keys().filter(|name| !now.contains_key(*name)).cloned().collect();
            if first || !changed.is_empty() || !removed.is_empty() {
                let mut removed = Some(removed);
                for changed in parts(changed) {
                    let removed = removed.take().unwrap_or_default();
                    let message = v1::WatchTunnelsResponse { changed, removed };
                    if sender.send(Ok(message)).await.is_err() {
                        return Ok(());
                    }
                }
            }
            first = false;
            known = now;
        }
    }
}

fn interval(wanted: Option<pbjson_types::Duration>) -> Result<Duration, CommandError> {
    let Some(wanted) = wanted else { return Ok(INTERVAL) };
    let seconds = u64::try_from(wanted.seconds);
    let nanos = u32::try_from(wanted.nanos);
    let interval = match (seconds, nanos) {
        (Ok(seconds), Ok(nanos)) if nanos < 1_000_000_000 => Some(Duration::new(seconds, nanos)),
        (Ok(_) | Err(_), Ok(_) | Err(_)) => None,
    };
    interval.filter(|interval| (INTERVAL_LEAST..=INTERVAL_MOST).contains(interval)).ok_or_else(|| {
        CommandError::invalid(
            Field::Interval,
            format!("{}.{:09}s", wanted.seconds, wanted.nanos),
            Invalid::new("is out of range", "use 0.1s to 3600s"),
        )
    })
}
