mod bench;
mod controller;
mod endpoints;
mod kernel;
mod model;
mod refusals;

use std::collections::BTreeSet;

use ipnet::IpNet;

use self::bench::{Bench, Failing};
use self::kernel::Event;
use super::outcome::RETRY_MOST;
use super::*;
use crate::proto::command::{Field, TunnelSpec};
use crate::proto::model::{AllowedPrefix, Framing, TunnelState};

#[allow(clippy::disallowed_methods, reason = "any instant will do to count from")]
fn start() -> Instant {
    Instant::now()
}

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn policy() -> Policy {
    let accept = ["10.0.0.0/8", "192.168.0.0/16", "fc00::/7"];
    Policy {
        data_port: 5000,
        public_key: [1; 32].into(),
        accept: accept.into_iter().map(net).collect(),
        without: BTreeMap::new(),
    }
}

/// A tunnel as it is mostly asked for.
fn spec(name: &str, device: &str, addresses: &[&str], remote: &str) -> TunnelSpec {
    TunnelSpec {
        name: name.parse().unwrap(),
        device: device.parse().unwrap(),
        addresses: addresses.iter().copied().map(net).collect(),
        mtu: None,
        remote: Some(remote.parse().unwrap()),
        framing: Framing::Raw,
        keepalive: None,
        also_plain: false,
        probed: false,
        echo: None,
        allowed_prefixes: Vec::new(),
        routes: Vec::new(),
        without: BTreeSet::new(),
    }
}

fn add(tunnel: TunnelSpec) -> Command {
    Command::Add { tunnel: Box::new(tunnel), replace: false }
}

fn allowed(prefix: &str, preference: u32) -> Vec<AllowedPrefix> {
    vec![AllowedPrefix { prefix: net(prefix), preference }]
}

/// A tunnel of which every part is free.
fn free() -> TunnelSpec {
    spec("new", "dnew", &["10.30.0.1/24"], "10.20.0.9")
}

#[test]
fn the_same_in_another_order_is_no_change() {
    let tunnel = |addresses: &[&str], routes: &[&str]| TunnelSpec {
        addresses: addresses.iter().copied().map(net).collect(),
        routes: routes.iter().copied().map(net).collect(),
        ..free()
    };
    let mut state = AgentState::new(policy(), Wanted::default(), start());
    let first = add(tunnel(&["10.30.0.1/24", "10.31.0.1/24"], &["10.50.0.0/16", "10.51.0.0/16"]));
    let change = state.handle_command(&first, Owner::Local).unwrap();
    assert!(change.is_change);
    state.commit(change, start());
    for same in [
        tunnel(&["10.31.0.1/24", "10.30.0.1/24"], &["10.51.0.0/16", "10.50.0.0/16"]),
        tunnel(&[], &["10.51.0.0/16", "10.50.0.0/16"]),
    ] {
        assert!(!state.handle_command(&add(same), Owner::Local).unwrap().is_change);
    }
    let other = add(tunnel(&["10.31.0.1/24", "10.30.0.1/24"], &["10.51.0.0/16"]));
    assert_eq!(state.handle_command(&other, Owner::Local).unwrap_err().kind, ErrorKind::AlreadyExists);
}

/// A host on which others have an interface called `device`.
fn with_foreign(device: &str) -> Actual {
    let link = reconcile::Link { ours: false, up: true, mtu: 1500, addresses: BTreeSet::new() };
    Actual { links: BTreeMap::from([(device.to_owned(), link)]), ..Actual::default() }
}

