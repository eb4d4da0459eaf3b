mod encrypted;
mod wireguard;

use std::sync::Arc;

use proptest::collection::{btree_map, btree_set, vec};
use proptest::prelude::*;

use super::*;
use crate::controller::alloc::allocate;
use crate::controller::mesh::{NODES as MOST, parse};
use crate::proto::command::TunnelSpec;
use crate::proto::convert::session::{Meaning, meaning};
use crate::proto::model::Framing;
use crate::proto::session::Item;

fn name<T: std::str::FromStr<Err: std::fmt::Debug>>(text: &str) -> T {
    text.parse().unwrap()
}

/// What is wanted once these files are applied, in this order, to nodes that have connected.
fn wanted(nodes: &[(&str, &str)], files: &[&str]) -> Wanted {
    let mut wanted = Wanted::default();
    for (node, endpoint) in nodes {
        let labels = BTreeMap::from([("role".to_owned(), "web".to_owned())]);
        let endpoint = (!endpoint.is_empty()).then(|| name(endpoint));
        wanted.nodes.insert(
            name(node),
            NodeRecord { labels, endpoint, data_port: 6000, keys: BTreeMap::new(), probes: false, since: 0 },
        );
    }
    for file in files {
        apply(&mut wanted, parse(file).unwrap());
    }
    wanted
}

fn apply(wanted: &mut Wanted, mesh: Mesh) {
    let members = wanted.members(&mesh);
    let before = wanted.allocations.remove(&mesh.name).unwrap_or_default();
    let (after, _) = allocate(&mesh, &members, &before, std::time::Duration::from_secs(1_800_000_000));
    wanted.allocations.insert(mesh.name.clone(), after);
    wanted.meshes.insert(mesh.name.clone(), mesh);
}

/// A view in words.
fn view(wanted: &Wanted, node: &str) -> Vec<String> {
    let views = wanted.views();
    let items = views.get(&name(node)).cloned().unwrap_or_default();
    items.iter().map(|item| format!("{}: {}", item.id, words::of(item))).collect()
}

const PROD: &str = "\
mesh: prod
overlay: [10.9.0.0/24, 'fd00:9::/64']
security: plain
nodes:
  a: {endpoint: 172.100.1.1, routes: [192.168.1.0/24]}
  b: {endpoint: '172.100.1.2:7000'}
  c:
";

#[test]
fn only_who_says_that_it_knows_probes_is_sent_some() {
    let mut wanted = wanted(&[("a", ""), ("b", ""), ("c", "172.100.1.3")], &[PROD]);
    for node in ["a", "c"] {
        wanted.nodes.get_mut(&name::<NodeName>(node)).unwrap().probes = true;
    }
    let probed = |wanted: &Wanted, node: &str| {
        let views = wanted.views();
        let tunnels = tunnels(&views[&name::<NodeName>(node)]);
        let probed = tunnels.into_iter().filter(|(.., tunnel)| tunnel.probed);
        probed.map(|(.., tunnel)| tunnel.name.to_string()).collect::<Vec<_>>()
    };
    let none = Vec::<String>::new();
    assert_eq!(probed(&wanted, "a"), ["prod.c"]);
    assert_eq!(probed(&wanted, "b"), none);
    assert_eq!(probed(&wanted, "c"), ["prod.a"]);
    wanted.nodes.get_mut(&name::<NodeName>("c")).unwrap().probes = false;
    assert_eq!([probed(&wanted, "a"), probed(&wanted, "c")], [none.clone(), none]);
}

#[test]
fn every_pair_has_a_tunnel() {
    let wanted = wanted(&[("a", "172.100.9.9"), ("c", "host-c:8000")], &[PROD]);
    assert_eq!(
        view(&wanted, "a"),
        [
            "device prod: 10.9.0.1/24 fd00:9::1/64",
            "tunnel prod.b: to 172.100.1.2:7000, 10.9.0.2/32 fd00:9::2/128, mtu auto, unencrypted",
            "tunnel prod.c: to host-c:8000, 10.9.0.3/32 fd00:9::3/128, mtu auto, unencrypted",
        ]
    );
    assert_eq!(
        view(&wanted, "c"),
        [
            "device prod: 10.9.0.3/24 fd00:9::3/64",
            // The file's endpoint goes before what the node says, and the port is the node's own.
            "tunnel prod.a: to 172.100.1.1:6000, 10.9.0.1/32 fd00:9::1/128 192.168.1.0/24, mtu auto, unencrypted",
            "tunnel prod.b: to 172.100.1.2:7000, 10.9.0.2/32 fd00:9::2/128, mtu auto, unencrypted",
        ]
    );
    let views = wanted.views();
    let tunnel =
        |node: &str| views[&name::<NodeName>(node)].iter().find(|item| item.id == name("tunnel prod.b"));
    assert!(Arc::ptr_eq(tunnel("a").unwrap(), tunnel("c").unwrap()), "items are shared");
    match meaning(views[&name::<NodeName>("b")].iter().nth(1).unwrap()).unwrap() {
        Meaning::Tunnel(tunnel) => {
            assert_eq!(tunnel.framing, Framing::Raw);
            assert_eq!(tunnel.routes, [name::<IpNet>("192.168.1.0/24")]);
        }
        Meaning::Device(..) => panic!("a tunnel was expected"),
    }
}

