//! Who asks to join, and who was refused.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::{ControllerState, EventKind};
use crate::controller::registry::petitions::{Petition, TooMany};
use crate::proto::model::NodeName;
use crate::proto::rate::{Bucket, Rate};
use crate::proto::trust::{CodeHead, KeyId};

/// How often operators are told that somebody was refused, or asks to join.
const EVENTS: Rate = Rate { burst: 100, every: Duration::from_secs(1) };

/// What was told of each of both.
#[derive(Debug, Default)]
pub(super) struct Told {
    refused: Bucket,
    wanted: Bucket,
    /// What was not told since.
    left_out: u64,
}

impl ControllerState {
    /// A host asks to be `node`, and waits for an operator. Returns when it is to ask again.
    ///
    /// # Errors
    /// Where too many wait.
    pub fn handle_petition(
        &mut self,
        node: &NodeName,
        key: KeyId,
        source: IpAddr,
        code: CodeHead,
        now: Instant,
        wall: Duration,
    ) -> Result<Duration, TooMany> {
        let (is_first, again) = self.petitions.ask(node, key, source, code, now)?;
        if is_first {
            let message = format!(
                "a host at {source} asks to be it, with the code {code}: compare it with what the host shows, then \
                 `controller node approve {node} CODE`"
            );
            self.tell_access(EventKind::ApprovalWanted, Some(node), message, now, wall);
        }
        Ok(again)
    }

    /// The host that asks to be `node` and shows this code.
    pub fn petition(&self, node: &NodeName, code: CodeHead) -> Option<&Petition> {
        self.petitions.find(node, code)
    }

    /// The hosts that wait for an operator.
    pub fn petitions(&self, now: Instant) -> Vec<Petition> {
        self.petitions.waiting(now).cloned().collect()
    }

    /// Nodes with tunnels to `node` that have no session now.
    pub fn absent_peers(&self, node: &NodeName) -> BTreeSet<NodeName> {
        let wanted = &self.stored.wanted;
        let meshes = wanted.meshes.values().map(|mesh| wanted.members(mesh));
        let peers = meshes.filter(|members| members.contains(node)).flatten();
        let is_absent = |peer: &NodeName| {
            let has_session = self.registry.node(peer).is_some_and(|known| known.session.is_some());
            peer != node && !has_session && self.view(peer).items.iter().next().is_some()
        };
        peers.filter(is_absent).collect()
    }

    /// Somebody was refused what they asked for.
    pub fn handle_refused(&mut self, node: Option<&NodeName>, message: String, now: Instant, wall: Duration) {
        self.tell_access(EventKind::AccessRefused, node, message, now, wall);
    }

    fn tell_access(
        &mut self,
        kind: EventKind,
        node: Option<&NodeName>,
        mut message: String,
        now: Instant,
        wall: Duration,
    ) {
        // Those who are refused do not drown those who ask.
        let bucket = match kind == EventKind::ApprovalWanted {
            true => &mut self.told.wanted,
            false => &mut self.told.refused,
        };
        if bucket.take(EVENTS, now).is_err() {
            self.told.left_out += 1;
            return;
        }
        match std::mem::take(&mut self.told.left_out) {
            0 => {}
            more => message = format!("{message}; and {more} more before it"),
        }
        match node {
            Some(node) => self.events.node(wall, kind, node, message),
            None => self.events.controller(wall, kind, message),
        }
    }
}
