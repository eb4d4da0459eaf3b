//! The links of all meshes, as v1 has them.

use std::time::Instant;

use prost::Message;

use crate::controller::state::{ControllerState, LinkStanding, NodeLink, Passage};
use crate::proto::convert::duration;
use crate::proto::convert::room::{FIELD, MESSAGE};
use crate::proto::model::{Hearing, MeshName};
use crate::proto::v1;
use crate::proto::v1::node_link::State;

/// The links of the nodes behind `after`, as many of them as fit: all of a node, or none.
pub(super) fn list(
    state: &ControllerState,
    after: &str,
    mesh: Option<&MeshName>,
    now: Instant,
) -> v1::ListLinksResponse {
    let mut nodes = state.agents().filter(|node| *node.as_str() > *after).peekable();
    let mut answer = v1::ListLinksResponse::default();
    let mut room = MESSAGE;
    while let Some(node) = nodes.next() {
        let links: Vec<_> = state.links_of(node, mesh, now).map(wire).collect();
        room = room.saturating_sub(links.iter().map(|link| link.encoded_len() + FIELD).sum());
        answer.links.extend(links);
        // As much again as the largest node has in a mesh of thousands still fits.
        if room < MESSAGE / 2 && nodes.peek().is_some() {
            answer.after = node.to_string();
            break;
        }
    }
    answer
}

fn wire(link: NodeLink) -> v1::NodeLink {
    let NodeLink { mesh, ends: [node, peer], verdict } = link;
    let passages = verdict.state.map_or([Passage::Unknown; 2], |state| state.passages);
    let [there, back] = [0, 1].map(|way| v1::LinkDirection {
        passage: match passages[way] {
            Passage::Heard => v1::link_direction::Passage::Heard,
            Passage::Cut => v1::link_direction::Passage::Cut,
            Passage::Unknown => v1::link_direction::Passage::Unknown,
        }
        .into(),
        heard: verdict.hearing[way].map(|hearing: Hearing| hearing.into()),
    });
    v1::NodeLink {
        mesh: mesh.into(),
        node: node.into(),
        peer: peer.into(),
        state: summary(verdict.state).into(),
        reason: verdict.reason,
        since: verdict.since.map(duration),
        age: verdict.age.map(duration),
        there: Some(there),
        back: Some(back),
        round_trip: verdict.round_trip.map(duration),
        figures_age: verdict.figures_age.map(duration),
        detection_time: verdict.detection_time.map(duration),
    }
}

fn summary(state: Option<LinkStanding>) -> State {
    let Some(LinkStanding { passages }) = state else { return State::NotProbed };
    match passages {
        [Passage::Heard, Passage::Heard] => State::Up,
        [Passage::Heard, Passage::Cut] | [Passage::Cut, Passage::Heard] => State::OneWay,
        [Passage::Cut, Passage::Cut] => State::Down,
        // What is known of one direction is not enough to say that packets come and go.
        [Passage::Cut, Passage::Unknown] | [Passage::Unknown, Passage::Cut] => State::Down,
        [Passage::Unknown, _] | [_, Passage::Unknown] => State::Unknown,
    }
}
