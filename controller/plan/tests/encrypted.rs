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
    let device = plan.operations.of(&name("a")).next().unwrap();
    let words = ["10.9.0.1/24, key for mesh safe", "10.9.0.1/24, no key"].map(|words| Some(words.to_owned()));
    assert_eq!([device.before.clone(), device.after.clone()], words, "what differs is in words");
}

#[test]
fn another_key_of_a_node_without_an_agent_is_told() {
    let file = |number: u8| {
        let key = key(number);
        format!("{SAFE}  phone: {{kind: wireguard, peers: a, public_key: '{key}'}}\n")
    };
    let before = wanted(&[("a", ""), ("b", "172.100.1.2")], &[&file(7)]);
    let mut after = before.clone();
    apply(&mut after, parse(&file(8)).unwrap());
    let plan = plan(&before, &after, &name("safe"), 7, &BTreeSet::new());
    let change = plan.operations.of(&name("a")).next().unwrap();
    let words =
        [7, 8].map(|number| Some(format!("from anywhere, 10.9.0.4/32, mtu auto, key {}", key(number))));
    assert_eq!([change.before.clone(), change.after.clone()], words);
}

/// A mesh that was plain, and says no more that it is.
fn leaving() -> Wanted {
    let plain = SAFE.replace("nodes:", "security: plain\nnodes:");
    let mut wanted = wanted(&[("a", ""), ("b", "172.100.1.2"), ("c", "172.100.1.3")], &[&plain]);
    let before = wanted.allocations[&name::<MeshName>("safe")].clone();
    apply(&mut wanted, parse(SAFE).unwrap());
    wanted
        .allocations
        .get_mut(&name::<MeshName>("safe"))
        .unwrap()
        .leave_plain(&parse(SAFE).unwrap(), &before);
    wanted
}

fn advance(wanted: &mut Wanted, nodes: &[&str]) {
    let given = wanted.allocations.get_mut(&name::<MeshName>("safe")).unwrap();
    let keys: BTreeSet<_> =
        wanted.nodes.iter().filter(|(_, record)| !record.keys.is_empty()).map(|(node, _)| node).collect();
    given.advance(|node| keys.contains(node), |node| nodes.contains(&node.as_str()));
}

#[test]
fn who_had_plain_tunnels_goes_on_with_them_until_there_are_keys() {
    let mut wanted = leaving();
    let to = |node: &str, how: &str| {
        let (at, number, routes) = match node {
            "a" => ("172.100.1.1", 1, " 192.168.1.0/24"),
            "b" => ("172.100.1.2", 2, ""),
            _ => ("172.100.1.3", 3, ""),
        };
        format!("tunnel safe.{node}: to {at}:6000, 10.9.0.{number}/32{routes}, mtu auto{how}")
    };
    const PLAIN: &str = ", unencrypted";
    const BOTH: &str = ", unencrypted until keys are agreed on";
    assert_eq!(view(&wanted, "a")[1..], [to("b", PLAIN), to("c", PLAIN)]);
    make_keys(&mut wanted, "safe", &[("a", 1), ("b", 2)]);
    advance(&mut wanted, &[]);
    assert_eq!(view(&wanted, "a")[1..], [to("b", BOTH), to("c", PLAIN)]);
    assert_eq!(view(&wanted, "b")[1..], [to("a", BOTH), to("c", PLAIN)]);
    assert_eq!(view(&wanted, "c")[1..], [to("a", PLAIN), to("b", PLAIN)], "it has no key of its own yet");
    // They are through with each other, and wait for the third one, but not with each other.
    advance(&mut wanted, &["a", "b"]);
    assert_eq!(view(&wanted, "a")[1..], [to("b", ""), to("c", PLAIN)]);
    let told = "mesh safe: was unencrypted, and its tunnels to c go on so until they have agreed on keys, and take \
                unencrypted packets until then";
    assert_eq!(wanted.weakened(), [told]);
    make_keys(&mut wanted, "safe", &[("c", 3)]);
    advance(&mut wanted, &[]);
    assert_eq!(view(&wanted, "c")[1..], [to("a", BOTH), to("b", BOTH)]);
    // Who comes now has never had one.
    let record = wanted.nodes[&name::<NodeName>("b")].clone();
    wanted.nodes.insert(name("d"), NodeRecord { endpoint: Some(name("172.100.1.4")), ..record });
    apply(&mut wanted, parse(&format!("{SAFE}  d:\n")).unwrap());
    make_keys(&mut wanted, "safe", &[("d", 4)]);
    assert_eq!(view(&wanted, "d")[1..], [to("a", ""), to("b", ""), to("c", "")]);
    // A key that is lost leads nobody back to plain text.
    let mut lost = wanted.clone();
    lost.nodes.get_mut(&name::<NodeName>("c")).unwrap().keys.clear();
    advance(&mut lost, &[]);
    assert!(!view(&lost, "a").concat().contains("safe.c") && view(&lost, "a").len() == 3);
    assert_eq!(view(&lost, "c")[1..3], [to("a", BOTH), to("b", BOTH)], "as before: it makes another");
    advance(&mut wanted, &["c"]);
    assert_eq!(view(&wanted, "c")[1..3], [to("a", ""), to("b", "")]);
    assert_eq!(wanted.weakened(), [""; 0]);
    let safe = &wanted.allocations[&name::<MeshName>("safe")];
    assert!(safe.nodes.values().all(|allocation| allocation.from_plain.is_none()), "all of it is over");
}

#[test]
fn a_mesh_that_leaves_plain_text_loses_no_tunnel() {
    let plain = SAFE.replace("nodes:", "security: plain\nnodes:");
    let before = wanted(&[("a", ""), ("b", "172.100.1.2"), ("c", "172.100.1.3")], &[&plain]);
    let after = leaving();
    let plan = plan(&before, &after, &name("safe"), 7, &BTreeSet::new());
    assert!(plan.operations.each().iter().all(|operation| operation.after.is_some()));
    assert_eq!(losers(&before, &after), BTreeSet::new());
    assert!(plan.weakened[0].starts_with("was unencrypted, and its tunnels to a, b, c go on so"), "{plan:?}");
    let told: Vec<_> =
        plan.operations.each().iter().filter_map(|operation| operation.after.as_ref()).collect();
    assert!(
        told.iter().filter(|words| words.ends_with(", unencrypted until keys are agreed on")).count() == 3
    );
    // Who was away before, or has no endpoint, had none to go on with.
    let mut gone = after.clone();
    gone.nodes.get_mut(&name::<NodeName>("c")).unwrap().endpoint = None;
    make_keys(&mut gone, "safe", &[("a", 1), ("b", 2), ("c", 3)]);
    advance(&mut gone, &[]);
    assert_eq!(view(&gone, "a")[2], "tunnel safe.c: from anywhere, 10.9.0.3/32, mtu auto, keepalive 25");
    // Back in plain text, it is as if it had never left.
    let mut back = after;
    apply(&mut back, parse(&plain).unwrap());
    assert_eq!(back.views(), before.views());
    apply(&mut back, parse(SAFE).unwrap());
    assert_eq!(view(&back, "a"), ["device safe: 10.9.0.1/24"], "that is for whoever asks for it");
}
