//! The control port of 2015: what it takes, what it refuses, whom it heeds.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a fault ends the test")]

mod lab;

use std::net::UdpSocket;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use lab::{Agent, Host, Lab, Names, SOON, grpcurl, holds_within, legacy_send, wait_until};
use serde_json::{Value, json};

/// A host with an agent, and another host on its network.
struct Setup {
    _lab: Lab,
    host: Host,
    other: Host,
    agent: Agent,
}

fn setup(arguments: &[&str]) -> Setup {
    let lab = Lab::new();
    let (host, other) = (lab.host("host"), lab.host("other"));
    lab.link(&host, "172.100.1.1/24", &other, "172.100.1.2/24");
    let agent = Agent::start(&host, arguments);
    Setup { _lab: lab, host, other, agent }
}

fn ask(host: &Host, datagram: &Value) -> Value {
    legacy_send(host, datagram.to_string().as_bytes()).expect("a reply")
}

fn add(host: &Host, tunnel: Value) -> Value {
    ask(host, &json!({"op": "add", "tunnel": [tunnel]}))
}

/// The device's only address and its MTU, as the kernel has them.
fn device(host: &Host, name: &str) -> Option<(String, u64, u64)> {
    let links = host.try_run(["ip", "-j", "addr", "show", "dev", name]).ok()?;
    let links: Value = serde_json::from_str(&links).unwrap();
    let address = &links[0]["addr_info"][0];
    let text = format!("{}/{}", address["local"].as_str()?, address["prefixlen"].as_u64()?);
    Some((text, links[0]["mtu"].as_u64()?, links[0]["ifindex"].as_u64()?))
}

#[track_caller]
fn assert_ok(reply: &Value, key: &str) {
    assert!(reply[key].as_str().is_some_and(|words| words.starts_with("ok")), "{reply}");
}

#[track_caller]
fn assert_refused(reply: &Value, key: &str, words: &[&str]) {
    let text = reply[key].as_str().unwrap_or_else(|| panic!("no entry {key}: {reply}"));
    assert!(!text.starts_with("ok"), "{reply}");
    for word in words {
        assert!(text.contains(word), "{word:?} is not in {reply}");
    }
}

#[test]
fn takes_what_the_client_of_2015_sends() {
    let Setup { host, .. } = &setup(&[]);
    let tunnel = json!({"name": "udp2", "tunnelIP": "10.0.1.1", "netmask": "255.255.255.252", "mtu": 1400,
                        "remoteServer": "172.100.1.2"});
    assert_ok(&add(host, tunnel.clone()), "udp2");
    let (address, mtu, index) = device(host, "udp2").unwrap();
    assert_eq!((address.as_str(), mtu), ("10.0.1.1/30", 1400));

    // Again, then with another content: in place.
    assert_ok(&add(host, tunnel), "udp2");
    let changed = json!({"name": "udp2", "tunnelIP": "10.0.1.2", "netmask": 30, "mtu": "1300", "remoteServer": "172.100.1.3"});
    assert_ok(&add(host, changed), "udp2");
    assert_eq!(device(host, "udp2").unwrap(), ("10.0.1.2/30".to_owned(), 1300, index));

    // Defaults, other forms of a mask, and several tunnels in one datagram.
    let reply = ask(
        host,
        &json!({"op": "add", "tunnel": [
            {"name": "udp3", "tunnelIP": "10.0.3.1", "remoteServer": "172.100.1.4"},
            {"name": "udp4", "tunnelIP": "10.0.4.1", "netmask": "24", "remoteServer": "172.100.1.5"},
            {"name": "udp5", "tunnelIP": "10.0.5.1", "netmask": "255.0.255.0", "remoteServer": "172.100.1.6"},
            {"name": "udp6", "tunnelIP": "fd00:6::1", "netmask": 64, "remoteServer": "172.100.1.7"},
        ]}),
    );
    for name in ["udp3", "udp4", "udp6"] {
        assert_ok(&reply, name);
    }
    assert_refused(&reply, "udp5", &["netmask", "255.0.255.0"]);
    let seen = |name: &str| device(host, name).map(|(address, mtu, _)| (address, mtu));
    assert_eq!(seen("udp3"), Some(("10.0.3.1/30".to_owned(), 1500)));
    assert_eq!(seen("udp4"), Some(("10.0.4.1/24".to_owned(), 1500)));
    assert_eq!(seen("udp5"), None);
    assert_eq!(seen("udp6"), Some(("fd00:6::1/64".to_owned(), 1500)));

    let reply =
        ask(host, &json!({"op": "del", "tunnel": [{"name": "udp2"}, {"name": "udp3"}, {"name": "udp9"}]}));
    assert_ok(&reply, "udp2");
    assert_ok(&reply, "udp3");
    assert_refused(&reply, "udp9", &["udp9"]);
    assert_eq!((seen("udp2"), seen("udp3")), (None, None));
    assert!(seen("udp4").is_some());
}

