//! Encrypted tunnels: what can be read on the way, what is taken from whom, and that they come back by themselves.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a fault ends the test")]

mod lab;

use std::fs;
use std::net::UdpSocket;
use std::time::Duration;

use lab::{
    Agent, Capture, Host, Initiations, Lab, Pinger, SOON, SOURCES, grpcurl, number, ping, ping_ok, transfer,
    wait_until,
};
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::UdpGsoSegment;
use serde_json::{Value, json};
use tunmesh::agent::wireguard::message::{self, Message};
use tunmesh::agent::wireguard::tunnel::{Indices, Noise, Sealed, Tunnel};
use tunmesh::proto::host::clock::now;
use tunmesh::proto::host::wireguard::PrivateKey;

const ADD: &str = "tunmesh.v1.TunnelService/AddTunnel";
const DELETE: &str = "tunmesh.v1.TunnelService/DeleteTunnel";
const GET: &str = "tunmesh.v1.TunnelService/GetTunnel";
const STATUS: &str = "tunmesh.v1.TunnelService/GetStatus";

fn link(agent: &Agent) -> Value {
    grpcurl(agent, GET, &json!({"name": "link"})).unwrap()["status"].clone()
}

/// Adds the tunnel `link` from 10.9.0.`own` to the host 10.9.0.`peer` at `remote`, who has this key.
fn add(agent: &Agent, own: u8, peer: u8, remote: &str, key: &str) {
    let tunnel = json!({"tunnel": {
        "name": "link", "addresses": [format!("10.9.0.{own}/24")], "remote": remote, "peerPublicKey": key,
        "allowedPrefixes": [{"prefix": format!("10.9.0.{peer}/32")}],
    }});
    grpcurl(agent, ADD, &tunnel).unwrap();
}

struct Pair {
    lab: Lab,
    hosts: [Host; 2],
    agents: [Agent; 2],
}

/// Two hosts with a cable and an agent each, without a tunnel.
fn pair() -> Pair {
    let lab = Lab::new();
    let hosts = [lab.host("a"), lab.host("b")];
    lab.link(&hosts[0], "172.100.1.1/24", &hosts[1], "172.100.1.2/24");
    let agents = hosts.each_ref().map(|host| Agent::start(host, &[]));
    Pair { lab, hosts, agents }
}

/// The same with a tunnel that carries packets.
fn joined() -> Pair {
    let pair = pair();
    let [a, b] = &pair.agents;
    add(a, 1, 2, "172.100.1.2", &b.public_key());
    add(b, 2, 1, "172.100.1.1", &a.public_key());
    ping_ok(&pair.hosts[0], "10.9.0.2");
    pair
}

#[test]
fn nothing_of_what_is_inside_can_be_read_between_hosts() {
    const TEXT: &[u8] = b"a text that can be told from everything else";
    let Pair { hosts: [a, b], .. } = &joined();
    let (capture, inside) = (Capture::start(b, "udp port 5000"), Capture::start(b, "udp port 7777"));
    let receiver = b.enter(|| UdpSocket::bind("10.9.0.2:7777").unwrap());
    receiver.set_read_timeout(Some(SOON)).unwrap();
    let sender = a.enter(|| UdpSocket::bind("10.9.0.1:0").unwrap());
    for _ in 0..100 {
        sender.send_to(TEXT, "10.9.0.2:7777").unwrap();
        let mut buffer = [0; 100];
        let length = receiver.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], TEXT);
    }
    assert!(inside.stop().has(TEXT), "it would be seen");
    let captured = capture.stop();
    assert!(captured.len() > 100 * (TEXT.len() + 28 + 32), "it crossed there");
    assert!(!captured.has(TEXT) && !captured.has(&TEXT[..8]));
    // The addresses of both ends, as a header has them next to each other.
    assert!(!captured.has(&[10, 9, 0, 1, 10, 9, 0, 2]));
}