#[test]
fn what_works_is_not_upset_by_what_could_work_again() {
    let mut state = AgentState::new(policy(), Wanted::default(), start());
    let commit = |state: &mut AgentState, tunnel: TunnelSpec, replace| {
        let change =
            state.handle_command(&Command::Add { tunnel: Box::new(tunnel), replace }, Owner::Local).unwrap();
        state.commit(change, start());
    };
    let faulty =
        |state: &AgentState| state.target().faults.keys().map(ToString::to_string).collect::<Vec<_>>();
    commit(&mut state, spec("old", "d0", &["10.31.0.1/24"], "10.20.0.5"), false);
    state.handle_observed(with_foreign("d0"), start());
    assert_eq!(faulty(&state), ["old"]);
    commit(&mut state, spec("new", "d1", &["10.32.0.1/24"], "10.20.0.5"), false);
    state.handle_observed(Actual::default(), start());
    assert_eq!(faulty(&state), ["old"]);
    // Nor does it stand in the way of a change.
    let changed = TunnelSpec { mtu: Some(1300.try_into().unwrap()), ..spec("new", "d1", &[], "10.20.0.5") };
    commit(&mut state, changed, true);
    assert_eq!(faulty(&state), ["old"]);
    let desired = state.desired().clone();
    let restarted = AgentState::new(policy(), desired.into(), start());
    assert_eq!(faulty(&restarted), ["old"]);
}

#[test]
fn a_path_that_is_away_for_a_moment_keeps_its_mtu() {
    let mut state = AgentState::new(policy(), Wanted::default(), start());
    let change = state.handle_command(&add(free()), Owner::Local).unwrap();
    state.commit(change, start());
    let endpoint: IpAddr = "10.20.0.9".parse().unwrap();
    let measured = |state: &mut AgentState, mtu| {
        let op = Op::MeasurePaths(vec![endpoint]);
        state.handle_op_result(op, OpResult::Measured(BTreeMap::from([(endpoint, mtu)])), start());
    };
    measured(&mut state, Ok(1400));
    let before = state.target().clone();
    measured(&mut state, Err("Network is unreachable".to_owned()));
    assert_eq!(*state.target(), before);
    let status = state.status(&"new".parse().unwrap()).unwrap();
    assert!(matches!(status.state, TunnelState::Failed(reason) if reason.contains("10.20.0.9: Network")));
    measured(&mut state, Ok(1400));
    assert_eq!(*state.target(), before);
}

#[test]
fn owners_leave_each_other_alone() {
    let mut bench = Bench::new(true);
    let a = TunnelSpec {
        allowed_prefixes: allowed("10.40.0.0/16", 0),
        ..spec("a", "d0", &["10.31.0.1/24"], "10.20.0.5")
    };
    bench.command(&add(a.clone()), Owner::Controller).unwrap();
    let on_its_device =
        TunnelSpec { allowed_prefixes: allowed("10.41.0.0/16", 0), ..spec("b", "d0", &[], "10.20.0.6") };
    let delete = Command::Delete { name: a.name.clone() };
    let commands = [
        (add(a.clone()), Field::Name, "a"),
        (Command::Add { tunnel: Box::new(a), replace: true }, Field::Name, "a"),
        (delete.clone(), Field::Name, "a"),
        (add(on_its_device), Field::Device, "d0"),
    ];
    for (command, field, value) in commands {
        let error = bench.command(&command, Owner::Local).unwrap_err();
        assert_eq!((error.kind, error.field, error.value.as_str()), (ErrorKind::Clash, field, value));
        let words = error.describe(field.name());
        assert!(words.contains("is the other owner's; change it where it was made"), "{words}");
    }
    bench.command(&delete, Owner::Controller).unwrap();
    let error = bench.command(&delete, Owner::Controller).unwrap_err();
    assert_eq!((error.kind, error.field), (ErrorKind::NotFound, Field::Name));
    let words = error.describe("name");
    assert!(words.ends_with("is no tunnel of this agent; `agent tunnels` lists their names"), "{words}");
    assert_eq!(*bench.state.desired(), Desired::default());
}

#[test]
fn a_replacement_that_breaks_another_tunnel_is_refused() {
    let mut bench = Bench::new(true);
    bench.command(&add(spec("a", "d0", &["10.31.0.1/24"], "10.20.0.5")), Owner::Local).unwrap();
    let b = spec("b", "d1", &["10.32.0.1/24"], "10.20.0.6");
    bench.command(&add(b.clone()), Owner::Local).unwrap();
    let stolen = TunnelSpec { remote: Some("10.20.0.5".parse().unwrap()), ..b.clone() };
    let error =
        bench.command(&Command::Add { tunnel: Box::new(stolen), replace: true }, Owner::Local).unwrap_err();
    assert_eq!((error.kind, error.field), (ErrorKind::Clash, Field::Remote));
    let moved = TunnelSpec { remote: Some("10.20.0.7".parse().unwrap()), ..b };
    bench.command(&Command::Add { tunnel: Box::new(moved), replace: true }, Owner::Local).unwrap();
}

