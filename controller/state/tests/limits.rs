//! What one bad host may cost: it hurts itself, and nobody else.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use super::world::{Agent, Sent, World, mesh, node};
use super::{WEB, converged};
use crate::controller::registry::ACKNOWLEDGE;
use crate::controller::state::{EventKind, Refusal};
use crate::controller::store::transaction::StoreError;
use crate::proto::model::{Owner, TunnelState};
use crate::proto::session::{Ack, AgentMessage, Hello, Reach, Report, TunnelReport};

/// What is wrong with a node, in words; an empty name is the controller.
fn problems(world: &World, node: &str) -> Vec<String> {
    let problems = world.state.status(world.now).problems.into_iter();
    let of_node = problems.filter(|problem| problem.node.as_ref().map_or("", |name| name.as_str()) == node);
    of_node.map(|problem| problem.message).collect()
}

fn has(words: &[String], wanted: &str) -> bool {
    words.iter().any(|words| words.contains(wanted))
}

#[test]
fn a_host_that_comes_again_and_again_keeps_nobody_out() {
    let mut world = World::new();
    let (mut storm, mut other) = (Agent::new(0), Agent::new(1));
    for _ in 0..2_000 {
        let connection = world.connect(&mut storm);
        world.close(connection);
    }
    let connection = world.connect(&mut storm);
    assert!(matches!(world.closed(connection), Some(Refusal::TooMany { .. })));
    let connection = world.connect(&mut other);
    assert_eq!(world.closed(connection), None);
}

#[test]
fn an_agent_that_asks_for_all_again_gets_it_now_and_then_and_comes_to_its_end() {
    let (mut world, mut agents) = converged(3);
    let connection = agents[0].connection.unwrap();
    let (mut snapshots, mut time) = (0, Duration::ZERO);
    while world.closed(connection).is_none() {
        world.say(&agents[0], AgentMessage::Resync("my disk is full".to_owned()));
        let stream = world.streams.get_mut(&connection).unwrap();
        snapshots += stream.down.drain(..).filter(|sent| matches!(sent, Sent::Snapshot(..))).count();
        world.pass(Duration::from_millis(100));
        time += Duration::from_millis(100);
        assert!(time <= ACKNOWLEDGE, "it prolongs its time");
    }
    assert_eq!(world.closed(connection), Some(Refusal::NotAcknowledged));
    assert!((5..=12).contains(&snapshots), "{snapshots}");
    assert!(has(&problems(&world, "n0"), "my disk is full"));
    // Once it can, it is as any other.
    world.settle(&mut agents);
    assert_eq!(problems(&world, "n0"), [""; 0]);
    assert_eq!(world.state.convergence(world.now).converged, 3);
}

#[test]
fn an_agent_that_is_held_gets_the_latest_in_the_end() {
    let (mut world, mut agents) = converged(2);
    for _ in 0..10 {
        world.say(&agents[0], AgentMessage::Resync("a hiccup".to_owned()));
    }
    let connection = agents[0].connection.unwrap();
    world.streams.get_mut(&connection).unwrap().down.clear();
    world.apply(mesh(&WEB.replace("{mesh", "{mtu: 1300, mesh")));
    world.deliver_change();
    world.live(&agents, Duration::from_secs(6));
    world.settle(&mut agents);
    assert_eq!(world.closed(connection), None);
    assert_eq!(world.state.convergence(world.now).converged, 2);
}

#[test]
fn an_agent_that_comes_with_something_else_each_time_gets_all_now_and_then() {
    let (mut world, mut agents) = converged(3);
    let mut snapshots = 0;
    for _ in 0..100 {
        agents[0].has = None;
        world.connect(&mut agents[0]);
        snapshots +=
            world.waiting(&agents[0]).iter().filter(|sent| matches!(sent, Sent::Snapshot(..))).count();
        world.pass(Duration::from_millis(100));
    }
    assert!((4..=7).contains(&snapshots), "{snapshots}");
    world.live(&agents, Duration::from_secs(6));
    world.settle(&mut agents);
    assert_eq!(world.state.convergence(world.now).converged, 3);
}

fn report(tunnels: impl IntoIterator<Item = (String, TunnelState)>) -> AgentMessage {
    let tunnel = |state| TunnelReport {
        device: "web".parse().unwrap(),
        owner: Owner::Controller,
        state,
        endpoint: String::new(),
        preferred: String::new(),
        last_received_ms: None,
        keyed: false,
    };
    let tunnels = tunnels.into_iter().map(|(name, state)| (name.parse().unwrap(), tunnel(state))).collect();
    AgentMessage::Report(Report {
        tunnels,
        gone: BTreeSet::new(),
        whole: false,
        request: None,
        forwarding: None,
    })
}

