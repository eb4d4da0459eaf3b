//! A controller that is away, or hard to reach, while traffic goes on.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a fault ends the test")]
#![allow(clippy::disallowed_methods, reason = "outages take real time")]

mod lab;

use std::net::IpAddr;
use std::time::{Duration, Instant};
use std::{iter, thread};

use lab::{Agent, Controller, Host, Lab, Pinger, SOON, all_reach, holds_within, wait_until};

const CONTROLLER: &str = "172.100.9.1:7443";
const MESH: &str = "
mesh: prod
overlay: 10.9.0.0/24
security: plain
nodes:
  n1: {address: 10.9.0.1}
  n2: {address: 10.9.0.2}
  n3: {address: 10.9.0.3}
";

/// The operations in a log that says all, but for those that only look.
fn operations(log: &str) -> Vec<&str> {
    let operations =
        log.lines().filter_map(|line| line.split_once("perform op=").map(|(_, operation)| operation));
    operations
        .filter(|operation| !operation.starts_with("Observe") && !operation.starts_with("Measure"))
        .collect()
}

/// When what is silent is shown as stale, and a glance more.
const STALE: Duration = Duration::from_millis(12_500);
/// When an agent that lost its controller is in step again, once nothing is in the way.
const SYNCED: Duration = Duration::from_secs(10);
/// When an agent that starts anew has its tunnels.
const UP: Duration = Duration::from_secs(2);

/// Three hosts on a segment, joined, and their controller behind a router.
struct Site {
    _lab: Lab,
    router: Host,
    brain: Host,
    hosts: [Host; 3],
    controller: Controller,
    agents: [Agent; 3],
}

impl Site {
    fn new() -> Self {
        let lab = Lab::new();
        let (router, brain) = (lab.host("router"), lab.host("brain"));
        let hosts = ["n1", "n2", "n3"].map(|name| lab.host(name));
        let [n1, n2, n3] = &hosts;
        let ends = [(n1, "172.100.1.1/24"), (n2, "172.100.1.2/24"), (n3, "172.100.1.3/24")];
        lab.segment(&router, "172.100.1.254/24", &ends);
        lab.link(&brain, "172.100.9.1/24", &router, "172.100.9.254/24");
        router.forwarding(true);
        brain.route("172.100.1.0/24", "172.100.9.254");
        hosts.iter().for_each(|host| host.route("172.100.9.0/24", "172.100.1.254"));
        let controller = Controller::start(&brain, &[]);
        let agents = hosts.each_ref().map(|host| Agent::join_verbose(host, CONTROLLER, host.role()));
        let site = Self { _lab: lab, router, brain, hosts, controller, agents };
        wait_until(SOON, "all nodes are live", || site.all("LIVE"));
        site.controller.apply_with(MESH, &["--wait"]).unwrap();
        site.all_answer();
        site
    }

    /// Whether all nodes are of this health.
    fn all(&self, health: &str) -> bool {
        self.hosts.iter().all(|host| self.controller.node(host.role())["health"] == health)
    }

    fn is_synced(&self) -> bool {
        self.hosts.iter().all(|host| {
            let node = self.controller.node(host.role());
            node["health"] == "LIVE" && node["converged"] == true
        })
    }

    fn all_answer(&self) {
        let address = |n: usize| -> IpAddr { format!("10.9.0.{}", n + 1).parse().unwrap() };
        let others = |own: usize| (0..3).filter(|n| *n != own).map(address).collect();
        let wanted: Vec<_> = self.hosts.iter().enumerate().map(|(n, host)| (host, others(n))).collect();
        all_reach(&wanted, SOON).unwrap();
    }

    /// Every interface that has to do with the mesh, as the kernel has it, without what traffic changes.
    fn devices(&self) -> Vec<String> {
        let of = |host: &Host| host.run(["ip", "-o", "address", "show", "dev", "prod"]);
        self.hosts.iter().map(of).collect()
    }

    /// Pings that must not lose anything, both ways between each of `pairs`.
    fn traffic(&self, pairs: &[(usize, usize)]) -> Vec<(String, Pinger)> {
        let start = |(from, to): (usize, usize)| {
            let pinger =
                Pinger::start(&self.hosts[from - 1], &format!("10.9.0.{to}"), Duration::from_millis(50));
            (format!("{from} to {to}"), pinger)
        };
        pairs.iter().flat_map(|(a, b)| [(*a, *b), (*b, *a)]).map(start).collect()
    }

    /// The lines that the agents have logged since they had `before` bytes each.
    fn logged(&self, before: &[usize]) -> String {
        let logs = self.agents.iter().zip(before).map(|(agent, before)| agent.log().split_off(*before));
        logs.collect::<Vec<_>>().join("\n")
    }

