//! What both ends of each link have told, put together: whether it carries packets, and in which direction not.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::ControllerState;
use crate::controller::mesh::Mesh;
use crate::controller::plan::tunnel_name;
use crate::controller::registry::links::KnownLink;
use crate::proto::model::{Hearing, LinkState, MeshName, NodeName, Why};
use crate::proto::session::ItemId;
use crate::proto::words::span;

/// One direction of a link, from one node to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Passage {
    /// What is sent arrives.
    Heard,
    /// What is sent does not arrive.
    Cut,
    /// Nobody who could say is heard of.
    Unknown,
}

/// Two nodes that a tunnel joins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeLink {
    /// The mesh whose tunnel it is.
    pub mesh: MeshName,
    /// Both nodes.
    pub ends: [NodeName; 2],
    /// What is known of it.
    pub verdict: Verdict,
}

/// What is known of a link.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Whether the ends send probes; absent: neither end has told.
    pub state: Option<LinkStanding>,
    /// Why it is not up, in words.
    pub reason: String,
    /// For how long it has been so, as far as that is known.
    pub since: Option<Duration>,
    /// How old the youngest word of this is.
    pub age: Option<Duration>,
    /// To the other end and back.
    pub round_trip: Option<Duration>,
    /// From the first end to the second, and back: what became of the latest probes.
    pub hearing: [Option<Hearing>; 2],
    /// How old the figures are.
    pub figures_age: Option<Duration>,
    /// After how long a silence an end takes the other to be out of reach: the longer one of both.
    pub detection_time: Option<Duration>,
}

/// Both directions of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinkStanding {
    /// From the first end to the second, and back.
    pub passages: [Passage; 2],
}

/// What one end of a link has told.
#[derive(Debug, Clone, Copy)]
struct End<'a> {
    name: &'a NodeName,
    /// What it told last; absent: nothing.
    link: Option<&'a KnownLink>,
    /// How long ago it was heard of, and whether that is recent; absent: never.
    heard: Option<(Duration, bool)>,
    /// Whether it has an agent that can tell anything.
    has_agent: bool,
}

impl<'a> End<'a> {
    /// What it says now.
    fn says(&self) -> Option<&'a KnownLink> {
        self.link.filter(|_| self.heard.is_some_and(|(_, is_recent)| is_recent))
    }

    /// What it says of whether it hears the other end now. Where that has ceased to hear it, it may have changed its mind as well,
    /// and would have told if it could: it counts again once it is heard.
    fn says_beside(&self, other: &Self, now: Instant) -> Option<&'a KnownLink> {
        let says = self.says()?;
        let hears = matches!(says.report.state, LinkState::Init | LinkState::Up);
        let silent =
            other.says().filter(|link| link.report.state == LinkState::Down && link.report.why != Why::Left);
        let is_older = silent.is_some_and(|link| self.heard.is_some_and(|(age, _)| age > link.since(now)));
        (!hears || !is_older).then_some(says)
    }

    /// Why it says nothing, in words.
    fn absence(&self) -> String {
        match self.heard {
            _ if !self.has_agent => format!("{} runs no agent that could say", self.name),
            None => format!("{} has not been heard of since the controller started", self.name),
            Some((age, false)) => format!("{} was last heard of {} ago", self.name, span(age)),
            Some((_, true)) => format!("{} has told nothing of it yet", self.name),
        }
    }
}

impl ControllerState {
    /// The nodes that have an agent and are in a mesh, or were, by name.
    pub fn agents(&self) -> impl Iterator<Item = &NodeName> {
        self.views.keys()
    }

    /// How many tunnels all nodes are to have.
    pub fn wanted_tunnels(&self) -> usize {
        self.views.values().map(|view| view.items.len()).sum()
    }