#[test]
fn resolves_host_names() {
    let lab = Lab::new();
    let (host, other) = (lab.host("host"), lab.host("other"));
    lab.link(&host, "172.100.1.1/24", &other, "172.100.1.2/24");
    let _names = Names::new(&host, "172.100.1.2 minion-2\n");
    let (_ours, _theirs) = (Agent::start(&host, &[]), Agent::start(&other, &[]));
    assert_ok(
        &add(&host, json!({"name": "udp2", "tunnelIP": "10.0.1.1", "remoteServer": "minion-2"})),
        "udp2",
    );
    assert_ok(
        &add(&other, json!({"name": "udp1", "tunnelIP": "10.0.1.2", "remoteServer": "172.100.1.1"})),
        "udp1",
    );
    lab::ping_ok(&host, "10.0.1.2");
}

#[test]
fn refuses_what_is_wrong_and_goes_on() {
    let Setup { host, agent, .. } = &mut setup(&[]);
    let good = json!({"name": "udp2", "tunnelIP": "10.0.1.1", "netmask": "255.255.255.252", "mtu": 1400,
                      "remoteServer": "172.100.1.2"});
    let with = |field: &str, value: Value| {
        let mut tunnel = good.clone();
        tunnel[field] = value;
        tunnel
    };
    let without = |field: &str| {
        let mut tunnel = good.clone();
        tunnel.as_object_mut().unwrap().remove(field);
        tunnel
    };
    for (tunnel, key, words) in [
        (without("name"), "#0", vec!["name"]),
        (without("tunnelIP"), "udp2", vec!["tunnelIP"]),
        (without("remoteServer"), "udp2", vec!["remoteServer"]),
        (with("name", json!(7)), "#0", vec!["name"]),
        (
            with("name", json!("a-name-of-more-than-15-bytes")),
            "a-name-of-more-than-15-bytes",
            vec!["name", "15"],
        ),
        (with("name", json!("a/b")), "a/b", vec!["name", "/"]),
        (with("tunnelIP", json!("10.0.1")), "udp2", vec!["tunnelIP", "10.0.1"]),
        (with("tunnelIP", json!("10.0.1.0")), "udp2", vec!["tunnelIP"]),
        (with("tunnelIP", json!("8.8.8.9")), "udp2", vec!["tunnelIP", "--accept-prefix"]),
        (with("tunnelIP", json!("172.100.1.9")), "udp2", vec!["tunnelIP", "172.100.1."]),
        (with("netmask", json!(33)), "udp2", vec!["netmask", "33"]),
        (with("mtu", json!(0)), "udp2", vec!["mtu", "0"]),
        (with("mtu", json!(67)), "udp2", vec!["mtu", "67"]),
        (with("mtu", json!(70000)), "udp2", vec!["mtu", "70000"]),
        (with("mtu", json!(-1)), "udp2", vec!["mtu", "-1"]),
        (with("mtu", json!(1400.5)), "udp2", vec!["mtu", "1400.5"]),
        (with("mtu", json!("many")), "udp2", vec!["mtu", "many"]),
        (with("remoteServer", json!("172.100.1.300")), "udp2", vec!["remoteServer", "172.100.1.300"]),
        (with("remoteServer", json!("0.0.0.0")), "udp2", vec!["remoteServer"]),
        (with("remoteServer", json!("172.100.1.1")), "udp2", vec!["remoteServer", "itself"]),
        (with("remoteServer", json!(["a"])), "udp2", vec!["remoteServer"]),
        (json!("udp2"), "#0", vec![]),
    ] {
        assert_refused(&add(host, tunnel.clone()), key, &words);
        assert_eq!(device(host, "udp2"), None, "{tunnel} left something behind");
    }
    for datagram in [
        json!({"op": "mul", "tunnel": [good]}),
        json!({"tunnel": [good]}),
        json!({"op": "add"}),
        json!({"op": "add", "tunnel": []}),
        json!({"op": "add", "tunnel": good}),
        json!([]),
        json!(null),
    ] {
        assert_refused(&ask(host, &datagram), "error", &[]);
    }
    let deep = format!("{}{}", "[".repeat(10_000), "]".repeat(10_000));
    let deep_value = format!("{{\"op\":\"add\",\"tunnel\":{deep}}}");
    let mut noise = vec![0_u8; 65_507];
    let mut seed = 0x2015_u32;
    for byte in &mut noise {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        *byte = (seed >> 24) as u8;
    }
    for datagram in [b"".as_slice(), b"{", b"\xff\xfe", deep.as_bytes(), deep_value.as_bytes(), &noise] {
        let reply = legacy_send(host, datagram).expect("an error in words");
        assert_refused(&reply, "error", &[]);
    }

    // A remote that another tunnel has, then what is right: the agent is as it was.
    assert_ok(&add(host, good.clone()), "udp2");
    assert_refused(
        &add(host, json!({"name": "udp3", "tunnelIP": "10.0.3.1", "remoteServer": "172.100.1.2"})),
        "udp3",
        &["remoteServer", "172.100.1.2", "udp2"],
    );
    assert!(agent.alive());
    let lines = agent.log().lines().filter(|line| line.contains("not JSON")).count();
    assert_eq!(lines, 6, "one line a bad datagram: {}", agent.log());
}

