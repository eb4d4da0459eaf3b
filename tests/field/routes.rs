//! Routes that would lead tunnels into themselves.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use tunmesh::proto::command::TunnelSpec;
use tunmesh::proto::convert::session::{DeviceSpec, device_item, tunnel_item};
use tunmesh::proto::model::{AllowedPrefix, Framing};
use tunmesh::proto::session::{
    AgentMessage, ControllerMessage, Generation, Heartbeat, Items, Removals, SnapshotChunk, SnapshotEnd,
};

use crate::lab::{
    Agent, Controller, Host, Pinger, SOON, Scripted, Way, grpcurl, legacy_add, ping_ok, time, wait_live,
    wait_until,
};

const ADD: &str = "tunmesh.v1.TunnelService/AddTunnel";
/// Where the controller is, behind the router between the two hosts.
const CONTROLLER: &str = "172.100.3.3:7443";
/// The underlay is among what agents accept: nothing but what it covers speaks against a route.
const ACCEPTED: [&str; 2] = ["--accept-prefix", "10.0.0.0/8,172.100.0.0/16,192.168.0.0/16"];

/// Two hosts with a router between them, and one behind it for the controller.
fn way() -> (Way, Host) {
    let way = Way::new();
    let brain = way.lab.host("c");
    way.lab.link(&brain, "172.100.3.3/24", &way.router, "172.100.3.254/24");
    brain.route("172.100.0.0/16", "172.100.3.254");
    (way, brain)
}

/// Nothing goes on on the underlay but what a tunnel that nobody uses and a session cost, over five seconds.
fn is_quiet(way: &Way) {
    const TIME: Duration = Duration::from_secs(5);
    /// A second; far above that, and far below what runs inside itself.
    const MOST: u64 = 100;
    let packets = || {
        [0, 1].map(|n| {
            let device = way.host(n).device_to(&way.router);
            let stats = way.host(n).ip_json(["-s", "link", "show", "dev", &device])[0]["stats64"].clone();
            ["rx", "tx"].map(|way| stats[way]["packets"].as_u64().unwrap()).iter().sum::<u64>()
        })
    };
    let before = packets();
    thread::sleep(TIME);
    let after = packets();
    let rates = [0, 1].map(|n| (after[n] - before[n]) / TIME.as_secs());
    assert!(rates.iter().all(|rate| *rate < MOST), "{rates:?} packets a second");
}

/// The routes over tunnels.
fn routes(host: &Host) -> Value {
    host.ip_json(["route", "show", "proto", "152"])
}

#[test]
fn case_02_a_route_that_covers_an_endpoint_or_the_controller_is_refused_by_everybody() {
    let (way, brain) = way();
    let controller = Controller::start(&brain, &[]);
    let agents =
        [("n1", 0), ("n2", 1)].map(|(name, n)| Agent::join(way.host(n), CONTROLLER, name, &ACCEPTED));
    wait_live(&controller, &["n1", "n2"].map(str::to_owned));
    let mesh = |routes: &str| {
        format!(
            "mesh: m\noverlay: 10.9.0.0/24\nsecurity: plain\nnodes:\n  n1: {{address: 10.9.0.1}}\n  \
             n2: {{address: 10.9.0.2, routes: [{routes}]}}\n"
        )
    };
    controller.apply_with(&mesh("192.168.2.0/24"), &["--wait"]).unwrap();
    let a = way.host(0);
    ping_ok(a, "10.9.0.2");
    let before = routes(a);
    let generation = controller.generation();
    let in_step_since = || time(&agents[0].session()["since"]).as_secs_f64();
    let session = in_step_since();

    // In a mesh file.
    for (route, covered) in [
        ("172.100.2.0/24", "172.100.2.2, the endpoint of n2"),
        ("172.100.2.2/32", "172.100.2.2, the endpoint of n2"),
        ("172.100.3.0/24", "172.100.3.3, an address of the controller"),
        ("172.100.0.0/16", "172.100.1.1, the endpoint of n1"),
    ] {
        let refused = controller.apply(&mesh(route)).unwrap_err();
        let words = format!("covers {covered}: tunnels would run inside themselves");
        assert!(refused.stderr.contains(&words) && refused.stderr.contains(route), "{refused}");
    }
    // By gRPC, and by datagrams of 2015.
    for (route, covered) in [
        ("172.100.2.0/24", "172.100.2.2, the endpoint of tunnel m.n2"),
        ("172.100.3.0/24", "172.100.3.3, the address of the controller"),
        ("172.100.9.8/29", "172.100.9.9, the tunnel's own endpoint"),
    ] {
        let tunnel = json!({"tunnel": {
            "name": "mine", "addresses": ["10.8.0.1/30"], "remote": "172.100.9.9", "framing": "RAW", "routes": [route],
        }});
        let refused = grpcurl(&agents[0], ADD, &tunnel).unwrap_err();
        for words in ["tunnel.routes[0]", route, &format!("covers {covered}"), "choose a network without it"]
        {
            assert!(refused.message.contains(words), "{words}: {refused:?}");
        }
    }
    for (address, covered) in [("172.100.2.1", "covers 172.100.2.2"), ("172.100.3.2", "covers 172.100.3.3")] {
        let reply = legacy_add(a, "mine", address, "172.100.9.9", 1400);
        assert!(reply["mine"].as_str().unwrap().contains(covered), "{reply}");
    }

    assert_eq!(routes(a), before);
    assert_eq!(controller.generation(), generation);
    is_quiet(&way);
    assert_eq!(agents[0].session()["state"], "SYNCED");
    assert!((in_step_since() - session).abs() < 0.1, "it is another session");
    ping_ok(a, "10.9.0.2");
    ping_ok(a, "172.100.2.2");
}

