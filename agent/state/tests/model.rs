//! The state machine on a simulated host, with everything going wrong that can.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use proptest::collection::{btree_set, vec};
use proptest::prelude::*;
use proptest::sample::{select, subsequence};

use super::bench::{Bench, Failing, Step, device_of};
use super::kernel::Event;
use super::{net, policy, spec};
use crate::agent::reconcile::Op;
use crate::agent::state::AgentState;
use crate::proto::command::{Command, ErrorKind, TunnelSpec};
use crate::proto::model::{AllowedPrefix, Framing, Offload, Owner, TunnelName};

const DEVICES: [&str; 4] = ["d0", "d1", "d2", "d3"];
const HOSTS: [&str; 2] = ["h1", "h2"];
/// The last is on the network of a device.
const UNDERLAY: [&str; 5] = ["10.9.0.1", "10.9.0.2", "10.9.7.1", "fd09::1", "10.2.0.7"];
const PREFIXES: [&str; 5] = ["10.1.0.0/24", "10.2.0.0/24", "192.168.1.0/24", "192.168.0.0/16", "fd00:2::/64"];
/// Those of a device, by its position, and one more of each.
const ADDRESSES: [&[&str]; 6] = [
    &["10.1.0.1/24", "10.1.0.2/24"],
    &["10.2.0.1/24", "fd00:2::1/64"],
    &["fd00:3::1/64"],
    &["10.4.0.1/30"],
    &["10.1.0.2/24", "192.168.9.1/24"],
    &["10.9.7.2/24"],
];

fn name(text: &str) -> TunnelName {
    text.parse().unwrap()
}

fn some_prefixes() -> impl Strategy<Value = Vec<AllowedPrefix>> {
    let preferences = vec(0..3u32, PREFIXES.len());
    let chosen = prop_oneof![
        2 => Just(Vec::new()),
        3 => subsequence(PREFIXES.to_vec(), 1..=4),
    ];
    (chosen, preferences).prop_map(|(prefixes, preferences)| {
        let allowed = prefixes.into_iter().zip(preferences);
        allowed.map(|(prefix, preference)| AllowedPrefix { prefix: net(prefix), preference }).collect()
    })
}

fn some_routes() -> impl Strategy<Value = Vec<IpNet>> {
    prop_oneof![
        3 => Just(Vec::new()),
        3 => subsequence(PREFIXES.to_vec(), 1..=3),
        1 => Just(vec!["10.9.0.0/24"]),
    ]
    .prop_map(|routes| routes.into_iter().map(net).collect())
}

fn some_tunnel() -> impl Strategy<Value = TunnelSpec> {
    let device = 0..DEVICES.len();
    let addresses = prop_oneof![
        4 => Just(None),
        1 => Just(Some(Vec::new())),
        1 => select(ADDRESSES.to_vec()).prop_map(|set| Some(set.to_vec())),
    ];
    let remote = prop_oneof![
        4 => select(UNDERLAY.to_vec()).prop_map(str::to_owned),
        2 => select(HOSTS.to_vec()).prop_map(str::to_owned),
        1 => (select(vec!["10.9.0.1", "10.9.0.2", "h1"]), 5000..5002u16)
            .prop_map(|(host, port)| format!("{host}:{port}")),
        2 => (select(UNDERLAY.to_vec()), select(HOSTS.to_vec()))
            .prop_map(|(address, name)| format!("{address},{name}")),
        1 => (select(UNDERLAY.to_vec()), select(HOSTS.to_vec()))
            .prop_map(|(address, name)| format!("{name},{address}")),
    ];
    let mtu = select(vec![None, None, Some(600), Some(1300), Some(1472), Some(9000)]);
    let framing = select(vec![Framing::Raw, Framing::Pi]);
    let without = btree_set(select(Offload::ALL.to_vec()), 0..2);
    (0..6, device, addresses, remote, mtu, framing, some_prefixes(), some_routes(), without).prop_map(
        |(tunnel, device, addresses, remote, mtu, framing, allowed_prefixes, routes, without)| {
            let addresses = addresses.unwrap_or_else(|| ADDRESSES[device].to_vec());
            TunnelSpec {
                mtu: mtu.map(|mtu: u32| mtu.try_into().unwrap()),
                framing,
                allowed_prefixes,
                routes,
                without,
                ..spec(&format!("t{tunnel}"), DEVICES[device], &addresses, &remote)
            }
        },
    )
}

fn some_owner() -> impl Strategy<Value = Owner> {
    prop_oneof![4 => Just(Owner::Local), 1 => Just(Owner::Controller)]
}

fn some_command() -> impl Strategy<Value = Command> {
    prop_oneof![
        6 => (some_tunnel(), any::<bool>())
            .prop_map(|(tunnel, replace)| Command::Add { tunnel: Box::new(tunnel), replace }),
        1 => (0..6).prop_map(|n| Command::Delete { name: name(&format!("t{n}")) }),
    ]
}

