//! What is done for many packets at once changes nothing but the speed: the same transfers pass with each piece of it
//! switched off, by us or in the kernel's devices, and what is switched off is seen not to be used.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a fault ends the test")]

mod lab;

use lab::{Agent, Family, Host, Lab, SOON, datagrams, grpcurl, number, ping_ok, transfer, wait_until};
use serde_json::{Value, json};

const ADD: &str = "tunmesh.v1.TunnelService/AddTunnel";
const GET: &str = "tunmesh.v1.TunnelService/GetTunnel";
const STATUS: &str = "tunmesh.v1.TunnelService/GetStatus";
const OFFLOADS: [&str; 4] = ["tun-tso", "tun-uso", "udp-gso", "udp-gro"];
const BULK: u64 = 10_000_000;
const DATAGRAMS: u64 = 2000;

/// Two hosts, each with a tunnel `link` to the other.
struct Pair {
    _lab: Lab,
    family: Family,
    framing: &'static str,
    hosts: [Host; 2],
    agents: [Agent; 2],
}

impl Pair {
    /// On an underlay of this MTU, with agents that are started with `arguments` more.
    fn new(family: Family, framing: &'static str, underlay_mtu: u32, arguments: &[&str]) -> Self {
        let lab = Lab::new();
        let hosts = [lab.host("a"), lab.host("b")];
        let addresses = [1, 2].map(|n| format!("{}/{}", underlay(family, n), prefix(family).0));
        lab.link(&hosts[0], &addresses[0], &hosts[1], &addresses[1]);
        for (host, other) in [(&hosts[0], &hosts[1]), (&hosts[1], &hosts[0])] {
            host.run(["ip", "link", "set", &host.device_to(other), "mtu", &underlay_mtu.to_string()]);
        }
        let agents = [&hosts[0], &hosts[1]].map(|host| Agent::start(host, arguments));
        Self { _lab: lab, family, framing, hosts, agents }
    }

    /// Sets both tunnels.
    fn set(&self, mtu: u32, without: &[&str]) {
        let [a, b] = &self.agents;
        for (n, agent, other) in [(1, a, b), (2, b, a)] {
            let is_encrypted = self.framing == "WIREGUARD";
            let tunnel = json!({"replace": true, "tunnel": {
                "name": "link",
                "addresses": [format!("{}/{}", overlay(self.family, n), prefix(self.family).0)],
                "remote": underlay(self.family, 3 - n),
                "framing": self.framing,
                "peerPublicKey": if is_encrypted { other.public_key() } else { String::new() },
                "mtu": mtu,
                "without": without,
            }});
            grpcurl(agent, ADD, &tunnel).unwrap();
        }
        ping_ok(&self.hosts[0], &overlay(self.family, 2));
    }

    /// TCP and UDP, both ways.
    fn exercise(&self, mtu: u32) {
        let [a, b] = &self.hosts;
        // In whole packets of the tunnel, and in datagrams that are one odd byte longer than half of one.
        let headers = prefix(self.family).1;
        let size = u16::try_from(mtu.min(1400) - headers).unwrap();
        for (from, to, n) in [(a, b, 2), (b, a, 1)] {
            transfer(from, to, &overlay(self.family, n), BULK);
            datagrams(from, to, &overlay(self.family, n), size, DATAGRAMS);
            datagrams(from, to, &overlay(self.family, n), (size / 2) | 1, DATAGRAMS);
        }
    }

    fn tunnel(&self, n: usize) -> Value {
        grpcurl(&self.agents[n], GET, &json!({"name": "link"})).unwrap()["status"].clone()
    }
}

fn underlay(family: Family, n: u32) -> String {
    match family {
        Family::V4 => format!("172.100.1.{n}"),
        Family::V6 => format!("fd00:100::{n}"),
    }
}

fn overlay(family: Family, n: u32) -> String {
    match family {
        Family::V4 => format!("10.0.1.{n}"),
        Family::V6 => format!("fd00:10::{n}"),
    }
}

/// The length of a network's prefix, and of an IP and a UDP header.
fn prefix(family: Family) -> (u32, u32) {
    match family {
        Family::V4 => (24, 28),
        Family::V6 => (64, 48),
    }
}

/// Packets that an interface received and sent, as its driver counts them: one that is many is one.
fn packets(host: &Host, device: &str) -> (u64, u64) {
    let stats = host.ip_json(["-s", "link", "show", "dev", device])[0]["stats64"].clone();
    let of = |direction: &str| stats[direction]["packets"].as_u64().unwrap();
    (of("rx"), of("tx"))
}

/// Messages that the sockets of a host were given.
fn messages(host: &Host) -> u64 {
    let text = host.run(["cat", "/proc/net/snmp"]);
    let mut lines = text.lines().filter(|line| line.starts_with("Udp:"));
    let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
    let position = names.split(' ').position(|name| name == "InDatagrams").unwrap();
    values.split(' ').nth(position).unwrap().parse().unwrap()
}