#[test]
fn status_tells_of_keys_and_of_what_is_waited_for() {
    let Pair { hosts: [host, _], agents: [a, b], .. } = &pair();
    assert_ne!(a.public_key(), b.public_key());
    assert!(a.show("status").contains(&a.public_key()));
    add(a, 1, 2, "172.100.1.2", &b.public_key());
    let waiting = link(a);
    assert_eq!(waiting["state"], "WAITING");
    assert!(waiting["reason"].as_str().unwrap().contains("has not agreed on keys yet"), "{waiting}");
    assert!(a.show("tunnels").contains("wireguard, no keys"));
    add(b, 2, 1, "172.100.1.1", &a.public_key());
    // The host that is new to the other says so itself.
    wait_until(SOON, "keys are agreed on", || !link(a)["lastHandshake"].is_null());
    ping_ok(host, "10.9.0.2");
    let (first, again) = (link(a), link(a));
    assert_eq!((&first["state"], &first["lastHandshake"]), (&json!("PASSING"), &again["lastHandshake"]));
    assert!(a.show("tunnels").contains("wireguard, keys "));
    // 1,500 bytes less 20, 8 and 32.
    assert_eq!((&first["pathMtu"], &first["deviceMtu"]), (&json!(1440), &json!(1440)));

    let refused = |key: String, problem: &str| {
        let tunnel = json!({"tunnel": {"name": "other", "addresses": ["10.9.1.1/24"], "remote": "172.100.1.2",
                                       "peerPublicKey": key}});
        let error = grpcurl(a, ADD, &tunnel).unwrap_err();
        assert!(error.message.contains(problem) && error.message.contains("peer_public_key"), "{error:?}");
    };
    refused(a.public_key(), "is this host's own");
    refused(b.public_key(), "is already the key of tunnel link's peer");
}

/// A peer of an agent that does as it is told.
struct Scripted {
    key: PrivateKey,
    sessions: Noise,
    socket: UdpSocket,
}

const AGENT: &str = "172.100.1.1:5000";

impl Scripted {
    /// On a host, for an agent with this key.
    fn new(host: &Host, agent: &str) -> Self {
        Self::at(host, 5000, agent)
    }

    /// The same at another port.
    fn at(host: &Host, port: u16, agent: &str) -> Self {
        let key = PrivateKey::generate().unwrap();
        let sessions = Noise::new(&key, &agent.parse().unwrap(), None, &Indices::default());
        let socket = host.enter(|| UdpSocket::bind(("172.100.1.2", port)).unwrap());
        socket.set_read_timeout(Some(SOON)).unwrap();
        Self { key, sessions, socket }
    }

    fn send(&self, datagram: &[u8]) {
        self.socket.send_to(datagram, AGENT).unwrap();
    }

    /// The next message of the agent that is as `wanted`.
    fn hears(&self, wanted: impl Fn(Message) -> bool) -> Vec<u8> {
        loop {
            let mut buffer = [0; 2000];
            let length = self.socket.recv(&mut buffer).expect("the agent says something");
            let message = &buffer[..length];
            if Message::parse(message).is_ok_and(&wanted) {
                return message.to_vec();
            }
        }
    }

    /// Agrees on keys with the agent.
    fn shakes_hands(&mut self) {
        let initiation = self.sessions.initiate().unwrap();
        self.send(&initiation);
        let response = self.hears(|message| matches!(message, Message::Response { .. }));
        let keepalive = self.sessions.shake(&response).unwrap().unwrap();
        self.send(&keepalive);
    }

    /// The datagram of a packet.
    fn sealed(&mut self, packet: &[u8]) -> Vec<u8> {
        let mut datagram = Vec::new();
        assert_eq!(self.sessions.seal([packet, &[]], 1440, &mut datagram), Sealed::Datagram);
        datagram
    }
}

/// A packet from 10.9.0.`source` to 10.9.0.1.
fn packet(source: u8, content: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    etherparse::PacketBuilder::ipv4([10, 9, 0, source], [10, 9, 0, 1], 64)
        .udp(7777, 7777)
        .write(&mut bytes, content)
        .unwrap();
    bytes
}

