//! An agent and a controller that says what it is told to.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a fault ends the test")]
#![allow(clippy::wildcard_enum_match_arm, reason = "a test looks for one message")]

mod lab;

use std::collections::BTreeSet;
use std::fs;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use lab::{AGENT, Agent, Host, Lab, Names, SOON, Scripted, Talk, grpcurl, legacy_add, wait_until};
use serde_json::json;
use tonic::Status;
use tonic_types::{ErrorDetails, StatusExt};
use tunmesh::proto::command::TunnelSpec;
use tunmesh::proto::convert::session::{DeviceSpec, device_item, tunnel_item};
use tunmesh::proto::model::{AllowedPrefix, Framing, Owner, TunnelState};
use tunmesh::proto::session::{
    AgentMessage, ControllerMessage, Delta, Generation, Heartbeat, Item, ItemId, Items, Reach, Removals,
    Report, SnapshotChunk, SnapshotEnd, Tag,
};
use tunmesh::proto::v1;

const CONTROLLER: &str = "172.100.1.9:7443";

fn address() -> SocketAddr {
    CONTROLLER.parse().unwrap()
}

/// A host for an agent with a cable to one for its controller, and another to a peer.
fn hosts() -> (Lab, Host, Host) {
    let lab = Lab::new();
    let (host, other) = (lab.host("host"), lab.host("other"));
    lab.link(&host, "172.100.1.1/24", &other, "172.100.1.9/24");
    (lab, host, other)
}

/// The arguments of an agent that follows the controller.
const FOLLOW: [&str; 6] = ["--controller", "172.100.1.9", "--insecure", "172.100.1.0/24", "--name", "n1"];

fn generation(revision: u64) -> Generation {
    Generation { incarnation: 1, revision }
}

fn id(text: &str) -> ItemId {
    text.parse().unwrap()
}

fn ids(texts: &[&str]) -> BTreeSet<ItemId> {
    texts.iter().map(|text| id(text)).collect()
}

fn tunnel(host: u8) -> TunnelSpec {
    let prefix = format!("10.9.0.{host}/32").parse().unwrap();
    TunnelSpec {
        name: format!("m.n{host}").parse().unwrap(),
        device: "m".parse().unwrap(),
        addresses: Vec::new(),
        mtu: None,
        remote: Some(format!("172.100.1.{host}:5000").parse().unwrap()),
        framing: Framing::Raw,
        keepalive: None,
        also_plain: false,
        probed: false,
        echo: None,
        allowed_prefixes: vec![AllowedPrefix { prefix, preference: 0 }],
        routes: Vec::new(),
        without: BTreeSet::new(),
    }
}

/// A mesh's device, and tunnels of it to hosts by number.
fn mesh(hosts: impl IntoIterator<Item = u8>) -> Items {
    let device = device_item(
        &"m".parse().unwrap(),
        &DeviceSpec { addresses: vec!["10.9.0.1/24".parse().unwrap()], key: None },
    );
    let tunnels = hosts.into_iter().map(|host| tunnel_item(&tunnel(host)));
    Items::new(std::iter::once(device).chain(tunnels).map(Arc::new))
}

fn snapshot(revision: u64, items: &Items) -> ControllerMessage {
    ControllerMessage::Snapshot(SnapshotChunk {
        generation: generation(revision),
        items: items.iter().cloned().collect(),
        end: Some(SnapshotEnd { digest: items.digest(), removals: Removals::default() }),
    })
}

fn delta(before: (u64, &Items), after: (u64, &Items), consent: u64) -> ControllerMessage {
    let (set, delete) = before.1.changes_to(after.1);
    ControllerMessage::Delta(Delta {
        base: generation(before.0),
        generation: generation(after.0),
        set,
        delete,
        digest: after.1.digest(),
        removals: Removals { consent, ..Removals::default() },
    })
}

fn ping(number: u64) -> ControllerMessage {
    ControllerMessage::Heartbeat(Heartbeat { ping: Some(number), answers: None })
}

