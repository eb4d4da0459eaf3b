//! The controller's state.

mod fencing;
mod interleave;
mod leaving;
mod limits;
mod orders;
mod records;
mod stored;
mod trust;
mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use world::{Agent, Sent, World, mesh, node};

use super::{Connection, Effect, EventKind, Health, Refusal};
use crate::controller::alloc::REST;
use crate::controller::registry::{ACKNOWLEDGE, WATCHDOG};
use crate::proto::model::{MeshName, Owner, PublicKey, TunnelState};
use crate::proto::session::{
    Ack, AgentMessage, ControllerMessage, Forwarding, Generation, Heartbeat, ItemId, Reach, Report,
    TunnelReport,
};

/// A mesh of all agents with a label.
const WEB: &str = "{mesh: web, overlay: 10.9.0.0/22, security: plain, members: [{labels: {role: web}}]}";

/// Agents that have come to have the mesh.
fn converged(count: usize) -> (World, Vec<Agent>) {
    let mut world = World::new();
    let mut agents: Vec<Agent> = (0..count).map(Agent::new).collect();
    agents.iter_mut().for_each(|agent| agent.label("role", "web"));
    world.apply(mesh(WEB));
    world.settle(&mut agents);
    let (_, items) = agents[0].has.as_ref().expect("a view");
    assert_eq!(items.len(), count, "a device, and tunnels to the others");
    (world, agents)
}

impl World {
    fn kinds(&self) -> Vec<EventKind> {
        self.state.events_after(0).map(|event| event.kind).collect()
    }

    fn count(&self, kind: EventKind) -> usize {
        self.kinds().iter().filter(|other| **other == kind).count()
    }

    fn closed(&self, connection: Connection) -> Option<Refusal> {
        self.streams[&connection].closed.clone()
    }

    /// What waits for an agent.
    fn waiting(&self, agent: &Agent) -> Vec<Sent> {
        let connection = agent.connection.expect("a connection");
        self.streams[&connection].down.iter().cloned().collect()
    }

    fn deltas(&self, agent: &Agent) -> Vec<crate::proto::session::Delta> {
        let delta = |sent| match sent {
            Sent::Message(ControllerMessage::Delta(delta)) => Some(delta),
            Sent::Message(_) | Sent::Snapshot(..) => None,
        };
        self.waiting(agent).into_iter().filter_map(delta).collect()
    }

    /// Time passes, and the agents say that they are there.
    fn live(&mut self, agents: &[Agent], time: Duration) {
        let until = self.now + time;
        while self.now < until {
            self.pass(Duration::from_secs(1));
            for agent in agents {
                self.say(agent, AgentMessage::Heartbeat(Heartbeat::default()));
            }
        }
    }
}

#[test]
fn a_burst_of_changes_is_one_push() {
    let (mut world, mut agents) = converged(3);
    for mtu in 1300..1310 {
        world.apply(mesh(&WEB.replace("{mesh", &format!("{{mtu: {mtu}, mesh"))));
        assert!(world.deliver_change());
    }
    assert!(world.deltas(&agents[0]).is_empty(), "changes are collected");
    world.pass(Duration::from_millis(20));
    let deltas = world.deltas(&agents[0]);
    assert_eq!(deltas.len(), 1);
    assert_eq!(deltas[0].set.len(), 2, "both tunnels");
    assert_eq!(deltas[0].generation, world.state.stored().generation());

    // What comes while it is under way waits for the acknowledgement.
    world.apply(mesh(WEB));
    world.deliver_change();
    world.pass(Duration::from_millis(20));
    assert_eq!(world.deltas(&agents[0]).len(), 1);
    world.settle(&mut agents);
    assert_eq!(world.state.convergence(world.now).converged, 3);
}

