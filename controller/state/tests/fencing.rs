//! Two processes of one name, and stores from the past.

use std::time::Duration;

use super::world::{Agent, Sent, World, mesh, node};
use super::{WEB, converged};
use crate::controller::registry::FENCE;
use crate::controller::state::{EventKind, Health, Refusal};
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
fn agents_of_one_name_are_told_of_once_each_however_they_alternate() {
    let (mut world, mut agents) = converged(2);
    while world.deliver_down(&mut agents[0]) {}
    let source = |number| std::net::Ipv4Addr::new(172, 100, 7, number).into();
    let refuse = |world: &mut World, agents: &mut [Agent], number| {
        let mut other = agents[0].clone();
        other.restart();
        other.source = source(number);
        let connection = world.connect(&mut other);
        while world.deliver_down(&mut agents[0]) {}
        while world.deliver_up(agents[0].connection.unwrap()) {}
        assert_eq!(world.closed(connection), Some(Refusal::AlreadyConnected));
        world.pass(Duration::from_secs(1));
    };
    let problems = |world: &World| -> Vec<String> {
        let problems = world.state.status(world.now).problems.into_iter();
        problems.filter(|problem| problem.node == Some(node(0))).map(|problem| problem.message).collect()
    };
    for _ in 0..20 {
        refuse(&mut world, &mut agents, 1);
        refuse(&mut world, &mut agents, 2);
    }
    assert_eq!(world.count(EventKind::IdentityCloned), 2);
    let shown = problems(&world);
    assert_eq!(shown.len(), 2, "{shown:?}");
    for (shown, number) in shown.iter().zip([1, 2]) {
        assert!(
            shown.contains(&format!("{} has its name", source(number))) && shown.contains("--name"),
            "{shown}"
        );
    }
    // Whoever comes from everywhere does not push all else out of the events.
    for number in 0..=255 {
        refuse(&mut world, &mut agents, number);
    }
    assert!(world.count(EventKind::IdentityCloned) < 64, "{}", world.count(EventKind::IdentityCloned));
    // Who has not come for a minute is forgotten, and told of when it comes again.
    world.pass(Duration::from_secs(60));
    world.settle(&mut agents);
    while world.deliver_down(&mut agents[0]) {}
    assert_eq!(problems(&world), [""; 0]);
    let before = world.count(EventKind::IdentityCloned);
    refuse(&mut world, &mut agents, 1);
    assert_eq!(world.count(EventKind::IdentityCloned), before + 1);
}

/// A virtual machine that was copied as it ran.
#[test]
fn a_process_that_was_copied_takes_nothing_from_the_first() {
    let (mut world, mut agents) = converged(2);
    while world.deliver_down(&mut agents[0]) {}
    let old = agents[0].connection.unwrap();
    let mut copy = agents[0].clone();
    copy.source = "172.100.7.7".parse().unwrap();
    let connection = world.connect(&mut copy);
    assert!(world.waiting(&copy).is_empty(), "it waits");
    while world.deliver_down(&mut agents[0]) {}
    assert!(world.deliver_up(old));
    assert_eq!(world.closed(connection), Some(Refusal::AlreadyConnected));
    assert_eq!((world.closed(old), world.count(EventKind::IdentityCloned)), (None, 1));
    // One process that comes from elsewhere than before is let in, for it does not answer where it was.
    agents[0].source = "172.100.7.8".parse().unwrap();
    let new = world.connect(&mut agents[0]);
    world.pass(FENCE);
    assert_eq!((world.closed(old), world.closed(new)), (Some(Refusal::Superseded), None));
    assert_eq!(world.count(EventKind::NodeRestarted), 0);
}

#[test]
fn an_agent_that_refuses_is_not_there_and_told_of_once() {
    let (mut world, mut agents) = converged(2);
    let health = |world: &World| {
        let nodes = world.state.nodes(world.now);
        nodes.into_iter().find(|status| status.name == node(0)).unwrap().health.unwrap()
    };
    let mut told = 0;
    for attempt in 0..100 {
        world.connect(&mut agents[0]);
        world.say(&agents[0], AgentMessage::Refusal("it belongs to another store".to_owned()));
        assert_eq!(health(&world), Health::Offline);
        world.pass(Duration::from_secs(33));
        let of_node = world.state.events_after(0).filter(|event| event.node == Some(node(0))).count();
        assert!(attempt == 0 || of_node == told, "told again at attempt {attempt}");
        told = of_node;
    }
    assert_eq!(world.count(EventKind::SessionRefused), 1);
    let problems = world.state.status(world.now).problems;
    let of_node: Vec<_> = problems.iter().filter(|problem| problem.node == Some(node(0))).collect();
    assert_eq!(of_node.len(), 1, "{of_node:?}");
    assert!(of_node[0].message.contains("another store"));
    // Once it follows, it is there.
    world.settle(&mut agents);
    assert_eq!(health(&world), Health::Live);
    assert!(world.state.status(world.now).problems.is_empty());
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
    other.state.handle_connected(connection, agent.origin(agent.source), hello, other.now, wall);
    other.drain();
    assert_eq!(other.count(EventKind::StoreRestored), 0);
}
