//! How many threads and sockets an agent's packets take, and that none is lost where that changes.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a fault ends the test")]
#![allow(clippy::disallowed_methods, reason = "a flood has a rate")]

mod lab;

use std::collections::BTreeSet;
use std::fs;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use lab::{Agent, Host, Lab, SOON, grpcurl, number, ping, ping_ok, transfer, wait_until};
use serde_json::json;

const ADD: &str = "tunmesh.v1.TunnelService/AddTunnel";
const STATUS: &str = "tunmesh.v1.TunnelService/GetStatus";
const GET: &str = "tunmesh.v1.TunnelService/GetTunnel";

/// How often the threads of a name have waited since they were started.
fn waits(agent: &Agent, thread: &str) -> u64 {
    let of = |task: &std::path::Path| {
        let read = |file: &str| fs::read_to_string(task.join(file)).unwrap_or_default();
        let status = read("status");
        let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        (read("comm").trim() == thread).then(|| line.unwrap().trim().parse::<u64>().unwrap())
    };
    let tasks = fs::read_dir(format!("/proc/{}/task", agent.pid())).unwrap();
    let all: Vec<u64> = tasks.filter_map(|task| of(&task.unwrap().path())).collect();
    assert!(!all.is_empty(), "{thread}");
    all.iter().sum()
}

/// The peers for which the host's agent has sockets of their own.
fn heard_alone(host: &Host) -> BTreeSet<SocketAddr> {
    let sockets = host.run(["ss", "-Hun", "state", "established", "sport", "=", ":5000"]);
    let peer = |line: &str| line.split_whitespace().next_back().map(|peer| peer.parse().unwrap());
    sockets.lines().filter_map(peer).collect()
}

/// Adds a tunnel to a host with another agent.
fn add(agent: &Agent, name: &str, own: &str, peer: &str, (remote, their, framing): (&str, &Agent, &str)) {
    let is_encrypted = framing == "WIREGUARD";
    let tunnel = json!({"name": name, "device": "mesh", "addresses": [format!("{own}/24")], "remote": remote,
                        "framing": framing, "allowedPrefixes": [{"prefix": format!("{peer}/32")}],
                        "peerPublicKey": if is_encrypted { their.public_key() } else { String::new() }});
    grpcurl(agent, ADD, &json!({ "tunnel": tunnel })).unwrap();
}

/// Agents of 172.100.1.1 and 172.100.1.2 with a tunnel that carries packets.
fn joined(host: &Host, other: &Host, framing: &str) -> (Agent, Agent) {
    let (agent, their) = (Agent::start(host, &[]), Agent::start(other, &[]));
    add(&agent, "link", "10.9.0.1", "10.9.0.2", ("172.100.1.2", &their, framing));
    add(&their, "link", "10.9.0.2", "10.9.0.1", ("172.100.1.1", &agent, framing));
    ping_ok(host, "10.9.0.2");
    (agent, their)
}

/// Does something again and again until it is dropped.
struct Busy {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Busy {
    fn with(mut work: impl FnMut() + Send + 'static) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let ends = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            while !ends.load(Ordering::Relaxed) {
                work();
            }
        });
        Self { stop, thread: Some(thread) }
    }

    fn with_transfers(from: &Host, to: &Host, address: &'static str) -> Self {
        let (from, to) = (from.clone(), to.clone());
        Self::with(move || transfer(&from, &to, address, 50_000_000))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.thread.take().unwrap().join();
        assert!(ended.is_ok() || thread::panicking(), "its work failed");
    }
}

