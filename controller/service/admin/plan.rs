//! Plans as v1 has them: as much as fits into a message that every client of gRPC takes.

use prost::Message;

use super::wire::{count, cut, text};
use crate::controller::plan::{Hazard, OfNode, Operation, Plan};
use crate::proto::convert::room::Room;
use crate::proto::model::NodeName;
use crate::proto::v1;

/// What more nodes than this have alike is told once.
const ALIKE: usize = 20;

// What each part of an answer may have, in bytes: 3.5 MiB in all, where clients stop at 4 MiB by default.
const DIFFERENCES: usize = 512 << 10;
const HAZARDS: usize = 512 << 10;
const SHARED: usize = 1 << 20;
const NODES: usize = 512 << 10;
const OPERATIONS: usize = 1 << 20;

/// The most bytes of a node's plan beside its name and operations.
const NUMBERS: usize = 32;

pub(super) fn response(plan: Plan) -> v1::PlanResponse {
    let differences = plan.differences.into_iter().map(cut);
    let (differences, more_differences) = Room(DIFFERENCES).fill(differences, String::len);
    let (hazards, more_hazards) =
        Room(HAZARDS).fill(plan.hazards.into_iter().map(hazard), Message::encoded_len);
    let mut alike: Vec<_> = plan.operations.each().iter().filter(|operation| is_alike(operation)).collect();
    alike.sort_by(|one, other| one.item.cmp(&other.item));
    let alike = alike
        .into_iter()
        .map(|alike| v1::SharedOperation { operation: Some(operation(alike)), nodes: count(alike.nodes) });
    let (shared, more_shared) = Room(SHARED).fill(alike, Message::encoded_len);
    let mut room = Room(OPERATIONS);
    let nodes = plan.operations.nodes().map(|(node, operations)| node_plan(node, operations, &mut room));
    // The operations have a room of their own.
    let (nodes, more_nodes) = Room(NODES).fill(nodes, |plan| plan.node.len() + NUMBERS);
    v1::PlanResponse {
        mesh: plan.mesh.into(),
        hash: plan.hash.to_string(),
        nodes,
        hazards,
        weakened: plan.weakened,
        differences,
        shared,
        count: Some(counted(plan.operations.each().iter().map(|operation| (operation, operation.nodes)))),
        more_nodes,
        more_hazards,
        more_differences,
        more_shared,
    }
}

/// What happens on a node, without what many have alike.
fn node_plan(node: &NodeName, operations: OfNode<'_>, room: &mut Room) -> v1::NodePlan {
    let own: Vec<&Operation> = operations.clone().filter(|operation| !is_alike(operation)).collect();
    let own = own.into_iter().map(operation);
    let (own, more_operations) = room.fill(own, Message::encoded_len);
    v1::NodePlan {
        node: node.to_string(),
        operations: own,
        count: Some(counted(operations.map(|operation| (operation, 1)))),
        more_operations,
    }
}

fn is_alike(operation: &Operation) -> bool {
    operation.nodes > ALIKE
}

/// How many operations of each kind there are.
fn counted<'a>(operations: impl Iterator<Item = (&'a Operation, usize)>) -> v1::OperationCount {
    use v1::operation::Kind;
    let mut counts = v1::OperationCount::default();
    for (operation, times) in operations {
        let of_kind = match kind(operation) {
            Kind::Add => &mut counts.add,
            Kind::Change => &mut counts.change,
            Kind::Remove => &mut counts.remove,
            Kind::Unspecified => continue,
        };
        *of_kind = of_kind.saturating_add(count(times));
    }
    counts
}

fn kind(operation: &Operation) -> v1::operation::Kind {
    use v1::operation::Kind;
    match (&operation.before, &operation.after) {
        (None, Some(_)) => Kind::Add,
        (Some(_), Some(_)) => Kind::Change,
        (Some(_), None) => Kind::Remove,
        (None, None) => Kind::Unspecified,
    }
}

fn operation(operation: &Operation) -> v1::Operation {
    let words = |words: &Option<String>| cut(words.clone().unwrap_or_default());
    v1::Operation {
        kind: kind(operation).into(),
        item: Some(operation.item.clone().into()),
        before: words(&operation.before),
        after: words(&operation.after),
    }
}

