//! Operators' orders: judged one after the other and beside all else, committed, and answered once they have come
//! into the state.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::{JoinError, JoinSet};

use super::Stopping;
use crate::controller::audit::Deed;
use crate::controller::mesh::Mesh;
use crate::controller::plan::{Plan, PlanHash};
use crate::controller::state::{ApplyError, Basis, ControllerState};
use crate::controller::store::transaction::Transaction;
use crate::controller::store::{Store, StoreError};
use crate::proto::model::{MeshName, NodeName, PublicKey};
use crate::proto::session::Generation;
use crate::proto::trust::Asker;

/// How many orders wait for their judgement at most.
const WAITING: usize = 64;

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
    /// Too many are before it.
    Busy,
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
    /// To know what applying it would do.
    Plan(Box<Mesh>),
    Apply {
        mesh: Box<Mesh>,
        hash: Option<PlanHash>,
        allow_removals: bool,
        asker: Asker,
    },
    Delete {
        mesh: MeshName,
        allow_removals: bool,
        asker: Asker,
    },
    /// That a node without an agent has this key.
    GiveKey {
        mesh: MeshName,
        node: NodeName,
        key: PublicKey,
        asker: Asker,
    },
}

impl Order {
    fn mesh(&self) -> &MeshName {
        match self {
            Self::Plan(mesh) | Self::Apply { mesh, .. } => &mesh.name,
            Self::Delete { mesh, .. } | Self::GiveKey { mesh, .. } => mesh,
        }
    }

    /// The plan, and what is to be committed.
    fn judge(&self, basis: &Basis, wall: Duration) -> Result<(Plan, Option<Transaction>), ApplyError> {
        match self {
            Self::Plan(mesh) => Ok((basis.plan(Mesh::clone(mesh), wall), None)),
            Self::Apply { mesh, hash, allow_removals, asker } => {
                let deeds = [deed("Apply", &mesh.name, asker)];
                let (plan, mut transaction) = basis.apply(Mesh::clone(mesh), *hash, *allow_removals, wall)?;
                let recorded = transaction.iter_mut();
                recorded.for_each(|transaction| basis.stored().record(&deeds, wall, transaction));
                Ok((plan, transaction))
            }
            Self::Delete { mesh, allow_removals, asker } => {
                let (plan, mut transaction) = basis.delete_mesh(mesh, *allow_removals)?;
                basis.stored().record(&[deed("DeleteMesh", mesh, asker)], wall, &mut transaction);
                Ok((plan, Some(transaction)))
            }
            Self::GiveKey { mesh, node, key, asker } => {
                let (plan, mut transaction) = basis.give_key(mesh, node, *key)?;
                let what = format!("the key of {node} in mesh {mesh}");
                let deed = Deed { asker: asker.clone(), method: "SetWireguardKey", what };
                basis.stored().record(&[deed], wall, &mut transaction);
                Ok((plan, Some(transaction)))
            }
        }
    }
}

fn deed(method: &'static str, mesh: &MeshName, asker: &Asker) -> Deed {
    Deed { asker: asker.clone(), method, what: format!("mesh {mesh}") }
}

type Reply = oneshot::Sender<Result<Applied, OrderError>>;

/// An order, and by what it was judged.
pub(super) struct Judged {
    order: Order,
    reply: Reply,
    generation: Generation,
    /// The revision that had set the mesh then.
    before: Option<u64>,
}

/// What has come of an order.
pub(super) enum Step {
    Judged(Box<Judged>, Result<(Plan, Option<Transaction>), ApplyError>),
    Committed(Box<Judged>, Plan, Result<u64, StoreError>),
    /// Its task broke, and has dropped the reply, which is an answer.
    Broken,
}

impl From<JoinError> for Step {
    fn from(_: JoinError) -> Self {
        Self::Broken
    }
}

impl Step {
    /// Why the store could not be written.
    pub(super) fn failure(&self) -> Option<&str> {
        match self {
            Self::Committed(_, _, Err(StoreError::Unavailable(reason))) => Some(reason),
            Self::Committed(..) | Self::Judged(..) | Self::Broken => None,
        }
    }
}

/// The orders that are not answered yet.
pub(super) struct Orders {
    store: Arc<dyn Store>,
    waiting: VecDeque<(Order, Reply)>,
    /// One at most, whatever is asked: a judgement of a large mesh keeps a processor busy.
    judgements: JoinSet<Step>,
    commits: JoinSet<Step>,
    /// Committed; the state has not come to the revision yet.
    done: Vec<(u64, Plan, Reply)>,
    /// Lost against another transaction; the state has not come past the revision yet.
    lost: Vec<Judged>,
}

