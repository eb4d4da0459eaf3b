//! What the controller itself has stored, when the store fails or changes are missed.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::world::{Agent, World, mesh, node};
use super::{WEB, converged};
use crate::controller::state::EventKind;
use crate::controller::store::transaction::StoreError;
use crate::proto::session::{Ack, AgentMessage, Generation, Items};

impl World {
    /// The transaction that is under way fails.
    fn fail_commit(&mut self) {
        assert!(self.commit.take().is_some(), "none is under way");
        let full = StoreError::Unavailable("the disk is full".to_owned());
        self.state.handle_commit_result(Err(full), self.now, self.wall());
        self.drain();
    }

    /// All that is to be stored is.
    fn store_all(&mut self) {
        while self.do_commit() || self.deliver_change() {}
    }

    fn stored_label(&self, key: &str) -> Option<String> {
        self.store.read().wanted.nodes.get(&node(0))?.labels.get(key).cloned()
    }
}

#[test]
fn what_a_node_says_while_the_store_fails_is_what_is_stored_in_the_end() {
    let (mut world, mut agent) = (World::new(), Agent::new(0));
    for role in ["web", "db"] {
        agent.label("role", role);
        world.connect(&mut agent);
    }
    world.fail_commit();
    world.pass(Duration::from_secs(2));
    world.store_all();
    assert_eq!(world.stored_label("role").as_deref(), Some("db"));
}

/// Between the commit and its change the store has what the state does not know of yet.
#[test]
fn what_a_node_takes_back_before_the_change_comes_in_is_what_is_stored_in_the_end() {
    for is_reloaded in [false, true] {
        let (mut world, mut agent) = (World::new(), Agent::new(0));
        let mut say = |world: &mut World, role: &str| {
            agent.label("role", role);
            world.connect(&mut agent);
        };
        say(&mut world, "web");
        world.store_all();
        say(&mut world, "db");
        assert!(world.do_commit());
        assert_eq!(world.stored_label("role").as_deref(), Some("db"));
        say(&mut world, "web");
        if is_reloaded {
            world.changes.clear();
            world.state.handle_reload(world.store.read(), world.now, world.wall());
            world.drain();
        }
        world.store_all();
        assert_eq!(world.stored_label("role").as_deref(), Some("web"), "reloaded: {is_reloaded}");
    }
}

/// Many agents come after a copy was restored, and all bring the same news.
#[test]
fn that_a_copy_was_restored_is_told_once_until_its_change_comes_in() {
    let mut world = World::new();
    for number in 0..3 {
        let mut agent = Agent::new(number);
        agent.has = Some((Generation { incarnation: 1, revision: 1_000 }, Items::default()));
        world.connect(&mut agent);
        world.do_commit();
    }
    let restored = world.state.events_after(0).filter(|event| event.kind == EventKind::StoreRestored);
    assert_eq!(restored.count(), 1);
}

#[test]
fn an_incarnation_that_could_not_be_stored_is_stored_in_the_end() {
    let (mut world, mut agent) = (World::new(), Agent::new(0));
    agent.has = Some((Generation { incarnation: 1, revision: 1_000 }, Items::default()));
    world.connect(&mut agent);
    world.fail_commit();
    world.pass(Duration::from_secs(2));
    world.store_all();
    assert_eq!(world.store.read().incarnation, 2);
    world.settle(std::slice::from_mut(&mut agent));
    assert_eq!(agent.has.map(|(generation, _)| generation.incarnation), Some(2));
}

/// Of what is held back because a node has changed too often, nothing is stored once the node has taken it back.
#[test]
fn what_a_node_takes_back_before_it_is_stored_never_is() {
    let (mut world, mut agent) = (World::new(), Agent::new(0));
    let mut say = |world: &mut World, round: &str| {
        agent.label("round", round);
        world.connect(&mut agent);
        world.store_all();
    };
    let mut last = None;
    for round in ["0", "1", "2", "3", "4", "5", "6", "7"] {
        say(&mut world, round);
        if world.stored_label("round").as_deref() != Some(round) {
            break;
        }
        last = Some(round);
    }
    let last = last.expect("something is stored");
    assert_ne!(last, "7", "nothing is held back");
    say(&mut world, last);
    for _ in 0..30 {
        world.pass(Duration::from_secs(1));
        world.store_all();
        assert_eq!(world.stored_label("round").as_deref(), Some(last));
    }
}

