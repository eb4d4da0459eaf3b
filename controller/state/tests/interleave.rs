//! Anything in any order: what holds at every step is checked by the world, what holds in the end here.

use std::time::Duration;

use proptest::prelude::*;

use super::world::{Agent, World, mesh, node};
use crate::controller::state::Connection;
use crate::proto::session::{AgentMessage, Items};

const AGENTS: usize = 4;

#[derive(Debug, Clone)]
enum Step {
    /// The agent comes again; the controller has not heard that the old stream is gone.
    Reconnect(usize),
    /// The same as another process.
    Restart(usize),
    /// Another host with the agent's name and state comes and goes.
    Clone(usize),
    Label(usize, bool),
    Down(usize),
    /// The controller hears the next message of a stream, counted from the latest.
    Up(usize),
    Close(usize),
    Resync(usize),
    Goodbye(usize),
    Apply(usize),
    Commit,
    Change,
    Pass(u64),
    RestartController,
}

fn step() -> impl Strategy<Value = Step> {
    let agent = 0..AGENTS;
    prop_oneof![
        3 => agent.clone().prop_map(Step::Reconnect),
        1 => agent.clone().prop_map(Step::Restart),
        1 => agent.clone().prop_map(Step::Clone),
        1 => (agent.clone(), any::<bool>()).prop_map(|(agent, on)| Step::Label(agent, on)),
        8 => agent.clone().prop_map(Step::Down),
        8 => (0..6_usize).prop_map(Step::Up),
        2 => (0..6_usize).prop_map(Step::Close),
        1 => agent.clone().prop_map(Step::Resync),
        1 => agent.prop_map(Step::Goodbye),
        3 => (0..6_usize).prop_map(Step::Apply),
        4 => Just(Step::Commit),
        5 => Just(Step::Change),
        4 => prop_oneof![1 => 1..40_u64, 1 => 100..4_000_u64, 1 => 10_000..40_000_u64].prop_map(Step::Pass),
        1 => Just(Step::RestartController),
    ]
}

/// Meshes that differ in members, endpoints and size.
fn variant(number: usize) -> crate::controller::mesh::Mesh {
    mesh(
        [
            "{mesh: a, overlay: 10.9.0.0/24, security: plain, nodes: {n0: {}, n1: {}}}",
            "{mesh: a, overlay: 10.9.0.0/24, security: plain, nodes: {n0: {}, n1: {}, n2: {endpoint: 172.100.7.7}}}",
            "{mesh: a, overlay: 10.9.0.0/24, security: plain, mtu: 1400, members: [{labels: {role: web}}]}",
            "{mesh: b, overlay: 10.8.0.0/24, security: plain, nodes: {n0: {}, n3: {}}}",
            "{mesh: b, overlay: 10.8.0.0/24, security: plain, nodes: {n3: {}}, members: [{labels: {role: web}}]}",
            "{mesh: b, overlay: 10.8.0.0/29, security: plain, nodes: {n1: {}, n2: {}, n3: {}}}",
        ][number],
    )
}

fn run(world: &mut World, agents: &mut [Agent], step: &Step) {
    let stream = |world: &World, back: usize| {
        let number = world.streams.len().checked_sub(back)?;
        Some(Connection(number as u64))
    };
    match *step {
        Step::Reconnect(agent) => _ = world.connect(&mut agents[agent]),
        Step::Restart(agent) => agents[agent].restart(),
        Step::Clone(agent) => {
            let mut other = agents[agent].clone();
            other.restart();
            let connection = world.connect(&mut other);
            world.deliver_down(&mut other);
            world.deliver_up(connection);
        }
        Step::Label(agent, true) => agents[agent].label("role", "web"),
        Step::Label(agent, false) => agents[agent].label("role", "db"),
        Step::Down(agent) => _ = world.deliver_down(&mut agents[agent]),
        Step::Up(back) => _ = stream(world, back).map(|stream| world.deliver_up(stream)),
        Step::Close(back) => _ = stream(world, back).map(|stream| world.close(stream)),
        Step::Resync(agent) | Step::Goodbye(agent) => {
            let message = if matches!(step, Step::Goodbye(_)) {
                AgentMessage::Goodbye
            } else {
                AgentMessage::Resync("for no reason".to_owned())
            };
            let connection = agents[agent].connection;
            if let Some(stream) = connection.and_then(|connection| world.streams.get_mut(&connection)) {
                // An agent that asks for all again does not acknowledge what it was sent before.
                stream.down.clear();
                stream.up.push_back(message);
            }
        }
        Step::Apply(number) => world.apply(variant(number)),
        Step::Commit => _ = world.do_commit(),
        Step::Change => _ = world.deliver_change(),
        Step::Pass(milliseconds) => world.pass(Duration::from_millis(milliseconds)),
        Step::RestartController => world.restart(),
    }
}

/// Runs the steps, then all that they have left to be done, and checks what has come of it.
fn check(steps: &[Step]) -> Result<(), TestCaseError> {
    let mut world = World::new();
    let mut agents: Vec<Agent> = (0..AGENTS).map(Agent::new).collect();
    for step in steps {
        run(&mut world, &mut agents, step);
    }
    // The dead let go of their streams.
    let last: Vec<_> = agents.iter().filter_map(|agent| agent.connection).collect();
    for connection in world.streams.keys().copied().collect::<Vec<_>>() {
        if !last.contains(&connection) {
            world.close(connection);
        }
    }
    world.settle(&mut agents);
    let views = world.store.read().wanted.views();
    for (number, agent) in agents.iter().enumerate() {
        let wanted = views.get(&node(number)).cloned().unwrap_or_default();
        let has = agent.has.as_ref().map(|(_, items)| items.clone()).unwrap_or_default();
        prop_assert_eq!(has, wanted, "n{}", number);
    }
    let convergence = world.state.convergence(world.now);
    prop_assert_eq!(convergence.converged, convergence.nodes, "{:?}", convergence);
    prop_assert!(convergence.nodes >= views.values().filter(|items| **items != Items::default()).count());
    prop_assert_eq!(world.state.stored(), &world.store.read());
    Ok(())
}

/// One that comes again and again gets all that is wanted when it is its time.
#[test]
fn an_agent_that_comes_too_often_has_what_is_wanted_in_the_end() {
    let mut steps = vec![Step::Apply(0), Step::Change];
    steps.resize(9, Step::Reconnect(1));
    check(&steps).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happened_all_agents_come_to_have_what_is_wanted(
        steps in proptest::collection::vec(step(), 0..120),
    ) {
        check(&steps)?;
    }
}
