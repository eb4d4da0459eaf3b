//! What is damaged stays damaged: whoever a packet is for sees by its checksum that it is not what was sent, however many
//! packets were handled at once.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a fault ends the test")]

mod lab;

use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::Ordering;

use lab::{Agent, Family, Faults, Host, Lab, Relay, SOON, grpcurl, number, ping_ok, transfer, wait_until};
use nix::sys::socket::sockopt::RcvBufForce;
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, setsockopt, socket};
use serde_json::{Value, json};

const ADD: &str = "tunmesh.v1.TunnelService/AddTunnel";
const GET: &str = "tunmesh.v1.TunnelService/GetTunnel";
const STATUS: &str = "tunmesh.v1.TunnelService/GetStatus";

/// Gives each of two hosts a tunnel `link` to the other, by way of `remotes`; the first has the overlay's address 1.
fn connect(agents: &[Agent; 2], overlay: &str, remotes: [&str; 2], is_encrypted: bool) {
    let keys = [&agents[1], &agents[0]].map(|peer| is_encrypted.then(|| peer.public_key()));
    for (((n, agent), remote), key) in (1..).zip(agents).zip(remotes).zip(keys) {
        let length = if overlay.contains(':') { 64 } else { 24 };
        let mut tunnel = json!({
            "name": "link", "addresses": [format!("{overlay}{n}/{length}")], "remote": remote,
        });
        match key {
            Some(key) => tunnel["peerPublicKey"] = key.into(),
            None => tunnel["framing"] = "RAW".into(),
        }
        grpcurl(agent, ADD, &json!({"tunnel": tunnel})).unwrap();
    }
}

/// All that a host has counted as refused, of its tunnel and of none.
fn refused(agent: &Agent) -> u64 {
    let of_tunnel =
        grpcurl(agent, GET, &json!({"name": "link"})).unwrap()["status"]["received"]["drops"].clone();
    let of_none = grpcurl(agent, STATUS, &json!({})).unwrap()["datagramsDropped"].clone();
    let counts =
        [&of_tunnel, &of_none].into_iter().filter_map(Value::as_object).flat_map(|counts| counts.values());
    counts.map(number).sum()
}

/// A sum of the kernel's counters of a host.
fn kernel(host: &Host, names: &[&str]) -> u64 {
    let counters: Value = serde_json::from_str(&host.run(["nstat", "-azsj"])).unwrap();
    names.iter().map(|name| counters["kernel"][*name].as_u64().expect(name)).sum()
}

fn bad_checksums(host: &Host) -> u64 {
    kernel(host, &["TcpInCsumErrors", "IcmpInCsumErrors", "Icmp6InCsumErrors"])
}

/// A stream arrives whole, and each of the packets that were damaged on the way is one that its receiver refused; where they
/// are encrypted, the agent did.
fn is_seen_by_the_receiver(family: Family, is_encrypted: bool) {
    let lab = Lab::new();
    let hosts = ["a", "b"].map(|role| lab.host(role));
    let between = lab.host("between");
    let (net, bits, overlay) = match family {
        Family::V4 => ("172.100.", 24, "10.0.1."),
        Family::V6 => ("fd00:100:", 64, "fd00:10::"),
    };
    let address = |side: usize, last: &str| match family {
        Family::V4 => format!("{net}{side}.{last}"),
        Family::V6 => format!("{net}{side}::{last}"),
    };
    for (side, host) in (1..).zip(&hosts) {
        let wide = |last| format!("{}/{bits}", address(side, last));
        lab.link(host, &wide("1"), &between, &wide("9"));
    }
    let port = |last| [1, 2].map(|side| SocketAddr::new(address(side, last).parse().unwrap(), 5000));
    let faults = Faults { damaged: 20, ..Faults::default() };
    let agents = hosts.each_ref().map(|host| Agent::start(host, &[]));
    connect(&agents, overlay, [&address(1, "9"), &address(2, "9")], is_encrypted);
    // Not before: what arrives at the first of them while the other does not know it would be refused, too.
    let relay = Relay::start(&between, port("9"), port("1"), faults, 7);

    transfer(&hosts[0], &hosts[1], &format!("{overlay}2"), 20_000_000);
    transfer(&hosts[1], &hosts[0], &format!("{overlay}1"), 20_000_000);
    for (from, to) in [(0, 1), (1, 0)] {
        let damaged = || relay.passed[from].damaged.load(Ordering::Relaxed);
        assert!(damaged() > 200, "{} were damaged", damaged());
        let seen = || match is_encrypted {
            true => refused(&agents[to]),
            false => bad_checksums(&hosts[to]),
        };
        wait_until(SOON, "each that was damaged was seen to be", || seen() == damaged());
        let others = if is_encrypted { bad_checksums(&hosts[to]) } else { refused(&agents[to]) };
        assert_eq!(others, 0, "by nobody else");
        let received =
            grpcurl(&agents[to], GET, &json!({"name": "link"})).unwrap()["status"]["received"].clone();
        let at_device =
            hosts[to].ip_json(["-s", "link", "show", "dev", "link"])[0]["stats64"]["rx"]["packets"]
                .as_u64()
                .unwrap();
        let packets: u64 = received["packets"].as_str().unwrap().parse().unwrap();
        assert!(at_device * 2 < packets, "packets were merged all the same: {packets} to {at_device}");
    }
}