impl Orders {
    pub(super) fn new(store: Arc<dyn Store>) -> Self {
        Self {
            store,
            waiting: VecDeque::new(),
            judgements: JoinSet::new(),
            commits: JoinSet::new(),
            done: Vec::new(),
            lost: Vec::new(),
        }
    }

    /// Takes in an order. [`Self::handle_state`] begins with it.
    pub(super) fn take_in(&mut self, order: Order, reply: Reply) {
        if self.waiting.len() >= WAITING {
            // Whoever asked may have gone away meanwhile; so for all answers.
            let _ = reply.send(Err(OrderError::Busy));
            return;
        }
        self.waiting.push_back((order, reply));
    }

    /// The next step of an order; `None`: none is under way.
    pub(super) async fn next(&mut self) -> Option<Step> {
        let step = tokio::select! {
            Some(step) = self.judgements.join_next() => step,
            Some(step) = self.commits.join_next() => step,
            else => return None,
        };
        Some(step.unwrap_or_else(Step::from))
    }

    /// Does what follows from a step.
    pub(super) fn settle(&mut self, step: Step) {
        match step {
            Step::Judged(judged, Err(error)) => {
                let _ = judged.reply.send(Err(OrderError::Refused(error)));
            }
            Step::Judged(judged, Ok((plan, None))) => match judged.order {
                Order::Plan(_) => {
                    let _ = judged.reply.send(Ok(Applied { plan, generation: judged.generation }));
                }
                Order::Apply { .. } | Order::Delete { .. } | Order::GiveKey { .. } => {
                    self.done.push((judged.generation.revision, plan, judged.reply));
                }
            },
            Step::Judged(judged, Ok((plan, Some(transaction)))) => {
                let store = Arc::clone(&self.store);
                self.commits.spawn(async move {
                    let result = store.commit(transaction).await;
                    Step::Committed(judged, plan, result)
                });
            }
            Step::Committed(judged, plan, Ok(revision)) => {
                tracing::info!(mesh = %judged.order.mesh(), revision, "{}", match judged.order {
                    Order::Plan(_) | Order::Apply { .. } => "mesh is applied",
                    Order::Delete { .. } => "mesh is deleted",
                    Order::GiveKey { .. } => "a node without an agent has a new key",
                });
                self.done.push((revision, plan, judged.reply));
            }
            Step::Committed(judged, _, Err(StoreError::Conflict(_))) => self.lost.push(*judged),
            Step::Committed(judged, _, Err(StoreError::Unavailable(reason))) => {
                let _ = judged.reply.send(Err(OrderError::Store(reason)));
            }
            Step::Broken => {}
        }
    }

    /// Answers those that the state has come to, and judges the next, those first that lost.
    pub(super) fn handle_state(&mut self, state: &ControllerState, wall: Duration) {
        let generation = state.generation();
        for (_, plan, reply) in self.done.extract_if(.., |(revision, ..)| state.has_come_to(*revision)) {
            let _ = reply.send(Ok(Applied { plan, generation }));
        }
        let revision = state.stored().revision;
        let again: Vec<_> =
            self.lost.extract_if(.., |judged| judged.generation.revision < revision).collect();
        for Judged { order, reply, generation, before } in again {
            if state.stored().mesh_revision(order.mesh()) == before {
                // Only the nodes' addresses, which came or went by their labels, or other meshes.
                self.waiting.push_front((order, reply));
            } else {
                let changed = state.basis().changed_since(order.mesh(), generation.revision);
                let _ = reply.send(Err(OrderError::Refused(ApplyError::PlanChanged(changed))));
            }
        }
        self.judge_next(state, wall);
    }

    fn judge_next(&mut self, state: &ControllerState, wall: Duration) {
        if !self.judgements.is_empty() {
            return;
        }
        // Whoever has gone away meanwhile wants nothing more.
        while self.waiting.pop_front_if(|(_, reply)| reply.is_closed()).is_some() {}
        let Some((order, reply)) = self.waiting.pop_front() else { return };
        let basis = state.basis();
        self.judgements.spawn_blocking(move || {
            let judgement = order.judge(&basis, wall);
            let before = basis.stored().mesh_revision(order.mesh());
            let generation = basis.stored().generation();
            Step::Judged(Box::new(Judged { order, reply, generation, before }), judgement)
        });
    }
}

#[cfg(test)]
mod tests;