/// What no controller of ours sends.
#[test]
fn case_02_a_route_that_a_controller_pushes_is_refused_and_its_stream_goes_on() {
    let (way, brain) = way();
    let a = way.host(0);
    let controller = Scripted::start(&brain, CONTROLLER.parse().unwrap());
    let agent = Agent::join(a, CONTROLLER, "n1", &ACCEPTED);
    let other = Agent::start(way.host(1), &[]);
    grpcurl(
        &other,
        ADD,
        &json!({"tunnel": {"name": "n1", "addresses": ["10.9.0.2/24"], "remote": Way::ENDS[0], "framing": "RAW"}}),
    )
    .unwrap();
    let tunnel = |name: &str, remote: &str, prefixes: &[&str]| TunnelSpec {
        name: name.parse().unwrap(),
        device: "m".parse().unwrap(),
        addresses: Vec::new(),
        mtu: None,
        remote: Some(remote.parse().unwrap()),
        framing: Framing::Raw,
        keepalive: None,
        also_plain: false,
        probed: false,
        echo: None,
        allowed_prefixes: prefixes
            .iter()
            .map(|prefix| AllowedPrefix { prefix: prefix.parse().unwrap(), preference: 0 })
            .collect(),
        routes: prefixes[1..].iter().map(|prefix| prefix.parse().unwrap()).collect(),
        without: Default::default(),
    };
    let device = device_item(
        &"m".parse().unwrap(),
        &DeviceSpec { addresses: vec!["10.9.0.1/24".parse().unwrap()], key: None },
    );
    let tunnels = [
        tunnel("m.n2", "172.100.2.2:5000", &["10.9.0.2/32"]),
        tunnel("m.n3", "172.100.2.3:5000", &["10.9.0.3/32", "172.100.2.0/24"]),
        tunnel("m.n4", "172.100.2.4:5000", &["10.9.0.4/32", "172.100.3.0/24"]),
    ];
    let items = Items::new([device].into_iter().chain(tunnels.iter().map(tunnel_item)).map(Arc::new));

    let (talk, _) = controller.hello();
    talk.welcome("s1");
    talk.say(ControllerMessage::Snapshot(SnapshotChunk {
        generation: Generation { incarnation: 1, revision: 1 },
        items: items.iter().cloned().collect(),
        end: Some(SnapshotEnd { digest: items.digest(), removals: Removals::default() }),
    }));
    let failures = talk.ack().failures;
    let told: Vec<_> = failures.iter().map(|(item, reason)| format!("{item}: {reason}")).collect();
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(told[0].starts_with("tunnel m.n3") && told[0].contains("172.100.2.0/24"), "{told:?}");
    assert!(told[0].contains("endpoint"), "{told:?}");
    assert!(told[1].starts_with("tunnel m.n4") && told[1].contains("covers 172.100.3.3"), "{told:?}");
    assert_eq!(routes(a), json!([]));
    ping_ok(a, "10.9.0.2");

    let pinger = Pinger::start(a, "10.9.0.2", Duration::from_millis(500));
    is_quiet(&way);
    pinger.lost_nothing("beside what was refused");
    talk.say(ControllerMessage::Heartbeat(Heartbeat { ping: Some(7), answers: None }));
    talk.find(SOON, "an answer in the same stream", |message| {
        matches!(message, AgentMessage::Heartbeat(Heartbeat { answers: Some(7), .. })).then_some(())
    });
    wait_until(SOON, "it is in step", || agent.session()["state"] == "SYNCED");
}