#[test]
fn damage_on_the_way_is_seen_by_the_receiver_on_ipv4() {
    is_seen_by_the_receiver(Family::V4, false);
}

#[test]
fn damage_on_the_way_is_seen_by_the_receiver_on_ipv6() {
    is_seen_by_the_receiver(Family::V6, false);
}

#[test]
fn damage_on_the_way_is_refused_by_an_encrypted_tunnel_on_ipv4() {
    is_seen_by_the_receiver(Family::V4, true);
}

#[test]
fn damage_on_the_way_is_refused_by_an_encrypted_tunnel_on_ipv6() {
    is_seen_by_the_receiver(Family::V6, true);
}

/// A packet of IPv4, whose header is right, from 10.0.1.1 to 10.0.1.2.
fn packet(protocol: u8, transport: &[u8]) -> Vec<u8> {
    let length = u16::try_from(20 + transport.len()).unwrap().to_be_bytes();
    let mut packet =
        vec![0x45, 0, length[0], length[1], 0, 0, 0x40, 0, 64, protocol, 0, 0, 10, 0, 1, 1, 10, 0, 1, 2];
    packet.extend_from_slice(transport);
    packet
}

/// The Internet checksum of a pseudo header and what follows it, in which the checksum is zero (RFC 1071).
fn checksum(protocol: u8, transport: &[u8]) -> [u8; 2] {
    let length = u16::try_from(transport.len()).unwrap().to_be_bytes();
    let pseudo = [10, 0, 1, 1, 10, 0, 1, 2, 0, protocol, length[0], length[1]];
    let words = pseudo.chunks(2).chain(transport.chunks(2));
    let mut sum: u32 =
        words.map(|word| u32::from(word[0]) << 8 | u32::from(*word.get(1).unwrap_or(&0))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!u16::try_from(sum).unwrap()).to_be_bytes()
}

/// A host that sends, or passes on, what is damaged already: among packets that are sound and follow one another.
#[test]
fn what_comes_damaged_to_the_device_is_sent_as_it_came() {
    const PACKETS: u32 = 600;
    let lab = Lab::new();
    let hosts = ["a", "b"].map(|role| lab.host(role));
    let [a, b] = &hosts;
    lab.link(a, "172.100.1.1/24", b, "172.100.1.2/24");
    let agents = hosts.each_ref().map(|host| Agent::start(host, &[]));
    connect(&agents, "10.0.1.", ["172.100.1.2", "172.100.1.1"], false);
    ping_ok(a, "10.0.1.2");
    let receiver = b.enter(|| UdpSocket::bind("10.0.1.2:7000")).unwrap();
    setsockopt(&receiver, RcvBufForce, &(16 << 20)).unwrap();
    let raw = |protocol| a.enter(|| socket(AddressFamily::Inet, SockType::Raw, SockFlag::empty(), protocol));
    let raw = UdpSocket::from(raw(SockProtocol::Raw).unwrap());
    let names = ["UdpInCsumErrors", "TcpInCsumErrors"];
    let before = names.map(|name| kernel(b, &[name]));
    let mut sound = 0;
    for number in 0..PACKETS {
        // One of the last bytes of every third: enough follow one another to be merged.
        let is_damaged = number % 3 == 0;
        sound += u32::from(!is_damaged);
        let mut udp = [&[0x1b, 0x58, 0x1b, 0x58, 4, 0, 0, 0], &[b'u'; 1016][..]].concat();
        let sequence = (number * 1000).to_be_bytes();
        let ports = [0x1b, 0x58, 0x1b, 0x58];
        let mut tcp =
            [&ports[..], &sequence, &[0, 0, 0, 1, 0x50, 0x10, 1, 0, 0, 0, 0, 0], &[b't'; 1000]].concat();
        for (protocol, at, transport) in [(17, 6, &mut udp), (6, 16, &mut tcp)] {
            let sum = checksum(protocol, transport);
            transport[at..at + 2].copy_from_slice(&sum);
            if is_damaged {
                *transport.last_mut().unwrap() ^= 1 << (number % 8);
            }
            raw.send_to(&packet(protocol, transport), "10.0.1.2:0").unwrap();
        }
    }
    receiver.set_read_timeout(Some(SOON)).unwrap();
    let mut arrived = [0; 1500];
    for _ in 0..sound {
        assert_eq!(receiver.recv(&mut arrived).unwrap(), 1016);
        assert!(arrived[..1016].iter().all(|byte| *byte == b'u'));
    }
    receiver.set_nonblocking(true).unwrap();
    assert!(receiver.recv(&mut arrived).is_err(), "only what is sound arrives");
    for (name, before) in names.iter().zip(before) {
        wait_until(SOON, &format!("{name}: each that was damaged was seen to be"), || {
            kernel(b, &[name]) - before == u64::from(PACKETS - sound)
        });
    }
}
