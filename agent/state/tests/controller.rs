//! The controller's part of what is wanted, beside the local one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use proptest::prelude::*;
use proptest::sample::select;

use super::bench::{Bench, Failing, key_of_mesh};
use super::kernel::Event;
use super::{add, allowed, free, net, policy, spec, start};
use crate::agent::reconcile::Op;
use crate::agent::session::Base;
use crate::agent::state::{AgentState, Wanted};
use crate::proto::command::{Command, TunnelSpec};
use crate::proto::convert::session::{DeviceSpec, device_item, tunnel_item};
use crate::proto::model::{Desired, Device, Framing, MeshName, Owner, TunnelState};
use crate::proto::session::{Generation, Item, ItemId, Items, Tag};

fn base(revision: u64, items: impl IntoIterator<Item = Item>) -> Base {
    Base {
        store_id: "s1".to_owned(),
        generation: Generation { incarnation: 1, revision },
        timeline: String::new(),
        items: Items::new(items.into_iter().map(Arc::new)),
        consents_after: None,
        held: Items::default(),
    }
}

fn id(text: &str) -> ItemId {
    text.parse().unwrap()
}

/// A mesh's device, and tunnels of it to hosts by number.
fn mesh(hosts: impl IntoIterator<Item = u8>) -> Vec<Item> {
    let device =
        device_item(&"m".parse().unwrap(), &DeviceSpec { addresses: vec![net("10.60.0.1/24")], key: None });
    std::iter::once(device).chain(hosts.into_iter().map(|host| tunnel_item(&peer(host)))).collect()
}

fn peer(host: u8) -> TunnelSpec {
    TunnelSpec {
        allowed_prefixes: allowed(&format!("10.60.0.{host}/32"), 0),
        ..spec(&format!("m.n{host}"), "m", &[], &format!("10.20.0.{host}:5000"))
    }
}

/// Takes in what the controller wants, as the runtime does.
fn follow(state: &mut AgentState, base: Base) {
    let change = state.handle_wanted(Some(base));
    state.commit(change, start());
}

fn names(state: &AgentState) -> Vec<&str> {
    state.desired().tunnels.keys().map(|name| name.as_str()).collect()
}

