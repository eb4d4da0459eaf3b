//! What a controller is told of tunnels.

use super::*;

fn report(state: TunnelState, age: Option<u64>) -> TunnelReport {
    TunnelReport {
        device: "m".parse().unwrap(),
        owner: Owner::Controller,
        state,
        endpoint: "192.0.2.1:5000".to_owned(),
        preferred: String::new(),
        last_received_ms: age,
        keyed: false,
    }
}

#[test]
fn tunnels_are_told_whole_then_as_they_change() {
    let name = |n: u64| -> TunnelName { format!("m.n{n}").parse().unwrap() };
    let waiting = || report(TunnelState::Waiting(None), None);
    let passing = |age| report(TunnelState::Passing, Some(age));
    let mut bench = Bench::new(1, None, 1);
    assert!(!bench.session.wants_tunnels());
    bench.connect();
    assert!(bench.session.wants_tunnels());
    let first = BTreeMap::from([(name(1), waiting()), (name(2), waiting())]);
    bench.session.handle_tunnels(first.clone());
    let whole = |tunnels: &BTreeMap<_, _>, request| {
        AgentMessage::Report(Report { tunnels: tunnels.clone(), whole: true, request, ..Report::default() })
    };
    assert_eq!(bench.sent(), [whole(&first, None)]);
    assert!(!bench.session.wants_tunnels(), "not in step yet");
    bench.push(snapshot(1, &items(1..=2, 0), 0));
    assert!(bench.session.wants_tunnels());
    bench.session.handle_tunnels(first);
    assert_eq!(bench.sent(), []);

    let second = BTreeMap::from([(name(2), passing(3))]);
    bench.session.handle_tunnels(second.clone());
    let change = Report { tunnels: second.clone(), gone: BTreeSet::from([name(1)]), ..Report::default() };
    assert_eq!(bench.sent(), [AgentMessage::Report(change)]);
    let aged = BTreeMap::from([(name(2), passing(5000))]);
    bench.session.handle_tunnels(aged.clone());
    assert_eq!(bench.sent(), []);
    bench.say(ControllerMessage::ReportRequest(77));
    bench.session.handle_tunnels(aged.clone());
    assert_eq!(bench.sent(), [whole(&aged, Some(77))]);
    bench.session.handle_tunnels(aged.clone());
    assert_eq!(bench.sent(), []);

    // What the host forwards is told once, and again when it changes.
    for ipv4 in [false, true] {
        let forwarding = Forwarding { ipv4, ipv6: true };
        bench.session.handle_forwarding(forwarding);
        bench.session.handle_tunnels(aged.clone());
        let change = Report { forwarding: Some(forwarding), ..Report::default() };
        assert_eq!(bench.sent(), [AgentMessage::Report(change)]);
        bench.session.handle_forwarding(forwarding);
        bench.session.handle_tunnels(aged.clone());
        assert_eq!(bench.sent(), []);
    }
    bench.say(ControllerMessage::ReportRequest(78));
    bench.session.handle_tunnels(aged.clone());
    let forwarding = Some(Forwarding { ipv4: true, ipv6: true });
    let all = Report { tunnels: aged, whole: true, request: Some(78), forwarding, ..Report::default() };
    assert_eq!(bench.sent(), [AgentMessage::Report(all)]);
}

#[test]
fn a_tunnel_that_is_another_in_any_way_is_told() {
    let name: TunnelName = "m.n1".parse().unwrap();
    let mut bench = Bench::synced(&items(1..=1, 0));
    let mut tunnel = report(TunnelState::Waiting(None), None);
    bench.session.handle_tunnels(BTreeMap::from([(name.clone(), tunnel.clone())]));
    bench.sent();
    for change in [
        |tunnel: &mut TunnelReport| tunnel.endpoint = "192.0.2.2:5000".to_owned(),
        |tunnel: &mut TunnelReport| tunnel.device = "d".parse().unwrap(),
        |tunnel: &mut TunnelReport| tunnel.owner = Owner::Local,
        |tunnel: &mut TunnelReport| tunnel.state = TunnelState::Failed("no route".to_owned()),
    ] {
        change(&mut tunnel);
        let tunnels = BTreeMap::from([(name.clone(), tunnel.clone())]);
        bench.session.handle_tunnels(tunnels.clone());
        assert_eq!(bench.sent(), [AgentMessage::Report(Report { tunnels, ..Report::default() })]);
    }
}

#[test]
fn failures_that_change_are_acknowledged_again() {
    let failures = |why: &str| BTreeMap::from([("tunnel m.n1".parse().unwrap(), why.to_owned())]);
    let wanted = items(1..=2, 0);
    let mut bench = Bench::welcome();
    bench.session.handle_failures(failures("a"));
    assert_eq!(bench.sent(), [], "nothing is acknowledged yet");
    bench.push(snapshot(1, &wanted, 0));
    for (now, again) in [(failures("a"), true), (failures("a"), false), (BTreeMap::new(), true)] {
        bench.session.handle_failures(now.clone());
        let ack = Ack { generation: generation(1), failures: now, removals_held: BTreeSet::new() };
        let expected = if again { vec![AgentMessage::Ack(ack)] } else { vec![] };
        assert_eq!(bench.sent(), expected);
    }
    // While it is not in step, what it would say is of what is no longer wanted.
    bench.say(delta((5, &wanted), (6, &wanted), 0));
    bench.effects();
    bench.session.handle_failures(failures("b"));
    assert_eq!(bench.sent(), []);
}