/// A fault that an agent says twice, as what cannot be had and as how its tunnel is, is one problem.
#[test]
fn a_problem_is_told_once_and_of_many_the_first() {
    let (mut world, agents) = converged(2);
    let failed = |name: String| (name, TunnelState::Failed("clash 1".to_owned()));
    world.say(&agents[0], fail(&agents[0], 1));
    world.say(&agents[0], report([failed("web.n1".to_owned())]));
    assert_eq!(problems(&world, "n0"), ["clash 1"]);
    world.say(&agents[0], report((0..1_500).map(|tunnel| failed(format!("t{tunnel}")))));
    assert_eq!(world.state.status(world.now).problems.len(), 1_000);
}

/// What an agent says in a round.
type Say = fn(&Agent, usize) -> AgentMessage;

fn flip(_: &Agent, round: usize) -> AgentMessage {
    let state = || match round % 2 {
        0 => TunnelState::Failed("x".repeat(900)),
        _ => TunnelState::Passing,
    };
    report((0..200).map(|tunnel| (format!("t{tunnel}"), state())))
}

fn fail(agent: &Agent, round: usize) -> AgentMessage {
    let generation = agent.has.as_ref().unwrap().0;
    let item = "tunnel web.n1".parse().unwrap();
    let failures = BTreeMap::from([(item, format!("clash {round}"))]);
    AgentMessage::Ack(Ack { generation, failures, removals_held: BTreeSet::new() })
}

/// Whatever an agent can say in a loop.
#[test]
fn what_one_agent_says_does_not_drive_out_the_events_of_others() {
    let refuse: Say = |_, round| AgentMessage::Refusal(format!("for reason {round}"));
    let says: [Say; 4] = [flip, fail, refuse, |_, _| AgentMessage::Goodbye];
    for (kind, say) in says.iter().enumerate() {
        let (mut world, mut agents) = converged(2);
        let before = world.state.last_event();
        for round in 0..300 {
            let connection = agents[0].connection.unwrap();
            if world.closed(connection).is_some() {
                world.connect(&mut agents[0]);
                while world.deliver_down(&mut agents[0]) {}
            }
            let message = say(&agents[0], round);
            world.say(&agents[0], message);
        }
        let told = world.state.last_event() - before;
        assert!((50..=101).contains(&told), "{kind}: {told}");
        // It is told that there were more, and the next is told again.
        world.live(&agents[1..], Duration::from_secs(10));
        let left_out = world.count(EventKind::EventsLeftOut);
        assert!((1..=2).contains(&left_out), "{kind}: {left_out}");
    }
}

#[test]
fn a_node_that_says_something_else_each_time_is_believed_now_and_then() {
    let (mut world, mut agents) = converged(2);
    let before = world.store.revision;
    for port in 6_000..6_100 {
        agents[0].hello.data_port = port;
        world.connect(&mut agents[0]);
        world.live(&agents, Duration::from_millis(100));
        while world.do_commit() || world.deliver_change() {}
    }
    let changes = world.store.revision - before;
    assert!((5..=20).contains(&changes), "{changes}");
    // The last word counts, after a while.
    world.live(&agents, Duration::from_secs(15));
    world.settle(&mut agents);
    assert_eq!(world.store.read().wanted.nodes[&node(0)].data_port, 6_099);
    // What it said before is no word any more once it is back to what is stored.
    for port in [1, 2, 3, 4, 5, 6, 6_099] {
        agents[0].hello.data_port = port;
        world.connect(&mut agents[0]);
    }
    world.live(&agents, Duration::from_secs(60));
    world.settle(&mut agents);
    assert_eq!(world.store.read().wanted.nodes[&node(0)].data_port, 6_099);
}

/// An agent's way to the controller that leads through the mesh itself.
#[test]
fn an_overlay_address_is_neither_the_controllers_nor_an_endpoint() {
    let (mut world, mut agents) = converged(3);
    let overlay = |number: usize, world: &World| {
        let allocations = &world.store.read().wanted.allocations[&"web".parse().unwrap()];
        allocations.nodes[&node(number)].addresses[0]
    };
    let (source, local) = (overlay(1, &world), overlay(0, &world));
    world.close(agents[1].connection.unwrap());
    agents[1].source = source;
    world.local = local;
    world.connect(&mut agents[1]);
    world.settle(&mut agents);
    let endpoint = |world: &World| world.store.read().wanted.nodes[&node(1)].endpoint.clone().unwrap();
    assert_eq!(endpoint(&world).to_string(), "172.100.1.2", "as it was known");
    assert!(has(&problems(&world, "n1"), &format!("through mesh web, at {local} of n0")));
    let plan = world.state.basis().plan(mesh(&WEB.replace("{mesh", "{mtu: 1300, mesh")), world.wall());
    assert!(plan.hazards.iter().all(|hazard| !hazard.is_error), "{:?}", plan.hazards);
    assert_eq!(agents[0].has.as_ref().unwrap().1.len(), 3, "all tunnels are there");

    // A node that never came otherwise has no endpoint.
    let mut fourth = Agent::new(3);
    fourth.label("role", "web");
    fourth.source = source;
    agents.push(fourth);
    world.settle(&mut agents);
    assert_eq!(world.store.read().wanted.nodes[&node(3)].endpoint, None);
}