#[test]
fn a_change_in_place_keeps_the_device() {
    // Without `promote_secondaries` the old address takes the new one with it.
    for promotes in [true, false] {
        let mut bench = Bench::new(promotes);
        let a = spec("a", "d0", &["10.31.0.1/24"], "10.20.0.5");
        bench.command(&add(a.clone()), Owner::Local).unwrap();
        let changed =
            TunnelSpec { addresses: vec![net("10.31.0.2/24")], routes: vec![net("10.60.0.0/16")], ..a };
        let ops =
            bench.command(&Command::Add { tunnel: Box::new(changed), replace: true }, Owner::Local).unwrap();
        let recreates = |op: &Op| matches!(op, Op::CreateDevice(_) | Op::DeleteDevice(_));
        assert!(!ops.iter().any(recreates), "{ops:?}");
        bench.check_converged();
    }
}

#[test]
fn an_address_of_others_goes_even_one_of_the_kernel_s_choice() {
    let mut bench = Bench::new(true);
    bench.command(&add(spec("a", "d0", &["10.31.0.1/24"], "10.20.0.5")), Owner::Local).unwrap();
    for address in ["fe80::1/64", "fd00:9::1/64"] {
        bench.kernel.happen(&Event::Gains("d0".to_owned(), net(address)));
        bench.state.handle_device_event(bench.now);
        let removal = Op::RemoveAddress("d0".parse().unwrap(), net(address));
        assert_eq!(bench.settle(), [Op::Observe, removal, Op::Observe]);
    }
    bench.check_converged();
}

#[test]
fn a_name_is_asked_for_again_and_a_known_address_is_kept() {
    let mut bench = Bench::new(true);
    let (one, other): (IpAddr, IpAddr) = ("10.20.0.5".parse().unwrap(), "10.20.0.6".parse().unwrap());
    let start = bench.now;
    bench.command(&add(spec("a", "d0", &["10.31.0.1/24"], "h1")), Owner::Local).unwrap();
    let endpoint = |bench: &Bench| bench.state.statuses().next().unwrap().endpoint.map(|e| e.ip());
    let answer = |bench: &mut Bench, answer: Result<Vec<IpAddr>, String>| {
        assert_eq!(std::mem::take(&mut bench.asked).into_iter().collect::<Vec<_>>(), ["h1"]);
        bench.state.handle_resolved("h1", answer, bench.now);
        bench.settle();
        assert!(bench.asked.is_empty());
    };
    /// The next time that the name is asked for, as seconds from `start`.
    fn asked_at(bench: &mut Bench, start: Instant) -> u64 {
        while bench.asked.is_empty() {
            bench.pass();
        }
        (bench.now - start).as_secs()
    }
    let fails = || Err("it times out".to_owned());
    answer(&mut bench, fails());
    assert!(matches!(bench.state.statuses().next().unwrap().state, TunnelState::Failed(reason)
        if reason.contains("it times out")));
    assert_eq!(asked_at(&mut bench, start), 5);
    answer(&mut bench, Ok(["0.0.0.0", "ff02::1", "fe80::1"].map(|text| text.parse().unwrap()).into()));
    assert_eq!(endpoint(&bench), None, "no host has these");
    assert_eq!(asked_at(&mut bench, start), 10);
    answer(&mut bench, Ok(vec![one, other]));
    assert_eq!(endpoint(&bench), Some(one));
    assert_eq!(asked_at(&mut bench, start), 70);
    answer(&mut bench, Ok(vec![other, one]));
    assert_eq!(endpoint(&bench), Some(one), "still among the answers");
    assert_eq!(asked_at(&mut bench, start), 130);
    answer(&mut bench, fails());
    assert_eq!(endpoint(&bench), Some(one), "the resolver is away");
    assert_eq!(asked_at(&mut bench, start), 190);
    answer(&mut bench, Ok(vec![other]));
    assert_eq!(endpoint(&bench), Some(other), "the peer has moved");
    assert_eq!(asked_at(&mut bench, start), 250);
    answer(&mut bench, Ok(vec!["0.0.0.0".parse().unwrap()]));
    assert_eq!(endpoint(&bench), Some(other), "the name is blocked");
}

