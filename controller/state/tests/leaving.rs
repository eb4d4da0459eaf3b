//! Meshes on their way from unencrypted to encrypted.

use super::*;
use crate::controller::alloc::FromPlain;
use crate::proto::convert::session::{Meaning, meaning};
use crate::proto::model::Framing;

const PLAIN: &str = "{mesh: web, overlay: 10.9.0.0/22, security: plain, members: [{labels: {role: web}}]}";

/// Three nodes of a mesh that has just left plain text.
fn left() -> (World, Vec<Agent>) {
    let mut world = World::new();
    let mut agents: Vec<Agent> = (0..3).map(Agent::new).collect();
    agents.iter_mut().for_each(|agent| agent.label("role", "web"));
    world.apply(mesh(PLAIN));
    world.settle(&mut agents);
    world.apply(mesh(&PLAIN.replace("security: plain, ", "")));
    world.settle(&mut agents);
    (world, agents)
}

/// The framings of a node's tunnels as its agent has them, and whether unencrypted packets are taken, too.
fn has(agent: &Agent) -> Vec<(bool, bool)> {
    let items = agent.has.iter().flat_map(|(_, items)| items.iter());
    let tunnels = items.filter_map(|item| match meaning(item).unwrap() {
        Meaning::Tunnel(tunnel) => Some(tunnel),
        Meaning::Device(..) => None,
    });
    tunnels.map(|tunnel| (matches!(tunnel.framing, Framing::Wireguard(_)), tunnel.also_plain)).collect()
}

const RAW: (bool, bool) = (false, true);
const BOTH: (bool, bool) = (true, true);
const SEALED: (bool, bool) = (true, false);

/// An agent says of its tunnels to these nodes that there are keys.
fn report(world: &mut World, agent: &Agent, to: &[usize]) {
    let tunnel = |number: &usize| {
        let report = TunnelReport {
            device: "web".parse().unwrap(),
            owner: Owner::Controller,
            state: TunnelState::Passing,
            endpoint: String::new(),
            preferred: String::new(),
            last_received_ms: None,
            keyed: true,
        };
        (format!("web.n{number}").parse().unwrap(), report)
    };
    let report = Report { tunnels: to.iter().map(tunnel).collect(), ..Report::default() };
    world.say(agent, AgentMessage::Report(report));
}

/// Lets the controller look.
fn look(world: &mut World, agents: &mut [Agent]) {
    world.pass(Duration::from_millis(300));
    world.settle(agents);
}

#[test]
fn a_pair_goes_on_in_plain_text_until_both_have_agreed_on_keys_with_all() {
    let (mut world, mut agents) = left();
    assert_eq!(has(&agents[0]), [RAW, RAW]);
    let lags = |world: &World| -> Vec<String> {
        world.state.convergence(world.now).lagging.into_iter().map(|lag| lag.message).collect()
    };
    assert_eq!(lags(&world)[0], "it has not made its key for mesh web yet");
    for (number, agent) in (1..).zip(&agents) {
        world.say(agent, AgentMessage::Keys(keys(number)));
    }
    world.settle(&mut agents);
    assert!(agents.iter().all(|agent| has(agent) == [BOTH, BOTH]));
    look(&mut world, &mut agents);
    let told = "it has not agreed on keys with n1 in mesh web yet, and takes unencrypted packets until then";
    assert_eq!(lags(&world)[0], told);
    let problems = world.state.status(world.now).problems;
    assert!(problems.iter().any(|problem| problem.node == Some(node(0)) && problem.message == told));
    // What one end says is half of it.
    report(&mut world, &agents[0], &[1, 2]);
    report(&mut world, &agents[1], &[0]);
    look(&mut world, &mut agents);
    assert!(agents.iter().all(|agent| has(agent) == [BOTH, BOTH]));
    report(&mut world, &agents[2], &[0]);
    look(&mut world, &mut agents);
    assert_eq!(has(&agents[0]), [BOTH, BOTH], "the others are not through");
    report(&mut world, &agents[1], &[2]);
    report(&mut world, &agents[2], &[1]);
    look(&mut world, &mut agents);
    assert!(agents.iter().all(|agent| has(agent) == [SEALED, SEALED]));
    assert_eq!(lags(&world), [""; 0]);
    assert!(world.store.read().wanted.allocations.values().all(|all| all.under_way().next().is_none()));
}

#[test]
fn who_is_away_is_waited_for_by_itself() {
    let (mut world, mut agents) = left();
    world.close(agents[2].connection.unwrap());
    for (number, agent) in (1..).zip(&agents[..2]) {
        world.say(agent, AgentMessage::Keys(keys(number)));
    }
    world.settle(&mut agents[..2]);
    report(&mut world, &agents[0], &[1]);
    report(&mut world, &agents[1], &[0]);
    look(&mut world, &mut agents[..2]);
    assert_eq!((has(&agents[0]), has(&agents[1])), (vec![SEALED, RAW], vec![SEALED, RAW]));
    // Through a restart of the controller, too.
    agents[0].hello.keys = keys(1);
    agents[1].hello.keys = keys(2);
    world.restart();
    world.settle(&mut agents[..2]);
    assert_eq!(has(&agents[0]), [SEALED, RAW]);
    let stored = world.store.read().wanted;
    let allocations = &stored.allocations[&"web".parse().unwrap()];
    assert_eq!(allocations.nodes[&node(0)].from_plain, Some(FromPlain::Keyed));
    agents[2].hello.keys = keys(3);
    world.connect(&mut agents[2]);
    world.settle(&mut agents);
    assert_eq!((has(&agents[0]), has(&agents[2])), (vec![SEALED, BOTH], vec![BOTH, BOTH]));
    for (own, to) in [(0, [1, 2]), (1, [0, 2]), (2, [0, 1])] {
        report(&mut world, &agents[own], &to);
    }
    look(&mut world, &mut agents);
    assert!(agents.iter().all(|agent| has(agent) == [SEALED, SEALED]));
}

/// It was through while nobody else was there, and is away when one comes back: that one cannot know whether they can
/// meet.
#[test]
fn who_comes_back_has_to_agree_with_those_who_were_through_before() {
    let (mut world, mut agents) = left();
    for number in [1, 2] {
        world.close(agents[number].connection.unwrap());
    }
    world.say(&agents[0], AgentMessage::Keys(keys(1)));
    world.settle(&mut agents[..1]);
    look(&mut world, &mut agents[..1]);
    let how_far = |world: &World, number: usize| {
        let stored = world.store.read().wanted;
        stored.allocations[&"web".parse().unwrap()].nodes[&node(number)].from_plain
    };
    assert_eq!(how_far(&world, 0), Some(FromPlain::Keyed));
    assert_eq!(has(&agents[0]), [RAW, RAW]);
    world.close(agents[0].connection.unwrap());
    agents[1].hello.keys = keys(2);
    world.connect(&mut agents[1]);
    look(&mut world, &mut agents[1..2]);
    look(&mut world, &mut agents[1..2]);
    assert_eq!(how_far(&world, 1), Some(FromPlain::UnderWay));
    assert_eq!(has(&agents[1]), [BOTH, RAW]);
    agents[0].hello.keys = keys(1);
    world.connect(&mut agents[0]);
    report(&mut world, &agents[0], &[1]);
    report(&mut world, &agents[1], &[0]);
    look(&mut world, &mut agents[..2]);
    look(&mut world, &mut agents[..2]);
    assert_eq!((has(&agents[0]), has(&agents[1])), (vec![SEALED, RAW], vec![SEALED, RAW]));
}
