//! MeshAdmin: convert, ask the controller, convert back.

mod joining;
mod links;
mod operators;
mod plan;
mod wire;

use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::{Code, Request, Response, Status};

use super::Facts;
use super::enrolment::{not_changed, unsigned, wire_certificate};
use crate::controller::audit::Deed;
use crate::controller::credentials::Credentials;
use crate::controller::mesh::{self, Mesh};
use crate::controller::runtime::{Applied, ControllerHandle, OrderError, Stopping};
use crate::controller::state::ControllerState;
use crate::controller::store::Store;
use crate::controller::stored::AUDIT;
use crate::controller::trust::{Draft, Trust};
use crate::proto::convert::room::page;
use crate::proto::convert::timestamp;
use crate::proto::host::access::{asker, until_refused};
use crate::proto::host::clock::since_epoch;
use crate::proto::model::{Invalid, MeshName, NodeName, OperatorName, PublicKey};
use crate::proto::session::Generation;
use crate::proto::trust::TokenId;
use crate::proto::v1;
use crate::proto::v1::mesh_admin_server::MeshAdmin;

/// How often one watch is told of progress at most: a thousand nodes acknowledge within a moment.
const PAUSE: Duration = Duration::from_millis(100);
/// How old what it tells of ages is at most.
const AGED: Duration = Duration::from_secs(1);

/// The service of one controller.
#[derive(Clone)]
pub struct Admin {
    controller: ControllerHandle,
    facts: Arc<Facts>,
    credentials: Arc<Credentials>,
    store: Arc<dyn Store>,
    watches: TaskTracker,
    /// Whose mesh file is read.
    reading: Arc<Semaphore>,
    stop: CancellationToken,
}

impl Admin {
    /// A service for `controller`, which is known by `credentials` and has `store`; it and its watches end with `stop`.
    pub fn new(
        controller: ControllerHandle,
        facts: Facts,
        credentials: Arc<Credentials>,
        store: Arc<dyn Store>,
        stop: CancellationToken,
    ) -> Self {
        let (facts, reading) = (Arc::new(facts), Arc::new(Semaphore::new(1)));
        Self { controller, facts, credentials, store, watches: TaskTracker::new(), reading, stop }
    }

    /// Runs a watch until it, its reader, the reader's right to look or the controller ends. As long it keeps the connection
    /// of `request`.
    fn watch<T, W, R>(
        &self,
        request: &Request<R>,
        watch: impl FnOnce(Self, mpsc::Sender<Result<T, Status>>) -> W,
    ) -> Watch<T>
    where
        T: Send + 'static,
        W: Future<Output = Result<(), Status>> + Send + 'static,
    {
        let (sender, receiver) = mpsc::channel(1);
        let stop = self.stop.clone();
        let watch = watch(self.clone(), sender.clone());
        let refused = until_refused(request.extensions());
        self.watches.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = sender.closed() => {}
                refusal = refused => {
                    // Whoever reads nothing is told by the end alone.
                    let _ = timeout(PAUSE, sender.send(Err(refusal))).await;
                }
                ended = watch => {
                    if let Err(error) = ended {
                        // Whoever asked may have gone away meanwhile.
                        let _ = sender.send(Err(error)).await;
                    }
                }
            }
        });
        Response::new(ReceiverStream::new(receiver))
    }
}

impl Admin {
    /// Who may join and who may steer, once the store has been read.
    async fn trust(&self) -> Result<Arc<Trust>, Stopping> {
        self.controller.look(|state: &ControllerState, _, _| Arc::clone(&state.stored().trust)).await
    }

    /// The mesh that a file says. Large files are read one after the other, beside all else.
    async fn parse(&self, file: Option<v1::MeshFile>) -> Result<Mesh, Status> {
        let Some(v1::MeshFile { name, content }) = file else {
            let words = "file is missing; give a mesh file".to_owned();
            return Err(wire::refused(Code::InvalidArgument, vec![("file".to_owned(), words)]));
        };
        let turn = Arc::clone(&self.reading).acquire_owned().await;
        let parse = move || {
            let parsed = mesh::parse(&content);
            drop(turn);
            parsed
        };
        let parsed = tokio::task::spawn_blocking(parse).await.map_err(|_| Stopping)?;
        let name = if name.is_empty() { "mesh.yaml" } else { &name };
        parsed.map_err(|faults| wire::faulty(name, &faults))
    }
}