#[test]
fn what_changes_nothing_for_a_node_is_not_sent_to_it() {
    let (mut world, agents) = converged(2);
    world.apply(mesh("{mesh: other, overlay: 10.7.0.0/24, security: plain, nodes: {x: {}, y: {}}}"));
    world.deliver_change();
    world.pass(Duration::from_secs(1));
    assert!(world.deltas(&agents[0]).is_empty());
    // It counts as having the new generation, for nothing of it is about this node.
    let nodes = world.state.nodes(world.now);
    assert!(nodes.iter().filter(|status| status.name == node(0)).all(|status| status.converged));
}

#[test]
fn an_agent_that_has_all_is_told_so_also_by_a_controller_that_restarted() {
    let (mut world, mut agents) = converged(2);
    let before = agents[0].has.clone();
    world.restart();
    let connection = world.connect(&mut agents[0]);
    assert!(matches!(
        world.streams[&connection].down.iter().collect::<Vec<_>>()[..],
        [Sent::Message(ControllerMessage::Welcome(_)), Sent::Message(ControllerMessage::NotModified(_))]
    ));
    world.settle(&mut agents);
    let ((before, items), (after, same)) = (before.unwrap(), agents[0].has.clone().unwrap());
    assert_eq!(items, same);
    assert!(after > before, "known as of now");
}

#[test]
fn a_silent_agent_is_let_go_and_shown_as_what_it_is() {
    let (mut world, agents) = converged(2);
    let connection = agents[0].connection.unwrap();
    let health = |world: &World| {
        let nodes = world.state.nodes(world.now);
        nodes.iter().find(|status| status.name == node(0)).unwrap().health.unwrap()
    };
    for agent in &agents {
        world.say(agent, AgentMessage::Heartbeat(Heartbeat::default()));
    }
    world.pass(Duration::from_millis(11_999));
    assert_eq!((health(&world), world.count(EventKind::NodeStale)), (Health::Live, 0));
    world.pass(Duration::from_millis(1));
    assert_eq!(health(&world), Health::Stale);
    world.pass(WATCHDOG - Duration::from_millis(12_001));
    assert_eq!(world.closed(connection), None);
    world.pass(Duration::from_millis(1));
    assert_eq!(world.closed(connection), Some(Refusal::Silent));
    world.pass(Duration::from_secs(45));
    assert_eq!(health(&world), Health::Offline);
    assert_eq!((world.count(EventKind::NodeStale), world.count(EventKind::NodeOffline)), (2, 2));
    let problems = world.state.status(world.now).problems;
    assert!(problems.iter().any(|problem| problem.node == Some(node(0))), "{problems:?}");
}

#[test]
fn an_agent_that_says_goodbye_is_offline_at_once() {
    let (mut world, agents) = converged(2);
    world.say(&agents[0], AgentMessage::Goodbye);
    assert_eq!(world.closed(agents[0].connection.unwrap()), Some(Refusal::Goodbye));
    assert_eq!(world.kinds().last(), Some(&EventKind::NodeOffline));
    assert_eq!(world.state.status(world.now).offline, 1);
}

#[test]
fn why_an_agent_does_not_follow_is_told_once_and_shown_until_it_does() {
    let (mut world, mut agents) = converged(2);
    let told = |world: &World| {
        let problems = world.state.status(world.now).problems;
        problems.iter().filter(|problem| problem.message.contains("another store")).count()
    };
    for _ in 0..2 {
        world.say(&agents[0], AgentMessage::Refusal("another store".to_owned()));
        assert_eq!(world.closed(agents[0].connection.unwrap()), Some(Refusal::Goodbye));
        assert_eq!((told(&world), world.count(EventKind::SessionRefused)), (1, 1));
        world.connect(&mut agents[0]);
    }
    world.settle(&mut agents);
    assert_eq!((told(&world), world.count(EventKind::SessionRefused)), (0, 1));
}