#[test]
fn what_is_not_the_peers_is_refused_and_counted_and_changes_nothing() {
    let lab = Lab::new();
    let (host, other) = (lab.host("a"), lab.host("b"));
    lab.link(&host, "172.100.1.1/24", &other, "172.100.1.2/24");
    let agent = Agent::start(&host, &[]);
    let mut peer = Scripted::new(&other, &agent.public_key());
    add(&agent, 1, 2, "172.100.1.2", &peer.key.public().to_string());
    let receiver = host.enter(|| UdpSocket::bind("10.9.0.1:7777").unwrap());
    receiver.set_read_timeout(Some(SOON)).unwrap();
    let initiation = peer.sessions.initiate().unwrap();
    peer.shakes_hands();

    let drops = |reason: &str| number(&link(&agent)["received"]["drops"][reason]);
    let of_nobody =
        |reason: &str| number(&grpcurl(&agent, STATUS, &json!({})).unwrap()["datagramsDropped"][reason]);
    let mut sent = 0_u32;
    // What was refused before changed nothing: a good packet arrives, and it is the next one that does.
    let mut goes_on = |peer: &mut Scripted, after: &str| {
        sent += 1;
        let content = format!("packet {sent}");
        let good = peer.sealed(&packet(2, content.as_bytes()));
        peer.send(&good);
        let mut buffer = [0; 100];
        let length = receiver.recv(&mut buffer).unwrap_or_else(|error| panic!("after {after}: {error}"));
        assert_eq!(&buffer[..length], content.as_bytes(), "after {after}");
        good
    };
    let replayed = goes_on(&mut peer, "the handshake");

    peer.send(&replayed);
    goes_on(&mut peer, "a repetition");
    assert_eq!(drops("repeated"), 1);

    let truncated = peer.sealed(&packet(2, b"truncated"));
    peer.send(&truncated[..truncated.len() - 1]);
    let mut changed = peer.sealed(&packet(2, b"changed"));
    changed[20] ^= 1;
    peer.send(&changed);
    goes_on(&mut peer, "what was truncated or changed");
    assert_eq!(drops("forged"), 2);
    peer.send(&truncated[..31]);
    goes_on(&mut peer, "what is shorter than any");
    assert_eq!(of_nobody("malformed"), 1);

    let foreign = peer.sealed(&packet(3, b"of another's source"));
    peer.send(&foreign);
    goes_on(&mut peer, "another's source");
    assert_eq!(drops("source_not_allowed"), 1);
    for content in [&b"no packet"[..], &[0x45; 40]] {
        let no_packet = peer.sealed(content);
        peer.send(&no_packet);
    }
    goes_on(&mut peer, "what is no packet");
    assert_eq!(drops("malformed"), 2);

    peer.send(&packet(2, b"in clear"));
    peer.send(&[&[0, 0, 8, 0][..], &packet(2, b"as in 2015")].concat());
    goes_on(&mut peer, "packets that are not encrypted");
    assert_eq!(drops("framing"), 2);

    let mut of_nobodys_session = replayed.clone();
    of_nobodys_session[4] ^= 1;
    peer.send(&of_nobodys_session);
    goes_on(&mut peer, "another session");
    assert_eq!(of_nobody("no_session"), 1);

    // Later than 8,192 others.
    let late = peer.sealed(&packet(2, b"late"));
    (0..9000).for_each(|_| _ = peer.sealed(&packet(2, b"not sent")));
    goes_on(&mut peer, "many that were lost");
    peer.send(&late);
    goes_on(&mut peer, "one that is too late");
    assert_eq!(drops("too_late"), 1);

    let mut stranger = Noise::new(
        &PrivateKey::generate().unwrap(),
        &agent.public_key().parse().unwrap(),
        None,
        &Indices::default(),
    );
    peer.send(&stranger.initiate().unwrap());
    let mut for_another = Noise::new(&peer.key, &peer.key.public(), None, &Indices::default());
    peer.send(&for_another.initiate().unwrap());
    goes_on(&mut peer, "initiations of another key, and for one");
    assert_eq!((of_nobody("unknown_sender"), of_nobody("forged")), (1, 1));

    peer.send(&initiation);
    // An old one may be somebody else's, or a sign of a clock that was set back: the agent asks by one of its own.
    peer.hears(|message| message == Message::Initiation);
    goes_on(&mut peer, "an older initiation");
    assert_eq!(drops("repeated"), 2);
    peer.send(&initiation);
    goes_on(&mut peer, "another one");
    peer.socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    assert!(peer.socket.recv(&mut [0; 2000]).is_err(), "it asks no more for a while");
}

