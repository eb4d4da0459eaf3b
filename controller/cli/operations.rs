//! What happens to the nodes of a mesh, in lines.

use crate::proto::host::output::printable;
use crate::proto::v1;
use crate::proto::v1::hazard::Severity;
use crate::proto::v1::operation::Kind;

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
    lines.extend(more(plan.more_differences, "differences"));
    lines.append(&mut operations(plan));
    lines.extend(plan.hazards.iter().map(hazard));
    lines.extend(more(plan.more_hazards, "errors and warnings"));
    lines.extend(plan.weakened.iter().map(|words| format!("weakened: {}", printable(words))));
    lines.into_iter().map(|line| line + "\n").collect()
}

/// Says that there are more of something.
fn more(count: u32, what: &str) -> Option<String> {
    (count > 0).then(|| format!("and {count} more {what}"))
}

/// How many operations there are, in one line.
pub(super) fn summary(plan: &v1::PlanResponse, tense: Tense) -> String {
    if plan.nodes.is_empty() {
        return "nothing to change on any node".to_owned();
    }
    let v1::OperationCount { add, change, remove } = plan.count.unwrap_or_default();
    let more = usize::try_from(plan.more_nodes).unwrap_or(usize::MAX);
    let on = format!("on {}", count_nodes(plan.nodes.len().saturating_add(more)));
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
pub(super) fn operations(plan: &v1::PlanResponse) -> Vec<String> {
    let shared = plan.shared.iter().map(|shared| {
        let line = operation(&shared.operation.clone().unwrap_or_default());
        let nodes = usize::try_from(shared.nodes).unwrap_or(usize::MAX);
        format!("{} on {}{}", line.item, count_nodes(nodes), line.details)
    });
    let mut lines: Vec<String> = shared.collect();
    lines.extend(more(plan.more_shared, "that many nodes share"));
    for node in &plan.nodes {
        let own = node.operations.iter().map(|own| operation(own).whole());
        let own = own.chain(more(node.more_operations, "operations"));
        let mut own: Vec<_> = own.map(|line| format!("  {line}")).collect();
        if !own.is_empty() {
            lines.push(printable(&node.node));
            lines.append(&mut own);
        }
    }
    lines.extend(more(plan.more_nodes, "nodes"));
    lines
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
        v1::NodePlan { node: name.to_owned(), operations, ..Default::default() }
    }

    fn count(add: u32, change: u32, remove: u32) -> Option<v1::OperationCount> {
        Some(v1::OperationCount { add, change, remove })
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
            count: count(1, 1, 1),
            differences: vec!["nodes.b: removed".to_owned()],
            ..Default::default()
        };
        assert_eq!(
            plan(&response),
            "mesh m: nodes.b: removed\na\n  + tunnel m.b: to b\n  ~ tunnel m.c: to x -> to y\nb\n  - tunnel m.a: to a\n\
             ERROR: no\\nendpoint\nwarning: wide\nweakened: security: plain\n"
        );
        assert_eq!(summary(&response, Tense::Future), "1 to add, 1 to change, 1 to remove on 2 nodes");
        let one = v1::PlanResponse {
            nodes: response.nodes[1..].to_vec(),
            count: count(0, 0, 1),
            ..Default::default()
        };
        assert_eq!(summary(&one, Tense::Past), "0 added, 0 changed, 1 removed on 1 node");
        assert_eq!(summary(&v1::PlanResponse::default(), Tense::Past), "nothing to change on any node");
    }

    #[test]
    fn says_what_many_nodes_share_and_how_much_is_left_out() {
        let shared = op(Kind::Add, "m.d", "", "to d");
        let own = op(Kind::Add, "m.own", "", "to own");
        let all = v1::PlanResponse {
            mesh: "m".to_owned(),
            nodes: vec![
                v1::NodePlan { more_operations: 5, ..node("a", vec![own]) },
                v1::NodePlan { count: count(1, 0, 0), ..node("b", Vec::new()) },
            ],
            shared: vec![v1::SharedOperation { operation: Some(shared), nodes: 21 }],
            count: count(7, 0, 0),
            more_nodes: 1,
            more_hazards: 2,
            more_differences: 3,
            more_shared: 4,
            ..Default::default()
        };
        assert_eq!(
            plan(&all),
            "and 3 more differences\n+ tunnel m.d on 21 nodes: to d\nand 4 more that many nodes share\n\
             a\n  + tunnel m.own: to own\n  and 5 more operations\nand 1 more nodes\nand 2 more errors and warnings\n"
        );
        assert_eq!(summary(&all, Tense::Future), "7 to add, 0 to change, 0 to remove on 3 nodes");
    }
}
