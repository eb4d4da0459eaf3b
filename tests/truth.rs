//! What is shown of links is what a packet in that direction finds, whatever is done to hosts, paths and clocks.
//!
//! `TUNMESH_TRUTH_SEED=…` runs that seed again; a run that fails prints it with all that was done.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a fault ends the test")]
#![allow(clippy::print_stderr, reason = "a failing run says what was done")]

mod lab;

use std::collections::BTreeMap;
use std::net::UdpSocket;
use std::path::Path;
use std::time::{Duration, Instant};
use std::{env, fs, thread};

use lab::{AGENT, Agent, Host, SOON, Segment, UNDERLAYS, faked, holds_within, node_name, wait_until};
use serde_json::Value;
use tunmesh::proto::host::clock::now;

/// How many hosts there are.
const HOSTS: usize = 3;
/// From which host to which, by number.
type Way = (usize, usize);
/// The detection time where the other end hears nothing: it sends once a second then, and it may be about to begin with that.
const SLOW: Duration = Duration::from_secs(4);
/// How much later than the detection time, which is shown, it may be shown that a way is cut or is not.
const LATER: Duration = Duration::from_millis(1_700);
/// How much later again where keys are to be agreed on first: that is tried every five seconds.
const KEYS: Duration = Duration::from_secs(6);
/// How long a way stays cut at most, in events: encrypted tunnels agree on keys anew every two minutes, which takes both.
const LONGEST: usize = 4;

struct World {
    segment: Segment,
    agents: Vec<Agent>,
    clocks: tempfile::TempDir,
    /// The ways that are cut, and how many events ago that was done.
    cut: BTreeMap<Way, usize>,
    is_encrypted: bool,
    is_lossy: bool,
    random: u64,
    done: Vec<String>,
}

impl World {
    fn new(security: &str, seed: u64) -> Self {
        let segment = Segment::new(HOSTS);
        let clocks = tempfile::tempdir().unwrap();
        let agents = (1..=HOSTS).map(|n| agent(segment.host(n), n, clocks.path())).collect();
        segment.wait_live(HOSTS);
        let nodes: Vec<_> =
            (1..=HOSTS).map(|n| format!("{}: {{address: 10.9.0.{n}}}", node_name(n))).collect();
        let mesh =
            format!("mesh: m\noverlay: 10.9.0.0/24\nsecurity: {security}\nnodes: {{{}}}\n", nodes.join(", "));
        segment.controller.apply_with(&mesh, &["--wait"]).unwrap();
        for n in 1..=HOSTS {
            let host = segment.host(n);
            host.run(["nft", "add", "table", "ip", "t"]);
            host.run(["nft", "add", "chain", "ip", "t", "in", "{ type filter hook input priority 0; }"]);
        }
        let (cut, done) = (BTreeMap::new(), vec![format!("{security}, seed {seed}")]);
        let is_encrypted = security == "encrypted";
        let mut world =
            Self { segment, agents, clocks, cut, is_encrypted, is_lossy: false, random: seed | 1, done };
        world.check(SOON);
        world
    }

    fn random(&mut self, below: usize) -> usize {
        // Xorshift (Marsaglia 2003).
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        usize::try_from(self.random % below as u64).unwrap()
    }

    fn way(&mut self) -> Way {
        let from = self.random(HOSTS) + 1;
        let to = (from + self.random(HOSTS - 1)) % HOSTS + 1;
        (from, to)
    }

    /// Does something to somebody. Returns how soon it is to be shown what follows.
    fn step(&mut self) -> Duration {
        self.cut.values_mut().for_each(|events| *events += 1);
        let keys = if self.is_encrypted { KEYS } else { Duration::ZERO };
        let shown = self.detection().max(SLOW) + LATER + keys;
        let mut healed = self.cut.clone();
        healed.retain(|_, events| *events > LONGEST);
        self.cut.retain(|way, _| !healed.contains_key(way));
        let (words, soon) = match self.random(7) {
            0 | 1 => {
                let way = self.way();
                self.cut.insert(way, 0);
                (format!("cut {way:?}"), shown)
            }
            2 => {
                let (from, to) = self.way();
                self.cut.extend([((from, to), 0), ((to, from), 0)]);
                (format!("cut {from} and {to}"), shown)
            }
            3 => {
                let way = self.cut.keys().next().copied();
                way.iter().for_each(|way| _ = self.cut.remove(way));
                (format!("heal {way:?}"), shown)
            }
            4 => {
                let n = self.random(HOSTS);
                self.agents[n].kill9();
                self.agents[n].restart();
                (format!("restart {}", n + 1), SOON + keys)
            }
            5 => {
                self.segment.controller.kill9();
                self.segment.controller.restart();
                ("restart the controller".to_owned(), SOON)
            }
            _ => {
                let (n, off) = (self.random(HOSTS) + 1, ["+0", "+1h", "-1h"][self.random(3)]);
                fs::write(clock(self.clocks.path(), n), off).unwrap();
                self.is_lossy = self.random(2) == 0;
                (format!("clock of {n} {off}, lossy: {}", self.is_lossy), shown)
            }
        };
        self.done.push(format!("{words}, healed {:?}", healed.keys().collect::<Vec<_>>()));
        for n in 1..=HOSTS {
            let host = self.segment.host(n);
            let mut rules = "flush chain ip t in\n".to_owned();
            for (from, _) in self.cut.keys().filter(|(_, to)| *to == n) {
                rules += &format!("add rule ip t in ip saddr 172.100.1.{from} udp dport 5000 drop\n");
            }
            if self.is_lossy {
                rules += "add rule ip t in udp dport 5000 numgen random mod 100 < 4 drop\n";
            }
            let file = self.clocks.path().join("rules");
            fs::write(&file, rules).unwrap();
            host.run(["nft", "-f", file.to_str().unwrap()]);
        }
        soon
    }