    /// How many ends of links there are in each state, by its name.
    pub fn link_ends(&self, now: Instant) -> BTreeMap<&'static str, usize> {
        let mut counts = BTreeMap::new();
        for (_, node) in self.registry.nodes() {
            let speaks = node.speaks(now);
            for (_, link) in node.links.iter() {
                let state = if speaks { link.report.state.name() } else { "unknown" };
                *counts.entry(state).or_default() += 1;
            }
        }
        counts
    }

    /// The links of the tunnels of a node that come first there, in a mesh or in all: each link is one of exactly one node.
    pub fn links_of<'a>(
        &'a self,
        node: &'a NodeName,
        mesh: Option<&'a MeshName>,
        now: Instant,
    ) -> impl Iterator<Item = NodeLink> + 'a {
        let meshes = self.stored.wanted.meshes.values();
        let meshes = meshes.filter(move |one| mesh.is_none_or(|mesh| *mesh == one.name));
        meshes.flat_map(move |mesh| self.links_in(mesh, node, now))
    }

    fn links_in(&self, mesh: &Mesh, node: &NodeName, now: Instant) -> Vec<NodeLink> {
        let tunnel_of = |of: &NodeName, peer: &NodeName| {
            let id = ItemId::Tunnel(tunnel_name(mesh, peer)?);
            self.view(of).items.has(&id).then_some(())
        };
        let link = |peer: NodeName| {
            let comes_first = *node < peer;
            let is_there = tunnel_of(node, &peer).is_some();
            if !is_there || (!comes_first && tunnel_of(&peer, node).is_some()) {
                return None;
            }
            let ends = [node.clone(), peer];
            let verdict = judge_link(self, mesh, [&ends[0], &ends[1]], now);
            Some(NodeLink { mesh: mesh.name.clone(), ends, verdict })
        };
        let others = self.stored.wanted.members(mesh).into_iter().filter(|peer| peer != node);
        others.filter_map(link).collect()
    }

    fn end<'a>(&'a self, mesh: &Mesh, name: &'a NodeName, peer: &NodeName, now: Instant) -> End<'a> {
        let node = self.registry.node(name);
        let link = node.and_then(|node| node.links.get(&tunnel_name(mesh, peer)?));
        let heard = node.and_then(|node| Some((node.last_heard?, node.speaks(now))));
        let heard = heard.map(|(at, is_recent)| (now.saturating_duration_since(at), is_recent));
        End { name, link, heard, has_agent: !mesh.is_wireguard(name) }
    }
}

impl Verdict {
    /// Both directions.
    pub fn passages(&self) -> [Passage; 2] {
        self.state.map_or([Passage::Unknown; 2], |standing| standing.passages)
    }
}

/// What is known of the link of two nodes of a mesh.
pub(super) fn judge_link(
    state: &ControllerState,
    mesh: &Mesh,
    [a, b]: [&NodeName; 2],
    now: Instant,
) -> Verdict {
    let verdict = judge([state.end(mesh, a, b, now), state.end(mesh, b, a, now)], now);
    match verdict.passages() {
        [Passage::Heard, Passage::Heard] => verdict,
        // They would be those of before.
        _ => Verdict { round_trip: None, hearing: [None; 2], ..verdict },
    }
}

/// Whether what `from` sends arrives at `to`, by what both say. Whoever hears knows best.
fn passage(from: Option<&KnownLink>, to: Option<&KnownLink>) -> Passage {
    match (to.map(|to| to.report.state), from.map(|from| from.report.state)) {
        (Some(LinkState::Init | LinkState::Up), _) => Passage::Heard,
        // Who answers no ICMP echo may hear it.
        (None, Some(LinkState::Init)) if from.is_some_and(|from| from.report.why == Why::Unanswered) => {
            Passage::Unknown
        }
        (Some(LinkState::Down | LinkState::AdminDown), _) | (None, Some(LinkState::Init)) => Passage::Cut,
        (None, Some(LinkState::Up)) => Passage::Heard,
        (None, Some(LinkState::Down | LinkState::AdminDown) | None) => Passage::Unknown,
    }
}

