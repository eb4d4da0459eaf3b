//! Addresses, networks and device names that become others under traffic.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a fault ends the test")]

mod lab;

use std::fmt::Write;
use std::net::IpAddr;
use std::time::Duration;

use lab::{Host, Pinger, SOON, Segment, actual, all_reach, ping_ok, wait_until};
use serde_json::Value;

/// Hosts that are in the mesh that changes. The last is in another, too, with one more.
const NODES: usize = 5;
/// Between the requests of a ping.
const INTERVAL: Duration = Duration::from_millis(50);

/// What is written of a mesh of all nodes: where its addresses lie, and the last number of each.
struct Mesh<'a> {
    network: &'a str,
    v6: &'a str,
    device: &'a str,
    numbers: [usize; NODES],
}

impl Mesh<'_> {
    fn file(&self) -> String {
        let Self { network, v6, device, numbers } = self;
        let mut file = format!("mesh: prod\noverlay: ['{network}.0/24', '{v6}::/64']\nsecurity: plain\n");
        writeln!(file, "device: {device}\nnodes:").unwrap();
        for (n, number) in (1..).zip(numbers) {
            let routes = if n == 2 { ", routes: [192.168.2.0/24]" } else { "" };
            writeln!(file, "  n{n}: {{addresses: ['{network}.{number}', '{v6}::{number}']{routes}}}")
                .unwrap();
        }
        file
    }

    /// The addresses of host `n`.
    fn addresses(&self, n: usize) -> [IpAddr; 2] {
        let number = self.numbers[n - 1];
        let (v4, v6) = (format!("{}.{number}", self.network), format!("{}::{number}", self.v6));
        [v4.parse().unwrap(), v6.parse().unwrap()]
    }

    /// Waits until everybody has an answer of everybody.
    fn all_reach(&self, segment: &Segment) {
        let others = |own: usize| (1..=NODES).filter(move |n| *n != own).flat_map(|n| self.addresses(n));
        let wanted: Vec<_> = (1..=NODES).map(|n| (segment.host(n), others(n).collect())).collect();
        all_reach(&wanted, SOON).unwrap();
    }

    /// Waits until every host has what is wanted and nothing else.
    fn is_all_there_is(&self, segment: &Segment) {
        let device = |host: &Host| {
            let actual = actual(host);
            let devices = actual[0].as_array().unwrap().clone();
            devices.into_iter().filter(|device| device[0] != "blue").collect::<Vec<_>>()
        };
        for n in 1..=NODES {
            let host = segment.host(n);
            let wanted = self.addresses(n).map(|address| match address {
                IpAddr::V4(v4) => format!("{v4}/24"),
                IpAddr::V6(v6) => format!("{v6}/64"),
            });
            let is_as_wanted = |devices: &[Value]| {
                let [device] = devices else { return false };
                let found = device[3].as_array().unwrap().iter().map(|address| address.as_str().unwrap());
                let mut found: Vec<_> = found.filter(|address| !address.starts_with("fe80")).collect();
                found.sort_unstable();
                device[0] == self.device && found == wanted
            };
            wait_until(SOON, &format!("n{n} has {wanted:?} on {} and no more", self.device), || {
                is_as_wanted(&device(host))
            });
            let routes = actual(host)[1].to_string();
            let expected = usize::from(n != 2);
            assert_eq!(routes.matches("192.168.2.0/24").count(), expected, "n{n}: {routes}");
            let rules = host.run(["ip", "rule"]);
            assert_eq!(rules.lines().count(), 3, "{rules}");
        }
    }
}

/// The number of a host's device, which another device with the same name would not have.
fn index(host: &Host, device: &str) -> u64 {
    host.ip_json(["link", "show", device])[0]["ifindex"].as_u64().unwrap()
}

/// Pings between two hosts by each of a host's addresses.
fn traffic(segment: &Segment, from: usize, to: [IpAddr; 2]) -> Vec<Pinger> {
    let start = |to: IpAddr| {
        ping_ok(segment.host(from), &to.to_string());
        Pinger::start(segment.host(from), &to.to_string(), INTERVAL)
    };
    to.map(start).into()
}

#[test]
fn what_becomes_other_converges_and_what_does_not_loses_nothing() {
    let segment = Segment::new(NODES + 1);
    let _agents = segment.agents(NODES + 1);
    let apply = |mesh: &Mesh<'_>| {
        segment.controller.apply_with(&mesh.file(), &["--wait"]).unwrap();
        mesh.all_reach(&segment);
        mesh.is_all_there_is(&segment);
    };
    let first = Mesh { network: "10.9.0", v6: "fd00:9", device: "prod", numbers: [1, 2, 3, 4, 5] };
    apply(&first);
    let blue = "mesh: blue\noverlay: 10.20.0.0/24\nsecurity: plain\nnodes:\n  n5: {address: 10.20.0.5}\n  n6: {address: 10.20.0.6}\n";
    segment.controller.apply_with(blue, &["--wait"]).unwrap();
    let blue = traffic(&segment, 6, ["10.20.0.5".parse().unwrap(); 2]);
    let indexes = |device| (1..=NODES).map(|n| index(segment.host(n), device)).collect::<Vec<_>>();

    // Two nodes take each other's addresses, and then three in turn. All others go on, over the same devices.
    let before = indexes("prod");
    let others = traffic(&segment, 4, first.addresses(5));
    let to_3 = traffic(&segment, 4, first.addresses(3));
    apply(&Mesh { numbers: [2, 1, 3, 4, 5], ..first });
    to_3.into_iter().for_each(|pinger| pinger.lost_nothing("4 to 3"));
    let turned = Mesh { numbers: [3, 2, 1, 4, 5], ..first };
    apply(&turned);
    others.into_iter().for_each(|pinger| pinger.lost_nothing("4 to 5"));
    assert_eq!(indexes("prod"), before, "devices were made anew");

    // Another network, over the same devices as well.
    let moved = Mesh { network: "10.8.0", v6: "fd00:8", ..turned };
    apply(&moved);
    assert_eq!(indexes("prod"), before, "devices were made anew");

    // Another name of the device, and then all of it at once.
    apply(&Mesh { device: "mesh0", ..moved });
    apply(&first);
    for pinger in blue {
        pinger.lost_nothing("the other mesh");
    }
}
