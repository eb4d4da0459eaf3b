use proptest::collection::{btree_set, vec};
use proptest::prelude::*;

use super::*;
use crate::controller::mesh::parse;

const HOUR: Duration = REST;

fn name(text: &str) -> NodeName {
    text.parse().unwrap()
}

fn members(names: &[&str]) -> BTreeSet<NodeName> {
    names.iter().map(|text| name(text)).collect()
}

/// A mesh of whoever has a label, and of nodes with fixed addresses.
fn mesh(overlay: &str, fixed: &[(&str, &str)]) -> Mesh {
    let nodes: String =
        fixed.iter().map(|(node, address)| format!("{node}: {{address: '{address}'}}, ")).collect();
    let file = format!(
        "{{mesh: a, overlay: [{overlay}], security: plain, nodes: {{{nodes}}}, members: [{{labels: {{a: b}}}}]}}"
    );
    parse(&file).unwrap()
}

fn addresses(allocations: &Allocations, node: &str) -> Vec<String> {
    let allocation = allocations.nodes.get(&name(node));
    allocation.map(|found| found.addresses.iter().map(IpAddr::to_string).collect()).unwrap_or_default()
}

/// Allocations that change step by step, an hour apart, so that what was freed in one step may be used in the next.
struct Story {
    now: Duration,
    allocations: Allocations,
}

impl Story {
    fn new() -> Self {
        Self { now: 500_000 * HOUR, allocations: Allocations::default() }
    }

    /// Allocates `after` more time; returns who got none.
    fn step(&mut self, after: Duration, mesh: &Mesh, names: &[&str]) -> BTreeMap<NodeName, String> {
        self.now += after;
        let (allocations, failures) = allocate(mesh, &members(names), &self.allocations, self.now);
        self.allocations = allocations;
        failures
    }

    fn has(&self, node: &str) -> Vec<String> {
        addresses(&self.allocations, node)
    }
}

#[test]
fn nodes_get_the_lowest_addresses_in_the_order_of_their_names() {
    let mut story = Story::new();
    let failures =
        story.step(HOUR, &mesh("10.9.0.0/24, 'fd00::/64'", &[("c", "10.9.0.2")]), &["b", "a", "c"]);
    assert!(failures.is_empty());
    assert_eq!(story.has("a"), ["10.9.0.1", "fd00::1"]);
    assert_eq!(story.has("b"), ["10.9.0.3", "fd00::2"]);
    assert_eq!(story.has("c"), ["10.9.0.2", "fd00::3"]);
}

#[test]
fn who_comes_back_gets_the_same() {
    let mesh = mesh("10.9.0.0/24", &[]);
    let mut story = Story::new();
    story.step(HOUR, &mesh, &["a", "b"]);
    story.step(HOUR, &mesh, &["b"]);
    assert_eq!(story.allocations.nodes[&name("a")].freed, Some(story.now));
    // Nobody gets what another had while there is something else.
    story.step(10 * HOUR, &mesh, &["b", "c"]);
    assert_eq!(story.has("c"), ["10.9.0.3"]);
    let left = story.allocations.nodes[&name("a")].freed;
    story.step(HOUR, &mesh, &["b", "c"]);
    assert_eq!(story.allocations.nodes[&name("a")].freed, left, "it left once");
    story.step(HOUR, &mesh, &["a", "b", "c"]);
    assert_eq!(story.has("a"), ["10.9.0.1"]);
    assert_eq!(story.allocations.nodes[&name("a")].freed, None);
}

#[test]
fn an_address_rests_before_another_has_it() {
    let mesh = mesh("10.9.0.0/30", &[]);
    let mut story = Story::new();
    story.step(HOUR, &mesh, &["a", "b"]);
    story.step(HOUR, &mesh, &["b"]);
    story.step(HOUR / 2, &mesh, &[]);
    let failures = story.step(HOUR / 2 - Duration::from_nanos(1), &mesh, &["c"]);
    assert_eq!(
        failures[&name("c")],
        "the overlay 10.9.0.0/30 has no address left (2 are kept for an hour for nodes that left); use a larger one"
    );
    assert!(!story.allocations.nodes.contains_key(&name("c")));
    // The first to be freed goes first, and its owner is forgotten.
    assert!(story.step(Duration::from_nanos(1), &mesh, &["c"]).is_empty());
    assert_eq!(story.has("c"), ["10.9.0.1"]);
    assert_eq!(story.has("a"), Vec::<String>::new());
    let failures = story.step(Duration::ZERO, &mesh, &["a", "c"]);
    assert!(failures[&name("a")].contains("(1 are kept"));
    assert!(story.step(HOUR / 2, &mesh, &["a", "c"]).is_empty());
    assert_eq!(story.has("a"), ["10.9.0.2"]);
    let failures = story.step(HOUR, &mesh, &["a", "b", "c"]);
    assert_eq!(failures[&name("b")], "the overlay 10.9.0.0/30 has no address left; use a larger one");
}