type Watch<T> = Response<ReceiverStream<Result<T, Status>>>;

impl From<Stopping> for Status {
    fn from(stopping: Stopping) -> Self {
        Self::unavailable(stopping.to_string())
    }
}

fn refused(error: OrderError) -> Status {
    match error {
        OrderError::Refused(error) => wire::not_applied(error),
        OrderError::Store(reason) => wire::not_stored(&reason),
        OrderError::Busy => {
            Status::resource_exhausted("many plans and changes are being worked out; try again in a moment")
        }
        OrderError::Stopping => Stopping.into(),
    }
}

/// What a field of a request says.
fn parsed<T: FromStr<Err = Invalid>>(field: &str, text: &str) -> Result<T, Status> {
    text.parse().map_err(|fault: Invalid| {
        wire::refused(Code::InvalidArgument, vec![(field.to_owned(), fault.describe(field, text))])
    })
}

#[tonic::async_trait]
impl MeshAdmin for Admin {
    async fn plan(&self, request: Request<v1::PlanRequest>) -> Result<Response<v1::PlanResponse>, Status> {
        let v1::PlanRequest { file, allow_removals } = request.into_inner();
        let plan = self.controller.plan(self.parse(file).await?).await.map_err(refused)?;
        let unconsented = (!allow_removals && !plan.mass_removals.is_empty())
            .then(|| wire::needs_consent(plan.mass_removals.iter().cloned()));
        let mut answer = plan::response(plan);
        answer.hazards.splice(0..0, unconsented);
        Ok(Response::new(answer))
    }

    async fn apply(&self, request: Request<v1::ApplyRequest>) -> Result<Response<v1::ApplyResponse>, Status> {
        let asker = asker(&request);
        let v1::ApplyRequest { file, plan, allow_removals } = request.into_inner();
        let hash = (!plan.is_empty()).then(|| parsed("plan", &plan)).transpose()?;
        let applied = self.controller.apply(self.parse(file).await?, hash, allow_removals, asker).await;
        let Applied { plan, generation } = applied.map_err(refused)?;
        Ok(Response::new(v1::ApplyResponse {
            plan: Some(plan::response(plan)),
            generation: Some(generation.into()),
        }))
    }

    async fn list_meshes(
        &self,
        request: Request<v1::ListMeshesRequest>,
    ) -> Result<Response<v1::ListMeshesResponse>, Status> {
        let after = request.into_inner().after;
        let meshes = self.controller.look(move |state, _, _| {
            let rest: Vec<_> = state.meshes().filter(|(mesh, _)| *mesh.name.as_str() > *after).collect();
            page(rest.into_iter().map(|(mesh, revision)| wire::mesh(state.stored(), mesh, revision)))
        });
        let (meshes, more) = meshes.await?;
        Ok(Response::new(v1::ListMeshesResponse { meshes, more }))
    }

    async fn delete_mesh(
        &self,
        request: Request<v1::DeleteMeshRequest>,
    ) -> Result<Response<v1::DeleteMeshResponse>, Status> {
        let asker = asker(&request);
        let request = request.into_inner();
        let mesh: MeshName = parsed("name", &request.name)?;
        let deleted = self.controller.delete_mesh(mesh, request.allow_removals, asker).await;
        let Applied { plan, generation } = deleted.map_err(refused)?;
        Ok(Response::new(v1::DeleteMeshResponse {
            generation: Some(generation.into()),
            plan: Some(plan::response(plan)),
        }))
    }

    async fn get_controller_status(
        &self,
        _: Request<v1::GetControllerStatusRequest>,
    ) -> Result<Response<v1::GetControllerStatusResponse>, Status> {
        let look = |state: &ControllerState, now, _| {
            (state.status(now), state.stored().wanted.weakened(), state.petitions(now), now)
        };
        let (status, of_meshes, petitions, now) = self.controller.look(look).await?;
        let (waiting, more_waiting) = joining::waiting(&petitions, &self.controller.trust(), now);
        let facts = &self.facts;
        Ok(Response::new(v1::GetControllerStatusResponse {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started: Some(timestamp(facts.started)),
            listen: facts.listen.clone(),
            store: facts.store.clone(),
            weakened: facts.weakened.iter().cloned().chain(of_meshes).collect(),
            findings: self.credentials.findings(since_epoch()),
            waiting,
            more_waiting,
            ..wire::status(status)
        }))
    }