    /// Which ways the controller shows to be open, by all links; `None`: of some it does not know.
    fn shown(&self) -> Option<BTreeMap<Way, bool>> {
        let answer = self.segment.controller.json(&["links"]);
        let links = answer["links"].as_array()?;
        let number = |value: &Value| value.as_str()?.strip_prefix('n')?.parse::<usize>().ok();
        let mut ways = BTreeMap::new();
        for link in links {
            let (node, peer) = (number(&link["node"])?, number(&link["peer"])?);
            for (way, side) in [((node, peer), "there"), ((peer, node), "back")] {
                let is_open = match link[side]["passage"].as_str()? {
                    "HEARD" => true,
                    "CUT" => false,
                    _ => return None,
                };
                ways.insert(way, is_open);
            }
        }
        (ways.len() == HOSTS * (HOSTS - 1)).then_some(ways)
    }

    /// What is shown comes to be what packets find within `soon`, and stays so.
    fn check(&mut self, soon: Duration) {
        let ways = (1..=HOSTS).flat_map(|from| (1..=HOSTS).map(move |to| (from, to)));
        let ways: Vec<Way> = ways.filter(|(from, to)| from != to).collect();
        let (mut shown, mut found, mut in_a_row) = (None, BTreeMap::new(), 0);
        let can_be = |found: &BTreeMap<Way, bool>| {
            found.iter().all(|(way, is_open)| match self.cut.contains_key(way) {
                true => !is_open,
                // Who has forgotten its keys hears nobody encrypted until both hear each other.
                false => *is_open || self.is_encrypted && self.cut.contains_key(&(way.1, way.0)),
            })
        };
        let is_true = holds_within(soon, || {
            shown = self.shown();
            found = ways.iter().map(|way| (*way, self.passes(*way))).collect();
            in_a_row = if shown.as_ref() == Some(&found) && can_be(&found) { in_a_row + 1 } else { 0 };
            in_a_row == 2
        });
        let done = self.done.join("\n");
        assert!(is_true, "within {soon:?}: {shown:?} is shown, packets find {found:?}\n{done}");
    }

    /// The longest detection time of all links, as it is shown.
    fn detection(&self) -> Duration {
        let answer = self.segment.controller.json(&["links"]);
        let links = answer["links"].as_array().into_iter().flatten();
        let times = links.filter_map(|link| link["detectionTime"].as_str()?.strip_suffix('s')?.parse().ok());
        times.map(Duration::from_secs_f64).max().unwrap_or_default()
    }

    /// Whether packets of the overlay come from one host to another.
    fn passes(&self, (from, to): Way) -> bool {
        let target = format!("10.9.0.{to}:7000");
        let receiver =
            self.segment.host(to).enter(|| UdpSocket::bind(&target)).expect("its address is there");
        let sender = self.segment.host(from).enter(|| UdpSocket::bind(format!("10.9.0.{from}:0"))).unwrap();
        receiver.set_nonblocking(true).unwrap();
        let mut buffer = [0; 16];
        // Of so many one comes through a path that loses a few.
        for _ in 0..6 {
            let _ = sender.send_to(b"is it open", &target);
            thread::sleep(Duration::from_millis(15));
            if receiver.recv(&mut buffer).is_ok() {
                return true;
            }
        }
        false
    }
}

/// Where the clock of a host is set.
fn clock(directory: &Path, n: usize) -> std::path::PathBuf {
    directory.join(format!("clock-{n}"))
}

/// The agent of host `n`, whose wall clock can be set.
fn agent(host: &Host, n: usize, clocks: &Path) -> Agent {
    let file = clock(clocks, n);
    fs::write(&file, "+0").unwrap();
    let setting = format!("FAKETIME_TIMESTAMP_FILE={}", file.display());
    let name = node_name(n);
    let command = faked(
        &setting,
        AGENT,
        &["--controller", Segment::CONTROLLER, "--insecure", UNDERLAYS, "--name", &name],
    );
    Agent::start_by(host, &command.iter().map(String::as_str).collect::<Vec<_>>())
}

fn run(security: &str, seed: u64, time: Duration) {
    let mut world = World::new(security, seed);
    let start: Instant = now();
    while now() - start < time {
        let soon = world.step();
        world.check(soon);
    }
    let steps = world.done.len() - 1;
    eprintln!("{security}, seed {seed}: {steps} events");
    assert!(steps > usize::try_from(time.as_secs() / 20).unwrap(), "{steps} events");
    wait_until(SOON, "the agents are alive", || world.agents.iter_mut().all(|agent| agent.alive()));
}

fn seed(default: u64) -> u64 {
    env::var("TUNMESH_TRUTH_SEED").map_or(default, |seed| seed.parse().unwrap())
}

#[test]
fn what_is_shown_of_links_is_true() {
    run("encrypted", seed(1), Duration::from_secs(30));
}

#[test]
fn what_is_shown_of_links_in_plain_text_is_true() {
    run("plain", seed(2), Duration::from_secs(30));
}

#[test]
#[ignore = "takes ten minutes"]
fn what_is_shown_of_links_is_true_for_ten_minutes() {
    for (security, seed) in [("encrypted", seed(3)), ("plain", seed(4))] {
        run(security, seed, Duration::from_secs(300));
    }
}