fn answer(talk: &Talk, number: u64) {
    talk.find(Duration::from_secs(2), "an answer to a ping", |message| match message {
        AgentMessage::Heartbeat(Heartbeat { answers, .. }) => (answers == Some(number)).then_some(()),
        _ => None,
    });
}

fn report(talk: &Talk, wanted: impl Fn(&Report) -> bool) -> Report {
    talk.find(SOON, "a report", |message| match message {
        AgentMessage::Report(report) => Some(report).filter(&wanted),
        _ => None,
    })
}

fn has_device(host: &Host) -> bool {
    host.try_run(["ip", "link", "show", "m"]).is_ok()
}

fn kept(agent: &Agent) -> String {
    fs::read_to_string(agent.state_dir().join("state")).unwrap_or_default()
}

#[test]
fn an_agent_follows_and_comes_back_as_it_was() {
    let (_lab, host, other) = hosts();
    let controller = Scripted::start(&other, address());
    let mut agent = Agent::start(
        &host,
        &[&FOLLOW[..], &["--label", "role=web,zone=a", "--endpoint", "192.0.2.1:6000"]].concat(),
    );
    legacy_add(&host, "udp2", "10.0.1.1", "172.100.1.99", 1400);

    let (talk, hello) = controller.hello();
    assert_eq!((hello.node.as_str(), hello.have, hello.data_port), ("n1", None, 5000));
    assert_eq!((hello.labels["role"].as_str(), hello.labels["zone"].as_str()), ("web", "a"));
    assert_eq!(hello.reach, Reach::At("192.0.2.1:6000".parse().unwrap()));
    talk.welcome("s1");
    let first = report(&talk, |report| report.whole);
    assert_eq!(first.tunnels[&"udp2".parse().unwrap()].owner, Owner::Local);
    let views = [mesh([9]), mesh([9, 3])];
    talk.say(snapshot(1, &views[0]));
    let ack = talk.ack();
    assert_eq!((ack.generation, ack.failures.len(), ack.removals_held.len()), (generation(1), 0, 0));
    assert!(kept(&agent).contains("\"revision\": 1") && has_device(&host));
    talk.say(delta((1, &views[0]), (2, &views[1]), 0));
    assert_eq!(talk.ack().generation, generation(2));
    assert_eq!(agent.tunnel_names(), ["m.n3", "m.n9", "udp2"]);
    talk.say(ping(77));
    answer(&talk, 77);
    talk.say(ControllerMessage::ReportRequest(5));
    let whole = report(&talk, |report| report.request == Some(5));
    assert_eq!((whole.whole, whole.tunnels.len()), (true, 3));
    assert_eq!(whole.tunnels[&"m.n9".parse().unwrap()].state, TunnelState::Waiting(None));
    let shown = agent.show("status");
    assert!(shown.contains("172.100.1.9, in step for") && shown.contains("1.2 of store s1"), "{shown}");
    assert!(shown.contains("--insecure: the controller is followed over 172.100.1.0/24"), "{shown}");
    assert!(agent.show("tunnels").contains("controller"));

    // It says goodbye, and comes back with its controller away.
    agent.terminate();
    talk.find(SOON, "a goodbye", |message| (message == AgentMessage::Goodbye).then_some(()));
    assert!(!has_device(&host));
    drop((talk, controller));
    agent.restart();
    assert_eq!(agent.tunnel_names(), ["m.n3", "m.n9", "udp2"]);
    assert!(has_device(&host));

    let controller = Scripted::start(&other, address());
    let (talk, hello) = controller.hello();
    let have = hello.have.unwrap();
    assert_eq!(
        (have.store_id.as_str(), have.generation, have.digest),
        ("s1", generation(2), views[1].digest())
    );
    talk.welcome("s1");
    talk.say(ControllerMessage::NotModified(generation(8)));
    assert_eq!(talk.ack().generation, generation(8));
    talk.say(delta((8, &views[1]), (9, &views[0]), 0));
    assert_eq!(talk.ack().generation, generation(9));
    let change = report(&talk, |report| !report.whole);
    assert_eq!(change.gone, BTreeSet::from(["m.n3".parse().unwrap()]));
}