    async fn list_nodes(
        &self,
        request: Request<v1::ListNodesRequest>,
    ) -> Result<Response<v1::ListNodesResponse>, Status> {
        let after = request.into_inner().after;
        let mut nodes = self.controller.look(|state, now, _| state.nodes(now)).await?;
        nodes.retain(|node| *node.name.as_str() > *after);
        let (nodes, more) = page(nodes.into_iter().map(wire::node));
        Ok(Response::new(v1::ListNodesResponse { nodes, more }))
    }

    async fn list_node_tunnels(
        &self,
        request: Request<v1::ListNodeTunnelsRequest>,
    ) -> Result<Response<v1::ListNodeTunnelsResponse>, Status> {
        let v1::ListNodeTunnelsRequest { node, after } = request.into_inner();
        let node: NodeName = parsed("node", &node)?;
        let Some(tunnels) = self.controller.node_tunnels(node.clone()).await? else {
            let words = format!("node {:?} is not known; `controller nodes` has their names", node.as_str());
            return Err(wire::refused(Code::NotFound, vec![("node".to_owned(), words)]));
        };
        Ok(Response::new(wire::node_tunnels(tunnels, &after)))
    }

    async fn list_links(
        &self,
        request: Request<v1::ListLinksRequest>,
    ) -> Result<Response<v1::ListLinksResponse>, Status> {
        let v1::ListLinksRequest { after, mesh } = request.into_inner();
        let mesh: Option<MeshName> = (!mesh.is_empty()).then(|| parsed("mesh", &mesh)).transpose()?;
        let look = move |state: &ControllerState, now, _| {
            let unknown = mesh.as_ref().filter(|mesh| !state.stored().wanted.meshes.contains_key(*mesh));
            match unknown {
                Some(mesh) => {
                    Err(format!("mesh {mesh} is not known; `controller mesh list` has their names"))
                }
                None => Ok(links::list(state, &after, mesh.as_ref(), now)),
            }
        };
        let listed = self.controller.look(look).await?;
        let listed = listed.map_err(|words| wire::refused(Code::NotFound, vec![("mesh".to_owned(), words)]));
        Ok(Response::new(listed?))
    }

    async fn diagnose(
        &self,
        request: Request<v1::DiagnoseRequest>,
    ) -> Result<Response<v1::DiagnoseResponse>, Status> {
        let v1::DiagnoseRequest { node, peer, mesh } = request.into_inner();
        let ends = [parsed("node", &node)?, parsed("peer", &peer)?];
        let mesh: Option<MeshName> = (!mesh.is_empty()).then(|| parsed("mesh", &mesh)).transpose()?;
        match self.controller.diagnose(ends, mesh).await? {
            Ok((inquiry, evidence)) => Ok(Response::new(wire::diagnosis(inquiry, &evidence))),
            Err(error) => Err(wire::refused(Code::NotFound, vec![("node".to_owned(), error.to_string())])),
        }
    }

    async fn create_token(
        &self,
        request: Request<v1::CreateTokenRequest>,
    ) -> Result<Response<v1::CreateTokenResponse>, Status> {
        self.make_token(request).await
    }

    async fn list_tokens(
        &self,
        request: Request<v1::ListTokensRequest>,
    ) -> Result<Response<v1::ListTokensResponse>, Status> {
        let after = request.into_inner().after;
        let trust = self.trust().await?;
        let rest: Vec<_> = trust.tokens.iter().filter(|(id, _)| *id.as_str() > *after).collect();
        let (tokens, more) = page(rest.into_iter().map(|(id, token)| joining::token(id, token)));
        Ok(Response::new(v1::ListTokensResponse { tokens, more }))
    }