#[test]
fn a_peer_that_sends_no_probes_is_sent_nothing_but_ip() {
    let lab = Lab::new();
    let (host, other) = (lab.host("a"), lab.host("b"));
    lab.link(&host, "172.100.1.1/24", &other, "172.100.1.2/24");
    let agent = Agent::start(&host, &[]);
    let mut peer = Scripted::new(&other, &agent.public_key());
    let tunnel = json!({"tunnel": {
        "name": "link", "addresses": ["10.9.0.1/24"], "remote": "172.100.1.2", "echo": "10.9.0.2",
        "peerPublicKey": peer.key.public().to_string(), "allowedPrefixes": [{"prefix": "10.9.0.2/32"}],
    }});
    grpcurl(&agent, ADD, &tunnel).unwrap();
    peer.shakes_hands();
    let mut questions = 0;
    while questions < 3 {
        let mut sealed = peer.hears(|message| matches!(message, Message::Data { .. }));
        let inside = peer.sessions.open(&mut sealed).unwrap();
        if inside.is_empty() {
            continue;
        }
        let parsed = etherparse::SlicedPacket::from_ip(&sealed[inside]).expect("it is an IP packet");
        let Some(etherparse::TransportSlice::Icmpv4(icmp)) = parsed.transport else { panic!("{parsed:?}") };
        assert!(matches!(icmp.icmp_type(), etherparse::Icmpv4Type::EchoRequest(_)), "{icmp:?}");
        questions += 1;
    }
    // It has not answered, and is not gone for that.
    assert_eq!(link(&agent)["link"]["state"], "UP");
}

#[test]
fn nobody_but_the_peer_itself_moves_a_tunnel() {
    let lab = Lab::new();
    let (host, other) = (lab.host("a"), lab.host("b"));
    lab.link(&host, "172.100.1.1/24", &other, "172.100.1.2/24");
    let agent = Agent::start(&host, &[]);
    let mut peers = [6001, 6002].map(|port| Scripted::at(&other, port, &agent.public_key()));
    let status =
        |n: usize| grpcurl(&agent, GET, &json!({"name": format!("peer{n}")})).unwrap()["status"].clone();
    let add = |n: usize, key: &PrivateKey| {
        let tunnel = json!({"tunnel": {
            "name": format!("peer{n}"), "device": "mesh", "addresses": ["10.9.0.1/24"],
            "remote": format!("172.100.1.2:600{n}"), "peerPublicKey": key.public().to_string(),
            "allowedPrefixes": [{"prefix": format!("10.9.0.{}/32", n + 1)}],
        }});
        grpcurl(&agent, ADD, &tunnel).unwrap();
    };
    (1..).zip(&peers).for_each(|(n, peer)| add(n, &peer.key));
    let old = peers[1].sessions.initiate().unwrap();
    peers.iter_mut().for_each(Scripted::shakes_hands);
    let [one, two] = &mut peers;
    // Datagrams that arrive as one message: of one peer, and in the name of another.
    let own = one.sealed(&packet(2, b"of the first one"));
    let mut anothers = two.sealed(&packet(3, b"of the other one"));
    anothers[20] ^= 1;
    setsockopt(&one.socket, UdpGsoSegment, &own.len().try_into().unwrap()).unwrap();
    for train in [
        [&own[..], &anothers].concat(),
        [&anothers[..], &one.sealed(&packet(2, b"of the first one"))].concat(),
    ] {
        one.send(&train);
    }
    wait_until(SOON, "both are refused", || number(&status(2)["received"]["drops"]["forged"]) == 2);
    assert_eq!(number(&status(1)["received"]["packets"]), 2);
    assert_eq!(
        (&status(1)["endpoint"], &status(2)["endpoint"]),
        (&json!("172.100.1.2:6001"), &json!("172.100.1.2:6002"))
    );
    assert_eq!(status(2)["lastReceived"], Value::Null);

    // To a tunnel that is new an old initiation is as good as any, but its sender is not where the peer is.
    grpcurl(&agent, DELETE, &json!({"name": "peer2"})).unwrap();
    add(2, &two.key);
    let elsewhere = other.enter(|| UdpSocket::bind("172.100.1.2:6003").unwrap());
    elsewhere.set_read_timeout(Some(SOON)).unwrap();
    elsewhere.send_to(&old, AGENT).unwrap();
    let answered = elsewhere.recv(&mut [0; 200]).unwrap();
    assert_eq!((answered, &status(2)["endpoint"]), (92, &json!("172.100.1.2:6002")));
    two.shakes_hands();
    let good = two.sealed(&packet(3, b"from where it is"));
    two.send(&good);
    wait_until(SOON, "its packet arrives", || number(&status(2)["received"]["packets"]) == 1);
}

