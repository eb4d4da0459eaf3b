//! Every datagram and packet is accounted for: what comes in is what goes out and what is dropped, by reason.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a fault ends the test")]

mod lab;

use std::net::UdpSocket;

use lab::{Agent, Host, Lab, SOON, datagrams, grpcurl, number, ping, ping_ok, transfer, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

const ADD: &str = "tunmesh.v1.TunnelService/AddTunnel";
const GET: &str = "tunmesh.v1.TunnelService/GetTunnel";
const STATUS: &str = "tunmesh.v1.TunnelService/GetStatus";

fn sum(drops: &Value) -> u64 {
    drops.as_object().into_iter().flatten().map(|(_, count)| number(count)).sum()
}

/// Datagrams that the kernel gave to sockets of the host, and those it dropped for want of room.
fn kernel_datagrams(host: &Host) -> (u64, u64) {
    let text = host.run(["cat", "/proc/net/snmp"]);
    let mut lines = text.lines().filter(|line| line.starts_with("Udp:"));
    let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
    let value = |name: &str| {
        let position = names.split(' ').position(|other| other == name).unwrap();
        values.split(' ').nth(position).unwrap().parse::<u64>().unwrap()
    };
    (value("InDatagrams"), value("RcvbufErrors"))
}

/// Packets that the kernel took from the agent, and that it gave to the agent.
fn kernel_packets(host: &Host, device: &str) -> (u64, u64) {
    let stats = host.ip_json(["-s", "link", "show", "dev", device])[0]["stats64"].clone();
    let of = |direction: &str| stats[direction]["packets"].as_u64().unwrap();
    (of("rx"), of("tx"))
}

/// The kernel counts a packet that is many as one: so that its counters say how many there are.
const ONE_BY_ONE: [&str; 2] = ["--without", "tun-tso,tun-uso,udp-gro"];

struct Pair {
    _lab: Lab,
    host: Host,
    other: Host,
    agent: Agent,
    their: Agent,
}

/// Whether a tunnel is encrypted.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Security {
    Encrypted,
    Plain,
}

/// Two hosts with a tunnel, and agents that are started with `arguments` more.
fn pair(arguments: &[&str], security: Security) -> Pair {
    let lab = Lab::new();
    let (host, other) = (lab.host("host"), lab.host("other"));
    lab.link(&host, "172.100.1.1/24", &other, "172.100.1.2/24");
    let (agent, their) = (Agent::start(&host, arguments), Agent::start(&other, arguments));
    let tunnel = |own: u8, peer: u8, remote: &str, key: String| {
        let mut tunnel = json!({"name": "link", "addresses": [format!("10.0.1.{own}/24")], "remote": remote,
                                "mtu": 1400, "allowedPrefixes": [{"prefix": format!("10.0.1.{peer}/32")}]});
        match security {
            Security::Encrypted => tunnel["peerPublicKey"] = json!(key),
            Security::Plain => tunnel["framing"] = json!("RAW"),
        }
        json!({ "tunnel": tunnel })
    };
    // A plain tunnel is the address's, whatever its port: the flood below comes from other ones.
    grpcurl(&agent, ADD, &tunnel(1, 2, "172.100.1.2", their.public_key())).unwrap();
    grpcurl(&their, ADD, &tunnel(2, 1, "172.100.1.1", agent.public_key())).unwrap();
    Pair { _lab: lab, host, other, agent, their }
}

/// What an agent has counted of what it received: packets of its tunnel, drops, and what keeps encrypted tunnels going.
fn accounted(total: &Value, link: &Value) -> u64 {
    sum(&total["datagramsDropped"])
        + number(&total["sessionMessages"])
        + number(&link["received"]["packets"])
        + sum(&link["received"]["drops"])
}

