//! What happens to the nodes of a mesh, in lines.

use std::collections::{BTreeMap, BTreeSet};

use crate::proto::host::output::printable;
use crate::proto::v1;
use crate::proto::v1::hazard::Severity;
use crate::proto::v1::operation::Kind;

/// The same operation on more nodes than this is written once.
const MANY: usize = 20;

/// What becomes of a plan, for its last line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tense {
    /// It may be done.
    Future,
    /// It has been done.
    Past,
}

/// A plan: operations by node, hazards and weakened settings.
pub(super) fn plan(plan: &v1::PlanResponse) -> String {
    let different = plan.differences.iter().map(|words| printable(&format!("mesh {}: {words}", plan.mesh)));
    let mut lines: Vec<String> = different.collect();
    lines.append(&mut operations(&plan.nodes));
    lines.extend(plan.hazards.iter().map(hazard));
    lines.extend(plan.weakened.iter().map(|words| format!("weakened: {}", printable(words))));
    lines.into_iter().map(|line| line + "\n").collect()
}

/// How many operations there are, in one line.
pub(super) fn summary(nodes: &[v1::NodePlan], tense: Tense) -> String {
    if nodes.is_empty() {
        return "nothing to change on any node".to_owned();
    }
    let count = |kind| nodes.iter().flat_map(|node| &node.operations).filter(|op| op.kind() == kind).count();
    let (add, change, remove) = (count(Kind::Add), count(Kind::Change), count(Kind::Remove));
    let on = format!("on {}", count_nodes(nodes.len()));
    match tense {
        Tense::Future => format!("{add} to add, {change} to change, {remove} to remove {on}"),
        Tense::Past => format!("{add} added, {change} changed, {remove} removed {on}"),
    }
}

/// "3 nodes".
pub(super) fn count_nodes(count: usize) -> String {
    if count == 1 { "1 node".to_owned() } else { format!("{count} nodes") }
}

/// The operations in lines: what many nodes share first and once, then by node.
pub(super) fn operations(nodes: &[v1::NodePlan]) -> Vec<String> {
    let mut sharing: BTreeMap<String, usize> = BTreeMap::new();
    for line in nodes.iter().flat_map(|node| &node.operations).map(operation) {
        *sharing.entry(line.whole()).or_default() += 1;
    }
    let is_shared = |line: &Line| sharing.get(&line.whole()).is_some_and(|nodes| *nodes > MANY);
    let (mut shared, mut own) = (BTreeSet::new(), Vec::new());
    for node in nodes {
        let mut lines = Vec::new();
        for line in node.operations.iter().map(operation) {
            if is_shared(&line) {
                let count = sharing.get(&line.whole()).copied().unwrap_or_default();
                shared.insert(format!("{} on {}{}", line.item, count_nodes(count), line.details));
            } else {
                lines.push(format!("  {}", line.whole()));
            }
        }
        if !lines.is_empty() {
            own.push(printable(&node.node));
            own.append(&mut lines);
        }
    }
    shared.into_iter().chain(own).collect()
}

/// One operation in words.
struct Line {
    /// What is done to which item.
    item: String,
    /// What it is and will be.
    details: String,
}

impl Line {
    fn whole(&self) -> String {
        format!("{}{}", self.item, self.details)
    }
}

fn operation(operation: &v1::Operation) -> Line {
    let (before, after) = (printable(&operation.before), printable(&operation.after));
    let (mark, details) = match operation.kind() {
        Kind::Add => ("+", after),
        Kind::Change => ("~", format!("{before} -> {after}")),
        Kind::Remove => ("-", before),
        Kind::Unspecified => ("?", String::new()),
    };
    let item = format!("{mark} {}", operation.item.as_ref().map_or_else(String::new, item));
    Line { item, details: if details.is_empty() { details } else { format!(": {details}") } }
}

/// "tunnel prod.minion-2".
pub(super) fn item(item: &v1::ItemId) -> String {
    match &item.id {
        Some(v1::item_id::Id::Device(name)) => format!("device {}", printable(name)),
        Some(v1::item_id::Id::Tunnel(name)) => format!("tunnel {}", printable(name)),
        None => "the node".to_owned(),
    }
}

fn hazard(hazard: &v1::Hazard) -> String {
    let mark = match hazard.severity() {
        Severity::Error => "ERROR",
        Severity::Warning | Severity::Unspecified => "warning",
    };
    printable(&format!("{mark}: {}", hazard.message))
}

/// A problem: "minion-2: tunnel prod.minion-1: why".
pub(super) fn problem(problem: &v1::Problem) -> String {
    let item = problem.item.as_ref().map_or_else(String::new, |id| format!("{}: ", item(id)));
    let node = if problem.node.is_empty() { "controller" } else { &problem.node };
    printable(&format!("{node}: {item}{}", problem.message))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tunnel(name: &str) -> Option<v1::ItemId> {
        Some(v1::ItemId { id: Some(v1::item_id::Id::Tunnel(name.to_owned())) })
    }

    fn op(kind: Kind, name: &str, before: &str, after: &str) -> v1::Operation {
        v1::Operation {
            kind: kind.into(),
            item: tunnel(name),
            before: before.to_owned(),
            after: after.to_owned(),
        }
    }

    fn node(name: &str, operations: Vec<v1::Operation>) -> v1::NodePlan {
        v1::NodePlan { node: name.to_owned(), operations }
    }

    #[test]
    fn lists_operations_by_node_and_what_is_dangerous() {
        let response = v1::PlanResponse {
            nodes: vec![
                node("a", vec![op(Kind::Add, "m.b", "", "to b"), op(Kind::Change, "m.c", "to x", "to y")]),
                node("b", vec![op(Kind::Remove, "m.a", "to a", "")]),
            ],
            hazards: vec![
                v1::Hazard {
                    severity: Severity::Error.into(),
                    node: "a".into(),
                    message: "no\nendpoint".into(),
                },
                v1::Hazard {
                    severity: Severity::Warning.into(),
                    node: String::new(),
                    message: "wide".into(),
                },
            ],
            weakened: vec!["security: plain".to_owned()],
            mesh: "m".to_owned(),
            differences: vec!["nodes.b: removed".to_owned()],
            ..Default::default()
        };
        assert_eq!(
            plan(&response),
            "mesh m: nodes.b: removed\na\n  + tunnel m.b: to b\n  ~ tunnel m.c: to x -> to y\nb\n  - tunnel m.a: to a\n\
             ERROR: no\\nendpoint\nwarning: wide\nweakened: security: plain\n"
        );
        assert_eq!(summary(&response.nodes, Tense::Future), "1 to add, 1 to change, 1 to remove on 2 nodes");
        assert_eq!(summary(&response.nodes[1..], Tense::Past), "0 added, 0 changed, 1 removed on 1 node");
        assert_eq!(summary(&[], Tense::Past), "nothing to change on any node");
    }

    #[test]
    fn what_many_nodes_share_is_written_once() {
        let all = |count: usize| -> Vec<v1::NodePlan> {
            (0..count)
                .map(|n| {
                    let own = op(Kind::Add, "m.own", "", &format!("address {n}"));
                    node(&format!("n{n}"), vec![own, op(Kind::Add, "m.d", "", "to d")])
                })
                .collect()
        };
        let lines = operations(&all(MANY + 1));
        assert_eq!(lines[..3], ["+ tunnel m.d on 21 nodes: to d", "n0", "  + tunnel m.own: address 0"]);
        assert_eq!(lines.len(), 1 + 2 * (MANY + 1));
        assert_eq!(operations(&all(MANY)).len(), 3 * MANY);
    }
}