fn a_ping_takes_one_thread(framing: &str) {
    let lab = Lab::new();
    let (host, other) = (lab.host("host"), lab.host("other"));
    lab.link(&host, "172.100.1.1/24", &other, "172.100.1.2/24");
    let (agent, their) = joined(&host, &other, framing);
    let pings_take_one_thread = || {
        let before =
            [&agent, &their].map(|agent| (waits(agent, "tunmesh-data"), waits(agent, "tunmesh-reader")));
        assert!(ping(&host, "10.9.0.2", &["-c", "50", "-i", "0.002"]));
        let after =
            [&agent, &their].map(|agent| (waits(agent, "tunmesh-data"), waits(agent, "tunmesh-reader")));
        before.iter().zip(after).all(|(before, after)| after.0 > before.0 && after.1 == before.1)
    };
    assert!(pings_take_one_thread());
    let before = waits(&agent, "tunmesh-reader");
    let busy = Busy::with_transfers(&other, &host, "10.9.0.1");
    wait_until(SOON, "a socket for the peer", || {
        heard_alone(&host) == BTreeSet::from(["172.100.1.2:5000".parse().unwrap()])
    });
    ping_ok(&host, "10.9.0.2");
    drop(busy);
    assert!(waits(&agent, "tunmesh-reader") > before);
    wait_until(SOON, "the socket is closed", || heard_alone(&host).is_empty());
    wait_until(SOON, "pings take one thread again", pings_take_one_thread);
}

#[test]
fn a_ping_takes_one_thread_and_a_transfer_more() {
    a_ping_takes_one_thread("RAW");
}

#[test]
fn a_ping_takes_one_thread_and_a_transfer_more_encrypted() {
    a_ping_takes_one_thread("WIREGUARD");
}

/// Peers of a host that send much at once, more than it has readers for, and one that does not.
fn many_peers(underlay: fn(u8) -> String, family: &str, framing: &str) {
    let lab = Lab::new();
    let (router, host) = (lab.host("router"), lab.host("host"));
    let readers = thread::available_parallelism().unwrap().get().clamp(2, 8) as u8;
    let last = 1 + readers + 2;
    let peers: Vec<_> = (2..=last).map(|n| (n, lab.host(&format!("peer{n}")))).collect();
    let addresses: Vec<String> = (1..=last).map(|n| format!("{}/{family}", underlay(n))).collect();
    let hosts = std::iter::once(&host).chain(peers.iter().map(|(_, peer)| peer));
    let ends: Vec<_> = hosts.zip(addresses.iter().map(String::as_str)).collect();
    lab.segment(&router, &format!("{}/{family}", underlay(254)), &ends);
    let agent = Agent::start(&host, &[]);
    let all: Vec<_> = peers
        .iter()
        .map(|(n, peer)| {
            let their = Agent::start(peer, &[]);
            let address = format!("10.9.0.{n}");
            add(&agent, &format!("to{n}"), "10.9.0.1", &address, (&underlay(*n), &their, framing));
            add(&their, "link", &address, "10.9.0.1", (&underlay(1), &agent, framing));
            (n, peer, their)
        })
        .collect();
    for (_, peer, _) in &all {
        ping_ok(peer, "10.9.0.1");
    }
    let (quiet, loud) = all.split_last().unwrap();
    let busy: Vec<_> =
        loud.iter().map(|(_, peer, _)| Busy::with_transfers(peer, &host, "10.9.0.1")).collect();
    wait_until(SOON, "sockets for several peers at once", || heard_alone(&host).len() >= 2);
    for _ in 0..5 {
        ping_ok(quiet.1, "10.9.0.1");
    }
    drop(busy);
    wait_until(SOON, "all sockets are closed", || {
        ping_ok(quiet.1, "10.9.0.1");
        heard_alone(&host).is_empty()
    });
    // Nothing was lost where sockets came and went.
    for (n, _, their) in &all {
        let received = || grpcurl(&agent, GET, &json!({"name": format!("to{n}")})).unwrap()["status"].clone();
        let sent = || grpcurl(their, GET, &json!({"name": "link"})).unwrap()["status"].clone();
        wait_until(SOON, "what a peer sent has arrived", || {
            let (received, sent) = (received(), sent());
            let drops = received["received"]["drops"].as_object().is_some_and(|drops| !drops.is_empty());
            !drops && number(&received["received"]["packets"]) == number(&sent["sent"]["packets"])
        });
    }
}

#[test]
fn many_loud_peers_and_a_quiet_one_are_heard_on_ipv4() {
    many_peers(|n| format!("172.100.1.{n}"), "24", "RAW");
}

#[test]
fn many_loud_peers_and_a_quiet_one_are_heard_on_ipv6() {
    many_peers(|n| format!("fd00::{n}"), "64", "RAW");
}

#[test]
fn many_loud_peers_and_a_quiet_one_are_heard_encrypted() {
    many_peers(|n| format!("172.100.1.{n}"), "24", "WIREGUARD");
}

