//! Sessions of nodes that have joined, and of those that have not.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::WEB;
use super::world::{Agent, Sent, World, mesh};
use crate::controller::state::{EventKind, Refusal};
use crate::controller::trust::{CERTIFICATE, Draft, GRACE, Operator, Proof};
use crate::proto::session::ControllerMessage;
use crate::proto::trust::{KeyId, Role};

const HOUR: Duration = Duration::from_secs(3_600);

impl World {
    /// Changes who may join.
    fn trust(&mut self, change: impl FnOnce(&mut Draft, Duration)) {
        let mut draft = Draft::new(&self.state.stored().trust);
        change(&mut draft, self.wall());
        let transaction = self.state.stored().transaction_of(&draft, self.wall()).expect("something changes");
        let change = self.store.commit(transaction).unwrap();
        self.changes.push_back(change);
        while self.deliver_change() {}
    }

    fn approved(&mut self, number: usize, key: &str, labels: &[(&str, &str)]) -> Agent {
        let mut agent = Agent::new(number);
        let key = KeyId::of(key.as_bytes());
        agent.key = Some(key);
        let labels: BTreeMap<_, _> =
            labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let node = agent.hello.node.clone();
        self.trust(|draft, wall| {
            let proof = Proof::Approval { by: "root".to_owned(), word: [0; 5], labels };
            draft.enrol(&node, key, proof, wall).unwrap();
        });
        agent
    }
}

#[test]
fn only_its_key_is_a_node_that_has_joined() {
    let mut world = World::new();
    let mut joined = world.approved(1, "a", &[]);
    let name = joined.hello.node.clone();
    let mut thief = Agent { key: Some(KeyId::of(b"b")), ..Agent::new(1) };
    let mut claimant = Agent::new(1);
    let connection = world.connect(&mut joined);
    for (other, refusal) in
        [(&mut thief, Refusal::NotJoined(name.clone())), (&mut claimant, Refusal::Unproven(name.clone()))]
    {
        let tried = world.connect(other);
        assert_eq!(world.closed(tried), Some(refusal));
        assert_eq!(world.closed(connection), None, "the node is not disturbed");
    }
    assert_eq!(world.count(EventKind::AccessRefused), 2);
    // A name that nobody has joined under is anybody's, where plain text is allowed at all.
    let mut other = Agent::new(2);
    let connection = world.connect(&mut other);
    assert_eq!(world.closed(connection), None);
    let mut stranger = Agent { key: Some(KeyId::of(b"c")), ..Agent::new(3) };
    let tried = world.connect(&mut stranger);
    assert_eq!(world.closed(tried), Some(Refusal::NotJoined(stranger.hello.node.clone())));
}

#[test]
fn a_node_is_what_it_is_known_to_be_and_not_what_it_says() {
    let mut world = World::new();
    world.apply(mesh(WEB));
    while world.deliver_change() {}
    let mut known = world.approved(1, "a", &[("role", "web")]);
    let mut liar = world.approved(2, "b", &[]);
    liar.label("role", "web");
    for agent in [&mut known, &mut liar] {
        world.connect(agent);
    }
    while world.do_commit() || world.deliver_change() {}
    let labels = |agent: &Agent| &world.state.stored().wanted.nodes[&agent.hello.node].labels;
    assert_eq!(labels(&known)["role"], "web");
    assert!(labels(&liar).is_empty());
}

#[test]
fn a_session_ends_with_the_change_that_removes_its_node() {
    let mut world = World::new();
    let mut agent = world.approved(1, "a", &[]);
    let node = agent.hello.node.clone();
    let connection = world.connect(&mut agent);
    world.do_commit();
    world.trust(|draft, _| draft.remove_node(&node, &BTreeSet::new()).unwrap());
    assert_eq!(world.closed(connection), Some(Refusal::NotJoined(node.clone())));
    while world.do_commit() || world.deliver_change() {}
    assert!(!world.state.stored().wanted.nodes.contains_key(&node), "what it said goes with it");
    for key in [agent.key, None] {
        agent.key = key;
        let tried = world.connect(&mut agent);
        assert_eq!(world.closed(tried), Some(Refusal::NotJoined(node.clone())));
    }
    assert_eq!(world.count(EventKind::NodeRemoved), 1);
}

