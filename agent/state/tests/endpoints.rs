//! Peers with several endpoints.

use std::collections::BTreeMap;
use std::time::Duration;

use super::*;
use crate::agent::state::{Move, Standing};
use crate::proto::model::LinkState;

const REMOTES: &str = "10.20.0.5,10.20.0.6:6000,10.20.0.7";

fn name() -> TunnelName {
    "a".parse().unwrap()
}

/// An agent with a tunnel, and what its links are said to be.
struct Watched {
    state: AgentState,
    now: Instant,
    link: Option<LinkState>,
}

impl Watched {
    fn new(remotes: &str) -> Self {
        let mut state = AgentState::new(policy(), Wanted::default(), start());
        let tunnel = TunnelSpec { probed: true, ..spec("a", "d0", &["10.31.0.1/24"], remotes) };
        let change = state.handle_command(&add(tunnel), Owner::Local).unwrap();
        state.commit(change, start());
        Self { state, now: start(), link: None }
    }

    /// Another list, for the same tunnel.
    fn replace(&mut self, remotes: &str, probed: bool) {
        let tunnel = TunnelSpec { probed, ..spec("a", "d0", &["10.31.0.1/24"], remotes) };
        let command = Command::Add { tunnel: Box::new(tunnel), replace: true };
        let change = self.state.handle_command(&command, Owner::Local).unwrap();
        self.state.commit(change, self.now);
    }

    fn fit(&mut self, fit: Option<&str>) {
        let fit = fit.map(|fit| fit.parse().unwrap());
        let standings = self.state.choosers().map(|name| (name.clone(), Standing { link: self.link, fit }));
        let standings = standings.collect::<BTreeMap<_, _>>();
        self.state.handle_standings(&standings, self.now);
    }

    fn link(&mut self, link: LinkState) {
        self.link = Some(link);
        self.fit(None);
    }

    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.now = self.state.poll_timeout().max(self.now + Duration::from_millis(1)).min(end);
            self.state.handle_timeout(self.now);
        }
    }

    /// Where datagrams go.
    fn at(&self) -> String {
        self.state.target().endpoints[&name()].to_string()
    }

    fn preferred(&self) -> Option<String> {
        self.state.status(&name()).unwrap().preferred.map(|preferred| preferred.to_string())
    }
}

#[test]
fn the_next_is_used_while_the_link_is_not_up_and_only_then() {
    let mut watched = Watched::new(REMOTES);
    watched.link(LinkState::Up);
    watched.pass(Duration::from_secs(600));
    assert_eq!((watched.at().as_str(), watched.preferred()), ("10.20.0.5:5000", None));
    watched.link(LinkState::Down);
    watched.pass(Duration::from_secs(2));
    assert_eq!(watched.at(), "10.20.0.5:5000", "not at once");
    watched.pass(Duration::from_secs(1));
    assert_eq!(watched.at(), "10.20.0.6:6000");
    assert_eq!(watched.preferred().as_deref(), Some("10.20.0.5"));
    let notes = watched.state.notes(&name());
    assert!(notes[0].contains("its preferred endpoint 10.20.0.5 is not in use"), "{notes:?}");
    let to = "10.20.0.6:6000".parse().unwrap();
    assert_eq!(watched.state.poll_move(), Some(Move { tunnel: name(), to, is_preferred: false }));
    assert_eq!(watched.state.poll_move(), None, "each is told once");
    watched.link(LinkState::Up);
    watched.pass(Duration::from_secs(600));
    assert_eq!(watched.at(), "10.20.0.6:6000", "it stays while that works");
    watched.link(LinkState::Init);
    watched.pass(Duration::from_millis(1600));
    assert_eq!(watched.at(), "10.20.0.7:5000", "what is sent is lost");
    watched.pass(Duration::from_secs(2));
    assert_eq!(watched.at(), "10.20.0.5:5000", "in turn");
}

