//! What operators ask for and are told, as v1 has it.

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::controller::mesh::{Fault, Mesh, Security, Topology};
use crate::controller::plan::Hazard;
use crate::controller::state::{
    ApplyError, ControllerStatus, Convergence, Event, Health, NodeStatus, NodeTunnels, Problem,
};
use crate::controller::stored::Stored;
use crate::proto::convert::session::wire_tunnel_report;
use crate::proto::convert::{duration, timestamp};
use crate::proto::model::NodeName;
use crate::proto::v1;

/// How many names of nodes an error has at most.
const NAMED: usize = 10;

/// The longest text of a plan or an error, in bytes.
const LONGEST: usize = 1 << 10;
/// How much an error says of its faults, in bytes. Details travel in a header, in base64 and beside the message; clients
/// refuse more than 16 KiB of headers.
const FAULTS: usize = 6 << 10;

/// How many of something there are, as far as v1 counts.
pub(super) fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

fn texts(values: impl IntoIterator<Item = impl ToString>) -> Vec<String> {
    values.into_iter().map(|value| value.to_string()).collect()
}

/// A text, empty where there is none.
pub(super) fn text(value: Option<impl ToString>) -> String {
    value.map(|value| value.to_string()).unwrap_or_default()
}

/// That a plan's mass removals are forbidden without consent.
pub(super) fn needs_consent(nodes: impl ExactSizeIterator<Item = NodeName>) -> v1::Hazard {
    v1::Hazard {
        severity: v1::hazard::Severity::Error.into(),
        node: String::new(),
        message: mass_removal(nodes),
    }
}

fn mass_removal(nodes: impl ExactSizeIterator<Item = NodeName>) -> String {
    let more = nodes.len().saturating_sub(NAMED);
    let names = texts(nodes.take(NAMED)).join(", ");
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!(
        "{names}{more} would lose more than half, and more than three, of their tunnels; where this is meant, repeat \
         it with --allow-removals"
    )
}

/// A mesh with its nodes, those by label included.
pub(super) fn mesh(stored: &Stored, mesh: &Mesh, revision: u64) -> v1::Mesh {
    let allocations = stored.wanted.allocations.get(&mesh.name);
    let nodes = stored.wanted.members(mesh).into_iter().map(|name| {
        let allocation = allocations.and_then(|allocations| allocations.nodes.get(&name));
        let written = mesh.nodes.get(&name);
        let record = stored.wanted.nodes.get(&name);
        let said = || record.and_then(|record| record.endpoint.as_ref());
        v1::MeshNode {
            addresses: allocation.map(|allocation| texts(&allocation.addresses)).unwrap_or_default(),
            endpoint: text(written.and_then(|node| node.endpoint.as_ref()).or_else(said)),
            routes: written.map(|node| texts(&node.routes)).unwrap_or_default(),
            name: name.into(),
        }
    });
    v1::Mesh {
        name: mesh.name.to_string(),
        overlay: texts(mesh.overlay.networks()),
        device: mesh.device.to_string(),
        topology: match mesh.topology {
            Topology::Full => "full".to_owned(),
        },
        security: match mesh.security {
            Security::Encrypted => "encrypted".to_owned(),
            Security::Plain => "plain".to_owned(),
        },
        revision,
        nodes: nodes.collect(),
    }
}

pub(super) fn problem(problem: Problem) -> v1::Problem {
    v1::Problem { node: text(problem.node), item: problem.item.map(Into::into), message: problem.message }
}

fn health(health: Health) -> v1::node::Health {
    match health {
        Health::Live => v1::node::Health::Live,
        Health::Stale => v1::node::Health::Stale,
        Health::Offline => v1::node::Health::Offline,
    }
}

/// The status without what does not change while the controller runs.
pub(super) fn status(status: ControllerStatus) -> v1::GetControllerStatusResponse {
    v1::GetControllerStatusResponse {
        store_id: status.store_id,
        generation: Some(status.generation.into()),
        meshes: count(status.meshes),
        live: count(status.live),
        stale: count(status.stale),
        offline: count(status.offline),
        converged: count(status.converged),
        problems: status.problems.into_iter().map(problem).collect(),
        ..Default::default()
    }
}

pub(super) fn node(node: NodeStatus) -> v1::Node {
    v1::Node {
        name: node.name.into(),
        health: health(node.health).into(),
        last_heard: node.last_heard.map(duration),
        meshes: texts(node.meshes),
        labels: node.labels,
        endpoint: text(node.endpoint),
        version: node.version,
        wanted: node.wanted.map(Into::into),
        observed: node.observed.map(Into::into),
        tunnels: count(node.tunnels),
        passing: count(node.passing),
        failed: count(node.failed),
        converged: node.converged,
        removals_held: count(node.removals_held),
    }
}

