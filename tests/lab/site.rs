//! Hosts that join a controller to which nothing is plain text.

use super::{AGENT, Agent, CONTROLLER as PROGRAM, Controller, Host, Lab, SOON, holds_within, wait_live};

/// Where hosts of a [`Site`] dial its controller.
pub const DIALLED: &str = "172.100.1.254:7443";
/// A mesh of three of them.
pub const MESH: &str = "
mesh: prod
overlay: 10.9.0.0/24
security: plain
nodes: {web-1: {}, web-2: {}, web-3: {}}
";

/// Hosts on one segment with a controller to which nothing is plain text.
pub struct Site {
    _lab: Lab,
    /// Where the controller runs.
    pub router: Host,
    /// 172.100.1.1 and on.
    pub hosts: Vec<Host>,
    /// Its controller.
    pub controller: Controller,
}

impl Site {
    /// So many hosts, and a controller with these arguments.
    pub fn new(count: usize, arguments: &[&str]) -> Self {
        Self::start_by(count, &[&[PROGRAM, "serve"], arguments].concat())
    }

    /// With a controller that is started by a command.
    pub fn start_by(count: usize, command: &[&str]) -> Self {
        let lab = Lab::new();
        let router = lab.host("router");
        let hosts: Vec<_> = (1..=count).map(|n| lab.host(&format!("h{n}"))).collect();
        let addresses: Vec<_> = (1..=count).map(|n| format!("172.100.1.{n}/24")).collect();
        let ends: Vec<_> = hosts.iter().zip(addresses.iter().map(String::as_str)).collect();
        lab.segment(&router, "172.100.1.254/24", &ends);
        let controller = Controller::start_by(&router, command);
        Self { _lab: lab, router, hosts, controller }
    }

    /// An agent of host `n`, from 1.
    pub fn agent(&self, n: usize, name: &str, arguments: &[&str]) -> Agent {
        let fixed = ["--controller", DIALLED, "--name", name];
        Agent::start(&self.hosts[n - 1], &[&fixed, arguments].concat())
    }

    /// The same, for one that logs all that it does.
    pub fn agent_verbose(&self, n: usize, name: &str, arguments: &[&str]) -> Agent {
        let fixed = ["env", "TUNMESH_LOG=tunmesh=debug", AGENT, "--controller", DIALLED, "--name", name];
        Agent::start_by(&self.hosts[n - 1], &[&fixed, arguments].concat())
    }

    /// The agents of `count` nodes that have joined with one token.
    pub fn joined(&self, count: usize) -> Vec<Agent> {
        let token = self.controller.token(&["--name", "web-*", "--uses", &count.to_string()]);
        self.joined_with(&token, count)
    }

    /// The same with a token for as many.
    pub fn joined_with(&self, token: &str, count: usize) -> Vec<Agent> {
        let agents: Vec<_> =
            (1..=count).map(|n| self.agent(n, &format!("web-{n}"), &["--token", token])).collect();
        self.wait_live(count);
        agents
    }

    /// Waits until the agents of the first hosts have sessions.
    pub fn wait_live(&self, count: usize) {
        wait_live(&self.controller, &(1..=count).map(|n| format!("web-{n}")).collect::<Vec<_>>());
    }

    /// Whether the controller has ever heard a node.
    pub fn is_known(&self, node: &str) -> bool {
        self.controller.node(node)["lastHeard"].is_string()
    }
}

/// What an agent says of its session, in words.
pub fn trouble(agent: &Agent) -> String {
    agent.session()["trouble"].as_str().unwrap_or_default().to_owned()
}

/// The code that an agent shows which nobody has let in yet.
pub fn code(agent: &Agent) -> String {
    wait_trouble(agent, "waits for approval");
    let text = trouble(agent);
    text.split("approve web-1 ").nth(1).unwrap().split_whitespace().next().unwrap().to_owned()
}

/// Waits until an agent says of its session what has these words.
pub fn wait_trouble(agent: &Agent, words: &str) {
    let mut last = String::new();
    let told = holds_within(SOON, || {
        last = trouble(agent);
        last.contains(words)
    });
    assert!(told, "{words:?} is not in: {last}\n{}", agent.log());
}