#[test]
fn a_preferred_one_that_has_answered_for_long_enough_is_used_again() {
    let mut watched = Watched::new(REMOTES);
    watched.link(LinkState::Down);
    watched.pass(Duration::from_secs(3));
    watched.pass(Duration::from_secs(5));
    assert_eq!(watched.at(), "10.20.0.7:5000");
    watched.link(LinkState::Up);
    for nothing in [None, Some("10.20.0.7:5000"), Some("10.20.0.9:5000")] {
        watched.fit(nothing);
        assert_eq!(watched.at(), "10.20.0.7:5000", "{nothing:?}");
    }
    watched.fit(Some("10.20.0.6:6000"));
    assert_eq!(watched.at(), "10.20.0.6:6000");
    watched.fit(Some("10.20.0.5:5000"));
    assert_eq!((watched.at().as_str(), watched.preferred()), ("10.20.0.5:5000", None));
    watched.fit(Some("10.20.0.6:6000"));
    assert_eq!(watched.at(), "10.20.0.5:5000", "it is not preferred to this one");
}

#[test]
fn the_one_in_use_stays_where_others_of_the_list_change() {
    let mut watched = Watched::new(REMOTES);
    watched.link(LinkState::Down);
    watched.pass(Duration::from_secs(3));
    watched.link(LinkState::Up);
    watched.replace("10.20.0.8,10.20.0.5,10.20.0.6:6000", true);
    assert_eq!(watched.at(), "10.20.0.6:6000");
    watched.replace("10.20.0.6:6000,10.20.0.8", true);
    assert_eq!((watched.at().as_str(), watched.preferred()), ("10.20.0.6:6000", None));
    watched.replace("10.20.0.5,10.20.0.8", true);
    assert_eq!(watched.at(), "10.20.0.5:5000", "it is none of them any more");
    watched.replace("10.20.0.5", true);
    assert_eq!(watched.state.choosers().count(), 0);
}

#[test]
fn without_probes_the_preferred_one_is_used_and_that_is_said() {
    let mut watched = Watched::new(REMOTES);
    watched.link(LinkState::Down);
    watched.pass(Duration::from_secs(3));
    assert_eq!(watched.at(), "10.20.0.6:6000");
    watched.replace(REMOTES, false);
    watched.pass(Duration::from_secs(60));
    assert_eq!(watched.at(), "10.20.0.5:5000");
    let notes = watched.state.notes(&name());
    assert!(notes[0].contains("of its endpoints only 10.20.0.5 is used"), "{notes:?}");
}

#[test]
fn a_link_that_is_not_there_moves_nothing() {
    let mut watched = Watched::new(REMOTES);
    watched.link(LinkState::Down);
    watched.pass(Duration::from_secs(1));
    watched.link = None;
    watched.fit(None);
    watched.pass(Duration::from_secs(60));
    assert_eq!(watched.at(), "10.20.0.5:5000");
}

#[test]
fn names_of_a_list_are_asked_for_and_one_that_is_not_in_use_is_not_silent() {
    let mut watched = Watched::new("h1,h2");
    let asked = |state: &mut AgentState| {
        let mut asked = BTreeSet::new();
        // What else is to be done takes its time here.
        state.handle_observed(Actual::default(), start());
        while let Some(Op::Resolve(host)) = state.poll_op() {
            asked.insert(host);
        }
        asked
    };
    assert_eq!(asked(&mut watched.state), BTreeSet::from(["h1".to_owned(), "h2".to_owned()]));
    let answer = |watched: &mut Watched, host: &str, addresses: &[&str]| {
        let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
        watched.state.handle_resolved(host, Ok(addresses), watched.now);
    };
    answer(&mut watched, "h1", &["10.20.0.5"]);
    answer(&mut watched, "h2", &["10.20.0.6", "10.20.0.7"]);
    assert_eq!(watched.at(), "10.20.0.5:5000");
    watched.state.handle_silent(BTreeSet::from([name()]), watched.now);
    // Nobody has looked there.
    answer(&mut watched, "h2", &["10.20.0.6", "10.20.0.7"]);
    watched.link(LinkState::Down);
    watched.pass(Duration::from_secs(3));
    assert_eq!(watched.at(), "10.20.0.6:5000");
    answer(&mut watched, "h2", &["10.20.0.6", "10.20.0.7"]);
    assert_eq!(watched.at(), "10.20.0.7:5000", "nobody is heard there");
}