#[test]
fn a_node_gets_an_address_once_one_has_rested() {
    let mut world = World::new();
    let mut agents: Vec<Agent> = (0..3).map(Agent::new).collect();
    agents[..2].iter_mut().for_each(|agent| agent.label("role", "web"));
    // Room for two.
    world.apply(mesh(&WEB.replace("10.9.0.0/22", "10.9.0.0/30")));
    world.settle(&mut agents);
    let lacking = |world: &World| {
        let problems = world.state.status(world.now).problems;
        problems.iter().filter(|problem| problem.message.contains("no overlay address")).count()
    };
    agents[0].label("role", "db");
    agents[2].label("role", "web");
    for number in [0, 2] {
        world.connect(&mut agents[number]);
        world.settle(&mut agents);
    }
    assert_eq!(lacking(&world), 1);
    world.live(&agents, REST + Duration::from_secs(120));
    world.settle(&mut agents);
    assert_eq!(lacking(&world), 0);
    assert_eq!(agents[2].has.as_ref().unwrap().1.len(), 2);
}

#[test]
fn an_agent_that_does_not_acknowledge_is_let_go() {
    let (mut world, agents) = converged(2);
    world.apply(mesh(&WEB.replace("{mesh", "{mtu: 1300, mesh")));
    world.deliver_change();
    world.live(&agents, ACKNOWLEDGE - Duration::from_secs(1));
    assert_eq!(world.closed(agents[0].connection.unwrap()), None);
    world.live(&agents, Duration::from_secs(2));
    assert_eq!(world.closed(agents[0].connection.unwrap()), Some(Refusal::NotAcknowledged));
}

#[test]
fn both_sides_say_that_they_are_there() {
    let (mut world, mut agents) = converged(2);
    while world.deliver_down(&mut agents[0]) {}
    world.live(&agents, Duration::from_secs(50));
    let beats = world.waiting(&agents[0]).len();
    assert!((9..=11).contains(&beats), "{beats} in 50 s");
    let pings = Heartbeat { ping: Some(77), answers: None };
    world.say(&agents[0], AgentMessage::Heartbeat(pings));
    let answer = ControllerMessage::Heartbeat(Heartbeat { ping: None, answers: Some(77) });
    assert!(matches!(world.waiting(&agents[0]).last(), Some(Sent::Message(message)) if *message == answer));
}

#[test]
fn an_agent_that_cannot_follow_gets_a_snapshot() {
    let (mut world, mut agents) = converged(3);
    while world.deliver_down(&mut agents[0]) {}
    world.say(&agents[0], AgentMessage::Resync("for a test".to_owned()));
    assert!(matches!(world.waiting(&agents[0])[..], [Sent::Snapshot(_, ref items)] if items.len() == 3));
    world.settle(&mut agents);
    assert!(world.waiting(&agents[0]).is_empty());
}

#[test]
fn what_nodes_say_of_themselves_is_stored_in_groups_with_their_addresses() {
    let mut world = World::new();
    let mut agents: Vec<Agent> = (0..100).map(Agent::new).collect();
    agents.iter_mut().for_each(|agent| agent.label("role", "web"));
    world.apply(mesh(WEB));
    world.deliver_change();
    for agent in &mut agents {
        world.connect(agent);
    }
    world.settle(&mut agents);
    assert_eq!(world.commits, 2, "the first alone, all others behind it");
    assert_eq!(world.count(EventKind::NodeJoined), 100);
    let (_, items) = agents[99].has.as_ref().unwrap();
    assert_eq!(items.len(), 100);
    // The same again is no news.
    let mut again = agents[7].clone();
    world.connect(&mut again);
    assert!(world.commit.is_none());
    // A label less, and it has left.
    again.label("role", "db");
    world.connect(&mut again);
    agents[7] = again;
    world.settle(&mut agents);
    assert_eq!(agents[7].has.as_ref().unwrap().1.len(), 0);
    assert_eq!(agents[8].has.as_ref().unwrap().1.len(), 99);
}