fn packets_stay_in_order(framing: &str) {
    const TURNS: usize = 20;
    let lab = Lab::new();
    let (host, other) = (lab.host("host"), lab.host("other"));
    lab.link(&host, "172.100.1.1/24", &other, "172.100.1.2/24");
    let _agents = joined(&host, &other, framing);
    let receiver = host.enter(|| UdpSocket::bind("10.9.0.1:7000").unwrap());
    socket2::SockRef::from(&receiver).set_recv_buffer_size(8 << 20).unwrap();
    receiver.set_read_timeout(Some(SOON)).unwrap();
    let sender = other.enter(|| UdpSocket::bind("10.9.0.2:7000").unwrap());
    let counting = thread::spawn(move || {
        let (mut buffer, mut last, mut count) = ([0; 2_048], 0, 0_u64);
        loop {
            let length = receiver.recv(&mut buffer).unwrap();
            let number = u64::from_be_bytes(buffer[..8].try_into().unwrap());
            if number == u64::MAX {
                return count;
            }
            assert!(length == 1_200 && number > last, "{number} after {last}");
            (last, count) = (number, count + 1);
        }
    });
    let mut packet = [0; 1_200];
    let mut sent = 0_u64;
    let mut send = |number: u64| {
        packet[..8].copy_from_slice(&number.to_be_bytes());
        sender.send_to(&packet, "10.9.0.1:7000").unwrap();
    };
    for _ in 0..TURNS {
        wait_until(SOON, "a socket for the peer", || {
            for _ in 0..2_000 {
                sent += 1;
                send(sent);
            }
            !heard_alone(&host).is_empty()
        });
        // Less, but not nothing.
        wait_until(SOON, "the socket is closed", || {
            for _ in 0..20 {
                sent += 1;
                send(sent);
            }
            heard_alone(&host).is_empty()
        });
    }
    wait_until(SOON, "the last packet arrives", || {
        send(u64::MAX);
        counting.is_finished()
    });
    let arrived = counting.join().unwrap();
    assert!(arrived > sent / 2, "{arrived} of {sent}");
}

#[test]
fn packets_stay_in_order_where_a_peer_gets_and_leaves_its_socket() {
    packets_stay_in_order("RAW");
}

#[test]
fn encrypted_packets_stay_in_order_where_a_peer_gets_and_leaves_its_socket() {
    packets_stay_in_order("WIREGUARD");
}

#[test]
fn a_flood_of_strangers_gives_nobody_a_socket_and_wakes_nobody_for_each_datagram() {
    let lab = Lab::new();
    let (router, host, other, stranger) =
        (lab.host("router"), lab.host("host"), lab.host("other"), lab.host("stranger"));
    let ends = [(&host, "172.100.1.1/24"), (&other, "172.100.1.2/24"), (&stranger, "172.100.1.3/24")];
    lab.segment(&router, "172.100.1.254/24", &ends);
    let (agent, _their) = joined(&host, &other, "RAW");
    let garbage = || {
        let status = grpcurl(&agent, STATUS, &json!({})).unwrap();
        number(&status["datagramsDropped"]["unknown_sender"])
    };
    let socket = stranger.enter(|| UdpSocket::bind("0.0.0.0:0").unwrap());
    let flood = Busy::with(move || {
        // Whether there is room is not of interest.
        let _ = socket.send_to(&[0x45; 1_400], "172.100.1.1:5000");
        // Below what keeps whoever receives busy: then it would not wait at all.
        let next = Instant::now() + Duration::from_micros(15);
        while Instant::now() < next {
            std::hint::spin_loop();
        }
    });
    let counts = || (garbage(), waits(&agent, "tunmesh-reader"));
    let idle = waits(&agent, "tunmesh-reader");
    wait_until(SOON, "it takes a reader", || waits(&agent, "tunmesh-reader") > idle + 10);
    let before = counts();
    wait_until(SOON, "20 MB of garbage", || {
        ping_ok(&other, "10.9.0.1");
        assert_eq!(heard_alone(&host), BTreeSet::new());
        garbage() > before.0 + 15_000
    });
    let after = counts();
    drop(flood);
    assert!(4 * (after.1 - before.1) < after.0 - before.0, "{before:?} {after:?}");
}