fn some_step() -> impl Strategy<Value = Step> {
    let foreign = select(vec!["eth1", "eth2", "d0", "d3"]).prop_map(str::to_owned);
    let device = || select(DEVICES.to_vec()).prop_map(str::to_owned);
    let connected =
        select(vec!["10.200.0.1/16", "192.168.1.5/24", "10.4.0.2/30", "10.1.0.9/16"]).prop_map(net);
    let stray = select(vec!["10.77.0.1/24", "fe80::1/64", "10.1.0.77/24"]).prop_map(net);
    let event = prop_oneof![
        3 => (foreign.clone(), connected).prop_map(|(name, address)| Event::Appears(name, address)),
        3 => foreign.prop_map(Event::Vanishes),
        2 => device().prop_map(Event::Vanishes),
        1 => device().prop_map(Event::Down),
        1 => (device(), select(vec![900, 1400])).prop_map(|(name, mtu)| Event::Mtu(name, mtu)),
        1 => (device(), stray).prop_map(|(name, address)| Event::Gains(name, address)),
        1 => device().prop_map(Event::Loses),
        1 => device().prop_map(Event::Unroutes),
    ];
    let address = || select(UNDERLAY.to_vec()).prop_map(|text| text.parse::<IpAddr>().unwrap());
    let answer = prop_oneof![
        4 => vec(address(), 0..3).prop_map(Ok),
        1 => Just(Err("it times out".to_owned())),
    ];
    let path = prop_oneof![
        4 => select(vec![576, 1400, 1500, 9000]).prop_map(Ok),
        1 => Just(Err("network is unreachable".to_owned())),
    ];
    let failing = (any::<u16>(), any::<u16>(), 1..4u32, any::<bool>())
        .prop_map(|(some, few, every, late)| Failing { kinds: some & few, every, late });
    prop_oneof![
        12 => (some_command(), some_owner()).prop_map(|(command, owner)| Step::Command(command, owner)),
        4 => event.prop_map(Step::Host),
        2 => (select(HOSTS.to_vec()), answer).prop_map(|(host, answer)| Step::Names(host.to_owned(), answer)),
        3 => Just(Step::Resolve),
        1 => (address(), path).prop_map(|(address, path)| Step::Path(address, path)),
        2 => failing.prop_map(Step::Fail),
        2 => Just(Step::Fail(Failing::default())),
        3 => Just(Step::Timeout),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_the_host_becomes_what_is_wanted(
        steps in vec(some_step(), 1..60),
        promotes: bool,
    ) {
        let mut bench = Bench::new(promotes);
        for step in &steps {
            bench.step(step);
        }
        bench.converge();
        bench.remove();
    }

    #[test]
    fn commands_that_come_together_do_as_one_after_the_other(
        steps in vec(some_step(), 0..30),
        mut commands in vec((some_command(), some_owner()), 1..6),
    ) {
        let mut names = BTreeSet::new();
        commands.retain(|(command, _)| names.insert(command.tunnel().clone()));
        let [mut one_by_one, mut together] = [(); 2].map(|()| {
            let mut bench = Bench::new(true);
            steps.iter().for_each(|step| bench.step(step));
            bench
        });
        let faults = together.state.target().faults.clone();
        let commands: Vec<_> = commands.iter().map(|(command, owner)| (command, *owner)).collect();
        let (change, verdicts) = together.state.handle_commands(&commands);
        prop_assert_eq!(verdicts.len(), commands.len());
        prop_assert_eq!(change.is_change, verdicts.contains(&Ok(true)));
        let now = one_by_one.now;
        let all_accepted = commands.iter().all(|(command, owner)| {
            let change = one_by_one.state.handle_command(command, *owner);
            change.map(|change| one_by_one.state.commit(change, now)).is_ok()
        });
        together.state.commit(change, now);
        if all_accepted {
            prop_assert!(verdicts.iter().all(Result::is_ok), "{verdicts:?}");
            // What can be had on both has the same seniority. An address may be known on the one that was forgotten
            // between two commands on the other.
            let both = [&one_by_one.state, &together.state];
            let is_had = |name: &&TunnelName| both.iter().all(|state| !state.target().faults.contains_key(*name));
            let [one_by_one, together] = both.map(|state| {
                let mut desired = state.desired().clone();
                let order: Vec<_> = desired.seniority.iter().filter(is_had).cloned().collect();
                desired.seniority.sort();
                (desired, order)
            });
            prop_assert_eq!(one_by_one, together);
        }
        let is_accepted = |name: &TunnelName| {
            commands.iter().zip(&verdicts).any(|((command, _), verdict)| {
                command.tunnel() == name && *verdict == Ok(true)
            })
        };
        let deletes = commands.iter().any(|(command, _)| matches!(command, Command::Delete { .. }));
        for (name, fault) in &together.state.target().faults {
            // A deleted tunnel may have kept down an older one, which now claims what is its own.
            let is_known = deletes || faults.contains_key(name) && !is_accepted(name);
            prop_assert!(is_known || fault.kind == ErrorKind::Unavailable, "{name}: {fault:?}");
        }
        // What is changed is tried at once.
        together.held.clear();
        together.settle();
        together.converge();
    }

    #[test]
    fn a_restart_finds_what_was_wanted(steps in vec(some_step(), 1..40)) {
        let mut bench = Bench::new(true);
        for step in &steps {
            bench.step(step);
        }
        bench.converge();
        let mut after = Bench::new(true);
        after.names = bench.names.clone();
        after.paths = bench.paths.clone();
        after.kernel = bench.kernel.clone();
        for device in bench.kernel.our_devices() {
            after.kernel.happen(&Event::Vanishes(device.to_owned()));
        }
        after.state = AgentState::new(policy(), bench.state.desired().clone().into(), after.now);
        after.settle();
        after.converge();
        prop_assert_eq!(after.state.desired(), bench.state.desired());
    }

    #[test]
    fn a_change_of_one_tunnel_touches_no_other_device(which in 0..4usize, changes in vec(some_change(), 1..8)) {
        let mut bench = Bench::new(true);
        let mut tunnels = [
            spec("t0", "d0", &["10.1.0.1/24"], "10.99.0.1"),
            spec("t1", "d1", &["10.2.0.1/24"], "10.99.0.2"),
            spec("t2", "d1", &[], "10.99.0.3:6000"),
            spec("t3", "d2", &["10.4.0.1/30", "fd00:3::1/64"], "h1"),
        ];
        for (number, tunnel) in tunnels.iter_mut().enumerate() {
            let prefix = net(&format!("10.1{number}.0.0/16"));
            tunnel.allowed_prefixes = vec![AllowedPrefix { prefix, preference: 0 }];
            tunnel.routes = vec![net(&format!("10.1{number}.0.0/24"))];
            bench.command(&Command::Add { tunnel: Box::new(tunnel.clone()), replace: false }, Owner::Local).unwrap();
        }
        bench.names.insert("h1".to_owned(), Ok(vec!["10.99.0.4".parse().unwrap()]));
        bench.names.insert("h2".to_owned(), Ok(vec!["10.99.1.4".parse().unwrap()]));
        bench.paths.insert("10.99.0.3".parse().unwrap(), Ok(1400));
        bench.converge();
        let tunnel = &mut tunnels[which];
        for change in changes {
            change.apply(tunnel, which);
            let command = Command::Add { tunnel: Box::new(tunnel.clone()), replace: true };
            check_local(&bench.command(&command, Owner::Local).unwrap(), tunnel);
            for host in std::mem::take(&mut bench.asked) {
                let answer = bench.names[&host].clone();
                bench.state.handle_resolved(&host, answer, bench.now);
                check_local(&bench.settle(), tunnel);
            }
            bench.check_converged();
        }
        prop_assert!(bench.state.target().faults.is_empty());
    }
}

/// A change of one tunnel that leaves its device.
#[derive(Debug, Clone)]
enum Local {
    Mtu(Option<u32>),
    Route(u8),
    Remote(u8),
    Name,
}

impl Local {
    fn apply(&self, tunnel: &mut TunnelSpec, number: usize) {
        match self {
            Self::Mtu(mtu) => tunnel.mtu = mtu.map(|mtu| mtu.try_into().unwrap()),
            Self::Route(third) => tunnel.routes = vec![net(&format!("10.1{number}.{third}.0/24"))],
            Self::Remote(last) => tunnel.remote = Some(format!("10.99.2.{last}").parse().unwrap()),
            Self::Name => tunnel.remote = Some("h2".parse().unwrap()),
        }
    }
}

fn some_change() -> impl Strategy<Value = Local> {
    prop_oneof![
        select(vec![None, Some(1280), Some(1400), Some(9000)]).prop_map(Local::Mtu),
        (0..8u8).prop_map(Local::Route),
        (1..9u8).prop_map(Local::Remote),
        Just(Local::Name),
    ]
}

/// Every operation is about the device of `tunnel` or its routes, and no device goes or comes.
fn check_local(ops: &[Op], tunnel: &TunnelSpec) {
    let published = ops.iter().filter(|op| matches!(op, Op::Publish(_))).count();
    assert!(published <= 1, "{ops:?}");
    for op in ops {
        let device = device_of(op);
        assert!(device.is_none_or(|device| device == tunnel.device.as_str()), "{op:?} for {tunnel:?}");
        let of_device = op.device().is_none() || matches!(op, Op::SetMtu(..));
        assert!(of_device, "{op:?} for {tunnel:?}");
    }
}