    fn log_lengths(&self) -> Vec<usize> {
        self.agents.iter().map(|agent| agent.log().len()).collect()
    }

    /// Whether what agents send to the controller is dropped without a word.
    fn silence(&self, on: bool) {
        let nft = |command: &str| self.brain.run(iter::once("nft").chain(command.split(' ')));
        if on {
            nft("add table inet outage");
            nft("add chain inet outage in { type filter hook input priority 0 ; }");
            nft("add rule inet outage in tcp dport 7443 drop");
        } else {
            nft("delete table inet outage");
        }
    }
}

fn lost_nothing(traffic: Vec<(String, Pinger)>) {
    traffic.into_iter().for_each(|(what, pinger)| pinger.lost_nothing(&what));
}

/// An outage goes on until `end`, whatever else is done meanwhile.
fn until(end: Instant) {
    thread::sleep(end.saturating_duration_since(Instant::now()));
}

#[test]
fn a_minute_without_a_controller_costs_no_packet() {
    const OUTAGE: Duration = Duration::from_secs(60);
    let mut site = Site::new();
    let before = site.devices();
    let traffic = site.traffic(&[(1, 2)]);

    assert!(site.controller.terminate().success());
    let end = Instant::now() + OUTAGE;
    wait_until(SOON, "all have heard that it ends", || {
        let log = |agent: &Agent| agent.log();
        site.agents.iter().map(log).all(|log| log.contains("the controller ended the session: "))
    });
    // The agent of one host starts anew meanwhile.
    site.agents[2].terminate();
    assert!(
        site.hosts[2].try_run(["ip", "link", "show", "dev", "prod"]).is_err(),
        "its device is still there"
    );
    let start = Instant::now();
    site.agents[2].restart();
    let address = || site.hosts[2].try_run(["ip", "address", "show", "dev", "prod"]).unwrap_or_default();
    assert!(holds_within(UP, || address().contains("10.9.0.3/24")), "{}", site.agents[2].log());
    assert!(start.elapsed() < UP, "{:?}", start.elapsed());
    site.all_answer();
    let with_new = site.devices();
    assert_eq!(with_new[..2], before[..2]);
    let to_new = site.traffic(&[(1, 3)]);
    until(end);
    assert_eq!(site.devices(), with_new);

    assert!(!operations(&site.logged(&[0; 3])).is_empty(), "agents do not log what they do");

    // Back again it finds everything as it should be.
    let logs = site.log_lengths();
    site.controller.restart();
    wait_until(SYNCED, "all are in step", || site.is_synced());
    site.all_answer();
    assert_eq!(site.devices(), with_new);
    let log = site.logged(&logs);
    assert_eq!(log.matches("in step with the controller").count(), 3, "{log}");
    assert_eq!(operations(&log), Vec::<&str>::new());
    lost_nothing(traffic);
    lost_nothing(to_new);
}

#[test]
fn a_controller_that_is_hard_to_reach_costs_no_packet() {
    let site = Site::new();
    let before = site.devices();
    let traffic = site.traffic(&[(1, 2), (1, 3), (2, 3)]);

    // Sessions are reset again and again.
    for _ in 0..6 {
        let next = Instant::now() + Duration::from_secs(5);
        site.brain.run(["ss", "-K", "sport", "=", ":7443"]);
        until(next);
    }
    wait_until(SYNCED, "all are in step after resets", || site.is_synced());

    // Half open: what the agents send does not arrive.
    site.silence(true);
    let end = Instant::now() + Duration::from_secs(30);
    wait_until(STALE, "all are shown as stale", || site.all("STALE"));
    until(end);
    site.silence(false);
    wait_until(SYNCED, "all are in step after silence", || site.is_synced());

    // A thin wire.
    let device = site.brain.device_to(&site.router);
    let thin = ["rate", "8kbit", "burst", "1600", "latency", "5s"];
    site.brain.run([&["tc", "qdisc", "add", "dev", &device, "root", "tbf"][..], &thin].concat());
    let end = Instant::now() + Duration::from_secs(30);
    site.controller
        .apply(&MESH.replace("{address: 10.9.0.3}", "{address: 10.9.0.3, routes: [192.168.3.0/24]}"))
        .unwrap();
    until(end);
    site.brain.run(["tc", "qdisc", "del", "dev", &device, "root"]);
    wait_until(SYNCED, "all are in step after slowness", || site.is_synced());
    for host in &site.hosts[..2] {
        assert!(host.run(["ip", "route"]).contains("192.168.3.0/24 dev prod"), "the change did not arrive");
    }

    assert_eq!(site.devices(), before);
    lost_nothing(traffic);
}