#[test]
fn consent_that_is_missed_comes_with_the_next_reading_of_the_store() {
    let (mut world, agents) = converged(2);
    let generation = agents[0].has.as_ref().unwrap().0;
    let removals_held = BTreeSet::from(["tunnel web.n9".parse().unwrap()]);
    world.say(&agents[0], AgentMessage::Ack(Ack { generation, failures: BTreeMap::new(), removals_held }));
    world.apply(mesh(WEB));
    world.changes.clear();
    world.state.handle_reload(world.store.read(), world.now, world.wall());
    world.drain();
    world.pass(Duration::from_millis(20));
    let deltas = world.deltas(&agents[0]);
    assert_eq!(deltas.iter().map(|delta| delta.removals.consent).collect::<Vec<_>>(), [world.store.revision]);
}

/// A plan that was made right after a change rests on it.
#[test]
fn what_a_plan_was_made_after_has_not_changed_since() {
    let (mut world, mut agents) = converged(2);
    let name = "web".parse().unwrap();
    for mtu in [1300, 1400] {
        world.apply(mesh(&WEB.replace("{mesh", &format!("{{mtu: {mtu}, mesh"))));
        world.settle(&mut agents);
    }
    let basis = world.state.basis();
    let last = basis.stored().mesh_revision(&name).unwrap();
    assert_eq!(basis.changed_since(&name, last), [""; 0]);
    let changes = basis.changed_since(&name, last - 1);
    assert!(changes.len() == 1 && changes[0].contains("1300") && changes[0].contains("1400"), "{changes:?}");
}

/// Only so many versions are kept; for what is older the oldest of them has to do.
#[test]
fn of_a_mesh_that_changes_often_the_last_versions_are_told_apart() {
    let (mut world, mut agents) = converged(2);
    let name = "web".parse().unwrap();
    let first = world.state.basis().stored().mesh_revision(&name).unwrap();
    let apply = |world: &mut World, mtu: u32| {
        world.apply(mesh(&WEB.replace("{mesh", &format!("{{mtu: {mtu}, mesh"))));
        while world.deliver_change() {}
    };
    (1300..1320).for_each(|mtu| apply(&mut world, mtu));
    world.settle(&mut agents);
    assert!(world.state.history[&name].len() < 20, "{}", world.state.history[&name].len());
    let changes = world.state.basis().changed_since(&name, first);
    assert!(changes.iter().any(|change| change.contains("1319")), "{changes:?}");
}

/// A second process that goes away by itself is not let in, and is nobody's rival any more.
#[test]
fn a_challenger_that_goes_is_forgotten() {
    let (mut world, agents) = converged(2);
    let mut second = agents[0].clone();
    second.restart();
    let connection = world.connect(&mut second);
    world.say(&second, AgentMessage::Goodbye);
    assert!(world.closed(connection).is_some());
    assert_eq!(world.closed(agents[0].connection.unwrap()), None);
    assert!(world.state.registry.node(&node(0)).is_some_and(|node| node.challenger.is_none()));
}

/// What an agent had in an earlier session is not what it has now.
#[test]
fn a_node_that_comes_again_has_acknowledged_nothing_yet() {
    let (mut world, mut agents) = converged(2);
    let observed = |world: &World| world.state.nodes(world.now)[0].observed;
    assert!(observed(&world).is_some());
    world.connect(&mut agents[0]);
    assert_eq!(observed(&world), None);
    world.settle(&mut agents);
    assert!(observed(&world).is_some());
}
