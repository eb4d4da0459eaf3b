//! Meshes with nodes that have no agent.

use super::*;

/// Of a phone, which moves about, and of a router, which stays.
const PHONE: &str = "CAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAg=";
const ROUTER: &str = "CQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQk=";

fn file() -> String {
    format!(
        "\
mesh: safe
overlay: 10.9.0.0/24
nodes:
  a: {{endpoint: 172.100.1.1, routes: [192.168.1.0/24]}}
  b:
  phone: {{kind: wireguard, public_key: {PHONE}, peers: [a, b]}}
  router: {{kind: wireguard, public_key: {ROUTER}, peers: a, endpoint: 172.100.1.9, routes: [192.168.9.0/24]}}
"
    )
}

/// `a` can be reached, `b` cannot, and both have made their keys.
fn both(file: &str) -> Wanted {
    let mut wanted = wanted(&[("a", ""), ("b", "")], &[file]);
    for (number, node) in [(1, "a"), (2, "b")] {
        let record = wanted.nodes.get_mut(&name::<NodeName>(node)).unwrap();
        record.keys.insert(name("safe"), PublicKey::from([number; 32]));
    }
    wanted
}

fn hazards(wanted: &Wanted) -> Vec<(bool, String)> {
    let hazards = wanted.hazards(&name("safe"), &BTreeSet::new());
    hazards.into_iter().map(|hazard| (hazard.is_error, hazard.message)).collect()
}

#[test]
fn a_node_without_an_agent_has_tunnels_to_those_that_it_names() {
    let mut wanted = both(&file());
    assert_eq!(
        view(&wanted, "a"),
        [
            "device safe: 10.9.0.1/24",
            "tunnel safe.b: from anywhere, 10.9.0.2/32, mtu auto, keepalive 25",
            // It keeps the path open itself, and sleeps when it wants to.
            "tunnel safe.phone: from anywhere, 10.9.0.3/32, mtu auto",
            "tunnel safe.router: to 172.100.1.9:51820, 10.9.0.4/32 192.168.9.0/24, mtu auto",
        ]
    );
    assert_eq!(
        view(&wanted, "b"),
        [
            "device safe: 10.9.0.2/24",
            "tunnel safe.a: to 172.100.1.1:6000, 10.9.0.1/32 192.168.1.0/24, mtu auto, keepalive 25",
        ],
        "it does not know where the phone is, nor the phone where it is"
    );
    assert_eq!(wanted.views().keys().map(NodeName::as_str).collect::<Vec<_>>(), ["a", "b"]);
    let told = "phone and b have no endpoint, and no tunnel to each other; give one of them an endpoint";
    assert_eq!(hazards(&wanted), [(false, told.to_owned())]);
    assert_eq!(wanted.without_key(), BTreeMap::new(), "nobody waits for those that make none");
    apply(&mut wanted, parse(&file().replace("peers: a,", "peers: [a, b],")).unwrap());
    assert_eq!(
        view(&wanted, "b")[2],
        "tunnel safe.router: to 172.100.1.9:51820, 10.9.0.4/32 192.168.9.0/24, mtu auto, keepalive 25"
    );
}

#[test]
fn a_plan_tells_of_another_key_and_of_other_peers() {
    let before = both(&file());
    let planned = |file: &str| {
        let mut after = before.clone();
        apply(&mut after, parse(file).unwrap());
        plan(&before, &after, &name("safe"), 7, &BTreeSet::new())
    };
    assert!(planned(&file()).operations.is_empty());
    let another = planned(&file().replace(PHONE, "BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc="));
    assert_eq!(
        another.differences,
        [format!("nodes.phone.public_key: {PHONE} -> BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=")]
    );
    assert_eq!(another.operations.of(&name("a")).count(), 1);
    let fewer = planned(&file().replace("[a, b]", "b"));
    assert_eq!(fewer.differences, ["nodes.phone.peers: a b -> b"]);
    assert_eq!(fewer.operations.of(&name("a")).filter(|operation| operation.after.is_none()).count(), 1);
    assert!(fewer.hazards.iter().any(|hazard| {
        hazard.message
            == "phone has no agent that hears of this: replace its file by that of `controller export \
                           wireguard phone`"
    }));
    assert!(!another.hazards.iter().any(|hazard| hazard.message.contains("router has no agent")));
    let agent = planned(&file().replace(&format!("kind: wireguard, public_key: {ROUTER}, peers: a, "), ""));
    assert_eq!(agent.differences[0], "nodes.router.kind: wireguard -> agent");
}

#[test]
fn what_is_wrong_with_a_node_without_an_agent_is_told() {
    let none = file().replace(&format!("public_key: {PHONE}, "), "").replace("[a, b]", "[a, c]");
    let told = hazards(&both(&none));
    assert!(told[0].1.contains("`controller export wireguard phone --generate-key`"), "{told:?}");
    assert!(told[1].1.contains("no tunnel to c, which is no node of this mesh"), "{told:?}");
    assert!(told.len() == 2 && told.iter().all(|(is_error, _)| !is_error));
    let taken = file().replace(PHONE, &PublicKey::from([1; 32]).to_string());
    let told = hazards(&both(&taken));
    assert_eq!(told[0], (true, "phone has the key of a; give it one of its own".to_owned()));
    let mut wanted = both(&file());
    let record = wanted.nodes[&name::<NodeName>("a")].clone();
    wanted.nodes.insert(name("phone"), record);
    assert!(hazards(&wanted).iter().any(|(_, told)| told.starts_with("an agent has connected as phone")));
    assert_eq!(view(&wanted, "phone"), [""; 0]);
}

