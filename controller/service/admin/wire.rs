//! What operators ask for and are told, as v1 has it.

use prost::Message;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::controller::audit::{Record, broken};
use crate::controller::diagnosis::{self, Evidence};
use crate::controller::mesh::{Fault, Mesh, Security, Topology};
use crate::controller::pki::{Authority, Root};
use crate::controller::plan::{Export, Hazard, Unfit};
use crate::controller::state::{
    ApplyError, ControllerStatus, Convergence, Event, Health, Inquiry, NodeStatus, NodeTunnels, Problem,
};
use crate::controller::store::Entry;
use crate::controller::stored::{AUDIT, Stored};
use crate::proto::convert::room::{MESSAGE, Room, page};
use crate::proto::convert::session::wire_tunnel_report;
use crate::proto::convert::{duration, timestamp};
use crate::proto::model::{NodeName, Remotes};
use crate::proto::session::Generation;
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
    let whose = if nodes.len() == 1 { "its" } else { "their" };
    let names = texts(nodes.take(NAMED)).join(", ");
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!(
        "{names}{more} would lose more than half, and more than three, of {whose} tunnels; where this is meant, repeat \
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
        let (endpoint, more_endpoints) =
            endpoints(written.and_then(|node| node.endpoint.as_ref()).or_else(said));
        v1::MeshNode {
            addresses: allocation.map(|allocation| texts(&allocation.addresses)).unwrap_or_default(),
            endpoint,
            more_endpoints,
            routes: written.map(|node| texts(&node.routes)).unwrap_or_default(),
            wireguard: mesh.is_wireguard(&name),
            name: name.into(),
        }
    });
    let (nodes, more_nodes) = Room(MESSAGE / 2).fill(nodes, Message::encoded_len);
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
        nodes,
        more_nodes,
    }
}

fn problem(problem: Problem) -> v1::Problem {
    v1::Problem {
        node: text(problem.node),
        item: problem.item.map(Into::into),
        message: cut(problem.message),
    }
}

/// Problems that fit into half a message, and how many more there are.
fn problems(problems: Vec<Problem>) -> (Vec<v1::Problem>, u32) {
    Room(MESSAGE / 2).fill(problems.into_iter().map(problem), Message::encoded_len)
}

fn health(health: Option<Health>) -> v1::node::Health {
    match health {
        None => v1::node::Health::NoAgent,
        Some(Health::Live) => v1::node::Health::Live,
        Some(Health::Stale) => v1::node::Health::Stale,
        Some(Health::Offline) => v1::node::Health::Offline,
    }
}

/// The status without what does not change while the controller runs.
pub(super) fn status(status: ControllerStatus) -> v1::GetControllerStatusResponse {
    let (problems, more_problems) = problems(status.problems);
    v1::GetControllerStatusResponse {
        store_id: status.store_id,
        generation: Some(status.generation.into()),
        meshes: count(status.meshes),
        live: count(status.live),
        stale: count(status.stale),
        offline: count(status.offline),
        converged: count(status.converged),
        link_ends: count(status.link_ends),
        link_ends_up: count(status.link_ends_up),
        problems,
        more_problems,
        ..Default::default()
    }
}

/// The preferred endpoint of a node, and the others.
fn endpoints(endpoints: Option<&Remotes>) -> (String, Vec<String>) {
    endpoints.map(|all| (all.first().to_string(), texts(all.others()))).unwrap_or_default()
}

pub(super) fn node(node: NodeStatus) -> v1::Node {
    let (endpoint, more_endpoints) = endpoints(node.endpoint.as_ref());
    v1::Node {
        name: node.name.into(),
        health: health(node.health).into(),
        last_heard: node.last_heard.map(duration),
        meshes: texts(node.meshes),
        labels: node.labels,
        endpoint,
        more_endpoints,
        version: node.version,
        wanted: node.wanted.map(Into::into),
        observed: node.observed.map(Into::into),
        tunnels: count(node.tunnels),
        passing: count(node.passing),
        failed: count(node.failed),
        diverted: count(node.diverted),
        converged: node.converged,
        removals_held: count(node.removals_held),
    }
}