#[test]
fn a_node_with_several_endpoints_is_reached_at_all_the_preferred_one_first() {
    let nodes = [("a", "172.100.9.9"), ("c", "host-c:8000,172.100.1.3")];
    let files = |b: &str| PROD.replace("'172.100.1.2:7000'", b);
    let one = wanted(&nodes[..1], &[&files("'172.100.1.2:7000'")]);
    let several = wanted(&nodes, &[&files("[172.100.2.2, '172.100.1.2:7000', b.example]")]);
    assert_eq!(
        view(&several, "a")[1..],
        [
            "tunnel prod.b: to 172.100.2.2:5000 or 172.100.1.2:7000 or b.example:5000, 10.9.0.2/32 fd00:9::2/128, mtu \
             auto, unencrypted",
            "tunnel prod.c: to host-c:8000 or 172.100.1.3:6000, 10.9.0.3/32 fd00:9::3/128, mtu auto, unencrypted",
        ]
    );
    let told = plan(&one, &several, &name("prod"), 7, &BTreeSet::new());
    let before = "nodes.b.endpoint: 172.100.1.2:7000 -> 172.100.2.2, 172.100.1.2:7000, b.example";
    assert_eq!(told.differences, [before]);
    // What covers any of them, and who else is at any of them, is told.
    let over = |routes: &str| {
        let b = format!("[172.100.2.2, 172.20.0.7], routes: [{routes}]");
        hazards(&nodes, &[&files(&b)], &[])
    };
    let [errors, _] = over("172.20.0.0/24");
    assert!(errors[0].contains("covers 172.20.0.7, the endpoint of b"), "{errors:?}");
    assert_eq!(over("172.21.0.0/24")[0], [""; 0]);
    let [_, warnings] = hazards(
        &[("a", "172.100.9.9"), ("c", "172.100.1.3,172.100.2.2:7000")],
        &[&files("['172.100.1.2:7000', '172.100.2.2:7000']")],
        &[],
    );
    assert!(warnings.concat().contains("c and b have one endpoint, 172.100.2.2:7000"), "{warnings:?}");
}

/// Items of nodes with one endpoint never become others by an upgrade: no plan would be the one that was shown.
#[test]
fn the_plan_of_the_readme_is_what_it_says() {
    let nodes = [("minion-1", "172.100.1.1"), ("minion-2", "172.100.1.2"), ("minion-3", "172.100.2.3")];
    let [before, after] = [&[][..], &[include_str!("../../examples/three-hosts.yaml")]].map(|files| {
        let mut wanted = wanted(&nodes, files);
        wanted.nodes.values_mut().for_each(|record| record.data_port = DATA_PORT);
        wanted
    });
    let hash = plan(&before, &after, &name("prod"), 8, &BTreeSet::new()).hash.to_string();
    assert!(include_str!("../../README.md").contains(&format!("plan {hash}\n")), "{hash}");
}

#[test]
fn a_node_without_an_endpoint_has_no_tunnels_and_one_alone_nothing() {
    let wanted_three = wanted(&[], &[PROD]);
    assert_eq!(view(&wanted_three, "a").len(), 2);
    assert_eq!(view(&wanted_three, "c"), Vec::<String>::new());
    let alone = PROD.replace("  b: {endpoint: '172.100.1.2:7000'}\n", "");
    assert!(wanted(&[], &[&alone]).views().is_empty());
    assert_eq!(wanted(&[("c", "172.100.1.3")], &[&alone]).views().len(), 2);
    let unconnected = wanted(
        &[],
        &["{mesh: m, overlay: 10.9.0.0/31, security: plain, \
                                      nodes: {a: {endpoint: 1.2.3.4}, b: {endpoint: host-b}}}"],
    );
    assert_eq!(view(&unconnected, "a")[1], "tunnel m.b: to host-b:5000, 10.9.0.1/32, mtu auto, unencrypted");
}