const TUNNEL: &str =
    r#"{"op": "add", "tunnel": [{"name": "udp2", "tunnelIP": "10.0.1.1", "remoteServer": "172.100.1.9"}]}"#;

/// Sends from one host to another's control port; the reply, if one comes.
fn send_to(from: &Host, to: &str, datagram: &[u8], patience: Duration) -> Option<Vec<u8>> {
    from.enter(|| {
        let any = if to.contains(':') { "[::]:0" } else { "0.0.0.0:0" };
        let socket = UdpSocket::bind(any).unwrap();
        socket.set_read_timeout(Some(patience)).unwrap();
        let address: std::net::IpAddr = to.parse().unwrap();
        socket.send_to(datagram, (address, 5001)).unwrap();
        let mut buffer = vec![0; 1 << 16];
        socket.recv(&mut buffer).ok().map(|length| buffer[..length].to_vec())
    })
}

/// Long enough for a reply that must not come.
const SILENCE: Duration = Duration::from_millis(700);

#[test]
fn heeds_this_host_alone() {
    let Setup { host, other, agent, .. } = &mut setup(&[]);
    assert_eq!(send_to(other, "172.100.1.1", TUNNEL.as_bytes(), SILENCE), None);
    assert_eq!(device(host, "udp2"), None);
    wait_until(SOON, "a line that names the flag", || agent.log().contains("--legacy-allow"));
    // For the kernel a datagram from this host to its own address arrives at that address's interface.
    assert_eq!(send_to(host, "172.100.1.1", TUNNEL.as_bytes(), SILENCE), None);
    for loopback in ["127.0.0.1", "::1"] {
        let reply = send_to(host, loopback, TUNNEL.as_bytes(), SOON).expect("a reply");
        assert_ok(&serde_json::from_slice(&reply).unwrap(), "udp2");
    }
    for _ in 0..200 {
        send_to(other, "172.100.1.1", TUNNEL.as_bytes(), Duration::from_micros(1));
    }
    let lines = agent.log().lines().filter(|line| line.contains("--legacy-allow")).count();
    assert!(lines <= 2, "{lines} lines for 200 datagrams");
}

#[test]
fn heeds_an_allowed_prefix_with_replies_no_longer_than_requests() {
    let Setup { host, other, .. } = &setup(&["--legacy-allow", "172.100.1.2/32"]);
    let reply = send_to(other, "172.100.1.1", TUNNEL.as_bytes(), SOON).expect("a reply");
    assert!(reply.len() <= TUNNEL.len());
    assert_ok(&serde_json::from_slice(&reply).unwrap(), "udp2");
    assert!(device(host, "udp2").is_some());
    let wrong = br#"{"op": "add", "tunnel": [{"name": "u3"}, {"name": "u4", "mtu": 1, "tunnelIP": "x"}]}"#;
    let reply = send_to(other, "172.100.1.1", wrong, SOON).expect("a reply");
    assert!(reply.len() <= wrong.len(), "{}", reply.escape_ascii());
    let reply: Value = serde_json::from_slice(&reply).unwrap();
    assert!(reply["u3"].is_string() && reply["u4"].is_string(), "{reply}");
    // Too short for any error: silence, and no harm.
    assert_eq!(send_to(other, "172.100.1.1", b"{", SILENCE), None);
    // Another host of the network is not in the prefix.
    other.run(["ip", "addr", "flush", "dev", &other.device_to(host)]);
    other.address(&other.device_to(host), "172.100.1.3/24");
    assert_eq!(send_to(other, "172.100.1.1", TUNNEL.as_bytes(), SILENCE), None);
}

#[test]
fn replies_are_not_answered() {
    let Setup { other, .. } = &setup(&["--legacy-allow", "172.100.1.0/24"]);
    let answer = other.enter(|| {
        let socket = UdpSocket::bind("0.0.0.0:5001").unwrap();
        socket.set_read_timeout(Some(SOON)).unwrap();
        let reply = br#"{"error": "op is missing; give add or del"}"#;
        for datagram in [&reply[..], br#"{"op": "mul", "tunnel": [{"name": "udp2"}]}"#] {
            socket.send_to(datagram, "172.100.1.1:5001").unwrap();
        }
        let mut buffer = [0; 1 << 10];
        let length = socket.recv(&mut buffer).expect("an answer to the request");
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    });
    assert!(answer.contains("mul"), "the reply was answered: {answer}");
}