fn hazard(hazard: Hazard) -> v1::Hazard {
    use v1::hazard::Severity;
    let severity = if hazard.is_error { Severity::Error } else { Severity::Warning };
    v1::Hazard { severity: severity.into(), node: text(hazard.node), message: cut(hazard.message) }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::time::Duration;

    use super::*;
    use crate::controller::alloc::{Allocations, allocate};
    use crate::controller::mesh::{self, Mesh};
    use crate::controller::plan::{Wanted, plan};

    /// What other clients of gRPC take.
    const USUAL: usize = 4 << 20;

    fn wanted(meshes: impl IntoIterator<Item = Mesh>) -> Wanted {
        let mut wanted = Wanted::default();
        for mesh in meshes {
            let members = wanted.members(&mesh);
            let (allocations, _) = allocate(&mesh, &members, &Allocations::default(), Duration::ZERO);
            wanted.allocations.insert(mesh.name.clone(), allocations);
            wanted.meshes.insert(mesh.name.clone(), mesh);
        }
        wanted
    }

    /// A mesh of as many nodes as there can be, with names as long as they can be and `rest`.
    fn largest(mtu: u16, rest: impl Fn(usize) -> String) -> Mesh {
        let nodes: String = (0..mesh::NODES)
            .map(|n| format!("  n{n:0>62}: {{endpoint: 172.20.{}.{}{}}}\n", n / 250, n % 250 + 1, rest(n)))
            .collect();
        let text = format!("mesh: large\noverlay: 10.0.0.0/16\nsecurity: plain\nmtu: {mtu}\nnodes:\n{nodes}");
        mesh::parse(&text).unwrap_or_else(|faults| panic!("{:?}", faults.first()))
    }

    fn planned(before: Option<&Mesh>, after: &Mesh) -> v1::PlanResponse {
        let (before, after) = (wanted(before.cloned()), wanted([after.clone()]));
        response(plan(&before, &after, &"large".parse().unwrap(), 1, &BTreeSet::new()))
    }

    #[test]
    fn the_plan_of_the_largest_mesh_fits_into_a_message() {
        let total = u32::try_from(mesh::NODES * mesh::NODES).unwrap();
        let nodes = u32::try_from(mesh::NODES).unwrap();
        let first = largest(1300, |_| String::new());
        let new = planned(None, &first);
        assert!(new.encoded_len() < USUAL, "{}", new.encoded_len());
        assert_eq!(new.count, Some(v1::OperationCount { add: total, change: 0, remove: 0 }));
        assert_eq!((new.nodes.len(), new.shared.len()), (mesh::NODES, mesh::NODES), "nothing is left out");
        assert!(new.shared.iter().all(|shared| shared.nodes == nodes - 1));
        for node in &new.nodes {
            assert_eq!(node.count.map(|count| count.add), Some(nodes));
            assert_eq!((node.operations.len(), node.more_operations), (1, 0), "its device");
        }
    }

    /// Whatever is in a file that is not too long itself.
    #[test]
    fn what_does_not_fit_is_counted() {
        let route =
            |n: usize| (0..40).map(move |at| format!("{}.{}.{}.{}/32", 60 + at, n / 250, n % 250, at));
        let routes = |n: usize| format!(", routes: [{}]", route(n).collect::<Vec<_>>().join(", "));
        let [before, after] = [1300, 1400].map(|mtu| largest(mtu, routes));
        let new = planned(None, &after);
        let changed = planned(Some(&before), &largest(1400, |_| String::new()));
        for answer in [&new, &changed] {
            assert!(answer.encoded_len() < USUAL, "{}", answer.encoded_len());
            assert!(answer.nodes.len() == mesh::NODES && answer.more_nodes == 0);
        }
        let total = |more: u32, told: usize| usize::try_from(more).unwrap() + told;
        assert!(new.more_hazards > 0, "each route is in no network that agents accept");
        assert!(total(new.more_hazards, new.hazards.len()) >= 40 * mesh::NODES);
        assert!(changed.more_shared > 0);
        assert_eq!(total(changed.more_shared, changed.shared.len()), mesh::NODES);
        assert!(changed.more_differences > 0);
        assert_eq!(
            total(changed.more_differences, changed.differences.len()),
            mesh::NODES + 1,
            "and the MTU"
        );
    }

    #[test]
    fn texts_are_cut_between_characters() {
        let long = cut("ä".repeat(1_000));
        assert!(long.len() < 1_100 && long.ends_with("ä…"), "{long}");
        assert_eq!(cut("short".to_owned()), "short");
    }
}
