//! What a controller tells of itself and of its nodes as metrics.

use std::time::Instant;

use super::runtime::ControllerHandle;
use super::state::{ControllerState, ControllerStatus, NodeLink, Passage};
use crate::proto::host::metrics::{Labels, Metrics, seconds};
use crate::proto::model::Hearing;

/// How many links are told of one by one. Of more there are counts alone: nobody's collector takes millions.
const LINKS: usize = 10_000;

/// The metrics as they are now; `None`: the controller is ending.
pub async fn read(controller: ControllerHandle) -> Option<Metrics> {
    controller.look(|state, now, _| of(state, now)).await.ok()
}

fn of(state: &ControllerState, now: Instant) -> Metrics {
    let mut metrics = Metrics::new("tunmesh_controller");
    let status = state.status(now);
    of_nodes(&mut metrics, &status);
    let ends = state.link_ends(now);
    metrics.gauge(
        "link_ends",
        "Ends of links by state; unknown where the node is not heard of",
        ends.into_iter().map(|(state, count)| (vec![("state", state.to_owned())], count as f64)),
    );
    if state.wanted_tunnels() <= 2 * LINKS {
        let links: Vec<NodeLink> = state.agents().flat_map(|node| state.links_of(node, None, now)).collect();
        of_links(&mut metrics, &links);
    }
    metrics
}

fn of_nodes(metrics: &mut Metrics, status: &ControllerStatus) {
    let health = [("live", status.live), ("stale", status.stale), ("offline", status.offline)];
    metrics.gauge(
        "nodes",
        "Nodes by health",
        health.map(|(health, count)| (vec![("health", health.to_owned())], count as f64)),
    );
    for (name, help, value) in [
        ("meshes", "Meshes that are wanted", status.meshes as f64),
        ("member_nodes", "Nodes of a mesh that have an agent", status.members as f64),
        ("converged_nodes", "Those of them that have all that is wanted", status.converged as f64),
        ("problems", "What is wrong, as status has it", status.problems.len() as f64),
        ("store_revision", "The store's revision", status.generation.revision as f64),
    ] {
        metrics.gauge(name, help, [(Labels::new(), value)]);
    }
}

fn of_links(metrics: &mut Metrics, links: &[NodeLink]) {
    let ways = links.iter().flat_map(|link| [(link, 0), (link, 1)]);
    let labels = |(link, way): (&NodeLink, usize)| {
        vec![
            ("mesh", link.mesh.to_string()),
            ("from", link.ends[way].to_string()),
            ("to", link.ends[1 - way].to_string()),
        ]
    };
    let passage = |(link, way): (&NodeLink, usize)| {
        let value = match link.verdict.state?.passages[way] {
            Passage::Heard => 1.0,
            Passage::Cut => 0.0,
            Passage::Unknown => return None,
        };
        Some((labels((link, way)), value))
    };
    metrics.gauge(
        "link_open",
        "Whether what is sent arrives; none where nobody who could say is heard of",
        ways.clone().filter_map(passage),
    );
    let hearing = |of: fn(Hearing) -> f64| {
        let value = move |(link, way): (&NodeLink, usize)| {
            Some((labels((link, way)), of(link.verdict.hearing[way]?)))
        };
        ways.clone().filter_map(value).collect::<Vec<_>>()
    };
    metrics.gauge(
        "link_lost_ratio",
        "Of the latest probes the share that was lost",
        hearing(|hearing| f64::from(hearing.lost) / f64::from(hearing.known.max(1))),
    );
    metrics.gauge(
        "link_jitter_seconds",
        "How unevenly probes come (RFC 3550)",
        hearing(|hearing| seconds(hearing.jitter)),
    );
    let both = |of: fn(&NodeLink) -> Option<f64>| {
        links.iter().filter_map(move |link| Some((labels((link, 0)), of(link)?))).collect::<Vec<_>>()
    };
    metrics.gauge(
        "link_round_trip_seconds",
        "There and back",
        both(|link| link.verdict.round_trip.map(seconds)),
    );
    metrics.gauge(
        "link_figures_age_seconds",
        "How old round trip, loss and jitter are",
        both(|link| link.verdict.figures_age.map(seconds)),
    );
    metrics.gauge(
        "link_told_age_seconds",
        "How long ago one of the nodes was heard of: so old is what is told of the link",
        both(|link| link.verdict.age.map(seconds)),
    );
}
