//! Operators' orders: judged, committed, and answered once they have come into the state.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::JoinSet;

use super::Stopping;
use crate::controller::mesh::Mesh;
use crate::controller::plan::Plan;
use crate::controller::state::{ApplyError, ControllerState};
use crate::controller::store::{Store, StoreError};
use crate::proto::model::MeshName;
use crate::proto::session::Generation;

/// An order that was carried out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    /// What was done; without operations all of it was there already.
    pub plan: Plan,
    /// A generation that has it.
    pub generation: Generation,
}

/// Why an order was not carried out. Nothing changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OrderError {
    /// It is refused.
    Refused(ApplyError),
    /// The store cannot be written, in words why.
    Store(String),
    /// The controller is stopping.
    Stopping,
}

impl From<Stopping> for OrderError {
    fn from(Stopping: Stopping) -> Self {
        Self::Stopping
    }
}

/// What an operator wants.
#[derive(Debug, Clone)]
pub(super) enum Order {
    Apply { mesh: Box<Mesh>, hash: Option<String>, allow_removals: bool },
    Delete { mesh: MeshName, allow_removals: bool },
}

impl Order {
    fn mesh(&self) -> &MeshName {
        match self {
            Self::Apply { mesh, .. } => &mesh.name,
            Self::Delete { mesh, .. } => mesh,
        }
    }
}

type Reply = oneshot::Sender<Result<Applied, OrderError>>;

/// An order whose transaction the store has answered.
pub(super) struct Committed {
    order: Order,
    plan: Plan,
    /// The store's revision by which it was judged.
    judged: u64,
    /// The revision that had set the mesh then.
    before: Option<u64>,
    result: Result<u64, StoreError>,
    reply: Reply,
}

impl Committed {
    /// Why the store could not be written.
    pub(super) fn failure(&self) -> Option<&str> {
        match &self.result {
            Err(StoreError::Unavailable(reason)) => Some(reason),
            Ok(_) | Err(StoreError::Conflict(_)) => None,
        }
    }
}

/// The orders that are not answered yet.
pub(super) struct Orders {
    store: Arc<dyn Store>,
    commits: JoinSet<Committed>,
    /// Committed; the state has not come to the revision yet.
    done: Vec<(u64, Plan, Reply)>,
    /// Lost against another transaction; the state has not come past the revision yet.
    lost: Vec<(u64, Option<u64>, Order, Reply)>,
}

impl Orders {
    pub(super) fn new(store: Arc<dyn Store>) -> Self {
        Self { store, commits: JoinSet::new(), done: Vec::new(), lost: Vec::new() }
    }

    /// Judges an order and has it committed.
    pub(super) fn begin(&mut self, order: Order, reply: Reply, state: &ControllerState, wall: Duration) {
        let judgement = match order.clone() {
            Order::Apply { mesh, hash, allow_removals } => {
                state.apply(*mesh, hash.as_deref(), allow_removals, wall)
            }
            Order::Delete { mesh, allow_removals } => {
                state.delete_mesh(&mesh, allow_removals).map(|(plan, transaction)| (plan, Some(transaction)))
            }
        };
        let judged = state.stored().revision;
        let before = state.stored().mesh_revision(order.mesh());
        match judgement {
            // Whoever asked may have gone away meanwhile; so for all answers.
            Err(error) => _ = reply.send(Err(OrderError::Refused(error))),
            Ok((plan, None)) => self.done.push((judged, plan, reply)),
            Ok((plan, Some(transaction))) => {
                let store = Arc::clone(&self.store);
                self.commits.spawn(async move {
                    let result = store.commit(transaction).await;
                    Committed { order, plan, judged, before, result, reply }
                });
            }
        }
    }

    /// The next order that the store has answered; `None`: none is on its way.
    pub(super) async fn next(&mut self) -> Option<Committed> {
        // A task that panicked has dropped its reply, which is an answer.
        self.commits.join_next().await?.ok()
    }

    /// Takes in what the store answered.
    pub(super) fn settle(&mut self, committed: Committed) {
        let Committed { order, plan, judged, before, result, reply } = committed;
        match result {
            Ok(revision) => {
                tracing::info!(mesh = %order.mesh(), revision, "{}", match order {
                    Order::Apply { .. } => "mesh is applied",
                    Order::Delete { .. } => "mesh is deleted",
                });
                self.done.push((revision, plan, reply));
            }
            Err(StoreError::Conflict(_)) => self.lost.push((judged, before, order, reply)),
            Err(StoreError::Unavailable(reason)) => _ = reply.send(Err(OrderError::Store(reason))),
        }
    }

    /// Answers those that the state has come to, and judges those again that lost.
    pub(super) fn handle_state(&mut self, state: &ControllerState, wall: Duration) {
        let generation = state.generation();
        for (_, plan, reply) in self.done.extract_if(.., |(revision, ..)| *revision <= generation.revision) {
            let _ = reply.send(Ok(Applied { plan, generation }));
        }
        let revision = state.stored().revision;
        let again: Vec<_> = self.lost.extract_if(.., |(judged, ..)| *judged < revision).collect();
        for (judged, before, order, reply) in again {
            if state.stored().mesh_revision(order.mesh()) == before {
                // Only the nodes' addresses, which came or went by their labels, or other meshes.
                self.begin(order, reply, state, wall);
            } else {
                let changed = state.changed_since(order.mesh(), judged);
                let _ = reply.send(Err(OrderError::Refused(ApplyError::PlanChanged(changed))));
            }
        }
    }
}