#[test]
fn an_address_of_the_controller_is_one_while_it_is_reached_there() {
    let (mut world, mut agents) = converged(2);
    let covering = || mesh("{mesh: b, overlay: 172.100.9.0/24, security: plain, nodes: {x: {}}}");
    let errors = |world: &World| {
        let plan = world.state.basis().plan(covering(), world.wall());
        plan.hazards
            .into_iter()
            .filter(|hazard| hazard.is_error)
            .map(|hazard| hazard.message)
            .collect::<Vec<_>>()
    };
    assert!(has(&errors(&world), "172.100.9.9, an address of the controller"), "{:?}", errors(&world));
    world.local = IpAddr::from(Ipv4Addr::new(172, 100, 8, 8));
    for agent in &mut agents {
        world.connect(agent);
    }
    assert_eq!(errors(&world), [""; 0]);
}

#[test]
fn of_two_at_one_endpoint_the_first_stays_and_the_other_is_told() {
    for late in [0, 2] {
        let mut world = World::new();
        let mut agents: Vec<Agent> = (0..3).map(Agent::new).collect();
        agents.iter_mut().for_each(|agent| agent.label("role", "web"));
        world.apply(mesh(WEB));
        let first = 2 - late;
        let at: Hello =
            Hello { reach: Reach::At("172.100.1.77".parse().unwrap()), ..agents[first].hello.clone() };
        agents[first].hello = at;
        let mut others = vec![agents[first].clone(), agents[1].clone()];
        world.settle(&mut others);
        agents[late].hello.reach = agents[first].hello.reach.clone();
        agents[first] = others[0].clone();
        agents[1] = others[1].clone();
        world.settle(&mut agents);
        // What else the first says of itself takes nothing from it.
        agents[first].label("zone", "a");
        world.connect(&mut agents[first]);
        world.settle(&mut agents);
        let names: Vec<_> =
            agents[1].has.as_ref().unwrap().1.iter().map(|item| item.id.to_string()).collect();
        assert_eq!(names, ["device web".to_owned(), format!("tunnel web.n{first}")]);
        let told = problems(&world, &format!("n{late}"));
        assert!(has(&told, &format!("172.100.1.77:5000, where n{first} was before")), "{told:?}");
        assert_eq!(problems(&world, &format!("n{first}")), [""; 0]);
        // It goes elsewhere.
        agents[late].hello.reach = Reach::BySession;
        world.connect(&mut agents[late]);
        world.settle(&mut agents);
        assert_eq!(problems(&world, &format!("n{late}")), [""; 0]);
        assert_eq!(agents[1].has.as_ref().unwrap().1.len(), 3);
    }
}

#[test]
fn a_store_that_cannot_be_written_is_told_until_it_can() {
    let (mut world, _agents) = converged(2);
    let full = || StoreError::Unavailable("the disk is full".to_owned());
    // An order of an operator's fails; the state tries on its own.
    world.state.handle_store_failure("the disk is full".to_owned(), world.now, world.wall());
    world.drain();
    assert!(has(&problems(&world, ""), "cannot be written for 0 s: the disk is full"));
    for _ in 0..3 {
        assert!(world.commit.take().is_some(), "it is tried");
        world.state.handle_commit_result(Err(full()), world.now, world.wall());
        world.drain();
        assert!(world.commit.is_none());
        world.pass(Duration::from_secs(1));
    }
    assert!(has(&problems(&world, ""), "cannot be written for 3 s: the disk is full"));
    assert_eq!((world.count(EventKind::StoreFailed), world.count(EventKind::StoreWritten)), (1, 0));
    let before = world.store.read();
    assert!(world.do_commit());
    assert_eq!(problems(&world, ""), [""; 0]);
    assert_eq!((world.count(EventKind::StoreFailed), world.count(EventKind::StoreWritten)), (1, 1));
    let after = world.store.read();
    assert_eq!((&after.wanted, &after.consents), (&before.wanted, &before.consents), "nothing was said");
    while world.deliver_change() {}
    world.pass(Duration::from_secs(5));
    assert!(world.commit.is_none(), "it is tried no more");
}