#[test]
fn labels_select_members() {
    let selected = wanted(
        &[("x", "172.100.1.1"), ("y", "172.100.1.2")],
        &["{mesh: m, overlay: 10.9.0.0/24, security: plain, members: [{labels: {role: web}}]}"],
    );
    assert_eq!(selected.views().len(), 2);
    let other = wanted(
        &[("x", "172.100.1.1"), ("y", "172.100.1.2")],
        &["{mesh: m, overlay: 10.9.0.0/24, security: plain, members: [{labels: {role: web, rack: '7'}}]}"],
    );
    assert!(other.views().is_empty());
}

#[test]
fn a_mesh_has_room_for_so_many_by_label_and_a_newcomer_takes_nobodys_place() {
    let mesh = "{mesh: m, overlay: 10.9.0.0/16, security: plain, nodes: {named: {}}, members: [{labels: {role: web}}]}";
    let nodes: Vec<_> =
        (1..MOST).map(|n| (format!("n{n:05}"), format!("172.100.{}.{}", n / 250, n % 250))).collect();
    let nodes: Vec<_> = nodes.iter().map(|(node, endpoint)| (&node[..], &endpoint[..])).collect();
    let mut wanted = wanted(&nodes, &[mesh]);
    let name_of_mesh = name("m");
    let before = wanted.members(&wanted.meshes[&name_of_mesh]);
    assert_eq!(before.len(), MOST);
    assert_eq!(wanted.too_many(&wanted.meshes[&name_of_mesh]), None);

    let late = wanted.nodes[&name::<NodeName>("n00001")].clone();
    for late_node in ["a", "z"] {
        wanted.nodes.insert(name(late_node), late.clone());
    }
    let mesh = parse(mesh).unwrap();
    assert_eq!(wanted.members(&mesh), before, "who is there stays");
    assert_eq!(wanted.left_out(&mesh), [&name::<NodeName>("a"), &name("z")]);
    let warning = wanted.hazards(&mesh.name, &BTreeSet::new()).pop().unwrap();
    assert!(!warning.is_error && warning.message.starts_with("a and 1 more have its labels"), "{warning:?}");
    // One leaves, and there is room for the first of them.
    wanted.nodes.remove(&name("n00002"));
    let after = wanted.members(&mesh);
    assert!(after.contains(&name("a")) && !after.contains(&name("z")) && after.len() == MOST);
}

/// The errors, then the warnings, about the last of some meshes.
fn hazards(nodes: &[(&str, &str)], files: &[&str], controller: &[&str]) -> [Vec<String>; 2] {
    let wanted = wanted(nodes, files);
    let mesh = parse(files.last().unwrap()).unwrap().name;
    let hazards = wanted.hazards(&mesh, &controller.iter().map(|address| name(address)).collect());
    let (errors, warnings): (Vec<_>, Vec<_>) = hazards.into_iter().partition(|hazard| hazard.is_error);
    [errors, warnings].map(|hazards| hazards.into_iter().map(|hazard| hazard.message).collect())
}

const NODES: [(&str, &str); 3] = [("a", "172.100.1.1"), ("b", "172.100.1.2"), ("c", "172.100.1.3")];

fn file(mesh: &str, overlay: &str, rest: &str, nodes: &str) -> String {
    format!("{{mesh: {mesh}, overlay: {overlay}, security: plain, {rest} nodes: {{{nodes}}}}}")
}

#[test]
fn a_sound_mesh_has_no_hazards() {
    let [errors, warnings] =
        hazards(&NODES, &[&file("m", "10.9.0.0/24", "", "a: , b: , c: ")], &["172.100.0.1"]);
    assert_eq!((errors, warnings), (vec![], vec![]));
    assert!(wanted(&NODES, &[PROD]).hazards(&name("other"), &BTreeSet::new()).is_empty());
}