#[test]
fn a_transaction_that_lost_is_worked_out_anew() {
    let (mut world, mut agents) = converged(2);
    let mut third = Agent::new(2);
    third.label("role", "web");
    world.connect(&mut third);
    // An operator is faster, and fixes the address that the third would have got.
    let text = "{mesh: web, overlay: 10.9.0.0/22, security: plain, nodes: {x: {address: 10.9.0.3, endpoint: 1.2.3.4}}, \
                members: [{labels: {role: web}}]}";
    world.apply(mesh(text));
    world.do_commit();
    assert_eq!(world.store.read().wanted.nodes.len(), 2, "it lost");
    agents.push(third);
    world.settle(&mut agents);
    let allocations = &world.store.read().wanted.allocations[&"web".parse().unwrap()];
    let address = |name: &str| allocations.nodes[&name.parse().unwrap()].addresses[0].to_string();
    assert_eq!((address("x").as_str(), address("n2").as_str()), ("10.9.0.3", "10.9.0.4"));
}

#[test]
fn an_endpoint_is_where_the_session_comes_from_unless_that_is_this_host() {
    let mut world = World::new();
    let mut agents: Vec<Agent> = (0..3).map(Agent::new).collect();
    agents[1].source = IpAddr::V4(Ipv4Addr::LOCALHOST);
    agents[2].hello.reach = Reach::At("minion-2:6000".parse().unwrap());
    world.settle(&mut agents);
    let nodes = world.store.read().wanted.nodes;
    let endpoint = |number| nodes[&node(number)].endpoint.as_ref().map(ToString::to_string);
    assert_eq!(endpoint(0).as_deref(), Some("172.100.1.1"));
    assert_eq!(endpoint(1), None);
    assert_eq!(endpoint(2).as_deref(), Some("minion-2:6000"));
}

#[test]
fn more_sessions_than_are_taken_on_at_once_are_put_off() {
    let mut world = World::new();
    let mut agent = Agent::new(0);
    // One source has its share of 500.
    for _ in 0..400 {
        let connection = world.connect(&mut agent);
        assert_eq!(world.closed(connection), None);
    }
    for _ in 0..10 {
        let connection = world.connect(&mut agent);
        assert!(matches!(world.closed(connection), Some(Refusal::TooMany { .. })));
    }
    assert_eq!(world.count(EventKind::SessionRefused), 1);
    world.pass(Duration::from_millis(100));
    let connection = world.connect(&mut agent);
    assert_eq!(world.closed(connection), None);
}

#[test]
fn at_its_end_the_controller_sends_agents_away_one_after_the_other() {
    let (mut world, agents) = converged(4);
    world.state.handle_shutdown();
    let mut afters = BTreeSet::new();
    while let Some(effect) = world.state.poll_effect() {
        match effect {
            Effect::Send(_, ControllerMessage::GoAway { after_ms, .. }) => _ = afters.insert(after_ms),
            Effect::Close(connection, refusal) => {
                assert_eq!(refusal, Refusal::Restarting);
                assert!(agents.iter().any(|agent| agent.connection == Some(connection)));
            }
            Effect::Send(..) | Effect::SendSnapshot(..) | Effect::Commit(_) => panic!("{effect:?}"),
        }
    }
    assert_eq!(afters, BTreeSet::from([0, 500, 1000, 1500]));
}

#[test]
fn what_cannot_be_had_is_told_once() {
    let (mut world, agents) = converged(2);
    let generation = agents[0].has.as_ref().unwrap().0;
    let item = ItemId::Tunnel("web.n1".parse().unwrap());
    let failures = BTreeMap::from([(item.clone(), "a clash".to_owned())]);
    let ack = Ack { generation, failures, removals_held: BTreeSet::new() };
    for _ in 0..2 {
        world.say(&agents[0], AgentMessage::Ack(ack.clone()));
    }
    assert_eq!(world.count(EventKind::GenerationFailed), 1);
    let convergence = world.state.convergence(world.now);
    assert_eq!((convergence.nodes, convergence.converged), (2, 2), "it has been processed");
    assert_eq!(convergence.failures.len(), 1);
    let problems = world.state.status(world.now).problems;
    assert!(problems.iter().any(|problem| problem.item == Some(item.clone())), "{problems:?}");
    // One of a generation that nobody sent says nothing.
    let other = Ack { generation: Generation { revision: 999, ..generation }, ..ack };
    world.say(&agents[1], AgentMessage::Ack(other));
    assert_eq!(world.count(EventKind::GenerationFailed), 1);
}