/// An agent is told who may steer it, as long as it has shown who it is.
#[test]
fn who_may_steer_is_told_to_those_who_have_joined_and_again_when_it_changes() {
    let mut world = World::new();
    let anna = Operator {
        role: Role::Viewer,
        key: KeyId::of(b"anna"),
        expires: HOUR * 1_000_000,
        made_by: "root".to_owned(),
    };
    world.trust(|draft, _| draft.create_operator(&"anna".parse().unwrap(), anna.clone()).unwrap());
    let mut joined = world.approved(1, "a", &[]);
    let mut claimant = Agent::new(2);
    world.connect(&mut joined);
    world.connect(&mut claimant);
    let told = |world: &World, agent: &Agent| -> Vec<Vec<String>> {
        let waiting = world.waiting(agent).into_iter();
        let operators = waiting.filter_map(|sent| match sent {
            Sent::Message(ControllerMessage::Operators(operators)) => Some(operators),
            Sent::Message(_) | Sent::Snapshot(..) => None,
        });
        operators.map(|all| all.keys().map(ToString::to_string).collect()).collect()
    };
    assert_eq!(told(&world, &joined), [["anna"]]);
    world.trust(|draft, _| draft.create_operator(&"bob".parse().unwrap(), anna.clone()).unwrap());
    world.trust(|draft, _| draft.remove_operator(&"anna".parse().unwrap()).unwrap());
    world.drain();
    assert_eq!(told(&world, &joined), [vec!["anna"], vec!["anna", "bob"], vec!["bob"]]);
    assert!(told(&world, &claimant).is_empty(), "what only says who it is is told nothing of others");
}

#[test]
fn a_session_lasts_as_long_as_the_latest_certificate() {
    let mut world = World::new();
    let mut agent = world.approved(1, "a", &[]);
    let (node, key) = (agent.hello.node.clone(), agent.key.unwrap());
    let connection = world.connect(&mut agent);
    let live = |world: &mut World, agent: &mut Agent, time: Duration| {
        let end = world.now + time;
        while world.now < end && world.closed(connection).is_none() {
            world.say(agent, crate::proto::session::AgentMessage::Heartbeat(Default::default()));
            world.pass(Duration::from_secs(10).min(end - world.now));
            while world.deliver_down(agent) {}
            while world.deliver_up(connection) {}
        }
    };
    live(&mut world, &mut agent, CERTIFICATE - HOUR);
    assert_eq!(world.closed(connection), None);
    world.trust(|draft, wall| drop(draft.renew(&node, key, wall).unwrap()));
    live(&mut world, &mut agent, HOUR * 2);
    assert_eq!(world.closed(connection), None, "it was renewed in time");
    live(&mut world, &mut agent, CERTIFICATE);
    assert_eq!(world.closed(connection), Some(Refusal::Expired));
}

/// The controller was away for 29 days, with certificates of all ages.
#[test]
fn after_a_long_outage_all_renew_and_come_back() {
    let mut world = World::new();
    let mut agents: Vec<Agent> =
        (0..7).map(|number| world.approved(number, &format!("key {number}"), &[])).collect();
    for agent in &mut agents {
        world.connect(agent);
    }
    while world.do_commit() || world.deliver_change() {}
    world.pass(HOUR * 24 * 29);
    world.restart();
    for agent in &mut agents {
        let tried = world.connect(agent);
        assert_eq!(world.closed(tried), Some(Refusal::Expired), "and it is told so");
        let (node, key) = (agent.hello.node.clone(), agent.key.unwrap());
        world.trust(|draft, wall| drop(draft.renew(&node, key, wall).unwrap()));
        let again = world.connect(agent);
        assert_eq!(world.closed(again), None);
    }
    world.pass(CERTIFICATE + GRACE);
    let (node, key) = (agents[0].hello.node.clone(), agents[0].key.unwrap());
    let mut draft = Draft::new(&world.state.stored().trust);
    assert!(draft.renew(&node, key, world.wall()).is_err(), "for longer it is not remembered");
}

#[test]
fn a_clock_that_is_off_is_told_once_and_shown_until_it_is_set() {
    let mut world = World::new();
    let mut agent = world.approved(1, "a", &[]);
    let problems = |world: &World| {
        let status = world.state.status(world.now);
        status.problems.iter().filter(|problem| problem.message.contains("clock")).count()
    };
    for (ahead, behind, told, shown) in
        [(30, 0, 0, 0), (3_600, 0, 1, 1), (3_600, 0, 1, 1), (0, 700_000, 1, 1), (0, 0, 1, 0), (90, 0, 2, 1)]
    {
        let clock = world.wall() + Duration::from_secs(ahead) - Duration::from_secs(behind);
        agent.hello.clock = Some(clock);
        let connection = world.connect(&mut agent);
        assert_eq!(world.closed(connection), None, "it forwards, and is there");
        assert_eq!((world.count(EventKind::ClockOff), problems(&world)), (told, shown), "{ahead} {behind}");
        world.close(connection);
        agent.restart();
    }
}