#[test]
fn networks_that_cover_the_underlay_are_errors() {
    let inside = "tunnels would run inside themselves; choose a network without it";
    let [errors, _] = hazards(&NODES, &[&file("m", "172.100.1.0/24", "", "a: , b: ")], &["172.100.1.9"]);
    assert_eq!(errors, [format!("overlay 172.100.1.0/24 covers 172.100.1.1, the endpoint of a: {inside}")]);
    let [errors, _] =
        hazards(&NODES, &[&file("m", "10.9.0.0/24", "", "a: {routes: [172.100.1.0/30]}, b: ")], &[]);
    assert_eq!(
        errors,
        [format!("subnet 172.100.1.0/30 of a covers 172.100.1.1, the endpoint of a: {inside}")]
    );
    let [errors, _] = hazards(&NODES, &[&file("m", "10.9.0.0/24", "", "a: , b: ")], &["10.9.0.77"]);
    assert_eq!(
        errors,
        [format!("overlay 10.9.0.0/24 covers 10.9.0.77, an address of the controller: {inside}")]
    );
    // Of other meshes, and in both directions.
    let other = file("other", "10.8.0.0/24", "", "c: , d: {endpoint: 10.9.0.5}");
    let [errors, _] = hazards(&NODES, &[&other, &file("m", "10.9.0.0/24", "", "a: , b: ")], &[]);
    assert_eq!(
        errors,
        [format!("overlay 10.9.0.0/24 covers 10.9.0.5, the endpoint of d in mesh other: {inside}")]
    );
    let [errors, _] = hazards(&NODES, &[&file("m", "10.9.0.0/24", "", "a: , b: "), &other], &[]);
    assert_eq!(
        errors,
        [format!("overlay 10.9.0.0/24 in mesh m covers 10.9.0.5, the endpoint of d: {inside}")]
    );
}

/// Whatever a node says of itself costs nobody else a tunnel, and no mesh its operator.
#[test]
fn a_claimed_endpoint_gives_way_to_what_the_files_say() {
    let by_label = format!("{PROD}members: [{{labels: {{role: web}}}}]\n");
    let honest = wanted(&[("c", "172.100.1.3")], &[&by_label]);
    for (claim, words) in [
        ("172.100.1.2:7000", "the endpoint of b"),
        ("192.168.1.7", "192.168.1.0/24 of mesh prod"),
        ("10.9.0.2", "10.9.0.0/24 of mesh prod"),
    ] {
        let nodes = [("c", "172.100.1.3"), ("aaa", claim)];
        let lied_to = wanted(&nodes, &[&by_label]);
        assert_eq!(view(&lied_to, "aaa"), Vec::<String>::new(), "{claim}");
        for node in ["a", "b", "c"] {
            assert_eq!(view(&lied_to, node).len(), view(&honest, node).len(), "{claim}: {node}");
        }
        let [errors, warnings] = hazards(&nodes, &[&by_label], &[]);
        assert_eq!(errors, Vec::<String>::new(), "{claim}");
        assert!(warnings.iter().any(|warning| warning.contains(words)), "{warnings:?}");
    }
}

#[test]
fn meshes_that_share_nodes_must_be_told_apart() {
    let first = file("one", "10.8.0.0/24", "", "a: {routes: [192.168.1.0/24]}, b: ");
    let second = |overlay: &str, rest: &str, nodes: &str| file("two", overlay, rest, nodes);
    for (second, expected) in [
        (second("10.9.0.0/24", "", "b: , c: "), ""),
        (second("10.8.0.0/24", "", "c: , d: "), ""),
        (
            second("10.9.0.0/24", "", "a: , b: , c: "),
            "a and b are both in mesh two and in mesh one, and plain tunnels are told apart by their peers alone; take \
             one of them from one of the meshes",
        ),
        (
            second("10.9.0.0/24", "device: one,", "b: , c: "),
            "device one is that of mesh one, too, and b is in both; write another device: in one of the files",
        ),
        (
            second("10.8.0.0/16", "", "b: , c: "),
            "overlay 10.8.0.0/16 overlaps the overlay 10.8.0.0/24 in mesh one, and b is in both; choose another network",
        ),
        (
            second("10.9.0.0/24", "", "b: , c: {routes: [10.8.0.0/25]}"),
            "subnet 10.8.0.0/25 of c overlaps the overlay 10.8.0.0/24 in mesh one, and b is in both; choose another \
             network",
        ),
        (
            second("10.9.0.0/24", "", "b: , c: {routes: [192.168.1.0/24]}"),
            "subnet 192.168.1.0/24 of c overlaps the subnet 192.168.1.0/24 of a in mesh one, and b is in both; choose \
             another network",
        ),
        // The more exact one wins.
        (second("10.9.0.0/24", "", "b: , c: {routes: [192.168.0.0/16]}"), ""),
        // A node has no route to its own subnet.
        (second("10.9.0.0/24", "", "a: {routes: [192.168.1.0/24]}, c: "), ""),
    ] {
        for (files, turned) in [([&first, &second], false), ([&second, &first], true)] {
            let [errors, _] = hazards(&NODES, &files.map(String::as_str), &[]);
            assert_eq!(errors.len(), usize::from(!expected.is_empty()), "{files:?}: {errors:?}");
            assert!(turned || errors.concat() == expected, "{errors:?}");
        }
    }
}