#[test]
fn another_address_of_a_name_is_tried_once_nobody_is_heard_at_it() {
    let mut state = AgentState::new(policy(), Wanted::default(), start());
    let to = |name: &str, number: u8, port: u16| {
        spec(name, &format!("d{number}"), &[&format!("10.31.{number}.1/24")], &format!("h1:{port}"))
    };
    for tunnel in [to("a", 1, 5000), to("b", 2, 5001)] {
        let change = state.handle_command(&add(tunnel), Owner::Local).unwrap();
        state.commit(change, start());
    }
    let names =
        |names: &[&str]| names.iter().map(|name| name.parse().unwrap()).collect::<BTreeSet<TunnelName>>();
    let mut at = |silent: &[&str]| {
        state.handle_silent(names(silent), start());
        let both = ["10.20.0.5", "10.20.0.6"].map(|address| address.parse().unwrap());
        state.handle_resolved("h1", Ok(both.into()), start());
        state.target().endpoints.values().map(|endpoint| endpoint.ip().to_string()).collect::<BTreeSet<_>>()
    };
    let one = |address: &str| BTreeSet::from([address.to_owned()]);
    assert_eq!(at(&[]), one("10.20.0.5"));
    assert_eq!(at(&["a"]), one("10.20.0.5"), "the other tunnel works");
    assert_eq!(at(&["a", "b"]), one("10.20.0.6"));
    assert_eq!(at(&["a", "b"]), one("10.20.0.5"), "in turn");
    assert_eq!(at(&["b"]), one("10.20.0.5"));
}