#[test]
fn a_fixed_address_is_given_at_once_and_moves_who_had_it() {
    let mut story = Story::new();
    story.step(HOUR, &mesh("10.9.0.0/24", &[]), &["a", "b"]);
    story.step(HOUR, &mesh("10.9.0.0/24", &[("c", "10.9.0.1")]), &["a", "b", "c"]);
    assert_eq!((story.has("a"), story.has("c")), (vec!["10.9.0.3".into()], vec!["10.9.0.1".into()]));
    // Also from a node that has left, and keeps its other address.
    let both = mesh("10.9.0.0/24, 'fd00::/64'", &[]);
    story.step(HOUR, &both, &["a", "b", "c"]);
    story.step(HOUR, &both, &["a", "c"]);
    story.step(Duration::ZERO, &mesh("10.9.0.0/24, 'fd00::/64'", &[("d", "10.9.0.2")]), &["a", "c", "d"]);
    assert_eq!((story.has("d")[0].as_str(), story.has("b")), ("10.9.0.2", vec!["fd00::2".into()]));
}

#[test]
fn another_overlay_moves_only_who_no_longer_fits() {
    let mut story = Story::new();
    story.step(HOUR, &mesh("10.9.0.0/24", &[("b", "10.9.0.200")]), &["a", "b", "c"]);
    story.step(HOUR, &mesh("10.9.0.0/25", &[]), &["a", "b", "c"]);
    assert_eq!([story.has("a"), story.has("b"), story.has("c")], [["10.9.0.1"], ["10.9.0.3"], ["10.9.0.2"]]);
    // The broadcast address of the smaller one is none of its hosts.
    story.step(HOUR, &mesh("10.9.0.0/30", &[]), &["a", "b", "c"]);
    assert_eq!([story.has("a"), story.has("c")], [["10.9.0.1"], ["10.9.0.2"]]);
    assert_eq!(story.has("b"), Vec::<String>::new());
    story.step(HOUR, &mesh("10.9.0.0/30, 'fd00::/64'", &[]), &["a", "b", "c"]);
    assert_eq!(
        (story.has("a"), story.has("b")),
        (vec!["10.9.0.1".into(), "fd00::1".into()], vec!["fd00::2".into()])
    );
}

#[test]
fn nodes_that_never_come_back_are_forgotten() {
    let mesh = mesh("'fd00::/64'", &[]);
    let mut story = Story::new();
    let everyone: Vec<String> = (0..REMEMBERED + 10).map(|number| format!("n{number}")).collect();
    let everyone: Vec<&str> = everyone.iter().map(String::as_str).collect();
    story.step(HOUR, &mesh, &everyone);
    story.step(HOUR, &mesh, &everyone[..10]);
    story.step(HOUR, &mesh, &["stays"]);
    assert_eq!(story.allocations.nodes.len(), REMEMBERED + 11, "ten still rest");
    story.step(HOUR, &mesh, &["stays"]);
    assert_eq!(story.allocations.nodes.len(), REMEMBERED + 1);
    assert_eq!(story.has("n0").len(), 1);
}

#[test]
fn a_clock_that_was_wrong_stops_nothing() {
    let mesh = mesh("10.9.0.0/30", &[]);
    let mut story = Story::new();
    story.step(HOUR, &mesh, &["a", "b"]);
    story.step(HOUR, &mesh, &["a"]);
    story.now = Duration::ZERO;
    let failures = story.step(HOUR, &mesh, &["a", "c"]);
    assert!(failures[&name("c")].contains("(1 are kept"), "what was freed in the future rests");
    let mut again = Story { allocations: story.allocations.clone(), ..story };
    story.step(HOUR, &mesh, &["a", "b"]);
    assert_eq!(story.has("b"), ["10.9.0.2"]);
    assert!(again.step(HOUR, &mesh, &["a", "c"]).is_empty(), "and no longer than any other");
    assert_eq!(again.has("c"), ["10.9.0.2"]);
}

/// What happens to a mesh between two allocations.
#[derive(Debug, Clone)]
struct Step {
    members: BTreeSet<usize>,
    overlay: usize,
    /// A node and the last number of its fixed address.
    fixed: Vec<(usize, u8)>,
    after: Duration,
}

const OVERLAYS: [&str; 4] = ["10.9.0.0/29", "10.9.0.0/28", "10.9.0.0/29, 'fd00::/125'", "10.9.0.0/31"];

fn step() -> impl Strategy<Value = Step> {
    let after = prop::sample::select(vec![Duration::ZERO, HOUR / 2, HOUR, 3 * HOUR]);
    (
        btree_set(0..10_usize, 0..8),
        prop_oneof![6 => 0..3_usize, 1 => Just(3)],
        vec((0..10_usize, 1..7_u8), 0..2),
        after,
    )
        .prop_map(|(members, overlay, fixed, after)| Step { members, overlay, fixed, after })
}