#[test]
fn what_does_not_fit_is_asked_for_anew() {
    let (_lab, host, other) = hosts();
    let controller = Scripted::start(&other, address());
    let agent = Agent::start(&host, &FOLLOW);
    let (talk, _) = controller.hello();
    talk.welcome("s1");
    let views = [mesh([9]), mesh([9, 3])];
    talk.say(snapshot(1, &views[0]));
    talk.ack();
    talk.say(delta((5, &views[0]), (6, &views[1]), 0));
    assert!(talk.resync().contains("1.5"));
    assert_eq!(agent.tunnel_names(), ["m.n9"]);
    // What a later release says is passed over.
    talk.say(v1::ControllerMessage { message: None });
    let mut later = tunnel_item(&tunnel(4));
    later.content.extend_from_slice(&[0xa2, 0x06, 1, b'x']);
    let garbled = Item { content: vec![0xff], ..tunnel_item(&tunnel(5)) };
    let items = [later, garbled].map(|item| Arc::new(Item { tag: Tag::of(&item.content), ..item }));
    let view = Items::new(views[1].iter().cloned().chain(items));
    talk.say(snapshot(6, &view));
    let ack = talk.ack();
    assert_eq!(ack.failures.keys().cloned().collect::<BTreeSet<_>>(), ids(&["tunnel m.n5"]));
    assert_eq!(agent.tunnel_names(), ["m.n3", "m.n4", "m.n9"]);
    // It has every tag, also of what it does not understand.
    talk.say(delta((6, &view), (7, &view), 0));
    assert_eq!(talk.ack().generation, generation(7));

    // What cannot be kept is not acknowledged, and comes again.
    let obstacle = agent.state_dir().join("state.new");
    fs::create_dir(&obstacle).unwrap();
    talk.say(delta((7, &view), (8, &views[1]), 0));
    let reason = talk.find(SOON, "a resync and no acknowledgement", |message| match message {
        AgentMessage::Ack(ack) => panic!("{ack:?} of what is not on disk"),
        AgentMessage::Resync(reason) => Some(reason),
        _ => None,
    });
    assert!(reason.contains("cannot be kept on disk"), "{reason}");
    assert_eq!(agent.tunnel_names(), ["m.n3", "m.n4", "m.n9"]);
    assert!(agent.session()["trouble"].as_str().unwrap().contains("cannot be kept on disk"));
    fs::remove_dir(&obstacle).unwrap();
    talk.say(snapshot(8, &views[1]));
    assert_eq!(talk.ack().generation, generation(8));
    assert_eq!(agent.tunnel_names(), ["m.n3", "m.n9"]);
}

#[test]
fn a_silent_controller_is_dialled_again_and_nothing_changes() {
    let (_lab, host, other) = hosts();
    let controller = Scripted::start(&other, address());
    let agent = Agent::start(&host, &FOLLOW);
    let (talk, _) = controller.hello();
    talk.welcome("s1");
    talk.say(snapshot(1, &mesh([9])));
    talk.ack();
    talk.closed_within(Duration::from_secs(18));
    assert!(has_device(&host));
    assert!(agent.log().contains("has said nothing for 15 s"));
    let (talk, hello) = controller.hello();
    assert_eq!(hello.have.unwrap().generation, generation(1));
    // Refused, it waits as long as it is asked to.
    let details = ErrorDetails::with_retry_info(Some(Duration::from_secs(4)));
    talk.refuse(Status::with_error_details(tonic::Code::ResourceExhausted, "too many agents", details));
    wait_until(SOON, "its status says why", || {
        agent.session()["trouble"].as_str().is_some_and(|trouble| trouble.contains("too many agents"))
    });
    assert!(!controller.is_dialled_within(Duration::from_secs(3)));
    assert!(controller.is_dialled_within(SOON));
    assert!(has_device(&host));
}