#[test]
fn a_host_that_was_removed_may_come_again_without_an_agent() {
    let mut wanted = both(&file());
    wanted.removed.insert(name("phone"));
    apply(&mut wanted, parse(&file()).unwrap());
    assert_eq!(view(&wanted, "a").len(), 4);
    assert!(wanted.export(&name("phone"), None).is_ok());
    assert!(hazards(&wanted).iter().all(|(_, told)| !told.contains("was removed")));
}

#[test]
fn a_node_that_leaves_plain_text_for_wireguard_has_nothing_of_it() {
    let plain = file()
        .replace(&format!("kind: wireguard, public_key: {ROUTER}, peers: a, "), "")
        .replace("nodes:", "security: plain\nnodes:");
    let (plain, _) = plain
        .split_once("  phone")
        .map(|(nodes, rest)| (format!("{nodes}{}", &rest[rest.find('\n').unwrap() + 1..]), rest))
        .unwrap();
    let mut wanted = both(&plain);
    let before = wanted.allocations[&name::<MeshName>("safe")].clone();
    apply(&mut wanted, parse(&file()).unwrap());
    wanted
        .allocations
        .get_mut(&name::<MeshName>("safe"))
        .unwrap()
        .leave_plain(&parse(&file()).unwrap(), &before);
    let to_router = view(&wanted, "a").into_iter().find(|tunnel| tunnel.contains("router")).unwrap();
    assert!(!to_router.contains("unencrypted"), "{to_router}");
    assert!(!wanted.weakened()[0].contains("router"), "{:?}", wanted.weakened());
}

#[test]
fn an_export_has_what_the_peers_have() {
    let wanted = both(&file());
    let exported = |node: &str| wanted.export(&name(node), None).unwrap();
    let phone = exported("phone");
    assert_eq!(phone.public_key.to_string(), PHONE);
    assert_eq!(phone.addresses, [name("10.9.0.3/24")]);
    assert_eq!((phone.listen_port, phone.mtu), (None, None));
    let [peer] = &phone.peers[..] else { panic!("{phone:?}") };
    assert_eq!((peer.node.as_str(), peer.public_key), ("a", PublicKey::from([1; 32])));
    assert_eq!(peer.endpoint, Some(name("172.100.1.1:6000")));
    assert_eq!(peer.allowed, [name("10.9.0.1/32"), name("192.168.1.0/24")]);
    assert_eq!(peer.keepalive, Some(KEEPALIVE));
    assert_eq!(phone.left_out, [(name("b"), "neither of them has an endpoint")]);
    let router = exported("router");
    assert_eq!(router.listen_port, Some(51820));
    assert_eq!(router.peers[0].keepalive, None, "both know where the other is");
    assert_eq!(wanted.export(&name("a"), None), Err(Unfit::Unknown(name("a"))));
    assert_eq!(wanted.export(&name("phone"), Some(&name("other"))), Err(Unfit::Unknown(name("phone"))));
}

#[test]
fn a_node_in_two_meshes_is_exported_from_the_one_that_is_named() {
    let other = file().replace("safe", "other").replace("10.9.0", "10.8.0").replace("192.168", "192.167");
    let mut wanted = both(&file());
    apply(&mut wanted, parse(&other).unwrap());
    let both = vec![name("other"), name("safe")];
    assert_eq!(wanted.export(&name("phone"), None), Err(Unfit::Several(name("phone"), both)));
    let exported = wanted.export(&name("phone"), Some(&name("other"))).unwrap();
    assert_eq!(exported.addresses, [name("10.8.0.3/24")]);
    assert!(exported.left_out.contains(&(name("a"), "it has not made its key yet")), "{exported:?}");
}

#[test]
fn a_key_is_made_for_who_has_none_in_the_file() {
    let without = file().replace(&format!("public_key: {PHONE}, "), "");
    let mut wanted = both(&without);
    let (mesh, phone) = (name::<MeshName>("safe"), name::<NodeName>("phone"));
    assert_eq!(wanted.export(&phone, None), Err(Unfit::WithoutKey(phone.clone())));
    assert_eq!(view(&wanted, "a").len(), 3, "nobody can be told whom to expect");
    let key = PublicKey::from([8; 32]);
    assert_eq!(wanted.give_key(&mesh, &name("router"), key), Err(Unfit::HasKey(name("router"))));
    assert_eq!(wanted.give_key(&mesh, &name("a"), key), Err(Unfit::Unknown(name("a"))));
    assert_eq!(wanted.give_key(&mesh, &phone, key), Ok(()));
    assert_eq!(wanted.export(&phone, None).unwrap().public_key, key);
    assert_eq!(wanted.wireguard_with_key(&mesh, key), Some(&phone));
    assert_eq!(view(&wanted, "a").len(), 4);
    // It stays through other changes of the file, until that has its own.
    apply(&mut wanted, parse(&without.replace("mesh: safe", "mesh: safe\nmtu: 1300")).unwrap());
    assert_eq!(wanted.export(&phone, None).unwrap().public_key, key);
    apply(&mut wanted, parse(&file()).unwrap());
    assert_eq!(wanted.export(&phone, None).unwrap().public_key.to_string(), PHONE);
    apply(&mut wanted, parse(&without).unwrap());
    assert_eq!(wanted.export(&phone, None), Err(Unfit::WithoutKey(phone.clone())));
    // Whoever leaves has none when it comes again.
    assert_eq!(wanted.give_key(&mesh, &phone, key), Ok(()));
    let (left, _) = without.split_once("  phone").unwrap();
    apply(&mut wanted, parse(left).unwrap());
    apply(&mut wanted, parse(&without).unwrap());
    assert_eq!(wanted.export(&phone, None), Err(Unfit::WithoutKey(phone)));
}