#[test]
fn a_name_takes_nothing_from_a_tunnel_that_works() {
    let mut state = AgentState::new(policy(), Wanted::default(), start());
    let named = spec("named", "d0", &["10.31.0.1/24"], "h1");
    let other = TunnelSpec {
        routes: vec![net("10.50.0.0/16")],
        ..spec("other", "d1", &["10.32.0.1/24"], "10.20.0.5")
    };
    for tunnel in [named, other] {
        let change = state.handle_command(&add(tunnel), Owner::Local).unwrap();
        state.commit(change, start());
    }
    let faulty = |state: &mut AgentState, answer: &str| {
        state.handle_resolved("h1", Ok(vec![answer.parse().unwrap()]), start());
        state.target().faults.keys().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(faulty(&mut state, "10.20.0.6"), [""; 0]);
    for taken in ["10.20.0.5", "10.50.0.7"] {
        assert_eq!(faulty(&mut state, taken), ["named"], "{taken}");
        let mut restarted = AgentState::new(policy(), state.desired().clone().into(), start());
        assert_eq!(faulty(&mut restarted, taken), ["named"], "{taken}");
    }
    assert_eq!(faulty(&mut state, "10.20.0.6"), [""; 0]);
}

#[test]
fn a_device_that_fails_is_tried_less_and_less_until_someone_changes_it() {
    let mut bench = Bench::new(true);
    let start = bench.now;
    bench.failing = Failing::one_in(1, &Op::SetUp("d0".parse().unwrap()));
    let a = spec("a", "d0", &["10.31.0.1/24"], "10.20.0.5");
    bench.command(&add(a.clone()), Owner::Local).unwrap();
    let mut tried = vec![0];
    while tried.len() < 8 {
        let failures = bench.failable;
        bench.pass();
        if bench.failable > failures {
            tried.push((bench.now - start).as_secs());
        }
    }
    assert_eq!(tried, [0, 1, 3, 7, 15, 31, 61, 91]);
    let status = bench.state.statuses().next().unwrap();
    assert_eq!(status.state, TunnelState::Failed("it fails".to_owned()));

    bench.failing = Failing::default();
    let changed = TunnelSpec { mtu: Some(1400.try_into().unwrap()), ..a };
    bench.command(&Command::Add { tunnel: Box::new(changed), replace: true }, Owner::Local).unwrap();
    assert_eq!(bench.state.statuses().next().unwrap().state, TunnelState::Waiting(None));
}

#[test]
fn a_route_that_fails_is_tried_at_once_when_someone_changes_its_tunnel() {
    let mut bench = Bench::new(true);
    let a = spec("a", "d0", &["10.31.0.1/24"], "10.20.0.5");
    let routed = TunnelSpec { routes: vec![net("10.50.0.0/16")], ..a };
    let route = Route { device: "d0".parse().unwrap(), prefix: net("10.50.0.0/16"), mtu: None };
    bench.failing = Failing::one_in(1, &Op::AddRoute(route));
    bench.command(&add(routed.clone()), Owner::Local).unwrap();
    let state = |bench: &Bench| bench.state.statuses().next().unwrap().state;
    assert_eq!(state(&bench), TunnelState::Failed("route 10.50.0.0/16: it fails".to_owned()));
    bench.failing = Failing::default();
    let changed = TunnelSpec { remote: Some("10.20.0.6".parse().unwrap()), ..routed };
    bench.command(&Command::Add { tunnel: Box::new(changed), replace: true }, Owner::Local).unwrap();
    assert_eq!(state(&bench), TunnelState::Waiting(None));
}

/// What makes a route again is nothing that the agent is told of.
#[test]
fn a_path_that_is_away_is_soon_measured_again() {
    let mut bench = Bench::new(true);
    bench.command(&add(free()), Owner::Local).unwrap();
    assert!(bench.state.poll_timeout() > bench.now + RETRY_MOST);
    let op = Op::MeasurePaths(vec!["10.20.0.9".parse().unwrap()]);
    bench.state.handle_op_result(op, OpResult::Failed("Network is unreachable".to_owned()), bench.now);
    let status = |bench: &Bench| bench.state.statuses().next().unwrap().state;
    assert!(matches!(status(&bench), TunnelState::Failed(_)));
    let before = bench.now;
    bench.pass();
    assert_eq!(status(&bench), TunnelState::Waiting(None));
    assert!(bench.now <= before + AUDIT_TROUBLED, "{:?}", bench.now - before);
}

#[test]
fn a_device_that_fails_holds_up_no_other() {
    let mut bench = Bench::new(true);
    for (name, device, address, remote) in
        [("a", "d0", "10.31.0.1/24", "10.20.0.5"), ("b", "d1", "10.32.0.1/24", "10.20.0.6")]
    {
        bench.command(&add(spec(name, device, &[address], remote)), Owner::Local).unwrap();
    }
    bench.kernel.happen(&Event::Vanishes("d0".to_owned()));
    bench.kernel.happen(&Event::Vanishes("d1".to_owned()));
    // The first of the two fails.
    bench.failing = Failing::one_in(2, &Op::CreateDevice("d0".parse().unwrap()));
    bench.failable = 1;
    bench.state.handle_device_event(bench.now);
    bench.settle();
    assert_eq!(bench.kernel.our_devices(), BTreeSet::from(["d1"]));
    assert_eq!(bench.published.keys().map(DeviceName::as_str).collect::<Vec<_>>(), ["d1"]);
    bench.converge();
}

#[test]
fn an_mtu_above_the_path_is_kept_and_said() {
    let mut bench = Bench::new(true);
    let a =
        TunnelSpec { mtu: Some(1500.try_into().unwrap()), ..spec("a", "d0", &["10.31.0.1/24"], "10.20.0.5") };
    bench.command(&add(a.clone()), Owner::Local).unwrap();
    let notes = bench.state.notes(&a.name);
    assert_eq!(notes.len(), 1);
    assert!(notes[0].starts_with("mtu 1500 is more than the path carries (1472)"), "{notes:?}");
    assert_eq!(bench.state.status(&a.name).unwrap().device_mtu.map(u32::from), Some(1500));
    let fits = TunnelSpec { mtu: Some(1472.try_into().unwrap()), ..a.clone() };
    bench.command(&Command::Add { tunnel: Box::new(fits), replace: true }, Owner::Local).unwrap();
    assert_eq!(bench.state.notes(&a.name), [""; 0]);
}