#[test]
fn a_peer_that_moves_is_followed_once_it_has_shown_who_it_is() {
    let Pair { lab: _lab, hosts: [a, b], agents } = &joined();
    let cable = b.device_to(a);
    let endpoint = || link(&agents[0])["endpoint"].as_str().unwrap().to_owned();
    assert_eq!(endpoint(), "172.100.1.2:5000");
    b.address(&cable, "172.100.1.7/24");
    b.run(["ip", "address", "del", "172.100.1.2/24", "dev", &cable]);
    b.run(["ip", "address", "replace", "172.100.1.7/24", "dev", &cable]);
    ping_ok(b, "10.9.0.1");
    assert_eq!(endpoint(), "172.100.1.7:5000");
    ping_ok(a, "10.9.0.2");
    transfer(a, b, "10.9.0.2", 20_000_000);
    transfer(b, a, "10.9.0.1", 20_000_000);
    // Whoever says so in clear is not believed.
    let stranger = b.enter(|| UdpSocket::bind("172.100.1.7:0").unwrap());
    stranger.send_to(&packet(2, b"from elsewhere"), AGENT).unwrap();
    ping_ok(a, "10.9.0.2");
    assert_eq!(endpoint(), "172.100.1.7:5000");
    // A tunnel that is changed to be plain, or another's, does not go where the peer was.
    let mut tunnel = link(&agents[0])["tunnel"].clone();
    tunnel["peerPublicKey"] = json!(PrivateKey::generate().unwrap().public().to_string());
    grpcurl(&agents[0], ADD, &json!({"tunnel": tunnel, "replace": true})).unwrap();
    assert_eq!(endpoint(), "172.100.1.2:5000");
    let changed = link(&agents[0]);
    assert_eq!((&changed["state"], &changed["lastReceived"]), (&json!("WAITING"), &Value::Null), "{changed}");
}

#[test]
fn a_restart_of_either_end_is_noticed_at_once() {
    let Pair { hosts: [a, b], agents, .. } = &mut joined();
    for (at, from, target) in [(1, &*a, "10.9.0.2"), (0, &*b, "10.9.0.1"), (1, b, "10.9.0.1")] {
        agents[at].kill9();
        agents[at].restart();
        // No time-out of the other end has to run out, which takes 15 s.
        wait_until(SOON, "packets pass again", || ping(from, target, &[]));
    }
    let pinger = Pinger::start(a, "10.9.0.2", Duration::from_millis(20));
    pinger.lost_nothing("after the restarts");
}