#[test]
fn many_tunnels_stay_until_somebody_consents() {
    let (_lab, host, other) = hosts();
    let controller = Scripted::start(&other, address());
    let mut agent = Agent::start(&host, &FOLLOW);
    let (talk, _) = controller.hello();
    talk.welcome("s1");
    let views = [mesh(2..9), mesh([2, 20])];
    talk.say(snapshot(1, &views[0]));
    talk.ack();
    talk.say(delta((1, &views[0]), (2, &views[1]), 0));
    let held =
        ids(&["tunnel m.n3", "tunnel m.n4", "tunnel m.n5", "tunnel m.n6", "tunnel m.n7", "tunnel m.n8"]);
    assert_eq!(talk.ack().removals_held, held);
    assert_eq!(agent.tunnel_names().len(), 8);
    let shown = agent.show("status");
    assert!(shown.contains("tunnel m.n8") && shown.contains("--allow-removals"), "{shown}");
    // Over a restart as well.
    drop(talk);
    agent.restart();
    assert_eq!(agent.tunnel_names().len(), 8);
    let (talk, hello) = controller.hello();
    assert_ne!(hello.have.unwrap().digest, views[1].digest());
    talk.welcome("s1");
    talk.say(ControllerMessage::Snapshot(SnapshotChunk {
        generation: generation(4),
        items: views[1].iter().cloned().collect(),
        end: Some(SnapshotEnd {
            digest: views[1].digest(),
            removals: Removals { consent: 4, ..Removals::default() },
        }),
    }));
    assert_eq!(talk.ack().removals_held, BTreeSet::new());
    assert_eq!(agent.tunnel_names(), ["m.n2", "m.n20"]);
}

#[test]
fn a_foreign_controller_is_refused_until_the_agent_leaves() {
    let (_lab, host, other) = hosts();
    let controller = Scripted::start(&other, address());
    let mut agent = Agent::start(&host, &FOLLOW);
    legacy_add(&host, "udp2", "10.0.1.1", "172.100.1.99", 1400);
    let (talk, _) = controller.hello();
    talk.welcome("s1");
    talk.say(snapshot(1, &mesh([9])));
    talk.ack();
    drop(talk);
    let (talk, _) = controller.hello();
    talk.welcome("s2");
    talk.closed_within(SOON);
    let trouble = agent.session()["trouble"].clone();
    assert!(trouble.as_str().unwrap().contains("agent leave"), "{trouble}");
    assert_eq!(agent.tunnel_names(), ["m.n9", "udp2"]);

    assert!(agent.show("status").contains("--insecure"));
    assert!(agent.show("leave").contains("1 of its tunnels"));
    let status = agent.show("status");
    assert!(!status.contains("--insecure"), "what nothing uses weakens nothing: {status}");
    assert_eq!(agent.tunnel_names(), ["udp2"]);
    assert!(!has_device(&host) && !kept(&agent).contains("s1"));
    assert_eq!(agent.session()["state"], "NOT_DIALLED");
    assert!(!controller.is_dialled_within(Duration::from_secs(2)));
    agent.restart();
    let (talk, hello) = controller.hello();
    assert_eq!(hello.have, None);
    talk.welcome("s2");
    talk.say(snapshot(1, &mesh([9])));
    assert_eq!(talk.ack().generation, generation(1));
    assert_eq!(agent.session()["storeId"], "s2");
}

#[test]
fn a_local_tunnel_keeps_its_name_until_it_is_gone() {
    let (_lab, host, other) = hosts();
    let controller = Scripted::start(&other, address());
    let agent = Agent::start(&host, &FOLLOW);
    let local = json!({"tunnel": {"name": "m.n9", "device": "d9", "addresses": ["10.8.0.1/24"],
                                  "remote": "172.100.1.99", "framing": "RAW"}});
    grpcurl(&agent, "tunmesh.v1.TunnelService/AddTunnel", &local).unwrap();
    let (talk, _) = controller.hello();
    talk.welcome("s1");
    talk.say(snapshot(1, &mesh([9, 3])));
    let failures = talk.ack().failures;
    assert!(failures[&id("tunnel m.n9")].contains("is taken by a local tunnel"), "{failures:?}");
    let shown = agent.show("tunnels");
    assert!(shown.contains("m.n9: the controller wants a tunnel of this name, too"), "{shown}");
    let delete = json!({"name": "m.n9"});
    grpcurl(&agent, "tunmesh.v1.TunnelService/DeleteTunnel", &delete).unwrap();
    let change =
        report(&talk, |report| report.tunnels.contains_key(&"m.n9".parse().unwrap()) && !report.whole);
    assert_eq!(change.tunnels[&"m.n9".parse().unwrap()].owner, Owner::Controller);
    assert_eq!(talk.ack().failures.len(), 0);
    let refused = grpcurl(&agent, "tunmesh.v1.TunnelService/DeleteTunnel", &delete).unwrap_err();
    assert!(refused.message.contains("other owner's"), "{}", refused.message);
}