#[test]
fn tunnels_of_two_meshes_have_two_names() {
    let files = [
        file("m", "10.8.0.0/24", "", "b.c: {endpoint: 172.100.1.7}, a: "),
        file("m.b", "10.9.0.0/24", "", "c: , a: "),
    ];
    let [errors, _] = hazards(&NODES, &files.each_ref().map(String::as_str), &[]);
    assert_eq!(
        errors,
        [
            "the tunnels to c have the name m.b.c, as others of mesh m have, and a is in both; rename one of the meshes"
        ]
    );
}

#[test]
fn what_may_not_work_is_a_warning() {
    let nodes = [("a", "172.100.1.1"), ("b", ""), ("c", "172.100.1.1:6000")];
    let mesh = file("m", "44.0.0.0/30", "", "a: {routes: [8.8.8.0/24]}, d: {endpoint: 1.2.3.4}")
        .replace("security", "members: [{labels: {role: web}}], security");
    let [errors, warnings] = hazards(&nodes, &[&mesh], &[]);
    assert_eq!(errors, Vec::<String>::new());
    let accepted = "lies in none of the networks that agents accept (10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16, \
                    100.64.0.0/10, fc00::/7); start them with --accept-prefix";
    assert_eq!(
        warnings,
        [
            "b has no known endpoint, and no tunnels until its agent connects; start it with --name b, or write its \
             endpoint"
                .to_owned(),
            "c has no address, as the overlay 44.0.0.0/30 has none left; use a larger one".to_owned(),
            "c has no tunnels: it says that it is at 172.100.1.1:6000, where a was before; start its agent with another \
             --endpoint, or name it in the file with its endpoint"
                .to_owned(),
            "d has no address, as the overlay 44.0.0.0/30 has none left; use a larger one".to_owned(),
            "d has never connected; start its agent with --name d".to_owned(),
            format!("overlay 44.0.0.0/30 {accepted} 44.0.0.0/30"),
            format!("subnet 8.8.8.0/24 of a {accepted} 8.8.8.0/24"),
        ]
    );
}

#[test]
fn two_that_files_name_may_be_at_one_endpoint_and_it_is_told() {
    let nodes = [("a", "172.100.1.1"), ("c", "172.100.1.1:6000")];
    let [errors, warnings] = hazards(&nodes, &[&file("m", "10.9.0.0/24", "", "a: , c: ")], &[]);
    assert_eq!(errors, Vec::<String>::new());
    assert_eq!(
        warnings,
        [
            "c and a have one endpoint, 172.100.1.1:6000, and others reach but one of them; give each its own address \
             or port"
        ]
    );
}

#[test]
fn a_plan_says_what_it_does() {
    let before = wanted(&[("c", "172.100.1.3")], &[PROD]);
    let mut after = before.clone();
    let file = PROD
        .replace("172.100.1.1,", "172.100.1.9, address: 10.9.0.2,")
        .replace("  b: {endpoint: '172.100.1.2:7000'}\n", "");
    apply(&mut after, parse(&file).unwrap());
    let plan = plan(&before, &after, &name("prod"), 1, &BTreeSet::new());
    let shown: Vec<String> = plan
        .operations
        .of(&name("c"))
        .map(|operation| format!("{}: {:?} -> {:?}", operation.item, operation.before, operation.after))
        .collect();
    assert_eq!(
        shown,
        [
            "tunnel prod.a: Some(\"to 172.100.1.1:5000, 10.9.0.1/32 fd00:9::1/128 192.168.1.0/24, mtu auto, unencrypted\") -> \
             Some(\"to 172.100.1.9:5000, 10.9.0.2/32 fd00:9::1/128 192.168.1.0/24, mtu auto, unencrypted\")",
            "tunnel prod.b: Some(\"to 172.100.1.2:7000, 10.9.0.2/32 fd00:9::2/128, mtu auto, unencrypted\") -> None",
        ]
    );
    assert_eq!(plan.operations.of(&name("b")).len(), 3, "all that it had goes");
    assert_eq!(plan.hazards[0].message, "a moves from 10.9.0.1 to 10.9.0.2; expect its connections to end");
    assert_eq!(plan.weakened, ["security: plain: whoever can read the underlay reads this mesh"]);
    assert!(plan.mass_removals.is_empty());
    assert_eq!(
        differences(&before.meshes[&plan.mesh], &after.meshes[&plan.mesh]),
        [
            "nodes.a.endpoint: 172.100.1.1 -> 172.100.1.9",
            "nodes.a.addresses: none -> 10.9.0.2",
            "nodes.b: removed"
        ]
    );
}