#[test]
fn a_tunnel_that_is_gone_takes_nothing_more() {
    let Pair { hosts: [a, b], agents, .. } = &joined();
    let counted =
        || number(&grpcurl(&agents[0], STATUS, &json!({})).unwrap()["datagramsDropped"]["no_session"]);
    assert_eq!(counted(), 0);
    grpcurl(&agents[0], DELETE, &json!({"name": "link"})).unwrap();
    a.address("lo", "10.9.0.1/32");
    let capture = Capture::start(a, "icmp");
    assert!(!ping(b, "10.9.0.1", &["-c", "5", "-i", "0.01"]));
    assert!(counted() >= 5);
    assert!(!capture.stop().has(&[10, 9, 0, 2, 10, 9, 0, 1]));
    // The same peer again is a new one.
    a.run(["ip", "address", "del", "10.9.0.1/32", "dev", "lo"]);
    add(&agents[0], 1, 2, "172.100.1.2", &agents[1].public_key());
    ping_ok(b, "10.9.0.1");
}

#[test]
fn packets_that_come_before_there_are_keys_wait_for_them() {
    let Pair { hosts: [a, b], agents, .. } = &pair();
    add(&agents[1], 2, 1, "172.100.1.1", &agents[0].public_key());
    add(&agents[0], 1, 2, "172.100.1.2", &agents[1].public_key());
    let pinger = Pinger::start(a, "10.9.0.2", Duration::from_millis(20));
    pinger.lost_nothing("from the first on");
    // One that nobody answers holds up no other, and what waits for it is bounded, and counted.
    let nobody = json!({"tunnel": {
        "name": "nobody", "device": "link", "remote": "172.100.1.77",
        "peerPublicKey": PrivateKey::generate().unwrap().public().to_string(),
        "allowedPrefixes": [{"prefix": "10.9.0.77/32"}],
    }});
    grpcurl(&agents[0], ADD, &nobody).unwrap();
    let sender = a.enter(|| UdpSocket::bind("10.9.0.1:0").unwrap());
    for _ in 0..100 {
        sender.send_to(b"to nobody", "10.9.0.77:9").unwrap();
    }
    ping_ok(a, "10.9.0.2");
    ping_ok(b, "10.9.0.1");
    let sent = grpcurl(&agents[0], GET, &json!({"name": "nobody"})).unwrap()["status"]["sent"].clone();
    assert_eq!(number(&sent["drops"]["no_session"]), 100 - 32, "{sent}");
    assert_eq!(number(&sent["packets"]), 0);
    assert_eq!(message::OVERHEAD, 32);
}