pub(super) fn node_tunnels(tunnels: NodeTunnels) -> v1::ListNodeTunnelsResponse {
    v1::ListNodeTunnelsResponse {
        tunnels: tunnels.tunnels.into_iter().map(wire_tunnel_report).collect(),
        age: tunnels.age.map(duration),
        health: health(tunnels.health).into(),
    }
}

pub(super) fn event(event: &Event) -> v1::Event {
    v1::Event {
        number: event.number,
        time: Some(timestamp(event.time)),
        kind: event.kind.as_str().to_owned(),
        node: text(event.node.as_ref()),
        tunnel: text(event.tunnel.as_ref()),
        mesh: text(event.mesh.as_ref()),
        message: event.message.clone(),
    }
}

pub(super) fn convergence(convergence: Convergence) -> v1::Convergence {
    v1::Convergence {
        nodes: count(convergence.nodes),
        converged: count(convergence.converged),
        lagging: convergence.lagging.into_iter().map(problem).collect(),
        failures: convergence.failures.into_iter().map(problem).collect(),
    }
}

/// An error with a violation for each of `faults`, as far as they fit: the field, and all of it in one line.
pub(super) fn refused(code: Code, faults: Vec<(String, String)>) -> Status {
    let mut message = faults.first().map(|(_, words)| cut(words.clone())).unwrap_or_default();
    if let Some(more) = faults.len().checked_sub(1).filter(|more| *more > 0) {
        message += &format!(" (and {more} more)");
    }
    let mut details = ErrorDetails::new();
    let (mut room, mut left) = (FAULTS, faults.len());
    for (field, words) in faults {
        let (field, words) = (cut(field), cut(words));
        let Some(rest) = room.checked_sub(field.len() + words.len()) else { break };
        (room, left) = (rest, left - 1);
        details.add_bad_request_violation(field, words);
    }
    if left > 0 {
        details.add_bad_request_violation("", format!("and {left} more"));
    }
    Status::with_error_details(code, message, details)
}

/// A text that is no longer than anyone reads.
pub(super) fn cut(mut text: String) -> String {
    if text.len() > LONGEST {
        let end = (0..=LONGEST).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(end);
        text.push('…');
    }
    text
}

/// What is wrong in a mesh file called `name`.
pub(super) fn faulty(name: &str, faults: &[Fault]) -> Status {
    let field = |fault: &Fault| if fault.field.is_empty() { "file".to_owned() } else { fault.field.clone() };
    let faults = faults.iter().map(|fault| (field(fault), fault.describe(name)));
    refused(Code::InvalidArgument, faults.collect())
}

/// The controller is there, and its store is not.
pub(super) fn not_stored(reason: &str) -> Status {
    let words = format!("the store cannot be written: {reason}; nothing changed");
    refused(Code::Unavailable, vec![("store".to_owned(), words)])
}

pub(super) fn not_applied(error: ApplyError) -> Status {
    match error {
        ApplyError::Hazards(plan) => {
            let errors = plan.hazards.into_iter().filter(|hazard| hazard.is_error);
            let faults = errors.map(|Hazard { node, message, .. }| match node {
                Some(node) => (format!("nodes.{node}"), message),
                None => ("mesh".to_owned(), format!("mesh {}: {message}", plan.mesh)),
            });
            refused(Code::FailedPrecondition, faults.collect())
        }
        ApplyError::NeedsConsent(nodes) => {
            let words = mass_removal(nodes.into_iter());
            refused(Code::FailedPrecondition, vec![("allow_removals".to_owned(), words)])
        }
        ApplyError::PlanChanged(changes) => {
            let first = "what the plan rests on has changed; look at a new plan, and apply that".to_owned();
            let changes = changes.into_iter().map(|change| format!("changed meanwhile: {change}"));
            let faults = std::iter::once(first).chain(changes);
            refused(Code::Aborted, faults.map(|words| ("plan".to_owned(), words)).collect())
        }
        ApplyError::Unknown(mesh) => {
            let words =
                format!("name {:?} is no mesh; `controller mesh list` has their names", mesh.as_str());
            refused(Code::NotFound, vec![("name".to_owned(), words)])
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_many_nodes_some_are_named() {
        let nodes = |count: usize| (0..count).map(|n| format!("n{n}").parse::<NodeName>().unwrap());
        let names: Vec<_> = nodes(NAMED).collect();
        assert!(mass_removal(names.clone().into_iter()).contains("n8, n9 would lose"));
        let names: Vec<_> = nodes(NAMED + 3).collect();
        assert!(mass_removal(names.into_iter()).contains("n8, n9 and 3 more would lose"));
    }
}