/// How many packets one packet, message or datagram stands for at each place, from counters before and after.
#[derive(Debug)]
struct Degrees {
    /// From the device of the sender.
    device_out: f64,
    /// To the device of the receiver.
    device_in: f64,
    /// From the sender's socket, as its interface counts.
    socket_out: f64,
    /// To the receiver's socket.
    socket_in: f64,
}

/// Has `work` move packets from the first host to the second, and sees how they crossed.
fn degrees(pair: &Pair, work: impl FnOnce()) -> Degrees {
    let [a, b] = &pair.hosts;
    let counters = || {
        let (sent, received) = (pair.tunnel(0)["sent"].clone(), pair.tunnel(1)["received"].clone());
        let datagrams = grpcurl(&pair.agents[1], STATUS, &json!({})).unwrap()["datagramsReceived"].clone();
        [
            number(&sent["packets"]),
            packets(a, "link").1,
            packets(a, &a.device_to(b)).1,
            number(&received["packets"]),
            packets(b, "link").0,
            number(&datagrams),
            messages(b),
        ]
    };
    let before = counters();
    work();
    let after = counters();
    let more = |at: usize| (after[at] - before[at]) as f64;
    Degrees {
        device_out: more(0) / more(1),
        device_in: more(3) / more(4),
        socket_out: more(0) / more(2),
        socket_in: more(5) / more(6),
    }
}

fn what_is_on_is_used(framing: &'static str) {
    let pair = Pair::new(Family::V4, framing, 1500, &[]);
    let [a, b] = &pair.hosts;
    let tcp = || transfer(a, b, "10.0.1.2", 20_000_000);
    // Datagrams to the agent itself are messages of the host, too: TCP alone tells.
    let many = |degree: f64| degree > 3.0;
    let one = |degree: f64| degree < 1.1;

    pair.set(1400, &[]);
    let used = degrees(&pair, tcp);
    assert!(many(used.device_out) && many(used.device_in), "{used:?}");
    assert!(many(used.socket_out) && many(used.socket_in), "{used:?}");
    let used = degrees(&pair, || datagrams(a, b, "10.0.1.2", 1000, 4000));
    assert!(many(used.device_out) && many(used.socket_out), "{used:?}");

    pair.set(1400, &["tun-tso"]);
    let used = degrees(&pair, tcp);
    assert!(one(used.device_out) && one(used.device_in), "{used:?}");
    let used = degrees(&pair, || datagrams(a, b, "10.0.1.2", 1000, 4000));
    assert!(many(used.device_out), "{used:?}");

    pair.set(1400, &["tun-uso"]);
    let used = degrees(&pair, tcp);
    assert!(many(used.device_out) && many(used.device_in), "{used:?}");
    let used = degrees(&pair, || datagrams(a, b, "10.0.1.2", 1000, 4000));
    assert!(one(used.device_out), "{used:?}");

    pair.set(1400, &["udp-gso"]);
    let used = degrees(&pair, tcp);
    assert!(one(used.socket_out) && many(used.device_out), "{used:?}");

    pair.set(1400, &["udp-gro"]);
    let used = degrees(&pair, tcp);
    assert!(one(used.socket_in) && many(used.socket_out), "{used:?}");
}

#[test]
fn what_is_off_is_not_used_and_what_is_on_is() {
    what_is_on_is_used("RAW");
}

#[test]
fn what_is_off_is_not_used_and_what_is_on_is_where_it_is_encrypted() {
    what_is_on_is_used("WIREGUARD");
}

#[test]
fn the_state_of_each_is_told() {
    let pair = Pair::new(Family::V4, "RAW", 1500, &["--without", "udp-gro"]);
    pair.set(1400, &["tun-uso"]);
    let states = |offloads: &Value| -> Vec<String> {
        let state = |offload: &Value| {
            let text = |field: &str| offload[field].as_str().unwrap_or_default().to_owned();
            let in_use = offload["inUse"].as_bool().unwrap_or_default();
            format!("{} {in_use} {}", text("name"), text("reason")).trim_end().to_owned()
        };
        offloads.as_array().unwrap().iter().map(state).collect()
    };
    let agent = grpcurl(&pair.agents[0], STATUS, &json!({})).unwrap();
    assert_eq!(
        states(&agent["offloads"]),
        ["tun-tso true", "tun-uso true", "udp-gso true", "udp-gro false switched off by --without"]
    );
    assert_eq!(
        states(&pair.tunnel(0)["offloads"]),
        [
            "tun-tso true",
            "tun-uso false switched off for this tunnel",
            "udp-gso true",
            "udp-gro false switched off by --without"
        ]
    );
    assert!(pair.agents[0].show("status").contains("udp-gro off (switched off by --without)"));
    assert!(pair.agents[0].show("tunnels").contains("link: without tun-uso: switched off for this tunnel"));

    let open = Pair::new(Family::V4, "RAW", 1500, &[]);
    open.set(1400, &["tun-tso", "udp-gro"]);
    let agent = grpcurl(&open.agents[0], STATUS, &json!({})).unwrap();
    // The data port's is the host's; a device's is not.
    assert_eq!(
        states(&agent["offloads"]),
        ["tun-tso true", "tun-uso true", "udp-gso true", "udp-gro false switched off by tunnel link"]
    );

    let refused = grpcurl(
        &pair.agents[0],
        ADD,
        &json!({"tunnel": {"name": "other", "addresses": ["10.0.2.1/24"], "remote": "172.100.1.3", "framing": "RAW",
                           "without": ["lro"]}}),
    );
    let words = refused.unwrap_err().message;
    assert!(
        words.contains("tunnel.without[0]") && words.contains("tun-tso, tun-uso, udp-gso, udp-gro"),
        "{words}"
    );
}