/// As whoever scripts single agents would do it; the controller does the same for a mesh.
#[test]
fn a_plain_tunnel_becomes_encrypted_end_by_end_and_nothing_is_lost() {
    let Pair { hosts: [a, b], agents, .. } = &pair();
    let set = |own: usize, how: Value| {
        let (peer, remote) = (2 - own, format!("172.100.1.{}", 2 - own));
        let mut tunnel = json!({
            "name": "link", "addresses": [format!("10.9.0.{}/24", own + 1)], "remote": remote,
            "allowedPrefixes": [{"prefix": format!("10.9.0.{peer}/32")}],
        });
        tunnel.as_object_mut().unwrap().extend(how.as_object().unwrap().clone());
        grpcurl(&agents[own], ADD, &json!({"tunnel": tunnel, "replace": true})).unwrap();
    };
    let keys = [agents[1].public_key(), agents[0].public_key()];
    let both = |own: usize| json!({"peerPublicKey": keys[own], "alsoPlain": true});
    let sealed = |own: usize| json!({"peerPublicKey": keys[own]});
    for own in [0, 1] {
        set(own, json!({"framing": "RAW"}));
    }
    ping_ok(a, "10.9.0.2");
    let often = Duration::from_millis(10);
    let pingers = [Pinger::start(a, "10.9.0.2", often), Pinger::start(b, "10.9.0.1", often)];
    set(0, both(0));
    let status = grpcurl(&agents[0], STATUS, &json!({})).unwrap();
    assert!(status["weakened"].to_string().contains("tunnels on link take unencrypted packets"), "{status}");
    ping_ok(a, "10.9.0.2");
    assert!(link(&agents[0])["lastHandshake"].is_null(), "the other end knows nothing of it yet");
    set(1, both(1));
    for agent in agents {
        wait_until(SOON, "there are keys", || !link(agent)["lastHandshake"].is_null());
    }
    ping_ok(a, "10.9.0.2");
    ping_ok(b, "10.9.0.1");
    // From now on nothing is sent otherwise, whatever arrives.
    let capture = Capture::start(a, "udp port 5000");
    let stray = b.enter(|| UdpSocket::bind("172.100.1.2:0").unwrap());
    let icmp = [0x45, 0, 0, 20, 0, 0, 0, 0, 64, 253, 0x66, 0xdd, 10, 9, 0, 2, 10, 9, 0, 1];
    stray.send_to(&icmp, AGENT).unwrap();
    ping_ok(a, "10.9.0.2");
    assert!(!capture.stop().has(&[10, 9, 0, 1, 10, 9, 0, 2]));
    for own in [0, 1] {
        set(own, sealed(own));
        ping_ok(a, "10.9.0.2");
    }
    for pinger in pingers {
        pinger.lost_nothing("meanwhile");
    }
    let status = grpcurl(&agents[0], STATUS, &json!({})).unwrap();
    assert!(!status["weakened"].to_string().contains("encrypted"), "{status}");
}

/// The memory that an agent has, in KiB.
fn memory(agent: &Agent) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", agent.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn initiations_from_everywhere_hold_up_nobody_and_fill_no_memory() {
    const RATE: u32 = 10_000;
    let lab = Lab::new();
    let (router, a, b, strangers) = (lab.host("router"), lab.host("a"), lab.host("b"), lab.host("strangers"));
    let ends = [(&a, "172.100.1.1/24"), (&b, "172.100.1.2/24"), (&strangers, "172.100.1.3/24")];
    lab.segment(&router, "172.100.1.254/24", &ends);
    a.route(SOURCES, "172.100.1.3");
    let (agent, mut their) = (Agent::start(&a, &[]), Agent::start(&b, &[]));
    add(&agent, 1, 2, "172.100.1.2", &their.public_key());
    add(&their, 2, 1, "172.100.1.1", &agent.public_key());
    ping_ok(&a, "10.9.0.2");
    let started = now();
    let flood = Initiations::start(&strangers, AGENT.parse().unwrap(), &agent.public_key(), RATE);
    let refused =
        |reason: &str| number(&grpcurl(&agent, STATUS, &json!({})).unwrap()["datagramsDropped"][reason]);
    wait_until(SOON, "cookies are asked for", || refused("too_many_handshakes") > u64::from(RATE));
    for _ in 0..5 {
        transfer(&a, &b, "10.9.0.2", 50_000_000);
        transfer(&b, &a, "10.9.0.1", 50_000_000);
    }
    let (before, sent) = (memory(&agent), flood.sent());
    // A peer that knows no session any more shows that it hears what is sent to it, and gets one.
    their.kill9();
    their.restart();
    wait_until(2 * SOON, "packets pass again", || ping(&b, "10.9.0.1", &[]));
    wait_until(6 * SOON, "100,000 initiations", || flood.sent() > sent + 100_000);
    ping_ok(&a, "10.9.0.2");
    // No more than 200 at once, and 200 a second after, were worth a key exchange.
    let exchanges = refused("unknown_sender");
    let elapsed = started.elapsed();
    assert!(
        f64::from(u32::try_from(exchanges).unwrap()) <= 200.0 + 200.0 * elapsed.as_secs_f64(),
        "{exchanges} in {elapsed:?}"
    );
    let after = memory(&agent);
    assert!(after < before + 2_048, "{before} KiB, then {after}");
}
