//! What operators want: judged, and turned into transactions.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::{ControllerState, Versions};
use crate::controller::alloc;
use crate::controller::mesh::{Mesh, Security};
use crate::controller::plan::{self, Hazard, Plan, PlanHash, Unfit};
use crate::controller::store::transaction::Transaction;
use crate::controller::stored::{self, Stored};
use crate::proto::model::{MeshName, NodeName, PublicKey};

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
    /// The node gets no key.
    Unfit(Unfit),
}

/// What orders are judged by, as it is at one moment: cheap to take, and judged by wherever there is time. A
/// transaction holds only if the meshes and the addresses in them are still as they are here. What agents say
/// meanwhile is as if they had said it after the order: an address of the controller that the mesh covers is a problem
/// in its status, and who only then keeps what was to go has no consent.
#[derive(Debug, Clone)]
pub struct Basis {
    pub(super) stored: Arc<Stored>,
    pub(super) history: Arc<BTreeMap<MeshName, Versions>>,
    reached_at: BTreeSet<IpAddr>,
    /// The nodes that keep what was to go.
    keepers: BTreeSet<NodeName>,
}

impl ControllerState {
    /// What orders are judged by now.
    pub fn basis(&self) -> Basis {
        let keepers = self.registry.nodes().filter(|(_, node)| !node.removals_held.is_empty());
        Basis {
            stored: Arc::clone(&self.stored),
            history: Arc::clone(&self.history),
            reached_at: self.reached_at(),
            keepers: keepers.map(|(name, _)| name.clone()).collect(),
        }
    }

    /// The meshes, and the revision that set each.
    pub fn meshes(&self) -> impl Iterator<Item = (&Mesh, u64)> {
        let meshes = self.stored.wanted.meshes.iter();
        meshes.map(|(name, mesh)| (mesh, self.stored.mesh_revision(name).unwrap_or_default()))
    }
}

impl Basis {
    /// What is stored.
    pub fn stored(&self) -> &Stored {
        &self.stored
    }

    /// What applying `mesh` would do.
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
        hash: Option<PlanHash>,
        allow_removals: bool,
        wall: Duration,
    ) -> Result<(Plan, Option<Transaction>), ApplyError> {
        let name = mesh.name.clone();
        let (plan, mut transaction) = self.judge(mesh, wall);
        if let Some(hash) = hash.filter(|hash| !hash.is_same_plan(&plan.hash)) {
            return Err(ApplyError::PlanChanged(self.changed_since(&name, hash.revision)));
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
        let plan = plan::plan(&self.stored.wanted, &wanted, mesh, self.stored.revision, &self.reached_at);
        let mut transaction = Transaction {
            conditions: self.stored.unchanged_mesh(mesh).into(),
            writes: stored::delete_mesh(mesh).into(),
        };
        let mut losers = plan.mass_removals.clone();
        if self.stored.is_unread(mesh) {
            // Whose tunnels it had is not known.
            losers.extend(self.stored.wanted.nodes.keys().cloned());
        }
        self.consent(&losers, allow_removals, &mut transaction)?;
        self.exclude_others(&mut transaction);
        Ok((plan, transaction))
    }

    /// Gives a node without an agent a key that was made for it: the plan, and what is to be committed for it.
    ///
    /// # Errors
    /// Why it is refused.
    pub fn give_key(
        &self,
        mesh: &MeshName,
        node: &NodeName,
        key: PublicKey,
    ) -> Result<(Plan, Transaction), ApplyError> {
        let mut wanted = self.stored.wanted.clone();
        wanted.give_key(mesh, node, key).map_err(ApplyError::Unfit)?;
        let plan = plan::plan(&self.stored.wanted, &wanted, mesh, self.stored.revision, &self.reached_at);
        if plan.hazards.iter().any(|hazard| hazard.is_error && hazard.node.as_ref() == Some(node)) {
            return Err(ApplyError::Hazards(Box::new(plan)));
        }
        let given = wanted.allocations.get(mesh);
        let transaction = Transaction {
            conditions: self.stored.unchanged_mesh(mesh).into(),
            writes: given.map(|given| stored::put_allocations(mesh, given)).into_iter().collect(),
        };
        Ok((plan, transaction))
    }

    /// The nodes that lose more than half, and more than three, of their tunnels where `node` is taken out.
    pub fn losers_of(&self, node: &NodeName) -> BTreeSet<NodeName> {
        let mut after = self.stored.wanted.clone();
        after.removed.insert(node.clone());
        let mut losers = plan::losers(&self.stored.wanted, &after);
        losers.remove(node);
        losers
    }

    /// Those that need a consent to drop their tunnels to `node`, beside its losers: where removals are held, all nodes.
    pub fn keepers_of(&self, node: &NodeName) -> BTreeSet<NodeName> {
        match self.stored.holds_removals() {
            true => self.stored.wanted.nodes.keys().filter(|other| *other != node).cloned().collect(),
            false => BTreeSet::new(),
        }
    }

    /// The plan, and its writes without any consent.
    fn judge(&self, mesh: Mesh, wall: Duration) -> (Plan, Transaction) {
        let name = mesh.name.clone();
        let mut wanted = self.stored.wanted.clone();
        let known = wanted.allocations.get(&name).cloned();
        let members = wanted.members(&mesh);
        let before = known.clone().unwrap_or_default();
        let (mut allocations, _) = alloc::allocate(&mesh, &members, &before, wall);
        let was_plain = wanted.meshes.get(&name).is_some_and(|mesh| mesh.security == Security::Plain);
        if was_plain && mesh.security == Security::Encrypted {
            allocations.leave_plain(&mesh, &before);
        }
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
        let mut plan =
            plan::plan(&self.stored.wanted, &wanted, &name, self.stored.revision, &self.reached_at);
        plan.hazards.extend(self.keeping());
        (plan, transaction)
    }

    /// That some keep what was to go: a consent is to that, too.
    fn keeping(&self) -> Option<Hazard> {
        const NAMED: usize = 5;
        let names: Vec<&str> = self.keepers.iter().take(NAMED).map(NodeName::as_str).collect();
        let more = self.keepers.len().saturating_sub(NAMED);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        (!names.is_empty()).then(|| Hazard {
            is_error: false,
            node: None,
            message: format!(
                "what is kept by {}{more} that was to be removed goes, too, with --allow-removals",
                names.join(", ")
            ),
        })
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
        transaction.writes.extend(nodes.union(&self.keepers).map(stored::put_consent));
        Ok(())
    }
}