#[test]
fn who_is_moved_by_a_fixed_address_is_told() {
    let before = wanted(&NODES, &[PROD]);
    let mut after = before.clone();
    apply(&mut after, parse(&format!("{PROD}  d: {{address: 10.9.0.1}}\n")).unwrap());
    let plan = plan(&before, &after, &name("prod"), 1, &BTreeSet::new());
    let moves: Vec<_> = plan.hazards.iter().filter(|hazard| hazard.message.contains("moves")).collect();
    assert_eq!(moves.len(), 1);
    assert_eq!(
        moves[0].message,
        "a moves from 10.9.0.1, which d gets, to 10.9.0.4; expect its connections to end"
    );
    assert_eq!(moves[0].node, Some(name("a")));
}

#[test]
fn a_plan_that_changes_nothing_is_empty() {
    let wanted = wanted(&NODES, &[PROD]);
    let plan = plan(&wanted, &wanted, &name("prod"), 1, &BTreeSet::new());
    assert!(plan.operations.is_empty() && plan.mass_removals.is_empty());
    assert!(differences(&wanted.meshes[&plan.mesh], &wanted.meshes[&plan.mesh]).is_empty());
}

#[test]
fn errors_come_first() {
    let before = wanted(&NODES, &[PROD]);
    let mut after = before.clone();
    let file = format!("{PROD}  d: {{address: 10.9.0.1, endpoint: 1.2.3.4, routes: [172.100.0.0/16]}}\n");
    apply(&mut after, parse(&file).unwrap());
    let plan = plan(&before, &after, &name("prod"), 1, &BTreeSet::new());
    let errors: Vec<bool> = plan.hazards.iter().map(|hazard| hazard.is_error).collect();
    assert_eq!(errors, [true, false, false, false], "{:?}", plan.hazards);
    assert!(plan.hazards[1].message.contains("a moves"), "{:?}", plan.hazards);
}

#[test]
fn deleting_a_mesh_is_a_plan_too() {
    let before = wanted(&NODES, &[PROD]);
    let mut after = before.clone();
    after.meshes.clear();
    let plan = plan(&before, &after, &name("prod"), 1, &BTreeSet::new());
    assert_eq!(plan.operations.nodes().len(), 3);
    assert!(plan.hazards.is_empty() && plan.weakened.is_empty());
}

#[test]
fn the_hash_names_all_that_a_plan_rests_on() {
    let none = Wanted::default();
    let hash = |before: &Wanted, after: &Wanted| plan(before, after, &name("prod"), 1, &BTreeSet::new()).hash;
    let base = wanted(&NODES, &[PROD]);
    let first = hash(&none, &base);
    assert_eq!(hash(&none, &base), first);
    let mut others = [
        // What the file says, though it changes no item.
        wanted(&NODES, &[&PROD.replace("  c:\n", "  c: {labels: {rack: '7'}}\n")]),
        // What a node says.
        wanted(&[("a", ""), ("b", ""), ("c", "172.100.1.4")], &[PROD]),
        // What is allocated.
        wanted(&NODES, &[&PROD.replace("7000'}", "7000', address: 10.9.0.9}")]),
    ];
    others[2].meshes = base.meshes.clone();
    let mut hashes: BTreeSet<PlanHash> = others.iter().map(|other| hash(&none, other)).collect();
    hashes.insert(first);
    hashes.insert(hash(&base, &base));
    assert_eq!(hashes.len(), 5);
    // What another mesh does elsewhere is nothing to it.
    let elsewhere = file("two", "10.8.0.0/24", "", "x: {endpoint: 1.2.3.4}, y: {endpoint: 1.2.3.5}");
    let [before, after] = [&[&elsewhere[..]][..], &[&elsewhere[..], PROD]].map(|files| wanted(&NODES, files));
    assert_eq!(hash(&before, &after), hash(&none, &base));
}

#[test]
fn more_than_half_and_more_than_three_are_many() {
    let views = |peers: usize| {
        let nodes: String = (0..peers).map(|node| format!("n{node}: {{endpoint: 1.1.1.{node}}}, ")).collect();
        wanted(&[], &[&file("m", "10.9.0.0/24", "", &format!("a: {{endpoint: 1.1.2.1}}, {nodes}"))]).views()
    };
    let loses =
        |before: usize, after: usize| {
            mass_removals(&views(before), &Operations::between(&views(before), &views(after)))
                .contains(&name::<NodeName>("a"))
        };
    assert!(loses(4, 0) && loses(7, 3) && loses(9, 4));
    assert!(!loses(3, 0) && !loses(8, 4) && !loses(9, 5) && !loses(4, 8));
    assert!(
        mass_removals(&views(6), &Operations::between(&views(6), &BTreeMap::new()))
            .contains(&name::<NodeName>("n0")),
        "who is in no mesh any more"
    );
}