/// Sends every first byte with every length up to `longest`, padded with seeded noise. Returns how many.
fn flood(from: &Host, longest: usize) -> u64 {
    from.enter(|| {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        let mut seed = 1_u32;
        let mut sent = 0;
        for length in 0..=longest {
            for first in 0..=255_u8 {
                let mut datagram: Vec<u8> = (0..length)
                    .map(|_| {
                        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                        (seed >> 24) as u8
                    })
                    .collect();
                if let Some(byte) = datagram.first_mut() {
                    *byte = first;
                }
                socket.send_to(&datagram, "172.100.1.1:5000").unwrap();
                sent += 1;
            }
        }
        sent
    })
}

#[test]
fn a_flood_of_garbage_on_an_encrypted_tunnel_adds_up() {
    let Pair { host, other, agent, .. } = &mut pair(&ONE_BY_ONE, Security::Encrypted);
    ping_ok(host, "10.0.1.2");
    let (before, dropped_before) = kernel_datagrams(host);
    let status = || grpcurl(agent, STATUS, &json!({})).unwrap();
    let counted_before = number(&status()["datagramsReceived"]);
    let mut sent = flood(other, 300);
    // As messages of the protocol begin, with every length.
    other.enter(|| {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        for kind in 1..=4 {
            for length in 4..=300 {
                let mut datagram = vec![0xa5; length];
                datagram[..4].copy_from_slice(&[kind, 0, 0, 0]);
                socket.send_to(&datagram, "172.100.1.1:5000").unwrap();
                sent += 1;
            }
        }
    });
    wait_until(SOON, "all datagrams that the kernel has are received", || {
        let (now, dropped) = kernel_datagrams(host);
        now - before + (dropped - dropped_before) >= sent
            && number(&status()["datagramsReceived"]) - counted_before == now - before
    });
    let total = status();
    let link = grpcurl(agent, GET, &json!({"name": "link"})).unwrap()["status"].clone();
    assert_eq!(number(&total["datagramsReceived"]), accounted(&total, &link), "{total} {link}");
    for reason in ["malformed", "forged", "no_session", "unknown_sender"] {
        assert!(number(&total["datagramsDropped"][reason]) > 0, "nothing was {reason}: {total}");
    }
    ping_ok(host, "10.0.1.2");
    assert!(agent.alive());
}

#[test]
fn a_flood_of_garbage_adds_up() {
    let Pair { host, other, agent, .. } = &mut pair(&ONE_BY_ONE, Security::Plain);
    let (before, dropped_before) = kernel_datagrams(host);
    let mut sent = flood(other, 1472);
    // Packets that begin well: from a martian source, from one that is not allowed, from its own address, to nobody.
    let packet = |source: [u8; 4], destination: [u8; 4]| {
        let mut bytes = Vec::new();
        etherparse::PacketBuilder::ipv4(source, destination, 64)
            .udp(1, 2)
            .write(&mut bytes, b"data")
            .unwrap();
        bytes
    };
    let mine = [10, 0, 1, 1];
    let well_formed = [
        packet([10, 0, 1, 2], mine),
        packet([127, 0, 0, 1], mine),
        packet([224, 0, 0, 1], mine),
        packet([10, 0, 1, 9], mine),
        packet(mine, mine),
        packet([10, 0, 1, 2], [127, 0, 0, 1]),
    ];
    other.enter(|| {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        for bytes in &well_formed {
            socket.send_to(bytes, "172.100.1.1:5000").unwrap();
            let framed = [&[0, 0, 8, 0][..], bytes].concat();
            socket.send_to(&framed, "172.100.1.1:5000").unwrap();
            // Said to be IPv6, which it is not.
            let wrong = [&[0, 0, 0x86, 0xdd][..], bytes].concat();
            socket.send_to(&wrong, "172.100.1.1:5000").unwrap();
            // Cut, and longer than it says.
            socket.send_to(&bytes[..bytes.len() - 1], "172.100.1.1:5000").unwrap();
            socket.send_to(&[bytes, &b"padding"[..]].concat(), "172.100.1.1:5000").unwrap();
            sent += 5;
        }
    });
    // From a stranger, too.
    other.address(&other.device_to(host), "172.100.1.66/24");
    other.enter(|| {
        let socket = UdpSocket::bind("172.100.1.66:0").unwrap();
        for bytes in &well_formed {
            socket.send_to(bytes, "172.100.1.1:5000").unwrap();
            sent += 1;
        }
    });

    let status = || grpcurl(agent, STATUS, &json!({})).unwrap();
    wait_until(SOON, "all datagrams that the kernel has are received", || {
        let (now, dropped) = kernel_datagrams(host);
        now - before + (dropped - dropped_before) == sent
            && number(&status()["datagramsReceived"]) == now - before
    });
    let total = status();
    let link = grpcurl(agent, GET, &json!({"name": "link"})).unwrap()["status"].clone();
    let received = number(&total["datagramsReceived"]);
    assert_eq!(received, accounted(&total, &link), "{total} {link}");
    let (into_kernel, _) = kernel_packets(host, "link");
    assert_eq!(number(&link["received"]["packets"]), into_kernel, "{link}");
    for reason in ["framing", "malformed", "martian", "source_not_allowed"] {
        assert!(number(&link["received"]["drops"][reason]) > 0, "nothing was {reason}: {link}");
    }
    assert_eq!(number(&total["datagramsDropped"]["unknown_sender"]), well_formed.len() as u64);
    assert!(agent.alive());
}

