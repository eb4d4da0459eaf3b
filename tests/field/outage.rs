//! A controller that is silent, away, or hard to reach, while traffic goes on.

#![allow(clippy::disallowed_methods, reason = "outages take real time")]

use std::net::IpAddr;
use std::time::{Duration, Instant};
use std::{fs, iter, thread};

use crate::lab::{Agent, Controller, Host, Lab, Pinger, SOON, all_reach, ping, wait_until};

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

/// When what is silent is shown as such, and a glance more.
const STALE: Duration = Duration::from_millis(15_500);
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

    /// Whether what is between the agents and the controller is dropped without a word.
    fn silence(&self, on: bool) {
        if !on {
            self.nft("delete table inet outage");
            return;
        }
        let device = self.router.device_to(&self.brain);
        self.nft("add table inet outage");
        self.nft("add chain inet outage forward { type filter hook forward priority 0 ; }");
        for side in ["iifname", "oifname"] {
            self.nft(&format!("add rule inet outage forward {side} {device} drop"));
        }
    }

    fn nft(&self, command: &str) {
        self.router.run(iter::once("nft").chain(command.split(' ')));
    }

    /// The controller's ends of all sessions.
    fn sessions(&self, options: &[&str]) -> usize {
        let filter = ["--no-header", "--tcp", "state", "established", "sport", "=", ":7443"];
        self.brain.run(["ss"].iter().chain(options).chain(&filter)).lines().count()
    }

    /// Ends all sessions with a TCP reset to both ends.
    fn reset(&self) {
        assert_eq!(
            self.sessions(&["--kill"]),
            3,
            "there are others, or the kernel does not reset (INET_DIAG_DESTROY)"
        );
        wait_until(SYNCED, "all have another session", || self.sessions(&[]) == 3);
    }

    /// Waits until all are in step.
    fn wait_synced(&self, after: &str) {
        wait_until(SYNCED, &format!("all are in step after {after}"), || self.is_synced());
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
fn case_08_a_controller_that_is_silent_is_shown_as_stale_at_both_ends() {
    const SILENCE: Duration = Duration::from_secs(90);
    let site = Site::new();
    let before = site.devices();
    let traffic = site.traffic(&[(1, 2)]);
    site.silence(true);
    let start = Instant::now();
    let is_told = |agent: &Agent| {
        let session = agent.session();
        session["state"] != "SYNCED" && session["trouble"].is_string()
    };
    let (mut controller, mut agents) = (None, None);
    wait_until(STALE, "both ends show it", || {
        controller = controller.or_else(|| site.all("STALE").then(|| start.elapsed()));
        agents = agents.or_else(|| site.agents.iter().all(is_told).then(|| start.elapsed()));
        controller.is_some() && agents.is_some()
    });
    // A controller says so of a node sooner than an agent gives its session up.
    assert!(controller.unwrap() < Duration::from_millis(12_500), "{controller:?}");
    for agent in &site.agents {
        assert!(agent.log().contains("has said nothing for 15 s"), "{}", agent.log());
        assert!(!agent.show("status").contains("in step for"), "{}", agent.show("status"));
    }
    // Nobody takes it for connected in all that time.
    while start.elapsed() < SILENCE {
        assert!(!site.hosts.iter().any(|host| site.controller.node(host.role())["health"] == "LIVE"));
        assert!(site.agents.iter().all(|agent| agent.session()["state"] != "SYNCED"));
        thread::sleep(Duration::from_secs(1));
    }
    let logs = site.log_lengths();
    site.silence(false);
    site.wait_synced("silence");
    assert_eq!(site.devices(), before);
    assert_eq!(operations(&site.logged(&logs)), Vec::<&str>::new());
    lost_nothing(traffic);
}

/// The controller stops for a while, and then all sessions are reset three times.
fn control_trouble_costs_no_packet(outage: Duration, between: Duration) {
    let mut site = Site::new();
    let before = site.devices();
    let traffic = site.traffic(&[(1, 2), (1, 3), (2, 3)]);
    assert!(!operations(&site.logged(&[0; 3])).is_empty(), "agents do not log what they do");
    let logs = site.log_lengths();

    assert!(site.controller.terminate().success());
    let end = Instant::now() + outage;
    wait_until(SOON, "all have heard that it ends", || {
        let log = |agent: &Agent| agent.log();
        site.agents.iter().map(log).all(|log| log.contains("the controller ended the session: "))
    });
    until(end);
    assert_eq!(site.devices(), before);
    let resumed = site.log_lengths();
    site.controller.restart();
    site.wait_synced("the outage");
    let log = site.logged(&resumed);
    assert_eq!(log.matches("INFO in step with the controller").count(), 3, "{log}");

    for _ in 0..3 {
        let next = Instant::now() + between;
        site.reset();
        site.wait_synced("a reset");
        until(next);
    }
    site.all_answer();
    assert_eq!(site.devices(), before);
    assert_eq!(operations(&site.logged(&logs)), Vec::<&str>::new());
    lost_nothing(traffic);
}

#[test]
fn case_09_a_minute_without_a_controller_and_resets_cost_no_packet() {
    control_trouble_costs_no_packet(Duration::from_secs(60), Duration::from_secs(5));
}

#[test]
#[ignore = "takes six minutes"]
fn case_09_five_minutes_without_a_controller_and_resets_cost_no_packet() {
    control_trouble_costs_no_packet(Duration::from_secs(300), Duration::from_secs(20));
}

#[test]
fn case_09_a_controller_behind_a_thin_wire_costs_no_packet() {
    let site = Site::new();
    let before = site.devices();
    let traffic = site.traffic(&[(1, 2), (1, 3), (2, 3)]);
    let device = site.brain.device_to(&site.router);
    let thin = ["rate", "8kbit", "burst", "1600", "latency", "5s"];
    site.brain.run([&["tc", "qdisc", "add", "dev", &device, "root", "tbf"][..], &thin].concat());
    let end = Instant::now() + Duration::from_secs(30);
    site.controller
        .apply(&MESH.replace("{address: 10.9.0.3}", "{address: 10.9.0.3, routes: [192.168.3.0/24]}"))
        .unwrap();
    until(end);
    site.brain.run(["tc", "qdisc", "del", "dev", &device, "root"]);
    site.wait_synced("slowness");
    for host in &site.hosts[..2] {
        assert!(host.run(["ip", "route"]).contains("192.168.3.0/24 dev prod"), "the change did not arrive");
    }
    assert_eq!(site.devices(), before);
    lost_nothing(traffic);
}

#[test]
fn case_10_without_a_controller_a_host_that_starts_anew_has_its_mesh() {
    let mut site = Site::new();
    let before = site.devices();
    let traffic = site.traffic(&[(1, 2)]);
    assert!(site.controller.terminate().success());
    for is_killed in [false, true] {
        match is_killed {
            true => site.agents[2].kill9(),
            false => assert!(site.agents[2].terminate().success()),
        }
        assert!(
            site.hosts[2].try_run(["ip", "link", "show", "dev", "prod"]).is_err(),
            "its device is still there"
        );
        let start = Instant::now();
        site.agents[2].restart();
        wait_until(UP, "it is up", || ping(&site.hosts[2], "10.9.0.1", &[]));
        assert!(start.elapsed() < UP, "{:?}", start.elapsed());
        site.all_answer();
    }
    let with_new = site.devices();
    assert_eq!(with_new[..2], before[..2]);
    let to_new = site.traffic(&[(1, 3)]);

    // Back again it finds everything as it should be.
    let logs = site.log_lengths();
    site.controller.restart();
    site.wait_synced("the outage");
    site.all_answer();
    assert_eq!(site.devices(), with_new);
    let log = site.logged(&logs);
    assert_eq!(log.matches("INFO in step with the controller").count(), 3, "{log}");
    assert_eq!(operations(&log), Vec::<&str>::new());
    lost_nothing(to_new);

    // What was kept is damaged while it does not run: it says so, and has its mesh once it has heard the controller.
    site.agents[2].terminate();
    let kept = site.agents[2].state_dir().join("state");
    let mut bytes = fs::read(&kept).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&kept, &bytes).unwrap();
    site.controller.terminate();
    let log = site.agents[2].log().len();
    site.agents[2].restart();
    let log = site.agents[2].log().split_off(log);
    assert!(log.contains("set aside") && log.contains("state.corrupt-0"), "{log}");
    assert_eq!(fs::read(kept.with_file_name("state.corrupt-0")).unwrap(), bytes);
    assert!(site.agents[2].alive() && site.agents[2].tunnel_names().is_empty());
    site.controller.restart();
    site.wait_synced("the damage");
    site.all_answer();
    lost_nothing(traffic);
}