#[test]
fn the_encrypted_tunnels_of_a_second_agent_of_a_name_rest() {
    let device = DeviceSpec { addresses: vec![net("10.60.0.1/24")], key: None };
    let sealed = |host: u8| TunnelSpec { framing: Framing::Wireguard([host; 32].into()), ..peer(host) };
    let mut items = vec![device_item(&"m".parse().unwrap(), &device)];
    items.extend([tunnel_item(&sealed(2)), tunnel_item(&peer(3))]);
    let mut bench = Bench::new(true);
    follow(&mut bench.state, base(1, items));
    let own = TunnelSpec { framing: Framing::Wireguard([9; 32].into()), ..free() };
    bench.command(&add(own), Owner::Local).unwrap();
    bench.settle();
    let passing = |bench: &Bench| {
        let devices = bench.state.target().forwarding.values();
        let names = devices.flat_map(|device| device.tunnels.keys());
        names.map(|name| name.as_str().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(passing(&bench), ["new", "m.n2", "m.n3"]);
    let before = bench.state.target().devices.clone();
    bench.state.handle_second(true, bench.now);
    bench.settle();
    assert_eq!(passing(&bench), ["new", "m.n3"], "what is its own, and what has no key");
    assert_eq!(bench.state.target().devices, before);
    let state = bench.state.status(&"m.n2".parse().unwrap()).unwrap().state;
    let TunnelState::Waiting(Some(reason)) = &state else { panic!("{state:?}") };
    assert!(reason.contains("another agent of this name"), "{reason}");
    assert!(bench.state.failures().is_empty());
    bench.state.handle_second(false, bench.now);
    bench.settle();
    assert_eq!(passing(&bench), ["new", "m.n2", "m.n3"]);
}

#[test]
fn what_others_do_is_told_and_put_right_but_not_for_ever() {
    let mut bench = Bench::new(true);
    let change = bench.state.handle_wanted(Some(base(1, mesh([2]))));
    bench.state.commit(change, bench.now);
    bench.converge();
    let repairs = |state: &mut AgentState| std::iter::from_fn(|| state.poll_repair()).collect::<Vec<_>>();
    assert_eq!(repairs(&mut bench.state), [], "it was this agent's own doing");
    let meddle = |bench: &mut Bench| {
        bench.kernel.happen(&Event::Mtu("m".to_owned(), 1300));
        bench.state.handle_observed(bench.kernel.actual(), bench.now);
    };
    for _ in 0..6 {
        meddle(&mut bench);
        assert_eq!(bench.state.unmet()[&id("device m")], "has MTU 1300 instead of 1472");
        bench.settle();
        assert_eq!(bench.state.unmet(), BTreeMap::new());
        let told = repairs(&mut bench.state);
        let told: Vec<_> = told.iter().map(|repair| (repair.device.as_str(), &*repair.what)).collect();
        assert_eq!(told, [("m", "set its MTU to 1300")]);
    }
    meddle(&mut bench);
    assert_eq!(repairs(&mut bench.state), []);
    let failures = bench.state.failures();
    assert!(
        failures[&id("tunnel m.n2")].contains("again and again: they set its MTU to 1300"),
        "{failures:?}"
    );
    let ops = bench.settle();
    assert!(!ops.iter().any(|op| op.device().is_some()), "they have it for a while: {ops:?}");
    bench.converge();
    assert_eq!(bench.state.failures(), BTreeMap::new());
}

#[test]
fn what_the_kernel_lacks_or_does_not_tell_is_not_acknowledged_as_had() {
    let mut bench = Bench::new(true);
    let allowed_prefixes = [allowed("10.60.0.2/32", 0), allowed("10.61.0.0/24", 0)].concat();
    let routed = TunnelSpec { routes: vec![net("10.61.0.0/24")], allowed_prefixes, ..peer(2) };
    let wanted = mesh([]).into_iter().chain([tunnel_item(&routed)]);
    let change = bench.state.handle_wanted(Some(base(1, wanted)));
    bench.state.commit(change, bench.now);
    bench.converge();
    let mut actual = bench.kernel.actual();
    let route = actual.routes.pop_first().unwrap();
    bench.state.handle_observed(actual, bench.now);
    let mtu = route.mtu.map_or_else(String::new, |mtu| format!(" with MTU {mtu}"));
    assert_eq!(bench.state.unmet()[&id("device m")], format!("has no route to {}{mtu}", route.prefix));
    bench.converge();

    bench.failing = Failing::one_in(1, &Op::Observe);
    bench.state.handle_device_event(bench.now);
    bench.settle();
    let unmet = bench.state.unmet();
    assert!(unmet[&id("device m")].contains("cannot be read: it fails"), "{unmet:?}");
    bench.converge();
}

#[test]
fn what_a_controller_wants_comes_up_beside_what_is_local() {
    let mut bench = Bench::new(true);
    bench.command(&add(free()), Owner::Local).unwrap();
    let change = bench.state.handle_wanted(Some(base(1, mesh([2, 3]))));
    assert!(change.is_change);
    bench.state.commit(change, bench.now);
    bench.converge();
    assert_eq!(names(&bench.state), ["m.n2", "m.n3", "new"]);
    assert_eq!(bench.state.failures(), BTreeMap::new());
    assert_eq!(bench.published.keys().map(|device| device.as_str()).collect::<Vec<_>>(), ["dnew", "m"]);
    let change = bench.state.handle_wanted(Some(base(2, mesh([3]))));
    bench.state.commit(change, bench.now);
    bench.converge();
    assert_eq!(names(&bench.state), ["m.n3", "new"]);
    // The same again is nothing new.
    assert!(!bench.state.handle_wanted(Some(base(2, mesh([3])))).is_change);
    let change = bench.state.handle_wanted(None);
    bench.state.commit(change, bench.now);
    bench.converge();
    assert_eq!((names(&bench.state), bench.state.base()), (vec!["new"], None));
}

#[test]
fn a_mesh_has_its_key_before_its_tunnels_and_until_they_are_gone() {
    let mut bench = Bench::new(true);
    let mesh: MeshName = "m".parse().unwrap();
    let keyed = DeviceSpec { addresses: vec![net("10.60.0.1/24")], key: Some(mesh.clone()) };
    let device = || device_item(&"m".parse().unwrap(), &keyed);
    let take_in = |bench: &mut Bench, base| {
        let change = bench.state.handle_wanted(base);
        bench.state.commit(change, bench.now);
        bench.converge();
    };
    take_in(&mut bench, Some(base(1, [device()])));
    assert_eq!(bench.state.keys(), BTreeMap::from([(mesh.clone(), key_of_mesh(&mesh))]));
    assert_eq!(names(&bench.state), [""; 0]);
    let encrypted = |host: u8| TunnelSpec { framing: Framing::Wireguard([host; 32].into()), ..peer(host) };
    // The one comes first, and where it is shows then; the other is at the same place as a local, plain one.
    let absent = TunnelSpec { remote: None, ..encrypted(2) };
    let plain = TunnelSpec { remote: peer(3).remote, ..free() };
    bench.command(&add(plain), Owner::Local).unwrap();
    take_in(&mut bench, Some(base(2, [device(), tunnel_item(&absent), tunnel_item(&encrypted(3))])));
    assert_eq!(bench.state.failures(), BTreeMap::new());
    let forwarding = &bench.published[&"m".parse().unwrap()];
    assert_eq!(forwarding.key, Some(mesh.clone()));
    let endpoints: Vec<_> = forwarding.tunnels.values().map(|tunnel| tunnel.endpoint).collect();
    assert_eq!(endpoints, [None, Some("10.20.0.3:5000".parse().unwrap())]);
    // 1,500 bytes less 40, 8 and 32 while it may be of either family.
    let mtu = |bench: &Bench| bench.published[&"m".parse().unwrap()].tunnels[&absent.name].mtu.get();
    assert_eq!(mtu(&bench), 1420);
    let roamed = BTreeMap::from([(absent.name.clone(), "10.20.0.8".parse().unwrap())]);
    bench.paths.insert("10.20.0.8".parse().unwrap(), Ok(1400));
    bench.state.handle_roamed(roamed, bench.now);
    bench.converge();
    assert_eq!(mtu(&bench), 1340, "what its path carries");
    assert_eq!(bench.published[&"m".parse().unwrap()].tunnels[&absent.name].endpoint, None);

    // A key cannot be had, and then it can.
    let other: MeshName = "o".parse().unwrap();
    bench.failing = Failing::one_in(1, &Op::OpenKey(other.clone()));
    let spec = DeviceSpec { addresses: vec![net("10.61.0.1/24")], key: Some(other.clone()) };
    let second = || device_item(&"o".parse().unwrap(), &spec);
    let in_it = TunnelSpec {
        name: "o.n4".parse().unwrap(),
        device: "o".parse().unwrap(),
        allowed_prefixes: allowed("10.61.0.4/32", 0),
        ..encrypted(4)
    };
    let items = || [device(), tunnel_item(&encrypted(3)), second(), tunnel_item(&in_it)];
    let change = bench.state.handle_wanted(Some(base(3, items())));
    bench.state.commit(change, bench.now);
    bench.settle();
    assert!(!bench.state.keys().contains_key(&other));
    let failure = bench.state.failures().remove(&id("tunnel o.n4")).unwrap();
    assert!(failure.contains("has no key for mesh o (it fails)"), "{failure}");
    bench.failing = Failing::default();
    bench.converge();
    assert_eq!(bench.state.failures(), BTreeMap::new());

    // The bench sees to it that nothing uses a key that goes.
    take_in(&mut bench, None);
    assert_eq!((bench.state.keys(), &bench.keys), (BTreeMap::new(), &BTreeSet::new()));
}

#[test]
fn nothing_of_a_mesh_that_is_encrypted_goes_in_clear_whatever_is_kept_of_before() {
    let mut state = AgentState::new(policy(), Wanted::default(), start());
    follow(&mut state, base(1, mesh([2, 3, 4, 5])));
    assert_eq!(names(&state).len(), 4);
    let keyed = DeviceSpec { addresses: vec![net("10.60.0.1/24")], key: Some("m".parse().unwrap()) };
    let device = device_item(&"m".parse().unwrap(), &keyed);
    let encrypted = TunnelSpec { framing: Framing::Wireguard([2; 32].into()), ..peer(2) };
    let held = Items::new([3, 4, 5].map(|host| Arc::new(tunnel_item(&peer(host)))));
    follow(&mut state, Base { held, ..base(2, [device, tunnel_item(&encrypted)]) });
    assert_eq!(names(&state), ["m.n2"]);
    let failures = state.failures();
    assert_eq!(failures.len(), 3, "{failures:?}");
    assert!(failures.values().all(|why| why.contains("it is not encrypted, and mesh m is")), "{failures:?}");
}

#[test]
fn what_cannot_be_meant_is_a_failure_and_the_rest_applies() {
    let later = |mut item: Item, field: &[u8]| {
        item.content.extend_from_slice(field);
        Item { tag: Tag::of(&item.content), ..item }
    };
    let mut items = mesh([2]);
    // Field 100, a text: of a later release.
    items.push(later(tunnel_item(&peer(3)), &[0xa2, 0x06, 1, b'x']));
    // A text that is longer than what follows.
    items.push(later(tunnel_item(&peer(4)), &[0xa2, 0x06, 9, b'x']));
    items.push(tunnel_item(&TunnelSpec { device: "gone".parse().unwrap(), ..peer(5) }));
    let mut state = AgentState::new(policy(), Wanted::default(), start());
    follow(&mut state, base(1, items));
    assert_eq!(names(&state), ["m.n2", "m.n3"]);
    let failures = state.failures();
    assert_eq!(failures.keys().cloned().collect::<Vec<_>>(), [id("tunnel m.n4"), id("tunnel m.n5")]);
    assert!(failures[&id("tunnel m.n4")].contains("cannot be read"), "{failures:?}");
    assert!(failures[&id("tunnel m.n5")].contains("device gone is not among"), "{failures:?}");
}

#[test]
fn a_clash_with_the_host_is_a_failure_of_that_tunnel() {
    let mut state = AgentState::new(policy(), Wanted::default(), start());
    let abroad = TunnelSpec { allowed_prefixes: allowed("192.0.2.0/24", 0), ..peer(3) };
    follow(&mut state, base(1, mesh([2]).into_iter().chain([tunnel_item(&abroad)])));
    let failures = state.failures();
    assert_eq!(failures.keys().cloned().collect::<Vec<_>>(), [id("tunnel m.n3")]);
    assert!(failures[&id("tunnel m.n3")].contains("--accept-prefix"), "{failures:?}");
}

#[test]
fn a_local_name_stays_local_until_it_is_free() {
    for (local, failing) in [
        (TunnelSpec { name: peer(2).name, ..free() }, vec!["tunnel m.n2"]),
        (TunnelSpec { device: peer(2).device, ..free() }, vec!["device m", "tunnel m.n2", "tunnel m.n3"]),
    ] {
        let mut state = AgentState::new(policy(), Wanted::default(), start());
        let name = local.name.clone();
        let change = state.handle_command(&add(local), Owner::Local).unwrap();
        state.commit(change, start());
        follow(&mut state, base(1, mesh([2, 3])));
        let failures = state.failures();
        assert_eq!(failures.keys().map(ToString::to_string).collect::<Vec<_>>(), failing);
        assert!(failures.values().all(|why| why.contains("is taken by a local tunnel")), "{failures:?}");
        assert_eq!(state.desired().tunnels[&name].owner, Owner::Local);
        let notes = state.notes(&name);
        assert!(notes.iter().any(|note| note.contains("the controller wants a")), "{notes:?}");

        let change = state.handle_command(&Command::Delete { name }, Owner::Local).unwrap();
        assert!(change.is_change);
        state.commit(change, start());
        assert_eq!((names(&state), state.failures()), (vec!["m.n2", "m.n3"], BTreeMap::new()));
    }
}

#[test]
fn a_local_command_does_not_touch_what_is_the_controllers() {
    let mut state = AgentState::new(policy(), Wanted::default(), start());
    follow(&mut state, base(1, mesh([2, 3])));
    let delete = Command::Delete { name: peer(2).name };
    for command in [
        delete,
        Command::Add { tunnel: Box::new(TunnelSpec { name: peer(2).name, ..free() }), replace: true },
        Command::Add { tunnel: Box::new(TunnelSpec { device: peer(2).device, ..free() }), replace: true },
    ] {
        let error = state.handle_command(&command, Owner::Local).unwrap_err();
        assert!(error.fault.problem.contains("other owner's"), "{error:?}");
    }
}

#[test]
fn unchanged_tunnels_are_the_seniors() {
    let mut state = AgentState::new(policy(), Wanted::default(), start());
    follow(&mut state, base(1, mesh([3, 5])));
    follow(&mut state, base(2, mesh([2, 3, 4, 5])));
    let order =
        |state: &AgentState| state.desired().seniority.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(order(&state), ["m.n3", "m.n5", "m.n2", "m.n4"]);
    // Another tunnel with the remote of one that works is the one at fault, whatever their names.
    let changed = TunnelSpec { remote: peer(5).remote, ..peer(3) };
    let items = mesh([2, 4, 5]).into_iter().chain([tunnel_item(&changed)]);
    follow(&mut state, base(3, items));
    assert_eq!(order(&state), ["m.n5", "m.n2", "m.n4", "m.n3"]);
    assert_eq!(state.failures().keys().cloned().collect::<Vec<_>>(), [id("tunnel m.n3")]);
    // And what it would have upset comes before it, however it changes.
    follow(&mut state, base(4, mesh([2, 3, 4, 5])));
    assert_eq!((order(&state).last().map(String::as_str), state.failures()), (Some("m.n3"), BTreeMap::new()));
}

/// What clashed stays at fault, and does not take over what the one that works had.
#[test]
fn a_change_of_a_tunnel_that_works_does_not_make_it_yield_to_one_at_fault() {
    let mut state = AgentState::new(policy(), Wanted::default(), start());
    let rival = |mtu: u32| {
        let rival = TunnelSpec { remote: peer(2).remote, ..peer(3) };
        let works = TunnelSpec { mtu: Some(mtu.try_into().unwrap()), ..peer(2) };
        mesh([]).into_iter().chain([tunnel_item(&works), tunnel_item(&rival)])
    };
    for (revision, mtu) in (1..).zip([1400, 1300, 1200]) {
        follow(&mut state, base(revision, rival(mtu)));
        assert_eq!(state.failures().keys().cloned().collect::<Vec<_>>(), [id("tunnel m.n3")], "{mtu}");
    }
}

#[test]
fn what_was_kept_is_understood_anew_at_start() {
    let mut state = AgentState::new(policy(), Wanted::default(), start());
    let change = state.handle_command(&add(free()), Owner::Local).unwrap();
    state.commit(change, start());
    follow(&mut state, base(1, mesh([2, 3])));
    // As a release would have kept it that understands less.
    let mut less = Wanted { desired: state.desired().clone(), controller: state.base().cloned() };
    less.desired.remove(&peer(2).name);
    let restarted = AgentState::new(policy(), less, start());
    assert_eq!(names(&restarted), ["m.n2", "m.n3", "new"]);
    assert!(restarted.desired().is_consistent());
}

#[test]
fn no_network_covers_the_controller() {
    let mut state = AgentState::new(policy(), Wanted::default(), start());
    state.handle_controllers(BTreeSet::from(["10.60.0.77".parse().unwrap()]), start());
    follow(&mut state, base(1, mesh([2])));
    let failed = |state: &AgentState| state.failures().remove(&id("tunnel m.n2")).unwrap_or_default();
    assert!(
        failed(&state).contains("covers 10.60.0.77, the address of the controller"),
        "{}",
        failed(&state)
    );
    let error = state
        .handle_command(&add(TunnelSpec { routes: vec![net("10.60.0.76/30")], ..free() }), Owner::Local)
        .unwrap_err();
    assert!(error.fault.problem.contains("address of the controller"), "{error:?}");
    state.handle_controllers(BTreeSet::from(["192.0.2.77".parse().unwrap()]), start());
    assert_eq!(failed(&state), "");
}

#[test]
fn no_address_of_a_controller_takes_a_working_tunnel_down() {
    let mut state = AgentState::new(policy(), Wanted::default(), start());
    follow(&mut state, base(1, mesh([2])));
    assert_eq!(state.failures(), BTreeMap::new());
    state.handle_controllers(["10.60.0.77", "10.99.0.77"].map(|a| a.parse().unwrap()).into(), start());
    assert_eq!(state.failures(), BTreeMap::new());
    // The other one is heeded.
    let error = state
        .handle_command(&add(TunnelSpec { routes: vec![net("10.99.0.76/30")], ..free() }), Owner::Local)
        .unwrap_err();
    assert!(error.fault.problem.contains("address of the controller"), "{error:?}");
}

/// What may happen to both parts.
#[derive(Debug, Clone)]
enum Step {
    Follow(Vec<u8>, Vec<u8>),
    Add(Box<TunnelSpec>, bool),
    Delete(u8),
    Leave,
}

fn step() -> impl Strategy<Value = Step> {
    let hosts = || prop::collection::vec(2..8_u8, 0..6);
    let local = || {
        (2..8_u8, select(vec!["m", "d1", "d2"]), 2..30_u8).prop_map(|(name, device, remote)| TunnelSpec {
            allowed_prefixes: allowed(&format!("10.61.0.{name}/32"), 0),
            ..spec(&format!("m.n{name}"), device, &["10.61.0.1/24"], &format!("10.20.0.{remote}:5000"))
        })
    };
    prop_oneof![
        3 => (hosts(), hosts()).prop_map(|(hosts, garbled)| Step::Follow(hosts, garbled)),
        3 => (local(), any::<bool>()).prop_map(|(tunnel, replace)| Step::Add(Box::new(tunnel), replace)),
        3 => (2..8_u8).prop_map(Step::Delete),
        1 => Just(Step::Leave),
    ]
}

fn part(desired: &Desired, owner: Owner) -> Desired {
    let mut part = desired.clone();
    part.retain(|_, tunnel| tunnel.owner == owner);
    part
}

proptest! {
    /// Whatever happens to either part the other stays, and every item of the controller's is there or a failure.
    #[test]
    fn each_owner_keeps_its_own(steps in prop::collection::vec(step(), 0..24)) {
        let mut state = AgentState::new(policy(), Wanted::default(), start());
        for (revision, step) in (1..).zip(steps) {
            let local = part(state.desired(), Owner::Local);
            match step {
                Step::Follow(hosts, garbled) => {
                    let mut items = mesh(hosts);
                    items.extend(garbled.into_iter().map(|host| {
                        Item { content: vec![0xff], ..tunnel_item(&peer(host)) }
                    }));
                    follow(&mut state, base(revision, items));
                    prop_assert_eq!(part(state.desired(), Owner::Local), local);
                }
                Step::Leave => {
                    let change = state.handle_wanted(None);
                    state.commit(change, start());
                    prop_assert_eq!(state.desired(), &local);
                }
                Step::Add(tunnel, replace) => {
                    if let Ok(change) = state.handle_command(&Command::Add { tunnel, replace }, Owner::Local) {
                        state.commit(change, start());
                    }
                }
                Step::Delete(host) => {
                    let command = Command::Delete { name: peer(host).name };
                    if let Ok(change) = state.handle_command(&command, Owner::Local) {
                        state.commit(change, start());
                    }
                }
            }
            prop_assert!(state.desired().is_consistent());
            let failures = state.failures();
            let device = Device { addresses: vec![net("10.60.0.1/24")], key: None, owner: Owner::Controller };
            let mut expected = 0;
            for item in state.base().iter().flat_map(|base| base.items.iter()) {
                let ItemId::Tunnel(name) = &item.id else { continue };
                let tunnel = state.desired().tunnels.get(name).filter(|tunnel| tunnel.owner == Owner::Controller);
                match tunnel {
                    Some(tunnel) => {
                        expected += 1;
                        prop_assert_eq!(&state.desired().devices[&tunnel.device], &device);
                        let status = state.status(name).unwrap();
                        let failed = matches!(status.state, TunnelState::Failed(_));
                        prop_assert_eq!(failed, failures.contains_key(&item.id));
                    }
                    None => prop_assert!(failures.contains_key(&item.id), "{:?} is nowhere", item.id),
                }
            }
            prop_assert_eq!(part(state.desired(), Owner::Controller).tunnels.len(), expected);
            // A restart changes nothing.
            let kept = Wanted { desired: state.desired().clone(), controller: state.base().cloned() };
            let restarted = AgentState::new(policy(), kept, start());
            prop_assert_eq!(restarted.desired(), state.desired());
        }
    }
}
