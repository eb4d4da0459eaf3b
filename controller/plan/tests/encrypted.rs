//! Meshes whose nodes make keys.

use super::*;

/// A key of a node, by its number.
fn key(number: u8) -> PublicKey {
    [number; 32].into()
}

/// Nodes make their keys of a mesh.
fn make_keys(wanted: &mut Wanted, mesh: &str, nodes: &[(&str, u8)]) {
    for (node, number) in nodes {
        let record = wanted.nodes.get_mut(&name::<NodeName>(node)).unwrap();
        record.keys.insert(name(mesh), key(*number));
    }
}

const SAFE: &str = "\
mesh: safe
overlay: 10.9.0.0/24
nodes:
  a: {endpoint: 172.100.1.1, routes: [192.168.1.0/24]}
  b:
  c:
";

#[test]
fn who_has_a_key_gets_encrypted_tunnels_and_nobody_plain_ones() {
    let mut wanted = wanted(&[("a", ""), ("b", "172.100.1.2"), ("c", "172.100.1.3")], &[SAFE]);
    let device = |number: u8| format!("device safe: 10.9.0.{number}/24");
    for (number, node) in [(1, "a"), (2, "b"), (3, "c")] {
        assert_eq!(view(&wanted, node), [device(number)], "its key is made first");
    }
    make_keys(&mut wanted, "safe", &[("a", 1), ("b", 2)]);
    let to_a = "tunnel safe.a: to 172.100.1.1:6000, 10.9.0.1/32 192.168.1.0/24, mtu auto".to_owned();
    let to_b = "tunnel safe.b: to 172.100.1.2:6000, 10.9.0.2/32, mtu auto".to_owned();
    assert_eq!(view(&wanted, "a"), [device(1), to_b.clone()]);
    assert_eq!(view(&wanted, "b"), [device(2), to_a.clone()]);
    assert_eq!(view(&wanted, "c"), [device(3), to_a, to_b], "it makes its own meanwhile");
    let views = wanted.views();
    let Ok(Meaning::Device(_, device)) = meaning(views[&name::<NodeName>("a")].iter().next().unwrap()) else {
        panic!("a device comes first");
    };
    assert_eq!(device.key, Some(name("safe")));
    let framings: Vec<_> =
        tunnels(&views[&name::<NodeName>("c")]).into_iter().map(|(.., one)| one.framing).collect();
    assert_eq!(framings, [Framing::Wireguard(key(1)), Framing::Wireguard(key(2))]);
    // A key of another mesh is none of this one.
    make_keys(&mut wanted, "other", &[("c", 3)]);
    assert_eq!(view(&wanted, "a").len(), 2);
}

#[test]
fn a_node_without_an_endpoint_keeps_its_paths_open_and_meets_none_of_its_kind() {
    let mut wanted = wanted(&[("a", ""), ("b", ""), ("c", "")], &[SAFE]);
    make_keys(&mut wanted, "safe", &[("a", 1), ("b", 2), ("c", 3)]);
    assert_eq!(
        view(&wanted, "a")[1..],
        [
            "tunnel safe.b: from anywhere, 10.9.0.2/32, mtu auto, keepalive 25",
            "tunnel safe.c: from anywhere, 10.9.0.3/32, mtu auto, keepalive 25",
        ]
    );
    let open = "tunnel safe.a: to 172.100.1.1:6000, 10.9.0.1/32 192.168.1.0/24, mtu auto, keepalive 25";
    assert_eq!(view(&wanted, "b")[1..], [open]);
    assert_eq!(view(&wanted, "c")[1..], [open]);
    let hazards = |wanted: &Wanted| -> Vec<String> {
        let hazards = wanted.hazards(&name("safe"), &BTreeSet::new());
        assert!(hazards.iter().all(|hazard| !hazard.is_error), "{hazards:?}");
        hazards.into_iter().map(|hazard| hazard.message).collect()
    };
    let told = "b and c have no endpoint, and no tunnels to each other; give all but one of them an endpoint";
    assert_eq!(hazards(&wanted), [told]);
    wanted.nodes.get_mut(&name::<NodeName>("c")).unwrap().endpoint = Some(name("172.100.1.3"));
    assert_eq!(hazards(&wanted), [""; 0]);
    assert_eq!(view(&wanted, "c")[2], "tunnel safe.b: from anywhere, 10.9.0.2/32, mtu auto, keepalive 25");
}

#[test]
fn a_plan_has_the_tunnels_that_keys_are_made_for_and_stays_the_same_when_they_are() {
    let before = wanted(&[("a", ""), ("b", "172.100.1.2"), ("c", "172.100.1.3")], &[]);
    let mut after = before.clone();
    apply(&mut after, parse(SAFE).unwrap());
    let planned = |before: &Wanted, after: &Wanted| plan(before, after, &name("safe"), 7, &BTreeSet::new());
    let first = planned(&before, &after);
    assert_eq!(first.operations.of(&name("a")).count(), 3, "a device and two tunnels");
    assert_eq!(first.weakened, [""; 0]);
    let mut keyed = after.clone();
    make_keys(&mut keyed, "safe", &[("a", 1), ("b", 2)]);
    assert_eq!(planned(&before, &keyed).hash, first.hash);
    assert!(planned(&after, &keyed).operations.is_empty(), "it is not an operator who makes keys");
    let mut plain = after.clone();
    apply(&mut plain, parse(&SAFE.replace("nodes:", "security: plain\nnodes:")).unwrap());
    let plan = planned(&after, &plain);
    assert_eq!(plan.differences, ["security: encrypted -> plain"]);
    assert_eq!(plan.weakened, ["security: plain: whoever can read the underlay reads this mesh"]);
    assert!(plan.hazards[0].message.contains("expect it to carry nothing for a moment"), "{plan:?}");
}