#[test]
fn a_thousand_nodes_share_their_items() {
    let nodes: String = (0..1000)
        .map(|node| format!("  n{node}: {{endpoint: 10.0.{}.{}}}\n", node / 250, node % 250 + 1))
        .collect();
    let wanted =
        wanted(&[], &[&format!("mesh: m\noverlay: 172.20.0.0/16\nsecurity: plain\nnodes:\n{nodes}")]);
    let views = wanted.views();
    assert!(views.values().all(|items| items.len() == 1000));
    let distinct: BTreeSet<_> = views.values().flat_map(Items::iter).map(Arc::as_ptr).collect();
    assert_eq!(distinct.len(), 2000, "a device and a tunnel of each node");
}

type Named = BTreeMap<usize, (bool, u8)>;

/// Some meshes over some nodes: what each node has said, and the file of each mesh.
#[derive(Debug, Clone)]
struct World {
    /// By node, whether it has connected, and its label.
    nodes: BTreeMap<usize, Option<u8>>,
    /// By mesh, its nodes with whether they have an endpoint and how many routes, and a label that selects more.
    meshes: Vec<(Named, Option<u8>)>,
}

fn world() -> impl Strategy<Value = World> {
    let nodes = btree_map(0..9_usize, prop::option::of(0..3_u8), 0..9);
    let members = btree_map(0..9_usize, (any::<bool>(), 0..3_u8), 1..7);
    (nodes, vec((members, prop::option::of(0..3_u8)), 1..4))
        .prop_map(|(nodes, meshes)| World { nodes, meshes })
}

impl World {
    fn wanted(&self) -> Wanted {
        let mut wanted = Wanted::default();
        for (node, label) in &self.nodes {
            let Some(label) = label else { continue };
            let record = NodeRecord {
                labels: BTreeMap::from([("label".to_owned(), label.to_string())]),
                endpoint: Some(name(&format!("172.100.1.{node}"))),
                data_port: 5000,
                keys: BTreeMap::new(),
                probes: false,
                since: 0,
            };
            wanted.nodes.insert(name(&format!("n{node}")), record);
        }
        for (at, (nodes, label)) in self.meshes.iter().enumerate() {
            let nodes: String = nodes
                .iter()
                .map(|(node, (has_endpoint, routes))| {
                    let endpoint =
                        if *has_endpoint { format!("endpoint: 172.100.1.{node}, ") } else { String::new() };
                    let routes: Vec<_> = (0..*routes)
                        .map(|route| format!("192.{at}.{}.0/24", node * 8 + usize::from(route)))
                        .collect();
                    format!("n{node}: {{{endpoint}routes: [{}]}}, ", routes.join(", "))
                })
                .collect();
            let members = label.map(|label| format!("{{labels: {{label: '{label}'}}}}")).unwrap_or_default();
            let rest = format!("members: [{members}],");
            apply(
                &mut wanted,
                parse(&file(&format!("m{at}"), &format!("10.{at}.0.0/24"), &rest, &nodes)).unwrap(),
            );
        }
        wanted
    }
}

/// The tunnels of a view, each with the mesh and the peer that it leads to.
fn tunnels(items: &Items) -> Vec<(MeshName, NodeName, TunnelSpec)> {
    let tunnel = |item: &Arc<Item>| match meaning(item).unwrap() {
        Meaning::Device(..) => None,
        Meaning::Tunnel(tunnel) => {
            let (mesh, peer) = tunnel.name.as_str().split_once('.').unwrap();
            Some((name(mesh), name(peer), tunnel.clone()))
        }
    };
    items.iter().filter_map(tunnel).collect()
}