/// Every switch of ours off, one by one, at every size of packets.
fn passes_with_each_off(family: Family, framing: &'static str) {
    let pair = Pair::new(family, framing, 9000, &[]);
    for mtu in [1280, 1400, 1500, 8000] {
        pair.set(mtu, &[]);
        pair.exercise(mtu);
    }
    for offload in OFFLOADS {
        pair.set(1400, &[offload]);
        pair.exercise(1400);
    }
    pair.set(1400, &OFFLOADS);
    pair.exercise(1400);
}

#[test]
fn transfers_pass_with_each_of_ours_off_on_ipv4() {
    passes_with_each_off(Family::V4, "RAW");
}

#[test]
fn transfers_pass_with_each_of_ours_off_on_ipv6() {
    passes_with_each_off(Family::V6, "RAW");
}

#[test]
fn transfers_pass_with_each_of_ours_off_in_the_framing_of_2015() {
    passes_with_each_off(Family::V4, "PI");
}

#[test]
fn transfers_pass_with_each_of_ours_off_encrypted() {
    passes_with_each_off(Family::V4, "WIREGUARD");
}

#[test]
fn transfers_pass_with_each_of_ours_off_encrypted_on_ipv6() {
    passes_with_each_off(Family::V6, "WIREGUARD");
}

fn passes_with_each_of_the_kernels_off(framing: &'static str) {
    let pair = Pair::new(Family::V4, framing, 1500, &[]);
    pair.set(1400, &[]);
    let [a, b] = &pair.hosts;
    let off_at = |devices: [String; 2], feature: &str, value: &str| {
        for (host, device) in pair.hosts.iter().zip(devices) {
            host.run(["ethtool", "-K", &device, feature, value]);
        }
    };
    let tuns = || ["link".to_owned(), "link".to_owned()];
    let cables = || [a.device_to(b), b.device_to(a)];
    for feature in ["tso", "tx-udp-segmentation", "gso", "tx", "sg", "gro"] {
        off_at(tuns(), feature, "off");
        pair.exercise(1400);
        off_at(tuns(), feature, "on");
    }
    for feature in ["tx-udp-segmentation", "gso", "tx", "sg"] {
        off_at(cables(), feature, "off");
        pair.exercise(1400);
        off_at(cables(), feature, "on");
    }
    // Segments are real on the cable, and merged where they arrive.
    off_at(cables(), "tx-udp-segmentation", "off");
    off_at(cables(), "gro", "on");
    pair.exercise(1400);
}

#[test]
fn transfers_pass_with_each_of_the_kernels_off() {
    passes_with_each_of_the_kernels_off("RAW");
}

#[test]
fn transfers_pass_with_each_of_the_kernels_off_encrypted() {
    passes_with_each_of_the_kernels_off("WIREGUARD");
}

fn keeps_the_order_of_a_flow(framing: &'static str) {
    let pair = Pair::new(Family::V4, framing, 1500, &[]);
    pair.set(1400, &[]);
    let [a, b] = &pair.hosts;
    let out_of_order = |host: &Host| -> u64 {
        let text = host.run(["cat", "/proc/net/netstat"]);
        let mut lines = text.lines().filter(|line| line.starts_with("TcpExt:"));
        let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
        let value = |name: &str| {
            let position = names.split(' ').position(|other| other == name).unwrap();
            values.split(' ').nth(position).unwrap().parse::<u64>().unwrap()
        };
        value("TCPOFOQueue") + value("TCPSACKReorder") + value("TCPTSReorder")
    };
    // A small window: nothing is lost for want of room, so that whatever is out of order was put so.
    for host in [a, b] {
        host.sysctl("net.ipv4.tcp_rmem", "4096 131072 262144");
        host.sysctl("net.ipv4.tcp_wmem", "4096 131072 262144");
    }
    transfer(a, b, "10.0.1.2", 100_000_000);
    transfer(b, a, "10.0.1.1", 100_000_000);
    wait_until(SOON, "nothing is under way", || {
        number(&pair.tunnel(0)["sent"]["packets"]) == number(&pair.tunnel(1)["received"]["packets"])
    });
    assert_eq!([a, b].map(out_of_order), [0, 0]);
    assert_eq!(pair.tunnel(1)["received"]["drops"], Value::Null);
}

#[test]
fn a_flow_keeps_its_order() {
    keeps_the_order_of_a_flow("RAW");
}

#[test]
fn an_encrypted_flow_keeps_its_order() {
    keeps_the_order_of_a_flow("WIREGUARD");
}