#[test]
fn reports_are_kept_and_their_news_are_events() {
    let (mut world, agents) = converged(2);
    let tunnel = |state| TunnelReport {
        device: "web".parse().unwrap(),
        owner: Owner::Controller,
        state,
        endpoint: "172.100.1.2:5000".to_owned(),
        preferred: String::new(),
        last_received_ms: Some(10),
        keyed: false,
    };
    let report = |name: &str, state, whole, request| Report {
        tunnels: BTreeMap::from([(name.parse().unwrap(), tunnel(state))]),
        gone: BTreeSet::new(),
        whole,
        request,
        forwarding: None,
    };
    let failed = TunnelState::Failed("no route".to_owned());
    world.say(&agents[0], AgentMessage::Report(report("web.n1", TunnelState::Waiting(None), true, None)));
    assert_eq!(world.count(EventKind::TunnelWaiting), 0, "so it begins");
    world.say(&agents[0], AgentMessage::Report(report("web.n1", TunnelState::Passing, false, None)));
    world.say(&agents[0], AgentMessage::Report(report("web.n1", TunnelState::Passing, false, None)));
    assert_eq!(world.count(EventKind::TunnelPassing), 1);
    world.say(&agents[0], AgentMessage::Report(report("mine", failed, false, None)));
    assert_eq!(world.count(EventKind::TunnelFailed), 1);

    world.pass(Duration::from_secs(2));
    let tunnels = world.state.node_tunnels(&node(0), world.now).unwrap();
    assert_eq!(tunnels.age, Some(Duration::from_secs(2)));
    assert_eq!(tunnels.tunnels.len(), 2);
    assert_eq!(tunnels.tunnels[&"mine".parse().unwrap()].last_received_ms, Some(2_010));

    let request = world.state.request_report(&node(0)).unwrap();
    assert!(matches!(world.state.poll_effect(), Some(Effect::Send(_, ControllerMessage::ReportRequest(_)))));
    assert!(world.state.answered(&node(0)) < request);
    let whole = report("web.n1", TunnelState::Waiting(None), true, Some(request));
    world.say(&agents[0], AgentMessage::Report(whole));
    assert_eq!(world.state.answered(&node(0)), request);
    assert_eq!(world.count(EventKind::TunnelWaiting), 1);
    assert_eq!(world.state.node_tunnels(&node(0), world.now).unwrap().tunnels.len(), 1);
    assert_eq!(world.state.node_tunnels(&"nobody".parse().unwrap(), world.now), None);
    assert_eq!(world.state.request_report(&"nobody".parse().unwrap()), None);
}

/// It is no failure of a tunnel: those to the node itself carry packets.
#[test]
fn a_subnet_that_its_host_does_not_forward_is_a_problem() {
    let (mut world, mut agents) = converged(2);
    let problems = |world: &World| -> Vec<String> {
        world.state.status(world.now).problems.into_iter().map(|problem| problem.message).collect()
    };
    let forwards = |ipv4, ipv6| {
        let forwarding = Some(Forwarding { ipv4, ipv6 });
        AgentMessage::Report(Report { forwarding, ..Report::default() })
    };
    world.say(&agents[0], forwards(false, false));
    assert_eq!(problems(&world), Vec::<String>::new(), "it offers nothing");
    world.apply(mesh(
        "{mesh: far, overlay: 10.7.0.0/24, security: plain, \
          nodes: {n0: {routes: [192.168.1.0/24, 'fd00:1::/64']}, n9: {endpoint: 172.100.1.99}}}",
    ));
    world.settle(&mut agents);
    let of_v4 = "mesh far: it offers 192.168.1.0/24, and its host forwards no packets of that family; there: sysctl -w \
                 net.ipv4.ip_forward=1";
    let unforwarded = |world: &World| {
        problems(world).into_iter().filter(|words| words.contains("sysctl")).collect::<Vec<_>>()
    };
    assert_eq!(unforwarded(&world).len(), 2);
    world.say(&agents[0], forwards(false, true));
    assert_eq!(unforwarded(&world), [of_v4]);
    // A report of what has changed says nothing of it.
    world.say(&agents[0], AgentMessage::Report(Report::default()));
    assert_eq!(unforwarded(&world), [of_v4]);
    world.say(&agents[0], forwards(true, true));
    assert_eq!(unforwarded(&world), Vec::<String>::new());
}