#[test]
fn a_controller_is_followed_in_plain_text_only_where_that_was_asked_for() {
    let (_lab, host, _other) = hosts();
    for (arguments, words) in [
        (
            vec!["--controller", "172.100.1.9,x y", "--insecure", "172.100.1.0/24"],
            "neither an address nor a host",
        ),
        (vec!["--controller", "172.100.1.9", "--insecure", "172.100.1.0/24", "--label", "a b"], "role=web"),
        (
            vec!["--controller", "[fe80::9%to-other]:7443", "--insecure", "fe80::/10"],
            "another host's on every link",
        ),
    ] {
        let failed = host.try_run([&[AGENT], &arguments[..]].concat()).unwrap_err();
        assert_eq!(failed.code, Some(2), "{failed}");
        assert!(failed.stderr.contains(words), "{failed}");
    }
    // A name is looked at when it is dialled.
    let controller = Scripted::start(&host, "127.0.0.1:7443".parse().unwrap());
    let agent = Agent::start(&host, &["--controller", "localhost", "--insecure", "172.100.1.0/24"]);
    wait_until(SOON, "its status says why", || {
        agent.session()["trouble"]
            .as_str()
            .is_some_and(|trouble| trouble.contains("handshake") || trouble.contains("speaks no TLS"))
    });
    assert!(!controller.is_dialled_within(Duration::from_secs(1)), "it is told nothing in plain text");
}

#[test]
fn no_tunnel_covers_a_controller_until_the_agent_leaves() {
    let (_lab, host, other) = hosts();
    for network in 2..=3 {
        other.address(&other.device_to(&host), &format!("172.100.{network}.9/24"));
        host.route(&format!("172.100.{network}.0/24"), "172.100.1.9");
    }
    let mut names = Names::new(&host, "127.0.0.1 localhost\n");
    // Nobody tells for a while where the first is.
    let _silent = other.enter(|| UdpSocket::bind("172.100.1.9:53")).unwrap();
    names.resolve_at("172.100.1.9", 2);
    let brain = ["--controller", "brain,172.100.2.9", "--insecure", "172.100.0.0/16", "--name", "n1"];
    let mut agent =
        Agent::start(&host, &[&brain[..], &["--accept-prefix", "172.100.0.0/16,10.0.0.0/8"]].concat());
    let covering = |network: u8| {
        json!({"tunnel": {"name": format!("l{network}"), "addresses": [format!("10.8.{network}.1/24")], "framing": "RAW",
                          "remote": format!("192.0.2.{network}"), "routes": [format!("172.100.{network}.8/29")]}})
    };
    let add =
        |agent: &Agent, network| grpcurl(agent, "tunmesh.v1.TunnelService/AddTunnel", &covering(network));
    let is_refused = |agent: &Agent, network| {
        let refused = add(agent, network).unwrap_err().message;
        let words = format!("covers 172.100.{network}.9, the address of the controller");
        assert!(refused.contains(&words), "{refused}");
    };
    is_refused(&agent, 2);

    names.write("hosts", "127.0.0.1 localhost\n172.100.3.9 brain\n");
    let controller = Scripted::start(&other, "172.100.3.9:7443".parse().unwrap());
    agent.restart();
    let (talk, _) = controller.hello();
    talk.welcome("s1");
    talk.say(snapshot(1, &mesh([9])));
    talk.ack();
    (2..=3).for_each(|network| is_refused(&agent, network));

    agent.show("leave");
    talk.find(SOON, "a goodbye", |message| (message == AgentMessage::Goodbye).then_some(()));
    for network in 2..=3 {
        add(&agent, network).unwrap();
    }
}

