//! What operators want: judged, and turned into transactions.

use std::collections::BTreeSet;
use std::time::Duration;

use super::ControllerState;
use crate::controller::alloc;
use crate::controller::mesh::Mesh;
use crate::controller::plan::{self, Plan};
use crate::controller::store::transaction::Transaction;
use crate::controller::stored;
use crate::proto::model::{MeshName, NodeName};

/// Why a mesh is not applied or deleted. Nothing changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ApplyError {
    /// Some of the plan's hazards forbid it.
    Hazards(Box<Plan>),
    /// These nodes would lose more than half, and more than three, of their tunnels.
    NeedsConsent(BTreeSet<NodeName>),
    /// Something has changed meanwhile; these, in words, as far as it is known.
    PlanChanged(Vec<String>),
    /// There is no such mesh.
    Unknown(MeshName),
}

impl ControllerState {
    /// What applying `mesh` would do. The plan's hash begins with the store's revision; what follows is the same
    /// for the same plan, whenever it is made.
    pub fn plan(&self, mesh: Mesh, wall: Duration) -> Plan {
        self.judge(mesh, wall).0
    }

    /// Applies `mesh`: the plan, and what is to be committed for it; `None`: all of it is stored already. With
    /// `hash` only if it is still the plan of this name. `allow_removals` consents to the plan's mass removals, and
    /// to those that nodes hold.
    ///
    /// # Errors
    /// Why it is refused.
    pub fn apply(
        &self,
        mesh: Mesh,
        hash: Option<&str>,
        allow_removals: bool,
        wall: Duration,
    ) -> Result<(Plan, Option<Transaction>), ApplyError> {
        let name = mesh.name.clone();
        let (plan, mut transaction) = self.judge(mesh, wall);
        if let Some(hash) = hash.filter(|hash| !is_same_plan(hash, &plan.hash)) {
            let revision = hash.split('-').next().and_then(|revision| revision.parse().ok());
            let changed = revision.map(|revision| self.changed_since(&name, revision)).unwrap_or_default();
            return Err(ApplyError::PlanChanged(changed));
        }
        if plan.hazards.iter().any(|hazard| hazard.is_error) {
            return Err(ApplyError::Hazards(Box::new(plan)));
        }
        self.consent(&plan.mass_removals, allow_removals, &mut transaction)?;
        if transaction.writes.is_empty() {
            return Ok((plan, None));
        }
        self.exclude_others(&mut transaction);
        Ok((plan, Some(transaction)))
    }

    /// Deletes a mesh: the plan, and what is to be committed for it.
    ///
    /// # Errors
    /// Why it is refused.
    pub fn delete_mesh(
        &self,
        mesh: &MeshName,
        allow_removals: bool,
    ) -> Result<(Plan, Transaction), ApplyError> {
        // One that cannot be read can be deleted, too.
        if self.stored.mesh_revision(mesh).is_none() {
            return Err(ApplyError::Unknown(mesh.clone()));
        }
        let mut wanted = self.stored.wanted.clone();
        wanted.meshes.remove(mesh);
        wanted.allocations.remove(mesh);
        let plan = plan::plan(&self.stored.wanted, &wanted, mesh, &self.reached_at());
        let mut transaction = Transaction {
            conditions: self.stored.unchanged_mesh(mesh).into(),
            writes: stored::delete_mesh(mesh).into(),
        };
        self.consent(&plan.mass_removals, allow_removals, &mut transaction)?;
        self.exclude_others(&mut transaction);
        Ok((plan, transaction))
    }

    /// The meshes, and the revision that set each.
    pub fn meshes(&self) -> impl Iterator<Item = (&Mesh, u64)> {
        let meshes = self.stored.wanted.meshes.iter();
        meshes.map(|(name, mesh)| (mesh, self.stored.mesh_revision(name).unwrap_or_default()))
    }

    /// The plan, and its writes without any consent.
    fn judge(&self, mesh: Mesh, wall: Duration) -> (Plan, Transaction) {
        let name = mesh.name.clone();
        let mut wanted = self.stored.wanted.clone();
        let known = wanted.allocations.get(&name).cloned();
        let members = wanted.members(&mesh);
        let (allocations, _) = alloc::allocate(&mesh, &members, &known.clone().unwrap_or_default(), wall);
        let mut transaction =
            Transaction { conditions: self.stored.unchanged_mesh(&name).into(), writes: Vec::new() };
        if wanted.meshes.get(&name) != Some(&mesh) {
            transaction.writes.push(stored::put_mesh(&mesh));
        }
        if known.as_ref() != Some(&allocations) {
            transaction.writes.push(stored::put_allocations(&name, &allocations));
        }
        wanted.meshes.insert(name.clone(), mesh);
        wanted.allocations.insert(name.clone(), allocations);
        let mut plan = plan::plan(&self.stored.wanted, &wanted, &name, &self.reached_at());
        plan.hash = format!("{}-{}", self.stored.revision, plan.hash);
        (plan, transaction)
    }

    /// Of two orders that were judged by the same meshes only one is done: together they may be what neither is alone.
    fn exclude_others(&self, transaction: &mut Transaction) {
        transaction.conditions.push(self.stored.unchanged_meshes());
        transaction.writes.push(stored::touch_meshes());
    }

    /// Adds the consent to removals that `nodes` need and others have waited for.
    fn consent(
        &self,
        nodes: &BTreeSet<NodeName>,
        allow_removals: bool,
        transaction: &mut Transaction,
    ) -> Result<(), ApplyError> {
        if !allow_removals {
            return match nodes.is_empty() {
                true => Ok(()),
                false => Err(ApplyError::NeedsConsent(nodes.clone())),
            };
        }
        let held = self.registry.nodes().filter(|(_, node)| !node.removals_held.is_empty());
        let nodes: BTreeSet<&NodeName> = nodes.iter().chain(held.map(|(name, _)| name)).collect();
        transaction.writes.extend(nodes.into_iter().map(stored::put_consent));
        Ok(())
    }
}

/// Whether two plans for a mesh say the same, whenever they were made.
fn is_same_plan(one: &str, other: &str) -> bool {
    let words = |hash: &str| hash.split_once('-').map(|(_, words)| words.to_owned());
    words(one).is_some_and(|one| Some(one) == words(other))
}