fn judge(ends: [End<'_>; 2], now: Instant) -> Verdict {
    let [a, b] = ends;
    let (says_a, says_b) = (a.says(), b.says());
    let told = || [a.link, b.link].into_iter().flatten();
    let figures = told().filter_map(|link| link.figures).max_by_key(|(_, at)| *at);
    // Figures are as the end has them that told them.
    let is_of_b = |at: Instant| b.link.and_then(|link| link.figures).is_some_and(|(_, of_b)| of_b == at);
    let hearing = figures.map(|(figures, at)| match is_of_b(at) {
        true => [figures.received, figures.sent],
        false => [figures.sent, figures.received],
    });
    let ages = [(says_a, a), (says_b, b)].into_iter().filter_map(|(says, end)| says.and(end.heard));
    let verdict = Verdict {
        since: told().map(|link| link.since(now)).min(),
        age: ages.map(|(age, _)| age).min(),
        round_trip: figures.and_then(|(figures, _)| figures.round_trip),
        hearing: hearing.map_or([None; 2], |ways| ways.map(|way| Some(way).filter(|way| way.known > 0))),
        figures_age: figures.map(|(_, at)| now.saturating_duration_since(at)),
        detection_time: told().filter_map(|link| link.report.detection_time).max(),
        ..Verdict::default()
    };
    if a.link.is_none() && b.link.is_none() {
        let reason = match (a.heard, b.heard) {
            (Some((_, true)), Some((_, true))) => "its ends do not probe each other".to_owned(),
            (Some((_, true)), _) => b.absence(),
            (Some((_, false)) | None, _) => a.absence(),
        };
        return Verdict { reason, ..verdict };
    }
    let (says_a, says_b) = (a.says_beside(&b, now), b.says_beside(&a, now));
    let passages = [passage(says_a, says_b), passage(says_b, says_a)];
    Verdict { state: Some(LinkStanding { passages }), reason: reason([a, b], passages), ..verdict }
}

/// Why a link is not up, in words; empty: it is.
fn reason(ends: [End<'_>; 2], passages: [Passage; 2]) -> String {
    let [a, b] = ends;
    let names = [a.name, b.name];
    let one_way = |from: usize| format!("what {} sends does not reach {}", names[from], names[1 - from]);
    let left = |end: End<'_>| end.says().is_some_and(|link| link.report.why == Why::Left);
    let never = [a, b].iter().all(|end| end.says().is_none_or(|link| link.report.why == Why::Never));
    let without = [a, b].into_iter().find(|end| !end.has_agent);
    let mut words = match passages {
        [Passage::Unknown, Passage::Unknown] => format!("{}, and {}", a.absence(), b.absence()),
        _ if let Some(end) = without => alone([a, b].into_iter().find_map(|end| end.says()), end),
        _ if left(b) => format!("the agent of {} has said that it ends", a.name),
        _ if left(a) => format!("the agent of {} has said that it ends", b.name),
        [Passage::Heard, Passage::Heard] => String::new(),
        [Passage::Cut, Passage::Cut] if never => {
            "nothing has come through yet in either direction".to_owned()
        }
        [Passage::Cut, Passage::Cut] => "nothing comes through in either direction".to_owned(),
        [Passage::Cut, Passage::Heard] => one_way(0),
        [Passage::Heard, Passage::Cut] => one_way(1),
        [Passage::Cut, Passage::Unknown] => format!("{}, and {}", one_way(0), a.absence()),
        [Passage::Unknown, Passage::Cut] => format!("{}, and {}", one_way(1), b.absence()),
        [Passage::Heard, Passage::Unknown] => b.absence(),
        [Passage::Unknown, Passage::Heard] => a.absence(),
    };
    for end in [a, b] {
        if let Some(link) = end.says().filter(|link| !link.report.unsent.is_empty()) {
            let separator = if words.is_empty() { "" } else { "; " };
            words += &format!("{separator}{} cannot send: {}", end.name, link.report.unsent);
        }
    }
    words
}

/// Why a link to an end without an agent is not up, by what the other end says; empty: it is.
fn alone(says: Option<&KnownLink>, peer: End<'_>) -> String {
    match says.map(|link| (link.report.state, link.report.why)) {
        Some((LinkState::Up, _)) => String::new(),
        Some((_, Why::Unanswered)) => {
            format!("{} sends packets, but answers no ICMP echo any more", peer.name)
        }
        Some((_, Why::Never)) => format!("nothing has come from {} yet, and {}", peer.name, peer.absence()),
        Some(_) | None => format!("nothing comes from {}, and {}", peer.name, peer.absence()),
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;
    use crate::controller::registry::links::Links;
    use crate::proto::host::clock::now;
    use crate::proto::session::{LinkFigures, LinkReport, LinkStates};

    /// What an end has told: its state and why.
    fn told(state: LinkState, why: Why, now: Instant) -> Links {
        let report = LinkReport {
            state,
            why,
            since: Duration::from_secs(1),
            last_heard: None,
            detection_time: Some(Duration::from_millis(800)),
            changes: 2,
            unsent: String::new(),
            carries: None,
            loses: None,
        };
        let mut links = Links::default();
        let all = [("t".parse().unwrap(), (NonZeroU32::MIN, report))].into();
        links.handle_states(LinkStates { links: all, whole: true, ..LinkStates::default() }, now);
        links
    }

    fn verdict(a: Option<(LinkState, Why)>, b: Option<(LinkState, Why)>, recent: [bool; 2]) -> Verdict {
        let now = now();
        let names: [NodeName; 2] = ["a", "b"].map(|name| name.parse().unwrap());
        let links = [a, b].map(|end| end.map(|(state, why)| told(state, why, now)));
        let end = |n: usize| End {
            name: &names[n],
            link: links[n].as_ref().and_then(|links| links.get(&"t".parse().unwrap())),
            heard: Some((Duration::from_secs(if recent[n] { 1 } else { 90 }), recent[n])),
            has_agent: true,
        };
        judge([end(0), end(1)], now)
    }

    #[test]
    fn both_ends_together_say_which_direction_is_cut() {
        use LinkState::{AdminDown, Down, Init, Up};
        const UP: Option<(LinkState, Why)> = Some((Up, Why::Heard));
        const DOWN: Option<(LinkState, Why)> = Some((Down, Why::Silent));
        const INIT: Option<(LinkState, Why)> = Some((Init, Why::NotHeard));
        const LEFT: Option<(LinkState, Why)> = Some((AdminDown, Why::Left));
        let both = [true, true];
        for (a, b, recent, passages, words) in [
            (UP, UP, both, [Passage::Heard, Passage::Heard], ""),
            (DOWN, DOWN, both, [Passage::Cut, Passage::Cut], "nothing comes through in either direction"),
            (INIT, DOWN, both, [Passage::Cut, Passage::Heard], "what a sends does not reach b"),
            (DOWN, INIT, both, [Passage::Heard, Passage::Cut], "what b sends does not reach a"),
            (UP, UP, [true, false], [Passage::Heard, Passage::Heard], ""),
            (
                DOWN,
                UP,
                [true, false],
                [Passage::Unknown, Passage::Cut],
                "what b sends does not reach a, and b was last heard of 1 min 30 s ago",
            ),
            (INIT, DOWN, [true, false], [Passage::Cut, Passage::Heard], "what a sends does not reach b"),
            (
                UP,
                UP,
                [false, false],
                [Passage::Unknown, Passage::Unknown],
                "a was last heard of 1 min 30 s ago, and b was last heard of 1 min 30 s ago",
            ),
            (
                LEFT,
                UP,
                [true, false],
                [Passage::Unknown, Passage::Cut],
                "the agent of b has said that it ends",
            ),
            (
                Some((Down, Why::Never)),
                Some((Down, Why::Never)),
                both,
                [Passage::Cut, Passage::Cut],
                "nothing has come through yet in either direction",
            ),
        ] {
            let verdict = verdict(a, b, recent);
            assert_eq!(verdict.state, Some(LinkStanding { passages }), "{a:?} {b:?} {recent:?}");
            assert_eq!(verdict.reason, words);
        }
        let silent = verdict(None, None, both);
        assert_eq!((silent.state, &*silent.reason), (None, "its ends do not probe each other"));
    }

    #[test]
    fn what_cannot_be_sent_is_told_of_a_link_that_is_up_as_well() {
        let now = now();
        let names: [NodeName; 2] = ["a", "b"].map(|name| name.parse().unwrap());
        let mut links = [told(LinkState::Up, Why::Heard, now), told(LinkState::Up, Why::Heard, now)];
        let tunnel = "t".parse().unwrap();
        links[0].by_tunnel_mut(&tunnel).report.unsent = "the ends have not agreed on keys".to_owned();
        let end = |n: usize| End {
            name: &names[n],
            link: links[n].get(&tunnel),
            heard: Some((Duration::ZERO, true)),
            has_agent: true,
        };
        assert_eq!(judge([end(0), end(1)], now).reason, "a cannot send: the ends have not agreed on keys");
    }

    #[test]
    fn who_was_not_heard_since_the_other_end_is_silent_says_nothing_of_it() {
        let now = now();
        let names: [NodeName; 2] = ["a", "b"].map(|name| name.parse().unwrap());
        let links = [told(LinkState::Down, Why::Silent, now), told(LinkState::Up, Why::Heard, now)];
        let verdict = |heard: u64| {
            let end = |n: usize, heard: u64| End {
                name: &names[n],
                link: links[n].get(&"t".parse().unwrap()),
                heard: Some((Duration::from_secs(heard), true)),
                has_agent: true,
            };
            // The first end is silent for five seconds.
            judge([end(0, 0), end(1, heard)], now + Duration::from_secs(4)).passages()
        };
        assert_eq!(verdict(4), [Passage::Heard, Passage::Cut], "it has been heard since");
        assert_eq!(verdict(6), [Passage::Unknown, Passage::Cut]);
    }

    #[test]
    fn of_who_runs_no_agent_the_other_end_alone_says() {
        for (says, passages, words) in [
            ((LinkState::Up, Why::Keyed), [Passage::Heard, Passage::Heard], ""),
            (
                (LinkState::Down, Why::Silent),
                [Passage::Unknown, Passage::Cut],
                "nothing comes from b, and b runs no agent that could say",
            ),
            (
                (LinkState::Down, Why::Never),
                [Passage::Unknown, Passage::Cut],
                "nothing has come from b yet, and b runs no agent that could say",
            ),
            (
                (LinkState::Init, Why::Unanswered),
                [Passage::Unknown, Passage::Heard],
                "b sends packets, but answers no ICMP echo any more",
            ),
        ] {
            let now = now();
            let names: [NodeName; 2] = ["a", "b"].map(|name| name.parse().unwrap());
            let links = told(says.0, says.1, now);
            let link = links.get(&"t".parse().unwrap());
            let a = End { name: &names[0], link, heard: Some((Duration::ZERO, true)), has_agent: true };
            let b = End { name: &names[1], link: None, heard: None, has_agent: false };
            let verdict = judge([a, b], now);
            assert_eq!((verdict.state, &*verdict.reason), (Some(LinkStanding { passages }), words));
        }
    }

    #[test]
    fn figures_are_told_from_the_first_end_to_the_second_whoever_told_them() {
        let now = now();
        let names: [NodeName; 2] = ["a", "b"].map(|name| name.parse().unwrap());
        let heard = |lost: u16| Hearing { known: 256, lost, ..Hearing::default() };
        for teller in [0, 1] {
            let mut links = [told(LinkState::Up, Why::Heard, now), told(LinkState::Up, Why::Heard, now)];
            let figures = LinkFigures { round_trip: None, sent: heard(1), received: heard(2) };
            links[teller].handle_figures([(NonZeroU32::MIN, figures)].into(), now);
            let end = |n: usize| End {
                name: &names[n],
                link: links[n].get(&"t".parse().unwrap()),
                heard: Some((Duration::ZERO, true)),
                has_agent: true,
            };
            let verdict = judge([end(0), end(1)], now + Duration::from_secs(3));
            let expected = if teller == 0 { [1, 2] } else { [2, 1] };
            assert_eq!(verdict.hearing.map(|way| way.map(|way| way.lost)), expected.map(Some));
            assert_eq!(verdict.figures_age, Some(Duration::from_secs(3)));
            assert_eq!(verdict.since, Some(Duration::from_secs(4)));
        }
    }
}