proptest! {
    #[test]
    fn views_are_sound(world in world()) {
        let wanted = world.wanted();
        let views = wanted.views();
        for (node, items) in &views {
            let ids: BTreeSet<_> = items.iter().map(|item| &item.id).collect();
            prop_assert_eq!(ids.len(), items.len());
            let tunnels = tunnels(items);
            for (mesh, peer, tunnel) in &tunnels {
                prop_assert_ne!(peer, node);
                let members = wanted.members(&wanted.meshes[mesh]);
                prop_assert!(members.contains(peer) && members.contains(node));
                // Its remote, addresses and subnets are the peer's, and the peer has a tunnel back.
                let number = &peer.as_str()[1..];
                prop_assert_eq!(tunnel.remote.as_ref().unwrap().to_string(), format!("172.100.1.{number}:5000"));
                let addresses = &wanted.allocations[mesh].nodes[peer].addresses;
                let routes = wanted.meshes[mesh].nodes.get(peer).map(|peer| peer.routes.clone()).unwrap_or_default();
                let prefixes: BTreeSet<_> = tunnel.allowed_prefixes.iter().map(|allowed| allowed.prefix).collect();
                prop_assert_eq!(prefixes, addresses.iter().map(|one| IpNet::from(*one)).chain(routes).collect());
                let back: ItemId = name(&format!("tunnel {mesh}.{node}"));
                prop_assert!(views[peer].iter().any(|item| item.id == back));
            }
            let devices: BTreeSet<_> = tunnels.iter().map(|(_, _, tunnel)| ItemId::Device(tunnel.device.clone())).collect();
            let own: BTreeSet<_> = items.iter().map(|item| item.id.clone()).filter(|id| matches!(id, ItemId::Device(_))).collect();
            prop_assert_eq!(devices, own, "a device for its tunnels, and none without");
        }
    }

    #[test]
    fn a_node_that_goes_is_in_nobodys_view(world in world(), gone in 0..9_usize) {
        let mut without = world.clone();
        without.nodes.remove(&gone);
        without.meshes.iter_mut().for_each(|(nodes, _)| _ = nodes.remove(&gone));
        without.meshes.retain(|(nodes, label)| !nodes.is_empty() || label.is_some());
        let gone: NodeName = name(&format!("n{gone}"));
        let views = without.wanted().views();
        prop_assert!(!views.contains_key(&gone));
        for items in views.values() {
            prop_assert!(tunnels(items).iter().all(|(_, peer, _)| *peer != gone));
        }
    }

    #[test]
    fn a_change_of_one_node_is_a_change_of_its_tunnels_alone(world in world(), at in 0..3_usize, node in 0..9_usize) {
        let before = world.wanted();
        let mut after = before.clone();
        let Some(mesh) = after.meshes.get_mut(&name::<MeshName>(&format!("m{at}"))) else { return Ok(()) };
        let node: NodeName = name(&format!("n{node}"));
        let Some(wanted) = mesh.nodes.get_mut(&node) else { return Ok(()) };
        wanted.routes = vec![name("192.200.0.0/24")];
        let (mesh, joined) = (mesh.name.clone(), before.views().contains_key(&node));
        let operations = Operations::between(&before.views(), &after.views());
        for (of, operations) in operations.nodes() {
            let operations: Vec<_> = operations.collect();
            prop_assert!(joined && *of != node);
            let items: Vec<_> = operations.iter().map(|operation| operation.item.to_string()).collect();
            prop_assert_eq!(items, [format!("tunnel {mesh}.{node}")]);
            prop_assert!(operations[0].before.is_some() && operations[0].after.is_some());
        }
    }

    #[test]
    fn operations_lead_from_one_state_to_the_other(one in world(), other in world(), skipped in btree_set(0..9_usize, 0..3)) {
        let (mut before, after) = (one.wanted().views(), other.wanted().views());
        let skipped: BTreeSet<NodeName> = skipped.iter().map(|number| name(&format!("n{number}"))).collect();
        before.retain(|node, _| !skipped.contains(node));
        let all = Operations::between(&before, &after);
        let words = |views: &BTreeMap<NodeName, Items>, node: &NodeName| -> BTreeMap<ItemId, String> {
            let items = views.get(node).cloned().unwrap_or_default();
            items.iter().map(|item| (item.id.clone(), words::of(item))).collect()
        };
        for node in before.keys().chain(after.keys()) {
            let mut state = words(&before, node);
            for operation in all.of(node) {
                prop_assert_ne!(&operation.before, &operation.after);
                prop_assert_eq!(state.remove(&operation.item), operation.before.clone());
                state.extend(operation.after.clone().map(|after| (operation.item.clone(), after)));
            }
            prop_assert_eq!(state, words(&after, node));
        }
        prop_assert!(all.nodes().all(|(_, operations)| operations.len() > 0));
        // Each is there once, and counts its nodes.
        for (place, operation) in all.each().iter().enumerate() {
            let nodes = all.nodes().filter(|(_, operations)| operations.clone().any(|one| one == operation)).count();
            prop_assert_eq!(operation.nodes, nodes);
            prop_assert!(!all.each()[..place].contains(operation));
        }
    }
}