#[test]
fn what_comes_with_a_flood_of_garbage_comes_through() {
    garbage_beside_a_transfer(Security::Plain);
}

#[test]
fn what_comes_encrypted_with_a_flood_of_garbage_comes_through() {
    garbage_beside_a_transfer(Security::Encrypted);
}

fn garbage_beside_a_transfer(security: Security) {
    let Pair { host, other, agent, .. } = &pair(&ONE_BY_ONE, security);
    ping_ok(host, "10.0.1.2");
    let (before, dropped_before) = kernel_datagrams(host);
    let received = || number(&grpcurl(agent, STATUS, &json!({})).unwrap()["datagramsReceived"]);
    let counted_before = received();
    std::thread::scope(|scope| {
        let garbage = scope.spawn(|| flood(other, 400));
        transfer(other, host, "10.0.1.1", 20_000_000);
        transfer(host, other, "10.0.1.2", 20_000_000);
        assert_eq!(garbage.join().unwrap(), 401 * 256);
    });
    wait_until(SOON, "all datagrams that the kernel did not drop are received", || {
        let (now, _) = kernel_datagrams(host);
        received() - counted_before == now - before
    });
    let (_, dropped) = kernel_datagrams(host);
    let total = grpcurl(agent, STATUS, &json!({})).unwrap();
    let link = grpcurl(agent, GET, &json!({"name": "link"})).unwrap()["status"].clone();
    assert_eq!(number(&total["datagramsReceived"]), accounted(&total, &link), "{total} {link}");
    let counted = sum(&total["datagramsDropped"]) + sum(&link["received"]["drops"]);
    let garbage = counted + (dropped - dropped_before);
    assert!(garbage >= 100_000, "{garbage} {link}");
}