    async fn revoke_token(
        &self,
        request: Request<v1::RevokeTokenRequest>,
    ) -> Result<Response<v1::RevokeTokenResponse>, Status> {
        let asker = asker(&request);
        let id: TokenId = parsed("id", &request.into_inner().id)?;
        let deed = Deed { asker, method: "RevokeToken", what: format!("token {id}") };
        let revoked = self.controller.change(Some(deed), move |draft, _| draft.revoke_token(&id)).await;
        revoked.map_err(not_changed)?;
        Ok(Response::new(v1::RevokeTokenResponse {}))
    }

    async fn approve_node(
        &self,
        request: Request<v1::ApproveNodeRequest>,
    ) -> Result<Response<v1::ApproveNodeResponse>, Status> {
        self.let_in(request).await
    }

    async fn remove_node(
        &self,
        request: Request<v1::RemoveNodeRequest>,
    ) -> Result<Response<v1::RemoveNodeResponse>, Status> {
        self.take_out(request).await
    }

    async fn create_operator(
        &self,
        request: Request<v1::CreateOperatorRequest>,
    ) -> Result<Response<v1::CreateOperatorResponse>, Status> {
        self.make_operator(request).await
    }

    async fn list_operators(
        &self,
        request: Request<v1::ListOperatorsRequest>,
    ) -> Result<Response<v1::ListOperatorsResponse>, Status> {
        let after = request.into_inner().after;
        let trust = self.trust().await?;
        let rest: Vec<_> = trust.operators.iter().filter(|(name, _)| *name.as_str() > *after).collect();
        let (operators, more) = page(rest.into_iter().map(|(name, known)| operators::operator(name, known)));
        Ok(Response::new(v1::ListOperatorsResponse { operators, more }))
    }

    async fn remove_operator(
        &self,
        request: Request<v1::RemoveOperatorRequest>,
    ) -> Result<Response<v1::RemoveOperatorResponse>, Status> {
        let asker = asker(&request);
        let name: OperatorName = parsed("name", &request.into_inner().name)?;
        let deed = Deed { asker, method: "RemoveOperator", what: format!("operator {name}") };
        let removed = self.controller.change(Some(deed), move |draft, _| draft.remove_operator(&name)).await;
        removed.map_err(not_changed)?;
        Ok(Response::new(v1::RemoveOperatorResponse {}))
    }

    async fn get_authority(
        &self,
        _: Request<v1::GetAuthorityRequest>,
    ) -> Result<Response<v1::GetAuthorityResponse>, Status> {
        Ok(Response::new(wire::authority(&self.credentials.authority())))
    }

    async fn rotate_root(
        &self,
        request: Request<v1::RotateRootRequest>,
    ) -> Result<Response<v1::RotateRootResponse>, Status> {
        let asker = asker(&request);
        let credentials = Arc::clone(&self.credentials);
        let rotated = tokio::task::spawn_blocking(move || credentials.rotate(since_epoch())).await;
        rotated.map_err(|_| Stopping)?.map_err(|error| unsigned(&error))?;
        tracing::info!("the next root is made; the last one is believed for 45 days more");
        let authority = wire::authority(&self.credentials.authority());
        let pin = authority.roots.first().map_or("", |root| &root.pin);
        // Keys are in no store: this alone is not one transaction with what it tells.
        let deed = Deed { asker, method: "RotateRoot", what: format!("root {pin}") };
        let tell = move |draft: &mut Draft, _| {
            draft.tell(deed.clone());
            Ok(())
        };
        self.controller.change(None, tell).await.map_err(|error| {
            let fault = not_changed(error);
            let words = format!("the next root is made, but the audit log has it not: {}", fault.message());
            Status::new(fault.code(), words)
        })?;
        Ok(Response::new(v1::RotateRootResponse { authority: Some(authority) }))
    }

    async fn list_audit(
        &self,
        request: Request<v1::ListAuditRequest>,
    ) -> Result<Response<v1::ListAuditResponse>, Status> {
        let after = request.into_inner().after;
        let (entries, _) =
            self.store.read(AUDIT).await.map_err(|error| wire::not_stored(&error.to_string()))?;
        Ok(Response::new(wire::audit(&entries, after)))
    }