/// The tunnels of a node whose names come after `after`, as many as fit.
pub(super) fn node_tunnels(tunnels: NodeTunnels, after: &str) -> v1::ListNodeTunnelsResponse {
    let rest: Vec<_> = tunnels.tunnels.into_iter().filter(|(name, _)| name.as_str() > after).collect();
    let (reports, more) = page(rest.into_iter().map(wire_tunnel_report));
    v1::ListNodeTunnelsResponse {
        tunnels: reports,
        more,
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
    let (lagging, more_lagging) = problems(convergence.lagging);
    let (failures, more_failures) = problems(convergence.failures);
    v1::Convergence {
        nodes: count(convergence.nodes),
        converged: count(convergence.converged),
        lagging,
        failures,
        more_lagging,
        more_failures,
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
        ApplyError::Unfit(unfit) => self::unfit(unfit),
    }
}

/// Why a node without an agent is not exported, or gets no key.
pub(super) fn unfit(unfit: Unfit) -> Status {
    let (code, field, words) = match unfit {
        Unfit::Unknown(node) => (
            Code::NotFound,
            "node",
            format!(
                "node {:?} is of kind wireguard in no mesh, or not in the one that is named; write it into the mesh file, \
                 with its peers, and apply that",
                node.as_str()
            ),
        ),
        Unfit::Several(node, meshes) => {
            let meshes = texts(meshes).join(", ");
            let words = format!("mesh is missing, and {node} is in {meshes}; name one of them with --mesh");
            (Code::InvalidArgument, "mesh", words)
        }
        Unfit::WithoutKey(node) => (
            Code::FailedPrecondition,
            "node",
            format!(
                "{node} has no key; have one made with --generate-key, or write its public_key into the mesh file"
            ),
        ),
        Unfit::HasKey(node) => (
            Code::FailedPrecondition,
            "node",
            format!(
                "{node} has its public_key in the mesh file; take it out there for one that is made here"
            ),
        ),
        Unfit::WithoutAddress(node) => {
            let words = format!("{node} has no overlay address, as there is none left; use a larger overlay");
            (Code::FailedPrecondition, "node", words)
        }
    };
    refused(code, vec![(field.to_owned(), words)])
}

/// How a node without an agent is to be set up.
pub(super) fn export(export: Export, generation: Generation) -> v1::ExportWireguardResponse {
    let peers = export.peers.into_iter().map(|peer| v1::WireguardPeer {
        node: peer.node.into(),
        public_key: peer.public_key.to_string(),
        endpoint: text(peer.endpoint),
        allowed_ips: texts(peer.allowed),
        keepalive: peer.keepalive.map(|seconds| seconds.get().into()).unwrap_or_default(),
    });
    let (peers, more_peers) = Room(MESSAGE).fill(peers, Message::encoded_len);
    let left_out = export
        .left_out
        .into_iter()
        .map(|(node, reason)| v1::LeftOut { node: node.into(), reason: reason.to_owned() });
    let (left_out, more_left_out) = Room(MESSAGE / 8).fill(left_out, Message::encoded_len);
    v1::ExportWireguardResponse {
        node: export.node.into(),
        mesh: export.mesh.to_string(),
        generation: Some(generation.into()),
        public_key: export.public_key.to_string(),
        addresses: texts(export.addresses),
        listen_port: export.listen_port.map(u32::from).unwrap_or_default(),
        mtu: export.mtu.map(|mtu| mtu.get().into()).unwrap_or_default(),
        peers,
        more_peers,
        left_out,
        more_left_out,
    }
}

/// The records of changes with numbers above `after`, as far as they fit, and whether they are as they were written.
pub(super) fn audit(entries: &[Entry], after: u64) -> v1::ListAuditResponse {
    let number = |entry: &Entry| entry.key.strip_prefix(AUDIT)?.parse::<u64>().ok();
    let read = |entry: &Entry| {
        Some((number(entry)?, serde_json::from_slice::<Record>(&entry.value).ok()?, entry.revision))
    };
    let all: Vec<_> = entries.iter().filter_map(read).collect();
    let chain: Vec<_> = all.iter().map(|(number, record, _)| (*number, record.clone())).collect();
    let rest: Vec<_> = all.into_iter().filter(|(number, ..)| *number > after).collect();
    let (changes, more) = page(rest.into_iter().map(|(number, record, revision)| v1::AuditRecord {
        number,
        time: Some(timestamp(record.time)),
        who: record.who,
        method: record.method,
        what: record.what,
        request: record.request,
        before: record.before,
        after: revision,
    }));
    v1::ListAuditResponse { records: changes, more, broken_at: broken(&chain).unwrap_or_default() }
}

/// An authority as operators see it.
pub(super) fn authority(authority: &Authority) -> v1::GetAuthorityResponse {
    let root = |root: Root| v1::Root {
        pin: root.pin.to_string(),
        since: Some(timestamp(root.since)),
        expires: Some(timestamp(root.expires)),
    };
    v1::GetAuthorityResponse {
        roots: authority.root_facts().into_iter().map(root).collect(),
        issuer_expires: Some(timestamp(authority.issuer_expires())),
        root_key_is_here: authority.has_root_key(),
    }
}

/// What is wrong between two nodes, by what those have found who were asked.
pub(super) fn diagnosis(inquiry: Inquiry, evidence: &Evidence) -> v1::DiagnoseResponse {
    let faults = diagnosis::judge(evidence);
    let ends = evidence.ends.iter().filter(|end| end.host.is_some()).map(|end| &end.name);
    let third = evidence.third.iter().filter(|third| third.peers.iter().any(Option::is_some));
    v1::DiagnoseResponse {
        mesh: inquiry.mesh.into(),
        asked: ends.chain(third.map(|third| &third.name)).map(ToString::to_string).collect(),
        paragraph: diagnosis::paragraph(evidence, &faults),
        faults: faults
            .into_iter()
            .map(|fault| v1::Fault {
                kind: fault.kind.name().to_owned(),
                words: fault.words,
                remedy: fault.remedy,
            })
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::proto::model::{Owner, TunnelName, TunnelState};
    use crate::proto::session::{Generation, TunnelReport};

    #[test]
    fn of_many_nodes_some_are_named() {
        let nodes = |count: usize| (0..count).map(|n| format!("n{n}").parse::<NodeName>().unwrap());
        assert!(
            mass_removal(nodes(1))
                .starts_with("n0 would lose more than half, and more than three, of its tunnels")
        );
        let names: Vec<_> = nodes(NAMED).collect();
        assert!(mass_removal(names.clone().into_iter()).contains("n8, n9 would lose"));
        let names: Vec<_> = nodes(NAMED + 3).collect();
        assert!(mass_removal(names.into_iter()).contains("n8, n9 and 3 more would lose"));
    }
    /// What clients of gRPC take.
    const USUAL: usize = 4 << 20;

    fn troubles(count: usize) -> Vec<Problem> {
        let node: NodeName = "n".repeat(63).parse().unwrap();
        let problem = |_| Problem { node: Some(node.clone()), item: None, message: "x".repeat(1_000) };
        (0..count).map(problem).collect()
    }

    #[test]
    fn what_is_told_of_many_problems_fits_into_a_message() {
        let told = |told: usize, more: u32| told + usize::try_from(more).unwrap();
        let convergence = convergence(Convergence {
            generation: Generation { incarnation: 1, revision: 1 },
            nodes: 9_000,
            converged: 0,
            lagging: troubles(9_000),
            failures: troubles(8_000),
        });
        assert!(convergence.encoded_len() < USUAL, "{}", convergence.encoded_len());
        assert_eq!(told(convergence.lagging.len(), convergence.more_lagging), 9_000);
        assert_eq!(told(convergence.failures.len(), convergence.more_failures), 8_000);
        let status = status(ControllerStatus {
            store_id: "s1".to_owned(),
            generation: Generation { incarnation: 1, revision: 1 },
            meshes: 1,
            live: 1,
            stale: 0,
            offline: 0,
            members: 1,
            converged: 0,
            link_ends: 2,
            link_ends_up: 1,
            problems: troubles(9_000),
        });
        assert!(status.encoded_len() < USUAL, "{}", status.encoded_len());
        assert_eq!(told(status.problems.len(), status.more_problems), 9_000);
    }

    #[test]
    fn a_mesh_of_any_length_fits_into_a_message() {
        let routes =
            |n: usize| (0..250).map(move |at| format!("fd00:{n:x}:{at:x}:1111:2222:3333:4444:5555/128"));
        let nodes: String = (0..300)
            .map(|n| format!("n{n}: {{routes: [{}]}},", routes(n).collect::<Vec<_>>().join(",")))
            .collect();
        let text = format!("{{mesh: a, overlay: 10.9.0.0/16, security: plain, nodes: {{{nodes}}}}}");
        let mesh =
            crate::controller::mesh::parse(&text).unwrap_or_else(|faults| panic!("{:?}", faults.first()));
        let mut stored = Stored::default();
        stored.wanted.meshes.insert(mesh.name.clone(), mesh.clone());
        let told = super::mesh(&stored, &mesh, 1);
        assert!(told.encoded_len() < USUAL / 2, "{}", told.encoded_len());
        assert!(told.more_nodes > 0);
        assert_eq!(told.nodes.len() + usize::try_from(told.more_nodes).unwrap(), 300);
    }

    #[test]
    fn tunnels_are_told_page_by_page() {
        let report = TunnelReport {
            device: "m".parse().unwrap(),
            owner: Owner::Controller,
            state: TunnelState::Failed("x".repeat(1_000)),
            endpoint: "172.100.1.1:5000".to_owned(),
            preferred: String::new(),
            last_received_ms: None,
            keyed: false,
        };
        let names = (0..9_000).map(|n| format!("t{n}").parse::<TunnelName>().unwrap());
        let tunnels: BTreeMap<_, _> = names.map(|name| (name, report.clone())).collect();
        let (mut after, mut seen) = (String::new(), Vec::new());
        loop {
            let tunnels = NodeTunnels { tunnels: tunnels.clone(), age: None, health: Some(Health::Live) };
            let answer = node_tunnels(tunnels, &after);
            assert!(answer.encoded_len() < USUAL, "{}", answer.encoded_len());
            seen.extend(answer.tunnels.into_iter().map(|tunnel| tunnel.name));
            assert_eq!(seen.len() + usize::try_from(answer.more).unwrap(), 9_000);
            if answer.more == 0 {
                break;
            }
            after.clone_from(seen.last().unwrap());
        }
        assert!(seen.iter().eq(tunnels.keys().map(TunnelName::as_str)));
    }
}
