//! A fleet: one real controller, and many agents without devices in one process, over TCP on loopback.

#![allow(dead_code, unreachable_pub, reason = "a module of a test binary has no outside")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a fleet that fails ends its test")]
#![allow(clippy::disallowed_methods, reason = "real processes are waited for in real time")]
#![allow(clippy::print_stderr, reason = "a failure shows the controller's log")]

mod agents;
mod controller;
mod wire;

use std::fmt::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use self::agents::Agents;
use self::controller::Controller;
pub use self::controller::Usage;

/// How often a wait looks.
const LOOK: Duration = Duration::from_millis(20);
/// After so long nothing comes any more.
const PATIENCE: Duration = Duration::from_secs(300);

/// What is to be measured.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// How many agents.
    pub agents: usize,
    /// Whether they report their tunnels, as real ones do.
    pub reports: bool,
}

/// One measured part.
#[derive(Debug, Clone)]
pub struct Part {
    /// What it is.
    pub name: &'static str,
    /// How long it took.
    pub time: Duration,
    /// What the controller's process used meanwhile.
    pub usage: Usage,
    /// Bytes from all agents to the controller, on TCP.
    pub up: u64,
    /// Bytes from the controller to all agents, on TCP.
    pub down: u64,
}

/// Runs a fleet through all parts. `progress` is told the part, how many agents are done, and of how many.
pub fn run(binary: &Path, options: Options, mut progress: impl FnMut(&str, usize, usize)) -> Vec<Part> {
    tunmesh::proto::host::limits::raise_open_files();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let mut controller = Controller::start(binary).await;
        controller.apply(&mesh(options.agents)).await;
        controller.kill();
        let agents = Agents::start(options, controller.address());
        let mut parts = Vec::new();
        let mut measure = async |name, controller: &mut Controller, begin: Begin| {
            let (up, down) = agents.bytes();
            let start = Instant::now();
            let before = match begin {
                Begin::Start => {
                    controller.start_again();
                    Usage::default()
                }
                Begin::Apply(_) => controller.usage(),
            };
            let revision = match begin {
                Begin::Start => 1,
                Begin::Apply(nodes) => controller.apply(&mesh(nodes)).await,
            };
            loop {
                let done = agents.synced(revision);
                progress(name, done, options.agents);
                if done == options.agents {
                    break;
                }
                assert!(start.elapsed() < PATIENCE, "{name}: {done} agents\n{}", controller.log());
                tokio::time::sleep(LOOK).await;
            }
            let time = start.elapsed();
            controller.wait_converged().await;
            let (up_after, down_after) = agents.bytes();
            let usage = controller.usage().since(before);
            parts.push(Part { name, time, usage, up: up_after - up, down: down_after - down });
        };
        measure("synced from nothing", &mut controller, Begin::Start).await;
        controller.kill();
        agents.wait_lost().await;
        measure("synced after a restart", &mut controller, Begin::Start).await;
        measure("one more node", &mut controller, Begin::Apply(options.agents + 1)).await;
        parts
    })
}

/// What a herd found.
#[derive(Debug)]
pub struct Herd {
    /// By agent, in order of time: how long after the first of them dialled it had all that is wanted.
    pub synced: Vec<Duration>,
    /// How long an operator waited for the list of nodes, each time it was asked for meanwhile.
    pub lists: Vec<Duration>,
}

/// Has so many agents dial a running controller at once, while an operator lists them again and again with `list`, which
/// is told the controller's socket.
pub fn herd(binary: &Path, agents: usize, list: impl Fn(&Path) + Send + 'static) -> Herd {
    /// An operator looks at what is listed.
    const PAUSE: Duration = Duration::from_millis(100);
    tunmesh::proto::host::limits::raise_open_files();
    // Agents are on hosts of their own: they take less time from the controller and its operator than these from them.
    let yields = || rustix::process::setpriority_process(None, 3).expect("less than others is for everybody");
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().on_thread_start(yields).build();
    runtime.expect("a runtime").block_on(async {
        let controller = Controller::start(binary).await;
        let revision = controller.apply(&mesh(agents)).await;
        let (socket, is_over) = (controller.socket(), Arc::new(AtomicBool::new(false)));
        let over = Arc::clone(&is_over);
        let start = Instant::now();
        let fleet = Agents::start(Options { agents, reports: true }, controller.address());
        let operator = thread::spawn(move || {
            let mut lists = Vec::new();
            while !over.load(Ordering::Relaxed) {
                let start = Instant::now();
                list(&socket);
                lists.push(start.elapsed());
                thread::sleep(PAUSE);
            }
            lists
        });
        let mut synced = Vec::new();
        while synced.len() < agents {
            synced.resize(fleet.synced(revision).max(synced.len()), start.elapsed());
            assert!(start.elapsed() < PATIENCE, "{} agents\n{}", synced.len(), controller.log());
            tokio::time::sleep(LOOK).await;
        }
        is_over.store(true, Ordering::Relaxed);
        Herd { synced, lists: operator.join().expect("the operator does not panic") }
    })
}

/// How a part begins.
enum Begin {
    /// The controller starts.
    Start,
    /// A mesh of so many nodes is applied.
    Apply(usize),
}

/// The name of a node.
fn node(position: usize) -> String {
    format!("minion-{position}")
}

/// Where a node is on the underlay.
fn endpoint(position: usize) -> String {
    format!("10.{}.{}.{}", position >> 16, (position >> 8) & 0xff, position & 0xff)
}

/// A full mesh.
fn mesh(nodes: usize) -> String {
    let mut file = "mesh: fleet\noverlay: 100.64.0.0/10\nsecurity: plain\nnodes:\n".to_owned();
    for position in 1..=nodes {
        writeln!(file, "  {}: {{endpoint: {}}}", node(position), endpoint(position)).unwrap();
    }
    file
}
