//! Two processes of one name, and stores from the past.

use std::time::Duration;

use super::world::{Agent, Sent, World, mesh};
use super::{WEB, converged};
use crate::controller::registry::FENCE;
use crate::controller::state::{EventKind, Refusal};
use crate::proto::session::{AgentMessage, ControllerMessage, Generation, Heartbeat};

#[test]
fn the_same_process_takes_the_place_of_its_older_session_at_once() {
    let (mut world, mut agents) = converged(2);
    let old = agents[0].connection.unwrap();
    let new = world.connect(&mut agents[0]);
    assert_eq!(world.closed(old), Some(Refusal::Superseded));
    assert_eq!(world.closed(new), None);
    assert!(matches!(world.waiting(&agents[0])[0], Sent::Message(ControllerMessage::Welcome(_))));
    assert_eq!(world.count(EventKind::NodeRestarted), 0);
}

#[test]
fn a_second_process_is_refused_while_the_first_is_alive() {
    let (mut world, mut agents) = converged(2);
    while world.deliver_down(&mut agents[0]) {}
    let mut other = agents[0].clone();
    other.restart();
    for attempt in 0..3 {
        let connection = world.connect(&mut other);
        assert!(world.waiting(&other).is_empty(), "it waits");
        assert_eq!(world.waiting(&agents[0]).len(), 1, "a ping");
        assert!(world.deliver_down(&mut agents[0]));
        assert!(world.deliver_up(agents[0].connection.unwrap()));
        assert_eq!(world.closed(connection), Some(Refusal::AlreadyConnected));
        assert_eq!(world.count(EventKind::IdentityCloned), 1, "told once, attempt {attempt}");
    }
    assert_eq!(world.closed(agents[0].connection.unwrap()), None);
    world.apply(mesh(&WEB.replace("{mesh", "{mtu: 1300, mesh")));
    world.settle(&mut agents);
    assert_eq!(world.state.convergence(world.now).converged, 2);
}

#[test]
fn a_second_process_takes_the_place_of_one_that_does_not_answer() {
    let (mut world, mut agents) = converged(2);
    let old = agents[0].connection.unwrap();
    agents[0].restart();
    let new = world.connect(&mut agents[0]);
    world.pass(FENCE - Duration::from_millis(1));
    assert_eq!(world.closed(old), None);
    // Another word than the answer is no sign of life: it may have been on its way.
    world.streams.get_mut(&old).unwrap().up.push_back(AgentMessage::Heartbeat(Heartbeat::default()));
    assert!(world.deliver_up(old));
    world.pass(Duration::from_millis(1));
    assert_eq!(world.closed(old), Some(Refusal::Superseded));
    assert_eq!(world.closed(new), None);
    assert!(matches!(world.waiting(&agents[0])[0], Sent::Message(ControllerMessage::Welcome(_))));
    assert_eq!(world.count(EventKind::NodeRestarted), 1);
    world.settle(&mut agents);
    assert_eq!(agents[0].has.as_ref().unwrap().1.len(), 2);
}

#[test]
fn a_second_process_is_let_in_when_the_first_is_gone() {
    let (mut world, mut agents) = converged(2);
    let old = agents[0].connection.unwrap();
    agents[0].restart();
    let new = world.connect(&mut agents[0]);
    assert!(world.waiting(&agents[0]).is_empty());
    world.close(old);
    assert!(matches!(world.waiting(&agents[0])[0], Sent::Message(ControllerMessage::Welcome(_))));
    assert_eq!(world.closed(new), None);
}

#[test]
fn a_third_process_does_not_prolong_the_wait() {
    let (mut world, mut agents) = converged(2);
    let old = agents[0].connection.unwrap();
    agents[0].restart();
    let second = world.connect(&mut agents[0]);
    world.pass(FENCE / 2);
    agents[0].restart();
    let third = world.connect(&mut agents[0]);
    assert_eq!(world.closed(second), Some(Refusal::AlreadyConnected));
    world.pass(FENCE / 2);
    assert_eq!(world.closed(old), Some(Refusal::Superseded));
    assert_eq!(world.closed(third), None);
}

#[test]
fn a_process_that_comes_again_beats_its_challenger() {
    let (mut world, mut agents) = converged(2);
    let mut other = agents[0].clone();
    other.restart();
    let challenger = world.connect(&mut other);
    let again = world.connect(&mut agents[0]);
    assert_eq!(world.closed(challenger), Some(Refusal::AlreadyConnected));
    world.pass(FENCE * 2);
    assert_eq!(world.closed(again), None);
}

#[test]
fn generations_go_on_when_an_older_store_was_restored() {
    let (mut world, mut agents) = converged(3);
    let copy = world.store.clone();
    for mtu in 1300..1310 {
        world.apply(mesh(&WEB.replace("{mesh", &format!("{{mtu: {mtu}, mesh"))));
        world.settle(&mut agents);
    }
    let before = agents[0].has.as_ref().unwrap().0;
    world.store = copy;
    world.restart();
    assert!(world.store.revision < before.revision);
    world.settle(&mut agents);
    assert_eq!(world.count(EventKind::StoreRestored), 1, "told once");
    let after = world.store.read();
    assert_eq!(after.incarnation, before.incarnation + 1);
    for agent in &agents {
        let (generation, items) = agent.has.as_ref().unwrap();
        assert!(*generation > before, "{generation}");
        assert_eq!(items, &after.wanted.views()[&agent.hello.node]);
    }
}

/// Whoever says what cannot be is refused alone, and takes nothing from the generations to come.
#[test]
fn a_generation_that_cannot_be_hurts_whoever_claims_it_alone() {
    let (mut world, mut agents) = converged(2);
    for incarnation in [1_002, u64::MAX - 1, u64::MAX] {
        let mut liar = Agent::new(5);
        liar.has = Some((Generation { incarnation, revision: 5 }, Default::default()));
        let connection = world.connect(&mut liar);
        assert!(matches!(world.closed(connection), Some(Refusal::Invalid(_))), "{incarnation}");
    }
    assert_eq!((world.store.read().incarnation, world.count(EventKind::StoreRestored)), (1, 0));
    world.restart();
    world.settle(&mut agents);
    assert_eq!(agents[0].has.as_ref().unwrap().0.incarnation, 1);
}

#[test]
fn an_agent_of_another_store_says_nothing_about_this_one() {
    let mut world = World::new();
    let mut agent = Agent::new(0);
    agent.has = Some((Generation { incarnation: 9, revision: 999 }, Default::default()));
    world.connect(&mut agent);
    let raised = world.count(EventKind::StoreRestored);
    assert_eq!(raised, 1);
    let mut other = World::new();
    agent.hello.have.as_mut().unwrap().store_id = "another".to_owned();
    let connection = crate::controller::state::Connection(1);
    let (hello, wall) = (agent.hello.clone(), other.wall());
    other.streams.insert(connection, Default::default());
    other.state.handle_connected(connection, agent.source, agent.source, hello, other.now, wall);
    other.drain();
    assert_eq!(other.count(EventKind::StoreRestored), 0);
}