    async fn export_wireguard(
        &self,
        request: Request<v1::ExportWireguardRequest>,
    ) -> Result<Response<v1::ExportWireguardResponse>, Status> {
        let v1::ExportWireguardRequest { node, mesh, public_key } = request.into_inner();
        let node: NodeName = parsed("node", &node)?;
        let mesh: Option<MeshName> = (!mesh.is_empty()).then(|| parsed("mesh", &mesh)).transpose()?;
        let key: Option<PublicKey> =
            (!public_key.is_empty()).then(|| parsed("public_key", &public_key)).transpose()?;
        let look = move |state: &ControllerState, _, _| {
            let stored = state.stored();
            let export = match key {
                None => stored.wanted.export(&node, mesh.as_ref()),
                Some(key) => stored.wanted.export_with(&node, mesh.as_ref(), key),
            };
            export.map(|export| (export, stored.generation()))
        };
        let (export, generation) = self.controller.look(look).await?.map_err(wire::unfit)?;
        Ok(Response::new(wire::export(export, generation)))
    }

    async fn set_wireguard_key(
        &self,
        request: Request<v1::SetWireguardKeyRequest>,
    ) -> Result<Response<v1::SetWireguardKeyResponse>, Status> {
        let asker = asker(&request);
        let v1::SetWireguardKeyRequest { node, mesh, public_key } = request.into_inner();
        let node: NodeName = parsed("node", &node)?;
        let mesh: Option<MeshName> = (!mesh.is_empty()).then(|| parsed("mesh", &mesh)).transpose()?;
        let key: PublicKey = parsed("public_key", &public_key)?;
        let named = node.clone();
        let look = move |state: &ControllerState, _, _| {
            let found = state.stored().wanted.mesh_of_wireguard(&named, mesh.as_ref());
            found.map(|mesh| mesh.name.clone())
        };
        let mesh = self.controller.look(look).await?.map_err(wire::unfit)?;
        let Applied { plan, generation } =
            self.controller.give_key(mesh, node, key, asker).await.map_err(refused)?;
        Ok(Response::new(v1::SetWireguardKeyResponse {
            generation: Some(generation.into()),
            plan: Some(plan::response(plan)),
        }))
    }

    type WatchEventsStream = ReceiverStream<Result<v1::Event, Status>>;

    async fn watch_events(
        &self,
        request: Request<v1::WatchEventsRequest>,
    ) -> Result<Watch<v1::Event>, Status> {
        let v1::WatchEventsRequest { follow, mut after } = *request.get_ref();
        Ok(self.watch(&request, move |service, sender| async move {
            let mut progress = service.controller.progress();
            loop {
                for event in service.controller.events_after(after).await? {
                    after = event.number;
                    if sender.send(Ok(wire::event(&event))).await.is_err() {
                        return Ok(());
                    }
                }
                let is_behind = progress.borrow_and_update().last_event > after;
                if !is_behind && (!follow || progress.wait_for(|now| now.last_event > after).await.is_err()) {
                    return Ok(());
                }
            }
        }))
    }

    type WatchConvergenceStream = ReceiverStream<Result<v1::Convergence, Status>>;

    async fn watch_convergence(
        &self,
        request: Request<v1::WatchConvergenceRequest>,
    ) -> Result<Watch<v1::Convergence>, Status> {
        let wanted: Generation = match request.get_ref().generation {
            Some(generation) => generation.into(),
            None => self.controller.look(|state, _, _| state.stored().generation()).await?,
        };
        Ok(self.watch(&request, move |service, sender| async move {
            let mut progress = service.controller.progress();
            loop {
                progress.mark_unchanged();
                let convergence = service.controller.convergence().await?;
                let has_ended =
                    convergence.generation >= wanted && convergence.converged == convergence.nodes;
                let told = sender.send(Ok(wire::convergence(convergence))).await;
                if has_ended || told.is_err() {
                    return Ok(());
                }
                tokio::time::sleep(PAUSE).await;
                if let Ok(Err(_)) = tokio::time::timeout(AGED, progress.changed()).await {
                    return Ok(());
                }
            }
        }))
    }
}

#[cfg(test)]
mod tests;