#[test]
fn what_two_peers_sent_by_turns_is_judged_by_who_sent_it() {
    const TURNS: u64 = 5;
    let lab = Lab::new();
    let (host, other) = (lab.host("host"), lab.host("other"));
    lab.link(&host, "172.100.1.1/24", &other, "172.100.1.2/24");
    other.address(&other.device_to(&host), "172.100.1.3/24");
    let agent = Agent::start(&host, &[]);
    for peer in [2, 3] {
        let tunnel = json!({"name": format!("peer{peer}"), "device": "shared", "addresses": ["10.9.0.1/24"],
                            "remote": format!("172.100.1.{peer}"), "framing": "RAW",
                            "allowedPrefixes": [{"prefix": format!("10.9.0.{peer}/32")}]});
        grpcurl(&agent, ADD, &json!({ "tunnel": tunnel })).unwrap();
    }
    let [two, three] =
        [2, 3].map(|peer| other.enter(|| UdpSocket::bind(format!("172.100.1.{peer}:0")).unwrap()));
    let receiver = host.enter(|| UdpSocket::bind("10.9.0.1:7777").unwrap());
    receiver.set_read_timeout(Some(SOON)).unwrap();
    let packet = |source: u8, content: &[u8]| {
        let mut bytes = Vec::new();
        etherparse::PacketBuilder::ipv4([10, 9, 0, source], [10, 9, 0, 1], 64)
            .udp(7777, 7777)
            .write(&mut bytes, content)
            .unwrap();
        bytes
    };
    let send = |socket: &UdpSocket, datagram: &[u8]| {
        assert_eq!(socket.send_to(datagram, "172.100.1.1:5000").unwrap(), datagram.len());
    };
    // An agent that stands still reads all of it at once when it goes on.
    let process = Pid::from_raw(agent.pid().try_into().unwrap());
    kill(process, Signal::SIGSTOP).unwrap();
    for _ in 0..TURNS {
        send(&two, &packet(2, b"of the second"));
        send(&two, &packet(2, b"of the second"));
        send(&three, b"\xffgarbage");
        // As if it were of the other's, and went on where that ended.
        send(&three, &packet(2, b"of the third!"));
        send(&three, &packet(3, b"of the third!"));
        send(&three, &packet(3, b"of the third!"));
    }
    kill(process, Signal::SIGCONT).unwrap();
    let mut arrived = Vec::new();
    for _ in 0..4 * TURNS {
        let mut buffer = [0; 64];
        let (length, source) = receiver.recv_from(&mut buffer).unwrap();
        arrived.push((buffer[..length].to_vec(), source.ip().to_string()));
    }
    let of = |content: &[u8], source: &str| {
        arrived.iter().filter(|(bytes, from)| bytes == content && from == source).count() as u64
    };
    let whole = (of(b"of the second", "10.9.0.2"), of(b"of the third!", "10.9.0.3"));
    assert_eq!(whole, (2 * TURNS, 2 * TURNS), "{arrived:?}");
    let received =
        |name: &str| grpcurl(&agent, GET, &json!({"name": name})).unwrap()["status"]["received"].clone();
    let (two, three) = (received("peer2"), received("peer3"));
    assert_eq!((number(&two["packets"]), sum(&two["drops"])), (2 * TURNS, 0), "{two}");
    let drops = |reason: &str| number(&three["drops"][reason]);
    assert_eq!(
        (number(&three["packets"]), drops("framing"), drops("source_not_allowed"), sum(&three["drops"])),
        (2 * TURNS, TURNS, TURNS, 2 * TURNS),
        "{three}"
    );
}

#[test]
fn a_tunnel_that_is_added_again_is_counted_anew() {
    let Pair { host, agent, .. } = &pair(&[], Security::Plain);
    let link = || grpcurl(agent, GET, &json!({"name": "link"})).unwrap()["status"].clone();
    let counts = |link: &Value| {
        let of = |direction: &str| number(&link[direction]["packets"]) + sum(&link[direction]["drops"]);
        (of("sent"), of("received"), link["lastReceived"].is_null(), link["state"].clone())
    };
    ping_ok(host, "10.0.1.2");
    // A change is none.
    let before = counts(&link());
    assert!(before.0 > 0 && before.1 > 0 && !before.2 && before.3 == "PASSING", "{before:?}");
    let mut tunnel = link()["tunnel"].clone();
    tunnel["mtu"] = json!(1300);
    grpcurl(agent, ADD, &json!({"tunnel": tunnel, "replace": true})).unwrap();
    let changed = link();
    assert_eq!(
        (&changed["deviceMtu"], counts(&changed).2, &changed["state"]),
        (&json!(1300), false, &json!("PASSING"))
    );
    assert!(counts(&changed).0 >= before.0 && counts(&changed).1 >= before.1, "{changed}");

    grpcurl(agent, "tunmesh.v1.TunnelService/DeleteTunnel", &json!({"name": "link"})).unwrap();
    tunnel["addresses"] = json!(["10.0.1.1/32"]);
    grpcurl(agent, ADD, &json!({ "tunnel": tunnel })).unwrap();
    let anew = counts(&link());
    assert_eq!((anew.1, anew.2), (0, true), "{anew:?}");
    assert!(anew.0 < before.0, "{anew:?} after {before:?}");
}