#[test]
fn who_is_of_no_mesh_is_there_and_not_up_to_date_with_anything() {
    let (mut world, mut agents) = converged(2);
    agents.push(Agent::new(5));
    world.settle(&mut agents);
    let status = world.state.status(world.now);
    assert_eq!((status.live, status.members, status.converged), (3, 2, 2));
}

/// Whoever waits for the nodes looks again.
#[test]
fn a_session_that_ends_is_progress_to_be_looked_at() {
    let (mut world, agents) = converged(2);
    let before = world.state.progress();
    world.close(agents[0].connection.unwrap());
    assert!(world.state.progress() > before);
}

/// On a slow link heartbeats have to get through between the parts.
#[test]
fn a_large_change_comes_in_parts() {
    let (mut world, mut agents) = converged(2);
    let grown = |count: usize| {
        let nodes: Vec<_> = (0..count).map(|n| format!("x{n}: {{endpoint: 172.100.5.{n}}}")).collect();
        mesh(&WEB.replace("members", &format!("nodes: {{{}}}, members", nodes.join(", "))))
    };
    for (count, comes_in_parts) in [(2, false), (250, true)] {
        world.apply(grown(count));
        world.deliver_change();
        world.pass(Duration::from_millis(20));
        let waiting = world.waiting(&agents[0]);
        assert_eq!(matches!(waiting.last(), Some(Sent::Snapshot(..))), comes_in_parts, "{count}");
        world.settle(&mut agents);
    }
}

/// Three agents that are to have an encrypted mesh.
fn encrypted() -> (World, Vec<Agent>) {
    let mut world = World::new();
    let mut agents: Vec<Agent> = (0..3).map(Agent::new).collect();
    agents.iter_mut().for_each(|agent| agent.label("role", "web"));
    world.apply(mesh("{mesh: web, overlay: 10.9.0.0/22, members: [{labels: {role: web}}]}"));
    (world, agents)
}

/// A key of that mesh, by a number.
fn keys(number: u8) -> BTreeMap<MeshName, PublicKey> {
    BTreeMap::from([("web".parse().unwrap(), PublicKey::from([number; 32]))])
}

#[test]
fn an_encrypted_mesh_waits_for_the_keys_of_those_that_are_there() {
    let (mut world, mut agents) = encrypted();
    world.settle(&mut agents);
    let has = |agents: &[Agent]| -> Vec<usize> {
        agents.iter().map(|agent| agent.has.as_ref().map_or(0, |(_, items)| items.len())).collect()
    };
    assert_eq!(has(&agents), [1, 1, 1], "a device, for which a key is made");
    let lagging = world.state.convergence(world.now).lagging;
    assert_eq!(lagging.len(), 3);
    assert_eq!(lagging[0].message, "it has not made its key for mesh web yet");
    for (number, agent) in (1..).zip(&agents) {
        world.say(agent, AgentMessage::Keys(keys(number)));
    }
    world.settle(&mut agents);
    assert_eq!(has(&agents), [3, 3, 3]);
    assert_eq!(world.state.convergence(world.now).lagging, []);

    // It comes again with what it has, and nothing is new.
    let before = agents[1].has.clone();
    agents[0].hello.keys = keys(1);
    world.connect(&mut agents[0]);
    world.settle(&mut agents);
    assert_eq!(agents[1].has, before);
    // It has lost it, and makes another: until then it is no peer of anybody.
    agents[0].hello.keys = BTreeMap::new();
    world.connect(&mut agents[0]);
    world.settle(&mut agents);
    assert_eq!(has(&agents), [3, 2, 2]);
    world.say(&agents[0], AgentMessage::Keys(keys(9)));
    world.settle(&mut agents);
    assert_eq!(has(&agents), [3, 3, 3]);
    assert_ne!(agents[1].has, before);
}