impl Step {
    fn mesh(&self) -> Mesh {
        let mut mesh = mesh(OVERLAYS[self.overlay], &[]);
        for (node, last) in &self.fixed {
            let address = IpAddr::from([10, 9, 0, *last]);
            if mesh.overlay.network_of(address).is_some() {
                mesh.nodes.entry(number(*node)).or_default().addresses = vec![address];
            }
        }
        mesh
    }

    fn members(&self, mesh: &Mesh) -> BTreeSet<NodeName> {
        self.members.iter().map(|node| number(*node)).chain(mesh.nodes.keys().cloned()).collect()
    }
}

fn number(node: usize) -> NodeName {
    name(&format!("n{node}"))
}

/// Who has an address, by address.
fn owners(allocations: &Allocations) -> BTreeMap<IpAddr, NodeName> {
    let each = allocations.nodes.iter();
    each.flat_map(|(node, allocation)| allocation.addresses.iter().map(|address| (*address, node.clone())))
        .collect()
}

/// What holds between any two allocations.
fn check(mesh: &Mesh, members: &BTreeSet<NodeName>, before: &Allocations, now: Duration) -> Allocations {
    let (after, failures) = allocate(mesh, members, before, now);
    let (had, has) = (owners(before), owners(&after));
    let count: usize = after.nodes.values().map(|allocation| allocation.addresses.len()).sum();
    assert_eq!(count, has.len(), "an address has one owner");
    assert_eq!(allocate(mesh, members, &after, now), (after.clone(), failures.clone()), "stable");
    let fixed: BTreeMap<IpAddr, &NodeName> = mesh
        .nodes
        .iter()
        .flat_map(|(node, wanted)| wanted.addresses.iter().map(move |one| (*one, node)))
        .collect();
    for (address, node) in &fixed {
        assert_eq!(has.get(address), Some(*node), "fixed");
    }
    for (node, allocation) in &after.nodes {
        assert_eq!(allocation.freed.is_none(), members.contains(node));
        for address in &allocation.addresses {
            assert!(mesh.overlay.network_of(*address).is_some(), "{address} fits");
            assert!(had.get(address) == Some(node) || members.contains(node), "who left gets nothing");
            let Some(former) = had.get(address).filter(|former| *former != node) else { continue };
            // Of another node only what it left long ago, or what it has another fixed one for.
            let rested = before.nodes[former].freed.is_some_and(|freed| now - freed >= REST);
            let released = mesh.nodes.get(former).is_some_and(|wanted| !wanted.addresses.contains(address));
            assert!(
                fixed.contains_key(address) || released || (rested && !members.contains(former)),
                "{node} has {address} of {former}"
            );
        }
    }
    for (address, node) in &had {
        let is_family = |other: &IpAddr| other.is_ipv4() == address.is_ipv4();
        let moved = mesh.nodes.get(node).is_some_and(|wanted| wanted.addresses.iter().any(is_family));
        if members.contains(node) && mesh.overlay.network_of(*address).is_some() && !moved {
            assert!(has.get(address) == Some(node) || fixed.contains_key(address), "{node} keeps {address}");
        }
    }
    for node in members {
        let count = after.nodes.get(node).map_or(0, |allocation| allocation.addresses.len());
        assert_eq!(count < mesh.overlay.networks().count(), failures.contains_key(node), "{node}");
    }
    assert!(failures.keys().all(|node| members.contains(node)));
    for network in mesh.overlay.networks().filter(|_| !failures.is_empty()) {
        let lacking = members.iter().any(|node| {
            after.nodes.get(node).is_none_or(|found| !found.addresses.iter().any(|one| network.contains(one)))
        });
        // Nobody goes without while there is something to have.
        for number in node_addresses(network).filter(|_| lacking) {
            let owner = has.get(&to_address(network, number)).expect("every address is given away");
            let freed = after.nodes[owner].freed;
            assert!(freed.is_none_or(|freed| now - freed < REST), "{owner} rests");
        }
    }
    after
}

proptest! {
    #[test]
    fn whoever_comes_and_goes(steps in vec(step(), 1..12)) {
        let mut now = 500_000 * HOUR;
        let mut allocations = Allocations::default();
        for step in steps {
            now += step.after;
            let mesh = step.mesh();
            allocations = check(&mesh, &step.members(&mesh), &allocations, now);
        }
    }

    #[test]
    fn while_there_is_room_nobody_gets_what_another_had(comings in vec(btree_set(0..20_usize, 0..10), 1..12)) {
        let mesh = mesh("10.9.0.0/24", &[]);
        let mut story = Story::new();
        let mut had: BTreeMap<NodeName, Vec<IpAddr>> = BTreeMap::new();
        for present in comings {
            let names: Vec<NodeName> = present.into_iter().map(number).collect();
            story.step(100 * HOUR, &mesh, &names.iter().map(NodeName::as_str).collect::<Vec<_>>());
            for node in names {
                let addresses = story.allocations.nodes[&node].addresses.clone();
                prop_assert_eq!(had.entry(node).or_insert_with(|| addresses.clone()), &addresses);
            }
        }
        let distinct: BTreeSet<_> = had.values().collect();
        prop_assert_eq!(distinct.len(), had.len());
    }
}