#[test]
fn packets_from_a_device_add_up() {
    let Pair { host, other, agent, .. } = &pair(&ONE_BY_ONE, Security::Plain);
    ping_ok(host, "10.0.1.2");
    transfer(host, other, "10.0.1.2", 5_000_000);
    transfer(other, host, "10.0.1.1", 5_000_000);
    // To nobody; too big for the path, with and without leave to fragment.
    ping(host, "10.0.1.77", &[]);
    host.run(["ip", "link", "set", "dev", "link", "mtu", "4000"]);
    assert!(!ping(host, "10.0.1.2", &["-M", "do", "-s", "3000"]));
    assert!(ping(host, "10.0.1.2", &["-M", "dont", "-s", "3000"]), "an echo in fragments");
    // The peer gone, and the way to it.
    host.run(["ip", "link", "set", &host.device_to(other), "down"]);
    ping(host, "10.0.1.2", &[]);

    let (into_kernel, from_kernel) = kernel_packets(host, "link");
    let total = grpcurl(agent, STATUS, &json!({})).unwrap();
    let link = grpcurl(agent, GET, &json!({"name": "link"})).unwrap()["status"].clone();
    let sent = number(&link["sent"]["packets"]) + sum(&link["sent"]["drops"]);
    assert_eq!(from_kernel, sent + sum(&total["packetsDropped"]), "{total} {link}");
    for reason in ["too_big", "unreachable"] {
        assert!(number(&link["sent"]["drops"][reason]) > 0, "nothing was {reason}: {link}");
    }
    let no_tunnel = number(&total["packetsDropped"]["no_tunnel"]);
    assert!(no_tunnel > 0, "{total}");
    // What the kernel got beside the peer's packets are the answers: one a packet that had no way or was too big.
    let answers = no_tunnel + number(&link["sent"]["drops"]["too_big"]);
    assert_eq!(into_kernel, number(&link["received"]["packets"]) + answers, "{total} {link}");
}

#[test]
fn packets_that_cross_as_one_add_up() {
    packets_that_cross_as_one(Security::Plain);
}

#[test]
fn encrypted_packets_that_cross_as_one_add_up() {
    packets_that_cross_as_one(Security::Encrypted);
}

fn packets_that_cross_as_one(security: Security) {
    let Pair { host, other, agent, their, .. } = &pair(&[], security);
    ping_ok(host, "10.0.1.2");
    transfer(host, other, "10.0.1.2", 50_000_000);
    transfer(other, host, "10.0.1.1", 50_000_000);
    datagrams(host, other, "10.0.1.2", 1200, 5000);
    // The last acknowledgements may be under way.
    wait_until(SOON, "what one agent sent the other received", || {
        let [host, other] = [agent, their]
            .map(|agent| grpcurl(agent, GET, &json!({"name": "link"})).unwrap()["status"].clone());
        let carried = |status: &Value, direction: &str| {
            let of = &status[direction];
            (number(&of["packets"]), number(&of["bytes"]), sum(&of["drops"]))
        };
        carried(&host, "sent") == carried(&other, "received")
            && carried(&other, "sent") == carried(&host, "received")
            && carried(&host, "sent").2 == 0
            && carried(&host, "sent").1 > 50_000_000
    });
    for (agent, host) in [(agent, host), (their, other)] {
        let link = grpcurl(agent, GET, &json!({"name": "link"})).unwrap()["status"].clone();
        let (into_kernel, from_kernel) = kernel_packets(host, "link");
        // Otherwise nothing crossed as one.
        assert!(from_kernel * 4 < number(&link["sent"]["packets"]), "{from_kernel} {link}");
        assert!(into_kernel * 2 < number(&link["received"]["packets"]), "{into_kernel} {link}");
    }
}
