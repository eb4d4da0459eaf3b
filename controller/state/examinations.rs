//! Who is asked what is wrong between two nodes, and what is known of them.

use std::collections::BTreeMap;
use std::time::Instant;

use super::links::{Passage, judge_link};
use super::{ControllerState, Effect};
use crate::controller::diagnosis::{End, Evidence, Third};
use crate::controller::mesh::Mesh;
use crate::controller::plan::tunnel_name;
use crate::controller::registry::{Health, Node};
use crate::proto::model::{MeshName, NodeName, TunnelName, TunnelState};
use crate::proto::session::{ControllerMessage, Examination, Findings, ItemId};

/// How many nodes are looked at for a third one at most.
const THIRDS: usize = 100;

/// What somebody wants to know: what is wrong between two nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inquiry {
    /// The mesh whose tunnel joins them.
    pub mesh: MeshName,
    /// Both nodes.
    pub ends: [NodeName; 2],
    /// A third one that is asked, too, where there is one with a session.
    pub third: Option<NodeName>,
    /// Which of its tunnels each of them is to try.
    pub examinations: Vec<(NodeName, Vec<TunnelName>)>,
}

/// Why nothing can be found out of two nodes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoInquiry {
    /// There is no such mesh.
    #[error("mesh {0} is not known; `controller mesh list` has their names")]
    NoMesh(MeshName),
    /// One node was named twice.
    #[error("{0} is one node: name two")]
    Same(NodeName),
    /// A node is of no mesh.
    #[error(
        "node {0} is in no mesh, or not in the one that is asked for; `controller nodes` has their names"
    )]
    Unknown(NodeName),
    /// Nothing joins them.
    #[error(
        "no tunnel joins {0} and {1}: they are in no mesh together, or one of them is of kind wireguard and does not list the \
         other; `controller links --list` has the pairs"
    )]
    Apart(NodeName, NodeName),
}

impl ControllerState {
    /// Whom to ask what is wrong between two nodes, in a mesh or in the first that has both.
    ///
    /// # Errors
    /// Where nothing joins them.
    pub fn inquiry(
        &self,
        ends: [NodeName; 2],
        mesh: Option<&MeshName>,
        now: Instant,
    ) -> Result<Inquiry, NoInquiry> {
        let meshes = || {
            let all = self.stored.wanted.meshes.values();
            all.filter(|one| mesh.is_none_or(|mesh| *mesh == one.name))
                .map(|mesh| (mesh, self.stored.wanted.members(mesh)))
        };
        if let Some(unknown) = mesh.filter(|mesh| !self.stored.wanted.meshes.contains_key(*mesh)) {
            return Err(NoInquiry::NoMesh(unknown.clone()));
        }
        if ends[0] == ends[1] {
            return Err(NoInquiry::Same(ends[0].clone()));
        }
        if let Some(stranger) = ends.iter().find(|end| !meshes().any(|(_, members)| members.contains(*end))) {
            return Err(NoInquiry::Unknown(stranger.clone()));
        }
        let [a, b] = &ends;
        let joins = |mesh: &Mesh| self.has_tunnel(mesh, a, b) || self.has_tunnel(mesh, b, a);
        let (mesh, members) = meshes()
            .find(|(mesh, members)| members.contains(a) && members.contains(b) && joins(mesh))
            .ok_or_else(|| NoInquiry::Apart(a.clone(), b.clone()))?;
        let speaks = |node: &NodeName| self.registry.node(node).is_some_and(|node| node.speaks(now));
        let third = members.into_iter().filter(|node| !ends.contains(node) && speaks(node));
        // Who reaches both says more, and who is cut off itself nothing.
        let worth = |node: &NodeName| {
            let of_pair = |end| {
                let passages = judge_link(self, mesh, [node, end], now).passages();
                (self.has_tunnel(mesh, node, end), passages[0] == Passage::Heard)
            };
            let [a, b] = [a, b].map(of_pair);
            (u8::from(a.0) + u8::from(b.0), u8::from(a.1) + u8::from(b.1))
        };
        // Of a large mesh some are enough.
        let third = third.take(THIRDS).max_by_key(worth).filter(|node| worth(node).0 > 0);
        let tunnels = |node: &NodeName, peers: &[&NodeName]| {
            let named = peers.iter().filter(|peer| self.has_tunnel(mesh, node, peer));
            (node.clone(), named.filter_map(|peer| tunnel_name(mesh, peer)).collect::<Vec<_>>())
        };
        let mut examinations = vec![tunnels(a, &[b]), tunnels(b, &[a])];
        examinations.extend(third.as_ref().map(|third| tunnels(third, &[a, b])));
        Ok(Inquiry { mesh: mesh.name.clone(), third, examinations, ends })
    }