#[test]
fn a_controller_is_told_whether_a_tunnel_carries_packets() {
    let (lab, host, other) = hosts();
    let peer = lab.host("peer");
    lab.link(&host, "172.100.2.1/24", &peer, "172.100.2.7/24");
    let controller = Scripted::start(&other, address());
    let agent = Agent::start(&host, &FOLLOW);
    let (talk, _) = controller.hello();
    talk.welcome("s1");
    let device = device_item(
        &"m".parse().unwrap(),
        &DeviceSpec { addresses: vec!["10.9.0.1/24".parse().unwrap()], key: None },
    );
    let spec = TunnelSpec { remote: Some("172.100.2.7:5000".parse().unwrap()), ..tunnel(7) };
    talk.say(snapshot(1, &Items::new([device, tunnel_item(&spec)].map(Arc::new))));
    assert_eq!(talk.ack().failures.len(), 0);
    let state = |wanted: fn(&TunnelState) -> bool| {
        let of_tunnel =
            |report: &Report| report.tunnels.get(&spec.name).is_some_and(|tunnel| wanted(&tunnel.state));
        report(&talk, of_tunnel)
    };
    state(|state| *state == TunnelState::Waiting(None));
    peer.enter(|| {
        let mut bytes = Vec::new();
        let packet = etherparse::PacketBuilder::ipv4([10, 9, 0, 7], [10, 9, 0, 1], 64).udp(1, 2);
        packet.write(&mut bytes, b"data").unwrap();
        UdpSocket::bind("172.100.2.7:5000").unwrap().send_to(&bytes, "172.100.2.1:5000").unwrap();
    });
    state(|state| *state == TunnelState::Passing);
    // The peer's address is the host's own, which a command has the agent look at.
    host.address(&host.device_to(&peer), "172.100.2.7/24");
    legacy_add(&host, "udp2", "10.0.1.1", "172.100.1.99", 1400);
    state(|state| matches!(state, TunnelState::Failed(reason) if reason.contains("172.100.2.7")));
    assert!(agent.show("tunnels").contains("FAILED"), "{}", agent.show("tunnels"));
    host.run(["ip", "address", "delete", "172.100.2.7/24", "dev", &host.device_to(&peer)]);
    grpcurl(&agent, "tunmesh.v1.TunnelService/DeleteTunnel", &json!({"name": "udp2"})).unwrap();
    state(|state| *state == TunnelState::Passing);
}

/// A name may have addresses at which nobody is, or no controller.
#[test]
fn a_controller_is_found_on_ipv6_by_its_address_and_by_its_name() {
    let lab = Lab::new();
    let (host, other) = (lab.host("host"), lab.host("other"));
    lab.link(&host, "fd00:100::1/64", &other, "fd00:100::9/64");
    other.address(&other.device_to(&host), "fd00:100::8/64");
    let addresses = "fe80::9 brain\nfd00:100::7 brain\nfd00:100::8 brain\nfd00:100::9 brain\n";
    let _names = Names::new(&host, addresses);
    let controller = Scripted::start(&other, "[fd00:100::9]:7443".parse().unwrap());
    let view = mesh([]);
    for address in ["fd00:100::9", "[fd00:100::9]:7443", "brain", "brain:7443"] {
        let agent =
            Agent::start(&host, &["--controller", address, "--insecure", "fd00:100::/64", "--name", "n1"]);
        let (talk, hello) = controller.hello();
        assert_eq!(hello.node.as_str(), "n1");
        talk.welcome("s1");
        talk.say(snapshot(1, &view));
        assert_eq!(talk.ack().generation, generation(1));
        let shown = agent.show("status");
        assert!(shown.contains(&format!("{address}, in step for")), "{shown}");
    }
}