/// Sends a datagram over and over from `from` while `work` is done.
fn under_flood<T>(from: &Host, to: &str, datagram: &[u8], work: impl FnOnce() -> T) -> T {
    let over = AtomicBool::new(false);
    let sent = AtomicU32::new(0);
    thread::scope(|scope| {
        let flood = || {
            from.enter(|| {
                let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
                while !over.load(Ordering::Relaxed) {
                    let _ = socket.send_to(datagram, (to, 5001));
                    sent.fetch_add(1, Ordering::Relaxed);
                }
            });
        };
        scope.spawn(flood);
        scope.spawn(flood);
        wait_until(SOON, "the flood is in full flow", || sent.load(Ordering::Relaxed) > 50_000);
        // Its end must not wait for a test that fails.
        let done = catch_unwind(AssertUnwindSafe(work));
        over.store(true, Ordering::Relaxed);
        done.unwrap_or_else(|panic| resume_unwind(panic))
    })
}

#[test]
fn a_flood_neither_stops_the_service_nor_fills_the_log() {
    let Setup { host, other, agent, .. } = &setup(&[]);
    let list = || grpcurl(agent, "tunmesh.v1.TunnelService/ListTunnels", &json!({})).unwrap();
    under_flood(other, "172.100.1.1", b"ignored", list);
    under_flood(host, "127.0.0.1", b"refused", list);
    let lines = agent.log().lines().count();
    assert!(lines < 300, "{lines} lines");
}

#[test]
fn a_name_adds_no_line_to_the_log() {
    let Setup { host, agent, .. } = &setup(&[]);
    let name = "udp2\nan invented line\u{1b}[31m";
    let reply = add(host, json!({"name": name, "tunnelIP": "10.0.1.1", "remoteServer": "172.100.1.2"}));
    assert_refused(&reply, name, &["name"]);
    let log = agent.log();
    assert!(log.contains("udp2"), "{log}");
    assert!(!log.lines().any(|line| line.starts_with("an invented")) && !log.contains('\u{1b}'), "{log}");
}

#[test]
fn a_forged_loopback_source_is_ignored() {
    for allow in [&[][..], &["--legacy-allow", "127.0.0.0/8"]] {
        let Setup { host, other, agent, .. } = &mut setup(allow);
        // A host that lets such packets in at all: by default the kernel drops them as martians.
        for scope in ["all".to_owned(), host.device_to(other)] {
            host.sysctl(&format!("net.ipv4.conf.{scope}.route_localnet"), "1");
            host.sysctl(&format!("net.ipv4.conf.{scope}.accept_local"), "1");
            host.sysctl(&format!("net.ipv4.conf.{scope}.rp_filter"), "0");
        }
        send_forged(other, host, TUNNEL.as_bytes());
        wait_until(SOON, "the forged datagram arrives and is ignored", || agent.log().contains("127.0.0.1"));
        assert!(!holds_within(SILENCE, || device(host, "udp2").is_some()), "{allow:?}: it was heeded");
        assert!(agent.alive());
    }
}

/// Sends a datagram with the source 127.0.0.1 from another host, past everything that would stop it there.
fn send_forged(from: &Host, to: &Host, payload: &[u8]) {
    let builder = etherparse::PacketBuilder::ipv4([127, 0, 0, 1], [172, 100, 1, 1], 64).udp(40_000, 5001);
    let mut packet = Vec::new();
    builder.write(&mut packet, payload).unwrap();
    let device = from.device_to(to);
    from.sysctl(&format!("net.ipv4.conf.{device}.route_localnet"), "1");
    from.enter(|| {
        let raw = socket2::Socket::new(
            socket2::Domain::IPV4,
            socket2::Type::RAW,
            Some(socket2::Protocol::from(libc::IPPROTO_RAW)),
        )
        .unwrap();
        raw.bind_device(Some(device.as_bytes())).unwrap();
        let destination: std::net::SocketAddr = "172.100.1.1:0".parse().unwrap();
        raw.send_to(&packet, &destination.into()).unwrap();
    });
}

#[test]
fn can_be_closed() {
    let Setup { host, agent, .. } = &mut setup(&["--no-legacy"]);
    assert_eq!(send_to(host, "127.0.0.1", TUNNEL.as_bytes(), SILENCE), None);
    let listening = host.run(["ss", "-uln"]);
    assert!(!listening.contains(":5001 ") && listening.contains(":5000 "), "{listening}");
    assert!(agent.alive());
}