    /// Asks a node's agent to try how it reaches the peers of tunnels. Returns the number that its answer will carry; `None`: it
    /// has no session.
    pub fn request_examination(&mut self, node: &NodeName, tunnels: Vec<TunnelName>) -> Option<u64> {
        let connection = self.registry.node(node)?.session.as_ref()?.connection;
        let request = self.next_number();
        let message = ControllerMessage::Examination(Examination { request, tunnels });
        self.effects.push_back(Effect::Send(connection, message));
        Some(request)
    }

    /// What a node has answered last when it was asked to try something.
    pub fn findings(&self, node: &NodeName) -> Option<&Findings> {
        self.registry.node(node)?.findings.as_ref()
    }

    /// What is known of two nodes when those who were asked have answered this.
    pub fn evidence(
        &self,
        inquiry: &Inquiry,
        found: &BTreeMap<NodeName, Findings>,
        now: Instant,
    ) -> Option<Evidence> {
        let mesh = self.stored.wanted.meshes.get(&inquiry.mesh)?;
        let [a, b] = &inquiry.ends;
        let way =
            |from: &NodeName, to: &NodeName| found.get(from)?.peers.get(&tunnel_name(mesh, to)?).cloned();
        let third = inquiry.third.as_ref().map(|third| Third {
            name: third.clone(),
            peers: [way(third, a), way(third, b)],
            arrives: [a, b].map(|end| judge_link(self, mesh, [third, end], now).passages()[0]),
        });
        let ends = [(a, b), (b, a)].map(|(name, other)| {
            let node = self.registry.node(name);
            let tunnel = tunnel_name(mesh, other);
            // What was said by who is away now is what was so then.
            let speaks = node.filter(|node| node.speaks(now));
            let link = tunnel.as_ref().and_then(|tunnel| speaks?.links.get(tunnel));
            End {
                name: name.clone(),
                health: (!mesh.is_wireguard(name)).then(|| match node {
                    Some(_) if speaks.is_some() => Health::Live,
                    Some(node) => node.health(now).max(Health::Stale),
                    None => Health::Offline,
                }),
                last_heard: node
                    .and_then(|node| node.last_heard)
                    .map(|heard| now.saturating_duration_since(heard)),
                clock: node.and_then(|node| node.clock_words()),
                offers: [true, false].map(|is_v4| {
                    let routes = mesh.nodes.get(name).map_or(&[][..], |wanted| &wanted.routes);
                    routes.iter().any(|route| route.addr().is_ipv4() == is_v4)
                }),
                unsent: link.map(|link| link.report.unsent.clone()).unwrap_or_default(),
                diverted: tunnel.as_ref().and_then(|tunnel| {
                    let (report, _) = speaks?.tunnels.get(tunnel)?;
                    let is_other = !report.preferred.is_empty();
                    is_other.then(|| [report.endpoint.clone(), report.preferred.clone()])
                }),
                failure: tunnel.and_then(|tunnel| failure(speaks?, tunnel)),
                loses: link.and_then(|link| link.report.loses.zip(link.report.carries)),
                host: found.get(name).map(|findings| findings.host.clone()),
                peer: way(name, other),
            }
        });
        Some(Evidence { mesh: inquiry.mesh.clone(), ends, link: judge_link(self, mesh, [a, b], now), third })
    }

    fn has_tunnel(&self, mesh: &Mesh, of: &NodeName, to: &NodeName) -> bool {
        tunnel_name(mesh, to).is_some_and(|tunnel| self.view(of).items.has(&ItemId::Tunnel(tunnel)))
    }
}

/// Why a tunnel of a node cannot be had, as it says.
fn failure(node: &Node, tunnel: TunnelName) -> Option<String> {
    let reported = node.tunnels.get(&tunnel).and_then(|(report, _)| match &report.state {
        TunnelState::Failed(reason) => Some(reason.clone()),
        TunnelState::Waiting(_) | TunnelState::Passing => None,
    });
    reported.or_else(|| node.failures.get(&ItemId::Tunnel(tunnel)).cloned())
}
