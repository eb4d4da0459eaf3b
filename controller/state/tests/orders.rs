//! What operators want.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::world::{World, mesh, node};
use super::{WEB, converged};
use crate::controller::plan::PlanHash;
use crate::controller::state::{ApplyError, EventKind};
use crate::proto::session::{Ack, AgentMessage};

const FEW: &str = "{mesh: web, overlay: 10.9.0.0/22, security: plain, nodes: {n0: {}, n1: {}}}";

fn hash(world: &World, text: &str) -> PlanHash {
    world.state.basis().plan(mesh(text), world.wall()).hash
}

#[test]
fn applying_what_is_there_writes_nothing() {
    let (world, _) = converged(2);
    let (plan, transaction) = world.state.basis().apply(mesh(WEB), None, false, world.wall()).unwrap();
    assert_eq!((plan.operations.is_empty(), transaction), (true, None));
}

#[test]
fn a_plan_holds_until_what_it_rests_on_changes() {
    let (mut world, mut agents) = converged(2);
    let text = WEB.replace("{mesh", "{mtu: 1300, mesh");
    let plan = hash(&world, &text);
    // Something else in the store, and later.
    world.apply(mesh("{mesh: other, overlay: 10.7.0.0/24, security: plain, nodes: {x: {}, y: {}}}"));
    world.settle(&mut agents);
    world.pass(Duration::from_secs(5));
    assert_ne!(hash(&world, &text), plan, "the revision is in the name");
    let applied = world.state.basis().apply(mesh(&text), Some(plan), false, world.wall());
    assert!(applied.is_ok(), "{applied:?}");

    world.apply(mesh(&WEB.replace("{mesh", "{mtu: 1400, mesh")));
    world.settle(&mut agents);
    let refused = world.state.basis().apply(mesh(&text), Some(plan), false, world.wall());
    let Err(ApplyError::PlanChanged(changes)) = refused else { panic!("{refused:?}") };
    assert!(changes.iter().any(|change| change.contains("mtu") && change.contains("1400")), "{changes:?}");
}

#[test]
fn a_plan_does_not_hold_when_a_node_came_by_its_label() {
    let (mut world, mut agents) = converged(2);
    let text = WEB.replace("{mesh", "{mtu: 1300, mesh");
    let plan = hash(&world, &text);
    let mut third = super::Agent::new(2);
    third.label("role", "web");
    agents.push(third);
    world.settle(&mut agents);
    let refused = world.state.basis().apply(mesh(&text), Some(plan), false, world.wall());
    let Err(ApplyError::PlanChanged(changes)) = refused else { panic!("{refused:?}") };
    assert!(changes.iter().any(|change| change.contains("n2")), "{changes:?}");
}

#[test]
fn mass_removals_need_consent_which_goes_with_the_push() {
    let (mut world, agents) = converged(6);
    let refused = world.state.basis().apply(mesh(FEW), None, false, world.wall());
    let Err(ApplyError::NeedsConsent(nodes)) = refused else { panic!("{refused:?}") };
    assert_eq!(nodes, (0..6).map(node).collect());
    world.apply(mesh(FEW));
    world.deliver_change();
    world.pass(Duration::from_millis(20));
    let deltas = world.deltas(&agents[0]);
    assert_eq!(deltas.len(), 1);
    assert_eq!(deltas[0].delete.len(), 4);
    assert_eq!(deltas[0].removals.consent, world.store.revision);
}

#[test]
fn a_node_that_keeps_what_was_to_go_is_shown_until_it_has_consent() {
    let (mut world, mut agents) = converged(2);
    let generation = agents[0].has.as_ref().unwrap().0;
    let held = BTreeSet::from(["tunnel web.n9".parse().unwrap()]);
    let ack = Ack { generation, failures: BTreeMap::new(), removals_held: held };
    for _ in 0..2 {
        world.say(&agents[0], AgentMessage::Ack(ack.clone()));
    }
    assert_eq!(world.count(EventKind::RemovalsHeld), 1);
    assert_eq!(world.state.nodes(world.now)[0].removals_held, 1);
    assert_eq!(world.state.status(world.now).problems.len(), 1);
    world.apply(mesh(WEB));
    world.deliver_change();
    world.pass(Duration::from_millis(20));
    let deltas = world.deltas(&agents[0]);
    assert_eq!(deltas.len(), 1, "nothing but the consent");
    assert!(deltas[0].set.is_empty() && deltas[0].delete.is_empty());
    assert_eq!(deltas[0].removals.consent, world.store.revision);
    assert!(world.deltas(&agents[1]).is_empty());
    world.settle(&mut agents);
    assert_eq!(world.state.nodes(world.now)[0].removals_held, 0);
}

#[test]
fn a_mesh_is_deleted_with_its_addresses() {
    let (mut world, mut agents) = converged(6);
    let name = "web".parse().unwrap();
    let nobody = "nobody".parse().unwrap();
    assert!(
        matches!(world.state.basis().delete_mesh(&nobody, false), Err(ApplyError::Unknown(mesh)) if mesh == nobody)
    );
    assert!(matches!(world.state.basis().delete_mesh(&name, false), Err(ApplyError::NeedsConsent(_))));
    let (plan, transaction) = world.state.basis().delete_mesh(&name, true).unwrap();
    assert_eq!(plan.operations.nodes().len(), 6);
    let change = world.store.commit(transaction).unwrap();
    world.changes.push_back(change);
    world.deliver_change();
    assert_eq!(world.count(EventKind::MeshDeleted), 1);
    world.pass(Duration::from_millis(20));
    let convergence = world.state.convergence(world.now);
    assert_eq!((convergence.nodes, convergence.converged), (6, 0), "they have it still");
    let lag = &convergence.lagging[0];
    assert_eq!(lag.item.as_ref().map(ToString::to_string).as_deref(), Some("device web"));
    assert_eq!(lag.message, "not acknowledged yet, nor are 5 more");
    world.settle(&mut agents);
    assert_eq!(world.state.convergence(world.now).lagging, []);
    assert!(agents.iter().all(|agent| agent.has.as_ref().unwrap().1.is_empty()));
    assert!(world.store.read().wanted.allocations.is_empty());
}

#[test]
fn dangerous_meshes_are_refused() {
    let (world, _) = converged(2);
    // The overlay covers the address at which agents reach the controller.
    let text = "{mesh: bad, overlay: 172.100.9.0/24, security: plain, nodes: {x: {}, y: {}}}";
    let refused = world.state.basis().apply(mesh(text), None, true, world.wall());
    let Err(ApplyError::Hazards(plan)) = refused else { panic!("{refused:?}") };
    assert!(
        plan.hazards.iter().any(|hazard| hazard.is_error && hazard.message.contains("172.100.9.9")),
        "{plan:?}"
    );
}