#[test]
fn a_key_is_the_nodes_that_told_it_first() {
    let (mut world, mut agents) = encrypted();
    agents[2].hello.keys = keys(2);
    world.settle(&mut agents);
    let has = |agents: &[Agent], number: usize| -> Vec<String> {
        agents[number]
            .has
            .iter()
            .flat_map(|(_, items)| items.iter())
            .map(|item| item.id.to_string())
            .collect()
    };
    // One says that another's is its own, in both ways there are, and a copy of a host does the same.
    world.say(&agents[0], AgentMessage::Keys(keys(2)));
    agents[1].hello.keys = keys(2);
    world.connect(&mut agents[1]);
    world.settle(&mut agents);
    assert_eq!(has(&agents, 0), ["device web", "tunnel web.n2"]);
    assert_eq!(has(&agents, 2), ["device web"], "it alone is reached by that key");
    let lagging = world.state.convergence(world.now).lagging;
    let told = "its key for mesh web is that of n2: remove that node if it is the same host";
    assert_eq!(lagging.len(), 2);
    assert!(lagging.iter().all(|lag| lag.message.starts_with(told)), "{lagging:?}");
    // With keys of their own they are in.
    world.say(&agents[0], AgentMessage::Keys(keys(3)));
    world.say(&agents[1], AgentMessage::Keys(keys(4)));
    world.settle(&mut agents);
    assert_eq!(has(&agents, 2), ["device web", "tunnel web.n0", "tunnel web.n1"]);
    assert_eq!(world.state.convergence(world.now).lagging, []);
}

#[test]
fn a_node_whose_address_is_translated_on_the_way_has_no_endpoint() {
    let mut world = World::new();
    let mut agents: Vec<Agent> = (0..3).map(Agent::new).collect();
    agents[0].hello.local = Some(agents[0].source);
    agents[1].hello.local = Some("192.168.1.1".parse().unwrap());
    agents[2].hello.reach = Reach::Nowhere;
    world.settle(&mut agents);
    let nodes = world.store.read().wanted.nodes;
    let endpoint = |number| nodes[&node(number)].endpoint.as_ref().map(ToString::to_string);
    assert_eq!((0..3).map(endpoint).collect::<Vec<_>>(), [Some("172.100.1.1".to_owned()), None, None]);
}

/// A phone is a node by a key that its mesh file has: no agent's word goes before that.
#[test]
fn the_key_of_a_node_without_an_agent_is_no_agents() {
    let mut world = World::new();
    let mut agents: Vec<Agent> = (0..2).map(Agent::new).collect();
    let key = PublicKey::from([7; 32]);
    let phone = format!("phone: {{kind: wireguard, public_key: {key}, peers: [n0, n1]}}");
    let file = format!("{{mesh: web, overlay: 10.9.0.0/24, nodes: {{n0: {{}}, n1: {{}}, {phone}}}}}");
    world.apply(mesh(&file));
    world.settle(&mut agents);
    world.say(&agents[0], AgentMessage::Keys(keys(7)));
    world.say(&agents[1], AgentMessage::Keys(keys(1)));
    world.settle(&mut agents);
    let has = |agent: &Agent| -> Vec<String> {
        agent.has.iter().flat_map(|(_, items)| items.iter()).map(|item| item.id.to_string()).collect()
    };
    assert_eq!(has(&agents[1]), ["device web", "tunnel web.phone"]);
    assert_eq!(has(&agents[0]), ["device web", "tunnel web.n1", "tunnel web.phone"]);
    let convergence = world.state.convergence(world.now);
    assert_eq!(convergence.nodes, 2, "nobody waits for a phone");
    assert!(convergence.lagging[0].message.starts_with("its key for mesh web is that of phone"));
    let status = world.state.status(world.now);
    assert_eq!((status.members, status.offline), (2, 0));
    assert!(status.problems.iter().all(|problem| problem.node != Some("phone".parse().unwrap())));
}
