//! The keys by which the peers of encrypted tunnels know this host: which there are to be, by mesh.

use std::collections::BTreeMap;
use std::time::Instant;

use super::AgentState;
use crate::agent::reconcile::Op;
use crate::proto::model::{MeshName, PublicKey};

impl AgentState {
    /// Takes in which keys are kept from an earlier time.
    pub fn handle_keys(&mut self, keys: BTreeMap<MeshName, PublicKey>, now: Instant) {
        self.now = now;
        self.facts.keys = keys.into_iter().map(|(mesh, key)| (mesh, Ok(key))).collect();
        self.rebuild();
    }

    /// The keys that there are of those that there are to be.
    pub fn keys(&self) -> BTreeMap<MeshName, PublicKey> {
        let known = self.facts.keys.iter().filter(|(mesh, _)| self.keys.contains(*mesh));
        known.filter_map(|(mesh, key)| Some((mesh.clone(), *key.as_ref().ok()?))).collect()
    }

    /// The next key to be made, or opened where it is kept.
    pub(super) fn missing_key(&self) -> Option<Op> {
        let missing = self.keys.iter().find(|mesh| !self.facts.keys.contains_key(*mesh));
        missing.cloned().map(Op::OpenKey)
    }

    /// The next key that no mesh needs any more. The data path is to have let go of it.
    pub(super) fn needless_key(&self) -> Option<Op> {
        let needless = self.facts.keys.keys().find(|mesh| !self.keys.contains(*mesh));
        needless.cloned().map(Op::RemoveKey)
    }

    pub(super) fn handle_key(&mut self, mesh: MeshName, key: Result<PublicKey, String>) {
        self.facts.keys.insert(mesh, key);
        self.rebuild();
    }

    pub(super) fn handle_key_removed(&mut self, mesh: &MeshName) {
        self.facts.keys.remove(mesh);
    }

    /// What failed is tried again.
    pub(super) fn retry_keys(&mut self) {
        self.facts.keys.retain(|_, key| key.is_ok());
    }
}
